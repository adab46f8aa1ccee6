use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::invalid::serde_by_text;
use crate::{IfName, Invalid};

/// The name of a sysctl that belongs to a network namespace: a path below `/proc/sys`, under `net`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysctlKey(String);

impl SysctlKey {
    /// Reads `net.core.somaxconn` or `net/core/somaxconn`: as in sysctl(8), the first separator says which one it is, so
    /// that names of interfaces may have dots. `IFNAME` in it stands for `ifname`.
    ///
    /// # Errors
    /// [`Invalid`] for what is not under `net`, and for parts that are none.
    pub fn parse(text: &str, ifname: Option<&str>) -> Result<Self, Invalid> {
        let refuse = |why: &'static str| Invalid::new("sysctl", text, why);
        let separator = text.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
        let mut parts: Vec<String> = text.split(separator).map(str::to_owned).collect();
        if let Some(ifname) = ifname {
            parts.iter_mut().for_each(|part| *part = part.replacen("IFNAME", ifname, 1));
        }
        if parts.len() < 2 || parts[0] != "net" {
            return Err(refuse("does not belong to the network namespace")
                .hint("only sysctls that start with `net.` can be set"));
        }
        if text.contains(char::is_control) {
            return Err(refuse("has a control character in its name"));
        }
        let is_part = |part: &String| !matches!(part.as_str(), "" | "." | "..") && !part.contains(['/', '\0']);
        match parts.iter().all(is_part) {
            true => Ok(Self(parts.join("/"))),
            false => Err(refuse("has an empty part in its name")),
        }
    }

    /// Below `/proc/sys`.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Whether it is a setting of the interface `name`, and so goes with it.
    pub fn is_of(&self, name: &IfName) -> bool {
        self.0.split('/').any(|part| part == name.as_str())
    }
}

impl fmt::Display for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&if self.0.contains('.') { self.0.clone() } else { self.0.replace('/', ".") })
    }
}

impl FromStr for SysctlKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text, None)
    }
}

serde_by_text!(SysctlKey);

/// A sysctl that whoever attaches a namespace wants to have a value in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Which one.
    pub key: SysctlKey,
    /// What it is to be.
    pub value: String,
    /// What it was, given back in the end; none where nobody can say, as of an interface that comes with the attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

/// What an endpoint's interface is to be besides what its network says, and what its namespace is to be for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tuning {
    /// Sysctls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<Sysctl>,
    /// Attributes of the interface.
    #[serde(default)]
    pub attributes: LinkAttributes,
    /// It gives its namespace no default route: somebody else has.
    #[serde(default, skip_serializing_if = "crate::network::is_no")]
    pub no_default_route: bool,
}

impl Tuning {
    /// Whether nothing is asked for.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Attributes of an interface (netdevice(7)); none for as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LinkAttributes {
    /// Takes packets that are not for it (`IFF_PROMISC`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promiscuous: Option<bool>,
    /// Takes packets for every multicast group (`IFF_ALLMULTI`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_multicast: Option<bool>,
    /// How many packets may wait to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_queue_len: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_network_only() {
        let path = |text: &str| SysctlKey::parse(text, Some("eth0.5")).map(|key| key.path().to_owned());
        assert_eq!(path("net.core.somaxconn").unwrap(), "net/core/somaxconn");
        assert_eq!(path("net/ipv4/conf/eth0.5/arp_filter").unwrap(), "net/ipv4/conf/eth0.5/arp_filter");
        assert_eq!(path("net.ipv4.conf.IFNAME.arp_filter").unwrap(), "net/ipv4/conf/eth0.5/arp_filter");
        for bad in ["kernel.hostname", "net", "", "net/../kernel/hostname", "net..x", "net.x/y", "net/./x", "net.x."] {
            assert!(path(bad).is_err(), "{bad}");
        }
        let of_interface: SysctlKey = "net/ipv4/conf/eth0.5/arp_filter".parse().unwrap();
        assert!(of_interface.is_of(&"eth0.5".parse().unwrap()) && !of_interface.is_of(&"eth0".parse().unwrap()));
        for text in ["net.core.somaxconn", "net/ipv4/conf/eth0.5/arp_filter"] {
            assert_eq!(text.parse::<SysctlKey>().unwrap().to_string(), text);
        }
    }
}
