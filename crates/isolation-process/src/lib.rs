//! Process isolation: a container is namespaces, cgroups, capabilities and a seccomp
//! filter on the kernel that this process runs on, made by libcontainer.
//!
//! The supervisor uses it on the host; the guest agent uses it inside a VM. libcontainer
//! changes the working directory of its process and clones without exec, which neither
//! threads nor malloc's locks survive, so it is called only in a short-lived,
//! single-threaded helper: the same binary executed again ([`helper_main`]). Everything
//! that waits is here, on tokio; everything that blocks or forks is in the helper.

mod console;
mod container;
mod files;
mod helper;
mod isolation;
mod layout;
mod output;
mod process;
mod procfs;
mod reaper;
mod wire;

pub use helper::{helper_main, mappings, mount_image, seal_program};
pub use isolation::{ProcessIsolation, cgroup_version};
pub use reaper::{Child, Exit, Expectation, Reaper};
