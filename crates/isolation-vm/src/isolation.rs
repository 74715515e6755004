//! Making containers in VMs, and clearing up after those whose supervisor was killed.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_agent_protocol::{Create, LayerExtent, Nic, Resolver, Setup};
use bulkhead_isolation::{
    Container, ContainerFiles, CreateRequest, ErrorKind, Isolation, IsolationError, Result, Rootfs,
};
use bulkhead_machine::{Console, Disk, LayerFile, MAX_LAYERS, MachineConfig, Placement, choose};

use crate::container::{VmContainer, wanted};
use crate::files::VmFiles;
use crate::given::{GivenFiles, read_files};
use crate::group::MachineGroup;
use crate::guest_dir::GuestDir;
use crate::network::{RESOLVER, VmNetwork};
use crate::process::VmProcess;
use crate::scratch::ScratchDisk;
use crate::shares::SharePlan;
use crate::sizing::{self, Host, Size};
use crate::vm::{Deadlines, Vm, remove_directory};
use crate::{adapt, group, sweep, trial, worker_path};

/// Layer blobs are made of blocks of this size.
const BLOCK: u64 = 4096;

/// Longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// Makes containers that are virtual machines.
#[derive(Debug, Clone, Default)]
pub struct VmIsolation {
    worker: Option<PathBuf>,
    deadlines: Deadlines,
}

impl VmIsolation {
    /// With the worker binary that is beside our own executable, or in PATH.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this worker binary.
    pub fn with_worker(worker: PathBuf) -> Self {
        Self {
            worker: Some(worker),
            ..Self::default()
        }
    }

    /// With these deadlines instead of the default ones.
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }
}

/// What a machine is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To run a container.
    Run,
    /// To look at the files of one.
    Files,
}

/// What became of it.
enum Made {
    Container(Box<VmContainer>),
    Files(VmFiles),
}

impl VmIsolation {
    async fn make(&self, mut request: CreateRequest, purpose: Purpose) -> Result<Made> {
        let mut spec = std::mem::take(&mut request.spec);
        let shares = SharePlan::take(&mut spec)?;
        let plan = Plan::new(&request, &spec)?;
        let namespace = match purpose {
            Purpose::Run => adapt::network_namespace(&spec)?,
            // Files are looked at without a network.
            Purpose::Files => None,
        };
        let limits = group::limits(&spec);
        let spec = adapt::adapt(spec, plan.size.payload)?;
        let process = spec.process().as_ref().ok_or_else(|| {
            IsolationError::new(
                ErrorKind::InvalidArgument,
                "the specification has no process",
            )
        })?;
        let wanted = wanted(process, request.stdin);
        let hostname = hostname(&spec, &request.id);
        let worker = match &self.worker {
            Some(worker) => worker.clone(),
            None => worker_path::find()?,
        };
        let guest = GuestDir::find(request.vm.guest_dir.as_deref())
            .map_err(|error| IsolationError::new(ErrorKind::Unavailable, error.to_string()))?;
        let facts = trial::host_facts(request.vm.engine, &guest, &worker).await;
        let choice = choose(request.vm.engine, &facts)
            .map_err(|error| IsolationError::new(ErrorKind::Unavailable, error.to_string()))?;
        let (files, contents) = read_files(&request.injected_files).await?;

        // From here on there is something to release.
        let runtime_dir = make_runtime_dir(&request.bundle, &request.id)?;
        let scratch = match prepare_scratch(&plan.writable, &guest).await {
            Ok(scratch) => scratch,
            Err(error) => {
                release(&runtime_dir).await;
                return Err(error);
            }
        };
        let (mut network, taps) = match VmNetwork::prepare(namespace.as_deref()).await {
            Ok(prepared) => prepared,
            Err(error) => {
                scratch.discard();
                release(&runtime_dir).await;
                return Err(error.into());
            }
        };
        let spare = plan.size.balloon(plan.size.payload);
        let start = plan.size.memory - spare;
        let (memory_bytes, balloon_bytes) = match purpose {
            Purpose::Run => (plan.size.memory, spare),
            // Nobody enlarges it.
            Purpose::Files => (start, 0),
        };
        let group = MachineGroup::make(&spec, &request.id, &runtime_dir);
        let config = MachineConfig {
            id: request.id.clone(),
            engine: choice.engine,
            accelerator: choice.accelerator,
            kernel: guest.kernel(),
            kernel_hz: guest.kernel_hz(),
            initramfs: guest.initramfs(),
            cmdline_extra: if request.vm.debug {
                // The agent logs to the console.
                vec!["bulkhead.debug".to_owned()]
            } else {
                Vec::new()
            },
            memory_bytes,
            balloon_bytes,
            vcpus: plan.size.vcpus,
            placement: Placement {
                host_cpus: plan.size.host_cpus.clone(),
                control_groups: group.directories(),
                oom_score_adj: Some(group::oom_score(&spec)),
            },
            disks: vec![
                Disk::Layers {
                    files: plan.layers.clone(),
                },
                Disk::Scratch {
                    path: scratch.path.clone(),
                },
            ],
            nics: network.nics(),
            console: if request.vm.debug {
                Console::File {
                    path: request.bundle.join("console.log"),
                }
            } else {
                Console::Quiet
            },
            runtime_dir: runtime_dir.clone(),
        };
        let made = async {
            let mut shares = shares.serve(&request.id, &worker, &group).await?;
            let vm = Arc::new(Vm::boot(&worker, &config, taps, self.deadlines).await?);
            let made = async {
                // From here on the interfaces are the guest's.
                let nics = network.refresh().await?;
                let setup = setup(plan.extents(), hostname, nics, start)?;
                let setup = vm.call(setup).await?;
                tracing::debug!(?setup, "the guest is set up");
                let connected = shares.connect(&vm).await;
                vm.keep(shares).await;
                connected?;
                if purpose == Purpose::Files {
                    let files = VmFiles::owning(Arc::clone(&vm), request.id.clone(), spec);
                    return Ok(Made::Files(files));
                }
                resolve_names(&vm, &network).await?;
                let create = Create {
                    id: request.id.clone(),
                    spec: Box::new(spec),
                    stdin: request.stdin,
                    init: request.init,
                    files,
                };
                let (created, _stream) = vm.request_with(create, &contents).await?;
                let init =
                    VmProcess::attach(Arc::clone(&vm), String::new(), created.pid, wanted).await?;
                // It has started up as fast as the host can.
                group.limit(&limits);
                let container = VmContainer::new(
                    Arc::clone(&vm),
                    init,
                    plan.size,
                    request.id.clone(),
                    std::mem::take(&mut network),
                    group,
                    GivenFiles::new(request.injected_files, contents),
                );
                Ok(Made::Container(Box::new(container)))
            };
            match made.await {
                Ok(made) => Ok(made),
                Err(error) => {
                    vm.kill().await;
                    Err(error)
                }
            }
        };
        match made.await {
            Ok(made) => Ok(made),
            Err(error) => {
                network.release().await;
                scratch.discard();
                release(&runtime_dir).await;
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Isolation for VmIsolation {
    async fn create(&self, request: CreateRequest) -> Result<Arc<dyn Container>> {
        match self.make(request, Purpose::Run).await? {
            Made::Container(container) => Ok(Arc::from(container as Box<dyn Container>)),
            Made::Files(_) => Err(IsolationError::new(ErrorKind::Other, "no container")),
        }
    }

    async fn open_files(&self, request: CreateRequest) -> Result<Arc<dyn ContainerFiles>> {
        match self.make(request, Purpose::Files).await? {
            Made::Files(files) => Ok(Arc::new(files)),
            Made::Container(container) => Ok(container.files()),
        }
    }

    async fn sweep(&self, id: &str, bundle: &Path) -> Result<()> {
        let runtime_dir = sweep::runtime_dir(bundle);
        sweep::end_worker(&runtime_dir)
            .await
            .map_err(|error| IsolationError::other(format!("cannot end the VM of {id}"), error))?;
        remove_directory(&runtime_dir).await
    }
}

/// What is known of a machine before anything is made.
struct Plan {
    size: Size,
    layers: Vec<LayerFile>,
    writable: PathBuf,
}

impl Plan {
    fn new(request: &CreateRequest, spec: &oci_spec::runtime::Spec) -> Result<Self> {
        let size = sizing::size(spec, &request.vm, Host::here())?;
        let Rootfs::Layers { layers, writable } = &request.rootfs else {
            return Err(IsolationError::new(
                ErrorKind::Unsupported,
                "a VM cannot use a root filesystem that is mounted on the host: it needs the \
                 image's layers",
            ));
        };
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            let count = layers.len();
            return Err(IsolationError::new(
                ErrorKind::InvalidArgument,
                format!("a VM's image has 1 to {MAX_LAYERS} layers, this one {count}"),
            ));
        }
        let layers = layers
            .iter()
            .map(|path| layer_file(path))
            .collect::<Result<_>>()?;
        Ok(Self {
            size,
            layers,
            writable: writable.clone(),
        })
    }

    /// Where each layer is on the disk that they are put together to.
    fn extents(&self) -> Vec<LayerExtent> {
        let mut offset = 0;
        self.layers
            .iter()
            .map(|layer| {
                let extent = LayerExtent {
                    offset,
                    length: layer.bytes,
                };
                offset += layer.bytes;
                extent
            })
            .collect()
    }
}

fn layer_file(path: &Path) -> Result<LayerFile> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        IsolationError::other(format!("cannot read the layer {}", path.display()), error)
    })?;
    let bytes = metadata.len();
    if !metadata.is_file() || bytes == 0 || bytes % BLOCK != 0 {
        return Err(IsolationError::new(
            ErrorKind::Other,
            format!(
                "the layer {} is damaged: {bytes} bytes are not a whole number of blocks",
                path.display()
            ),
        ));
    }
    let path = std::path::absolute(path).map_err(|error| {
        IsolationError::other(format!("cannot find the layer {}", path.display()), error)
    })?;
    Ok(LayerFile { path, bytes })
}

fn hostname(spec: &oci_spec::runtime::Spec, id: &str) -> String {
    let name = spec.hostname().as_deref().filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| id.get(..12).unwrap_or(id));
    name[..name.floor_char_boundary(MAX_HOSTNAME)].to_owned()
}

/// The first request: what only the host knows.
fn setup(layers: Vec<LayerExtent>, hostname: String, nics: Vec<Nic>, memory: u64) -> Result<Setup> {
    use std::io::Read;
    let mut entropy = vec![0; 64];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut entropy))
        .map_err(|error| IsolationError::other("cannot read random bytes", error))?;
    let now = jiff::Timestamp::now();
    Ok(Setup {
        layers,
        hostname,
        seconds: now.as_second(),
        // Not negative after 1970.
        nanoseconds: u32::try_from(now.subsec_nanosecond()).unwrap_or(0),
        entropy,
        nics,
        memory,
    })
}

/// Has the guest ask us for names, where there is somebody who could answer.
async fn resolve_names(vm: &Vm, network: &VmNetwork) -> Result<()> {
    if network.nics().is_empty() {
        return Ok(());
    }
    let resolver = Resolver { address: RESOLVER };
    let ((), stream) = vm.request(resolver).await?;
    network.serve_names(stream);
    Ok(())
}

async fn prepare_scratch(writable: &Path, guest: &GuestDir) -> Result<ScratchDisk> {
    let writable = writable.to_owned();
    let template = guest.scratch_template();
    tokio::task::spawn_blocking(move || ScratchDisk::prepare(&writable, &template))
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|error| IsolationError::other("cannot make the VM's scratch disk", error))
}

fn make_runtime_dir(bundle: &Path, id: &str) -> Result<PathBuf> {
    let directory = sweep::runtime_dir(bundle);
    let made = std::fs::DirBuilder::new().mode(0o700).create(&directory);
    made.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => IsolationError::new(
            ErrorKind::AlreadyExists,
            format!("container {id} has a VM already"),
        ),
        _ => IsolationError::other(format!("cannot create {}", directory.display()), error),
    })?;
    Ok(directory)
}

async fn release(runtime_dir: &Path) {
    if let Err(error) = remove_directory(runtime_dir).await {
        tracing::warn!(%error, "files of a failed VM are left");
    }
}
