//! Texts as Go prints them: histories of images are full of them, and tools compare them.

use std::fmt::Write as _;

use bulkhead_image::Healthcheck;

/// `%q` of a string.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            control if control.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// `%q` of a slice.
pub(super) fn quote_all(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quote(text)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `%q` of a health check.
pub(super) fn quote_healthcheck(check: &Healthcheck) -> String {
    let retries = u32::try_from(check.retries).unwrap_or(0);
    let retries = match char::from_u32(retries) {
        Some(printable @ ' '..='~') => format!("'{printable}'"),
        _ if retries < 0x80 => match retries {
            7 => "'\\a'".to_owned(),
            8 => "'\\b'".to_owned(),
            9 => "'\\t'".to_owned(),
            10 => "'\\n'".to_owned(),
            11 => "'\\v'".to_owned(),
            12 => "'\\f'".to_owned(),
            13 => "'\\r'".to_owned(),
            other => format!("'\\x{other:02x}'"),
        },
        _ => format!("'\\u{retries:04x}'"),
    };
    format!(
        "&{{{} {} {} {} {} {retries}}}",
        quote_all(&check.test),
        quote(&duration(check.interval)),
        quote(&duration(check.timeout)),
        quote(&duration(check.start_period)),
        quote(&duration(check.start_interval)),
    )
}

/// A duration in nanoseconds: `1h2m3.5s`, `1.5ms`, `0s`.
fn duration(nanoseconds: i64) -> String {
    let total = nanoseconds.unsigned_abs();
    let fraction = |value: u64, unit: u64, name: &str| {
        let (whole, rest) = (value / unit, value % unit);
        let digits = unit.ilog10() as usize;
        let rest = format!("{rest:0digits$}");
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() || unit == 1 {
            format!("{whole}{name}")
        } else {
            format!("{whole}.{rest}{name}")
        }
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => fraction(total, 1, "ns"),
        1_000..1_000_000 => fraction(total, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(total, 1_000_000, "ms"),
        _ => {
            let minutes = total / 60_000_000_000;
            let seconds = fraction(total % 60_000_000_000, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_prints() {
        assert_eq!(quote("a\"b\\\n\u{1}"), "\"a\\\"b\\\\\\n\\x01\"");
        let check = Healthcheck {
            test: vec!["CMD-SHELL".to_owned(), "x".to_owned()],
            interval: 90_500_000_000,
            timeout: 1_500_000,
            retries: 3,
            ..Healthcheck::default()
        };
        assert_eq!(
            quote_healthcheck(&check),
            "&{[\"CMD-SHELL\" \"x\"] \"1m30.5s\" \"1.5ms\" \"0s\" \"0s\" '\\x03'}"
        );
        assert_eq!(duration(3_600_000_000_000), "1h0m0s");
    }
}
