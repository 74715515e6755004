//! The client of one container's supervisor: starting it, the Task API, the attach socket.
//!
//! A [`Task`] knows nothing of Docker; it speaks of tasks, processes and exits. That the
//! supervisor is gone is noticed by a pidfd, so no wait hangs on a dead one.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bulkhead_isolation::{ErrorKind, ExitStatus, IsolationError, ProcessInfo, Resources, Stats};
use bulkhead_task::attach::{AttachReply, AttachRequest};
use bulkhead_task::bundle::{Bundle, attach_socket, task_socket};
use bulkhead_task::options::{self, ExecSpec, TaskOptions};
use bulkhead_task::populate::{CopyOutcome, PopulateOrder};
use bulkhead_task::{attach, exit_record, wire_error};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::context::{Context, with_duration, with_timeout};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// The supervisor's executable.
pub const BINARY: &str = "containerd-shim-bulkhead-v2";
/// How long the supervisor may take to come up. It does nothing but listen then.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long calls may take that only look or tell.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// Shorthand: errors keep the kind that the supervisor gave them.
pub type Result<T> = bulkhead_isolation::Result<T>;

/// Finds the supervisor's executable: beside our own one, else in `PATH`.
pub fn find_binary() -> Result<PathBuf> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent);
    // Test executables are in `deps/` below the others.
    let below = beside.and_then(Path::parent);
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(below)
        .map(Path::to_owned)
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(BINARY))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            IsolationError::new(
                ErrorKind::Unavailable,
                format!("{BINARY} not found: install it beside the daemon's executable or in PATH"),
            )
        })
}

/// A supervisor and its task.
pub struct Task {
    id: String,
    exec_root: PathBuf,
    bundle: Bundle,
    client: TaskClient,
    process: Option<AsyncFd<OwnedFd>>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Task {
    /// Starts a supervisor in a bundle that exists, and connects to it.
    ///
    /// # Errors
    /// That there is none, or what it printed.
    pub async fn launch(binary: &Path, exec_root: &Path, id: &str) -> Result<Self> {
        let bundle = Bundle::of(exec_root, id);
        let starting = tokio::process::Command::new(binary)
            .args(["-namespace", "bulkhead", "-id", id, "-address", "", "start"])
            .current_dir(bundle.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(START_LIMIT, starting)
            .await
            .map_err(|_| {
                IsolationError::new(
                    ErrorKind::Unavailable,
                    format!(
                        "supervisor did not start within {} s",
                        START_LIMIT.as_secs()
                    ),
                )
            })?
            .map_err(|error| {
                IsolationError::other(format_args!("start {}", binary.display()), error)
            })?;
        if !output.status.success() {
            return Err(IsolationError::other(
                "supervisor did not start",
                String::from_utf8_lossy(&output.stderr).trim(),
            ));
        }
        let address = String::from_utf8_lossy(&output.stdout);
        let connected = Self::connect(exec_root, id, address.trim()).await;
        if connected.is_err() {
            // It came up and can't be talked to: nobody else would end it.
            kill_process_of(&bundle, id);
        }
        connected
    }

    /// Connects to the supervisor of a container that an earlier daemon started.
    ///
    /// # Errors
    /// That nobody answers.
    pub async fn reconnect(exec_root: &Path, id: &str) -> Result<Self> {
        let socket = task_socket(exec_root, id);
        Self::connect(exec_root, id, &format!("unix://{}", socket.display())).await
    }

    async fn connect(exec_root: &Path, id: &str, address: &str) -> Result<Self> {
        let client = Client::connect(address).await.map_err(|error| {
            IsolationError::new(
                ErrorKind::Unavailable,
                format!("connect to supervisor at '{address}': {error}"),
            )
        })?;
        let mut task = Self {
            id: id.to_owned(),
            exec_root: exec_root.to_owned(),
            bundle: Bundle::of(exec_root, id),
            client: TaskClient::new(client),
            process: None,
        };
        let request = api::ConnectRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let answer = wire(task.client.connect(limited(), &request).await)?;
        task.process = watch_process(answer.shim_pid);
        Ok(task)
    }

    /// Where the task's files are.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Makes the container, up to and not including its payload. Gives init's PID.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Isolation::create`].
    pub async fn create(&self, options: &TaskOptions, terminal: bool) -> Result<u32> {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.path().to_string_lossy().into_owned(),
            terminal,
            options: any(options::TYPE_URL, options)?,
            ..Default::default()
        };
        let answer = self
            .or_lost(self.client.create(unlimited(), &request))
            .await?;
        Ok(answer.pid)
    }

    /// Runs init (`exec_id` empty) or an exec. Gives its PID.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Process::start`].
    pub async fn start(&self, exec_id: &str) -> Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let answer = self
            .or_lost(self.client.start(unlimited(), &request))
            .await?;
        Ok(answer.pid)
    }

    /// Prepares an exec.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Container::exec`].
    pub async fn exec(&self, exec_id: &str, spec: &ExecSpec, terminal: bool) -> Result<()> {
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            terminal,
            spec: any(options::EXEC_TYPE_URL, spec)?,
            ..Default::default()
        };
        self.or_lost(self.client.exec(unlimited(), &request))
            .await?;
        Ok(())
    }

    /// Waits for the exit of init. Always ends: a supervisor that is lost leaves a record,
    /// or the task counts as killed.
    pub async fn wait_init(&self) -> ExitStatus {
        let answer = self.wait("").await;
        if let Ok(Some(record)) = exit_record::read(&self.bundle.exit_record()) {
            return record;
        }
        match answer {
            Ok(code) => ExitStatus {
                code,
                at: jiff::Timestamp::now(),
                oom_killed: false,
                failure: None,
            },
            Err(error) => lost(format!("the container's supervisor was lost: {error}")),
        }
    }

    /// Waits for the exit of a process and gives its code.
    ///
    /// # Errors
    /// That the supervisor was lost.
    pub async fn wait(&self, exec_id: &str) -> Result<u32> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let answer = self
            .or_lost(self.client.wait(unlimited(), &request))
            .await?;
        Ok(answer.exit_status)
    }

    /// Sends a signal to init or an exec.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it has exited.
    pub async fn kill(&self, exec_id: &str, signal: u32) -> Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            ..Default::default()
        };
        self.or_lost(self.client.kill(limited(), &request)).await?;
        Ok(())
    }

    /// Sets the size of a terminal.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when it has none.
    pub async fn resize(&self, exec_id: &str, width: u16, height: u16) -> Result<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width: width.into(),
            height: height.into(),
            ..Default::default()
        };
        self.or_lost(self.client.resize_pty(limited(), &request))
            .await?;
        Ok(())
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Container::pause`].
    pub async fn pause(&self) -> Result<()> {
        let request = api::PauseRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.or_lost(self.client.pause(limited(), &request)).await?;
        Ok(())
    }

    /// Thaws it.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Container::resume`].
    pub async fn resume(&self) -> Result<()> {
        let request = api::ResumeRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.or_lost(self.client.resume(limited(), &request))
            .await?;
        Ok(())
    }

    /// The processes of the container.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Container::processes`].
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        let request = api::PidsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let answer = self.or_lost(self.client.pids(limited(), &request)).await?;
        answer
            .processes
            .iter()
            .map(|process| from_any(process.info.as_ref(), "process"))
            .collect()
    }

    /// What the container has used so far.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Container::stats`].
    pub async fn stats(&self) -> Result<Stats> {
        let request = api::StatsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let answer = self.or_lost(self.client.stats(limited(), &request)).await?;
        from_any(answer.stats.as_ref(), "stats")
    }

    /// Changes limits.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Container::update`].
    pub async fn update(&self, resources: &Resources) -> Result<()> {
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: any(options::RESOURCES_TYPE_URL, resources)?,
            ..Default::default()
        };
        self.or_lost(self.client.update(limited(), &request))
            .await?;
        Ok(())
    }

    /// Tells that interfaces in the network namespace, or the files about them, have changed.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Container::network_changed`].
    pub async fn network_changed(&self) -> Result<()> {
        let resources = Any {
            type_url: options::NETWORK_CHANGED_TYPE_URL.to_owned(),
            ..Any::default()
        };
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: MessageField::some(resources),
            ..Default::default()
        };
        self.or_lost(self.client.update(unlimited(), &request))
            .await?;
        Ok(())
    }

    /// Whether init was started and runs, by the supervisor's word; and its PID.
    ///
    /// # Errors
    /// That the supervisor does not answer or has no task.
    pub async fn state(&self) -> Result<(api::Status, u32)> {
        let request = api::StateRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let answer = self.or_lost(self.client.state(limited(), &request)).await?;
        Ok((answer.status.enum_value_or_default(), answer.pid))
    }

    /// Forgets a process that has exited; for init, releases the container.
    ///
    /// # Errors
    /// As [`bulkhead_isolation::Container::delete`].
    pub async fn delete(&self, exec_id: &str) -> Result<()> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.or_lost(self.client.delete(limited(), &request))
            .await?;
        Ok(())
    }

    /// Ends the supervisor and waits until it has gone.
    pub async fn shutdown(&self) {
        let request = api::ShutdownRequest {
            id: self.id.clone(),
            now: true,
            ..Default::default()
        };
        // It may go before its answer does.
        let _ = self
            .or_lost(self.client.shutdown(limited(), &request))
            .await;
        if tokio::time::timeout(CALL_LIMIT, self.gone()).await.is_err() {
            tracing::warn!(id = %self.id, "supervisor does not end; killing it");
            kill_process_of(&self.bundle, &self.id);
        }
    }

    /// Connects to the streams of init or an exec.
    ///
    /// # Errors
    /// What the supervisor says.
    pub async fn attach(
        &self,
        request: &AttachRequest,
    ) -> std::io::Result<(UnixStream, AttachReply)> {
        attach::connect(&attach_socket(&self.exec_root, &self.id), request).await
    }

    /// Begins a conversation about the container's files.
    ///
    /// # Errors
    /// What the supervisor says.
    pub async fn files(&self) -> std::io::Result<UnixStream> {
        let request = AttachRequest {
            files: true,
            ..AttachRequest::default()
        };
        self.attach(&request).await.map(|(stream, _)| stream)
    }

    /// Whether the supervisor has ended.
    pub fn is_gone(&self) -> bool {
        futures::FutureExt::now_or_never(self.gone()).is_some()
    }

    /// Ends when the supervisor has.
    async fn gone(&self) {
        match &self.process {
            // A pidfd is readable once its process has exited (pidfd_open(2)).
            Some(process) => {
                let _ = process.readable().await;
            }
            None => std::future::pending().await,
        }
    }

    /// The answer of a call, or that the supervisor died. The connection's own notice of
    /// that comes too late for a request that was just queued.
    async fn or_lost<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            answer = call => wire(answer),
            () = self.gone() => Err(IsolationError::new(
                ErrorKind::Unavailable,
                "the supervisor has ended",
            )),
        }
    }
}

/// The exit of a task whose supervisor did not live to record it.
pub fn lost(failure: String) -> ExitStatus {
    ExitStatus {
        code: 137,
        at: jiff::Timestamp::now(),
        oom_killed: false,
        failure: Some(failure),
    }
}

/// Releases what a supervisor that is gone left: `… delete`.
///
/// # Errors
/// That it could not be run or failed.
pub async fn sweep(binary: &Path, exec_root: &Path, id: &str) -> Result<()> {
    let bundle = Bundle::of(exec_root, id);
    let output = tokio::process::Command::new(binary)
        .args([
            "-namespace",
            "bulkhead",
            "-id",
            id,
            "-address",
            "",
            "-bundle",
        ])
        .arg(bundle.path())
        .arg("delete")
        .current_dir(bundle.path())
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| IsolationError::other("run supervisor's delete", error))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(IsolationError::other(
            "supervisor's delete",
            String::from_utf8_lossy(&output.stderr).trim(),
        ))
    }
}

/// Has the supervisor's executable fill volumes from an image; what became of each copy.
///
/// # Errors
/// What it printed.
pub async fn populate(binary: &Path, order: &PopulateOrder) -> Result<Vec<CopyOutcome>> {
    use tokio::io::AsyncWriteExt;
    let failed = |error| IsolationError::other("fill volumes from the image", error);
    let text = serde_json::to_vec(order).map_err(|error| failed(error.into()))?;
    std::fs::create_dir_all(&order.scratch).map_err(failed)?;
    let run = async {
        let mut child = tokio::process::Command::new(binary)
            .arg("populate")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&text).await?;
        }
        child.wait_with_output().await
    };
    let output = run.await;
    // What was mounted in it was so in a namespace that has ended.
    let _ = std::fs::remove_dir(&order.scratch);
    let output = output.map_err(failed)?;
    if !output.status.success() {
        return Err(IsolationError::other(
            "fill volumes from the image",
            String::from_utf8_lossy(&output.stderr).trim(),
        ));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.into()))
}

/// Kills the supervisor that left its PID in the bundle, if it still is that one.
fn kill_process_of(bundle: &Bundle, id: &str) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let pid = std::fs::read_to_string(bundle.supervisor_pid())
        .ok()
        .and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
    let Some(pid) = pid else { return };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    // Looked at after it was opened: the descriptor stays with this process.
    let command_line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
    let is_ours = command_line.is_ok_and(|line| {
        line.split(|byte| *byte == 0)
            .any(|word| word == id.as_bytes())
    });
    if is_ours && let Err(error) = pidfd_send_signal(&process, Signal::KILL) {
        tracing::error!(%id, %error, "supervisor not killed");
    }
}

fn watch_process(pid: u32) -> Option<AsyncFd<OwnedFd>> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK).ok()?;
    // SAFETY: an `OwnedFd` names one descriptor until it is dropped, after the registration.
    unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }.ok()
}

fn limited() -> Context {
    with_duration(CALL_LIMIT)
}

fn unlimited() -> Context {
    with_timeout(0)
}

fn wire<T>(answer: ttrpc::Result<T>) -> Result<T> {
    answer.map_err(|error| wire_error::from_ttrpc(&error))
}

fn any<T: Serialize>(type_url: &str, value: &T) -> Result<MessageField<Any>> {
    let value =
        serde_json::to_vec(value).map_err(|error| IsolationError::other(type_url, error))?;
    Ok(MessageField::some(Any {
        type_url: type_url.to_owned(),
        value,
        ..Default::default()
    }))
}

fn from_any<T: DeserializeOwned>(any: Option<&Any>, what: &str) -> Result<T> {
    let any = any.ok_or_else(|| {
        IsolationError::other("the supervisor's answer", format_args!("has no {what}"))
    })?;
    serde_json::from_slice(&any.value)
        .map_err(|error| IsolationError::other(format_args!("decode {what}"), error))
}
