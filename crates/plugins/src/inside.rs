//! Work inside the namespace of a container.

use std::fmt::Display;
use std::path::Path;

use portolan_cni::{Call, Code, Error};
use portolan_kernel::netlink::{NetlinkError, ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::rtnl::link::{self, Link};

/// Whether the namespace of a call is there.
pub(crate) fn exists(netns: &Path) -> bool {
    !netns.as_os_str().is_empty() && netns.exists()
}

/// What the kernel refused while `doing`.
pub(crate) fn refused(doing: impl Display, error: impl Display) -> Error {
    Error::new(Code::Internal, format!("{doing}: {error}"))
}

/// Does something in the namespace of a call, on this thread, which is in it meanwhile, and by a route socket that is of it.
///
/// # Errors
/// [`Code::InvalidNetns`] for a namespace that is none, [`Code::Internal`] with `doing` for what the kernel refuses.
pub(crate) fn inside<T>(
    call: &Call,
    doing: &str,
    f: impl FnOnce(&mut Socket) -> Result<T, NetlinkError>,
) -> Result<T, Error> {
    let Sandbox { netns, mut socket } = Sandbox::open(call)?;
    let done = with_netns(&netns, || f(&mut socket));
    done.map_err(|error| Error::new(Code::InvalidNetns, error.to_string()))?.map_err(|error| refused(doing, error))
}

/// The namespace of a container, and a route socket of it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) netns: NetnsFd,
    pub(crate) socket: Socket,
}

impl Sandbox {
    /// Opens that of a call.
    pub(crate) fn open(call: &Call) -> Result<Self, Error> {
        let invalid = |error: &dyn Display| {
            Error::new(Code::InvalidNetns, format!("failed to open netns {:?}: {error}", call.netns))
        };
        let netns = NetnsFd::open(&call.netns).map_err(|error| invalid(&error))?;
        let socket = with_netns(&netns, || Socket::open(ROUTE)).map_err(|error| invalid(&error))?;
        let socket = socket.map_err(|error| refused("open a route socket", error))?;
        Ok(Self { netns, socket })
    }

    /// Opens that of a call, unless it is gone. What is no namespace any more (its file outlived it) has nothing in it.
    pub(crate) fn if_there(call: &Call) -> Result<Option<Self>, Error> {
        if !exists(&call.netns) {
            return Ok(None);
        }
        match Self::open(call) {
            Ok(sandbox) => Ok(Some(sandbox)),
            Err(error) if error.code == Code::InvalidNetns => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Does something on this thread inside.
    pub(crate) fn enter<T>(&self, f: impl FnOnce() -> T) -> Result<T, Error> {
        with_netns(&self.netns, f).map_err(|error| Error::new(Code::InvalidNetns, error.to_string()))
    }

    /// The interface called `name`, if there is one.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>, Error> {
        link::lookup(&mut self.socket, name).map_err(|error| refused(format!("find interface `{name}`"), error))
    }

    /// Refuses to begin when the interface to make is there already: it is another attachment's, or of an ADD before.
    pub(crate) fn is_free(&mut self, call: &Call) -> Result<(), Error> {
        match self.find(&call.ifname)? {
            None => Ok(()),
            Some(_) => {
                let msg = format!("container already has an interface {:?}", call.ifname);
                Err(Error::new(Code::Conflict, msg).details("DEL comes before another ADD"))
            }
        }
    }

    /// Removes the interface called `name`, if there is one.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let removed = self.enter(|| link::remove(name))?;
        removed.map(drop).map_err(|error| refused(format!("failed to delete {name:?}"), error))
    }
}

/// A route socket of the host.
pub(crate) fn host() -> Result<Socket, Error> {
    Socket::open(ROUTE).map_err(|error| refused("open a route socket", error))
}

/// Removes the interface of a call, if its namespace and it are still there; one of another kind is somebody else's.
pub(crate) fn remove(call: &Call, kind: &str) -> Result<(), Error> {
    let Some(mut sandbox) = Sandbox::if_there(call)? else { return Ok(()) };
    match sandbox.find(&call.ifname)? {
        Some(found) if found.kind.as_deref() == Some(kind) => sandbox.remove(&call.ifname),
        _ => Ok(()),
    }
}
