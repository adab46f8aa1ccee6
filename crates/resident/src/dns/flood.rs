//! Who asks for so much that the others' questions find a socket's buffer full, and which part of it is let in.
//!
//! What a server reads it can share out; what does not fit into the buffer the kernel drops, whoever it is of, and a server that
//! shares two processors with those who flood it is too late now and then. So the kernel is told to drop what is of the
//! greediest before it counts ([`portolan_kernel::sieve`]): more of it as long as the buffer fills, less when it does not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use portolan_kernel::sieve::MAX_SHIFT;

/// What is in the buffer from before is no reason to let in less: it is read by then.
const RAISED_EACH: Duration = Duration::from_millis(10);
/// After so long without a crowd, and then each time again, twice as much is let in: what comes of that is known by then, also to a
/// server that has little time.
const LOWERED_EACH: Duration = Duration::from_millis(500);
/// A quarter of before.
const STEP: u8 = 2;

/// Of some senders, which part is let in: one of `2^shift`.
#[derive(Debug, Default)]
pub(super) struct Held {
    shifts: BTreeMap<IpAddr, u8>,
    changed: Option<Instant>,
}

impl Held {
    /// In this turn the buffer was found crowded, and so many questions were of each. Whether something is to be told to the
    /// kernel.
    ///
    /// Of those of whom there were more than `share`, the fewest are held back who made up three quarters of it.
    pub(super) fn crowded(&mut self, of_each: &BTreeMap<IpAddr, u32>, share: u32, now: Instant) -> bool {
        if self.changed.is_some_and(|changed| now < changed + RAISED_EACH) {
            return false;
        }
        let mut left = of_each.values().sum::<u32>() / 4 * 3;
        let mut greedy: Vec<_> = of_each.iter().filter(|(_, count)| **count > share).collect();
        greedy.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (ip, count) in &greedy {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(**count);
            let shift = self.shifts.entry(**ip).or_default();
            *shift = (*shift + STEP).min(MAX_SHIFT);
        }
        if !greedy.is_empty() {
            self.changed = Some(now);
        }
        !greedy.is_empty()
    }

    /// When [`Held::relax`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.changed.map(|changed| changed + LOWERED_EACH)
    }

    /// Lets in more, if it is time. Whether something is to be told to the kernel.
    pub(super) fn relax(&mut self, now: Instant) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        self.shifts.retain(|_, shift| {
            *shift -= 1;
            *shift > 0
        });
        self.changed = (!self.shifts.is_empty()).then_some(now);
        true
    }

    /// Who is held back.
    pub(super) fn shifts(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        self.shifts.iter().map(|(&ip, &shift)| (ip, shift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn turn(of_each: &[(u8, u32)]) -> BTreeMap<IpAddr, u32> {
        of_each.iter().map(|&(last, count)| (ip(last), count)).collect()
    }

    fn shifts(held: &Held) -> Vec<(IpAddr, u8)> {
        held.shifts().collect()
    }

    #[test]
    fn the_greediest_are_held_back_and_nobody_else() {
        let mut held = Held::default();
        let now = Instant::now();
        // A burst of an honest one is more than a share.
        assert!(held.crowded(&turn(&[(1, 900), (2, 850), (3, 200), (4, 3)]), 128, now));
        assert_eq!(shifts(&held), [(ip(1), 2), (ip(2), 2)]);
    }

    #[test]
    fn where_all_ask_alike_none_is_greedy() {
        let mut held = Held::default();
        let crowd: BTreeMap<_, _> = (0..100).map(|last| (ip(last), 20)).collect();
        assert!(!held.crowded(&crowd, 128, Instant::now()));
        assert_eq!((shifts(&held), held.deadline()), (vec![], None));
    }

    #[test]
    fn it_is_held_back_more_while_it_is_crowded_and_less_when_it_is_not() {
        let mut held = Held::default();
        let began = Instant::now();
        let flood = turn(&[(1, 2000)]);
        let mut raised = 0;
        for millis in 0..100 {
            raised += u8::from(held.crowded(&flood, 128, began + Duration::from_millis(millis)));
        }
        assert_eq!(raised, 10);
        assert_eq!(shifts(&held), [(ip(1), MAX_SHIFT)]);
        let mut now = began + Duration::from_millis(100);
        assert!(!held.relax(now), "it was crowded just now");
        for shift in (0..MAX_SHIFT).rev() {
            now = held.deadline().unwrap();
            assert!(held.relax(now));
            assert_eq!(held.shifts().map(|(_, shift)| shift).next().unwrap_or(0), shift);
        }
        assert_eq!((held.deadline(), held.relax(now + LOWERED_EACH)), (None, false));
    }
}
