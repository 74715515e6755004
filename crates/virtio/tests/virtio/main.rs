//! Devices as a guest uses them, and as one misuses them.

#![allow(clippy::unwrap_used)] // Helpers of tests panic as tests do.

mod balloon;
mod block;
mod console;
mod event_loop;
mod every;
mod hostile;
mod midflight;
mod net;
mod transport;
mod turns;
