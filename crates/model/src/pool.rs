use serde::{Deserialize, Serialize};

use crate::{Id, Subnet};

/// A subnet whose addresses somebody else asks for one by one, for a network that need not be ours (Docker's IPAM driver).
/// One row of the store; no two have addresses in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The identity, drawn at random. Addresses are leased under it as under a network's.
    pub id: Id,
    /// Who claims it: drawn anew when whoever asked for it begins anew, and says again what it still claims. A lease of
    /// it has such an id for an endpoint.
    pub holder: Id,
    /// The subnet, with the range that free addresses come from, and the gateway once it was asked for.
    pub subnet: Subnet,
    /// The network of ours that was made on it. It may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Id>,
    /// Seconds since 1970 of its creation.
    pub created: u64,
}
