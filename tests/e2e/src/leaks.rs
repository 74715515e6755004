//! What must not be left. Only what belongs to one daemon is looked at, by its directory
//! and by the IDs of its containers, so that suites can run beside each other.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{Daemon, host};

/// Files of an emptied daemon that were not there when it was fresh.
#[must_use]
pub fn files(daemon: &Daemon) -> Vec<String> {
    let fresh = daemon.fresh_files();
    let files = daemon.files();
    let new = files.difference(&fresh).filter(|path| !is_journal(path));
    new.map(|path| format!("file {}", path.display())).collect()
}

/// Side files that a database engine makes as it needs them.
fn is_journal(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with("-wal") || name.ends_with("-shm") || name.ends_with("-journal")
}

/// What the host still has of a stopped daemon.
#[must_use]
pub fn host(daemon: &Daemon) -> Vec<String> {
    let base = daemon.base().to_string_lossy().into_owned();
    let ids = daemon.ids();
    // The last breath of a process may come after the answer to the request that ended it.
    let settled = |look: &dyn Fn() -> Vec<String>| {
        let mut found = look();
        for _ in 0..40 {
            if found.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            found = look();
        }
        found
    };
    let mut left = settled(&|| processes(&base, &ids));
    left.extend(settled(&|| {
        let lines = host::mounts(&base).into_iter();
        lines.map(|line| format!("mount {line}")).collect()
    }));
    left.extend(settled(&|| {
        let names = host::interfaces(&base).into_iter();
        names.map(|name| format!("interface {name}")).collect()
    }));
    left.extend(
        host::loops(&base)
            .into_iter()
            .map(|file| format!("loop device on {file}")),
    );
    left.extend(of_containers(&ids));
    left
}

/// What the host has of containers that are gone: cgroups, files in the usual places for
/// sockets and temporary files, network namespaces.
#[must_use]
pub fn of_containers(ids: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    let short: Vec<&str> = ids.iter().map(|id| id.get(..12).unwrap_or(id)).collect();
    let ours = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        short.iter().any(|id| name.contains(id))
    };
    host::walk(Path::new("/sys/fs/cgroup"), 5, &mut |path, directory| {
        if directory && ours(path) {
            left.push(format!("cgroup {}", path.display()));
        }
    });
    for root in ["/run", "/tmp", "/var/tmp", "/dev/shm", "/sys/class/net"] {
        host::walk(Path::new(root), 2, &mut |path, _| {
            if ours(path) {
                left.push(format!("file {}", path.display()));
            }
        });
    }
    left
}

fn processes(base: &str, ids: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    for process in host::processes() {
        let of_ours = process.pid != std::process::id()
            && (process.command.contains(base)
                || ids.iter().any(|id| {
                    process.command.contains(id.as_str()) || process.cgroups.contains(id.as_str())
                }));
        if of_ours {
            left.push(format!("process {} {}", process.pid, process.command));
        }
    }
    left
}

/// Removes by force what a broken engine may have left, so that a failed run does not
/// disturb the next one.
pub fn sweep(daemon: &Daemon) {
    let base = daemon.base().to_string_lossy().into_owned();
    let ids = daemon.ids();
    for line in processes(&base, &ids) {
        let pid = line.split(' ').nth(1).and_then(|pid| pid.parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let mut mounts: Vec<PathBuf> = host::mounts(&base)
        .iter()
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|path| path.starts_with(&base))
        .collect();
    mounts.reverse();
    for mount in mounts {
        drop(Command::new("umount").arg("-l").arg(mount).status());
    }
    for interface in host::interfaces(&base) {
        drop(
            Command::new("ip")
                .args(["link", "delete", &interface])
                .status(),
        );
        // The table is named like the default bridge.
        if let Some(tag) = interface.strip_prefix("bh-") {
            drop(
                Command::new("/usr/sbin/nft")
                    .args(["delete", "table", "inet", &format!("bulkhead_{tag}")])
                    .status(),
            );
        }
    }
    drop(std::fs::remove_dir_all(daemon.base()));
}
