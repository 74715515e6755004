//! The entropy device, section 5.4: random bytes from the host's kernel.

mod device;
mod persist;

pub use device::Entropy;
pub use persist::EntropyState;
