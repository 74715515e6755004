//! A container that exists.

use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bulkhead_isolation::{
    Container, ContainerFiles, ErrorKind, IsolationError, Process, ProcessInfo, Resources, Result,
    Stats,
};
use oci_spec::runtime::{LinuxBuilder, Process as OciProcess, RootBuilder, Spec, SpecBuilder};
use rustix::process::Pid;

use crate::files::ProcessFiles;
use crate::isolation::{blocking, console_size, remove_files, unmount, wants_terminal};
use crate::layout::Layout;
use crate::process::{ContainerProcess, Launch, Streams};
use crate::procfs::Listing;
use crate::reaper::Reaper;
use crate::wire::{ExecOrder, Order};
use bulkhead_cgroup::Cgroup;

/// A container made by [`crate::ProcessIsolation`].
pub struct ProcessContainer {
    reaper: Arc<Reaper>,
    id: String,
    layout: Layout,
    spec: Spec,
    init: Arc<ContainerProcess>,
    cgroup: Cgroup,
    files: Arc<ProcessFiles>,
    execs: AtomicU64,
    paused: AtomicBool,
    deleted: tokio::sync::Mutex<bool>,
}

impl ProcessContainer {
    pub fn new(
        reaper: Arc<Reaper>,
        id: String,
        layout: Layout,
        spec: Spec,
        init: Arc<ContainerProcess>,
        cgroup: Cgroup,
        files: Arc<ProcessFiles>,
    ) -> Self {
        Self {
            reaper,
            id,
            layout,
            spec,
            init,
            cgroup,
            files,
            execs: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            deleted: tokio::sync::Mutex::new(false),
        }
    }

    fn refuse(&self, why: &str) -> IsolationError {
        IsolationError::new(
            ErrorKind::FailedPrecondition,
            format!("container {} is {why}", self.id),
        )
    }

    async fn must_run(&self) -> Result<()> {
        if self.init.exited() || !self.init.started().await {
            return Err(self.refuse("not running"));
        }
        Ok(())
    }

    /// The specification of an exec: the container's, reduced to what a further process
    /// inherits, with the process in place of its own.
    fn exec_spec(&self, process: OciProcess) -> Result<Spec> {
        let built = || {
            let own = self.spec.linux().as_ref();
            let mut linux = LinuxBuilder::default().build()?;
            linux
                .set_namespaces(own.and_then(|linux| linux.namespaces().clone()))
                .set_cgroups_path(own.and_then(|linux| linux.cgroups_path().clone()))
                .set_seccomp(own.and_then(|linux| linux.seccomp().clone()))
                .set_personality(own.and_then(|linux| linux.personality().clone()))
                .set_uid_mappings(own.and_then(|linux| linux.uid_mappings().clone()))
                .set_gid_mappings(own.and_then(|linux| linux.gid_mappings().clone()))
                .set_resources(None)
                .set_masked_paths(None)
                .set_readonly_paths(None);
            let root = RootBuilder::default().path("/").build()?;
            let mut spec = SpecBuilder::default()
                .version(self.spec.version().clone())
                .root(root)
                .process(process)
                .linux(linux)
                .build()?;
            spec.set_mounts(None)
                .set_hooks(None)
                .set_annotations(self.spec.annotations().clone());
            Ok(spec)
        };
        built().map_err(|error: oci_spec::OciSpecError| {
            IsolationError::other("derive the specification of an exec", error)
        })
    }
}

#[async_trait]
impl Container for ProcessContainer {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.init) as Arc<dyn Process>
    }

    async fn exec(
        &self,
        exec_id: &str,
        process: OciProcess,
        stdin: bool,
    ) -> Result<Arc<dyn Process>> {
        self.must_run().await?;
        if self.cgroup.frozen() {
            return Err(self.refuse("paused, unpause the container before exec"));
        }
        if process.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(IsolationError::new(
                ErrorKind::InvalidArgument,
                "no exec command specified",
            ));
        }
        let number = self.execs.fetch_add(1, Ordering::Relaxed);
        let directory = self.layout.exec(number);
        let failed = |error| IsolationError::other(format!("prepare exec {exec_id}"), error);
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).create(&directory).map_err(failed)?;
        let launched = async {
            let streams = if wants_terminal(Some(&process)) {
                Streams::terminal(&directory)
            } else {
                Streams::pipes(stdin)
            };
            let streams = streams.map_err(failed)?;
            let order = Order::Exec(ExecOrder {
                id: self.id.clone(),
                directory: directory.clone(),
                init_pid: self.init.number().as_raw_nonzero().get(),
                console_socket: streams.console_path(),
                spec: self.exec_spec(process.clone())?,
            });
            let launch = Launch {
                order,
                streams,
                stdin,
                size: console_size(&process),
                oom: None,
            };
            ContainerProcess::launch(&self.reaper, launch).await
        };
        let launched = launched.await;
        // The process waits in the container already; nothing reads these files again.
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::warn!(%error, directory = %directory.display(), "files of an exec are left");
        }
        Ok(launched? as Arc<dyn Process>)
    }

    async fn pause(&self) -> Result<()> {
        self.must_run().await?;
        if self.paused.swap(true, Ordering::SeqCst) {
            return Err(self.refuse("already paused"));
        }
        let cgroup = self.cgroup.clone();
        blocking(move || cgroup.freeze(true))
            .await
            .map_err(|error| {
                self.paused.store(false, Ordering::SeqCst);
                IsolationError::other(format!("pause container {}", self.id), error)
            })
    }

    async fn resume(&self) -> Result<()> {
        if !self.paused.swap(false, Ordering::SeqCst) {
            return Err(self.refuse("not paused"));
        }
        let cgroup = self.cgroup.clone();
        blocking(move || cgroup.freeze(false))
            .await
            .map_err(|error| {
                self.paused.store(true, Ordering::SeqCst);
                IsolationError::other(format!("resume container {}", self.id), error)
            })
    }

    async fn kill_all(&self, signal: i32) -> Result<()> {
        let reached = self.cgroup.signal_all(signal);
        if signal == libc::SIGKILL {
            self.cgroup.let_die();
        }
        match reached {
            Ok(0) => Err(IsolationError::new(
                ErrorKind::NotFound,
                format!("container {} has no processes", self.id),
            )),
            Ok(_) => Ok(()),
            Err(error) => Err(IsolationError::other(
                format!("send signal {signal} to container {}", self.id),
                error,
            )),
        }
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        self.must_run().await?;
        let pids = self.cgroup.pids().map_err(|error| {
            IsolationError::other(format!("list processes of container {}", self.id), error)
        })?;
        let listing = Listing::new();
        Ok(pids
            .into_iter()
            .filter_map(|pid| listing.read(pid))
            .collect())
    }

    async fn stats(&self) -> Result<Stats> {
        self.must_run().await?;
        Ok(self.cgroup.stats())
    }

    async fn update(&self, resources: Resources) -> Result<()> {
        self.cgroup.update(&resources)
    }

    async fn network_changed(&self) -> Result<()> {
        // The processes are in the namespace, and the files are those of the host.
        Ok(())
    }

    fn files(&self) -> Arc<dyn ContainerFiles> {
        Arc::clone(&self.files) as Arc<dyn ContainerFiles>
    }

    async fn delete(&self) -> Result<()> {
        let mut deleted = self.deleted.lock().await;
        if *deleted {
            return Ok(());
        }
        if !self.init.exited() && self.init.started().await {
            return Err(self.refuse("running"));
        }
        let (cgroup, layout) = (self.cgroup.clone(), self.layout.clone());
        let released = blocking(move || {
            cgroup.kill()?;
            cgroup.remove()?;
            unmount(&layout)?;
            remove_files(&layout)
        });
        released.await.map_err(|error| {
            IsolationError::other(format!("delete container {}", self.id), error)
        })?;
        *deleted = true;
        Ok(())
    }
}

impl std::fmt::Debug for ProcessContainer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pid: Pid = self.init.number();
        formatter
            .debug_struct("ProcessContainer")
            .field("id", &self.id)
            .field("pid", &pid)
            .finish_non_exhaustive()
    }
}
