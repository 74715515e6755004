//! What a process was started with.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Takes the socket off the standard input, puts `/dev/null` there and on the standard
/// output, and closes whatever else was inherited but the standard error.
///
/// # Errors
/// What the system says; `ENOTSOCK` when the standard input is something else.
pub fn take_socket() -> io::Result<OwnedFd> {
    rustix::net::sockopt::socket_type(rustix::stdio::stdin())?;
    // SAFETY: nothing in this process has opened a descriptor yet, so whatever is open from
    // 3 on was inherited and has no owner here.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    Ok(socket)
}
