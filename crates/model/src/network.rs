use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::invalid::serde_by_text;
use crate::{
    AddressRange, GatewayMode, Id, IfName, Invalid, MacvlanMode, Mtu, Name, NetworkOptions, Overlay, ProcessId,
};

/// An internet protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One value for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PerFamily<T> {
    /// IPv4's.
    pub v4: T,
    /// IPv6's.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// The value of `family`.
    pub const fn of(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The value of `family`, to change.
    pub const fn of_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl<T> PerFamily<Option<T>> {
    /// Whether neither has a value.
    pub const fn is_none(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// What carries a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Driver {
    /// A Linux bridge on this host.
    Bridge,
    /// Interfaces with MACs of their own on an interface of the host (macvlan, drivers/net/macvlan.c).
    Macvlan,
    /// Interfaces that share the MAC of an interface of the host (ipvlan, Documentation/networking/ipvlan.rst).
    Ipvlan,
    /// A veth pair for each container and no bridge: the host routes between them.
    Ptp,
    /// The same on each of several hosts, with tunnels between them (VXLAN, RFC 7348).
    Overlay,
    /// The host's own namespace; predefined, holds no endpoints.
    Host,
    /// Nothing but loopback; predefined.
    None,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Ptp => "ptp",
            Self::Overlay => "overlay",
            Self::Host => "host",
            Self::None => "null",
        })
    }
}

impl FromStr for Driver {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "bridge" => Ok(Self::Bridge),
            "macvlan" => Ok(Self::Macvlan),
            "ipvlan" => Ok(Self::Ipvlan),
            "ptp" => Ok(Self::Ptp),
            "overlay" => Ok(Self::Overlay),
            "host" => Ok(Self::Host),
            "null" | "none" => Ok(Self::None),
            _ => Err(Invalid::new("network driver", text, "is unknown")
                .hint("choose bridge, macvlan, ipvlan, ptp or overlay")),
        }
    }
}

serde_by_text!(Driver);

impl Driver {
    /// Whether containers can be on networks of this driver.
    pub const fn holds_endpoints(self) -> bool {
        matches!(self, Self::Bridge | Self::Macvlan | Self::Ipvlan | Self::Ptp | Self::Overlay)
    }

    /// Whether the host routes to each container by a veth pair of its own, without a bridge.
    pub const fn is_routed(self) -> bool {
        matches!(self, Self::Ptp | Self::Overlay)
    }
}

/// Who gives the containers of a network their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Ipam {
    /// We do, out of the network's subnets.
    #[default]
    Local,
    /// A DHCP server that is on the network.
    Dhcp,
    /// Nobody: interfaces are up, without an address.
    None,
}

impl fmt::Display for Ipam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "default",
            Self::Dhcp => "dhcp",
            Self::None => "none",
        })
    }
}

impl FromStr for Ipam {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            // Docker's word, and that of netavark and CNI.
            "default" | "host-local" => Ok(Self::Local),
            "dhcp" => Ok(Self::Dhcp),
            "none" => Ok(Self::None),
            _ => Err(Invalid::new("IPAM driver", text, "is unknown").hint("choose default, dhcp or none")),
        }
    }
}

serde_by_text!(Ipam);

impl Ipam {
    /// Whether we do it ourselves.
    pub fn is_local(&self) -> bool {
        *self == Self::Local
    }
}

/// What happens to packets that a static route matches (`RTN_*`, rtnetlink(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteAction {
    /// They go to this router.
    Via(IpAddr),
    /// They are dropped silently.
    Blackhole,
    /// They are answered with "host unreachable".
    Unreachable,
    /// They are answered with "administratively prohibited".
    Prohibit,
}

/// A route that every container of a network gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StaticRoute {
    /// The destination, host bits zero.
    pub destination: IpNet,
    /// What happens to what goes there.
    pub action: RouteAction,
    /// The route's priority, lower wins; none for the network's own metric.
    pub metric: Option<u32>,
}

/// A VLAN interface that a network made on an interface of the host, because its parent was not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subinterface {
    /// The interface that carries the VLAN.
    pub parent: IfName,
    /// The VLAN's number, 1 to 4094 (IEEE 802.1Q).
    pub vlan: u16,
}

/// The part of a pool that a network was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet, host bits zero (RFC 4632 §3.1).
    pub net: IpNet,
    /// Leases come from this part only; inside `net`.
    pub range: Option<AddressRange>,
    /// The address containers route to; the bridge's own, or that of every host end where there is none. None on internal-isolated networks.
    pub gateway: Option<IpAddr>,
    /// Addresses set aside by name, never leased.
    pub aux: BTreeMap<String, IpAddr>,
    /// Whether a person chose the subnet, rather than the pool.
    pub configured: bool,
    /// Gives an address only where the ones before it, of the same set, have none free.
    #[serde(default, skip_serializing_if = "is_no")]
    pub fallback: bool,
    /// The pool that it is, whose addresses others give out as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Id>,
    /// Other hosts give out its addresses as well: only `range` is ours to give, and without one nothing is.
    #[serde(default, skip_serializing_if = "is_no")]
    pub shared: bool,
}

impl Subnet {
    /// All of `net`, without a gateway; `configured` if a person chose it.
    pub const fn new(net: IpNet, configured: bool) -> Self {
        Self {
            net,
            range: None,
            gateway: None,
            aux: BTreeMap::new(),
            configured,
            fallback: false,
            pool: None,
            shared: false,
        }
    }

    /// The family of the subnet's addresses.
    pub const fn family(&self) -> Family {
        match self.net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }
}

/// Where a row stands in its life: settled, or in the hands of a process that is making or removing it.
///
/// A row in transition whose owner is gone is taken down by whoever comes next, and so are its kernel objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The kernel holds (or after a repair holds) what the row says.
    Settled,
    /// `owner` is making it.
    Pending(ProcessId),
    /// `owner` is taking it down.
    Leaving(ProcessId),
}

impl Phase {
    /// The process at work on the row, if any.
    pub const fn owner(self) -> Option<ProcessId> {
        match self {
            Self::Settled => None,
            Self::Pending(owner) | Self::Leaving(owner) => Some(owner),
        }
    }

    /// Whether the row is settled.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Settled)
    }
}

/// A named layer 2 or 3 domain with a driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The identity, drawn at random.
    pub id: Id,
    /// The name, unique on this host.
    pub name: Name,
    /// What carries it.
    pub driver: Driver,
    /// No way out: no gateway, no masquerading, no published ports.
    pub internal: bool,
    /// Who gives out addresses; unless we do, there are no subnets.
    #[serde(default, skip_serializing_if = "Ipam::is_local")]
    pub ipam: Ipam,
    /// Which families it speaks where no subnet tells.
    #[serde(default, skip_serializing_if = "is_silent")]
    pub speaks: PerFamily<bool>,
    /// Subnets of both families, in the order given; those of one set follow each other. A set gives an endpoint one
    /// address. Two may be ranges of the same subnet.
    pub subnets: Vec<Subnet>,
    /// Typed options.
    pub options: NetworkOptions,
    /// The name servers that questions from this network are forwarded to; empty for the host's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Options as given, for `inspect`.
    pub raw_options: BTreeMap<String, String>,
    /// Options for whoever gives out addresses, as given, for `inspect`; none where nothing was said of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam_options: Option<BTreeMap<String, String>>,
    /// Labels, for people.
    pub labels: BTreeMap<String, String>,
    /// The device on the host: the bridge; of macvlan and ipvlan the parent; of an overlay its end of the tunnels; `none`
    /// where there is none.
    pub bridge: IfName,
    /// The VLAN interface that `bridge` is, if the network made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subinterface: Option<Subinterface>,
    /// What it is on this host, if it is on others too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay: Option<Overlay>,
    /// Routes that every container gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<StaticRoute>,
    /// Whether names are answered on its gateway addresses.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub names: bool,
    /// Where they are answered on a bridge that is somebody else's: addresses that it has. Its gateways may be no host's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names_at: Vec<IpAddr>,
    /// The port that names are answered on behind port 53, where somebody else has that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names_port: Option<u16>,
    /// Made with its first endpoint and gone with its last: somebody else keeps what it should look like.
    #[serde(default, skip_serializing_if = "is_no")]
    pub transient: bool,
    /// The MTU of the bridge, if there is one, and of all endpoints.
    pub mtu: Mtu,
    /// Seconds since 1970 of its creation.
    pub created: u64,
    /// Where it stands.
    pub phase: Phase,
}

const fn yes() -> bool {
    true
}

// serde passes references.
#[expect(clippy::trivially_copy_pass_by_ref)]
const fn is_yes(value: &bool) -> bool {
    *value
}

#[expect(clippy::trivially_copy_pass_by_ref)]
pub(crate) const fn is_no(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref)]
const fn is_silent(speaks: &PerFamily<bool>) -> bool {
    !speaks.v4 && !speaks.v6
}

impl Network {
    /// Whether its containers have their addresses of `family` by DHCP.
    pub fn leases(&self, family: Family) -> bool {
        self.ipam == Ipam::Dhcp && *self.speaks.of(family)
    }

    /// Whether it is a bridge of ours, with rules of ours.
    pub fn is_managed_bridge(&self) -> bool {
        self.driver == Driver::Bridge && self.options.managed
    }

    /// Whether its containers are behind interfaces of ours, with rules of ours.
    pub fn is_ruled(&self) -> bool {
        self.is_managed_bridge() || self.driver.is_routed()
    }

    /// Whether the host routes to each of its containers by a veth pair of its own: there is no bridge.
    pub const fn is_routed(&self) -> bool {
        self.driver.is_routed() && !self.options.l2
    }

    /// Whether it is one broadcast domain over several hosts.
    pub const fn is_l2(&self) -> bool {
        matches!(self.driver, Driver::Overlay) && self.options.l2
    }

    /// Whether names are answered on addresses of the host.
    pub fn answers_names(&self) -> bool {
        self.names && (self.is_ruled() || !self.names_at.is_empty())
    }

    /// The addresses of the host where names are answered.
    pub fn names_places(&self) -> Vec<IpAddr> {
        match self.answers_names() {
            true if self.is_ruled() => self.gateways(),
            true => self.names_at.clone(),
            false => Vec::new(),
        }
    }

    /// Whom a container asks for names in `family`, if its gateway there is `gateway`.
    pub fn name_server(&self, family: Family, gateway: Option<IpAddr>) -> Option<IpAddr> {
        match self.answers_names() {
            true if self.is_ruled() => gateway,
            true => self.names_at.iter().copied().find(|address| Family::of(*address) == family),
            false => None,
        }
    }

    /// Whether its interfaces have the MAC of the parent.
    pub fn shares_parents_mac(&self) -> bool {
        match self.driver {
            Driver::Ipvlan => true,
            Driver::Macvlan => self.options.macvlan_mode == MacvlanMode::Passthru,
            _ => false,
        }
    }

    /// Whether the kernel holds its objects only while it has endpoints.
    pub fn comes_and_goes(&self) -> bool {
        self.transient || self.is_predefined() || self.driver == Driver::Overlay
    }

    /// Whether the network has subnets of `family`.
    pub fn has(&self, family: Family) -> bool {
        self.subnets_of(family).next().is_some()
    }

    /// The subnets of `family`, in the order given.
    pub fn subnets_of(&self, family: Family) -> impl Iterator<Item = &Subnet> {
        self.subnets.iter().filter(move |subnet| subnet.family() == family)
    }

    /// The gateway mode of `family`.
    pub fn mode(&self, family: Family) -> GatewayMode {
        *self.options.gateway_mode.of(family)
    }

    /// Whether containers may route out through it in `family`.
    pub fn routes_out(&self, family: Family) -> bool {
        !self.internal && self.subnets_of(family).any(|s| s.gateway.is_some())
    }

    /// Whether the host itself has the gateway address of `subnet`, at the bridge or at every host end.
    pub fn host_answers(&self, subnet: &Subnet) -> bool {
        self.is_ruled()
            && self.mode(subnet.family()) != GatewayMode::Isolated
            && !(self.options.inhibit_ipv4 && subnet.family() == Family::V4)
    }

    /// One of `bridge`, `host`, `none`: always there, never removed.
    pub fn is_predefined(&self) -> bool {
        matches!(self.name.as_str(), "bridge" | "host" | "none")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn network(internal: bool, subnets: &[(&str, Option<&str>)], options: &[(&str, &str)]) -> Network {
        let options: BTreeMap<String, String> =
            options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let subnet = |(net, gateway): &(&str, Option<&str>)| Subnet {
            net: net.parse().unwrap(),
            range: None,
            gateway: gateway.map(|ip| ip.parse().unwrap()),
            aux: BTreeMap::new(),
            configured: true,
            fallback: false,
            pool: None,
            shared: false,
        };
        Network {
            id: Id::from_bytes([1; 32]),
            name: "n".parse().unwrap(),
            driver: Driver::Bridge,
            internal,
            ipam: Ipam::Local,
            speaks: PerFamily::default(),
            subnets: subnets.iter().map(subnet).collect(),
            options: NetworkOptions::from_pairs(Driver::Bridge, &options).unwrap(),
            dns: Vec::new(),
            raw_options: options,
            ipam_options: None,
            labels: BTreeMap::new(),
            bridge: "br0".parse().unwrap(),
            subinterface: None,
            overlay: None,
            routes: Vec::new(),
            names: true,
            names_at: Vec::new(),
            names_port: None,
            transient: false,
            mtu: Mtu::ETHERNET,
            created: 0,
            phase: Phase::Settled,
        }
    }

    const SUBNETS: [(&str, Option<&str>); 3] =
        [("10.0.0.0/24", None), ("fd00::/64", None), ("10.0.1.0/24", Some("10.0.1.1"))];

    #[test]
    fn a_network_routes_out_where_a_subnet_has_a_gateway() {
        let open = network(false, &SUBNETS, &[]);
        assert!(open.has(Family::V4) && open.has(Family::V6));
        assert!(open.routes_out(Family::V4) && !open.routes_out(Family::V6));
        assert_eq!(open.subnets_of(Family::V4).count(), 2);
        let internal = network(true, &SUBNETS, &[]);
        assert!(internal.has(Family::V4) && !internal.routes_out(Family::V4));
        assert!(!network(false, &SUBNETS[..1], &[]).has(Family::V6));
    }

    #[test]
    fn the_host_answers_unless_told_otherwise() {
        let answers = |options| {
            let network = network(true, &SUBNETS, options);
            [&network.subnets[0], &network.subnets[1]].map(|subnet| network.host_answers(subnet))
        };
        assert_eq!(answers(&[]), [true, true]);
        assert_eq!(answers(&[("inhibit_ipv4", "true")]), [false, true]);
        assert_eq!(answers(&[("gateway_mode_ipv6", "isolated")]), [true, false]);
    }

    #[test]
    fn drivers_by_their_names() {
        use Driver::{Bridge, Host, Ipvlan, Macvlan, None, Overlay, Ptp};
        for driver in [Bridge, Macvlan, Ipvlan, Ptp, Overlay, Host, None] {
            assert_eq!(driver.to_string().parse(), Ok(driver));
        }
        assert!("weave".parse::<Driver>().unwrap_err().hint.is_some());
    }

    #[test]
    fn ipam_drivers_by_their_names() {
        for ipam in [Ipam::Local, Ipam::Dhcp, Ipam::None] {
            assert_eq!(ipam.to_string().parse(), Ok(ipam));
        }
        assert_eq!("host-local".parse(), Ok(Ipam::Local));
        assert!("static".parse::<Ipam>().unwrap_err().hint.is_some());
    }

    #[test]
    fn addresses_are_leased_in_the_families_spoken() {
        let mut network = network(false, &[], &[]);
        network.speaks = PerFamily { v4: true, v6: false };
        assert!(!network.leases(Family::V4), "nobody is asked where we give out addresses");
        network.ipam = Ipam::Dhcp;
        assert!(network.leases(Family::V4) && !network.leases(Family::V6));
    }
}
