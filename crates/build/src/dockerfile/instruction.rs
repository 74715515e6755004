//! The instructions.

use bulkhead_image::Healthcheck;

use super::{Heredoc, Line, json_array};
use crate::seam::CacheSharing;
use crate::words;

/// What an instruction says, before substitution.
#[derive(Debug, Clone, PartialEq)]
pub enum Instruction {
    /// `FROM`.
    From {
        /// Image or stage.
        base: String,
        /// `AS`.
        name: Option<String>,
        /// `--platform`.
        platform: Option<String>,
    },
    /// `ARG`.
    Arg(Vec<(String, Option<String>)>),
    /// `ENV`.
    Env(Vec<Pair>),
    /// `LABEL`.
    Label(Vec<Pair>),
    /// `COPY`.
    Copy(CopySpec),
    /// `ADD`.
    Add(CopySpec),
    /// `RUN`.
    Run(CommandLine, RunOptions),
    /// `CMD`.
    Cmd(CommandLine),
    /// `ENTRYPOINT`.
    Entrypoint(CommandLine),
    /// `EXPOSE`.
    Expose(Vec<String>),
    /// `VOLUME`.
    Volume(Vec<String>),
    /// `USER`.
    User(String),
    /// `WORKDIR`.
    Workdir(String),
    /// `STOPSIGNAL`.
    StopSignal(String),
    /// `SHELL`.
    Shell(Vec<String>),
    /// `HEALTHCHECK`.
    Healthcheck(Healthcheck),
    /// `ONBUILD`: the text of the trigger, with the heredocs that it opened.
    OnBuild(String),
    /// `MAINTAINER`.
    Maintainer(String),
}

/// A name and a value, quotes and variables as written.
pub type Pair = (String, String);

/// A command in one of its forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// A text for the shell.
    Shell {
        /// The text.
        text: String,
        /// Its heredocs.
        heredocs: Vec<Heredoc>,
    },
    /// The words themselves.
    Exec(Vec<String>),
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopySpec {
    /// `--from`.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--checksum` of `ADD`.
    pub checksum: Option<String>,
    /// `--exclude`.
    pub exclude: Vec<String>,
    /// `--parents`.
    pub parents: bool,
    /// What is copied.
    pub sources: Vec<String>,
    /// Files written in the Dockerfile; a source that is `<<NAME` means one.
    pub heredocs: Vec<Heredoc>,
    /// Where to.
    pub target: String,
}

/// The flags of `RUN`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// `--mount`.
    pub mounts: Vec<Mount>,
    /// `--network`.
    pub network: Option<String>,
}

/// A mount of `RUN --mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What kind.
    pub kind: MountKind,
    /// Where.
    pub target: String,
    /// The path in the source.
    pub source: String,
    /// Stage or image.
    pub from: Option<String>,
    /// Whether it may not be written.
    pub read_only: bool,
    /// Name of a cache or a secret.
    pub id: Option<String>,
    /// Whether the step fails without the secret.
    pub required: bool,
    /// Permission bits of a new cache directory or of the secret.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes of a tmpfs.
    pub size: Option<u64>,
    /// Who may use a cache together.
    pub sharing: CacheSharing,
}

/// Kinds of mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// Of the context, a stage or an image.
    Bind,
    /// A directory that stays between builds.
    Cache,
    /// Memory.
    Tmpfs,
    /// A file that is not in the image.
    Secret,
}

type Parsed<T> = Result<T, String>;

/// Parses a logical line.
pub(super) fn parse(line: &Line, escape: char) -> Parsed<Instruction> {
    let (word, rest) = match line.text.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim()),
        None => (line.text.as_str(), ""),
    };
    let keyword = word.to_ascii_uppercase();
    let (flags, rest) = flags(rest, escape)?;
    let mut flags = Flags { flags };
    let instruction = match keyword.as_str() {
        "FROM" => from(rest, &mut flags)?,
        "ARG" => Instruction::Arg(arguments(rest, escape)?),
        "ENV" => Instruction::Env(pairs("ENV", rest, escape)?),
        "LABEL" => Instruction::Label(pairs("LABEL", rest, escape)?),
        "COPY" => Instruction::Copy(copy("COPY", rest, line, escape, &mut flags)?),
        "ADD" => Instruction::Add(copy("ADD", rest, line, escape, &mut flags)?),
        "RUN" => {
            let options = run_options(&mut flags)?;
            if rest.is_empty() {
                return Err("RUN requires at least one argument".to_owned());
            }
            Instruction::Run(command(rest, &line.heredocs)?, options)
        }
        // Without a word they take back what the base says.
        "CMD" if rest.is_empty() => Instruction::Cmd(CommandLine::Exec(Vec::new())),
        "ENTRYPOINT" if rest.is_empty() => Instruction::Entrypoint(CommandLine::Exec(Vec::new())),
        "CMD" => Instruction::Cmd(command(rest, &[])?),
        "ENTRYPOINT" => Instruction::Entrypoint(command(rest, &[])?),
        "EXPOSE" => Instruction::Expose(at_least_one("EXPOSE", words::split(rest, escape))?),
        "VOLUME" => {
            let paths = json_array(rest)
                .unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
            let paths = at_least_one("VOLUME", paths)?;
            if paths.iter().any(|path| path.trim().is_empty()) {
                return Err("VOLUME specified can not be an empty string".to_owned());
            }
            Instruction::Volume(paths)
        }
        "USER" => Instruction::User(one("USER", rest)?),
        "WORKDIR" => Instruction::Workdir(one("WORKDIR", rest)?),
        "STOPSIGNAL" => Instruction::StopSignal(one("STOPSIGNAL", rest)?),
        "MAINTAINER" => Instruction::Maintainer(one("MAINTAINER", rest)?),
        "SHELL" => match json_array(rest) {
            Some(shell) if !shell.is_empty() => Instruction::Shell(shell),
            Some(_) => return Err("SHELL requires at least one argument".to_owned()),
            None => return Err("SHELL requires the arguments to be in JSON form".to_owned()),
        },
        "HEALTHCHECK" => healthcheck(rest, &mut flags)?,
        "ONBUILD" => {
            // Its flags belong to the trigger.
            let whole = line.text[word.len()..].trim();
            return on_build(whole, line, escape);
        }
        _ => return Err(format!("unknown instruction: {keyword}")),
    };
    flags.done()?;
    Ok(instruction)
}

/// Parses what `ONBUILD` stored.
///
/// # Errors
/// As a Dockerfile's line.
pub fn parse_trigger(text: &str, escape: char) -> Parsed<(String, Instruction)> {
    let mut lines = super::lines::split(text.as_bytes())
        .map_err(|error| error.why)?
        .lines;
    if lines.len() != 1 {
        return Err("an ONBUILD trigger is one instruction".to_owned());
    }
    let line = lines.remove(0);
    let instruction = parse(&line, escape)?;
    match instruction {
        Instruction::From { .. } => Err("FROM isn't allowed as an ONBUILD trigger".to_owned()),
        Instruction::OnBuild(_) => {
            Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned())
        }
        instruction => Ok((line.text, instruction)),
    }
}

fn on_build(whole: &str, line: &Line, escape: char) -> Parsed<Instruction> {
    let word = whole.split_whitespace().next().unwrap_or_default();
    match word.to_ascii_uppercase().as_str() {
        "" => return Err("ONBUILD requires at least one argument".to_owned()),
        "ONBUILD" => {
            return Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned());
        }
        trigger @ ("FROM" | "MAINTAINER") => {
            return Err(format!("{trigger} isn't allowed as an ONBUILD trigger"));
        }
        _ => {}
    }
    let trigger = Line {
        number: line.number,
        text: whole.to_owned(),
        heredocs: line.heredocs.clone(),
    };
    parse(&trigger, escape)?;
    let mut text = whole.to_owned();
    for heredoc in &line.heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    Ok(Instruction::OnBuild(text))
}

/// Flags with their values.
type NamedFlags = Vec<(String, Option<String>)>;

/// The `--name[=value]` words at the head.
fn flags(rest: &str, escape: char) -> Parsed<(NamedFlags, &str)> {
    let mut found = Vec::new();
    let mut rest = rest.trim_start();
    while rest.starts_with("--") {
        let mut end = rest.len();
        let mut word = String::new();
        let mut quote = None;
        let mut characters = rest.char_indices();
        while let Some((at, character)) = characters.next() {
            match (character, quote) {
                (character, _) if character == escape => {
                    word.extend(characters.next().map(|(_, escaped)| escaped));
                }
                ('"' | '\'', None) => quote = Some(character),
                (character, Some(open)) if character == open => quote = None,
                (blank, None) if blank.is_whitespace() => {
                    end = at;
                    break;
                }
                (character, _) => word.push(character),
            }
        }
        rest = rest[end..].trim_start();
        if word == "--" {
            break;
        }
        let word = word.trim_start_matches("--");
        match word.split_once('=') {
            Some((name, value)) => found.push((name.to_owned(), Some(value.to_owned()))),
            None => found.push((word.to_owned(), None)),
        }
    }
    Ok((found, rest))
}

struct Flags {
    flags: Vec<(String, Option<String>)>,
}

impl Flags {
    fn text(&mut self, name: &str) -> Parsed<Option<String>> {
        let mut all = self.texts(name)?;
        match all.len() {
            0 | 1 => Ok(all.pop()),
            _ => Err(format!("duplicate flag specified: {name}")),
        }
    }

    fn texts(&mut self, name: &str) -> Parsed<Vec<String>> {
        let mut out = Vec::new();
        let mut rest = Vec::new();
        for (flag, value) in self.flags.drain(..) {
            if flag == name {
                out.push(value.ok_or_else(|| format!("missing a value on flag: {name}"))?);
            } else {
                rest.push((flag, value));
            }
        }
        self.flags = rest;
        Ok(out)
    }

    fn switch(&mut self, name: &str) -> Parsed<bool> {
        let Some(at) = self.flags.iter().position(|(flag, _)| flag == name) else {
            return Ok(false);
        };
        match self.flags.remove(at).1.as_deref() {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => Err(format!("expecting boolean value for flag {name}")),
        }
    }

    fn done(self) -> Parsed<()> {
        match self.flags.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("unknown flag: {name}")),
        }
    }
}

fn from(rest: &str, flags: &mut Flags) -> Parsed<Instruction> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (base, name) = match words[..] {
        [base] => (base, None),
        [base, by, name] if by.eq_ignore_ascii_case("as") => (base, Some(name)),
        _ => return Err("FROM requires either one or three arguments".to_owned()),
    };
    if let Some(name) = name {
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !valid {
            return Err(format!(
                "invalid name for build stage: {name:?}, name can't start with a number or \
                 contain symbols"
            ));
        }
    }
    Ok(Instruction::From {
        base: base.to_owned(),
        name: name.map(str::to_owned),
        platform: flags.text("platform")?,
    })
}

fn arguments(rest: &str, escape: char) -> Parsed<Vec<(String, Option<String>)>> {
    let words = at_least_one("ARG", words::split(rest, escape))?;
    words
        .into_iter()
        .map(|word| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            if name.is_empty() {
                return Err("ARG names can not be blank".to_owned());
            }
            Ok((name, value))
        })
        .collect()
}

/// `name=value …`, or the old `name value`.
fn pairs(keyword: &str, rest: &str, escape: char) -> Parsed<Vec<Pair>> {
    let words = at_least_one(keyword, words::split(rest, escape))?;
    if !words[0].contains('=') {
        let Some((name, value)) = rest.split_once(char::is_whitespace) else {
            return Err(format!("{keyword} must have two arguments"));
        };
        return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
    }
    words
        .iter()
        .map(|word| {
            let Some((name, value)) = word.split_once('=') else {
                return Err(format!(
                    "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
                ));
            };
            if name.is_empty() {
                return Err(format!("{keyword} names can not be blank"));
            }
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn copy(
    keyword: &str,
    rest: &str,
    line: &Line,
    escape: char,
    flags: &mut Flags,
) -> Parsed<CopySpec> {
    let mut words = json_array(rest).unwrap_or_else(|| words::split(rest, escape));
    let target = words.pop().unwrap_or_default();
    if words.is_empty() {
        return Err(format!(
            "{keyword} requires at least two arguments, but only one was provided. Destination \
             could not be determined."
        ));
    }
    Ok(CopySpec {
        from: match keyword {
            "COPY" => flags.text("from")?,
            _ => None,
        },
        chown: flags.text("chown")?,
        chmod: flags.text("chmod")?,
        checksum: match keyword {
            "ADD" => flags.text("checksum")?,
            _ => None,
        },
        exclude: flags.texts("exclude")?,
        parents: keyword == "COPY" && flags.switch("parents")?,
        sources: words,
        heredocs: line.heredocs.clone(),
        target,
    })
    .and_then(|spec: CopySpec| {
        // What both have and no engine without BuildKit knows: links are an optimisation.
        flags.switch("link")?;
        Ok(spec)
    })
}

fn command(rest: &str, heredocs: &[Heredoc]) -> Parsed<CommandLine> {
    if let Some(words) = json_array(rest) {
        return Ok(CommandLine::Exec(words));
    }
    let is_array_of_others = rest.trim_start().starts_with('[')
        && serde_json::from_str::<Vec<serde_json::Value>>(rest).is_ok();
    if is_array_of_others {
        return Err(
            "When using JSON array syntax, arrays must be comprised of strings only.".to_owned(),
        );
    }
    Ok(CommandLine::Shell {
        text: rest.to_owned(),
        heredocs: heredocs.to_vec(),
    })
}

fn at_least_one(keyword: &str, words: Vec<String>) -> Parsed<Vec<String>> {
    if words.is_empty() {
        return Err(format!("{keyword} requires at least one argument"));
    }
    Ok(words)
}

fn one(keyword: &str, rest: &str) -> Parsed<String> {
    if rest.is_empty() {
        return Err(format!("{keyword} requires exactly one argument"));
    }
    Ok(rest.to_owned())
}

fn run_options(flags: &mut Flags) -> Parsed<RunOptions> {
    let mounts = flags.texts("mount")?;
    let network = flags.text("network")?;
    if let Some(network) = &network
        && !matches!(network.as_str(), "default" | "none" | "host")
    {
        return Err(format!("invalid network mode: {network}"));
    }
    if let Some(security) = flags.text("security")?
        && security != "sandbox"
    {
        return Err(format!("RUN --security={security} is not supported"));
    }
    Ok(RunOptions {
        mounts: mounts
            .iter()
            .map(|mount| self::mount(mount))
            .collect::<Parsed<_>>()?,
        network,
    })
}

fn mount(text: &str) -> Parsed<Mount> {
    let mut mount = Mount {
        kind: MountKind::Bind,
        target: String::new(),
        source: String::new(),
        from: None,
        read_only: false,
        id: None,
        required: false,
        mode: None,
        uid: None,
        gid: None,
        size: None,
        sharing: CacheSharing::default(),
    };
    let mut writable = None;
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value)),
            None => (field.trim(), None),
        };
        let key = key.to_ascii_lowercase();
        let switch = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(format!("invalid value for {key}: {other}")),
        };
        let text = || {
            value
                .map(str::to_owned)
                .ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))
        };
        let number = |radix: u32| {
            let text = text()?;
            u32::from_str_radix(&text, radix).map_err(|_| format!("invalid value {text} for {key}"))
        };
        match key.as_str() {
            "type" => {
                mount.kind = match text()?.as_str() {
                    "bind" => MountKind::Bind,
                    "cache" => MountKind::Cache,
                    "tmpfs" => MountKind::Tmpfs,
                    "secret" => MountKind::Secret,
                    "ssh" => return Err("RUN --mount=type=ssh is not supported".to_owned()),
                    other => return Err(format!("unsupported mount type {other:?}")),
                };
            }
            "target" | "dst" | "destination" => mount.target = text()?,
            "source" | "src" => mount.source = text()?,
            "from" => mount.from = Some(text()?),
            "id" => mount.id = Some(text()?),
            "ro" | "readonly" => writable = Some(!switch()?),
            "rw" | "readwrite" => writable = Some(switch()?),
            "required" => mount.required = switch()?,
            "sharing" => {
                mount.sharing = match text()?.as_str() {
                    "shared" => CacheSharing::Shared,
                    "private" => CacheSharing::Private,
                    "locked" => CacheSharing::Locked,
                    other => return Err(format!("unsupported sharing value {other:?}")),
                };
            }
            "mode" => mount.mode = Some(number(8)?),
            "uid" => mount.uid = Some(number(10)?),
            "gid" => mount.gid = Some(number(10)?),
            "size" => {
                let text = text()?;
                mount.size =
                    Some(size(&text).ok_or_else(|| format!("invalid value {text} for size"))?);
            }
            other => return Err(format!("unexpected key '{other}' in '{field}'")),
        }
    }
    mount.read_only = match mount.kind {
        MountKind::Bind => !writable.unwrap_or(false),
        MountKind::Secret => true,
        MountKind::Cache | MountKind::Tmpfs => !writable.unwrap_or(true),
    };
    if mount.kind == MountKind::Secret && mount.target.is_empty() {
        let id = mount
            .id
            .clone()
            .or_else(|| mount.source.rsplit('/').next().map(str::to_owned));
        mount.target = format!("/run/secrets/{}", id.unwrap_or_default());
    }
    if mount.target.is_empty() {
        return Err("invalid mount config: target is required".to_owned());
    }
    Ok(mount)
}

fn size(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

fn healthcheck(rest: &str, flags: &mut Flags) -> Parsed<Instruction> {
    let mut check = Healthcheck::default();
    for (name, field) in [
        ("interval", &mut check.interval),
        ("timeout", &mut check.timeout),
        ("start-period", &mut check.start_period),
        ("start-interval", &mut check.start_interval),
    ] {
        if let Some(value) = flags.text(name)? {
            let nanoseconds =
                duration(&value).ok_or_else(|| format!("invalid duration {value:?}"))?;
            if nanoseconds != 0 && nanoseconds < 1_000_000 {
                return Err(format!("Interval {name:?} cannot be less than 1ms"));
            }
            *field = nanoseconds;
        }
    }
    if let Some(value) = flags.text("retries")? {
        let retries = value
            .parse::<i32>()
            .map_err(|_| format!("invalid retries {value:?}"))?;
        if retries < 0 {
            return Err(format!("--retries cannot be negative ({retries})"));
        }
        check.retries = i64::from(retries);
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    check.test = match kind.to_ascii_uppercase().as_str() {
        "" => return Err("HEALTHCHECK requires at least one argument".to_owned()),
        "NONE" if command.is_empty() => vec!["NONE".to_owned()],
        "NONE" => return Err("HEALTHCHECK NONE takes no arguments".to_owned()),
        "CMD" if command.is_empty() => {
            return Err("Missing command after HEALTHCHECK CMD".to_owned());
        }
        "CMD" => match json_array(command) {
            Some(command) => std::iter::once("CMD".to_owned()).chain(command).collect(),
            None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        },
        other => return Err(format!("Unknown type {other:?} in HEALTHCHECK (try CMD)")),
    };
    Ok(Instruction::Healthcheck(check))
}

/// Go's durations (`1m30s`, `1.5h`, `0`) in nanoseconds; not negative.
fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let mut total = 0_i64;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|digit: char| !digit.is_ascii_digit() && digit != '.')?;
        let (number, after) = rest.split_at(end);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let scale: i64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole = match whole {
            "" => 0,
            whole => whole.parse::<i64>().ok()?,
        };
        let mut value = whole.checked_mul(scale)?;
        let mut digit_scale = scale;
        for digit in fraction.bytes() {
            digit_scale /= 10;
            value = value.checked_add(i64::from(digit.checked_sub(b'0')?) * digit_scale)?;
        }
        total = total.checked_add(value)?;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Instruction {
        let file = format!("FROM x\n{text}");
        let mut file = super::super::Dockerfile::parse(file.as_bytes()).unwrap();
        file.stages.remove(0).steps.remove(0).instruction
    }

    #[test]
    fn flags_and_forms() {
        let Instruction::Copy(copy) =
            parsed("COPY --from=a --chown='1:2' [\"a b\", \"c\", \"d/\"]")
        else {
            panic!("not a COPY");
        };
        assert_eq!(copy.chown.as_deref(), Some("1:2"));
        assert_eq!((copy.sources.len(), copy.target.as_str()), (2, "d/"));
        let Instruction::Run(CommandLine::Shell { text, .. }, options) = parsed(
            "RUN --mount=type=cache,target=/c,sharing=locked --mount=target=/b,rw --network=none a -- b",
        ) else {
            panic!("not a RUN");
        };
        assert_eq!(text, "a -- b");
        assert_eq!(options.mounts.len(), 2);
        assert!(!options.mounts[1].read_only);
        assert_eq!(options.network.as_deref(), Some("none"));
        assert_eq!(
            parsed("CMD [\"a\", \"b\"]"),
            Instruction::Cmd(CommandLine::Exec(vec!["a".to_owned(), "b".to_owned()]))
        );
        assert_eq!(
            parsed("ENV a  b c "),
            Instruction::Env(vec![("a".to_owned(), "b c".to_owned())])
        );
        assert_eq!(
            parsed("ENV a=\"b c\" d=e\\ f"),
            Instruction::Env(vec![
                ("a".to_owned(), "\"b c\"".to_owned()),
                ("d".to_owned(), "e\\ f".to_owned())
            ])
        );
        assert_eq!(
            parsed("ARG a b=c"),
            Instruction::Arg(vec![
                ("a".to_owned(), None),
                ("b".to_owned(), Some("c".to_owned()))
            ])
        );
        let Instruction::Healthcheck(check) =
            parsed("HEALTHCHECK --interval=1m30s --retries=3 CMD curl x")
        else {
            panic!("not a HEALTHCHECK");
        };
        assert_eq!((check.interval, check.retries), (90_000_000_000, 3));
    }

    #[test]
    fn triggers_keep_their_heredocs() {
        let Instruction::OnBuild(text) = parsed("ONBUILD COPY --chown=1 <<A /a\nx\nA") else {
            panic!("not an ONBUILD");
        };
        assert_eq!(text, "COPY --chown=1 <<A /a\nx\nA");
        let (shown, instruction) = parse_trigger(&text, '\\').unwrap();
        assert_eq!(shown, "COPY --chown=1 <<A /a");
        let Instruction::Copy(copy) = instruction else {
            panic!("not a COPY");
        };
        assert_eq!(copy.heredocs[0].content, "x\n");
    }
}
