//! Reading a group's counters.

use std::collections::BTreeMap;
use std::path::Path;

use bulkhead_isolation::{BlockIo, CpuStats, MemoryStats, Stats};

use crate::{Cgroup, Controller, Directory, field, number};

/// Nanoseconds in a microsecond.
const MICRO: u64 = 1000;

impl Cgroup {
    /// What the group has used so far; what this kernel does not count is zero.
    pub fn stats(&self) -> Stats {
        let (pids, pids_limit) = match self.directory(Controller::Pids) {
            Some(Directory::V1(path) | Directory::V2(path)) => (
                number(&path.join("pids.current")).unwrap_or(0),
                number(&path.join("pids.max")).unwrap_or(0),
            ),
            None => (0, 0),
        };
        Stats {
            at: jiff::Timestamp::now(),
            cpu: self.cpu(),
            memory: self.memory(),
            pids,
            pids_limit,
            block_io: match self.directory(Controller::Blkio) {
                Some(Directory::V1(path)) => block_io_v1(path),
                Some(Directory::V2(path)) => block_io_v2(path),
                None => Vec::new(),
            },
        }
    }

    fn cpu(&self) -> CpuStats {
        let mut stats = CpuStats {
            system: system_time(),
            online: online(),
            ..CpuStats::default()
        };
        match self.directory(Controller::CpuAcct) {
            Some(Directory::V1(path)) => {
                stats.total = number(&path.join("cpuacct.usage")).unwrap_or(0);
                stats.user = number(&path.join("cpuacct.usage_user")).unwrap_or(0);
                stats.kernel = number(&path.join("cpuacct.usage_sys")).unwrap_or(0);
                stats.per_cpu = read(&path.join("cpuacct.usage_percpu"))
                    .split_ascii_whitespace()
                    .map_while(|time| time.parse().ok())
                    .collect();
            }
            Some(Directory::V2(path)) => {
                let text = read(&path.join("cpu.stat"));
                let micros = |key| field(&text, key).unwrap_or(0).saturating_mul(MICRO);
                stats.total = micros("usage_usec");
                stats.user = micros("user_usec");
                stats.kernel = micros("system_usec");
            }
            None => {}
        }
        match self.directory(Controller::Cpu) {
            Some(directory @ (Directory::V1(path) | Directory::V2(path))) => {
                let text = read(&path.join("cpu.stat"));
                let value = |key| field(&text, key).unwrap_or(0);
                stats.periods = value("nr_periods");
                stats.throttled_periods = value("nr_throttled");
                stats.throttled_time = match directory {
                    Directory::V1(_) => value("throttled_time"),
                    Directory::V2(_) => value("throttled_usec").saturating_mul(MICRO),
                };
            }
            None => {}
        }
        stats
    }

    fn memory(&self) -> MemoryStats {
        let total = total_memory();
        match self.directory(Controller::Memory) {
            Some(Directory::V1(path)) => {
                let value = |name| number(&path.join(name)).unwrap_or(0);
                MemoryStats {
                    usage: value("memory.usage_in_bytes"),
                    max_usage: value("memory.max_usage_in_bytes"),
                    limit: value("memory.limit_in_bytes").min(total),
                    failcnt: value("memory.failcnt"),
                    unified: false,
                    detail: detail(&path.join("memory.stat")),
                }
            }
            Some(Directory::V2(path)) => {
                let value = |name| number(&path.join(name));
                MemoryStats {
                    usage: value("memory.current").unwrap_or(0),
                    max_usage: value("memory.peak").unwrap_or(0),
                    limit: value("memory.max").unwrap_or(total).min(total),
                    failcnt: field(&read(&path.join("memory.events")), "max").unwrap_or(0),
                    unified: true,
                    detail: detail(&path.join("memory.stat")),
                }
            }
            None => MemoryStats {
                limit: total,
                ..MemoryStats::default()
            },
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn detail(path: &Path) -> BTreeMap<String, u64> {
    let text = read(path);
    let pairs = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    });
    pairs.collect()
}

/// Time of all CPUs, busy and idle, nanoseconds: the first seven columns of `/proc/stat`,
/// in ticks of 1/100 s (`USER_HZ` is 100 on every architecture we build for). The columns
/// after those count guests, which `user` contains already.
fn system_time() -> u64 {
    let text = read(Path::new("/proc/stat"));
    let first = text.lines().next().unwrap_or_default();
    let columns = first.split_ascii_whitespace().skip(1).take(7);
    let ticks: u64 = columns.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks.saturating_mul(10_000_000)
}

/// CPUs online, from a list such as `0-3,8`.
fn online() -> u32 {
    let text = read(Path::new("/sys/devices/system/cpu/online"));
    let count = text.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u32>(), last.parse::<u32>()) {
            (Ok(first), Ok(last)) if last >= first => last - first + 1,
            _ => 0,
        }
    });
    count.sum()
}

/// Memory of this kernel, bytes.
fn total_memory() -> u64 {
    let text = read(Path::new("/proc/meminfo"));
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    kilobytes.map_or(u64::MAX, |kilobytes: u64| kilobytes.saturating_mul(1024))
}

/// `major:minor Operation value` lines, in two files.
fn block_io_v1(path: &Path) -> Vec<BlockIo> {
    let mut devices: BTreeMap<(u64, u64), BlockIo> = BTreeMap::new();
    let recursive = |name: &str| {
        let text = read(&path.join(format!("{name}_recursive")));
        if text.is_empty() {
            read(&path.join(name))
        } else {
            text
        }
    };
    let files = [
        (recursive("blkio.throttle.io_service_bytes"), true),
        (recursive("blkio.throttle.io_serviced"), false),
    ];
    for (text, bytes) in files {
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(device), Some(operation), Some(value)) = (
                words.next().and_then(device_numbers),
                words.next(),
                words.next(),
            ) else {
                continue;
            };
            let Ok(value) = value.parse() else { continue };
            let entry = devices.entry(device).or_insert_with(|| new_device(device));
            match (operation, bytes) {
                ("Read", true) => entry.read_bytes = value,
                ("Write", true) => entry.write_bytes = value,
                ("Read", false) => entry.reads = value,
                ("Write", false) => entry.writes = value,
                _ => {}
            }
        }
    }
    devices.into_values().collect()
}

/// `major:minor rbytes=… wbytes=… rios=… wios=…` lines.
fn block_io_v2(path: &Path) -> Vec<BlockIo> {
    let text = read(&path.join("io.stat"));
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let mut entry = new_device(device_numbers(words.next()?)?);
        for word in words {
            let (name, value) = word.split_once('=')?;
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => entry.read_bytes = value,
                "wbytes" => entry.write_bytes = value,
                "rios" => entry.reads = value,
                "wios" => entry.writes = value,
                _ => {}
            }
        }
        Some(entry)
    });
    lines.collect()
}

fn device_numbers(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn new_device((major, minor): (u64, u64)) -> BlockIo {
    BlockIo {
        major,
        minor,
        ..BlockIo::default()
    }
}
