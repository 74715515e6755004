//! Commands about containers.

pub mod attach;
pub mod copy;
pub mod create;
pub mod exec;
pub mod files;
pub mod inspect;
pub mod lifecycle;
pub mod list;
pub mod logs;
pub mod mounts;
pub mod networks;
pub mod options;
pub mod ports;
pub mod prune;
pub mod run;
pub mod session;
pub mod signals;
pub mod spec;
pub mod start;
pub mod stats;
pub mod update;
pub mod values;
pub mod wait;
