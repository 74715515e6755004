//! Many streams over one transport.
//!
//! A task of its own drives the multiplexer; it ends when the transport does, when the other
//! side breaks the protocol, or when the last [`Connection`] is dropped. Memory is bounded by
//! [`MAX_STREAMS`] windows of 256 KiB, whatever the other side sends and whatever our side
//! leaves unread.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::sync::PollSender;

/// Most streams that [`Connection::open`] has open at once; further ones wait. A process
/// needs four.
pub const MAX_STREAMS: usize = 768;

/// Most streams that the multiplexer keeps, which are more because it forgets a dropped one
/// only when it comes round to it.
const MULTIPLEXER_STREAMS: usize = 1024;

/// Streams that the other side has opened and nobody has accepted yet. The transport is not
/// read while there are so many.
const BACKLOG: usize = 64;

/// Which side we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams, refuses those of the other side.
    Host,
    /// Accepts streams.
    Guest,
}

/// The connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the connection between host and guest is over: {reason}")]
pub struct ConnectionLost {
    /// Why, for a person.
    pub reason: Arc<str>,
}

impl ConnectionLost {
    fn new(reason: impl Into<Arc<str>>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

/// Our handle on a connection. Clones are the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    open: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    slots: Arc<Semaphore>,
    ended: watch::Receiver<Option<ConnectionLost>>,
}

/// The streams that the other side opens; none at [`Role::Host`].
#[derive(Debug)]
pub struct Incoming {
    streams: mpsc::Receiver<Stream>,
}

impl Incoming {
    /// The next one; `None` when the connection is over.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

impl Connection {
    /// Starts driving the multiplexer over a transport whose handshake is done. Must be
    /// called within a tokio runtime.
    pub fn spawn<T>(transport: T, role: Role) -> (Self, Incoming)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut config = yamux::Config::default();
        // The total is what the streams' first windows add up to: none ever grows.
        config
            .set_max_connection_receive_window(None)
            .set_max_num_streams(MULTIPLEXER_STREAMS)
            .set_max_connection_receive_window(Some(MULTIPLEXER_STREAMS * WINDOW));
        let mode = match role {
            Role::Host => yamux::Mode::Client,
            Role::Guest => yamux::Mode::Server,
        };
        let multiplexer = yamux::Connection::new(transport.compat(), config, mode);
        let (open, requests) = mpsc::channel(BACKLOG);
        let (accepted, streams) = mpsc::channel(BACKLOG);
        let (ended_sender, ended) = watch::channel(None);
        let accepted = (role == Role::Guest).then(|| PollSender::new(accepted));
        tokio::spawn(async move {
            let lost = drive(multiplexer, requests, accepted).await;
            tracing::debug!(%lost, "driver ends");
            ended_sender.send_replace(Some(lost));
        });
        let connection = Self {
            open,
            slots: Arc::new(Semaphore::new(MAX_STREAMS)),
            ended,
        };
        (connection, Incoming { streams })
    }

    /// Opens a stream. Waits while [`MAX_STREAMS`] are open.
    ///
    /// # Errors
    /// [`ConnectionLost`].
    pub async fn open(&self) -> Result<Stream, ConnectionLost> {
        let slot = match Arc::clone(&self.slots).acquire_owned().await {
            Ok(slot) => slot,
            Err(_) => return Err(self.ended().await),
        };
        let (sender, receiver) = oneshot::channel();
        if self.open.send(sender).await.is_err() {
            return Err(self.ended().await);
        }
        match receiver.await {
            Ok(stream) => Ok(Stream::new(stream, Some(slot))),
            Err(_) => Err(self.ended().await),
        }
    }

    /// Waits for the end of the connection. Any number of callers.
    pub async fn ended(&self) -> ConnectionLost {
        let mut ended = self.ended.clone();
        let lost = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|lost| lost.clone());
        lost.unwrap_or_else(|| ConnectionLost::new("its driver was stopped"))
    }
}

/// The window of one stream, bytes, by the multiplexer's specification.
const WINDOW: usize = 256 << 10;

async fn drive<T>(
    mut multiplexer: yamux::Connection<Compat<T>>,
    mut requests: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    mut accepted: Option<PollSender<Stream>>,
) -> ConnectionLost
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut opening: Option<oneshot::Sender<yamux::Stream>> = None;
    let over = std::future::poll_fn(|cx| {
        loop {
            // Whoever accepts has to come round before more is read: a burst of streams is
            // served late, none of it is turned away. Nobody there at all is seen below.
            if let Some(accepted) = &mut accepted
                && accepted.poll_reserve(cx).is_pending()
            {
                return Poll::Pending;
            }
            // Reads, writes, and yields the streams that the other side opens.
            match multiplexer.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    // Dropping the stream resets it: nobody here serves that side.
                    match &mut accepted {
                        Some(accepted) => drop(accepted.send_item(Stream::new(stream, None))),
                        None => drop(stream),
                    }
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Some(ConnectionLost::new(describe(&error))));
                }
                Poll::Ready(None) => {
                    return Poll::Ready(Some(ConnectionLost::new("the other side closed it")));
                }
                Poll::Pending => {}
            }
            if opening.is_none() {
                match requests.poll_recv(cx) {
                    Poll::Ready(Some(request)) => opening = Some(request),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match multiplexer.poll_new_outbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    if let Some(asker) = opening.take() {
                        // The asker may have been cancelled; the stream is reset then.
                        drop(asker.send(stream));
                    }
                }
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Some(ConnectionLost::new(describe(&error))));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    match over {
        Some(lost) => lost,
        None => {
            // The last handle is gone. The other side sees the transport's end in any case.
            let _ = std::future::poll_fn(|cx| multiplexer.poll_close(cx)).await;
            ConnectionLost::new("it was closed on this side")
        }
    }
}

fn describe(error: &yamux::ConnectionError) -> String {
    match error {
        yamux::ConnectionError::Closed => "the other side closed it".to_owned(),
        other => other.to_string(),
    }
}

/// One stream. Shutting it down closes our direction only; dropping it without that resets
/// it, which the other side sees as an end.
#[derive(Debug)]
pub struct Stream {
    stream: Compat<yamux::Stream>,
    shut_down: bool,
    /// Counts the stream against [`MAX_STREAMS`] while it lives.
    _slot: Option<OwnedSemaphorePermit>,
}

impl Stream {
    fn new(stream: yamux::Stream, slot: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream: stream.compat(),
            shut_down: false,
            _slot: slot,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The multiplexer would send a second end.
        if !self.shut_down {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut_down = true;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Connection, Connection, Incoming) {
        let (host, guest) = tokio::io::duplex(1 << 16);
        let (host, _none) = Connection::spawn(host, Role::Host);
        let (guest, incoming) = Connection::spawn(guest, Role::Guest);
        (host, guest, incoming)
    }

    #[tokio::test]
    async fn half_close_leaves_the_other_half() {
        let (host, _guest, mut incoming) = pair();
        let mut ours = host.open().await.unwrap();
        ours.write_all(b"question").await.unwrap();
        ours.shutdown().await.unwrap();
        ours.shutdown().await.unwrap();
        let mut theirs = incoming.accept().await.unwrap();
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"question");
        theirs.write_all(b"answer").await.unwrap();
        theirs.shutdown().await.unwrap();
        bytes.clear();
        ours.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"answer");
    }

    #[tokio::test]
    async fn an_unread_stream_blocks_its_writer_and_nobody_else() {
        let (host, _guest, mut incoming) = pair();
        let mut stuck = host.open().await.unwrap();
        let chunk = vec![7; 64 << 10];
        let mut written = 0;
        let writer = async {
            while stuck.write_all(&chunk).await.is_ok() {
                written += chunk.len();
            }
        };
        let other = async {
            let _unread = incoming.accept().await.unwrap();
            let mut ours = host.open().await.unwrap();
            ours.write_all(b"x").await.unwrap();
            let mut theirs = incoming.accept().await.unwrap();
            assert_eq!(theirs.read_u8().await.unwrap(), b'x');
            tokio::task::yield_now().await;
        };
        tokio::select! {
            () = writer => panic!("the writer must block"),
            () = other => {}
        }
        assert!(written <= 2 * WINDOW, "{written}");
    }

    #[tokio::test]
    async fn the_guest_opens_no_streams() {
        let (_host, guest, _incoming) = pair();
        let mut stream = guest.open().await.unwrap();
        // The write is queued; the host answers it by a reset.
        let _ = stream.write_all(b"hello").await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        assert!(bytes.is_empty());
    }

    #[tokio::test]
    async fn a_lost_transport_ends_everything() {
        let (host, guest) = tokio::io::duplex(1 << 16);
        let (host, _none) = Connection::spawn(host, Role::Host);
        let mut stream = host.open().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        drop(guest);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes.is_empty());
        host.ended().await;
        assert!(host.open().await.is_err());
    }

    #[tokio::test]
    async fn garbage_ends_the_connection() {
        for byte in 0..=255u8 {
            let (host, mut guest) = tokio::io::duplex(1 << 16);
            let (host, _none) = Connection::spawn(host, Role::Host);
            let mut garbage = [byte; 64];
            garbage[1] = 0xff;
            let _ = guest.write_all(&garbage).await;
            drop(guest);
            host.ended().await;
        }
    }

    #[tokio::test]
    async fn a_burst_of_streams_is_served_late_but_whole() {
        let (host, _guest, mut incoming) = pair();
        let mut streams = Vec::new();
        for _ in 0..4 * BACKLOG {
            let mut stream = host.open().await.unwrap();
            stream.write_all(b"x").await.unwrap();
            streams.push(stream);
        }
        // The guest's driver has its turn before anybody accepts.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let server = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(mut stream) = incoming.accept().await {
                stream.write_all(b"a").await.unwrap();
                held.push(stream);
            }
        });
        for stream in &mut streams {
            assert_eq!(stream.read_u8().await.unwrap(), b'a');
        }
        server.abort();
    }

    #[tokio::test]
    async fn streams_beyond_the_limit_wait() {
        let (host, _guest, mut incoming) = pair();
        let server = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(mut stream) = incoming.accept().await {
                stream.write_all(b"a").await.unwrap();
                held.push(stream);
            }
        });
        let mut streams = Vec::new();
        for _ in 0..MAX_STREAMS {
            let mut stream = host.open().await.unwrap();
            stream.write_all(b"x").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'a');
            streams.push(stream);
        }
        let further = host.open();
        tokio::pin!(further);
        tokio::select! {
            biased;
            _ = &mut further => panic!("it must wait"),
            () = tokio::task::yield_now() => {}
        }
        streams.pop();
        further.await.unwrap();
        server.abort();
    }
}
