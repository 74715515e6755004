//! Becoming a supervisor: listen, detach, tell the caller where, serve.
//!
//! The sockets exist before the caller is told of them, and the fork happens while this
//! process has a single thread, so there is no second program to load.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use bulkhead_isolation::IsolationError;
use bulkhead_task::bundle::{self, Bundle};
use nix::unistd::{ForkResult, fork};

use crate::command_line::CommandLine;
use crate::server::{self, Sockets};
use crate::{memory, mounts};

/// Where sockets are when the bundle is not the daemon's.
const FOREIGN_ROOT: &str = "/run/bulkhead/containerd";

/// Runs `start`. Returns in the caller's process once the supervisor is under way, and in
/// the supervisor once it has ended.
pub fn run(command_line: &CommandLine) -> Result<(), IsolationError> {
    let failed = |what: &'static str| move |error| IsolationError::other(what, error);
    let path = match &command_line.bundle {
        Some(path) => path.clone(),
        None => std::env::current_dir().map_err(failed("find the bundle"))?,
    };
    let bundle = Bundle::new(path);
    let (sockets, address) =
        listen(&bundle, command_line).map_err(failed("listen for the Task API"))?;
    let log = log_file(&bundle).map_err(failed("open the supervisor's log"))?;
    bulkhead_isolation_process::seal_program();
    mounts::isolate().map_err(failed("make a mount namespace"))?;

    // SAFETY: this process has one thread.
    let forked = unsafe { fork() };
    match forked.map_err(|error| IsolationError::other("fork", error))? {
        ForkResult::Parent { child } => {
            let told = (|| {
                fs::write(bundle.supervisor_pid(), child.to_string())?;
                fs::write(bundle.address(), &address)?;
                let mut stdout = io::stdout();
                stdout.write_all(address.as_bytes())?;
                stdout.flush()
            })();
            told.map_err(failed("tell the address of the Task API"))
        }
        ForkResult::Child => {
            detach(&log).map_err(failed("detach from the caller"))?;
            memory::economise();
            trace(command_line.debug);
            server::run(bundle, sockets)
        }
    }
}

/// The sockets and the address of the first.
fn listen(bundle: &Bundle, command_line: &CommandLine) -> io::Result<(Sockets, String)> {
    let root = exec_root(bundle.path(), &command_line.namespace);
    let task = bundle::task_socket(&root, &command_line.id);
    let attach = bundle::attach_socket(&root, &command_line.id);
    if let Some(directory) = task.parent() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711).create(directory)?;
    }
    let address = format!("unix://{}", task.display());
    Ok((
        Sockets {
            task: bind(&task)?,
            attach: bind(&attach)?,
            paths: [task, attach],
        },
        address,
    ))
}

/// The daemon's bundles are in `<exec-root>/tasks`.
fn exec_root(bundle: &Path, namespace: &str) -> PathBuf {
    let parent = bundle.parent();
    match parent
        .and_then(Path::file_name)
        .zip(parent.and_then(Path::parent))
    {
        Some((name, root)) if name == "tasks" => root.to_owned(),
        _ => Path::new(FOREIGN_ROOT).join(namespace),
    }
}

/// Listens at a path, taking it over from a supervisor that was killed.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("a supervisor serves {} already", path.display()),
                ));
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

fn log_file(bundle: &Bundle) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(bundle.supervisor_log())
}

/// Leaves the caller's session and lets go of its streams, for whose end it waits.
fn detach(log: &File) -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(log)?;
    Ok(())
}

fn trace(debug: bool) {
    let level = if debug {
        tracing::Level::DEBUG
    } else {
        tracing::Level::WARN
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_beside_the_daemons_bundles() {
        assert_eq!(
            exec_root(Path::new("/run/bulkhead/tasks/abc"), "moby"),
            Path::new("/run/bulkhead")
        );
        assert_eq!(
            exec_root(
                Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s/abc"),
                "k8s"
            ),
            Path::new("/run/bulkhead/containerd/k8s")
        );
    }
}
