//! Times as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use portolan_model::clock::rfc3339;

/// How long ago `seconds` since 1970 was, in one unit: `5 minutes`.
pub(crate) fn since(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    portolan_model::clock::span(now.saturating_sub(seconds))
}
