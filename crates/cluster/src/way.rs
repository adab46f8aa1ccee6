//! By which way two hosts send to each other on the encrypted link: by themselves, or by a third one where they do not reach each
//! other.
//!
//! Whose address others can use is sent to there. A host behind NAT has none: it speaks first, and is sent to where it was seen. Where
//! neither works, whichever of the two finds that out says so for both, and names a host that all reach ([`WayRecord`]): both send
//! to a port of his then, and he passes on what he cannot read. Two behind NAT try it first at the places where he sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portolan_model::Id;

use crate::record::{HostRecord, Reach, WayRecord};

/// How long whoever was never heard by a way is given: he is greeted every five seconds (`REKEY_TIMEOUT`, whitepaper §6.1).
const FIRST: Duration = Duration::from_secs(12);
/// The same where both begin at once: who is to begin does so each second.
const MEETING: Duration = Duration::from_secs(6);
/// What is sent is answered within ten seconds, and keys are agreed on anew after fifteen without an answer (whitepaper §6.2, §6.5).
const ANSWER: Duration = Duration::from_secs(18);
/// Whoever is behind NAT, or is sent to by a third one, is spoken to when he was not heard for [`Heard::QUIET`].
const SILENCE: Duration = Duration::from_secs(30);

/// How a host sends to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To where the other one says that it is.
    Direct(IpAddr),
    /// To where it was seen: it is behind NAT, and speaks first.
    Seen,
    /// Both are behind NAT, and send to where a third one sees the other one's keys, at the same time.
    Meet(BTreeMap<String, SocketAddr>),
    /// To a port of a third host, which passes it on; none before it has one.
    Relay(Id, Option<(IpAddr, u16)>),
    /// Not at all: both are behind NAT, or have no address of one family.
    None,
}

impl Way {
    /// Whether it has to be kept open, and is listened to.
    pub const fn is_kept(&self, own: &HostRecord, other: &HostRecord) -> bool {
        matches!(self, Self::Relay(..)) || own.is_behind_nat() || other.is_behind_nat()
    }
}

/// Two hosts, the lower id first.
pub fn pair(one: Id, other: Id) -> (Id, Id) {
    if one < other { (one, other) } else { (other, one) }
}

/// The address of `other` that `own` sends to: of IPv4 if both have one of it, else of IPv6.
pub fn common(own: &HostRecord, other: &HostRecord) -> Option<IpAddr> {
    let [own, other] = [own.underlay, other.underlay];
    own.v4.and(other.v4).or(own.v6.and(other.v6))
}

/// Where two hosts could be reached: as long as that is the same, they need a third one that they needed once.
pub fn instead_of(one: &HostRecord, other: &HostRecord) -> BTreeSet<IpAddr> {
    one.taken().chain(other.taken()).collect()
}

/// How `own` sends to `other`, if `written` says by whom these two send to each other.
pub fn way(own: &HostRecord, other: &HostRecord, written: Option<&WayRecord>, hosts: &BTreeMap<Id, HostRecord>) -> Way {
    let holds = |written: &&WayRecord| written.instead_of == instead_of(own, other);
    // One that passes on nothing any more is none.
    let by = written.filter(holds).and_then(|way| Some((way, hosts.get(&way.relay).filter(|host| relays(host))?)));
    if let Some((way, relay)) = by {
        if way.meets && !way.seen.is_empty() {
            return Way::Meet(meet(own, other, way));
        }
        return Way::Relay(way.relay, common(own, relay).zip(way.port));
    }
    match (own.is_behind_nat(), other.is_behind_nat()) {
        (_, false) => common(own, other).map_or(Way::None, Way::Direct),
        (false, true) => Way::Seen,
        (true, true) => Way::None,
    }
}

/// Where the keys of `other` are to be met: where they are seen. Who is seen at the same address is behind the same NAT, and where it
/// says that it is.
fn meet(own: &HostRecord, other: &HostRecord, way: &WayRecord) -> BTreeMap<String, SocketAddr> {
    let keys =
        |host: &HostRecord| host.seal.iter().flat_map(|seal| seal.keys().collect::<Vec<_>>()).collect::<Vec<_>>();
    let ours: BTreeSet<IpAddr> = keys(own).iter().filter_map(|key| Some(way.seen.get(&key.key)?.ip())).collect();
    let at = |seen: SocketAddr, port| match common(own, other) {
        Some(inside) if ours.contains(&seen.ip()) => SocketAddr::new(inside, port),
        _ => seen,
    };
    let theirs = keys(other).into_iter();
    theirs.filter_map(|key| Some((key.key.clone(), at(*way.seen.get(&key.key)?, key.port)))).collect()
}

/// Whether a host passes on what others send each other.
pub fn relays(host: &HostRecord) -> bool {
    host.reach == Reach::Open && host.seal.is_some()
}

/// Which of two hosts begins to agree on keys when both have new ones; whether `own` does.
///
/// Of two who begin at once each may go by the keys that the other one gave up. So one begins, and the other one is sent something
/// before he sends himself. Who is behind NAT can only be spoken to when he has spoken.
pub fn begins((own, own_key): (&HostRecord, &str), (other, other_key): (&HostRecord, &str)) -> bool {
    match (own.is_behind_nat(), other.is_behind_nat()) {
        (one, two) if one != two => one,
        _ => own_key < other_key,
    }
}

/// What was heard of a host since it is sent to by the way that it is sent to now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// How long that is.
    pub since: Duration,
    /// How long ago something came of it, if ever since then.
    pub last: Option<Duration>,
    /// How long ago something was sent to it, if nothing came since.
    pub unanswered: Option<Duration>,
    /// Since when keys change, and are not agreed on.
    pub unagreed: Option<Duration>,
}

impl Heard {
    /// Whoever was silent for so long on a way that is kept open is spoken to. Also less than NAT keeps a mapping (RFC 4787 §4.3
    /// asks for two minutes, and many have thirty seconds).
    pub const QUIET: Duration = Duration::from_secs(10);

    /// Whether nothing comes by that way, as far as can be told; `is_kept` says that it is kept open ([`Way::is_kept`]).
    pub fn is_lost(self, way: &Way, is_kept: bool) -> bool {
        let is_meeting = matches!(way, Way::Meet(_));
        // The other port may be where nobody finds it.
        if is_meeting && self.unagreed.is_some_and(|unagreed| unagreed >= FIRST) {
            return true;
        }
        match (is_kept, self.last) {
            _ if *way == Way::None => true,
            (true, Some(last)) => last >= SILENCE,
            (true, None) => self.since >= if is_meeting { MEETING } else { FIRST },
            // Who is told nothing need not say anything.
            (false, _) => self.unanswered.is_some_and(|unanswered| unanswered >= ANSWER),
        }
    }
}

/// By whom two hosts are to send to each other: of those that pass on packets and that either has an address in common with, one that is
/// heard if there is any, else one that runs. Which of those, their ids decide, so that both choose the same, and each pair of
/// hosts another one.
pub fn relay_for(
    (one, other): (Id, Id),
    hosts: &BTreeMap<Id, HostRecord>,
    is_heard: impl Fn(Id) -> bool,
    is_up: impl Fn(Id) -> bool,
    but: &BTreeSet<Id>,
) -> Option<Id> {
    let [first, second] = [hosts.get(&one)?, hosts.get(&other)?];
    let secret = |host: &HostRecord| host.seal.as_ref().map(|seal| seal.secret.clone());
    let is_fit = |(id, host): &(&Id, &HostRecord)| {
        let is_third = ![one, other].contains(id) && !but.contains(id);
        let is_there = common(first, host).is_some() && common(second, host).is_some();
        is_third && is_there && relays(host) && secret(host) == secret(first) && (is_heard(**id) || is_up(**id))
    };
    let fit: Vec<Id> = hosts.iter().filter(is_fit).map(|(id, _)| *id).collect();
    fit.into_iter().max_by_key(|id| (is_heard(*id), rank(*id, pair(one, other))))
}

/// A number that says nothing but which three hosts it is of (FNV-1a).
fn rank(relay: Id, (one, other): (Id, Id)) -> u64 {
    let bytes = [relay, one, other].map(|id| id.to_string());
    let all = bytes.iter().flat_map(|text| text.bytes());
    all.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use portolan_model::{Mac, Mtu, PerFamily};

    use super::*;
    use crate::record::SealRecord;

    fn id(number: u8) -> Id {
        Id::from_bytes([number; 32])
    }

    fn host(number: u8, reach: Reach) -> HostRecord {
        let seal = SealRecord {
            key: number.to_string(),
            port: 51820,
            address: "fe80::1".parse().unwrap(),
            round: 0,
            next: None,
            moved: 0,
            secret: None,
        };
        HostRecord {
            lan: PerFamily::default(),
            name: format!("host-{number}").parse().unwrap(),
            underlay: PerFamily { v4: Some(Ipv4Addr::new(192, 0, 2, number).into()), v6: None },
            mac: Mac::local([number; 6]),
            mtu: Mtu::ETHERNET,
            seal: Some(seal),
            reach,
            answers: false,
            translates: false,
            version: String::new(),
        }
    }

    fn hosts() -> BTreeMap<Id, HostRecord> {
        let reach = |number| if number < 3 { Reach::BehindNat } else { Reach::Open };
        (1..=6).map(|number| (id(number), host(number, reach(number)))).collect()
    }

    fn by(relay: u8, port: Option<u16>, instead_of: BTreeSet<IpAddr>) -> WayRecord {
        WayRecord { relay: id(relay), port, instead_of, meets: false, seen: BTreeMap::new() }
    }

    #[test]
    fn who_is_behind_nat_speaks_first() {
        let all = hosts();
        let [a, b, c, d] = [1, 2, 3, 4].map(|number| &all[&id(number)]);
        let at = |number| IpAddr::from([192, 0, 2, number]);
        assert_eq!(way(c, d, None, &all), Way::Direct(at(4)));
        assert_eq!((way(a, c, None, &all), way(c, a, None, &all)), (Way::Direct(at(3)), Way::Seen));
        assert_eq!(way(a, b, None, &all), Way::None);
        assert!(Way::Seen.is_kept(c, a) && Way::Direct(at(3)).is_kept(a, c) && !Way::Direct(at(4)).is_kept(c, d));
        assert!(begins((a, "z"), (c, "a")) && !begins((c, "a"), (a, "z")));
        assert!(begins((a, "a"), (b, "z")) && !begins((b, "z"), (a, "a")) && begins((c, "a"), (d, "z")));
    }

    #[test]
    fn a_third_one_is_needed_as_long_as_the_two_are_where_they_were() {
        let mut all = hosts();
        let [a, b, c, d] = [1, 2, 3, 4].map(|number| all[&id(number)].clone());
        let at = |number| IpAddr::from([192, 0, 2, number]);
        // Where who is behind NAT is says nothing.
        let written = by(5, Some(7), BTreeSet::new());
        assert_eq!(way(&a, &b, Some(&written), &all), Way::Relay(id(5), Some((at(5), 7))));
        assert_eq!(way(&a, &b, Some(&by(5, None, BTreeSet::new())), &all), Way::Relay(id(5), None));
        let written = by(5, Some(7), [at(3), at(4)].into());
        assert_eq!(way(&c, &d, Some(&written), &all), Way::Relay(id(5), Some((at(5), 7))));
        let moved = HostRecord { underlay: PerFamily { v4: Some(at(9)), v6: None }, ..d };
        assert_eq!(way(&c, &moved, Some(&written), &all), Way::Direct(at(9)));
        all.get_mut(&id(5)).unwrap().reach = Reach::NoRelay;
        assert_eq!(way(&c, &all[&id(4)], Some(&written), &all), Way::Direct(at(4)), "he does not pass on any more");
        all.remove(&id(5));
        assert_eq!(way(&c, &all[&id(4)], Some(&written), &all), Way::Direct(at(4)));
    }

    #[test]
    fn two_behind_nat_meet_where_they_are_seen() {
        let all = hosts();
        let [a, b] = [1, 2].map(|number| &all[&id(number)]);
        let seen = |a: &str, b: &str| {
            let seen = [("1", a), ("2", b), ("old", "192.0.2.200:1")];
            let seen = seen.map(|(key, at)| (key.to_owned(), at.parse().unwrap())).into();
            WayRecord { meets: true, seen, ..by(5, None, BTreeSet::new()) }
        };
        let meet = |way: &WayRecord| (way_of(a, b, way, &all), way_of(b, a, way, &all));
        let at = |key: &str, at: &str| Way::Meet([(key.to_owned(), at.parse().unwrap())].into());
        let written = seen("198.51.100.1:1001", "198.51.100.2:1002");
        assert_eq!(meet(&written), (at("2", "198.51.100.2:1002"), at("1", "198.51.100.1:1001")));
        // Behind the same one they are neighbours.
        let written = seen("198.51.100.1:1001", "198.51.100.1:1002");
        assert_eq!(meet(&written), (at("2", "192.0.2.2:51820"), at("1", "192.0.2.1:51820")));
        // Not yet seen.
        let written = WayRecord { seen: BTreeMap::new(), ..written };
        assert_eq!(meet(&written), (Way::Relay(id(5), None), Way::Relay(id(5), None)));
    }

    fn way_of(own: &HostRecord, other: &HostRecord, written: &WayRecord, all: &BTreeMap<Id, HostRecord>) -> Way {
        way(own, other, Some(written), all)
    }

    #[test]
    fn both_choose_the_same_and_not_all_the_same() {
        let mut all = hosts();
        let none = BTreeSet::new();
        let choose = |all: &BTreeMap<Id, HostRecord>, one, other, heard: &[u8], but: &BTreeSet<Id>| {
            let is_heard = |host| heard.iter().any(|number| id(*number) == host);
            relay_for((id(one), id(other)), all, is_heard, |host| host != id(6), but)
        };
        let first = choose(&all, 1, 2, &[], &none).unwrap();
        assert_eq!(choose(&all, 2, 1, &[], &none), Some(first));
        assert!([3, 4, 5].map(id).contains(&first), "not one that is down, or behind NAT itself");
        let second = choose(&all, 1, 2, &[], &[first].into()).unwrap();
        assert!(second != first && [3, 4, 5].map(id).contains(&second));
        assert_eq!(choose(&all, 1, 2, &[6], &none), Some(id(6)), "one that is heard, whatever etcd says");
        assert_eq!(choose(&all, 1, 2, &[], &[3, 4, 5].map(id).into()), None);
        all.values_mut().filter(|host| !host.is_behind_nat()).for_each(|host| host.reach = Reach::NoRelay);
        assert_eq!(choose(&all, 1, 2, &[6], &none), None);
        for (number, host) in (10..60).map(|number| (number, host(number, Reach::BehindNat))) {
            all.insert(id(number), host);
        }
        all.extend((3..6).map(|number| (id(number), host(number, Reach::Open))));
        let chosen: BTreeSet<Id> = (11..60).filter_map(|other| choose(&all, 10, other, &[], &none)).collect();
        assert_eq!(chosen.len(), 3, "they share it");
        all.get_mut(&id(4)).unwrap().underlay = PerFamily { v4: None, v6: Some("2001:db8::4".parse().unwrap()) };
        let chosen: BTreeSet<Id> = (11..60).filter_map(|other| choose(&all, 10, other, &[], &none)).collect();
        assert_eq!(chosen, [3, 5].map(id).into(), "of another family");
    }

    #[test]
    fn a_way_is_given_up_in_time_and_not_before() {
        let seconds = Duration::from_secs;
        let heard = |since, last: Option<u64>, unanswered: Option<u64>| Heard {
            since: seconds(since),
            last: last.map(seconds),
            unanswered: unanswered.map(seconds),
            unagreed: None,
        };
        let direct = Way::Direct([192, 0, 2, 1].into());
        // Nobody said anything, and nobody was asked.
        assert!(!heard(1000, None, None).is_lost(&direct, false));
        assert!(!heard(1000, Some(900), None).is_lost(&direct, false));
        // An answer takes up to ten seconds, and greeting anew five more.
        assert!(
            !heard(1000, None, Some(15)).is_lost(&direct, false) && heard(1000, None, Some(20)).is_lost(&direct, false)
        );
        assert!(!heard(10, None, Some(10)).is_lost(&direct, true) && heard(15, None, None).is_lost(&direct, true));
        // Whoever is silent is spoken to, and answers.
        assert!(Heard::QUIET + seconds(15) < SILENCE);
        let meet = Way::Meet(BTreeMap::new());
        assert!(!heard(5, None, None).is_lost(&meet, true) && heard(6, None, None).is_lost(&meet, true));
        let unagreed = |since| Heard { unagreed: Some(seconds(since)), ..heard(100, Some(1), None) };
        assert!(!unagreed(10).is_lost(&meet, true) && unagreed(15).is_lost(&meet, true));
        assert!(!unagreed(15).is_lost(&direct, true) && Heard::default().is_lost(&Way::None, true));
        assert!(
            !heard(100, Some(27), Some(30)).is_lost(&direct, true) && heard(100, Some(30), None).is_lost(&direct, true)
        );
    }
}
