//! The writer's own rules. What the kernel makes of its images is tested with the layers.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

use std::io::{Cursor, Read};
use std::process::Command;

use bulkhead_erofs::{
    Attributes, Extent, ImageWriter, Limits, NodeId, NodeKind, Options, Special, Timestamp,
    WriterError,
};

type Writer = ImageWriter<Cursor<Vec<u8>>>;

fn writer(limits: Limits) -> Writer {
    ImageWriter::new(
        Cursor::new(Vec::new()),
        Options {
            uuid: [0; 16],
            limits,
        },
    )
    .unwrap()
}

fn bytes(writer: Writer) -> Vec<u8> {
    let (output, summary) = writer.finish().unwrap();
    let bytes = output.into_inner();
    assert_eq!(bytes.len() as u64, summary.image_bytes);
    assert_eq!(bytes.len() % 4096, 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let output = Command::new("fsck.erofs")
        .arg(file.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    bytes
}

fn attributes() -> Attributes {
    Attributes {
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Timestamp {
            seconds: -5,
            nanoseconds: 7,
        },
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
    }
}

fn fill(writer: &mut Writer) {
    let root = NodeId::ROOT;
    let directory = writer.add_directory(root, b"d", &attributes()).unwrap();
    let file = writer
        .add_file(directory, b"f", &attributes(), 5000, &mut &[1; 5000][..])
        .unwrap();
    writer.add_link(root, b"hard", file).unwrap();
    writer
        .add_symlink(root, b"s", b"d/f", &attributes())
        .unwrap();
    let device = Special::BlockDevice {
        major: 4095,
        minor: (1 << 20) - 1,
    };
    writer
        .add_special(root, b"b", device, &Attributes::default())
        .unwrap();
    writer
        .add_special(root, b"socket", Special::Socket, &Attributes::default())
        .unwrap();
    let extents = [
        Extent {
            offset: 10_000,
            length: 3,
        },
        Extent {
            offset: 500_000,
            length: 2,
        },
    ];
    writer
        .add_sparse_file(
            root,
            b"sparse",
            &attributes(),
            1 << 30,
            &extents,
            &mut &b"12345"[..],
        )
        .unwrap();
}

#[test]
fn equal_calls_give_equal_bytes() {
    let images = [(); 2].map(|()| {
        let mut writer = writer(Limits::default());
        fill(&mut writer);
        bytes(writer)
    });
    assert!(images[0] == images[1]);
    // A gigabyte of holes takes a map and the chunks with data.
    assert!(images[0].len() < 256 << 10);
    assert_eq!(images[0][1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
}

#[test]
fn empty() {
    assert_eq!(bytes(writer(Limits::default())).len(), 8192);
}

#[test]
fn the_tree_answers() {
    let mut writer = writer(Limits::default());
    fill(&mut writer);
    let directory = writer.lookup(NodeId::ROOT, b"d").unwrap();
    assert_eq!(writer.kind(directory), NodeKind::Directory);
    assert_eq!(writer.parent(directory), Some(NodeId::ROOT));
    let link = writer.lookup(NodeId::ROOT, b"s").unwrap();
    assert_eq!(writer.symlink_target(link), Some(&b"d/f"[..]));
    let file = writer.lookup(directory, b"f").unwrap();
    assert_eq!(writer.lookup(NodeId::ROOT, b"hard"), Some(file));
    assert_eq!(writer.lookup(file, b"x"), None);
    writer.remove(NodeId::ROOT, b"d");
    assert_eq!(writer.lookup(NodeId::ROOT, b"d"), None);
    // It has another name.
    assert_eq!(writer.kind(file), NodeKind::File);
    bytes(writer);
}

#[test]
fn refusals() {
    let mut writer = writer(Limits::default());
    fill(&mut writer);
    let root = NodeId::ROOT;
    let plain = Attributes::default();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        let error = writer.add_directory(root, name, &plain).unwrap_err();
        assert!(matches!(error, WriterError::InvalidName(_)), "{error}");
    }
    let error = writer.add_directory(root, b"d", &plain).unwrap_err();
    assert!(matches!(error, WriterError::Exists(_)));
    let directory = writer.lookup(root, b"d").unwrap();
    let error = writer.add_link(root, b"x", directory).unwrap_err();
    assert!(matches!(error, WriterError::WrongKind(_)));
    let file = writer.lookup(root, b"hard").unwrap();
    assert!(matches!(
        writer.add_directory(file, b"x", &plain).unwrap_err(),
        WriterError::WrongKind(_)
    ));
    assert!(matches!(
        writer.set_directory_attributes(file, &plain).unwrap_err(),
        WriterError::WrongKind(_)
    ));
    let device = Special::CharacterDevice {
        major: 4096,
        minor: 0,
    };
    let error = writer.add_special(root, b"x", device, &plain).unwrap_err();
    assert!(matches!(error, WriterError::InvalidDevice { .. }));
    let odd = Attributes {
        xattrs: vec![(b"odd.a".to_vec(), Vec::new())],
        ..plain.clone()
    };
    let error = writer.add_directory(root, b"x", &odd).unwrap_err();
    assert!(matches!(error, WriterError::UnsupportedXattr(_)));
    let overlap = [
        Extent {
            offset: 5,
            length: 5,
        },
        Extent {
            offset: 9,
            length: 1,
        },
    ];
    let beyond = [Extent {
        offset: 5,
        length: u64::MAX,
    }];
    for extents in [&overlap[..], &beyond] {
        let mut data = std::io::repeat(0).take(100);
        let mut data = std::io::BufReader::new(&mut data);
        let error = writer.add_sparse_file(root, b"x", &plain, 100, extents, &mut data);
        assert!(matches!(error.unwrap_err(), WriterError::InvalidExtents));
    }
    let error = writer
        .add_file(root, b"short", &plain, 10, &mut &b"1234"[..])
        .unwrap_err();
    assert!(matches!(error, WriterError::Truncated { missing: 6 }));
}

#[test]
fn limits_hold() {
    let small = Limits {
        inodes: 4,
        names: 6,
        metadata_bytes: 4096,
        data_bytes: 1 << 20,
        sparse_file_bytes: 1 << 20,
        depth: 2,
        tail_bytes: 10,
    };
    let root = NodeId::ROOT;
    let plain = Attributes::default();
    let is_limit = |error: WriterError| assert!(matches!(error, WriterError::Limit(..)), "{error}");

    let mut deep = writer(small);
    let first = deep.add_directory(root, b"1", &plain).unwrap();
    let second = deep.add_directory(first, b"2", &plain).unwrap();
    is_limit(deep.add_directory(second, b"3", &plain).unwrap_err());
    let file = deep
        .add_file(root, b"f", &plain, 0, &mut std::io::empty())
        .unwrap();
    is_limit(deep.add_directory(root, b"4", &plain).unwrap_err());
    for name in [b"l1", b"l2", b"l3"] {
        deep.add_link(root, name, file).unwrap();
    }
    is_limit(deep.add_link(root, b"l4", file).unwrap_err());

    let mut large = writer(small);
    is_limit(
        large
            .add_file(root, b"f", &plain, 1 << 21, &mut std::io::empty())
            .unwrap_err(),
    );
    is_limit(
        large
            .add_file(root, b"f", &plain, u64::MAX, &mut std::io::empty())
            .unwrap_err(),
    );
    let holes = large.add_sparse_file(root, b"s", &plain, 1 << 21, &[], &mut std::io::empty());
    is_limit(holes.unwrap_err());
    is_limit(
        large
            .add_symlink(root, b"l", &[b'x'; 4090], &plain)
            .map(|_| ())
            .and(
                large
                    .add_symlink(root, b"m", &[b'x'; 4090], &plain)
                    .map(|_| ()),
            )
            .unwrap_err(),
    );

    // Tails over their budget go to blocks; no error.
    let mut tails = writer(small);
    tails
        .add_file(root, b"1", &plain, 8, &mut &[1; 8][..])
        .unwrap();
    tails
        .add_file(root, b"2", &plain, 8, &mut &[2; 8][..])
        .unwrap();
    assert_eq!(bytes(tails).len(), 3 * 4096);
}
