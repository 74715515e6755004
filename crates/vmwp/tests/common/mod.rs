//! A VM with a shell behind the port, for tests.

pub mod trace;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use bulkhead_machine::worker::Worker;
use bulkhead_machine::{Accelerator, Console, Disk, EngineKind, MachineConfig};
use cpio::NewcBuilder;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// `/init`: carries out lines from the port as shell commands and answers with their
/// length-prefixed output.
const INIT: &str = r#"#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
while read module; do insmod "/modules/$module" || echo "insmod $module failed"; done < /modules/order
until port=$(grep -l bulkhead.agent /sys/class/virtio-ports/*/name); do :; done
port=${port%/name}
exec 3<> "/dev/${port##*/}"
echo ready >&3
while read -r line <&3; do
    eval "$line" > /run/out 2>&1 3>&-
    stat -c %s /run/out >&3
    cat /run/out >&3
done
"#;

const ENGINE: &str = "BULKHEAD_TEST_VM_ENGINE";

/// Which engine is tested: QEMU, unless the variable says that this host runs KVM guests.
/// Then it must.
pub fn engine() -> EngineKind {
    match std::env::var(ENGINE).as_deref() {
        Ok("kvm") => EngineKind::Kvm,
        Ok("qemu") | Err(_) => EngineKind::Qemu,
        Ok(other) => panic!("{ENGINE} is kvm or qemu, not '{other}'"),
    }
}

/// The guest directory with the kernel and the modules; `None`, and a word about it, where
/// the test cannot run and nobody has said that it must.
pub fn guest_directory() -> Option<PathBuf> {
    let directory = std::env::var_os("BULKHEAD_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
        PathBuf::from,
    );
    let missing = if !directory.join("vmlinux").exists() {
        "there is no guest kernel: run `cargo xtask guest`"
    } else if engine() == EngineKind::Qemu && bulkhead_machine::find_qemu().is_none() {
        "there is no qemu-system-x86_64"
    } else if !Path::new("/bin/busybox").exists() {
        "there is no static /bin/busybox"
    } else {
        return Some(directory);
    };
    assert!(std::env::var_os(ENGINE).is_none(), "{missing}");
    eprintln!("skipped: {missing}");
    None
}

/// A place for one machine's files.
pub struct Place {
    pub directory: tempfile::TempDir,
    guest: PathBuf,
}

impl Place {
    /// `None` where no VM can run.
    pub fn new() -> Option<Self> {
        let guest = guest_directory()?;
        let directory = tempfile::tempdir().unwrap();
        // Of several archives in a row the last one's files win.
        let mut initramfs = std::fs::read(guest.join("initramfs.cpio")).unwrap();
        initramfs.extend(archive());
        std::fs::write(directory.path().join("initramfs.cpio"), initramfs).unwrap();
        std::fs::create_dir(directory.path().join("run")).unwrap();
        Some(Self { directory, guest })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self, disks: Vec<Disk>) -> MachineConfig {
        MachineConfig {
            id: "0123456789abcdef".to_owned(),
            engine: engine(),
            accelerator: match engine() {
                EngineKind::Qemu => Accelerator::Tcg,
                EngineKind::Kvm => Accelerator::Kvm,
            },
            kernel: self.guest.join("vmlinux"),
            kernel_hz: None,
            initramfs: self.path("initramfs.cpio"),
            cmdline_extra: Vec::new(),
            memory_bytes: 192 << 20,
            balloon_bytes: 0,
            vcpus: 1,
            placement: bulkhead_machine::Placement::default(),
            disks,
            nics: Vec::new(),
            runtime_dir: self.path("run"),
            console: Console::Quiet,
        }
    }

    /// A scratch disk of its own.
    pub fn scratch(&self) -> PathBuf {
        let path = self.path("scratch.img");
        let copied = std::process::Command::new("cp")
            .arg("--sparse=always")
            .arg(self.guest.join("scratch.ext4"))
            .arg(&path)
            .status()
            .unwrap();
        assert!(copied.success());
        path
    }
}

/// A tap device with this address in a network namespace that nobody else sees and that goes
/// with the descriptor.
pub fn tap(address: &str) -> OwnedFd {
    let address = address.to_owned();
    let made = std::thread::spawn(move || {
        // SAFETY: for the network alone, of this thread alone.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let tap = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: all zeroes is a value of it: no name, no flags.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
        // SAFETY: the request lives through the call.
        let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        for command in [
            format!("address add {address} dev tap0"),
            "link set tap0 up".to_owned(),
        ] {
            let mut ip = std::process::Command::new("ip");
            assert!(ip.args(command.split(' ')).status().unwrap().success());
        }
        OwnedFd::from(tap)
    });
    made.join().unwrap()
}

fn archive() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let mut bytes = Vec::new();
    for (name, mode, content) in [
        ("bin", 0o040_755, &b""[..]),
        ("bin/busybox", 0o100_755, &busybox),
        ("init", 0o100_755, INIT.as_bytes()),
    ] {
        let length = u32::try_from(content.len()).unwrap();
        let mut writer = NewcBuilder::new(name).mode(mode).write(&mut bytes, length);
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
    }
    cpio::newc::trailer(bytes).unwrap()
}

/// A booted machine.
pub struct Guest {
    pub worker: Worker,
    port: BufReader<UnixStream>,
}

impl Guest {
    /// Boots and waits for the shell.
    pub async fn boot(config: &MachineConfig) -> Self {
        Self::boot_with(config, Vec::new()).await
    }

    /// As [`Guest::boot`], with network cards.
    pub async fn boot_with(config: &MachineConfig, taps: Vec<OwnedFd>) -> Self {
        let (worker, port) = Worker::spawn(vmwp(), config, taps).await.unwrap();
        Self::greet(worker, port).await
    }

    /// As [`Guest::boot_with`], with the worker's system calls watched.
    pub async fn boot_traced(config: &MachineConfig, taps: Vec<OwnedFd>) -> (Self, trace::Trace) {
        let (worker, port) = Worker::spawn(vmwp(), config, taps).await.unwrap();
        // It has not been told yet what to boot: this runtime has one thread.
        let trace = trace::Trace::of(worker.pid());
        (Self::greet(worker, port).await, trace)
    }

    async fn greet(worker: Worker, port: UnixStream) -> Self {
        let mut port = BufReader::new(port);
        let mut line = String::new();
        tokio::select! {
            read = port.read_line(&mut line) => {
                read.unwrap();
            }
            exit = worker.wait() => panic!("no boot: {exit:?}"),
        }
        assert_eq!(line, "ready\n");
        Self { worker, port }
    }

    /// Runs a command whose end there is nobody to wait for.
    pub async fn tell(&mut self, command: &str) {
        let line = format!("{command}\n");
        self.port.write_all(line.as_bytes()).await.unwrap();
    }

    /// Reads the answer of a command.
    pub async fn answer(&mut self) -> Vec<u8> {
        let mut length = String::new();
        self.port.read_line(&mut length).await.unwrap();
        let mut output = vec![0; length.trim().parse().unwrap()];
        self.port.read_exact(&mut output).await.unwrap();
        output
    }

    /// Runs a command; what it printed.
    pub async fn run(&mut self, command: &str) -> Vec<u8> {
        self.tell(command).await;
        self.answer().await
    }

    pub async fn text(&mut self, command: &str) -> String {
        String::from_utf8(self.run(command).await).unwrap()
    }
}

/// The worker binary.
pub fn vmwp() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vmwp"))
}

/// The processes whose parent is this one.
fn children(pid: u32) -> Vec<u32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap()
        .split_ascii_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// The processes in which an engine runs the machine of this worker, if not in the worker's.
pub fn engine_processes(worker: u32) -> Vec<u32> {
    let children = children(worker);
    match engine() {
        EngineKind::Qemu => {
            assert_eq!(children.len(), 1);
            assert!(comm(children[0]).starts_with("qemu-system"));
        }
        EngineKind::Kvm => assert!(children.is_empty(), "{children:?}"),
    }
    children
}

pub fn comm(pid: u32) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    comm.trim_end().to_owned()
}

/// Waits, by its pidfd, for the end of a process that is not ours.
pub async fn gone(pid: u32) {
    let Some(raw) = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()) else {
        return;
    };
    let flags = rustix::process::PidfdFlags::NONBLOCK;
    let Ok(pidfd) = rustix::process::pidfd_open(raw, flags) else {
        return;
    };
    // SAFETY: the descriptor is moved in, and nothing takes it out.
    let watched = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE)
    };
    let _ = watched.unwrap().readable().await.unwrap();
}
