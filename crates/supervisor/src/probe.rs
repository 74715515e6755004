//! `probe`: what this host can do, as JSON on stdout.

use bulkhead_isolation::IsolationError;
use bulkhead_isolation_process::cgroup_version;
use bulkhead_task::options::{Availability, Probe};

use crate::command_line::CommandLine;

/// Runs `probe`.
pub fn run(command_line: &CommandLine) -> Result<(), IsolationError> {
    let vm =
        bulkhead_isolation_vm::probe(command_line.vm_engine, command_line.guest_dir.as_deref());
    let probe = Probe {
        process: process(),
        hyperv: Availability {
            available: vm.available.is_ok(),
            reason: vm.available.err(),
        },
        vm_engine: vm.engine.map(str::to_owned),
        vm_accelerator: vm.accelerator.map(str::to_owned),
        vm_reason: vm.reason,
        guest_kernel: vm.guest_kernel,
        vm_overhead: vm.overhead,
        cgroup_version: cgroup_version(),
    };
    let text = serde_json::to_string(&probe)
        .map_err(|error| IsolationError::other("encode the answer", error))?;
    println!("{text}");
    Ok(())
}

/// What process isolation cannot do without.
fn process() -> Availability {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = |name: &str| {
        let listed = filesystems
            .lines()
            .any(|line| line.split_ascii_whitespace().last() == Some(name));
        // A module that is there and not loaded yet is loaded by the first mount.
        listed || module_exists(name)
    };
    let missing: Vec<&str> = ["overlay", "erofs"]
        .into_iter()
        .filter(|name| !known(name))
        .collect();
    let reason = if !rustix::process::geteuid().is_root() {
        Some("process isolation needs root: run the daemon as root".to_owned())
    } else if missing.is_empty() {
        None
    } else {
        Some(format!(
            "the kernel has no {}: use one with these file systems",
            missing.join(" and no ")
        ))
    };
    Availability {
        available: reason.is_none(),
        reason,
    }
}

fn module_exists(name: &str) -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let directory = std::path::Path::new("/lib/modules").join(release.as_ref());
    ["modules.dep", "modules.builtin"].iter().any(|file| {
        std::fs::read_to_string(directory.join(file)).is_ok_and(|text| {
            text.lines().any(|line| {
                let path = line.split(':').next().unwrap_or_default();
                let file = path.rsplit('/').next().unwrap_or_default();
                file.split('.').next() == Some(name)
            })
        })
    })
}
