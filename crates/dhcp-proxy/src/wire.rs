//! The messages of `netavark_proxy` (netavark, `src/proto/proxy.proto`).

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{DhcpLease, DhcpServer, Mac};
use serde::Serialize;

/// Which lease is asked for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NetworkConfig {
    /// The interface of the host that the container's is on.
    #[prost(string, tag = "1")]
    pub host_iface: String,
    /// The interface in the container.
    #[prost(string, tag = "2")]
    pub container_iface: String,
    /// Its MAC, `02:42:ac:11:00:02`.
    #[prost(string, tag = "3")]
    pub container_mac_addr: String,
    /// Not looked at.
    #[prost(string, tag = "4")]
    pub domain_name: String,
    /// What the server is told.
    #[prost(string, tag = "5")]
    pub host_name: String,
    /// 0 for IPv4, 1 for IPv6.
    #[prost(int32, tag = "6")]
    pub version: i32,
    /// The container's network namespace.
    #[prost(string, tag = "7")]
    pub ns_path: String,
    /// The container's id; older ones, and `Teardown`, do not say it.
    #[prost(string, tag = "8")]
    pub container_id: String,
}

/// What a server granted.
#[derive(Clone, PartialEq, Eq, Serialize, prost::Message)]
pub struct Lease {
    /// Seconds until it is renewed.
    #[prost(uint32, tag = "1")]
    pub t1: u32,
    /// Seconds until any server is asked.
    #[prost(uint32, tag = "2")]
    pub t2: u32,
    /// Seconds until it ends.
    #[prost(uint32, tag = "3")]
    pub lease_time: u32,
    /// The MTU of the link; 0 where the server does not say.
    #[prost(uint32, tag = "4")]
    pub mtu: u32,
    /// The first domain.
    #[prost(string, tag = "5")]
    pub domain_name: String,
    /// The client's MAC.
    #[prost(string, tag = "6")]
    pub mac_address: String,
    /// Whether it is IPv6's.
    #[prost(bool, tag = "10")]
    pub is_v6: bool,
    /// The server.
    #[prost(string, tag = "11")]
    pub siaddr: String,
    /// The address.
    #[prost(string, tag = "12")]
    pub yiaddr: String,
    /// The server, as it names itself.
    #[prost(string, tag = "16")]
    pub srv_id: String,
    /// The netmask.
    #[prost(string, tag = "17")]
    pub subnet_mask: String,
    /// The broadcast address.
    #[prost(string, tag = "18")]
    pub broadcast_addr: String,
    /// Name servers.
    #[prost(string, repeated, tag = "19")]
    pub dns_servers: Vec<String>,
    /// Routers.
    #[prost(string, repeated, tag = "20")]
    pub gateways: Vec<String>,
    /// Time servers; none are passed on.
    #[prost(string, repeated, tag = "21")]
    pub ntp_servers: Vec<String>,
    /// The name that the server has for the client; none is passed on.
    #[prost(string, tag = "22")]
    pub host_name: String,
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// Whether it was done.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct OperationResponse {
    /// It was.
    #[prost(bool, tag = "1")]
    pub success: bool,
}

impl Lease {
    /// `lease`, granted to who has `mac`.
    pub fn new(lease: &DhcpLease, mac: Mac) -> Self {
        let server = match lease.server {
            DhcpServer::V4(server) => server.to_string(),
            DhcpServer::V6(_) => String::new(),
        };
        let broadcast = match lease.address {
            IpNet::V4(net) => net.broadcast().to_string(),
            IpNet::V6(_) => String::new(),
        };
        Self {
            t1: lease.renew_after,
            t2: lease.rebind_after,
            lease_time: lease.valid_for,
            mtu: 0,
            domain_name: lease.domains.first().cloned().unwrap_or_default(),
            mac_address: mac.to_string(),
            is_v6: lease.address.addr().is_ipv6(),
            siaddr: server.clone(),
            yiaddr: lease.address.addr().to_string(),
            srv_id: server,
            subnet_mask: lease.address.netmask().to_string(),
            broadcast_addr: broadcast,
            dns_servers: lease.dns.iter().map(IpAddr::to_string).collect(),
            gateways: lease.gateway.iter().map(IpAddr::to_string).collect(),
            ntp_servers: Vec::new(),
            host_name: String::new(),
        }
    }
}
