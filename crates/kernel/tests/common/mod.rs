//! A network namespace for the duration of a test.

#![allow(dead_code, reason = "each test binary uses a part")]

use portolan_kernel::netlink::{NETFILTER, ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};

/// Runs `test` in a new network namespace, or skips it loudly where that cannot be made.
pub(crate) fn in_netns(test: impl FnOnce()) {
    match NetnsFd::create() {
        Ok(ns) => with_netns(&ns, test).expect("enter the namespace just made"),
        Err(error) => {
            let reason = format!("SKIP: cannot make a network namespace: {error:?}");
            assert!(std::env::var_os("CI").is_none(), "{reason}");
            eprintln!("{reason}");
        }
    }
}

pub(crate) fn route_socket() -> Socket {
    Socket::open(ROUTE).unwrap()
}

pub(crate) fn netfilter_socket() -> Socket {
    Socket::open(NETFILTER).unwrap()
}
