use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::Invalid;
use crate::invalid::serde_by_text;

/// A unicast Ethernet address (IEEE 802), in transmission order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Makes a locally administered unicast address out of six bytes of a hash.
    pub const fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Self(bytes)
    }

    /// Wraps an address as the kernel reports it.
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes in transmission order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The IPv6 link-local address that the kernel derives from this MAC
    /// (modified EUI-64, RFC 4291 appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |why: &'static str| Invalid::new("MAC address", text, why).hint("write it as 02:42:ac:11:00:02");
        let mut bytes = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(|| refuse("is not six pairs of hexadecimal digits"))?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse("is not six pairs of hexadecimal digits"))?;
        }
        if parts.next().is_some() {
            return Err(refuse("is not six pairs of hexadecimal digits"));
        }
        if bytes[0] & 1 != 0 {
            return Err(refuse("is a multicast address"));
        }
        if bytes == [0; 6] {
            return Err(refuse("is all zero"));
        }
        Ok(Self(bytes))
    }
}

serde_by_text!(Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_unicast_only() {
        let mac: Mac = "02:42:ac:11:00:02".parse().unwrap();
        assert_eq!(mac.to_string(), "02:42:ac:11:00:02");
        assert_eq!(mac.link_local().to_string(), "fe80::42:acff:fe11:2");
        for bad in [
            "",
            "02:42",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "02:42:ac:11:00:02:03",
            "2:42:ac:11:0:2",
            "+2:42:ac:11:00:02",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn made_up_addresses_are_local_and_unicast() {
        for first in 0..=255 {
            let mac = Mac::local([first, 1, 2, 3, 4, 5]);
            assert_eq!(mac.octets()[0] & 0b11, 0b10, "{mac}");
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
    }
}
