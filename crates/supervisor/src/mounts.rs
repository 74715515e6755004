//! The supervisor's own mount namespace, and the mounts that containerd asks for.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use containerd_shim_protos::types::mount::Mount;
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// The mount namespace that this process came from.
static HOST: OnceLock<File> = OnceLock::new();

/// Gives this process a mount namespace that hears of the host's mounts and tells none of
/// its own. Must run before any thread exists.
pub fn isolate() -> io::Result<()> {
    let host = File::open("/proc/self/ns/mnt")?;
    // Set once: a process leaves the host's namespace once.
    let _ = HOST.set(host);
    // SAFETY: the file system state that threads would share is that of the only thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", slave)?)
}

/// Takes a mount, or a directory or file in one, out of the host's namespace: what is shared
/// there stays so, while our copies of the host's mounts only hear of it. Not attached yet.
pub fn take_from_host(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let namespace = HOST.get().ok_or(io::ErrorKind::Unsupported)?.try_clone()?;
    take(namespace, path.to_owned(), recursive)
}

/// The same of another namespace.
pub fn take(namespace: File, path: PathBuf, recursive: bool) -> io::Result<OwnedFd> {
    // A namespace is entered by a thread that shares neither root nor working directory with
    // others, so by one of its own that ends there.
    let taken = std::thread::spawn(move || -> io::Result<OwnedFd> {
        // SAFETY: what is no longer shared is this thread's view of root and directory.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
        rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::Mount),
        )?;
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        Ok(rustix::mount::open_tree(CWD, &path, flags)?)
    });
    taken
        .join()
        .map_err(|_| io::Error::other("the thread ended early"))?
}

/// A root filesystem as containerd describes it: each mount over the one before. Unmounted
/// when it is dropped.
#[derive(Debug)]
pub struct RootMounts {
    target: PathBuf,
    count: usize,
}

impl RootMounts {
    /// Mounts all of them, or none.
    pub fn mount(mounts: &[Mount], target: &Path) -> io::Result<Self> {
        let mut root = Self {
            target: target.to_owned(),
            count: 0,
        };
        for described in mounts {
            mount(described, target)?;
            root.count += 1;
        }
        Ok(root)
    }
}

impl Drop for RootMounts {
    fn drop(&mut self) {
        for _ in 0..self.count {
            if let Err(error) = rustix::mount::unmount(&self.target, UnmountFlags::DETACH) {
                tracing::warn!(%error, "the root stays mounted until the supervisor ends");
            }
        }
    }
}

fn mount(mount: &Mount, target: &Path) -> io::Result<()> {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in &mount.options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => flags &= !MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "bind" | "rbind" => {}
            other => data.push(other),
        }
    }
    let recursive = mount.options.iter().any(|option| option == "rbind");
    if recursive || mount.type_ == "bind" {
        rustix::mount::mount_bind_recursive(&mount.source, target)?;
        if flags.contains(MountFlags::RDONLY) {
            rustix::mount::mount_remount(target, flags | MountFlags::BIND, c"")?;
        }
        return Ok(());
    }
    let data = std::ffi::CString::new(data.join(",")).map_err(io::Error::other)?;
    rustix::mount::mount(&mount.source, target, &mount.type_, flags, &*data)?;
    Ok(())
}
