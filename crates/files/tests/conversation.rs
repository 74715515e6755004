//! Conversations over a socket, about directories of the host.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bulkhead_files::protocol::{Answer, FrameReader, FrameWriter, receive, send};
use bulkhead_files::{
    Change, ChangeKind, FilesError, FilesErrorKind, Reply, Request, Scene, serve,
};
use bulkhead_tar::{EntryKind, Header, TarStream, TarWriter};

fn open(path: &Path) -> OwnedFd {
    OwnedFd::from(std::fs::File::open(path).expect("it works"))
}

/// Serves one conversation beside the test.
fn served(scene: impl FnOnce() -> Scene + Send + 'static) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("it works");
    std::thread::spawn(move || serve(theirs, |_| Ok(scene()), &|_, _| Ok((70, 80))));
    ours
}

fn root(path: &Path) -> UnixStream {
    let root = open(path);
    served(move || Scene::Root(root))
}

fn layers(upper: &Path, base: &Path) -> UnixStream {
    let (upper, base) = (open(upper), open(base));
    served(move || Scene::Layers {
        upper,
        base: Some(base),
    })
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut tar = TarStream::new(archive);
    let mut names = Vec::new();
    while let Some(entry) = tar.next_entry().expect("it works") {
        names.push(String::from_utf8(entry.path).expect("it works"));
    }
    names
}

fn read(stream: UnixStream, path: &str) -> Result<Vec<u8>, FilesError> {
    let request = Request::Read { path: path.into() };
    let (_, mut answer) = Answer::ask(stream, &request).expect("it works")?;
    let mut archive = Vec::new();
    answer.read_to_end(&mut archive).expect("it works");
    Ok(archive)
}

fn write(stream: UnixStream, path: &str, archive: &[u8], merge: bool) -> Result<(), FilesError> {
    let request = Request::Write {
        path: path.into(),
        no_overwrite_dir_non_dir: !merge,
        owner: None,
    };
    let mut stream = stream;
    send(&mut stream, &request).expect("it works");
    receive::<Result<Reply, FilesError>>(&mut stream).expect("it works")?;
    let mut frames = FrameWriter::new(&stream);
    // It may be refused half way.
    let _ = frames
        .write_all(archive)
        .and_then(|()| frames.end().map(drop));
    let mut frames = FrameReader::new(&mut stream);
    frames.read_to_end(&mut Vec::new()).expect("it works");
    receive(&mut stream).expect("it works")
}

fn entry<'a>(path: &'a [u8], kind: EntryKind, link: &'a [u8], size: u64) -> Header<'a> {
    Header {
        path,
        kind,
        link,
        mode: 0o640,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        mtime: 1_000_000_000,
        size,
        xattrs: &[],
    }
}

#[test]
fn an_archive_goes_out_and_in_again() {
    let one = tempfile::tempdir().expect("it works");
    let tree = one.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).expect("it works");
    std::fs::write(tree.join("file"), "words").expect("it works");
    std::fs::hard_link(tree.join("file"), tree.join("sub/same")).expect("it works");
    symlink("file", tree.join("link")).expect("it works");
    let mode = std::fs::Permissions::from_mode(0o4711);
    std::fs::set_permissions(tree.join("file"), mode).expect("it works");

    let archive = read(root(one.path()), "/tree").expect("it works");
    let expected = [
        "tree/",
        "tree/file",
        "tree/link",
        "tree/sub/",
        "tree/sub/same",
    ];
    assert_eq!(names(&archive), expected);
    assert_eq!(
        names(&read(root(one.path()), "/tree/.").expect("it works"))[..2],
        ["./", "./file"]
    );
    assert_eq!(
        names(&read(root(one.path()), "/").expect("it works"))[..2],
        ["/", "/tree/"]
    );

    let two = tempfile::tempdir().expect("it works");
    write(root(two.path()), "/", &archive, false).expect("it works");
    let copy = two.path().join("tree");
    assert_eq!(
        std::fs::read(copy.join("link")).expect("it works"),
        b"words"
    );
    let (file, same) = (copy.join("file"), copy.join("sub/same"));
    let (file, same) = (
        file.metadata().expect("it works"),
        same.metadata().expect("it works"),
    );
    assert_eq!((file.ino(), file.mode() & 0o7777), (same.ino(), 0o4711));
    let time = |path: &Path| path.join("tree").metadata().expect("it works").mtime();
    assert_eq!(time(one.path()), time(two.path()));
}

#[test]
fn what_leads_out_is_refused() {
    let outside = tempfile::tempdir().expect("it works");
    std::fs::write(outside.path().join("secret"), "x").expect("it works");
    let inside = tempfile::tempdir().expect("it works");
    symlink(outside.path(), inside.path().join("link")).expect("it works");
    symlink("../../../../../../../etc", inside.path().join("up")).expect("it works");
    for path in ["/link/secret", "/up/passwd", "/../../etc/passwd"] {
        let error = read(root(inside.path()), path).unwrap_err();
        assert_eq!(error.kind, FilesErrorKind::NotFound, "{path}");
    }
    for name in [&b"../x"[..], b"/../x", b"a/../../x", b"a\0/../x"] {
        let mut tar = TarWriter::new(Vec::new());
        tar.begin(&entry(name, EntryKind::File, b"", 0))
            .expect("it works");
        let _ = write(
            root(inside.path()),
            "/",
            &tar.finish().expect("it works"),
            true,
        );
    }
    let mut tar = TarWriter::new(Vec::new());
    let link = entry(b"hard", EntryKind::HardLink, b"../../etc/passwd", 0);
    tar.begin(&link).expect("it works");
    let error = write(
        root(inside.path()),
        "/",
        &tar.finish().expect("it works"),
        true,
    )
    .unwrap_err();
    assert_eq!(error.kind, FilesErrorKind::Invalid);
    assert!(!inside.path().parent().expect("it works").join("x").exists());
    assert!(!inside.path().join("hard").exists());
}

#[test]
fn directories_and_others_do_not_replace_each_other_unless_asked() {
    let place = tempfile::tempdir().expect("it works");
    std::fs::create_dir_all(place.path().join("name/below")).expect("it works");
    let mut tar = TarWriter::new(Vec::new());
    tar.begin(&entry(b"name", EntryKind::File, b"", 0))
        .expect("it works");
    let archive = tar.finish().expect("it works");
    let error = write(root(place.path()), "/", &archive, false).unwrap_err();
    assert!(
        error.message.contains("cannot overwrite directory"),
        "{error}"
    );
    write(root(place.path()), "/", &archive, true).expect("it works");
    assert!(place.path().join("name").is_file());
    let error = write(root(place.path()), "/name", &archive, true).unwrap_err();
    assert!(error.message.contains("not a directory"), "{error}");
    // An archive that stops in the middle.
    let mut tar = TarWriter::new(Vec::new());
    tar.begin(&entry(b"cut", EntryKind::File, b"", 9))
        .expect("it works");
    tar.write_all(b"123456789").expect("it works");
    let archive = tar.finish().expect("it works");
    let error = write(root(place.path()), "/", &archive[..515], true).unwrap_err();
    assert_eq!(error.kind, FilesErrorKind::Invalid);
}

#[test]
fn changes_and_the_layer_of_them() {
    let base = tempfile::tempdir().expect("it works");
    let upper = tempfile::tempdir().expect("it works");
    let at = |root: &tempfile::TempDir, path: &str| root.path().join(path);
    for path in ["etc", "kept/sub", "opaque"] {
        std::fs::create_dir_all(at(&base, path)).expect("it works");
    }
    for path in ["etc/passwd", "kept/sub/file", "opaque/hidden", "gone"] {
        std::fs::write(at(&base, path), "old").expect("it works");
    }
    for path in ["etc", "proc", "sys", "dev/pts", "opaque", "new/deep"] {
        std::fs::create_dir_all(at(&upper, path)).expect("it works");
    }
    for path in ["etc/hosts", "etc/resolv.conf"] {
        std::fs::write(at(&upper, path), "").expect("it works");
    }
    std::fs::write(at(&upper, "new/deep/file"), "new").expect("it works");
    std::fs::write(at(&upper, "opaque/fresh"), "new").expect("it works");
    let whiteout = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::empty();
    rustix::fs::mknodat(rustix::fs::CWD, at(&upper, "gone"), whiteout, mode, 0).expect("it works");
    let flags = rustix::fs::XattrFlags::empty();
    let opaque = rustix::fs::setxattr(at(&upper, "opaque"), "trusted.overlay.opaque", b"y", flags);
    opaque.expect("it works");

    let stream = layers(upper.path(), base.path());
    let (_, mut answer) = Answer::ask(stream, &Request::Changes)
        .expect("it works")
        .expect("it works");
    let mut text = String::new();
    answer.read_to_string(&mut text).expect("it works");
    let changes: Vec<Change> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("it works"))
        .collect();
    let found: Vec<(&str, ChangeKind)> = changes
        .iter()
        .map(|one| (one.path.as_str(), one.kind))
        .collect();
    use ChangeKind::{Added, Deleted, Modified};
    // What is there to mount something on is no change.
    assert_eq!(
        found,
        [
            ("/gone", Deleted),
            ("/new", Added),
            ("/new/deep", Added),
            ("/new/deep/file", Added),
            ("/opaque", Modified),
            ("/opaque/hidden", Deleted),
            ("/opaque/fresh", Added),
        ]
    );

    let stream = layers(upper.path(), base.path());
    let request = Request::Layer {
        newest: Some(5),
        mount_points: Vec::new(),
    };
    let (_, mut answer) = Answer::ask(stream, &request)
        .expect("it works")
        .expect("it works");
    let mut archive = Vec::new();
    answer.read_to_end(&mut archive).expect("it works");
    let expected = [
        ".wh.gone",
        "new/",
        "new/deep/",
        "new/deep/file",
        "opaque/",
        "opaque/.wh..wh..opq",
        "opaque/fresh",
    ];
    assert_eq!(names(&archive), expected);
    let mut tar = TarStream::new(&archive[..]);
    while let Some(entry) = tar.next_entry().expect("it works") {
        assert!(entry.mtime.seconds <= 5);
    }
}

#[test]
fn a_layer_without_what_was_made_to_mount_over() {
    let base = tempfile::tempdir().expect("it works");
    let upper = tempfile::tempdir().expect("it works");
    let at = |root: &tempfile::TempDir, path: &str| root.path().join(path);
    let make = |root: &tempfile::TempDir, path: &str| {
        std::fs::create_dir_all(at(root, path)).expect("it works");
    };
    let write = |path: &str, text: &str| {
        let path = at(&upper, path);
        std::fs::create_dir_all(path.parent().expect("it has")).expect("it works");
        std::fs::write(path, text).expect("it works");
    };
    make(&base, "there");
    make(&base, "changed");
    for path in ["there/point", "one/two/point", "own/point", "changed/point"] {
        make(&upper, path);
    }
    // A secret is a file; what was put beside or into a mount point stays.
    write("run/secrets/key", "");
    write("changed/file", "new");
    write("own/file", "new");
    write("filled/file", "new");
    write("written", "new");
    make(&upper, "one/two/other");
    let points = [
        "there/point",
        "one/two/point",
        "own/point",
        "changed/point",
        "run/secrets/key",
        "filled",
        "written",
        "never/made",
    ];
    let request = Request::Layer {
        newest: None,
        mount_points: points.map(str::to_owned).to_vec(),
    };
    let (_, mut answer) = Answer::ask(layers(upper.path(), base.path()), &request)
        .expect("it works")
        .expect("it works");
    let mut archive = Vec::new();
    answer.read_to_end(&mut archive).expect("it works");
    let expected = [
        "changed/",
        "changed/file",
        "filled/",
        "filled/file",
        "one/",
        "one/two/",
        "one/two/other/",
        "own/",
        "own/file",
        "written",
    ];
    assert_eq!(names(&archive), expected);
}
