//! Where addresses come from, in host-local's and static's words.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_engine::RangeRequest;
use portolan_model::{AddressRange, Family};

use crate::config::{Config, Ipam, Range};
use crate::error::Error;
use crate::plan::invalid;

/// Subnets and gateways of addresses that others give, or the sets of ranges that they come from.
#[derive(Debug, Default)]
pub(crate) struct Space {
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) sets: Vec<Vec<RangeRequest>>,
}

impl Space {
    pub(crate) fn nets(&self) -> impl Iterator<Item = IpNet> {
        self.subnets.iter().copied().chain(self.sets.iter().flatten().map(|range| range.net))
    }

    /// Those that a route without one may go by: of the first subnet or set of the family.
    pub(crate) fn gateways_of(&self, family: Family) -> Vec<IpAddr> {
        let of_family = |ip: &IpAddr| Family::of(*ip) == family;
        if let Some(gateway) = self.gateways.iter().copied().find(of_family) {
            return vec![gateway];
        }
        let mut sets = self.sets.iter().map(|set| set.iter().filter_map(|range| range.gateway).filter(of_family));
        let mut gateways: Vec<IpAddr> =
            sets.find_map(|set| Some(set.collect()).filter(|set: &Vec<_>| !set.is_empty())).unwrap_or_default();
        gateways.dedup();
        gateways
    }

    /// Addresses that somebody else chose, with their gateways.
    pub(crate) fn take_addresses(
        &mut self,
        addresses: impl Iterator<Item = (IpNet, Option<IpAddr>)>,
    ) -> Result<(), Error> {
        for (address, gateway) in addresses {
            let subnet = address.trunc();
            if !self.subnets.contains(&subnet) {
                self.subnets.push(subnet);
            }
            if let Some(gateway) = gateway.filter(|gateway| !self.gateways.contains(gateway)) {
                if !subnet.contains(&gateway) {
                    return Err(invalid(format!("gateway {gateway} is not in the subnet of address {address}")));
                }
                self.gateways.push(gateway);
            }
        }
        Ok(())
    }

    /// The ranges of host-local's words.
    pub(crate) fn take_ranges(&mut self, config: &Config, ipam: &Ipam) -> Result<(), Error> {
        let mut sets: Vec<Vec<Range>> =
            if config.runtime.ranges.is_empty() { ipam.ranges.clone() } else { config.runtime.ranges.clone() };
        if ipam.range.subnet.is_some() {
            sets.insert(0, vec![ipam.range.clone()]);
        }
        if sets.is_empty() {
            return Err(invalid("no IP ranges specified").details("give ipam a `subnet`, or `ranges`"));
        }
        self.sets = sets.iter().map(|set| set.iter().map(asked_range).collect()).collect::<Result<_, Error>>()?;
        if self.sets.iter().any(Vec::is_empty) {
            return Err(invalid("empty range set"));
        }
        Ok(())
    }
}

/// What a range of host-local's words asks for.
fn asked_range(range: &Range) -> Result<RangeRequest, Error> {
    let subnet = range.subnet.ok_or_else(|| invalid("a range has no subnet"))?;
    if subnet.trunc() != subnet {
        return Err(invalid(format!("network has host bits set: {subnet}, should be {}", subnet.trunc())));
    }
    // A subnet of a few addresses has none of them to spare for itself.
    let spare = subnet.max_prefix_len() - subnet.prefix_len() > 1;
    let first = if spare { after(subnet.network()) } else { subnet.network() };
    let mut asked = RangeRequest { net: subnet, range: None, gateway: Some(range.gateway.unwrap_or(first)) };
    if range.first.is_some() || range.last.is_some() {
        let range = AddressRange::new(range.first.unwrap_or(first), range.last.unwrap_or(subnet.broadcast()))?;
        if !range.is_in(&subnet) {
            return Err(invalid(format!("range {range} is not in network {subnet}")));
        }
        asked.range = Some(range);
    }
    Ok(asked)
}

fn after(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip).saturating_add(1)).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip).saturating_add(1)).into()),
    }
}
