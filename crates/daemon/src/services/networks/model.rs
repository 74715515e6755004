//! Networks as they are stored, and what a container has of them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use bulkhead_network::ports::Protocol;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What makes a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge of the host.
    Bridge,
    /// The host's own namespace.
    Host,
    /// Nothing but loopback.
    Null,
}

impl Driver {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Null => "null",
        }
    }
}

/// One network of addresses of a [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its addresses.
    pub subnet: IpNet,
    /// Where those come from that nobody chose.
    pub range: Option<IpNet>,
    /// The host's address in it; none when it is internal and nobody asked for one.
    pub gateway: Option<IpAddr>,
    /// Addresses that are given to nobody, with their names.
    #[serde(default)]
    pub reserved: BTreeMap<String, IpAddr>,
    /// Whether a user chose it.
    pub configured: bool,
}

/// A network, as the store keeps it. Fields are only added, with defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When.
    pub created: Timestamp,
    /// What makes it.
    pub driver: Driver,
    /// Whether it has IPv4.
    #[serde(default = "has_ipv4")]
    pub ipv4: bool,
    /// Whether it has IPv6.
    pub ipv6: bool,
    /// Whether nothing else can be reached from it.
    pub internal: bool,
    /// Swarm's word; kept for who asks.
    pub attachable: bool,
    /// The user's.
    pub labels: BTreeMap<String, String>,
    /// The driver's.
    pub options: BTreeMap<String, String>,
    /// The address management's.
    #[serde(default)]
    pub ipam_options: Option<BTreeMap<String, String>>,
    /// Its addresses.
    pub pools: Vec<Pool>,
    /// Those that were asked for and are of a family that it does not have: as Docker, it says
    /// so to who asks, and nothing else.
    #[serde(default)]
    pub idle_pools: Vec<Pool>,
    /// Its interface on the host; empty when it has none.
    pub bridge: String,
    /// Whether it is only there for others to take their configuration from. Nobody can be on
    /// it, the host has nothing of it, and its addresses are not taken.
    #[serde(default)]
    pub config_only: bool,
    /// The name of the network that its configuration is from; empty when it has its own.
    #[serde(default)]
    pub config_from: String,
}

/// Every network of a record from before there were others.
fn has_ipv4() -> bool {
    true
}

/// Names of the networks there are from the start.
pub const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

impl Network {
    /// Whether it was there from the start.
    pub fn is_predefined(&self) -> bool {
        PREDEFINED.contains(&self.name.as_str())
    }

    /// Whether names are resolved in it.
    pub fn has_names(&self) -> bool {
        self.driver == Driver::Bridge && !self.is_predefined()
    }

    fn flag(&self, option: &str, default: bool) -> bool {
        match self.options.get(option).map(String::as_str) {
            Some(value) => !matches!(value, "false" | "0" | "False" | "FALSE" | "f" | "F"),
            None => default,
        }
    }

    /// Whether its containers go out under the host's address.
    pub fn masquerades(&self) -> bool {
        self.flag("com.docker.network.bridge.enable_ip_masquerade", true)
    }

    /// Whether its containers reach each other.
    pub fn is_isolated(&self) -> bool {
        !self.flag("com.docker.network.bridge.enable_icc", true)
    }

    /// Largest packet, when somebody said.
    pub fn mtu(&self) -> Option<u32> {
        self.options
            .get("com.docker.network.driver.mtu")?
            .parse()
            .ok()
    }

    /// Where ports are published when nobody says.
    pub fn host_binding(&self) -> Option<IpAddr> {
        self.options
            .get("com.docker.network.bridge.host_binding_ipv4")?
            .parse()
            .ok()
    }
}

/// A network that a container is to be on, as its user said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network: its name, or as the user wrote it until it is found.
    pub network: String,
    /// Its ID, once it was found.
    #[serde(default)]
    pub network_id: String,
    /// The address it must have.
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    /// The address it must have.
    #[serde(default)]
    pub ipv6: Option<Ipv6Addr>,
    /// More addresses; shown only.
    #[serde(default)]
    pub link_local: Vec<String>,
    /// The hardware address it must have.
    #[serde(default)]
    pub mac: Option<String>,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// `container:alias`, names that only this container sees.
    #[serde(default)]
    pub links: Vec<String>,
    /// The driver's options.
    #[serde(default)]
    pub driver_opts: Option<HashMap<String, String>>,
    /// Which network is the way out: the highest.
    #[serde(default)]
    pub gateway_priority: i64,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The network.
    pub network_id: String,
    /// Its name in the container.
    pub interface: String,
    /// The host's end.
    pub host_interface: String,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Address, with the length of its network's prefix.
    pub ipv4: Option<Ipv4Net>,
    /// The way out.
    pub gateway: Option<Ipv4Addr>,
    /// Address, with the length of its network's prefix.
    pub ipv6: Option<Ipv6Net>,
    /// The way out.
    pub gateway6: Option<Ipv6Addr>,
    /// What it is called there.
    pub names: Vec<String>,
}

/// A hardware address as one writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads a hardware address.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut out = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut out {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    // A group's address is nobody's own.
    (parts.next().is_none() && out[0] & 1 == 0).then_some(out)
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The container's port.
    pub container_port: u16,
    /// What it carries.
    pub protocol: Protocol,
    /// The host's address.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
}

/// A container's namespace while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its file; empty when it is somebody else's.
    pub key: PathBuf,
    /// Its places on networks.
    pub endpoints: Vec<Endpoint>,
    /// Its published ports.
    pub ports: Vec<PublishedPort>,
    /// The network that is the way out.
    pub gateway_network: Option<String>,
    /// The one that is the way out for IPv6.
    #[serde(default)]
    pub gateway6_network: Option<String>,
    /// Whether names of other containers are resolved in it.
    #[serde(default)]
    pub resolver: bool,
}

/// All of a container's networking.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSettings {
    /// What its user wants; the network of `NetworkMode` first.
    pub attachments: Vec<Attachment>,
    /// What it has, while it runs.
    pub sandbox: Option<Sandbox>,
}

impl NetworkSettings {
    /// The place on a network, while it runs.
    pub fn endpoint(&self, network_id: &str) -> Option<&Endpoint> {
        self.sandbox
            .as_ref()?
            .endpoints
            .iter()
            .find(|endpoint| endpoint.network_id == network_id)
    }

    /// The place on the network that is the way out.
    pub fn gateway_endpoint(&self) -> Option<&Endpoint> {
        self.endpoint(self.sandbox.as_ref()?.gateway_network.as_deref()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        let mac = parse_mac("02:42:ac:11:00:02").unwrap();
        assert_eq!(mac_text(mac), "02:42:ac:11:00:02");
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "03:42:ac:11:00:02",
            "zz:42:ac:11:00:02",
        ] {
            assert!(parse_mac(bad).is_none(), "{bad}");
        }
    }
}
