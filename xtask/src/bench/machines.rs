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
const LIMIT: &str = "1800";
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

/// From nothing until the agent's first byte.
fn starts(bench: &Bench, program: &Path) -> anyhow::Result<()> {
    let guest = bench.root.join("target/guest");
    if installed("qemu-system-x86_64", "a machine to compare with") {
        // QEMU opens it as the user of its jail.
        quiet(Command::new("chmod").args(["666", "/dev/kvm"]))?;
    }
    let mut last = serde_json::Value::Null;
    let directory = bench.scratch().join("machine");
    let boot = |engine: &str| -> anyhow::Result<serde_json::Value> {
        std::fs::create_dir_all(&directory)?;
        let mut command = Command::new(program);
        command.arg(engine).arg(&guest).args(["256", "1"]);
        Ok(serde_json::from_str(&output(command.arg(&directory))?)?)
    };
    let number = |document: &serde_json::Value, name: &str| {
        let number = document[name].as_f64();
        number.with_context(|| format!("no {name} in {document}"))
    };
    let mut contest = Contest::of("start until the agent speaks, 256 MiB, 1 CPU", "ms");
    if installed("qemu-system-x86_64", "a machine to compare with") {
        contest.reading("QEMU microvm on KVM", || number(&boot("qemu")?, "ready_ms"));
    }
    contest.reading("kvm engine", || {
        last = boot("kvm")?;
        number(&last, "ready_ms")
    });
    contest.run(bench.few())?;
    let exits = Figure::new("VM exits until then", number(&last, "exits")?, "");
    measure::table("kvm engine, counts", &[exits]);
    let private = number(&last, "private_kib")? / 1024.0;
    let private = Figure::new("private memory beside the guest's", private, "MiB");
    measure::table("kvm engine, memory", &[private]);
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
    returned(&daemon)
}

/// The worker's memory while its guest holds much, and after it has let go.
fn returned(daemon: &Daemon) -> anyhow::Result<()> {
    let id = daemon.run("run -d --isolation=hyperv --shm-size 200m busybox sleep 86400")?;
    let worker = || {
        let workers = daemons::with_words(&["vmwp", &id]);
        let (pid, _) = workers.first().context("no worker")?;
        daemons::rss(*pid)
    };
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
