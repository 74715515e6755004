//! What the resolvers of containers answer from: who is called what on which network.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use bulkhead_network::dns::Directory;

use super::model::{Attachment, Endpoint, Network};
use super::{Active, Joined};

/// Names of all networks; resolvers read it while containers come and go.
#[derive(Debug, Default)]
pub(super) struct Names {
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    /// By the network's ID.
    zones: HashMap<String, Zone>,
    /// By the container's ID.
    residents: HashMap<String, Resident>,
}

#[derive(Debug, Default)]
struct Zone {
    name: String,
    /// Lower case.
    addresses: BTreeMap<String, Vec<IpAddr>>,
    names: HashMap<IpAddr, String>,
}

/// What is particular to one container.
#[derive(Debug, Default)]
struct Resident {
    /// IDs of the networks that it sees names of, in the order of its interfaces.
    networks: Vec<String>,
    /// What it alone calls others.
    links: HashMap<String, String>,
    /// The servers that its user chose.
    servers: Vec<IpAddr>,
    /// Whether anything beyond its networks can be reached.
    external: bool,
}

impl Names {
    /// Notes who is on a network now.
    pub(super) fn update_zone(&self, active: &Active) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let id = active.record.id.clone();
        if !active.record.has_names() || active.members.is_empty() {
            tables.zones.remove(&id);
            return;
        }
        tables
            .zones
            .insert(id, zone(&active.record, active.members.values()));
    }

    /// Notes what one container sees.
    pub(super) fn update_resident(
        &self,
        container: &str,
        attachments: &[Attachment],
        endpoints: &[Endpoint],
        servers: &[IpAddr],
        external: bool,
    ) {
        let links = attachments
            .iter()
            .flat_map(|attachment| &attachment.links)
            .filter_map(|link| {
                let (target, alias) = link.split_once(':').unwrap_or((link, link));
                let alias = alias.rsplit('/').next()?;
                let target = target.trim_start_matches('/');
                Some((alias.to_ascii_lowercase(), target.to_ascii_lowercase()))
            })
            .collect();
        let resident = Resident {
            networks: endpoints
                .iter()
                .map(|endpoint| endpoint.network_id.clone())
                .collect(),
            links,
            servers: servers.to_vec(),
            external,
        };
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.residents.insert(container.to_owned(), resident);
    }

    /// Forgets a container that is gone.
    pub(super) fn forget(&self, container: &str) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.residents.remove(container);
    }
}

fn zone<'a>(network: &Network, members: impl Iterator<Item = &'a Joined>) -> Zone {
    let mut zone = Zone {
        name: network.name.to_ascii_lowercase(),
        ..Zone::default()
    };
    for joined in members {
        let endpoint = &joined.endpoint;
        let v4 = endpoint.ipv4.map(|net| IpAddr::V4(net.addr()));
        let v6 = endpoint.ipv6.map(|net| IpAddr::V6(net.addr()));
        for address in v4.into_iter().chain(v6) {
            for name in [&joined.name].into_iter().chain(&endpoint.names) {
                let of_name = zone.addresses.entry(name.to_ascii_lowercase()).or_default();
                if !of_name.contains(&address) {
                    of_name.push(address);
                }
            }
            let full = format!("{}.{}", joined.name, network.name);
            zone.names.insert(address, full);
        }
    }
    zone
}

/// One container's view of it.
#[derive(Debug)]
pub(super) struct Outlook {
    pub(super) names: Arc<Names>,
    pub(super) container: String,
}

impl Outlook {
    fn first<T>(&self, find: impl Fn(&Zone, &Resident) -> Option<T>) -> Option<T> {
        let tables = self
            .names
            .tables
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let resident = tables.residents.get(&self.container)?;
        resident
            .networks
            .iter()
            .filter_map(|id| tables.zones.get(id))
            .find_map(|zone| find(zone, resident))
    }
}

impl Directory for Outlook {
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.first(|zone, resident| {
            let target = resident.links.get(name).map_or(name, String::as_str);
            let qualified = target
                .strip_suffix(&zone.name)
                .and_then(|head| head.strip_suffix('.'));
            zone.addresses
                .get(target)
                .or_else(|| zone.addresses.get(qualified?))
                .cloned()
        })
    }

    fn name_of(&self, address: IpAddr) -> Option<String> {
        self.first(|zone, _| zone.names.get(&address).cloned())
    }

    fn servers(&self) -> Vec<IpAddr> {
        let tables = self
            .names
            .tables
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        match tables.residents.get(&self.container) {
            Some(resident) if !resident.external => Vec::new(),
            Some(resident) if !resident.servers.is_empty() => resident.servers.clone(),
            _ => host_servers(),
        }
    }
}

/// The host's name servers, as its file says now.
fn host_servers() -> Vec<IpAddr> {
    /// As many as the C library reads (`resolv.conf(5)`).
    const MAX: usize = 3;
    std::fs::read_to_string("/etc/resolv.conf")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
        .take(MAX)
        .collect()
}
