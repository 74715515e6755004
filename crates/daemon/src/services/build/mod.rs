//! Builds: the host that [`bulkhead_build`] asks for images, containers and files.
//!
//! A build blocks on threads of its own and calls back into the services. Its commands run
//! as ordinary containers, at the isolation that was asked for.

mod caches;
pub mod secrets;
mod steps;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_build::{
    Base, CacheDirectory, CacheRequest, Fetched, Host, HostError, NewStep, RunMountKind, RunNews,
    RunOutcome, RunRequest, SecretFile, SecretRequest,
};
use bulkhead_image::{
    Digest, ImageConfig, ImageError, ImageId, ImageRoots, ImageStore, NewImage, Platform,
    Reference, platform_words,
};
use bulkhead_registry::{
    Credentials, FetchedFile, Message, PullRequest, RegistryError, Reporter, server_name,
};
use bulkhead_task::options::IsolationKind;
use bytes::{Buf, Bytes};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::containers::lifecycle::WaitCondition;
use super::containers::logs::{self, LogQuery, Stream};
use super::containers::signals;
use super::containers::{Containers, Handle as Container};
use crate::config::Config;
use crate::error::ApiError;
use crate::services::containers::CreateRequest;
use crate::state::AppState;

pub use caches::{BuildCaches, CacheView};

/// Digest of the layer that holds nothing: an archive's end marker alone.
const EMPTY_LAYER: [u8; 1024] = [0; 1024];

const CANCELLED: &str = "the build was cancelled";

/// What a build says to its client.
pub enum Said {
    /// Text.
    Text(String),
    /// A finished stage.
    Image(ImageId),
    /// A line about a pull, ready for the client.
    Progress(Value),
}

/// What holds for all containers of a build.
#[derive(Debug, Default)]
pub struct BuildSettings {
    /// `HostConfig` of the containers.
    pub host_config: serde_json::Map<String, Value>,
    /// Whether base images are fetched although they are here.
    pub pull: bool,
    /// Credentials by registry, as `X-Registry-Config` has them.
    pub credentials: serde_json::Map<String, Value>,
}

/// The host of one build.
pub struct BuildHost {
    state: AppState,
    settings: BuildSettings,
    runtime: Handle,
    /// Cancelled when the client has gone, or a stage has failed.
    cancelled: CancellationToken,
    say: Box<dyn Fn(Said) + Send + Sync>,
    /// The files of its steps' images.
    roots: ImageRoots,
    /// Images that may not be removed while this lives.
    held: Mutex<Vec<ImageId>>,
    /// What commands were given; goes with this.
    directories: Mutex<Vec<tempfile::TempDir>>,
    /// The containers of its steps, by their IDs.
    notes: Mutex<HashMap<String, steps::Note>>,
    /// Those of them that could not be removed when they should: on a full disk others have to
    /// go first.
    unremoved: Mutex<Vec<String>>,
}

/// Removes what builds of a daemon that was killed have left. To be called before the first.
pub async fn sweep(config: &Config, containers: &Containers) {
    steps::sweep(&config.data_root, containers).await;
    for path in [
        temporaries(&config.data_root),
        secrets::directory(&config.exec_root),
    ] {
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "an ended build's files stay");
            }
            _ => {}
        }
    }
}

fn temporaries(data_root: &Path) -> PathBuf {
    data_root.join("build/tmp")
}

impl BuildHost {
    /// To be made inside of the runtime, but not on one of its own threads.
    pub fn new(
        state: AppState,
        settings: BuildSettings,
        cancelled: CancellationToken,
        say: impl Fn(Said) + Send + Sync + 'static,
    ) -> Self {
        Self {
            state,
            settings,
            runtime: Handle::current(),
            cancelled,
            say: Box::new(say),
            roots: ImageRoots::default(),
            held: Mutex::default(),
            directories: Mutex::default(),
            notes: Mutex::default(),
            unremoved: Mutex::default(),
        }
    }

    /// Gives the result its names.
    ///
    /// # Errors
    /// What the store says.
    pub fn tag(&self, image: &ImageId, name: &Reference) -> Result<(), HostError> {
        self.store_ref().tag(image, name).map_err(image_error)?;
        self.state
            .images
            .announce("tag", &image.to_string(), &name.familiar());
        Ok(())
    }

    /// Fetches a file that is no step's business: a remote context.
    ///
    /// # Errors
    /// What the server says.
    pub fn remote(&self, url: &str) -> Result<Fetched, RegistryError> {
        let cancelled = self.cancelled.clone();
        let file = self.runtime.block_on(async {
            tokio::select! {
                file = self.state.registry.fetch(url) => file,
                () = cancelled.cancelled() => Err(RegistryError::Cancelled),
            }
        })?;
        Ok(Fetched {
            modified: file.modified,
            content_type: file.content_type.clone(),
            content: Box::new(FetchedReader {
                file,
                runtime: self.runtime.clone(),
                cancelled,
                current: Bytes::new(),
            }),
        })
    }

    fn is_disk_full(&self) -> bool {
        const LITTLE: u64 = 1 << 20;
        rustix::fs::statvfs(&self.state.config.data_root)
            .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < LITTLE)
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<String, steps::Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_later(&self, container: &str, error: &ApiError) {
        tracing::warn!(id = %container, %error, "a build's container is not removed yet");
        self.unremoved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(container.to_owned());
    }

    fn store_ref(&self) -> Arc<ImageStore> {
        self.state.images.store()
    }

    fn hold(&self, image: ImageId) {
        self.state.containers.hold_image(image);
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(image);
    }

    fn base(&self, id: ImageId) -> Result<Base, HostError> {
        self.hold(id);
        let store = self.store_ref();
        let bytes = store.config_bytes(&id).map_err(image_error)?;
        let document = ImageConfig::parse(&bytes).map_err(image_error)?;
        Ok(Base { id, document })
    }

    /// Whether an image is for the platform that is wanted, if one is.
    fn is_for(&self, id: &ImageId, wanted: Option<&Platform>) -> Result<bool, HostError> {
        let Some(wanted) = wanted else {
            return Ok(true);
        };
        let bytes = self.store_ref().config_bytes(id).map_err(image_error)?;
        let document = ImageConfig::parse(&bytes).map_err(image_error)?;
        Ok(fits(wanted, &document))
    }

    fn pull(&self, reference: &str, platform: Option<Platform>) -> Result<(), HostError> {
        let parsed = Reference::parse(reference)
            .map_err(|error| HostError(error.to_string()))?
            .with_default_tag();
        let request = PullRequest {
            all_tags: false,
            credentials: self.credentials(&parsed),
            reference: parsed,
            platform,
        };
        let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel::<Message>();
        let reporter = Reporter::new(move |message| {
            let _ = sender.send(message);
        });
        let cancelled = self.cancelled.clone();
        self.runtime.block_on(async {
            let registry = Arc::clone(&self.state.registry);
            let pulling = async move {
                let done = tokio::select! {
                    done = registry.pull(&request, &reporter) => done.map_err(|error| HostError(error.full_message())),
                    () = cancelled.cancelled() => Err(HostError(CANCELLED.to_owned())),
                };
                drop(reporter);
                done
            };
            let telling = async {
                while let Some(message) = lines.recv().await {
                    (self.say)(Said::Progress(crate::routes::images::message_json(message)));
                }
            };
            let (pulled, ()) = tokio::join!(pulling, telling);
            for image in pulled? {
                self.state
                    .images
                    .publish_transfer("pull", &image.id, &image.reference);
            }
            Ok(())
        })
    }

    fn credentials(&self, reference: &Reference) -> Option<Credentials> {
        let name = reference.name();
        let domain = name.split('/').next().unwrap_or_default();
        let keys: &[&str] = match domain {
            "docker.io" => &["https://index.docker.io/v1/", "docker.io"],
            _ => &[domain],
        };
        let all = &self.settings.credentials;
        let found = keys.iter().find_map(|key| all.get(*key)).or_else(|| {
            // Clients that are old, or were told so, write URLs.
            let means = |key: &str| !key.is_empty() && server_name(key) == domain;
            all.iter()
                .find(|(key, _)| means(key))
                .map(|(_, found)| found)
        })?;
        serde_json::from_value(found.clone()).ok()
    }

    fn body(&self, request: &RunRequest) -> Value {
        let mut host_config = self.settings.host_config.clone();
        if let Some(network) = &request.network {
            host_config.insert("NetworkMode".to_owned(), json!(network));
        }
        let mut binds = Vec::new();
        let mut tmpfs = serde_json::Map::new();
        for mount in &request.mounts {
            match &mount.kind {
                RunMountKind::Bind(source) => binds.push(json!({
                    "Type": "bind",
                    "Source": source,
                    "Target": mount.target,
                    "ReadOnly": mount.read_only,
                })),
                RunMountKind::Tmpfs(size) => {
                    let mut options = vec![if mount.read_only { "ro" } else { "rw" }.to_owned()];
                    options.extend(size.map(|size| format!("size={size}")));
                    tmpfs.insert(mount.target.clone(), json!(options.join(",")));
                }
            }
        }
        host_config.insert("Mounts".to_owned(), json!(binds));
        host_config.insert("Tmpfs".to_owned(), Value::Object(tmpfs));
        host_config.insert("LogConfig".to_owned(), json!({ "Type": "json-file" }));
        json!({
            "Image": request.image.to_string(),
            "Cmd": request.command,
            // One empty string: none, also not that of the image.
            "Entrypoint": [""],
            "Env": request.environment,
            "Healthcheck": { "Test": ["NONE"] },
            "HostConfig": host_config,
        })
    }

    /// Runs a container to its end. It is still there then.
    async fn run_container(
        &self,
        container: &Container,
        hear: &mut dyn FnMut(RunNews<'_>),
    ) -> Result<i32, HostError> {
        let ended = container.wait(WaitCondition::NextExit);
        if container.view().record.isolation == IsolationKind::Hyperv {
            // The machine that ran it has its changes: no other one is needed to read them.
            container.show_files_after().await;
        }
        container.start().await.map_err(api_error)?;
        let view = container.view();
        let log = self.state.containers.files(&view.record).log;
        if let Some(path) = log {
            let query = LogQuery {
                stdout: true,
                stderr: true,
                follow: true,
                framed: true,
                ..LogQuery::default()
            };
            let mut lines = logs::read(path, query, container.watch());
            loop {
                let line = tokio::select! {
                    line = lines.recv() => line,
                    () = self.cancelled.cancelled() => {
                        // It may have ended by itself meanwhile.
                        let _ = container.kill(signals::KILL).await;
                        break;
                    }
                };
                match line {
                    Some(Ok(bytes)) => {
                        for (stream, text) in logs::frames(&bytes) {
                            let text = String::from_utf8_lossy(text);
                            hear(match stream {
                                Stream::Stderr => RunNews::Errors(&text),
                                Stream::Stdout => RunNews::Output(&text),
                            });
                        }
                    }
                    Some(Err(error)) => {
                        let _ = container.kill(signals::KILL).await;
                        return Err(error.into());
                    }
                    None => break,
                }
            }
        }
        let waited = ended.await;
        if waited.code != 0 && self.is_disk_full() {
            // What the command said of it could not be logged either.
            let root = self.state.config.data_root.display();
            hear(RunNews::Output(&format!(
                "No space left on the disk of {root}\n"
            )));
        }
        Ok(i32::try_from(waited.code).unwrap_or(i32::MAX))
    }
}

impl Drop for BuildHost {
    fn drop(&mut self) {
        let unremoved = std::mem::take(
            self.unremoved
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for id in unremoved {
            let Ok(container) = self.state.containers.find(&id) else {
                continue;
            };
            if let Err(error) = self.runtime.block_on(container.remove(true, true)) {
                tracing::warn!(%id, %error, "a build's container stays until the next start");
                if let Some(note) = self.notes().remove(&id) {
                    note.keep();
                }
            }
        }
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        for image in held.drain(..) {
            self.state.containers.release_image(&image);
        }
    }
}

impl Host for BuildHost {
    fn image(&self, reference: &str, platform: Option<&str>) -> Result<Base, HostError> {
        let store = self.store_ref();
        let wanted = platform
            .map(crate::platform::parse)
            .transpose()
            .map_err(|error| HostError(error.message))?;
        let found = match store.resolve(reference) {
            Ok(id) => Some(id),
            Err(ImageError::NotFound(_)) => None,
            Err(error) => return Err(image_error(error)),
        };
        let is_id = found
            .is_some_and(|id| reference.starts_with("sha256:") || id.hex().starts_with(reference));
        let id = match found {
            Some(id) if is_id || (!self.settings.pull && self.is_for(&id, wanted.as_ref())?) => id,
            // Also one that is here for another platform is fetched.
            _ => {
                self.pull(reference, wanted.clone())?;
                store.resolve(reference).map_err(image_error)?
            }
        };
        let base = self.base(id)?;
        match wanted {
            Some(wanted) if !fits(&wanted, &base.document) => Err(HostError(format!(
                "image with reference {reference} was found but does not match the specified \
                 platform: wanted {}, actual: {}",
                platform_words(&wanted.os, &wanted.architecture, wanted.variant.as_deref()),
                platform_words(
                    &base.document.os,
                    &base.document.architecture,
                    base.document.variant.as_deref()
                ),
            ))),
            _ => Ok(base),
        }
    }

    fn mount(&self, image: &ImageId) -> Result<OwnedFd, HostError> {
        let store = self.store_ref();
        self.roots.open(&store, image).map_err(image_error)
    }

    fn cached(&self, key: &Digest) -> Result<Option<Base>, HostError> {
        let found = self.store_ref().step(key).map_err(image_error)?;
        Ok(found.and_then(|id| self.base(id).ok()))
    }

    fn store(&self, step: NewStep<'_>) -> Result<Base, HostError> {
        let store = self.store_ref();
        let mut document = step.document;
        let mut ingest = store.ingest();
        for diff_id in &document.rootfs.diff_ids {
            ingest.has_layer(diff_id).map_err(image_error)?;
        }
        if let Some(layer) = step.layer {
            let diff_id = ingest.add_layer(layer, None).map_err(image_error)?;
            if diff_id == Digest::of(&EMPTY_LAYER) {
                if let Some(last) = document.history.last_mut() {
                    last.empty_layer = true;
                }
            } else {
                document.rootfs.diff_ids.push(diff_id);
            }
        }
        let config = document.to_bytes().map_err(image_error)?;
        // Too many layers show here, before the store has the image.
        let document = ImageConfig::parse(&config).map_err(image_error)?;
        let id = ImageId(Digest::of(&config));
        self.hold(id);
        let image = NewImage {
            config,
            parent: step.parent,
            ..NewImage::default()
        };
        ingest.commit(&[image]).map_err(image_error)?;
        store
            .remember_step(&step.cache_key, &id)
            .map_err(image_error)?;
        Ok(Base { id, document })
    }

    fn run(
        &self,
        request: &RunRequest,
        hear: &mut dyn FnMut(RunNews<'_>),
    ) -> Result<RunOutcome, HostError> {
        let containers = &self.state.containers;
        let body = self.body(request);
        let note = steps::Note::new(&self.state.config.data_root)?;
        self.runtime.block_on(async {
            let created = containers
                .create(CreateRequest {
                    name: Some(note.name()),
                    platform: None,
                    body,
                    read_only_recursive: true,
                })
                .await
                .map_err(api_error)?;
            self.notes().insert(created.id.clone(), note);
            let container = containers.find(&created.id).map_err(api_error)?;
            hear(RunNews::Started(&created.id));
            match self.run_container(&container, hear).await {
                Ok(code) => Ok(RunOutcome {
                    container: created.id,
                    code,
                }),
                Err(error) => {
                    match container.remove(true, true).await {
                        Ok(()) => drop(self.notes().remove(&created.id)),
                        Err(left) => self.remove_later(&created.id, &left),
                    }
                    Err(error)
                }
            }
        })
    }

    fn changes(
        &self,
        container: &str,
        newest: Option<i64>,
        mount_points: Vec<String>,
    ) -> Result<Box<dyn Read + Send>, HostError> {
        let container = self.state.containers.find(container).map_err(api_error)?;
        let layer = self
            .runtime
            .block_on(container.layer_tar(newest, mount_points))
            .map_err(api_error)?;
        Ok(Box::new(layer))
    }

    fn remove(&self, container: &str) -> Result<(), HostError> {
        let container = self.state.containers.find(container).map_err(api_error)?;
        match self.runtime.block_on(container.remove(true, true)) {
            Ok(()) => {
                self.notes().remove(&container.id);
                Ok(())
            }
            Err(error) => {
                self.remove_later(&container.id, &error);
                Err(api_error(error))
            }
        }
    }

    fn fetch(&self, url: &str) -> Result<Fetched, HostError> {
        self.remote(url).map_err(|error| {
            HostError(match error {
                RegistryError::Cancelled => CANCELLED.to_owned(),
                error => error.full_message(),
            })
        })
    }

    fn cache_directory(&self, request: &CacheRequest) -> Result<CacheDirectory, HostError> {
        let is_cancelled = || self.cancelled.is_cancelled();
        self.state.build_caches.take(request, is_cancelled)
    }

    fn secret(&self, request: &SecretRequest<'_>) -> io::Result<SecretFile> {
        secrets::place(&self.state.config.exec_root, request)
    }

    fn directory(&self) -> io::Result<PathBuf> {
        let directory = tempfile::tempdir_in(self.temporaries()?)?;
        let path = directory.path().to_owned();
        self.directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(directory);
        Ok(path)
    }

    fn temporary(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.temporaries()?)
    }

    fn say(&self, text: &str) {
        (self.say)(Said::Text(text.to_owned()));
    }

    fn announce(&self, image: &ImageId) {
        (self.say)(Said::Image(*image));
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    fn cancel(&self) {
        self.cancelled.cancel();
    }

    fn within(&self, work: &mut dyn FnMut()) {
        let _entered = self.runtime.enter();
        work();
    }
}

impl BuildHost {
    fn temporaries(&self) -> io::Result<PathBuf> {
        let path = temporaries(&self.state.config.data_root);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }
}

/// A file from the network as a blocking stream.
struct FetchedReader {
    file: FetchedFile,
    runtime: Handle,
    cancelled: CancellationToken,
    current: Bytes,
}

impl Read for FetchedReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let (file, cancelled) = (&mut self.file, &self.cancelled);
            let chunk = self.runtime.block_on(async {
                tokio::select! {
                    chunk = file.chunk() => chunk.map_err(|error| io::Error::other(error.full_message())),
                    () = cancelled.cancelled() => Err(io::Error::other(CANCELLED)),
                }
            })?;
            match chunk {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.current.len());
        out[..length].copy_from_slice(&self.current[..length]);
        self.current.advance(length);
        Ok(length)
    }
}

/// Whether an image is for a platform. One that doesn't say is taken as it is.
fn fits(wanted: &Platform, document: &ImageConfig) -> bool {
    let unknown = document.os.is_empty() || document.architecture.is_empty();
    let same = document.os == wanted.os && document.architecture == wanted.architecture;
    unknown
        || (same
            && variant_fits(
                &wanted.architecture,
                wanted.variant.as_deref(),
                document.variant.as_deref(),
            ))
}

/// Whether what is made for one variant of an architecture runs on another: those are numbered,
/// and later ones have all of the earlier. Who wants none takes any.
fn variant_fits(architecture: &str, wanted: Option<&str>, have: Option<&str>) -> bool {
    let usual = match architecture {
        "amd64" => Some("v1"),
        "arm" => Some("v7"),
        "arm64" => Some("v8"),
        _ => None,
    };
    let Some(wanted) = wanted else { return true };
    let Some(have) = have.filter(|have| !have.is_empty()).or(usual) else {
        return false;
    };
    let number = |variant: &str| variant.trim_start_matches('v').parse::<u32>().ok();
    match (number(wanted), number(have)) {
        (Some(wanted), Some(have)) => have <= wanted,
        _ => wanted == have,
    }
}

fn image_error(error: ImageError) -> HostError {
    HostError(error.full_message())
}

fn api_error(error: ApiError) -> HostError {
    HostError(error.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_of_platforms() {
        for (architecture, wanted, have, does) in [
            ("amd64", None, None, true),
            ("amd64", Some("v1"), None, true),
            ("amd64", Some("v2"), Some("v3"), false),
            ("arm64", Some("v8"), None, true),
            ("arm", Some("v7"), Some("v6"), true),
            ("arm", Some("v6"), None, false),
            ("arm", Some("v6"), Some("v7"), false),
            ("riscv64", Some("x"), None, false),
            ("riscv64", Some("x"), Some("x"), true),
        ] {
            let got = variant_fits(architecture, wanted, have);
            assert_eq!(got, does, "{architecture} {wanted:?} {have:?}");
        }
    }
}
