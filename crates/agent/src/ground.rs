//! What the agent stands on: the machine that it is PID 1 of, or, in tests, a directory of
//! the host that a container may use as its root.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bulkhead_agent_protocol::{ReadinessTimes, Setup, SetupReply};
use bulkhead_isolation::{ErrorKind, IsolationError, Result, Rootfs};

use crate::{clock, disks};

/// Where the agent keeps the container's files in a machine.
const STATE: &str = "/run/bulkhead/state";

/// See the module.
#[derive(Debug)]
pub struct Ground {
    root: PathBuf,
    state: PathBuf,
    machine: Option<ReadinessTimes>,
    /// How many layers the root is made of, once it is.
    layers: OnceLock<usize>,
}

impl Ground {
    /// The machine; `times` are those of its start so far.
    pub fn machine(times: ReadinessTimes) -> Self {
        Self {
            root: disks::ROOT.into(),
            state: STATE.into(),
            machine: Some(times),
            layers: OnceLock::new(),
        }
    }

    /// A directory that is a root filesystem already, and one for files of our own.
    pub fn directory(root: PathBuf, state: PathBuf) -> Self {
        Self {
            root,
            state,
            machine: None,
            layers: OnceLock::new(),
        }
    }

    /// Whether this kernel is ours alone.
    pub fn is_machine(&self) -> bool {
        self.machine.is_some()
    }

    /// The container's root filesystem after [`Ground::set_up`].
    pub fn rootfs(&self) -> Rootfs {
        let root = self.root.clone();
        match self.layers.get() {
            Some(count) => Rootfs::Stacked {
                root,
                layers: disks::layers(*count),
                upper: disks::upper(),
            },
            None => Rootfs::Mounted(root),
        }
    }

    /// A directory for the agent's files.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Does what the host's first request asks for. Blocks.
    ///
    /// # Errors
    /// That a disk cannot be mounted, or a value cannot be set.
    pub fn set_up(&self, setup: &Setup, request: u64) -> Result<SetupReply> {
        std::fs::create_dir_all(&self.state)
            .map_err(|error| IsolationError::other("cannot create the agent's directory", error))?;
        let mut times = ReadinessTimes {
            request,
            ..self.machine.unwrap_or_default()
        };
        if self.machine.is_some() {
            clock::set(setup.seconds, setup.nanoseconds)
                .map_err(|error| IsolationError::other("cannot set the guest's clock", error))?;
            clock::add_entropy(&setup.entropy).map_err(|error| {
                IsolationError::other("cannot seed the guest's random numbers", error)
            })?;
            rustix::system::sethostname(setup.hostname.as_bytes()).map_err(|error| {
                IsolationError::other("cannot set the guest's host name", error)
            })?;
            disks::mount_root(&setup.layers).map_err(|error| {
                let kind = match error {
                    disks::DiskError::Invalid(_) => ErrorKind::InvalidArgument,
                    _ => ErrorKind::Other,
                };
                IsolationError::new(kind, error.to_string())
            })?;
            // Set once: a machine is set up once.
            let _ = self.layers.set(setup.layers.len());
            settle(setup.memory);
        }
        times.mounted = clock::uptime_millis();
        Ok(SetupReply {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            memory: memory(),
            times,
        })
    }

    /// Undoes [`Ground::set_up`]; what the container wrote is on its disk then. Blocks.
    ///
    /// # Errors
    /// That something is still in use.
    pub fn tear_down(&self) -> Result<()> {
        if self.machine.is_none() {
            return Ok(());
        }
        disks::unmount_root()
            .map_err(|error| IsolationError::new(ErrorKind::Other, error.to_string()))
    }
}

/// Memory that the kernel manages, bytes.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Waits until the kernel has given up what is not the machine's at its start, so that what
/// the payload finds is its size. The limit does not hang on it.
fn settle(size: u64) {
    const PATIENCE: Duration = Duration::from_secs(10);
    const STEP: Duration = Duration::from_millis(2);
    let driver = std::fs::read_dir("/sys/bus/virtio/drivers/virtio_balloon");
    let bound = driver.is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| is_device(&entry.file_name())))
    });
    if !bound {
        tracing::warn!("this kernel drives no balloon: the machine is larger than it should be");
        return;
    }
    let start = Instant::now();
    while memory() > size {
        if start.elapsed() > PATIENCE {
            tracing::warn!(size, now = memory(), "the balloon is slow");
            return;
        }
        std::thread::sleep(STEP);
    }
}

/// `virtio0` and so on, in a driver's directory.
fn is_device(name: &std::ffi::OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix("virtio"));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}
