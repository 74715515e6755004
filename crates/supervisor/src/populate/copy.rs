//! Copying a tree with everything about it: owners, modes, times, extended attributes, hard
//! links, device nodes. Works by descriptor, one name at a time, and follows no link, so that
//! neither side can lead it elsewhere.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Deeper trees than paths can name are not copied.
const MAX_DEPTH: usize = 4096;

/// Makes the directory `to` like the directory `from`, contents and all.
pub fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let root = rustix::fs::openat(to, ".", directory(), Mode::empty())?;
    let mut copy = Copy {
        root,
        path: PathBuf::new(),
        linked: HashMap::new(),
    };
    copy.contents(from, to, 0)?;
    dress(from, to)
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Gives an open directory or file the attributes of another.
fn dress(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, owner(&stat).0, owner(&stat).1)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    // After the owner, whose change takes capabilities off.
    attributes(from, to)?;
    Ok(rustix::fs::futimens(to, &times(&stat))?)
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

fn times(stat: &Stat) -> Timestamps {
    let nanoseconds = |value: u64| i64::try_from(value).unwrap_or(0);
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: nanoseconds(stat.st_atime_nsec),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: nanoseconds(stat.st_mtime_nsec),
        },
    }
}

/// Copies extended attributes. What the file system of the volume does not keep is left out.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let length = match rustix::fs::flistxattr_query(from) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut names = vec![0; length];
    let length = rustix::fs::flistxattr(from, &mut names[..])?;
    names.truncate(length);
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let length = rustix::fs::fgetxattr_query(from, name)?;
        let mut value = vec![0; length];
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        value.truncate(length);
        match rustix::fs::fsetxattr(to, name, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

struct Copy {
    /// The directory that the copy is made in.
    root: OwnedFd,
    /// Where in it we are.
    path: PathBuf,
    /// Files with several names, by device and inode, and where the first of them is.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn contents(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("the tree is too deep"));
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let shown = std::ffi::OsStr::new(&*name.to_string_lossy()).to_owned();
            self.path.push(path_of(name));
            self.entry(from, to, name, depth).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", shown.display()))
            })?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        depth: usize,
    ) -> io::Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let source = rustix::fs::openat(from, name, directory(), Mode::empty())?;
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let target = rustix::fs::openat(to, name, directory(), Mode::empty())?;
            self.contents(source.as_fd(), target.as_fd(), depth + 1)?;
            return dress(source.as_fd(), target.as_fd());
        }
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&key) {
                let linked = rustix::fs::linkat(&self.root, first, to, name, AtFlags::empty());
                return Ok(linked?);
            }
            self.linked.insert(key, self.path.clone());
        }
        if kind == FileType::RegularFile {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut source = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o600);
            let mut target = File::from(rustix::fs::openat(to, name, flags, mode)?);
            io::copy(&mut source, &mut target)?;
            return dress(source.as_fd(), target.as_fd());
        }
        if kind == FileType::Symlink {
            let text = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(text.as_c_str(), to, name)?;
        } else {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(to, name, owner(&stat).0, owner(&stat).1, flags)?;
        special_attributes(from, to, name)?;
        Ok(rustix::fs::utimensat(to, name, &times(&stat), flags)?)
    }
}

fn path_of(name: &CStr) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// Extended attributes of what can only be opened as a path: links, devices, pipes, sockets.
fn special_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
    let source = format!("/proc/self/fd/{}", source.as_raw_fd());
    let length = match rustix::fs::listxattr_query(&source) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let target = rustix::fs::openat(to, name, flags, Mode::empty())?;
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    let mut names = vec![0; length];
    let length = rustix::fs::listxattr(&source, &mut names[..])?;
    names.truncate(length);
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let length = rustix::fs::getxattr_query(&source, name)?;
        let mut value = vec![0; length];
        let length = rustix::fs::getxattr(&source, name, &mut value[..])?;
        value.truncate(length);
        match rustix::fs::setxattr(&target, name, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, directory(), Mode::empty()).unwrap()
    }

    #[test]
    fn a_tree_is_copied_with_all_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("sub/deep")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("sub/file"), "text").unwrap();
        let value = b"v\0w";
        rustix::fs::setxattr(
            from.join("sub/file"),
            "trusted.x",
            value,
            XattrFlags::empty(),
        )
        .unwrap();
        std::fs::hard_link(from.join("sub/file"), from.join("link")).unwrap();
        symlink("/nowhere", from.join("sub/symlink")).unwrap();
        rustix::fs::mknodat(
            open(&from),
            "pipe",
            FileType::Fifo,
            Mode::from_raw_mode(0o640),
            0,
        )
        .unwrap();
        let special = std::fs::Permissions::from_mode(0o2750);
        std::fs::set_permissions(from.join("sub"), special).unwrap();
        std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o1777)).unwrap();

        tree(open(&from).as_fd(), open(&to).as_fd()).unwrap();

        let meta = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(
            std::fs::read_to_string(to.join("sub/file")).unwrap(),
            "text"
        );
        let mut got = [0; 8];
        let length = rustix::fs::getxattr(to.join("sub/file"), "trusted.x", &mut got).unwrap();
        assert_eq!(&got[..length], value);
        assert_eq!(meta("link").ino(), meta("sub/file").ino());
        assert_eq!(meta("sub").mode() & 0o7777, 0o2750);
        assert_eq!(meta("").mode() & 0o7777, 0o1777);
        assert_eq!(
            std::fs::read_link(to.join("sub/symlink")).unwrap(),
            std::path::Path::new("/nowhere")
        );
        assert_eq!(meta("pipe").mode() & 0o170_777, 0o010_640);
        let original = std::fs::symlink_metadata(from.join("sub/deep")).unwrap();
        assert_eq!(meta("sub/deep").mtime_nsec(), original.mtime_nsec());
    }
}
