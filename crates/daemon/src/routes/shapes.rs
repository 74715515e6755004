//! Docker's JSON of a container. Where Docker prints a field that the models leave out, a
//! template has it: `null`, empty or zero, in Docker's order.

use std::collections::HashMap;

use bollard_stubs::models::{ContainerConfig, HostConfig, MountType};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::network_shapes;
use crate::connection::ApiVersion;
use crate::services::containers::health::HealthStatus;
use crate::services::containers::{Containers, Record, Status, View};
use crate::services::volumes::DRIVER;

/// What Docker prints for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The driver of layers and writable layers.
pub const STORAGE_DRIVER: &str = "erofs";

/// Fills a template with what is set.
fn fill(template: Value, set: &impl Serialize) -> Value {
    let (Value::Object(mut out), Ok(Value::Object(set))) = (template, serde_json::to_value(set))
    else {
        return Value::Null;
    };
    for (key, value) in set {
        if !value.is_null() {
            out.insert(key, value);
        }
    }
    Value::Object(out)
}

/// Puts in what an object does not say.
fn complete(object: &mut Value, template: &Value) {
    let (Value::Object(object), Value::Object(template)) = (object, template) else {
        return;
    };
    for (key, nothing) in template {
        let value = object.entry(key.as_str()).or_insert(Value::Null);
        if value.is_null() {
            value.clone_from(nothing);
        }
    }
}

/// `Config`.
pub fn config(config: &ContainerConfig) -> Value {
    let template = json!({
        "Hostname": "", "Domainname": "", "User": "",
        "AttachStdin": false, "AttachStdout": false, "AttachStderr": false,
        "Tty": false, "OpenStdin": false, "StdinOnce": false,
        "Env": [], "Cmd": null, "Image": "", "Volumes": null, "WorkingDir": "",
        "Entrypoint": null, "OnBuild": null, "Labels": {},
    });
    let mut out = fill(template, config);
    // Docker leaves these out when they say nothing.
    if let Value::Object(out) = &mut out {
        for key in ["ExposedPorts", "Volumes"] {
            if out.get(key) == Some(&json!({})) {
                match key {
                    "Volumes" => out.insert(key.to_owned(), Value::Null),
                    _ => out.shift_remove(key),
                };
            }
        }
        for (key, nothing) in [
            ("NetworkDisabled", json!(false)),
            ("ArgsEscaped", json!(false)),
            ("StopSignal", json!("")),
            ("MacAddress", json!("")),
        ] {
            if out.get(key) == Some(&nothing) {
                out.shift_remove(key);
            }
        }
    }
    out
}

/// `HostConfig`.
pub fn host_config(host_config: &HostConfig) -> Value {
    let mut template = json!({
        "Binds": null, "ContainerIDFile": "",
        "LogConfig": { "Type": "json-file", "Config": {} },
        "NetworkMode": "", "PortBindings": null,
        "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
        "AutoRemove": false, "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [0, 0],
        "CapAdd": null, "CapDrop": null, "CgroupnsMode": "",
        "Dns": null, "DnsOptions": null, "DnsSearch": null, "ExtraHosts": null, "GroupAdd": null,
        "IpcMode": "", "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "",
        "Privileged": false, "PublishAllPorts": false, "ReadonlyRootfs": false,
        "SecurityOpt": null, "UTSMode": "", "UsernsMode": "", "ShmSize": 0, "Runtime": "",
        "Isolation": "",
    });
    let limits = json!({
        "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0,
        "BlkioWeightDevice": null, "BlkioDeviceReadBps": null, "BlkioDeviceWriteBps": null,
        "BlkioDeviceReadIOps": null, "BlkioDeviceWriteIOps": null,
        "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0,
        "CpusetCpus": "", "CpusetMems": "", "Devices": null, "DeviceCgroupRules": null,
        "DeviceRequests": null, "MemoryReservation": 0, "MemorySwap": 0,
        "MemorySwappiness": null, "OomKillDisable": false, "PidsLimit": null, "Ulimits": null,
        "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
        "MaskedPaths": null, "ReadonlyPaths": null,
    });
    if let (Value::Object(template), Value::Object(limits)) = (&mut template, limits) {
        template.extend(limits);
    }
    let mut out = fill(template, host_config);
    let bindings = out["PortBindings"].as_object_mut();
    let bindings = bindings.into_iter().flat_map(Map::values_mut);
    for binding in bindings.filter_map(Value::as_array_mut).flatten() {
        complete(binding, &json!({ "HostIp": "", "HostPort": "" }));
    }
    complete(
        &mut out["RestartPolicy"],
        &json!({ "Name": "no", "MaximumRetryCount": 0 }),
    );
    let rate = json!({ "Path": "", "Rate": 0 });
    for (list, template) in [
        (
            "Devices",
            &json!({ "PathOnHost": "", "PathInContainer": "", "CgroupPermissions": "" }),
        ),
        ("Ulimits", &json!({ "Name": "", "Hard": 0, "Soft": 0 })),
        ("BlkioWeightDevice", &json!({ "Path": "", "Weight": 0 })),
        ("BlkioDeviceReadBps", &rate),
        ("BlkioDeviceWriteBps", &rate),
        ("BlkioDeviceReadIOps", &rate),
        ("BlkioDeviceWriteIOps", &rate),
    ] {
        for entry in out[list].as_array_mut().into_iter().flatten() {
            complete(entry, template);
        }
    }
    if let Some(name) = out.pointer_mut("/RestartPolicy/Name")
        && name.as_str() == Some("")
    {
        *name = json!("no");
    }
    out
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NEVER.to_owned(), |at| format!("{at:.9}"))
}

/// `State`.
fn state(record: &Record) -> Value {
    let state = &record.state;
    let mut out = json!({
        "Status": state.status.as_str(),
        "Running": state.status.is_alive() || state.status == Status::Restarting,
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == Status::Dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": time(state.started_at),
        "FinishedAt": time(state.finished_at),
    });
    if let Some(health) = &state.health {
        let log: Vec<Value> = health
            .log
            .iter()
            .map(|probe| {
                json!({
                    "Start": time(Some(probe.start)),
                    "End": time(Some(probe.end)),
                    "ExitCode": probe.exit_code,
                    "Output": probe.output,
                })
            })
            .collect();
        out["Health"] = json!({
            "Status": health.status.as_str(),
            "FailingStreak": health.failing_streak,
            "Log": log,
        });
    }
    out
}

/// Volumes, binds and tmpfs, as `inspect` and `ps` show them.
fn mounts(record: &Record) -> Vec<Value> {
    let mut out = Vec::new();
    for mount in &record.mounts {
        let mut shown = Map::new();
        shown.insert("Type".to_owned(), json!(mount.kind()));
        if let Some(name) = &mount.volume {
            shown.insert("Name".to_owned(), json!(name));
        }
        shown.insert("Source".to_owned(), json!(mount.source));
        shown.insert("Destination".to_owned(), json!(mount.destination));
        if mount.volume.is_some() {
            shown.insert("Driver".to_owned(), json!(DRIVER));
        }
        shown.insert("Mode".to_owned(), json!(mount.mode));
        shown.insert("RW".to_owned(), json!(!mount.read_only));
        shown.insert("Propagation".to_owned(), json!(mount.propagation));
        out.push(Value::Object(shown));
    }
    for mount in record.host_config.mounts.iter().flatten() {
        if mount.typ == Some(MountType::TMPFS) {
            out.push(json!({
                "Type": "tmpfs", "Source": "",
                "Destination": mount.target.clone().unwrap_or_default(),
                "Mode": "", "RW": !mount.read_only.unwrap_or(false), "Propagation": "",
            }));
        }
    }
    out
}

/// The answer of `GET /containers/{id}/json`.
pub fn inspect(containers: &Containers, view: &View, size: Option<(u64, u64)>) -> Value {
    let record = &view.record;
    let files = containers.files(record);
    let execs = containers.execs_of(&record.id);
    let links = containers.links(record);
    let shown = HostConfig {
        links: (!links.is_empty()).then_some(links),
        ..record.host_config.clone()
    };
    let mut out = json!({
        "Id": record.id,
        "Created": format!("{:.9}", record.created),
        "Path": record.path,
        "Args": record.args,
        "State": state(record),
        "Image": record.image_id,
        "ResolvConfPath": files.resolv_conf,
        "HostnamePath": files.hostname,
        "HostsPath": files.hosts,
        // The other drivers' files are their own affair.
        "LogPath": match (record.log_driver(), &files.log) {
            ("json-file", Some(log)) => log.as_path(),
            _ => std::path::Path::new(""),
        },
        "Name": format!("/{}", record.name),
        "RestartCount": record.restart_count,
        "Driver": STORAGE_DRIVER,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": host_config(&shown),
        "GraphDriver": {
            "Data": { "WritableDir": files.writable },
            "Name": STORAGE_DRIVER,
        },
    });
    let mut config = config(&record.config);
    // Once the container's own, now that of its first interface.
    let first = record.networks.attachments.first();
    if let Some(mac) = first.and_then(|attachment| attachment.mac.as_deref()) {
        config["MacAddress"] = json!(mac);
    }
    let rest = json!({
        "Mounts": mounts(record),
        "Config": config,
        "NetworkSettings": network_shapes::settings(record),
    });
    if let Value::Object(out) = &mut out {
        if let Some((written, whole)) = size {
            out.insert("SizeRw".to_owned(), json!(written));
            out.insert("SizeRootFs".to_owned(), json!(whole));
        }
        if let Value::Object(rest) = rest {
            out.extend(rest);
        }
    }
    out
}

/// One entry of `GET /containers/json`.
///
/// `image` is what its image is shown as; `more_names` are those that links give it.
pub fn summary(
    view: &View,
    image: &str,
    more_names: &[String],
    size: Option<(u64, u64)>,
    now: Timestamp,
    version: ApiVersion,
) -> Value {
    let record = &view.record;
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("Id", json!(record.id));
    let own_name = [format!("/{}", record.name)];
    put("Names", json!([&own_name, more_names].concat()));
    put("Image", json!(image));
    put("ImageID", json!(record.image_id));
    put("Command", json!(command_line(record)));
    put("Created", json!(record.created.as_second()));
    put("Ports", json!(network_shapes::port_list(record)));
    if let Some((written, whole)) = size {
        put("SizeRw", json!(written));
        put("SizeRootFs", json!(whole));
    }
    let empty = HashMap::new();
    put(
        "Labels",
        json!(record.config.labels.as_ref().unwrap_or(&empty)),
    );
    put("State", json!(record.state.status.as_str()));
    put("Status", json!(status_line(record, now)));
    let mut host_config = json!({ "NetworkMode": record.host_config.network_mode });
    let annotations = record.host_config.annotations.as_ref();
    if let Some(annotations) = annotations.filter(|all| !all.is_empty())
        && version >= ApiVersion(1, 46)
    {
        host_config["Annotations"] = json!(annotations);
    }
    put("HostConfig", host_config);
    put(
        "NetworkSettings",
        json!({ "Networks": network_shapes::networks(record) }),
    );
    put("Mounts", json!(mounts(record)));
    Value::Object(out)
}

fn command_line(record: &Record) -> String {
    let mut out = record.path.clone();
    for arg in &record.args {
        out.push(' ');
        if arg.contains(' ') {
            out.push_str(&format!("'{arg}'"));
        } else {
            out.push_str(arg);
        }
    }
    out
}

/// `Up 3 seconds`, `Exited (0) 2 minutes ago`.
pub fn status_line(record: &Record, now: Timestamp) -> String {
    let state = &record.state;
    let since = |at: Option<Timestamp>| {
        let seconds = at.map_or(0, |at| now.as_second().saturating_sub(at.as_second()));
        human_duration(u64::try_from(seconds).unwrap_or(0))
    };
    match state.status {
        Status::Running => {
            let health = match state.health.as_ref().map(|health| health.status) {
                None => String::new(),
                Some(HealthStatus::Starting) => " (health: starting)".to_owned(),
                Some(known) => format!(" ({})", known.as_str()),
            };
            format!("Up {}{health}", since(state.started_at))
        }
        Status::Paused => format!("Up {} (Paused)", since(state.started_at)),
        Status::Restarting => format!(
            "Restarting ({}) {} ago",
            state.exit_code,
            since(state.finished_at)
        ),
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Dead => "Dead".to_owned(),
        Status::Created => "Created".to_owned(),
        Status::Exited if state.finished_at.is_none() => "Created".to_owned(),
        Status::Exited => format!(
            "Exited ({}) {} ago",
            state.exit_code,
            since(state.finished_at)
        ),
    }
}

/// A length of time as Docker rounds it.
fn human_duration(seconds: u64) -> String {
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard_stubs::models::{
        ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum, ThrottleDevice,
    };

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (180, "3 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 21, "3 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 365 * 3, "3 years"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }

    #[test]
    fn templates_are_filled() {
        let shape = host_config(&HostConfig {
            memory: Some(5),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::ALWAYS),
                maximum_retry_count: None,
            }),
            ulimits: Some(vec![ResourcesUlimits {
                name: Some("nofile".to_owned()),
                ..ResourcesUlimits::default()
            }]),
            blkio_device_read_bps: Some(vec![ThrottleDevice::default()]),
            ..HostConfig::default()
        });
        let always = json!({ "Name": "always", "MaximumRetryCount": 0 });
        assert_eq!(shape["RestartPolicy"], always);
        let limit = json!([{ "Name": "nofile", "Hard": 0, "Soft": 0 }]);
        assert_eq!(shape["Ulimits"], limit);
        let rate = json!([{ "Path": "", "Rate": 0 }]);
        assert_eq!(shape["BlkioDeviceReadBps"], rate);
        assert_eq!(shape["BlkioDeviceWriteBps"], Value::Null);
        let shape = host_config(&HostConfig {
            memory: Some(5),
            ..HostConfig::default()
        });
        assert_eq!(shape["Memory"], 5);
        assert_eq!(shape["Binds"], Value::Null);
        assert_eq!(shape["RestartPolicy"]["Name"], "no");
        let shape = config(&ContainerConfig {
            cmd: Some(vec!["sh".to_owned()]),
            ..ContainerConfig::default()
        });
        assert_eq!(shape["Cmd"], json!(["sh"]));
        assert_eq!(shape["Entrypoint"], Value::Null);
    }
}
