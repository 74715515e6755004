//! How much memory and how many CPUs a machine gets.

use bulkhead_isolation::{ErrorKind, IsolationError, VmSettings, parse_cpu_list};
use oci_spec::runtime::Spec;

const MIB: u64 = 1 << 20;

// Measured as the machine's memory less the guest's MemAvailable with an idle payload
// (tests/vm/figures.rs; Debian's 6.12 cloud kernel, an agent of 11 MiB):
//
//   payload   16   64  512  2048  8192 MiB
//   taken     91   94  159   222   485 MiB
//
// A part of what MemAvailable leaves out is a reserve that a payload may still use, so that
// with these two constants it reaches its own limit first (tests/vm/limits.rs). The host
// pays only for memory that the guest has touched.

/// What the kernel, its tables, the initramfs and the agent take from a machine of any size.
const FIXED_OVERHEAD: u64 = 128 * MIB;

/// What the kernel takes in proportion: a 64th for its page descriptors, the rest for hash
/// tables and for what it keeps free.
const PROPORTIONAL_OVERHEAD: u64 = 20;

/// The least memory for a payload. Docker's own minimum is 6 MiB; below this one, the start
/// of a process alone runs into the limit.
const MIN_PAYLOAD: u64 = 16 * MIB;

/// The most that an engine is asked for; beyond it a mistake is likelier than a machine.
const MAX_PAYLOAD: u64 = 8 << 40;

/// What a machine takes beyond its payload's memory, bytes.
pub fn overhead(payload: u64) -> u64 {
    FIXED_OVERHEAD + payload / PROPORTIONAL_OVERHEAD
}

/// A machine's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// The limit of the payload's group in the guest, bytes.
    pub payload: u64,
    /// The machine's memory, bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// The machine's CPUs.
    pub vcpus: u32,
    /// The CPUs of the host that it is kept to; all of them without.
    pub host_cpus: Option<Vec<u32>>,
}

/// The size that a container's limits, or the defaults, ask for on a host with so many CPUs.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a limit that no machine can have.
pub fn size(spec: &Spec, settings: &VmSettings, host_cpus: u32) -> Result<Size, IsolationError> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let limit = resources
        .and_then(|resources| resources.memory().as_ref())
        .and_then(|memory| memory.limit())
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0);
    let payload = limit.unwrap_or(settings.default_memory);
    if payload < MIN_PAYLOAD {
        return Err(invalid(format!(
            "a memory limit of {} MiB is too small for a container in a VM: the least is {} MiB \
             (docker run -m {}m)",
            payload / MIB,
            MIN_PAYLOAD / MIB,
            MIN_PAYLOAD / MIB
        )));
    }
    if payload > MAX_PAYLOAD {
        return Err(invalid(format!(
            "a memory limit of {} GiB is more than a VM can have",
            payload >> 30
        )));
    }
    let memory = (payload + overhead(payload)).next_multiple_of(2 * MIB);
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let quota = cpu
        .and_then(|cpu| cpu.quota())
        .and_then(|quota| u64::try_from(quota).ok())
        .filter(|quota| *quota > 0);
    let wanted = match quota {
        Some(quota) => {
            // The kernel's default period.
            let period = cpu.and_then(|cpu| cpu.period()).unwrap_or(0);
            let period = if period == 0 { 100_000 } else { period };
            u32::try_from(quota.div_ceil(period)).unwrap_or(u32::MAX)
        }
        None => settings.default_cpus,
    };
    let chosen = cpu
        .and_then(|cpu| cpu.cpus().as_deref())
        .map(host_cpu_list)
        .transpose()?
        .flatten();
    let available = match &chosen {
        Some(cpus) => u32::try_from(cpus.len()).unwrap_or(u32::MAX).min(host_cpus),
        None => host_cpus,
    };
    Ok(Size {
        payload,
        memory,
        vcpus: wanted.clamp(1, available.max(1)),
        host_cpus: chosen,
    })
}

/// The CPUs of the host that a list names; `None` for an empty one.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for what is no list.
pub fn host_cpu_list(list: &str) -> Result<Option<Vec<u32>>, IsolationError> {
    match parse_cpu_list(list) {
        Some(cpus) => Ok(Some(cpus).filter(|cpus| !cpus.is_empty())),
        None => Err(invalid(format!("{list} is no list of CPUs"))),
    }
}

fn invalid(message: String) -> IsolationError {
    IsolationError::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(resources: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{resources}}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn sized(resources: &str) -> Size {
        size(&spec(resources), &VmSettings::default(), 4).unwrap()
    }

    #[test]
    fn memory_is_the_limit_and_the_overhead() {
        let default = sized("{}");
        assert_eq!(default.payload, 512 * MIB);
        assert_eq!(default.memory, 666 * MIB);
        let limited = sized(r#"{"memory":{"limit":1073741824}}"#);
        assert_eq!(limited.payload, 1 << 30);
        assert!(limited.memory > limited.payload);
        // -1 is Docker's "no limit".
        assert_eq!(sized(r#"{"memory":{"limit":-1}}"#).payload, 512 * MIB);
    }

    #[test]
    fn too_small_says_what_to_do() {
        let spec = spec(r#"{"memory":{"limit":6291456}}"#);
        let error = size(&spec, &VmSettings::default(), 4).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.contains("-m 16m"), "{error}");
    }

    #[test]
    fn cpus_follow_the_quota_and_the_host() {
        assert_eq!(sized("{}").vcpus, 2);
        assert_eq!(sized(r#"{"cpu":{"quota":50000,"period":100000}}"#).vcpus, 1);
        assert_eq!(
            sized(r#"{"cpu":{"quota":250000,"period":100000}}"#).vcpus,
            3
        );
        assert_eq!(sized(r#"{"cpu":{"quota":250000}}"#).vcpus, 3);
        assert_eq!(
            sized(r#"{"cpu":{"quota":9000000,"period":100000}}"#).vcpus,
            4
        );
        assert_eq!(sized(r#"{"cpu":{"quota":-1,"period":100000}}"#).vcpus, 2);
        // So many as it may run on, at most.
        let kept = sized(r#"{"cpu":{"cpus":"1"}}"#);
        assert_eq!((kept.vcpus, kept.host_cpus), (1, Some(vec![1])));
        assert_eq!(sized(r#"{"cpu":{"cpus":""}}"#).host_cpus, None);
    }
}
