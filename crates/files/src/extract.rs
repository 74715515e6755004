//! An archive's entries into a directory, by Docker's rules.
//!
//! Symbolic links that are in the way are followed as anything in the container would follow
//! them: within the root of this process. The last part of a name never is.

use std::ffi::CString;
use std::io::{BufRead, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_tar::{Entry, EntryKind, TarError, TarStream, readable};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::protocol::{CHUNK, FilesError, FilesErrorKind};
use crate::tree::{Result, is_kept, look, remove};

/// Most bytes of names of directories whose times are set at the end.
const MAX_LATER: usize = 64 << 20;
/// Longest name, bytes.
const MAX_PATH: usize = 4095;

/// How to unpack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// A directory does not replace something else, nor the reverse.
    pub no_overwrite_dir_non_dir: bool,
    /// Whose everything is to be.
    pub owner: Option<(u32, u32)>,
}

/// Unpacks all entries below `target`.
pub(crate) fn extract<R: BufRead>(
    target: BorrowedFd<'_>,
    tar: &mut TarStream<R>,
    rules: Rules,
) -> Result<()> {
    let mut extraction = Extraction {
        target,
        rules,
        parent: None,
        later: Vec::new(),
        later_bytes: 0,
        buffer: vec![0; CHUNK],
    };
    while let Some(entry) = tar.next_entry().map_err(broken)? {
        extraction.entry(&entry, tar)?;
    }
    tar.drain().map_err(broken)?;
    extraction.set_times();
    Ok(())
}

fn broken(error: TarError) -> FilesError {
    let kind = match &error {
        TarError::Read(_) => FilesErrorKind::Other,
        _ => FilesErrorKind::Invalid,
    };
    let cause = std::error::Error::source(&error).map_or(String::new(), |e| format!(": {e}"));
    FilesError::new(kind, format!("Error processing tar file: {error}{cause}"))
}

fn refuse(path: &[u8], why: &str) -> FilesError {
    let path = readable(path);
    FilesError::new(
        FilesErrorKind::Invalid,
        format!("Error processing tar file: {path}: {why}"),
    )
}

struct Extraction<'a> {
    target: BorrowedFd<'a>,
    rules: Rules,
    /// The last entry's directory; most entries share it with the next.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories whose times are set when nothing more is put into them.
    later: Vec<(Vec<u8>, Timespec)>,
    later_bytes: usize,
    buffer: Vec<u8>,
}

impl Extraction<'_> {
    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<()> {
        let parts = components(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            // The directory itself stays as it is.
            return Ok(());
        };
        let name = text(name, &entry.path)?;
        self.enter(parents, &entry.path)?;
        // Just set.
        let Some((_, parent)) = &self.parent else {
            return Ok(());
        };
        let directory = entry.kind == EntryKind::Directory;
        let mut merges = false;
        if let Some(there) = look(parent.as_fd(), &name, &entry.path)? {
            let is_directory = FileType::from_raw_mode(there.st_mode).is_dir();
            if self.rules.no_overwrite_dir_non_dir && is_directory != directory {
                let path = readable(&entry.path);
                let (old, new) = if is_directory {
                    ("directory", "non-directory")
                } else {
                    ("non-directory", "directory")
                };
                return Err(FilesError::new(
                    FilesErrorKind::Invalid,
                    format!("cannot overwrite {old} {path:?} with {new} {path:?}"),
                ));
            }
            merges = is_directory && directory;
            if !merges {
                remove(parent.as_fd(), &name, 0)
                    .map_err(|error| FilesError::system("unlinkat", &entry.path, error))?;
            }
        }
        let made = self.make(parent.as_fd(), &name, entry, merges, data)?;
        if let Made::Directory = made {
            let time = timespec(entry);
            if self.later_bytes + entry.path.len() <= MAX_LATER {
                self.later_bytes += entry.path.len();
                self.later.push((entry.path.clone(), time));
            }
        }
        Ok(())
    }

    /// Opens the directory of these parts below the target, making what is missing.
    fn enter(&mut self, parts: &[&[u8]], path: &[u8]) -> Result<()> {
        let joined = parts.join(&b'/');
        if self
            .parent
            .as_ref()
            .is_some_and(|(last, _)| *last == joined)
        {
            return Ok(());
        }
        self.parent = None;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |error| FilesError::system("mkdir", path, error);
        let mut current = self
            .target
            .try_clone_to_owned()
            .map_err(|error| FilesError::new(FilesErrorKind::Other, error.to_string()))?;
        for part in parts {
            let part = text(part, path)?;
            current = match rustix::fs::openat(&current, &part, flags, Mode::empty()) {
                Ok(opened) => opened,
                Err(Errno::NOENT) => {
                    let mode = Mode::from_raw_mode(0o755);
                    match rustix::fs::mkdirat(&current, &part, mode) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(failed(error)),
                    }
                    let opened = rustix::fs::openat(&current, &part, flags, Mode::empty())
                        .map_err(failed)?;
                    if let Some((uid, gid)) = self.rules.owner {
                        own(opened.as_fd(), c"", uid, gid, AtFlags::EMPTY_PATH).map_err(failed)?;
                    }
                    opened
                }
                Err(error) => return Err(failed(error)),
            };
        }
        self.parent = Some((joined, current));
        Ok(())
    }

    fn make(
        &self,
        parent: BorrowedFd<'_>,
        name: &CString,
        entry: &Entry,
        merges: bool,
        data: &mut impl Read,
    ) -> Result<Made> {
        let failed = |what: &'static str| move |error| FilesError::system(what, &entry.path, error);
        match entry.kind {
            EntryKind::HardLink => {
                self.link(parent, name, entry)?;
                return Ok(Made::Other);
            }
            EntryKind::Directory => {
                if !merges {
                    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))
                        .map_err(failed("mkdir"))?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(parent, name, flags, Mode::empty())
                    .map_err(failed("open"))?;
                self.describe(&opened, entry)?;
                return Ok(Made::Directory);
            }
            EntryKind::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
                    .map_err(failed("open"))?;
                self.fill(&opened, entry, data)?;
                self.describe(&opened, entry)?;
                let times = times(timespec(entry));
                rustix::fs::futimens(&opened, &times).map_err(failed("utimens"))?;
                return Ok(Made::Other);
            }
            EntryKind::Symlink => {
                let target = text(&entry.link, &entry.path)?;
                rustix::fs::symlinkat(&target, parent, name).map_err(failed("symlink"))?;
            }
            EntryKind::Fifo => node(parent, name, FileType::Fifo, 0).map_err(failed("mkfifo"))?,
            EntryKind::CharacterDevice { major, minor } => {
                let device = rustix::fs::makedev(major, minor);
                node(parent, name, FileType::CharacterDevice, device).map_err(failed("mknod"))?;
            }
            EntryKind::BlockDevice { major, minor } => {
                let device = rustix::fs::makedev(major, minor);
                node(parent, name, FileType::BlockDevice, device).map_err(failed("mknod"))?;
            }
        }
        // What cannot be opened is described by its name.
        let (uid, gid) = self.rules.owner.unwrap_or((entry.uid, entry.gid));
        own(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("lchown"))?;
        if entry.kind != EntryKind::Symlink {
            // A name that was swapped for a link meanwhile would have its target changed: only
            // what has the kind that was made gets the mode.
            set_mode(parent, name, u32::from(entry.mode)).map_err(failed("chmod"))?;
        }
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| is_kept(key)) {
            let key = text(key, &entry.path)?;
            let set = rustix::process::fchdir(parent).and_then(|()| {
                rustix::fs::lsetxattr(name.as_c_str(), &key, value, XattrFlags::empty())
            });
            optional(set).map_err(failed("setxattr"))?;
        }
        let times = times(timespec(entry));
        rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("utimens"))?;
        Ok(Made::Other)
    }

    /// The target is a name in the archive, and so below the same directory.
    fn link(&self, parent: BorrowedFd<'_>, name: &CString, entry: &Entry) -> Result<()> {
        let parts = components(&entry.link)?;
        let Some((last, parents)) = parts.split_last() else {
            return Err(refuse(&entry.path, "a hard link to the directory itself"));
        };
        let last = text(last, &entry.path)?;
        let failed = |error| FilesError::system("link", &entry.path, error);
        let directory = if parents.is_empty() {
            None
        } else {
            let joined = text(&parents.join(&b'/'), &entry.path)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(self.target, &joined, flags, Mode::empty());
            Some(opened.map_err(failed)?)
        };
        let from = directory.as_ref().map_or(self.target, AsFd::as_fd);
        rustix::fs::linkat(from, &last, parent, name, AtFlags::empty()).map_err(failed)
    }

    fn fill(&self, file: &OwnedFd, entry: &Entry, data: &mut impl Read) -> Result<()> {
        let mut buffer = self.buffer.clone();
        let failed = |error| FilesError::system("write", &entry.path, error);
        let mut copy = |mut offset: u64, length: u64| -> Result<()> {
            let mut left = length;
            while left > 0 {
                let most = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let read = data
                    .read(&mut buffer[..most])
                    .map_err(|error| broken(TarError::Read(error)))?;
                if read == 0 {
                    let name = readable(&entry.path);
                    return Err(broken(TarError::Truncated(name)));
                }
                let mut rest = &buffer[..read];
                while !rest.is_empty() {
                    let written = match rustix::io::pwrite(file, rest, offset) {
                        Ok(written) => written,
                        Err(Errno::INTR) => continue,
                        Err(error) => return Err(failed(error)),
                    };
                    offset += written as u64;
                    rest = &rest[written..];
                }
                left -= read as u64;
            }
            Ok(())
        };
        match &entry.extents {
            None => copy(0, entry.size),
            Some(extents) => {
                for extent in extents {
                    copy(extent.offset, extent.length)?;
                }
                rustix::fs::ftruncate(file, entry.size).map_err(failed)
            }
        }
    }

    /// Owner, mode and attributes of what is open.
    fn describe(&self, file: &OwnedFd, entry: &Entry) -> Result<()> {
        let failed = |what: &'static str| move |error| FilesError::system(what, &entry.path, error);
        let (uid, gid) = self.rules.owner.unwrap_or((entry.uid, entry.gid));
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(failed("chown"))?;
        // After the owner, whose change takes the special bits away.
        rustix::fs::fchmod(file, Mode::from_raw_mode(u32::from(entry.mode)))
            .map_err(failed("chmod"))?;
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| is_kept(key)) {
            let key = text(key, &entry.path)?;
            optional(rustix::fs::fsetxattr(
                file,
                &key,
                value,
                XattrFlags::empty(),
            ))
            .map_err(failed("setxattr"))?;
        }
        Ok(())
    }

    /// Sets the times of directories, the last first. One that has gone needs none.
    fn set_times(&self) {
        for (path, time) in self.later.iter().rev() {
            let Ok(parts) = components(path) else {
                continue;
            };
            let Ok(joined) = text(&parts.join(&b'/'), path) else {
                continue;
            };
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let _ = rustix::fs::utimensat(self.target, &joined, &times(*time), flags);
        }
    }
}

enum Made {
    Directory,
    Other,
}

fn node(
    parent: BorrowedFd<'_>,
    name: &CString,
    kind: FileType,
    device: rustix::fs::Dev,
) -> rustix::io::Result<()> {
    rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)
}

fn own(
    parent: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    uid: u32,
    gid: u32,
    flags: AtFlags,
) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), flags)
}

/// The mode of a node that was just made, which cannot be opened.
fn set_mode(parent: BorrowedFd<'_>, name: &CString, mode: u32) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode).is_symlink() {
        return Ok(());
    }
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Not every file system has every attribute; Docker goes on without them.
fn optional(set: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match set {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        other => other,
    }
}

fn timespec(entry: &Entry) -> Timespec {
    Timespec {
        tv_sec: entry.mtime.seconds,
        tv_nsec: i64::from(entry.mtime.nanoseconds),
    }
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: modified,
        last_modification: modified,
    }
}

fn text(part: &[u8], path: &[u8]) -> Result<CString> {
    CString::new(part).map_err(|_| refuse(path, "a NUL in a name"))
}

/// A name's parts, taken by the text alone; one that leads out is refused.
fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > MAX_PATH {
        return Err(refuse(path, "the name is too long"));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts
                    .pop()
                    .ok_or_else(|| refuse(path, "it is outside of the directory"))?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}
