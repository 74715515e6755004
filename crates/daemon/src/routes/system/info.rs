//! `docker version` and `docker info`.
//!
//! The CLI prints a fixed set of fields. What only this engine has is in fields of its own,
//! and once more where the CLI prints free text: the pairs under "Storage Driver", and, for
//! what does not work, the warnings.

use axum::Json;
use axum::extract::State;
use bulkhead_registry::{LOOPBACK, Settings as RegistrySettings};
use bulkhead_task::options::{IsolationKind, Probe};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::config::{API_VERSION, LOG_DRIVERS, MIN_API_VERSION};
use crate::error::ApiResult;
use crate::platform::host_architecture;
use crate::services::containers::Status;
use crate::services::system::ProbeOutcome;
use crate::state::AppState;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn version(State(state): State<AppState>) -> Json<Value> {
    let kernel = &state.system.host.kernel;
    let arch = host_architecture();
    let mut components = vec![json!({
        "Name": "Engine",
        "Version": VERSION,
        "Details": {
            "ApiVersion": API_VERSION,
            "Arch": arch,
            "BuildTime": "",
            "Experimental": "false",
            "GitCommit": "",
            "GoVersion": "none (Rust)",
            "KernelVersion": kernel,
            "MinAPIVersion": MIN_API_VERSION,
            "Os": "linux",
        },
    })];
    components.extend(vm_component(&state.system.probe().await));
    Json(json!({
        "Platform": { "Name": "bulkhead" },
        "Components": components,
        "Version": VERSION,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "GitCommit": "",
        "GoVersion": "none (Rust)",
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": kernel,
        "BuildTime": "",
    }))
}

/// The engine of VMs; its version is what runs their CPUs.
fn vm_component(probe: &ProbeOutcome) -> Option<Value> {
    let Ok(probe) = probe else { return None };
    Some(json!({
        "Name": "VM engine",
        "Version": engine_name(probe),
        "Details": {
            "GuestKernel": probe.guest_kernel.as_deref().unwrap_or("none"),
            "Reason": vm_reason(probe),
        },
    }))
}

fn engine_name(probe: &Probe) -> String {
    match (&probe.vm_engine, &probe.vm_accelerator) {
        (Some(engine), Some(accelerator)) => format!("{engine} ({accelerator})"),
        (Some(engine), None) => engine.clone(),
        (None, _) => "none".to_owned(),
    }
}

fn vm_reason(probe: &Probe) -> &str {
    match &probe.hyperv.reason {
        Some(reason) if !probe.hyperv.available => reason,
        _ => &probe.vm_reason,
    }
}

pub(super) async fn info(State(state): State<AppState>) -> ApiResult<Json<Value>> {
    let config = &state.config;
    let facts = state.containers.facts();
    let host = &state.system.host;
    let probe = state.system.probe().await;
    let (mut running, mut paused, mut stopped) = (0_u64, 0_u64, 0_u64);
    for handle in state.containers.all() {
        match handle.view().record.state.status {
            Status::Running | Status::Restarting => running += 1,
            Status::Paused => paused += 1,
            _ => stopped += 1,
        }
    }
    let images = state.images.list().await?.len();
    let security: Vec<&str> = [
        (facts.seccomp, "name=seccomp,profile=builtin"),
        (config.userns.is_some(), "name=userns"),
        (facts.cgroup_version == 2, "name=cgroupns"),
    ]
    .iter()
    .filter_map(|(present, name)| present.then_some(*name))
    .collect();
    let mut out = json!({
        "ID": state.system.id,
        "Containers": running + paused + stopped,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": stopped,
        "Images": images,
        "Driver": "erofs",
        "DriverStatus": driver_status(&state, &probe),
        "Plugins": {
            "Volume": [crate::services::volumes::DRIVER],
            "Network": ["bridge", "host", "null"],
            "Authorization": Value::Null,
            "Log": LOG_DRIVERS,
        },
        "MemoryLimit": facts.memory_limit,
        "SwapLimit": facts.swap_limit,
        "CpuCfsPeriod": facts.cpu_quota,
        "CpuCfsQuota": facts.cpu_quota,
        "CPUShares": facts.cpu_shares,
        "CPUSet": facts.cpuset,
        "PidsLimit": facts.pids_limit,
        "IPv4Forwarding": facts.ipv4_forwarding,
        "BridgeNfIptables": bridge_filter("iptables"),
        "BridgeNfIp6tables": bridge_filter("ip6tables"),
        "OomKillDisable": facts.oom_kill_disable,
        "Debug": config.debug,
        "NFd": open_files(),
        "NGoroutines": threads(),
        "SystemTime": Timestamp::now().to_string(),
        "LoggingDriver": config.log_driver,
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": facts.cgroup_version.to_string(),
        "NEventsListener": state.events.listeners(),
        "KernelVersion": host.kernel,
        "OperatingSystem": host.operating_system,
        "OSVersion": host.os_version,
        "OSType": "linux",
        "Architecture": host.machine,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": registries(&config.registries),
        "NCPU": facts.cpus,
        "MemTotal": facts.memory,
        "GenericResources": Value::Null,
        "DockerRootDir": config.data_root,
        "HttpProxy": proxy(config.registries.http_proxy.as_deref()),
        "HttpsProxy": proxy(config.registries.https_proxy.as_deref()),
        "NoProxy": config.registries.no_proxy.clone().unwrap_or_default(),
        "Name": host.name,
        "Labels": config.labels,
        "ExperimentalBuild": false,
        "ServerVersion": VERSION,
        "Runtimes": {
            "bulkhead": { "path": "containerd-shim-bulkhead-v2" },
            "runc": { "path": "containerd-shim-bulkhead-v2" },
        },
        "DefaultRuntime": bulkhead_spec::DEFAULT_RUNTIME,
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": false,
            "Error": "",
            "RemoteManagers": Value::Null,
        },
        "LiveRestoreEnabled": true,
    });
    // A second literal: one alone is beyond the macro's recursion limit.
    let rest = json!({
        "Isolation": config.default_isolation.as_str(),
        "InitBinary": "docker-init",
        "ContainerdCommit": { "ID": "N/A", "Expected": "N/A" },
        "RuncCommit": { "ID": "N/A", "Expected": "N/A" },
        "InitCommit": { "ID": "N/A", "Expected": "N/A" },
        "SecurityOptions": security,
        "CDISpecDirs": [],
        "Warnings": warnings(&state, &probe),
        "Isolations": isolations(&state, &probe),
    });
    if let (Some(out), Value::Object(rest)) = (out.as_object_mut(), rest) {
        out.extend(rest);
    }
    Ok(Json(out))
}

/// What a program reads: whether each isolation works, why not, and what a VM gets.
fn isolations(state: &AppState, probe: &ProbeOutcome) -> Value {
    let vm = &state.config.vm;
    let Ok(probe) = probe else {
        return json!({ "Default": state.config.default_isolation.as_str() });
    };
    json!({
        "Default": state.config.default_isolation.as_str(),
        "process": {
            "Available": probe.process.available,
            "Reason": probe.process.reason,
        },
        "hyperv": {
            "Available": probe.hyperv.available,
            "Reason": probe.hyperv.reason,
            "Engine": probe.vm_engine,
            "Accelerator": probe.vm_accelerator,
            "EngineReason": probe.vm_reason,
            "GuestKernel": probe.guest_kernel,
            "DefaultMemory": vm.default_memory,
            "DefaultCpus": vm.default_cpus.min(state.containers.facts().cpus),
            "MinimumMemory": bulkhead_spec::MINIMUM_VM_MEMORY,
            "MemoryOverhead": probe.vm_overhead,
            "DiskSize": vm.scratch_bytes,
        },
    })
}

/// The same for a person.
fn driver_status(state: &AppState, probe: &ProbeOutcome) -> Vec<[String; 2]> {
    let vm = &state.config.vm;
    let pair = |name: &str, value: String| [name.to_owned(), value];
    let mut out = vec![pair(
        "Default Isolation",
        state.config.default_isolation.as_str().to_owned(),
    )];
    let Ok(probe) = probe else { return out };
    out.push(pair("VM Engine", engine_name(probe)));
    out.push(pair("VM Engine Reason", vm_reason(probe).to_owned()));
    if let Some(kernel) = &probe.guest_kernel {
        out.push(pair("VM Kernel", kernel.clone()));
    }
    out.push(pair(
        "VM Default Memory",
        format!(
            "{} MiB, and {} MiB for its kernel",
            vm.default_memory >> 20,
            probe.vm_overhead >> 20
        ),
    ));
    let cpus = vm.default_cpus.min(state.containers.facts().cpus);
    out.push(pair("VM Default CPUs", cpus.to_string()));
    out
}

fn warnings(state: &AppState, probe: &ProbeOutcome) -> Vec<String> {
    let facts = state.containers.facts();
    let mut out: Vec<String> = [
        (facts.memory_limit, "WARNING: No memory limit support"),
        (facts.swap_limit, "WARNING: No swap limit support"),
        (facts.cpu_shares, "WARNING: No cpu shares support"),
        (facts.cpu_quota, "WARNING: No cpu cfs quota support"),
        (facts.cpuset, "WARNING: No cpuset support"),
        (facts.pids_limit, "WARNING: No pids limit support"),
    ]
    .iter()
    .filter(|(present, _)| !present)
    .map(|(_, warning)| (*warning).to_owned())
    .collect();
    match probe {
        Err(reason) => out.push(format!("WARNING: Isolations are not known: {reason}")),
        Ok(probe) => {
            for (kind, availability) in [
                (IsolationKind::Process, &probe.process),
                (IsolationKind::Hyperv, &probe.hyperv),
            ] {
                if !availability.available {
                    out.push(format!(
                        "WARNING: Isolation '{}' is not available: {}",
                        kind.as_str(),
                        availability.reason.as_deref().unwrap_or_default()
                    ));
                }
            }
        }
    }
    out
}

/// Whether what goes through bridges is filtered as what is routed.
fn bridge_filter(table: &str) -> bool {
    let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
    std::fs::read_to_string(switch).is_ok_and(|text| text.trim() == "1")
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Threads, which is what comes closest to Go's goroutines.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
/// How registries are reached, as dockerd says it.
fn registries(settings: &RegistrySettings) -> Value {
    let (networks, hosts): (Vec<&String>, Vec<&String>) = settings
        .insecure
        .iter()
        .partition(|name| name.contains('/'));
    let networks: Vec<&str> = LOOPBACK
        .into_iter()
        .chain(networks.into_iter().map(String::as_str))
        .collect();
    let mut indexes = json!({
        "docker.io": {
            "Name": "docker.io", "Mirrors": settings.mirrors, "Secure": true, "Official": true,
        },
    });
    for host in hosts {
        indexes[host] = json!({
            "Name": host, "Mirrors": [], "Secure": false, "Official": false,
        });
    }
    json!({
        "AllowNondistributableArtifactsCIDRs": [],
        "AllowNondistributableArtifactsHostnames": [],
        "InsecureRegistryCIDRs": networks,
        "IndexConfigs": indexes,
        "Mirrors": settings.mirrors,
    })
}

/// A proxy's address without its password.
fn proxy(address: Option<&str>) -> String {
    let address = address.unwrap_or_default();
    match address.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
            format!("{scheme}://xxxxx:xxxxx@{host}")
        }
        None => address.to_owned(),
    }
}
