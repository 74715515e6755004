//! Hyperv isolation: a container is a small virtual machine of its own.
//!
//! This crate turns an OCI specification into a machine (memory, CPUs, disks) and talks to
//! the agent inside it, which runs the specification there. It owns the machine's worker
//! from create to delete, and gives every caller an answer when the machine or the agent is
//! lost. It knows no hypervisor (that is `bulkhead-machine`'s) and no namespace (the
//! agent's).

mod adapt;
mod container;
mod files;
mod given;
mod group;
mod guest_dir;
mod isolation;
mod network;
mod probe;
mod process;
mod scratch;
mod shares;
mod sizing;
mod sweep;
mod trial;
mod vm;
mod worker_path;

pub use guest_dir::{GuestDir, GuestDirError};
pub use isolation::VmIsolation;
pub use probe::{VmProbe, probe};
pub use sizing::overhead;
pub use vm::Deadlines;
