//! The block device, section 5.2.
//!
//! A disk is either layer blobs end to end, read-only, or one sparse file that is written,
//! in which what the guest discards becomes a hole. Bytes go between the files and the
//! guest's memory by one system call a request unless it is a long one, through the host's
//! page cache, so that machines of one image share it. The host's files are opened by whoever
//! makes the device.

mod backing;
mod device;
mod event_handler;
mod persist;

pub use backing::Backing;
pub use device::Block;
pub use persist::BlockState;

/// Bytes of a sector, the unit of everything in the protocol.
pub(crate) const SECTOR: u64 = 512;
