//! The plugin `portmap`: publishes ports of a container on the host.

mod ports;

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_cni::{Call, Code, Config, Error, Verb, read};
use portolan_kernel::conntrack::{self, Filter};
use portolan_kernel::netlink::{NETFILTER, NetlinkError, ROUTE, Socket};
use portolan_kernel::rtnl::{link, route};
use portolan_kernel::sysctl;
use portolan_model::{Family, Protocol};
use portolan_plan::Set;

use crate::chain::{addresses, previous, validity};
use crate::nat::{self, failed};
use crate::table::{self, Owner, Refused};
use crate::{Answer, portmap::ports::Options};
use ports::Port;

/// The sets that published ports are in.
const PUBLISHING: [Set; 8] = [
    Set::PluginPort(Family::V4),
    Set::PluginPort(Family::V6),
    Set::PluginAnyPort(Family::V4),
    Set::PluginAnyPort(Family::V6),
    Set::PluginHairpin(Family::V4),
    Set::PluginHairpin(Family::V6),
    Set::PluginWaiting(Family::V4),
    Set::PluginWaiting(Family::V6),
];

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    match call.verb {
        Verb::Add => {
            let (options, ports) = wanted(config, text)?;
            let previous = previous(config, "must be called as chained plugin")?;
            add(call, config, &options, &ports, &addresses(call, &previous))?;
            Ok(Some((previous, config.version())))
        }
        Verb::Check => {
            let (options, ports) = wanted(config, text)?;
            let addresses = addresses(call, &previous(config, "Required prevResult missing")?);
            let elements = options.elements(&Owner::of(call, &config.name).text()?, &ports, &addresses);
            match table::holds(&elements).map_err(|error| failed("check published ports", &error))? {
                true => Ok(None),
                false => Err(Error::differs(format!("ports of container `{}` are not published", call.container))),
            }
        }
        Verb::Del => del(call, config, text).map(|()| None),
        Verb::Gc => nat::collect(&config.name, &validity(config)?).map(|()| None),
        Verb::Status => {
            wanted(config, text)?;
            let lack =
                |error: NetlinkError| Error::new(Code::NotAvailable, format!("the kernel has no nftables: {error}"));
            table::probe().map_err(lack).map(|()| None)
        }
        Verb::Version => Ok(None),
    }
}

fn wanted(config: &Config, text: &[u8]) -> Result<(Options, Vec<Port>), Error> {
    let options: Options = read(text)?;
    options.check()?;
    Ok((options, ports::read(&config.runtime.ports)?))
}

fn add(call: &Call, config: &Config, options: &Options, ports: &[Port], addresses: &[IpNet]) -> Result<(), Error> {
    let elements = options.elements(&Owner::of(call, &config.name).text()?, ports, addresses);
    if elements.is_empty() {
        return Ok(());
    }
    if options.snat()
        && let Some(IpAddr::V4(address)) = addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4)
    {
        route_localnet(address.into())?;
    }
    table::put(&elements).map_err(|refused| match refused {
        Refused::Kernel(error) => failed("publish ports", &error),
        Refused::Taken(element) => {
            let holder = Owner::parse(&element.owner).map_or(element.owner.as_str(), |owner| owner.container);
            let key: Vec<String> = element.key.iter().map(ToString::to_string).collect();
            let msg = format!("host port {} is published by container `{holder}`", key.join(" "));
            Error::new(Code::Conflict, msg).details("DEL or GC of that container frees it")
        }
    })?;
    forget(ports, addresses, false);
    Ok(())
}

/// By key where the caller still knows what it asked for, else by owner.
fn del(call: &Call, config: &Config, text: &[u8]) -> Result<(), Error> {
    let mine = Owner::of(call, &config.name);
    let owner = mine.text()?;
    let known = wanted(config, text).ok().zip(config.previous().ok().flatten());
    let known = known.map(|((options, ports), previous)| {
        let addresses = addresses(call, &previous);
        (options.elements(&owner, &ports, &addresses), ports, addresses)
    });
    let refused = |error: NetlinkError| failed("take back published ports", &error);
    if let Some((elements, ports, addresses)) = known.filter(|(elements, ..)| !elements.is_empty()) {
        let taken = table::take_these(&elements).map_err(refused)?;
        if taken.len() == elements.len() {
            forget(&ports, &addresses, true);
            return Ok(());
        }
    }
    let taken = table::take_where(&PUBLISHING, |owner| owner == mine).map_err(refused)?;
    let (ports, addresses) = ports::of_elements(&taken);
    forget(&ports, &addresses, true);
    Ok(())
}

/// Lets packets from 127.0.0.1 leave towards a container: the interface that leads to it routes them. No container is where
/// the default route leads, and there the host's 127.0.0.1 would be the world's.
fn route_localnet(address: IpAddr) -> Result<(), Error> {
    let interface = Socket::open(ROUTE).and_then(|mut socket| {
        let contains = |route: &route::Route| {
            let net = IpNet::new(route.dst, route.prefix_len).ok()?;
            (route.table == route::TABLE_MAIN && !route.is_default() && net.contains(&address))
                .then_some((route.prefix_len, route.oif?))
        };
        let routes = route::dump_family(&mut socket, portolan_kernel::rtnl::Family::of(address))?;
        let Some((_, index)) = routes.iter().filter_map(contains).max() else { return Ok(None) };
        Ok(link::dump(&mut socket)?.into_iter().find(|link| link.index == index).map(|link| link.name))
    });
    let interface = interface.map_err(|error| failed("unable to enable route_localnet", &error))?;
    if let Some(interface) = interface {
        sysctl::write(&["net", "ipv4", "conf", &interface, "route_localnet"], "1")
            .map_err(|error| Error::new(Code::Internal, format!("unable to enable route_localnet: {error}")))?;
    }
    Ok(())
}

/// Forgets UDP flows that would go on where they went: those to the container (`to_it`), or those to anybody else. What is
/// left of them ends by itself, so a failure is no more than a line in the log.
fn forget(ports: &[Port], addresses: &[IpNet], to_it: bool) {
    const UDP: u8 = 17;
    let ports: Vec<&Port> = ports.iter().filter(|port| port.protocol == Protocol::Udp).collect();
    if ports.is_empty() {
        return;
    }
    let is_concerned = |entry: &conntrack::Entry| {
        let is_to_it = addresses.iter().any(|address| address.addr() == entry.reply.src);
        let is_port = |port: &&Port| {
            port.host == entry.original.dst_port && port.address.is_none_or(|address| address == entry.original.dst)
        };
        is_to_it == to_it && ports.iter().any(is_port)
    };
    let filter = Filter { protocol: Some(UDP), ..Filter::default() };
    let done =
        Socket::open(NETFILTER).and_then(|mut socket| conntrack::delete_matching(&mut socket, filter, is_concerned));
    if let Err(error) = done {
        tracing::warn!("old UDP flows are not forgotten: {error}");
    }
}
