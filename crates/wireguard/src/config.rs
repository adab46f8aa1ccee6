//! What a device should be, what it is at, and what leads from one to the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::uapi::{Changes, PeerChange};
use crate::{PresharedKey, PrivateKey, PublicKey};

/// What a device should be.
///
/// A range of addresses is one peer's only: where two peers of a `Config` have the same, the device gives it to the
/// second (wg(8), `allowed-ips`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The host's secret; without one a device carries nothing.
    pub private_key: Option<PrivateKey>,
    /// UDP port to listen on; 0 for one that is free.
    pub listen_port: u16,
    /// Who there is to talk to.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// Another host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// A secret that only the two know.
    pub preshared: Option<PresharedKey>,
    /// Where to send to until something authentic comes from elsewhere; without one the peer has to speak first.
    pub endpoint: Option<SocketAddr>,
    /// Whom to send to by way of this peer, and whom it may speak for; host bits are zero.
    pub allowed: BTreeSet<IpNet>,
    /// Seconds between empty packets that keep a way through NAT open; never 0.
    pub keepalive: Option<u16>,
}

/// What a device is at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// What it is set to. Endpoints are the ones seen last.
    pub config: Config,
    /// What its peers are at.
    pub status: BTreeMap<PublicKey, Status>,
}

/// What a peer is at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Where its last authentic packet came from, or where it was said to be.
    pub endpoint: Option<SocketAddr>,
    /// When keys were agreed on last; after three minutes without it nothing is sent or taken any more
    /// (`REJECT_AFTER_TIME`, whitepaper §6.1).
    pub last_handshake: Option<SystemTime>,
    /// Bytes received, of packets that were authentic.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// What leads from a device that is `from` to one that is `to`.
///
/// Peers of both are changed in place and keep their sessions, and their ranges of addresses that stay are not mentioned. A
/// range that goes from one peer to another is only given to the second. The configuration protocol has no word for
/// forgetting an endpoint: a peer that has none in `to` keeps the one it has.
pub fn changes(from: &Config, to: &Config) -> Changes {
    let mut changes = Changes {
        private_key: to.private_key.clone().filter(|key| from.private_key.as_ref() != Some(key)),
        listen_port: (from.listen_port != to.listen_port).then_some(to.listen_port),
        ..Changes::default()
    };
    for key in from.peers.keys().filter(|key| !to.peers.contains_key(key)) {
        changes.peers.push(PeerChange { remove: true, ..PeerChange::new(*key) });
    }
    let none = Peer::default();
    for (key, peer) in &to.peers {
        let known = from.peers.get(key);
        let old = known.unwrap_or(&none);
        let change = PeerChange {
            update_only: known.is_some(),
            preshared: (old.preshared != peer.preshared).then(|| peer.preshared.clone()),
            endpoint: peer.endpoint.filter(|endpoint| old.endpoint != Some(*endpoint)),
            keepalive: (old.keepalive != peer.keepalive).then_some(peer.keepalive.unwrap_or(0)),
            allow: peer.allowed.difference(&old.allowed).copied().collect(),
            disallow: old
                .allowed
                .difference(&peer.allowed)
                .filter(|range| !to.peers.values().any(|other| other.allowed.contains(range)))
                .copied()
                .collect(),
            ..PeerChange::new(*key)
        };
        if known.is_none() || !change.is_empty() {
            changes.peers.push(change);
        }
    }
    changes
}

impl Config {
    /// Makes `changes`, as a device does.
    pub fn apply(&mut self, changes: &Changes) {
        if let Some(key) = &changes.private_key {
            self.private_key = Some(key.clone());
        }
        if let Some(port) = changes.listen_port {
            self.listen_port = port;
        }
        if changes.replace_peers {
            self.peers.clear();
        }
        for change in &changes.peers {
            if change.remove {
                self.peers.remove(&change.key);
                continue;
            }
            if change.update_only && !self.peers.contains_key(&change.key) {
                continue;
            }
            for (_, other) in self.peers.iter_mut().filter(|(key, _)| **key != change.key) {
                other.allowed.retain(|range| !change.allow.contains(range));
            }
            let peer = self.peers.entry(change.key).or_default();
            if let Some(preshared) = &change.preshared {
                peer.preshared.clone_from(preshared);
            }
            if let Some(endpoint) = change.endpoint {
                peer.endpoint = Some(endpoint);
            }
            if let Some(keepalive) = change.keepalive {
                peer.keepalive = Some(keepalive).filter(|seconds| *seconds != 0);
            }
            if change.replace_allowed {
                peer.allowed.clear();
            }
            peer.allowed.retain(|range| !change.disallow.contains(range));
            peer.allowed.extend(&change.allow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64 (Steele, Lea, Flood 2014): a seed is enough to repeat a run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }

        fn below(&mut self, limit: u64) -> u64 {
            self.next() % limit
        }

        fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
            (self.below(2) == 0).then(|| make(self))
        }

        fn config(&mut self) -> Config {
            let mut config = Config {
                private_key: Some(PrivateKey::from([self.below(3) as u8; 32])),
                listen_port: self.below(3) as u16,
                peers: BTreeMap::new(),
            };
            for number in 0..5 {
                let peer = self.maybe(|random| Peer {
                    preshared: random.maybe(|random| PresharedKey::from([1 + random.below(2) as u8; 32])),
                    endpoint: random.maybe(|random| SocketAddr::from(([10, 0, 0, random.below(2) as u8], 1))),
                    allowed: BTreeSet::new(),
                    keepalive: random.maybe(|random| 1 + random.below(2) as u16),
                });
                config.peers.extend(peer.map(|peer| (PublicKey::from([number; 32]), peer)));
            }
            let keys: Vec<PublicKey> = config.peers.keys().copied().collect();
            for number in 0..8 {
                let range = if number % 2 == 0 { format!("10.1.{number}.0/24") } else { format!("fd00:{number}::/64") };
                let owner = self.below(6) as usize;
                if let Some(peer) = keys.get(owner).and_then(|key| config.peers.get_mut(key)) {
                    peer.allowed.insert(range.parse().unwrap());
                }
            }
            config
        }
    }

    #[test]
    fn changes_lead_from_any_config_to_any_other() {
        for seed in 0..20_000 {
            let mut random = Random(seed);
            let (from, mut to) = (random.config(), random.config());
            let changes = changes(&from, &to);
            let text = changes.to_string();
            assert_eq!(text.parse::<Changes>().as_ref(), Ok(&changes), "{seed}: {text}");
            for change in &changes.peers {
                assert!(!change.replace_allowed && !changes.replace_peers, "{seed}");
                assert!(!(change.remove && to.peers.contains_key(&change.key)), "{seed}: a peer that stays is removed");
                if let (Some(old), Some(new)) = (from.peers.get(&change.key), to.peers.get(&change.key)) {
                    let stays = |range: &&IpNet| old.allowed.contains(range) && new.allowed.contains(range);
                    assert!(!change.allow.iter().chain(&change.disallow).any(|range| stays(&range)), "{seed}: {text}");
                }
            }
            let mut reached = from.clone();
            reached.apply(&changes);
            for (key, peer) in &mut to.peers {
                if peer.endpoint.is_none() {
                    peer.endpoint = from.peers.get(key).and_then(|old| old.endpoint);
                }
            }
            assert_eq!(reached, to, "{seed}: {text}");
            assert!(super::changes(&reached, &to).is_empty(), "{seed}");
        }
    }

    #[test]
    fn a_new_device_is_written_down_whole() {
        let mut config =
            Config { private_key: Some(PrivateKey::from([0; 32])), listen_port: 51820, ..Config::default() };
        let peer = Peer {
            preshared: Some(PresharedKey::from([2; 32])),
            endpoint: Some("[fd00::1]:51820".parse().unwrap()),
            allowed: ["10.1.0.0/24", "fd00:1::/64"].map(|range| range.parse().unwrap()).into(),
            keepalive: Some(25),
        };
        config.peers.insert(PublicKey::from([1; 32]), peer);
        let digits = |digit: &str| digit.repeat(32);
        assert_eq!(
            changes(&Config::default(), &config).to_string(),
            format!(
                "private_key={}40\nlisten_port=51820\npublic_key={}\npreshared_key={}\nendpoint=[fd00::1]:51820\n\
                 persistent_keepalive_interval=25\nallowed_ip=10.1.0.0/24\nallowed_ip=fd00:1::/64\n",
                "00".repeat(31),
                digits("01"),
                digits("02")
            )
        );
    }
}
