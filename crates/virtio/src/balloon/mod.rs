//! The balloon device, section 5.5: memory that the guest does without goes back to the host.
//!
//! By two ways: the host asks for an amount and the driver gives pages up (the balloon), and
//! the driver tells, unasked, which of its free pages need not be kept (free page reporting).

mod device;
mod event_handler;
mod persist;

pub use device::{Balloon, BalloonHandle};
pub use persist::BalloonState;

/// Bytes of a balloon's page, whatever the guest's are.
pub const PAGE: u64 = 4096;
