//! What goes into and comes out of the store, as plain data.

use std::path::PathBuf;

use crate::config::{ContainerConfig, ImageConfig};
use crate::digest::{Digest, ImageId};
use crate::reference::Reference;

/// What an imported image is to be.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Tag the result with this; `:latest` is added if it has no tag.
    pub reference: Option<Reference>,
    /// Goes into history and `Comment`. Docker's default is `Imported from -`.
    pub message: Option<String>,
    /// Dockerfile instructions: CMD ENTRYPOINT ENV EXPOSE LABEL USER VOLUME WORKDIR
    /// STOPSIGNAL ONBUILD HEALTHCHECK.
    pub changes: Vec<String>,
    /// The host's if `None`.
    pub platform: Option<Platform>,
}

/// What an image runs on, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`.
    pub architecture: String,
    /// `v8`.
    pub variant: Option<String>,
}

/// One image out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedImage {
    /// Its ID.
    pub id: ImageId,
    /// Its tags, in the archive's order; empty means that it is reported by ID.
    pub references: Vec<LoadedReference>,
}

/// A tag that a load set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedReference {
    /// The tag.
    pub reference: Reference,
    /// The other image that had it before.
    pub replaced: Option<ImageId>,
}

/// How a load or import is getting on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So much of the caller's stream was received, bytes.
    Received(u64),
    /// A layer is being converted: `current` of `total` bytes of its stored form (compressed
    /// or not) are done. `current == total` when it is finished.
    Layer {
        /// Which.
        diff_id: Digest,
        /// Done, bytes.
        current: u64,
        /// All, bytes.
        total: u64,
    },
    /// A layer is in the store already.
    LayerExists {
        /// Which.
        diff_id: Digest,
    },
}

/// A line of `docker images`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSummary {
    /// Its ID.
    pub id: ImageId,
    /// The image it was committed or built from here.
    pub parent: Option<ImageId>,
    /// Its tags, sorted.
    pub tags: Vec<Reference>,
    /// Its repository digests, sorted.
    pub digests: Vec<Reference>,
    /// Seconds since the epoch; 0 if its config does not say.
    pub created: i64,
    /// The same in nanoseconds: what tells apart images made one right after the other.
    pub created_nanoseconds: i128,
    /// Sum of its layers' file sizes, bytes.
    pub size: u64,
    /// Its labels and other defaults.
    pub config: ContainerConfig,
}

/// What `docker image inspect` needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageDetail {
    /// The line of `docker images`.
    pub summary: ImageSummary,
    /// The config document, parsed.
    pub document: ImageConfig,
    /// When a tag was last set, RFC 3339.
    pub last_tagged: Option<String>,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerDetail>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDetail {
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Digest of this layer on those below.
    pub chain_id: Digest,
    /// Sum of its files' sizes, bytes.
    pub content_size: u64,
    /// Size of its EROFS image, bytes.
    pub blob_size: u64,
    /// Its EROFS image.
    pub path: PathBuf,
}

/// A line of `docker history`, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryLine {
    /// The image at this step, if it was made here or is the newest.
    pub id: Option<ImageId>,
    /// Seconds since the epoch.
    pub created: i64,
    /// The command.
    pub created_by: String,
    /// A message.
    pub comment: String,
    /// Bytes that the step added.
    pub size: u64,
    /// Tags of the image at this step.
    pub tags: Vec<Reference>,
}

/// A container that stands against an image's removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// The image it was created from, or one that it mounts.
    pub image: ImageId,
    /// The container's ID.
    pub container: String,
    /// Whether it runs (or is paused); such a use cannot be forced away.
    pub running: bool,
}

/// One line of `docker rmi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// A tag or repository digest, to be shown in its familiar form.
    Untagged(Reference),
    /// An image.
    DeletedImage(ImageId),
    /// A layer nobody else uses, by its chain ID.
    DeletedLayer(Digest),
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovalReport {
    /// The image that the reference meant.
    pub image: ImageId,
    /// In docker's order.
    pub items: Vec<Removal>,
}

/// What the store takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// How many images.
    pub images: u64,
    /// Sum of file sizes of all layers, each once, bytes: docker's `LayersSize`.
    pub layers_size: u64,
    /// EROFS images, bytes on disk.
    pub erofs_bytes: u64,
    /// Kept layer tars (as received, or recompressed), manifests and configs, bytes on disk.
    pub blob_bytes: u64,
}
