//! Images: conversion of layers, pulls, builds.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::daemons::{self, Daemon, Network};
use super::measure::{self, Contest, Figure};
use super::{Bench, installed, quiet};

/// Files and bytes of the layer that is converted.
const LAYER_FILES: u32 = 4000;
const LAYER_BYTES: usize = 100 << 20;

/// Conversion of a layer, against the tools that do the nearest thing.
pub(super) fn erofs(bench: &Bench) -> anyhow::Result<()> {
    let (root, scratch) = (&bench.root, bench.scratch());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    quiet(
        Command::new(cargo)
            .args(["build", "--release", "--package", "bulkhead-image"])
            .args(["--example", "convert_layer"])
            .current_dir(root),
    )?;
    let convert = root.join("target/x86_64-unknown-linux-gnu/release/examples/convert_layer");
    let (tree, tar) = (scratch.join("tree"), scratch.join("layer.tar"));
    daemons::layer_tree(&tree, LAYER_FILES, LAYER_BYTES)?;
    daemons::pack(&tree, &tar)?;
    let image = scratch.join("layer.erofs");
    let unpacked = scratch.join("unpacked");
    let mut contest = Contest::new("a layer of 100 MB in 4,000 files");
    if installed("mkfs.erofs", "a converter to compare with") {
        contest.side("mkfs.erofs of the tree", || {
            drop(std::fs::remove_file(&image));
            quiet(
                Command::new("mkfs.erofs")
                    .arg("--quiet")
                    .arg(&image)
                    .arg(&tree),
            )
        });
    }
    contest.side("bulkhead: tar to EROFS", || {
        drop(std::fs::remove_file(&image));
        quiet(Command::new(&convert).arg(&tar).arg(&image))
    });
    contest.side("tar x", || {
        if unpacked.exists() {
            // Not measured fairly otherwise: see `Contest::prepare`.
            bail!("{} is in the way", unpacked.display());
        }
        std::fs::create_dir(&unpacked)?;
        quiet(
            Command::new("tar")
                .arg("-xf")
                .arg(&tar)
                .arg("-C")
                .arg(&unpacked),
        )
    });
    contest.prepare(|| {
        if unpacked.exists() {
            std::fs::remove_dir_all(&unpacked)?;
        }
        Ok(())
    });
    contest.run(bench.rounds.min(7))
}

/// A registry of Debian's on loopback; dropping it ends it.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.join("config.yml");
        let data = directory.join("data");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
                data.display()
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry does not start")?;
        let registry = Self { child, address };
        let end = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.address).is_err() {
            if Instant::now() > end {
                bail!("the registry does not serve");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A minimal Debian, made once.
fn debian(bench: &Bench) -> anyhow::Result<PathBuf> {
    let tree = bench.root.join("target/bench/debian");
    if tree.is_dir() {
        return Ok(tree);
    }
    println!("debootstrap of a minimal Debian");
    let partial = bench.root.join("target/bench/debian.tmp");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    quiet(
        Command::new("debootstrap")
            .args(["--variant=minbase", "bookworm"])
            .arg(&partial),
    )?;
    // What apt has fetched is no part of an image.
    for cache in ["var/cache/apt", "var/lib/apt/lists"] {
        fs::remove_dir_all(partial.join(cache))?;
        fs::create_dir_all(partial.join(cache))?;
    }
    fs::rename(&partial, &tree)?;
    Ok(tree)
}

/// Bytes that files below a directory have on disk.
fn disk(directory: &Path) -> anyhow::Result<f64> {
    let text = super::output(Command::new("du").args(["-s", "-k"]).arg(directory))?;
    let kib = text.split_whitespace().next().unwrap_or_default();
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// A pull until the image can be run, with the memory and the disk that it takes.
pub(super) fn pull(bench: &Bench, ours: &Daemon, theirs: Option<&Daemon>) -> anyhow::Result<()> {
    if !installed("docker-registry", "pulls") || !installed("debootstrap", "pulls") {
        return Ok(());
    }
    let tree = debian(bench)?;
    let registry = Registry::start(&bench.scratch().join("registry"))?;
    let name = format!("{}/debian", registry.address);
    ours.import(&tree, &name)?;
    ours.run(&format!("push -q {name}"))?;
    ours.run(&format!("rmi {name}"))?;
    let forget = |daemon: &Daemon| daemon.run(&format!("rmi -f {name}"));
    let copied = bench.scratch().join("copied");
    let mut contest = Contest::new("pull of a minimal Debian from loopback");
    if let Some(theirs) = theirs {
        contest.side("dockerd", || {
            theirs.run(&format!("pull -q {name}")).map(drop)
        });
    }
    contest.side("bulkhead", || {
        ours.run(&format!("pull -q {name}")).map(drop)
    });
    if installed("skopeo", "a client to compare with") {
        contest.side("skopeo copy (to a directory)", || {
            let mut command = Command::new("skopeo");
            command.args(["copy", "--quiet", "--src-tls-verify=false"]);
            command.arg(format!("docker://{name}"));
            quiet(command.arg(format!("dir:{}", copied.display())))
        });
    }
    contest.prepare(|| {
        for daemon in theirs.into_iter().chain([ours]) {
            if daemon.run(&format!("image inspect {name}")).is_ok() {
                forget(daemon)?;
            }
        }
        if copied.exists() {
            fs::remove_dir_all(&copied)?;
        }
        // What one side has left to be written is not the next one's.
        rustix::fs::sync();
        Ok(())
    });
    contest.run(bench.few())?;
    costs(bench, &name)
}

/// What one pull takes of daemons that have done nothing before.
fn costs(bench: &Bench, name: &str) -> anyhow::Result<()> {
    let (ours, theirs) = bench.daemons(Network::Host, "costs")?;
    let (mut memory, mut on_disk) = (Vec::new(), Vec::new());
    let theirs = theirs.as_ref().map(|theirs| ("dockerd", theirs));
    for (label, daemon) in theirs.into_iter().chain([("bulkhead", &ours)]) {
        let before = disk(&daemon.data_root())?;
        daemons::forget_peak(daemon.pid())?;
        let idle = daemons::rss(daemon.pid())?;
        daemon.run(&format!("pull -q {name}"))?;
        let peak = daemons::peak(daemon.pid())?;
        memory.push(Figure::kib(label, peak.saturating_sub(idle)));
        on_disk.push(Figure::new(
            label,
            disk(&daemon.data_root())? - before,
            "MiB",
        ));
    }
    measure::table(
        "memory of the daemon over idle, most during that pull",
        &memory,
    );
    measure::table("disk that the image takes", &on_disk);
    Ok(())
}

/// Ten steps, none of which needs a network.
const DOCKERFILE: &str = "\
FROM busybox
ENV A=1
WORKDIR /work
COPY one one
RUN seq 1000 > two
RUN cat one two > three
COPY tree tree
RUN cat tree/* > four
RUN dd if=/dev/zero of=five bs=64k count=64
CMD [\"true\"]
";

/// A build of ten steps, from nothing and from the cache.
pub(super) fn build(bench: &Bench, ours: &Daemon, theirs: Option<&Daemon>) -> anyhow::Result<()> {
    let context = bench.scratch().join("context");
    fs::create_dir_all(context.join("tree"))?;
    fs::write(context.join("Dockerfile"), DOCKERFILE)?;
    fs::write(context.join("one"), "one\n")?;
    for number in 0..50 {
        fs::write(
            context.join(format!("tree/file-{number}")),
            vec![b'x'; 20_000],
        )?;
    }
    let step = |daemon: &Daemon, flags: &str| {
        let context = context.display();
        daemon
            .run(&format!("build -q --network none {flags}{context}"))
            .map(drop)
    };
    let mut cold = Contest::new("build of ten steps, no cache");
    let mut cached = Contest::new("build of ten steps, cached");
    if let Some(theirs) = theirs {
        cold.side("dockerd, classic builder", || step(theirs, "--no-cache "));
        cached.side("dockerd, classic builder", || step(theirs, ""));
    }
    cold.side("bulkhead process", || {
        step(ours, "--no-cache --isolation=process ")
    });
    cold.side("bulkhead hyperv", || {
        step(ours, "--no-cache --isolation=hyperv ")
    });
    cached.side("bulkhead process", || step(ours, "--isolation=process "));
    cached.side("bulkhead hyperv", || step(ours, "--isolation=hyperv "));
    cold.run(bench.few())?;
    cached.run(bench.few())
}
