//! Containers: one owner task each ([`actor`]), found here by ID, name or prefix.
//!
//! Everything that changes a container goes through its owner task's mailbox and is accepted
//! or refused by its state there. Everything that looks reads the newest [`View`], which
//! never waits. The store is written before a change is acknowledged.

mod actor;
pub mod archive;
mod command;
mod commit;
mod create;
pub mod exec;
mod files;
pub mod health;
mod joined;
mod launch;
pub mod lifecycle;
mod links;
mod log_attributes;
pub mod logs;
pub mod model;
mod mounts;
mod names;
mod network;
mod propagation;
mod recovery;
mod remove;
mod rest;
pub mod signals;
pub mod top;
mod update;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bollard_stubs::models::HostConfig;
use bulkhead_image::{ImageId, ImageStore, ImageUse};
use bulkhead_network::{InterfaceCounters, NetworkNamespaceError};
use bulkhead_spec::HostFacts;
use bulkhead_task::options::IsolationKind;
use bulkhead_userns::Mappings;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::error::{ApiError, ApiResult};
use crate::events::EventBus;
use crate::services::networks::Networks;
use crate::services::volumes::Volumes;
use crate::store::Store;

pub use archive::WriteArchive;
pub use command::{AttachTarget, Command};
pub use commit::CommitRequest;
pub use create::{CreateRequest, Created, new_id};
pub use exec::{Exec, ExecRequest, ExecState};
pub use model::{Record, State, Status, View};
pub use mounts::MountPoint;
pub use recovery::Stored;
pub use update::UpdateRequest;

/// What owner tasks share.
#[derive(Debug)]
pub struct Shared {
    /// The daemon's configuration.
    pub config: Arc<Config>,
    /// Where records are kept.
    pub store: Store,
    /// Where events go.
    pub events: EventBus,
    /// The networks.
    pub networks: Networks,
    /// The images.
    pub images: Arc<ImageStore>,
    /// The volumes.
    pub volumes: Volumes,
    /// What the host can do.
    pub facts: HostFacts,
    /// Held for reading while a container is being made, so that the image which was looked
    /// up for it is still there when others can see that it is used.
    creating: Arc<RwLock<()>>,
    /// The owner tasks.
    owners: TaskTracker,
    index: Mutex<Index>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// Images that a build is using, and how often.
    held_images: Mutex<HashMap<ImageId, usize>>,
}

#[derive(Debug, Default)]
struct Index {
    by_id: BTreeMap<String, Arc<Handle>>,
    /// Names, also of containers that are being created.
    names: HashMap<String, String>,
}

/// One container, for those that don't own it.
#[derive(Debug)]
pub struct Handle {
    /// Its ID.
    pub id: String,
    /// The owner's mailbox.
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Arc<View>>,
    /// Whether somebody removes it.
    removing: std::sync::atomic::AtomicBool,
}

impl Handle {
    /// How it is now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Follows how it is.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}

/// The container service.
#[derive(Debug, Clone)]
pub struct Containers {
    shared: Arc<Shared>,
}

impl Containers {
    /// A service without containers; [`Containers::recover`] brings them in.
    ///
    /// # Errors
    /// That network namespaces cannot be kept here.
    pub fn new(
        config: Arc<Config>,
        store: Store,
        events: EventBus,
        images: Arc<ImageStore>,
        volumes: Volumes,
        networks: Networks,
    ) -> Result<Self, NetworkNamespaceError> {
        bulkhead_network::prepare_directory(&netns_dir(&config))?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                store,
                events,
                networks,
                images,
                volumes,
                facts: HostFacts::detect(),
                creating: Arc::default(),
                owners: TaskTracker::new(),
                index: Mutex::default(),
                execs: Mutex::default(),
                held_images: Mutex::default(),
            }),
        })
    }

    /// Ends the owner tasks, each after what it is doing, and lets go of what only a running
    /// daemon needs. Containers keep running.
    pub async fn close(&self) {
        self.shared.index().by_id.clear();
        self.shared.execs().clear();
        self.shared.owners.close();
        self.shared.owners.wait().await;
        self.shared.networks.close().await;
        bulkhead_network::release_directory(&netns_dir(&self.shared.config));
    }

    /// What the host can do.
    pub fn facts(&self) -> &HostFacts {
        &self.shared.facts
    }

    /// What went through the interfaces of a running container's own namespace so far;
    /// nothing for one that has none.
    pub async fn network_counters(&self, view: &View) -> Vec<InterfaceCounters> {
        let own = network::namespace(&view.record.host_config) == network::Namespace::Own;
        if view.task.is_none() || !own {
            return Vec::new();
        }
        let path = self.shared.netns_path(&view.record.id);
        let counted = tokio::task::spawn_blocking(move || bulkhead_network::counters(&path))
            .await
            .map_err(std::io::Error::other)
            .flatten();
        counted.unwrap_or_else(|error| {
            tracing::debug!(id = %view.record.id, %error, "network counters");
            Vec::new()
        })
    }

    /// Every container.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        self.shared.index().by_id.values().cloned().collect()
    }

    /// The container that an ID, a name, a unique prefix of an ID, or a link's name
    /// (`parent/alias`) means.
    ///
    /// # Errors
    /// 404; 400 when several IDs begin like that. Docker's words.
    pub fn find(&self, reference: &str) -> ApiResult<Arc<Handle>> {
        let bare = reference.strip_prefix('/').unwrap_or(reference);
        match bare.split_once('/') {
            Some((parent, alias)) => self.linked(parent, alias),
            None => self.find_own(reference),
        }
    }

    /// As [`Containers::find`], but not by links.
    fn find_own(&self, reference: &str) -> ApiResult<Arc<Handle>> {
        let missing = || ApiError::not_found(format!("No such container: {reference}"));
        let bare = reference.strip_prefix('/').unwrap_or(reference);
        if bare.is_empty() {
            return Err(ApiError::bad_request(format!(
                "invalid name or ID supplied: \"{reference}\""
            )));
        }
        let index = self.shared.index();
        if let Some(handle) = index.by_id.get(bare) {
            return Ok(Arc::clone(handle));
        }
        if let Some(handle) = index.names.get(bare).and_then(|id| index.by_id.get(id)) {
            return Ok(Arc::clone(handle));
        }
        let mut matches = index
            .by_id
            .range(bare.to_owned()..)
            .take_while(|(id, _)| id.starts_with(bare))
            .map(|(_, handle)| handle);
        match (matches.next(), matches.next()) {
            (Some(only), None) => Ok(Arc::clone(only)),
            (Some(_), Some(_)) => Err(ApiError::bad_request(format!(
                "Multiple IDs found with provided prefix: {reference}"
            ))),
            (None, _) => Err(missing()),
        }
    }

    /// Keeps containers from being made while the guard lives: for a removal of images, which
    /// asks [`Containers::image_uses`] under it.
    pub async fn hold_creates(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.shared.creating).write_owned().await
    }

    /// Keeps an image from being removed, as a container of it would.
    pub fn hold_image(&self, image: ImageId) {
        *self.shared.held_images().entry(image).or_default() += 1;
    }

    /// Ends what [`Containers::hold_image`] began.
    pub fn release_image(&self, image: &ImageId) {
        let mut held = self.shared.held_images();
        if let Some(count) = held.get_mut(image) {
            *count -= 1;
            if *count == 0 {
                held.remove(image);
            }
        }
    }

    /// What stands against the removal of images.
    pub fn image_uses(&self) -> Vec<ImageUse> {
        let held: Vec<ImageId> = self.shared.held_images().keys().copied().collect();
        let builds = held.into_iter().map(|image| ImageUse {
            image,
            container: "of a build".to_owned(),
            running: true,
        });
        let mut uses: Vec<ImageUse> = builds.collect();
        for handle in self.all() {
            let view = handle.view();
            let mounted = view.record.mounts.iter();
            let mounted = mounted.filter_map(|mount| mount.image.as_deref());
            let images = std::iter::once(view.record.image_id.as_str()).chain(mounted);
            uses.extend(images.filter_map(|image| {
                Some(ImageUse {
                    image: image.parse::<ImageId>().ok()?,
                    container: handle.id.clone(),
                    running: view.record.state.status.is_alive(),
                })
            }));
        }
        uses
    }
}

impl Shared {
    fn held_images(&self) -> MutexGuard<'_, HashMap<ImageId, usize>> {
        self.held_images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name for a container, atomically.
    fn reserve_name(&self, name: &str, id: &str) -> ApiResult<()> {
        let mut index = self.index();
        if let Some(holder) = index.names.get(name) {
            return Err(ApiError::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \
                 \"{holder}\". You have to remove (or rename) that container to be able to \
                 reuse that name."
            )));
        }
        index.names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }

    fn release_name(&self, name: &str) {
        self.index().names.remove(name);
    }

    /// Publishes an event of a container.
    fn event(&self, record: &Record, action: &str, more: &[(&str, String)]) {
        let mut attributes: BTreeMap<String, String> = record
            .config
            .labels
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        for (key, value) in more {
            attributes.insert((*key).to_owned(), value.clone());
        }
        attributes.insert("image".to_owned(), record.image.clone());
        attributes.insert("name".to_owned(), record.name.clone());
        self.events
            .publish("container", action, &record.id, attributes);
    }

    /// The IDs of the host that a container's are, where they are others.
    fn mappings(&self, isolation: IsolationKind, host_config: &HostConfig) -> Option<&Mappings> {
        let maps = isolation == IsolationKind::Process
            && host_config.userns_mode.as_deref() != Some("host");
        self.config.userns.as_ref().filter(|_| maps)
    }

    fn mappings_of(&self, record: &Record) -> Option<&Mappings> {
        self.mappings(record.isolation, &record.host_config)
    }

    /// The file of a container's network namespace.
    fn netns_path(&self, id: &str) -> PathBuf {
        netns_dir(&self.config).join(short(id))
    }

    /// Where a container's log is.
    fn log_path(&self, id: &str) -> PathBuf {
        self.config.container_dir(id).join(format!("{id}-json.log"))
    }
}

/// Where the files of network namespaces are.
fn netns_dir(config: &Config) -> PathBuf {
    config.exec_root.join("netns")
}

/// As much of an ID as names sockets and namespaces.
fn short(id: &str) -> String {
    id.chars().take(24).collect()
}

/// Where the files of a container are, for `inspect`.
#[derive(Debug)]
pub struct Files {
    /// `resolv.conf`.
    pub resolv_conf: PathBuf,
    /// `hostname`.
    pub hostname: PathBuf,
    /// `hosts`.
    pub hosts: PathBuf,
    /// The log, when its driver keeps one.
    pub log: Option<PathBuf>,
    /// The writable layer.
    pub writable: PathBuf,
    /// Whom those for the container are given to; nobody for root.
    owner: Option<(u32, u32)>,
}

impl Containers {
    /// Where the files of a container are.
    pub fn files(&self, record: &Record) -> Files {
        let dir = self.shared.config.container_dir(&record.id);
        Files {
            resolv_conf: dir.join("resolv.conf"),
            hostname: dir.join("hostname"),
            hosts: dir.join("hosts"),
            log: (record.log_driver() != "none").then(|| self.shared.log_path(&record.id)),
            writable: dir.join("rw"),
            owner: self
                .shared
                .mappings_of(record)
                .and_then(|mappings| mappings.root().ok()),
        }
    }
}
