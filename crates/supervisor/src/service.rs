//! The Task API v2: decodes requests, encodes answers and errors. What they mean is in
//! [`crate::task`].

use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_isolation::{ErrorKind, IsolationError, Resources, TerminalSize};
use bulkhead_task::options::{self, ExecSpec, TaskOptions};
use bulkhead_task::wire_error::to_ttrpc;
use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    Status as WireStatus, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim_async;
use containerd_shim_protos::ttrpc;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::process::TaskProcess;
use crate::stdio::Fifos;
use crate::task::{Creation, Status, Task};

/// containerd's own `type_url` of the process of an exec.
const OCI_PROCESS: &str = "opencontainers/runtime-spec/1/Process";

/// The service.
pub struct TaskService {
    task: Arc<Task>,
}

type Answer<T> = ttrpc::Result<T>;

impl TaskService {
    /// Serves this task.
    pub fn new(task: Arc<Task>) -> Self {
        Self { task }
    }

    /// Does what must not stop half way when the caller hangs up.
    async fn to_the_end<T, F>(&self, work: impl FnOnce(Arc<Task>) -> F) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = bulkhead_isolation::Result<T>> + Send + 'static,
    {
        let work = tokio::spawn(work(Arc::clone(&self.task)));
        let done = work.await.unwrap_or_else(|error| {
            Err(IsolationError::other("the operation was abandoned", error))
        });
        done.map_err(|error| to_ttrpc(&error))
    }
}

/// A point in time as protobuf has it.
pub fn timestamp(at: jiff::Timestamp) -> Timestamp {
    let mut timestamp = Timestamp::new();
    timestamp.seconds = at.as_second();
    timestamp.nanos = at.subsec_nanosecond();
    timestamp
}

fn any(type_url: &str, value: &impl Serialize) -> Answer<Any> {
    let value = serde_json::to_vec(value)
        .map_err(|error| to_ttrpc(&IsolationError::other("encode the answer", error)))?;
    let mut any = Any::new();
    any.type_url = type_url.to_owned();
    any.value = value;
    Ok(any)
}

fn decode<T: DeserializeOwned>(any: &Any, what: &str) -> Answer<T> {
    serde_json::from_slice(&any.value).map_err(|error| {
        to_ttrpc(&IsolationError::new(
            ErrorKind::InvalidArgument,
            format!("{what}: {error}"),
        ))
    })
}

fn refuse(kind: ErrorKind, message: &str) -> ttrpc::Error {
    to_ttrpc(&IsolationError::new(kind, message))
}

fn wire_status(status: Status) -> WireStatus {
    match status {
        Status::Created => WireStatus::CREATED,
        Status::Running => WireStatus::RUNNING,
        Status::Paused => WireStatus::PAUSED,
        Status::Stopped => WireStatus::STOPPED,
    }
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

#[async_trait]
impl shim_async::Task for TaskService {
    async fn create(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: CreateTaskRequest,
    ) -> Answer<CreateTaskResponse> {
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(refuse(
                ErrorKind::Unsupported,
                "checkpoints are not supported",
            ));
        }
        let options: Option<TaskOptions> = match request.options.as_ref() {
            Some(any) if any.type_url == options::TYPE_URL => Some(decode(any, "task options")?),
            // Another runtime's, from containerd's configuration.
            _ => None,
        };
        let creation = Creation {
            id: request.id,
            options,
            fifos: Fifos {
                stdin: request.stdin.into(),
                stdout: request.stdout.into(),
                stderr: request.stderr.into(),
            },
            mounts: request.rootfs,
        };
        let init = self
            .to_the_end(|task| async move { task.create(creation).await })
            .await?;
        let mut response = CreateTaskResponse::new();
        response.pid = init.map_or(0, |init| init.pid());
        Ok(response)
    }

    async fn start(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: StartRequest,
    ) -> Answer<StartResponse> {
        let process = self
            .to_the_end(|task| async move { task.start(&request.exec_id).await })
            .await?;
        let mut response = StartResponse::new();
        response.pid = process.pid();
        Ok(response)
    }

    async fn exec(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: ExecProcessRequest,
    ) -> Answer<Empty> {
        let fifos = Fifos {
            stdin: request.stdin.into(),
            stdout: request.stdout.into(),
            stderr: request.stderr.into(),
        };
        let (mut process, stdin): (oci_spec::runtime::Process, bool) = match request.spec.as_ref() {
            Some(any) if any.type_url == options::EXEC_TYPE_URL => {
                let spec: ExecSpec = decode(any, "exec specification")?;
                let process = serde_json::from_value(spec.process).map_err(|error| {
                    refuse(
                        ErrorKind::InvalidArgument,
                        &format!("exec process: {error}"),
                    )
                })?;
                (process, spec.stdin)
            }
            Some(any) if any.type_url.ends_with(OCI_PROCESS) => {
                (decode(any, "exec process")?, fifos.stdin())
            }
            _ => return Err(refuse(ErrorKind::InvalidArgument, "exec without a process")),
        };
        if request.terminal {
            process.set_terminal(Some(true));
        }
        self.to_the_end(|task| async move {
            task.exec(&request.exec_id, process, stdin, fifos)
                .await
                .map(|_| ())
        })
        .await?;
        Ok(Empty::new())
    }

    async fn delete(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: DeleteRequest,
    ) -> Answer<DeleteResponse> {
        let (pid, status) = self
            .to_the_end(|task| async move { task.delete(&request.exec_id).await })
            .await?;
        let mut response = DeleteResponse::new();
        response.pid = pid;
        response.exit_status = status.code;
        response.exited_at = Some(timestamp(status.at)).into();
        Ok(response)
    }

    async fn wait(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: WaitRequest,
    ) -> Answer<WaitResponse> {
        let process = self.task.process(&request.exec_id);
        let status = process.map_err(|error| to_ttrpc(&error))?.wait().await;
        let mut response = WaitResponse::new();
        response.exit_status = status.code;
        response.exited_at = Some(timestamp(status.at)).into();
        Ok(response)
    }

    async fn state(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: StateRequest,
    ) -> Answer<StateResponse> {
        let process: Arc<TaskProcess> = self
            .task
            .process(&request.exec_id)
            .map_err(|error| to_ttrpc(&error))?;
        let exec = !request.exec_id.is_empty();
        let mut response = StateResponse::new();
        response.id = self.task.id();
        response.bundle = text(self.task.bundle().path());
        response.pid = process.pid();
        response.status = wire_status(self.task.status(&process, exec).await).into();
        response.stdin = text(&process.fifos.stdin);
        response.stdout = text(&process.fifos.stdout);
        response.stderr = text(&process.fifos.stderr);
        response.terminal = process.hub.terminal();
        response.exec_id = request.exec_id;
        if let Some(status) = process.exited() {
            response.exit_status = status.code;
            response.exited_at = Some(timestamp(status.at)).into();
        }
        Ok(response)
    }

    async fn pids(&self, _: &ttrpc::r#async::TtrpcContext, _: PidsRequest) -> Answer<PidsResponse> {
        let listed = self
            .to_the_end(|task| async move { task.container()?.processes().await })
            .await?;
        let mut response = PidsResponse::new();
        for info in &listed {
            let mut process = ProcessInfo::new();
            process.pid = info.pid;
            process.info = Some(any(options::PROCESS_INFO_TYPE_URL, info)?).into();
            response.processes.push(process);
        }
        Ok(response)
    }

    async fn pause(&self, _: &ttrpc::r#async::TtrpcContext, _: PauseRequest) -> Answer<Empty> {
        self.to_the_end(|task| async move { task.set_paused(true).await })
            .await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &ttrpc::r#async::TtrpcContext, _: ResumeRequest) -> Answer<Empty> {
        self.to_the_end(|task| async move { task.set_paused(false).await })
            .await?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &ttrpc::r#async::TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let signal = i32::try_from(request.signal)
            .map_err(|_| refuse(ErrorKind::InvalidArgument, "invalid signal"))?;
        self.to_the_end(
            |task| async move { task.kill(&request.exec_id, signal, request.all).await },
        )
        .await?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: ResizePtyRequest,
    ) -> Answer<Empty> {
        let (Ok(width), Ok(height)) = (request.width.try_into(), request.height.try_into()) else {
            return Err(refuse(
                ErrorKind::InvalidArgument,
                "a terminal has at most 65535 columns and rows",
            ));
        };
        let size = TerminalSize { width, height };
        self.to_the_end(|task| async move { task.process(&request.exec_id)?.resize(size).await })
            .await?;
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: CloseIORequest,
    ) -> Answer<Empty> {
        if request.stdin {
            self.to_the_end(|task| async move {
                task.hub(&request.exec_id)?.close_stdin().await;
                Ok(())
            })
            .await?;
        }
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        request: UpdateTaskRequest,
    ) -> Answer<Empty> {
        let resources: Resources = match request.resources.as_ref() {
            Some(any) if any.type_url == options::NETWORK_CHANGED_TYPE_URL => {
                self.to_the_end(|task| async move { task.container()?.network_changed().await })
                    .await?;
                return Ok(Empty::new());
            }
            Some(any) if any.type_url == options::RESOURCES_TYPE_URL => decode(any, "resources")?,
            Some(any) => linux_resources(&decode(any, "resources")?),
            None => {
                return Err(refuse(
                    ErrorKind::InvalidArgument,
                    "update without resources",
                ));
            }
        };
        self.to_the_end(|task| async move { task.container()?.update(resources).await })
            .await?;
        Ok(Empty::new())
    }

    async fn stats(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        _: StatsRequest,
    ) -> Answer<StatsResponse> {
        let stats = self
            .to_the_end(|task| async move { task.container()?.stats().await })
            .await?;
        let mut response = StatsResponse::new();
        response.stats = Some(any(options::STATS_TYPE_URL, &stats)?).into();
        Ok(response)
    }

    async fn connect(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        _: ConnectRequest,
    ) -> Answer<ConnectResponse> {
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = self.task.process("").map_or(0, |init| init.pid());
        response.version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(response)
    }

    async fn shutdown(
        &self,
        _: &ttrpc::r#async::TtrpcContext,
        _: ShutdownRequest,
    ) -> Answer<Empty> {
        self.task.request_shutdown();
        Ok(Empty::new())
    }
}

/// containerd sends the limits of the OCI specification.
fn linux_resources(given: &oci_spec::runtime::LinuxResources) -> Resources {
    let (memory, cpu) = (given.memory().as_ref(), given.cpu().as_ref());
    Resources {
        memory: memory.and_then(|memory| memory.limit()),
        memory_swap: memory.and_then(|memory| memory.swap()),
        memory_reservation: memory.and_then(|memory| memory.reservation()),
        cpu_quota: cpu.and_then(|cpu| cpu.quota()),
        cpu_period: cpu.and_then(|cpu| cpu.period()),
        cpu_shares: cpu.and_then(|cpu| cpu.shares()),
        cpuset_cpus: cpu.and_then(|cpu| cpu.cpus().clone()),
        cpuset_mems: cpu.and_then(|cpu| cpu.mems().clone()),
        pids_limit: given.pids().as_ref().and_then(|pids| pids.limit().into()),
        blkio_weight: None,
    }
}
