//! `--publish` and `--expose`, and the `port` command.

use futures::future::LocalBoxFuture;
use serde_json::{Map, Value, json};

use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Parsed, quote};
use crate::output::emit;

/// The exposed ports and the bindings to ports of the host, as the API takes them.
#[derive(Debug, Default)]
pub struct Ports {
    /// `{"80/tcp": {}}`
    pub exposed: Map<String, Value>,
    /// `{"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}`
    pub bindings: Map<String, Value>,
}

/// A range `8000-8010`, or one port.
fn range(text: &str) -> Result<(u16, u16), String> {
    let port = |t: &str| -> Result<u16, String> {
        t.parse::<u16>().map_err(|e| {
            let what = match e.kind() {
                std::num::IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            format!("strconv.ParseUint: parsing {}: {what}", quote(t))
        })
    };
    if text.is_empty() {
        return Err("empty string specified for ports".to_owned());
    }
    let (start, end) = match text.split_once('-') {
        Some((start, end)) => (port(start)?, port(end)?),
        None => (port(text)?, port(text)?),
    };
    if end < start {
        return Err(format!("invalid range specified for port: {text}"));
    }
    Ok((start, end))
}

fn protocol(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((port, "")) => (port, "tcp"),
        Some((port, protocol)) => (port, protocol),
        None => (text, "tcp"),
    }
}

fn known(protocol: &str) -> Result<String, String> {
    let lower = protocol.to_lowercase();
    if ["tcp", "udp", "sctp"].contains(&lower.as_str()) {
        Ok(lower)
    } else {
        Err(format!("invalid proto: {protocol}"))
    }
}

/// `published=8080,target=80,protocol=tcp` in the short notation.
fn short_notation(text: &str) -> Result<String, String> {
    if !text.contains('=') {
        return Ok(text.to_owned());
    }
    let (mut published, mut target, mut protocol) = ("", "", "tcp");
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("published", value)) => published = value,
            Some(("target", value)) => target = value,
            Some(("protocol", value)) => protocol = value,
            Some((key, _)) if !key.is_empty() => {}
            _ => {
                return Err(format!(
                    "invalid publish opts format (should be name=value but got '{field}')"
                ));
            }
        }
    }
    Ok(format!("{published}:{target}/{protocol}"))
}

impl Ports {
    /// Understands the values of `--publish` and `--expose`.
    pub fn parse(publish: &[String], expose: &[String]) -> Result<Self, String> {
        let mut ports = Self::default();
        for text in publish {
            ports.publish(&short_notation(text)?)?;
        }
        for text in expose {
            ports.expose(text)?;
        }
        Ok(ports)
    }

    fn publish(&mut self, text: &str) -> Result<(), String> {
        let (before, container) = text.rsplit_once(':').unwrap_or(("", text));
        let (ip, host) = before.rsplit_once(':').unwrap_or(("", before));
        let (port, proto) = protocol(container);
        let ip = match ip.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(|| {
                format!("invalid IP address {ip}: address {ip}: missing ']' in address")
            })?,
            None => ip,
        };
        if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("invalid IP address: {ip}"));
        }
        if port.is_empty() {
            return Err(format!("no port specified: {text}<empty>"));
        }
        let (start, end) = range(port).map_err(|_| format!("invalid containerPort: {port}"))?;
        let hosts = match host {
            "" => None,
            host => Some(range(host).map_err(|_| format!("invalid hostPort: {host}"))?),
        };
        if let Some((host_start, host_end)) = hosts
            && end - start != host_end - host_start
            && end != start
        {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {port} and {host}"
            ));
        }
        let proto = known(proto)?;
        for offset in 0..=(end - start) {
            let host_port = match hosts {
                None => String::new(),
                // One port of the container, any of these of the host.
                Some((first, last)) if start == end && first != last => format!("{first}-{last}"),
                Some((first, _)) => (first + offset).to_string(),
            };
            let key = format!("{}/{proto}", start + offset);
            self.exposed.insert(key.clone(), json!({}));
            let binding = json!({"HostIp": ip, "HostPort": host_port});
            match self.bindings.get_mut(&key) {
                Some(Value::Array(list)) => list.push(binding),
                _ => {
                    self.bindings.insert(key, json!([binding]));
                }
            }
        }
        Ok(())
    }

    fn expose(&mut self, text: &str) -> Result<(), String> {
        if text.contains(':') {
            return Err(format!("invalid port format for --expose: {text}"));
        }
        let (port, proto) = protocol(text);
        let (start, end) = range(port)
            .map_err(|e| format!("invalid range format for --expose: {text}, error: {e}"))?;
        for port in start..=end {
            self.exposed
                .entry(format!("{port}/{proto}"))
                .or_insert_with(|| json!({}));
        }
        Ok(())
    }
}

/// The `port` command.
pub const PORT: Command = Command::new(
    "port",
    "CONTAINER [PRIVATE_PORT[/PROTO]]",
    "List a container's published ports",
    Arity::Range(1, 2),
    run_port,
)
.spelled(&["bulkhead container port", "bulkhead port"]);

fn run_port(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let name = &parsed.args[0];
        let details = ctx.client().inspect_container(name).await?;
        let empty = Map::new();
        let ports = details
            .pointer("/NetworkSettings/Ports")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        let shown = |binding: &Value| {
            let text = |key| binding.get(key).and_then(Value::as_str).unwrap_or_default();
            let ip = text("HostIp");
            let ip = if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            };
            format!("{ip}:{}", text("HostPort"))
        };
        let bindings = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut lines = Vec::new();
        match parsed.args.get(1) {
            Some(wanted) => {
                let (port, proto) = protocol(wanted);
                range(port).map_err(CliError::msg)?;
                let found = ports.get(&format!("{port}/{proto}")).map(bindings);
                match found.filter(|b| !b.is_empty()) {
                    Some(found) => lines.extend(found.iter().map(shown)),
                    None => {
                        return Err(CliError::msg(format!(
                            "Error: No public port '{wanted}' published for {name}"
                        )));
                    }
                }
            }
            None => {
                for (port, value) in ports {
                    lines.extend(
                        bindings(value)
                            .iter()
                            .map(|b| format!("{port} -> {}", shown(b))),
                    );
                }
            }
        }
        let key = |line: &String| {
            line.split(['/', ' '])
                .next()
                .and_then(|p| p.parse::<u32>().ok())
                .unwrap_or(0)
        };
        lines.sort_by(|a, b| key(a).cmp(&key(b)).then_with(|| a.cmp(b)));
        emit(lines.iter().map(|l| format!("{l}\n")).collect::<String>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(publish: &[&str], expose: &[&str]) -> Result<Ports, String> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        Ports::parse(&own(publish), &own(expose))
    }

    #[test]
    fn notations() {
        let ports = parse(
            &["127.0.0.1:8080:80", "53:53/udp", "90", "[::1]::91"],
            &["7-8"],
        )
        .unwrap();
        assert_eq!(
            Value::Object(ports.bindings),
            json!({
                "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
                "53/udp": [{"HostIp": "", "HostPort": "53"}],
                "90/tcp": [{"HostIp": "", "HostPort": ""}],
                "91/tcp": [{"HostIp": "::1", "HostPort": ""}],
            })
        );
        assert!(ports.exposed.contains_key("7/tcp") && ports.exposed.contains_key("8/tcp"));
        let ranges = parse(&["8000-8001:80-81", "9000-9009:90"], &[]).unwrap();
        assert_eq!(ranges.bindings["81/tcp"][0]["HostPort"], "8001");
        assert_eq!(ranges.bindings["90/tcp"][0]["HostPort"], "9000-9009");
        let long = parse(&["published=1,target=2,protocol=udp"], &[]).unwrap();
        assert_eq!(long.bindings["2/udp"][0]["HostPort"], "1");
    }

    #[test]
    fn refusals() {
        let error = |t: &str| parse(&[t], &[]).unwrap_err();
        assert_eq!(error("x"), "invalid containerPort: x");
        assert_eq!(error("x:1"), "invalid hostPort: x");
        assert_eq!(error("1.2.3:1:1"), "invalid IP address: 1.2.3");
        assert_eq!(error("80/foo"), "invalid proto: foo");
        assert_eq!(error("65536"), "invalid containerPort: 65536");
        assert!(error("1-2:1-3").starts_with("invalid ranges"));
        assert!(parse(&[], &["1:2"]).is_err());
    }
}
