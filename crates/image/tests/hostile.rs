//! Layers from strangers: each is refused or made harmless, and an error leaves store and disk
//! as they were.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod common;

use std::io::Read;

use bulkhead_image::{ErrorKind, ImageStore, ImportOptions};
use common::{
    archive, directory, entry, entry_of_size, file, hard_link, listing, pax, seal, symlink,
};

/// Imports and expects a refusal whose text has all these parts.
fn refused(store: &ImageStore, root: &std::path::Path, tar: &mut (dyn Read + Send), why: &str) {
    let before = listing(root);
    let error = store
        .import(tar, &ImportOptions::default(), &|_| {})
        .unwrap_err();
    let text = error.full_message();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}");
    assert!(text.contains(why), "{text:?} lacks {why:?}");
    assert_eq!(listing(root), before);
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn refusals() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let long = "x".repeat(256);
    let long_path = "a/".repeat(2050);
    let deep_pax = "a/".repeat(2047);
    let many_xattrs: Vec<Vec<u8>> = (0..2000)
        .map(|number| format!("SCHILY.xattr.user.{number}").into_bytes())
        .collect();
    let many_xattrs: Vec<(&str, &[u8])> = many_xattrs
        .iter()
        .map(|name| (std::str::from_utf8(name).unwrap(), &b"v"[..]))
        .collect();
    let big_xattr = vec![b'x'; 70_000];
    let big_value = vec![b'x'; 60_000];
    let xattr_sum: Vec<String> = (0..5).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let xattr_sum: Vec<(&str, &[u8])> = xattr_sum
        .iter()
        .map(|name| (name.as_str(), &big_value[..]))
        .collect();
    let mut loop_of_links = vec![symlink("l0", "l1"), symlink("l1", "l0")];
    loop_of_links.push(file("l0/x", b""));
    let cases: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        (
            "dot dot",
            vec![file("../evil", b"x")],
            "leads out of the layer",
        ),
        (
            "dot dot within",
            vec![file("a/../../evil", b"x")],
            "leads out of the layer",
        ),
        (
            "absolute dot dot",
            vec![file("/../evil", b"x")],
            "leads out of the layer",
        ),
        ("absolute", vec![file("/evil", b"x")], "absolute path"),
        (
            "write through an absolute symlink",
            vec![symlink("link", "/etc"), file("link/passwd", b"x")],
            "does not exist",
        ),
        (
            "write through a climbing symlink",
            vec![
                directory("etc"),
                symlink("link", "../../etc"),
                file("link/passwd", b"x"),
            ],
            "leads out of the layer",
        ),
        ("symlink loop", loop_of_links, "too many symlinks"),
        (
            "file as parent",
            vec![file("f", b""), file("f/x", b"")],
            "f is not a directory",
        ),
        (
            "link to nothing",
            vec![hard_link("l", "missing")],
            "which the layer lacks",
        ),
        (
            "link out",
            vec![hard_link("l", "../../etc/passwd")],
            "leads out of the layer",
        ),
        (
            "link to itself",
            vec![file("a", b""), hard_link("a", "a")],
            "which the layer lacks",
        ),
        (
            "link to a directory",
            vec![directory("d"), hard_link("l", "d")],
            "no directory",
        ),
        (
            "long name",
            vec![pax(&[("path", long.as_bytes())]), file("x", b"")],
            "invalid file name",
        ),
        (
            "long path",
            vec![pax(&[("path", long_path.as_bytes())]), file("x", b"")],
            "4095",
        ),
        (
            "NUL in a name",
            vec![pax(&[("path", b"a\0b")]), file("x", b"")],
            "NUL",
        ),
        (
            "nameless whiteout",
            vec![file(".wh.", b"")],
            "invalid file name",
        ),
        (
            "whiteout of dot dot",
            vec![file(".wh...", b"")],
            "invalid file name",
        ),
        (
            "many xattrs",
            vec![pax(&many_xattrs), file("x", b"")],
            "too many extended attributes",
        ),
        (
            "big xattr",
            vec![pax(&[("SCHILY.xattr.user.a", &big_xattr)]), file("x", b"")],
            "too large",
        ),
        (
            "sum of xattrs",
            vec![pax(&xattr_sum), file("x", b"")],
            "too large",
        ),
        (
            "pax bomb",
            vec![entry_of_size("p", b'x', "", b"", 1 << 40)],
            "too large",
        ),
        (
            "long name bomb",
            vec![entry_of_size("p", b'L', "", b"", 1 << 40)],
            "too large",
        ),
        (
            "global pax bomb",
            vec![entry_of_size("p", b'g', "", b"", 1 << 40)],
            "too large",
        ),
        (
            "huge file",
            vec![entry_of_size("f", b'0', "", b"x", 1 << 50)],
            "over the limit",
        ),
        (
            "huge truncated file",
            vec![entry_of_size("f", b'0', "", b"x", 1 << 39)],
            "early",
        ),
        (
            "device out of range",
            vec![device_out_of_range()],
            "out of range",
        ),
        (
            "unknown type",
            vec![entry("x", b'Z', "", b"")],
            "unknown entry type",
        ),
        ("empty symlink", vec![symlink("x", "")], "symlink target"),
        ("bad checksum", vec![vec![7; 512]], "checksum"),
        (
            "sparse bomb",
            vec![
                pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"9000000000000000000"),
                ]),
                file("s", &sparse_data("0\n")),
            ],
            "size of a sparse file",
        ),
        (
            "sparse count bomb",
            vec![
                pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"100"),
                ]),
                file("s", &sparse_data("99999999999\n")),
            ],
            "too many extents",
        ),
        (
            "sparse overlap",
            vec![
                pax(&[("GNU.sparse.map", b"10,5,0,5"), ("GNU.sparse.size", b"100")]),
                file("s", b"0123456789"),
            ],
            "extents",
        ),
        (
            "sparse map without its data",
            vec![
                pax(&[
                    ("GNU.sparse.map", b"0,1000000"),
                    ("GNU.sparse.size", b"1000000"),
                ]),
                file("s", b"x"),
            ],
            "does not match",
        ),
        (
            "uid out of range",
            vec![pax(&[("uid", b"99999999999")]), file("x", b"")],
            "range",
        ),
    ];
    for (name, entries, why) in cases {
        eprintln!("{name}");
        refused(&store, root.path(), &mut &archive(&entries)[..], why);
    }
    // Nested as deep as a path allows is fine; the tree may not get deeper through symlinks.
    let deep = [
        pax(&[("path", deep_pax.as_bytes())]),
        directory("x"),
        pax(&[("linkpath", deep_pax.as_bytes())]),
        symlink("s", ""),
        directory("s/a/b/c/d/e"),
    ];
    refused(
        &store,
        root.path(),
        &mut &archive(&deep)[..],
        "depth of directories",
    );
    // Cut anywhere, in a header or in data; what fills the last record may be missing.
    let whole = archive(&[
        file("a", &[1; 5000]),
        pax(&[("path", b"bb")]),
        file("b", &[2; 700]),
    ]);
    for length in [1, 511, 513, 1000, 5511, 5700, 6150, 6200, 6700, 7200] {
        eprintln!("cut at {length}");
        refused(&store, root.path(), &mut &whole[..length], "");
    }
}

fn sparse_data(map: &str) -> Vec<u8> {
    let mut data = map.as_bytes().to_vec();
    data.resize(512, 0);
    data
}

fn device_out_of_range() -> Vec<u8> {
    let mut device = entry("d", b'3', "", b"");
    device[329..337].copy_from_slice(b"7777777\0");
    let header: &mut [u8; 512] = (&mut device[..512]).try_into().unwrap();
    seal(header);
    device
}

#[test]
fn compression_bombs_and_garbage() {
    use std::io::Write as _;
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    // Megabytes of zeros behind a small tar costs time, not disk.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive(&[file("a", b"x")])).unwrap();
    for _ in 0..16 {
        gzip.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    let id = store
        .import(&mut &bomb[..], &ImportOptions::default(), &|_| {})
        .unwrap();
    let layer = &store.inspect(&id).unwrap().layers[0];
    assert!(layer.blob_size <= 3 * 4096);
    store.remove(&id.hex(), false, &[]).unwrap();
    let mut broken = bomb.clone();
    let middle = broken.len() / 2;
    broken[middle] ^= 0xff;
    let end = broken.len();
    broken[end - 6] ^= 0xff;
    refused(&store, root.path(), &mut &broken[..], "decompress");
    let mut zstd = zstd::encode_all(&archive(&[file("a", &[7; 100_000])])[..], 1).unwrap();
    let end = zstd.len() - 1;
    zstd.truncate(end);
    refused(&store, root.path(), &mut &zstd[..], "decompress");
    refused(
        &store,
        root.path(),
        &mut &b"\x1f\x8b\x08garbage"[..],
        "decompress",
    );
    refused(
        &store,
        root.path(),
        &mut &b"not a tar at all, but text"[..],
        "end of the tar",
    );
}

#[test]
fn a_failing_stream_is_not_the_images_fault() {
    struct Broken(usize);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::other("connection reset"));
            }
            let length = self.0.min(buffer.len());
            buffer[..length].fill(0);
            self.0 -= length;
            Ok(length)
        }
    }
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let before = listing(root.path());
    for length in [0, 3, 100, 100_000] {
        let error = store
            .import(&mut Broken(length), &ImportOptions::default(), &|_| {})
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Other);
        assert!(
            error.full_message().contains("connection reset"),
            "{}",
            error.full_message()
        );
        let error = store.load(&mut Broken(length), &|_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Other);
        assert_eq!(listing(root.path()), before);
    }
}

/// Random bytes, and valid archives with random damage: an answer each time, never a panic.
#[test]
fn random_bytes_never_panic() {
    use rand::{Rng as _, SeedableRng as _};
    // In memory, since every conversion syncs.
    let output = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let output = std::fs::File::from(output);
    let valid = archive(&[
        directory("d"),
        pax(&[
            ("path", b"d/file"),
            ("mtime", b"1.5"),
            ("SCHILY.xattr.user.a", b"b"),
            ("uid", b"70000"),
        ]),
        file("x", &[1; 3000]),
        symlink("d/s", "../d"),
        hard_link("d/h", "d/s/file"),
        file("d/.wh.gone", b""),
        file("d/.wh..wh..opq", b""),
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"1000000"),
            ("GNU.sparse.name", b"sparse"),
        ]),
        file("s", &[&sparse_data("1\n500000\n4\n")[..], b"data"].concat()),
        entry("long", b'L', "", b"some/long/name\0"),
        entry("dev", b'3', "", b""),
    ]);
    for seed in 0..3000_u64 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let mut bytes = valid.clone();
        match seed % 3 {
            0 => {
                bytes = vec![0; random.random_range(0..4096)];
                random.fill(&mut bytes[..]);
            }
            kind => {
                for _ in 0..random.random_range(1..8) {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] = random.random();
                }
                if kind == 2 {
                    // So that the damage is looked at behind the checksum.
                    for start in (0..bytes.len() - 511).step_by(512) {
                        let header: &mut [u8; 512] =
                            (&mut bytes[start..start + 512]).try_into().unwrap();
                        if &header[257..262] == b"ustar" {
                            seal(header);
                        }
                    }
                }
                let cut = random.random_range(0..bytes.len() * 2);
                bytes.truncate(cut);
            }
        }
        output.set_len(0).unwrap();
        std::io::Seek::rewind(&mut &output).unwrap();
        let _ = bulkhead_image::convert_layer(&mut &bytes[..], &output);
    }
}
