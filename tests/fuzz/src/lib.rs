//! Fuzz targets: one function for each place where bytes of a guest, an image, a registry or
//! a client's build enter.
//!
//! A target takes any bytes and returns; it panics where a promise is broken (the code under
//! it panicked, an answer contradicts another, something is left behind). Seeds are valid
//! inputs that mutations start from. The targets are driven from two sides: by coverage in
//! `fuzz/` (`make fuzz`), and by a bounded, seeded run in `cargo test`.

mod devices;
mod guest;
mod images;
mod recipes;
mod share;

/// A place where strangers' bytes enter.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name, also of its binary in `fuzz/`.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many inputs the bounded run tries: about a second's worth.
    pub tries: u32,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    devices::ENTROPY,
    devices::BALLOON,
    devices::BLOCK,
    devices::LAYERED,
    devices::NET,
    devices::CONSOLE,
    guest::HELLO,
    guest::REQUEST,
    guest::TRANSPORT,
    guest::DNS,
    guest::FILES,
    share::REQUESTS,
    share::STREAM,
    images::TAR,
    images::LAYER,
    images::ARCHIVE,
    images::CONFIG,
    images::DOCUMENT,
    images::REFERENCE,
    recipes::DOCKERFILE,
    recipes::WORDS,
    recipes::IGNORE,
];

/// Feeds the target of this name.
///
/// # Panics
/// When there is none, and where the target finds a broken promise.
pub fn run(name: &str, bytes: &[u8]) {
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        panic!("there is no fuzz target {name:?}");
    };
    (target.run)(bytes);
}
