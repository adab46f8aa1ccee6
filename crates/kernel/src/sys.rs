//! The narrow seam to libc: owned fds in, `io::Result` out.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Maps the -1 convention of libc to `io::Result`.
pub(crate) fn cvt(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Like [`cvt`] for calls returning a byte count.
pub(crate) fn cvt_len(ret: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(ret).map_err(|_| io::Error::last_os_error())
}

/// Whether the calling thread's namespace has an interface of this name (`SIOCGIFINDEX`, netdevice(7)), which the kernel
/// answers without the lock for changes. It has unless it is known not to: without a descriptor nothing is known.
pub(crate) fn has_interface(name: &str) -> bool {
    let Ok(name) = std::ffi::CString::new(name) else { return false };
    // SAFETY: a live string that ends in zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    index != 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENODEV)
}

/// The number of the interface of this name in the calling thread's namespace.
pub(crate) fn interface_index(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a live string that ends in zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The names and numbers of all interfaces of the calling thread's namespace (if_nameindex(3)).
pub(crate) fn interfaces() -> io::Result<Vec<(String, u32)>> {
    // SAFETY: no preconditions.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: the list ends with an entry without a number and a name, and is live until it is freed below.
    while let libc::if_nameindex { if_index: index @ 1.., if_name: name } = unsafe { &*next } {
        // SAFETY: names of entries are strings that end in zero.
        let name = unsafe { CStr::from_ptr(*name) };
        found.push((name.to_string_lossy().into_owned(), *index));
        // SAFETY: an entry with a number is not the last one.
        next = unsafe { next.add(1) };
    }
    // SAFETY: what if_nameindex(3) answered, once.
    unsafe { libc::if_freenameindex(list) };
    Ok(found)
}

/// Whether the calling thread's namespace has an interface of this number, without waiting for who removes it.
pub(crate) fn has_interface_index(index: u32) -> bool {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the array has room for a name (if_indextoname(3)).
    unsafe { !libc::if_indextoname(index, name.as_mut_ptr()).is_null() }
}

/// A request about the interface called `name` (netdevice(7)).
pub(crate) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    Ok(request)
}

/// socket(2) with `SOCK_CLOEXEC`.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers.
    let fd = cvt(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the fd was just returned to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// setsockopt(2) with an `int` value.
pub(crate) fn setsockopt_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer is to a live c_int and the length says so.
    cvt(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Sets `SO_RCVTIMEO` (socket(7)).
pub(crate) fn receive_timeout(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let value = libc::timeval {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_usec: timeout.subsec_micros() as libc::suseconds_t,
    };
    // SAFETY: the pointer is to a live timeval and the length says so.
    cvt(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const value).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Gives a netlink socket an address of the kernel's choice (netlink(7)).
pub(crate) fn bind_netlink(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: sockaddr_nl is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the address is live and its length is given.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}

/// setns(2).
pub(crate) fn setns(fd: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: setns(2) takes no pointers; the fd is borrowed for the call.
    cvt(unsafe { libc::setns(fd.as_raw_fd(), kind) })?;
    Ok(())
}

/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h): two data entries.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The effective capabilities of the calling thread, as bits (capget(2), version 3).
pub(crate) fn effective_capabilities() -> io::Result<u64> {
    capabilities().map(|data| u64::from(data[1][0]) << 32 | u64::from(data[0][0]))
}

/// The permitted capabilities of the calling thread, as bits.
pub(crate) fn permitted_capabilities() -> io::Result<u64> {
    capabilities().map(|data| u64::from(data[1][1]) << 32 | u64::from(data[0][1]))
}

/// Two of `struct __user_cap_data_struct`: effective, permitted, inheritable; low bits first.
fn capabilities() -> io::Result<[[u32; 3]; 2]> {
    // `struct __user_cap_header_struct`: version and pid, 0 for the calling thread.
    let mut header = [CAPABILITY_VERSION, 0];
    let mut data = [[0u32; 3]; 2];
    // SAFETY: both pointers are to live arrays of the layouts that version 3 asks for.
    let ret = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) };
    cvt_len(ret as libc::ssize_t)?;
    Ok(data)
}

/// Makes `mask` the effective and permitted capabilities of the calling thread, and none inheritable (capset(2)).
pub(crate) fn set_capabilities(mask: u64) -> io::Result<()> {
    let mut header = [CAPABILITY_VERSION, 0];
    let (low, high) = (mask as u32, (mask >> 32) as u32);
    let data = [[low, low, 0], [high, high, 0u32]];
    // SAFETY: both pointers are to live arrays of the layouts that version 3 asks for.
    let ret = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) };
    cvt_len(ret as libc::ssize_t).map(drop)
}

/// unshare(2).
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: unshare(2) takes no pointers.
    cvt(unsafe { libc::unshare(flags) })?;
    Ok(())
}

/// mount(2) without data.
pub(crate) fn mount(source: &CStr, target: &CStr, fstype: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: all three are NUL terminated strings alive for the call; data may be null.
    cvt(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, std::ptr::null()) })?;
    Ok(())
}

/// umount2(2).
pub(crate) fn umount(target: &CStr, flags: i32) -> io::Result<()> {
    // SAFETY: the string is NUL terminated and alive for the call.
    cvt(unsafe { libc::umount2(target.as_ptr(), flags) })?;
    Ok(())
}

/// send(2), retried on `EINTR`.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8], flags: i32) -> io::Result<usize> {
    loop {
        // SAFETY: pointer and length come from one live slice.
        let ret = cvt_len(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) });
        match ret {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Bytes of a socket address for `bind(2)` and friends.
pub(crate) fn socket_address(addr: std::net::SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: sockaddr_storage is plain data for which all zeroes is valid.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    match addr {
        std::net::SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large and aligned enough for every address family.
            unsafe { std::ptr::write((&raw mut storage).cast(), raw) };
            (storage, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        std::net::SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { std::ptr::write((&raw mut storage).cast(), raw) };
            (storage, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

/// bind(2).
pub(crate) fn bind(fd: BorrowedFd<'_>, addr: std::net::SocketAddr) -> io::Result<()> {
    let (storage, len) = socket_address(addr);
    // SAFETY: pointer and length describe the live `storage`.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), (&raw const storage).cast(), len) })?;
    Ok(())
}

/// bind(2) to a path (unix(7)).
pub(crate) fn bind_path(fd: BorrowedFd<'_>, path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = path.as_os_str().as_bytes();
    // SAFETY: sockaddr_un is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if path.is_empty() || path.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // One byte stays zero.
    if path.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed() as libc::c_char;
    }
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is live and its length is given.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}

/// poll(2) for one event on one fd; `false` on timeout.
pub(crate) fn poll(fd: BorrowedFd<'_>, events: libc::c_short, timeout: Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        // Rounded up, or the last millisecond would be spun away.
        let millis = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        // SAFETY: one live pollfd, and the count says one.
        match cvt(unsafe { libc::poll(&raw mut entry, 1, millis) }) {
            Ok(count) => return Ok(count > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// 32 random bytes of the kernel's generator (getrandom(2)), which never fails once it is seeded.
pub fn random() -> [u8; 32] {
    let mut bytes = [0u8; 32];
    // SAFETY: the pointer is to 32 live bytes; requests of up to 256 bytes are not interrupted.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, 32, "getrandom gives up to 256 bytes at once");
    bytes
}

/// openat(2) with `O_CLOEXEC`.
pub(crate) fn openat(directory: BorrowedFd<'_>, name: &CStr, flags: i32) -> io::Result<std::fs::File> {
    // SAFETY: the name is NUL-terminated and live.
    let fd = cvt(unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC) })?;
    // SAFETY: the fd was just returned to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Whether the file system at `path` is mounted read-only (statvfs(3)).
pub(crate) fn is_read_only(path: &CStr) -> io::Result<bool> {
    // SAFETY: statvfs is plain data for which all zeroes is valid.
    let mut state: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and the structure live.
    cvt(unsafe { libc::statvfs(path.as_ptr(), &raw mut state) })?;
    Ok(state.f_flag & libc::ST_RDONLY != 0)
}

/// Whether this is a directory of a proc file system (fstatfs(2)).
pub(crate) fn is_proc(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: both are plain data for which all zeroes is valid.
    let (mut system, mut file): (libc::statfs, libc::stat) = unsafe { std::mem::zeroed() };
    // SAFETY: the structures are live.
    let found = unsafe {
        libc::fstatfs(fd.as_raw_fd(), &raw mut system) == 0 && libc::fstat(fd.as_raw_fd(), &raw mut file) == 0
    };
    found && system.f_type == libc::PROC_SUPER_MAGIC && file.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// A new instance of a file system, attached to no directory and gone with its last descriptor (fsopen(2), Linux 5.2).
pub(crate) fn mount_detached(kind: &CStr) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_long = 1;
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    const FSMOUNT_CLOEXEC: libc::c_long = 1;
    let owned = |fd: libc::c_long| -> io::Result<OwnedFd> {
        let fd = cvt(fd as libc::c_int)?;
        // SAFETY: the fd was just returned to us and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: the name is NUL-terminated and live.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: this command takes no key and no value.
    let made =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, nothing, nothing, 0) };
    cvt(made as libc::c_int)?;
    // SAFETY: fsmount takes no pointers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}
