//! The end-to-end suite; see the library of this package for how it works.

mod bad_input;
mod build;
mod build_sources;
