//! A secret that all hosts of a cluster have, out of which come those of each two.

use std::fmt;
use std::str::FromStr;

use blake2::Blake2sMac256;
use blake2::digest::Mac as _;

use crate::{KeyError, PresharedKey, PublicKey};

/// What a code is for: codes of different kinds have nothing in common.
const PAIR: &[u8] = b"portolan wireguard pair v1";
const FINGERPRINT: &[u8] = b"portolan wireguard secret v1";

/// 32 random bytes that all hosts of a cluster have. Not shown by `Debug`.
///
/// What comes out of it is a code of BLAKE2s with the secret as its key (RFC 7693 §2.9), which is a pseudorandom function: neither the
/// secret nor any other code can be told from it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(PresharedKey);

impl Secret {
    /// What two hosts mix into their handshakes: the same for both, and another one for each two keys.
    pub fn of_pair(&self, one: &PublicKey, other: &PublicKey) -> PresharedKey {
        let (first, second) = if one <= other { (one, other) } else { (other, one) };
        PresharedKey::from(self.code(&[PAIR, first.as_bytes(), second.as_bytes()]))
    }

    /// What can be told of it to anybody: whether two hosts of the cluster called `cluster` have the same.
    pub fn fingerprint(&self, cluster: &str) -> String {
        let code = self.code(&[FINGERPRINT, cluster.as_bytes()]);
        code[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Parts but the last are of lengths that are known.
    fn code(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = Blake2sMac256::new_from_slice(self.0.as_bytes()).expect("a key of 32 bytes");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    }

    /// Base64, as wg(8) writes it.
    pub fn to_base64(&self) -> String {
        self.0.to_base64()
    }
}

impl FromStr for Secret {
    type Err = KeyError;

    /// Reads what `wg genpsk` writes; spaces around it are passed over.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.trim().parse().map(Self)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateKey;

    #[test]
    fn each_two_have_a_key_of_their_own() {
        let [secret, wrong]: [Secret; 2] = [PresharedKey::random(), PresharedKey::random()].map(Secret);
        let [a, b, c] = [(); 3].map(|()| PrivateKey::random().public());
        assert_eq!(secret.of_pair(&a, &b), secret.of_pair(&b, &a));
        assert_ne!(secret.of_pair(&a, &b), secret.of_pair(&a, &c));
        assert_ne!(secret.of_pair(&a, &b), wrong.of_pair(&a, &b));
        assert_eq!(secret.fingerprint("one"), secret.clone().fingerprint("one"));
        assert_ne!(secret.fingerprint("one"), secret.fingerprint("other"));
        assert_ne!(secret.fingerprint("one"), wrong.fingerprint("one"));
    }

    /// By `hashlib.blake2s(key=…)` of Python.
    #[test]
    fn codes_are_blake2s_with_a_key() {
        let secret: Secret = " AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n".parse().unwrap();
        let key = |byte: u8| PublicKey::from([byte; 32]);
        assert_eq!(
            secret.of_pair(&key(2), &key(1)).to_hex(),
            "ad10339ac55ca6e2b9543f2ccea981c58bcf26160a41871c1c217f5c3085ad30"
        );
        assert_eq!(secret.fingerprint("cluster"), "501b54fea6acb100");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!("AAAA".parse::<Secret>().is_err());
    }
}
