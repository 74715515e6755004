//! Files into an archive.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use bulkhead_tar::{EntryKind, Header, TarWriter};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::protocol::{CHUNK, FilesError, FilesErrorKind};
use crate::stat;
use crate::tree::{Descend, Node, Result, walk, xattrs};

/// Why a pack ended: the files, or who reads the archive.
#[derive(Debug)]
pub(crate) enum PackError {
    Files(FilesError),
    Output(io::Error),
}

impl From<FilesError> for PackError {
    fn from(error: FilesError) -> Self {
        Self::Files(error)
    }
}

impl From<io::Error> for PackError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl PackError {
    /// As one error; nobody reads it when the reader has gone.
    pub fn into_files(self) -> FilesError {
        match self {
            Self::Files(error) => error,
            Self::Output(error) => {
                FilesError::new(FilesErrorKind::Other, format!("send the archive: {error}"))
            }
        }
    }
}

/// An archive that is being made.
pub(crate) struct Packer<W> {
    tar: TarWriter<W>,
    /// First names of files that have several.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    /// No entry is newer.
    newest: Option<i64>,
}

impl<W: Write> Packer<W> {
    pub fn new(output: W, newest: Option<i64>) -> Self {
        Self {
            tar: TarWriter::new(output),
            links: HashMap::new(),
            buffer: vec![0; CHUNK],
            newest,
        }
    }

    pub fn finish(self) -> io::Result<W> {
        self.tar.finish()
    }

    /// Adds one file of whatever kind under `name`, for a directory without its slash.
    pub fn add(
        &mut self,
        dir: BorrowedFd<'_>,
        file: &CString,
        stat: &Stat,
        name: &[u8],
    ) -> std::result::Result<(), PackError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let device = |make: fn(u32, u32) -> EntryKind| {
            make(
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            )
        };
        let mut link = Vec::new();
        let mut path = name.to_vec();
        let kind = match kind {
            FileType::Directory => {
                if !path.ends_with(b"/") {
                    path.push(b'/');
                }
                EntryKind::Directory
            }
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => {
                match rustix::fs::readlinkat(dir, file, Vec::new()) {
                    Ok(target) => link = target.into_bytes(),
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                    Err(error) => return Err(FilesError::system("readlink", name, error).into()),
                }
                EntryKind::Symlink
            }
            FileType::CharacterDevice => {
                device(|major, minor| EntryKind::CharacterDevice { major, minor })
            }
            FileType::BlockDevice => device(|major, minor| EntryKind::BlockDevice { major, minor }),
            FileType::Fifo => EntryKind::Fifo,
            // An archive has no sockets.
            _ => return Ok(()),
        };
        let mtime = stat::seconds(stat);
        let mut header = Header {
            path: &path,
            kind,
            link: &link,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: self.newest.map_or(mtime, |newest| mtime.min(newest)),
            size: 0,
            xattrs: &[],
        };
        if kind != EntryKind::Directory && stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                return Ok(self.tar.begin(&Header {
                    kind: EntryKind::HardLink,
                    link: first,
                    ..header
                })?);
            }
            self.links.insert(inode, path.clone());
        }
        let xattrs = xattrs(dir, file);
        header.xattrs = &xattrs;
        if kind == EntryKind::File {
            return self.add_file(dir, file, stat, header);
        }
        Ok(self.tar.begin(&header)?)
    }

    fn add_file(
        &mut self,
        dir: BorrowedFd<'_>,
        file: &CString,
        stat: &Stat,
        mut header: Header<'_>,
    ) -> std::result::Result<(), PackError> {
        // Neither a pipe nor a terminal that is swapped in meanwhile holds this up; devices do
        // not open in the view of a container.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(dir, file, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Ok(()),
            Err(error) => return Err(FilesError::system("open", header.path, error).into()),
        };
        let now = rustix::fs::fstat(&opened)
            .map_err(|error| FilesError::system("stat", header.path, error))?;
        if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino)
            || !FileType::from_raw_mode(now.st_mode).is_file()
        {
            return Ok(());
        }
        header.size = u64::try_from(now.st_size).unwrap_or(0);
        self.tar.begin(&header)?;
        while self.tar.remaining() > 0 {
            let most = usize::try_from(self.tar.remaining()).unwrap_or(usize::MAX);
            let most = most.min(self.buffer.len());
            let read = match rustix::io::read(opened.as_fd(), &mut self.buffer[..most]) {
                Ok(0) => {
                    // It was cut meanwhile: the archive has promised more.
                    self.buffer[..most].fill(0);
                    most
                }
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(FilesError::system("read", header.path, error).into()),
            };
            self.tar.write_all(&self.buffer[..read])?;
        }
        Ok(())
    }

    /// Adds an empty file that stands for something else.
    pub fn add_marker(&mut self, name: &[u8]) -> io::Result<()> {
        self.tar.begin(&Header {
            path: name,
            kind: EntryKind::File,
            link: b"",
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 0,
            xattrs: &[],
        })
    }

    /// Adds everything below a directory; names get `prefix` in front.
    pub fn add_below(
        &mut self,
        top: BorrowedFd<'_>,
        prefix: &[u8],
    ) -> std::result::Result<(), PackError> {
        let mut output = None;
        let mut name = Vec::new();
        let walked = walk(top, None, &mut |node: &Node<'_>| -> Result<Descend> {
            name.clear();
            name.extend_from_slice(prefix);
            name.extend_from_slice(node.path);
            match self.add(node.dir, node.name, node.stat, &name) {
                Ok(()) => Ok(Descend::Yes),
                Err(PackError::Files(error)) => Err(error),
                Err(PackError::Output(error)) => {
                    output = Some(error);
                    Err(FilesError::new(
                        FilesErrorKind::Other,
                        "the reader has gone",
                    ))
                }
            }
        });
        match output {
            Some(error) => Err(PackError::Output(error)),
            None => Ok(walked?),
        }
    }
}
