//! Network namespaces of containers: made, kept alive by a file, removed, swept.
//!
//! Every container has one, whatever its isolation; it holds no process of its own, so a
//! file that the namespace is bind-mounted on keeps it alive, as `ip netns` does. The files
//! are in one directory, a private mount, so that no mount of ours travels to another mount
//! namespace. Copies of those mounts in the namespaces of supervisors go when the file is
//! unlinked: the kernel detaches what is mounted on a name that goes away.
//!
//! Beside them: bridges and veth pairs ([`link`]), addresses ([`addresses`]), the daemon's
//! nftables table ([`firewall`]), flows that it has changed ([`conntrack`]),
//! ports of the host ([`ports`]), a resolver ([`dns`]), and what carries their data where the kernel cannot ([`proxy`]).
//!
//! This crate knows no container and no API.

pub mod addresses;
pub mod conntrack;
mod counters;
pub mod dns;
pub mod firewall;
pub mod link;
mod loopback;
mod namespace;
mod netlink;
pub mod ports;
pub mod proxy;

pub use counters::{InterfaceCounters, TAP_PREFIX, counters};
pub use namespace::{
    NetworkNamespace, NetworkNamespaceError, prepare_directory, release_directory, remove, sweep,
    within,
};
