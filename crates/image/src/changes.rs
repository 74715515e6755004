//! The Dockerfile instructions that `import --change` (and `commit --change`) take. Their
//! words, quotes and variables follow the Dockerfile reference.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::{ContainerConfig, Healthcheck};
use crate::error::{ImageError, Result};

/// Most bytes of all instructions.
const MAX_BYTES: usize = 1 << 20;

/// Applies instructions in order.
///
/// # Errors
/// [`ImageError::Change`] that names the instruction.
pub fn apply(config: &mut ContainerConfig, changes: &[String]) -> Result<()> {
    if changes.iter().map(String::len).sum::<usize>() > MAX_BYTES {
        return Err(ImageError::Change("changes are too long".to_owned()));
    }
    let mut command_set = false;
    for line in lines(&changes.join("\n")) {
        let (word, rest) = match line.split_once(char::is_whitespace) {
            Some((word, rest)) => (word, rest.trim()),
            None => (line.as_str(), ""),
        };
        let instruction = word.to_ascii_uppercase();
        let result = match instruction.as_str() {
            "CMD" => command(rest).map(|command| {
                config.cmd = Some(command);
                command_set = true;
            }),
            "ENTRYPOINT" => command(rest).map(|command| {
                config.entrypoint = Some(command);
                // What was the command is hardly an argument of another program.
                if !command_set {
                    config.cmd = None;
                }
            }),
            "ENV" => env(config, rest),
            "LABEL" => label(config, rest),
            "EXPOSE" => expose(config, rest),
            "USER" => expand(rest, &config.env).and_then(|user| {
                config.user = one(user)?;
                Ok(())
            }),
            "VOLUME" => volume(config, rest),
            "WORKDIR" => expand(rest, &config.env).and_then(|directory| {
                config.working_dir = join(&config.working_dir, &one(directory)?);
                Ok(())
            }),
            "STOPSIGNAL" => expand(rest, &config.env).and_then(|signal| {
                config.stop_signal = Some(checked_signal(one(signal)?)?);
                Ok(())
            }),
            "ONBUILD" => on_build(config, rest),
            "HEALTHCHECK" => healthcheck(rest).map(|check| config.healthcheck = Some(check)),
            _ => Err(format!("{word} is not a valid change command")),
        };
        result.map_err(|why| {
            ImageError::Change(if why.contains("not a valid change") {
                why
            } else {
                format!("{instruction}: {why}")
            })
        })?;
    }
    Ok(())
}

type Parsed<T> = std::result::Result<T, String>;

/// Logical lines: continued ones joined, comments and blank ones dropped.
fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with('#') {
            continue;
        }
        match line.trim_end().strip_suffix('\\') {
            Some(continued) => current.push_str(continued),
            None => {
                current.push_str(line);
                lines.push(std::mem::take(&mut current).trim().to_owned());
            }
        }
    }
    lines.push(current.trim().to_owned());
    lines.retain(|line| !line.is_empty());
    lines
}

fn one(text: String) -> Parsed<String> {
    if text.is_empty() {
        Err("requires exactly one argument".to_owned())
    } else {
        Ok(text)
    }
}

fn json_strings(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// Exec form as it is, shell form for `/bin/sh -c`.
fn command(rest: &str) -> Parsed<Vec<String>> {
    Ok(json_strings(rest).unwrap_or_else(|| ["/bin/sh", "-c", rest].map(str::to_owned).to_vec()))
}

fn env(config: &mut ContainerConfig, rest: &str) -> Parsed<()> {
    for (name, value) in pairs(rest, &config.env)? {
        let prefix = format!("{name}=");
        let entry = format!("{prefix}{value}");
        match config
            .env
            .iter_mut()
            .find(|entry| entry.starts_with(&prefix))
        {
            Some(present) => *present = entry,
            None => config.env.push(entry),
        }
    }
    Ok(())
}

fn label(config: &mut ContainerConfig, rest: &str) -> Parsed<()> {
    let pairs = pairs(rest, &config.env)?;
    config
        .labels
        .get_or_insert_with(BTreeMap::new)
        .extend(pairs);
    Ok(())
}

/// `name=value …`, or the old `name value`.
fn pairs(rest: &str, environment: &[String]) -> Parsed<Vec<(String, String)>> {
    let words = words(rest);
    let Some(first) = words.first() else {
        return Err("requires at least one argument".to_owned());
    };
    if !first.contains('=') {
        let (name, value) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("{first} must have a value"))?;
        return Ok(vec![(
            expand(name, environment)?,
            expand(value.trim_start(), environment)?,
        )]);
    }
    words
        .iter()
        .map(|word| {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("syntax error: {word} must be of the form name=value"))?;
            let name = expand(name, environment)?;
            if name.is_empty() {
                return Err("names can not be blank".to_owned());
            }
            Ok((name, expand(value, environment)?))
        })
        .collect()
}

fn expose(config: &mut ContainerConfig, rest: &str) -> Parsed<()> {
    let words = words(rest);
    if words.is_empty() {
        return Err("requires at least one argument".to_owned());
    }
    let ports = config.exposed_ports.get_or_insert_with(BTreeMap::new);
    for word in words {
        let word = expand(&word, &config.env)?;
        let invalid = || format!("invalid containerPort: {word}");
        let (range, protocol) = word.split_once('/').unwrap_or((&word, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(format!("invalid proto: {protocol}"));
        }
        let (start, end) = range.split_once('-').unwrap_or((range, range));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let (start, end) = (
            port(start).ok_or_else(invalid)?,
            port(end).ok_or_else(invalid)?,
        );
        if start > end {
            return Err(invalid());
        }
        for port in start..=end {
            ports.insert(
                format!("{port}/{protocol}"),
                Value::Object(serde_json::Map::new()),
            );
        }
    }
    Ok(())
}

fn volume(config: &mut ContainerConfig, rest: &str) -> Parsed<()> {
    let paths = json_strings(rest).unwrap_or_else(|| words(rest));
    if paths.is_empty() {
        return Err("requires at least one argument".to_owned());
    }
    let volumes = config.volumes.get_or_insert_with(BTreeMap::new);
    for path in paths {
        let path = expand(path.trim(), &config.env)?;
        if path.is_empty() {
            return Err("specified volume can not be an empty string".to_owned());
        }
        volumes.insert(path, Value::Object(serde_json::Map::new()));
    }
    Ok(())
}

fn on_build(config: &mut ContainerConfig, rest: &str) -> Parsed<()> {
    let word = rest
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_ascii_uppercase();
    match word.as_str() {
        "" => Err("requires at least one argument".to_owned()),
        "ONBUILD" => Err("chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
        "MAINTAINER" | "FROM" => Err(format!("{word} isn't allowed as an ONBUILD trigger")),
        _ => {
            config
                .on_build
                .get_or_insert_with(Vec::new)
                .push(rest.to_owned());
            Ok(())
        }
    }
}

fn healthcheck(rest: &str) -> Parsed<Healthcheck> {
    let mut check = Healthcheck::default();
    let mut rest = rest;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option
            .split_once(char::is_whitespace)
            .unwrap_or((option, ""));
        rest = after.trim_start();
        let (name, value) = option
            .split_once('=')
            .ok_or_else(|| format!("missing a value on flag: {option}"))?;
        let field = match name {
            "interval" => &mut check.interval,
            "timeout" => &mut check.timeout,
            "start-period" => &mut check.start_period,
            "start-interval" => &mut check.start_interval,
            "retries" => {
                let retries = value
                    .parse::<u16>()
                    .map_err(|_| format!("bad retries {value:?}"))?;
                check.retries = i64::from(retries);
                continue;
            }
            _ => return Err(format!("unknown flag: {name}")),
        };
        let nanoseconds = duration(value).ok_or_else(|| format!("bad duration {value:?}"))?;
        if nanoseconds != 0 && nanoseconds < 1_000_000 {
            return Err(format!("interval {value:?} cannot be less than 1ms"));
        }
        *field = nanoseconds;
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let command = command.trim();
    check.test = match kind.to_ascii_uppercase().as_str() {
        "NONE" if command.is_empty() => vec!["NONE".to_owned()],
        "NONE" => return Err("NONE takes no arguments".to_owned()),
        "CMD" if command.is_empty() => return Err("missing command after CMD".to_owned()),
        "CMD" => match json_strings(command) {
            Some(command) => std::iter::once("CMD".to_owned()).chain(command).collect(),
            None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        },
        _ => return Err(format!("unknown type {kind:?} (try CMD)")),
    };
    Ok(check)
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
        let whole = if whole.is_empty() {
            0
        } else {
            whole.parse::<i64>().ok()?
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

fn checked_signal(signal: String) -> Parsed<String> {
    const NAMES: &str = " ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF \
                         PWR QUIT SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 \
                         VTALRM WINCH XCPU XFSZ RTMIN RTMAX ";
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |base: &str, sign: char| {
        let offset = name
            .strip_prefix(base)
            .and_then(|rest| rest.strip_prefix(sign));
        offset
            .and_then(|offset| offset.parse::<u8>().ok())
            .is_some_and(|offset| offset <= 15)
    };
    let valid = match signal.parse::<u8>() {
        Ok(number) => (1..=64).contains(&number),
        Err(_) => {
            NAMES.contains(&format!(" {name} ")) || realtime("RTMIN", '+') || realtime("RTMAX", '-')
        }
    };
    if valid {
        Ok(signal)
    } else {
        Err(format!("Invalid signal: {signal}"))
    }
}

fn join(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{base}/{path}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Splits at blanks outside quotes; quotes and backslashes stay for [`expand`].
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None | Some('"')) => {
                word.push('\\');
                word.extend(characters.next());
            }
            ('"' | '\'', None) => {
                quote = Some(character);
                word.push(character);
            }
            (character, Some(open)) if character == open => {
                quote = None;
                word.push(character);
            }
            (blank, None) if blank.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (character, _) => word.push(character),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Takes quotes and backslashes away and puts variables in.
fn expand(text: &str, environment: &[String]) -> Parsed<String> {
    let mut out = String::new();
    let mut rest = text;
    let mut in_quotes = false;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        match character {
            '\'' if !in_quotes => {
                let end = rest
                    .find('\'')
                    .ok_or("unexpected end of statement while looking for matching single-quote")?;
                out.push_str(&rest[..end]);
                rest = &rest[end + 1..];
            }
            '"' => in_quotes = !in_quotes,
            '\\' => match rest.chars().next() {
                Some(escaped) if !in_quotes || matches!(escaped, '"' | '$' | '\\') => {
                    out.push(escaped);
                    rest = &rest[escaped.len_utf8()..];
                }
                _ => out.push('\\'),
            },
            '$' => {
                let (value, after) = variable(rest, environment)?;
                out.push_str(&value);
                rest = after;
            }
            other => out.push(other),
        }
    }
    if in_quotes {
        return Err(
            "unexpected end of statement while looking for matching double-quote".to_owned(),
        );
    }
    Ok(out)
}

/// What stands behind a `$`: its value and the text behind it.
fn variable<'t>(text: &'t str, environment: &[String]) -> Parsed<(String, &'t str)> {
    let lookup = |name: &str| {
        let value = environment
            .iter()
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    };
    let name_length = |text: &str| {
        text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(text.len())
    };
    let Some(braced) = text.strip_prefix('{') else {
        let (name, rest) = text.split_at(name_length(text));
        let value = if name.is_empty() {
            "$".to_owned()
        } else {
            lookup(name)
        };
        return Ok((value, rest));
    };
    let (name, rest) = braced.split_at(name_length(braced));
    let end = rest.find('}').ok_or("syntax error: missing '}'")?;
    let (modifier, after) = (&rest[..end], &rest[end + 1..]);
    let value = lookup(name);
    let value = match modifier {
        "" => value,
        _ => match (modifier.strip_prefix(":-"), modifier.strip_prefix(":+")) {
            (Some(default), _) if value.is_empty() => expand(default, environment)?,
            (Some(_), _) => value,
            (_, Some(alternative)) if !value.is_empty() => expand(alternative, environment)?,
            (_, Some(_)) => value,
            _ => return Err(format!("unsupported modifier ({modifier}) in substitution")),
        },
    };
    Ok((value, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> ContainerConfig {
        let mut config = ContainerConfig::default();
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        apply(&mut config, &changes).unwrap();
        config
    }

    #[test]
    fn an_entrypoint_takes_the_inherited_command_away() {
        let after = |changes: &[&str]| {
            let mut config = ContainerConfig {
                cmd: Some(vec!["old".to_owned()]),
                ..ContainerConfig::default()
            };
            let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
            apply(&mut config, &changes).unwrap();
            config.cmd
        };
        let new = Some(vec!["new".to_owned()]);
        assert_eq!(after(&[r#"ENTRYPOINT ["/e"]"#]), None);
        assert_eq!(after(&[r#"ENTRYPOINT ["/e"]"#, r#"CMD ["new"]"#]), new);
        assert_eq!(after(&[r#"CMD ["new"]"#, r#"ENTRYPOINT ["/e"]"#]), new);
    }

    fn refused(change: &str) -> String {
        let mut config = ContainerConfig::default();
        apply(&mut config, &[change.to_owned()])
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn instructions() {
        let config = applied(&[
            r#"CMD ["sh", "-c", "x"]"#,
            "entrypoint exec top -b",
            r#"ENV A=b C="d e" D='f $A' E=$A/${C} F=${nope:-z}"#,
            "ENV OLD some text  ",
            "ENV A=again",
            "EXPOSE 80 443/udp 9000-9002",
            r#"LABEL a.b=c "two words"="x\"y""#,
            "USER 1000:1000",
            "VOLUME /data /more",
            r#"VOLUME ["/with space"]"#,
            "WORKDIR /a",
            "WORKDIR b/../c",
            "STOPSIGNAL SIGQUIT",
            "ONBUILD RUN make",
            "HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f localhost",
        ]);
        assert_eq!(config.cmd.unwrap(), ["sh", "-c", "x"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "exec top -b"]);
        let env = ["A=again", "C=d e", "D=f $A", "E=/", "F=z", "OLD=some text"];
        // Variables see what was set before the instruction, as in a Dockerfile.
        assert_eq!(config.env, env);
        let ports: Vec<String> = config.exposed_ports.unwrap().into_keys().collect();
        assert_eq!(
            ports,
            ["443/udp", "80/tcp", "9000/tcp", "9001/tcp", "9002/tcp"]
        );
        let labels = config.labels.unwrap();
        assert_eq!(labels["a.b"], "c");
        assert_eq!(labels["two words"], "x\"y");
        assert_eq!(config.user, "1000:1000");
        let volumes: Vec<String> = config.volumes.unwrap().into_keys().collect();
        assert_eq!(volumes, ["/data", "/more", "/with space"]);
        assert_eq!(config.working_dir, "/a/c");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.on_build.unwrap(), ["RUN make"]);
        let check = config.healthcheck.unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "curl -f localhost"]);
        assert_eq!((check.interval, check.retries), (90_000_000_000, 3));
        assert_eq!(
            applied(&["ENV A=1 \\\n B=2", "# comment"]).env,
            ["A=1", "B=2"]
        );
        assert_eq!(applied(&["ENV P=/bin", "ENV P=/x:$P"]).env, ["P=/x:/bin"]);
    }

    #[test]
    fn refusals() {
        assert_eq!(refused("RUN x"), "RUN is not a valid change command");
        for bad in [
            "ENV",
            "ENV a",
            "ENV =x",
            "EXPOSE http",
            "EXPOSE 0",
            "EXPOSE 9-8",
            "EXPOSE 1/x",
            "STOPSIGNAL NOPE",
            "ONBUILD ONBUILD RUN x",
            "ONBUILD FROM x",
            "HEALTHCHECK",
            "HEALTHCHECK --interval=x CMD y",
            "HEALTHCHECK NONE x",
            "ENV a='b",
            "ENV a=\"b",
            "ENV a=${b",
            "USER",
            "VOLUME",
            "LABEL a",
            "WORKDIR",
        ] {
            refused(bad);
        }
    }
}
