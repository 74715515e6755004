//! The command line, in the form that containerd gives to its shims (`-flag value`, with
//! one dash or two), and the flags of `probe`.

use std::path::PathBuf;

use bulkhead_isolation::VmEngine;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Become the supervisor of the container whose bundle is the working directory.
    Start,
    /// Clean up after a supervisor that was killed.
    Delete,
    /// Fill volumes from an image, as the order on stdin says.
    Populate,
    /// Say what this host can do.
    Probe,
    /// Say our version.
    Version,
}

/// A command line.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandLine {
    pub action: Action,
    pub id: String,
    pub namespace: String,
    /// The bundle, when it is not the working directory.
    pub bundle: Option<PathBuf>,
    pub debug: bool,
    pub vm_engine: VmEngine,
    pub guest_dir: Option<PathBuf>,
}

/// A command line that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    #[error("flag -{0} needs a value")]
    MissingValue(String),
    #[error("unknown flag -{0}")]
    UnknownFlag(String),
    #[error("unknown command {0}: expected start, delete, populate or probe")]
    UnknownAction(String),
    #[error("no command: expected start, delete, populate or probe")]
    NoAction,
    #[error("invalid container ID {0:?}: expected 1 to 128 of [A-Za-z0-9_.-]")]
    InvalidId(String),
    #[error("unknown VM engine {0}: the valid ones are auto, kvm and qemu")]
    UnknownEngine(String),
}

impl CommandLine {
    /// Reads the arguments after the program's name.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, CommandLineError> {
        let mut arguments = arguments;
        let mut action = None;
        let mut parsed = Self {
            action: Action::Version,
            id: String::new(),
            namespace: String::new(),
            bundle: None,
            debug: false,
            vm_engine: VmEngine::Auto,
            guest_dir: None,
        };
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix('-') else {
                action = Some(match argument.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "populate" => Action::Populate,
                    "probe" => Action::Probe,
                    _ => return Err(CommandLineError::UnknownAction(argument)),
                });
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (flag, inline) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (flag, None),
            };
            match flag {
                "debug" => {
                    parsed.debug = inline.is_none_or(|value| value == "true");
                    continue;
                }
                "v" | "version" => {
                    action = Some(Action::Version);
                    continue;
                }
                _ => {}
            }
            let value = inline.or_else(|| arguments.next());
            let value = value.ok_or_else(|| CommandLineError::MissingValue(flag.to_owned()))?;
            match flag {
                "id" => parsed.id = value,
                "namespace" => parsed.namespace = value,
                "bundle" => parsed.bundle = Some(value.into()),
                "vm-engine" => {
                    parsed.vm_engine = match value.as_str() {
                        "auto" => VmEngine::Auto,
                        "kvm" => VmEngine::Kvm,
                        "qemu" => VmEngine::Qemu,
                        _ => return Err(CommandLineError::UnknownEngine(value)),
                    }
                }
                "guest-dir" => parsed.guest_dir = Some(value.into()),
                // What containerd says about itself; nothing is published to it.
                "address" | "publish-binary" | "socket" => {}
                _ => return Err(CommandLineError::UnknownFlag(flag.to_owned())),
            }
        }
        parsed.action = action.ok_or(CommandLineError::NoAction)?;
        if matches!(parsed.action, Action::Start | Action::Delete) && !valid_id(&parsed.id) {
            return Err(CommandLineError::InvalidId(parsed.id));
        }
        Ok(parsed)
    }
}

fn valid_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=128).contains(&id.len()) && id.bytes().all(plain) && !id.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, CommandLineError> {
        CommandLine::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn as_containerd_calls_it() {
        let parsed = parse("-namespace moby -id abc -address= --bundle /b -debug start").unwrap();
        assert_eq!(parsed.action, Action::Start);
        assert_eq!(
            (parsed.id.as_str(), parsed.namespace.as_str()),
            ("abc", "moby")
        );
        assert_eq!(parsed.bundle, Some(PathBuf::from("/b")));
        assert!(parsed.debug);
    }

    #[test]
    fn probe_flags_follow_the_command() {
        let parsed = parse("probe --vm-engine qemu --guest-dir /g").unwrap();
        assert_eq!(parsed.vm_engine, VmEngine::Qemu);
        assert_eq!(parsed.guest_dir, Some(PathBuf::from("/g")));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(
            parse("-id ../x start"),
            Err(CommandLineError::InvalidId(_))
        ));
        assert!(matches!(
            parse("start"),
            Err(CommandLineError::InvalidId(_))
        ));
        assert!(matches!(parse("-id a"), Err(CommandLineError::NoAction)));
        assert!(matches!(
            parse("-nope x start"),
            Err(CommandLineError::UnknownFlag(_))
        ));
        assert!(matches!(
            parse("-id"),
            Err(CommandLineError::MissingValue(_))
        ));
    }
}
