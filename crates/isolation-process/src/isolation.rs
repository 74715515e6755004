//! Making containers, and clearing up after those whose supervisor was killed.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_isolation::{
    Container, ContainerFiles, CreateRequest, ErrorKind, Isolation, IsolationError, Result, Rootfs,
    TerminalSize,
};
use oci_spec::runtime::{Process as OciProcess, Spec};

use crate::container::ProcessContainer;
use crate::files::{self, ProcessFiles};
use crate::layout::Layout;
use crate::process::{ContainerProcess, Launch, OomWatch, Streams};
use crate::reaper::Reaper;
use crate::wire::{CreateOrder, MountOrder, Order, RootfsOrder};
use bulkhead_cgroup::{self as cgroup, Cgroup};

/// Makes containers out of this kernel's namespaces and control groups.
///
/// The calling process should have a mount namespace of its own that receives mounts from
/// the host and sends none: root filesystems are mounted in it.
#[derive(Debug, Clone)]
pub struct ProcessIsolation {
    reaper: Arc<Reaper>,
}

/// The version of control groups that holds this system's resource controllers, 1 or 2.
pub fn cgroup_version() -> u8 {
    if cgroup::host_is_unified() { 2 } else { 1 }
}

impl ProcessIsolation {
    /// Containers whose processes are reaped by `reaper`.
    pub fn new(reaper: Arc<Reaper>) -> Self {
        Self { reaper }
    }

    async fn launch(&self, request: &CreateRequest, spec: &Spec) -> Result<ProcessContainer> {
        let layout = Layout::new(&request.bundle);
        let process = spec.process().as_ref();
        let terminal = wants_terminal(process);
        let size = process.and_then(console_size);
        let name = cgroup_name(spec, &request.id);
        let streams = if terminal {
            Streams::terminal(&layout.runtime())
        } else {
            Streams::pipes(request.stdin)
        };
        let streams =
            streams.map_err(|error| IsolationError::other("create standard streams", error))?;
        std::fs::write(layout.cgroup(), name.as_os_str().as_encoded_bytes())
            .map_err(|error| IsolationError::other("note the control group", error))?;
        let order = Order::Create(CreateOrder {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: match &request.rootfs {
                Rootfs::Layers { layers, writable } => RootfsOrder::Layers {
                    layers: layers.clone(),
                    writable: writable.clone(),
                },
                Rootfs::Mounted(path) | Rootfs::Stacked { root: path, .. } => {
                    RootfsOrder::Mounted(path.clone())
                }
            },
            injected_files: request.injected_files.clone(),
            init: request
                .init
                .then(std::env::current_exe)
                .transpose()
                .map_err(|error| IsolationError::other("find our own executable", error))?,
            console_socket: streams.console_path(),
            spec: spec.clone(),
        });
        let oom = Arc::new(OomWatch::new());
        let launch = Launch {
            order,
            streams,
            stdin: request.stdin,
            size,
            oom: Some(Arc::clone(&oom)),
        };
        let init = ContainerProcess::launch(&self.reaper, launch).await?;
        let cgroup = Cgroup::find(&name)
            .map_err(|error| IsolationError::other("find the control group", error))?;
        if spares_from_oom(spec) {
            // The runtime leaves it on.
            cgroup.disable_oom_killer()?;
        }
        // Set once, here.
        let _ = oom.set(cgroup.clone());
        let files = ProcessFiles::new(Arc::clone(&self.reaper), request, spec);
        Ok(ProcessContainer::new(
            Arc::clone(&self.reaper),
            request.id.clone(),
            layout,
            spec.clone(),
            init,
            cgroup,
            Arc::new(files),
        ))
    }

    /// Makes our directory in the bundle; it says whether the container exists.
    fn make_runtime(layout: &Layout, id: &str) -> Result<()> {
        let mut directory = std::fs::DirBuilder::new();
        directory.mode(0o700);
        directory
            .create(layout.runtime())
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => IsolationError::new(
                    ErrorKind::AlreadyExists,
                    format!("container {id} exists already"),
                ),
                _ => IsolationError::other(format!("create {}", layout.runtime().display()), error),
            })
    }
}

#[async_trait]
impl Isolation for ProcessIsolation {
    async fn create(&self, mut request: CreateRequest) -> Result<Arc<dyn Container>> {
        let layout = Layout::new(&request.bundle);
        let mut spec = std::mem::take(&mut request.spec);
        complete(&mut spec, &request.id)?;
        Self::make_runtime(&layout, &request.id)?;
        match self.launch(&request, &spec).await {
            Ok(container) => Ok(Arc::new(container)),
            Err(error) => {
                // The helper has unmounted what it had mounted. libcontainer tries to remove
                // the group, but gives up when a process in it is not quite dead yet.
                let name = cgroup_name(&spec, &request.id);
                let cleaned = blocking(move || {
                    let cgroup = Cgroup::find(&name)?;
                    cgroup.kill()?;
                    cgroup.remove()?;
                    remove_files(&layout)
                });
                let cleaned = cleaned.await;
                if let Err(error) = cleaned {
                    tracing::warn!(%error, "something of a failed container is left");
                }
                Err(error)
            }
        }
    }

    async fn open_files(&self, request: CreateRequest) -> Result<Arc<dyn ContainerFiles>> {
        let layout = Layout::new(&request.bundle);
        let files = ProcessFiles::new(Arc::clone(&self.reaper), &request, &request.spec);
        let Rootfs::Layers { layers, writable } = request.rootfs else {
            return Ok(Arc::new(files));
        };
        Self::make_runtime(&layout, &request.id)?;
        let order = Order::Mount(MountOrder {
            bundle: request.bundle,
            layers,
            writable,
            mappings: crate::helper::mappings(&request.spec),
        });
        let files = files.owning(layout);
        match files::carry_out(&self.reaper, &order).await {
            Ok(()) => Ok(Arc::new(files)),
            Err(error) => {
                if let Err(error) = files.close().await {
                    tracing::warn!(%error, "something of a container's files is left");
                }
                Err(error)
            }
        }
    }

    async fn sweep(&self, id: &str, bundle: &Path) -> Result<()> {
        let layout = Layout::new(bundle);
        let name = match std::fs::read_to_string(layout.cgroup()) {
            Ok(name) => PathBuf::from(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => default_cgroup(id),
            Err(error) => return Err(IsolationError::other("read the control group", error)),
        };
        let swept = blocking(move || {
            let cgroup = Cgroup::find(&name)?;
            cgroup.kill()?;
            cgroup.remove()?;
            // The mounts were in the supervisor's namespace, which ended with the last
            // process that was in it, unless a caller without one of its own made them.
            unmount(&layout)?;
            remove_files(&layout)
        });
        swept
            .await
            .map_err(|error| IsolationError::other(format!("clean up container {id}"), error))
    }
}

/// Runs what blocks beside the runtime.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Fills in what this isolation relies on, and refuses what it cannot honour.
fn complete(spec: &mut Spec, id: &str) -> Result<()> {
    let invalid = |what: &str| IsolationError::new(ErrorKind::InvalidArgument, what);
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| invalid("the specification has no process"))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(invalid("no command specified"));
    }
    let name = cgroup_name(spec, id);
    let linux = spec.linux_mut().as_mut();
    let linux = linux.ok_or_else(|| invalid("the specification has no linux section"))?;
    linux.set_cgroups_path(Some(name));
    Ok(())
}

/// `--oom-kill-disable`.
fn spares_from_oom(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    memory.and_then(|memory| memory.disable_oom_killer()) == Some(true)
}

fn cgroup_name(spec: &Spec, id: &str) -> PathBuf {
    let given = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone());
    match given {
        Some(path) if path.is_absolute() => path,
        Some(path) if !path.as_os_str().is_empty() => Path::new("/").join(path),
        _ => default_cgroup(id),
    }
}

fn default_cgroup(id: &str) -> PathBuf {
    Path::new("/bulkhead").join(id)
}

/// Whether the process is to have a terminal.
pub fn wants_terminal(process: Option<&OciProcess>) -> bool {
    process.and_then(OciProcess::terminal).unwrap_or(false)
}

/// The size that its terminal is to have at first.
pub fn console_size(process: &OciProcess) -> Option<TerminalSize> {
    let size = process.console_size()?;
    let width = u16::try_from(size.width()).ok()?;
    let height = u16::try_from(size.height()).ok()?;
    (width > 0 && height > 0).then_some(TerminalSize { width, height })
}

/// Unmounts the root filesystem, where it is mounted by us.
pub fn unmount(layout: &Layout) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    if !owns_root(layout) {
        return Ok(());
    }
    match rustix::mount::unmount(layout.rootfs(), UnmountFlags::DETACH) {
        // Not a mount point, or not there.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the root in the bundle was made of layers, by us; another is its maker's.
fn owns_root(layout: &Layout) -> bool {
    layout.layers().exists()
}

/// Removes what is left of a container in its bundle once nothing is mounted there.
pub fn remove_files(layout: &Layout) -> io::Result<()> {
    let missing_is_fine = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    if owns_root(layout) {
        // Only ever an empty mount point: anything more is not ours to delete.
        missing_is_fine(std::fs::remove_dir(layout.rootfs()))?;
    }
    missing_is_fine(std::fs::remove_dir_all(layout.runtime()))
}
