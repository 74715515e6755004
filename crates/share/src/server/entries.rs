//! Names: looking up, making, linking, renaming, removing.

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::nodes::Found;
use super::user::AsUser;
use super::{Answer, Asked, Server, done, own_name};
use crate::abi::{Output, decode_device};

/// Longest target of a symbolic link, as the kernel has it.
const MAX_TARGET: usize = 4095;
/// Most nodes that are forgotten by one message; no message has room for more.
const MAX_FORGOTTEN: u32 = 1 << 17;

fn entry(asked: &Asked<'_>, found: &Found) -> Answer {
    let mut reply = Output::reply(asked.header.unique);
    reply.entry(found.node, &found.stat, found.inode);
    Ok(Some(reply))
}

/// Permission bits without the kind of file.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

impl Server {
    pub(super) fn look_up(&self, asked: &mut Asked<'_>) -> Answer {
        let name = asked.input.name()?;
        let found = self.nodes.look_up(asked.header.node, name)?;
        self.watch(&found);
        entry(asked, &found)
    }

    pub(super) fn forget(&self, asked: &mut Asked<'_>) -> Answer {
        // Nobody waits for an answer, not even to a message that is cut short.
        if let Ok(lookups) = asked.input.u64() {
            self.forget_node(asked.header.node, lookups);
        }
        Ok(None)
    }

    pub(super) fn forget_many(&self, asked: &mut Asked<'_>) -> Answer {
        let input = &mut asked.input;
        let count = input.u32().and_then(|count| input.u32().map(|_| count));
        for _ in 0..count.unwrap_or(0).min(MAX_FORGOTTEN) {
            let (Ok(node), Ok(lookups)) = (input.u64(), input.u64()) else {
                break;
            };
            self.forget_node(node, lookups);
        }
        Ok(None)
    }

    pub(super) fn read_link(&self, asked: &mut Asked<'_>) -> Answer {
        let link = self.nodes.descriptor(asked.header.node)?;
        let target = rustix::fs::readlinkat(&*link, c"", Vec::new())?;
        let mut reply = Output::reply(asked.header.unique);
        reply.bytes(target.as_bytes());
        Ok(Some(reply))
    }

    pub(super) fn symbolic_link(&self, asked: &mut Asked<'_>) -> Answer {
        let name = asked.input.name()?;
        let target = asked.input.string()?;
        if target.len() > MAX_TARGET {
            return Err(Errno::NAMETOOLONG);
        }
        let directory = self.nodes.descriptor(asked.header.node)?;
        {
            let _user = AsUser::new(asked.header.uid, asked.header.gid)?;
            rustix::fs::symlinkat(target, &*directory, name)?;
        }
        let found = self.nodes.look_up(asked.header.node, name)?;
        entry(asked, &found)
    }

    pub(super) fn make_node(&self, asked: &mut Asked<'_>) -> Answer {
        let mode = asked.input.u32()?;
        let device = asked.input.u32()?;
        let _mask_and_padding = asked.input.u64()?;
        let name = asked.input.name()?;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Unknown if mode & 0o170_000 == 0 => FileType::RegularFile,
            kind @ (FileType::RegularFile
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice) => kind,
            _ => return Err(Errno::INVAL),
        };
        let (major, minor) = decode_device(device);
        let device = rustix::fs::makedev(major, minor);
        let directory = self.nodes.descriptor(asked.header.node)?;
        {
            let _user = AsUser::new(asked.header.uid, asked.header.gid)?;
            rustix::fs::mknodat(&*directory, name, kind, permissions(mode), device)?;
        }
        let found = self.nodes.look_up(asked.header.node, name)?;
        entry(asked, &found)
    }

    pub(super) fn make_directory(&self, asked: &mut Asked<'_>) -> Answer {
        let mode = asked.input.u32()?;
        let _mask = asked.input.u32()?;
        let name = asked.input.name()?;
        let directory = self.nodes.descriptor(asked.header.node)?;
        {
            let _user = AsUser::new(asked.header.uid, asked.header.gid)?;
            rustix::fs::mkdirat(&*directory, name, permissions(mode))?;
        }
        let found = self.nodes.look_up(asked.header.node, name)?;
        self.watch(&found);
        entry(asked, &found)
    }

    pub(super) fn unlink(&self, asked: &mut Asked<'_>, directory: bool) -> Answer {
        let name = asked.input.name()?;
        let parent = asked.header.node;
        let descriptor = self.nodes.descriptor(parent)?;
        let held = self.nodes.hold(&descriptor, name);
        let flags = if directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(&*descriptor, name, flags)?;
        self.nodes.removed(held, parent, name);
        done(asked)
    }

    pub(super) fn rename(&self, asked: &mut Asked<'_>, with_flags: bool) -> Answer {
        let parent = asked.header.node;
        let new_parent = asked.input.u64()?;
        let flags = if with_flags {
            let flags = asked.input.u32()?;
            let _padding = asked.input.u32()?;
            RenameFlags::from_bits_retain(flags)
        } else {
            RenameFlags::empty()
        };
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let name = asked.input.name()?;
        let new_name = asked.input.name()?;
        let from = self.nodes.descriptor(parent)?;
        let to = self.nodes.descriptor(new_parent)?;
        let moving = self.nodes.hold(&from, name);
        let replaced = self.nodes.hold(&to, new_name);
        rustix::fs::renameat_with(&*from, name, &*to, new_name, flags)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            self.nodes.moved(replaced, parent, name);
        } else if replaced != moving {
            self.nodes.removed(replaced, new_parent, new_name);
        }
        self.nodes.moved(moving, new_parent, new_name);
        done(asked)
    }

    pub(super) fn link(&self, asked: &mut Asked<'_>) -> Answer {
        let source = asked.input.u64()?;
        let name = asked.input.name()?;
        let source = self.nodes.descriptor(source)?;
        let directory = self.nodes.descriptor(asked.header.node)?;
        rustix::fs::linkat(
            CWD,
            own_name(&source),
            &*directory,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        let found = self.nodes.look_up(asked.header.node, name)?;
        entry(asked, &found)
    }
}
