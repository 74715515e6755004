//! What is mounted in a container beside its root: the kernel's file systems as Docker mounts
//! them, tmpfs that a user asks for, and files and directories of the host, among them volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bollard_stubs::models::{ContainerConfig, HostConfig, Mount as ApiMount, MountType};
use bulkhead_isolation::dev;
use oci_spec::runtime::{Mount, MountBuilder};

use crate::namespaces::{is_of_host, of_container};
use crate::{Invalid, IsolationKind, SpecError, SpecInput};

/// Size of `/dev/shm` unless told otherwise, bytes: Docker's.
pub(crate) const DEFAULT_SHM_SIZE: i64 = 64 << 20;

/// Options of a tmpfs that carry a value (`tmpfs(5)`).
const VALUED: [&str; 7] = [
    "size",
    "mode",
    "uid",
    "gid",
    "nr_inodes",
    "nr_blocks",
    "mpol",
];

/// Flags of a mount, with the group in which one replaces another.
const FLAGS: &[(&str, &str)] = &[
    ("defaults", "defaults"),
    ("ro", "rw"),
    ("rw", "rw"),
    ("suid", "suid"),
    ("nosuid", "suid"),
    ("dev", "dev"),
    ("nodev", "dev"),
    ("exec", "exec"),
    ("noexec", "exec"),
    ("sync", "sync"),
    ("async", "sync"),
    ("dirsync", "dirsync"),
    ("mand", "mand"),
    ("nomand", "mand"),
    ("atime", "atime"),
    ("noatime", "atime"),
    ("relatime", "relatime"),
    ("norelatime", "relatime"),
    ("strictatime", "strictatime"),
    ("nostrictatime", "strictatime"),
    ("diratime", "diratime"),
    ("nodiratime", "diratime"),
    ("private", "propagation"),
    ("rprivate", "propagation"),
    ("slave", "propagation"),
    ("rslave", "propagation"),
];

/// A file or directory of the host that a container gets: a volume or a bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it goes in the container, absolute and clean.
    pub destination: String,
    /// `rbind`, `ro`, `rprivate`…
    pub options: Vec<String>,
}

/// The mounts, in the order in which they are made.
pub(crate) fn of(input: &SpecInput<'_>) -> Result<Vec<Mount>, SpecError> {
    let host_config = input.host_config;
    let privileged = host_config.privileged == Some(true);
    let user = user_mounts(host_config, input.mounts)?;
    let mut out = Vec::new();
    for mut mount in defaults(host_config, input.isolation) {
        let replaced = user.contains_key(mount.destination)
            || (mount.destination.starts_with("/dev/") && user.contains_key("/dev"));
        if replaced {
            continue;
        }
        if privileged && matches!(mount.kind, "sysfs" | "cgroup") {
            for option in &mut mount.options {
                if option == "ro" {
                    "rw".clone_into(option);
                }
            }
        }
        out.push(
            MountBuilder::default()
                .destination(mount.destination)
                .typ(mount.kind)
                .source(mount.source)
                .options(mount.options)
                .build()?,
        );
    }
    // Sorted by path, so that a mount never hides one that was made before it.
    for (destination, mount) in user {
        let (kind, source) = match mount.source {
            Some(source) => ("bind", source),
            None => ("tmpfs", PathBuf::from("tmpfs")),
        };
        out.push(
            MountBuilder::default()
                .destination(destination)
                .typ(kind)
                .source(source)
                .options(mount.options)
                .build()?,
        );
    }
    Ok(out)
}

/// A mount of the user's.
struct UserMount {
    /// Of the host; a tmpfs has none.
    source: Option<PathBuf>,
    options: Vec<String>,
}

fn user_mounts(
    host_config: &HostConfig,
    of_host: &[HostMount],
) -> Result<BTreeMap<String, UserMount>, Invalid> {
    let mut out: BTreeMap<String, UserMount> = user_tmpfs(host_config)?
        .into_iter()
        .map(|(destination, options)| {
            let source = None;
            (destination, UserMount { source, options })
        })
        .collect();
    for mount in of_host {
        let made = UserMount {
            source: Some(mount.source.clone()),
            options: mount.options.clone(),
        };
        if out.insert(mount.destination.clone(), made).is_some() {
            return Err(Invalid::DuplicateMount(mount.destination.clone()));
        }
    }
    Ok(out)
}

struct Default {
    destination: &'static str,
    kind: &'static str,
    source: &'static str,
    options: Vec<String>,
}

fn defaults(host_config: &HostConfig, isolation: IsolationKind) -> Vec<Default> {
    let mount = |destination, kind, source, options: &[&str]| Default {
        destination,
        kind,
        source,
        options: options.iter().map(|o| (*o).to_owned()).collect(),
    };
    let mut out = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &dev::TMPFS_OPTIONS),
        mount("/dev/pts", "devpts", "devpts", &dev::DEVPTS_OPTIONS),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
    ];
    if is_of_host(isolation, host_config.ipc_mode.as_deref()) {
        let bind = &["rbind", "nosuid", "noexec", "nodev"];
        // Not every host has them mounted.
        for path in ["/dev/mqueue", "/dev/shm"] {
            if Path::new(path).is_dir() {
                out.push(mount(path, "bind", path, bind));
            }
        }
        return out;
    }
    let guarded = &["nosuid", "noexec", "nodev"];
    out.push(mount("/dev/mqueue", "mqueue", "mqueue", guarded));
    // Of another container: whoever knows where it is mounts it.
    let joined = of_container(host_config.ipc_mode.as_deref()).is_some();
    if !joined && host_config.ipc_mode.as_deref() != Some("none") {
        let size = host_config.shm_size.filter(|size| *size > 0);
        let mut shm = mount("/dev/shm", "tmpfs", "shm", guarded);
        shm.options.push("mode=1777".to_owned());
        shm.options
            .push(format!("size={}", size.unwrap_or(DEFAULT_SHM_SIZE)));
        out.push(shm);
    }
    out
}

/// Every tmpfs that was asked for (`--tmpfs`, `--mount type=tmpfs`), by path, with its options.
///
/// # Errors
/// What [`check`] refuses.
fn user_tmpfs(host_config: &HostConfig) -> Result<BTreeMap<String, Vec<String>>, Invalid> {
    let mut out = BTreeMap::new();
    for (destination, options) in host_config.tmpfs.iter().flatten() {
        let given: Vec<String> = options
            .split(',')
            .filter(|option| !option.is_empty())
            .map(str::to_owned)
            .collect();
        insert(&mut out, destination, &given)?;
    }
    for mount in host_config.mounts.iter().flatten() {
        if mount.typ == Some(MountType::TMPFS) {
            let destination = mount.target.clone().unwrap_or_default();
            insert(&mut out, &destination, &tmpfs_options(mount))?;
        }
    }
    Ok(out)
}

/// Where there is a tmpfs of the user's.
pub(crate) fn user_tmpfs_destinations(
    host_config: &HostConfig,
) -> Result<BTreeSet<String>, Invalid> {
    Ok(user_tmpfs(host_config)?.into_keys().collect())
}

fn insert(
    out: &mut BTreeMap<String, Vec<String>>,
    destination: &str,
    given: &[String],
) -> Result<(), Invalid> {
    let clean = clean_destination("tmpfs", destination)?;
    let options = merge_options(given)?;
    if out.insert(clean, options).is_some() {
        return Err(Invalid::DuplicateMount(destination.to_owned()));
    }
    Ok(())
}

/// The options of a `--mount type=tmpfs` as strings.
fn tmpfs_options(mount: &ApiMount) -> Vec<String> {
    let mut out = Vec::new();
    if mount.read_only == Some(true) {
        out.push("ro".to_owned());
    }
    let Some(options) = &mount.tmpfs_options else {
        return out;
    };
    if let Some(mode) = options.mode.filter(|mode| *mode != 0) {
        out.push(format!("mode={mode:o}"));
    }
    if let Some(size) = options.size_bytes.filter(|size| *size != 0) {
        out.push(format!("size={size}"));
    }
    for option in options.options.iter().flatten() {
        out.push(option.join("="));
    }
    out
}

/// Docker's defaults with the user's options over them; of options that exclude each other the
/// last one counts.
fn merge_options(given: &[String]) -> Result<Vec<String>, Invalid> {
    let mut out: Vec<(String, String)> = Vec::new();
    let defaults = ["noexec", "nosuid", "nodev", "rprivate"].map(str::to_owned);
    for option in defaults.iter().chain(given) {
        let refused = || Invalid::TmpfsOption(option.clone());
        let group = match option.split_once('=') {
            Some((name, value)) => {
                let plain = value
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"%:-,=".contains(&byte));
                if !VALUED.contains(&name) || value.is_empty() || !plain {
                    return Err(refused());
                }
                name.to_owned()
            }
            None => FLAGS
                .iter()
                .find(|(flag, _)| flag == option)
                .map(|(_, group)| (*group).to_owned())
                .ok_or_else(refused)?,
        };
        out.retain(|(other, _)| *other != group);
        out.push((group, option.clone()));
    }
    Ok(out.into_iter().map(|(_, option)| option).collect())
}

/// An absolute path without `.`, `..` and doubled slashes.
pub(crate) fn clean_destination(kind: &str, destination: &str) -> Result<String, Invalid> {
    let refused = |reason: &str| Invalid::Mount {
        kind: kind.to_owned(),
        reason: reason.to_owned(),
    };
    if !destination.starts_with('/') {
        return Err(refused(&format!(
            "invalid mount path: '{destination}' mount path must be absolute"
        )));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in destination.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(refused("invalid specification: destination can't be '/'"));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Refuses mounts that make no sense.
pub(crate) fn check(config: &ContainerConfig, host_config: &HostConfig) -> Result<(), Invalid> {
    for mount in host_config.mounts.iter().flatten() {
        let size = mount.tmpfs_options.as_ref().and_then(|o| o.size_bytes);
        if size.is_some_and(|size| size < 0) {
            return Err(Invalid::Mount {
                kind: "tmpfs".to_owned(),
                reason: "tmpfs size must not be negative".to_owned(),
            });
        }
    }
    crate::volumes_from(host_config)?;
    crate::requested_mounts(config, host_config).map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bollard_stubs::models::MountTmpfsOptions;

    use super::*;

    fn checked(host: &HostConfig) -> Result<(), Invalid> {
        check(&ContainerConfig::default(), host)
    }

    fn tmpfs(destination: &str, options: &str) -> HostConfig {
        HostConfig {
            tmpfs: Some(HashMap::from([(
                destination.to_owned(),
                options.to_owned(),
            )])),
            ..HostConfig::default()
        }
    }

    #[test]
    fn docker_defaults_with_the_users_options_over_them() {
        let mounts = user_tmpfs(&tmpfs("/run//x/", "rw,exec,size=64m,mode=1777")).unwrap();
        assert_eq!(
            mounts["/run/x"],
            [
                "nosuid",
                "nodev",
                "rprivate",
                "rw",
                "exec",
                "size=64m",
                "mode=1777"
            ]
        );
        let plain = user_tmpfs(&tmpfs("/tmp", "")).unwrap();
        assert_eq!(plain["/tmp"], ["noexec", "nosuid", "nodev", "rprivate"]);
    }

    #[test]
    fn bad_tmpfs_is_refused() {
        for (destination, options) in [
            ("tmp", ""),
            ("/", ""),
            ("/a/..", ""),
            ("/tmp", "remount"),
            ("/tmp", "bind"),
            ("/tmp", "lowerdir=/etc"),
            ("/tmp", "size="),
            ("/tmp", "size=1 2"),
        ] {
            assert!(
                checked(&tmpfs(destination, options)).is_err(),
                "{destination} {options}"
            );
        }
    }

    #[test]
    fn a_mount_of_type_tmpfs() {
        let host = HostConfig {
            mounts: Some(vec![ApiMount {
                typ: Some(MountType::TMPFS),
                target: Some("/cache".to_owned()),
                read_only: Some(true),
                tmpfs_options: Some(MountTmpfsOptions {
                    size_bytes: Some(1 << 20),
                    mode: Some(0o700),
                    options: None,
                }),
                ..ApiMount::default()
            }]),
            ..HostConfig::default()
        };
        checked(&host).unwrap();
        let options = &user_tmpfs(&host).unwrap()["/cache"];
        assert!(options.contains(&"size=1048576".to_owned()));
        assert!(options.contains(&"mode=700".to_owned()) && options.contains(&"ro".to_owned()));
    }

    #[test]
    fn the_same_path_twice_is_refused() {
        let mut host = tmpfs("/cache", "");
        host.mounts = Some(vec![ApiMount {
            typ: Some(MountType::TMPFS),
            target: Some("/cache/".to_owned()),
            ..ApiMount::default()
        }]);
        assert!(matches!(checked(&host), Err(Invalid::DuplicateMount(_))));
    }

    #[test]
    fn volumes_come_in_the_order_of_their_paths() {
        let host = tmpfs("/a/b", "");
        let mount = |destination: &str| HostMount {
            source: PathBuf::from("/src"),
            destination: destination.to_owned(),
            options: vec!["rbind".to_owned()],
        };
        let all = user_mounts(&host, &[mount("/a/b/c"), mount("/a")]).unwrap();
        let paths: Vec<_> = all.keys().map(String::as_str).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c"]);
        assert!(user_mounts(&host, &[mount("/a/b")]).is_err());
    }

    #[test]
    fn shm_has_its_size_and_none_has_none() {
        let mut host = HostConfig {
            shm_size: Some(1 << 20),
            ..HostConfig::default()
        };
        let shm = |host: &HostConfig| {
            defaults(host, IsolationKind::Process)
                .into_iter()
                .find(|mount| mount.destination == "/dev/shm")
                .map(|mount| mount.options.join(","))
        };
        assert_eq!(
            shm(&host).as_deref(),
            Some("nosuid,noexec,nodev,mode=1777,size=1048576")
        );
        host.ipc_mode = Some("none".to_owned());
        assert_eq!(shm(&host), None);
    }
}
