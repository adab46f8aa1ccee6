//! What this process may do and this kernel can do.

use std::fs;

use crate::netlink::{Batch, CREATE, EXCL, NETFILTER, NetlinkError, ROUTE, Socket, push_nfgenmsg};
use crate::netns::{NetnsError, NetnsFd, with_netns};
use crate::rtnl::link::{self, BridgeSpec, VethPeer, VethSpec};

const NFT_MSG_NEWTABLE: u16 = 10 << 8;
const NFT_MSG_GETTABLE: u16 = 10 << 8 | 1;
const NFTA_TABLE_NAME: u16 = 1;

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;

/// Effective privileges of the calling thread, in its user namespace (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges {
    /// Effective user id 0.
    pub root: bool,
    /// Configure interfaces, routes, firewall.
    pub net_admin: bool,
    /// Open packet and raw sockets.
    pub net_raw: bool,
    /// Create and enter namespaces, mount.
    pub sys_admin: bool,
}

/// Reads the privileges of the calling thread.
pub fn privileges() -> Privileges {
    let effective = crate::sys::effective_capabilities().unwrap_or(0);
    let has = |capability: u32| effective & (1 << capability) != 0;
    Privileges {
        // SAFETY: geteuid(2) cannot fail.
        root: unsafe { libc::geteuid() } == 0,
        net_admin: has(CAP_NET_ADMIN),
        net_raw: has(CAP_NET_RAW),
        sys_admin: has(CAP_SYS_ADMIN),
    }
}

/// Whether `error`, of creating an object, says that the kernel does not know the kind.
///
/// Links of an unknown kind are refused with `EOPNOTSUPP` (Linux before 2.6.24: `ENODEV`), nftables
/// objects with `EOPNOTSUPP` or `ENOENT` for missing modules, whole protocols with
/// `EPROTONOSUPPORT` or `EAFNOSUPPORT`.
pub fn is_unsupported(error: &NetlinkError) -> bool {
    matches!(error.errno(), libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOPROTOOPT)
}

/// What the kernel can do; an error is the kernel's answer to trying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Bridges.
    pub bridge: Result<(), NetlinkError>,
    /// Veth pairs.
    pub veth: Result<(), NetlinkError>,
    /// nftables tables of family inet.
    pub nftables: Result<(), NetlinkError>,
    /// Conntrack over netlink.
    pub conntrack: Result<(), NetlinkError>,
    /// IPv6.
    pub ipv6: bool,
    /// SCTP sockets (publishing SCTP ports does not need them).
    pub sctp: bool,
}

/// Tries what Portolan needs, in a network namespace that goes away afterwards.
///
/// # Errors
/// [`NetnsError::Create`] where network namespaces cannot be made.
pub fn features() -> Result<Features, NetnsError> {
    let ns = NetnsFd::create()?;
    with_netns(&ns, || Features {
        bridge: try_messages(ROUTE, |batch| {
            link::create_bridge(batch, &BridgeSpec { name: "probe0", ..BridgeSpec::default() });
        }),
        veth: try_messages(ROUTE, |batch| {
            let peer = VethPeer { name: "probe2", ..VethPeer::default() };
            link::create_veth(batch, &VethSpec { name: "probe1", peer, ..VethSpec::default() });
        }),
        nftables: try_messages(NETFILTER, try_table),
        conntrack: Socket::open(NETFILTER).and_then(|mut socket| crate::conntrack::count(&mut socket)).map(drop),
        ipv6: fs::exists("/proc/sys/net/ipv6").unwrap_or(false),
        sctp: crate::sys::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP).is_ok(),
    })
}

/// Names of the nftables tables in the socket's namespace, with their family (`NFPROTO_*`).
///
/// # Errors
/// The kernel's refusal.
pub fn nft_tables(socket: &mut Socket) -> Result<Vec<(u8, String)>, NetlinkError> {
    socket.dump_all(
        NFT_MSG_GETTABLE,
        0,
        |buf| push_nfgenmsg(buf, 0, 0),
        |_, payload| {
            let name = netlink_bindings::utils::find_attr(payload.get(4..)?, NFTA_TABLE_NAME)?;
            let name = name.strip_suffix(b"\0").unwrap_or(name);
            Some((payload[0], String::from_utf8_lossy(name).into_owned()))
        },
    )
}

fn try_messages(protocol: i32, build: impl FnOnce(&mut Batch)) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    build(&mut batch);
    Socket::open(protocol)?.transact(&batch).map(drop)
}

fn try_table(batch: &mut Batch) {
    const NFPROTO_INET: u8 = 1;
    batch.begin_nft(None);
    batch.message(NFT_MSG_NEWTABLE, CREATE | EXCL, |buf| {
        push_nfgenmsg(buf, NFPROTO_INET, 0);
        netlink_bindings::utils::push_header(buf, NFTA_TABLE_NAME, 6);
        buf.extend_from_slice(b"probe\0");
    });
    batch.end_nft();
}
