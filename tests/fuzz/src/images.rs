//! What images are made of: archives, layers, documents, names.

use std::fs::File;
use std::io::{Read, Write};

use bulkhead_image::ImageStore;
use bulkhead_tar::TarStream;
use sha2::{Digest, Sha256};

use crate::Target;

pub(crate) const TAR: Target = Target {
    name: "tar",
    run: |bytes| {
        let mut stream = TarStream::new(bytes);
        let mut content = Vec::new();
        while let Ok(Some(_entry)) = stream.next_entry() {
            content.clear();
            if stream.read_to_end(&mut content).is_err() {
                return;
            }
            assert!(content.len() <= bytes.len(), "bytes that nobody sent");
        }
    },
    seeds: || vec![small_tar()],
    tries: 100_000,
};

/// A layer becomes an EROFS image or an error, and the same image each time.
pub(crate) const LAYER: Target = Target {
    name: "layer",
    run: |bytes| {
        let convert = || {
            let output = tempfile::tempfile().ok()?;
            bulkhead_image::convert_layer(&mut &*bytes, &output).ok()?;
            read_all(output)
        };
        let Some(first) = convert() else { return };
        assert!(first.len().is_multiple_of(4096), "not whole blocks");
        // That the superblock is where the kernel looks for it: fs/erofs/erofs_fs.h.
        assert_eq!(first.get(1024..1028), Some(&[0xe2, 0xe1, 0xf5, 0xe0][..]));
        assert!(Some(first) == convert(), "two images of one layer");
    },
    seeds: || {
        let tar = small_tar();
        vec![
            gzip(&tar),
            zstd::encode_all(&*tar, 3).unwrap_or_default(),
            tar,
        ]
    },
    tries: 1500,
};

/// What `docker load` is given; a refusal leaves nothing.
pub(crate) const ARCHIVE: Target = Target {
    name: "archive",
    run: |bytes| {
        let Ok(root) = tempfile::tempdir() else {
            return;
        };
        let Ok(store) = ImageStore::open(root.path()) else {
            return;
        };
        let loaded = store.load(&mut &*bytes, &|_| {});
        let listed = store.list().map(|list| list.len());
        assert_eq!(
            loaded.map_or(0, |images| images.len()),
            listed.unwrap_or_default(),
            "what is listed is not what was loaded"
        );
    },
    seeds: || {
        let layer = small_tar();
        let digest = Sha256::digest(&layer);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
        );
        let manifest = br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]"#;
        vec![tar(&[
            ("manifest.json", manifest),
            ("c.json", config.as_bytes()),
            ("l/layer.tar", &layer),
        ])]
    },
    tries: 300,
};

pub(crate) const CONFIG: Target = Target {
    name: "image_config",
    run: |bytes| {
        let Ok(config) = bulkhead_image::ImageConfig::parse(bytes) else {
            return;
        };
        // What was understood can be written, and says the same then.
        let Ok(written) = config.to_bytes() else {
            panic!("a configuration that was read cannot be written");
        };
        let again = bulkhead_image::ImageConfig::parse(&written).map(|again| again.to_bytes().ok());
        assert_eq!(again.ok().flatten(), Some(written));
    },
    seeds: || {
        vec![br#"{"created":"2026-01-02T03:04:05Z","architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Cmd":["sh"],"ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},"Healthcheck":{"Test":["CMD","x"],"Interval":1}},"rootfs":{"type":"layers","diff_ids":[]},"history":[{"created":"2026-01-02T03:04:05Z","created_by":"x","empty_layer":true}]}"#.to_vec()]
    },
    tries: 100_000,
};

/// A manifest or an index, as a registry sends it.
pub(crate) const DOCUMENT: Target = Target {
    name: "registry_document",
    run: bulkhead_registry::check_document,
    seeds: || {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let kind = "application/vnd.oci.image";
        vec![
            format!(r#"{{"schemaVersion":2,"mediaType":"{kind}.manifest.v1+json","config":{{"mediaType":"{kind}.config.v1+json","digest":"{digest}","size":2}},"layers":[{{"mediaType":"{kind}.layer.v1.tar+gzip","digest":"{digest}","size":3}}]}}"#).into_bytes(),
            format!(r#"{{"schemaVersion":2,"mediaType":"{kind}.index.v1+json","manifests":[{{"mediaType":"{kind}.manifest.v1+json","digest":"{digest}","size":2,"platform":{{"architecture":"amd64","os":"linux"}}}}]}}"#).into_bytes(),
        ]
    },
    tries: 100_000,
};

pub(crate) const REFERENCE: Target = Target {
    name: "reference",
    run: |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let Ok(reference) = bulkhead_image::Reference::parse(text) else {
            return;
        };
        // Docker's short form of `docker.io/x.y/z` is `x.y/z`, which is another's name.
        let first = reference.path().split('/').next().unwrap_or_default();
        if first.contains('.') || first == "localhost" {
            return;
        }
        // Any other short form is a name of the same thing.
        let familiar = reference.familiar();
        let again = bulkhead_image::Reference::parse(&familiar);
        assert_eq!(again.ok().as_ref(), Some(&reference), "{familiar:?}");
    },
    seeds: || {
        let digest = "0123456789abcdef".repeat(4);
        vec![
            b"busybox".to_vec(),
            b"localhost:5000/a/b_c.d:tag-1".to_vec(),
            format!("docker.io/library/x@sha256:{digest}").into_bytes(),
        ]
    },
    tries: 200_000,
};

fn read_all(mut file: File) -> Option<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(0)).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // A Vec takes everything.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// Directories, files, links and an extended attribute in a pax header.
fn small_tar() -> Vec<u8> {
    let mut bytes = Vec::new();
    entry(&mut bytes, "d/", b'5', "", b"");
    entry(&mut bytes, "d/f", b'0', "", b"content");
    entry(&mut bytes, "d/s", b'2', "f", b"");
    entry(&mut bytes, "d/h", b'1', "d/f", b"");
    entry(&mut bytes, "pax", b'x', "", b"27 SCHILY.xattr.user.a=bcd\n");
    entry(&mut bytes, "d/x", b'0', "", &[7; 700]);
    entry(&mut bytes, "d/.wh.gone", b'0', "", b"");
    bytes.extend([0; 1024]);
    bytes
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files {
        entry(&mut bytes, name, b'0', "", content);
    }
    bytes.extend([0; 1024]);
    bytes
}

/// An entry in the ustar format of POSIX.
fn entry(out: &mut Vec<u8>, name: &str, kind: u8, link: &str, content: &[u8]) {
    let mut header = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| {
        for (place, byte) in header.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000755\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000001\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    let sum = format!("{sum:06o}\0 ");
    for (place, byte) in header.iter_mut().skip(148).zip(sum.as_bytes()) {
        *place = *byte;
    }
    out.extend(header);
    out.extend(content);
    out.resize(out.len().next_multiple_of(512), 0);
}
