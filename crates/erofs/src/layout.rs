//! Places and writes the metadata behind the data: directory blocks, shared extended
//! attributes, inodes. Order and places depend on the tree alone.

use std::collections::HashMap;
use std::io::{BufWriter, Seek, SeekFrom, Write};

use crate::error::WriterError;
use crate::format::{
    self, BLOCK, BLOCK_U64, COMPACT_INODE, DIRENT, DataLayout, EXTENDED_INODE, InodeRecord, SLOT,
    SUPER_OFFSET, Superblock, XATTR_HEADER,
};
use crate::tree::{Body, Node, NodeId, Timestamp, XattrPool};
use crate::writer::{MAX_INLINE, Summary};

type Result<T> = std::result::Result<T, WriterError>;

/// The root's inode is the first; inode number 0 would be hidden by `readdir`.
const FIRST_INODE: u64 = 64;
/// How many gaps at the ends of blocks are remembered for small inodes.
const MAX_GAPS: usize = 64;
/// At most so many shared attributes per inode: their count is one byte.
const MAX_SHARED: usize = 255;

pub(crate) struct Parameters {
    /// The first block behind the data.
    pub(crate) first_block: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) chunked: bool,
}

/// An inode with its place.
struct Placed {
    node: NodeId,
    extended: bool,
    layout: DataLayout,
    xattr_bytes: usize,
    size: u64,
    /// Blocks in the directory area (directories and long symlinks): the first one.
    start_block: u64,
    /// Bytes behind inode and attributes: a tail or a chunk map.
    trailer: usize,
    /// From the metadata's first block, bytes.
    position: u64,
}

/// The attributes that more than one inode has.
struct SharedXattrs {
    /// By index in the pool: the offset in the shared area in words.
    offsets: HashMap<u32, u32>,
    bytes: Vec<u8>,
}

struct Layout<'a> {
    nodes: &'a [Node],
    pool: &'a XattrPool,
    shared: SharedXattrs,
    placed: Vec<Placed>,
    /// By node: its nid; 0 for those not in the tree.
    nids: Vec<u64>,
    epoch: Timestamp,
}

/// Writes everything behind the data, and the superblock.
pub(crate) fn write_metadata<W: Write + Seek>(
    nodes: &[Node],
    pool: &XattrPool,
    out: &mut BufWriter<W>,
    parameters: &Parameters,
) -> Result<Summary> {
    let order = reachable(nodes);
    let epoch = commonest_time(nodes, &order);
    let shared = share_xattrs(nodes, pool, &order)?;
    let mut layout = Layout {
        nodes,
        pool,
        shared,
        placed: Vec::new(),
        nids: vec![0; nodes.len()],
        epoch,
    };
    let directory_end = layout.measure(&order, parameters.first_block)?;
    let xattr_blocks = (layout.shared.bytes.len() as u64).div_ceil(BLOCK_U64);
    let meta_block = directory_end + xattr_blocks;
    let meta_bytes = layout.place();
    let blocks = meta_block + meta_bytes.div_ceil(BLOCK_U64);
    let too_large = |_| WriterError::Limit("blocks", u64::from(u32::MAX));
    let superblock = Superblock {
        root_nid: u16::try_from(FIRST_INODE / SLOT)
            .map_err(|_| WriterError::WrongKind("root inode"))?,
        inodes: layout.placed.len() as u64,
        seconds: epoch.seconds,
        nanoseconds: epoch.nanoseconds,
        blocks: u32::try_from(blocks).map_err(too_large)?,
        meta_block: u32::try_from(meta_block).map_err(too_large)?,
        xattr_block: u32::try_from(directory_end).map_err(too_large)?,
        uuid: parameters.uuid,
        chunked: parameters.chunked,
    };

    layout.write_outer_data(out, parameters.first_block)?;
    write(out, &layout.shared.bytes)?;
    pad(
        out,
        xattr_blocks * BLOCK_U64 - layout.shared.bytes.len() as u64,
    )?;
    layout.write_inodes(out)?;
    pad(out, meta_bytes.next_multiple_of(BLOCK_U64) - meta_bytes)?;

    out.seek(SeekFrom::Start(SUPER_OFFSET as u64))
        .map_err(WriterError::Output)?;
    write(out, &superblock.encode())?;
    out.flush().map_err(WriterError::Output)?;
    let content = |placed: &Placed| match nodes[placed.node.index()].body {
        Body::File { size, .. } | Body::Chunked { size, .. } => size,
        Body::Symlink(ref target) => target.len() as u64,
        _ => 0,
    };
    Ok(Summary {
        image_bytes: blocks * BLOCK_U64,
        inodes: layout.placed.len() as u64,
        content_bytes: layout
            .placed
            .iter()
            .map(content)
            .fold(0, u64::saturating_add),
    })
}

/// All nodes with a name, each once: a directory, then what is below it, by name.
fn reachable(nodes: &[Node]) -> Vec<NodeId> {
    let mut order = Vec::new();
    let mut seen = vec![false; nodes.len()];
    let mut pending = vec![NodeId::ROOT];
    while let Some(id) = pending.pop() {
        if std::mem::replace(&mut seen[id.index()], true) {
            continue;
        }
        order.push(id);
        if let Body::Directory { children, .. } = &nodes[id.index()].body {
            pending.extend(children.values().rev());
        }
    }
    order
}

/// The time that most inodes have; they can then be compact. The earliest of equals.
fn commonest_time(nodes: &[Node], order: &[NodeId]) -> Timestamp {
    let mut counts: HashMap<Timestamp, u64> = HashMap::new();
    for id in order {
        *counts.entry(nodes[id.index()].mtime).or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)))
        .map(|(time, _)| time)
        .unwrap_or_default()
}

fn share_xattrs(nodes: &[Node], pool: &XattrPool, order: &[NodeId]) -> Result<SharedXattrs> {
    let mut uses = vec![0_u32; pool.len()];
    for id in order {
        for index in &nodes[id.index()].xattrs {
            let count = &mut uses[*index as usize];
            *count = count.saturating_add(1);
        }
    }
    let mut shared = SharedXattrs {
        offsets: HashMap::new(),
        bytes: Vec::new(),
    };
    for (index, _) in uses.iter().enumerate().filter(|(_, count)| **count > 1) {
        let index = u32::try_from(index).map_err(|_| WriterError::XattrTooLarge)?;
        let offset = u32::try_from(shared.bytes.len() / 4);
        let offset = offset.map_err(|_| WriterError::XattrTooLarge)?;
        pool.get(index)
            .encode(&mut shared.bytes)
            .map_err(|_| WriterError::XattrTooLarge)?;
        shared.offsets.insert(index, offset);
    }
    Ok(shared)
}

impl Layout<'_> {
    /// Which of an inode's attributes are shared; the rest is inline.
    fn split_xattrs(&self, node: &Node) -> (Vec<u32>, Vec<u32>) {
        let mut shared = Vec::new();
        let mut inline = Vec::new();
        for index in &node.xattrs {
            match self.shared.offsets.get(index) {
                Some(offset) if shared.len() < MAX_SHARED => shared.push(*offset),
                _ => inline.push(*index),
            }
        }
        (shared, inline)
    }

    fn xattr_bytes(&self, node: &Node) -> usize {
        if node.xattrs.is_empty() {
            return 0;
        }
        let (shared, inline) = self.split_xattrs(node);
        let entries: usize = inline
            .iter()
            .map(|index| self.pool.get(*index).stored_bytes())
            .sum();
        XATTR_HEADER + 4 * shared.len() + entries
    }

    /// Decides each inode's form and gives directories and long symlinks their blocks from
    /// `block` on. Returns the first block behind them.
    fn measure(&mut self, order: &[NodeId], mut block: u64) -> Result<u64> {
        for id in order {
            let node = &self.nodes[id.index()];
            let xattr_bytes = self.xattr_bytes(node);
            let (size, outer) = match &node.body {
                Body::Directory { children, .. } => {
                    let size = directory_bytes(children.keys().map(|name| &name[..]));
                    (size, true)
                }
                Body::Symlink(target) => (target.len() as u64, true),
                Body::File { size, .. } | Body::Chunked { size, .. } => (*size, false),
                Body::Device(_) | Body::Pipe => (0, false),
                Body::Removed => continue,
            };
            let short = u32::from(u16::MAX);
            let extended = node.mtime != self.epoch
                || size > u64::from(u32::MAX)
                || node.links > short
                || node.uid > short
                || node.gid > short;
            let inode = if extended {
                EXTENDED_INODE
            } else {
                COMPACT_INODE
            };
            let mut layout = DataLayout::Plain;
            let mut trailer = 0;
            let mut start_block = 0;
            if outer {
                let tail = usize::try_from(size % BLOCK_U64).unwrap_or(BLOCK);
                start_block = block;
                if tail > 0 && tail <= MAX_INLINE && inode + xattr_bytes + tail <= BLOCK {
                    layout = DataLayout::Inline;
                    trailer = tail;
                    block += size / BLOCK_U64;
                } else {
                    block += size.div_ceil(BLOCK_U64);
                }
            }
            match &node.body {
                Body::File { tail, .. } if !tail.is_empty() => {
                    layout = DataLayout::Inline;
                    trailer = tail.len();
                }
                Body::Chunked { map, .. } => {
                    layout = DataLayout::Chunked;
                    trailer = map.len() * 4;
                }
                _ => {}
            }
            self.placed.push(Placed {
                node: *id,
                extended,
                layout,
                xattr_bytes,
                size,
                start_block,
                trailer,
                position: 0,
            });
        }
        Ok(block)
    }

    /// Gives every inode its place. An inode never lies across a block's end, and neither
    /// does what is inlined behind it (the kernel refuses that). Returns the bytes used.
    fn place(&mut self) -> u64 {
        let mut end = FIRST_INODE;
        let mut gaps: Vec<(u64, u64)> = Vec::new();
        for placed in &mut self.placed {
            let inode = if placed.extended {
                EXTENDED_INODE
            } else {
                COMPACT_INODE
            };
            let whole = (inode + placed.xattr_bytes + placed.trailer) as u64;
            let together = match placed.layout {
                DataLayout::Inline => whole,
                DataLayout::Plain | DataLayout::Chunked => inode as u64,
            };
            let reserved = whole.next_multiple_of(SLOT);
            let gap = gaps.iter_mut().find(|(_, length)| reserved <= *length);
            placed.position = if let Some((start, length)) = gap {
                let position = *start;
                *start += reserved;
                *length -= reserved;
                position
            } else {
                let room = BLOCK_U64 - end % BLOCK_U64;
                if together > room {
                    if gaps.len() == MAX_GAPS {
                        gaps.remove(0);
                    }
                    gaps.push((end, room));
                    end += room;
                }
                let position = end;
                end += reserved;
                position
            };
            gaps.retain(|(_, length)| *length >= COMPACT_INODE as u64);
            self.nids[placed.node.index()] = placed.position / SLOT;
        }
        end
    }

    /// Whole blocks of directories and long symlinks, in the order of `measure`.
    fn write_outer_data<W: Write + Seek>(&self, out: &mut W, first: u64) -> Result<()> {
        let mut block = first;
        for placed in &self.placed {
            let Some(data) = self.outer_data(placed) else {
                continue;
            };
            debug_assert_eq!(placed.start_block, block);
            let length = data.len() - placed.trailer;
            write(out, &data[..length])?;
            let padded = (length as u64).next_multiple_of(BLOCK_U64);
            pad(out, padded - length as u64)?;
            block += padded / BLOCK_U64;
        }
        Ok(())
    }

    fn outer_data(&self, placed: &Placed) -> Option<Vec<u8>> {
        match &self.nodes[placed.node.index()].body {
            Body::Directory { .. } => Some(self.encode_directory(placed.node)),
            Body::Symlink(target) => Some(target.to_vec()),
            _ => None,
        }
    }

    fn encode_directory(&self, id: NodeId) -> Vec<u8> {
        let Body::Directory {
            parent, children, ..
        } = &self.nodes[id.index()].body
        else {
            return Vec::new();
        };
        let mut data = Vec::new();
        let mut entries: Vec<(&[u8], NodeId)> = Vec::new();
        let mut used = 0;
        let mut flush = |entries: &mut Vec<(&[u8], NodeId)>, last: bool| {
            let start = data.len();
            let mut name_offset = entries.len() * DIRENT;
            for (name, node) in entries.iter() {
                let kind = format::dirent_type(self.nodes[node.index()].mode);
                // Below 4096 by the packing.
                let offset = u16::try_from(name_offset).unwrap_or(u16::MAX);
                format::encode_dirent(&mut data, self.nids[node.index()], offset, kind);
                name_offset += name.len();
            }
            for (name, _) in entries.drain(..) {
                data.extend_from_slice(name);
            }
            if !last {
                data.resize(start + BLOCK, 0);
            }
        };
        let children = children.iter().map(|(name, node)| (&name[..], *node));
        for (name, node) in with_dots(children, id, *parent) {
            let length = DIRENT + name.len();
            if used + length > BLOCK {
                flush(&mut entries, false);
                used = 0;
            }
            used += length;
            entries.push((name, node));
        }
        flush(&mut entries, true);
        data
    }

    fn write_inodes<W: Write + Seek>(&self, out: &mut W) -> Result<()> {
        let mut by_position: Vec<(usize, &Placed)> = self.placed.iter().enumerate().collect();
        by_position.sort_unstable_by_key(|(_, placed)| placed.position);
        let mut position = 0;
        let mut record = Vec::new();
        for (number, placed) in by_position {
            pad(out, placed.position - position)?;
            record.clear();
            self.encode_inode(number, placed, &mut record)?;
            record.resize(record.len().next_multiple_of(SLOT_BYTES), 0);
            write(out, &record)?;
            position = placed.position + record.len() as u64;
        }
        Ok(())
    }

    fn encode_inode(&self, number: usize, placed: &Placed, out: &mut Vec<u8>) -> Result<()> {
        let overflow = |_| WriterError::WrongKind("an inode's field overflows");
        let node = &self.nodes[placed.node.index()];
        let address = |block: u64| {
            u32::try_from(block).map_err(|_| WriterError::Limit("blocks", u64::from(u32::MAX)))
        };
        let union = match &node.body {
            Body::Directory { .. } | Body::Symlink(_) => address(placed.start_block)?,
            Body::File { start_block, .. } => *start_block,
            Body::Chunked { chunk_bits, .. } => u32::from(*chunk_bits),
            Body::Device(device) => *device,
            Body::Pipe | Body::Removed => 0,
        };
        InodeRecord {
            extended: placed.extended,
            layout: placed.layout,
            xattr_bytes: placed.xattr_bytes,
            mode: node.mode,
            links: node.links,
            size: placed.size,
            union,
            ino: u32::try_from(number + 1).unwrap_or(u32::MAX),
            uid: node.uid,
            gid: node.gid,
            seconds: node.mtime.seconds,
            nanoseconds: node.mtime.nanoseconds,
        }
        .encode(out)
        .map_err(overflow)?;
        if placed.xattr_bytes > 0 {
            let (shared, inline) = self.split_xattrs(node);
            out.extend_from_slice(&[0; 4]);
            out.push(u8::try_from(shared.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(&[0; 7]);
            for offset in shared {
                out.extend_from_slice(&offset.to_le_bytes());
            }
            for index in inline {
                self.pool.get(index).encode(out).map_err(overflow)?;
            }
        }
        match &node.body {
            Body::File { tail, .. } => out.extend_from_slice(tail),
            Body::Chunked { map, .. } => {
                for block in map {
                    out.extend_from_slice(&block.to_le_bytes());
                }
            }
            Body::Directory { .. } | Body::Symlink(_) if placed.trailer > 0 => {
                if let Some(data) = self.outer_data(placed) {
                    out.extend_from_slice(&data[data.len() - placed.trailer..]);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

const SLOT_BYTES: usize = 32;

/// A directory's size: whole blocks and what the last one uses.
fn directory_bytes<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut blocks = 0;
    let mut used = 0;
    // `.` and `..` take their places by order, which shifts what goes into which block.
    for (name, ()) in with_dots(names.map(|name| (name, ())), (), ()) {
        let length = DIRENT + name.len();
        if used + length > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += length;
    }
    blocks * BLOCK_U64 + used as u64
}

/// Adds `.` and `..` to sorted entries, at their places in byte order.
fn with_dots<'a, T>(
    entries: impl Iterator<Item = (&'a [u8], T)>,
    this: T,
    parent: T,
) -> impl Iterator<Item = (&'a [u8], T)> {
    let mut dots = [(&b"."[..], this), (&b".."[..], parent)]
        .into_iter()
        .peekable();
    let mut entries = entries.peekable();
    std::iter::from_fn(move || {
        let dot_first = match (dots.peek(), entries.peek()) {
            (Some((dot, _)), Some((name, _))) => dot < name,
            (dot, _) => dot.is_some(),
        };
        if dot_first {
            dots.next()
        } else {
            entries.next()
        }
    })
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(WriterError::Output)
}

fn pad(out: &mut impl Write, mut length: u64) -> Result<()> {
    while length > 0 {
        let part = length.min(BLOCK_U64);
        let zeros = &[0; BLOCK][..usize::try_from(part).unwrap_or(BLOCK)];
        write(out, zeros)?;
        length -= part;
    }
    Ok(())
}
