//! The kernel's memory of flows. A flow of datagrams keeps the translation that its first one
//! got for as long as datagrams come: whoever goes on asking a published port would be sent to
//! a container that has gone, though another has the port now.
//!
//! The messages are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink::Netlink;

/// `NFNL_SUBSYS_CTNETLINK << 8`.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = SUBSYSTEM | 1;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = SUBSYSTEM | 2;
/// `CTA_TUPLE_ORIG`: the flow as its first datagram had it.
const ORIGINAL: u16 = 1;
/// `CTA_TUPLE_REPLY`: as its answers come.
const REPLY: u16 = 2;
/// `CTA_ID`.
const ID: u16 = 12;
/// `CTA_ZONE`.
const ZONE: u16 = 18;
/// Both `CTA_TUPLE_IP` in a tuple and `CTA_PROTO_NUM` in its `CTA_TUPLE_PROTO`.
const FIRST: u16 = 1;
/// `CTA_TUPLE_PROTO`.
const TRANSPORT: u16 = 2;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;
/// `struct nfgenmsg`: the family first.
const GENERIC: usize = 4;

/// A port of the host to which datagrams are carried in another way than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// Where it is published; unspecified: at every address of its family.
    pub host: SocketAddr,
    /// Where it leads now.
    pub target: Option<SocketAddr>,
}

/// Makes the kernel forget the flows of datagrams that go by these ports to somewhere else
/// than they lead now, and says how many there were.
///
/// # Errors
/// That the kernel has no such interface, or refuses.
pub fn forget(changed: &[Changed]) -> io::Result<usize> {
    if changed.is_empty() {
        return Ok(0);
    }
    let mut netlink = Netlink::for_protocol(NETLINK_NETFILTER)?;
    let mut stale = Vec::new();
    let all = Message {
        kind: GET,
        body: vec![0; GENERIC],
    };
    netlink.dump_each(all, |entry| stale.extend(deletion(&entry.body, changed)))?;
    let count = stale.len();
    for body in stale {
        match netlink.change(Message { kind: DELETE, body }, 0) {
            // It ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(count)
}

/// A message of this subsystem: its type, and what follows the header.
#[derive(Debug)]
struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self {
            kind: header.message_type,
            body: payload.to_owned(),
        })
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

/// The attributes of a list: type, value, and the whole as it stood there.
fn attributes(list: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    NlasIterator::new(list)
        .map_while(Result::ok)
        .filter_map(|attribute| {
            let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
            let rest = attribute.into_inner();
            let padded = length.next_multiple_of(4).min(rest.len());
            Some((kind, rest.get(4..length)?, rest.get(..padded)?))
        })
}

fn attribute(list: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut found = attributes(list).filter(|(kind, ..)| *kind == wanted);
    found.next().map(|(_, value, _)| value)
}

/// One direction of a flow.
struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
}

impl Tuple {
    /// `None` if it is not of datagrams.
    fn parse(value: &[u8]) -> Option<Self> {
        let (addresses, transport) = (attribute(value, FIRST)?, attribute(value, TRANSPORT)?);
        if attribute(transport, FIRST)? != [UDP] {
            return None;
        }
        let port = |kind| {
            Some(u16::from_be_bytes(
                attribute(transport, kind)?.try_into().ok()?,
            ))
        };
        let address = |v4, v6| -> Option<IpAddr> {
            match attribute(addresses, v4) {
                Some(octets) => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
                None => {
                    let octets = attribute(addresses, v6)?;
                    Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?))
                }
            }
        };
        // `CTA_IP_V4_SRC`, `_V4_DST`, `_V6_SRC`, `_V6_DST`; `CTA_PROTO_SRC_PORT`, `_DST_PORT`.
        Some(Self {
            source: SocketAddr::new(address(1, 3)?, port(2)?),
            destination: SocketAddr::new(address(2, 4)?, port(3)?),
        })
    }
}

/// What deletes this entry, if it leads to where a changed port does not lead any more.
fn deletion(entry: &[u8], changed: &[Changed]) -> Option<Vec<u8>> {
    let (generic, list) = entry.split_at_checked(GENERIC)?;
    let original = Tuple::parse(attribute(list, ORIGINAL)?)?;
    let reply = Tuple::parse(attribute(list, REPLY)?)?;
    let asked = original.destination;
    let translated = reply.source != asked;
    let stale = changed.iter().any(|port| {
        let host = port.host;
        let covers = host.port() == asked.port()
            && host.is_ipv4() == asked.is_ipv4()
            && (host.ip().is_unspecified() || host.ip() == asked.ip());
        covers && port.target != Some(reply.source)
    });
    if !translated || !stale {
        return None;
    }
    let mut body = generic.to_owned();
    for (kind, _, whole) in attributes(list) {
        if matches!(kind, ORIGINAL | ID | ZONE) {
            body.extend_from_slice(whole);
        }
    }
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, value) in attributes {
            out.extend_from_slice(&u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            out.extend_from_slice(&kind.to_ne_bytes());
            out.extend_from_slice(value);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    fn tuple(protocol: u8, source: &str, destination: &str) -> Vec<u8> {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let octets = |address: SocketAddr| match address.ip() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let first = if source.is_ipv4() { 1 } else { 3 };
        let addresses = [(first, octets(source)), (first + 1, octets(destination))];
        let transport = [
            (1, vec![protocol]),
            (2, source.port().to_be_bytes().to_vec()),
            (3, destination.port().to_be_bytes().to_vec()),
        ];
        // Nested, as the kernel says it.
        list(&[(0x8001, list(&addresses)), (0x8002, list(&transport))])
    }

    fn entry(protocol: u8, original: (&str, &str), reply: (&str, &str)) -> Vec<u8> {
        let mut entry = vec![2, 0, 0, 0];
        entry.extend(list(&[
            (0x8001, tuple(protocol, original.0, original.1)),
            (0x8002, tuple(protocol, reply.0, reply.1)),
            (3, vec![0, 0, 1, 0x8e]),
            (ID, vec![1, 2, 3, 4]),
        ]));
        entry
    }

    fn changed(host: &str, target: Option<&str>) -> [Changed; 1] {
        [Changed {
            host: host.parse().unwrap(),
            target: target.map(|target| target.parse().unwrap()),
        }]
    }

    #[test]
    fn flows_to_where_a_port_led_are_deleted() {
        let asked = ("192.0.2.1:4000", "198.51.100.1:53");
        let carried = entry(17, asked, ("172.17.0.2:5300", "192.0.2.1:4000"));
        for (host, target, stale) in [
            ("0.0.0.0:53", None, true),
            ("198.51.100.1:53", None, true),
            ("0.0.0.0:53", Some("172.17.0.3:5300"), true),
            ("0.0.0.0:53", Some("172.17.0.2:5300"), false),
            ("198.51.100.2:53", None, false),
            ("0.0.0.0:54", None, false),
            ("[::]:53", None, false),
        ] {
            let body = deletion(&carried, &changed(host, target));
            assert_eq!(body.is_some(), stale, "{host} {target:?}");
        }
        let body = deletion(&carried, &changed("0.0.0.0:53", None)).unwrap();
        let kinds: Vec<u16> = attributes(&body[GENERIC..])
            .map(|(kind, ..)| kind)
            .collect();
        assert_eq!(kinds, [ORIGINAL, ID]);
    }

    #[test]
    fn other_flows_are_left_alone() {
        let port = changed("0.0.0.0:53", None);
        let asked = ("192.0.2.1:4000", "198.51.100.1:53");
        // Nobody carried it; a connection; nonsense.
        let direct = entry(17, asked, ("198.51.100.1:53", "192.0.2.1:4000"));
        let connection = entry(6, asked, ("172.17.0.2:5300", "192.0.2.1:4000"));
        let whole = entry(17, asked, ("172.17.0.2:5300", "192.0.2.1:4000"));
        assert_eq!(deletion(&direct, &port), None);
        assert_eq!(deletion(&connection, &port), None);
        for end in 0..GENERIC + 60 {
            assert_eq!(deletion(&whole[..end], &port), None, "{end}");
        }
        let v6 = entry(
            17,
            ("[2001:db8::1]:4000", "[2001:db8::2]:53"),
            ("[fd00::2]:5300", "[2001:db8::1]:4000"),
        );
        assert_eq!(deletion(&v6, &port), None);
        assert!(deletion(&v6, &changed("[::]:53", None)).is_some());
    }
}
