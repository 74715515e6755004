//! Filling volumes from an image: what `containerd-shim-bulkhead-v2 populate` reads from stdin
//! ([`PopulateOrder`]) and prints (a list of [`CopyOutcome`]), both as JSON.

use std::path::PathBuf;

use bulkhead_userns::Mappings;
use serde::{Deserialize, Serialize};

/// What to copy out of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PopulateOrder {
    /// EROFS layer blobs, the lowest first.
    pub layers: Vec<PathBuf>,
    /// An empty directory to mount them in, in a mount namespace of the process's own.
    pub scratch: PathBuf,
    /// The IDs that the files are to have on the host instead of the image's.
    pub mappings: Option<Mappings>,
    /// The directories.
    pub copies: Vec<CopyOrder>,
}

/// One directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOrder {
    /// Absolute path in the image.
    pub from: PathBuf,
    /// The directory on the host that is to be like it, if it is empty.
    pub to: PathBuf,
    /// Where to make it at first, beside `to`, which it then replaces: so that `to` is never
    /// seen half full. Without it, `to` is filled where it is.
    pub fresh: Option<PathBuf>,
}

/// What became of a [`CopyOrder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyOutcome {
    /// It was copied.
    Copied,
    /// The image has nothing there.
    Missing,
    /// The image has something other than a directory there.
    NotADirectory,
    /// The directory on the host is not empty.
    NotEmpty,
}
