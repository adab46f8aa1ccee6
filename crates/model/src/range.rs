use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::invalid::serde_by_text;
use crate::{Family, Invalid};

/// Consecutive addresses of one family, first and last included; written as a prefix where it is one, else `FIRST-LAST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// The range from `first` to `last`.
    ///
    /// # Errors
    /// [`Invalid`] when they are of two families, or `last` is before `first`.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Self, Invalid> {
        let text = || format!("{first}-{last}");
        if Family::of(first) != Family::of(last) {
            return Err(Invalid::new("IP range", text(), "is of two families"));
        }
        if last < first {
            return Err(Invalid::new("IP range", text(), "ends before it starts").hint(format!("write {last}-{first}")));
        }
        Ok(Self { first, last })
    }

    /// The first address.
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == Family::of(self.first) && self.first <= address && address <= self.last
    }

    /// Whether they have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// Whether all of it is in `net`.
    pub fn is_in(&self, net: &IpNet) -> bool {
        net.contains(&self.first) && net.contains(&self.last)
    }

    /// The prefix that it is, if it is one.
    pub fn prefix(&self) -> Option<IpNet> {
        let length = match (self.first, self.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
            _ => return None,
        };
        let net = IpNet::new(self.first, u8::try_from(length).ok()?).ok()?;
        (net.network() == self.first && net.broadcast() == self.last).then_some(net)
    }
}

impl From<IpNet> for AddressRange {
    /// All addresses of a prefix.
    fn from(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix() {
            Some(net) => f.pad(&net.to_string()),
            None => f.pad(&format!("{}-{}", self.first, self.last)),
        }
    }
}

impl FromStr for AddressRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            Invalid::new("IP range", text, "is neither a prefix nor two addresses")
                .hint("write 10.0.0.128/25 or 10.0.0.10-10.0.0.99")
        };
        if let Some((first, last)) = text.split_once('-') {
            let end = |text: &str| text.parse::<IpAddr>().map_err(|_| wrong());
            return Self::new(end(first)?, end(last)?);
        }
        let net: IpNet = text.parse().map_err(|_| wrong())?;
        if net.trunc() != net {
            return Err(Invalid::new("IP range", text, "has host bits set").hint(format!("write {}", net.trunc())));
        }
        Ok(net.into())
    }
}

serde_by_text!(AddressRange);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_pairs() {
        for (text, shown) in [
            ("10.0.0.128/25", "10.0.0.128/25"),
            ("10.0.0.0-10.0.0.255", "10.0.0.0/24"),
            ("10.0.0.10-10.0.0.99", "10.0.0.10-10.0.0.99"),
            ("10.0.0.7-10.0.0.7", "10.0.0.7/32"),
            ("fd00::10-fd00::1f", "fd00::10/124"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            let range: AddressRange = text.parse().unwrap();
            assert_eq!(range.to_string(), shown);
            assert_eq!(shown.parse::<AddressRange>().unwrap(), range);
        }
        for text in ["10.0.0.1/24", "10.0.0.9-10.0.0.1", "10.0.0.1-fd00::1", "10.0.0.1", "", "-", "a-b"] {
            text.parse::<AddressRange>().unwrap_err();
        }
    }
}
