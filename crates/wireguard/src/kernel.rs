//! The kernel's own devices (drivers/net/wireguard), by rtnetlink and generic netlink.
