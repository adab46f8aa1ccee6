//! What Docker is told, and prints.

use std::fmt;

use portolan_model::Invalid;

/// Why a call was refused, in one sentence and with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// The refusal for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    fn with(reason: &str, hint: Option<String>) -> Self {
        Self(match hint {
            Some(hint) => format!("{reason} (hint: {hint})"),
            None => reason.to_owned(),
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::with(&invalid.to_string(), invalid.hint.as_ref().map(ToString::to_string))
    }
}

impl From<portolan_engine::Error> for Refusal {
    fn from(error: portolan_engine::Error) -> Self {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            reason.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self::with(&reason, error.hint())
    }
}
