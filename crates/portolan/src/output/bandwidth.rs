//! Limits of bandwidth.

use std::fmt;

use portolan_model::{Bandwidth, Burst, Endpoint, Limit, Network};
use serde::Serialize;

/// Limits of bandwidth, in bits per second and bits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct BandwidthDetails {
    #[serde(rename = "In", skip_serializing_if = "Option::is_none")]
    into: Option<LimitDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<LimitDetails>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct LimitDetails {
    rate: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
}

impl From<Bandwidth> for BandwidthDetails {
    fn from(bandwidth: Bandwidth) -> Self {
        let details = |limit: Limit| LimitDetails { rate: limit.rate.bits(), burst: limit.burst.map(Burst::bits) };
        Self { into: bandwidth.into.map(details), out: bandwidth.out.map(details) }
    }
}

/// What may pass between a container and one of its networks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct BandwidthRow {
    network: String,
    interface_name: String,
    bandwidth: BandwidthDetails,
    #[serde(skip)]
    text: String,
}

impl From<&(Endpoint, Network)> for BandwidthRow {
    fn from((endpoint, network): &(Endpoint, Network)) -> Self {
        Self {
            network: network.name.to_string(),
            interface_name: endpoint.ifname.to_string(),
            bandwidth: endpoint.bandwidth.into(),
            text: format!("{}: {}", network.name, endpoint.bandwidth),
        }
    }
}

impl fmt::Display for BandwidthRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
