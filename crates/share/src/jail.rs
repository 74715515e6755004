//! The process in which a share is served: it sees the share and nothing else.
//!
//! Own namespaces of every kind but users, the share as the root directory, the rights of a
//! file server and no others, a filter of system calls, no way to more. What it has on the
//! host besides the share are its socket and the descriptor of its own `/proc/self/fd`, as a
//! mount of its own that leads nowhere else.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags};

use crate::{FILE_ENTRY, ShareConfig};

/// A step on the way into the jail failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub struct JailError {
    step: &'static str,
    source: io::Error,
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError {
        step,
        source: source.into(),
    }
}

/// What a file server needs: to give files away, to read and write others' files, to make
/// device files, to act for users, and the attributes that go with executables.
/// `DAC_READ_SEARCH` is not among it, because it opens any file of a filesystem by number.
const RIGHTS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP);

/// A directory that every system has; something of ours covers it in our namespace.
const STAGE: &str = "/proc";

/// The namespaces, of which the one for processes is for children only. The caller must have
/// a single thread.
///
/// # Errors
/// What the system says.
pub fn leave_host() -> Result<(), JailError> {
    let namespaces = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP
        | UnshareFlags::NEWPID;
    // SAFETY: the file system state that threads would share is that of the only thread.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.map_err(step("make namespaces"))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(step("leave the host's mounts"))
}

/// Makes the share the root of this process, its only file system. Returns the directory to
/// serve. The process must be the first of its namespace for processes.
///
/// # Errors
/// What the system says, with what was tried.
pub fn enter(config: &ShareConfig) -> Result<OwnedFd, JailError> {
    let metadata = std::fs::metadata(&config.source).map_err(step("look at the source"))?;
    let tree = take_source(config)?;
    let descriptors = own_descriptors()?;
    let none = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID;
    let stage = Path::new(STAGE);
    rustix::mount::mount("tmpfs", stage, "tmpfs", none, c"size=64k,mode=0755")
        .map_err(step("mount a place for the share"))?;
    let (place, root) = if metadata.is_dir() {
        let place = stage.join("share");
        std::fs::create_dir(&place).map_err(step("make a place for the share"))?;
        (place.clone(), place)
    } else if metadata.is_file() {
        let place = stage.join(FILE_ENTRY);
        std::fs::File::create(&place).map_err(step("make a place for the share"))?;
        (place, stage.to_owned())
    } else {
        let error = io::Error::other("it is neither a directory nor a regular file");
        return Err(step("share the source")(error));
    };
    rustix::mount::move_mount(
        &tree,
        c"",
        CWD,
        &place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(step("mount the share"))?;
    if metadata.is_file() {
        rustix::mount::mount_remount(stage, none | MountFlags::BIND | MountFlags::RDONLY, c"")
            .map_err(step("protect the place of the share"))?;
    }
    change_root(&root)?;
    rustix::process::fchdir(&descriptors).map_err(step("enter the descriptors"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/", flags, Mode::empty()).map_err(step("open the share"))
}

/// The source as a mount of its own, not attached anywhere.
fn take_source(config: &ShareConfig) -> Result<OwnedFd, JailError> {
    let recursive = if config.recursive {
        OpenTreeFlags::AT_RECURSIVE
    } else {
        OpenTreeFlags::empty()
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, &config.source, flags | recursive)
        .map_err(step("take the source"))?;
    let mut set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    if config.read_only && !config.writable_below {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    let propagation = if config.follow_mounts {
        libc::MS_SLAVE
    } else {
        libc::MS_PRIVATE
    };
    bulkhead_jail::restrict_mount(&tree, set, propagation).map_err(step("restrict the share"))?;
    if config.read_only && config.writable_below {
        bulkhead_jail::protect_mount(&tree).map_err(step("restrict the share"))?;
    }
    Ok(tree)
}

/// `/proc/self/fd` of this process, as a mount that has no parent to climb to.
fn own_descriptors() -> Result<OwnedFd, JailError> {
    let none = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID;
    rustix::mount::mount("proc", STAGE, "proc", none, None::<&CStr>)
        .map_err(step("mount the processes"))?;
    let path = Path::new(STAGE).join("self/fd");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, &path, flags).map_err(step("open the descriptors"))
}

/// Makes a mount the root, and lets go of the old one with all that is on it.
fn change_root(root: &Path) -> Result<(), JailError> {
    rustix::process::chdir(root).map_err(step("enter the share"))?;
    // Stacks the old root on the new one, from where it is taken off.
    rustix::process::pivot_root(c".", c".").map_err(step("make the share the root"))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(step("leave the host's files"))?;
    rustix::process::chdir(c"/").map_err(step("enter the root"))
}

/// Takes as many descriptors as are allowed; says how many.
///
/// # Errors
/// What the system says.
pub fn take_descriptors() -> Result<usize, JailError> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, wanted).map_err(step("take descriptors"))?;
    let limit = limit.maximum.unwrap_or(1 << 20);
    Ok(usize::try_from(limit).unwrap_or(1 << 20))
}

/// Gives up all rights that serving files does not need. Threads that exist keep theirs.
///
/// # Errors
/// What the system says, with what was tried.
pub fn give_up_rights() -> Result<(), JailError> {
    rustix::thread::set_thread_groups(&[]).map_err(step("leave all groups"))?;
    rustix::process::umask(Mode::empty());
    let core = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, core).map_err(step("forbid core dumps"))?;
    // Acting for a user of the guest keeps the rights of a file server.
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED,
    )
    .map_err(step("keep rights for users"))?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if RIGHTS.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one that the kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(step("give up rights")(error)),
        }
    }
    let rights = rustix::thread::capabilities(None)
        .map_err(step("look at the rights"))?
        .permitted
        & RIGHTS;
    let sets = CapabilitySets {
        effective: rights,
        permitted: rights,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(step("give up rights"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("forbid new rights"))
}

/// What serving files calls. No program can be executed, no process or thread started, no
/// socket opened, nothing mounted.
const CALLS: [&str; 90] = [
    "brk",
    "capget",
    "capset",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "copy_file_range",
    "dup",
    "exit",
    "exit_group",
    "fallocate",
    "fanotify_mark",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futex",
    "getdents64",
    "getpid",
    "getrandom",
    "gettid",
    "getxattr",
    "lgetxattr",
    "linkat",
    "listxattr",
    "llistxattr",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "madvise",
    "mkdirat",
    "mknodat",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "name_to_handle_at",
    "nanosleep",
    "newfstatat",
    "openat",
    "poll",
    "ppoll",
    "pread64",
    "preadv",
    "preadv2",
    "prlimit64",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readlinkat",
    "readv",
    "recvfrom",
    "recvmsg",
    "removexattr",
    "renameat",
    "renameat2",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "setfsgid",
    "setfsuid",
    "setxattr",
    "shutdown",
    "sigaltstack",
    "statx",
    "symlinkat",
    "tgkill",
    "unlinkat",
    "utimensat",
    "write",
    "writev",
];

/// Restricts every thread of this process to the system calls that serving files needs.
///
/// # Errors
/// What the system says.
pub fn filter_calls() -> Result<(), JailError> {
    let failed = |error: libseccomp::error::SeccompError| {
        step("restrict the system calls")(io::Error::other(error))
    };
    let forbidden = ScmpAction::Errno(libc::EPERM);
    let mut filter = ScmpFilterContext::new(forbidden).map_err(failed)?;
    filter.set_ctl_tsync(true).map_err(failed)?;
    for call in CALLS {
        // A library that does not know a call yet has no number to allow.
        if let Ok(call) = ScmpSyscall::from_name(call) {
            filter.add_rule(ScmpAction::Allow, call).map_err(failed)?;
        }
    }
    filter.load().map_err(failed)
}
