//! The process that runs: command, environment, user, capabilities, ulimits.

use std::path::Path;

use bollard_stubs::models::{ContainerConfig, HostConfig};
use oci_spec::runtime::{
    BoxBuilder, Capabilities, LinuxCapabilitiesBuilder, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Process, ProcessBuilder, User, UserBuilder,
};

use crate::security::SecurityOptions;
use crate::{HostFacts, Invalid, IsolationKind, SpecError, SpecInput};

/// `PATH` of a container whose image sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files that a process in a VM may have: what dockerd's own limit passes on to its
/// containers on a systemd host, and the kernel's `fs.nr_open`. With process isolation the
/// limit is inherited, as Docker's is.
const VM_OPEN_FILES: u64 = 1 << 20;

/// What an exec is made from.
#[derive(Debug, Clone, Copy)]
pub struct ExecInput<'a> {
    /// The isolation of the container.
    pub isolation: IsolationKind,
    /// The container's host name.
    pub hostname: &'a str,
    /// The container's merged configuration.
    pub config: &'a ContainerConfig,
    /// The container's host configuration.
    pub host_config: &'a HostConfig,
    /// The command.
    pub command: &'a [String],
    /// Variables beside the container's.
    pub env: &'a [String],
    /// `user[:group]`; `None` or empty for the container's.
    pub user: Option<&'a str>,
    /// Where to run; `None` or empty for the container's.
    pub working_dir: Option<&'a str>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it has every capability.
    pub privileged: bool,
    /// Height and width of the terminal.
    pub console_size: Option<(u64, u64)>,
    /// What the host can do.
    pub facts: &'a HostFacts,
}

/// The process of an exec.
///
/// # Errors
/// [`SpecError::Invalid`] for an empty command, a relative working directory, an environment
/// variable without a name.
pub fn exec_process(input: &ExecInput<'_>) -> Result<Process, SpecError> {
    if input.command.first().is_none_or(String::is_empty) {
        return Err(Invalid::NoCommand.into());
    }
    check_env(input.env)?;
    let container = environment(input.config, input.hostname, input.tty);
    let mut host_config = input.host_config.clone();
    if input.privileged {
        host_config.privileged = Some(true);
    }
    let parts = Parts {
        args: input.command.to_vec(),
        env: replace_or_append(container, input.env),
        user: non_empty(input.user).or(input.config.user.as_deref()),
        working_dir: non_empty(input.working_dir).or(input.config.working_dir.as_deref()),
        tty: input.tty,
        console_size: input.console_size,
        capabilities: crate::capabilities_of(&host_config, input.isolation, input.facts)?,
        no_new_privileges: SecurityOptions::parse(input.host_config)?.no_new_privileges,
        isolation: input.isolation,
        host_config: input.host_config,
    };
    Ok(parts.build()?.0)
}

/// The container's own process, and the names of groups that are still to be looked up.
pub(crate) fn init(
    input: &SpecInput<'_>,
    security: &SecurityOptions,
) -> Result<(Process, Vec<String>), SpecError> {
    let config = input.config;
    let host_config = input.host_config;
    let tty = config.tty.unwrap_or(false);
    let console_size = match host_config.console_size.as_deref() {
        Some([height, width]) if *height > 0 && *width > 0 => Some((
            u64::try_from(*height).unwrap_or(0),
            u64::try_from(*width).unwrap_or(0),
        )),
        _ => None,
    };
    check_env(config.env.as_deref().unwrap_or_default())?;
    Parts {
        args: command(config)?,
        env: environment(config, input.hostname, tty),
        user: config.user.as_deref(),
        working_dir: config.working_dir.as_deref(),
        tty,
        console_size,
        capabilities: crate::capabilities_of(host_config, input.isolation, input.facts)?,
        no_new_privileges: security.no_new_privileges,
        isolation: input.isolation,
        host_config,
    }
    .build()
}

/// The entrypoint and its arguments.
///
/// # Errors
/// [`Invalid::NoCommand`].
pub fn command(config: &ContainerConfig) -> Result<Vec<String>, Invalid> {
    let mut args = config.entrypoint.clone().unwrap_or_default();
    args.extend(config.cmd.iter().flatten().cloned());
    if args.is_empty() {
        return Err(Invalid::NoCommand);
    }
    Ok(args)
}

/// What init and exec have in common.
struct Parts<'a> {
    args: Vec<String>,
    env: Vec<String>,
    user: Option<&'a str>,
    working_dir: Option<&'a str>,
    tty: bool,
    console_size: Option<(u64, u64)>,
    capabilities: Capabilities,
    no_new_privileges: bool,
    isolation: IsolationKind,
    host_config: &'a HostConfig,
}

impl Parts<'_> {
    fn build(self) -> Result<(Process, Vec<String>), SpecError> {
        let cwd = non_empty(self.working_dir).unwrap_or("/");
        if !Path::new(cwd).is_absolute() {
            return Err(Invalid::WorkingDirectory(cwd.to_owned()).into());
        }
        // Inheritable and ambient stay empty: a set-user-ID program must not hand on more
        // than its files say.
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(self.capabilities.clone())
            .effective(self.capabilities.clone())
            .permitted(self.capabilities)
            .inheritable(Capabilities::new())
            .ambient(Capabilities::new())
            .build()?;
        let (user, group_names) = user(self.user, self.host_config)?;
        let mut process = ProcessBuilder::default()
            .args(self.args)
            .env(self.env)
            .cwd(cwd)
            .terminal(self.tty)
            .user(user)
            .capabilities(capabilities)
            .no_new_privileges(self.no_new_privileges)
            .rlimits(rlimits(self.host_config, self.isolation)?);
        if let Some(adj) = self.host_config.oom_score_adj.filter(|adj| *adj != 0) {
            let adj = i32::try_from(adj).map_err(|_| oom_score_adj_range(adj))?;
            process = process.oom_score_adj(adj);
        }
        if let (true, Some((height, width))) = (self.tty, self.console_size) {
            process =
                process.console_size(BoxBuilder::default().height(height).width(width).build()?);
        }
        Ok((process.build()?, group_names))
    }
}

/// The user as it was named, and groups that were added by number; those added by name come
/// back beside it.
fn user(name: Option<&str>, host_config: &HostConfig) -> Result<(User, Vec<String>), SpecError> {
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for group in host_config.group_add.iter().flatten() {
        match group.parse::<u32>() {
            Ok(number) => numbers.push(number),
            Err(_) => names.push(group.clone()),
        }
    }
    let mut user = UserBuilder::default().uid(0_u32).gid(0_u32);
    if !numbers.is_empty() {
        user = user.additional_gids(numbers);
    }
    // Root by default, and by name, since root too can be in more groups of the image.
    user = user.username(non_empty(name).unwrap_or("0"));
    Ok((user.build()?, names))
}

/// Docker's order: what the engine sets, then what image and user set over it.
fn environment(config: &ContainerConfig, hostname: &str, tty: bool) -> Vec<String> {
    let mut env = vec![
        format!("PATH={DEFAULT_PATH}"),
        format!("HOSTNAME={hostname}"),
    ];
    if tty {
        env.push("TERM=xterm".to_owned());
    }
    replace_or_append(env, config.env.as_deref().unwrap_or_default())
}

/// Variables of `over` replace those of the same name in place and are appended otherwise; one
/// without `=` removes.
fn replace_or_append(mut base: Vec<String>, over: &[String]) -> Vec<String> {
    for variable in over {
        let name = variable
            .split_once('=')
            .map_or(variable.as_str(), |(n, _)| n);
        let position = base
            .iter()
            .position(|mine| mine.split_once('=').is_some_and(|(n, _)| n == name));
        match (position, variable.contains('=')) {
            (Some(index), true) => base[index].clone_from(variable),
            (Some(index), false) => {
                base.remove(index);
            }
            (None, true) => base.push(variable.clone()),
            (None, false) => {}
        }
    }
    base
}

/// Refuses variables without a name, as dockerd does.
pub(crate) fn check_env(env: &[String]) -> Result<(), Invalid> {
    match env.iter().find(|v| v.is_empty() || v.starts_with('=')) {
        Some(bad) => Err(Invalid::Environment(bad.clone())),
        None => Ok(()),
    }
}

/// Ulimits of the container.
pub(crate) fn rlimits(
    host_config: &HostConfig,
    isolation: IsolationKind,
) -> Result<Vec<PosixRlimit>, SpecError> {
    let mut out: Vec<PosixRlimit> = Vec::new();
    for ulimit in host_config.ulimits.iter().flatten() {
        let name = ulimit.name.as_deref().unwrap_or_default();
        let typ = rlimit_type(name)
            .ok_or_else(|| Invalid::Ulimit(format!("invalid ulimit type: {name}")))?;
        let (soft, hard) = (ulimit.soft.unwrap_or(0), ulimit.hard.unwrap_or(0));
        let unlimited = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        if unlimited(soft) > unlimited(hard) {
            return Err(Invalid::Ulimit(format!(
                "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            ))
            .into());
        }
        out.retain(|other| other.typ() != typ);
        out.push(rlimit(typ, unlimited(soft), unlimited(hard))?);
    }
    let open_files = PosixRlimitType::RlimitNofile;
    if isolation == IsolationKind::Hyperv && !out.iter().any(|r| r.typ() == open_files) {
        out.push(rlimit(open_files, VM_OPEN_FILES, VM_OPEN_FILES)?);
    }
    Ok(out)
}

fn rlimit(typ: PosixRlimitType, soft: u64, hard: u64) -> Result<PosixRlimit, SpecError> {
    Ok(PosixRlimitBuilder::default()
        .typ(typ)
        .soft(soft)
        .hard(hard)
        .build()?)
}

/// Docker's names (no `as`).
fn rlimit_type(name: &str) -> Option<PosixRlimitType> {
    Some(match name {
        "core" => PosixRlimitType::RlimitCore,
        "cpu" => PosixRlimitType::RlimitCpu,
        "data" => PosixRlimitType::RlimitData,
        "fsize" => PosixRlimitType::RlimitFsize,
        "locks" => PosixRlimitType::RlimitLocks,
        "memlock" => PosixRlimitType::RlimitMemlock,
        "msgqueue" => PosixRlimitType::RlimitMsgqueue,
        "nice" => PosixRlimitType::RlimitNice,
        "nofile" => PosixRlimitType::RlimitNofile,
        "nproc" => PosixRlimitType::RlimitNproc,
        "rss" => PosixRlimitType::RlimitRss,
        "rtprio" => PosixRlimitType::RlimitRtprio,
        "rttime" => PosixRlimitType::RlimitRttime,
        "sigpending" => PosixRlimitType::RlimitSigpending,
        "stack" => PosixRlimitType::RlimitStack,
        _ => return None,
    })
}

pub(crate) fn oom_score_adj_range(value: i64) -> Invalid {
    Invalid::Limit(format!(
        "Invalid value {value}, range for oom score adj is [-1000, 1000]"
    ))
}

fn non_empty(value: Option<&str>) -> Option<&str> {
    value.filter(|value| !value.is_empty())
}
