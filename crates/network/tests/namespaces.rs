//! Real namespaces; root is needed, and without it the tests say so and pass.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bulkhead_network::{NetworkNamespace, NetworkNamespaceError, prepare_directory, remove, sweep};

/// A directory for namespaces that leaves nothing behind, not even when a test fails.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making network namespaces needs root");
            return None;
        }
        let path =
            std::env::temp_dir().join(format!("bulkhead-netns-{name}-{}", std::process::id()));
        prepare_directory(&path).unwrap();
        Some(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = sweep(&self.0, &HashSet::new());
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn mounts_below(path: &Path) -> usize {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let prefix = format!("{}/", path.display());
    text.lines()
        .filter(|line| {
            line.split(' ')
                .nth(4)
                .is_some_and(|at| at.starts_with(&prefix))
        })
        .count()
}

/// Runs something in the namespace at `path`.
fn within<T: Send + 'static>(path: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(path).unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
    .join()
    .unwrap()
}

#[test]
fn a_namespace_is_another_one_with_loopback_up() {
    let Some(directory) = Directory::new("up") else {
        return;
    };
    let path = directory.0.join("one");
    let namespace = NetworkNamespace::create(&path).unwrap();
    assert_eq!(namespace.path(), path);
    let own = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    assert_ne!(std::fs::metadata(&path).unwrap().ino(), own);
    within(&path, || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    });
    // Nobody of this process was moved.
    assert_eq!(
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino(),
        own
    );
    remove(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(mounts_below(&directory.0), 0);
}

#[test]
fn removing_twice_or_nothing_succeeds() {
    let Some(directory) = Directory::new("twice") else {
        return;
    };
    let path = directory.0.join("one");
    remove(&path).unwrap();
    NetworkNamespace::create(&path).unwrap();
    remove(&path).unwrap();
    remove(&path).unwrap();
    // What a crash between the file and its mount leaves.
    std::fs::write(&path, b"").unwrap();
    remove(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_copied_mount_namespace_does_not_keep_it() {
    let Some(directory) = Directory::new("copied") else {
        return;
    };
    let path = directory.0.join("one");
    NetworkNamespace::create(&path).unwrap();
    let (copied, is_copied) = std::sync::mpsc::channel();
    let (removed, is_removed) = std::sync::mpsc::channel::<()>();
    let base = directory.0.clone();
    let other = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let count = || {
            let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let prefix = format!("{}/", base.display());
            text.lines().filter(|line| line.contains(&prefix)).count()
        };
        copied.send(count()).unwrap();
        is_removed.recv().unwrap();
        count()
    });
    assert_eq!(is_copied.recv().unwrap(), 1);
    remove(&path).unwrap();
    removed.send(()).unwrap();
    assert_eq!(other.join().unwrap(), 0);
}

#[test]
fn a_taken_path_is_refused_and_stays_as_it_was() {
    let Some(directory) = Directory::new("taken") else {
        return;
    };
    let path = directory.0.join("one");
    NetworkNamespace::create(&path).unwrap();
    let before = std::fs::metadata(&path).unwrap().ino();
    let error = NetworkNamespace::create(&path).unwrap_err();
    assert!(matches!(error, NetworkNamespaceError::File { .. }));
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
}

#[test]
fn a_missing_directory_is_refused() {
    let Some(directory) = Directory::new("missing") else {
        return;
    };
    let path = directory.0.join("no").join("such");
    assert!(NetworkNamespace::create(&path).is_err());
    assert_eq!(mounts_below(&directory.0), 0);
}

#[test]
fn a_sweep_keeps_what_is_named() {
    let Some(directory) = Directory::new("sweep") else {
        return;
    };
    for name in ["a", "b", "c"] {
        NetworkNamespace::create(&directory.0.join(name)).unwrap();
    }
    std::fs::write(directory.0.join("stray"), b"").unwrap();
    let keep = HashSet::from(["b".into()]);
    assert_eq!(sweep(&directory.0, &keep).unwrap(), 3);
    assert!(directory.0.join("b").exists());
    assert_eq!(mounts_below(&directory.0), 1);
    assert_eq!(sweep(Path::new("/no/such/directory"), &keep).unwrap(), 0);
}

#[test]
fn preparing_a_directory_twice_makes_one_mount() {
    let Some(directory) = Directory::new("prepare") else {
        return;
    };
    prepare_directory(&directory.0).unwrap();
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.split(' ').nth(4) == directory.0.to_str())
        .collect();
    assert_eq!(lines.len(), 1);
    // No optional field: neither shared nor a slave.
    assert_eq!(lines[0].split(' ').nth(6), Some("-"));
}

/// `cargo test -p bulkhead-network --release -- --ignored --nocapture` prints what it takes.
#[test]
#[ignore = "measures"]
fn how_long_it_takes() {
    let Some(directory) = Directory::new("time") else {
        return;
    };
    let path = directory.0.join("one");
    for _ in 0..5 {
        let start = std::time::Instant::now();
        NetworkNamespace::create(&path).unwrap();
        let created = start.elapsed();
        remove(&path).unwrap();
        eprintln!("create {created:?}, remove {:?}", start.elapsed() - created);
    }
}
