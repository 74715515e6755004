//! Published ports: what was asked for, and the host's ports that are claimed for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use bollard_stubs::models::{ContainerConfig, HostConfig, PortBinding};
use bulkhead_network::firewall::PortRule;
use bulkhead_network::ports::{Claim, Protocol};
use bulkhead_network::proxy::{self, Proxy};

use super::model::{Endpoint, PublishedPort};
use crate::error::{ApiError, ApiResult};

/// How often any free port is looked for that both families have free.
const RANDOM_TRIES: usize = 32;

/// A port that somebody wants published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRequest {
    /// The container's port.
    pub container_port: u16,
    /// What it carries.
    pub protocol: Protocol,
    /// The host's address; all of them without.
    pub host_ip: Option<IpAddr>,
    /// The host's ports to choose from; `0..=0`: any.
    pub host_ports: RangeInclusive<u16>,
}

/// Reads `80`, `80/tcp`.
pub fn parse_port(text: &str) -> ApiResult<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol
        .parse()
        .map_err(|error| ApiError::bad_request(format!("invalid port specification: {error}")))?;
    match number.parse() {
        Ok(number) => Ok((number, protocol)),
        Err(_) => Err(ApiError::bad_request(format!(
            "invalid port specification: \"{text}\""
        ))),
    }
}

/// What a configuration wants published.
///
/// # Errors
/// 400 for what is no port or no address.
pub fn requests(config: &ContainerConfig, host_config: &HostConfig) -> ApiResult<Vec<PortRequest>> {
    let mut out = Vec::new();
    let bindings = host_config.port_bindings.iter().flatten();
    let mut bound: Vec<(u16, Protocol)> = Vec::new();
    for (port, bindings) in bindings {
        let (container_port, protocol) = parse_port(port)?;
        let bindings = bindings.as_deref().unwrap_or_default();
        if !bindings.is_empty() {
            bound.push((container_port, protocol));
        }
        for binding in bindings {
            out.push(request(container_port, protocol, binding)?);
        }
    }
    for port in config.exposed_ports.iter().flatten() {
        // Of ranges, which only builders write, every port is exposed by itself.
        let (container_port, protocol) = parse_port(port)?;
        let all = host_config.publish_all_ports == Some(true);
        if all && !bound.contains(&(container_port, protocol)) {
            out.push(request(container_port, protocol, &PortBinding::default())?);
        }
    }
    // Those that must have one port take it before those that take any.
    out.sort_by_key(|request| {
        let any = *request.host_ports.start() == 0;
        (any, request.container_port, request.protocol)
    });
    Ok(out)
}

fn request(
    container_port: u16,
    protocol: Protocol,
    binding: &PortBinding,
) -> ApiResult<PortRequest> {
    let host_ip = match binding.host_ip.as_deref() {
        None | Some("") => None,
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "invalid port specification: bad host IP \"{text}\""
            ))
        })?),
    };
    let text = binding.host_port.as_deref().unwrap_or_default();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| match text {
        "" => Some(0),
        text => text.parse::<u16>().ok(),
    };
    let host_ports = number(first)
        .zip(number(last))
        .filter(|(first, last)| first <= last)
        .map(|(first, last)| first..=last)
        .ok_or_else(|| ApiError::bad_request(format!("invalid port specification: \"{text}\"")))?;
    Ok(PortRequest {
        container_port,
        protocol,
        host_ip,
        host_ports,
    })
}

/// A port that is published: claimed, and carried where the kernel doesn't.
#[derive(Debug)]
pub struct Publication {
    /// What.
    pub port: PublishedPort,
    /// Where it leads.
    pub target: SocketAddr,
    /// Holds the claim until it is dropped.
    _proxy: Proxy,
}

impl Publication {
    /// The rule that has the kernel carry it; none where the families differ.
    pub fn rule(&self) -> Option<PortRule> {
        let host = SocketAddr::new(self.port.host_ip, self.port.host_port);
        (host.is_ipv4() == self.target.is_ipv4()).then_some(PortRule {
            protocol: self.port.protocol,
            host,
            container: self.target,
        })
    }
}

/// Why a port was not published.
#[derive(Debug)]
pub enum PublishError {
    /// Another container has it.
    Allocated(SocketAddr),
    /// Something else has it, or the address is not the host's.
    Bind(Protocol, SocketAddr, std::io::Error),
}

impl PublishError {
    /// Docker's words.
    pub fn sentence(&self) -> String {
        match self {
            Self::Allocated(at) => format!("Bind for {at} failed: port is already allocated"),
            Self::Bind(protocol, at, error) => {
                let family = if at.is_ipv4() { "4" } else { "6" };
                let reason = match error.kind() {
                    std::io::ErrorKind::AddrInUse => "address already in use".to_owned(),
                    std::io::ErrorKind::AddrNotAvailable => {
                        "cannot assign requested address".to_owned()
                    }
                    std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                    _ => error.to_string(),
                };
                format!(
                    "Error starting userland proxy: listen {protocol}{family} {at}: bind: {reason}"
                )
            }
        }
    }
}

/// Claims what one request wants and starts carrying it to `endpoint`.
///
/// # Errors
/// [`PublishError`]; nothing is claimed then.
pub fn publish(
    request: &PortRequest,
    endpoint: &Endpoint,
    default_ip: Option<IpAddr>,
    taken: &dyn Fn(Protocol, SocketAddr) -> bool,
) -> Result<Vec<Publication>, PublishError> {
    let addresses = match request.host_ip.or(default_ip) {
        Some(address) => vec![address],
        None => vec![
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ],
    };
    let any = *request.host_ports.start() == 0;
    let candidates: Vec<u16> = match any {
        true => vec![0; RANDOM_TRIES],
        false => request.host_ports.clone().collect(),
    };
    let mut failure = None;
    for port in candidates {
        match claim_all(request.protocol, &addresses, port, taken) {
            Ok(claims) => {
                return claims
                    .into_iter()
                    .map(|(at, claim)| carry(request, endpoint, at, claim))
                    .collect();
            }
            Err(error) => failure = Some(error),
        }
    }
    // The range is never empty.
    Err(failure.unwrap_or(PublishError::Allocated(SocketAddr::new(addresses[0], 0))))
}

fn claim_all(
    protocol: Protocol,
    addresses: &[IpAddr],
    port: u16,
    taken: &dyn Fn(Protocol, SocketAddr) -> bool,
) -> Result<Vec<(SocketAddr, Claim)>, PublishError> {
    let mut claims = Vec::new();
    let mut port = port;
    for address in addresses {
        let at = SocketAddr::new(*address, port);
        if port != 0 && taken(protocol, at) {
            return Err(PublishError::Allocated(at));
        }
        let bind = |error| PublishError::Bind(protocol, at, error);
        let claim = match Claim::take(protocol, at) {
            Ok(claim) => claim,
            // A host without IPv6 publishes at its other addresses.
            Err(error) if at.is_ipv6() && addresses.len() > 1 && no_family(&error) => continue,
            Err(error) => return Err(bind(error)),
        };
        let at = claim.address().map_err(bind)?;
        // Every address gets the port that the first one got.
        port = at.port();
        claims.push((at, claim));
    }
    Ok(claims)
}

fn no_family(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(97 /* EAFNOSUPPORT */ | 99 /* EADDRNOTAVAIL */)
    )
}

fn carry(
    request: &PortRequest,
    endpoint: &Endpoint,
    at: SocketAddr,
    claim: Claim,
) -> Result<Publication, PublishError> {
    let target = target(endpoint, at.is_ipv6(), request.container_port);
    let proxy = proxy::start(claim, target)
        .map_err(|error| PublishError::Bind(request.protocol, at, error))?;
    Ok(Publication {
        port: PublishedPort {
            container_port: request.container_port,
            protocol: request.protocol,
            host_ip: at.ip(),
            host_port: at.port(),
        },
        target,
        _proxy: proxy,
    })
}

/// The container's address of that family, or the one it has.
fn target(endpoint: &Endpoint, ipv6: bool, port: u16) -> SocketAddr {
    let v4 = endpoint.ipv4.map(|net| IpAddr::V4(net.addr()));
    let v6 = endpoint.ipv6.map(|net| IpAddr::V6(net.addr()));
    let address = match ipv6 {
        true => v6.or(v4),
        false => v4.or(v6),
    };
    SocketAddr::new(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port)
}

/// Whether two claims are for the same port: one address covers the other.
pub fn collides(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(port: &str, host_ip: &str, host_port: &str) -> ApiResult<Vec<PortRequest>> {
        let host_config = HostConfig {
            port_bindings: Some(
                [(
                    port.to_owned(),
                    Some(vec![PortBinding {
                        host_ip: Some(host_ip.to_owned()),
                        host_port: Some(host_port.to_owned()),
                    }]),
                )]
                .into(),
            ),
            ..HostConfig::default()
        };
        requests(&ContainerConfig::default(), &host_config)
    }

    #[test]
    fn ports_are_read() {
        let one = &asked("80/tcp", "", "8080").unwrap()[0];
        assert_eq!((one.container_port, one.protocol), (80, Protocol::Tcp));
        assert_eq!((one.host_ip, one.host_ports.clone()), (None, 8080..=8080));
        assert_eq!(asked("53/udp", "::1", "").unwrap()[0].host_ports, 0..=0);
        assert_eq!(asked("1", "", "5-9").unwrap()[0].host_ports, 5..=9);
        for (port, ip, host) in [
            ("x", "", "1"),
            ("80/icmp", "", "1"),
            ("99999", "", "1"),
            ("80", "300.1.1.1", "1"),
            ("80", "", "70000"),
            ("80", "", "9-5"),
        ] {
            let error = asked(port, ip, host).unwrap_err();
            assert_eq!(error.status.as_u16(), 400, "{port} {ip} {host}");
        }
    }

    #[test]
    fn exposed_ports_are_published_on_demand() {
        let config = ContainerConfig {
            exposed_ports: Some(vec!["80/tcp".to_owned(), "53/udp".to_owned()]),
            ..ContainerConfig::default()
        };
        let mut host_config = HostConfig::default();
        assert!(requests(&config, &host_config).unwrap().is_empty());
        host_config.publish_all_ports = Some(true);
        assert_eq!(requests(&config, &host_config).unwrap().len(), 2);
    }

    #[test]
    fn an_unspecified_address_covers_all() {
        let at = |text: &str| text.parse().unwrap();
        assert!(collides(at("0.0.0.0:80"), at("127.0.0.1:80")));
        assert!(!collides(at("127.0.0.2:80"), at("127.0.0.1:80")));
        assert!(!collides(at("0.0.0.0:80"), at("[::]:80")));
    }
}
