//! Where things are in etcd.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Family, Id, Invalid, Name, Vni};

/// A key, without what all of ours begin with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `cluster`: which cluster this is, and what is the same everywhere ([`crate::ClusterRecord`]).
    Cluster,
    /// `networks`: written with each network that comes or goes, so that two that are made at once are seen by one of them.
    Networks,
    /// `host/HOST`: a host ([`crate::HostRecord`]).
    Host(Id),
    /// `host-name/NAME`: the host that is called so.
    HostName(Name),
    /// `host-address/ADDRESS`: the host that has the address.
    HostAddress(IpAddr),
    /// `alive/HOST`: under a lease of the host's; which run of it, so that a copy of its disk is noticed.
    Alive(Id),
    /// `gone/HOST`: it is not to come back; what it had may be given to others.
    Gone(Id),
    /// `check/CHECK`: under a lease of the host's that asks: every host is to compare what it holds with what is here.
    Check(Id),
    /// `checked/CHECK/HOST`: what came of it ([`crate::Checked`]).
    Checked(Id, Id),
    /// `network/NETWORK`: a network ([`crate::ClusterNetwork`]).
    Network(Id),
    /// `network-name/NAME`: the network that is called so.
    NetworkName(Name),
    /// `vni/NUMBER`: the network that has the number.
    Vni(Vni),
    /// `block/NETWORK/ADDRESS-LENGTH`: the host that gives the addresses out ([`crate::Block`]).
    Block(Id, IpNet),
    /// `block/NETWORK/cut-ADDRESS-LENGTH`: written whenever one of the blocks that a network is cut into is cut further, or a part
    /// of it is claimed: two that claim parts of it at once are seen by one of them. It goes with the network's blocks.
    Cut(Id, IpNet),
    /// `want/NETWORK/HOST/FAMILY`: under a lease of the host's; it needs addresses, and no block is free.
    Want(Id, Id, Family),
    /// `endpoint/NETWORK/HOST/ENDPOINT`: an endpoint ([`crate::EndpointRecord`]).
    Endpoint {
        /// Its network.
        network: Id,
        /// The host that it is on.
        host: Id,
        /// Its id.
        endpoint: Id,
    },
}

/// What all keys of one cluster begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: String,
}

impl Default for Layout {
    fn default() -> Self {
        Self { root: "/portolan/v1/".to_owned() }
    }
}

impl Layout {
    /// Keys below `prefix`, so that clusters can share an etcd.
    ///
    /// # Errors
    /// When it does not begin with a slash, ends in one, or has something in it that is not printed.
    pub fn new(prefix: &str) -> Result<Self, Invalid> {
        let refuse = |why: &'static str| Err(Invalid::new("key prefix", prefix, why).hint("write it as /portolan"));
        if !prefix.starts_with('/') || prefix.ends_with('/') {
            return refuse("does not begin with a slash, or ends in one");
        }
        if prefix.len() > 256 || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse("is longer than 256 characters, or has some that are not printed");
        }
        Ok(Self { root: format!("{prefix}/v1/") })
    }

    /// What all keys begin with.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A key in full.
    pub fn text(&self, key: &Key) -> String {
        let root = &self.root;
        match key {
            Key::Cluster => format!("{root}cluster"),
            Key::Networks => format!("{root}networks"),
            Key::Host(id) => format!("{root}host/{id}"),
            Key::HostName(name) => format!("{root}host-name/{name}"),
            Key::HostAddress(address) => format!("{root}host-address/{address}"),
            Key::Alive(id) => format!("{root}alive/{id}"),
            Key::Gone(id) => format!("{root}gone/{id}"),
            Key::Check(id) => format!("{root}check/{id}"),
            Key::Checked(id, host) => format!("{}{host}", self.answers(*id)),
            Key::Network(id) => format!("{root}network/{id}"),
            Key::NetworkName(name) => format!("{root}network-name/{name}"),
            Key::Vni(vni) => format!("{root}vni/{vni}"),
            Key::Block(network, net) => format!("{}{}-{}", self.blocks(*network), net.network(), net.prefix_len()),
            Key::Cut(network, net) => format!("{}{CUT}{}-{}", self.blocks(*network), net.network(), net.prefix_len()),
            Key::Want(network, host, family) => format!("{root}want/{network}/{host}/{}", number(*family)),
            Key::Endpoint { network, host, endpoint } => format!("{}{host}/{endpoint}", self.endpoints(*network)),
        }
    }

    /// What the keys of the answers to a check begin with.
    pub fn answers(&self, check: Id) -> String {
        format!("{}checked/{check}/", self.root)
    }

    /// What the keys of a network's blocks begin with.
    pub fn blocks(&self, network: Id) -> String {
        format!("{}block/{network}/", self.root)
    }

    /// What the keys of a network's endpoints begin with.
    pub fn endpoints(&self, network: Id) -> String {
        format!("{}endpoint/{network}/", self.root)
    }

    /// What a key in full is; none if it is not one of ours as we write them.
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(key).ok()?.strip_prefix(&self.root)?;
        let parts: Vec<&str> = text.split('/').collect();
        let found = match parts[..] {
            ["cluster"] => Key::Cluster,
            ["networks"] => Key::Networks,
            ["host", id] => Key::Host(id.parse().ok()?),
            ["host-name", name] => Key::HostName(name.parse().ok()?),
            ["host-address", address] => Key::HostAddress(address.parse().ok()?),
            ["alive", id] => Key::Alive(id.parse().ok()?),
            ["gone", id] => Key::Gone(id.parse().ok()?),
            ["check", id] => Key::Check(id.parse().ok()?),
            ["checked", id, host] => Key::Checked(id.parse().ok()?, host.parse().ok()?),
            ["network", id] => Key::Network(id.parse().ok()?),
            ["network-name", name] => Key::NetworkName(name.parse().ok()?),
            ["vni", number] => Key::Vni(Vni::new(number.parse().ok()?).ok()?),
            ["block", network, block] => {
                let (is_cut, text) = block.strip_prefix(CUT).map_or((false, block), |text| (true, text));
                let (address, length) = text.rsplit_once('-')?;
                let net = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
                let network = network.parse().ok()?;
                if is_cut { Key::Cut(network, net) } else { Key::Block(network, net) }
            }
            ["want", network, host, family] => {
                let family = Family::ALL.into_iter().find(|one| number(*one) == family)?;
                Key::Want(network.parse().ok()?, host.parse().ok()?, family)
            }
            ["endpoint", network, host, endpoint] => Key::Endpoint {
                network: network.parse().ok()?,
                host: host.parse().ok()?,
                endpoint: endpoint.parse().ok()?,
            },
            _ => return None,
        };
        // One thing has one key: another spelling of it would be another key.
        (self.text(&found).as_bytes() == key).then_some(found)
    }
}

const CUT: &str = "cut-";

const fn number(family: Family) -> &'static str {
    match family {
        Family::V4 => "4",
        Family::V6 => "6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> Id {
        Id::from_bytes([byte; 32])
    }

    #[test]
    fn text_and_back() {
        let layout = Layout::new("/a/b").unwrap();
        let keys = [
            Key::Cluster,
            Key::Networks,
            Key::Host(id(1)),
            Key::HostName("node-1".parse().unwrap()),
            Key::HostAddress("fd00::1".parse().unwrap()),
            Key::Alive(id(1)),
            Key::Gone(id(1)),
            Key::Check(id(4)),
            Key::Checked(id(4), id(1)),
            Key::Network(id(2)),
            Key::NetworkName("web".parse().unwrap()),
            Key::Vni(Vni::new(4097).unwrap()),
            Key::Block(id(2), "10.1.2.64/26".parse().unwrap()),
            Key::Block(id(2), "fd00:1::/112".parse().unwrap()),
            Key::Cut(id(2), "10.1.2.64/26".parse().unwrap()),
            Key::Want(id(2), id(1), Family::V4),
            Key::Want(id(2), id(1), Family::V6),
            Key::Endpoint { network: id(2), host: id(1), endpoint: id(3) },
        ];
        for key in keys {
            let text = layout.text(&key);
            assert!(text.starts_with("/a/b/v1/"), "{text}");
            assert_eq!(layout.parse(text.as_bytes()), Some(key), "{text}");
        }
    }

    #[test]
    fn other_spellings_are_not_ours() {
        let layout = Layout::default();
        let network = id(2);
        for other in [
            "/portolan/v2/cluster".to_owned(),
            "/portolan/v1/".to_owned(),
            "/portolan/v1/cluster/".to_owned(),
            format!("/portolan/v1/block/{network}/10.1.2.65-26"),
            format!("/portolan/v1/block/{network}/10.1.2.64-026"),
            format!("/portolan/v1/block/{network}/10.1.2.64-33"),
            format!("/portolan/v1/block/{network}/cut-10.1.2.65-26"),
            format!("/portolan/v1/want/{network}/{network}/5"),
            "/portolan/v1/vni/0".to_owned(),
            "/portolan/v1/vni/16777216".to_owned(),
            "/portolan/v1/vni/007".to_owned(),
            "/portolan/v1/host-address/fd00:0::1".to_owned(),
            format!("/portolan/v1/host/{}", id(0xab).to_string().to_uppercase()),
        ] {
            assert_eq!(layout.parse(other.as_bytes()), None, "{other}");
        }
        assert_eq!(layout.parse(b"/portolan/v1/host-name/\xff"), None);
    }

    #[test]
    fn what_is_no_prefix() {
        for bad in ["", "a", "/a/", "/", "/a b", "/ä"] {
            assert!(Layout::new(bad).is_err(), "{bad}");
        }
    }
}
