//! What Docker makes in the root of every container: files to mount others at, in the place
//! of links that lead somewhere else, and what tells programs where they are.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use bulkhead_files::{MTAB, MTAB_TARGET};
use bulkhead_isolation::{InjectedFile, IsolationError, Result};
use oci_spec::runtime::Mount;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

/// Makes it, where there are files to inject; else it is not Docker's container.
///
/// # Errors
/// When a link can be no file.
pub fn make(root: BorrowedFd<'_>, injected: &[InjectedFile]) -> Result<()> {
    if injected.is_empty() {
        return Ok(());
    }
    for file in injected {
        replace_link(root, &file.destination).map_err(|error| {
            let path = file.destination.display();
            IsolationError::other(format!("put a file in the place of the link {path}"), error)
        })?;
    }
    // A root that takes none of these, or has them, is as good as it was.
    let _ = empty_file(root, OsStr::new(".dockerenv"), 0o755);
    let _ = rustix::fs::mkdirat(root, "etc", Mode::from_raw_mode(0o755));
    let (Some(etc), Some(name)) = (Path::new(MTAB).parent(), Path::new(MTAB).file_name()) else {
        return Ok(());
    };
    if let Ok(etc) = find(root, etc) {
        let _ = rustix::fs::symlinkat(MTAB_TARGET, etc, name);
    }
    Ok(())
}

/// What a link leads to is the image's business, and may not be there.
fn replace_link(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    // What is missing is made later, and what is wrong is found then.
    let Ok(directory) = find(root, parent) else {
        return Ok(());
    };
    let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW);
    if !stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink()) {
        return Ok(());
    }
    rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
    empty_file(directory.as_fd(), name, 0o644)
}

fn empty_file(directory: BorrowedFd<'_>, name: &OsStr, mode: u32) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode)).map(drop)
}

fn find(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// Has every tmpfs whose mode nobody gave keep that of the directory of the root that it
/// covers, as runc does: `/root` is not everybody's because it is in memory.
pub fn keep_modes(mounts: &mut [Mount], root: BorrowedFd<'_>) {
    for at in 0..mounts.len() {
        let (before, rest) = mounts.split_at_mut(at);
        let Some(mount) = rest.first_mut() else {
            continue;
        };
        let mut options = mount.options().clone().unwrap_or_default();
        let covers_another = before
            .iter()
            .any(|other| mount.destination().starts_with(other.destination()));
        if mount.typ().as_deref() != Some("tmpfs")
            || covers_another
            || options.iter().any(|option| option.starts_with("mode="))
        {
            continue;
        }
        // One that is made for it gets the default.
        let covered = find(root, mount.destination()).and_then(rustix::fs::fstat);
        if let Ok(stat) = covered {
            options.push(format!("mode={:o}", stat.st_mode & 0o7777));
            mount.set_options(Some(options));
        }
    }
}
