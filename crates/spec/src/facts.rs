//! What the host offers, read once and handed around as data.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Capability;
use rustix::process::{Resource, getrlimit};

/// What the host's kernel offers to containers of process isolation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// 2 where the unified hierarchy holds the controllers, else 1.
    pub cgroup_version: u8,
    /// CPUs online.
    pub cpus: u32,
    /// The list of CPUs online, as `0-3`.
    pub cpu_list: String,
    /// The list of memory nodes online.
    pub node_list: String,
    /// Physical memory, bytes.
    pub memory: u64,
    /// Swap, bytes.
    pub swap: u64,
    /// Whether memory can be limited.
    pub memory_limit: bool,
    /// Whether memory and swap together can be limited.
    pub swap_limit: bool,
    /// Whether the OOM killer can be turned off for a group (cgroup v1 only).
    pub oom_kill_disable: bool,
    /// Whether CPU time can be limited by quota.
    pub cpu_quota: bool,
    /// Whether CPU time can be shared by weight.
    pub cpu_shares: bool,
    /// Whether CPUs can be chosen.
    pub cpuset: bool,
    /// Whether tasks can be limited.
    pub pids_limit: bool,
    /// Whether block I/O can be weighted.
    pub blkio_weight: bool,
    /// Whether network namespaces can be forwarded between.
    pub ipv4_forwarding: bool,
    /// Whether the kernel filters system calls.
    pub seccomp: bool,
    /// Whether the kernel has AppArmor turned on.
    pub apparmor: bool,
    /// The capabilities that this process can hand on (its bounding set).
    pub capabilities: Vec<Capability>,
    /// Hard limits that this process cannot raise for a container: Docker's name of the
    /// resource, and the most that it can have.
    pub hard_limits: Vec<(&'static str, u64)>,
}

impl HostFacts {
    /// Reads them from `/proc` and `/sys`. What cannot be read counts as missing.
    pub fn detect() -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers");
        let cgroup_version = if unified.exists() { 2 } else { 1 };
        let cgroups = Cgroups::detect(cgroup_version, unified);
        let cpu_list = text("/sys/devices/system/cpu/online").unwrap_or_else(|| "0".to_owned());
        let cpus = bulkhead_isolation::parse_cpu_list(&cpu_list)
            .map_or(1, |list| u32::try_from(list.len()).unwrap_or(1))
            .max(1);
        Self {
            cgroup_version,
            cpus,
            cpu_list,
            node_list: text("/sys/devices/system/node/online").unwrap_or_else(|| "0".to_owned()),
            memory: meminfo("MemTotal").unwrap_or(0),
            swap: meminfo("SwapTotal").unwrap_or(0),
            memory_limit: cgroups.has("memory", "memory.limit_in_bytes"),
            swap_limit: cgroups.has_swap(),
            oom_kill_disable: cgroup_version == 1 && cgroups.has("memory", "memory.oom_control"),
            cpu_quota: cgroups.has("cpu", "cpu.cfs_quota_us"),
            cpu_shares: cgroups.has("cpu", "cpu.shares"),
            cpuset: cgroups.has("cpuset", "cpuset.cpus"),
            pids_limit: cgroups.has("pids", ""),
            blkio_weight: match cgroup_version {
                1 => {
                    cgroups.has("blkio", "blkio.weight") || cgroups.has("blkio", "blkio.bfq.weight")
                }
                _ => cgroups.has("io", ""),
            },
            ipv4_forwarding: text("/proc/sys/net/ipv4/ip_forward").as_deref() == Some("1"),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            apparmor: text("/sys/module/apparmor/parameters/enabled").as_deref() == Some("Y"),
            hard_limits: match bounding_set().contains(&Capability::SysResource) {
                true => Vec::new(),
                false => hard_limits(),
            },
            capabilities: bounding_set(),
        }
    }
}

/// Where controllers are.
struct Cgroups {
    version: u8,
    /// Names in the unified hierarchy, for version 2.
    unified: Vec<String>,
    /// Where each controller is mounted, for version 1: its name and its directory.
    mounts: Vec<(String, PathBuf)>,
}

impl Cgroups {
    fn detect(version: u8, controllers: &Path) -> Self {
        let unified = std::fs::read_to_string(controllers)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            version,
            unified,
            mounts: controller_mounts(&mountinfo),
        }
    }

    /// Whether a controller is there and, for version 1, has this file at its root.
    fn has(&self, controller: &str, file: &str) -> bool {
        if self.version == 2 {
            return self.unified.iter().any(|name| name == controller);
        }
        self.mounts
            .iter()
            .any(|(name, directory)| name == controller && directory.join(file).exists())
    }

    fn has_swap(&self) -> bool {
        if self.version == 1 {
            return self.has("memory", "memory.memsw.limit_in_bytes");
        }
        // The root group has no memory.swap.max; any child shows whether the kernel counts swap.
        self.has("memory", "")
            && std::fs::read_dir("/sys/fs/cgroup").is_ok_and(|entries| {
                entries
                    .flatten()
                    .any(|entry| entry.path().join("memory.swap.max").exists())
            })
    }
}

/// Version 1 controllers and where they are mounted, from the text of a `mountinfo`
/// (`proc_pid_mountinfo(5)`).
fn controller_mounts(mountinfo: &str) -> Vec<(String, PathBuf)> {
    let mut out = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut right = right.split(' ');
        if right.next() != Some("cgroup") {
            continue;
        }
        let (Some(directory), Some(options)) = (left.split(' ').nth(4), right.nth(1)) else {
            continue;
        };
        for option in options.split(',') {
            out.push((option.to_owned(), PathBuf::from(directory)));
        }
    }
    out
}

fn text(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The bounding set; every capability where it cannot be read.
fn bounding_set() -> Vec<Capability> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    crate::capabilities::from_mask(mask.unwrap_or(u64::MAX))
}

fn hard_limits() -> Vec<(&'static str, u64)> {
    let named = [
        ("core", Resource::Core),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("memlock", Resource::Memlock),
        ("msgqueue", Resource::Msgqueue),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("stack", Resource::Stack),
    ];
    named
        .into_iter()
        .filter_map(|(name, resource)| Some((name, getrlimit(resource).maximum?)))
        .collect()
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_version_1() {
        let text = "30 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let mounts = controller_mounts(text);
        assert!(mounts.contains(&("cpu".to_owned(), "/sys/fs/cgroup/cpu,cpuacct".into())));
        assert!(!mounts.iter().any(|(_, path)| path.ends_with("unified")));
    }

    #[test]
    fn this_host_has_a_cpu_and_memory() {
        let facts = HostFacts::detect();
        assert!(facts.cpus >= 1 && facts.memory > 0);
        assert!([1, 2].contains(&facts.cgroup_version));
    }
}
