//! What a VM is made of. Plain data: it crosses from the supervisor to the worker.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most layer blobs that one VM gets; Docker's own limit of layers in an image is 127.
pub const MAX_LAYERS: usize = 127;

/// Most network cards that one VM gets.
pub const MAX_NICS: usize = 16;

/// An engine, once chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Our own VMM on KVM.
    Kvm,
    /// QEMU's microvm machine.
    Qemu,
}

impl EngineKind {
    /// The name that `info` shows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// How the engine runs the VM's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the CPU's virtualization extensions.
    Kvm,
    /// By translation in software.
    Tcg,
}

impl Accelerator {
    /// The name that `info` shows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// One file of [`Disk::Layers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFile {
    /// The file; a regular one that nobody changes while the VM runs.
    pub path: PathBuf,
    /// Its length, a multiple of 512 and not 0.
    pub bytes: u64,
}

/// A virtio block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Disk {
    /// Files one after the other as one read-only disk, serial `layers`. The n-th file
    /// starts where the lengths of those before it add up to.
    Layers {
        /// The files, at most [`MAX_LAYERS`].
        files: Vec<LayerFile>,
    },
    /// A sparse file as a writable disk, serial `scratch`. What the guest discards becomes
    /// a hole, and what it flushes is on stable storage.
    Scratch {
        /// The file. One machine at a time may have it open.
        path: PathBuf,
    },
}

impl Disk {
    /// The serial under which the guest finds the disk (`/sys/block/*/serial`).
    pub fn serial(&self) -> &'static str {
        match self {
            Self::Layers { .. } => "layers",
            Self::Scratch { .. } => "scratch",
        }
    }
}

/// A virtio network card. Its tap device goes to the worker beside the configuration, as a
/// descriptor: whoever made it decides what it is joined to, and the machine only sees frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The hardware address that it is made with, by which the guest finds it.
    pub mac: [u8; 6],
}

/// What becomes of the guest kernel's messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Console {
    /// A quiet guest. The engine may still keep the last of what it says for the text of a
    /// [`crate::MachineExit`].
    #[default]
    Quiet,
    /// All messages go to this file. Slows the boot down, above all in software.
    File {
        /// The file; it is truncated.
        path: PathBuf,
    },
}

/// What the supervisor does with a worker before it starts anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// CPUs of the host that it is kept to; all of them without.
    pub host_cpus: Option<Vec<u32>>,
    /// Directories of the control groups that it is put into.
    pub control_groups: Vec<PathBuf>,
    /// How readily the host's OOM killer takes it: `oom_score_adj` of proc(5).
    pub oom_score_adj: Option<i32>,
}

/// A VM to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// The container's ID; shown on the worker's command line.
    pub id: String,
    /// The engine.
    pub engine: EngineKind,
    /// How it runs instructions.
    pub accelerator: Accelerator,
    /// The guest kernel: an uncompressed ELF vmlinux with a PVH note.
    pub kernel: PathBuf,
    /// Timer ticks a second that the kernel was built with (`CONFIG_HZ`), where it is known:
    /// CPUs then need not be calibrated one by one, a tenth of a second each.
    #[serde(default)]
    pub kernel_hz: Option<u32>,
    /// The initramfs, a cpio archive whose `/init` is the agent.
    pub initramfs: PathBuf,
    /// Words for the kernel command line, after the engine's own.
    #[serde(default)]
    pub cmdline_extra: Vec<String>,
    /// The VM's memory, bytes: all of it, the guest kernel's part too.
    pub memory_bytes: u64,
    /// How much of that the guest gives back while it starts up, bytes; it can be given it
    /// later ([`crate::Machine::balloon`]).
    #[serde(default)]
    pub balloon_bytes: u64,
    /// Its CPUs.
    pub vcpus: u32,
    /// Where the worker is on the host, which is none of its own affair.
    #[serde(skip)]
    pub placement: Placement,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its network cards, at most [`MAX_NICS`].
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// A directory of this machine alone, which exists; the engine may keep small files
    /// there while the machine runs and removes them afterwards.
    pub runtime_dir: PathBuf,
    /// The guest's console.
    #[serde(default)]
    pub console: Console,
}
