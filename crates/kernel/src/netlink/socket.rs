//! Sockets: sending batches, and pairing answers with messages.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::answer::{Messages, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, acknowledgement};
use super::{Batch, DUMP, NetlinkError, REQUEST};
use crate::sys;

const RECEIVE_BUFFER: usize = 64 * 1024;
const SOCKET_RECEIVE_BUFFER: i32 = 8 << 20;
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The payload `sendmsg` accepts before `SO_SNDBUF` has to grow; below `net.core.wmem_default`.
const DEFAULT_SEND_LIMIT: usize = 128 * 1024;
const RELISTS: usize = 8;

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

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

impl From<OwnedFd> for Socket {
    /// A socket that [`Socket::open`] made, in this process or in one before it; answers to whoever had it are passed
    /// over.
    fn from(fd: OwnedFd) -> Self {
        Self { fd, receive: vec![0; RECEIVE_BUFFER], send_limit: DEFAULT_SEND_LIMIT }
    }
}

impl Socket {
    /// Opens a socket for `protocol` ([`ROUTE`](super::ROUTE), [`NETFILTER`](super::NETFILTER),
    /// [`SOCK_DIAG`](super::SOCK_DIAG)) in the calling thread's network namespace.
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

    fn collect(&mut self, batch: &Batch, range: Range<usize>, outcome: &mut Outcome) -> Result<(), NetlinkError> {
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

    /// The next datagram that waits, if there is one.
    pub(super) fn receive_now(&mut self) -> Result<Option<&[u8]>, NetlinkError> {
        match self.receive(libc::MSG_DONTWAIT) {
            Ok(len) => Ok(Some(&self.receive[..len])),
            Err(error) if error.errno == libc::EAGAIN => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Throws the next datagram away that waits; whether there was one.
    pub(crate) fn discard(&mut self) -> Result<bool, NetlinkError> {
        match self.receive_now() {
            Ok(found) => Ok(found.is_some()),
            // There was more than fits: all of it is news.
            Err(error) if matches!(error.errno(), libc::ENOBUFS | libc::EMSGSIZE) => Ok(true),
            Err(error) => Err(error),
        }
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
