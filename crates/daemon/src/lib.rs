//! The Docker Engine API over images, containers and their supervisors.
//!
//! [`main`] is `bulkhead daemon`. The routes decode requests and encode answers
//! ([`routes`]); what happens between is in the services ([`services`]); all of them share
//! one [`state::Daemon`]. The daemon knows neither namespaces nor virtual machines: it
//! talks to one supervisor per container, and those outlive it.

// Docker's larger objects are written as one `json!`, which recurses once per member.
#![recursion_limit = "256"]

pub mod args;
pub mod config;
pub mod connection;
pub mod disk_usage;
pub mod error;
pub mod events;
pub mod frames;
pub mod hijack;
pub mod lifetime;
pub mod platform;
pub mod remap;
pub mod remote;
pub mod routes;
pub mod server;
pub mod services;
pub mod state;
pub mod store;
pub mod websocket;

pub use args::DaemonArgs;
pub use server::{main, run};
