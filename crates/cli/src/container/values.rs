//! Checks of single values of container flags, in Docker's words.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::flags::quote;
use crate::format::units;

type Checked = Result<String, String>;

/// `--attach`.
pub fn stream(value: &str) -> Checked {
    let lower = value.to_ascii_lowercase();
    match lower.as_str() {
        "stdin" | "stdout" | "stderr" => Ok(lower),
        _ => Err("valid streams are STDIN, STDOUT and STDERR".to_owned()),
    }
}

/// `--env`: a name without a value takes this process's.
pub fn env(value: &str) -> Checked {
    let (name, given) = match value.split_once('=') {
        Some((name, _)) => (name, true),
        None => (value, false),
    };
    if name.is_empty() {
        return Err(format!("invalid environment variable: {value}"));
    }
    if !given && let Some(own) = std::env::var_os(name) {
        return Ok(format!("{name}={}", own.to_string_lossy()));
    }
    Ok(value.to_owned())
}

/// `--label`.
pub fn label(value: &str) -> Checked {
    let key = value
        .split_once('=')
        .map_or(value, |(k, _)| k)
        .trim_start_matches([' ', '\t']);
    if key.is_empty() {
        return Err(format!("invalid label '{value}': empty name"));
    }
    if key.contains([' ', '\t']) {
        return Err(format!("label '{key}' contains whitespaces"));
    }
    Ok(value.to_owned())
}

/// `--sysctl`: only parameters that have a namespace.
pub fn sysctl(value: &str) -> Checked {
    const SINGLE: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    match value.split_once('=') {
        Some((key, _))
            if SINGLE.contains(&key)
                || key.starts_with("net.")
                || key.starts_with("fs.mqueue.") =>
        {
            Ok(value.to_owned())
        }
        _ => Err(format!("sysctl '{value}' is not allowed")),
    }
}

/// `--dns`.
pub fn ip_address(value: &str) -> Checked {
    value
        .trim()
        .parse::<IpAddr>()
        .map(|ip| ip.to_string())
        .map_err(|_| format!("IP address is not correctly formatted: {value}"))
}

/// `--dns-search`.
pub fn dns_search(value: &str) -> Checked {
    let value = value.trim_matches(' ');
    if value == "." {
        return Ok(value.to_owned());
    }
    let name = value.strip_suffix('.').unwrap_or(value);
    let label_ok = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let valid = name.chars().any(|c| c.is_ascii_alphabetic())
        && name.len() < 255
        && name.split('.').all(label_ok);
    if valid {
        Ok(name.to_owned())
    } else {
        Err(format!("{value} is not a valid domain"))
    }
}

/// `--add-host`: `HOST:IP` or `HOST=IP`; the API takes the first form without brackets.
pub fn extra_host(value: &str) -> Checked {
    let split = value.split_once('=').or_else(|| value.split_once(':'));
    let (host, address) = match split {
        Some((host, address)) if !host.is_empty() && !host.contains(':') => (host, address),
        _ => return Err(format!("bad format for add-host: {}", quote(value))),
    };
    if address == "host-gateway" {
        return Ok(format!("{host}:{address}"));
    }
    let bare = address
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
        .unwrap_or(address);
    if bare.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address in add-host: {}", quote(bare)));
    }
    Ok(format!("{host}:{bare}"))
}

/// `--link`.
pub fn link(value: &str) -> Checked {
    let parts = value.split(':').count();
    if value.is_empty() {
        return Err("empty string specified for links".to_owned());
    }
    if parts > 2 {
        return Err(format!("bad format for links: {value}"));
    }
    Ok(value.to_owned())
}

/// `--network`.
pub fn network(value: &str) -> Checked {
    super::networks::Attachment::parse(value).map(|_| value.to_owned())
}

/// `--ulimit`.
pub fn ulimit(value: &str) -> Checked {
    parse_ulimit(value).map(|_| value.to_owned())
}

/// A resource limit as the API takes it.
pub fn parse_ulimit(text: &str) -> Result<Value, String> {
    const NAMES: &[&str] = &[
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let invalid = || format!("invalid ulimit argument: {text}");
    let (name, limits) = text.split_once('=').ok_or_else(invalid)?;
    if !NAMES.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let number = |t: &str| -> Result<i64, String> {
        t.parse::<i64>()
            .map_err(|_| format!("strconv.ParseInt: parsing {}: invalid syntax", quote(t)))
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((_, hard)) if hard.contains(':') => {
            return Err(format!(
                "too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            ));
        }
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        ));
    }
    Ok(json!({"Name": name, "Hard": hard, "Soft": soft}))
}

/// `--device-cgroup-rule`.
pub fn device_rule(value: &str) -> Checked {
    let number = |t: &str| t == "*" || (!t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
    let words: Vec<&str> = value.split(' ').collect();
    let valid = match words.as_slice() {
        ["a" | "c" | "b", device, access] => {
            device
                .split_once(':')
                .is_some_and(|(major, minor)| number(major) && number(minor))
                && (1..=3).contains(&access.len())
                && access.chars().all(|c| "rwm".contains(c))
        }
        _ => false,
    };
    if valid {
        Ok(value.to_owned())
    } else {
        Err(format!("invalid device cgroup format '{value}'"))
    }
}

fn device_pair<'a>(value: &'a str, what: &str) -> Result<(&'a str, &'a str), String> {
    let (path, rest) = value
        .split_once(':')
        .ok_or_else(|| format!("bad format: {value}"))?;
    if path.is_empty() || rest.contains(':') {
        return Err(format!("bad format: {value}"));
    }
    if !path.starts_with("/dev/") {
        return Err(format!("bad format for device path: {value}"));
    }
    if rest.is_empty() {
        return Err(format!("invalid {what} for device: {value}"));
    }
    Ok((path, rest))
}

/// `--device-read-bps` and `--device-write-bps`.
pub fn throttle_bytes(value: &str) -> Checked {
    let (_, rate) = device_pair(value, "rate")?;
    units::ram_in_bytes(rate)
        .map(|_| value.to_owned())
        .map_err(|_| {
            format!(
                "invalid rate for device: {value}. The correct format is \
             <device-path>:<number>[<unit>]. Number must be a positive integer. \
             Unit is optional and can be kb, mb, or gb"
            )
        })
}

/// `--device-read-iops` and `--device-write-iops`.
pub fn throttle_operations(value: &str) -> Checked {
    let (_, rate) = device_pair(value, "rate")?;
    rate.parse::<u64>().map(|_| value.to_owned()).map_err(|_| {
        format!(
            "invalid rate for device: {value}. The correct format is <device-path>:<number>. \
             Number must be a positive integer"
        )
    })
}

/// A throttled device as the API takes it.
pub fn throttle_value(value: &str) -> Value {
    let (path, rate) = value.split_once(':').unwrap_or((value, "0"));
    let rate = units::ram_in_bytes(rate).unwrap_or(0);
    json!({"Path": path, "Rate": rate})
}

/// `--blkio-weight-device`.
pub fn weight_device(value: &str) -> Checked {
    let (_, weight) = device_pair(value, "weight")?;
    match weight.parse::<u16>() {
        Ok(weight) if weight == 0 || (10..=1000).contains(&weight) => Ok(value.to_owned()),
        _ => Err(format!("invalid weight for device: {value}")),
    }
}

/// A weighted device as the API takes it.
pub fn weight_value(value: &str) -> Value {
    let (path, weight) = value.split_once(':').unwrap_or((value, "0"));
    json!({"Path": path, "Weight": weight.parse::<u16>().unwrap_or(0)})
}

/// `--gpus`.
pub fn gpus(value: &str) -> Checked {
    gpu_request(value).map(|_| value.to_owned())
}

/// A request for GPUs as the API takes it.
pub fn gpu_request(value: &str) -> Result<Value, String> {
    let mut count = 0i64;
    let mut driver = String::new();
    let mut devices: Vec<String> = Vec::new();
    let mut capabilities = vec!["gpu".to_owned()];
    let number = |text: &str| -> Result<i64, String> {
        if text == "all" {
            return Ok(-1);
        }
        text.parse().map_err(|_| {
            format!("invalid count ({text}): value must be either \"all\" or an integer")
        })
    };
    let mut counted = false;
    for field in comma_fields(value)? {
        match field.split_once('=') {
            None => {
                count = number(&field)?;
                counted = true;
            }
            Some(("driver", text)) => driver = text.to_owned(),
            Some(("count", text)) => {
                count = number(text)?;
                counted = true;
            }
            Some(("device", text)) => devices = text.split(',').map(str::to_owned).collect(),
            Some(("capabilities", text)) => {
                capabilities = text.split(',').map(str::to_owned).collect();
                capabilities.push("gpu".to_owned());
            }
            Some(("options", _)) => return Err("GPU options are not supported".to_owned()),
            Some((key, _)) => {
                return Err(format!("unexpected key '{key}' in '{field}'"));
            }
        }
    }
    if !counted && devices.is_empty() {
        count = 1;
    }
    Ok(json!({
        "Driver": driver, "Count": count, "DeviceIDs": devices,
        "Capabilities": [capabilities], "Options": {},
    }))
}

/// Splits a comma-separated value whose fields may be quoted.
pub fn comma_fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(field) = fields.last_mut() else {
            break;
        };
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            '"' => return Err("parse error: bare \" in non-quoted field".to_owned()),
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    if quoted {
        return Err("parse error: extraneous or missing \" in quoted field".to_owned());
    }
    if text.is_empty() {
        return Err("EOF".to_owned());
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_values() {
        assert_eq!(stream("STDOUT").unwrap(), "stdout");
        assert!(stream("x").is_err() && label("=x").is_err() && label("a b=c").is_err());
        assert!(sysctl("net.ipv4.ip_forward=1").is_ok() && sysctl("vm.swappiness=1").is_err());
        assert_eq!(extra_host("a=[::1]").unwrap(), "a:::1");
        assert_eq!(extra_host("a:host-gateway").unwrap(), "a:host-gateway");
        assert!(extra_host("a").is_err() && extra_host("a:b").is_err());
        assert_eq!(dns_search("example.com.").unwrap(), "example.com");
        assert!(dns_search("-x").is_err() && dns_search("1").is_err());
        assert!(device_rule("c 1:* rw").is_ok() && device_rule("c 1 rw").is_err());
        assert!(throttle_bytes("/dev/sda:1mb").is_ok() && throttle_bytes("sda:1").is_err());
    }

    #[test]
    fn limits() {
        let value = parse_ulimit("nofile=10:20").unwrap();
        assert_eq!(value, json!({"Name": "nofile", "Hard": 20, "Soft": 10}));
        assert_eq!(
            parse_ulimit("foo").unwrap_err(),
            "invalid ulimit argument: foo"
        );
        assert_eq!(
            parse_ulimit("foo=1").unwrap_err(),
            "invalid ulimit type: foo"
        );
        assert!(parse_ulimit("nofile=2:1").is_err() && parse_ulimit("nofile=-1:1").is_err());
        assert!(parse_ulimit("core=-1").is_ok());
    }

    #[test]
    fn quoted_fields() {
        assert_eq!(
            comma_fields("a,\"b,c\",\"d\"\"e\"").unwrap(),
            ["a", "b,c", "d\"e"]
        );
        assert!(comma_fields("\"a").is_err());
        assert_eq!(gpu_request("all").unwrap()["Count"], -1);
    }
}
