//! The named sets and maps of the ruleset: what keys they have and what they answer.

use portolan_model::Family;

/// Which of our nftables tables; the first two carry the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `table inet`: translation and filtering of routed packets.
    Inet,
    /// `table bridge`: the guard at the bridge ports.
    Bridge,
    /// `table inet` of another name: the fence, which the resident process holds.
    Fence,
    /// `table inet` of a name of its own: translation for the reference plugins, which no root of ours has anything to do
    /// with.
    Plugins,
    /// `table netdev`, one for each overlay network, called as its end of the tunnels: see [`crate::Shortcut`].
    Shortcuts,
}

impl Table {
    /// The two that are there with the first network and go with the last.
    pub const ALL: [Self; 2] = [Self::Inet, Self::Bridge];

    /// The name of the plugins' table, one for the host.
    pub const PLUGINS_NAME: &str = "portolan_cni";

    /// The name of the fence beside the tables called `name`.
    pub fn fence_name(name: &str) -> String {
        format!("{name}_fence")
    }

    /// Whether a table of the family inet is one of ours by name, of whichever root.
    pub fn is_ours(name: &str) -> bool {
        if name == Self::PLUGINS_NAME {
            return true;
        }
        let is_hash = |text: &str| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let rest = name.strip_suffix("_fence").unwrap_or(name).strip_prefix("portolan");
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('_').is_some_and(is_hash))
    }
}

/// A part of a set's key or data. Each takes a multiple of four bytes in the kernel's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FieldType {
    /// `inet_proto`, one byte.
    Protocol,
    /// `nf_proto`, one byte.
    NfProto,
    /// `ipv4_addr` or `ipv6_addr`.
    Address(Family),
    /// `ipv4_addr` or `ipv6_addr`, all that begin with the same bits.
    Prefix(Family),
    /// `inet_service`, two bytes in network order.
    Port,
    /// `ifname`, sixteen bytes, zero filled.
    IfName,
    /// `ether_addr`, six bytes.
    Ether,
    /// `iface_index`, four bytes in the machine's order.
    IfIndex,
}

impl FieldType {
    /// The name nft(8) gives the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "inet_proto",
            Self::NfProto => "nf_proto",
            Self::Address(Family::V4) | Self::Prefix(Family::V4) => "ipv4_addr",
            Self::Address(Family::V6) | Self::Prefix(Family::V6) => "ipv6_addr",
            Self::Port => "inet_service",
            Self::IfName => "ifname",
            Self::Ether => "ether_addr",
            Self::IfIndex => "iface_index",
        }
    }

    /// nft's number of the type (`enum datatypes`, nftables include/datatype.h), from which it decodes listings.
    pub const fn number(self) -> u32 {
        match self {
            Self::Protocol => 12,
            Self::NfProto => 2,
            Self::Address(Family::V4) | Self::Prefix(Family::V4) => 7,
            Self::Address(Family::V6) | Self::Prefix(Family::V6) => 8,
            Self::Port => 13,
            Self::IfName => 41,
            Self::Ether => 9,
            Self::IfIndex => 20,
        }
    }

    /// Its length in bytes, without padding.
    pub const fn len(self) -> usize {
        match self {
            Self::Protocol | Self::NfProto => 1,
            Self::Port => 2,
            Self::Address(Family::V4) | Self::Prefix(Family::V4) | Self::IfIndex => 4,
            Self::Ether => 6,
            Self::Address(Family::V6) | Self::Prefix(Family::V6) | Self::IfName => 16,
        }
    }

    /// Never: no field is empty.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Its length in a register: the next multiple of four.
    pub const fn padded(self) -> usize {
        self.len().next_multiple_of(4)
    }

    /// Whether its bytes are in the machine's order rather than the network's.
    pub const fn host_order(self) -> bool {
        matches!(self, Self::IfName | Self::NfProto | Self::IfIndex)
    }
}

/// What a set answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// Membership only.
    Member,
    /// A verdict.
    Verdict,
    /// An address.
    Address(Family),
    /// An address and a port.
    AddressPort(Family),
    /// An interface.
    Interface,
}

impl DataType {
    /// The fields of the data, empty for members and verdicts.
    pub fn fields(self) -> Vec<FieldType> {
        match self {
            Self::Member | Self::Verdict => Vec::new(),
            Self::Address(family) => vec![FieldType::Address(family)],
            Self::AddressPort(family) => vec![FieldType::Address(family), FieldType::Port],
            Self::Interface => vec![FieldType::IfIndex],
        }
    }
}

/// One of our sets or maps. Where a key has a bridge, a network without one has its host ends, an element for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// Published on one host address: (protocol, host address, host port) → (address, port).
    Port(Family),
    /// Published on every local address: (protocol, host port) → (address, port).
    AnyPort(Family),
    /// A range published on one host address, ports kept: (protocol, host address, host ports) → address.
    Range(Family),
    /// A range published on every local address, ports kept: (protocol, host ports) → address.
    AnyRange(Family),
    /// Open at the container's own address, mode `routed`: (address, protocol, port).
    Open(Family),
    /// As `Open`, ranges.
    OpenRange(Family),
    /// Published on every address of a family that the container does not have, and passed on by the proxy:
    /// (family, protocol, host port).
    Proxied,
    /// Where tunnels between hosts end, here and at the others: (UDP port).
    Tunnels,
    /// Ports of packets between hosts that are no connections: (UDP port).
    Untracked,
    /// Hosts whose tunnels end here: (address).
    Ends(Family),
    /// Traffic inside a network: (bridge, bridge) → verdict.
    Within,
    /// The addresses behind host ends that are on no bridge: (host end, address).
    Behind(Family),
    /// Traffic inside a network without a bridge: (subnet, subnet) → verdict. Its host ends are too many to be keys in
    /// pairs, as bridges are.
    Between(Family),
    /// Containers of other hosts that are reached by a LAN, without a tunnel: (its interface, block).
    Direct(Family),
    /// What may leave a network: (family, bridge) → verdict.
    Leave,
    /// What may enter a network: (family, bridge) → verdict.
    Enter,
    /// What containers may send to the host itself: (family, bridge) → verdict.
    ToHost,
    /// Interfaces from which containers are reachable at their own addresses: (interface, bridge).
    Trusted,
    /// Networks whose traffic to the world is masqueraded: (family, bridge).
    Masquerade,
    /// Networks whose traffic to the world gets this source address: (bridge) → address.
    Snat(Family),
    /// Gateway addresses and the bridge each belongs to: (bridge, address).
    Gateway(Family),
    /// Gateway addresses: (address).
    Gateways(Family),
    /// Gateway addresses where names are answered on another port than 53, so that questions need translation: (address).
    Redirected(Family),
    /// Interfaces between which the host did not forward before us: (family, interface).
    Closed,
    /// Networks whose containers may send from addresses that are routed to the network only: (family, bridge).
    Checked,
    /// Networks whose published ports are reached from inside through the host: (bridge, bridge).
    Hairpin,
    /// Containers that reach themselves by a published port: (address, the same address). What [`Set::Hairpin`] says by
    /// interface, said by address: bridge netfilter knows no input interface when it comes to the source.
    Own(Family),
    /// Networks that no other network is kept from, unless it is strict itself, `isolate=false`: (bridge).
    IsolateFalse,
    /// Networks that those may reach, `isolate=false` or `true`: (bridge).
    NotStrict,
    /// Containers that hold more than their share of the kernel's connections: (address). The resident puts them in, for
    /// seconds each.
    Excess(Family),
    /// Guard: the addresses a bridge port may send from: (port, MAC, address).
    Source(Family),
    /// Guard: bridge ports without guard: (port).
    Unguarded,
    /// Guard: ports by which nobody is asked for addresses, since all are known: (port).
    Quiet,
    /// Plugins: published on one host address: (protocol, host address, host port) → (address, port).
    PluginPort(Family),
    /// Plugins: published on every local address: (protocol, host port) → (address, port).
    PluginAnyPort(Family),
    /// Plugins: from where a published port is reached by the host's address: (client, container's address).
    PluginHairpin(Family),
    /// Plugins: destinations that see the container's own address: (address, destination).
    PluginLocal(Family),
    /// Plugins: containers whose traffic to all other destinations is masqueraded: (address).
    PluginMasquerade(Family),
    /// Plugins: who takes over a published port: (protocol, host address or none, host port, place) → (address, port).
    PluginWaiting(Family),
    /// Shortcuts: the addresses behind host ends: (host end, address) → the end of the tunnels.
    Near(Family),
    /// Shortcuts: the containers of this host: (address) → host end.
    Here(Family),
    /// Shortcuts: what other hosts give out: (block) → that host, as a neighbour at the tunnels.
    Far(Family),
    /// Shortcuts: where packets out of the tunnels come from: (block).
    Beyond(Family),
}

impl Set {
    /// The sets of an overlay network's table of shortcuts, in the order they are created and listed.
    pub const SHORTCUTS: [Self; 8] = [
        Self::Near(Family::V4),
        Self::Near(Family::V6),
        Self::Here(Family::V4),
        Self::Here(Family::V6),
        Self::Far(Family::V4),
        Self::Far(Family::V6),
        Self::Beyond(Family::V4),
        Self::Beyond(Family::V6),
    ];

    /// The sets of the plugins' table, in the order they are created and listed.
    pub const PLUGINS: [Self; 12] = [
        Self::PluginPort(Family::V4),
        Self::PluginPort(Family::V6),
        Self::PluginAnyPort(Family::V4),
        Self::PluginAnyPort(Family::V6),
        Self::PluginHairpin(Family::V4),
        Self::PluginHairpin(Family::V6),
        Self::PluginLocal(Family::V4),
        Self::PluginLocal(Family::V6),
        Self::PluginMasquerade(Family::V4),
        Self::PluginMasquerade(Family::V6),
        Self::PluginWaiting(Family::V4),
        Self::PluginWaiting(Family::V6),
    ];

    /// Whether the rules of iptables have nothing of it.
    pub(crate) const fn is_of_nftables_alone(self) -> bool {
        matches!(
            self,
            Self::Behind(_)
                | Self::Between(_)
                | Self::Direct(_)
                | Self::Excess(_)
                | Self::Tunnels
                | Self::Untracked
                | Self::Ends(_)
        )
    }

    /// Every set of a root's tables, in the order they are created and listed.
    pub const ALL: [Self; 50] = [
        Self::Port(Family::V4),
        Self::Port(Family::V6),
        Self::AnyPort(Family::V4),
        Self::AnyPort(Family::V6),
        Self::Range(Family::V4),
        Self::Range(Family::V6),
        Self::AnyRange(Family::V4),
        Self::AnyRange(Family::V6),
        Self::Open(Family::V4),
        Self::Open(Family::V6),
        Self::OpenRange(Family::V4),
        Self::OpenRange(Family::V6),
        Self::Proxied,
        Self::Tunnels,
        Self::Untracked,
        Self::Ends(Family::V4),
        Self::Ends(Family::V6),
        Self::Within,
        Self::Behind(Family::V4),
        Self::Behind(Family::V6),
        Self::Between(Family::V4),
        Self::Between(Family::V6),
        Self::Direct(Family::V4),
        Self::Direct(Family::V6),
        Self::Leave,
        Self::Enter,
        Self::ToHost,
        Self::Trusted,
        Self::Masquerade,
        Self::Snat(Family::V4),
        Self::Snat(Family::V6),
        Self::Gateway(Family::V4),
        Self::Gateway(Family::V6),
        Self::Gateways(Family::V4),
        Self::Gateways(Family::V6),
        Self::Redirected(Family::V4),
        Self::Redirected(Family::V6),
        Self::Closed,
        Self::Checked,
        Self::Hairpin,
        Self::Own(Family::V4),
        Self::Own(Family::V6),
        Self::IsolateFalse,
        Self::NotStrict,
        Self::Excess(Family::V4),
        Self::Excess(Family::V6),
        Self::Source(Family::V4),
        Self::Source(Family::V6),
        Self::Unguarded,
        Self::Quiet,
    ];

    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        use Family::{V4, V6};
        match self {
            Self::Port(V4) => "port4",
            Self::Port(V6) => "port6",
            Self::AnyPort(V4) => "any_port4",
            Self::AnyPort(V6) => "any_port6",
            Self::Range(V4) => "range4",
            Self::Range(V6) => "range6",
            Self::AnyRange(V4) => "any_range4",
            Self::AnyRange(V6) => "any_range6",
            Self::Open(V4) => "open4",
            Self::Open(V6) => "open6",
            Self::OpenRange(V4) => "open_range4",
            Self::OpenRange(V6) => "open_range6",
            Self::Proxied => "proxied",
            Self::Tunnels => "tunnels",
            Self::Untracked => "untracked",
            Self::Ends(V4) => "ends4",
            Self::Ends(V6) => "ends6",
            Self::Within => "within",
            Self::Behind(V4) => "behind4",
            Self::Behind(V6) => "behind6",
            Self::Between(V4) => "between4",
            Self::Between(V6) => "between6",
            Self::Direct(V4) => "direct4",
            Self::Direct(V6) => "direct6",
            Self::Leave => "leave",
            Self::Enter => "enter",
            Self::ToHost => "to_host",
            Self::Trusted => "trusted",
            Self::Masquerade => "masqueraded",
            Self::Snat(V4) => "snat4",
            Self::Snat(V6) => "snat6",
            Self::Gateway(V4) => "gateway4",
            Self::Gateway(V6) => "gateway6",
            Self::Gateways(V4) => "gateways4",
            Self::Gateways(V6) => "gateways6",
            Self::Redirected(V4) => "redirected4",
            Self::Redirected(V6) => "redirected6",
            Self::Closed => "closed",
            Self::Checked => "checked",
            Self::Hairpin => "hairpin",
            Self::Own(V4) => "own4",
            Self::Own(V6) => "own6",
            Self::IsolateFalse => "isolate_false",
            Self::NotStrict => "not_strict",
            Self::Excess(V4) => "excess4",
            Self::Excess(V6) => "excess6",
            Self::Source(V4) => "source4",
            Self::Source(V6) => "source6",
            Self::Unguarded => "unguarded",
            Self::Quiet => "quiet",
            Self::PluginPort(V4) => "cni_port4",
            Self::PluginPort(V6) => "cni_port6",
            Self::PluginAnyPort(V4) => "cni_any_port4",
            Self::PluginAnyPort(V6) => "cni_any_port6",
            Self::PluginHairpin(V4) => "cni_hairpin4",
            Self::PluginHairpin(V6) => "cni_hairpin6",
            Self::PluginLocal(V4) => "cni_local4",
            Self::PluginLocal(V6) => "cni_local6",
            Self::PluginMasquerade(V4) => "cni_masqueraded4",
            Self::PluginMasquerade(V6) => "cni_masqueraded6",
            Self::PluginWaiting(V4) => "cni_waiting4",
            Self::PluginWaiting(V6) => "cni_waiting6",
            Self::Near(V4) => "near4",
            Self::Near(V6) => "near6",
            Self::Here(V4) => "here4",
            Self::Here(V6) => "here6",
            Self::Far(V4) => "far4",
            Self::Far(V6) => "far6",
            Self::Beyond(V4) => "beyond4",
            Self::Beyond(V6) => "beyond6",
        }
    }

    /// The set of `table` with this name.
    pub fn named(table: Table, name: &str) -> Option<Self> {
        Self::in_table(table).find(|set| set.name() == name)
    }

    /// The sets of `table`, in the order they are created and listed.
    pub fn in_table(table: Table) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().chain(Self::PLUGINS).chain(Self::SHORTCUTS).filter(move |set| set.table() == table)
    }

    /// The table it is in.
    pub const fn table(self) -> Table {
        match self {
            Self::Source(_) | Self::Unguarded | Self::Quiet => Table::Bridge,
            Self::PluginPort(_)
            | Self::PluginAnyPort(_)
            | Self::PluginHairpin(_)
            | Self::PluginLocal(_)
            | Self::PluginMasquerade(_)
            | Self::PluginWaiting(_) => Table::Plugins,
            Self::Near(_) | Self::Here(_) | Self::Far(_) | Self::Beyond(_) => Table::Shortcuts,
            _ => Table::Inet,
        }
    }

    /// The fields of its key.
    pub fn key(self) -> Vec<FieldType> {
        use FieldType::{Address, Ether, IfName, NfProto, Port, Prefix, Protocol};
        match self {
            Self::Port(f) | Self::Range(f) | Self::PluginPort(f) => vec![Protocol, Address(f), Port],
            Self::AnyPort(_) | Self::AnyRange(_) | Self::PluginAnyPort(_) => vec![Protocol, Port],
            // Each packet between hosts is looked up three times. For keys of two bytes the kernel has a bitmap
            // (net/netfilter/nft_set_bitmap.c).
            Self::Tunnels | Self::Untracked => vec![Port],
            Self::Open(f) | Self::OpenRange(f) => vec![Address(f), Protocol, Port],
            Self::Proxied => vec![NfProto, Protocol, Port],
            Self::Within | Self::Trusted | Self::Hairpin => vec![IfName, IfName],
            Self::Leave | Self::Enter | Self::ToHost | Self::Masquerade | Self::Closed | Self::Checked => {
                vec![NfProto, IfName]
            }
            Self::Snat(_) | Self::Unguarded | Self::Quiet | Self::IsolateFalse | Self::NotStrict => vec![IfName],
            Self::Gateway(f) | Self::Behind(f) | Self::Near(f) => vec![IfName, Address(f)],
            Self::Between(f) => vec![Prefix(f), Prefix(f)],
            Self::Direct(f) => vec![IfName, Prefix(f)],
            Self::Gateways(f)
            | Self::Redirected(f)
            | Self::Excess(f)
            | Self::Ends(f)
            | Self::PluginMasquerade(f)
            | Self::Here(f) => vec![Address(f)],
            Self::Far(f) | Self::Beyond(f) => vec![Prefix(f)],
            Self::Own(f) => vec![Address(f), Address(f)],
            Self::Source(f) => vec![IfName, Ether, Address(f)],
            Self::PluginHairpin(f) => vec![Prefix(f), Address(f)],
            Self::PluginWaiting(f) => vec![Protocol, Address(f), Port, Port],
            Self::PluginLocal(f) => vec![Address(f), Prefix(f)],
        }
    }

    /// What it answers.
    pub const fn data(self) -> DataType {
        match self {
            Self::Port(f)
            | Self::AnyPort(f)
            | Self::PluginPort(f)
            | Self::PluginAnyPort(f)
            | Self::PluginWaiting(f) => DataType::AddressPort(f),
            Self::Range(f) | Self::AnyRange(f) | Self::Snat(f) | Self::Far(f) => DataType::Address(f),
            Self::Near(_) | Self::Here(_) => DataType::Interface,
            Self::Within | Self::Between(_) | Self::Leave | Self::Enter | Self::ToHost => DataType::Verdict,
            _ => DataType::Member,
        }
    }

    /// Whether it says where a published port leads.
    pub const fn is_translation(self) -> bool {
        matches!(self, Self::Port(_) | Self::AnyPort(_) | Self::Range(_) | Self::AnyRange(_))
    }

    /// Whether its elements go by themselves. No row speaks of them, so they are neither missing nor too many.
    pub const fn expires(self) -> bool {
        matches!(self, Self::Excess(_))
    }

    /// Whether its keys hold ranges. Such sets copy themselves at every commit (nft_set_pipapo.c), so what need
    /// not be a range lives elsewhere; but those of a single field are trees (nft_set_rbtree.c), which hold where a range begins
    /// and where it is over as an element each.
    pub const fn interval(self) -> bool {
        matches!(
            self,
            Self::Range(_)
                | Self::AnyRange(_)
                | Self::OpenRange(_)
                | Self::Between(_)
                | Self::Direct(_)
                | Self::PluginHairpin(_)
                | Self::PluginLocal(_)
                | Self::Far(_)
                | Self::Beyond(_)
        )
    }

    /// Whether it is such a tree.
    pub const fn is_tree(self) -> bool {
        matches!(self, Self::Far(_) | Self::Beyond(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_again() {
        let all = || Set::ALL.into_iter().chain(Set::PLUGINS).chain(Set::SHORTCUTS);
        for set in all() {
            assert_eq!(Set::named(set.table(), set.name()), Some(set));
        }
        assert_eq!(all().map(Set::name).collect::<std::collections::BTreeSet<_>>().len(), all().count());
    }
}
