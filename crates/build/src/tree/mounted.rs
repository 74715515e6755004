//! A tree in a directory that is open: an image's root filesystem, mounted read-only.
//!
//! Every path is opened below that directory by one openat2 that follows no link, so nothing
//! outside can be reached whatever the image holds.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Kind, Mtime, Node, SourceTree};

/// Largest extended attribute that is copied.
const MAX_XATTR: usize = 64 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub struct MountedTree {
    root: OwnedFd,
}

impl MountedTree {
    /// The tree below an open directory.
    pub fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(
            &self.root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
    }
}

impl SourceTree for MountedTree {
    fn node(&self, path: &Path) -> io::Result<Option<Node>> {
        // With O_PATH a link at the end is opened itself.
        let parent = path.parent().unwrap_or(Path::new(""));
        let opened = match path.file_name() {
            None => self.open_at(Path::new(""), OFlags::PATH),
            Some(_) => self.open_at(parent, OFlags::PATH | OFlags::DIRECTORY),
        };
        let directory = match opened {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let name = path.file_name().unwrap_or_default();
        let flags = if name.is_empty() {
            AtFlags::EMPTY_PATH
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let stat = match rustix::fs::statat(&directory, name, flags) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let device = || {
            (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            )
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File {
                size: u64::try_from(stat.st_size).unwrap_or(0),
            },
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&directory, name, Vec::new())?;
                Kind::Symlink(OsString::from_vec(target.into_bytes()))
            }
            FileType::Fifo | FileType::Socket => Kind::Fifo,
            FileType::CharacterDevice => {
                let (major, minor) = device();
                Kind::CharacterDevice(major, minor)
            }
            FileType::BlockDevice => {
                let (major, minor) = device();
                Kind::BlockDevice(major, minor)
            }
            FileType::Unknown => return Err(io::Error::other("a file of an unknown type")),
        };
        let xattrs = match kind {
            Kind::Directory | Kind::File { .. } => {
                let file = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
                xattrs(&file)?
            }
            _ => BTreeMap::new(),
        };
        let identity =
            (stat.st_nlink > 1 && matches!(kind, Kind::File { .. })).then_some(stat.st_ino);
        Ok(Some(Node {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Mtime {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            xattrs,
            identity,
        }))
    }

    fn children(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let directory = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let file = self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        Ok(Box::new(File::from(file)))
    }
}

/// The attributes that belong to the file and not to this host.
fn xattrs(file: impl AsFd) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut out = BTreeMap::new();
    let mut names = vec![0_u8; MAX_XATTR];
    let length = match rustix::fs::flistxattr(&file, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(out),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0) {
        let Ok(text) = std::str::from_utf8(name) else {
            continue;
        };
        if text != "security.capability" && !text.starts_with("user.") {
            continue;
        }
        let mut value = vec![0_u8; MAX_XATTR];
        let name = std::ffi::OsStr::from_bytes(name);
        let length = rustix::fs::fgetxattr(&file, name, &mut value)?;
        value.truncate(length);
        out.insert(text.to_owned(), value);
    }
    Ok(out)
}
