//! What the daemon and the supervisor share: how the daemon calls the supervisor, the
//! options of a task, orders to fill volumes, the layout of a bundle, the attach handshake, the json-file log,
//! the record of an exit. Everything here is on disk or on a local socket between
//! processes of the same version or of neighbouring ones, so fields are only added.

pub mod attach;
pub mod bundle;
pub mod exit_record;
pub mod json_log;
pub mod options;
pub mod populate;
pub mod wire_error;
