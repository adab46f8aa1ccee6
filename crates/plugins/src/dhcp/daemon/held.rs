//! The leases that are held for containers: whose they are, and what becomes of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::{IpNet, Ipv4Net};
use portolan_cni::{Ip, Route, Success};
use portolan_dhcp::{Happened, Place, Routing, readdress};
use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::rtnl::link;
use portolan_model::{DhcpLease, Id};
use sha2::{Digest as _, Sha256};

/// `RT_SCOPE_LINK`
const SCOPE_LINK: u8 = 253;

/// A lease that is held, or asked for.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) container: String,
    pub(super) network: String,
    pub(super) place: Place,
    pub(super) lease: Option<DhcpLease>,
    /// How the server says it, once it has been heard.
    pub(super) routing: Option<Routing>,
    /// The one whose address the interface has.
    pub(super) placed: Option<DhcpLease>,
    /// Why there is none yet.
    pub(super) reason: Option<String>,
    /// Somebody got it as an answer, and gives its address to the interface.
    pub(super) is_given: bool,
    /// Its namespace or its interface is gone.
    pub(super) is_gone: bool,
    /// Who waits for it.
    pub(super) waiting: usize,
}

pub(super) type Table = Arc<Mutex<BTreeMap<Id, Held>>>;

pub(super) fn lock(table: &Table) -> MutexGuard<'_, BTreeMap<Id, Held>> {
    table.lock().expect("nothing panics while holding it")
}

/// By what a server knows an interface, unless the configuration says otherwise.
pub(super) fn identity(container: &str, network: &str, ifname: &str) -> String {
    format!("{container}/{network}/{ifname}")
}

/// By what an interface is known here.
pub(super) fn key(container: &str, network: &str, ifname: &str) -> Id {
    Id::from_bytes(Sha256::digest(identity(container, network, ifname)).into())
}

impl Held {
    pub(super) fn new(container: String, network: String, place: Place) -> Self {
        Self {
            container,
            network,
            place,
            lease: None,
            routing: None,
            placed: None,
            reason: None,
            is_given: false,
            is_gone: false,
            waiting: 0,
        }
    }

    /// The name that the log has for it.
    pub(super) fn name(&self) -> String {
        identity(&self.container, &self.network, self.place.ifname.as_str())
    }

    /// What the original answers with such a lease; none while there is no word of the server's.
    pub(super) fn answer(&self) -> Option<Result<Success, String>> {
        let (lease, routing) = (self.lease.as_ref()?, self.routing.as_ref()?);
        if !routing.has_mask {
            return Some(Err("DHCP option Subnet Mask not found in DHCPACK".to_owned()));
        }
        Some(Ok(answer(lease.address, routing)))
    }

    /// Takes note of what happened. An address that another comes in place of, or that is over, goes from the interface:
    /// only the first is the caller's to give.
    pub(super) fn note(&mut self, happened: Happened) {
        match happened {
            Happened::Granted(lease, routing) => {
                tracing::info!("{}: {} for {} s", self.name(), lease.address, lease.valid_for);
                self.lease = Some(lease);
                (self.routing, self.reason) = (Some(routing), None);
            }
            Happened::Ended => {
                tracing::warn!("{}: the lease has ended", self.name());
                (self.lease, self.routing) = (None, None);
            }
            Happened::Failed(reason) => {
                // It is tried again every few seconds.
                if self.reason.as_ref() != Some(&reason) {
                    tracing::warn!("{}: {reason}", self.name());
                }
                self.reason = Some(reason);
                // An interface that was given an address and is gone does not come again.
                self.is_gone = self.is_given && !has_interface(&self.place);
                return;
            }
            Happened::SandboxGone => {
                tracing::info!("{}: the namespace is gone", self.name());
                self.is_gone = true;
                return;
            }
        }
        let ways = |lease: &DhcpLease| (lease.address, lease.gateway);
        if self.is_given && self.lease.as_ref().map(ways) != self.placed.as_ref().map(ways) {
            match readdress(&self.place, self.placed.as_ref(), self.lease.as_ref()) {
                Ok(()) => self.placed = self.lease.clone(),
                Err(error) => tracing::warn!("{}: give it another address: {error}", self.name()),
            }
        }
    }
}

/// Whether the interface is there, unless that cannot be told.
fn has_interface(place: &Place) -> bool {
    let look = || {
        let ns = NetnsFd::open(&place.sandbox.path).ok()?;
        with_netns(&ns, || link::lookup(&mut Socket::open(ROUTE)?, place.ifname.as_str())).ok()?.ok()
    };
    look().is_none_or(|found| found.is_some())
}

fn answer(address: IpNet, routing: &Routing) -> Success {
    let gateway = routing.router.map(IpAddr::V4);
    let route = |net: Ipv4Net, router: Ipv4Addr| {
        let scope = router.is_unspecified().then_some(SCOPE_LINK);
        Route { scope, ..Route::new(IpNet::V4(net), Some(router.into())) }
    };
    let routes = if routing.classless.is_empty() {
        let default = routing.router.map(|router| (Ipv4Net::default(), router));
        routing.classful.iter().copied().chain(default).map(|(net, router)| route(net, router)).collect()
    } else {
        // Then nothing else counts (RFC 3442).
        routing.classless.iter().map(|(net, router)| route(*net, *router)).collect()
    };
    Success { ips: vec![Ip { interface: None, address, gateway }], routes, ..Success::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_as_the_original_takes_them() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let router = |last| Ipv4Addr::new(10, 0, 1, last);
        let mut routing = Routing {
            has_mask: true,
            router: Some(router(2)),
            classless: Vec::new(),
            classful: vec![(net("172.16.0.0/16"), router(3))],
        };
        let texts = |routing: &Routing| -> Vec<String> {
            let success = answer("10.0.1.119/24".parse().unwrap(), routing);
            assert_eq!(success.ips[0].gateway, Some(router(2).into()));
            let text = |route: &Route| format!("{} {} {:?}", route.dst, route.gw.unwrap(), route.scope);
            success.routes.iter().map(text).collect()
        };
        assert_eq!(texts(&routing), ["172.16.0.0/16 10.0.1.3 None", "0.0.0.0/0 10.0.1.2 None"]);
        routing.classless = vec![(net("10.9.0.0/16"), router(7)), (net("10.8.0.0/16"), Ipv4Addr::UNSPECIFIED)];
        assert_eq!(texts(&routing), ["10.9.0.0/16 10.0.1.7 None", "10.8.0.0/16 0.0.0.0 Some(253)"]);
    }

    #[test]
    fn each_interface_on_each_network_is_one() {
        assert_eq!(key("c", "net", "eth0"), key("c", "net", "eth0"));
        let others = [key("d", "net", "eth0"), key("c", "other", "eth0"), key("c", "net", "eth1")];
        assert!(!others.contains(&key("c", "net", "eth0")));
    }
}
