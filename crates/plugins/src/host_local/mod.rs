//! The IPAM plugin `host-local`: addresses of the host's own ranges, with files for leases.

mod config;
mod range;
mod resolv;
mod store;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use portolan_cni::{Attachment, Call, Code, Config, Dns, Error, Ip, Success, Verb};

use self::config::{Wanted, directory, wanted};
use self::range::{Candidate, RangeSet};
use self::store::{Holder, Lease, Store};
use crate::Answer;
use crate::ipam::refused;

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let holder = Holder { id: &call.container, ifname: &call.ifname };
    match call.verb {
        Verb::Add => {
            let wanted = wanted(call, config, text)?;
            let success = add(&wanted, &directory(config, text)?, holder)?;
            Ok(Some((success, config.version())))
        }
        Verb::Del => del(&directory(config, text)?, holder).map(|()| None),
        Verb::Check => {
            let wanted = wanted(call, config, text)?;
            let previous = config.previous()?.unwrap_or_default();
            check(&wanted, &directory(config, text)?, holder, &previous).map(|()| None)
        }
        Verb::Gc => {
            let valid = config.valid_attachments().ok_or_else(|| {
                Error::new(Code::InvalidConfig, "cni.dev/valid-attachments is missing")
                    .details("without it nobody knows which containers are there; an empty list means none")
            })?;
            gc(&directory(config, text)?, valid).map(|()| None)
        }
        Verb::Status => {
            let not_available = |error: Error| Error { code: Code::NotAvailable, ..error };
            let wanted = wanted(call, config, text).map_err(not_available)?;
            status(&wanted, &directory(config, text)?).map_err(not_available).map(|()| None)
        }
        Verb::Version => Ok(None),
    }
}

/// For [`crate::foreign`]: the first addresses of each set.
pub(crate) fn first(
    call: &Call,
    config: &Config,
    text: &[u8],
    last: Option<IpAddr>,
) -> Result<Vec<Vec<(IpNet, IpAddr)>>, Error> {
    const COUNT: usize = 4;
    let of = |set: &RangeSet| set.candidates(last).take(COUNT).map(|one| (one.address, one.gateway)).collect();
    Ok(wanted(call, config, text)?.sets.iter().map(of).collect())
}

/// For [`crate::foreign`].
pub(crate) fn resolv_conf(text: &str) -> Dns {
    resolv::parse(text)
}

/// For [`crate::foreign`]: all leases, with their texts.
pub(crate) fn listed(dir: &Path) -> Result<Vec<(IpAddr, String)>, Error> {
    let leases = store::leases(dir, |_| true)?;
    Ok(leases.into_iter().map(|lease| (lease.address, lease.text)).collect())
}

fn add(wanted: &Wanted, dir: &Path, holder: Holder<'_>) -> Result<Success, Error> {
    let dns = match wanted.resolv_conf.as_str() {
        "" => Dns::default(),
        path => resolv::read(path)?,
    };
    let store = Store::make(dir)?;
    let mut given = Vec::new();
    give(wanted, &store, holder, &mut given).inspect_err(|_| {
        for candidate in &given {
            if let Err(error) = store.undo(candidate.address.addr()) {
                tracing::warn!("an address is not given back: {error}");
            }
        }
    })?;
    let ips = given.iter().map(|Candidate { address, gateway }| Ip {
        interface: None,
        address: *address,
        gateway: Some(*gateway),
    });
    Ok(Success { ips: ips.collect(), routes: wanted.routes.clone(), dns, ..Success::default() })
}

/// Gives an address of each set. What was given before something failed is in `given`.
fn give(wanted: &Wanted, store: &Store, holder: Holder<'_>, given: &mut Vec<Candidate>) -> Result<(), Error> {
    let leases = store.leases_for(holder)?;
    let taken: BTreeSet<IpAddr> = leases.iter().filter(|lease| !lease.is_empty).map(|lease| lease.address).collect();
    let own: Vec<IpAddr> = leases.iter().filter(|lease| holder.has(lease)).map(|lease| lease.address).collect();
    let mut requested = wanted.ips.clone();
    for (index, set) in wanted.sets.iter().enumerate() {
        let failed = |error: Error| refused(format!("failed to allocate for range {index}: {}", error.msg));
        let wish = requested.iter().position(|ip| set.contains(*ip)).map(|at| requested.remove(at));
        let candidate = choose(set, wish, &taken, &own, holder.id, || store.last(index)).map_err(failed)?;
        store.reserve(candidate.address.addr(), holder).map_err(failed)?;
        given.push(candidate);
        store.set_last(index, candidate.address.addr());
    }
    if requested.is_empty() {
        return Ok(());
    }
    let rest: Vec<String> = requested.iter().map(ToString::to_string).collect();
    Err(refused(format!("failed to allocate all requested IPs: {}", rest.join(" "))))
}

fn choose(
    set: &RangeSet,
    wish: Option<IpAddr>,
    taken: &BTreeSet<IpAddr>,
    own: &[IpAddr],
    id: &str,
    last: impl FnOnce() -> Option<IpAddr>,
) -> Result<Candidate, Error> {
    if let Some(wish) = wish {
        let candidate = set.requested(wish)?;
        if taken.contains(&wish) {
            return Err(refused(format!("requested IP address {wish} is not available in range set {set}")));
        }
        return Ok(candidate);
    }
    if let Some(own) = own.iter().find(|own| set.contains(**own)) {
        return Err(refused(format!("{own} has been allocated to {id}, duplicate allocation is not allowed")));
    }
    let free = set.candidates(last()).find(|candidate| !taken.contains(&candidate.address.addr()));
    free.ok_or_else(|| refused(format!("no IP addresses available in range set: {set}")))
}

/// Takes back all that a container's interface has, in whichever range.
///
/// The directory is read even if the result of ADD came along: an ADD that was killed, or one for another configuration,
/// may have left more than that names.
fn del(dir: &Path, holder: Holder<'_>) -> Result<(), Error> {
    let Some(store) = Store::open(dir)? else { return Ok(()) };
    let own = store.leases_for(holder)?.into_iter().filter(|lease| holder.has(lease));
    // A file without an interface may be of another one, unless there is none that names ours.
    let (exact, old): (Vec<Lease>, Vec<Lease>) = own.partition(|lease| lease.text != holder.id);
    release(&store, if exact.is_empty() { &old } else { &exact })
}

fn release(store: &Store, leases: &[Lease]) -> Result<(), Error> {
    let failed: Vec<String> = leases.iter().filter_map(|lease| store.release(lease).err()).map(|e| e.msg).collect();
    if failed.is_empty() { Ok(()) } else { Err(refused(failed.join(";"))) }
}

fn check(wanted: &Wanted, dir: &Path, holder: Holder<'_>, previous: &Success) -> Result<(), Error> {
    let leases = match Store::open(dir)? {
        Some(store) => store.leases_for(holder)?,
        None => Vec::new(),
    };
    let own: BTreeSet<IpAddr> = leases.iter().filter(|lease| holder.has(lease)).map(|lease| lease.address).collect();
    if own.is_empty() {
        let msg = format!("host-local: Failed to find address added by container {}", holder.id);
        return Err(refused(msg));
    }
    let of_ours = previous.ips.iter().map(|ip| ip.address.addr());
    let mut of_ours = of_ours.filter(|address| wanted.sets.iter().any(|set| set.can_give(*address)));
    match of_ours.find(|address| !own.contains(address)) {
        None => Ok(()),
        Some(address) => {
            Err(Error::differs(format!("host-local: {address} is not allocated to container {}", holder.id)))
        }
    }
}

/// Takes back all that is not of who is listed, and what is nobody's.
fn gc(dir: &Path, valid: &[Attachment]) -> Result<(), Error> {
    let Some(store) = Store::open(dir)? else { return Ok(()) };
    let is_valid = |lease: &Lease| {
        valid.iter().any(|Attachment { container, ifname }| Holder { id: container, ifname }.has(lease))
    };
    let gone: Vec<Lease> = store.leases(|_| true)?.into_iter().filter(|lease| !is_valid(lease)).collect();
    for lease in &gone {
        tracing::info!(address = %lease.address, holder = ?lease.text, "is not listed: taking it back");
    }
    release(&store, &gone)
}

fn status(wanted: &Wanted, dir: &Path) -> Result<(), Error> {
    let taken = store::look(dir)?;
    for set in &wanted.sets {
        let given = taken.iter().filter(|address| set.can_give(**address)).count();
        if given as u128 >= set.size() {
            return Err(refused(format!("no IP addresses available in range set: {set}")));
        }
    }
    Ok(())
}
