//! What others than the guest change in the directories that the guest knows.
//!
//! The directories are watched by fanotify without any right, which tells of a process's own
//! changes that they are its own: what the guest does by way of this server raises events in
//! the guest already. So many are watched at most; the ones that the guest has not looked up
//! for longest are given up for others.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, FileType};
use rustix::io::Errno;

use super::nodes::{Found, kind};
use super::{Server, own_name};
use crate::abi::{Input, ROOT_ID};
use crate::event::{Entry, Event, what};

/// What is of interest about a directory and what is in it. Nothing that reading raises.
const MASK: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_EVENT_ON_CHILD
    | libc::FAN_ONDIR;
/// The same of a file that is mounted by itself.
const FILE_MASK: u64 = libc::FAN_MODIFY | libc::FAN_ATTRIB | libc::FAN_CLOSE_WRITE;
/// Both names of a rename, since Linux 5.17.
const RENAME: u64 = libc::FAN_RENAME;
/// The halves of one, before that.
const MOVED: u64 = libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;

/// Bytes of `struct fanotify_event_metadata`.
const METADATA: usize = 24;
/// Longest handle that the kernel makes.
const MAX_HANDLE: usize = 128;
/// So many directories in a row could not be watched: the filesystem knows nothing of it.
const HOPELESS: u32 = 64;

/// What the kernel calls a file in its events: filesystem, kind of handle, handle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FileId {
    filesystem: u64,
    kind: u32,
    handle: Vec<u8>,
}

#[derive(Debug)]
struct Watch {
    /// By which it ends.
    descriptor: Arc<OwnedFd>,
    file: FileId,
    /// As the guest sees it.
    inode: u64,
    mask: u64,
    /// Looked up since it was last considered for being given up.
    used: bool,
}

#[derive(Debug, Default)]
struct Table {
    by_node: HashMap<u64, Watch>,
    by_file: HashMap<FileId, u64>,
    /// The next to be given up first; some have ended.
    order: VecDeque<u64>,
    /// How many in a row could not be made.
    failures: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Watches {
    group: OwnedFd,
    process: i32,
    max: usize,
    table: Mutex<Table>,
}

impl Watches {
    /// None yet, of at most `max`.
    ///
    /// # Errors
    /// `EMFILE` when the host's superuser has too many such groups; what the system says.
    pub fn new(max: usize) -> Result<Self, Errno> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DIR_FID
            | libc::FAN_REPORT_NAME
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK;
        // SAFETY: it takes two numbers.
        let group = unsafe { libc::fanotify_init(flags, libc::O_RDONLY.cast_unsigned()) };
        if group < 0 {
            return Err(last_error());
        }
        // SAFETY: the call has just made this descriptor, so nobody else has it.
        let group = unsafe { OwnedFd::from_raw_fd(group) };
        Ok(Self {
            group,
            process: rustix::process::getpid().as_raw_nonzero().get(),
            max,
            table: Mutex::default(),
        })
    }

    /// Where events come from.
    pub fn group(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Whoever panicked with it held has ended the process.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is to be done for a node that was looked up.
    fn is_settled(&self, node: u64) -> bool {
        let mut table = self.table();
        if let Some(watch) = table.by_node.get_mut(&node) {
            watch.used = true;
            return true;
        }
        table.failures >= HOPELESS || self.max == 0
    }

    fn add(&self, node: u64, descriptor: Arc<OwnedFd>, inode: u64, directory: bool) {
        // Held over the call: the same directory may be forgotten under another node.
        let mut table = self.table();
        let made = FileId::of(&descriptor).and_then(|file| {
            let mask = if directory { MASK } else { FILE_MASK };
            Ok((file, self.mark(&descriptor, mask, directory)?))
        });
        let Ok((file, mask)) = made else {
            table.failures += 1;
            return;
        };
        table.failures = 0;
        table.by_file.insert(file.clone(), node);
        let watch = Watch {
            descriptor,
            file,
            inode,
            mask,
            used: false,
        };
        if table.by_node.insert(node, watch).is_none() {
            table.order.push_back(node);
        }
        self.give_up(&mut table, node);
    }

    /// Starts watching; returns what for.
    fn mark(&self, descriptor: &OwnedFd, mask: u64, directory: bool) -> Result<u64, Errno> {
        if !directory {
            return self
                .call(libc::FAN_MARK_ADD, mask, descriptor)
                .map(|()| mask);
        }
        let add = libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR;
        match self.call(add, mask | RENAME, descriptor) {
            Ok(()) => Ok(mask | RENAME),
            Err(Errno::INVAL) => {
                let mask = mask | MOVED;
                self.call(add, mask, descriptor).map(|()| mask)
            }
            Err(error) => Err(error),
        }
    }

    fn call(&self, flags: u32, mask: u64, descriptor: &OwnedFd) -> Result<(), Errno> {
        let name = CString::new(own_name(descriptor)).map_err(|_| Errno::INVAL)?;
        let group = self.group.as_raw_fd();
        // SAFETY: the name is a C string that lives until the call has returned.
        let done =
            unsafe { libc::fanotify_mark(group, flags, mask, libc::AT_FDCWD, name.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(last_error()) }
    }

    /// Ends the oldest watches that are too many, but not the root's, nor that of `newest`.
    fn give_up(&self, table: &mut Table, newest: u64) {
        let mut patience = 2 * table.order.len();
        while table.by_node.len() > self.max && patience > 0 {
            patience -= 1;
            let Some(node) = table.order.pop_front() else {
                return;
            };
            match table.by_node.get_mut(&node) {
                None => {}
                Some(watch) if watch.used || node == ROOT_ID || node == newest => {
                    watch.used = false;
                    table.order.push_back(node);
                }
                Some(_) => self.end(table, node),
            }
        }
    }

    fn end(&self, table: &mut Table, node: u64) {
        let Some(watch) = table.by_node.remove(&node) else {
            return;
        };
        if table.by_file.get(&watch.file) == Some(&node) {
            table.by_file.remove(&watch.file);
            // What is deleted is not watched any more.
            let _ = self.call(libc::FAN_MARK_REMOVE, watch.mask, &watch.descriptor);
        }
    }

    /// The guest has forgotten a node.
    fn remove(&self, node: u64) {
        let mut table = self.table();
        self.end(&mut table, node);
        if table.order.len() > 2 * table.by_node.len() + 64 {
            let Table { by_node, order, .. } = &mut *table;
            order.retain(|node| by_node.contains_key(node));
        }
    }

    /// The node of a file that is watched, its number, and itself.
    fn find(&self, file: &FileId) -> Option<(u64, u64, Arc<OwnedFd>)> {
        let table = self.table();
        let node = *table.by_file.get(file)?;
        let watch = table.by_node.get(&node)?;
        Some((node, watch.inode, Arc::clone(&watch.descriptor)))
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

impl FileId {
    fn of(descriptor: &OwnedFd) -> Result<Self, Errno> {
        // A name that no right is needed to open by, and that every filesystem has; older
        // kernels know only the other kind.
        let (kind, handle) = handle(descriptor, libc::AT_HANDLE_FID | libc::AT_EMPTY_PATH)
            .or_else(|_| handle(descriptor, libc::AT_EMPTY_PATH))?;
        Ok(Self {
            filesystem: rustix::fs::fstatvfs(descriptor)?.f_fsid,
            kind,
            handle,
        })
    }

    /// From an event.
    fn read(input: &mut Input<'_>) -> Option<Self> {
        let filesystem = input.u64().ok()?;
        let length = usize::try_from(input.u32().ok()?).ok()?;
        let kind = input.u32().ok()?;
        let handle = input.bytes(length).ok()?.to_vec();
        Some(Self {
            filesystem,
            kind,
            handle,
        })
    }
}

fn handle(descriptor: &OwnedFd, flags: i32) -> Result<(u32, Vec<u8>), Errno> {
    #[repr(C)]
    struct Handle {
        length: u32,
        kind: u32,
        bytes: [u8; MAX_HANDLE],
    }
    let mut handle = Handle {
        length: u32::try_from(MAX_HANDLE).map_err(|_| Errno::INVAL)?,
        kind: 0,
        bytes: [0; MAX_HANDLE],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: the name is a C string, and the kernel writes no more than the handle has room
    // for, which its length says, and one number.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            descriptor.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            flags,
        )
    };
    if done != 0 {
        return Err(last_error());
    }
    let length = usize::try_from(handle.length).map_err(|_| Errno::INVAL)?;
    let bytes = handle.bytes.get(..length).ok_or(Errno::INVAL)?;
    Ok((handle.kind, bytes.to_vec()))
}

/// One of the kernel's events.
#[derive(Debug, Default)]
struct Raw<'a> {
    mask: u64,
    process: i32,
    /// The directory, and the name in it.
    at: Option<(FileId, &'a [u8])>,
    /// The file itself, where the kernel says so.
    file: Option<FileId>,
    /// What `at` is called now.
    to: Option<(FileId, &'a [u8])>,
}

impl<'a> Raw<'a> {
    /// Takes the first one off what the kernel has given.
    fn take(buffer: &mut &'a [u8]) -> Option<Self> {
        let mut input = Input::new(buffer);
        let length = usize::try_from(input.u32().ok()?).ok()?;
        let (event, rest) = buffer.split_at_checked(length)?;
        let _version_and_length = input.u32().ok()?;
        let mut raw = Self {
            mask: input.u64().ok()?,
            process: {
                let _descriptor = input.u32().ok()?;
                input.u32().ok()?.cast_signed()
            },
            ..Self::default()
        };
        let mut infos = event.get(METADATA..)?;
        while let [kind, _, low, high, ..] = *infos {
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let (info, more) = infos.split_at_checked(length)?;
            infos = more;
            let mut input = Input::new(info.get(4..)?);
            let file = FileId::read(&mut input)?;
            let mut named = || Some((file.clone(), input.string().ok()?));
            match kind {
                libc::FAN_EVENT_INFO_TYPE_FID => raw.file = Some(file),
                libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => {
                    raw.at = named();
                }
                libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => raw.to = named(),
                _ => {}
            }
        }
        *buffer = rest;
        Some(raw)
    }
}

impl Server {
    /// The guest has been told of a file. Directories are watched, and files that are mounted
    /// by themselves, whose directory on the host is not in the share.
    pub(super) fn watch(&self, found: &Found) {
        let Some(watches) = &self.watches else {
            return;
        };
        let directory = match kind(&found.stat) {
            FileType::Directory => true,
            FileType::RegularFile if found.mounted => false,
            _ => return,
        };
        if watches.is_settled(found.node) {
            return;
        }
        if let Ok(descriptor) = self.nodes.descriptor(found.node) {
            watches.add(found.node, descriptor, found.inode, directory);
        }
    }

    pub(super) fn forget_node(&self, node: u64, lookups: u64) {
        if self.nodes.forget(node, lookups)
            && let Some(watches) = &self.watches
        {
            watches.remove(node);
        }
    }

    /// Where events come from, if there are any.
    pub fn events_from(&self) -> Option<BorrowedFd<'_>> {
        self.watches.as_ref().map(Watches::group)
    }

    /// Makes messages of what the kernel says others have done.
    pub fn events(&self, mut buffer: &[u8]) -> Vec<u8> {
        let mut messages = Vec::new();
        let Some(watches) = &self.watches else {
            return messages;
        };
        while let Some(raw) = Raw::take(&mut buffer) {
            if raw.process != watches.process
                && let Some(event) = self.event(watches, &raw)
            {
                messages.extend_from_slice(&event.encode());
            }
        }
        messages
    }

    fn event(&self, watches: &Watches, raw: &Raw<'_>) -> Option<Event> {
        let place = |named: &Option<(FileId, &[u8])>| {
            let (directory, name) = named.as_ref()?;
            let (node, inode, descriptor) = watches.find(directory)?;
            let entry = Entry {
                node,
                inode,
                path: path(&descriptor)?,
                // The directory itself.
                name: if *name == b"." {
                    Vec::new()
                } else {
                    name.to_vec()
                },
            };
            Some((entry, descriptor))
        };
        let mut what = 0;
        for (bits, bit) in [
            (libc::FAN_MODIFY, what::MODIFIED),
            (libc::FAN_ATTRIB, what::ATTRIBUTES),
            (libc::FAN_CLOSE_WRITE, what::CLOSED),
            (libc::FAN_CREATE | libc::FAN_MOVED_TO, what::CREATED),
            (libc::FAN_DELETE | libc::FAN_MOVED_FROM, what::REMOVED),
            (libc::FAN_ONDIR, what::DIRECTORY),
        ] {
            if raw.mask & bits != 0 {
                what |= bit;
            }
        }
        let (mut at, mut to) = (place(&raw.at), place(&raw.to));
        if raw.mask & libc::FAN_RENAME != 0 {
            what |= match (&at, &to) {
                (Some(_), Some(_)) => what::RENAMED,
                (Some(_), None) => what::REMOVED,
                (None, Some(_)) => what::CREATED,
                (None, None) => return None,
            };
        }
        if at.is_none() {
            at = to.take();
        }
        if at.is_none() {
            // Not in a directory that the guest knows, but a file that is mounted in one.
            let (node, ..) = watches.find(raw.file.as_ref()?)?;
            let (parent, name) = self.nodes.place(node)?;
            let descriptor = self.nodes.descriptor(parent).ok()?;
            let entry = Entry {
                node: parent,
                inode: 0,
                path: path(&descriptor)?,
                name,
            };
            at = Some((entry, descriptor));
        }
        let (at, directory) = at?;
        let (to, directory) = match to {
            Some((to, directory)) => (Some(to), directory),
            None => (None, directory),
        };
        let name = &to.as_ref().unwrap_or(&at).name;
        let found = if name.is_empty() {
            None
        } else {
            self.nodes.entry(&directory, name)
        };
        let inode = found.map_or(0, |(_, inode)| inode);
        if found.is_some_and(|(stat, _)| kind(&stat) != FileType::RegularFile) {
            what &= !what::CLOSED;
        }
        Some(Event {
            what,
            at,
            inode,
            to,
        })
    }
}

/// Where a directory is now, from the share's root, which is this process's.
fn path(directory: &OwnedFd) -> Option<Vec<u8>> {
    let path = rustix::fs::readlinkat(CWD, own_name(directory), Vec::new()).ok()?;
    // One that has left the share has a path without a slash in front.
    Some(path.as_bytes().strip_prefix(b"/")?.to_vec())
}
