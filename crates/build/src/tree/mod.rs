//! What is copied from and into: read-only trees of files. A build context is one (kept as
//! the archive it came as: nothing is unpacked), an image's root filesystem is another.
//!
//! Paths are relative to the root and canonical: no `.`, `..`, empty or symlinked parts.
//! [`resolve`] makes them so; a tree itself follows no link.

mod archive;
mod mounted;

pub use archive::{ContextError, ContextLimits, ContextTree};
pub use mounted::MountedTree;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Most links that one path may lead through, as the kernel has it.
const MAX_LINKS: usize = 40;

/// A time as file systems have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtime {
    /// Since the epoch.
    pub seconds: i64,
    /// Within the second.
    pub nanoseconds: u32,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink(OsString),
    /// A named pipe.
    Fifo,
    /// A character device.
    CharacterDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
}

/// What is known of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed.
    pub mtime: Mtime,
    /// Extended attributes that travel.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The same number for all names of a file that has several.
    pub identity: Option<u64>,
}

impl Node {
    /// A directory as docker makes missing ones.
    pub fn directory(mode: u32, uid: u32, gid: u32, mtime: Mtime) -> Self {
        Self {
            kind: Kind::Directory,
            mode,
            uid,
            gid,
            mtime,
            xattrs: BTreeMap::new(),
            identity: None,
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// A tree of files.
pub trait SourceTree: Send + Sync {
    /// The node at a canonical path, which may itself be a link.
    fn node(&self, path: &Path) -> io::Result<Option<Node>>;
    /// Names in a directory, sorted.
    fn children(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// A file's content.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;
    /// Whether a directory has no attributes of its own.
    fn is_implied(&self, _path: &Path) -> bool {
        false
    }
    /// The SHA-256 of a file's content where it is known already.
    fn digest(&self, _path: &Path) -> Option<[u8; 32]> {
        None
    }
}

/// Where a path leads: links are followed, also the last one; what does not exist is taken as
/// written. It never leaves the tree. The answer is canonical.
///
/// # Errors
/// What the tree says; too many links.
pub fn resolve(tree: &dyn SourceTree, path: &Path) -> io::Result<PathBuf> {
    let mut pending: VecDeque<OsString> = VecDeque::new();
    push_front(&mut pending, path);
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(part) = pending.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        match tree.node(&next)?.map(|node| node.kind) {
            Some(Kind::Symlink(target)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other(format!(
                        "{}: too many levels of symbolic links",
                        path.display()
                    )));
                }
                if target.as_bytes().starts_with(b"/") {
                    at = PathBuf::new();
                }
                push_front(&mut pending, Path::new(&target));
            }
            _ => at = next,
        }
    }
    Ok(at)
}

fn push_front(pending: &mut VecDeque<OsString>, path: &Path) {
    let parts: Vec<OsString> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    for part in parts.into_iter().rev() {
        pending.push_front(part);
    }
}

/// A path without `.`, `..` and slashes in front; `..` stops at the root.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => out.push(part),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// Whether a path, as it is written, leads out of the root on its way.
pub fn leaves(path: &Path) -> bool {
    let mut depth = 0_usize;
    for part in path.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return true,
            },
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    false
}

/// The canonical paths that a pattern with `*`, `?` and `[…]` matches, sorted. Links on the
/// way are followed, the last is not.
///
/// # Errors
/// What the tree says.
pub fn glob(tree: &dyn SourceTree, pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for part in clean(pattern).iter() {
        let mut next = Vec::new();
        for directory in found {
            let directory = resolve(tree, &directory)?;
            let is_directory = directory.as_os_str().is_empty()
                || tree
                    .node(&directory)?
                    .is_some_and(|node| node.is_directory());
            if !is_directory {
                continue;
            }
            if !is_pattern(part) {
                let path = directory.join(unescaped(part));
                if tree.node(&path)?.is_some() {
                    next.push(path);
                }
                continue;
            }
            for name in tree.children(&directory)? {
                if crate::ignore::glob_matches(part.as_bytes(), name.as_bytes()) {
                    next.push(directory.join(name));
                }
            }
        }
        next.sort();
        next.dedup();
        found = next;
    }
    Ok(found)
}

/// Whether a text has wildcards.
pub fn is_pattern(text: &OsStr) -> bool {
    text.as_bytes()
        .iter()
        .any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

fn unescaped(text: &OsStr) -> OsString {
    let mut out = Vec::new();
    let mut bytes = text.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.extend(bytes.next()),
            other => out.push(*other),
        }
    }
    OsStr::from_bytes(&out).to_owned()
}
