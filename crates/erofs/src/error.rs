//! What can go wrong while an image is written.

use std::io;

/// Why an image could not be written. After any error but the `Invalid…` ones the writer is of
/// no more use and the output is not an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriterError {
    /// The output failed.
    #[error("write the image")]
    Output(#[source] io::Error),
    /// The source of a file's data failed.
    #[error("read a file's data")]
    Input(#[source] io::Error),
    /// The source of a file's data ended early.
    #[error("file data ends {missing} bytes early")]
    Truncated {
        /// How many bytes are missing.
        missing: u64,
    },
    /// Empty, `.`, `..`, with a slash or a NUL, or longer than 255 bytes.
    #[error("invalid file name {0:?}")]
    InvalidName(String),
    /// The directory has an entry of this name.
    #[error("{0:?} exists")]
    Exists(String),
    /// The node is no directory, or a directory where none may be.
    #[error("wrong kind of file: {0}")]
    WrongKind(&'static str),
    /// A symlink's target is empty, holds a NUL or is longer than 4095 bytes.
    #[error("invalid symlink target")]
    InvalidTarget,
    /// A device number does not fit 12 + 20 bits.
    #[error("device number {major}:{minor} is out of range")]
    InvalidDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// EROFS has no place for an attribute of this name.
    #[error("unsupported extended attribute {0:?}")]
    UnsupportedXattr(String),
    /// Values of over 65535 bytes, or over 256 KiB of attributes on one file.
    #[error("extended attributes too large")]
    XattrTooLarge,
    /// Extents of a sparse file overlap, are out of order or beyond its end.
    #[error("invalid extents of a sparse file")]
    InvalidExtents,
    /// Over one of [`crate::Limits`].
    #[error("{0} is over the limit of {1}")]
    Limit(&'static str, u64),
}
