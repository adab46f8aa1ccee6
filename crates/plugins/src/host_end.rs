//! Veth pairs between the host and a container.
//!
//! The originals call host ends by chance, so only who still has the container's namespace finds them. Ours are called by
//! the attachment, in the same form, and say in their alias whose they are: DEL finds them by the call alone, and GC by the
//! network.

use std::os::fd::AsFd as _;

use portolan_cni::{Call, Code, Error};
use portolan_kernel::netlink::{Batch, Socket};
use portolan_kernel::rtnl::Mac;
use portolan_kernel::rtnl::link::{self, BrPort, Link, LinkChange, VethPeer, VethSpec};
use sha2::{Digest as _, Sha256};

use crate::addresses::Ipam;
use crate::conf::random_mac;
use crate::inside::{self, Sandbox, refused};
use crate::nat;

/// So many names are tried when others have them already, by chance.
const NAMES: u8 = 4;

/// What a pair is to be like.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pair {
    /// The MAC inside; by chance without one.
    pub(crate) mac: Option<Mac>,
    /// Of both ends.
    pub(crate) mtu: Option<u32>,
    /// Index of the bridge that the host end is a port of.
    pub(crate) bridge: Option<u32>,
    /// What kind of port.
    pub(crate) port: BrPort,
}

/// A pair that was made; the host end is up, the other down.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) host: Link,
    pub(crate) inside: Link,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names that the host end of an attachment may have; the first, if nobody else has it.
fn names(container: &str, ifname: &str) -> impl Iterator<Item = String> {
    (0..NAMES).map(move |n| {
        let digest = Sha256::new().chain_update(container).chain_update([0]).chain_update(ifname).chain_update([0, n]);
        format!("veth{}", hex(&digest.finalize()[..4]))
    })
}

/// What the aliases of all host ends of a network begin with.
fn alias_of_network(network: &str) -> String {
    // An alias has 255 bytes at most (IFALIASZ).
    if network.len() <= 96 {
        format!("portolan cni {network} ")
    } else {
        format!("portolan cni #{} ", hex(&Sha256::digest(network)[..16]))
    }
}

fn alias(network: &str, container: &str, ifname: &str) -> String {
    let rest = if container.len() <= 96 {
        container.to_owned()
    } else {
        format!("#{}", hex(&Sha256::digest(container)[..16]))
    };
    format!("{}{rest} {ifname}", alias_of_network(network))
}

fn lookup(host: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    link::lookup(host, name).map_err(|error| refused(format!("find interface `{name}`"), error))
}

/// Makes a pair.
pub(crate) fn create(
    host: &mut Socket,
    sandbox: &mut Sandbox,
    call: &Call,
    network: &str,
    pair: &Pair,
) -> Result<Made, Error> {
    let ours = alias(network, &call.container, &call.ifname);
    for name in names(&call.container, &call.ifname) {
        match lookup(host, &name)? {
            None => return make(host, sandbox, call, &name, &ours, pair),
            // Of an ADD whose container is gone and whose namespace is not.
            Some(found) if found.alias.as_deref() == Some(&ours) => {
                remove_named(&name)?;
                return make(host, sandbox, call, &name, &ours, pair);
            }
            Some(_) => {}
        }
    }
    Err(Error::new(Code::Conflict, "others have all names that the host end of the veth may have"))
}

fn make(
    host: &mut Socket,
    sandbox: &mut Sandbox,
    call: &Call,
    name: &str,
    alias: &str,
    pair: &Pair,
) -> Result<Made, Error> {
    let mac = pair.mac.map_or_else(random_mac, Ok)?;
    let mut batch = Batch::new();
    link::create_veth(
        &mut batch,
        &VethSpec {
            name,
            mac: Some(random_mac()?),
            mtu: pair.mtu,
            master: pair.bridge,
            echo: true,
            peer: VethPeer {
                name: &call.ifname,
                mac: Some(mac),
                mtu: pair.mtu,
                netns: Some(sandbox.netns.as_fd()),
                ..VethPeer::default()
            },
            ..VethSpec::default()
        },
    );
    // Sent together: whoever kills us does so before both or after both. If the first fails, nothing of this name is there;
    // only another ADD of the same attachment could make it meanwhile.
    let brport = Some(pair.port).filter(|port| *port != BrPort::default());
    let change = LinkChange { up: Some(true), alias: Some(alias), brport, ..LinkChange::default() };
    link::set(&mut batch, name, &change);
    host.transact(&batch).map_err(|error| {
        if error.is_exists() {
            return Error::new(
                Code::Conflict,
                format!("container veth name provided ({}) already exists", call.ifname),
            );
        }
        refused(format!("failed to make veth pair {name:?}"), error)
    })?;
    let missing = |name: &str| refused(format!("failed to lookup {name:?}"), "no such device (ENODEV)");
    let made = lookup(host, name)?.ok_or_else(|| missing(name))?;
    let inside = sandbox.find(&call.ifname)?.ok_or_else(|| missing(&call.ifname))?;
    Ok(Made { host: made, inside })
}

/// Takes a container off a network that it is on by a pair, whatever became of the configuration since; goes on after
/// failures and tells the first.
pub(crate) fn leave(call: &Call, network: &str, ipam: Option<Ipam<'_>>) -> Result<(), Error> {
    Ipam::leave(ipam, || {
        let removed = inside::host().and_then(|mut host| remove(&mut host, call, network));
        let removed = match removed {
            Ok(true) => Ok(()),
            // The original made it, under a name of chance.
            Ok(false) => inside::remove(call, "veth"),
            Err(error) => Err(error),
        };
        let freed = nat::unmasquerade(call, network);
        removed.and(freed)
    })
}

/// Removes the pair of an attachment, wherever its other end is; whether there was one.
pub(crate) fn remove(host: &mut Socket, call: &Call, network: &str) -> Result<bool, Error> {
    let ours = alias(network, &call.container, &call.ifname);
    for name in names(&call.container, &call.ifname) {
        match lookup(host, &name)? {
            Some(found) if found.alias.as_deref() == Some(&ours) => return remove_named(&name).map(|()| true),
            Some(_) => {}
            None => return Ok(false),
        }
    }
    Ok(false)
}

fn remove_named(name: &str) -> Result<(), Error> {
    link::remove(name).map(drop).map_err(|error| refused(format!("failed to delete {name:?}"), error))
}

/// Removes the pairs of a network whose attachments are not valid (GC); goes on after failures and tells the first.
pub(crate) fn collect(host: &mut Socket, network: &str, valid: &[(&str, &str)]) -> Result<(), Error> {
    let prefix = alias_of_network(network);
    let valid: Vec<String> = valid.iter().map(|(container, ifname)| alias(network, container, ifname)).collect();
    let links = link::dump(host).map_err(|error| refused("list interfaces", error))?;
    let mut failure = None;
    for found in links {
        let is_garbage = found.kind.as_deref() == Some("veth")
            && found.alias.as_ref().is_some_and(|alias| alias.starts_with(&prefix) && !valid.contains(alias));
        if is_garbage {
            tracing::info!(name = found.name, alias = found.alias, "is not listed: removing it");
            if let Err(error) = remove_named(&found.name) {
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases() {
        let all: Vec<String> = names("c1", "eth0").collect();
        assert_eq!(all.len(), usize::from(NAMES));
        assert!(all.iter().all(|name| name.len() == 12 && name.starts_with("veth")));
        assert_ne!(all[0], all[1]);
        assert_eq!(all[0], names("c1", "eth0").next().unwrap());
        assert_ne!(all[0], names("c1e", "th0").next().unwrap());
        assert_eq!(alias("web", "c1", "eth0"), "portolan cni web c1 eth0");
        let long = "n".repeat(300);
        let text = alias(&long, &long, "fifteen-letters");
        assert!(text.len() <= 255 && text.starts_with(&alias_of_network(&long)), "{text}");
        assert!(!alias("web2", "c", "eth0").starts_with(&alias_of_network("web")));
    }
}
