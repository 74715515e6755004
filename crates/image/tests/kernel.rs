//! Converted layers as the kernel sees them: mounted, walked, and compared with what GNU tar
//! extracts; and stacked by overlayfs. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{archive, directory, entry, file, hard_link, pax};
use rand::{Rng as _, SeedableRng as _};

/// A mount that goes with its value.
struct Mount(PathBuf);

impl Mount {
    fn new(kind: &str, source: &Path, options: &str, target: PathBuf) -> Self {
        fs::create_dir_all(&target).unwrap();
        let status = Command::new("mount")
            .args(["-t", kind, "-o", options])
            .arg(source)
            .arg(&target)
            .status()
            .unwrap();
        assert!(status.success(), "mount {}", source.display());
        Self(target)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}

fn convert(tar: &mut (dyn std::io::Read + Send), image: &Path) {
    let output = File::create(image).unwrap();
    let layer = bulkhead_image::convert_layer(tar, &output).unwrap();
    assert_eq!(layer.image_bytes, output.metadata().unwrap().len());
    assert_eq!(layer.image_bytes % 4096, 0);
    run(Command::new("fsck.erofs").arg(image));
}

/// All that `lstat`, `readlink`, `listxattr` and reading say of a file.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    links: u64,
    size: u64,
    mtime: (i64, i64),
    target: Vec<u8>,
    content: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// Everything below `root` by path, and the sets of paths that are one file.
fn walk(root: &Path) -> (BTreeMap<PathBuf, Facts>, BTreeSet<Vec<PathBuf>>) {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let mut entries: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let kind = metadata.file_type();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if kind.is_dir() {
                pending.push(path.clone());
            } else if metadata.nlink() > 1 {
                inodes.entry(metadata.ino()).or_default().push(name.clone());
            }
            let target = if kind.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec()
            } else {
                Vec::new()
            };
            let facts = Facts {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                device: metadata.rdev(),
                links: metadata.nlink(),
                // A directory's size is its file system's affair.
                size: if kind.is_dir() { 0 } else { metadata.size() },
                mtime: (metadata.mtime(), metadata.mtime_nsec()),
                target,
                content: kind.is_file().then(|| fs::read(&path).unwrap()),
                xattrs: xattrs(&path),
            };
            found.insert(name, facts);
        }
    }
    let groups = inodes.into_values().map(|mut group| {
        group.sort();
        group
    });
    (found, groups.collect())
}

/// A tree with some of everything.
fn grow(root: &Path, seed: u64) {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    for number in 0..200 {
        let parent = directories[random.random_range(0..directories.len())].clone();
        let length = if random.random_bool(0.05) {
            250
        } else {
            random.random_range(1..30)
        };
        let name: String = (0..length)
            .map(|_| char::from(random.random_range(b'!'..b'~')))
            .collect();
        let name = format!("{}{number}", name.replace('/', "_"));
        let path = parent.join(name);
        let device = rustix::fs::makedev(
            random.random_range(1..4096),
            random.random_range(0..1 << 20),
        );
        match random.random_range(0..12) {
            0 | 1 => {
                fs::create_dir(&path).unwrap();
                directories.push(path.clone());
            }
            2 => symlink("x/".repeat(random.random_range(1..900)), &path).unwrap(),
            3 if !files.is_empty() => {
                fs::hard_link(&files[random.random_range(0..files.len())], &path).unwrap();
            }
            4 => mknodat(
                CWD,
                &path,
                FileType::CharacterDevice,
                Mode::from(0o600),
                device,
            )
            .unwrap(),
            5 => mknodat(CWD, &path, FileType::BlockDevice, Mode::from(0o640), device).unwrap(),
            6 => mknodat(CWD, &path, FileType::Fifo, Mode::from(0o644), 0).unwrap(),
            7 => {
                let sparse = File::create(&path).unwrap();
                for _ in 0..random.random_range(0..20) {
                    let at = random.random_range(0..1_500_000_u64);
                    let data = vec![7; random.random_range(1..20_000)];
                    sparse.write_all_at(&data, at).unwrap();
                }
                if random.random_bool(0.5) {
                    sparse
                        .set_len(30_000_000 + random.random_range(0..10_000))
                        .unwrap();
                }
                files.push(path.clone());
            }
            kind => {
                let size = match kind {
                    8 => random.random_range(0..4),
                    9 => 4096 * random.random_range(1..5),
                    _ => random.random_range(0..30_000),
                };
                let mut data = vec![0; size];
                random.fill(&mut data[..]);
                fs::write(&path, data).unwrap();
                files.push(path.clone());
            }
        }
        let is_symlink = fs::symlink_metadata(&path).unwrap().is_symlink();
        let (uid, gid) = (
            random.random_range(0..70_000),
            random.random_range(0..1 << 20),
        );
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
        if !is_symlink {
            let mode = Mode::from_raw_mode(random.random_range(0..0o10000));
            rustix::fs::chmod(&path, mode).unwrap();
            let is_special = !files.contains(&path) && !directories.contains(&path);
            for index in 0..random.random_range(0..4) {
                let value = vec![b'v'; random.random_range(0..600)];
                let value = if random.random_bool(0.5) {
                    b"the same"
                } else {
                    &value[..]
                };
                if is_special {
                    let name = format!("trusted.x{index}");
                    lsetxattr(&path, name, value, XattrFlags::empty()).unwrap();
                } else {
                    let name = format!("user.some.name{index}");
                    lsetxattr(&path, name, value, XattrFlags::empty()).unwrap();
                }
            }
        }
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            last_modification: rustix::fs::Timespec {
                tv_sec: if random.random_bool(0.5) {
                    1_600_000_000
                } else {
                    random.random_range(0..4_000_000_000)
                },
                tv_nsec: if random.random_bool(0.5) {
                    0
                } else {
                    random.random_range(0..1_000_000_000)
                },
            },
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(CWD, &path, &times, flags).unwrap();
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn random_trees_round_trip() {
    if !is_root() {
        return;
    }
    for seed in 0..4 {
        let scratch = tempfile::tempdir().unwrap();
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree).unwrap();
        grow(&tree, seed);
        let tar = scratch.path().join("layer.tar");
        // Only pax keeps nanoseconds and attributes.
        let format = ["pax", "gnu", "pax", "gnu"][usize::try_from(seed).unwrap()];
        let mut command = Command::new("tar");
        command.arg(format!("--format={format}"));
        if format == "pax" {
            command.args(["--xattrs", "--xattrs-include=*"]);
        }
        if seed != 1 {
            command.arg("--sparse");
        }
        if seed == 2 {
            command.arg("--sparse-version=0.1");
        }
        run(command.arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."));
        let image = scratch.path().join("layer.erofs");
        convert(&mut File::open(&tar).unwrap(), &image);
        // The same bytes again.
        let again = scratch.path().join("again.erofs");
        convert(&mut File::open(&tar).unwrap(), &again);
        assert!(fs::read(&image).unwrap() == fs::read(&again).unwrap());

        let extracted = scratch.path().join("extracted");
        fs::create_dir(&extracted).unwrap();
        run(Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--same-owner", "-p", "-C"])
            .arg(&extracted)
            .arg("-xf")
            .arg(&tar));
        let mount = Mount::new("erofs", &image, "ro", scratch.path().join("mount"));
        let (expected, expected_links) = walk(&extracted);
        let (actual, links) = walk(&mount.0);
        for (path, facts) in &expected {
            assert_eq!(
                actual.get(path),
                Some(facts),
                "seed {seed}: {}",
                path.display()
            );
        }
        assert_eq!(actual.len(), expected.len());
        assert_eq!(links, expected_links);
    }
}

#[test]
fn large_directories_and_large_files() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut entries = vec![directory("d")];
    for number in 0..5000 {
        let name = format!("d/{}{number}", "n".repeat(number % 60));
        entries.push(file(&name, number.to_string().as_bytes()));
    }
    // Sorts before `.`; the kernel searches entries by order.
    entries.push(file("d/+before", b"x"));
    entries.push(file("d/..after", b"y"));
    let size = (5_u64 << 30) + 123;
    let tail = b"the end";
    let map = format!("0,4,{},{}", size - tail.len() as u64, tail.len());
    let sized = size.to_string();
    entries.push(pax(&[
        ("GNU.sparse.map", map.as_bytes()),
        ("GNU.sparse.size", sized.as_bytes()),
    ]));
    entries.push(file("huge", &[&b"head"[..], tail].concat()));
    let image = scratch.path().join("image");
    convert(&mut &archive(&entries)[..], &image);
    assert!(image.metadata().unwrap().len() < 20 << 20);
    let mount = Mount::new("erofs", &image, "ro", scratch.path().join("mount"));
    assert_eq!(fs::read_dir(mount.0.join("d")).unwrap().count(), 5002);
    for number in (0..5000).step_by(37) {
        let name = format!("d/{}{number}", "n".repeat(number % 60));
        assert_eq!(
            fs::read(mount.0.join(name)).unwrap(),
            number.to_string().as_bytes()
        );
    }
    assert_eq!(fs::read(mount.0.join("d/+before")).unwrap(), b"x");
    assert_eq!(fs::read(mount.0.join("d/..after")).unwrap(), b"y");
    let huge = File::open(mount.0.join("huge")).unwrap();
    assert_eq!(huge.metadata().unwrap().len(), size);
    let mut end = [0; 10];
    huge.read_exact_at(&mut end, size - 10).unwrap();
    assert_eq!(&end, b"\0\0\0the end");
}

/// Docker's rules for what later entries do to earlier ones.
#[test]
fn later_entries_replace_earlier_ones() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let tar = archive(&[
        file("a", b"first"),
        file("a", b"second"),
        directory("d"),
        file("d/inside", b"x"),
        file("d", b"now a file"),
        file("f", b"x"),
        directory("f"),
        file("f/inside", b"y"),
        pax(&[("uid", b"7")]),
        directory("f"),
        file("missing/parents/made", b"z"),
        file("./x/../y", b"by text"),
        file("target", b"t"),
        hard_link("hard", "./target"),
        file("target", b"new, the link stays"),
        directory("real"),
        entry("through", b'2', "/real", b""),
        file("through/written", b"in real"),
        hard_link("hard2", "through/written"),
        entry("through2", b'2', "real/../through", b""),
        file("through2/new/dir/file", b"deep"),
    ]);
    let image = scratch.path().join("image");
    convert(&mut &tar[..], &image);
    let mount = Mount::new("erofs", &image, "ro", scratch.path().join("mount"));
    let read = |name: &str| fs::read_to_string(mount.0.join(name)).unwrap();
    assert_eq!(read("a"), "second");
    assert_eq!(read("d"), "now a file");
    assert_eq!(read("f/inside"), "y");
    assert_eq!(fs::metadata(mount.0.join("f")).unwrap().uid(), 7);
    assert_eq!(read("missing/parents/made"), "z");
    let made = fs::metadata(mount.0.join("missing")).unwrap();
    assert_eq!((made.mode(), made.uid()), (0o40755, 0));
    assert_eq!(read("y"), "by text");
    assert_eq!(read("hard"), "t");
    assert_eq!(read("target"), "new, the link stays");
    assert_eq!(read("real/written"), "in real");
    assert_eq!(read("hard2"), "in real");
    assert_eq!(read("real/new/dir/file"), "deep");
    assert_eq!(fs::metadata(mount.0.join("hard2")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(mount.0.join("hard")).unwrap().nlink(), 1);
}

#[test]
fn whiteouts_hide_what_is_below() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let lower = archive(&[
        directory("keep"),
        file("keep/a", b"a"),
        file("keep/b", b"b"),
        directory("opaque"),
        file("opaque/old", b"x"),
        directory("gone"),
        file("gone/x", b"x"),
        directory("remade"),
        file("remade/old", b"x"),
        directory("remade2"),
        file("remade2/old", b"x"),
        file("both", b"lower"),
    ]);
    let upper = archive(&[
        file("keep/.wh.a", b""),
        file("opaque/.wh..wh..opq", b""),
        file("opaque/new", b"y"),
        file(".wh.gone", b""),
        file(".wh.remade", b""),
        directory("remade"),
        file("remade/new", b"y"),
        directory("remade2"),
        file("remade2/new", b"y"),
        file(".wh.remade2", b""),
        file("both", b"upper"),
        file(".wh.both", b""),
        file(".wh..wh.plnk/1.2", b"aufs"),
        file(".wh..wh.aufs", b""),
        pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/keep")]),
        directory("sly"),
    ]);
    let (lower_image, upper_image) = (scratch.path().join("lower"), scratch.path().join("upper"));
    convert(&mut &lower[..], &lower_image);
    convert(&mut &upper[..], &upper_image);
    let bottom = Mount::new("erofs", &lower_image, "ro", scratch.path().join("bottom"));
    let top = Mount::new("erofs", &upper_image, "ro", scratch.path().join("top"));
    let layers = format!("lowerdir={}:{}", top.0.display(), bottom.0.display());
    let merged = Mount::new(
        "overlay",
        Path::new("overlay"),
        &layers,
        scratch.path().join("merged"),
    );
    let list = |name: &str| {
        let mut names: Vec<String> = fs::read_dir(merged.0.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        list(""),
        ["both", "keep", "opaque", "remade", "remade2", "sly"]
    );
    assert_eq!(list("keep"), ["b"]);
    assert_eq!(list("opaque"), ["new"]);
    assert_eq!(list("remade"), ["new"]);
    assert_eq!(list("remade2"), ["new"]);
    assert_eq!(list("sly"), [""; 0]);
    assert_eq!(fs::read(merged.0.join("both")).unwrap(), b"upper");
    drop(merged);
}

#[test]
fn ends_as_the_kernel_wants_them() {
    if !is_root() {
        return;
    }
    // Sizes around every boundary of blocks and tails, contents checked.
    let scratch = tempfile::tempdir().unwrap();
    let sizes = [
        0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6143, 6144, 6145, 8192, 12_289,
    ];
    let content = |size: usize| {
        (0..size)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect::<Vec<u8>>()
    };
    let big = vec![b'v'; 3000];
    let mut entries = Vec::new();
    for size in sizes {
        entries.push(file(&format!("plain-{size}"), &content(size)));
        entries.push(pax(&[
            ("SCHILY.xattr.user.big", &big),
            ("mtime", b"5.000000007"),
        ]));
        entries.push(file(&format!("xattr-{size}"), &content(size)));
        if size > 0 {
            entries.push(pax(&[("linkpath", "t".repeat(size.min(4095)).as_bytes())]));
            entries.push(entry(&format!("link-{size}"), b'2', "", b""));
        }
    }
    let image = scratch.path().join("image");
    convert(&mut &archive(&entries)[..], &image);
    let mount = Mount::new("erofs", &image, "ro", scratch.path().join("mount"));
    for size in sizes {
        assert_eq!(
            fs::read(mount.0.join(format!("plain-{size}"))).unwrap(),
            content(size)
        );
        let path = mount.0.join(format!("xattr-{size}"));
        assert_eq!(fs::read(&path).unwrap(), content(size));
        assert_eq!(xattrs(&path)[&b"user.big"[..]], big);
        assert_eq!(fs::metadata(&path).unwrap().mtime_nsec(), 7);
        if size > 0 {
            let target = fs::read_link(mount.0.join(format!("link-{size}"))).unwrap();
            assert_eq!(target.as_os_str().len(), size.min(4095));
        }
    }
}
