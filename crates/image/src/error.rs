//! The errors of the image store. Each is one of four kinds, which is all that an edge
//! needs: `NotFound` is HTTP 404, `Conflict` 409, `InvalidArgument` 400, `Other` 500.

use std::io;

use crate::digest::{Digest, ImageId};
use crate::reference::ReferenceError;

/// Shorthand.
pub type Result<T> = std::result::Result<T, ImageError>;

/// What an edge translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such image (404).
    NotFound,
    /// The image is in use, or something else stands against it (409).
    Conflict,
    /// The caller's bytes or words are wrong (400).
    InvalidArgument,
    /// The host's fault or ours (500).
    Other,
}

/// What went wrong. Where docker's words reach users and scripts, these are the words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image has this reference; given in its familiar form with its tag.
    #[error("No such image: {0}")]
    NotFound(String),
    /// Several image IDs start like this.
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// An image may not be deleted; docker's sentence.
    #[error(
        "conflict: unable to delete {} ({}) - {reason}",
        .image.short(),
        if *.hard { "cannot be forced" } else { "must be forced" }
    )]
    DeleteConflict {
        /// The image.
        image: ImageId,
        /// Whether force would not help.
        hard: bool,
        /// What stands against it.
        reason: String,
    },
    /// The last tag of an image that a container uses may not go; docker's sentence.
    #[error(
        "conflict: unable to remove repository reference {reference:?} (must force) - container \
         {container} is using its referenced image {}", .image.short()
    )]
    UntagConflict {
        /// What was to be removed.
        reference: String,
        /// The container's short ID.
        container: String,
        /// The image.
        image: ImageId,
    },
    /// A tar stream, archive or document is malformed, hostile, truncated or over a limit.
    /// The text names the entry and the rule.
    #[error("{0}")]
    InvalidInput(String),
    /// An instruction of `import --change` is malformed or not allowed there.
    #[error("{0}")]
    Change(String),
    /// Bytes do not have the digest they were announced with.
    #[error("{what}: digest is {actual}, expected {expected}")]
    DigestMismatch {
        /// What was checked: a layer, a config, a blob.
        what: String,
        /// What its bytes have.
        actual: Digest,
        /// What was announced.
        expected: Digest,
    },
    /// Reading the caller's stream failed.
    #[error("failed to read {what}")]
    Input {
        /// What was being read.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A file of the store failed.
    #[error("failed to {what}")]
    Storage {
        /// What was being done, with the path.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The metadata file failed.
    #[error("image metadata")]
    Database(#[from] rusqlite::Error),
    /// Another process has this store open.
    #[error("the image store {0} is in use by another process")]
    Locked(String),
    /// What is on disk contradicts itself; the text says what.
    #[error("image store is damaged: {0}")]
    Damaged(String),
}

impl crate::reserve::MayBeFull for ImageError {
    fn is_disk_full(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_disk_full())
    }
}

impl ImageError {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::DeleteConflict { .. } | Self::UntagConflict { .. } => ErrorKind::Conflict,
            Self::Ambiguous(_)
            | Self::Reference(_)
            | Self::InvalidInput(_)
            | Self::Change(_)
            | Self::DigestMismatch { .. } => ErrorKind::InvalidArgument,
            Self::Input { .. }
            | Self::Storage { .. }
            | Self::Database(_)
            | Self::Locked(_)
            | Self::Damaged(_) => ErrorKind::Other,
        }
    }

    /// The message with those of its causes, for a client.
    pub fn full_message(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}
