//! Bodies of the plugin protocol (moby, `daemon/libnetwork/drivers/remote/api`).
//!
//! Docker writes more fields than it documents, and more from version to version: unknown ones are passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Go writes empty maps and slices as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Options by their names: of the network, of an endpoint, of a sandbox.
pub type Options = BTreeMap<String, Value>;

/// `NetworkDriver.CreateNetwork`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateNetwork {
    /// 64 hexadecimal digits.
    #[serde(rename = "NetworkID")]
    pub network: String,
    /// What `docker network create` was given, below [`GENERIC`], and labels of libnetwork.
    #[serde(default, deserialize_with = "or_default")]
    pub options: Options,
    /// Pools of IPv4.
    #[serde(default, rename = "IPv4Data", deserialize_with = "or_default")]
    pub ipv4: Vec<Pool>,
    /// Pools of IPv6.
    #[serde(default, rename = "IPv6Data", deserialize_with = "or_default")]
    pub ipv6: Vec<Pool>,
}

/// A subnet that an IPAM driver has given to a network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pool {
    /// Of whose pools it is: [`ADDRESS_SPACE`] of ours.
    #[serde(default)]
    pub address_space: String,
    /// The subnet; `0.0.0.0/0` of IPAM driver `null`.
    #[serde(default)]
    pub pool: String,
    /// The gateway's address with prefix length.
    #[serde(default)]
    pub gateway: String,
    /// Addresses that no container gets.
    #[serde(default, deserialize_with = "or_default")]
    pub aux_addresses: BTreeMap<String, String>,
}

/// `NetworkDriver.DeleteNetwork`
#[derive(Debug, Clone, Deserialize)]
pub struct NetworkOnly {
    /// 64 hexadecimal digits.
    #[serde(rename = "NetworkID")]
    pub network: String,
}

/// An endpoint of a network: what `EndpointOperInfo`, `Leave`, `DeleteEndpoint` and `RevokeExternalConnectivity` are about.
#[derive(Debug, Clone, Deserialize)]
pub struct EndpointOnly {
    /// 64 hexadecimal digits.
    #[serde(rename = "NetworkID")]
    pub network: String,
    /// 64 hexadecimal digits.
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
}

/// `NetworkDriver.CreateEndpoint`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateEndpoint {
    /// Which one.
    #[serde(flatten)]
    pub which: EndpointOnly,
    /// What Docker has decided about it.
    #[serde(default, deserialize_with = "or_default")]
    pub interface: Interface,
    /// Ports and more.
    #[serde(default, deserialize_with = "or_default")]
    pub options: Options,
}

/// An interface; empty fields are not decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Interface {
    /// IPv4 address with prefix length.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// IPv6 address with prefix length.
    #[serde(default, rename = "AddressIPv6", skip_serializing_if = "String::is_empty")]
    pub address6: String,
    /// MAC.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
}

/// `NetworkDriver.Join`, and `NetworkDriver.ProgramExternalConnectivity`, which has no `SandboxKey`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Join {
    /// Which one.
    #[serde(flatten)]
    pub which: EndpointOnly,
    /// Where the container's namespace is or will be.
    #[serde(default)]
    pub sandbox_key: String,
    /// Ports and more.
    #[serde(default, deserialize_with = "or_default")]
    pub options: Options,
}

/// The answer to `Join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    /// Which interface Docker is to move.
    pub interface_name: InterfaceName,
    /// Where the default route leads; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// The same of IPv6.
    #[serde(rename = "GatewayIPv6", skip_serializing_if = "String::is_empty")]
    pub gateway6: String,
    /// More routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub static_routes: Vec<StaticRoute>,
    /// No way out by `docker_gwbridge` instead.
    pub disable_gateway_service: bool,
}

/// An interface of the host, and what it is called inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    /// Its name on the host.
    pub src_name: String,
    /// What its name inside begins with; Docker adds a number.
    pub dst_prefix: String,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StaticRoute {
    /// Where to.
    pub destination: String,
    /// [`NEXT_HOP`] or [`CONNECTED`].
    pub route_type: u8,
    /// By which neighbour.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next_hop: String,
}

/// A route by a neighbour; Docker adds those once the interface is up.
pub const NEXT_HOP: u8 = 0;
/// A route to what is on the link; Docker adds those with the interface.
pub const CONNECTED: u8 = 1;

/// A published port (libnetwork, `types.PortBinding`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortBinding {
    /// IP protocol number.
    #[serde(default)]
    pub proto: u8,
    /// In the container.
    #[serde(default)]
    pub port: u16,
    /// Of the host; empty for all.
    #[serde(default, rename = "HostIP")]
    pub host_ip: String,
    /// The first of the host ports; 0 for any.
    #[serde(default)]
    pub host_port: u16,
    /// The last of the host ports that may be taken.
    #[serde(default)]
    pub host_port_end: u16,
}

/// A port that a container declares (libnetwork, `types.TransportPort`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TransportPort {
    /// IP protocol number.
    pub proto: u8,
    /// In the container.
    pub port: u16,
}

/// `IpamDriver.RequestPool`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestPool {
    /// [`ADDRESS_SPACE`].
    #[serde(default)]
    pub address_space: String,
    /// The subnet; empty for any, `0.0.0.0/N` for any of that prefix length.
    #[serde(default)]
    pub pool: String,
    /// The part of it that free addresses come from; empty for all.
    #[serde(default)]
    pub sub_pool: String,
    /// What `docker network create --ipam-opt` was given.
    #[serde(default, deserialize_with = "or_default")]
    pub options: BTreeMap<String, String>,
    /// Whether the subnet is to be one of IPv6.
    #[serde(default)]
    pub v6: bool,
}

/// `IpamDriver.ReleasePool`
#[derive(Debug, Clone, Deserialize)]
pub struct PoolOnly {
    /// 64 hexadecimal digits.
    #[serde(rename = "PoolID")]
    pub pool: String,
}

/// `IpamDriver.RequestAddress`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestAddress {
    /// 64 hexadecimal digits.
    #[serde(rename = "PoolID")]
    pub pool: String,
    /// Which one; empty for a free one.
    #[serde(default)]
    pub address: String,
    /// [`REQUEST_TYPE`], [`MAC_ADDRESS`] and others.
    #[serde(default, deserialize_with = "or_default")]
    pub options: BTreeMap<String, String>,
}

/// `IpamDriver.ReleaseAddress`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ReleaseAddress {
    /// 64 hexadecimal digits.
    #[serde(rename = "PoolID")]
    pub pool: String,
    /// Which one.
    pub address: String,
}

/// What our pools are called together: those of one host.
pub const ADDRESS_SPACE: &str = "portolan";
/// What an address is for.
pub const REQUEST_TYPE: &str = "RequestAddressType";
/// It is for a gateway.
pub const GATEWAY: &str = "com.docker.network.gateway";
/// The MAC that will have an address.
pub const MAC_ADDRESS: &str = "com.docker.network.endpoint.macaddress";

/// Options of a network, in its [`CreateNetwork::options`].
pub const GENERIC: &str = "com.docker.network.generic";
/// Whether the network speaks IPv4.
pub const ENABLE_IPV4: &str = "com.docker.network.enable_ipv4";
/// Whether the network speaks IPv6.
pub const ENABLE_IPV6: &str = "com.docker.network.enable_ipv6";
/// Whether the network is internal.
pub const INTERNAL: &str = "com.docker.network.internal";
/// Published ports.
pub const PORT_MAP: &str = "com.docker.network.portmap";
/// Declared ports.
pub const EXPOSED: &str = "com.docker.network.endpoint.exposedports";
