//! What a namespace's interfaces are, and making them hand everything over: an interface
//! whose addresses a guest has must have none itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bulkhead_agent_protocol::{
    Address, Interface, MAX_ADDRESSES, MAX_NICS, MAX_ROUTES, Mac, Prefix, Route,
};
use bulkhead_network::TAP_PREFIX;
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{NetworkError, netlink, system};

/// An interface of the namespace, and what the kernel said of it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its number in the namespace.
    pub index: u32,
    /// What it is.
    pub interface: Interface,
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
}

/// The interfaces that are meant for the container: Ethernet, up, and neither loopback nor
/// ours. (Modules of the host's kernel put tunnels into every namespace, which are down.)
pub async fn read(handle: &Handle) -> Result<Vec<Found>, NetworkError> {
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(netlink("list the interfaces"))?;
    let mut found: Vec<Found> = links.iter().filter_map(link).collect();
    if found.is_empty() {
        return Ok(found);
    }
    if found.len() > MAX_NICS {
        return Err(NetworkError::TooMany(found.len()));
    }
    found.sort_by_key(|found| found.index);
    let addresses: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(netlink("list the addresses"))?;
    let mut routes = Vec::new();
    for family in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let of_family: Vec<RouteMessage> = handle
            .route()
            .get(family)
            .execute()
            .try_collect()
            .await
            .map_err(netlink("list the routes"))?;
        routes.extend(of_family);
    }
    for found in &mut found {
        take_over(found, &addresses, &routes)?;
    }
    Ok(found)
}

fn link(message: &LinkMessage) -> Option<Found> {
    let header = &message.header;
    if header.link_layer_type != LinkLayerType::Ether || !header.flags.contains(LinkFlags::Up) {
        return None;
    }
    let mut name = None;
    let mut mac = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Address(value) => mac = Mac::try_from(value.as_slice()).ok(),
            LinkAttribute::Mtu(value) => mtu = Some(*value),
            _ => {}
        }
    }
    let name = name.filter(|name| !name.starts_with(TAP_PREFIX))?;
    Some(Found {
        index: header.index,
        interface: Interface {
            ipv6: ipv6_is_on(&name),
            name,
            mac: mac?,
            mtu: mtu?,
            addresses: Vec::new(),
            routes: Vec::new(),
        },
        addresses: Vec::new(),
        routes: Vec::new(),
    })
}

fn take_over(
    found: &mut Found,
    addresses: &[AddressMessage],
    routes: &[RouteMessage],
) -> Result<(), NetworkError> {
    let interface = &mut found.interface;
    for message in addresses {
        if message.header.index != found.index {
            continue;
        }
        found.addresses.push(message.clone());
        interface.addresses.extend(address(message));
    }
    for message in routes {
        let Some(route) = route(message, found.index) else {
            continue;
        };
        found.routes.push(message.clone());
        interface.routes.push(route);
    }
    // Gateways can be named once they are reached.
    interface
        .routes
        .sort_by_key(|route| route.gateway.is_some());
    if interface.addresses.len() > MAX_ADDRESSES || interface.routes.len() > MAX_ROUTES {
        return Err(NetworkError::TooLong(interface.name.clone()));
    }
    Ok(())
}

/// An address that somebody has set. The link's own (IPv6) is not among them: the guest's
/// kernel makes one of the hardware's address too.
fn address(message: &AddressMessage) -> Option<Address> {
    let mut address = None;
    let mut local = None;
    let mut broadcast = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Broadcast(value) => broadcast = Some(*value),
            AddressAttribute::Flags(value) => flags = *value,
            _ => {}
        }
    }
    // `IFA_ADDRESS` is the other end's where there is a local one beside it.
    let own = local.or(address)?;
    if matches!(own, IpAddr::V6(own) if own.is_unicast_link_local()) {
        return None;
    }
    Some(Address {
        prefix: Prefix {
            address: own,
            length: message.header.prefix_len,
        },
        peer: address.filter(|address| *address != own),
        broadcast,
        scope: u8::from(message.header.scope),
        no_dad: flags.contains(AddressFlags::Nodad),
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
    })
}

/// A route of the main table that somebody has set.
fn route(message: &RouteMessage, interface: u32) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut through = None;
    let mut destination = None;
    let mut gateway = None;
    let mut source = None;
    let mut priority = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(value) => through = Some(*value),
            RouteAttribute::Destination(value) => destination = ip(value),
            RouteAttribute::Gateway(value) => gateway = ip(value),
            RouteAttribute::PrefSource(value) => source = ip(value),
            RouteAttribute::Priority(value) => priority = Some(*value),
            _ => {}
        }
    }
    let set_by_somebody = !matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    if table != u32::from(RouteHeader::RT_TABLE_MAIN)
        || header.kind != RouteType::Unicast
        || header.flags.contains(RouteFlags::Cloned)
        || through != Some(interface)
        || !set_by_somebody
    {
        return None;
    }
    let unspecified = match header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        rtnetlink::packet_route::AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    Some(Route {
        destination: Prefix {
            address: destination.unwrap_or(unspecified),
            length: header.destination_prefix_length,
        },
        gateway,
        source,
        priority,
        scope: u8::from(header.scope),
        protocol: u8::from(header.protocol),
        on_link: header.flags.contains(RouteFlags::Onlink),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// Takes routes and addresses off the interface, and has the kernel give it none by itself,
/// so that this kernel answers nothing in the guest's place.
pub async fn strip(handle: &Handle, found: &Found) -> Result<(), NetworkError> {
    let name = &found.interface.name;
    // IN6_ADDR_GEN_MODE_NONE. IPv6 itself stays on: routes may still be set here for us to see.
    set_ipv6(name, "addr_gen_mode", "1")?;
    // Those with gateways first, as they hang on the others.
    for message in found.routes.iter().rev() {
        let removed = handle.route().del(message.clone()).execute().await;
        gone(removed).map_err(netlink(format!("take the routes off {name}")))?;
    }
    for message in &found.addresses {
        let removed = handle.address().del(message.clone()).execute().await;
        gone(removed).map_err(netlink(format!("take the addresses off {name}")))?;
    }
    Ok(())
}

/// What is not there any more needs no removal: an address takes its routes along.
fn gone(removed: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match removed {
        Err(rtnetlink::Error::NetlinkError(message))
            if matches!(
                -message.raw_code(),
                libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENOENT
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn ipv6_setting(name: &str, setting: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{name}/{setting}")
}

/// Whether an interface of this thread's namespace speaks IPv6.
fn ipv6_is_on(name: &str) -> bool {
    std::fs::read_to_string(ipv6_setting(name, "disable_ipv6"))
        .is_ok_and(|value| value.trim() == "0")
}

/// Turns IPv6 off on an interface of this thread's namespace.
pub fn no_ipv6(name: &str) -> Result<(), NetworkError> {
    set_ipv6(name, "disable_ipv6", "1")
}

fn set_ipv6(name: &str, setting: &str, value: &str) -> Result<(), NetworkError> {
    match std::fs::write(ipv6_setting(name, setting), value) {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(system(format!("set {setting} of {name}"))),
    }
}
