//! Waiting for devices: the kernel's own announcements, without polling.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

/// Hears of every device from its creation on.
#[derive(Debug)]
pub struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    /// Subscribes.
    ///
    /// # Errors
    /// What the system says.
    pub fn subscribe() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(KOBJECT_UEVENT),
        )?;
        // Group 1 is what the kernel itself sends.
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 1))?;
        Ok(Self { socket })
    }

    /// Looks with `find` at once and after each announcement, until it finds something.
    ///
    /// # Errors
    /// Those of `find`, and of the socket.
    pub fn wait_for<T>(&self, mut find: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
        // Only that there was one matters, not what it says.
        let mut announcement = [0; 64];
        loop {
            if let Some(found) = find()? {
                return Ok(found);
            }
            match rustix::net::recv(&self.socket, &mut announcement, RecvFlags::TRUNC) {
                // Overrun: announcements were lost, so looking again is right.
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
