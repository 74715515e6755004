//! Network cards and the interfaces that they are.
//!
//! The container is in the namespace that the agent is in. Spare cards are in another one,
//! so that the container sees what one on the host would see; a card that is made an
//! interface comes from there, and goes back there as bare as it came.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use bulkhead_agent_protocol::{
    Address, Interface, MAX_ADDRESSES, MAX_NICS, MAX_ROUTES, Mac, Nic, Route,
};
use futures::TryStreamExt;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteFlags, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use rustix::thread::UnshareFlags;

/// The network cannot be made what the host says.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// What the host says has no sense.
    #[error("{0}")]
    Invalid(String),
    /// The kernel's netlink said no.
    #[error("cannot {doing}: {source}")]
    Netlink {
        /// What was being done.
        doing: String,
        /// What it said.
        source: rtnetlink::Error,
    },
    /// The system said no.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What it said.
        source: io::Error,
    },
}

fn netlink(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> CardError {
    let doing = doing.into();
    move |source| CardError::Netlink { doing, source }
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> CardError {
    let doing = doing.into();
    move |source| CardError::System { doing, source }
}

/// A namespace, and the socket to talk about its interfaces.
struct Place {
    namespace: File,
    handle: Handle,
}

/// All cards of the machine.
#[derive(Default)]
pub struct Cards {
    home: Option<Place>,
    parking: Option<Place>,
    /// What each card that is an interface was made.
    applied: HashMap<Mac, Interface>,
}

/// A card, where it was found.
struct Spot {
    index: u32,
    name: String,
}

impl Cards {
    /// Makes the cards what is said of them. Those of which the same is said as before are
    /// left alone. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`CardError`]. Cards that were not reached are as they were.
    pub async fn configure(&mut self, nics: &[Nic]) -> Result<(), CardError> {
        check(nics)?;
        if nics.is_empty() {
            return Ok(());
        }
        let mut fresh = Vec::new();
        let mut rerouted = Vec::new();
        for (number, nic) in nics.iter().enumerate() {
            let wanted = nic.interface.as_ref();
            let applied = self.applied.get(&nic.device);
            let was_applied = applied.is_some();
            if was_applied && applied == wanted {
                continue;
            }
            if let (Some(applied), Some(wanted)) = (applied, wanted)
                && same_but_routes(applied, wanted)
            {
                // Its connections live on.
                rerouted.push((applied.clone(), wanted.clone(), nic.device));
                continue;
            }
            let Some(spot) = find(self.home()?, nic.device).await? else {
                continue;
            };
            if !was_applied && wanted.is_some() {
                // As the kernel found it at its start.
                fresh.push((number, spot));
            } else {
                self.applied.remove(&nic.device);
                self.park(number, &spot).await?;
            }
        }
        self.reroute(rerouted).await?;
        self.clear_names(nics, &fresh).await?;
        for (number, nic) in nics.iter().enumerate() {
            let Some(interface) = &nic.interface else {
                continue;
            };
            if self.applied.contains_key(&nic.device) {
                continue;
            }
            if let Err(error) = self.bring(nic.device, interface).await {
                // Half an interface is worse than none.
                if let Ok(Some(spot)) = find(self.home()?, nic.device).await {
                    self.park(number, &spot).await?;
                }
                return Err(error);
            }
            self.applied.insert(nic.device, interface.clone());
        }
        Ok(())
    }

    /// Takes away what is routed no more, from all of them, before anything is added.
    async fn reroute(
        &mut self,
        changes: Vec<(Interface, Interface, Mac)>,
    ) -> Result<(), CardError> {
        let mut additions = Vec::new();
        for (before, after, device) in changes {
            let home = self.home()?;
            let Some(spot) = find(home, device).await? else {
                continue;
            };
            for route in &before.routes {
                if !after.routes.contains(route) {
                    remove_route(home, spot.index, &spot.name, route).await?;
                }
            }
            additions.push((before, after, device, spot));
        }
        for (before, after, device, spot) in additions {
            let home = self.home()?;
            for route in &after.routes {
                if !before.routes.contains(route) {
                    add_route(home, spot.index, &spot.name, route).await?;
                }
            }
            self.applied.insert(device, after);
        }
        Ok(())
    }

    fn home(&mut self) -> Result<&Place, CardError> {
        if self.home.is_none() {
            let (connection, handle, _) =
                rtnetlink::new_connection().map_err(system("open a netlink socket"))?;
            tokio::spawn(connection);
            let namespace =
                File::open("/proc/self/ns/net").map_err(system("open the network namespace"))?;
            self.home = Some(Place { namespace, handle });
        }
        self.home
            .as_ref()
            .ok_or_else(|| CardError::Invalid("there is no network namespace".to_owned()))
    }

    /// The namespace of spare cards; made when the first is to go there.
    async fn parking(&mut self) -> Result<&Place, CardError> {
        if self.parking.is_none() {
            let runtime = tokio::runtime::Handle::current();
            let made = tokio::task::spawn_blocking(move || {
                // A thread of its own, which ends in the other namespace.
                std::thread::scope(|scope| {
                    let thread = scope.spawn(|| {
                        // SAFETY: this thread shares its network namespace with others, who
                        // keep it; nothing else is unshared.
                        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
                        let namespace = File::open("/proc/thread-self/ns/net")?;
                        let _runtime = runtime.enter();
                        let (connection, handle, _) = rtnetlink::new_connection()?;
                        Ok((namespace, connection, handle))
                    });
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(io::Error::other("its thread was lost")))
                })
            });
            let (namespace, connection, handle) = made
                .await
                .map_err(io::Error::other)
                .flatten()
                .map_err(system("make a network namespace for spare cards"))?;
            tokio::spawn(connection);
            self.parking = Some(Place { namespace, handle });
        }
        self.parking
            .as_ref()
            .ok_or_else(|| CardError::Invalid("there is no place for spare cards".to_owned()))
    }

    /// Takes a card away from the container; its addresses, routes and settings go with the
    /// change of namespaces.
    async fn park(&mut self, number: usize, spot: &Spot) -> Result<(), CardError> {
        let to = self.parking().await?.namespace.as_raw_fd();
        let home = self.home()?;
        let down = LinkUnspec::new_with_index(spot.index).down().build();
        set(home, down, format!("take {} down", spot.name)).await?;
        let renamed = LinkUnspec::new_with_index(spot.index)
            .name(spare_name(number))
            .build();
        set(home, renamed, format!("rename {}", spot.name)).await?;
        let moved = LinkUnspec::new_with_index(spot.index)
            .setns_by_fd(to)
            .build();
        set(home, moved, format!("put {} aside", spot.name)).await
    }

    /// Two cards may have each other's names.
    async fn clear_names(
        &mut self,
        nics: &[Nic],
        fresh: &[(usize, Spot)],
    ) -> Result<(), CardError> {
        let home = self.home()?;
        for (number, spot) in fresh {
            let wanted = nics[*number].interface.as_ref();
            if wanted.is_some_and(|wanted| wanted.name != spot.name) {
                let renamed = LinkUnspec::new_with_index(spot.index)
                    .name(spare_name(*number))
                    .build();
                set(home, renamed, format!("rename {}", spot.name)).await?;
            }
        }
        Ok(())
    }

    /// Makes a card, wherever it is, an interface of the container.
    async fn bring(&mut self, device: Mac, interface: &Interface) -> Result<(), CardError> {
        let to = self.home()?.namespace.as_raw_fd();
        let name = &interface.name;
        let missing = || CardError::Invalid(format!("there is no network card for {name}"));
        if find(self.home()?, device).await?.is_none() {
            let parking = self.parking().await?;
            let spot = find(parking, device).await?.ok_or_else(missing)?;
            // A name that is taken in the container's namespace is refused here.
            let moved = LinkUnspec::new_with_index(spot.index)
                .name(name.clone())
                .setns_by_fd(to)
                .build();
            set(parking, moved, format!("bring {name}")).await?;
        }
        let home = self.home()?;
        let spot = find(home, device).await?.ok_or_else(missing)?;
        let mut link = LinkUnspec::new_with_index(spot.index)
            .mtu(interface.mtu)
            .address(interface.mac.to_vec());
        if spot.name != *name {
            link = link.name(name.clone());
        }
        set(home, link.build(), format!("set {name} up")).await?;
        if !interface.ipv6 {
            no_ipv6(name)?;
        }
        let up = LinkUnspec::new_with_index(spot.index).up().build();
        set(home, up, format!("bring {name} up")).await?;
        for address in &interface.addresses {
            add_address(home, spot.index, name, address).await?;
        }
        for route in &interface.routes {
            add_route(home, spot.index, name, route).await?;
        }
        Ok(())
    }
}

fn same_but_routes(one: &Interface, other: &Interface) -> bool {
    let bare = |interface: &Interface| Interface {
        routes: Vec::new(),
        ..interface.clone()
    };
    bare(one) == bare(other)
}

/// A name that no container has.
fn spare_name(number: usize) -> String {
    format!("bhspare{number}")
}

fn check(nics: &[Nic]) -> Result<(), CardError> {
    let invalid = |message: &str| Err(CardError::Invalid(message.to_owned()));
    if nics.len() > MAX_NICS {
        return invalid("more network cards than a machine has");
    }
    for interface in nics.iter().filter_map(|nic| nic.interface.as_ref()) {
        // IFNAMSIZ counts the end.
        let plain = !interface.name.is_empty()
            && interface.name.len() < libc::IFNAMSIZ
            && !matches!(interface.name.as_str(), "." | "..")
            && !interface
                .name
                .contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace());
        if !plain {
            return invalid("an interface's name is not one");
        }
        if interface.addresses.len() > MAX_ADDRESSES || interface.routes.len() > MAX_ROUTES {
            return invalid("an interface has too many addresses or routes");
        }
    }
    Ok(())
}

/// Finds a card by the address that it was made with.
async fn find(place: &Place, device: Mac) -> Result<Option<Spot>, CardError> {
    let links: Vec<LinkMessage> = place
        .handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(netlink("list the network cards"))?;
    Ok(links.iter().find_map(|link| {
        let mut name = None;
        let mut found = false;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value.clone()),
                LinkAttribute::PermAddress(value) => found = *value == device,
                _ => {}
            }
        }
        found.then_some(Spot {
            index: link.header.index,
            name: name?,
        })
    }))
}

async fn set(place: &Place, message: LinkMessage, doing: String) -> Result<(), CardError> {
    place
        .handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(netlink(doing))
}

fn no_ipv6(name: &str) -> Result<(), CardError> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match std::fs::write(path, "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(system(format!("turn IPv6 off on {name}"))),
    }
}

async fn add_address(
    place: &Place,
    index: u32,
    name: &str,
    address: &Address,
) -> Result<(), CardError> {
    let own = address.prefix.address;
    let mut request = place
        .handle
        .address()
        .add(index, own, address.prefix.length);
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Nodad, address.no_dad);
    flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
    let message = request.message_mut();
    message.header.scope = AddressScope::from(address.scope);
    message.header.flags = AddressHeaderFlags::empty();
    message.attributes = vec![
        AddressAttribute::Local(own),
        AddressAttribute::Address(address.peer.unwrap_or(own)),
        AddressAttribute::Flags(flags),
    ];
    message
        .attributes
        .extend(address.broadcast.map(AddressAttribute::Broadcast));
    request
        .execute()
        .await
        .map_err(netlink(format!("give {name} the address {own}")))
}

async fn add_route(place: &Place, index: u32, name: &str, route: &Route) -> Result<(), CardError> {
    let message = route_message(index, name, route)?;
    let mut added = place.handle.route().add(message.clone()).execute().await;
    if added.is_err() && route.on_link {
        let mut message = message;
        message.header.flags |= RouteFlags::Onlink;
        added = place.handle.route().add(message).execute().await;
    }
    match added {
        // It follows from an address as well.
        Err(rtnetlink::Error::NetlinkError(error)) if -error.raw_code() == libc::EEXIST => Ok(()),
        other => {
            let to = route.destination.address;
            other.map_err(netlink(format!("set {name}'s route to {to}")))
        }
    }
}

async fn remove_route(
    place: &Place,
    index: u32,
    name: &str,
    route: &Route,
) -> Result<(), CardError> {
    let message = route_message(index, name, route)?;
    match place.handle.route().del(message).execute().await {
        // The container may have seen to it itself.
        Err(rtnetlink::Error::NetlinkError(error)) if -error.raw_code() == libc::ESRCH => Ok(()),
        other => {
            let to = route.destination.address;
            other.map_err(netlink(format!("remove {name}'s route to {to}")))
        }
    }
}

fn route_message(index: u32, name: &str, route: &Route) -> Result<RouteMessage, CardError> {
    let mut message = match route.destination.address {
        IpAddr::V4(destination) => route_v4(destination, route),
        IpAddr::V6(destination) => route_v6(destination, route),
    }
    .ok_or_else(|| CardError::Invalid(format!("a route of {name} mixes IPv4 and IPv6")))?;
    message
        .attributes
        .push(rtnetlink::packet_route::route::RouteAttribute::Oif(index));
    message.header.scope = RouteScope::from(route.scope);
    message.header.protocol = RouteProtocol::from(route.protocol);
    Ok(message)
}

fn route_v4(destination: Ipv4Addr, route: &Route) -> Option<RouteMessage> {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(destination, route.destination.length);
    if let Some(gateway) = route.gateway {
        builder = builder.gateway(v4(gateway)?);
    }
    if let Some(source) = route.source {
        builder = builder.pref_source(v4(source)?);
    }
    if let Some(priority) = route.priority {
        builder = builder.priority(priority);
    }
    Some(builder.build())
}

fn route_v6(destination: Ipv6Addr, route: &Route) -> Option<RouteMessage> {
    let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(destination, route.destination.length);
    if let Some(gateway) = route.gateway {
        builder = builder.gateway(v6(gateway)?);
    }
    if let Some(source) = route.source {
        builder = builder.pref_source(v6(source)?);
    }
    if let Some(priority) = route.priority {
        builder = builder.priority(priority);
    }
    Some(builder.build())
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str) -> Nic {
        Nic {
            device: [2, 0, 0, 0, 0, 1],
            interface: Some(Interface {
                name: name.to_owned(),
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                ipv6: false,
                addresses: Vec::new(),
                routes: Vec::new(),
            }),
        }
    }

    #[test]
    fn names_are_names() {
        check(&[interface("eth0")]).unwrap();
        for name in ["", ".", "..", "a/b", "a b", "eth%d", "sixteen-letters-"] {
            assert!(check(&[interface(name)]).is_err(), "{name}");
        }
        assert!(check(&vec![interface("eth0"); MAX_NICS + 1]).is_err());
    }
}
