use std::borrow::Cow;

/// A value that is not well formed: what it was meant to be, the text given, and why it is refused.
///
/// `Display` is one sentence naming the thing; advice is kept apart in [`Invalid::hint`]. All of it goes to terminals and
/// logs and may repeat what somebody else wrote, so it has no control characters and an end.
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
        Self { what, value: shown(&value.into(), LONGEST_VALUE), reason: sentence(reason.into()), hint: None }
    }

    /// Adds advice, shown on a line of its own.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(sentence(hint.into()));
        self
    }
}

/// As many characters of the text that was given are shown.
const LONGEST_VALUE: usize = 80;
/// As many of a sentence that may have some of it inside.
const LONGEST_SENTENCE: usize = 600;

/// A sentence of ours as it is; of one that was made, what can be shown.
fn sentence(text: Cow<'static, str>) -> Cow<'static, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text),
        Cow::Owned(text) => Cow::Owned(shown(&text, LONGEST_SENTENCE)),
    }
}

/// The text without control characters, and shortened when it is longer.
fn shown(text: &str, longest: usize) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    match text.chars().nth(longest) {
        None => text.chars().map(plain).collect(),
        Some(_) => text.chars().map(plain).take(longest - 3).chain("...".chars()).collect(),
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
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a string")
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(crate) use serde_by_text;
