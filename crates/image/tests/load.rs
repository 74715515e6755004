//! Archives as docker, containerd and others write them, and as nobody should.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod common;

use std::io::{Read as _, Write as _};
use std::sync::Mutex;

use bulkhead_image::{Digest, ErrorKind, ImageStore, Progress, Reference};
use common::{archive, directory, entry, file, hard_link, listing, symlink};
use serde_json::{Value, json};

fn layer(content: &[u8]) -> Vec<u8> {
    archive(&[file("f", content)])
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["sh"], "Env": null, "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [
            {"created_by": "ADD", "created": "2024-01-01T00:00:00Z"},
            {"created_by": "CMD", "empty_layer": true},
            {"created_by": "RUN"},
        ],
        "x-unknown": {"kept": true},
    }))
    .unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn json_file(name: &str, value: &Value) -> Vec<u8> {
    file(name, &serde_json::to_vec(value).unwrap())
}

fn store() -> (tempfile::TempDir, ImageStore) {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    (root, store)
}

/// As `docker save` wrote it up to version 24: a directory per layer, symlinks for repeated
/// ones, the manifest last.
fn saved() -> Vec<u8> {
    let (lower, upper) = (layer(b"lower"), layer(b"upper!"));
    let config = config(&[&lower, &upper]);
    let twice = config_of_twice(&lower);
    archive(&[
        directory("1/"),
        file("1/VERSION", b"1.0"),
        file("1/layer.tar", &lower),
        directory("2/"),
        file("2/layer.tar", &upper),
        directory("3/"),
        symlink("3/layer.tar", "../1/layer.tar"),
        hard_link("4", "1/layer.tar"),
        file("c.json", &config),
        file("d.json", &twice),
        json_file(
            "manifest.json",
            &json!([
                {"Config": "c.json", "RepoTags": ["app:1", "app:2"],
                 "Layers": ["1/layer.tar", "2/layer.tar"]},
                {"Config": "d.json", "RepoTags": null, "Layers": ["3/layer.tar", "4"]},
            ]),
        ),
    ])
}

fn config_of_twice(lower: &[u8]) -> Vec<u8> {
    config(&[lower, lower])
}

#[test]
fn docker_save_archives() {
    let (root, store) = store();
    let empty = listing(root.path());
    let seen = Mutex::new(Vec::new());
    let loaded = store
        .load(&mut &saved()[..], &|step| seen.lock().unwrap().push(step))
        .unwrap();
    assert_eq!(loaded.len(), 2);
    let tags: Vec<String> = loaded[0]
        .references
        .iter()
        .map(|tag| tag.reference.familiar())
        .collect();
    assert_eq!(tags, ["app:1", "app:2"]);
    assert!(loaded[1].references.is_empty());
    let (lower, upper) = (layer(b"lower"), layer(b"upper!"));
    assert_eq!(loaded[0].id.0, Digest::of(&config(&[&lower, &upper])));
    let detail = store.inspect(&loaded[0].id).unwrap();
    assert_eq!(detail.summary.size, 11);
    assert_eq!(detail.summary.created, 1_704_164_645);
    assert_eq!(detail.document.extra["x-unknown"]["kept"], true);
    assert_eq!(detail.layers[0].diff_id, Digest::of(&lower));
    let chain = format!("{} {}", Digest::of(&lower), Digest::of(&upper));
    assert_eq!(detail.layers[1].chain_id, Digest::of(chain.as_bytes()));
    let history = store.history(&loaded[0].id).unwrap();
    let sizes: Vec<u64> = history.iter().map(|line| line.size).collect();
    assert_eq!(sizes, [6, 0, 5]);
    assert_eq!(history[0].tags.len(), 2);
    assert_eq!(store.layer_paths(&loaded[1].id).unwrap().len(), 2);
    let seen = seen.into_inner().unwrap();
    assert!(seen.contains(&Progress::LayerExists {
        diff_id: Digest::of(&lower)
    }));
    let total = lower.len() as u64;
    let finished = Progress::Layer {
        diff_id: Digest::of(&lower),
        current: total,
        total,
    };
    assert!(seen.contains(&finished));

    // A second time changes nothing; a tag moves from another image.
    let before = listing(root.path());
    store.load(&mut &gzip(&saved())[..], &|_| {}).unwrap();
    assert_eq!(listing(root.path()), before);
    store
        .tag(&loaded[1].id, &Reference::parse("app:1").unwrap())
        .unwrap();
    let again = store.load(&mut &saved()[..], &|_| {}).unwrap();
    assert_eq!(again[0].references[0].replaced, Some(loaded[1].id));

    for image in loaded {
        store.remove(&image.id.hex(), true, &[]).unwrap();
    }
    assert_eq!(listing(root.path()), empty);
}

/// An OCI layout with an image for two platforms and an attestation.
fn layout(compress: impl Fn(&[u8]) -> Vec<u8>, annotation: (&str, &str)) -> Vec<u8> {
    let (lower, upper) = (layer(b"lower"), layer(b"upper!"));
    let config = config(&[&lower, &upper]);
    let layers = [compress(&lower), compress(&upper)];
    let mut entries = vec![file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}")];
    let mut blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        entries.push(file(&format!("blobs/sha256/{}", digest.hex()), bytes));
        digest.to_string()
    };
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": blob(&config), "size": config.len()},
        "layers": layers.iter().map(|layer| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": blob(layer), "size": layer.len(),
        })).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let host = bulkhead_image::Platform::host();
    let index = json!({"schemaVersion": 2, "manifests": [
        {"digest": Digest::of(b"elsewhere").to_string(), "size": 1,
         "platform": {"os": "linux", "architecture": "pdp11"}},
        {"digest": blob(&manifest), "size": manifest.len(),
         "mediaType": "application/vnd.oci.image.manifest.v1+json",
         "platform": {"os": "linux", "architecture": host.architecture}},
        {"digest": Digest::of(b"attestation").to_string(), "size": 1,
         "platform": {"os": "unknown", "architecture": "unknown"}},
    ]});
    let index = serde_json::to_vec(&index).unwrap();
    let top = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": blob(&index),
         "size": index.len(), "annotations": {annotation.0: annotation.1}},
    ]});
    entries.push(json_file("index.json", &top));
    archive(&entries)
}

type Compress = fn(&[u8]) -> Vec<u8>;

#[test]
fn oci_layouts() {
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let plain = |bytes: &[u8]| bytes.to_vec();
    let forms: [Compress; 3] = [gzip, zstd, plain];
    for form in forms {
        let (_root, store) = store();
        let tar = layout(
            form,
            ("io.containerd.image.name", "docker.io/library/app:3"),
        );
        let loaded = store.load(&mut &tar[..], &|_| {}).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(store.resolve("app:3").unwrap(), loaded[0].id);
        for layer in store.inspect(&loaded[0].id).unwrap().layers {
            let mut bytes = Vec::new();
            store
                .open_layer_tar(&layer.diff_id)
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
            assert_eq!(Digest::of(&bytes), layer.diff_id);
        }
    }
    let (_root, store) = store();
    let tar = layout(gzip, ("org.opencontainers.image.ref.name", "latest"));
    let loaded = store.load(&mut &tar[..], &|_| {}).unwrap();
    assert!(loaded[0].references.is_empty());
    let tar = layout(gzip, ("org.opencontainers.image.ref.name", "ghcr.io/a/b:c"));
    let loaded = store.load(&mut &tar[..], &|_| {}).unwrap();
    assert_eq!(
        loaded[0].references[0].reference.familiar(),
        "ghcr.io/a/b:c"
    );
}

#[test]
fn refusals_leave_nothing() {
    let (root, store) = store();
    let before = listing(root.path());
    let good = layer(b"x");
    let other = layer(b"y");
    let manifest = |layers: &Value| {
        json_file(
            "manifest.json",
            &json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": layers}]),
        )
    };
    let with = |extra: &[Vec<u8>], layers: &Value| {
        let mut entries = vec![file("c.json", &config(&[&good])), file("l", &good)];
        entries.extend_from_slice(extra);
        entries.push(manifest(layers));
        archive(&entries)
    };
    let windows = json!({"os": "windows", "rootfs": {"type": "layers", "diff_ids": []}});
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "no manifest",
            archive(&[file("x", b"")]),
            "neither manifest.json nor index.json",
        ),
        ("empty", Vec::new(), "neither manifest.json nor index.json"),
        (
            "missing layer",
            with(&[], &json!(["nope"])),
            "nope: missing",
        ),
        (
            "count",
            with(&[], &json!(["l", "l"])),
            "layers length mismatch: expected 1, got 2",
        ),
        (
            "wrong layer",
            with(&[file("m", &other)], &json!(["m"])),
            "digest is",
        ),
        (
            "link loop",
            with(&[symlink("m", "m")], &json!(["m"])),
            "too many links",
        ),
        (
            "link out",
            with(&[symlink("m", "../../etc/passwd")], &json!(["m"])),
            "leads out",
        ),
        (
            "name out",
            with(&[file("../m", b"")], &json!(["l"])),
            "leads out",
        ),
        (
            "layer path out",
            with(&[], &json!(["../../etc/passwd"])),
            "leads out",
        ),
        (
            "device",
            with(&[entry("d", b'4', "", b"")], &json!(["l"])),
            "neither a file nor a link",
        ),
        (
            "not json",
            archive(&[file("manifest.json", b"{")]),
            "manifest.json: invalid type",
        ),
        ("truncated", saved()[..3000].to_vec(), "end of the"),
        (
            "truncated layer",
            with(&[file("m", &good[..512])], &json!(["m"])),
            "file data ends 1 bytes early",
        ),
        (
            "windows",
            archive(&[json_file("c.json", &windows), manifest(&json!([]))]),
            "cannot load windows image on linux",
        ),
        (
            "bad tag",
            archive(&[
                file("c.json", &config(&[])),
                json_file(
                    "manifest.json",
                    &json!([{"Config": "c.json", "RepoTags": ["UPPER"], "Layers": []}]),
                ),
            ]),
            "must be lowercase",
        ),
        (
            "blob under a wrong name",
            archive(&[
                file(&format!("blobs/sha256/{}", Digest::of(b"z").hex()), b"{}"),
                json_file(
                    "index.json",
                    &json!({"manifests": [{"digest": Digest::of(b"z").to_string()}]}),
                ),
            ]),
            "digest is",
        ),
        ("broken gzip", gzip(&saved())[..500].to_vec(), ""),
    ];
    for (name, tar, why) in cases {
        eprintln!("{name}");
        let error = store.load(&mut &tar[..], &|_| {}).unwrap_err();
        let text = error.full_message();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}");
        assert!(text.contains(why), "{text:?} lacks {why:?}");
        assert_eq!(listing(root.path()), before, "{name}");
        assert!(store.list().unwrap().is_empty());
    }
    // One bad image of two: neither comes in.
    let two = archive(&[
        file("c.json", &config(&[&good])),
        file("l", &good),
        json_file(
            "manifest.json",
            &json!([
                {"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l"]},
                {"Config": "c.json", "RepoTags": ["b:1"], "Layers": ["missing", "l"]},
            ]),
        ),
    ]);
    store.load(&mut &two[..], &|_| {}).unwrap_err();
    assert_eq!(listing(root.path()), before);
}
