//! Every system call Portolan makes: netlink, nfnetlink, network namespaces, sysctls, conntrack,
//! socket diagnostics and process set-up.
//!
//! The crate owns the only `unsafe` code of the workspace. It speaks in plain types (interface
//! indexes, [`std::net::IpAddr`], MAC bytes) and takes no decisions: what the kernel should hold is
//! worked out elsewhere and arrives here as messages to send. Everything blocks, with timeouts, and
//! no other program is ever started except the one a caller asks [`process`] to run.

pub mod announce;
mod bpf;
pub mod carrier;
pub mod confine;
pub mod conntrack;
pub mod diag;
pub mod door;
#[doc(hidden)]
pub mod foreign;
pub mod groups;
pub mod host;
pub mod icmp;
pub mod inherit;
pub mod iptables;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod privilege;
pub mod probe;
pub mod process;
pub mod ptrace;
pub mod rtnl;
pub mod session;
pub mod sieve;
pub mod signals;
pub mod socket;
pub mod sysctl;
pub mod tap;
pub mod tun;
pub mod udp;

mod sys;

pub use sys::random;
