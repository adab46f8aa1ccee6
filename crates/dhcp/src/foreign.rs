//! What a server grants, without its messages: the ways in for `fuzz/`, and for nothing else. The messages themselves are taken
//! apart by `mozim`.

use std::net::{Ipv4Addr, Ipv6Addr};

use mozim::{DhcpV4ClasslessRoute, DhcpV4Lease, DhcpV6Duid, DhcpV6Lease};
use portolan_model::DhcpLease;

use crate::client::{from4, from6, lease4, lease6, with};

/// What is in an acknowledgement (RFC 2131).
#[derive(Debug, serde::Deserialize)]
pub struct Said4 {
    /// The address, and its subnet's mask.
    pub address: [Ipv4Addr; 2],
    /// Who grants it, by the option and by the header.
    pub servers: [Ipv4Addr; 2],
    /// Routers.
    pub gateways: Option<Vec<Ipv4Addr>>,
    /// Name servers.
    pub dns: Option<Vec<Ipv4Addr>>,
    /// The domain, and the list of domains.
    pub domain: Option<String>,
    /// The list of them.
    pub search: Option<Vec<String>>,
    /// Destination, its prefix length, and router.
    pub routes: Option<Vec<(Ipv4Addr, u8, Ipv4Addr)>>,
    /// When to renew, when to ask anybody, when it ends.
    pub times: [u32; 3],
}

/// What is in a reply (RFC 8415).
#[derive(Debug, serde::Deserialize)]
pub struct Said6 {
    /// The address.
    pub address: Ipv6Addr,
    /// Who grants it.
    pub server: Vec<u8>,
    /// Name servers.
    pub dns: Vec<Ipv6Addr>,
    /// The list of domains.
    pub search: Vec<String>,
    /// When to renew, when to ask anybody, when it ends.
    pub times: [u32; 3],
}

/// The lease that is made of it, and of what is asked for when that is taken over.
pub fn granted4(said: Said4) -> Option<[DhcpLease; 2]> {
    let lease = from4(&with(DhcpV4Lease::default(), |lease| {
        [lease.yiaddr, lease.subnet_mask] = said.address;
        [lease.srv_id, lease.siaddr] = said.servers;
        (lease.gateways, lease.dns_srvs) = (said.gateways, said.dns);
        (lease.domain_name, lease.domain_search) = (said.domain, said.search);
        let route = |(destination, prefix_length, router)| DhcpV4ClasslessRoute { destination, prefix_length, router };
        lease.classless_routes = said.routes.map(|routes| routes.into_iter().map(route).collect());
        [lease.t1_sec, lease.t2_sec, lease.lease_time_sec] = said.times;
    }))
    .ok()?;
    let again = from4(&lease4(&lease)).expect("what was taken is taken again");
    Some([lease, again])
}

/// The same of IPv6, taken over so many seconds later; none the second if it is as good as over.
pub fn granted6(said: Said6, later: u32) -> Option<(DhcpLease, Option<DhcpLease>)> {
    let lease = from6(&with(DhcpV6Lease::default(), |lease| {
        lease.address = said.address;
        lease.srv_duid = DhcpV6Duid::Raw(said.server);
        (lease.dns_srvs, lease.domain_list) = (said.dns, said.search);
        [lease.t1_sec, lease.t2_sec, lease.valid_time_sec] = said.times;
    }))
    .ok()?;
    let known = lease6(&lease, lease.obtained + u64::from(later));
    let again = known.map(|known| from6(&known).expect("what was taken is taken again"));
    Some((lease, again))
}
