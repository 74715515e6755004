//! The layout of a bundle and the supervisor's addresses.
//!
//! The daemon makes `<exec-root>/tasks/<id>/` (mode 0700) with `config.json` in it and
//! starts `containerd-shim-bulkhead-v2 -namespace moby -id <id> -address "" start` with
//! that directory as its working directory, as containerd does; the supervisor prints the
//! address of its Task API socket and leaves it in `address`.
//!
//! Sockets live in `<exec-root>/s/`, since `sun_path` holds 107 bytes and bundles are long:
//! their names are the first 24 characters of the ID with `.task` and `.attach`. The
//! supervisor finds `<exec-root>` as the grandparent of its bundle when the bundle's parent
//! is named `tasks`; under containerd it uses a directory of its own in `/run/bulkhead`.

use std::path::{Path, PathBuf};

/// A bundle's file names.
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// The bundle at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The daemon's bundle for this container.
    pub fn of(exec_root: &Path, id: &str) -> Self {
        Self::new(exec_root.join("tasks").join(id))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The OCI specification, written by the daemon.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The address of the Task API socket, `unix://…`, written by the supervisor.
    pub fn address(&self) -> PathBuf {
        self.path.join("address")
    }

    /// The supervisor's PID in decimal, written by the supervisor.
    pub fn supervisor_pid(&self) -> PathBuf {
        self.path.join("shim.pid")
    }

    /// Where the supervisor mounts binds that need it, for itself.
    pub fn binds(&self) -> PathBuf {
        self.path.join("binds")
    }

    /// How init ended: an [`crate::exit_record::ExitRecord`], written once, atomically,
    /// before any waiter is answered.
    pub fn exit_record(&self) -> PathBuf {
        self.path.join("exit.json")
    }

    /// The supervisor's own log.
    pub fn supervisor_log(&self) -> PathBuf {
        self.path.join("shim.log")
    }
}

/// The Task API socket of this container.
pub fn task_socket(exec_root: &Path, id: &str) -> PathBuf {
    socket(exec_root, id, "task")
}

/// The attach socket of this container, see [`crate::attach`].
pub fn attach_socket(exec_root: &Path, id: &str) -> PathBuf {
    socket(exec_root, id, "attach")
}

fn socket(exec_root: &Path, id: &str, kind: &str) -> PathBuf {
    let short: String = id.chars().take(24).collect();
    exec_root.join("s").join(format!("{short}.{kind}"))
}
