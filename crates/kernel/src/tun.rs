//! TUN interfaces: IP packets to and from a program (Documentation/networking/tuntap.rst).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::sys;
use crate::tap::{TUNSETIFF, TUNSETPERSIST, write_int};

const TUNSETOFFLOAD: libc::Ioctl = write_int(208);
const TUNSETVNETHDRSZ: libc::Ioctl = write_int(216);

/// What a program can do for the kernel (`TUN_F_*`, linux/if_tun.h): packets arrive without checksums, and larger than
/// the MTU allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload(pub u32);

impl Offload {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Checksums (`TUN_F_CSUM`).
    pub const CSUM: Self = Self(0x01);
    /// TCP of both families in segments (`TUN_F_TSO4`, `TUN_F_TSO6`), with checksums.
    pub const TCP: Self = Self(0x01 | 0x02 | 0x04);
    /// The same, and UDP (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    pub const TCP_UDP: Self = Self(Self::TCP.0 | 0x20 | 0x40);
    /// The same inside of tunnels over UDP, with and without a checksum outside (`TUN_F_UDP_TUNNEL_GSO`,
    /// `TUN_F_UDP_TUNNEL_GSO_CSUM`; Linux 6.17). Wants headers of [`TUNNEL_HEADER`] bytes first.
    pub const TUNNELS: Self = Self(Self::TCP_UDP.0 | 0x80 | 0x100);
}

/// Bytes of `struct virtio_net_hdr_v1_hash_tunnel` (linux/virtio_net.h).
pub const TUNNEL_HEADER: usize = 24;

/// Attaches to the TUN interface `name` of the calling thread's namespace, making it if there is none; it stays, with its
/// addresses and routes, when nobody is attached to it, and drops what is sent by it.
///
/// The descriptor does not block. Each read and write is one packet behind a `struct virtio_net_hdr` of 10 bytes in host
/// byte order (linux/virtio_net.h), unless the interface was there already and [`set_header`] made it another. It is at its end with `EBADFD` when the interface is removed.
///
/// # Errors
/// `EBUSY` when another program is attached, `EINVAL` when the name is taken by something else, `ENOENT` without
/// `/dev/net/tun`, `EPERM` without `CAP_NET_ADMIN`.
pub fn attach(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = sys::interface_request(name)?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request is live and holds name and flags, which is what the command asks for.
    sys::cvt(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    // SAFETY: this command takes a number.
    sys::cvt(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, 1 as libc::c_ulong) })?;
    Ok(file.into())
}

/// Says what the program that is attached can do.
///
/// # Errors
/// `EINVAL` when the kernel does not know all of it.
pub fn set_offload(fd: &OwnedFd, offload: Offload) -> io::Result<()> {
    // SAFETY: this command takes a number.
    sys::cvt(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offload.0)) }).map(drop)
}

/// Makes the header of each packet `bytes` long, at least 10; what the kernel does not know of it, it passes over. That stays
/// with the interface.
///
/// # Errors
/// `EINVAL` when it is shorter.
pub fn set_header(fd: &OwnedFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: this command reads an `int`, which is live.
    sys::cvt(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) }).map(drop)
}
