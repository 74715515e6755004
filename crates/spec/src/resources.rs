//! Limits: what Docker accepts, and what the runtime is told.

use bollard_stubs::models::{HostConfig, ThrottleDevice};
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, LinuxThrottleDevice, LinuxThrottleDeviceBuilder,
    LinuxWeightDeviceBuilder,
};

use bulkhead_isolation::parse_cpu_list as parse_list;

use crate::devices::Devices;
use crate::{HostFacts, Invalid, IsolationKind, SpecError, SpecInput};

/// Smallest memory limit, bytes: Docker's.
pub const MINIMUM_MEMORY: i64 = 6 << 20;

/// Smallest memory limit with hyperv isolation, bytes. The guest's kernel and agent are counted
/// beside it; this is for the payload and the page cache of its files.
pub const MINIMUM_VM_MEMORY: i64 = 16 << 20;

/// Period of CPU time, microseconds, that `--cpus` is translated with: Docker's and the
/// kernel's default.
const PERIOD: u64 = 100_000;

/// Smallest and largest period and smallest quota of CPU time, microseconds
/// (`kernel/sched/core.c`, `min_cfs_quota_period`, `max_cfs_quota_period`).
const MIN_PERIOD: i64 = 1_000;
const MAX_PERIOD: i64 = 1_000_000;

/// Refuses limits out of range; the sentences are Docker's.
///
/// # Errors
/// [`Invalid`], for the first that is.
pub fn check(
    host_config: &HostConfig,
    isolation: IsolationKind,
    facts: &HostFacts,
) -> Result<(), Invalid> {
    check_memory(host_config, isolation)?;
    check_cpu(host_config, facts)?;
    if let Some(adj) = host_config
        .oom_score_adj
        .filter(|adj| !(-1000..=1000).contains(adj))
    {
        return Err(crate::process::oom_score_adj_range(adj));
    }
    if host_config
        .blkio_weight
        .is_some_and(|weight| weight != 0 && !(10..=1000).contains(&weight))
    {
        return Err(limit("Range of blkio weight is from 10 to 1000"));
    }
    if host_config.shm_size.is_some_and(|size| size < 0) {
        return Err(limit("SHM size can not be less than 0"));
    }
    let windows_only = [
        (host_config.io_maximum_bandwidth, "Maximum IO Bandwidth"),
        (host_config.io_maximum_iops, "Maximum IO IOps"),
    ];
    for (value, name) in windows_only {
        if value.unwrap_or(0) != 0 {
            return Err(Invalid::Limit(format!(
                "Invalid QoS settings: linux does not support {name}"
            )));
        }
    }
    Ok(())
}

fn limit(sentence: &str) -> Invalid {
    Invalid::Limit(sentence.to_owned())
}

fn check_memory(host_config: &HostConfig, isolation: IsolationKind) -> Result<(), Invalid> {
    let memory = host_config.memory.unwrap_or(0);
    let swap = host_config.memory_swap.unwrap_or(0);
    let reservation = host_config.memory_reservation.unwrap_or(0);
    if memory != 0 && memory < MINIMUM_MEMORY {
        return Err(limit("Minimum memory limit allowed is 6MB"));
    }
    if isolation == IsolationKind::Hyperv && memory != 0 && memory < MINIMUM_VM_MEMORY {
        return Err(limit(
            "Minimum memory limit allowed with hyperv isolation is 16MB: raise it with --memory \
             (the container's own kernel is counted beside it)",
        ));
    }
    if memory > 0 && swap > 0 && swap < memory {
        return Err(limit(
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ));
    }
    if memory == 0 && swap > 0 {
        return Err(limit(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ));
    }
    if let Some(swappiness) = host_config
        .memory_swappiness
        .filter(|swappiness| !(-1..=100).contains(swappiness))
    {
        return Err(Invalid::Limit(format!(
            "Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        )));
    }
    if reservation != 0 && reservation < MINIMUM_MEMORY {
        return Err(limit("Minimum memory reservation allowed is 6MB"));
    }
    if memory > 0 && reservation > 0 && memory < reservation {
        return Err(limit(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ));
    }
    Ok(())
}

fn check_cpu(host_config: &HostConfig, facts: &HostFacts) -> Result<(), Invalid> {
    let nano = host_config.nano_cpus.unwrap_or(0);
    let period = host_config.cpu_period.unwrap_or(0);
    let quota = host_config.cpu_quota.unwrap_or(0);
    if nano != 0 && period != 0 {
        return Err(Invalid::Conflict(
            "Nano CPUs and CPU Period cannot both be set".to_owned(),
        ));
    }
    if nano != 0 && quota != 0 {
        return Err(Invalid::Conflict(
            "Nano CPUs and CPU Quota cannot both be set".to_owned(),
        ));
    }
    let cpus = facts.cpus;
    // The sentence has another least than the check, as Docker's does.
    if !(0..=i64::from(cpus) * 1_000_000_000).contains(&nano) {
        return Err(Invalid::Limit(format!(
            "Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )));
    }
    if period != 0 && !(MIN_PERIOD..=MAX_PERIOD).contains(&period) {
        return Err(limit(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ));
    }
    if quota > 0 && quota < MIN_PERIOD {
        return Err(limit("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
    }
    if host_config.cpu_shares.is_some_and(|shares| shares < 0) {
        return Err(limit(
            "invalid CPU shares: value must be a positive integer (CPU shares can not be less than 0)",
        ));
    }
    let realtime = host_config.cpu_realtime_runtime.unwrap_or(0) != 0
        || host_config.cpu_realtime_period.unwrap_or(0) != 0;
    if realtime {
        return Err(limit(
            "Your kernel does not support CPU real-time scheduler",
        ));
    }
    let lists = [
        ("cpus", "CPUs", &host_config.cpuset_cpus, &facts.cpu_list),
        (
            "mems",
            "memory nodes",
            &host_config.cpuset_mems,
            &facts.node_list,
        ),
    ];
    for (name, plural, wanted, available) in lists {
        let wanted = wanted.as_deref().unwrap_or_default();
        let Some(list) = parse_list(wanted) else {
            return Err(Invalid::Limit(format!(
                "Invalid value {wanted} for cpuset {name}"
            )));
        };
        let online = parse_list(available).unwrap_or_default();
        if list.iter().any(|number| !online.contains(number)) {
            return Err(Invalid::Limit(format!(
                "Requested {plural} are not available - requested {wanted}, available: {available}"
            )));
        }
    }
    Ok(())
}

/// What the runtime is told.
pub(crate) fn of(input: &SpecInput<'_>, devices: &Devices) -> Result<LinuxResources, SpecError> {
    let host_config = input.host_config;
    let positive = |value: Option<i64>| value.filter(|value| *value > 0);
    let non_zero = |value: Option<i64>| value.filter(|value| *value != 0);
    let unsigned = |value: Option<i64>| positive(value).and_then(|v| u64::try_from(v).ok());

    let mut memory = LinuxMemoryBuilder::default();
    if let Some(bytes) = positive(host_config.memory) {
        memory = memory.limit(bytes);
    }
    if let Some(bytes) = positive(host_config.memory_reservation) {
        memory = memory.reservation(bytes);
    }
    if let Some(bytes) = non_zero(host_config.memory_swap) {
        memory = memory.swap(bytes);
    }
    if let Some(swappiness) = host_config
        .memory_swappiness
        .and_then(|value| u64::try_from(value).ok())
    {
        memory = memory.swappiness(swappiness);
    }
    if host_config.oom_kill_disable == Some(true) {
        memory = memory.disable_oom_killer(true);
    }

    let mut cpu = LinuxCpuBuilder::default();
    if let Some(shares) = unsigned(host_config.cpu_shares) {
        cpu = cpu.shares(shares);
    }
    if let Some(nano) = positive(host_config.nano_cpus) {
        cpu = cpu.period(PERIOD);
        // What is less than a microsecond is no quota, as with runc.
        if let Some(quota) = positive(Some(quota_of(nano))) {
            cpu = cpu.quota(quota);
        }
    }
    if let Some(period) = unsigned(host_config.cpu_period) {
        cpu = cpu.period(period);
    }
    if let Some(quota) = non_zero(host_config.cpu_quota) {
        cpu = cpu.quota(quota);
    }
    if let Some(list) = host_config.cpuset_cpus.as_deref().filter(|l| !l.is_empty()) {
        cpu = cpu.cpus(list);
    }
    if let Some(list) = host_config.cpuset_mems.as_deref().filter(|l| !l.is_empty()) {
        cpu = cpu.mems(list);
    }

    let mut resources = LinuxResourcesBuilder::default()
        .devices(devices.rules.clone())
        .memory(memory.build()?)
        .cpu(cpu.build()?)
        .block_io(block_io(host_config)?);
    if let Some(pids) = positive(host_config.pids_limit) {
        resources = resources.pids(LinuxPidsBuilder::default().limit(pids).build()?);
    }
    Ok(resources.build()?)
}

/// CPU time per period of [`PERIOD`] for so many billionths of a CPU.
fn quota_of(nano_cpus: i64) -> i64 {
    // 10^9 nano CPUs are one period of 10^5 microseconds.
    nano_cpus / 10_000
}

fn block_io(host_config: &HostConfig) -> Result<oci_spec::runtime::LinuxBlockIo, SpecError> {
    let mut out = LinuxBlockIoBuilder::default();
    if let Some(weight) = host_config.blkio_weight.filter(|weight| *weight != 0) {
        out = out.weight(weight);
    }
    let mut weights = Vec::new();
    for device in host_config.blkio_weight_device.iter().flatten() {
        let (major, minor) = numbers(device.path.as_deref().unwrap_or_default())?;
        let weight = device.weight.unwrap_or(0);
        weights.push(
            LinuxWeightDeviceBuilder::default()
                .major(major)
                .minor(minor)
                .weight(u16::try_from(weight).unwrap_or(u16::MAX))
                .build()?,
        );
    }
    if !weights.is_empty() {
        out = out.weight_device(weights);
    }
    if let Some(list) = throttles(host_config.blkio_device_read_bps.as_deref())? {
        out = out.throttle_read_bps_device(list);
    }
    if let Some(list) = throttles(host_config.blkio_device_write_bps.as_deref())? {
        out = out.throttle_write_bps_device(list);
    }
    if let Some(list) = throttles(host_config.blkio_device_read_iops.as_deref())? {
        out = out.throttle_read_iops_device(list);
    }
    if let Some(list) = throttles(host_config.blkio_device_write_iops.as_deref())? {
        out = out.throttle_write_iops_device(list);
    }
    Ok(out.build()?)
}

fn throttles(
    devices: Option<&[ThrottleDevice]>,
) -> Result<Option<Vec<LinuxThrottleDevice>>, SpecError> {
    let mut out = Vec::new();
    for device in devices.unwrap_or_default() {
        let (major, minor) = numbers(device.path.as_deref().unwrap_or_default())?;
        let rate = u64::try_from(device.rate.unwrap_or(0))
            .map_err(|_| Invalid::Limit("a rate of block I/O can not be less than 0".to_owned()))?;
        out.push(
            LinuxThrottleDeviceBuilder::default()
                .major(major)
                .minor(minor)
                .rate(rate)
                .build()?,
        );
    }
    Ok((!out.is_empty()).then_some(out))
}

/// The numbers of a block device of the host.
fn numbers(path: &str) -> Result<(i64, i64), SpecError> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let metadata = std::fs::metadata(path).map_err(|source| SpecError::Device {
        path: path.into(),
        source,
    })?;
    if !metadata.file_type().is_block_device() {
        return Err(Invalid::Device(format!("{path} is not a block device")).into());
    }
    Ok((
        i64::from(rustix::fs::major(metadata.rdev())),
        i64::from(rustix::fs::minor(metadata.rdev())),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_and_a_half() {
        assert_eq!(quota_of(1_500_000_000), 150_000);
        assert_eq!(quota_of(10_000_000), 1_000);
    }
}
