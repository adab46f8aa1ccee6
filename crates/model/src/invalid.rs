use std::borrow::Cow;

/// A value that is not well formed: what it was meant to be, the text given, and why it is refused.
///
/// `Display` is one sentence naming the thing; advice is kept apart in [`Invalid::hint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{value}`: {reason}")]
pub struct Invalid {
    /// What the value was meant to be, e.g. `network name`.
    pub what: &'static str,
    /// The text as given, shortened when it is very long.
    pub value: String,
    /// Why it is refused, e.g. `is longer than 128 characters`.
    pub reason: Cow<'static, str>,
    /// What to type instead, if there is something to say.
    pub hint: Option<Cow<'static, str>>,
}

impl Invalid {
    /// Refuses `value` as a `what`, because of `reason`.
    pub fn new(what: &'static str, value: impl Into<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        let mut value: String = value.into().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        if value.chars().count() > 80 {
            value = value.chars().take(77).chain("...".chars()).collect();
        }
        Self { what, value, reason: reason.into(), hint: None }
    }

    /// Adds advice, shown on a line of its own.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Serialises a type through its text form and reads it back through its validating parser, so that
/// a row of the store can never hold what the command line would refuse.
macro_rules! serde_by_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_by_text;
