//! Docker's rules for capabilities.

use std::collections::HashSet;
use std::str::FromStr;

use bollard_stubs::models::HostConfig;
use oci_spec::runtime::{Capabilities, Capability};

use crate::Invalid;

/// What a container has unless told otherwise: Docker's fourteen.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability, in the kernel's numbering (`linux/capability.h`).
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Every capability that can be named.
pub fn known() -> &'static [Capability] {
    &ALL
}

/// The capabilities of a container's init and of processes that join it. `ALL` and
/// `--privileged` mean those of `available` ([`known`], or what a host has to give).
///
/// # Errors
/// [`Invalid::Capability`] for a name that no kernel knows.
pub fn effective(
    host_config: &HostConfig,
    available: &[Capability],
) -> Result<Capabilities, Invalid> {
    let add = parse("CapAdd", host_config.cap_add.as_deref())?;
    let drop = parse("CapDrop", host_config.cap_drop.as_deref())?;
    if host_config.privileged == Some(true) {
        return Ok(available.iter().copied().collect());
    }
    // Docker's order: `ALL` added, less what is dropped by name; else `ALL` dropped, and only
    // what is added; else the defaults, first dropped from, then added to.
    let base = match (add.all, drop.all) {
        (true, _) => available,
        (false, true) => &[],
        (false, false) => &DEFAULT,
    };
    let added = if add.all { HashSet::new() } else { add.named };
    Ok(base
        .iter()
        .copied()
        .filter(|capability| !drop.named.contains(capability))
        .chain(added)
        .collect())
}

/// The capabilities in a bounding set as `/proc/<pid>/status` prints it (`CapBnd`).
pub fn from_mask(mask: u64) -> Vec<Capability> {
    ALL.iter()
        .enumerate()
        .filter(|(bit, _)| mask >> bit & 1 == 1)
        .map(|(_, capability)| *capability)
        .collect()
}

/// A list of names, read.
#[derive(Debug, Default)]
struct Named {
    all: bool,
    named: HashSet<Capability>,
}

fn parse(option: &'static str, names: Option<&[String]>) -> Result<Named, Invalid> {
    let mut out = Named::default();
    for given in names.unwrap_or_default() {
        let upper = given.trim().to_uppercase();
        if upper == "ALL" {
            out.all = true;
            continue;
        }
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match Capability::from_str(short) {
            Ok(capability) => out.named.insert(capability),
            Err(_) => {
                return Err(Invalid::Capability {
                    option,
                    name: format!("CAP_{short}"),
                });
            }
        };
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(add: &[&str], drop: &[&str]) -> Result<Capabilities, Invalid> {
        let own = |names: &[&str]| Some(names.iter().map(|n| (*n).to_owned()).collect());
        let host_config = HostConfig {
            cap_add: own(add),
            cap_drop: own(drop),
            ..HostConfig::default()
        };
        effective(&host_config, known())
    }

    #[test]
    fn docker_gives_fourteen() {
        assert_eq!(caps(&[], &[]).unwrap(), DEFAULT.into_iter().collect());
    }

    #[test]
    fn names_with_and_without_prefix_in_any_case() {
        let caps = caps(&["net_admin", "CAP_SYS_TIME"], &["cap_chown", "KILL"]).unwrap();
        assert!(caps.contains(&Capability::NetAdmin) && caps.contains(&Capability::SysTime));
        assert!(!caps.contains(&Capability::Chown) && !caps.contains(&Capability::Kill));
        assert_eq!(caps.len(), 14);
    }

    #[test]
    fn all_added_but_one() {
        let caps = caps(&["ALL"], &["SYS_ADMIN"]).unwrap();
        assert_eq!(caps.len(), 40);
        assert!(!caps.contains(&Capability::SysAdmin));
    }

    #[test]
    fn all_dropped_but_one() {
        let caps = caps(&["NET_RAW"], &["all"]).unwrap();
        assert_eq!(caps, HashSet::from([Capability::NetRaw]));
    }

    #[test]
    fn an_unknown_name_is_refused_with_its_prefix() {
        let error = caps(&["FLY"], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid CapAdd: unknown capability: \"CAP_FLY\""
        );
    }

    #[test]
    fn privileged_has_every_one() {
        let host_config = HostConfig {
            privileged: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            ..HostConfig::default()
        };
        assert_eq!(effective(&host_config, known()).unwrap().len(), 41);
        assert_eq!(effective(&host_config, &from_mask(0b101)).unwrap().len(), 2);
    }
}
