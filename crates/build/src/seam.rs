//! What a build needs of those who keep images and run containers.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bulkhead_image::{Digest, ImageConfig, ImageId};

use crate::dockerfile::ParseError;

/// An image that a step builds on.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// Its ID.
    pub id: ImageId,
    /// Its config document.
    pub document: ImageConfig,
}

/// What the host answers when something cannot be done. The message is for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

impl From<io::Error> for HostError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// A finished step that becomes an image.
pub struct NewStep<'a> {
    /// Its config, but for the layer's digest.
    pub document: ImageConfig,
    /// The image before.
    pub parent: Option<ImageId>,
    /// Its layer as a tar stream, if it makes one.
    pub layer: Option<&'a mut (dyn Read + Send)>,
    /// Under which it is found again.
    pub cache_key: Digest,
}

/// A command to be run on an image.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// The image.
    pub image: ImageId,
    /// The words of the command.
    pub command: Vec<String>,
    /// The whole environment.
    pub environment: Vec<String>,
    /// `RUN --network`.
    pub network: Option<String>,
    /// What is mounted besides.
    pub mounts: Vec<RunMount>,
}

/// A mount of a command.
#[derive(Debug, Clone)]
pub struct RunMount {
    /// Where, absolute.
    pub target: String,
    /// Whether it may not be written.
    pub read_only: bool,
    /// What.
    pub kind: RunMountKind,
}

/// What is mounted.
#[derive(Debug, Clone)]
pub enum RunMountKind {
    /// A directory or file of the host.
    Bind(PathBuf),
    /// Memory, of at most so many bytes.
    Tmpfs(Option<u64>),
}

/// What is heard of a command while it runs.
pub enum RunNews<'a> {
    /// The ID of its container; comes first.
    Started(&'a str),
    /// What it writes.
    Output(&'a str),
    /// What it writes to its stderr.
    Errors(&'a str),
}

/// Who may use a named cache together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheSharing {
    /// All who say so.
    #[default]
    Shared,
    /// One; others wait.
    Locked,
    /// One; others are given another directory.
    Private,
}

/// A named cache that a command asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRequest {
    /// Its name.
    pub id: String,
    /// Who else may use it.
    pub sharing: CacheSharing,
    /// Permission bits if it is new.
    pub mode: u32,
    /// Owner and group if it is new.
    pub owner: (u32, u32),
}

/// The directory of a named cache.
pub struct CacheDirectory {
    /// Where.
    pub path: PathBuf,
    /// Others see that it is in use while this lives.
    pub held: Box<dyn Send>,
}

/// What nobody may find in an image, its history, a cache or a log, by names.
#[derive(Clone, Default)]
pub struct Secrets(pub BTreeMap<String, Vec<u8>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A secret that a command is given.
pub struct SecretRequest<'a> {
    /// The secret.
    pub content: &'a [u8],
    /// Permission bits of its file.
    pub mode: u32,
    /// Owner and group of its file.
    pub owner: (u32, u32),
}

/// A secret's file.
pub struct SecretFile {
    /// Where.
    pub path: PathBuf,
    /// It is there while this lives.
    pub held: Box<dyn Send>,
}

/// How a command ended.
pub struct RunOutcome {
    /// Its container, which is still there.
    pub container: String,
    /// Its exit code.
    pub code: i32,
}

/// A file from the network.
pub struct Fetched {
    /// Its content.
    pub content: Box<dyn Read + Send>,
    /// Seconds since the epoch.
    pub modified: Option<i64>,
    /// `Content-Type`.
    pub content_type: Option<String>,
}

/// The host of a build, called from several threads at a time.
pub trait Host: Send + Sync {
    /// The image that a reference means, fetched if it is not there, or always when a fresh
    /// one was asked for.
    fn image(&self, reference: &str, platform: Option<&str>) -> Result<Base, HostError>;
    /// The root filesystem of an image, read-only, as a directory that stays while it is open.
    fn mount(&self, image: &ImageId) -> Result<OwnedFd, HostError>;
    /// The step that has this key.
    fn cached(&self, key: &Digest) -> Result<Option<Base>, HostError>;
    /// Makes an image of a step.
    fn store(&self, step: NewStep<'_>) -> Result<Base, HostError>;
    /// Runs a command to its end.
    fn run(
        &self,
        request: &RunRequest,
        hear: &mut dyn FnMut(RunNews<'_>),
    ) -> Result<RunOutcome, HostError>;
    /// What a container's files differ in from its image, as a layer's tar stream: the same
    /// bytes for the same files, with times not later than `newest`. What is empty at
    /// `mount_points`, relative to the root, is left out with what leads there alone.
    fn changes(
        &self,
        container: &str,
        newest: Option<i64>,
        mount_points: Vec<String>,
    ) -> Result<Box<dyn Read + Send>, HostError>;
    /// Removes a container.
    fn remove(&self, container: &str) -> Result<(), HostError>;
    /// Fetches a file.
    fn fetch(&self, url: &str) -> Result<Fetched, HostError>;
    /// The directory of a named cache, made if it is not there. May wait for others.
    fn cache_directory(&self, request: &CacheRequest) -> Result<CacheDirectory, HostError>;
    /// Puts a secret into a file that goes as soon as it is let go.
    fn secret(&self, request: &SecretRequest<'_>) -> io::Result<SecretFile>;
    /// An empty directory that goes with the build, for what is given to a command.
    fn directory(&self) -> io::Result<PathBuf>;
    /// An empty file without a name, for what is on its way.
    fn temporary(&self) -> io::Result<File>;
    /// Shows a text to the one who builds.
    fn say(&self, text: &str);
    /// Tells the ID of a finished stage.
    fn announce(&self, image: &ImageId);
    /// Whether the one who builds has gone, or [`Host::cancel`] was called.
    fn is_cancelled(&self) -> bool;
    /// Ends what runs for this build.
    fn cancel(&self);
    /// Calls `work` on a thread of the build's own, with all around it that the other methods
    /// need there.
    fn within(&self, work: &mut dyn FnMut());
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile, the context or an option is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The Dockerfile cannot be parsed.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A command failed.
    #[error("The command '{command}' returned a non-zero code: {code}")]
    Command {
        /// Which.
        command: String,
        /// Its exit code.
        code: i32,
    },
    /// The host could not do something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Files could not be read or written.
    #[error("{what}: {source}")]
    Files {
        /// What was being done.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody waits for it any more.
    #[error("the build was cancelled")]
    Cancelled,
}

impl BuildError {
    /// With what was being done with files.
    pub(crate) fn files(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Files { what, source }
    }
}
