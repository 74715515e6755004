//! What the host changes raises events on the other side, and what that side changes itself
//! raises them once.

use std::fs;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::mounted::Mounted;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// Longer than anything takes, even here and now.
const PATIENCE: Duration = Duration::from_secs(60);

struct Watcher {
    group: OwnedFd,
    seen: Vec<String>,
}

impl Watcher {
    fn new() -> Self {
        Self {
            group: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap(),
            seen: Vec::new(),
        }
    }

    fn watch(&self, path: &Path) {
        let flags = WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&self.group, path, flags).unwrap();
    }

    fn read(&mut self) {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.group, &mut buffer);
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_str().unwrap());
            let name = name.unwrap_or_default();
            let directory = event.events().contains(ReadFlags::ISDIR);
            for (flag, word) in [
                (ReadFlags::MODIFY, "modify"),
                (ReadFlags::ATTRIB, "attrib"),
                (ReadFlags::CREATE, "create"),
                (ReadFlags::DELETE, "delete"),
                (ReadFlags::MOVED_FROM, "from"),
                (ReadFlags::MOVED_TO, "to"),
                (ReadFlags::CLOSE_WRITE, "close"),
            ] {
                if event.events().contains(flag) {
                    let slash = if directory { "/" } else { "" };
                    self.seen.push(format!("{word} {name}{slash}"));
                }
            }
        }
    }

    /// Waits until an event is seen; returns what was seen up to it.
    fn until(&mut self, wanted: &str) -> Vec<String> {
        loop {
            self.read();
            if let Some(at) = self.seen.iter().position(|seen| seen == wanted) {
                return self.seen.drain(..=at).collect();
            }
            let mut ready = [PollFd::new(&self.group, PollFlags::IN)];
            let patience = Timespec::try_from(PATIENCE).unwrap();
            let polled = rustix::event::poll(&mut ready, Some(&patience)).unwrap();
            assert!(polled > 0, "no {wanted:?}, only {:?}", self.seen);
        }
    }
}

#[test]
fn what_the_host_changes_raises_events() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (host, guest) = (&mounted.source, &mounted.share);
    fs::write(host.join("old"), "x").unwrap();
    fs::create_dir_all(host.join("d/e")).unwrap();
    let mut watcher = Watcher::new();
    watcher.watch(guest);
    watcher.watch(&guest.join("d/e"));

    fs::write(host.join("new"), "some").unwrap();
    watcher.until("create new");
    assert_eq!(fs::read_to_string(guest.join("new")).unwrap(), "some");
    watcher.until("modify new");
    watcher.until("close new");
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(host.join("old"))
        .unwrap();
    for _ in 0..3 {
        writeln!(log, "more").unwrap();
        watcher.until("modify old");
    }
    drop(log);
    watcher.until("close old");
    fs::set_permissions(host.join("old"), fs::Permissions::from_mode(0o600)).unwrap();
    watcher.until("attrib old");
    fs::create_dir(host.join("sub")).unwrap();
    watcher.until("create sub/");
    assert!(guest.join("sub").is_dir());
    fs::remove_dir(host.join("sub")).unwrap();
    watcher.until("delete sub/");
    assert!(!guest.join("sub").exists());
    fs::rename(host.join("new"), host.join("old")).unwrap();
    watcher.until("from new");
    watcher.until("to old");
    assert_eq!(fs::read_to_string(guest.join("old")).unwrap(), "some");
    fs::remove_file(host.join("old")).unwrap();
    watcher.until("delete old");
    assert_eq!(fs::read_dir(guest).unwrap().count(), 1);

    // What does not last.
    fs::write(host.join("short"), "x").unwrap();
    fs::set_permissions(host.join("short"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(host.join("short"), host.join("life")).unwrap();
    fs::remove_file(host.join("life")).unwrap();
    for event in [
        "create short",
        "attrib short",
        "close short",
        "from short",
        "to life",
        "delete life",
    ] {
        watcher.until(event);
    }
    assert!(!guest.join("short").exists() && !guest.join("life").exists());

    // Deeper, by a name that is not seen before, and across directories.
    fs::write(host.join("d/e/f"), "").unwrap();
    watcher.until("create f");
    fs::rename(host.join("d/e/f"), host.join("g")).unwrap();
    watcher.until("from f");
    watcher.until("to g");
    // From where nobody looked.
    fs::rename(host.join("g"), host.join("d/g")).unwrap();
    watcher.until("from g");
    fs::rename(host.join("d"), host.join("moved")).unwrap();
    watcher.until("to moved/");
    fs::write(host.join("moved/e/last"), "").unwrap();
    watcher.until("create last");
}

#[test]
fn own_changes_are_seen_once() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (host, guest) = (&mounted.source, &mounted.share);
    let mut watcher = Watcher::new();
    watcher.watch(guest);
    for round in 0..20 {
        fs::write(guest.join("own"), "x").unwrap();
        fs::rename(guest.join("own"), guest.join("other")).unwrap();
        fs::remove_file(guest.join("other")).unwrap();
        fs::create_dir(guest.join("d")).unwrap();
        fs::remove_dir(guest.join("d")).unwrap();
        // The host's comes after them, whatever is told of them.
        fs::create_dir(host.join(format!("mark{round}"))).unwrap();
        let seen = watcher.until(&format!("create mark{round}/"));
        let own: Vec<_> = seen.iter().filter(|seen| !seen.contains("mark")).collect();
        assert_eq!(
            own,
            [
                "create own",
                "modify own",
                "close own",
                "from own",
                "to other",
                "delete other",
                "create d/",
                "delete d/"
            ]
        );
    }
    // Nor does making events seen raise any on the host, or change anything there.
    let mut hosts = Watcher::new();
    hosts.watch(host);
    let before = fs::metadata(host.join("mark0")).unwrap();
    fs::write(host.join("f"), "x").unwrap();
    watcher.until("close f");
    fs::write(host.join("end"), "x").unwrap();
    watcher.until("close end");
    hosts.until("close end");
    let after = fs::metadata(host.join("mark0")).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    hosts.read();
    assert!(hosts.seen.is_empty(), "{:?}", hosts.seen);
}

#[test]
fn a_single_file_and_two_shares() {
    let Some(one) = Mounted::new() else {
        return;
    };
    fs::write(one.source.join("f"), "x").unwrap();
    let file = one.source.join("f");
    let Some(single) = Mounted::with(|config| config.source.clone_from(&file)) else {
        return;
    };
    let mut watcher = Watcher::new();
    watcher.watch(&single.share.join(bulkhead_share::FILE_ENTRY));
    // By way of the other share.
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(one.share.join("f"))
        .unwrap();
    writeln!(log, "more").unwrap();
    watcher.until("modify ");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    watcher.until("attrib ");
}
