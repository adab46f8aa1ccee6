//! Leases of DHCP servers for containers: acquired, renewed, given back.
//!
//! Owns the life of a lease (RFC 2131, RFC 8415): one thread ([`Keeper`]) holds all of them, and sleeps until the first
//! is due. The messages are those of the library `mozim`, whose clients run inside the sandboxes. Leaves out what a
//! lease is good for: whoever starts the keeper is told what was granted and what has ended, and gives the container its
//! address; for who has no other means, [`readdress`] puts one in the place of another. Services around it take their
//! [`Callers`] from here.

#![forbid(unsafe_code)]

mod callers;
mod client;
#[doc(hidden)]
pub mod foreign;
mod inside;
mod keeper;
mod readdress;
mod routing;

pub use callers::Callers;
pub use client::{ClientId, Place};
pub use keeper::{Happened, Keeper, Tell};
pub use readdress::{ReaddressError, readdress};
pub use routing::Routing;

/// Seconds since boot (`CLOCK_BOOTTIME`), the clock of [`portolan_model::DhcpLease`].
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0)
}
