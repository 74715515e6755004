//! Whether the store is what its names say, and making it so again.
//!
//! Every document and every layer's tar is hashed, and every layer's EROFS image is compared,
//! byte for byte, with what its tar converts to: equal input gives equal bytes. An image that
//! differs or is missing is made anew. A tar cannot be: its layer is marked, and comes again
//! with the next pull or load of an image that has it. What cannot be told any more, an image
//! without its config, goes.

use std::fs::File;
use std::io::{self, BufReader, Read};

use super::database::{self, LayerRow};
use super::files::{StoredFile, storage};
use super::{ImageStore, State};
use crate::config::ImageConfig;
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};
use crate::layer::{Kept, convert_layer_keeping};

/// What a check has found, and what it has done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A layer's EROFS image was missing or wrong.
    LayerImage {
        /// The layer.
        diff_id: Digest,
        /// Whether it was made anew.
        repaired: bool,
    },
    /// A layer's tar is missing or wrong.
    LayerTar {
        /// The layer.
        diff_id: Digest,
        /// Names, or else IDs, of the images that have to be pulled or loaded again.
        images: Vec<String>,
    },
    /// An image's config is missing or wrong: it cannot be used.
    Config {
        /// The image.
        image: ImageId,
        /// Its names.
        names: Vec<String>,
        /// Whether it was removed.
        repaired: bool,
    },
    /// A manifest that an image came with is missing or wrong: a push makes another.
    Document {
        /// The image.
        image: ImageId,
        /// Which.
        digest: Digest,
        /// Whether the image was told to forget it.
        repaired: bool,
    },
}

/// What a check did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// How many layers were looked at.
    pub layers: u64,
    /// How many images.
    pub images: u64,
    /// What was wrong.
    pub findings: Vec<Finding>,
}

impl ImageStore {
    /// Looks at every byte of the store, and repairs what it can if it is to. The store may be
    /// used meanwhile.
    pub fn check(&self, repair: bool) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let (layers, images) = {
            let state = self.state();
            (
                database::layers(&state.connection)?,
                database::image_ids(&state.connection)?,
            )
        };
        for row in layers {
            if let Some(row) = self.pinned(&row.diff_id)? {
                let finding = self.check_layer(&row, repair);
                self.release(&[row.diff_id]);
                report.findings.extend(finding?);
                report.layers += 1;
            }
        }
        for id in images {
            let mut state = self.state();
            if database::image(&state.connection, &id)?.is_some() {
                let findings = self.check_documents(&mut state, id, repair)?;
                report.findings.extend(findings);
                report.images += 1;
            }
        }
        Ok(report)
    }

    /// A layer that is there and now stays for a while.
    fn pinned(&self, diff_id: &Digest) -> Result<Option<LayerRow>> {
        let mut state = self.state();
        let row = database::layer(&state.connection, diff_id)?;
        if row.is_some() {
            state.pin(*diff_id);
        }
        Ok(row)
    }

    fn check_layer(&self, row: &LayerRow, repair: bool) -> Result<Option<Finding>> {
        let derived = self.derive(row)?;
        let Some(derived) = derived else {
            let state = self.state();
            if repair {
                database::set_damaged(&state.connection, &row.diff_id, true)?;
            }
            let images = database::images_of_layer(&state.connection, &row.diff_id)?;
            let mut names = Vec::new();
            for image in images {
                names.extend(names_of(&state, &image)?);
            }
            return Ok(Some(Finding::LayerTar {
                diff_id: row.diff_id,
                images: names,
            }));
        };
        let name = StoredFile::LayerImage(row.diff_id);
        if same_content(&self.files.path(name), derived.as_file()) {
            return Ok(None);
        }
        if repair {
            let temporary = derived.into_temp_path();
            let state = self.state();
            self.files.replace(temporary, name)?;
            self.files.sync_directories()?;
            database::set_damaged(&state.connection, &row.diff_id, false)?;
        }
        Ok(Some(Finding::LayerImage {
            diff_id: row.diff_id,
            repaired: repair,
        }))
    }

    /// The EROFS image that a layer's tar makes; nothing if the tar is not what it should be.
    fn derive(&self, row: &LayerRow) -> Result<Option<tempfile::NamedTempFile>> {
        let path = self.files.path(row.tar_file());
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(storage("open", &path)(error)),
        };
        if let Some(blob) = row.blob {
            let mut hasher = super::export::Hasher::default();
            io::copy(&mut file, &mut hasher).map_err(storage("read", &path))?;
            if hasher.digest() != blob {
                return Ok(None);
            }
            io::Seek::rewind(&mut file).map_err(storage("read", &path))?;
        }
        let output = self.files.temporary()?;
        match convert_layer_keeping(&mut file, output.as_file(), Kept::Nothing) {
            Ok(layer) if layer.diff_id == row.diff_id => Ok(Some(output)),
            Ok(_) | Err(ImageError::InvalidInput(_) | ImageError::Input { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn check_documents(
        &self,
        state: &mut State,
        image: ImageId,
        repair: bool,
    ) -> Result<Vec<Finding>> {
        let sound = |digest: &Digest| {
            std::fs::read(self.files.path(StoredFile::Blob(*digest)))
                .is_ok_and(|bytes| Digest::of(&bytes) == *digest)
        };
        let mut findings = Vec::new();
        let config = StoredFile::Blob(image.0);
        let readable = sound(&image.0)
            && std::fs::read(self.files.path(config))
                .is_ok_and(|bytes| ImageConfig::parse(&bytes).is_ok());
        if !readable {
            findings.push(Finding::Config {
                image,
                names: names_of(state, &image)?,
                repaired: repair,
            });
            if repair {
                let transaction = state.connection.transaction()?;
                database::remove_image(&transaction, &image)?;
                transaction.commit()?;
                self.files.remove(config)?;
                self.collect_unused(state)?;
            }
            return Ok(findings);
        }
        for digest in database::documents(&state.connection, &image)? {
            if sound(&digest) {
                continue;
            }
            if repair {
                database::remove_document(&state.connection, &image, &digest)?;
                if !database::is_blob_used(&state.connection, &digest)? {
                    self.files.remove(StoredFile::Blob(digest))?;
                }
            }
            findings.push(Finding::Document {
                image,
                digest,
                repaired: repair,
            });
        }
        Ok(findings)
    }
}

fn names_of(state: &State, image: &ImageId) -> Result<Vec<String>> {
    let names = database::names(&state.connection, image)?;
    let tags = names.iter().filter(|name| name.tag().is_some());
    let mut found: Vec<String> = tags.map(crate::Reference::familiar).collect();
    if found.is_empty() {
        found = names.iter().map(crate::Reference::familiar).collect();
    }
    if found.is_empty() {
        found.push(image.to_string());
    }
    Ok(found)
}

fn same_content(path: &std::path::Path, other: &File) -> bool {
    let compare = || -> io::Result<bool> {
        let file = File::open(path)?;
        if file.metadata()?.len() != other.metadata()?.len() {
            return Ok(false);
        }
        let mut other = other.try_clone()?;
        io::Seek::rewind(&mut other)?;
        let (mut left, mut right) = (
            BufReader::with_capacity(1 << 18, file),
            BufReader::with_capacity(1 << 18, other),
        );
        let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let length = left.read(&mut a)?;
            if length == 0 {
                return Ok(true);
            }
            right.read_exact(&mut b[..length])?;
            if a[..length] != b[..length] {
                return Ok(false);
            }
        }
    };
    // What cannot be read is as wrong as what differs.
    compare().unwrap_or(false)
}
