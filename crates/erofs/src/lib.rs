//! A streaming writer of uncompressed EROFS images.
//!
//! Owns the on-disk format and its limits. Refuses to know tar, images and the file system it
//! writes to: a caller adds files to an [`ImageWriter`] over any `Write + Seek`.
//!
//! The image, from its start: a block with the superblock; file data in the order in which it
//! was added; blocks of large directories; extended attributes that several files share; the
//! inodes, with short tails of data, directories and symlinks behind them. Equal calls give
//! equal bytes.

mod error;
mod format;
mod layout;
mod tree;
mod writer;

pub use error::WriterError;
pub use tree::{Attributes, NodeId, NodeKind, Special, Timestamp};
pub use writer::{Extent, ImageWriter, Limits, Options, Summary};
