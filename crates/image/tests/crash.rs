//! The store when the process dies at any instruction, when the disk is full, and when files
//! are not what they were.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_image::{
    AnnouncedLayer, Digest, Finding, ImageConfig, ImageId, ImageStore, ImportOptions, Lease,
    NewImage, Reference, RootFs,
};
use common::{archive, file, listing};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};

const CHILD: &str = "BULKHEAD_TEST_CRASHING_STORE";
const KILLS: u64 = 200;

fn reference(name: &str) -> Reference {
    Reference::parse(name).unwrap().with_default_tag()
}

/// A layer of noise, as a tar and compressed.
fn layer(seed: u64, length: usize) -> (Digest, Vec<u8>) {
    let mut noise = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut noise);
    let tar = archive(&[file("noise", &noise)]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    (Digest::of(&tar), encoder.finish().unwrap())
}

fn config(diff_ids: Vec<Digest>) -> Vec<u8> {
    let config = ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        rootfs: RootFs {
            kind: "layers".to_owned(),
            diff_ids,
        },
        ..ImageConfig::default()
    };
    config.to_bytes().unwrap()
}

/// As a pull does it: each layer by itself, under a lease, then the image.
fn pull(store: &Arc<ImageStore>, name: &str, seeds: &[u64]) -> bulkhead_image::Result<ImageId> {
    let mut lease = Lease::new(store);
    let mut diff_ids = Vec::new();
    for seed in seeds {
        let (diff_id, blob) = layer(*seed, 40_000);
        if !lease.hold(&diff_id)? {
            let announced = AnnouncedLayer {
                diff_id,
                blob: Digest::of(&blob),
            };
            lease.add(store.receive_layer(&mut &blob[..], &announced)?)?;
        }
        diff_ids.push(diff_id);
    }
    let config = config(diff_ids);
    let id = ImageId(Digest::of(&config));
    let reference = reference(name);
    // As a real one does, it names its configuration: no other image can have it.
    let manifest = format!("manifest of {name} with {id}").into_bytes();
    let new = NewImage {
        config,
        parent: None,
        names: vec![
            reference.with_digest(Digest::of(&manifest)),
            reference.clone(),
        ],
        documents: vec![manifest],
    };
    store.ingest().commit(&[new])?;
    Ok(id)
}

/// As a build does it: on an image that is there.
fn build(store: &ImageStore, name: &str, parent: &ImageId, seed: u64) {
    let mut ingest = store.ingest();
    let mut diff_ids = store.inspect(parent).unwrap().document.rootfs.diff_ids;
    for diff_id in &diff_ids {
        if !ingest.has_layer(diff_id).unwrap() {
            return;
        }
    }
    let tar = archive(&[file("step", &seed.to_le_bytes())]);
    diff_ids.push(ingest.add_layer(&mut &tar[..], None).unwrap());
    let new = NewImage {
        config: config(diff_ids),
        parent: None,
        names: vec![reference(name)],
        documents: Vec::new(),
    };
    ingest.commit(&[new]).unwrap();
}

/// What the child does until it is killed. Before a removal it says `-name`, after an addition
/// `+name`: what it said last of a name is what the parent may rely on.
fn child(root: &Path, seed: u64) {
    let store = Arc::new(ImageStore::open(root).unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let say = |word: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{word}").unwrap();
        out.flush().unwrap();
    };
    say("ready");
    loop {
        let name = format!("image{}", random.random_range(0..6));
        let full = reference(&name);
        match random.random_range(0..10) {
            0..4 => {
                let seeds: Vec<u64> = (0..3).map(|_| random.random_range(0..12)).collect();
                say(&format!("-{name}"));
                pull(&store, &name, &seeds).unwrap();
                say(&format!("+{name}"));
            }
            4..6 => {
                say(&format!("-{name}"));
                let tar = archive(&[file("imported", name.as_bytes())]);
                let options = ImportOptions {
                    reference: Some(full),
                    ..ImportOptions::default()
                };
                store.import(&mut &tar[..], &options, &|_| {}).unwrap();
                say(&format!("+{name}"));
            }
            6..8 => {
                say(&format!("-{name}"));
                let _ = store.remove(&name, true, &[]);
            }
            8 => {
                // A prune.
                for image in store.list().unwrap() {
                    if image.tags.is_empty() {
                        let _ = store.remove(&image.id.to_string(), true, &[]);
                    }
                }
            }
            _ => {
                let images = store.list().unwrap();
                if let Some(base) = images.first() {
                    say(&format!("-{name}"));
                    build(&store, &name, &base.id, random.random());
                    say(&format!("+{name}"));
                }
            }
        }
    }
}

/// The digests of an image's manifests: those that are kept, and those that names have.
fn manifests(store: &ImageStore, id: &ImageId) -> (BTreeSet<String>, BTreeSet<String>) {
    let documents = store.content(id).unwrap().documents;
    let kept = documents.iter().map(|bytes| Digest::of(bytes).to_string());
    let digests = store.inspect(id).unwrap().summary.digests;
    let named = digests.iter().filter_map(Reference::digest);
    (
        kept.collect(),
        named.map(|digest| digest.to_string()).collect(),
    )
}

/// Everything that the store says is there, is, and is what it says.
fn verify(store: &ImageStore) {
    for image in store.list().unwrap() {
        let detail = store.inspect(&image.id).unwrap();
        assert_eq!(
            Digest::of(&store.config_bytes(&image.id).unwrap()),
            image.id.0
        );
        for layer in &detail.layers {
            let size = fs::metadata(&layer.path).unwrap().len();
            assert_eq!(size, layer.blob_size, "{}", layer.path.display());
            let mut tar = Vec::new();
            let mut stream = store.open_layer_tar(&layer.diff_id).unwrap();
            stream.read_to_end(&mut tar).unwrap();
            assert_eq!(Digest::of(&tar), layer.diff_id);
        }
        // A manifest is not there without a name that has its digest.
        let (documents, named) = manifests(store, &image.id);
        assert!(documents.is_subset(&named), "{}: {documents:?}", image.id);
    }
}

#[test]
fn killed_at_random_moments() {
    if let Ok(text) = std::env::var(CHILD) {
        let (seed, root) = text.split_once(':').unwrap();
        child(Path::new(root), seed.parse().unwrap());
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let mut promised = BTreeSet::new();
    let mut said = 0;
    for kill in 0..KILLS {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_at_random_moments", "--nocapture"])
            .env(CHILD, format!("{kill}:{}", root.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.ends_with("ready"))
            .expect("the child opens the store");
        std::thread::sleep(Duration::from_micros(random.random_range(0..60_000)));
        process.kill().unwrap();
        process.wait().unwrap();
        for line in lines {
            let line = line.unwrap();
            match line.split_at_checked(1) {
                Some(("+", name)) => drop(promised.insert(name.to_owned())),
                Some(("-", name)) => drop(promised.remove(name)),
                _ => {}
            }
            said += 1;
        }
        let store = ImageStore::open(root.path()).unwrap();
        for name in &promised {
            assert!(store.resolve(name).is_ok(), "{name} is lost, kill {kill}");
        }
        verify(&store);
        // What nobody refers to went with the opening.
        let mut expected = BTreeSet::new();
        for image in store.list().unwrap() {
            let (documents, named) = manifests(&store, &image.id);
            assert_eq!(documents, named, "{}, kill {kill}", image.id);
            expected.insert(format!("blobs/sha256/{}", image.id.hex()));
            for layer in store.inspect(&image.id).unwrap().layers {
                expected.insert(format!("layers/{}.erofs", layer.diff_id.hex()));
            }
        }
        let images = root.path().join("images");
        let found: BTreeSet<String> = listing(&images)
            .into_keys()
            .filter(|name| name.ends_with(".erofs") || name.starts_with("tmp/"))
            .collect();
        expected.retain(|name| name.ends_with(".erofs"));
        assert_eq!(found, expected, "kill {kill}");
    }
    assert!(said > KILLS, "the children did something: {said}");
    let store = ImageStore::open(root.path()).unwrap();
    for image in store.list().unwrap() {
        store.remove(&image.id.to_string(), true, &[]).unwrap();
    }
    let left: Vec<String> = listing(&root.path().join("images"))
        .into_iter()
        .filter(|(name, bytes)| *bytes > 0 && !["lock", "reserve"].contains(&name.as_str()))
        .map(|(name, _)| name)
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A small disk that goes with its value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(target: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&target).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&target)
            .status()
            .unwrap();
        assert!(status.success(), "mount of a tmpfs: needs root");
        Self(target)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_and_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(root.path().join("disk"), "4m");
    let store = Arc::new(ImageStore::open(&disk.0).unwrap());
    pull(&store, "small", &[1]).unwrap();
    let images = disk.0.join("images");
    let before = (listing(&images), store.list().unwrap());
    let (diff_id, blob) = layer(99, 8 << 20);
    let announced = AnnouncedLayer {
        diff_id,
        blob: Digest::of(&blob),
    };
    let error = store
        .receive_layer(&mut &blob[..], &announced)
        .err()
        .expect("no room");
    assert!(
        error.full_message().contains("No space left on device"),
        "{}",
        error.full_message()
    );
    assert_eq!((listing(&images), store.list().unwrap()), before);
    // And when there is room for nothing at all, in whatever step that is noticed.
    for room in [0, 4096, 16 << 10, 40 << 10, 64 << 10, 100 << 10] {
        let filler = disk.0.join("filler");
        let mut full = fs::File::create(&filler).unwrap();
        while full.write_all(&[1; 4096]).is_ok() {}
        full.set_len(full.metadata().unwrap().len().saturating_sub(room))
            .unwrap();
        if let Err(error) = pull(&store, "tiny", &[2]) {
            let message = error.full_message();
            assert!(
                message.contains("No space left") || message.contains("disk is full"),
                "{message}"
            );
            assert_eq!((listing(&images), store.list().unwrap()), before, "{room}");
        } else {
            store.remove("tiny", true, &[]).unwrap();
        }
        drop(full);
        fs::remove_file(&filler).unwrap();
    }
    pull(&store, "tiny", &[2]).unwrap();
    verify(&store);
    drop(store);
}

#[test]
fn what_is_damaged_is_found_and_made_good() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(ImageStore::open(root.path()).unwrap());
    let id = pull(&store, "whole", &[1, 2, 3]).unwrap();
    let other = pull(&store, "other", &[4]).unwrap();
    let clean = store.check(true).unwrap();
    assert_eq!((clean.layers, clean.images), (4, 2));
    assert_eq!(clean.findings, []);

    let overwrite = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    };
    // An EROFS image can be made again.
    let layers = store.inspect(&id).unwrap().layers;
    overwrite(&layers[0].path);
    fs::remove_file(&layers[1].path).unwrap();
    let found = store.check(false).unwrap().findings;
    assert_eq!(found.len(), 2);
    assert!(!layers[1].path.exists());
    let mut found = store.check(true).unwrap().findings;
    found.sort_by_key(|finding| format!("{finding:?}"));
    let mut expected: Vec<Finding> = layers[..2]
        .iter()
        .map(|layer| Finding::LayerImage {
            diff_id: layer.diff_id,
            repaired: true,
        })
        .collect();
    expected.sort_by_key(|finding| format!("{finding:?}"));
    assert_eq!(found, expected);
    assert_eq!(store.check(true).unwrap().findings, []);

    // A tar has to come again.
    let blob = store.content(&id).unwrap().layers[2].received.unwrap().0;
    let blobs = root.path().join("images/blobs/sha256");
    overwrite(&blobs.join(blob.hex()));
    let found = store.check(true).unwrap().findings;
    let diff_id = layers[2].diff_id;
    let images = vec!["whole:latest".to_owned()];
    assert_eq!(found, [Finding::LayerTar { diff_id, images }]);
    assert!(!Lease::new(&store).hold(&diff_id).unwrap());
    pull(&store, "whole", &[1, 2, 3]).unwrap();
    assert_eq!(store.check(true).unwrap().findings, []);

    // A manifest can be done without, a config cannot.
    let manifest = store.content(&id).unwrap().documents.remove(0);
    overwrite(&blobs.join(Digest::of(&manifest).hex()));
    overwrite(&blobs.join(other.hex()));
    let found = store.check(true).unwrap().findings;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(store.resolve("other").is_err());
    assert_eq!(store.check(true).unwrap().findings, []);
    verify(&store);
}
