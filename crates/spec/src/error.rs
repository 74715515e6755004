//! What can be wrong with a container's configuration. The messages are Docker's where Docker
//! has one, since clients show them; nobody reads them but people.

use std::path::PathBuf;

use oci_spec::OciSpecError;

/// How an [`Invalid`] configuration is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidKind {
    /// The request is wrong as it stands (HTTP 400).
    Parameter,
    /// It asks for something that this engine cannot do yet (HTTP 501).
    NotYet,
}

/// A configuration that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An isolation that has no such name.
    #[error(transparent)]
    Isolation(#[from] bulkhead_task::options::UnknownIsolation),
    /// Neither an entrypoint nor a command.
    #[error("no command specified")]
    NoCommand,
    /// A working directory that is not absolute.
    #[error("the working directory '{0}' is invalid, it needs to be an absolute path")]
    WorkingDirectory(String),
    /// An environment variable without a name.
    #[error("invalid environment variable: {0}")]
    Environment(String),
    /// An option that only means something where the host's kernel is shared.
    #[error(
        "{option} cannot be used with hyperv isolation: the container has its own kernel and \
         shares no namespace, device or cgroup with the host; use --isolation=process for it"
    )]
    OwnKernel {
        /// As on the command line, with its value.
        option: String,
    },
    /// What only a container in the host's user namespace can have.
    #[error("{0}")]
    UserNamespace(&'static str),
    /// A mode (PID, IPC, UTS…) with no such value.
    #[error("invalid {what} mode: {value}")]
    Mode {
        /// Which.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A capability that does not exist.
    #[error("invalid {option}: unknown capability: \"{name}\"")]
    Capability {
        /// `CapAdd` or `CapDrop`.
        option: &'static str,
        /// As given, with its prefix.
        name: String,
    },
    /// A security option without a value that needs one, or of an unknown name.
    #[error("invalid --security-opt {position}: \"{option}\"")]
    SecurityOption {
        /// 1: no such word; 2: no such name, or not with this value. Docker's numbers.
        position: u8,
        /// As given.
        option: String,
    },
    /// A seccomp profile that cannot be read.
    #[error("decoding seccomp profile failed: {0}")]
    SeccompProfile(String),
    /// A resource limit out of its range; Docker's sentence.
    #[error("{0}")]
    Limit(String),
    /// Two options that exclude each other; Docker's sentence.
    #[error("conflicting options: {0}")]
    Conflict(String),
    /// A ulimit that does not exist or makes no sense.
    #[error("{0}")]
    Ulimit(String),
    /// A sysctl that would change the host.
    #[error("sysctl \"{0}\" is not in a separate kernel namespace")]
    Sysctl(String),
    /// Options of a tmpfs that are not allowed.
    #[error("invalid tmpfs option [{0}]")]
    TmpfsOption(String),
    /// A mount that makes no sense.
    #[error("invalid mount config for type \"{kind}\": {reason}")]
    Mount {
        /// bind, volume, tmpfs…
        kind: String,
        /// Why.
        reason: String,
    },
    /// A `-v` that makes no sense.
    #[error("invalid volume specification: '{raw}'{reason}")]
    VolumeSpecification {
        /// As given.
        raw: String,
        /// Why, behind a colon; may be empty.
        reason: String,
    },
    /// Options of a `-v` that do not exist or contradict each other.
    #[error("invalid mode: {0}")]
    MountMode(String),
    /// A `--volumes-from` that makes no sense.
    #[error("{0}")]
    VolumesFrom(String),
    /// A bind propagation that does not exist.
    #[error("invalid propagation mode: {0}")]
    Propagation(String),
    /// Mounts that would have to leave a VM.
    #[error(
        "bind propagation \"{0}\" cannot be used with hyperv isolation: what is mounted in a VM is \
         mounted by a kernel of its own and does not appear on the host; use rslave, slave, \
         rprivate or private, or --isolation=process"
    )]
    PropagationToHost(String),
    /// Two mounts on one path.
    #[error("Duplicate mount point: {0}")]
    DuplicateMount(String),
    /// A device rule or mapping that makes no sense.
    #[error("{0}")]
    Device(String),
    /// An entry of the hosts file that makes no sense; Docker's sentence.
    #[error("{0}")]
    ExtraHost(String),
    /// A restart policy that makes no sense.
    #[error("invalid restart policy: {0}")]
    RestartPolicy(String),
    /// A runtime that is not ours.
    #[error("unknown or invalid runtime name: {0}")]
    Runtime(String),
    /// A device driver that nobody provides.
    #[error("could not select device driver \"{driver}\" with capabilities: {capabilities}")]
    DeviceDriver {
        /// Its name.
        driver: String,
        /// As asked, in Go's notation.
        capabilities: String,
    },
    /// A storage option.
    #[error("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")]
    StorageOption,
    /// Something that exists in Docker and does not here yet.
    #[error("{0} is not available in this version of bulkhead yet")]
    NotYet(String),
}

impl Invalid {
    /// How to answer it.
    pub fn kind(&self) -> InvalidKind {
        match self {
            Self::NotYet(_) => InvalidKind::NotYet,
            _ => InvalidKind::Parameter,
        }
    }
}

/// Why no specification could be made.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The configuration is refused.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A device of the host could not be examined.
    #[error("error gathering device information while adding custom device \"{path}\"")]
    Device {
        /// Its path on the host.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A part of the specification could not be put together.
    #[error("specification could not be assembled")]
    Assemble(#[from] OciSpecError),
}
