//! A part of the host's files, live, for one VM.
//!
//! A guest's kernel asks for files by FUSE messages, which the agent carries between its
//! `/dev/fuse` and a stream to the host. This crate answers them. It owns the messages'
//! layout ([`abi`]), what is done with the host's files ([`server`]), and the jail in which
//! that happens ([`jail`]): a process of its own that sees nothing but the share, so that a
//! guest that gets the better of the server has gained what it had. It knows no VM, no
//! container and no transport but a socket.
//!
//! The guest's kernel checks who may do what; the server acts with the rights of the
//! superuser within the share and with the guest's user and group where something is made.
//! Whether a share can be written is decided here, by its mount.

pub mod abi;
mod event;
mod frame;
pub mod jail;
mod mailbox;
mod replay;
pub mod server;
mod watched;

pub use event::{Entry, Event, what};
pub use frame::{FrameError, MAX_FRAME, read_frame, write_frame};
pub use mailbox::serve;
pub use replay::{Carried, Replay};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The entry of a share's root that is the file, when the source is a single one.
pub const FILE_ENTRY: &str = "file";

/// What a share server is told first, in a frame; it answers with a frame that holds a
/// `Result<(), String>`, and FUSE messages follow in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareConfig {
    /// The directory or regular file on the host.
    pub source: PathBuf,
    /// Whether nothing in it can be changed.
    pub read_only: bool,
    /// Whether `read_only` is not meant of what is mounted below the source.
    pub writable_below: bool,
    /// Whether what is mounted below the source is part of it.
    pub recursive: bool,
    /// Whether mounts that the host makes below the source later on become part of it.
    pub follow_mounts: bool,
    /// Whether the guest is told what others change in it ([`Event`]).
    pub events: bool,
}
