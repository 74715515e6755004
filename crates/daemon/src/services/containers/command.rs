//! What can be asked of a container: the letters in its owner's mailbox.

use std::sync::Arc;

use bollard_stubs::models::EndpointSettings;
use bulkhead_isolation::ExitStatus;
use bulkhead_task::attach::AttachRequest;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::UpdateRequest;
use super::health::ProbeResult;
use super::rest::FilesAccess;
use crate::error::ApiResult;
use crate::services::supervisor::Task;

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<ApiResult<T>>;

/// What can be asked of a container.
#[derive(Debug)]
pub enum Command {
    /// Start the payload. Refused with 304 when it runs.
    Start {
        /// The answer.
        reply: Reply<()>,
    },
    /// Send a signal.
    Kill {
        /// Which.
        signal: u32,
        /// Whether a user wants it to end: its restart policy then leaves it alone.
        stops: bool,
        /// Whether it belongs to a `stop`, which is announced after the end.
        announce: bool,
        /// The answer.
        reply: Reply<()>,
    },
    /// Freeze.
    Pause {
        /// The answer.
        reply: Reply<()>,
    },
    /// Thaw.
    Unpause {
        /// The answer.
        reply: Reply<()>,
    },
    /// Give another name.
    Rename {
        /// The new one.
        name: String,
        /// The answer.
        reply: Reply<()>,
    },
    /// Forget a link.
    Unlink {
        /// What the linked container is called here.
        alias: String,
        /// The answer.
        reply: Reply<()>,
    },
    /// Change limits or the restart policy.
    Update {
        /// What.
        request: Box<UpdateRequest>,
        /// The answer: what its maker should know.
        reply: Reply<Vec<String>>,
    },
    /// Put on one more network.
    Connect {
        /// Its name or ID.
        network: String,
        /// What is wanted of it.
        settings: Box<EndpointSettings>,
        /// The answer.
        reply: Reply<()>,
    },
    /// Take off a network.
    Disconnect {
        /// Its name or ID.
        network: String,
        /// Even when there is no such network any more.
        force: bool,
        /// The answer.
        reply: Reply<()>,
    },
    /// Get at the streams, now or when it starts.
    Attach {
        /// Which streams.
        request: AttachRequest,
        /// The answer.
        reply: Reply<AttachTarget>,
    },
    /// Remove.
    Remove {
        /// Kill it first if it runs.
        force: bool,
        /// Remove the volumes too that nobody named.
        volumes: bool,
        /// The answer.
        reply: Reply<()>,
    },
    /// Keep it when it ends, although it is to be removed then: it will be started again.
    HoldAutoRemove {
        /// Whether.
        hold: bool,
    },
    /// Have the supervisor of its next run show the files when that has ended well.
    ShowFilesAfter,
    /// Publish an event about it, after what is in the mailbox before.
    Announce {
        /// The action.
        action: String,
        /// Attributes beside the usual.
        attributes: Vec<(&'static str, String)>,
        /// When it is out.
        reply: Reply<()>,
    },
    /// Get at the files, whether it runs or not.
    OpenFiles {
        /// The answer.
        reply: Reply<FilesAccess>,
    },
    /// From the timer: nobody has looked at the files of a container at rest for a while.
    FilesIdle {
        /// Which time that they were opened.
        number: u64,
    },
    /// From the waiter: the payload ended.
    Exited {
        /// Which run.
        run: u64,
        /// How.
        status: ExitStatus,
    },
    /// From the health check.
    Probed {
        /// Of which run.
        run: u64,
        /// What it found.
        result: ProbeResult,
    },
    /// From the restart timer.
    Restart {
        /// After which run.
        run: u64,
    },
    /// From the removal timer.
    RemovalOverdue {
        /// Of which run.
        run: u64,
    },
}

/// Where the streams of a container are.
#[derive(Debug)]
pub enum AttachTarget {
    /// It runs: connect.
    Now(Arc<Task>),
    /// It does not yet: the connection comes when it starts, or never (the sender is dropped).
    Later(oneshot::Receiver<UnixStream>),
}
