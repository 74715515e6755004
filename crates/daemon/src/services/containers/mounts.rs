//! Volumes and binds of a container: which they are is decided when it is made, and holds for
//! its life; where they are on the host is looked up at each start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bollard_stubs::models::{ContainerConfig, HostConfig};
use bulkhead_spec::{HostMount, MountOrigin, MountRequest, MountSource};
use bulkhead_task::options::{IMAGE_OPTION, SUBPATH_OPTION};
use bulkhead_userns::Mappings;
use serde::{Deserialize, Serialize};

use super::model::Record;
use super::{Containers, Shared};
use crate::error::{ApiError, ApiResult};
use crate::services::volumes::{ANONYMOUS, CopyUp, DRIVER, VolumeRequest};

/// A volume or a bind of a container, as its record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// The volume's name; `None` for a bind.
    pub volume: Option<String>,
    /// The ID of an image whose files are mounted.
    #[serde(default)]
    pub image: Option<String>,
    /// That image's layers, the lowest first.
    #[serde(default)]
    pub layers: Vec<PathBuf>,
    /// The path on the host; of a volume, where its files are; of an image, its name.
    pub source: String,
    /// The path in the container.
    pub destination: String,
    /// The options of `-v`, as written.
    pub mode: String,
    /// Whether the container may only read.
    pub read_only: bool,
    /// How mounts travel; of a bind.
    pub propagation: String,
    /// Whether nobody asked for that.
    #[serde(default)]
    pub default_propagation: bool,
    /// Whether what is mounted below comes along.
    pub recursive: bool,
    /// Whether read-only holds for what is mounted below.
    pub read_only_recursive: bool,
    /// Whether a bind's missing source is made.
    pub create_source: bool,
    /// The directory in the volume.
    pub subpath: Option<String>,
    /// Whether nobody named the volume: it then goes with `rm -v`.
    pub anonymous: bool,
}

impl MountPoint {
    /// `volume`, `image` or `bind`.
    pub fn kind(&self) -> &'static str {
        match (&self.volume, &self.image) {
            (Some(_), _) => "volume",
            (None, Some(_)) => "image",
            (None, None) => "bind",
        }
    }
}

/// The mounts of a container that is being made, and the volumes that were made for it.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) mounts: Vec<MountPoint>,
    made: Vec<String>,
}

/// The volumes among some mounts.
fn volumes_of(mounts: &[MountPoint]) -> impl Iterator<Item = &str> {
    mounts.iter().filter_map(|mount| mount.volume.as_deref())
}

impl Containers {
    /// Finds or makes what a container mounts. From now on it uses those volumes.
    ///
    /// # Errors
    /// 400 for what makes no sense or isn't there. Nothing is left then.
    pub(super) async fn resolve_mounts(
        &self,
        id: &str,
        config: &ContainerConfig,
        host_config: &HostConfig,
        layers: &[std::path::PathBuf],
        mappings: Option<&Mappings>,
    ) -> ApiResult<Resolved> {
        let mut resolved = Resolved::default();
        let outcome = self
            .resolve_into(&mut resolved, id, config, host_config, layers, mappings)
            .await;
        match outcome {
            Ok(()) => Ok(resolved),
            Err(error) => {
                self.undo_mounts(id, resolved).await;
                Err(error)
            }
        }
    }

    async fn resolve_into(
        &self,
        resolved: &mut Resolved,
        id: &str,
        config: &ContainerConfig,
        host_config: &HostConfig,
        layers: &[std::path::PathBuf],
        mappings: Option<&Mappings>,
    ) -> ApiResult<()> {
        let requests =
            bulkhead_spec::requested_mounts(config, host_config).map_err(super::create::invalid)?;
        let inherited = self.inherited(host_config)?;
        // What the image wants is a default; what the user names wins over what others have.
        let named = |destination: &str| {
            requests.iter().any(|request| {
                request.destination == destination && request.origin != MountOrigin::Volumes
            })
        };
        for mount in inherited {
            let hidden = named(&mount.destination)
                || resolved
                    .mounts
                    .iter()
                    .any(|other| other.destination == mount.destination);
            if hidden {
                continue;
            }
            if let Some(name) = &mount.volume {
                let request = VolumeRequest {
                    name: Some(name.clone()),
                    ..VolumeRequest::default()
                };
                let (_, made) = self.shared.volumes.acquire(request, id).await?;
                if made {
                    resolved.made.push(name.clone());
                }
            }
            resolved.mounts.push(mount);
        }
        let mut copies = Vec::new();
        for request in requests {
            let covered = resolved
                .mounts
                .iter()
                .any(|other| other.destination == request.destination);
            if covered {
                continue;
            }
            let copy = matches!(request.source, MountSource::Volume { copy: true, .. });
            let mount = self.resolve_one(resolved, id, request).await?;
            if let Some(volume) = mount.volume.clone().filter(|_| copy) {
                copies.push(CopyUp {
                    volume,
                    destination: mount.destination.clone(),
                });
            }
            resolved.mounts.push(mount);
        }
        let scratch = self.shared.config.exec_root.join(format!("populate-{id}"));
        crate::services::volumes::fill(&self.shared.volumes, scratch, layers, mappings, &copies)
            .await
    }

    async fn resolve_one(
        &self,
        resolved: &mut Resolved,
        id: &str,
        request: MountRequest,
    ) -> ApiResult<MountPoint> {
        let mut mount = MountPoint {
            volume: None,
            image: None,
            layers: Vec::new(),
            source: String::new(),
            destination: request.destination,
            mode: request.mode,
            read_only: request.read_only,
            propagation: String::new(),
            default_propagation: false,
            recursive: request.recursive,
            read_only_recursive: request.read_only_recursive,
            create_source: false,
            subpath: None,
            anonymous: false,
        };
        match request.source {
            MountSource::Host {
                path,
                create,
                propagation,
            } => {
                if !create {
                    check_source(&path)?;
                }
                mount.default_propagation = propagation.is_none();
                mount.propagation =
                    super::propagation::of_bind(&path, propagation, &self.shared.config.data_root)?;
                mount.source = path;
                mount.create_source = create;
            }
            MountSource::Volume {
                name,
                driver,
                options,
                mut labels,
                subpath,
                ..
            } => {
                mount.anonymous = name.is_none();
                if mount.anonymous {
                    labels.insert(ANONYMOUS.to_owned(), String::new());
                }
                let request = VolumeRequest {
                    name,
                    driver,
                    labels: (!labels.is_empty()).then(|| labels.into_iter().collect()),
                    options: (!options.is_empty()).then(|| options.into_iter().collect()),
                };
                let acquired = self.shared.volumes.acquire(request, id).await;
                let (volume, made) = acquired.map_err(not_an_image)?;
                if made {
                    resolved.made.push(volume.name.clone());
                }
                mount.source = self
                    .shared
                    .volumes
                    .mountpoint(&volume.name)
                    .to_string_lossy()
                    .into_owned();
                mount.volume = Some(volume.name.clone());
                mount.subpath = subpath;
            }
            MountSource::Image { reference, subpath } => {
                let (id, layers) = image(&self.shared, &reference)
                    .await
                    .map_err(not_an_image)?;
                mount.image = Some(id);
                mount.layers = layers;
                mount.source = reference;
                mount.subpath = subpath;
            }
        }
        Ok(mount)
    }

    /// The mounts of `--volumes-from`.
    fn inherited(&self, host_config: &HostConfig) -> ApiResult<Vec<MountPoint>> {
        let mut out = Vec::new();
        let from = bulkhead_spec::volumes_from(host_config).map_err(super::create::invalid)?;
        for wanted in from {
            let other = self.find(&wanted.container).map_err(not_an_image)?;
            for mount in &other.view().record.mounts {
                let mut mount = mount.clone();
                mount.read_only |= wanted.read_only;
                mount.mode.clear();
                out.push(mount);
            }
        }
        Ok(out)
    }

    /// A container was not made after all.
    pub(super) async fn undo_mounts(&self, id: &str, resolved: Resolved) {
        let shared = &self.shared;
        shared.volumes.release(volumes_of(&resolved.mounts), id);
        shared
            .volumes
            .release(resolved.made.iter().map(String::as_str), id);
        for name in &resolved.made {
            // Another container may have taken it in the meantime.
            let _ = shared.volumes.remove(name).await;
        }
    }
}

/// The ID of an image, and where its layers are, the lowest first.
async fn image(shared: &Shared, reference: &str) -> ApiResult<(String, Vec<PathBuf>)> {
    let images = Arc::clone(&shared.images);
    let reference = reference.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        let id = images.resolve(&reference)?;
        let layers = images.layer_paths(&id)?;
        Ok((id.to_string(), layers))
    });
    let found = found.await;
    let found = found.map_err(|error| ApiError::internal("look up image", &error))?;
    found.map_err(super::create::image_error)
}

/// Clients take a 404 to the making of a container for a missing image, and pull that.
fn not_an_image(error: ApiError) -> ApiError {
    match error.status {
        axum::http::StatusCode::NOT_FOUND => ApiError::bad_request(error.message),
        _ => error,
    }
}

/// Docker's words for a bind whose source is missing.
fn check_source(path: &str) -> ApiResult<()> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                    format!("bind source path does not exist: {path}")
                }
                _ => format!("stat {path}: {error}"),
            };
            Err(ApiError::bad_request(format!(
                "invalid mount config for type \"bind\": {why}"
            )))
        }
    }
}

/// What a start mounts: sources are looked for, and made where that is wanted.
///
/// # Errors
/// What is missing or cannot be mounted. Nothing stays mounted then.
pub(super) async fn prepare(shared: &Shared, record: &Record) -> ApiResult<Vec<HostMount>> {
    let outcome = prepare_all(shared, record).await;
    if outcome.is_err() {
        unmount(shared, record).await;
    }
    outcome
}

async fn prepare_all(shared: &Shared, record: &Record) -> ApiResult<Vec<HostMount>> {
    let mut out = Vec::new();
    for mount in &record.mounts {
        let mut options = Vec::new();
        let mut propagation = Some(mount.propagation.as_str()).filter(|mode| !mode.is_empty());
        let source = match (&mount.volume, &mount.image) {
            (None, Some(id)) => {
                let list = match mount.layers.as_slice() {
                    // Of a record from before they were kept in it.
                    [] => image(shared, id).await.map_err(not_an_image)?.1,
                    layers => layers.to_vec(),
                };
                let list = serde_json::to_string(&list);
                let list = list.map_err(|error| ApiError::internal("list layers", &error))?;
                options.push(format!("{IMAGE_OPTION}{list}"));
                // What is mounted is found by the option.
                Path::new("/").to_owned()
            }
            (Some(name), _) => {
                let (source, more) = shared.volumes.mount(name, &record.id).await?;
                options.extend(more);
                source
            }
            (None, None) => {
                if mount.create_source {
                    let owner = shared.mappings_of(record).and_then(|one| one.root().ok());
                    make_source(&mount.source, owner)?;
                } else {
                    check_source(&mount.source)?;
                }
                match super::propagation::check(&mount.source, &mount.propagation) {
                    // Nobody asked for the one that a bind of the data root has by itself.
                    Err(_) if mount.default_propagation => propagation = None,
                    checked => checked?,
                }
                Path::new(&mount.source).to_owned()
            }
        };
        if !options.iter().any(|option| option == "bind") {
            options.retain(|option| option != "rbind");
            let bind = if mount.recursive { "rbind" } else { "bind" };
            options.insert(0, bind.to_owned());
        }
        if mount.read_only {
            options.retain(|option| option != "rw");
            options.push("ro".to_owned());
            if mount.read_only_recursive {
                options.push("rro".to_owned());
            }
        }
        options.push(propagation.unwrap_or("rprivate").to_owned());
        if let Some(subpath) = &mount.subpath {
            options.push(format!("{SUBPATH_OPTION}{subpath}"));
        }
        out.push(HostMount {
            source,
            destination: mount.destination.clone(),
            options,
        });
    }
    Ok(out)
}

/// `-v` makes the directory that it names, as Docker does, and those above it.
fn make_source(path: &str, owner: Option<(u32, u32)>) -> ApiResult<()> {
    use std::os::unix::fs::DirBuilderExt;
    if std::fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let above = Path::new(path).ancestors();
    let missing: Vec<&Path> = above
        .take_while(|path| std::fs::symlink_metadata(path).is_err())
        .collect();
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path);
    let given = made.and_then(|()| match owner {
        None => Ok(()),
        Some((uid, gid)) => missing
            .iter()
            .try_for_each(|path| std::os::unix::fs::lchown(path, Some(uid), Some(gid))),
    });
    given.map_err(|error| {
        ApiError::internal(
            format!("error while creating mount source path '{path}'"),
            &error,
        )
    })
}

/// Tells that the volumes of a container are mounted.
pub(super) fn announce_mounted(shared: &Shared, record: &Record) {
    for mount in &record.mounts {
        if let Some(name) = &mount.volume {
            let writable = if mount.read_only { "false" } else { "true" };
            shared.volumes.event(
                "mount",
                name,
                &[
                    ("container", &record.id),
                    ("destination", &mount.destination),
                    ("driver", DRIVER),
                    ("propagation", &mount.propagation),
                    ("read/write", writable),
                ],
            );
        }
    }
}

/// The container has ended: what only it had mounted is unmounted.
pub(super) async fn unmount(shared: &Shared, record: &Record) {
    for name in volumes_of(&record.mounts) {
        shared.volumes.unmount(name, &record.id).await;
    }
}

/// Tells that the volumes of a container are not mounted any more.
pub(super) fn announce_unmounted(shared: &Shared, record: &Record) {
    for name in volumes_of(&record.mounts) {
        shared
            .volumes
            .event("unmount", name, &[("container", &record.id)]);
    }
}

/// The container is gone: it uses no volume any more, and with `volumes` those go that nobody
/// named and nobody else uses.
pub(super) async fn forget(shared: &Arc<Shared>, record: &Record, volumes: bool) {
    shared
        .volumes
        .release(volumes_of(&record.mounts), &record.id);
    if !volumes {
        return;
    }
    for mount in record.mounts.iter().filter(|mount| mount.anonymous) {
        let Some(name) = &mount.volume else { continue };
        match shared.volumes.remove(name).await {
            Ok(()) => {}
            // Another container has it by `--volumes-from`, or it was removed before.
            Err(error) if error.status.is_client_error() => {}
            Err(error) => tracing::error!(%name, %error, "anonymous volume not removed"),
        }
    }
}

/// A container of an earlier daemon has these volumes.
pub(super) fn adopt(shared: &Shared, record: &Record) {
    let running = record.state.status.is_alive();
    shared
        .volumes
        .adopt(volumes_of(&record.mounts), &record.id, running);
}
