//! Steps into messages, in as few batches as their order allows.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;

use portolan_engine::{KernelError, Kind};
use portolan_model::{Family, FirewallDriver, IfName, IpvlanMode, MacvlanMode, RouteAction, Sandbox};
use portolan_plan::{
    Bridge, Child, ChildKind, DefaultRoute, Element, Firewall, Groups, Interface, Object, Port, Step, Table, Vlan,
};

use super::{HostKernel, failure, refusal, removal};
use crate::netlink::{self, Batch, NetlinkError, Socket};
use crate::netns::{self, NetnsFd};
use crate::nft::encode::{self, Insist};
use crate::rtnl::addr::{self, Address};
use crate::rtnl::link::{self, AddrGenMode, BrPort, BridgeSpec, Ipv4Conf, LinkChange, VethPeer, VethSpec};
use crate::rtnl::route::{self, Route, RouteKind};
use crate::rtnl::{self, neigh};
use crate::{announce, sysctl};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Stop at the first refusal; nothing may be there already or be gone already.
    Strict,
    /// Go on; being there or gone already is fine.
    Lenient,
}

/// Which batch a step can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Sysctl,
    Rules,
    Host,
    Sandbox,
}

fn place(step: &Step) -> Place {
    match step.object() {
        // It is made from the host's side, where the parent is, and removed where it is.
        Object::Child(_) if matches!(step, Step::Delete(_)) => Place::Sandbox,
        Object::Setting(_) => Place::Sysctl,
        Object::Ruleset(_) | Object::Element(_) => Place::Rules,
        Object::Bridge(_) | Object::Port(_) | Object::Neighbour(_) | Object::Vlan(_) | Object::Child(_) => Place::Host,
        Object::Interface(_) | Object::DefaultRoute(_) | Object::Route(_) => Place::Sandbox,
    }
}

/// Takes `steps` in order, runs of one place together. Answers the failures: at most one in strict mode.
pub(super) fn run(kernel: &HostKernel, firewall: &Firewall, steps: &[Step], mode: Mode) -> Vec<KernelError> {
    let groups = Groups::of(&firewall.name);
    let mut context = Context {
        kernel,
        table: &firewall.name,
        groups,
        mode,
        steps,
        peers: BTreeMap::new(),
        indexes: BTreeMap::new(),
        failures: Vec::new(),
    };
    if let Err(error) = super::firewalld::tell(firewall, steps) {
        context.failures.push(error);
        if mode == Mode::Strict {
            return context.failures;
        }
    }
    let mut rest = steps;
    while let Some(first) = rest.first() {
        let here = place(first);
        let length = rest.iter().take_while(|step| place(step) == here).count();
        let (now, later) = rest.split_at(length);
        match here {
            Place::Sysctl => context.settings(now),
            Place::Rules => match firewall.driver {
                FirewallDriver::Nftables => context.nftables(now),
                FirewallDriver::None => {}
                FirewallDriver::Iptables => context.failures.extend(super::iptables::apply(firewall, now, mode).err()),
                FirewallDriver::Firewalld => context.failures.extend(super::firewalld::apply(firewall, now).err()),
            },
            Place::Host => context.host(now),
            Place::Sandbox => context.sandboxes(now),
        }
        if mode == Mode::Strict && !context.failures.is_empty() {
            context.failures.truncate(1);
            break;
        }
        rest = later;
    }
    context.failures
}

struct Context<'a> {
    kernel: &'a HostKernel,
    table: &'a str,
    groups: Groups,
    mode: Mode,
    steps: &'a [Step],
    /// Indexes of sandbox ends just made, by host end.
    peers: BTreeMap<IfName, u32>,
    /// Indexes of host interfaces.
    indexes: BTreeMap<IfName, u32>,
    failures: Vec<KernelError>,
}

/// A batch whose messages know which step they are for, and what may be forgiven.
#[derive(Default)]
struct Labelled {
    batch: Batch,
    labels: Vec<String>,
}

impl Labelled {
    /// Appends messages on behalf of `doing`.
    fn add(&mut self, doing: &str, build: impl FnOnce(&mut Batch)) {
        build(&mut self.batch);
        self.labels.resize(self.batch.len(), doing.to_owned());
    }
}

impl Context<'_> {
    fn insist(&self) -> Insist {
        match self.mode {
            Mode::Strict => Insist::Yes,
            Mode::Lenient => Insist::No,
        }
    }

    /// Whether a refusal means that things are as wanted.
    fn forgiven(&self, error: &NetlinkError) -> bool {
        self.mode == Mode::Lenient && (error.is_missing() || error.is_exists() || error.errno() == libc::EADDRNOTAVAIL)
    }

    /// Sends a routing batch and keeps what the kernel refused.
    fn send(&mut self, socket: &mut Socket, labelled: &Labelled) -> Vec<netlink::Reply> {
        if labelled.batch.is_empty() {
            return Vec::new();
        }
        match socket.transact_each(&labelled.batch) {
            Ok(outcome) => {
                for error in &outcome.errors {
                    if !self.forgiven(error) {
                        let doing =
                            error.index().and_then(|index| labelled.labels.get(index)).cloned().unwrap_or_default();
                        self.failures.push(refusal(doing, error));
                    }
                }
                outcome.replies
            }
            Err(error) => {
                self.failures.push(refusal("speak netlink", &error));
                Vec::new()
            }
        }
    }

    fn settings(&mut self, steps: &[Step]) {
        for step in steps {
            let (setting, value) = match step {
                Step::Create(Object::Setting(setting)) | Step::Change(_, Object::Setting(setting)) => {
                    (setting, &setting.value)
                }
                Step::Delete(Object::Setting(setting)) => (setting, &setting.before),
                _ => continue,
            };
            let components: Vec<&str> = setting.path.split('/').collect();
            // What somebody else has changed since is theirs.
            if matches!(step, Step::Delete(_)) && sysctl::read(&components).is_ok_and(|now| now != setting.value) {
                continue;
            }
            if let Err(error) = sysctl::write(&components, value) {
                if self.mode == Mode::Lenient && error.is_missing() {
                    continue;
                }
                if is_read_only(&error) && setting.path.starts_with("net/ipv6/") && !self.brings_ipv6() {
                    tracing::info!(%error, "left as it is: no network here speaks IPv6");
                    continue;
                }
                self.failures.push(failure(
                    format!("set sysctl `{}` to {value}", setting.path.replace('/', ".")),
                    error.to_string(),
                    error.errno().unwrap_or(0),
                ));
                if self.mode == Mode::Strict {
                    return;
                }
            }
        }
    }

    /// Whether a bridge that speaks IPv6 is among what is made.
    fn brings_ipv6(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.object(), Object::Bridge(bridge) if bridge.ipv6))
    }

    fn nftables(&mut self, steps: &[Step]) {
        let mut created: Vec<&Element> = Vec::new();
        let mut deleted: Vec<&Element> = Vec::new();
        let (mut make, mut unmake) = (None, None);
        for step in steps {
            match step {
                Step::Create(Object::Ruleset(ruleset)) => make = Some(ruleset),
                Step::Delete(Object::Ruleset(ruleset)) => unmake = Some(ruleset),
                Step::Change(Object::Ruleset(from), Object::Ruleset(to)) => {
                    unmake = Some(from);
                    make = Some(to);
                }
                Step::Create(Object::Element(element)) => created.push(element),
                Step::Delete(Object::Element(element)) => deleted.push(element),
                Step::Change(Object::Element(from), Object::Element(to)) => {
                    deleted.push(from);
                    created.push(to);
                }
                _ => {}
            }
        }
        let (kernel, table, insist) = (self.kernel, self.table, self.insist());
        let doing = match (make, unmake) {
            (Some(_), _) => format!("create nftables table `{table}`"),
            (None, Some(_)) => format!("delete nftables table `{table}`"),
            (None, None) => format!("change nftables table `{table}`"),
        };
        let result = kernel.with_netfilter(|socket| {
            let mut exists = [false; 2];
            if unmake.is_some() || (make.is_some() && insist == Insist::No) {
                for (slot, kind) in exists.iter_mut().zip(Table::ALL) {
                    *slot = crate::nft::decode::table_exists(socket, kind, table)
                        .map_err(|error| refusal(&doing, &error))?;
                }
            }
            let mut batch = Batch::new();
            batch.begin_nft(None);
            // A table that is half there is made anew.
            for (_, kind) in exists.iter().zip(Table::ALL).filter(|(exists, _)| **exists) {
                encode::delete_ruleset(&mut batch, table, kind);
            }
            if make.is_some() {
                encode::create_ruleset(&mut batch, table);
            } else if unmake.is_none() {
                encode::delete_elements(&mut batch, table, &deleted, insist);
            }
            if unmake.is_none() || make.is_some() {
                encode::add_elements(&mut batch, table, &created, insist);
            }
            batch.end_nft();
            // Opening and closing alone change nothing.
            if batch.len() <= 2 {
                return Ok(());
            }
            match socket.transact(&batch) {
                Ok(_) => {
                    if unmake.is_some()
                        && kernel.leaves_waits_to_a_copy()
                        && let Err(error) = netlink::outlive(socket.as_fd())
                    {
                        tracing::debug!(%error, "no copy of this process to be had");
                    }
                    Ok(())
                }
                Err(error) if insist == Insist::No && error.is_missing() && make.is_none() => Ok(()),
                Err(error) => Err(refusal(&doing, &error)),
            }
        });
        if let Err(error) = result {
            // Elements that are there with other data cannot be overwritten: take them one by one.
            if insist == Insist::No && make.is_none() && unmake.is_none() {
                self.elements_one_by_one(&deleted, &created);
            } else {
                self.failures.push(error);
            }
        }
    }

    /// The slow way, for repairs in which one element is not as expected.
    fn elements_one_by_one(&mut self, deleted: &[&Element], created: &[&Element]) {
        let (kernel, table) = (self.kernel, self.table);
        let one = |element: &Element, add: bool| {
            kernel.with_netfilter(|socket| {
                let mut transact = |build: &dyn Fn(&mut Batch)| {
                    let mut batch = Batch::new();
                    batch.begin_nft(None);
                    build(&mut batch);
                    batch.end_nft();
                    socket.transact(&batch)
                };
                let gone = transact(&|batch| encode::delete_elements(batch, table, &[element], Insist::Yes));
                let result = if add {
                    transact(&|batch| encode::add_elements(batch, table, &[element], Insist::No))
                } else {
                    gone
                };
                match result {
                    Ok(_) => Ok(()),
                    Err(error) if !add && error.is_missing() => Ok(()),
                    Err(error) => Err(refusal(format!("repair {}", Object::Element(element.clone())), &error)),
                }
            })
        };
        let failures: Vec<KernelError> = deleted
            .iter()
            .map(|element| one(element, false))
            .chain(created.iter().map(|element| one(element, true)))
            .filter_map(Result::err)
            .collect();
        self.failures.extend(failures);
    }

    /// The index of a host interface that should be there.
    fn index(&mut self, socket: &mut Socket, name: &IfName) -> Option<u32> {
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

    fn host(&mut self, steps: &[Step]) {
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
                Step::Create(Object::Vlan(vlan)) => self.create_vlan(socket, vlan),
                Step::Change(Object::Vlan(from), Object::Vlan(to)) => {
                    let mut labelled = Labelled::default();
                    labelled.add(&doing, |batch| {
                        link::delete(batch, from.name.as_str());
                    });
                    self.send(socket, &labelled);
                    self.create_vlan(socket, to);
                }
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
            self.failures.push(failure(doing.clone(), error.to_string(), error.errno().unwrap_or(0)));
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
        let ns = match open_sandbox(&child.sandbox) {
            Ok(ns) => ns,
            Err(error) => {
                if self.mode == Mode::Strict {
                    self.failures.push(error);
                }
                return;
            }
        };
        let mut labelled = Labelled::default();
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

    /// Makes the pair, its far end in the sandbox, down; then what restricts it, then up. The FDB entry and the
    /// neighbours go into `last`, which is sent when all ports are there.
    fn create_port(&mut self, socket: &mut Socket, port: &Port, last: &mut Labelled) {
        let doing = format!("create veth `{}`", port.host_end);
        let Some(bridge) = self.index(socket, &port.bridge) else { return };
        let ns = match open_sandbox(&port.sandbox) {
            Ok(ns) => ns,
            Err(error) => {
                // A container that is gone needs no port.
                if self.mode == Mode::Strict {
                    self.failures.push(error);
                }
                return;
            }
        };
        let mut labelled = Labelled::default();
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

    fn sandboxes(&mut self, steps: &[Step]) {
        // Whatever is in a sandbox that loses its last port of ours goes with the port.
        let mut by_path: BTreeMap<&PathBuf, Vec<&Step>> = BTreeMap::new();
        for step in steps.iter().filter(|step| !self.goes_with_its_port(step)) {
            if let Some(path) = step.object().sandbox_path() {
                by_path.entry(path).or_default().push(step);
            }
        }
        for steps in by_path.into_values() {
            if let Err(error) = self.sandbox(&steps) {
                // A sandbox that is gone holds nothing.
                if self.mode == Mode::Strict || error.kind != Kind::NotFound {
                    self.failures.push(error);
                }
            }
            if self.mode == Mode::Strict && !self.failures.is_empty() {
                return;
            }
        }
    }

    fn goes_with_its_port(&self, step: &Step) -> bool {
        let ends = |sandbox: &Sandbox, interface: &IfName| {
            self.steps.iter().any(|other| {
                matches!(other, Step::Delete(Object::Port(port)) if port.sandbox.inode == sandbox.inode && port.sandbox_end == *interface)
            })
        };
        match step {
            Step::Delete(Object::Interface(_)) => true,
            Step::Delete(Object::DefaultRoute(route)) => {
                ends(&route.sandbox, &route.interface) || self.steps.iter().any(|other| {
                    matches!(other, Step::Delete(Object::Child(child)) if child.sandbox.inode == route.sandbox.inode && child.name == route.interface)
                })
            }
            _ => false,
        }
    }

    /// Takes the steps of one sandbox.
    fn sandbox(&mut self, steps: &[&Step]) -> Result<(), KernelError> {
        let sandbox = match steps[0].object() {
            Object::Interface(interface) => &interface.sandbox,
            Object::DefaultRoute(route) => &route.sandbox,
            Object::Route(route) => &route.sandbox,
            Object::Child(child) => &child.sandbox,
            _ => return Ok(()),
        };
        let ns = open_sandbox(sandbox)?;
        let entered = netns::with_netns(&ns, || self.inside(steps));
        entered.map_err(|error| {
            failure(
                format!("enter namespace `{}`", sandbox.path.display()),
                error.to_string(),
                error.errno().unwrap_or(0),
            )
        })?
    }

    /// Runs in the sandbox's namespace.
    fn inside(&mut self, steps: &[&Step]) -> Result<(), KernelError> {
        let mut socket =
            Socket::open(netlink::ROUTE).map_err(|error| refusal("open a netlink socket in the sandbox", &error))?;
        let mut labelled = Labelled::default();
        labelled.add("bring up `lo`", |batch| {
            link::set(batch, "lo", &LinkChange { up: Some(true), ..LinkChange::default() });
        });
        let mut indexes: BTreeMap<&IfName, u32> = BTreeMap::new();
        let mut announcements: Vec<(&Interface, u32)> = Vec::new();
        for step in steps {
            let doing = step.to_string();
            match step {
                Step::Create(Object::Interface(interface)) | Step::Change(_, Object::Interface(interface)) => {
                    let Some(index) = self.interface_index(&mut socket, interface)? else { continue };
                    indexes.insert(&interface.name, index);
                    let before = match step {
                        Step::Change(Object::Interface(before), _) => Some(before),
                        _ => None,
                    };
                    self.interface(&mut socket, interface, index, before, &mut labelled)?;
                    announcements.push((interface, index));
                }
                Step::Create(Object::DefaultRoute(wanted)) | Step::Change(_, Object::DefaultRoute(wanted)) => {
                    let index = match indexes.get(&wanted.interface) {
                        Some(index) => *index,
                        None => match lookup(&mut socket, wanted.interface.as_str())? {
                            Some(index) => index,
                            None => continue,
                        },
                    };
                    labelled.add(&doing, |batch| {
                        route::replace(batch, &default_route(wanted, index));
                    });
                }
                Step::Create(Object::Route(wanted)) | Step::Change(_, Object::Route(wanted)) => {
                    labelled.add(&doing, |batch| {
                        route::replace(batch, &static_route(&wanted.route));
                    });
                }
                Step::Delete(Object::Route(unwanted)) => labelled.add(&doing, |batch| {
                    route::delete(batch, &static_route(&unwanted.route));
                }),
                Step::Delete(Object::Child(child)) => {
                    let found =
                        link::lookup(&mut socket, child.name.as_str()).map_err(|error| refusal(&doing, &error))?;
                    if found.is_some_and(|found| is_child(&found, child)) {
                        labelled.add(&doing, |batch| {
                            link::delete(batch, child.name.as_str());
                        });
                    }
                }
                Step::Delete(Object::DefaultRoute(unwanted)) => {
                    if let Some(index) = lookup(&mut socket, unwanted.interface.as_str())? {
                        labelled.add(&doing, |batch| {
                            route::delete(batch, &default_route(unwanted, index));
                        });
                    }
                }
                _ => {}
            }
        }
        self.send(&mut socket, &labelled);
        if self.failures.is_empty() {
            for (interface, index) in announcements {
                let addresses: Vec<_> = interface.addresses.iter().map(ipnet::IpNet::addr).collect();
                for _ in 0..interface.announce {
                    let Some(mac) = interface.mac else { break };
                    if let Err(error) = announce::announce_all(index, mac.octets(), &addresses) {
                        tracing::warn!(%error, interface = %interface.name, "the new address was not announced");
                    }
                }
            }
        }
        Ok(())
    }

    /// The index of a sandbox's interface, by the veth just made or by name.
    fn interface_index(&self, socket: &mut Socket, interface: &Interface) -> Result<Option<u32>, KernelError> {
        let made = self.steps.iter().find_map(|step| match step {
            Step::Create(Object::Port(port)) | Step::Change(_, Object::Port(port))
                if port.sandbox.inode == interface.sandbox.inode && port.sandbox_end == interface.name =>
            {
                self.peers.get(&port.host_end).copied()
            }
            _ => None,
        });
        match made {
            Some(index) => Ok(Some(index)),
            None => match lookup(socket, interface.name.as_str())? {
                Some(index) => Ok(Some(index)),
                None if self.mode == Mode::Lenient => Ok(None),
                None => Err(failure(
                    format!("find interface `{}` in the sandbox", interface.name),
                    "no such device (ENODEV)".to_owned(),
                    libc::ENODEV,
                )),
            },
        }
    }

    fn interface(
        &mut self,
        socket: &mut Socket,
        interface: &Interface,
        index: u32,
        before: Option<&Interface>,
        labelled: &mut Labelled,
    ) -> Result<(), KernelError> {
        let doing = format!("configure interface `{}` in the sandbox", interface.name);
        let name = interface.name.as_str();
        // Before the interface is up: from then on it would listen to routers and redirects.
        let values: Vec<(&str, &str)> = match interface.routers {
            _ if !interface.ipv6 => vec![("disable_ipv6", "1")],
            None => vec![("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_redirects", "0"), ("accept_dad", "0")],
            Some(routers) => [
                // Also in a container that forwards (ip-sysctl.rst); addresses are the DHCP server's business.
                ("accept_ra", "2"),
                ("autoconf", "0"),
                ("accept_ra_defrtr", if routers.default_route { "1" } else { "0" }),
                ("accept_redirects", "0"),
                ("accept_dad", "0"),
                ("disable_ipv6", "0"),
            ]
            .into(),
        };
        let written = sysctl::write_in(&["net", "ipv6", "conf", name], &values);
        let no_addresses = !interface.ipv6 && written.as_ref().is_err_and(is_read_only);
        if let Err(error) = written
            && (interface.ipv6 || !(error.is_missing() || is_read_only(&error)))
        {
            return Err(failure(doing, error.to_string(), error.errno().unwrap_or(0)));
        }
        // Linux 5.12; before, the route has the kernel's own priority.
        if let Some(metric) = interface.routers.and_then(|routers| routers.metric)
            && let Err(error) = sysctl::write(&["net", "ipv6", "conf", name, "ra_defrtr_metric"], &metric.to_string())
            && !error.is_missing()
        {
            return Err(failure(doing, error.to_string(), error.errno().unwrap_or(0)));
        }
        if let Some(before) = before {
            for address in addr::dump(socket, Some(index)).map_err(|error| refusal(&doing, &error))? {
                let is_it = |net: &ipnet::IpNet| net.addr() == address.addr && net.prefix_len() == address.prefix_len;
                // What is neither of before nor of now is the container's own.
                if before.addresses.iter().any(is_it) && !interface.addresses.iter().any(is_it) {
                    labelled.add(&doing, |batch| {
                        addr::delete(batch, index, address.addr, address.prefix_len);
                    });
                }
            }
        }
        for address in &interface.addresses {
            labelled.add(&doing, |batch| {
                let address = Address::new(index, address.addr(), address.prefix_len());
                addr::replace(batch, &address);
            });
        }
        labelled.add(&doing, |batch| {
            // Loose: what comes in by one network may be answered by another that has the default route.
            let conf = [(Ipv4Conf::AcceptRedirects, 0), (Ipv4Conf::SendRedirects, 0), (Ipv4Conf::RpFilter, 2)];
            if no_addresses {
                // Of its own, as one message brings an interface up before anything else (do_setlink).
                let addr_gen_mode = Some(AddrGenMode::None);
                link::set(batch, index, &LinkChange { addr_gen_mode, ..LinkChange::default() });
            }
            let mut change = LinkChange { up: Some(true), ipv4_conf: &conf, ..LinkChange::default() };
            if before.is_some() {
                change.mtu = Some(interface.mtu.bytes());
                change.mac = interface.mac.map(|mac| mac.octets());
            }
            link::set(batch, index, &change);
        });
        Ok(())
    }
}

/// Whether `/proc/sys` is mounted read-only, as in most containers.
fn is_read_only(error: &sysctl::SysctlError) -> bool {
    error.errno() == Some(libc::EROFS)
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

/// Whether an interface in a sandbox is the one that we made, not what was there under its name.
fn is_child(found: &link::Link, child: &Child) -> bool {
    let kind = match child.kind {
        ChildKind::Macvlan { .. } => "macvlan",
        ChildKind::Ipvlan { .. } => "ipvlan",
    };
    found.kind.as_deref() == Some(kind) && child.mac.is_none_or(|mac| found.mac == Some(mac.octets()))
}

fn default_route(wanted: &DefaultRoute, index: u32) -> route::Route {
    let family = match Family::of(wanted.gateway) {
        Family::V4 => rtnl::Family::V4,
        Family::V6 => rtnl::Family::V6,
    };
    let metric = wanted.metric;
    route::Route { gateway: Some(wanted.gateway), oif: Some(index), metric, ..route::Route::default_of(family) }
}

pub(super) fn static_route(wanted: &portolan_model::StaticRoute) -> Route {
    let (kind, gateway) = match wanted.action {
        RouteAction::Via(gateway) => (RouteKind::Unicast, Some(gateway)),
        RouteAction::Blackhole => (RouteKind::Blackhole, None),
        RouteAction::Unreachable => (RouteKind::Unreachable, None),
        RouteAction::Prohibit => (RouteKind::Prohibit, None),
    };
    let net = wanted.destination;
    Route { kind, gateway, metric: wanted.metric, ..Route::new(net.network(), net.prefix_len()) }
}

fn lookup(socket: &mut Socket, name: &str) -> Result<Option<u32>, KernelError> {
    let found = link::lookup(socket, name)
        .map_err(|error| refusal(format!("find interface `{name}` in the sandbox"), &error))?;
    Ok(found.map(|found| found.index))
}

fn is_link_local(address: std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Opens a sandbox and makes sure that it is still the one we know.
pub(super) fn open_sandbox(sandbox: &Sandbox) -> Result<NetnsFd, KernelError> {
    let doing = || format!("open namespace `{}`", sandbox.path.display());
    let gone = |reason: String| KernelError {
        doing: doing(),
        reason,
        errno: 0,
        kind: Kind::NotFound,
        hint: Some("`portolan gc` takes down containers whose namespace is gone".to_owned()),
    };
    let ns = NetnsFd::open(&sandbox.path).map_err(|error| gone(error.to_string()))?;
    let id = ns.identity();
    if (id.dev, id.ino) != (sandbox.device, sandbox.inode) {
        return Err(gone("it is another namespace by now".to_owned()));
    }
    Ok(ns)
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
