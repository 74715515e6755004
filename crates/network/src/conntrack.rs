//! The kernel's memory of flows. A flow of datagrams keeps the translation that its first one
//! got for as long as datagrams come: whoever goes on asking a published port would be sent to
//! a container that has gone, though another has the port now.
//!
//! The messages are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

/// `NFNL_SUBSYS_CTNETLINK << 8`.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_NEW`: what a dump is made of.
const ENTRY: u16 = SUBSYSTEM;
/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = SUBSYSTEM | 1;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = SUBSYSTEM | 2;
/// `NLMSG_ERROR`, which acknowledges too.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
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
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nfgenmsg`: the family first.
const GENERIC: usize = 4;
const BUFFER: usize = 64 << 10;

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
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    let mut stale = Vec::new();
    exchange(
        &socket,
        GET,
        NLM_F_REQUEST | NLM_F_DUMP,
        &[0; GENERIC],
        |entry| {
            stale.extend(deletion(entry, changed));
        },
    )?;
    for body in &stale {
        match exchange(&socket, DELETE, NLM_F_REQUEST | NLM_F_ACK, body, |_| ()) {
            // It ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(stale.len())
}

/// Sends one request and hands over the entries of its answer.
fn exchange(
    socket: &Socket,
    kind: u16,
    flags: u16,
    body: &[u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&flags.to_ne_bytes());
    // Sequence number and port: one request at a time needs neither.
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(body);
    socket.send(&request, 0)?;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Some((kind, body)) = message(&mut rest) {
            match kind {
                ENTRY => each(body),
                DONE => return Ok(()),
                ERROR => {
                    let code = body.first_chunk().copied().map(i32::from_ne_bytes);
                    return match code {
                        Some(0) => Ok(()),
                        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                _ => {}
            }
        }
    }
}

/// Takes the first of several messages off: its type and what follows its header.
fn message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(*rest.first_chunk()?);
    let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

/// The attributes of a list: type, value, and the whole as it stood there.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        // Without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & 0x3fff;
        let value = rest.get(4..length)?;
        let padded = length.next_multiple_of(4).min(rest.len());
        let (whole, after) = rest.split_at(padded);
        rest = after;
        Some((kind, value, whole))
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
