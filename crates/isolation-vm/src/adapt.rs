//! What the host's specification says that cannot hold in a guest.
//!
//! Numbers of the host (CPUs, devices), its namespaces and its files mean nothing there.
//! What can be left out without the container noticing is; the rest is refused by name.

use std::path::PathBuf;

use bulkhead_isolation::{ErrorKind, IsolationError, KERNEL_DEVICES};
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespaceType, LinuxResources, Process,
    Spec,
};

/// The specification for the guest, whose payload may use `payload` bytes of memory.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for what a VM cannot do, by name.
pub fn adapt(mut spec: Spec, payload: u64) -> Result<Spec, IsolationError> {
    if let Some(process) = spec.process_mut() {
        adapt_process(process);
    }
    if spec
        .hooks()
        .as_ref()
        .is_some_and(|hooks| *hooks != Default::default())
    {
        return Err(refused("hooks of the specification, which run on the host"));
    }
    if let Some(linux) = spec.linux_mut() {
        if let Some(namespaces) = linux.namespaces_mut() {
            // The guest has no network but the container's, which is brought to it.
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
            if let Some(joined) = namespaces.iter().find(|ns| ns.path().is_some()) {
                let kind = joined.typ();
                return Err(refused(&format!("joining a {kind} namespace of the host")));
            }
        }
        let strange = |device: &&LinuxDevice| !is_of_the_kernel(device);
        if let Some(device) = linux.devices().iter().flatten().find(strange) {
            let path = device.path().display().to_string();
            return Err(refused(&format!("the host's device {path}")));
        }
        linux.set_mount_label(None);
        linux.set_intel_rdt(None);
        let mut resources = linux.resources().clone().unwrap_or_default();
        adapt_resources(&mut resources, payload)?;
        linux.set_resources(Some(resources));
    }
    // The agent knows where the root is.
    if let Some(root) = spec.root_mut() {
        root.set_path(PathBuf::from("rootfs"));
    }
    Ok(spec)
}

/// Whether the guest's kernel has this device by itself.
fn is_of_the_kernel(device: &LinuxDevice) -> bool {
    device.typ() == LinuxDeviceType::C
        && KERNEL_DEVICES.iter().any(|(_, major, minor)| {
            (device.major(), device.minor()) == (i64::from(*major), i64::from(*minor))
        })
}

/// The network namespace that the container is to be in; `None` for a fresh, empty one.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for the host's, in which a VM cannot be.
pub fn network_namespace(spec: &Spec) -> Result<Option<PathBuf>, IsolationError> {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)
        .map(|namespace| namespace.path().clone())
        .ok_or_else(|| refused("the host's network"))
}

/// A process, init or exec, without the host's security modules: the guest has none.
pub fn adapt_process(process: &mut Process) {
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
}

fn adapt_resources(resources: &mut LinuxResources, payload: u64) -> Result<(), IsolationError> {
    // Swap, swappiness and the v1-only knobs have no counterpart: a guest has no swap.
    let reservation = resources
        .memory()
        .as_ref()
        .and_then(|memory| memory.reservation());
    let limit = i64::try_from(payload).unwrap_or(i64::MAX);
    let mut memory = LinuxMemoryBuilder::default().limit(limit);
    if let Some(reservation) = reservation {
        memory = memory.reservation(reservation);
    }
    let memory = memory
        .build()
        .map_err(|error| IsolationError::other("cannot write the guest's memory limit", error))?;
    resources.set_memory(Some(memory));
    if let Some(mut cpu) = resources.cpu().clone() {
        // The worker is kept to the host's CPUs; the guest has numbers of its own.
        cpu.set_cpus(None);
        cpu.set_mems(None);
        // Unified groups have no real-time budget.
        cpu.set_realtime_period(None);
        cpu.set_realtime_runtime(None);
        resources.set_cpu(Some(cpu));
    }
    if let Some(mut block_io) = resources.block_io().clone() {
        let by_device = block_io.weight_device().iter().flatten().count()
            + block_io.throttle_read_bps_device().iter().flatten().count()
            + block_io
                .throttle_write_bps_device()
                .iter()
                .flatten()
                .count()
            + block_io
                .throttle_read_iops_device()
                .iter()
                .flatten()
                .count()
            + block_io
                .throttle_write_iops_device()
                .iter()
                .flatten()
                .count();
        if by_device > 0 {
            return Err(refused("limits for a block device of the host"));
        }
        block_io.set_leaf_weight(None);
        resources.set_block_io(Some(block_io));
    }
    resources.set_network(None);
    resources.set_rdma(None);
    resources.set_hugepage_limits(None);
    resources.set_unified(None);
    Ok(())
}

fn refused(what: &str) -> IsolationError {
    IsolationError::new(
        ErrorKind::InvalidArgument,
        format!(
            "{what} cannot be used with hyperv isolation: the container has its own kernel; use \
             --isolation=process for it"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(text: &str) -> Result<Spec, IsolationError> {
        adapt(serde_json::from_str(text).unwrap(), 1 << 29)
    }

    #[test]
    fn the_network_is_the_guests_own() {
        let spec = adapted(
            r#"{"ociVersion":"1.0.2","linux":{"cgroupsPath":"/bulkhead/x","namespaces":[
                {"type":"pid"},{"type":"network","path":"/run/netns/x"}]}}"#,
        )
        .unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let namespaces = linux.namespaces().as_ref().unwrap();
        assert_eq!(namespaces.len(), 1);
        assert_eq!(namespaces[0].typ(), LinuxNamespaceType::Pid);
        assert_eq!(
            linux.cgroups_path().as_deref(),
            Some(std::path::Path::new("/bulkhead/x"))
        );
    }

    #[test]
    fn the_limit_is_always_there_and_swap_never() {
        for resources in ["{}", r#"{"memory":{"limit":1,"swap":2,"swappiness":3}}"#] {
            let text = format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{resources}}}}}"#);
            let spec = adapted(&text).unwrap();
            let linux = spec.linux().as_ref().unwrap();
            let memory = linux.resources().as_ref().unwrap().memory().unwrap();
            assert_eq!(memory.limit(), Some(1 << 29));
            assert_eq!(memory.swap(), None);
            assert_eq!(memory.swappiness(), None);
        }
    }

    #[test]
    fn what_is_the_hosts_is_refused() {
        for part in [
            r#""linux":{"namespaces":[{"type":"ipc","path":"/proc/1/ns/ipc"}]}"#,
            r#""linux":{"devices":[{"path":"/dev/kvm","type":"c","major":10,"minor":232}]}"#,
            r#""linux":{"resources":{"blockIO":{"throttleReadBpsDevice":
                [{"major":8,"minor":0,"rate":1}]}}}"#,
        ] {
            let text = format!(r#"{{"ociVersion":"1.0.2",{part}}}"#);
            let error = adapted(&text).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{part}");
            assert!(error.message.contains("own kernel"), "{error}");
        }
        let tmpfs = r#"{"ociVersion":"1.0.2","mounts":[
            {"destination":"/t","source":"tmpfs","type":"tmpfs","options":["nosuid"]}]}"#;
        adapted(tmpfs).unwrap();
    }
}
