//! Listing directories.

use std::mem::MaybeUninit;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::{Answer, Asked, Server};
use crate::abi::{MAX_IO, Output};

/// Bytes of entries that the kernel is asked for at a time.
const BUFFER: usize = 32 << 10;
/// Bytes of `struct fuse_dirent` before the name.
const DIRENT: usize = 24;

impl Server {
    pub(super) fn open_directory(&self, asked: &mut Asked<'_>) -> Answer {
        let descriptor = self.nodes.descriptor(asked.header.node)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&*descriptor, c".", flags, Mode::empty())?;
        let handle = self.handles.insert(opened)?;
        let mut reply = Output::reply(asked.header.unique);
        reply.u64(handle).u32(0).u32(0);
        Ok(Some(reply))
    }

    pub(super) fn read_directory(&self, asked: &mut Asked<'_>) -> Answer {
        let handle = self.handles.get(asked.input.u64()?)?;
        let offset = asked.input.u64()?;
        let size = usize::try_from(asked.input.u32()?).map_err(|_| Errno::INVAL)?;
        if size > MAX_IO {
            return Err(Errno::INVAL);
        }
        let stat = super::nodes::stat(&handle.descriptor)?;
        let is_root = self.nodes.is_root(&stat);
        let mut reply = Output::reply(asked.header.unique);
        let _reading = handle
            .reading
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        rustix::fs::seek(&handle.descriptor, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER.min(size.max(1024))];
        let mut entries = RawDir::new(&handle.descriptor, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(_) if reply.payload_length() > 0 => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name().to_bytes();
            let length = DIRENT + name.len().next_multiple_of(8);
            if reply.payload_length() + length > size {
                break;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => 0,
                kind => kind.as_raw_mode() >> 12,
            };
            // The root's parent is nobody's business.
            let inode = match name {
                b".." if is_root => stat.stx_ino,
                _ => entry.ino(),
            };
            reply
                .u64(self.nodes.visible_inode(&stat, inode))
                .u64(entry.next_entry_cookie())
                .u32(u32::try_from(name.len()).map_err(|_| Errno::INVAL)?)
                .u32(kind)
                .bytes(name);
            let padding = length - DIRENT - name.len();
            reply.bytes([0; 8].get(..padding).unwrap_or_default());
        }
        Ok(Some(reply))
    }
}
