//! Another address in the place of one that is not granted any more.

use portolan_kernel::netlink::{Batch, NetlinkError, ROUTE, Socket};
use portolan_kernel::netns::{NetnsError, NetnsFd, with_netns};
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::route::{self, Route};
use portolan_kernel::rtnl::{Family, link};
use portolan_model::DhcpLease;

use crate::Place;

/// Why a container keeps an address that is not its own any more.
#[derive(Debug, thiserror::Error)]
pub enum ReaddressError {
    /// Its namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// There is no such interface.
    #[error("the interface is gone")]
    Gone,
}

/// Replaces the address and the default route of `before` in the container by those of `now`, as far as there are any.
///
/// # Errors
/// When the namespace or the interface is gone, or the kernel refuses.
pub fn readdress(place: &Place, before: Option<&DhcpLease>, now: Option<&DhcpLease>) -> Result<(), ReaddressError> {
    let ns = NetnsFd::open(&place.sandbox.path)?;
    let mut socket = with_netns(&ns, || Socket::open(ROUTE))??;
    let index = link::lookup(&mut socket, place.ifname.as_str())?.ok_or(ReaddressError::Gone)?.index;
    let mut batch = Batch::new();
    // The kernel takes it amiss to be told to delete what is not there.
    let there = addr::dump(&mut socket, Some(index))?;
    if let Some(before) = before.filter(|before| there.iter().any(|is| is.addr == before.address.addr())) {
        addr::delete(&mut batch, index, before.address.addr(), before.address.prefix_len());
    }
    if let Some(now) = now {
        addr::replace(&mut batch, &Address::new(index, now.address.addr(), now.address.prefix_len()));
        if let Some(gateway) = now.gateway {
            let default = Route::default_of(Family::of(gateway));
            route::replace(&mut batch, &Route { gateway: Some(gateway), oif: Some(index), ..default });
        }
    }
    socket.transact(&batch)?;
    Ok(())
}
