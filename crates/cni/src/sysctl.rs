//! The object `sysctl` of a configuration, where a parsed one cannot say what was written.

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Code, Error};

/// Refuses a key of `sysctl` that is there twice: which one counts nobody could tell.
///
/// # Errors
/// [`Code::InvalidConfig`].
pub fn check_duplicate_sysctls(text: &[u8]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(default, alias = "sysCtl")]
        sysctl: Keys,
    }
    let raw: Result<Raw, _> = serde_json::from_slice(text);
    let keys = raw.map(|raw| raw.sysctl.0).unwrap_or_default();
    let is_twice = |(index, key): (usize, &String)| keys[..index].contains(key);
    match keys.iter().enumerate().any(is_twice) {
        true => Err(Error::new(Code::InvalidConfig, "duplicated sysctl keys are not allowed")),
        false => Ok(()),
    }
}

/// The keys of an object, as often as they are there.
#[derive(Default)]
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Keys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some(key) = map.next_key()? {
                    map.next_value::<serde::de::IgnoredAny>()?;
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Each)
    }
}
