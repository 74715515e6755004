//! What the supervisor and the worker say to each other: lines of JSON on one UNIX stream
//! socket. The first line is the [`crate::MachineConfig`]; then requests go one way,
//! replies and the exit the other. When the supervisor's end closes, the worker kills its
//! machine and ends: a machine never outlives whoever asked for it.
//!
//! The worker is started as `vmwp --id <id>` with that socket as descriptor 0, the
//! transport to the agent as descriptor 1 and a pipe for its last words as descriptor 2.

use serde::{Deserialize, Serialize};

use crate::MachineExit;

/// Longest line, bytes. A configuration with the most layers and the longest paths fits.
pub const MAX_LINE: usize = 1 << 20;

/// Supervisor to worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the reply.
    pub sequence: u64,
    /// What to do.
    pub verb: Verb,
}

/// What a worker can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Stop the CPUs.
    Pause,
    /// Let them run on.
    Resume,
    /// Pull the plug; the reply is the exit.
    Kill,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The machine's CPUs run.
    Running,
    /// A request was carried out, or not.
    Reply {
        /// Which request.
        sequence: u64,
        /// What went wrong, if something did.
        error: Option<String>,
    },
    /// The machine has ended; the last line.
    Exited(MachineExit),
}
