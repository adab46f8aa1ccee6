//! Addresses: which subnet a network gets, and which address an endpoint gets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portolan_model::{Family, Id, Mac, Name, Network, Pool, Subnet};

use crate::error::{Error, Result};
use crate::kernel::HostRoute;
use crate::store::Tx;

/// The prefix length of subnets from the IPv4 pool, unless another is asked for: 253 containers.
pub(crate) const POOL_PREFIX: u8 = 24;
/// That of subnets of our unique local addresses.
pub(crate) const POOL_PREFIX6: u8 = 64;

/// Private space (RFC 1918) that IPv4 subnets are taken from, in order: what people expect of a container network,
/// then the rest. Room for 68,000 networks.
const POOLS: [&str; 4] = ["172.17.0.0/16", "172.18.0.0/15", "172.20.0.0/14", "172.24.0.0/13"];
const MORE_POOLS: [&str; 2] = ["10.0.0.0/8", "192.168.0.0/16"];

/// What else has addresses: networks of ours, pools that were given to others, and routes of the host.
pub(crate) struct Occupied<'a> {
    nets: Vec<(IpNet, Holder)>,
    /// The name of the interface with an index. Asked only where something is in the way.
    interface_name: &'a dyn Fn(u32) -> Option<String>,
}

enum Holder {
    Network(Name),
    Pool,
    Route { device: Option<u32>, table: u32 },
}

impl<'a> Occupied<'a> {
    /// The networks come first: what is in the way is called a network before the route of its bridge.
    pub(crate) fn new<'n>(
        networks: impl IntoIterator<Item = &'n Network>,
        routes: &[HostRoute],
        interface_name: &'a dyn Fn(u32) -> Option<String>,
    ) -> Self {
        let ours = networks.into_iter().flat_map(|network| {
            network.subnets.iter().map(|subnet| (subnet.net, Holder::Network(network.name.clone())))
        });
        let theirs = routes.iter().map(|route| (route.net, Holder::Route { device: route.device, table: route.table }));
        Self { nets: ours.chain(theirs).collect(), interface_name }
    }

    /// Takes a subnet out of what is free.
    pub(crate) fn add(&mut self, net: IpNet, name: &Name) {
        self.nets.push((net, Holder::Network(name.clone())));
    }

    /// Takes pools out of what is free.
    pub(crate) fn with_pools(mut self, pools: &[Pool]) -> Self {
        self.nets.extend(pools.iter().map(|pool| (pool.subnet.net, Holder::Pool)));
        self
    }

    /// What `net` overlaps.
    pub(crate) fn collision(&self, net: IpNet) -> Option<String> {
        self.find(net).map(|(net, holder)| self.tell(*net, holder))
    }

    fn find(&self, net: IpNet) -> Option<&(IpNet, Holder)> {
        self.nets.iter().find(|(other, _)| overlap(net, *other))
    }

    fn tell(&self, net: IpNet, holder: &Holder) -> String {
        match holder {
            Holder::Network(name) => as_network(name, net),
            Holder::Pool => as_pool(net),
            Holder::Route { device, table } => {
                let device =
                    device.and_then(self.interface_name).map_or_else(String::new, |device| format!(" dev {device}"));
                // The main and the local table (rtnetlink(7)).
                let table = if matches!(table, 254 | 255) { String::new() } else { format!(" in table {table}") };
                format!("the host's route {net}{device}{table}")
            }
        }
    }

    /// The first free IPv4 subnet of this prefix length in the pools.
    pub(crate) fn free_v4(&self, prefix: u8) -> Result<Ipv4Net> {
        let mut taken: Vec<(u64, u64)> = self
            .nets
            .iter()
            .filter_map(|(net, _)| match net {
                IpNet::V4(net) => Some((u32::from(net.network()).into(), u32::from(net.broadcast()).into())),
                IpNet::V6(_) => None,
            })
            .collect();
        taken.sort_unstable();
        let net = |at: u64| {
            let first = u32::try_from(at).expect("pools end before the address space does");
            Ipv4Net::new(Ipv4Addr::from(first), prefix).expect("a valid prefix length")
        };
        let size = 1u64 << (32 - prefix);
        let mut last = None;
        for pool in POOLS.iter().chain(&MORE_POOLS) {
            let pool: Ipv4Net = pool.parse().expect("a valid pool");
            let end = u64::from(u32::from(pool.broadcast()));
            let mut at = u64::from(u32::from(pool.network())).next_multiple_of(size);
            // Walks the pool and what is taken of it side by side.
            while at + (size - 1) <= end {
                match taken.iter().find(|(first, last)| *first < at + size && at <= *last) {
                    None => return Ok(net(at)),
                    Some((_, taken_to)) => {
                        last = Some(at);
                        at = (taken_to + 1).next_multiple_of(size);
                    }
                }
            }
        }
        let last = IpNet::V4(net(last.unwrap_or_default()));
        let other = self.collision(last).unwrap_or_else(|| "another network".to_owned());
        Err(Error::PoolExhausted { prefix, last, other })
    }

    /// A free /64 of this host's unique local addresses, the same for the same network name as long as it is free.
    pub(crate) fn free_v6(&self, ula: &str, name: &Name) -> Result<Ipv6Net> {
        let global = u64::from_str_radix(ula, 16).unwrap_or(0x0070_6f72_746f) & 0xff_ffff_ffff;
        let start = name
            .as_str()
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let mut last = None;
        for step in 0..=u16::MAX {
            let subnet = (start as u16).wrapping_add(step);
            let bits = (0xfd_u128 << 120) | (u128::from(global) << 80) | (u128::from(subnet) << 64);
            let net = Ipv6Net::new(Ipv6Addr::from(bits), POOL_PREFIX6).expect("a valid prefix length");
            match self.find(IpNet::V6(net)) {
                None => return Ok(net),
                Some(taken) => last = Some((net, taken)),
            }
        }
        let (net, (other, holder)) = last.expect("65536 candidates were tried");
        Err(Error::PoolExhausted { prefix: 64, last: IpNet::V6(net), other: self.tell(*other, holder) })
    }
}

/// How a pool is called.
pub(crate) fn as_pool(net: IpNet) -> String {
    format!("{net}, which was given to Docker")
}

fn as_network(name: &Name, net: IpNet) -> String {
    format!("network `{name}` ({net})")
}

/// How a network is called that `net` overlaps.
pub(crate) fn network_in_the_way(network: &Network, net: IpNet) -> String {
    let theirs = network.subnets.iter().map(|subnet| subnet.net).find(|theirs| overlap(net, *theirs));
    as_network(&network.name, theirs.unwrap_or(net))
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    match (a, b) {
        (IpNet::V4(a), IpNet::V4(b)) => a.contains(&b.network()) || b.contains(&a.network()),
        (IpNet::V6(a), IpNet::V6(b)) => a.contains(&b.network()) || b.contains(&a.network()),
        _ => false,
    }
}

/// The first and last address of a network that may be given out.
///
/// The network's own address (subnet-router anycast in IPv6, RFC 4291 §2.6.1) and IPv4 broadcast are left out, but
/// not of /31 (RFC 3021) and /127 (RFC 6164), nor of single addresses.
pub(crate) fn usable(net: IpNet) -> (IpAddr, IpAddr) {
    match net {
        IpNet::V4(net) if net.prefix_len() >= 31 => (IpAddr::V4(net.network()), IpAddr::V4(net.broadcast())),
        IpNet::V4(net) => (
            IpAddr::V4(Ipv4Addr::from(u32::from(net.network()) + 1)),
            IpAddr::V4(Ipv4Addr::from(u32::from(net.broadcast()) - 1)),
        ),
        IpNet::V6(net) if net.prefix_len() >= 127 => (IpAddr::V6(net.network()), IpAddr::V6(net.broadcast())),
        IpNet::V6(net) => (IpAddr::V6(Ipv6Addr::from(u128::from(net.network()) + 1)), IpAddr::V6(net.broadcast())),
    }
}

/// The part of a subnet that leases come from.
pub(crate) fn lease_range(subnet: &Subnet) -> (IpAddr, IpAddr) {
    let (first, last) = usable(subnet.net);
    // Of what others give out too, nothing is ours by default: a range that ends before it begins.
    let Some(range) = subnet.range else { return if subnet.shared { (last, first) } else { (first, last) } };
    (first.max(range.first()), last.min(range.last()))
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|ip| IpAddr::V4(Ipv4Addr::from(ip))),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|ip| IpAddr::V6(Ipv6Addr::from(ip))),
    }
}

/// The first address has none: it is its own.
fn previous(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip).saturating_sub(1))),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip).saturating_sub(1))),
    }
}

/// Where addresses are given out: under which id they are leased, and of which subnets.
pub(crate) struct Space<'a> {
    id: Id,
    name: String,
    subnets: Vec<&'a Subnet>,
    /// Others that give out the same addresses: of a network the pools that it is on, of a pool its network.
    beside: Vec<Id>,
}

impl<'a> Space<'a> {
    /// That of a network's endpoints, all but those whose addresses come from a pool.
    pub(crate) fn of(network: &'a Network) -> Self {
        let beside = network.subnets.iter().filter_map(|subnet| subnet.pool).collect();
        Self { beside, ..Self::beside_pools(network) }
    }

    /// That of endpoints whose addresses come from the pools that the network is on.
    pub(crate) fn beside_pools(network: &'a Network) -> Self {
        let subnets = network.subnets.iter().collect();
        Self { id: network.id, name: format!("network `{}`", network.name), subnets, beside: Vec::new() }
    }

    /// That of a pool.
    pub(crate) fn of_pool(pool: &'a Pool) -> Self {
        let name = format!("pool {}", pool.subnet.net);
        Self { id: pool.id, name, subnets: vec![&pool.subnet], beside: pool.network.into_iter().collect() }
    }

    /// The subnet that `address` is of.
    fn subnet_of(&self, address: IpAddr) -> Option<&'a Subnet> {
        Subnet::among(self.subnets.iter().copied(), address)
    }

    /// Who holds an address that is no lease.
    fn set_aside(&self, address: IpAddr) -> Option<String> {
        self.subnets.iter().find_map(|subnet| {
            if subnet.gateway == Some(address) {
                return Some("the network's gateway".to_owned());
            }
            subnet.aux.iter().find(|(_, ip)| **ip == address).map(|(name, _)| format!("auxiliary address `{name}`"))
        })
    }

    /// Whether others have given `address` out.
    fn is_held_beside<T: Tx>(&self, tx: &T, address: IpAddr) -> Result<bool> {
        for id in &self.beside {
            if tx.lease(*id, address)?.is_some_and(|lease| lease.endpoint.is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the cursor of a subnet is kept under: the subnet, but for further ranges of the same one, whose first address
    /// is. So it is for all ranges of what others give out too: which one is the first changes.
    fn cursor_of(&self, subnet: &Subnet) -> IpNet {
        let first = self.subnets.iter().find(|other| other.net == subnet.net);
        match subnet.range {
            Some(range) if subnet.shared || first.is_some_and(|first| first.range != subnet.range) => {
                IpNet::new(range.first(), subnet.net.prefix_len()).expect("the prefix of a subnet fits its family")
            }
            _ => subnet.net,
        }
    }
}

/// An address found for an endpoint.
pub(crate) struct Found {
    pub(crate) address: IpNet,
    /// The MAC that held it last.
    pub(crate) previous: Option<Mac>,
}

/// Finds what an endpoint on `network` gets besides the addresses that were `chosen` for it.
///
/// On a network that a person made, one address of every subnet, unless those of the family were chosen; a subnet without
/// a free one is left out if another of its family has one. On one that somebody else keeps, one of every set.
///
/// # Errors
/// [`Error::AddressesExhausted`].
pub(crate) fn complete<T: Tx>(tx: &T, network: &Network, chosen: &[IpAddr]) -> Result<Vec<Found>> {
    let space = Space::of(network);
    let mut found = Vec::new();
    for family in Family::ALL {
        let sets = network.sets().filter(|set| set.first().is_some_and(|subnet| subnet.family() == family));
        if network.transient {
            let is_of = |set: &[Subnet], address: IpAddr| {
                network.subnet_of(address).is_some_and(|subnet| set.iter().any(|other| std::ptr::eq(other, subnet)))
            };
            for set in sets.filter(|set| !chosen.iter().any(|address| is_of(set, *address))) {
                found.push(allocate_of(tx, &space, set)?);
            }
            continue;
        }
        if chosen.iter().any(|address| Family::of(*address) == family) {
            continue;
        }
        let before = found.len();
        let mut exhausted = None;
        for set in sets {
            match allocate_of(tx, &space, set) {
                Ok(address) => found.push(address),
                Err(error @ Error::AddressesExhausted { .. }) => exhausted = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = exhausted.filter(|_| found.len() == before) {
            return Err(error);
        }
    }
    Ok(found)
}

/// Finds a free address of one of `set`, which are alternatives: of the first that has one.
///
/// # Errors
/// [`Error::AddressesExhausted`] names them all.
pub(crate) fn allocate_of<T: Tx>(tx: &T, space: &Space<'_>, set: &[Subnet]) -> Result<Found> {
    for subnet in set {
        if let Some(found) = allocate(tx, space, subnet)? {
            return Ok(found);
        }
    }
    let ranges: Vec<String> = set.iter().map(|subnet| subnet.range.unwrap_or(subnet.net.into()).to_string()).collect();
    let family = set.first().map_or(Family::V4, Subnet::family);
    Err(Error::AddressesExhausted { of: space.name.clone(), ranges: ranges.join(", "), family })
}

/// The lowest free address of `subnet`, for a gateway.
///
/// # Errors
/// [`Error::AddressesExhausted`].
pub(crate) fn lowest<T: Tx>(tx: &T, space: &Space<'_>, subnet: &Subnet) -> Result<IpNet> {
    let (first, last) = usable(subnet.net);
    let mut candidate = Some(first);
    while let Some(address) = candidate.filter(|address| *address <= last) {
        match request(tx, space, address, |_| Ok(String::new())) {
            Ok(found) => return Ok(found.address),
            Err(Error::AddressTaken { .. }) => candidate = next(address),
            Err(error) => return Err(error),
        }
    }
    Err(Error::AddressesExhausted { of: space.name.clone(), ranges: subnet.net.to_string(), family: subnet.family() })
}

/// Finds a free address of `subnet`: the next never used one, else the one that has rested longest.
///
/// So a freed address comes back as late as can be, and the cost does not depend on how many are leased, but for
/// runs of addresses that people chose.
fn allocate<T: Tx>(tx: &T, space: &Space<'_>, subnet: &Subnet) -> Result<Option<Found>> {
    let (first, last) = lease_range(subnet);
    let with_prefix = |ip| IpNet::new(ip, subnet.net.prefix_len()).expect("the prefix of a subnet fits its family");
    let cursor = space.cursor_of(subnet);
    let mut candidate = match tx.lease_cursor(space.id, cursor)? {
        Some(cursor) => next(cursor),
        None => Some(first),
    };
    while let Some(address) = candidate.filter(|address| *address <= last && *address >= first) {
        if space.set_aside(address).is_none() {
            match tx.lease(space.id, address)? {
                Some(lease) if lease.endpoint.is_some() => {}
                // The cursor does not come by again: it is found among those that rest.
                _ if space.is_held_beside(tx, address)? => tx.rest_lease(space.id, with_prefix(address))?,
                lease => {
                    tx.put_lease_cursor(space.id, cursor, address)?;
                    let previous = lease.and_then(|lease| lease.mac);
                    return Ok(Some(Found { address: with_prefix(address), previous }));
                }
            }
        }
        candidate = next(address);
    }
    let mut passed = BTreeSet::new();
    while let Some(resting) = tx.oldest_resting(space.id, first, last)? {
        let address = resting.address;
        if space.set_aside(address).is_none() && !space.is_held_beside(tx, address)? {
            return Ok(Some(Found { address: with_prefix(address), previous: resting.mac }));
        }
        if !passed.insert(address) {
            return Ok(None);
        }
        tx.rest_lease(space.id, with_prefix(address))?;
    }
    Ok(None)
}

/// Has the addresses of `subnet` be looked through from the first one on.
pub(crate) fn restart<T: Tx>(tx: &T, network: &Network, subnet: &Subnet) -> Result<()> {
    let space = Space::of(network);
    let cursor = space.cursor_of(subnet);
    if tx.lease_cursor(space.id, cursor)?.is_some() {
        tx.put_lease_cursor(space.id, cursor, previous(lease_range(subnet).0))?;
    }
    Ok(())
}

/// Checks that `address` can be had of `space`.
///
/// # Errors
/// [`Error::AddressOutside`]; [`Error::AddressTaken`] names the holder, whose id is given to `holder_name`.
pub(crate) fn request<T: Tx>(
    tx: &T,
    space: &Space<'_>,
    address: IpAddr,
    holder_name: impl FnOnce(Id) -> Result<String>,
) -> Result<Found> {
    let outside = || {
        let mut nets: Vec<String> = space
            .subnets
            .iter()
            .filter(|subnet| subnet.family() == Family::of(address))
            .map(|subnet| subnet.net.to_string())
            .collect();
        nets.dedup();
        let subnets = if nets.is_empty() { format!("it has no {}", Family::of(address)) } else { nets.join(", ") };
        Error::AddressOutside { address, of: space.name.clone(), subnets }
    };
    let subnet = space.subnet_of(address).ok_or_else(outside)?;
    let (first, last) = usable(subnet.net);
    let taken = |holder: String| Error::AddressTaken { address, of: space.name.clone(), holder };
    if address < first || address > last {
        return Err(taken("the subnet itself (network or broadcast address)".to_owned()));
    }
    if let Some(holder) = space.set_aside(address) {
        return Err(taken(holder));
    }
    let lease = tx.lease(space.id, address)?;
    if let Some(holder) = lease.and_then(|lease| lease.endpoint) {
        return Err(taken(holder_name(holder)?));
    }
    if space.is_held_beside(tx, address)? {
        return Err(taken("whoever else gives out its addresses".to_owned()));
    }
    let address = IpNet::new(address, subnet.net.prefix_len()).expect("the prefix of a subnet fits its family");
    Ok(Found { address, previous: lease.and_then(|lease| lease.mac) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occupied(nets: &[&str]) -> Occupied<'static> {
        let route = |net: &&str| HostRoute { net: net.parse().unwrap(), device: None, table: 254 };
        Occupied::new(&[], &nets.iter().map(route).collect::<Vec<_>>(), &|_| None)
    }

    #[test]
    fn a_thousand_networks_find_room_beside_the_hosts_routes() {
        let mut taken = occupied(&["172.17.0.0/16", "172.18.4.0/22", "10.0.0.0/8"]);
        for i in 0..1000 {
            let name: Name = format!("network{i}").parse().unwrap();
            let net = IpNet::V4(taken.free_v4(POOL_PREFIX).unwrap());
            assert!(taken.collision(net).is_none(), "{i}: {net}");
            taken.add(net, &name);
            let net = IpNet::V6(taken.free_v6("0123456789", &name).unwrap());
            taken.add(net, &name);
        }
    }

    #[test]
    fn an_exhausted_pool_names_what_it_collides_with() {
        let taken = occupied(&["172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"]);
        let error = taken.free_v4(POOL_PREFIX).unwrap_err();
        assert!(error.to_string().contains("192.168.0.0/16") || error.to_string().contains("route"), "{error}");
        let everything = occupied(&["0.0.0.0/1", "128.0.0.0/1"]);
        assert!(everything.free_v4(POOL_PREFIX).is_err());
    }

    #[test]
    fn the_same_name_gets_the_same_ula_subnet() {
        let none = occupied(&[]);
        let (a, b): (Name, Name) = ("web".parse().unwrap(), "db".parse().unwrap());
        assert_eq!(none.free_v6("0123456789", &a).unwrap(), none.free_v6("0123456789", &a).unwrap());
        assert_ne!(none.free_v6("0123456789", &a).unwrap(), none.free_v6("0123456789", &b).unwrap());
        assert_eq!(
            none.free_v6("0123456789", &a).unwrap().network().octets()[..6],
            [0xfd, 0x01, 0x23, 0x45, 0x67, 0x89]
        );
    }

    #[test]
    fn small_subnets_have_all_their_addresses() {
        let ends = |net: &str| {
            let (a, b) = usable(net.parse().unwrap());
            (a.to_string(), b.to_string())
        };
        assert_eq!(ends("10.0.0.0/24"), ("10.0.0.1".into(), "10.0.0.254".into()));
        assert_eq!(ends("10.0.0.0/31"), ("10.0.0.0".into(), "10.0.0.1".into()));
        assert_eq!(ends("10.0.0.4/30"), ("10.0.0.5".into(), "10.0.0.6".into()));
        assert_eq!(ends("fd00::/127"), ("fd00::".into(), "fd00::1".into()));
        assert_eq!(ends("fd00::/64").0, "fd00::1");
    }
}
