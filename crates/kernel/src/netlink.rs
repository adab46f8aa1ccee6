//! Blocking netlink sockets that send many messages in one system call.
//!
//! A [`Batch`] collects encoded messages; [`Socket::transact`] hands all of them to the kernel in
//! one `sendmsg(2)` and pairs the answers with the messages by sequence number. The kernel runs
//! rtnetlink and nfnetlink requests inside that call (`netlink_unicast_kernel()`,
//! net/netlink/af_netlink.c), so the answers are queued by the time it returns.
//!
//! Formats: netlink(7), RFC 3549 §2.3.2; extended acknowledgements: include/uapi/linux/netlink.h.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use netlink_bindings::utils::IterableChunks;

use crate::sys;

/// rtnetlink(7): links, addresses, routes, rules, neighbours.
pub const ROUTE: i32 = libc::NETLINK_ROUTE;
/// nfnetlink: nftables and conntrack.
pub const NETFILTER: i32 = libc::NETLINK_NETFILTER;
/// sock_diag(7).
pub const SOCK_DIAG: i32 = libc::NETLINK_SOCK_DIAG;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
/// `NLM_F_ACK`.
pub const ACK: u16 = libc::NLM_F_ACK as u16;
/// `NLM_F_ECHO`: the kernel answers with the object it made.
pub const ECHO: u16 = libc::NLM_F_ECHO as u16;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = libc::NLM_F_DUMP as u16;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = libc::NLM_F_CREATE as u16;
/// `NLM_F_EXCL`.
pub const EXCL: u16 = libc::NLM_F_EXCL as u16;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = libc::NLM_F_APPEND as u16;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`, include/uapi/linux/netfilter/nfnetlink.h.
const NFNL_BATCH_GENID: u16 = 1;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NLMSG_HDRLEN: usize = 16;
const NLMSG_NOOP: u16 = libc::NLMSG_NOOP as u16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLMSG_OVERRUN: u16 = libc::NLMSG_OVERRUN as u16;
const NLM_F_DUMP_INTR: u16 = libc::NLM_F_DUMP_INTR as u16;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

const RECEIVE_BUFFER: usize = 64 * 1024;
const SOCKET_RECEIVE_BUFFER: i32 = 8 << 20;
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The payload `sendmsg` accepts before `SO_SNDBUF` has to grow; below `net.core.wmem_default`.
const DEFAULT_SEND_LIMIT: usize = 128 * 1024;
/// Messages outside a netfilter transaction go out in pieces, so that the acknowledgements of one
/// piece always fit in the receive buffer.
const PIECE_MESSAGES: usize = 2048;
const RELISTS: usize = 8;

static NEXT_SEQUENCE: AtomicU32 = AtomicU32::new(1);

fn next_sequence() -> u32 {
    NEXT_SEQUENCE.fetch_add(1, Ordering::Relaxed)
}

/// What the kernel, or the socket to it, refused.
///
/// Displays as `file exists (EEXIST)`, followed by the kernel's own words if it gave any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkError {
    errno: i32,
    index: Option<usize>,
    extack: Option<String>,
    offset: Option<u32>,
    interrupted: bool,
}

impl NetlinkError {
    /// An error with nothing but its errno (positive).
    pub fn from_errno(errno: i32) -> Self {
        Self { errno, index: None, extack: None, offset: None, interrupted: false }
    }

    fn interrupted_dump() -> Self {
        Self { interrupted: true, ..Self::from_errno(libc::EINTR) }
    }

    /// The positive errno.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// Position in its [`Batch`] of the message which failed.
    pub fn index(&self) -> Option<usize> {
        self.index
    }

    /// The kernel's extended-ack text (`NLMSGERR_ATTR_MSG`).
    pub fn extack(&self) -> Option<&str> {
        self.extack.as_deref()
    }

    /// Byte offset in the failed message of the attribute the kernel objects to
    /// (`NLMSGERR_ATTR_OFFS`), counted from the message header.
    pub fn offset(&self) -> Option<u32> {
        self.offset
    }

    /// Whether a dump has to be repeated because the listed objects changed meanwhile
    /// (`NLM_F_DUMP_INTR`).
    pub fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// Whether the errno says that the object exists already.
    pub fn is_exists(&self) -> bool {
        self.errno == libc::EEXIST
    }

    /// Whether the errno says that the object, or a thing it refers to, is not there.
    ///
    /// Routes answer `ESRCH`, addresses `EADDRNOTAVAIL`, links `ENODEV`, all else `ENOENT`.
    pub fn is_missing(&self) -> bool {
        matches!(self.errno, libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
    }
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.interrupted {
            return f.write_str("listing kept changing while it was read (NLM_F_DUMP_INTR)");
        }
        write!(f, "{}", Errno(self.errno))?;
        if let Some(text) = &self.extack {
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NetlinkError {}

/// Displays an errno as `file exists (EEXIST)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match errno_entry(self.0) {
            Some((name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl std::error::Error for Errno {}

/// Symbolic name of `errno` (`"EEXIST"`), or `"errno"` for the ones networking never returns.
pub fn errno_name(errno: i32) -> &'static str {
    errno_entry(errno).map_or("errno", |(name, _)| name)
}

fn errno_entry(errno: i32) -> Option<(&'static str, &'static str)> {
    macro_rules! table {
        ($($name:ident $text:literal)*) => {
            match errno {
                $(libc::$name => Some((stringify!($name), $text)),)*
                _ => None,
            }
        };
    }
    table! {
        EPERM "operation not permitted"
        ENOENT "no such file or object"
        ESRCH "no such process or route"
        EINTR "interrupted system call"
        EIO "input/output error"
        ENXIO "no such device or address"
        E2BIG "argument list too long"
        ENOEXEC "exec format error"
        EBADF "bad file descriptor"
        ECHILD "no child processes"
        EAGAIN "timed out or temporarily unavailable"
        ENOMEM "out of memory"
        EACCES "permission denied"
        EFAULT "bad address"
        EBUSY "device or resource busy"
        EEXIST "file exists"
        EXDEV "invalid cross-device link"
        ENODEV "no such device"
        ENOTDIR "not a directory"
        EISDIR "is a directory"
        EINVAL "invalid argument"
        ENFILE "too many open files in system"
        EMFILE "too many open files"
        ENOTTY "inappropriate ioctl"
        EFBIG "file too large"
        ENOSPC "no space left on device"
        EROFS "read-only file system"
        EMLINK "too many links"
        EPIPE "broken pipe"
        EDOM "argument out of domain"
        ERANGE "result out of range"
        ENAMETOOLONG "name too long"
        ENOSYS "function not implemented"
        ENOTEMPTY "directory not empty"
        ELOOP "too many levels of nesting or symbolic links"
        ENODATA "no data available"
        EOVERFLOW "value too large"
        ENOTSOCK "not a socket"
        EMSGSIZE "message too long"
        EPROTONOSUPPORT "protocol not supported"
        ESOCKTNOSUPPORT "socket type not supported"
        EOPNOTSUPP "operation not supported"
        EAFNOSUPPORT "address family not supported"
        EADDRINUSE "address already in use"
        EADDRNOTAVAIL "address not available"
        ENETDOWN "network is down"
        ENETUNREACH "network is unreachable"
        ECONNABORTED "connection aborted"
        ECONNRESET "connection reset"
        ENOBUFS "no buffer space available"
        EISCONN "already connected"
        ENOTCONN "not connected"
        ETIMEDOUT "timed out"
        ECONNREFUSED "connection refused"
        EHOSTDOWN "host is down"
        EHOSTUNREACH "no route to host"
        EALREADY "already in progress"
        EINPROGRESS "in progress"
        ESTALE "stale handle"
        EDQUOT "quota exceeded"
        ECANCELED "cancelled"
    }
}

/// One answer of the kernel that is not a mere acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Position in the [`Batch`] of the message this answers.
    pub index: usize,
    /// `nlmsg_type`.
    pub msg_type: u16,
    /// Everything after the message header.
    pub payload: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Message {
    start: usize,
    sequence: u32,
    wants_ack: bool,
}

/// Encoded messages that travel to the kernel together.
///
/// Outside a netfilter transaction each message stands for itself: the kernel goes on after a
/// failed one. Between [`Batch::begin_nft`] and [`Batch::end_nft`] all messages take effect or none.
#[derive(Debug, Default)]
pub struct Batch {
    buf: Vec<u8>,
    messages: Vec<Message>,
    nft_begin: Option<usize>,
    nft_open: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of messages, the ones delimiting a transaction included.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Size on the wire in bytes.
    pub fn bytes(&self) -> usize {
        self.buf.len()
    }

    /// Appends a message whose payload `build` writes; returns its position.
    ///
    /// `NLM_F_REQUEST` is added to `flags`, and `NLM_F_ACK` too unless a netfilter transaction is
    /// open, in which the last message alone is acknowledged: the answers to all of a large
    /// transaction would overflow the receive buffer before anybody can read them.
    pub fn message(&mut self, msg_type: u16, flags: u16, build: impl FnOnce(&mut Vec<u8>)) -> usize {
        let ack = if self.nft_open { 0 } else { ACK };
        self.raw_message(msg_type, flags | REQUEST | ack, build)
    }

    /// Appends a message that asks for no acknowledgement; a failure is still reported.
    pub fn raw_message_no_ack(&mut self, msg_type: u16, flags: u16, build: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.raw_message(msg_type, (flags | REQUEST) & !ACK, build)
    }

    fn raw_message(&mut self, msg_type: u16, flags: u16, build: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.buf.len();
        let sequence = next_sequence();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&msg_type.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&sequence.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 4]);
        build(&mut self.buf);
        netlink_bindings::utils::align(&mut self.buf);
        let len = u32::try_from(self.buf.len() - start).expect("a message is below 4 GiB");
        self.buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.messages.push(Message { start, sequence, wants_ack: flags & ACK != 0 });
        self.messages.len() - 1
    }

    /// Opens an nftables transaction (`NFNL_MSG_BATCH_BEGIN`).
    ///
    /// With `generation` the kernel refuses the transaction with `ERESTART` when the ruleset
    /// changed since that generation was read (`NFNL_BATCH_GENID`).
    pub fn begin_nft(&mut self, generation: Option<u32>) -> usize {
        let index = self.raw_message_no_ack(NFNL_MSG_BATCH_BEGIN, 0, |buf| {
            push_nfgenmsg(buf, 0, NFNL_SUBSYS_NFTABLES);
            if let Some(generation) = generation {
                netlink_bindings::utils::push_header(buf, NFNL_BATCH_GENID, 4);
                buf.extend_from_slice(&generation.to_be_bytes());
            }
        });
        self.nft_begin = Some(index);
        self.nft_open = true;
        index
    }

    /// Closes the transaction opened by [`Batch::begin_nft`].
    pub fn end_nft(&mut self) {
        let begin = self.nft_begin.expect("a transaction was opened");
        let last = self.messages.len() - 1;
        if last > begin {
            let message = &mut self.messages[last];
            message.wants_ack = true;
            let at = message.start + 6;
            let flags = u16::from_ne_bytes([self.buf[at], self.buf[at + 1]]) | ACK;
            self.buf[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
        self.nft_open = false;
        self.raw_message_no_ack(NFNL_MSG_BATCH_END, 0, |buf| {
            push_nfgenmsg(buf, 0, NFNL_SUBSYS_NFTABLES);
        });
    }

    fn position(&self, sequence: u32) -> Option<usize> {
        let first = self.messages.first()?.sequence;
        let key = sequence.wrapping_sub(first);
        self.messages.binary_search_by_key(&key, |message| message.sequence.wrapping_sub(first)).ok()
    }

    /// Byte ranges to send one after the other, with the messages in each.
    fn pieces(&self) -> Vec<(std::ops::Range<usize>, std::ops::Range<usize>)> {
        if self.nft_begin.is_some() || self.messages.len() <= PIECE_MESSAGES {
            return vec![(0..self.buf.len(), 0..self.messages.len())];
        }
        let mut pieces = Vec::new();
        let mut from = 0;
        while from < self.messages.len() {
            let to = (from + PIECE_MESSAGES).min(self.messages.len());
            let end = self.messages.get(to).map_or(self.buf.len(), |message| message.start);
            pieces.push((self.messages[from].start..end, from..to));
            from = to;
        }
        pieces
    }
}

/// Appends a `struct nfgenmsg` (version 0) with the big-endian `resource`.
pub fn push_nfgenmsg(buf: &mut Vec<u8>, family: u8, resource: u16) {
    buf.extend_from_slice(&[family, 0]);
    buf.extend_from_slice(&resource.to_be_bytes());
}

/// A netlink socket of the namespace it was opened in; usable from any other.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    receive: Vec<u8>,
    send_limit: usize,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// Opens a socket for `protocol` ([`ROUTE`], [`NETFILTER`], [`SOCK_DIAG`]) in the calling
    /// thread's network namespace.
    ///
    /// # Errors
    /// The errno of socket(2) or of a required socket option.
    pub fn open(protocol: i32) -> Result<Self, NetlinkError> {
        let fd = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        let borrowed = fd.as_fd();
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            // Linux older than 4.12, 4.3 or 4.20 lacks the option; answers are only less precise.
            let _ = sys::setsockopt_int(borrowed, libc::SOL_NETLINK, option, 1);
        }
        if sys::setsockopt_int(borrowed, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_RECEIVE_BUFFER).is_err() {
            sys::setsockopt_int(borrowed, libc::SOL_SOCKET, libc::SO_RCVBUF, SOCKET_RECEIVE_BUFFER)?;
        }
        sys::receive_timeout(borrowed, RECEIVE_TIMEOUT)?;
        Ok(Self { fd, receive: vec![0; RECEIVE_BUFFER], send_limit: DEFAULT_SEND_LIMIT })
    }

    /// Sends `batch` and waits for its answers; the first failure is the error.
    ///
    /// # Errors
    /// The error of the earliest failing message, or of the socket.
    pub fn transact(&mut self, batch: &Batch) -> Result<Vec<Reply>, NetlinkError> {
        let outcome = self.transact_each(batch)?;
        match outcome.errors.into_iter().next() {
            None => Ok(outcome.replies),
            Some(error) => Err(error),
        }
    }

    /// Sends `batch` and reports on every message.
    ///
    /// A failure of an nftables transaction as a whole (no permission, no nftables, lost race)
    /// carries the position of the message that opened it.
    ///
    /// # Errors
    /// Only what kept the messages from reaching the kernel or the answers from reaching us.
    pub fn transact_each(&mut self, batch: &Batch) -> Result<Outcome, NetlinkError> {
        let mut outcome = Outcome { messages: batch.len(), ..Outcome::default() };
        for (bytes, messages) in batch.pieces() {
            self.send(&batch.buf[bytes])?;
            self.collect(batch, messages, &mut outcome)?;
        }
        outcome.errors.sort_by_key(|error| error.index);
        Ok(outcome)
    }

    fn collect(
        &mut self,
        batch: &Batch,
        range: std::ops::Range<usize>,
        outcome: &mut Outcome,
    ) -> Result<(), NetlinkError> {
        let mut answered = vec![false; range.len()];
        let mut waiting = batch.messages[range.clone()].iter().filter(|message| message.wants_ack).count();
        let mut failed = false;
        loop {
            let received = match self.receive(libc::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(error) if error.errno == libc::EAGAIN => {
                    // The kernel aborts a failed transaction without the acknowledgement of its
                    // last message in some versions; everything it had to say is here already.
                    if waiting == 0 || (failed && batch.nft_begin.is_some()) {
                        return Ok(());
                    }
                    self.receive(0)?
                }
                Err(error) => return Err(error),
            };
            for message in Messages::new(&self.receive[..received]) {
                let Some(index) = batch.position(message.sequence) else {
                    continue;
                };
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => return Err(NetlinkError::from_errno(libc::ENOBUFS)),
                    NLMSG_ERROR | NLMSG_DONE => {
                        if let Some(seen) = index.checked_sub(range.start).and_then(|at| answered.get_mut(at)) {
                            if batch.messages[index].wants_ack && !*seen {
                                waiting -= 1;
                            }
                            *seen = true;
                        }
                        if let Err(mut error) = acknowledgement(&message) {
                            error.index = Some(index);
                            outcome.errors.push(error);
                            failed = true;
                        }
                    }
                    msg_type => outcome.replies.push(Reply { index, msg_type, payload: message.payload.to_vec() }),
                }
            }
            // A transaction that fails as a whole says so before it acknowledges its messages.
            if waiting == 0 && !failed {
                return Ok(());
            }
        }
    }

    /// Lists objects: sends one request and calls `each` with type and payload of every message.
    ///
    /// # Errors
    /// The kernel's refusal, or an [`NetlinkError::interrupted`] error after the last message when
    /// the objects changed while they were listed; what `each` saw may then be inconsistent.
    pub fn dump(
        &mut self,
        msg_type: u16,
        flags: u16,
        build: impl FnOnce(&mut Vec<u8>),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        batch.raw_message(msg_type, flags | REQUEST | DUMP, build);
        self.send(&batch.buf)?;
        let sequence = batch.messages[0].sequence;
        let mut interrupted = false;
        loop {
            let received = self.receive(0)?;
            for message in Messages::new(&self.receive[..received]) {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => return Err(NetlinkError::from_errno(libc::ENOBUFS)),
                    NLMSG_ERROR => {
                        acknowledgement(&message)?;
                    }
                    NLMSG_DONE => {
                        acknowledgement(&message)?;
                        return if interrupted { Err(NetlinkError::interrupted_dump()) } else { Ok(()) };
                    }
                    kind => each(kind, message.payload),
                }
            }
        }
    }

    /// Like [`Socket::dump`], gathering what `decode` returns and starting over, a bounded number
    /// of times, when the listing was interrupted.
    ///
    /// # Errors
    /// As for [`Socket::dump`].
    pub fn dump_all<T>(
        &mut self,
        msg_type: u16,
        flags: u16,
        build: impl Fn(&mut Vec<u8>),
        mut decode: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut attempt = 0;
        loop {
            let mut items = Vec::new();
            let result = self.dump(msg_type, flags, &build, |kind, payload| {
                items.extend(decode(kind, payload));
            });
            match result {
                Ok(()) => return Ok(items),
                Err(error) if error.interrupted() && attempt < RELISTS => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for one object; `None` when the kernel says there is none (`ENOENT`, `ENODEV`).
    ///
    /// # Errors
    /// Any other refusal.
    pub fn query_one(
        &mut self,
        msg_type: u16,
        flags: u16,
        build: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Option<Reply>, NetlinkError> {
        let mut batch = Batch::new();
        batch.raw_message_no_ack(msg_type, flags, build);
        self.send(&batch.buf)?;
        let sequence = batch.messages[0].sequence;
        loop {
            let received = self.receive(0)?;
            for message in Messages::new(&self.receive[..received]) {
                if message.sequence != sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match acknowledgement(&message) {
                            Ok(()) => Ok(None),
                            Err(error) if matches!(error.errno, libc::ENOENT | libc::ENODEV) => Ok(None),
                            Err(error) => Err(error),
                        };
                    }
                    msg_type => {
                        return Ok(Some(Reply { index: 0, msg_type, payload: message.payload.to_vec() }));
                    }
                }
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        if bytes.len() > self.send_limit {
            // The kernel doubles the value and wants room for its own bookkeeping (socket(7)).
            let wanted = i32::try_from(bytes.len().saturating_add(64 * 1024))
                .map_err(|_| NetlinkError::from_errno(libc::EMSGSIZE))?;
            let fd = self.fd.as_fd();
            if sys::setsockopt_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted).is_err() {
                sys::setsockopt_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, wanted)?;
            }
            self.send_limit = bytes.len();
        }
        let sent = sys::send(self.fd.as_fd(), bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(NetlinkError::from_errno(libc::EIO)) }
    }

    /// Receives one datagram of the kernel into `self.receive`.
    fn receive(&mut self, flags: i32) -> Result<usize, NetlinkError> {
        loop {
            // SAFETY: sockaddr_nl is plain data for which all zeroes is valid.
            let mut sender: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
            let mut sender_len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            // SAFETY: buffer and address are live and their lengths are given.
            let ret = sys::cvt_len(unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    self.receive.as_mut_ptr().cast(),
                    self.receive.len(),
                    flags | libc::MSG_TRUNC,
                    (&raw mut sender).cast(),
                    &raw mut sender_len,
                )
            });
            let len = match ret {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if sender.nl_pid != 0 {
                continue;
            }
            if len > self.receive.len() {
                // The rest of this datagram is lost; the next try has room for it.
                self.receive.resize(len.next_multiple_of(RECEIVE_BUFFER), 0);
                return Err(NetlinkError::from_errno(libc::EMSGSIZE));
            }
            return Ok(len);
        }
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answers other than acknowledgements, in the order they came.
    pub replies: Vec<Reply>,
    /// Failures, ordered by message.
    pub errors: Vec<NetlinkError>,
    messages: usize,
}

impl Outcome {
    /// One result per message of the batch, in order.
    pub fn results(self) -> Vec<Result<(), NetlinkError>> {
        let mut results = vec![Ok(()); self.messages];
        for error in self.errors.into_iter().rev() {
            if let Some(index) = error.index {
                results[index] = Err(error);
            }
        }
        results
    }
}

struct Incoming<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// Splits a datagram into messages.
struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Incoming<'a>;

    fn next(&mut self) -> Option<Incoming<'a>> {
        let header: &[u8; NLMSG_HDRLEN] = self.rest.first_chunk()?;
        let len = u32::from_ne_bytes(*header.first_chunk()?) as usize;
        let message = Incoming {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload: self.rest.get(NLMSG_HDRLEN..len)?,
        };
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

/// Decodes `NLMSG_ERROR` and `NLMSG_DONE`.
fn acknowledgement(message: &Incoming<'_>) -> Result<(), NetlinkError> {
    let Some(code) = message.payload.first_chunk() else {
        // A dump of no objects may end in a bare NLMSG_DONE.
        return Ok(());
    };
    let code = i32::from_ne_bytes(*code);
    if code >= 0 {
        return Ok(());
    }
    let mut error = NetlinkError::from_errno(-code);
    if message.flags & NLM_F_ACK_TLVS != 0 {
        // struct nlmsgerr: the code, then the header of the failed message, then (unless capped)
        // its payload, then the attributes.
        let attributes = if message.kind == NLMSG_DONE {
            message.payload.get(4..)
        } else if message.flags & NLM_F_CAPPED != 0 {
            message.payload.get(4 + NLMSG_HDRLEN..)
        } else {
            message
                .payload
                .get(4..8)
                .and_then(|len| len.first_chunk())
                .map(|len| u32::from_ne_bytes(*len) as usize)
                .and_then(|len| message.payload.get(4 + len.next_multiple_of(4)..))
        };
        for (header, value) in IterableChunks::new(attributes.unwrap_or(&[])) {
            match header.r#type {
                NLMSGERR_ATTR_MSG => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or(&[]);
                    error.extack = Some(String::from_utf8_lossy(text).into_owned());
                }
                NLMSGERR_ATTR_OFFS => {
                    error.offset = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
                }
                _ => {}
            }
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_names_the_errno_and_keeps_the_kernels_words() {
        let mut error = NetlinkError::from_errno(libc::EEXIST);
        assert_eq!(error.to_string(), "file exists (EEXIST)");
        error.extack = Some("Table already there".into());
        assert_eq!(error.to_string(), "file exists (EEXIST): Table already there");
        assert_eq!(errno_name(libc::ENOBUFS), "ENOBUFS");
    }

    #[test]
    fn batch_fills_in_lengths_and_finds_messages_by_sequence() {
        let mut batch = Batch::new();
        batch.message(1, 0, |buf| buf.extend_from_slice(&[1, 2, 3]));
        next_sequence();
        batch.message(2, 0, |_| {});
        let lengths: Vec<usize> = Messages::new(&batch.buf).map(|message| message.payload.len()).collect();
        assert_eq!(lengths, [4, 0]);
        for (index, message) in batch.messages.iter().enumerate() {
            assert_eq!(batch.position(message.sequence), Some(index));
        }
        assert_eq!(batch.position(batch.messages[0].sequence + 1), None);
    }

    #[test]
    fn only_the_last_message_of_a_transaction_is_acknowledged() {
        let mut batch = Batch::new();
        batch.begin_nft(Some(7));
        batch.message(0xa00, 0, |_| {});
        batch.message(0xa00, 0, |_| {});
        batch.end_nft();
        let acks: Vec<bool> = Messages::new(&batch.buf).map(|message| message.flags & ACK != 0).collect();
        assert_eq!(acks, [false, false, true, false]);
    }

    #[test]
    fn capped_error_with_attributes_is_decoded() {
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; NLMSG_HDRLEN]);
        netlink_bindings::utils::push_header(&mut payload, NLMSGERR_ATTR_MSG, 4);
        payload.extend_from_slice(b"bad\0");
        netlink_bindings::utils::push_header(&mut payload, NLMSGERR_ATTR_OFFS, 4);
        payload.extend_from_slice(&44u32.to_ne_bytes());
        let message =
            Incoming { kind: NLMSG_ERROR, flags: NLM_F_CAPPED | NLM_F_ACK_TLVS, sequence: 1, payload: &payload };
        let error = acknowledgement(&message).unwrap_err();
        assert_eq!(error.extack(), Some("bad"));
        assert_eq!(error.offset(), Some(44));
        assert_eq!(error.to_string(), "invalid argument (EINVAL): bad");
    }
}
