//! What the kernel holds, as objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_engine::{KernelError, Kind};
use portolan_model::{FirewallDriver, IfName, LinkAttributes, Mac, Mtu, Rate, Sandbox};
use portolan_plan::{
    Bridge, Chain, ChildKind, DefaultRoute, Direction, Firewall, Forwarding, Groups, HostEnd, Interface, Neighbour,
    Object, Objects, Port, Ruleset, SandboxSetting, Set, Setting, Shaper, Table, Vlan, ruleset,
};

use super::apply::open_sandbox;
use super::{HostKernel, failure, refusal, shortcuts};
use crate::netlink::{self, Socket};
use crate::netns;
use crate::nft::decode;
use crate::rtnl::link::{self, AddrGenMode, IFF_ALLMULTI, IFF_PROMISC, Ipv4Conf, Link};
use crate::rtnl::{addr, neigh, route, tc};
use crate::sysctl;

mod ports;
mod tunnels;

use ports::{host_routes, port, routed_port};

/// Reads everything that is ours by name, and the sandboxes and sysctls that `desired` speaks of.
pub(super) fn observe(
    kernel: &HostKernel,
    root: &str,
    firewall: &Firewall,
    desired: &Objects,
) -> Result<Objects, KernelError> {
    let mut found = Objects::new();
    for (_, object) in desired.iter() {
        if let Object::Setting(setting) = object
            && let Ok(value) = sysctl::read(&setting.path.split('/').collect::<Vec<_>>())
        {
            found.insert(Object::Setting(Setting { value, ..setting.clone() }));
        }
        if let Object::Child(child) = object
            && child.handed
        {
            found.insert(object.clone());
        }
    }
    found.extend(rules(kernel, firewall, desired)?);
    let indexes = kernel.with_route(|socket| links(socket, root, Groups::of(&firewall.name), desired, &mut found))?;
    shortcuts::observe_inlets(kernel, root, desired, &indexes, &mut found)?;
    if firewall.driver == FirewallDriver::Nftables {
        shortcuts::observe(kernel, root, desired, &indexes, &mut found)?;
    }
    for (sandbox, interfaces) in sandboxes(desired) {
        let ns = match open_sandbox(&sandbox) {
            Ok(ns) => ns,
            // It is gone, and holds nothing.
            Err(error) if error.kind == Kind::NotFound => continue,
            Err(error) => return Err(error),
        };
        netns::with_netns(&ns, || inside(&sandbox, &interfaces, desired, &mut found)).map_err(|error| {
            failure(
                format!("enter namespace `{}`", sandbox.path.display()),
                error.in_full(),
                error.errno().unwrap_or(0),
            )
        })??;
    }
    Ok(found)
}

/// Reads our rules alone.
pub(super) fn rules(kernel: &HostKernel, firewall: &Firewall, desired: &Objects) -> Result<Objects, KernelError> {
    let mut found = Objects::new();
    match firewall.driver {
        FirewallDriver::Nftables => kernel.with_netfilter(|socket| tables(socket, &firewall.name, &mut found))?,
        FirewallDriver::Iptables => found.extend(super::iptables::observe(firewall)?),
        FirewallDriver::Firewalld => found.extend(super::firewalld::observe(firewall, desired)?),
        FirewallDriver::None => {}
    }
    Ok(found)
}

fn tables(socket: &mut Socket, name: &str, found: &mut Objects) -> Result<(), KernelError> {
    let doing = "read the ruleset";
    let mut present = 0;
    let mut intact = true;
    for table in Table::ALL {
        if !decode::table_exists(socket, table, name).map_err(|error| refusal(doing, &error))? {
            continue;
        }
        present += 1;
        let mut rules = decode::rules(socket, table, name).map_err(|error| refusal(doing, &error))?;
        for chain in Chain::ALL.into_iter().filter(|chain| ruleset::table(*chain) == table) {
            let comments = rules.remove(chain.name()).unwrap_or_default();
            let wanted = ruleset::rules(chain);
            intact &= comments.len() == wanted.len()
                && comments.iter().zip(&wanted).all(|(is, should)| is.comment == should.comment);
        }
        intact &= rules.is_empty();
    }
    if present == 0 {
        return Ok(());
    }
    // A table that somebody changed is made anew with all its elements, so it counts as another one.
    let whole = present == Table::ALL.len() && intact;
    let shown = if whole { name.to_owned() } else { format!("{name} (damaged)") };
    found.insert(Object::Ruleset(Ruleset { firewall: Firewall::nftables(&shown) }));
    if whole {
        for set in Set::ALL {
            let (elements, unknown) = decode::elements(socket, name, set).map_err(|error| refusal(doing, &error))?;
            if unknown > 0 {
                tracing::warn!(set = set.name(), unknown, "elements that are not of our making");
            }
            found.extend(elements.into_iter().map(Object::Element));
        }
    }
    Ok(())
}

/// The interfaces and what stands on them; the indexes of all there are.
fn links(
    socket: &mut Socket,
    root: &str,
    groups: Groups,
    desired: &Objects,
    found: &mut Objects,
) -> Result<BTreeMap<String, u32>, KernelError> {
    let doing = "list interfaces";
    let all = link::dump(socket).map_err(|error| refusal(doing, &error))?;
    let indexes: BTreeMap<String, u32> = all.iter().map(|link| (link.name.clone(), link.index)).collect();
    let names: BTreeMap<u32, &str> = all.iter().map(|link| (link.index, link.name.as_str())).collect();
    let network = format!("portolan:{root}:network:");
    let endpoint = format!("portolan:{root}:endpoint:");
    let mut bridges: BTreeMap<u32, IfName> = BTreeMap::new();
    // Host ends and ends of tunnels that the host routes by.
    let mut devices: BTreeMap<u32, IfName> = BTreeMap::new();
    let routes = route::dump(socket).map_err(|error| refusal("list routes", &error))?;
    let connected: BTreeSet<(u32, IpNet)> = routes
        .iter()
        .filter(|route| route.protocol == route::PROTOCOL_KERNEL && route.table == route::TABLE_MAIN)
        .filter_map(|route| Some((route.oif?, IpNet::new(route.dst, route.prefix_len).ok()?)))
        .collect();
    for link in &all {
        let (Some(alias), Ok(name)) = (&link.alias, link.name.parse::<IfName>()) else { continue };
        if alias.starts_with(&network) && link.kind.as_deref() == Some("bridge") {
            let Some(addresses) = addresses_of(socket, link)? else { continue };
            bridges.insert(link.index, name.clone());
            let mut bridge = bridge(link, &addresses, name, alias, groups, &connected);
            bridge.vrf = link.master.and_then(|index| names.get(&index)?.parse().ok());
            // Which VLAN it is was said when it was made.
            if link.bridge.is_some_and(|state| state.vlan_filtering)
                && let Some(Object::Bridge(wanted)) = desired.find(&portolan_plan::Key::Bridge(bridge.name.clone()))
            {
                bridge.vlan = wanted.vlan;
            }
            found.insert(Object::Bridge(bridge));
        } else if alias.starts_with(&network) && link.kind.as_deref() == Some("vxlan") {
            devices.insert(link.index, name.clone());
            tunnels::observe(socket, link, name, alias, groups, &names, found)?;
        } else if alias.starts_with(&network) && link.kind.as_deref() == Some("vlan") {
            let wanted = desired.find(&portolan_plan::Key::Vlan(name.clone()));
            let parent = link.link.and_then(|index| names.get(&index)?.parse().ok());
            found.insert(Object::Vlan(Vlan {
                parent: parent.unwrap_or_else(|| name.clone()),
                id: match wanted {
                    Some(Object::Vlan(wanted)) => wanted.id,
                    _ => 0,
                },
                alias: alias.clone(),
                name,
            }));
        } else if alias.starts_with(&endpoint) {
            let port = match desired.find(&portolan_plan::Key::Port(name.clone())) {
                Some(Object::Port(wanted @ Port { place: HostEnd::Routed(_), .. })) => {
                    let Some(addresses) = addresses_of(socket, link)? else { continue };
                    devices.insert(link.index, name);
                    routed_port(link, &addresses, wanted, groups)
                }
                wanted => port(
                    link,
                    name,
                    alias,
                    groups,
                    &names,
                    match wanted {
                        Some(Object::Port(wanted)) => Some(wanted),
                        _ => None,
                    },
                ),
            };
            found.insert(Object::Port(port));
        }
    }
    shapers(socket, root, &all, desired, found)?;
    found.extend(host_routes(&routes, &devices, &names, desired).map(Object::HostRoute));
    devices.extend(bridges.iter().map(|(index, name)| (*index, name.clone())));
    if devices.is_empty() {
        return Ok(indexes);
    }
    for neighbour in neigh::dump(socket, None).map_err(|error| refusal("list neighbours", &error))? {
        let Some(device) = devices.get(&neighbour.ifindex) else { continue };
        if neighbour.state & neigh::NUD_PERMANENT != 0
            && let Some(mac) = neighbour.mac
        {
            found.insert(Object::Neighbour(Neighbour {
                device: device.clone(),
                address: neighbour.addr,
                mac: Mac::from_bytes(mac),
            }));
        }
    }
    // A port without its FDB entry lets nothing through.
    let mut entries: BTreeSet<(u32, [u8; 6])> = BTreeSet::new();
    for index in bridges.keys() {
        let listed = neigh::fdb_dump(socket, *index).map_err(|error| refusal("list forwarding entries", &error))?;
        entries.extend(listed.into_iter().filter(neigh::FdbEntry::is_static).map(|entry| (entry.port, entry.mac)));
    }
    let is_bridged = |entry: &Forwarding| {
        let index = indexes.get(entry.device.as_str());
        index.is_some_and(|index| entries.contains(&(*index, entry.mac.octets())))
    };
    let bridged: Vec<Forwarding> = found
        .iter()
        .filter_map(|(_, object)| match object {
            Object::Forwarding(entry) if is_bridged(entry) => Some(Forwarding { bridged: true, ..entry.clone() }),
            _ => None,
        })
        .collect();
    found.extend(bridged.into_iter().map(Object::Forwarding));
    let without: Vec<Port> = found
        .iter()
        .filter_map(|(_, object)| match object {
            Object::Port(port) => Some(port),
            _ => None,
        })
        .filter(|port| bridges.values().any(|bridge| Some(bridge) == port.bridge()))
        .filter(|port| {
            !indexes.get(port.host_end.as_str()).is_some_and(|index| entries.contains(&(*index, port.mac.octets())))
        })
        .cloned()
        .collect();
    for port in without {
        found.insert(Object::Port(Port { alias: format!("{} (no forwarding entry)", port.alias), ..port }));
    }
    Ok(indexes)
}

/// Whether an interface where IPv6 is on has any use of it: without addresses it is as good as off.
fn speaks_ipv6(link: &Link, addresses: &[addr::Address]) -> bool {
    link.addr_gen_mode != Some(AddrGenMode::None) || addresses.iter().any(|address| address.addr.is_ipv6())
}

/// An address whose route to the subnet is gone counts as gone: it is of no use.
fn bridge(
    link: &Link,
    addresses: &[addr::Address],
    name: IfName,
    alias: &str,
    groups: Groups,
    connected: &BTreeSet<(u32, IpNet)>,
) -> Bridge {
    let is_whole =
        |net: &IpNet| net.prefix_len() == net.max_prefix_len() || connected.contains(&(link.index, net.trunc()));
    let disabled = sysctl::read(&["net", "ipv6", "conf", &link.name, "disable_ipv6"]).is_ok_and(|value| value == "1");
    let usable = link.up && link.group == groups.bridges;
    Bridge {
        name,
        mac: link.mac.map_or(Mac::from_bytes([0; 6]), Mac::from_bytes),
        mtu: Mtu::new(link.mtu).unwrap_or(Mtu::ETHERNET),
        addresses: nets(addresses).into_iter().filter(is_whole).collect(),
        alias: if usable { alias.to_owned() } else { format!("{alias} (down or in another group)") },
        ipv6: !disabled && speaks_ipv6(link, addresses),
        route_localnet: link.ipv4_conf(Ipv4Conf::RouteLocalnet) == Some(1),
        // A promotion that failed leaves it loose.
        strict: link.ipv4_conf(Ipv4Conf::RpFilter) == Some(1),
        vlan: None,
        vrf: None,
    }
}

/// The addresses of an interface; none if it has gone since it was listed.
fn addresses_of(socket: &mut Socket, link: &Link) -> Result<Option<Vec<addr::Address>>, KernelError> {
    match addr::dump(socket, Some(link.index)) {
        Err(error) if error.errno() == libc::ENODEV => Ok(None),
        listed => listed.map(Some).map_err(|error| refusal("list addresses", &error)),
    }
}

fn nets(addresses: &[addr::Address]) -> BTreeSet<IpNet> {
    addresses
        .iter()
        .filter(|address| !matches!(address.addr, IpAddr::V6(ip) if ip.is_unicast_link_local()))
        .filter_map(|address| IpNet::new(address.addr, address.prefix_len).ok())
        .collect()
}

/// The limits on what passes ports. One that does not hold as it is carries an alias that nobody wants.
fn shapers(
    socket: &mut Socket,
    root: &str,
    all: &[Link],
    desired: &Objects,
    found: &mut Objects,
) -> Result<(), KernelError> {
    let doing = "list limits of bandwidth";
    let led = portolan_plan::alias_of_shaper(root, &"x".parse().expect("a valid name"));
    let led = led.strip_suffix('x').unwrap_or_default();
    for link in all {
        let Ok(name) = link.name.parse::<IfName>() else { continue };
        let aside: Option<IfName> =
            link.alias.as_deref().and_then(|alias| alias.strip_prefix(led)).and_then(|host_end| host_end.parse().ok());
        let is_port = || found.find(&portolan_plan::Key::Port(name.clone())).is_some();
        let (host_end, direction) = match aside {
            Some(host_end) if link.kind.as_deref() == Some("ifb") => (host_end, Direction::Out),
            None if link.qdisc.as_deref() == Some("tbf") && is_port() => (name.clone(), Direction::In),
            _ => continue,
        };
        let wanted = match desired.find(&portolan_plan::Key::Shaper(host_end.clone(), direction)) {
            Some(Object::Shaper(wanted)) => Some(wanted),
            _ => None,
        };
        let bucket = tc::bucket(socket, link.index).map_err(|error| refusal(doing, &error))?;
        let is_led = match (direction, all.iter().find(|port| port.name == host_end.as_str())) {
            (Direction::In, _) => true,
            (Direction::Out, None) => false,
            (Direction::Out, Some(port)) => {
                let ingress = tc::ingress(socket, port.index).map_err(|error| refusal(doing, &error))?;
                link.up && ingress.to == Some(link.index)
            }
        };
        let is_it = |wanted: &&Shaper| {
            is_led
                && bucket.is_some_and(|bucket| bucket.is(&super::apply::bucket(wanted)))
                && match &wanted.through {
                    Some(through) => *through == name,
                    None => true,
                }
        };
        if let Some(wanted) = wanted.filter(is_it) {
            found.insert(Object::Shaper(wanted.clone()));
            continue;
        }
        // Another's way to send is no limit of ours.
        if bucket.is_none() && direction == Direction::In {
            continue;
        }
        let bucket = bucket.unwrap_or(tc::Bucket { rate: 1, burst: 0, limit: 0 });
        let alias = portolan_plan::alias_of_shaper(root, &host_end);
        found.insert(Object::Shaper(Shaper {
            rate: Rate::new(bucket.rate.saturating_mul(8)).unwrap_or(Rate::LEAST),
            burst: bucket.burst,
            queue: bucket.limit,
            through: (direction == Direction::Out).then(|| name.clone()),
            // To be removed it is known by its alias; to be changed it has to differ.
            alias: if wanted.is_some() { format!("{alias} (changed)") } else { alias },
            host_end,
            direction,
        }));
    }
    Ok(())
}

/// What a sysctl is in the sandbox that we are in; nothing if it is not there.
fn setting(wanted: &SandboxSetting) -> Option<SandboxSetting> {
    match sysctl::read(&wanted.key.path().split('/').collect::<Vec<_>>()) {
        Ok(value) if !sysctl::is_same(&value, &wanted.value) => Some(SandboxSetting { value, ..wanted.clone() }),
        Err(error) if error.is_missing() => None,
        // What can only be written (net.ipv4.route.flush) says nothing.
        Ok(_) | Err(_) => Some(wanted.clone()),
    }
}

/// The sandboxes that `desired` speaks of, with their interfaces.
fn sandboxes(desired: &Objects) -> BTreeMap<Sandbox, Vec<Interface>> {
    let mut sandboxes: BTreeMap<Sandbox, Vec<Interface>> = BTreeMap::new();
    for (_, object) in desired.iter() {
        if let Object::Interface(interface) = object {
            sandboxes.entry(interface.sandbox.clone()).or_default().push(interface.clone());
        }
        if let Object::SandboxSetting(setting) = object {
            sandboxes.entry(setting.sandbox.clone()).or_default();
        }
    }
    sandboxes
}

/// Runs in the sandbox's namespace.
fn inside(
    sandbox: &Sandbox,
    interfaces: &[Interface],
    desired: &Objects,
    found: &mut Objects,
) -> Result<(), KernelError> {
    let mut socket =
        Socket::open(netlink::ROUTE).map_err(|error| refusal("open a netlink socket in the sandbox", &error))?;
    let routes = route::dump(&mut socket).map_err(|error| refusal("list routes in the sandbox", &error))?;
    let main = || routes.iter().filter(|route| route.table == route::TABLE_MAIN);
    let leads = |index: u32, subnet: IpNet, gateway: IpAddr| {
        let is = |route: &route::Route| (route.dst, route.prefix_len, route.gateway, route.oif);
        super::apply::routed(index, subnet, gateway).iter().all(|should| main().any(|route| is(route) == is(should)))
    };
    let mut names: BTreeMap<u32, IfName> = BTreeMap::new();
    for wanted in interfaces {
        let link = link::lookup(&mut socket, wanted.name.as_str())
            .map_err(|error| refusal("find an interface in the sandbox", &error))?;
        let Some(link) = link.filter(|link| link.up) else { continue };
        let Some(addresses) = addresses_of(&mut socket, &link)? else { continue };
        let disabled =
            sysctl::read(&["net", "ipv6", "conf", &link.name, "disable_ipv6"]).is_ok_and(|value| value == "1");
        names.insert(link.index, wanted.name.clone());
        let child = desired.find(&portolan_plan::Key::Child(sandbox.device, sandbox.inode, wanted.name.clone()));
        if let Some(Object::Child(child)) = child {
            let kind = match child.kind {
                ChildKind::Macvlan { .. } => "macvlan",
                ChildKind::Ipvlan { .. } => "ipvlan",
            };
            if link.kind.as_deref() == Some(kind) {
                found.insert(Object::Child(child.clone()));
            }
        }
        found.insert(Object::Interface(Interface {
            sandbox: sandbox.clone(),
            name: wanted.name.clone(),
            mac: wanted.mac.and(link.mac).map(Mac::from_bytes),
            mtu: Mtu::new(link.mtu).unwrap_or(Mtu::ETHERNET),
            routed: wanted
                .routed
                .iter()
                .filter(|(subnet, gateway)| leads(link.index, **subnet, **gateway))
                .map(|(subnet, gateway)| (*subnet, *gateway))
                .collect(),
            // Where we give none, they are the container's own business.
            addresses: if wanted.addresses.is_empty() { BTreeSet::new() } else { nets(&addresses) },
            ipv6: !disabled && speaks_ipv6(&link, &addresses),
            announce: wanted.announce,
            routers: wanted.routers,
            // What nobody asked for is the container's own business: tcpdump(8) turns one of them on.
            attributes: LinkAttributes {
                promiscuous: wanted.attributes.promiscuous.map(|_| link.flags & IFF_PROMISC != 0),
                all_multicast: wanted.attributes.all_multicast.map(|_| link.flags & IFF_ALLMULTI != 0),
                tx_queue_len: wanted.attributes.tx_queue_len.map(|_| link.tx_queue_len),
            },
        }));
    }
    for (_, object) in desired.iter() {
        if let Object::Route(wanted) = object
            && (wanted.sandbox.device, wanted.sandbox.inode) == (sandbox.device, sandbox.inode)
        {
            let should = super::apply::static_route(&wanted.route);
            let is_it = |route: &&route::Route| {
                (route.dst, route.prefix_len, route.kind, route.gateway)
                    == (should.dst, should.prefix_len, should.kind, should.gateway)
                    && (should.metric.is_none() || should.metric == route.metric)
            };
            if main().any(|route| is_it(&route)) {
                found.insert(object.clone());
            }
        }
        if let Object::SandboxSetting(wanted) = object
            && (wanted.sandbox.device, wanted.sandbox.inode) == (sandbox.device, sandbox.inode)
        {
            found.extend(setting(wanted).map(Object::SandboxSetting));
        }
    }
    for default in main().filter(|route| route.is_default()) {
        let (Some(gateway), Some(interface)) = (default.gateway, default.oif.and_then(|index| names.get(&index)))
        else {
            continue;
        };
        let mut route =
            DefaultRoute { sandbox: sandbox.clone(), gateway, interface: interface.clone(), metric: default.metric };
        let is_wanted = |route: &DefaultRoute| desired.find(&Object::DefaultRoute(route.clone()).key()).is_some();
        // Where no priority is asked for, the kernel has one of its own.
        if !is_wanted(&route) {
            route.metric = None;
        }
        // A default route that is not wanted of us is the container's own business.
        if is_wanted(&route) {
            found.insert(Object::DefaultRoute(route));
        }
    }
    Ok(())
}
