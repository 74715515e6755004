//! `docker push`.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_image::{
    Digest, ImageContent, ImageId, ImageStore, LayerBytes, LayerContent, LayerForm, LayerSource,
    Lease, Reference,
};
use futures::future::try_join_all;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::Registry;
use crate::auth::Credentials;
use crate::document::{
    DOCKER_CONFIG, DOCKER_GZIP, DOCKER_MANIFEST, Descriptor, Manifest, OCI_CONFIG, OCI_GZIP,
    OCI_MANIFEST, OCI_ZSTD, Parsed,
};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result};
use crate::progress::{Message, Reporter};
use crate::pull::broken_task;
use crate::repository::{Document, Repository};
use crate::transfers::HeldLease;
use crate::upload::{Mount, read_failed};

const INTERVAL: Duration = Duration::from_millis(100);
/// Repositories that are asked for a mount of one layer.
const MAX_MOUNTS: usize = 3;

/// What is to be pushed.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// The repository, with a tag unless all of them are meant.
    pub reference: Reference,
    /// For the registry.
    pub credentials: Option<Credentials>,
}

/// A tag that was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushedImage {
    /// The image.
    pub id: ImageId,
    /// Where it is now.
    pub reference: Reference,
}

/// An image's manifest, and what it is made of.
struct Plan {
    /// The manifest that it came with.
    manifest: Option<(Manifest, Document)>,
    content: ImageContent,
}

impl Registry {
    /// Pushes a tag, or all tags of a repository.
    ///
    /// # Errors
    /// As docker words them.
    pub async fn push(
        &self,
        request: &PushRequest,
        reporter: &Reporter,
    ) -> Result<Vec<PushedImage>> {
        let reference = &request.reference;
        reporter.status(format!(
            "The push refers to repository [{}]",
            reference.name()
        ));
        let store = Arc::clone(&self.store);
        let own = reference.clone();
        let images = tokio::task::spawn_blocking(move || images(&store, &own))
            .await
            .map_err(broken_task)??;
        let images = &images;
        let work = |endpoint: Endpoint| async move {
            let repository = Repository::new(endpoint, reference.path(), "pull,push");
            let mut pushed = Vec::new();
            for (reference, id) in images {
                pushed.push(self.push_one(&repository, reference, *id, reporter).await?);
            }
            Ok(pushed)
        };
        self.endpoints
            .each(
                reference.domain(),
                request.credentials.as_ref(),
                false,
                work,
            )
            .await
    }

    async fn push_one(
        &self,
        repository: &Repository,
        reference: &Reference,
        id: ImageId,
        reporter: &Reporter,
    ) -> Result<PushedImage> {
        let store = Arc::clone(&self.store);
        let (mut plan, lease) = tokio::task::spawn_blocking(move || Plan::new(&store, id))
            .await
            .map_err(broken_task)??;
        let pusher = Pusher {
            repository,
            store: &self.store,
            slots: &self.uploads,
            reporter,
            name: reference.name(),
        };
        // Docker names the topmost first.
        for layer in plan.content.layers.iter().rev() {
            reporter.layer(&layer.diff_id.short(), "Preparing");
        }
        // The manifest that it came with keeps its digest, if the registry has or gets the very
        // blobs that it names.
        if let Some((manifest, _)) = &plan.manifest
            && !pusher.can_serve(manifest, &plan.content.layers).await?
        {
            plan.manifest = None;
        }
        let mut unique: Vec<usize> = Vec::new();
        for (at, layer) in plan.content.layers.iter().enumerate() {
            let earlier = unique
                .iter()
                .any(|other| plan.content.layers[*other].diff_id == layer.diff_id);
            if !earlier {
                unique.push(at);
            }
        }
        let work = unique.iter().map(|at| {
            let fixed = plan.manifest.as_ref().map(|(manifest, _)| {
                let layer = &manifest.layers[*at];
                (layer.digest, layer.size)
            });
            pusher.layer(plan.content.layers[*at], fixed)
        });
        let sent = try_join_all(work).await?;
        let (document, config) = plan.finish(&unique, &sent)?;
        pusher.config(&config).await?;
        let tag = reference.tag().unwrap_or("latest").to_owned();
        repository
            .put_manifest(&tag, &document.media_type, &document.bytes)
            .await?;
        drop(lease);
        let size = document.bytes.len();
        let digest = document.digest;
        let named = reference.with_digest(digest);
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.name_digest(&id, &named))
            .await
            .map_err(broken_task)??;
        reporter.status(format!("{tag}: digest: {digest} size: {size}"));
        reporter.send(Message::Aux(
            json!({ "Tag": tag, "Digest": digest.to_string(), "Size": size }),
        ));
        Ok(PushedImage {
            id,
            reference: reference.clone(),
        })
    }
}

/// The images that a push means.
fn images(store: &ImageStore, reference: &Reference) -> Result<Vec<(Reference, ImageId)>> {
    if reference.digest().is_some() {
        return Err(RegistryError::InvalidArgument(
            "cannot push a digest reference".to_owned(),
        ));
    }
    let mut found = Vec::new();
    for image in store.list()? {
        for tag in &image.tags {
            if tag.name() == reference.name() {
                found.push((tag.clone(), image.id));
            }
        }
    }
    if found.is_empty() {
        return Err(RegistryError::InvalidArgument(format!(
            "An image does not exist locally with the tag: {}",
            reference.familiar_name()
        )));
    }
    if reference.tag().is_some() {
        found.retain(|(tag, _)| tag == reference);
        if found.is_empty() {
            return Err(RegistryError::InvalidArgument(format!(
                "tag does not exist: {}",
                reference.familiar()
            )));
        }
    }
    found.sort();
    Ok(found)
}

impl Plan {
    fn new(store: &Arc<ImageStore>, id: ImageId) -> Result<(Self, HeldLease)> {
        let content = store.content(&id)?;
        let mut lease = Lease::new(store);
        for layer in &content.layers {
            if !lease.hold(&layer.diff_id)? {
                return Err(RegistryError::InvalidArgument(format!(
                    "image {id} was removed meanwhile"
                )));
            }
        }
        let manifest = content.documents.iter().find_map(|bytes| {
            let document = Document {
                bytes: bytes.clone(),
                digest: Digest::of(bytes),
                media_type: String::new(),
            };
            let Ok(Parsed::Manifest(manifest)) = document.parse() else {
                return None;
            };
            let fits =
                manifest.config.digest == id.0 && manifest.layers.len() == content.layers.len();
            let document = Document {
                media_type: document.kind().ok()?,
                ..document
            };
            fits.then_some((*manifest, document))
        });
        Ok((Self { manifest, content }, HeldLease::new(lease)))
    }

    /// The manifest for what was sent, and the config.
    fn finish(self, unique: &[usize], sent: &[Sent]) -> Result<(Document, Vec<u8>)> {
        let config = self.content.config;
        if let Some((_, document)) = self.manifest {
            return Ok((document, config));
        }
        // Only OCI's manifests know zstd; all else gets what every client reads.
        let oci = sent.iter().any(|sent| sent.form == LayerForm::Zstd);
        let find = |layer: &LayerContent| {
            let at = unique
                .iter()
                .position(|at| self.content.layers[*at].diff_id == layer.diff_id)?;
            sent.get(at)
        };
        let layers = self.content.layers.iter().map(|layer| {
            let sent = find(layer).ok_or_else(|| {
                RegistryError::InvalidArgument(format!("layer {} was not sent", layer.diff_id))
            })?;
            let media_type = match (oci, sent.form) {
                (true, LayerForm::Zstd) => OCI_ZSTD,
                (true, _) => OCI_GZIP,
                (false, _) => DOCKER_GZIP,
            };
            Ok(descriptor(media_type, sent.digest, sent.size))
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let (media_type, config_type) = if oci {
            (OCI_MANIFEST, OCI_CONFIG)
        } else {
            (DOCKER_MANIFEST, DOCKER_CONFIG)
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type.to_owned(),
            config: descriptor(config_type, Digest::of(&config), config.len() as u64),
            layers,
        };
        let bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| RegistryError::InvalidArgument(format!("manifest: {error}")))?;
        let document = Document {
            digest: Digest::of(&bytes),
            media_type: media_type.to_owned(),
            bytes,
        };
        Ok((document, config))
    }
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        size,
        digest,
        urls: Vec::new(),
        platform: None,
    }
}

/// A layer as the registry has it.
#[derive(Debug, Clone, Copy)]
struct Sent {
    digest: Digest,
    size: u64,
    form: LayerForm,
}

struct Pusher<'a> {
    repository: &'a Repository,
    store: &'a Arc<ImageStore>,
    slots: &'a Semaphore,
    reporter: &'a Reporter,
    /// Registry and path.
    name: String,
}

impl Pusher<'_> {
    /// Whether every blob of a manifest is ours to send, or is there already, or is mounted
    /// now: a layer that was here before its image was pulled is kept in another form.
    async fn can_serve(&self, manifest: &Manifest, layers: &[LayerContent]) -> Result<bool> {
        for (wanted, own) in manifest.layers.iter().zip(layers) {
            let is_kept = match own.received {
                Some((digest, _)) => wanted.digest == digest,
                None => wanted.digest == own.diff_id && wanted.size == own.tar_bytes,
            };
            if is_kept || self.repository.has_blob(&wanted.digest).await?.is_some() {
                continue;
            }
            let (store, diff_id) = (Arc::clone(self.store), own.diff_id);
            let sources = tokio::task::spawn_blocking(move || store.sources(&diff_id))
                .await
                .map_err(broken_task)??;
            let fixed = Some((wanted.digest, wanted.size));
            let mut mounted = false;
            for source in self.mountable(&sources, fixed, own) {
                let path = source
                    .repository
                    .split_once('/')
                    .map_or("", |(_, path)| path);
                let answer = self.repository.mount(&wanted.digest, path).await;
                mounted = matches!(answer, Ok(Mount::Done));
                if mounted {
                    break;
                }
            }
            if !mounted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Brings a layer there; `fixed` is the blob that it must be.
    async fn layer(&self, layer: LayerContent, fixed: Option<(Digest, u64)>) -> Result<Sent> {
        let id = layer.diff_id.short();
        let _slot = match self.slots.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                self.reporter.layer(&id, "Waiting");
                let slot = self.slots.acquire().await;
                slot.map_err(|_| RegistryError::Cancelled)?
            }
        };
        let own = Arc::clone(self.store);
        let diff_id = layer.diff_id;
        let sources = tokio::task::spawn_blocking(move || own.sources(&diff_id))
            .await
            .map_err(broken_task)??;
        let form = match (layer.received, fixed) {
            (Some((_, form)), _) => form,
            (None, Some(_)) => LayerForm::Plain,
            (None, None) => LayerForm::Gzip,
        };
        // What this very repository has is asked for first, then what it may have.
        let mut guesses: Vec<(Digest, u64, LayerForm)> = Vec::new();
        match (fixed, layer.received) {
            (Some((digest, size)), _) => guesses.push((digest, size, form)),
            (None, Some((digest, form))) => guesses.push((digest, 0, form)),
            (None, None) => {
                let ours = sources
                    .iter()
                    .filter(|source| source.repository == self.name);
                guesses.extend(ours.map(|source| (source.blob, source.size, LayerForm::Gzip)));
            }
        }
        for (digest, size, form) in &guesses {
            if let Some(length) = self.repository.has_blob(digest).await? {
                let size = if *size == 0 { length } else { *size };
                if size > 0 {
                    self.reporter.layer(&id, "Layer already exists");
                    let sent = Sent {
                        digest: *digest,
                        size,
                        form: *form,
                    };
                    return self.remember(layer, sent).await;
                }
            }
        }
        let mut session = None;
        for source in self.mountable(&sources, fixed, &layer) {
            let path = source
                .repository
                .split_once('/')
                .map_or("", |(_, path)| path);
            match self.repository.mount(&source.blob, path).await {
                Ok(Mount::Done) => {
                    self.reporter.send(Message::Status {
                        id: Some(id),
                        text: format!("Mounted from {path}"),
                    });
                    let sent = Sent {
                        digest: source.blob,
                        size: source.size,
                        form,
                    };
                    return self.remember(layer, sent).await;
                }
                // Where sending it goes on. An earlier one is left to the registry's care.
                Ok(Mount::Session(url)) => session = Some(url),
                // That repository may be closed to us.
                Err(error) => tracing::debug!(%error, path, "not mounted"),
            }
        }
        let own = Arc::clone(self.store);
        let received = layer.received.is_some();
        let bytes = tokio::task::spawn_blocking(move || {
            if received {
                own.received_bytes(&diff_id)
            } else {
                own.layer_bytes(&diff_id, form)
            }
        })
        .await
        .map_err(broken_task)??;
        let sent = Sent {
            digest: bytes.digest,
            size: bytes.size,
            form,
        };
        if fixed.is_some_and(|(digest, _)| digest != bytes.digest) {
            return Err(RegistryError::InvalidAnswer(format!(
                "the registry had blob {} a moment ago",
                fixed.map_or_else(String::new, |(digest, _)| digest.to_string())
            )));
        }
        let there = !received && self.repository.has_blob(&bytes.digest).await?.is_some();
        if there {
            self.reporter.layer(&id, "Layer already exists");
        } else {
            self.send(&id, &bytes, session).await?;
            self.reporter.layer(&id, "Pushed");
        }
        self.remember(layer, sent).await
    }

    /// Repositories of the same registry that have the layer in a form that will do.
    fn mountable<'s>(
        &self,
        sources: &'s [LayerSource],
        fixed: Option<(Digest, u64)>,
        layer: &LayerContent,
    ) -> Vec<&'s LayerSource> {
        let wanted = fixed
            .map(|(digest, _)| digest)
            .or(layer.received.map(|(digest, _)| digest));
        let domain = self.name.split('/').next().unwrap_or_default();
        let fits = |source: &&LayerSource| {
            source.repository != self.name
                && source.repository.split('/').next() == Some(domain)
                && wanted.is_none_or(|wanted| source.blob == wanted)
        };
        sources.iter().filter(fits).take(MAX_MOUNTS).collect()
    }

    async fn send(
        &self,
        id: &str,
        bytes: &LayerBytes,
        session: Option<reqwest::Url>,
    ) -> Result<()> {
        let (reporter, id, size) = (self.reporter.clone(), id.to_owned(), bytes.size);
        let last = Mutex::new(None::<Instant>);
        let progress = Arc::new(move |sent| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|last| last.elapsed() >= INTERVAL) {
                *last = Some(Instant::now());
                reporter.counts(&id, "Pushing", sent, size);
            }
        });
        self.repository
            .upload(&bytes.file, &bytes.digest, bytes.size, session, progress)
            .await
    }

    async fn remember(&self, layer: LayerContent, sent: Sent) -> Result<Sent> {
        // Only what any image can have as its layer.
        if sent.form != LayerForm::Gzip {
            return Ok(sent);
        }
        let (store, name) = (Arc::clone(self.store), self.name.clone());
        tokio::task::spawn_blocking(move || {
            store.remember_source(&layer.diff_id, &sent.digest, sent.size, &name)
        })
        .await
        .map_err(broken_task)??;
        Ok(sent)
    }

    async fn config(&self, config: &[u8]) -> Result<()> {
        let digest = Digest::of(config);
        if self.repository.has_blob(&digest).await?.is_some() {
            return Ok(());
        }
        let mut file = tempfile::tempfile().map_err(read_failed)?;
        file.write_all(config).map_err(read_failed)?;
        self.repository
            .upload(&file, &digest, config.len() as u64, None, Arc::new(|_| {}))
            .await
    }
}
