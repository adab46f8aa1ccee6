//! Tap interfaces: frames to and from a program (Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;

use crate::sys;

/// `_IOW('T', n, int)`, linux/if_tun.h.
pub(crate) const fn write_int(number: libc::Ioctl) -> libc::Ioctl {
    0x4004_5400 | number
}

pub(crate) const TUNSETPERSIST: libc::Ioctl = write_int(203);
pub(crate) const TUNSETIFF: libc::Ioctl = write_int(202);
const TUNSETOWNER: libc::Ioctl = write_int(204);
const TUNSETGROUP: libc::Ioctl = write_int(206);
const IFF_TUN_EXCL: i32 = 0x8000;

/// A tap interface to create.
#[derive(Debug, Clone, Copy)]
pub struct TapSpec<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Several programs may share it, each with a queue.
    pub multi_queue: bool,
    /// The user that may attach to it; anybody without one.
    pub owner: Option<u32>,
    /// The group that may attach to it; anybody without one.
    pub group: Option<u32>,
}

/// Creates a tap interface in the calling thread's namespace that stays when nobody is attached to it.
///
/// # Errors
/// `EBUSY` when the name is taken, `ENOENT` without `/dev/net/tun`, `EPERM` without `CAP_NET_ADMIN`.
pub fn create(spec: &TapSpec<'_>) -> io::Result<()> {
    let file: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = sys::interface_request(spec.name)?;
    let queues = if spec.multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | IFF_TUN_EXCL | queues;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request is live and holds name and flags, which is what the command asks for.
    sys::cvt(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    let set = |command: libc::Ioctl, value: u32| {
        // SAFETY: these commands take a number.
        sys::cvt(unsafe { libc::ioctl(file.as_raw_fd(), command, libc::c_ulong::from(value)) }).map(drop)
    };
    if let Some(owner) = spec.owner {
        set(TUNSETOWNER, owner)?;
    }
    if let Some(group) = spec.group {
        set(TUNSETGROUP, group)?;
    }
    // Last: until then it goes with the descriptor, whatever happens.
    set(TUNSETPERSIST, 1)
}
