//! What a container is made of breaks: it ends with an error, never hangs, and leaves
//! nothing behind.

use std::path::{Path, PathBuf};

use bulkhead_e2e::client::Running;
use bulkhead_e2e::daemon::{Daemon, binaries};
use bulkhead_e2e::{BUSYBOX, Cell, case, host, leaks, on_kvm, until};
use bulkhead_tiny_guest::{InsaneRequest, breaks_a_queue, kernel};
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a PID");
    kill_process(pid, Signal::KILL).expect("kill");
}

/// A container that has said that it is ready: its client, and its ID.
fn ready(cell: &Cell, line: &str) -> (Running, String) {
    let name = cell.name("c");
    let mut client = cell.running(&format!("--name {name} {line}")).start();
    client.expect("ready");
    let id = cell.inspect(&name)["Id"]
        .as_str()
        .expect("an ID")
        .to_owned();
    (client, id)
}

/// A container whose client, logs and wait are all watching.
fn ends(cell: &Cell, line: &str, breaks: impl FnOnce(&str)) {
    let (client, id) = ready(cell, line);
    let waiting = cell.line(&format!("wait {id}")).start();
    let logs = cell.line(&format!("logs -f {id}")).start();
    breaks(&id);
    let code = client.finish().code;
    assert_ne!(code, 0, "the client says that it did not end well");
    waiting.finish();
    logs.finish();
    cell.until_state(&id, "exited");
    let state = cell.inspect(&id)["State"].clone();
    let broken = state["ExitCode"] == 137
        || state["Error"]
            .as_str()
            .is_some_and(|error| !error.is_empty());
    assert!(broken, "{state}");
    // It can be started again: nothing of the first life is in the way.
    cell.cli(&format!("start {id}")).ok();
    cell.until_state(&id, "running");
    cell.cli(&format!("rm -f {id}")).ok();
    cell.nothing_left_of(&id);
}

const READY: &str = "busybox sh -c 'echo ready; exec sleep 600'";

case!(hyperv the_worker_is_killed, |cell| {
    ends(cell, READY, |id| kill(host::workers(id)[0].pid));
});

case!(hyperv the_machine_is_killed, |cell| {
    ends(cell, READY, |id| {
        let worker = host::workers(id)[0].pid;
        let family = host::family(worker);
        let machine = family.iter().find(|one| one.comm.starts_with("qemu"));
        // An engine without a process of its own has died with the case before.
        kill(machine.map_or(worker, |machine| machine.pid));
    });
});

/// A guest that ends its machine by this script; the words of the container's state.
fn breaks_itself(cell: &Cell, script: &str) -> String {
    let line = format!("--privileged -i {BUSYBOX} sh -c 'echo ready; {script}; sleep 600'");
    let (client, id) = ready(cell, &line);
    assert_eq!(client.finish().code, 137);
    cell.until_state(&id, "exited");
    assert!(host::workers(&id).is_empty());
    let state = cell.inspect(&id)["State"].clone();
    assert_eq!(
        (&state["ExitCode"], &state["OOMKilled"]),
        (&137.into(), &false.into()),
        "{state}"
    );
    cell.cli(&format!("rm {id}")).ok();
    cell.nothing_left_of(&id);
    state["Error"].as_str().expect("words").to_owned()
}

// The agent is PID 1 of its kernel: no signal from inside reaches it, and its end, whatever
// the cause, is this panic.
case!(hyperv the_guests_kernel_panics, |cell| {
    let error = breaks_itself(cell, "sleep 2; echo c > /proc/sysrq-trigger");
    assert!(error.contains("panic"), "{error}");
});

// The kernel throws its interrupt table away and takes an interrupt.
case!(hyperv a_cpu_of_the_guest_triple_faults, |cell| {
    let script = "sleep 2; echo triple > /sys/kernel/reboot/type; echo b > /proc/sysrq-trigger";
    let error = breaks_itself(cell, script);
    // QEMU does not tell it from any other reset.
    let words = if on_kvm() { "triple-faulted" } else { "the guest" };
    assert!(error.contains(words), "{error}");
});

/// A directory with the guest that the daemon would find, whose files can be replaced.
pub fn guest() -> tempfile::TempDir {
    let found = std::env::var_os("BULKHEAD_GUEST_DIR").map_or_else(
        || {
            let places = binaries();
            let mut places = places.ancestors().map(|place| place.join("guest"));
            places.find(|place| place.join("vmlinux").exists())
        },
        |named| Some(PathBuf::from(named)),
    );
    let found = std::path::absolute(found.expect("a guest")).expect("a path");
    let directory = tempfile::tempdir().expect("a directory");
    for file in ["vmlinux", "initramfs.cpio", "scratch.ext4", "guest.json"] {
        std::os::unix::fs::symlink(found.join(file), directory.path().join(file)).expect("a link");
    }
    directory
}

/// Puts some of a file's bytes, from the front, in its place.
fn cut(file: &Path, part: impl FnOnce(&[u8]) -> Vec<u8>) {
    let content = std::fs::read(file).expect("a file");
    std::fs::remove_file(file).expect("a link");
    std::fs::write(file, part(&content)).expect("a file");
}

/// No container starts in such a guest; everybody is told these words.
fn does_not_start(cell: &Cell, guest: &Path, words: &str) {
    let path = guest.display().to_string();
    let cell = cell.on(Daemon::start(&["--guest-dir", &path]));
    let id = cell.create(&format!("{BUSYBOX} true"));
    let output = cell.cli(&format!("start {id}")).exits(1);
    output.says(words);
    let state = cell.inspect(&id)["State"].clone();
    assert_ne!(state["Status"], "running", "{state}");
    let error = state["Error"].as_str().unwrap_or_default();
    assert!(error.contains(words), "{words}: {state}");
    assert!(host::workers(&id).is_empty());
    cell.cli(&format!("rm {id}")).ok();
    cell.nothing_left_of(&id);
    assert!(leaks::of_containers(&cell.daemon().ids()).is_empty());
    cell.finish();
}

case!(hyperv a_guest_that_is_damaged, |cell| {
    let text = |_: &[u8]| b"neither a kernel nor an archive\n".to_vec();
    let half = |whole: &[u8]| whole[..whole.len() / 2].to_vec();
    type Damage = fn(&[u8]) -> Vec<u8>;
    for (file, damage, words) in [
        ("vmlinux", text as Damage, "kernel"),
        ("vmlinux", half as Damage, "VM"),
        ("vmlinux", |_| Vec::new(), "kernel"),
        ("initramfs.cpio", text as Damage, "VM"),
        ("initramfs.cpio", half as Damage, "VM"),
    ] {
        let guest = guest();
        cut(&guest.path().join(file), damage);
        does_not_start(cell, guest.path(), words);
    }
});

// The addresses are those of the kvm engine's devices; QEMU stops a device whose driver does
// that, and goes on.
case!(hyperv a_guest_that_breaks_a_queue, |cell| {
    if !on_kvm() {
        eprintln!("not run: BULKHEAD_E2E_VM_ENGINE is not 'kvm'");
        return;
    }
    let tiny = kernel(&breaks_a_queue(InsaneRequest::Circle));
    let guest = guest();
    cut(&guest.path().join("vmlinux"), |_| tiny);
    does_not_start(cell, guest.path(), "broke the protocol of its entropy device");
});

/// A small file system of the host's; unmounted with its owner.
struct Small(PathBuf);

impl Small {
    fn mount(place: &Path, mib: u32) -> Self {
        let options = format!("size={mib}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "small"])
            .arg(place)
            .status();
        assert!(mounted.expect("mount").success());
        Self(place.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Said, and not tried again: whoever looks for what is left finds it.
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.display());
        }
    }
}

case!(hyperv the_hosts_disk_is_full_below_the_scratch_disk, |cell| {
    let script = "echo small > /small; sync; echo ready; read -r; \
                  dd if=/dev/zero of=/large bs=1M count=200 conv=fsync || echo refused; \
                  exec sleep 600";
    let name = cell.name("c");
    let id = cell.create(&format!("-i --name {name} {BUSYBOX} sh -c '{script}'"));
    let writable = cell.daemon().data_root().join("containers").join(&id).join("rw");
    let small = Small::mount(&writable, 48);
    let mut client = cell.line(&format!("start -ai {id}")).start();
    client.expect("ready");
    client.send("now\n");
    // The guest has an error, and goes on: neither it nor anybody else waits for ever.
    client.expect("refused");
    cell.cli(&format!("exec {id} echo alive")).ok().says("alive");
    cell.cli(&format!("kill {id}")).ok();
    client.finish();
    cell.until_state(&id, "exited");
    drop(small);
    cell.cli(&format!("rm {id}")).ok();
    cell.nothing_left_of(&id);
});

/// Where `/dev/kvm` is a device that nobody may open.
const WITHOUT_KVM: &str = "place=$(mktemp -d) && mount -t tmpfs -o nodev nodev \"$place\" && \
     if [ -e /dev/kvm ]; then mknod \"$place/kvm\" c 10 232 && \
     mount --bind \"$place/kvm\" /dev/kvm; fi && \
     umount -l \"$place\" && rmdir \"$place\" && exec \"$0\" \"$@\"";

case!(hyperv kvm_is_not_permitted, |cell| {
    let before = ["unshare", "-m", "--propagation", "slave", "sh", "-c", WITHOUT_KVM];
    let strict = cell.on(Daemon::start_behind(&before, &["--vm-engine", "kvm"], &[]));
    let name = strict.name("c");
    strict
        .run(&format!("--rm --name {name} {BUSYBOX} true"))
        .exits(125)
        .says("'kvm' cannot run here")
        .says("/dev/kvm")
        .says("--vm-engine");
    assert_eq!(strict.state(&name), "gone");
    assert!(leaks::of_containers(&strict.daemon().ids()).is_empty());
    strict.cli(&format!("run --rm --isolation=process {BUSYBOX} true")).ok();
    strict.finish();

    let lenient = cell.on(Daemon::start_behind(&before, &["--vm-engine", "auto"], &[]));
    // In the rig this would be an emulation in an emulation, which takes minutes to start up.
    if !bulkhead_e2e::in_rig() {
        lenient.run(&format!("--rm {BUSYBOX} echo emulated")).ok().says("emulated");
    }
    let info = lenient.cli("info").ok();
    info.says("qemu").says("/dev/kvm");
    lenient.finish();
});

case!(ours the_supervisor_is_killed, |cell| {
    ends(cell, READY, |id| {
        let supervisors: Vec<_> = host::processes()
            .into_iter()
            .filter(|one| one.command.contains("containerd-shim-bulkhead-v2") && one.command.contains(id))
            .collect();
        assert!(!supervisors.is_empty(), "a supervisor");
        for supervisor in supervisors {
            kill(supervisor.pid);
        }
    });
});

case!(process the_payload_is_killed_from_outside, |cell| {
    ends(cell, READY, |id| {
        // It is ready a moment before it is another program.
        let sleep = until("the payload sleeps", cell.limit(), || {
            host::members(id).into_iter().find(|one| one.comm == "sleep")
        });
        kill(sleep.pid);
    });
});
