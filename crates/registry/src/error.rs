//! The errors of pulls, pushes and logins. Where docker's words reach users and scripts,
//! these are the words.

use bulkhead_image::{ImageError, Reference, ReferenceError};
use reqwest::StatusCode;

/// Shorthand.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// What an edge translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The registry has no such thing, or does not say so to everybody (404).
    NotFound,
    /// The credentials are wrong (401).
    Unauthorized,
    /// The credentials do not suffice (403).
    Forbidden,
    /// The registry has been asked too often (429).
    TooManyRequests,
    /// The caller's words are wrong (400).
    InvalidArgument,
    /// Everything else (500).
    Other,
}

/// What a registry answered instead of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// HTTP's.
    pub status: u16,
    /// The first error's code in the distribution specification's words (`MANIFEST_UNKNOWN`).
    pub code: String,
    /// The errors as docker prints them.
    pub message: String,
}

/// See the module's documentation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A request that makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// No such tag or digest.
    #[error("manifest for {reference} not found: {refusal}")]
    ManifestUnknown {
        /// In its familiar form.
        reference: String,
        /// The registry's words.
        refusal: Refusal,
    },
    /// No such repository.
    #[error("repository {repository} not found: {refusal}")]
    RepositoryUnknown {
        /// In its familiar form.
        repository: String,
        /// The registry's words.
        refusal: Refusal,
    },
    /// No such repository for these credentials.
    #[error(
        "pull access denied for {repository}, repository does not exist or may require \
         'docker login': {refusal}"
    )]
    PullDenied {
        /// In its familiar form.
        repository: String,
        /// The registry's words.
        refusal: Refusal,
    },
    /// The registry said no.
    #[error(transparent)]
    Refused(Refusal),
    /// The registry wants a name and password, and there is none.
    #[error("{request}: no basic auth credentials")]
    NoCredentials {
        /// `Get "URL"`.
        request: String,
    },
    /// A login that the registry did not take.
    #[error("{why}")]
    LoginFailed {
        /// Where, and the registry's words.
        why: String,
    },
    /// The registry was not reached, or broke off.
    #[error("{request}: {why}")]
    Transport {
        /// `Get "URL"`.
        request: String,
        /// The cause in a few words.
        why: String,
        /// Whether the same request may do better on another try.
        transient: bool,
    },
    /// A server did not give a file, in docker's words.
    #[error("failed to GET {url} with status {status}: {body}")]
    NoFile {
        /// Its address.
        url: String,
        /// The answer's.
        status: StatusCode,
        /// The server's words.
        body: String,
    },
    /// What the registry sent is malformed, or too much.
    #[error("{0}")]
    InvalidAnswer(String),
    /// An image that this engine does not run.
    #[error("{0}")]
    Unsupported(String),
    /// No image for the platform in a list.
    #[error("no matching manifest for {0} in the manifest list entries")]
    NoMatchingPlatform(String),
    /// Files with certificates, proxies: what the host is configured with.
    #[error("{0}")]
    Configuration(String),
    /// The caller went away.
    #[error("context canceled")]
    Cancelled,
}

impl RegistryError {
    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_) | Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::Store(error) => match error.kind() {
                bulkhead_image::ErrorKind::NotFound => ErrorKind::NotFound,
                bulkhead_image::ErrorKind::InvalidArgument => ErrorKind::InvalidArgument,
                _ => ErrorKind::Other,
            },
            Self::ManifestUnknown { .. }
            | Self::RepositoryUnknown { .. }
            | Self::PullDenied { .. }
            | Self::NoMatchingPlatform(_) => ErrorKind::NotFound,
            Self::LoginFailed { .. } => ErrorKind::Unauthorized,
            Self::Refused(refusal) => match refusal.status {
                401 => ErrorKind::Unauthorized,
                403 => ErrorKind::Forbidden,
                429 => ErrorKind::TooManyRequests,
                _ => ErrorKind::Other,
            },
            Self::NoFile { status, .. } => match *status {
                StatusCode::NOT_FOUND => ErrorKind::NotFound,
                StatusCode::BAD_REQUEST => ErrorKind::InvalidArgument,
                StatusCode::UNAUTHORIZED => ErrorKind::Unauthorized,
                StatusCode::FORBIDDEN => ErrorKind::Forbidden,
                _ => ErrorKind::Other,
            },
            _ => ErrorKind::Other,
        }
    }

    /// The message with those of its causes, for a client.
    pub fn full_message(&self) -> String {
        match self {
            Self::Store(error) => error.full_message(),
            error => error.to_string(),
        }
    }

    /// Whether trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Transport { transient, .. } => *transient,
            Self::Refused(refusal) => matches!(refusal.status, 408 | 429 | 500..),
            _ => false,
        }
    }

    /// Puts docker's sentence for a failed pull around the registry's words.
    pub(crate) fn for_pull(self, reference: &Reference) -> Self {
        let Self::Refused(refusal) = self else {
            return self;
        };
        let repository = reference.familiar_name();
        match (refusal.code.as_str(), refusal.status) {
            ("UNAUTHORIZED" | "DENIED", _) | ("", 401 | 403) => Self::PullDenied {
                repository,
                refusal,
            },
            ("MANIFEST_UNKNOWN", _) | ("", 404) => Self::ManifestUnknown {
                reference: reference.familiar(),
                refusal,
            },
            ("NAME_UNKNOWN", _) => Self::RepositoryUnknown {
                repository,
                refusal,
            },
            _ => Self::Refused(refusal),
        }
    }
}
