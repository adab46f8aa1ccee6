//! Making of an interface inside what the IPAM plugin says.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use portolan_cni::{Call, Error, Success};
use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, Ipv4Conf, Link, LinkChange};
use portolan_kernel::rtnl::route::{self, Route};
use portolan_kernel::rtnl::{Family, Mac};
use portolan_kernel::{announce, sysctl};

use crate::inside::{Sandbox, refused};

/// How long duplicate address detection may take (the originals wait ten seconds).
const DETECTION: Duration = Duration::from_secs(10);

/// How an interface is to behave.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// IPv6 addresses are tried first (RFC 4862 §5.4).
    pub(crate) detect_duplicates: bool,
    /// The kernel announces addresses whenever the interface comes up.
    pub(crate) notify: bool,
    /// Its subnets are not on the link: no route to them comes with the addresses.
    pub(crate) no_subnets: bool,
}

/// The routes of a result: those without a gateway lead to the first of their family, if there is one.
pub(crate) fn routes(success: &Success, index: u32) -> Vec<Route> {
    let first = |family| {
        let gateways = success.ips.iter().filter_map(|ip| ip.gateway);
        gateways.into_iter().find(|gateway| Family::of(*gateway) == family)
    };
    let wanted = success.routes.iter().map(|wanted| {
        let net = wanted.dst;
        Route {
            gateway: wanted.gw.or_else(|| first(Family::of(net.addr()))),
            oif: Some(index),
            metric: wanted.priority.filter(|priority| *priority != 0),
            table: wanted.table.unwrap_or(route::TABLE_MAIN),
            // What the originals write: they leave both to iproute2's defaults.
            protocol: route::PROTOCOL_BOOT,
            scope: Some(wanted.scope.unwrap_or(0)),
            mtu: wanted.mtu.filter(|mtu| *mtu != 0),
            advertised_mss: wanted.advertised_mss.filter(|mss| *mss != 0),
            ..Route::new(net.network(), net.prefix_len())
        }
    });
    wanted.collect()
}

/// Gives an interface its addresses, brings it up and adds its routes, and those of `more`, which come first.
pub(crate) fn configure(
    sandbox: &mut Sandbox,
    ifname: &str,
    index: u32,
    success: &Success,
    manner: Manner,
    more: &[Route],
) -> Result<(), Error> {
    let has_v6 = success.ips.iter().any(|ip| ip.address.addr().is_ipv6());
    sandbox.enter(|| settings(ifname, has_v6, manner))??;
    let mut batch = Batch::new();
    let mut doing = Vec::new();
    for ip in &success.ips {
        let mut address = Address::new(index, ip.address.addr(), ip.address.prefix_len());
        if manner.detect_duplicates {
            address.flags &= !addr::NODAD;
        }
        if manner.no_subnets {
            address = address.without_prefix_route();
        }
        addr::add(&mut batch, &address);
        doing.push(format!("failed to add IP addr {} to {ifname:?}", ip.address));
    }
    let conf = [(Ipv4Conf::ArpNotify, 1)];
    let ipv4_conf = if manner.notify { &conf[..] } else { &[] };
    link::set(&mut batch, index, &LinkChange { up: Some(true), ipv4_conf, ..LinkChange::default() });
    doing.push(format!("failed to set {ifname:?} UP"));
    let mut all = more.to_vec();
    all.extend(routes(success, index));
    let (later, now): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|route| manner.detect_duplicates && route.family() == Family::V6);
    let add = |batch: &mut Batch, doing: &mut Vec<String>, route: &Route| {
        route::add_beside(batch, route);
        let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        doing.push(format!("failed to add route '{}/{}{via} dev {ifname}'", route.dst, route.prefix_len));
    };
    for route in &now {
        add(&mut batch, &mut doing, route);
    }
    send(sandbox, &batch, &doing)?;
    if manner.detect_duplicates && has_v6 {
        settle(sandbox, ifname, index)?;
        let (mut batch, mut doing) = (Batch::new(), Vec::new());
        for route in &later {
            add(&mut batch, &mut doing, route);
        }
        send(sandbox, &batch, &doing)?;
    }
    Ok(())
}

/// Brings an interface up that has no addresses of ours.
pub(crate) fn bring_up(sandbox: &mut Sandbox, ifname: &str, index: u32) -> Result<(), Error> {
    let mut batch = Batch::new();
    link::set(&mut batch, index, &LinkChange { up: Some(true), ..LinkChange::default() });
    sandbox.socket.transact(&batch).map(drop).map_err(|error| refused(format!("failed to set {ifname:?} up"), error))
}

fn send(sandbox: &mut Sandbox, batch: &Batch, doing: &[String]) -> Result<(), Error> {
    sandbox.socket.transact(batch).map(drop).map_err(|error| {
        let doing = error.index().and_then(|index| doing.get(index)).map_or("configure", String::as_str);
        refused(doing, error)
    })
}

/// Settings that only files have. Those that say how, and not whether, may be missing or read-only.
fn settings(ifname: &str, has_v6: bool, manner: Manner) -> Result<(), Error> {
    if has_v6 {
        for name in ["lo", ifname] {
            let written = sysctl::write_in(&["net", "ipv6", "conf", name], &[("disable_ipv6", "0")]);
            written.map_err(|error| refused(format!("failed to enable IPv6 for interface {name:?}"), error))?;
        }
    }
    let mut values = if manner.detect_duplicates {
        vec![("enhanced_dad", "1"), ("accept_dad", "1")]
    } else {
        vec![("accept_dad", "0")]
    };
    if manner.notify {
        values.push(("ndisc_notify", "1"));
    }
    if let Err(error) = sysctl::write_in(&["net", "ipv6", "conf", ifname], &values) {
        tracing::debug!(%error, "the interface keeps its ways");
    }
    Ok(())
}

fn settle(sandbox: &Sandbox, ifname: &str, index: u32) -> Result<(), Error> {
    let settled = sandbox.enter(|| addr::settle(index, DETECTION))?;
    let taken = settled.map_err(|error| refused(format!("wait for the addresses of {ifname:?}"), error))?;
    match taken.first() {
        None => Ok(()),
        Some(address) => Err(refused(format!("failed to add IP addr {address} to {ifname:?}"), "somebody else has it")),
    }
}

/// Tells the link that addresses are here now. Who does not hear it asks later.
pub(crate) fn announce(sandbox: &Sandbox, index: u32, mac: Option<Mac>, addresses: &[IpNet]) {
    let Some(mac) = mac else { return };
    let addresses: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    match sandbox.enter(|| announce::announce_all(index, mac, &addresses)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the addresses were not announced"),
        Err(error) => tracing::warn!(%error, "the addresses were not announced"),
    }
}

/// The interface of a call, which was just made.
pub(crate) fn made(sandbox: &mut Sandbox, call: &Call) -> Result<Link, Error> {
    let found = sandbox.find(&call.ifname)?;
    found.ok_or_else(|| refused(format!("failed to find {:?}", call.ifname), "no such device (ENODEV)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_lead_to_the_gateway_of_their_family() {
        let success = Success::parse(
            br#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1"},{"address":"fd00::2/64"}],
                "routes":[{"dst":"0.0.0.0/0"},{"dst":"10.9.1.1/16","gw":"10.1.0.9","mtu":1400,"advmss":1300},
                          {"dst":"::/0"},{"dst":"10.8.0.0/16","priority":7,"table":100,"scope":253}]}"#,
        )
        .unwrap();
        let found = routes(&success, 7);
        let gateways: Vec<_> = found.iter().map(|route| route.gateway.map(|gateway| gateway.to_string())).collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(gateways, [text("10.1.0.1"), text("10.1.0.9"), None, text("10.1.0.1")]);
        assert_eq!((found[1].dst, found[1].prefix_len), ("10.9.0.0".parse().unwrap(), 16));
        assert_eq!((found[1].mtu, found[1].advertised_mss), (Some(1400), Some(1300)));
        assert_eq!((found[3].metric, found[3].table, found[3].scope), (Some(7), 100, Some(253)));
        assert!(found.iter().all(|route| route.oif == Some(7)));
    }
}
