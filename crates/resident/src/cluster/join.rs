//! Joining and leaving, as commands do it: this host's rows say so first, so that what is begun can be ended.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_cluster::{ClusterRecord, FORMAT, HostRecord, Layout, Part, Reach, SealRecord, View, Write};
use portolan_engine::Kernel as _;
use portolan_etcd::Client;
use portolan_model::{Id, Mac, Mtu, Name, PerFamily};
use portolan_wireguard::{PrivateKey, Secret};

use super::{Membership, VERSION, edge, follow, keys, own_addresses, runtime, seal};
use crate::daemon::Engine;

/// So much of an id tells which host is meant.
const SHORTEST: usize = 4;

/// A host that is to join a cluster.
#[derive(Debug, Clone)]
pub struct Joining {
    /// Where etcd is, and how to get in.
    pub etcd: portolan_etcd::Config,
    /// What all keys of the cluster begin with.
    pub prefix: String,
    /// What the host is to be called.
    pub name: Name,
    /// Where it takes packets of the others.
    pub underlay: PerFamily<Option<IpAddr>>,
    /// Whether somebody named those; otherwise they are to be followed.
    pub is_given: bool,
    /// Whether they come to it by themselves.
    pub reach: Reach,
    /// The MTU of its way to them.
    pub mtu: Mtu,
    /// The UDP port at which it takes encrypted packets; every second round of keys is at the one after it.
    pub wireguard_port: u16,
    /// What hosts have in common that can be on the encrypted link with each other, if anything.
    pub secret: Option<Secret>,
    /// After what time it has keys of the encrypted link change by itself.
    pub rotate_after: Option<Duration>,
    /// The cluster that is to begin with this host; none to join the one that is there.
    pub begin: Option<ClusterRecord>,
}

/// Why a host cannot join, or another not be removed, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct CannotJoin {
    /// Why.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

fn cannot(reason: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    CannotJoin { reason: reason.into(), hint: hint.into() }.into()
}

/// What this host knows of its cluster; none if it is in none.
///
/// # Errors
/// When the state cannot be read, or says something else.
pub fn membership(engine: &Engine) -> Result<Option<Membership>> {
    let Some(text) = engine.cluster_settings()? else { return Ok(None) };
    Ok(Some(serde_json::from_str(&text).context("read what this host knows of its cluster")?))
}

/// Has this host be one of the cluster, or begins one with it; the cluster's id.
///
/// # Errors
/// [`CannotJoin`]; what etcd says. Nothing has changed here then.
pub fn join(engine: &Engine, joining: &Joining) -> Result<Id> {
    if let Some(membership) = membership(engine)? {
        return Err(cannot(
            format!("this host is in cluster {} already", membership.cluster.short()),
            "`portolan cluster leave` takes it out",
        ));
    }
    let layout = Layout::new(&joining.prefix)?;
    runtime()?.block_on(async {
        let client = Client::connect(&joining.etcd).await?;
        if let Some(cluster) = &joining.begin
            && !client.txn(edge::transaction(&layout, &Write::begin(cluster), None)).await?.succeeded
        {
            return Err(cannot(
                format!("there is a cluster under `{}` already", joining.prefix),
                "`portolan cluster join` makes this host one of it; --prefix begins another beside it",
            ));
        }
        let view = glance(&client, &layout).await?;
        let Some(cluster) = view.cluster().map(|cluster| cluster.id) else {
            return Err(cannot(
                format!("there is no cluster under `{}`", joining.prefix),
                "`portolan cluster init` begins one with its first host",
            ));
        };
        if let Some(format) = view.newer_format() {
            return Err(cannot(
                format!("the cluster has format {format}, and this version knows {FORMAT}"),
                "use the version that the other hosts have",
            ));
        }
        let me = Id::from_bytes(engine.kernel().random());
        let mac = engine.kernel().random();
        let round = view.hosts().values().filter_map(|record| record.seal.as_ref()).map(SealRecord::newest).max();
        let secret = joining.secret.as_ref().map(|secret| secret.fingerprint(&cluster.to_string()));
        let (private_key, seal) = draw_seal(engine, joining.wireguard_port, round.unwrap_or(0), secret);
        let record = HostRecord {
            name: joining.name.clone(),
            underlay: joining.underlay,
            lan: PerFamily::default(),
            mac: Mac::local(mac[..6].try_into().expect("six of 32 bytes")),
            mtu: joining.mtu,
            answers: answers(engine, seal.as_ref()),
            translates: translates(engine, seal.as_ref()),
            seal,
            reach: joining.reach,
            version: VERSION.to_owned(),
        };
        // The LANs, which need not be made known a moment later then.
        let (record, _) = follow(&record, joining.is_given, &own_addresses()?);
        refuse_double(&view, &record)?;
        let membership = Membership {
            cluster,
            host: me,
            record: record.clone(),
            is_given: joining.is_given,
            private_key,
            next_private_key: String::new(),
            secret: joining.secret.as_ref().map(Secret::to_base64),
            drawn: keys::now(),
            rotate_after: joining.rotate_after.map(|age| age.as_secs()),
            prefix: joining.prefix.clone(),
            etcd: joining.etcd.clone(),
            leaving: false,
            run: String::new(),
            last_runs: Vec::new(),
        };
        remember(engine, &membership)?;
        let written = client.txn(edge::transaction(&layout, &Write::join(me, &record), None)).await;
        let failure = match written {
            Ok(answer) if answer.succeeded => return Ok(cluster),
            Ok(_) => match glance(&client, &layout).await.and_then(|view| refuse_double(&view, &record)) {
                Ok(()) => cannot("another host joined at the same time", "try again"),
                Err(error) => error,
            },
            Err(error) => error.into(),
        };
        forget(engine)?;
        Err(failure)
    })
}

/// A key of its own for this host, of the round that others are at, and where it is on the encrypted link; none where there is no IPv6.
fn draw_seal(engine: &Engine, port: u16, round: u64, secret: Option<String>) -> (String, Option<SealRecord>) {
    if engine.kernel().setting("net/ipv6/conf/all/forwarding").is_none() {
        return (String::new(), None);
    }
    let private = PrivateKey::random();
    let random = engine.kernel().random();
    let number = u128::from_be_bytes(random[..16].try_into().expect("sixteen of 32 bytes"));
    let address = SealRecord::address_of(number);
    let first = SealRecord { key: String::new(), port, address, round: 0, next: None, moved: 0, secret };
    (private.to_base64(), Some(first.anew(private.public().to_base64(), round)))
}

/// Whether this host's ends of tunnels can answer others: where IPv6 is switched off for what interfaces come, it is left so.
pub(super) fn answers(engine: &Engine, seal: Option<&SealRecord>) -> bool {
    seal.is_some() && engine.kernel().setting("net/ipv6/conf/default/disable_ipv6").is_some_and(|value| value == "0")
}

/// Whether this host can take packets on the encrypted link without a tunnel: by a program, and in a prefix of its own.
pub(super) fn translates(engine: &Engine, seal: Option<&SealRecord>) -> bool {
    seal.is_some_and(SealRecord::has_prefix) && engine.kernel().runs_programs().unwrap_or_default()
}

pub(super) fn remember(engine: &Engine, membership: &Membership) -> Result<()> {
    let text = serde_json::to_string(membership).expect("plain values serialise");
    Ok(engine.set_cluster_settings(Some(&text))?)
}

/// Writes down what this host is now, unless it leaves, or has left, meanwhile: whether it was written.
pub(super) fn change(engine: &Engine, membership: &Membership) -> Result<bool> {
    let text = serde_json::to_string(membership).expect("plain values serialise");
    Ok(engine.change_cluster_settings(|before| {
        let before: Membership = serde_json::from_str(before).ok()?;
        (before.host == membership.host && !before.leaving).then_some(text)
    })?)
}

/// Has etcd know this host no more, and this host be in no cluster. The daemon has let go of etcd by then, for the row says that
/// it leaves ([`leaving`]).
///
/// # Errors
/// What etcd says; this host leaves still.
pub fn leave(engine: &Engine, membership: &Membership) -> Result<()> {
    let layout = Layout::new(&membership.prefix)?;
    runtime()?.block_on(async {
        let client = Client::connect(&membership.etcd).await?;
        let view = edge::look(&client, &layout, membership.host, &BTreeSet::new()).await?;
        // What is there may be another cluster, in which this host has nothing.
        for write in Write::leave(membership.host, &view) {
            client.txn(edge::transaction(&layout, &write, None)).await?;
        }
        anyhow::Ok(())
    })?;
    forget(engine)
}

/// Writes down that this host leaves, or stays after all.
///
/// # Errors
/// When the state cannot be written.
pub fn leaving(engine: &Engine, membership: &Membership, leaving: bool) -> Result<()> {
    remember(engine, &Membership { leaving, ..membership.clone() })
}

/// Has this host be in no cluster, whatever etcd says.
///
/// # Errors
/// When containers are on networks of the cluster, or the state cannot be written.
pub fn forget(engine: &Engine) -> Result<()> {
    engine.forget_cluster()?;
    seal::remove(&engine.seal_name())
}

/// Has a host that does not run be none of the cluster's any more, and what it has be free for others. Its id; one that is called
/// so, or whose id begins so.
///
/// # Errors
/// [`CannotJoin`] where there is no such host, or it runs; what etcd says. What is begun then is ended by another call.
pub fn remove_host(membership: &Membership, which: &str) -> Result<Id> {
    let layout = Layout::new(&membership.prefix)?;
    let runs = |name: &str| {
        cannot(format!("host `{name}` runs"), "`portolan cluster leave` there takes it out, when no container needs it")
    };
    runtime()?.block_on(async {
        let client = Client::connect(&membership.etcd).await?;
        let view = glance(&client, &layout).await?;
        let is_it = |id: &Id, record: &HostRecord| {
            record.name.as_str() == which || (which.len() >= SHORTEST && id.to_string().starts_with(which))
        };
        let mut found = view.hosts().iter().filter(|(id, record)| is_it(id, record));
        let (host, name) = match (found.next(), found.next()) {
            (Some((id, record)), None) => (*id, record.name.to_string()),
            (None, _) => {
                return Err(cannot(
                    format!("no host of the cluster is called `{which}`"),
                    "`portolan cluster nodes` lists them",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(cannot(format!("`{which}` is several hosts"), "give the name of one, or more of its id"));
            }
        };
        if host == membership.host {
            return Err(cannot(format!("host `{name}` is this one"), "`portolan cluster leave` takes it out"));
        }
        if !view.is_gone(host) {
            let write = edge::transaction(&layout, &Write::remove_host(host), None);
            if !client.txn(write).await?.succeeded {
                return Err(runs(&name));
            }
        }
        // It can write nothing since: this is all that it has.
        let view = edge::look(&client, &layout, host, &BTreeSet::new()).await?;
        for write in Write::leave(host, &view) {
            client.txn(edge::transaction(&layout, &write, None)).await?;
        }
        Ok(host)
    })
}

/// What all hosts share now.
async fn glance(client: &Client, layout: &Layout) -> Result<View> {
    let (revision, all) = edge::list(client, layout, Part::All, 0).await?;
    Ok(View::of(layout, revision, all))
}

fn refuse_double(view: &View, record: &HostRecord) -> Result<()> {
    if view.host_named(&record.name).is_some() {
        return Err(cannot(
            format!("a host `{}` is in the cluster already", record.name),
            "give this one another --name",
        ));
    }
    for other in view.hosts().values() {
        if let Some(address) = record.taken().find(|address| other.taken().any(|its| its == *address)) {
            return Err(cannot(
                format!("host `{}` of the cluster has address {address}", other.name),
                "give this one another --address; if it is behind NAT, where others have the same: --behind-nat",
            ));
        }
    }
    Ok(())
}
