//! Bridges and veth pairs: made, found by what they are labelled with, deleted.
//!
//! Every interface of ours in the host's namespace carries an alias (`ip link` shows it) that
//! names its owner, so that a start-up sweep finds what a killed daemon left and touches
//! nothing else.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
    InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::namespace::within;
use crate::netlink::Netlink;

/// Longest name of an interface (`IFNAMSIZ` without its zero).
pub const MAX_INTERFACE_NAME: usize = 15;

/// Why an interface could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the network interface {name}")]
pub struct LinkError {
    action: &'static str,
    name: String,
    source: io::Error,
}

impl LinkError {
    /// Whether an interface of that name exists that is not ours.
    pub fn is_taken(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }
}

fn failed(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> LinkError {
    move |source| LinkError {
        action,
        name: name.to_owned(),
        source,
    }
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// The prefix.
    pub prefix: u8,
}

/// What a bridge is to be.
#[derive(Debug, Clone)]
pub struct BridgeConfig<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whose it is.
    pub alias: &'a str,
    /// Largest packet.
    pub mtu: u32,
    /// The host's addresses on it.
    pub addresses: &'a [InterfaceAddress],
}

/// What a veth pair is to be.
#[derive(Debug, Clone)]
pub struct VethConfig<'a> {
    /// The host's end.
    pub host_name: &'a str,
    /// Whose it is.
    pub alias: &'a str,
    /// The bridge that the host's end joins.
    pub bridge: &'a str,
    /// The other end, in the namespace.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Largest packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: &'a [InterfaceAddress],
    /// Whether other ports of the bridge that are isolated too are out of reach.
    pub isolated: bool,
}

/// An interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alias.
    pub alias: Option<String>,
    /// The number of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// Largest packet.
    pub mtu: u32,
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn numbered(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn index_of(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    match netlink.get(RouteNetlinkMessage::GetLink(named(name)))? {
        RouteNetlinkMessage::NewLink(link) => Ok(link.header.index),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: None,
        controller: None,
        mtu: 0,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            _ => {}
        }
    }
    link
}

/// Every interface of the host.
///
/// # Errors
/// That the kernel doesn't say.
pub fn links() -> Result<Vec<Link>, LinkError> {
    let list = || Netlink::open()?.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    let messages = list().map_err(failed("list", "*"))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(read_link(link)),
            _ => None,
        })
        .collect())
}

/// Makes a bridge, or brings one of the same owner to what it is to be.
///
/// # Errors
/// [`LinkError::is_taken`] when an interface of that name is somebody else's.
pub fn ensure_bridge(config: &BridgeConfig<'_>) -> Result<(), LinkError> {
    let ensure = || {
        let mut netlink = Netlink::open()?;
        match netlink.get(RouteNetlinkMessage::GetLink(named(config.name))) {
            Ok(RouteNetlinkMessage::NewLink(link)) => {
                let link = read_link(link);
                if link.alias.as_deref() != Some(config.alias) {
                    return Err(io::Error::from(io::ErrorKind::AlreadyExists));
                }
                complete_bridge(&mut netlink, config, link.index)
            }
            Ok(_) => Err(io::Error::from(io::ErrorKind::InvalidData)),
            Err(error) if is_missing(&error) => {
                // The kernel takes no alias for a new interface. It gets its name together with
                // that, so that whoever is killed in between leaves nobody's under this name.
                let unfinished = unfinished_name(config.alias);
                if let Ok(left) = index_of(&mut netlink, &unfinished) {
                    netlink.change(RouteNetlinkMessage::DelLink(numbered(left)), 0)?;
                }
                let mut message = named(&unfinished);
                message.attributes.extend([
                    LinkAttribute::Mtu(config.mtu),
                    LinkAttribute::LinkInfo(vec![
                        LinkInfo::Kind(InfoKind::Bridge),
                        LinkInfo::Data(InfoData::Bridge(vec![
                            InfoBridge::StpState(BridgeStpState::Disabled),
                            InfoBridge::ForwardDelay(0),
                        ])),
                    ]),
                ]);
                netlink.change(
                    RouteNetlinkMessage::NewLink(message),
                    NLM_F_CREATE | NLM_F_EXCL,
                )?;
                let index = index_of(&mut netlink, &unfinished)?;
                let mut message = numbered(index);
                message.attributes.extend([
                    LinkAttribute::IfName(config.name.to_owned()),
                    LinkAttribute::IfAlias(config.alias.to_owned()),
                ]);
                let done = netlink
                    .change(RouteNetlinkMessage::SetLink(message), 0)
                    .and_then(|()| complete_bridge(&mut netlink, config, index));
                if done.is_err() {
                    let _ = netlink.change(RouteNetlinkMessage::DelLink(numbered(index)), 0);
                }
                done
            }
            Err(error) => Err(error),
        }
    };
    ensure().map_err(failed("make", config.name))
}

/// The name that a bridge of an owner has while it is being made; one at a time is. One of
/// this name at a start of the owner is what it was killed over.
pub fn unfinished_name(alias: &str) -> String {
    let mut hasher = DefaultHasher::new();
    alias.hash(&mut hasher);
    format!("bh-new{:08x}", hasher.finish() & 0xffff_ffff)
}

fn complete_bridge(netlink: &mut Netlink, config: &BridgeConfig<'_>, index: u32) -> io::Result<()> {
    let ipv6 = config.addresses.iter().any(|own| own.address.is_ipv6());
    // A kernel without IPv6 has no such file.
    let _ = write_sysctl(
        "ipv6",
        config.name,
        "disable_ipv6",
        if ipv6 { "0" } else { "1" },
    );
    for address in config.addresses {
        add_address(netlink, index, *address)?;
    }
    let mut message = numbered(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Mtu(config.mtu));
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Lets packets for 127.0.0.0/8 leave by an interface: published ports of the host's loopback
/// need it. Says whether the kernel let us.
pub fn allow_local_routes(bridge: &str) -> bool {
    write_sysctl("ipv4", bridge, "route_localnet", "1").is_ok()
}

fn write_sysctl(family: &str, interface: &str, key: &str, value: &str) -> io::Result<()> {
    std::fs::write(
        format!("/proc/sys/net/{family}/conf/{interface}/{key}"),
        value,
    )
}

/// Turns the host into a router. Already one: nothing is written.
///
/// # Errors
/// That `/proc/sys` cannot be written.
pub fn enable_forwarding(ipv6: bool) -> io::Result<()> {
    let path = match ipv6 {
        true => "/proc/sys/net/ipv6/conf/all/forwarding",
        false => "/proc/sys/net/ipv4/ip_forward",
    };
    if std::fs::read_to_string(path)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(path, "1")
}

fn add_address(netlink: &mut Netlink, index: u32, own: InterfaceAddress) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = own.prefix;
    match own.address {
        IpAddr::V4(address) => {
            message.header.family = AddressFamily::Inet;
            message
                .attributes
                .push(AddressAttribute::Local(own.address));
            message
                .attributes
                .push(AddressAttribute::Broadcast(broadcast(address, own.prefix)));
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
        .attributes
        .push(AddressAttribute::Address(own.address));
    netlink.change(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn broadcast(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() | host)
}

/// Deletes an interface; succeeds when there is none. The other end of a veth pair goes, too.
///
/// # Errors
/// What the kernel says.
pub fn delete(name: &str) -> Result<(), LinkError> {
    let delete = || {
        let mut netlink = Netlink::open()?;
        match netlink.change(RouteNetlinkMessage::DelLink(named(name)), 0) {
            Err(error) if !is_missing(&error) => Err(error),
            _ => Ok(()),
        }
    };
    delete().map_err(failed("delete", name))
}

/// Makes a veth pair between a bridge and the namespace at `netns`, up and with its addresses.
/// On an error nothing is left. What a killed daemon left under the same name goes first.
///
/// # Errors
/// What the kernel says.
pub fn join_bridge(netns: &Path, config: &VethConfig<'_>) -> Result<(), LinkError> {
    let make = || {
        let namespace = std::fs::File::open(netns)?;
        let mut netlink = Netlink::open()?;
        let bridge = index_of(&mut netlink, config.bridge)?;
        let mut peer = named(config.name);
        peer.attributes.extend([
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::Address(config.mac.to_vec()),
            LinkAttribute::Mtu(config.mtu),
        ]);
        let mut message = named(config.host_name);
        message.attributes.extend([
            LinkAttribute::Mtu(config.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        let create = RouteNetlinkMessage::NewLink(message);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match netlink.change(create.clone(), flags) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                netlink.change(RouteNetlinkMessage::DelLink(named(config.host_name)), 0)?;
                netlink.change(create, flags)?;
            }
            other => other?,
        }
        let done = complete_host_end(&mut netlink, config, bridge)
            .and_then(|()| complete_container_end(netns, config));
        if done.is_err() {
            let _ = netlink.change(RouteNetlinkMessage::DelLink(named(config.host_name)), 0);
        }
        done
    };
    make().map_err(failed("make", config.host_name))
}

fn complete_host_end(
    netlink: &mut Netlink,
    config: &VethConfig<'_>,
    bridge: u32,
) -> io::Result<()> {
    let index = index_of(netlink, config.host_name)?;
    // The host has no address on a bridge's port: without this the kernel gives it a
    // link-local one and talks on it.
    let _ = write_sysctl("ipv6", config.host_name, "disable_ipv6", "1");
    let mut message = numbered(index);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.extend([
        LinkAttribute::IfAlias(config.alias.to_owned()),
        LinkAttribute::Controller(bridge),
    ]);
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)?;
    if config.isolated {
        let mut message = numbered(index);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(
                true,
            )])),
        ]));
        netlink.change(RouteNetlinkMessage::NewLink(message), 0)?;
    }
    Ok(())
}

fn complete_container_end(netns: &Path, config: &VethConfig<'_>) -> io::Result<()> {
    let name = config.name.to_owned();
    let addresses = config.addresses.to_vec();
    within(netns, move || {
        let ipv6 = addresses.iter().any(|own| own.address.is_ipv6());
        let _ = write_sysctl("ipv6", &name, "disable_ipv6", if ipv6 { "0" } else { "1" });
        let mut netlink = Netlink::open()?;
        let index = index_of(&mut netlink, &name)?;
        for address in addresses {
            add_address(&mut netlink, index, address)?;
        }
        let mut message = numbered(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        netlink.change(RouteNetlinkMessage::SetLink(message), 0)
    })
}

/// A way out of a namespace.
#[derive(Debug, Clone)]
pub struct WayOut {
    /// The interface.
    pub interface: String,
    /// Its addresses: they are set again where they were taken off.
    pub addresses: Vec<InterfaceAddress>,
    /// The next hops, at most one of each family.
    pub gateways: Vec<IpAddr>,
}

/// Makes these the ways out of the namespace at `netns`, in place of what was there before;
/// two are of different families.
///
/// # Errors
/// What the kernel says.
pub fn set_ways_out(netns: &Path, ways: Vec<WayOut>) -> Result<(), LinkError> {
    let name = ways
        .first()
        .map_or_else(|| "lo".to_owned(), |way| way.interface.clone());
    within(netns, move || {
        let mut netlink = Netlink::open()?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            while netlink
                .change(RouteNetlinkMessage::DelRoute(default_route(family)), 0)
                .is_ok()
            {}
        }
        for way in ways {
            add_way_out(&mut netlink, way)?;
        }
        Ok(())
    })
    .map_err(failed("set the default route by", &name))
}

fn add_way_out(netlink: &mut Netlink, way: WayOut) -> io::Result<()> {
    let index = index_of(netlink, &way.interface)?;
    if way.addresses.iter().any(|own| own.address.is_ipv6()) {
        let _ = write_sysctl("ipv6", &way.interface, "disable_ipv6", "0");
    }
    for address in way.addresses {
        add_address(netlink, index, address)?;
    }
    for gateway in way.gateways {
        let (family, address) = match gateway {
            IpAddr::V4(address) => (AddressFamily::Inet, RouteAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, RouteAddress::Inet6(address)),
        };
        let mut message = default_route(family);
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .extend([RouteAttribute::Gateway(address), RouteAttribute::Oif(index)]);
        netlink.change(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )?;
    }
    Ok(())
}

fn default_route(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    // Of a deletion "nowhere" means any scope (`fib_table_delete`).
    message.header.scope = RouteScope::NoWhere;
    message
}

/// A network that the host has a route to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// The network's first address.
    pub address: IpAddr,
    /// The length of its prefix.
    pub prefix: u8,
    /// The interface that it leads to.
    pub interface: u32,
}

/// What the host's routes lead to, without default routes.
///
/// # Errors
/// That the kernel doesn't say.
pub fn host_routes() -> Result<Vec<HostRoute>, LinkError> {
    let list = || {
        let mut netlink = Netlink::open()?;
        let mut out = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            out.extend(netlink.dump(RouteNetlinkMessage::GetRoute(message))?);
        }
        Ok(out)
    };
    let messages = list().map_err(failed("list the routes of", "*"))?;
    Ok(messages.into_iter().filter_map(read_route).collect())
}

fn read_route(message: RouteNetlinkMessage) -> Option<HostRoute> {
    let RouteNetlinkMessage::NewRoute(route) = message else {
        return None;
    };
    let prefix = route.header.destination_prefix_length;
    if prefix == 0 || route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut address, mut interface) = (None, 0);
    for attribute in route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = Some(IpAddr::V4(v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = Some(IpAddr::V6(v6)),
            RouteAttribute::Oif(index) => interface = index,
            _ => {}
        }
    }
    Some(HostRoute {
        address: address?,
        prefix,
        interface,
    })
}

/// The MTU of the interface that the host's default route leads to; 1500 without one.
pub fn uplink_mtu() -> u32 {
    const ETHERNET: u32 = 1500;
    let find = || -> io::Result<Option<u32>> {
        let mut netlink = Netlink::open()?;
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        for answer in netlink.dump(RouteNetlinkMessage::GetRoute(message))? {
            let RouteNetlinkMessage::NewRoute(route) = answer else {
                continue;
            };
            if route.header.destination_prefix_length != 0 {
                continue;
            }
            for attribute in route.attributes {
                if let RouteAttribute::Oif(index) = attribute
                    && let RouteNetlinkMessage::NewLink(link) =
                        netlink.get(RouteNetlinkMessage::GetLink(numbered(index)))?
                {
                    return Ok(Some(read_link(link).mtu));
                }
            }
        }
        Ok(None)
    };
    find()
        .ok()
        .flatten()
        .filter(|mtu| *mtu >= 576)
        .unwrap_or(ETHERNET)
        .min(ETHERNET)
}

/// Addresses that the host has, without loopback and link-local ones.
///
/// # Errors
/// That the kernel doesn't say.
pub fn host_addresses() -> Result<Vec<IpAddr>, LinkError> {
    let list = || Netlink::open()?.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
    let messages = list().map_err(failed("list the addresses of", "*"))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        })
        .flat_map(|address| address.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(address),
            _ => None,
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => *v4 != Ipv4Addr::LOCALHOST,
            IpAddr::V6(v6) => *v6 != Ipv6Addr::LOCALHOST && !v6.is_unicast_link_local(),
        })
        .collect())
}
