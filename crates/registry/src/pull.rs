//! `docker pull`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_image::{
    Digest, ErrorKind as StoreErrorKind, ImageConfig, ImageId, ImageStore, Lease, NewImage,
    Platform, Reference,
};
use futures::future::try_join_all;

use crate::Registry;
use crate::auth::Credentials;
use crate::document::{DOCKER_GZIP, Descriptor, MAX_CONFIG, Manifest, OCI_GZIP, Parsed, name};
use crate::download::Blob;
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result};
use crate::progress::Reporter;
use crate::repository::{Document, Repository};
use crate::transfers::{HeldLease, State, Transfers};

/// How often a layer's progress is reported.
const INTERVAL: Duration = Duration::from_millis(100);
/// How deep indexes nest.
const MAX_DEPTH: usize = 3;

/// What is to be pulled.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// With a tag or a digest, unless `all_tags` is set.
    pub reference: Reference,
    /// Every tag of the repository.
    pub all_tags: bool,
    /// The host's if `None`.
    pub platform: Option<Platform>,
    /// For the registry.
    pub credentials: Option<Credentials>,
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// Its ID.
    pub id: ImageId,
    /// What was asked for.
    pub reference: Reference,
    /// Of the manifest, or of the list of manifests.
    pub digest: Digest,
    /// Whether anything is different now.
    pub is_new: bool,
}

impl Registry {
    /// Pulls an image, or all tags of a repository. Dropped, it leaves nothing of what was not
    /// finished.
    ///
    /// # Errors
    /// As docker words them; the store is then as before, except for tags that were finished.
    pub async fn pull(
        &self,
        request: &PullRequest,
        reporter: &Reporter,
    ) -> Result<Vec<PulledImage>> {
        let reference = &request.reference;
        let work = |endpoint: Endpoint| async move {
            let repository = Repository::new(endpoint, reference.path(), "pull");
            self.pull_from(&repository, request, reporter)
                .await
                .map_err(|error| error.for_pull(reference))
        };
        self.endpoints
            .each(reference.domain(), request.credentials.as_ref(), true, work)
            .await
    }

    async fn pull_from(
        &self,
        repository: &Repository,
        request: &PullRequest,
        reporter: &Reporter,
    ) -> Result<Vec<PulledImage>> {
        let mut pulled = Vec::new();
        if request.all_tags {
            for tag in repository.tags().await? {
                let Ok(reference) = request.reference.with_tag(&tag) else {
                    return Err(RegistryError::InvalidAnswer(format!(
                        "the registry has an invalid tag {tag:?}"
                    )));
                };
                let image = self
                    .pull_one(repository, &reference, request, reporter)
                    .await;
                pulled.push(image?);
            }
        } else {
            let reference = request.reference.clone().with_default_tag();
            let image = self
                .pull_one(repository, &reference, request, reporter)
                .await;
            pulled.push(image?);
        }
        let is_new = pulled.iter().any(|image| image.is_new);
        let mut name = request.reference.clone();
        if !request.all_tags {
            name = name.with_default_tag();
        }
        let name = name.familiar();
        reporter.status(if is_new {
            format!("Status: Downloaded newer image for {name}")
        } else {
            format!("Status: Image is up to date for {name}")
        });
        Ok(pulled)
    }

    async fn pull_one(
        &self,
        repository: &Repository,
        reference: &Reference,
        request: &PullRequest,
        reporter: &Reporter,
    ) -> Result<PulledImage> {
        let wanted = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or("latest").to_owned(),
        };
        let top = repository.manifest(&wanted).await?;
        reporter.about(&wanted, format!("Pulling from {}", reference.path()));
        let digest = top.digest;
        let host = Platform::host();
        let platform = request.platform.as_ref().unwrap_or(&host);
        let (document, manifest) = resolve(repository, top, platform).await?;
        let image = ImageId(manifest.config.digest);
        let store = Arc::clone(&self.store);
        let known = tokio::task::spawn_blocking(move || known_config(&store, image))
            .await
            .map_err(broken_task)??;
        let is_known = known.is_some();
        let config = match known {
            Some(bytes) => bytes,
            None => {
                let bytes = repository
                    .small_blob(&manifest.config.digest, MAX_CONFIG, "image config")
                    .await?;
                check_size(&manifest.config, bytes.len() as u64)?;
                bytes
            }
        };
        let parsed = ImageConfig::parse(&config)?;
        check_platform(&parsed, platform)?;
        let blobs = blobs(&manifest, &parsed)?;
        // Of an image that is there docker says nothing more.
        let silent = Reporter::silent();
        let reporter_of_layers = if is_known { &silent } else { reporter };
        let leases = fetch(
            &self.transfers,
            &self.store,
            repository,
            &blobs,
            reporter_of_layers,
        )
        .await?;
        reporter.status(format!("Digest: {digest}"));
        let mut names = vec![reference.with_digest(digest)];
        if reference.digest().is_none() {
            names.insert(0, reference.clone());
        }
        let store = Arc::clone(&self.store);
        let from = format!("{}/{}", reference.domain(), reference.path());
        let new = NewImage {
            config,
            parent: None,
            names,
            documents: vec![document.bytes],
        };
        let is_new = tokio::task::spawn_blocking(move || {
            let before = new.names.iter().map(|name| store.named(name));
            let before: Vec<_> = before.collect::<bulkhead_image::Result<_>>()?;
            let new = [new];
            store.ingest().commit(&new)?;
            for blob in blobs.iter().filter(|blob| blob.is_gzip) {
                store.remember_source(&blob.diff_id, &blob.digest, blob.size, &from)?;
            }
            // The image has its layers now.
            drop(leases);
            Ok::<_, RegistryError>(before.iter().any(|had| *had != Some(image)))
        })
        .await
        .map_err(broken_task)??;
        Ok(PulledImage {
            id: image,
            reference: reference.clone(),
            digest,
            is_new,
        })
    }
}

pub(crate) fn broken_task(error: tokio::task::JoinError) -> RegistryError {
    RegistryError::Configuration(format!("image store: {error}"))
}

/// The manifest that a document is, or that it has for a platform.
pub(crate) async fn resolve(
    repository: &Repository,
    mut document: Document,
    platform: &Platform,
) -> Result<(Document, Manifest)> {
    for _ in 0..MAX_DEPTH {
        let entry = match document.parse()? {
            Parsed::Manifest(manifest) => return Ok((document, *manifest)),
            Parsed::Index(index) => index.choose(platform)?.clone(),
        };
        document = repository.manifest(&entry.digest.to_string()).await?;
        check_size(&entry, document.bytes.len() as u64)?;
    }
    Err(RegistryError::InvalidAnswer(
        "manifest lists are nested too deep".to_owned(),
    ))
}

fn check_size(descriptor: &Descriptor, actual: u64) -> Result<()> {
    if descriptor.size == actual {
        return Ok(());
    }
    Err(RegistryError::InvalidAnswer(format!(
        "{} has {actual} bytes instead of {}",
        descriptor.digest, descriptor.size
    )))
}

/// The config of an image that is in the store.
fn known_config(store: &ImageStore, id: ImageId) -> bulkhead_image::Result<Option<Vec<u8>>> {
    match store.config_bytes(&id) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_platform(config: &ImageConfig, wanted: &Platform) -> Result<()> {
    match config.os.as_str() {
        "" | "linux" => Ok(()),
        os => Err(RegistryError::Unsupported(format!(
            "image operating system {os:?} cannot be used on this platform: containers here are \
             {}",
            name(wanted)
        ))),
    }
}

fn blobs(manifest: &Manifest, config: &ImageConfig) -> Result<Vec<Blob>> {
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(RegistryError::InvalidAnswer(format!(
            "mismatched layers: the manifest has {}, the config {}",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    let pairs = manifest.layers.iter().zip(diff_ids);
    Ok(pairs
        .map(|(layer, diff_id)| Blob {
            digest: layer.digest,
            size: layer.size,
            diff_id: *diff_id,
            is_gzip: matches!(layer.media_type.as_str(), DOCKER_GZIP | OCI_GZIP),
        })
        .collect())
}

/// Brings all layers into the store.
async fn fetch(
    transfers: &Transfers,
    store: &Arc<ImageStore>,
    repository: &Repository,
    blobs: &[Blob],
    reporter: &Reporter,
) -> Result<Vec<Arc<HeldLease>>> {
    let diff_ids: Vec<Digest> = blobs.iter().map(|blob| blob.diff_id).collect();
    let own = Arc::clone(store);
    let (lease, held) = tokio::task::spawn_blocking(move || {
        let mut lease = Lease::new(&own);
        let held = diff_ids.iter().map(|diff_id| lease.hold(diff_id));
        let held = held.collect::<bulkhead_image::Result<Vec<bool>>>()?;
        Ok::<_, RegistryError>((HeldLease::new(lease), held))
    })
    .await
    .map_err(broken_task)??;
    let mut leases = vec![Arc::new(lease)];
    let mut missing: Vec<Blob> = Vec::new();
    for (blob, held) in blobs.iter().zip(held) {
        // The same layer may occur twice in one image.
        if held || missing.iter().any(|other| other.diff_id == blob.diff_id) {
            reporter.layer(&blob.digest.short(), "Already exists");
        } else {
            reporter.layer(&blob.digest.short(), "Pulling fs layer");
            missing.push(*blob);
        }
    }
    let work = missing
        .iter()
        .map(|blob| one(transfers, repository, *blob, reporter));
    leases.extend(try_join_all(work).await?);
    Ok(leases)
}

async fn one(
    transfers: &Transfers,
    repository: &Repository,
    blob: Blob,
    reporter: &Reporter,
) -> Result<Arc<HeldLease>> {
    let id = blob.digest.short();
    let mut last: Option<Instant> = None;
    let mut waiting = false;
    let lease = transfers
        .layer(repository, blob, |state| match state {
            State::Waiting if !waiting => {
                waiting = true;
                reporter.layer(&id, "Waiting");
            }
            State::Fetching(count) if last.is_none_or(|last| last.elapsed() >= INTERVAL) => {
                last = Some(Instant::now());
                reporter.counts(&id, "Downloading", *count, blob.size);
            }
            State::Retrying(seconds) => {
                let unit = if *seconds == 1 { "second" } else { "seconds" };
                reporter.about(&id, format!("Retrying in {seconds} {unit}"));
            }
            State::Converting => {
                reporter.layer(&id, "Download complete");
                reporter.counts(&id, "Extracting", blob.size, blob.size);
            }
            _ => {}
        })
        .await?;
    reporter.layer(&id, "Pull complete");
    Ok(lease)
}
