//! What plugins that come after others have in common: the result so far, and what is in it.

use ipnet::IpNet;
use portolan_cni::{Attachment, Call, Code, Config, Error, Interface, Success};

/// The result of the plugin before; `missing` is what to say without one.
///
/// # Errors
/// [`Code::InvalidConfig`] if there is none, [`Code::Decoding`] for what is no result.
pub(crate) fn previous(config: &Config, missing: &str) -> Result<Success, Error> {
    config.previous()?.ok_or_else(|| {
        Error::new(Code::InvalidConfig, missing).details("list the plugin after one that makes an interface")
    })
}

/// The first address of each family that `call`'s interface has.
pub(crate) fn addresses(call: &Call, previous: &Success) -> Vec<IpNet> {
    let is_elsewhere = |interface: &Interface| interface.name != call.ifname || interface.sandbox.is_empty();
    let mut found: Vec<IpNet> = Vec::new();
    for ip in &previous.ips {
        let interface = ip.interface.and_then(|index| previous.interfaces.get(index));
        let is_more = found.iter().any(|other| other.addr().is_ipv4() == ip.address.addr().is_ipv4());
        if !is_more && !interface.is_some_and(is_elsewhere) {
            found.push(ip.address);
        }
    }
    found
}

/// Tells of a container and its interface whether they are there, as the caller of GC says.
///
/// # Errors
/// [`Code::InvalidConfig`] if it does not say.
pub(crate) fn validity(config: &Config) -> Result<impl Fn(&str, &str) -> bool, Error> {
    let valid = config.valid_attachments().ok_or_else(|| {
        Error::new(Code::InvalidConfig, "cni.dev/valid-attachments is missing")
            .details("without it nobody knows which containers are there; an empty list means none")
    })?;
    Ok(|container: &str, ifname: &str| {
        valid.iter().any(|Attachment { container: listed, ifname: at }| listed == container && at == ifname)
    })
}
