//! Networks of Docker's that are one of ours which has a name of its own, as all hosts of a cluster know it.
//!
//! Docker's ids are random on each host, and it does not say what its network is called: so the user says which of ours it is
//! to be. A network of a swarm has an id of the swarm's: 25 letters and digits. Addresses are ours to give then: another host must not give them, and Docker does not know that there is one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use portolan_engine::{Engine, Error, Kernel, NetworkRequest, Store};
use portolan_model::{Driver, Id, Name, Network};

use super::network::{self, DRIVER};
use super::wire::{CreateNetwork, INTERNAL};
use super::{Done, told};
use crate::refusal::Refusal;

/// The option of `docker network create` that says which one.
const NETWORK: &str = "network";
/// How long what another host has just made may take to be here.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// What Docker asks for instead of a network of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    name: Name,
    /// It is to be one over several hosts, and is made if it is not there, with these options.
    overlay: Option<BTreeMap<String, String>>,
    internal: bool,
}

/// The network of ours that Docker's is to be, if it is to be one.
///
/// # Errors
/// What is malformed, and what would have addresses that somebody else gives.
pub(super) fn asked(asked: &CreateNetwork) -> Result<Option<Reference>, Refusal> {
    let mut options = network::generic(&asked.options)?;
    let driver = options.remove(DRIVER).map(|driver| driver.parse::<Driver>()).transpose()?;
    let is_overlay = driver == Some(Driver::Overlay);
    let Some(name) = options.remove(NETWORK) else {
        return match is_overlay {
            true => Err(Refusal::new(
                "driver `overlay`: all hosts are to know the network by a name, and Docker does not say what its own is \
                 called (hint: add -o network=NAME)",
            )),
            false => Ok(None),
        };
    };
    let name = name.parse::<Name>()?;
    if let Some(option) = driver.filter(|_| !is_overlay).map(|_| DRIVER).or(options.keys().next().map(String::as_str))
        && !is_overlay
    {
        let why = format!("option `{option}` is one of a new network, and `{name}` is there");
        return Err(Refusal::new(format!("{why} (hint: leave out `{option}` or `{NETWORK}`)")));
    }
    if let Some(pool) = network::pools(asked).next() {
        let why = format!("subnet {} is not one of network `{name}`, whose addresses Portolan gives", pool.pool);
        return Err(Refusal::new(format!("{why} (hint: use --ipam-driver null, without --subnet)")));
    }
    let internal = network::flag(&asked.options, INTERNAL).unwrap_or(false);
    Ok(Some(Reference { name, overlay: is_overlay.then_some(options), internal }))
}

/// Has Docker's network `theirs` be the one of ours that it asks for.
pub(super) fn refer<S: Store, K: Kernel>(engine: &Engine<S, K>, theirs: &str, asked: &Reference) -> Done {
    if !(1..=64).contains(&theirs.len()) || !theirs.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Refusal::new(format!("`{}` is no id of a network", theirs.escape_debug())));
    }
    let ours = find_or_make(engine, asked)?;
    check(&ours, asked)?;
    match engine.references()?.get(theirs) {
        None => engine.refer(theirs, ours.id)?,
        Some(known) if *known == ours.id => {}
        Some(_) => return Err(Refusal::new(format!("network {theirs} is another one already"))),
    }
    told(serde_json::json!({}))
}

fn find_or_make<S: Store, K: Kernel>(engine: &Engine<S, K>, asked: &Reference) -> Result<Network, Refusal> {
    let find = || match engine.network(asked.name.as_str()) {
        Ok(info) => Ok(Some(info.network)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(Refusal::from(error)),
    };
    if let Some(found) = find()? {
        return Ok(found);
    }
    let missing = match &asked.overlay {
        Some(options) => {
            let request = NetworkRequest {
                driver: Driver::Overlay,
                internal: asked.internal,
                options: options.clone(),
                ..NetworkRequest::new(asked.name.clone())
            };
            match engine.create_network(&request) {
                Ok(made) => return Ok(made),
                // Another host may have been faster.
                Err(error @ (Error::Cluster(_) | Error::NameTaken { .. })) => Refusal::from(error),
                Err(error) => return Err(error.into()),
            }
        }
        None => Refusal::new(format!(
            "network `{}` is not there (hint: make it with `portolan network create`, or add -o driver=overlay)",
            asked.name
        )),
    };
    let began = Instant::now();
    while engine.cluster_settings()?.is_some() && began.elapsed() < PATIENCE {
        if let Some(found) = find()? {
            return Ok(found);
        }
        std::thread::sleep(LOOK);
    }
    Err(missing)
}

/// Fails unless containers of Docker's can be on `ours`, and it is what was asked for.
fn check(ours: &Network, asked: &Reference) -> Result<(), Refusal> {
    let differs = |what: &str| {
        let hint = "hint: name another one, or ask for what it is";
        Err(Refusal::new(format!("network `{}` is there, and {what} ({hint})", ours.name)))
    };
    match &asked.overlay {
        Some(_) if ours.driver != Driver::Overlay => return differs("is one of this host alone"),
        Some(options) if *options != ours.raw_options => return differs("has other options"),
        _ => {}
    }
    if asked.internal && !ours.internal {
        return differs("is not internal");
    }
    if !ours.driver.holds_endpoints() || ours.transient || !ours.ipam.is_local() {
        return differs("is none that Docker's containers can be on: Portolan gives no addresses of it");
    }
    if ours.options.metric.is_some() {
        return Err(network::no_metric());
    }
    Ok(())
}

/// The id that we have for a network of Docker's, which is one of ours.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn ours<S: Store, K: Kernel>(engine: &Engine<S, K>, theirs: &str) -> Result<Option<Id>, Refusal> {
    Ok(engine.references()?.get(theirs).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Docker 20.10 asks for `docker network create -d portolan --ipam-driver null -o …`.
    fn read(options: &str, pool: &str) -> Result<Option<Reference>, Refusal> {
        let id = "0123456789abcdef".repeat(4);
        let text = format!(
            r#"{{"NetworkID":"{id}","Options":{{"com.docker.network.enable_ipv6":false,
            "com.docker.network.generic":{{{options}}}}},
            "IPv4Data":[{{"AddressSpace":"null","Pool":"{pool}","Gateway":"0.0.0.0/0"}}],"IPv6Data":[]}}"#
        );
        asked(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn which_network_is_meant() {
        assert_eq!(read("", "10.0.0.0/24").unwrap(), None);
        assert_eq!(read(r#""driver":"ptp""#, "10.0.0.0/24").unwrap(), None);
        let web = Reference { name: "web".parse().unwrap(), overlay: None, internal: false };
        assert_eq!(read(r#""network":"web""#, "0.0.0.0/0").unwrap(), Some(web.clone()));
        let options = BTreeMap::from([("mtu".to_owned(), "1300".to_owned())]);
        let made = read(r#""network":"web","driver":"overlay","mtu":"1300""#, "0.0.0.0/0").unwrap();
        assert_eq!(made, Some(Reference { overlay: Some(options), ..web }));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (options, pool, why) in [
            (r#""driver":"overlay""#, "0.0.0.0/0", "-o network=NAME"),
            (r#""network":"web""#, "172.18.0.0/16", "--ipam-driver null"),
            (r#""network":"web","mtu":"1300""#, "0.0.0.0/0", "leave out `mtu`"),
            (r#""network":"web","driver":"ptp""#, "0.0.0.0/0", "leave out `driver`"),
            (r#""network":"a b""#, "0.0.0.0/0", "a b"),
        ] {
            let refusal = read(options, pool).unwrap_err().to_string();
            assert!(refusal.contains(why), "{refusal}");
        }
    }
}
