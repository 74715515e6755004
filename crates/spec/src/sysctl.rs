//! Kernel parameters of a container.
//!
//! With process isolation only those that belong to a namespace of the container may be set.
//! With hyperv the guest's agent applies them to the guest's kernel, so any may be.

use std::collections::HashMap;

use bollard_stubs::models::HostConfig;

use crate::namespaces::is_host;
use crate::{Invalid, IsolationKind, SpecInput};

/// Parameters of the IPC namespace (`ipc_namespaces(7)`), beside `fs.mqueue.*`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// What Docker sets in every network namespace of its own: any group may open ICMP sockets,
/// and every port may be bound without a capability.
const NETWORK_DEFAULTS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    (PING_GROUPS, "0 2147483647"),
];

const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// Refuses parameters that would change the host.
pub(crate) fn check(host_config: &HostConfig, isolation: IsolationKind) -> Result<(), Invalid> {
    for name in host_config.sysctls.iter().flatten().map(|(name, _)| name) {
        let well_formed = !name.is_empty()
            && !name.split(['.', '/']).any(str::is_empty)
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte));
        let allowed = match isolation {
            IsolationKind::Hyperv => name != "kernel.hostname",
            IsolationKind::Process => in_own_namespace(name, host_config),
        };
        if !well_formed || !allowed {
            return Err(Invalid::Sysctl(name.clone()));
        }
    }
    Ok(())
}

fn in_own_namespace(name: &str, host_config: &HostConfig) -> bool {
    let name = name.replace('/', ".");
    if IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
        return !is_host(host_config.ipc_mode.as_deref());
    }
    if name.starts_with("net.") {
        return !is_host(host_config.network_mode.as_deref());
    }
    name == "kernel.domainname" && !is_host(host_config.uts_mode.as_deref())
}

/// The parameters to set.
pub(crate) fn of(input: &SpecInput<'_>) -> HashMap<String, String> {
    let mut out = HashMap::new();
    if !is_host(input.host_config.network_mode.as_deref()) {
        for (name, value) in NETWORK_DEFAULTS {
            out.insert(name.to_owned(), value.to_owned());
        }
        // Only those that there are.
        if let Some(mappings) = input.mappings {
            let last = mappings
                .gids
                .iter()
                .map(|range| range.container + (range.size - 1));
            if let Some(last) = last.max() {
                out.insert(PING_GROUPS.to_owned(), format!("0 {last}"));
            }
        }
    }
    for (name, value) in input.host_config.sysctls.iter().flatten() {
        out.insert(name.clone(), value.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, host_config: HostConfig, isolation: IsolationKind) -> bool {
        let host_config = HostConfig {
            sysctls: Some(HashMap::from([(name.to_owned(), "1".to_owned())])),
            ..host_config
        };
        check(&host_config, isolation).is_ok()
    }

    #[test]
    fn only_parameters_of_own_namespaces_with_process_isolation() {
        let process = |name| with(name, HostConfig::default(), IsolationKind::Process);
        assert!(process("net.core.somaxconn") && process("kernel.shmmax"));
        assert!(process("fs.mqueue.msg_max") && process("kernel.domainname"));
        assert!(!process("kernel.panic") && !process("vm.swappiness"));
        assert!(!process("kernel.hostname") && !process("net..x") && !process(""));
    }

    #[test]
    fn none_of_a_shared_namespace() {
        let host = HostConfig {
            network_mode: Some("host".to_owned()),
            ..HostConfig::default()
        };
        assert!(!with("net.core.somaxconn", host, IsolationKind::Process));
    }

    #[test]
    fn a_vm_has_its_own_kernel_to_tune() {
        let vm = |name| with(name, HostConfig::default(), IsolationKind::Hyperv);
        assert!(vm("vm.swappiness") && vm("kernel.panic"));
        assert!(!vm("kernel/../x y"));
    }
}
