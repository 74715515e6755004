//! What a device raises towards its guest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A wire to the guest's interrupt controller, edge-triggered.
pub trait InterruptLine: Send + Sync {
    /// Raises it once.
    ///
    /// # Errors
    /// What the system says.
    fn raise(&self) -> io::Result<()>;
}

impl InterruptLine for EventFd {
    fn raise(&self) -> io::Result<()> {
        self.write(1)
    }
}

/// InterruptStatus, section 4.2.2: bit 0 for used buffers, bit 1 for the configuration.
const USED_BUFFER: u32 = 1;
const CONFIGURATION: u32 = 2;

/// A device's line with the register that tells why it was raised. Outside of the device's
/// lock: a guest that asks for the reason need not wait for what the device does.
pub(crate) struct Interrupt {
    status: AtomicU32,
    line: Arc<dyn InterruptLine>,
}

impl Interrupt {
    pub(crate) fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self {
            status: AtomicU32::new(0),
            line,
        }
    }

    pub(crate) fn used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    pub(crate) fn configuration(&self) {
        self.raise(CONFIGURATION);
    }

    fn raise(&self, why: u32) {
        self.status.fetch_or(why, Ordering::SeqCst);
        if let Err(error) = self.line.raise() {
            tracing::warn!(%error, "cannot raise a device's interrupt");
        }
    }

    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Restored state: what was not acknowledged is raised again, since the line's own
    /// state may not have come along.
    pub(crate) fn restore(&self, status: u32) {
        let status = status & (USED_BUFFER | CONFIGURATION);
        self.status.store(status, Ordering::SeqCst);
        if status != 0 {
            self.raise(0);
        }
    }
}
