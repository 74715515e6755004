//! The virtio console port as a stream.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bulkhead_agent_protocol::hello;
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The name that the host gives the port.
const NAME: &str = "bulkhead.agent";

/// Finds the port by its name, which the host announces after the port itself.
///
/// # Errors
/// What the system says; it is no error that there is none yet.
pub fn find() -> io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir("/sys/class/virtio-ports") {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        let device = Path::new("/dev").join(entry.file_name());
        if name.trim_end() == NAME && device.exists() {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// Opens the port; only one process can.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// The open port.
#[derive(Debug)]
pub struct Port {
    file: AsyncFd<File>,
}

impl Port {
    /// Sends our hello, for which it waits until the host is connected. Must be called
    /// within a tokio runtime that has nothing else to do yet.
    ///
    /// Before the host is connected, which the kernel may learn after the port's name, a
    /// port polls as hung up, and a runtime that has seen that never takes it back.
    ///
    /// # Errors
    /// What the system says.
    pub fn greet(mut file: File) -> io::Result<Self> {
        file.write_all(&hello::bytes())?;
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        Ok(Self {
            // SAFETY: a File owns one descriptor and keeps it open, under the same number,
            // for as long as it lives.
            file: unsafe { AsyncFd::register(file)? },
        })
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.file.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            // Zero bytes are the end: the host has closed its side.
            match guard.try_io(|file| file.get_ref().read(unfilled)) {
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.file.poll_write_ready(cx))?;
            match guard.try_io(|file| file.get_ref().write(bytes)) {
                Ok(Ok(written)) => return Poll::Ready(Ok(written)),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
