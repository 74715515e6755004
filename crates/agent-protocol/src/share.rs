//! The host's files and sockets in the guest.
//!
//! A share is a stream: after the reply to [`MountShare`] it carries FUSE messages, the
//! guest's requests in one direction and the host's replies in the other. Each begins with
//! its own length, as FUSE has it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest FUSE message, bytes: a write of 1 MiB with its headers.
pub const MAX_SHARE_MESSAGE: usize = (1 << 20) + 4096;
/// The most shares and sockets of one container.
pub const MAX_SHARES: u32 = 128;

/// Where the guest mounts a share, and below it what is shared.
pub fn share_path(share: u32) -> PathBuf {
    PathBuf::from(format!("/run/bulkhead/shares/{share}"))
}

/// Where the guest listens in place of a socket of the host.
pub fn socket_path(share: u32) -> PathBuf {
    PathBuf::from(format!("/run/bulkhead/sockets/{share}"))
}

/// Mounts a share at [`share_path`]; FUSE messages follow until the end of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountShare {
    /// Its number, below [`MAX_SHARES`].
    pub share: u32,
}

/// Makes a socket at [`socket_path`] that stands for one of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenShare {
    /// Its number, below [`MAX_SHARES`].
    pub share: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Answered when somebody in the guest has connected to such a socket; the bytes of the
/// connection follow, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptShare {
    /// Which.
    pub share: u32,
}
