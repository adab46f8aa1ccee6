//! Comparing what a result says with what the kernel has (CHECK).

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use portolan_cni::{Call, Config, Error, Interface, Ip, Success};
use portolan_kernel::rtnl::addr;
use portolan_kernel::rtnl::link::Link;
use portolan_kernel::rtnl::route::{self, RouteKind};

use crate::conf::{invalid, mac_text};
use crate::inside::{Sandbox, refused};

/// The result that a CHECK is about.
pub(crate) fn previous(config: &Config) -> Result<Success, Error> {
    config.previous()?.ok_or_else(|| invalid("Required prevResult missing"))
}

/// Compares the interface of a call, which is of `kind` if one is given, with what is inside.
pub(crate) fn container(
    sandbox: &mut Sandbox,
    call: &Call,
    success: &Success,
    kind: Option<&str>,
) -> Result<Link, Error> {
    let name = call.ifname.as_str();
    let is_it = |interface: &&Interface| interface.name == name && !interface.sandbox.is_empty();
    // The last of several: as the originals look for it.
    let wanted = success.interfaces.iter().rfind(is_it);
    let wanted = wanted.ok_or_else(|| Error::differs(format!("interface {name:?} is not in prevResult")))?;
    if Path::new(&wanted.sandbox) != call.netns {
        return Err(Error::differs(format!(
            "Sandbox in prevResult {} doesn't match configured netns: {}",
            wanted.sandbox,
            call.netns.display()
        )));
    }
    let found = sandbox.find(name)?;
    let found =
        found.ok_or_else(|| Error::differs(format!("Container Interface name in prevResult: {name} not found")))?;
    interface(wanted, &found, kind)?;
    Ok(found)
}

/// Compares an interface.
pub(crate) fn interface(wanted: &Interface, found: &Link, kind: Option<&str>) -> Result<(), Error> {
    let name = &wanted.name;
    if let Some(kind) = kind
        && found.kind.as_deref() != Some(kind)
    {
        return Err(Error::differs(format!("interface {name} is not of type {kind}")));
    }
    let mac = found.mac.map(mac_text).unwrap_or_default();
    if !wanted.mac.is_empty() && !wanted.mac.eq_ignore_ascii_case(&mac) {
        return Err(Error::differs(format!("Interface {name} Mac {} doesn't match container Mac: {mac}", wanted.mac)));
    }
    Ok(())
}

/// Refuses an interface that is down.
pub(crate) fn up(found: &Link) -> Result<(), Error> {
    if found.up { Ok(()) } else { Err(Error::differs(format!("Interface {} is down", found.name))) }
}

/// Whether an address of a result is of the interface called `name`.
fn is_of(success: &Success, ip: &Ip, name: &str) -> bool {
    let at = ip.interface.and_then(|index| success.interfaces.get(index));
    at.is_none_or(|at| at.name == name && !at.sandbox.is_empty())
}

/// The addresses of the interface called `name` inside.
pub(crate) fn addresses(success: &Success, name: &str) -> Vec<IpNet> {
    success.ips.iter().filter(|ip| is_of(success, ip, name)).map(|ip| ip.address).collect()
}

/// Compares addresses and routes.
pub(crate) fn addresses_and_routes(sandbox: &mut Sandbox, success: &Success, found: &Link) -> Result<(), Error> {
    let name = &found.name;
    let addresses = addr::dump(&mut sandbox.socket, Some(found.index))
        .map_err(|error| refused(format!("list addresses of {name:?}"), error))?;
    for wanted in self::addresses(success, name) {
        let is_it = |has: &addr::Address| {
            has.addr == wanted.addr() && has.prefix_len == wanted.prefix_len() && has.flags & addr::DADFAILED == 0
        };
        if !addresses.iter().any(is_it) {
            return Err(Error::differs(format!("Failed to match addr {wanted} on interface {name}")));
        }
    }
    if success.routes.is_empty() {
        return Ok(());
    }
    let routes = route::dump(&mut sandbox.socket).map_err(|error| refused("list routes", error))?;
    for wanted in &success.routes {
        let leads = |gateway: Option<IpAddr>, oif: Option<u32>| {
            wanted.gw.is_none_or(|wanted| gateway == Some(wanted)) && oif.is_some()
        };
        let is_it = |has: &route::Route| {
            has.kind == RouteKind::Unicast
                && has.dst == wanted.dst.network()
                && has.prefix_len == wanted.dst.prefix_len()
                && wanted.table.is_none_or(|table| has.table == table)
                && (leads(has.gateway, has.oif) || has.nexthops.iter().any(|hop| leads(hop.gateway, hop.oif)))
        };
        if !routes.iter().any(is_it) {
            let via = wanted.gw.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            return Err(Error::differs(format!("Expected Route {}{via} not found in routing table", wanted.dst)));
        }
    }
    Ok(())
}
