//! An image of a container: its image's layers, its own changes as one more, and a
//! configuration.

use std::sync::Arc;

use bollard_stubs::models::{ContainerConfig, ImageConfig};
use bulkhead_image::{
    AddedImage, Digest, HistoryEntry, ImageError, ImageId, ImageStore, NewImage, Reference,
};

use super::archive::LayerTar;
use super::model::{Record, Status};
use super::{Containers, Handle};
use crate::error::{ApiError, ApiResult};
use crate::services::images::{Images, api_error};

/// An archive without entries, which is no layer.
const EMPTY: [u8; 1024] = [0; 1024];

/// What an image of a container is to be.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// Its name.
    pub reference: Option<Reference>,
    /// Who makes it.
    pub author: String,
    /// Why.
    pub comment: String,
    /// Dockerfile instructions on top of the configuration.
    pub changes: Vec<String>,
    /// A configuration that wins over the container's.
    pub config: Option<ContainerConfig>,
    /// Whether a running container is frozen meanwhile.
    pub pause: bool,
}

impl Containers {
    /// Makes an image of a container.
    ///
    /// # Errors
    /// 400 for instructions that make no sense, 404 when the container's image is gone.
    pub async fn commit(&self, handle: &Arc<Handle>, request: CommitRequest) -> ApiResult<ImageId> {
        let record = handle.view().record.clone();
        let config = configuration(&record, &request)?;
        // To the end, whatever becomes of the client: it must not stay frozen.
        let (containers, handle) = (self.clone(), Arc::clone(handle));
        let work = tokio::spawn(async move {
            let mut freeze = request.pause && handle.view().record.state.status == Status::Running;
            if freeze && let Err(error) = handle.pause().await {
                // It is ending, whether that was noted yet or not; dockerd commits all the same
                // what it could not freeze.
                tracing::debug!(id = %handle.id, %error, "commit of what does not freeze");
                freeze = false;
            }
            let made = containers
                .commit_quiet(&handle, record, config, &request)
                .await;
            if freeze && let Err(error) = handle.unpause().await {
                // It was stopped or thawed by somebody else.
                tracing::debug!(id = %handle.id, %error, "thaw after commit");
            }
            let (id, reference) = made?;
            let mut attributes = vec![
                ("comment", request.comment.clone()),
                ("imageID", id.to_string()),
            ];
            if let Some(reference) = reference {
                let shared = &containers.shared;
                Images::new(Arc::clone(&shared.images), shared.events.clone()).announce(
                    "tag",
                    &id.to_string(),
                    &reference.familiar(),
                );
                attributes.push(("imageRef", reference.familiar()));
            }
            handle.announce("commit", attributes).await;
            Ok(id)
        });
        work.await
            .map_err(|error| ApiError::internal("commit", &error))?
    }

    async fn commit_quiet(
        &self,
        handle: &Arc<Handle>,
        record: Record,
        config: bulkhead_image::ContainerConfig,
        request: &CommitRequest,
    ) -> ApiResult<(ImageId, Option<Reference>)> {
        let layer = handle.layer_tar(None, Vec::new()).await?;
        let store = Arc::clone(&self.shared.images);
        let reference = request.reference.clone().map(Reference::with_default_tag);
        let image = Image {
            record,
            config,
            author: request.author.clone(),
            comment: request.comment.clone(),
            changes: request.changes.clone(),
            reference: reference.clone(),
        };
        let added = tokio::task::spawn_blocking(move || image.add(&store, layer))
            .await
            .map_err(|error| ApiError::internal("commit", &error))?
            .map_err(|error| api_error(&error))?;
        Ok((added.id, reference))
    }
}

/// The configuration asked for, completed by the container's.
fn configuration(
    record: &Record,
    request: &CommitRequest,
) -> ApiResult<bulkhead_image::ContainerConfig> {
    let failed =
        |error: serde_json::Error| ApiError::internal("configuration of the image", &error);
    let mut config = request
        .config
        .clone()
        .unwrap_or_else(|| record.config.clone());
    let own = serde_json::to_value(&record.config).map_err(failed)?;
    let own: ImageConfig = serde_json::from_value(own).map_err(failed)?;
    bulkhead_spec::merge_image_config(&mut config, &own);
    let mut value = serde_json::to_value(&config).map_err(failed)?;
    if let Some(members) = value.as_object_mut() {
        members.retain(|name, value| KEPT.contains(&name.as_str()) && !value.is_null());
        // Sets are lists in these types, and objects in documents.
        for set in ["ExposedPorts", "Volumes"] {
            if let Some(serde_json::Value::Array(names)) = members.get(set) {
                let names: serde_json::Map<_, _> = names
                    .iter()
                    .filter_map(|name| Some((name.as_str()?.to_owned(), serde_json::json!({}))))
                    .collect();
                members.insert(set.to_owned(), names.into());
            }
        }
    }
    let mut config: bulkhead_image::ContainerConfig =
        serde_json::from_value(value).map_err(failed)?;
    bulkhead_image::apply_changes(&mut config, &request.changes)
        .map_err(|error| api_error(&error))?;
    Ok(config)
}

/// What of a container's configuration is an image's.
const KEPT: [&str; 13] = [
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Healthcheck",
    "Volumes",
    "WorkingDir",
    "Labels",
    "OnBuild",
    "StopSignal",
    "StopTimeout",
    "Shell",
];

/// An image that is being made.
struct Image {
    record: Record,
    config: bulkhead_image::ContainerConfig,
    author: String,
    comment: String,
    changes: Vec<String>,
    reference: Option<Reference>,
}

impl Image {
    fn add(self, store: &ImageStore, mut layer: LayerTar) -> Result<AddedImage, ImageError> {
        let parent = store.resolve(&self.record.image_id)?;
        let mut ingest = store.ingest();
        let diff_id = ingest.add_layer(&mut layer, None)?;
        // A container at rest may start again.
        drop(layer);
        let empty = diff_id == Digest::of(&EMPTY);
        if empty {
            ingest = store.ingest();
        }
        let mut document = store.inspect(&parent)?.document;
        for layer in &document.rootfs.diff_ids {
            // So that they stay.
            ingest.has_layer(layer)?;
        }
        if !empty {
            document.rootfs.diff_ids.push(diff_id);
        }
        let created = Some(jiff::Timestamp::now().to_string());
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let mut command = vec![self.record.path.clone()];
        command.extend(self.record.args.iter().cloned());
        document.history.push(HistoryEntry {
            created: created.clone(),
            created_by: Some(command.join(" ")),
            author: text(&self.author),
            comment: text(&self.comment),
            empty_layer: empty,
        });
        document.created = created;
        document.author = text(&self.author);
        document.comment = text(&self.comment);
        document.config = self.config;
        tracing::debug!(changes = self.changes.len(), "configuration of a commit");
        let image = NewImage {
            config: document.to_bytes()?,
            parent: Some(parent),
            names: self.reference.into_iter().collect(),
            ..NewImage::default()
        };
        let mut added = ingest.commit(&[image])?;
        added
            .pop()
            .ok_or_else(|| ImageError::Damaged("a commit made no image".to_owned()))
    }
}
