//! Versions of the API, as they stand before the path: `/v1.41/networks`.

use super::failure::{Failure, Kind};

/// A version 1.x of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16);

impl Version {
    /// The oldest that is served.
    pub const OLDEST: Self = Self(24);
    /// The newest that is served, and the one that is meant where none is named.
    pub const NEWEST: Self = Self(51);

    /// Takes the version off a path that starts with one.
    ///
    /// # Errors
    /// What dockerd says of versions that are too old or too new.
    pub fn split(path: &str) -> Result<(Self, &str), Failure> {
        let Some((text, rest)) = prefix(path) else { return Ok((Self::NEWEST, path)) };
        let (major, minor) = numbers(text);
        let too = |what: &str| Failure::new(Kind::Invalid, format!("client version {text} is too {what}"));
        if (major, minor) < (1, Self::OLDEST.0) {
            return Err(too(&format!(
                "old. Minimum supported API version is {}, please upgrade your client to a newer version",
                Self::OLDEST
            )));
        }
        if (major, minor) > (1, Self::NEWEST.0) {
            return Err(too(&format!("new. Maximum supported API version is {}", Self::NEWEST)));
        }
        Ok((Self(minor), rest))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "1.{}", self.0)
    }
}

/// `1.41` and `/networks` of `/v1.41/networks`: dockerd takes digits and dots only for a version.
fn prefix(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v")?;
    let end = rest.find('/')?;
    let (text, rest) = rest.split_at(end);
    let is_version = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    is_version.then_some((text, rest))
}

/// Its first two numbers; what is too large for one is newer than all.
fn numbers(text: &str) -> (u16, u16) {
    let mut parts = text.split('.').map(|part| match part {
        "" => 0,
        part => part.parse().unwrap_or(u16::MAX),
    });
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_paths() {
        for (path, version, rest) in [
            ("/v1.24/networks", 24, "/networks"),
            ("/v1.51/networks/v1.2", 51, "/networks/v1.2"),
            ("/v1.41.0/_ping", 41, "/_ping"),
            ("/_ping", 51, "/_ping"),
            ("/version", 51, "/version"),
            ("/v/networks", 51, "/v/networks"),
            ("/v1.x/networks", 51, "/v1.x/networks"),
            ("/v1.41", 51, "/v1.41"),
        ] {
            assert_eq!(Version::split(path).unwrap(), (Version(version), rest), "{path}");
        }
    }

    #[test]
    fn versions_that_are_not_served() {
        let said = |path| Version::split(path).unwrap_err().message;
        assert_eq!(said("/v1.52/info"), "client version 1.52 is too new. Maximum supported API version is 1.51");
        assert_eq!(
            said("/v1.23/info"),
            "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
        );
        for path in ["/v2/x", "/v1.99999999999/x", "/v99999999.1/x"] {
            assert!(said(path).contains("too new"), "{path}");
        }
        for path in ["/v1/x", "/v./x", "/v0.9/x"] {
            assert!(said(path).contains("too old"), "{path}");
        }
    }
}
