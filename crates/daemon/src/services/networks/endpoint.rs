//! What a container has on one network: its addresses, its hardware address, its names.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::StatusCode;
use bulkhead_network::addresses::AddressError;
use bulkhead_network::link::InterfaceAddress;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Active;
use super::model::{Attachment, Endpoint, Network};
use super::sandbox::Member;
use crate::error::{ApiError, ApiResult};

/// The addresses that it has, one of each family at most.
pub(super) fn addresses_of(endpoint: &Endpoint) -> impl Iterator<Item = InterfaceAddress> {
    let v4 = endpoint.ipv4.map(|net| InterfaceAddress {
        address: IpAddr::V4(net.addr()),
        prefix: net.prefix_len(),
    });
    let v6 = endpoint.ipv6.map(|net| InterfaceAddress {
        address: IpAddr::V6(net.addr()),
        prefix: net.prefix_len(),
    });
    v4.into_iter().chain(v6)
}

/// What a container is called on a network, without repetition.
pub(super) fn names_of(member: &Member, attachment: &Attachment) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let short = member.id[..12].to_owned();
    let all = [member.name.clone()]
        .into_iter()
        .chain(attachment.aliases.iter().cloned())
        .chain([short, member.hostname.clone()]);
    for name in all {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// As Docker made them for a decade: the address in it makes it unique on its network.
pub(super) fn made_up_mac(address: Option<Ipv4Addr>) -> [u8; 6] {
    let [a, b, c, d] = address.map_or_else(rand::random, |address| address.octets());
    [0x02, 0x42, a, b, c, d]
}

/// Takes an address of each family that the network has.
pub(super) fn take_addresses(
    active: &mut Active,
    attachment: &Attachment,
    endpoint: &mut Endpoint,
) -> ApiResult<()> {
    check_wishes(&active.record, attachment)?;
    let internal = active.record.internal;
    let mut taken: Vec<IpAddr> = Vec::new();
    let mut outcome = Ok(());
    for v6 in [false, true] {
        let wanted = match v6 {
            false => attachment.ipv4.map(IpAddr::V4),
            true => attachment.ipv6.map(IpAddr::V6),
        };
        match take_one(active, v6, wanted) {
            Ok(None) => {}
            Ok(Some((index, address))) => {
                taken.push(address);
                let pool = &active.record.pools[index];
                let prefix = pool.subnet.prefix_len();
                let gateway = pool.gateway.filter(|_| !internal);
                match address {
                    IpAddr::V4(v4) => {
                        endpoint.ipv4 = Ipv4Net::new(v4, prefix).ok();
                        endpoint.gateway = gateway.and_then(|gateway| match gateway {
                            IpAddr::V4(v4) => Some(v4),
                            IpAddr::V6(_) => None,
                        });
                    }
                    IpAddr::V6(v6) => {
                        endpoint.ipv6 = Ipv6Net::new(v6, prefix).ok();
                        endpoint.gateway6 = gateway.and_then(|gateway| match gateway {
                            IpAddr::V6(v6) => Some(v6),
                            IpAddr::V4(_) => None,
                        });
                    }
                }
            }
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    if outcome.is_err() {
        for address in taken {
            for pool in &mut active.pools {
                pool.release(address);
            }
        }
    }
    outcome
}

/// Refuses what cannot be had of a network.
///
/// # Errors
/// 400 for addresses and names that nobody chooses there, 403 where nobody can be.
pub fn check_wishes(record: &Network, attachment: &Attachment) -> ApiResult<()> {
    check_joinable(record)?;
    let wishes = attachment.ipv4.is_some() || attachment.ipv6.is_some();
    if record.is_predefined() {
        if wishes {
            return Err(ApiError::bad_request(
                "user specified IP address is supported on user defined networks only",
            ));
        }
        if !attachment.aliases.is_empty() {
            return Err(ApiError::bad_request(
                "network-scoped alias is supported only for containers in user defined networks",
            ));
        }
    }
    let configured = |v6: bool| {
        record
            .pools
            .iter()
            // Of a family that the network does not use: the wish is kept, and no more.
            .chain(&record.idle_pools)
            .any(|pool| pool.configured && matches!(pool.subnet, IpNet::V6(_)) == v6)
    };
    if (attachment.ipv4.is_some() && !configured(false))
        || (attachment.ipv6.is_some() && !configured(true))
    {
        return Err(ApiError::bad_request(
            "user specified IP address is supported only when connecting to networks with user \
             configured subnets",
        ));
    }
    Ok(())
}

/// Refuses a network that is only there for its configuration.
pub(super) fn check_joinable(record: &Network) -> ApiResult<()> {
    match record.config_only {
        false => Ok(()),
        true => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "cannot create endpoint on configuration-only network",
        )),
    }
}

/// Takes an address of one family; `None` when the network hasn't that family.
fn take_one(
    active: &mut Active,
    v6: bool,
    wanted: Option<IpAddr>,
) -> ApiResult<Option<(usize, IpAddr)>> {
    let mut refused = None;
    for (index, pool) in active.pools.iter_mut().enumerate() {
        if matches!(pool.subnet(), IpNet::V6(_)) != v6 {
            continue;
        }
        match pool.take(wanted) {
            Ok(address) => return Ok(Some((index, address))),
            // Another pool of the network may have it.
            Err(error) => refused = Some(error),
        }
    }
    match (refused, wanted) {
        (None, _) => Ok(None),
        (Some(AddressError::InUse), _) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            AddressError::InUse.to_string(),
        )),
        (Some(error @ AddressError::Exhausted(_)), _) => Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
        )),
        (_, Some(address)) => Err(ApiError::bad_request(format!(
            "Invalid address {address}: It does not belong to any of this network's subnets"
        ))),
        (Some(error), None) => Err(ApiError::bad_request(error.to_string())),
    }
}
