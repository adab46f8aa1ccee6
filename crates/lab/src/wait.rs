use std::time::{Duration, Instant};

/// Polls `condition` until it holds; `false` if it still does not after `deadline`.
///
/// The pauses grow from 1 ms to 50 ms. The condition is tried at least once, and a last time at the
/// deadline.
#[must_use]
pub fn eventually(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        if condition() {
            return true;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_up_at_the_deadline_and_not_before() {
        let mut tries = 0;
        assert!(eventually(Duration::from_secs(10), || {
            tries += 1;
            tries == 3
        }));
        let start = Instant::now();
        assert!(!eventually(Duration::from_millis(20), || false));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
