//! What a new daemon does about the containers of an earlier one: those whose supervisor
//! answers go on; the others have ended; what nobody owns is swept.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use bollard_stubs::models::RestartPolicyNameEnum;
use bulkhead_task::bundle::Bundle;
use bulkhead_task::exit_record;
use containerd_shim_protos::api;

use super::actor::{save, spawn};
use super::model::{Record, Status};
use super::{Containers, Shared};
use crate::error::{ApiError, ApiResult};
use crate::services::supervisor::{self, Task};
use crate::store::Store;

/// The containers of an earlier daemon, as the store has them.
#[derive(Debug)]
pub struct Stored {
    /// Those that cannot be read, too.
    ids: HashSet<String>,
    records: Vec<Record>,
}

impl Stored {
    /// Reads them all.
    ///
    /// # Errors
    /// That the store can't be read.
    pub async fn read(store: &Store) -> ApiResult<Self> {
        let rows = store
            .containers()
            .await
            .map_err(|error| ApiError::internal("read containers", &error))?;
        let mut stored = Self {
            ids: HashSet::with_capacity(rows.len()),
            records: Vec::with_capacity(rows.len()),
        };
        for (id, text) in rows {
            match serde_json::from_str(&text) {
                Ok(record) => stored.records.push(record),
                Err(error) => tracing::error!(%id, %error, "record of a container is damaged"),
            }
            stored.ids.insert(id);
        }
        Ok(stored)
    }

    /// The layers of all of them, each as often as a container has it.
    pub fn layers(&self) -> Vec<PathBuf> {
        self.records.iter().flat_map(Record::all_layers).collect()
    }
}

impl Containers {
    /// Brings in every container of the store. Call once, before the first request.
    ///
    /// # Errors
    /// What networks say. A container that can't be recovered ends as exited, with the reason
    /// in its state.
    pub async fn recover(&self, stored: Stored) -> ApiResult<()> {
        let shared = &self.shared;
        let mut recoveries = Vec::with_capacity(stored.records.len());
        for record in stored.records {
            shared
                .index()
                .names
                .insert(record.name.clone(), record.id.clone());
            // Before anything that may end it.
            super::mounts::adopt(shared, &record);
            recoveries.push(self.recover_one(record));
        }
        self.sweep_unknown(&stored.ids).await;
        futures::future::join_all(recoveries).await;
        shared.networks.settle().await?;
        shared.volumes.unmount_idle();
        self.start_by_policy();
        Ok(())
    }

    async fn recover_one(&self, mut record: Record) {
        let shared = &self.shared;
        if record.state.status == Status::Removing {
            let _ = super::remove::erase(shared, &record, false).await;
            return;
        }
        let task = match Bundle::of(&shared.config.exec_root, &record.id)
            .path()
            .exists()
        {
            true => find_task(shared, &record).await,
            false => None,
        };
        match task {
            Some((task, pid, paused)) => {
                record.state.status = if paused {
                    Status::Paused
                } else {
                    Status::Running
                };
                record.state.pid = pid;
                record
                    .state
                    .started_at
                    .get_or_insert_with(jiff::Timestamp::now);
                record_or_log(shared, &record).await;
                if let Ok(member) = super::network::member(shared, &record)
                    && let Err(error) = shared.networks.adopt(member, record.networks.clone()).await
                {
                    tracing::error!(id = %record.id, %error, "networks");
                }
                // If it has ended in the meantime, its owner learns that at once.
                spawn(shared, record, Some(task));
            }
            None => self.conclude(record).await,
        }
    }

    /// A container without a supervisor: it has ended, or never ran.
    async fn conclude(&self, mut record: Record) {
        let shared = &self.shared;
        let bundle = Bundle::of(&shared.config.exec_root, &record.id);
        let alive = record.state.status.is_alive();
        if alive {
            let exit = exit_record::read(&bundle.exit_record())
                .ok()
                .flatten()
                .unwrap_or_else(|| {
                    supervisor::lost(
                        "the container's supervisor was lost while the daemon was down".to_owned(),
                    )
                });
            record.state.status = Status::Exited;
            record.state.pid = 0;
            record.state.exit_code = exit.code;
            record.state.oom_killed = exit.oom_killed;
            record.state.error = exit.failure.unwrap_or_default();
            record.state.finished_at = Some(exit.at);
            if let Some(health) = &mut record.state.health {
                health.status = super::health::HealthStatus::Unhealthy;
            }
            record.networks.sandbox = None;
        } else if record.state.status == Status::Restarting {
            record.state.status = Status::Exited;
        }
        super::launch::sweep(shared, &record.id).await;
        super::launch::forget(shared, &record.id).await;
        super::mounts::unmount(shared, &record).await;
        if alive {
            shared.event(
                &record,
                "die",
                &[("exitCode", record.state.exit_code.to_string())],
            );
        }
        let never_ran = record.state.status == Status::Created;
        if record.auto_remove() && !never_ran {
            if let Err(error) = super::remove::erase(shared, &record, true).await {
                tracing::error!(id = %record.id, %error, "remove");
            } else {
                shared.event(&record, "destroy", &[]);
            }
            return;
        }
        if alive {
            record_or_log(shared, &record).await;
        }
        spawn(shared, record, None);
    }

    /// Starts what its restart policy wants to run whenever the daemon does.
    fn start_by_policy(&self) {
        for handle in self.all() {
            let view = handle.view();
            let record = &view.record;
            let wanted = match record.restart_policy().0 {
                RestartPolicyNameEnum::ALWAYS => true,
                RestartPolicyNameEnum::UNLESS_STOPPED => !record.manually_stopped,
                RestartPolicyNameEnum::ON_FAILURE => {
                    !record.manually_stopped && record.state.exit_code != 0
                }
                _ => false,
            };
            if wanted && record.state.status == Status::Exited {
                tokio::spawn(async move {
                    if let Err(error) = handle.start().await {
                        tracing::warn!(id = %handle.id, %error, "start by restart policy");
                    }
                });
            }
        }
    }

    /// Sweeps bundles, sockets, namespaces and directories of containers that don't exist.
    async fn sweep_unknown(&self, known: &HashSet<String>) {
        let shared = &self.shared;
        let exec_root = &shared.config.exec_root;
        for id in names_in(&exec_root.join("tasks")) {
            if known.contains(&id) {
                continue;
            }
            tracing::info!(%id, "sweeping a task without a container");
            if let Ok(task) = Task::reconnect(exec_root, &id).await {
                let _ = task.kill("", super::signals::KILL).await;
                let _ = task.delete("").await;
                task.shutdown().await;
            }
            super::launch::sweep(shared, &id).await;
            super::launch::forget(shared, &id).await;
        }
        let short: HashSet<String> = known.iter().map(|id| super::short(id)).collect();
        let kept = short.iter().map(std::ffi::OsString::from).collect();
        if let Err(error) = bulkhead_network::sweep(&super::netns_dir(&shared.config), &kept) {
            tracing::error!(%error, "network namespaces left behind");
        }
        for name in names_in(&exec_root.join("s")) {
            let owner = name.split('.').next().unwrap_or_default();
            if !short.contains(owner) {
                let _ = std::fs::remove_file(exec_root.join("s").join(&name));
            }
        }
        for name in names_in(exec_root) {
            if name.starts_with("populate-") {
                let _ = std::fs::remove_dir(exec_root.join(name));
            }
        }
        let containers = shared.config.data_root.join("containers");
        for id in names_in(&containers) {
            if !known.contains(&id)
                && let Err(error) = std::fs::remove_dir_all(containers.join(&id))
            {
                tracing::error!(%id, %error, "directory without a container not removed");
            }
        }
    }
}

/// The supervisor of a container, if it answers and its payload was started; then also
/// init's PID and whether it is paused.
async fn find_task(shared: &Arc<Shared>, record: &Record) -> Option<(Arc<Task>, u32, bool)> {
    let task = match Task::reconnect(&shared.config.exec_root, &record.id).await {
        Ok(task) => task,
        Err(error) => {
            tracing::info!(id = %record.id, %error, "no supervisor");
            return None;
        }
    };
    let running = match task.state().await {
        Ok((api::Status::RUNNING, pid)) => Some((pid, false)),
        Ok((api::Status::PAUSED | api::Status::PAUSING, pid)) => Some((pid, true)),
        // Its exit was recorded and waits for whoever asks. A restart by policy runs, and can
        // end, before the record says so.
        Ok((api::Status::STOPPED, pid))
            if record.state.status.is_alive() || record.state.status == Status::Restarting =>
        {
            Some((pid, false))
        }
        Ok((status, _)) => {
            tracing::info!(id = %record.id, ?status, "task of an unfinished start");
            None
        }
        Err(error) => {
            tracing::warn!(id = %record.id, %error, "supervisor without a task");
            None
        }
    };
    match running {
        Some((pid, paused)) => Some((Arc::new(task), pid, paused)),
        None => {
            let _ = task.kill("", super::signals::KILL).await;
            let _ = task.delete("").await;
            task.shutdown().await;
            None
        }
    }
}

async fn record_or_log(shared: &Shared, record: &Record) {
    if let Err(error) = save(shared, record).await {
        tracing::error!(id = %record.id, %error, "recovery not recorded");
    }
}

fn names_in(dir: &std::path::Path) -> Vec<String> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
