//! The error of every operation on a container: a kind that the edges translate, and a
//! message for a person. Serialisable, since it crosses the VM's transport and the Task API.

use serde::{Deserialize, Serialize};

/// Shorthand.
pub type Result<T> = std::result::Result<T, IsolationError>;

/// What went wrong, for code. Each edge (HTTP, ttrpc) translates it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The payload's executable does not exist (exit code 127).
    CommandNotFound,
    /// The payload's executable exists and may not be executed (exit code 126).
    CommandNotExecutable,
    /// The directory that a process is to start in is none that it can enter.
    WorkingDirectory,
    /// The request cannot be honoured as it stands.
    InvalidArgument,
    /// The named container or process does not exist (any more).
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// The container is in a state that does not allow this.
    FailedPrecondition,
    /// The host lacks something: no engine, no guest kernel, no cgroup controller.
    Unavailable,
    /// This isolation cannot do it.
    Unsupported,
    /// Anything else.
    Other,
}

/// An error with its kind; `message` names the thing and says what to do, and contains
/// the messages of its causes, because it crosses process boundaries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct IsolationError {
    /// For code.
    pub kind: ErrorKind,
    /// For a person.
    pub message: String,
}

impl IsolationError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// An [`ErrorKind::Other`] that says what was being done when `source` happened.
    pub fn other(context: impl std::fmt::Display, source: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::Other, format!("{context}: {source}"))
    }
}
