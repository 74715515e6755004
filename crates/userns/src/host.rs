//! Making files of a container from outside of it.

use std::io;
use std::marker::PhantomData;

use crate::Mappings;

/// linux/securebits.h: capabilities stay as they are when IDs change.
const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// For as long as this lives, the calling thread makes files as the container's root would,
/// with the rights that it has on the host.
#[derive(Debug)]
pub struct AsContainerRoot {
    before: libc::c_ulong,
    /// It belongs to its thread.
    _thread: PhantomData<*const ()>,
}

impl AsContainerRoot {
    /// Begins; needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP.
    ///
    /// # Errors
    /// That it is not allowed.
    pub fn of(mappings: &Mappings) -> io::Result<Self> {
        let (uid, gid) = mappings.root()?;
        // SAFETY: reads a number of this thread's.
        let before = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
        let before = libc::c_ulong::try_from(before).map_err(|_| io::Error::last_os_error())?;
        set_securebits(before | NO_SETUID_FIXUP)?;
        let scope = Self {
            before,
            _thread: PhantomData,
        };
        set_ids(uid, gid);
        match ids() == (uid, gid) {
            true => Ok(scope),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

impl Drop for AsContainerRoot {
    fn drop(&mut self) {
        set_ids(0, 0);
        // Allowed a moment ago.
        let _ = set_securebits(self.before);
    }
}

fn set_securebits(bits: libc::c_ulong) -> io::Result<()> {
    // SAFETY: sets a number of this thread's.
    match unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_ids(uid: u32, gid: u32) {
    // SAFETY: set numbers of this thread's; that they were not set shows in reading them.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// They are read by setting what cannot be set.
fn ids() -> (u32, u32) {
    // SAFETY: u32::MAX is no ID, so nothing changes.
    let (uid, gid) = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    (uid.cast_unsigned(), gid.cast_unsigned())
}
