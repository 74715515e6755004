//! What is refused, what is only warned about, and what a request left open.

use bollard_stubs::models::{
    ContainerConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigIsolationEnum,
    RestartPolicyNameEnum,
};

use crate::mount_points;
use crate::namespaces::{is_host, of_container};
use crate::{
    HostFacts, Invalid, IsolationKind, SecurityOptions, SpecError, capabilities, devices, mounts,
    process, resources, sysctl,
};

/// The isolation that a request means: what it names, or `default` when it names none.
///
/// # Errors
/// [`Invalid::Isolation`] for one that does not exist.
pub fn effective_isolation(
    requested: Option<&str>,
    default: IsolationKind,
) -> Result<IsolationKind, Invalid> {
    match requested.map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "default") => Ok(default),
        Some(name) => Ok(name.parse()?),
    }
}

/// The runtime of a container that names none. All names that are accepted mean ours; clients
/// know this one, compare it, and ask for it.
pub const DEFAULT_RUNTIME: &str = "runc";

/// Fills in what a request left open, and drops, with a warning, what the host cannot do, so
/// that what is stored and shown is what applies.
pub fn apply_defaults(
    host_config: &mut HostConfig,
    isolation: IsolationKind,
    facts: &HostFacts,
) -> Vec<String> {
    let mut warnings = Vec::new();
    // Who asks for the default in so many words reads that again, as from Docker; who asks for
    // nothing reads what came of it.
    if host_config.isolation != Some(HostConfigIsolationEnum::DEFAULT) {
        host_config.isolation = Some(match isolation {
            IsolationKind::Process => HostConfigIsolationEnum::PROCESS,
            IsolationKind::Hyperv => HostConfigIsolationEnum::HYPERV,
        });
    }
    warnings.extend(discard(host_config, isolation, facts));
    let is_blank = |value: &Option<String>| value.as_deref().is_none_or(str::is_empty);
    if is_blank(&host_config.network_mode) || host_config.network_mode.as_deref() == Some("default")
    {
        host_config.network_mode = Some("bridge".to_owned());
    }
    if host_config.network_mode.as_deref() == Some("host")
        && host_config
            .port_bindings
            .as_ref()
            .is_some_and(|bindings| !bindings.is_empty())
    {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    if host_config.memory_swappiness == Some(-1) {
        host_config.memory_swappiness = None;
    }
    if is_blank(&host_config.ipc_mode) {
        host_config.ipc_mode = Some("private".to_owned());
    }
    if is_blank(&host_config.runtime) {
        host_config.runtime = Some(DEFAULT_RUNTIME.to_owned());
    }
    if host_config.shm_size.unwrap_or(0) == 0 {
        host_config.shm_size = Some(mounts::DEFAULT_SHM_SIZE);
    }
    let swap_counts = isolation == IsolationKind::Hyperv || facts.swap_limit;
    if let Some(memory) = host_config.memory.filter(|memory| *memory > 0)
        && host_config.memory_swap.unwrap_or(0) == 0
        && swap_counts
    {
        host_config.memory_swap = Some(memory.saturating_mul(2));
    }
    if matches!(
        host_config.cgroupns_mode,
        None | Some(HostConfigCgroupnsModeEnum::EMPTY)
    ) {
        let own = isolation == IsolationKind::Hyperv || facts.cgroup_version == 2;
        host_config.cgroupns_mode = Some(match own {
            true => HostConfigCgroupnsModeEnum::PRIVATE,
            false => HostConfigCgroupnsModeEnum::HOST,
        });
    }
    if host_config.privileged != Some(true) {
        if host_config.masked_paths.is_none() {
            host_config.masked_paths = Some(crate::security::masked_paths(host_config));
        }
        if host_config.readonly_paths.is_none() {
            host_config.readonly_paths = Some(crate::security::readonly_paths(host_config));
        }
    }
    warnings
}

/// Drops limits that cannot be; what comes back are warnings.
pub fn discard(
    host_config: &mut HostConfig,
    isolation: IsolationKind,
    facts: &HostFacts,
) -> Vec<String> {
    let mut warnings = Vec::new();
    match isolation {
        IsolationKind::Process => discard_unsupported(host_config, facts, &mut warnings),
        IsolationKind::Hyperv => discard_for_vm(host_config, &mut warnings),
    }
    warnings
}

/// Docker discards limits that the kernel does not know, and says so.
fn discard_unsupported(
    host_config: &mut HostConfig,
    facts: &HostFacts,
    warnings: &mut Vec<String>,
) {
    let mut warn = |sentence: &str| warnings.push(sentence.to_owned());
    let positive = |value: Option<i64>| value.unwrap_or(0) > 0;
    if !facts.memory_limit && positive(host_config.memory) {
        warn(
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
        );
        host_config.memory = Some(0);
        host_config.memory_swap = Some(-1);
    }
    if !facts.swap_limit && positive(host_config.memory) && host_config.memory_swap != Some(-1) {
        warn(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.",
        );
        host_config.memory_swap = Some(-1);
    }
    if !facts.oom_kill_disable && host_config.oom_kill_disable == Some(true) {
        warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.");
        host_config.oom_kill_disable = None;
    }
    if facts.cgroup_version == 2 && host_config.memory_swappiness.is_some_and(|s| s >= 0) {
        warn(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
        );
        host_config.memory_swappiness = None;
    }
    if !facts.cpu_quota
        && (positive(host_config.nano_cpus)
            || positive(host_config.cpu_quota)
            || positive(host_config.cpu_period))
    {
        warn(
            "Your kernel does not support CPU CFS quota/period or the cgroup is not mounted. CPU limit discarded.",
        );
        host_config.nano_cpus = None;
        host_config.cpu_quota = None;
        host_config.cpu_period = None;
    }
    if !facts.cpu_shares && positive(host_config.cpu_shares) {
        warn(
            "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.",
        );
        host_config.cpu_shares = None;
    }
    if !facts.cpuset && names_something(&[&host_config.cpuset_cpus, &host_config.cpuset_mems]) {
        warn("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.");
        host_config.cpuset_cpus = None;
        host_config.cpuset_mems = None;
    }
    if !facts.pids_limit && positive(host_config.pids_limit) {
        warn(
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
        );
        host_config.pids_limit = None;
    }
    if !facts.blkio_weight && host_config.blkio_weight.unwrap_or(0) != 0 {
        warn(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
        );
        host_config.blkio_weight = None;
    }
}

/// The guest's kernel has the unified hierarchy and its disks are the container's alone.
fn discard_for_vm(host_config: &mut HostConfig, warnings: &mut Vec<String>) {
    if host_config.oom_kill_disable == Some(true) {
        warnings.push(
            "The kernel of a container with hyperv isolation does not support OomKillDisable. OomKillDisable discarded."
                .to_owned(),
        );
        host_config.oom_kill_disable = None;
    }
    if host_config
        .memory_swappiness
        .is_some_and(|value| value >= 0)
    {
        warnings.push(
            "A container with hyperv isolation has no swap. Memory swappiness discarded."
                .to_owned(),
        );
        host_config.memory_swappiness = None;
    }
    if host_config.blkio_weight.unwrap_or(0) != 0 {
        warnings.push(
            "Block I/O weight has no effect with hyperv isolation. Weight discarded.".to_owned(),
        );
        host_config.blkio_weight = None;
    }
    let throttles = [
        ("BPS read", &mut host_config.blkio_device_read_bps),
        ("BPS write", &mut host_config.blkio_device_write_bps),
        ("IOPS read", &mut host_config.blkio_device_read_iops),
        ("IOPS write", &mut host_config.blkio_device_write_iops),
    ];
    for (what, devices) in throttles {
        if devices.take().is_some_and(|devices| !devices.is_empty()) {
            warnings.push(format!(
                "The block devices of the host are not those of a container with hyperv \
                 isolation. {what} limit discarded."
            ));
        }
    }
    if host_config
        .blkio_weight_device
        .take()
        .is_some_and(|devices| !devices.is_empty())
    {
        warnings.push(
            "The block devices of the host are not those of a container with hyperv isolation. \
             Weight of devices discarded."
                .to_owned(),
        );
    }
    if names_something(&[&host_config.cpuset_mems]) {
        warnings.push(
            "Memory nodes cannot be chosen with hyperv isolation. Cpuset mems discarded."
                .to_owned(),
        );
        host_config.cpuset_mems = None;
    }
}

fn names_something(values: &[&Option<String>]) -> bool {
    values
        .iter()
        .any(|value| value.as_deref().is_some_and(|text| !text.is_empty()))
}

/// Refuses a container that cannot be what was asked for; what comes back are warnings. The
/// configuration is already merged with the image's.
///
/// # Errors
/// [`Invalid`], whose [`Invalid::kind`] says how to answer.
pub fn validate(
    config: &ContainerConfig,
    host_config: &HostConfig,
    isolation: IsolationKind,
    facts: &HostFacts,
) -> Result<Vec<String>, Invalid> {
    process::command(config)?;
    process::check_env(config.env.as_deref().unwrap_or_default())?;
    if let Some(cwd) = config.working_dir.as_deref().filter(|cwd| !cwd.is_empty())
        && !cwd.starts_with('/')
    {
        return Err(Invalid::WorkingDirectory(cwd.to_owned()));
    }
    if isolation == IsolationKind::Hyperv {
        refuse_host_sharing(host_config)?;
    }
    check_modes(config, host_config)?;
    resources::check(host_config, isolation, facts)?;
    sysctl::check(host_config, isolation)?;
    mounts::check(config, host_config)?;
    if isolation == IsolationKind::Hyperv {
        mount_points::refuse_to_share(config, host_config)?;
    }
    devices::check(host_config)?;
    process::rlimits(host_config, isolation).map_err(|error| match error {
        SpecError::Invalid(invalid) => invalid,
        other => Invalid::Ulimit(other.to_string()),
    })?;
    let available = match isolation {
        IsolationKind::Hyperv => crate::known_capabilities(),
        IsolationKind::Process => facts.capabilities.as_slice(),
    };
    let effective = capabilities::effective(host_config, available)?;
    let security = SecurityOptions::parse(host_config)?;
    crate::security::seccomp_profile(host_config, &security, &effective)?;
    check_rest(host_config)?;
    Ok(warnings(host_config, isolation, facts))
}

fn warnings(host_config: &HostConfig, isolation: IsolationKind, facts: &HostFacts) -> Vec<String> {
    let mut out = Vec::new();
    for ulimit in host_config.ulimits.iter().flatten() {
        let name = ulimit.name.as_deref().unwrap_or_default();
        let wanted = u64::try_from(ulimit.hard.unwrap_or(0)).unwrap_or(u64::MAX);
        let granted = facts.hard_limits.iter().find(|(limit, _)| *limit == name);
        if let Some((_, granted)) = granted
            && isolation == IsolationKind::Process
            && wanted > *granted
        {
            out.push(format!(
                "This host grants no higher limit of {name} than {granted}. Ulimit lowered."
            ));
        }
    }
    let modes = [
        ("--pid", "processes", &host_config.pid_mode),
        ("--ipc", "shared memory", &host_config.ipc_mode),
    ];
    for (option, what, mode) in modes {
        if isolation == IsolationKind::Hyperv && mode.as_deref() == Some("host") {
            out.push(format!(
                "{option}=host with hyperv isolation: the container has the {what} of its own \
                 machine, not of this host; use --isolation=process for the host's"
            ));
        }
    }
    if host_config.oom_kill_disable == Some(true) && host_config.memory.unwrap_or(0) <= 0 {
        out.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
                .to_owned(),
        );
    }
    out
}

/// A container with its own kernel has nothing of the host's to share. What asks for the
/// host's processes, memory or name gets those of its machine (see [`warnings`]).
fn refuse_host_sharing(host_config: &HostConfig) -> Result<(), Invalid> {
    let refuse = |option: String| Err(Invalid::OwnKernel { option });
    let modes = [
        ("--pid", &host_config.pid_mode),
        ("--network", &host_config.network_mode),
        ("--ipc", &host_config.ipc_mode),
        ("--uts", &host_config.uts_mode),
    ];
    for (name, mode) in modes {
        let mode = mode.as_deref().unwrap_or_default();
        let of_host = name == "--network" && mode == "host";
        if of_host || mode.starts_with("container:") || mode.starts_with("ns:") {
            return refuse(format!("{name}={mode}"));
        }
    }
    let devices = host_config.devices.iter().flatten();
    for path in devices.map(|device| device.path_on_host.as_deref().unwrap_or_default()) {
        if !devices::is_of_the_kernel(path) {
            return refuse(format!("--device={path}"));
        }
    }
    Ok(())
}

/// Refuses what a container in a user namespace other than the host's cannot have. The words
/// are Docker's.
///
/// # Errors
/// [`Invalid::UserNamespace`].
pub fn check_user_namespace(host_config: &HostConfig) -> Result<(), Invalid> {
    let refuse = |reason: &'static str| Err(Invalid::UserNamespace(reason));
    if host_config.privileged == Some(true) {
        return refuse(
            "privileged mode is incompatible with user namespaces.  You must run the container in \
             the host namespace when running privileged mode",
        );
    }
    if is_host(host_config.network_mode.as_deref()) {
        return refuse(
            "cannot share the host's network namespace when user namespaces are enabled",
        );
    }
    if is_host(host_config.pid_mode.as_deref()) {
        return refuse("cannot share the host PID namespace when user namespaces are enabled");
    }
    if is_host(host_config.ipc_mode.as_deref()) {
        return refuse("cannot share the host IPC namespace when user namespaces are enabled");
    }
    Ok(())
}

fn check_modes(config: &ContainerConfig, host_config: &HostConfig) -> Result<(), Invalid> {
    let modes: [(&'static str, &Option<String>, &[&str]); 4] = [
        ("PID", &host_config.pid_mode, &["host"]),
        (
            "IPC",
            &host_config.ipc_mode,
            &["none", "private", "shareable", "host"],
        ),
        ("UTS", &host_config.uts_mode, &["host"]),
        ("user namespace", &host_config.userns_mode, &["host"]),
    ];
    for (what, mode, valid) in modes {
        let mode = mode.as_deref().unwrap_or_default();
        if mode.is_empty() || valid.contains(&mode) {
            continue;
        }
        let joins = matches!(what, "PID" | "IPC") && mode.len() > "container:".len();
        if joins && mode.starts_with("container:") {
            continue;
        }
        return Err(Invalid::Mode {
            what,
            value: mode.to_owned(),
        });
    }
    let named = config
        .hostname
        .as_deref()
        .is_some_and(|name| !name.is_empty());
    if host_config.uts_mode.as_deref() == Some("host") && named {
        return Err(Invalid::Conflict("hostname and the UTS mode".to_owned()));
    }
    if of_container(host_config.network_mode.as_deref()).is_some() {
        check_joined_network(host_config, named)?;
    }
    Ok(())
}

/// What belongs to a network cannot be chosen by who joins another's.
fn check_joined_network(host_config: &HostConfig, named: bool) -> Result<(), Invalid> {
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let conflicts = [
        (named, "hostname and the network mode"),
        (some(&host_config.dns), "dns and the network mode"),
        (
            some(&host_config.extra_hosts),
            "custom host-to-IP mapping and the network mode",
        ),
        (
            host_config.publish_all_ports == Some(true)
                || host_config
                    .port_bindings
                    .as_ref()
                    .is_some_and(|ports| !ports.is_empty()),
            "port publishing and the container type network mode",
        ),
    ];
    match conflicts.into_iter().find(|(found, _)| *found) {
        Some((_, what)) => Err(Invalid::Conflict(what.to_owned())),
        None => Ok(()),
    }
}

fn check_rest(host_config: &HostConfig) -> Result<(), Invalid> {
    if let Some(runtime) = host_config.runtime.as_deref()
        && !matches!(
            runtime,
            "" | "bulkhead" | "io.containerd.bulkhead.v2" | "runc" | "io.containerd.runc.v2"
        )
    {
        return Err(Invalid::Runtime(runtime.to_owned()));
    }
    if let Some(request) = host_config.device_requests.iter().flatten().next() {
        let capabilities: Vec<String> = request
            .capabilities
            .iter()
            .flatten()
            .map(|set| format!("[{}]", set.join(" ")))
            .collect();
        return Err(Invalid::DeviceDriver {
            driver: request.driver.clone().unwrap_or_default(),
            capabilities: format!("[{}]", capabilities.join(" ")),
        });
    }
    if host_config
        .storage_opt
        .as_ref()
        .is_some_and(|o| !o.is_empty())
    {
        return Err(Invalid::StorageOption);
    }
    for extra in host_config.extra_hosts.iter().flatten() {
        extra_host(extra)?;
    }
    check_restart(host_config)
}

/// Takes an extra host apart: `name:address` or `name=address`, an address of IPv6 also in
/// brackets, or `host-gateway` in its place.
///
/// # Errors
/// [`Invalid::ExtraHost`] with Docker's words.
pub fn extra_host(text: &str) -> Result<(&str, &str), Invalid> {
    let refused = |why: &str, what: &str| Err(Invalid::ExtraHost(format!("{why}: {what:?}")));
    let (name, given) = match text.split_once(['=', ':']) {
        Some((name, given)) if !name.is_empty() => (name, given),
        _ => return refused("bad format for add-host", text),
    };
    let bare = given
        .strip_prefix('[')
        .and_then(|one| one.strip_suffix(']'));
    let address = bare.unwrap_or(given).trim();
    if address != "host-gateway" && address.parse::<std::net::IpAddr>().is_err() {
        return refused("invalid IP address in add-host", given);
    }
    Ok((name, address))
}

/// Refuses a restart policy that makes no sense.
///
/// # Errors
/// [`Invalid::RestartPolicy`], or that the container goes when it ends.
pub fn check_restart(host_config: &HostConfig) -> Result<(), Invalid> {
    let Some(policy) = &host_config.restart_policy else {
        return Ok(());
    };
    let refused = |reason: &str| Err(Invalid::RestartPolicy(reason.to_owned()));
    let retries = policy.maximum_retry_count.unwrap_or(0);
    let restarts = !matches!(
        policy.name,
        None | Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO)
    );
    match policy.name {
        // Old clients' containers have a count and no policy.
        None | Some(RestartPolicyNameEnum::EMPTY) => {}
        Some(RestartPolicyNameEnum::ON_FAILURE) if retries < 0 => {
            return refused("maximum retry count cannot be negative");
        }
        Some(RestartPolicyNameEnum::ON_FAILURE) => {}
        _ if retries < 0 => {
            return refused(
                "maximum retry count can only be used with 'on-failure' and cannot be negative",
            );
        }
        _ if retries > 0 => {
            return refused("maximum retry count can only be used with 'on-failure'");
        }
        _ => {}
    }
    if restarts && host_config.auto_remove == Some(true) {
        return Err(Invalid::Limit(
            "can't create 'AutoRemove' container with restart policy".to_owned(),
        ));
    }
    Ok(())
}
