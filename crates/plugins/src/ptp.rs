//! The plugin `ptp`: a veth pair between the container and the host, each of which routes by the other.

use std::path::Path;

use ipnet::IpNet;
use portolan_cni::{Call, Code, Config, Error, Success, Verb};
use portolan_kernel::carrier;
use portolan_kernel::netlink::{Batch, Socket};
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, Link};
use portolan_kernel::rtnl::route::{self, Route};
use serde::Deserialize;

use crate::addresses::Ipam;
use crate::conf::{self, interface, invalid, mac, or_default};
use crate::configure::{Manner, announce, configure};
use crate::host_end::{self, Pair};
use crate::inside::{self, Sandbox, refused};
use crate::{Answer, check, forward, nat};

/// `RT_SCOPE_LINK` and `RT_SCOPE_HOST`, rtnetlink(7).
const LINK: u8 = 253;
const HOST: u8 = 254;

/// The configuration, as the original has it.
#[derive(Debug, Clone, Deserialize)]
struct Options {
    #[serde(default, rename = "ipmasq", deserialize_with = "or_default")]
    masquerade: bool,
    #[serde(default, deserialize_with = "or_default")]
    mtu: u32,
}

struct Plugin<'a> {
    call: &'a Call,
    config: &'a Config,
    ipam: Option<Ipam<'a>>,
    text: &'a [u8],
}

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let plugin = Plugin { call, config, ipam: Ipam::of(call, config, text), text };
    match call.verb {
        Verb::Add => plugin.add().map(|success| Some((success, config.version()))),
        Verb::Del => plugin.del().map(|()| None),
        Verb::Check => plugin.check().map(|()| None),
        Verb::Gc => plugin.gc().map(|()| None),
        Verb::Status => plugin.status().map(|()| None),
        Verb::Version => Ok(None),
    }
}

/// All of an address.
fn whole(address: std::net::IpAddr) -> IpNet {
    IpNet::from(address)
}

/// The routes inside for an address: the gateway is on the link, and the rest of the subnet behind it. A veth cannot be
/// point-to-point, but so everything goes by the gateway.
fn routes_inside(index: u32, address: &IpNet, gateway: std::net::IpAddr) -> [Route; 2] {
    let prefsrc = Some(address.addr());
    let base = |dst: IpNet| Route {
        oif: Some(index),
        protocol: route::PROTOCOL_BOOT,
        prefsrc,
        ..Route::new(dst.network(), dst.prefix_len())
    };
    [
        Route { scope: Some(LINK), ..base(whole(gateway)) },
        Route { scope: Some(0), gateway: Some(gateway), ..base(*address) },
    ]
}

impl Plugin<'_> {
    fn add(&self) -> Result<Success, Error> {
        let options: Options = portolan_cni::read(self.text)?;
        let ipam = Ipam::needed("ptp", self.call, self.config, self.text)?;
        let pair = Pair {
            mac: mac(self.call, self.config, "")?,
            mtu: Some(options.mtu).filter(|mtu| *mtu != 0),
            ..Pair::default()
        };
        let (mut host, mut sandbox) = (inside::host()?, Sandbox::open(self.call)?);
        sandbox.is_free(self.call)?;
        let given = ipam.add()?;
        let built = self.build(&mut host, &mut sandbox, &options, &pair, given);
        built.inspect_err(|_| {
            if let Err(error) = host_end::remove(&mut host, self.call, &self.config.name) {
                tracing::warn!("the veth stays: {error}");
            }
            if options.masquerade
                && let Err(error) = nat::unmasquerade(self.call, &self.config.name)
            {
                tracing::warn!("masquerading stays: {error}");
            }
            ipam.give_back();
        })
    }

    fn build(
        &self,
        host: &mut Socket,
        sandbox: &mut Sandbox,
        options: &Options,
        pair: &Pair,
        mut success: Success,
    ) -> Result<Success, Error> {
        let call = self.call;
        if let Some(ip) = success.ips.iter().find(|ip| ip.gateway.is_none()) {
            return Err(invalid(format!("IPAM plugin returned no gateway for {}", ip.address))
                .details("the host has the gateway's address, at its end of the veth"));
        }
        let addresses: Vec<IpNet> = success.ips.iter().map(|ip| ip.address).collect();
        forward::enable(&addresses)?;
        let made = host_end::create(host, sandbox, call, &self.config.name, pair)?;
        let pairs: Vec<_> = success.ips.iter().filter_map(|ip| Some((ip.address, ip.gateway?))).collect();
        let more: Vec<Route> =
            pairs.iter().flat_map(|(address, gateway)| routes_inside(made.inside.index, address, *gateway)).collect();
        self.route_in(host, &made.host, &pairs)?;
        let manner = Manner { no_subnets: true, ..Manner::default() };
        configure(sandbox, &call.ifname, made.inside.index, &success, manner, &more)?;
        if options.masquerade {
            nat::masquerade(call, &self.config.name, &addresses)?;
        }
        // Packets pass at once, not when the kernel comes to it.
        let _ = carrier::carrier(&made.host.name);
        announce(sandbox, made.inside.index, made.inside.mac, &addresses);
        for ip in &mut success.ips {
            ip.interface = Some(1);
        }
        success.interfaces = vec![
            interface(&made.host.name, made.host.mac, made.host.mtu, Path::new("")),
            interface(&call.ifname, made.inside.mac, made.inside.mtu, &call.netns),
        ];
        success.dns = conf::dns(self.config, &success);
        Ok(success)
    }

    /// Gives the host the gateways' addresses, and routes to the container's.
    fn route_in(&self, host: &mut Socket, host_end: &Link, pairs: &[(IpNet, std::net::IpAddr)]) -> Result<(), Error> {
        let index = host_end.index;
        let mut batch = Batch::new();
        if let Some(mac) = host_end.mac.filter(|_| pairs.iter().any(|(address, _)| address.addr().is_ipv6())) {
            // Without one the kernel asks for no neighbour, and its own is a second away (RFC 4862 §5.4).
            addr::replace(&mut batch, &Address::new(index, addr::link_local(mac).into(), 64));
        }
        for (address, gateway) in pairs {
            addr::replace(&mut batch, &Address::new(index, *gateway, whole(*gateway).prefix_len()));
            let to = whole(address.addr());
            let route = Route {
                oif: Some(index),
                protocol: route::PROTOCOL_BOOT,
                scope: address.addr().is_ipv4().then_some(HOST),
                ..Route::new(to.addr(), to.prefix_len())
            };
            // One that is there leads to another container with the same address.
            route::add(&mut batch, &route);
        }
        host.transact(&batch).map(drop).map_err(|error| refused("failed to add route on host", error))
    }

    fn del(&self) -> Result<(), Error> {
        host_end::leave(self.call, &self.config.name, self.ipam)
    }

    fn check(&self) -> Result<(), Error> {
        let options: Options = portolan_cni::read(self.text)?;
        let success = check::previous(self.config)?;
        if let Some(ipam) = self.ipam {
            ipam.check()?;
        }
        let (mut host, mut sandbox) = (inside::host()?, Sandbox::open(self.call)?);
        let inside = check::container(&mut sandbox, self.call, &success, Some("veth"))?;
        check::up(&inside)?;
        check::addresses_and_routes(&mut sandbox, &success, &inside)?;
        let other = inside.link.map(|index| link::lookup(&mut host, index)).transpose();
        let other = other.map_err(|error| refused("find the host end of the veth", error))?.flatten();
        let other = other.filter(|other| other.kind.as_deref() == Some("veth") && other.link == Some(inside.index));
        let other = other.ok_or_else(|| Error::differs("the host end of the veth was not found"))?;
        check::up(&other)?;
        let routes = route::dump(&mut host).map_err(|error| refused("list routes", error))?;
        let addresses = check::addresses(&success, &self.call.ifname);
        for address in &addresses {
            let leads = |route: &Route| route.dst == address.addr() && route.oif == Some(other.index);
            if !routes.iter().any(leads) {
                return Err(Error::differs(format!("the host has no route to {} by {}", address.addr(), other.name)));
            }
        }
        if options.masquerade {
            nat::check_masquerade(self.call, &self.config.name, &addresses)?;
        }
        Ok(())
    }

    fn gc(&self) -> Result<(), Error> {
        let valid = conf::valid(self.config)?;
        let network = self.config.name.as_str();
        let removed = inside::host().and_then(|mut host| host_end::collect(&mut host, network, &valid));
        let freed = nat::collect(network, &|container, ifname| valid.contains(&(container, ifname)));
        let given_back = self.ipam.map_or(Ok(()), |ipam| ipam.gc());
        removed.and(freed).and(given_back)
    }

    fn status(&self) -> Result<(), Error> {
        let not_available = |error: Error| Error { code: Code::NotAvailable, ..error };
        portolan_cni::read::<Options>(self.text).map_err(not_available)?;
        Ipam::needed("ptp", self.call, self.config, self.text).map_err(not_available)?.status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_by_the_gateway() {
        let address = "10.1.0.7/24".parse().unwrap();
        let [on_link, behind] = routes_inside(3, &address, "10.1.0.1".parse().unwrap());
        assert_eq!((on_link.dst.to_string(), on_link.prefix_len, on_link.gateway), ("10.1.0.1".to_owned(), 32, None));
        assert_eq!((behind.dst.to_string(), behind.prefix_len), ("10.1.0.0".to_owned(), 24));
        assert_eq!((behind.gateway, behind.prefsrc), (Some("10.1.0.1".parse().unwrap()), Some(address.addr())));
    }
}
