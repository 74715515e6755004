//! Tap devices: a network card's frames as a descriptor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use bulkhead_network::TAP_PREFIX;

use super::{NetworkError, system};

const DEVICE: &str = "/dev/net/tun";

/// A new tap device in the namespace of the calling thread, named by our prefix and this
/// number. It lasts as long as the descriptor and its copies.
pub fn create(number: usize) -> Result<(String, OwnedFd), NetworkError> {
    let name = format!("{TAP_PREFIX}{number}");
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(DEVICE))
        .map_err(system(format!(
            "open {DEVICE}, which a VM's network needs (the kernel's module is 'tun')"
        )))?;
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte is left for the end.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // Frames as they are, each after a header that tells what is left to be computed of it:
    // so segments stay large from one end to the other.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| {
        system(format!("make the tap device {name}"))(io::ErrorKind::InvalidInput.into())
    })?;
    // SAFETY: the descriptor is open, and the request is an initialised ifreq that lives
    // through the call, with its name terminated.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made < 0 {
        let error = io::Error::last_os_error();
        return Err(system(format!("make the tap device {name}"))(error));
    }
    Ok((name, file.into()))
}
