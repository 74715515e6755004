//! The options of a task: what `CreateTaskRequest.options` carries, as JSON in an `Any`
//! with [`TYPE_URL`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use bulkhead_isolation::{InjectedFile, VmSettings};
use serde::{Deserialize, Serialize};

/// `type_url` of the `Any` whose `value` is a [`TaskOptions`] in JSON.
pub const TYPE_URL: &str = "bulkhead.v1.TaskOptions";

/// What separates a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationKind {
    /// Namespaces, cgroups, seccomp on the host's kernel.
    Process,
    /// Its own VM with its own kernel.
    Hyperv,
}

impl IsolationKind {
    /// The name in the API and on command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Hyperv => "hyperv",
        }
    }
}

/// An isolation that has no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid isolation '{0}': the valid ones are 'process', 'hyperv' and 'default'")]
pub struct UnknownIsolation(pub String);

impl std::str::FromStr for IsolationKind {
    type Err = UnknownIsolation;

    fn from_str(name: &str) -> Result<Self, UnknownIsolation> {
        match name {
            "process" => Ok(Self::Process),
            "hyperv" => Ok(Self::Hyperv),
            other => Err(UnknownIsolation(other.to_owned())),
        }
    }
}

/// Everything about a task that is not in its OCI specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOptions {
    /// Which isolation.
    pub isolation: IsolationKind,
    /// EROFS layer blobs, the lowest first.
    pub layers: Vec<PathBuf>,
    /// The container's own directory for its writable layer.
    pub writable: PathBuf,
    /// Generated files bound over the root.
    #[serde(default)]
    pub injected_files: Vec<InjectedFile>,
    /// Keep stdin open for attached clients (`OpenStdin`).
    #[serde(default)]
    pub open_stdin: bool,
    /// Close stdin when the first attached client has gone (`StdinOnce`).
    #[serde(default)]
    pub stdin_once: bool,
    /// Run a small init as PID 1 that forwards signals and reaps (Docker's `--init`).
    #[serde(default)]
    pub init: bool,
    /// Where the output is kept; `None` for the log driver `none`.
    #[serde(default)]
    pub log: Option<LogOptions>,
    /// For hyperv.
    #[serde(default)]
    pub vm: VmSettings,
    /// Show the files only: nothing is run, and the task has no process. It is released by
    /// Delete like any other.
    #[serde(default)]
    pub files_only: bool,
}

/// The json-file (and local) log of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// The file; rotated ones get `.1`, `.2`… appended.
    pub path: PathBuf,
    /// Rotate when it would get larger than this, bytes; `None` never.
    #[serde(default)]
    pub max_size: Option<u64>,
    /// How many files are kept, the current one included.
    #[serde(default = "one")]
    pub max_files: u32,
    /// What every entry says of the container.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

fn one() -> u32 {
    1
}

/// How an option of a bind mount begins that names a directory or file below its source, which
/// is looked up inside the source, whatever links are there.
pub const SUBPATH_OPTION: &str = "x-bulkhead.subpath=";

/// How an option of a bind mount begins that names the layers of an image, the lowest first,
/// as a list of paths in JSON: what they make up is mounted, read-only, in place of the source.
pub const IMAGE_OPTION: &str = "x-bulkhead.image=";

/// How an option of a bind mount begins that names a process: the source is what that process
/// has mounted at `/dev/shm`, in its own mount namespace.
pub const SHM_OF_OPTION: &str = "x-bulkhead.shm-of=";

/// The options of an exec: what `ExecProcessRequest.spec` carries beside the OCI process is
/// in an `Any` with this type: `value` is an [`ExecSpec`] in JSON.
pub const EXEC_TYPE_URL: &str = "bulkhead.v1.ExecSpec";

/// An exec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The OCI process (`oci_spec::runtime::Process` as JSON).
    pub process: serde_json::Value,
    /// Keep stdin open for the attached client; otherwise `/dev/null`.
    pub stdin: bool,
}

/// `type_url` of the `Any` in each `ProcessInfo.info` of `Pids`: a
/// [`bulkhead_isolation::ProcessInfo`] in JSON.
pub const PROCESS_INFO_TYPE_URL: &str = "bulkhead.v1.ProcessInfo";
/// `type_url` of the `Any` in `StatsResponse.stats`: a [`bulkhead_isolation::Stats`] in JSON.
pub const STATS_TYPE_URL: &str = "bulkhead.v1.Stats";
/// `type_url` of the `Any` in `UpdateTaskRequest.resources`: a
/// [`bulkhead_isolation::Resources`] in JSON.
pub const RESOURCES_TYPE_URL: &str = "bulkhead.v1.Resources";

/// `type_url` of the `Any` in `UpdateTaskRequest.resources` that stands for
/// [`bulkhead_isolation::Container::network_changed`]; its value is empty.
pub const NETWORK_CHANGED_TYPE_URL: &str = "bulkhead.v1.NetworkChanged";

/// What `containerd-shim-bulkhead-v2 probe` prints, as JSON on stdout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Whether process isolation works here, and if not why.
    pub process: Availability,
    /// Whether hyperv isolation works here.
    pub hyperv: Availability,
    /// The engine chosen (`kvm`, `qemu`), when there is one.
    pub vm_engine: Option<String>,
    /// How the engine runs CPUs (`kvm`, `tcg`).
    pub vm_accelerator: Option<String>,
    /// Why that engine and accelerator were chosen, a sentence.
    pub vm_reason: String,
    /// The guest kernel's release, when there is one.
    pub guest_kernel: Option<String>,
    /// What a VM takes beyond its payload's memory, bytes.
    pub vm_overhead: u64,
    /// cgroup version of the host: 1 or 2.
    pub cgroup_version: u8,
}

/// Whether something works on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Availability {
    /// Whether.
    pub available: bool,
    /// If not, why and what to do.
    pub reason: Option<String>,
}
