//! System call filters: the built-in profile and those that a user hands in.

mod builtin;
mod profile;

use oci_spec::runtime::{Arch, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator};

use crate::Invalid;

pub(crate) use builtin::default_profile;
pub(crate) use profile::load;

/// Architectures whose calls a filter sees on this host: its own first, then those that its
/// kernel also runs.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Arch; 3] = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Arch; 2] = [Arch::ScmpArchAarch64, Arch::ScmpArchArm];

/// The names by which profiles know this host's architecture (Go's).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE_NAMES: [&str; 3] = ["amd64", "x86", "x32"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE_NAMES: [&str; 2] = ["arm64", "arm"];

fn argument(
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    value_two: u64,
) -> Result<LinuxSeccompArg, Invalid> {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .value_two(value_two)
        .build()
        .map_err(|error| Invalid::SeccompProfile(error.to_string()))
}
