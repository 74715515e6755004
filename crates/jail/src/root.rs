//! A root directory with nothing in it, or with a little that can only be read.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::UnshareFlags;

use crate::error::step;
use crate::{JailError, leave};

/// A directory that every system has; something of ours covers it in our namespace.
const STAGE: &CStr = c"/proc";
/// What is in a place that a jail makes can neither be run with rights nor be a device.
const NONE: MountFlags = MountFlags::NODEV
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NOSUID);

/// Takes a copy of the host's mounts that the host never sees changes of. With `follow` what
/// the host mounts later on appears here. The caller must have a single thread.
///
/// # Errors
/// What the system says.
pub fn own_mounts(follow: bool) -> Result<(), JailError> {
    leave(UnshareFlags::NEWNS)?;
    let propagation = if follow {
        MountPropagationFlags::DOWNSTREAM
    } else {
        MountPropagationFlags::PRIVATE
    };
    rustix::mount::mount_change("/", propagation | MountPropagationFlags::REC)
        .map_err(step("leave the host's mounts"))
}

/// Moves into a mount namespace whose only file system is an empty directory. The caller must
/// have a single thread.
///
/// # Errors
/// What the system says, with what was tried.
pub fn empty_root() -> Result<(), JailError> {
    own_mounts(false)?;
    let flags = NONE | MountFlags::RDONLY;
    rustix::mount::mount(
        "tmpfs",
        STAGE,
        "tmpfs",
        flags,
        c"size=4k,nr_inodes=1,mode=0555",
    )
    .map_err(step("mount an empty directory"))?;
    change_root(Path::new("/proc"))
}

/// Makes a mount the root, and lets go of the old one with all that is on it.
///
/// # Errors
/// What the system says, with what was tried.
pub fn change_root(root: &Path) -> Result<(), JailError> {
    rustix::process::chdir(root).map_err(step("enter the new root"))?;
    // Stacks the old root on the new one, from where it is taken off.
    rustix::process::pivot_root(c".", c".").map_err(step("change the root"))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(step("leave the host's files"))?;
    rustix::process::chdir(c"/").map_err(step("enter the root"))
}

/// Sets `MOUNT_ATTR_*` attributes and the propagation (`MS_SLAVE`…, 0 leaves it) of a mount
/// and those below it, all or none.
///
/// # Errors
/// What the system says.
pub fn restrict_mount(tree: impl AsFd, set: u64, propagation: u64) -> io::Result<()> {
    set_attributes(tree.as_fd(), set, propagation, libc::AT_RECURSIVE)
}

/// Makes a mount read-only, and none of those below it.
///
/// # Errors
/// What the system says.
pub fn protect_mount(tree: impl AsFd) -> io::Result<()> {
    set_attributes(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, 0)
}

fn set_attributes(
    tree: BorrowedFd<'_>,
    set: u64,
    propagation: u64,
    depth: libc::c_int,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    // SAFETY: the call reads the path and the structure, which live through it and have the
    // length that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | depth,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A root directory of chosen files and directories of the host, all read-only. It is put
/// together while the host's files are in sight and entered later, by a child.
#[derive(Debug, Default)]
pub struct ReadOnlyRoot {
    entries: Vec<(PathBuf, Entry)>,
}

#[derive(Debug)]
enum Entry {
    /// A mount that is not attached anywhere yet.
    Tree { tree: OwnedFd, directory: bool },
    /// A symbolic link.
    Link(PathBuf),
}

impl ReadOnlyRoot {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows a file or directory of the host at the same path, if it exists. A symbolic link
    /// is shown as what it is.
    ///
    /// # Errors
    /// What the system says.
    pub fn show_if_exists(&mut self, path: &Path) -> io::Result<()> {
        let metadata = match std::fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let entry = if metadata.is_symlink() {
            Entry::Link(std::fs::read_link(path)?)
        } else {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = rustix::mount::open_tree(CWD, path, flags)?;
            tree_entry(tree, metadata.is_dir(), libc::MOUNT_ATTR_NODEV)?
        };
        self.entries.push((path.to_owned(), entry));
        Ok(())
    }

    /// Shows an open file at this path. `device`: whether it is one, and may be used.
    ///
    /// # Errors
    /// What the system says.
    pub fn show_file(&mut self, path: &Path, file: impl AsFd, device: bool) -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(file, c"", flags)?;
        let set = if device { 0 } else { libc::MOUNT_ATTR_NODEV };
        self.entries
            .push((path.to_owned(), tree_entry(tree, false, set)?));
        Ok(())
    }

    /// Moves this process into it. To be called in a child of a process with one thread.
    ///
    /// # Errors
    /// What the system says, with what was tried.
    pub fn enter(&self) -> Result<(), JailError> {
        own_mounts(false)?;
        rustix::mount::mount("tmpfs", STAGE, "tmpfs", NONE, c"size=256k,mode=0755")
            .map_err(step("mount a place for the files"))?;
        let stage = Path::new("/proc");
        for (path, entry) in &self.entries {
            // Shown paths are absolute, which a join would take literally.
            let place = stage.join(path.strip_prefix("/").unwrap_or(path));
            attach(&place, entry).map_err(step("show a file in the jail"))?;
        }
        rustix::mount::mount_remount(stage, NONE | MountFlags::BIND | MountFlags::RDONLY, c"")
            .map_err(step("protect the root"))?;
        change_root(stage)
    }
}

fn tree_entry(tree: OwnedFd, directory: bool, set: u64) -> io::Result<Entry> {
    let set = set | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    restrict_mount(&tree, set, libc::MS_PRIVATE)?;
    Ok(Entry::Tree { tree, directory })
}

fn attach(place: &Path, entry: &Entry) -> io::Result<()> {
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match entry {
        Entry::Link(target) => return std::os::unix::fs::symlink(target, place),
        Entry::Tree {
            directory: true, ..
        } => std::fs::create_dir_all(place)?,
        Entry::Tree { .. } => drop(std::fs::File::create(place)?),
    }
    if let Entry::Tree { tree, .. } = entry {
        rustix::mount::move_mount(
            tree,
            c"",
            CWD,
            place,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
    }
    Ok(())
}
