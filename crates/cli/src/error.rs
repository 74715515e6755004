//! How a command fails: what is printed, and the exit code.

use crate::client::ClientError;

/// Exit code of a request that the daemon refused to carry out for `run`, and of bad flags.
pub const EXIT_DAEMON: i32 = 125;

/// A command's failure, ready to be printed by [`crate::app`].
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The exit code is all there is to say (a container's own exit code, for example).
    #[error("exit code {0}")]
    Exit(i32),
    /// A message for standard error, with the exit code to use.
    #[error("{message}")]
    Status {
        /// What to print.
        message: String,
        /// The process's exit code.
        code: i32,
    },
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Several names were given and some failed; one line is printed for each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<CliError>),
    /// Whoever read our output has gone.
    #[error("standard output was closed")]
    OutputClosed,
    /// Local input or output failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, usually a file's name.
        context: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What a command returns.
pub type CliResult<T = ()> = Result<T, CliError>;

impl CliError {
    /// A plain failure: the message, exit code 1.
    pub fn msg(message: impl Into<String>) -> Self {
        Self::Status {
            message: message.into(),
            code: 1,
        }
    }

    /// A local input or output failure with what it was about.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            context: context.into(),
            source,
        }
    }

    /// The exit code of the process when this reaches the top.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exit(code) => *code,
            Self::Status { code, .. } => *code,
            // What a shell shows for a process that SIGPIPE ended.
            Self::OutputClosed => 141,
            Self::Client(_) | Self::Several(_) | Self::Io { .. } => 1,
        }
    }

    /// True if nothing is to be printed.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Exit(_) | Self::OutputClosed)
    }

    /// True if the daemon said that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Client(ClientError::Api { status: 404, .. }))
    }
}

/// Nothing if `errors` is empty, else all of them as one failure.
pub fn join(errors: Vec<CliError>) -> CliResult {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(CliError::Several(errors))
    }
}
