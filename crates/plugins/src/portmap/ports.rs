//! What `portmap` is asked for, and which elements do that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portolan_cni::{Code, Error, PortMapping};
use portolan_model::{Family, Protocol};
use portolan_plan::{Data, Element, Field, Set};
use serde::Deserialize;

/// The configuration's own fields.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Options {
    #[serde(default)]
    backend: Option<String>,
    #[serde(default)]
    snat: Option<bool>,
    #[serde(default, rename = "masqall")]
    masquerade_all: bool,
    #[serde(default, rename = "markmasqbit")]
    mark_bit: Option<i64>,
    #[serde(default, rename = "externalsetmarkchain")]
    mark_chain: Option<String>,
    #[serde(default, rename = "conditionsv4")]
    conditions4: Option<Vec<String>>,
    #[serde(default, rename = "conditionsv6")]
    conditions6: Option<Vec<String>>,
}

/// A port to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) protocol: Protocol,
    /// The address of the host; none for all of them.
    pub(super) address: Option<IpAddr>,
    /// The family, if only one is meant.
    family: Option<Family>,
    pub(super) host: u16,
    container: u16,
}

impl Options {
    pub(super) fn check(&self) -> Result<(), Error> {
        let refuse = |code, msg: String| Err(Error::new(code, msg));
        if let Some(backend) = &self.backend
            && !matches!(backend.as_str(), "iptables" | "nftables")
        {
            return refuse(Code::InvalidConfig, format!("unrecognized backend {backend:?}"));
        }
        if self.mark_bit.is_some() && self.mark_chain.is_some() {
            return refuse(Code::InvalidConfig, "Cannot specify externalSetMarkChain and markMasqBit".to_owned());
        }
        if self.mark_bit.is_some_and(|bit| !(0..=31).contains(&bit)) {
            return refuse(Code::InvalidConfig, "MasqMarkBit must be between 0 and 31".to_owned());
        }
        for (name, conditions) in [("conditionsV4", &self.conditions4), ("conditionsV6", &self.conditions6)] {
            if conditions.as_ref().is_some_and(|conditions| !conditions.is_empty()) {
                let error = Error::new(Code::Unsupported, format!("{name} is not supported"));
                return Err(error.details(
                    "conditions are words of iptables; ports are elements of nftables maps here, whose rules are constant",
                ));
            }
        }
        Ok(())
    }

    /// Whether clients that would not see their answers come from the host's address.
    pub(super) fn snat(&self) -> bool {
        self.snat.unwrap_or(true)
    }

    /// The elements that publish `ports` of a container with `addresses`.
    pub(super) fn elements(&self, owner: &str, ports: &[Port], addresses: &[IpNet]) -> Vec<Element> {
        let mut elements: Vec<Element> = Vec::new();
        let mut put = |set, key: Vec<Field>, data| {
            // As in a chain of rules, the first one counts.
            if !elements.iter().any(|other| other.set == set && other.key == key) {
                elements.push(Element { set, key, data, owner: owner.to_owned() });
            }
        };
        for address in addresses {
            let family = Family::of(address.addr());
            let of_family = || ports.iter().filter(move |port| port.family.is_none_or(|only| only == family));
            for port in of_family() {
                let data = Data::AddressPort(address.addr(), port.container);
                let (protocol, ports) = (Field::Protocol(port.protocol), Field::Ports(port.host, port.host));
                match port.address {
                    Some(host) => put(Set::PluginPort(family), vec![protocol, Field::Address(host), ports], data),
                    None => put(Set::PluginAnyPort(family), vec![protocol, ports], data),
                }
            }
            if of_family().next().is_some() {
                for clients in self.clients(address) {
                    let key = vec![Field::Prefix(clients), Field::Address(address.addr())];
                    put(Set::PluginHairpin(family), key, Data::Member);
                }
            }
        }
        elements
    }

    /// Whose answers must come back through the host: those on the container's own network, and the host's own 127.0.0.1.
    fn clients(&self, address: &IpNet) -> Vec<IpNet> {
        let net = |address: IpAddr, len| IpNet::new(address, len).expect("a length of the family");
        let is_v4 = address.addr().is_ipv4();
        match (self.snat(), self.masquerade_all) {
            (false, _) => Vec::new(),
            (true, true) if is_v4 => vec![net(Ipv4Addr::UNSPECIFIED.into(), 0)],
            (true, true) => vec![net(Ipv6Addr::UNSPECIFIED.into(), 0)],
            (true, false) if is_v4 => vec![address.trunc(), net(Ipv4Addr::LOCALHOST.into(), 32)],
            (true, false) => vec![address.trunc()],
        }
    }
}

/// The ports of a runtime.
pub(super) fn read(mappings: &[PortMapping]) -> Result<Vec<Port>, Error> {
    let one = |mapping: &PortMapping| {
        let refuse = |what: String| Error::new(Code::InvalidConfig, what);
        let port = |value: i64| u16::try_from(value).ok().filter(|port| *port != 0);
        let container = port(mapping.container)
            .ok_or_else(|| refuse(format!("Invalid container port number: {}", mapping.container)))?;
        let host = port(mapping.host).ok_or_else(|| refuse(format!("Invalid host port number: {}", mapping.host)))?;
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(refuse(format!("Invalid protocol: {other:?}"))),
        };
        let address: Option<IpAddr> = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| refuse(format!("Invalid host IP: {text:?}")))?),
        };
        let family = address.map(Family::of);
        Ok(Port { protocol, address: address.filter(|address| !address.is_unspecified()), family, host, container })
    };
    mappings.iter().map(one).collect()
}

/// What elements publish, and of which addresses.
pub(super) fn of_elements(elements: &[Element]) -> (Vec<Port>, Vec<IpNet>) {
    let mut addresses: Vec<IpNet> = Vec::new();
    let mut ports = Vec::new();
    for element in elements {
        let (protocol, address, host) = match element.key.as_slice() {
            [Field::Protocol(protocol), Field::Address(address), Field::Ports(host, _)] => {
                (*protocol, Some(*address), *host)
            }
            [Field::Protocol(protocol), Field::Ports(host, _)] => (*protocol, None, *host),
            _ => continue,
        };
        let Data::AddressPort(to, container) = element.data else { continue };
        ports.push(Port { protocol, address, family: Some(Family::of(to)), host, container });
        if !addresses.iter().any(|address| address.addr() == to) {
            addresses.push(to.into());
        }
    }
    (ports, addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host: i64, container: i64, protocol: &str, host_ip: &str) -> PortMapping {
        PortMapping { host, container, protocol: protocol.to_owned(), host_ip: host_ip.to_owned() }
    }

    fn options(json: &str) -> Options {
        portolan_cni::read(json.as_bytes()).unwrap()
    }

    fn shown(options: &Options, mappings: &[PortMapping]) -> Vec<String> {
        let addresses = ["10.4.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
        let elements = options.elements("o", &read(mappings).unwrap(), &addresses);
        let one = |element: &Element| {
            let key: Vec<String> = element.key.iter().map(ToString::to_string).collect();
            format!("{} {} {}", element.set.name(), key.join(" "), element.data).trim().to_owned()
        };
        elements.iter().map(one).collect()
    }

    #[test]
    fn ports_of_every_kind() {
        let mappings = [
            mapping(8080, 80, "TCP", ""),
            mapping(8080, 81, "tcp", ""),
            mapping(53, 53, "udp", "10.0.1.1"),
            mapping(54, 54, "udp", "::"),
        ];
        let ports = [
            "cni_any_port4 tcp 8080 10.4.0.2 . 80",
            "cni_port4 udp 10.0.1.1 53 10.4.0.2 . 53",
            "cni_hairpin4 10.4.0.0/24 10.4.0.2",
            "cni_hairpin4 127.0.0.1 10.4.0.2",
            "cni_any_port6 tcp 8080 fd00::2 . 80",
            "cni_any_port6 udp 54 fd00::2 . 54",
            "cni_hairpin6 fd00::/64 fd00::2",
        ];
        assert_eq!(shown(&options("{}"), &mappings), ports);
        let bare = shown(&options(r#"{"snat":false}"#), &mappings);
        assert!(!bare.iter().any(|line| line.contains("hairpin")), "{bare:?}");
        let all = shown(&options(r#"{"masqAll":true}"#), &mappings);
        let all: Vec<&String> = all.iter().filter(|line| line.contains("hairpin")).collect();
        assert_eq!(all, ["cni_hairpin4 0.0.0.0/0 10.4.0.2", "cni_hairpin6 ::/0 fd00::2"]);
        assert!(shown(&options("{}"), &[]).is_empty());
    }

    #[test]
    fn what_is_refused() {
        for (json, msg) in [
            (r#"{"backend":"ipvs"}"#, r#"unrecognized backend "ipvs""#),
            (r#"{"markMasqBit":32}"#, "MasqMarkBit must be between 0 and 31"),
            (
                r#"{"markMasqBit":3,"externalSetMarkChain":"KUBE-MARK-MASQ"}"#,
                "Cannot specify externalSetMarkChain and markMasqBit",
            ),
            (r#"{"conditionsV4":["-s","10.0.0.0/8"]}"#, "conditionsV4 is not supported"),
            (r#"{"conditionsV6":["-s","fd00::/8"]}"#, "conditionsV6 is not supported"),
        ] {
            assert_eq!(options(json).check().unwrap_err().msg, msg);
        }
        for json in ["{}", r#"{"backend":"nftables","markMasqBit":0,"conditionsV4":[]}"#] {
            options(json).check().unwrap();
        }
        for (mapping, msg) in [
            (mapping(80, 0, "tcp", ""), "Invalid container port number: 0"),
            (mapping(-1, 80, "tcp", ""), "Invalid host port number: -1"),
            (mapping(80, 65536, "tcp", ""), "Invalid container port number: 65536"),
            (mapping(80, 80, "icmp", ""), r#"Invalid protocol: "icmp""#),
            (mapping(80, 80, "tcp", "localhost"), r#"Invalid host IP: "localhost""#),
        ] {
            assert_eq!(read(&[mapping]).unwrap_err().msg, msg);
        }
    }
}
