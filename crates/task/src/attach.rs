//! The attach socket: how the daemon gets at a process's streams.
//!
//! A client connects, writes one line of JSON ([`AttachRequest`], at most
//! [`MAX_LINE`] bytes with its `\n`) and reads one ([`AttachReply`]). After an `ok` reply
//! the connection carries bytes. Client to supervisor: stdin, raw; shutting down the
//! writing half is the end of stdin for this client. Supervisor to client: with a terminal,
//! raw; without one, Docker's stream frames (one byte stream: 1 stdout, 2 stderr; three
//! zero bytes; length as big-endian u32; payload), so that the daemon passes them on as
//! they are. The supervisor closes the connection once the process has exited and all its
//! output was sent. A slow client slows the process's output down; it never loses bytes.
//!
//! Attaching is legal from Task Create (or Exec) on, before Start, so nothing is missed.
//!
//! A request for files ([`AttachRequest::files`]) asks for no streams: after an `ok` reply the
//! connection carries one conversation of `bulkhead-files` about the container's files.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest line of the handshake, bytes.
pub const MAX_LINE: usize = 4096;

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Exec ID; empty for init.
    pub exec_id: String,
    /// Whether bytes from the client go to stdin.
    pub stdin: bool,
    /// Whether stdout (or the terminal) is wanted.
    pub stdout: bool,
    /// Whether stderr is wanted.
    pub stderr: bool,
    /// Whether the files are wanted, and no streams.
    #[serde(default)]
    pub files: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReply {
    /// Whether bytes follow.
    pub ok: bool,
    /// Whether the process has a terminal: output is then raw.
    #[serde(default)]
    pub terminal: bool,
    /// Why not.
    #[serde(default)]
    pub error: Option<String>,
}

/// Connects and does the client's half of the handshake.
///
/// # Errors
/// That the supervisor is gone, refused, or broke the protocol.
pub async fn connect(
    socket: &std::path::Path,
    request: &AttachRequest,
) -> io::Result<(UnixStream, AttachReply)> {
    let mut stream = UnixStream::connect(socket).await?;
    write_line(&mut stream, request).await?;
    let reply: AttachReply = read_line(&mut stream).await?;
    if reply.ok {
        Ok((stream, reply))
    } else {
        Err(io::Error::other(
            reply
                .error
                .unwrap_or_else(|| "attach was refused".to_owned()),
        ))
    }
}

/// Writes one line of the handshake.
///
/// # Errors
/// What the socket says.
pub async fn write_line<T: Serialize>(stream: &mut UnixStream, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Reads one line of the handshake, byte by byte, so that what follows stays unread.
///
/// # Errors
/// What the socket says; a line that is too long, cut short or not the JSON expected.
pub async fn read_line<T: for<'a> Deserialize<'a>>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = Vec::with_capacity(256);
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            return Ok(serde_json::from_slice(&line)?);
        }
        if line.len() + 1 >= MAX_LINE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "handshake line too long",
            ));
        }
        line.push(byte);
    }
}
