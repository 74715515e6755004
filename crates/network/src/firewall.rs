//! The daemon's nftables table: all of it is one text, loaded in one transaction, so that at
//! no time half of it holds. Tables of others are neither read nor written.
//!
//! What the rules do: containers reach the outside under the host's address; what comes from
//! outside reaches published ports only; bridges don't reach each other but through published
//! ports; nobody reaches the host's loopback through a bridge, though published ports of the
//! host's loopback work (`route_localnet`).

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ipnet::IpNet;

use crate::ports::Protocol;

/// Why the rules could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The program `nft` is missing or cannot be run.
    #[error("cannot run nft (package nftables)")]
    Run(#[source] io::Error),
    /// It refused.
    #[error("nft refused the rules of {table}: {reason}")]
    Refused {
        /// The table.
        table: String,
        /// What it wrote.
        reason: String,
    },
}

/// What the rules say about a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeRules {
    /// Its interface.
    pub bridge: String,
    /// Its networks.
    pub subnets: Vec<IpNet>,
    /// Whether nothing but itself can be reached.
    pub internal: bool,
    /// Whether its containers go out under the host's address.
    pub masquerade: bool,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRule {
    /// What is carried.
    pub protocol: Protocol,
    /// Where it is published; unspecified: at every address of its family.
    pub host: SocketAddr,
    /// The container's end, of the same family.
    pub container: SocketAddr,
}

/// A table and what is in it.
#[derive(Debug, Clone)]
pub struct Firewall {
    table: String,
}

impl Firewall {
    /// A table that belongs to one daemon.
    pub fn new(table: String) -> Self {
        Self { table }
    }

    /// Puts these rules in place of those before. `local_routes`: whether packets for
    /// 127.0.0.0/8 can be sent to containers.
    ///
    /// # Errors
    /// [`FirewallError`]; the rules from before stay then.
    pub fn apply(
        &self,
        bridges: &[BridgeRules],
        ports: &[PortRule],
        local_routes: bool,
    ) -> Result<(), FirewallError> {
        load(&self.table, &self.text(bridges, ports, local_routes), None)
    }

    /// Takes the table away; succeeds when there is none.
    ///
    /// # Errors
    /// [`FirewallError`].
    pub fn remove(&self) -> Result<(), FirewallError> {
        let table = &self.table;
        let text = format!("table inet {table} {{}}\ndelete table inet {table}\n");
        load(table, &text, None)
    }

    fn text(&self, bridges: &[BridgeRules], ports: &[PortRule], local_routes: bool) -> String {
        let table = &self.table;
        let mut out = format!("table inet {table} {{}}\ndelete table inet {table}\n");
        let _ = writeln!(out, "table inet {table} {{");
        if !bridges.is_empty() {
            let names: Vec<String> = bridges
                .iter()
                .map(|bridge| format!("\"{}\"", bridge.bridge))
                .collect();
            let _ = writeln!(
                out,
                "set bridges {{ type ifname; elements = {{ {} }} }}",
                names.join(", ")
            );
            out.push_str(GUARD);
            forward(&mut out, bridges);
            postrouting(&mut out, bridges);
            published(&mut out, ports, local_routes);
        }
        out.push_str("}\n");
        out
    }
}

/// A packet for the host's loopback that comes in by a bridge is an attempt to get around it.
const GUARD: &str = "chain guard {
type filter hook prerouting priority -300; policy accept;
iifname @bridges ip daddr 127.0.0.0/8 drop
}
";

fn forward(out: &mut String, bridges: &[BridgeRules]) {
    out.push_str("chain forward {\ntype filter hook forward priority 0; policy accept;\n");
    for rules in bridges {
        let name = &rules.bridge;
        let _ = writeln!(out, "iifname \"{name}\" oifname \"{name}\" accept");
    }
    for rules in bridges.iter().filter(|rules| rules.internal) {
        let name = &rules.bridge;
        let _ = writeln!(out, "iifname \"{name}\" drop\noifname \"{name}\" drop");
    }
    out.push_str(
        "oifname @bridges ct state established,related accept
oifname @bridges ct status dnat accept
oifname @bridges drop
iifname @bridges accept
}
",
    );
}

fn postrouting(out: &mut String, bridges: &[BridgeRules]) {
    out.push_str("chain postrouting {\ntype nat hook postrouting priority 100; policy accept;\n");
    for rules in bridges.iter().filter(|rules| !rules.internal) {
        let name = &rules.bridge;
        for subnet in &rules.subnets {
            let family = match subnet {
                IpNet::V4(_) => "ip",
                IpNet::V6(_) => "ip6",
            };
            if rules.masquerade {
                let _ = writeln!(
                    out,
                    "{family} saddr {subnet} oifname != \"{name}\" masquerade"
                );
            }
            // A container that comes back to its own network through a published port would
            // be answered directly, by an address that it didn't ask.
            let _ = writeln!(
                out,
                "{family} saddr {subnet} oifname \"{name}\" ct status dnat masquerade"
            );
        }
        // From the host's loopback nobody can answer.
        let _ = writeln!(
            out,
            "ip saddr 127.0.0.0/8 oifname \"{name}\" ct status dnat masquerade"
        );
    }
    out.push_str("}\n");
}

fn published(out: &mut String, ports: &[PortRule], local_routes: bool) {
    if ports.is_empty() {
        return;
    }
    out.push_str("chain published {\n");
    for rule in ports {
        let (network, nat) = match rule.host.ip() {
            IpAddr::V4(_) => ("ip", "dnat ip to"),
            IpAddr::V6(_) => ("ip6", "dnat ip6 to"),
        };
        let at = match rule.host.ip() {
            any if any.is_unspecified() => match any {
                IpAddr::V4(_) if !local_routes => "ip daddr != 127.0.0.0/8".to_owned(),
                IpAddr::V4(_) => "meta nfproto ipv4".to_owned(),
                // What is for ::1 cannot be routed away from it.
                IpAddr::V6(_) => "ip6 daddr != ::1".to_owned(),
            },
            IpAddr::V6(v6) if v6.is_loopback() => continue,
            one => format!("{network} daddr {one}"),
        };
        // A container that asks for its own port would have its packets come back out of the
        // bridge's port by which they came: the proxy answers that.
        let _ = writeln!(
            out,
            "{at} {network} saddr != {} {} dport {} {nat} {}",
            rule.container.ip(),
            rule.protocol.as_str(),
            rule.host.port(),
            rule.container
        );
    }
    out.push_str("}\n");
    for (chain, hook) in [("prerouting", "prerouting"), ("output", "output")] {
        let _ = writeln!(
            out,
            "chain {chain} {{\ntype nat hook {hook} priority -100; policy accept;\n\
             fib daddr type local jump published\n}}"
        );
    }
}

/// Sends a port of an address inside a namespace to others: `from` to `udp` and `tcp`. For the
/// resolver, which must not hold the port that a name server in the container may want.
///
/// # Errors
/// [`FirewallError`].
pub fn redirect_in_namespace(
    netns: &Path,
    from: SocketAddr,
    udp: SocketAddr,
    tcp: SocketAddr,
) -> Result<(), FirewallError> {
    let table = "bulkhead";
    let text = format!(
        "table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{
chain resolver {{
type nat hook output priority -100; policy accept;
ip daddr {ip} udp dport {port} dnat ip to {udp}
ip daddr {ip} tcp dport {port} dnat ip to {tcp}
}}
}}
",
        ip = from.ip(),
        port = from.port(),
    );
    load(table, &text, Some(netns))
}

/// Where the program is: daemons are started with the strangest `PATH`.
fn program() -> PathBuf {
    ["/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("nft"))
}

fn load(table: &str, text: &str, netns: Option<&Path>) -> Result<(), FirewallError> {
    tracing::trace!(table, text, "nft");
    let text = text.to_owned();
    // A child belongs to the namespace of the thread that makes it.
    let run = move || -> io::Result<std::process::Output> {
        let mut child = Command::new(program())
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        // It reads all of the text before it writes anything; the drop closes the pipe.
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = match netns {
        None => run(),
        Some(netns) => crate::namespace::within(netns, run),
    }
    .map_err(FirewallError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let mut reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    reason.truncate(reason.floor_char_boundary(1000));
    Err(FirewallError::Refused {
        table: table.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_replaced_as_a_whole() {
        let firewall = Firewall::new("bulkhead_test".to_owned());
        let text = firewall.text(
            &[BridgeRules {
                bridge: "br0".to_owned(),
                subnets: vec!["10.9.0.0/16".parse().unwrap()],
                internal: false,
                masquerade: true,
            }],
            &[PortRule {
                protocol: Protocol::Udp,
                host: "0.0.0.0:53".parse().unwrap(),
                container: "10.9.0.2:5353".parse().unwrap(),
            }],
            true,
        );
        assert!(text.starts_with("table inet bulkhead_test {}\ndelete table inet bulkhead_test\n"));
        assert!(text.contains("ip saddr 10.9.0.0/16 oifname != \"br0\" masquerade"));
        assert!(text.contains(
            "meta nfproto ipv4 ip saddr != 10.9.0.2 udp dport 53 dnat ip to 10.9.0.2:5353"
        ));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn an_internal_network_has_no_way_out() {
        let text = Firewall::new("t".to_owned()).text(
            &[BridgeRules {
                bridge: "br1".to_owned(),
                subnets: vec!["10.9.0.0/16".parse().unwrap()],
                internal: true,
                masquerade: true,
            }],
            &[],
            true,
        );
        assert!(!text.contains("masquerade"));
        assert!(text.contains("iifname \"br1\" drop\noifname \"br1\" drop"));
    }
}
