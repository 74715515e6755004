//! Registries: pull and push over the OCI distribution protocol, as docker does.
//!
//! Knows HTTP and what an image is there; brings layers into and takes them out of the
//! [`ImageStore`], which knows nothing of registries. Refuses to know containers and clients:
//! how a transfer is getting on goes to a [`Reporter`].

mod auth;
mod document;
mod download;
mod endpoint;
mod error;
mod fetch;
mod http;
mod login;
mod progress;
mod pull;
mod push;
mod repository;
mod search;
mod settings;
mod tls;
mod transfers;
mod upload;

use std::sync::Arc;

use bulkhead_image::ImageStore;

pub use auth::{Credentials, decode_base64};
pub use error::{ErrorKind, Refusal, RegistryError, Result};
pub use fetch::FetchedFile;
pub use login::{Login, server_name};
pub use progress::{Message, Reporter};
pub use pull::{PullRequest, PulledImage};
pub use push::{PushRequest, PushedImage};
pub use settings::{LOOPBACK, Settings};

use endpoint::Endpoints;
use transfers::Transfers;

/// Reads bytes as a registry's manifest or index and chooses from it, for fuzzing: the types
/// in between are nobody else's business.
#[doc(hidden)]
pub fn check_document(bytes: &[u8]) {
    document::check(bytes);
}

/// All registries, over one store.
#[derive(Debug)]
pub struct Registry {
    store: Arc<ImageStore>,
    endpoints: Endpoints,
    transfers: Transfers,
    /// Layers that are being sent.
    uploads: tokio::sync::Semaphore,
}

impl Registry {
    /// Nothing is contacted yet.
    pub fn new(store: Arc<ImageStore>, settings: Settings) -> Self {
        let transfers = Transfers::new(Arc::clone(&store), settings.downloads, settings.attempts);
        Self {
            store,
            transfers,
            uploads: tokio::sync::Semaphore::new(settings.uploads.clamp(1, 1000)),
            endpoints: Endpoints::new(settings),
        }
    }

    /// How registries are reached.
    pub fn settings(&self) -> &Settings {
        &self.endpoints.settings
    }
}
