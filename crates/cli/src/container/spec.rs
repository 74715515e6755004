//! From the flags of `run` and `create` to the body of the create request.

use serde_json::{Map, Value, json};

use super::files::{BareKey, key_values};
use super::mounts::{self, Volume};
use super::networks;
use super::ports::Ports;
use super::values;
use crate::flags::{Parsed, quote};

/// A container to create.
#[derive(Debug)]
pub struct Spec {
    /// `Config` with `HostConfig` and `NetworkingConfig`, as the request takes it.
    pub body: Map<String, Value>,
    /// The image as the user named it.
    pub image: String,
    /// The container gets a terminal.
    pub tty: bool,
    /// Standard input is attached.
    pub stdin: bool,
    /// Standard output is attached.
    pub stdout: bool,
    /// Standard error is attached.
    pub stderr: bool,
    /// The daemon removes the container when it ends.
    pub auto_remove: bool,
}

/// `KEY=value` texts as an object; the last one wins.
pub fn to_map(texts: &[String]) -> Map<String, Value> {
    texts
        .iter()
        .map(|text| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            (key.to_owned(), value.into())
        })
        .collect()
}

/// A restart policy as the API takes it.
pub fn restart_policy(text: &str) -> Result<Value, String> {
    let (name, count) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() && text.contains(':') {
        return Err("invalid restart policy format: no policy provided before colon".to_owned());
    }
    let count: i64 = match count {
        "" => 0,
        count => count.parse().map_err(|_| {
            "invalid restart policy format: maximum retry count must be an integer".to_owned()
        })?,
    };
    Ok(json!({"Name": name, "MaximumRetryCount": count}))
}

fn security_options(texts: &[String]) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    for text in texts {
        let bare = text == "no-new-privileges";
        let pair = text.split_once('=').or_else(|| text.split_once(':'));
        match pair {
            _ if bare => options.push(text.clone()),
            Some((_, "")) | None => {
                return Err(format!("Invalid --security-opt: {}", quote(text)));
            }
            Some(("seccomp", profile)) if !matches!(profile, "builtin" | "unconfined") => {
                let content = std::fs::read(profile).map_err(|e| {
                    let why = super::files::go_error(profile, "open", &e);
                    format!("opening seccomp profile ({profile}) failed: {why}")
                })?;
                let json: Value = serde_json::from_slice(&content).map_err(|e| {
                    format!("compacting json for seccomp profile ({profile}) failed: {e}")
                })?;
                options.push(format!("seccomp={json}"));
            }
            Some(_) => options.push(text.clone()),
        }
    }
    Ok(options)
}

/// A path without doubled and trailing slashes, `.` and inner `..`.
fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." && parts.last().is_some_and(|l| *l != "..") {
            parts.pop();
        } else if part != ".." || !path.starts_with('/') {
            parts.push(part);
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

fn device(text: &str) -> Result<Value, String> {
    let access = |t: &str| {
        !t.is_empty()
            && t.chars().all(|c| "rwm".contains(c))
            && ['r', 'w', 'm'].iter().all(|c| t.matches(*c).count() <= 1)
    };
    let parts: Vec<&str> = text.split(':').collect();
    let bad = || format!("bad format for path: {text}");
    let (host, container, mode) = match parts.as_slice() {
        ["", ..] => return Err(bad()),
        [path] => (clean_path(path), clean_path(path), "rwm"),
        [path, mode] if access(mode) => (clean_path(path), clean_path(path), *mode),
        [host, container] => ((*host).to_owned(), clean_path(container), "rwm"),
        [host, container, mode] => {
            if !access(mode) {
                return Err(format!("bad mode specified: {mode}"));
            }
            ((*host).to_owned(), (*container).to_owned(), *mode)
        }
        _ => return Err(bad()),
    };
    if !container.starts_with('/') {
        return Err(format!("{container} is not an absolute path"));
    }
    Ok(json!({"PathOnHost": host, "PathInContainer": container, "CgroupPermissions": mode}))
}

/// `VENDOR/CLASS=NAME`, a device of the Container Device Interface.
fn is_cdi(text: &str) -> bool {
    let Some((kind, name)) = text.split_once('=') else {
        return false;
    };
    let Some((vendor, class)) = kind.split_once('/') else {
        return false;
    };
    !vendor.is_empty()
        && vendor
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !class.is_empty()
        && !class.contains('/')
        && !name.is_empty()
}

fn health(flags: &Parsed) -> Result<Option<Value>, String> {
    const TIMES: [(&str, &str); 4] = [
        ("health-interval", "Interval"),
        ("health-timeout", "Timeout"),
        ("health-start-period", "StartPeriod"),
        ("health-start-interval", "StartInterval"),
    ];
    let retries = flags.int("health-retries");
    let any = flags.given("health-cmd").is_some()
        || retries != 0
        || TIMES.iter().any(|(flag, _)| flags.int(flag) != 0);
    if flags.on("no-healthcheck") {
        if any {
            return Err("--no-healthcheck conflicts with --health-* options".to_owned());
        }
        return Ok(Some(json!({"Test": ["NONE"]})));
    }
    if !any {
        return Ok(None);
    }
    let mut check = Map::new();
    if let Some(command) = flags.given("health-cmd") {
        check.insert("Test".to_owned(), json!(["CMD-SHELL", command]));
    }
    for (flag, name) in TIMES {
        let time = flags.int(flag);
        if time < 0 {
            return Err(format!("--{flag} cannot be negative"));
        }
        check.insert(name.to_owned(), time.into());
    }
    if retries < 0 {
        return Err("--health-retries cannot be negative".to_owned());
    }
    check.insert("Retries".to_owned(), retries.into());
    Ok(Some(Value::Object(check)))
}

fn check_namespaces(flags: &Parsed) -> Result<(), String> {
    let container = |mode: &str| {
        mode.strip_prefix("container:")
            .is_some_and(|c| !c.is_empty())
    };
    let pid = flags.text("pid");
    if !(pid.is_empty() || pid == "host" || container(pid)) {
        return Err("--pid: invalid PID mode".to_owned());
    }
    for (flag, valid, what) in [
        ("uts", &["", "host"][..], "UTS"),
        ("userns", &["", "host"], "USER"),
        ("cgroupns", &["", "host", "private"], "CGROUP"),
    ] {
        if !valid.contains(&flags.text(flag)) {
            return Err(format!("--{flag}: invalid {what} mode"));
        }
    }
    Ok(())
}

/// The limits in `HostConfig`, which `update` sends too.
fn resources(flags: &Parsed) -> Result<Map<String, Value>, String> {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    for (flag, key) in [
        ("memory", "Memory"),
        ("memory-reservation", "MemoryReservation"),
        ("memory-swap", "MemorySwap"),
        ("cpus", "NanoCpus"),
        ("cpu-shares", "CpuShares"),
        ("cpu-period", "CpuPeriod"),
        ("cpu-quota", "CpuQuota"),
        ("cpu-rt-period", "CpuRealtimePeriod"),
        ("cpu-rt-runtime", "CpuRealtimeRuntime"),
        ("cpu-count", "CpuCount"),
        ("cpu-percent", "CpuPercent"),
        ("blkio-weight", "BlkioWeight"),
        ("io-maxbandwidth", "IOMaximumBandwidth"),
        ("io-maxiops", "IOMaximumIOps"),
    ] {
        put(key, flags.int(flag).into());
    }
    if flags.changed("kernel-memory") {
        put("KernelMemory", flags.int("kernel-memory").into());
    }
    let swappiness = flags.int("memory-swappiness");
    if swappiness != -1 && !(0..=100).contains(&swappiness) {
        return Err(format!(
            "invalid value: {swappiness}. Valid memory swappiness range is 0-100"
        ));
    }
    put("MemorySwappiness", swappiness.into());
    put("OomKillDisable", flags.on("oom-kill-disable").into());
    put("PidsLimit", flags.int("pids-limit").into());
    put("CpusetCpus", flags.text("cpuset-cpus").into());
    put("CpusetMems", flags.text("cpuset-mems").into());
    put("CgroupParent", flags.text("cgroup-parent").into());
    let mut ulimits = Map::new();
    for text in flags.list("ulimit") {
        let limit = values::parse_ulimit(text)?;
        let name = limit["Name"].as_str().unwrap_or_default().to_owned();
        ulimits.insert(name, limit);
    }
    let mut ulimits: Vec<(String, Value)> = ulimits.into_iter().collect();
    ulimits.sort_by(|a, b| a.0.cmp(&b.0));
    put(
        "Ulimits",
        ulimits.into_iter().map(|(_, limit)| limit).collect(),
    );
    put("DeviceCgroupRules", json!(flags.list("device-cgroup-rule")));
    put(
        "BlkioWeightDevice",
        flags
            .list("blkio-weight-device")
            .iter()
            .map(|t| values::weight_value(t))
            .collect(),
    );
    for (flag, key) in [
        ("device-read-bps", "BlkioDeviceReadBps"),
        ("device-write-bps", "BlkioDeviceWriteBps"),
        ("device-read-iops", "BlkioDeviceReadIOps"),
        ("device-write-iops", "BlkioDeviceWriteIOps"),
    ] {
        put(
            key,
            flags
                .list(flag)
                .iter()
                .map(|t| values::throttle_value(t))
                .collect(),
        );
    }
    let (cdi, plain): (Vec<&String>, Vec<&String>) =
        flags.list("device").iter().partition(|d| is_cdi(d));
    put(
        "Devices",
        plain
            .iter()
            .map(|d| device(d))
            .collect::<Result<Vec<_>, _>>()?
            .into(),
    );
    let mut requests = Vec::new();
    for text in flags.list("gpus") {
        requests.push(values::gpu_request(text)?);
    }
    if !cdi.is_empty() {
        requests.push(json!({"Driver": "cdi", "DeviceIDs": cdi}));
    }
    put(
        "DeviceRequests",
        if requests.is_empty() {
            Value::Null
        } else {
            requests.into()
        },
    );
    Ok(out)
}

struct Mounts {
    binds: Vec<String>,
    volumes: Map<String, Value>,
    tmpfs: Map<String, Value>,
    mounts: Vec<Value>,
}

fn all_mounts(flags: &Parsed) -> Result<Mounts, String> {
    let mut binds: Vec<String> = Vec::new();
    let mut volumes = Map::new();
    for text in flags.list("volume") {
        match mounts::parse_volume(text)? {
            Volume::Bind(bind) if binds.contains(&bind) => {}
            Volume::Bind(bind) => binds.push(bind),
            Volume::Anonymous(target) => {
                volumes.insert(target, json!({}));
            }
        }
    }
    let tmpfs = flags
        .list("tmpfs")
        .iter()
        .map(|text| {
            let (target, options) = text.split_once(':').unwrap_or((text, ""));
            (target.to_owned(), options.into())
        })
        .collect();
    let mounts = flags
        .list("mount")
        .iter()
        .map(|m| mounts::parse_mount(m))
        .collect::<Result<_, _>>()?;
    Ok(Mounts {
        binds,
        volumes,
        tmpfs,
        mounts,
    })
}

/// The empty list and the missing one are the same to the API; the missing one is shorter.
fn or_null(texts: &[String]) -> Value {
    if texts.is_empty() {
        Value::Null
    } else {
        json!(texts)
    }
}

/// Builds the request. With `detached`, nothing is attached. The error is the message's
/// first line.
pub fn build(flags: &Parsed, detached: bool) -> Result<Spec, String> {
    let attach = flags.list("attach");
    let wants = |stream: &str| attach.iter().any(|a| a == stream);
    networks::check_mac(flags.text("mac-address"))?;
    let interactive = flags.on("interactive");
    let stdin = !detached && (interactive || wants("stdin"));
    let stdout = !detached && (attach.is_empty() || wants("stdout"));
    let stderr = !detached && (attach.is_empty() || wants("stderr"));
    let tty = flags.on("tty");

    let mounts = all_mounts(flags)?;
    let ports = Ports::parse(flags.list("publish"), flags.list("expose"))?;
    let limits = resources(flags)?;
    let env = key_values(
        flags.list("env-file"),
        flags.list("env"),
        BareKey::Environment,
    )?;
    let labels = key_values(flags.list("label-file"), flags.list("label"), BareKey::Keep)?;
    check_namespaces(flags)?;
    let restart = restart_policy(flags.text("restart"))?;
    let log_driver = flags.text("log-driver");
    if log_driver == "none" && !flags.list("log-opt").is_empty() {
        return Err("invalid logging opts for driver none".to_owned());
    }
    let mut security = security_options(flags.list("security-opt"))?;
    let unmasked = security.iter().any(|o| o == "systempaths=unconfined");
    security.retain(|o| o != "systempaths=unconfined");
    if flags.list("storage-opt").iter().any(|o| !o.contains('=')) {
        return Err("invalid storage option".to_owned());
    }
    let health = health(flags)?;
    let auto_remove = flags.on("rm");
    let restarts = !matches!(restart["Name"].as_str(), None | Some("" | "no"));
    if auto_remove && restarts {
        return Err("conflicting options: cannot specify both --restart and --rm".to_owned());
    }
    let (network_mode, endpoints) = networks::endpoints(flags)?;

    let (image, command) = flags.args.split_first().ok_or("no image given")?;
    let entrypoint = match flags.text("entrypoint") {
        "" if flags.changed("entrypoint") => json!([""]),
        "" => Value::Null,
        program => json!([program]),
    };
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| {
        body.insert(key.to_owned(), value);
    };
    put("Hostname", flags.text("hostname").into());
    put("Domainname", flags.text("domainname").into());
    put("User", flags.text("user").into());
    put("AttachStdin", stdin.into());
    put("AttachStdout", stdout.into());
    put("AttachStderr", stderr.into());
    put("ExposedPorts", Value::Object(ports.exposed));
    put("Tty", tty.into());
    put("OpenStdin", interactive.into());
    put("StdinOnce", (interactive && stdin).into());
    put("Env", or_null(&env));
    put("Cmd", or_null(command));
    put("Image", image.clone().into());
    put("Volumes", Value::Object(mounts.volumes));
    put("WorkingDir", flags.text("workdir").into());
    put("Entrypoint", entrypoint);
    put("Labels", Value::Object(to_map(&labels)));
    if let Some(mac) = flags.given("mac-address") {
        put("MacAddress", mac.into());
    }
    if let Some(signal) = flags.given("stop-signal") {
        put("StopSignal", signal.into());
    }
    if flags.changed("stop-timeout") {
        put("StopTimeout", flags.int("stop-timeout").into());
    }
    if let Some(health) = health {
        put("Healthcheck", health);
    }

    let mut host = Map::new();
    let mut put = |key: &str, value: Value| {
        host.insert(key.to_owned(), value);
    };
    put("Binds", or_null(&mounts.binds));
    put("ContainerIDFile", flags.text("cidfile").into());
    put(
        "LogConfig",
        json!({"Type": log_driver, "Config": to_map(flags.list("log-opt"))}),
    );
    put("NetworkMode", network_mode.into());
    put("PortBindings", Value::Object(ports.bindings));
    put("RestartPolicy", restart);
    put("AutoRemove", auto_remove.into());
    put("VolumeDriver", flags.text("volume-driver").into());
    put("VolumesFrom", or_null(flags.list("volumes-from")));
    put("ConsoleSize", console_size(tty));
    put("CapAdd", or_null(flags.list("cap-add")));
    put("CapDrop", or_null(flags.list("cap-drop")));
    put("CgroupnsMode", flags.text("cgroupns").into());
    put("Dns", json!(flags.list("dns")));
    put("DnsOptions", json!(flags.list("dns-option")));
    put("DnsSearch", json!(flags.list("dns-search")));
    put("ExtraHosts", or_null(flags.list("add-host")));
    put("GroupAdd", or_null(flags.list("group-add")));
    put("IpcMode", flags.text("ipc").into());
    put("Links", or_null(flags.list("link")));
    put("OomScoreAdj", flags.int("oom-score-adj").into());
    put("PidMode", flags.text("pid").into());
    put("Privileged", flags.on("privileged").into());
    put("PublishAllPorts", flags.on("publish-all").into());
    put("ReadonlyRootfs", flags.on("read-only").into());
    put("SecurityOpt", or_null(&security));
    if !flags.list("storage-opt").is_empty() {
        put(
            "StorageOpt",
            Value::Object(to_map(flags.list("storage-opt"))),
        );
    }
    if !mounts.tmpfs.is_empty() {
        put("Tmpfs", Value::Object(mounts.tmpfs));
    }
    put("UTSMode", flags.text("uts").into());
    put("UsernsMode", flags.text("userns").into());
    put("ShmSize", flags.int("shm-size").into());
    if !flags.list("sysctl").is_empty() {
        put("Sysctls", Value::Object(to_map(flags.list("sysctl"))));
    }
    if let Some(runtime) = flags.given("runtime") {
        put("Runtime", runtime.into());
    }
    put("Isolation", flags.text("isolation").into());
    if !mounts.mounts.is_empty() {
        put("Mounts", mounts.mounts.into());
    }
    if unmasked {
        put("MaskedPaths", json!([]));
        put("ReadonlyPaths", json!([]));
    }
    if flags.changed("init") {
        put("Init", flags.on("init").into());
    }
    if !flags.list("annotation").is_empty() {
        put(
            "Annotations",
            Value::Object(to_map(flags.list("annotation"))),
        );
    }
    host.extend(limits);
    body.insert("HostConfig".to_owned(), Value::Object(host));
    body.insert(
        "NetworkingConfig".to_owned(),
        json!({"EndpointsConfig": endpoints}),
    );
    Ok(Spec {
        body,
        image: image.clone(),
        tty,
        stdin,
        stdout,
        stderr,
        auto_remove,
    })
}

fn console_size(tty: bool) -> Value {
    let (height, width) = if tty { crate::terminal::size() } else { (0, 0) };
    json!([height, width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::run::RUN;
    use crate::flags;

    fn spec(args: &[&str]) -> Result<Spec, String> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        build(&flags::parse(RUN.flags, false, &args)?, false)
    }

    #[test]
    fn a_full_command_line() {
        let spec = spec(&[
            "-it",
            "--rm",
            "--isolation=hyperv",
            "-m",
            "64m",
            "--cpus",
            "1.5",
            "-e",
            "A=b",
            "--ulimit",
            "nofile=1:2",
            "--tmpfs",
            "/t:size=1m",
            "--network",
            "none",
            "--init",
            "-v",
            "/h:/c:ro",
            "-v",
            "/anon",
            "-p",
            "80",
            "--label",
            "k=v",
            "--stop-timeout",
            "3",
            "--entrypoint",
            "",
            "img",
            "sh",
            "-c",
            "x",
        ])
        .unwrap();
        assert!(spec.tty && spec.stdin && spec.stdout && spec.auto_remove);
        assert_eq!(spec.image, "img");
        let body = Value::Object(spec.body);
        let at = |p: &str| body.pointer(p).cloned().unwrap();
        assert_eq!(at("/Cmd"), json!(["sh", "-c", "x"]));
        assert_eq!(at("/Entrypoint"), json!([""]));
        assert_eq!(at("/Env"), json!(["A=b"]));
        assert_eq!(at("/Volumes"), json!({"/anon": {}}));
        assert_eq!(at("/StopTimeout"), 3);
        assert_eq!(at("/StdinOnce"), true);
        assert_eq!(at("/HostConfig/Isolation"), "hyperv");
        assert_eq!(at("/HostConfig/Memory"), 64 << 20);
        assert_eq!(at("/HostConfig/NanoCpus"), 1_500_000_000);
        assert_eq!(at("/HostConfig/Binds"), json!(["/h:/c:ro"]));
        assert_eq!(at("/HostConfig/Tmpfs"), json!({"/t": "size=1m"}));
        assert_eq!(at("/HostConfig/NetworkMode"), "none");
        assert_eq!(at("/HostConfig/Init"), true);
        assert_eq!(at("/HostConfig/RestartPolicy/Name"), "no");
        assert_eq!(at("/NetworkingConfig/EndpointsConfig"), json!({}));
    }

    #[test]
    fn refusals() {
        let error = |args: &[&str]| spec(args).unwrap_err();
        assert_eq!(
            error(&["--rm", "--restart", "always", "i"]),
            "conflicting options: cannot specify both --restart and --rm"
        );
        assert_eq!(error(&["--pid", "x", "i"]), "--pid: invalid PID mode");
        assert_eq!(
            error(&["--security-opt", "x", "i"]),
            "Invalid --security-opt: \"x\""
        );
        assert_eq!(
            error(&["--memory-swappiness", "101", "i"]),
            "invalid value: 101. Valid memory swappiness range is 0-100"
        );
        assert_eq!(
            error(&["--no-healthcheck", "--health-cmd", "x", "i"]),
            "--no-healthcheck conflicts with --health-* options"
        );
        assert_eq!(
            error(&["--device", "/dev/x:/y:q", "i"]),
            "bad mode specified: q"
        );
    }

    #[test]
    fn devices() {
        assert_eq!(device("/dev/x").unwrap()["PathInContainer"], "/dev/x");
        assert_eq!(device("/dev/x:r").unwrap()["CgroupPermissions"], "r");
        assert_eq!(
            device("/dev/x:/dev/y:rw").unwrap()["PathInContainer"],
            "/dev/y"
        );
        assert!(is_cdi("vendor.com/gpu=all") && !is_cdi("/dev/x=y"));
    }
}
