//! Command-line flags with the grammar of the Docker CLI: `--flag value`, `--flag=value`,
//! clustered short flags (`-itd`, `-eA=b`), booleans with `=false`, repeated flags, `--`, and
//! commands whose options stop at the first argument. Knows nothing of any command.

use std::collections::HashMap;

use crate::format::units;

/// What a flag's value is: decides its checks, the name shown in help, and whether it repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On or off; takes a value only after `=`.
    Bool,
    /// Any text; the last one wins.
    Text,
    /// A signed number.
    Int,
    /// An unsigned number of 16 bits.
    Uint16,
    /// An unsigned number.
    Uint,
    /// Go's duration notation: `1h30m`, `250ms`.
    Duration,
    /// A size in bytes with an optional unit: `64m`, `1.5GiB`.
    Bytes,
    /// As [`Kind::Bytes`], and `-1` for no limit.
    SwapBytes,
    /// A number of CPUs: `1.5`, `3/2`.
    Cpus,
    /// Repeats; kept in order. The text names the type in help.
    List(&'static str),
}

/// A value's check, and what it becomes; the error is the message's tail.
pub type Check = fn(&str) -> Result<String, String>;

/// One flag of a command.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The name after `--`.
    pub long: &'static str,
    /// The letter after `-`.
    pub short: Option<char>,
    /// What its value is.
    pub kind: Kind,
    /// The value when it is not given.
    pub default: &'static str,
    /// One line for help.
    pub usage: &'static str,
    /// Left out of help.
    pub hidden: bool,
    /// The name under which its value is kept, if another flag's.
    pub alias_of: Option<&'static str>,
    /// A stricter check than the kind's.
    pub check: Option<Check>,
}

impl Flag {
    /// A flag of `kind` without a default.
    pub const fn new(long: &'static str, kind: Kind, usage: &'static str) -> Self {
        Self {
            long,
            short: None,
            kind,
            default: "",
            usage,
            hidden: false,
            alias_of: None,
            check: None,
        }
    }

    /// A boolean that is off by default.
    pub const fn switch(long: &'static str, usage: &'static str) -> Self {
        Self::new(long, Kind::Bool, usage)
    }

    /// A text.
    pub const fn text(long: &'static str, usage: &'static str) -> Self {
        Self::new(long, Kind::Text, usage)
    }

    /// A repeatable flag.
    pub const fn list(long: &'static str, usage: &'static str) -> Self {
        Self::new(long, Kind::List("list"), usage)
    }

    /// A signed number.
    pub const fn int(long: &'static str, usage: &'static str) -> Self {
        Self::new(long, Kind::Int, usage)
    }

    /// With a one-letter form.
    pub const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// With a default value.
    pub const fn default(mut self, value: &'static str) -> Self {
        self.default = value;
        self
    }

    /// Left out of help.
    pub const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// Another spelling of `long`, left out of help.
    pub const fn alias_of(mut self, long: &'static str) -> Self {
        self.alias_of = Some(long);
        self.hidden = true;
        self
    }

    /// With a stricter check.
    pub const fn check(mut self, check: Check) -> Self {
        self.check = Some(check);
        self
    }

    fn key(&self) -> &'static str {
        self.alias_of.unwrap_or(self.long)
    }

    /// How messages name the flag: `-m, --memory` or `--name`.
    fn display(&self) -> String {
        match self.short {
            Some(letter) => format!("-{letter}, --{}", self.long),
            None => format!("--{}", self.long),
        }
    }

    fn accept(&self, raw: &str) -> Result<String, String> {
        let value = match self.kind {
            Kind::Bool => parse_bool(raw).map(|b| b.to_string()),
            Kind::Text | Kind::List(_) => Ok(raw.to_owned()),
            Kind::Int => parse_int(raw).map(|n| n.to_string()),
            Kind::Uint16 => parse_uint(raw, u64::from(u16::MAX)).map(|n| n.to_string()),
            Kind::Uint => parse_uint(raw, u64::MAX).map(|n| n.to_string()),
            Kind::Duration => units::parse_duration(raw).map(|ns| ns.to_string()),
            Kind::Bytes => units::ram_in_bytes(raw).map(|n| n.to_string()),
            Kind::SwapBytes if raw == "-1" => Ok("-1".to_owned()),
            Kind::SwapBytes => units::ram_in_bytes(raw).map(|n| n.to_string()),
            Kind::Cpus => units::parse_cpus(raw).map(|n| n.to_string()),
        };
        let value = value.and_then(|v| match self.check {
            Some(check) => check(&v),
            None => Ok(v),
        });
        value.map_err(|reason| {
            format!(
                "invalid argument {} for \"{}\" flag: {reason}",
                quote(raw),
                self.display()
            )
        })
    }
}

/// Go's `%q` for messages.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() && u32::from(c) < 0x80 => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn parse_bool(raw: &str) -> Result<bool, String> {
    match raw {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!(
            "strconv.ParseBool: parsing {}: invalid syntax",
            quote(raw)
        )),
    }
}

/// A boolean inside a longer value (`ro=true`).
pub fn bool_value(raw: &str) -> Option<bool> {
    parse_bool(raw).ok()
}

fn integer_error(function: &str, raw: &str, kind: &std::num::IntErrorKind) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let what = match kind {
        PosOverflow | NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.{function}: parsing {}: {what}", quote(raw))
}

fn parse_int(raw: &str) -> Result<i64, String> {
    let (negative, digits) = match raw.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, raw.strip_prefix('+').unwrap_or(raw)),
    };
    let (radix, digits) = radix_of(digits);
    let signed = if negative {
        format!("-{digits}")
    } else {
        digits.to_owned()
    };
    if digits.starts_with(['+', '-']) {
        return Err(integer_error(
            "ParseInt",
            raw,
            &std::num::IntErrorKind::InvalidDigit,
        ));
    }
    i64::from_str_radix(&signed, radix).map_err(|e| integer_error("ParseInt", raw, e.kind()))
}

fn parse_uint(raw: &str, max: u64) -> Result<u64, String> {
    let (radix, digits) = radix_of(raw);
    if digits.starts_with(['+', '-']) {
        return Err(integer_error(
            "ParseUint",
            raw,
            &std::num::IntErrorKind::InvalidDigit,
        ));
    }
    let value = u64::from_str_radix(digits, radix)
        .map_err(|e| integer_error("ParseUint", raw, e.kind()))?;
    if value > max {
        return Err(integer_error(
            "ParseUint",
            raw,
            &std::num::IntErrorKind::PosOverflow,
        ));
    }
    Ok(value)
}

/// The base that a number's prefix names, as Go's base 0 does.
fn radix_of(digits: &str) -> (u32, &str) {
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    match lower.as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    }
}

/// What a command line held.
#[derive(Debug, Default, Clone)]
pub struct Parsed {
    values: HashMap<&'static str, Vec<String>>,
    spellings: Vec<&'static str>,
    defaults: HashMap<&'static str, &'static str>,
    /// What is no flag.
    pub args: Vec<String>,
    /// `--help` (or `-h`) was met; parsing stopped there.
    pub help: bool,
    /// Lines to print on standard error: deprecated spellings that were used.
    pub notes: Vec<String>,
}

impl Parsed {
    /// True if the flag was on the command line.
    pub fn changed(&self, long: &str) -> bool {
        self.values.contains_key(long)
    }

    /// True if the flag was given under this very name, be it an alias.
    pub fn spelled(&self, long: &str) -> bool {
        self.spellings.contains(&long)
    }

    /// How many flags were given, each repetition of one flag counted once.
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// The flag's last value, or its default.
    pub fn text(&self, long: &str) -> &str {
        debug_assert!(self.defaults.contains_key(long), "no flag {long}");
        match self.values.get(long).and_then(|v| v.last()) {
            Some(value) => value,
            None => self.defaults.get(long).copied().unwrap_or(""),
        }
    }

    /// The flag's last value if it was given and is not empty.
    pub fn given(&self, long: &str) -> Option<&str> {
        Some(self.text(long)).filter(|v| !v.is_empty())
    }

    /// A boolean's value.
    pub fn on(&self, long: &str) -> bool {
        self.text(long) == "true"
    }

    /// A number's value; 0 if it was not given.
    pub fn int(&self, long: &str) -> i64 {
        self.text(long).parse().unwrap_or(0)
    }

    /// Every value of a repeated flag, in order.
    pub fn list(&self, long: &str) -> &[String] {
        debug_assert!(self.defaults.contains_key(long), "no flag {long}");
        self.values.get(long).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Parses `args` by `flags`. With `interspersed`, flags may follow arguments; without, the
/// first argument ends them. The error is the message's first line.
pub fn parse(flags: &[&[Flag]], interspersed: bool, args: &[String]) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let all = || flags.iter().flat_map(|set| set.iter());
    for flag in all() {
        parsed.defaults.insert(flag.key(), flag.default);
    }
    let takes_h = all().any(|f| f.short == Some('h'));
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            parsed.args.extend(rest.by_ref().cloned());
        } else if let Some(body) = arg.strip_prefix("--") {
            let (name, value) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (body, None),
            };
            if name.is_empty() || name.starts_with('-') {
                return Err(format!("bad flag syntax: {arg}"));
            }
            if name == "help" {
                parsed.help = true;
                return Ok(parsed);
            }
            let flag = all()
                .find(|f| f.long == name)
                .ok_or_else(|| format!("unknown flag: --{name}"))?;
            let value = match value {
                Some(value) => value.to_owned(),
                None if flag.kind == Kind::Bool => "true".to_owned(),
                None => rest
                    .next()
                    .cloned()
                    .ok_or_else(|| format!("flag needs an argument: --{name}"))?,
            };
            store(&mut parsed, flag, &value)?;
        } else if arg.len() > 1 && arg.starts_with('-') {
            let mut cluster = &arg[1..];
            while let Some(letter) = cluster.chars().next() {
                let tail = &cluster[letter.len_utf8()..];
                let Some(flag) = all().find(|f| f.short == Some(letter)) else {
                    if letter == 'h' && !takes_h {
                        parsed.help = true;
                        parsed
                            .notes
                            .push("Flag shorthand -h has been deprecated, use --help".to_owned());
                        return Ok(parsed);
                    }
                    return Err(format!("unknown shorthand flag: {letter:?} in -{cluster}"));
                };
                let value = if let Some(value) = tail.strip_prefix('=') {
                    cluster = "";
                    value.to_owned()
                } else if flag.kind == Kind::Bool {
                    cluster = tail;
                    "true".to_owned()
                } else if !tail.is_empty() {
                    let value = tail.to_owned();
                    cluster = "";
                    value
                } else {
                    let value = rest.next().cloned().ok_or_else(|| {
                        format!("flag needs an argument: {letter:?} in -{cluster}")
                    })?;
                    cluster = "";
                    value
                };
                store(&mut parsed, flag, &value)?;
            }
        } else {
            parsed.args.push(arg.clone());
            if !interspersed {
                parsed.args.extend(rest.by_ref().cloned());
            }
        }
    }
    Ok(parsed)
}

fn store(parsed: &mut Parsed, flag: &Flag, raw: &str) -> Result<(), String> {
    let value = flag.accept(raw)?;
    parsed.spellings.push(flag.long);
    let values = parsed.values.entry(flag.key()).or_default();
    if !matches!(flag.kind, Kind::List(_)) {
        values.clear();
    }
    values.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::switch("interactive", "").short('i'),
        Flag::switch("tty", "").short('t'),
        Flag::switch("detach", "").short('d'),
        Flag::list("env", "").short('e'),
        Flag::text("name", ""),
        Flag::int("last", "").short('n').default("-1"),
        Flag::new("memory", Kind::Bytes, "").short('m'),
        Flag::list("net", "").alias_of("network"),
        Flag::list("network", ""),
    ];

    fn run(interspersed: bool, args: &[&str]) -> Result<Parsed, String> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        parse(&[FLAGS], interspersed, &args)
    }

    #[test]
    fn clusters_values_and_the_end_of_options() {
        let p = run(
            false,
            &[
                "-itd", "-eA=b", "--env", "C", "-e=D=1", "img", "-i", "--nope",
            ],
        );
        let p = p.unwrap();
        assert!(p.on("interactive") && p.on("tty") && p.on("detach"));
        assert_eq!(p.list("env"), ["A=b", "C", "D=1"]);
        assert_eq!(p.args, ["img", "-i", "--nope"]);
        let p = run(false, &["-i=false", "--tty=0", "--", "-x"]).unwrap();
        assert!(!p.on("interactive") && p.changed("interactive") && !p.on("tty"));
        assert_eq!(p.args, ["-x"]);
        let p = run(true, &["a", "-i", "b", "-"]).unwrap();
        assert!(p.on("interactive"));
        assert_eq!(p.args, ["a", "b", "-"]);
    }

    #[test]
    fn numbers_and_aliases() {
        let p = run(true, &["-m", "64m", "-n5", "--net", "none", "--network=x"]).unwrap();
        assert_eq!(p.int("memory"), 64 << 20);
        assert_eq!(p.int("last"), 5);
        assert_eq!(p.list("network"), ["none", "x"]);
        assert_eq!(run(true, &[]).unwrap().int("last"), -1);
        assert_eq!(run(true, &["-n", "0x10"]).unwrap().int("last"), 16);
    }

    #[test]
    fn errors_have_dockers_words() {
        let error = |args: &[&str]| run(false, args).unwrap_err();
        assert_eq!(error(&["--nope"]), "unknown flag: --nope");
        assert_eq!(error(&["-iZd"]), "unknown shorthand flag: 'Z' in -Zd");
        assert_eq!(error(&["--name"]), "flag needs an argument: --name");
        assert_eq!(error(&["-e"]), "flag needs an argument: 'e' in -e");
        assert_eq!(
            error(&["-d=maybe"]),
            "invalid argument \"maybe\" for \"-d, --detach\" flag: \
             strconv.ParseBool: parsing \"maybe\": invalid syntax"
        );
        assert_eq!(
            error(&["-m", "foo"]),
            "invalid argument \"foo\" for \"-m, --memory\" flag: invalid size: 'foo'"
        );
        assert_eq!(
            error(&["-n", "x"]),
            "invalid argument \"x\" for \"-n, --last\" flag: \
             strconv.ParseInt: parsing \"x\": invalid syntax"
        );
        assert_eq!(error(&["--=x"]), "bad flag syntax: --=x");
    }

    #[test]
    fn help_wins() {
        assert!(run(true, &["-i", "--help", "--nope"]).unwrap().help);
        let p = run(true, &["-h"]).unwrap();
        assert!(p.help && p.notes.len() == 1);
    }
}
