use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// Everything the next proxy needs to go on where one stopped.
#[derive(Default)]
pub struct HandOver {
    /// Listening sockets, of connections their own.
    pub(super) fds: Vec<OwnedFd>,
    pub(super) data: HandOverData,
}

impl fmt::Debug for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandOver").field("fds", &self.fds.len()).field("data", &self.data).finish()
    }
}

/// The part of a [`HandOver`] that is data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOverData {
    /// How many of the descriptors, the first, are listening sockets.
    pub(super) listeners: usize,
    /// Then come those of connections.
    pub(super) connections: Vec<ConnectionData>,
    /// Then those of UDP clients.
    pub(super) flows: Vec<FlowData>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectionData {
    pub(super) is_tcp: bool,
    pub(super) listen: SocketAddr,
    pub(super) target: SocketAddr,
    pub(super) is_connected: bool,
    pub(super) inward: DirectionData,
    pub(super) outward: DirectionData,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectionData {
    pub(super) has_pipe: bool,
    pub(super) held: usize,
    pub(super) is_ended: bool,
    pub(super) is_told: bool,
    pub(super) passed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FlowData {
    pub(super) listen: SocketAddr,
    pub(super) client: SocketAddr,
    pub(super) target: SocketAddr,
}

impl HandOver {
    /// Takes it apart.
    pub fn into_parts(self) -> (Vec<OwnedFd>, HandOverData) {
        (self.fds, self.data)
    }

    /// Puts it together: what [`HandOver::into_parts`] returned, in the same order. Connections whose descriptors are
    /// missing are lost.
    pub fn from_parts(fds: Vec<OwnedFd>, data: HandOverData) -> Self {
        Self { fds, data }
    }

    /// What is left after a proxy died: listening sockets that somebody kept.
    pub fn from_sockets(fds: Vec<OwnedFd>) -> Self {
        let data = HandOverData { listeners: fds.len(), ..HandOverData::default() };
        Self { fds, data }
    }
}
