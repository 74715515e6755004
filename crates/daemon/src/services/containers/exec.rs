//! Processes that are added to a running container.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_isolation::TerminalSize;
use bulkhead_spec::ExecInput;
use bulkhead_task::attach::AttachRequest;
use bulkhead_task::options::ExecSpec;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::model::Status;
use super::{Containers, Handle, Shared};
use crate::error::{ApiError, ApiResult};
use crate::services::supervisor::Task;

/// How long an exec that has ended can be inspected.
const KEPT: Duration = Duration::from_secs(300);

/// The body of `POST /containers/{id}/exec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecRequest {
    /// `user[:group]`; empty for the container's.
    pub user: Option<String>,
    /// With every capability.
    pub privileged: Option<bool>,
    /// With a terminal.
    pub tty: Option<bool>,
    /// Size of the terminal: height, width.
    pub console_size: Option<Vec<u16>>,
    /// Whether stdin is connected.
    pub attach_stdin: Option<bool>,
    /// Whether stdout is.
    pub attach_stdout: Option<bool>,
    /// Whether stderr is.
    pub attach_stderr: Option<bool>,
    /// Keys that detach. Go does not look at the case of names; one SDK has this one so.
    #[serde(alias = "detachKeys")]
    pub detach_keys: Option<String>,
    /// Variables beside the container's.
    pub env: Option<Vec<String>>,
    /// Where to run; empty for the container's.
    pub working_dir: Option<String>,
    /// The command.
    pub cmd: Option<Vec<String>>,
}

impl ExecRequest {
    /// Whether it has a terminal.
    pub fn tty(&self) -> bool {
        self.tty.unwrap_or(false)
    }

    fn command_line(&self) -> String {
        self.cmd.clone().unwrap_or_default().join(" ")
    }
}

/// Where an exec is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecState {
    /// Not started.
    Created,
    /// Being started; can't be started again.
    Starting,
    /// Runs.
    Running {
        /// Its PID.
        pid: u32,
    },
    /// Ended, or did not start (126, 127).
    Exited {
        /// How.
        code: u32,
        /// Its PID when it had one.
        pid: u32,
    },
}

/// Of an exec that was not started before its container ended.
const ENDED_WITH_CONTAINER: ExecState = ExecState::Exited { code: 137, pid: 0 };

/// An exec.
#[derive(Debug)]
pub struct Exec {
    /// Its ID.
    pub id: String,
    /// What was asked for.
    pub request: ExecRequest,
    /// The container.
    pub container: Arc<Handle>,
    state: Mutex<Progress>,
    /// Becomes true with [`ExecState::Exited`].
    over: watch::Sender<bool>,
}

#[derive(Debug)]
struct Progress {
    state: ExecState,
    ended: Option<Instant>,
    /// A size that came before the process.
    size: Option<TerminalSize>,
}

impl Exec {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is now.
    pub fn state(&self) -> ExecState {
        self.lock().state.clone()
    }

    fn end(&self, code: u32, pid: u32) {
        let mut progress = self.lock();
        progress.state = ExecState::Exited { code, pid };
        progress.ended = Some(Instant::now());
        drop(progress);
        self.over.send_replace(true);
    }

    /// Waits until it has ended and its exit code is known.
    pub async fn ended(&self) {
        // The sender is in `self`: it can't be dropped meanwhile.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }
}

/// An exec that runs, and its streams.
#[derive(Debug)]
pub struct StartedExec {
    /// Its streams; `None` when it was started detached.
    pub stream: Option<UnixStream>,
}

impl Shared {
    pub(super) fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the execs of a container that ended: they ended with it.
    pub(super) fn forget_execs_of(&self, container: &str) {
        for exec in self.execs().values() {
            if exec.container.id == container {
                let mut progress = exec.lock();
                if let ExecState::Created = progress.state {
                    progress.state = ENDED_WITH_CONTAINER;
                }
                progress.ended.get_or_insert_with(Instant::now);
            }
        }
    }
}

impl Containers {
    /// Registers an exec in a running container and gives its ID.
    ///
    /// # Errors
    /// 409 when the container is paused or does not run, 400 for no command.
    pub fn exec_create(&self, container: &Arc<Handle>, request: ExecRequest) -> ApiResult<String> {
        running(container)?;
        if request.cmd.as_ref().is_none_or(Vec::is_empty) {
            return Err(ApiError::bad_request("No exec command specified"));
        }
        let view = container.view();
        // Says now what would be refused at the start.
        self.exec_process(&view.record, &request)?;
        let exec = Arc::new(Exec {
            id: super::create::new_id(),
            container: Arc::clone(container),
            state: Mutex::new(Progress {
                state: ExecState::Created,
                ended: None,
                size: None,
            }),
            request,
            over: watch::Sender::new(false),
        });
        let id = exec.id.clone();
        {
            let mut execs = self.shared.execs();
            execs.retain(|_, exec| exec.lock().ended.is_none_or(|ended| ended.elapsed() < KEPT));
            execs.insert(id.clone(), Arc::clone(&exec));
        }
        self.exec_event(
            &exec,
            &format!("exec_create: {}", exec.request.command_line()),
            &[],
        );
        Ok(id)
    }

    /// Finds an exec.
    ///
    /// # Errors
    /// 404 with Docker's words.
    pub fn exec_find(&self, id: &str) -> ApiResult<Arc<Exec>> {
        self.shared
            .execs()
            .get(id)
            // What was in a container goes with it.
            .filter(|exec| !exec.container.view().removed)
            .cloned()
            .ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
    }

    /// The IDs of a container's execs that run.
    pub fn execs_of(&self, container: &str) -> Vec<String> {
        let mut ids: Vec<String> = self
            .shared
            .execs()
            .values()
            .filter(|exec| exec.container.id == container)
            .filter(|exec| !matches!(exec.state(), ExecState::Exited { .. }))
            .map(|exec| exec.id.clone())
            .collect();
        ids.sort();
        ids
    }

    fn exec_event(&self, exec: &Exec, action: &str, more: &[(&str, String)]) {
        let mut attributes = vec![("execID", exec.id.clone())];
        attributes.extend(more.iter().cloned());
        self.shared
            .event(&exec.container.view().record, action, &attributes);
    }

    fn exec_process(
        &self,
        record: &super::Record,
        request: &ExecRequest,
    ) -> ApiResult<oci_spec::runtime::Process> {
        let console_size = match request.console_size.as_deref() {
            Some([height, width]) if *height > 0 && *width > 0 => {
                Some((u64::from(*height), u64::from(*width)))
            }
            _ => None,
        };
        // One that it was linked with may have gone.
        let config = super::links::with_variables(&self.shared, record)
            .unwrap_or_else(|_| record.config.clone());
        bulkhead_spec::exec_process(&ExecInput {
            isolation: record.isolation,
            hostname: record.hostname(),
            config: &config,
            host_config: &record.host_config,
            command: request.cmd.as_deref().unwrap_or_default(),
            env: request.env.as_deref().unwrap_or_default(),
            user: request.user.as_deref(),
            working_dir: request.working_dir.as_deref(),
            tty: request.tty(),
            privileged: request.privileged.unwrap_or(false),
            console_size,
            facts: &self.shared.facts,
        })
        .map_err(super::launch::spec_error)
    }

    /// Claims an exec for its one start.
    ///
    /// # Errors
    /// 409 when it was started before, or its container is not running.
    pub fn exec_claim(&self, exec: &Exec) -> ApiResult<()> {
        running(&exec.container)?;
        let mut progress = exec.lock();
        match progress.state {
            ExecState::Created => {
                progress.state = ExecState::Starting;
                Ok(())
            }
            // The end is on its way to where it is asked for above.
            ENDED_WITH_CONTAINER => Err(not_running(&exec.container)),
            ExecState::Exited { .. } => Err(ApiError::conflict(format!(
                "exec command {} has already run",
                exec.id
            ))),
            ExecState::Starting | ExecState::Running { .. } => Err(ApiError::conflict(format!(
                "exec command {} is already running",
                exec.id
            ))),
        }
    }

    /// Starts an exec that was claimed. Its exit is recorded whoever goes on listening.
    ///
    /// # Errors
    /// Why it did not start; its state then says 126, 127 or 128.
    pub async fn exec_start(&self, exec: &Arc<Exec>, detach: bool) -> ApiResult<StartedExec> {
        let outcome = self.exec_run(exec, detach).await;
        match outcome {
            Ok(started) => Ok(started),
            Err((code, error)) => {
                let error = exec.container.explain(error).await;
                exec.end(code, 0);
                Err(error)
            }
        }
    }

    async fn exec_run(
        &self,
        exec: &Arc<Exec>,
        detach: bool,
    ) -> Result<StartedExec, (u32, ApiError)> {
        let refuse = |error: ApiError| (126, error);
        let view = exec.container.view();
        let task = view.task.clone().ok_or_else(|| {
            refuse(ApiError::conflict(format!(
                "container {} is not running",
                exec.container.id
            )))
        })?;
        let request = &exec.request;
        let process = self.exec_process(&view.record, request).map_err(refuse)?;
        let process = serde_json::to_value(&process)
            .map_err(|error| refuse(ApiError::internal("encode process", &error)))?;
        let stdin = request.attach_stdin.unwrap_or(false) && !detach;
        let failed = |error: bulkhead_isolation::IsolationError| {
            let command = request
                .cmd
                .iter()
                .flatten()
                .next()
                .cloned()
                .unwrap_or_default();
            let (code, status, reason) = super::launch::command_failure(&command, &error);
            let code = if code == 128 { 126 } else { code };
            (
                code,
                ApiError::new(
                    status,
                    format!("OCI runtime exec failed: exec failed: {reason}"),
                ),
            )
        };
        task.exec(&exec.id, &ExecSpec { process, stdin }, request.tty())
            .await
            .map_err(failed)?;
        let stream = if detach {
            None
        } else {
            let attach = AttachRequest {
                exec_id: exec.id.clone(),
                stdin,
                stdout: request.attach_stdout.unwrap_or(false),
                stderr: request.attach_stderr.unwrap_or(false),
                files: false,
            };
            match task.attach(&attach).await {
                Ok((stream, _)) => Some(stream),
                Err(error) => {
                    forget(&task, &exec.id).await;
                    return Err(refuse(ApiError::internal("attach to exec", &error)));
                }
            }
        };
        let pid = match task.start(&exec.id).await {
            Ok(pid) => pid,
            Err(error) => {
                forget(&task, &exec.id).await;
                return Err(failed(error));
            }
        };
        let size = {
            let mut progress = exec.lock();
            progress.state = ExecState::Running { pid };
            progress.size.take()
        };
        if let Some(size) = size {
            let _ = task.resize(&exec.id, size.width, size.height).await;
        }
        self.exec_event(
            exec,
            &format!("exec_start: {}", request.command_line()),
            &[],
        );
        self.follow_exec(Arc::clone(exec), task, pid);
        Ok(StartedExec { stream })
    }

    fn follow_exec(&self, exec: Arc<Exec>, task: Arc<Task>, pid: u32) {
        let containers = self.clone();
        tokio::spawn(async move {
            let code = task.wait(&exec.id).await.unwrap_or(137);
            exec.end(code, pid);
            containers.exec_event(&exec, "exec_die", &[("exitCode", code.to_string())]);
            forget(&task, &exec.id).await;
        });
    }

    /// Sets the size of an exec's terminal; before its start the size is kept for it.
    ///
    /// # Errors
    /// 409 when it has ended.
    pub async fn exec_resize(&self, exec: &Exec, size: TerminalSize) -> ApiResult<()> {
        {
            let mut progress = exec.lock();
            match progress.state {
                ExecState::Created | ExecState::Starting => {
                    progress.size = Some(size);
                    return Ok(());
                }
                ExecState::Running { .. } => {}
                ExecState::Exited { .. } => {
                    return Err(ApiError::conflict(format!(
                        "exec {} is not running",
                        exec.id
                    )));
                }
            }
        }
        match exec.container.view().task.clone() {
            Some(task) => Ok(task.resize(&exec.id, size.width, size.height).await?),
            None => Err(ApiError::conflict(format!(
                "container {} is not running",
                exec.container.id
            ))),
        }
    }

    /// Ends an exec that was claimed and whose client went before it could start.
    pub fn exec_abandon(&self, exec: &Exec) {
        exec.end(126, 0);
    }

    /// Tells that a client detached from an exec.
    pub fn exec_detached(&self, exec: &Exec) {
        self.exec_event(exec, "exec_detach", &[]);
    }
}

async fn forget(task: &Task, exec_id: &str) {
    if let Err(error) = task.delete(exec_id).await {
        tracing::debug!(%exec_id, %error, "delete exec");
    }
}

fn running(container: &Handle) -> ApiResult<()> {
    match container.view().record.state.status {
        Status::Running => Ok(()),
        Status::Paused => Err(ApiError::conflict(format!(
            "container {} is paused, unpause the container before exec",
            container.id
        ))),
        Status::Restarting => Err(ApiError::conflict(format!(
            "container {} is restarting, wait until the container is running",
            container.id
        ))),
        _ => Err(not_running(container)),
    }
}

fn not_running(container: &Handle) -> ApiError {
    ApiError::conflict(format!("container {} is not running", container.id))
}
