use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::invalid::serde_by_text;
use crate::{Driver, Family, IfName, Invalid, PerFamily};

/// A maximum transmission unit in bytes of IP packet: 68 (RFC 791) to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

impl Mtu {
    /// Ethernet's 1500 bytes.
    pub const ETHERNET: Self = Self(1500);
    /// The least that IPv4 needs (RFC 791).
    pub const LEAST: Self = Self(68);
    /// The least that IPv6 needs (RFC 8200 §5).
    pub const IPV6_MIN: Self = Self(1280);

    /// The MTU of `bytes`.
    ///
    /// # Errors
    /// [`Invalid`] below 68 bytes or above 65535.
    pub fn new(bytes: u32) -> Result<Self, Invalid> {
        match u16::try_from(bytes) {
            Ok(fits) if fits >= 68 => Ok(Self(fits)),
            _ => Err(Invalid::new("MTU", bytes.to_string(), "is not between 68 and 65535")),
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl FromStr for Mtu {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::new(text.parse().map_err(|_| Invalid::new("MTU", text, "is not a number"))?)
    }
}

serde_by_text!(Mtu);

/// How a network's addresses are seen from outside, per family (Docker's `gateway_mode_ipv4/6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum GatewayMode {
    /// Masqueraded on the way out; reached from outside through published ports only.
    #[default]
    Nat,
    /// As `nat`, and every port is reachable at the container's own address.
    NatUnprotected,
    /// No translation: published ports are open at the container's own address.
    Routed,
    /// The bridge has no address of the family and the host is no neighbour; internal networks only.
    Isolated,
}

impl fmt::Display for GatewayMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nat => "nat",
            Self::NatUnprotected => "nat-unprotected",
            Self::Routed => "routed",
            Self::Isolated => "isolated",
        })
    }
}

impl FromStr for GatewayMode {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "nat" => Ok(Self::Nat),
            "nat-unprotected" => Ok(Self::NatUnprotected),
            "routed" => Ok(Self::Routed),
            "isolated" => Ok(Self::Isolated),
            _ => Err(Invalid::new("gateway mode", text, "is unknown")
                .hint("choose nat, nat-unprotected, routed or isolated")),
        }
    }
}

serde_by_text!(GatewayMode);

/// Which other networks a bridge network can exchange packets with (netavark's `isolate`).
///
/// Two networks do when at least one of them is `False` and neither is `Strict`. Published ports are open to all but
/// internal networks either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Isolate {
    /// With none.
    #[default]
    Strict,
    /// With those that are `False`.
    True,
    /// With all but strict ones.
    False,
}

impl fmt::Display for Isolate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Strict => "strict",
            Self::True => "true",
            Self::False => "false",
        })
    }
}

impl FromStr for Isolate {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "strict" => Ok(Self::Strict),
            _ => boolean(text)
                .map(|on| if on { Self::True } else { Self::False })
                .map_err(|_| Invalid::new("isolation", text, "is unknown").hint("choose strict, true or false")),
        }
    }
}

serde_by_text!(Isolate);

/// How the interfaces of a macvlan network see each other and the host (`IFLA_MACVLAN_MODE`, ip-link(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum MacvlanMode {
    /// Directly.
    #[default]
    Bridge,
    /// Not at all.
    Private,
    /// Over the switch outside.
    Vepa,
    /// There is one only, and it takes the parent over.
    Passthru,
    /// They take frames from listed sources only; a list is somebody else's to make.
    Source,
}

impl fmt::Display for MacvlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
            Self::Source => "source",
        })
    }
}

impl FromStr for MacvlanMode {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru, Self::Source]
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| {
                Invalid::new("macvlan mode", text, "is unknown")
                    .hint("choose bridge, private, vepa, passthru or source")
            })
    }
}

serde_by_text!(MacvlanMode);

/// What the interfaces of an ipvlan network share with the parent (`IFLA_IPVLAN_MODE`, ip-link(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum IpvlanMode {
    /// The link: they answer ARP and neighbour solicitations themselves.
    #[default]
    L2,
    /// The host's routing.
    L3,
    /// The host's routing and connection tracking.
    L3s,
}

impl fmt::Display for IpvlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::L3s => "l3s",
        })
    }
}

impl FromStr for IpvlanMode {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::L2, Self::L3, Self::L3s]
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| Invalid::new("ipvlan mode", text, "is unknown").hint("choose l2, l3 or l3s"))
    }
}

serde_by_text!(IpvlanMode);

/// How packets of an overlay network get from host to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Backend {
    /// In tunnels.
    #[default]
    Vxlan,
    /// As they are to hosts on the same LAN, in tunnels to all others.
    Direct,
}

impl Backend {
    /// Whether it is what a network has for which nobody chose.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vxlan => "vxlan",
            Self::Direct => "direct",
        })
    }
}

impl FromStr for Backend {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "vxlan" => Ok(Self::Vxlan),
            "direct" => Ok(Self::Direct),
            _ => Err(Invalid::new("backend", text, "is unknown").hint("choose vxlan or direct")),
        }
    }
}

serde_by_text!(Backend);

/// The options of a network, out of Docker's names (`com.docker.network.…`) or our short ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkOptions {
    /// The bridge's device name; made up from the network's id when none is given.
    pub bridge: Option<IfName>,
    /// Whether containers of the network reach each other.
    pub icc: bool,
    /// Whether what leaves the network towards the world is masqueraded (mode `nat` only).
    pub masquerade: bool,
    /// The MTU asked for; none follows the path of the default route.
    pub mtu: Option<Mtu>,
    /// The gateway mode of each family.
    pub gateway_mode: PerFamily<GatewayMode>,
    /// Translate to this source address instead of masquerading, per family.
    pub snat: PerFamily<Option<IpAddr>>,
    /// The host address that ports are published on when `--publish` names none.
    pub host_binding: Option<IpAddr>,
    /// The first part of interface names in containers.
    pub interface_prefix: String,
    /// Host interfaces from which containers are reachable at their own addresses.
    pub trusted_host_interfaces: Vec<IfName>,
    /// Give the bridge no IPv4 address, although the network has an IPv4 gateway.
    pub inhibit_ipv4: bool,
    /// Unsolicited ARP replies and neighbour advertisements sent when an address moves to a new MAC, 0 to 3.
    pub advertise: u8,
    /// Drop frames whose source MAC, IP or ARP address is not the endpoint's own, and router advertisements.
    pub guard: bool,
    /// Which other networks it exchanges packets with.
    pub isolate: Isolate,
    /// How many connections each of its containers may have that the kernel remembers; none leaves it at its share of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Whether containers get a default route through it.
    pub default_route: bool,
    /// The priority of its routes in containers, lower wins; none for the kernel's own.
    pub metric: Option<u32>,
    /// Whether the bridge is ours; if not, ports join a bridge that is there, which stays as it is.
    pub managed: bool,
    /// The VLAN its ports are in, untagged, 1 to 4094; the bridge filters by VLAN then.
    pub vlan: Option<u16>,
    /// The VRF that the bridge belongs to; it has to be there.
    pub vrf: Option<IfName>,
    /// The interface of the host that macvlan and ipvlan interfaces are on.
    pub parent: Option<IfName>,
    /// How macvlan interfaces see each other.
    pub macvlan_mode: MacvlanMode,
    /// How many macvlan interfaces a broadcast goes to before it is queued (`IFLA_MACVLAN_BC_CUTOFF`); -1 never queues.
    pub bclim: Option<i32>,
    /// Whether what hosts send each other of it is encrypted.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub encrypted: bool,
    /// Whether packets between its containers of different hosts go past routing, connection tracking and rules; none leaves it
    /// to who brought the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortcut: Option<bool>,
    /// How packets get from host to host.
    #[serde(default, skip_serializing_if = "Backend::is_usual")]
    pub backend: Backend,
    /// Whether an overlay network is one broadcast domain: bridges on all hosts, with tunnels between them.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub l2: bool,
    /// What ipvlan interfaces share with the parent.
    pub ipvlan_mode: IpvlanMode,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            bridge: None,
            icc: true,
            masquerade: true,
            mtu: None,
            gateway_mode: PerFamily::default(),
            snat: PerFamily::default(),
            host_binding: None,
            interface_prefix: "eth".to_owned(),
            trusted_host_interfaces: Vec::new(),
            inhibit_ipv4: false,
            advertise: 3,
            guard: true,
            isolate: Isolate::default(),
            connections: None,
            default_route: true,
            metric: None,
            managed: true,
            vlan: None,
            vrf: None,
            parent: None,
            macvlan_mode: MacvlanMode::default(),
            bclim: None,
            encrypted: false,
            shortcut: None,
            backend: Backend::default(),
            l2: false,
            ipvlan_mode: IpvlanMode::default(),
        }
    }
}

/// What the keys of `--opt` are called; the short names come first.
const KEYS: &[(&str, &str)] = &[
    ("bridge", "com.docker.network.bridge.name"),
    ("icc", "com.docker.network.bridge.enable_icc"),
    ("masquerade", "com.docker.network.bridge.enable_ip_masquerade"),
    ("mtu", "com.docker.network.driver.mtu"),
    ("gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv4"),
    ("gateway_mode_ipv6", "com.docker.network.bridge.gateway_mode_ipv6"),
    ("host_ipv4", "com.docker.network.host_ipv4"),
    ("host_ipv6", "com.docker.network.host_ipv6"),
    ("host_binding", "com.docker.network.bridge.host_binding_ipv4"),
    ("interface_prefix", "com.docker.network.container_iface_prefix"),
    ("trusted_host_interfaces", "com.docker.network.bridge.trusted_host_interfaces"),
    ("inhibit_ipv4", "com.docker.network.bridge.inhibit_ipv4"),
    ("advertise", "com.docker.network.advertise_addr_nmsgs"),
    ("advertise_ms", "com.docker.network.advertise_addr_ms"),
    ("default_bridge", "com.docker.network.bridge.default_bridge"),
    ("guard", "portolan.guard"),
    ("isolate", "portolan.isolate"),
    ("connections", "portolan.connections"),
    ("no_default_route", "portolan.no_default_route"),
    ("metric", "portolan.metric"),
    ("mode", "portolan.mode"),
    ("vlan", "portolan.vlan"),
    ("vrf", "portolan.vrf"),
];

/// The keys that are about a bridge or its ports.
const BRIDGE_KEYS: &[&str] =
    &["bridge", "inhibit_ipv4", "advertise", "advertise_ms", "default_bridge", "guard", "mode", "vlan", "vrf"];

/// The keys for macvlan and ipvlan, with Docker's other names for them.
const CHILD_KEYS: &[(&str, &str)] = &[
    ("parent", "com.docker.network.parent"),
    ("mtu", "com.docker.network.driver.mtu"),
    ("interface_prefix", "com.docker.network.container_iface_prefix"),
    ("no_default_route", "portolan.no_default_route"),
    ("metric", "portolan.metric"),
];

impl NetworkOptions {
    /// Reads `--opt` pairs.
    ///
    /// # Errors
    /// [`Invalid`] names the key and why it or its value is refused; unknown keys are refused.
    pub fn from_pairs(driver: Driver, pairs: &BTreeMap<String, String>) -> Result<Self, Invalid> {
        let own: &[(&str, &str)] = match driver {
            Driver::Macvlan => &[("mode", "macvlan_mode"), ("bclim", "macvlan_bclim")],
            Driver::Ipvlan => &[("mode", "ipvlan_mode")],
            Driver::Overlay => &[
                ("encrypted", "portolan.encrypted"),
                ("shortcut", "portolan.shortcut"),
                ("backend", "portolan.backend"),
                ("mode", "portolan.mode"),
            ],
            Driver::Bridge | Driver::Ptp | Driver::Host | Driver::None => &[],
        };
        let is_child = matches!(driver, Driver::Macvlan | Driver::Ipvlan);
        let common = if is_child { CHILD_KEYS } else { KEYS };
        let is_meant = |short: &str| !driver.is_routed() || !BRIDGE_KEYS.contains(&short);
        let keys = || own.iter().chain(common.iter().filter(|(short, _)| is_meant(short)));
        let mut options = Self::default();
        for (key, value) in pairs {
            let short = keys().find(|(short, long)| key == short || key == long).map(|(short, _)| *short);
            let short = short.ok_or_else(|| {
                let known = keys().map(|(short, _)| *short).collect::<Vec<_>>().join(", ");
                let of_bridges = KEYS.iter().any(|(short, long)| (key == short || key == long) && !is_meant(short));
                let why = match of_bridges {
                    true => format!("is for bridges, and {driver} networks have none"),
                    false => "is unknown".to_owned(),
                };
                Invalid::new("network option", key, why)
                    .hint(format!("known options: {known}, and Docker's com.docker.network.* names for them"))
            })?;
            options.set(driver, short, value).map_err(|e| {
                let e2 = Invalid::new("network option", format!("{key}={value}"), e.reason);
                match e.hint {
                    Some(hint) => e2.hint(hint),
                    None => e2,
                }
            })?;
        }
        options.agree()?;
        Ok(options)
    }

    /// Whether they can all hold at once.
    fn agree(&self) -> Result<(), Invalid> {
        let refused = |why: &'static str, hint: &'static str| {
            Err(Invalid::new("network option", "backend=direct", why).hint(hint))
        };
        if self.l2 && (self.backend == Backend::Direct || self.shortcut == Some(true)) {
            return Err(Invalid::new(
                "network option",
                "mode=l2",
                "excludes `backend=direct` and `shortcut=true`: frames go from bridge to bridge by tunnels",
            )
            .hint("leave one of them out"));
        }
        if self.backend == Backend::Direct && self.encrypted {
            return refused(
                "and `encrypted` exclude each other: what goes without a tunnel goes in clear",
                "leave one of them out",
            );
        }
        if self.backend == Backend::Direct && self.shortcut == Some(true) {
            return refused(
                "and `shortcut=true` exclude each other: shortcuts lead into tunnels",
                "leave one of them out",
            );
        }
        Ok(())
    }

    fn set(&mut self, driver: Driver, key: &str, value: &str) -> Result<(), Invalid> {
        match key {
            "bridge" => self.bridge = Some(value.parse()?),
            "icc" => self.icc = boolean(value)?,
            "masquerade" => self.masquerade = boolean(value)?,
            "mtu" => self.mtu = if value == "0" { None } else { Some(value.parse()?) },
            "gateway_mode_ipv4" => *self.gateway_mode.of_mut(Family::V4) = value.parse()?,
            "gateway_mode_ipv6" => *self.gateway_mode.of_mut(Family::V6) = value.parse()?,
            "host_ipv4" => {
                *self.snat.of_mut(Family::V4) = Some(IpAddr::V4(address::<Ipv4Addr>(value, "is not an IPv4 address")?))
            }
            "host_ipv6" => {
                *self.snat.of_mut(Family::V6) = Some(IpAddr::V6(address::<Ipv6Addr>(value, "is not an IPv6 address")?))
            }
            "host_binding" => self.host_binding = Some(address::<IpAddr>(value, "is not an IP address")?),
            "interface_prefix" => {
                // A number is added to it, so two characters of IFNAMSIZ stay free.
                if value.len() > 12 {
                    return Err(Invalid::new("interface prefix", value, "is longer than 12 characters"));
                }
                value.parse::<IfName>()?;
                self.interface_prefix = value.to_owned();
            }
            "trusted_host_interfaces" => {
                self.trusted_host_interfaces =
                    value.split(':').filter(|v| !v.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
            }
            "inhibit_ipv4" => self.inhibit_ipv4 = boolean(value)?,
            "advertise" => {
                self.advertise = value
                    .parse()
                    .ok()
                    .filter(|n| *n <= 3)
                    .ok_or_else(|| Invalid::new("number", value, "is not between 0 and 3"))?;
            }
            "advertise_ms" => {
                value
                    .parse::<u16>()
                    .ok()
                    .filter(|n| (100..=2000).contains(n))
                    .ok_or_else(|| Invalid::new("interval", value, "is not between 100 and 2000 ms"))?;
            }
            "default_bridge" => {
                boolean(value)?;
            }
            "guard" => self.guard = boolean(value)?,
            "isolate" => self.isolate = value.parse()?,
            "connections" => {
                let number = value.parse().ok().filter(|number| *number > 0);
                self.connections =
                    Some(number.ok_or_else(|| Invalid::new("number", value, "is not between 1 and 4294967295"))?);
            }
            "no_default_route" => self.default_route = !boolean(value)?,
            "metric" => {
                let metric = value.parse().map_err(|_| Invalid::new("metric", value, "is not a number"))?;
                // The kernel takes it for none.
                self.metric = (metric != 0).then_some(metric);
            }
            "mode" => match driver {
                Driver::Macvlan => self.macvlan_mode = value.parse()?,
                Driver::Ipvlan => self.ipvlan_mode = value.parse()?,
                Driver::Overlay => {
                    self.l2 = match value {
                        "routed" => false,
                        "l2" => true,
                        _ => return Err(Invalid::new("mode", value, "is unknown").hint("choose routed or l2")),
                    }
                }
                Driver::Bridge | Driver::Ptp | Driver::Host | Driver::None => {
                    self.managed = match value {
                        "managed" => true,
                        "unmanaged" => false,
                        _ => {
                            return Err(
                                Invalid::new("bridge mode", value, "is unknown").hint("choose managed or unmanaged")
                            );
                        }
                    }
                }
            },
            "vlan" => {
                let vlan = value.parse().ok().filter(|vlan| (1..=4094).contains(vlan));
                self.vlan = Some(vlan.ok_or_else(|| Invalid::new("VLAN", value, "is not between 1 and 4094"))?);
            }
            "vrf" => self.vrf = Some(value.parse()?),
            "parent" => self.parent = Some(value.parse()?),
            // Docker's clients give no value.
            "encrypted" => self.encrypted = value.is_empty() || boolean(value)?,
            "backend" => self.backend = value.parse()?,
            "shortcut" => self.shortcut = Some(boolean(value)?),
            "bclim" => {
                self.bclim = Some(value.parse().map_err(|_| Invalid::new("number", value, "is not a number"))?);
            }
            _ => unreachable!("every key that is looked up is handled"),
        }
        Ok(())
    }
}

fn boolean(value: &str) -> Result<bool, Invalid> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Invalid::new("boolean", value, "is not true or false")),
    }
}

fn address<T: FromStr>(value: &str, why: &'static str) -> Result<T, Invalid> {
    value.parse().map_err(|_| Invalid::new("address", value, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Result<NetworkOptions, Invalid> {
        of(Driver::Bridge, pairs)
    }

    fn of(driver: Driver, pairs: &[(&str, &str)]) -> Result<NetworkOptions, Invalid> {
        NetworkOptions::from_pairs(driver, &pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn docker_names_and_short_names_mean_the_same() {
        for (short, long) in KEYS {
            let value = match *short {
                "bridge" | "interface_prefix" | "trusted_host_interfaces" => "br9",
                "mtu" => "1400",
                "gateway_mode_ipv4" | "gateway_mode_ipv6" => "routed",
                "host_ipv4" | "host_binding" => "10.0.0.1",
                "host_ipv6" => "fd00::1",
                "mode" => "unmanaged",
                "vlan" | "metric" | "connections" => "20",
                "vrf" => "blue",
                "advertise" => "1",
                "advertise_ms" => "100",
                _ => "false",
            };
            assert_eq!(options(&[(short, value)]), options(&[(long, value)]), "{short}");
        }
    }

    #[test]
    fn each_driver_has_its_own_modes() {
        assert_eq!(of(Driver::Macvlan, &[("mode", "vepa")]).unwrap().macvlan_mode, MacvlanMode::Vepa);
        assert_eq!(of(Driver::Macvlan, &[("macvlan_mode", "private")]).unwrap().macvlan_mode, MacvlanMode::Private);
        assert_eq!(of(Driver::Ipvlan, &[("ipvlan_mode", "l3s")]).unwrap().ipvlan_mode, IpvlanMode::L3s);
        assert!(!of(Driver::Bridge, &[("mode", "unmanaged")]).unwrap().managed);
        for (driver, key, value) in [
            (Driver::Bridge, "mode", "vepa"),
            (Driver::Bridge, "parent", "eth0"),
            (Driver::Macvlan, "isolate", "true"),
            (Driver::Ptp, "bridge", "br0"),
            (Driver::Ptp, "com.docker.network.bridge.inhibit_ipv4", "true"),
            (Driver::Ptp, "parent", "eth0"),
            (Driver::Ipvlan, "bclim", "1"),
            (Driver::Ipvlan, "mode", "bridge"),
        ] {
            let error = of(driver, &[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn what_goes_in_clear_is_not_encrypted() {
        assert_eq!(of(Driver::Overlay, &[("backend", "direct")]).unwrap().backend, Backend::Direct);
        for (key, value) in [("encrypted", ""), ("shortcut", "true")] {
            let error = of(Driver::Overlay, &[("backend", "direct"), (key, value)]).unwrap_err();
            assert!(error.to_string().contains("backend=direct") && error.hint.is_some(), "{error}");
        }
        assert!(of(Driver::Overlay, &[("backend", "vxlan"), ("encrypted", "true")]).is_ok());
        assert!(of(Driver::Overlay, &[("backend", "ipip")]).is_err());
        assert!(of(Driver::Bridge, &[("backend", "direct")]).is_err());
    }

    #[test]
    fn one_broadcast_domain_goes_by_tunnels() {
        assert!(of(Driver::Overlay, &[("mode", "l2"), ("encrypted", "")]).unwrap().l2);
        assert!(!of(Driver::Overlay, &[("mode", "routed")]).unwrap().l2);
        for (key, value) in [("backend", "direct"), ("shortcut", "true")] {
            let error = of(Driver::Overlay, &[("mode", "l2"), (key, value)]).unwrap_err();
            assert!(error.to_string().contains("mode=l2") && error.hint.is_some(), "{error}");
        }
        assert!(of(Driver::Overlay, &[("mode", "unmanaged")]).is_err());
    }

    #[test]
    fn bad_options_name_key_and_reason() {
        for (key, value) in [
            ("icc", "maybe"),
            ("mtu", "12"),
            ("mtu", "99999"),
            ("gateway_mode_ipv4", "x"),
            ("host_ipv4", "::1"),
            ("bridge", "a/b"),
            ("advertise", "4"),
            ("isolate", "perhaps"),
            ("vlan", "0"),
            ("vlan", "4095"),
            ("metric", "-1"),
            ("connections", "0"),
            ("connections", "many"),
            ("no.such", "1"),
        ] {
            let error = options(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
