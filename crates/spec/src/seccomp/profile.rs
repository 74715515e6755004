//! Profiles in Docker's JSON, as its CLI sends them with `--security-opt seccomp=<file>`: OCI's
//! format with conditions (capabilities, architectures, kernel) on each rule.

use std::str::FromStr;

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscallBuilder,
};
use serde::Deserialize;

use super::{ARCHITECTURE_NAMES, ARCHITECTURES, argument};
use crate::Invalid;

/// Largest profile that is read, bytes; Docker's own is 15 KiB.
const MAX_PROFILE: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<Arch>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: usize,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: LinuxSeccompOperator,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Reads a profile for a container with these capabilities.
///
/// # Errors
/// [`Invalid::SeccompProfile`].
pub(crate) fn load(json: &str, capabilities: &Capabilities) -> Result<LinuxSeccomp, Invalid> {
    let refused = |reason: String| Invalid::SeccompProfile(reason);
    if json.len() > MAX_PROFILE {
        return Err(refused(format!("larger than {MAX_PROFILE} bytes")));
    }
    let profile: Profile =
        serde_json::from_str(json).map_err(|error| refused(error.to_string()))?;
    if profile.listener_path.is_some() {
        return Err(Invalid::NotYet("a seccomp listener".to_owned()));
    }
    let architectures = architectures(&profile).map_err(|reason| refused(reason.to_owned()))?;
    let mut rules = Vec::new();
    for rule in profile.syscalls.into_iter().flatten() {
        if !applies(&rule, capabilities)? {
            continue;
        }
        let names = match (rule.name, rule.names) {
            (Some(_), Some(names)) if !names.is_empty() => {
                return Err(refused(
                    "'name' and 'names' in one rule; use either".to_owned(),
                ));
            }
            (Some(name), _) => vec![name],
            (None, names) => names.unwrap_or_default(),
        };
        if names.is_empty() {
            return Err(refused("a rule without names".to_owned()));
        }
        let mut built = LinuxSyscallBuilder::default()
            .names(names)
            .action(rule.action);
        if let Some(errno) = rule.errno_ret {
            built = built.errno_ret(errno);
        }
        let arguments = rule.args.unwrap_or_default();
        if !arguments.is_empty() {
            let arguments: Result<Vec<_>, _> = arguments
                .iter()
                .map(|a| {
                    if a.index > 5 {
                        return Err(refused(format!(
                            "a system call has no argument {}",
                            a.index
                        )));
                    }
                    argument(a.index, a.op, a.value, a.value_two)
                })
                .collect();
            built = built.args(arguments?);
        }
        rules.push(built.build().map_err(|error| refused(error.to_string()))?);
    }
    let mut built = LinuxSeccompBuilder::default()
        .default_action(profile.default_action)
        .architectures(architectures)
        .syscalls(rules);
    if let Some(errno) = profile.default_errno_ret {
        built = built.default_errno_ret(errno);
    }
    if let Some(flags) = profile.flags.filter(|flags| !flags.is_empty()) {
        built = built.flags(flags);
    }
    built.build().map_err(|error| refused(error.to_string()))
}

fn architectures(profile: &Profile) -> Result<Vec<Arch>, &'static str> {
    let plain = profile.architectures.clone().unwrap_or_default();
    let map = profile.arch_map.as_deref().unwrap_or_default();
    if !plain.is_empty() && !map.is_empty() {
        return Err("both 'architectures' and 'archMap'; use either");
    }
    let native = ARCHITECTURES[0];
    Ok(map
        .iter()
        .find(|entry| entry.architecture == native)
        .map_or(plain, |entry| {
            let mut all = vec![entry.architecture];
            all.extend(entry.sub_architectures.iter().flatten());
            all
        }))
}

fn applies(rule: &Rule, capabilities: &Capabilities) -> Result<bool, Invalid> {
    let has = |name: &String| {
        Capability::from_str(name.strip_prefix("CAP_").unwrap_or(name))
            .is_ok_and(|capability| capabilities.contains(&capability))
    };
    let here = |name: &String| ARCHITECTURE_NAMES[0] == name;
    let list = |items: &Option<Vec<String>>| items.clone().unwrap_or_default();
    if let Some(only) = &rule.includes {
        let arches = list(&only.arches);
        if !arches.is_empty() && !arches.iter().any(here) {
            return Ok(false);
        }
        if !list(&only.caps).iter().all(has) {
            return Ok(false);
        }
        if let Some(kernel) = &only.min_kernel
            && !kernel_is_at_least(kernel)?
        {
            return Ok(false);
        }
    }
    if let Some(but) = &rule.excludes {
        if list(&but.arches).iter().any(here) || list(&but.caps).iter().any(has) {
            return Ok(false);
        }
        if let Some(kernel) = &but.min_kernel
            && kernel_is_at_least(kernel)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares `major.minor` with the running kernel's.
fn kernel_is_at_least(wanted: &str) -> Result<bool, Invalid> {
    let wanted = major_minor(wanted)
        .ok_or_else(|| Invalid::SeccompProfile(format!("minKernel \"{wanted}\" is no version")))?;
    let release = rustix::system::uname();
    let running = major_minor(&release.release().to_string_lossy()).unwrap_or((0, 0));
    Ok(running >= wanted)
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let (major, rest) = version.split_once('.')?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &LinuxSeccomp) -> Vec<String> {
        profile
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|rule| rule.names().clone())
            .collect()
    }

    #[test]
    fn conditions_decide() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                       {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],
            "syscalls":[
              {"names":["read"],"action":"SCMP_ACT_ALLOW"},
              {"name":"old","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"3.0"}},
              {"names":["future"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"999.0"}},
              {"names":["s390"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390"]}},
              {"names":["chroot"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_CHROOT"]}},
              {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
              {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,
               "excludes":{"caps":["CAP_SYS_ADMIN"]}},
              {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":
                [{"index":0,"value":2114060288,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        let profile = load(json, &Capabilities::from([Capability::SysChroot])).unwrap();
        assert_eq!(
            names(&profile),
            ["read", "old", "chroot", "clone3", "clone"]
        );
        assert_eq!(profile.architectures().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn damaged_profiles_are_refused() {
        for json in [
            "",
            "{}",
            r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW","args":[{"index":9,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        ] {
            let result = load(json, &Capabilities::new());
            assert!(matches!(result, Err(Invalid::SeccompProfile(_))), "{json}");
        }
    }
}
