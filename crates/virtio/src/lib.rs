//! Virtio devices over guest memory (Virtual I/O Device version 1.2; section numbers in this
//! crate are that document's).
//!
//! Owns the MMIO transport ([`MmioDevice`]), the devices, and the loop that drives them
//! ([`DeviceLoop`]). Refuses to know a hypervisor: an interrupt is whatever an
//! [`InterruptLine`] does, and who reads and writes registers is nobody's business here.
//!
//! Everything in guest memory is hostile: it may change while it is looked at, lead nowhere,
//! in circles, or ask for more than there is. What a driver may get wrong is answered as the
//! specification says; what no driver does is a [`Fault`], after which the device is broken
//! and whoever owns the machine is told why. Nothing is allocated by lengths that a guest
//! names, and nothing in here panics on them.

pub mod balloon;
pub mod block;
mod buffers;
pub mod console;
mod context;
mod device;
pub mod entropy;
mod event_loop;
mod interrupt;
mod mmio;
pub mod net;
mod persist;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;

pub use buffers::{Buffers, MAX_SEGMENTS};
pub use context::{Chain, Context, Progress, Turn};
pub use device::{Fault, Readiness, Source, VirtioDevice};
pub use event_loop::{DeviceLoop, LoopError};
pub use interrupt::InterruptLine;
pub use mmio::{MMIO_SIZE, MmioDevice, QUEUE_NOTIFY};
pub use persist::{DeviceState, QueueState, RestoreError, TransportState};

/// The guest's memory. Clones share it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// Feature bits of every device, section 6.
pub(crate) mod feature {
    /// VIRTIO_F_INDIRECT_DESC
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1
    pub(crate) const VERSION_1: u64 = 1 << 32;
}
