//! The plugin `sbr`: what a container sends from an address leaves by the interface that has it (source based routing).
//!
//! Each address has a table of its own, the first from 100 on that nobody uses, with what routes the interface had in the
//! main one.

use std::fs::File;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_cni::{Call, Code, Config, Error, Success, Verb, read};
use portolan_kernel::netlink::{Batch, NetlinkError, Socket};
use portolan_kernel::rtnl::route::{self, Route};
use portolan_kernel::rtnl::rule::{self, Rule};
use portolan_kernel::rtnl::{Family, addr, link};
use serde::Deserialize;

use crate::Answer;
use crate::chain::previous;
use crate::inside::{exists, inside};
use crate::nat::failed;

const FIRST_TABLE: u32 = 100;

#[derive(Debug, Default, Deserialize)]
struct Options {
    /// A table that is filled by somebody else.
    #[serde(default)]
    table: Option<u32>,
    /// Gateways of addresses that come without.
    #[serde(default)]
    gateways: Vec<IpAddr>,
    /// Routes name the address that packets are to be sent from.
    #[serde(default, rename = "addsourcehints")]
    hints: bool,
}

/// An address and the way out from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Source {
    address: IpNet,
    gateway: Option<IpAddr>,
}

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    match call.verb {
        Verb::Add => {
            let options: Options = read(text)?;
            let previous = previous(config, "This plugin must be called as chained plugin")?;
            let sources = sources(&call.ifname, &options, &previous)?;
            let _lock = lock(call)?;
            inside(call, "sbr", |socket| {
                Ok(add(socket, &call.ifname, &options, &sources).inspect_err(|_| {
                    let _ = remove(socket, &call.ifname, options.table, &sources);
                }))
            })??;
            Ok(Some((previous, config.version())))
        }
        Verb::Check => {
            let options: Options = read(text)?;
            let previous = previous(config, "Required prevResult missing")?;
            let sources = sources(&call.ifname, &options, &previous)?;
            inside(call, "sbr", |socket| Ok(check(socket, &call.ifname, &options, &sources)))??;
            Ok(None)
        }
        Verb::Del if !exists(&call.netns) => Ok(None),
        Verb::Del => {
            let options: Options = read(text).unwrap_or_default();
            let previous = config.previous().ok().flatten().unwrap_or_default();
            let sources = sources(&call.ifname, &options, &previous).unwrap_or_default();
            let _lock = lock(call)?;
            inside(call, "sbr", |socket| remove(socket, &call.ifname, options.table, &sources))?;
            Ok(None)
        }
        // What it makes goes with the container's namespace.
        Verb::Gc | Verb::Status | Verb::Version => Ok(None),
    }
}

/// One at a time chooses tables in a namespace: a runtime may attach several networks at once. The original locks the
/// same file.
fn lock(call: &Call) -> Result<File, Error> {
    let failed = |error: std::io::Error| Error::new(Code::Io, format!("lock {}: {error}", call.netns.display()));
    let file = File::open(&call.netns).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// The addresses of `ifname`, and those of which nobody says whose they are.
fn sources(ifname: &str, options: &Options, previous: &Success) -> Result<Vec<Source>, Error> {
    if previous.ips.is_empty() {
        return Err(Error::new(Code::InvalidConfig, format!("No IP addresses supplied on interface: {ifname}")));
    }
    let is_ours = |index: Option<usize>| {
        index.and_then(|index| previous.interfaces.get(index)).is_none_or(|interface| interface.name == ifname)
    };
    let source = |ip: &portolan_cni::Ip| {
        let of_family = |gateway: &&IpAddr| gateway.is_ipv4() == ip.address.addr().is_ipv4();
        let gateway = ip.gateway.or_else(|| options.gateways.iter().find(of_family).copied());
        Source { address: ip.address, gateway }
    };
    Ok(previous.ips.iter().filter(|ip| is_ours(ip.interface)).map(source).collect())
}

fn rule_of(address: IpAddr, table: u32) -> Rule {
    let length = if address.is_ipv4() { 32 } else { 128 };
    Rule { src: Some((address, length)), ..Rule::new(Family::of(address), table) }
}

fn rules(socket: &mut Socket) -> Result<Vec<Rule>, NetlinkError> {
    let mut found = rule::dump(socket, Family::V4)?;
    found.extend(rule::dump(socket, Family::V6)?);
    Ok(found)
}

/// The first table from `from` on that has neither rules nor routes.
fn free_table(rules: &[Rule], routes: &[Route], from: u32) -> u32 {
    let is_taken =
        |table: u32| rules.iter().any(|rule| rule.table == table) || routes.iter().any(|route| route.table == table);
    (from..).find(|table| !is_taken(*table)).expect("there are fewer rules and routes")
}

/// The routes of a source's own table: its way out, and what of `routes` is about its network or about none.
fn routes_of(source: &Source, routes: &[Route], table: u32, index: u32, hints: bool) -> Vec<Route> {
    let own = source.address.addr();
    let hint = |route: Route| match hints && route.family() == Family::of(own) && route.prefsrc.is_none() {
        true => Route { prefsrc: Some(own), ..route },
        false => route,
    };
    let way_out = source.gateway.map(|gateway| Route {
        gateway: Some(gateway),
        oif: Some(index),
        table,
        ..Route::default_of(Family::of(gateway))
    });
    let is_of_it = |address: Option<IpAddr>| address.is_some_and(|address| source.address.contains(&address));
    let is_about = |route: &&Route| {
        is_of_it(route.prefsrc) || is_of_it(route.gateway) || (route.prefsrc.is_none() && route.gateway.is_none())
    };
    let copies = routes.iter().filter(is_about).map(|route| Route { table, ..route.clone() });
    way_out.into_iter().chain(copies).map(hint).collect()
}

fn add(socket: &mut Socket, ifname: &str, options: &Options, sources: &[Source]) -> Result<(), Error> {
    let refused = |doing: &'static str| move |error: NetlinkError| failed(doing, &error);
    let there = rules(socket).map_err(refused("Failed to list all rules"))?;
    let add_rule = |socket: &mut Socket, rule: &Rule| {
        let is_same = |other: &Rule| other.src == rule.src && other.table == rule.table;
        if there.iter().any(is_same) {
            return Ok(());
        }
        let mut batch = Batch::new();
        rule::add(&mut batch, rule);
        socket.transact(&batch).map(drop).map_err(refused("Failed to add rule"))
    };
    if let Some(table) = options.table {
        return sources.iter().try_for_each(|source| add_rule(socket, &rule_of(source.address.addr(), table)));
    }
    let all = route::dump(socket).map_err(refused("Failed to list all routes"))?;
    let interface = link::lookup(socket, ifname).map_err(refused("find the interface"))?;
    let index = interface
        .map(|link| link.index)
        .ok_or_else(|| Error::new(Code::InvalidConfig, format!("Cannot find network interface {ifname}")))?;
    let is_of_it = |route: &&Route| route.oif == Some(index) && route.table == route::TABLE_MAIN;
    let own: Vec<Route> = all.iter().filter(is_of_it).cloned().collect();
    let mut next = FIRST_TABLE;
    for source in sources {
        let address = source.address.addr();
        // An address that has its table already keeps it.
        let before = there.iter().find(|rule| {
            rule.src == rule_of(address, 0).src && rule.table >= FIRST_TABLE && rule.table != route::TABLE_MAIN
        });
        let table = before.map_or_else(|| free_table(&there, &all, next), |rule| rule.table);
        add_rule(socket, &rule_of(address, table))?;
        // One by one: a route may need the one before.
        for route in routes_of(source, &own, table, index, options.hints) {
            let mut batch = Batch::new();
            route::replace(&mut batch, &route);
            socket.transact(&batch).map_err(refused("Failed to readd route"))?;
        }
        next = table + 1;
    }
    let mut batch = Batch::new();
    for route in &own {
        route::delete(&mut batch, route);
    }
    if batch.is_empty() {
        return Ok(());
    }
    let gone = socket.transact_each(&batch).map_err(refused("Failed to delete route"))?;
    // With one the kernel takes those that go by it.
    let error = gone.errors.into_iter().find(|error| !error.is_missing());
    error.map_or(Ok(()), |error| Err(failed("Failed to delete route", &error)))
}

/// Removes the rules of the interface's addresses; tables go with the interface.
fn remove(socket: &mut Socket, ifname: &str, table: Option<u32>, sources: &[Source]) -> Result<(), NetlinkError> {
    let mut addresses: Vec<IpAddr> = sources.iter().map(|source| source.address.addr()).collect();
    if let Some(link) = link::lookup(socket, ifname)? {
        addresses.extend(addr::dump(socket, Some(link.index))?.into_iter().map(|address| address.addr));
    }
    let mut batch = Batch::new();
    let is_gone = |rule: &&Rule| {
        table.is_none_or(|table| rule.table == table) && rule.src.is_some_and(|(src, _)| addresses.contains(&src))
    };
    for rule in rules(socket)?.iter().filter(is_gone) {
        rule::delete(&mut batch, rule);
    }
    if batch.is_empty() {
        return Ok(());
    }
    let outcome = socket.transact_each(&batch)?;
    outcome.errors.into_iter().find(|error| !error.is_missing()).map_or(Ok(()), Err)
}

fn check(socket: &mut Socket, ifname: &str, options: &Options, sources: &[Source]) -> Result<(), Error> {
    let refused = |error: NetlinkError| failed("check routes", &error);
    let there = rules(socket).map_err(refused)?;
    let routes = route::dump(socket).map_err(refused)?;
    let index = link::lookup(socket, ifname).map_err(refused)?.map(|link| link.index);
    for source in sources {
        let address = source.address.addr();
        let is_its =
            |rule: &&Rule| rule.src == rule_of(address, 0).src && options.table.is_none_or(|table| rule.table == table);
        let Some(rule) = there.iter().find(is_its) else {
            return Err(Error::differs(format!("no rule leads packets from {address} to a table of their own")));
        };
        let is_way = |route: &Route| {
            route.table == rule.table
                && route.oif == index
                && source.gateway.is_none_or(|gateway| route.is_default() && route.gateway == Some(gateway))
        };
        if options.table.is_none() && !routes.iter().any(is_way) {
            return Err(Error::differs(format!("table {} has no way out for packets from {address}", rule.table)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_routes() {
        let route = |text: &str, gateway: Option<&str>, prefsrc: Option<&str>| {
            let net: IpNet = text.parse().unwrap();
            let address = |text: &str| text.parse().unwrap();
            Route {
                gateway: gateway.map(address),
                prefsrc: prefsrc.map(address),
                oif: Some(2),
                ..Route::new(net.addr(), net.prefix_len())
            }
        };
        let taken = Route { table: 101, ..route("0.0.0.0/0", None, None) };
        let rule = rule_of("10.4.0.2".parse().unwrap(), 100);
        assert_eq!(free_table(&[rule], &[taken], FIRST_TABLE), 102);
        let own = [
            route("10.4.0.0/24", None, Some("10.4.0.2")),
            route("10.9.0.0/16", Some("10.5.0.1"), None),
            route("fe80::/64", None, None),
        ];
        let source = Source { address: "10.4.0.2/24".parse().unwrap(), gateway: Some("10.4.0.1".parse().unwrap()) };
        let routes = routes_of(&source, &own, 100, 2, true);
        let shown: Vec<(IpAddr, Option<IpAddr>)> = routes.iter().map(|route| (route.dst, route.prefsrc)).collect();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(
            shown,
            [
                (address("0.0.0.0"), Some(address("10.4.0.2"))),
                (address("10.4.0.0"), Some(address("10.4.0.2"))),
                (address("fe80::"), None),
            ]
        );
        assert!(routes.iter().all(|route| route.table == 100 && route.oif == Some(2)));
    }
}
