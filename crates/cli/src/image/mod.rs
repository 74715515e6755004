//! Commands about images.

pub mod build;
pub mod list;
pub mod manage;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod transfer;
