//! Files of a container's root filesystem, as streams: looking at them, copying them in and
//! out, comparing them with the image, exporting all of them.
//!
//! [`protocol`] is the conversation between who asks (the daemon) and who has the files (a
//! short-lived process inside a view of the container's root, on the host or in a guest);
//! whatever lies between passes bytes on. [`Scene`] does the work. It never follows a name out
//! of the directory that it is given: that directory is to be the root of the process, and
//! whatever is below is reached by descriptors. It knows no isolation, no HTTP and no image.

mod changes;
mod extract;
mod layer;
mod pack;
pub mod protocol;
mod scene;
mod stat;
mod tree;

pub use changes::{Change, ChangeKind, MTAB, MTAB_TARGET};
pub use protocol::{FilesError, FilesErrorKind, Reply, Request, Usage};
pub use scene::{Scene, UserLookup, View, serve};
pub use stat::PathStat;
