//! Making a network: everything is checked before anything is made.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use axum::http::StatusCode;
use bollard_stubs::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bulkhead_network::addresses::{self, overlap};
use bulkhead_network::link::MAX_INTERFACE_NAME;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize;

use super::model::{Driver, Network, PREDEFINED, Pool};
use super::{Active, Networks, State};
use crate::error::{ApiError, ApiResult};

/// The body of `POST /networks/create`.
#[derive(Debug, Clone, Deserialize)]
pub struct CreateRequest(NetworkCreateRequest);

/// Most networks of addresses that one network has.
const MAX_POOLS: usize = 64;

impl Networks {
    /// Makes a network; gives its ID.
    ///
    /// # Errors
    /// 400 for what cannot be, 403 for addresses that others have, 404 for a driver that is
    /// not there, 409 for a name that is taken.
    pub async fn create(&self, request: CreateRequest) -> ApiResult<String> {
        let request = request.0;
        let _changes = self.changes.lock().await;
        let record = self.with(move |state| state.plan(request)).await??;
        // Stored first: what a crash leaves is a network whose bridge the next start makes.
        self.save(&record).await?;
        let made = record.clone();
        let outcome = self
            .with(move |state| {
                let id = made.id.clone();
                state.networks.insert(id.clone(), Active::new(made));
                let up = state.ensure_up(&id);
                if up.is_err() {
                    state.networks.remove(&id);
                }
                up
            })
            .await?;
        match outcome {
            Ok(None) => {}
            Ok(Some(changed)) => self.save(&changed).await?,
            Err(error) => {
                if let Err(error) = self.store.delete_network(record.id.clone()).await {
                    tracing::error!(%error, "network that could not be made");
                }
                return Err(error);
            }
        }
        self.event(&record, "create", None);
        Ok(record.id)
    }
}

fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, message)
}

impl State {
    fn plan(&mut self, request: NetworkCreateRequest) -> ApiResult<Network> {
        check_reach(&request)?;
        let mut request = request;
        let config_from = self.take_configuration(&mut request)?;
        let config_only = request.config_only == Some(true);
        let name = check_name(&request.name)?;
        let driver = match config_only {
            // Whoever takes the configuration says what makes a network of it.
            true => Driver::Null,
            false => check_driver(request.driver.as_deref())?,
        };
        if self
            .networks
            .values()
            .any(|active| active.record.name == name)
        {
            return Err(ApiError::conflict(format!(
                "network with name {name} already exists"
            )));
        }
        let id = super::super::containers::new_id();
        let options: BTreeMap<_, _> = request.options.into_iter().flatten().collect();
        let bridge = match options.get("com.docker.network.bridge.name") {
            _ if config_only => String::new(),
            Some(name) if !name.is_empty() => self.check_bridge_name(name)?,
            _ => format!("br-{}", &id[..12]),
        };
        check_options(&options)?;
        let ipam = request.ipam.unwrap_or_default();
        match ipam.driver.as_deref() {
            None | Some("" | "default") => {}
            Some(other) => {
                return Err(ApiError::not_found(format!("plugin \"{other}\" not found")));
            }
        }
        let ipv4 = request.enable_ipv4.unwrap_or(true);
        let ipv6 = request.enable_ipv6.unwrap_or(false);
        if !ipv4 && !ipv6 {
            return Err(ApiError::bad_request("IPv4 or IPv6 must be enabled"));
        }
        let internal = request.internal.unwrap_or(false);
        let configs = ipam.config.unwrap_or_default();
        let (pools, idle_pools) = match config_only {
            true => (configured_pools(&configs)?, Vec::new()),
            false => {
                let (used, idle) =
                    configs.into_iter().partition::<Vec<_>, _>(|config| {
                        match config.subnet.as_deref().map(str::parse) {
                            Some(Ok(IpNet::V4(_))) => ipv4,
                            Some(Ok(IpNet::V6(_))) => ipv6,
                            _ => true,
                        }
                    });
                let pools = self.pools(&used, [ipv4, ipv6], &bridge)?;
                (pools, configured_pools(&idle)?)
            }
        };
        Ok(Network {
            id,
            name: name.to_owned(),
            created: Timestamp::now(),
            driver,
            ipv4,
            ipv6,
            internal,
            attachable: request.attachable.unwrap_or(false),
            labels: request.labels.into_iter().flatten().collect(),
            options,
            ipam_options: ipam.options.map(|options| options.into_iter().collect()),
            pools,
            idle_pools,
            bridge,
            config_only,
            config_from,
        })
    }

    /// Fills in the configuration of the network that a request takes it from, whose name
    /// comes back.
    fn take_configuration(&self, request: &mut NetworkCreateRequest) -> ApiResult<String> {
        let from = request.config_from.take().and_then(|from| from.network);
        let Some(from) = from.filter(|name| !name.is_empty()) else {
            return Ok(String::new());
        };
        if request.config_only == Some(true) {
            return Err(forbidden(
                "a configuration network cannot depend on another configuration network",
            ));
        }
        let mut networks = self.networks.values().map(|active| &active.record);
        let Some(source) = networks.find(|record| record.config_only && record.name == from) else {
            return Err(ApiError::not_found(format!(
                "configuration network \"{from}\" does not exist"
            )));
        };
        let ipam = request.ipam.take().unwrap_or_default();
        if request.options.as_ref().is_some_and(|own| !own.is_empty()) {
            return Err(forbidden(
                "network driver options are not supported if the network depends on a \
                 configuration network",
            ));
        }
        let is_own = request.labels.as_ref().is_some_and(|own| !own.is_empty())
            || request.enable_ipv4 == Some(false)
            || request.enable_ipv6 == Some(true)
            || ipam.config.is_some_and(|own| !own.is_empty())
            || ipam.options.is_some_and(|own| !own.is_empty());
        if is_own {
            return Err(forbidden(
                "user specified configurations are not supported if the network depends on a \
                 configuration network",
            ));
        }
        request.labels = Some(source.labels.clone().into_iter().collect());
        request.options = Some(source.options.clone().into_iter().collect());
        request.enable_ipv4 = Some(source.ipv4);
        request.enable_ipv6 = Some(source.ipv6);
        let options = source.ipam_options.clone();
        request.ipam = Some(Ipam {
            driver: None,
            config: Some(source.pools.iter().map(configuration).collect()),
            options: options.map(|options| options.into_iter().collect()),
        });
        Ok(from)
    }

    fn check_bridge_name(&self, name: &str) -> ApiResult<String> {
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if !plain || name.len() > MAX_INTERFACE_NAME || matches!(name, "." | "..") {
            return Err(ApiError::bad_request(format!(
                "invalid bridge name \"{name}\""
            )));
        }
        let networks = &self.networks;
        if let Some(active) = networks.values().find(|one| one.record.bridge == name) {
            return Err(forbidden(format!(
                "bridge name conflicts with network {} ({name}): networks have same bridge name",
                active.record.id
            )));
        }
        Ok(name.to_owned())
    }

    fn pools(
        &mut self,
        configs: &[IpamConfig],
        [ipv4, ipv6]: [bool; 2],
        bridge: &str,
    ) -> ApiResult<Vec<Pool>> {
        if configs.len() > MAX_POOLS {
            return Err(ApiError::bad_request("too many IPAM configurations"));
        }
        let mut pools: Vec<Pool> = Vec::new();
        // Addresses without a network are of one that is chosen.
        let mut rest = None;
        for config in configs {
            match config.subnet.as_deref() {
                None | Some("") => rest = Some(config),
                Some(text) => {
                    let subnet = parse_network("subnet", text)?;
                    pools.push(pool(subnet, config)?);
                }
            }
        }
        let count = |pools: &[Pool], v6: bool| {
            let of = |pool: &&Pool| matches!(pool.subnet, IpNet::V6(_)) == v6;
            pools.iter().filter(of).count()
        };
        let has = |pools: &[Pool], v6: bool| count(pools, v6) > 0;
        if count(&pools, false) > 1 || count(&pools, true) > 1 {
            return Err(forbidden("bridge driver doesn't support multiple subnets"));
        }
        if ipv4 && !has(&pools, false) {
            let mut chosen = self.choose_pool("", bridge)?;
            if let Some(config) = rest {
                chosen = Pool {
                    configured: false,
                    ..pool(chosen.subnet, config)?
                };
            }
            pools.insert(0, chosen);
        }
        if ipv6 && !has(&pools, true) {
            let subnet = addresses::random_ipv6_subnet();
            pools.push(Pool {
                configured: false,
                ..pool(subnet, &IpamConfig::default())?
            });
        }
        self.check_overlaps(&pools)?;
        Ok(pools)
    }

    fn check_overlaps(&self, pools: &[Pool]) -> ApiResult<()> {
        let mut used = self.own_subnets("");
        used.extend(self.foreign_subnets()?);
        for pool in pools {
            if used.iter().any(|other| overlap(&pool.subnet, other)) {
                return Err(forbidden(
                    "Pool overlaps with other one on this address space",
                ));
            }
            used.push(pool.subnet);
        }
        Ok(())
    }
}

/// What a configuration for others says of addresses; which of them are free is seen by
/// whoever takes it.
fn configured_pools(configs: &[IpamConfig]) -> ApiResult<Vec<Pool>> {
    let pools = configs.iter().map(|config| {
        let subnet = config.subnet.as_deref().filter(|text| !text.is_empty());
        let subnet = subnet.ok_or_else(|| {
            ApiError::bad_request("invalid network config: a configuration network needs a subnet")
        })?;
        let own_gateway = config.gateway.as_deref().is_some_and(|own| !own.is_empty());
        let mut pool = pool(parse_network("subnet", subnet)?, config)?;
        pool.gateway = pool.gateway.filter(|_| own_gateway);
        Ok(pool)
    });
    pools.collect()
}

/// What was asked for to get these addresses.
fn configuration(pool: &Pool) -> IpamConfig {
    let reserved = pool.reserved.iter();
    IpamConfig {
        subnet: Some(pool.subnet.to_string()),
        ip_range: pool.range.map(|range| range.to_string()),
        gateway: pool.gateway.map(|gateway| gateway.to_string()),
        auxiliary_addresses: Some(
            reserved
                .map(|(name, address)| (name.clone(), address.to_string()))
                .collect(),
        ),
    }
}

/// A network with the addresses that a configuration names.
fn pool(subnet: IpNet, config: &IpamConfig) -> ApiResult<Pool> {
    let range = match config.ip_range.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let range = parse_network("ip-range", text)?;
            if !subnet.contains(&range) {
                return Err(ApiError::bad_request(format!(
                    "invalid network config: IP range {range} is not in subnet {subnet}"
                )));
            }
            Some(range)
        }
    };
    let mut taken = vec![subnet.network()];
    if subnet.prefix_len() < subnet.max_prefix_len() - 1 && subnet.network().is_ipv4() {
        taken.push(subnet.broadcast());
    }
    let mut own = |what: &str, text: &str| -> ApiResult<IpAddr> {
        // A gateway may be given with its prefix.
        let bare = text.split('/').next().unwrap_or_default();
        let address: IpAddr = bare
            .parse()
            .map_err(|_| ApiError::bad_request(format!("invalid {what} address: {text}")))?;
        if !subnet.contains(&address) {
            return Err(ApiError::bad_request(format!(
                "failed to allocate {what} ({address}): Requested address is out of range"
            )));
        }
        if taken.contains(&address) {
            return Err(forbidden(format!(
                "failed to allocate {what} ({address}): Address already in use"
            )));
        }
        taken.push(address);
        Ok(address)
    };
    let configured = config.gateway.as_deref().filter(|text| !text.is_empty());
    let mut gateway = configured.map(|text| own("gateway", text)).transpose()?;
    let mut reserved = BTreeMap::new();
    let empty = HashMap::new();
    let auxiliary = config.auxiliary_addresses.as_ref().unwrap_or(&empty);
    for (name, text) in auxiliary {
        reserved.insert(name.clone(), own("auxiliary", text)?);
    }
    if gateway.is_none() {
        gateway = range
            .unwrap_or(subnet)
            .hosts()
            .take(taken.len() + 2)
            .find(|address| !taken.contains(address) && subnet.contains(address));
    }
    if gateway.is_none() {
        return Err(ApiError::bad_request(format!(
            "failed to allocate gateway: no available addresses in {subnet}"
        )));
    }
    Ok(Pool {
        subnet,
        range,
        gateway,
        reserved,
        configured: true,
    })
}

fn parse_network(what: &str, text: &str) -> ApiResult<IpNet> {
    let net: IpNet = text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "invalid network config: invalid {what} {text}: invalid CIDR address: {text}"
        ))
    })?;
    if what == "subnet" && net.prefix_len() == 0 {
        return Err(ApiError::bad_request(format!(
            "invalid network config: invalid subnet {text}"
        )));
    }
    if net != net.trunc() {
        return Err(ApiError::bad_request(format!(
            "invalid network config: invalid {what} {net}: it should be {}",
            net.trunc()
        )));
    }
    Ok(net)
}

fn check_name(name: &str) -> ApiResult<&str> {
    if PREDEFINED.contains(&name) || name == "default" {
        return Err(forbidden(format!(
            "operation is not permitted on predefined {name} network "
        )));
    }
    // Without a slash: paths of the API name a network as one part.
    let valid =
        !name.trim().is_empty() && !name.contains('/') && !name.chars().any(char::is_control);
    match valid {
        true => Ok(name),
        false => Err(ApiError::bad_request(format!(
            "invalid network name: {name:?}"
        ))),
    }
}

/// Refuses what goes beyond this host, and what is no configuration in one that is for others.
fn check_reach(request: &NetworkCreateRequest) -> ApiResult<()> {
    let scope = request.scope.as_deref().filter(|scope| !scope.is_empty());
    let has_operator_fields = [request.ingress, request.internal, request.attachable]
        .contains(&Some(true))
        || scope.is_some();
    if request.config_only == Some(true) && has_operator_fields {
        return Err(forbidden(
            "configuration network can only contain network specific fields. Network operator \
             fields like [ ingress | internal | attachable | scope ] are not supported.",
        ));
    }
    if request.ingress == Some(true) {
        return Err(forbidden("ingress networks need a swarm"));
    }
    match scope {
        None | Some("local") => Ok(()),
        Some(scope) => Err(forbidden(format!(
            "cannot create a network of scope {scope}: this node is not a swarm manager"
        ))),
    }
}

fn check_driver(driver: Option<&str>) -> ApiResult<Driver> {
    match driver {
        None | Some("" | "bridge" | "default") => Ok(Driver::Bridge),
        Some(one @ ("host" | "null")) => Err(forbidden(format!(
            "only one instance of \"{one}\" network is allowed"
        ))),
        Some(other) => Err(ApiError::not_found(format!("plugin \"{other}\" not found"))),
    }
}

/// What Go reads as a truth value.
const BOOLEANS: [&str; 12] = [
    "1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False",
];

fn check_options(options: &BTreeMap<String, String>) -> ApiResult<()> {
    for (key, value) in options {
        let short = key.strip_prefix("com.docker.network.").unwrap_or_default();
        let valid = match short {
            "bridge.enable_icc" | "bridge.enable_ip_masquerade" => {
                BOOLEANS.contains(&value.as_str())
            }
            "driver.mtu" => value
                .parse()
                .is_ok_and(|mtu: u32| (68..=65_535).contains(&mtu)),
            "bridge.host_binding_ipv4" => value.parse::<std::net::Ipv4Addr>().is_ok(),
            _ => true,
        };
        if !valid {
            return Err(ApiError::bad_request(format!(
                "invalid value for option {key}: {value}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(subnet: &str, range: &str, gateway: &str) -> ApiResult<Pool> {
        pool(
            parse_network("subnet", subnet)?,
            &IpamConfig {
                ip_range: Some(range.to_owned()),
                gateway: Some(gateway.to_owned()),
                ..IpamConfig::default()
            },
        )
    }

    #[test]
    fn a_gateway_is_found() {
        let gateway = |subnet, range, gateway| {
            config(subnet, range, gateway)
                .unwrap()
                .gateway
                .unwrap()
                .to_string()
        };
        assert_eq!(gateway("10.1.0.0/16", "", ""), "10.1.0.1");
        assert_eq!(gateway("10.1.0.0/16", "", "10.1.255.254"), "10.1.255.254");
        assert_eq!(gateway("fd00:1::/64", "", ""), "fd00:1::1");
    }

    #[test]
    fn what_is_outside_is_refused() {
        for (subnet, range, gateway, status) in [
            ("10.1.0.0", "", "", 400),
            ("10.1.0.0/33", "", "", 400),
            ("0.0.0.0/0", "", "", 400),
            ("10.1.0.0/16", "10.2.0.0/24", "", 400),
            ("10.1.0.0/16", "", "10.2.0.1", 400),
            ("10.1.0.0/16", "", "x", 400),
            ("10.1.0.0/16", "", "10.1.0.0", 403),
            ("10.1.0.0/32", "", "", 400),
        ] {
            let error = config(subnet, range, gateway).unwrap_err();
            assert_eq!(error.status.as_u16(), status, "{subnet} {range} {gateway}");
        }
    }

    #[test]
    fn names_and_drivers() {
        assert!(check_name("a b").is_ok());
        assert_eq!(check_name("").unwrap_err().status.as_u16(), 400);
        assert_eq!(check_name("host").unwrap_err().status.as_u16(), 403);
        let driver = |driver: &str| check_driver(Some(driver));
        assert_eq!(driver("bridge").unwrap(), Driver::Bridge);
        let error = driver("nosuch").unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.message.as_str()),
            (404, "plugin \"nosuch\" not found")
        );
        assert_eq!(driver("host").unwrap_err().status.as_u16(), 403);
    }
}
