//! Where the daemon listens, and connecting to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::ClientError;

/// The socket when none is named.
pub const DEFAULT_SOCKET: &str = "/var/run/bulkhead.sock";

/// Where the daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A UNIX socket.
    Unix(String),
    /// Plain TCP, `host:port`.
    Tcp(String),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl Endpoint {
    /// Understands `unix://PATH`, `tcp://HOST[:PORT]`, `http://…` and a bare `HOST[:PORT]`;
    /// an empty text is the default socket.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::Unix(DEFAULT_SOCKET.to_owned()));
        }
        match text.split_once("://") {
            Some(("unix", "")) => Ok(Self::Unix(DEFAULT_SOCKET.to_owned())),
            Some(("unix", path)) => Ok(Self::Unix(path.to_owned())),
            Some(("tcp" | "http", rest)) => Self::tcp(rest, text),
            Some(("ssh", _)) => Err(format!(
                "{text}: ssh is not supported: forward the daemon's socket with `ssh -L`"
            )),
            Some(_) => Err(format!("invalid bind address format: {text}")),
            None => Self::tcp(text, text),
        }
    }

    fn tcp(address: &str, whole: &str) -> Result<Self, String> {
        let address = address.trim_end_matches('/');
        if address.contains('/') {
            return Err(format!("invalid bind address format: {whole}"));
        }
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (address, "2375"),
        };
        let port = if port.is_empty() { "2375" } else { port };
        if port.parse::<u16>().is_err() {
            return Err(format!("invalid bind address format: {whole}"));
        }
        let host = if host.is_empty() { "127.0.0.1" } else { host };
        Ok(Self::Tcp(format!("{host}:{port}")))
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Connection, ClientError> {
        let connected = match self {
            Self::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
            Self::Tcp(address) => TcpStream::connect(address).await.map(Connection::Tcp),
        };
        connected.map_err(|source| {
            let endpoint = self.to_string();
            if source.kind() == io::ErrorKind::PermissionDenied {
                ClientError::Denied { endpoint, source }
            } else {
                ClientError::Unreachable { endpoint, source }
            }
        })
    }
}

/// True if the other side no longer reads.
fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

/// An open connection. Writes to a side that no longer reads succeed: reading tells why.
pub enum Connection {
    /// Over a UNIX socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Tcp(s) => Pin::new(s).poll_write(cx, bytes),
        };
        match written {
            // The daemon may refuse a long upload without reading all of it. Its answer is
            // there to be read; what is still to be sent goes nowhere.
            Poll::Ready(Err(e)) if gone(&e) => Poll::Ready(Ok(bytes.len())),
            written => written,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let unix = |p: &str| Ok(Endpoint::Unix(p.to_owned()));
        let tcp = |p: &str| Ok(Endpoint::Tcp(p.to_owned()));
        assert_eq!(Endpoint::parse(""), unix(DEFAULT_SOCKET));
        assert_eq!(Endpoint::parse("unix:///x/y"), unix("/x/y"));
        assert_eq!(Endpoint::parse("tcp://h:1"), tcp("h:1"));
        assert_eq!(Endpoint::parse("tcp://h"), tcp("h:2375"));
        assert_eq!(Endpoint::parse("h:7"), tcp("h:7"));
        assert_eq!(Endpoint::parse("tcp://[::1]:7"), tcp("[::1]:7"));
        assert_eq!(Endpoint::parse("tcp://[::1]"), tcp("[::1]:2375"));
        assert!(
            Endpoint::parse("foo://x")
                .unwrap_err()
                .contains("invalid bind address")
        );
        assert!(Endpoint::parse("tcp://h:x").is_err());
    }
}
