//! What the benchmarks of this crate make of measured times.

use std::time::Duration;

/// The middle one.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

/// In milliseconds.
#[allow(dead_code, reason = "some measure less")]
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// The median of the ratios pair by pair: the machine's speed drifts, pairs are measured side by side.
pub(crate) fn ratio(theirs: &[Duration], ours: &[Duration]) -> f64 {
    let mut ratios: Vec<f64> = theirs.iter().zip(ours).map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// The first and the third quartile.
#[allow(dead_code, reason = "not every benchmark has pairs enough")]
pub(crate) fn quarters(times: &[Duration]) -> (Duration, Duration) {
    let mut sorted = times.to_vec();
    sorted.sort();
    (sorted[sorted.len() / 4], sorted[sorted.len() * 3 / 4])
}

/// Between which two the median of [`ratio`] would be in 95 of 100 such runs (by the ranks of the binomial distribution).
#[allow(dead_code, reason = "not every benchmark has pairs enough")]
pub(crate) fn bounds(theirs: &[Duration], ours: &[Duration]) -> (f64, f64) {
    let mut ratios: Vec<f64> = theirs.iter().zip(ours).map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    let (half, by) = (ratios.len() / 2, (0.98 * (ratios.len() as f64).sqrt()).ceil() as usize);
    (ratios[half.saturating_sub(by)], ratios[(half + by).min(ratios.len() - 1)])
}
