//! What goes through a bridge (iperf3, ping) and through a bind (fio).

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::daemons::{self, Daemon};
use super::measure::Contest;
use super::{Bench, installed};

/// One who takes part: a daemon and the flags of its containers.
pub(super) struct Side<'a> {
    pub(super) name: &'static str,
    pub(super) daemon: &'a Daemon,
    /// With a space after each.
    pub(super) flags: &'static str,
}

/// dockerd where it is there, and both isolations of ours.
pub(super) fn sides<'a>(ours: &'a Daemon, theirs: Option<&'a Daemon>) -> Vec<Side<'a>> {
    let side = |name, daemon, flags| Side {
        name,
        daemon,
        flags,
    };
    let theirs = theirs.map(|theirs| side("dockerd", theirs, ""));
    let ours = [
        side("bulkhead process", ours, "--isolation=process "),
        side("bulkhead hyperv", ours, "--isolation=hyperv "),
    ];
    theirs.into_iter().chain(ours).collect()
}

/// An image with the program that measures `what`; false when there is none.
fn tools(bench: &Bench, sides: &[Side<'_>], program: &str, what: &str) -> anyhow::Result<bool> {
    if !installed(program, what) {
        return Ok(false);
    }
    let tree = bench.scratch().join("tools").join(program);
    daemons::busybox_tree(&tree)?;
    daemons::add_programs(&tree, &[program])?;
    std::fs::create_dir_all(tree.join("measured"))?;
    for side in sides {
        side.daemon.import(&tree, "tools")?;
    }
    Ok(true)
}

/// A number out of a JSON document that a program of a container has printed.
fn number(document: &str, pointer: &str) -> anyhow::Result<f64> {
    // fio puts words of its own before its document.
    let start = document.find('{').unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(&document[start..])?;
    let number = value.pointer(pointer).and_then(serde_json::Value::as_f64);
    number.with_context(|| format!("no {pointer} in {value}"))
}

/// A server in the daemon's own network; dropping it ends it.
struct Server(Child);

impl Server {
    fn start(daemon: &Daemon) -> anyhow::Result<Self> {
        let mut command = daemon.nearby("iperf3");
        let child = command.arg("-s").stdout(Stdio::null()).spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Throughput and latency, to the host and between containers.
pub(super) fn network(bench: &Bench, ours: &Daemon, theirs: Option<&Daemon>) -> anyhow::Result<()> {
    let sides = sides(ours, theirs);
    if !tools(bench, &sides, "iperf3", "what bridges carry")? {
        return Ok(());
    }
    let mut servers = Vec::new();
    for daemon in theirs.into_iter().chain([ours]) {
        servers.push(Server::start(daemon)?);
    }
    let mut prepared = Vec::new();
    for side in &sides {
        let run = |command: &str| {
            side.daemon
                .run(&format!("run -d {}tools {command}", side.flags))
        };
        let (client, server) = (run("sleep 86400")?, run("iperf3 -s")?);
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}";
        let words = ["inspect", "-f", format, &server].map(str::to_owned);
        let addresses = side.daemon.docker_output(&words)?;
        let (peer, gateway) = addresses
            .split_once(' ')
            .with_context(|| format!("no addresses: {addresses}"))?;
        prepared.push((client, server.clone(), gateway.to_owned(), peer.to_owned()));
    }
    for (title, of_peer) in [
        ("container to host", false),
        ("container to container", true),
    ] {
        let mut rate = Contest::of(&format!("{title}, TCP"), "Mbit/s");
        let mut delay = Contest::of(&format!("{title}, round trip"), "us");
        for (side, (client, _, gateway, peer)) in sides.iter().zip(&prepared) {
            let to = if of_peer { peer } else { gateway };
            listening(side.daemon, client, to)?;
            rate.reading(side.name, move || {
                let words = format!("exec {client} iperf3 -J -t 2 -c {to}");
                let document = side.daemon.run(&words)?;
                Ok(number(&document, "/end/sum_received/bits_per_second")? / 1e6)
            });
            delay.reading(side.name, move || {
                let text = side
                    .daemon
                    .run(&format!("exec {client} ping -q -c 30 -i 0.02 {to}"))?;
                // round-trip min/avg/max = 0.043/0.058/0.101 ms
                let times = text.rsplit_once("= ").map_or("", |(_, times)| times);
                let average = times.split('/').nth(1);
                let average = average.with_context(|| format!("no times: {text}"))?;
                Ok(average.parse::<f64>()? * 1e3)
            });
        }
        rate.run(bench.few())?;
        delay.run(bench.few())?;
    }
    drop(servers);
    for (side, (client, server, ..)) in sides.iter().zip(&prepared) {
        side.daemon.run(&format!("rm -f {client} {server}"))?;
    }
    Ok(())
}

fn listening(daemon: &Daemon, client: &str, to: &str) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(error) = daemon.run(&format!("exec {client} iperf3 -J -n 1K -c {to}")) {
        if Instant::now() > end {
            bail!("no server at {to}: {error:#}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What it is called, fio's flags, where its document has the rate.
const FIO: [(&str, &str, &str); 3] = [
    (
        "sequential writes",
        "--rw=write --bs=1M --end_fsync=1",
        "/jobs/0/write/bw",
    ),
    ("sequential reads", "--rw=read --bs=1M", "/jobs/0/read/bw"),
    (
        "random reads of 4 KiB",
        "--rw=randread --bs=4k",
        "/jobs/0/read/bw",
    ),
];

/// Reads and writes on a bind.
pub(super) fn files(bench: &Bench, ours: &Daemon, theirs: Option<&Daemon>) -> anyhow::Result<()> {
    let sides = sides(ours, theirs);
    if !tools(bench, &sides, "fio", "files on a bind")? {
        return Ok(());
    }
    let shared = bench.scratch().join("shared");
    std::fs::create_dir_all(&shared)?;
    for (title, flags, pointer) in FIO {
        let bind = format!("-v {}:/measured ", shared.display());
        let title = format!("{title} on a bind");
        on_files(bench, &sides, &bind, &title, flags, pointer)?;
    }
    Ok(())
}

/// Reads and writes on what containers have as their own.
pub(super) fn disks(bench: &Bench, sides: &[Side<'_>]) -> anyhow::Result<()> {
    if !tools(bench, sides, "fio", "files and disks of containers")? {
        return Ok(());
    }
    for (title, flags, pointer) in FIO {
        let title = format!("{title} on the container's own files");
        on_files(bench, sides, "", &title, flags, pointer)?;
    }
    Ok(())
}

fn on_files(
    bench: &Bench,
    sides: &[Side<'_>],
    bind: &str,
    title: &str,
    flags: &str,
    pointer: &str,
) -> anyhow::Result<()> {
    let mut running = Vec::new();
    for side in sides {
        let words = format!("run -d {}{bind}tools sleep 86400", side.flags);
        running.push(side.daemon.run(&words)?);
    }
    let mut contest = Contest::of(title, "MiB/s");
    for (side, id) in sides.iter().zip(&running) {
        contest.reading(side.name, move || {
            let words = format!(
                "exec {id} fio --name=one --filename=/measured/file --size=64M {flags} \
                 --output-format=json --runtime=5 --thread"
            );
            Ok(number(&side.daemon.run(&words)?, pointer)? / 1024.0)
        });
    }
    contest.run(bench.few())?;
    for (side, id) in sides.iter().zip(&running) {
        side.daemon.run(&format!("rm -f {id}"))?;
    }
    Ok(())
}
