//! The paths to other hosts, for people.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_cluster::{Figures, HostRecord, Passage, PathTo, VXLAN_PORT, View};
use portolan_model::Id;
use serde::{Deserialize, Serialize};

/// A path to another host, as this one finds it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PathRow {
    /// Whether by the encrypted link.
    pub encrypted: bool,
    /// What gets through: `unknown`, `passes`, `narrow` (small packets only), `corrupt` (what the interface sums up does not), `blocked`
    /// (nothing, though the host answers outside of tunnels) or `silent` (nothing at all).
    pub state: Passage,
    /// How many seconds a small packet takes there and back, smoothed.
    pub rtt: Option<f64>,
    /// Which part of the small packets of the last minute did not come back, of 1.
    pub loss: Option<f64>,
    /// Whether packets of full size get through.
    pub full_size: Option<bool>,
    /// What full size is, in bytes.
    pub size: u32,
}

/// Those to a host.
pub(super) fn rows(host: Id, paths: &BTreeMap<PathTo, Figures>) -> Vec<PathRow> {
    let row = |sealed: bool| {
        let figures = paths.get(&PathTo { host, sealed })?;
        Some(PathRow {
            encrypted: sealed,
            state: figures.passage,
            rtt: figures.rtt.map(|rtt| rtt.as_secs_f64()),
            loss: figures.loss,
            full_size: figures.full_size,
            size: figures.size,
        })
    };
    [false, true].into_iter().filter_map(row).collect()
}

/// What is wrong with them, a sentence for all hosts of which the same is. Of hosts that do not run nothing is.
pub(super) fn warnings(view: &View, me: Id, paths: &BTreeMap<PathTo, Figures>) -> Vec<String> {
    let mut hosts: BTreeMap<(Passage, bool), Vec<(&HostRecord, &Figures)>> = BTreeMap::new();
    for (to, figures) in paths {
        let passing = figures.passage;
        let is_well = matches!(passing, Passage::Unknown | Passage::Passes);
        if let Some(record) = view.hosts().get(&to.host)
            && !is_well
            && view.run_of(to.host).is_some()
        {
            hosts.entry((passing, to.sealed)).or_default().push((record, figures));
        }
    }
    let port = view.cluster().map_or(VXLAN_PORT, |cluster| cluster.port);
    let own = view.hosts().get(&me);
    hosts.into_iter().map(|((passing, sealed), hosts)| sentence(passing, sealed, port, own, &hosts)).collect()
}

fn sentence(
    passing: Passage,
    sealed: bool,
    port: u16,
    own: Option<&HostRecord>,
    hosts: &[(&HostRecord, &Figures)],
) -> String {
    let (first, figures) = hosts[0];
    let named = |record: &HostRecord| {
        let addresses: Vec<String> = record.addresses().map(|address: IpAddr| address.to_string()).collect();
        format!("`{}` ({})", record.name, addresses.join(", "))
    };
    let who = match hosts.len() {
        1 => format!("host {}", named(first)),
        count => format!("{count} hosts, such as {}", named(first)),
    };
    let (size, by) = (figures.size, if sealed { "encrypted packets" } else { "packets" });
    let ports = match first.seal.as_ref().filter(|_| sealed) {
        Some(seal) => {
            let ports: Vec<String> = seal.keys().map(|key| key.port.to_string()).collect();
            ports.join(" and ")
        }
        None => port.to_string(),
    };
    match passing {
        Passage::Blocked => {
            let what = if sealed { "WireGuard's" } else { "the tunnels'" };
            format!(
                "UDP {ports}, {what} port, does not pass between this host and {who}, which answers otherwise: open it, both paths, in the firewalls there, here and in between"
            )
        }
        Passage::Silent => format!(
            "nothing comes back from {who}, neither by UDP {ports} nor otherwise, though etcd says that it runs: look whether the network between is up, and whether firewalls let UDP {ports} pass"
        ),
        Passage::Narrow => {
            let outer = own.map_or(first.mtu, |own| own.mtu.min(first.mtu)).bytes();
            format!(
                "{by} of {size} bytes do not get through to {who}, and small ones do: something on the path takes less than {outer} bytes, which interfaces of both hosts say; give those the smaller MTU, and hosts follow"
            )
        }
        Passage::Corrupt => format!(
            "{by} to {who} do not arrive when this host's interface is to fill in their checksum: `ethtool -K INTERFACE tx off`, or the interface's driver or firmware, may cure that"
        ),
        Passage::Unknown | Passage::Passes => unreachable!("nothing is wrong"),
    }
}
