//! Small things that the next process is to know, in the run-time directory: without them it finds them out by itself, later.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What was written down, if it can be read.
pub(super) fn read<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let text = fs::read_to_string(file).ok()?;
    match serde_json::from_str(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "what was written down is not understood");
            None
        }
    }
}

/// Writes it down in place of what was there.
pub(super) fn write<T: Serialize>(file: &Path, value: &T) {
    let text = serde_json::to_string(value).expect("plain values serialise");
    let beside = file.with_extension("new");
    if let Err(error) = fs::write(&beside, text).and_then(|()| fs::rename(&beside, file)) {
        tracing::warn!(%error, file = %file.display(), "cannot be written");
    }
}
