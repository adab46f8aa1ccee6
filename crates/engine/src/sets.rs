//! Sets of ranges: which subnets a network has whose callers say where addresses come from, alternatives included.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{AddressRange, Family, Invalid, Network, Pool, Subnet};

use crate::api::{NetworkRequest, RangeRequest};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ipam::{self, as_pool, network_in_the_way};
use crate::kernel::Kernel;
use crate::networks::check::check_subnet;
use crate::store::{Store, Tx};

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Decides the subnets of the sets that are asked for. Those of one of our bridges (`is_ours`) are not another's.
    ///
    /// Ranges may be of one subnet; no address is in two of them.
    pub(crate) fn plan_sets(&self, tx: &S::Tx<'_>, request: &NetworkRequest, is_ours: bool) -> Result<Vec<Subnet>> {
        let mut subnets: Vec<Subnet> = Vec::new();
        for set in &request.sets {
            let Some(first) = set.first() else {
                return Err(Invalid::new("IP range set", "", "has no range").into());
            };
            for (position, RangeRequest { net, range, gateway }) in set.iter().copied().enumerate() {
                check_subnet(net)?;
                if Family::of(net.addr()) != Family::of(first.net.addr()) {
                    let why = format!("is of another family than {}, which it is an alternative of", first.net);
                    return Err(Invalid::new("subnet", net.to_string(), why).into());
                }
                if let Some(range) = range.filter(|range| !range.is_in(&net)) {
                    return Err(Invalid::new("IP range", range.to_string(), format!("is not in subnet {net}")).into());
                }
                if let Some(gateway) = gateway {
                    if !net.contains(&gateway) {
                        let why = format!("is not in its subnet {net}");
                        return Err(Invalid::new("gateway", gateway.to_string(), why).into());
                    }
                    check_gateway(net, gateway)?;
                }
                if is_ours {
                    check_claims(tx, net, None)?;
                }
                let subnet = Subnet { range, gateway, fallback: position > 0, ..Subnet::new(net, true) };
                subnets.iter().try_for_each(|other| check_apart(&subnet, other))?;
                subnets.push(subnet);
            }
        }
        Ok(subnets)
    }
}

/// Refuses a gateway that is the subnet's own address.
pub(crate) fn check_gateway(net: IpNet, gateway: IpAddr) -> Result<()> {
    let (first, last) = ipam::usable(net);
    if gateway < first || gateway > last {
        let why = "is the network or broadcast address of its subnet";
        return Err(Invalid::new("gateway", gateway.to_string(), why).into());
    }
    Ok(())
}

/// Refuses a subnet that another network's bridge has, or a pool but `own`.
pub(crate) fn check_claims<T: Tx>(tx: &T, net: IpNet, own: Option<&Pool>) -> Result<()> {
    if let Some(id) = tx.claimant(net)?
        && let Some(network) = tx.network(id)?
    {
        return Err(Error::Overlap { subnet: net, other: network_in_the_way(&network, net) });
    }
    if let Some(pool) = tx.pool_overlapping(net)?.filter(|pool| own.is_none_or(|own| own.id != pool.id)) {
        return Err(Error::Overlap { subnet: net, other: as_pool(pool.subnet.net) });
    }
    Ok(())
}

/// Refuses two subnets that have addresses in common, unless both are ranges of the same one.
fn check_apart(subnet: &Subnet, other: &Subnet) -> Result<()> {
    if subnet.net != other.net {
        return match subnet.net.contains(&other.net) || other.net.contains(&subnet.net) {
            true => Err(Error::Overlap { subnet: subnet.net, other: other.net.to_string() }),
            false => Ok(()),
        };
    }
    let leases = |subnet: &Subnet| {
        let (first, last) = ipam::lease_range(subnet);
        AddressRange::new(first, last)
    };
    let (range, taken) = (leases(subnet)?, leases(other)?);
    if range.overlaps(&taken) {
        let why = format!("overlaps {taken}, which is another one of the network");
        return Err(Invalid::new("IP range", range.to_string(), why).into());
    }
    Ok(())
}

/// Whether a network has exactly these sets.
pub(crate) fn are_as_asked(network: &Network, sets: &[Vec<RangeRequest>]) -> bool {
    let asked = sets.iter().flat_map(|set| set.iter().enumerate().map(|(position, range)| (*range, position > 0)));
    network
        .subnets
        .iter()
        .map(|subnet| {
            let Subnet { net, range, gateway, fallback, .. } = *subnet;
            (RangeRequest { net, range, gateway }, fallback)
        })
        .eq(asked)
}
