//! Images: import, load, tag, remove, inspect, over the image store.
//!
//! The store blocks, so every call runs on a blocking thread; archives come in through
//! [`BodyReader`]. What changes is published as events here, once the store has said yes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use bulkhead_image::{
    CheckReport, DiskUsage, ErrorKind, HistoryLine, ImageDetail, ImageError, ImageId, ImageStore,
    ImageSummary, ImageUse, ImportOptions, LoadedImage, Progress, Reference, Removal,
    RemovalReport,
};
use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::error::{ApiError, ApiResult};
use crate::events::EventBus;

/// How an image is removed.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// In spite of other names and stopped containers.
    pub force: bool,
    /// Without the images that it was made from.
    pub keep_parents: bool,
}

/// The image service.
#[derive(Debug)]
pub struct Images {
    store: Arc<ImageStore>,
    events: EventBus,
}

impl Images {
    /// A service over a store.
    pub fn new(store: Arc<ImageStore>, events: EventBus) -> Self {
        Self { store, events }
    }

    /// The store itself, for those who block anyway.
    pub fn store(&self) -> Arc<ImageStore> {
        Arc::clone(&self.store)
    }

    /// Calls the store on a blocking thread.
    async fn with<T: Send + 'static>(
        &self,
        call: impl FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    ) -> ApiResult<T> {
        let store = self.store();
        tokio::task::spawn_blocking(move || call(&store))
            .await
            .map_err(|error| ApiError::internal("image store", &error))?
            .map_err(|error| api_error(&error))
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self) -> ApiResult<Vec<ImageSummary>> {
        self.with(ImageStore::list).await
    }

    /// The image that a name, an ID or its prefix means.
    ///
    /// # Errors
    /// 404 with Docker's words.
    pub async fn resolve(&self, text: &str) -> ApiResult<ImageId> {
        let text = text.to_owned();
        self.with(move |store| store.resolve(&text)).await
    }

    /// What several names mean, without those that mean nothing.
    ///
    /// # Errors
    /// What the store says.
    pub async fn resolve_all(&self, names: HashSet<String>) -> ApiResult<HashMap<String, ImageId>> {
        self.with(move |store| {
            let found = names.into_iter().filter_map(|name| {
                let id = store.resolve(&name).ok()?;
                Some((name, id))
            });
            Ok(found.collect())
        })
        .await
    }

    /// All that is known of an image.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub async fn inspect(&self, text: &str) -> ApiResult<ImageDetail> {
        let text = text.to_owned();
        self.with(move |store| store.inspect(&store.resolve(&text)?))
            .await
    }

    /// An image's history, the newest step first.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub async fn history(&self, text: &str) -> ApiResult<Vec<HistoryLine>> {
        let text = text.to_owned();
        self.with(move |store| store.history(&store.resolve(&text)?))
            .await
    }

    /// What the store takes on disk.
    ///
    /// # Errors
    /// What the store says.
    pub async fn disk_usage(&self) -> ApiResult<DiskUsage> {
        self.with(ImageStore::disk_usage).await
    }

    /// For each image that shares layers with others, how many bytes those are.
    ///
    /// # Errors
    /// What the store says.
    pub async fn shared_sizes(&self) -> ApiResult<HashMap<ImageId, u64>> {
        self.with(ImageStore::shared_sizes).await
    }

    /// Looks at every byte of the store, and repairs what it can if it is to.
    ///
    /// # Errors
    /// What the store says.
    pub async fn check(&self, repair: bool) -> ApiResult<CheckReport> {
        self.with(move |store| store.check(repair)).await
    }

    /// Gives an image a tag.
    ///
    /// # Errors
    /// As [`Images::resolve`]; 400 for a bad reference.
    pub async fn tag(&self, text: &str, repository: &str, tag: Option<&str>) -> ApiResult<()> {
        let reference = reference(repository, tag)?;
        let text = text.to_owned();
        let wanted = reference.clone();
        let id = self
            .with(move |store| {
                let id = store.resolve(&text)?;
                store.tag(&id, &wanted)?;
                Ok(id)
            })
            .await?;
        self.publish("tag", &id.to_string(), &reference.familiar());
        Ok(())
    }

    /// Removes a name, or an image.
    ///
    /// # Errors
    /// 404, 409 with Docker's words.
    pub async fn remove(
        &self,
        text: &str,
        options: RemoveOptions,
        uses: Vec<ImageUse>,
    ) -> ApiResult<RemovalReport> {
        let text = text.to_owned();
        let force = options.force;
        let report = self
            .with(move |store| {
                if options.keep_parents {
                    store.remove_alone(&text, force, &uses)
                } else {
                    store.remove(&text, force, &uses)
                }
            })
            .await?;
        let image = report.image.to_string();
        for item in &report.items {
            match item {
                Removal::Untagged(_) => self.publish("untag", &image, &image),
                Removal::DeletedImage(id) => {
                    self.publish("delete", &id.to_string(), &id.to_string());
                }
                Removal::DeletedLayer(_) => {}
            }
        }
        Ok(report)
    }

    /// Makes an image out of a root filesystem's tar. Blocks.
    ///
    /// # Errors
    /// What the store says of the archive.
    pub fn import_blocking(
        &self,
        body: &mut BodyReader,
        options: &ImportOptions,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<ImageId, ImageError> {
        let id = self.store.import(body, options, progress)?;
        let text = id.to_string();
        if let Some(reference) = &options.reference {
            let name = reference.clone().with_default_tag();
            self.publish("tag", &text, &name.familiar());
        }
        self.publish("import", &text, &text);
        Ok(id)
    }

    /// Loads the images of an archive. Blocks.
    ///
    /// # Errors
    /// What the store says of the archive.
    pub fn load_blocking(
        &self,
        body: &mut BodyReader,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Vec<LoadedImage>, ImageError> {
        let loaded = self.store.load(body, progress)?;
        for image in &loaded {
            let id = image.id.to_string();
            // Not of the names that come with it.
            self.publish("load", &id, &id);
        }
        Ok(loaded)
    }

    /// Publishes that an image was pulled or pushed; docker names it instead of giving its ID.
    pub(crate) fn publish_transfer(&self, action: &str, id: &ImageId, reference: &Reference) {
        let detail = self.store.inspect(id).ok();
        let mut attributes: BTreeMap<String, String> = detail
            .and_then(|detail| detail.summary.config.labels)
            .unwrap_or_default();
        attributes.insert("name".to_owned(), reference.familiar_name());
        self.events
            .publish("image", action, &reference.familiar(), attributes);
    }

    /// Tells of an image that came about elsewhere.
    pub(crate) fn announce(&self, action: &str, id: &str, name: &str) {
        self.publish(action, id, name);
    }

    /// Publishes an event of an image; its labels are known to the store only, and are left
    /// out where the image is gone.
    fn publish(&self, action: &str, id: &str, name: &str) {
        let mut attributes: BTreeMap<String, String> = id
            .parse::<ImageId>()
            .ok()
            .and_then(|id| self.store.inspect(&id).ok())
            .and_then(|detail| detail.summary.config.labels)
            .unwrap_or_default();
        attributes.insert("name".to_owned(), name.to_owned());
        self.events.publish("image", action, id, attributes);
    }
}

/// A repository with its tag, as two parameters of a request.
///
/// # Errors
/// 400 with Docker's words.
pub fn reference(repository: &str, tag: Option<&str>) -> ApiResult<Reference> {
    let bad = |error: &dyn std::fmt::Display| ApiError::bad_request(error.to_string());
    let parsed = Reference::parse(repository).map_err(|error| bad(&error))?;
    // `sha256:abc` would read as an image's ID.
    if parsed.familiar().split(':').next() == Some("sha256") {
        return Err(ApiError::bad_request(
            "refusing to create an ambiguous tag using digest algorithm as name",
        ));
    }
    match tag {
        Some(tag) => parsed.with_tag(tag).map_err(|error| bad(&error)),
        None => Ok(parsed.with_default_tag()),
    }
}

/// Translates an error of the store.
pub fn api_error(error: &ImageError) -> ApiError {
    let message = error.full_message();
    match error.kind() {
        ErrorKind::NotFound => ApiError::not_found(message),
        ErrorKind::Conflict => ApiError::conflict(message),
        ErrorKind::InvalidArgument => ApiError::bad_request(message),
        ErrorKind::Other => ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, message),
    }
}

/// A request's body as a blocking stream. Holds at most a few frames: the client waits for
/// the reader.
#[derive(Debug)]
pub struct BodyReader {
    frames: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl BodyReader {
    /// A reader, and where a task puts the frames. The body ends when that is dropped.
    pub fn new() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, frames) = mpsc::channel(4);
        (
            sender,
            Self {
                frames,
                current: Bytes::new(),
            },
        )
    }
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.frames.blocking_recv() {
                Some(frame) => self.current = frame?,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.current.len());
        out[..length].copy_from_slice(&self.current[..length]);
        self.current.advance(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_read_whole_and_its_error_is_seen() {
        let (sender, mut reader) = BodyReader::new();
        for frame in ["ab", "", "cde"] {
            sender.try_send(Ok(Bytes::from(frame))).unwrap();
        }
        let lost = io::Error::from(io::ErrorKind::ConnectionReset);
        sender.try_send(Err(lost)).unwrap();
        drop(sender);
        let mut text = Vec::new();
        let error = reader.read_to_end(&mut text).unwrap_err();
        assert_eq!(text, b"abcde");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_repository_with_and_without_a_tag() {
        assert_eq!(reference("a/b", None).unwrap().familiar(), "a/b:latest");
        assert_eq!(reference("a:x", Some("y")).unwrap().familiar(), "a:y");
        assert_eq!(reference("A", None).unwrap_err().status, 400);
    }
}
