//! The two messages before FUSE's own: a 4-byte big-endian length and as many bytes of JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest frame, bytes.
pub const MAX_FRAME: usize = 64 << 10;

/// A frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket said no.
    #[error("the socket failed")]
    Io(#[from] io::Error),
    /// Longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// Not what was expected.
    #[error("a frame could not be understood")]
    Malformed(#[from] serde_json::Error),
}

/// Sends a frame.
///
/// # Errors
/// See [`FrameError`].
pub fn write_frame<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let bytes = serde_json::to_vec(message)?;
    let length = match u32::try_from(bytes.len()) {
        Ok(length) if bytes.len() <= MAX_FRAME => length,
        _ => return Err(FrameError::TooLong(bytes.len())),
    };
    writer.write_all(&length.to_be_bytes())?;
    writer.write_all(&bytes)?;
    Ok(())
}

/// Receives a frame.
///
/// # Errors
/// See [`FrameError`].
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> Result<T, FrameError> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
