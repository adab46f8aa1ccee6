//! Ends of tunnels: VXLAN interfaces.

use std::collections::BTreeSet;

use portolan_model::IfName;
use portolan_plan::{Forwarding, TunnelPort, Vxlan};

use super::links::Router;
use super::{Context, Labelled, Mode};
use crate::netlink::Socket;
use crate::rtnl::link::{self, BrPort, LinkChange, VxlanSpec};
use crate::rtnl::neigh::{self, TunnelEntry};

impl Context<'_> {
    /// Has an end of tunnels send frames for another where they should go, or not any more.
    pub(super) fn forward(
        &mut self,
        socket: &mut Socket,
        doing: &str,
        entry: &Forwarding,
        is_wanted: bool,
        last: &mut Labelled,
    ) {
        let Some(by) = self.by(socket, entry.by.as_ref()) else { return };
        let Some(index) = self.index(socket, &entry.device) else { return };
        let (bridged, mac) = (entry.bridged, entry.mac.octets());
        let entry = TunnelEntry { mac, to: entry.to, by };
        last.add(doing, |batch| {
            let write = if is_wanted { neigh::tunnel_replace } else { neigh::tunnel_delete };
            write(batch, index, &entry);
        });
        if bridged {
            last.add(doing, |batch| {
                let write = if is_wanted { neigh::fdb_replace } else { neigh::fdb_delete };
                write(batch, index, mac);
            });
        }
    }

    /// The index of an interface that packets are to come and go by, if there is to be one; nothing where that is not there.
    fn by(&mut self, socket: &mut Socket, name: Option<&IfName>) -> Option<Option<u32>> {
        match name {
            Some(name) => self.index(socket, name).map(Some),
            None => Some(None),
        }
    }

    pub(super) fn create_vxlan(&mut self, socket: &mut Socket, vxlan: &Vxlan) {
        let Some(by) = self.by(socket, vxlan.by.as_ref()) else { return };
        let mut labelled = Labelled::default();
        labelled.add(&format!("create vxlan `{}`", vxlan.name), |batch| {
            link::create_vxlan(
                batch,
                &VxlanSpec {
                    name: vxlan.name.as_str(),
                    vni: vxlan.vni.number(),
                    local: vxlan.local,
                    by,
                    unchecked: vxlan.is_unchecked(),
                    port: vxlan.port,
                    mac: vxlan.mac.octets(),
                    mtu: vxlan.mtu.bytes(),
                    group: self.group_of_end(vxlan),
                },
            );
            link::set(batch, vxlan.name.as_str(), &LinkChange { alias: Some(&vxlan.alias), ..LinkChange::default() });
        });
        self.send(socket, &labelled);
        if self.mode == Mode::Lenient || self.failures.is_empty() {
            self.configure_vxlan(socket, vxlan, false);
        }
    }

    pub(super) fn change_vxlan(&mut self, socket: &mut Socket, from: &Vxlan, to: &Vxlan) {
        if from.is_same_end(to) {
            return self.configure_vxlan(socket, to, true);
        }
        let mut labelled = Labelled::default();
        labelled.add(&format!("delete vxlan `{}`", from.name), |batch| {
            link::delete(batch, from.name.as_str());
        });
        self.send(socket, &labelled);
        self.indexes.remove(&from.name);
        self.create_vxlan(socket, to);
    }

    /// The group that rules know it by: the host routes by it, or it is a port, which the guard looks at.
    fn group_of_end(&self, vxlan: &Vxlan) -> u32 {
        if vxlan.on.is_some() { self.groups.ports } else { self.groups.bridges }
    }

    fn configure_vxlan(&mut self, socket: &mut Socket, vxlan: &Vxlan, is_there: bool) {
        let router = Router {
            doing: format!("configure vxlan `{}`", vxlan.name),
            name: &vxlan.name,
            mac: vxlan.mac,
            sets_mac: false,
            mtu: vxlan.mtu,
            alias: &vxlan.alias,
            ipv6: vxlan.ipv6,
            route_localnet: false,
            addresses: BTreeSet::new(),
            is_there,
            group: self.group_of_end(vxlan),
            master: None,
            vlan: None,
        };
        let mut labelled = Labelled::default();
        self.configure_router(socket, &router, &mut labelled);
        if let Some(on) = &vxlan.on {
            let Some(bridge) = self.index(socket, &on.bridge) else { return };
            let Some(index) = self.index(socket, &vxlan.name) else { return };
            labelled.add(&router.doing, |batch| {
                link::set(batch, index, &LinkChange { master: Some(bridge), ..LinkChange::default() });
                link::set(batch, index, &LinkChange { brport: Some(port(on)), ..LinkChange::default() });
            });
        }
        if self.mode == Mode::Lenient || self.failures.is_empty() {
            self.send(socket, &labelled);
        }
    }
}

/// What it is as a port: who is behind it is known, so nothing is learnt or flooded but what is for all; and the bridge answers
/// questions about those behind it.
fn port(on: &TunnelPort) -> BrPort {
    BrPort {
        isolated: Some(on.isolated),
        neigh_suppress: Some(true),
        learning: Some(false),
        unicast_flood: Some(false),
        mcast_flood: Some(true),
        bcast_flood: Some(true),
        ..BrPort::default()
    }
}
