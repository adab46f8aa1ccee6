//! Ranges, and sets of them: where an address is taken from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portolan_cni::Error;
use serde::Deserialize;

use crate::ipam::{cidr, optional_address, refused};

/// A range as a configuration has it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct WireRange {
    #[serde(default)]
    pub(crate) subnet: Option<String>,
    #[serde(default, rename = "rangestart")]
    first: Option<String>,
    #[serde(default, rename = "rangeend")]
    last: Option<String>,
    #[serde(default)]
    gateway: Option<String>,
}

/// The same with addresses read.
#[derive(Debug, Clone)]
pub(crate) struct Spoken {
    subnet: Option<IpNet>,
    first: Option<IpAddr>,
    last: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

impl WireRange {
    /// Reads the addresses.
    ///
    /// # Errors
    /// For what is no address.
    pub(crate) fn parse(&self) -> Result<Spoken, Error> {
        Ok(Spoken {
            subnet: self.subnet.as_deref().filter(|subnet| !subnet.is_empty()).map(cidr).transpose()?,
            first: optional_address(self.first.as_deref())?,
            last: optional_address(self.last.as_deref())?,
            gateway: optional_address(self.gateway.as_deref())?,
        })
    }
}

/// A subnet, and the part of it that addresses come from, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    subnet: IpNet,
    first: IpAddr,
    last: IpAddr,
    gateway: IpAddr,
}

/// Ranges of one family: one address of all of them is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

/// An address that can be given, with what the result says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) address: IpNet,
    pub(crate) gateway: IpAddr,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address of `like`'s family with a number.
fn of(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

fn next(address: IpAddr) -> IpAddr {
    of(number(address).wrapping_add(1), address)
}

impl Range {
    fn new(spoken: &Spoken) -> Result<Self, Error> {
        let subnet = spoken.subnet.ok_or_else(|| refused("IP <nil> not v4 nor v6"))?;
        if let IpNet::V6(v6) = subnet
            && v6.addr().to_ipv4_mapped().is_some()
        {
            return Err(refused("IPNet IP and Mask version mismatch"));
        }
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(refused(format!("Network {subnet} too small to allocate from")));
        }
        if subnet.addr() != subnet.network() {
            let (len, network) = (subnet.prefix_len(), subnet.network());
            return Err(refused(format!(
                "Network has host bits set. For a subnet mask of length {len} the network address is {network}"
            )));
        }
        // The first of the subnet is the gateway's; whoever starts there passes over it.
        let lowest = next(subnet.addr());
        // IPv4's last is broadcast.
        let highest = match subnet {
            IpNet::V4(_) => of(number(subnet.broadcast()) - 1, lowest),
            IpNet::V6(_) => subnet.broadcast(),
        };
        let gateway = spoken.gateway.unwrap_or(lowest);
        let is_v4 = lowest.is_ipv4();
        let within = |address: &IpAddr| address.is_ipv4() == is_v4 && subnet.contains(address);
        let is_ordered = match (spoken.first, spoken.last) {
            (Some(first), Some(last)) => first <= last,
            _ => true,
        };
        if let Some(first) = spoken.first
            && !(within(&first) && is_ordered)
        {
            return Err(refused(format!("RangeStart {first} not in network {subnet}")));
        }
        if let Some(last) = spoken.last
            && !(within(&last) && spoken.first.unwrap_or(lowest) <= last)
        {
            return Err(refused(format!("RangeEnd {last} not in network {subnet}")));
        }
        let (first, last) = (spoken.first.unwrap_or(lowest), spoken.last.unwrap_or(highest));
        // The original would go round the whole family to get from the one to the other.
        if first > last {
            return Err(refused(format!("range {first}-{last} of network {subnet} is empty")));
        }
        Ok(Self { subnet, first, last, gateway })
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first)
            || self.contains(other.last)
            || other.contains(self.first)
            || other.contains(self.last)
    }

    fn candidate(&self, address: IpAddr) -> Candidate {
        let address = IpNet::new(address, self.subnet.prefix_len()).expect("it is of the subnet's family");
        Candidate { address, gateway: self.gateway }
    }

    /// How many addresses it can give.
    fn size(&self) -> u128 {
        let all = (number(self.last).saturating_sub(number(self.first))).saturating_add(1);
        all - u128::from(self.contains(self.gateway))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

impl RangeSet {
    /// Reads one.
    ///
    /// # Errors
    /// As the original refuses: ranges that are none, are of both families, or overlap.
    pub(crate) fn new(spoken: &[Spoken]) -> Result<Self, Error> {
        let mut ranges: Vec<Range> = Vec::new();
        for spoken in spoken {
            let range = Range::new(spoken)?;
            if ranges.first().is_some_and(|first| first.first.is_ipv4() != range.first.is_ipv4()) {
                return Err(refused("mixed address families"));
            }
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(refused("empty range set"));
        }
        for (index, one) in ranges.iter().enumerate() {
            if let Some(other) = ranges[index + 1..].iter().find(|other| one.overlaps(other)) {
                return Err(refused(format!("subnets {one} and {other} overlap")));
            }
        }
        Ok(Self(ranges))
    }

    /// An address of it, for its family.
    pub(crate) fn first(&self) -> IpAddr {
        self.0[0].first
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|one| other.0.iter().any(|other| one.overlaps(other)))
    }

    /// The address that somebody asked for, which is in the set.
    ///
    /// # Errors
    /// As the original refuses its range's gateway.
    pub(crate) fn requested(&self, address: IpAddr) -> Result<Candidate, Error> {
        let found = self.0.iter().find(|range| range.contains(address));
        let range = found.ok_or_else(|| refused(format!("{address} not in range set {self}")))?;
        if range.gateway == address {
            return Err(refused(format!("requested ip {address} is subnet's gateway")));
        }
        Ok(range.candidate(address))
    }

    /// All that can be given, beginning behind `last` if it is of the set, each once.
    pub(crate) fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = Candidate> {
        let at = last.and_then(|last| self.0.iter().position(|range| range.contains(last)).map(|at| (at, last)));
        let (at, begin) = match at {
            Some((at, last)) if last == self.0[at].last => {
                let at = (at + 1) % self.0.len();
                (at, self.0[at].first)
            }
            Some((at, last)) => (at, next(last)),
            None => (0, self.0[0].first),
        };
        let begun = &self.0[at];
        let head = span(begun, number(begin), number(begun.last));
        let others = (1..self.0.len()).map(move |step| &self.0[(at + step) % self.0.len()]);
        let others = others.flat_map(|range| span(range, number(range.first), number(range.last)));
        let is_whole = begin == begun.first;
        let tail = (!is_whole).then(|| span(begun, number(begun.first), number(begin) - 1));
        head.chain(others).chain(tail.into_iter().flatten())
    }

    /// How many addresses it can give; [`u128::MAX`] for all of IPv6.
    pub(crate) fn size(&self) -> u128 {
        self.0.iter().fold(0, |sum, range| sum.saturating_add(range.size()))
    }

    /// Whether an address is one that can be given.
    pub(crate) fn can_give(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address) && range.gateway != address)
    }
}

fn span(range: &Range, from: u128, to: u128) -> impl Iterator<Item = Candidate> {
    let addresses = (from..=to).map(|number| of(number, range.first));
    addresses.filter(|address| *address != range.gateway).map(|address| range.candidate(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, first: &str, last: &str, gateway: &str) -> Spoken {
        let some = |text: &str| Some(text.to_owned());
        let wire = WireRange { subnet: some(subnet), first: some(first), last: some(last), gateway: some(gateway) };
        wire.parse().unwrap()
    }

    fn set(ranges: &[Spoken]) -> RangeSet {
        RangeSet::new(ranges).unwrap()
    }

    fn order(set: &RangeSet, last: &str) -> Vec<String> {
        set.candidates(last.parse().ok()).map(|candidate| candidate.address.addr().to_string()).collect()
    }

    #[test]
    fn what_is_left_out() {
        let v4 = set(&[range("10.1.0.0/29", "", "", "")]);
        assert_eq!(v4.to_string(), "10.1.0.1-10.1.0.6");
        assert_eq!(order(&v4, ""), ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        assert_eq!(v4.size(), 5);
        let v6 = set(&[range("fd00::/125", "", "", "")]);
        assert_eq!(v6.to_string(), "fd00::1-fd00::7");
        assert_eq!(set(&[range("::/0", "", "", "")]).size(), u128::MAX - 1);
        let own = set(&[range("10.1.0.0/24", "10.1.0.9", "10.1.0.11", "10.1.0.10")]);
        assert_eq!(order(&own, ""), ["10.1.0.9", "10.1.0.11"]);
        assert_eq!(own.candidates(None).next().unwrap().gateway.to_string(), "10.1.0.10");
    }

    #[test]
    fn it_goes_round() {
        let two = set(&[range("10.1.0.0/24", "10.1.0.2", "10.1.0.3", ""), range("10.2.0.0/30", "", "", "")]);
        assert_eq!(order(&two, ""), ["10.1.0.2", "10.1.0.3", "10.2.0.2"]);
        assert_eq!(order(&two, "10.1.0.2"), ["10.1.0.3", "10.2.0.2", "10.1.0.2"]);
        assert_eq!(order(&two, "10.1.0.3"), ["10.2.0.2", "10.1.0.2", "10.1.0.3"]);
        assert_eq!(order(&two, "10.2.0.2"), ["10.1.0.2", "10.1.0.3", "10.2.0.2"]);
        assert_eq!(order(&two, "10.9.0.1"), order(&two, ""), "of another set");
    }

    #[test]
    fn what_is_refused() {
        let refusal = |ranges: &[Spoken]| RangeSet::new(ranges).unwrap_err().msg;
        assert_eq!(refusal(&[]), "empty range set");
        assert_eq!(refusal(&[range("10.1.0.0/31", "", "", "")]), "Network 10.1.0.0/31 too small to allocate from");
        assert_eq!(
            refusal(&[range("10.1.0.0/24", "10.2.0.1", "", "")]),
            "RangeStart 10.2.0.1 not in network 10.1.0.0/24"
        );
        assert_eq!(
            refusal(&[range("10.1.0.0/29", "10.1.0.7", "", "")]),
            "range 10.1.0.7-10.1.0.6 of network 10.1.0.0/29 is empty",
        );
        assert_eq!(
            refusal(&[range("10.1.0.0/24", "10.1.0.9", "10.1.0.8", "")]),
            "RangeStart 10.1.0.9 not in network 10.1.0.0/24",
        );
        assert_eq!(
            refusal(&[range("10.1.0.0/24", "", "", ""), range("10.1.0.0/25", "", "", "")]),
            "subnets 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.0.126 overlap",
        );
        assert_eq!(
            refusal(&[range("10.1.0.0/24", "", "", ""), range("fd00::/64", "", "", "")]),
            "mixed address families",
        );
    }
}
