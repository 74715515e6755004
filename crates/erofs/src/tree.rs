//! The tree of inodes kept in memory until the metadata is written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::error::WriterError;
use crate::format::{self, mode};

/// A point in time as an inode holds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the epoch; may be negative.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What all kinds of files have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777; other bits are ignored.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes: whole names (`user.a`) and values, in any order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A file of a kind that has no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A device, pipe or socket.
    Special,
}

/// A file in the image being written: its inode, whatever its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(crate) enum Body {
    Directory {
        parent: NodeId,
        depth: u32,
        children: BTreeMap<Box<[u8]>, NodeId>,
    },
    /// Whole blocks in the data area, and a tail that goes behind the inode.
    File {
        size: u64,
        start_block: u32,
        tail: Box<[u8]>,
    },
    /// A map of chunks of 2^(12 + `chunk_bits`) bytes to blocks.
    Chunked {
        size: u64,
        chunk_bits: u8,
        map: Box<[u32]>,
    },
    Symlink(Box<[u8]>),
    Device(u32),
    Pipe,
    /// Without a name left; written nowhere.
    Removed,
}

#[derive(Debug)]
pub(crate) struct Node {
    /// Type and permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    /// Indexes into [`XattrPool`], ascending.
    pub(crate) xattrs: Box<[u32]>,
    /// Names of a file; for a directory 2 and its subdirectories.
    pub(crate) links: u32,
    pub(crate) body: Body,
}

impl Node {
    pub(crate) fn kind(&self) -> NodeKind {
        match self.mode & mode::TYPE_MASK {
            mode::DIRECTORY => NodeKind::Directory,
            mode::REGULAR => NodeKind::File,
            mode::SYMLINK => NodeKind::Symlink,
            _ => NodeKind::Special,
        }
    }
}

/// One attribute: an index for the name's prefix, the rest of the name, the value.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Xattr {
    pub(crate) prefix: u8,
    pub(crate) suffix: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

impl Xattr {
    /// Splits off the prefix. The indexes are `EROFS_XATTR_INDEX_*`.
    fn new(name: &[u8], value: &[u8]) -> Result<Self, WriterError> {
        let unsupported =
            || WriterError::UnsupportedXattr(String::from_utf8_lossy(name).into_owned());
        let (prefix, suffix): (u8, &[u8]) = match name {
            b"system.posix_acl_access" => (2, b""),
            b"system.posix_acl_default" => (3, b""),
            _ => [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
                .into_iter()
                .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
                .filter(|(_, suffix)| !suffix.is_empty())
                .ok_or_else(unsupported)?,
        };
        if name.len() > 255 || name.contains(&0) {
            return Err(unsupported());
        }
        if value.len() > usize::from(u16::MAX) {
            return Err(WriterError::XattrTooLarge);
        }
        Ok(Self {
            prefix,
            suffix: suffix.into(),
            value: value.into(),
        })
    }

    /// Bytes of the entry on disk, padded.
    pub(crate) fn stored_bytes(&self) -> usize {
        format::round_to_word(format::XATTR_ENTRY + self.suffix.len() + self.value.len())
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), format::FieldOverflow> {
        let name_length = u8::try_from(self.suffix.len()).map_err(|_| format::FieldOverflow)?;
        let value_length = u16::try_from(self.value.len()).map_err(|_| format::FieldOverflow)?;
        let end = out.len() + self.stored_bytes();
        out.extend_from_slice(&[name_length, self.prefix]);
        out.extend_from_slice(&value_length.to_le_bytes());
        out.extend_from_slice(&self.suffix);
        out.extend_from_slice(&self.value);
        out.resize(end, 0);
        Ok(())
    }
}

/// Every distinct attribute once.
#[derive(Debug, Default)]
pub(crate) struct XattrPool {
    indexes: HashMap<Arc<Xattr>, u32>,
    entries: Vec<Arc<Xattr>>,
}

/// Most bytes of attributes on one file: `i_xattr_icount` is 16 bits of 4-byte words.
const MAX_XATTR_BYTES: usize = format::XATTR_HEADER + 4 * (u16::MAX as usize - 1);

impl XattrPool {
    pub(crate) fn get(&self, index: u32) -> &Xattr {
        &self.entries[index as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Merges `added` into `present` (same names are replaced). Returns the new set and the
    /// bytes that it added to the pool.
    pub(crate) fn merge(
        &mut self,
        present: &[u32],
        added: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(Box<[u32]>, usize), WriterError> {
        let mut set = present.to_vec();
        let mut new_bytes = 0;
        for (name, value) in added {
            let xattr = Xattr::new(name, value)?;
            set.retain(|index| {
                let old = self.get(*index);
                (old.prefix, &old.suffix) != (xattr.prefix, &xattr.suffix)
            });
            let index = match self.indexes.get(&xattr) {
                Some(index) => *index,
                None => {
                    let index = u32::try_from(self.entries.len())
                        .map_err(|_| WriterError::XattrTooLarge)?;
                    // Name, value, and what the two tables cost.
                    new_bytes += xattr.suffix.len() + xattr.value.len() + 128;
                    let xattr = Arc::new(xattr);
                    self.entries.push(Arc::clone(&xattr));
                    self.indexes.insert(xattr, index);
                    index
                }
            };
            set.push(index);
        }
        set.sort_unstable();
        if self.inline_bytes(&set) > MAX_XATTR_BYTES {
            return Err(WriterError::XattrTooLarge);
        }
        Ok((set.into(), new_bytes))
    }

    /// Bytes behind the inode if all of them are stored there.
    pub(crate) fn inline_bytes(&self, set: &[u32]) -> usize {
        if set.is_empty() {
            return 0;
        }
        let entries: usize = set
            .iter()
            .map(|index| self.get(*index).stored_bytes())
            .sum();
        format::XATTR_HEADER + entries
    }
}
