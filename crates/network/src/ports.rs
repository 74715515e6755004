//! Ports of the host: claimed by sockets, so that nobody else gets them and a port that
//! somebody has is noticed.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
    /// Associations.
    Sctp,
}

impl Protocol {
    /// Docker's, IANA's and nftables' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(UnknownProtocol(text.to_owned())),
        }
    }
}

/// A protocol that has no ports here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid proto: {0}")]
pub struct UnknownProtocol(pub String);

/// A port of the host that is held.
#[derive(Debug)]
pub enum Claim {
    /// Listens.
    Tcp(TcpListener),
    /// Receives.
    Udp(UdpSocket),
    /// Only noted: nothing of the host speaks it.
    Sctp(SocketAddr),
}

impl Claim {
    /// Takes a port; 0 takes any that is free.
    ///
    /// # Errors
    /// `AddrInUse` when somebody has it, `AddrNotAvailable` when the host hasn't the address.
    pub fn take(protocol: Protocol, at: SocketAddr) -> io::Result<Self> {
        match protocol {
            Protocol::Tcp => {
                let socket = bound(SocketType::STREAM, at)?;
                rustix::net::listen(&socket, 1024)?;
                Ok(Self::Tcp(socket.into()))
            }
            Protocol::Udp => Ok(Self::Udp(bound(SocketType::DGRAM, at)?.into())),
            Protocol::Sctp => Ok(Self::Sctp(at)),
        }
    }

    /// The address and port.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
            Self::Sctp(address) => Ok(*address),
        }
    }
}

fn bound(kind: SocketType, at: SocketAddr) -> io::Result<OwnedFd> {
    let family = match at.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if at.is_ipv6() {
        // Both families are claimed one by one.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections of a container that has gone don't keep the port from the next.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &at)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_held_once() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let first = Claim::take(protocol, "127.0.0.1:0".parse().unwrap()).unwrap();
            let at = first.address().unwrap();
            let error = Claim::take(protocol, at).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{protocol}");
            drop(first);
            Claim::take(protocol, at).unwrap();
        }
    }
}
