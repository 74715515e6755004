//! The conversation: one request, its reply, and the bytes that belong to it.
//!
//! Each message is a big-endian length and as much JSON. Bytes go in frames, a length of 1 to
//! [`MAX_FRAME`] and as many bytes; a length of 0 ends them, so that an end which somebody's
//! death made is never taken for the real one. From the asker: the request, and for
//! [`Request::Write`] the archive in frames. To the asker: `Result<Reply, FilesError>`; after
//! an `Ok`, frames (an archive, or lines of JSON), the end, and `Result<(), FilesError>`.
//! Every length is bounded on both sides, because a guest may be on the other one.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::stat::PathStat;

/// Longest message, bytes; paths are the most of it.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Longest frame, bytes.
pub const MAX_FRAME: usize = 1 << 20;
/// How much is put into a frame, bytes.
pub(crate) const CHUNK: usize = 256 << 10;

/// What is asked. Paths are the container's, as its user wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What a path is.
    Stat {
        /// Which.
        path: String,
    },
    /// A path as an archive whose entries are under its last part.
    Read {
        /// Which.
        path: String,
    },
    /// Unpacks an archive into a directory.
    Write {
        /// Which.
        path: String,
        /// Whether a directory may not replace something else, nor the reverse.
        no_overwrite_dir_non_dir: bool,
        /// Whose everything is to be (`user[:group]`); the archive's owners when `None`.
        owner: Option<String>,
    },
    /// What differs from the image: lines of JSON, each a [`crate::Change`].
    Changes,
    /// The same as a layer for an image: an archive with whiteouts.
    Layer {
        /// No file is newer than this, seconds since the epoch.
        newest: Option<i64>,
        /// Paths that the image has not, relative to the root, where something was mounted:
        /// what is empty there, and the directories that lead to nothing else, is left out.
        #[serde(default)]
        mount_points: Vec<String>,
    },
    /// Everything, without what is mounted over it.
    Export,
    /// What the changes take.
    Usage,
}

/// What comes with a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Stat`] and [`Request::Read`].
    Stat(PathStat),
    /// To [`Request::Usage`].
    Usage(Usage),
    /// To the others.
    Done,
}

/// What a container's changes take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Sum of the sizes of changed and added files, bytes.
    pub size: u64,
}

/// What went wrong, for code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesErrorKind {
    /// There is no such path.
    NotFound,
    /// The request or the archive cannot be honoured.
    Invalid,
    /// The place cannot be written to.
    ReadOnly,
    /// This container's root cannot tell.
    Unsupported,
    /// Anything else.
    Other,
}

/// An error with its kind and a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct FilesError {
    /// For code.
    pub kind: FilesErrorKind,
    /// For a person.
    pub message: String,
}

impl FilesError {
    /// An error of this kind.
    pub fn new(kind: FilesErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// A system call failed on a path.
    pub(crate) fn system(what: &str, path: &[u8], error: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        let kind = match error {
            Errno::NOENT => FilesErrorKind::NotFound,
            Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG => FilesErrorKind::Invalid,
            Errno::ROFS => FilesErrorKind::ReadOnly,
            _ => FilesErrorKind::Other,
        };
        let path = bulkhead_tar::readable(path);
        let why = match error {
            // In the words of clients' libraries, some of which look for them.
            Errno::NOTDIR => "not a directory".to_owned(),
            Errno::NOENT => "no such file or directory".to_owned(),
            other => other.to_string(),
        };
        Self::new(kind, format!("{what} {path}: {why}"))
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Sends a message.
///
/// # Errors
/// What the stream says.
pub fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    stream.write_all(&encode(message)?)?;
    stream.flush()
}

/// A message's bytes.
///
/// # Errors
/// That it is too long.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
    let prefix = prefix.ok_or_else(|| invalid("a message about files is too long"))?;
    bytes[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(bytes)
}

/// Reads a message.
///
/// # Errors
/// What the stream says; a message that is too long or not the one expected.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix)?;
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(invalid("a message about files is too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The length of the frame that begins with these bytes; 0 is the end.
///
/// # Errors
/// A frame that is too long.
pub fn frame_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(invalid("a frame of files is too long"));
    }
    Ok(length)
}

/// Writes bytes in frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    /// The length of the frame, then its bytes.
    buffer: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    /// Frames on a stream.
    pub fn new(stream: W) -> Self {
        let mut buffer = Vec::with_capacity(4 + CHUNK);
        buffer.resize(4, 0);
        Self { stream, buffer }
    }

    /// Ends the frames.
    ///
    /// # Errors
    /// What the stream says.
    pub fn end(mut self) -> io::Result<W> {
        self.send_frame()?;
        self.stream.write_all(&[0; 4])?;
        self.stream.flush()?;
        Ok(self.stream)
    }

    fn send_frame(&mut self) -> io::Result<()> {
        let length = self.buffer.len() - 4;
        if length > 0 {
            let prefix = u32::try_from(length).map_err(io::Error::other)?;
            self.buffer[..4].copy_from_slice(&prefix.to_be_bytes());
            self.stream.write_all(&self.buffer)?;
            self.buffer.truncate(4);
        }
        Ok(())
    }
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = 4 + CHUNK - self.buffer.len();
        let part = &bytes[..bytes.len().min(room)];
        self.buffer.extend_from_slice(part);
        if self.buffer.len() == 4 + CHUNK {
            self.send_frame()?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_frame()?;
        self.stream.flush()
    }
}

/// Reads the bytes in frames, up to their end. An end without one is an error.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    /// Of the current frame.
    left: usize,
    ended: bool,
}

impl<R: Read> FrameReader<R> {
    /// Frames of a stream.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            left: 0,
            ended: false,
        }
    }

    /// Whether the end was read.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The stream, behind what was read of it.
    pub fn into_inner(self) -> R {
        self.stream
    }
}

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            let mut prefix = [0; 4];
            self.stream.read_exact(&mut prefix)?;
            self.left = frame_length(prefix)?;
            if self.left == 0 {
                self.ended = true;
                return Ok(0);
            }
        }
        let most = buffer.len().min(self.left);
        let read = self.stream.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}

/// Everything but the request, for one that blocks: a container's answer as a stream that
/// fails where the container failed.
#[derive(Debug)]
pub struct Answer<S: Read> {
    frames: Option<FrameReader<S>>,
}

impl<S: Read + Write> Answer<S> {
    /// Asks, and reads the reply.
    ///
    /// # Errors
    /// The outer one is the stream's, the inner one the container's.
    pub fn ask(mut stream: S, request: &Request) -> io::Result<Result<(Reply, Self), FilesError>> {
        send(&mut stream, request)?;
        let reply: Result<Reply, FilesError> = receive(&mut stream)?;
        Ok(reply.map(|reply| {
            let frames = Some(FrameReader::new(stream));
            (reply, Self { frames })
        }))
    }
}

impl<S: Read> Read for Answer<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(frames) = &mut self.frames else {
            return Ok(0);
        };
        let read = frames.read(buffer)?;
        if read == 0
            && frames.ended()
            && let Some(frames) = self.frames.take()
        {
            let outcome: Result<(), FilesError> = receive(&mut frames.into_inner())?;
            outcome.map_err(io::Error::other)?;
        }
        Ok(read)
    }
}

/// Where in the view of a container something is mounted over its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// What, outside of the view.
    pub source: PathBuf,
    /// Where, in the container.
    pub destination: PathBuf,
    /// Whether it cannot be written to.
    pub read_only: bool,
    /// Whether what is mounted below it comes with it.
    pub recursive: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_bytes_and_their_end() {
        let data: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut writer = FrameWriter::new(Vec::new());
        writer.write_all(&data).unwrap();
        let bytes = writer.end().unwrap();
        let mut read = Vec::new();
        FrameReader::new(&bytes[..]).read_to_end(&mut read).unwrap();
        assert_eq!(read, data);
        let cut = &bytes[..bytes.len() - 4];
        assert!(FrameReader::new(cut).read_to_end(&mut read).is_err());
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(receive::<Request>(&mut &[0xff; 8][..]).is_err());
        assert!(FrameReader::new(&[0xff; 8][..]).read(&mut [0]).is_err());
        let long = Request::Stat {
            path: "x".repeat(MAX_MESSAGE),
        };
        assert!(encode(&long).is_err());
    }
}
