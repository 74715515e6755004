//! The share as this host's own kernel sees it, mounted by the kernel's FUSE.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::common::{Jail, config, possible};
use bulkhead_share::abi::MAX_REQUEST;
use bulkhead_share::{Carried, Event, FILE_ENTRY, Replay, ShareConfig};
use rustix::mount::{MountFlags, UnmountFlags};

/// A share that is mounted here, until it is dropped.
pub struct Mounted {
    _directory: tempfile::TempDir,
    /// On the host.
    pub source: PathBuf,
    /// By way of the share.
    pub share: PathBuf,
    jail: Option<Jail>,
    replay: Option<JoinHandle<()>>,
}

impl Mounted {
    pub fn new() -> Option<Self> {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut ShareConfig)) -> Option<Self> {
        if !possible() {
            return None;
        }
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .inspect_err(|error| eprintln!("skipped: /dev/fuse: {error}"))
            .ok()?;
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        let share = directory.path().join("share");
        fs::create_dir(&source).unwrap();
        fs::create_dir(&share).unwrap();
        let mut config = config(&source);
        change(&mut config);
        let jail = Jail::start(&config).unwrap();
        let data = CString::new(format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        ))
        .unwrap();
        rustix::mount::mount("share", &share, "fuse", MountFlags::empty(), &*data).unwrap();
        let replay = pump(&device, &jail, &share);
        Some(Self {
            _directory: directory,
            source,
            share,
            jail: Some(jail),
            replay: Some(replay),
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever waits for the share waits no longer; a thread that did would outlive us.
        let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
        rustix::mount::unmount(&self.share, flags).unwrap();
        if let Some(mut jail) = self.jail.take() {
            let _ = jail.socket.shutdown(std::net::Shutdown::Both);
            jail.process.wait().unwrap();
        }
        if let Some(replay) = self.replay.take() {
            replay.join().unwrap();
        }
    }
}

/// What the agent does.
fn pump(device: &File, jail: &Jail, share: &Path) -> JoinHandle<()> {
    let mut requests = device.try_clone().unwrap();
    let mut answers = device.try_clone().unwrap();
    let mut to = jail.socket.try_clone().unwrap();
    let replay = Arc::new(Replay::default());
    let own = Arc::clone(&replay);
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_REQUEST];
        while let Ok(length) = requests.read(&mut buffer) {
            let carried = match own.request(&buffer[..length]) {
                Carried::On => to.write_all(&buffer[..length]),
                Carried::Instead(request) => to.write_all(&request),
                Carried::Back(reply) => {
                    let _ = answers.write(&reply);
                    Ok(())
                }
            };
            if carried.is_err() {
                break;
            }
        }
    });
    let (sender, events) = std::sync::mpsc::sync_channel(1024);
    let root = share.to_owned();
    let replaying = std::thread::spawn(move || replay.run(&root, &events));
    let mut replies = device.try_clone().unwrap();
    let mut from = jail.socket.try_clone().unwrap();
    from.set_read_timeout(None).unwrap();
    std::thread::spawn(move || {
        loop {
            let mut message = vec![0; 4];
            if from.read_exact(&mut message).is_err() {
                return;
            }
            let length = u32::from_ne_bytes(message[..].try_into().unwrap());
            message.resize(length.try_into().unwrap(), 0);
            if from.read_exact(&mut message[4..]).is_err() {
                return;
            }
            if let Some(event) = Event::decode(&message) {
                let _ = sender.try_send(event);
                continue;
            }
            // An answer that comes too late is not wanted any more.
            let _ = replies.write(&message);
        }
    });
    replaying
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn each_side_sees_at_once_what_the_other_does() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (host, guest) = (&mounted.source, &mounted.share);
    for round in 0..50 {
        let (one, other) = if round % 2 == 0 {
            (host, guest)
        } else {
            (guest, host)
        };
        fs::write(one.join("f"), round.to_string()).unwrap();
        assert_eq!(text(other.join("f")), round.to_string());
        fs::create_dir(one.join("d")).unwrap();
        assert!(other.join("d").is_dir());
        fs::remove_dir(one.join("d")).unwrap();
        assert!(!other.join("d").exists());
        fs::rename(one.join("f"), one.join("g")).unwrap();
        assert!(!other.join("f").exists());
        assert_eq!(text(other.join("g")), round.to_string());
        fs::set_permissions(one.join("g"), fs::Permissions::from_mode(0o600 + round)).unwrap();
        let seen = fs::metadata(other.join("g")).unwrap();
        assert_eq!(seen.mode() & 0o7777, 0o600 + round);
        fs::remove_file(one.join("g")).unwrap();
        assert!(fs::read_dir(other).unwrap().next().is_none());
    }
    // A file that is open on one side while the other writes.
    fs::write(host.join("log"), "").unwrap();
    let mut reader = File::open(guest.join("log")).unwrap();
    let mut writer = OpenOptions::new()
        .append(true)
        .open(host.join("log"))
        .unwrap();
    for line in 0..20 {
        writeln!(writer, "line {line}").unwrap();
        let mut more = String::new();
        reader.read_to_string(&mut more).unwrap();
        assert_eq!(more, format!("line {line}\n"));
    }
}

#[test]
fn owners_modes_times_and_attributes_are_the_files_own() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (host, guest) = (&mounted.source, &mounted.share);
    fs::write(guest.join("f"), "x").unwrap();
    std::os::unix::fs::chown(guest.join("f"), Some(1234), Some(5678)).unwrap();
    fs::set_permissions(guest.join("f"), fs::Permissions::from_mode(0o4751)).unwrap();
    let seen = fs::metadata(host.join("f")).unwrap();
    assert_eq!(
        (seen.uid(), seen.gid(), seen.mode()),
        (1234, 5678, 0o104_751)
    );
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    let file = File::options().write(true).open(guest.join("f")).unwrap();
    file.set_modified(time).unwrap();
    let (theirs, ours) = (
        fs::metadata(guest.join("f")).unwrap(),
        fs::metadata(host.join("f")).unwrap(),
    );
    assert_eq!(ours.modified().unwrap(), time);
    assert_eq!(theirs.modified().unwrap(), time);
    assert_eq!(ours.ctime_nsec(), theirs.ctime_nsec());
    assert_eq!(ours.ino(), theirs.ino());

    // What a user makes is the user's, also in a directory that gives its group away.
    fs::create_dir(guest.join("home")).unwrap();
    std::os::unix::fs::chown(guest.join("home"), Some(0), Some(77)).unwrap();
    fs::set_permissions(guest.join("home"), fs::Permissions::from_mode(0o2777)).unwrap();
    let done = Command::new("sh")
        .args([
            "-c",
            "umask 027; echo x > f; mkdir d; ln -s f l; mkfifo p; ln f h",
        ])
        .current_dir(guest.join("home"))
        .uid(1000)
        .gid(1000)
        .status()
        .unwrap();
    assert!(done.success());
    for (name, mode, group) in [
        ("f", 0o100_640, 77),
        ("d", 0o042_750, 77),
        ("l", 0o120_777, 77),
        ("p", 0o010_640, 77),
    ] {
        let seen = fs::symlink_metadata(host.join("home").join(name)).unwrap();
        assert_eq!(
            (seen.uid(), seen.gid(), seen.mode()),
            (1000, group, mode),
            "{name}"
        );
    }
    assert_eq!(fs::metadata(host.join("home/f")).unwrap().nlink(), 2);
    // The guest's kernel keeps others out.
    fs::write(host.join("secret"), "x").unwrap();
    fs::set_permissions(host.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let kept_out = Command::new("cat")
        .arg(guest.join("secret"))
        .uid(1000)
        .gid(1000)
        .output()
        .unwrap();
    assert!(!kept_out.status.success());
    // A write by somebody else takes the set-user-ID bit.
    fs::set_permissions(host.join("f"), fs::Permissions::from_mode(0o4777)).unwrap();
    let written = Command::new("sh")
        .args(["-c", "echo more >> f"])
        .current_dir(guest)
        .uid(1000)
        .gid(1000)
        .status()
        .unwrap();
    assert!(written.success());
    assert_eq!(fs::metadata(host.join("f")).unwrap().mode() & 0o7777, 0o777);

    let name = "user.bulkhead";
    rustix::fs::setxattr(
        guest.join("f"),
        name,
        b"value",
        rustix::fs::XattrFlags::CREATE,
    )
    .unwrap();
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(host.join("f"), name, &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"value");
    // Programs ask how long it is first.
    let queried = rustix::fs::getxattr_query(guest.join("f"), name).unwrap();
    assert_eq!(queried, length);
    let length = rustix::fs::listxattr(guest.join("f"), &mut value[..]).unwrap();
    let queried = rustix::fs::listxattr_query(guest.join("f")).unwrap();
    assert_eq!(queried, length);
    assert_eq!(&value[..length], b"user.bulkhead\0");
    rustix::fs::removexattr(guest.join("f"), name).unwrap();
    assert_eq!(
        rustix::fs::getxattr(guest.join("f"), name, &mut value[..]),
        Err(rustix::io::Errno::NODATA)
    );
}

#[test]
fn names_links_and_special_files() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (host, guest) = (&mounted.source, &mounted.share);
    fs::write(guest.join("a"), "a").unwrap();
    fs::hard_link(guest.join("a"), guest.join("b")).unwrap();
    let (a, b) = (
        fs::metadata(guest.join("a")).unwrap(),
        fs::metadata(guest.join("b")).unwrap(),
    );
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    fs::write(guest.join("b"), "b").unwrap();
    assert_eq!(text(guest.join("a")), "b");
    symlink("../../../etc/passwd", guest.join("out")).unwrap();
    assert_eq!(
        fs::read_link(host.join("out")).unwrap(),
        Path::new("../../../etc/passwd")
    );
    symlink("a", host.join("in")).unwrap();
    assert_eq!(text(guest.join("in")), "b");
    // A hard link to a symbolic link, and a time of one.
    fs::hard_link(guest.join("in"), guest.join("in2")).unwrap();
    assert!(fs::symlink_metadata(host.join("in2")).unwrap().is_symlink());
    std::os::unix::fs::lchown(guest.join("in2"), Some(9), None).unwrap();
    assert_eq!(fs::symlink_metadata(host.join("in")).unwrap().uid(), 9);
    assert_ne!(fs::metadata(host.join("a")).unwrap().uid(), 9);
    // Renames: over something, exchange, not over something, a directory with what is in it.
    fs::rename(guest.join("b"), guest.join("a")).unwrap();
    fs::write(guest.join("c"), "c").unwrap();
    let rename = |from: &str, to: &str, flags| {
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            guest.join(from),
            rustix::fs::CWD,
            guest.join(to),
            flags,
        )
    };
    rename("a", "c", rustix::fs::RenameFlags::EXCHANGE).unwrap();
    assert_eq!(
        (text(guest.join("a")), text(host.join("c"))),
        ("c".into(), "b".into())
    );
    assert_eq!(
        rename("a", "c", rustix::fs::RenameFlags::NOREPLACE),
        Err(rustix::io::Errno::EXIST)
    );
    fs::create_dir_all(guest.join("d/e/f")).unwrap();
    fs::write(guest.join("d/e/f/g"), "deep").unwrap();
    let open = File::open(guest.join("d/e/f/g")).unwrap();
    fs::rename(guest.join("d"), guest.join("D")).unwrap();
    assert_eq!(text(guest.join("D/e/f/g")), "deep");
    fs::rename(host.join("D"), host.join("dd")).unwrap();
    assert_eq!(text(guest.join("dd/e/f/g")), "deep");
    // A file that is open lives on without a name.
    fs::remove_dir_all(guest.join("dd")).unwrap();
    let mut deep = String::new();
    (&open).read_to_string(&mut deep).unwrap();
    assert_eq!(
        (deep.as_str(), open.metadata().unwrap().nlink()),
        ("deep", 0)
    );

    let kind = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, guest.join("null"), kind, mode, null).unwrap();
    let made = fs::symlink_metadata(host.join("null")).unwrap();
    assert!(made.file_type().is_char_device());
    assert_eq!(made.rdev(), null);
    fs::write(guest.join("null"), "gone").unwrap();
    let socket = std::os::unix::net::UnixListener::bind(guest.join("socket")).unwrap();
    assert!(
        fs::symlink_metadata(host.join("socket"))
            .unwrap()
            .file_type()
            .is_socket()
    );
    std::os::unix::net::UnixStream::connect(guest.join("socket")).unwrap();
    drop(socket);
    // A directory with more entries than fit in one answer.
    fs::create_dir(host.join("many")).unwrap();
    for number in 0..5000 {
        File::create(host.join(format!("many/{number:0>40}"))).unwrap();
    }
    let listed = |place: &Path| {
        let mut names: Vec<_> = fs::read_dir(place.join("many"))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name(), entry.ino(), entry.file_type().unwrap())
            })
            .collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        names
    };
    assert_eq!(listed(host), listed(guest));
    let before = rustix::fs::statvfs(host).unwrap();
    let seen = rustix::fs::statvfs(guest).unwrap();
    assert_eq!(
        (seen.f_blocks, seen.f_frsize),
        (before.f_blocks, before.f_frsize)
    );
    assert_eq!(
        fs::metadata(guest.join("x".repeat(300)))
            .unwrap_err()
            .raw_os_error(),
        Some(36)
    );
}

#[test]
fn contents_mapped_locked_sparse_direct_and_large() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (host, guest) = (&mounted.source, &mounted.share);
    let mut state = 12345u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        u8::try_from(state >> 56).unwrap()
    };
    let bytes: Vec<u8> = (0..5_000_001).map(|_| random()).collect();
    fs::write(guest.join("large"), &bytes).unwrap();
    assert!(fs::read(host.join("large")).unwrap() == bytes);
    assert!(fs::read(guest.join("large")).unwrap() == bytes);
    // Mapped, shared, written back.
    let file = File::options()
        .read(true)
        .write(true)
        .open(guest.join("large"))
        .unwrap();
    // SAFETY: nothing else in this process maps the file, and the mapping is not used after
    // it is taken away.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            8192,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            4096,
        );
        assert_ne!(map, libc::MAP_FAILED);
        let map_bytes = std::slice::from_raw_parts_mut(map.cast::<u8>(), 8192);
        assert!(*map_bytes == bytes[4096..12288]);
        map_bytes[100..105].copy_from_slice(b"HELLO");
        assert_eq!(libc::msync(map, 8192, libc::MS_SYNC), 0);
        libc::munmap(map, 8192);
    }
    let mut seen = [0; 5];
    File::open(host.join("large"))
        .unwrap()
        .read_exact_at(&mut seen, 4196)
        .unwrap();
    assert_eq!(&seen, b"HELLO");
    // Sparse, beyond 4 GiB.
    let far = 5 << 30;
    file.write_all_at(b"far", far).unwrap();
    let on_host = fs::metadata(host.join("large")).unwrap();
    assert_eq!(on_host.len(), far + 3);
    assert!(on_host.blocks() * 512 < 6_000_000);
    let mut copy = file.try_clone().unwrap();
    assert_eq!(copy.seek(SeekFrom::Start(far)).unwrap(), far);
    assert_eq!(
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(100 << 20)).unwrap(),
        far
    );
    file.set_len(3).unwrap();
    assert_eq!(fs::metadata(host.join("large")).unwrap().len(), 3);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8192).unwrap();
    assert_eq!(fs::metadata(host.join("large")).unwrap().len(), 8192);
    // Direct.
    let direct = rustix::fs::open(
        guest.join("direct"),
        rustix::fs::OFlags::CREATE
            | rustix::fs::OFlags::RDWR
            | rustix::fs::OFlags::DIRECT
            | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::from_raw_mode(0o644),
    )
    .unwrap();
    let layout = std::alloc::Layout::from_size_align(1 << 20, 4096).unwrap();
    // SAFETY: the layout is not empty, the memory is written before it is read, and freed
    // once with the same layout.
    unsafe {
        let memory = std::alloc::alloc_zeroed(layout);
        let buffer = std::slice::from_raw_parts_mut(memory, 1 << 20);
        buffer.fill(7);
        assert_eq!(rustix::io::pwrite(&direct, buffer, 0).unwrap(), 1 << 20);
        buffer.fill(0);
        assert_eq!(
            rustix::io::pread(&direct, &mut *buffer, 0).unwrap(),
            1 << 20
        );
        assert!(buffer.iter().all(|byte| *byte == 7));
        std::alloc::dealloc(memory, layout);
    }
    assert_eq!(fs::metadata(host.join("direct")).unwrap().len(), 1 << 20);
    // Appending goes to the end, wherever the other side has put it.
    fs::write(host.join("log"), "one ").unwrap();
    let mut log = OpenOptions::new()
        .append(true)
        .open(guest.join("log"))
        .unwrap();
    log.write_all(b"two ").unwrap();
    OpenOptions::new()
        .append(true)
        .open(host.join("log"))
        .unwrap()
        .write_all(b"three ")
        .unwrap();
    log.write_all(b"four").unwrap();
    assert_eq!(text(host.join("log")), "one two three four");
    // Locks exclude each other within the guest.
    let (one, two) = (
        File::open(guest.join("log")).unwrap(),
        File::open(guest.join("log")).unwrap(),
    );
    one.lock().unwrap();
    two.try_lock().unwrap_err();
    one.unlock().unwrap();
    two.try_lock().unwrap();
    fs::copy(guest.join("log"), guest.join("copy")).unwrap();
    assert_eq!(text(host.join("copy")), "one two three four");
    let done = Command::new("sh")
        .arg("-c")
        .arg("cp /bin/true . && chmod 755 true && ./true")
        .current_dir(guest)
        .status()
        .unwrap();
    assert!(done.success());
}

#[test]
fn more_files_than_descriptors() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (host, guest) = (&mounted.source, &mounted.share);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = limit.maximum.unwrap_or(0).min(20_000) + 500;
    fs::create_dir(host.join("d")).unwrap();
    for number in 0..files {
        File::create(host.join(format!("d/{number}"))).unwrap();
    }
    let before: Vec<_> = (0..10)
        .map(|number| File::open(guest.join(format!("d/{number}"))).unwrap())
        .collect();
    for _ in 0..2 {
        for number in 0..files {
            fs::metadata(guest.join(format!("d/{number}"))).unwrap();
        }
    }
    for file in before {
        assert!(file.metadata().unwrap().is_file());
    }
    fs::rename(guest.join("d"), guest.join("moved")).unwrap();
    fs::remove_file(guest.join("moved/3")).unwrap();
    assert!(!host.join("moved/3").exists());
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    let Some(mounted) = Mounted::with(|config| config.read_only = true) else {
        return;
    };
    let (host, guest) = (&mounted.source, &mounted.share);
    fs::write(host.join("f"), "kept").unwrap();
    fs::create_dir(host.join("d")).unwrap();
    let read_only = Some(rustix::io::Errno::ROFS.raw_os_error());
    let error = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(text(guest.join("f")), "kept");
    assert_eq!(error(fs::write(guest.join("f"), "x")), read_only);
    assert_eq!(error(fs::write(guest.join("new"), "x")), read_only);
    assert_eq!(error(fs::remove_file(guest.join("f"))), read_only);
    assert_eq!(error(fs::remove_dir(guest.join("d"))), read_only);
    assert_eq!(error(fs::create_dir(guest.join("e"))), read_only);
    assert_eq!(
        error(fs::rename(guest.join("f"), guest.join("g"))),
        read_only
    );
    assert_eq!(
        error(fs::hard_link(guest.join("f"), guest.join("g"))),
        read_only
    );
    assert_eq!(error(symlink("f", guest.join("g"))), read_only);
    let mode = fs::Permissions::from_mode(0o777);
    assert_eq!(error(fs::set_permissions(guest.join("f"), mode)), read_only);
    fs::write(host.join("f"), "changed").unwrap();
    assert_eq!(text(guest.join("f")), "changed");
}

#[test]
fn a_single_file() {
    if !possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("settings");
    fs::write(&file, "one").unwrap();
    let source = file.clone();
    let Some(mounted) = Mounted::with(|config| config.source = source) else {
        return;
    };
    let guest = &mounted.share;
    let names: Vec<_> = fs::read_dir(guest)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, [FILE_ENTRY]);
    assert_eq!(text(guest.join(FILE_ENTRY)), "one");
    fs::write(guest.join(FILE_ENTRY), "two").unwrap();
    assert_eq!(text(&file), "two");
    fs::write(&file, "three").unwrap();
    assert_eq!(text(guest.join(FILE_ENTRY)), "three");
    fs::write(guest.join("other"), "x").unwrap_err();
    fs::remove_file(guest.join(FILE_ENTRY)).unwrap_err();
}

#[test]
fn what_is_mounted_below() {
    let Some(probe) = Mounted::new() else { return };
    drop(probe);
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("s");
    fs::create_dir_all(source.join("below")).unwrap();
    let below = source.join("below");
    rustix::mount::mount("t", &below, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(below.join("f"), "mounted").unwrap();
    let with = |recursive| {
        let source = source.clone();
        Mounted::with(move |config| {
            config.source = source;
            config.recursive = recursive;
        })
        .unwrap()
    };
    let (all, one) = (with(true), with(false));
    assert_eq!(text(all.share.join("below/f")), "mounted");
    assert!(!one.share.join("below/f").exists());
    // Numbers do not collide, whatever filesystem they are from.
    let top = fs::metadata(&all.share).unwrap().ino();
    assert_ne!(fs::metadata(all.share.join("below")).unwrap().ino(), top);
    drop((all, one));
    rustix::mount::unmount(&below, UnmountFlags::empty()).unwrap();
}

#[test]
fn many_at_once() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let guest = Arc::new(mounted.share.clone());
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let guest = Arc::clone(&guest);
            std::thread::spawn(move || {
                for round in 0..100 {
                    let name = guest.join(format!("{thread}-{round}"));
                    fs::write(&name, vec![thread; 10_000]).unwrap();
                    let moved = guest.join(format!("{thread}-moved"));
                    fs::rename(&name, &moved).unwrap();
                    assert!(fs::read(&moved).unwrap() == vec![thread; 10_000]);
                    // Shared with the others.
                    let _ = fs::write(guest.join("all"), [thread]);
                    let _ = fs::remove_file(guest.join("all"));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(fs::read_dir(&mounted.source).unwrap().count(), 8);
}

#[test]
fn the_server_ends_with_its_socket_and_leaves_nothing() {
    if !possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let jail = Jail::start(&config(directory.path())).unwrap();
    jail.end();
    let missing = config(Path::new("/nonexistent/source"));
    let error = Jail::start(&missing).err().unwrap();
    assert!(error.contains("No such file"), "{error}");
    let error = Jail::start(&config(Path::new("/dev/null"))).err().unwrap();
    assert!(error.contains("neither a directory nor"), "{error}");
}
