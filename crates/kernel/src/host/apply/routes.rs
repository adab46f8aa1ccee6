//! Routes of the host to containers of networks without a bridge.

use portolan_plan::{HostRoute, Step};

use super::{Context, Labelled, Mode};
use crate::netlink::Socket;
use crate::rtnl::route::{self, Route, RouteKind};

/// The priority of routes that lead nowhere: whoever has a route of his own to such a subnet goes before ("PORT").
const LAST: u32 = portolan_plan::ALLOWED;

/// The route; `index` is that of its host end.
pub(in crate::host) fn host_route(wanted: &HostRoute, index: Option<u32>) -> Route {
    let net = wanted.destination;
    let route = Route::new(net.network(), net.prefix_len());
    match &wanted.by {
        Some((_, gateway)) => Route { oif: index, prefsrc: Some(*gateway), ..route },
        None => Route { kind: RouteKind::Unreachable, metric: Some(LAST), ..route },
    }
}

impl Context<'_> {
    /// Its index, or none for a route that needs no interface; nothing where that is not there.
    fn place_of(&mut self, socket: &mut Socket, route: &HostRoute) -> Option<Option<u32>> {
        match &route.by {
            Some((host_end, _)) => self.index(socket, host_end).map(Some),
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
            route::delete(batch, &Route { prefsrc: None, ..host_route(unwanted, index) });
        });
    }
}
