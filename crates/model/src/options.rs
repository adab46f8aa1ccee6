use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::invalid::serde_by_text;
use crate::{Family, IfName, Invalid, PerFamily};

/// A maximum transmission unit in bytes of IP packet: 68 (RFC 791) to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

impl Mtu {
    /// Ethernet's 1500 bytes.
    pub const ETHERNET: Self = Self(1500);
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

/// The options of a bridge network, out of Docker's names (`com.docker.network.…`) or our short ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BridgeOptions {
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
}

impl Default for BridgeOptions {
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
];

impl BridgeOptions {
    /// Reads `--opt` pairs.
    ///
    /// # Errors
    /// [`Invalid`] names the key and why it or its value is refused; unknown keys are refused.
    pub fn from_pairs(pairs: &BTreeMap<String, String>) -> Result<Self, Invalid> {
        let mut options = Self::default();
        for (key, value) in pairs {
            let short = KEYS.iter().find(|(short, long)| key == short || key == long).map(|(short, _)| *short);
            let short = short.ok_or_else(|| {
                let known = KEYS.iter().map(|(short, _)| *short).collect::<Vec<_>>().join(", ");
                Invalid::new("network option", key, "is unknown")
                    .hint(format!("known options: {known}, and Docker's com.docker.network.* names for them"))
            })?;
            options.set(short, value).map_err(|e| {
                let e2 = Invalid::new("network option", format!("{key}={value}"), e.reason);
                match e.hint {
                    Some(hint) => e2.hint(hint),
                    None => e2,
                }
            })?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Invalid> {
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
            _ => unreachable!("every key of KEYS is handled"),
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

    fn options(pairs: &[(&str, &str)]) -> Result<BridgeOptions, Invalid> {
        BridgeOptions::from_pairs(&pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
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
                "advertise" => "1",
                "advertise_ms" => "100",
                _ => "false",
            };
            assert_eq!(options(&[(short, value)]), options(&[(long, value)]), "{short}");
        }
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
            ("no.such", "1"),
        ] {
            let error = options(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
