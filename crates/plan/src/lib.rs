//! What the kernel should hold for given nouns, as values.
//!
//! Owns the kernel objects ([`Object`]), what a network or a container needs of them ([`network_objects`],
//! [`container_objects`]), the constant nftables ruleset ([`ruleset`]) with its rendering as text and in words
//! ([`explain`]), and the ordered difference between two sets of objects ([`diff`](fn@diff)). Leaves out how anything
//! is read from or written to a kernel: that is `portolan-kernel`.

#![forbid(unsafe_code)]

mod desired;
mod diff;
pub mod explain;
mod firewall;
pub mod firewalld;
pub mod iptables;
mod object;
pub mod others;
mod proxy;
pub mod ruleset;
mod set;

pub use desired::{
    ContainerView, alias_of_endpoint, alias_of_network, alias_of_shaper, base_objects, container_objects,
    default_route, default_routes, end_objects, generated_mac, goes_direct, host_end_name, is_host_end_name,
    is_measured, l2_bridge_name, leased_names, name_servers, network_objects, peer_objects, published_endpoint,
    remote_objects, seal_name, shaper_name, tunnel_objects, vxlan_name,
};
pub use diff::{Step, diff, in_order_of, inverse, possible};
pub use firewall::{Firewall, Guard};
pub use object::{
    ALLOWED, Bridge, BridgePort, Chain, Child, ChildKind, Data, DefaultRoute, Direction, Element, Field, Forwarding,
    Group, Groups, HostEnd, HostRoute, Inlet, Interface, Key, Macs, Neighbour, Object, Objects, Port, Route, Routed,
    Routers, Ruleset, SandboxSetting, Setting, Shaper, Shortcut, ShortcutKey, ShortcutPart, Translated, TunnelPort,
    Vlan, Vxlan, Way,
};
pub use proxy::{PROXIED_PORTS, Proxied, proxied};
pub use set::{DataType, FieldType, Set, Table};
