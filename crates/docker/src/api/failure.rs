//! What a client is told that does not get what it asks for: Docker's status and Docker's words.

use portolan_engine::Error;
use portolan_model::Invalid;

/// The class of a failure, which decides the status (moby, `daemon/server/httpstatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is malformed or cannot be.
    Invalid,
    /// It may not be done.
    Forbidden,
    /// It names something that is not there.
    NotFound,
    /// It asks for something that is taken.
    Conflict,
    /// The body did not come in time.
    Timeout,
    /// The body is longer than any that makes sense.
    TooLarge,
    /// It is our fault, or the machine's.
    System,
    /// dockerd does it, and we do not.
    NotImplemented,
    /// It may work later.
    Unavailable,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its class.
    pub kind: Kind,
    /// In words that clients print as they are.
    pub message: String,
}

impl Failure {
    /// The failure of this class for this reason.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A malformed request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// What dockerd has and we have not; `instead` says what to do.
    pub fn unsupported(what: impl std::fmt::Display, instead: &str) -> Self {
        Self::new(Kind::NotImplemented, format!("{what}: Portolan does not have this; {instead}"))
    }

    /// The status it is answered with.
    pub const fn status(&self) -> u16 {
        match self.kind {
            Kind::Invalid => 400,
            Kind::Forbidden => 403,
            Kind::NotFound => 404,
            Kind::Timeout => 408,
            Kind::Conflict => 409,
            Kind::TooLarge => 413,
            Kind::System => 500,
            Kind::NotImplemented => 501,
            Kind::Unavailable => 503,
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(advised(invalid.to_string(), invalid.hint.as_deref()))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (kind, message) = match &error {
            Error::Invalid(invalid) => return invalid.clone().into(),
            Error::NotFound { what: "network", name } => (Kind::NotFound, format!("network {name} not found")),
            Error::NotFound { what: "container", name } => (Kind::NotFound, format!("No such container: {name}")),
            Error::NameTaken { what: "network", name } => {
                (Kind::Conflict, format!("network with name {name} already exists"))
            }
            // The blank at its end is Docker's.
            Error::Predefined { name, verb: "created" } => {
                (Kind::Forbidden, format!("operation is not permitted on predefined {name} network "))
            }
            Error::Predefined { name, .. } => {
                (Kind::Forbidden, format!("{name} is a pre-defined network and cannot be removed"))
            }
            Error::Overlap { subnet, other } => (
                Kind::Forbidden,
                format!("invalid pool request: Pool overlaps with other one on this address space ({subnet}: {other})"),
            ),
            Error::PoolExhausted { .. } => {
                (Kind::Invalid, "all predefined address pools have been fully subnetted".to_owned())
            }
            Error::AddressesExhausted { .. } => (Kind::Unavailable, "no available addresses on this pool".to_owned()),
            Error::AddressTaken { .. } => (Kind::Forbidden, "Address already in use".to_owned()),
            Error::AddressOutside { address, .. } => (
                Kind::Invalid,
                format!("invalid endpoint settings:\nno configured subnet contains IP address {address}"),
            ),
            Error::AlreadyConnected { container, network } => {
                (Kind::Forbidden, format!("endpoint with name {container} already exists in network {network}"))
            }
            Error::NotConnected { container, network } => {
                (Kind::System, format!("container {container} is not connected to network {network}"))
            }
            Error::WrongMode { .. } => (Kind::Invalid, SHARED.to_owned()),
            Error::Unsupported { .. } => (Kind::NotImplemented, told(&error)),
            _ => (kind_of(error.kind()), told(&error)),
        };
        Self::new(kind, message)
    }
}

/// What Docker says of containers without a network stack of their own.
pub(super) const SHARED: &str =
    "container sharing network namespace with another container or host cannot be connected to any other network";

const fn kind_of(kind: portolan_engine::Kind) -> Kind {
    use portolan_engine::Kind as Of;
    match kind {
        Of::Invalid => Kind::Invalid,
        Of::NotFound => Kind::NotFound,
        Of::Conflict => Kind::Conflict,
        Of::Denied => Kind::Forbidden,
        Of::Unsupported => Kind::NotImplemented,
        Of::Exhausted | Of::Transient => Kind::Unavailable,
        Of::Bug => Kind::System,
    }
}

/// An error with its causes and what to do about it.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    advised(text, error.hint().as_deref())
}

fn advised(text: String, hint: Option<&str>) -> String {
    match hint {
        Some(hint) => format!("{text} (hint: {hint})"),
        None => text,
    }
}
