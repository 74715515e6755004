//! The daemon is killed while images come, are made and go. What is listed afterwards is whole,
//! and nothing else is left.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bulkhead_e2e::images::{Compression, Meta, Tar, busybox_tar, docker_archive, sha256};
use bulkhead_e2e::registry::Registry;
use bulkhead_e2e::{BUSYBOX, Cell, Daemon, case};
use serde_json::{Value, json};

/// Kills of each cell.
const KILLS: usize = 20;
/// A kill comes at some moment of so many milliseconds.
const MOMENTS: u64 = 400;
/// Images in the registry, and archives to load.
const IMAGES: u64 = 3;

/// Numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length.div_ceil(8))
            .flat_map(|_| self.roll(u64::MAX).to_le_bytes())
            .collect()
    }
}

fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.file(name, &Meta::mode(0o644), content);
    tar.done()
}

/// What can be pulled, loaded and built: each image prints its own name.
struct Sources {
    registry: Registry,
    root: tempfile::TempDir,
    /// Layers as the registry has them: digests of the blobs, and of the tars in them.
    blobs: Vec<(String, String)>,
}

impl Sources {
    fn new(dice: &mut Dice) -> Self {
        let registry = Registry::start();
        let root = tempfile::tempdir().expect("a directory");
        // Some layers are in several images.
        let noise: Vec<_> = (0..4)
            .map(|_| layer("noise", &dice.bytes(4 << 20)))
            .collect();
        let mut blobs = Vec::new();
        for number in 0..IMAGES {
            let own = usize::try_from(number).expect("a small number");
            let mark = format!("pulled{number}");
            let layers = [
                busybox_tar().to_vec(),
                noise[own].clone(),
                layer("mark", mark.as_bytes()),
                noise[own + 1].clone(),
            ];
            for tar in &layers {
                blobs.push((sha256(&Compression::Gzip.apply(tar)), sha256(tar)));
            }
            registry.marked_image(&mark, &layers);
            let mark = format!("loaded{number}:1");
            let layers = [
                busybox_tar().to_vec(),
                noise[own].clone(),
                layer("mark", mark.as_bytes()),
            ];
            let archive = docker_archive(&mark, &layers, &["cat", "/mark"]);
            std::fs::write(root.path().join(format!("{number}.tar")), archive).expect("archive");
            let context = root.path().join(format!("context{number}"));
            std::fs::create_dir(&context).expect("a context");
            std::fs::write(context.join("noise"), dice.bytes(1 << 20)).expect("a file");
            let dockerfile = format!(
                "FROM {BUSYBOX} AS other\nRUN echo built{number}:1 > /mark\n\
                 FROM {BUSYBOX}\nCOPY noise /noise\nRUN head -c 300000 /dev/urandom > /random\n\
                 COPY --from=other /mark /mark\nCMD cat /mark\n"
            );
            std::fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
        }
        Self {
            registry,
            root,
            blobs,
        }
    }

    /// One thing of each kind that a client may be about, as lines for it. What is to come is
    /// removed first, or there would be nothing to do.
    fn work(&self, cell: &Cell, dice: &mut Dice, tags: &[String]) -> Vec<String> {
        let root = self.root.path().display();
        let mut some = || dice.roll(IMAGES);
        let (pulled, loaded, built) = (some(), some(), some());
        let pulled = format!("{}/pulled{pulled}:1", self.registry.address());
        let mut old: Vec<String> = tags.to_vec();
        old.retain(|tag| *tag == pulled || *tag == format!("loaded{loaded}:1"));
        for tag in &old {
            cell.cli(&format!("rmi -f {tag}")).ok();
        }
        let mut work = vec![
            format!("pull {pulled}"),
            format!("load -i {root}/{loaded}.tar"),
            format!("build --no-cache -t built{built}:1 {root}/context{built}"),
        ];
        let mut others = tags.iter().filter(|tag| !old.contains(tag));
        match others.nth(usize::try_from(some()).unwrap_or_default()) {
            Some(tag) => work.push(format!("rmi -f {tag}")),
            None => work.push("image prune -f".to_owned()),
        }
        work
    }
}

fn images(cell: &Cell) -> Vec<Value> {
    let answer = cell.api("GET", "/images/json?all=1", None);
    assert_eq!(answer.status, 200);
    answer.json().as_array().cloned().unwrap_or_default()
}

fn tags(images: &[Value]) -> Vec<String> {
    let tags = images
        .iter()
        .flat_map(|image| image["RepoTags"].as_array().cloned().unwrap_or_default());
    let tags = tags.filter_map(|tag| tag.as_str().map(str::to_owned));
    tags.filter(|tag| tag != "busybox:latest" && tag != "<none>:<none>")
        .collect()
}

/// All that is listed is whole; nothing of a build goes on.
fn check(cell: &Cell) -> Vec<String> {
    let images = images(cell);
    for image in &images {
        let id = image["Id"].as_str().expect("an ID");
        let answer = cell.api("GET", &format!("/images/{id}/json"), None);
        assert_eq!(answer.status, 200, "{id}");
        let parent = image["ParentId"].as_str().unwrap_or_default();
        let has_parent = parent.is_empty() || images.iter().any(|other| other["Id"] == parent);
        assert!(has_parent, "{id} is made from {parent}, which is gone");
    }
    let tags = tags(&images);
    let runs: Vec<_> = tags
        .iter()
        .map(|tag| (tag, cell.running(&format!("--rm {tag}")).start()))
        .collect();
    for (tag, run) in runs {
        let printed = run.finish().ok().text();
        assert!(
            tag.ends_with(&printed) || tag.ends_with(&format!("{printed}:1")),
            "{tag}: {printed}"
        );
    }
    assert_eq!(cell.cli("ps -aq").ok().text(), "", "containers of builds");
    let report = cell.api("POST", "/system/check", None).json();
    assert_eq!(report["Findings"], json!([]), "{report}");
    tags
}

/// Files in the data root that no image accounts for.
fn unaccounted(cell: &Cell, sources: &Sources) -> Vec<String> {
    let daemon = cell.daemon();
    let root = daemon.data_root().join("images");
    let mut names = BTreeSet::new();
    let add = |names: &mut BTreeSet<String>, value: &Value| {
        let text = value.as_str().unwrap_or_default();
        names.insert(text.rsplit(':').next().unwrap_or_default().to_owned());
    };
    for image in images(cell) {
        add(&mut names, &image["Id"]);
        for digest in image["RepoDigests"].as_array().into_iter().flatten() {
            add(&mut names, digest);
        }
        let id = image["Id"].as_str().unwrap_or_default();
        let inspected = cell.api("GET", &format!("/images/{id}/json"), None).json();
        for layer in inspected["RootFS"]["Layers"]
            .as_array()
            .into_iter()
            .flatten()
        {
            add(&mut names, layer);
        }
    }
    // A layer that was pulled is kept as it came, also when another image has it by now.
    for (blob, tar) in &sources.blobs {
        if names.contains(tar) {
            names.insert(blob.clone());
        }
    }
    let is_known = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digest = name.split('.').next().unwrap_or_default();
        let database = name.ends_with("-wal") || name.ends_with("-shm");
        database || (path.starts_with(&root) && names.contains(digest))
    };
    let files = daemon.files();
    let fresh = daemon.fresh_files();
    let new = files.difference(&fresh).cloned();
    let left = new.filter(|path| path.starts_with(daemon.data_root()) && !is_known(path));
    left.map(|path| path.display().to_string()).collect()
}

case!(ours process at_any_moment, |cell| {
    let seed = cell.number();
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let sources = Sources::new(&mut dice);
    let cell = cell.on(Daemon::start(&[]));
    let mut tags = Vec::new();
    for _ in 0..KILLS {
        let work: Vec<_> = sources
            .work(&cell, &mut dice, &tags)
            .iter()
            .map(|line| cell.line(line).start())
            .collect();
        // Some early ones: what is quick is to be hit, too.
        let moments = if dice.roll(4) == 0 { MOMENTS / 10 } else { MOMENTS };
        std::thread::sleep(Duration::from_millis(dice.roll(moments)));
        cell.daemon().kill();
        for one in work {
            one.finish();
        }
        cell.daemon().restart();
        tags = check(&cell);
    }
    cell.cli("image prune -f").ok();
    cell.api("POST", "/build/prune", None);
    assert_eq!(unaccounted(&cell, &sources), [""; 0]);
    // Without kills all of it works.
    for number in 0..IMAGES {
        let (host, root) = (sources.registry.address(), sources.root.path().display());
        for line in [
            format!("pull {host}/pulled{number}:1"),
            format!("load -i {root}/{number}.tar"),
            format!("build -t built{number}:1 {root}/context{number}"),
        ] {
            cell.line(&line).output().ok();
        }
    }
    assert_eq!(check(&cell).len(), 9);
    let daemon = cell.daemon();
    cell.finish();
    let left = daemon.finish();
    assert!(left.is_empty(), "{left:?}");
});
