//! Where things are in etcd.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use portolan_model::{Family, Id, Invalid, Name, Vni};

/// A key, without what all of ours begin with. Those that begin alike are followed together ([`Part`]).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `all/cluster`: which cluster this is, and what is the same everywhere ([`crate::ClusterRecord`]).
    Cluster,
    /// `all/networks`: written with each network that comes or goes, so that two that are made at once are seen by one of them.
    Networks,
    /// `all/host/HOST`: a host ([`crate::HostRecord`]).
    Host(Id),
    /// `all/gone/HOST`: it is not to come back; what it had may be given to others.
    Gone(Id),
    /// `all/drained/HOST`: it takes no more containers on networks that all have. Anybody writes it, also while the host is down.
    Drained(Id),
    /// `all/network/NETWORK`: a network ([`crate::ClusterNetwork`]).
    Network(Id),
    /// `all/check/CHECK`: under a lease of the host's that asks: every host is to compare what it holds with what is here.
    Check(Id),
    /// `all/way/HOST/HOST`: by which host these two send to each other ([`crate::WayRecord`]); the lower id is the first.
    Way(Id, Id),
    /// `taken/host/NAME`: the host that is called so.
    HostName(Name),
    /// `taken/address/ADDRESS`: the host that has the address.
    HostAddress(IpAddr),
    /// `taken/network/NAME`: the network that is called so.
    NetworkName(Name),
    /// `taken/vni/NUMBER`: the network that has the number.
    Vni(Vni),
    /// `alive/HOST`: under a lease of the host's; which run of it, so that a copy of its disk is noticed.
    Alive(Id),
    /// `checked/CHECK/HOST`: what came of a check ([`crate::Checked`]).
    Checked(Id, Id),
    /// `place/HOST/NETWORK`: the host has, or had, blocks or endpoints of the network. It is written with each that comes, so
    /// that who has not written since has none.
    Place(Id, Id),
    /// `net/NETWORK/block/ADDRESS-LENGTH`: the host that gives the addresses out ([`crate::Block`]).
    Block(Id, IpNet),
    /// `net/NETWORK/cut/ADDRESS-LENGTH`: written whenever one of the blocks that a network is cut into is cut further, or a part
    /// of it is claimed: two that claim parts of it at once are seen by one of them.
    Cut(Id, IpNet),
    /// `net/NETWORK/want/HOST/FAMILY`: under a lease of the host's; it needs addresses, and no block is free.
    Want(Id, Id, Family),
    /// `net/NETWORK/endpoint/HOST/ENDPOINT`: an endpoint ([`crate::EndpointRecord`]).
    Endpoint {
        /// Its network.
        network: Id,
        /// The host that it is on.
        host: Id,
        /// Its id.
        endpoint: Id,
    },
}

/// Keys that begin alike, and that a host follows all of or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `all/`: what every host follows.
    All,
    /// `alive/`: which hosts run. Looked at when somebody asks.
    Alive,
    /// `alive/HOST`: whether one does; it follows its own.
    Run(Id),
    /// `place/HOST/`: on which networks a host is; it follows its own.
    Places(Id),
    /// `checked/CHECK/`: what comes of a check, for who asked.
    Answers(Id),
    /// `net/NETWORK/`: a network's blocks, endpoints and who wants addresses, for hosts that are on it.
    Network(Id),
}

impl Key {
    /// The part of which a bundle has this key: whoever writes it writes [`Layout::written`] of that part as well.
    pub const fn bundled(&self) -> Option<Part> {
        match self {
            Self::Cluster
            | Self::Networks
            | Self::Host(_)
            | Self::Gone(_)
            | Self::Drained(_)
            | Self::Network(_)
            | Self::Way(..) => Some(Part::All),
            Self::Block(network, _) | Self::Cut(network, _) | Self::Endpoint { network, .. } => {
                Some(Part::Network(*network))
            }
            // They go with leases, by which etcd removes them itself, or are no part that many look at.
            Self::Check(_) | Self::Want(..) => None,
            Self::HostName(_)
            | Self::HostAddress(_)
            | Self::NetworkName(_)
            | Self::Vni(_)
            | Self::Alive(_)
            | Self::Checked(..)
            | Self::Place(..) => None,
        }
    }
}

impl Part {
    /// Whether it is kept as a bundle as well, once it has many keys.
    pub const fn is_bundled(self) -> bool {
        matches!(self, Self::All | Self::Network(_))
    }
}

/// What all keys of one cluster begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: String,
}

impl Default for Layout {
    fn default() -> Self {
        Self { root: "/portolan/v2/".to_owned() }
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
        Ok(Self { root: format!("{prefix}/v2/") })
    }

    /// What all keys begin with.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A key in full.
    pub fn text(&self, key: &Key) -> String {
        let root = &self.root;
        match key {
            Key::Cluster => format!("{root}all/cluster"),
            Key::Networks => format!("{root}all/networks"),
            Key::Host(id) => format!("{root}all/host/{id}"),
            Key::Gone(id) => format!("{root}all/gone/{id}"),
            Key::Drained(id) => format!("{root}all/drained/{id}"),
            Key::Network(id) => format!("{root}all/network/{id}"),
            Key::Check(id) => format!("{root}all/check/{id}"),
            Key::Way(one, other) => format!("{root}all/way/{one}/{other}"),
            Key::HostName(name) => format!("{root}taken/host/{name}"),
            Key::HostAddress(address) => format!("{root}taken/address/{address}"),
            Key::NetworkName(name) => format!("{root}taken/network/{name}"),
            Key::Vni(vni) => format!("{root}taken/vni/{vni}"),
            Key::Alive(id) => self.part(Part::Run(*id)),
            Key::Checked(id, host) => format!("{}{host}", self.part(Part::Answers(*id))),
            Key::Place(host, network) => format!("{}{network}", self.part(Part::Places(*host))),
            Key::Block(network, net) => format!("{root}net/{network}/block/{}-{}", net.network(), net.prefix_len()),
            Key::Cut(network, net) => format!("{root}net/{network}/cut/{}-{}", net.network(), net.prefix_len()),
            Key::Want(network, host, family) => format!("{root}net/{network}/want/{host}/{}", number(*family)),
            Key::Endpoint { network, host, endpoint } => format!("{}{endpoint}", self.endpoints_at(*network, *host)),
        }
    }

    /// What the keys of a part begin with.
    pub fn part(&self, part: Part) -> String {
        let root = &self.root;
        match part {
            Part::All => format!("{root}all/"),
            Part::Alive => format!("{root}alive/"),
            Part::Run(host) => format!("{root}alive/{host}"),
            Part::Places(host) => format!("{root}place/{host}/"),
            Part::Answers(check) => format!("{root}checked/{check}/"),
            Part::Network(network) => format!("{root}net/{network}/"),
        }
    }

    /// `all.written`, `net/NETWORK.written`: the key that is written with all others of a part that is bundled, so that its revision and
    /// its count say whether anything is other than before. It is no key of the part, which all watch, but the one before them.
    pub fn written(&self, part: Part) -> String {
        format!("{}.written", self.part(part).trim_end_matches('/'))
    }

    /// `bundle/all/`, `bundle/net/NETWORK/`: what the keys of a part's bundle begin with, of which each has many keys of the part for
    /// its value: a host that starts gets those instead.
    pub fn bundle(&self, part: Part) -> String {
        format!("{}bundle/{}", self.root, &self.part(part)[self.root.len()..])
    }

    /// What those keys of a part begin with that go with leases, and so are not in its bundle.
    pub fn leased(&self, part: Part) -> String {
        let kind = if part == Part::All { "check" } else { "want" };
        format!("{}{kind}/", self.part(part))
    }

    /// What the keys of a network's endpoints begin with.
    pub fn endpoints(&self, network: Id) -> String {
        format!("{}net/{network}/endpoint/", self.root)
    }

    /// What the keys of a network's endpoints on a host begin with.
    pub fn endpoints_at(&self, network: Id, host: Id) -> String {
        format!("{}{host}/", self.endpoints(network))
    }

    /// What a key in full is; none if it is not one of ours as we write them: one thing has one key, and another spelling of it would
    /// be another key.
    pub fn parse(&self, key: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(key).ok()?.strip_prefix(&self.root)?;
        let mut parts = [""; PARTS];
        let mut count = 0;
        for part in text.split('/') {
            *parts.get_mut(count)? = part;
            count += 1;
        }
        Some(match parts[..count] {
            ["all", "cluster"] => Key::Cluster,
            ["all", "networks"] => Key::Networks,
            ["all", "host", host] => Key::Host(id(host)?),
            ["all", "gone", host] => Key::Gone(id(host)?),
            ["all", "drained", host] => Key::Drained(id(host)?),
            ["all", "network", network] => Key::Network(id(network)?),
            ["all", "check", check] => Key::Check(id(check)?),
            ["all", "way", one, other] => {
                let (one, other) = (id(one)?, id(other)?);
                (one < other).then_some(Key::Way(one, other))?
            }
            ["taken", "host", name] => Key::HostName(same(name)?),
            ["taken", "address", address] => Key::HostAddress(same(address)?),
            ["taken", "network", name] => Key::NetworkName(same(name)?),
            ["taken", "vni", number] => Key::Vni(Vni::new(same(number)?).ok()?),
            ["alive", host] => Key::Alive(id(host)?),
            ["checked", check, host] => Key::Checked(id(check)?, id(host)?),
            ["place", host, network] => Key::Place(id(host)?, id(network)?),
            ["net", network, "block", block] => Key::Block(id(network)?, net(block)?),
            ["net", network, "cut", block] => Key::Cut(id(network)?, net(block)?),
            ["net", network, "want", host, family] => {
                let family = Family::ALL.into_iter().find(|one| number(*one) == family)?;
                Key::Want(id(network)?, id(host)?, family)
            }
            ["net", network, "endpoint", host, endpoint] => {
                Key::Endpoint { network: id(network)?, host: id(host)?, endpoint: id(endpoint)? }
            }
            _ => return None,
        })
    }
}

/// No key has more parts.
const PARTS: usize = 5;

/// An id as it is written.
fn id(text: &str) -> Option<Id> {
    // All of them are looked at, which takes no branch for each.
    let has_capitals = text.bytes().fold(false, |has, byte| has | byte.is_ascii_uppercase());
    if has_capitals { None } else { text.parse().ok() }
}

/// A block as it is written.
fn net(text: &str) -> Option<IpNet> {
    let (address, length) = text.rsplit_once('-')?;
    let (address, length) = (same::<IpAddr>(address)?, same(length)?);
    IpNet::new(address, length).ok().filter(|net| net.network() == address)
}

/// Something that is written as it is.
fn same<T: FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|value: &T| value.to_string() == text)
}

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
            Key::Way(id(1), id(2)),
            Key::HostName("node-1".parse().unwrap()),
            Key::HostAddress("fd00::1".parse().unwrap()),
            Key::Alive(id(1)),
            Key::Gone(id(1)),
            Key::Drained(id(1)),
            Key::Check(id(4)),
            Key::Checked(id(4), id(1)),
            Key::Place(id(1), id(2)),
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
            assert!(text.starts_with("/a/b/v2/"), "{text}");
            assert_eq!(layout.parse(text.as_bytes()), Some(key), "{text}");
        }
    }

    #[test]
    fn other_spellings_are_not_ours() {
        let layout = Layout::default();
        let network = id(2);
        for other in [
            "/portolan/v1/all/cluster".to_owned(),
            "/portolan/v2/".to_owned(),
            "/portolan/v2/cluster".to_owned(),
            "/portolan/v2/all/cluster/".to_owned(),
            format!("/portolan/v2/net/{network}/block/10.1.2.65-26"),
            format!("/portolan/v2/net/{network}/block/10.1.2.64-026"),
            format!("/portolan/v2/net/{network}/block/10.1.2.64-33"),
            format!("/portolan/v2/net/{network}/cut/10.1.2.65-26"),
            format!("/portolan/v2/net/{network}/want/{network}/5"),
            "/portolan/v2/taken/vni/0".to_owned(),
            "/portolan/v2/taken/vni/16777216".to_owned(),
            "/portolan/v2/taken/vni/007".to_owned(),
            "/portolan/v2/taken/address/fd00:0::1".to_owned(),
            format!("/portolan/v2/all/host/{}", id(0xab).to_string().to_uppercase()),
        ] {
            assert_eq!(layout.parse(other.as_bytes()), None, "{other}");
        }
        assert_eq!(layout.parse(b"/portolan/v2/taken/host/\xff"), None);
    }

    #[test]
    fn what_is_bundled() {
        let layout = Layout::default();
        for (key, part) in [
            (Key::Host(id(1)), Some(Part::All)),
            (Key::Check(id(1)), None),
            (Key::Endpoint { network: id(2), host: id(1), endpoint: id(3) }, Some(Part::Network(id(2)))),
            (Key::Want(id(2), id(1), Family::V4), None),
            (Key::Place(id(1), id(2)), None),
        ] {
            assert_eq!(key.bundled(), part);
            let text = layout.text(&key);
            for of in [Part::All, Part::Network(id(2))] {
                // All of a part but what is leased is in its bundle.
                let is_in = text.starts_with(&layout.part(of)) && !text.starts_with(&layout.leased(of));
                assert_eq!(is_in, part == Some(of), "{text}");
                assert!(!layout.written(of).starts_with(&layout.part(of)) && layout.written(of) < layout.part(of));
            }
        }
        assert_eq!(layout.written(Part::All), "/portolan/v2/all.written");
        assert_eq!(layout.bundle(Part::Network(id(2))), format!("/portolan/v2/bundle/net/{}/", id(2)));
    }

    #[test]
    fn what_is_no_prefix() {
        for bad in ["", "a", "/a/", "/", "/a b", "/ä"] {
            assert!(Layout::new(bad).is_err(), "{bad}");
        }
    }
}
