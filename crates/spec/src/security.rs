//! `--security-opt`, `--privileged`, masked and read-only paths.

use bollard_stubs::models::HostConfig;
use oci_spec::runtime::{Capabilities, LinuxSeccomp};

use crate::{Invalid, seccomp};

/// Paths that tell about, or could disturb, the host: hidden from containers.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths whose files set things of the whole kernel.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Which seccomp profile was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SeccompChoice {
    /// The built-in one.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// This one, in Docker's JSON.
    Profile(String),
}

/// `SecurityOpt`, read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SecurityOptions {
    /// Whether exec may not give privileges.
    pub no_new_privileges: bool,
    /// The seccomp profile.
    pub seccomp: SeccompChoice,
}

impl SecurityOptions {
    /// Reads the options of a container. AppArmor's and SELinux's are accepted and have no
    /// effect, as in Docker on a host without them.
    ///
    /// # Errors
    /// [`Invalid::SecurityOption`].
    pub fn parse(host_config: &HostConfig) -> Result<Self, Invalid> {
        let mut out = Self::default();
        for option in host_config.security_opt.iter().flatten() {
            let refused = |position| Invalid::SecurityOption {
                position,
                option: option.clone(),
            };
            let split = option.split_once('=').or_else(|| option.split_once(':'));
            let Some((name, value)) = split else {
                // `disable` is the oldest spelling of `label=disable`.
                match option.as_str() {
                    "no-new-privileges" => out.no_new_privileges = true,
                    "disable" => {}
                    _ => return Err(refused(1)),
                }
                continue;
            };
            match name {
                "no-new-privileges" => {
                    out.no_new_privileges = match value {
                        "true" | "1" | "t" | "T" | "TRUE" | "True" => true,
                        "false" | "0" | "f" | "F" | "FALSE" | "False" => false,
                        _ => return Err(refused(2)),
                    }
                }
                "seccomp" => {
                    out.seccomp = match value {
                        "unconfined" => SeccompChoice::Unconfined,
                        "builtin" | "" => SeccompChoice::Default,
                        json => SeccompChoice::Profile(json.to_owned()),
                    }
                }
                "apparmor" | "label" => {}
                _ => return Err(refused(2)),
            }
        }
        Ok(out)
    }
}

/// The profile a container runs under; `None` for no filter.
///
/// # Errors
/// [`Invalid::SeccompProfile`].
pub(crate) fn seccomp_profile(
    host_config: &HostConfig,
    options: &SecurityOptions,
    capabilities: &Capabilities,
) -> Result<Option<LinuxSeccomp>, Invalid> {
    match &options.seccomp {
        SeccompChoice::Unconfined => Ok(None),
        // Privileged is without the built-in one; one that somebody named was meant.
        SeccompChoice::Default if host_config.privileged == Some(true) => Ok(None),
        SeccompChoice::Default => Ok(Some(seccomp::default_profile(capabilities)?)),
        SeccompChoice::Profile(json) => Ok(Some(seccomp::load(json, capabilities)?)),
    }
}

/// The paths that are hidden.
pub(crate) fn masked_paths(host_config: &HostConfig) -> Vec<String> {
    paths(host_config, host_config.masked_paths.as_ref(), &MASKED)
}

/// The paths that are read-only.
pub(crate) fn readonly_paths(host_config: &HostConfig) -> Vec<String> {
    paths(host_config, host_config.readonly_paths.as_ref(), &READ_ONLY)
}

/// An empty list in the request is a choice (`systempaths=unconfined`), a missing one is not.
fn paths(host_config: &HostConfig, own: Option<&Vec<String>>, default: &[&str]) -> Vec<String> {
    if host_config.privileged == Some(true) {
        return Vec::new();
    }
    own.cloned()
        .unwrap_or_else(|| default.iter().map(|path| (*path).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<SecurityOptions, Invalid> {
        SecurityOptions::parse(&HostConfig {
            security_opt: Some(options.iter().map(|o| (*o).to_owned()).collect()),
            ..HostConfig::default()
        })
    }

    #[test]
    fn both_spellings() {
        assert!(parse(&["no-new-privileges"]).unwrap().no_new_privileges);
        assert!(
            parse(&["no-new-privileges:true"])
                .unwrap()
                .no_new_privileges
        );
        assert!(
            !parse(&["no-new-privileges=false"])
                .unwrap()
                .no_new_privileges
        );
        assert_eq!(
            parse(&["seccomp:unconfined"]).unwrap().seccomp,
            SeccompChoice::Unconfined
        );
        assert_eq!(
            parse(&["seccomp={\"a\":1}", "apparmor=unconfined", "label=disable"])
                .unwrap()
                .seccomp,
            SeccompChoice::Profile("{\"a\":1}".to_owned())
        );
    }

    #[test]
    fn unknown_ones_are_refused() {
        assert!(parse(&["magic"]).is_err());
        assert!(parse(&["magic=on"]).is_err());
        assert!(parse(&["no-new-privileges=perhaps"]).is_err());
    }

    #[test]
    fn paths_by_default_by_request_and_privileged() {
        let mut host = HostConfig::default();
        assert!(masked_paths(&host).contains(&"/proc/kcore".to_owned()));
        assert!(readonly_paths(&host).contains(&"/proc/sys".to_owned()));
        host.masked_paths = Some(Vec::new());
        assert!(masked_paths(&host).is_empty() && !readonly_paths(&host).is_empty());
        host.privileged = Some(true);
        assert!(readonly_paths(&host).is_empty());
    }
}
