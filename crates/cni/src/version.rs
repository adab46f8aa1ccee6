//! Versions of the spec.

use std::fmt;

use serde::Serialize;

use crate::error::{Code, Error};

/// A version of the spec that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

/// All of them, oldest first.
pub const SUPPORTED: [Version; 7] = [
    Version(0, 1, 0),
    Version(0, 2, 0),
    Version(0, 3, 0),
    Version(0, 3, 1),
    Version(0, 4, 0),
    Version(1, 0, 0),
    Version(1, 1, 0),
];

impl Version {
    /// Whether it is before 0.3.0: a result has one address of a family.
    pub fn has_one_address(self) -> bool {
        self < Self(0, 3, 0)
    }

    /// Whether addresses say which family they are of: 0.3.0 to 0.4.0.
    pub fn names_families(self) -> bool {
        !self.has_one_address() && self < Self(1, 0, 0)
    }

    /// Whether there is CHECK: from 0.4.0 on.
    pub fn has_check(self) -> bool {
        self >= Self(0, 4, 0)
    }

    /// Whether there are GC and STATUS, and MTUs in results: from 1.1.0 on.
    pub fn has_gc(self) -> bool {
        self >= Self(1, 1, 0)
    }

    /// The version that a configuration is of; none is the first (spec 0.1.0 has no such field).
    ///
    /// # Errors
    /// [`Code::Decoding`] for what is no version, [`Code::Incompatible`] for one that is not spoken here.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(SUPPORTED[0]);
        }
        let wrong = || Error::new(Code::Decoding, format!("failed to parse version {text:?}"));
        let mut numbers = [0; 3];
        let mut parts = text.split('.');
        for number in &mut numbers {
            // "1.0" is 1.0.0.
            let Some(part) = parts.next() else { break };
            *number = part.parse().map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        let found = Self(numbers[0], numbers[1], numbers[2]);
        if !SUPPORTED.contains(&found) {
            let supported = SUPPORTED.map(|version| format!("\"{version}\"")).join(" ");
            return Err(Error::new(Code::Incompatible, "incompatible CNI versions")
                .details(format!("config is {text:?}, plugin supports [{supported}]")));
        }
        Ok(found)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The answer to VERSION.
pub fn versions() -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Object {
        cni_version: String,
        supported_versions: Vec<String>,
    }
    let supported_versions: Vec<String> = SUPPORTED.iter().map(ToString::to_string).collect();
    let object = Object { cni_version: supported_versions[supported_versions.len() - 1].clone(), supported_versions };
    serde_json::to_string(&object).expect("plain values serialise")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown() {
        assert_eq!(Version::parse("").unwrap(), Version(0, 1, 0));
        assert_eq!(Version::parse("1.0").unwrap(), Version(1, 0, 0));
        assert_eq!(Version::parse("0.3.1").unwrap().to_string(), "0.3.1");
        let error = Version::parse("2.0.0").unwrap_err();
        assert_eq!(error.code, Code::Incompatible);
        assert!(error.details.starts_with(r#"config is "2.0.0", plugin supports ["0.1.0" "0.2.0""#), "{error}");
        for text in ["x", "1.x.0", "1.0.0.0", "-1.0.0"] {
            assert_eq!(Version::parse(text).unwrap_err().code, Code::Decoding, "{text}");
        }
        assert_eq!(
            versions(),
            r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
        );
    }
}
