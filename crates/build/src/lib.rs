//! Building images from Dockerfiles.
//!
//! Owns Dockerfiles (parsing, substitution), build contexts, the plan of a layer, the keys of
//! the cache and the order of steps. Refuses to know the daemon: images are looked up, mounted
//! and stored, and commands run, through [`Host`]. Everything here blocks.

pub mod builder;
pub mod compression;
pub mod dockerfile;
pub mod ignore;
mod layer;
mod seam;
pub mod tree;
pub mod words;

pub use builder::{Built, Options, build};
pub use seam::{
    Base, BuildError, CacheDirectory, CacheRequest, CacheSharing, Fetched, Host, HostError,
    NewStep, RunMount, RunMountKind, RunNews, RunOutcome, RunRequest, SecretFile, SecretRequest,
    Secrets,
};
