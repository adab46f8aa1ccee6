//! What the plugin `bridge` is told, and what follows from it.

use ipnet::IpNet;
use portolan_cni::{Error, Route, Success};
use serde::Deserialize;

use crate::conf::{invalid, or_default};

const LAST_VLAN: i64 = 4094;

/// The configuration, as the original has it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Options {
    #[serde(default, deserialize_with = "or_default")]
    bridge: String,
    #[serde(default, rename = "isgateway", deserialize_with = "or_default")]
    is_gateway: bool,
    #[serde(default, rename = "isdefaultgateway", deserialize_with = "or_default")]
    pub(super) is_default_gateway: bool,
    #[serde(default, rename = "forceaddress", deserialize_with = "or_default")]
    pub(super) force_address: bool,
    #[serde(default, rename = "ipmasq", deserialize_with = "or_default")]
    pub(super) masquerade: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) mtu: u32,
    #[serde(default, rename = "hairpinmode", deserialize_with = "or_default")]
    pub(super) hairpin: bool,
    #[serde(default, rename = "promiscmode", deserialize_with = "or_default")]
    pub(super) promiscuous: bool,
    #[serde(default, deserialize_with = "or_default")]
    vlan: i64,
    #[serde(default, rename = "vlantrunk")]
    trunk: Option<Vec<Trunk>>,
    #[serde(default, rename = "preservedefaultvlan")]
    preserve_default_vlan: Option<bool>,
    #[serde(default, rename = "macspoofchk", deserialize_with = "or_default")]
    pub(super) check_mac: bool,
    #[serde(default, rename = "enabledad", deserialize_with = "or_default")]
    pub(super) detect_duplicates: bool,
    #[serde(default, rename = "disablecontainerinterface", deserialize_with = "or_default")]
    pub(super) stays_down: bool,
    #[serde(default, rename = "portisolation", deserialize_with = "or_default")]
    pub(super) isolated: bool,
}

/// VLANs that pass a port with their tags.
#[derive(Debug, Clone, Deserialize)]
struct Trunk {
    #[serde(default, rename = "minid")]
    first: Option<i64>,
    #[serde(default, rename = "maxid")]
    last: Option<i64>,
    #[serde(default)]
    id: Option<i64>,
}

/// What VLANs a port is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Vlans {
    /// What the bridge gives to every port.
    Default,
    /// Untagged in one.
    Access(u16),
    /// Tagged in several: ranges in order, apart from each other.
    Trunk(Vec<(u16, u16)>),
}

impl Options {
    /// Refuses what contradicts itself.
    pub(super) fn check(&self, has_ipam: bool) -> Result<(), Error> {
        self.vlans()?;
        if has_ipam && self.stays_down {
            return Err(invalid("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        if self.hairpin && self.promiscuous {
            return Err(invalid("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        let name = self.bridge();
        if name.len() > 15
            || name == "."
            || name == ".."
            || name.contains(|c: char| "/:".contains(c) || c.is_whitespace())
        {
            return Err(invalid(format!("{name:?} is no name of a bridge")));
        }
        Ok(())
    }

    pub(super) fn bridge(&self) -> &str {
        if self.bridge.is_empty() { "cni0" } else { &self.bridge }
    }

    pub(super) fn is_gateway(&self) -> bool {
        self.is_gateway || self.is_default_gateway
    }

    pub(super) fn mtu(&self) -> Option<u32> {
        Some(self.mtu).filter(|mtu| *mtu != 0)
    }

    /// Whether the bridge has to keep VLANs apart.
    pub(super) fn filters_vlans(&self) -> bool {
        self.vlan != 0 || self.trunk.is_some()
    }

    /// Whether ports stay in the bridge's default VLAN besides their own.
    pub(super) fn preserves_default_vlan(&self) -> bool {
        self.preserve_default_vlan.unwrap_or(true)
    }

    pub(super) fn vlans(&self) -> Result<Vlans, Error> {
        let is_vlan = |id: i64| (1..=LAST_VLAN).contains(&id);
        if self.vlan < 0 || self.vlan > LAST_VLAN {
            return Err(invalid(format!("invalid VLAN ID {} (must be between 0 and {LAST_VLAN})", self.vlan)));
        }
        let mut ranges = Vec::new();
        for trunk in self.trunk.iter().flatten() {
            match (trunk.first, trunk.last) {
                (Some(first), _) if trunk.last.is_some() && !is_vlan(first) => {
                    return Err(invalid("incorrect trunk minID parameter"));
                }
                (Some(_), Some(last)) if !is_vlan(last) => return Err(invalid("incorrect trunk maxID parameter")),
                (Some(first), Some(last)) if last < first => {
                    return Err(invalid("minID is greater than maxID in trunk parameter"));
                }
                (Some(first), Some(last)) => ranges.push((first, last)),
                (None, Some(_)) => {
                    return Err(invalid("minID and maxID should be configured simultaneously, minID is missing"));
                }
                (Some(_), None) => {
                    return Err(invalid("minID and maxID should be configured simultaneously, maxID is missing"));
                }
                (None, None) => {}
            }
            match trunk.id {
                Some(id) if !is_vlan(id) => return Err(invalid("incorrect trunk id parameter")),
                Some(id) => ranges.push((id, id)),
                None => {}
            }
        }
        ranges.sort_unstable();
        let mut apart: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges.into_iter().map(|(first, last)| (first as u16, last as u16)) {
            match apart.last_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => apart.push((first, last)),
            }
        }
        match (self.vlan, apart.is_empty()) {
            (0, true) => Ok(Vlans::Default),
            (0, false) => Ok(Vlans::Trunk(apart)),
            (id, true) => Ok(Vlans::Access(id as u16)),
            (_, false) => Err(invalid("cannot set vlan and vlanTrunk at the same time")),
        }
    }

    /// Completes the answer of the IPAM plugin: gateways and default routes. The addresses that the bridge is to have.
    pub(super) fn gateways(&self, success: &mut Success) -> Vec<IpNet> {
        if !self.is_gateway() {
            return Vec::new();
        }
        let mut gateways = Vec::new();
        for ip in &mut success.ips {
            let gateway = *ip.gateway.get_or_insert_with(|| first_address(&ip.address));
            if self.is_default_gateway {
                let is_v4 = gateway.is_ipv4();
                let is_default = |route: &Route| {
                    route.gw.is_some() && route.dst.prefix_len() == 0 && route.dst.addr().is_ipv4() == is_v4
                };
                if !success.routes.iter().any(is_default) {
                    let everywhere = if is_v4 { "0.0.0.0/0" } else { "::/0" }.parse().expect("a prefix");
                    success.routes.push(Route::new(everywhere, Some(gateway)));
                }
            }
            gateways.extend(IpNet::new(gateway, ip.address.prefix_len()));
        }
        gateways
    }
}

/// The one after the subnet's own.
fn first_address(net: &IpNet) -> std::net::IpAddr {
    match net.network() {
        std::net::IpAddr::V4(network) => std::net::Ipv4Addr::from_bits(network.to_bits().wrapping_add(1)).into(),
        std::net::IpAddr::V6(network) => std::net::Ipv6Addr::from_bits(network.to_bits().wrapping_add(1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        portolan_cni::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn defaults_and_contradictions() {
        let plain = options("{}");
        assert_eq!((plain.bridge(), plain.is_gateway(), plain.mtu()), ("cni0", false, None));
        assert!(plain.preserves_default_vlan() && !plain.filters_vlans());
        plain.check(true).unwrap();
        assert!(options(r#"{"isDefaultGateway":true}"#).is_gateway());
        for (text, msg) in [
            (
                r#"{"hairpinMode":true,"promiscMode":true}"#,
                "cannot set hairpin mode and promiscuous mode at the same time",
            ),
            (r#"{"disableContainerInterface":true}"#, "cannot use IPAM when DisableContainerInterface flag is set"),
            (r#"{"vlan":4095}"#, "invalid VLAN ID 4095 (must be between 0 and 4094)"),
            (r#"{"vlan":-1}"#, "invalid VLAN ID -1 (must be between 0 and 4094)"),
            (r#"{"vlan":7,"vlanTrunk":[{"id":8}]}"#, "cannot set vlan and vlanTrunk at the same time"),
            (r#"{"vlanTrunk":[{"minID":0,"maxID":5}]}"#, "incorrect trunk minID parameter"),
            (r#"{"vlanTrunk":[{"minID":1,"maxID":5000}]}"#, "incorrect trunk maxID parameter"),
            (r#"{"vlanTrunk":[{"minID":9,"maxID":5}]}"#, "minID is greater than maxID in trunk parameter"),
            (r#"{"vlanTrunk":[{"id":0}]}"#, "incorrect trunk id parameter"),
            (r#"{"vlanTrunk":[{"minID":9}]}"#, "minID and maxID should be configured simultaneously, maxID is missing"),
            (r#"{"bridge":"a/b"}"#, r#""a/b" is no name of a bridge"#),
        ] {
            assert_eq!(options(text).check(true).unwrap_err().msg, msg, "{text}");
        }
    }

    #[test]
    fn trunks_are_ranges() {
        let text = r#"{"vlanTrunk":[{"id":20},{"minID":1,"maxID":5,"id":9},{"minID":4,"maxID":8}]}"#;
        assert_eq!(options(text).vlans().unwrap(), Vlans::Trunk(vec![(1, 9), (20, 20)]));
        assert_eq!(options(r#"{"vlan":7}"#).vlans().unwrap(), Vlans::Access(7));
        let empty = options(r#"{"vlanTrunk":[]}"#);
        assert!(empty.filters_vlans() && empty.vlans().unwrap() == Vlans::Default);
    }

    #[test]
    fn gateways_and_default_routes() {
        let answer = || {
            Success::parse(
                br#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.7/24"},{"address":"fd00::7/64","gateway":"fd00::9"}],
                    "routes":[{"dst":"::/0","gw":"fd00::1"}]}"#,
            )
            .unwrap()
        };
        let nets = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut success = answer();
        let gateways = options(r#"{"isDefaultGateway":true}"#).gateways(&mut success);
        assert_eq!(nets(&gateways), ["10.1.0.1/24", "fd00::9/64"]);
        let routes: Vec<String> = success.routes.iter().map(|route| route.dst.to_string()).collect();
        assert_eq!(routes, ["::/0", "0.0.0.0/0"]);
        assert_eq!(success.ips[0].gateway, Some("10.1.0.1".parse().unwrap()));
        let mut success = answer();
        assert!(options("{}").gateways(&mut success).is_empty());
        assert_eq!(success, answer());
        options(r#"{"isGateway":true}"#).gateways(&mut success);
        assert_eq!(success.routes, answer().routes);
    }
}
