//! What a tap device is told.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `TUNSETOFFLOAD` and `TUNSETVNETHDRSZ` of `linux/if_tun.h`.
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// What the guest can take: `TUN_F_*`.
pub(super) mod offload {
    pub(crate) const CSUM: libc::c_ulong = 1;
    pub(crate) const TSO4: libc::c_ulong = 2;
    pub(crate) const TSO6: libc::c_ulong = 4;
    pub(crate) const UFO: libc::c_ulong = 16;
}

/// Tells the tap what frames may be like.
pub(super) fn set_offloads(tap: impl AsFd, offloads: libc::c_ulong) -> io::Result<()> {
    let descriptor = tap.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and the argument is a plain number.
    let done = unsafe { libc::ioctl(descriptor, TUNSETOFFLOAD, offloads) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Tells the tap how long the header before each frame is.
pub(super) fn set_header_length(tap: impl AsFd, bytes: libc::c_int) -> io::Result<()> {
    let descriptor = tap.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, which reads one int.
    let done = unsafe { libc::ioctl(descriptor, TUNSETVNETHDRSZ, &raw const bytes) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has reads and writes never wait.
pub(super) fn set_nonblocking(tap: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&tap)?;
    rustix::fs::fcntl_setfl(&tap, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}
