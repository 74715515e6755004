//! Images: content store, metadata, conversion of layers to EROFS.
//!
//! Owns `<data-root>/images/`. Refuses to know containers, HTTP and registries: callers hand
//! in byte streams, and the containers that use an image, and get plain data back.
//!
//! Everything here blocks. An async caller wraps calls in `spawn_blocking` and hands streams
//! over through a blocking bridge; [`ImageStore`] is `Send + Sync` and meant to sit in an
//! `Arc`. Calls may run at the same time from many threads: conversions in parallel, changes
//! of metadata one after the other.

mod changes;
mod config;
mod digest;
mod error;
mod import;
mod layer;
mod load;
mod model;
mod progress;
mod reference;
pub mod reserve;
mod store;

pub use changes::apply as apply_changes;
pub use config::{ContainerConfig, Healthcheck, HistoryEntry, ImageConfig, RootFs};
pub use digest::{Digest, DigestError, ImageId};
pub use error::{ErrorKind, ImageError, Result};
pub use import::platform_words;
pub use layer::{ConvertedLayer, MAX_LAYER_BYTES, convert_layer, decompressed, is_compressed};
pub use model::{
    DiskUsage, HistoryLine, ImageDetail, ImageSummary, ImageUse, ImportOptions, LayerDetail,
    LoadedImage, LoadedReference, Platform, Progress, Removal, RemovalReport,
};
pub use reference::{Reference, ReferenceError};
pub use store::{
    AddedImage, AnnouncedLayer, CheckReport, Finding, ImageContent, ImageRoots, ImageStore, Ingest,
    LayerBytes, LayerContent, LayerForm, LayerSource, Lease, NewImage, ReceivedLayer,
};
