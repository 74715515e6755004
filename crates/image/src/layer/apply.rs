//! What the entries of a layer's tar do to its image: docker's rules, on a tree in memory, so
//! that no path can lead out of it.

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::BufRead;

use bulkhead_erofs::{
    Attributes, ImageWriter, NodeId, NodeKind, Options, Special, Summary, Timestamp, WriterError,
};

use bulkhead_tar::{Entry, EntryKind, TarStream, readable};

use crate::error::{ImageError, Result};

/// Most entries of one tar, extensions not counted.
const MAX_ENTRIES: u64 = 10_000_000;
/// Longest path, in bytes: Linux's PATH_MAX without its NUL.
const MAX_PATH: usize = 4095;
/// Symlinks followed for one path, as the kernel's limit.
const MAX_SYMLINKS: usize = 40;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Attributes by which overlayfs would let an image redirect or hide what it did not bring.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// Writes the image of the layer whose tar is `input`, up to the tar's end marker.
pub(crate) fn write_image<R: BufRead>(
    input: &mut TarStream<R>,
    output: &File,
    options: Options,
) -> Result<Summary> {
    let writer = ImageWriter::new(output, options).map_err(|error| write_error(b"/", error))?;
    let mut layer = Layer {
        writer,
        whiteouts: HashSet::new(),
        kept_xattrs: true,
    };
    let mut entries = 0_u64;
    while let Some(entry) = input.next_entry()? {
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(refuse(
                &entry.path,
                format!("more than {MAX_ENTRIES} entries"),
            ));
        }
        layer.apply(entry, input)?;
    }
    let (_, summary) = layer
        .writer
        .finish()
        .map_err(|error| write_error(b"/", error))?;
    Ok(summary)
}

struct Layer<'a> {
    writer: ImageWriter<&'a File>,
    /// Devices that stand for `.wh.` entries.
    whiteouts: HashSet<NodeId>,
    /// False once a warning about an unsupported attribute was written.
    kept_xattrs: bool,
}

impl Layer<'_> {
    fn apply(&mut self, mut entry: Entry, data: &mut dyn BufRead) -> Result<()> {
        let path = std::mem::take(&mut entry.path);
        let components = components(&path)?;
        let Some((name, parents)) = components.split_last() else {
            // The root itself: docker leaves it as it is.
            return Ok(());
        };
        // A layer's names are relative to its root; one that isn't was made for another place.
        if path.starts_with(b"/") {
            return Err(refuse(&path, "absolute path"));
        }
        if components
            .iter()
            .any(|part| part.starts_with(WHITEOUT_META_PREFIX))
        {
            if *name == OPAQUE_MARKER {
                let directory = self.directory(&path, parents, Some(entry.mtime))?;
                self.make_opaque(&path, directory)?;
            }
            return Ok(());
        }
        let parent = self.directory(&path, parents, Some(entry.mtime))?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(&path, parent, hidden);
        }
        let attributes = self.attributes(&path, &mut entry);
        let existing = self.writer.lookup(parent, name);
        if let Some(existing) = existing {
            let is_directory = self.writer.kind(existing) == NodeKind::Directory;
            if is_directory && entry.kind == EntryKind::Directory {
                return self
                    .writer
                    .set_directory_attributes(existing, &attributes)
                    .map_err(|error| write_error(&path, error));
            }
            self.writer.remove(parent, name);
        }
        self.create(&path, parent, name, &entry, &attributes, data)?;
        // Hidden below and made anew: nothing from below may show through.
        if let Some(existing) = existing
            && self.whiteouts.remove(&existing)
            && let Some(made) = self.writer.lookup(parent, name)
            && self.writer.kind(made) == NodeKind::Directory
        {
            self.make_opaque(&path, made)?;
        }
        Ok(())
    }

    fn create(
        &mut self,
        path: &[u8],
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
        attributes: &Attributes,
        data: &mut dyn BufRead,
    ) -> Result<()> {
        let special = match entry.kind {
            EntryKind::CharacterDevice { major, minor } => {
                Some(Special::CharacterDevice { major, minor })
            }
            EntryKind::BlockDevice { major, minor } => Some(Special::BlockDevice { major, minor }),
            EntryKind::Fifo => Some(Special::Fifo),
            _ => None,
        };
        let writer = &mut self.writer;
        let made = match entry.kind {
            EntryKind::HardLink => return self.hard_link(path, parent, name, &entry.link),
            EntryKind::Directory => writer.add_directory(parent, name, attributes),
            EntryKind::Symlink => writer.add_symlink(parent, name, &entry.link, attributes),
            EntryKind::File => match &entry.extents {
                Some(extents) => {
                    writer.add_sparse_file(parent, name, attributes, entry.size, extents, data)
                }
                None => writer.add_file(parent, name, attributes, entry.size, data),
            },
            EntryKind::CharacterDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo => {
                match special {
                    Some(special) => writer.add_special(parent, name, special, attributes),
                    None => Err(WriterError::WrongKind("no device")),
                }
            }
        };
        made.map(|_| ()).map_err(|error| write_error(path, error))
    }

    fn hard_link(&mut self, path: &[u8], parent: NodeId, name: &[u8], link: &[u8]) -> Result<()> {
        let missing = || {
            refuse(
                path,
                format!("hard link to {}, which the layer lacks", readable(link)),
            )
        };
        let target = components(link).map_err(|_| {
            refuse(
                path,
                format!("hard link to {} leads out of the layer", readable(link)),
            )
        })?;
        let (last, parents) = target.split_last().ok_or_else(missing)?;
        let directory = self.directory(path, parents, None)?;
        let node = self.writer.lookup(directory, last).ok_or_else(missing)?;
        self.writer
            .add_link(parent, name, node)
            .map_err(|error| write_error(path, error))
    }

    fn whiteout(&mut self, path: &[u8], parent: NodeId, name: &[u8]) -> Result<()> {
        if let Some(existing) = self.writer.lookup(parent, name) {
            // A whiteout hides what is below this layer, never what the layer brings.
            return match self.writer.kind(existing) {
                NodeKind::Directory => self.make_opaque(path, existing),
                _ => Ok(()),
            };
        }
        let device = Special::CharacterDevice { major: 0, minor: 0 };
        let node = self
            .writer
            .add_special(parent, name, device, &Attributes::default())
            .map_err(|error| write_error(path, error))?;
        self.whiteouts.insert(node);
        Ok(())
    }

    fn make_opaque(&mut self, path: &[u8], directory: NodeId) -> Result<()> {
        let opaque = [(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())];
        self.writer
            .add_directory_xattrs(directory, &opaque)
            .map_err(|error| write_error(path, error))
    }

    fn attributes(&mut self, path: &[u8], entry: &mut Entry) -> Attributes {
        let mut xattrs = std::mem::take(&mut entry.xattrs);
        xattrs.retain(|(name, _)| {
            let stored = [
                &b"user."[..],
                b"trusted.",
                b"security.",
                b"system.posix_acl_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix));
            let kept = stored && !name.starts_with(OVERLAY_XATTRS);
            if !kept && self.kept_xattrs {
                self.kept_xattrs = false;
                let (path, name) = (readable(path), readable(name));
                tracing::warn!(path, name, "extended attribute not kept; more may follow");
            }
            kept
        });
        Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs,
        }
    }

    /// The directory at `parts`, symlinks within the layer followed. What is missing is made
    /// (0755, root) if `create` gives a time; never behind a symlink that leads nowhere.
    fn directory(
        &mut self,
        path: &[u8],
        parts: &[&[u8]],
        create: Option<Timestamp>,
    ) -> Result<NodeId> {
        let mut pending: VecDeque<Cow<'_, [u8]>> =
            parts.iter().map(|part| Cow::Borrowed(*part)).collect();
        let mut current = NodeId::ROOT;
        // How many of the pending parts come from a symlink's target.
        let mut from_link = 0_usize;
        let mut symlinks = 0;
        while let Some(part) = pending.pop_front() {
            let is_from_link = from_link > 0;
            from_link = from_link.saturating_sub(1);
            if &*part == b".." {
                // Only targets of symlinks still have these.
                if current == NodeId::ROOT {
                    return Err(refuse(path, "a symlink on its way leads out of the layer"));
                }
                current = self.writer.parent(current).unwrap_or(NodeId::ROOT);
                continue;
            }
            let Some(found) = self.writer.lookup(current, &part) else {
                let Some(mtime) = create.filter(|_| !is_from_link) else {
                    return Err(refuse(path, format!("{} does not exist", readable(&part))));
                };
                let attributes = Attributes {
                    mode: 0o755,
                    mtime,
                    ..Attributes::default()
                };
                current = self
                    .writer
                    .add_directory(current, &part, &attributes)
                    .map_err(|error| write_error(path, error))?;
                continue;
            };
            match self.writer.kind(found) {
                NodeKind::Directory => current = found,
                NodeKind::Symlink => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(refuse(path, "too many symlinks on its way"));
                    }
                    let target = self
                        .writer
                        .symlink_target(found)
                        .unwrap_or_default()
                        .to_vec();
                    if target.starts_with(b"/") {
                        current = NodeId::ROOT;
                    }
                    let parts = target.split(|byte| *byte == b'/');
                    for part in parts.rev().filter(|part| !matches!(*part, b"" | b".")) {
                        pending.push_front(Cow::Owned(part.to_vec()));
                        from_link += 1;
                    }
                }
                // Hidden below, and now something is put into it: it is made anew.
                NodeKind::Special if create.is_some() && self.whiteouts.remove(&found) => {
                    self.writer.remove(current, &part);
                    let mtime = create.unwrap_or_default();
                    let attributes = Attributes {
                        mode: 0o755,
                        mtime,
                        ..Attributes::default()
                    };
                    current = self
                        .writer
                        .add_directory(current, &part, &attributes)
                        .map_err(|error| write_error(path, error))?;
                    self.make_opaque(path, current)?;
                }
                NodeKind::File | NodeKind::Special => {
                    return Err(refuse(
                        path,
                        format!("{} is not a directory", readable(&part)),
                    ));
                }
            }
        }
        Ok(current)
    }
}

/// A path's parts, `.` and empty ones dropped, `..` resolved by the text alone as docker does.
/// A leading slash is dropped (of link targets; entries may not have one); a path that leads
/// out of the root is refused.
fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > MAX_PATH {
        return Err(refuse(
            path,
            format!("path is longer than {MAX_PATH} bytes"),
        ));
    }
    if path.contains(&0) {
        return Err(refuse(path, "NUL in a path"));
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts
                    .pop()
                    .ok_or_else(|| refuse(path, "path leads out of the layer"))?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

fn refuse(path: &[u8], why: impl std::fmt::Display) -> ImageError {
    ImageError::InvalidInput(format!("invalid layer: {}: {why}", readable(path)))
}

/// The store's disk is our matter, all else is the layer's.
fn write_error(path: &[u8], error: WriterError) -> ImageError {
    match error {
        WriterError::Output(source) => ImageError::Storage {
            what: "write a layer's image".to_owned(),
            source,
        },
        WriterError::Input(source) => ImageError::Input {
            what: readable(path),
            source,
        },
        error => refuse(path, error),
    }
}
