//! Which addresses of a network are given out, and which networks are free.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address was not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It belongs to another network.
    #[error("Requested address is out of range")]
    OutOfRange,
    /// Somebody has it.
    #[error("Address already in use")]
    InUse,
    /// All are given out.
    #[error("no available IPv4 or IPv6 addresses on this network's address pools: {0}")]
    Exhausted(IpNet),
}

/// The addresses of one network.
#[derive(Debug, Clone)]
pub struct AddressPool {
    subnet: IpNet,
    /// Where those come from that nobody chose.
    range: IpNet,
    taken: BTreeSet<IpAddr>,
}

impl AddressPool {
    /// A pool of which nothing is given out but what a network needs itself.
    pub fn new(subnet: IpNet, range: Option<IpNet>) -> Self {
        let mut taken = BTreeSet::from([subnet.network()]);
        if let IpNet::V4(v4) = subnet
            && v4.prefix_len() < 31
        {
            taken.insert(IpAddr::V4(v4.broadcast()));
        }
        Self {
            subnet,
            range: range.unwrap_or(subnet),
            taken,
        }
    }

    /// The network.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// Takes an address: this one, or the lowest that is free.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn take(&mut self, wanted: Option<IpAddr>) -> Result<IpAddr, AddressError> {
        match wanted {
            Some(address) if !self.subnet.contains(&address) => Err(AddressError::OutOfRange),
            Some(address) => match self.taken.insert(address) {
                true => Ok(address),
                false => Err(AddressError::InUse),
            },
            None => {
                let free = self
                    .lowest_free()
                    .ok_or(AddressError::Exhausted(self.subnet))?;
                self.taken.insert(free);
                Ok(free)
            }
        }
    }

    /// Gives an address back.
    pub fn release(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }

    fn lowest_free(&self) -> Option<IpAddr> {
        let last = self.range.broadcast();
        let mut candidate = self.range.network();
        // Walks the taken ones, which are sorted, not the network, which may be huge.
        for taken in self.taken.range(candidate..=last) {
            if *taken != candidate {
                break;
            }
            candidate = next(candidate)?;
        }
        (candidate <= last).then_some(candidate)
    }
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4
            .to_bits()
            .checked_add(1)
            .map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(v6) => v6
            .to_bits()
            .checked_add(1)
            .map(|n| Ipv6Addr::from(n).into()),
    }
}

/// Whether two networks have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// A block of addresses and the size of the networks that it is divided into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultPool {
    /// The block.
    pub base: IpNet,
    /// Length of a network's prefix.
    pub size: u8,
}

/// What dockerd takes networks from when nobody says: the private blocks that its users know.
pub fn default_pools() -> Vec<DefaultPool> {
    let block = |a, b, c, prefix, size| DefaultPool {
        base: IpNet::new_assert(Ipv4Addr::new(a, b, c, 0).into(), prefix),
        size,
    };
    let mut pools: Vec<DefaultPool> = (17..=31).map(|b| block(172, b, 0, 16, 16)).collect();
    pools.push(block(192, 168, 0, 16, 20));
    pools
}

/// The first network of the pools that overlaps none of `used`.
pub fn free_subnet(pools: &[DefaultPool], used: &[IpNet]) -> Option<IpNet> {
    /// As many networks of one pool are tried.
    const TRIES: usize = 4096;
    pools
        .iter()
        .filter_map(|pool| pool.base.subnets(pool.size).ok())
        .flat_map(|subnets| subnets.take(TRIES))
        .find(|candidate| !used.iter().any(|other| overlap(candidate, other)))
}

/// A network of the block for private use (RFC 4193), random as it wants.
pub fn random_ipv6_subnet() -> IpNet {
    let bits: [u8; 7] = rand::random();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&bits);
    IpNet::new_assert(Ipv6Addr::from(octets).into(), 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_free_address_is_given() {
        let mut pool = AddressPool::new(net("10.0.0.0/29"), None);
        pool.take(Some("10.0.0.1".parse().unwrap())).unwrap();
        for expected in ["10.0.0.2", "10.0.0.3", "10.0.0.4"] {
            assert_eq!(pool.take(None).unwrap().to_string(), expected);
        }
        pool.release("10.0.0.3".parse().unwrap());
        assert_eq!(pool.take(None).unwrap().to_string(), "10.0.0.3");
        pool.take(None).unwrap();
        pool.take(None).unwrap();
        assert!(matches!(pool.take(None), Err(AddressError::Exhausted(_))));
        assert_eq!(
            pool.take(Some("10.0.1.1".parse().unwrap())),
            Err(AddressError::OutOfRange)
        );
        assert_eq!(
            pool.take(Some("10.0.0.2".parse().unwrap())),
            Err(AddressError::InUse)
        );
    }

    #[test]
    fn a_range_bounds_what_nobody_chose() {
        let mut pool = AddressPool::new(net("10.0.0.0/16"), Some(net("10.0.5.0/31")));
        assert_eq!(pool.take(None).unwrap().to_string(), "10.0.5.0");
        assert_eq!(pool.take(None).unwrap().to_string(), "10.0.5.1");
        assert!(pool.take(None).is_err());
        assert!(pool.take(Some("10.0.9.9".parse().unwrap())).is_ok());
        let mut edge = AddressPool::new(net("255.255.255.254/31"), None);
        edge.take(None).unwrap();
        assert!(edge.take(None).is_err());
    }

    #[test]
    fn networks_in_use_are_passed_over() {
        let pools = default_pools();
        assert_eq!(free_subnet(&pools, &[]), Some(net("172.17.0.0/16")));
        let used = [net("172.17.4.0/24"), net("172.18.0.0/15")];
        assert_eq!(free_subnet(&pools, &used), Some(net("172.20.0.0/16")));
        assert_eq!(free_subnet(&pools, &[net("0.0.0.0/0")]), None);
    }

    #[test]
    fn a_large_ipv6_network_is_quick() {
        let mut pool = AddressPool::new(net("fd00::/64"), None);
        assert_eq!(pool.take(None).unwrap().to_string(), "fd00::1");
    }
}
