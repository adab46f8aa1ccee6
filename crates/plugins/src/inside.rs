//! Work inside the namespace of a container.

use std::path::Path;

use portolan_cni::{Call, Code, Error};
use portolan_kernel::netlink::{NetlinkError, ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};

/// Whether the namespace of a call is there.
pub(crate) fn exists(netns: &Path) -> bool {
    !netns.as_os_str().is_empty() && netns.exists()
}

/// Does something in the namespace of a call, by a route socket that is of it.
///
/// # Errors
/// [`Code::InvalidNetns`] for a namespace that is none, [`Code::Internal`] with `doing` for what the kernel refuses.
pub(crate) fn inside<T>(
    call: &Call,
    doing: &str,
    f: impl FnOnce(&mut Socket) -> Result<T, NetlinkError>,
) -> Result<T, Error> {
    let netns = NetnsFd::open(&call.netns).map_err(|error| Error::new(Code::InvalidNetns, error.to_string()))?;
    let work = || Socket::open(ROUTE).and_then(|mut socket| f(&mut socket));
    let done = with_netns(&netns, work).map_err(|error| Error::new(Code::InvalidNetns, error.to_string()))?;
    done.map_err(|error| Error::new(Code::Internal, format!("{doing}: {error}")))
}
