//! Where this host takes packets of the others: decided when it joins, and followed while it is in the cluster.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portolan_cluster::HostRecord;
use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::{self, link, route};
use portolan_model::{Family, Lan, Mtu, PerFamily};

use super::CannotJoin;

/// An address of an interface of this host that others can reach, as far as that can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAddress {
    /// The address.
    pub address: IpAddr,
    /// The LAN that it is on: the interface, and the subnet.
    pub lan: Lan,
    /// What the interface takes.
    pub mtu: Mtu,
    /// Whether the default route of its family, or of the other one, leads out of the interface.
    pub is_on_default_route: bool,
}

/// Those of the calling thread's namespace.
///
/// # Errors
/// When the kernel does not say.
pub fn own_addresses() -> Result<Vec<OwnAddress>> {
    let doing = "list this host's addresses";
    let mut socket = Socket::open(ROUTE).context(doing)?;
    let mut out = Vec::new();
    for family in [rtnl::Family::V4, rtnl::Family::V6] {
        out.extend(route::default_route_path(&mut socket, family).context(doing)?.map(|path| path.oif));
    }
    let links = link::dump(&mut socket).context(doing)?;
    let addresses = addr::dump(&mut socket, None).context(doing)?;
    let own = |found: &Address| {
        let link = links.iter().find(|link| link.index == found.ifindex)?;
        let is_local = match found.addr {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
        };
        let net = IpNet::new(found.addr, found.prefix_len).ok()?.trunc();
        let lan = Lan { interface: link.name.parse().ok()?, net };
        (!is_local).then_some(OwnAddress {
            address: found.addr,
            lan,
            mtu: Mtu::new(link.mtu).unwrap_or(Mtu::ETHERNET),
            is_on_default_route: out.contains(&found.ifindex),
        })
    };
    Ok(addresses.iter().filter_map(own).collect())
}

/// Where a host takes packets that has the addresses `there`: as `given`, or those of its default route's interface; and the MTU of
/// that way.
///
/// # Errors
/// [`CannotJoin`] when it has none, or not the ones that are given.
pub fn underlay(given: &[IpAddr], there: &[OwnAddress]) -> Result<(PerFamily<Option<IpAddr>>, Mtu), CannotJoin> {
    let cannot = |reason: String, hint: &str| CannotJoin { reason, hint: hint.to_owned() };
    let mut underlay: PerFamily<Option<IpAddr>> = PerFamily::default();
    for address in given {
        if !there.iter().any(|found| found.address == *address) {
            return Err(cannot(
                format!("no interface of this host has address {address}"),
                "`ip address` shows those that it has",
            ));
        }
        let family = Family::of(*address);
        if underlay.of_mut(family).replace(*address).is_some() {
            let reason = format!("address {address}: another one of {family} is given");
            return Err(cannot(reason, "give one of either family"));
        }
    }
    if given.is_empty() {
        for found in there.iter().filter(|found| found.is_on_default_route) {
            underlay.of_mut(Family::of(found.address)).get_or_insert(found.address);
        }
    }
    let mtu = mtu_of(underlay, there).ok_or_else(|| {
        cannot(
            "this host has no default route that tells its address".to_owned(),
            "say where it takes packets of the others: --address 192.0.2.23",
        )
    })?;
    Ok((underlay, mtu))
}

fn mtu_of(underlay: PerFamily<Option<IpAddr>>, there: &[OwnAddress]) -> Option<Mtu> {
    let is_it = |found: &&OwnAddress| [underlay.v4, underlay.v6].contains(&Some(found.address));
    there.iter().filter(is_it).map(|found| found.mtu).min()
}

/// What a host says of itself that has the addresses `there` now, and which of those it says are not among them.
///
/// One that is still there stays, wherever default routes lead now. One that is gone gives way to one of its family on the
/// default route's interface, unless it `is_given`; as long as there is none, the host says what it said.
pub fn follow(before: &HostRecord, is_given: bool, there: &[OwnAddress]) -> (HostRecord, Vec<IpAddr>) {
    let mut after = before.clone();
    let mut missing = Vec::new();
    let is_there = |address: IpAddr| there.iter().any(|found| found.address == address);
    for address in before.addresses().filter(|address| !is_there(*address)) {
        let family = Family::of(address);
        let instead = there.iter().find(|found| found.is_on_default_route && Family::of(found.address) == family);
        match instead.filter(|_| !is_given) {
            Some(instead) => *after.underlay.of_mut(family) = Some(instead.address),
            None => missing.push(address),
        }
    }
    after.mtu = mtu_of(after.underlay, there).unwrap_or(before.mtu);
    for address in after.underlay.v4.into_iter().chain(after.underlay.v6) {
        if let Some(found) = there.iter().find(|found| found.address == address) {
            *after.lan.of_mut(Family::of(address)) = Some(found.lan.clone());
        }
    }
    (after, missing)
}

#[cfg(test)]
mod tests {
    use portolan_model::Mac;

    use super::*;

    fn own(address: &str, mtu: u32, is_on_default_route: bool) -> OwnAddress {
        let address: IpAddr = address.parse().unwrap();
        let net = IpNet::new(address, if address.is_ipv4() { 24 } else { 64 }).unwrap().trunc();
        let lan = Lan { interface: "eth0".parse().unwrap(), net };
        OwnAddress { address, lan, mtu: Mtu::new(mtu).unwrap(), is_on_default_route }
    }

    fn record(there: &[OwnAddress]) -> HostRecord {
        let (underlay, mtu) = underlay(&[], there).unwrap();
        let mac = Mac::from_bytes([2; 6]);
        let record = HostRecord {
            name: "a".parse().unwrap(),
            underlay,
            lan: PerFamily::default(),
            mac,
            mtu,
            seal: None,
            reach: portolan_cluster::Reach::Open,
            answers: false,
            translates: false,
            version: String::new(),
        };
        follow(&record, false, there).0
    }

    #[test]
    fn an_address_that_is_gone_gives_way() {
        let at = |last: u8| own(&format!("10.0.1.{last}"), 1500, true);
        let before = record(&[own("10.0.9.1", 1400, false), at(1), own("fd00::1", 1500, true)]);
        assert_eq!(before.addresses().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.0.1.1", "fd00::1"]);
        // It has another one, and a smaller MTU.
        let there = [own("10.0.9.1", 1400, false), own("10.0.1.7", 1450, true), own("fd00::1", 1450, true)];
        let (after, missing) = follow(&before, false, &there);
        assert_eq!(after.addresses().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.0.1.7", "fd00::1"]);
        assert_eq!((after.mtu.bytes(), missing), (1450, vec![]));
        // The one that was named stays.
        let (after, missing) = follow(&before, true, &there);
        assert_eq!((after.underlay, missing), (before.underlay, vec!["10.0.1.1".parse().unwrap()]));
        // Between two addresses there is none for a while.
        let (after, missing) = follow(&before, false, &[own("10.0.9.1", 1400, false)]);
        assert_eq!((after, missing.len()), (before.clone(), 2));
        // The default route leads elsewhere: what is still there stays.
        let there = [own("10.0.1.1", 1500, false), own("10.0.2.1", 9000, true), own("fd00::1", 1500, true)];
        assert_eq!(follow(&before, false, &there), (before, vec![]));
    }
}
