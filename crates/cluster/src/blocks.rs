//! Blocks: the parts of a network's addresses that one host gives out by itself.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

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

/// How many blocks a network has; so many that it does not matter count as `u64::MAX`.
pub fn blocks_of(prefix: IpNet, length: u8) -> u64 {
    1u64.checked_shl(u32::from(length.saturating_sub(prefix.prefix_len()))).unwrap_or(u64::MAX)
}

/// A block that nobody has: the first one from where `random` points to, so that hosts that look at the same time rarely
/// choose the same one. None when all are taken.
///
/// Work is proportional to how many blocks in a row are taken there.
pub fn choose(prefix: IpNet, length: u8, taken: &BTreeSet<IpNet>, random: u64) -> Option<IpNet> {
    let count = blocks_of(prefix, length);
    let start = random % count;
    let mut at = start;
    // One of them is free if there are more than are taken.
    for _ in 0..=(taken.len() as u64).min(count - 1) {
        let block = nth(prefix, length, at)?;
        if !taken.contains(&block) {
            return Some(block);
        }
        at = if at + 1 == count { 0 } else { at + 1 };
    }
    None
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
}
