//! Which name, number and addresses a new network gets.

use std::collections::BTreeMap;

use ipnet::IpNet;
use portolan_model::{Family, Id, Name, PerFamily, Vni};
use serde::{Deserialize, Serialize};

use crate::blocks::{block_length, blocks_of, nth};
use crate::record::ClusterNetwork;
use crate::view::View;

/// A network that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNetwork {
    /// Its name.
    pub name: Name,
    /// Its subnets, of either family one at most; a family without one is given one, if it is enabled.
    pub subnets: Vec<IpNet>,
    /// Which families it is to speak.
    pub speaks: PerFamily<bool>,
    /// No way out.
    pub internal: bool,
    /// Options as given.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What the host that asks has in use: subnets that nobody chose keep away from it.
    pub avoid: Vec<IpNet>,
}

/// Why something that was asked for cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
}

impl Refusal {
    /// # Panics
    /// Never.
    pub fn new(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: hint.into() }
    }
}

/// So many candidates are looked at before a pool counts as full.
const CANDIDATES: u64 = 4096;

/// What a new network is to be, as far as `view` tells: with an id out of `random`, made at `created`.
///
/// # Errors
/// When its name or its addresses are another's, or nothing is free.
pub fn plan_network(
    view: &View,
    wanted: &NewNetwork,
    random: [u8; 32],
    created: u64,
) -> Result<(Id, ClusterNetwork), Refusal> {
    if view.networks().values().any(|network| network.name == wanted.name) {
        return Err(Refusal::new(
            format!("network `{}` exists already", wanted.name),
            format!("choose another name, or remove it first: portolan network rm {}", wanted.name),
        ));
    }
    let Some(cluster) = view.cluster() else {
        return Err(Refusal::new("there is no cluster", "`portolan cluster init` begins one"));
    };
    let number = |at: usize| u64::from_le_bytes(random[at..at + 8].try_into().expect("eight of 32 bytes"));
    let mut prefixes: PerFamily<Option<IpNet>> = PerFamily::default();
    for net in &wanted.subnets {
        let family = Family::of(net.addr());
        if !wanted.speaks.of(family) {
            return Err(Refusal::new(
                format!("subnet {net} is {family}, which is off for this network"),
                "leave it out, or turn the family on",
            ));
        }
        if prefixes.of_mut(family).replace(*net).is_some() {
            return Err(Refusal::new(
                format!("subnet {net} is the second one of {family}"),
                "a network over several hosts has one of either family",
            ));
        }
        if let Some(other) = overlapping(view, *net) {
            return Err(Refusal::new(
                format!("subnet {net} overlaps network `{other}` of the cluster"),
                "choose another --subnet, or none to be given a free one",
            ));
        }
    }
    for family in Family::ALL {
        if *wanted.speaks.of(family) && prefixes.of(family).is_none() {
            let (pool, length) = (*cluster.pools.of(family), *cluster.lengths.of(family));
            let is_free = |net: &IpNet| {
                overlapping(view, *net).is_none() && !wanted.avoid.iter().any(|other| overlap(*net, *other))
            };
            let Some(net) = candidates(pool, length, number(8)).find(is_free) else {
                return Err(Refusal::new(
                    format!("no free subnet of /{length} is left in the cluster's pool {pool}"),
                    "remove unused networks, or name a --subnet",
                ));
            };
            *prefixes.of_mut(family) = Some(net);
        }
    }
    let length = |net: Option<IpNet>, family| net.map_or(*cluster.lengths.of(family), block_length);
    let record = ClusterNetwork {
        name: wanted.name.clone(),
        vni: free_vni(view, number(16)),
        block_lengths: PerFamily { v4: length(prefixes.v4, Family::V4), v6: length(prefixes.v6, Family::V6) },
        prefixes,
        internal: wanted.internal,
        options: wanted.options.clone(),
        labels: wanted.labels.clone(),
        created,
    };
    Ok((Id::from_bytes(random), record))
}

/// Numbers below are what people and other programs (Docker from 4096 up by one) choose.
const LOWEST: u32 = 1 << 16;

/// A number that no network has, near `random`.
fn free_vni(view: &View, random: u64) -> Vni {
    let span = 0x100_0000 - LOWEST;
    let start = (random % u64::from(span)) as u32;
    let numbers = (0..span).map(|step| LOWEST + (start + step) % span);
    let is_free = |number: &u32| !view.networks().values().any(|network| network.vni.number() == *number);
    let number = numbers.into_iter().find(is_free).unwrap_or(LOWEST);
    Vni::new(number).expect("it has 24 bits")
}

/// The parts of `pool` that are `length` long, beginning at one that `random` says.
fn candidates(pool: IpNet, length: u8, random: u64) -> impl Iterator<Item = IpNet> {
    let count = blocks_of(pool, length);
    (0..count.min(CANDIDATES)).filter_map(move |step| nth(pool, length, (random % count).wrapping_add(step) % count))
}

fn overlapping(view: &View, net: IpNet) -> Option<&Name> {
    let overlaps = |network: &&ClusterNetwork| network.prefixes().any(|other| overlap(net, other));
    view.networks().values().find(overlaps).map(|network| &network.name)
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, Layout};
    use crate::record::{ClusterRecord, FORMAT};

    fn wanted(name: &str, subnets: &[&str]) -> NewNetwork {
        NewNetwork {
            name: name.parse().unwrap(),
            subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
            speaks: PerFamily { v4: true, v6: true },
            internal: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            avoid: Vec::new(),
        }
    }

    fn view(pool: &str, networks: &[(Id, ClusterNetwork)]) -> View {
        let layout = Layout::default();
        let cluster = ClusterRecord {
            id: Id::from_bytes([1; 32]),
            format: FORMAT,
            port: 4789,
            pools: PerFamily { v4: pool.parse().unwrap(), v6: "fd00::/48".parse().unwrap() },
            lengths: PerFamily { v4: 18, v6: 64 },
        };
        let mut all = vec![(Key::Cluster, serde_json::to_vec(&cluster).unwrap())];
        all.extend(networks.iter().map(|(id, record)| (Key::Network(*id), serde_json::to_vec(record).unwrap())));
        View::of(&layout, 1, all.into_iter().map(|(key, value)| (layout.text(&key).into_bytes(), value, 1)))
    }

    #[test]
    fn networks_get_addresses_and_numbers_of_their_own() {
        let mut networks: Vec<(Id, ClusterNetwork)> = Vec::new();
        for number in 0..32u8 {
            let view = view("10.128.0.0/13", &networks);
            let (id, record) = plan_network(&view, &wanted(&format!("n{number}"), &[]), [number; 32], 0).unwrap();
            for (_, other) in &networks {
                assert_ne!(other.vni, record.vni);
                let mut theirs = other.prefixes();
                assert!(!theirs.any(|net| record.prefixes().any(|own| overlap(own, net))), "{record:?} {other:?}");
            }
            networks.push((id, record));
        }
        let full = view("10.128.0.0/13", &networks);
        let error = plan_network(&full, &wanted("more", &[]), [99; 32], 0).unwrap_err();
        assert!(error.reason.contains("no free subnet of /18"), "{error}");
        assert!(plan_network(&full, &wanted("more", &["192.0.2.0/24"]), [99; 32], 0).is_ok());
    }

    #[test]
    fn what_the_host_has_in_use_is_avoided() {
        let mut wanted = wanted("n", &[]);
        wanted.avoid = vec!["10.128.0.0/18".parse().unwrap()];
        let (_, record) = plan_network(&view("10.128.0.0/17", &[]), &wanted, [0; 32], 0).unwrap();
        assert_eq!(record.prefixes.v4, Some("10.128.64.0/18".parse().unwrap()));
        assert_eq!(record.block_lengths, PerFamily { v4: 26, v6: 112 });
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let taken = plan_network(&view("10.128.0.0/9", &[]), &wanted("n", &["10.1.0.0/16"]), [3; 32], 0).unwrap();
        let view = view("10.128.0.0/9", &[taken]);
        let refused = |wanted: NewNetwork| plan_network(&view, &wanted, [4; 32], 0).unwrap_err().reason;
        assert_eq!(refused(wanted("n", &[])), "network `n` exists already");
        assert_eq!(refused(wanted("m", &["10.1.2.0/24"])), "subnet 10.1.2.0/24 overlaps network `n` of the cluster");
        assert!(refused(wanted("m", &["10.2.0.0/16", "10.3.0.0/16"])).contains("second one of IPv4"));
        let mut one = wanted("m", &["fd01::/64"]);
        one.speaks.v6 = false;
        assert!(refused(one).contains("is off for this network"));
    }
}
