use std::fmt;
use std::str::FromStr;

use crate::invalid::{Invalid, serde_by_text};

/// Who carries out the rules: translation of published ports, masquerading, the separation of networks.
///
/// Chosen with a state's first network and kept until its last is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum FirewallDriver {
    /// Tables of our own, by netlink.
    #[default]
    Nftables,
    /// Chains of our own in the tables of iptables(8) and ip6tables(8), by iptables-restore(8).
    Iptables,
    /// Zones and policies of our own in firewalld(1), over D-Bus.
    Firewalld,
    /// Nobody: there are no rules.
    None,
}

impl FirewallDriver {
    /// Every driver.
    pub const ALL: [Self; 4] = [Self::Nftables, Self::Iptables, Self::Firewalld, Self::None];

    /// Its name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Firewalld => "firewalld",
            Self::None => "none",
        }
    }
}

impl fmt::Display for FirewallDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for FirewallDriver {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|driver| driver.name() == text).ok_or_else(|| {
            Invalid::new("firewall driver", text, "is unknown").hint("choose nftables, iptables, firewalld or none")
        })
    }
}

serde_by_text!(FirewallDriver);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for driver in FirewallDriver::ALL {
            assert_eq!(driver.to_string().parse::<FirewallDriver>().unwrap(), driver);
        }
        assert!("Nftables".parse::<FirewallDriver>().unwrap_err().hint.is_some());
    }
}
