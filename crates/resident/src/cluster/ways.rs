//! By which ways this host sends to others on the encrypted link: what was decided ([`portolan_cluster::way`]), whether anything comes by
//! it, and what is said when nothing does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use portolan_cluster::{Heard, HostRecord, SealRecord, View, Way, WayRecord, instead_of, pair, relay_for, way};
use portolan_model::{Id, Name};
use serde::{Deserialize, Serialize};

use super::agent::{Known, Shared, lock};
use super::meter::Figures;
use super::seal::{Seal, others};
use super::{Membership, ToWay, note};

/// For so long a host is not asked to pass on packets, when none came by way of it.
const AVOID: Duration = Duration::from_secs(60);
/// How long what was said takes at most until it is seen. It doubles with each time that nothing comes of it, up to half an hour: a host
/// that nobody reaches is not to keep all others writing.
const SAID: Duration = Duration::from_secs(3);
const DOUBLED: u32 = 9;
/// Which hosts run is not followed: for so long it is known once it was looked up.
const FRESH: Duration = Duration::from_secs(3);
/// Between two words to somebody who is silent.
const AGAIN: Duration = Duration::from_secs(3);
/// Who was heard so lately can be asked to pass on packets.
const LATELY: Duration = Duration::from_secs(60);

/// By which way a host is sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum WayRow {
    /// To the address that it says.
    Direct,
    /// To where it is seen.
    Seen,
    /// To where a third host sees it: both are behind NAT.
    Meet,
    /// By another one.
    Relay {
        /// His name.
        relay: Name,
        /// Where he takes it, once that is known.
        at: Option<SocketAddr>,
    },
    /// Not at all.
    Nothing,
}

/// What is known of a host since it is sent to by the way that it is sent to now.
struct Track {
    way: Way,
    since: Instant,
    heard: Option<Instant>,
    /// When something was sent that was not answered.
    asked: Option<Instant>,
    spoken: Option<Instant>,
    /// Since when keys change, and are not agreed on.
    unagreed: Option<Instant>,
    counted: (u64, u64),
}

/// The ways to all other hosts.
pub(super) struct Ways {
    tracks: BTreeMap<Id, Track>,
    /// Of which pairs nothing came by way of whom, and when that was found.
    avoid: BTreeMap<(Id, Id), Instant>,
    /// With whom this host did not meet, both being behind NAT.
    met: BTreeSet<Id>,
    /// When anything last came of a host, by whichever way.
    heard: BTreeMap<Id, Instant>,
    /// When anything was last said of the way to a host.
    said: BTreeMap<Id, Instant>,
    /// How often somebody else was asked to pass on packets since.
    tries: BTreeMap<Id, u32>,
    /// What etcd says, or said to the process before this one.
    written: BTreeMap<(Id, Id), (WayRecord, i64)>,
    file: PathBuf,
}

impl Ways {
    /// What the process before this one wrote down in the run-time directory `run`.
    pub(super) fn new(run: &Path) -> Self {
        let file = run.join("ways.json");
        let written: Vec<((Id, Id), (WayRecord, i64))> = note::read(&file).unwrap_or_default();
        let (tracks, avoid, heard) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            tracks,
            avoid,
            heard,
            met: BTreeSet::new(),
            said: BTreeMap::new(),
            tries: BTreeMap::new(),
            written: written.into_iter().collect(),
            file,
        }
    }

    /// The ways to `hosts` now.
    pub(super) fn choose(
        &mut self,
        membership: &Membership,
        hosts: &BTreeMap<Id, HostRecord>,
        view: &View,
    ) -> BTreeMap<Id, Way> {
        // Before anything was seen of etcd, that is what it was.
        if view.cluster().is_some() && self.written != *view.ways() {
            self.written.clone_from(view.ways());
            note::write(&self.file, &self.written.iter().collect::<Vec<_>>());
        }
        let now = Instant::now();
        let to = |(id, record, _): (Id, &HostRecord, _)| {
            let written = self.written.get(&pair(membership.host, id)).map(|(written, _)| written);
            (id, way(&membership.record, record, written, hosts))
        };
        let ways: BTreeMap<Id, Way> = others(membership, hosts).map(to).collect();
        self.tracks.retain(|id, _| ways.contains_key(id));
        for (id, way) in &ways {
            let begin = |counted| Track {
                way: way.clone(),
                since: now,
                heard: None,
                asked: None,
                spoken: None,
                unagreed: None,
                counted,
            };
            let track = self.tracks.entry(*id).or_insert_with(|| begin((0, 0)));
            if matches!((&track.way, way), (Way::Meet(_), Way::Meet(_))) {
                // Keys change, or NAT puts it elsewhere: that is no other way.
                track.way.clone_from(way);
            } else if track.way != *way {
                tracing::info!(host = %hosts[id].name, ?way, "sent to by another way");
                *track = begin(track.counted);
            }
        }
        ways
    }

    /// Takes note of who is heard, and speaks to those who are silent.
    pub(super) fn listen(
        &mut self,
        membership: &Membership,
        own: &SealRecord,
        hosts: &BTreeMap<Id, HostRecord>,
        seal: &Seal,
    ) {
        let now = Instant::now();
        for (id, figures) in seal.figures() {
            let Some(track) = self.tracks.get_mut(id) else { continue };
            let (received, sent) = figures.counted();
            if received != track.counted.0 {
                (track.heard, track.asked, track.spoken) = (Some(now), None, None);
                self.heard.insert(*id, now);
                self.tries.remove(id);
            } else if sent != track.counted.1 {
                track.asked.get_or_insert(now);
            }
            track.counted = (received, sent);
        }
        let mut silent = Vec::new();
        for (id, record, theirs) in others(membership, hosts) {
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            match seal.is_to_agree(own, theirs) {
                true => drop(track.unagreed.get_or_insert(now)),
                false => track.unagreed = None,
            }
            let is_quiet = track.heard.is_none_or(|heard| now - heard >= Heard::QUIET);
            let is_due = track.spoken.is_none_or(|spoken| now - spoken >= AGAIN);
            if track.way.is_kept(&membership.record, record) && is_quiet && is_due && seal.has_place(theirs) {
                track.spoken = Some(now);
                silent.push(theirs);
            }
        }
        if !silent.is_empty() {
            seal.speak(own.address, silent.into_iter());
        }
    }

    /// What is to be said of ways by which nothing comes; and of whom that is, where nobody can help, a sentence each.
    pub(super) fn give_up(
        &mut self,
        membership: &Membership,
        hosts: &BTreeMap<Id, HostRecord>,
        shared: &Shared,
        look: impl FnOnce(),
    ) -> (Vec<ToWay>, Vec<String>) {
        let now = Instant::now();
        self.avoid.retain(|_, since| now - *since < AVOID);
        let (me, own) = (membership.host, &membership.record);
        let mut lost = BTreeMap::new();
        for (id, record, _) in others(membership, hosts) {
            let Some(track) = self.tracks.get(&id) else { continue };
            let ago = |when: Option<Instant>| when.map(|when| now - when);
            let heard = Heard {
                since: now - track.since,
                last: ago(track.heard),
                unanswered: ago(track.asked),
                unagreed: ago(track.unagreed),
            };
            if heard.is_lost(&track.way, track.way.is_kept(own, record)) {
                lost.insert(id, record);
            }
        }
        let known = lock(shared);
        let view = &known.view;
        let (mut said, mut unreached) = (Vec::new(), Vec::new());
        // What was said for others than these, or elsewhere.
        for (id, record, _) in others(membership, hosts) {
            let Some((written, revision)) = view.ways().get(&pair(me, id)) else { continue };
            if written.instead_of != instead_of(own, record) && self.may_say(id, now) {
                said.push(ToWay { pair: pair(me, id), written: *revision, way: None });
            }
        }
        if lost.is_empty() {
            return (said, unreached);
        }
        if known.trouble.is_some() || known.looked.is_none_or(|when| when.elapsed() > FRESH) {
            if known.trouble.is_none() {
                look();
            }
            unreached.clone_from(&known.unreached);
            return (said, unreached);
        }
        let is_up = |id: Id| view.run_of(id).is_some() && !view.is_gone(id);
        // Who does not run is not to be helped; and of whom something else was said meanwhile is to be tried by that.
        let is_as_tried = |id: Id| self.written.get(&pair(me, id)) == view.ways().get(&pair(me, id));
        lost.retain(|id, _| is_up(*id) && is_as_tried(*id));
        for (id, record) in lost {
            match self.tracks.get(&id).map(|track| &track.way) {
                Some(Way::Relay(relay, _)) => drop(self.avoid.insert((id, *relay), now)),
                Some(Way::Meet(_)) => drop(self.met.insert(id)),
                _ => {}
            }
            let but: BTreeSet<Id> = self.avoid.keys().filter(|(of, _)| *of == id).map(|(_, relay)| *relay).collect();
            let is_late = |id: Id| self.heard.get(&id).is_none_or(|heard| now - *heard >= LATELY);
            let is_heard = |id: Id| !is_late(id) && !view.is_gone(id);
            let chosen = relay_for((me, id), hosts, is_heard, is_up, &but);
            if chosen.is_none() || !but.is_empty() {
                let tried: Vec<String> =
                    but.iter().filter_map(|relay| Some(format!("`{}`", hosts.get(relay)?.name))).collect();
                let by = match tried.is_empty() {
                    true => "no other host that both reach passes on packets".to_owned(),
                    false => format!("nothing came by way of {} either", tried.join(", ")),
                };
                unreached.push(format!("host `{}` runs, and is not reached on encrypted networks: {by}", record.name));
            }
            if let Some(relay) = chosen
                && self.may_say(id, now)
            {
                let written = view.ways().get(&pair(me, id)).map_or(0, |(_, revision)| *revision);
                // Who did not meet once does not meet.
                let meets = own.is_behind_nat() && record.is_behind_nat() && !self.met.contains(&id) && written == 0;
                let instead_of = instead_of(own, record);
                let way = WayRecord { relay, port: None, meets, seen: BTreeMap::new(), instead_of };
                said.push(ToWay { pair: pair(me, id), written, way: Some(way) });
            }
        }
        (said, unreached)
    }

    /// Whether something is to be said of the way to a host: what was said before has been seen, if it was heard.
    fn may_say(&mut self, host: Id, now: Instant) -> bool {
        let tries = self.tries.entry(host).or_default();
        let may = self.said.get(&host).is_none_or(|said| now - *said >= SAID * (1 << (*tries).min(DOUBLED)));
        if may {
            *tries += 1;
            self.said.insert(host, now);
        }
        may
    }

    /// The ways, for people.
    pub(super) fn rows(&self, hosts: &BTreeMap<Id, HostRecord>) -> BTreeMap<Id, WayRow> {
        let row = |way: &Way| match way {
            Way::Direct(_) => WayRow::Direct,
            Way::Seen => WayRow::Seen,
            Way::Meet(_) => WayRow::Meet,
            Way::Relay(relay, at) => match hosts.get(relay) {
                Some(record) => WayRow::Relay { relay: record.name.clone(), at: at.map(SocketAddr::from) },
                None => WayRow::Nothing,
            },
            Way::None => WayRow::Nothing,
        };
        self.tracks.iter().map(|(id, track)| (*id, row(&track.way))).collect()
    }
}

/// What of networks does not reach over NAT, a sentence each.
pub(super) fn not_over_nat(known: &Known) -> Vec<String> {
    if !known.record.is_behind_nat() {
        return Vec::new();
    }
    let open = known.view.networks().values().filter(|network| !super::plan::is_encrypted(&network.options));
    let sentence = |name: &Name| {
        format!(
            "network `{name}` is not encrypted, and reaches no other host from here: this one is behind NAT (--behind-nat)"
        )
    };
    open.map(|network| sentence(&network.name)).collect()
}

impl Figures {
    /// Bytes received and sent.
    const fn counted(&self) -> (u64, u64) {
        (self.received, self.sent)
    }
}
