//! Ends of tunnels: VXLAN interfaces and where they send frames.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use portolan_engine::KernelError;
use portolan_model::{IfName, Mac, Mtu, Vni};
use portolan_plan::{Forwarding, Groups, Object, Objects, TunnelPort, Vxlan};

use super::{addresses_of, speaks_ipv6};
use crate::host::refusal;
use crate::netlink::Socket;
use crate::rtnl::link::Link;
use crate::rtnl::neigh;
use crate::sysctl;

/// An end of tunnels with its entries.
pub(super) fn observe(
    socket: &mut Socket,
    link: &Link,
    name: IfName,
    alias: &str,
    groups: Groups,
    names: &BTreeMap<u32, &str>,
    found: &mut Objects,
) -> Result<(), KernelError> {
    let Some(state) = link.vxlan else { return Ok(()) };
    let Some(addresses) = addresses_of(socket, link)? else { return Ok(()) };
    let named = |index: Option<u32>| names.get(&index?)?.parse::<IfName>().ok();
    let disabled = sysctl::read(&["net", "ipv6", "conf", &link.name, "disable_ipv6"]).is_ok_and(|value| value == "1");
    let on = link.master.and_then(|index| names.get(&index)?.parse().ok()).and_then(|bridge| {
        let port = link.brport?;
        let flags = (port.neigh_suppress?, port.learning?, port.unicast_flood?, port.mcast_flood?, port.bcast_flood?);
        (flags == (true, false, false, true, true)).then_some(TunnelPort { bridge, isolated: port.isolated? })
    });
    let group = if on.is_some() { groups.ports } else { groups.bridges };
    let usable = link.up && link.group == group && !state.learning;
    found.insert(Object::Vxlan(Vxlan {
        vni: Vni::new(state.vni).or_else(|_| Vni::new(1)).expect("1 is one"),
        local: state.local.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        // One with checksums beside those of the link is made anew.
        by: named(state.by).filter(|_| state.unchecked),
        port: state.port,
        mac: link.mac.map_or(Mac::from_bytes([0; 6]), Mac::from_bytes),
        mtu: Mtu::new(link.mtu).unwrap_or(Mtu::ETHERNET),
        alias: if usable { alias.to_owned() } else { format!("{alias} (down, learning or in another group)") },
        ipv6: !disabled && speaks_ipv6(link, &addresses),
        name: name.clone(),
        on,
    }));
    let entries = neigh::tunnel_dump(socket, link.index);
    for entry in entries.map_err(|error| refusal("list forwarding entries", &error))? {
        let (mac, to) = (Mac::from_bytes(entry.mac), entry.to);
        found.insert(Object::Forwarding(Forwarding {
            device: name.clone(),
            mac,
            to,
            by: named(entry.by),
            bridged: false,
        }));
    }
    Ok(())
}
