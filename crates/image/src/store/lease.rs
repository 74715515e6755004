//! [`Lease`]: layers that must stay although no image has them yet, or any more.
//!
//! A pull converts its layers one by one, several at a time, and each is in the store as soon
//! as it is whole, so that another pull finds it. Until an image has them leases keep them from
//! every removal; a lease that ends without an image leaves nothing.

use std::io::Read;
use std::sync::Arc;

use super::database::{self, LayerRow, LayerSource};
use super::files::StoredFile;
use super::ingest::{StagedFile, StagedLayer, receive};
use super::{ImageStore, State};
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};
use crate::reference::Reference;

/// What a layer was announced as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnouncedLayer {
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Digest of the bytes as they come.
    pub blob: Digest,
}

/// A converted layer that is not in the store yet; dropped, it leaves no trace.
pub struct ReceivedLayer(StagedLayer);

impl ReceivedLayer {
    /// Digest of its uncompressed tar.
    pub fn diff_id(&self) -> Digest {
        self.0.row.diff_id
    }

    /// Bytes of its uncompressed tar.
    pub fn tar_bytes(&self) -> u64 {
        self.0.row.tar_bytes
    }
}

impl ImageStore {
    /// Converts a layer, plain or compressed, and keeps its tar. Many may run at a time.
    ///
    /// # Errors
    /// [`ImageError::DigestMismatch`] if it is not what was announced.
    pub fn receive_layer(
        &self,
        source: &mut (dyn Read + Send),
        announced: &AnnouncedLayer,
    ) -> Result<ReceivedLayer> {
        let layer = receive(&self.files, source)?;
        let blob = layer.row.blob.unwrap_or(layer.row.diff_id);
        for (what, actual, expected) in [
            ("layer as received", blob, announced.blob),
            ("layer", layer.row.diff_id, announced.diff_id),
        ] {
            if actual != expected {
                return Err(ImageError::DigestMismatch {
                    what: what.to_owned(),
                    actual,
                    expected,
                });
            }
        }
        Ok(ReceivedLayer(layer))
    }

    /// Gives a layer's files their names. A new layer is recorded with its first image, a
    /// damaged one, whose files these replace, at once.
    pub(super) fn place(
        &self,
        state: &mut State,
        row: LayerRow,
        files: [StagedFile; 2],
    ) -> Result<()> {
        let is_known = database::layer(&state.connection, &row.diff_id)?.is_some();
        let mut added = Vec::new();
        let result = (|| {
            for file in files {
                if is_known {
                    self.files.replace(file.temporary, file.name)?;
                } else if self.files.keep(file.temporary, file.name)? {
                    added.push(file.name);
                }
            }
            self.files.sync_directories()?;
            if is_known {
                let transaction = state.connection.transaction()?;
                database::replace_layer(&transaction, &row)?;
                transaction.commit()?;
            } else {
                state.leased.insert(row.diff_id, row);
            }
            Ok(())
        })();
        if result.is_err() {
            for file in added {
                // The first error is the one to report; the sweep takes what stays.
                let _ = self.files.remove(file);
            }
        }
        result
    }

    /// Removes the leased layers that nobody holds any more; those that an image got meanwhile
    /// are recorded and not leased any more.
    pub(super) fn collect_leased(&self, state: &mut State) -> Result<()> {
        let pins = &state.pins;
        let ended: Vec<LayerRow> = state
            .leased
            .extract_if(|diff_id, _| !pins.contains_key(diff_id))
            .map(|(_, row)| row)
            .collect();
        for row in ended {
            let recorded = database::layer(&state.connection, &row.diff_id)?;
            if recorded.is_none() {
                self.files.remove(StoredFile::LayerImage(row.diff_id))?;
            }
            if recorded.is_some_and(|recorded| recorded.tar_file() == row.tar_file()) {
                continue;
            }
            let needed = match row.blob {
                Some(blob) => {
                    database::is_blob_used(&state.connection, &blob)?
                        || state.leased.values().any(|other| other.blob == Some(blob))
                }
                None => false,
            };
            if !needed {
                self.files.remove(row.tar_file())?;
            }
        }
        Ok(())
    }

    /// The image that has exactly this name: with its tag, or with its digest.
    pub fn named(&self, name: &Reference) -> Result<Option<ImageId>> {
        database::named(&self.state().connection, &name.to_string())
    }

    /// Remembers that a repository has a layer, and as which blob.
    pub fn remember_source(
        &self,
        diff_id: &Digest,
        blob: &Digest,
        size: u64,
        repository: &str,
    ) -> Result<()> {
        let source = LayerSource {
            blob: *blob,
            size,
            repository: repository.to_owned(),
        };
        database::insert_source(&self.state().connection, diff_id, &source)
    }

    /// Repositories that are known to have had a layer.
    pub fn sources(&self, diff_id: &Digest) -> Result<Vec<LayerSource>> {
        database::sources(&self.state().connection, diff_id)
    }
}

/// See the module's documentation.
pub struct Lease {
    store: Arc<ImageStore>,
    held: Vec<Digest>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Lease")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// One that keeps nothing yet.
    pub fn new(store: &Arc<ImageStore>) -> Self {
        Self {
            store: Arc::clone(store),
            held: Vec::new(),
        }
    }

    /// Keeps a layer, if it is there.
    pub fn hold(&mut self, diff_id: &Digest) -> Result<bool> {
        if self.held.contains(diff_id) {
            return Ok(true);
        }
        let mut state = self.store.state();
        if !state.has_layer(diff_id)? {
            return Ok(false);
        }
        state.pin(*diff_id);
        self.held.push(*diff_id);
        Ok(true)
    }

    /// Puts a layer into the store and keeps it.
    pub fn add(&mut self, layer: ReceivedLayer) -> Result<()> {
        let StagedLayer { row, files } = layer.0;
        let mut state = self.store.state();
        if !state.has_layer(&row.diff_id)? {
            self.store.place(&mut state, row, files)?;
        }
        if !self.held.contains(&row.diff_id) {
            state.pin(row.diff_id);
            self.held.push(row.diff_id);
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.release(&self.held);
    }
}
