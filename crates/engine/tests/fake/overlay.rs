//! A network of a cluster, as the daemon tells the engine of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_engine::OverlayNetwork;
use portolan_model::{Id, Mac, Mtu, Overlay, PerFamily, TunnelEnd, Vni};

/// Routed and in clear, of an underlay with these addresses and MTUs.
pub(crate) fn overlay(
    (id, name): (Id, &str),
    prefixes: PerFamily<Option<IpNet>>,
    blocks: BTreeSet<IpNet>,
    (address, mtu): (IpAddr, u32),
) -> OverlayNetwork {
    let end = TunnelEnd { address, port: 4789, mac: Mac::from_bytes([2, 0, 0, 0, 0, 1]), mtu: Mtu::new(mtu).unwrap() };
    OverlayNetwork {
        id,
        name: name.parse().unwrap(),
        prefixes,
        internal: false,
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        created: 0,
        overlay: Overlay {
            vni: Vni::new(70_000).unwrap(),
            end,
            sealed: false,
            measured: false,
            translates: false,
            direct: Default::default(),
        },
        blocks,
        withheld: BTreeSet::new(),
    }
}
