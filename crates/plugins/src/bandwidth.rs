//! The plugin `bandwidth`: limits what passes a veth, as tc-tbf(8) does.
//!
//! Into the container it is what the host's end sends by. What comes out is led through an interface of its own, `bwp…`,
//! which is found again by its name alone.

use portolan_cni::{Bandwidth, Call, Code, Config, Error, Interface, Success, Verb};
use portolan_kernel::netlink::{Batch, NetlinkError, ROUTE, Socket};
use portolan_kernel::rtnl::link::{self, Link, LinkChange};
use portolan_kernel::rtnl::tc::{self, Bucket};
use sha2::{Digest as _, Sha512};

use crate::Answer;
use crate::chain::{previous, validity};
use crate::inside::inside;
use crate::nat::failed;

/// What an interface that is led through says of itself: whose it is, for GC.
const ALIAS: &str = "cni-bandwidth";

/// Bytes wait for as long as this at the full rate, in parts of a second: 25 ms, as the original has it.
const LATENCY: u64 = 40;

pub(crate) fn run(call: &Call, config: &Config) -> Answer {
    match call.verb {
        Verb::Add => {
            let Some(limits) = Limits::of(config)? else {
                return Ok(Some((config.previous()?.unwrap_or_default(), config.version())));
            };
            let mut previous = previous(config, "must be called as chained plugin")?;
            let added = add(call, config, &limits, &previous).inspect_err(|_| {
                let _ = remove(&ifb_name(&config.name, &call.container));
            })?;
            previous.interfaces.extend(added);
            Ok(Some((previous, config.version())))
        }
        Verb::Check => {
            let previous = previous(config, "must be called as a chained plugin")?;
            match Limits::of(config)? {
                Some(limits) => check(call, config, &limits, &previous).map(|()| None),
                None => Ok(None),
            }
        }
        // The bucket at the host's end goes with it.
        Verb::Del => remove(&ifb_name(&config.name, &call.container)).map(|()| None),
        Verb::Gc => collect(config).map(|()| None),
        Verb::Status => Limits::of(config).map(|_| None),
        Verb::Version => Ok(None),
    }
}

/// What is to be limited.
#[derive(Debug, PartialEq, Eq)]
struct Limits {
    into: Option<Bucket>,
    out: Option<Bucket>,
}

impl Limits {
    /// What a configuration says, if anything.
    fn of(config: &Config) -> Result<Option<Self>, Error> {
        let Some(wanted) = config.bandwidth() else { return Ok(None) };
        Self::of_wanted(wanted)
    }

    fn of_wanted(wanted: &Bandwidth) -> Result<Option<Self>, Error> {
        if !wanted.shaped.is_empty() || !wanted.unshaped.is_empty() {
            let both = !wanted.shaped.is_empty() && !wanted.unshaped.is_empty();
            let msg = match both {
                true => "unshapedSubnets and shapedSubnets cannot be both specified, one of them should be discarded",
                false => "shapedSubnets and unshapedSubnets are not supported",
            };
            let code = if both { Code::InvalidConfig } else { Code::Unsupported };
            return Err(Error::new(code, msg).details("a limit holds for all that passes an interface"));
        }
        let limits = Self {
            into: bucket(wanted.ingress_rate, wanted.ingress_burst)?,
            out: bucket(wanted.egress_rate, wanted.egress_burst)?,
        };
        Ok((limits.into.is_some() || limits.out.is_some()).then_some(limits))
    }
}

/// A bucket of bits, in bytes.
fn bucket(rate: Option<u64>, burst: Option<u64>) -> Result<Option<Bucket>, Error> {
    let refuse = |msg: &str| Err(Error::new(Code::InvalidConfig, msg));
    let (rate, burst) = match (rate.unwrap_or(0), burst.unwrap_or(0)) {
        (0, 0) => return Ok(None),
        (_, 0) => return refuse("if rate is set, burst must also be set"),
        (0, _) => return refuse("if burst is set, rate must also be set"),
        (rate, burst) => (rate / 8, burst / 8),
    };
    let Ok(burst) = u32::try_from(burst) else { return refuse("burst cannot be more than 4GB") };
    if burst == u32::MAX {
        return refuse("burst cannot be more than 4GB");
    }
    if rate == 0 {
        return Err(Error::new(Code::InvalidConfig, "a rate below 8 bits per second lets nothing pass"));
    }
    let limit = (rate / LATENCY).saturating_add(burst.into());
    // The kernel keeps a burst as the time that it takes, in 32 bits of 64 ns: more is endless.
    let longest = u128::from(rate) * u128::from(u32::MAX) * 64 / 1_000_000_000;
    let burst = u32::try_from(longest.min(burst.into())).unwrap_or(burst).max(1);
    Ok(Some(Bucket { rate, burst, limit: u32::try_from(limit).unwrap_or(u32::MAX) }))
}

/// `bwp` and what fits of the hash, as the original.
fn ifb_name(network: &str, container: &str) -> String {
    let hash = Sha512::digest(format!("{network}{container}"));
    let hex: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("bwp{hex}")
}

fn open() -> Result<Socket, Error> {
    Socket::open(ROUTE).map_err(|error| failed("open a socket", &error))
}

/// The host's end of the container's interface.
fn host_end(call: &Call, socket: &mut Socket, previous: &Success) -> Result<Link, Error> {
    let refuse = |msg: String| Error::new(Code::InvalidConfig, msg);
    if previous.interfaces.is_empty() {
        return Err(refuse("no interfaces provided".to_owned()));
    }
    let there = inside(call, "find the veth", |socket| link::lookup(socket, call.ifname.as_str()))?;
    let peer = there.filter(|link| link.kind.as_deref() == Some("veth")).and_then(|link| link.link);
    let peer = peer.ok_or_else(|| refuse(format!("container interface {} has no veth peer", call.ifname)))?;
    let links = link::dump(socket).map_err(|error| failed("list interfaces", &error))?;
    let end = links.into_iter().find(|link| link.index == peer);
    let end = end.ok_or_else(|| refuse(format!("veth peer with index {peer} is not in host ns")))?;
    let is_listed = previous.interfaces.iter().any(|listed| listed.sandbox.is_empty() && listed.name == end.name);
    is_listed.then_some(end).ok_or_else(|| refuse("no veth peer of container interface found in host ns".to_owned()))
}

/// Puts limits in force; the interface that packets are led through, if there is one.
fn add(call: &Call, config: &Config, limits: &Limits, previous: &Success) -> Result<Option<Interface>, Error> {
    let mut socket = open()?;
    let end = host_end(call, &mut socket, previous)?;
    if let Some(bucket) = &limits.into {
        let mut batch = Batch::new();
        tc::replace_bucket(&mut batch, end.index, bucket);
        socket.transact(&batch).map_err(|error| lacking("create qdisc", &error))?;
    }
    let Some(bucket) = &limits.out else { return Ok(None) };
    let name = ifb_name(&config.name, &call.container);
    let aside = make_aside(&mut socket, call, config, &name, &end)?;
    let mut batch = Batch::new();
    tc::replace_bucket(&mut batch, aside.index, bucket);
    socket.transact(&batch).map_err(|error| lacking("create ifb qdisc", &error))?;
    let there = tc::ingress(&mut socket, end.index).map_err(|error| failed("list filters", &error))?;
    if there.to != Some(aside.index) {
        let mut batch = Batch::new();
        let before = tc::lead_on(&mut batch, end.index);
        let qdisc = tc::create_ingress(&mut batch, end.index);
        tc::lead_aside(&mut batch, end.index, aside.index);
        let outcome = socket.transact_each(&batch).map_err(|error| failed("add filter", &error))?;
        let is_fine =
            |error: &NetlinkError| error.index() == Some(before) || (error.index() == Some(qdisc) && error.is_exists());
        if let Some(error) = outcome.errors.iter().find(|error| !is_fine(error)) {
            return Err(lacking("add filter", error));
        }
    }
    let mac = aside.mac.map_or_else(String::new, |mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    Ok(Some(Interface { name, mac, ..Interface::default() }))
}

fn make_aside(socket: &mut Socket, call: &Call, config: &Config, name: &str, end: &Link) -> Result<Link, Error> {
    let find = |socket: &mut Socket| link::lookup(socket, name).map_err(|error| failed("find the ifb", &error));
    if find(socket)?.is_none() {
        let mut batch = Batch::new();
        link::create_ifb(&mut batch, name);
        socket.transact(&batch).map_err(|error| lacking("adding link", &error))?;
    }
    let alias = format!("{ALIAS} {} {} {}", config.name, call.container, call.ifname);
    let mut batch = Batch::new();
    let change = LinkChange {
        up: Some(true),
        mtu: Some(end.mtu),
        alias: Some(&alias[..alias.len().min(255)]),
        ..LinkChange::default()
    };
    link::set(&mut batch, name, &change);
    socket.transact(&batch).map_err(|error| failed("bring the ifb up", &error))?;
    find(socket)?.ok_or_else(|| Error::new(Code::TryAgain, format!("interface `{name}` is gone again")))
}

fn check(call: &Call, config: &Config, limits: &Limits, previous: &Success) -> Result<(), Error> {
    let mut socket = open()?;
    let end = host_end(call, &mut socket, previous)?;
    let mut holds = |index: u32, name: &str, wanted: &Bucket| match tc::bucket(&mut socket, index)
        .map_err(|error| failed("find the qdisc", &error))?
    {
        None => Err(Error::differs(format!("Failed to find qdisc of `{name}`"))),
        Some(found) if !found.is(wanted) => Err(Error::differs(format!(
            "Rate doesn't match: `{name}` has {} bytes per second and a burst of {}, not {} and {}",
            found.rate, found.burst, wanted.rate, wanted.burst
        ))),
        Some(_) => Ok(()),
    };
    if let Some(bucket) = &limits.into {
        holds(end.index, &end.name, bucket)?;
    }
    let Some(bucket) = &limits.out else { return Ok(()) };
    let name = ifb_name(&config.name, &call.container);
    let aside = link::lookup(&mut open()?, name.as_str()).map_err(|error| failed("find the ifb", &error))?;
    let aside = aside.ok_or_else(|| Error::differs(format!("get ifb device: there is no `{name}`")))?;
    holds(aside.index, &name, bucket)?;
    let there = tc::ingress(&mut open()?, end.index).map_err(|error| failed("list filters", &error))?;
    match there.to == Some(aside.index) {
        true => Ok(()),
        false => Err(Error::differs(format!("what comes out of the container is not led through `{name}`"))),
    }
}

fn remove(name: &str) -> Result<(), Error> {
    let mut batch = Batch::new();
    link::delete(&mut batch, name);
    match open()?.transact(&batch) {
        Err(error) if !error.is_missing() => Err(failed("remove the ifb", &error)),
        _ => Ok(()),
    }
}

/// Those that ours made say whose they are; of one that the original made only the name of a valid one is known.
fn collect(config: &Config) -> Result<(), Error> {
    let is_valid = validity(config)?;
    let links = link::dump(&mut open()?).map_err(|error| failed("list interfaces", &error))?;
    for link in links.iter().filter(|link| link.kind.as_deref() == Some("ifb")) {
        let alias = link.alias.as_deref().unwrap_or_default();
        let words: Vec<&str> = alias.split(' ').collect();
        if let [ALIAS, network, container, ifname] = words[..]
            && network == config.name
            && !is_valid(container, ifname)
        {
            remove(&link.name)?;
        }
    }
    Ok(())
}

/// What the kernel cannot do it calls unknown where a qdisc, a filter or an action is asked for.
fn lacking(doing: &str, error: &NetlinkError) -> Error {
    let error = failed(doing, error);
    error
        .details("limits take the kernel modules sch_tbf; out of containers also ifb, sch_ingress, cls_u32, act_mirred")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_originals() {
        // utils.MustFormatHashWithPrefix(15, "bwp", "web" + "c1"): sha512, hexadecimal.
        let name = ifb_name("web", "c1");
        assert_eq!((name.len(), &name[..3]), (15, "bwp"));
    }

    #[test]
    fn rates_need_bursts() {
        let of = |rate: u64, burst: u64| bucket(Some(rate), Some(burst));
        assert_eq!(bucket(None, Some(0)).unwrap(), None);
        assert_eq!(
            of(80_000_000, 800_000).unwrap().unwrap(),
            Bucket { rate: 10_000_000, burst: 100_000, limit: 350_000 }
        );
        for (rate, burst, msg) in [
            (1, 0, "if rate is set, burst must also be set"),
            (0, 1, "if burst is set, rate must also be set"),
            (80, 8 << 32, "burst cannot be more than 4GB"),
            (7, 80, "a rate below 8 bits per second lets nothing pass"),
        ] {
            assert_eq!(of(rate, burst).unwrap_err().msg, msg);
        }
        // What containerd asks for when no burst is wanted.
        assert_eq!(of(80_000_000, u32::MAX.into()).unwrap().unwrap().burst, u32::MAX / 8);
        let shaped = Bandwidth { shaped: vec!["10.0.0.0/8".into()], ..Bandwidth::default() };
        assert_eq!(Limits::of_wanted(&shaped).unwrap_err().code, Code::Unsupported);
    }
}
