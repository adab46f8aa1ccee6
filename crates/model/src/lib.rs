//! The nouns of Portolan as validated values: network, endpoint, sandbox, container, published port.
//!
//! Owns what a name, an address range or an option may look like, and the serialised form of every
//! row of the store, and how times are written. Leaves out all I/O, the clock and the kernel: a value that exists here is
//! well formed, whether it can be applied is decided by `portolan-engine`.

#![forbid(unsafe_code)]

pub mod clock;

mod bandwidth;
mod container;
mod endpoint;
mod firewall;
mod health;
mod id;
mod invalid;
mod lease;
mod mac;
mod name;
mod network;
mod options;
mod overlay;
mod pool;
mod port;
mod range;
mod sets;
mod tuning;

pub use bandwidth::{Bandwidth, Burst, Limit, Rate};
pub use container::{
    ALSO_CALLED, CALLED, Container, ContainerKind, ContainerState, DnsConfig, HostEntry, NetworkMode, OF_CNI,
    ProcessId, Sandbox, TAKEN_TO,
};
pub use endpoint::{Endpoint, EndpointAddress, Link};
pub use firewall::FirewallDriver;
pub use health::{Health, HealthCheck, HealthFailure, HealthState};
pub use id::Id;
pub use invalid::Invalid;
pub use lease::{DhcpLease, DhcpServer};
pub use mac::Mac;
pub use name::{HostName, IfName, Name};
pub use network::{Driver, Family, Ipam, Network, PerFamily, Phase, RouteAction, StaticRoute, Subinterface, Subnet};
pub use options::{Backend, GatewayMode, IpvlanMode, Isolate, MacvlanMode, Mtu, NetworkOptions};
pub use overlay::{Lan, Overlay, Peer, RemoteBlock, RemoteEndpoint, TunnelEnd, Vni, Withheld, seal_bytes, sealed_mtu};
pub use pool::Pool;
pub use port::{ExposedPort, HostPorts, PortRange, Protocol, Publication, PublishSpec};
pub use range::AddressRange;
pub use tuning::{LinkAttributes, Sysctl, SysctlKey, Tuning};
