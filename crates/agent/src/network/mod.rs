//! The guest's network: what the host says it is.

mod cards;
mod loopback;
mod redirect;
mod resolver;

pub use cards::{CardError, Cards};
pub use loopback::loopback_up;
pub use resolver::GuestResolver;
