//! Which namespaces a container gets.

use bollard_stubs::models::HostConfigCgroupnsModeEnum;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

use crate::{IsolationKind, SpecError, SpecInput};

/// Whether a mode asks for the host's namespace.
pub(crate) fn is_host(mode: Option<&str>) -> bool {
    mode == Some("host")
}

/// Whether the container gets the host's IPC or UTS namespace. In a VM it is alone with its
/// kernel: a namespace of its own is all that there is.
pub(crate) fn is_of_host(isolation: IsolationKind, mode: Option<&str>) -> bool {
    isolation == IsolationKind::Process && is_host(mode)
}

/// The container whose namespace a mode asks for.
pub(crate) fn of_container(mode: Option<&str>) -> Option<&str> {
    mode?.strip_prefix("container:")
}

/// Whether the container has a cgroup namespace of its own.
pub(crate) fn has_cgroup_namespace(input: &SpecInput<'_>) -> bool {
    match input.host_config.cgroupns_mode {
        Some(HostConfigCgroupnsModeEnum::PRIVATE) => true,
        Some(HostConfigCgroupnsModeEnum::HOST) => false,
        Some(HostConfigCgroupnsModeEnum::EMPTY) | None => {
            // The guest has the unified hierarchy.
            input.isolation == IsolationKind::Hyperv || input.facts.cgroup_version == 2
        }
    }
}

/// The namespaces, in the order in which a runtime lists them.
pub(crate) fn of(input: &SpecInput<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    let host = input.host_config;
    let mut types = vec![LinuxNamespaceType::Mount];
    if !is_of_host(input.isolation, host.uts_mode.as_deref()) {
        types.push(LinuxNamespaceType::Uts);
    }
    // In a VM: the one in which the agent is, with the processes of the machine.
    if !is_host(host.pid_mode.as_deref()) {
        types.push(LinuxNamespaceType::Pid);
    }
    if !is_of_host(input.isolation, host.ipc_mode.as_deref()) {
        types.push(LinuxNamespaceType::Ipc);
    }
    if has_cgroup_namespace(input) {
        types.push(LinuxNamespaceType::Cgroup);
    }
    let mut out = Vec::with_capacity(types.len() + 1);
    for typ in types {
        let joined = match typ {
            LinuxNamespaceType::Pid => input.pid_namespace,
            LinuxNamespaceType::Ipc => input.ipc_namespace,
            _ => None,
        };
        let mut namespace = LinuxNamespaceBuilder::default().typ(typ);
        if let Some(path) = joined {
            namespace = namespace.path(path);
        }
        out.push(namespace.build()?);
    }
    // A machine takes over the interfaces in it.
    if !is_host(host.network_mode.as_deref()) {
        let mut network = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network);
        if let Some(path) = input.network_namespace {
            network = network.path(path);
        }
        out.push(network.build()?);
    }
    Ok(out)
}
