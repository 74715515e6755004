//! A connection that HTTP has handed over: bytes both ways, with half-close.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{ReadHalf, WriteHalf};

/// The two directions of a hijacked connection.
pub struct Hijacked {
    /// What the daemon sends.
    pub reader: ReadHalf<TokioIo<Upgraded>>,
    /// What goes to the daemon; shutting it down closes only this direction.
    pub writer: WriteHalf<TokioIo<Upgraded>>,
}

impl Hijacked {
    pub(super) fn new(upgraded: Upgraded) -> Self {
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        Self { reader, writer }
    }
}
