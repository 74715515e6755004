//! WebSockets (RFC 6455), as far as `attach` needs them: a connection that was upgraded is
//! unwrapped into the plain stream that it carries.

use std::io;

use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::error::{ApiError, ApiResult};
use crate::frames::Frames;
use crate::hijack::RawConnection;

/// RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Section 5.5: a control frame holds no more.
const MAX_CONTROL: u64 = 125;
/// Section 7.4.1: why we close, 1000.
const NORMAL: [u8; 2] = 1000_u16.to_be_bytes();
/// How much is moved at a time.
const CHUNK: usize = 16 * 1024;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What the answer to a request for a WebSocket says in `Sec-WebSocket-Accept`.
///
/// # Errors
/// 400 for a request that is none.
pub fn accept(headers: &HeaderMap) -> ApiResult<HeaderValue> {
    let get = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let upgrade = get(header::UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let version = get(header::SEC_WEBSOCKET_VERSION) == Some("13");
    let key = get(header::SEC_WEBSOCKET_KEY);
    let (true, true, Some(key)) = (upgrade, version, key) else {
        return Err(ApiError::bad_request(
            "bad request: not a websocket handshake",
        ));
    };
    let text = format!("{key}{GUID}");
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    HeaderValue::from_str(&accept)
        .map_err(|error| ApiError::internal("websocket handshake", &error))
}

/// The stream that an upgraded connection carries. `framed`: what goes to the client comes in
/// Docker's frames, which a WebSocket has no use for.
///
/// # Errors
/// That there are no more sockets.
pub fn unwrap(raw: RawConnection, framed: bool) -> io::Result<RawConnection> {
    let (ours, theirs) = UnixStream::pair()?;
    tokio::spawn(async move {
        let early = raw.early;
        let (client_reads, client_writes) = raw.socket.into_split();
        let (inner_reads, inner_writes) = ours.into_split();
        let (answers, waiting) = mpsc::channel(4);
        let mut from_client = FromClient {
            early: early.to_vec(),
            at: 0,
            socket: client_reads,
        };
        let up = from_client.pump(inner_writes, answers);
        let down = to_client(inner_reads, client_writes, waiting, framed);
        tokio::pin!(up);
        tokio::pin!(down);
        let ended = tokio::select! {
            ended = &mut up => match ended {
                // The client closed, and is yet to be told that this was seen.
                Ok(()) => down.await,
                Err(error) => Err(error),
            },
            ended = &mut down => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "websocket");
        }
    });
    Ok(RawConnection {
        early: bytes::Bytes::new(),
        socket: theirs,
    })
}

struct FromClient {
    early: Vec<u8>,
    at: usize,
    socket: OwnedReadHalf,
}

impl FromClient {
    async fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let rest = &self.early[self.at..];
        if rest.is_empty() {
            return self.socket.read(out).await;
        }
        let take = rest.len().min(out.len());
        out[..take].copy_from_slice(&rest[..take]);
        self.at += take;
        Ok(take)
    }

    async fn exactly<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        let mut got = 0;
        while got < N {
            match self.read(&mut out[got..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => got += more,
            }
        }
        Ok(out)
    }

    /// Unwraps frames until the client closes. Section 5.2.
    async fn pump(
        &mut self,
        mut inner: OwnedWriteHalf,
        answers: mpsc::Sender<(u8, Vec<u8>)>,
    ) -> io::Result<()> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        loop {
            let [first, second] = self.exactly::<2>().await?;
            let code = first & 0x0f;
            if first & 0x70 != 0 {
                return Err(bad("a frame of an extension"));
            }
            if second & 0x80 == 0 {
                return Err(bad("a client's frame that is not masked"));
            }
            let length = match second & 0x7f {
                126 => u64::from(u16::from_be_bytes(self.exactly().await?)),
                127 => u64::from_be_bytes(self.exactly().await?),
                short => u64::from(short),
            };
            let mask: [u8; 4] = self.exactly().await?;
            match code {
                CONTINUATION | TEXT | BINARY => self.data(&mut inner, length, mask).await?,
                CLOSE | PING | PONG => {
                    if length > MAX_CONTROL {
                        return Err(bad("a control frame that is too long"));
                    }
                    let mut content = Vec::new();
                    for at in 0..length {
                        let [byte] = self.exactly::<1>().await?;
                        content.push(byte ^ mask[usize::from(at.to_le_bytes()[0] & 3)]);
                    }
                    match code {
                        CLOSE => {
                            // Section 5.5.1: it is answered in kind. That ends the other way,
                            // which may have ended already.
                            let _ = answers.send((CLOSE, content)).await;
                            return inner.shutdown().await;
                        }
                        PING => {
                            // A client that pings faster than it reads gets fewer answers.
                            let _ = answers.try_send((PONG, content));
                        }
                        _ => {}
                    }
                }
                _ => return Err(bad("a frame of an unknown kind")),
            }
        }
    }

    async fn data(
        &mut self,
        inner: &mut OwnedWriteHalf,
        length: u64,
        mask: [u8; 4],
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut left = length;
        let mut phase = 0;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let got = self.read(&mut buffer[..want]).await?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for byte in &mut buffer[..got] {
                *byte ^= mask[phase];
                phase = (phase + 1) & 3;
            }
            left -= u64::try_from(got).unwrap_or(left);
            inner.write_all(&buffer[..got]).await?;
        }
        Ok(())
    }
}

/// The head of a frame from us, which is whole and not masked.
fn head(code: u8, length: usize) -> Vec<u8> {
    let mut out = vec![0x80 | code];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            let long = u64::try_from(length).unwrap_or(u64::MAX);
            out.extend_from_slice(&long.to_be_bytes());
        }
    }
    out
}

async fn to_client(
    mut inner: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    mut answers: mpsc::Receiver<(u8, Vec<u8>)>,
    framed: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut frames = Frames::default();
    loop {
        let got = tokio::select! {
            got = inner.read(&mut buffer) => got?,
            Some((code, content)) = answers.recv() => {
                client.write_all(&head(code, content.len())).await?;
                client.write_all(&content).await?;
                match code {
                    CLOSE => return client.shutdown().await,
                    _ => continue,
                }
            }
        };
        if got == 0 {
            client.write_all(&head(CLOSE, NORMAL.len())).await?;
            client.write_all(&NORMAL).await?;
            return client.shutdown().await;
        }
        let mut content = Vec::with_capacity(got);
        match framed {
            true => frames.strip(&buffer[..got], &mut content),
            false => content.extend_from_slice(&buffer[..got]),
        }
        if !content.is_empty() {
            client.write_all(&head(BINARY, content.len())).await?;
            client.write_all(&content).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_of_the_rfc() {
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(
            header::SEC_WEBSOCKET_KEY,
            HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="),
        );
        assert!(accept(&headers).is_err());
        headers.insert(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static("13"),
        );
        assert_eq!(accept(&headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    async fn pair(framed: bool) -> (UnixStream, UnixStream) {
        let (client, server) = UnixStream::pair().unwrap();
        let raw = RawConnection {
            early: bytes::Bytes::from_static(&[0x81, 0x85, 1, 2]),
            socket: server,
        };
        (client, unwrap(raw, framed).unwrap().socket)
    }

    #[tokio::test]
    async fn frames_come_and_go() {
        let (mut client, mut inner) = pair(true).await;
        let masked: Vec<u8> = b"hello"
            .iter()
            .zip([1, 2, 3, 4].iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        // The rest of the mask, the content, a ping, an end.
        client.write_all(&[3, 4]).await.unwrap();
        client.write_all(&masked).await.unwrap();
        client
            .write_all(&[0x89, 0x81, 0, 0, 0, 0, b'p'])
            .await
            .unwrap();
        let mut got = [0; 5];
        inner.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
        let mut pong = [0; 3];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong, [0x8a, 1, b'p']);
        inner
            .write_all(&[1, 0, 0, 0, 0, 0, 0, 2, b'o', b'k'])
            .await
            .unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [0x82, 2, b'o', b'k']);
        drop(inner);
        let mut end = Vec::new();
        client.read_to_end(&mut end).await.unwrap();
        assert_eq!(end, [0x88, 2, 3, 0xe8]);
    }

    #[tokio::test]
    async fn a_close_is_answered_and_ends_both_ways() {
        let (mut client, mut inner) = pair(false).await;
        client
            .write_all(&[3, 4, 0, 0, 0, 0, 0, 0x88, 0x82, 0, 0, 0, 0, 3, 0xe9])
            .await
            .unwrap();
        let mut rest = Vec::new();
        inner.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 5);
        let mut end = Vec::new();
        client.read_to_end(&mut end).await.unwrap();
        assert_eq!(end, [0x88, 2, 3, 0xe9]);
        assert!(inner.write_all(b"more").await.is_err());
    }

    #[tokio::test]
    async fn nonsense_ends_it() {
        let (mut client, mut inner) = pair(false).await;
        client
            .write_all(&[3, 4, 0, 0, 0, 0, 0, 0x82, 0x05])
            .await
            .unwrap();
        let mut rest = Vec::new();
        inner.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 5);
        assert_eq!(client.read_to_end(&mut rest).await.unwrap(), 0);
    }

    #[test]
    fn heads() {
        assert_eq!(head(BINARY, 125), [0x82, 125]);
        assert_eq!(head(BINARY, 300), [0x82, 126, 1, 44]);
        assert_eq!(head(BINARY, 70_000)[..2], [0x82, 127]);
    }
}
