//! The flags that `run` and `create` share.

use super::values;
use crate::flags::{Flag, Kind};

/// What the container runs and how it appears.
pub const GENERAL: &[Flag] = &[
    Flag::list("attach", "Attach to STDIN, STDOUT or STDERR")
        .short('a')
        .check(values::stream),
    Flag::list("annotation", "Pass an annotation to the OCI runtime"),
    Flag::text("cidfile", "Write the container's ID to this file"),
    Flag::text("domainname", "Domain name inside the container"),
    Flag::text("entrypoint", "Replace the image's ENTRYPOINT"),
    Flag::list("env", "Set an environment variable")
        .short('e')
        .check(values::env),
    Flag::list(
        "env-file",
        "Set the environment variables that a file lists",
    ),
    Flag::list("group-add", "Further group for the container's process"),
    Flag::text("hostname", "Host name inside the container").short('h'),
    Flag::switch(
        "init",
        "Run a small init that forwards signals and reaps processes",
    ),
    Flag::switch("interactive", "Keep standard input open").short('i'),
    Flag::text(
        "isolation",
        "What separates the container: process or hyperv",
    ),
    Flag::list("label", "Set a label")
        .short('l')
        .check(values::label),
    Flag::list("label-file", "Set the labels that a file lists"),
    Flag::text("name", "Name of the container"),
    Flag::switch(
        "oom-kill-disable",
        "Never kill the container when memory runs out",
    ),
    Flag::int(
        "oom-score-adj",
        "Preference as a victim when memory runs out (-1000 to 1000)",
    ),
    Flag::text("platform", "Platform of the image, if it has several"),
    Flag::text("pull", "When to pull the image: always, missing or never").default("missing"),
    Flag::switch("quiet", "Do not show the pull's progress").short('q'),
    Flag::switch("read-only", "Make the root filesystem read-only"),
    Flag::text(
        "restart",
        "When to start the container again after it ended",
    )
    .default("no"),
    Flag::switch(
        "rm",
        "Remove the container and its anonymous volumes when it ends",
    ),
    Flag::text("runtime", "OCI runtime to use"),
    Flag::text("stop-signal", "Signal that stops the container"),
    Flag::int(
        "stop-timeout",
        "Seconds between the stop signal and the kill",
    ),
    Flag::switch("tty", "Give the container a terminal").short('t'),
    Flag::text("user", "User and group: <name|uid>[:<group|gid>]").short('u'),
    Flag::text("workdir", "Working directory of the container's process").short('w'),
    Flag::switch(
        "disable-content-trust",
        "Accepted and ignored: signatures are not checked",
    )
    .default("true"),
    Flag::switch("use-api-socket", "Not supported").hidden(),
];

/// Limits.
pub const RESOURCES: &[Flag] = &[
    Flag::new(
        "blkio-weight",
        Kind::Uint16,
        "Relative block I/O weight, 10 to 1000, 0 for none",
    )
    .default("0"),
    Flag::list(
        "blkio-weight-device",
        "Relative weight for one device (PATH:WEIGHT)",
    )
    .check(values::weight_device),
    Flag::text("cgroup-parent", "Parent of the container's cgroup"),
    Flag::int("cpu-count", "CPU count (Windows only)"),
    Flag::int("cpu-percent", "CPU percent (Windows only)"),
    Flag::int("cpu-period", "Length of a CFS period, in microseconds"),
    Flag::int("cpu-quota", "CPU time in each CFS period, in microseconds"),
    Flag::int(
        "cpu-rt-period",
        "Length of a real-time period, in microseconds",
    ),
    Flag::int(
        "cpu-rt-runtime",
        "Real-time CPU time in each period, in microseconds",
    ),
    Flag::int("cpu-shares", "Relative CPU weight").short('c'),
    Flag::new(
        "cpus",
        Kind::Cpus,
        "How many CPUs' time the container may use",
    ),
    Flag::text("cpuset-cpus", "CPUs that it may run on (0-3, 0,1)"),
    Flag::text("cpuset-mems", "Memory nodes that it may use (0-3, 0,1)"),
    Flag::list("device", "Give the container a device of the host"),
    Flag::list(
        "device-cgroup-rule",
        "Add a rule to the cgroup's device list",
    )
    .check(values::device_rule),
    Flag::list(
        "device-read-bps",
        "Limit reads from a device, in bytes a second",
    )
    .check(values::throttle_bytes),
    Flag::list(
        "device-read-iops",
        "Limit reads from a device, in operations a second",
    )
    .check(values::throttle_operations),
    Flag::list(
        "device-write-bps",
        "Limit writes to a device, in bytes a second",
    )
    .check(values::throttle_bytes),
    Flag::list(
        "device-write-iops",
        "Limit writes to a device, in operations a second",
    )
    .check(values::throttle_operations),
    Flag::list("gpus", "GPUs for the container ('all' for every one)").check(values::gpus),
    Flag::new(
        "io-maxbandwidth",
        Kind::Bytes,
        "I/O bandwidth limit (Windows only)",
    ),
    Flag::new(
        "io-maxiops",
        Kind::Uint,
        "I/O operations limit (Windows only)",
    ),
    Flag::new("kernel-memory", Kind::Bytes, "Kernel memory limit").hidden(),
    Flag::new("memory", Kind::Bytes, "Memory limit").short('m'),
    Flag::new(
        "memory-reservation",
        Kind::Bytes,
        "Memory that is left to it under pressure",
    ),
    Flag::new(
        "memory-swap",
        Kind::SwapBytes,
        "Limit of memory and swap together, -1 for none",
    ),
    Flag::int(
        "memory-swappiness",
        "How readily memory is swapped out (0 to 100)",
    )
    .default("-1"),
    Flag::int(
        "pids-limit",
        "How many processes it may have (-1 for any number)",
    ),
    Flag::new("shm-size", Kind::Bytes, "Size of /dev/shm"),
    Flag::list("ulimit", "Set a resource limit (NAME=SOFT[:HARD])").check(values::ulimit),
];

/// Security and namespaces.
pub const SECURITY: &[Flag] = &[
    Flag::list("cap-add", "Add a capability"),
    Flag::list("cap-drop", "Drop a capability"),
    Flag::text("cgroupns", "Cgroup namespace: host or private"),
    Flag::text("ipc", "IPC mode"),
    Flag::text("pid", "PID namespace"),
    Flag::switch("privileged", "Give the container all privileges"),
    Flag::list("security-opt", "Security option"),
    Flag::list("sysctl", "Set a kernel parameter of the container").check(values::sysctl),
    Flag::text("userns", "User namespace"),
    Flag::text("uts", "UTS namespace"),
];

/// Network.
pub const NETWORK: &[Flag] = &[
    Flag::list("add-host", "Add a line to /etc/hosts (HOST:IP)").check(values::extra_host),
    Flag::list("dns", "DNS server").check(values::ip_address),
    Flag::list("dns-opt", "").alias_of("dns-option"),
    Flag::list("dns-option", "DNS option"),
    Flag::list("dns-search", "DNS search domain").check(values::dns_search),
    Flag::list("expose", "Expose a port or a range of ports"),
    Flag::text("ip", "IPv4 address"),
    Flag::text("ip6", "IPv6 address"),
    Flag::list("link", "Link to another container").check(values::link),
    Flag::list("link-local-ip", "Link-local address"),
    Flag::text("mac-address", "MAC address"),
    Flag::list("net", "")
        .alias_of("network")
        .check(values::network),
    Flag::list("net-alias", "").alias_of("network-alias"),
    Flag::new("network", Kind::List("network"), "Connect to a network").check(values::network),
    Flag::list("network-alias", "Further name in the network"),
    Flag::list("publish", "Publish a port to the host").short('p'),
    Flag::switch("publish-all", "Publish all exposed ports to free ports").short('P'),
];

/// Logs, mounts and health.
pub const STORAGE: &[Flag] = &[
    Flag::text("health-cmd", "Command that checks the container's health"),
    Flag::new(
        "health-interval",
        Kind::Duration,
        "Time between checks (ms|s|m|h)",
    ),
    Flag::int("health-retries", "Failures in a row that make it unhealthy"),
    Flag::new(
        "health-start-interval",
        Kind::Duration,
        "Time between checks while it starts",
    ),
    Flag::new(
        "health-start-period",
        Kind::Duration,
        "Time in which failures do not count",
    ),
    Flag::new(
        "health-timeout",
        Kind::Duration,
        "Longest time of one check",
    ),
    Flag::text("log-driver", "Where the container's output is logged"),
    Flag::list("log-opt", "Option of the log driver"),
    Flag::new("mount", Kind::List("mount"), "Mount a filesystem").check(super::mounts::check),
    Flag::switch(
        "no-healthcheck",
        "Do not check health, whatever the image says",
    ),
    Flag::list("storage-opt", "Option of the storage driver"),
    Flag::list("tmpfs", "Mount a tmpfs on this directory"),
    Flag::list("volume", "Mount a directory or a volume").short('v'),
    Flag::text("volume-driver", "Driver of new volumes"),
    Flag::list("volumes-from", "Mount another container's volumes too"),
];
