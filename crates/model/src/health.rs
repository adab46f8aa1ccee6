use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// How a container that somebody looks at is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthState {
    /// Not known yet.
    Starting,
    /// It does what it should.
    Healthy,
    /// It does not.
    Unhealthy,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

impl FromStr for HealthState {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "starting" => Ok(Self::Starting),
            "healthy" => Ok(Self::Healthy),
            "unhealthy" => Ok(Self::Unhealthy),
            _ => Err(Invalid::new("health", text, "is unknown").hint("choose starting, healthy or unhealthy")),
        }
    }
}

/// A command that says how a container is, and when it is asked. Words and defaults are Docker's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What a shell is to run in the container: well if it ends with 0.
    pub command: String,
    /// From the end of one to the next one, and from the container's start to the first one.
    pub interval: Duration,
    /// The same before it was well once, during the grace.
    pub start_interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// How many have to fail one after the other.
    pub retries: u32,
    /// For how long after its start failures do not count, until it was well once.
    pub start_period: Duration,
}

impl HealthCheck {
    /// One with all defaults.
    pub fn new(command: impl Into<String>) -> Self {
        Self {
            command: command.into(),
            interval: Duration::from_secs(30),
            start_interval: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            retries: 3,
            start_period: Duration::ZERO,
        }
    }

    /// How long to wait for the next one, with a container that is `state` and was started `age` ago.
    pub fn pause(&self, state: HealthState, age: Duration) -> Duration {
        match state {
            HealthState::Starting if age < self.start_period => self.start_interval,
            _ => self.interval,
        }
    }
}

/// What came of a check that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthFailure {
    /// Seconds since 1970 of its end.
    pub at: u64,
    /// The status it ended with; -1 if it did not.
    pub status: i32,
    /// What it said, the beginning of it.
    pub output: String,
}

/// How a container is, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How it is.
    pub state: HealthState,
    /// How many checks have failed since the last one that did not.
    #[serde(default)]
    pub failing: u32,
    /// What came of the last one of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<HealthFailure>,
}

impl Health {
    /// Before the first check, or as somebody says.
    pub const fn new(state: HealthState) -> Self {
        Self { state, failing: 0, failure: None }
    }

    /// What it is after a check that began `age` after the container's start; none of a failure is well.
    #[must_use]
    pub fn after(&self, check: &HealthCheck, age: Duration, failure: Option<HealthFailure>) -> Self {
        let Some(failure) = failure else { return Self::new(HealthState::Healthy) };
        let is_grace = self.state == HealthState::Starting && age < check.start_period;
        let failing = if is_grace { self.failing } else { self.failing.saturating_add(1) };
        let state = if failing > 0 && failing >= check.retries { HealthState::Unhealthy } else { self.state };
        Self { state, failing, failure: Some(failure) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthState::{Healthy, Starting, Unhealthy};

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The states after checks at these ages, which are well or not.
    fn states(check: &HealthCheck, checks: &[(u64, bool)]) -> Vec<(HealthState, u32)> {
        let mut health = Health::new(Starting);
        let each = |(age, is_well): &(u64, bool)| {
            let failure = (!is_well).then(|| HealthFailure { at: 0, status: 1, output: String::new() });
            health = health.after(check, secs(*age), failure);
            (health.state, health.failing)
        };
        checks.iter().map(each).collect()
    }

    #[test]
    fn only_several_failures_in_a_row_count() {
        let check = HealthCheck::new("true");
        let seen = states(&check, &[(1, false), (2, false), (3, true), (4, false), (5, false), (6, false), (7, true)]);
        assert_eq!(
            seen,
            [(Starting, 1), (Starting, 2), (Healthy, 0), (Healthy, 1), (Healthy, 2), (Unhealthy, 3), (Healthy, 0)]
        );
    }

    #[test]
    fn at_the_start_failures_are_forgiven_until_it_was_well_once() {
        let check = HealthCheck { start_period: secs(60), retries: 1, ..HealthCheck::new("true") };
        assert_eq!(
            states(&check, &[(5, false), (59, false), (60, false)]),
            [(Starting, 0), (Starting, 0), (Unhealthy, 1)]
        );
        assert_eq!(states(&check, &[(5, true), (6, false)]), [(Healthy, 0), (Unhealthy, 1)]);
        assert_eq!(check.pause(Starting, secs(5)), secs(5));
        assert_eq!(check.pause(Healthy, secs(5)), secs(30));
        assert_eq!(check.pause(Starting, secs(60)), secs(30));
    }

    #[test]
    fn states_by_their_names() {
        for state in [Starting, Healthy, Unhealthy] {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        assert!("well".parse::<HealthState>().is_err());
    }
}
