//! The Machine seam on QEMU's microvm machine.
//!
//! Owns QEMU's process, its command line and its monitor. One machine is one QEMU child of
//! the worker; it dies with the worker's main thread, so [`QemuEngine`] must be used from a
//! single-threaded runtime on that thread. Knows nothing of containers or of the agent: the
//! transport is a socket that it hands to QEMU.

mod command;
mod filter;
mod jail;
mod machine;
mod qmp;
mod tail;
mod tsc;
mod vmdk;

pub use filter::CALLS as WORKER_CALLS;

use std::path::PathBuf;

use bulkhead_jail::Identity;
use bulkhead_machine::{
    BootError, Capabilities, Engine, MachineConfig, MachineFiles, PreparedMachine,
};

/// Most vCPUs of QEMU's microvm machine.
const MAX_VCPUS: u32 = 288;

/// With ACPI a microvm has 24 slots for virtio devices; eight are kept for the disks, the
/// console ports, the random numbers and what may come.
const MAX_NICS: usize = 16;

/// QEMU as an engine.
#[derive(Debug)]
pub struct QemuEngine {
    binary: PathBuf,
    identity: Identity,
}

impl QemuEngine {
    /// The engine on the QEMU that this host has, which runs as this user.
    ///
    /// # Errors
    /// [`BootError::Unavailable`] when it has none.
    pub fn find(identity: Identity) -> Result<Self, BootError> {
        let binary = bulkhead_machine::find_qemu().ok_or_else(|| {
            BootError::Unavailable(
                "qemu-system-x86_64 was not found in PATH: install it (Debian: apt-get \
                 install qemu-system-x86)"
                    .to_owned(),
            )
        })?;
        Ok(Self { binary, identity })
    }
}

impl Engine for QemuEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            memory_file: false,
            snapshot: false,
            disk_hotplug: false,
            vhost_user: false,
            shared_directories: false,
            max_vcpus: MAX_VCPUS,
            max_nics: MAX_NICS,
            min_memory: command::MIN_MEMORY,
        }
    }

    fn prepare(
        &self,
        config: &MachineConfig,
        files: MachineFiles,
    ) -> Result<Box<dyn PreparedMachine>, BootError> {
        let prepared = machine::prepare(self, config, files)?;
        Ok(Box::new(prepared))
    }
}
