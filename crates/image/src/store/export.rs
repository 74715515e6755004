//! What leaves the store for a registry: documents as they are, layers in the form in which
//! they travel.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};

use sha2::{Digest as _, Sha256};

use super::ImageStore;
use super::database::{self, LayerRow};
use super::files::{StoredFile, storage};
use super::query::known;
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};
use crate::layer::Compression;
use crate::reference::Reference;

/// How a layer's bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerForm {
    /// As they are.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageContent {
    /// Its config document.
    pub config: Vec<u8>,
    /// Its other documents: the manifests that it came with.
    pub documents: Vec<Vec<u8>>,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerContent>,
}

/// A layer that may travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerContent {
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of its uncompressed tar.
    pub tar_bytes: u64,
    /// The bytes that it came as, if they can travel so again.
    pub received: Option<(Digest, LayerForm)>,
}

/// A layer's bytes for the way.
#[derive(Debug)]
pub struct LayerBytes {
    /// To be read from its beginning.
    pub file: File,
    /// Of its bytes.
    pub digest: Digest,
    /// How many.
    pub size: u64,
}

impl ImageStore {
    /// What an image is made of.
    pub fn content(&self, id: &ImageId) -> Result<ImageContent> {
        let (rows, documents) = {
            let state = self.state();
            known(&state, id)?;
            let rows = database::image_layers(&state.connection, id)?;
            (rows, database::documents(&state.connection, id)?)
        };
        let documents = documents.into_iter().map(|digest| {
            let path = self.files.path(StoredFile::Blob(digest));
            std::fs::read(&path).map_err(storage("read", &path))
        });
        Ok(ImageContent {
            config: self.config_bytes(id)?,
            documents: documents.collect::<Result<_>>()?,
            layers: rows
                .iter()
                .map(|row| self.layer_content(row))
                .collect::<Result<_>>()?,
        })
    }

    fn layer_content(&self, row: &LayerRow) -> Result<LayerContent> {
        let received = match row.blob {
            None => None,
            Some(blob) => {
                let path = self.files.path(StoredFile::Blob(blob));
                let compression = File::open(&path)
                    .and_then(|file| Compression::of_file(&file))
                    .map_err(storage("read", &path))?;
                match compression {
                    Compression::Gzip => Some((blob, LayerForm::Gzip)),
                    Compression::Zstd => Some((blob, LayerForm::Zstd)),
                    // Registries have no such layers.
                    Compression::Plain | Compression::Bzip2 | Compression::Xz => None,
                }
            }
        };
        Ok(LayerContent {
            diff_id: row.diff_id,
            tar_bytes: row.tar_bytes,
            received,
        })
    }

    /// A layer's bytes as they came.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] if they are not kept.
    pub fn received_bytes(&self, diff_id: &Digest) -> Result<LayerBytes> {
        let row = database::layer(&self.state().connection, diff_id)?;
        let digest = row
            .and_then(|row| row.blob)
            .ok_or_else(|| ImageError::NotFound(diff_id.to_string()))?;
        let path = self.files.path(StoredFile::Blob(digest));
        let file = File::open(&path).map_err(storage("open", &path))?;
        let size = file.metadata().map_err(storage("read", &path))?.len();
        Ok(LayerBytes { file, digest, size })
    }

    /// A layer's bytes in a form that is made for the way, in a file that vanishes when it is
    /// closed. The same layer always has the same bytes.
    ///
    /// # Errors
    /// [`ImageError::InvalidInput`] for zstd, which is only passed on.
    pub fn layer_bytes(&self, diff_id: &Digest, form: LayerForm) -> Result<LayerBytes> {
        let mut tar = BufReader::with_capacity(1 << 18, self.open_layer_tar(diff_id)?);
        let (file, path) = self.files.temporary()?.into_parts();
        let failed = |source| ImageError::Storage {
            what: format!("write {}", path.display()),
            source,
        };
        let output = HashedFile {
            file: BufWriter::with_capacity(
                1 << 18,
                file.try_clone().map_err(storage("open", &path))?,
            ),
            hasher: Hasher::default(),
        };
        let output = match form {
            LayerForm::Plain => {
                let mut output = output;
                io::copy(&mut tar, &mut output).map_err(failed)?;
                output
            }
            LayerForm::Gzip => {
                // No name and no time in its header, so that it is the same each time.
                let mut encoder =
                    flate2::write::GzEncoder::new(output, flate2::Compression::new(6));
                io::copy(&mut tar, &mut encoder).map_err(failed)?;
                encoder.finish().map_err(failed)?
            }
            LayerForm::Zstd => {
                return Err(ImageError::InvalidInput(
                    "layers are not compressed with zstd here".to_owned(),
                ));
            }
        };
        let (digest, size) = output.finish().map_err(failed)?;
        let mut file = file;
        io::Seek::rewind(&mut file).map_err(storage("rewind", &path))?;
        Ok(LayerBytes { file, digest, size })
    }

    /// Notes that a registry has an image under this digest of its manifest.
    pub fn name_digest(&self, id: &ImageId, reference: &Reference) -> Result<()> {
        if reference.digest().is_none() || reference.tag().is_some() {
            return Err(ImageError::InvalidInput(
                "not a digest reference".to_owned(),
            ));
        }
        let mut state = self.state();
        let row = known(&state, id)?;
        let transaction = state.connection.transaction()?;
        database::set_name(
            &transaction,
            reference,
            id,
            &row.last_tagged.unwrap_or_default(),
        )?;
        transaction.commit()?;
        Ok(())
    }
}

/// Hashes and counts what is written to it.
#[derive(Default)]
pub(super) struct Hasher {
    hasher: Sha256,
    size: u64,
}

impl Hasher {
    pub(super) fn digest(self) -> Digest {
        Digest::from_bytes(self.hasher.finalize().into())
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct HashedFile {
    file: BufWriter<File>,
    hasher: Hasher,
}

impl HashedFile {
    fn finish(mut self) -> io::Result<(Digest, u64)> {
        self.file.flush()?;
        let size = self.hasher.size;
        Ok((self.hasher.digest(), size))
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
