//! Freezing, killing and removing a group.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::{Cgroup, Controller, Directory, is_gone, lock_parents, subtree};

/// How long killed processes may take to die before that is called a failure.
const DEATH: Duration = Duration::from_secs(10);

/// v1's freezer reports FREEZING until every task has stopped, and only a further write
/// makes it look at stragglers again; there is nothing to wait on.
pub(super) fn freeze_v1(path: &Path, frozen: bool) -> io::Result<()> {
    let file = path.join("freezer.state");
    let target = if frozen { "FROZEN" } else { "THAWED" };
    for attempt in 0..1000_u32 {
        std::fs::write(&file, target)?;
        if std::fs::read_to_string(&file)?.trim() == target {
            return Ok(());
        }
        // Tasks that were forking are caught at the next look.
        if attempt > 10 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    std::fs::write(&file, "THAWED")?;
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "processes of the container could not be frozen",
    ))
}

/// v2 announces the end of freezing by changing `cgroup.events`, which can be polled.
pub(super) fn freeze_v2(path: &Path, frozen: bool) -> io::Result<()> {
    let events = path.join("cgroup.events");
    let mut file = std::fs::File::open(&events)?;
    std::fs::write(path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let deadline = Instant::now() + DEATH;
    loop {
        let mut text = String::new();
        io::Seek::rewind(&mut file)?;
        io::Read::read_to_string(&mut file, &mut text)?;
        if crate::field(&text, "frozen") == Some(u64::from(frozen)) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            std::fs::write(path.join("cgroup.freeze"), "0")?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "processes of the container could not be frozen",
            ));
        }
        let mut watched = [PollFd::new(&file, PollFlags::PRI)];
        poll(&mut watched, Some(&timespec(left)))?;
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

impl Cgroup {
    /// Sends a signal to every process of the group; how many got it.
    pub fn signal_all(&self, signal: i32) -> io::Result<usize> {
        let mut reached = 0;
        for pid in self.pids()? {
            // A PID that ended since it was read could in theory be another process by
            // now; the descriptor pins it, and the group is asked again through it.
            let Some(pid) = Pid::from_raw(pid) else {
                continue;
            };
            let Ok(pinned) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            if !self.contains(pid) {
                continue;
            }
            // SAFETY: pidfd_send_signal(2) with a null info reads no memory of ours.
            let sent = unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    std::os::fd::AsRawFd::as_raw_fd(&pinned),
                    signal,
                    std::ptr::null::<libc::siginfo_t>(),
                    0,
                )
            };
            match sent {
                0 => reached += 1,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.raw_os_error() != Some(libc::ESRCH) {
                        return Err(error);
                    }
                }
            }
        }
        Ok(reached)
    }

    /// Whether the process is in this group now.
    fn contains(&self, pid: Pid) -> bool {
        let path = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
        std::fs::read_to_string(path).is_ok_and(|text| {
            text.lines().any(|line| {
                let name = line.splitn(3, ':').nth(2).unwrap_or_default();
                Path::new(name).starts_with(self.name())
            })
        })
    }

    /// Lets processes die that were sent SIGKILL: frozen ones of a v1 group do not.
    pub fn let_die(&self) {
        if let Some(Directory::V1(path)) = self.directory(Controller::Freezer)
            && self.frozen()
            && let Err(error) = freeze_v1(path, false)
        {
            tracing::warn!(%error, "the container stays frozen");
        }
    }

    /// Kills every process of the group and waits until they are dead. Blocks.
    pub fn kill(&self) -> io::Result<()> {
        let deadline = Instant::now() + DEATH;
        loop {
            // Frozen processes of a v1 group do not even die.
            if self.frozen() {
                self.freeze(false)?;
            }
            let pids = self.pids()?;
            let mut alive = Vec::new();
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                let Ok(pinned) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                    continue;
                };
                if self.contains(pid) {
                    match rustix::process::pidfd_send_signal(&pinned, Signal::KILL) {
                        Ok(()) => alive.push(pinned),
                        Err(rustix::io::Errno::SRCH) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if alive.is_empty() {
                return Ok(());
            }
            for pinned in &alive {
                let left = deadline.saturating_duration_since(Instant::now());
                let mut watched = [PollFd::new(pinned, PollFlags::IN)];
                if left.is_zero() || poll(&mut watched, Some(&timespec(left)))? == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "processes of the container do not die",
                    ));
                }
            }
        }
    }

    /// Removes the group, which must be empty, and parents of it that this leaves empty.
    pub fn remove(&self) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            for group in subtree(&hierarchy.path)?.into_iter().rev() {
                remove_group(&group)?;
            }
        }
        remove_parents(&self.name)
    }
}

/// For what takes the kernel, or another process of ours, a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// Removes the groups above the one of this name that are empty, in every hierarchy.
fn remove_parents(name: &Path) -> io::Result<()> {
    // Whoever holds it is making a group, or removes parents of another one, for a moment. Should
    // it be somebody else altogether, an empty group that stays is no reason to fail.
    let deadline = Instant::now() + PATIENCE;
    let _lock = loop {
        match lock_parents(true)? {
            Some(lock) => break lock,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            None => {
                tracing::warn!(name = %name.display(), "parents of this control group may be left");
                return Ok(());
            }
        }
    };
    let relative = name.strip_prefix("/").unwrap_or(name);
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    for (_, _, mount) in crate::mounts(&mountinfo) {
        let mut parent: Option<&Path> = relative.parent();
        while let Some(group) = parent.filter(|group| !group.as_os_str().is_empty()) {
            if std::fs::remove_dir(mount.join(group)).is_err() {
                break;
            }
            parent = group.parent();
        }
    }
    Ok(())
}

/// A group stays busy for a moment after its last process has been reaped, while the
/// kernel finishes that process's exit (`cgroup_exit` precedes `css_put`); no event tells.
fn remove_group(group: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match std::fs::remove_dir(group) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) if is_gone(&error) => return Ok(()),
            other => return other,
        }
    }
}
