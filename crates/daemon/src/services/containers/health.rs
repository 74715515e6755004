//! Health checks: probing a container that runs, and what the results make of its health.
//!
//! A probe is an exec like any other. One task per running container probes; the owner task
//! alone decides what a result means.

use std::sync::Arc;
use std::time::Duration;

use bollard_stubs::models::{ContainerConfig, HealthConfig};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::actor::Actor;
use super::command::Command;
use super::exec::{ExecRequest, ExecState};
use super::model::Status;
use super::{Containers, Handle, Shared};
use crate::error::{ApiError, ApiResult};
use crate::frames::Frames;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// How many results are kept.
const KEPT: usize = 5;
/// How much of a probe's output is kept, bytes.
const MAX_OUTPUT: usize = 4096;
/// How long the output of a probe that has ended may take to arrive.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Docker's words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Nothing is known yet.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// Too many failed in a row.
    Unhealthy,
}

impl HealthStatus {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The health of a container that has a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What counts.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The newest results, the oldest first.
    pub log: Vec<ProbeResult>,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Its exit code; -1 when it did not end by itself or could not be run.
    pub exit_code: i64,
    /// What it printed.
    pub output: String,
}

/// A check as it applies.
#[derive(Debug, Clone)]
struct Check {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
}

fn nanoseconds(value: Option<i64>) -> Option<Duration> {
    u64::try_from(value?)
        .ok()
        .filter(|value| *value > 0)
        .map(Duration::from_nanos)
}

impl Check {
    fn of(config: &ContainerConfig) -> Option<Self> {
        let check = config.healthcheck.as_ref()?;
        let (kind, rest) = check.test.as_deref()?.split_first()?;
        let command = match kind.as_str() {
            "CMD" if !rest.is_empty() => rest.to_vec(),
            "CMD-SHELL" if !rest.is_empty() => {
                let shell = config.shell.clone().filter(|shell| !shell.is_empty());
                let mut command =
                    shell.unwrap_or_else(|| ["/bin/sh", "-c"].map(str::to_owned).to_vec());
                command.extend(rest.iter().cloned());
                command
            }
            "" | "NONE" | "CMD" | "CMD-SHELL" => return None,
            // As with Docker the container runs all the same, without a check.
            other => {
                tracing::warn!("unknown healthcheck type '{other}' (expected 'CMD')");
                return None;
            }
        };
        Some(Self {
            command,
            interval: nanoseconds(check.interval).unwrap_or(INTERVAL),
            timeout: nanoseconds(check.timeout).unwrap_or(TIMEOUT),
            start_period: nanoseconds(check.start_period).unwrap_or_default(),
            start_interval: nanoseconds(check.start_interval).unwrap_or(START_INTERVAL),
        })
    }

    /// Whether failures don't count yet.
    fn is_starting(&self, started: Option<Timestamp>, at: Timestamp) -> bool {
        let age = started.map(|started| Duration::try_from(at.duration_since(started)));
        matches!(age, Some(Ok(age)) if age < self.start_period)
    }
}

/// Refuses a check that makes no sense, in Docker's words.
///
/// # Errors
/// 400.
pub(super) fn check(check: Option<&HealthConfig>) -> ApiResult<()> {
    let Some(check) = check else { return Ok(()) };
    let durations = [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ];
    for (name, value) in durations {
        if value.is_some_and(|value| value != 0 && value < 1_000_000) {
            return Err(ApiError::bad_request(format!(
                "{name} in Healthcheck cannot be less than 1ms"
            )));
        }
    }
    if check.retries.is_some_and(|retries| retries < 0) {
        return Err(ApiError::bad_request(
            "Retries in Healthcheck cannot be negative",
        ));
    }
    Ok(())
}

impl Actor {
    /// Begins to probe a payload that runs. `fresh`: it has only just been started.
    pub(super) fn watch_health(&mut self, fresh: bool) {
        self.monitor = None;
        let Some(check) = Check::of(&self.record.config) else {
            self.record.state.health = None;
            return;
        };
        let health = self.record.state.health.get_or_insert(Health {
            status: HealthStatus::Starting,
            failing_streak: 0,
            log: Vec::new(),
        });
        if fresh {
            health.status = HealthStatus::Starting;
            health.failing_streak = 0;
        }
        let cancel = CancellationToken::new();
        tokio::spawn(watch(
            Arc::clone(&self.shared),
            self.record.id.clone(),
            self.run,
            check,
            cancel.clone(),
        ));
        self.monitor = Some(cancel.drop_guard());
    }

    /// What a probe of this run has found.
    pub(super) async fn probed(&mut self, result: ProbeResult) {
        let retries = self
            .record
            .config
            .healthcheck
            .as_ref()
            .and_then(|check| u32::try_from(check.retries?).ok())
            .filter(|retries| *retries > 0)
            .unwrap_or(RETRIES);
        let starting = Check::of(&self.record.config)
            .is_some_and(|check| check.is_starting(self.record.state.started_at, result.start));
        let Some(health) = &mut self.record.state.health else {
            return;
        };
        let before = health.status;
        if result.exit_code == 0 {
            health.failing_streak = 0;
            health.status = HealthStatus::Healthy;
        } else if !(starting && before == HealthStatus::Starting) {
            health.failing_streak += 1;
            if health.failing_streak >= retries {
                health.status = HealthStatus::Unhealthy;
            }
        }
        let now = health.status;
        health.log.push(result);
        let surplus = health.log.len().saturating_sub(KEPT);
        health.log.drain(..surplus);
        if now == before {
            self.show(false);
            return;
        }
        if let Err(error) = self.commit().await {
            tracing::error!(id = %self.record.id, %error, "health not recorded");
        }
        let action = format!("health_status: {}", now.as_str());
        self.shared.event(&self.record, &action, &[]);
    }
}

/// Probes until it is cancelled or the container has gone.
async fn watch(shared: Arc<Shared>, id: String, run: u64, check: Check, cancel: CancellationToken) {
    let find = || shared.index().by_id.get(&id).cloned();
    loop {
        let pause = match find() {
            Some(handle) => {
                let state = &handle.view().record.state;
                let unknown = state
                    .health
                    .as_ref()
                    .is_none_or(|health| health.status == HealthStatus::Starting);
                match unknown && check.is_starting(state.started_at, Timestamp::now()) {
                    true => check.start_interval,
                    false => check.interval,
                }
            }
            None => return,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return,
        }
        let Some(handle) = find() else { return };
        // A frozen container answers nothing and is not to blame.
        if handle.view().record.state.status != Status::Running {
            continue;
        }
        let result = tokio::select! {
            result = probe(&shared, &handle, &check) => result,
            () = cancel.cancelled() => return,
        };
        let _ = handle.commands.send(Command::Probed { run, result }).await;
    }
}

async fn probe(shared: &Arc<Shared>, handle: &Arc<Handle>, check: &Check) -> ProbeResult {
    let start = Timestamp::now();
    let (exit_code, output) = match run(shared, handle, check).await {
        Ok(found) => found,
        Err(error) => (-1, error.message),
    };
    ProbeResult {
        start,
        end: Timestamp::now(),
        exit_code,
        output,
    }
}

async fn run(
    shared: &Arc<Shared>,
    handle: &Arc<Handle>,
    check: &Check,
) -> ApiResult<(i64, String)> {
    let containers = Containers {
        shared: Arc::clone(shared),
    };
    let request = ExecRequest {
        cmd: Some(check.command.clone()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ExecRequest::default()
    };
    let id = containers.exec_create(handle, request)?;
    let exec = containers.exec_find(&id)?;
    containers.exec_claim(&exec)?;
    let mut output = Output::default();
    let ended = tokio::time::timeout(check.timeout, async {
        let stream = containers.exec_start(&exec, false).await?.stream;
        tokio::select! {
            () = output.read(stream) => exec.ended().await,
            () = exec.ended() => {}
        }
        Ok::<(), ApiError>(())
    })
    .await;
    match ended {
        Ok(outcome) => outcome?,
        Err(_) => {
            if let Some(task) = handle.view().task.clone() {
                let _ = task.kill(&id, super::signals::KILL).await;
            }
            let _ = tokio::time::timeout(DRAIN_LIMIT, output.rest()).await;
            let mut message = format!("Health check exceeded timeout ({})", shown(check.timeout));
            let printed = output.text();
            if !printed.is_empty() {
                message.push_str(": ");
                message.push_str(&printed);
            }
            return Ok((-1, message));
        }
    }
    let _ = tokio::time::timeout(DRAIN_LIMIT, output.rest()).await;
    let code = match exec.state() {
        ExecState::Exited { code, .. } => i64::from(code),
        _ => -1,
    };
    Ok((code, output.text()))
}

/// A length of time as Go prints it, near enough.
fn shown(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        let seconds = duration.as_secs();
        return match (seconds / 60, seconds % 60) {
            (0, seconds) => format!("{seconds}s"),
            (minutes, seconds) => format!("{minutes}m{seconds}s"),
        };
    }
    format!("{}ms", duration.as_millis())
}

/// What a probe prints, without the frames it comes in.
#[derive(Debug, Default)]
struct Output {
    stream: Option<UnixStream>,
    kept: Vec<u8>,
    frames: Frames,
    cut: bool,
}

impl Output {
    /// Reads to the end. May be given up in between and gone on with by [`Output::rest`].
    async fn read(&mut self, stream: Option<UnixStream>) {
        self.stream = stream;
        self.rest().await;
    }

    async fn rest(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            let Some(stream) = &mut self.stream else {
                return;
            };
            let got = match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => {
                    self.stream = None;
                    return;
                }
                Ok(got) => got,
            };
            let mut content = Vec::new();
            self.frames.strip(&buffer[..got], &mut content);
            let room = MAX_OUTPUT - self.kept.len();
            self.kept
                .extend_from_slice(&content[..content.len().min(room)]);
            self.cut |= content.len() > room;
        }
    }

    fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.kept).into_owned();
        if self.cut {
            text.push_str("...");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn config(test: &[&str]) -> ContainerConfig {
        ContainerConfig {
            healthcheck: Some(HealthConfig {
                test: Some(test.iter().map(|word| (*word).to_owned()).collect()),
                interval: Some(2_000_000_000),
                start_period: Some(1_000_000_000),
                ..HealthConfig::default()
            }),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn what_is_run() {
        let shell = Check::of(&config(&["CMD-SHELL", "true && x"])).unwrap();
        assert_eq!(shell.command, ["/bin/sh", "-c", "true && x"]);
        assert_eq!(shell.interval, Duration::from_secs(2));
        assert_eq!(shell.timeout, TIMEOUT);
        let plain = Check::of(&config(&["CMD", "a", "b"])).unwrap();
        assert_eq!(plain.command, ["a", "b"]);
        for none in [&["NONE"][..], &[], &["CMD"]] {
            assert!(Check::of(&config(none)).is_none());
        }
        let now = Timestamp::now();
        assert!(plain.is_starting(Some(now), now));
        let later = now.checked_add(Duration::from_secs(2)).unwrap();
        assert!(!plain.is_starting(Some(now), later));
    }

    #[test]
    fn what_is_refused() {
        let with = |change: fn(&mut HealthConfig)| {
            let mut given = config(&["CMD", "x"]).healthcheck.unwrap();
            change(&mut given);
            check(Some(&given))
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|given| given.interval = Some(5)).is_err());
        assert!(with(|given| given.timeout = Some(-1)).is_err());
        assert!(with(|given| given.retries = Some(-1)).is_err());
        assert!(with(|given| given.test = Some(vec!["WHAT".to_owned()])).is_ok());
    }

    #[tokio::test]
    async fn output_loses_its_frames_and_its_surplus() {
        let (mut there, here) = UnixStream::pair().unwrap();
        let writing = tokio::spawn(async move {
            for (stream, text) in [(1, "one ".to_owned()), (2, "x".repeat(9000))] {
                let length = u32::try_from(text.len()).unwrap();
                there.write_all(&[stream, 0, 0, 0]).await.unwrap();
                there.write_all(&length.to_be_bytes()).await.unwrap();
                there.write_all(text.as_bytes()).await.unwrap();
            }
        });
        let mut output = Output::default();
        output.read(Some(here)).await;
        writing.await.unwrap();
        let text = output.text();
        assert!(text.starts_with("one xxx") && text.ends_with("x..."));
        assert_eq!(text.len(), MAX_OUTPUT + 3);
    }
}
