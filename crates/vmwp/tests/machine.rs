//! Real VMs under a real worker.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bulkhead_machine::worker::protocol::send_files;
use bulkhead_machine::worker::{Worker, WorkerError};
use bulkhead_machine::{Disk, EngineKind, ExitReason, LayerFile, MAX_LAYERS, MachineFiles, Nic};
use common::{Guest, Place, comm, engine, engine_processes, gone, tap, vmwp};

type Config = bulkhead_machine::MachineConfig;

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn nothing_left(place: &Place) {
    let left: Vec<_> = std::fs::read_dir(place.path("run")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

async fn all_gone(processes: Vec<u32>) {
    for pid in processes {
        gone(pid).await;
    }
}

/// What the host shows of a process that holds nothing. `root`: what may be in its root.
fn jailed(pid: u32, root: &[&str]) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> Vec<&str> {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().skip(1).collect()
    };
    for rights in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(rights), ["0000000000000000"], "{rights}");
    }
    for who in ["Uid:", "Gid:"] {
        let ids: Vec<u32> = field(who).iter().map(|id| id.parse().unwrap()).collect();
        assert!(ids.iter().all(|id| *id >= 0x7000_0000), "{who} {ids:?}");
    }
    assert!(field("Groups:").is_empty());
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        for line in ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"] {
            assert!(status.contains(line), "{status}");
        }
    }
    for namespace in ["mnt", "net", "ipc", "uts", "pid", "cgroup"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let mut entries: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    entries.sort();
    assert!(
        entries.iter().all(|entry| root.contains(&entry.as_str())),
        "{entries:?}"
    );
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    assert!(files.unwrap().contains(" 1024 "), "{limits}");
    // A memory image of it can neither be asked for nor come by itself.
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    assert!(core.unwrap().contains(" 1 "), "{limits}");
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    for mount in mounts.lines() {
        let options = mount.split(' ').nth(5).unwrap();
        assert!(options.split(',').any(|option| option == "ro"), "{mount}");
    }
}

#[tokio::test]
async fn a_guest_talks_and_powers_off() {
    let Some(place) = Place::new() else { return };
    let mut guest = Guest::boot(&place.config(Vec::new())).await;
    assert_eq!(guest.text("echo $((6 * 7))").await, "42\n");
    if engine() == EngineKind::Kvm {
        // The host tells the time, and nothing had to be calibrated.
        let clock = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
        let clock = guest.text(clock).await;
        assert!(
            ["kvm-clock\n", "tsc\n"].contains(&clock.as_str()),
            "{clock}"
        );
    }
    let pid = guest.worker.pid();
    assert_eq!(comm(pid), "vmwp");
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.contains("0123456789abcdef"), "{line}");
    let others = engine_processes(pid);
    jailed(pid, &[]);
    for qemu in &others {
        let root = [
            "dev",
            "etc",
            "initramfs",
            "kernel",
            "lib",
            "lib64",
            "proc",
            "usr",
        ];
        jailed(*qemu, &root);
    }

    guest.worker.pause().await.unwrap();
    guest.worker.pause().await.unwrap();
    guest.tell("echo resumed").await;
    guest.worker.resume().await.unwrap();
    assert_eq!(guest.answer().await, b"resumed\n");

    guest.tell("poweroff -f").await;
    let exit = guest.worker.wait().await;
    assert_eq!(exit.reason, ExitReason::PoweredOff, "{exit:?}");
    gone(pid).await;
    all_gone(others).await;
    nothing_left(&place);
    assert!(matches!(
        guest.worker.pause().await,
        Err(WorkerError::Ended(_))
    ));
    assert_eq!(guest.worker.kill().await, exit);
}

#[tokio::test]
async fn many_layers_are_one_read_only_disk() {
    let Some(place) = Place::new() else { return };
    let mut whole = Vec::new();
    let mut files = Vec::new();
    for index in 0..MAX_LAYERS {
        let path = place.path(&format!("layer, {index}"));
        let content = vec![u8::try_from(index + 1).unwrap(); 4096 * (1 + index % 3)];
        std::fs::write(&path, &content).unwrap();
        files.push(LayerFile {
            path,
            bytes: u64::try_from(content.len()).unwrap(),
        });
        whole.extend(content);
    }
    let mut guest = Guest::boot(&place.config(vec![Disk::Layers { files }])).await;
    assert_eq!(guest.text("cat /sys/block/vda/serial").await, "layers");
    assert_eq!(guest.text("cat /sys/block/vda/ro").await, "1\n");
    let read = guest.run("cat /dev/vda").await;
    assert_eq!(read.len(), whole.len());
    assert!(read == whole);
    nothing_left(&place);
    let exit = guest.worker.kill().await;
    assert_eq!(exit.reason, ExitReason::Killed, "{exit:?}");
}

#[tokio::test]
async fn the_scratch_disk_keeps_what_was_synced_and_forgets_what_was_discarded() {
    let Some(place) = Place::new() else { return };
    let path = place.scratch();
    let layer = place.path("layer");
    std::fs::write(&layer, vec![1; 4096]).unwrap();
    let disks = vec![
        Disk::Layers {
            files: vec![LayerFile {
                path: layer,
                bytes: 4096,
            }],
        },
        Disk::Scratch { path: path.clone() },
    ];
    let config = place.config(disks);
    let mut guest = Guest::boot(&config).await;
    assert_eq!(guest.text("cat /sys/block/vdb/serial").await, "scratch");
    let mount = "mkdir /mnt && mount -t ext4 /dev/vdb /mnt";
    assert_eq!(guest.text(mount).await, "");
    let fill =
        "dd if=/dev/urandom of=/mnt/large bs=1M count=16 2>/dev/null; echo kept > /mnt/f; sync";
    assert_eq!(guest.text(fill).await, "");
    let full = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(full > 16 << 20);

    // A disk has one machine at a time.
    let (second, _port) = Worker::spawn(vmwp(), &config, Vec::new()).await.unwrap();
    let exit = second.wait().await;
    assert_eq!(exit.reason, ExitReason::BootFailed, "{exit:?}");
    assert!(exit.detail.contains("lock"), "{exit:?}");

    assert_eq!(guest.text("rm /mnt/large; sync; fstrim /mnt").await, "");
    let trimmed = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(trimmed + (15 << 20) < full, "{trimmed} of {full}");
    // No clean unmount: what was synced is there all the same.
    guest.worker.kill().await;

    let mut guest = Guest::boot(&config).await;
    assert_eq!(guest.text(mount).await, "");
    assert_eq!(guest.text("cat /mnt/f").await, "kept\n");
    guest.worker.kill().await;
}

/// Each CPU has a thread, and each thread takes some of the limited address space.
#[tokio::test]
async fn many_cpus_fit_into_the_workers_limits() {
    let Some(place) = Place::new() else { return };
    let mut config = place.config(Vec::new());
    config.vcpus = 8;
    let mut guest = Guest::boot(&config).await;
    let count = format!("{}\n", config.vcpus);
    assert_eq!(guest.text("nproc").await, count);
    // Each has an APIC of its own, and works when it is told to.
    let work = "for c in $(seq 0 $(($(nproc) - 1))); do \
                taskset $(printf %x $((1 << c))) cut -d' ' -f39 /proc/self/stat; done";
    let numbers: String = (0..config.vcpus).map(|cpu| format!("{cpu}\n")).collect();
    assert_eq!(guest.text(work).await, numbers);
    guest.worker.pause().await.unwrap();
    guest.worker.resume().await.unwrap();
    let work = "for i in $(seq 16); do (i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done) & done; \
                wait; echo done";
    assert_eq!(guest.text(work).await, "done\n");
    // With all of them up a reset is the end too, and not another start.
    guest.tell("reboot -f").await;
    let exit = guest.worker.wait().await;
    assert_eq!(exit.reason, ExitReason::GuestPanic, "{exit:?}");
    assert!(exit.detail.contains("reset itself"), "{exit:?}");
}

/// A file system on a file of its own, which holds up whoever writes to it when it is told to.
struct Freezing(PathBuf);

impl Freezing {
    fn make(place: &Place) -> Self {
        let (file, directory) = (place.path("frozen.ext4"), place.path("frozen"));
        std::fs::create_dir(&directory).unwrap();
        let opened = std::fs::File::create(&file).unwrap();
        opened.set_len(32 << 20).unwrap();
        Self::run("mkfs.ext4", &["-q", "-O", "^has_journal"], &file);
        let made = Self(directory);
        Self::run(
            "mount",
            &["-o", "loop", &file.display().to_string()],
            &made.0,
        );
        made
    }

    fn run(program: &str, arguments: &[&str], path: &Path) {
        let mut command = std::process::Command::new(program);
        let status = command.args(arguments).arg(path).status().unwrap();
        assert!(status.success(), "{program}: {status}");
    }

    fn freeze(&self) {
        Self::run("fsfreeze", &["-f"], &self.0);
    }

    fn thaw(&self) {
        Self::run("fsfreeze", &["-u"], &self.0);
    }
}

impl Drop for Freezing {
    fn drop(&mut self) {
        // When the test has failed half-way it may be frozen; else this is refused.
        for (program, argument) in [("fsfreeze", "-u"), ("umount", "-l")] {
            let mut command = std::process::Command::new(program);
            command.arg(argument).arg(&self.0);
            let _ = command.stderr(std::process::Stdio::null()).status();
        }
    }
}

/// Whether the worker's thread of this name waits in the kernel, not to be interrupted.
fn waits(pid: u32, thread: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().any(|one| {
        let stat = std::fs::read_to_string(one.path().join("stat")).unwrap_or_default();
        stat.contains(&format!("({thread}) D "))
    })
}

/// A disk of the host's that does not answer holds up whoever asked for it: the network and
/// the way to the agent stay open.
#[tokio::test]
async fn a_disk_that_hangs_holds_up_nothing_else() {
    if engine() != EngineKind::Kvm {
        eprintln!("not run: QEMU serves its devices by itself");
        return;
    }
    let Some(place) = Place::new() else { return };
    let disk = Freezing::make(&place);
    let path = disk.0.join("scratch");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(16 << 20).unwrap();
    let mut config = place.config(vec![Disk::Scratch { path }]);
    config.nics = vec![Nic {
        mac: [2, 0, 0, 0, 0, 7],
    }];
    let mut guest = Guest::boot_with(&config, vec![tap("192.0.2.1/24")]).await;
    let up = "ip link set eth0 up && ip addr add 192.0.2.2/24 dev eth0 && echo up";
    assert_eq!(guest.text(up).await, "up\n");
    disk.freeze();
    let write = "dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null & echo begun";
    assert_eq!(guest.text(write).await, "begun\n");
    while !waits(guest.worker.pid(), "disks") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let ping = "ping -c 2 192.0.2.1 > /dev/null && echo answered";
    assert_eq!(guest.text(ping).await, "answered\n");
    assert_eq!(guest.text("kill -0 $! && echo waits").await, "waits\n");
    disk.thaw();
    assert_eq!(guest.text("wait && echo written").await, "written\n");

    // Nor does it hold up the end of a machine: all of the worker has gone but that thread,
    // which the host's kernel does not let go.
    disk.freeze();
    assert_eq!(guest.text(write).await, "begun\n");
    while !waits(guest.worker.pid(), "disks") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // At once: an orderly end waits for the disk, in the guest's kernel.
    guest
        .tell("echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger")
        .await;
    let stat = format!("/proc/{}/stat", guest.worker.pid());
    while !std::fs::read_to_string(&stat)
        .unwrap()
        .contains("(vmwp) Z ")
    {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    disk.thaw();
    let exit = guest.worker.wait().await;
    assert_eq!(exit.reason, ExitReason::GuestPanic, "{exit:?}");
    assert!(exit.detail.contains("reset itself"), "{exit:?}");
}

#[tokio::test]
async fn a_panic_ends_the_machine_and_is_quoted() {
    let Some(place) = Place::new() else { return };
    let mut guest = Guest::boot(&place.config(Vec::new())).await;
    guest.tell("exit 1").await;
    let exit = guest.worker.wait().await;
    assert_eq!(exit.reason, ExitReason::GuestPanic);
    assert!(exit.detail.contains("Attempted to kill init"), "{exit:?}");
}

#[tokio::test]
async fn whoever_is_killed_takes_the_others_along() {
    let Some(place) = Place::new() else { return };
    let boot = async || {
        let guest = Guest::boot(&place.config(Vec::new())).await;
        let others = engine_processes(guest.worker.pid());
        (guest, others)
    };

    let (guest, others) = boot().await;
    if let [qemu] = others[..] {
        kill(qemu);
        let exit = guest.worker.wait().await;
        assert_eq!(exit.reason, ExitReason::EngineKilled, "{exit:?}");
        gone(guest.worker.pid()).await;
    }

    let (guest, others) = boot().await;
    kill(guest.worker.pid());
    let exit = guest.worker.wait().await;
    assert_eq!(exit.reason, ExitReason::WorkerLost, "{exit:?}");
    assert!(exit.detail.contains("signal 9"), "{exit:?}");
    all_gone(others).await;

    let (guest, others) = boot().await;
    let pid = guest.worker.pid();
    drop(guest);
    gone(pid).await;
    all_gone(others).await;
}

#[tokio::test]
async fn a_supervisor_that_vanishes_takes_the_machine_along() {
    use std::io::{BufRead as _, BufReader, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    let Some(place) = Place::new() else { return };
    let (control, worker_control) = UnixStream::pair().unwrap();
    let (_port, worker_port) = UnixStream::pair().unwrap();
    let config = place.config(Vec::new());
    let files = MachineFiles::open(&config, worker_port.into(), Vec::new()).unwrap();
    let body = send_files(&control, &config, files).unwrap();
    (&control).write_all(&body).unwrap();
    let mut worker = std::process::Command::new(vmwp())
        .args(["--id", "x"])
        .stdin(OwnedFd::from(worker_control))
        .spawn()
        .unwrap();
    let running = BufReader::new(&control).lines().nth(1).unwrap().unwrap();
    assert!(running.contains("running"), "{running}");
    let others = engine_processes(worker.id());
    drop(control);
    assert!(worker.wait().unwrap().success());
    all_gone(others).await;
    nothing_left(&place);
}

#[tokio::test]
async fn what_cannot_boot_says_why() {
    let Some(place) = Place::new() else { return };
    let text = place.path("text");
    std::fs::write(&text, "not a kernel").unwrap();
    let odd = LayerFile {
        path: text.clone(),
        bytes: 12,
    };
    let layers = Disk::Layers {
        files: vec![odd.clone(), odd],
    };
    let change = |change: &dyn Fn(&mut Config)| {
        let mut config = place.config(Vec::new());
        change(&mut config);
        config
    };
    for (config, words) in [
        (change(&|config| config.kernel = text.clone()), "text"),
        (change(&|config| config.memory_bytes = 8 << 20), "8 MiB"),
        (change(&|config| config.memory_bytes = 1 << 60), "memory"),
        (change(&|config| config.vcpus = 0), "not 0"),
        (change(&|config| config.vcpus = 10_000), "10000"),
        (place.config(vec![layers]), "multiple of 512"),
    ] {
        let (worker, _port) = Worker::spawn(vmwp(), &config, Vec::new()).await.unwrap();
        let exit = worker.wait().await;
        assert_eq!(exit.reason, ExitReason::BootFailed, "{exit:?}");
        assert!(exit.detail.contains(words), "{exit:?} has no {words}");
        eprintln!("{}", exit.detail);
        nothing_left(&place);
    }
    let config = change(&|config| config.kernel = "/no/kernel".into());
    let error = Worker::spawn(vmwp(), &config, Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(error, WorkerError::Files(_)), "{error:?}");
    let error = Worker::spawn(&text, &place.config(Vec::new()), Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(error, WorkerError::Spawn { .. }), "{error:?}");
}
