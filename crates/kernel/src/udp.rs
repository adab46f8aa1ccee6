//! Sockets that wait for questions, and datagrams by the batch (recvmmsg(2), sendmmsg(2)).
//!
//! There is one socket for each local address, so that the address a datagram came to is known by its socket, and
//! answers leave from it, without control messages.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::diag::{self, Holder, Transport};
use crate::rtnl::Family;
use crate::sys;

/// Datagrams received or sent at once.
pub const BATCH: usize = 64;

/// What a receive buffer may take: some thousands of small datagrams, each of which counts with its overhead.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// What answers under way may take.
const SEND_BUFFER: i32 = 4 << 20;
/// `SO_MEMINFO` (asm-generic/socket.h).
const SO_MEMINFO: i32 = 55;
/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 512;

/// A local address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on `{address}` ({}){}", name_of(*transport), held_by(holder.as_ref()))]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// The protocol.
    pub transport: Transport,
    /// The process in the way, if [`ListenError::find_holder`] has found it.
    pub holder: Option<Holder>,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl ListenError {
    /// The same once more.
    #[must_use]
    pub fn again(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self { address: self.address, transport: self.transport, holder: self.holder.clone(), source }
    }

    /// Looks for the process in the way, if the address is in use and the process can be seen from here.
    ///
    /// That takes the right to look into other processes, which who listens need not have.
    #[must_use]
    pub fn find_holder(mut self) -> Self {
        if self.source.raw_os_error() == Some(libc::EADDRINUSE) {
            self.holder = holder_of(self.transport, self.address);
        }
        self
    }
}

fn name_of(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
        Transport::Sctp => "SCTP",
    }
}

fn held_by(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| format!(": held by `{}`, process {}", holder.comm, holder.pid))
}

/// Opens a UDP socket on `address` in the calling thread's network namespace: non-blocking, with a large receive
/// buffer, and for IPv6 deaf to IPv4.
///
/// The address need not be there (`IP_FREEBIND`, ip(7)): a bridge may come later, or be away for a moment.
///
/// # Errors
/// [`ListenError`].
pub fn listen_udp(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    open(Transport::Udp, address)
}

/// Opens a TCP socket that listens on `address`, as [`listen_udp`] does. Connections in TIME-WAIT are not in its way.
///
/// # Errors
/// As there.
pub fn listen_tcp(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    open(Transport::Tcp, address)
}

fn open(transport: Transport, address: SocketAddr) -> Result<OwnedFd, ListenError> {
    try_open(transport, address).map_err(|source| ListenError { address, transport, holder: None, source })
}

fn try_open(transport: Transport, address: SocketAddr) -> io::Result<OwnedFd> {
    let kind = if transport == Transport::Udp { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    let family = Family::of(address.ip()).number();
    let socket = sys::socket(family.into(), kind | libc::SOCK_NONBLOCK, transport.number().into())?;
    let set = |level, name, value| sys::setsockopt_int(socket.as_fd(), level, name, value);
    if address.is_ipv6() {
        set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        set(libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?;
    } else {
        set(libc::IPPROTO_IP, libc::IP_FREEBIND, 1)?;
    }
    if transport == Transport::Udp {
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN.
        set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)
            .or_else(|_| set(libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER))?;
        // Answers count until the receiver's side of the veth has taken them, which is later on a busy machine.
        set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)
            .or_else(|_| set(libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER))?;
    } else {
        set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    }
    sys::bind(socket.as_fd(), address)?;
    if transport == Transport::Tcp {
        // SAFETY: listen(2) takes no pointers.
        sys::cvt(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    }
    Ok(socket)
}

/// How many bytes wait to be read from a socket, each datagram with its overhead of some hundred, and how many may (`SO_MEMINFO`,
/// net/core/sock.c); none where the kernel does not say (before Linux 4.12).
pub fn backlog(fd: BorrowedFd<'_>) -> (u32, u32) {
    // `SK_MEMINFO_RMEM_ALLOC` and `SK_MEMINFO_RCVBUF` are the first of `SK_MEMINFO_VARS` numbers (linux/sock_diag.h); a shorter
    // buffer gets the first ones.
    let mut found = [0u32; 2];
    let mut len = size_of_val(&found) as libc::socklen_t;
    // SAFETY: the pointer is to live numbers and the length says how many.
    let ret = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_MEMINFO, found.as_mut_ptr().cast(), &raw mut len)
    };
    sys::cvt(ret).map_or((0, 0), |_| (found[0], found[1]))
}

fn holder_of(transport: Transport, address: SocketAddr) -> Option<Holder> {
    let all = diag::listeners().ok()?;
    let inode = all.iter().find(|it| it.occupies(transport, address.ip(), address.port()))?.inode;
    diag::holder_of(inode)
}

/// Room for the datagrams of one [`Inbox::receive`].
#[derive(Debug)]
pub struct Inbox {
    size: usize,
    bytes: Box<[u8]>,
    names: Box<[libc::sockaddr_storage]>,
    /// Of each datagram its length, unless it was longer than `size`, and the length of its sender's address.
    lens: Vec<(Option<usize>, usize)>,
}

impl Inbox {
    /// Room for [`BATCH`] datagrams of up to `size` bytes.
    pub fn new(size: usize) -> Self {
        // SAFETY: sockaddr_storage is plain data for which all zeroes is valid.
        let nobody: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let names = vec![nobody; BATCH].into();
        Self { size, bytes: vec![0; BATCH * size].into(), names, lens: Vec::with_capacity(BATCH) }
    }

    /// Receives what is there, up to [`BATCH`] datagrams, without waiting; returns how many.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; a connected socket also reports what an ICMP error said.
    pub fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.lens.clear();
        // SAFETY: iovec and mmsghdr are plain data for which all zeroes is valid.
        let mut vectors: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        let buffers = self.bytes.chunks_exact_mut(self.size);
        for (((header, vector), buffer), name) in
            headers.iter_mut().zip(&mut vectors).zip(buffers).zip(self.names.iter_mut())
        {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        }
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: every header points to a vector, a buffer and a name of its own, all of which outlive the call, with
        // their lengths; the timeout may be null.
        let ret = unsafe {
            libc::recvmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), BATCH as libc::c_uint, flags, std::ptr::null_mut())
        };
        let count = sys::cvt(ret)? as usize;
        for header in &headers[..count] {
            let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            let len = whole.then_some((header.msg_len as usize).min(self.size));
            self.lens.push((len, header.msg_hdr.msg_namelen as usize));
        }
        Ok(count)
    }

    /// One of the datagrams last received, and who sent it; `None` for one that did not fit, or of no sender.
    pub fn message(&self, index: usize) -> Option<(&[u8], SocketAddr)> {
        let &(len, name_len) = self.lens.get(index)?;
        let start = index * self.size;
        Some((&self.bytes[start..start + len?], read_address(&self.names[index], name_len)?))
    }
}

/// Datagrams to be sent together.
#[derive(Debug)]
pub struct Outbox {
    messages: Vec<(Vec<u8>, SocketAddr)>,
    used: usize,
    max_segment: usize,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbox {
    /// Room for [`BATCH`] datagrams, which keeps their buffers for the next ones.
    pub fn new() -> Self {
        Self::with_segments(MAX_SEGMENT)
    }

    /// The same, where datagrams of up to `max_segment` bytes go together; to be used where the path is known to take them.
    pub fn with_segments(max_segment: usize) -> Self {
        let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        Self { messages: (0..BATCH).map(|_| (Vec::new(), nobody)).collect(), used: 0, max_segment }
    }

    /// Whether [`Outbox::send`] is due.
    pub fn is_full(&self) -> bool {
        self.used == BATCH
    }

    /// The empty buffer of one more datagram to `to`; what is left empty is not sent.
    ///
    /// # Panics
    /// If it is full.
    pub fn message(&mut self, to: SocketAddr) -> &mut Vec<u8> {
        // A datagram that was left empty gives its place up.
        if self.used > 0 && self.messages[self.used - 1].0.is_empty() {
            self.used -= 1;
        }
        let (buffer, address) = &mut self.messages[self.used];
        self.used += 1;
        *address = to;
        buffer.clear();
        buffer
    }

    /// Sends all and empties it; returns how many the kernel did not take.
    ///
    /// Nothing is waited for: what finds a full buffer is dropped, as UDP allows. A datagram that the kernel refuses
    /// (a firewall, a route that is gone) does not keep back the ones after it.
    ///
    /// Neighbours of one size to one address, of which the last may be shorter, go through the network as one packet
    /// that is divided where it is received (`UDP_SEGMENT`, udp(7)); an answer to A and the one to AAAA are such.
    pub fn send(&mut self, fd: BorrowedFd<'_>) -> usize {
        let (_, dropped) = self.transmit(fd);
        dropped + std::mem::take(&mut self.used)
    }

    /// Like [`Outbox::send`], but keeps what finds a full buffer, for the next call.
    ///
    /// # Errors
    /// `WouldBlock` when something is kept.
    pub fn send_what_fits(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (done, dropped) = self.transmit(fd);
        if done { Ok(dropped) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Sends until the buffer is full, and forgets what was sent or refused; returns whether nothing is left, and how many
    /// were refused.
    fn transmit(&mut self, fd: BorrowedFd<'_>) -> (bool, usize) {
        // Only the last can be.
        if self.messages[..self.used].last().is_some_and(|(buffer, _)| buffer.is_empty()) {
            self.used -= 1;
        }
        let messages = &mut self.messages[..self.used];
        let trains = trains(messages.iter().map(|(buffer, to)| (buffer.len(), *to)), self.max_segment);
        // SAFETY: iovec and mmsghdr are plain data for which all zeroes is valid.
        let mut vectors: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: sockaddr_storage likewise.
        let mut names: [libc::sockaddr_storage; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: and so is a control message.
        let mut controls: [Segments; BATCH] = unsafe { std::mem::zeroed() };
        let mut filled = 0;
        for (buffer, _) in messages.iter_mut().filter(|(buffer, _)| !buffer.is_empty()) {
            vectors[filled] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            filled += 1;
        }
        let mut rest = &mut vectors[..filled];
        for (((header, train), name), control) in headers.iter_mut().zip(&trains).zip(&mut names).zip(&mut controls) {
            let own;
            (own, rest) = rest.split_at_mut(train.count);
            let name_len;
            (*name, name_len) = sys::socket_address(train.to);
            let header = &mut header.msg_hdr;
            header.msg_iov = own.as_mut_ptr();
            header.msg_iovlen = own.len();
            header.msg_name = (&raw mut *name).cast();
            header.msg_namelen = name_len;
            if train.count > 1 {
                control.header.cmsg_level = libc::SOL_UDP;
                control.header.cmsg_type = libc::UDP_SEGMENT;
                control.header.cmsg_len = std::mem::offset_of!(Segments, size) + size_of::<u16>();
                control.size = train.size as u16;
                header.msg_control = (&raw mut *control).cast();
                header.msg_controllen = size_of::<Segments>();
            }
        }
        let mut at = 0;
        let mut dropped = 0;
        while at < trains.len() {
            let rest = &mut headers[at..trains.len()];
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: every header points to vectors, a name, a control message and buffers that outlive the call,
            // with their lengths.
            let ret = unsafe { libc::sendmmsg(fd.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, flags) };
            match sys::cvt(ret) {
                Ok(sent) => at += (sent as usize).max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = trains[at..].iter().map(|train| train.count).sum::<usize>();
                    messages.rotate_right(left);
                    self.used = left;
                    return (false, dropped);
                }
                // The error is the first one's: together they may be refused where each alone is not, as on a path
                // of a small MTU or through IPsec.
                Err(_) => {
                    let train = &trains[at];
                    let header = &headers[at].msg_hdr;
                    for index in 0..train.count {
                        let mut one = *header;
                        // SAFETY: a train has `count` vectors, which lie one after the other.
                        one.msg_iov = unsafe { header.msg_iov.add(index) };
                        one.msg_iovlen = 1;
                        one.msg_control = std::ptr::null_mut();
                        one.msg_controllen = 0;
                        // SAFETY: as above, for one datagram of it.
                        let alone = train.count > 1
                            && sys::cvt(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const one, flags) } as i32).is_ok();
                        dropped += usize::from(!alone);
                    }
                    at += 1;
                }
            }
        }
        self.used = 0;
        (true, dropped)
    }
}

/// The control message of `UDP_SEGMENT`: the size of each datagram but the last.
#[derive(Clone, Copy)]
#[repr(C)]
struct Segments {
    header: libc::cmsghdr,
    size: u16,
}

/// Datagrams that are sent as one packet.
#[derive(Debug, PartialEq, Eq)]
struct Train {
    to: SocketAddr,
    count: usize,
    /// Of each but the last, which may be shorter.
    size: usize,
    last: usize,
}

/// What every path takes: the least MTU of IPv6 (RFC 8200 section 5) without the headers of IPv6 and UDP.
const MAX_SEGMENT: usize = 1280 - 40 - 8;
/// `UDP_MAX_SEGMENTS` of include/linux/udp.h, before Linux 6.9.
const MAX_COUNT: usize = 64;
/// What one packet holds, with some room for headers.
const MAX_TRAIN: usize = 65_000;

/// Joins neighbours; what is empty is left out.
fn trains(messages: impl Iterator<Item = (usize, SocketAddr)>, max_segment: usize) -> Vec<Train> {
    let mut trains: Vec<Train> = Vec::with_capacity(BATCH);
    for (len, to) in messages.filter(|(len, _)| *len > 0) {
        match trains.last_mut() {
            Some(train)
                if train.to == to
                    && train.last == train.size
                    && len <= train.size
                    && train.size <= max_segment
                    && train.count < MAX_COUNT
                    && (train.count + 1) * train.size <= MAX_TRAIN =>
            {
                train.count += 1;
                train.last = len;
            }
            _ => trains.push(Train { to, count: 1, size: len, last: len }),
        }
    }
    trains
}

fn read_address(storage: &libc::sockaddr_storage, len: usize) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the family and the length say that the kernel wrote a sockaddr_in, and a sockaddr_storage is
            // large and aligned enough for every address.
            let addr = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(addr.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(addr.sin_port)))
        }
        libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: likewise for a sockaddr_in6.
            let addr = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(addr.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(addr.sin6_port), 0, addr.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// An address nobody else listens on: its port is the kernel's choice, held by the socket returned.
    fn reserve(ip: &str) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((ip, 0)).expect("loopback is up");
        let address = socket.local_addr().expect("it is bound");
        (socket, address)
    }

    #[test]
    fn datagrams_come_and_go_in_batches() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(ours) = listen_udp(SocketAddr::new(ip.parse().unwrap(), 0)) else {
                assert_eq!(ip, "::1", "IPv4 is there");
                continue;
            };
            let ours = UdpSocket::from(ours);
            let (client, client_addr) = reserve(ip);
            client.connect(ours.local_addr().unwrap()).unwrap();
            for number in 0..BATCH as u8 + 3 {
                client.send(&[number; 5]).unwrap();
            }
            client.send(&[9; 17]).unwrap();
            assert!(backlog(ours.as_fd()).0 > 16 * BATCH as u32);
            let mut inbox = Inbox::new(16);
            let mut outbox = Outbox::new();
            assert_eq!(inbox.receive(ours.as_fd()).unwrap(), BATCH);
            for index in 0..BATCH {
                let (bytes, from) = inbox.message(index).unwrap();
                assert_eq!((bytes, from), (&[index as u8; 5][..], client_addr));
                outbox.message(from).extend_from_slice(bytes);
            }
            assert!(outbox.is_full());
            assert_eq!(outbox.send(ours.as_fd()), 0);
            assert_eq!(inbox.receive(ours.as_fd()).unwrap(), 4);
            assert!(inbox.message(2).is_some());
            assert_eq!(inbox.message(3), None, "one that did not fit");
            assert_eq!(inbox.receive(ours.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            for number in 0..BATCH as u8 {
                let mut buffer = [0; 16];
                let len = client.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], &[number; 5]);
            }
        }
    }

    #[test]
    fn neighbours_of_one_size_to_one_address_go_together() {
        let to = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let counts = |messages: &[(usize, u16)]| -> Vec<(usize, usize)> {
            let all = trains(messages.iter().map(|&(len, port)| (len, to(port))), MAX_SEGMENT);
            all.iter().map(|train| (train.count, train.size)).collect()
        };
        assert_eq!(counts(&[(50, 1), (50, 1), (30, 1), (30, 1)]), [(3, 50), (1, 30)], "a shorter one is the last");
        assert_eq!(counts(&[(30, 1), (50, 1)]), [(1, 30), (1, 50)], "a longer one begins anew");
        assert_eq!(counts(&[(50, 1), (50, 2), (0, 2), (50, 2)]), [(1, 50), (2, 50)]);
        assert_eq!(counts(&[(1300, 1), (1300, 1)]), [(1, 1300), (1, 1300)], "a path may be too narrow");
        assert_eq!(counts(&[(1200, 1); 64]), [(54, 1200), (10, 1200)], "no packet is longer than 64 KiB");
    }

    #[test]
    fn a_train_of_unequal_ones_arrives_as_it_was_written() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(ours) = listen_udp(SocketAddr::new(ip.parse().unwrap(), 0)) else { continue };
            let clients = [reserve(ip), reserve(ip)];
            let mut outbox = Outbox::new();
            let sent: Vec<Vec<u8>> =
                (0..BATCH).map(|number| vec![number as u8; [40, 40, 28, 512][number % 4]]).collect();
            for (number, bytes) in sent.iter().enumerate() {
                outbox.message(clients[number / 8 % 2].1).extend_from_slice(bytes);
            }
            assert_eq!(outbox.send(ours.as_fd()), 0);
            for (number, bytes) in sent.iter().enumerate() {
                let mut buffer = [0; 1024];
                let len = clients[number / 8 % 2].0.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], bytes);
            }
        }
    }

    #[test]
    fn an_unsendable_datagram_does_not_keep_back_the_others() {
        let ours = UdpSocket::from(listen_udp("127.0.0.1:0".parse().unwrap()).unwrap());
        let (client, client_addr) = reserve("127.0.0.1");
        let mut outbox = Outbox::new();
        outbox.message(client_addr).extend_from_slice(b"one");
        outbox.message(client_addr).clear();
        // Port 0 is refused with EINVAL.
        outbox.message(SocketAddr::new(client_addr.ip(), 0)).extend_from_slice(b"two");
        outbox.message(client_addr).extend_from_slice(b"three");
        assert_eq!(outbox.send(ours.as_fd()), 1);
        let mut buffer = [0; 16];
        for want in ["one", "three"] {
            let len = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], want.as_bytes());
        }
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let (_socket, address) = reserve("127.0.0.1");
        let error = listen_udp(address).unwrap_err().find_holder();
        assert_eq!(error.source.raw_os_error(), Some(libc::EADDRINUSE));
        let holder = error.holder.as_ref().expect("our own process can be seen");
        assert_eq!(holder.pid, std::process::id() as i32);
        assert_eq!(
            error.to_string(),
            format!("listen on `{address}` (UDP): held by `{}`, process {}", holder.comm, holder.pid)
        );
    }

    #[test]
    fn an_address_need_not_be_there() {
        for address in ["192.0.2.53:0", "[2001:db8::53]:0"] {
            let address = address.parse().unwrap();
            if let Err(error) = listen_udp(address).and(listen_tcp(address)) {
                // A machine without IPv6 has no such sockets.
                assert_eq!(error.source.raw_os_error(), Some(libc::EAFNOSUPPORT), "{error}");
            }
        }
    }
}
