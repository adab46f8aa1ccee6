//! Blocking netlink sockets that send many messages in one system call.
//!
//! A [`Batch`] collects encoded messages; [`Socket::transact`] hands all of them to the kernel in
//! one `sendmsg(2)` and pairs the answers with the messages by sequence number. The kernel runs
//! rtnetlink and nfnetlink requests inside that call (`netlink_unicast_kernel()`,
//! net/netlink/af_netlink.c), so the answers are queued by the time it returns.
//!
//! Formats: netlink(7), RFC 3549 §2.3.2; extended acknowledgements: include/uapi/linux/netlink.h.

mod answer;
mod batch;
mod error;
mod handed_over;
mod monitor;
mod socket;

pub use batch::{Batch, push_nfgenmsg};
pub use error::{Errno, NetlinkError, errno_name};
pub use handed_over::{HandedOver, hand_over, outlive};
pub(crate) use monitor::notifications;
pub use monitor::{Event, Monitor};
pub use socket::{Outcome, Reply, Socket};

/// The messages of a datagram, without a socket: kind, and payload or what an acknowledgement says.
pub(crate) fn messages(datagram: &[u8]) -> Vec<(u16, Result<Vec<u8>, NetlinkError>)> {
    let taken = |message: answer::Incoming<'_>| match message.kind {
        answer::NLMSG_ERROR | answer::NLMSG_DONE => {
            (message.kind, answer::acknowledgement(&message).map(|()| Vec::new()))
        }
        kind => (kind, Ok(message.payload.to_vec())),
    };
    answer::Messages::new(datagram).map(taken).collect()
}

/// rtnetlink(7): links, addresses, routes, rules, neighbours.
pub const ROUTE: i32 = libc::NETLINK_ROUTE;
/// nfnetlink: nftables and conntrack.
pub const NETFILTER: i32 = libc::NETLINK_NETFILTER;
/// Generic netlink: families by name (include/uapi/linux/genetlink.h).
pub const GENERIC: i32 = libc::NETLINK_GENERIC;
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
