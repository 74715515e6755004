//! `cargo xtask bench`: the figures that the project watches, each against a competitor
//! that runs in turns with us, so that a busy machine is unfair to both alike. Prints
//! medians and ratios; nothing here is a condition of any test.

mod daemons;
mod measure;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use daemons::{Daemon, Kind};
use measure::{Contest, Figure};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The binaries to measure [default: target/x86_64-unknown-linux-gnu/release]
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Rounds of each contest
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Only these parts
    #[arg(long, value_delimiter = ',', default_values = ["run", "hyperv", "memory", "erofs"])]
    only: Vec<String>,
}

/// Files and bytes of the layer that is converted.
const LAYER_FILES: u32 = 4000;
const LAYER_BYTES: usize = 100 << 20;

/// Runs the chore.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let root = super::guest::workspace_root()?;
    let binaries = match arguments.binaries {
        Some(binaries) => std::path::absolute(binaries)?,
        None => root.join("target/x86_64-unknown-linux-gnu/release"),
    };
    if !is_root() {
        bail!("bench must run as root: it starts daemons");
    }
    let scratch = tempfile::Builder::new()
        .prefix("bulkhead-bench-")
        .tempdir()?;
    let wants = |part: &str| arguments.only.iter().any(|only| only == part);
    if wants("erofs") {
        erofs(&root, scratch.path(), arguments.rounds.min(7))?;
    }
    if wants("run") || wants("hyperv") || wants("memory") {
        let ours = Daemon::start(Kind::Bulkhead, &binaries, &scratch.path().join("ours"))?;
        let theirs = if installed("dockerd") {
            Some(Daemon::start(
                Kind::Dockerd,
                &binaries,
                &scratch.path().join("theirs"),
            )?)
        } else {
            println!("dockerd is not installed: no reference");
            None
        };
        if wants("run") {
            start(
                &ours,
                theirs.as_ref(),
                &binaries,
                scratch.path(),
                arguments.rounds,
            )?;
        }
        if wants("hyperv") {
            let mut contest = Contest::new("run --rm busybox true, in a VM, cold");
            contest.side("bulkhead hyperv", || ours.docker(&run_true(Some("hyperv"))));
            contest.side("bulkhead process", || {
                ours.docker(&run_true(Some("process")))
            });
            contest.run(arguments.rounds.min(7))?;
        }
        if wants("memory") {
            memory(&ours, theirs.as_ref())?;
        }
    }
    Ok(())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|directory| directory.join(program).is_file())
}

fn run_true(isolation: Option<&str>) -> Vec<String> {
    let isolation = isolation.map(|name| format!("--isolation={name}"));
    ["run".to_owned(), "--rm".to_owned()]
        .into_iter()
        .chain(isolation)
        .chain(["busybox".to_owned(), "true".to_owned()])
        .collect()
}

/// Runs a command to its end; its output is shown only when it fails.
fn quiet(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} does not start"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// `run --rm busybox true` at process isolation, by daemon and by bare OCI runtime.
fn start(
    ours: &Daemon,
    theirs: Option<&Daemon>,
    binaries: &Path,
    scratch: &Path,
    rounds: u32,
) -> anyhow::Result<()> {
    let mut contest = Contest::new("run --rm busybox true, process isolation");
    if let Some(theirs) = theirs {
        contest.side("dockerd (docker CLI)", || theirs.docker(&run_true(None)));
    }
    contest.side("bulkhead (docker CLI)", || ours.docker(&run_true(None)));
    contest.side("bulkhead (own CLI)", || {
        let mut command = Command::new(binaries.join("bulkhead"));
        command.env("DOCKER_HOST", ours.host()).args(run_true(None));
        quiet(&mut command)
    });
    let bundle = scratch.join("bundle");
    daemons::busybox_tree(&bundle.join("rootfs"))?;
    for runtime in ["runc", "crun"] {
        if !installed(runtime) {
            continue;
        }
        // The runtime's own default, with another command and no terminal.
        if !bundle.join("config.json").exists() {
            quiet(Command::new(runtime).arg("spec").current_dir(&bundle))?;
            let path = bundle.join("config.json");
            let text = std::fs::read_to_string(&path)?;
            let text = text
                .replace("\"terminal\": true", "\"terminal\": false")
                .replace("\"sh\"", "\"true\"");
            std::fs::write(&path, text)?;
        }
        let bundle = bundle.clone();
        // crun refuses hosts with hybrid control groups, for one.
        let mut trial = Command::new(runtime);
        trial.args(["run", "--bundle"]).arg(&bundle);
        if let Err(error) = quiet(trial.arg(format!("bulkhead-bench-trial-{}", std::process::id())))
        {
            eprintln!("{runtime} is left out: it does not run here: {error:#}");
            continue;
        }
        contest.side(&format!("{runtime} run (no engine)"), move || {
            let mut command = Command::new(runtime);
            command.args(["run", "--bundle"]).arg(&bundle);
            quiet(command.arg(format!("bulkhead-bench-{}", std::process::id())))
        });
    }
    contest.run(rounds)
}

/// What idle daemons and supervisors hold in memory.
fn memory(ours: &Daemon, theirs: Option<&Daemon>) -> anyhow::Result<()> {
    let mut figures = vec![Figure::kib("bulkhead daemon", daemons::rss(ours.pid())?)];
    if let Some(theirs) = theirs {
        figures.push(Figure::kib("dockerd", daemons::rss(theirs.pid())?));
    }
    let sleeper = |daemon: &Daemon, isolation: Option<&str>| {
        let mut words = vec!["run".to_owned(), "-d".to_owned()];
        words.extend(isolation.map(|name| format!("--isolation={name}")));
        words.extend(["busybox", "sleep", "600"].map(str::to_owned));
        daemon.docker_output(&words)
    };
    for isolation in ["process", "hyperv"] {
        let id = sleeper(ours, Some(isolation))?;
        for (pid, name) in daemons::with_words(&["containerd-shim-bulkhead-v2", &id]) {
            let name = format!("{name} ({isolation})");
            figures.push(Figure::kib(&name, daemons::rss(pid)?));
        }
        for (pid, name) in daemons::with_words(&["vmwp", &id]) {
            figures.push(Figure::kib(&name, daemons::rss(pid)?));
        }
        ours.docker(&["rm".to_owned(), "-f".to_owned(), id])?;
    }
    if let Some(theirs) = theirs {
        let id = sleeper(theirs, None)?;
        for (pid, name) in daemons::with_words(&["containerd-shim-runc-v2", &id]) {
            figures.push(Figure::kib(&name, daemons::rss(pid)?));
        }
        theirs.docker(&["rm".to_owned(), "-f".to_owned(), id])?;
    }
    measure::table("resident memory", &figures);
    Ok(())
}

/// Conversion of a layer, against the tools that do the nearest thing.
fn erofs(root: &Path, scratch: &Path, rounds: u32) -> anyhow::Result<()> {
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
    quiet(
        Command::new("tar")
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(&tree)
            .arg("."),
    )?;
    let image = scratch.join("layer.erofs");
    let unpacked = scratch.join("unpacked");
    let mut contest = Contest::new("a layer of 100 MB in 4,000 files");
    if installed("mkfs.erofs") {
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
    contest.run(rounds)
}
