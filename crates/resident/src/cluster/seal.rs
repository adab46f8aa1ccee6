//! The encrypted link between hosts, through which the tunnels of encrypted networks go: one address for each host, and a
//! WireGuard device for each lane that this host has a key on.
//!
//! Whom a packet may be for is said once for each host, so nothing of it changes with containers or networks. The tunnels are
//! bound to the device of lane 0, which is always there: without it, or without its key for the other host, nothing is sent,
//! and nothing that came by another way is taken. What is to go by lane 1 takes a detour on its way out of that device, and what
//! came by lane 1 comes in at that device as well ([`portolan_kernel::rtnl::tc`]): nothing above knows of lanes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use ipnet::{IpNet, Ipv6Net};
use portolan_cluster::{HostRecord, Other, SealRecord, View, Way, begins, lane, lane_to};
use portolan_kernel::netlink::{Batch, NetlinkError, ROUTE, Socket};
use portolan_kernel::rtnl::link;
use portolan_kernel::rtnl::tc::{self, Detour};
use portolan_model::{Id, IfName, Name};
use portolan_wireguard::{Config, Peer, PrivateKey, PublicKey, Secret, Status};

use super::Membership;
use super::lane::{self as device, Lane};
use super::meter::{Figures, Meter};
use super::note;

/// Sessions are older only when nothing was said for long; a new one is agreed on each two minutes (whitepaper §6.1).
const FRESH: Duration = Duration::from_secs(150);
/// Seconds between empty packets on a lane that is to be moved to.
const KEEPALIVE: u16 = 2;
/// Seconds between empty packets that keep a way through NAT open (wg(8), `persistent-keepalive`).
const KEEP_OPEN: u16 = 25;
/// Who is spoken to answers within ten seconds (whitepaper §6.5).
const SILENCE: Duration = Duration::from_secs(30);
/// How often who does not answer is greeted each second, before the device alone goes on with it.
const GREETINGS: u32 = 10;
/// How long what is on its way by a device may take.
const SETTLE: Duration = Duration::from_secs(1);
/// Detours of all packets have priorities from here on, those of some hosts lower ones.
const ALL: u16 = 0x8000;
/// Nobody listens there (RFC 863).
const DISCARD: u16 = 9;

/// The link, as far as this process has to do with it.
pub(super) struct Seal {
    lanes: [Lane; 2],
    /// Bytes that came from hosts, and when they last became more.
    heard: BTreeMap<Id, (u64, Instant)>,
    meter: Meter,
    /// By which lane hosts are sent to, and since when.
    to: (BTreeMap<Id, Option<usize>>, Instant),
    probed: Instant,
    greeted: Instant,
    met: Instant,
    /// How often who has not answered yet was greeted.
    greetings: BTreeMap<PublicKey, u32>,
    /// By which ways hosts are sent to.
    ways: BTreeMap<Id, Way>,
    /// Where hosts were seen last by whose keys something came, and where that is written down for the process after this one.
    seen: BTreeMap<PublicKey, SocketAddr>,
    file: PathBuf,
    /// Whether detours can be attached to the device of lane 0.
    can_lead: bool,
}

/// The name of the device of lane 1.
fn second(name: &IfName) -> IfName {
    format!("pt{}", &name.as_str()[2..]).parse().expect("as long as the other one")
}

impl Seal {
    /// The link called `name` of a resident whose run-time directory is `run`.
    pub(super) fn new(name: IfName, run: &Path) -> Self {
        let lanes = [Lane::new(name.clone(), run, "wireguard"), Lane::new(second(&name), run, "wireguard-1")];
        let now = Instant::now();
        let file = run.join("seen.json");
        Self {
            seen: note::read(&file).unwrap_or_default(),
            file,
            ways: BTreeMap::new(),
            lanes,
            heard: BTreeMap::new(),
            meter: Meter::default(),
            to: (BTreeMap::new(), now),
            probed: now,
            greeted: now,
            met: now,
            greetings: BTreeMap::new(),
            can_lead: false,
        }
    }

    /// Has the link be there, with all hosts on it that `hosts` shows; whether it was not.
    ///
    /// # Errors
    /// When this host cannot have one, or it cannot be set.
    pub(super) fn ensure(
        &mut self,
        membership: &Membership,
        hosts: &BTreeMap<Id, HostRecord>,
        ways: &BTreeMap<Id, Way>,
    ) -> Result<bool> {
        let Some(own) = &membership.record.seal else {
            bail!("this host has no IPv6, and no encrypted link without it")
        };
        let mtu = membership.record.sealed_mtu().bytes();
        self.greet_again(membership, own, hosts, ways);
        self.meet_again(membership, own, hosts, ways);
        self.begin_anew(membership, hosts, ways);
        let wanted = config(membership, own, 0, hosts, ways)?;
        let is_new = self.lanes[0].ensure(mtu, Some(own.address), wanted, &self.seen, || Ok(()))?;
        let has_second = own.on(1).is_some();
        let mut socket = Socket::open(ROUTE)?;
        // A device that sends already would lose what is on its way (`qdisc_graft()`, net/sched/sch_api.c).
        if is_new || !self.can_lead {
            let first = self.index(&mut socket, 0)?;
            self.can_lead = send(&mut socket, |batch| tc::create_clsact(batch, first), NetlinkError::is_exists).is_ok();
        }
        if has_second {
            let wanted = config(membership, own, 1, hosts, ways)?;
            let names = [self.lanes[0].name.clone(), self.lanes[1].name.clone()];
            let mut join = || join_lanes(&mut socket, &names).context("join the two devices of the encrypted link");
            self.lanes[1].ensure(mtu, None, wanted, &self.seen, &mut join)?;
            join()?;
        }
        self.listen(membership, hosts);
        self.note();
        let to: BTreeMap<Id, Option<usize>> = others(membership, hosts)
            .map(|(id, _, seal)| (id, lane_to(own, seal, self.has_agreed(own, seal))))
            .collect();
        if has_second {
            self.lead(&mut socket, own, hosts, &to).context("lead packets to the devices of the encrypted link")?;
        } else {
            self.lead_back(&mut socket).context("lead packets to the device of the encrypted link")?;
            self.lanes[1].remove()?;
        }
        if self.to.0 != to {
            self.to = (to, Instant::now());
        }
        Ok(is_new)
    }

    fn index(&self, socket: &mut Socket, on: usize) -> Result<u32> {
        index(socket, &self.lanes[on].name)
    }

    /// Has what is for hosts go by the lanes in `to`. At no time is there a host to whom neither lane leads.
    fn lead(
        &self,
        socket: &mut Socket,
        own: &SealRecord,
        hosts: &BTreeMap<Id, HostRecord>,
        to: &BTreeMap<Id, Option<usize>>,
    ) -> Result<()> {
        let (first, by) = (self.index(socket, 0)?, self.index(socket, 1)?);
        let prefix = |id: &Id| hosts.get(id)?.seal.as_ref().map(SealRecord::allowed);
        // One for all once there is no other way.
        let wanted: BTreeSet<Option<Ipv6Net>> = match own.on(0).is_none() {
            true => [None].into(),
            false => {
                to.iter().filter(|(_, lane)| **lane == Some(1)).filter_map(|(id, _)| prefix(id).map(Some)).collect()
            }
        };
        let there = tc::detours(socket, first)?;
        let is_right = |detour: &&Detour| detour.by == by && wanted.contains(&detour.to);
        let right: BTreeMap<Option<Ipv6Net>, u16> =
            there.iter().filter(is_right).map(|detour| (detour.to, detour.priority)).collect();
        let mut used: BTreeSet<u16> = there.iter().map(|detour| detour.priority).collect();
        for to in wanted.iter().filter(|to| !right.contains_key(to)) {
            let mut numbers = if to.is_none() { ALL..=u16::MAX } else { 1..=ALL - 1 };
            let Some(priority) = numbers.find(|number| !used.contains(number)) else { bail!("too many hosts") };
            used.insert(priority);
            let detour = Detour { priority, to: *to, by };
            // Somebody took away what they are attached to.
            send(socket, |batch| tc::create_clsact(batch, first), NetlinkError::is_exists)?;
            send(socket, |batch| tc::add_detour(batch, first, &detour), |_| false)?;
        }
        for detour in there.iter().filter(|detour| right.get(&detour.to) != Some(&detour.priority)) {
            send(socket, |batch| tc::delete_detour(batch, first, detour.priority), is_none)?;
        }
        Ok(())
    }

    /// Has everything go by the device of lane 0.
    fn lead_back(&self, socket: &mut Socket) -> Result<()> {
        let first = self.index(socket, 0)?;
        for detour in tc::detours(socket, first)? {
            send(socket, |batch| tc::delete_detour(batch, first, detour.priority), is_none)?;
        }
        Ok(())
    }

    /// What the device of a lane knows of another host.
    fn status(&self, on: usize, seal: &SealRecord) -> Option<&Status> {
        let key: PublicKey = seal.on(on)?.key.parse().ok()?;
        self.lanes[on].state.status.get(&key)
    }

    /// Whether keys were agreed on with a host, on the lane of this host's newest key.
    fn has_agreed(&self, own: &SealRecord, seal: &SealRecord) -> bool {
        let on = lane(own.newest());
        let Some(key) = seal.on(on).and_then(|key| key.key.parse().ok()) else { return false };
        let at = self.lanes[on].state.status.get(&key).and_then(|status| status.last_handshake);
        // A clock that was set back says nothing.
        let is_fresh = |at| SystemTime::now().duration_since(at).unwrap_or_default() < FRESH;
        self.lanes[on].answered.contains(&key) && at.is_some_and(is_fresh)
    }

    /// Whether keys are to be agreed on with a host on the lane of this host's newest key, and are not.
    pub(super) fn is_to_agree(&self, own: &SealRecord, seal: &SealRecord) -> bool {
        own.next.as_ref().is_some_and(|next| seal.on(lane(next.round)).is_some()) && !self.has_agreed(own, seal)
    }

    /// Where a host's key was seen last.
    pub(super) fn seen(&self, key: &str) -> Option<SocketAddr> {
        self.seen.get(&key.parse().ok()?).copied()
    }

    /// Greets those anew each second, for a while, who have not answered and do not speak first: they may not have known this host yet.
    fn meet_again(
        &mut self,
        membership: &Membership,
        own: &SealRecord,
        hosts: &BTreeMap<Id, HostRecord>,
        ways: &BTreeMap<Id, Way>,
    ) {
        if self.met.elapsed() < SETTLE {
            return;
        }
        self.met = Instant::now();
        let mut greeted = BTreeMap::new();
        for on in 0..2 {
            let Some(ours) = own.on(on) else { continue };
            let begin = others(membership, hosts).filter(|(id, record, _)| match ways.get(id) {
                Some(Way::Meet(_)) => true,
                Some(Way::Direct(_)) => membership.record.is_behind_nat() && !record.is_behind_nat(),
                _ => false,
            });
            let keys = begin.filter_map(|(_, record, seal)| {
                let theirs = seal.on(on)?;
                begins((&membership.record, &ours.key), (record, &theirs.key)).then(|| theirs.key.parse().ok())?
            });
            let is_silent = |key: &PublicKey| self.lanes[on].state.status.get(key).is_none_or(|at| at.received == 0);
            let keys: BTreeSet<PublicKey> = keys.filter(is_silent).collect();
            greeted.extend(keys.iter().map(|key| (*key, self.greetings.get(key).map_or(1, |times| times + 1))));
            let due = keys.into_iter().filter(|key| greeted[key] <= GREETINGS).collect::<BTreeSet<_>>();
            if !due.is_empty() {
                self.lanes[on].forget_silent(&due);
            }
        }
        self.greetings = greeted;
    }

    /// Greets those anew who have not answered on the lane that this host is to move to.
    fn greet_again(
        &mut self,
        membership: &Membership,
        own: &SealRecord,
        hosts: &BTreeMap<Id, HostRecord>,
        ways: &BTreeMap<Id, Way>,
    ) {
        let Some(next) = own.next.as_ref().filter(|next| own.moved < next.round) else { return };
        if self.greeted.elapsed() < SETTLE {
            return;
        }
        self.greeted = Instant::now();
        let on = lane(next.round);
        let silent = others(membership, hosts).filter(|(_, _, seal)| !self.has_agreed(own, seal));
        let keys = silent.filter_map(|(id, record, seal)| {
            let theirs = seal.on(on)?;
            let begins = begins((&membership.record, &next.key), (record, &theirs.key));
            (begins || is_relayed(ways, id)).then(|| theirs.key.parse().ok())?
        });
        let keys: BTreeSet<PublicKey> = keys.collect();
        if !keys.is_empty() {
            self.lanes[on].forget_silent(&keys);
        }
    }

    /// Has keys be agreed on anew with those who are sent to by another third host now: he passes on only what belongs to an agreement
    /// that he saw, and by themselves the two would go on with the one they have for another fifteen seconds.
    fn begin_anew(&mut self, membership: &Membership, hosts: &BTreeMap<Id, HostRecord>, ways: &BTreeMap<Id, Way>) {
        let is_other = |id: &Id| {
            let (before, now) = (self.ways.get(id), ways.get(id));
            before.is_some() && before != now && matches!(now, Some(Way::Relay(_, Some(_))))
        };
        let all: Vec<(Id, &SealRecord)> =
            others(membership, hosts).filter(|(id, ..)| is_other(id)).map(|(id, _, seal)| (id, seal)).collect();
        for on in 0..2 {
            let keys = all.iter().filter_map(|(_, seal)| seal.on(on)?.key.parse().ok());
            let keys: BTreeSet<PublicKey> = keys.collect();
            if !keys.is_empty() {
                self.lanes[on].forget(&keys);
            }
        }
        all.iter().for_each(|(id, _)| self.meter.begin(*id));
        self.ways.clone_from(ways);
    }

    /// Takes note of who is heard, and how much.
    fn listen(&mut self, membership: &Membership, hosts: &BTreeMap<Id, HostRecord>) {
        let now = Instant::now();
        let mut heard = BTreeMap::new();
        for (id, _, seal) in others(membership, hosts) {
            for on in 0..2 {
                if let (Some(key), Some(status)) = (seal.on(on), self.status(on, seal).copied()) {
                    self.meter.take(id, on, &key.key, &status);
                }
            }
            let bytes = self.meter.hosts.get(&id).map_or(0, |figures| figures.received);
            let before = self.heard.get(&id).copied().filter(|(before, _)| *before == bytes);
            heard.insert(id, before.unwrap_or((bytes, now)));
        }
        self.meter.keep(|id| heard.contains_key(&id));
        self.heard = heard;
    }

    /// Writes down where hosts are seen, if that is news: whoever takes a dead process' place has to know where those are who are behind
    /// NAT.
    fn note(&mut self) {
        let all = self.lanes.iter().flat_map(|lane| &lane.state.status);
        let heard = all.filter(|(_, status)| status.received > 0);
        let mut seen: BTreeMap<PublicKey, SocketAddr> =
            heard.filter_map(|(key, status)| Some((*key, status.endpoint?))).collect();
        let peers: BTreeSet<&PublicKey> = self.lanes.iter().flat_map(|lane| lane.state.config.peers.keys()).collect();
        // Who is there and was not heard yet, by a device that was made anew.
        for (key, place) in self.seen.iter().filter(|(key, _)| peers.contains(key)) {
            seen.entry(*key).or_insert(*place);
        }
        if seen != self.seen && !peers.is_empty() {
            note::write(&self.file, &seen);
            self.seen = seen;
        }
    }

    /// What was counted of other hosts.
    pub(super) const fn figures(&self) -> &BTreeMap<Id, Figures> {
        &self.meter.hosts
    }

    /// Whether anything can be sent to a host: it is known where it is.
    pub(super) fn has_place(&self, seal: &SealRecord) -> bool {
        (0..2).any(|on| self.status(on, seal).is_some_and(|status| status.endpoint.is_some()))
    }

    /// Says something to these hosts, so that they are heard if they are there: they may only be cut off from etcd.
    pub(super) fn probe<'a>(&mut self, own: Ipv6Addr, hosts: impl Iterator<Item = &'a SealRecord>) {
        if self.probed.elapsed() < SETTLE {
            return;
        }
        self.probed = Instant::now();
        self.speak(own, hosts);
    }

    /// Says something to these hosts, which WireGuard answers.
    pub(super) fn speak<'a>(&self, own: Ipv6Addr, hosts: impl Iterator<Item = &'a SealRecord>) {
        let Ok(scope) =
            Socket::open(ROUTE).map_err(anyhow::Error::from).and_then(|mut socket| self.index(&mut socket, 0))
        else {
            return;
        };
        let Ok(socket) = UdpSocket::bind(SocketAddrV6::new(own, 0, 0, scope)) else { return };
        for seal in hosts {
            // Nobody has to get it.
            let _ = socket.send_to(&[0], SocketAddrV6::new(seal.address, DISCARD, 0, scope));
        }
    }

    /// The other hosts, as [`portolan_cluster::step`] takes them; `is_up` says which say that they run.
    pub(super) fn others<'a>(
        &self,
        membership: &'a Membership,
        hosts: &'a BTreeMap<Id, HostRecord>,
        is_up: impl Fn(Id) -> bool,
    ) -> BTreeMap<Id, Other<'a>> {
        let Some(own) = &membership.record.seal else { return BTreeMap::new() };
        let other = |(id, _, seal): (Id, _, &'a SealRecord)| {
            let is_heard = self.heard.get(&id).is_some_and(|(_, at)| at.elapsed() < SILENCE);
            (id, Other { seal, is_here: is_up(id) || is_heard, has_agreed: self.has_agreed(own, seal) })
        };
        others(membership, hosts).map(other).collect()
    }

    /// Whether hosts have been sent to by the lanes that they are sent to now for so long that nothing is on its way by others.
    pub(super) fn is_settled(&self) -> bool {
        self.to.1.elapsed() >= SETTLE
    }

    /// Removes it, if it is there.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.heard.clear();
        self.seen.clear();
        self.meter.keep(|_| false);
        self.lanes.iter_mut().try_for_each(Lane::remove)
    }
}

/// Removes the link of this name, if it is there; whoever carries its packets ends.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn remove(name: &IfName) -> Result<()> {
    device::remove(name)?;
    device::remove(&second(name))
}

fn index(socket: &mut Socket, name: &IfName) -> Result<u32> {
    let Some(found) = link::lookup(socket, name.as_str())? else { bail!("`{name}` is gone") };
    Ok(found.index)
}

/// Has what comes in by lane 1 come in at the device of lane 0.
fn join_lanes(socket: &mut Socket, [first, second]: &[IfName; 2]) -> Result<()> {
    let (first, second) = (index(socket, first)?, index(socket, second)?);
    if tc::taken_at(socket, second)? == Some(first) {
        return Ok(());
    }
    send(socket, |batch| tc::create_clsact(batch, second), NetlinkError::is_exists)?;
    send(socket, |batch| tc::lead_on(batch, second), is_none)?;
    send(socket, |batch| tc::take_at(batch, second, first), |_| false)
}

fn is_none(error: &NetlinkError) -> bool {
    error.is_missing() || error.errno() == rustix::io::Errno::INVAL.raw_os_error()
}

fn send(
    socket: &mut Socket,
    fill: impl FnOnce(&mut Batch) -> usize,
    is_forgiven: impl FnOnce(&NetlinkError) -> bool,
) -> Result<()> {
    let mut batch = Batch::new();
    fill(&mut batch);
    match socket.transact(&batch) {
        Err(error) if !is_forgiven(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// The other hosts that can be on the link with this one.
pub(super) fn others<'a>(
    membership: &'a Membership,
    hosts: &'a BTreeMap<Id, HostRecord>,
) -> impl Iterator<Item = (Id, &'a HostRecord, &'a SealRecord)> {
    let own = membership.record.seal.as_ref().map(|seal| &seal.secret);
    let others = hosts.iter().filter(|(id, _)| **id != membership.host);
    let seals = others.filter_map(|(id, record)| Some((*id, record, record.seal.as_ref()?)));
    seals.filter(move |(_, _, seal)| Some(&seal.secret) == own)
}

/// What the device of a lane is to be: an address for each other host that has a key there.
fn config(
    membership: &Membership,
    own: &SealRecord,
    on: usize,
    hosts: &BTreeMap<Id, HostRecord>,
    ways: &BTreeMap<Id, Way>,
) -> Result<Config> {
    let Some(key) = own.on(on) else { return Ok(Config { listen_port: own.port_on(on), ..Config::default() }) };
    let private = if key.round == own.round { &membership.private_key } else { &membership.next_private_key };
    let private: PrivateKey = private.parse().context("read this host's key")?;
    let secret: Option<Secret> =
        membership.secret.as_ref().map(|text| text.parse()).transpose().context("read the secret of the cluster")?;
    let public = private.public();
    // Keys are agreed on before anything is sent.
    let is_next = own.next.as_ref().is_some_and(|next| next.round == key.round && own.moved < next.round);
    let told_by = told_by(membership, own, hosts);
    let mut peers = BTreeMap::new();
    for (id, record, seal) in others(membership, hosts) {
        let Some(theirs) = seal.on(on) else { continue };
        let Ok(peer) = theirs.key.parse() else {
            tracing::warn!(host = %record.name, "its public key is none");
            continue;
        };
        let allowed = BTreeSet::from([IpNet::V6(told_by[&id])]);
        // A third one is told by both where they are, and greets nobody; and NAT lets in what comes from where something went.
        let is_both = matches!(ways.get(&id), Some(Way::Relay(..) | Way::Meet(_)));
        let is_ours_to_greet = !is_next || begins((&membership.record, &key.key), (record, &theirs.key));
        let endpoint = match ways.get(&id) {
            Some(Way::Direct(address)) => Some(SocketAddr::new(*address, theirs.port)).filter(|_| is_ours_to_greet),
            Some(Way::Relay(_, place)) => place.map(SocketAddr::from),
            Some(Way::Meet(places)) => places.get(&theirs.key).copied(),
            // Where it was seen last stays.
            Some(Way::Seen | Way::None) | None => None,
        };
        let keepalive = match (is_next && is_ours_to_greet, is_both || membership.record.is_behind_nat()) {
            (true, _) => Some(KEEPALIVE),
            (false, true) => Some(KEEP_OPEN).filter(|_| is_ours_to_greet || is_both),
            (false, false) => None,
        };
        let preshared = secret.as_ref().map(|secret| secret.of_pair(&public, &peer));
        peers.insert(peer, Peer { preshared, endpoint, allowed, keepalive });
    }
    Ok(Config { private_key: Some(private), listen_port: key.port, peers })
}

/// What tells each other host's packets. This host's own are nobody else's.
fn told_by(membership: &Membership, own: &SealRecord, hosts: &BTreeMap<Id, HostRecord>) -> BTreeMap<Id, Ipv6Net> {
    let others: Vec<(Id, &SealRecord)> = others(membership, hosts).map(|(id, _, seal)| (id, seal)).collect();
    let all = std::iter::once(own).chain(others.iter().map(|(_, seal)| *seal));
    others.iter().map(|(id, _)| *id).zip(SealRecord::told_by(all).into_iter().skip(1)).collect()
}

fn is_relayed(ways: &BTreeMap<Id, Way>, host: Id) -> bool {
    matches!(ways.get(&host), Some(Way::Relay(..)))
}

/// Which other hosts have another secret than this one, a sentence each.
pub(super) fn other_secrets(me: Id, view: &View) -> Vec<String> {
    let Some(own) = view.hosts().get(&me).and_then(|record| record.seal.as_ref()) else { return Vec::new() };
    let others = view.hosts().iter().filter(|(id, _)| **id != me && !view.is_gone(**id));
    let seals = others.filter_map(|(_, record)| Some((&record.name, record.seal.as_ref()?)));
    let differ = seals.filter(|(_, seal)| seal.secret != own.secret);
    let say = |secret: &Option<String>| secret.as_ref().map_or_else(|| "none".to_owned(), |print| format!("`{print}`"));
    let sentence = |(name, seal): (&Name, &SealRecord)| {
        format!(
            "host `{name}` has another secret for encrypted networks than this host, and is not reached on them: its fingerprint \
             is {}, this one's {} (--preshared-key-file of `cluster init` and `join`)",
            say(&seal.secret),
            say(&own.secret)
        )
    };
    differ.map(sentence).collect()
}

/// Whether any network that all hosts have is encrypted.
pub(super) fn is_needed(view: &View) -> bool {
    view.networks().values().any(|network| super::plan::is_encrypted(&network.options))
}
