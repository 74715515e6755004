//! `docker import`: an image of one layer from a root filesystem's tar.

use std::io::Read;

use serde_json::Map;

use crate::changes;
use crate::config::{ContainerConfig, HistoryEntry, ImageConfig, RootFs};
use crate::digest::ImageId;
use crate::error::{ImageError, Result};
use crate::model::{ImportOptions, Platform, Progress};
use crate::progress::CountedReader;
use crate::store::{ImageStore, NewImage};

impl Platform {
    /// What this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }
}

/// `os/architecture[/variant]`.
pub fn platform_words(os: &str, architecture: &str, variant: Option<&str>) -> String {
    match variant.filter(|variant| !variant.is_empty()) {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    }
}

impl ImageStore {
    /// Makes an image of one layer from a root filesystem's tar stream: plain, gzip, zstd,
    /// xz or bzip2. On an error the store and the disk are as before.
    ///
    /// # Errors
    /// [`ImageError::Change`] for a bad instruction, before anything is read;
    /// [`ImageError::InvalidInput`] for a bad stream.
    pub fn import(
        &self,
        rootfs: &mut (dyn Read + Send),
        options: &ImportOptions,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<ImageId> {
        let mut config = ContainerConfig::default();
        changes::apply(&mut config, &options.changes)?;
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        if platform.os != "linux" {
            let os = &platform.os;
            return Err(ImageError::InvalidInput(format!(
                "unsupported operating system {os:?}"
            )));
        }
        let reference = options
            .reference
            .clone()
            .map(crate::Reference::with_default_tag);
        if reference
            .as_ref()
            .is_some_and(|reference| reference.digest().is_some())
        {
            return Err(ImageError::InvalidInput(
                "cannot import digest reference".to_owned(),
            ));
        }
        let mut ingest = self.ingest();
        let mut rootfs =
            CountedReader::new(rootfs, |received| progress(Progress::Received(received)));
        let diff_id = ingest.add_layer(&mut rootfs, None)?;
        let created = Some(jiff::Timestamp::now().to_string());
        let message = options
            .message
            .clone()
            .unwrap_or_else(|| "Imported from -".to_owned());
        let document = ImageConfig {
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            created: created.clone(),
            author: None,
            comment: Some(message.clone()),
            config,
            rootfs: RootFs {
                kind: "layers".to_owned(),
                diff_ids: vec![diff_id],
            },
            history: vec![HistoryEntry {
                created,
                comment: Some(message),
                ..HistoryEntry::default()
            }],
            extra: Map::new(),
        };
        let image = NewImage {
            config: document.to_bytes()?,
            names: reference.into_iter().collect(),
            ..NewImage::default()
        };
        let id = ImageId(crate::Digest::of(&image.config));
        ingest.commit(&[image])?;
        Ok(id)
    }
}
