//! What is known about files: owners, modes, times, sizes, extended attributes, free space.

use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::nodes::Found;
use super::user::AsWriter;
use super::{Answer, Asked, Server, done, own_name, reopen};
use crate::abi::{MAX_NAME, Output, set};

/// Longest extended attribute, and longest list of their names, as the kernel has them.
const MAX_VALUE: usize = 64 << 10;
const GETATTR_HANDLE: u32 = 1;

fn attributes(asked: &Asked<'_>, found: &Found) -> Answer {
    let mut reply = Output::reply(asked.header.unique);
    reply.attributes_alone(&found.stat, found.inode);
    Ok(Some(reply))
}

/// The new value of one of the times.
fn time(valid: u32, explicit: u32, now: u32, seconds: u64, nanoseconds: u32) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    if valid & now != 0 {
        special(UTIME_NOW)
    } else if valid & explicit != 0 {
        Timespec {
            tv_sec: seconds.cast_signed(),
            tv_nsec: nanoseconds.into(),
        }
    } else {
        special(UTIME_OMIT)
    }
}

fn given<T>(valid: bool, number: u32, make: impl FnOnce(u32) -> T) -> Result<Option<T>, Errno> {
    match (valid, number) {
        (false, _) => Ok(None),
        // It would mean "leave it" to the system.
        (true, u32::MAX) => Err(Errno::INVAL),
        (true, number) => Ok(Some(make(number))),
    }
}

impl Server {
    pub(super) fn get_attributes(&self, asked: &mut Asked<'_>) -> Answer {
        let flags = asked.input.u32()?;
        let _padding = asked.input.u32()?;
        let handle = asked.input.u64()?;
        // A file that is open may have no name any more.
        let found = if flags & GETATTR_HANDLE != 0 {
            let handle = self.handles.get(handle)?;
            self.nodes.describe(asked.header.node, &handle.descriptor)?
        } else {
            self.nodes.attributes(asked.header.node)?
        };
        attributes(asked, &found)
    }

    pub(super) fn set_attributes(&self, asked: &mut Asked<'_>) -> Answer {
        let input = &mut asked.input;
        let valid = input.u32()?;
        let _padding = input.u32()?;
        let handle = input.u64()?;
        let size = input.u64()?;
        let _lock_owner = input.u64()?;
        let (atime, mtime, _ctime) = (input.u64()?, input.u64()?, input.u64()?);
        let (atime_ns, mtime_ns, _ctime_ns) = (input.u32()?, input.u32()?, input.u32()?);
        let mode = input.u32()?;
        let _unused = input.u32()?;
        let (uid, gid) = (input.u32()?, input.u32()?);
        let has = |flag| valid & flag != 0;

        let descriptor = self.nodes.descriptor(asked.header.node)?;
        let name = own_name(&descriptor);
        if has(set::MODE) {
            let mode = rustix::fs::Mode::from_raw_mode(mode & 0o7777);
            rustix::fs::chmodat(CWD, &name, mode, AtFlags::empty())?;
        }
        if has(set::UID | set::GID) {
            let owner = given(has(set::UID), uid, Uid::from_raw)?;
            let group = given(has(set::GID), gid, Gid::from_raw)?;
            rustix::fs::chownat(&*descriptor, c"", owner, group, AtFlags::EMPTY_PATH)?;
        }
        if has(set::SIZE) {
            let _writer = AsWriter::new(has(set::KILL_SETID))?;
            if has(set::HANDLE) {
                let handle = self.handles.get(handle)?;
                rustix::fs::ftruncate(&handle.descriptor, size)?;
            } else {
                check_regular(&descriptor)?;
                let file = reopen(&descriptor, rustix::fs::OFlags::WRONLY)?;
                rustix::fs::ftruncate(&file, size)?;
            }
        }
        if has(set::ATIME | set::MTIME) {
            let times = Timestamps {
                last_access: time(valid, set::ATIME, set::ATIME_NOW, atime, atime_ns),
                last_modification: time(valid, set::MTIME, set::MTIME_NOW, mtime, mtime_ns),
            };
            rustix::fs::utimensat(CWD, &name, &times, AtFlags::empty())?;
        }
        let found = self.nodes.describe(asked.header.node, &*descriptor)?;
        attributes(asked, &found)
    }

    pub(super) fn file_system(&self, asked: &mut Asked<'_>) -> Answer {
        let descriptor = self.nodes.descriptor(asked.header.node)?;
        let stat = rustix::fs::fstatvfs(&*descriptor)?;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let mut reply = Output::reply(asked.header.unique);
        reply
            .u64(stat.f_blocks)
            .u64(stat.f_bfree)
            .u64(stat.f_bavail)
            .u64(stat.f_files)
            .u64(stat.f_ffree)
            .u32(small(stat.f_bsize))
            .u32(small(stat.f_namemax))
            .u32(small(stat.f_frsize))
            .bytes(&[0; 28]);
        Ok(Some(reply))
    }

    pub(super) fn get_extended(&self, asked: &mut Asked<'_>) -> Answer {
        let size = asked.input.u32()?;
        let _padding = asked.input.u32()?;
        let attribute = attribute_name(asked)?;
        let descriptor = self.nodes.descriptor(asked.header.node)?;
        let file = own_name(&descriptor);
        sized(
            asked,
            size,
            || rustix::fs::getxattr_query(&file, attribute),
            |buffer| rustix::fs::getxattr(&file, attribute, buffer),
        )
    }

    pub(super) fn list_extended(&self, asked: &mut Asked<'_>) -> Answer {
        let size = asked.input.u32()?;
        let descriptor = self.nodes.descriptor(asked.header.node)?;
        let file = own_name(&descriptor);
        sized(
            asked,
            size,
            || rustix::fs::listxattr_query(&file),
            |buffer| rustix::fs::listxattr(&file, buffer),
        )
    }

    pub(super) fn set_extended(&self, asked: &mut Asked<'_>) -> Answer {
        let size = usize::try_from(asked.input.u32()?).map_err(|_| Errno::INVAL)?;
        let flags = XattrFlags::from_bits(asked.input.u32()?).ok_or(Errno::INVAL)?;
        let attribute = attribute_name(asked)?;
        if size > MAX_VALUE {
            return Err(Errno::TOOBIG);
        }
        let value = asked.input.bytes(size)?;
        let descriptor = self.nodes.descriptor(asked.header.node)?;
        rustix::fs::setxattr(own_name(&descriptor), attribute, value, flags)?;
        done(asked)
    }

    pub(super) fn remove_extended(&self, asked: &mut Asked<'_>) -> Answer {
        let attribute = attribute_name(asked)?;
        let descriptor = self.nodes.descriptor(asked.header.node)?;
        rustix::fs::removexattr(own_name(&descriptor), attribute)?;
        done(asked)
    }
}

fn check_regular(descriptor: &std::os::fd::OwnedFd) -> Result<(), Errno> {
    match super::nodes::kind(&super::nodes::stat(descriptor)?) {
        rustix::fs::FileType::RegularFile => Ok(()),
        rustix::fs::FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}

fn attribute_name<'a>(asked: &mut Asked<'a>) -> Result<&'a [u8], Errno> {
    let name = asked.input.string()?;
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(Errno::RANGE);
    }
    Ok(name)
}

/// Answers with a value, or with its length when the guest has no room for anything yet.
fn sized(
    asked: &Asked<'_>,
    size: u32,
    measure: impl FnOnce() -> Result<usize, Errno>,
    read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> Answer {
    let mut reply = Output::reply(asked.header.unique);
    if size == 0 {
        let length = measure()?;
        reply
            .u32(u32::try_from(length).map_err(|_| Errno::INVAL)?)
            .u32(0);
    } else {
        let room = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        reply.fill(room.min(MAX_VALUE), read)?;
    }
    Ok(Some(reply))
}
