//! What several plugins read of their configurations in the same way.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use portolan_cni::{Call, Code, Config, Dns, Error, Interface, Success};
use portolan_kernel::rtnl::Mac;
use serde::{Deserialize, Deserializer};

/// `null` is nothing, as in Go.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

pub(crate) fn invalid(msg: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, msg)
}

/// The MAC that is asked for: by the runtime, `args.cni`, `CNI_ARGS` or, last, the configuration.
pub(crate) fn mac(call: &Call, config: &Config, own: &str) -> Result<Option<Mac>, Error> {
    let of_args = config.cni_arg("mac").and_then(|value| value.as_str());
    let wanted = [config.runtime.mac.as_str(), of_args.unwrap_or_default(), call.arg("MAC").unwrap_or_default(), own];
    wanted.into_iter().find(|text| !text.is_empty()).map(parse_mac).transpose()
}

/// Reads a MAC as Go does: `02:00:5e:10:00:01`, with hyphens, or `0200.5e10.0001`.
pub(crate) fn parse_mac(text: &str) -> Result<Mac, Error> {
    let wrong = || invalid(format!("failed to parse MAC address {text:?}"));
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-' | '.')).collect();
    let separated = match text.len() {
        17 => (0..6).all(|n| n == 5 || matches!(text.as_bytes()[3 * n + 2], b':' | b'-')),
        14 => [4, 9].iter().all(|at| text.as_bytes()[*at] == b'.'),
        _ => false,
    };
    if !separated || digits.len() != 12 || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut mac = [0; 6];
    for (n, byte) in mac.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).map_err(|_| wrong())?;
    }
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(wrong().details("it is no address that an interface can have"));
    }
    Ok(mac)
}

pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A MAC by chance, locally administered. One that is set is not changed by others (udev's `MACAddressPolicy`), nor does a
/// bridge give it up for one of its ports'.
pub(crate) fn random_mac() -> Result<Mac, Error> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut mac))
        .map_err(|error| Error::new(Code::Io, format!("read /dev/urandom: {error}")))?;
    mac[0] = mac[0] & 0xfc | 2;
    Ok(mac)
}

/// What a configuration says of names; else what the IPAM plugin says.
pub(crate) fn dns(config: &Config, success: &Success) -> Dns {
    config.dns.clone().filter(|dns| !dns.is_empty()).unwrap_or_else(|| success.dns.clone())
}

/// An interface of a result.
pub(crate) fn interface(name: &str, mac: Option<Mac>, mtu: u32, sandbox: &Path) -> Interface {
    Interface {
        name: name.to_owned(),
        mac: mac.map(mac_text).unwrap_or_default(),
        mtu: Some(mtu),
        sandbox: sandbox.to_string_lossy().into_owned(),
        ..Interface::default()
    }
}

/// The attachments that are listed as valid (GC): container and interface.
pub(crate) fn valid(config: &Config) -> Result<Vec<(&str, &str)>, Error> {
    let valid = config.valid_attachments().ok_or_else(|| {
        invalid("cni.dev/valid-attachments is missing")
            .details("without it nobody knows which containers are there; an empty list means none")
    })?;
    Ok(valid.iter().map(|at| (at.container.as_str(), at.ifname.as_str())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_as_go_reads_them() {
        let mac = [2, 0, 0x5e, 0x10, 0, 1];
        for text in ["02:00:5e:10:00:01", "02-00-5E-10-00-01", "0200.5e10.0001"] {
            assert_eq!(parse_mac(text).unwrap(), mac, "{text}");
        }
        assert_eq!(mac_text(mac), "02:00:5e:10:00:01");
        for text in
            ["", "x", "02:00:5e:10:00", "02:00:5e:10:00:0g", "02005e100001", "01:00:5e:10:00:01", "é2:00:5e:10:00:1"]
        {
            assert!(parse_mac(text).is_err(), "{text}");
        }
        assert_eq!(random_mac().unwrap()[0] & 3, 2);
    }
}
