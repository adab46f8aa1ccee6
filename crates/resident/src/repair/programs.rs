//! Programs that pass packets on: the kernel tells nobody when somebody takes one away.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use portolan_kernel::host;
use portolan_kernel::netlink::NetlinkError;

/// Between two looks, as long as there are ends of tunnels.
const LOOK: Duration = Duration::from_secs(3);

/// So many times in a row an end without a program is one that may have had one: a repair looks what it should have. Networks
/// without shortcuts have none for good.
const TIMES: u8 = 2;

/// What was seen of programs.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Ends of tunnels, by the index of each: how many looks in a row found no program there.
    without: BTreeMap<u32, u8>,
    last: Option<Instant>,
}

impl Watch {
    /// When to look next; never again while there are no ends of tunnels: one that comes is heard of.
    pub(super) fn due(&self) -> Option<Duration> {
        let Some(last) = self.last else { return Some(Duration::ZERO) };
        (!self.without.is_empty()).then(|| LOOK.saturating_sub(last.elapsed()))
    }

    /// Looks, unless that was done just now; the names of ends of tunnels where somebody
    /// may have taken a program away.
    pub(super) fn look(&mut self) -> Result<Vec<String>, NetlinkError> {
        if self.last.is_some_and(|last| last.elapsed() < LOOK) {
            return Ok(Vec::new());
        }
        self.last = Some(Instant::now());
        let mut without = BTreeMap::new();
        let mut lost = Vec::new();
        for end in host::programs()? {
            let times = self.without.get(&end.index).copied().unwrap_or_default();
            let times = if end.is_whole.is_some() { 0 } else { times.saturating_add(1) };
            if end.is_whole == Some(false) || (1..=TIMES).contains(&times) {
                lost.push(end.name);
            }
            without.insert(end.index, times);
        }
        self.without = without;
        Ok(lost)
    }

    /// Sees what a repair made of it.
    pub(super) fn settle(&mut self) -> Result<(), NetlinkError> {
        for end in host::programs()?.into_iter().filter(|end| end.is_whole.is_some()) {
            self.without.insert(end.index, 0);
        }
        Ok(())
    }
}
