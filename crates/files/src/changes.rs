//! What differs from the image: what overlayfs has put into the writable layer, compared with
//! what is below it.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Stat};
use serde::{Deserialize, Serialize};

use crate::protocol::Usage;
use crate::tree::{
    Descend, Node, Result, is_opaque, is_whiteout, look, names, open_directory, walk,
};

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It was changed.
    Modified,
    /// It is new.
    Added,
    /// It is gone.
    Deleted,
}

/// Something that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where, absolute. Bytes that are no UTF-8 are replaced.
    pub path: String,
    /// How.
    pub kind: ChangeKind,
}

/// Names that are made in every root to mount something there, by whoever runs it. Where the
/// image has them not, and nothing was put into them, they are no part of the container.
const SCAFFOLD_FILES: [&[u8]; 8] = [
    b".dockerenv",
    b"dev/console",
    b"etc/hosts",
    b"etc/hostname",
    b"etc/resolv.conf",
    MTAB.as_bytes(),
    b"sbin/docker-init",
    b"run/.containerenv",
];
const SCAFFOLD_DIRECTORIES: [&[u8]; 8] = [
    b"dev",
    b"dev/mqueue",
    b"dev/pts",
    b"dev/shm",
    b"etc",
    b"proc",
    b"sbin",
    b"sys",
];

/// A link that every root is given, from the root, and where it leads. It is no part of the
/// container either.
pub const MTAB: &str = "etc/mtab";
/// See [`MTAB`].
pub const MTAB_TARGET: &str = "/proc/mounts";

/// What is there for mounting only: in every root, and where this container had mounts.
#[derive(Debug, Default)]
pub(crate) struct Scaffold {
    points: HashSet<Vec<u8>>,
    /// Directories that lead to them.
    leading: HashSet<Vec<u8>>,
}

/// What a directory of the writable layer holds.
struct Below {
    /// At least one name for mounting.
    some: bool,
    /// Nothing else.
    only: bool,
}

impl Scaffold {
    /// Besides what is in every root, these.
    pub fn with(mount_points: &[String]) -> Self {
        let mut scaffold = Self::default();
        for point in mount_points {
            let point = point.trim_matches('/').as_bytes();
            let slashes = (0..point.len()).filter(|at| point[*at] == b'/');
            scaffold
                .leading
                .extend(slashes.map(|at| point[..at].to_owned()));
            scaffold.points.insert(point.to_owned());
        }
        scaffold
    }

    /// Whether something that the image has not, or has as a symbolic link, is there for
    /// mounting only.
    pub fn is(&self, node: &Node<'_>) -> Result<bool> {
        if let Some(base) = node.base_stat()? {
            return Ok(replaces_link(node, &base));
        }
        self.holds(node.dir, node.name, node.path, node.stat)
    }

    /// Whether a directory that the image has too was touched for nothing but mounting.
    pub fn is_all(&self, node: &Node<'_>, base: &Stat) -> Result<bool> {
        if !self.may_be_directory(node.path) || !same_owner(node.stat, base) {
            return Ok(false);
        }
        let below = self.below(node.dir, node.name, node.path)?;
        Ok(below.some && below.only)
    }

    fn may_be_directory(&self, path: &[u8]) -> bool {
        SCAFFOLD_DIRECTORIES.contains(&path)
            || self.points.contains(path)
            || self.leading.contains(path)
    }

    fn holds(&self, dir: BorrowedFd<'_>, name: &CString, path: &[u8], stat: &Stat) -> Result<bool> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                Ok(stat.st_size == 0
                    && (SCAFFOLD_FILES.contains(&path) || self.points.contains(path)))
            }
            FileType::Directory if self.may_be_directory(path) => {
                let below = self.below(dir, name, path)?;
                // An empty /etc may be meant, and so may one that led to a mount.
                let may_be_empty = self.points.contains(path)
                    || (SCAFFOLD_DIRECTORIES.contains(&path) && !matches!(path, b"etc" | b"sbin"));
                Ok(below.only && (below.some || may_be_empty))
            }
            FileType::Symlink if path == MTAB.as_bytes() => {
                Ok(rustix::fs::readlinkat(dir, name, Vec::new())
                    .is_ok_and(|target| target.as_bytes() == MTAB_TARGET.as_bytes()))
            }
            _ => Ok(false),
        }
    }

    fn below(&self, dir: BorrowedFd<'_>, name: &CString, path: &[u8]) -> Result<Below> {
        let mut found = Below {
            some: false,
            only: true,
        };
        let Ok(Some(opened)) = open_directory(dir, name) else {
            return Ok(found);
        };
        for name in names(opened.as_fd())? {
            let path = [path, b"/", name.as_bytes()].concat();
            match look(opened.as_fd(), &name, &path)? {
                Some(stat) if self.holds(opened.as_fd(), &name, &path, &stat)? => {
                    found.some = true;
                }
                _ => found.only = false,
            }
        }
        Ok(found)
    }
}

/// Nothing can be mounted at a link, so whoever runs a root puts a file in its place.
fn replaces_link(node: &Node<'_>, base: &Stat) -> bool {
    FileType::from_raw_mode(base.st_mode).is_symlink()
        && node.kind().is_file()
        && node.stat.st_size == 0
        && SCAFFOLD_FILES.contains(&node.path)
}

fn same_owner(one: &Stat, other: &Stat) -> bool {
    (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
}

fn same_directory(one: &Stat, other: &Stat) -> bool {
    let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
    same_owner(one, other) && time(one) == time(other)
}

fn change(path: &[u8], kind: ChangeKind) -> Change {
    Change {
        path: format!("/{}", String::from_utf8_lossy(path)),
        kind,
    }
}

/// Reports every change in the order of names. `upper` is the writable layer, `base` what is
/// below it.
pub(crate) fn changes(
    upper: BorrowedFd<'_>,
    base: Option<BorrowedFd<'_>>,
    report: &mut dyn FnMut(&Change) -> Result<()>,
) -> Result<()> {
    // Directories that were not reported, of those that lead to the current one.
    let mut silent: Vec<Vec<u8>> = Vec::new();
    let scaffold = Scaffold::default();
    walk(upper, base, &mut |node| {
        silent
            .retain(|path| node.path.starts_with(path) && node.path.get(path.len()) == Some(&b'/'));
        let below = node.base_stat()?;
        let kind = match &below {
            _ if is_whiteout(node.stat) => ChangeKind::Deleted,
            None if scaffold.is(node)? => return Ok(Descend::No),
            Some(base) if replaces_link(node, base) => return Ok(Descend::No),
            None => ChangeKind::Added,
            Some(_) => ChangeKind::Modified,
        };
        let parent = node.path.rsplitn(2, |byte| *byte == b'/').nth(1);
        if kind != ChangeKind::Modified
            && let Some(parent) = parent
            && let Some(at) = silent.iter().position(|path| path == parent)
        {
            let parent = silent.swap_remove(at);
            report(&change(&parent, ChangeKind::Modified))?;
        }
        let directory = FileType::from_raw_mode(node.stat.st_mode).is_dir();
        let base = below.filter(|base| FileType::from_raw_mode(base.st_mode).is_dir());
        if let Some(base) = base.filter(|_| directory) {
            if is_opaque(node.dir, node.name) {
                report(&change(node.path, kind))?;
                report_hidden(node, report)?;
            } else if same_directory(node.stat, &base) {
                silent.push(node.path.to_vec());
            } else if scaffold.is_all(node, &base)? {
                return Ok(Descend::No);
            } else {
                report(&change(node.path, kind))?;
            }
            return Ok(Descend::Yes);
        }
        report(&change(node.path, kind))?;
        Ok(Descend::Yes)
    })
}

/// What an opaque directory hides of the one below it.
fn report_hidden(node: &Node<'_>, report: &mut dyn FnMut(&Change) -> Result<()>) -> Result<()> {
    let Some(base) = node.base else { return Ok(()) };
    let opened = (
        open_directory(node.dir, node.name),
        open_directory(base, node.name),
    );
    let (Ok(Some(ours)), Ok(Some(theirs))) = opened else {
        return Ok(());
    };
    for name in names(theirs.as_fd())? {
        let path = [node.path, b"/", name.as_bytes()].concat();
        if look(ours.as_fd(), &name, &path)?.is_none() {
            report(&change(&path, ChangeKind::Deleted))?;
        }
    }
    Ok(())
}

/// What the changes take.
pub(crate) fn usage(upper: BorrowedFd<'_>, base: Option<BorrowedFd<'_>>) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let scaffold = Scaffold::default();
    walk(upper, base, &mut |node| {
        let kind = FileType::from_raw_mode(node.stat.st_mode);
        let counts = matches!(kind, FileType::RegularFile | FileType::Symlink)
            && (node.stat.st_nlink < 2 || linked.insert((node.stat.st_dev, node.stat.st_ino)))
            && !(kind.is_symlink() && scaffold.is(node)?);
        if counts {
            usage.size = usage
                .size
                .saturating_add(u64::try_from(node.stat.st_size).unwrap_or(0));
        }
        Ok(Descend::Yes)
    })?;
    Ok(usage)
}
