//! Device nodes of a container, and which devices its cgroup lets it use.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bollard_stubs::models::{DeviceMapping, HostConfig};
use bulkhead_isolation::KERNEL_DEVICES;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use crate::{Invalid, IsolationKind, SpecError, SpecInput};

/// What every container may use: null, zero, full, random, urandom, tty, console. What the
/// runtime makes itself (`/dev/pts`, `ptmx`) it also allows itself.
const DEFAULT: [(i64, i64); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1)];

/// Directories of `/dev` that belong to the host's own mounts.
const SKIPPED_DIRECTORIES: [&str; 7] =
    ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// How deep and how many nodes `/dev` is followed, against a tree made to be endless.
const MAX_DEPTH: usize = 8;
const MAX_NODES: usize = 4096;

/// Nodes to make and rules of the device cgroup.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// Nodes beyond those every runtime makes.
    pub(crate) nodes: Vec<LinuxDevice>,
    /// Rules; the first denies everything.
    pub(crate) rules: Vec<LinuxDeviceCgroup>,
}

/// The devices of a container.
pub(crate) fn of(input: &SpecInput<'_>) -> Result<Devices, SpecError> {
    let host_config = input.host_config;
    let mut out = Devices::default();
    if host_config.privileged == Some(true) {
        // In a VM the guest's own nodes are there; a host's belong to the host.
        if input.isolation == IsolationKind::Process {
            collect(Path::new("/dev"), Path::new("/dev"), 0, &mut out.nodes)?;
        } else {
            for name in ["/dev/fuse", "/dev/net/tun"] {
                out.nodes
                    .push(of_the_kernel(Path::new(name), Path::new(name))?);
            }
        }
        out.rules.push(rule(true, None, None, None, "rwm")?);
    } else {
        out.rules.push(rule(false, None, None, None, "rwm")?);
        for (major, minor) in DEFAULT {
            let character = Some(LinuxDeviceType::C);
            out.rules
                .push(rule(true, character, Some(major), Some(minor), "rwm")?);
        }
    }
    for mapping in host_config.devices.iter().flatten() {
        let mut mapped = Vec::new();
        let (from, to) = paths(mapping);
        if input.isolation == IsolationKind::Hyperv {
            let device = of_the_kernel(&from, &to)?;
            out.rules.push(rule(
                true,
                Some(device.typ()),
                Some(device.major()),
                Some(device.minor()),
                access(mapping),
            )?);
            out.nodes.retain(|other| other.path() != device.path());
            out.nodes.push(device);
            continue;
        }
        let real = std::fs::canonicalize(&from).map_err(|source| SpecError::Device {
            path: from.clone(),
            source,
        })?;
        let metadata = std::fs::metadata(&real).map_err(|source| SpecError::Device {
            path: from.clone(),
            source,
        })?;
        if metadata.is_dir() {
            collect(&real, &to, 0, &mut mapped)?;
        } else {
            let device = node(&to, &metadata)?.ok_or_else(|| {
                Invalid::Device(format!("{} is not a device node", from.display()))
            })?;
            mapped.push(device);
        }
        let access = access(mapping);
        for device in mapped {
            out.rules.push(rule(
                true,
                Some(device.typ()),
                Some(device.major()),
                Some(device.minor()),
                access,
            )?);
            out.nodes.retain(|other| other.path() != device.path());
            out.nodes.push(device);
        }
    }
    for text in host_config.device_cgroup_rules.iter().flatten() {
        out.rules.push(parse_rule(text)?);
    }
    Ok(out)
}

/// Whether a VM's kernel has this device by itself.
pub(crate) fn is_of_the_kernel(path: &str) -> bool {
    KERNEL_DEVICES.iter().any(|(name, ..)| *name == path)
}

/// A device that a VM's kernel has by itself.
fn of_the_kernel(from: &Path, to: &Path) -> Result<LinuxDevice, SpecError> {
    let found = KERNEL_DEVICES
        .iter()
        .find(|(name, ..)| Path::new(name) == from);
    let (_, major, minor) = found.ok_or_else(|| Invalid::OwnKernel {
        option: format!("--device={}", from.display()),
    })?;
    Ok(LinuxDeviceBuilder::default()
        .path(to)
        .typ(LinuxDeviceType::C)
        .major(i64::from(*major))
        .minor(i64::from(*minor))
        .file_mode(0o666_u32)
        .uid(0_u32)
        .gid(0_u32)
        .build()?)
}

/// Refuses mappings and rules that make no sense.
pub(crate) fn check(host_config: &HostConfig) -> Result<(), Invalid> {
    for text in host_config.device_cgroup_rules.iter().flatten() {
        read_rule(text).ok_or_else(|| bad_rule(text))?;
    }
    for mapping in host_config.devices.iter().flatten() {
        let (from, to) = paths(mapping);
        if !from.is_absolute() || !to.is_absolute() {
            return Err(Invalid::Device(format!(
                "bad format for path: {}",
                from.display()
            )));
        }
        if !is_access(access(mapping)) {
            return Err(Invalid::Device(format!(
                "invalid device mode: {}",
                access(mapping)
            )));
        }
    }
    Ok(())
}

fn paths(mapping: &DeviceMapping) -> (PathBuf, PathBuf) {
    let from = mapping.path_on_host.clone().unwrap_or_default();
    let to = mapping
        .path_in_container
        .clone()
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| from.clone());
    (PathBuf::from(from), PathBuf::from(to))
}

fn access(mapping: &DeviceMapping) -> &str {
    match mapping.cgroup_permissions.as_deref() {
        None | Some("") => "rwm",
        Some(access) => access,
    }
}

/// The nodes below a directory, under another name. What vanishes meanwhile is left out.
fn collect(
    from: &Path,
    to: &Path,
    depth: usize,
    out: &mut Vec<LinuxDevice>,
) -> Result<(), SpecError> {
    let failed = |source: io::Error| SpecError::Device {
        path: from.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            let skipped = SKIPPED_DIRECTORIES.iter().any(|skip| name == *skip);
            if !skipped && depth < MAX_DEPTH {
                collect(&entry.path(), &to.join(&name), depth + 1, out)?;
            }
        } else if name != "console"
            && out.len() < MAX_NODES
            && let Some(device) = node(&to.join(&name), &metadata)?
        {
            out.push(device);
        }
    }
    Ok(())
}

/// The node for a file; `None` when it is no device.
fn node(path: &Path, metadata: &Metadata) -> Result<Option<LinuxDevice>, SpecError> {
    let kind = metadata.file_type();
    let typ = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() {
        LinuxDeviceType::B
    } else {
        return Ok(None);
    };
    Ok(Some(
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(typ)
            .major(i64::from(rustix::fs::major(metadata.rdev())))
            .minor(i64::from(rustix::fs::minor(metadata.rdev())))
            .file_mode(metadata.permissions().mode() & 0o7777)
            .uid(metadata.uid())
            .gid(metadata.gid())
            .build()?,
    ))
}

fn rule(
    allow: bool,
    typ: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, SpecError> {
    let mut rule = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .access(access);
    if let Some(typ) = typ {
        rule = rule.typ(typ);
    }
    if let Some(major) = major {
        rule = rule.major(major);
    }
    if let Some(minor) = minor {
        rule = rule.minor(minor);
    }
    Ok(rule.build()?)
}

fn is_access(text: &str) -> bool {
    (1..=3).contains(&text.len()) && text.bytes().all(|byte| b"rwm".contains(&byte))
}

/// Kind, major, minor, access of `c 42:* rwm`.
type RuleParts<'a> = (LinuxDeviceType, Option<i64>, Option<i64>, &'a str);

fn read_rule(text: &str) -> Option<RuleParts<'_>> {
    let mut words = text.split(' ');
    let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !is_access(access) {
        return None;
    }
    let typ = match kind {
        "a" => LinuxDeviceType::A,
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => return None,
    };
    let number = |text: &str| match text {
        "*" => Some(None),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u32>().ok().map(|n| Some(i64::from(n)))
        }
        _ => None,
    };
    let (major, minor) = numbers.split_once(':')?;
    Some((typ, number(major)?, number(minor)?, access))
}

fn bad_rule(text: &str) -> Invalid {
    Invalid::Device(format!("invalid device cgroup rule format: '{text}'"))
}

fn parse_rule(text: &str) -> Result<LinuxDeviceCgroup, SpecError> {
    let (typ, major, minor, access) = read_rule(text).ok_or_else(|| bad_rule(text))?;
    rule(true, Some(typ), major, minor, access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_the_device_cgroup() {
        let rule = parse_rule("c 42:* rwm").unwrap();
        assert_eq!((rule.major(), rule.minor()), (Some(42), None));
        assert!(parse_rule("a *:* r").is_ok());
        for bad in [
            "",
            "x 1:1 r",
            "c 1 r",
            "c 1:1 z",
            "c 1:1 rwmr",
            "c -1:1 r",
            "c 1:1 r r",
            "c :1 r",
        ] {
            assert!(parse_rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_is_what_the_host_has() {
        let metadata = std::fs::metadata("/dev/null").unwrap();
        let device = node(Path::new("/dev/x"), &metadata).unwrap().unwrap();
        assert_eq!((device.major(), device.minor()), (1, 3));
        let directory = std::fs::metadata("/dev").unwrap();
        assert!(node(Path::new("/dev/x"), &directory).unwrap().is_none());
    }
}
