//! The on-disk structures that we write: superblock, inodes, directory entries, extended
//! attributes. Numbers are those of the kernel's `fs/erofs/erofs_fs.h`, all little-endian.
//! Knows bytes only, nothing of trees or files.

/// Bytes in a block; the only size that every kernel with 4 KiB pages mounts.
pub(crate) const BLOCK: usize = 4096;
/// The same, for offsets.
pub(crate) const BLOCK_U64: u64 = 4096;
pub(crate) const BLOCK_BITS: u8 = 12;
/// Where the superblock starts.
pub(crate) const SUPER_OFFSET: usize = 1024;
/// An inode number (`nid`) counts slots of this many bytes from the metadata's first block.
pub(crate) const SLOT: u64 = 32;

pub(crate) const COMPACT_INODE: usize = 32;
pub(crate) const EXTENDED_INODE: usize = 64;
pub(crate) const DIRENT: usize = 12;
pub(crate) const XATTR_HEADER: usize = 12;
pub(crate) const XATTR_ENTRY: usize = 4;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_SB_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;

/// A chunk map entry that stands for a hole.
pub(crate) const NULL_ADDRESS: u32 = u32::MAX;

/// File type bits of `st_mode`.
pub(crate) mod mode {
    pub(crate) const FIFO: u16 = 0o010_000;
    pub(crate) const CHARACTER: u16 = 0o020_000;
    pub(crate) const DIRECTORY: u16 = 0o040_000;
    pub(crate) const BLOCK: u16 = 0o060_000;
    pub(crate) const REGULAR: u16 = 0o100_000;
    pub(crate) const SYMLINK: u16 = 0o120_000;
    pub(crate) const SOCKET: u16 = 0o140_000;
    pub(crate) const TYPE_MASK: u16 = 0o170_000;
}

/// A directory entry's type, from `st_mode`.
pub(crate) fn dirent_type(mode: u16) -> u8 {
    match mode & mode::TYPE_MASK {
        mode::REGULAR => 1,
        mode::DIRECTORY => 2,
        mode::CHARACTER => 3,
        mode::BLOCK => 4,
        mode::FIFO => 5,
        mode::SOCKET => 6,
        mode::SYMLINK => 7,
        _ => 0,
    }
}

/// How an inode's data is found (bits 1 to 3 of `i_format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataLayout {
    /// Consecutive blocks.
    Plain,
    /// Consecutive blocks, and the last partial one behind the inode.
    Inline,
    /// A map from chunks to blocks behind the inode.
    Chunked,
}

impl DataLayout {
    fn bits(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Inline => 2 << 1,
            Self::Chunked => 4 << 1,
        }
    }
}

/// An inode about to be written.
#[derive(Debug, Clone)]
pub(crate) struct InodeRecord {
    pub(crate) extended: bool,
    pub(crate) layout: DataLayout,
    /// Bytes of extended attributes behind the inode; 0 or at least [`XATTR_HEADER`].
    pub(crate) xattr_bytes: usize,
    pub(crate) mode: u16,
    pub(crate) links: u32,
    pub(crate) size: u64,
    /// Start block, device number or chunk format, by kind.
    pub(crate) union: u32,
    pub(crate) ino: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// A field that does not fit where it has to go; the layout never asks for that.
#[derive(Debug)]
pub(crate) struct FieldOverflow;

impl InodeRecord {
    /// Appends the inode. A compact one has no time: it has the superblock's.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), FieldOverflow> {
        let icount = match self.xattr_bytes {
            0 => 0,
            bytes => (bytes - XATTR_HEADER) / 4 + 1,
        };
        let icount = u16::try_from(icount).map_err(|_| FieldOverflow)?;
        let format = u16::from(self.extended) | self.layout.bits();
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&icount.to_le_bytes());
        out.extend_from_slice(&self.mode.to_le_bytes());
        if self.extended {
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&self.size.to_le_bytes());
            out.extend_from_slice(&self.union.to_le_bytes());
            out.extend_from_slice(&self.ino.to_le_bytes());
            out.extend_from_slice(&self.uid.to_le_bytes());
            out.extend_from_slice(&self.gid.to_le_bytes());
            out.extend_from_slice(&self.seconds.to_le_bytes());
            out.extend_from_slice(&self.nanoseconds.to_le_bytes());
            out.extend_from_slice(&self.links.to_le_bytes());
            out.extend_from_slice(&[0; 16]);
        } else {
            let short = |value: u32| u16::try_from(value).map_err(|_| FieldOverflow);
            let size = u32::try_from(self.size).map_err(|_| FieldOverflow)?;
            out.extend_from_slice(&short(self.links)?.to_le_bytes());
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&self.union.to_le_bytes());
            out.extend_from_slice(&self.ino.to_le_bytes());
            out.extend_from_slice(&short(self.uid)?.to_le_bytes());
            out.extend_from_slice(&short(self.gid)?.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        }
        Ok(())
    }
}

/// The superblock's variable parts.
#[derive(Debug, Clone)]
pub(crate) struct Superblock {
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    /// Time of all compact inodes.
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    pub(crate) blocks: u32,
    pub(crate) meta_block: u32,
    pub(crate) xattr_block: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) chunked: bool,
}

impl Superblock {
    /// The first block from [`SUPER_OFFSET`] on, with its checksum.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK - SUPER_OFFSET];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_SB_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &self.seconds.to_le_bytes());
        put(32, &self.nanoseconds.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta_block.to_le_bytes());
        put(44, &self.xattr_block.to_le_bytes());
        put(48, &self.uuid);
        let incompat = if self.chunked {
            INCOMPAT_CHUNKED_FILE
        } else {
            0
        };
        put(80, &incompat.to_le_bytes());
        // The kernel's crc32c has no final inversion; it covers the rest of the block with
        // the checksum's own field zero.
        let checksum = !crc32c::crc32c(&block);
        block[4..8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// Appends a directory entry (without its name).
pub(crate) fn encode_dirent(out: &mut Vec<u8>, nid: u64, name_offset: u16, kind: u8) {
    out.extend_from_slice(&nid.to_le_bytes());
    out.extend_from_slice(&name_offset.to_le_bytes());
    out.extend_from_slice(&[kind, 0]);
}

/// A device number as an inode holds it (the kernel's `new_encode_dev`): 12 bits of major,
/// 20 of minor.
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// Rounds up to a multiple of four, the unit of extended attributes.
pub(crate) fn round_to_word(length: usize) -> usize {
    length.next_multiple_of(4)
}
