//! Changing a group's limits: all of them or none.

use std::path::{Path, PathBuf};

use bulkhead_isolation::{ErrorKind, IsolationError, Resources, Result};

use crate::{Cgroup, Controller, Directory};

/// A file to write, and what to write.
struct Change {
    file: PathBuf,
    value: String,
}

impl Cgroup {
    /// Sets what is given; on an error everything is as it was.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        let changes = self.changes(resources)?;
        let mut undo: Vec<Change> = Vec::with_capacity(changes.len());
        for change in changes {
            let before = std::fs::read_to_string(&change.file).unwrap_or_default();
            if let Err(error) = std::fs::write(&change.file, &change.value) {
                for earlier in undo.iter().rev() {
                    if let Err(error) = crate::write(&earlier.file, &earlier.value) {
                        tracing::warn!(%error, "a limit could not be restored");
                    }
                }
                let name = change
                    .file
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy();
                return Err(IsolationError::new(
                    ErrorKind::InvalidArgument,
                    format!("cannot set {name} to {}: {error}", change.value),
                ));
            }
            undo.push(Change {
                file: change.file,
                value: before.trim().to_owned(),
            });
        }
        Ok(())
    }

    /// Has processes that reach the limit of memory wait, where the kernel can: the unified
    /// hierarchy has no such switch.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn disable_oom_killer(&self) -> Result<()> {
        match self.directory(Controller::Memory) {
            Some(Directory::V1(path)) => crate::write(&path.join("memory.oom_control"), "1"),
            _ => Ok(()),
        }
    }

    fn changes(&self, resources: &Resources) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        let mut add = |directory: &Path, name: &str, value: String| {
            changes.push(Change {
                file: directory.join(name),
                value,
            });
        };
        let needed = |controller, what| {
            self.directory(controller).ok_or_else(|| {
                IsolationError::new(
                    ErrorKind::InvalidArgument,
                    format!("this kernel has no control group controller for {what}"),
                )
            })
        };
        let Resources {
            memory,
            memory_swap,
            memory_reservation,
            cpu_quota,
            cpu_period,
            cpu_shares,
            cpuset_cpus,
            cpuset_mems,
            pids_limit,
            blkio_weight,
        } = resources;

        if memory.is_some() || memory_swap.is_some() || memory_reservation.is_some() {
            match needed(Controller::Memory, "memory")? {
                Directory::V1(path) => {
                    for (name, value) in memory_v1(path, *memory, *memory_swap) {
                        add(path, name, value.to_string());
                    }
                    if let Some(value) = memory_reservation {
                        add(path, "memory.soft_limit_in_bytes", value.to_string());
                    }
                }
                Directory::V2(path) => {
                    if let Some(value) = memory {
                        add(path, "memory.max", or_max(*value));
                    }
                    if let Some(value) = memory_swap {
                        add(path, "memory.swap.max", swap_v2(*memory, *value)?);
                    }
                    if let Some(value) = memory_reservation {
                        add(path, "memory.low", or_max(*value));
                    }
                }
            }
        }
        if cpu_quota.is_some() || cpu_period.is_some() || cpu_shares.is_some() {
            match needed(Controller::Cpu, "CPU time")? {
                Directory::V1(path) => {
                    if let Some(value) = cpu_period.filter(|value| *value > 0) {
                        add(path, "cpu.cfs_period_us", value.to_string());
                    }
                    if let Some(value) = cpu_quota.filter(|value| *value != 0) {
                        add(path, "cpu.cfs_quota_us", value.to_string());
                    }
                    if let Some(value) = cpu_shares.filter(|value| *value > 0) {
                        add(path, "cpu.shares", value.to_string());
                    }
                }
                Directory::V2(path) => {
                    let current = std::fs::read_to_string(path.join("cpu.max"));
                    let current = current.unwrap_or_default();
                    let mut words = current.split_ascii_whitespace();
                    let (quota, period) = (words.next(), words.next());
                    if cpu_quota.is_some() || cpu_period.is_some() {
                        let quota = cpu_quota
                            .filter(|value| *value != 0)
                            .map_or_else(|| quota.unwrap_or("max").to_owned(), or_max);
                        let period = cpu_period.filter(|value| *value > 0).map_or_else(
                            || period.unwrap_or("100000").to_owned(),
                            |p| p.to_string(),
                        );
                        add(path, "cpu.max", format!("{quota} {period}"));
                    }
                    if let Some(shares) = cpu_shares.filter(|value| *value > 0) {
                        add(path, "cpu.weight", weight(shares).to_string());
                    }
                }
            }
        }
        let cpus = cpuset_cpus.as_deref().filter(|value| !value.is_empty());
        let mems = cpuset_mems.as_deref().filter(|value| !value.is_empty());
        if cpus.is_some() || mems.is_some() {
            let (Directory::V1(path) | Directory::V2(path)) =
                needed(Controller::Cpuset, "CPU sets")?;
            if let Some(value) = cpus {
                add(path, "cpuset.cpus", value.to_owned());
            }
            if let Some(value) = mems {
                add(path, "cpuset.mems", value.to_owned());
            }
        }
        if let Some(value) = pids_limit {
            let (Directory::V1(path) | Directory::V2(path)) =
                needed(Controller::Pids, "the number of tasks")?;
            add(
                path,
                "pids.max",
                if *value > 0 {
                    value.to_string()
                } else {
                    "max".to_owned()
                },
            );
        }
        if let Some(value) = blkio_weight.filter(|value| *value > 0) {
            match needed(Controller::Blkio, "block I/O")? {
                Directory::V1(path) => add(path, "blkio.weight", value.to_string()),
                Directory::V2(path) => add(path, "io.weight", format!("default {value}")),
            }
        }
        Ok(changes)
    }
}

/// v1 wants `memory <= memory+swap` after every single write, so a rise starts with the
/// sum and a fall ends with it.
fn memory_v1(path: &Path, memory: Option<i64>, sum: Option<i64>) -> Vec<(&'static str, i64)> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const SUM: &str = "memory.memsw.limit_in_bytes";
    let memory = memory.filter(|value| *value != 0);
    // Without swap accounting the file is missing, and there is nothing to keep in step.
    let sum_now = crate::number(&path.join(SUM));
    let mut sum = sum.filter(|value| *value != 0 && sum_now.is_some());
    if memory == Some(-1) && sum.is_none() && sum_now.is_some() {
        sum = Some(-1);
    }
    let rises = match (sum, sum_now) {
        (Some(-1), _) => true,
        (Some(sum), Some(now)) => u64::try_from(sum).is_ok_and(|sum| sum > now),
        _ => false,
    };
    let mut writes = Vec::with_capacity(2);
    writes.extend(memory.map(|value| (MEMORY, value)));
    writes.extend(sum.map(|value| (SUM, value)));
    if rises {
        writes.reverse();
    }
    writes
}

/// v2 limits swap alone; the caller gives the sum.
fn swap_v2(memory: Option<i64>, sum: i64) -> Result<String> {
    match (memory, sum) {
        (_, ..0) => Ok("max".to_owned()),
        (Some(memory), sum) if memory >= 0 && sum >= memory => Ok((sum - memory).to_string()),
        _ => Err(IsolationError::new(
            ErrorKind::InvalidArgument,
            "memory+swap needs a memory limit that is not larger",
        )),
    }
}

fn or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// v1's shares (2…262144) on v2's scale (1…10000), the way runtimes agree on.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_ends() {
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
        assert_eq!(weight(1024), 39);
    }

    #[test]
    fn swap_is_what_the_sum_leaves() {
        assert_eq!(swap_v2(Some(100), 300).unwrap(), "200");
        assert_eq!(swap_v2(Some(100), -1).unwrap(), "max");
        assert!(swap_v2(None, 300).is_err());
    }
}
