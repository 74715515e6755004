//! Plain data of the seam.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The exit code, or 128 + the signal that ended it; 137 when it was lost.
    pub code: u32,
    /// When.
    pub at: jiff::Timestamp,
    /// Whether the kernel's OOM killer ended a process of the container.
    #[serde(default)]
    pub oom_killed: bool,
    /// Set when the process did not end by itself: the VM died, the agent was lost…
    /// A sentence for a person.
    #[serde(default)]
    pub failure: Option<String>,
}

/// A small file that is bound over the root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectedFile {
    /// The file on the host; at most 1 MiB.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Which engine runs a VM's CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmEngine {
    /// The best one that works on this host.
    #[default]
    Auto,
    /// Our own VMM on KVM.
    Kvm,
    /// QEMU's microvm machine, by KVM where it is real, else in software.
    Qemu,
}

/// What a VM is made with; the sizes follow the container's limits in its specification
/// (`linux.resources.memory.limit`, `cpu.quota`/`period`), else these defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSettings {
    /// The engine asked for.
    pub engine: VmEngine,
    /// The directory with the guest kernel and initramfs; `None` to search the usual places.
    pub guest_dir: Option<PathBuf>,
    /// Memory for the payload when the container has no limit, bytes.
    pub default_memory: u64,
    /// vCPUs when the container has no limit.
    pub default_cpus: u32,
    /// Capacity of the writable layer, bytes (sparse on the host).
    pub scratch_bytes: u64,
    /// Keep the guest's console in the bundle.
    pub debug: bool,
}

impl Default for VmSettings {
    fn default() -> Self {
        Self {
            engine: VmEngine::Auto,
            guest_dir: None,
            default_memory: 512 << 20,
            default_cpus: 2,
            scratch_bytes: 20 << 30,
            debug: false,
        }
    }
}

/// A process as `ps` shows it. Times in clock ticks are already seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Number in its kernel's initial PID namespace.
    pub pid: u32,
    /// Parent.
    pub ppid: u32,
    /// Process group.
    pub pgid: u32,
    /// Session.
    pub sid: u32,
    /// Threads.
    pub threads: u32,
    /// Effective user, number.
    pub uid: u32,
    /// Effective group, number.
    pub gid: u32,
    /// Effective user as that kernel's host names it; the number where it has no name.
    pub user: String,
    /// Effective group likewise.
    pub group: String,
    /// `comm`.
    pub comm: String,
    /// Command line, arguments joined by spaces; `[comm]` when empty.
    pub args: String,
    /// State letters as `ps` prints them (`S`, `Ss`, `R+`…).
    pub stat: String,
    /// Terminal as `ps` prints it (`pts/0`, `?`).
    pub tty: String,
    /// Nice value.
    pub nice: i32,
    /// Priority.
    pub priority: i32,
    /// Start, seconds since the epoch.
    pub started_at: i64,
    /// Age in seconds.
    pub elapsed: u64,
    /// CPU used, seconds.
    pub cpu_seconds: f64,
    /// Virtual size, KiB.
    pub vsz: u64,
    /// Resident size, KiB.
    pub rss: u64,
    /// Share of that kernel's memory, percent.
    pub memory_percent: f64,
    /// Kernel function it sleeps in, or `-`.
    pub wchan: String,
}

/// CPU counters; times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// All CPU time.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub kernel: u64,
    /// Time of all CPUs of that kernel together, busy and idle (`/proc/stat`).
    pub system: u64,
    /// CPUs that kernel has online.
    pub online: u32,
    /// Quota periods that passed.
    pub periods: u64,
    /// Of those, throttled.
    pub throttled_periods: u64,
    /// Time throttled.
    pub throttled_time: u64,
    /// All CPU time, by CPU; empty where that kernel does not count it (cgroup v2).
    #[serde(default)]
    pub per_cpu: Vec<u64>,
}

/// Memory counters, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// In use, page cache included.
    pub usage: u64,
    /// The most that was in use.
    pub max_usage: u64,
    /// The limit, or that kernel's memory without one.
    pub limit: u64,
    /// Failures to charge.
    pub failcnt: u64,
    /// Whether the group is unified (cgroup v2): `detail` then has v2's names.
    pub unified: bool,
    /// `memory.stat`.
    pub detail: std::collections::BTreeMap<String, u64>,
}

/// Bytes and operations on one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIo {
    /// Device numbers.
    pub major: u64,
    /// Minor.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// What a container has used so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// When it was read.
    pub at: jiff::Timestamp,
    /// CPU.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Tasks now.
    pub pids: u64,
    /// Limit of tasks; 0 is none.
    pub pids_limit: u64,
    /// Block devices.
    pub block_io: Vec<BlockIo>,
}

/// New limits; `None` leaves one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory limit, bytes; -1 is none.
    pub memory: Option<i64>,
    /// Memory + swap, bytes; -1 is none.
    pub memory_swap: Option<i64>,
    /// Soft limit, bytes.
    pub memory_reservation: Option<i64>,
    /// CPU time per period, microseconds; -1 is none.
    pub cpu_quota: Option<i64>,
    /// Period, microseconds.
    pub cpu_period: Option<u64>,
    /// Relative weight (cgroup v1's scale).
    pub cpu_shares: Option<u64>,
    /// CPUs allowed, as a list (`0-1`).
    pub cpuset_cpus: Option<String>,
    /// Memory nodes allowed.
    pub cpuset_mems: Option<String>,
    /// Limit of tasks; -1 is none.
    pub pids_limit: Option<i64>,
    /// Block I/O weight.
    pub blkio_weight: Option<u16>,
}
