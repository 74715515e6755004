//! An image archive on its way through the disk: its members come in any order (docker writes
//! `manifest.json` last), so they are spooled to temporary files before anything is decided.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use crate::config::MAX_DOCUMENT_BYTES;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::layer::{Compression, EntryKind, TarStream, decoder, readable};
use crate::store::storage;

/// Most members of an archive. 127 layers and four files each would be 500.
const MAX_MEMBERS: usize = 100_000;
/// Most bytes of an archive, uncompressed.
const MAX_ARCHIVE_BYTES: u64 = 1 << 40;
/// Links followed for one member.
const MAX_LINKS: usize = 16;

/// A file of the archive.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Its temporary file.
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

enum Node {
    File(Member),
    /// To this path, from the archive's root.
    Link(Vec<u8>),
}

/// The archive's files; they vanish with it.
pub(crate) struct Archive {
    directory: tempfile::TempDir,
    nodes: HashMap<Vec<u8>, Node>,
}

impl Archive {
    /// Reads the whole stream, plain or compressed, into `directory`.
    pub(crate) fn spool(
        source: &mut (dyn Read + Send),
        directory: tempfile::TempDir,
    ) -> Result<Self> {
        let failed = AtomicBool::new(false);
        let mut source = NotedSource {
            source,
            failed: &failed,
        };
        let mut archive = Self {
            directory,
            nodes: HashMap::new(),
        };
        archive.read(&mut source).map_err(|error| match error {
            // Not the stream failed but what is in it: its decoder complained.
            ImageError::Input { source, .. } if !failed.load(Ordering::Relaxed) => {
                ImageError::InvalidInput(format!("invalid image archive: {source}"))
            }
            error => error,
        })?;
        Ok(archive)
    }

    fn read(&mut self, source: &mut NotedSource<'_>) -> Result<()> {
        let input = |source| ImageError::Input {
            what: "the archive".to_owned(),
            source,
        };
        let mut source = BufReader::with_capacity(1 << 17, source);
        let compression = Compression::detect(source.fill_buf().map_err(input)?);
        let plain = decoder(source, compression)
            .map_err(input)?
            .take(MAX_ARCHIVE_BYTES);
        let mut tar = TarStream::new(BufReader::with_capacity(1 << 18, plain));
        while let Some(entry) = tar.next_entry()? {
            let name = normalize(b"", &entry.path)?;
            let node = match entry.kind {
                EntryKind::Directory => continue,
                EntryKind::File if entry.extents.is_none() => {
                    let path = self.directory.path().join(self.nodes.len().to_string());
                    Node::File(spool_member(&mut tar, path, entry.size)?)
                }
                EntryKind::HardLink => Node::Link(normalize(b"", &entry.link)?),
                EntryKind::Symlink => {
                    let parent = name
                        .rsplitn(2, |byte| *byte == b'/')
                        .nth(1)
                        .unwrap_or_default();
                    Node::Link(normalize(parent, &entry.link)?)
                }
                _ => return Err(invalid(&entry.path, "neither a file nor a link")),
            };
            self.nodes.insert(name, node);
            if self.nodes.len() > MAX_MEMBERS {
                return Err(invalid(
                    &entry.path,
                    format!("more than {MAX_MEMBERS} members"),
                ));
            }
        }
        // A client goes on writing; and a stream that fails behind the end has failed.
        tar.drain()?;
        Ok(())
    }

    /// The file at this path, links followed.
    pub(crate) fn find(&self, path: &str) -> Result<Option<Member>> {
        let mut name = normalize(b"", path.as_bytes())?;
        for _ in 0..MAX_LINKS {
            match self.nodes.get(&name) {
                None => return Ok(None),
                Some(Node::Link(target)) => name.clone_from(target),
                Some(Node::File(member)) => {
                    check_name(&name, member)?;
                    return Ok(Some(member.clone()));
                }
            }
        }
        Err(invalid(path.as_bytes(), "too many links"))
    }

    /// The same; it is an error if there is none.
    pub(crate) fn require(&self, path: &str) -> Result<Member> {
        self.find(path)?
            .ok_or_else(|| invalid(path.as_bytes(), "missing from the archive"))
    }

    /// The bytes of a small file.
    pub(crate) fn document(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some(member) = self.find(path)? else {
            return Ok(None);
        };
        if member.size > MAX_DOCUMENT_BYTES {
            return Err(invalid(
                path.as_bytes(),
                format!("over {MAX_DOCUMENT_BYTES} bytes"),
            ));
        }
        fs::read(&member.path)
            .map(Some)
            .map_err(storage("read", &member.path))
    }
}

/// A file in `blobs/sha256` is named by its digest.
fn check_name(name: &[u8], member: &Member) -> Result<()> {
    let Some(hex) = name.strip_prefix(b"blobs/sha256/") else {
        return Ok(());
    };
    let expected = std::str::from_utf8(hex)
        .ok()
        .and_then(|hex| Digest::from_hex(hex).ok());
    match expected {
        Some(expected) if expected != member.digest => Err(ImageError::DigestMismatch {
            what: "blob of the archive".to_owned(),
            actual: member.digest,
            expected,
        }),
        _ => Ok(()),
    }
}

fn spool_member(data: &mut impl BufRead, path: PathBuf, size: u64) -> Result<Member> {
    let mut file = File::create_new(&path).map_err(storage("create", &path))?;
    let mut hasher = Sha256::new();
    let mut remaining = size;
    while remaining > 0 {
        let part = data.fill_buf().map_err(|source| ImageError::Input {
            what: "the archive".to_owned(),
            source,
        })?;
        if part.is_empty() {
            let why = "unexpected end of the image archive";
            return Err(ImageError::InvalidInput(why.to_owned()));
        }
        hasher.update(part);
        file.write_all(part).map_err(storage("write", &path))?;
        let length = part.len();
        data.consume(length);
        remaining -= length as u64;
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    Ok(Member { path, size, digest })
}

/// `path` from the directory `base`, by the text alone. Leading slashes are dropped.
fn normalize(base: &[u8], path: &[u8]) -> Result<Vec<u8>> {
    let base: &[u8] = if path.starts_with(b"/") { b"" } else { base };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base
        .split(|byte| *byte == b'/')
        .chain(path.split(|byte| *byte == b'/'))
    {
        match part {
            b"" | b"." => {}
            b".." => {
                parts
                    .pop()
                    .ok_or_else(|| invalid(path, "path leads out of the archive"))?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

pub(crate) fn invalid(path: &[u8], why: impl std::fmt::Display) -> ImageError {
    ImageError::InvalidInput(format!("invalid image archive: {}: {why}", readable(path)))
}

/// Remembers whether the stream itself failed.
struct NotedSource<'a> {
    source: &'a mut (dyn Read + Send),
    failed: &'a AtomicBool,
}

impl Read for NotedSource<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.source.read(buffer);
        if result
            .as_ref()
            .is_err_and(|error| error.kind() != io::ErrorKind::Interrupted)
        {
            self.failed.store(true, Ordering::Relaxed);
        }
        result
    }
}
