//! Blocks: the parts of a network's addresses that one host gives out by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Sixty-four addresses: enough for most hosts, and a /16 is enough for a thousand of them.
const V4: u8 = 26;
/// As many blocks a network is cut into at least, as far as each has room for a gateway and a few containers.
const PARTS: u8 = 4;
const SMALLEST_V4: u8 = 29;
const V6: u8 = 112;
const SMALLEST_V6: u8 = 122;

/// How long the prefixes of a network's blocks are, unless somebody chooses.
pub fn block_length(prefix: IpNet) -> u8 {
    let length = prefix.prefix_len();
    match prefix {
        IpNet::V4(_) => (length + PARTS).clamp(V4, SMALLEST_V4).max(length),
        IpNet::V6(_) => (length + PARTS).clamp(V6, SMALLEST_V6).max(length),
    }
}

/// The block of a network's `prefix` that `address` is of, unless somebody chose another length.
pub fn block_of(prefix: IpNet, address: IpAddr) -> IpNet {
    within(IpNet::from(address), block_length(prefix))
}

/// How many blocks a network has; so many that it does not matter count as `u64::MAX`.
pub fn blocks_of(prefix: IpNet, length: u8) -> u64 {
    1u64.checked_shl(u32::from(length.saturating_sub(prefix.prefix_len()))).unwrap_or(u64::MAX)
}

/// A block that nobody has: the first one from where `random` points to, so that hosts that look at the same time rarely
/// choose the same one; where none is whole, the largest part of one. None when all addresses are taken.
///
/// `taken` do not overlap. Work is proportional to how many they are.
pub fn choose(prefix: IpNet, length: u8, taken: &BTreeSet<IpNet>, random: u64) -> Option<IpNet> {
    let count = blocks_of(prefix, length);
    let whole: BTreeSet<IpNet> = taken.iter().map(|block| within(*block, length)).collect();
    let start = random % count;
    let mut at = start;
    // One of them is free if there are more than are taken.
    for _ in 0..=(whole.len() as u64).min(count - 1) {
        let block = nth(prefix, length, at)?;
        if !whole.contains(&block) {
            return Some(block);
        }
        at = if at + 1 == count { 0 } else { at + 1 };
    }
    let spans = Spans::of(taken.iter().copied());
    let cut: BTreeSet<IpNet> =
        taken.iter().filter(|block| block.prefix_len() > length).map(|block| within(*block, length)).collect();
    let (before, after) = match nth(prefix, length, start) {
        Some(from) => (cut.range(..from), cut.range(from..)),
        None => return None,
    };
    let parts = after.chain(before).filter_map(|block| largest(*block, u128::MAX, &spans, &|net| room(prefix, net)));
    // The first one of the largest.
    parts.reduce(|best, part| if room(prefix, part) > room(prefix, best) { part } else { best })
}

/// The largest part of a block, all of it at most, around `address`, that nobody has of `taken`, which do not overlap.
pub fn free_around(address: IpAddr, length: u8, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let spans = Spans::of(taken.iter().copied());
    let single = IpNet::from(address);
    (length..=single.prefix_len()).map(|length| within(single, length)).find(|net| !spans.touches(*net))
}

/// The prefix of this length that `net` lies in; `net` itself if it is larger than that.
pub(crate) fn within(net: IpNet, length: u8) -> IpNet {
    let length = length.min(net.prefix_len());
    IpNet::new(net.network(), length).expect("it is shorter than one of the family").trunc()
}

/// What is left of a block without a part of it: prefixes, as few as can be.
pub fn without(block: IpNet, part: IpNet) -> Vec<IpNet> {
    let mut left = Vec::new();
    let mut rest = block;
    while rest != part && rest.contains(&part) {
        let Some((low, high)) = halves(rest) else { break };
        let (inside, outside) = if low.contains(&part) { (low, high) } else { (high, low) };
        left.push(outside);
        rest = inside;
    }
    left.sort_unstable();
    left
}

/// None of a single address.
pub(crate) fn halves(net: IpNet) -> Option<(IpNet, IpNet)> {
    let mut halves = net.subnets(net.prefix_len() + 1).ok()?;
    Some((halves.next()?, halves.next()?))
}

/// Addresses that are not free: ranges without an address in common.
pub(crate) struct Spans(BTreeMap<IpAddr, IpAddr>);

impl Spans {
    pub(crate) fn of(nets: impl IntoIterator<Item = IpNet>) -> Self {
        Self(nets.into_iter().map(|net| (net.network(), net.broadcast())).collect())
    }

    /// Whether any address of `net` is among them.
    pub(crate) fn touches(&self, net: IpNet) -> bool {
        self.0.range(..=net.broadcast()).next_back().is_some_and(|(_, last)| *last >= net.network())
    }

    /// Whether one of them has all of `net`.
    fn covers(&self, net: IpNet) -> bool {
        let before = self.0.range(..=net.network()).next_back();
        before.is_some_and(|(_, last)| *last >= net.broadcast())
    }
}

/// How many addresses of `net`, a part of the network `prefix`, containers can have: not those of the network itself, of its
/// gateway, and of IPv4 broadcast (but RFC 3021, RFC 6164).
pub(crate) fn room(prefix: IpNet, net: IpNet) -> u128 {
    let host_bits = prefix.max_prefix_len() - prefix.prefix_len();
    let gateway = match prefix.network() {
        first if host_bits <= 1 => first,
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + 1).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + 1).into(),
    };
    let is_v4 = prefix.network().is_ipv4();
    let others = [(host_bits > 1).then_some(prefix.network()), (host_bits > 1 && is_v4).then_some(prefix.broadcast())];
    let kept = others.into_iter().flatten().chain([gateway]).filter(|address| net.contains(address)).count();
    let all = 1u128.checked_shl(u32::from(net.max_prefix_len() - net.prefix_len())).unwrap_or(u128::MAX);
    all.saturating_sub(kept as u128)
}

/// The largest part of `net` without an address that is not free, of which at most so many addresses, and one at least, can be had
/// as `room` says. None if there is none.
///
/// Work is proportional to how many ranges of `spans` lie in `net`, and to how long addresses are.
pub(crate) fn largest(net: IpNet, most: u128, spans: &Spans, room: &impl Fn(IpNet) -> u128) -> Option<IpNet> {
    let size = room(net);
    if size == 0 || spans.covers(net) {
        return None;
    }
    let is_free = !spans.touches(net);
    if is_free && size <= most {
        return Some(net);
    }
    let (low, high) = halves(net)?;
    let second = largest(high, most, spans, room);
    if is_free && second.is_some() {
        // The other half has as much, or less: the gateway is in the lower one.
        return second;
    }
    let first = largest(low, most, spans, room);
    match (first, second) {
        (Some(one), Some(other)) => Some(if room(other) > room(one) { other } else { one }),
        (one, other) => one.or(other),
    }
}

/// Block `number` of those that a prefix is cut into.
pub(crate) fn nth(prefix: IpNet, length: u8, number: u64) -> Option<IpNet> {
    match prefix {
        IpNet::V4(net) => {
            let step = u32::try_from(number).ok()?.checked_shl(u32::from(32 - length)).unwrap_or(0);
            Ipv4Net::new(Ipv4Addr::from_bits(net.network().to_bits() | step), length).ok().map(IpNet::V4)
        }
        IpNet::V6(net) => {
            let step = u128::from(number).checked_shl(u32::from(128 - length)).unwrap_or(0);
            Ipv6Net::new(Ipv6Addr::from_bits(net.network().to_bits() | step), length).ok().map(IpNet::V6)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn lengths() {
        for (prefix, length) in [
            ("10.0.0.0/16", 26),
            ("10.0.0.0/22", 26),
            ("10.0.0.0/24", 28),
            ("10.0.0.0/28", 29),
            ("10.0.0.0/30", 30),
            ("fd00::/64", 112),
            ("fd00::/112", 116),
            ("fd00::/126", 126),
        ] {
            assert_eq!(block_length(net(prefix)), length, "{prefix}");
        }
    }

    #[test]
    fn every_block_is_found_once() {
        let prefix = net("10.1.0.0/22");
        for start in [0, 1, 15, 16, u64::MAX] {
            let mut taken = BTreeSet::new();
            while let Some(block) = choose(prefix, 26, &taken, start) {
                assert!(prefix.contains(&block), "{block}");
                assert!(taken.insert(block), "{block} twice");
            }
            assert_eq!(taken.len(), 16);
        }
        let only = net("fd00::/112");
        assert_eq!(choose(only, 112, &BTreeSet::new(), 7), Some(only));
        assert_eq!(choose(only, 112, &BTreeSet::from([only]), 7), None);
    }

    #[test]
    fn those_of_a_vast_prefix_lie_inside() {
        let prefix = net("fd00::/16");
        let block = choose(prefix, 112, &BTreeSet::new(), u64::MAX - 1).unwrap();
        assert!(prefix.contains(&block), "{block}");
    }

    #[test]
    fn what_is_left_without_a_part() {
        let left = |block: &str, part: &str| -> Vec<String> {
            without(net(block), net(part)).iter().map(ToString::to_string).collect()
        };
        assert_eq!(left("10.0.0.0/26", "10.0.0.32/28"), ["10.0.0.0/27", "10.0.0.48/28"]);
        assert_eq!(left("10.0.0.0/30", "10.0.0.1/32"), ["10.0.0.0/32", "10.0.0.2/31"]);
        assert!(left("10.0.0.0/26", "10.0.0.0/26").is_empty());
        assert_eq!(without(net("fd00::/112"), net("fd00::7/128")).len(), 16);
    }

    #[test]
    fn parts_are_claimed_when_no_block_is_whole() {
        let prefix = net("10.1.0.0/24");
        let mut taken: BTreeSet<IpNet> =
            ["10.1.0.0/26", "10.1.0.64/27", "10.1.0.128/26", "10.1.0.192/28", "10.1.0.224/27"].map(net).into();
        for part in ["10.1.0.96/27", "10.1.0.208/28"] {
            let chosen = choose(prefix, 26, &taken, 3).unwrap();
            assert_eq!(chosen, net(part));
            taken.insert(chosen);
        }
        assert_eq!(choose(prefix, 26, &taken, 3), None);
        taken.remove(&net("10.1.0.192/28"));
        let around = |address: &str, taken: &BTreeSet<IpNet>| free_around(address.parse().unwrap(), 26, taken);
        assert_eq!(around("10.1.0.200", &taken), Some(net("10.1.0.192/28")));
        assert_eq!(around("10.1.0.3", &taken), None);
        assert_eq!(around("10.1.0.3", &BTreeSet::new()), Some(net("10.1.0.0/26")));
    }

    #[test]
    fn addresses_that_no_container_can_have_are_no_room() {
        for (prefix, part, count) in [
            ("10.1.0.0/16", "10.1.0.0/26", 62),
            ("10.1.0.0/16", "10.1.0.0/31", 0),
            ("10.1.0.0/16", "10.1.255.255/32", 0),
            ("10.1.0.0/16", "10.1.3.0/32", 1),
            ("10.1.0.0/31", "10.1.0.0/31", 1),
            ("fd00::/64", "fd00::/112", 65534),
            ("fd00::/64", "fd00::ffff:ffff:ffff:0/112", 65536),
        ] {
            assert_eq!(room(net(prefix), net(part)), count, "{part}");
        }
    }
}
