//! Times as Docker shows and accepts them.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};

use super::units;

/// How long ago the UNIX time `seconds` was, coarse: `2 weeks ago`.
pub fn ago(seconds: i64) -> String {
    let elapsed = Timestamp::now().as_second().saturating_sub(seconds);
    let elapsed = Duration::from_secs(u64::try_from(elapsed).unwrap_or(0));
    format!("{} ago", units::human_duration(elapsed))
}

/// Go's rendering of a UNIX time in the local zone: `2006-01-02 15:04:05 -0700 MST`.
pub fn local(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S %z %Z")
            .to_string(),
        Err(_) => seconds.to_string(),
    }
}

/// An RFC 3339 time of an answer in Go's form, `2006-01-02 15:04:05.5 -0700 MST`; what is none
/// stays as it is.
pub fn go_time(text: &str) -> String {
    let Ok(time) = text.parse::<Timestamp>() else {
        return text.to_owned();
    };
    let (zone, name) = match text.ends_with('Z') {
        true => (TimeZone::UTC, "UTC".to_owned()),
        false => {
            let offset = jiff::fmt::temporal::Pieces::parse(text)
                .ok()
                .and_then(|p| p.to_numeric_offset())
                .unwrap_or(jiff::tz::Offset::UTC);
            (TimeZone::fixed(offset), String::new())
        }
    };
    let zoned = time.to_zoned(zone);
    let offset = zoned.strftime("%z").to_string();
    let name = if name.is_empty() {
        offset.clone()
    } else {
        name
    };
    format!("{} {offset} {name}", zoned.strftime("%Y-%m-%d %H:%M:%S%.f"))
}

/// An event's time in the local zone, with nine decimals and a numeric offset:
/// `2006-01-02T15:04:05.000000000-07:00`.
pub fn event(nanoseconds: i128) -> String {
    match Timestamp::from_nanosecond(nanoseconds) {
        Ok(time) => {
            let zoned = time.to_zoned(TimeZone::system());
            let text = zoned.strftime("%Y-%m-%dT%H:%M:%S.%9f").to_string();
            if zoned.offset().is_zero() {
                format!("{text}Z")
            } else {
                format!("{text}{}", zoned.strftime("%:z"))
            }
        }
        Err(_) => nanoseconds.to_string(),
    }
}

/// The local RFC 3339 form with seconds, of a UNIX time: `2006-01-02T15:04:05-07:00`.
pub fn rfc3339_local(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => {
            let zoned = time.to_zoned(TimeZone::system());
            let text = zoned.strftime("%Y-%m-%dT%H:%M:%S").to_string();
            if zoned.offset().is_zero() {
                format!("{text}Z")
            } else {
                format!("{text}{}", zoned.strftime("%:z"))
            }
        }
        Err(_) => seconds.to_string(),
    }
}

/// Turns what the user gave for `--since` or `--until` into the API's form
/// (`seconds[.nanoseconds]`): a UNIX time, a duration before now, or a date, which is local
/// unless it names its offset.
pub fn moment(text: &str) -> Result<String, String> {
    if let Ok(before) = units::parse_duration(text)
        && text.ends_with(|c: char| c.is_ascii_alphabetic())
    {
        let now = Timestamp::now().as_nanosecond();
        return Ok(unix(now - i128::from(before)));
    }
    if !text.contains(['-', ':']) || is_plain_unix(text) {
        return if is_plain_unix(text) {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "failed to parse value as time or duration: {}",
                crate::flags::quote(text)
            ))
        };
    }
    let parsed = text.parse::<Timestamp>().ok().or_else(|| {
        let civil = text.parse::<civil::DateTime>().ok().or_else(|| {
            // A date with hours only.
            let (date, hour) = text.split_once('T')?;
            let date: civil::Date = date.parse().ok()?;
            Some(date.at(hour.parse().ok().filter(|h| (0..24).contains(h))?, 0, 0, 0))
        })?;
        civil
            .to_zoned(TimeZone::system())
            .ok()
            .map(|z| z.timestamp())
    });
    match parsed {
        Some(time) => Ok(unix(time.as_nanosecond())),
        None => Err(format!(
            "failed to parse value as time or duration: {}",
            crate::flags::quote(text)
        )),
    }
}

fn is_plain_unix(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty()
        && digits.split('.').count() <= 2
        && digits
            .split('.')
            .all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

fn unix(nanoseconds: i128) -> String {
    let billion = 1_000_000_000;
    format!(
        "{}.{:09}",
        nanoseconds.div_euclid(billion),
        nanoseconds.rem_euclid(billion)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_times() {
        let go = go_time("2026-11-23T22:04:48.11852291Z");
        assert_eq!(go, "2026-11-23 22:04:48.11852291 +0000 UTC");
        let go = go_time("2026-11-23T22:04:48+01:00");
        assert_eq!(go, "2026-11-23 22:04:48 +0100 +0100");
        assert_eq!(go_time("x"), "x");
    }

    #[test]
    fn moments() {
        assert_eq!(moment("1136073600").unwrap(), "1136073600");
        assert_eq!(
            moment("1136073600.000000001").unwrap(),
            "1136073600.000000001"
        );
        assert_eq!(
            moment("2006-01-01T00:00:00Z").unwrap(),
            "1136073600.000000000"
        );
        assert_eq!(
            moment("2006-01-01T01:00:00.5+01:00").unwrap(),
            "1136073600.500000000"
        );
        assert!(moment("10m").unwrap().contains('.'));
        assert!(moment("2006-01-01").is_ok() && moment("2006-01-01T10").is_ok());
        assert!(moment("yesterday").is_err() && moment("").is_err() && moment("20-x").is_err());
    }
}
