//! The specification that comes out.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use bollard_stubs::models::{
    ContainerConfig, DeviceMapping, HostConfig, HostConfigCgroupnsModeEnum, ResourcesUlimits,
};
use bulkhead_spec::{
    ExecInput, GROUP_ADD_ANNOTATION, HostFacts, IsolationKind, SpecError, SpecInput, build,
    exec_process,
};
use bulkhead_userns::{IdRange, Mappings};
use oci_spec::runtime::{
    Capability, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, Mount, PosixRlimitType, Spec,
};

fn list(items: &[&str]) -> Option<Vec<String>> {
    Some(items.iter().map(|item| (*item).to_owned()).collect())
}

fn config() -> ContainerConfig {
    ContainerConfig {
        entrypoint: list(&["/entry"]),
        cmd: list(&["a", "b"]),
        ..ContainerConfig::default()
    }
}

fn facts() -> HostFacts {
    HostFacts {
        cgroup_version: 1,
        ..HostFacts::detect()
    }
}

fn try_make(
    isolation: IsolationKind,
    config: &ContainerConfig,
    host: &HostConfig,
) -> Result<Spec, SpecError> {
    build(&SpecInput {
        mappings: None,
        id: "0123",
        isolation,
        hostname: "box",
        config,
        host_config: host,
        pid_namespace: None,
        ipc_namespace: None,
        network_namespace: Some(Path::new("/run/netns/x")),
        cgroups_path: Path::new("/bulkhead/0123"),
        mounts: &[],
        facts: &facts(),
    })
}

#[test]
fn ids_are_mapped_without_a_user_namespace() {
    let range = |host, size| IdRange {
        container: 0,
        host,
        size,
    };
    let mappings = Mappings {
        uids: vec![range(1000, 70_000)],
        gids: vec![range(2000, 65_536)],
    };
    let spec = build(&SpecInput {
        mappings: Some(&mappings),
        id: "0123",
        isolation: IsolationKind::Process,
        hostname: "box",
        config: &config(),
        host_config: &HostConfig::default(),
        pid_namespace: None,
        ipc_namespace: None,
        network_namespace: Some(Path::new("/run/netns/x")),
        cgroups_path: Path::new("/bulkhead/0123"),
        mounts: &[],
        facts: &facts(),
    });
    let spec = spec.unwrap();
    assert!(!namespaces(&spec).contains(&LinuxNamespaceType::User));
    let linux = spec.linux().as_ref().unwrap();
    let mapped = |list: &Option<Vec<LinuxIdMapping>>| {
        let first = list.as_ref().unwrap().first().copied().unwrap();
        (first.container_id(), first.host_id(), first.size())
    };
    assert_eq!(mapped(linux.uid_mappings()), (0, 1000, 70_000));
    assert_eq!(mapped(linux.gid_mappings()), (0, 2000, 65_536));
    let sysctl = linux.sysctl().as_ref().unwrap();
    assert_eq!(sysctl["net.ipv4.ping_group_range"], "0 65535");
    let plain = process(&HostConfig::default());
    let linux = plain.linux().as_ref().unwrap();
    assert!(linux.uid_mappings().is_none() && linux.gid_mappings().is_none());
}

fn make(isolation: IsolationKind, host: &HostConfig) -> Spec {
    try_make(isolation, &config(), host).unwrap()
}

fn process(host: &HostConfig) -> Spec {
    make(IsolationKind::Process, host)
}

fn namespaces(spec: &Spec) -> Vec<LinuxNamespaceType> {
    let linux = spec.linux().as_ref().unwrap();
    let mut types: Vec<_> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(|namespace| namespace.typ())
        .collect();
    types.sort_by_key(|typ| *typ as u32);
    types
}

fn mount<'a>(spec: &'a Spec, destination: &str) -> Option<&'a Mount> {
    spec.mounts()
        .iter()
        .flatten()
        .find(|mount| mount.destination() == Path::new(destination))
}

fn options(spec: &Spec, destination: &str) -> Vec<String> {
    mount(spec, destination).unwrap().options().clone().unwrap()
}

#[test]
fn command_directory_and_environment() {
    let config = ContainerConfig {
        env: list(&["A=1", "PATH=/mine", "HOSTNAME"]),
        tty: Some(true),
        user: Some("app:staff".to_owned()),
        working_dir: Some("/srv".to_owned()),
        domainname: Some("example".to_owned()),
        ..config()
    };
    let host = HostConfig {
        console_size: Some(vec![24, 80]),
        group_add: list(&["audio", "27"]),
        ..HostConfig::default()
    };
    let spec = try_make(IsolationKind::Process, &config, &host).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args(), &list(&["/entry", "a", "b"]));
    assert_eq!(process.env(), &list(&["PATH=/mine", "TERM=xterm", "A=1"]));
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!(process.terminal(), Some(true));
    let size = process.console_size().unwrap();
    assert_eq!((size.height(), size.width()), (24, 80));
    assert_eq!(process.user().username().as_deref(), Some("app:staff"));
    assert_eq!(process.user().additional_gids(), &Some(vec![27]));
    let annotations = spec.annotations().as_ref().unwrap();
    assert_eq!(annotations[GROUP_ADD_ANNOTATION], "audio");
    assert_eq!(spec.hostname().as_deref(), Some("box"));
    assert_eq!(spec.domainname().as_deref(), Some("example"));
}

#[test]
fn what_nothing_was_said_about_is_as_in_docker() {
    let spec = process(&HostConfig::default());
    let process = spec.process().as_ref().unwrap();
    assert_eq!(
        process.env().as_ref().unwrap(),
        &[
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=box"
        ]
    );
    assert_eq!(process.cwd(), Path::new("/"));
    assert_eq!(process.no_new_privileges(), Some(false));
    let capabilities = process.capabilities().as_ref().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 14);
    assert!(capabilities.inheritable().as_ref().unwrap().is_empty());
    assert!(process.rlimits().as_ref().unwrap().is_empty());

    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_some());
    assert!(
        linux
            .masked_paths()
            .as_ref()
            .unwrap()
            .contains(&"/proc/kcore".to_owned())
    );
    assert!(
        linux
            .readonly_paths()
            .as_ref()
            .unwrap()
            .contains(&"/proc/sys".to_owned())
    );
    assert_eq!(
        linux.cgroups_path().as_deref(),
        Some(Path::new("/bulkhead/0123"))
    );
    assert_eq!(
        linux.sysctl().as_ref().unwrap()["net.ipv4.ping_group_range"],
        "0 2147483647"
    );
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
    assert!(options(&spec, "/sys").contains(&"ro".to_owned()));
    assert!(options(&spec, "/dev/shm").contains(&"size=67108864".to_owned()));
}

#[test]
fn namespaces_of_a_process_container() {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let spec = process(&HostConfig::default());
    assert_eq!(namespaces(&spec), sorted([Mount, Uts, Ipc, Pid, Network]));
    let network = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
    let network = network.iter().find(|n| n.typ() == Network).unwrap();
    assert_eq!(network.path().as_deref(), Some(Path::new("/run/netns/x")));

    let private = HostConfig {
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        ..HostConfig::default()
    };
    assert!(namespaces(&process(&private)).contains(&Cgroup));

    let shared = HostConfig {
        pid_mode: Some("host".to_owned()),
        network_mode: Some("host".to_owned()),
        ipc_mode: Some("host".to_owned()),
        uts_mode: Some("host".to_owned()),
        ..HostConfig::default()
    };
    let spec = process(&shared);
    assert_eq!(namespaces(&spec), [Mount]);
    assert_eq!(spec.hostname(), &None);
    assert!(
        spec.linux()
            .as_ref()
            .unwrap()
            .sysctl()
            .as_ref()
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        mount(&spec, "/dev/shm").unwrap().typ().as_deref(),
        Some("bind")
    );
}

#[test]
fn namespaces_inside_a_vm() {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let spec = make(IsolationKind::Hyperv, &HostConfig::default());
    let expected = sorted([Mount, Uts, Ipc, Pid, Cgroup, Network]);
    assert_eq!(namespaces(&spec), expected);
    let of_the_machine = HostConfig {
        pid_mode: Some("host".to_owned()),
        ipc_mode: Some("host".to_owned()),
        uts_mode: Some("host".to_owned()),
        ..HostConfig::default()
    };
    let shared = make(IsolationKind::Hyperv, &of_the_machine);
    assert_eq!(
        namespaces(&shared),
        sorted([Mount, Uts, Ipc, Cgroup, Network])
    );
    assert!(
        shared.hostname().is_some(),
        "the machine has none of the host's by itself"
    );
    let shm = mount(&shared, "/dev/shm").unwrap();
    assert_eq!(shm.typ().as_deref(), Some("tmpfs"));
    let process = spec.process().as_ref().unwrap();
    let limits = process.rlimits().as_ref().unwrap();
    assert_eq!(limits[0].typ(), PosixRlimitType::RlimitNofile);
}

fn sorted<const N: usize>(mut types: [LinuxNamespaceType; N]) -> Vec<LinuxNamespaceType> {
    types.sort_by_key(|typ| *typ as u32);
    types.to_vec()
}

#[test]
fn privileged() {
    let host = HostConfig {
        privileged: Some(true),
        ..HostConfig::default()
    };
    let spec = process(&host);
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none());
    assert!(linux.masked_paths().as_ref().unwrap().is_empty());
    assert!(linux.readonly_paths().as_ref().unwrap().is_empty());
    assert!(options(&spec, "/sys").contains(&"rw".to_owned()));
    assert!(options(&spec, "/sys/fs/cgroup").contains(&"rw".to_owned()));
    let nodes = linux.devices().as_ref().unwrap();
    assert!(
        nodes
            .iter()
            .any(|device| device.path() == Path::new("/dev/null"))
    );
    let rules = linux
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .clone()
        .unwrap();
    assert!(rules.len() == 1 && rules[0].allow());

    let vm = make(IsolationKind::Hyperv, &host);
    // What any kernel makes by itself, and nothing of the host's.
    let devices = vm.linux().as_ref().unwrap().devices().clone().unwrap();
    let numbers: Vec<_> = devices
        .iter()
        .map(|one| (one.major(), one.minor()))
        .collect();
    assert_eq!(numbers, [(10, 229), (10, 200)]);
    let capabilities = vm
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .clone()
        .unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 41);
}

#[test]
fn limits() {
    let host = HostConfig {
        memory: Some(64 << 20),
        memory_swap: Some(128 << 20),
        memory_reservation: Some(32 << 20),
        memory_swappiness: Some(10),
        nano_cpus: Some(1_500_000_000),
        cpu_shares: Some(512),
        cpuset_cpus: Some("0".to_owned()),
        pids_limit: Some(100),
        blkio_weight: Some(300),
        oom_kill_disable: Some(true),
        oom_score_adj: Some(500),
        ulimits: Some(vec![ResourcesUlimits {
            name: Some("nofile".to_owned()),
            soft: Some(1024),
            hard: Some(-1),
        }]),
        ..HostConfig::default()
    };
    let spec = process(&host);
    let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
    let memory = resources.memory().unwrap();
    assert_eq!(memory.limit(), Some(64 << 20));
    assert_eq!(memory.swap(), Some(128 << 20));
    assert_eq!(memory.reservation(), Some(32 << 20));
    assert_eq!(memory.swappiness(), Some(10));
    assert_eq!(memory.disable_oom_killer(), Some(true));
    let cpu = resources.cpu().as_ref().unwrap();
    assert_eq!((cpu.quota(), cpu.period()), (Some(150_000), Some(100_000)));
    assert_eq!(cpu.shares(), Some(512));
    assert_eq!(cpu.cpus().as_deref(), Some("0"));
    assert_eq!(resources.pids().as_ref().unwrap().limit(), 100);
    assert_eq!(resources.block_io().as_ref().unwrap().weight(), Some(300));
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.oom_score_adj(), Some(500));
    let limit = process.rlimits().as_ref().unwrap()[0];
    assert_eq!((limit.soft(), limit.hard()), (1024, u64::MAX));
}

#[test]
fn what_means_unlimited_is_not_a_limit() {
    let host = HostConfig {
        memory: Some(0),
        memory_swap: Some(0),
        memory_swappiness: Some(-1),
        pids_limit: Some(-1),
        cpu_quota: Some(0),
        ..HostConfig::default()
    };
    let resources = process(&host)
        .linux()
        .as_ref()
        .unwrap()
        .resources()
        .clone()
        .unwrap();
    let memory = resources.memory().unwrap();
    assert_eq!(
        (memory.limit(), memory.swap(), memory.swappiness()),
        (None, None, None)
    );
    assert!(resources.pids().is_none());
    assert_eq!(resources.cpu().as_ref().unwrap().quota(), None);
}

#[test]
fn tmpfs_read_only_root_and_options() {
    let host = HostConfig {
        readonly_rootfs: Some(true),
        tmpfs: Some(HashMap::from([
            ("/run".to_owned(), "size=1m".to_owned()),
            ("/dev/shm".to_owned(), "exec".to_owned()),
        ])),
        security_opt: list(&["no-new-privileges", "seccomp=unconfined"]),
        ..HostConfig::default()
    };
    let spec = process(&host);
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(
        options(&spec, "/run"),
        ["noexec", "nosuid", "nodev", "rprivate", "size=1m"]
    );
    let shm: Vec<_> = spec
        .mounts()
        .iter()
        .flatten()
        .filter(|mount| mount.destination() == Path::new("/dev/shm"))
        .collect();
    assert_eq!(shm.len(), 1);
    assert_eq!(
        spec.process().as_ref().unwrap().no_new_privileges(),
        Some(true)
    );
    assert!(spec.linux().as_ref().unwrap().seccomp().is_none());
}

#[test]
fn devices() {
    let host = HostConfig {
        devices: Some(vec![DeviceMapping {
            path_on_host: Some("/dev/null".to_owned()),
            path_in_container: Some("/dev/nothing".to_owned()),
            cgroup_permissions: Some("r".to_owned()),
        }]),
        device_cgroup_rules: list(&["b 8:* rw"]),
        ..HostConfig::default()
    };
    let spec = process(&host);
    let linux = spec.linux().as_ref().unwrap();
    let node = &linux.devices().as_ref().unwrap()[0];
    assert_eq!(node.path(), Path::new("/dev/nothing"));
    assert_eq!(
        (node.typ(), node.major(), node.minor()),
        (LinuxDeviceType::C, 1, 3)
    );
    let rules = linux
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .clone()
        .unwrap();
    assert!(!rules[0].allow());
    assert!(
        rules
            .iter()
            .any(|r| r.access().as_deref() == Some("r") && r.minor() == Some(3))
    );
    assert_eq!(rules.last().unwrap().major(), Some(8));

    let missing = HostConfig {
        devices: Some(vec![DeviceMapping {
            path_on_host: Some("/dev/nosuch".to_owned()),
            ..DeviceMapping::default()
        }]),
        ..HostConfig::default()
    };
    let error = try_make(IsolationKind::Process, &config(), &missing).unwrap_err();
    assert!(error.to_string().contains("/dev/nosuch"));
}

#[test]
fn a_process_that_joins() {
    let config = ContainerConfig {
        env: list(&["A=1"]),
        user: Some("app".to_owned()),
        working_dir: Some("/srv".to_owned()),
        ..config()
    };
    let host = HostConfig {
        cap_drop: list(&["ALL"]),
        ..HostConfig::default()
    };
    let facts = facts();
    let command = ["sh".to_owned()];
    let input = ExecInput {
        isolation: IsolationKind::Hyperv,
        hostname: "box",
        config: &config,
        host_config: &host,
        command: &command,
        env: &["A=2".to_owned(), "B=3".to_owned()],
        user: None,
        working_dir: Some(""),
        tty: true,
        privileged: false,
        console_size: Some((10, 20)),
        facts: &facts,
    };
    let process = exec_process(&input).unwrap();
    assert_eq!(process.args(), &list(&["sh"]));
    assert_eq!(
        process.env().as_ref().unwrap()[1..],
        ["HOSTNAME=box", "TERM=xterm", "A=2", "B=3"]
    );
    assert_eq!(process.user().username().as_deref(), Some("app"));
    assert_eq!(process.cwd(), Path::new("/srv"));
    let capabilities = process.capabilities().as_ref().unwrap();
    assert!(capabilities.effective().as_ref().unwrap().is_empty());

    let all = exec_process(&ExecInput {
        privileged: true,
        user: Some("0"),
        ..input
    })
    .unwrap();
    assert_eq!(all.user().username().as_deref(), Some("0"));
    let capabilities = all.capabilities().as_ref().unwrap();
    let effective = capabilities.effective().as_ref().unwrap();
    assert!(effective.contains(&Capability::SysAdmin));

    assert!(
        exec_process(&ExecInput {
            command: &[],
            ..input
        })
        .is_err()
    );
    let relative = ExecInput {
        working_dir: Some("x"),
        ..input
    };
    assert!(exec_process(&relative).is_err());
}
