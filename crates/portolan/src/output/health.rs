//! How a container is, in Docker's words and shape.

use portolan_model::{Container, Health, HealthCheck, HealthState};
use serde::Serialize;

use crate::clock;

/// What `ps` has behind how long it runs.
pub(super) fn note(container: &Container) -> String {
    match container.health.as_ref().map(|health| health.state) {
        None => String::new(),
        Some(HealthState::Starting) => " (health: starting)".to_owned(),
        Some(state) => format!(" ({state})"),
    }
}

/// The word for filters.
pub(crate) fn word(container: &Container) -> String {
    container.health.as_ref().map_or_else(|| "none".to_owned(), |health| health.state.to_string())
}

/// `State.Health` of `inspect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HealthDetails {
    status: String,
    failing_streak: u32,
    /// The last failure, where the last check was one. Docker has the last five, whatever came of them.
    log: Vec<LogEntry>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct LogEntry {
    end: String,
    exit_code: i32,
    output: String,
}

impl From<&Health> for HealthDetails {
    fn from(health: &Health) -> Self {
        let entry = health.failure.as_ref().map(|failure| LogEntry {
            end: clock::rfc3339(failure.at),
            exit_code: failure.status,
            output: failure.output.clone(),
        });
        Self { status: health.state.to_string(), failing_streak: health.failing, log: entry.into_iter().collect() }
    }
}

/// `Config.Healthcheck` of `inspect`; times in nanoseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CheckDetails {
    test: Vec<String>,
    interval: u128,
    timeout: u128,
    start_period: u128,
    start_interval: u128,
    retries: u32,
}

impl From<&HealthCheck> for CheckDetails {
    fn from(check: &HealthCheck) -> Self {
        Self {
            test: vec!["CMD-SHELL".to_owned(), check.command.clone()],
            interval: check.interval.as_nanos(),
            timeout: check.timeout.as_nanos(),
            start_period: check.start_period.as_nanos(),
            start_interval: check.start_interval.as_nanos(),
            retries: check.retries,
        }
    }
}
