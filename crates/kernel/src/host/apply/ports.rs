//! Host ends of veth pairs: ports of bridges, and interfaces that the host routes by.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use portolan_model::IfName;
use portolan_plan::{BridgePort, HostEnd, Object, Port, Routed, Step};

use super::links::Router;
use super::{Context, Labelled, Mode};
use crate::netlink::Socket;
use crate::rtnl::link::{self, BrPort, Ipv4Conf, LinkChange, VethPeer, VethSpec};
use crate::rtnl::neigh;
use crate::sysctl;

impl Context<'_> {
    /// Whether the host end of a port is ours. A name that a person chose may be somebody else's by now, or have been all
    /// along.
    pub(super) fn is_our_port(&mut self, socket: &mut Socket, port: &Port) -> bool {
        portolan_plan::is_host_end_name(&port.host_end)
            || self.is_ours(socket, &port.host_end, self.group_of(port), &port.alias)
    }

    pub(super) fn is_port_going(&self, host_end: &IfName) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Delete(Object::Port(port)) if port.host_end == *host_end))
    }

    /// The group that our rules know a port's host end by, if they do.
    fn group_of(&self, port: &Port) -> Option<u32> {
        match &port.place {
            HostEnd::Bridge(port) => port.ruled.then_some(self.groups.ports),
            HostEnd::Routed(_) => Some(self.groups.bridges),
        }
    }

    /// Makes the pair, its far end in the sandbox, down; then what restricts it, then up. The FDB entry and the
    /// neighbours go into `last`, which is sent when all ports are there.
    pub(super) fn create_port(&mut self, socket: &mut Socket, port: &Port, last: &mut Labelled) {
        let doing = format!("create veth `{}`", port.host_end);
        let (master, mac) = match &port.place {
            HostEnd::Bridge(port) => match self.index(socket, &port.bridge) {
                Some(bridge) => (Some(bridge), None),
                None => return,
            },
            HostEnd::Routed(routed) => (None, Some(routed.mac.octets())),
        };
        let Some(ns) = self.inside_of(&port.sandbox) else { return };
        let mut labelled = Labelled::to_make(&port.sandbox_end);
        labelled.add(&doing, |batch| {
            link::create_veth(
                batch,
                &VethSpec {
                    name: port.host_end.as_str(),
                    mac,
                    mtu: Some(port.mtu.bytes()),
                    group: self.group_of(port),
                    master,
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
        let bridge_port = match &port.place {
            HostEnd::Bridge(bridge_port) => bridge_port,
            HostEnd::Routed(routed) => return self.configure_routed(socket, port, routed, None, last),
        };
        // A bridge port hands every frame to the bridge and needs no IPv6 of its own: with it, each would add routes
        // that the kernel walks through whenever an interface comes or goes.
        if let Err(error) = sysctl::write_in(&["net", "ipv6", "conf", port.host_end.as_str()], &[("disable_ipv6", "1")])
            && !error.is_missing()
        {
            tracing::info!(%error, host_end = %port.host_end, "IPv6 stays on at the bridge port");
        }
        if let Some(index) = self.index(socket, &port.host_end) {
            last.add(&doing, |batch| {
                link::set(batch, index, &port_change(port, bridge_port));
                // The entry is made for the VLANs that the port is in by then.
                if let Some(vlan) = bridge_port.vlan {
                    link::set_bridge_vlan(batch, index, vlan, false);
                }
                neigh::fdb_replace(batch, index, port.mac.octets());
            });
        }
    }

    pub(super) fn change_port(&mut self, socket: &mut Socket, from: &Port, to: &Port, last: &mut Labelled) {
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
        let bridge_port = match &to.place {
            HostEnd::Bridge(bridge_port) => bridge_port,
            HostEnd::Routed(routed) => return self.configure_routed(socket, to, routed, Some(&from.place), last),
        };
        let doing = format!("configure veth `{}`", to.host_end);
        let Some(index) = self.index(socket, &to.host_end) else { return };
        if from.bridge() != to.bridge() {
            // Its bridge went, or somebody took it: it becomes a port first, then the port it should be.
            let Some(bridge) = self.index(socket, &bridge_port.bridge) else { return };
            last.add(&doing, |batch| {
                link::set(batch, index, &LinkChange { master: Some(bridge), ..LinkChange::default() });
            });
        }
        let group = Some(self.group_of(to).unwrap_or_default());
        last.add(&doing, |batch| {
            link::set(batch, index, &LinkChange { mtu: Some(to.mtu.bytes()), group, ..port_change(to, bridge_port) });
            neigh::fdb_replace(batch, index, to.mac.octets());
        });
    }

    /// Gives the host end of a pair the MAC that the host routes by. The kernel forgets its neighbours then (neigh_changeaddr).
    fn readdress(&mut self, socket: &mut Socket, doing: &str, port: &Port, routed: &Routed, labelled: &mut Labelled) {
        let Some(index) = self.index(socket, &port.host_end) else { return };
        labelled.add(doing, |batch| {
            link::set(batch, index, &LinkChange { mac: Some(routed.mac.octets()), ..LinkChange::default() });
        });
        self.readdressed.insert(port.host_end.clone());
    }

    /// Makes ready what routes of `steps` lead by before it leaves a bridge that is going. The host asks nobody who has an address
    /// there: the answer to a port is the bridge's, and the kernel would ask again after a second. And what comes in by the bridge,
    /// requests for the gateway's MAC among it, is not refused for being routed back another way.
    pub(super) fn make_ready_to_leave(&mut self, socket: &mut Socket, steps: &[Step]) {
        let led_by: BTreeSet<&IfName> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Create(Object::HostRoute(route)) | Step::Change(_, Object::HostRoute(route)) => {
                    route.way.device()
                }
                _ => None,
            })
            .collect();
        let mut labelled = Labelled::default();
        for step in self.steps {
            if let Step::Change(Object::Port(from), Object::Port(to)) = step
                && let (HostEnd::Bridge(on), HostEnd::Routed(routed)) = (&from.place, &to.place)
                && led_by.contains(&to.host_end)
                && self.is_bridge_going(Some(&on.bridge))
                && let Some(bridge) = self.index(socket, &on.bridge)
            {
                let doing = step.to_string();
                labelled.add(&doing, |batch| {
                    let loose = [(Ipv4Conf::RpFilter, 2)];
                    link::set(batch, bridge, &LinkChange { ipv4_conf: &loose, ..LinkChange::default() });
                });
                self.readdress(socket, &doing, to, routed, &mut labelled);
                // What else there is to it is set, and its failures are told, as it leaves.
                if routed.ipv6 {
                    let _ = sysctl::write_in(&["net", "ipv6", "conf", to.host_end.as_str()], &[("disable_ipv6", "0")]);
                }
            }
        }
        self.send(socket, &labelled);
    }

    /// Brings the host end of a pair that is on no bridge to what it should be, whatever it is.
    fn configure_routed(
        &mut self,
        socket: &mut Socket,
        port: &Port,
        routed: &Routed,
        existing: Option<&HostEnd>,
        last: &mut Labelled,
    ) {
        let is_as_made = match existing {
            None => true,
            Some(HostEnd::Routed(is)) => is.mac == routed.mac,
            Some(HostEnd::Bridge(_)) => false,
        };
        let doing = format!("configure veth `{}`", port.host_end);
        if !is_as_made && !self.readdressed.contains(&port.host_end) {
            // Before all else: with it go the neighbours, which are in `last`.
            let mut first = Labelled::default();
            self.readdress(socket, &doing, port, routed, &mut first);
            self.send(socket, &first);
        }
        let router = Router {
            doing,
            name: &port.host_end,
            mac: routed.mac,
            sets_mac: false,
            mtu: port.mtu,
            alias: &port.alias,
            ipv6: routed.ipv6,
            route_localnet: routed.route_localnet,
            addresses: routed.gateways.iter().map(|gateway| (*gateway).into()).collect(),
            is_there: existing.is_some(),
            group: self.groups.bridges,
            // Whoever took it for a bridge of his gives it back.
            master: existing.map(|_| 0),
            vlan: None,
        };
        self.configure_router(socket, &router, last);
    }
}

/// What makes a bridge port ours: alias, group, isolation, and up.
fn port_change<'a>(port: &'a Port, on_bridge: &BridgePort) -> LinkChange<'a> {
    LinkChange {
        up: Some(true),
        alias: Some(&port.alias),
        // Frames that no bridge forwards (01:80:c2:00:00:0x) come in by the port itself, past what guards the bridge. No
        // route leads back that way.
        ipv4_conf: &[(Ipv4Conf::RpFilter, 1)],
        brport: Some(BrPort {
            isolated: Some(on_bridge.isolated),
            // The bridge knows its endpoints: it answers for them, and floods nothing that it knows.
            neigh_suppress: Some(!on_bridge.asks),
            learning: Some(!on_bridge.locked),
            locked: Some(on_bridge.locked),
            unicast_flood: Some(!on_bridge.locked),
            // With bridge netfilter on, the kernel bridges what was translated to the port's own container back to it.
            hairpin: Some(true),
            ..BrPort::default()
        }),
        ..LinkChange::default()
    }
}
