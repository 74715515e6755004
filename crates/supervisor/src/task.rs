//! The container that this supervisor owns, from Create to Delete.
//!
//! What changes its life (create, start, pause, delete) goes one at a time; everything
//! that only looks, waits or signals does not queue behind that.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError};

use bulkhead_isolation::{
    Container, ContainerFiles, CreateRequest, ErrorKind, ExitStatus, IsolationError, Result, Rootfs,
};
use bulkhead_task::bundle::Bundle;
use bulkhead_task::options::{IsolationKind, TaskOptions};
use containerd_shim_protos::types::mount::Mount;
use oci_spec::runtime::{Process as OciProcess, Spec};
use tokio::sync::{Mutex, Notify};

use crate::isolations;
use crate::mounts::RootMounts;
use crate::process::TaskProcess;
use crate::stdio::{Fifos, Hub};

/// The task.
pub struct Task {
    bundle: Bundle,
    /// Held by whatever changes the container's life. Taken before `state`.
    life: Mutex<()>,
    /// Never held across an await.
    state: SyncMutex<State>,
    ending: Notify,
}

#[derive(Default)]
struct State {
    id: String,
    container: Option<Arc<dyn Container>>,
    /// In place of a container, when only its files are wanted.
    files: Option<Arc<dyn ContainerFiles>>,
    init: Option<Arc<TaskProcess>>,
    execs: HashMap<String, Arc<TaskProcess>>,
    paused: bool,
    /// What was mounted for containerd; unmounted when it is dropped.
    root: Option<RootMounts>,
}

/// What Create is asked for.
pub struct Creation {
    pub id: String,
    pub options: Option<TaskOptions>,
    pub fifos: Fifos,
    /// containerd's root filesystem, when the options have no layers.
    pub mounts: Vec<Mount>,
}

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Task {
    /// A task that has not been created yet.
    pub fn new(bundle: Bundle) -> Self {
        Self {
            bundle,
            life: Mutex::new(()),
            state: SyncMutex::default(),
            ending: Notify::new(),
        }
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the container, and its init up to the payload.
    ///
    /// A task for files only has no process.
    pub async fn create(&self, creation: Creation) -> Result<Option<Arc<TaskProcess>>> {
        let _life = self.life.lock().await;
        if self.state().container.is_some() || self.state().files.is_some() {
            return Err(IsolationError::new(
                ErrorKind::AlreadyExists,
                format!("container {} exists already", creation.id),
            ));
        }
        let mut spec = self.spec()?;
        crate::binds::stage(&mut spec, &self.bundle)?;
        let terminal = has_terminal(spec.process().as_ref());
        let fifos = creation.fifos;
        let foreign = creation.options.is_none();
        let options = creation.options.unwrap_or_else(|| foreign_options(&fifos));
        let mut mounted = None;
        let rootfs = if foreign {
            let path = self.foreign_root(&spec, &creation.mounts);
            let root = RootMounts::mount(&creation.mounts, &path)
                .map_err(|error| IsolationError::other("mount the root", error))?;
            mounted = Some(root);
            Rootfs::Mounted(path)
        } else {
            Rootfs::Layers {
                layers: options.layers,
                writable: options.writable,
            }
        };
        let isolation = isolations::make(options.isolation)
            .map_err(|error| IsolationError::other("prepare the isolation", error))?;
        let request = CreateRequest {
            id: creation.id.clone(),
            bundle: self.bundle.path().to_owned(),
            spec,
            rootfs,
            injected_files: options.injected_files,
            stdin: options.open_stdin,
            init: options.init,
            vm: options.vm,
        };
        if options.files_only {
            let files = isolation.open_files(request).await?;
            let mut state = self.state();
            state.id = creation.id;
            state.files = Some(files);
            state.root = mounted;
            return Ok(None);
        }
        let container = isolation.create(request).await?;
        let process = container.init();
        let hub = Hub::start(
            process.take_stdio(),
            terminal,
            options.stdin_once,
            options.log.as_ref(),
        );
        let connected = fifos.connect(&hub);
        let init = TaskProcess::watch(process, hub, fifos, Some(self.bundle.exit_record()));
        {
            let mut state = self.state();
            state.id = creation.id;
            state.container = Some(container);
            state.root = mounted;
            state.init = Some(Arc::clone(&init));
        }
        connected.map_err(|error| IsolationError::other("open the named pipes", error))?;
        Ok(Some(init))
    }

    /// Where the root is of a container that is not our daemon's: what is to be mounted goes
    /// to the bundle, as containerd has it; else the specification says it.
    fn foreign_root(&self, spec: &Spec, mounts: &[Mount]) -> PathBuf {
        let given = spec.root().as_ref().map(|root| root.path().clone());
        match given {
            Some(path) if mounts.is_empty() => self.bundle.path().join(path),
            _ => self.bundle.path().join("rootfs"),
        }
    }

    fn spec(&self) -> Result<Spec> {
        let path = self.bundle.config();
        Spec::load(&path).map_err(|error| {
            IsolationError::new(
                ErrorKind::InvalidArgument,
                format!("load {}: {error}", path.display()),
            )
        })
    }

    /// Prepares another process.
    pub async fn exec(
        &self,
        exec_id: &str,
        process: OciProcess,
        stdin: bool,
        fifos: Fifos,
    ) -> Result<Arc<TaskProcess>> {
        let _life = self.life.lock().await;
        let container = self.container()?;
        if exec_id.is_empty() || self.state().execs.contains_key(exec_id) {
            return Err(IsolationError::new(
                ErrorKind::AlreadyExists,
                format!("exec {exec_id:?} exists already"),
            ));
        }
        let terminal = has_terminal(Some(&process));
        let process = container.exec(exec_id, process, stdin).await?;
        let hub = Hub::start(process.take_stdio(), terminal, true, None);
        let connected = fifos.connect(&hub);
        let exec = TaskProcess::watch(process, hub, fifos, None);
        self.state()
            .execs
            .insert(exec_id.to_owned(), Arc::clone(&exec));
        connected.map_err(|error| IsolationError::other("open the named pipes", error))?;
        Ok(exec)
    }

    /// The container.
    pub fn container(&self) -> Result<Arc<dyn Container>> {
        let state = self.state();
        state.container.clone().ok_or_else(|| {
            IsolationError::new(ErrorKind::NotFound, "the container has not been created")
        })
    }

    /// The container's files, whether it runs or not.
    pub fn files(&self) -> Result<Arc<dyn ContainerFiles>> {
        if let Some(files) = self.state().files.clone() {
            return Ok(files);
        }
        Ok(self.container()?.files())
    }

    /// Init for an empty ID, else an exec.
    pub fn process(&self, exec_id: &str) -> Result<Arc<TaskProcess>> {
        let state = self.state();
        let found = if exec_id.is_empty() {
            state.init.clone()
        } else {
            state.execs.get(exec_id).cloned()
        };
        found.ok_or_else(|| {
            let what = if exec_id.is_empty() {
                "the container has not been created".to_owned()
            } else {
                format!("no such exec: {exec_id}")
            };
            IsolationError::new(ErrorKind::NotFound, what)
        })
    }

    /// The streams of a process.
    pub fn hub(&self, exec_id: &str) -> Result<Arc<Hub>> {
        Ok(Arc::clone(&self.process(exec_id)?.hub))
    }

    /// The container's ID.
    pub fn id(&self) -> String {
        self.state().id.clone()
    }

    /// What a process is doing.
    pub async fn status(&self, process: &TaskProcess, exec: bool) -> Status {
        if process.exited().is_some() {
            Status::Stopped
        } else if !process.started().await {
            Status::Created
        } else if !exec && self.state().paused {
            Status::Paused
        } else {
            Status::Running
        }
    }

    /// Runs a payload.
    pub async fn start(&self, exec_id: &str) -> Result<Arc<TaskProcess>> {
        let process = self.process(exec_id)?;
        process.start().await?;
        Ok(process)
    }

    /// Freezes or continues the container.
    pub async fn set_paused(&self, paused: bool) -> Result<()> {
        let _life = self.life.lock().await;
        let container = self.container()?;
        if paused {
            container.pause().await?;
        } else {
            container.resume().await?;
        }
        self.state().paused = paused;
        Ok(())
    }

    /// Signals one process, or all of the container's.
    pub async fn kill(&self, exec_id: &str, signal: i32, all: bool) -> Result<()> {
        if all {
            self.container()?.kill_all(signal).await
        } else {
            self.process(exec_id)?.kill(signal).await
        }
    }

    /// Releases an exec that has exited or was never started, or the container.
    pub async fn delete(&self, exec_id: &str) -> Result<(u32, ExitStatus)> {
        let _life = self.life.lock().await;
        let files = self.state().files.take().filter(|_| exec_id.is_empty());
        if let Some(files) = files {
            files.close().await?;
            self.state().root = None;
            return Ok((0, never_ran()));
        }
        let process = self.process(exec_id)?;
        if process.exited().is_none() {
            if process.started().await {
                return Err(IsolationError::new(
                    ErrorKind::FailedPrecondition,
                    "the process is running: stop it before deleting it",
                ));
            }
            // Created and never started; gone by itself is as good.
            match process.kill(libc::SIGKILL).await {
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let status = process.wait().await;
        if exec_id.is_empty() {
            let container = self.container()?;
            container.delete().await?;
            self.state().root = None;
        } else {
            self.state().execs.remove(exec_id);
        }
        Ok((process.pid(), status))
    }

    /// Asks for the end of the supervisor; refused while a container is there.
    pub fn request_shutdown(&self) {
        self.ending.notify_one();
    }

    /// Waits for that.
    pub async fn shut_down(&self) {
        self.ending.notified().await;
    }

    /// Ends the container because the supervisor is told to end.
    pub async fn end(&self) {
        let only_files = self.state().files.is_some();
        if self.container().is_err() && !only_files {
            return;
        }
        if let Ok(init) = self.process("") {
            // It may be frozen, or gone.
            let _ = init.kill(libc::SIGKILL).await;
            init.wait().await;
        }
        if let Err(error) = self.delete("").await {
            tracing::error!(%error, "the container could not be deleted");
        }
    }
}

/// The exit of a task that had no process.
fn never_ran() -> ExitStatus {
    ExitStatus {
        code: 0,
        at: jiff::Timestamp::now(),
        oom_killed: false,
        failure: None,
    }
}

/// For a container that was not made by our daemon.
fn foreign_options(fifos: &Fifos) -> TaskOptions {
    TaskOptions {
        isolation: IsolationKind::Process,
        layers: Vec::new(),
        writable: PathBuf::new(),
        injected_files: Vec::new(),
        open_stdin: fifos.stdin(),
        stdin_once: false,
        init: false,
        log: None,
        vm: bulkhead_isolation::VmSettings::default(),
        files_only: false,
    }
}

fn has_terminal(process: Option<&OciProcess>) -> bool {
    process.and_then(OciProcess::terminal).unwrap_or(false)
}
