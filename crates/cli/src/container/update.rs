//! The `update` command.

use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::spec::restart_policy;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult, join};
use crate::flags::{Flag, Kind, Parsed};
use crate::output::emit_line;

const FLAGS: &[Flag] = &[
    Flag::new(
        "blkio-weight",
        Kind::Uint16,
        "Relative block I/O weight, 10 to 1000, 0 for none",
    )
    .default("0"),
    Flag::int("cpu-period", "Length of a CFS period, in microseconds"),
    Flag::int("cpu-quota", "CPU time in each CFS period, in microseconds"),
    Flag::int(
        "cpu-rt-period",
        "Length of a real-time period, in microseconds",
    ),
    Flag::int(
        "cpu-rt-runtime",
        "Real-time CPU time in each period, in microseconds",
    ),
    Flag::int("cpu-shares", "Relative CPU weight").short('c'),
    Flag::new(
        "cpus",
        Kind::Cpus,
        "How many CPUs' time the container may use",
    ),
    Flag::text("cpuset-cpus", "CPUs that it may run on (0-3, 0,1)"),
    Flag::text("cpuset-mems", "Memory nodes that it may use (0-3, 0,1)"),
    Flag::new("kernel-memory", Kind::Bytes, "Kernel memory limit").hidden(),
    Flag::new("memory", Kind::Bytes, "Memory limit").short('m'),
    Flag::new(
        "memory-reservation",
        Kind::Bytes,
        "Memory that is left to it under pressure",
    ),
    Flag::new(
        "memory-swap",
        Kind::SwapBytes,
        "Limit of memory and swap together, -1 for none",
    ),
    Flag::int(
        "pids-limit",
        "How many processes it may have (-1 for any number)",
    ),
    Flag::text(
        "restart",
        "When to start the container again after it ended",
    ),
];

/// The `update` command.
pub const UPDATE: Command = Command::new(
    "update",
    "[OPTIONS] CONTAINER [CONTAINER...]",
    "Change the limits of containers",
    Arity::AtLeast(1),
    run_update,
)
.flags(&[FLAGS])
.spelled(&["bulkhead container update", "bulkhead update"]);

fn body(parsed: &Parsed) -> CliResult<Value> {
    let mut body = Map::new();
    for (flag, key) in [
        ("blkio-weight", "BlkioWeight"),
        ("cpu-period", "CpuPeriod"),
        ("cpu-quota", "CpuQuota"),
        ("cpu-rt-period", "CpuRealtimePeriod"),
        ("cpu-rt-runtime", "CpuRealtimeRuntime"),
        ("cpu-shares", "CpuShares"),
        ("cpus", "NanoCpus"),
        ("memory", "Memory"),
        ("memory-reservation", "MemoryReservation"),
        ("memory-swap", "MemorySwap"),
        ("kernel-memory", "KernelMemory"),
    ] {
        // Zero leaves a limit as it is.
        body.insert(key.to_owned(), parsed.int(flag).into());
    }
    for (flag, key) in [("cpuset-cpus", "CpusetCpus"), ("cpuset-mems", "CpusetMems")] {
        body.insert(key.to_owned(), parsed.text(flag).into());
    }
    if parsed.int("pids-limit") != 0 {
        body.insert("PidsLimit".to_owned(), parsed.int("pids-limit").into());
    }
    let restart = restart_policy(parsed.text("restart")).map_err(CliError::msg)?;
    body.insert("RestartPolicy".to_owned(), restart);
    Ok(Value::Object(body))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Answer {
    warnings: Option<Vec<String>>,
}

fn run_update(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        if parsed.count() == 0 {
            return Err(CliError::msg(
                "you must provide one or more flags when using this command",
            ));
        }
        let body = body(&parsed)?;
        let mut warnings = Vec::new();
        let mut errors = Vec::new();
        for name in &parsed.args {
            let request = Request::post(&["containers", name, "update"]).json(&body);
            match ctx.client().json::<Answer>(request).await {
                Ok(answer) => {
                    emit_line(name)?;
                    warnings.extend(answer.warnings.unwrap_or_default());
                }
                Err(error) => errors.push(error.into()),
            }
        }
        if !warnings.is_empty() {
            emit_line(warnings.join("\n"))?;
        }
        join(errors)
    })
}
