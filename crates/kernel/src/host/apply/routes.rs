//! Routes of the host to containers of networks without a bridge.

use portolan_plan::{HostRoute, Step, Way};

use super::{Context, Labelled, Mode};
use crate::netlink::Socket;
use crate::rtnl::route::{self, Route, RouteKind};

/// The priority of routes that lead nowhere: whoever has a route of his own to such a subnet goes before ("PORT").
const LAST: u32 = portolan_plan::ALLOWED;

/// Who made routes by interfaces that are not ours (`rtm_protocol`, rtnetlink(7)): a number that nobody else has ("P").
pub(in crate::host) const BY_LAN: u8 = 0x50;

/// The route; `index` is that of its interface.
pub(in crate::host) fn host_route(wanted: &HostRoute, index: Option<u32>) -> Route {
    let net = wanted.destination;
    let route = Route::new(net.network(), net.prefix_len());
    match &wanted.way {
        Way::HostEnd { from, .. } => Route { oif: index, prefsrc: Some(*from), ..route },
        // Neither end has an address there, so nothing says that the other one is on the link.
        Way::Tunnel { via, mtu, .. } => {
            let mtu = mtu.map(|mtu| mtu.bytes());
            Route { oif: index, gateway: Some(*via), onlink: true, mtu, ..route }
        }
        // Whether the other host is on the link is decided where its address is known, and not by what the interface has just now.
        Way::Lan { via, mtu, .. } => {
            let mtu = mtu.map(|mtu| mtu.bytes());
            Route { oif: index, gateway: Some(*via), onlink: true, mtu, protocol: BY_LAN, ..route }
        }
        Way::Unreachable => Route { kind: RouteKind::Unreachable, metric: Some(LAST), ..route },
    }
}

impl Context<'_> {
    /// Its index, or none for a route that needs no interface; nothing where that is not there.
    fn place_of(&mut self, socket: &mut Socket, route: &HostRoute) -> Option<Option<u32>> {
        match route.way.device() {
            Some(device) => self.index(socket, device).map(Some),
            None => Some(None),
        }
    }

    pub(super) fn make_host_route(
        &mut self,
        socket: &mut Socket,
        step: &Step,
        wanted: &HostRoute,
        last: &mut Labelled,
    ) {
        let Some(index) = self.place_of(socket, wanted) else { return };
        let route = host_route(wanted, index);
        // One that is there leads to somebody else's machine of this address.
        let is_new = self.mode == Mode::Strict && matches!(step, Step::Create(_));
        last.add(&step.to_string(), |batch| {
            if is_new {
                route::add(batch, &route);
            } else {
                route::replace(batch, &route);
            }
        });
    }

    pub(super) fn remove_host_route(
        &mut self,
        socket: &mut Socket,
        step: &Step,
        unwanted: &HostRoute,
        last: &mut Labelled,
    ) {
        let Some(index) = self.place_of(socket, unwanted) else { return };
        last.add(&step.to_string(), |batch| {
            // Where to and by which interface says which; one that somebody else made has another source.
            route::delete(batch, &Route { prefsrc: None, mtu: None, ..host_route(unwanted, index) });
        });
    }
}
