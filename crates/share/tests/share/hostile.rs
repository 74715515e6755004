//! What a guest may send instead of what a kernel sends.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_share::abi::{MAX_REQUEST, Opcode, ROOT_ID};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::common::{Jail, config, possible, request};

/// A share beside a secret.
struct Scene {
    directory: tempfile::TempDir,
    jail: Jail,
}

fn scene() -> Option<Scene> {
    if !possible() {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    fs::create_dir(&share).unwrap();
    fs::create_dir(share.join("d")).unwrap();
    fs::write(share.join("d/f"), "inside").unwrap();
    fs::write(directory.path().join("secret"), "outside").unwrap();
    symlink("../secret", share.join("relative")).unwrap();
    symlink(directory.path().join("secret"), share.join("absolute")).unwrap();
    symlink("..", share.join("up")).unwrap();
    symlink("/", share.join("root")).unwrap();
    let mut jail = Jail::start(&config(&share)).unwrap();
    let hello = initialise(&mut jail);
    assert_eq!(hello[..8], [7, 0, 0, 0, 36, 0, 0, 0]);
    Some(Scene { directory, jail })
}

fn initialise(jail: &mut Jail) -> Vec<u8> {
    let mut body = Vec::new();
    for number in [7u32, 41, 1 << 20, u32::MAX] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    body.extend_from_slice(&[0; 48]);
    jail.call(Opcode::Init, 0, &body).unwrap()
}

fn errno(error: Errno) -> i32 {
    error.raw_os_error()
}

fn numbers(list: &[u64]) -> Vec<u8> {
    list.iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

fn small(list: &[u32]) -> Vec<u8> {
    list.iter()
        .flat_map(|number| number.to_ne_bytes())
        .collect()
}

fn named(prefix: &[u8], names: &[&[u8]]) -> Vec<u8> {
    let mut body = prefix.to_vec();
    for name in names {
        body.extend_from_slice(name);
        body.push(0);
    }
    body
}

#[test]
fn names_that_lead_out_are_refused_by_every_operation() {
    let Some(mut scene) = scene() else { return };
    let jail = &mut scene.jail;
    let d = jail.look_up(ROOT_ID, b"d").unwrap();
    let f = jail.look_up(d, b"f").unwrap();
    for bad in [
        &b".."[..],
        b".",
        b"",
        b"/",
        b"/etc",
        b"../secret",
        b"d/f",
        b"./d",
        b"d/",
        b"//",
    ] {
        let zeros = [0; 8];
        for (opcode, body) in [
            (Opcode::Lookup, named(&[], &[bad])),
            (Opcode::SymLink, named(&[], &[bad, b"target"])),
            (Opcode::MkNod, named(&small(&[0o100_644, 0, 0, 0]), &[bad])),
            (Opcode::MkDir, named(&small(&[0o755, 0]), &[bad])),
            (Opcode::Unlink, named(&[], &[bad])),
            (Opcode::RmDir, named(&[], &[bad])),
            (Opcode::Rename, named(&numbers(&[d]), &[bad, b"x"])),
            (Opcode::Rename, named(&numbers(&[d]), &[b"f", bad])),
            (Opcode::Rename2, named(&numbers(&[d, 0]), &[b"f", bad])),
            (Opcode::Link, named(&numbers(&[f]), &[bad])),
            (Opcode::Create, named(&small(&[0o101, 0o644, 0, 0]), &[bad])),
        ] {
            let error = jail.call(opcode, d, &body).unwrap_err();
            assert_eq!(error, errno(Errno::INVAL), "{opcode:?} {bad:?}");
        }
        // Without an end.
        assert_eq!(
            jail.call(Opcode::Lookup, d, bad).unwrap_err(),
            errno(Errno::INVAL)
        );
        let _ = zeros;
    }
    let long = [b'x'; 300];
    assert_eq!(jail.look_up(d, &long), Err(errno(Errno::NAMETOOLONG)));
    assert_eq!(
        fs::read(scene.directory.path().join("secret")).unwrap(),
        b"outside"
    );
    scene.jail.end();
}

#[test]
fn links_are_texts_and_lead_nowhere() {
    let Some(mut scene) = scene() else { return };
    let jail = &mut scene.jail;
    for name in ["relative", "absolute", "up", "root"] {
        let link = jail.look_up(ROOT_ID, name.as_bytes()).unwrap();
        jail.call(Opcode::ReadLink, link, &[]).unwrap();
        // As a directory, as a file, as something to write, to list, to be walked through.
        for (opcode, body, expected) in [
            (Opcode::Open, small(&[0, 0]), Errno::LOOP),
            (Opcode::Open, small(&[0o1001, 0]), Errno::LOOP),
            (Opcode::OpenDir, small(&[0, 0]), Errno::NOTDIR),
            (Opcode::Lookup, named(&[], &[b"etc"]), Errno::NOTDIR),
            (
                Opcode::MkDir,
                named(&small(&[0o755, 0]), &[b"made"]),
                Errno::NOTDIR,
            ),
        ] {
            let error = jail.call(opcode, link, &body).unwrap_err();
            assert_eq!(error, errno(expected), "{name} {opcode:?}");
        }
        // Creating over it does not go through it.
        let create = named(&small(&[0o101, 0o644, 0, 0]), &[name.as_bytes()]);
        let error = jail.call(Opcode::Create, ROOT_ID, &create).unwrap_err();
        assert_eq!(error, errno(Errno::LOOP));
        // Attributes are the link's own.
        let mut change = small(&[1 << 1, 0]);
        change.extend_from_slice(&[0; 60]);
        change.extend_from_slice(&small(&[0, 0, 4321, 4321, 0]));
        jail.call(Opcode::SetAttr, link, &change).unwrap();
        let path = scene.directory.path().join("share").join(name);
        assert_eq!(fs::symlink_metadata(path).unwrap().uid(), 4321);
    }
    let secret = scene.directory.path().join("secret");
    assert_eq!(fs::metadata(&secret).unwrap().uid(), 0);
    assert_eq!(fs::read(secret).unwrap(), b"outside");
    assert!(!scene.directory.path().join("made").exists());
    scene.jail.end();
}

#[test]
fn the_root_has_nothing_above_it() {
    let Some(mut scene) = scene() else { return };
    let jail = &mut scene.jail;
    let reply = jail
        .call(Opcode::OpenDir, ROOT_ID, &small(&[0, 0]))
        .unwrap();
    let handle = u64::from_ne_bytes(reply[..8].try_into().unwrap());
    let mut read = numbers(&[handle, 0]);
    read.extend_from_slice(&small(&[65536, 0]));
    read.extend_from_slice(&[0; 16]);
    let listing = jail.call(Opcode::ReadDir, ROOT_ID, &read).unwrap();
    let inode = fs::metadata(scene.directory.path().join("share"))
        .unwrap()
        .ino();
    let mut rest = &listing[..];
    let mut seen = 0;
    while rest.len() >= 24 {
        let number = u64::from_ne_bytes(rest[..8].try_into().unwrap());
        let length = u32::from_ne_bytes(rest[16..20].try_into().unwrap());
        let length = usize::try_from(length).unwrap();
        if matches!(&rest[24..24 + length], b"." | b"..") {
            assert_eq!(number, inode);
            seen += 1;
        }
        rest = &rest[24 + length.next_multiple_of(8)..];
    }
    assert_eq!(seen, 2);
    scene.jail.end();
}

#[test]
fn swaps_during_the_walk_do_not_matter() {
    let Some(mut scene) = scene() else { return };
    let share = scene.directory.path().join("share");
    fs::create_dir(scene.directory.path().join("outside")).unwrap();
    fs::write(scene.directory.path().join("outside/f"), "outside").unwrap();
    fs::create_dir(share.join("real")).unwrap();
    fs::write(share.join("real/f"), "inside").unwrap();
    symlink("../outside", share.join("link")).unwrap();
    symlink("../../secret", share.join("real/l")).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    // Somebody on the host, or another program of the guest, exchanges a directory and a
    // link that leads out, over and over.
    let swapper = std::thread::spawn({
        let (over, share) = (Arc::clone(&over), share.clone());
        move || {
            let swap = |one: &Path, other: &Path| {
                let cwd = rustix::fs::CWD;
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(cwd, one, cwd, other, exchange).unwrap();
            };
            while !over.load(Ordering::Relaxed) {
                swap(&share.join("real"), &share.join("link"));
                let inner = if share.join("real").is_symlink() {
                    share.join("link")
                } else {
                    share.join("real")
                };
                swap(&inner.join("f"), &inner.join("l"));
            }
        }
    });
    let jail = &mut scene.jail;
    let mut inside = 0;
    for round in 0..3000u32 {
        let directory = jail.look_up(ROOT_ID, b"real").unwrap();
        let (opcode, body) = if round % 3 == 0 {
            (Opcode::Lookup, named(&[], &[b"f"]))
        } else {
            (Opcode::Create, named(&small(&[2, 0o644, 0, 0]), &[b"f"]))
        };
        let Ok(reply) = jail.call(opcode, directory, &body) else {
            continue;
        };
        let node = u64::from_ne_bytes(reply[..8].try_into().unwrap());
        let Ok(reply) = jail.call(Opcode::Open, node, &small(&[2, 0])) else {
            continue;
        };
        let handle = u64::from_ne_bytes(reply[..8].try_into().unwrap());
        let mut read = numbers(&[handle, 0]);
        read.extend_from_slice(&small(&[100, 0]));
        read.extend_from_slice(&[0; 16]);
        let bytes = jail.call(Opcode::Read, node, &read).unwrap();
        assert_eq!(bytes, b"inside");
        inside += 1;
        jail.call(Opcode::Release, node, &numbers(&[handle, 0, 0]))
            .unwrap();
    }
    over.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(inside > 0);
    assert_eq!(
        fs::read(scene.directory.path().join("outside/f")).unwrap(),
        b"outside"
    );
    scene.jail.end();
}

#[test]
fn an_end_with_events_that_nobody_has_read() {
    let Some(scene) = scene() else { return };
    fs::write(scene.directory.path().join("share/new"), "").unwrap();
    let mut told = [PollFd::new(&scene.jail.socket, PollFlags::IN)];
    let patience = rustix::event::Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert_eq!(
        rustix::event::poll(&mut told, Some(&patience)).unwrap(),
        1,
        "no event was told"
    );
    scene.jail.end();
}

#[test]
fn forgetting_too_much_and_what_never_was() {
    let Some(mut scene) = scene() else { return };
    let jail = &mut scene.jail;
    let d = jail.look_up(ROOT_ID, b"d").unwrap();
    for node in [ROOT_ID, d, 0, 999, u64::MAX] {
        jail.send(Opcode::Forget.number(), node, &numbers(&[u64::MAX]));
        jail.send(Opcode::Forget.number(), node, &numbers(&[1]));
        jail.send(Opcode::Forget.number(), node, &[]);
        let mut many = small(&[u32::MAX, 0]);
        many.extend_from_slice(&numbers(&[node, u64::MAX, node, 1]));
        jail.send(Opcode::BatchForget.number(), ROOT_ID, &many);
    }
    // Nobody answers these; the next answer is to the next question. They are answered by
    // several threads, so the last of them may be under way still.
    let f = loop {
        match jail.look_up(d, b"f") {
            Err(error) => {
                assert_eq!(error, errno(Errno::STALE));
                break error;
            }
            Ok(_) => continue,
        }
    };
    assert_eq!(f, errno(Errno::STALE));
    let again = jail.look_up(ROOT_ID, b"d").unwrap();
    assert_ne!(again, d);
    jail.look_up(again, b"f").unwrap();
    scene.jail.end();
}

#[test]
fn devices_and_pipes_are_not_opened() {
    let Some(mut scene) = scene() else { return };
    let share = scene.directory.path().join("share");
    let jail = &mut scene.jail;
    for (name, mode, device) in [
        (&b"pipe"[..], 0o010_666, 0),
        (b"null", 0o020_666, 0x103),
        (b"socket", 0o140_666, 0),
    ] {
        let body = named(&small(&[mode, device, 0, 0]), &[name]);
        let reply = jail.call(Opcode::MkNod, ROOT_ID, &body).unwrap();
        let node = u64::from_ne_bytes(reply[..8].try_into().unwrap());
        for flags in [0, 1, 2, 0o1001, 0o2000] {
            let error = jail
                .call(Opcode::Open, node, &small(&[flags, 0]))
                .unwrap_err();
            assert_eq!(error, errno(Errno::NXIO));
        }
        let create = named(&small(&[0o102, 0o644, 0, 0]), &[name]);
        let error = jail.call(Opcode::Create, ROOT_ID, &create).unwrap_err();
        assert_eq!(error, errno(Errno::NXIO));
        let mut truncate = small(&[1 << 3, 0]);
        truncate.extend_from_slice(&[0; 80]);
        jail.call(Opcode::SetAttr, node, &truncate).unwrap_err();
    }
    assert!(share.join("pipe").exists());
    let kind = named(&small(&[0o040_755, 0, 0, 0]), &[b"directory"]);
    assert_eq!(
        jail.call(Opcode::MkNod, ROOT_ID, &kind).unwrap_err(),
        errno(Errno::INVAL)
    );
    scene.jail.end();
}

#[test]
fn reads_and_writes_are_bounded_and_handles_checked() {
    let Some(mut scene) = scene() else { return };
    let jail = &mut scene.jail;
    let d = jail.look_up(ROOT_ID, b"d").unwrap();
    let f = jail.look_up(d, b"f").unwrap();
    let reply = jail.call(Opcode::Open, f, &small(&[2, 0])).unwrap();
    let handle = u64::from_ne_bytes(reply[..8].try_into().unwrap());
    let read = |handle, offset, size| {
        let mut body = numbers(&[handle, offset]);
        body.extend_from_slice(&small(&[size, 0]));
        body.extend_from_slice(&[0; 16]);
        body
    };
    for (body, expected) in [
        (read(handle, 0, u32::MAX), Errno::INVAL),
        (read(handle, 0, (1 << 20) + 1), Errno::INVAL),
        (read(handle, u64::MAX, 10), Errno::INVAL),
        (read(handle + 1, 0, 10), Errno::BADF),
        (read(u64::MAX, 0, 10), Errno::BADF),
    ] {
        assert_eq!(
            jail.call(Opcode::Read, f, &body).unwrap_err(),
            errno(expected)
        );
    }
    // A write that announces more than it brings.
    let mut write = numbers(&[handle, 0]);
    write.extend_from_slice(&small(&[1000, 0]));
    write.extend_from_slice(&[0; 16]);
    write.extend_from_slice(b"short");
    assert_eq!(
        jail.call(Opcode::Write, f, &write).unwrap_err(),
        errno(Errno::INVAL)
    );
    let mut set = small(&[70_000, 0]);
    set.extend_from_slice(b"user.x\0");
    set.resize(set.len() + 70_000, 0);
    assert_eq!(
        jail.call(Opcode::SetXAttr, f, &set).unwrap_err(),
        errno(Errno::TOOBIG)
    );
    // A user that is none.
    let body = named(&small(&[0o755, 0]), &[b"made"]);
    let bytes = request(Opcode::MkDir.number(), 77, ROOT_ID, (u32::MAX, 0), &body);
    jail.socket.write_all(&bytes).unwrap();
    assert_eq!(jail.receive(), (77, -errno(Errno::INVAL), Vec::new()));
    // Operations that nobody knows.
    for opcode in [0, 7, 19, 31, 39, 52, 4096, u32::MAX] {
        let sent = jail.send(opcode, f, &[0; 64]);
        assert_eq!(jail.receive(), (sent, -errno(Errno::NOSYS), Vec::new()));
    }
    scene.jail.end();
}

#[test]
fn as_many_open_files_as_there_may_be() {
    let Some(mut scene) = scene() else { return };
    let jail = &mut scene.jail;
    let d = jail.look_up(ROOT_ID, b"d").unwrap();
    let f = jail.look_up(d, b"f").unwrap();
    let mut last = 0;
    let error = loop {
        match jail.call(Opcode::Open, f, &small(&[0, 0])) {
            Ok(reply) => last = u64::from_ne_bytes(reply[..8].try_into().unwrap()),
            Err(error) => break error,
        }
        if last > 600_000 {
            return;
        }
    };
    assert_eq!(error, errno(Errno::NFILE));
    // What is open still works, and so does everything else.
    jail.call(Opcode::GetAttr, f, &numbers(&[1, last])).unwrap();
    jail.look_up(d, b"f").unwrap();
    jail.call(Opcode::Release, f, &numbers(&[last, 0, 0]))
        .unwrap();
    jail.call(Opcode::Open, f, &small(&[0, 0])).unwrap();
    scene.jail.end();
}

#[test]
fn lengths_that_are_wrong_end_the_share_and_nothing_else() {
    if !possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for length in [
        0u32,
        4,
        39,
        u32::MAX,
        u32::try_from(MAX_REQUEST).unwrap() + 1,
    ] {
        let mut jail = Jail::start(&config(directory.path())).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.resize(64, 0xff);
        jail.socket.write_all(&bytes).unwrap();
        let mut rest = Vec::new();
        jail.socket.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert_eq!(jail.process.wait().unwrap().code(), Some(1), "{length}");
    }
    // One that ends in the middle.
    let mut jail = Jail::start(&config(directory.path())).unwrap();
    jail.socket.write_all(&[200, 0, 0, 0, 1, 2, 3]).unwrap();
    jail.end();
    // A version that nobody speaks, and one from the future.
    let mut jail = Jail::start(&config(directory.path())).unwrap();
    let hello = |major, minor| {
        let mut body = small(&[major, minor, 0, 0]);
        body.resize(64, 0);
        body
    };
    for (major, minor) in [(0, 0), (6, 1), (7, 22)] {
        let error = jail
            .call(Opcode::Init, 0, &hello(major, minor))
            .unwrap_err();
        assert_eq!(error, errno(Errno::PROTO));
    }
    assert_eq!(jail.call(Opcode::Init, 0, &hello(8, 0)).unwrap().len(), 8);
    assert_eq!(
        jail.call(Opcode::Init, 0, &[]).unwrap_err(),
        errno(Errno::INVAL)
    );
    jail.end();
}

/// Messages at random, from seeds: whatever they say, the server lives and nothing beside
/// the share changes.
#[test]
fn nonsense_is_answered_and_changes_nothing_outside() {
    for seed in 0..8 {
        let Some(mut scene) = scene() else { return };
        let mut random = StdRng::seed_from_u64(seed);
        let known: Vec<u32> = (0..53)
            .filter(|number| Opcode::from_number(*number).is_some())
            .collect();
        let names: [&[u8]; 8] = [
            b"d\0",
            b"f\0",
            b"..\0",
            b"relative\0",
            b"up\0",
            b"new\0",
            b"d/f\0",
            b"\0",
        ];
        let jail = &mut scene.jail;
        for _ in 0..4000 {
            let opcode = known[random.random_range(0..known.len())];
            let node = random.random_range(0..12u64);
            let mut body = Vec::new();
            for _ in 0..random.random_range(0..6) {
                match random.random_range(0..5) {
                    0 => body.extend_from_slice(names[random.random_range(0..names.len())]),
                    1 => body.extend_from_slice(&random.random_range(0..6u64).to_ne_bytes()),
                    2 => body.extend_from_slice(&random.random_range(0..4096u32).to_ne_bytes()),
                    3 => body.extend_from_slice(&random.random::<u64>().to_ne_bytes()),
                    _ => body.extend_from_slice(&[0; 16]),
                }
            }
            let silent = [
                Opcode::Forget.number(),
                Opcode::BatchForget.number(),
                Opcode::Interrupt.number(),
            ];
            let sent = jail.send(opcode, node, &body);
            if !silent.contains(&opcode) {
                assert_eq!(jail.receive().0, sent);
            }
        }
        jail.call(Opcode::GetAttr, ROOT_ID, &[0; 16]).unwrap();
        let secret = scene.directory.path().join("secret");
        assert_eq!(fs::read(&secret).unwrap(), b"outside");
        let seen = fs::metadata(&secret).unwrap();
        assert_eq!((seen.uid(), seen.nlink()), (0, 1));
        let beside: Vec<_> = fs::read_dir(scene.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(beside.len(), 2, "{beside:?}");
        scene.jail.end();
    }
}

/// What the process itself has left of the host.
#[test]
fn the_jail_holds_nothing_but_the_share() {
    let Some(scene) = scene() else { return };
    let inner = scene.jail.inner();
    let file = |name: &str| fs::read_to_string(format!("/proc/{inner}/{name}")).unwrap();
    let status = file("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    };
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP
    let rights = (1u64 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27) | 1 << 31;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(
            u64::from_str_radix(&field(set), 16).unwrap() & !rights,
            0,
            "{set}"
        );
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("NSpid"), "1");
    // One mount, which is the share.
    let mounts = file("mountinfo");
    let points: Vec<_> = mounts
        .lines()
        .map(|line| line.split(' ').nth(4).unwrap().to_owned())
        .collect();
    assert_eq!(points, ["/"], "{mounts}");
    for namespace in ["mnt", "net", "ipc", "uts", "pid", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&inner.to_string()), of("self"), "{namespace}");
    }
    // Its socket, its streams, the share's root, its own descriptors and what others change.
    let open: Vec<_> = fs::read_dir(format!("/proc/{inner}/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    for target in &open {
        let target = target.to_string_lossy();
        let ours = [
            "socket:",
            "pipe:",
            "/dev/",
            "/",
            "/self/fd",
            "anon_inode:[fanotify]",
        ];
        assert!(
            ours.iter().any(|known| target.starts_with(known)),
            "{target}"
        );
        assert!(!target.contains("secret"));
    }
    let Scene { jail, .. } = scene;
    let unused: OwnedFd = jail.socket.try_clone().unwrap().into();
    drop(unused);
    jail.end();
}

#[test]
fn so_many_directories_are_watched_and_no_more() {
    const MOST: usize = 8192;
    let Some(mut scene) = scene() else { return };
    let share = scene.directory.path().join("share");
    let inner = scene.jail.inner();
    let watched = || {
        let infos = fs::read_dir(format!("/proc/{inner}/fdinfo")).unwrap();
        infos
            .filter_map(|info| fs::read_to_string(info.ok()?.path()).ok())
            .flat_map(|info| info.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.starts_with("fanotify ino:"))
            .count()
    };
    assert_eq!(watched(), 1);
    let mut nodes = Vec::new();
    for number in 0..MOST + 200 {
        let name = format!("n{number}");
        fs::create_dir(share.join(&name)).unwrap();
        nodes.push(scene.jail.look_up(ROOT_ID, name.as_bytes()).unwrap());
    }
    let most = watched();
    assert!((2..=MOST).contains(&most), "{most}");
    // The last one is among them.
    let last = share.join(format!("n{}", MOST + 199));
    fs::write(last.join("told"), "x").unwrap();
    let told = loop {
        let (unique, _, payload) = scene.jail.message();
        if unique == 0 && payload.windows(4).any(|part| part == b"told") {
            break payload;
        }
    };
    assert!(told.len() < 256);
    for node in &nodes {
        scene
            .jail
            .send(Opcode::Forget.number(), *node, &numbers(&[1]));
    }
    // What is asked now is answered after it.
    while watched() > 1 {
        scene.jail.look_up(ROOT_ID, b"relative").unwrap();
    }
}
