//! A share server in its jail: as a kernel uses it, and as a hostile guest does. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod events;
mod hostile;
mod mounted;
