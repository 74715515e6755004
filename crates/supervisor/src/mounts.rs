//! The supervisor's own mount namespace, and the mounts that containerd asks for.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

/// Gives this process a mount namespace that hears of the host's mounts and tells none of
/// its own. Must run before any thread exists.
pub fn isolate() -> io::Result<()> {
    // SAFETY: the file system state that threads would share is that of the only thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", slave)?)
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
