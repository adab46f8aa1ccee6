//! The plugin `firewall`: lets a container's packets pass whatever else filters on the host.
//!
//! No table of ours can do that: what any other chain drops is gone. So it writes where the original does, into
//! iptables(8) or firewalld(1), and always: a policy that drops may come later, and the administrator's chain is promised.

mod chains;

use std::net::IpAddr;

use portolan_cni::{Call, Code, Config, Error, Success, Verb, read};
use portolan_engine::{KernelError, Kind};
use portolan_firewalld::Firewalld;
use portolan_kernel::iptables::{families, restore, save};
use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::rtnl::link;
use portolan_model::Family;
use serde::Deserialize;

use crate::Answer;
use crate::chain::{previous, validity};
use crate::nat::failed;
use crate::table::Owner;
use chains::{Batch, Filter, Policy};

/// How often somebody else may be faster.
const TRIES: usize = 20;

const MISSING: &str = "missing prevResult from earlier plugin";

#[derive(Debug, Default, Deserialize)]
struct Options {
    #[serde(default)]
    backend: String,
    #[serde(default, rename = "iptablesadminchainname")]
    admin: String,
    #[serde(default, rename = "firewalldzone")]
    zone: String,
    #[serde(default, rename = "ingresspolicy")]
    policy: String,
}

impl Options {
    fn admin(&self) -> Result<&str, Error> {
        let name = if self.admin.is_empty() { "CNI-ADMIN" } else { &self.admin };
        // What is no name of a chain would be words of a rule.
        let is_name = name.len() <= 28 && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '!'));
        match is_name && !name.starts_with('-') {
            true => Ok(name),
            false => Err(Error::new(Code::InvalidConfig, format!("invalid iptablesAdminChainName {name:?}"))),
        }
    }

    fn zone(&self) -> &str {
        if self.zone.is_empty() { "trusted" } else { &self.zone }
    }

    fn policy(&self) -> Result<Policy, Error> {
        match self.policy.as_str() {
            "" | "open" => Ok(Policy::Open),
            "same-bridge" => Ok(Policy::SameBridge),
            "isolated" => Ok(Policy::Isolated),
            other => Err(Error::new(Code::InvalidConfig, format!("unknown ingress policy: {other:?}"))),
        }
    }

    /// firewalld, if it is what the configuration asks for, or what runs.
    fn firewalld(&self) -> Result<Option<Firewalld>, Error> {
        match self.backend.as_str() {
            "iptables" => Ok(None),
            "firewalld" => {
                let not_available = |error: Error| {
                    Error { code: Code::NotAvailable, ..error }.details("start it, or choose backend `iptables`")
                };
                let found = Firewalld::connect().map_err(|error| not_available(refused(&error)))?;
                let lack = || not_available(Error::new(Code::NotAvailable, "no firewalld runs"));
                found.map(Some).ok_or_else(lack)
            }
            _ => Ok(Firewalld::connect().unwrap_or_default()),
        }
    }
}

/// What an ADD or CHECK is about.
struct Wanted {
    addresses: Vec<IpAddr>,
    policy: Policy,
    bridge: String,
}

impl Wanted {
    fn of(options: &Options, previous: &Success) -> Result<Self, Error> {
        let policy = options.policy()?;
        let bridge = previous.interfaces.first().map(|interface| interface.name.clone()).unwrap_or_default();
        if policy != Policy::Open && bridge.is_empty() {
            let msg = format!(
                "interface needs to be set for ingress policy {:?}, make sure to chain \"firewall\" plugin with \"bridge\"",
                options.policy
            );
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        Ok(Self { addresses: addresses(previous), policy, bridge })
    }

    fn of_family(&self, family: Family) -> Vec<IpAddr> {
        of_family(&self.addresses, family)
    }
}

fn addresses(previous: &Success) -> Vec<IpAddr> {
    previous.ips.iter().map(|ip| ip.address.addr()).collect()
}

fn of_family(addresses: &[IpAddr], family: Family) -> Vec<IpAddr> {
    addresses.iter().copied().filter(|address| Family::of(*address) == family).collect()
}

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    match call.verb {
        Verb::Add => {
            let options: Options = read(text)?;
            let previous = previous(config, MISSING)?;
            let wanted = Wanted::of(&options, &previous)?;
            let owner = Owner::of(call, &config.name);
            add(&options, owner, &wanted).inspect_err(|_| {
                let _ = del(&options, owner, Some(&previous));
            })?;
            Ok(Some((previous, config.version())))
        }
        Verb::Check => {
            let options: Options = read(text)?;
            let wanted = Wanted::of(&options, &previous(config, MISSING)?)?;
            check(&options, &wanted).map(|()| None)
        }
        Verb::Del => {
            // Whatever became of the configuration since.
            let options = read(text).unwrap_or_default();
            let previous = config.previous().ok().flatten();
            del(&options, Owner::of(call, &config.name), previous.as_ref()).map(|()| None)
        }
        Verb::Gc => {
            let is_valid = validity(config)?;
            let is_gone = |owner: Owner<'_>| owner.network == config.name && !is_valid(owner.container, owner.ifname);
            close(&[], &is_gone)?;
            release(&[]).map(|()| None)
        }
        Verb::Status => {
            let options: Options = read(text)?;
            options.policy()?;
            options.admin()?;
            if options.firewalld()?.is_none() {
                let lack = |error| Error { code: Code::NotAvailable, ..internal(&error) };
                families().try_for_each(|family| save(family).map(drop)).map_err(lack)?;
            }
            Ok(None)
        }
        Verb::Version => Ok(None),
    }
}

fn add(options: &Options, owner: Owner<'_>, wanted: &Wanted) -> Result<(), Error> {
    let (owner, admin) = (owner.text()?, options.admin()?);
    let firewalld = options.firewalld()?;
    if let Some(firewalld) = &firewalld {
        for address in &wanted.addresses {
            firewalld.add_source(options.zone(), &source(*address)).map_err(|error| refused(&error))?;
        }
    }
    // As the original: a policy is iptables' whatever the backend.
    if firewalld.is_some() && wanted.policy == Policy::Open {
        return Ok(());
    }
    let concerned = Family::ALL.into_iter().filter(|family| !wanted.of_family(*family).is_empty());
    let written = each_of(concerned, |family, filter| {
        let mut batch = Batch::default();
        if firewalld.is_none() {
            batch.open(filter, admin, &owner, &wanted.of_family(family));
        }
        batch.isolate(filter, &wanted.bridge, wanted.policy);
        batch
    });
    Ok(written?)
}

fn check(options: &Options, wanted: &Wanted) -> Result<(), Error> {
    if let Some(firewalld) = options.firewalld()? {
        for address in &wanted.addresses {
            let source = source(*address);
            if !firewalld.has_source(options.zone(), &source).map_err(|error| refused(&error))? {
                let msg = format!("failed to find the address {source} in {} zone", options.zone());
                return Err(Error::differs(msg));
            }
        }
        return Ok(());
    }
    for family in families() {
        let addresses = wanted.of_family(family);
        if addresses.is_empty() {
            continue;
        }
        let filter = Filter::parse(&save(family).map_err(|error| internal(&error))?);
        let bridge = Some((wanted.bridge.as_str(), wanted.policy));
        if let Some(rule) = chains::missing(&filter, options.admin()?, &addresses, bridge) {
            return Err(Error::differs(format!("expected rule `{rule}` not found")));
        }
    }
    Ok(())
}

fn del(options: &Options, mine: Owner<'_>, previous: Option<&Success>) -> Result<(), Error> {
    let addresses = previous.map(addresses).unwrap_or_default();
    if options.backend != "iptables"
        && let Ok(Some(firewalld)) = Firewalld::connect()
    {
        for address in &addresses {
            firewalld.remove_source(options.zone(), &source(*address)).map_err(|error| refused(&error))?;
        }
    }
    close(&addresses, &|owner| owner == mine)?;
    // Its own end is there until the plugin that made it is called.
    let on_host = previous.iter().flat_map(|previous| &previous.interfaces);
    let ends: Vec<&str> =
        on_host.filter(|interface| interface.sandbox.is_empty()).map(|interface| interface.name.as_str()).collect();
    release(&ends)
}

fn close(addresses: &[IpAddr], is_gone: &dyn Fn(Owner<'_>) -> bool) -> Result<(), Error> {
    forgiving(each(|family, filter| {
        let mut batch = Batch::default();
        batch.close(filter, &of_family(addresses, family), is_gone);
        batch
    }))
}

/// Takes policies off bridges that nobody is on, but for the interfaces `ends`. Somebody may come while this looks: then it
/// puts the policy back, for who comes is on the bridge before he asks for a policy.
fn release(ends: &[&str]) -> Result<(), Error> {
    for family in families() {
        let Ok(text) = save(family) else { continue };
        let filter = Filter::parse(&text);
        let deserted: Vec<String> = deserted(filter.bridges(), ends)?;
        if deserted.is_empty() {
            continue;
        }
        forgiving(each_of([family], |_, filter| {
            let mut batch = Batch::default();
            batch.release(filter, &deserted);
            batch
        }))?;
        let still: Vec<String> = self::deserted(deserted.clone(), ends)?;
        let back: Vec<&String> = deserted.iter().filter(|bridge| !still.contains(bridge)).collect();
        each_of([family], |_, now| {
            let mut batch = Batch::default();
            for bridge in &back {
                batch.isolate(now, bridge, filter.policy(bridge));
            }
            batch
        })?;
    }
    Ok(())
}

/// Those of `bridges` that have no port, or are gone.
fn deserted(mut bridges: Vec<String>, ends: &[&str]) -> Result<Vec<String>, Error> {
    if bridges.is_empty() {
        return Ok(bridges);
    }
    let links = Socket::open(ROUTE).and_then(|mut socket| link::dump(&mut socket));
    let links = links.map_err(|error| failed("list interfaces", &error))?;
    let index = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.index);
    bridges.retain(|bridge| {
        let index = index(bridge);
        !links.iter().any(|link| index.is_some() && link.master == index && !ends.contains(&link.name.as_str()))
    });
    Ok(bridges)
}

/// Gives each family what `batch` makes of what it has; again, if somebody was faster.
fn each(batch: impl Fn(Family, &Filter) -> Batch) -> Result<(), Refused> {
    each_of(families(), batch)
}

/// What iptables said.
struct Refused(KernelError);

impl From<Refused> for Error {
    fn from(error: Refused) -> Self {
        internal(&error.0)
    }
}

fn each_of(
    families: impl IntoIterator<Item = Family>,
    batch: impl Fn(Family, &Filter) -> Batch,
) -> Result<(), Refused> {
    for family in families {
        let mut tries = 0;
        loop {
            let filter = Filter::parse(&save(family).map_err(Refused)?);
            let Some(text) = batch(family, &filter).text() else { break };
            match restore(family, &text) {
                Ok(()) => break,
                // What was read is not so any more.
                Err(_) if tries < TRIES => tries += 1,
                Err(error) => return Err(Refused(error)),
            }
        }
    }
    Ok(())
}

/// Where there is no iptables, nothing of it is left.
fn forgiving(result: Result<(), Refused>) -> Result<(), Error> {
    match result {
        Err(error) if error.0.kind == Kind::Unsupported => Ok(()),
        result => Ok(result?),
    }
}

fn source(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn internal(error: &KernelError) -> Error {
    let code = match error.kind {
        Kind::Unsupported => Code::NotAvailable,
        Kind::Transient => Code::TryAgain,
        _ => Code::Internal,
    };
    Error::new(code, format!("{}: {}", error.doing, error.reason))
}

fn refused(error: &portolan_firewalld::Error) -> Error {
    let mut msg = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        msg = format!("{msg}: {error}");
        cause = error.source();
    }
    Error::new(Code::Internal, msg)
}
