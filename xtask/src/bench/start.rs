//! What a start costs, and what waits in memory afterwards.

use std::process::Command;

use super::daemons::{self, Daemon};
use super::measure::{self, Contest, Figure};
use super::{Bench, installed, quiet};

fn run_true(isolation: Option<&str>) -> Vec<String> {
    let isolation = isolation.map(|name| format!("--isolation={name}"));
    ["run".to_owned(), "--rm".to_owned()]
        .into_iter()
        .chain(isolation)
        .chain(["busybox".to_owned(), "true".to_owned()])
        .collect()
}

/// `run --rm busybox true` at process isolation, by daemon and by bare OCI runtime.
pub(super) fn processes(
    bench: &Bench,
    ours: &Daemon,
    theirs: Option<&Daemon>,
) -> anyhow::Result<()> {
    let mut contest = Contest::new("run --rm busybox true, process isolation, on a bridge");
    if let Some(theirs) = theirs {
        contest.side("dockerd (docker CLI)", || theirs.docker(&run_true(None)));
    }
    contest.side("bulkhead (docker CLI)", || ours.docker(&run_true(None)));
    contest.side("bulkhead (own CLI)", || {
        let mut command = Command::new(bench.binaries.join("bulkhead"));
        command.env("DOCKER_HOST", ours.host()).args(run_true(None));
        quiet(&mut command)
    });
    let bundle = bench.scratch().join("bundle");
    daemons::busybox_tree(&bundle.join("rootfs"))?;
    for runtime in ["runc", "crun"] {
        if !installed(runtime, "a runtime to compare with") {
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
    contest.run(bench.rounds)
}

/// The same in VMs, and beside a container of processes.
pub(super) fn machines(bench: &Bench, ours: &Daemon) -> anyhow::Result<()> {
    let mut contest = Contest::new("run --rm busybox true, in a VM, cold");
    contest.side("bulkhead hyperv", || ours.docker(&run_true(Some("hyperv"))));
    contest.side("bulkhead process", || {
        ours.docker(&run_true(Some("process")))
    });
    contest.run(bench.few())
}

/// What idle daemons and supervisors hold in memory.
pub(super) fn memory(ours: &Daemon, theirs: Option<&Daemon>) -> anyhow::Result<()> {
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
