//! Filters of system calls: what is not on a thread's list ends the process.
//!
//! A list says for each call which arguments are allowed. The kernel sees registers only, so
//! what is behind a pointer is never part of a condition.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// A filter cannot be made or set.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The list makes no sense.
    #[error("the list of system calls is not valid")]
    List(#[from] seccompiler::BackendError),
    /// The kernel said no.
    #[error("cannot restrict the system calls")]
    Set(#[from] seccompiler::Error),
}

/// What must hold for one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// Argument `.0`, all 64 bits, is `.1`.
    Is(u8, u64),
    /// The low 32 bits of argument `.0`, for what the kernel takes as an `int`, are `.1`.
    Int(u8, u32),
    /// Of argument `.0` the bits `.1` are all 0.
    Without(u8, u64),
}

/// A call that a thread makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: libc::c_long,
    /// Allowed where all conditions of one of these hold; without any, always.
    pub when: &'static [&'static [Argument]],
    /// Why it is on the list although most hosts never see it.
    pub rare: Option<&'static str>,
}

impl Call {
    /// The same, for what happens on some hosts or seldom, with the reason.
    #[must_use]
    pub const fn rare(self, reason: &'static str) -> Self {
        Self {
            rare: Some(reason),
            ..self
        }
    }
}

/// A [`Call`] by its name, with arguments or without:
/// `call!(read)`, `call!(ioctl, [Int(1, REQUEST)], [Int(1, OTHER)])`.
#[macro_export]
macro_rules! call {
    ($name:ident $(, [$($argument:expr),* $(,)?])* $(,)?) => {
        $crate::filter::Call {
            name: stringify!($name),
            number: $crate::filter::number::$name,
            when: &[$(&[$($argument),*]),*],
            rare: None,
        }
    };
}

/// The numbers of system calls under their names.
pub mod number {
    #![allow(
        non_upper_case_globals,
        missing_docs,
        reason = "they are the kernel's names"
    )]
    macro_rules! numbers {
        ($($name:ident = $number:ident,)*) => {
            $(pub const $name: libc::c_long = libc::$number;)*
        };
    }
    numbers! {
        accept = SYS_accept,
        accept4 = SYS_accept4,
        add_key = SYS_add_key,
        bind = SYS_bind,
        bpf = SYS_bpf,
        brk = SYS_brk,
        chroot = SYS_chroot,
        clock_gettime = SYS_clock_gettime,
        clock_nanosleep = SYS_clock_nanosleep,
        clone3 = SYS_clone3,
        close = SYS_close,
        connect = SYS_connect,
        delete_module = SYS_delete_module,
        dup = SYS_dup,
        epoll_create1 = SYS_epoll_create1,
        epoll_ctl = SYS_epoll_ctl,
        epoll_pwait = SYS_epoll_pwait,
        epoll_wait = SYS_epoll_wait,
        eventfd2 = SYS_eventfd2,
        exit = SYS_exit,
        exit_group = SYS_exit_group,
        fallocate = SYS_fallocate,
        fanotify_init = SYS_fanotify_init,
        fcntl = SYS_fcntl,
        fdatasync = SYS_fdatasync,
        finit_module = SYS_finit_module,
        fsmount = SYS_fsmount,
        fsopen = SYS_fsopen,
        fstat = SYS_fstat,
        fsync = SYS_fsync,
        ftruncate = SYS_ftruncate,
        futex = SYS_futex,
        getpid = SYS_getpid,
        getrandom = SYS_getrandom,
        gettid = SYS_gettid,
        init_module = SYS_init_module,
        io_uring_enter = SYS_io_uring_enter,
        io_uring_register = SYS_io_uring_register,
        io_uring_setup = SYS_io_uring_setup,
        ioctl = SYS_ioctl,
        kcmp = SYS_kcmp,
        kexec_file_load = SYS_kexec_file_load,
        kexec_load = SYS_kexec_load,
        keyctl = SYS_keyctl,
        kill = SYS_kill,
        listen = SYS_listen,
        lseek = SYS_lseek,
        madvise = SYS_madvise,
        mmap = SYS_mmap,
        mount = SYS_mount,
        mount_setattr = SYS_mount_setattr,
        move_mount = SYS_move_mount,
        mprotect = SYS_mprotect,
        mremap = SYS_mremap,
        munmap = SYS_munmap,
        name_to_handle_at = SYS_name_to_handle_at,
        nanosleep = SYS_nanosleep,
        open_by_handle_at = SYS_open_by_handle_at,
        open_tree = SYS_open_tree,
        perf_event_open = SYS_perf_event_open,
        pidfd_getfd = SYS_pidfd_getfd,
        pidfd_open = SYS_pidfd_open,
        pidfd_send_signal = SYS_pidfd_send_signal,
        pivot_root = SYS_pivot_root,
        poll = SYS_poll,
        ppoll = SYS_ppoll,
        prctl = SYS_prctl,
        pread64 = SYS_pread64,
        preadv = SYS_preadv,
        preadv2 = SYS_preadv2,
        process_vm_readv = SYS_process_vm_readv,
        process_vm_writev = SYS_process_vm_writev,
        ptrace = SYS_ptrace,
        pwrite64 = SYS_pwrite64,
        pwritev = SYS_pwritev,
        pwritev2 = SYS_pwritev2,
        read = SYS_read,
        readv = SYS_readv,
        recvfrom = SYS_recvfrom,
        recvmsg = SYS_recvmsg,
        request_key = SYS_request_key,
        restart_syscall = SYS_restart_syscall,
        rseq = SYS_rseq,
        rt_sigaction = SYS_rt_sigaction,
        rt_sigprocmask = SYS_rt_sigprocmask,
        rt_sigreturn = SYS_rt_sigreturn,
        sched_getaffinity = SYS_sched_getaffinity,
        sched_yield = SYS_sched_yield,
        sendmsg = SYS_sendmsg,
        sendto = SYS_sendto,
        set_robust_list = SYS_set_robust_list,
        setns = SYS_setns,
        shutdown = SYS_shutdown,
        sigaltstack = SYS_sigaltstack,
        socket = SYS_socket,
        tgkill = SYS_tgkill,
        timerfd_create = SYS_timerfd_create,
        timerfd_settime = SYS_timerfd_settime,
        tkill = SYS_tkill,
        umount2 = SYS_umount2,
        unshare = SYS_unshare,
        userfaultfd = SYS_userfaultfd,
        wait4 = SYS_wait4,
        waitid = SYS_waitid,
        write = SYS_write,
        writev = SYS_writev,
    }
}

/// A filter, ready to be set.
#[derive(Debug, Clone)]
pub struct Filter {
    program: BpfProgram,
}

impl Filter {
    /// Of these calls and no others; any other kills the process with `SIGSYS`.
    ///
    /// # Errors
    /// [`FilterError::List`]
    pub fn new<'a>(calls: impl IntoIterator<Item = &'a Call>) -> Result<Self, FilterError> {
        Self::of(calls, SeccompAction::KillProcess, SeccompAction::Allow)
    }

    /// Of all calls but these, which fail with `EPERM`: for a program of others, whose calls
    /// are not known.
    ///
    /// # Errors
    /// [`FilterError::List`]
    pub fn forbid<'a>(calls: impl IntoIterator<Item = &'a Call>) -> Result<Self, FilterError> {
        let refusal = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        Self::of(calls, SeccompAction::Allow, refusal)
    }

    fn of<'a>(
        calls: impl IntoIterator<Item = &'a Call>,
        others: SeccompAction,
        these: SeccompAction,
    ) -> Result<Self, FilterError> {
        let mut rules = std::collections::BTreeMap::<i64, Vec<SeccompRule>>::new();
        for call in calls {
            let conditions = call.when.iter().map(|arguments| rule(arguments));
            let conditions: Vec<_> = conditions.collect::<Result<_, _>>()?;
            rules.entry(call.number).or_default().extend(conditions);
        }
        let filter = SeccompFilter::new(rules, others, these, TargetArch::x86_64)?;
        Ok(Self {
            program: filter.try_into()?,
        })
    }

    /// Restricts the calling thread, and the threads that it starts, for good.
    ///
    /// # Errors
    /// [`FilterError::Set`]
    pub fn set(&self) -> Result<(), FilterError> {
        Ok(seccompiler::apply_filter(&self.program)?)
    }
}

fn rule(arguments: &[Argument]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = arguments.iter().map(|argument| match *argument {
        Argument::Is(index, value) => {
            SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
        }
        Argument::Int(index, value) => {
            let value = u64::from(value);
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
        }
        Argument::Without(index, bits) => SeccompCondition::new(
            index,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(bits),
            0,
        ),
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::Argument::{Int, Without};
    use super::*;

    /// How a child ends that sets a filter and makes some calls.
    fn under(filter: &Filter, calls: fn()) -> std::process::ExitStatus {
        // SAFETY: the child allocates nothing and takes no lock: it makes system calls.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(filter.set().is_err());
            calls();
            // SAFETY: it ends here.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: the status lives through the call.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        std::process::ExitStatus::from_raw(status)
    }

    fn map(protection: i32) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: it is mapped where nothing is, and used by nobody.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    }

    #[test]
    fn what_is_not_listed_kills() {
        let list = [
            call!(exit_group),
            call!(getpid),
            call!(fcntl, [Int(1, 3)], [Int(1, 1)]),
            call!(mmap, [Without(2, 4)]),
        ];
        let filter = Filter::new(&list).unwrap();
        let allowed = under(&filter, || {
            let _ = rustix::process::getpid();
            let _ = rustix::fs::fcntl_getfl(rustix::stdio::stdin());
            let _ = rustix::io::fcntl_getfd(rustix::stdio::stdin());
            map(libc::PROT_READ | libc::PROT_WRITE);
        });
        assert_eq!(allowed.code(), Some(0), "{allowed:?}");
        let call = || {
            let _ = rustix::process::getppid();
        };
        let command = || {
            let _ = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map(drop);
        };
        for (what, forbidden) in [
            ("a call", call as fn()),
            ("a command", command),
            ("code", || map(libc::PROT_READ | libc::PROT_EXEC)),
        ] {
            let killed = under(&filter, forbidden);
            assert_eq!(killed.signal(), Some(libc::SIGSYS), "{what}: {killed:?}");
        }
    }

    #[test]
    fn conditions_of_one_call_add_up() {
        let lists = [
            call!(fcntl, [Int(1, 3)]),
            call!(fcntl, [Int(1, 1)]),
            call!(exit_group),
        ];
        let filter = Filter::new(&lists).unwrap();
        let allowed = under(&filter, || {
            let _ = rustix::fs::fcntl_getfl(rustix::stdio::stdin());
            let _ = rustix::io::fcntl_getfd(rustix::stdio::stdin());
        });
        assert_eq!(allowed.code(), Some(0), "{allowed:?}");
    }
}
