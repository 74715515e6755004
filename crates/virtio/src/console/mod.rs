//! The console device with several ports, section 5.3.
//!
//! Port 0 is the guest kernel's console, whose words go to whoever keeps them; port 1 is a
//! stream between the guest's agent and a socket. Either side may be slower than the other:
//! what does not fit waits where it is, and nothing is stored in between.

mod control;
mod device;
mod event_handler;
mod persist;

pub use device::{Console, Words};
pub use persist::ConsoleState;

/// The name under which the guest finds the agent's port.
pub const AGENT_PORT: &str = "bulkhead.agent";
