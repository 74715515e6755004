//! That one daemon at a time owns a data root: the lock on it, and the pidfile.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why this daemon may not run.
#[derive(Debug, thiserror::Error)]
pub enum LifetimeError {
    /// The pidfile names a process that lives.
    #[error(
        "pidfile {path} names the running process {pid}: stop that daemon or choose another --pidfile"
    )]
    PidfileHeld {
        /// The pidfile.
        path: PathBuf,
        /// Who holds it.
        pid: u32,
    },
    /// Another daemon works on the data root.
    #[error("data root {0} is in use by another daemon: choose another --data-root")]
    DataRootHeld(PathBuf),
    /// A file could not be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LifetimeError {
    move |source| LifetimeError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// The lock on a data root; held until dropped.
#[derive(Debug)]
pub struct DataRootLock {
    _file: File,
}

impl DataRootLock {
    /// Makes the data root if it is missing and locks it.
    ///
    /// # Errors
    /// [`LifetimeError::DataRootHeld`] when another daemon has it.
    pub fn acquire(data_root: &Path) -> Result<Self, LifetimeError> {
        make_private_dir(data_root)?;
        let path = data_root.join("daemon.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        // A child of the last owner has a copy of its lock for a moment, until its exec.
        for attempt in 1.. {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if attempt < 10 => {
                    std::thread::sleep(std::time::Duration::from_millis(30));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(LifetimeError::DataRootHeld(data_root.to_owned()));
                }
                Err(errno) => return Err(io_error("lock", &path)(errno.into())),
            }
        }
        Ok(Self { _file: file })
    }
}

/// Makes a directory (and its parents) that only root enters.
///
/// # Errors
/// What the file system says.
pub fn make_private_dir(path: &Path) -> Result<(), LifetimeError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(io_error("make directory", path))
}

/// The pidfile; removed when dropped.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
}

impl Pidfile {
    /// Writes the pidfile, unless the one there names a live process other than this.
    ///
    /// # Errors
    /// [`LifetimeError::PidfileHeld`].
    pub fn acquire(path: &Path) -> Result<Self, LifetimeError> {
        if let Ok(text) = std::fs::read_to_string(path)
            && let Ok(pid) = text.trim().parse::<u32>()
            && pid != std::process::id()
            && is_alive(pid)
        {
            return Err(LifetimeError::PidfileHeld {
                path: path.to_owned(),
                pid,
            });
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io_error("make directory", parent))?;
        }
        std::fs::write(path, std::process::id().to_string()).map_err(io_error("write", path))?;
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

/// Whether there is such a process. One that was killed and that nobody has waited for yet
/// is none: `/proc/<pid>/stat` says so behind the name in parentheses (`proc_pid_stat(5)`).
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest.trim_start());
        !state.starts_with(['Z', 'X'])
    })
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "pidfile not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_process_holds_the_pidfile_and_a_dead_one_does_not() {
        let dir = std::env::temp_dir().join(format!("bulkhead-pidfile-{}", std::process::id()));
        let path = dir.join("pid");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(&path, std::os::unix::process::parent_id().to_string()).unwrap();
        assert!(matches!(
            Pidfile::acquire(&path),
            Err(LifetimeError::PidfileHeld { .. })
        ));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        // It is a zombie from its exit until it is waited for.
        let gone = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let id = rustix::process::Pid::from_child(&child);
        rustix::process::waitid(rustix::process::WaitId::Pid(id), gone).unwrap();
        assert!(!is_alive(pid));
        child.wait().unwrap();
        std::fs::write(&path, pid.to_string()).unwrap();
        drop(Pidfile::acquire(&path).unwrap());
        assert!(!path.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_data_root_has_one_daemon() {
        let dir = std::env::temp_dir().join(format!("bulkhead-root-{}", std::process::id()));
        let lock = DataRootLock::acquire(&dir).unwrap();
        assert!(matches!(
            DataRootLock::acquire(&dir),
            Err(LifetimeError::DataRootHeld(_))
        ));
        drop(lock);
        DataRootLock::acquire(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
