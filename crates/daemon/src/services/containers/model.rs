//! A container as it is stored, and as others see it.

use std::path::PathBuf;
use std::sync::Arc;

use bollard_stubs::models::{ContainerConfig, HostConfig, RestartPolicyNameEnum};
use bulkhead_task::options::IsolationKind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::health::Health;
use super::mounts::MountPoint;
use crate::services::networks::NetworkSettings;
use crate::services::supervisor::Task;

/// Where a container is in its life; Docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    Created,
    /// Its payload runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended; will be started again by its restart policy.
    Restarting,
    /// Being removed.
    Removing,
    /// Ended.
    Exited,
    /// Could not be removed.
    Dead,
}

impl Status {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether there is a payload.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// What changes during a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Where it is.
    pub status: Status,
    /// PID of init; 0 when there is none.
    pub pid: u32,
    /// How it ended last.
    pub exit_code: u32,
    /// Why it did not start, or ended not by itself.
    pub error: String,
    /// Whether the OOM killer ended it.
    pub oom_killed: bool,
    /// Last start.
    pub started_at: Option<Timestamp>,
    /// Last end.
    pub finished_at: Option<Timestamp>,
    /// Its health, when it has a check.
    #[serde(default)]
    pub health: Option<Health>,
}

/// A container, as the store keeps it. Fields are only added, with defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the slash.
    pub name: String,
    /// When.
    pub created: Timestamp,
    /// The image as the user wrote it.
    pub image: String,
    /// Its ID, `sha256:…`.
    pub image_id: String,
    /// Its layer blobs, the lowest first.
    pub layers: Vec<PathBuf>,
    /// What separates it.
    pub isolation: IsolationKind,
    /// The configuration, merged with the image's.
    pub config: ContainerConfig,
    /// The host configuration, with defaults filled in.
    pub host_config: HostConfig,
    /// What runs.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The state.
    pub state: State,
    /// Restarts by policy since the last start by a user.
    #[serde(default)]
    pub restart_count: u32,
    /// Whether a user stopped it; the restart policy then leaves it alone.
    #[serde(default)]
    pub manually_stopped: bool,
    /// Its volumes and binds.
    #[serde(default)]
    pub mounts: Vec<MountPoint>,
    /// The networks.
    #[serde(default)]
    pub networks: NetworkSettings,
}

impl Record {
    /// Whether it has a terminal.
    pub fn tty(&self) -> bool {
        self.config.tty.unwrap_or(false)
    }

    /// Whether it goes away when it ends.
    pub fn auto_remove(&self) -> bool {
        self.host_config.auto_remove.unwrap_or(false)
    }

    /// The log driver.
    pub fn log_driver(&self) -> &str {
        self.host_config
            .log_config
            .as_ref()
            .and_then(|log| log.typ.as_deref())
            .unwrap_or("json-file")
    }

    /// The restart policy and its limit.
    pub fn restart_policy(&self) -> (RestartPolicyNameEnum, i64) {
        let policy = self.host_config.restart_policy.as_ref();
        (
            policy
                .and_then(|policy| policy.name)
                .unwrap_or(RestartPolicyNameEnum::EMPTY),
            policy
                .and_then(|policy| policy.maximum_retry_count)
                .unwrap_or(0),
        )
    }

    /// The host name.
    pub fn hostname(&self) -> &str {
        self.config.hostname.as_deref().unwrap_or_default()
    }

    /// The layers of its image and of those that it mounts.
    pub fn all_layers(&self) -> Vec<PathBuf> {
        let mounted = self.mounts.iter().flat_map(|mount| &mount.layers);
        self.layers.iter().chain(mounted).cloned().collect()
    }

    /// The signal of `stop`.
    pub fn stop_signal(&self) -> u32 {
        self.config
            .stop_signal
            .as_deref()
            .and_then(|name| super::signals::parse(name).ok())
            .unwrap_or(super::signals::TERM)
    }
}

/// A container as everybody but its owner task sees it. Views are replaced, not changed.
#[derive(Debug, Clone)]
pub struct View {
    /// The record.
    pub record: Record,
    /// The supervisor, while there is a payload.
    pub task: Option<Arc<Task>>,
    /// How often it has ended since this daemon knows it.
    pub exits: u64,
    /// Whether it was removed; nothing comes after.
    pub removed: bool,
}
