//! A disk's state: what the driver may rely on to be the same when its files are opened
//! anew.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Bytes.
    pub capacity: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Its serial.
    pub serial: String,
}
