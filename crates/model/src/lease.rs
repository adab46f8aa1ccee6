use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::StaticRoute;

/// Which DHCP server granted a lease, as it is named in messages to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DhcpServer {
    /// Its server identifier (RFC 2132 §9.7).
    V4(Ipv4Addr),
    /// Its DHCP unique identifier, as it came (RFC 8415 §11).
    V6(Vec<u8>),
}

/// What a DHCP server granted to an endpoint, of one family.
///
/// Times are those of the boot's clock (`CLOCK_BOOTTIME`, clock_gettime(2)): that of the wall may be set, and no lease
/// outlives a boot here, since no sandbox does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DhcpLease {
    /// The address, with the prefix length of its link; 128 for IPv6, where routers say what is on the link.
    pub address: IpNet,
    /// The router that leads to everywhere else; in IPv6 routers say so themselves.
    pub gateway: Option<IpAddr>,
    /// Other routes that came with it (RFC 3442).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<StaticRoute>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Domains that short names are looked up in, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// Who granted it.
    pub server: DhcpServer,
    /// Seconds since boot.
    pub obtained: u64,
    /// Seconds after `obtained` when its server is asked to renew it (T1).
    pub renew_after: u32,
    /// Seconds after `obtained` when any server is asked (T2).
    pub rebind_after: u32,
    /// Seconds after `obtained` when it ends; `u32::MAX` for never (RFC 2131 §3.3, RFC 8415 §7.7).
    pub valid_for: u32,
}

impl DhcpLease {
    /// Seconds that are left of it at `now`, in seconds since boot; none once it has ended.
    pub fn left(&self, now: u64) -> Option<u32> {
        if self.valid_for == u32::MAX {
            return Some(u32::MAX);
        }
        let end = self.obtained + u64::from(self.valid_for);
        end.checked_sub(now).filter(|left| *left > 0).map(|left| u32::try_from(left).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> DhcpLease {
        DhcpLease {
            address: "10.0.1.50/24".parse().unwrap(),
            gateway: Some("10.0.1.2".parse().unwrap()),
            routes: Vec::new(),
            dns: vec!["10.0.1.2".parse().unwrap()],
            domains: vec!["lan.example".to_owned()],
            server: DhcpServer::V4("10.0.1.2".parse().unwrap()),
            obtained: 1000,
            renew_after: 60,
            rebind_after: 105,
            valid_for: 120,
        }
    }

    #[test]
    fn it_ends_when_its_time_is_over() {
        assert_eq!(lease().left(1000), Some(120));
        assert_eq!(lease().left(1119), Some(1));
        assert_eq!(lease().left(1120), None);
        assert_eq!(lease().left(u64::MAX), None);
        assert_eq!(DhcpLease { valid_for: u32::MAX, ..lease() }.left(u64::MAX), Some(u32::MAX));
    }
}
