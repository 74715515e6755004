//! Sizes, durations and CPU counts in Docker's notation, both ways.

use std::time::Duration;

/// Renders `value` as Go's `%.<precision>g`.
pub fn general(value: f64, precision: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 {
            "0".to_owned()
        } else {
            value.to_string()
        };
    }
    let scientific = format!("{:.*e}", precision.saturating_sub(1), value);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |digits: &str| -> String {
        if digits.contains('.') {
            digits
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
        } else {
            digits.to_owned()
        }
    };
    let limit = i32::try_from(precision).unwrap_or(i32::MAX);
    if exponent < -4 || exponent >= limit {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    } else {
        let decimals = usize::try_from(limit - 1 - exponent).unwrap_or(0);
        trim(&format!("{value:.decimals$}"))
    }
}

const DECIMAL: [&str; 9] = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
const BINARY: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

fn scaled(mut size: f64, base: f64, precision: usize, names: &[&str]) -> String {
    let mut unit = 0;
    while size >= base && unit < names.len() - 1 {
        size /= base;
        unit += 1;
    }
    format!("{}{}", general(size, precision), names[unit])
}

/// A float of a byte count. Above 2^53 the last digits go, which no rendering shows.
#[allow(clippy::cast_precision_loss)]
pub fn float(n: i64) -> f64 {
    n as f64
}

/// As [`float`], for unsigned counts.
#[allow(clippy::cast_precision_loss)]
pub fn float_u(n: u64) -> f64 {
    n as f64
}

/// `4.26MB`: three digits, powers of 1000.
pub fn size3(bytes: f64) -> String {
    scaled(bytes, 1000.0, 3, &DECIMAL)
}

/// `4.262MB`: four digits, powers of 1000.
pub fn size4(bytes: f64) -> String {
    scaled(bytes, 1000.0, 4, &DECIMAL)
}

/// `4.262MiB`: four digits, powers of 1024.
pub fn binary_size(bytes: f64) -> String {
    scaled(bytes, 1024.0, 4, &BINARY)
}

/// `About a minute`, `3 weeks`: the coarse length that lists show.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    // Rounded to the nearest hour.
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// A float that is known to lie in the range of `i64`.
fn whole(value: f64) -> Result<i64, ()> {
    if value.is_finite() && value.abs() < 9.2e18 {
        #[allow(clippy::cast_possible_truncation)]
        let whole = value as i64;
        Ok(whole)
    } else {
        Err(())
    }
}

/// A size with an optional binary unit (`64m`, `1.5GiB`, `10 kb`) in bytes.
pub fn ram_in_bytes(text: &str) -> Result<i64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let last = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')
        .ok_or_else(invalid)?;
    let unit = text[last + 1..].to_ascii_lowercase();
    let number = text[..=last].strip_suffix(' ').unwrap_or(&text[..=last]);
    let size: f64 = number
        .parse()
        .map_err(|_| format!("strconv.ParseFloat: parsing \"{number}\": invalid syntax"))?;
    if size < 0.0 {
        return Err(invalid());
    }
    let factor = match unit.as_bytes() {
        [] | [b'b'] => 1.0,
        [letter] | [letter, b'b'] | [letter, b'i', b'b'] => {
            let power = b"kmgtp"
                .iter()
                .position(|u| u == letter)
                .ok_or_else(|| format!("invalid suffix: '{unit}'"))?;
            1024f64.powi(i32::try_from(power + 1).unwrap_or(1))
        }
        _ => return Err(format!("invalid suffix: '{unit}'")),
    };
    whole(size * factor).map_err(|()| invalid())
}

/// A number of CPUs (`1.5`, `3/2`) in billionths.
pub fn parse_cpus(text: &str) -> Result<i64, String> {
    let bad = || format!("failed to parse {text} as a rational number");
    let number = |t: &str| -> Option<f64> {
        let plain = t.trim_start_matches(['+', '-']);
        plain
            .starts_with(|c: char| c.is_ascii_digit() || c == '.')
            .then(|| t.parse().ok())?
    };
    let value = match text.split_once('/') {
        Some((a, b)) => {
            let (a, b) = (number(a).ok_or_else(bad)?, number(b).ok_or_else(bad)?);
            if b == 0.0 {
                return Err(bad());
            }
            a / b
        }
        None => number(text).ok_or_else(bad)?,
    };
    let billionths = value * 1e9;
    if (billionths - billionths.round()).abs() > 1e-3 {
        return Err("value is too precise".to_owned());
    }
    whole(billionths.round()).map_err(|()| bad())
}

/// Go's duration notation in nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let quoted = crate::flags::quote(text);
    let invalid = || format!("time: invalid duration {quoted}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let value: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" => return Err(format!("time: missing unit in duration {quoted}")),
            unit => {
                let unit = crate::flags::quote(unit);
                return Err(format!("time: unknown unit {unit} in duration {quoted}"));
            }
        };
        total += value * unit;
        rest = &rest[end..];
    }
    let nanoseconds = whole(total).map_err(|()| invalid())?;
    Ok(if negative { -nanoseconds } else { nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out() {
        assert_eq!(size3(0.0), "0B");
        assert_eq!(size3(1_980_000.0), "1.98MB");
        assert_eq!(size3(4_262_048.0), "4.26MB");
        assert_eq!(size3(1000.0), "1kB");
        assert_eq!(size3(999_999.0), "1e+03kB");
        assert_eq!(size4(999_950.0), "1000kB");
        assert_eq!(binary_size(25_275_000_000.0), "23.54GiB");
        assert_eq!(binary_size(512.0 * 1024.0 * 1024.0), "512MiB");
        assert_eq!(general(0.00001234, 3), "1.23e-05");
    }

    #[test]
    fn sizes_in() {
        assert_eq!(ram_in_bytes("64m"), Ok(64 << 20));
        assert_eq!(ram_in_bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(ram_in_bytes("10 kb"), Ok(10_240));
        assert_eq!(ram_in_bytes("7"), Ok(7));
        assert_eq!(ram_in_bytes("7b"), Ok(7));
        assert_eq!(ram_in_bytes("foo").unwrap_err(), "invalid size: 'foo'");
        assert_eq!(ram_in_bytes("5x").unwrap_err(), "invalid suffix: 'x'");
        assert_eq!(
            ram_in_bytes("5kib3").unwrap_err(),
            "strconv.ParseFloat: parsing \"5kib3\": invalid syntax"
        );
        assert!(ram_in_bytes("-5m").is_err());
        assert!(ram_in_bytes("99999999999999p").is_err());
    }

    #[test]
    fn durations() {
        let human = |s| human_duration(Duration::from_secs(s));
        assert_eq!(human(0), "Less than a second");
        assert_eq!(human(1), "1 second");
        assert_eq!(human(59), "59 seconds");
        assert_eq!(human(60), "About a minute");
        assert_eq!(human(3599), "59 minutes");
        assert_eq!(human(3600), "About an hour");
        assert_eq!(human(3600 * 47), "47 hours");
        assert_eq!(human(3600 * 48), "2 days");
        assert_eq!(human(3600 * 24 * 15), "2 weeks");
        assert_eq!(human(3600 * 24 * 61), "2 months");
        assert_eq!(human(3600 * 24 * 365 * 3), "3 years");
        assert_eq!(parse_duration("1h30m"), Ok(5_400_000_000_000));
        assert_eq!(parse_duration("1.5s"), Ok(1_500_000_000));
        assert_eq!(parse_duration("-250ms"), Ok(-250_000_000));
        assert!(parse_duration("5").unwrap_err().contains("missing unit"));
        assert!(parse_duration("").is_err());
    }

    #[test]
    fn cpus() {
        assert_eq!(parse_cpus("1.5"), Ok(1_500_000_000));
        assert_eq!(parse_cpus("3/2"), Ok(1_500_000_000));
        assert_eq!(
            parse_cpus("abc").unwrap_err(),
            "failed to parse abc as a rational number"
        );
        assert!(parse_cpus("inf").is_err());
        assert_eq!(
            parse_cpus("0.00000000001").unwrap_err(),
            "value is too precise"
        );
    }
}
