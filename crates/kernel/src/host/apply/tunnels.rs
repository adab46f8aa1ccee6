//! Ends of tunnels: VXLAN interfaces.

use std::collections::BTreeSet;

use portolan_model::IfName;
use portolan_plan::{Forwarding, Vxlan};

use super::links::Router;
use super::{Context, Labelled, Mode};
use crate::netlink::{Batch, Socket};
use crate::rtnl::link::{self, LinkChange, VxlanSpec};
use crate::rtnl::neigh::TunnelEntry;

impl Context<'_> {
    /// Has an end of tunnels send frames for another where they should go, or not any more.
    pub(super) fn forward(
        &mut self,
        socket: &mut Socket,
        doing: &str,
        entry: &Forwarding,
        write: fn(&mut Batch, u32, &TunnelEntry) -> usize,
        last: &mut Labelled,
    ) {
        let Some(by) = self.by(socket, entry.by.as_ref()) else { return };
        let Some(index) = self.index(socket, &entry.device) else { return };
        let entry = TunnelEntry { mac: entry.mac.octets(), to: entry.to, by };
        last.add(doing, |batch| {
            write(batch, index, &entry);
        });
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
                    group: self.groups.bridges,
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
            master: None,
            vlan: None,
        };
        let mut labelled = Labelled::default();
        self.configure_router(socket, &router, &mut labelled);
        if self.mode == Mode::Lenient || self.failures.is_empty() {
            self.send(socket, &labelled);
        }
    }
}
