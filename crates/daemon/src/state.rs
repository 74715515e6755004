//! What all requests share.

use std::sync::Arc;

use bulkhead_registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::events::EventBus;
use crate::services::build::BuildCaches;
use crate::services::containers::Containers;
use crate::services::images::Images;
use crate::services::networks::Networks;
use crate::services::system::System;
use crate::services::volumes::Volumes;
use crate::store::Store;

/// The shared state, as axum hands it to handlers.
pub type AppState = Arc<Daemon>;

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    /// How it was started.
    pub config: Arc<Config>,
    /// What survives it: containers.
    pub store: Store,
    /// Cancelled when the daemon shuts down: answers that stream then end.
    pub shutdown: CancellationToken,
    /// What happened.
    pub events: EventBus,
    /// Containers.
    pub containers: Containers,
    /// Networks.
    pub networks: Networks,
    /// Images.
    pub images: Images,
    /// Volumes.
    pub volumes: Volumes,
    /// Where images come from and go to.
    pub registry: Arc<Registry>,
    /// What builds keep for later ones.
    pub build_caches: BuildCaches,
    /// What `info` and `version` tell about host and daemon.
    pub system: System,
}
