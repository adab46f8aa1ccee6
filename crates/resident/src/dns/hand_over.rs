use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use portolan_kernel::diag::Transport;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{SocketType, getpeername, getsockname};
use serde::{Deserialize, Serialize};

/// Everything the next server needs to go on where one stopped: open sockets, and what was read from them.
///
/// It comes apart into descriptors, which survive execve(2) once `FD_CLOEXEC` is cleared, and plain data, which can
/// be written anywhere.
#[derive(Default)]
pub struct HandOver {
    pub(super) listeners: Vec<OwnedFd>,
    pub(super) connections: Vec<(OwnedFd, ConnectionData)>,
    pub(super) pending: Vec<Pending>,
}

impl fmt::Debug for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandOver")
            .field("listeners", &self.listeners.len())
            .field("connections", &self.connections.len())
            .field("pending", &self.pending.len())
            .finish()
    }
}

/// The part of a [`HandOver`] that is data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOverData {
    /// Of each connection, whose descriptors come last and in this order.
    pub(super) connections: Vec<ConnectionData>,
    /// Questions that wait for upstreams.
    pub(super) pending: Vec<Pending>,
}

/// A client's connection, between its socket's buffers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectionData {
    /// Read and not answered, each question with its length before it.
    pub(super) input: Vec<u8>,
    /// Not yet written.
    pub(super) output: Vec<u8>,
}

/// A question that came over UDP and is not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    pub(super) local: SocketAddr,
    pub(super) client: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// Descriptors and data that do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{connections}` connections are described, and `{descriptors}` descriptors are there")]
pub struct PartsError {
    connections: usize,
    descriptors: usize,
}

impl HandOver {
    /// Takes it apart. The descriptors are close-on-exec.
    pub fn into_parts(self) -> (Vec<OwnedFd>, HandOverData) {
        let mut fds = self.listeners;
        let mut connections = Vec::with_capacity(self.connections.len());
        for (fd, data) in self.connections {
            fds.push(fd);
            connections.push(data);
        }
        (fds, HandOverData { connections, pending: self.pending })
    }

    /// Puts it together: what [`HandOver::into_parts`] returned, in the same order.
    ///
    /// # Errors
    /// [`PartsError`] if descriptors are missing.
    pub fn from_parts(mut fds: Vec<OwnedFd>, data: HandOverData) -> Result<Self, PartsError> {
        let Some(split) = fds.len().checked_sub(data.connections.len()) else {
            return Err(PartsError { connections: data.connections.len(), descriptors: fds.len() });
        };
        let connections = fds.split_off(split).into_iter().zip(data.connections).collect();
        Ok(Self { listeners: fds, connections, pending: data.pending })
    }

    /// What is left after a server died: sockets that somebody kept. Each is known by asking it (getsockname(2),
    /// `SO_TYPE`, `SO_ACCEPTCONN`); what is no listening socket of a server is closed at the start.
    pub fn from_sockets(fds: Vec<OwnedFd>) -> Self {
        Self { listeners: fds, ..Self::default() }
    }
}

/// The address and protocol that a socket listens on.
pub(super) fn listens_on(fd: &OwnedFd) -> Option<(SocketAddr, Transport)> {
    let transport = match socket_type(fd).ok()? {
        SocketType::DGRAM => Transport::Udp,
        SocketType::STREAM if socket_acceptconn(fd).ok()? => Transport::Tcp,
        _ => return None,
    };
    Some((getsockname(fd.as_fd()).ok()?.try_into().ok()?, transport))
}

/// Both ends of a connection.
pub(super) fn ends_of(fd: &OwnedFd) -> Option<(SocketAddr, SocketAddr)> {
    let local = getsockname(fd.as_fd()).ok()?.try_into().ok()?;
    Some((local, getpeername(fd.as_fd()).ok()??.try_into().ok()?))
}
