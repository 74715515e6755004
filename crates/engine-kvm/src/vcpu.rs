//! One CPU: how it starts, its thread, and what its exits mean.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::cpuid::{self, Facts};
use crate::end::{Cause, Ending};
use crate::gate::{Gate, Registration, Wanted};
use crate::layout;
use crate::vm::{Vm, VmError, refused};

/// IA32_MISC_ENABLE, and its bit for fast string instructions, which Linux wants to see.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE: enabled, everything is write-back.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// RFLAGS' bit that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
/// CR0.
const PROTECTED_MODE: u64 = 1;
const EXTENSION_TYPE: u64 = 1 << 4;

/// KVM_INTERNAL_ERROR_EMULATION.
const EMULATION_FAILED: u32 = 1;

/// A CPU. Whoever has the lock may talk to KVM about it; its thread has it while the guest
/// runs.
pub(crate) type Vcpu = Arc<Mutex<VcpuFd>>;

/// Makes the CPUs of a machine.
pub(crate) fn make(vm: &Vm, cpus: u8) -> Result<Vec<Vcpu>, VmError> {
    let mut made = Vec::with_capacity(usize::from(cpus));
    let mut facts = Facts {
        cpus,
        tsc_khz: None,
        tsc_deadline: vm.tsc_deadline(),
    };
    for index in 0..cpus {
        let fd = vm.make_cpu(index)?;
        // Old KVMs do not tell; then the guest asks its clock.
        facts.tsc_khz = fd.get_tsc_khz().ok().filter(|khz| *khz > 0);
        let entries = cpuid::entries(vm.supported_cpuid().as_slice(), facts, index);
        let entries = CpuId::from_entries(&entries).map_err(|_| VmError::Lacks("CPUID"))?;
        fd.set_cpuid2(&entries).map_err(refused("take CPUID"))?;
        set_msrs(&fd)?;
        made.push(Arc::new(Mutex::new(fd)));
    }
    Ok(made)
}

fn set_msrs(fd: &VcpuFd) -> Result<(), VmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MSR_MISC_ENABLE, FAST_STRINGS),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ])
    .map_err(|_| VmError::Lacks("MSRs"))?;
    // It takes them one after the other and says how many; a CPU without them boots too.
    let taken = fd.set_msrs(&msrs).map_err(refused("set MSRs"))?;
    if taken != 2 {
        tracing::debug!(taken, "KVM did not take all MSRs");
    }
    Ok(())
}

/// Puts the first CPU where PVH starts a kernel: 32-bit, flat, no paging, interrupts off.
/// The others wait for it.
pub(crate) fn prepare_boot(vcpu: &Vcpu, entry: u64) -> Result<(), VmError> {
    let fd = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
    let mut special = fd.get_sregs().map_err(refused("show a CPU's registers"))?;
    special.cs = segment(0x08, 0xb);
    let data = segment(0x10, 0x3);
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    special.tr = kvm_segment {
        limit: 0x67,
        g: 0,
        s: 0,
        db: 0,
        ..segment(0x18, 0xb)
    };
    special.cr0 = PROTECTED_MODE | EXTENSION_TYPE;
    special.cr4 = 0;
    special.efer = 0;
    fd.set_sregs(&special)
        .map_err(refused("set a CPU's registers"))?;
    fd.set_regs(&kvm_regs {
        rip: entry,
        rbx: layout::START_INFO,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    })
    .map_err(refused("set a CPU's registers"))
}

/// A 32-bit segment of everything.
fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}

/// What a CPU's thread needs.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) bus: Arc<Bus>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) ending: Ending,
}

/// The CPU's thread: waits until the machine may start, and runs the guest until it is told to
/// leave.
pub(crate) fn run(vcpu: &Vcpu, around: &Surroundings) {
    around.gate.stand();
    loop {
        {
            let mut fd = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            let _registration = Registration::new(fd.get_kvm_run());
            while let Wanted::Run = around.gate.wanted() {
                step(&mut fd, around);
                // Whoever signals has said before what is wanted.
                fd.set_kvm_immediate_exit(0);
            }
            if around.gate.wanted() == Wanted::Stand {
                complete(&mut fd, around);
            }
        }
        match around.gate.wanted() {
            Wanted::Run => {}
            Wanted::Stand => around.gate.stand(),
            Wanted::Leave => return,
        }
    }
}

/// An access that KVM has handed out is only complete when KVM is entered again; until then
/// the CPU's state is not one that could be saved.
fn complete(fd: &mut VcpuFd, around: &Surroundings) {
    fd.set_kvm_immediate_exit(1);
    step(fd, around);
    fd.set_kvm_immediate_exit(0);
}

/// Runs the guest to its next exit and answers that.
fn step(fd: &mut VcpuFd, around: &Surroundings) {
    let cause = match fd.run() {
        Ok(VcpuExit::IoOut(port, data)) => around.bus.write_port(port, data),
        Ok(VcpuExit::IoIn(port, data)) => {
            around.bus.read_port(port, data);
            None
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            around.bus.write_memory(address, data);
            None
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            around.bus.read_memory(address, data);
            None
        }
        Ok(VcpuExit::Intr) => None,
        Ok(VcpuExit::Shutdown) => Some(Cause::TripleFault),
        Ok(VcpuExit::InternalError) => Some(internal_error(fd)),
        Ok(VcpuExit::FailEntry(reason, cpu)) => Some(Cause::Engine(format!(
            "the host's CPU {cpu} refused to enter the guest (reason {reason:#x})"
        ))),
        Ok(other) => Some(Cause::Engine(format!(
            "KVM handed out what nobody here expects: {other:?}"
        ))),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
        Err(error) if error.errno() == libc::EFAULT => Some(Cause::Engine(
            "the host has no memory for the guest's".to_owned(),
        )),
        Err(error) => Some(Cause::Engine(format!(
            "KVM does not run the guest: {error}"
        ))),
    };
    if let Some(cause) = cause {
        around.ending.end(cause);
        // Not one instruction more: what comes after a power-off or a reset is undefined.
        around.gate.want(Wanted::Leave);
    }
}

fn internal_error(fd: &mut VcpuFd) -> Cause {
    let run = fd.get_kvm_run();
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so this is the member that KVM
    // has filled in.
    let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
    let at = fd.get_regs().map(|registers| registers.rip).unwrap_or(0);
    Cause::Engine(if suberror == EMULATION_FAILED {
        format!("KVM cannot emulate the guest's instruction at {at:#x}")
    } else {
        format!("KVM has an internal error ({suberror}), with the guest at {at:#x}")
    })
}
