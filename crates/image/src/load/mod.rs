//! `docker load`: images from `docker save` archives and OCI layouts.

mod plan;
mod spool;

use std::fs::File;
use std::io::Read;

use plan::PlannedImage;
use spool::{Archive, Member};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::layer::Compression;
use crate::model::{LoadedImage, LoadedReference, Progress};
use crate::progress::CountedReader;
use crate::store::{ImageStore, Ingest, NewImage, storage};

impl ImageStore {
    /// Loads a `docker save` archive or an OCI layout from a tar stream, plain or compressed,
    /// with layers plain or compressed. Either all its images are in the store afterwards,
    /// or the store and the disk are as before. Takes the archive's size on disk meanwhile.
    ///
    /// # Errors
    /// [`ImageError::InvalidInput`], [`ImageError::DigestMismatch`] for a bad archive.
    pub fn load(
        &self,
        archive: &mut (dyn Read + Send),
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<LoadedImage>> {
        let directory = self.files.temporary_directory()?;
        let mut counted =
            CountedReader::new(archive, |received| progress(Progress::Received(received)));
        let archive = Archive::spool(&mut counted, directory)?;
        let planned = plan::images(&archive)?;
        let mut ingest = self.ingest();
        let mut images = Vec::new();
        for image in planned {
            images.push(add(&mut ingest, &archive, image, progress)?);
        }
        let added = ingest.commit(&images)?;
        let loaded = added
            .into_iter()
            .zip(&images)
            .map(|(added, image)| LoadedImage {
                id: added.id,
                references: image
                    .names
                    .iter()
                    .cloned()
                    .zip(added.replaced)
                    .map(|(reference, replaced)| LoadedReference {
                        reference,
                        replaced,
                    })
                    .collect(),
            });
        Ok(loaded.collect())
    }
}

fn add(
    ingest: &mut Ingest<'_>,
    archive: &Archive,
    image: PlannedImage,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<NewImage> {
    let config = ImageConfig::parse(&image.config)?;
    if !matches!(config.os.as_str(), "linux" | "") {
        let os = config.os;
        return Err(ImageError::InvalidInput(format!(
            "cannot load {os} image on linux"
        )));
    }
    let diff_ids = &config.rootfs.diff_ids;
    let (expected, actual) = (diff_ids.len(), image.layers.len());
    if expected != actual {
        return Err(ImageError::InvalidInput(format!(
            "invalid manifest, layers length mismatch: expected {expected}, got {actual}"
        )));
    }
    for (diff_id, path) in diff_ids.iter().zip(&image.layers) {
        if ingest.has_layer(diff_id)? {
            progress(Progress::LayerExists { diff_id: *diff_id });
        } else {
            add_layer(ingest, *diff_id, archive.require(path)?, progress)?;
        }
    }
    Ok(NewImage {
        config: image.config,
        parent: None,
        names: image.names,
        documents: image.documents,
    })
}

fn add_layer(
    ingest: &mut Ingest<'_>,
    diff_id: Digest,
    member: Member,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<()> {
    let open = || File::open(&member.path).map_err(storage("open", &member.path));
    let file = open()?;
    let compression = Compression::of_file(&file).map_err(storage("read", &member.path))?;
    let total = member.size;
    let report = |current| {
        progress(Progress::Layer {
            diff_id,
            current,
            total,
        })
    };
    let mut source = CountedReader::new(file, report);
    if compression == Compression::Plain {
        ingest.add_layer(&mut source, Some(diff_id))?;
    } else {
        open()?.sync_all().map_err(storage("sync", &member.path))?;
        let received = tempfile::TempPath::try_from_path(&member.path)
            .map_err(storage("take", &member.path))?;
        ingest.add_received_layer(&mut source, diff_id, member.digest, received)?;
    }
    report(total);
    Ok(())
}
