//! What the daemon does, without HTTP.

pub mod build;
pub mod containers;
pub mod images;
pub mod networks;
pub mod supervisor;
pub mod system;
pub mod volumes;
