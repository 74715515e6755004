//! What a guest asks of a share of the host's files.

use std::collections::BTreeMap;
use std::fs::{FileTimes, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bulkhead_share::abi::{IN_HEADER, MAX_IO, MAX_REQUEST, OUT_HEADER, Opcode, ROOT_ID};
use bulkhead_share::serve;
use bulkhead_share::server::{Limits, Server};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::{CapabilitiesSecureBits, UnshareFlags};

use crate::Target;

/// So little that inputs come to the limits.
const LIMITS: Limits = Limits {
    lookups: 6,
    handles: 8,
    watches: 0,
};
/// Bytes of a reply besides what was read: no other payload is as long.
const MAX_REPLY: usize = OUT_HEADER + MAX_IO;
/// What lies beside the share.
const SECRET: &[u8] = b"outside";

/// One message after the other, as they come to a worker of the server.
pub(crate) const REQUESTS: Target = Target {
    name: "share",
    run: |bytes| drop(in_a_share(|server| answers(&server, bytes))),
    seeds: || scripts().into_iter().map(|script| script.bytes).collect(),
    tries: 2000,
};

/// All of it over a socket, where the messages' lengths are believed or not.
pub(crate) const STREAM: Target = Target {
    name: "share_stream",
    run: |bytes| {
        // How many replies there are is not said: their order is not either.
        let _ = in_a_share(|server| over_a_socket(server, bytes, None));
    },
    seeds: || scripts().into_iter().map(|script| script.bytes).collect(),
    tries: 300,
};

/// Runs something with a share that is all that may change. `None` where that cannot be made:
/// it takes the superuser's rights.
fn in_a_share<T: Send>(run: impl FnOnce(Arc<Server>) -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        // A thread of its own has mounts, a working directory and rights of its own.
        let thread = scope.spawn(|| {
            let place = make_place().ok()?;
            let before = outside(&place);
            let result = run(Arc::new(serve_at(&place).ok()?));
            assert!(before == outside(&place), "what is outside was touched");
            Some(result)
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A file system of this thread's own, so that nothing is left of it and it takes no more
/// than it has; in it a share, and things beside it to which links in it lead.
fn make_place() -> io::Result<PathBuf> {
    let place = std::env::temp_dir();
    // SAFETY: what threads share of the file system is not relied upon by this new one.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    // Who reads something leaves a time.
    let flags = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID;
    let flags = flags | MountFlags::STRICTATIME;
    let size = c"size=4m,nr_inodes=256,mode=0755";
    rustix::mount::mount("tmpfs", &place, "tmpfs", flags, size)?;
    let share = place.join("share");
    std::fs::create_dir_all(share.join("d"))?;
    std::fs::write(share.join("d/f"), "inside")?;
    std::fs::create_dir(place.join("beside"))?;
    for secret in ["secret", "beside/secret"] {
        std::fs::write(place.join(secret), SECRET)?;
        // Long ago: the clock of files is coarse.
        let long_ago = SystemTime::UNIX_EPOCH;
        let times = FileTimes::new()
            .set_accessed(long_ago)
            .set_modified(long_ago);
        let file = OpenOptions::new().write(true).open(place.join(secret))?;
        file.set_times(times)?;
    }
    symlink("../secret", share.join("relative"))?;
    symlink(place.join("secret"), share.join("absolute"))?;
    symlink("../beside", share.join("up"))?;
    Ok(place)
}

/// The server, as its process has it but for the jail, on whose help this does not rely.
fn serve_at(place: &Path) -> io::Result<Server> {
    rustix::process::umask(Mode::empty());
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, place.join("share"), flags, Mode::empty())?;
    rustix::process::chdir("/proc/self/fd")?;
    Ok(Server::new(root, false, false, LIMITS)?)
}

/// What is known of a file beside the share.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    numbers: [u64; 6],
    /// Last read, but for directories, which we read, and last written.
    times: [Option<(i64, i64)>; 2],
    content: Vec<u8>,
}

/// What lies beside the share.
fn outside(place: &Path) -> BTreeMap<PathBuf, Known> {
    let look = |path: &Path| {
        let stat = std::fs::symlink_metadata(path).ok()?;
        let content = if stat.is_dir() {
            names(path)
        } else {
            let mut content = Vec::new();
            let flags = OFlags::NOATIME.bits().cast_signed();
            let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
            file.ok()?.read_to_end(&mut content).ok()?;
            content
        };
        let read = (stat.atime(), stat.atime_nsec());
        Some(Known {
            numbers: [
                stat.ino(),
                stat.nlink(),
                stat.mode().into(),
                stat.uid().into(),
                stat.gid().into(),
                stat.len(),
            ],
            times: [
                (!stat.is_dir()).then_some(read),
                Some((stat.mtime(), stat.mtime_nsec())),
            ],
            content,
        })
    };
    ["", "secret", "beside", "beside/secret"]
        .into_iter()
        .filter_map(|name| Some((place.join(name), look(&place.join(name))?)))
        .collect()
}

fn names(directory: &Path) -> Vec<u8> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().into_encoded_bytes()))
        .collect();
    names.sort();
    names.join(&0)
}

/// The next message of a stream, if all of it is there.
fn next<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let prefix = bytes.first_chunk()?;
    let length = usize::try_from(u32::from_ne_bytes(*prefix)).ok()?;
    let (message, rest) = bytes.split_at_checked(length)?;
    if !(IN_HEADER..=MAX_REQUEST).contains(&length) {
        return None;
    }
    *bytes = rest;
    Some(message)
}

/// A reply: to which message, the error, what it says.
type Reply = (u64, i32, Vec<u8>);

/// Takes a reply off a stream; what cannot be one breaks a promise.
fn reply(bytes: &mut &[u8]) -> Option<Reply> {
    if bytes.is_empty() {
        return None;
    }
    let number = |at: usize| bytes.get(at..at + 4)?.try_into().ok();
    let length = number(0).map_or(0, u32::from_ne_bytes);
    let error = number(4).map_or(1, i32::from_ne_bytes);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    assert!(
        (OUT_HEADER..=MAX_REPLY).contains(&length) && length <= bytes.len(),
        "a reply of {length} bytes in {}",
        bytes.len()
    );
    // The kernel closes its device over numbers beyond this.
    assert!((-511..=0).contains(&error), "a reply's error is {error}");
    let (message, rest) = bytes.split_at(length);
    *bytes = rest;
    let unique = message.get(8..OUT_HEADER)?.try_into().ok()?;
    let payload = message.get(OUT_HEADER..)?;
    assert!(error == 0 || payload.is_empty(), "an error with a payload");
    Some((u64::from_ne_bytes(unique), error, payload.to_vec()))
}

/// Has a server answer a stream of messages, one by one.
fn answers(server: &Server, mut bytes: &[u8]) -> Vec<Option<Reply>> {
    let mut all = Vec::new();
    while let Some(message) = next(&mut bytes) {
        let answer = server.answer(message);
        let reply = answer.as_deref().and_then(|mut answer| {
            let one = reply(&mut answer);
            assert!(answer.is_empty(), "more than one reply");
            one
        });
        if let (Some((unique, ..)), Some(asked)) = (&reply, message.get(8..16)) {
            assert_eq!(unique.to_ne_bytes(), asked, "a reply to somebody else");
        }
        all.push(reply);
        let (nodes, handles) = server.counts();
        // Each message makes the guest know of one thing more at most.
        assert!(nodes <= 1 + all.len(), "{nodes} nodes");
        assert!(handles <= LIMITS.handles, "{handles} handles");
    }
    all
}

/// Sends a stream to a server and takes what comes; how many replies that is. What is not yet
/// answered at the end of the stream may never be: `wanted` says what to wait for before.
fn over_a_socket(server: Arc<Server>, bytes: &[u8], wanted: Option<usize>) -> usize {
    let Ok((ours, theirs)) = UnixStream::pair() else {
        return 0;
    };
    let ours = &ours;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It may have hung up on us, rightly.
            let mut socket = ours;
            let _ = socket.write_all(bytes);
            if wanted.is_none() {
                let _ = ours.shutdown(Shutdown::Write);
            }
        });
        let listener = scope.spawn(move || {
            let mut replies = 0;
            if wanted == Some(0) {
                let _ = ours.shutdown(Shutdown::Write);
            }
            while let Some(message) = receive(ours) {
                let mut message = message.as_slice();
                replies += usize::from(reply(&mut message).is_some());
                if wanted == Some(replies) {
                    let _ = ours.shutdown(Shutdown::Write);
                }
            }
            replies
        });
        // It says no to what is no message, and is done then.
        let _ = serve(theirs, server, |_| Ok(()));
        match listener.join() {
            Ok(replies) => replies,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The next reply from a socket; `None` at its end, which can be in the middle of one.
fn receive(mut socket: &UnixStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 4];
    socket.read_exact(&mut message).ok()?;
    let length = u32::from_ne_bytes(*message.first_chunk()?);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    assert!(length <= MAX_REPLY, "a reply of {length} bytes");
    message.resize(length.max(OUT_HEADER), 0);
    socket.read_exact(message.get_mut(4..)?).ok()?;
    Some(message)
}

/// Requests as a kernel makes them, and what has to come of each.
#[derive(Default)]
struct Script {
    bytes: Vec<u8>,
    unique: u64,
    expected: Vec<Expected>,
}

/// What comes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    Nothing,
    Error(i32),
    /// It begins so.
    Payload(Vec<u8>),
}

impl Script {
    /// As every kernel begins.
    fn new() -> Self {
        let mut script = Self::default();
        let mut body = words(&[7, 41, 1 << 20, u32::MAX]);
        body.extend([0xff; 48]);
        script.ask(Opcode::Init, 0, &[&body], payload(&words(&[7, 36])));
        script
    }

    fn ask(&mut self, opcode: Opcode, node: u64, body: &[&[u8]], expected: Expected) {
        self.ask_as(0, opcode, node, body, expected);
    }

    fn ask_as(&mut self, user: u32, opcode: Opcode, node: u64, body: &[&[u8]], expected: Expected) {
        let body = body.concat();
        self.unique += 2;
        let length = u32::try_from(IN_HEADER + body.len()).unwrap_or(u32::MAX);
        self.bytes.extend(words(&[length, opcode.number()]));
        self.bytes.extend(numbers(&[self.unique, node]));
        self.bytes.extend(words(&[user, user, 77, 0]));
        self.bytes.extend(body);
        self.expected.push(expected);
    }

    /// A name in a directory that leads to this node from now on.
    fn look_up(&mut self, directory: u64, name: &[u8], node: u64) {
        let expected = payload(&numbers(&[node]));
        self.ask(Opcode::Lookup, directory, &[name], expected);
    }
}

fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn numbers(list: &[u64]) -> Vec<u8> {
    list.iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

fn payload(bytes: &[u8]) -> Expected {
    Expected::Payload(bytes.to_vec())
}

fn done() -> Expected {
    payload(&[])
}

fn error(errno: rustix::io::Errno) -> Expected {
    Expected::Error(-errno.raw_os_error())
}

/// The body of a read, of a file or a directory.
fn read(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut body = numbers(&[handle, offset]);
    body.extend(words(&[size, 0, 0, 0, 0, 0]));
    body
}

/// The body of a write, without its data.
fn write(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    // Its writer has no rights beyond its own, so that bits of set-user-ID go.
    let mut body = numbers(&[handle, offset]);
    body.extend(words(&[size, 1 << 2, 0, 0, 0, 0]));
    body
}

/// The body of a change of attributes.
fn change(valid: u32, size: u64, mode: u32, user: u32) -> Vec<u8> {
    let mut body = words(&[valid, 0]);
    body.extend(numbers(&[0, size, 0, 1000, 2000, 3000]));
    body.extend(words(&[1, 2, 3, mode, 0, user, user, 0]));
    body
}

// Nodes and handles have their numbers in the order in which they are made.
fn scripts() -> Vec<Script> {
    use Opcode::*;
    let mut all = Vec::new();

    // What is there is found, read, and forgotten again.
    let mut script = Script::new();
    script.look_up(ROOT_ID, b"d\0", 2);
    script.look_up(2, b"f\0", 3);
    script.ask(GetAttr, 3, &[&[0; 16]], done());
    script.ask(Open, 3, &[&words(&[0, 0])], payload(&numbers(&[1])));
    script.ask(Read, 3, &[&read(1, 2, 4096)], payload(b"side"));
    script.ask(GetAttr, 3, &[&words(&[1, 0]), &numbers(&[1])], done());
    let seek = |whence| [numbers(&[1, 0]), words(&[whence, 0])].concat();
    script.ask(LSeek, 3, &[&seek(4)], payload(&numbers(&[6])));
    script.ask(FSync, 3, &[&numbers(&[1]), &words(&[1, 0])], done());
    script.ask(
        Flush,
        3,
        &[&numbers(&[1, 0, 0])],
        error(rustix::io::Errno::NOSYS),
    );
    script.ask(Release, 3, &[&numbers(&[1, 0, 0])], done());
    script.ask(StatFs, ROOT_ID, &[], done());
    script.ask(OpenDir, 2, &[&words(&[0, 0])], payload(&numbers(&[2])));
    script.ask(ReadDir, 2, &[&read(2, 0, 4096)], done());
    script.ask(FSyncDir, 2, &[&numbers(&[2]), &words(&[0, 0])], done());
    script.ask(ReleaseDir, 2, &[&numbers(&[2, 0, 0])], done());
    script.ask(Forget, 3, &[&numbers(&[1])], Expected::Nothing);
    let forgotten = [words(&[1, 0]), numbers(&[2, 1])].concat();
    script.ask(BatchForget, 0, &[&forgotten], Expected::Nothing);
    script.ask(Interrupt, 0, &[&numbers(&[2])], Expected::Nothing);
    script.ask(Destroy, 0, &[], done());
    all.push(script);

    // What was not there is made, by a user, and written.
    let mut script = Script::new();
    let create = words(&[0o102, 0o4755, 0, 0]);
    let made = payload(&numbers(&[2]));
    script.ask_as(1000, Create, ROOT_ID, &[&create, b"new\0"], made);
    let written = payload(&words(&[6]));
    script.ask(Write, 2, &[&write(1, 1, 6), b"a text"], written);
    script.ask(Read, 2, &[&read(1, 0, 64)], payload(b"\0a text"));
    let copy = [numbers(&[1, 1, 2, 1, 100, 6]), numbers(&[0])].concat();
    script.ask(CopyFileRange, 2, &[&copy], payload(&words(&[6])));
    script.ask(Read, 2, &[&read(1, 102, 64)], payload(b"text"));
    let allocate = [numbers(&[1, 0, 8192]), words(&[0, 0])].concat();
    script.ask(FAllocate, 2, &[&allocate], done());
    // Owner, mode, size, times.
    script.ask(SetAttr, 2, &[&change(0x3f, 4, 0o640, 1001)], done());
    script.ask(SetAttr, 2, &[&change(0x808, 3, 0, 0)], done());
    script.ask(Read, 2, &[&read(1, 0, 64)], payload(b"\0a "));
    let truncate = words(&[0o1001, 1]);
    script.ask(Open, 2, &[&truncate], payload(&numbers(&[2])));
    script.ask(Read, 2, &[&read(1, 0, 64)], payload(b""));
    all.push(script);

    // Names come, change and go.
    let mut script = Script::new();
    let directory = words(&[0o755, 0]);
    script.ask_as(
        7,
        MkDir,
        ROOT_ID,
        &[&directory, b"made\0"],
        payload(&numbers(&[2])),
    );
    let link = [b"made\0".as_slice(), b"../secret\0"];
    let existing = error(rustix::io::Errno::EXIST);
    script.ask(SymLink, ROOT_ID, &link, existing);
    script.ask(
        SymLink,
        2,
        &[b"link\0", b"../../secret\0"],
        payload(&numbers(&[3])),
    );
    script.ask(ReadLink, 3, &[], payload(b"../../secret"));
    script.ask(Open, 3, &[&words(&[0, 0])], error(rustix::io::Errno::LOOP));
    let pipe = words(&[0o10_644, 0, 0, 0]);
    script.ask(MkNod, 2, &[&pipe, b"pipe\0"], payload(&numbers(&[4])));
    script.ask(Open, 4, &[&words(&[0, 0])], error(rustix::io::Errno::NXIO));
    let file = words(&[0o100_644, 0, 0, 0]);
    script.ask(MkNod, 2, &[&file, b"file\0"], payload(&numbers(&[5])));
    script.ask(
        Link,
        2,
        &[&numbers(&[5]), b"other\0"],
        payload(&numbers(&[5])),
    );
    script.ask(Rename, 2, &[&numbers(&[1]), b"other\0", b"moved\0"], done());
    let exchange = [numbers(&[2]), words(&[2, 0])].concat();
    script.ask(Rename2, 1, &[&exchange, b"moved\0", b"pipe\0"], done());
    script.look_up(1, b"moved\0", 4);
    script.ask(Unlink, 2, &[b"file\0"], done());
    script.ask(Unlink, 2, &[b"pipe\0"], done());
    script.ask(Unlink, 2, &[b"link\0"], done());
    script.ask(RmDir, 1, &[b"made\0"], done());
    // What has no name any more is still known.
    script.ask(GetAttr, 5, &[&[0; 16]], done());
    let out = error(rustix::io::Errno::INVAL);
    script.ask(Lookup, 1, &[b"..\0"], out.clone());
    script.ask(Lookup, 1, &[b"../secret\0"], out);
    all.push(script);

    // Attributes, of a file and of a link that leads out.
    let mut script = Script::new();
    script.look_up(ROOT_ID, b"absolute\0", 2);
    script.look_up(ROOT_ID, b"d\0", 3);
    let name = b"trusted.seed\0";
    for node in [2, 3] {
        let set = words(&[5, 0]);
        script.ask(SetXAttr, node, &[&set, name, b"value"], done());
        let value = payload(b"value");
        script.ask(GetXAttr, node, &[&words(&[64, 0]), name], value);
        let length = payload(&words(&[5]));
        script.ask(GetXAttr, node, &[&words(&[0, 0]), name], length);
        script.ask(ListXAttr, node, &[&words(&[256, 0])], done());
        script.ask(RemoveXAttr, node, &[name], done());
        let gone = error(rustix::io::Errno::NODATA);
        script.ask(GetXAttr, node, &[&words(&[64, 0]), name], gone);
    }
    script.ask(SetAttr, 2, &[&change(0x6, 0, 0, 4321)], done());
    script.ask(GetAttr, 2, &[&[0; 16]], done());
    all.push(script);

    // More than the server keeps descriptors for, and more open than it allows.
    let mut script = Script::new();
    for node in 2u64..12 {
        let name = [b'A' + u8::try_from(node).unwrap_or(0), 0];
        let create = words(&[0o101, 0o600, 0, 0]);
        let handle = node - 1;
        let expected = if handle > 8 {
            error(rustix::io::Errno::NFILE)
        } else {
            payload(&numbers(&[node]))
        };
        script.ask(Create, ROOT_ID, &[&create, &name], expected);
    }
    for node in 2u64..10 {
        script.ask(GetAttr, node, &[&[0; 16]], done());
        script.ask(Release, node, &[&numbers(&[node - 1, 0, 0])], done());
    }
    all.push(script);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_as_they_should_be() {
        for (number, script) in scripts().into_iter().enumerate() {
            let Some(answers) = in_a_share(|server| answers(&server, &script.bytes)) else {
                assert!(
                    !rustix::process::geteuid().is_root(),
                    "no place for a share"
                );
                eprintln!("skipped: not root");
                return;
            };
            assert_eq!(answers.len(), script.expected.len(), "script {number}");
            for (at, (answer, expected)) in answers.iter().zip(&script.expected).enumerate() {
                let is = match answer {
                    None => Expected::Nothing,
                    Some((_, 0, bytes)) => {
                        // No more than is expected is looked at, unless that is nothing.
                        let most = match expected {
                            Expected::Payload(wanted) => wanted.len().min(bytes.len()),
                            _ => bytes.len(),
                        };
                        Expected::Payload(bytes[..most].to_vec())
                    }
                    Some((_, error, _)) => Expected::Error(*error),
                };
                assert_eq!(is, *expected, "script {number}, request {at}");
            }
        }
    }

    #[test]
    fn every_request_of_a_stream_has_its_reply() {
        for (number, script) in scripts().into_iter().enumerate() {
            let answered = |expected: &&Expected| **expected != Expected::Nothing;
            let wanted = script.expected.iter().filter(answered).count();
            let talk = |server| over_a_socket(server, &script.bytes, Some(wanted));
            let Some(replies) = in_a_share(talk) else {
                return;
            };
            assert_eq!(replies, wanted, "script {number}");
        }
    }

    /// What the targets rely on to see that a share was left.
    #[test]
    fn what_is_touched_outside_is_noticed() {
        type Deed = fn(&Path);
        let deeds: [Deed; 4] = [
            |place| drop(std::fs::read(place.join("secret")).unwrap()),
            |place| std::fs::write(place.join("beside/secret"), "inside!").unwrap(),
            |place| std::fs::write(place.join("beside/new"), "").unwrap(),
            |place| std::fs::hard_link(place.join("secret"), place.join("share/x")).unwrap(),
        ];
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for deed in deeds {
            let place = std::env::temp_dir();
            let caught = std::panic::catch_unwind(|| in_a_share(|_| deed(&place)));
            assert!(caught.is_err());
        }
    }
}
