use std::fmt;
use std::str::FromStr;

use crate::Invalid;
use crate::invalid::serde_by_text;

/// A 256-bit identifier, written as 64 lower-case hexadecimal digits (Docker's form).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 32]);

impl Id {
    /// Wraps 32 bytes, which the caller drew at random.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hexadecimal digits, as tables and device names show it.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 64];
        for (i, byte) in self.0.iter().enumerate() {
            text[2 * i] = DIGITS[usize::from(byte >> 4)];
            text[2 * i + 1] = DIGITS[usize::from(byte & 15)];
        }
        f.pad(std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What each character is as a digit; [`NONE`] if it is none.
const VALUES: [u8; 256] = {
    let mut values = [NONE; 256];
    let mut value = 0;
    while value < 16 {
        let digit = b"0123456789abcdef"[value];
        values[digit as usize] = value as u8;
        values[digit.to_ascii_uppercase() as usize] = value as u8;
        value += 1;
    }
    values
};
const NONE: u8 = 0x80;

/// Without a branch for each digit: a host that joins a large cluster reads ten thousand ids.
fn read(digits: &[u8; 64]) -> Option<[u8; 32]> {
    let (pairs, _) = digits.as_chunks::<2>();
    let (mut bytes, mut all) = ([0u8; 32], 0);
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = (VALUES[usize::from(*high)], VALUES[usize::from(*low)]);
        all |= high | low;
        *byte = high << 4 | low;
    }
    (all & NONE == 0).then_some(bytes)
}

impl FromStr for Id {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let read = <&[u8; 64]>::try_from(text.as_bytes()).ok().and_then(read);
        read.map(Self).ok_or_else(|| Invalid::new("id", text, "is not 64 hexadecimal digits"))
    }
}

serde_by_text!(Id);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let id = Id::from_bytes(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(id.to_string().parse::<Id>(), Ok(id));
        assert_eq!(id.short().len(), 12);
        assert_eq!(id.to_string().to_uppercase().parse::<Id>(), Ok(id));
        assert!("xyz".parse::<Id>().is_err());
        assert!("a".repeat(63).parse::<Id>().is_err() && "a".repeat(66).parse::<Id>().is_err());
        assert!("+a".repeat(32).parse::<Id>().is_err());
        assert!("é".repeat(32).parse::<Id>().is_err());
    }
}
