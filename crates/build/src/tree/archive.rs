//! A build context: the archive that a client sent, kept as one spooled file with an index.
//!
//! Nothing is unpacked, so no entry can reach anything: names are cleaned, links are data,
//! and content is read by its offset in the spool.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::Digest as _;

use super::{Kind, Mtime, Node, SourceTree, clean};

/// What a context may be.
#[derive(Debug, Clone, Copy)]
pub struct ContextLimits {
    /// Bytes of all files.
    pub bytes: u64,
    /// Entries, directories that are implied too.
    pub entries: usize,
    /// Parts of a path.
    pub depth: usize,
    /// Bytes of a path.
    pub path: usize,
}

impl Default for ContextLimits {
    fn default() -> Self {
        Self {
            bytes: 256 << 30,
            entries: 1 << 20,
            depth: 256,
            path: 4095,
        }
    }
}

/// Why a stream is no context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It is malformed or over a limit.
    #[error("build context: {0}")]
    Invalid(String),
    /// The client's stream broke.
    #[error("read the build context")]
    Read(#[source] io::Error),
    /// The spool could not be written.
    #[error("keep the build context")]
    Spool(#[source] io::Error),
}

struct Entry {
    node: Node,
    offset: u64,
    digest: [u8; 32],
    /// A directory that only the names below it tell of.
    implied: bool,
}

/// An archive with what is missing of its last block: docker's client ends with a file's last
/// byte when it adds a Dockerfile from elsewhere to the context.
struct Padded<R> {
    source: R,
    /// Bytes that were really there.
    real: u64,
    /// Zeros that are still to come after them.
    missing: Option<u64>,
}

impl<R> Padded<R> {
    /// Bytes of a block.
    const BLOCK: u64 = 512;

    fn new(source: R) -> Self {
        Self {
            source,
            real: 0,
            missing: None,
        }
    }
}

impl<R: Read> Read for Padded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.missing.is_none() && !buffer.is_empty() {
            let got = self.source.read(buffer)?;
            if got > 0 {
                self.real = self
                    .real
                    .saturating_add(u64::try_from(got).unwrap_or(u64::MAX));
                return Ok(got);
            }
        }
        let missing = self
            .missing
            .get_or_insert((Self::BLOCK - self.real % Self::BLOCK) % Self::BLOCK);
        let got = usize::try_from(*missing)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        buffer[..got].fill(0);
        *missing -= u64::try_from(got).unwrap_or(*missing);
        Ok(got)
    }
}

/// See the module's documentation.
pub struct ContextTree {
    spool: Arc<File>,
    entries: HashMap<PathBuf, Entry>,
    children: HashMap<PathBuf, BTreeMap<OsString, ()>>,
    received: u64,
}

impl std::fmt::Debug for ContextTree {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ContextTree")
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

impl ContextTree {
    /// Reads an archive, plain or compressed, to its end; `spool` is an empty file for what is
    /// in it.
    ///
    /// # Errors
    /// [`ContextError`]; a limit counts as invalid.
    pub fn read(
        source: &mut (dyn Read + Send),
        spool: File,
        limits: ContextLimits,
    ) -> Result<Self, ContextError> {
        let mut failure = SourceFailure::default();
        let outcome = {
            let mut watched = Watched {
                source,
                failure: &mut failure,
            };
            Self::read_watched(&mut watched, spool, limits)
        };
        match (failure.0, outcome) {
            (Some(error), _) => Err(ContextError::Read(error)),
            (None, outcome) => outcome,
        }
    }

    fn read_watched(
        source: &mut dyn Read,
        spool: File,
        limits: ContextLimits,
    ) -> Result<Self, ContextError> {
        let invalid = |error: io::Error| ContextError::Invalid(error.to_string());
        let source = crate::compression::decoder(source).map_err(invalid)?;
        let mut archive = tar::Archive::new(Padded::new(source));
        archive.set_ignore_zeros(false);
        let writer = spool.try_clone().map_err(ContextError::Spool)?;
        let mut tree = Self {
            spool: Arc::new(spool),
            entries: HashMap::new(),
            children: HashMap::new(),
            received: 0,
        };
        let mut writer = BufWriter::with_capacity(256 << 10, writer);
        let mut end = 0;
        for entry in archive.entries().map_err(invalid)? {
            let mut entry = entry.map_err(invalid)?;
            tree.add(&mut entry, &mut writer, &limits)?;
            // Of a sparse file less is in the archive than its size, and the header says that.
            let size = match entry.header().entry_type() {
                tar::EntryType::GNUSparse => entry.header().entry_size().map_err(invalid)?,
                _ => entry.size(),
            };
            end = entry.raw_file_position().saturating_add(size);
        }
        writer.flush().map_err(ContextError::Spool)?;
        drop(writer);
        // What follows the end marker is read too: clients write before they listen.
        let mut source = archive.into_inner();
        io::copy(&mut source, &mut io::sink()).map_err(invalid)?;
        if end > source.real {
            return Err(invalid(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(tree)
    }

    /// A tree of one file, or of none.
    ///
    /// # Errors
    /// As [`ContextTree::read`].
    pub fn of_file(
        file: Option<(&Path, &mut (dyn Read + Send))>,
        mode: u32,
        mtime: Mtime,
        spool: File,
    ) -> Result<Self, ContextError> {
        let limits = ContextLimits::default();
        let writer = spool.try_clone().map_err(ContextError::Spool)?;
        let mut writer = BufWriter::with_capacity(256 << 10, writer);
        let mut tree = Self {
            spool: Arc::new(spool),
            entries: HashMap::new(),
            children: HashMap::new(),
            received: 0,
        };
        if let Some((path, content)) = file {
            let (size, digest) = tree.spool_content(content, &mut writer, &limits)?;
            let mut node = Node::directory(mode, 0, 0, mtime);
            node.kind = Kind::File { size };
            let entry = Entry {
                node,
                offset: 0,
                digest,
                implied: false,
            };
            tree.insert(clean(path), entry, &limits)?;
        }
        writer.flush().map_err(ContextError::Spool)?;
        Ok(tree)
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.received
    }

    /// Takes a file out, as if it had not been sent.
    pub fn remove(&mut self, path: &Path) {
        let path = clean(path);
        if self.entries.remove(&path).is_some()
            && let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Some(names) = self.children.get_mut(parent)
        {
            names.remove(name);
        }
    }

    /// A small file's content; `None` if there is no such file.
    ///
    /// # Errors
    /// That it is larger than `limit`, or cannot be read.
    pub fn read_small(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let path = super::resolve(self, path)?;
        match self.entries.get(&path).map(|entry| &entry.node.kind) {
            Some(Kind::File { size }) if *size > limit => Err(io::Error::other(format!(
                "{} is over {limit} bytes",
                path.display()
            ))),
            Some(Kind::File { .. }) => {
                let mut bytes = Vec::new();
                self.open(&path)?.read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
            _ => Ok(None),
        }
    }

    fn add<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        writer: &mut BufWriter<File>,
        limits: &ContextLimits,
    ) -> Result<(), ContextError> {
        let invalid = |error: io::Error| ContextError::Invalid(error.to_string());
        let raw = entry.path_bytes().into_owned();
        if raw.len() > limits.path {
            return Err(ContextError::Invalid("a path is too long".to_owned()));
        }
        let named = PathBuf::from(OsString::from_vec(raw));
        if super::leaves(&named) {
            return Err(ContextError::Invalid(format!(
                "{} is outside of the context",
                named.display()
            )));
        }
        let path = clean(&named);
        if path.iter().count() > limits.depth {
            return Err(ContextError::Invalid("a path is too deep".to_owned()));
        }
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let header = entry.header();
        let kind = header.entry_type();
        let mode = header.mode().map_err(invalid)? & 0o7777;
        // Fields may be blank.
        let id = |field: io::Result<u64>| {
            let value = field.unwrap_or_default();
            u32::try_from(value).unwrap_or_default()
        };
        let mtime = Mtime {
            seconds: i64::try_from(header.mtime().unwrap_or_default()).unwrap_or_default(),
            nanoseconds: 0,
        };
        let mut node = Node::directory(mode, id(header.uid()), id(header.gid()), mtime);
        self.extensions(entry, &mut node)?;
        let mut offset = 0;
        let mut digest = [0; 32];
        if kind.is_dir() {
            // As it is.
        } else if kind.is_file() || kind == tar::EntryType::Continuous {
            offset = self.received;
            let (size, hash) = self.spool_content(entry, writer, limits)?;
            node.kind = Kind::File { size };
            digest = hash;
        } else if kind.is_symlink() {
            let target = entry
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default();
            if target.len() > limits.path {
                return Err(ContextError::Invalid("a link is too long".to_owned()));
            }
            node.kind = Kind::Symlink(OsString::from_vec(target));
            node.mode = 0o777;
        } else if kind.is_hard_link() {
            let target = entry
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default();
            let target = clean(&PathBuf::from(OsString::from_vec(target)));
            let Some(first) = self.entries.get_mut(&target) else {
                return Err(ContextError::Invalid(format!(
                    "{} links to {}, which is not there",
                    path.display(),
                    target.display()
                )));
            };
            if !matches!(first.node.kind, Kind::File { .. }) {
                return Err(ContextError::Invalid(format!(
                    "{} links to {}, which is no file",
                    path.display(),
                    target.display()
                )));
            }
            first.node.identity.get_or_insert(first.offset);
            node = first.node.clone();
            offset = first.offset;
            digest = first.digest;
        } else {
            let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or_default();
            let (major, minor) = (
                number(entry.header().device_major()),
                number(entry.header().device_minor()),
            );
            node.kind = match kind {
                tar::EntryType::Fifo => Kind::Fifo,
                tar::EntryType::Char => Kind::CharacterDevice(major, minor),
                tar::EntryType::Block => Kind::BlockDevice(major, minor),
                // Global headers and what no file system has.
                _ => return Ok(()),
            };
        }
        self.insert(
            path,
            Entry {
                node,
                offset,
                digest,
                implied: false,
            },
            limits,
        )
    }

    fn extensions<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        node: &mut Node,
    ) -> Result<(), ContextError> {
        let Some(extensions) = entry
            .pax_extensions()
            .map_err(|error| ContextError::Invalid(error.to_string()))?
        else {
            return Ok(());
        };
        for extension in extensions {
            let extension = extension.map_err(|error| ContextError::Invalid(error.to_string()))?;
            let Ok(key) = extension.key() else { continue };
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                if name == "security.capability" || name.starts_with("user.") {
                    node.xattrs
                        .insert(name.to_owned(), extension.value_bytes().to_vec());
                }
            } else if key == "mtime"
                && let Ok(text) = extension.value()
                && let Some(mtime) = parse_mtime(text)
            {
                node.mtime = mtime;
            }
        }
        Ok(())
    }

    fn spool_content(
        &mut self,
        entry: &mut dyn Read,
        writer: &mut BufWriter<File>,
        limits: &ContextLimits,
    ) -> Result<(u64, [u8; 32]), ContextError> {
        let mut hasher = sha2::Sha256::new();
        let mut size = 0_u64;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = entry
                .read(&mut buffer)
                .map_err(|error| ContextError::Invalid(error.to_string()))?;
            if length == 0 {
                break;
            }
            size += length as u64;
            self.received += length as u64;
            if self.received > limits.bytes {
                return Err(ContextError::Invalid(format!(
                    "it is over {} bytes",
                    limits.bytes
                )));
            }
            hasher.update(&buffer[..length]);
            writer
                .write_all(&buffer[..length])
                .map_err(ContextError::Spool)?;
        }
        Ok((size, hasher.finalize().into()))
    }

    fn insert(
        &mut self,
        path: PathBuf,
        entry: Entry,
        limits: &ContextLimits,
    ) -> Result<(), ContextError> {
        let mut parents: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty())
            .map(Path::to_owned)
            .collect();
        parents.reverse();
        for parent in parents {
            match self.entries.get(&parent) {
                Some(existing) if existing.node.is_directory() => {}
                Some(_) => {
                    return Err(ContextError::Invalid(format!(
                        "{} is below {}, which is no directory",
                        path.display(),
                        parent.display()
                    )));
                }
                None => {
                    let node = Node::directory(0o755, 0, 0, entry.node.mtime);
                    self.link(
                        parent,
                        Entry {
                            node,
                            offset: 0,
                            digest: [0; 32],
                            implied: true,
                        },
                        limits,
                    )?;
                }
            }
        }
        if let Some(existing) = self.entries.get(&path)
            && existing.node.is_directory()
            && !entry.node.is_directory()
            && self
                .children
                .get(&path)
                .is_some_and(|names| !names.is_empty())
        {
            return Err(ContextError::Invalid(format!(
                "{} is a directory and then a file",
                path.display()
            )));
        }
        self.link(path, entry, limits)
    }

    fn link(
        &mut self,
        path: PathBuf,
        entry: Entry,
        limits: &ContextLimits,
    ) -> Result<(), ContextError> {
        if self.entries.len() >= limits.entries {
            return Err(ContextError::Invalid(format!(
                "it has more than {} entries",
                limits.entries
            )));
        }
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            self.children
                .entry(parent.to_owned())
                .or_default()
                .insert(name.to_owned(), ());
        }
        self.entries.insert(path, entry);
        Ok(())
    }
}

fn parse_mtime(text: &str) -> Option<Mtime> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = seconds.parse().ok()?;
    let mut digits: String = fraction.chars().take(9).collect();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    while digits.len() < 9 {
        digits.push('0');
    }
    Some(Mtime {
        seconds,
        nanoseconds: digits.parse().ok()?,
    })
}

impl SourceTree for ContextTree {
    fn node(&self, path: &Path) -> io::Result<Option<Node>> {
        if path.as_os_str().is_empty() {
            return Ok(Some(Node::directory(0o755, 0, 0, Mtime::default())));
        }
        Ok(self.entries.get(path).map(|entry| entry.node.clone()))
    }

    fn children(&self, path: &Path) -> io::Result<Vec<OsString>> {
        Ok(self
            .children
            .get(path)
            .map(|names| names.keys().cloned().collect())
            .unwrap_or_default())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        let entry = self
            .entries
            .get(path)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let Kind::File { size } = entry.node.kind else {
            return Err(io::Error::other("not a file"));
        };
        Ok(Box::new(BufReader::with_capacity(
            64 << 10,
            SpoolReader {
                spool: Arc::clone(&self.spool),
                offset: entry.offset,
                remaining: size,
            },
        )))
    }

    fn is_implied(&self, path: &Path) -> bool {
        self.entries.get(path).is_some_and(|entry| entry.implied)
    }

    fn digest(&self, path: &Path) -> Option<[u8; 32]> {
        self.entries.get(path).map(|entry| entry.digest)
    }
}

struct SpoolReader {
    spool: Arc<File>,
    offset: u64,
    remaining: u64,
}

impl Read for SpoolReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let length = buffer.len().min(limit);
        let length = self.spool.read_at(&mut buffer[..length], self.offset)?;
        self.offset += length as u64;
        self.remaining -= length as u64;
        Ok(length)
    }
}

/// Tells the source's own failure from that of its contents.
#[derive(Default)]
struct SourceFailure(Option<io::Error>);

struct Watched<'a> {
    source: &'a mut (dyn Read + Send),
    failure: &'a mut SourceFailure,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.source.read(buffer) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let told = io::Error::from(error.kind());
                self.failure.0 = Some(error);
                Err(told)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{glob, resolve};

    fn header(kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header
    }

    fn tree(
        build: impl FnOnce(&mut tar::Builder<Vec<u8>>),
        limits: ContextLimits,
    ) -> Result<ContextTree, ContextError> {
        let mut archive = tar::Builder::new(Vec::new());
        build(&mut archive);
        let bytes = archive.into_inner().unwrap();
        ContextTree::read(&mut &bytes[..], tempfile::tempfile().unwrap(), limits)
    }

    fn file(archive: &mut tar::Builder<Vec<u8>>, name: &str, content: &str) {
        let mut header = header(tar::EntryType::Regular, content.len() as u64);
        archive
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }

    fn link(archive: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) {
        let mut header = header(tar::EntryType::Symlink, 0);
        archive.append_link(&mut header, name, target).unwrap();
    }

    /// A name that `append_data` refuses.
    fn raw(archive: &mut tar::Builder<Vec<u8>>, name: &[u8]) {
        let mut header = header(tar::EntryType::Regular, 0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        archive.append(&header, &b""[..]).unwrap();
    }

    #[test]
    fn an_archive_may_end_with_its_last_files_last_byte() {
        let mut archive = tar::Builder::new(Vec::new());
        file(&mut archive, "one", "whole\n");
        file(&mut archive, "two", "words\n");
        let whole = archive.into_inner().unwrap();
        let read = |bytes: &[u8]| {
            let limits = ContextLimits::default();
            ContextTree::read(&mut &*bytes, tempfile::tempfile().unwrap(), limits)
        };
        let end = 3 * 512 + 6;
        for length in [end, end + 1, 4 * 512, 4 * 512 + 100, 5 * 512] {
            let tree = read(&whole[..length]).unwrap();
            let two = tree.read_small(Path::new("two"), 100).unwrap();
            assert_eq!(two.unwrap(), b"words\n", "{length}");
        }
        for length in [end - 1, end - 6, 2 * 512 + 7, 5] {
            assert!(
                matches!(read(&whole[..length]), Err(ContextError::Invalid(_))),
                "{length}"
            );
        }
    }

    #[test]
    fn reads_resolves_and_globs() {
        let tree = tree(
            |archive| {
                file(archive, "a/b.txt", "b");
                file(archive, "a/c.txt", "cc");
                link(archive, "l", "/a/../a");
                link(archive, "up", "../../../a/b.txt");
                link(archive, "loop", "loop");
            },
            ContextLimits::default(),
        )
        .unwrap();
        assert_eq!(
            resolve(&tree, Path::new("/l/./c.txt")).unwrap(),
            Path::new("a/c.txt")
        );
        assert_eq!(
            resolve(&tree, Path::new("up")).unwrap(),
            Path::new("a/b.txt")
        );
        assert!(resolve(&tree, Path::new("loop/x")).is_err());
        assert_eq!(
            glob(&tree, Path::new("l/*.txt")).unwrap(),
            [Path::new("a/b.txt"), Path::new("a/c.txt")]
        );
        let mut text = String::new();
        tree.open(Path::new("a/c.txt"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "cc");
        assert_eq!(tree.bytes(), 3);
        assert_eq!(tree.read_small(Path::new("up"), 10).unwrap().unwrap(), b"b");
        assert!(tree.read_small(Path::new("a/c.txt"), 1).is_err());
    }

    #[test]
    fn hostile_archives_are_refused() {
        let limits = ContextLimits {
            bytes: 10,
            entries: 4,
            depth: 3,
            path: 60,
        };
        let refused = |build: fn(&mut tar::Builder<Vec<u8>>)| {
            let error = tree(build, limits).unwrap_err();
            assert!(matches!(error, ContextError::Invalid(_)), "{error}");
        };
        refused(|archive| raw(archive, b"../x"));
        refused(|archive| raw(archive, b"a/../../x"));
        refused(|archive| raw(archive, b"/../x"));
        refused(|archive| file(archive, "x", "more than ten bytes"));
        refused(|archive| file(archive, "a/b/c/d", ""));
        refused(|archive| (0..5).for_each(|n| file(archive, &n.to_string(), "")));
        refused(|archive| file(archive, &"x".repeat(61), ""));
        refused(|archive| {
            link(archive, "l", "/etc");
            file(archive, "l/passwd", "x");
        });
        refused(|archive| {
            let mut header = header(tar::EntryType::Link, 0);
            archive
                .append_link(&mut header, "h", "/etc/passwd")
                .unwrap();
        });
        let within = tree(|archive| raw(archive, b"a/../b/x"), limits).unwrap();
        assert!(within.node(Path::new("b/x")).unwrap().is_some());
        assert!(within.node(Path::new("a")).unwrap().is_none());
        let absolute = tree(|archive| raw(archive, b"/etc/x"), limits).unwrap();
        assert!(absolute.node(Path::new("etc/x")).unwrap().is_some());
        let broken =
            ContextTree::read(&mut &[7_u8; 700][..], tempfile::tempfile().unwrap(), limits);
        assert!(matches!(broken, Err(ContextError::Invalid(_))));
    }
}
