//! What is left of a machine whose supervisor was killed.
//!
//! The worker ends by itself when its control socket closes, and QEMU with it. This is the
//! second line: it makes sure, and removes the files.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// A machine's small files, in its bundle.
pub fn runtime_dir(bundle: &Path) -> PathBuf {
    bundle.join("vm")
}

const RECORD: &str = "worker.json";

/// Which process the worker is; a number alone could be somebody else's by now.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct WorkerRecord {
    pid: u32,
    /// When it started, in clock ticks since the host's boot.
    start_time: u64,
}

/// Notes the worker's process for a later sweep.
///
/// # Errors
/// What the system says.
pub fn record(runtime_dir: &Path, pid: u32) -> io::Result<()> {
    // A worker that has ended already needs no sweep, and its end is reported elsewhere.
    let start_time = start_time(pid).unwrap_or(0);
    let record = serde_json::to_vec(&WorkerRecord { pid, start_time })?;
    std::fs::write(runtime_dir.join(RECORD), record)
}

/// Kills the worker that was noted and its engine, if they still live, and waits for their
/// end.
///
/// # Errors
/// What the system says.
pub async fn end_worker(runtime_dir: &Path) -> io::Result<()> {
    let text = match std::fs::read(runtime_dir.join(RECORD)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // One that was cut short was written by a supervisor that was killed meanwhile; its
    // worker has ended with it.
    let Ok(record) = serde_json::from_slice::<WorkerRecord>(&text) else {
        return Ok(());
    };
    let pid = i32::try_from(record.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    let pidfd: OwnedFd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The descriptor is of the process that has the number now; is it the one?
    if start_time(record.pid) != Some(record.start_time) {
        return Ok(());
    }
    // The engine below the worker ends when it does, but a moment later: it is waited for
    // as well. Looked for while the worker lives, because then nobody else can have its
    // children's numbers.
    let engines = children(record.pid);
    for process in std::iter::once(pidfd).chain(engines) {
        kill_and_wait(process).await?;
    }
    Ok(())
}

async fn kill_and_wait(pidfd: OwnedFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    // Readable when the process has ended.
    // SAFETY: an OwnedFd keeps its descriptor open, under the same number, for as long as it
    // lives, and nothing takes it out.
    let ended = unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE)? };
    let _guard = ended.readable().await?;
    Ok(())
}

/// The processes whose parent this is. Not from `/proc/<pid>/task/<tid>/children`, which
/// not every kernel has.
fn children(parent: u32) -> Vec<OwnedFd> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let is_child = || stat_field(pid, PARENT) == Some(u64::from(parent));
            if !is_child() {
                return None;
            }
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
            let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK).ok()?;
            // The number could have changed hands before it was opened.
            is_child().then_some(pidfd)
        })
        .collect()
}

/// The fields of `/proc/<pid>/stat` behind the name, counted from 0 (proc(5)).
const PARENT: usize = 1;
const START_TIME: usize = 19;

/// In clock ticks since the host's boot; `None` when there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    stat_field(pid, START_TIME)
}

fn stat_field(pid: u32, field: usize) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, and may contain anything.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_ascii_whitespace().nth(field)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_was_left_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        record(directory.path(), child.id()).unwrap();
        end_worker(directory.path()).await.unwrap();
        assert!(!child.wait().unwrap().success());
        // And again, with nobody there.
        end_worker(directory.path()).await.unwrap();
    }

    #[tokio::test]
    async fn another_process_with_the_number_lives_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let record = WorkerRecord {
            pid: child.id(),
            start_time: 1,
        };
        let text = serde_json::to_vec(&record).unwrap();
        std::fs::write(directory.path().join(RECORD), text).unwrap();
        end_worker(directory.path()).await.unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::write(directory.path().join(RECORD), "{").unwrap();
        end_worker(directory.path()).await.unwrap();
    }
}
