//! The guest's side of events: the guest's kernel is made to see what others have changed.
//!
//! A kernel raises events where its own calls pass. So a thread of the agent makes the calls
//! that would have made the change, and the agent, through whose hands all requests of the
//! kernel go, answers those of that thread itself: nothing that the thread does reaches the
//! host, but looks at files. What the kernel then believes lasts until the next look at the
//! name, because nothing is valid beyond a request ([`crate::abi::Output::entry`]).
//!
//! Calls are made only for files that somebody in the machine watches.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::inotify::WatchFlags;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;

use crate::abi::{Header, IN_HEADER, Input, OPENED_DIRECT, Opcode, Output};
use crate::event::{Entry, Event, what};
use crate::watched::Watched;

/// Where the thread that makes the calls stands in a request's header.
const PROCESS: std::ops::Range<usize> = 32..36;
/// Nodes and handles that the host has never heard of have this bit; the host counts from 1.
const MADE_UP: u64 = 1 << 63;
/// The shortest time between two looks at what is watched.
const PAUSE: Duration = Duration::from_millis(10);
/// Looking takes no more of the time than one part in so many.
const SHARE_OF_TIME: u32 = 20;
/// Events that are seen to after one look, at most.
const BATCH: usize = 256;

/// What becomes of a request of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Carried {
    /// It goes to the host.
    On,
    /// This goes to the host in its place.
    Instead(Vec<u8>),
    /// This is the answer.
    Back(Vec<u8>),
}

/// A name in a directory, by the directory's node.
type Name = (u64, Vec<u8>);

/// What the thread is doing.
#[derive(Debug, Default)]
enum Act {
    /// Looking for files, or touching one that is there.
    #[default]
    Look,
    /// Making a name that is there already.
    Make(Name),
    /// Removing or touching one that is not there any more.
    Remove(Name, Kind),
    /// Both.
    Rename(Name, Name, Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
}

/// See the module; one for each share.
#[derive(Debug, Default)]
pub struct Replay {
    /// The thread that makes the calls; 0 before there is one.
    thread: AtomicU32,
    act: Mutex<Act>,
    made_up: AtomicU64,
}

impl Replay {
    fn act(&self) -> MutexGuard<'_, Act> {
        // Whoever panicked with it held only looked or replaced it.
        self.act.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a request. All but those of the one thread go to the host.
    pub fn request(&self, message: &[u8]) -> Carried {
        let thread = self.thread.load(Ordering::Relaxed);
        if thread == 0 || message.get(PROCESS) != Some(&thread.to_ne_bytes()[..]) {
            return self.others(message);
        }
        let mut input = Input::new(message);
        let Ok(header) = input.u32().and_then(|_length| input.header()) else {
            return Carried::On;
        };
        let unique = header.unique;
        match self.own(header, input) {
            Ok(carried) => carried,
            Err(error) => Carried::Back(Output::error(unique, error).finish()),
        }
    }

    /// Closing comes when it comes, and from nobody in particular.
    fn others(&self, message: &[u8]) -> Carried {
        let mut input = Input::new(message);
        let Ok(header) = input.u32().and_then(|_length| input.header()) else {
            return Carried::On;
        };
        if header.opcode == Opcode::Release.number()
            && input.u64().is_ok_and(|handle| handle & MADE_UP != 0)
        {
            return Carried::Back(Output::reply(header.unique).finish());
        }
        Carried::On
    }

    fn own(&self, header: Header, input: Input<'_>) -> Result<Carried, Errno> {
        let act = self.act();
        let mut reply = Output::reply(header.unique);
        match Opcode::from_number(header.opcode) {
            Some(Opcode::Lookup) => {
                let is = |name: &Name, input: &Input<'_>| {
                    let mut input = *input;
                    name.0 == header.node && input.name().is_ok_and(|asked| *asked == *name.1)
                };
                match &*act {
                    Act::Make(name) if is(name, &input) => return Err(Errno::NOENT),
                    Act::Rename(_, to, _) if is(to, &input) => return Err(Errno::NOENT),
                    Act::Remove(name, kind) | Act::Rename(name, _, kind) if is(name, &input) => {
                        self.make_up(&mut reply, *kind);
                    }
                    _ => return Ok(Carried::On),
                }
            }
            Some(Opcode::GetAttr | Opcode::SetAttr) if header.node & MADE_UP != 0 => {
                let kind = match &*act {
                    Act::Remove(_, kind) => *kind,
                    _ => Kind::File,
                };
                // Valid for no time.
                reply.u64(0).u32(0).u32(0);
                made_up_attributes(&mut reply, header.node, kind);
            }
            Some(Opcode::GetAttr | Opcode::StatFs | Opcode::Interrupt) => return Ok(Carried::On),
            Some(Opcode::SetAttr) => {
                // What the attributes are is what the reply is to say.
                return Ok(Carried::Instead(get_attributes(header)));
            }
            Some(Opcode::MkNod) if matches!(*act, Act::Make(_)) => {
                self.make_up(&mut reply, Kind::File);
            }
            Some(Opcode::MkDir) if matches!(*act, Act::Make(_)) => {
                self.make_up(&mut reply, Kind::Directory);
            }
            Some(Opcode::Unlink | Opcode::RmDir) if matches!(*act, Act::Remove(..)) => {}
            Some(Opcode::Rename | Opcode::Rename2) if matches!(*act, Act::Rename(..)) => {}
            Some(Opcode::Open) => {
                reply.u64(self.number()).u32(OPENED_DIRECT).u32(0);
            }
            Some(Opcode::Release) => {}
            Some(Opcode::Flush) => return Err(Errno::NOSYS),
            // Nothing else may come of a call that was meant to change nothing.
            _ => return Err(Errno::PERM),
        }
        Ok(Carried::Back(reply.finish()))
    }

    fn number(&self) -> u64 {
        MADE_UP | self.made_up.fetch_add(1, Ordering::Relaxed)
    }

    /// An entry that is nowhere.
    fn make_up(&self, reply: &mut Output, kind: Kind) {
        let number = self.number();
        // Valid for no time.
        reply.u64(number).u64(0).u64(0).u64(0).u32(0).u32(0);
        made_up_attributes(reply, number, kind);
    }

    /// Makes the kernel see events, one after the other, until nobody sends any more. `root`
    /// is where the share is mounted. Blocks; must have a thread of its own.
    pub fn run(&self, root: &Path, events: &Receiver<Event>) {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        self.thread.store(thread.cast_unsigned(), Ordering::Relaxed);
        while let Ok(first) = events.recv() {
            let begun = Instant::now();
            // Not held any longer: whoever unmounts the share is not to wait.
            let Ok(root) = open(CWD, root.as_os_str().as_encoded_bytes(), OFlags::DIRECTORY) else {
                continue;
            };
            let Ok(stat) = rustix::fs::fstat(&root) else {
                continue;
            };
            let watched = Watched::on(stat.st_dev);
            let looked = begun.elapsed();
            let rest = events.try_iter().take(BATCH);
            for event in std::iter::once(first).chain(rest) {
                if !watched.is_empty() {
                    // Whatever is not there any more is no news either.
                    let _ = self.replay(&root, &event, &watched);
                }
                *self.act() = Act::Look;
            }
            drop(root);
            std::thread::sleep(PAUSE.max(looked * SHARE_OF_TIME));
        }
    }

    fn replay(&self, root: &OwnedFd, event: &Event, watched: &Watched) -> Result<(), Errno> {
        let at = &event.at;
        let has = |bit| event.what & bit != 0;
        let awaited = |flags: WatchFlags| watched.awaits(&[at.inode, event.inode], flags.bits());
        let kind = if has(what::DIRECTORY) {
            Kind::Directory
        } else {
            Kind::File
        };
        if let Some(to) = &event.to {
            let flags = WatchFlags::MOVE | WatchFlags::CREATE | WatchFlags::DELETE;
            if watched.awaits(&[at.inode, to.inode], flags.bits()) {
                let directory = |entry| directory(root, entry);
                self.rename(&directory(at)?, &directory(to)?, at, to, kind)?;
                self.look(&directory(to)?, to, kind);
            }
            return Ok(());
        }
        let there = event.inode != 0;
        let made = has(what::CREATED) && awaited(WatchFlags::CREATE);
        let removed = has(what::REMOVED) && awaited(WatchFlags::DELETE);
        let modified = has(what::MODIFIED) && awaited(WatchFlags::MODIFY);
        let touched = has(what::ATTRIBUTES) && awaited(WatchFlags::ATTRIB);
        let closed = has(what::CLOSED) && awaited(WatchFlags::CLOSE_WRITE);
        if !(made || removed || modified || touched || closed) {
            return Ok(());
        }
        let directory = directory(root, at)?;
        // Both are of one name, and what is there now came last.
        if removed && there {
            self.remove(&directory, at, kind)?;
        }
        if made {
            self.make(&directory, at, kind)?;
            self.look(&directory, at, kind);
        }
        if removed && !there {
            self.remove(&directory, at, kind)?;
        }
        if !(modified || touched || closed) {
            return Ok(());
        }
        *self.act() = Act::Look;
        let file = if at.name.is_empty() {
            directory
        } else {
            match open(&directory, &at.name, OFlags::empty()) {
                Err(Errno::NOENT) => {
                    // It has gone since, and what it was called is news all the same.
                    *self.act() = Act::Remove((at.node, at.name.clone()), kind);
                    open(&directory, &at.name, OFlags::empty())?
                }
                opened => opened?,
            }
        };
        if touched {
            touch(&file, 0)?;
        }
        if modified {
            touch(&file, UTIME_OMIT)?;
        }
        if closed
            && FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile
        {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
            drop(rustix::fs::open(own_name(&file), flags, Mode::empty())?);
        }
        Ok(())
    }

    fn make(&self, directory: &OwnedFd, at: &Entry, kind: Kind) -> Result<(), Errno> {
        *self.act() = Act::Make((at.node, at.name.clone()));
        let mode = Mode::RUSR;
        match kind {
            Kind::Directory => rustix::fs::mkdirat(directory, &*at.name, mode),
            Kind::File => rustix::fs::mknodat(directory, &*at.name, FileType::RegularFile, mode, 0),
        }
    }

    /// What the kernel believes of a directory is put right at once: a process may be in it
    /// already, and its way back up leads through what the kernel has just lost.
    fn look(&self, directory: &OwnedFd, at: &Entry, kind: Kind) {
        if kind == Kind::Directory {
            *self.act() = Act::Look;
            // It may have gone.
            let _ = open(directory, &at.name, OFlags::empty());
        }
    }

    fn remove(&self, directory: &OwnedFd, at: &Entry, kind: Kind) -> Result<(), Errno> {
        *self.act() = Act::Remove((at.node, at.name.clone()), kind);
        let flags = match kind {
            Kind::Directory => AtFlags::REMOVEDIR,
            Kind::File => AtFlags::empty(),
        };
        rustix::fs::unlinkat(directory, &*at.name, flags)
    }

    fn rename(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        at: &Entry,
        then: &Entry,
        kind: Kind,
    ) -> Result<(), Errno> {
        let name = |entry: &Entry| (entry.node, entry.name.clone());
        *self.act() = Act::Rename(name(at), name(then), kind);
        rustix::fs::renameat(from, &*at.name, to, &*then.name)
    }
}

fn made_up_attributes(reply: &mut Output, number: u64, kind: Kind) {
    let (mode, links) = match kind {
        Kind::File => (FileType::RegularFile.as_raw_mode() | 0o600, 1),
        Kind::Directory => (FileType::Directory.as_raw_mode() | 0o700, 2),
    };
    // Number, size, blocks, times; mode, links; owners, device, block size, flags.
    reply.u64(number).bytes(&[0; 52]);
    reply.u32(mode).u32(links).bytes(&[0; 20]);
}

/// Asks for the attributes of what a request is about, in that request's place.
fn get_attributes(header: Header) -> Vec<u8> {
    let mut request = Vec::with_capacity(IN_HEADER + 16);
    let length = u32::try_from(IN_HEADER + 16).unwrap_or(0);
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&Opcode::GetAttr.number().to_ne_bytes());
    request.extend_from_slice(&header.unique.to_ne_bytes());
    request.extend_from_slice(&header.node.to_ne_bytes());
    request.extend_from_slice(&header.uid.to_ne_bytes());
    request.extend_from_slice(&header.gid.to_ne_bytes());
    request.extend_from_slice(&header.process.to_ne_bytes());
    // No extensions; no flags, no handle.
    request.resize(IN_HEADER + 16, 0);
    request
}

fn open(at: impl std::os::fd::AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn directory(root: &OwnedFd, entry: &Entry) -> Result<OwnedFd, Errno> {
    let path: &[u8] = if entry.path.is_empty() {
        b"."
    } else {
        &entry.path
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // What somebody has mounted in the share is another filesystem.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

fn own_name(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Sets the time of last change, and with it that of last access or not: the former is a
/// write to whoever watches, both are a change of attributes.
fn touch(file: &OwnedFd, access: rustix::fs::Nsecs) -> Result<(), Errno> {
    let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let times = Timestamps {
        last_access: time(access),
        last_modification: time(0),
    };
    rustix::fs::utimensat(CWD, own_name(file), &times, AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, process: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = get_attributes(Header {
            opcode: 0,
            unique: 5,
            node: 7,
            uid: 0,
            gid: 0,
            process,
        });
        bytes.truncate(IN_HEADER);
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// What may go to the host when the thread that makes events asks: nothing that changes
    /// anything.
    #[test]
    fn of_its_own_calls_only_looks_reach_the_host() {
        let replay = Replay::default();
        replay.thread.store(9, Ordering::Relaxed);
        let name = |name: &str| (7, name.as_bytes().to_vec());
        for round in 0..6 {
            for opcode in 0..4200 {
                *replay.act() = match round {
                    0 => Act::Look,
                    1 => Act::Make(name("a")),
                    2 => Act::Remove(name("a"), Kind::File),
                    3 => Act::Remove(name("a"), Kind::Directory),
                    4 => Act::Rename(name("a"), name("b"), Kind::File),
                    _ => Act::Rename(name("x"), name("y"), Kind::Directory),
                };
                let asked = request(opcode, 9, b"a\0b\0 and much more than that");
                let carried = replay.request(&asked);
                match Opcode::from_number(opcode) {
                    Some(Opcode::Lookup | Opcode::GetAttr | Opcode::StatFs | Opcode::Interrupt) => {
                    }
                    Some(Opcode::SetAttr) => {
                        let Carried::Instead(other) = carried else {
                            panic!("{carried:?}");
                        };
                        let mut input = Input::new(&other);
                        assert_eq!(input.u32(), Ok(56));
                        let header = input.header().unwrap();
                        assert_eq!(header.opcode, Opcode::GetAttr.number());
                        assert_eq!((header.unique, header.node), (5, 7));
                    }
                    _ => assert!(matches!(carried, Carried::Back(_)), "{opcode} {round}"),
                }
                // And all that others ask, but for what was never open there.
                for process in [0, 1, 8] {
                    let asked = request(opcode, process, &[0; 64]);
                    assert_eq!(replay.request(&asked), Carried::On);
                }
            }
        }
        let made_up = request(Opcode::Release.number(), 0, &MADE_UP.to_ne_bytes());
        assert!(matches!(replay.request(&made_up), Carried::Back(_)));
        for short in [0, 4, 20, 39] {
            assert_eq!(replay.request(&request(1, 9, b"")[..short]), Carried::On);
        }
    }

    #[test]
    fn names_are_there_or_not_as_the_call_needs_it() {
        let replay = Replay::default();
        replay.thread.store(9, Ordering::Relaxed);
        let look = |name: &[u8]| replay.request(&request(Opcode::Lookup.number(), 9, name));
        let there = |carried: Carried| match carried {
            Carried::Back(reply) if reply.len() == 144 => true,
            Carried::Back(reply) => {
                assert_eq!(reply[4..8], (-2i32).to_ne_bytes());
                false
            }
            other => panic!("{other:?}"),
        };
        *replay.act() = Act::Make((7, b"a".to_vec()));
        assert!(!there(look(b"a\0")));
        assert_eq!(look(b"b\0"), Carried::On);
        *replay.act() = Act::Rename((7, b"a".to_vec()), (7, b"b".to_vec()), Kind::Directory);
        assert!(there(look(b"a\0")));
        assert!(!there(look(b"b\0")));
        assert_eq!(look(b"c\0"), Carried::On);
        *replay.act() = Act::Remove((8, b"a".to_vec()), Kind::File);
        assert_eq!(look(b"a\0"), Carried::On);
        // What is nowhere has attributes all the same, and not of the host.
        for opcode in [Opcode::GetAttr, Opcode::SetAttr] {
            let mut asked = request(opcode.number(), 9, &[0; 88]);
            asked[16..24].copy_from_slice(&(MADE_UP | 3).to_ne_bytes());
            let Carried::Back(reply) = replay.request(&asked) else {
                panic!("{opcode:?}");
            };
            assert_eq!((reply.len(), &reply[4..8]), (120, &[0; 4][..]));
        }
    }
}
