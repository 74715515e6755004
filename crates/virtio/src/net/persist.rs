//! A card's state: what the driver may rely on to be the same behind another tap.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// What the driver has accepted, for the tap to be told; 0 before it has.
    pub features: u64,
}
