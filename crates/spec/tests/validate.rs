//! What is refused, with Docker's words where clients show them, and what is filled in.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use bollard_stubs::models::{
    ContainerConfig, DeviceMapping, DeviceRequest, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigIsolationEnum, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
    ThrottleDevice,
};
use bulkhead_spec::{
    HostFacts, Invalid, InvalidKind, IsolationKind, apply_defaults, effective_isolation,
    known_capabilities, validate,
};

fn facts() -> HostFacts {
    HostFacts {
        cgroup_version: 1,
        cpus: 2,
        cpu_list: "0-1".to_owned(),
        node_list: "0".to_owned(),
        memory: 8 << 30,
        swap: 0,
        memory_limit: true,
        swap_limit: true,
        oom_kill_disable: true,
        cpu_quota: true,
        cpu_shares: true,
        cpuset: true,
        pids_limit: true,
        blkio_weight: true,
        ipv4_forwarding: true,
        seccomp: true,
        apparmor: false,
        capabilities: known_capabilities().to_vec(),
        hard_limits: vec![("nofile", 20_000)],
    }
}

fn config() -> ContainerConfig {
    ContainerConfig {
        cmd: Some(vec!["sh".to_owned()]),
        ..ContainerConfig::default()
    }
}

fn check(host: &HostConfig, isolation: IsolationKind) -> Result<Vec<String>, Invalid> {
    validate(&config(), host, isolation, &facts())
}

/// The message of a refusal with process isolation.
fn refusal(host: HostConfig) -> String {
    check(&host, IsolationKind::Process)
        .unwrap_err()
        .to_string()
}

fn host() -> HostConfig {
    HostConfig::default()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn an_empty_host_configuration_is_fine_for_both() {
    for isolation in [IsolationKind::Process, IsolationKind::Hyperv] {
        assert_eq!(check(&host(), isolation), Ok(Vec::new()));
    }
}

#[test]
fn isolations_by_name() {
    let default = IsolationKind::Hyperv;
    for name in [None, Some(""), Some("default"), Some("Default")] {
        assert_eq!(effective_isolation(name, default), Ok(default));
    }
    assert_eq!(
        effective_isolation(Some("process"), default),
        Ok(IsolationKind::Process)
    );
    let error = effective_isolation(Some("jail"), default).unwrap_err();
    let message = error.to_string();
    for word in ["jail", "process", "hyperv", "default"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(error.kind(), InvalidKind::Parameter);
}

#[test]
fn docker_sentences_about_limits() {
    let cases: Vec<(HostConfig, &str)> = vec![
        (
            HostConfig {
                memory: Some(4 << 20),
                ..host()
            },
            "Minimum memory limit allowed is 6MB",
        ),
        (
            HostConfig {
                memory: Some(-1),
                ..host()
            },
            "Minimum memory limit allowed is 6MB",
        ),
        (
            HostConfig {
                memory: Some(64 << 20),
                memory_swap: Some(32 << 20),
                ..host()
            },
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            HostConfig {
                memory_swap: Some(32 << 20),
                ..host()
            },
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        (
            HostConfig {
                memory_swappiness: Some(101),
                ..host()
            },
            "Invalid value: 101, valid memory swappiness range is 0-100",
        ),
        (
            HostConfig {
                memory: Some(32 << 20),
                memory_reservation: Some(64 << 20),
                ..host()
            },
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        (
            HostConfig {
                nano_cpus: Some(3_000_000_000),
                ..host()
            },
            "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
        ),
        (
            HostConfig {
                nano_cpus: Some(-1),
                ..host()
            },
            "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
        ),
        (
            HostConfig {
                nano_cpus: Some(1_000_000_000),
                cpu_quota: Some(1000),
                ..host()
            },
            "conflicting options: Nano CPUs and CPU Quota cannot both be set",
        ),
        (
            HostConfig {
                cpu_period: Some(10),
                ..host()
            },
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ),
        (
            HostConfig {
                cpu_quota: Some(10),
                ..host()
            },
            "CPU cfs quota can not be less than 1ms (i.e. 1000)",
        ),
        (
            HostConfig {
                cpuset_cpus: some("0-7"),
                ..host()
            },
            "Requested CPUs are not available - requested 0-7, available: 0-1",
        ),
        (
            HostConfig {
                cpuset_mems: some("x"),
                ..host()
            },
            "Invalid value x for cpuset mems",
        ),
        (
            HostConfig {
                oom_score_adj: Some(1001),
                ..host()
            },
            "Invalid value 1001, range for oom score adj is [-1000, 1000]",
        ),
        (
            HostConfig {
                blkio_weight: Some(5),
                ..host()
            },
            "Range of blkio weight is from 10 to 1000",
        ),
        (
            HostConfig {
                shm_size: Some(-1),
                ..host()
            },
            "SHM size can not be less than 0",
        ),
    ];
    for (host, sentence) in cases {
        assert_eq!(refusal(host), sentence);
    }
}

#[test]
fn a_vm_needs_some_memory() {
    let small = HostConfig {
        memory: Some(8 << 20),
        ..host()
    };
    assert!(check(&small, IsolationKind::Process).is_ok());
    let message = check(&small, IsolationKind::Hyperv)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("16MB") && message.contains("--memory"),
        "{message}"
    );
}

#[test]
fn nothing_of_the_host_is_shared_with_a_vm() {
    let container = "container:abc";
    let cases: Vec<(HostConfig, &str)> = vec![
        (
            HostConfig {
                pid_mode: some(container),
                ..host()
            },
            "--pid=container:abc",
        ),
        (
            HostConfig {
                network_mode: some("host"),
                ..host()
            },
            "--network=host",
        ),
        (
            HostConfig {
                ipc_mode: some(container),
                ..host()
            },
            "--ipc=container:abc",
        ),
        (
            HostConfig {
                devices: Some(vec![DeviceMapping {
                    path_on_host: some("/dev/kvm"),
                    ..DeviceMapping::default()
                }]),
                ..host()
            },
            "--device=/dev/kvm",
        ),
    ];
    for (host, option) in cases {
        let error = check(&host, IsolationKind::Hyperv).unwrap_err();
        assert_eq!(error.kind(), InvalidKind::Parameter);
        let message = error.to_string();
        assert!(message.starts_with(option), "{message}");
        assert!(message.contains("own kernel"), "{message}");
    }
}

#[test]
fn what_a_vm_has_in_place_of_the_hosts_is_said() {
    let asked = HostConfig {
        pid_mode: some("host"),
        ipc_mode: some("host"),
        uts_mode: some("host"),
        ..host()
    };
    let warnings = check(&asked, IsolationKind::Hyperv).unwrap();
    let [pid, ipc] = warnings.as_slice() else {
        panic!("{warnings:?}");
    };
    assert!(
        pid.starts_with("--pid=host") && pid.contains("machine"),
        "{pid}"
    );
    assert!(
        ipc.starts_with("--ipc=host") && ipc.contains("machine"),
        "{ipc}"
    );
}

#[test]
fn the_same_options_with_process_isolation() {
    let shared = HostConfig {
        pid_mode: some("host"),
        network_mode: some("host"),
        ipc_mode: some("host"),
        uts_mode: some("host"),
        userns_mode: some("host"),
        cgroup_parent: some("/x"),
        cpuset_cpus: some("0,1"),
        ..host()
    };
    assert_eq!(check(&shared, IsolationKind::Process), Ok(Vec::new()));
    let named = ContainerConfig {
        hostname: some("x"),
        ..config()
    };
    let error = validate(&named, &shared, IsolationKind::Process, &facts()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "conflicting options: hostname and the UTS mode"
    );
}

#[test]
fn modes_that_do_not_exist() {
    assert_eq!(
        refusal(HostConfig {
            pid_mode: some("other"),
            ..host()
        }),
        "invalid PID mode: other"
    );
    assert_eq!(
        refusal(HostConfig {
            ipc_mode: some("container:"),
            ..host()
        }),
        "invalid IPC mode: container:"
    );
    assert_eq!(
        refusal(HostConfig {
            uts_mode: some("private"),
            ..host()
        }),
        "invalid UTS mode: private"
    );
}

#[test]
fn networks() {
    for name in ["", "default", "bridge", "none", "host", "container:c"] {
        let host = HostConfig {
            network_mode: some(name),
            ..host()
        };
        assert!(check(&host, IsolationKind::Process).is_ok(), "{name}");
    }
    // A network that does not exist is found out when the container starts.
    let unknown = HostConfig {
        network_mode: some("nosuch"),
        ..host()
    };
    assert!(check(&unknown, IsolationKind::Hyperv).is_ok());
}

#[test]
fn namespaces_of_other_containers() {
    let joins = HostConfig {
        pid_mode: some("container:c"),
        ipc_mode: some("container:c"),
        ..host()
    };
    assert_eq!(check(&joins, IsolationKind::Process), Ok(Vec::new()));
    let contradicts = HostConfig {
        network_mode: some("container:c"),
        dns: Some(vec!["1.1.1.1".to_owned()]),
        ..host()
    };
    assert_eq!(
        refusal(contradicts),
        "conflicting options: dns and the network mode"
    );
}

#[test]
fn what_makes_no_sense() {
    let ulimit = |name: &str, soft, hard| HostConfig {
        ulimits: Some(vec![ResourcesUlimits {
            name: some(name),
            soft: Some(soft),
            hard: Some(hard),
        }]),
        ..host()
    };
    assert_eq!(refusal(ulimit("files", 1, 1)), "invalid ulimit type: files");
    assert_eq!(
        refusal(ulimit("nofile", 2, 1)),
        "ulimit soft limit must be less than or equal to hard limit: 2 > 1"
    );
    assert!(check(&ulimit("core", 0, -1), IsolationKind::Process).is_ok());
    assert!(check(&ulimit("core", -1, 5), IsolationKind::Process).is_err());

    assert_eq!(
        refusal(HostConfig {
            runtime: some("gvisor"),
            ..host()
        }),
        "unknown or invalid runtime name: gvisor"
    );
    let gpu = HostConfig {
        device_requests: Some(vec![DeviceRequest {
            capabilities: Some(vec![vec!["gpu".to_owned()]]),
            ..DeviceRequest::default()
        }]),
        ..host()
    };
    assert_eq!(
        refusal(gpu),
        "could not select device driver \"\" with capabilities: [[gpu]]"
    );
    let sysctl = HostConfig {
        sysctls: Some(HashMap::from([("kernel.panic".to_owned(), "1".to_owned())])),
        ..host()
    };
    assert_eq!(
        refusal(sysctl),
        "sysctl \"kernel.panic\" is not in a separate kernel namespace"
    );
    let rule = HostConfig {
        device_cgroup_rules: Some(vec!["c 1".to_owned()]),
        ..host()
    };
    assert_eq!(refusal(rule), "invalid device cgroup rule format: 'c 1'");
}

#[test]
fn extra_hosts() {
    let with = |extra: &str| HostConfig {
        extra_hosts: Some(vec![extra.to_owned()]),
        ..host()
    };
    for good in [
        "a:1.2.3.4",
        "a=1.2.3.4",
        "a:::1",
        "a:[::1]",
        "a=fe80::1",
        "a:host-gateway",
    ] {
        assert!(check(&with(good), IsolationKind::Process).is_ok(), "{good}");
    }
    assert_eq!(bulkhead_spec::extra_host("a=[::1]").unwrap(), ("a", "::1"));
    for (bad, words) in [
        ("bogus", "bad format for add-host: \"bogus\""),
        (":1.2.3.4", "bad format for add-host: \":1.2.3.4\""),
        ("a:b", "invalid IP address in add-host: \"b\""),
        ("a:", "invalid IP address in add-host: \"\""),
    ] {
        assert_eq!(refusal(with(bad)), words);
    }
}

#[test]
fn restart_policies() {
    let policy = |name, count| HostConfig {
        restart_policy: Some(RestartPolicy {
            name: Some(name),
            maximum_retry_count: Some(count),
        }),
        ..host()
    };
    // As old clients left it.
    let of_old = policy(RestartPolicyNameEnum::EMPTY, 3);
    assert!(check(&of_old, IsolationKind::Process).is_ok());
    assert!(
        check(
            &policy(RestartPolicyNameEnum::ON_FAILURE, 3),
            IsolationKind::Process
        )
        .is_ok()
    );
    assert_eq!(
        refusal(policy(RestartPolicyNameEnum::ALWAYS, 3)),
        "invalid restart policy: maximum retry count can only be used with 'on-failure'"
    );
    assert_eq!(
        refusal(HostConfig {
            auto_remove: Some(true),
            ..policy(RestartPolicyNameEnum::ALWAYS, 0)
        }),
        "can't create 'AutoRemove' container with restart policy"
    );
}

#[test]
fn configurations_that_cannot_run() {
    let refused = |config: ContainerConfig| {
        validate(&config, &host(), IsolationKind::Process, &facts())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(refused(ContainerConfig::default()), "no command specified");
    assert_eq!(
        refused(ContainerConfig {
            working_dir: some("srv"),
            ..config()
        }),
        "the working directory 'srv' is invalid, it needs to be an absolute path"
    );
    assert_eq!(
        refused(ContainerConfig {
            env: Some(vec!["=x".to_owned()]),
            ..config()
        }),
        "invalid environment variable: =x"
    );
}

#[test]
fn defaults_are_what_applies() {
    let mut filled = HostConfig {
        memory: Some(64 << 20),
        ..host()
    };
    let warnings = apply_defaults(&mut filled, IsolationKind::Process, &facts());
    assert!(warnings.is_empty());
    assert_eq!(filled.isolation, Some(HostConfigIsolationEnum::PROCESS));
    assert_eq!(filled.memory_swap, Some(128 << 20));
    assert_eq!(filled.shm_size, Some(64 << 20));
    assert_eq!(filled.network_mode.as_deref(), Some("bridge"));
    assert_eq!(filled.ipc_mode.as_deref(), Some("private"));
    assert_eq!(filled.cgroupns_mode, Some(HostConfigCgroupnsModeEnum::HOST));

    let mut vm = host();
    apply_defaults(&mut vm, IsolationKind::Hyperv, &facts());
    assert_eq!(vm.isolation, Some(HostConfigIsolationEnum::HYPERV));
    assert_eq!(vm.cgroupns_mode, Some(HostConfigCgroupnsModeEnum::PRIVATE));
    // What was filled in passes.
    assert!(check(&vm, IsolationKind::Hyperv).is_ok());
}

#[test]
fn what_the_kernel_cannot_do_is_dropped_with_a_warning() {
    let poor = HostFacts {
        swap_limit: false,
        pids_limit: false,
        cpu_quota: false,
        oom_kill_disable: false,
        ..facts()
    };
    let mut wanted = HostConfig {
        memory: Some(64 << 20),
        pids_limit: Some(10),
        nano_cpus: Some(500_000_000),
        oom_kill_disable: Some(true),
        ..host()
    };
    let warnings = apply_defaults(&mut wanted, IsolationKind::Process, &poor);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert_eq!(wanted.memory, Some(64 << 20));
    assert_eq!(wanted.memory_swap, Some(-1));
    assert_eq!((wanted.pids_limit, wanted.nano_cpus), (None, None));
    // The guest's kernel can.
    let mut vm = HostConfig {
        pids_limit: Some(10),
        ..host()
    };
    assert!(apply_defaults(&mut vm, IsolationKind::Hyperv, &poor).is_empty());
    assert_eq!(vm.pids_limit, Some(10));
}

#[test]
fn what_means_nothing_to_a_vm_is_dropped_with_a_warning() {
    let mut vm = HostConfig {
        cpuset_mems: some("0"),
        blkio_device_read_bps: Some(vec![ThrottleDevice::default()]),
        // These it has, and keeps.
        cgroup_parent: some("/x"),
        userns_mode: some("host"),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::HOST),
        cpuset_cpus: some("0"),
        devices: Some(vec![DeviceMapping {
            path_on_host: some("/dev/fuse"),
            ..DeviceMapping::default()
        }]),
        ..host()
    };
    let warnings = apply_defaults(&mut vm, IsolationKind::Hyperv, &facts());
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!((&vm.cgroup_parent, &vm.cpuset_mems), (&some("/x"), &None));
    assert_eq!(vm.cpuset_cpus, some("0"));
    assert_eq!(check(&vm, IsolationKind::Hyperv), Ok(Vec::new()));
    vm.cpuset_cpus = some("4000");
    assert!(check(&vm, IsolationKind::Hyperv).is_err());
}

#[test]
fn a_ulimit_beyond_what_the_host_grants_is_lowered_with_a_warning() {
    let with = |hard| HostConfig {
        ulimits: Some(vec![ResourcesUlimits {
            name: some("nofile"),
            soft: Some(10),
            hard: Some(hard),
        }]),
        ..host()
    };
    let warnings = |hard, isolation| check(&with(hard), isolation).unwrap().len();
    assert_eq!(warnings(20_000, IsolationKind::Process), 0);
    assert_eq!(warnings(20_001, IsolationKind::Process), 1);
    assert_eq!(warnings(-1, IsolationKind::Process), 1);
    // A guest has limits of its own.
    assert_eq!(warnings(20_001, IsolationKind::Hyperv), 0);
}

#[test]
fn published_ports_are_no_reason_to_warn() {
    let host = HostConfig {
        publish_all_ports: Some(true),
        ..host()
    };
    let warnings = validate(&config(), &host, IsolationKind::Process, &facts()).unwrap();
    assert_eq!(warnings.len(), 0);
}
