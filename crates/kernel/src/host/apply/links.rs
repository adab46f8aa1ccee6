//! Interfaces of the host: bridges, ports and their neighbours, VLAN interfaces, children of other interfaces.

use std::os::fd::AsFd;

use portolan_model::{IfName, IpvlanMode, MacvlanMode, Sandbox};
use portolan_plan::{Bridge, Child, ChildKind, Object, Port, Step, Vlan};

use super::super::{failure, refusal, removal, unset};
use super::{Context, Labelled, Mode, is_link_local, is_read_only, open_sandbox};
use crate::netlink::{NetlinkError, Socket};
use crate::netns::NetnsFd;
use crate::rtnl::addr::{self, Address};
use crate::rtnl::link::{self, AddrGenMode, BrPort, BridgeSpec, Ipv4Conf, LinkChange, VethPeer, VethSpec};
use crate::rtnl::neigh;
use crate::rtnl::route::{self, Route};
use crate::sysctl;

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
                _ => None,
            })
            .collect();
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
                    if let Some(index) = self.index(socket, &neighbour.bridge) {
                        last.add(&doing, |batch| {
                            neigh::replace(batch, index, neighbour.address, neighbour.mac.octets());
                        });
                    }
                }
                // Neighbours go with their bridge.
                Step::Delete(Object::Neighbour(neighbour)) if gone.contains(&&neighbour.bridge) => {}
                Step::Delete(Object::Neighbour(neighbour)) => {
                    if let Some(index) = self.index(socket, &neighbour.bridge) {
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
                // Its bridge goes too, and takes it along.
                Step::Delete(Object::Port(port)) if self.is_bridge_going(&port.bridge) => {}
                Step::Delete(Object::Port(port)) if !self.is_our_port(socket, port) => {}
                Step::Delete(Object::Port(port)) => doomed.push(port.host_end.as_str()),
                Step::Delete(Object::Bridge(bridge)) => {
                    if self.is_ours(socket, &bridge.name, Some(self.groups.bridges), &bridge.alias) {
                        doomed.push(bridge.name.as_str());
                    }
                    for step in self.steps {
                        if let Step::Delete(Object::Port(port)) = step
                            && port.bridge == bridge.name
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

    /// Whether the host end of a port is ours. A name that a person chose may be somebody else's by now, or have been all
    /// along.
    fn is_our_port(&self, socket: &mut Socket, port: &Port) -> bool {
        portolan_plan::is_host_end_name(&port.host_end)
            || self.is_ours(socket, &port.host_end, port.ruled.then_some(self.groups.ports), &port.alias)
    }

    fn is_port_going(&self, host_end: &IfName) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Delete(Object::Port(port)) if port.host_end == *host_end))
    }

    fn is_bridge_going(&self, name: &IfName) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Delete(Object::Bridge(bridge)) if bridge.name == *name))
    }

    /// Whether the interface of this name carries one of our marks: the group from its first moment on, or the alias.
    fn is_ours(&self, socket: &mut Socket, name: &IfName, group: Option<u32>, alias: &str) -> bool {
        let found = link::lookup(socket, name.as_str());
        found.is_ok_and(|found| found.is_some_and(|is| Some(is.group) == group || is.alias.as_deref() == Some(alias)))
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

    /// Brings a bridge to what it should be, whatever it is; up only after its sysctls are set.
    fn configure_bridge(&mut self, socket: &mut Socket, bridge: &Bridge, existing: Option<&Bridge>) {
        let doing = format!("configure bridge `{}`", bridge.name);
        let name = bridge.name.as_str();
        let values: &[(&str, &str)] = if bridge.ipv6 {
            &[("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_redirects", "0"), ("accept_dad", "0")]
        } else {
            &[("disable_ipv6", "1")]
        };
        let written = sysctl::write_in(&["net", "ipv6", "conf", name], values);
        // Without an address of its own it is as good as off.
        let no_addresses = bridge.ipv6 || written.as_ref().is_err_and(is_read_only);
        if let Err(error) = written
            // A kernel without IPv6 accepts nothing either.
            && (bridge.ipv6 || !(error.is_missing() || is_read_only(&error)))
        {
            self.failures.push(unset(doing.clone(), &error));
            if self.mode == Mode::Strict {
                return;
            }
        }
        let Some(index) = self.index(socket, &bridge.name) else { return };
        let vrf = match &bridge.vrf {
            Some(vrf) => match self.index(socket, vrf) {
                Some(index) => Some(index),
                None => return,
            },
            None => None,
        };
        let mut labelled = Labelled::default();
        labelled.add(&doing, |batch| {
            let conf = [
                (Ipv4Conf::Forwarding, 1),
                (Ipv4Conf::AcceptRedirects, 0),
                (Ipv4Conf::SendRedirects, 0),
                (Ipv4Conf::RpFilter, 1),
                (Ipv4Conf::RouteLocalnet, u32::from(bridge.route_localnet)),
            ];
            let change = LinkChange {
                up: Some(true),
                mtu: Some(bridge.mtu.bytes()),
                alias: Some(&bridge.alias),
                group: Some(self.groups.bridges),
                // Setting it, even to what it is, makes the kernel forget the bridge's neighbours (neigh_changeaddr).
                mac: existing.is_none_or(|is| is.mac != bridge.mac).then_some(bridge.mac.octets()),
                // Its link-local address is given below: the kernel's own comes only once a port is up, and without
                // one the kernel solicits no neighbour for what it forwards.
                addr_gen_mode: no_addresses.then_some(AddrGenMode::None),
                ipv4_conf: &conf,
                master: vrf,
                ..LinkChange::default()
            };
            link::set(batch, index, &change);
            if bridge.ipv6 {
                addr::replace(batch, &Address::new(index, bridge.mac.link_local().into(), 64));
            }
            // The gateway is in the VLAN of the ports.
            if let Some(vlan) = bridge.vlan {
                link::set_bridge_vlan(batch, index, vlan, true);
            }
        });
        if existing.is_some() {
            match addr::dump(socket, Some(index)) {
                Ok(found) => {
                    for address in found.into_iter().filter(|a| !is_link_local(a.addr)) {
                        if !bridge
                            .addresses
                            .iter()
                            .any(|wanted| wanted.addr() == address.addr && wanted.prefix_len() == address.prefix_len)
                        {
                            labelled.add(&doing, |batch| {
                                addr::delete(batch, index, address.addr, address.prefix_len);
                            });
                        }
                    }
                }
                Err(error) => self.failures.push(refusal(&doing, &error)),
            }
        }
        for address in &bridge.addresses {
            labelled.add(&doing, |batch| {
                addr::replace(batch, &Address::new(index, address.addr(), address.prefix_len()));
            });
            // The kernel makes it with the address, but not for an address that is there and whose route somebody took.
            if existing.is_some() && address.prefix_len() < address.max_prefix_len() {
                labelled.add(&doing, |batch| {
                    route::replace(batch, &connected(index, address));
                });
            }
        }
        self.send(socket, &labelled);
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
    fn inside_of(&mut self, sandbox: &Sandbox) -> Option<NetnsFd> {
        match open_sandbox(sandbox) {
            Ok(ns) => Some(ns),
            Err(error) => {
                self.failures.extend(Some(error).filter(|_| self.mode == Mode::Strict));
                None
            }
        }
    }

    /// Makes the pair, its far end in the sandbox, down; then what restricts it, then up. The FDB entry and the
    /// neighbours go into `last`, which is sent when all ports are there.
    fn create_port(&mut self, socket: &mut Socket, port: &Port, last: &mut Labelled) {
        let doing = format!("create veth `{}`", port.host_end);
        let Some(bridge) = self.index(socket, &port.bridge) else { return };
        let Some(ns) = self.inside_of(&port.sandbox) else { return };
        let mut labelled = Labelled::to_make(&port.sandbox_end);
        labelled.add(&doing, |batch| {
            link::create_veth(
                batch,
                &VethSpec {
                    name: port.host_end.as_str(),
                    mac: None,
                    mtu: Some(port.mtu.bytes()),
                    group: port.ruled.then_some(self.groups.ports),
                    master: Some(bridge),
                    index: None,
                    up: false,
                    echo: true,
                    peer: VethPeer {
                        name: port.sandbox_end.as_str(),
                        mac: Some(port.mac.octets()),
                        mtu: Some(port.mtu.bytes()),
                        group: None,
                        netns: Some(ns.as_fd()),
                        index: None,
                    },
                },
            );
        });
        let replies = self.send(socket, &labelled);
        let made =
            replies.iter().map(|reply| link::parse(&reply.payload)).find(|made| made.name == port.host_end.as_str());
        if let Some(made) = made {
            self.indexes.insert(port.host_end.clone(), made.index);
            if let Some(peer) = made.link {
                self.peers.insert(port.host_end.clone(), peer);
            }
        }
        if !self.failures.is_empty() && self.mode == Mode::Strict {
            return;
        }
        // A bridge port hands every frame to the bridge and needs no IPv6 of its own: with it, each would add routes
        // that the kernel walks through whenever an interface comes or goes.
        if let Err(error) = sysctl::write_in(&["net", "ipv6", "conf", port.host_end.as_str()], &[("disable_ipv6", "1")])
            && !error.is_missing()
        {
            tracing::info!(%error, host_end = %port.host_end, "IPv6 stays on at the bridge port");
        }
        if let Some(index) = self.index(socket, &port.host_end) {
            last.add(&doing, |batch| {
                link::set(batch, index, &port_change(port));
                // The entry is made for the VLANs that the port is in by then.
                if let Some(vlan) = port.vlan {
                    link::set_bridge_vlan(batch, index, vlan, false);
                }
                neigh::fdb_replace(batch, index, port.mac.octets());
            });
        }
    }

    fn change_port(&mut self, socket: &mut Socket, from: &Port, to: &Port, last: &mut Labelled) {
        let same_pair = from.sandbox == to.sandbox && from.sandbox_end == to.sandbox_end;
        if !same_pair {
            let mut labelled = Labelled::default();
            labelled.add(&format!("delete veth `{}`", from.host_end), |batch| {
                link::delete(batch, from.host_end.as_str());
            });
            self.send(socket, &labelled);
            self.indexes.remove(&from.host_end);
            self.create_port(socket, to, last);
            return;
        }
        let doing = format!("configure veth `{}`", to.host_end);
        let Some(index) = self.index(socket, &to.host_end) else { return };
        if from.bridge != to.bridge {
            // Its bridge went, or somebody took it: it becomes a port first, then the port it should be.
            let Some(bridge) = self.index(socket, &to.bridge) else { return };
            last.add(&doing, |batch| {
                link::set(batch, index, &LinkChange { master: Some(bridge), ..LinkChange::default() });
            });
        }
        let group = if to.ruled { self.groups.ports } else { 0 };
        last.add(&doing, |batch| {
            link::set(batch, index, &LinkChange { mtu: Some(to.mtu.bytes()), group: Some(group), ..port_change(to) });
            neigh::fdb_replace(batch, index, to.mac.octets());
        });
    }
}

/// What makes a bridge port ours: alias, group, isolation, and up.
fn port_change(port: &Port) -> LinkChange<'_> {
    LinkChange {
        up: Some(true),
        alias: Some(&port.alias),
        brport: Some(BrPort {
            isolated: Some(port.isolated),
            // The bridge knows its endpoints: it answers for them, and floods nothing that it knows.
            neigh_suppress: Some(true),
            learning: Some(!port.locked),
            locked: Some(port.locked),
            unicast_flood: Some(!port.locked),
            // With bridge netfilter on, the kernel bridges what was translated to the port's own container back to it.
            hairpin: Some(true),
            ..BrPort::default()
        }),
        ..LinkChange::default()
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
