//! The Machine seam on our own virtual machine monitor: KVM by the rust-vmm crates.
//!
//! Owns the guest's memory, its CPUs, how a kernel is started (PVH, no firmware), what it is
//! told of its hardware (ACPI, CPUID) and how a machine comes to its end. The devices are
//! `bulkhead_virtio`'s, which in turn knows no hypervisor; here they get their addresses,
//! interrupts and doorbells. Knows nothing of containers or of the agent.
//!
//! Threads of a worker: the main one, which serves the supervisor and runs no guest; `vcpu<N>`
//! for each CPU; `disks`, which serves their queues and waits for the host's disks; `devices`,
//! which serves all the other queues and never waits. Each has a filter of its system calls
//! before the guest's first instruction.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("this engine is for Linux on x86-64");

mod acpi;
mod boot;
mod bus;
mod cpuid;
mod devices;
mod end;
mod filter;
mod gate;
mod layout;
mod machine;
mod memory;
mod serial;
mod stats;
mod vcpu;
mod vm;

use bulkhead_machine::{
    BootError, Capabilities, Engine, MachineConfig, MachineFiles, PreparedMachine,
};

pub use filter::{
    DEVICES as DEVICES_CALLS, DISKS as DISKS_CALLS, MAIN as MAIN_CALLS, VCPU as VCPU_CALLS,
};
pub use machine::{KvmMachine, PreparedKvm};

/// The most that local APICs with eight-bit numbers tell apart, with one left for all.
const MAX_VCPUS: u32 = 254;

/// Less memory than this, bytes, and a distribution's kernel cannot unpack its initramfs.
const MIN_MEMORY: u64 = 96 << 20;

/// Our own monitor as an engine.
#[derive(Debug, Clone, Copy, Default)]
pub struct KvmEngine;

impl KvmEngine {
    /// As [`Engine::prepare`], with what only this engine's machines can tell.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn prepare_machine(
        self,
        config: &MachineConfig,
        files: MachineFiles,
    ) -> Result<PreparedKvm, BootError> {
        self.capabilities().check(config)?;
        PreparedKvm::new(config, files)
    }
}

impl Engine for KvmEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // Its memory is anonymous (docs/adr/0049).
            memory_file: false,
            snapshot: false,
            disk_hotplug: false,
            vhost_user: false,
            shared_directories: false,
            max_vcpus: MAX_VCPUS,
            max_nics: bulkhead_machine::MAX_NICS,
            min_memory: MIN_MEMORY,
        }
    }

    fn prepare(
        &self,
        config: &MachineConfig,
        files: MachineFiles,
    ) -> Result<Box<dyn PreparedMachine>, BootError> {
        Ok(Box::new(self.prepare_machine(config, files)?))
    }
}
