//! Interfaces of the host: bridges, ports and their neighbours, VLAN interfaces, children of other interfaces.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use ipnet::IpNet;
use portolan_model::{IfName, IpvlanMode, Mac, MacvlanMode, Mtu, Sandbox};
use portolan_plan::{Bridge, Child, ChildKind, Object, Step, Vlan};

use super::super::{failure, refusal, removal, unset};
use super::sandbox::is_child;
use super::{Context, Labelled, Mode, is_link_local, is_read_only, open_sandbox};
use crate::netlink::{NetlinkError, Socket};
use crate::netns::NetnsFd;
use crate::rtnl::addr::{self, Address};
use crate::rtnl::link::{self, AddrGenMode, BridgeSpec, Ipv4Conf, LinkChange};
use crate::rtnl::neigh;
use crate::rtnl::route::{self, Route};
use crate::sysctl;

/// An interface that the host routes by, as it should be.
pub(super) struct Router<'a> {
    /// What is done to it.
    pub(super) doing: String,
    pub(super) name: &'a IfName,
    pub(super) mac: Mac,
    /// Whether it gets its MAC now. Setting it, even to what it is, makes the kernel forget the interface's neighbours
    /// (neigh_changeaddr).
    pub(super) sets_mac: bool,
    pub(super) mtu: Mtu,
    pub(super) alias: &'a str,
    /// Whether IPv6 is to live on it.
    pub(super) ipv6: bool,
    pub(super) route_localnet: bool,
    pub(super) addresses: BTreeSet<IpNet>,
    /// Whether it was there before, and may have other addresses.
    pub(super) is_there: bool,
    /// What rules know it by.
    pub(super) group: u32,
    /// What it is to be a part of; 0 for nothing.
    pub(super) master: Option<u32>,
    pub(super) vlan: Option<u16>,
}

impl Context<'_> {
    /// The index of a host interface that should be there.
    pub(super) fn index(&mut self, socket: &mut Socket, name: &IfName) -> Option<u32> {
        if let Some(index) = self.indexes.get(name) {
            return Some(*index);
        }
        let doing = || format!("find interface `{name}`");
        match link::lookup(socket, name.as_str()) {
            Ok(Some(found)) => {
                self.indexes.insert(name.clone(), found.index);
                Some(found.index)
            }
            Ok(None) => {
                if self.mode == Mode::Strict {
                    self.failures.push(failure(doing(), "no such device (ENODEV)".to_owned(), libc::ENODEV));
                }
                None
            }
            Err(error) => {
                self.failures.push(refusal(doing(), &error));
                None
            }
        }
    }

    pub(super) fn host(&mut self, steps: &[Step]) {
        let kernel = self.kernel;
        let result = kernel.with_route(|socket| {
            self.host_with(socket, steps);
            Ok(())
        });
        self.failures.extend(result.err());
    }

    fn host_with(&mut self, socket: &mut Socket, steps: &[Step]) {
        let strict = self.mode == Mode::Strict;
        let gone: Vec<&IfName> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Delete(Object::Bridge(bridge)) => Some(&bridge.name),
                Step::Delete(Object::Port(port)) if port.bridge().is_none() => Some(&port.host_end),
                Step::Delete(Object::Vxlan(vxlan)) => Some(&vxlan.name),
                _ => None,
            })
            .collect();
        self.make_ready_to_leave(socket, steps);
        let mut last = Labelled::default();
        let mut doomed: Vec<&str> = Vec::new();
        for step in steps {
            if strict && !self.failures.is_empty() {
                return;
            }
            let doing = step.to_string();
            match step {
                Step::Create(Object::Bridge(bridge)) => self.create_bridge(socket, bridge),
                Step::Change(Object::Bridge(from), Object::Bridge(to)) => self.configure_bridge(socket, to, Some(from)),
                Step::Create(Object::Port(port)) => self.create_port(socket, port, &mut last),
                Step::Change(Object::Port(from), Object::Port(to)) => self.change_port(socket, from, to, &mut last),
                Step::Create(Object::Neighbour(neighbour)) | Step::Change(_, Object::Neighbour(neighbour)) => {
                    if let Some(index) = self.index(socket, &neighbour.device) {
                        last.add(&doing, |batch| {
                            neigh::replace(batch, index, neighbour.address, neighbour.mac.octets());
                        });
                    }
                }
                // Neighbours, forwarding entries and routes go with their device.
                Step::Delete(object @ (Object::Neighbour(_) | Object::Forwarding(_) | Object::HostRoute(_)))
                    if object.device().is_some_and(|device| gone.contains(&device)) => {}
                Step::Create(Object::Vxlan(vxlan)) => self.create_vxlan(socket, vxlan),
                Step::Change(Object::Vxlan(from), Object::Vxlan(to)) => self.change_vxlan(socket, from, to),
                Step::Delete(Object::Vxlan(vxlan))
                    if !self.is_ours(socket, &vxlan.name, Some(self.groups.bridges), &vxlan.alias) => {}
                Step::Delete(Object::Vxlan(vxlan)) => doomed.push(vxlan.name.as_str()),
                Step::Create(Object::Forwarding(entry)) | Step::Change(_, Object::Forwarding(entry)) => {
                    self.forward(socket, &doing, entry, true, &mut last);
                }
                Step::Delete(Object::Forwarding(entry)) => {
                    self.forward(socket, &doing, entry, false, &mut last);
                }
                Step::Create(Object::HostRoute(route)) | Step::Change(_, Object::HostRoute(route)) => {
                    self.make_host_route(socket, step, route, &mut last);
                }
                Step::Delete(Object::HostRoute(route)) => self.remove_host_route(socket, step, route, &mut last),
                Step::Delete(Object::Neighbour(neighbour)) => {
                    if let Some(index) = self.index(socket, &neighbour.device) {
                        last.add(&doing, |batch| {
                            neigh::delete(batch, index, neighbour.address);
                        });
                    }
                }
                Step::Create(Object::Shaper(shaper)) | Step::Change(_, Object::Shaper(shaper)) => {
                    self.make_shaper(socket, shaper);
                }
                Step::Delete(Object::Shaper(shaper)) => {
                    // On the way in it goes with its port.
                    if !self.is_port_going(&shaper.host_end) {
                        self.remove_shaper(socket, shaper);
                    }
                    if let Some(through) = &shaper.through
                        && self.is_ours(socket, through, None, &shaper.alias)
                    {
                        doomed.push(through.as_str());
                    }
                }
                Step::Create(Object::Vlan(vlan)) => self.create_vlan(socket, vlan),
                Step::Change(Object::Vlan(from), Object::Vlan(to)) => {
                    let mut labelled = Labelled::default();
                    labelled.add(&doing, |batch| {
                        link::delete(batch, from.name.as_str());
                    });
                    self.send(socket, &labelled);
                    self.create_vlan(socket, to);
                }
                Step::Delete(Object::Vlan(vlan)) if !self.is_ours(socket, &vlan.name, None, &vlan.alias) => {}
                Step::Delete(Object::Vlan(vlan)) => doomed.push(vlan.name.as_str()),
                Step::Create(Object::Child(child)) => self.create_child(socket, child),
                // Whoever took it has brought it back, or it went with the namespace that it was taken to.
                Step::Delete(Object::Child(child)) if !self.is_there(socket, child) => {}
                Step::Delete(Object::Child(child)) => doomed.push(child.name.as_str()),
                // Its bridge goes too, and takes it along.
                Step::Delete(Object::Port(port)) if self.is_bridge_going(port.bridge()) => {}
                Step::Delete(Object::Port(port)) if !self.is_our_port(socket, port) => {}
                Step::Delete(Object::Port(port)) => doomed.push(port.host_end.as_str()),
                Step::Delete(Object::Bridge(bridge)) => {
                    if self.is_ours(socket, &bridge.name, Some(self.groups.bridges), &bridge.alias) {
                        doomed.push(bridge.name.as_str());
                    }
                    for step in self.steps {
                        if let Step::Delete(Object::Port(port)) = step
                            && port.bridge() == Some(&bridge.name)
                            && self.is_our_port(socket, port)
                        {
                            doomed.push(port.host_end.as_str());
                        }
                    }
                }
                _ => {}
            }
        }
        if strict && !self.failures.is_empty() {
            return;
        }
        self.send(socket, &last);
        if !doomed.is_empty() {
            let forgiven = |error: &NetlinkError| self.forgiven(error);
            let failures = removal::remove(self.kernel, socket, &doomed, self.groups.doomed, forgiven);
            self.failures.extend(failures);
        }
    }

    pub(super) fn is_bridge_going(&self, name: Option<&IfName>) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Delete(Object::Bridge(bridge)) if Some(&bridge.name) == name))
    }

    /// Whether the interface of this name carries one of our marks: the group from its first moment on, or the alias. That it
    /// could not be looked at is a failure: what is taken for another's would stay.
    pub(super) fn is_ours(&mut self, socket: &mut Socket, name: &IfName, group: Option<u32>, alias: &str) -> bool {
        match link::lookup(socket, name.as_str()) {
            Ok(found) => found.is_some_and(|is| Some(is.group) == group || is.alias.as_deref() == Some(alias)),
            Err(error) => {
                self.failures.push(refusal(format!("look for interface `{name}`"), &error));
                false
            }
        }
    }

    /// Whether an interface that was handed over is in the host's namespace.
    fn is_there(&mut self, socket: &mut Socket, child: &Child) -> bool {
        match link::lookup(socket, child.name.as_str()) {
            Ok(found) => found.is_some_and(|found| is_child(&found, child)),
            Err(error) => {
                self.failures.push(refusal(format!("look for interface `{}`", child.name), &error));
                false
            }
        }
    }

    fn create_bridge(&mut self, socket: &mut Socket, bridge: &Bridge) {
        let filtering = if bridge.vlan.is_some() { " with VLAN filtering" } else { "" };
        let doing = format!("create bridge `{}`{filtering}", bridge.name);
        let mut labelled = Labelled::default();
        labelled.add(&doing, |batch| {
            link::create_bridge(
                batch,
                &BridgeSpec {
                    name: bridge.name.as_str(),
                    mac: Some(bridge.mac.octets()),
                    mtu: Some(bridge.mtu.bytes()),
                    group: Some(self.groups.bridges),
                    // Every endpoint is known, listeners are not: multicast goes to all ports, as on a plain switch.
                    mcast_snooping: false,
                    vlan_filtering: bridge.vlan.is_some(),
                    up: false,
                },
            );
            link::set(batch, bridge.name.as_str(), &LinkChange { alias: Some(&bridge.alias), ..LinkChange::default() });
        });
        self.send(socket, &labelled);
        if self.mode == Mode::Lenient || self.failures.is_empty() {
            self.configure_bridge(socket, bridge, None);
        }
    }

    /// Brings a bridge to what it should be, whatever it is.
    fn configure_bridge(&mut self, socket: &mut Socket, bridge: &Bridge, existing: Option<&Bridge>) {
        let vrf = match &bridge.vrf {
            Some(vrf) => match self.index(socket, vrf) {
                Some(index) => Some(index),
                None => return,
            },
            None => None,
        };
        let router = Router {
            doing: format!("configure bridge `{}`", bridge.name),
            name: &bridge.name,
            mac: bridge.mac,
            sets_mac: existing.is_none_or(|is| is.mac != bridge.mac),
            mtu: bridge.mtu,
            alias: &bridge.alias,
            ipv6: bridge.ipv6,
            route_localnet: bridge.route_localnet,
            addresses: bridge.addresses.clone(),
            is_there: existing.is_some(),
            group: self.groups.bridges,
            master: vrf,
            vlan: bridge.vlan,
        };
        let mut labelled = Labelled::default();
        self.configure_router(socket, &router, &mut labelled);
        if self.mode == Mode::Lenient || self.failures.is_empty() {
            self.send(socket, &labelled);
        }
    }

    /// Sets the sysctls of an interface that the host routes by; then, in `labelled`, what else there is to it, and up.
    pub(super) fn configure_router(&mut self, socket: &mut Socket, router: &Router<'_>, labelled: &mut Labelled) {
        let doing = &router.doing;
        let name = router.name.as_str();
        let values: &[(&str, &str)] = if router.ipv6 {
            &[("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_redirects", "0"), ("accept_dad", "0")]
        } else {
            &[("disable_ipv6", "1")]
        };
        let written = sysctl::write_in(&["net", "ipv6", "conf", name], values);
        // Without an address of its own it is as good as off.
        let no_addresses = router.ipv6 || written.as_ref().is_err_and(is_read_only);
        if let Err(error) = written
            // A kernel without IPv6 accepts nothing either.
            && (router.ipv6 || !(error.is_missing() || is_read_only(&error)))
        {
            self.failures.push(unset(doing.clone(), &error));
            if self.mode == Mode::Strict {
                return;
            }
        }
        let Some(index) = self.index(socket, router.name) else { return };
        labelled.add(doing, |batch| {
            let conf = [
                (Ipv4Conf::Forwarding, 1),
                (Ipv4Conf::AcceptRedirects, 0),
                (Ipv4Conf::SendRedirects, 0),
                (Ipv4Conf::RpFilter, 1),
                (Ipv4Conf::RouteLocalnet, u32::from(router.route_localnet)),
            ];
            let change = LinkChange {
                up: Some(true),
                mtu: Some(router.mtu.bytes()),
                alias: Some(router.alias),
                group: Some(router.group),
                mac: router.sets_mac.then_some(router.mac.octets()),
                // Its link-local address is given below: the kernel's own comes only once a port or the other end is up,
                // and without one the kernel solicits no neighbour for what it forwards.
                addr_gen_mode: no_addresses.then_some(AddrGenMode::None),
                ipv4_conf: &conf,
                master: router.master,
                ..LinkChange::default()
            };
            link::set(batch, index, &change);
            if router.ipv6 {
                addr::replace(batch, &Address::new(index, router.mac.link_local().into(), 64));
            }
            // The gateway is in the VLAN of the ports.
            if let Some(vlan) = router.vlan {
                link::set_bridge_vlan(batch, index, vlan, true);
            }
        });
        if router.is_there {
            match addr::dump(socket, Some(index)) {
                Ok(found) => {
                    for address in found.into_iter().filter(|a| !is_link_local(a.addr)) {
                        if !router
                            .addresses
                            .iter()
                            .any(|wanted| wanted.addr() == address.addr && wanted.prefix_len() == address.prefix_len)
                        {
                            labelled.add(doing, |batch| {
                                addr::delete(batch, index, address.addr, address.prefix_len);
                            });
                        }
                    }
                }
                Err(error) => self.failures.push(refusal(doing, &error)),
            }
        }
        for address in &router.addresses {
            let is_whole = address.prefix_len() == address.max_prefix_len();
            labelled.add(doing, |batch| {
                let address = Address::new(index, address.addr(), address.prefix_len());
                // Of several interfaces with one address each would add a route of IPv6 to it that nothing goes by.
                addr::replace(batch, &if is_whole { address.without_prefix_route() } else { address });
            });
            // The kernel makes it with the address, but not for an address that is there and whose route somebody took.
            if router.is_there && !is_whole {
                labelled.add(doing, |batch| {
                    route::replace(batch, &connected(index, address));
                });
            }
        }
    }

    fn create_vlan(&mut self, socket: &mut Socket, vlan: &Vlan) {
        let Some(parent) = self.index(socket, &vlan.parent) else { return };
        let name = vlan.name.as_str();
        let mut labelled = Labelled::default();
        labelled.add(&format!("create VLAN interface `{name}`"), |batch| {
            link::create_vlan(batch, name, parent, vlan.id);
            let change = LinkChange { up: Some(true), alias: Some(&vlan.alias), ..LinkChange::default() };
            link::set(batch, name, &change);
        });
        self.send(socket, &labelled);
    }

    fn create_child(&mut self, socket: &mut Socket, child: &Child) {
        let (kind, mode) = match child.kind {
            ChildKind::Macvlan { mode, bclim } => {
                let number = match mode {
                    MacvlanMode::Private => 1,
                    MacvlanMode::Vepa => 2,
                    MacvlanMode::Bridge => 4,
                    MacvlanMode::Passthru => 8,
                    MacvlanMode::Source => 16,
                };
                ("macvlan", link::ChildMode::Macvlan(number, bclim))
            }
            ChildKind::Ipvlan { mode } => {
                let number = match mode {
                    IpvlanMode::L2 => 0,
                    IpvlanMode::L3 => 1,
                    IpvlanMode::L3s => 2,
                };
                ("ipvlan", link::ChildMode::Ipvlan(number))
            }
        };
        let Some(parent) = self.index(socket, &child.parent) else { return };
        let Some(ns) = self.inside_of(&child.sandbox) else { return };
        let mut labelled = Labelled::to_make(&child.name);
        labelled.add(&format!("create {kind} `{}` on `{}`", child.name, child.parent), |batch| {
            link::create_child(
                batch,
                &link::ChildSpec {
                    name: child.name.as_str(),
                    parent,
                    mode,
                    mac: child.mac.map(|mac| mac.octets()),
                    mtu: Some(child.mtu.bytes()),
                    netns: ns.as_fd(),
                },
            );
        });
        self.send(socket, &labelled);
    }

    /// The namespace that an interface is to be in. A container that is gone needs none.
    pub(super) fn inside_of(&mut self, sandbox: &Sandbox) -> Option<NetnsFd> {
        match open_sandbox(sandbox) {
            Ok(ns) => Some(ns),
            Err(error) => {
                self.failures.extend(Some(error).filter(|_| self.mode == Mode::Strict));
                None
            }
        }
    }
}

/// The route to its subnet that the kernel makes with an address.
fn connected(index: u32, address: &ipnet::IpNet) -> Route {
    /// `IP6_RT_PRIO_ADDRCONF`, include/net/ip6_route.h.
    const ADDRCONF: u32 = 256;
    let is_v4 = address.addr().is_ipv4();
    Route {
        oif: Some(index),
        protocol: route::PROTOCOL_KERNEL,
        scope: is_v4.then_some(libc::RT_SCOPE_LINK),
        prefsrc: is_v4.then_some(address.addr()),
        metric: (!is_v4).then_some(ADDRCONF),
        ..Route::new(address.network(), address.prefix_len())
    }
}
