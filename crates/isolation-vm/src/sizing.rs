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

/// The least that every machine can be enlarged to, and by how much a larger one.
///
/// All of it is there when the kernel starts, which makes a page descriptor for each page, a
/// 64th, and the balloon then takes out what is not asked for yet: 0.3 s of a CPU a GiB where
/// CPUs are emulated (docs/adr/0043-memory-of-a-running-vm.md).
const LEAST_MAXIMUM: u64 = 1 << 30;
const GROWTH: u64 = 2;

/// What a machine takes beyond its payload's memory, bytes.
pub fn overhead(payload: u64) -> u64 {
    FIXED_OVERHEAD + payload / PROPORTIONAL_OVERHEAD
}

/// A machine's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// The limit of the payload's group in the guest at its start, bytes.
    pub payload: u64,
    /// What that can be raised to while it runs, bytes.
    pub maximum: u64,
    /// The machine's memory with the greatest payload, bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// The machine's CPUs.
    pub vcpus: u32,
    /// The CPUs of the host that it is kept to; all of them without.
    pub host_cpus: Option<Vec<u32>>,
}

impl Size {
    /// What the guest gives up of its memory while its payload has this limit, bytes.
    pub fn balloon(&self, payload: u64) -> u64 {
        self.maximum.saturating_sub(payload)
    }

    /// What the payload can be limited to in this machine for such a request of a client, -1
    /// being none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], with what would be possible.
    pub fn limit(&self, asked: i64) -> Result<u64, IsolationError> {
        match u64::try_from(asked) {
            Err(_) => Ok(self.maximum),
            Ok(asked) if asked < MIN_PAYLOAD => Err(too_small(asked)),
            Ok(asked) if asked > self.maximum => Err(invalid(format!(
                "this VM was made for at most {} MiB of memory, and {} MiB are asked for: create \
                 the container with a higher limit, or start it anew after an update while it \
                 is stopped",
                self.maximum / MIB,
                asked / MIB
            ))),
            Ok(asked) => Ok(asked),
        }
    }
}

/// What a host has.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// CPUs that may be used.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory: u64,
}

impl Host {
    /// This one.
    pub fn here() -> Self {
        let cpus = std::thread::available_parallelism().ok();
        let info = rustix::system::sysinfo();
        Self {
            cpus: cpus
                .and_then(|cpus| u32::try_from(cpus.get()).ok())
                .unwrap_or(1),
            memory: info.totalram.saturating_mul(u64::from(info.mem_unit)),
        }
    }
}

/// The size that a container's limits, or the defaults, ask for on such a host.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a limit that no machine can have.
pub fn size(spec: &Spec, settings: &VmSettings, host: Host) -> Result<Size, IsolationError> {
    let host_cpus = host.cpus;
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
        return Err(too_small(payload));
    }
    if payload > MAX_PAYLOAD {
        return Err(invalid(format!(
            "a memory limit of {} GiB is more than a VM can have",
            payload >> 30
        )));
    }
    let maximum = (payload * GROWTH)
        .max(LEAST_MAXIMUM)
        .min(host.memory)
        .max(payload);
    let memory = (maximum + overhead(maximum)).next_multiple_of(2 * MIB);
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
        maximum,
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

fn too_small(payload: u64) -> IsolationError {
    invalid(format!(
        "a memory limit of {} MiB is too small for a container in a VM: the least is {} MiB \
         (docker run -m {}m)",
        payload / MIB,
        MIN_PAYLOAD / MIB,
        MIN_PAYLOAD / MIB
    ))
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

    const HOST: Host = Host {
        cpus: 4,
        memory: 16 << 30,
    };

    fn sized(resources: &str) -> Size {
        size(&spec(resources), &VmSettings::default(), HOST).unwrap()
    }

    #[test]
    fn memory_is_the_limit_and_the_overhead() {
        let default = sized("{}");
        assert_eq!(default.payload, 512 * MIB);
        assert_eq!(default.maximum, 1 << 30);
        assert_eq!(default.memory, 1204 * MIB);
        assert_eq!(default.balloon(default.payload), 512 * MIB);
        let limited = sized(r#"{"memory":{"limit":1073741824}}"#);
        assert_eq!((limited.payload, limited.maximum), (1 << 30, 2 << 30));
        assert!(limited.memory > limited.maximum);
        // A host's memory is the limit, but for what is asked for.
        let large = sized(r#"{"memory":{"limit":10737418240}}"#);
        assert_eq!((large.payload, large.maximum), (10 << 30, 16 << 30));
        let larger = sized(r#"{"memory":{"limit":21474836480}}"#);
        assert_eq!((larger.payload, larger.maximum), (20 << 30, 20 << 30));
        // -1 is Docker's "no limit".
        assert_eq!(sized(r#"{"memory":{"limit":-1}}"#).payload, 512 * MIB);
    }

    #[test]
    fn too_small_says_what_to_do() {
        let spec = spec(r#"{"memory":{"limit":6291456}}"#);
        let error = size(&spec, &VmSettings::default(), HOST).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.contains("-m 16m"), "{error}");
    }

    #[test]
    fn a_running_machine_has_a_least_and_a_greatest_size() {
        let size = sized(r#"{"memory":{"limit":67108864}}"#);
        for (asked, limit) in [(32 << 20, 32 << 20), (1 << 30, 1 << 30), (-1, 1 << 30)] {
            assert_eq!(size.limit(asked).unwrap(), limit);
        }
        for (asked, words) in [(6 << 20, "-m 16m"), (1025 << 20, "at most 1024 MiB")] {
            let error = size.limit(asked).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.message.contains(words), "{error}");
        }
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
