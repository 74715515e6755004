//! What the store says about its images.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use super::database::{self, LayerRow};
use super::files::{StoredFile, storage};
use super::{ImageStore, State};
use crate::config::ImageConfig;
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};
use crate::model::{DiskUsage, HistoryLine, ImageDetail, ImageSummary, LayerDetail};
use crate::reference::Reference;

/// Shortest ID prefix that is looked up.
const MIN_PREFIX: usize = 1;

impl ImageStore {
    /// The image that `text` means, in docker's order: a whole ID (`sha256:<hex>` or 64 hex
    /// digits); a name (`name`, `name:tag`, `name@sha256:…`); an ID's unique prefix.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], whose text is docker's; [`ImageError::Ambiguous`];
    /// [`ImageError::Reference`].
    pub fn resolve(&self, text: &str) -> Result<ImageId> {
        resolve(&self.state(), text)
    }

    /// All images, the newest first, then by ID.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        let state = self.state();
        let mut images = Vec::new();
        for id in database::image_ids(&state.connection)? {
            images.push(self.summary(&state, &id)?.0);
        }
        images.sort_by_key(|image| (std::cmp::Reverse(image.created_nanoseconds), image.id));
        Ok(images)
    }

    /// All that is known of an image.
    pub fn inspect(&self, id: &ImageId) -> Result<ImageDetail> {
        let state = self.state();
        let (summary, document, last_tagged) = self.summary(&state, id)?;
        let rows = database::image_layers(&state.connection, id)?;
        let mut chain: Option<Digest> = None;
        let layers = rows.iter().map(|row| {
            let chain_id = extend_chain(chain, row.diff_id);
            chain = Some(chain_id);
            LayerDetail {
                diff_id: row.diff_id,
                chain_id,
                content_size: row.content_bytes,
                blob_size: row.image_bytes,
                path: self.files.path(StoredFile::LayerImage(row.diff_id)),
            }
        });
        let layers = layers.collect();
        Ok(ImageDetail {
            summary,
            document,
            last_tagged,
            layers,
        })
    }

    /// The image's history, the newest step first.
    pub fn history(&self, id: &ImageId) -> Result<Vec<HistoryLine>> {
        let state = self.state();
        let (summary, document, _) = self.summary(&state, id)?;
        let mut sizes = database::image_layers(&state.connection, id)?
            .into_iter()
            .map(|row| row.content_bytes);
        let mut lines: Vec<HistoryLine> = document
            .history
            .iter()
            .map(|step| HistoryLine {
                id: None,
                created: seconds(step.created.as_deref()),
                created_by: step.created_by.clone().unwrap_or_default(),
                comment: step.comment.clone().unwrap_or_default(),
                size: if step.empty_layer {
                    0
                } else {
                    sizes.next().unwrap_or(0)
                },
                tags: Vec::new(),
            })
            .collect();
        lines.reverse();
        // Steps that were made here are images of their own.
        let mut step = Some((*id, summary.tags));
        for line in &mut lines {
            let Some((id, tags)) = step else { break };
            (line.id, line.tags) = (Some(id), tags);
            let parent = known(&state, &id)?.parent;
            step = match parent {
                Some(parent) if database::image(&state.connection, &parent)?.is_some() => {
                    let mut names = database::names(&state.connection, &parent)?;
                    names.retain(|name| name.digest().is_none());
                    Some((parent, names))
                }
                _ => None,
            };
        }
        Ok(lines)
    }

    /// EROFS images of the image's layers, the lowest first, for `TaskOptions::layers`. They
    /// stay on disk while the image is in the store, and longer for whoever holds them
    /// ([`ImageStore::hold_layers`]).
    pub fn layer_paths(&self, id: &ImageId) -> Result<Vec<PathBuf>> {
        let state = self.state();
        known(&state, id)?;
        let rows = database::image_layers(&state.connection, id)?;
        Ok(rows
            .iter()
            .map(|row| self.files.path(StoredFile::LayerImage(row.diff_id)))
            .collect())
    }

    /// For each image that shares layers with others, how many bytes those are.
    pub fn shared_sizes(&self) -> Result<HashMap<ImageId, u64>> {
        let state = self.state();
        Ok(database::shared_sizes(&state.connection)?
            .into_iter()
            .collect())
    }

    /// What the store takes on disk.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let state = self.state();
        let mut usage = DiskUsage::default();
        let ids = database::image_ids(&state.connection)?;
        usage.images = ids.len() as u64;
        for row in database::layers(&state.connection)? {
            usage.layers_size += row.content_bytes;
            usage.erofs_bytes += self.files.disk_bytes(StoredFile::LayerImage(row.diff_id));
            usage.blob_bytes += self.files.disk_bytes(row.tar_file());
        }
        for id in ids {
            usage.blob_bytes += self.files.disk_bytes(StoredFile::Blob(id.0));
            for document in database::documents(&state.connection, &id)? {
                usage.blob_bytes += self.files.disk_bytes(StoredFile::Blob(document));
            }
        }
        Ok(usage)
    }

    /// A layer's uncompressed tar, byte for byte as it was received: its SHA-256 is
    /// `diff_id`. For `save` and `push`.
    pub fn open_layer_tar(&self, diff_id: &Digest) -> Result<Box<dyn Read + Send>> {
        let row = {
            let state = self.state();
            database::layer(&state.connection, diff_id)?
                .ok_or_else(|| ImageError::NotFound(diff_id.to_string()))?
        };
        let path = self.files.path(row.tar_file());
        let file = File::open(&path).map_err(storage("open", &path))?;
        let decoded = crate::layer::Compression::of_file(&file)
            .and_then(|compression| crate::layer::decoder(file, compression));
        decoded.map_err(storage("read", &path))
    }

    /// The bytes of a config document, whose digest is the ID.
    pub fn config_bytes(&self, id: &ImageId) -> Result<Vec<u8>> {
        let state = self.state();
        known(&state, id)?;
        self.read_config(id)
    }

    fn read_config(&self, id: &ImageId) -> Result<Vec<u8>> {
        let path = self.files.path(StoredFile::Blob(id.0));
        fs::read(&path).map_err(storage("read", &path))
    }

    fn summary(
        &self,
        state: &State,
        id: &ImageId,
    ) -> Result<(ImageSummary, ImageConfig, Option<String>)> {
        let row = known(state, id)?;
        let document = ImageConfig::parse(&self.read_config(id)?)
            .map_err(|error| ImageError::Damaged(format!("config of {id}: {error}")))?;
        let names = database::names(&state.connection, id)?;
        let (digests, tags) = names.into_iter().partition(|name| name.digest().is_some());
        let layers = database::image_layers(&state.connection, id)?;
        let summary = ImageSummary {
            id: *id,
            parent: row.parent,
            tags,
            digests,
            created: seconds(document.created.as_deref()),
            created_nanoseconds: time(document.created.as_deref())
                .map_or(0, jiff::Timestamp::as_nanosecond),
            size: layers.iter().map(|layer| layer.content_bytes).sum(),
            config: document.config.clone(),
        };
        Ok((summary, document, row.last_tagged))
    }
}

impl LayerRow {
    /// Where its tar is.
    pub(crate) fn tar_file(&self) -> StoredFile {
        match self.blob {
            Some(blob) => StoredFile::Blob(blob),
            None => StoredFile::LayerTar(self.diff_id),
        }
    }
}

pub(crate) fn resolve(state: &State, text: &str) -> Result<ImageId> {
    let connection = &state.connection;
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if let Ok(digest) = Digest::from_hex(hex) {
        let id = ImageId(digest);
        return match database::image(connection, &id)? {
            Some(_) => Ok(id),
            None => Err(ImageError::NotFound(id.to_string())),
        };
    }
    let reference = Reference::parse(text)?.with_default_tag();
    let wanted = match reference.digest() {
        Some(digest) => reference.with_digest(digest),
        None => reference.clone(),
    };
    if let Some(id) = database::named(connection, &wanted.to_string())? {
        return Ok(id);
    }
    let is_prefix = hex.len() >= MIN_PREFIX
        && hex.len() < 64
        && hex
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if is_prefix {
        match database::ids_with_prefix(connection, hex)?[..] {
            [id] => return Ok(id),
            [] => {}
            _ => return Err(ImageError::Ambiguous(text.to_owned())),
        }
    }
    Err(ImageError::NotFound(reference.familiar()))
}

pub(crate) fn known(state: &State, id: &ImageId) -> Result<database::ImageRow> {
    database::image(&state.connection, id)?.ok_or_else(|| ImageError::NotFound(id.to_string()))
}

/// The chain ID of a layer on the chain below it, as the OCI image specification defines it.
pub(crate) fn extend_chain(below: Option<Digest>, diff_id: Digest) -> Digest {
    match below {
        None => diff_id,
        Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
    }
}

/// Seconds since the epoch of an RFC 3339 time; 0 if there is none.
fn seconds(time: Option<&str>) -> i64 {
    self::time(time).map_or(0, jiff::Timestamp::as_second)
}

fn time(text: Option<&str>) -> Option<jiff::Timestamp> {
    text.and_then(|text| text.parse().ok())
}
