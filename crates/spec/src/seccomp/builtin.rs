//! The built-in profile: what a container may ask of the kernel, with the meaning of Docker's.
//!
//! Everything that is not listed fails with EPERM. Calls that need a capability the container
//! does not have are left out as a whole, so that bugs behind the kernel's own check cannot be
//! reached either. `clone3` passes its flags in memory, which a filter cannot read: it fails
//! with ENOSYS, so that libc falls back to `clone`, whose flags are checked.

use oci_spec::runtime::{
    Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::{ARCHITECTURES, argument};
use crate::Invalid;

/// EPERM, `errno(3)`: the answer to what is not allowed.
const EPERM: u32 = 1;
/// ENOSYS, `errno(3)`.
const ENOSYS: u32 = 38;
/// `AF_VSOCK`, `linux/socket.h`: sockets between a VM and its host know no namespaces.
const AF_VSOCK: u64 = 40;
/// Every `CLONE_NEW*` flag but `CLONE_NEWTIME`, which `clone` has not (`linux/sched.h`).
const CLONE_NEW_FLAGS: u64 = 0x7e02_0000;
/// Execution domains a container may choose (`linux/personality.h`): `PER_LINUX`,
/// `PER_LINUX32`, `UNAME26` with either, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Files, directories, and what hangs off descriptors.
const FILES: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "chown32",
    "close",
    "close_range",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fadvise64_64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchown32",
    "fchownat",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstat64",
    "fstatat64",
    "fstatfs",
    "fstatfs64",
    "fsync",
    "ftruncate",
    "ftruncate64",
    "futimesat",
    "getcwd",
    "getdents",
    "getdents64",
    "getxattr",
    "getxattrat",
    "ioctl",
    "lchown",
    "lchown32",
    "lgetxattr",
    "link",
    "linkat",
    "listmount",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "_llseek",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "lstat",
    "lstat64",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "name_to_handle_at",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pipe",
    "pipe2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlink",
    "readlinkat",
    "readv",
    "removexattr",
    "removexattrat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "sendfile64",
    "setxattr",
    "setxattrat",
    "splice",
    "stat",
    "stat64",
    "statfs",
    "statfs64",
    "statmount",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "tee",
    "truncate",
    "truncate64",
    "umask",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimensat_time64",
    "utimes",
    "vmsplice",
    "write",
    "writev",
];

/// Waiting for descriptors, notification, asynchronous I/O.
const EVENTS: &[&str] = &[
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_ctl_old",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "epoll_wait_old",
    "eventfd",
    "eventfd2",
    "fanotify_mark",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_pgetevents_time64",
    "io_setup",
    "io_submit",
    "_newselect",
    "poll",
    "ppoll",
    "ppoll_time64",
    "pselect6",
    "pselect6_time64",
    "select",
    "signalfd",
    "signalfd4",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_gettime64",
    "timerfd_settime",
    "timerfd_settime64",
];

/// Memory.
const MEMORY: &[&str] = &[
    "brk",
    "cachestat",
    "madvise",
    "map_shadow_stack",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mmap2",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "process_mrelease",
    "remap_file_pages",
];

/// Processes, threads, scheduling, limits. `ptrace` and its relatives are safe below a seccomp
/// filter since Linux 4.8, which is older than anything this engine runs on.
const PROCESSES: &[&str] = &[
    "capget",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "fork",
    "futex",
    "futex_requeue",
    "futex_time64",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "getcpu",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrlimit",
    "get_robust_list",
    "getrusage",
    "getsid",
    "get_thread_area",
    "gettid",
    "ioprio_get",
    "ioprio_set",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "pidfd_open",
    "prctl",
    "prlimit64",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "restart_syscall",
    "rseq",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_rr_get_interval_time64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "seccomp",
    "setpgid",
    "setpriority",
    "setrlimit",
    "set_robust_list",
    "setsid",
    "set_thread_area",
    "set_tid_address",
    "times",
    "ugetrlimit",
    "uretprobe",
    "vfork",
    "wait4",
    "waitid",
    "waitpid",
];

/// Users, groups, capabilities.
const IDENTITY: &[&str] = &[
    "capset",
    "getegid",
    "getegid32",
    "geteuid",
    "geteuid32",
    "getgid",
    "getgid32",
    "getgroups",
    "getgroups32",
    "getresgid",
    "getresgid32",
    "getresuid",
    "getresuid32",
    "getuid",
    "getuid32",
    "setfsgid",
    "setfsgid32",
    "setfsuid",
    "setfsuid32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setuid",
    "setuid32",
];

/// Signals.
const SIGNALS: &[&str] = &[
    "alarm",
    "kill",
    "pause",
    "pidfd_send_signal",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo",
    "sigaltstack",
    "sigprocmask",
    "sigreturn",
    "tgkill",
    "tkill",
];

/// Sockets, except that `socket` itself has a rule of its own.
const SOCKETS: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmmsg_time64",
    "recvmsg",
    "send",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socketcall",
    "socketpair",
];

/// System V and POSIX IPC.
const IPC: &[&str] = &[
    "ipc",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedreceive_time64",
    "mq_timedsend",
    "mq_timedsend_time64",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "semtimedop_time64",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
];

/// Clocks and timers. `adjtimex` and its relatives read without a capability.
const TIME: &[&str] = &[
    "adjtimex",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_getres",
    "clock_getres_time64",
    "clock_gettime",
    "clock_gettime64",
    "clock_nanosleep",
    "clock_nanosleep_time64",
    "getitimer",
    "gettimeofday",
    "nanosleep",
    "setitimer",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_gettime64",
    "timer_settime",
    "timer_settime64",
];

/// What is left: identification of the system, randomness.
const SYSTEM: &[&str] = &["getrandom", "sysinfo", "uname"];

/// Calls of one architecture.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &[&str] = &["arch_prctl", "modify_ldt"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &[&str] = &[
    "arm_fadvise64_64",
    "arm_sync_file_range",
    "breakpoint",
    "cacheflush",
    "set_tls",
    "sync_file_range2",
];

/// Calls that are allowed to those who have a capability.
const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::Bpf, &["bpf"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (
        Capability::SysModule,
        &["delete_module", "finit_module", "init_module"],
    ),
    (
        Capability::SysNice,
        &[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
    (Capability::SysPacct, &["acct"]),
    (
        Capability::SysPtrace,
        &["kcmp", "pidfd_getfd", "process_madvise"],
    ),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (
        Capability::SysTime,
        &["clock_settime", "clock_settime64", "settimeofday", "stime"],
    ),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::Syslog, &["syslog"]),
];

/// The profile for a container with these capabilities.
///
/// # Errors
/// None in practice; the builder's signature has one.
pub(crate) fn default_profile(capabilities: &Capabilities) -> Result<LinuxSeccomp, Invalid> {
    let mut names: Vec<&str> = [
        FILES,
        EVENTS,
        MEMORY,
        PROCESSES,
        IDENTITY,
        SIGNALS,
        SOCKETS,
        IPC,
        TIME,
        SYSTEM,
        ARCHITECTURE,
    ]
    .concat();
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            names.extend_from_slice(calls);
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![allow(&names)];
    rules.push(allow(&["socket"]).args(vec![argument(
        0,
        LinuxSeccompOperator::ScmpCmpNe,
        AF_VSOCK,
        0,
    )?]));
    for personality in PERSONALITIES {
        rules.push(allow(&["personality"]).args(vec![argument(
            0,
            LinuxSeccompOperator::ScmpCmpEq,
            personality,
            0,
        )?]));
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        // In OCI's notation: flags & value == valueTwo.
        rules.push(allow(&["clone"]).args(vec![argument(
            0,
            LinuxSeccompOperator::ScmpCmpMaskedEq,
            CLONE_NEW_FLAGS,
            0,
        )?]));
        rules.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(ENOSYS),
        );
    }
    let rules: Result<Vec<LinuxSyscall>, _> =
        rules.into_iter().map(LinuxSyscallBuilder::build).collect();
    rules
        .and_then(|rules| {
            LinuxSeccompBuilder::default()
                .default_action(LinuxSeccompAction::ScmpActErrno)
                .default_errno_ret(EPERM)
                .architectures(ARCHITECTURES.to_vec())
                .syscalls(rules)
                .build()
        })
        .map_err(|error| Invalid::SeccompProfile(error.to_string()))
}

fn allow(names: &[&str]) -> LinuxSyscallBuilder {
    LinuxSyscallBuilder::default()
        .names(
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .action(LinuxSeccompAction::ScmpActAllow)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a call is allowed whatever its arguments.
    fn plainly_allowed(profile: &LinuxSeccomp, name: &str) -> bool {
        profile.syscalls().iter().flatten().any(|rule| {
            rule.args().is_none()
                && rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.names().iter().any(|n| n == name)
        })
    }

    fn rules<'a>(profile: &'a LinuxSeccomp, name: &str) -> Vec<&'a LinuxSyscall> {
        profile
            .syscalls()
            .iter()
            .flatten()
            .filter(|rule| rule.names().iter().any(|n| n == name))
            .collect()
    }

    fn with(capabilities: &[Capability]) -> LinuxSeccomp {
        default_profile(&capabilities.iter().copied().collect()).unwrap()
    }

    #[test]
    fn what_is_not_listed_is_eperm() {
        let profile = with(&[]);
        assert_eq!(profile.default_errno_ret(), Some(EPERM));
        for name in [
            "kexec_load",
            "mount",
            "keyctl",
            "add_key",
            "io_uring_setup",
            "swapon",
        ] {
            assert!(rules(&profile, name).is_empty(), "{name}");
        }
        for name in ["read", "execve", "ptrace", "openat2", "futex_waitv"] {
            assert!(plainly_allowed(&profile, name), "{name}");
        }
    }

    #[test]
    fn namespaces_need_sys_admin() {
        let profile = with(&[]);
        let clone = rules(&profile, "clone");
        assert_eq!(clone.len(), 1);
        let argument = &clone[0].args().as_ref().unwrap()[0];
        assert_eq!(
            (argument.value(), argument.value_two()),
            (CLONE_NEW_FLAGS, Some(0))
        );
        let clone3 = rules(&profile, "clone3");
        assert_eq!(clone3[0].errno_ret(), Some(ENOSYS));
        assert!(!plainly_allowed(&profile, "unshare"));

        let admin = with(&[Capability::SysAdmin]);
        for name in ["clone", "clone3", "unshare", "mount"] {
            assert!(plainly_allowed(&admin, name), "{name}");
            assert_eq!(rules(&admin, name).len(), 1, "{name}");
        }
    }

    #[test]
    fn every_group_comes_with_its_capability() {
        for (capability, calls) in WITH_CAPABILITY {
            let (without, granted) = (with(&[]), with(&[*capability]));
            for name in *calls {
                assert!(!plainly_allowed(&without, name), "{name}");
                assert!(plainly_allowed(&granted, name), "{name}");
            }
        }
    }

    #[test]
    fn vsock_sockets_are_not_allowed() {
        let profile = with(&[]);
        let socket = rules(&profile, "socket");
        assert_eq!(socket.len(), 1);
        assert_eq!(socket[0].args().as_ref().unwrap()[0].value(), AF_VSOCK);
    }

    #[test]
    fn no_name_is_listed_twice() {
        let all = [
            FILES,
            EVENTS,
            MEMORY,
            PROCESSES,
            IDENTITY,
            SIGNALS,
            SOCKETS,
            IPC,
            TIME,
            SYSTEM,
            ARCHITECTURE,
        ]
        .concat();
        let mut unique = all.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), all.len());
    }
}
