//! Tar streams: a reader of those that come from strangers, and a writer.
//!
//! Knows the format only. What an entry means for a layer, or for a container's files, is
//! decided by those who read it.

mod pax;
mod reader;
mod writer;

pub use bulkhead_erofs::{Extent, Timestamp};
pub use reader::{Entry, EntryKind, TarError, TarStream, readable};
pub use writer::{Header, TarWriter};
