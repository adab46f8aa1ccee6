//! Whether the other end of an interface is there.

use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;

use crate::sys;

/// `ETHTOOL_GLINK`, linux/ethtool.h.
const ETHTOOL_GLINK: u32 = 0xa;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether an interface of the calling thread's namespace has a carrier.
///
/// The kernel tells bridges of a new carrier some time later, from a queue; to be asked this way makes it do so before it
/// answers (`ethtool_op_get_link()`, net/ethtool/ioctl.c). So a bridge port that has one forwards.
///
/// # Errors
/// `ENODEV` for an interface that is not there, `EOPNOTSUPP` for one that cannot tell.
pub fn carrier(name: &str) -> io::Result<bool> {
    let mut value = Value { command: ETHTOOL_GLINK, data: 0 };
    let mut request = sys::interface_request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: the request is live, and what it points to is what the command asks for.
    sys::cvt(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) })?;
    let Value { data, .. } = value;
    Ok(data != 0)
}

const _: () = assert!(mem::size_of::<Value>() == 8);
