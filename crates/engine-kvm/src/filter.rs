//! The system calls of a worker whose machine runs in it, a list for each kind of thread.
//!
//! All descriptors are open, no file is mapped, no memory becomes code, no thread or process
//! is started. What KVM can be asked for is what each thread has to ask: of the whole
//! interface that is to run a CPU, and nobody but a CPU's thread may.

use bulkhead_jail::call;
use bulkhead_jail::filter::Argument::{Int, Is, Without};
use bulkhead_jail::filter::{Argument, Call, Filter, FilterError};

/// `PROT_EXEC`, in the third argument of `mmap`.
const NO_CODE: Argument = Without(2, 4);
/// No file: -1 as the descriptor of `mmap`.
const NO_FILE: Argument = Int(4, u32::MAX);
/// `MADV_DONTNEED`, in the third argument of `madvise`.
const GIVE_BACK: Argument = Int(2, 4);

/// `KVM_RUN` and `KVM_GET_REGS` of `linux/kvm.h`.
const KVM_RUN: u32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
/// `TUNSETOFFLOAD` of `linux/if_tun.h`.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;

/// The signal that has CPUs look at what is wanted; see [`crate::gate`].
pub(crate) const SIGNAL: u32 = 34;

/// `FALLOC_FL_PUNCH_HOLE` and `FALLOC_FL_ZERO_RANGE` with `FALLOC_FL_KEEP_SIZE`.
const PUNCH_HOLE: u32 = 3;
const ZERO_RANGE: u32 = 0x11;

/// Which memory calls are made is the allocator's affair.
const MEMORY: &str = "when the heap grows or shrinks";
const LOCKS: &str = "when another thread has the lock, or is waited for";
const STOPPED: &str = "when the worker was stopped and goes on";
const CLOCK: &str = "where the vDSO has no clock, for the time of a log's line";
const PANIC: &str = "when the thread panics, which its message names";

/// What the thread may call that serves the supervisor.
pub static MAIN: &[Call] = &[
    call!(brk).rare(MEMORY),
    call!(clock_gettime).rare(CLOCK),
    call!(close),
    call!(epoll_ctl),
    call!(epoll_wait),
    call!(exit_group),
    call!(futex).rare(LOCKS),
    call!(getpid),
    call!(gettid).rare(PANIC),
    call!(madvise, [GIVE_BACK]).rare(MEMORY),
    call!(mmap, [NO_CODE, NO_FILE]).rare(MEMORY),
    call!(mremap).rare(MEMORY),
    call!(munmap),
    call!(recvfrom),
    call!(restart_syscall).rare(STOPPED),
    call!(rt_sigprocmask),
    call!(sendto),
    call!(shutdown),
    call!(sigaltstack),
    call!(tgkill, [Int(2, SIGNAL)]),
    call!(write),
];

/// What the thread of a CPU may call.
pub static VCPU: &[Call] = &[
    call!(brk).rare(MEMORY),
    call!(clock_gettime).rare(CLOCK),
    call!(exit),
    call!(futex).rare(LOCKS),
    call!(gettid).rare(PANIC),
    call!(ioctl, [Int(1, KVM_RUN)]),
    call!(ioctl, [Int(1, KVM_GET_REGS)]).rare("when KVM gives up, to say where"),
    call!(ioctl, [Int(1, TUNSETOFFLOAD)]),
    call!(madvise, [GIVE_BACK]),
    call!(mmap, [NO_CODE, NO_FILE]).rare(MEMORY),
    call!(mremap).rare(MEMORY),
    call!(munmap),
    call!(restart_syscall).rare(STOPPED),
    call!(rt_sigprocmask),
    call!(rt_sigreturn),
    call!(sigaltstack),
    call!(write),
];

/// What the thread may call that serves the disks: nobody else reads or writes files.
pub static DISKS: &[Call] = &[
    call!(brk).rare(MEMORY),
    call!(clock_gettime).rare(CLOCK),
    call!(epoll_pwait, [Is(4, 0)]),
    call!(exit),
    call!(fallocate, [Int(1, PUNCH_HOLE)]),
    call!(fallocate, [Int(1, ZERO_RANGE)]).rare("when a guest wants zeroes that have their room"),
    call!(fdatasync),
    call!(futex).rare(LOCKS),
    call!(gettid).rare(PANIC),
    call!(madvise, [GIVE_BACK]).rare(MEMORY),
    call!(mmap, [NO_CODE, NO_FILE]).rare(MEMORY),
    call!(mremap).rare(MEMORY),
    call!(munmap),
    call!(preadv),
    call!(pwritev),
    call!(read),
    call!(restart_syscall).rare(STOPPED),
    call!(rt_sigprocmask),
    call!(sigaltstack),
    call!(write),
];

/// What the thread may call that serves the other devices.
pub static DEVICES: &[Call] = &[
    call!(brk).rare(MEMORY),
    call!(clock_gettime).rare(CLOCK),
    call!(epoll_ctl),
    call!(epoll_pwait, [Is(4, 0)]),
    call!(exit),
    call!(futex).rare(LOCKS),
    call!(getrandom),
    call!(gettid).rare(PANIC),
    call!(madvise, [GIVE_BACK]),
    call!(mmap, [NO_CODE, NO_FILE]).rare(MEMORY),
    call!(mremap).rare(MEMORY),
    call!(munmap),
    call!(read),
    call!(readv),
    call!(restart_syscall).rare(STOPPED),
    call!(rt_sigprocmask),
    call!(sigaltstack),
    call!(write),
    call!(writev),
];

/// Filters for the threads of a machine.
pub(crate) struct Filters {
    pub(crate) main: Filter,
    pub(crate) vcpu: Filter,
    pub(crate) disks: Filter,
    pub(crate) devices: Filter,
}

impl Filters {
    pub(crate) fn new() -> Result<Self, FilterError> {
        Ok(Self {
            main: Filter::new(MAIN)?,
            vcpu: Filter::new(VCPU)?,
            disks: Filter::new(DISKS)?,
            devices: Filter::new(DEVICES)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_systems() {
        assert_eq!(i64::from(SIGNAL), i64::from(crate::gate::signal()));
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | flags;
        let zeroes = rustix::fs::FallocateFlags::ZERO_RANGE | flags;
        assert_eq!((hole.bits(), zeroes.bits()), (PUNCH_HOLE, ZERO_RANGE));
        assert_eq!(libc::MADV_DONTNEED, 4);
        assert_eq!(libc::PROT_EXEC, 4);
    }
}
