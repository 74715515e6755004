//! The kvm engine where KVM is real: in the rig, where this very program runs once more. Times
//! there mean something only beside each other.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use super::daemons::{self, Daemon, Kind, Network};
use super::measure::{self, Contest, Figure};
use super::traffic::{self, Side};
use super::{Bench, installed, output, quiet};

/// Seconds that all of it may take in the rig.
const LIMIT: &str = "3600";
/// The worker's binary.
const WORKER: &str = "vmwp";
/// What `boot_figures` is asked for when it is to count the exits of a machine in its own
/// process.
const EXITS: &str = "exits";
/// A mapping of a worker that is as large is its guest's memory; nothing else of it is.
const LEAST_GUEST: u64 = 64 << 20;
/// MiB that a guest takes and gives back.
const RETURNED_MIB: u32 = 128;
/// Time that free pages have to be reported; a kernel does it after two seconds
/// (`mm/page_reporting.c`).
const REPORT: Duration = Duration::from_secs(12);

/// Runs the contests here when this is the rig, else there.
pub(super) fn run(bench: &Bench) -> anyhow::Result<()> {
    let directory = bench.binaries.join("examples");
    let figures = directory.join("boot_figures");
    if std::env::var_os("BULKHEAD_RIG").is_some() {
        starts(bench, &figures)?;
        return containers(bench);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    quiet(
        Command::new(cargo)
            .args(["build", "--release", "--locked", "--workspace"])
            .args(["--example", "boot_figures"])
            .current_dir(&bench.root),
    )?;
    let program = std::env::current_exe()?;
    // One processor, as for the tests (docs/adr/0028): a guest has died of the emulation of two.
    let status = Command::new(&program)
        .args(["rig", "--cpus", "1", "--timeout", LIMIT, "--"])
        .arg(&program)
        .args(["bench", "--only", "machines", "--rounds"])
        .arg(bench.rounds.to_string())
        .arg("--binaries")
        .arg(&bench.binaries)
        .status()?;
    if !status.success() {
        bail!("in the rig: {status}");
    }
    Ok(())
}

/// Machines without containers: from nothing until the agent's first byte, and what there is
/// to count.
fn starts(bench: &Bench, program: &Path) -> anyhow::Result<()> {
    let guest = bench.root.join("target/guest");
    let vmwp = bench.binaries.join(WORKER);
    let qemu = installed("qemu-system-x86_64", "a machine to compare with");
    if qemu {
        // QEMU opens it as the user of its jail.
        quiet(Command::new("chmod").args(["666", "/dev/kvm"]))?;
    }
    let directory = bench.scratch().join("machine");
    let boot = |what: &str, figure: &str| -> anyhow::Result<f64> {
        std::fs::create_dir_all(&directory)?;
        let mut command = Command::new(program);
        command.arg(what);
        if what != EXITS {
            command.arg(&vmwp);
        }
        command.arg(&guest).args(["256", "1"]).arg(&directory);
        let document: serde_json::Value = serde_json::from_str(&output(&mut command)?)?;
        let number = document[figure].as_f64();
        number.with_context(|| format!("no {figure} in {document}"))
    };
    let title = "start of a worker until the agent speaks, 256 MiB, 1 CPU";
    let mut contest = Contest::of(title, "ms");
    if qemu {
        contest.reading("QEMU microvm on KVM", || boot("qemu", "ready_ms"));
    }
    contest.reading("kvm engine", || boot("kvm", "ready_ms"));
    contest.run(bench.few())?;
    let mut contest = Contest::of("VM exits until then", "");
    contest.reading("kvm engine", || boot(EXITS, "exits"));
    contest.run(bench.few())?;
    counts(bench, program)
}

/// What does not depend on a run.
fn counts(bench: &Bench, program: &Path) -> anyhow::Result<()> {
    let binary = std::fs::metadata(bench.binaries.join(WORKER))?.len();
    let size = Figure::kib("vmwp", u32::try_from(binary / 1024)?);
    measure::table("size of the worker's binary", &[size]);
    let document = output(Command::new(program).arg("filters"))?;
    let document: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&document)?;
    let figures = document.iter().map(|(thread, count)| {
        let count = count.as_f64();
        let count = count.with_context(|| format!("no number for {thread}"))?;
        Ok(Figure::new(thread, count, ""))
    });
    let figures = figures.collect::<anyhow::Result<Vec<_>>>()?;
    measure::table("system calls that a worker's threads may make", &figures);
    Ok(())
}

/// Containers in such VMs, beside containers of processes.
fn containers(bench: &Bench) -> anyhow::Result<()> {
    let base = bench.scratch().join("kvm");
    let daemon = Daemon::start(Kind::Bulkhead, Network::Own, &bench.binaries, &base)?;
    let side = |name, flags| Side {
        name,
        daemon: &daemon,
        flags,
    };
    let sides = [
        side("bulkhead process", "--isolation=process "),
        side("bulkhead hyperv", "--isolation=hyperv "),
    ];
    traffic::disks(bench, &sides)?;
    private(bench, &daemon)?;
    returned(&daemon)
}

/// What a worker takes beside its guest's memory, with the disks and the card of a container.
fn private(bench: &Bench, daemon: &Daemon) -> anyhow::Result<()> {
    let title = "private memory of a container's worker, the guest's left out";
    let mut contest = Contest::of(title, "MiB");
    contest.reading("kvm engine", || {
        let id = daemon.run("run -d --isolation=hyperv busybox sleep 86400")?;
        let kib = worker_of(&id).and_then(|pid| daemons::private(pid, LEAST_GUEST));
        daemon.run(&format!("rm -f {id}"))?;
        Ok(f64::from(kib?) / 1024.0)
    });
    contest.run(bench.few())
}

/// The worker of a container's VM.
fn worker_of(id: &str) -> anyhow::Result<u32> {
    let workers = daemons::with_words(&[WORKER, id]);
    let (pid, _) = workers.first().context("no worker")?;
    Ok(*pid)
}

/// The worker's memory while its guest holds much, and after it has let go.
fn returned(daemon: &Daemon) -> anyhow::Result<()> {
    let id = daemon.run("run -d --isolation=hyperv --shm-size 200m busybox sleep 86400")?;
    let worker = || daemons::rss(worker_of(&id)?);
    let mut figures = vec![Figure::kib("started", worker()?)];
    daemon.run(&format!(
        "exec {id} dd if=/dev/zero of=/dev/shm/much bs=1M count={RETURNED_MIB}"
    ))?;
    figures.push(Figure::kib("holding 128 MiB more", worker()?));
    daemon.run(&format!("exec {id} rm /dev/shm/much"))?;
    std::thread::sleep(REPORT);
    figures.push(Figure::kib("after freeing them", worker()?));
    measure::table("memory of a VM's worker", &figures);
    daemon.run(&format!("rm -f {id}"))?;
    Ok(())
}
