//! Contents: opening, reading, writing.

use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::nodes::kind;
use super::user::{AsUser, AsWriter};
use super::{Answer, Asked, Server, done, reopen};
use crate::abi::{MAX_IO, OPEN_KILL_SETID, OPENED_DIRECT, Output, WRITE_KILL_SETID};

/// Flags of an open that mean something here. Direct I/O is the guest's own affair, and
/// buffers of ours would not be aligned for it.
const TAKEN: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC)
    .union(OFlags::NOATIME);

/// Most bytes that one request copies: others wait for the thread.
const MAX_COPY: u64 = 64 << 20;

const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Server {
    /// Checks an open's flags against the share.
    fn open_flags(&self, flags: u32) -> Result<OFlags, Errno> {
        let flags = OFlags::from_bits_retain(flags) & TAKEN;
        let reads = flags & (OFlags::RWMODE | OFlags::TRUNC) == OFlags::RDONLY;
        if self.read_only && !reads {
            return Err(Errno::ROFS);
        }
        Ok(flags)
    }

    /// What the guest is told about an opened file. Pages that it kept could only be known
    /// to be old by a time of change, and two changes within a tick of the host's clock have
    /// the same. Asking for the time costs as much as asking for the bytes.
    fn opened_flags(&self) -> u32 {
        if self.direct.load(Ordering::Relaxed) {
            OPENED_DIRECT
        } else {
            0
        }
    }

    /// Opens a regular file; nothing else, for opening a device or a pipe does things.
    fn open_regular(&self, node: u64, flags: OFlags) -> Result<u64, Errno> {
        let descriptor = self.nodes.descriptor(node)?;
        match kind(&super::nodes::stat(&*descriptor)?) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        self.handles.insert(reopen(&descriptor, flags)?)
    }

    pub(super) fn open(&self, asked: &mut Asked<'_>) -> Answer {
        let flags = self.open_flags(asked.input.u32()?)?;
        let _writer = AsWriter::new(asked.input.u32()? & OPEN_KILL_SETID != 0)?;
        let handle = self.open_regular(asked.header.node, flags)?;
        let mut reply = Output::reply(asked.header.unique);
        reply.u64(handle).u32(self.opened_flags()).u32(0);
        Ok(Some(reply))
    }

    pub(super) fn create(&self, asked: &mut Asked<'_>) -> Answer {
        let raw = asked.input.u32()?;
        let mode = asked.input.u32()?;
        let _mask = asked.input.u32()?;
        let _writer = AsWriter::new(asked.input.u32()? & OPEN_KILL_SETID != 0)?;
        let name = asked.input.name()?;
        let exclusive = OFlags::from_bits_retain(raw).contains(OFlags::EXCL);
        if self.read_only {
            return Err(Errno::ROFS);
        }
        let flags = self.open_flags(raw)?;
        let parent = asked.header.node;
        let directory = self.nodes.descriptor(parent)?;
        let made = {
            let _user = AsUser::new(asked.header.uid, asked.header.gid)?;
            // Always a new file: whatever else has the name is opened with care below.
            let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&*directory, name, flags, Mode::from_raw_mode(mode & 0o7777))
        };
        let (found, handle) = match made {
            Ok(file) => {
                let itself = reopen(&file, OFlags::PATH)?;
                let found = self.nodes.adopt_at(itself, parent, name)?;
                (found, self.handles.insert(file))
            }
            Err(Errno::EXIST) if !exclusive => {
                let found = self.nodes.look_up(parent, name)?;
                let handle = self.open_regular(found.node, flags);
                (found, handle)
            }
            Err(error) => return Err(error),
        };
        let handle = handle.inspect_err(|_| {
            self.forget_node(found.node, 1);
        })?;
        let mut reply = Output::reply(asked.header.unique);
        reply.entry(found.node, &found.stat, found.inode);
        reply.u64(handle).u32(self.opened_flags()).u32(0);
        Ok(Some(reply))
    }

    pub(super) fn read(&self, asked: &mut Asked<'_>) -> Answer {
        let handle = self.handles.get(asked.input.u64()?)?;
        let offset = asked.input.u64()?;
        let size = usize::try_from(asked.input.u32()?).map_err(|_| Errno::INVAL)?;
        if size > MAX_IO {
            return Err(Errno::INVAL);
        }
        let mut reply = Output::reply_with_room(asked.header.unique, size);
        reply.fill(size, |buffer| {
            let mut filled = 0;
            while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                let at = offset.checked_add(u64::try_from(filled).map_err(|_| Errno::INVAL)?);
                match rustix::io::pread(&handle.descriptor, rest, at.ok_or(Errno::INVAL)?) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(Errno::INTR) => {}
                    Err(_) if filled > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(filled)
        })?;
        Ok(Some(reply))
    }

    pub(super) fn write(&self, asked: &mut Asked<'_>) -> Answer {
        let handle = self.handles.get(asked.input.u64()?)?;
        let offset = asked.input.u64()?;
        let size = asked.input.u32()?;
        let _writer = AsWriter::new(asked.input.u32()? & WRITE_KILL_SETID != 0)?;
        let _owner = asked.input.u64()?;
        let _open_flags_and_padding = asked.input.u64()?;
        let count = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        let data = asked.input.bytes(count)?;
        let mut written = 0;
        while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
            let at = offset.checked_add(u64::try_from(written).map_err(|_| Errno::INVAL)?);
            match rustix::io::pwrite(&handle.descriptor, rest, at.ok_or(Errno::INVAL)?) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let mut reply = Output::reply(asked.header.unique);
        reply
            .u32(u32::try_from(written).map_err(|_| Errno::INVAL)?)
            .u32(0);
        Ok(Some(reply))
    }

    pub(super) fn release(&self, asked: &mut Asked<'_>) -> Answer {
        self.handles.remove(asked.input.u64()?);
        done(asked)
    }

    pub(super) fn sync(&self, asked: &mut Asked<'_>) -> Answer {
        let handle = self.handles.get(asked.input.u64()?)?;
        let data_only = asked.input.u32()? & 1 == 1;
        if data_only {
            rustix::fs::fdatasync(&handle.descriptor)?;
        } else {
            rustix::fs::fsync(&handle.descriptor)?;
        }
        done(asked)
    }

    pub(super) fn allocate(&self, asked: &mut Asked<'_>) -> Answer {
        let handle = self.handles.get(asked.input.u64()?)?;
        let offset = asked.input.u64()?;
        let length = asked.input.u64()?;
        let mode = FallocateFlags::from_bits_retain(asked.input.u32()?);
        rustix::fs::fallocate(&handle.descriptor, mode, offset, length)?;
        done(asked)
    }

    pub(super) fn seek(&self, asked: &mut Asked<'_>) -> Answer {
        let handle = self.handles.get(asked.input.u64()?)?;
        let offset = asked.input.u64()?;
        let to = match asked.input.u32()? {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        // Reads and writes say where; nobody depends on the position of a file.
        let _reading = handle
            .reading
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = rustix::fs::seek(&handle.descriptor, to)?;
        let mut reply = Output::reply(asked.header.unique);
        reply.u64(found);
        Ok(Some(reply))
    }

    pub(super) fn copy_range(&self, asked: &mut Asked<'_>) -> Answer {
        let from = self.handles.get(asked.input.u64()?)?;
        let mut from_offset = asked.input.u64()?;
        let _node = asked.input.u64()?;
        let to = self.handles.get(asked.input.u64()?)?;
        let mut to_offset = asked.input.u64()?;
        let length = asked.input.u64()?.min(MAX_COPY);
        let copied = rustix::fs::copy_file_range(
            &from.descriptor,
            Some(&mut from_offset),
            &to.descriptor,
            Some(&mut to_offset),
            usize::try_from(length).map_err(|_| Errno::INVAL)?,
        )?;
        let mut reply = Output::reply(asked.header.unique);
        reply
            .u32(u32::try_from(copied).map_err(|_| Errno::INVAL)?)
            .u32(0);
        Ok(Some(reply))
    }
}
