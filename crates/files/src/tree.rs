//! Walking and removing trees by descriptors: no name is ever followed, so that somebody who
//! swaps names meanwhile gets entries left out and nothing else.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::protocol::{FilesError, FilesErrorKind};

/// Deepest tree; each level holds descriptors.
const MAX_DEPTH: usize = 400;

pub(crate) type Result<T> = std::result::Result<T, FilesError>;

/// Something in a tree.
pub(crate) struct Node<'a> {
    /// The directory that it is in.
    pub dir: BorrowedFd<'a>,
    /// The directory of the same path in the tree that this one is compared with.
    pub base: Option<BorrowedFd<'a>>,
    pub name: &'a CString,
    /// From the top of the tree, without a slash in front.
    pub path: &'a [u8],
    pub stat: &'a Stat,
}

impl Node<'_> {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// What is there in the tree that this one is compared with.
    pub fn base_stat(&self) -> Result<Option<Stat>> {
        match self.base {
            Some(base) => look(base, self.name, self.path),
            None => Ok(None),
        }
    }
}

/// Whether to go on below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Descend {
    Yes,
    No,
}

struct Level {
    dir: OwnedFd,
    base: Option<OwnedFd>,
    names: std::vec::IntoIter<CString>,
    /// Length of the path that leads here.
    length: usize,
}

/// Shows everything below `top` to `visit`, in the order of names, directories before what is
/// in them; `base` goes along where it has the same directories.
pub(crate) fn walk(
    top: BorrowedFd<'_>,
    base: Option<BorrowedFd<'_>>,
    visit: &mut dyn FnMut(&Node<'_>) -> Result<Descend>,
) -> Result<()> {
    let mut path = Vec::new();
    let dir = reopen(top)?;
    let mut levels = vec![Level {
        names: names(dir.as_fd())?.into_iter(),
        dir,
        base: base.map(reopen).transpose()?,
        length: 0,
    }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            continue;
        };
        path.truncate(level.length);
        if level.length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let Some(stat) = look(level.dir.as_fd(), &name, &path)? else {
            continue;
        };
        let node = Node {
            dir: level.dir.as_fd(),
            base: level.base.as_ref().map(AsFd::as_fd),
            name: &name,
            path: &path,
            stat: &stat,
        };
        if visit(&node)? == Descend::No || node.kind() != FileType::Directory {
            continue;
        }
        let Some(dir) = open_directory(level.dir.as_fd(), &name)
            .map_err(|error| FilesError::system("open", &path, error))?
        else {
            continue;
        };
        let base = match &level.base {
            Some(base) => open_directory(base.as_fd(), &name)
                .map_err(|error| FilesError::system("open", &path, error))?,
            None => None,
        };
        if levels.len() == MAX_DEPTH {
            return Err(FilesError::new(
                FilesErrorKind::Invalid,
                format!("directories are nested more than {MAX_DEPTH} deep"),
            ));
        }
        let names = names(dir.as_fd())?.into_iter();
        levels.push(Level {
            dir,
            base,
            names,
            length: path.len(),
        });
    }
    Ok(())
}

/// A name's stat; `None` when there is nothing.
pub(crate) fn look(dir: BorrowedFd<'_>, name: &CString, path: &[u8]) -> Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(FilesError::system("lstat", path, error)),
    }
}

/// A descriptor to read a directory by; `None` when the name is none (any more).
pub(crate) fn open_directory(
    dir: BorrowedFd<'_>,
    name: &CString,
) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A descriptor of the same directory that can be read, whatever the given one can.
fn reopen(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, c".", flags, Mode::empty())
        .map_err(|error| FilesError::system("open", b".", error))
}

/// A directory's names, sorted.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let failed = |error| FilesError::system("read a directory", b"", error);
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Extended attributes of a name in a directory, sorted; without those that overlayfs keeps
/// its own notes in. Changes the working directory.
pub(crate) fn xattrs(dir: BorrowedFd<'_>, name: &CString) -> Vec<(Vec<u8>, Vec<u8>)> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX.
    let mut list = vec![0_u8; 64 << 10];
    // There is no call that takes a directory's descriptor before Linux 6.13.
    let listed = rustix::process::fchdir(dir)
        .and_then(|()| rustix::fs::llistxattr(name.as_c_str(), &mut list[..]));
    let Ok(length) = listed else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut value = Vec::new();
    for key in list[..length].split(|byte| *byte == 0) {
        if key.is_empty() || !is_kept(key) {
            continue;
        }
        let Ok(key_text) = CString::new(key) else {
            continue;
        };
        value.resize(64 << 10, 0);
        if let Ok(length) = rustix::fs::lgetxattr(name.as_c_str(), &key_text, &mut value[..]) {
            found.push((key.to_vec(), value[..length].to_vec()));
        }
    }
    found.sort_unstable();
    found
}

/// Whether an attribute is a file's own, and not the storage's or the host's.
pub(crate) fn is_kept(key: &[u8]) -> bool {
    let kept: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];
    kept.iter().any(|prefix| key.starts_with(prefix))
        && !key.starts_with(b"trusted.overlay.")
        && !matches!(key, b"security.selinux" | b"security.ima" | b"security.evm")
}

/// Whether overlayfs hides everything that is below this directory in the layers under it.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>, name: &CString) -> bool {
    let mut value = [0_u8; 4];
    let read = rustix::process::fchdir(dir).and_then(|()| {
        rustix::fs::lgetxattr(name.as_c_str(), c"trusted.overlay.opaque", &mut value[..])
    });
    read.is_ok_and(|length| value[..length] == *b"y")
}

/// Whether it is overlayfs's mark that a name is gone.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Removes whatever a name is, with everything below it.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &CString, depth: usize) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    if depth == MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let Some(opened) = open_directory(dir, name)? else {
        return Ok(());
    };
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        let below = entry.file_name();
        if below != c"." && below != c".." {
            match remove(opened.as_fd(), &below.to_owned(), depth + 1) {
                // Somebody else was faster.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}
