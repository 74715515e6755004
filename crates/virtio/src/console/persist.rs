//! The ports' state. The socket's other end has to be brought along by whoever restores; what
//! was on its way in the socket is not part of it.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Whether there is a console.
    pub console: bool,
    /// Whether the guest has opened the agent's port.
    pub guest_open: bool,
    /// Whether the host's side has ended.
    pub hung_up: bool,
    /// How many bytes of the next chain to be sent were sent.
    pub sent: u32,
    /// Control messages that wait to be received.
    pub waiting: Vec<Vec<u8>>,
}
