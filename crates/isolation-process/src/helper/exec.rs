//! Making a further process in a container that runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{ContainerStatus, State};
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{RootBuilder, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::create::{identify, open_root, write_spec};
use super::payload::Payload;
use super::remap::Entry;
use super::{limits, with_causes};
use crate::wire::ExecOrder;

/// Makes the process and returns once its payload runs; until then the process itself
/// reports, because libcontainer does not return.
pub fn run(order: ExecOrder, streams: Vec<OwnedFd>, control: BorrowedFd<'_>) -> Result<()> {
    let mut spec = order.spec;
    // As the container itself sees it, with what is mounted over its root.
    let root = open_root(Path::new(&format!("/proc/{}/root", order.init_pid)))?;
    identify(&mut spec, root.as_fd())?;
    if let Some(process) = spec.process_mut() {
        limits::clamp(process);
        check_working_directory(root.as_fd(), process.cwd())?;
    }
    drop(root);
    let entry = Entry::take(&mut spec, order.init_pid, &streams)?;
    let payload = Payload::take(&mut spec, control)?.entering(entry);

    // A directory of its own instead of the container's: libcontainer leaves sockets in it
    // and reads the specification from it.
    let bundle = order.directory.join("oci");
    set_root(&mut spec, &order.directory)?;
    write_spec(&spec, &bundle)?;
    let state = order.directory.join(&order.id);
    let made = std::fs::create_dir(&state);
    made.map_err(|error| IsolationError::other("create the state of an exec", error))?;
    State::new(
        &order.id,
        ContainerStatus::Running,
        Some(order.init_pid),
        bundle,
    )
    .save(&state)
    .map_err(|error| IsolationError::other("save the state of an exec", error))?;

    let failed = |error: libcontainer::error::LibcontainerError| {
        IsolationError::new(ErrorKind::Other, with_causes(&error))
    };
    let process_file = order.directory.join("process.json");
    let process = serde_json::to_vec(spec.process())
        .map_err(|error| IsolationError::other("encode the process", error))?;
    std::fs::write(&process_file, process)
        .map_err(|error| IsolationError::other("write the process", error))?;
    let mut builder = ContainerBuilder::new(order.id, SyscallType::default())
        .with_root_path(&order.directory)
        .map_err(failed)?
        .with_executor(payload)
        .with_console_socket(order.console_socket);
    let mut streams = streams.into_iter();
    if let (Some(stdin), Some(stdout), Some(stderr)) =
        (streams.next(), streams.next(), streams.next())
    {
        builder = builder
            .with_stdin(stdin)
            .with_stdout(stdout)
            .with_stderr(stderr);
    }
    builder
        .as_tenant()
        .with_detach(true)
        .with_process(Some(process_file))
        .build()
        .map(|_pid| ())
        .map_err(failed)
}

fn set_root(spec: &mut Spec, path: &Path) -> Result<()> {
    let root = RootBuilder::default().path(path).readonly(false).build();
    spec.set_root(Some(
        root.map_err(|error| IsolationError::other("set the root", error))?,
    ));
    Ok(())
}

/// An exec makes no directories; the answer is the one that Docker's users know.
fn check_working_directory(root: BorrowedFd<'_>, cwd: &PathBuf) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let reason = match rustix::fs::openat2(root, cwd, flags, Mode::empty(), resolve) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => "no such file or directory".to_owned(),
        Err(Errno::NOTDIR) => "not a directory".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(IsolationError::new(
        ErrorKind::WorkingDirectory,
        format!(
            "chdir to cwd (\"{}\") set in config.json failed: {reason}",
            cwd.display()
        ),
    ))
}
