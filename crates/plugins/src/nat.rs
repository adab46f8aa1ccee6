//! Translation for plugins whose containers reach the world by the host's address (`ipMasq`).
//!
//! As the original: what comes from a container's address and is neither for its own network nor for a group.

use ipnet::IpNet;
use portolan_cni::{Call, Code, Error};
use portolan_kernel::netlink::NetlinkError;
use portolan_model::Family;
use portolan_plan::{Data, Element, Field, Set};

use crate::table::{self, Owner, Refused};

/// The sets that a masqueraded container is in.
const MASQUERADING: [Set; 4] = [
    Set::PluginLocal(Family::V4),
    Set::PluginLocal(Family::V6),
    Set::PluginMasquerade(Family::V4),
    Set::PluginMasquerade(Family::V6),
];

/// Lets the container of `call` reach the world by the host's address; `addresses` are its own, with the prefix lengths of
/// their networks.
///
/// # Errors
/// [`Code::Internal`] with the kernel's refusal.
pub(crate) fn masquerade(call: &Call, network: &str, addresses: &[IpNet]) -> Result<(), Error> {
    let elements = masquerading(&Owner::of(call, network).text()?, addresses);
    table::put(&elements).map_err(|refused| match refused {
        Refused::Kernel(error) => failed("masquerade", &error),
        Refused::Taken(element) => Error::new(Code::Conflict, format!("masquerade: {} is in the way", element.owner)),
    })
}

/// Undoes [`masquerade`]; what is not there is no failure.
///
/// # Errors
/// [`Code::Internal`] with the kernel's refusal.
pub(crate) fn unmasquerade(call: &Call, network: &str) -> Result<(), Error> {
    let mine = Owner::of(call, network);
    table::take_where(&MASQUERADING, |owner| owner == mine).map(drop).map_err(|error| failed("unmasquerade", &error))
}

/// Whether the kernel does what [`masquerade`] asked for (CHECK).
///
/// # Errors
/// [`Code::Differs`] if it does not.
pub(crate) fn check_masquerade(call: &Call, network: &str, addresses: &[IpNet]) -> Result<(), Error> {
    let elements = masquerading(&Owner::of(call, network).text()?, addresses);
    match table::holds(&elements).map_err(|error| failed("check", &error))? {
        true => Ok(()),
        false => Err(Error::differs(format!("container `{}` is not masqueraded", call.container))),
    }
}

/// Takes out of the plugins' table all that is there for containers on `network` that are not valid (GC).
///
/// # Errors
/// [`Code::Internal`] with the kernel's refusal.
pub(crate) fn collect(network: &str, is_valid: &dyn Fn(&str, &str) -> bool) -> Result<(), Error> {
    let is_gone = |owner: Owner<'_>| owner.network == network && !is_valid(owner.container, owner.ifname);
    table::take_where(&Set::PLUGINS, is_gone).map(drop).map_err(|error| failed("collect garbage", &error))
}

pub(crate) fn failed(doing: &str, error: &NetlinkError) -> Error {
    Error::new(Code::Internal, format!("{doing}: {error}"))
}

fn masquerading(owner: &str, addresses: &[IpNet]) -> Vec<Element> {
    let of = |address: &IpNet| {
        let family = Family::of(address.addr());
        let own = Field::Address(address.addr());
        let element = |set, key| Element { set, key, data: Data::Member, owner: owner.to_owned() };
        [
            element(Set::PluginLocal(family), vec![own.clone(), Field::Prefix(address.trunc())]),
            element(Set::PluginMasquerade(family), vec![own]),
        ]
    };
    addresses.iter().flat_map(of).collect()
}
