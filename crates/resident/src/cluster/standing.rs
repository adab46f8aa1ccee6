use std::net::IpAddr;

use ipnet::IpNet;
use portolan_cluster::{HostRecord, Reach};
use portolan_model::{Id, Mtu, Name};
use serde::{Deserialize, Serialize};

use super::agent::Known;
use super::{LinkRow, Membership, PathRow, WayRow, paths, seal, ways};

/// How this host stands in its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The cluster.
    pub cluster: Id,
    /// This host.
    pub host: Id,
    /// What it is called.
    pub name: Name,
    /// Where etcd is.
    pub endpoints: Vec<String>,
    /// Whether changes come and go.
    pub connected: bool,
    /// Up to which revision of etcd it knows everything.
    pub revision: i64,
    /// What is not as it should be, a sentence each.
    pub warnings: Vec<String>,
    /// The hosts, by name.
    pub hosts: Vec<HostRow>,
    /// Its keys for the encrypted link, if it can be on it.
    pub keys: Option<KeyStanding>,
    /// What this host passes on between others that do not reach each other.
    pub passed: Vec<PassedRow>,
}

/// What a host passes on between two others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedRow {
    /// The two.
    pub between: [Name; 2],
    /// Bytes since the daemon was started.
    pub bytes: u64,
}

/// How it is with a host's keys for the encrypted link between hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStanding {
    /// The newest public key.
    pub key: String,
    /// Its round.
    pub round: u64,
    /// Whether there is an older one besides.
    pub changing: bool,
    /// The hosts that are waited for until the older one goes, by name.
    pub waits_for: Vec<Name>,
}

/// A host, as all see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostRow {
    /// Its id.
    pub id: Id,
    /// What it is called.
    pub name: Name,
    /// Where it takes packets.
    pub addresses: Vec<IpAddr>,
    /// The subnets of the LANs that those are on.
    #[serde(default)]
    pub lan: Vec<IpNet>,
    /// The MTU of its way to the others.
    pub mtu: Mtu,
    /// Its version.
    pub version: String,
    /// `up`; `down` if it has not said for a while that it runs; `gone` if it is not to come back.
    pub state: String,
    /// Whether it takes no more containers on networks that all have.
    #[serde(default)]
    pub drained: bool,
    /// What went between it and this host by the encrypted link; none where nothing did, and for this host.
    pub link: Option<LinkRow>,
    /// By which way it is sent to on the encrypted link; none where there is no link, and for this host.
    pub way: Option<WayRow>,
    /// Whether others come to it by themselves.
    pub reach: Reach,
    /// How the paths are that lead from this host to it: one by tunnels in clear, one by the encrypted link, as far as networks that
    /// both are on have any.
    #[serde(default)]
    pub paths: Vec<PathRow>,
}

impl Standing {
    /// What a host can say that knows this.
    pub(super) fn new(membership: &Membership, known: &Known) -> Self {
        let Known {
            view,
            record,
            trouble,
            problems,
            link_trouble,
            missing,
            link,
            waits_for,
            paths: known_paths,
            port_taken,
            ..
        } = known;
        let state = |id: Id| match (view.is_gone(id), view.run_of(id)) {
            (true, _) => "gone",
            (false, Some(_)) => "up",
            (false, None) => "down",
        };
        let row = |(id, record): (&Id, &HostRecord)| HostRow {
            id: *id,
            name: record.name.clone(),
            addresses: record.addresses().collect(),
            lan: [&record.lan.v4, &record.lan.v6].into_iter().flatten().map(|lan| lan.net).collect(),
            mtu: record.mtu,
            version: record.version.clone(),
            state: state(*id).to_owned(),
            drained: view.is_drained(*id),
            link: link.get(id).copied().map(LinkRow::from),
            way: known.ways.get(id).filter(|_| link.contains_key(id)).cloned(),
            reach: record.reach,
            paths: paths::rows(*id, known_paths),
        };
        let mut hosts: Vec<HostRow> = view.hosts().iter().map(row).collect();
        let keys = record.seal.as_ref().and_then(|seal| seal.keys().last().map(|key| (seal, key)));
        let waits = waits_for.iter().filter_map(|id| Some(view.hosts().get(id)?.name.clone()));
        let keys = keys.map(|(seal, key)| KeyStanding {
            key: key.key,
            round: key.round,
            changing: seal.next.is_some(),
            waits_for: waits.collect(),
        });
        hosts.sort_by(|one, other| one.name.cmp(&other.name));
        let strange = view.strange();
        let strange = strange.iter().next().map(|(key, why)| match strange.len() {
            1 => format!("etcd has a key that is left alone: `{}` {why}", key.escape_debug()),
            count => {
                format!("etcd has {count} keys that are left alone, such as `{}`, which {why}", key.escape_debug())
            }
        });
        let gone = missing.iter().map(|address| {
            let why =
                if membership.is_given { ": it was named when the host joined, and stays until it leaves" } else { "" };
            format!(
                "address {address}, at which this host takes packets of the others, is on none of its interfaces{why}"
            )
        });
        let gone: Vec<String> = gone.collect();
        let name = |id: &Id| view.hosts().get(id).map(|record| record.name.clone());
        let passed = known.passed.iter().filter_map(|((one, other), bytes)| {
            let mut between = [name(one)?, name(other)?];
            between.sort();
            Some(PassedRow { between, bytes: *bytes })
        });
        let secrets = seal::other_secrets(membership.host, view);
        let paths = paths::warnings(view, membership.host, known_paths);
        Self {
            cluster: membership.cluster,
            host: membership.host,
            name: membership.record.name.clone(),
            endpoints: membership.etcd.endpoints.clone(),
            connected: trouble.is_none(),
            revision: view.revision(),
            warnings: trouble
                .iter()
                .chain(link_trouble)
                .chain(problems.values())
                .chain(&known.unreached)
                .cloned()
                .chain(gone)
                .chain(secrets)
                .chain(ways::not_over_nat(known))
                .chain(port_taken.clone())
                .chain(paths)
                .chain(strange)
                .collect(),
            hosts,
            keys,
            passed: passed.collect(),
        }
    }
}
