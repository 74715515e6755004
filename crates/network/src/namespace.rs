//! Namespaces at paths.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::thread;

use bulkhead_userns::Owner;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use crate::loopback;

/// What can go wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetworkNamespaceError {
    /// The directory of the files cannot be prepared or read.
    #[error("cannot prepare the directory of network namespaces {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be made: its directory is missing, or it exists.
    #[error("cannot make the file of the network namespace {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace cannot be made.
    #[error("cannot make the network namespace {path}")]
    Create {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace cannot be removed.
    #[error("cannot remove the network namespace {path}")]
    Remove {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A namespace and the file that keeps it alive; it stays when this value is dropped.
#[derive(Debug)]
pub struct NetworkNamespace {
    path: PathBuf,
}

impl NetworkNamespace {
    /// Makes a namespace with loopback up at `path`, which must not exist. On an error
    /// nothing is left. Takes about a millisecond; needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// [`NetworkNamespaceError::File`], [`NetworkNamespaceError::Create`].
    pub fn create(path: &Path) -> Result<Self, NetworkNamespaceError> {
        Self::create_with(path, enter)
    }

    /// The same of a user namespace, whose root has all rights over it.
    ///
    /// # Errors
    /// As [`NetworkNamespace::create`].
    pub fn create_of(path: &Path, owner: Owner<'_>) -> Result<Self, NetworkNamespaceError> {
        Self::create_with(path, |target| {
            let namespace = bulkhead_userns::network(owner)?;
            mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), target)?;
            within(target, loopback::up)
        })
    }

    fn create_with(
        path: &Path,
        make: impl FnOnce(&Path) -> io::Result<()> + Send,
    ) -> Result<Self, NetworkNamespaceError> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|source| NetworkNamespaceError::File {
                path: path.to_owned(),
                source,
            })?;
        // A namespace belongs to a thread: one makes it and ends.
        let made = thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || make(path))
                .and_then(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
                })
        });
        if let Err(source) = made {
            // Whether it was mounted yet or not, neither mount nor file may stay.
            let _ = remove(path);
            return Err(NetworkNamespaceError::Create {
                path: path.to_owned(),
                source,
            });
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Runs on a thread of its own.
fn enter(target: &Path) -> io::Result<()> {
    // SAFETY: only this thread's network namespace changes, and the thread ends right after.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    loopback::up()?;
    mount_bind("/proc/thread-self/ns/net", target)?;
    Ok(())
}

/// Runs something on a thread that is in the namespace at `path`, and waits for it. Sockets
/// that it makes stay in that namespace wherever they are used.
///
/// # Errors
/// That the namespace is not there, and what `work` says.
pub fn within<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = fs::File::open(path)?;
    thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            rustix::thread::move_into_link_name_space(
                namespace.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
            work()
        })?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// Makes the directory and the private mount on it. What an earlier daemon left of either is
/// used as it is.
///
/// # Errors
/// [`NetworkNamespaceError::Directory`]; needs CAP_SYS_ADMIN.
pub fn prepare_directory(path: &Path) -> Result<(), NetworkNamespaceError> {
    let failed = |source: io::Error| NetworkNamespaceError::Directory {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(path).map_err(failed)?;
    // MS_PRIVATE succeeds on a mount point only (EINVAL elsewhere): that tells which it is.
    match mount_change(path, MountPropagationFlags::PRIVATE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) => mount_bind(path, path)
            .and_then(|()| mount_change(path, MountPropagationFlags::PRIVATE))
            .map_err(|error| failed(error.into())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Takes the mount and the directory away when no namespace is left in it; leaves both
/// otherwise. For a daemon that stops.
pub fn release_directory(path: &Path) {
    let empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if empty {
        if let Err(error) = unmount(path, UnmountFlags::DETACH) {
            tracing::debug!(path = %path.display(), %error, "the directory stays mounted");
        }
        let _ = fs::remove_dir(path);
    }
}

/// Removes the namespace at `path`; succeeds when there is none. It ends once its last
/// process has.
///
/// # Errors
/// [`NetworkNamespaceError::Remove`].
pub fn remove(path: &Path) -> Result<(), NetworkNamespaceError> {
    let failed = |source: io::Error| NetworkNamespaceError::Remove {
        path: path.to_owned(),
        source,
    };
    match unmount(path, UnmountFlags::DETACH) {
        // EINVAL: a file that nothing is mounted on, which a crash in `create` leaves.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(failed(error.into())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Removes every namespace in `directory` whose file name is not in `keep`; returns how many.
/// A directory that is not there has none.
///
/// # Errors
/// The first [`NetworkNamespaceError`]; the others are tried all the same.
pub fn sweep(directory: &Path, keep: &HashSet<OsString>) -> Result<usize, NetworkNamespaceError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => {
            return Err(NetworkNamespaceError::Directory {
                path: directory.to_owned(),
                source,
            });
        }
    };
    let mut removed = 0;
    let mut first_error = None;
    for entry in entries.flatten() {
        if keep.contains(&entry.file_name()) {
            continue;
        }
        match remove(&entry.path()) {
            Ok(()) => removed += 1,
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(removed), Err)
}
