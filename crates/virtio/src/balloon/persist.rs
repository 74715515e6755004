//! How large the balloon is and is to be.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages that it is to have.
    pub target: u32,
    /// Pages that it has, as the driver says.
    pub actual: u32,
}
