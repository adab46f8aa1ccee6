//! Go's gob (pkg.go.dev/encoding/gob): values that describe their own types, as far as `net/rpc` and the messages of the
//! plugin take it.
//!
//! A stream is a sequence of messages, each of which begins with its length. A message either describes a type, by a
//! number that is negative there, or has a value of a type that was described before. Fields are known by name: what the
//! other side has more or less of than we makes no difference.

mod decode;
mod encode;

use std::collections::BTreeMap;
use std::fmt;

pub(crate) use self::decode::Decoder;
pub(crate) use self::encode::{Encoder, Kind, Shape};

/// Numbers of the types that need no description (encoding/gob, type.go).
mod id {
    pub(super) const BOOL: i64 = 1;
    pub(super) const INT: i64 = 2;
    pub(super) const UINT: i64 = 3;
    pub(super) const FLOAT: i64 = 4;
    pub(super) const BYTES: i64 = 5;
    pub(super) const TEXT: i64 = 6;
    /// The first that a stream may describe.
    pub(super) const FIRST: i64 = 64;
}

/// What is no gob, or more than we take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed message: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// A value as it came, or is to go. What is zero or empty in a structure is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<Value>),
    Struct(BTreeMap<String, Value>),
    /// Of a type that no message here has: it is skipped.
    Other,
}

impl Value {
    /// A structure.
    pub(crate) fn of<const N: usize>(fields: [(&str, Self); N]) -> Self {
        Self::Struct(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// A field of a structure, if it has it.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Struct(fields) => fields.get(name),
            _ => None,
        }
    }

    /// A text that is a field; an empty one where it has none.
    pub(crate) fn text(&self, name: &str) -> Result<String, Malformed> {
        match self.field(name) {
            None => Ok(String::new()),
            Some(Self::Text(text)) => Ok(text.clone()),
            Some(_) => Err(Malformed("a text is expected")),
        }
    }

    /// Bytes that are a field; none where it has none.
    pub(crate) fn bytes(&self, name: &str) -> Result<&[u8], Malformed> {
        match self.field(name) {
            None => Ok(&[]),
            Some(Self::Bytes(bytes)) => Ok(bytes),
            Some(_) => Err(Malformed("bytes are expected")),
        }
    }

    /// A number that is a field; zero where it has none.
    pub(crate) fn uint(&self, name: &str) -> Result<u64, Malformed> {
        match self.field(name) {
            None => Ok(0),
            Some(Self::Uint(number)) => Ok(*number),
            Some(_) => Err(Malformed("a number is expected")),
        }
    }

    /// A list that is a field; an empty one where it has none.
    pub(crate) fn list(&self, name: &str) -> Result<&[Self], Malformed> {
        match self.field(name) {
            None => Ok(&[]),
            Some(Self::List(list)) => Ok(list),
            Some(_) => Err(Malformed("a list is expected")),
        }
    }
}
