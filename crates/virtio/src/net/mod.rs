//! The network device, section 5.1: a tap device's frames.
//!
//! Frames go between the tap and the guest's memory with their virtio headers, so segments
//! stay large and sums are computed where they are needed: the tap is told what the driver
//! can take.

mod device;
mod event_handler;
mod persist;
mod tap;

pub use device::Net;
pub use persist::NetState;
