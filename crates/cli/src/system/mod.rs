//! Commands about the engine as a whole, and what several families of commands share.

pub mod check;
pub mod df;
pub mod events;
pub mod filters;
pub mod info;
pub mod inspect;
pub mod prune;
pub mod version;
