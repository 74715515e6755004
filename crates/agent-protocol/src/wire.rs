//! Messages on a stream: a 4-byte big-endian length and as many bytes of JSON.

use bulkhead_isolation::IsolationError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{Call, Request};

/// The longest message, bytes. The largest are specifications (tens of KiB) and process
/// lists (about 500 bytes a process).
pub const MAX_MESSAGE: usize = 4 << 20;

/// A message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream ended or broke.
    #[error("the connection between host and guest broke")]
    Io(#[from] std::io::Error),
    /// Longer than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes is longer than the {MAX_MESSAGE} allowed")]
    TooLong(usize),
    /// Not the JSON that was expected.
    #[error("a message could not be understood")]
    Malformed(#[from] serde_json::Error),
}

/// Sends one message.
///
/// # Errors
/// See [`WireError`]; nothing was sent when it is [`WireError::TooLong`].
pub async fn write_message<T, W>(stream: &mut W, message: &T) -> Result<(), WireError>
where
    T: Serialize + ?Sized,
    W: AsyncWrite + Unpin,
{
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    let prefix = match u32::try_from(length) {
        Ok(prefix) if length <= MAX_MESSAGE => prefix,
        _ => return Err(WireError::TooLong(length)),
    };
    bytes[..4].copy_from_slice(&prefix.to_be_bytes());
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

/// Receives one message.
///
/// # Errors
/// See [`WireError`]; the stream is of no use after one.
pub async fn read_message<T, R>(stream: &mut R) -> Result<T, WireError>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let length = stream.read_u32().await?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(WireError::TooLong(length));
    }
    let mut bytes = Vec::new();
    // Grows with what arrives, not with what was announced.
    let limit = u64::try_from(length).unwrap_or(u64::MAX);
    stream.take(limit).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// The host's half of a request: sends it and reads the reply. The stream is then at the
/// first raw byte.
///
/// # Errors
/// The outer one is the wire's, the inner one the agent's.
pub async fn call<C, S>(
    stream: &mut S,
    request: C,
) -> Result<Result<C::Reply, IsolationError>, WireError>
where
    C: Call,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request: Request = request.into();
    write_message(stream, &request).await?;
    read_message(stream).await
}

/// The agent's half: answers a request of type `C`.
///
/// # Errors
/// See [`WireError`].
pub async fn reply<C, W>(
    stream: &mut W,
    reply: &Result<C::Reply, IsolationError>,
) -> Result<(), WireError>
where
    C: Call,
    W: AsyncWrite + Unpin,
{
    write_message(stream, reply).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kill, Pause};
    use bulkhead_isolation::ErrorKind;

    #[tokio::test]
    async fn a_request_is_answered() {
        let (mut host, mut guest) = tokio::io::duplex(1 << 16);
        let agent = tokio::spawn(async move {
            let request: Request = read_message(&mut guest).await.unwrap();
            assert!(matches!(&request, Request::Kill(kill) if kill.signal == 9));
            let refused = Err(IsolationError::new(ErrorKind::NotFound, "gone"));
            reply::<Kill, _>(&mut guest, &refused).await.unwrap();
        });
        let kill = Kill {
            process: String::new(),
            signal: 9,
        };
        let error = call(&mut host, kill).await.unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        agent.await.unwrap();
    }

    #[tokio::test]
    async fn long_messages_are_refused_on_both_sides() {
        let (mut host, mut guest) = tokio::io::duplex(1 << 16);
        let long = "x".repeat(MAX_MESSAGE);
        let error = write_message(&mut host, &long).await.unwrap_err();
        assert!(matches!(error, WireError::TooLong(_)));
        host.write_u32(u32::MAX).await.unwrap();
        let error = read_message::<Request, _>(&mut guest).await.unwrap_err();
        assert!(matches!(error, WireError::TooLong(_)));
    }

    #[tokio::test]
    async fn short_and_foreign_messages_are_errors() {
        let (mut host, mut guest) = tokio::io::duplex(1 << 16);
        host.write_all(b"\0\0\0\x02{]").await.unwrap();
        let error = read_message::<Request, _>(&mut guest).await.unwrap_err();
        assert!(matches!(error, WireError::Malformed(_)));
        host.write_all(b"\0\0\x10\0{").await.unwrap();
        drop(host);
        let error = read_message::<Request, _>(&mut guest).await.unwrap_err();
        assert!(matches!(error, WireError::Io(_)));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = "[".repeat(1 << 20);
        assert!(serde_json::from_str::<Request>(&deep).is_err());
        assert!(serde_json::from_str::<Result<serde_json::Value, IsolationError>>(&deep).is_err());
        let _: Request = Pause.into();
    }
}
