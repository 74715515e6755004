//! The jail of the worker: what it gives up before a guest runs.
//!
//! In this order: the host's network, IPC, UTS and cgroup namespaces; then the engine starts
//! what it needs; then the host's files, user 0, all capabilities, and the way back to any of
//! them. The filters of system calls are the engines', since they know what they call. The
//! process namespace is made by the supervisor, because only a child can enter it.

use std::io;
use std::os::unix::net::UnixStream;

use bulkhead_jail::{Identity, JailError, Limits, Missing};
use bulkhead_machine::{Console, DiskFiles, EngineKind, MachineConfig, MachineFiles};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

/// Users of workers: a range that nothing else assigns from (systemd.io/UIDS-GIDS lists it as
/// unused, and what follows it is not safe to use at all).
const FIRST_USER: u32 = 0x7000_0000;
/// How many there are, a power of two.
const USERS: u32 = 0x1000_0000;
/// Nobody; where the range does not exist (in a user namespace).
const NOBODY: u32 = 65_534;

/// Open descriptors that a worker may have; one with the most layers has a third.
const DESCRIPTORS: u64 = 1024;
/// Address space beyond the guest's memory, bytes.
const ADDRESS_SPACE: u64 = 1 << 30;
/// Threads beside one for each vCPU.
const THREADS: u64 = 16;

/// Who this worker is going to be, and what of the jail was found missing.
#[derive(Debug)]
pub struct Jail {
    /// The user and the groups.
    pub identity: Identity,
    limits: Limits,
    missing: Vec<String>,
}

impl Jail {
    /// Leaves those of the host's namespaces that the engine's own process leaves too, and
    /// settles the rest.
    pub fn begin(config: &MachineConfig, files: &MachineFiles) -> Self {
        let mut missing: Vec<_> = bulkhead_jail::leave_available()
            .iter()
            .map(describe)
            .collect();
        let user = user_of(&config.id);
        let user = if is_mapped(user) {
            user
        } else {
            missing.push(format!("own user: {user} does not exist here"));
            NOBODY
        };
        Self {
            identity: Identity {
                uid: user,
                gid: user,
                groups: Vec::new(),
            },
            limits: limits(config, files, user),
            missing,
        }
    }

    /// Gives up the rest. What the host did not allow is returned; the worker goes on without
    /// it, since what is left holds by itself.
    ///
    /// # Errors
    /// What the worker cannot do without. It must end then.
    pub fn enter(mut self, control: &UnixStream) -> Result<Vec<String>, JailError> {
        match rustix::process::setsid() {
            // EPERM: it leads a process group already, so the parent has seen to it.
            Ok(_) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => return Err(JailError::at("leave the session")(error)),
        }
        bulkhead_jail::empty_root()?;
        self.limits.set()?;
        let gap = bulkhead_jail::give_up_all(&self.identity)?;
        self.missing.extend(gap.iter().map(describe));
        // The change of user has made it visible, and cut it loose from its parent.
        bulkhead_jail::hide_from_debuggers()?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(JailError::at("die with the supervisor"))?;
        if has_hung_up(control) {
            // It was gone before the line above, which nobody would tell us any more.
            let error = io::Error::from(io::ErrorKind::BrokenPipe);
            return Err(JailError::at("outlive the supervisor")(error));
        }
        Ok(self.missing)
    }
}

fn describe(missing: &Missing) -> String {
    format!("{}: {}", missing.what, missing.source)
}

/// The user of the worker of this container: always the same, and hardly ever another's. Two
/// that share one are kept apart by their namespaces and by having nothing to open.
fn user_of(id: &str) -> u32 {
    // FNV-1a, 32 bits.
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    FIRST_USER + (hash ^ (hash >> 28)) % USERS
}

/// Whether this user namespace has the user.
fn is_mapped(user: u32) -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else {
        return false;
    };
    map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => u64::from(user)
                .checked_sub(first)
                .is_some_and(|offset| offset < count),
            _ => false,
        }
    })
}

fn limits(config: &MachineConfig, files: &MachineFiles, user: u32) -> Limits {
    let (address_space, file_size) = match config.engine {
        EngineKind::Kvm => {
            let file_size = match config.console {
                Console::Quiet => Some(scratch_length(files)),
                Console::File { .. } => None,
            };
            (config.memory_bytes.saturating_add(ADDRESS_SPACE), file_size)
        }
        // Memory and files are QEMU's.
        EngineKind::Qemu => (ADDRESS_SPACE, Some(0)),
    };
    Limits {
        descriptors: Some(DESCRIPTORS),
        address_space: Some(address_space),
        file_size,
        // Nobody's threads are everybody's.
        threads: (user != NOBODY).then(|| u64::from(config.vcpus) + THREADS),
    }
}

fn scratch_length(files: &MachineFiles) -> u64 {
    let lengths = files.disks.iter().filter_map(|disk| match disk {
        DiskFiles::Scratch(file) => file.metadata().ok().map(|metadata| metadata.len()),
        DiskFiles::Layers(_) => None,
    });
    lengths.max().unwrap_or(0)
}

fn has_hung_up(control: &UnixStream) -> bool {
    let mut descriptors = [PollFd::new(control, PollFlags::empty())];
    let now = rustix::event::Timespec::default();
    match rustix::event::poll(&mut descriptors, Some(&now)) {
        Ok(_) => descriptors
            .iter()
            .any(|one| one.revents().contains(PollFlags::HUP)),
        // Then reading will show it.
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_in_their_range_and_differ() {
        let ids = (0..10_000_u64).map(|number| format!("{number:064x}"));
        let users: std::collections::BTreeSet<_> = ids.map(|id| user_of(&id)).collect();
        assert!(
            users
                .iter()
                .all(|user| (FIRST_USER..=0x7fff_ffff).contains(user))
        );
        assert!(users.len() > 9_990, "{}", users.len());
    }

    #[test]
    fn everybody_is_mapped_where_there_are_no_namespaces() {
        // In a user namespace that has the whole range it is true as well.
        assert!(is_mapped(0));
    }
}
