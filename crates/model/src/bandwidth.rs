use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// What a rate is measured in, with its bits per second (tc(8), "Rates"). A plain number is in bits per second.
const RATE_UNITS: [(&str, u64); 22] = [
    ("", 1),
    ("bit", 1),
    ("kbit", 1_000),
    ("mbit", 1_000_000),
    ("gbit", 1_000_000_000),
    ("tbit", 1_000_000_000_000),
    ("kibit", 1 << 10),
    ("mibit", 1 << 20),
    ("gibit", 1 << 30),
    ("tibit", 1 << 40),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("bps", 8),
    ("kbps", 8_000),
    ("mbps", 8_000_000),
    ("gbps", 8_000_000_000),
    ("tbps", 8_000_000_000_000),
    ("kibps", 8 << 10),
    ("mibps", 8 << 20),
    ("gibps", 8 << 30),
    ("tibps", 8 << 40),
];

/// What a size is measured in, with its bits (tc(8), "Sizes"). A plain number is in bytes.
const SIZE_UNITS: [(&str, u64); 12] = [
    ("", 8),
    ("b", 8),
    ("k", 8 << 10),
    ("kb", 8 << 10),
    ("m", 8 << 20),
    ("mb", 8 << 20),
    ("g", 8 << 30),
    ("gb", 8 << 30),
    ("bit", 1),
    ("kbit", 1 << 10),
    ("mbit", 1 << 20),
    ("gbit", 1 << 30),
];

/// How fast something goes, in bits per second: at least one byte, at most 10 Tbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Rate(NonZeroU64);

impl Rate {
    /// A byte per second.
    pub const LEAST: Self = Self(NonZeroU64::new(8).expect("eight"));
    const MOST: u64 = 10_000_000_000_000;

    /// The rate of `bits` per second.
    ///
    /// # Errors
    /// [`Invalid`] below 8 bits and above 10 Tbit per second.
    pub fn new(bits: u64) -> Result<Self, Invalid> {
        match NonZeroU64::new(bits) {
            Some(fits) if (8..=Self::MOST).contains(&bits) => Ok(Self(fits)),
            _ => Err(Invalid::new("rate", bits.to_string(), "is not between 8bit and 10tbit per second")),
        }
    }

    /// In bits per second.
    pub const fn bits(self) -> u64 {
        self.0.get()
    }

    /// In whole bytes per second.
    pub const fn bytes(self) -> u64 {
        self.0.get() / 8
    }
}

impl TryFrom<u64> for Rate {
    type Error = Invalid;

    fn try_from(bits: u64) -> Result<Self, Invalid> {
        Self::new(bits)
    }
}

impl From<Rate> for u64 {
    fn from(value: Rate) -> Self {
        value.bits()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_000_000_000_000, "tbit"), (1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit")];
        let (size, unit) = units.into_iter().find(|(size, _)| self.bits().is_multiple_of(*size)).unwrap_or((1, "bit"));
        f.pad(&format!("{}{unit}", self.bits() / size))
    }
}

impl FromStr for Rate {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const HINT: &str = "write a number with its unit, such as 800kbit, 100mbit or 1.5gbit per second";
        let refuse = |why: &'static str| Invalid::new("rate", text, why).hint(HINT);
        let bits = measured(text, &RATE_UNITS).ok_or_else(|| refuse("is no number with a unit of tc(8)"))?;
        Self::new(bits).map_err(|_| refuse("is not between 8bit and 10tbit per second"))
    }
}

/// How much may pass at once, in bits: at least one byte, at most 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Burst(NonZeroU64);

impl Burst {
    const MOST: u64 = 8 * (1 << 32);

    /// The burst of `bits`.
    ///
    /// # Errors
    /// [`Invalid`] below a byte and from 4 GiB on, where the kernel's numbers end.
    pub fn new(bits: u64) -> Result<Self, Invalid> {
        match NonZeroU64::new(bits) {
            Some(fits) if (8..Self::MOST).contains(&bits) => Ok(Self(fits)),
            _ => Err(Invalid::new("burst", bits.to_string(), "is not between a byte and 4 GiB")),
        }
    }

    /// In bits.
    pub const fn bits(self) -> u64 {
        self.0.get()
    }

    /// In whole bytes.
    pub const fn bytes(self) -> u64 {
        self.0.get() / 8
    }
}

impl TryFrom<u64> for Burst {
    type Error = Invalid;

    fn try_from(bits: u64) -> Result<Self, Invalid> {
        Self::new(bits)
    }
}

impl From<Burst> for u64 {
    fn from(value: Burst) -> Self {
        value.bits()
    }
}

impl fmt::Display for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(8 << 30, "gb"), (8 << 20, "mb"), (8 << 10, "kb"), (8, "b")];
        let (size, unit) = units.into_iter().find(|(size, _)| self.bits().is_multiple_of(*size)).unwrap_or((1, "bit"));
        f.pad(&format!("{}{unit}", self.bits() / size))
    }
}

impl FromStr for Burst {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const HINT: &str = "write a number with its unit, such as 64kb, 1mb or 800kbit";
        let refuse = |why: &'static str| Invalid::new("burst", text, why).hint(HINT);
        let bits = measured(text, &SIZE_UNITS).ok_or_else(|| refuse("is no number with a unit of tc(8)"))?;
        Self::new(bits).map_err(|_| refuse("is not between a byte and 4 GiB"))
    }
}

/// A number with a unit, whatever its case: the number times the unit's, rounded to the nearest.
fn measured(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, size) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // What is behind the ninth digit is less than a bit of any unit people write.
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') || (number.ends_with('.')) {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let all = digits.checked_mul(u128::from(*size))?;
    u64::try_from((all + scale / 2) / scale).ok()
}

/// How much may pass in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Limit {
    /// In the long run.
    pub rate: Rate,
    /// At once, after a pause; none for what suits the rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Burst>,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rate)?;
        self.burst.map_or(Ok(()), |burst| write!(f, " burst {burst}"))
    }
}

/// How much may pass between an endpoint and its network, seen from the container; none for as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Into the container.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    pub into: Option<Limit>,
    /// Out of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<Limit>,
}

impl Bandwidth {
    /// Whether nothing is limited.
    pub const fn is_unlimited(&self) -> bool {
        self.into.is_none() && self.out.is_none()
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.into, self.out) {
            (None, None) => f.write_str("unlimited"),
            (Some(into), None) => write!(f, "{into} in"),
            (None, Some(out)) => write!(f, "{out} out"),
            (Some(into), Some(out)) => write!(f, "{into} in, {out} out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_as_tc_reads_them() {
        for (text, bits) in [
            ("100mbit", 100_000_000),
            ("1gbit", 1_000_000_000),
            ("800kbit", 800_000),
            ("100Mbit", 100_000_000),
            ("1.5gbit", 1_500_000_000),
            ("0.1mbit", 100_000),
            ("64000", 64_000),
            ("64bit", 64),
            ("1kibit", 1024),
            ("10mbps", 80_000_000),
            ("1mibps", 8 << 20),
            ("10tbit", 10_000_000_000_000),
            ("5m", 5_000_000),
        ] {
            assert_eq!(text.parse::<Rate>().unwrap().bits(), bits, "{text}");
        }
    }

    #[test]
    fn what_is_no_rate() {
        for text in [
            "",
            "0",
            "0mbit",
            "7bit",
            "mbit",
            "-1mbit",
            "1..5mbit",
            "1.mbit",
            ".5mbit",
            "1 mbit",
            "1mb/s",
            "11tbit",
            "1e9",
            "+5mbit",
            "99999999999999999999999gbit",
            "0x10",
            "1.0000000001gbit",
            "١mbit",
        ] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("rate `{text}`")), "{error}");
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn bursts_as_tc_reads_them() {
        for (text, bytes) in [
            ("1500", 1500),
            ("64kb", 65536),
            ("64K", 65536),
            ("1mb", 1 << 20),
            ("1kbit", 128),
            ("4194303kb", 4_294_966_272),
        ] {
            assert_eq!(text.parse::<Burst>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "0", "4gb", "7bit", "kb", "1mbps"] {
            assert!(text.parse::<Burst>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_printed_is_read() {
        for text in ["100mbit", "1gbit", "1500kbit", "8bit", "1234567bit", "10tbit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["64kb", "1500b", "1mb", "9bit"] {
            assert_eq!(text.parse::<Burst>().unwrap().to_string(), text);
        }
        let bandwidth = Bandwidth {
            into: Some(Limit { rate: "100mbit".parse().unwrap(), burst: Some("64kb".parse().unwrap()) }),
            out: Some(Limit { rate: "1gbit".parse().unwrap(), burst: None }),
        };
        assert_eq!(bandwidth.to_string(), "100mbit burst 64kb in, 1gbit out");
    }
}
