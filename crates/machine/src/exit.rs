//! How a machine ended.

use serde::{Deserialize, Serialize};

/// Why there is no machine any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off: the ordinary end.
    PoweredOff,
    /// The guest's kernel panicked, reset itself or triple-faulted.
    GuestPanic,
    /// It was killed by [`crate::worker::Worker::kill`] or [`crate::Machine::kill`].
    Killed,
    /// It never ran: the engine is missing, a file cannot be read, memory is too small…
    BootFailed,
    /// The engine's process was killed by a signal that nobody here sent.
    EngineKilled,
    /// The engine gave up by itself.
    EngineFailed,
    /// The worker vanished without a word: killed, or crashed.
    WorkerLost,
}

/// How a machine ended, for code and for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineExit {
    /// For code.
    pub reason: ExitReason,
    /// A sentence for a person: what happened and, where there is something, what to do.
    pub detail: String,
}

impl MachineExit {
    /// An exit for this reason.
    pub fn new(reason: ExitReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}
