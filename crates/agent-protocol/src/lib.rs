//! What host and guest agree on, and all that they share.
//!
//! One byte stream (a virtio console port) carries, after a [`hello`] from each side, one
//! [`Connection`] of multiplexed [`Stream`]s. The host opens a stream per request: a framed
//! [`Request`], a framed reply, and for the standard streams raw bytes after that. The guest
//! opens none.
//!
//! Neither side trusts the other: every length is bounded before anything is allocated for
//! it, every stream has a fixed window, and the number of streams is limited.

mod connection;
pub mod hello;
mod message;
mod network;
mod share;
mod wire;

pub use connection::{Connection, ConnectionLost, Incoming, MAX_STREAMS, Role, Stream};
pub use message::{
    Call, Create, CreateReply, Delete, Exec, FileHeader, Files, Kill, KillAll, LayerExtent,
    MAX_FILE_BYTES, MAX_FILES, Pause, Processes, ReadinessTimes, Request, Resize, Resume, Setup,
    SetupReply, Shutdown, StandardStream, Start, Stats, Stdio, Update, Wait, WriteFiles,
};
pub use network::{
    Address, DnsMessage, Interface, MAX_ADDRESSES, MAX_DNS_MESSAGE, MAX_NICS, MAX_ROUTES, Mac,
    Network, Nic, Prefix, Resolver, Route,
};
pub use share::{
    AcceptShare, ListenShare, MAX_SHARE_MESSAGE, MAX_SHARES, MountShare, share_path, socket_path,
};
pub use wire::{MAX_MESSAGE, WireError, call, read_message, reply, write_message};
