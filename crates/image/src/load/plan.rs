//! Which images an archive holds: docker's `manifest.json`, or else an OCI layout's
//! `index.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::spool::{Archive, invalid};
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::model::Platform;
use crate::reference::Reference;

/// How deep indexes nest, and how many manifests are looked at.
const MAX_INDEX_DEPTH: usize = 4;
const MAX_MANIFESTS: usize = 1000;

/// An image of the archive.
#[derive(Debug)]
pub(crate) struct PlannedImage {
    pub(crate) config: Vec<u8>,
    /// Paths in the archive, the lowest first.
    pub(crate) layers: Vec<String>,
    pub(crate) names: Vec<Reference>,
    /// The manifest, where there is one.
    pub(crate) documents: Vec<Vec<u8>>,
}

/// An entry of docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<DescribedPlatform>,
}

#[derive(Debug, Clone, Deserialize)]
struct DescribedPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// All images of the archive.
pub(crate) fn images(archive: &Archive) -> Result<Vec<PlannedImage>> {
    if let Some(bytes) = archive.document("manifest.json")? {
        return saved_images(archive, &bytes);
    }
    let Some(bytes) = archive.document("index.json")? else {
        let why = "invalid image archive: neither manifest.json nor index.json";
        return Err(ImageError::InvalidInput(why.to_owned()));
    };
    let mut plan = LayoutPlan {
        archive,
        images: Vec::new(),
        seen: 0,
    };
    plan.index(&bytes, "index.json", &[], 0)?;
    Ok(plan.images)
}

fn saved_images(archive: &Archive, bytes: &[u8]) -> Result<Vec<PlannedImage>> {
    let saved: Vec<SavedImage> = parse(bytes, "manifest.json")?;
    if saved.len() > MAX_MANIFESTS {
        return Err(invalid(
            b"manifest.json",
            format!("more than {MAX_MANIFESTS} images"),
        ));
    }
    saved
        .into_iter()
        .map(|image| {
            let config = archive
                .document(&image.config)?
                .ok_or_else(|| invalid(image.config.as_bytes(), "missing from the archive"))?;
            let names = image.repo_tags.unwrap_or_default();
            let names = names.iter().map(|name| {
                let reference = Reference::parse(name)?;
                if reference.tag().is_none() || reference.digest().is_some() {
                    return Err(ImageError::InvalidInput(format!("invalid tag {name:?}")));
                }
                Ok(reference)
            });
            Ok(PlannedImage {
                config,
                layers: image.layers.unwrap_or_default(),
                names: names.collect::<Result<_>>()?,
                documents: Vec::new(),
            })
        })
        .collect()
}

struct LayoutPlan<'a> {
    archive: &'a Archive,
    images: Vec<PlannedImage>,
    seen: usize,
}

impl LayoutPlan<'_> {
    /// Plans an index's manifests: of those for some platform only the host's.
    fn index(&mut self, bytes: &[u8], path: &str, names: &[Reference], depth: usize) -> Result<()> {
        if depth > MAX_INDEX_DEPTH {
            return Err(invalid(path.as_bytes(), "indexes are nested too deep"));
        }
        let index: Index = parse(bytes, path)?;
        let host = Platform::host();
        let mut found = false;
        let count = index.manifests.len();
        for descriptor in index.manifests {
            self.seen += 1;
            if self.seen > MAX_MANIFESTS {
                return Err(invalid(
                    path.as_bytes(),
                    format!("more than {MAX_MANIFESTS} manifests"),
                ));
            }
            let foreign = descriptor.platform.as_ref().is_some_and(|platform| {
                platform.os != host.os || platform.architecture != host.architecture
            });
            // In a layout of one image its platform is the user's affair, as with docker.
            if foreign && (depth > 0 || count > 1) {
                continue;
            }
            found = true;
            let own = names_of(&descriptor)?;
            let names = if own.is_empty() { names } else { &own };
            let path = blob_path(&descriptor.digest);
            let bytes = self
                .archive
                .document(&path)?
                .ok_or_else(|| invalid(path.as_bytes(), "missing from the archive"))?;
            match descriptor.media_type.as_str() {
                "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                    self.index(&bytes, &path, names, depth + 1)?;
                }
                _ => self.manifest(bytes, &path, names)?,
            }
        }
        if found || count == 0 {
            return Ok(());
        }
        let Platform {
            os, architecture, ..
        } = host;
        Err(invalid(
            path.as_bytes(),
            format!("no image for {os}/{architecture}"),
        ))
    }

    fn manifest(&mut self, bytes: Vec<u8>, path: &str, names: &[Reference]) -> Result<()> {
        let manifest: Manifest = parse(&bytes, path)?;
        let is_image = matches!(
            manifest.config.media_type.as_str(),
            "" | "application/vnd.oci.image.config.v1+json"
                | "application/vnd.docker.container.image.v1+json"
        );
        if !is_image {
            return Ok(());
        }
        let config_path = blob_path(&manifest.config.digest);
        let config = self
            .archive
            .document(&config_path)?
            .ok_or_else(|| invalid(config_path.as_bytes(), "missing from the archive"))?;
        self.images.push(PlannedImage {
            config,
            layers: manifest
                .layers
                .iter()
                .map(|layer| blob_path(&layer.digest))
                .collect(),
            names: names.to_vec(),
            documents: vec![bytes],
        });
        Ok(())
    }
}

/// containerd writes the whole name; others only a tag, which names nothing.
fn names_of(descriptor: &Descriptor) -> Result<Vec<Reference>> {
    let annotation = |key: &str| descriptor.annotations.as_ref()?.get(key);
    if let Some(name) = annotation("io.containerd.image.name") {
        let reference = Reference::parse(name)?;
        return Ok(vec![reference.with_default_tag()]
            .into_iter()
            .filter(|name| name.digest().is_none())
            .collect());
    }
    let name = annotation("org.opencontainers.image.ref.name");
    let name = name.filter(|name| name.contains(['/', ':']));
    let reference = name.and_then(|name| Reference::parse(name).ok());
    Ok(reference
        .filter(|reference| reference.digest().is_none())
        .map(Reference::with_default_tag)
        .into_iter()
        .collect())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn parse<T: DeserializeOwned>(bytes: &[u8], path: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| invalid(path.as_bytes(), error))
}
