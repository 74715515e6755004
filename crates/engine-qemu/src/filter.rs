//! The system calls of a worker whose machine is a QEMU process, and what is forbidden to
//! that process.
//!
//! The worker has one thread: an event loop over the supervisor's socket, QEMU's monitor, its
//! words and its end. All descriptors are open, no memory becomes code, no process is started.
//!
//! QEMU's own calls are its affair, and change with its version, so there is no list of what
//! it may call. What it has no use for in any version, and a guest that took it over would
//! try first, is forbidden before it starts; its `-sandbox` follows when it has started.

use bulkhead_jail::call;
use bulkhead_jail::filter::Argument::{Int, Without};
use bulkhead_jail::filter::{Argument, Call, Filter, FilterError};

/// `PROT_EXEC`, in the third argument of `mmap`.
const NO_CODE: Argument = Without(2, 4);

/// Which memory calls are made is the allocator's affair.
const MEMORY: &str = "when the heap grows or shrinks";

/// What the worker may call.
pub static CALLS: &[Call] = &[
    call!(brk).rare(MEMORY),
    call!(clock_gettime).rare("where the vDSO has no clock"),
    call!(close),
    call!(epoll_ctl),
    call!(epoll_wait),
    call!(exit_group),
    call!(futex),
    // `SIGKILL`, which reaches QEMU and nobody else in this namespace.
    call!(kill, [Int(1, 9)]),
    call!(madvise).rare(MEMORY),
    call!(mmap, [NO_CODE]).rare(MEMORY),
    call!(mremap).rare(MEMORY),
    call!(munmap),
    call!(read),
    call!(recvfrom),
    call!(restart_syscall).rare("when the worker was stopped and goes on"),
    call!(sendto),
    call!(shutdown),
    call!(sigaltstack),
    call!(wait4),
    call!(write),
];

/// What QEMU may not call, with or without its sandbox: it answers `EPERM`.
static FORBIDDEN: &[Call] = &[
    call!(accept),
    call!(accept4),
    call!(add_key),
    call!(bind),
    call!(bpf),
    call!(chroot),
    call!(connect),
    call!(delete_module),
    call!(fanotify_init),
    call!(finit_module),
    call!(fsmount),
    call!(fsopen),
    call!(init_module),
    call!(io_uring_enter),
    call!(io_uring_register),
    call!(io_uring_setup),
    call!(kcmp),
    call!(kexec_file_load),
    call!(kexec_load),
    call!(keyctl),
    call!(listen),
    call!(mount),
    call!(mount_setattr),
    call!(move_mount),
    call!(name_to_handle_at),
    call!(open_by_handle_at),
    call!(open_tree),
    call!(perf_event_open),
    call!(pidfd_getfd),
    call!(pidfd_open),
    call!(pidfd_send_signal),
    call!(pivot_root),
    call!(process_vm_readv),
    call!(process_vm_writev),
    call!(ptrace),
    call!(request_key),
    call!(setns),
    call!(socket),
    call!(umount2),
    call!(unshare),
    call!(userfaultfd),
];

/// The worker's filter.
pub(crate) fn worker() -> Result<Filter, FilterError> {
    Filter::new(CALLS)
}

/// QEMU's, before its own.
pub(crate) fn qemu() -> Result<Filter, FilterError> {
    Filter::forbid(FORBIDDEN)
}
