//! Which engine runs VMs: the choice, and what is said about it.

use std::path::PathBuf;
use std::time::SystemTime;

use bulkhead_e2e::{BUSYBOX, Daemon, case, until};

/// Results of trial boots that are kept, and when each was written.
fn trials() -> Vec<(PathBuf, SystemTime)> {
    let entries = std::fs::read_dir("/run/bulkhead/trial");
    let entries = entries.into_iter().flatten().flatten();
    let mut kept: Vec<_> = entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.modified().ok()?)))
        .collect();
    kept.sort();
    kept
}

case!(hyperv is_chosen_by_a_trial_and_named, |cell| {
    let cell = cell.on(Daemon::start(&["--vm-engine", "auto"]));
    // Not before the probe is done.
    let info = || {
        until("the probe", cell.limit(), || {
            let text = cell.cli("info").ok().text();
            text.contains("VM Engine:").then_some(text)
        })
    };
    let told = info();
    // What runs is what was told: the guest's kernel.
    let release = cell.run(&format!("--rm {BUSYBOX} uname -r")).ok().text();
    assert!(told.contains(&format!("VM Kernel: {release}\n")), "{told}");
    // The rig has KVM. Whether another host has, its own tests do not know.
    if bulkhead_e2e::in_rig() {
        let tried = format!("a trial boot of {release} worked");
        assert!(told.contains("VM Engine: kvm") && told.contains(&tried), "{told}");
        let kept = trials();
        assert_eq!(kept.len(), 1, "{kept:?}");
        // Who comes later does not try again: neither a daemon nor a container.
        cell.daemon().restart();
        cell.run(&format!("--rm {BUSYBOX} true")).ok();
        let told = info();
        assert!(told.contains("VM Engine: kvm"), "{told}");
        assert_eq!(trials(), kept);
    }
    cell.finish();
});
