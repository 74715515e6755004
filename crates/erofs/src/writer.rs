//! [`ImageWriter`]: takes files in any order, writes their data at once, remembers the rest.

use std::collections::BTreeMap;
use std::io::{BufRead, BufWriter, Seek, Write};

use crate::error::WriterError;
use crate::format::{self, BLOCK, BLOCK_U64, EXTENDED_INODE, NULL_ADDRESS, mode};
use crate::layout;
use crate::tree::{Attributes, Body, Node, NodeId, NodeKind, Special, XattrPool};

type Result<T> = std::result::Result<T, WriterError>;

/// A file's last partial block up to this many bytes is kept in memory and goes behind its
/// inode; a longer one is padded to a block of its own.
pub(crate) const MAX_INLINE: usize = 2048;
const MAX_NAME: usize = 255;
const MAX_TARGET: usize = 4095;
/// Smallest and largest chunk of a sparse file.
const CHUNK_BITS: std::ops::RangeInclusive<u8> = 12..=30;
/// Most entries in one sparse file's map (16 MiB of memory).
const MAX_CHUNKS: u64 = 4 << 20;
/// What a node costs in memory besides names, targets, attributes and tails, roughly.
const NODE_COST: u64 = 192;
const OUTPUT_BUFFER: usize = 1 << 20;

/// Bounds on one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories and so on, over the writer's lifetime.
    pub inodes: u32,
    /// Names (hard links), over the writer's lifetime.
    pub names: u64,
    /// Memory for names, attributes, symlink targets, tails and maps, roughly, bytes.
    pub metadata_bytes: u64,
    /// File data, bytes.
    pub data_bytes: u64,
    /// One sparse file's length, bytes.
    pub sparse_file_bytes: u64,
    /// How deep directories nest.
    pub depth: u32,
    /// Memory for tails; when it is used up, tails are padded to blocks. No error. Bytes.
    pub tail_bytes: u64,
}

impl Default for Limits {
    /// 10 million files and names, 2 GiB of metadata, 1 TiB of data, sparse files of 16 TiB
    /// (ext4's most), 2048 levels (as many as a path can have), 64 MiB of tails.
    fn default() -> Self {
        Self {
            inodes: 10_000_000,
            names: 10_000_000,
            metadata_bytes: 2 << 30,
            data_bytes: 1 << 40,
            sparse_file_bytes: 16 << 40,
            depth: 2048,
            tail_bytes: 64 << 20,
        }
    }
}

/// What is not about a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The volume's UUID; all zero by default, so that equal input gives equal bytes.
    pub uuid: [u8; 16],
    /// Bounds.
    pub limits: Limits,
}

/// A run of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image, a multiple of 4096.
    pub image_bytes: u64,
    /// How many inodes it has.
    pub inodes: u64,
    /// Sum of the sizes (`st_size`) of regular files and symlinks, each inode once.
    pub content_bytes: u64,
}

/// Writes one image to an output that starts at position 0 and is empty.
///
/// File data goes out as it is added, so one pass over any source suffices; memory holds what
/// [`Limits`] says. A file that is removed again leaves its data blocks unreferenced.
#[derive(Debug)]
pub struct ImageWriter<W: Write + Seek> {
    out: BufWriter<W>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) xattrs: XattrPool,
    options: Options,
    /// The next free block; the output's position is always this one's start.
    next_block: u64,
    names: u64,
    metadata_bytes: u64,
    tail_bytes: u64,
    chunked: bool,
}

impl<W: Write + Seek> ImageWriter<W> {
    /// Starts an image whose root directory has mode 0755, owner root and time 0.
    pub fn new(output: W, options: Options) -> Result<Self> {
        let mut out = BufWriter::with_capacity(OUTPUT_BUFFER, output);
        out.write_all(&[0; BLOCK]).map_err(WriterError::Output)?;
        let root = Node {
            mode: mode::DIRECTORY | 0o755,
            uid: 0,
            gid: 0,
            mtime: crate::Timestamp::default(),
            xattrs: Box::default(),
            links: 2,
            body: Body::Directory {
                parent: NodeId::ROOT,
                depth: 0,
                children: BTreeMap::new(),
            },
        };
        Ok(Self {
            out,
            nodes: vec![root],
            xattrs: XattrPool::default(),
            options,
            next_block: 1,
            names: 0,
            metadata_bytes: 0,
            tail_bytes: 0,
            chunked: false,
        })
    }

    /// What `node` is.
    pub fn kind(&self, node: NodeId) -> NodeKind {
        self.nodes[node.index()].kind()
    }

    /// The entry `name` of `directory`, if it is a directory and has one.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[directory.index()].body {
            Body::Directory { children, .. } => children.get(name).copied(),
            _ => None,
        }
    }

    /// The directory that `directory` is in; the root's is the root.
    pub fn parent(&self, directory: NodeId) -> Option<NodeId> {
        match &self.nodes[directory.index()].body {
            Body::Directory { parent, .. } => Some(*parent),
            _ => None,
        }
    }

    /// A symlink's target.
    pub fn symlink_target(&self, node: NodeId) -> Option<&[u8]> {
        match &self.nodes[node.index()].body {
            Body::Symlink(target) => Some(target),
            _ => None,
        }
    }

    /// Makes an empty directory.
    pub fn add_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
    ) -> Result<NodeId> {
        let depth = match &self.nodes[parent.index()].body {
            Body::Directory { depth, .. } => depth + 1,
            _ => return Err(WriterError::WrongKind("the parent is not a directory")),
        };
        if depth > self.options.limits.depth {
            let limit = u64::from(self.options.limits.depth);
            return Err(WriterError::Limit("depth of directories", limit));
        }
        let body = Body::Directory {
            parent,
            depth,
            children: BTreeMap::new(),
        };
        let node = self.add_node(parent, name, attributes, mode::DIRECTORY, body)?;
        self.nodes[node.index()].links = 2;
        self.nodes[parent.index()].links += 1;
        Ok(node)
    }

    /// Makes a symbolic link.
    pub fn add_symlink(
        &mut self,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<NodeId> {
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(WriterError::InvalidTarget);
        }
        self.charge(target.len())?;
        let body = Body::Symlink(target.into());
        self.add_node(parent, name, attributes, mode::SYMLINK, body)
    }

    /// Makes a device, pipe or socket.
    pub fn add_special(
        &mut self,
        parent: NodeId,
        name: &[u8],
        special: Special,
        attributes: &Attributes,
    ) -> Result<NodeId> {
        let device = |major, minor| {
            format::encode_device(major, minor)
                .map(Body::Device)
                .ok_or(WriterError::InvalidDevice { major, minor })
        };
        let (kind, body) = match special {
            Special::CharacterDevice { major, minor } => (mode::CHARACTER, device(major, minor)?),
            Special::BlockDevice { major, minor } => (mode::BLOCK, device(major, minor)?),
            Special::Fifo => (mode::FIFO, Body::Pipe),
            Special::Socket => (mode::SOCKET, Body::Pipe),
        };
        self.add_node(parent, name, attributes, kind, body)
    }

    /// Makes a regular file of `size` bytes read from `source`.
    pub fn add_file(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        size: u64,
        source: &mut dyn BufRead,
    ) -> Result<NodeId> {
        self.reserve_data(size)?;
        let empty = Body::File {
            size,
            start_block: 0,
            tail: Box::default(),
        };
        let node = self.add_node(parent, name, attributes, mode::REGULAR, empty)?;
        let head = EXTENDED_INODE + self.xattrs.inline_bytes(&self.nodes[node.index()].xattrs);
        let tail_length = size % BLOCK_U64;
        let inline = tail_length <= MAX_INLINE as u64
            && head as u64 + tail_length <= BLOCK_U64
            && self.tail_bytes + tail_length <= self.options.limits.tail_bytes;
        let start_block = match size {
            0 => 0,
            _ => self.block_address()?,
        };
        let mut tail = Vec::new();
        if inline {
            self.copy_data(size - tail_length, source)?;
            self.tail_bytes += tail_length;
            let length = usize::try_from(tail_length).unwrap_or(0);
            self.charge(length)?;
            tail.reserve_exact(length);
            copy_exact(source, tail_length, &mut |bytes| {
                tail.extend_from_slice(bytes);
                Ok(())
            })?;
        } else {
            self.copy_data(size, source)?;
            self.pad_to_block(size)?;
        }
        self.nodes[node.index()].body = Body::File {
            size,
            start_block,
            tail: tail.into(),
        };
        Ok(node)
    }

    /// Makes a sparse file of `size` bytes: `source` holds the extents' data one after
    /// another, all else is holes.
    pub fn add_sparse_file(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        size: u64,
        extents: &[Extent],
        source: &mut dyn BufRead,
    ) -> Result<NodeId> {
        if size > self.options.limits.sparse_file_bytes {
            let limit = self.options.limits.sparse_file_bytes;
            return Err(WriterError::Limit("size of a sparse file", limit));
        }
        let extents: Vec<Extent> = check_extents(size, extents)?;
        if size == 0
            || extents
                == [Extent {
                    offset: 0,
                    length: size,
                }]
        {
            return self.add_file(parent, name, attributes, size, source);
        }
        let (bits, data_bytes) = choose_chunk(size, &extents);
        self.reserve_data(data_bytes)?;
        let chunk = 1_u64 << bits;
        let count = usize::try_from(size.div_ceil(chunk))
            .map_err(|_| WriterError::Limit("chunks of a sparse file", MAX_CHUNKS))?;
        self.charge(count * 4)?;
        let mut map = vec![NULL_ADDRESS; count];
        // Start of the chunk being written, and how far it is, as offsets in the file.
        let mut open: Option<(u64, u64)> = None;
        let end_of = |start: u64| start.saturating_add(chunk).min(size);
        for extent in &extents {
            let mut position = extent.offset;
            let end = extent.offset + extent.length;
            while position < end {
                let start = position & !(chunk - 1);
                if let Some((previous, cursor)) = open.filter(|(previous, _)| *previous != start) {
                    self.end_chunk(previous, cursor, end_of(previous))?;
                    open = None;
                }
                let cursor = match open {
                    Some((_, cursor)) => cursor,
                    None => {
                        let slot = usize::try_from(start >> bits).ok();
                        let slot = slot.and_then(|index| map.get_mut(index));
                        *slot.ok_or(WriterError::InvalidExtents)? = self.block_address()?;
                        start
                    }
                };
                self.write_zeros(position - cursor)?;
                let length = end.min(end_of(start)) - position;
                self.copy_bytes(length, source)?;
                position += length;
                open = Some((start, position));
            }
        }
        if let Some((start, cursor)) = open {
            self.end_chunk(start, cursor, end_of(start))?;
        }
        self.chunked = true;
        let body = Body::Chunked {
            size,
            chunk_bits: bits - format::BLOCK_BITS,
            map: map.into(),
        };
        self.add_node(parent, name, attributes, mode::REGULAR, body)
    }

    /// Gives an existing file another name. Directories have only one.
    pub fn add_link(&mut self, parent: NodeId, name: &[u8], target: NodeId) -> Result<()> {
        let node = &self.nodes[target.index()];
        if matches!(node.body, Body::Directory { .. } | Body::Removed) {
            return Err(WriterError::WrongKind(
                "a hard link needs a file that is no directory",
            ));
        }
        self.insert_name(parent, name, target)?;
        self.nodes[target.index()].links += 1;
        Ok(())
    }

    /// Sets owner, mode and time of a directory, and adds the extended attributes.
    pub fn set_directory_attributes(
        &mut self,
        directory: NodeId,
        attributes: &Attributes,
    ) -> Result<()> {
        self.add_directory_xattrs(directory, &attributes.xattrs)?;
        let node = &mut self.nodes[directory.index()];
        node.mode = mode::DIRECTORY | attributes.mode & 0o7777;
        node.uid = attributes.uid;
        node.gid = attributes.gid;
        node.mtime = attributes.mtime;
        Ok(())
    }

    /// Adds extended attributes to a directory, replacing those of the same names.
    pub fn add_directory_xattrs(
        &mut self,
        directory: NodeId,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<()> {
        // A file's attributes are fixed when its tail is placed.
        if self.kind(directory) != NodeKind::Directory {
            return Err(WriterError::WrongKind("not a directory"));
        }
        let present = &self.nodes[directory.index()].xattrs;
        let (set, bytes) = self.xattrs.merge(present, xattrs)?;
        self.charge(bytes)?;
        self.nodes[directory.index()].xattrs = set;
        Ok(())
    }

    /// Removes a name, and with a directory all that is below it. Nothing if there is none.
    pub fn remove(&mut self, parent: NodeId, name: &[u8]) {
        let Body::Directory { children, .. } = &mut self.nodes[parent.index()].body else {
            return;
        };
        let Some(removed) = children.remove(name) else {
            return;
        };
        if self.kind(removed) == NodeKind::Directory {
            self.nodes[parent.index()].links -= 1;
        }
        let mut pending = vec![removed];
        while let Some(id) = pending.pop() {
            let node = &mut self.nodes[id.index()];
            if let Body::Directory { children, .. } = &mut node.body {
                pending.extend(std::mem::take(children).into_values());
                node.links = 0;
            } else {
                node.links = node.links.saturating_sub(1);
            }
            if node.links == 0 {
                node.body = Body::Removed;
                node.xattrs = Box::default();
            }
        }
    }

    /// Writes the metadata and the superblock. The output is flushed to its owner, not synced.
    pub fn finish(mut self) -> Result<(W, Summary)> {
        let summary = layout::write_metadata(
            &self.nodes,
            &self.xattrs,
            &mut self.out,
            &layout::Parameters {
                first_block: self.next_block,
                uuid: self.options.uuid,
                chunked: self.chunked,
            },
        )?;
        let output = self
            .out
            .into_inner()
            .map_err(|error| WriterError::Output(error.into_error()))?;
        Ok((output, summary))
    }

    fn add_node(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        kind: u16,
        body: Body,
    ) -> Result<NodeId> {
        let limit = self.options.limits.inodes;
        let id = u32::try_from(self.nodes.len())
            .ok()
            .filter(|id| *id < limit);
        let id = NodeId(id.ok_or(WriterError::Limit("number of files", u64::from(limit)))?);
        let (xattrs, xattr_bytes) = self.xattrs.merge(&[], &attributes.xattrs)?;
        self.charge(xattr_bytes + xattrs.len() * 4)?;
        self.metadata_bytes += NODE_COST;
        self.insert_name(parent, name, id)?;
        self.nodes.push(Node {
            mode: kind | attributes.mode & 0o7777,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            xattrs,
            links: 1,
            body,
        });
        Ok(id)
    }

    fn insert_name(&mut self, parent: NodeId, name: &[u8], node: NodeId) -> Result<()> {
        let readable = || String::from_utf8_lossy(name).into_owned();
        let invalid = matches!(name, b"" | b"." | b"..")
            || name.len() > MAX_NAME
            || name.iter().any(|byte| matches!(byte, b'/' | 0));
        if invalid {
            return Err(WriterError::InvalidName(readable()));
        }
        self.names += 1;
        if self.names > self.options.limits.names {
            return Err(WriterError::Limit(
                "number of names",
                self.options.limits.names,
            ));
        }
        self.charge(name.len())?;
        let Body::Directory { children, .. } = &mut self.nodes[parent.index()].body else {
            return Err(WriterError::WrongKind("the parent is not a directory"));
        };
        match children.entry(name.into()) {
            std::collections::btree_map::Entry::Occupied(_) => Err(WriterError::Exists(readable())),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(node);
                Ok(())
            }
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        self.metadata_bytes += bytes as u64;
        if self.metadata_bytes > self.options.limits.metadata_bytes {
            let limit = self.options.limits.metadata_bytes;
            return Err(WriterError::Limit("metadata", limit));
        }
        Ok(())
    }

    /// Refuses data that would not fit before any of it is read.
    fn reserve_data(&self, bytes: u64) -> Result<()> {
        let limit = self.options.limits.data_bytes;
        let written = self.next_block * BLOCK_U64;
        match written.checked_add(bytes) {
            Some(total) if total <= limit => Ok(()),
            _ => Err(WriterError::Limit("file data", limit)),
        }
    }

    fn block_address(&self) -> Result<u32> {
        u32::try_from(self.next_block)
            .ok()
            .filter(|block| *block != NULL_ADDRESS)
            .ok_or(WriterError::Limit("blocks", u64::from(u32::MAX)))
    }

    fn copy_bytes(&mut self, length: u64, source: &mut dyn BufRead) -> Result<()> {
        copy_exact(source, length, &mut |bytes| {
            self.out.write_all(bytes).map_err(WriterError::Output)
        })
    }

    /// Copies from the start of the next block and counts the whole blocks.
    fn copy_data(&mut self, length: u64, source: &mut dyn BufRead) -> Result<()> {
        self.copy_bytes(length, source)?;
        self.next_block += length / BLOCK_U64;
        Ok(())
    }

    /// Ends data of `length` bytes whose whole blocks are counted.
    fn pad_to_block(&mut self, length: u64) -> Result<()> {
        let rest = length % BLOCK_U64;
        if rest != 0 {
            self.write_zeros(BLOCK_U64 - rest)?;
            self.next_block += 1;
        }
        Ok(())
    }

    /// Ends a chunk from `start` to `end` of which the bytes up to `cursor` are written.
    fn end_chunk(&mut self, start: u64, cursor: u64, end: u64) -> Result<()> {
        self.write_zeros(end - cursor)?;
        self.next_block += (end - start) / BLOCK_U64;
        self.pad_to_block(end - start)
    }

    fn write_zeros(&mut self, mut length: u64) -> Result<()> {
        static ZEROS: [u8; 65536] = [0; 65536];
        while length > 0 {
            let part = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            self.out
                .write_all(&ZEROS[..part])
                .map_err(WriterError::Output)?;
            length -= part as u64;
        }
        Ok(())
    }
}

/// Feeds exactly `length` bytes of `source` to `sink`, without another copy.
fn copy_exact(
    source: &mut dyn BufRead,
    mut length: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    while length > 0 {
        let available = match source.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(WriterError::Input(error)),
        };
        if available.is_empty() {
            return Err(WriterError::Truncated { missing: length });
        }
        let part = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(available.len());
        sink(&available[..part])?;
        source.consume(part);
        length -= part as u64;
    }
    Ok(())
}

/// Checks order and bounds, drops empty extents, joins neighbours.
fn check_extents(size: u64, extents: &[Extent]) -> Result<Vec<Extent>> {
    let mut checked: Vec<Extent> = Vec::with_capacity(extents.len());
    let mut position = 0;
    for extent in extents {
        let end = extent.offset.checked_add(extent.length);
        let end = end.filter(|end| extent.offset >= position && *end <= size);
        position = end.ok_or(WriterError::InvalidExtents)?;
        match checked.last_mut() {
            Some(last) if last.offset + last.length == extent.offset => {
                last.length += extent.length;
            }
            _ if extent.length == 0 => {}
            _ => checked.push(*extent),
        }
    }
    Ok(checked)
}

/// The chunk size, as a power of two, that makes data and map together the smallest; and the
/// bytes of data that it makes.
fn choose_chunk(size: u64, extents: &[Extent]) -> (u8, u64) {
    let mut best = (*CHUNK_BITS.end(), u64::MAX, u64::MAX);
    for bits in CHUNK_BITS {
        let chunks = ((size - 1) >> bits) + 1;
        if chunks > MAX_CHUNKS {
            continue;
        }
        let mut touched = 0;
        let mut next = 0;
        for extent in extents {
            let first = (extent.offset >> bits).max(next);
            next = ((extent.offset + extent.length - 1) >> bits) + 1;
            touched += next.saturating_sub(first);
        }
        let data = touched << bits;
        if data + 4 * chunks < best.2 {
            best = (bits, data, data + 4 * chunks);
        }
    }
    (best.0, best.1)
}
