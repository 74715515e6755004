//! The control group of a machine's worker on the host: what it uses is counted there, and the
//! container's share of CPUs and disks holds for all of the machine, whatever its guest does.
//!
//! Memory has no limit there: the guest has as much as its machine has, and the
//! worker's address space is limited; what else is counted are pages of its files, which the
//! host takes back by itself.

use std::io;
use std::path::{Path, PathBuf};

use bulkhead_cgroup::Cgroup;
use bulkhead_isolation::Resources;
use oci_spec::runtime::Spec;

/// Names the group in the machine's directory.
const NOTE: &str = "cgroup";

/// The least that a machine may have of a CPU: its agent has deadlines.
const LEAST: u64 = 10;
/// The kernel's period when none is given, microseconds.
const PERIOD: u64 = 100_000;

/// How much more readily than its supervisor a worker is taken by the OOM killer.
const OOM_PREFERENCE: i32 = 200;
const OOM_SCORE_MAX: i32 = 1000;

/// See the module. Without one where the host does not allow it.
#[derive(Debug, Clone, Default)]
pub struct MachineGroup(Option<Cgroup>);

impl MachineGroup {
    /// Makes the group of the container, and notes its name in the machine's directory, by
    /// which [`remove`] finds it.
    pub fn make(spec: &Spec, id: &str, runtime_dir: &Path) -> Self {
        let name = name(spec, id);
        let noted = std::fs::write(runtime_dir.join(NOTE), name.as_os_str().as_encoded_bytes());
        match noted.and_then(|()| Cgroup::make(&name)) {
            Ok(group) => Self(Some(group)),
            Err(error) => {
                tracing::warn!(%error, name = %name.display(), "a VM has no control group");
                Self(None)
            }
        }
    }

    /// Its directories.
    pub fn directories(&self) -> Vec<PathBuf> {
        let directories = self.0.iter().flat_map(Cgroup::directories);
        directories.map(Path::to_owned).collect()
    }

    /// Puts a process in. What only counts or weighs is not worth a container that does not
    /// start.
    pub fn add(&self, pid: u32) {
        let Some(group) = &self.0 else { return };
        if let Err(error) = group.add(pid) {
            tracing::warn!(%error, pid, "a process of the VM is not in its group");
        }
    }

    /// Sets what is given of the limits that concern it; what the host cannot limit it does
    /// not, and the guest's kernel still does.
    pub fn limit(&self, resources: &Resources) {
        let Some(group) = &self.0 else { return };
        let cpu = Resources {
            cpu_quota: resources
                .cpu_quota
                .map(|quota| at_least(quota, resources.cpu_period)),
            cpu_period: resources.cpu_period,
            cpu_shares: resources.cpu_shares,
            ..Resources::default()
        };
        let disks = Resources {
            blkio_weight: resources.blkio_weight,
            ..Resources::default()
        };
        for limits in [cpu, disks] {
            if let Err(error) = group.update(&limits) {
                tracing::warn!(%error, "a limit holds in the VM and not for it");
            }
        }
    }
}

/// The limits in a specification.
pub fn limits(spec: &Spec) -> Resources {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let disks = resources.and_then(|resources| resources.block_io().as_ref());
    Resources {
        cpu_quota: cpu.and_then(oci_spec::runtime::LinuxCpu::quota),
        cpu_period: cpu.and_then(oci_spec::runtime::LinuxCpu::period),
        cpu_shares: cpu.and_then(oci_spec::runtime::LinuxCpu::shares),
        blkio_weight: disks.and_then(oci_spec::runtime::LinuxBlockIo::weight),
        ..Resources::default()
    }
}

/// Removes the group that is noted in a machine's directory, and ends what is still in it: a
/// server of shares ends by itself, and a moment after the machine.
///
/// # Errors
/// What the system says.
pub async fn remove(runtime_dir: &Path) -> io::Result<()> {
    let name = match std::fs::read_to_string(runtime_dir.join(NOTE)) {
        Ok(name) => PathBuf::from(name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // A note that was cut short was written before there was a group.
    if name.as_os_str().is_empty() {
        return Ok(());
    }
    let remove = move || {
        let group = Cgroup::find(&name)?;
        group.kill()?;
        group.remove()
    };
    tokio::task::spawn_blocking(remove)
        .await
        .map_err(io::Error::other)?
}

/// `oom_score_adj` for the worker of this container: what was asked for, and in any case
/// more than our own, so that it is taken before those who look after it.
pub fn oom_score(spec: &Spec) -> i32 {
    let process = spec.process().as_ref();
    let asked = process.and_then(oci_spec::runtime::Process::oom_score_adj);
    let own = std::fs::read_to_string("/proc/self/oom_score_adj");
    let own = own.ok().and_then(|own| own.trim().parse().ok());
    above(asked.unwrap_or(0), own.unwrap_or(0))
}

fn above(asked: i32, own: i32) -> i32 {
    asked
        .max(own.saturating_add(OOM_PREFERENCE))
        .min(OOM_SCORE_MAX)
}

fn at_least(quota: i64, period: Option<u64>) -> i64 {
    let period = period.filter(|period| *period > 0).unwrap_or(PERIOD);
    let least = i64::try_from(period / LEAST).unwrap_or(i64::MAX);
    if quota > 0 { quota.max(least) } else { quota }
}

fn name(spec: &Spec, id: &str) -> PathBuf {
    let linux = spec.linux().as_ref();
    let given = linux.and_then(|linux| linux.cgroups_path().clone());
    match given {
        Some(path) if !path.as_os_str().is_empty() => Path::new("/").join(path),
        _ => Path::new("/bulkhead").join(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_taken_before_its_supervisor() {
        assert_eq!(above(0, 0), 200);
        assert_eq!(above(500, 0), 500);
        assert_eq!(above(-900, -500), -300);
        assert_eq!(above(0, 1000), 1000);
    }

    #[test]
    fn an_agent_has_its_tenth() {
        assert_eq!(at_least(50_000, None), 50_000);
        assert_eq!(at_least(1000, None), 10_000);
        assert_eq!(at_least(1000, Some(50_000)), 5000);
        assert_eq!(at_least(-1, None), -1);
    }

    #[test]
    fn a_group_has_the_containers_name() {
        let spec = |text: &str| serde_json::from_str::<Spec>(text).unwrap();
        let given = spec(r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"/a/x"}}"#);
        assert_eq!(name(&given, "x"), Path::new("/a/x"));
        let none = spec(r#"{"ociVersion":"1.0.2"}"#);
        assert_eq!(name(&none, "x"), Path::new("/bulkhead/x"));
    }
}
