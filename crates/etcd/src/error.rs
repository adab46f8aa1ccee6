use std::error::Error as _;

use tonic::{Code, ConnectError, Status};

/// Why etcd could not be asked, or did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A URL that is none, or certificates that are none.
    #[error("{0}")]
    Config(String),
    /// No member answers.
    #[error("no member of etcd is reached: {0}")]
    Unreachable(String),
    /// It does not answer in time.
    #[error("etcd did not answer within {0} s")]
    Timeout(u64),
    /// It answers, but has no leader: too few of its members reach each other.
    #[error("etcd has no leader: {0}")]
    NoLeader(String),
    /// It does not know us, or does not let us.
    #[error("etcd refuses: {0}")]
    Denied(String),
    /// It takes no more writes until somebody makes room (`etcdctl alarm list`). The first write for which there is none may be done
    /// all the same: etcd says so after it (`quotaApplierV3`, etcdserver/apply.go).
    #[error("etcd is out of space: {0}")]
    NoSpace(String),
    /// The revision that is asked for is thrown away: all has to be listed again.
    #[error("etcd has thrown away what was before revision {0}")]
    Compacted(i64),
    /// The lease is over.
    #[error("the lease of this host is over")]
    LeaseGone,
    /// The connection ended while an answer or the next event was waited for.
    #[error("the connection to etcd ended: {0}")]
    Lost(String),
    /// Whether a write was done is not known.
    #[error("whether etcd has written it is not known: {0}")]
    Unknown(String),
    /// Anything else.
    #[error("etcd: {0}")]
    Other(String),
}

const OLD_TOKEN: &str = "revision of auth store is old";

impl Error {
    /// What to do about it.
    pub const fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Config(_) => "an endpoint is written as http://192.0.2.10:2379 or https://etcd.example:2379",
            Self::Unreachable(_) | Self::Timeout(_) | Self::Lost(_) => {
                "see that etcd runs there, listens for clients, and is not kept from this host"
            }
            Self::NoLeader(_) => "see to etcd's members: more than half of them have to reach each other",
            Self::Denied(_) => {
                "see which user and which certificate etcd asks for, and what the user's role lets it do"
            }
            Self::NoSpace(_) => {
                "make room in etcd: compact, defragment, and take the alarm back (etcdctl alarm disarm)"
            }
            Self::Unknown(_) => "see how things stand before it is tried again",
            Self::Compacted(_) | Self::LeaseGone | Self::Other(_) => return None,
        })
    }

    /// Whether another member may answer what this one did not, if asked the same.
    pub(crate) const fn is_of_member(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Lost(_) | Self::Timeout(_) | Self::NoLeader(_))
    }

    /// Whether a new token may help.
    pub(crate) fn is_of_token(&self) -> bool {
        matches!(self, Self::Denied(text) if text.contains("invalid auth token") || text.contains(OLD_TOKEN))
    }

    /// Whether an answer is longer than we take: fewer keys at a time may do.
    pub(crate) fn is_of_length(&self) -> bool {
        matches!(self, Self::Other(text) if text.contains("message length too large"))
    }

    /// What a member's answer means (etcd, api/v3rpc/rpctypes/error.go), or that there is none.
    pub(crate) fn of(url: &str, status: &Status, seconds: u64) -> Self {
        let text = said(status);
        if is_caused_by::<ConnectError>(status) {
            return Self::Unreachable(format!("{url}: {text}"));
        }
        match status.code() {
            _ if text.contains("mvcc: required revision has been compacted") => Self::Compacted(0),
            _ if text.contains("requested lease not found") => Self::LeaseGone,
            _ if text.contains("no leader") || text.contains("leader changed") || text.contains("lost leader") => {
                Self::NoLeader(text)
            }
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied(text),
            // A token that says how users and roles stood, and they have changed.
            _ if text.contains(OLD_TOKEN) => Self::Denied(text),
            _ if text.contains("etcdserver: authentication failed") || text.contains("user name is empty") => {
                Self::Denied(text)
            }
            Code::ResourceExhausted if text.contains("database space exceeded") => Self::NoSpace(text),
            Code::DeadlineExceeded => Self::Timeout(seconds),
            // What it has not done for want of others, it says itself.
            _ if text.contains("request timed out") => Self::NoLeader(text),
            Code::Unavailable | Code::Cancelled => Self::Lost(text),
            _ if status.source().is_some() => Self::Lost(text),
            _ => Self::Other(text),
        }
    }
}

fn is_caused_by<T: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<T>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a status says, its causes included: those of the transport are in there.
pub(crate) fn said(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<Status>() {
        Some(status) if !status.message().is_empty() => status.message().to_owned(),
        Some(status) => status.code().description().to_owned(),
        None => error.to_string(),
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    // It goes to terminals and logs.
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(600).collect()
}
