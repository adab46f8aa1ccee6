//! Failures as the spec has them: a code, a message, details.

use std::fmt;

use portolan_engine::Kind;
use serde::Serialize;

/// What kind of failure it is (CNI spec, "Error"; codes from 100 on are a plugin's own).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration is of a version that is not spoken here.
    Incompatible = 1,
    /// The configuration has a field that is not supported.
    Unsupported = 2,
    /// The container is not known.
    UnknownContainer = 3,
    /// The environment lacks something, or it is malformed.
    Environment = 4,
    /// Something could not be read or written.
    Io = 5,
    /// The configuration is no JSON of the expected shape.
    Decoding = 6,
    /// The configuration asks for something impossible.
    InvalidConfig = 7,
    /// The network namespace is none, or the wrong one.
    InvalidNetns = 8,
    /// It may work later.
    TryAgain = 11,
    /// An ADD would fail (STATUS).
    NotAvailable = 50,
    /// What was asked for is taken: an address, a port, a name.
    Conflict = 100,
    /// There is no more of what was asked for.
    Exhausted = 101,
    /// The caller may not.
    Denied = 102,
    /// The kernel does not hold what it should (CHECK).
    Differs = 103,
    /// Our fault, or the machine's.
    Internal = 999,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Its kind.
    pub code: Code,
    /// What, in one sentence.
    pub msg: String,
    /// More of it, or what to do about it; may be empty.
    pub details: String,
}

impl Error {
    /// A failure without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// What CHECK says when the kernel does not hold what it should.
    pub fn differs(msg: impl Into<String>) -> Self {
        Self::new(Code::Differs, msg)
    }

    /// The same, with details.
    #[must_use]
    pub fn details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The object that goes to standard output.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Object<'a> {
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let object = Object { code: self.code as u32, msg: &self.msg, details: &self.details };
        serde_json::to_string(&object).expect("plain values serialise")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<portolan_engine::Error> for Error {
    fn from(error: portolan_engine::Error) -> Self {
        let code = match error.kind() {
            Kind::Invalid | Kind::NotFound => Code::InvalidConfig,
            Kind::Conflict => Code::Conflict,
            Kind::Exhausted => Code::Exhausted,
            Kind::Denied => Code::Denied,
            Kind::Unsupported => Code::NotAvailable,
            Kind::Transient => Code::TryAgain,
            Kind::Bug => Code::Internal,
        };
        let mut msg = error.to_string();
        if let portolan_engine::Error::Kernel { source, .. } = &error {
            msg = format!("{msg}: {source}");
        }
        Self { code, msg, details: error.hint().unwrap_or_default() }
    }
}

impl From<portolan_model::Invalid> for Error {
    fn from(error: portolan_model::Invalid) -> Self {
        Self {
            code: Code::InvalidConfig,
            msg: error.to_string(),
            details: error.hint.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}
