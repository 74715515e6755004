//! `docker stats`: what a container has used, sampled once a second.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Json, Response};
use bulkhead_isolation::Stats;
use bulkhead_network::InterfaceCounters;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::error::ApiResult;
use crate::services::containers::{Handle, View};
use crate::state::AppState;

/// How far apart samples are.
const INTERVAL: Duration = Duration::from_secs(1);

/// Answers `GET /containers/{id}/stats`. Without `stream`, two samples a second apart make
/// one answer, so that rates can be told, unless `one_shot` wants it at once.
pub async fn answer(
    state: AppState,
    container: Arc<Handle>,
    stream: bool,
    one_shot: bool,
) -> ApiResult<Response> {
    if !stream {
        let first = sample(&container.view()).await;
        if one_shot || first.is_none() {
            let view = container.view();
            let networks = state.containers.network_counters(&view).await;
            return Ok(Json(shape(&view, first.as_ref(), None, &networks)).into_response());
        }
        tokio::time::sleep(INTERVAL).await;
        let second = sample(&container.view()).await;
        let view = container.view();
        let networks = state.containers.network_counters(&view).await;
        let value = shape(&view, second.as_ref(), first.as_ref(), &networks);
        return Ok(Json(value).into_response());
    }
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::convert::Infallible>>(1);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        let mut previous = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = sender.closed() => return,
                () = state.shutdown.cancelled() => return,
            }
            let view = container.view();
            if view.removed {
                return;
            }
            let now = sample(&view).await;
            let networks = state.containers.network_counters(&view).await;
            let mut line = shape(&view, now.as_ref(), previous.as_ref(), &networks).to_string();
            line.push('\n');
            previous = now;
            if sender.send(Ok(Bytes::from(line))).await.is_err() {
                return;
            }
        }
    });
    let lines = futures::stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        Some((line, receiver))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

async fn sample(view: &View) -> Option<Stats> {
    let task = view.task.clone()?;
    match task.stats().await {
        Ok(stats) => Some(stats),
        Err(error) => {
            tracing::debug!(id = %view.record.id, %error, "stats");
            None
        }
    }
}

fn shape(
    view: &View,
    now: Option<&Stats>,
    before: Option<&Stats>,
    interfaces: &[InterfaceCounters],
) -> Value {
    let never = "0001-01-01T00:00:00Z".to_owned();
    let time =
        |stats: Option<&Stats>| stats.map_or(never.clone(), |stats| format!("{:.9}", stats.at));
    let mut shaped = json!({
        "name": format!("/{}", view.record.name),
        "id": view.record.id,
        "read": time(now),
        "preread": time(before),
        "pids_stats": pids(now),
        "blkio_stats": block_io(now),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu(now),
        "precpu_stats": cpu(before),
        "memory_stats": memory(now),
    });
    if !interfaces.is_empty() {
        shaped["networks"] = networks(interfaces);
    }
    shaped
}

fn pids(stats: Option<&Stats>) -> Value {
    match stats {
        None => json!({}),
        Some(stats) if stats.pids_limit == 0 => {
            json!({ "current": stats.pids, "limit": u64::MAX })
        }
        Some(stats) => json!({ "current": stats.pids, "limit": stats.pids_limit }),
    }
}

fn cpu(stats: Option<&Stats>) -> Value {
    let Some(stats) = stats else {
        return json!({
            "cpu_usage": {
                "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0,
            },
            "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
        });
    };
    let cpu = &stats.cpu;
    let mut usage = json!({
        "total_usage": cpu.total,
        "usage_in_kernelmode": cpu.kernel,
        "usage_in_usermode": cpu.user,
    });
    // Clients take it as absent where it is not counted.
    if !cpu.per_cpu.is_empty() {
        usage["percpu_usage"] = json!(cpu.per_cpu);
    }
    json!({
        "cpu_usage": usage,
        "system_cpu_usage": cpu.system,
        "online_cpus": cpu.online,
        "throttling_data": {
            "periods": cpu.periods,
            "throttled_periods": cpu.throttled_periods,
            "throttled_time": cpu.throttled_time,
        },
    })
}

fn memory(stats: Option<&Stats>) -> Value {
    let Some(stats) = stats else {
        return json!({});
    };
    let memory = &stats.memory;
    let mut out = Map::new();
    out.insert("usage".to_owned(), json!(memory.usage));
    if !memory.unified {
        out.insert("max_usage".to_owned(), json!(memory.max_usage));
    }
    out.insert("stats".to_owned(), json!(memory.detail));
    if memory.failcnt > 0 {
        out.insert("failcnt".to_owned(), json!(memory.failcnt));
    }
    out.insert("limit".to_owned(), json!(memory.limit));
    Value::Object(out)
}

fn block_io(stats: Option<&Stats>) -> Value {
    let mut bytes = Vec::new();
    let mut operations = Vec::new();
    for device in stats.iter().flat_map(|stats| &stats.block_io) {
        let entry = |op: &str, value: u64| json!({ "major": device.major, "minor": device.minor, "op": op, "value": value });
        bytes.push(entry("read", device.read_bytes));
        bytes.push(entry("write", device.write_bytes));
        operations.push(entry("read", device.reads));
        operations.push(entry("write", device.writes));
    }
    // Clients walk through all of these without asking whether they are there.
    json!({
        "io_service_bytes_recursive": bytes,
        "io_serviced_recursive": operations,
        "io_queue_recursive": [],
        "io_service_time_recursive": [],
        "io_wait_time_recursive": [],
        "io_merged_recursive": [],
        "io_time_recursive": [],
        "sectors_recursive": [],
    })
}

/// Interfaces other than loopback.
fn networks(interfaces: &[InterfaceCounters]) -> Value {
    let shaped = interfaces.iter().map(|counted| {
        let value = json!({
            "rx_bytes": counted.rx_bytes,
            "rx_packets": counted.rx_packets,
            "rx_errors": counted.rx_errors,
            "rx_dropped": counted.rx_dropped,
            "tx_bytes": counted.tx_bytes,
            "tx_packets": counted.tx_packets,
            "tx_errors": counted.tx_errors,
            "tx_dropped": counted.tx_dropped,
        });
        (counted.name.clone(), value)
    });
    Value::Object(shaped.collect())
}
