//! [`Ingest`]: layers and documents on their way into the store. Nothing of it is visible
//! before [`Ingest::commit`], and everything afterwards; dropped, it leaves no trace.

use std::collections::HashMap;
use std::io::{Read, Write};

use tempfile::TempPath;

use super::database::{self, LayerRow};
use super::files::{StoreFiles, StoredFile, storage};
use super::{ImageStore, State};
use crate::config::ImageConfig;
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};
use crate::layer::{ConvertedLayer, Kept, KeptTar, convert_layer_keeping};
use crate::reference::Reference;

/// An image to be added.
#[derive(Debug, Clone, Default)]
pub struct NewImage {
    /// The config document; its digest becomes the ID. All its layers must be in the store or
    /// in the same [`Ingest`].
    pub config: Vec<u8>,
    /// The image that it was made from here.
    pub parent: Option<ImageId>,
    /// Tags and repository digests that it is to have.
    pub names: Vec<Reference>,
    /// Other documents to keep with it: its manifest.
    pub documents: Vec<Vec<u8>>,
}

/// An image that was added, or that was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedImage {
    /// Its ID.
    pub id: ImageId,
    /// For each of the names, the other image that had it.
    pub replaced: Vec<Option<ImageId>>,
}

pub(crate) struct StagedFile {
    pub(crate) temporary: TempPath,
    pub(crate) name: StoredFile,
}

/// A converted layer in temporary files.
pub(crate) struct StagedLayer {
    pub(crate) row: LayerRow,
    pub(crate) files: [StagedFile; 2],
}

impl StagedLayer {
    fn new(layer: &ConvertedLayer, blob: Option<Digest>, image: TempPath, tar: TempPath) -> Self {
        let row = LayerRow {
            diff_id: layer.diff_id,
            tar_bytes: layer.tar_bytes,
            content_bytes: layer.content_bytes,
            image_bytes: layer.image_bytes,
            blob,
        };
        let image = StagedFile {
            temporary: image,
            name: StoredFile::LayerImage(row.diff_id),
        };
        let tar = StagedFile {
            temporary: tar,
            name: row.tar_file(),
        };
        Self {
            row,
            files: [image, tar],
        }
    }
}

/// Converts a layer into temporary files of the store.
pub(crate) fn receive(files: &StoreFiles, source: &mut (dyn Read + Send)) -> Result<StagedLayer> {
    let image = files.temporary()?;
    let tar = files.temporary()?;
    let clone = tar
        .as_file()
        .try_clone()
        .map_err(storage("open", tar.path()))?;
    let mut kept = KeptTar {
        file: clone,
        received: None,
    };
    let layer = convert_layer_keeping(source, image.as_file(), Kept::Tar(&mut kept))?;
    let blob = kept.received.map(|(digest, _)| digest);
    Ok(StagedLayer::new(
        &layer,
        blob,
        image.into_temp_path(),
        tar.into_temp_path(),
    ))
}

/// See the module's documentation. Also for callers that fetch or make layers themselves.
pub struct Ingest<'s> {
    store: &'s ImageStore,
    layers: HashMap<Digest, StagedLayer>,
    /// Layers of the store that must not go while this lives.
    pinned: Vec<Digest>,
}

impl<'s> Ingest<'s> {
    pub(crate) fn new(store: &'s ImageStore) -> Self {
        Self {
            store,
            layers: HashMap::new(),
            pinned: Vec::new(),
        }
    }

    /// Whether the layer need not be added; if so it stays at least until this is dropped.
    pub fn has_layer(&mut self, diff_id: &Digest) -> Result<bool> {
        if self.layers.contains_key(diff_id) || self.pinned.contains(diff_id) {
            return Ok(true);
        }
        let mut state = self.store.state();
        if !state.has_layer(diff_id)? {
            return Ok(false);
        }
        state.pin(*diff_id);
        self.pinned.push(*diff_id);
        Ok(true)
    }

    /// Converts a layer, plain or compressed, and keeps its tar.
    ///
    /// # Errors
    /// [`ImageError::DigestMismatch`] if its diffID is not `expected`.
    pub fn add_layer(
        &mut self,
        source: &mut (dyn Read + Send),
        expected: Option<Digest>,
    ) -> Result<Digest> {
        let layer = receive(&self.store.files, source)?;
        let diff_id = layer.row.diff_id;
        check_digest("layer", diff_id, expected)?;
        self.layers.insert(diff_id, layer);
        Ok(diff_id)
    }

    /// Converts a compressed layer that is in a temporary file of the store, and keeps that
    /// file under its digest `blob`.
    pub(crate) fn add_received_layer(
        &mut self,
        source: &mut (dyn Read + Send),
        expected: Digest,
        blob: Digest,
        received: TempPath,
    ) -> Result<()> {
        let image = self.store.files.temporary()?;
        let layer = convert_layer_keeping(source, image.as_file(), Kept::Nothing)?;
        check_digest("layer", layer.diff_id, Some(expected))?;
        let staged = StagedLayer::new(&layer, Some(blob), image.into_temp_path(), received);
        self.layers.insert(layer.diff_id, staged);
        Ok(())
    }

    /// Adds the images with their names, all or none.
    pub fn commit(mut self, images: &[NewImage]) -> Result<Vec<AddedImage>> {
        let files = &self.store.files;
        let mut documents = Vec::new();
        for bytes in images
            .iter()
            .flat_map(|image| image.documents.iter().chain([&image.config]))
        {
            documents.push(write_document(files, bytes)?);
        }
        let staged = std::mem::take(&mut self.layers);
        let mut state = self.store.state();
        let mut added = Vec::new();
        let result = (|| {
            let mut rows = Vec::new();
            let mut staged: Vec<StagedLayer> = staged.into_values().collect();
            staged.sort_unstable_by_key(|layer| layer.row.diff_id);
            for layer in staged {
                // Someone else may have been faster, perhaps with another form of the tar.
                match database::layer(&state.connection, &layer.row.diff_id)? {
                    None if state.leased.contains_key(&layer.row.diff_id) => {}
                    None => {
                        rows.push(layer.row);
                        documents.extend(layer.files);
                    }
                    Some(_) if !database::is_sound(&state.connection, &layer.row.diff_id)? => {
                        self.store.place(&mut state, layer.row, layer.files)?;
                    }
                    Some(_) => {}
                }
            }
            for file in documents {
                if files.keep(file.temporary, file.name)? {
                    added.push(file.name);
                }
            }
            files.sync_directories()?;
            record(&mut state, &rows, images)
        })();
        if result.is_err() {
            for file in added {
                // The first error is the one to report; the sweep takes what stays.
                let _ = files.remove(file);
            }
        }
        result
    }
}

impl Drop for Ingest<'_> {
    fn drop(&mut self) {
        self.store.release(&self.pinned);
    }
}

fn record(state: &mut State, rows: &[LayerRow], images: &[NewImage]) -> Result<Vec<AddedImage>> {
    let now = jiff::Timestamp::now().to_string();
    let leased = &state.leased;
    let transaction = state.connection.transaction()?;
    for row in rows {
        database::insert_layer(&transaction, row)?;
    }
    let mut added = Vec::new();
    for image in images {
        let id = ImageId(Digest::of(&image.config));
        let config = ImageConfig::parse(&image.config)?;
        for diff_id in &config.rootfs.diff_ids {
            if database::layer(&transaction, diff_id)?.is_some() {
                continue;
            }
            if let Some(row) = leased.get(diff_id) {
                database::insert_layer(&transaction, row)?;
            } else {
                return Err(ImageError::InvalidInput(format!(
                    "image {id} lacks layer {diff_id}"
                )));
            }
        }
        let documents: Vec<Digest> = image
            .documents
            .iter()
            .map(|bytes| Digest::of(bytes))
            .collect();
        let parent = image.parent.as_ref();
        database::insert_image(
            &transaction,
            &id,
            parent,
            &config.rootfs.diff_ids,
            &documents,
        )?;
        let replaced = image
            .names
            .iter()
            .map(|name| database::set_name(&transaction, name, &id, &now))
            .collect::<Result<_>>()?;
        added.push(AddedImage { id, replaced });
    }
    transaction.commit()?;
    let recorded = images.iter().flat_map(|image| {
        let config = ImageConfig::parse(&image.config);
        config.map_or_else(|_| Vec::new(), |config| config.rootfs.diff_ids)
    });
    for diff_id in recorded {
        state.leased.remove(&diff_id);
    }
    Ok(added)
}

fn write_document(files: &StoreFiles, bytes: &[u8]) -> Result<StagedFile> {
    let mut temporary = files.temporary()?;
    let path = temporary.path().to_owned();
    temporary
        .write_all(bytes)
        .map_err(storage("write", &path))?;
    temporary
        .as_file()
        .sync_all()
        .map_err(storage("sync", &path))?;
    Ok(StagedFile {
        temporary: temporary.into_temp_path(),
        name: StoredFile::Blob(Digest::of(bytes)),
    })
}

fn check_digest(what: &str, actual: Digest, expected: Option<Digest>) -> Result<()> {
    match expected {
        Some(expected) if expected != actual => Err(ImageError::DigestMismatch {
            what: what.to_owned(),
            actual,
            expected,
        }),
        _ => Ok(()),
    }
}
