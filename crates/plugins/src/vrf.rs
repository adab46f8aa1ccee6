//! The plugin `vrf`: puts an interface of a container into a routing domain of its own.

use portolan_cni::{Call, Code, Config, Error, Verb, read};
use portolan_kernel::netlink::{Batch, NetlinkError, Socket};
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, Link, LinkChange};
use serde::Deserialize;

use crate::Answer;
use crate::chain::previous;
use crate::inside::{exists, inside};
use crate::nat::failed;

const MISSING: &str = "missing prevResult from earlier plugin";

#[derive(Debug, Deserialize)]
struct Options {
    #[serde(default, rename = "vrfname")]
    name: String,
    #[serde(default)]
    table: u32,
}

impl Options {
    fn read(text: &[u8]) -> Result<Self, Error> {
        let options: Self = read(text)?;
        match options.name.is_empty() {
            true => Err(Error::new(Code::InvalidConfig, "configuration is expected to have a valid vrf name")),
            false => Ok(options),
        }
    }
}

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    match call.verb {
        Verb::Add => {
            let options = Options::read(text)?;
            let previous = previous(config, MISSING)?;
            inside(call, "vrf", |socket| Ok(join(socket, &options, &call.ifname)))??;
            Ok(Some((previous, config.version())))
        }
        Verb::Check => {
            let options = Options::read(text)?;
            previous(config, MISSING)?;
            inside(call, "vrf", |socket| Ok(check(socket, &options, &call.ifname)))??;
            Ok(None)
        }
        Verb::Del if !exists(&call.netns) => Ok(None),
        Verb::Del => {
            // Without a name there is none to leave.
            let Ok(options) = Options::read(text) else { return Ok(None) };
            inside(call, "vrf", |socket| Ok(leave(socket, &options.name, &call.ifname)))??;
            Ok(None)
        }
        Verb::Status => Options::read(text).map(|_| None),
        // What it makes goes with the container's namespace.
        Verb::Gc | Verb::Version => Ok(None),
    }
}

fn links(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    link::dump(socket).map_err(|error| failed("list interfaces", &error))
}

/// The VRF of this name, if there is one.
fn find<'a>(links: &'a [Link], name: &str) -> Result<Option<&'a Link>, Error> {
    let found = links.iter().find(|link| link.name == name);
    match found {
        Some(link) if link.kind.as_deref() != Some("vrf") => {
            Err(Error::new(Code::InvalidConfig, format!("Netlink {name} is not a VRF")))
        }
        found => Ok(found),
    }
}

/// The first table from 1 on that no VRF has.
fn free_table(links: &[Link]) -> u32 {
    (1..).find(|table| !links.iter().any(|link| link.vrf_table == Some(*table))).expect("there are fewer links")
}

fn join(socket: &mut Socket, options: &Options, ifname: &str) -> Result<(), Error> {
    let refuse = |msg: String| Error::new(Code::InvalidConfig, msg);
    let mut all = links(socket)?;
    let interface = all.iter().find(|link| link.name == ifname).cloned();
    let interface = interface.ok_or_else(|| refuse(format!("could not get link by name {ifname}")))?;
    let there = find(&all, &options.name)?;
    if let Some(master) = interface.master {
        if there.is_some_and(|vrf| vrf.index == master) {
            return Ok(());
        }
        let name = all.iter().find(|link| link.index == master).map_or("?", |link| link.name.as_str());
        return Err(refuse(format!("interface {ifname} has already a master set: {name}")));
    }
    match there {
        Some(vrf) if options.table != 0 && vrf.vrf_table != Some(options.table) => {
            let table = vrf.vrf_table.unwrap_or_default();
            let msg = format!("VRF {} already exist with different routing table {table}", options.name);
            return Err(refuse(msg));
        }
        Some(_) => {}
        None => {
            let table = if options.table == 0 { free_table(&all) } else { options.table };
            let mut batch = Batch::new();
            link::create_vrf(&mut batch, &options.name, table);
            link::set(&mut batch, options.name.as_str(), &LinkChange { up: Some(true), ..LinkChange::default() });
            match socket.transact(&batch) {
                Ok(_) => {}
                // Another interface of the container came at the same time.
                Err(error) if error.is_exists() => {}
                Err(error) => return Err(lacking(&options.name, &error)),
            }
            all = links(socket)?;
        }
    }
    let vrf = find(&all, &options.name)?.ok_or_else(|| refuse(format!("there is no VRF {}", options.name)))?;
    let of_interface = |socket: &mut Socket| {
        addr::dump(socket, Some(interface.index)).map_err(|error| failed("list addresses", &error))
    };
    // The kernel drops IPv6 addresses when an interface changes its domain (`keep_addr_on_down`).
    let before = of_interface(socket)?;
    let mut batch = Batch::new();
    link::set(&mut batch, interface.index, &LinkChange { master: Some(vrf.index), ..LinkChange::default() });
    let doing = format!("could not set vrf {} as master of {ifname}", options.name);
    socket.transact(&batch).map_err(|error| failed(&doing, &error))?;
    let after = of_interface(socket)?;
    let mut batch = Batch::new();
    let is_kept = |address: &Address| after.iter().any(|other| other.addr == address.addr);
    for address in before.iter().filter(|address| address.addr.is_ipv6() && !is_kept(address)) {
        addr::add(&mut batch, address);
    }
    if batch.is_empty() {
        return Ok(());
    }
    match socket.transact(&batch) {
        Err(error) if !error.is_exists() => Err(failed(&format!("could not restore addresses to {ifname}"), &error)),
        _ => Ok(()),
    }
}

fn check(socket: &mut Socket, options: &Options, ifname: &str) -> Result<(), Error> {
    let all = links(socket)?;
    let vrf = find(&all, &options.name)?;
    let vrf = vrf.ok_or_else(|| Error::differs(format!("there is no VRF {}", options.name)))?;
    if options.table != 0 && vrf.vrf_table != Some(options.table) {
        return Err(Error::differs(format!("VRF {} has another table than {}", options.name, options.table)));
    }
    match all.iter().any(|link| link.name == ifname && link.master == Some(vrf.index)) {
        true => Ok(()),
        false => Err(Error::differs(format!("Failed to find {ifname} associated to vrf {}", options.name))),
    }
}

/// Takes the interface out, and the VRF away with its last.
fn leave(socket: &mut Socket, name: &str, ifname: &str) -> Result<(), Error> {
    let all = links(socket)?;
    let Ok(Some(vrf)) = find(&all, name) else { return Ok(()) };
    let mut batch = Batch::new();
    let is_in = |link: &&Link| link.master == Some(vrf.index);
    if let Some(interface) = all.iter().filter(is_in).find(|link| link.name == ifname) {
        link::set(&mut batch, interface.index, &LinkChange { master: Some(0), ..LinkChange::default() });
    }
    if all.iter().filter(is_in).all(|link| link.name == ifname) {
        link::delete(&mut batch, vrf.index);
    }
    if batch.is_empty() {
        return Ok(());
    }
    match socket.transact(&batch) {
        Err(error) if !error.is_missing() => Err(failed(&format!("leave VRF {name}"), &error)),
        _ => Ok(()),
    }
}

fn lacking(name: &str, error: &NetlinkError) -> Error {
    let refused = failed(&format!("could not add VRF {name}"), error);
    match error.is_unsupported() {
        true => Error {
            code: Code::NotAvailable,
            ..refused.details("this kernel has no VRF: load or build its module `vrf`")
        },
        false => refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_taken_in_order() {
        let vrf = |table| Link { kind: Some("vrf".into()), vrf_table: Some(table), ..Link::default() };
        assert_eq!(free_table(&[]), 1);
        assert_eq!(free_table(&[vrf(1), vrf(3), Link::default()]), 2);
        let bridge = Link { name: "red".into(), kind: Some("bridge".into()), ..Link::default() };
        assert_eq!(find(&[bridge], "red").unwrap_err().msg, "Netlink red is not a VRF");
        assert_eq!(Options::read(b"{}").unwrap_err().msg, "configuration is expected to have a valid vrf name");
    }
}
