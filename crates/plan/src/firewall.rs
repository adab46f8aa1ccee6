use std::fmt;

use portolan_model::{Driver, FirewallDriver, Network};

use crate::object::Object;
use crate::set::{Set, Table};

/// The rules of one root on one host: who carries them out, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Firewall {
    /// Who carries them out.
    pub driver: FirewallDriver,
    /// `portolan`, or `portolan_` and eight hexadecimal digits where another root has that name: the name of the
    /// nftables tables, and what names of chains, zones and policies are made of.
    pub name: String,
}

impl Firewall {
    /// The rules of a root as nftables tables called `name`.
    pub fn nftables(name: &str) -> Self {
        Self { driver: FirewallDriver::Nftables, name: name.to_owned() }
    }

    /// What a network's containers are kept from sending to each other.
    pub fn guard(&self, network: &Network) -> Guard {
        let frames = matches!(network.driver, Driver::Bridge) || network.is_l2();
        match self.driver {
            _ if !frames || !network.options.managed => Guard::Elsewhere,
            _ if !network.options.guard => Guard::Off,
            FirewallDriver::Nftables => Guard::Addresses,
            FirewallDriver::Iptables | FirewallDriver::Firewalld | FirewallDriver::None => Guard::Macs,
        }
    }

    /// What who makes `network` is to know of it, if the driver is why its containers are not guarded from each other.
    pub fn warning(&self, network: &Network) -> Option<String> {
        (self.guard(network) == Guard::Macs).then(|| {
            format!(
                "firewall driver `{}` has no guard: containers of network `{}` can send from each other's IP addresses, answer \
                 for them, and play router or DHCP server",
                self.driver, network.name
            )
        })
    }

    /// Whether the driver holds `object` at all: what it has no counterpart for, it is not asked to hold.
    ///
    /// All drivers hold what is no rule, since that is not theirs.
    pub fn holds(&self, object: &Object) -> bool {
        match (self.driver, object) {
            (FirewallDriver::Nftables, _) => true,
            (FirewallDriver::None, Object::Ruleset(_) | Object::Element(_)) => false,
            (_, Object::Shortcut(_)) => false,
            // Neither knows the frames of a bridge, or networks without one.
            (FirewallDriver::Iptables, Object::Element(element)) => {
                element.set.table() == Table::Inet && !element.set.is_of_nftables_alone()
            }
            (FirewallDriver::Firewalld, Object::Element(element)) => holds_in_firewalld(element.set),
            _ => true,
        }
    }
}

/// What firewalld's zones and policies can say.
const fn holds_in_firewalld(set: Set) -> bool {
    matches!(
        set,
        Set::Port(_)
            | Set::AnyPort(_)
            | Set::Range(_)
            | Set::AnyRange(_)
            | Set::Masquerade
            | Set::Snat(_)
            | Set::Leave
            | Set::Within
    )
}

/// What the ports of a bridge take from a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guard {
    /// What comes from its own MAC and IP addresses, and nothing that a router or a DHCP server says.
    Addresses,
    /// What comes from its own MAC address: the ports are locked, but nobody looks into frames.
    Macs,
    /// Anything.
    Off,
    /// There are no ports of ours.
    Elsewhere,
}

impl fmt::Display for Firewall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.driver {
            FirewallDriver::Nftables => write!(f, "nftables table `{}`", self.name),
            FirewallDriver::Iptables => write!(f, "iptables chains of `{}`", self.name),
            FirewallDriver::Firewalld => write!(f, "firewalld zones of `{}`", self.name),
            FirewallDriver::None => write!(f, "no rules"),
        }
    }
}
