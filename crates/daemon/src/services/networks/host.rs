//! What the host has of networks: bridges, the table of rules, what others use.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use bulkhead_network::addresses::{self, DefaultPool};
use bulkhead_network::conntrack::{self, Changed};
use bulkhead_network::firewall::{BridgeRules, Firewall, PortRule};
use bulkhead_network::link::{self, BridgeConfig, InterfaceAddress, LinkError};
use bulkhead_network::ports::Protocol;
use ipnet::IpNet;

use super::model::{Driver, Network, Pool};
use super::{Active, State};
use crate::config::Config;
use crate::error::{ApiError, ApiResult};

/// Daemons that choose a network for themselves do so one after the other.
const LOCK: &str = "/run/lock/bulkhead-networks.lock";

/// Aliases of interfaces of all bulkhead daemons begin like this.
const ALIAS: &str = "bulkhead ";

/// What belongs to this daemon and nobody else.
#[derive(Debug)]
pub(super) struct Host {
    firewall: Firewall,
    /// What our interfaces are labelled with.
    alias: String,
    /// Name of the default bridge.
    default_bridge: String,
    pools: Vec<DefaultPool>,
    /// Largest packet on networks that don't say.
    mtu: Option<u32>,
    /// Whether the table may be there: an earlier daemon may have left it.
    loaded: bool,
    /// Ports of datagrams that the table carries, and where to.
    datagrams: BTreeMap<SocketAddr, SocketAddr>,
    /// Whether packets for 127.0.0.0/8 can be sent to containers.
    local_routes: bool,
}

impl Host {
    pub(super) fn new(config: &Config) -> Self {
        let exec_root = config.exec_root.to_string_lossy();
        let tag: String = bulkhead_image::Digest::of(exec_root.as_bytes())
            .hex()
            .chars()
            .take(8)
            .collect();
        let default_bridge = match exec_root.as_ref() {
            "/run/bulkhead" => "bulkhead0".to_owned(),
            _ => format!("bh-{tag}"),
        };
        Self {
            firewall: Firewall::new(format!("bulkhead_{tag}")),
            // As long as the kernel takes (IFALIASZ), else what stands for it.
            alias: match exec_root.len() < 240 {
                true => format!("{ALIAS}{exec_root}"),
                false => format!("{ALIAS}{tag}"),
            },
            default_bridge,
            pools: addresses::default_pools(),
            mtu: None,
            loaded: true,
            datagrams: BTreeMap::new(),
            local_routes: true,
        }
    }

    /// What interfaces of ours are labelled with.
    pub(super) fn alias(&self) -> &str {
        &self.alias
    }

    /// Ends the flows that go another way than these rules, which hold now, say.
    fn carries(&mut self, rules: &[PortRule]) {
        let rules = rules.iter().filter(|rule| rule.protocol == Protocol::Udp);
        let now: BTreeMap<_, _> = rules.map(|rule| (rule.host, rule.container)).collect();
        let before = std::mem::replace(&mut self.datagrams, now);
        let ports: BTreeSet<_> = before.keys().chain(self.datagrams.keys()).collect();
        let changed: Vec<Changed> = ports
            .into_iter()
            .map(|host| (*host, self.datagrams.get(host).copied()))
            .filter(|(host, target)| before.get(host).copied() != *target)
            .map(|(host, target)| Changed { host, target })
            .collect();
        // Without that, clients that never pause are without an answer for longer.
        match conntrack::forget(&changed) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "ended flows of datagrams"),
            Err(error) => tracing::warn!(%error, "cannot end flows of datagrams"),
        }
    }

    pub(super) fn mtu_of(&mut self, network: &Network) -> u32 {
        let uplink = &mut self.mtu;
        network
            .mtu()
            .unwrap_or_else(|| *uplink.get_or_insert_with(link::uplink_mtu))
    }
}

/// Keeps other daemons from choosing a network meanwhile.
fn lock() -> ApiResult<OwnedFd> {
    let failed = |error: std::io::Error| ApiError::internal(format!("lock {LOCK}"), &error);
    let _ = std::fs::create_dir_all("/run/lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(LOCK)
        .map_err(failed)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| failed(error.into()))?;
    Ok(file.into())
}

pub(super) fn link_error(error: LinkError) -> ApiError {
    ApiError::internal("network", &error)
}

impl State {
    /// Networks that this daemon has.
    pub(super) fn own_subnets(&self, except: &str) -> Vec<IpNet> {
        self.networks
            .values()
            .filter(|active| active.record.id != except && !active.record.config_only)
            .flat_map(|active| active.record.pools.iter().map(|pool| pool.subnet))
            .collect()
    }

    /// Networks that the host has routes to, beside those over these interfaces.
    fn host_subnets(&self, except: &str) -> ApiResult<Vec<IpNet>> {
        let own: HashSet<u32> = link::links()
            .map_err(link_error)?
            .into_iter()
            .filter(|link| !except.is_empty() && link.name == except)
            .map(|link| link.index)
            .collect();
        Ok(link::host_routes()
            .map_err(link_error)?
            .into_iter()
            .filter(|route| !own.contains(&route.interface))
            .filter_map(|route| IpNet::new(route.address, route.prefix).ok())
            .collect())
    }

    /// Networks that other daemons of ours have on this host.
    pub(super) fn foreign_subnets(&self) -> ApiResult<Vec<IpNet>> {
        let foreign: HashSet<u32> = link::links()
            .map_err(link_error)?
            .into_iter()
            .filter(|link| {
                link.alias
                    .as_deref()
                    .is_some_and(|alias| alias.starts_with(ALIAS) && alias != self.host.alias)
            })
            .map(|link| link.index)
            .collect();
        Ok(link::host_routes()
            .map_err(link_error)?
            .into_iter()
            .filter(|route| foreign.contains(&route.interface))
            .filter_map(|route| IpNet::new(route.address, route.prefix).ok())
            .collect())
    }

    /// A network of addresses that nobody uses, with the host's address in it.
    pub(super) fn choose_pool(&self, network: &str, bridge: &str) -> ApiResult<Pool> {
        let mut used = self.own_subnets(network);
        used.extend(self.host_subnets(bridge)?);
        let subnet = addresses::free_subnet(&self.host.pools, &used).ok_or_else(|| {
            ApiError::not_found(
                "could not find an available, non-overlapping IPv4 address pool among the \
                 defaults to assign to the network",
            )
        })?;
        Ok(Pool {
            subnet,
            range: None,
            gateway: subnet.hosts().next(),
            reserved: Default::default(),
            configured: false,
        })
    }

    /// Fills in what the default bridge needs.
    pub(super) fn default_bridge(&mut self, mut record: Network) -> ApiResult<Network> {
        record.bridge.clone_from(&self.host.default_bridge);
        record.pools = vec![self.choose_pool(&record.id, &record.bridge)?];
        record.options = [
            (
                "com.docker.network.bridge.default_bridge",
                "true".to_owned(),
            ),
            ("com.docker.network.bridge.enable_icc", "true".to_owned()),
            (
                "com.docker.network.bridge.enable_ip_masquerade",
                "true".to_owned(),
            ),
            (
                "com.docker.network.bridge.host_binding_ipv4",
                "0.0.0.0".to_owned(),
            ),
            ("com.docker.network.bridge.name", record.bridge.clone()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        Ok(record)
    }

    /// Makes sure that a network's bridge is there; says what changed: the record, when
    /// somebody else has taken its addresses meanwhile and it could have others.
    pub(super) fn ensure_up(&mut self, id: &str) -> ApiResult<Option<Network>> {
        let Some(active) = self.networks.get(id) else {
            return Err(ApiError::not_found(format!("network {id} not found")));
        };
        if active.up || active.record.driver != Driver::Bridge {
            return Ok(None);
        }
        let mut record = active.record.clone();
        let unused = active.members.is_empty();
        let _lock = lock()?;
        let mut changed = None;
        let others = self.host_subnets(&record.bridge)?;
        let clash = record.pools.iter().any(|pool| {
            !pool.configured
                && others
                    .iter()
                    .any(|other| addresses::overlap(&pool.subnet, other))
        });
        if clash && unused {
            let (v6, mut pools): (Vec<Pool>, Vec<Pool>) = record
                .pools
                .drain(..)
                .partition(|pool| matches!(pool.subnet, IpNet::V6(_)));
            for pool in &mut pools {
                if !pool.configured {
                    *pool = self.choose_pool(&record.id, &record.bridge)?;
                }
            }
            pools.extend(v6);
            record.pools = pools;
            // An interface that is left from before has the old address.
            link::delete(&record.bridge).map_err(link_error)?;
            changed = Some(record.clone());
            self.networks
                .insert(record.id.clone(), Active::new(record.clone()));
        }
        self.make_bridge(&record)?;
        if let Some(active) = self.networks.get_mut(id) {
            active.up = true;
        }
        if let Err(error) = self.apply_rules() {
            if let Some(active) = self.networks.get_mut(id) {
                active.up = false;
            }
            let _ = link::delete(&record.bridge);
            return Err(error);
        }
        Ok(changed)
    }

    fn make_bridge(&mut self, record: &Network) -> ApiResult<()> {
        if !record.internal {
            let failed = |error| ApiError::internal("enable forwarding", &error);
            link::enable_forwarding(false).map_err(failed)?;
            if record.ipv6 {
                link::enable_forwarding(true).map_err(failed)?;
            }
        }
        let addresses: Vec<InterfaceAddress> = record
            .pools
            .iter()
            .filter_map(|pool| {
                Some(InterfaceAddress {
                    address: pool.gateway?,
                    prefix: pool.subnet.prefix_len(),
                })
            })
            .collect();
        let mtu = self.host.mtu_of(record);
        link::ensure_bridge(&BridgeConfig {
            name: &record.bridge,
            alias: &self.host.alias,
            mtu,
            addresses: &addresses,
        })
        .map_err(|error| match error.is_taken() {
            true => ApiError::new(
                axum::http::StatusCode::FORBIDDEN,
                format!(
                    "network interface {} exists and does not belong to this daemon",
                    record.bridge
                ),
            ),
            false => link_error(error),
        })?;
        // Without that, the proxies carry what comes from the host's loopback.
        self.host.local_routes &= link::allow_local_routes(&record.bridge);
        Ok(())
    }

    /// Loads the rules that hold now.
    pub(super) fn apply_rules(&mut self) -> ApiResult<()> {
        let bridges: Vec<BridgeRules> = self
            .networks
            .values()
            .filter(|active| active.up)
            .map(|active| BridgeRules {
                bridge: active.record.bridge.clone(),
                subnets: active.record.pools.iter().map(|pool| pool.subnet).collect(),
                internal: active.record.internal,
                masquerade: active.record.masquerades(),
            })
            .collect();
        let failed = |error| ApiError::internal("network", &error);
        if bridges.is_empty() {
            if self.host.loaded {
                self.host.firewall.remove().map_err(failed)?;
                self.host.loaded = false;
            }
            self.host.carries(&[]);
            return Ok(());
        }
        let ports: Vec<_> = self
            .sandboxes
            .values()
            .flat_map(|live| &live.publications)
            .filter_map(|publication| publication.rule())
            .filter(|rule| {
                self.host.local_routes
                    || !matches!(rule.host.ip(), IpAddr::V4(v4) if v4.is_loopback())
            })
            .collect();
        self.host.loaded = true;
        self.host
            .firewall
            .apply(&bridges, &ports, self.host.local_routes)
            .map_err(failed)?;
        self.host.carries(&ports);
        Ok(())
    }

    /// Removes what a killed daemon left: interfaces of ours that nobody here knows.
    pub(super) fn sweep(&mut self) -> ApiResult<()> {
        let known: HashSet<&str> = self
            .networks
            .values()
            .flat_map(|active| {
                active
                    .up
                    .then_some(active.record.bridge.as_str())
                    .into_iter()
                    .chain(
                        active
                            .members
                            .values()
                            .map(|joined| joined.endpoint.host_interface.as_str()),
                    )
            })
            .collect();
        let unfinished = link::unfinished_name(&self.host.alias);
        for found in link::links().map_err(link_error)? {
            let ours = found.alias.as_deref() == Some(&self.host.alias) || found.name == unfinished;
            if !ours || known.contains(found.name.as_str()) {
                continue;
            }
            tracing::info!(interface = %found.name, "sweeping an interface that nobody uses");
            if let Err(error) = link::delete(&found.name) {
                tracing::error!(%error, "interface left behind");
            }
        }
        let unused = self.networks.values().all(|active| !active.up);
        match self.apply_rules() {
            // A host without the program has no table of ours; who needs one is told.
            Err(error) if unused => {
                tracing::debug!(%error, "no rules to remove");
                self.host.loaded = false;
                Ok(())
            }
            other => other,
        }
    }

    /// Takes a network's interface away.
    pub(super) fn take_down(&mut self, id: &str) -> ApiResult<()> {
        let Some(active) = self.networks.get_mut(id) else {
            return Ok(());
        };
        if active.record.driver != Driver::Bridge || !active.up {
            return Ok(());
        }
        link::delete(&active.record.bridge).map_err(link_error)?;
        active.up = false;
        Ok(())
    }
}
