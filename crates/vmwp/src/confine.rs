//! What the worker takes from its parent and what it gives up, before it does anything else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::process::{Resource, Rlimit};

/// What the worker was started with.
pub(crate) struct Sockets {
    /// To the supervisor.
    pub(crate) control: UnixStream,
    /// To whoever talks to the agent.
    pub(crate) transport: OwnedFd,
    /// The tap devices of the machine's network cards.
    pub(crate) taps: Vec<OwnedFd>,
}

/// Takes the sockets off the standard descriptors, puts `/dev/null` there, and closes
/// whatever else was inherited.
pub(crate) fn take_sockets() -> io::Result<Sockets> {
    for descriptor in [rustix::stdio::stdin(), rustix::stdio::stdout()] {
        // Fails with ENOTSOCK on anything else.
        rustix::net::sockopt::socket_type(descriptor)?;
    }
    // SAFETY: nothing in this process has opened a descriptor yet, so whatever is open from
    // 3 on was inherited and has no owner here.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let transport = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    // The supervisor has sent them before it started us.
    let taps = bulkhead_machine::worker::protocol::receive_taps(&control)?;
    let control = UnixStream::from(control);
    control.set_nonblocking(true)?;
    Ok(Sockets {
        control,
        transport,
        taps,
    })
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
