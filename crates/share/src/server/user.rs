//! Acting for a user of the guest.

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

/// While it lives, what the calling thread makes belongs to that user and group. All rights
/// stay (the process is set up so that they do): the guest's kernel has checked whether the
/// user may.
#[derive(Debug)]
pub struct AsUser(());

/// Given to setfsuid(2), it changes nothing.
const NOBODY: u32 = u32::MAX;

impl AsUser {
    /// Starts.
    ///
    /// # Errors
    /// `EPERM` when the kernel does not let us.
    pub fn new(user: u32, group: u32) -> Result<Self, Errno> {
        if user == NOBODY || group == NOBODY {
            return Err(Errno::INVAL);
        }
        let as_user = Self(());
        set(user, group)?;
        Ok(as_user)
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        // Back to what it was is always allowed.
        let _ = set(0, 0);
    }
}

fn set(user: u32, group: u32) -> Result<(), Errno> {
    // SAFETY: both calls take plain numbers and concern the calling thread alone.
    let now = unsafe {
        libc::setfsgid(group);
        libc::setfsuid(user);
        (libc::setfsuid(NOBODY), libc::setfsgid(NOBODY))
    };
    if (now.0.cast_unsigned(), now.1.cast_unsigned()) == (user, group) {
        Ok(())
    } else {
        Err(Errno::PERM)
    }
}

/// While it lives, what the calling thread writes loses its set-user-ID and set-group-ID
/// bits, as for anybody who is not privileged.
#[derive(Debug)]
pub struct AsWriter {
    dropped: bool,
}

impl AsWriter {
    /// Starts, if the guest says that the writer is not privileged.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(unprivileged: bool) -> Result<Self, Errno> {
        if unprivileged {
            keep_setid(false)?;
        }
        Ok(Self {
            dropped: unprivileged,
        })
    }
}

impl Drop for AsWriter {
    fn drop(&mut self) {
        if self.dropped {
            // It stays permitted, so taking it up again is always allowed.
            let _ = keep_setid(true);
        }
    }
}

fn keep_setid(keep: bool) -> Result<(), Errno> {
    let mut sets = rustix::thread::capabilities(None)?;
    let wanted = sets.permitted & CapabilitySet::FSETID;
    if keep {
        sets.effective |= wanted;
    } else {
        sets.effective -= CapabilitySet::FSETID;
    }
    rustix::thread::set_capabilities(None, sets)
}
