//! A layer as it is planned and written: each path once, parents first, in order.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use crate::tree::{Kind, Mtime, Node, SourceTree};

/// Where a file's content comes from.
#[derive(Clone)]
pub enum Content {
    /// From a tree.
    Tree(std::sync::Arc<dyn SourceTree>, PathBuf),
    /// What is no file.
    None,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tree(_, path) => formatter.debug_tuple("Tree").field(path).finish(),
            Self::None => formatter.write_str("None"),
        }
    }
}

/// A planned entry.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What it will be.
    pub node: Node,
    /// What is in it.
    pub content: Content,
}

/// A layer in the making: what each path will be.
#[derive(Debug, Default)]
pub struct Plan {
    entries: BTreeMap<PathBuf, Planned>,
}

/// Most entries of one step.
const MAX_ENTRIES: usize = 4 << 20;

impl Plan {
    /// What is planned at a path.
    pub fn get(&self, path: &Path) -> Option<&Planned> {
        self.entries.get(path)
    }

    /// Plans a directory unless one is planned.
    pub fn ensure_directory(&mut self, path: &Path, node: Node) {
        let exists = self
            .entries
            .get(path)
            .is_some_and(|planned| planned.node.is_directory());
        if !exists && !path.as_os_str().is_empty() {
            self.entries.insert(
                path.to_owned(),
                Planned {
                    node,
                    content: Content::None,
                },
            );
        }
    }

    /// Plans an entry over what was planned there: what was below goes unless both are
    /// directories.
    ///
    /// # Errors
    /// That there are too many.
    pub fn put(&mut self, path: PathBuf, planned: Planned) -> io::Result<()> {
        if !planned.node.is_directory()
            && self
                .entries
                .get(&path)
                .is_some_and(|before| before.node.is_directory())
        {
            self.entries.retain(|other, _| !other.starts_with(&path));
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(io::Error::other(format!(
                "a step may not make more than {MAX_ENTRIES} files"
            )));
        }
        self.entries.insert(path, planned);
        Ok(())
    }

    /// Writes the layer as a tar stream. Times later than `latest` become `latest`.
    ///
    /// # Errors
    /// Of reading the contents, or of the target.
    pub fn write(&self, target: impl Write, latest: Option<i64>) -> io::Result<()> {
        let mut writer = TarWriter { target };
        let mut first_names: HashMap<(usize, u64), &Path> = HashMap::new();
        for (path, planned) in &self.entries {
            let mut node = planned.node.clone();
            if let Some(latest) = latest
                && (node.mtime.seconds >= latest)
            {
                node.mtime = Mtime {
                    seconds: latest,
                    nanoseconds: 0,
                };
            }
            let Kind::File { size } = node.kind else {
                writer.entry(path, &node, None)?;
                continue;
            };
            let same_file = match &planned.content {
                Content::Tree(tree, _) => node.identity.map(|identity| {
                    let tree = std::sync::Arc::as_ptr(tree).cast::<()>().addr();
                    (tree, identity)
                }),
                _ => None,
            };
            if let Some(same_file) = same_file {
                if let Some(first) = first_names.get(&same_file) {
                    writer.hard_link(path, first, &node)?;
                    continue;
                }
                first_names.insert(same_file, path);
            }
            match &planned.content {
                Content::Tree(tree, source) => {
                    let mut content = tree.open(source)?;
                    writer.entry(path, &node, Some((&mut content, size)))?;
                }
                Content::None => {
                    writer.entry(path, &node, Some((&mut io::empty(), 0)))?;
                }
            }
        }
        writer.finish()
    }
}

/// Feeds what makes a file or directory what it is, but its times, into a hash.
pub fn hash_node(hasher: &mut sha2::Sha256, path: &Path, node: &Node, content: Option<[u8; 32]>) {
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(path.as_os_str().as_bytes());
    let (kind, detail): (&[u8], Vec<u8>) = match &node.kind {
        Kind::Directory => (b"d", Vec::new()),
        Kind::File { size } => (b"f", size.to_le_bytes().to_vec()),
        Kind::Symlink(target) => (b"l", target.as_bytes().to_vec()),
        Kind::Fifo => (b"p", Vec::new()),
        Kind::CharacterDevice(major, minor) | Kind::BlockDevice(major, minor) => (
            if matches!(node.kind, Kind::BlockDevice(..)) {
                b"b"
            } else {
                b"c"
            },
            [major.to_le_bytes(), minor.to_le_bytes()].concat(),
        ),
    };
    field(kind);
    field(&detail);
    field(&node.mode.to_le_bytes());
    field(&node.uid.to_le_bytes());
    field(&node.gid.to_le_bytes());
    for (name, value) in &node.xattrs {
        field(name.as_bytes());
        field(value);
    }
    field(&content.unwrap_or_default());
}

/// The SHA-256 of a stream.
///
/// # Errors
/// Of reading it.
pub fn content_digest(mut content: impl Read) -> io::Result<[u8; 32]> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// POSIX headers, with pax records for what does not fit: the same bytes for the same nodes.
struct TarWriter<W> {
    target: W,
}

impl<W: Write> TarWriter<W> {
    fn entry(
        &mut self,
        path: &Path,
        node: &Node,
        content: Option<(&mut dyn Read, u64)>,
    ) -> io::Result<()> {
        let (kind, link, device) = match &node.kind {
            Kind::Directory => (tar::EntryType::Directory, None, None),
            Kind::File { .. } => (tar::EntryType::Regular, None, None),
            Kind::Symlink(target) => (tar::EntryType::Symlink, Some(target.as_os_str()), None),
            Kind::Fifo => (tar::EntryType::Fifo, None, None),
            Kind::CharacterDevice(major, minor) => {
                (tar::EntryType::Char, None, Some((*major, *minor)))
            }
            Kind::BlockDevice(major, minor) => {
                (tar::EntryType::Block, None, Some((*major, *minor)))
            }
        };
        let size = content.as_ref().map_or(0, |(_, size)| *size);
        self.header(path, node, kind, link, device, size)?;
        let Some((content, size)) = content else {
            return Ok(());
        };
        let written = io::copy(&mut content.take(size), &mut self.target)?;
        if written != size {
            return Err(io::Error::other(format!(
                "{} became shorter while it was read",
                path.display()
            )));
        }
        self.pad(size)
    }

    fn hard_link(&mut self, path: &Path, first: &Path, node: &Node) -> io::Result<()> {
        let kind = tar::EntryType::Link;
        self.header(path, node, kind, Some(first.as_os_str()), None, 0)
    }

    fn header(
        &mut self,
        path: &Path,
        node: &Node,
        kind: tar::EntryType,
        link: Option<&OsStr>,
        device: Option<(u32, u32)>,
        size: u64,
    ) -> io::Result<()> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == tar::EntryType::Directory {
            name.push(b'/');
        }
        let mut records = Vec::new();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(node.mode & 0o7777);
        fill(&mut header.as_old_mut().name, &name, "path", &mut records);
        if let Some(link) = link {
            fill(
                &mut header.as_old_mut().linkname,
                link.as_bytes(),
                "linkpath",
                &mut records,
            );
        }
        let small = |value: u64, limit: u64, key: &str, records: &mut Vec<u8>| {
            if value < limit {
                value
            } else {
                record(records, key, value.to_string().as_bytes());
                0
            }
        };
        header.set_uid(small(node.uid.into(), 1 << 21, "uid", &mut records));
        header.set_gid(small(node.gid.into(), 1 << 21, "gid", &mut records));
        header.set_size(small(size, 1 << 33, "size", &mut records));
        match u64::try_from(node.mtime.seconds) {
            Ok(seconds) if seconds < 1 << 33 && node.mtime.nanoseconds == 0 => {
                header.set_mtime(seconds);
            }
            _ => {
                header.set_mtime(0);
                let mut text = node.mtime.seconds.to_string();
                if node.mtime.nanoseconds != 0 {
                    let fraction = format!("{:09}", node.mtime.nanoseconds);
                    text = format!("{text}.{}", fraction.trim_end_matches('0'));
                }
                record(&mut records, "mtime", text.as_bytes());
            }
        }
        let (major, minor) = device.unwrap_or((0, 0));
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        if kind != tar::EntryType::Link {
            for (name, value) in &node.xattrs {
                record(&mut records, &format!("SCHILY.xattr.{name}"), value);
            }
        }
        if !records.is_empty() {
            let mut extension = tar::Header::new_ustar();
            extension.set_entry_type(tar::EntryType::XHeader);
            extension.set_mode(0o644);
            extension.set_size(records.len() as u64);
            extension.set_mtime(0);
            extension.set_uid(0);
            extension.set_gid(0);
            let name = b"PaxHeaders/entry";
            extension.as_old_mut().name[..name.len()].copy_from_slice(name);
            extension.set_cksum();
            self.target.write_all(extension.as_bytes())?;
            self.target.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        header.set_cksum();
        self.target.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0);
        self.target.write_all(&[0; 512][..rest])
    }

    fn finish(mut self) -> io::Result<()> {
        self.target.write_all(&[0; 1024])?;
        self.target.flush()
    }
}

/// Puts a text into a header's field, or into a record if it does not fit.
fn fill(field: &mut [u8; 100], text: &[u8], key: &str, records: &mut Vec<u8>) {
    if text.len() <= field.len() {
        field[..text.len()].copy_from_slice(text);
    } else {
        record(records, key, text);
    }
}

/// `length key=value\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend(format!("{length} {key}=").as_bytes());
    records.extend(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut plan = Plan::default();
        let mtime = Mtime {
            seconds: 1_700_000_000,
            nanoseconds: 5_000_000,
        };
        plan.ensure_directory(Path::new("d"), Node::directory(0o750, 1, 2, mtime));
        let long = PathBuf::from("d").join("x".repeat(150));
        let mut node = Node::directory(0o4755, 3_000_000, 2, mtime);
        node.kind = Kind::File { size: 5 };
        node.xattrs.insert("user.a".to_owned(), b"\0b".to_vec());
        let spool = tempfile::tempfile().unwrap();
        let file = Some((Path::new("f"), &mut &b"hello"[..] as &mut (dyn Read + Send)));
        let tree = crate::tree::ContextTree::of_file(file, 0o644, mtime, spool).unwrap();
        let planned = Planned {
            node,
            content: Content::Tree(std::sync::Arc::new(tree), PathBuf::from("f")),
        };
        plan.put(long.clone(), planned).unwrap();
        let mut bytes = Vec::new();
        plan.write(&mut bytes, None).unwrap();
        let mut again = Vec::new();
        plan.write(&mut again, None).unwrap();
        assert_eq!(bytes, again);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let directory = entries.next().unwrap().unwrap();
        assert_eq!(directory.path().unwrap(), Path::new("d/"));
        let mut file = entries.next().unwrap().unwrap();
        assert_eq!(file.path().unwrap(), long);
        assert_eq!(file.header().mode().unwrap(), 0o4755);
        let records: Vec<(String, Vec<u8>)> = file
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|record| {
                let record = record.unwrap();
                (
                    record.key().unwrap().to_owned(),
                    record.value_bytes().to_vec(),
                )
            })
            .collect();
        let value = |key: &str| {
            let found = records.iter().find(|(name, _)| name == key);
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        assert_eq!(value("mtime").unwrap(), "1700000000.005");
        assert_eq!(value("uid").unwrap(), "3000000");
        assert_eq!(value("SCHILY.xattr.user.a").unwrap(), "\0b");
        assert!(entries.next().is_none());
        let mut clamped = Vec::new();
        plan.write(&mut clamped, Some(7)).unwrap();
        let mut archive = tar::Archive::new(&clamped[..]);
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.header().mtime().unwrap(), 7);
    }

    #[test]
    fn a_file_takes_the_place_of_a_directory() {
        let mut plan = Plan::default();
        let node = Node::directory(0o755, 0, 0, Mtime::default());
        plan.ensure_directory(Path::new("a"), node.clone());
        plan.ensure_directory(Path::new("a/b"), node.clone());
        let mut file = node;
        file.kind = Kind::File { size: 0 };
        let planned = Planned {
            node: file,
            content: Content::None,
        };
        plan.put(PathBuf::from("a"), planned).unwrap();
        assert!(plan.get(Path::new("a/b")).is_none());
    }
}
