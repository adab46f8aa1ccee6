//! Keys: 32 bytes, as text in base64 (wg(8)) or in hexadecimal digits (the configuration protocol).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const LEN: usize = 32;

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is not base64.
    #[error("key is not in base64")]
    Base64,
    /// It is not hexadecimal.
    #[error("key is not in hexadecimal digits")]
    Hex,
    /// It is of another length.
    #[error("key has {0} bytes, not 32")]
    Length(usize),
}

fn from_base64(text: &str) -> Result<[u8; LEN], KeyError> {
    let bytes = STANDARD.decode(text).map_err(|_| KeyError::Base64)?;
    bytes.as_slice().try_into().map_err(|_| KeyError::Length(bytes.len()))
}

fn from_hex(text: &str) -> Result<[u8; LEN], KeyError> {
    let digits = text.as_bytes();
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(KeyError::Hex);
    }
    if digits.len() != 2 * LEN {
        return Err(KeyError::Length(digits.len() / 2));
    }
    let value = |digit: u8| char::from(digit).to_digit(16).unwrap_or(0) as u8;
    let mut bytes = [0; LEN];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    Ok(bytes)
}

fn to_hex(bytes: &[u8; LEN]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

macro_rules! key {
    ($name:ident) => {
        impl $name {
            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// As wg(8) writes it: base64 with padding, 44 characters (RFC 4648 §4).
            pub fn to_base64(&self) -> String {
                STANDARD.encode(self.0)
            }

            /// As the configuration protocol writes it: 64 lower case hexadecimal digits.
            pub fn to_hex(&self) -> String {
                to_hex(&self.0)
            }

            /// Reads what [`Self::to_hex`] wrote.
            ///
            /// # Errors
            /// [`KeyError::Hex`] or [`KeyError::Length`].
            pub fn from_hex(text: &str) -> Result<Self, KeyError> {
                from_hex(text).map(Self::from)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            /// Reads what [`Self::to_base64`] wrote.
            fn from_str(text: &str) -> Result<Self, KeyError> {
                from_base64(text).map(Self::from)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.to_base64())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A host's secret: a Curve25519 scalar, clamped (RFC 7748 §5). Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; LEN]);

/// What others know a host by: a Curve25519 point (RFC 7748 §6.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; LEN]);

/// A secret of two hosts, mixed into their handshakes so that they stay secret when Curve25519 is broken one day. Not
/// shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey([u8; LEN]);

key!(PrivateKey);
key!(PublicKey);
key!(PresharedKey);

impl From<[u8; LEN]> for PrivateKey {
    /// Clamps.
    fn from(mut bytes: [u8; LEN]) -> Self {
        bytes[0] &= 0b1111_1000;
        bytes[LEN - 1] &= 0b0111_1111;
        bytes[LEN - 1] |= 0b0100_0000;
        Self(bytes)
    }
}

impl From<[u8; LEN]> for PublicKey {
    fn from(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; LEN]> for PresharedKey {
    fn from(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }
}

impl PrivateKey {
    /// Draws one (getrandom(2)).
    pub fn random() -> Self {
        portolan_kernel::random().into()
    }

    /// What others are to know us by.
    pub fn public(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

impl PresharedKey {
    /// Draws one (getrandom(2)).
    pub fn random() -> Self {
        Self(portolan_kernel::random())
    }

    /// All zeroes, which the configuration protocol takes for none.
    pub(crate) fn is_none(&self) -> bool {
        self.0 == [0; LEN]
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748 §5.2, the first of the iterations.
    const PRIVATE: &str = "0900000000000000000000000000000000000000000000000000000000000000";
    const CLAMPED: &str = "0800000000000000000000000000000000000000000000000000000000000040";
    const PUBLIC: &str = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079";

    #[test]
    fn public_key_follows_from_the_private_one() {
        let private = PrivateKey::from_hex(PRIVATE).unwrap();
        assert_eq!(private.to_hex(), CLAMPED);
        assert_eq!(private.public().to_hex(), PUBLIC);
        assert_ne!(PrivateKey::random(), PrivateKey::random());
    }

    #[test]
    fn text_forms_lead_back() {
        let public = PublicKey::from_hex(PUBLIC).unwrap();
        assert_eq!(public.to_base64().len(), 44);
        assert_eq!(public.to_base64().parse(), Ok(public));
        let json = serde_json::to_string(&public).unwrap();
        assert_eq!(json, format!("\"{public}\""));
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), public);
        assert!(serde_json::from_str::<PrivateKey>("\"AAAA\"").is_err());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError::Length(3)));
        assert_eq!("A".parse::<PublicKey>(), Err(KeyError::Base64));
        assert_eq!("not base64".parse::<PublicKey>(), Err(KeyError::Base64));
        assert_eq!(PublicKey::from_hex("00"), Err(KeyError::Length(1)));
        assert_eq!(PublicKey::from_hex("é"), Err(KeyError::Hex));
    }

    #[test]
    fn secrets_are_not_shown() {
        let (private, preshared) = (PrivateKey::random(), PresharedKey::random());
        assert_eq!(format!("{private:?} {preshared:?}"), "PrivateKey(..) PresharedKey(..)");
    }
}
