//! What is inside sandboxes: interfaces with their addresses, and routes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use portolan_engine::{KernelError, Kind};
use portolan_model::{Family, IfName, RouteAction, Sandbox};
use portolan_plan::{Child, ChildKind, DefaultRoute, Interface, Object, SandboxSetting, Step};

use super::super::{failure, refusal, unset};
use super::{Context, Labelled, Mode, is_read_only, open_sandbox};
use crate::netlink::{self, Socket};
use crate::netns;
use crate::rtnl;
use crate::rtnl::addr::{self, Address};
use crate::rtnl::link::{self, AddrGenMode, Ipv4Conf, LinkChange};
use crate::rtnl::route::{self, Route, RouteKind};
use crate::{announce, sysctl};

/// Whether an interface makes itself addresses of what routers say (ip-sysctl.rst).
const AUTOCONF: &str = "autoconf";

impl Context<'_> {
    pub(super) fn sandboxes(&mut self, steps: &[Step]) {
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
            // Nothing is given back, but with the interface.
            Step::Delete(Object::SandboxSetting(setting)) => setting.before.is_none(),
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
            Object::SandboxSetting(setting) => &setting.sandbox,
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
                Step::Delete(Object::SandboxSetting(setting)) => self.reset(setting),
                _ => {}
            }
        }
        self.send(&mut socket, &labelled);
        // After the interfaces are there that some of them are of.
        for step in steps {
            if let Step::Create(Object::SandboxSetting(wanted)) | Step::Change(_, Object::SandboxSetting(wanted)) = step
                && (self.mode == Mode::Lenient || self.failures.is_empty())
            {
                self.set(wanted);
            }
        }
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

    /// Sets a sysctl of the sandbox that we are in.
    fn set(&mut self, wanted: &SandboxSetting) {
        let parts: Vec<&str> = wanted.key.path().split('/').collect();
        let Err(error) = sysctl::write(&parts, &wanted.value) else { return };
        let refused = unset(format!("set sysctl `{}` to `{}`", wanted.key, wanted.value), &error);
        self.failures.push(match refused.errno {
            _ if error.is_missing() => KernelError {
                reason: "there is no such setting".to_owned(),
                hint: Some("`sysctl -a` lists those of a namespace".to_owned()),
                ..refused
            },
            // A value that the setting cannot have is the caller's mistake.
            libc::EINVAL | libc::ERANGE => KernelError {
                reason: "it does not take this value".to_owned(),
                kind: Kind::Invalid,
                hint: Some("docs.kernel.org has the settings of the network: networking/ip-sysctl".to_owned()),
                ..refused
            },
            _ => refused,
        });
    }

    /// Gives a sysctl back what it was, unless somebody has changed it since.
    fn reset(&mut self, setting: &SandboxSetting) {
        let parts: Vec<&str> = setting.key.path().split('/').collect();
        let Some(before) = &setting.before else { return };
        if sysctl::read(&parts).is_ok_and(|now| sysctl::is_same(&now, &setting.value))
            && let Err(error) = sysctl::write(&parts, before)
        {
            self.failures.push(unset(format!("set sysctl `{}` to `{before}`", setting.key), &error));
        }
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
            None => [
                ("disable_ipv6", "0"),
                ("accept_ra", "0"),
                ("accept_redirects", "0"),
                ("accept_dad", "0"),
                // For those in the container who listen to routers again; until then it says nothing, and need not be.
                (AUTOCONF, "0"),
            ]
            .into(),
            Some(routers) => [
                // Also in a container that forwards (ip-sysctl.rst); addresses are the DHCP server's business.
                ("accept_ra", "2"),
                (AUTOCONF, "0"),
                ("accept_ra_defrtr", if routers.default_route { "1" } else { "0" }),
                ("accept_redirects", "0"),
                ("accept_dad", "0"),
                ("disable_ipv6", "0"),
            ]
            .into(),
        };
        let written = sysctl::write_in(&["net", "ipv6", "conf", name], &values);
        let no_addresses = !interface.ipv6 && written.as_ref().is_err_and(is_read_only);
        if let Err(error) = written {
            let is_needed = match interface.routers {
                _ if !interface.ipv6 => false,
                None => !error.setting().is_some_and(|setting| setting.ends_with(AUTOCONF)),
                Some(_) => true,
            };
            if is_needed || !(error.is_missing() || is_read_only(&error)) {
                return Err(unset(doing, &error));
            }
        }
        // Linux 5.12; before, the route has the kernel's own priority.
        if let Some(metric) = interface.routers.and_then(|routers| routers.metric)
            && let Err(error) = sysctl::write(&["net", "ipv6", "conf", name, "ra_defrtr_metric"], &metric.to_string())
            && !error.is_missing()
        {
            return Err(unset(doing, &error));
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
        for net in &interface.addresses {
            labelled.add(&doing, |batch| {
                let address = Address::new(index, net.addr(), net.prefix_len());
                let is_routed = interface.routed.contains_key(&net.trunc());
                addr::replace(batch, &if is_routed { address.without_prefix_route() } else { address });
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
            let wanted = interface.attributes;
            let mut change = LinkChange {
                up: Some(true),
                ipv4_conf: &conf,
                promisc: wanted.promiscuous,
                allmulti: wanted.all_multicast,
                tx_queue_len: wanted.tx_queue_len,
                ..LinkChange::default()
            };
            if let Some(before) = before {
                change.mtu = Some(interface.mtu.bytes());
                // To set it, even to what it is, makes the kernel forget whom the container speaks to (neigh_changeaddr).
                change.mac = interface.mac.filter(|_| before.mac != interface.mac).map(|mac| mac.octets());
            }
            link::set(batch, index, &change);
        });
        // Only now: routes by an interface that is down are refused.
        for route in interface.routed.iter().flat_map(|(subnet, gateway)| routed(index, *subnet, *gateway)) {
            labelled.add(&doing, |batch| {
                route::replace(batch, &route);
            });
        }
        Ok(())
    }
}

/// The routes of an interface to a subnet that is behind a gateway: the gateway is on the link, the rest is not.
pub(in crate::host) fn routed(index: u32, subnet: IpNet, gateway: IpAddr) -> [Route; 2] {
    let on_link = IpNet::from(gateway);
    [
        Route { oif: Some(index), ..Route::new(on_link.addr(), on_link.prefix_len()) },
        Route { oif: Some(index), gateway: Some(gateway), ..Route::new(subnet.network(), subnet.prefix_len()) },
    ]
}

fn default_route(wanted: &DefaultRoute, index: u32) -> route::Route {
    let family = match Family::of(wanted.gateway) {
        Family::V4 => rtnl::Family::V4,
        Family::V6 => rtnl::Family::V6,
    };
    let metric = wanted.metric;
    route::Route { gateway: Some(wanted.gateway), oif: Some(index), metric, ..route::Route::default_of(family) }
}

pub(in crate::host) fn static_route(wanted: &portolan_model::StaticRoute) -> Route {
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

/// Whether an interface in a sandbox is the one that we made, not what was there under its name.
pub(super) fn is_child(found: &link::Link, child: &Child) -> bool {
    let kind = match child.kind {
        ChildKind::Macvlan { .. } => "macvlan",
        ChildKind::Ipvlan { .. } => "ipvlan",
    };
    found.kind.as_deref() == Some(kind) && child.mac.is_none_or(|mac| found.mac == Some(mac.octets()))
}
