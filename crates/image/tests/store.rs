//! The store as the daemon uses it.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod common;

use std::io::Read;
use std::path::Path;

use bulkhead_image::{
    Digest, ErrorKind, ImageError, ImageId, ImageStore, ImageUse, ImportOptions, Reference, Removal,
};
use common::{archive, file, listing};

fn open(root: &Path) -> ImageStore {
    ImageStore::open(root).unwrap()
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn import(store: &ImageStore, name: &str, content: &[u8]) -> ImageId {
    let tar = archive(&[file("f", content)]);
    let options = ImportOptions {
        reference: Some(reference(name)),
        changes: vec!["CMD [\"sh\"]".to_owned(), "ENV A=b".to_owned()],
        ..ImportOptions::default()
    };
    store.import(&mut &tar[..], &options, &|_| {}).unwrap()
}

fn usage(image: ImageId, running: bool) -> ImageUse {
    ImageUse {
        image,
        container: "c0ffee".repeat(8),
        running,
    }
}

#[test]
fn import_and_look_up() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = import(&store, "busybox", b"hello");
    for text in [
        "busybox",
        "busybox:latest",
        "docker.io/library/busybox",
        "library/busybox",
        &id.to_string(),
        &id.hex(),
        &id.short(),
        &id.hex()[..3],
        &format!("sha256:{}", id.short()),
    ] {
        assert_eq!(store.resolve(text).unwrap(), id, "{text}");
    }
    let error = store.resolve("busybox:2").unwrap_err();
    assert_eq!(error.to_string(), "No such image: busybox:2");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        store.resolve("NOPE").unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );

    let image = store.inspect(&id).unwrap();
    assert_eq!(image.summary.tags, [reference("busybox:latest")]);
    assert_eq!(image.summary.size, 5);
    assert_eq!(image.document.config.env, ["A=b"]);
    assert_eq!(image.document.comment.as_deref(), Some("Imported from -"));
    assert_eq!(image.layers.len(), 1);
    let paths = store.layer_paths(&id).unwrap();
    assert_eq!(paths, [image.layers[0].path.clone()]);
    assert_eq!(paths[0].metadata().unwrap().len() % 4096, 0);
    let history = store.history(&id).unwrap();
    assert_eq!((history.len(), history[0].size), (1, 5));
    assert_eq!(Digest::of(&store.config_bytes(&id).unwrap()), id.0);
    let usage = store.disk_usage().unwrap();
    assert_eq!((usage.images, usage.layers_size), (1, 5));
    assert!(usage.erofs_bytes >= 4096 && usage.blob_bytes > 0);

    // The tar comes back byte for byte.
    let mut tar = Vec::new();
    let diff_id = image.layers[0].diff_id;
    store
        .open_layer_tar(&diff_id)
        .unwrap()
        .read_to_end(&mut tar)
        .unwrap();
    assert_eq!(Digest::of(&tar), diff_id);
}

#[test]
fn survives_reopening_and_sweeps() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = import(&store, "a:1", b"one");
    assert!(matches!(
        ImageStore::open(root.path()),
        Err(ImageError::Locked(_))
    ));
    drop(store);
    let before = listing(root.path());
    let images = root.path().join("images");
    std::fs::write(images.join("tmp/half"), b"x").unwrap();
    std::fs::create_dir(images.join("tmp/dir")).unwrap();
    std::fs::write(images.join("layers/orphan.erofs"), b"x").unwrap();
    std::fs::write(images.join("blobs/sha256/orphan"), b"x").unwrap();
    let store = open(root.path());
    assert_eq!(store.resolve("a:1").unwrap(), id);
    assert_eq!(listing(root.path()), before);
}

#[test]
fn every_compression_gives_the_same_layer() {
    use std::io::Write as _;
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let plain = archive(&[file("f", &b"content ".repeat(100_000))]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    let forms = [
        plain.clone(),
        gzip.finish().unwrap(),
        bzip2.finish().unwrap(),
        xz.finish().unwrap(),
        zstd,
    ];
    for form in &forms {
        // A layer that is shared keeps the tar of the first; a fresh store sees each form.
        let fresh = tempfile::tempdir().unwrap();
        for store in [&store, &open(fresh.path())] {
            let id = store
                .import(&mut &form[..], &ImportOptions::default(), &|_| {})
                .unwrap();
            let layer = &store.inspect(&id).unwrap().layers[0];
            assert_eq!(layer.diff_id, Digest::of(&plain));
            let mut tar = Vec::new();
            store
                .open_layer_tar(&layer.diff_id)
                .unwrap()
                .read_to_end(&mut tar)
                .unwrap();
            assert!(tar == plain);
        }
        let cut = &form[..form.len() / 2];
        let before = listing(root.path());
        let error = store
            .import(&mut &cut[..], &ImportOptions::default(), &|_| {})
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(listing(root.path()), before);
    }
}

#[test]
fn tags_move() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let first = import(&store, "a", b"1");
    let second = import(&store, "b", b"2");
    assert_eq!(store.tag(&first, &reference("x:y")).unwrap(), None);
    assert_eq!(store.tag(&second, &reference("x:y")).unwrap(), Some(first));
    assert_eq!(store.tag(&second, &reference("x:y")).unwrap(), None);
    assert_eq!(store.resolve("x:y").unwrap(), second);
    let missing = ImageId(Digest::of(b"nothing"));
    assert_eq!(
        store.tag(&missing, &reference("z")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn removal_by_name() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let empty = listing(root.path());
    let id = import(&store, "a:1", b"1");
    store.tag(&id, &reference("a:2")).unwrap();
    let diff_id = store.inspect(&id).unwrap().layers[0].diff_id;

    // One of two tags, even if a container runs.
    let report = store.remove("a:1", false, &[usage(id, true)]).unwrap();
    assert_eq!(report.items, [Removal::Untagged(reference("a:1"))]);

    let error = store.remove("a:2", false, &[usage(id, false)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "conflict: unable to remove repository reference \"a:2\" (must force) - container \
             c0ffeec0ffee is using its referenced image {}",
            id.short()
        )
    );
    assert_eq!(error.kind(), ErrorKind::Conflict);

    let report = store.remove("a:2", false, &[]).unwrap();
    assert_eq!(
        report.items,
        [
            Removal::Untagged(reference("a:2")),
            Removal::DeletedImage(id),
            Removal::DeletedLayer(diff_id)
        ]
    );
    assert_eq!(listing(root.path()), empty);
    assert_eq!(
        store.remove("a:2", false, &[]).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn forced_untag_keeps_a_used_image() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = import(&store, "a:1", b"1");
    let report = store.remove("a:1", true, &[usage(id, true)]).unwrap();
    assert_eq!(report.items, [Removal::Untagged(reference("a:1"))]);
    assert_eq!(store.list().unwrap()[0].tags, []);
    let error = store
        .remove(&id.short(), true, &[usage(id, true)])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "conflict: unable to delete {} (cannot be forced) - image is being used by running \
             container c0ffeec0ffee",
            id.short()
        )
    );
    let error = store
        .remove(&id.short(), false, &[usage(id, false)])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("(must be forced) - image is being used by stopped")
    );
    let report = store
        .remove(&id.short(), true, &[usage(id, false)])
        .unwrap();
    assert_eq!(report.items[0], Removal::DeletedImage(id));
}

#[test]
fn removal_by_id() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = import(&store, "a:1", b"1");
    store.tag(&id, &reference("b:1")).unwrap();
    let error = store.remove(&id.hex(), false, &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("image is referenced in multiple repositories")
    );
    let report = store.remove(&id.hex(), true, &[]).unwrap();
    let untagged = [
        Removal::Untagged(reference("a:1")),
        Removal::Untagged(reference("b:1")),
    ];
    assert_eq!(report.items[..2], untagged);
    assert_eq!(report.items[2], Removal::DeletedImage(id));
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn shared_layers_stay() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    // Equal tars at different times: two images, one layer.
    let first = import(&store, "a", b"same");
    let second = import(&store, "b", b"same");
    assert_ne!(first, second);
    assert_eq!(
        store.layer_paths(&first).unwrap(),
        store.layer_paths(&second).unwrap()
    );
    let report = store.remove("a", false, &[]).unwrap();
    assert_eq!(report.items.len(), 2);
    assert!(store.layer_paths(&second).unwrap()[0].exists());
    let report = store.remove("b", false, &[]).unwrap();
    assert_eq!(report.items.len(), 3);
}

#[test]
fn a_layer_in_use_by_an_ingest_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let id = import(&store, "a", b"1");
    let layer = store.inspect(&id).unwrap().layers[0].clone();
    let mut ingest = store.ingest();
    assert!(ingest.has_layer(&layer.diff_id).unwrap());
    store.remove("a", false, &[]).unwrap();
    assert!(layer.path.exists());
    drop(ingest);
    assert!(!layer.path.exists());
    assert!(!store.ingest().has_layer(&layer.diff_id).unwrap());
}

#[test]
fn bad_changes_are_refused_before_reading() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let options = ImportOptions {
        changes: vec!["RUN x".to_owned()],
        ..ImportOptions::default()
    };
    let error = store
        .import(&mut std::io::empty(), &options, &|_| {})
        .unwrap_err();
    assert_eq!(error.to_string(), "RUN is not a valid change command");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
