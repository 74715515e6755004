//! The way to what is mounted, and to the working directory, through links of the image that
//! lead to nothing yet.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links that are followed on one way, as the kernel does.
const MAX_LINKS: usize = 40;

/// Makes what a link on the way to `path` leads to, within the root, as runc does: directories,
/// or at the very end a file. A way without such a link is left to libcontainer.
///
/// # Errors
/// What the kernel says; `LOOP` for too many links.
pub fn make(root: BorrowedFd<'_>, path: &Path, file: bool) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => {}
        // There, or wrong in a way that libcontainer tells.
        _ => return Ok(()),
    }
    // Twice, since nothing is to be made where there is no link.
    match walk(root, path, None)? {
        true => walk(root, path, Some(file)).map(drop),
        false => Ok(()),
    }
}

/// Goes the way; whether a link was on it. With `making` it makes what is missing.
fn walk(root: BorrowedFd<'_>, path: &Path, making: Option<bool>) -> rustix::io::Result<bool> {
    let mut ahead = parts(path);
    // Without links, so that it means the same from the root whenever it is opened.
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let directory = open(root, &at)?;
        let found = rustix::fs::statat(&directory, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        match found.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Symlink) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&directory, &name, Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    at.clear();
                }
                for part in parts(&target).into_iter().rev() {
                    ahead.push_front(part);
                }
                continue;
            }
            Ok(_) => {}
            Err(Errno::NOENT) => match making {
                None => return Ok(links > 0),
                Some(file) => make_one(directory.as_fd(), &name, file && ahead.is_empty())?,
            },
            Err(error) => return Err(error),
        }
        at.push(name);
    }
    Ok(links > 0)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    parts.collect()
}

fn open(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

fn make_one(directory: BorrowedFd<'_>, name: &OsStr, file: bool) -> rustix::io::Result<()> {
    if !file {
        return rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}
