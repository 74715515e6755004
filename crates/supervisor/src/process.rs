//! A process of the task, init or exec: the isolation's process, its streams, and how far
//! it has come.

use std::sync::Arc;

use bulkhead_isolation::{ErrorKind, ExitStatus, IsolationError, Process, Result};
use bulkhead_task::exit_record;
use tokio::sync::{Mutex, watch};

use crate::stdio::{Fifos, Hub};

/// How far a process has come, apart from its exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Started,
}

/// A process of the task.
pub struct TaskProcess {
    process: Arc<dyn Process>,
    pub hub: Arc<Hub>,
    pub fifos: Fifos,
    phase: Mutex<Phase>,
    /// Set when everything about the exit has been dealt with.
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl TaskProcess {
    /// Watches a process; its exit is reported once its output is in the log and, for init,
    /// the record of it on disk.
    pub fn watch(
        process: Arc<dyn Process>,
        hub: Arc<Hub>,
        fifos: Fifos,
        record: Option<std::path::PathBuf>,
    ) -> Arc<Self> {
        let (sender, exit) = watch::channel(None);
        let (waited, finished) = (Arc::clone(&process), Arc::clone(&hub));
        tokio::spawn(async move {
            let status = waited.wait().await;
            finished.finish().await;
            if let Some(path) = record
                && let Err(error) = exit_record::write(&path, &status)
            {
                tracing::error!(%error, path = %path.display(), "the exit is not recorded");
            }
            sender.send_replace(Some(status));
        });
        Arc::new(Self {
            process,
            hub,
            fifos,
            phase: Mutex::new(Phase::Created),
            exit,
        })
    }

    /// Its number, 0 while it is unknown.
    pub fn pid(&self) -> u32 {
        self.process.pid().unwrap_or(0)
    }

    /// The exit, once it is dealt with.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.exit.borrow().clone()
    }

    /// Whether it was started.
    pub async fn started(&self) -> bool {
        *self.phase.lock().await == Phase::Started
    }

    /// Runs the payload.
    pub async fn start(&self) -> Result<()> {
        let mut phase = self.phase.lock().await;
        if *phase == Phase::Started {
            return Err(IsolationError::new(
                ErrorKind::FailedPrecondition,
                "process is already started",
            ));
        }
        self.process.start().await?;
        *phase = Phase::Started;
        Ok(())
    }

    /// Waits until the exit is dealt with.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let lost = || ExitStatus {
            code: 137,
            at: jiff::Timestamp::now(),
            oom_killed: false,
            failure: Some("the supervisor is ending".to_owned()),
        };
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or_else(lost),
            Err(_) => lost(),
        }
    }

    /// Sends a signal.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.process.kill(signal).await
    }

    /// Sets the size of the terminal.
    pub async fn resize(&self, size: bulkhead_isolation::TerminalSize) -> Result<()> {
        self.process.resize(size).await
    }
}
