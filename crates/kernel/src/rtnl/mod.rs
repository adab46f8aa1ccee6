//! rtnetlink(7): links, addresses, routes, rules and neighbours in plain types.
//!
//! Functions taking a [`Batch`](crate::netlink::Batch) append one message and send nothing;
//! functions taking a [`Socket`](crate::netlink::Socket) look things up.

pub mod addr;
pub mod link;
pub mod neigh;
pub mod route;
pub mod rule;
pub mod tc;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

pub(crate) const AF_INET: u8 = libc::AF_INET as u8;
pub(crate) const AF_INET6: u8 = libc::AF_INET6 as u8;
pub(crate) const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;

/// Appends an attribute that is text, as the kernel wants it: ended by a zero, and filled up to four bytes.
pub(crate) fn push_string(buf: &mut Vec<u8>, attribute: u16, text: &str) {
    netlink_bindings::utils::push_header(buf, attribute, text.len() as u16 + 1);
    buf.extend_from_slice(text.as_bytes());
    buf.push(0);
    buf.resize(buf.len().next_multiple_of(4), 0);
}

/// Which of the two Internet protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

impl Family {
    /// The family of `addr`.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The all-zero address.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The `AF_*` number.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => AF_INET,
            Self::V6 => AF_INET6,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        match number {
            AF_INET => Some(Self::V4),
            AF_INET6 => Some(Self::V6),
            _ => None,
        }
    }
}
