//! What can go wrong on the way into a jail.

use std::io;

/// A step on the way into the jail failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct JailError {
    step: &'static str,
    source: io::Error,
}

/// Names the step that an error belongs to; the words come after "cannot".
pub(crate) fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError {
        step,
        source: source.into(),
    }
}

impl JailError {
    /// An error of a step that is not in this crate; the words come after "cannot".
    pub fn at<E: Into<io::Error>>(name: &'static str) -> impl FnOnce(E) -> Self {
        step(name)
    }

    /// What the system said.
    pub fn source_error(&self) -> &io::Error {
        &self.source
    }

    /// What the system said, without the step.
    pub fn into_source(self) -> io::Error {
        self.source
    }
}
