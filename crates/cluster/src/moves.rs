//! How blocks go from host to host: who gives what to whom, what is offered meanwhile, and what goes back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use portolan_model::{Family, Id, Withheld};

use crate::blocks::{Spans, largest, room, without};
use crate::view::View;

/// What a host may give addresses out of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// The blocks, without what is withheld of them.
    pub blocks: BTreeSet<IpNet>,
    /// What is still withheld.
    pub withheld: BTreeSet<Withheld>,
}

/// What a host may give addresses out of, that has withheld this.
///
/// An offer is over when its block is seen to be gone or written anew, whoever did it: its condition holds no more, and never will
/// again, for no revision comes back. What is the host's then is what the view says.
pub fn own(view: &View, host: Id, network: Id, withheld: &BTreeSet<Withheld>) -> Own {
    // Nothing was seen of it yet.
    let is_blind = view.cluster().is_none() || (view.networks().contains_key(&network) && !view.follows(network));
    let is_behind = |one: &Withheld| view.follows(network) && view.revision_of(network) < one.written;
    let is_open = |one: &&Withheld| is_blind || is_behind(one) || view.written(network, one.block) == one.written;
    let withheld: BTreeSet<Withheld> = withheld.iter().filter(is_open).copied().collect();
    let mut blocks = BTreeSet::new();
    for (block, _) in view.blocks_on(network).filter(|(_, owner)| *owner == host) {
        let mut pieces = vec![block];
        for one in withheld.iter().filter(|one| one.block == block) {
            pieces = pieces.into_iter().flat_map(|piece| left_of(piece, one.part)).collect();
        }
        blocks.extend(pieces);
    }
    Own { blocks, withheld }
}

fn left_of(piece: IpNet, part: IpNet) -> Vec<IpNet> {
    match (piece.contains(&part), part.contains(&piece)) {
        (_, true) => Vec::new(),
        (true, false) => without(piece, part),
        (false, false) => vec![piece],
    }
}

/// How many addresses of `blocks`, all of the network `prefix`, are not in use.
pub fn free(prefix: IpNet, blocks: &BTreeSet<IpNet>, in_use: &BTreeSet<IpAddr>) -> u128 {
    blocks.iter().map(|block| room(prefix, *block).saturating_sub(used(*block, in_use))).sum()
}

fn used(block: IpNet, in_use: &BTreeSet<IpAddr>) -> u128 {
    in_use.range(block.network()..=block.broadcast()).count() as u128
}

/// What a host that has this gives of the network `prefix`: at most half of the addresses that are free, but one at least; a block
/// of which nothing is in use before parts of others, and of those the largest. None if it has nothing.
///
/// A block of which something is offered already is left alone: its revision says of one offer alone what became of it.
pub fn offer(
    view: &View,
    host: Id,
    network: Id,
    prefix: IpNet,
    own: &Own,
    in_use: &BTreeSet<IpAddr>,
) -> Option<Withheld> {
    let is_whole = |block: &&IpNet| {
        prefix.contains(*block)
            && view.block(network, **block) == Some(host)
            && !own.withheld.iter().any(|one| one.block == **block)
    };
    let blocks: BTreeSet<IpNet> = own.blocks.iter().filter(is_whole).copied().collect();
    let (block, part) = part_to_give(prefix, &blocks, in_use)?;
    Some(Withheld { block, part, written: view.written(network, block) })
}

/// A block, and the part of it to give.
fn part_to_give(prefix: IpNet, blocks: &BTreeSet<IpNet>, in_use: &BTreeSet<IpAddr>) -> Option<(IpNet, IpNet)> {
    let most = (free(prefix, blocks, in_use) / 2).max(1);
    let spans = Spans::of(in_use.iter().map(|address| IpNet::from(*address)));
    let parts =
        blocks.iter().filter_map(|block| Some((*block, largest(*block, most, &spans, &|net| room(prefix, net))?)));
    parts.max_by_key(|(block, part)| (block == part, room(prefix, *part)))
}

/// The blocks of which nothing is in use: what a host gives back that takes no more containers.
pub fn unused(blocks: &BTreeSet<IpNet>, in_use: &BTreeSet<IpAddr>) -> BTreeSet<IpNet> {
    blocks.iter().filter(|block| used(**block, in_use) == 0).copied().collect()
}

/// How much longer who has half as much free waits.
const STEP: Duration = Duration::from_millis(100);
/// Among so many hosts one more step of chance is taken.
const HOSTS_A_STEP: u32 = 50;

/// How long a host that has `free` addresses waits before it gives some, where blocks are so long and there are so many hosts: those
/// with most room go first, and of those that have as much not all at once. None if it has nothing to give.
pub fn turn(free: u128, prefix: IpNet, length: u8, hosts: usize, random: u64) -> Option<Duration> {
    let whole = u32::from(prefix.max_prefix_len() - length);
    let lack = (whole + 1).saturating_sub(free.checked_ilog2()?);
    let span = STEP * (1 + u32::try_from(hosts).unwrap_or(u32::MAX) / HOSTS_A_STEP);
    Some(STEP * lack + Duration::from_micros(random % u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
}

/// A block of which nothing was in use for so long goes back.
const REST: Duration = Duration::from_secs(60);

/// Since when nothing of a host's blocks is in use, as it looks at them from time to time.
#[derive(Debug, Clone, Default)]
pub struct Idle {
    since: BTreeMap<(Id, IpNet), Instant>,
}

impl Idle {
    /// Takes note of what is in use of a network's `blocks` of one family, `prefix`; what the host needs no more of them.
    ///
    /// A block is kept as long as the others are more than half in use: it would be claimed again soon. The last one goes back when
    /// nobody was on the network for as long.
    pub fn look(
        &mut self,
        network: Id,
        prefix: IpNet,
        blocks: &BTreeSet<IpNet>,
        in_use: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Option<IpNet> {
        let family = Family::of(prefix.addr());
        self.since.retain(|(of, block), _| {
            *of != network
                || Family::of(block.addr()) != family
                || (blocks.contains(block) && used(*block, in_use) == 0)
        });
        for block in blocks.iter().filter(|block| used(**block, in_use) == 0) {
            self.since.entry((network, *block)).or_insert(now);
        }
        let has_rested = |block: &&IpNet| {
            let since = self.since.get(&(network, **block));
            since.is_some_and(|since| now.saturating_duration_since(*since) >= REST)
        };
        let count = |of: &dyn Fn(IpNet) -> u128| -> u128 { blocks.iter().map(|block| of(*block)).sum() };
        let (all, taken) = (count(&|block| room(prefix, block)), count(&|block| used(block, in_use)));
        let is_empty = blocks.iter().all(|block| has_rested(&block));
        blocks.iter().filter(has_rested).copied().find(|block| {
            let left = all - room(prefix, *block);
            is_empty || (left > 0 && taken * 2 <= left)
        })
    }

    /// Forgets the networks that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(Id) -> bool) {
        self.since.retain(|(network, _), _| keep(*network));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| net(text)).collect()
    }

    fn addresses(net: &str) -> BTreeSet<IpAddr> {
        self::net(net).hosts().collect()
    }

    fn given(blocks: &[&str], in_use: &BTreeSet<IpAddr>) -> Option<(String, String)> {
        let (block, part) = part_to_give(net("10.1.0.0/16"), &nets(blocks), in_use)?;
        Some((block.to_string(), part.to_string()))
    }

    #[test]
    fn half_of_what_is_free_at_most() {
        let some = |block: &str, part: &str| Some((block.to_owned(), part.to_owned()));
        let none = BTreeSet::new();
        assert_eq!(given(&["10.1.1.0/26"], &none), some("10.1.1.0/26", "10.1.1.32/27"));
        // A whole one, as there are two; a part of the one that is used otherwise.
        assert_eq!(given(&["10.1.1.0/26", "10.1.2.0/26"], &none), some("10.1.2.0/26", "10.1.2.0/26"));
        let used = addresses("10.1.1.0/27");
        assert_eq!(given(&["10.1.1.0/26", "10.1.2.0/28"], &used), some("10.1.2.0/28", "10.1.2.0/28"));
        assert_eq!(given(&["10.1.1.0/26"], &used), some("10.1.1.0/26", "10.1.1.48/28"));
        // The last one as well.
        let mut used: BTreeSet<IpAddr> = addresses("10.1.1.0/26");
        used.extend(["10.1.1.0".parse::<IpAddr>().unwrap(), "10.1.1.63".parse().unwrap()]);
        assert_eq!(given(&["10.1.1.0/26"], &used), None);
        used.remove(&"10.1.1.21".parse().unwrap());
        assert_eq!(given(&["10.1.1.0/26"], &used), some("10.1.1.0/26", "10.1.1.21/32"));
        // Nothing that no container could have.
        assert_eq!(given(&["10.1.0.0/31", "10.1.255.255/32"], &none), None);
        assert_eq!(given(&[], &none), None);
    }

    #[test]
    fn much_room_is_found_at_once() {
        let blocks = nets(&["fd00::5:0/112", "fd00::6:0/112"]);
        let in_use: BTreeSet<IpAddr> = ["fd00::5:1".parse().unwrap(), "fd00::6:8001".parse().unwrap()].into();
        let (_, part) = part_to_give(net("fd00::/64"), &blocks, &in_use).unwrap();
        assert_eq!(part.prefix_len(), 113);
    }

    #[test]
    fn who_has_most_goes_first() {
        let prefix = net("10.1.0.0/16");
        let wait = |free, random| turn(free, prefix, 26, 3, random).unwrap();
        assert!(wait(64, u64::MAX) < wait(3, 0));
        assert!(wait(3, u64::MAX) < wait(1, 0));
        assert!(wait(1, u64::MAX) < Duration::from_secs(1));
        assert_eq!(turn(0, prefix, 26, 3, 0), None);
        assert!(turn(64, prefix, 26, 1000, 2_000_000).unwrap() > Duration::from_secs(2));
    }

    #[test]
    fn what_rested_goes_back() {
        let (network, prefix) = (Id::from_bytes([1; 32]), net("10.1.0.0/16"));
        let blocks = nets(&["10.1.1.0/26", "10.1.2.0/26"]);
        let start = Instant::now();
        let mut idle = Idle::default();
        let mut look = |in_use: &BTreeSet<IpAddr>, second| {
            idle.look(network, prefix, &blocks, in_use, start + Duration::from_secs(second))
        };
        let few = BTreeSet::from(["10.1.1.5".parse().unwrap()]);
        assert_eq!(look(&few, 0), None);
        assert_eq!(look(&few, 59), None);
        assert_eq!(look(&few, 60), Some(net("10.1.2.0/26")));
        // Most of the other one is in use.
        assert_eq!(look(&addresses("10.1.1.0/26"), 61), None);
        // Nobody is there.
        assert_eq!(look(&BTreeSet::new(), 70), Some(net("10.1.2.0/26")), "the other one is free");
        assert_eq!(look(&BTreeSet::new(), 130), Some(net("10.1.1.0/26")));
        // Somebody came in between.
        assert_eq!(look(&BTreeSet::from(["10.1.2.9".parse().unwrap()]), 131), Some(net("10.1.1.0/26")));
        assert_eq!(look(&BTreeSet::new(), 140), Some(net("10.1.1.0/26")));
    }
}
