//! Cases that several machines of one kind share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;

/// Starts `lanes` machines, each of which plays the next case as long as there is one; the outcomes, in the order of the cases.
///
/// A case waits for a runtime most of the time: while one does, another can go on.
///
/// # Errors
/// When a machine cannot be had.
pub(crate) fn in_lanes<C: Copy + Send + Sync, M, O: Send>(
    lanes: usize,
    cases: &[C],
    start: impl Fn(usize) -> Result<M> + Sync,
    play: impl Fn(&M, C) -> O + Sync,
) -> Result<Vec<O>> {
    let next = AtomicUsize::new(0);
    let lane = |number| -> Result<Vec<(usize, O)>> {
        let machine = start(number)?;
        let mut outcomes = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(place) else { return Ok(outcomes) };
            outcomes.push((place, play(&machine, *case)));
        }
    };
    let mut outcomes = Vec::new();
    thread::scope(|scope| {
        let lane = &lane;
        let lanes: Vec<_> = (0..lanes).map(|number| scope.spawn(move || lane(number))).collect();
        for lane in lanes {
            outcomes.extend(lane.join().expect("a case does not panic")?);
        }
        anyhow::Ok(())
    })?;
    outcomes.sort_by_key(|(place, _)| *place);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}
