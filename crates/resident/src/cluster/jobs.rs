//! What is asked of the cluster, until it is done: pure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use portolan_cluster::{HostRecord, NewNetwork, Refusal, View, Write, choose, free_around, plan_network};
use portolan_model::{Family, Id};

use super::{Came, Reply, Sharing, VerifiedRow, Wanted};

/// How long somebody waits at most.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long hosts have to look at themselves.
const LOOK: Duration = Duration::from_secs(5);
/// How long other hosts have to give some of their addresses.
const GIVING: Duration = Duration::from_secs(6);

/// Something that was asked for.
pub(super) struct Job {
    what: Sharing,
    reply: Option<Reply>,
    until: Instant,
    stage: Stage,
}

/// How far what all share was seen, and what is in the network that it is about.
type Seen = (i64, i64);

enum Stage {
    /// To be decided, on another view than this: on that one it was decided in vain.
    Decide { not_on: Option<Seen> },
    /// It is so in etcd from this revision on.
    Written { network: Id, revision: i64 },
    /// Hosts are asked: these are to answer.
    Asked { check: Id, hosts: BTreeSet<Id>, until: Instant },
    /// It is in etcd from this revision on that this host wants addresses, beside the blocks that it has.
    Wanting { network: Id, family: Family, has: BTreeSet<IpNet>, revision: i64, until: Instant },
}

/// What is to be done for a job now.
pub(super) enum Next {
    /// Write this; the network that it is about.
    Write(Id, Write),
    /// Say that this host wants addresses of a network.
    Want(Id, Family),
    /// It is in the view: rows and kernel are to be made so.
    Seen(Id),
    /// Hosts have answered; the check is over.
    Answered(Id, Vec<VerifiedRow>),
    /// There is nothing to wait for.
    Refuse(Refusal),
    /// Wait for a newer view.
    Wait,
}

impl Job {
    pub(super) fn new(what: Sharing, reply: Reply) -> Self {
        let until = Instant::now() + PATIENCE;
        Self { what, reply: Some(reply), until, stage: Stage::Decide { not_on: None } }
    }

    /// When it is to be looked at again, whatever happens.
    pub(super) const fn until(&self) -> Instant {
        match self.stage {
            Stage::Asked { until, .. } | Stage::Wanting { until, .. } => until,
            Stage::Decide { .. } | Stage::Written { .. } => self.until,
        }
    }

    /// What was asked for.
    pub(super) const fn what(&self) -> &Sharing {
        &self.what
    }

    /// The network of which everything has to be known.
    pub(super) const fn network(&self) -> Option<Id> {
        match self.what {
            Sharing::Remove { network } | Sharing::Claim { network, .. } | Sharing::Promote { id: network, .. } => {
                Some(network)
            }
            Sharing::Create { .. } | Sharing::Drain { .. } | Sharing::Verify {} | Sharing::Rotate {} => None,
        }
    }

    /// How far `view` is in what it is about.
    pub(super) fn seen(&self, view: &View) -> Seen {
        (view.revision_of_all(), self.network().map_or(0, |network| view.revision_of(network)))
    }

    /// Whether it is in `view` what was written of a network at `revision`.
    fn has_seen(&self, view: &View, network: Id, revision: i64) -> bool {
        match self.what {
            Sharing::Claim { .. } => view.revision_of(network) >= revision || !view.networks().contains_key(&network),
            // What is this host's of it is in another part.
            Sharing::Promote { .. } => {
                view.revision_of_all() >= revision && view.follows(network) && view.revision_of(network) >= revision
            }
            _ => view.revision_of_all() >= revision,
        }
    }

    /// What is to be done, as `view` is; `random` and the time are drawn anew for each call.
    pub(super) fn next(&self, me: Id, view: &View, random: [u8; 32], now: u64) -> Next {
        let is_unknown = |network: Id| view.networks().contains_key(&network) && !view.follows(network);
        let seen = Some(self.seen(view));
        match self.stage {
            Stage::Written { network, revision } if self.has_seen(view, network, revision) => Next::Seen(network),
            Stage::Written { .. } if Instant::now() < self.until => Next::Wait,
            Stage::Written { .. } => Next::Refuse(late()),
            Stage::Asked { check, ref hosts, until } => {
                let has_answered = |host: &Id| view.checked(check, *host).is_some();
                match hosts.iter().all(has_answered) || Instant::now() >= until {
                    true => Next::Answered(check, answers(check, view)),
                    false => Next::Wait,
                }
            }
            Stage::Decide { not_on } if not_on == seen || self.network().is_some_and(is_unknown) => {
                match Instant::now() >= self.until {
                    true => Next::Refuse(late()),
                    false => Next::Wait,
                }
            }
            Stage::Decide { .. } => decide(&self.what, me, view, random, now).unwrap_or_else(Next::Refuse),
            Stage::Wanting { network, family, ref has, revision, until } => {
                if blocks_of(me, view, network, family).any(|block| !has.contains(&block)) {
                    return Next::Seen(network);
                }
                match decide(&self.what, me, view, random, now) {
                    Ok(Next::Want(..)) if Instant::now() >= until => Next::Refuse(no_room(view, network, family)),
                    // Somebody else's late word took it away, or the lease that it was under is over.
                    Ok(Next::Want(..))
                        if view.revision_of(network) >= revision && !view.is_wanted((network, me, family)) =>
                    {
                        Next::Want(network, family)
                    }
                    Ok(Next::Want(..)) => Next::Wait,
                    // One is free meanwhile, or nothing of it is there any more.
                    Ok(other) => other,
                    Err(refusal) => Next::Refuse(refusal),
                }
            }
        }
    }

    /// Whether it waits for addresses of others.
    pub(super) fn wants(&self, wanted: (Id, Family)) -> bool {
        matches!(self.stage, Stage::Wanting { network, family, .. } if (network, family) == wanted)
    }

    /// Takes note that it was written at `revision` that this host wants some.
    pub(super) fn wanting(&mut self, me: Id, view: &View, (network, family): (Id, Family), revision: i64) {
        let until = match self.stage {
            Stage::Wanting { until, .. } => until,
            _ => self.until.min(Instant::now() + GIVING),
        };
        let has = blocks_of(me, view, network, family).collect();
        self.stage = Stage::Wanting { network, family, has, revision, until };
    }

    /// Takes note of what became of the write that [`Job::next`] decided on a view that was so far.
    pub(super) fn written(&mut self, network: Id, decided_on: Seen, outcome: Option<i64>) {
        self.stage = match outcome {
            Some(revision) => Stage::Written { network, revision },
            None => Stage::Decide { not_on: Some(decided_on) },
        };
    }

    /// Takes note that all hosts that run are asked.
    pub(super) fn asked(&mut self, check: Id, view: &View) {
        let hosts = view.hosts().keys().filter(|host| view.run_of(**host).is_some()).copied().collect();
        self.stage = Stage::Asked { check, hosts, until: Instant::now() + LOOK };
    }

    /// Tells whoever asked.
    pub(super) fn end(&mut self, outcome: Result<Came, Refusal>) {
        if let Some(reply) = self.reply.take() {
            reply(outcome);
        }
    }

    /// Who is to be told.
    pub(super) fn into_reply(mut self) -> Reply {
        let reply = self.reply.take().unwrap_or_else(|| Box::new(|_| {}));
        match self.what {
            Sharing::Drain { host, .. } => Box::new(move |came| reply(came.map(|_| Came::Drained { host }))),
            _ => reply,
        }
    }
}

fn late() -> Refusal {
    Refusal::new(
        "etcd did not answer for it in time",
        "`portolan cluster status` shows how this host stands; what was asked for may still come to be",
    )
}

/// What every host of the cluster said; those that do not run, or said nothing in time, among them.
fn answers(check: Id, view: &View) -> Vec<VerifiedRow> {
    let row = |(id, record): (&Id, &HostRecord)| {
        let found = view.checked(check, *id);
        VerifiedRow {
            id: *id,
            name: record.name.clone(),
            answered: found.is_some(),
            differences: found.map(|found| found.differences.clone()).unwrap_or_default(),
            count: found.map_or(0, |found| found.count),
        }
    };
    let mut rows: Vec<VerifiedRow> = view.hosts().iter().map(row).collect();
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    rows
}

fn decide(what: &Sharing, me: Id, view: &View, random: [u8; 32], now: u64) -> Result<Next, Refusal> {
    match what {
        Sharing::Create { network } => {
            let (id, record) = plan_network(view, network, random, now)?;
            Ok(Next::Write(id, Write::create_network(id, &record, view.networks_written())))
        }
        Sharing::Promote { id, network, blocks } => promote(me, view, (*id, network, blocks), random, now),
        Sharing::Remove { network } => {
            let Some(record) = view.networks().get(network) else { return Ok(Next::Seen(*network)) };
            let hosts: Vec<String> = view.hosts_on(*network).into_iter().map(|host| format!("`{host}`")).collect();
            if !hosts.is_empty() {
                return Err(Refusal::new(
                    format!("network `{}` is in use by containers of host {}", record.name, hosts.join(", ")),
                    "disconnect them there first: `portolan network inspect` lists them",
                ));
            }
            Ok(Next::Write(*network, Write::remove_network(*network, record)))
        }
        Sharing::Drain { host, is_drained } => {
            if !view.hosts().contains_key(host) || view.is_gone(*host) {
                return Err(Refusal::new(
                    format!("host {} is not of the cluster any more", host.short()),
                    "`portolan cluster nodes` lists the hosts",
                ));
            }
            Ok(match view.is_drained(*host) == *is_drained {
                true => Next::Seen(*host),
                false => Next::Write(*host, Write::drain(*host, *is_drained)),
            })
        }
        Sharing::Rotate {} => unreachable!("rows are asked for it"),
        Sharing::Verify {} => {
            let check = Id::from_bytes(random);
            Ok(Next::Write(check, Write::check(me, check)))
        }
        Sharing::Claim { network, wanted } => {
            let Some(record) = view.networks().get(network) else {
                return Err(Refusal::new("the network is gone", "`portolan network ls` lists the networks"));
            };
            let family = match wanted {
                Wanted::Family(family) | Wanted::Ahead(family) => *family,
                Wanted::Around(address) => Family::of(*address),
            };
            let Some(prefix) = *record.prefixes.of(family) else {
                return Err(Refusal::new(
                    format!("network `{}` has no {family}", record.name),
                    "leave the address out",
                ));
            };
            let length = *record.block_lengths.of(family);
            let taken: BTreeSet<IpNet> =
                view.blocks_on(*network).map(|(block, _)| block).filter(|block| prefix.contains(block)).collect();
            let block = match wanted {
                Wanted::Around(address) => match taken.iter().find(|block| block.contains(address)) {
                    Some(block) => {
                        let holder = view.block(*network, *block).unwrap_or(me);
                        if holder == me {
                            // Claimed already, and not taken in yet.
                            return Ok(Next::Seen(*network));
                        }
                        let host =
                            view.hosts().get(&holder).map_or_else(|| holder.short(), |host| host.name.to_string());
                        return Err(Refusal::new(
                            format!("address {address} of network `{}` is host `{host}`'s to give out", record.name),
                            "choose another address, or none to be given a free one",
                        ));
                    }
                    None => free_around(*address, length, &taken),
                },
                Wanted::Family(_) | Wanted::Ahead(_) => {
                    let number = u64::from_le_bytes(random[..8].try_into().expect("eight of 32 bytes"));
                    choose(prefix, length, &taken, number)
                }
            };
            match (block, wanted) {
                (Some(block), _) => Ok(Next::Write(*network, Write::claim(me, *network, block, length, view))),
                (None, Wanted::Family(_)) => Ok(Next::Want(*network, family)),
                (None, _) => Err(no_room(view, *network, family)),
            }
        }
    }
}

/// So many blocks go into one transaction with the network: etcd takes 128 operations at once unless told otherwise.
const TAKEN_ALONG: usize = 96;

fn promote(
    me: Id,
    view: &View,
    (id, network, blocks): (Id, &NewNetwork, &BTreeSet<IpNet>),
    random: [u8; 32],
    now: u64,
) -> Result<Next, Refusal> {
    if blocks.len() > TAKEN_ALONG {
        return Err(Refusal::new(
            format!(
                "addresses of network `{}` are in use in {} blocks, of which {TAKEN_ALONG} can be taken along",
                network.name,
                blocks.len()
            ),
            "containers that go free some",
        ));
    }
    let Some(record) = view.networks().get(&id) else {
        let (_, record) = plan_network(view, network, random, now)?;
        return Ok(Next::Write(id, Write::promote_network(me, id, &record, blocks, view.networks_written())));
    };
    // It was begun before, and not ended.
    let mut claims: Option<Write> = None;
    for block in blocks {
        let mut of_it = view.blocks_on(id).filter(|(other, _)| other.contains(block) || block.contains(other));
        match of_it.next() {
            Some((_, holder)) if holder == me => continue,
            Some((other, holder)) => {
                let host = view.hosts().get(&holder).map_or_else(|| holder.short(), |host| host.name.to_string());
                return Err(Refusal::new(
                    format!(
                        "addresses {other} of network `{}` are in use here, and host `{host}`'s to give out",
                        record.name
                    ),
                    "disconnect the containers that have them: `portolan network inspect` lists them",
                ));
            }
            None => {}
        }
        let length = *record.block_lengths.of(Family::of(block.addr()));
        let claim = Write::claim(me, id, *block, length, view);
        claims = Some(match claims {
            Some(claims) => claims.and(claim),
            None => claim,
        });
    }
    Ok(claims.map_or(Next::Seen(id), |claims| Next::Write(id, claims)))
}

/// The blocks that a host has of a network's addresses of one family.
fn blocks_of(host: Id, view: &View, network: Id, family: Family) -> impl Iterator<Item = IpNet> {
    let of_host = view.blocks_on(network).filter(move |(_, holder)| *holder == host);
    of_host.map(|(block, _)| block).filter(move |block| Family::of(block.addr()) == family)
}

fn no_room(view: &View, network: Id, family: Family) -> Refusal {
    let record = view.networks().get(&network);
    let name = record.map_or_else(|| network.short(), |record| record.name.to_string());
    let prefix = record.and_then(|record| *record.prefixes.of(family));
    let place = prefix.map_or_else(|| family.to_string(), |prefix| prefix.to_string());
    Refusal::new(
        format!("network `{name}` has no free block of addresses left in {place}, and no host gives any of its own"),
        "containers that go free some; a new network can have a larger --subnet",
    )
}
