//! The VM as KVM sees it: memory, interrupt controllers, event descriptors.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};

use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;
use crate::{cpuid, layout};

/// KVM_GET_API_VERSION, for ever.
const API_VERSION: i32 = 12;

/// KVM's refusals.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// What was opened is something else.
    #[error("/dev/kvm has the version {0} where 12 was expected")]
    Version(i32),
    /// It lacks something.
    #[error("the host's KVM lacks {0}, which VMs need")]
    Lacks(&'static str),
    /// It has fewer.
    #[error("the host's KVM runs at most {most} CPUs in a VM, not {asked}")]
    Cpus {
        /// At most.
        most: usize,
        /// Asked for.
        asked: u32,
    },
    /// A call failed.
    #[error("KVM refused to {action}: {source}")]
    Call {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: kvm_ioctls::Error,
    },
}

pub(crate) fn refused(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Call { action, source }
}

/// A VM with memory and interrupt controllers.
pub(crate) struct Vm {
    fd: VmFd,
    supported: CpuId,
    tsc_deadline: bool,
    /// KVM reads and writes it as long as there is a VM.
    memory: GuestMemory,
}

impl Vm {
    pub(crate) fn new(kvm: File, memory: GuestMemory, cpus: u32) -> Result<Self, VmError> {
        // SAFETY: the descriptor was just taken out of its File, so nobody else closes it.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(VmError::Version(version));
        }
        for (capability, name) in [
            (Cap::Irqchip, "interrupt controllers"),
            (Cap::Irqfd, "irqfd"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::ImmediateExit, "immediate_exit"),
            (Cap::UserMemory, "user memory"),
            (Cap::ExtCpuid, "CPUID"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(VmError::Lacks(name));
            }
        }
        let most = kvm.get_max_vcpus();
        if usize::try_from(cpus).map_or(true, |cpus| cpus > most) {
            return Err(VmError::Cpus { most, asked: cpus });
        }
        let supported = kvm
            .get_supported_cpuid(cpuid::MAX_ENTRIES)
            .map_err(refused("tell its CPUID"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let fd = kvm.create_vm().map_err(refused("make a VM"))?;
        fd.set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(refused("place the identity map"))?;
        fd.set_tss_address(layout::TSS)
            .map_err(refused("place the TSS"))?;
        // All of them in the kernel: virtio's interrupts then reach the guest without a way
        // through this process, which only a programming of the I/O APIC would need.
        fd.create_irq_chip()
            .map_err(refused("make interrupt controllers"))?;
        leave_out_counters(&kvm, &fd).map_err(refused("leave out performance counters"))?;
        let vm = Self {
            fd,
            supported,
            tsc_deadline,
            memory,
        };
        vm.map_memory()?;
        Ok(vm)
    }

    fn map_memory(&self) -> Result<(), VmError> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as `self.memory` lives, which is as
            // long as the VM's descriptor here; regions do not overlap, which building the
            // memory has checked.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(refused("take the guest's memory"))?;
        }
        Ok(())
    }

    pub(crate) fn tsc_deadline(&self) -> bool {
        self.tsc_deadline
    }

    pub(crate) fn supported_cpuid(&self) -> &CpuId {
        &self.supported
    }

    pub(crate) fn make_cpu(&self, index: u8) -> Result<VcpuFd, VmError> {
        self.fd
            .create_vcpu(u64::from(index))
            .map_err(refused("make a CPU"))
    }

    /// Every event becomes an edge at this input of the I/O APIC.
    pub(crate) fn connect_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(refused("connect an interrupt"))
    }

    /// A 32-bit write of this value to this address becomes an event, without an exit.
    pub(crate) fn connect_doorbell(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), VmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(refused("connect a doorbell"))
    }
}

/// AMD's four oldest counters are there without a word of CPUID; KVMs before 5.18 cannot
/// leave them out.
fn leave_out_counters(kvm: &Kvm, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let known = kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if known & KVM_PMU_CAP_DISABLE.cast_signed() == 0 {
        return Ok(());
    }
    vm.enable_cap(&kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    })
}
