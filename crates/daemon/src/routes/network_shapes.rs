//! Docker's JSON of networks, and of what a container has of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::services::containers::Record;
use crate::services::networks::model::{Pool, PublishedPort, mac_text};
use crate::services::networks::{Attachment, Endpoint, NetworkView, publish};

/// A network, with who is on it when one asks for it alone.
pub fn network(view: &NetworkView, members: bool) -> Value {
    let record = &view.record;
    let mut containers = Map::new();
    for (id, name, endpoint) in view.members.iter().filter(|_| members) {
        containers.insert(
            id.clone(),
            json!({
                "Name": name,
                "EndpointID": endpoint.id,
                "MacAddress": mac_text(endpoint.mac),
                "IPv4Address": endpoint.ipv4.map_or(String::new(), |net| net.to_string()),
                "IPv6Address": endpoint.ipv6.map_or(String::new(), |net| net.to_string()),
            }),
        );
    }
    json!({
        "Name": record.name,
        "Id": record.id,
        "Created": format!("{:.9}", record.created),
        "Scope": "local",
        "Driver": record.driver.as_str(),
        "EnableIPv4": record.ipv4,
        "EnableIPv6": record.ipv6,
        "IPAM": {
            "Driver": "default",
            "Options": record.ipam_options,
            "Config": record.pools.iter().chain(&record.idle_pools).map(pool).collect::<Vec<_>>(),
        },
        "Internal": record.internal,
        "Attachable": record.attachable,
        "Ingress": false,
        "ConfigFrom": { "Network": record.config_from },
        "ConfigOnly": record.config_only,
        "Containers": containers,
        "Options": record.options,
        "Labels": record.labels,
    })
}

fn pool(pool: &Pool) -> Value {
    let mut out = json!({ "Subnet": pool.subnet.to_string() });
    if let Some(range) = pool.range {
        out["IPRange"] = json!(range.to_string());
    }
    if let Some(gateway) = pool.gateway {
        out["Gateway"] = json!(gateway.to_string());
    }
    if !pool.reserved.is_empty() {
        out["AuxiliaryAddresses"] = json!(pool.reserved);
    }
    out
}

/// `NetworkSettings.Networks`: what is wanted, and while it runs what is so.
pub fn networks(record: &Record) -> Value {
    let settings = &record.networks;
    let running = settings.sandbox.is_some();
    let mut out = Map::new();
    for attachment in &settings.attachments {
        let endpoint = settings.endpoint(&attachment.network_id);
        out.insert(
            attachment.network.clone(),
            place(attachment, endpoint, running),
        );
    }
    Value::Object(out)
}

fn list(values: &[String]) -> Value {
    match values.is_empty() {
        true => Value::Null,
        false => json!(values),
    }
}

fn place(attachment: &Attachment, endpoint: Option<&Endpoint>, running: bool) -> Value {
    let mut ipam = Map::new();
    if let Some(address) = attachment.ipv4 {
        ipam.insert("IPv4Address".to_owned(), json!(address));
    }
    if let Some(address) = attachment.ipv6 {
        ipam.insert("IPv6Address".to_owned(), json!(address));
    }
    if !attachment.link_local.is_empty() {
        ipam.insert("LinkLocalIPs".to_owned(), json!(attachment.link_local));
    }
    let mac = endpoint.map(|endpoint| mac_text(endpoint.mac));
    let mut out = json!({
        "IPAMConfig": if ipam.is_empty() { Value::Null } else { Value::Object(ipam) },
        "Links": list(&attachment.links),
        "Aliases": list(&attachment.aliases),
        "MacAddress": mac.or_else(|| attachment.mac.clone()).unwrap_or_default(),
        "DriverOpts": attachment.driver_opts,
        "GwPriority": attachment.gateway_priority,
        "NetworkID": attachment.network_id,
        "EndpointID": endpoint.map_or("", |endpoint| endpoint.id.as_str()),
    });
    if let Value::Object(out) = &mut out {
        out.extend(addresses(endpoint));
        let names = endpoint.filter(|_| running).map(|endpoint| &endpoint.names);
        out.insert("DNSNames".to_owned(), json!(names));
    }
    out
}

/// The members about addresses that a place on a network has, and, of the default bridge,
/// the container itself.
fn addresses(endpoint: Option<&Endpoint>) -> Map<String, Value> {
    let text = |address: Option<IpAddr>| address.map_or(String::new(), |one| one.to_string());
    let (v4, v6) = endpoint.map_or((None, None), |endpoint| (endpoint.ipv4, endpoint.ipv6));
    let gateway = endpoint.and_then(|endpoint| endpoint.gateway);
    let gateway6 = endpoint.and_then(|endpoint| endpoint.gateway6);
    [
        ("Gateway", json!(text(gateway.map(IpAddr::V4)))),
        (
            "IPAddress",
            json!(text(v4.map(|net| IpAddr::V4(net.addr())))),
        ),
        ("IPPrefixLen", json!(v4.map_or(0, |net| net.prefix_len()))),
        ("IPv6Gateway", json!(text(gateway6.map(IpAddr::V6)))),
        (
            "GlobalIPv6Address",
            json!(text(v6.map(|net| IpAddr::V6(net.addr())))),
        ),
        (
            "GlobalIPv6PrefixLen",
            json!(v6.map_or(0, |net| net.prefix_len())),
        ),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// `NetworkSettings` of a container.
pub fn settings(record: &Record) -> Value {
    let sandbox = record.networks.sandbox.as_ref();
    let bridge = record
        .networks
        .attachments
        .iter()
        .find(|attachment| attachment.network == "bridge");
    // Of clients from before there were several networks.
    let default = bridge.and_then(|bridge| record.networks.endpoint(&bridge.network_id));
    let mut out = json!({
        "Bridge": "",
        "SandboxID": sandbox.map_or("", |sandbox| sandbox.id.as_str()),
        "SandboxKey": sandbox.map_or(std::path::Path::new(""), |sandbox| sandbox.key.as_path()),
        "Ports": ports(record),
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": default.map_or("", |endpoint| endpoint.id.as_str()),
        "MacAddress": default.map_or(String::new(), |endpoint| mac_text(endpoint.mac)),
        "Networks": networks(record),
    });
    if let Value::Object(out) = &mut out {
        out.extend(addresses(default));
    }
    out
}

/// Exposed and published ports while it runs, by the container's port.
fn ports(record: &Record) -> Value {
    let Some(sandbox) = &record.networks.sandbox else {
        return json!({});
    };
    let mut out: BTreeMap<String, Vec<&PublishedPort>> = BTreeMap::new();
    for port in exposed(record) {
        out.insert(format!("{}/{}", port.0, port.1), Vec::new());
    }
    for port in &sandbox.ports {
        let key = format!("{}/{}", port.container_port, port.protocol);
        out.entry(key).or_default().push(port);
    }
    let binding = |port: &PublishedPort| {
        json!({
            "HostIp": port.host_ip.to_string(),
            "HostPort": port.host_port.to_string(),
        })
    };
    out.into_iter()
        .map(|(port, published)| {
            let value = match published.is_empty() {
                true => Value::Null,
                false => published.into_iter().map(binding).collect(),
            };
            (port, value)
        })
        .collect::<Map<_, _>>()
        .into()
}

/// Exposed ports; in the host's network, and in none, Docker shows none.
fn exposed(record: &Record) -> Vec<(u16, bulkhead_network::ports::Protocol)> {
    if matches!(
        record.host_config.network_mode.as_deref(),
        Some("host" | "none")
    ) {
        return Vec::new();
    }
    let mut ports: Vec<_> = record
        .config
        .exposed_ports
        .iter()
        .flatten()
        .filter_map(|port| publish::parse_port(port).ok())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// `Ports` of a container in the list.
pub fn port_list(record: &Record) -> Vec<Value> {
    let Some(sandbox) = &record.networks.sandbox else {
        return Vec::new();
    };
    let mut out: Vec<Value> = sandbox
        .ports
        .iter()
        .map(|port| {
            json!({
                "IP": port.host_ip.to_string(),
                "PrivatePort": port.container_port,
                "PublicPort": port.host_port,
                "Type": port.protocol.as_str(),
            })
        })
        .collect();
    for (number, protocol) in exposed(record) {
        let published = sandbox
            .ports
            .iter()
            .any(|port| port.container_port == number && port.protocol == protocol);
        if !published {
            out.push(json!({ "PrivatePort": number, "Type": protocol.as_str() }));
        }
    }
    out
}
