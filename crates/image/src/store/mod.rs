//! [`ImageStore`]: the images of one data root.
//!
//! On disk, below `<data_root>/images`:
//!
//! - `layers/<diffID>.erofs`: each layer once, as what containers mount.
//! - `blobs/sha256/<digest>`: configs, manifests, and layers that were received compressed, as
//!   they were received.
//! - `layers/<diffID>.tar.zst`: the tar of a layer that came uncompressed, compressed by us.
//! - `metadata.sqlite`: names, and which image has which layers.
//! - `reserve`: room for removals on a full disk ([`Reserve`]).
//! - `tmp/`: what is being written; emptied when the store is opened.
//!
//! Beside each EROFS image its tar is kept so that `save` and `push` can give every layer back
//! byte for byte (its diffID, and for a compressed blob the registry's digest too). The price
//! is disk: on top of the uncompressed EROFS image a layer costs its compressed size, roughly a
//! third more.

mod check;
mod database;
mod export;
mod files;
mod ingest;
mod lease;
mod query;
mod remove;
mod roots;
mod steps;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, Transaction};

use crate::digest::Digest;
use crate::error::Result;
use crate::reserve::{self, Reserve};
pub use check::{CheckReport, Finding};
use database::LayerRow;
pub use database::LayerSource;
pub use export::{ImageContent, LayerBytes, LayerContent, LayerForm};
pub(crate) use files::storage;
use files::{StoreFiles, StoredFile};
pub use ingest::{AddedImage, Ingest, NewImage};
pub use lease::{AnnouncedLayer, Lease, ReceivedLayer};
pub use roots::ImageRoots;

/// The images of one data root. All methods block; see the crate's documentation.
#[derive(Debug)]
pub struct ImageStore {
    pub(crate) files: StoreFiles,
    /// Held for every change, and so for renames into and removals from the directories.
    /// Never while a caller's stream is read.
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) connection: Connection,
    pub(crate) reserve: Reserve,
    /// Layers that an unfinished [`Ingest`], a [`Lease`] or a container counts on, and how many
    /// do.
    pub(crate) pins: HashMap<Digest, usize>,
    /// Layers whose files are in place but that no image has yet, each held by a [`Lease`]. They
    /// are recorded with the first image that has them; so that they can go without a write,
    /// which a full disk would refuse.
    pub(crate) leased: HashMap<Digest, LayerRow>,
}

impl State {
    pub(crate) fn pin(&mut self, diff_id: Digest) {
        *self.pins.entry(diff_id).or_default() += 1;
    }

    /// Changes the metadata so that things can go, even on a full disk.
    pub(crate) fn removing<T>(
        &mut self,
        work: impl Fn(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.reserve.removing(&mut self.connection, work)
    }

    /// Whether a layer is there and good.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> Result<bool> {
        Ok(self.leased.contains_key(diff_id) || database::is_sound(&self.connection, diff_id)?)
    }
}

impl ImageStore {
    /// Opens, or makes, the store at `<data_root>/images` and sweeps what an interrupted
    /// run left: temporaries, blobs and layers that no image refers to.
    ///
    /// # Errors
    /// [`crate::ImageError::Locked`] if another process has it open.
    pub fn open(data_root: &Path) -> Result<Self> {
        Self::open_holding(data_root, &[])
    }

    /// Opens it with layers that containers have, each as often as some container has it, held
    /// as by [`ImageStore::hold_layers`].
    ///
    /// # Errors
    /// As [`ImageStore::open`].
    pub fn open_holding(data_root: &Path, held: &[PathBuf]) -> Result<Self> {
        let files = StoreFiles::open(data_root.join("images"))?;
        let connection = database::open(&files.database_path())?;
        let reserve = reserve::beside(&files.database_path());
        let store = Self {
            files,
            state: Mutex::new(State {
                connection,
                reserve,
                pins: HashMap::new(),
                leased: HashMap::new(),
            }),
        };
        for diff_id in held.iter().filter_map(|path| files::layer_at(path)) {
            store.state().pin(diff_id);
        }
        store.sweep()?;
        store.state().reserve.keep();
        Ok(store)
    }

    /// Starts bringing in layers and images; for `load`, `import`, and callers who fetch or
    /// make layers.
    pub fn ingest(&self) -> Ingest<'_> {
        Ingest::new(self)
    }

    /// Keeps layers for a container, which may outlive its image: it can be started again
    /// after that has been removed by force. By the paths that [`ImageStore::layer_paths`] gave.
    /// This process remembers it; the next one is told by [`ImageStore::open_holding`].
    ///
    /// Returns false, and holds none, if one of them has gone meanwhile.
    pub fn hold_layers(&self, paths: &[PathBuf]) -> Result<bool> {
        let mut state = self.state();
        let mut held = Vec::with_capacity(paths.len());
        for path in paths {
            match files::layer_at(path) {
                Some(diff_id) if database::layer(&state.connection, &diff_id)?.is_some() => {
                    held.push(diff_id);
                }
                _ => return Ok(false),
            }
        }
        for diff_id in held {
            state.pin(diff_id);
        }
        Ok(true)
    }

    /// Lets go of what [`ImageStore::hold_layers`] held, and removes what no image has.
    pub fn release_layers(&self, paths: &[PathBuf]) {
        let held: Vec<Digest> = paths
            .iter()
            .filter_map(|path| files::layer_at(path))
            .collect();
        self.release(&held);
    }

    /// Lets go of pinned layers, and removes those that no image got.
    pub(crate) fn release(&self, pinned: &[Digest]) {
        if pinned.is_empty() {
            return;
        }
        let mut state = self.state();
        for diff_id in pinned {
            if let Some(count) = state.pins.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(diff_id);
                }
            }
        }
        let collected = self
            .collect_leased(&mut state)
            .and_then(|()| self.collect_unused(&mut state));
        state.reserve.keep();
        if let Err(error) = collected {
            tracing::warn!(error = %error.full_message(), "unused layers stay until the next start");
        }
    }

    fn sweep(&self) -> Result<()> {
        let mut state = self.state();
        self.collect_unused(&mut state)?;
        let mut used = HashSet::new();
        for row in database::layers(&state.connection)? {
            used.insert(StoredFile::LayerImage(row.diff_id));
            used.insert(row.tar_file());
        }
        for id in database::image_ids(&state.connection)? {
            used.insert(StoredFile::Blob(id.0));
            let documents = database::documents(&state.connection, &id)?;
            used.extend(documents.into_iter().map(StoredFile::Blob));
        }
        self.files.sweep(&used)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A transaction that a panic cut short was rolled back, so the state is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
