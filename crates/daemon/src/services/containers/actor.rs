//! The owner task of one container: the only place that changes it. Its mailbox is worked
//! off one command after the other; each is accepted or refused by the state it meets.

use std::sync::Arc;
use std::time::Duration;

use bollard_stubs::models::RestartPolicyNameEnum;
use bulkhead_isolation::{ErrorKind, ExitStatus};
use bulkhead_task::attach::AttachRequest;
use jiff::Timestamp;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::DropGuard;

use super::command::{AttachTarget, Command, Reply};
use super::model::{Record, Status, View};
use super::rest::Rest;
use super::{Handle, Shared, UpdateRequest};
use crate::error::{ApiError, ApiResult};
use crate::services::supervisor::Task;

/// Depth of a mailbox; senders wait beyond.
const MAILBOX: usize = 64;
/// Longest pause between restarts by policy.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// First pause between restarts by policy.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// A run that lasted this long resets the pause.
const GOOD_RUN: Duration = Duration::from_secs(10);
/// How long a container may take to die of SIGKILL before a stop or a removal gives up. An
/// emulated machine on a host with seven times as much to do as it has CPUs took more than 10 s,
/// which is dockerd's limit.
const KILL_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct Actor {
    pub(super) shared: Arc<Shared>,
    pub(super) record: Record,
    pub(super) task: Option<Arc<Task>>,
    view: watch::Sender<Arc<View>>,
    mailbox: mpsc::Receiver<Command>,
    /// For timers and waiters, which don't keep the container alive.
    pub(super) own_mailbox: mpsc::WeakSender<Command>,
    /// The supervisor that shows the files while there is no payload.
    pub(super) rest: Option<Rest>,
    /// How often they were opened.
    pub(super) rests: u64,
    /// Whether the supervisor of this run, or the next one, shows them when that has ended.
    files_after: bool,
    exits: u64,
    pub(super) run: u64,
    /// Ends the health check when it is dropped.
    pub(super) monitor: Option<DropGuard>,
    pub(super) waiting_attaches: Vec<(AttachRequest, oneshot::Sender<UnixStream>)>,
    removals: Vec<Reply<()>>,
    /// Whether a removal takes the volumes along that nobody named.
    remove_volumes: bool,
    hold_auto_remove: bool,
    stop_announced: bool,
    backoff: Duration,
}

/// Makes the owner task of a container and enters it in the index.
pub(super) fn spawn(shared: &Arc<Shared>, record: Record, task: Option<Arc<Task>>) -> Arc<Handle> {
    let (commands, mailbox) = mpsc::channel(MAILBOX);
    let view = Arc::new(View {
        record: record.clone(),
        task: task.clone(),
        exits: 0,
        removed: false,
    });
    let (view_sender, view_receiver) = watch::channel(view);
    let handle = Arc::new(Handle {
        id: record.id.clone(),
        commands: commands.clone(),
        view: view_receiver,
        removing: std::sync::atomic::AtomicBool::new(false),
    });
    let mut actor = Actor {
        shared: Arc::clone(shared),
        record,
        task: None,
        view: view_sender,
        mailbox,
        own_mailbox: commands.downgrade(),
        rest: None,
        rests: 0,
        files_after: false,
        exits: 0,
        run: 0,
        monitor: None,
        waiting_attaches: Vec::new(),
        removals: Vec::new(),
        remove_volumes: false,
        hold_auto_remove: false,
        stop_announced: false,
        backoff: MIN_BACKOFF,
    };
    if let Some(task) = task {
        actor.adopt(task);
        actor.watch_health(false);
    }
    shared
        .index()
        .by_id
        .insert(handle.id.clone(), Arc::clone(&handle));
    shared.owners.spawn(actor.work());
    handle
}

impl Actor {
    async fn work(mut self) {
        while let Some(command) = self.mailbox.recv().await {
            self.handle(command).await;
            if self.view.borrow().removed {
                break;
            }
        }
        self.close_rest().await;
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Start { reply } => {
                let outcome = self.start().await;
                let _ = reply.send(outcome);
            }
            Command::Kill {
                signal,
                stops,
                announce,
                reply,
            } => {
                let outcome = self.kill(signal, stops).await;
                self.stop_announced |= announce && outcome.is_ok();
                let _ = reply.send(outcome);
            }
            Command::Pause { reply } => {
                let outcome = self.pause().await;
                let _ = reply.send(outcome);
            }
            Command::Unpause { reply } => {
                let outcome = self.unpause().await;
                let _ = reply.send(outcome);
            }
            Command::Rename { name, reply } => {
                let outcome = self.rename(&name).await;
                let _ = reply.send(outcome);
            }
            Command::Unlink { alias, reply } => {
                let outcome = self.unlink(&alias).await;
                let _ = reply.send(outcome);
            }
            Command::Update { request, reply } => {
                let outcome = self.update(&request).await;
                let _ = reply.send(outcome);
            }
            Command::Connect {
                network,
                settings,
                reply,
            } => {
                let outcome = self.connect(&network, &settings).await;
                let _ = reply.send(outcome);
            }
            Command::Disconnect {
                network,
                force,
                reply,
            } => {
                let outcome = self.disconnect(&network, force).await;
                let _ = reply.send(outcome);
            }
            Command::Attach { request, reply } => {
                let _ = reply.send(Ok(self.attach(request)));
            }
            Command::Remove {
                force,
                volumes,
                reply,
            } => {
                self.remove_volumes |= volumes;
                self.remove(force, reply).await;
            }
            Command::HoldAutoRemove { hold } => {
                self.hold_auto_remove = hold;
                // The payload may have ended for good while it was held.
                if !hold && self.record.auto_remove() && self.record.state.status == Status::Exited
                {
                    self.finish_removal().await;
                }
            }
            Command::ShowFilesAfter => self.files_after = true,
            Command::Announce {
                action,
                attributes,
                reply,
            } => {
                self.shared.event(&self.record, &action, &attributes);
                let _ = reply.send(Ok(()));
            }
            Command::OpenFiles { reply } => {
                let outcome = self.open_files().await;
                let _ = reply.send(outcome);
            }
            Command::FilesIdle { number } => self.files_idle(number).await,
            Command::Exited { run, status } => {
                if run == self.run && self.task.is_some() {
                    self.exited(status).await;
                }
            }
            Command::Probed { run, result } => {
                if run == self.run && self.task.is_some() {
                    self.probed(result).await;
                }
            }
            Command::Restart { run } => {
                if run == self.run && self.record.state.status == Status::Restarting {
                    self.restart_by_policy().await;
                }
            }
            Command::RemovalOverdue { run } => {
                if run == self.run && self.task.is_some() {
                    for reply in self.removals.drain(..) {
                        let _ = reply.send(Err(ApiError::new(
                            axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                            format!(
                                "could not kill container {}: it did not end within {} s of SIGKILL",
                                self.record.id,
                                KILL_LIMIT.as_secs()
                            ),
                        )));
                    }
                }
            }
        }
    }

    /// Writes the record, then shows it.
    pub(super) async fn commit(&mut self) -> ApiResult<()> {
        let saved = save(&self.shared, &self.record).await;
        self.show(false);
        saved
    }

    pub(super) fn show(&self, removed: bool) {
        self.view.send_replace(Arc::new(View {
            record: self.record.clone(),
            task: self.task.clone(),
            exits: self.exits,
            removed,
        }));
    }

    /// Shows a container that is about to run as running: its output may reach a client, and
    /// that client ask how it is, before its start is acknowledged and recorded.
    pub(super) fn show_starting(&self, task: &Arc<Task>, pid: u32) {
        let mut record = self.record.clone();
        record.state.status = Status::Running;
        record.state.pid = pid;
        record.state.started_at = Some(Timestamp::now());
        // What it was when it ended is none of this run's.
        if let Some(health) = &mut record.state.health {
            health.status = super::health::HealthStatus::Starting;
            health.failing_streak = 0;
        }
        self.view.send_replace(Arc::new(View {
            record,
            task: Some(Arc::clone(task)),
            exits: self.exits,
            removed: false,
        }));
    }

    /// Takes over a task whose payload runs: from now on its exit is noticed.
    fn adopt(&mut self, task: Arc<Task>) {
        self.run += 1;
        self.task = Some(Arc::clone(&task));
        let run = self.run;
        let mailbox = self.own_mailbox.clone();
        tokio::spawn(async move {
            let status = task.wait_init().await;
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(Command::Exited { run, status }).await;
            }
        });
    }

    fn after(&self, delay: Duration, command: Command) {
        let mailbox = self.own_mailbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(command).await;
            }
        });
    }

    async fn start(&mut self) -> ApiResult<()> {
        match self.record.state.status {
            // What waits for its next start runs, and goes on waiting.
            Status::Running | Status::Restarting => return Err(ApiError::not_modified()),
            Status::Paused => {
                return Err(ApiError::conflict(
                    "cannot start a paused container, try unpause instead",
                ));
            }
            Status::Removing | Status::Dead => {
                return Err(ApiError::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            Status::Created | Status::Exited => {}
        }
        self.record.manually_stopped = false;
        self.record.restart_count = 0;
        self.backoff = MIN_BACKOFF;
        self.launch().await
    }

    async fn launch(&mut self) -> ApiResult<()> {
        self.finish_rest().await;
        match super::launch::launch(self).await {
            Ok((task, pid)) => {
                self.adopt(task);
                let state = &mut self.record.state;
                state.status = Status::Running;
                state.pid = pid;
                state.exit_code = 0;
                state.error.clear();
                state.oom_killed = false;
                state.started_at = Some(Timestamp::now());
                self.watch_health(true);
                self.commit().await?;
                self.shared.event(&self.record, "start", &[]);
                Ok(())
            }
            Err(failure) => {
                self.waiting_attaches.clear();
                let state = &mut self.record.state;
                if state.status == Status::Restarting {
                    state.status = Status::Exited;
                }
                state.pid = 0;
                state.exit_code = failure.exit_code;
                state.error.clone_from(&failure.error.message);
                self.commit().await?;
                // A container that is to go when it ends, goes when it can't begin.
                if self.record.auto_remove() && !self.hold_auto_remove {
                    self.exits += 1;
                    self.finish_removal().await;
                } else {
                    self.exits += 1;
                    self.show(false);
                }
                Err(failure.error)
            }
        }
    }

    fn alive(&self) -> Option<Arc<Task>> {
        self.task.clone()
    }

    async fn kill(&mut self, signal: u32, stops: bool) -> ApiResult<()> {
        let Some(task) = self.alive() else {
            if self.record.state.status == Status::Restarting && stops {
                self.record.manually_stopped = true;
                self.record.state.status = Status::Exited;
                return self.commit().await;
            }
            return Err(ApiError::conflict(format!(
                "container {} is not running",
                self.record.id
            )));
        };
        if stops && !self.record.manually_stopped {
            self.record.manually_stopped = true;
            // Whoever fills the disk is to be stopped although that cannot be written down.
            if let Err(error) = self.commit().await {
                tracing::error!(id = %self.record.id, %error, "stop not recorded");
            }
        }
        match task.kill("", signal).await {
            Ok(()) => {}
            // It ended in between; its exit is in the mailbox.
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(ApiError::new(
                    axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                    format!("cannot kill container: {}: {error}", self.record.id),
                ));
            }
        }
        if stops && self.record.state.status == Status::Paused {
            // A frozen process takes its signal when it is thawed.
            match task.resume().await {
                Ok(()) => self.record.state.status = Status::Running,
                Err(error) => tracing::warn!(id = %self.record.id, %error, "resume for kill"),
            }
            self.show(false);
        }
        self.shared
            .event(&self.record, "kill", &[("signal", signal.to_string())]);
        Ok(())
    }

    async fn pause(&mut self) -> ApiResult<()> {
        if self.record.state.status == Status::Restarting {
            return Err(ApiError::conflict(format!(
                "container {} is restarting, wait until the container is running",
                self.record.id
            )));
        }
        let task = self.alive().ok_or_else(|| {
            ApiError::conflict(format!("container {} is not running", self.record.id))
        })?;
        if self.record.state.status == Status::Paused {
            return Err(ApiError::conflict(format!(
                "container {} is already paused",
                self.record.id
            )));
        }
        task.pause().await?;
        self.record.state.status = Status::Paused;
        self.commit().await?;
        self.shared.event(&self.record, "pause", &[]);
        Ok(())
    }

    async fn unpause(&mut self) -> ApiResult<()> {
        let task = self.alive();
        let (Some(task), Status::Paused) = (task, self.record.state.status) else {
            return Err(ApiError::conflict(format!(
                "container {} is not paused",
                self.record.id
            )));
        };
        task.resume().await?;
        self.record.state.status = Status::Running;
        self.commit().await?;
        self.shared.event(&self.record, "unpause", &[]);
        Ok(())
    }

    async fn update(&mut self, request: &UpdateRequest) -> ApiResult<Vec<String>> {
        let mut host_config = request.apply(&self.record)?;
        let warnings =
            bulkhead_spec::discard(&mut host_config, self.record.isolation, &self.shared.facts);
        // As at creation, and before anything of it is in force.
        let checked =
            bulkhead_spec::check_limits(&host_config, self.record.isolation, &self.shared.facts);
        checked.map_err(|error| {
            ApiError::bad_request(format!(
                "Cannot update container {}: {error}",
                self.record.id
            ))
        })?;
        if let Some(task) = self.alive()
            && let Some(resources) = request.resources(&self.record, &host_config)
        {
            task.update(&resources).await.map_err(|error| {
                let mut error = ApiError::from(error);
                error.message = format!(
                    "Cannot update container {}: {}",
                    self.record.id, error.message
                );
                error
            })?;
        }
        self.record.host_config = host_config;
        self.commit().await?;
        self.shared.event(&self.record, "update", &[]);
        Ok(warnings)
    }

    fn attach(&mut self, request: AttachRequest) -> AttachTarget {
        if let Some(task) = self.alive() {
            return AttachTarget::Now(task);
        }
        let (sender, receiver) = oneshot::channel();
        // Clients that gave up in the meantime.
        self.waiting_attaches
            .retain(|(_, waiting)| !waiting.is_closed());
        self.waiting_attaches.push((request, sender));
        AttachTarget::Later(receiver)
    }

    async fn remove(&mut self, force: bool, reply: Reply<()>) {
        match self.record.state.status {
            Status::Running | Status::Paused | Status::Restarting if !force => {
                let _ = reply.send(Err(ApiError::conflict(format!(
                    "cannot remove container \"/{}\": {}",
                    self.record.name,
                    if self.record.state.status == Status::Paused {
                        "container is paused and must be unpaused first"
                    } else {
                        "container is running: stop the container before removing or force remove"
                    }
                ))));
                return;
            }
            _ => {}
        }
        if !self.removals.is_empty() {
            let _ = reply.send(Err(ApiError::conflict(format!(
                "removal of container {} is already in progress",
                self.record.id
            ))));
            return;
        }
        self.removals.push(reply);
        if self.task.is_some() {
            match self.kill(super::signals::KILL, true).await {
                Ok(()) => {
                    let run = self.run;
                    self.after(KILL_LIMIT, Command::RemovalOverdue { run });
                }
                Err(error) => {
                    for reply in self.removals.drain(..) {
                        let _ = reply.send(Err(error.clone()));
                    }
                }
            }
        } else {
            if !force {
                self.finish_rest().await;
            }
            self.finish_removal().await;
        }
    }

    /// The payload ended: release everything, but what is wanted still, then tell.
    async fn exited(&mut self, status: ExitStatus) {
        let Some(task) = self.task.take() else { return };
        self.monitor = None;
        // As with Docker: nobody probes it any more.
        if let Some(health) = &mut self.record.state.health {
            health.status = super::health::HealthStatus::Unhealthy;
        }
        let well = status.code == 0 && status.failure.is_none();
        if std::mem::take(&mut self.files_after) && well {
            self.show_files_of(task, true);
        } else {
            super::launch::release(&self.shared, &self.record, &task).await;
        }
        let lasted = self
            .record
            .state
            .started_at
            .map(|start| status.at.duration_since(start))
            .unwrap_or_default();
        let state = &mut self.record.state;
        state.status = Status::Exited;
        state.pid = 0;
        state.exit_code = status.code;
        state.oom_killed = status.oom_killed;
        state.error = status.failure.clone().unwrap_or_default();
        state.finished_at = Some(status.at);
        self.record.networks.sandbox = None;
        self.exits += 1;
        let removed =
            !self.removals.is_empty() || (self.record.auto_remove() && !self.hold_auto_remove);
        let restarts = !removed && self.restarts(status.code);
        if restarts {
            self.record.state.status = Status::Restarting;
        }
        // Whoever hears of the end finds that it has ended.
        if removed {
            self.show(false);
        } else if let Err(error) = self.commit().await {
            tracing::error!(id = %self.record.id, %error, "exit not recorded");
        }
        self.shared.forget_execs_of(&self.record.id);
        super::mounts::announce_unmounted(&self.shared, &self.record);
        if status.oom_killed {
            self.shared.event(&self.record, "oom", &[]);
        }
        self.shared.event(
            &self.record,
            "die",
            &[
                ("execDuration", lasted.as_secs().max(0).to_string()),
                ("exitCode", status.code.to_string()),
            ],
        );
        if std::mem::take(&mut self.stop_announced) {
            self.shared.event(&self.record, "stop", &[]);
        }
        if removed {
            self.finish_removal().await;
        }
        if restarts {
            if Duration::try_from(lasted).unwrap_or_default() >= GOOD_RUN {
                self.backoff = MIN_BACKOFF;
            }
            let run = self.run;
            self.after(self.backoff, Command::Restart { run });
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Whether the restart policy wants it to run again.
    fn restarts(&self, code: u32) -> bool {
        if self.record.manually_stopped || self.hold_auto_remove {
            return false;
        }
        match self.record.restart_policy() {
            (RestartPolicyNameEnum::ALWAYS | RestartPolicyNameEnum::UNLESS_STOPPED, _) => true,
            (RestartPolicyNameEnum::ON_FAILURE, limit) => {
                code != 0 && (limit == 0 || i64::from(self.record.restart_count) < limit)
            }
            _ => false,
        }
    }

    async fn restart_by_policy(&mut self) {
        self.record.restart_count += 1;
        // Before the payload runs: a daemon that is killed right then must not grant it again.
        if let Err(error) = self.commit().await {
            tracing::warn!(id = %self.record.id, %error, "restart not recorded");
        }
        if let Err(error) = self.launch().await {
            tracing::warn!(id = %self.record.id, %error, "restart");
        }
    }

    /// Removes the container, which has no payload, and answers those who asked.
    async fn finish_removal(&mut self) {
        let before = self.record.state.status;
        self.record.state.status = Status::Removing;
        self.show(false);
        self.close_rest().await;
        let volumes = self.remove_volumes || self.record.auto_remove();
        let outcome = super::remove::erase(&self.shared, &self.record, volumes).await;
        match &outcome {
            Ok(()) => {
                self.record.state.status = if before == Status::Removing {
                    Status::Exited
                } else {
                    before
                };
                self.waiting_attaches.clear();
                self.shared.event(&self.record, "destroy", &[]);
                self.show(true);
            }
            Err(error) => {
                tracing::error!(id = %self.record.id, %error, "remove");
                self.record.state.status = Status::Dead;
                self.record.state.error.clone_from(&error.message);
                let _ = self.commit().await;
            }
        }
        for reply in self.removals.drain(..) {
            let _ = reply.send(outcome.clone());
        }
    }
}

/// Writes a record.
pub(super) async fn save(shared: &Shared, record: &Record) -> ApiResult<()> {
    let text = serde_json::to_string(record)
        .map_err(|error| ApiError::internal("encode container", &error))?;
    shared
        .store
        .put_container(record.id.clone(), record.name.clone(), text)
        .await
        .map_err(|error| ApiError::internal("save container", &error))
}
