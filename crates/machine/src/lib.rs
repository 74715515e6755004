//! The Machine seam: what runs a VM's CPUs.
//!
//! Three parties meet here. The supervisor chooses an engine ([`choose`]), describes a VM
//! ([`MachineConfig`]) and starts its worker process ([`worker::Worker`]); the worker binary
//! serves that ([`worker::protocol`]); an engine boots the VM ([`Engine`], [`Machine`]).
//! This crate knows no hypervisor: what engines cannot do alike is declared as data
//! ([`Capabilities`]), and nobody above the seam asks for an engine's name.

mod choice;
mod config;
mod engine;
mod exit;
mod files;
mod words;
pub mod worker;

pub use choice::{ChoiceError, EngineChoice, HostFacts, choose, find_qemu};
pub use config::{
    Accelerator, Console, Disk, EngineKind, LayerFile, MAX_LAYERS, MAX_NICS, MachineConfig, Nic,
    Placement,
};
pub use engine::{BootError, Capabilities, Engine, Machine, MachineError, PreparedMachine};
pub use exit::{ExitReason, MachineExit};
pub use files::{DiskFiles, FileRole, FilesError, MachineFiles};
pub use words::{
    QUICK_WORDS, QUIET_WORDS, RESET_ON_PANIC, TALKATIVE_WORD, Tail, guest_reset, last_lines,
};
