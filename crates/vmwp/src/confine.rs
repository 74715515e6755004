//! What the worker takes from its parent and what it gives up, before it does anything else.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::process::{Resource, Rlimit};

/// Takes the socket to the supervisor off the standard input, puts `/dev/null` there, and
/// closes whatever else was inherited.
pub(crate) fn take_control() -> io::Result<UnixStream> {
    // Fails with ENOTSOCK on anything else.
    rustix::net::sockopt::socket_type(rustix::stdio::stdin())?;
    // SAFETY: nothing in this process has opened a descriptor yet, so whatever is open from
    // 3 on was inherited and has no owner here.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    Ok(UnixStream::from(control))
}

/// Gives up what neither the worker nor an engine needs: new privileges, core dumps (they
/// would hold the guest's memory), being traced by others, the supervisor's session.
pub(crate) fn confine() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    match rustix::process::setsid() {
        // EPERM: it leads a process group already, so the parent has seen to it.
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
