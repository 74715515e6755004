//! The helper: this binary executed again, single-threaded and short-lived, in which
//! libcontainer may change directories, clone and wait as it likes.

mod cgroup_mounts;
mod create;
mod devices;
mod docker_init;
mod exec;
mod files;
mod limits;
mod lookup;
mod mounts;
mod payload;
mod remap;
mod rootfs;
mod scaffold;
mod seccomp;
mod user;
mod way;
mod whole_dev;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use bulkhead_isolation::{IsolationError, Result};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::wire::{self, Order, Report};

pub use remap::mappings;
pub use rootfs::mount_image;

/// The first argument that makes the binary a helper.
pub const ARGUMENT: &str = "bulkhead-oci-runtime";
/// The path in a container at which the binary is the init of `--init`.
pub const INIT_PATH: &str = "/sbin/docker-init";

/// What every binary that uses this isolation does first in `main`, before a thread or a
/// runtime exists: when it was executed as a helper, or as the init of a container, this
/// does that work and returns its exit code.
pub fn helper_main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if Path::new(&name) == Path::new(INIT_PATH) {
        return Some(docker_init::run(arguments));
    }
    if arguments.next().is_some_and(|first| first == ARGUMENT) {
        return Some(run());
    }
    None
}

/// The path by which to execute this binary as a helper: a read-only mount of it that is
/// in no namespace. A payload can make the helper execute *it* again inside a container
/// (by `#!/proc/self/exe`), and could then write to the file behind `/proc/<pid>/exe`;
/// through this mount it cannot, whatever it mounts and remounts.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<(PathBuf, Option<OwnedFd>)> = OnceLock::new();
    let (path, _mount) = PROGRAM.get_or_init(|| match sealed_program() {
        Ok(mount) => {
            let number = std::os::fd::AsRawFd::as_raw_fd(&mount);
            (
                PathBuf::from(format!("/proc/self/fd/{number}")),
                Some(mount),
            )
        }
        Err(error) => {
            tracing::warn!(%error, "the supervisor's executable cannot be mounted read-only");
            (PathBuf::from("/proc/self/exe"), None)
        }
    });
    path
}

/// Makes that mount. To be called before the process leaves the mount namespace in which it
/// was executed, because afterwards it may not copy mounts of that namespace any more.
pub fn seal_program() {
    program();
}

fn sealed_program() -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, "/proc/self/exe", flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    set_attributes(&mount, &attributes, false)?;
    Ok(mount)
}

/// `mount_setattr(2)` on a mount that is open, and with `recursive` on those below it.
fn set_attributes(
    mount: &OwnedFd,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> rustix::io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attributes` outlives the call and is as large as it says; the path is an
    // empty C string, which with AT_EMPTY_PATH names the descriptor itself.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            std::os::fd::AsRawFd::as_raw_fd(mount),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of_val(attributes),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{ARGUMENT}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Carries out the order that comes on stdin.
fn serve() -> Result<()> {
    let failed = |what: &'static str| move |error| IsolationError::other(what, error);
    let name = c"bulkhead-oci";
    let _ = rustix::thread::set_name(name);
    // libcontainer gives the payload's stdin the number that the socket has now.
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|error| IsolationError::other("no order on stdin", error))?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let null = null.map_err(|error| IsolationError::other("open /dev/null", error))?;
    rustix::stdio::dup2_stdin(&null).map_err(|error| failed("replace stdin")(error.into()))?;
    let (order, streams) = wire::receive_order(control.as_fd()).map_err(failed("read order"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // libcontainer sets groups only when there are some, and leaves ours otherwise.
    rustix::thread::set_thread_groups(&[])
        .map_err(|error| failed("drop our groups")(error.into()))?;

    let diagnosis = diagnosis::record();
    let outcome = match order {
        Order::Create(order) => create::run(order, streams, control.as_fd()).map(Some),
        Order::Exec(order) => match exec::run(order, streams, control.as_fd()) {
            Ok(()) => return Ok(()),
            Err(error) => Err(error),
        },
        Order::Mount(order) => files::mount(&order).map(|()| None),
        Order::Files(order) => return files::serve(&order, streams),
    };
    let report = match outcome {
        Ok(Some(pid)) => Report::Created { pid },
        Ok(None) => Report::Done,
        Err(mut error) => {
            if let Some(detail) = diagnosis.and_then(diagnosis::first) {
                error.message = format!("{}: {detail}", error.message);
            }
            Report::Failed(error)
        }
    };
    wire::send_report(control.as_fd(), report).map_err(failed("send report"))
}

/// libcontainer's errors name what it was doing, and its log says what went wrong, in a
/// process that has ended by then: the log is kept in memory that all of them share.
mod diagnosis {
    use std::fs::File;
    use std::io::{Read, Seek};
    use std::sync::Mutex;

    use rustix::fs::MemfdFlags;
    use tracing::Level;

    /// Most bytes of the log that are looked at.
    const MAX_LOG: u64 = 16 * 1024;

    pub fn record() -> Option<File> {
        let memory = rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC).ok()?;
        let file = File::from(memory);
        let writer = file.try_clone().ok()?;
        tracing_subscriber::fmt()
            .with_max_level(Level::ERROR)
            .with_target(false)
            .with_level(false)
            .with_ansi(false)
            .without_time()
            .with_writer(Mutex::new(writer))
            .try_init()
            .ok()?;
        Some(file)
    }

    /// The first error logged, which is the one closest to the cause.
    pub fn first(mut file: File) -> Option<String> {
        file.rewind().ok()?;
        let mut text = String::new();
        file.take(MAX_LOG).read_to_string(&mut text).ok()?;
        text.lines().next().map(str::to_owned)
    }
}

/// A message with those of all its causes, without saying twice what a cause repeats.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    message
}
