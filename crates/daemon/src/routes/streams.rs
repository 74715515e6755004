//! Moving bytes between a client that took its connection over and a process.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::{ApiError, ApiResult};
use crate::frames::{Frames, frame_head};
use crate::hijack::RawConnection;

/// Raw bytes of a terminal.
pub const RAW: &str = "application/vnd.docker.raw-stream";
/// Frames of stdout and stderr.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// Bytes moved at a time.
const CHUNK: usize = 32 << 10;
/// Docker's default detach keys.
const DEFAULT_DETACH: [u8; 2] = [16, 17];

/// What ended a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The process, or its supervisor.
    Process,
    /// The client.
    Client,
    /// The detach keys.
    Detached,
}

/// The keys that detach from a terminal, and how many of them were typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q` or `a,b`; `None` is the default.
    ///
    /// # Errors
    /// 400 with Docker's words.
    pub fn parse(text: Option<&str>) -> ApiResult<Self> {
        let keys = match text {
            None => DEFAULT_DETACH.to_vec(),
            Some(text) => text
                .split(',')
                .map(key)
                .collect::<Option<Vec<u8>>>()
                .ok_or_else(|| {
                    ApiError::bad_request(format!("Invalid detach keys ({text}) provided"))
                })?,
        };
        Ok(Self { keys, matched: 0 })
    }

    /// The bytes that detach.
    pub fn bytes(&self) -> &[u8] {
        &self.keys
    }

    /// Takes what was typed; gives what goes to the process, and whether the keys were typed.
    fn scan(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return true;
                }
                continue;
            }
            // What looked like the keys was meant for the process.
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = usize::from(byte == self.keys[0]);
            if self.matched == 0 {
                out.push(byte);
            } else if self.keys.len() == 1 {
                return true;
            }
        }
        false
    }
}

fn key(text: &str) -> Option<u8> {
    if let Some(letter) = text.strip_prefix("ctrl-") {
        let [letter] = letter.as_bytes() else {
            return None;
        };
        return match *letter {
            letter @ b'a'..=b'z' => Some(letter - b'a' + 1),
            b'@' => Some(0),
            letter @ b'['..=b'_' => Some(letter - b'[' + 27),
            _ => None,
        };
    }
    match text.as_bytes() {
        [byte] => Some(*byte),
        _ => None,
    }
}

/// Moves bytes until one side has ended. `stdin`: whether the client's bytes are wanted.
/// `settled` comes between the end of the output and the client's notice of it.
pub async fn pump(
    client: RawConnection,
    process: UnixStream,
    stdin: bool,
    detach: Option<DetachKeys>,
    framing: Framing,
    settled: impl Future<Output = ()>,
) -> Ended {
    let (from_client, mut to_client) = client.socket.into_split();
    let (mut from_process, to_process) = process.into_split();
    let output = async {
        let copied = copy(&mut from_process, &mut to_client, framing).await;
        settled.await;
        let _ = to_client.shutdown().await;
        match copied {
            Ok(()) => Ended::Process,
            Err(Broken::Source) => Ended::Process,
            Err(Broken::Target) => Ended::Client,
        }
    };
    let input = input(
        from_client,
        to_process,
        client.early.to_vec(),
        stdin,
        detach,
    );
    tokio::pin!(output);
    tokio::pin!(input);
    tokio::select! {
        ended = &mut output => ended,
        ended = &mut input => match ended {
            Some(ended) => ended,
            // No more input; the output goes on.
            None => output.await,
        },
    }
}

/// What is done with a process's output on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// It goes as it comes.
    AsIs,
    /// A terminal's output for a client that did not ask for a terminal: it reads frames.
    AsStdout,
    /// Both outputs for a client that asked for a terminal: it reads no frames.
    Plain,
}

enum Broken {
    Source,
    Target,
}

async fn copy(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    framing: Framing,
) -> Result<(), Broken> {
    let mut buffer = vec![0; CHUNK];
    let (mut frames, mut plain) = (Frames::default(), Vec::new());
    loop {
        let length = from.read(&mut buffer).await.map_err(|_| Broken::Source)?;
        if length == 0 {
            return Ok(());
        }
        if framing == Framing::Plain {
            plain.clear();
            frames.strip(&buffer[..length], &mut plain);
            to.write_all(&plain).await.map_err(|_| Broken::Target)?;
            continue;
        }
        if framing == Framing::AsStdout {
            to.write_all(&frame_head(length))
                .await
                .map_err(|_| Broken::Target)?;
        }
        to.write_all(&buffer[..length])
            .await
            .map_err(|_| Broken::Target)?;
    }
}

/// The client's bytes; `None` when it only closed its writing half.
async fn input(
    mut client: OwnedReadHalf,
    process: OwnedWriteHalf,
    early: Vec<u8>,
    stdin: bool,
    mut detach: Option<DetachKeys>,
) -> Option<Ended> {
    let mut process = Some(process).filter(|_| stdin);
    let mut buffer = early;
    let mut length = buffer.len();
    buffer.resize(CHUNK.max(length), 0);
    let mut out = Vec::new();
    loop {
        out.clear();
        let detached = match &mut detach {
            Some(keys) => keys.scan(&buffer[..length], &mut out),
            None => {
                out.extend_from_slice(&buffer[..length]);
                false
            }
        };
        if let Some(target) = &mut process
            && !out.is_empty()
            && target.write_all(&out).await.is_err()
        {
            // The process closed its stdin; its output is still wanted, the rest isn't.
            process = None;
        }
        if detached {
            return Some(Ended::Detached);
        }
        length = match client.read(&mut buffer).await {
            Ok(length) => length,
            Err(_) => return Some(Ended::Client),
        };
        if length == 0 {
            break;
        }
    }
    if let Some(mut target) = process {
        let _ = target.shutdown().await;
        // Dropping the half would shut it down too; nothing more is written.
        target.forget();
    }
    gone(client.as_ref()).then_some(Ended::Client)
}

/// Whether the peer closed both directions; it would not read what is sent.
fn gone(socket: &UnixStream) -> bool {
    // Ready at once: the end of the stream was just read.
    futures::FutureExt::now_or_never(socket.ready(Interest::READABLE | Interest::WRITABLE))
        .and_then(io::Result::ok)
        .is_some_and(|ready| ready.is_write_closed())
}

/// Waits until a client has gone that has nothing to say yet; never ends for one that has.
pub async fn left(socket: &UnixStream) {
    match socket.ready(Interest::READABLE).await {
        Ok(ready) if ready.is_read_closed() && gone(socket) => {}
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &str, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut keys = DetachKeys::parse(Some(keys)).unwrap();
        let mut out = Vec::new();
        for piece in pieces {
            if keys.scan(piece, &mut out) {
                return (out, true);
            }
        }
        (out, false)
    }

    #[test]
    fn keys_are_found_over_reads() {
        assert_eq!(
            typed("ctrl-p,ctrl-q", &[b"ab\x10", b"\x11zz"]),
            (b"ab".to_vec(), true)
        );
        assert_eq!(
            typed("ctrl-p,ctrl-q", &[b"\x10\x10x\x11"]),
            (b"\x10\x10x\x11".to_vec(), false)
        );
        assert_eq!(typed("q", &[b"abq"]), (b"ab".to_vec(), true));
        assert_eq!(
            typed("a,b", &[b"aab"]),
            (b"a".to_vec(), true),
            "a repeated first key begins anew"
        );
    }

    #[test]
    fn keys_are_read() {
        assert_eq!(DetachKeys::parse(None).unwrap().keys, [16, 17]);
        assert_eq!(
            DetachKeys::parse(Some("ctrl-@,ctrl-[,A")).unwrap().keys,
            [0, 27, 65]
        );
        assert!(DetachKeys::parse(Some("ctrl-1")).is_err());
        assert!(
            DetachKeys::parse(Some("ctrl-A,a")).is_err(),
            "Docker's are lower case"
        );
        assert!(DetachKeys::parse(Some("shift-a")).is_err());
    }

    #[tokio::test]
    async fn half_close_ends_stdin_and_output_goes_on() {
        let (client, ours) = UnixStream::pair().unwrap();
        let (process, theirs) = UnixStream::pair().unwrap();
        let raw = RawConnection {
            early: bytes::Bytes::from_static(b"early "),
            socket: ours,
        };
        let pumping = tokio::spawn(pump(raw, theirs, true, None, Framing::AsIs, async {}));
        let (mut client_reads, mut client_writes) = client.into_split();
        client_writes.write_all(b"late").await.unwrap();
        client_writes.shutdown().await.unwrap();
        let (mut process_reads, mut process_writes) = process.into_split();
        let mut got = Vec::new();
        process_reads.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"early late");
        process_writes.write_all(b"answer").await.unwrap();
        process_writes.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client_reads.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        assert_eq!(pumping.await.unwrap(), Ended::Process);
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_it() {
        let (client, ours) = UnixStream::pair().unwrap();
        let (_process, theirs) = UnixStream::pair().unwrap();
        let raw = RawConnection {
            early: bytes::Bytes::new(),
            socket: ours,
        };
        drop(client);
        assert_eq!(
            pump(raw, theirs, true, None, Framing::AsIs, async {}).await,
            Ended::Client
        );
    }
}
