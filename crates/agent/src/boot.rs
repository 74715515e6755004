//! From a kernel with an initramfs to a system in which containers can run.
//!
//! Runs before any thread exists. What fails here has no host to be told to, so the kernel
//! console gets it and the machine ends.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit};

use crate::uevent::Uevents;
use crate::{modules, network, port};

/// A step of the start failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct BootError {
    step: String,
    source: io::Error,
}

fn step<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> BootError {
    let step = step.into();
    move |source| BootError {
        step,
        source: source.into(),
    }
}

/// The error with its cause, in one line.
pub fn describe(error: &BootError) -> String {
    format!("{error}: {}", error.source)
}

/// Says on the kernel console why the machine ends; the panic that follows is its end.
pub fn last_words(error: &str) {
    // `<2>` is "critical": it is printed at every log level that we boot with.
    if let Ok(mut kmsg) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // There is nobody left to tell of a failure.
        let _ = kmsg.write_all(format!("<2>bulkhead-agent: {error}\n").as_bytes());
    }
    eprintln!("bulkhead-agent: {error}");
}

/// Does all that needs no host, and opens the port to it.
///
/// # Errors
/// See [`BootError`].
pub fn prepare() -> Result<File, BootError> {
    leave_initial_root()?;
    mount_system()?;
    open_standard_streams();
    let uevents = Uevents::subscribe().map_err(step("listen for devices"))?;
    modules::load_all().map_err(|(what, error)| step(what)(error))?;
    control_groups()?;
    network::loopback_up().map_err(step("bring up the loopback interface"))?;
    limits();
    kernel_parameters();
    let path = uevents
        .wait_for(port::find)
        .map_err(step("find the port to the host"))?;
    port::open(&path).map_err(step(format!("open {}", path.display())))
}

/// `pivot_root`, which a container's start needs, refuses to leave the kernel's initial
/// root. So a bind mount of it is put on top of it and made the root.
fn leave_initial_root() -> Result<(), BootError> {
    let name = "/.root";
    make_directory(name)?;
    rustix::mount::mount_bind("/", name).map_err(step("bind the root"))?;
    rustix::process::chdir(name).map_err(step("enter the root"))?;
    rustix::mount::mount_move(".", "/").map_err(step("move the root"))?;
    rustix::process::chroot(".").map_err(step("change the root"))?;
    rustix::process::chdir("/").map_err(step("enter the new root"))
}

fn mount_system() -> Result<(), BootError> {
    let none = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    let devices = MountFlags::NOSUID | MountFlags::NOEXEC;
    let files = MountFlags::NOSUID | MountFlags::NODEV;
    let table: [(&str, &str, MountFlags, Option<&CStr>); 8] = [
        ("proc", "/proc", none, None),
        ("sysfs", "/sys", none, None),
        ("devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755")),
        (
            "devpts",
            "/dev/pts",
            devices,
            Some(c"mode=0620,gid=5,ptmxmode=0666"),
        ),
        ("tmpfs", "/dev/shm", none, Some(c"mode=1777")),
        // No `nodev`: bind mounts of device files start out from here.
        ("tmpfs", "/run", MountFlags::NOSUID, Some(c"mode=0755")),
        ("tmpfs", "/tmp", files, Some(c"mode=1777")),
        (
            "cgroup2",
            "/sys/fs/cgroup",
            none,
            Some(c"nsdelegate,memory_recursiveprot"),
        ),
    ];
    for (source, target, flags, data) in table {
        make_directory(target)?;
        mount(source, target, source, flags, data).map_err(step(format!("mount {target}")))?;
    }
    Ok(())
}

fn make_directory(path: &str) -> Result<(), BootError> {
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(step(format!("create {path}"))(error)),
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .map_err(step(format!("set the mode of {path}")))
}

/// The kernel starts init without standard streams when the initramfs has no console
/// device; descriptors 0 to 2 must not become something else's.
fn open_standard_streams() {
    let Ok(null) = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
    else {
        return;
    };
    let console = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/console")
        .ok();
    let output = console.as_ref().unwrap_or(&null);
    // A failure leaves what was there, which is no worse.
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(output);
    let _ = rustix::stdio::dup2_stderr(output);
}

/// Makes every controller of the unified hierarchy available to containers.
fn control_groups() -> Result<(), BootError> {
    let root = "/sys/fs/cgroup";
    let available = std::fs::read_to_string(format!("{root}/cgroup.controllers"))
        .map_err(step("read the cgroup controllers"))?;
    let enable: Vec<String> = available
        .split_ascii_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    std::fs::write(format!("{root}/cgroup.subtree_control"), enable.join(" "))
        .map_err(step("enable the cgroup controllers"))
}

/// What containers inherit and what protects the agent.
fn limits() {
    // Docker's containers may open this many files; the rest is without a limit, as
    // on a host whose daemon runs without one. Refusals leave the kernel's defaults.
    let files = Some(1 << 20);
    let set = |resource, value| {
        let limit = Rlimit {
            current: value,
            maximum: value,
        };
        let _ = rustix::process::setrlimit(resource, limit);
    };
    set(Resource::Nofile, files);
    set(Resource::Nproc, None);
    set(Resource::Core, None);
    set(Resource::Memlock, None);
    // The payload's group has a limit below the machine's memory; should memory run out
    // all the same, it must not be the agent that goes.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Parameters that containers find on a host whose engine is Docker, where the kernel sees one
/// that routes nothing and scales the rest with a small machine. A container's own come later.
fn kernel_parameters() {
    for (name, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("fs/inotify/max_user_watches", "524288"),
        ("fs/inotify/max_user_instances", "1024"),
        ("kernel/pid_max", "4194304"),
    ] {
        // A kernel that has not all of them is as good as before.
        let _ = std::fs::write(format!("/proc/sys/{name}"), value);
    }
}
