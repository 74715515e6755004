//! What is done with the host's files.
//!
//! Every operation starts from a descriptor and a name without a slash, so there is no path
//! that could be swapped under a check. The working directory of the process must be
//! `/proc/self/fd`: what the kernel does by name only is done by the name that a descriptor
//! has there.

mod attributes;
mod directories;
mod entries;
mod files;
mod handles;
mod nodes;
mod user;
mod watches;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::abi::{
    Header, Input, MAJOR, MAX_IO, MINOR, OLDEST_MINOR, Opcode, Output, ROOT_ID, init,
};
use handles::Handles;
use nodes::Nodes;
use watches::Watches;

/// Requests that the guest's kernel has under way on its own account (reading ahead, writing
/// back), and how many of them it takes for congestion.
const MAX_BACKGROUND: u16 = 64;
const CONGESTION: u16 = 48;
/// How far the guest may read ahead, bytes.
const READ_AHEAD: u32 = 1 << 20;
const PAGE: usize = 4096;

/// How much a server may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Descriptors for what the guest has looked up.
    pub lookups: usize,
    /// Files and directories that the guest has open.
    pub handles: usize,
    /// Directories that are watched for what others change; a descriptor for each.
    pub watches: usize,
}

impl Limits {
    /// What fits in a number of descriptors.
    pub fn within(descriptors: usize) -> Self {
        // The socket, the root and what an operation needs for a moment.
        let free = descriptors.saturating_sub(64);
        let watches = (free / 8).min(1 << 13);
        let lookups = (free / 2).min(1 << 16);
        Self {
            lookups,
            handles: (free - lookups - watches).min(1 << 20),
            watches,
        }
    }
}

/// A share.
#[derive(Debug)]
pub struct Server {
    nodes: Nodes,
    handles: Handles,
    /// `None` when the guest is told nothing, or the kernel lets us watch nothing.
    watches: Option<Watches>,
    read_only: bool,
    /// Whether the guest can map files that it does not cache.
    direct: AtomicBool,
}

/// A request that is being answered.
struct Asked<'a> {
    header: Header,
    input: Input<'a>,
}

/// A reply to be sent, none, or an error.
type Answer = Result<Option<Output>, Errno>;

impl Server {
    /// Serves the directory `root`; `events` says whether the guest is told what others
    /// change.
    ///
    /// # Errors
    /// That it cannot be looked at.
    pub fn new(
        root: OwnedFd,
        read_only: bool,
        events: bool,
        limits: Limits,
    ) -> Result<Self, Errno> {
        let watches = if events {
            Watches::new(limits.watches)
                .inspect_err(|error| eprintln!("bulkhead-share: no events: {error}"))
                .ok()
        } else {
            None
        };
        Ok(Self {
            watches,
            nodes: Nodes::new(root, limits.lookups)?,
            handles: Handles::new(limits.handles),
            read_only,
            direct: AtomicBool::new(false),
        })
    }

    /// What the guest knows and what it has open: nodes, handles.
    pub fn counts(&self) -> (usize, usize) {
        (self.nodes.count(), self.handles.count())
    }

    /// Answers one message, whose length was checked to be that of the slice. `None` when
    /// there is nothing to reply.
    pub fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut input = Input::new(message);
        let header = match input.u32().and_then(|_length| input.header()) {
            Ok(header) => header,
            // Without a header there is nobody to tell.
            Err(_) => return None,
        };
        let unique = header.unique;
        match self.dispatch(Asked { header, input }) {
            Ok(reply) => reply.map(Output::finish),
            Err(error) => Some(Output::error(unique, error).finish()),
        }
    }

    fn dispatch(&self, mut asked: Asked<'_>) -> Answer {
        let Some(opcode) = Opcode::from_number(asked.header.opcode) else {
            // The guest's kernel does without, and mostly asks no more.
            return Err(Errno::NOSYS);
        };
        if self.read_only && changes(opcode) {
            return Err(Errno::ROFS);
        }
        let asked = &mut asked;
        match opcode {
            Opcode::Init => self.initialise(asked),
            Opcode::Lookup => self.look_up(asked),
            Opcode::Forget => self.forget(asked),
            Opcode::BatchForget => self.forget_many(asked),
            Opcode::GetAttr => self.get_attributes(asked),
            Opcode::SetAttr => self.set_attributes(asked),
            Opcode::ReadLink => self.read_link(asked),
            Opcode::SymLink => self.symbolic_link(asked),
            Opcode::MkNod => self.make_node(asked),
            Opcode::MkDir => self.make_directory(asked),
            Opcode::Unlink => self.unlink(asked, false),
            Opcode::RmDir => self.unlink(asked, true),
            Opcode::Rename => self.rename(asked, false),
            Opcode::Rename2 => self.rename(asked, true),
            Opcode::Link => self.link(asked),
            Opcode::Open => self.open(asked),
            Opcode::Create => self.create(asked),
            Opcode::Read => self.read(asked),
            Opcode::Write => self.write(asked),
            Opcode::Release | Opcode::ReleaseDir => self.release(asked),
            Opcode::FSync | Opcode::FSyncDir => self.sync(asked),
            Opcode::FAllocate => self.allocate(asked),
            Opcode::LSeek => self.seek(asked),
            Opcode::CopyFileRange => self.copy_range(asked),
            Opcode::OpenDir => self.open_directory(asked),
            Opcode::ReadDir => self.read_directory(asked),
            Opcode::StatFs => self.file_system(asked),
            Opcode::GetXAttr => self.get_extended(asked),
            Opcode::ListXAttr => self.list_extended(asked),
            Opcode::SetXAttr => self.set_extended(asked),
            Opcode::RemoveXAttr => self.remove_extended(asked),
            // Whoever waits is answered soon.
            Opcode::Interrupt => Ok(None),
            Opcode::Destroy => done(asked),
            // There is nothing that closing a file would have to write.
            Opcode::Flush => Err(Errno::NOSYS),
        }
    }

    fn initialise(&self, asked: &mut Asked<'_>) -> Answer {
        let major = asked.input.u32()?;
        let minor = asked.input.u32()?;
        let mut reply = Output::reply(asked.header.unique);
        if major > MAJOR {
            // The guest then speaks our version.
            reply.u32(MAJOR).u32(MINOR);
            return Ok(Some(reply));
        }
        if major < MAJOR || minor < OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        let read_ahead = asked.input.u32()?;
        let offered = asked.input.u32()?;
        let more = if offered & init::INIT_EXT == 0 {
            0
        } else {
            asked.input.u32()? & init::MORE_DIRECT_IO_ALLOW_MMAP
        };
        self.direct.store(more != 0, Ordering::Relaxed);
        if let Ok(root) = self.nodes.attributes(ROOT_ID) {
            self.watch(&root);
        }
        let pages = u16::try_from(MAX_IO / PAGE).map_err(|_| Errno::INVAL)?;
        let longest = u32::try_from(MAX_IO).map_err(|_| Errno::INVAL)?;
        reply
            .u32(MAJOR)
            .u32(MINOR.min(minor))
            .u32(read_ahead.min(READ_AHEAD))
            .u32(offered & (init::WANTED | init::INIT_EXT))
            .u16(MAX_BACKGROUND)
            .u16(CONGESTION)
            .u32(longest)
            // Times are exact to the nanosecond.
            .u32(1)
            .u16(pages)
            .u16(0)
            .u32(more)
            .bytes(&[0; 28]);
        Ok(Some(reply))
    }
}

/// Whether an operation is of no use but to change something.
fn changes(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::SetAttr
            | Opcode::SymLink
            | Opcode::MkNod
            | Opcode::MkDir
            | Opcode::Unlink
            | Opcode::RmDir
            | Opcode::Rename
            | Opcode::Rename2
            | Opcode::Link
            | Opcode::Write
            | Opcode::SetXAttr
            | Opcode::RemoveXAttr
            | Opcode::FAllocate
            | Opcode::CopyFileRange
    )
}

/// An empty reply.
fn done(asked: &Asked<'_>) -> Answer {
    Ok(Some(Output::reply(asked.header.unique)))
}

/// The name of a descriptor in the working directory.
fn own_name(descriptor: &OwnedFd) -> String {
    descriptor.as_raw_fd().to_string()
}

/// Opens the file behind a descriptor again. Whether it is of a kind that opening does
/// nothing to was checked.
fn reopen(descriptor: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::openat(CWD, own_name(descriptor), flags, Mode::empty())
}
