//! Telling the service manager, be it systemd or our own supervisor, by sd_notify(3): that we are ready, and which
//! descriptors it shall keep for the one who comes after us.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg_addr, socket_with,
};

/// Where the manager listens; nothing is sent when there is none.
#[derive(Debug, Default)]
pub struct Manager {
    to: Option<(OwnedFd, SocketAddrUnix)>,
}

impl Manager {
    /// The manager that `$NOTIFY_SOCKET` names.
    ///
    /// # Errors
    /// When the name is no address, or no socket can be opened.
    pub fn from_environment() -> io::Result<Self> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let path = path.into_encoded_bytes();
        let address = match path.strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(path)?,
        };
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { to: Some((socket, address)) })
    }

    /// Another end for another thread.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn sibling(&self) -> io::Result<Self> {
        let to = self.to.as_ref().map(|(socket, address)| Ok::<_, io::Error>((socket.try_clone()?, address.clone())));
        Ok(Self { to: to.transpose()? })
    }

    /// Who it is: `systemd`, `portolan` for our own supervisor, or `none`.
    pub fn name(&self) -> &'static str {
        match &self.to {
            None => "none",
            // systemd gives every start of a service an id (systemd.exec(5)).
            Some(_) if std::env::var_os("INVOCATION_ID").is_some() => "systemd",
            Some(_) => "portolan",
        }
    }

    /// Sends `state`, lines of `NAME=VALUE`.
    ///
    /// Failures are logged: the service works without its manager.
    pub fn tell(&self, state: &str) {
        self.send(state, &[]);
    }

    /// Has `fd` kept under `name` for our successor.
    pub fn keep(&self, name: &str, fd: BorrowedFd<'_>) {
        self.send(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), &[fd]);
    }

    /// Has what is kept under `name` let go.
    pub fn let_go(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]);
    }

    fn send(&self, state: &str, fds: &[BorrowedFd<'_>]) {
        let Some((socket, address)) = &self.to else { return };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let sent =
            sendmsg_addr(socket.as_fd(), address, &[IoSlice::new(state.as_bytes())], &mut control, SendFlags::NOSIGNAL);
        if let Err(error) = sent {
            tracing::warn!(%error, state, "the service manager cannot be told");
        }
    }
}
