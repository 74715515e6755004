//! What each instruction does to the configuration, in docker's words.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::go;
use super::join;
use super::stage::{Outcome, Stage};
use crate::dockerfile::{CommandLine, Instruction, Pair};
use crate::layer::Plan;
use crate::seam::BuildError;
use crate::tree::{Mtime, clean, resolve};
use crate::words;

/// Most ports that `EXPOSE` may make of ranges.
const MAX_PORTS: usize = 1 << 16;

impl Stage<'_, '_> {
    /// Carries an instruction out. Says whether it was in the cache.
    pub(super) fn dispatch(
        &mut self,
        text: &str,
        instruction: &Instruction,
    ) -> Result<bool, BuildError> {
        match instruction {
            Instruction::From { .. } => Err(BuildError::Invalid(
                "FROM isn't allowed as an ONBUILD trigger".to_owned(),
            )),
            Instruction::Arg(arguments) => self.arg(arguments),
            Instruction::Env(pairs) => self.env(pairs),
            Instruction::Label(pairs) => self.label(pairs),
            Instruction::Copy(spec) => self.copy(spec, "COPY"),
            Instruction::Add(spec) => self.copy(spec, "ADD"),
            Instruction::Run(command, options) => self.run(command, options),
            Instruction::Cmd(command) => {
                let words = self.words(command);
                let shown = go::quote_all(&words);
                self.config.cmd = Some(words);
                self.command_set = true;
                self.metadata(&format!("CMD {shown}"))
            }
            Instruction::Entrypoint(command) => {
                let words = self.words(command);
                let shown = go::quote_all(&words);
                self.config.entrypoint = Some(words).filter(|words| !words.is_empty());
                if !self.command_set {
                    self.config.cmd = None;
                }
                self.metadata(&format!("ENTRYPOINT {shown}"))
            }
            Instruction::Expose(ports) => self.expose(ports),
            Instruction::Volume(paths) => self.volume(paths),
            Instruction::User(user) => {
                let user = self.expand(user)?;
                self.config.user.clone_from(&user);
                self.metadata(&format!("USER {user}"))
            }
            Instruction::Workdir(path) => self.workdir(path),
            Instruction::StopSignal(signal) => {
                let signal = self.expand(signal)?;
                if !is_signal(&signal) {
                    return Err(BuildError::Invalid(format!("Invalid signal: {signal}")));
                }
                self.config.stop_signal = Some(signal.clone());
                self.metadata(&format!("STOPSIGNAL {signal}"))
            }
            Instruction::Shell(shell) => {
                self.config.shell = Some(shell.clone());
                self.metadata(&format!("SHELL [{}]", shell.join(" ")))
            }
            Instruction::Healthcheck(check) => {
                self.config.healthcheck = Some(check.clone());
                self.metadata(&format!("HEALTHCHECK {}", go::quote_healthcheck(check)))
            }
            Instruction::OnBuild(trigger) => {
                self.config
                    .on_build
                    .get_or_insert_default()
                    .push(trigger.clone());
                self.metadata(&format!("ONBUILD {trigger}"))
            }
            Instruction::Maintainer(author) => {
                self.author = Some(author.clone());
                self.metadata(text.replacen("maintainer", "MAINTAINER", 1).as_str())
            }
        }
    }

    /// The words of `CMD` and `ENTRYPOINT`.
    fn words(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Exec(words) => words.clone(),
            CommandLine::Shell { text, .. } if text.is_empty() => Vec::new(),
            CommandLine::Shell { text, .. } => {
                let mut words = self.shell();
                words.push(text.clone());
                words
            }
        }
    }

    fn arg(&mut self, arguments: &[(String, Option<String>)]) -> Result<bool, BuildError> {
        let mut shown = "ARG".to_owned();
        for (name, default) in arguments {
            let name = self.expand(name)?;
            let default = match default {
                Some(default) => Some(self.expand(default)?),
                None => None,
            };
            shown.push(' ');
            shown.push_str(&name);
            if let Some(default) = &default {
                shown.push('=');
                shown.push_str(default);
            }
            self.build.declare(&name);
            self.arguments.declare(&name, default);
        }
        self.metadata(&shown)
    }

    fn pairs(&self, pairs: &[Pair]) -> Result<Vec<Pair>, BuildError> {
        pairs
            .iter()
            .map(|(name, value)| Ok((self.expand(name)?, self.expand(value)?)))
            .collect()
    }

    fn env(&mut self, pairs: &[Pair]) -> Result<bool, BuildError> {
        let mut shown = "ENV".to_owned();
        // All see what was set before this line.
        for (name, value) in self.pairs(pairs)? {
            if name.is_empty() {
                return Err(BuildError::Invalid("ENV names can not be blank".to_owned()));
            }
            let entry = format!("{name}={value}");
            shown.push(' ');
            shown.push_str(&entry);
            let prefix = format!("{name}=");
            let env = &mut self.config.env;
            match env.iter_mut().find(|present| present.starts_with(&prefix)) {
                Some(present) => *present = entry,
                None => env.push(entry),
            }
        }
        self.metadata(&shown)
    }

    fn label(&mut self, pairs: &[Pair]) -> Result<bool, BuildError> {
        let mut shown = "LABEL".to_owned();
        for (name, value) in self.pairs(pairs)? {
            if name.is_empty() {
                return Err(BuildError::Invalid(
                    "LABEL names can not be blank".to_owned(),
                ));
            }
            shown.push_str(&format!(" {name}={value}"));
            self.config
                .labels
                .get_or_insert_with(BTreeMap::new)
                .insert(name, value);
        }
        self.metadata(&shown)
    }

    fn expose(&mut self, ports: &[String]) -> Result<bool, BuildError> {
        let variables = self.variables();
        let mut shown = Vec::new();
        for port in ports {
            let words = words::expand_to_words(port, self.build.file.escape, &variables)
                .map_err(BuildError::Invalid)?;
            shown.extend(words);
        }
        let exposed = self.config.exposed_ports.get_or_insert_with(BTreeMap::new);
        for port in &shown {
            for name in port_names(port).map_err(BuildError::Invalid)? {
                exposed.insert(name, Value::Object(Map::new()));
            }
            if exposed.len() > MAX_PORTS {
                return Err(BuildError::Invalid("too many exposed ports".to_owned()));
            }
        }
        self.metadata(&format!("EXPOSE {}", shown.join(" ")))
    }

    fn volume(&mut self, paths: &[String]) -> Result<bool, BuildError> {
        let mut shown = Vec::new();
        for path in paths {
            let path = self.expand(path.trim())?;
            if path.is_empty() {
                return Err(BuildError::Invalid(
                    "VOLUME specified can not be an empty string".to_owned(),
                ));
            }
            self.config
                .volumes
                .get_or_insert_with(BTreeMap::new)
                .insert(path.clone(), Value::Object(Map::new()));
            shown.push(path);
        }
        self.metadata(&format!("VOLUME [{}]", shown.join(" ")))
    }

    fn workdir(&mut self, path: &str) -> Result<bool, BuildError> {
        let path = self.expand(path)?;
        if path.is_empty() {
            return Err(BuildError::Invalid(
                "WORKDIR requires exactly one argument".to_owned(),
            ));
        }
        let path = join(&self.config.working_dir, &path);
        self.config.working_dir.clone_from(&path);
        let shell = self.shell().join(" ");
        let created_by = format!("{shell} #(nop) WORKDIR {path}");
        let tree = self.tree()?;
        let failed = |error| BuildError::files(format!("WORKDIR {path}"))(error);
        let target = resolve(&*tree, &clean(Path::new(&path))).map_err(failed)?;
        let failed = |error| BuildError::files(format!("WORKDIR {path}"))(error);
        let exists = target.as_os_str().is_empty() || tree.node(&target).map_err(failed)?.is_some();
        let outcome = Outcome {
            created_by,
            has_layer: !exists,
            key: Vec::new(),
        };
        self.finish(outcome, |stage| {
            if exists {
                return Ok(None);
            }
            let mut plan = Plan::default();
            stage.plan_directories(&mut plan, &target, (0, 0), true)?;
            stage.layer_of(plan).map(Some)
        })
    }

    /// When new files are made.
    pub(super) fn now(&self) -> Mtime {
        Mtime {
            seconds: self
                .build
                .epoch
                .unwrap_or_else(|| jiff::Timestamp::now().as_second()),
            nanoseconds: 0,
        }
    }
}

/// `80`, `80/udp`, `80-90`, also behind a host's part as in `run -p`.
fn port_names(text: &str) -> Result<Vec<String>, String> {
    let invalid = || format!("invalid containerPort: {text}");
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let range = range.rsplit(':').next().unwrap_or(range);
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {protocol}"));
    }
    let (start, end) = range.split_once('-').unwrap_or((range, range));
    let port = |text: &str| text.parse::<u16>().map_err(|_| invalid());
    let (start, end) = (port(start)?, port(end)?);
    if start > end {
        return Err(invalid());
    }
    Ok((start..=end)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

fn is_signal(signal: &str) -> bool {
    const NAMES: &str = " ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF \
                         PWR QUIT SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 \
                         VTALRM WINCH XCPU XFSZ RTMIN RTMAX ";
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |base: &str, sign: char| {
        name.strip_prefix(base)
            .and_then(|rest| rest.strip_prefix(sign))
            .and_then(|offset| offset.parse::<u8>().ok())
            .is_some_and(|offset| offset <= 15)
    };
    match signal.parse::<u8>() {
        Ok(number) => (1..=64).contains(&number),
        Err(_) => {
            !name.is_empty() && !name.contains(' ') && NAMES.contains(&format!(" {name} "))
                || realtime("RTMIN", '+')
                || realtime("RTMAX", '-')
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_signals() {
        assert_eq!(port_names("80").unwrap(), ["80/tcp"]);
        assert_eq!(port_names("8-9/UDP").unwrap(), ["8/udp", "9/udp"]);
        assert_eq!(port_names("8080:80").unwrap(), ["80/tcp"]);
        for bad in ["x", "1/x", "9-8", "99999"] {
            assert!(port_names(bad).is_err(), "{bad}");
        }
        for good in ["SIGTERM", "term", "9", "SIGRTMIN+3"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "NOPE", "0", "65", "INT IO"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
