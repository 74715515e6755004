//! What people do all day with containers that run: exec, ps, logs, cp.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;

use anyhow::bail;

use super::daemons::Daemon;
use super::measure::Contest;
use super::{Bench, quiet};

/// Containers of the list.
const LISTED: u32 = 200;
/// Lines of the log, each of 100 bytes.
const LOG_LINES: usize = 1_000_000;
/// MiB of the file that is copied.
const COPIED_MIB: u32 = 1024;

/// Runs the contests.
pub(super) fn run(bench: &Bench, ours: &Daemon, theirs: Option<&Daemon>) -> anyhow::Result<()> {
    let sides = super::traffic::sides(ours, theirs);
    let mut running = Vec::new();
    for side in &sides {
        let words = format!("run -d {}busybox sleep 86400", side.flags);
        running.push(side.daemon.run(&words)?);
    }
    let mut exec = Contest::new("exec true");
    for (side, id) in sides.iter().zip(&running) {
        exec.side(side.name, move || {
            side.daemon.run(&format!("exec {id} true")).map(drop)
        });
    }
    exec.run(bench.rounds)?;
    copies(bench, &sides, &running)?;
    for (side, id) in sides.iter().zip(&running) {
        side.daemon.run(&format!("rm -f {id}"))?;
    }
    logs(bench, &sides)?;
    list(bench, ours, theirs)
}

fn copies(
    bench: &Bench,
    sides: &[super::traffic::Side<'_>],
    running: &[String],
) -> anyhow::Result<()> {
    let file = bench.scratch().join("large");
    let mut large = File::create(&file)?;
    let block: Vec<u8> = (0..1_u32 << 20)
        .map(|at| at.to_le_bytes()[1] ^ at.to_le_bytes()[0])
        .collect();
    for _ in 0..COPIED_MIB {
        large.write_all(&block)?;
    }
    let mut to = Contest::new("cp of 1 GiB into a container");
    let mut from = Contest::new("cp of 1 GiB out of it");
    for (side, id) in sides.iter().zip(running) {
        let path = file.display().to_string();
        to.side(side.name, move || {
            side.daemon.run(&format!("cp {path} {id}:/large")).map(drop)
        });
        from.side(side.name, move || {
            let words = ["cp".to_owned(), format!("{id}:/large"), "-".to_owned()];
            let mut command = side.daemon.client(&words);
            let status = command.stdout(Stdio::null()).status()?;
            anyhow::ensure!(status.success(), "cp: {status}");
            Ok(())
        });
    }
    to.run(2)?;
    from.run(2)?;
    Ok(std::fs::remove_file(&file)?)
}

fn logs(bench: &Bench, sides: &[super::traffic::Side<'_>]) -> anyhow::Result<()> {
    let mut written = Vec::new();
    for side in sides {
        let script = format!("yes {} | head -n {LOG_LINES}", "x".repeat(99));
        let mut words: Vec<String> = ["run", "-d"].map(str::to_owned).to_vec();
        words.extend(side.flags.split_whitespace().map(str::to_owned));
        words.extend(["busybox", "sh", "-c", &script].map(str::to_owned));
        let id = side.daemon.docker_output(&words)?;
        side.daemon.run(&format!("wait {id}"))?;
        let kept = side.daemon.run(&format!("logs {id}"))?.len();
        if kept + 1 != LOG_LINES * 100 {
            bail!("{}: {kept} bytes of log", side.name);
        }
        written.push(id);
    }
    let mut contest = Contest::new("logs of 100 MB");
    for (side, id) in sides.iter().zip(&written) {
        contest.side(side.name, move || {
            let words = ["logs".to_owned(), id.clone()];
            quiet(side.daemon.client(&words).stdout(Stdio::null()))
        });
    }
    contest.run(bench.few())?;
    for (side, id) in sides.iter().zip(&written) {
        side.daemon.run(&format!("rm -f {id}"))?;
    }
    Ok(())
}

fn list(bench: &Bench, ours: &Daemon, theirs: Option<&Daemon>) -> anyhow::Result<()> {
    let mut contest = Contest::new("ps -a of 200 containers");
    let named = theirs.map(|theirs| ("dockerd", theirs));
    for (name, daemon) in named.into_iter().chain([("bulkhead", ours)]) {
        for _ in 0..LISTED {
            daemon.run("create busybox true")?;
        }
        contest.side(name, || daemon.run("ps -a").map(drop));
    }
    contest.run(bench.rounds)?;
    for daemon in theirs.into_iter().chain([ours]) {
        daemon.run("container prune -f")?;
    }
    Ok(())
}
