//! `--network` and the flags that belong to the first network.

use serde_json::{Map, Value, json};

use super::values::comma_fields;
use crate::flags::{Parsed, quote};

/// One `--network`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// The network's name, or a mode (`none`, `host`, `container:…`).
    pub target: String,
    aliases: Vec<String>,
    links: Vec<String>,
    ipv4: String,
    ipv6: String,
    link_local: Vec<String>,
    mac: String,
    driver_options: Vec<(String, String)>,
    gateway_priority: i64,
}

/// True for a name that is neither a mode nor a network every engine has.
fn user_defined(target: &str) -> bool {
    !matches!(target, "default" | "bridge" | "host" | "none") && !target.starts_with("container:")
}

impl Attachment {
    /// Understands `NAME` and `name=NAME,alias=…,ip=…`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let long = text.split(',').any(|part| {
            part.split_once('=').is_some_and(|(key, value)| {
                key.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                    && value.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            })
        });
        let mut attachment = Self::default();
        if !long {
            attachment.target = text.to_owned();
            return Ok(attachment);
        }
        for field in comma_fields(text)? {
            let lower = field.to_lowercase();
            let (key, value) = match lower.split_once('=') {
                Some((key, value)) if !key.is_empty() => (key.trim(), value.trim().to_owned()),
                _ => return Err(format!("invalid field {field}")),
            };
            match key {
                "name" => attachment.target = value,
                "alias" => attachment.aliases.push(value),
                "ip" => attachment.ipv4 = value,
                "ip6" => attachment.ipv6 = value,
                "mac-address" => attachment.mac = value,
                "link-local-ip" => attachment.link_local.push(value),
                "driver-opt" => match value.split_once('=') {
                    Some((k, v)) if !k.is_empty() => attachment
                        .driver_options
                        .push((k.trim().to_owned(), v.trim().to_owned())),
                    _ => {
                        return Err("invalid key value pair format in driver options".to_owned());
                    }
                },
                "gw-priority" => {
                    attachment.gateway_priority = value
                        .parse()
                        .map_err(|_| format!("invalid gw-priority ({value}): invalid syntax"))?;
                }
                key => return Err(format!("invalid field key {key}")),
            }
        }
        if attachment.target.is_empty() {
            return Err("network name/id is not specified".to_owned());
        }
        Ok(attachment)
    }

    /// Adds what the flags outside `--network` say about the first network.
    fn add_flags(&mut self, flags: &Parsed) -> Result<(), String> {
        let conflict = |flag: &str, what: &str| {
            Err(format!(
                "conflicting options: cannot specify both {flag} and per-network {what}"
            ))
        };
        if !self.aliases.is_empty() && !flags.list("network-alias").is_empty() {
            return conflict("--network-alias", "alias");
        }
        if !self.ipv4.is_empty() && flags.given("ip").is_some() {
            return conflict("--ip", "IPv4 address");
        }
        if !self.ipv6.is_empty() && flags.given("ip6").is_some() {
            return conflict("--ip6", "IPv6 address");
        }
        if !self.mac.is_empty() && flags.given("mac-address").is_some() {
            return conflict("--mac-address", "MAC address");
        }
        if !self.link_local.is_empty() && !flags.list("link-local-ip").is_empty() {
            return conflict("--link-local-ip", "link-local IP addresses");
        }
        self.aliases.extend_from_slice(flags.list("network-alias"));
        self.link_local
            .extend_from_slice(flags.list("link-local-ip"));
        if user_defined(&self.target) {
            self.links.extend_from_slice(flags.list("link"));
        }
        for (slot, flag) in [
            (&mut self.ipv4, "ip"),
            (&mut self.ipv6, "ip6"),
            (&mut self.mac, "mac-address"),
        ] {
            if let Some(value) = flags.given(flag) {
                *slot = value.to_owned();
            }
        }
        Ok(())
    }

    fn endpoint(&self) -> Result<Value, String> {
        if self.target.trim().is_empty() {
            return Err("no name set for network".to_owned());
        }
        if !user_defined(&self.target) {
            if !self.aliases.is_empty() {
                return Err(
                    "network-scoped aliases are only supported for user-defined networks"
                        .to_owned(),
                );
            }
            if !self.links.is_empty() {
                return Err("links are only supported for user-defined networks".to_owned());
            }
        }
        check_mac(&self.mac)?;
        let mut endpoint = Map::new();
        let mut put = |key: &str, value: Value| endpoint.insert(key.to_owned(), value);
        if !self.aliases.is_empty() {
            put("Aliases", json!(self.aliases));
        }
        if !self.links.is_empty() {
            put("Links", json!(self.links));
        }
        if !self.driver_options.is_empty() {
            let options: Map<String, Value> = self
                .driver_options
                .iter()
                .map(|(k, v)| (k.clone(), v.clone().into()))
                .collect();
            put("DriverOpts", Value::Object(options));
        }
        if !(self.ipv4.is_empty() && self.ipv6.is_empty() && self.link_local.is_empty()) {
            put(
                "IPAMConfig",
                json!({"IPv4Address": self.ipv4, "IPv6Address": self.ipv6,
                       "LinkLocalIPs": self.link_local}),
            );
        }
        if !self.mac.is_empty() {
            put("MacAddress", self.mac.clone().into());
        }
        if self.gateway_priority != 0 {
            put("GwPriority", self.gateway_priority.into());
        }
        Ok(Value::Object(endpoint))
    }
}

/// Refuses what is no MAC address; empty is none.
pub fn check_mac(mac: &str) -> Result<(), String> {
    let octets: Vec<&str> = mac.split([':', '-']).collect();
    let hex = |o: &&str| o.len() == 2 && o.bytes().all(|b| b.is_ascii_hexdigit());
    if mac.is_empty() || (octets.len() == 6 && octets.iter().all(hex)) {
        return Ok(());
    }
    Err(format!("{mac} is not a valid mac address"))
}

/// The mode for `HostConfig.NetworkMode` and the endpoints by network.
pub fn endpoints(flags: &Parsed) -> Result<(String, Map<String, Value>), String> {
    let mut attachments = Vec::new();
    for text in flags.list("network") {
        attachments.push(Attachment::parse(text)?);
    }
    let explicit = attachments.len();
    if attachments.is_empty() {
        attachments.push(Attachment {
            target: "default".to_owned(),
            ..Attachment::default()
        });
    }
    let mode = attachments[0].target.clone();
    let mut endpoints = Map::new();
    for (index, attachment) in attachments.iter_mut().enumerate() {
        if index == 0 {
            attachment.add_flags(flags)?;
        }
        let endpoint = attachment.endpoint()?;
        if endpoints.contains_key(&attachment.target) {
            return Err(format!(
                "network {} is specified multiple times",
                quote(&attachment.target)
            ));
        }
        let bare = endpoint.as_object().is_some_and(Map::is_empty);
        if explicit == 1 && bare {
            continue;
        }
        endpoints.insert(attachment.target.clone(), endpoint);
    }
    let users = attachments
        .iter()
        .filter(|a| user_defined(&a.target))
        .count();
    if users > 0 && users < explicit {
        return Err(
            "conflicting options: cannot attach both user-defined and non-user-defined \
                    network-modes"
                .to_owned(),
        );
    }
    Ok((mode, endpoints))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_short_forms() {
        assert_eq!(Attachment::parse("none").unwrap().target, "none");
        let long = Attachment::parse("name=n,alias=a,alias=b,ip=10.0.0.2,driver-opt=k=v").unwrap();
        assert_eq!((long.target.as_str(), long.aliases.len()), ("n", 2));
        assert_eq!(
            long.endpoint().unwrap()["IPAMConfig"]["IPv4Address"],
            "10.0.0.2"
        );
        assert_eq!(
            Attachment::parse("foo=bar").unwrap_err(),
            "invalid field key foo"
        );
        assert_eq!(
            Attachment::parse("alias=x").unwrap_err(),
            "network name/id is not specified"
        );
        assert!(check_mac("92:d0:c6:0a:29:33").is_ok() && check_mac("92:d0").is_err());
    }
}
