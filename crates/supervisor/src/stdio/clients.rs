//! Who reads a process's output, and how far behind each may be.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{Stream, frame};

/// How far a client may be behind, bytes.
const WINDOW: usize = 256 * 1024;

/// Which outputs a client wants, and in what form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub stdout: bool,
    pub stderr: bool,
    /// Without stream frames even where there is no terminal.
    pub raw: bool,
}

/// A piece of output, in both forms that a client may want.
#[derive(Debug, Clone)]
pub struct Chunk {
    stream: Stream,
    framed: Bytes,
    terminal: bool,
}

impl Chunk {
    pub fn new(stream: Stream, payload: &[u8], terminal: bool) -> Self {
        Self {
            stream,
            framed: frame(stream, payload),
            terminal,
        }
    }

    fn for_client(&self, wanted: Wanted) -> Option<Bytes> {
        let asked = match self.stream {
            Stream::Stdout => wanted.stdout,
            Stream::Stderr => wanted.stderr,
        };
        asked.then(|| {
            if self.terminal || wanted.raw {
                self.framed.slice(8..)
            } else {
                self.framed.clone()
            }
        })
    }
}

/// The clients of one process.
#[derive(Default)]
pub struct Clients {
    outlets: Mutex<Vec<Outlet>>,
    /// The process has exited, and its output has ended or soon will.
    exiting: watch::Sender<bool>,
    closed: AtomicBool,
}

#[derive(Clone)]
struct Outlet {
    wanted: Wanted,
    window: Arc<Semaphore>,
    queue: mpsc::UnboundedSender<Bytes>,
}

/// A client's end.
pub struct Client {
    window: Arc<Semaphore>,
    queue: mpsc::UnboundedReceiver<Bytes>,
    exiting: watch::Receiver<bool>,
}

impl Client {
    /// Writes all of it. Once the process has exited `widen` is to have the kernel keep what
    /// is left for who reads `writer`: the supervisor may end before that was read.
    pub async fn forward(
        mut self,
        writer: &mut (impl AsyncWrite + Unpin),
        widen: impl FnOnce() -> rustix::io::Result<()>,
    ) {
        let mut exiting = self.exiting.clone();
        let mut writing = pin!(async {
            while let Some(bytes) = self.next().await {
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
                self.consumed(&bytes);
            }
        });
        tokio::select! {
            () = &mut writing => return,
            _ = exiting.wait_for(|exiting| *exiting) => {}
        }
        if let Err(error) = widen() {
            tracing::debug!(%error, "a slow client may lose the end of the output");
        }
        writing.await;
    }

    /// The next piece; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        self.queue.recv().await
    }

    /// A piece is off our hands.
    fn consumed(&self, bytes: &Bytes) {
        self.window.add_permits(bytes.len());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Whoever waits for this client need not.
        self.window.close();
    }
}

impl Clients {
    pub fn add(&self, wanted: Wanted) -> Client {
        let (sender, queue) = mpsc::unbounded_channel();
        let window = Arc::new(Semaphore::new(WINDOW));
        let mut outlets = self.outlets();
        if !self.closed.load(Ordering::SeqCst) {
            outlets.push(Outlet {
                wanted,
                window: Arc::clone(&window),
                queue: sender,
            });
        }
        Client {
            window,
            queue,
            exiting: self.exiting.subscribe(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.outlets().is_empty()
    }

    /// Sends a piece to every client that wants it, waiting for those that are behind.
    pub async fn send(&self, chunk: Chunk) {
        let outlets = self.outlets().clone();
        let mut gone = false;
        for outlet in outlets {
            let Some(bytes) = chunk.for_client(outlet.wanted) else {
                continue;
            };
            if !*self.exiting.borrow() {
                let permits = u32::try_from(bytes.len().min(WINDOW)).unwrap_or(u32::MAX);
                if let Ok(permit) = outlet.window.acquire_many(permits).await {
                    permit.forget();
                }
            }
            gone |= outlet.queue.send(bytes).is_err();
        }
        if gone {
            self.outlets().retain(|outlet| !outlet.queue.is_closed());
        }
    }

    /// From now on nobody is waited for.
    pub fn stop_waiting(&self) {
        self.exiting.send_replace(true);
        for outlet in self.outlets().iter() {
            outlet.window.close();
        }
    }

    /// No more output will come.
    pub fn close(&self) {
        let mut outlets = self.outlets();
        self.closed.store(true, Ordering::SeqCst);
        outlets.clear();
    }

    /// Waits until every client has everything: after [`Clients::close`].
    pub async fn done(&self) {
        self.exiting.closed().await;
    }

    fn outlets(&self) -> std::sync::MutexGuard<'_, Vec<Outlet>> {
        // The list is whole between any two statements that could panic.
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Wanted = Wanted {
        stdout: true,
        stderr: true,
        raw: false,
    };

    #[tokio::test]
    async fn each_gets_what_it_asked_for() {
        let clients = Clients::default();
        let mut framed = clients.add(BOTH);
        let only_stderr = Wanted {
            stdout: false,
            raw: true,
            ..BOTH
        };
        let mut raw = clients.add(only_stderr);
        clients
            .send(Chunk::new(Stream::Stdout, b"out", false))
            .await;
        clients
            .send(Chunk::new(Stream::Stderr, b"err", false))
            .await;
        clients.close();
        assert_eq!(
            framed.next().await.unwrap(),
            &b"\x01\0\0\0\0\0\0\x03out"[..]
        );
        assert_eq!(
            framed.next().await.unwrap(),
            &b"\x02\0\0\0\0\0\0\x03err"[..]
        );
        assert_eq!(framed.next().await, None);
        assert_eq!(raw.next().await.unwrap(), &b"err"[..]);
        assert_eq!(raw.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_client_holds_up_until_the_exit() {
        let clients = Arc::new(Clients::default());
        let mut slow = clients.add(BOTH);
        let sender = Arc::clone(&clients);
        let sending = tokio::spawn(async move {
            for _ in 0..64 {
                sender
                    .send(Chunk::new(Stream::Stdout, &[0; 16 * 1024], true))
                    .await;
            }
            sender.close();
        });
        tokio::task::yield_now().await;
        assert!(!sending.is_finished());
        clients.stop_waiting();
        sending.await.unwrap();
        let mut total = 0;
        while let Some(bytes) = slow.next().await {
            slow.consumed(&bytes);
            total += bytes.len();
        }
        assert_eq!(total, 1024 * 1024);
    }

    #[tokio::test]
    async fn a_client_that_left_is_forgotten() {
        let clients = Clients::default();
        drop(clients.add(BOTH));
        for _ in 0..64 {
            clients
                .send(Chunk::new(Stream::Stdout, &[0; 16 * 1024], true))
                .await;
        }
        assert!(clients.is_empty());
    }

    #[tokio::test]
    async fn what_is_left_stays_for_who_reads_it_late() {
        use tokio::io::AsyncReadExt;

        let clients = Clients::default();
        let (mut socket, mut late) = tokio::net::UnixStream::pair().unwrap();
        let client = clients.add(BOTH);
        let fd = rustix::io::fcntl_dupfd_cloexec(&socket, 0).unwrap();
        tokio::spawn(async move {
            let widen = || rustix::net::sockopt::set_socket_send_buffer_size_force(fd, 16 << 20);
            client.forward(&mut socket, widen).await;
        });
        clients.stop_waiting();
        for _ in 0..128 {
            clients
                .send(Chunk::new(Stream::Stdout, &[7; 8 * 1024], true))
                .await;
        }
        clients.close();
        clients.done().await;
        let mut bytes = Vec::new();
        late.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, vec![7; 1024 * 1024]);
    }
}
