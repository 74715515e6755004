//! The archive of `docker save`: an OCI image layout that also has docker's `manifest.json`,
//! so that every version of docker, and this one, loads it.
//!
//! A tar header says how long its file is, so each layer's tar is read twice: once to count.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Arc;

use bulkhead_image::{Digest, ImageError, ImageId, ImageStore, Reference};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Bytes handed to the client at once.
const FRAME: usize = 64 * 1024;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image to be written.
#[derive(Debug)]
struct Entry {
    id: ImageId,
    names: BTreeSet<Reference>,
    layers: Vec<Digest>,
}

/// What an archive is to hold, all of it found.
#[derive(Debug)]
pub(super) struct Plan {
    store: Arc<ImageStore>,
    entries: Vec<Entry>,
}

impl Plan {
    /// The images that are written.
    pub(super) fn images(&self) -> impl Iterator<Item = ImageId> {
        self.entries.iter().map(|entry| entry.id)
    }

    /// Looks up what was named. A repository without a tag means all its tags; an ID names an
    /// image without any.
    ///
    /// # Errors
    /// That something named does not exist.
    pub(super) fn new(store: Arc<ImageStore>, names: &[String]) -> Result<Self, ImageError> {
        let images = store.list()?;
        let mut wanted: Vec<(ImageId, Option<Reference>)> = Vec::new();
        for name in names {
            let parsed = Reference::parse(name).ok();
            let all_tags: Vec<(ImageId, Option<Reference>)> = match &parsed {
                Some(reference) if reference.tag().is_none() && reference.digest().is_none() => {
                    images
                        .iter()
                        .flat_map(|image| image.tags.iter().map(|tag| (image.id, tag)))
                        .filter(|(_, tag)| {
                            tag.domain() == reference.domain() && tag.path() == reference.path()
                        })
                        .map(|(id, tag)| (id, Some(tag.clone())))
                        .collect()
                }
                _ => Vec::new(),
            };
            if !all_tags.is_empty() {
                wanted.extend(all_tags);
                continue;
            }
            let id = store.resolve(name)?;
            let tag = parsed.filter(|reference| {
                images
                    .iter()
                    .any(|image| image.id == id && image.tags.contains(reference))
            });
            wanted.push((id, tag));
        }
        let mut entries: Vec<Entry> = Vec::new();
        for (id, tag) in wanted {
            let known = entries.iter().position(|entry| entry.id == id);
            let at = match known {
                Some(at) => at,
                None => {
                    let detail = store.inspect(&id)?;
                    entries.push(Entry {
                        id,
                        names: BTreeSet::new(),
                        layers: detail.layers.iter().map(|layer| layer.diff_id).collect(),
                    });
                    entries.len() - 1
                }
            };
            entries[at].names.extend(tag);
        }
        Ok(Self { store, entries })
    }

    /// Writes the archive; an error ends the stream before its end, which clients notice.
    pub(super) fn write(self, sender: mpsc::Sender<io::Result<Bytes>>) {
        let mut out = Frames {
            sender,
            pending: Vec::with_capacity(FRAME),
        };
        let outcome = self.write_to(&mut out).and_then(|()| out.flush());
        if let Err(error) = outcome {
            tracing::warn!(%error, "image archive cut short");
            let _ = out.sender.blocking_send(Err(error));
        }
    }

    fn write_to(&self, out: &mut Frames) -> io::Result<()> {
        let mut archive = tar::Builder::new(out);
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        let (mut index, mut manifest_json) = (Vec::new(), Vec::new());
        for entry in &self.entries {
            let config = self
                .store
                .config_bytes(&entry.id)
                .map_err(io::Error::other)?;
            let mut layers = Vec::new();
            for layer in &entry.layers {
                let name = layer.to_string();
                let size = match sizes.get(&name) {
                    Some(size) => *size,
                    None => {
                        let size = self.write_layer(&mut archive, layer)?;
                        sizes.insert(name.clone(), size);
                        size
                    }
                };
                layers.push(json!({ "mediaType": OCI_LAYER, "digest": name, "size": size }));
            }
            let id = entry.id.to_string();
            if sizes.insert(id.clone(), 0).is_none() {
                append(&mut archive, &blob_path(&id), &config)?;
            }
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": { "mediaType": OCI_CONFIG, "digest": id, "size": config.len() },
                "layers": layers,
            })
            .to_string();
            let digest = Digest::of(manifest.as_bytes()).to_string();
            append(&mut archive, &blob_path(&digest), manifest.as_bytes())?;
            index.extend(index_entries(entry, &digest, manifest.len()));
            let layer_paths: Vec<String> = entry
                .layers
                .iter()
                .map(|layer| blob_path(&layer.to_string()))
                .collect();
            manifest_json.push(json!({
                "Config": blob_path(&id),
                "RepoTags": entry.names.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": layer_paths,
            }));
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": index,
        });
        append(&mut archive, "index.json", index.to_string().as_bytes())?;
        let manifest_json = Value::Array(manifest_json).to_string();
        append(&mut archive, "manifest.json", manifest_json.as_bytes())?;
        append(
            &mut archive,
            "oci-layout",
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        archive.finish()
    }

    fn write_layer<W: Write>(
        &self,
        archive: &mut tar::Builder<W>,
        layer: &Digest,
    ) -> io::Result<u64> {
        let open = || self.store.open_layer_tar(layer).map_err(io::Error::other);
        let size = io::copy(&mut open()?, &mut io::sink())?;
        let mut header = header(size);
        archive.append_data(
            &mut header,
            blob_path(&layer.to_string()),
            open()?.take(size),
        )?;
        Ok(size)
    }
}

/// One entry of the index for each name, or one without a name.
fn index_entries(entry: &Entry, digest: &str, size: usize) -> Vec<Value> {
    let bare = json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": size });
    if entry.names.is_empty() {
        return vec![bare];
    }
    entry
        .names
        .iter()
        .map(|name| {
            let mut named = bare.clone();
            named["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
            });
            named
        })
        .collect()
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = header(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    archive.append_data(&mut header, path, bytes)
}

/// Hands what is written to the client, in frames.
struct Frames {
    sender: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= FRAME {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let frame = std::mem::replace(&mut self.pending, Vec::with_capacity(FRAME));
        self.sender
            .blocking_send(Ok(Bytes::from(frame)))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}
