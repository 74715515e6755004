//! The functions of templates: Go's builtins and Docker's.

use std::cmp::Ordering;

use super::value::Value;

/// Why a call failed.
pub(super) enum CallError {
    /// The call itself is wrong.
    Wrong(String),
    /// The function refused its arguments.
    Failed(String),
}

type Called = Result<Value, CallError>;

const NAMES: &[&str] = &[
    "and", "or", "not", "len", "index", "slice", "print", "printf", "println", "html", "js",
    "urlquery", "eq", "ne", "lt", "le", "gt", "ge", "json", "split", "join", "title", "lower",
    "upper", "pad", "truncate",
];

/// The longest text that `pad` or a width makes, in bytes.
const MAX_PADDING: i64 = 1 << 16;

pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

fn failed<T>(message: impl Into<String>) -> Result<T, CallError> {
    Err(CallError::Failed(message.into()))
}

fn want(
    name: &str,
    arguments: &[Value],
    range: std::ops::RangeInclusive<usize>,
) -> Result<(), CallError> {
    if range.contains(&arguments.len()) {
        return Ok(());
    }
    let least = if range.start() == range.end() {
        ""
    } else {
        "at least "
    };
    Err(CallError::Wrong(format!(
        "wrong number of args for {name}: want {least}{} got {}",
        range.start(),
        arguments.len()
    )))
}

fn text<'a>(name: &str, value: &'a Value) -> Result<&'a str, CallError> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Missing | Value::Nil => Err(CallError::Wrong(
            "invalid value; expected string".to_owned(),
        )),
        other => Err(CallError::Wrong(format!(
            "wrong type for value; expected string; got {} (in {name})",
            other.type_name()
        ))),
    }
}

fn integer(value: &Value) -> Result<i64, CallError> {
    match value {
        Value::Number(n) if n.as_i64().is_some() => Ok(n.as_i64().unwrap_or(0)),
        other => Err(CallError::Wrong(format!(
            "expected integer; found {}",
            other.print()
        ))),
    }
}

/// Calls `name`. With `header`, functions that change text leave a table's titles alone.
pub(super) fn call(name: &str, arguments: &[Value], header: bool) -> Called {
    if header
        && matches!(
            name,
            "json" | "split" | "join" | "title" | "lower" | "upper" | "truncate"
        )
    {
        return Ok(arguments.first().cloned().unwrap_or(Value::Missing));
    }
    match name {
        "not" => {
            want(name, arguments, 1..=1)?;
            Ok(Value::Bool(!arguments[0].truth()))
        }
        "len" => {
            want(name, arguments, 1..=1)?;
            let length = match &arguments[0] {
                Value::Text(s) => s.len(),
                Value::List(items) => items.len(),
                Value::Object(o) => o.entries.len(),
                Value::NilOf(_) => 0,
                other => return failed(format!("len of type {}", other.type_name())),
            };
            Ok(Value::int(i64::try_from(length).unwrap_or(i64::MAX)))
        }
        "index" => index(arguments),
        "slice" => slice(arguments),
        "print" => {
            let mut out = String::new();
            for (i, value) in arguments.iter().enumerate() {
                // Go puts a space between two neighbours that are no strings.
                let apart = |v: &Value| !matches!(v, Value::Text(_));
                if i > 0 && apart(value) && apart(&arguments[i - 1]) {
                    out.push(' ');
                }
                out.push_str(&value.print());
            }
            Ok(Value::text(out))
        }
        "println" => {
            let words: Vec<String> = arguments.iter().map(Value::print).collect();
            Ok(Value::text(format!("{}\n", words.join(" "))))
        }
        "printf" => {
            want(name, arguments, 1..=usize::MAX)?;
            printf(text(name, &arguments[0])?, &arguments[1..])
        }
        "html" | "js" | "urlquery" => {
            let joined: String = arguments.iter().map(Value::print).collect();
            Ok(Value::text(escaped(name, &joined)))
        }
        "eq" => {
            want(name, arguments, 2..=usize::MAX)?;
            for other in &arguments[1..] {
                if compare(&arguments[0], other)? == Some(Ordering::Equal) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        "ne" | "lt" | "le" | "gt" | "ge" => {
            want(name, arguments, 2..=2)?;
            let order = compare(&arguments[0], &arguments[1])?;
            Ok(Value::Bool(match (name, order) {
                ("ne", order) => order != Some(Ordering::Equal),
                ("lt", Some(order)) => order.is_lt(),
                ("le", Some(order)) => order.is_le(),
                ("gt", Some(order)) => order.is_gt(),
                ("ge", Some(order)) => order.is_ge(),
                _ => return failed("incompatible types for comparison"),
            }))
        }
        "json" => {
            want(name, arguments, 1..=1)?;
            let json = arguments[0].to_json().to_string();
            // Docker renders a whole row with Go's default escapes, and all else without.
            Ok(Value::text(if arguments[0].is_row() {
                json.replace('<', "\\u003c")
                    .replace('>', "\\u003e")
                    .replace('&', "\\u0026")
            } else {
                json
            }))
        }
        "split" => {
            want(name, arguments, 2..=2)?;
            let (whole, separator) = (text(name, &arguments[0])?, text(name, &arguments[1])?);
            if separator.is_empty() {
                return Ok(Value::texts(whole.chars().map(String::from)));
            }
            Ok(Value::texts(whole.split(separator)))
        }
        "join" => {
            want(name, arguments, 2..=2)?;
            let separator = text(name, &arguments[1])?;
            match &arguments[0] {
                Value::List(items) => {
                    let words: Vec<String> = items.iter().map(Value::print).collect();
                    Ok(Value::text(words.join(separator)))
                }
                Value::Nil | Value::NilOf(_) => Ok(Value::text("")),
                other => Err(CallError::Wrong(format!(
                    "wrong type for value; expected []string; got {}",
                    other.type_name()
                ))),
            }
        }
        "title" => {
            want(name, arguments, 1..=1)?;
            let mut out = String::new();
            let mut inside = false;
            for c in text(name, &arguments[0])?.chars() {
                if inside {
                    out.push(c)
                } else {
                    out.extend(c.to_uppercase())
                }
                inside = c.is_alphanumeric() || c == '_' || c == '\'';
            }
            Ok(Value::text(out))
        }
        "lower" => {
            want(name, arguments, 1..=1)?;
            Ok(Value::text(text(name, &arguments[0])?.to_lowercase()))
        }
        "upper" => {
            want(name, arguments, 1..=1)?;
            Ok(Value::text(text(name, &arguments[0])?.to_uppercase()))
        }
        "pad" => {
            want(name, arguments, 3..=3)?;
            let body = text(name, &arguments[0])?;
            let spaces = |v: &Value| -> Result<String, CallError> {
                let n = integer(v)?.clamp(0, MAX_PADDING);
                Ok(" ".repeat(usize::try_from(n).unwrap_or(0)))
            };
            let (before, after) = (spaces(&arguments[1])?, spaces(&arguments[2])?);
            if body.is_empty() {
                return Ok(Value::text(""));
            }
            Ok(Value::text(format!("{before}{body}{after}")))
        }
        "truncate" => {
            want(name, arguments, 2..=2)?;
            let body = text(name, &arguments[0])?;
            let Ok(length) = usize::try_from(integer(&arguments[1])?) else {
                return failed("slice bounds out of range");
            };
            Ok(Value::text(crate::format::printer::prefix(body, length)))
        }
        other => Err(CallError::Wrong(format!("function {other:?} not defined"))),
    }
}

fn compare(a: &Value, b: &Value) -> Result<Option<Ordering>, CallError> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(Some(a.cmp(b))),
        (Value::Text(a), Value::Text(b)) => Ok(Some(a.cmp(b))),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(Some(a.cmp(&b))),
            _ => Ok(a.as_f64().partial_cmp(&b.as_f64())),
        },
        (
            Value::Nil | Value::NilOf(_) | Value::Missing,
            Value::Nil | Value::NilOf(_) | Value::Missing,
        ) => Ok(Some(Ordering::Equal)),
        (Value::Nil | Value::NilOf(_) | Value::Missing, _)
        | (_, Value::Nil | Value::NilOf(_) | Value::Missing) => Ok(None),
        _ => failed("incompatible types for comparison"),
    }
}

fn index(arguments: &[Value]) -> Called {
    let Some((item, indices)) = arguments.split_first() else {
        return Err(CallError::Wrong(
            "wrong number of args for index: want at least 1 got 0".to_owned(),
        ));
    };
    let mut value = item.clone();
    for key in indices {
        value = match (&value, key) {
            (Value::List(items), key) => {
                let at = integer(key)?;
                match usize::try_from(at).ok().and_then(|at| items.get(at)) {
                    Some(item) => item.clone(),
                    None => {
                        return failed(format!("error calling index: index out of range: {at}"));
                    }
                }
            }
            (Value::Object(o), Value::Text(key)) => o
                .entries
                .iter()
                .find(|(k, _)| **k == **key)
                .map_or(Value::text(""), |(_, v)| v.clone()),
            (Value::Text(s), key) => {
                let at = integer(key)?;
                match usize::try_from(at).ok().and_then(|at| s.as_bytes().get(at)) {
                    Some(byte) => Value::int(i64::from(*byte)),
                    None => return failed(format!("index out of range: {at}")),
                }
            }
            (Value::NilOf("map[]"), Value::Text(_)) => Value::text(""),
            (Value::Nil | Value::Missing, _) => return failed("index of untyped nil"),
            (other, _) => {
                return failed(format!("can't index item of type {}", other.type_name()));
            }
        };
    }
    Ok(value)
}

fn slice(arguments: &[Value]) -> Called {
    want("slice", arguments, 1..=3)?;
    let length = match &arguments[0] {
        Value::Text(s) => s.len(),
        Value::List(items) => items.len(),
        other => return failed(format!("can't slice item of type {}", other.type_name())),
    };
    let bound = |at: usize, default: usize| -> Result<usize, CallError> {
        match arguments.get(at) {
            None => Ok(default),
            Some(value) => {
                let n = integer(value)?;
                match usize::try_from(n) {
                    Ok(n) if n <= length => Ok(n),
                    _ => failed(format!("index out of range: {n}")),
                }
            }
        }
    };
    let (from, to) = (bound(1, 0)?, bound(2, length)?);
    if from > to {
        return failed(format!("invalid slice index: {from} > {to}"));
    }
    match &arguments[0] {
        Value::Text(s) => Ok(Value::text(String::from_utf8_lossy(
            &s.as_bytes()[from..to],
        ))),
        Value::List(items) => Ok(Value::List(std::rc::Rc::new(items[from..to].to_vec()))),
        _ => Ok(Value::Nil),
    }
}

fn escaped(kind: &str, whole: &str) -> String {
    let mut out = String::with_capacity(whole.len());
    for c in whole.chars() {
        match (kind, c) {
            ("html", '&') => out.push_str("&amp;"),
            ("html", '<') => out.push_str("&lt;"),
            ("html", '>') => out.push_str("&gt;"),
            ("html", '"') => out.push_str("&#34;"),
            ("html", '\'') => out.push_str("&#39;"),
            ("js", '\\') => out.push_str("\\\\"),
            ("js", '\'') => out.push_str("\\'"),
            ("js", '"') => out.push_str("\\\""),
            ("js", '<' | '>' | '&' | '=') => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            ("js", c) if u32::from(c) < 0x20 => {
                out.push_str(&format!("\\u{:04X}", u32::from(c)));
            }
            ("urlquery", ' ') => out.push('+'),
            ("urlquery", c) if !(c.is_ascii_alphanumeric() || "-_.~".contains(c)) => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    out.push_str(&format!("%{byte:02X}"));
                }
            }
            (_, c) => out.push(c),
        }
    }
    out
}

/// Go's `fmt.Sprintf` for the verbs that make sense here.
fn printf(format: &str, arguments: &[Value]) -> Called {
    let mut out = String::new();
    let mut values = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(flag) = chars.next_if(|c| "+-# 0".contains(*c)) {
            flags.push(flag);
        }
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Option<usize> {
            let mut digits = String::new();
            if chars.next_if_eq(&'*').is_some() {
                return values
                    .next()
                    .and_then(|v| integer(v).ok())
                    .and_then(|n| usize::try_from(n.clamp(0, MAX_PADDING)).ok());
            }
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            let limit = usize::try_from(MAX_PADDING).unwrap_or(0);
            digits.parse().ok().map(|n: usize| n.min(limit))
        };
        let width = number(&mut chars).unwrap_or(0);
        let precision = chars
            .next_if_eq(&'.')
            .map(|_| number(&mut chars).unwrap_or(0));
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let body = formatted(verb, value, precision, &flags);
        let missing = width.saturating_sub(body.chars().count());
        if flags.contains('-') {
            out.push_str(&body);
            out.push_str(&" ".repeat(missing));
        } else if flags.contains('0') && !matches!(verb, 's' | 'v' | 'q') {
            let (sign, digits) = match body.strip_prefix('-') {
                Some(digits) => ("-", digits),
                None => ("", body.as_str()),
            };
            out.push_str(&format!("{sign}{}{digits}", "0".repeat(missing)));
        } else {
            out.push_str(&" ".repeat(missing));
            out.push_str(&body);
        }
    }
    let extra: Vec<String> = values
        .map(|v| format!("{}={}", v.type_name(), v.print()))
        .collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(Value::text(out))
}

fn formatted(verb: char, value: &Value, precision: Option<usize>, flags: &str) -> String {
    let bad = || format!("%!{verb}({}={})", value.type_name(), value.print());
    let plus = if flags.contains('+') { "+" } else { "" };
    match (verb, value) {
        ('v', _) => value.print(),
        ('s', Value::Text(_) | Value::List(_) | Value::Object(_)) => {
            let text = value.print();
            match precision {
                Some(limit) => text.chars().take(limit).collect(),
                None => text,
            }
        }
        ('q', Value::Text(s)) => crate::flags::quote(s),
        ('q', Value::List(items)) => {
            let items: Vec<String> = items
                .iter()
                .map(|i| crate::flags::quote(&i.print()))
                .collect();
            format!("[{}]", items.join(" "))
        }
        ('t', Value::Bool(b)) => b.to_string(),
        ('d', Value::Number(n)) if !n.is_f64() => match n.as_i64() {
            Some(n) if n >= 0 => format!("{plus}{n}"),
            _ => n.to_string(),
        },
        ('x' | 'X' | 'o' | 'b' | 'c', Value::Number(n)) if !n.is_f64() => {
            let n = n.as_u64().unwrap_or(0);
            match verb {
                'x' => format!("{n:x}"),
                'X' => format!("{n:X}"),
                'o' => format!("{n:o}"),
                'b' => format!("{n:b}"),
                _ => u32::try_from(n)
                    .ok()
                    .and_then(char::from_u32)
                    .unwrap_or('\u{fffd}')
                    .into(),
            }
        }
        ('x', Value::Text(s)) => s.bytes().map(|b| format!("{b:02x}")).collect(),
        ('f' | 'F', Value::Number(n)) => match n.as_f64() {
            Some(f) if n.is_f64() => format!("{f:.*}", precision.unwrap_or(6)),
            _ => bad(),
        },
        ('g', Value::Number(_)) => value.print(),
        ('T', _) => value.type_name().to_owned(),
        _ => bad(),
    }
}
