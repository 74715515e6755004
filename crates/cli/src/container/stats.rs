//! The `stats` command.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{LocalBoxFuture, join_all};
use serde::Deserialize;
use serde_json::Value;

use super::list::Summary;
use crate::client::{JsonStream, Request};
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult, join};
use crate::flags::{Flag, Parsed};
use crate::format::{Format, Printer, Row, short_id, units};
use crate::output::emit;
use crate::system::filters;

const FLAGS: &[Flag] = &[
    Flag::switch("all", "Show stopped containers too").short('a'),
    Flag::text("format", super::list::FORMAT_HELP),
    Flag::switch("no-stream", "Print one result and end"),
    Flag::switch("no-trunc", "Show everything in full"),
];

/// The `stats` command.
pub const STATS: Command = Command::new(
    "stats",
    "[OPTIONS] [CONTAINER...]",
    "Show what containers use, as it changes",
    Arity::AtLeast(0),
    run_stats,
)
.flags(&[FLAGS])
.spelled(&["bulkhead container stats", "bulkhead stats"]);

const TABLE: &str = "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t\
                     {{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

const TITLES: &[(&str, &str)] = &[
    ("Container", "CONTAINER"),
    ("Name", "NAME"),
    ("ID", "CONTAINER ID"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// How often the screen is drawn again.
const REDRAW: Duration = Duration::from_millis(500);

/// Without a sample for so long, a container's figures are blank.
const STALE: Duration = Duration::from_secs(2);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sample {
    name: String,
    id: String,
    cpu_stats: Cpu,
    precpu_stats: Cpu,
    memory_stats: Memory,
    blkio_stats: BlockIo,
    pids_stats: Pids,
    networks: Option<BTreeMap<String, Network>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    cpu_usage: CpuUsage,
    system_cpu_usage: u64,
    online_cpus: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CpuUsage {
    total_usage: u64,
    percpu_usage: Option<Vec<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    usage: u64,
    limit: u64,
    stats: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BlockIo {
    io_service_bytes_recursive: Option<Vec<BlockEntry>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BlockEntry {
    op: String,
    value: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pids {
    current: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    rx_bytes: u64,
    tx_bytes: u64,
}

impl Sample {
    /// Percent of one CPU since the sample before.
    fn cpu_percent(&self) -> f64 {
        let now = &self.cpu_stats;
        let before = &self.precpu_stats;
        let used = units::float_u(now.cpu_usage.total_usage)
            - units::float_u(before.cpu_usage.total_usage);
        let passed = units::float_u(now.system_cpu_usage) - units::float_u(before.system_cpu_usage);
        let cpus = match now.online_cpus {
            0 => now
                .cpu_usage
                .percpu_usage
                .as_ref()
                .map_or(0, Vec::len)
                .try_into()
                .unwrap_or(0),
            cpus => cpus,
        };
        if passed > 0.0 && used > 0.0 {
            used / passed * units::float_u(cpus) * 100.0
        } else {
            0.0
        }
    }

    /// Memory without the page cache that can be dropped.
    fn memory(&self) -> u64 {
        let memory = &self.memory_stats;
        let figure = |name: &str| {
            memory
                .stats
                .as_ref()
                .and_then(|s| s.get(name))
                .and_then(Value::as_u64)
        };
        // The first name is cgroup v1's, the second v2's.
        let inactive = figure("total_inactive_file").or_else(|| figure("inactive_file"));
        match inactive {
            Some(inactive) if inactive < memory.usage => memory.usage - inactive,
            _ => memory.usage,
        }
    }

    fn block_io(&self) -> (u64, u64) {
        let mut sums = (0u64, 0u64);
        for entry in self.blkio_stats.io_service_bytes_recursive.iter().flatten() {
            match entry.op.as_bytes().first() {
                Some(b'r' | b'R') => sums.0 = sums.0.saturating_add(entry.value),
                Some(b'w' | b'W') => sums.1 = sums.1.saturating_add(entry.value),
                _ => {}
            }
        }
        sums
    }
}

/// One container's latest figures.
#[derive(Default)]
struct Entry {
    container: String,
    sample: Option<Sample>,
    /// The name and ID of the last sample, which stay when figures go stale.
    name: String,
    id: String,
    error: Option<CliError>,
}

impl Entry {
    fn row(&self, trunc: bool) -> Row {
        let blank = "--".to_owned();
        let both = |a: u64, b: u64| {
            format!(
                "{} / {}",
                units::size3(units::float_u(a)),
                units::size3(units::float_u(b))
            )
        };
        let name = match self.name.strip_prefix('/').unwrap_or(&self.name) {
            "" => blank.clone(),
            name => name.to_owned(),
        };
        let row = Row::default()
            .text("Container", &self.container)
            .text("Name", name)
            .text("ID", if trunc { short_id(&self.id) } else { &self.id });
        let Some(sample) = &self.sample else {
            return row
                .text("CPUPerc", &blank)
                .text("MemUsage", "-- / --")
                .text("MemPerc", &blank)
                .text("NetIO", &blank)
                .text("BlockIO", &blank)
                .text("PIDs", &blank);
        };
        let memory = sample.memory();
        let limit = sample.memory_stats.limit;
        let percent = match limit {
            0 => 0.0,
            limit => units::float_u(memory) / units::float_u(limit) * 100.0,
        };
        let (received, sent) = sample
            .networks
            .iter()
            .flat_map(BTreeMap::values)
            .fold((0u64, 0u64), |(r, t), n| {
                (r.saturating_add(n.rx_bytes), t.saturating_add(n.tx_bytes))
            });
        let (read, written) = sample.block_io();
        row.text("CPUPerc", format!("{:.2}%", sample.cpu_percent()))
            .text(
                "MemUsage",
                format!(
                    "{} / {}",
                    units::binary_size(units::float_u(memory)),
                    units::binary_size(units::float_u(limit))
                ),
            )
            .text("MemPerc", format!("{percent:.2}%"))
            .text("NetIO", both(received, sent))
            .text("BlockIO", both(read, written))
            .text("PIDs", sample.pids_stats.current.to_string())
    }
}

type Board = Rc<RefCell<Vec<Entry>>>;

/// Adds a container to the board, or tells that it is there.
fn add(board: &Board, container: &str) -> bool {
    let mut board = board.borrow_mut();
    if board.iter().any(|e| e.container == container) {
        return false;
    }
    board.push(Entry {
        container: container.to_owned(),
        ..Entry::default()
    });
    true
}

fn change(board: &Board, container: &str, edit: impl FnOnce(&mut Entry)) {
    if let Some(entry) = board
        .borrow_mut()
        .iter_mut()
        .find(|e| e.container == container)
    {
        edit(entry);
    }
}

async fn open(ctx: &Ctx, container: &str, stream: bool) -> CliResult<JsonStream> {
    let request = Request::get(&["containers", container, "stats"])
        .query("stream", if stream { "1" } else { "0" });
    Ok(ctx.client().stream(request).await?)
}

/// Takes the next sample; false at the end of the stream.
async fn take(samples: &mut JsonStream, board: &Board, container: &str) -> bool {
    match tokio::time::timeout(STALE, samples.next::<Sample>()).await {
        Ok(Ok(Some(sample))) => {
            change(board, container, |entry| {
                entry.name.clone_from(&sample.name);
                entry.id.clone_from(&sample.id);
                entry.sample = Some(sample);
            });
            true
        }
        Ok(Ok(None)) => false,
        Ok(Err(error)) => {
            change(board, container, |entry| {
                entry.sample = None;
                entry.error = Some(error.into());
            });
            false
        }
        Err(_) => {
            change(board, container, |entry| entry.sample = None);
            true
        }
    }
}

/// Collects a container's first sample, and those after it in the background if `stream`.
async fn collect(ctx: Ctx, board: Board, container: String, stream: bool) {
    let mut samples = match open(&ctx, &container, stream).await {
        Ok(samples) => samples,
        Err(error) => return change(&board, &container, |e| e.error = Some(error)),
    };
    let more = take(&mut samples, &board, &container).await;
    if stream && more {
        tokio::task::spawn_local(async move {
            while take(&mut samples, &board, &container).await {}
            change(&board, &container, |entry| entry.sample = None);
        });
    }
}

/// Adds and removes containers as they start and end.
async fn follow_events(ctx: Ctx, board: Board, all: bool, mut events: JsonStream) {
    while let Ok(Some(event)) = events.next::<Value>().await {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
        let (Some(action), Some(id)) = (text("/Action").or(text("/status")), text("/Actor/ID"))
        else {
            continue;
        };
        let container = short_id(id).to_owned();
        match action {
            "start" if (add(&board, &container) || all) => {
                let task = collect(ctx.clone(), Rc::clone(&board), container, true);
                tokio::task::spawn_local(task);
            }
            "create" if all => {
                add(&board, &container);
            }
            "die" if !all => board.borrow_mut().retain(|e| e.container != container),
            "destroy" => board.borrow_mut().retain(|e| e.container != container),
            _ => {}
        }
    }
}

fn run_stats(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let stream = !parsed.on("no-stream");
        let all = parsed.on("all");
        let trunc = !parsed.on("no-trunc");
        let source = match parsed.text("format") {
            "" => ctx.config().stats_format,
            given => given.to_owned(),
        };
        let printer = Printer::new(
            Format::choose(&source, TABLE),
            TITLES,
            "*container.statsContext",
        )?;
        let board = Board::default();
        let everything = parsed.args.is_empty();
        let mut first = Vec::new();
        let mut watch = |container: &str| {
            if add(&board, container) {
                first.push(collect(
                    ctx.clone(),
                    Rc::clone(&board),
                    container.to_owned(),
                    stream,
                ));
            }
        };
        if everything {
            let filter = filters::encode(&["type=container".to_owned()]);
            let request = Request::get(&["events"]).query_some("filters", filter);
            // Asked for before the list, so that no start falls in between.
            let events = if stream {
                Some(ctx.client().stream(request).await?)
            } else {
                None
            };
            let request = Request::get(&["containers", "json"]).query_if("all", all);
            let containers: Vec<Summary> = ctx.client().json(request).await?;
            for container in &containers {
                watch(short_id(&container.id));
            }
            if let Some(events) = events {
                let task = follow_events(ctx.clone(), Rc::clone(&board), all, events);
                tokio::task::spawn_local(task);
            }
        } else {
            for name in &parsed.args {
                watch(name);
            }
        }
        join_all(first).await;
        if !everything {
            join(
                board
                    .borrow_mut()
                    .iter_mut()
                    .filter_map(|e| e.error.take())
                    .collect(),
            )?;
        }
        let mut ticks = tokio::time::interval(REDRAW);
        loop {
            if stream {
                ticks.tick().await;
            }
            let text = {
                let board = board.borrow();
                printer.render(board.iter().map(|e| e.row(trunc)))?
            };
            if !stream {
                return emit(text);
            }
            // From the top left; the rest of each line, then of the screen, is cleared.
            let cleared: String = text.lines().map(|l| format!("{l}\x1b[K\n")).collect();
            emit(format!("\x1b[H{cleared}\x1b[J"))?;
            if board.borrow().is_empty() && !everything {
                return Ok(());
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let sample: Sample = serde_json::from_value(serde_json::json!({
            "cpu_stats": {"cpu_usage": {"total_usage": 200}, "system_cpu_usage": 1000, "online_cpus": 2},
            "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 600},
            "memory_stats": {"usage": 1000, "limit": 4000, "stats": {"inactive_file": 200}},
            "blkio_stats": {"io_service_bytes_recursive": [
                {"op": "Read", "value": 5}, {"op": "write", "value": 7}, {"op": "sync", "value": 9}]},
        }))
        .unwrap();
        assert!((sample.cpu_percent() - 50.0).abs() < 1e-9);
        assert_eq!(sample.memory(), 800);
        assert_eq!(sample.block_io(), (5, 7));
        assert!(Sample::default().cpu_percent().abs() < 1e-9);
    }
}
