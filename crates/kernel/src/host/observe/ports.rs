//! Host ends of veth pairs, and the routes by those that are on no bridge.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ipnet::IpNet;
use portolan_model::{IfName, Mac, Mtu, Sandbox};
use portolan_plan::{BridgePort, Groups, HostEnd, HostRoute, Object, Objects, Port, Routed, Way};

use super::{nets, speaks_ipv6};
use crate::host::apply;
use crate::rtnl::link::{Ipv4Conf, Link};
use crate::rtnl::{addr, route};
use crate::sysctl;

/// The routes that `desired` speaks of and that are as they should be, and what else leads to host ends.
pub(super) fn host_routes<'a>(
    routes: &'a [route::Route],
    devices: &'a BTreeMap<u32, IfName>,
    names: &'a BTreeMap<u32, &str>,
    desired: &'a Objects,
) -> impl Iterator<Item = HostRoute> + 'a {
    let subnets: Vec<IpNet> = desired
        .iter()
        .filter_map(|(_, object)| match object {
            Object::HostRoute(HostRoute { destination, way: Way::Unreachable }) => Some(*destination),
            _ => None,
        })
        .collect();
    let protocols = [route::PROTOCOL_STATIC, apply::BY_LAN];
    routes
        .iter()
        .filter(move |route| route.table == route::TABLE_MAIN && protocols.contains(&route.protocol))
        .filter_map(move |found| {
            let destination = IpNet::new(found.dst, found.prefix_len).ok()?;
            let by = found.oif.and_then(|index| names.get(&index)?.parse::<IfName>().ok());
            let device = found.oif.and_then(|index| devices.get(&index));
            let wanted = match desired.find(&portolan_plan::Key::HostRoute(destination)) {
                Some(Object::HostRoute(wanted)) => {
                    let should = apply::host_route(wanted, found.oif);
                    let is_it = (found.kind, found.gateway, found.protocol)
                        == (should.kind, should.gateway, should.protocol)
                        && should.metric.is_none_or(|metric| found.metric == Some(metric))
                        && wanted.way.device().is_none_or(|name| Some(name) == by.as_ref())
                        && found.mtu == should.mtu
                        && (should.prefsrc.is_none() || found.prefsrc == should.prefsrc);
                    is_it.then(|| wanted.clone())
                }
                _ => None,
            };
            let stray = || {
                // By an interface that is not ours, into a subnet that is.
                if let (apply::BY_LAN, Some(device), Some(via)) = (found.protocol, &by, found.gateway) {
                    let is_ours = subnets.iter().any(|net| net.contains(&destination));
                    let way = Way::Lan { device: device.clone(), via, mtu: None };
                    return is_ours.then_some(HostRoute { destination, way });
                }
                let device = device?.clone();
                let way = match found.gateway {
                    Some(via) => Way::Tunnel { device, via, mtu: None },
                    None => Way::HostEnd { device, from: found.prefsrc.unwrap_or(found.dst) },
                };
                Some(HostRoute { destination, way })
            };
            wanted.or_else(stray)
        })
}

/// The host end of a pair that the host routes by.
pub(super) fn routed_port(link: &Link, addresses: &[addr::Address], wanted: &Port, groups: Groups) -> Port {
    let disabled = sysctl::read(&["net", "ipv6", "conf", &link.name, "disable_ipv6"]).is_ok_and(|value| value == "1");
    let usable = link.up && link.group == groups.bridges && link.master.is_none();
    let is_whole = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    let place = HostEnd::Routed(Routed {
        mac: link.mac.map_or(Mac::from_bytes([0; 6]), Mac::from_bytes),
        gateways: nets(addresses).iter().filter(|net| is_whole(net)).map(IpNet::addr).collect(),
        ipv6: !disabled && speaks_ipv6(link, addresses),
        route_localnet: link.ipv4_conf(Ipv4Conf::RouteLocalnet) == Some(1),
    });
    let alias =
        if usable { wanted.alias.clone() } else { format!("{} (down, in another group or on a bridge)", wanted.alias) };
    Port { place, mtu: Mtu::new(link.mtu).unwrap_or(Mtu::ETHERNET), alias, ..wanted.clone() }
}

/// A bridge port. What lies in the sandbox is taken from what should be there; [`inside`] looks at it.
pub(super) fn port(
    link: &Link,
    name: IfName,
    alias: &str,
    groups: Groups,
    names: &BTreeMap<u32, &str>,
    wanted: Option<&Port>,
) -> Port {
    let state = link.brport.unwrap_or_default();
    let ruled = link.group == groups.ports;
    let is_wanted_unruled = |port: &Port| matches!(&port.place, HostEnd::Bridge(on_bridge) if !on_bridge.ruled);
    let in_group = ruled || wanted.is_some_and(is_wanted_unruled);
    let usable = link.up && in_group;
    let unknown = || "unknown".parse().expect("a valid interface name");
    Port {
        place: HostEnd::Bridge(BridgePort {
            bridge: link.master.and_then(|index| names.get(&index)?.parse().ok()).unwrap_or_else(unknown),
            isolated: state.isolated.unwrap_or(false),
            locked: state.locked.unwrap_or(false) && state.learning == Some(false),
            asks: state.neigh_suppress != Some(true),
            ruled: ruled || wanted.is_none(),
            vlan: wanted.and_then(|port| match &port.place {
                HostEnd::Bridge(on_bridge) => on_bridge.vlan,
                HostEnd::Routed(_) => None,
            }),
        }),
        mac: wanted.map_or(Mac::from_bytes([0; 6]), |port| port.mac),
        mtu: Mtu::new(link.mtu).unwrap_or(Mtu::ETHERNET),
        alias: if usable { alias.to_owned() } else { format!("{alias} (down or in another group)") },
        sandbox: wanted.map_or_else(
            || Sandbox { device: 0, inode: 0, path: PathBuf::from("unknown"), process: None },
            |port| port.sandbox.clone(),
        ),
        sandbox_end: wanted.map_or_else(unknown, |port| port.sandbox_end.clone()),
        host_end: name,
    }
}
