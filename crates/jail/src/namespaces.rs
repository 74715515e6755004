//! Namespaces with nothing in them.

use rustix::thread::UnshareFlags;

use crate::JailError;
use crate::error::step;

/// A namespace that the process still shares with the host, because the host does not allow
/// otherwise.
#[derive(Debug)]
pub struct Missing {
    /// Which, in words.
    pub what: &'static str,
    /// What the system said.
    pub source: std::io::Error,
}

/// Those that a process can leave without looking at its files, and their names.
const KINDS: [(UnshareFlags, &str); 4] = [
    (UnshareFlags::NEWNET, "network namespace"),
    (UnshareFlags::NEWIPC, "IPC namespace"),
    (UnshareFlags::NEWUTS, "UTS namespace"),
    (UnshareFlags::NEWCGROUP, "cgroup namespace"),
];

/// Leaves these namespaces for new ones. The caller must have a single thread.
///
/// # Errors
/// What the system says.
pub fn leave(namespaces: UnshareFlags) -> Result<(), JailError> {
    // SAFETY: the file system state that threads would share is that of the only thread.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.map_err(step("make namespaces"))
}

/// Leaves the network, IPC, UTS and cgroup namespaces as far as the host allows; what it does
/// not is returned. The caller must have a single thread.
pub fn leave_available() -> Vec<Missing> {
    let all = KINDS
        .iter()
        .fold(UnshareFlags::empty(), |all, (kind, _)| all | *kind);
    if leave(all).is_ok() {
        return Vec::new();
    }
    // One by one: which is it?
    let missing = |(kind, what): &(UnshareFlags, &'static str)| {
        // SAFETY: as above.
        let left = unsafe { rustix::thread::unshare_unsafe(*kind) };
        left.err().map(|source| Missing {
            what,
            source: source.into(),
        })
    };
    KINDS.iter().filter_map(missing).collect()
}
