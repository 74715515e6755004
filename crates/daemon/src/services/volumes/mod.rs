//! Volumes: directories that outlive containers.
//!
//! Each is `<data-root>/volumes/<name>/_data` and a row of the store. Which containers use a
//! volume is counted here, from their creation to their removal; one that is used cannot be
//! removed. The store is written before a change is acknowledged: a directory without a row is
//! a volume that was being made, and one with a row that says so is being removed.

mod local;
mod model;
mod populate;
mod recovery;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::config::Config;
use crate::error::{ApiError, ApiResult};
use crate::events::EventBus;
use crate::store::Store;

pub use local::Backing;
pub use model::{ANONYMOUS, DRIVER, Volume, VolumeRequest};
pub use populate::{CopyUp, fill};

/// The volume service; clones share it.
#[derive(Debug, Clone)]
pub struct Volumes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Whom new ones are given to; nobody for root.
    owner: Option<(u32, u32)>,
    store: Store,
    events: EventBus,
    /// Held while volumes are made, taken or removed; before `index`.
    changing: tokio::sync::Mutex<()>,
    index: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    volume: Arc<Volume>,
    /// Containers that have it among their mounts.
    users: BTreeSet<String>,
    /// Those of them that run.
    running: BTreeSet<String>,
    /// Held while it is filled from an image.
    filling: Arc<tokio::sync::Mutex<()>>,
}

impl Entry {
    fn new(volume: Volume) -> Self {
        Self {
            volume: Arc::new(volume),
            users: BTreeSet::new(),
            running: BTreeSet::new(),
            filling: Arc::default(),
        }
    }
}

impl Volumes {
    /// A service without volumes; [`Volumes::recover`] brings them in.
    pub fn new(config: &Config, store: Store, events: EventBus) -> Self {
        Self {
            shared: Arc::new(Shared {
                root: config.data_root.join("volumes"),
                owner: config.container_root(),
                store,
                events,
                changing: tokio::sync::Mutex::default(),
                index: Mutex::default(),
            }),
        }
    }

    fn index(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.shared
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, name: &str) -> PathBuf {
        self.shared.root.join(name)
    }

    /// Where the files of a volume are.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        self.directory(name).join("_data")
    }

    /// Every volume, by name, and how many containers use it.
    pub fn all(&self) -> Vec<(Arc<Volume>, usize)> {
        self.index()
            .values()
            .map(|entry| (Arc::clone(&entry.volume), entry.users.len()))
            .collect()
    }

    /// One volume.
    ///
    /// # Errors
    /// 404 with Docker's words.
    pub fn get(&self, name: &str) -> ApiResult<Arc<Volume>> {
        self.index()
            .get(name)
            .map(|entry| Arc::clone(&entry.volume))
            .ok_or_else(|| missing(name))
    }

    /// Makes a volume, or finds the one of that name.
    ///
    /// # Errors
    /// 400 for a bad name or options, 404 for an unknown driver, 409 for a volume of another
    /// driver.
    pub async fn create(&self, request: VolumeRequest) -> ApiResult<Arc<Volume>> {
        let _changing = self.shared.changing.lock().await;
        self.find_or_make(request).await.map(|(volume, _)| volume)
    }

    /// Makes a volume, or finds it, for a container, which uses it from now on; says whether
    /// it was made.
    ///
    /// # Errors
    /// As [`Volumes::create`].
    pub async fn acquire(
        &self,
        request: VolumeRequest,
        container: &str,
    ) -> ApiResult<(Arc<Volume>, bool)> {
        let _changing = self.shared.changing.lock().await;
        let (volume, made) = self.find_or_make(request).await?;
        if let Some(entry) = self.index().get_mut(&volume.name) {
            entry.users.insert(container.to_owned());
        }
        Ok((volume, made))
    }

    /// A container uses none of these volumes any more.
    pub fn release<'a>(&self, names: impl IntoIterator<Item = &'a str>, container: &str) {
        let mut index = self.index();
        for name in names {
            if let Some(entry) = index.get_mut(name) {
                entry.users.remove(container);
            }
        }
    }

    /// Under `changing`.
    async fn find_or_make(&self, request: VolumeRequest) -> ApiResult<(Arc<Volume>, bool)> {
        let name = match request.name.filter(|name| !name.is_empty()) {
            Some(name) => {
                model::check_name(&name)?;
                name
            }
            None => super::containers::new_id(),
        };
        model::check_driver(&request.driver, &format!("create {name}"))?;
        if let Some(entry) = self.index().get(&name) {
            return Ok((Arc::clone(&entry.volume), false));
        }
        local::backing(&name, request.options.as_ref())?;
        let volume = Volume {
            name: name.clone(),
            created: Timestamp::now(),
            labels: request.labels,
            options: request.options,
            removing: false,
        };
        let directory = self.directory(&name);
        let data = self.mountpoint(&name);
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&directory)
            .and_then(|()| {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(&data)
            })
            .and_then(|()| match self.shared.owner {
                None => Ok(()),
                Some((uid, gid)) => std::os::unix::fs::chown(&data, Some(uid), Some(gid)),
            });
        if let Err(error) = made {
            let _ = std::fs::remove_dir(&data);
            let _ = std::fs::remove_dir(&directory);
            return Err(ApiError::internal(format!("create {name}"), &error));
        }
        if let Err(error) = self.save(&volume).await {
            let _ = std::fs::remove_dir(&data);
            let _ = std::fs::remove_dir(&directory);
            return Err(error);
        }
        let entry = Entry::new(volume);
        let volume = Arc::clone(&entry.volume);
        self.index().insert(name.clone(), entry);
        self.event("create", &name, &[]);
        Ok((volume, true))
    }

    async fn save(&self, volume: &Volume) -> ApiResult<()> {
        let text = serde_json::to_string(volume)
            .map_err(|error| ApiError::internal("encode volume", &error))?;
        self.shared
            .store
            .put_volume(volume.name.clone(), text)
            .await
            .map_err(|error| ApiError::internal("save volume", &error))
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// 404; 409 while a container uses it. Docker's words.
    pub async fn remove(&self, name: &str) -> ApiResult<()> {
        let gone = {
            let _changing = self.shared.changing.lock().await;
            let mut volume = {
                let index = self.index();
                let entry = index.get(name).ok_or_else(|| missing(name))?;
                if !entry.users.is_empty() {
                    let users: Vec<&str> = entry.users.iter().map(String::as_str).collect();
                    return Err(ApiError::conflict(format!(
                        "remove {name}: volume is in use - [{}]",
                        users.join(", ")
                    )));
                }
                entry.volume.as_ref().clone()
            };
            volume.removing = true;
            self.save(&volume).await?;
            let gone = self.take_away(name).await?;
            self.index().remove(name);
            gone
        };
        self.event("destroy", name, &[]);
        erase(gone).await;
        self.shared.store.keep_reserve().await;
        Ok(())
    }

    /// Moves the files of a volume out of the way and forgets its row; gives where they are.
    async fn take_away(&self, name: &str) -> ApiResult<PathBuf> {
        if let Err(error) = local::unmount(&self.mountpoint(name)) {
            return Err(ApiError::internal(
                format!("remove {name}: unmount"),
                &error,
            ));
        }
        let gone =
            self.shared
                .root
                .join(format!("{}{:016x}", recovery::GONE, rand::random::<u64>()));
        match std::fs::rename(self.directory(name), &gone) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ApiError::internal(format!("remove {name}"), &error));
            }
            _ => {}
        }
        self.shared
            .store
            .delete_volume(name.to_owned())
            .await
            .map_err(|error| ApiError::internal("forget volume", &error))?;
        Ok(gone)
    }

    /// Removes every volume that nobody uses and that passes `filter`; gives their names and
    /// the bytes they held.
    pub async fn prune(&self, filter: impl Fn(&Volume) -> bool) -> (Vec<String>, u64) {
        let mut removed = Vec::new();
        let mut bytes = 0_u64;
        for (volume, users) in self.all() {
            if users > 0 || !filter(&volume) {
                continue;
            }
            let size = self.size(&volume).await;
            if self.remove(&volume.name).await.is_ok() {
                removed.push(volume.name.clone());
                bytes = bytes.saturating_add(size);
            }
        }
        (removed, bytes)
    }

    /// Bytes that the files of a volume hold. What is behind a bind is not the volume's.
    pub async fn size(&self, volume: &Volume) -> u64 {
        if let Ok(Backing::Bind { .. }) = local::backing(&volume.name, volume.options.as_ref()) {
            return 0;
        }
        let path = self.mountpoint(&volume.name);
        tokio::task::spawn_blocking(move || crate::disk_usage::apparent_size(&path))
            .await
            .unwrap_or(0)
    }

    /// A container that uses a volume is about to run: gives the directory of the host that
    /// is to be mounted, and options of that mount.
    ///
    /// # Errors
    /// 404 for a volume that has gone; what keeps it from being mounted.
    pub async fn mount(&self, name: &str, container: &str) -> ApiResult<(PathBuf, Vec<String>)> {
        let filling = match self.index().get(name) {
            Some(entry) => Arc::clone(&entry.filling),
            None => return Err(missing(name)),
        };
        // Its directory may be about to be replaced by a full one.
        let _filled = filling.lock().await;
        let _changing = self.shared.changing.lock().await;
        let volume = self.get(name)?;
        let data = self.mountpoint(name);
        let failed = |error: &dyn std::fmt::Display| {
            ApiError::bad_request(format!(
                "error while mounting volume '{}': failed to mount local volume: {error}",
                data.display()
            ))
        };
        let found = match local::backing(name, volume.options.as_ref())? {
            Backing::Directory => (data.clone(), Vec::new()),
            Backing::Bind { device, options } => {
                std::fs::metadata(&device).map_err(|error| {
                    failed(&format!(
                        "mount {}:{}: {error}",
                        device.display(),
                        data.display()
                    ))
                })?;
                (device, options)
            }
            Backing::Tmpfs { options } => {
                local::mount_tmpfs(&data, &options).map_err(|error| failed(&error))?;
                (data.clone(), Vec::new())
            }
        };
        self.note_running(name, container);
        Ok(found)
    }

    /// A container that uses a volume runs.
    pub fn note_running(&self, name: &str, container: &str) {
        if let Some(entry) = self.index().get_mut(name) {
            entry.running.insert(container.to_owned());
        }
    }

    /// A container that uses a volume has ended.
    pub async fn unmount(&self, name: &str, container: &str) {
        let _changing = self.shared.changing.lock().await;
        let idle = {
            let mut index = self.index();
            let Some(entry) = index.get_mut(name) else {
                return;
            };
            entry.running.remove(container);
            entry.running.is_empty().then(|| Arc::clone(&entry.volume))
        };
        let Some(volume) = idle else { return };
        if let Ok(Backing::Tmpfs { .. }) = local::backing(name, volume.options.as_ref())
            && let Err(error) = local::unmount(&self.mountpoint(name))
        {
            tracing::error!(%name, %error, "volume stays mounted");
        }
    }

    /// Publishes an event of a volume.
    pub fn event(&self, action: &str, name: &str, more: &[(&str, &str)]) {
        let mut attributes = BTreeMap::from([("driver".to_owned(), DRIVER.to_owned())]);
        for (key, value) in more {
            attributes.insert((*key).to_owned(), (*value).to_owned());
        }
        self.shared
            .events
            .publish("volume", action, name, attributes);
    }
}

/// Deletes files that were taken away; what is left of them is swept at the next start.
async fn erase(path: PathBuf) {
    let shown = path.display().to_string();
    let erased = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await;
    match erased {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(path = shown, %error, "files of a removed volume are left");
        }
        Err(error) => tracing::error!(path = shown, %error, "files of a removed volume are left"),
        Ok(_) => {}
    }
}

fn missing(name: &str) -> ApiError {
    ApiError::not_found(format!("get {name}: no such volume"))
}
