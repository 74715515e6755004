//! `cargo xtask bench`: the figures that the project watches, each against a competitor
//! that runs in turns with us, so that a busy machine is unfair to both alike. Prints
//! medians and ratios; nothing here is a condition of any test.

mod daemons;
mod everyday;
mod images;
mod machines;
mod measure;
mod start;
mod traffic;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use daemons::{Daemon, Kind, Network};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The binaries to measure [default: target/x86_64-unknown-linux-gnu/release]
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Rounds of each contest; those that take long have fewer
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Only these parts [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

/// What can be measured alone.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Starts of containers of processes
    Run,
    /// Starts of VMs
    Hyperv,
    /// Memory of daemons and supervisors
    Memory,
    /// exec, ps, logs, cp
    Everyday,
    /// Throughput and latency of bridges
    Network,
    /// Files on a bind
    Files,
    /// Conversion of a layer
    Erofs,
    /// Pulls: time, memory, disk
    Pull,
    /// Builds
    Build,
    /// The kvm engine, against QEMU on KVM; in the rig
    Machines,
}

/// What the parts share.
struct Bench {
    root: PathBuf,
    binaries: PathBuf,
    scratch: tempfile::TempDir,
    rounds: u32,
    only: Vec<Part>,
}

impl Bench {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Rounds of a contest of which one takes seconds.
    fn few(&self) -> u32 {
        self.rounds.min(5)
    }

    /// Our daemon, and dockerd where it is installed.
    fn daemons(&self, network: Network, name: &str) -> anyhow::Result<(Daemon, Option<Daemon>)> {
        let start = |kind, side: &str| {
            let base = self.scratch().join(format!("{name}-{side}"));
            Daemon::start(kind, network, &self.binaries, &base)
        };
        let ours = start(Kind::Bulkhead, "ours")?;
        if !installed("dockerd", "a reference") {
            return Ok((ours, None));
        }
        Ok((ours, Some(start(Kind::Dockerd, "theirs")?)))
    }
}

/// Runs the chore.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let root = super::guest::workspace_root()?;
    if !is_root() {
        bail!("bench must run as root: it starts daemons");
    }
    let bench = Bench {
        binaries: match arguments.binaries {
            Some(binaries) => std::path::absolute(binaries)?,
            None => root.join("target/x86_64-unknown-linux-gnu/release"),
        },
        root,
        scratch: tempfile::Builder::new()
            .prefix("bulkhead-bench-")
            .tempdir()?,
        rounds: arguments.rounds,
        only: arguments.only,
    };
    let of_containers = [
        Part::Run,
        Part::Hyperv,
        Part::Memory,
        Part::Everyday,
        Part::Network,
        Part::Files,
    ];
    if of_containers.iter().any(|part| bench.wants(*part)) {
        let (ours, theirs) = bench.daemons(Network::Own, "containers")?;
        let theirs = theirs.as_ref();
        if bench.wants(Part::Run) {
            start::processes(&bench, &ours, theirs)?;
        }
        if bench.wants(Part::Hyperv) {
            start::machines(&bench, &ours)?;
        }
        if bench.wants(Part::Memory) {
            start::memory(&ours, theirs)?;
        }
        if bench.wants(Part::Everyday) {
            everyday::run(&bench, &ours, theirs)?;
        }
        if bench.wants(Part::Network) {
            traffic::network(&bench, &ours, theirs)?;
        }
        if bench.wants(Part::Files) {
            traffic::files(&bench, &ours, theirs)?;
        }
    }
    if bench.wants(Part::Erofs) {
        images::erofs(&bench)?;
    }
    if bench.wants(Part::Pull) || bench.wants(Part::Build) {
        let (ours, theirs) = bench.daemons(Network::Host, "images")?;
        if bench.wants(Part::Pull) {
            images::pull(&bench, &ours, theirs.as_ref())?;
        }
        if bench.wants(Part::Build) {
            images::build(&bench, &ours, theirs.as_ref())?;
        }
    }
    if bench.wants(Part::Machines) {
        machines::run(&bench)?;
    }
    Ok(())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Whether a program is there; if not, says what is not measured for it.
fn installed(program: &str, what: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|directory| directory.join(program).is_file());
    if !found {
        println!("{program} is not installed (`scripts/setup.sh bench` does it): without {what}");
    }
    found
}

/// Runs a command to its end; its output is shown only when it fails.
fn quiet(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// As [`quiet`]; what it printed.
fn output(command: &mut Command) -> anyhow::Result<String> {
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
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
