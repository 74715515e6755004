//! The standard streams of one process, shared by the log and by any number of clients.
//!
//! Everything the process writes goes to the log first and then to every client. A client
//! has a bounded queue; while one is full nothing more is read from the process, which so
//! feels the slowest of its readers, until it has exited: the little that is left then is
//! queued without a bound, because nobody's slowness may hold up the report of an exit. The
//! kernel keeps it for the reader, since the supervisor soon ends.

pub mod attach;
mod clients;
mod fifo;
mod log;

use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use bulkhead_isolation::{ByteReader, ByteWriter, Stdio};
use bulkhead_task::options::LogOptions;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

pub use clients::Wanted;
use clients::{Chunk, Client, Clients};
pub use fifo::Fifos;
use log::Log;

/// How much is read from a process at once, bytes.
const READ: usize = 16 * 1024;

/// How long the kernel may take over what is left of the output.
const SENT_LIMIT: Duration = Duration::from_secs(1);

/// An output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Its name in the log.
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// Its number in Docker's stream frames.
    fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// The streams of one process.
pub struct Hub {
    terminal: bool,
    stdin_once: bool,
    stdin: Mutex<Option<ByteWriter>>,
    log: SyncMutex<Option<Log>>,
    clients: Clients,
    readers: Mutex<JoinSet<()>>,
}

impl Hub {
    /// Starts to read what the process writes.
    pub fn start(
        stdio: Stdio,
        terminal: bool,
        stdin_once: bool,
        log: Option<&LogOptions>,
    ) -> Arc<Self> {
        let hub = Arc::new(Self {
            terminal,
            stdin_once,
            stdin: Mutex::new(stdio.stdin),
            log: SyncMutex::new(log.and_then(Log::open)),
            clients: Clients::default(),
            readers: Mutex::new(JoinSet::new()),
        });
        // Nobody else has the hub yet.
        if let Ok(mut readers) = hub.readers.try_lock() {
            let streams = [
                (Stream::Stdout, stdio.stdout),
                (Stream::Stderr, stdio.stderr),
            ];
            for (stream, reader) in streams {
                if let Some(reader) = reader {
                    readers.spawn(Arc::clone(&hub).pump(stream, reader));
                }
            }
        }
        hub
    }

    /// Whether the process has a terminal.
    pub fn terminal(&self) -> bool {
        self.terminal
    }

    async fn pump(self: Arc<Self>, stream: Stream, mut reader: ByteReader) {
        let mut buffer = vec![0; READ];
        loop {
            let count = match reader.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    tracing::warn!(stream = stream.name(), %error, "output lost");
                    break;
                }
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            self.with_log(|log| log.append(stream.name(), bytes));
            if !self.clients.is_empty() {
                let chunk = Chunk::new(stream, bytes, self.terminal);
                self.clients.send(chunk).await;
            }
        }
        self.with_log(|log| log.finish(stream.name()));
    }

    fn with_log(&self, act: impl FnOnce(&mut Log)) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = log.as_mut() {
            act(log);
        }
    }

    /// Adds a client of the outputs that it wants.
    pub fn subscribe(&self, wanted: Wanted) -> Client {
        self.clients.add(wanted)
    }

    /// Writes to the process's stdin; `false` when nothing can be written (any more).
    pub async fn write_stdin(&self, bytes: &[u8]) -> bool {
        let mut stdin = self.stdin.lock().await;
        let Some(writer) = stdin.as_mut() else {
            return false;
        };
        let written = async {
            writer.write_all(bytes).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "stdin is closed");
            *stdin = None;
            return false;
        }
        true
    }

    /// Closes the process's stdin, whoever else would have written to it.
    pub async fn close_stdin(&self) {
        if let Some(mut writer) = self.stdin.lock().await.take() {
            // Closed by the process already: as good.
            let _ = writer.shutdown().await;
        }
    }

    /// A client's input has ended.
    pub async fn input_ended(&self) {
        if self.stdin_once && !self.terminal {
            self.close_stdin().await;
        }
    }

    /// Once the process has exited: reads what is left, and returns when all of it is in the
    /// log and on its way to the clients, who get an end after it.
    pub async fn finish(&self) {
        self.clients.stop_waiting();
        let mut readers = self.readers.lock().await;
        while readers.join_next().await.is_some() {}
        self.with_log(Log::flush);
        self.clients.close();
        if tokio::time::timeout(SENT_LIMIT, self.clients.done())
            .await
            .is_err()
        {
            tracing::warn!("a slow client may lose the end of the output");
        }
        // A writer that waits for the process holds the lock until it fails.
        if let Ok(mut stdin) = self.stdin.try_lock() {
            *stdin = None;
        }
    }
}

/// Puts Docker's header of eight bytes before the payload.
fn frame(stream: Stream, payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&[stream.number(), 0, 0, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.into()
}
