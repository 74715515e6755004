//! The named pipes that containerd makes for a process: one more client, unframed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::clients::Wanted;
use super::{Hub, READ};

/// Room for what is left when the process has exited, bytes: the most that everybody may
/// have by default (`fs.pipe-max-size`).
const LEFT: usize = 1 << 20;

/// Where they are; an empty path is none.
#[derive(Debug, Default, Clone)]
pub struct Fifos {
    pub stdin: PathBuf,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
}

impl Fifos {
    /// Whether stdin is wanted.
    pub fn stdin(&self) -> bool {
        !self.stdin.as_os_str().is_empty()
    }

    /// Connects them. Opened for both directions, so that it neither waits for the other
    /// side nor ends with it: containerd may be restarted, and ends stdin by CloseIO.
    pub fn connect(&self, hub: &Arc<Hub>) -> io::Result<()> {
        let mut options = pipe::OpenOptions::new();
        options.read_write(true);
        for (path, stdout) in [(&self.stdout, true), (&self.stderr, false)] {
            if path.as_os_str().is_empty() {
                continue;
            }
            let mut fifo = options.open_sender(path)?;
            let client = hub.subscribe(Wanted {
                stdout,
                stderr: !stdout,
                raw: true,
            });
            let pipe = rustix::io::fcntl_dupfd_cloexec(&fifo, 0);
            tokio::spawn(async move {
                let widen = || rustix::pipe::fcntl_setpipe_size(pipe?, LEFT).map(drop);
                client.forward(&mut fifo, widen).await;
            });
        }
        if self.stdin() {
            let mut fifo = options.open_receiver(&self.stdin)?;
            let hub = Arc::clone(hub);
            tokio::spawn(async move {
                let mut buffer = vec![0; READ];
                while let Ok(count @ 1..) = fifo.read(&mut buffer).await {
                    if !hub
                        .write_stdin(buffer.get(..count).unwrap_or_default())
                        .await
                    {
                        return;
                    }
                }
            });
        }
        Ok(())
    }
}
