//! One client of one family, in our words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mozim::{
    DhcpError, DhcpV4Client, DhcpV4Config, DhcpV4Lease, DhcpV4State, DhcpV6Client, DhcpV6Config, DhcpV6Duid,
    DhcpV6IaType, DhcpV6Lease, DhcpV6Mode, DhcpV6State, ErrorKind,
};
use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::rtnl::{addr, link};
use portolan_model::{DhcpLease, DhcpServer, Family, Id, IfName, Mac, RouteAction, Sandbox, StaticRoute};
use serde::{Deserialize, Serialize};

use crate::now;
use crate::routing::Routing;

/// Where a lease is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The endpoint that it is for.
    pub endpoint: Id,
    /// Its family.
    pub family: Family,
    /// Where the interface is.
    pub sandbox: Sandbox,
    /// The interface; it is up.
    pub ifname: IfName,
    /// Its MAC.
    pub mac: Mac,
    /// By what servers of IPv4 know the client (RFC 2132 §9.14); none for its MAC.
    pub client_id: Option<ClientId>,
    /// The name that IPv4's servers are told (RFC 2132 §3.14); empty for none.
    pub hostname: String,
    /// What IPv4's servers are asked to say (RFC 2132 §9.8), by the numbers of the options; none for what makes a lease whole.
    pub requested: Option<Vec<u8>>,
    /// The interface of the host that is on the same link, if one is known.
    pub parent: Option<IfName>,
}

impl Place {
    /// Whether servers take both for the same client: what the one holds is the other's.
    pub fn is_same_client(&self, other: &Self) -> bool {
        self.family == Family::V4 && other.family == Family::V4 && {
            self.client_id.is_some() && (&self.client_id, &self.parent) == (&other.client_id, &other.parent)
        }
    }
}

/// The identity of an interface that outlives its MAC, which is another one each time that the container is started: a
/// byte for its type, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientId(Vec<u8>);

impl ClientId {
    /// The longest id of a container: an option has 255 bytes (RFC 2132 §2), of which the type and a name are some.
    const LONGEST: usize = 200;

    /// That of `ifname` in `container`, of type 0; none where there is no id, or one that is too long.
    ///
    /// That of `eth0` is the container's id, as netavark has it; that of another interface is the id, `-` and its name, for
    /// a server gives one client one address.
    pub fn new(container: &str, ifname: &IfName) -> Option<Self> {
        if container.is_empty() || container.len() > Self::LONGEST {
            return None;
        }
        Some(Self::text(&match ifname.as_str() {
            "eth0" => container.to_owned(),
            other => format!("{container}-{other}"),
        }))
    }

    /// A text, of type 0; what has no room in an option is cut off.
    pub fn text(text: &str) -> Self {
        Self([0].into_iter().chain(text.bytes()).take(255).collect())
    }

    /// Bytes as they are, the first of which is taken for the type; none where there are none, or too many for an option.
    pub fn raw(bytes: &[u8]) -> Option<Self> {
        matches!(bytes.len(), 1..=255).then(|| Self(bytes.to_vec()))
    }
}

/// A lease of IPv4 as the library knows it, with its server's MAC.
pub(crate) type Granted4 = Box<DhcpV4Lease>;

/// DHCPv6's option with the server's identifier (RFC 8415 §21.3).
const SERVER_ID: u16 = 2;
/// The bytes of an option's code and length (RFC 8415 §21.1).
const HEADER: usize = 4;

/// What a client has come to.
#[derive(Debug)]
pub(crate) enum Step {
    /// A server granted this, new or once more.
    Granted(Box<DhcpLease>, Routing),
    /// It is time to renew: a server was asked.
    Renewing,
    /// It looks for a server.
    Looking,
    /// One has made an offer, and was asked for it.
    Choosing,
}

/// A client; to be polled in the namespace where it is to speak.
#[derive(Debug)]
pub(crate) enum Client {
    V4 { client: Box<DhcpV4Client>, is_renewing: bool, granted: Option<Granted4> },
    V6(Box<DhcpV6Client>),
}

impl Client {
    /// A client that asks for `held` once more, if anything, and else for whatever there is.
    pub(crate) async fn new(place: &Place, held: Option<&DhcpLease>) -> Result<Self, DhcpError> {
        let index = find(place.ifname.as_str())?;
        match place.family {
            Family::V4 => {
                let client = DhcpV4Client::init(config4(place, index)?, held.map(lease4)).await?;
                Ok(Self::V4 { client: Box::new(client), is_renewing: false, granted: None })
            }
            Family::V6 => {
                let config = config6(place, index, place.mac.link_local());
                let mut client = DhcpV6Client::init(config, None).await?;
                // It takes over leases in the middle of their lives only.
                if let Some(lease) = held.and_then(|lease| lease6(lease, now())) {
                    client.done(lease)?;
                }
                Ok(Self::V6(Box::new(client)))
            }
        }
    }

    /// Goes on until something has happened.
    pub(crate) async fn step(&mut self) -> Result<Step, DhcpError> {
        match self {
            Self::V4 { client, is_renewing, granted } => match client.run().await? {
                DhcpV4State::Done(lease) => {
                    let (ours, routing) = (from4(&lease)?, Routing::of(&lease));
                    // Only who heard the answer as a frame knows the server's MAC.
                    let is_known = std::mem::take(is_renewing)
                        && granted.as_ref().is_some_and(|known| known.srv_id == lease.srv_id);
                    if !is_known || granted.as_ref().is_some_and(|known| known.yiaddr != lease.yiaddr) {
                        *granted = Some(lease);
                    }
                    Ok(Step::Granted(Box::new(ours), routing))
                }
                DhcpV4State::Renewing => {
                    *is_renewing = true;
                    Ok(Step::Renewing)
                }
                DhcpV4State::Rebinding => {
                    *is_renewing = false;
                    Ok(Step::Renewing)
                }
                DhcpV4State::InitReboot => {
                    *is_renewing = false;
                    Ok(Step::Looking)
                }
                DhcpV4State::Selecting => {
                    *is_renewing = false;
                    Ok(Step::Choosing)
                }
            },
            Self::V6(client) => match client.run().await? {
                DhcpV6State::Done(lease) => Ok(Step::Granted(Box::new(from6(&lease)?), Routing::default())),
                DhcpV6State::Renew | DhcpV6State::Rebind => Ok(Step::Renewing),
                _ => Ok(Step::Looking),
            },
        }
    }

    /// The lease as the client knows it, for [`give_back`].
    pub(crate) fn granted(&self) -> Option<&Granted4> {
        match self {
            Self::V4 { granted, .. } => granted.as_ref(),
            Self::V6(_) => None,
        }
    }
}

/// Gives `lease` back from the interface `from`: the container's own, or the host's on the same link.
///
/// It is one frame, sent before this returns: there is no time to ask for the server's MAC when the interface is about to
/// go. `granted` knows it; to a server that is not known by its MAC, the frame is a broadcast.
pub(crate) async fn give_back(
    place: &Place,
    lease: &DhcpLease,
    granted: Option<Granted4>,
    from: &IfName,
) -> Result<(), DhcpError> {
    let index = find(from.as_str())?;
    match place.family {
        Family::V4 => {
            let mut config = config4(place, index)?;
            config.iface_name = from.to_string();
            config.is_proxy = true;
            let granted = granted.map_or_else(|| lease4(lease), |granted| *granted);
            let server = if granted.srv_id.is_unspecified() { granted.siaddr } else { granted.srv_id };
            // The server's address is taken from this field, which may name a boot server (RFC 2131 §2).
            let granted = with(granted, |granted| granted.siaddr = server);
            DhcpV4Client::init(config, None).await?.release(&granted).await
        }
        Family::V6 => {
            let own = if *from == place.ifname { place.mac.link_local() } else { link_local(index)? };
            let Some(lease) = lease6(lease, now()) else { return Ok(()) };
            DhcpV6Client::init(config6(place, index, own), None).await?.release(&lease).await
        }
    }
}

pub(crate) fn with<T>(mut value: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut value);
    value
}

fn failed(what: impl std::fmt::Display) -> DhcpError {
    DhcpError::new(ErrorKind::IoError, what.to_string())
}

/// The index of an interface of the namespace that the thread is in.
fn find(name: &str) -> Result<u32, DhcpError> {
    let mut socket = Socket::open(ROUTE).map_err(failed)?;
    let link = link::lookup(&mut socket, name).map_err(failed)?;
    Ok(link.ok_or_else(|| failed(format!("interface `{name}` is gone")))?.index)
}

fn link_local(index: u32) -> Result<Ipv6Addr, DhcpError> {
    let mut socket = Socket::open(ROUTE).map_err(failed)?;
    let addresses = addr::dump(&mut socket, Some(index)).map_err(failed)?;
    let found = addresses.iter().find_map(|address| match address.addr {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
        _ => None,
    });
    found.ok_or_else(|| failed("the host has no link-local address on the link"))
}

fn config4(place: &Place, index: u32) -> Result<DhcpV4Config, DhcpError> {
    let mut config = DhcpV4Config::new(place.ifname.as_str());
    config.set_iface_index(index).set_iface_mac_raw(&place.mac.octets())?;
    match &place.client_id {
        Some(ClientId(id)) => match id.split_first() {
            Some((kind, id)) => config.set_client_id(*kind, id),
            None => config.use_mac_as_client_id(),
        },
        None => config.use_mac_as_client_id(),
    };
    if let Some(requested) = &place.requested {
        config.override_request_dhcp_opts(requested);
    }
    config.set_host_name(&place.hostname);
    Ok(config)
}

fn config6(place: &Place, index: u32, own: Ipv6Addr) -> DhcpV6Config {
    let mut config = DhcpV6Config::new(place.ifname.as_str(), DhcpV6Mode::NonTemporaryAddresses);
    config.set_iface_index(index).set_link_local_ip(own).set_duid_by_iface_mac(&place.mac.octets());
    config
}

/// What `mozim` needs to ask for a lease once more.
pub(crate) fn lease4(lease: &DhcpLease) -> DhcpV4Lease {
    let address = |ip| match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let server = match lease.server {
        DhcpServer::V4(server) => server,
        DhcpServer::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    with(DhcpV4Lease::default(), |known| {
        known.yiaddr = address(lease.address.addr());
        known.subnet_mask = address(lease.address.netmask());
        (known.siaddr, known.srv_id) = (server, server);
        (known.t1_sec, known.t2_sec, known.lease_time_sec) = (lease.renew_after, lease.rebind_after, lease.valid_for);
    })
}

/// The same of DHCPv6, with what is left at `now`; the server is to be asked in a second. None if it is as good as over.
pub(crate) fn lease6(lease: &DhcpLease, now: u64) -> Option<DhcpV6Lease> {
    let left = lease.left(now).filter(|left| *left > 3)?;
    let (IpAddr::V6(address), DhcpServer::V6(server)) = (lease.address.addr(), &lease.server) else { return None };
    let rebind = lease.obtained + u64::from(lease.rebind_after);
    let rebind = u32::try_from(rebind.saturating_sub(now)).unwrap_or(left).clamp(2, left);
    Some(with(DhcpV6Lease::default(), |known| {
        known.ia_type = Some(DhcpV6IaType::NonTemporaryAddresses);
        known.address = address;
        known.srv_duid = DhcpV6Duid::Raw(server.clone());
        (known.t1_sec, known.t2_sec) = (1, rebind);
        (known.preferred_time_sec, known.valid_time_sec) = (left, left);
    }))
}

pub(crate) fn from4(lease: &DhcpV4Lease) -> Result<DhcpLease, DhcpError> {
    let bad = |_| DhcpError::new(ErrorKind::InvalidDhcpMessage, "the subnet mask has holes".to_owned());
    let address = Ipv4Net::with_netmask(lease.yiaddr, lease.subnet_mask).map_err(bad)?;
    // Who sends these routes sends the default route among them: the router is for those who do not know of them.
    let classless = lease.classless_routes.iter().flatten();
    let is_default = |route: &&mozim::DhcpV4ClasslessRoute| route.prefix_length == 0;
    let gateway = match &lease.classless_routes {
        Some(routes) => routes.iter().find(is_default).map(|route| route.router),
        None => lease.gateways.iter().flatten().next().copied(),
    };
    let routes = classless.filter(|route| !is_default(route) && !route.router.is_unspecified());
    let domains = lease.domain_search.iter().flatten().chain(&lease.domain_name);
    let mut lease = DhcpLease {
        address: IpNet::V4(address),
        gateway: gateway.filter(|gateway| !gateway.is_unspecified()).map(IpAddr::V4),
        routes: routes.filter_map(static_route).collect(),
        dns: lease.dns_srvs.iter().flatten().copied().map(IpAddr::V4).collect(),
        domains: domains.filter_map(|domain| domain_name(domain)).collect(),
        server: DhcpServer::V4(if lease.srv_id.is_unspecified() { lease.siaddr } else { lease.srv_id }),
        obtained: now(),
        renew_after: lease.t1_sec,
        rebind_after: lease.t2_sec,
        valid_for: lease.lease_time_sec,
    };
    let mut seen = std::collections::BTreeSet::new();
    lease.domains.retain(|domain| seen.insert(domain.clone()));
    Ok(lease)
}

fn static_route(route: &mozim::DhcpV4ClasslessRoute) -> Option<StaticRoute> {
    let destination = Ipv4Net::new(route.destination, route.prefix_length).ok()?.trunc();
    Some(StaticRoute {
        destination: IpNet::V4(destination),
        action: RouteAction::Via(IpAddr::V4(route.router)),
        metric: None,
    })
}

/// A domain that can be written into resolv.conf(5); others are not believed.
fn domain_name(text: &str) -> Option<String> {
    let name = text.trim_end_matches(['.', '\0']);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!name.is_empty() && name.len() <= 253 && name.bytes().all(is_plain)).then(|| name.to_owned())
}

pub(crate) fn from6(lease: &DhcpV6Lease) -> Result<DhcpLease, DhcpError> {
    let server = lease.get_option_raw(SERVER_ID).and_then(|found| found.into_iter().next());
    let server = match (server.as_deref().and_then(|option| option.get(HEADER..)), &lease.srv_duid) {
        (Some(server), _) => server.to_vec(),
        // One that we took over.
        (None, DhcpV6Duid::Raw(server)) => server.clone(),
        (None, _) => {
            return Err(DhcpError::new(ErrorKind::InvalidDhcpMessage, "the server does not say who it is".to_owned()));
        }
    };
    Ok(DhcpLease {
        address: IpNet::V6(Ipv6Net::from(lease.address)),
        gateway: None,
        routes: Vec::new(),
        dns: lease.dns_srvs.iter().copied().map(IpAddr::V6).collect(),
        domains: lease.domain_list.iter().filter_map(|domain| domain_name(domain)).collect(),
        server: DhcpServer::V6(server),
        obtained: now(),
        renew_after: lease.t1_sec,
        rebind_after: lease.t2_sec,
        valid_for: lease.valid_time_sec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4() -> DhcpV4Lease {
        with(DhcpV4Lease::default(), |lease| {
            lease.yiaddr = [10, 0, 1, 50].into();
            lease.subnet_mask = [255, 255, 255, 0].into();
            lease.srv_id = [10, 0, 1, 2].into();
            lease.gateways = Some(vec![[10, 0, 1, 2].into(), [10, 0, 1, 3].into()]);
            lease.dns_srvs = Some(vec![[10, 0, 1, 2].into()]);
            lease.domain_name = Some("lan.example".to_owned());
            (lease.t1_sec, lease.t2_sec, lease.lease_time_sec) = (60, 105, 120);
        })
    }

    #[test]
    fn each_interface_is_a_client() {
        let id = |container: &str, ifname: &str| ClientId::new(container, &ifname.parse().unwrap());
        assert_eq!(id("c1", "eth0"), Some(ClientId(b"\0c1".to_vec())));
        assert_eq!(id("c1", "eth1"), Some(ClientId(b"\0c1-eth1".to_vec())));
        assert_eq!(id("", "eth0"), None);
        assert_eq!(id(&"c".repeat(201), "eth0"), None, "no option has room for it");
        assert_eq!(ClientId::text(&"c".repeat(300)).0.len(), 255);
        assert_eq!(ClientId::raw(b"abc").map(|id| id.0), Some(b"abc".to_vec()));
        assert_eq!((ClientId::raw(b""), ClientId::raw(&[1; 256])), (None, None));
    }

    #[test]
    fn what_ipv4_grants() {
        let lease = from4(&v4()).unwrap();
        assert_eq!(lease.address.to_string(), "10.0.1.50/24");
        assert_eq!(lease.gateway, Some([10, 0, 1, 2].into()), "the first router");
        assert_eq!((lease.domains.as_slice(), lease.valid_for), (&["lan.example".to_owned()][..], 120));
        assert_eq!(lease.server, DhcpServer::V4([10, 0, 1, 2].into()));
        let back = lease4(&lease);
        assert_eq!((back.yiaddr, back.srv_id, back.prefix_length()), (v4().yiaddr, v4().srv_id, 24));
    }

    #[test]
    fn classless_routes_go_before_the_router() {
        let route = |destination: [u8; 4], prefix_length, router: [u8; 4]| mozim::DhcpV4ClasslessRoute {
            destination: destination.into(),
            prefix_length,
            router: router.into(),
        };
        let mut lease = v4();
        lease.classless_routes = Some(vec![route([10, 9, 0, 0], 16, [10, 0, 1, 7]), route([0; 4], 0, [10, 0, 1, 8])]);
        let ours = from4(&lease).unwrap();
        assert_eq!(ours.gateway, Some([10, 0, 1, 8].into()));
        assert_eq!(ours.routes.len(), 1);
        assert_eq!(ours.routes[0].destination.to_string(), "10.9.0.0/16");
        lease.classless_routes = Some(vec![route([10, 9, 0, 0], 16, [0; 4])]);
        let ours = from4(&lease).unwrap();
        assert_eq!((ours.gateway, ours.routes), (None, Vec::new()), "the router does not count then");
    }

    #[test]
    fn what_makes_no_sense_is_not_believed() {
        let holes = with(v4(), |lease| lease.subnet_mask = [255, 0, 255, 0].into());
        assert!(from4(&holes).is_err());
        for (text, name) in [("lan.", Some("lan")), ("a b", None), ("x\nnameserver 1.2.3.4", None), ("", None)] {
            assert_eq!(domain_name(text).as_deref(), name);
        }
    }

    #[test]
    fn a_lease_of_ipv6_is_taken_over_in_the_middle_of_its_life() {
        let lease = DhcpLease {
            address: "fd00:1::50/128".parse().unwrap(),
            gateway: None,
            routes: Vec::new(),
            dns: Vec::new(),
            domains: Vec::new(),
            server: DhcpServer::V6(vec![0, 3, 0, 1, 2, 2, 2, 2, 2, 2]),
            obtained: 100,
            renew_after: 60,
            rebind_after: 90,
            valid_for: 120,
        };
        let known = lease6(&lease, 130).unwrap();
        assert_eq!((known.t1_sec, known.t2_sec, known.valid_time_sec), (1, 60, 90));
        let late = lease6(&lease, 210).unwrap();
        assert_eq!((late.t1_sec, late.t2_sec, late.valid_time_sec), (1, 2, 10));
        assert_eq!(lease6(&lease, 218), None);
        assert_eq!(lease6(&DhcpLease { valid_for: u32::MAX, ..lease }, 1 << 40).unwrap().valid_time_sec, u32::MAX);
    }
}
