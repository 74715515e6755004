//! Which of the host's CPUs a worker runs on, with every process under it.

use std::io;

use rustix::process::Pid;
use rustix::thread::CpuSet;

/// Processes under a worker nest this deep at most: the worker and its engine.
const MAX_DEPTH: u32 = 4;

/// Keeps a process, its threads and its children to these CPUs; what they start later
/// inherits it.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::InvalidInput`] for a number that no CPU has.
pub(super) fn pin(pid: u32, cpus: &[u32]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        let cpu = usize::try_from(*cpu).map_err(io::Error::other)?;
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        set.set(cpu);
    }
    pin_process(pid, &set, MAX_DEPTH)
}

fn pin_process(pid: u32, set: &CpuSet, depth: u32) -> io::Result<()> {
    if depth == 0 {
        return Ok(());
    }
    // The first thread before the others are listed: new ones are like those that start them.
    pin_thread(pid, set)?;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let Some(thread) = task.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        pin_thread(thread, set)?;
        // A thread that has ended has no children.
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children
            .split_ascii_whitespace()
            .filter_map(|word| word.parse().ok())
        {
            pin_process(child, set, depth - 1)?;
        }
    }
    Ok(())
}

fn pin_thread(thread: u32, set: &CpuSet) -> io::Result<()> {
    let thread = i32::try_from(thread).ok().and_then(Pid::from_raw);
    let thread = thread.ok_or(io::ErrorKind::InvalidInput)?;
    match rustix::thread::sched_setaffinity(Some(thread), set) {
        // It ended meanwhile.
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_children_are_kept_to_a_cpu() {
        let allowed = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            line.unwrap().trim().to_owned()
        };
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let result = pin(child.id(), &[0]);
        let seen = allowed(child.id());
        let refused = pin(child.id(), &[4_000_000_000]);
        child.kill().unwrap();
        child.wait().unwrap();
        result.unwrap();
        assert_eq!(seen, "0");
        assert!(refused.is_err());
    }
}
