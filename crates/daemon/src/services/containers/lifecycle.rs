//! Verbs that take time: they talk to the owner task and watch the views, and hold nothing up.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{oneshot, watch};

use super::command::{AttachTarget, Command};
use super::model::{Status, View};
use super::rest::FilesAccess;
use super::{Containers, Handle, signals};
use crate::error::{ApiError, ApiResult};

/// Seconds that `stop` waits when nobody says otherwise.
const STOP_TIMEOUT: i64 = 10;
/// How long a killed container may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long after a failed request the end of its container may be noticed.
const NOTICE: Duration = Duration::from_secs(2);

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitCondition {
    /// That it does not run, now or later.
    NotRunning,
    /// Its next end.
    NextExit,
    /// Its removal.
    Removed,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waited {
    /// The exit code.
    pub code: u32,
    /// Why it did not start.
    pub error: Option<String>,
}

impl Handle {
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<ApiResult<T>>) -> Command,
    ) -> ApiResult<T> {
        let (reply, answer) = oneshot::channel();
        let gone = || ApiError::not_found(format!("No such container: {}", self.id));
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Starts it.
    ///
    /// # Errors
    /// 304 when it runs; 409 when its state forbids it; why it did not start.
    pub async fn start(&self) -> ApiResult<()> {
        self.ask(|reply| Command::Start { reply }).await
    }

    /// Sends a signal; SIGKILL also waits for the end.
    ///
    /// # Errors
    /// 409 when it does not run.
    pub async fn kill(&self, signal: u32) -> ApiResult<()> {
        let mut follow = self.watch();
        let before = follow.borrow_and_update().exits;
        let stops = signal == signals::KILL || signal == self.view().record.stop_signal();
        self.ask(|reply| Command::Kill {
            signal,
            stops,
            announce: false,
            reply,
        })
        .await
        .map_err(|mut error| {
            if error.status == axum::http::StatusCode::CONFLICT {
                error.message = format!("cannot kill container: {}: {}", self.id, error.message);
            }
            error
        })?;
        if signal == signals::KILL {
            ended(&mut follow, before, KILL_LIMIT).await;
        }
        Ok(())
    }

    /// Sends its stop signal (or `signal`), then, after `timeout` seconds (negative: never),
    /// SIGKILL; waits for the end.
    ///
    /// # Errors
    /// 304 when it does not run; 500 when it does not die.
    pub async fn stop(&self, signal: Option<u32>, timeout: Option<i64>) -> ApiResult<()> {
        let mut follow = self.watch();
        let view = follow.borrow_and_update().clone();
        if !view.record.state.status.is_alive() && view.record.state.status != Status::Restarting {
            return Err(ApiError::not_modified());
        }
        let signal = signal.unwrap_or_else(|| view.record.stop_signal());
        let timeout = timeout
            .or(view.record.config.stop_timeout)
            .unwrap_or(STOP_TIMEOUT);
        let sent = self
            .ask(|reply| Command::Kill {
                signal,
                stops: true,
                announce: true,
                reply,
            })
            .await;
        match sent {
            Ok(()) => {}
            // It ended by itself meanwhile.
            Err(error) if error.status == axum::http::StatusCode::CONFLICT => return Ok(()),
            Err(error) => return Err(error),
        }
        let over = match u64::try_from(timeout) {
            Ok(seconds) => ended(&mut follow, view.exits, Duration::from_secs(seconds)).await,
            Err(_) => {
                ended_at_all(&mut follow, view.exits).await;
                true
            }
        };
        if !over {
            tracing::info!(id = %self.id, "did not end by signal {signal} within {timeout} s, killing");
            let killed = self
                .ask(|reply| Command::Kill {
                    signal: signals::KILL,
                    stops: true,
                    announce: true,
                    reply,
                })
                .await;
            if killed.is_ok() && !ended(&mut follow, view.exits, KILL_LIMIT).await {
                return Err(ApiError::new(
                    axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                    format!(
                        "cannot stop container: {}: it did not end within {} s of SIGKILL",
                        self.id,
                        KILL_LIMIT.as_secs()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Stops it if it runs, and starts it.
    ///
    /// # Errors
    /// As [`Handle::stop`] and [`Handle::start`].
    pub async fn restart(&self, signal: Option<u32>, timeout: Option<i64>) -> ApiResult<()> {
        self.hold_auto_remove(true).await;
        let outcome = self.stop_and_start(signal, timeout).await;
        self.hold_auto_remove(false).await;
        outcome?;
        self.announce("restart", Vec::new()).await;
        Ok(())
    }

    async fn stop_and_start(&self, signal: Option<u32>, timeout: Option<i64>) -> ApiResult<()> {
        match self.stop(signal, timeout).await {
            Ok(()) => {}
            Err(error) if error.status == axum::http::StatusCode::NOT_MODIFIED => {}
            Err(mut error) => {
                error.message = format!("Cannot restart container {}: {}", self.id, error.message);
                return Err(error);
            }
        }
        match self.start().await {
            // Somebody else was faster.
            Err(error) if error.status == axum::http::StatusCode::NOT_MODIFIED => Ok(()),
            Err(mut error) => {
                error.message = format!("Cannot restart container {}: {}", self.id, error.message);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    async fn hold_auto_remove(&self, hold: bool) {
        let _ = self.commands.send(Command::HoldAutoRemove { hold }).await;
    }

    /// Has the files ready when its next run has ended well, without a start for them, for
    /// whoever reads them right then.
    pub async fn show_files_after(&self) {
        let _ = self.commands.send(Command::ShowFilesAfter).await;
    }

    /// Publishes an event about it once its owner has done what was asked before.
    pub async fn announce(&self, action: &str, attributes: Vec<(&'static str, String)>) {
        let action = action.to_owned();
        // A container that has gone has nothing to announce.
        let _ = self
            .ask(|reply| Command::Announce {
                action,
                attributes,
                reply,
            })
            .await;
    }

    /// Freezes it.
    ///
    /// # Errors
    /// 409 when it is frozen or does not run.
    pub async fn pause(&self) -> ApiResult<()> {
        self.ask(|reply| Command::Pause { reply }).await
    }

    /// Thaws it.
    ///
    /// # Errors
    /// 409 when it is not frozen.
    pub async fn unpause(&self) -> ApiResult<()> {
        self.ask(|reply| Command::Unpause { reply }).await
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// 400 for an invalid one, 409 for one that is taken.
    pub async fn rename(&self, name: &str) -> ApiResult<()> {
        let name = name.to_owned();
        self.ask(|reply| Command::Rename { name, reply }).await
    }

    /// What a request failed with: where the container ended under it, that it does not run.
    pub async fn explain(&self, error: ApiError) -> ApiError {
        if error.status != StatusCode::INTERNAL_SERVER_ERROR {
            return error;
        }
        let mut view = self.watch();
        let ended = view.wait_for(|view| !view.record.state.status.is_alive());
        // The request may have noticed sooner than we.
        match tokio::time::timeout(NOTICE, ended).await {
            Ok(_) => ApiError::conflict(format!("container {} is not running", self.id)),
            Err(_) => error,
        }
    }

    /// Forgets a link with another container.
    ///
    /// # Errors
    /// That it cannot be recorded.
    pub async fn unlink(&self, alias: &str) -> ApiResult<()> {
        let alias = alias.to_owned();
        self.ask(|reply| Command::Unlink { alias, reply }).await
    }

    /// Changes limits or the restart policy; gives warnings.
    ///
    /// # Errors
    /// 400 for what cannot be.
    pub async fn update(&self, request: super::UpdateRequest) -> ApiResult<Vec<String>> {
        let request = Box::new(request);
        self.ask(|reply| Command::Update { request, reply }).await
    }

    /// Puts it on one more network.
    ///
    /// # Errors
    /// 400 or 403 for what cannot be, 404 for a network that is not there.
    pub async fn connect(
        &self,
        network: &str,
        settings: bollard_stubs::models::EndpointSettings,
    ) -> ApiResult<()> {
        let (network, settings) = (network.to_owned(), Box::new(settings));
        self.ask(|reply| Command::Connect {
            network,
            settings,
            reply,
        })
        .await
    }

    /// Takes it off a network; `force`: also off one that is gone.
    ///
    /// # Errors
    /// 403 when it isn't on it, 404 for a network that is not there.
    pub async fn disconnect(&self, network: &str, force: bool) -> ApiResult<()> {
        let network = network.to_owned();
        self.ask(|reply| Command::Disconnect {
            network,
            force,
            reply,
        })
        .await
    }

    /// Gets at its files, whether it runs or not.
    ///
    /// # Errors
    /// 404 when it has gone; why its files cannot be shown.
    pub async fn open_files(&self) -> ApiResult<FilesAccess> {
        self.ask(|reply| Command::OpenFiles { reply }).await
    }

    /// Gets at its streams, now or when it starts.
    ///
    /// # Errors
    /// 404 when it has gone.
    pub async fn attach(
        &self,
        request: bulkhead_task::attach::AttachRequest,
    ) -> ApiResult<AttachTarget> {
        self.ask(|reply| Command::Attach { request, reply }).await
    }

    /// Removes it; with `volumes`, also those of its volumes that nobody named.
    ///
    /// # Errors
    /// 409 when it runs and `force` is not given, and when somebody else is at it.
    pub async fn remove(&self, force: bool, volumes: bool) -> ApiResult<()> {
        if self.removing.swap(true, Ordering::AcqRel) {
            return Err(ApiError::conflict(format!(
                "removal of container {} is already in progress",
                self.id
            )));
        }
        let _done = Removing(self);
        self.ask(|reply| Command::Remove {
            force,
            volumes,
            reply,
        })
        .await
    }

    /// Registers a wait at once; the future ends with it.
    pub fn wait(&self, condition: WaitCondition) -> impl Future<Output = Waited> + Send + 'static {
        let mut follow = self.watch();
        let first = follow.borrow_and_update().clone();
        async move {
            let done = |view: &View| match condition {
                WaitCondition::NotRunning => {
                    let status = view.record.state.status;
                    view.exits > first.exits
                        || view.removed
                        || !(status.is_alive() || status == Status::Restarting)
                }
                WaitCondition::NextExit => view.exits > first.exits || view.removed,
                WaitCondition::Removed => view.removed,
            };
            // The owner's end without a removal is the daemon's end.
            let view = follow
                .wait_for(|view| done(view))
                .await
                .map(|view| view.clone())
                .unwrap_or(first.clone());
            let state = &view.record.state;
            // An end that has a reason still has its code: clients take an error for its lack.
            let failed = state.status == Status::Created || (126..=128).contains(&state.exit_code);
            let error = Some(state.error.clone());
            Waited {
                code: state.exit_code,
                error: error.filter(|error| failed && !error.is_empty()),
            }
        }
    }
}

/// A removal that goes on.
struct Removing<'a>(&'a Handle);

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        self.0.removing.store(false, Ordering::Release);
    }
}

/// Waits for the next end, not longer than `limit`; says whether it came.
async fn ended(
    follow: &mut watch::Receiver<std::sync::Arc<View>>,
    before: u64,
    limit: Duration,
) -> bool {
    tokio::time::timeout(limit, ended_at_all(follow, before))
        .await
        .is_ok()
}

async fn ended_at_all(follow: &mut watch::Receiver<std::sync::Arc<View>>, before: u64) {
    let _ = follow
        .wait_for(|view| {
            view.removed || view.exits > before || !view.record.state.status.is_alive()
        })
        .await;
}

impl Containers {
    /// Removes every container that does not run and passes `filter`; gives their IDs and
    /// the bytes they took.
    pub async fn prune(&self, filter: impl Fn(&View) -> bool) -> (Vec<String>, u64) {
        let mut removed = Vec::new();
        let mut bytes = 0;
        for handle in self.all() {
            let view = handle.view();
            let status = view.record.state.status;
            if status.is_alive() || status == Status::Restarting || !filter(&view) {
                continue;
            }
            let size = self.writable_size(&view.record).await;
            if handle.remove(false, false).await.is_ok() {
                removed.push(handle.id.clone());
                bytes += size;
            }
        }
        (removed, bytes)
    }
}
