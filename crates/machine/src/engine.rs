//! What an engine is, inside the worker.

use async_trait::async_trait;

use crate::{MachineConfig, MachineExit, MachineFiles};

/// What machines of an engine can do; callers decide by this and never by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The guest's memory can be a file that a snapshot leaves where it is.
    pub memory_file: bool,
    /// State can be saved and another machine be made from it.
    pub snapshot: bool,
    /// Disks can be attached to a running machine.
    pub disk_hotplug: bool,
    /// Devices that live in other processes (vhost-user) can be attached.
    pub vhost_user: bool,
    /// Host directories can be shared (virtio-fs).
    pub shared_directories: bool,
    /// Most vCPUs of one machine.
    pub max_vcpus: u32,
    /// Most network cards of one machine; none can be added while it runs.
    pub max_nics: usize,
    /// The least memory, bytes, with which a guest can start up.
    pub min_memory: u64,
}

impl Capabilities {
    /// That a machine stays within them.
    ///
    /// # Errors
    /// [`BootError::InvalidConfig`], which says what is too much or too little.
    pub fn check(&self, config: &MachineConfig) -> Result<(), BootError> {
        let invalid = |message: String| Err(BootError::InvalidConfig(message));
        if config.vcpus == 0 || config.vcpus > self.max_vcpus {
            return invalid(format!(
                "a VM has 1 to {} CPUs, not {}",
                self.max_vcpus, config.vcpus
            ));
        }
        if config.memory_bytes < self.min_memory {
            return invalid(format!(
                "a VM with {} MiB of memory cannot boot: it needs at least {} MiB, its \
                 kernel's part included",
                config.memory_bytes >> 20,
                self.min_memory >> 20
            ));
        }
        if config.nics.len() > self.max_nics {
            return invalid(format!(
                "a VM has at most {} network cards, not {}",
                self.max_nics,
                config.nics.len()
            ));
        }
        Ok(())
    }
}

/// A machine could not be made to run. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The host lacks what the engine needs.
    #[error("{0}")]
    Unavailable(String),
    /// The configuration cannot be honoured.
    #[error("{0}")]
    InvalidConfig(String),
    /// The engine said no.
    #[error("{engine} could not start the machine: {message}")]
    Refused {
        /// Which engine.
        engine: &'static str,
        /// What it said.
        message: String,
    },
    /// The system said no.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A request to a running machine failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// There is no machine any more.
    #[error("the machine has ended")]
    Ended,
    /// The engine said no.
    #[error("the engine refused: {0}")]
    Refused(String),
}

/// Boots machines. Lives in a worker process of its own, so whatever it is killed with
/// takes one machine along and no other.
pub trait Engine: Send + Sync {
    /// What its machines can do.
    fn capabilities(&self) -> Capabilities;

    /// Does what cannot be done any more once the worker is in its jail, and that is all: no
    /// instruction of the guest's has run when it returns, and nothing that depends on a guest
    /// was looked at. May block for some milliseconds; called on the thread, and within the
    /// runtime, on which the machine is booted.
    ///
    /// Everything that the machine consists of is in `files`; the paths in `config` are there
    /// to be shown.
    ///
    /// # Errors
    /// See [`BootError`].
    fn prepare(
        &self,
        config: &MachineConfig,
        files: MachineFiles,
    ) -> Result<Box<dyn PreparedMachine>, BootError>;
}

/// A machine that needs nothing more of the host. Dropping it releases it.
#[async_trait]
pub trait PreparedMachine: Send {
    /// Boots it; returns when its CPUs run, long before the guest has started up. The worker
    /// is in its jail: no file can be opened, and there are no rights.
    ///
    /// # Errors
    /// See [`BootError`].
    async fn boot(self: Box<Self>) -> Result<Box<dyn Machine>, BootError>;
}

/// A machine whose CPUs have begun to run. Dropping it kills it.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Stops the CPUs. Returns when they stand. Legal at any time; pausing twice is no error.
    ///
    /// # Errors
    /// See [`MachineError`].
    async fn pause(&self) -> Result<(), MachineError>;

    /// Lets the CPUs run on. Legal at any time.
    ///
    /// # Errors
    /// See [`MachineError`].
    async fn resume(&self) -> Result<(), MachineError>;

    /// Has the guest give up so much of its memory, bytes, in all: more than before makes the
    /// machine smaller, less makes it larger. Returns before the guest has done it. Legal at
    /// any time.
    ///
    /// # Errors
    /// See [`MachineError`].
    async fn balloon(&self, bytes: u64) -> Result<(), MachineError>;

    /// Ends the machine at once, as pulling the plug does. Returns before [`Machine::wait`]
    /// does. Killing one that has ended does nothing.
    fn kill(&self);

    /// Waits for the end. When it returns, every process of the machine was reaped and its
    /// small files are gone. Any number of callers, all get the same answer.
    async fn wait(&self) -> MachineExit;
}
