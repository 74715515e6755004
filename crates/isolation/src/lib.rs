//! The seam between the supervisor and what separates a container from the host.
//!
//! An [`Isolation`] makes [`Container`]s; a container has an init [`Process`] and may
//! get more by exec. The supervisor implements the Task API once over these three
//! traits. This crate knows no kernel interface, no hypervisor and no wire format;
//! its plain data types serialise because the hyperv isolation sends them to its guest.

mod cpu_list;
pub mod dev;
mod error;
mod model;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

pub use cpu_list::parse_cpu_list;
pub use error::{ErrorKind, IsolationError, Result};
pub use model::{
    BlockIo, CpuStats, ExitStatus, InjectedFile, MemoryStats, ProcessInfo, Resources, Stats,
    TerminalSize, VmEngine, VmSettings,
};

/// A stream of bytes that a process wrote.
pub type ByteReader = Pin<Box<dyn AsyncRead + Send>>;
/// A stream of bytes towards a process; shutting it down closes the process's stdin.
pub type ByteWriter = Pin<Box<dyn AsyncWrite + Send>>;

/// The supervisor's ends of a process's standard streams. With a terminal, `stderr` is
/// `None` and `stdout` carries what the terminal shows.
#[derive(Default)]
pub struct Stdio {
    /// Where the process's stdin is fed from; `None` when it was created without one.
    pub stdin: Option<ByteWriter>,
    /// What the process writes to stdout, or to its terminal.
    pub stdout: Option<ByteReader>,
    /// What the process writes to stderr.
    pub stderr: Option<ByteReader>,
}

/// Where a container's root filesystem comes from.
#[derive(Debug, Clone)]
pub enum Rootfs {
    /// EROFS layer blobs, the lowest first, under a writable layer.
    Layers {
        /// Layer blobs, the lowest first; each is an EROFS image.
        layers: Vec<PathBuf>,
        /// A directory that belongs to this container alone and outlives its runs. Process
        /// isolation keeps `upper` and `work` there, hyperv a `scratch.img`.
        writable: PathBuf,
    },
    /// A directory that somebody has mounted already (containerd).
    Mounted(PathBuf),
    /// The same, where it is known what it was made of (the guest agent).
    Stacked {
        /// The mounted root.
        root: PathBuf,
        /// The layers' directories, the lowest first, all in one directory.
        layers: Vec<PathBuf>,
        /// The writable layer's.
        upper: PathBuf,
    },
}

/// Annotation of a specification with the names, separated by commas, of groups that its
/// processes are to be in (Docker's `--group-add`), looked up in the container's own
/// `/etc/group`. Groups that were given by number are in `process.user.additionalGids`.
pub const GROUP_ADD_ANNOTATION: &str = "org.bulkhead.group-add";

/// Character devices that every Linux kernel makes by itself: path, major and minor number
/// (`Documentation/admin-guide/devices.txt`). A VM's own kernel has them as the host's has, so
/// a container in a VM can be given them by name.
pub const KERNEL_DEVICES: [(&str, u32, u32); 8] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/fuse", 10, 229),
    ("/dev/net/tun", 10, 200),
];

/// All that is needed to make a container.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// The container's ID: 64 hexadecimal digits from the daemon; at most 128 of
    /// `[A-Za-z0-9_.-]` from others.
    pub id: String,
    /// A directory for the life of this task; goes away with it.
    pub bundle: PathBuf,
    /// The OCI specification. `root.path` is filled in by the isolation.
    /// `process.user.username`, when set, is Docker's `user[:group]` (names or numbers)
    /// and is resolved in the container's own `/etc/passwd` and `/etc/group`; it then
    /// wins over the numeric fields. HOME is set from it when `process.env` has none.
    /// Groups by name are in [`GROUP_ADD_ANNOTATION`].
    pub spec: oci_spec::runtime::Spec,
    /// The root filesystem.
    pub rootfs: Rootfs,
    /// Small generated files (`/etc/hosts`…) bound over the root filesystem, writable.
    pub injected_files: Vec<InjectedFile>,
    /// Whether stdin is kept open for writers; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Whether a small init of ours runs as PID 1, forwards signals and reaps (Docker's
    /// `--init`); the payload is then its child.
    pub init: bool,
    /// What the hyperv isolation needs to know; ignored by process isolation.
    pub vm: VmSettings,
}

/// Makes containers of one kind.
#[async_trait]
pub trait Isolation: Send + Sync + 'static {
    /// Prepares a container up to, and not including, its payload's exec. On an error
    /// nothing is left behind.
    ///
    /// # Errors
    /// [`ErrorKind::CommandNotFound`] and [`ErrorKind::CommandNotExecutable`] for the
    /// payload, [`ErrorKind::InvalidArgument`] for a specification that cannot be honoured,
    /// [`ErrorKind::Unavailable`] where the host lacks what is needed.
    async fn create(&self, request: CreateRequest) -> Result<Arc<dyn Container>>;

    /// Shows the files of a container that does not run, without running anything in it.
    /// The request is the one that would create it.
    ///
    /// # Errors
    /// As [`Isolation::create`]; nothing is left behind then.
    async fn open_files(&self, request: CreateRequest) -> Result<Arc<dyn ContainerFiles>>;

    /// Releases what a container left whose supervisor was killed. Called with a bundle
    /// whose supervisor is known to be gone; succeeds when there is nothing to do.
    ///
    /// # Errors
    /// [`ErrorKind::Other`] when something is left that could not be released.
    async fn sweep(&self, id: &str, bundle: &std::path::Path) -> Result<()>;
}

/// A container that exists, from [`Isolation::create`] to [`Container::delete`].
#[async_trait]
pub trait Container: Send + Sync {
    /// The process that the container is about.
    fn init(&self) -> Arc<dyn Process>;

    /// Prepares another process in the running container; it runs from
    /// [`Process::start`] on. `username` in `process.user` is resolved as for create.
    ///
    /// # Errors
    /// As [`Isolation::create`]; [`ErrorKind::FailedPrecondition`] when not running.
    async fn exec(
        &self,
        exec_id: &str,
        process: oci_spec::runtime::Process,
        stdin: bool,
    ) -> Result<Arc<dyn Process>>;

    /// Freezes every process of the container.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when not running.
    async fn pause(&self) -> Result<()>;

    /// Undoes [`Container::pause`].
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when not paused.
    async fn resume(&self) -> Result<()>;

    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when none is left.
    async fn kill_all(&self, signal: i32) -> Result<()>;

    /// The processes of the container, numbered as its own kernel numbers them outside
    /// any PID namespace (the host's PIDs, or the guest's).
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when not running.
    async fn processes(&self) -> Result<Vec<ProcessInfo>>;

    /// What the container has used so far.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when not running.
    async fn stats(&self) -> Result<Stats>;

    /// Changes the limits of the running container; a `None` field stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when a limit cannot be honoured; none is changed then.
    async fn update(&self, resources: Resources) -> Result<()>;

    /// Takes over what has changed in the container's network namespace since it was made,
    /// or since the last call: interfaces that came or went, and the injected files that
    /// speak of them. To be called when an interface is complete (address, routes, up), or
    /// gone. Nothing to do for a container that is in that namespace itself.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when not running, or when it can take no further
    /// interface; what was there before goes on working.
    async fn network_changed(&self) -> Result<()>;

    /// Its files, for as long as it exists.
    fn files(&self) -> Arc<dyn ContainerFiles>;

    /// Releases everything but the writable layer. Legal once init has exited, or when it
    /// was never started; kills what is left. Idempotent.
    ///
    /// # Errors
    /// [`ErrorKind::Other`] when something could not be released.
    async fn delete(&self) -> Result<()>;
}

/// The files of a container: what `cp`, `diff`, `export` and `commit` are made of.
#[async_trait]
pub trait ContainerFiles: Send + Sync {
    /// Serves one conversation about them (`bulkhead-files` has the words) on a connected
    /// socket, to its end. Any number at a time.
    ///
    /// # Errors
    /// That it could not be served. Whoever asks has had the errors that concern the request.
    async fn serve(&self, client: UnixStream) -> Result<()>;

    /// Releases what [`Isolation::open_files`] made; the files of a container that exists are
    /// released with it. Idempotent.
    ///
    /// # Errors
    /// [`ErrorKind::Other`] when something could not be released.
    async fn close(&self) -> Result<()>;
}

/// One process of a container: created, then started, then exited.
#[async_trait]
pub trait Process: Send + Sync {
    /// The process's number as in [`Container::processes`]; `None` before it is known.
    fn pid(&self) -> Option<u32>;

    /// Hands over the standard streams; the second call gets empty ones.
    fn take_stdio(&self) -> Stdio;

    /// Runs the payload. Returns once it was exec'ed.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when already started; as [`Isolation::create`].
    async fn start(&self) -> Result<()>;

    /// Sends a signal to this process. A process that was created and not started dies of
    /// any signal.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when it has exited.
    async fn kill(&self, signal: i32) -> Result<()>;

    /// Sets the size of the terminal. Without one nothing happens, as with other shims:
    /// clients do not ask first.
    ///
    /// # Errors
    /// What the terminal says.
    async fn resize(&self, size: TerminalSize) -> Result<()>;

    /// Waits for the exit. Any number of callers, before or after it; all get the same
    /// answer. Never hangs: a lost VM or supervisor child ends it with
    /// [`ExitStatus::failure`] set.
    async fn wait(&self) -> ExitStatus;
}
