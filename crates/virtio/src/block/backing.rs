//! The files of a disk.

use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;

use crate::Buffers;
use crate::context::Turn;

use super::SECTOR;

/// What a disk's bytes are in.
#[derive(Debug)]
pub enum Backing {
    /// Files one after the other, read-only.
    Layers(Vec<Extent>),
    /// One sparse file.
    Scratch {
        /// The file.
        file: File,
        /// Its length, bytes.
        bytes: u64,
    },
}

/// One file of [`Backing::Layers`].
#[derive(Debug)]
pub struct Extent {
    file: File,
    /// Where it starts on the disk.
    start: u64,
    bytes: u64,
}

impl Backing {
    /// A read-only disk of files with their lengths, which nobody changes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when they are longer together than a disk can be.
    pub fn layers(files: impl IntoIterator<Item = (File, u64)>) -> io::Result<Self> {
        let mut extents = Vec::new();
        let mut start = 0u64;
        for (file, bytes) in files {
            extents.push(Extent { file, start, bytes });
            start = start
                .checked_add(bytes)
                .filter(|end| i64::try_from(*end).is_ok())
                .ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(Self::Layers(extents))
    }

    /// A disk in a file, as large as it is now.
    ///
    /// # Errors
    /// What the system says.
    pub fn scratch(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self::Scratch { file, bytes })
    }

    /// Whole sectors.
    pub fn sectors(&self) -> u64 {
        let bytes = match self {
            Self::Layers(extents) => extents.last().map_or(0, |last| last.start + last.bytes),
            Self::Scratch { bytes, .. } => *bytes,
        };
        bytes / SECTOR
    }

    /// Whether it cannot be written.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Layers(_))
    }

    /// Reads all of `into` from an offset on, or until the turn is over; how many bytes.
    pub(crate) fn read(
        &self,
        mut into: Buffers<'_>,
        offset: u64,
        turn: &mut Turn<'_>,
    ) -> io::Result<usize> {
        let extents = match self {
            Self::Scratch { file, .. } => return read_all(file, into, offset, turn),
            Self::Layers(extents) => extents,
        };
        let mut all = 0;
        while !into.is_empty() {
            let offset = offset + u64::try_from(all).unwrap_or(0);
            let after = extents.partition_point(|extent| extent.start <= offset);
            let extent = after.checked_sub(1).and_then(|index| extents.get(index));
            let Some(extent) = extent else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let inside = offset - extent.start;
            let left = extent.bytes.saturating_sub(inside);
            let here = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let Some(part) = into.take_front(here).filter(|part| !part.is_empty()) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let done = read_all(&extent.file, part, inside, turn)?;
            all += done;
            if done < here {
                break;
            }
        }
        Ok(all)
    }

    /// Writes all of `from` at an offset, or until the turn is over; how many bytes.
    pub(crate) fn write(
        &self,
        from: Buffers<'_>,
        offset: u64,
        turn: &mut Turn<'_>,
    ) -> io::Result<usize> {
        let file = self.writable()?;
        each_piece(from, offset, turn, |pieces, offset| {
            match pieces.write_at(file, offset)? {
                0 => Err(io::ErrorKind::WriteZero.into()),
                done => Ok(done),
            }
        })
    }

    /// Makes a hole.
    pub(crate) fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(
            self.writable()?,
            hole,
            offset,
            bytes,
        )?)
    }

    /// Makes a range read as zeroes; a hole does, and takes no space.
    pub(crate) fn zero(&self, offset: u64, bytes: u64, may_be_hole: bool) -> io::Result<()> {
        if !may_be_hole {
            let zeroes = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(self.writable()?, zeroes, offset, bytes) {
                // A file system without it: the blocks are then found when they are written.
                Err(rustix::io::Errno::OPNOTSUPP) => {}
                other => return Ok(other?),
            }
        }
        self.discard(offset, bytes)
    }

    /// Puts everything on stable storage.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Scratch { file, .. } => file.sync_data(),
            Self::Layers(_) => Ok(()),
        }
    }

    fn writable(&self) -> io::Result<&File> {
        match self {
            Self::Scratch { file, .. } => Ok(file),
            Self::Layers(_) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }
}

fn read_all(file: &File, into: Buffers<'_>, offset: u64, turn: &mut Turn<'_>) -> io::Result<usize> {
    each_piece(into, offset, turn, |pieces, offset| {
        match pieces.read_at(file, offset)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            done => Ok(done),
        }
    })
}

/// Moves bytes piece by piece until there are none, or the turn is over; how many.
fn each_piece(
    mut buffers: Buffers<'_>,
    mut offset: u64,
    turn: &mut Turn<'_>,
    transfer: impl Fn(&Buffers<'_>, u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut all = 0;
    while !buffers.is_empty() && !turn.is_over() {
        let done = transfer(&buffers, offset)?;
        turn.moved(done);
        buffers.take_front(done);
        offset += u64::try_from(done).unwrap_or(0);
        all += done;
    }
    Ok(all)
}
