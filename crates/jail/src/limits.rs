//! How much of the host a jailed process may use.

use rustix::process::{Resource, Rlimit};

use crate::JailError;
use crate::error::step;

/// Limits that are lowered and cannot be raised again. `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open descriptors: the largest number and one.
    pub descriptors: Option<u64>,
    /// Bytes of address space.
    pub address_space: Option<u64>,
    /// The end, in bytes, of the longest file that can be written.
    pub file_size: Option<u64>,
    /// Processes and threads of the user.
    pub threads: Option<u64>,
}

impl Limits {
    /// Sets them, and forbids core dumps.
    ///
    /// # Errors
    /// What the system says.
    pub fn set(self) -> Result<(), JailError> {
        // A limit of 0 does not keep a dump from a program that takes dumps
        // (`core_pattern` with a pipe); 1 keeps it from both (core(5)).
        lower(Resource::Core, 1).map_err(step("forbid core dumps"))?;
        for (resource, limit, name) in [
            (Resource::Nofile, self.descriptors, "limit the open files"),
            (Resource::As, self.address_space, "limit the address space"),
            (Resource::Fsize, self.file_size, "limit the size of files"),
            (Resource::Nproc, self.threads, "limit the threads"),
        ] {
            if let Some(limit) = limit {
                lower(resource, limit).map_err(step(name))?;
            }
        }
        Ok(())
    }
}

/// Lowers both limits; what is lower already stays.
fn lower(resource: Resource, limit: u64) -> rustix::io::Result<()> {
    let now = rustix::process::getrlimit(resource);
    let least = |now: Option<u64>| Some(now.map_or(limit, |now| now.min(limit)));
    rustix::process::setrlimit(
        resource,
        Rlimit {
            current: least(now.current),
            maximum: least(now.maximum),
        },
    )
}
