//! What a process gives up before it handles hostile bytes.
//!
//! Owns the mechanism: namespaces, a root directory with nothing or little in it, rights,
//! limits, the filter of system calls. Knows nothing of what its users do: which calls they
//! make and which files they keep is said by them. Everything here is called by a process
//! with one thread, while it is still privileged, and is not undone.

mod error;
pub mod filter;
mod inherited;
mod limits;
mod namespaces;
mod rights;
mod root;

pub use error::JailError;
pub use inherited::take_socket;
pub use limits::Limits;
pub use namespaces::{Missing, leave, leave_available};
pub use rights::{Identity, give_up_all, give_up_all_but, hide_from_debuggers};
pub use root::{ReadOnlyRoot, change_root, empty_root, own_mounts, protect_mount, restrict_mount};
