//! The constant nftables ruleset: chains and rules that never change, around the sets that do.
//!
//! A rule is a list of [`Part`]s, rendered as text here and as netlink expressions by `portolan-kernel`. A test
//! compares this text with what nft(8) lists of the kernel's, so both renderings say the same.
//!
//! The packet mark is left alone, because others use it. The packet priority carries [`ALLOWED`] from where our table
//! lets the first packet of a connection pass to the fence, no further.
//!
//! # The fence
//!
//! A second table, held by the resident process: owned by its socket, `nft flush ruleset` and `nft delete table` of
//! others leave it alone (`NFT_TABLE_F_OWNER`, Linux 5.12), and it stays when the process dies (`NFT_TABLE_F_PERSIST`,
//! 6.9). Its rules are constant and know neither networks nor ports: what begins and was not marked by our own table is
//! dropped. While our table is away nothing begins, what had begun goes on, and its own empty translation chains keep
//! the kernel translating it.
//!
//! # The plugins' table
//!
//! What the reference plugins of CNI translate has a table of its own, [`Table::Plugins`]: no root knows of it. Sets tell
//! containers by address, for bridges and interfaces are anybody's.
//!
//! # Shortcuts
//!
//! Each overlay network has a table of its own at the ingress of its interfaces: see [`crate::Shortcut`].

mod text;

use portolan_model::Family;

use crate::object::{ALLOWED, Chain, Data, Group};
use crate::set::{Set, Table};

pub use text::{render, render_element, render_fence, render_plugins, render_program, render_shortcuts};

/// Where a base chain hooks into the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// The hook's name.
    pub hook: &'static str,
    /// The hook's number (`enum nf_inet_hooks`; the bridge family's prerouting has the same).
    pub number: u32,
    /// The priority (`enum nf_ip_hook_priorities`, `nf_br_hook_priorities`).
    pub priority: i32,
    /// The priority as nft lists it.
    pub priority_name: &'static str,
}

/// A value that a rule loads from the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// `meta l4proto`.
    Protocol,
    /// `meta nfproto`.
    NfProto,
    /// `iifname`.
    IifName,
    /// `oifname`.
    OifName,
    /// `ip saddr` or `ip6 saddr`.
    Source(Family),
    /// `ip daddr` or `ip6 daddr`.
    Destination(Family),
    /// `th dport`.
    DestinationPort,
    /// `udp sport`.
    UdpSourcePort,
    /// `udp dport`.
    UdpDestinationPort,
    /// `ether saddr`.
    EtherSource,
    /// `arp saddr ether`.
    ArpSenderMac,
    /// `arp saddr ip`.
    ArpSenderAddress,
    /// `icmpv6 taddr`, what a neighbour advertisement or solicitation is about. nft(8) before 1.0.8 knows no name for it.
    NeighbourTarget,
}

/// A link layer protocol, for the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    /// 0x0800.
    Ipv4,
    /// 0x0806.
    Arp,
    /// 0x86dd.
    Ipv6,
}

impl EtherType {
    /// The number (IEEE 802 registry).
    pub const fn number(self) -> u16 {
        match self {
            Self::Ipv4 => 0x0800,
            Self::Arp => 0x0806,
            Self::Ipv6 => 0x86dd,
        }
    }
}

/// A part of a rule: a condition, or what happens when all conditions before it hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The input interface's group is (not) this.
    IifGroup(bool, Group),
    /// The output interface's group is (not) this.
    OifGroup(bool, Group),
    /// The input interface is not loopback, by index (loopback is always 1).
    NotFromLoopback,
    /// The destination is in 127.0.0.0/8.
    ToLoopback4,
    /// The destination is ::1.
    ToLoopback6,
    /// The destination is a multicast group (224.0.0.0/4, ff00::/8).
    ToMulticast(Family),
    /// The source is in 127.0.0.0/8.
    FromLoopback4,
    /// The source is `::`.
    FromUnspecified6,
    /// The source is in fe80::/10, which no router passes on.
    FromLinkLocal6,
    /// The link layer protocol.
    Ether(EtherType),
    /// `ip protocol icmp`, whichever family: `meta l4proto`.
    L4Proto(u8),
    /// The header of the transport is in the packet, or was in the first fragment of it: `meta l4proto != 255`, which is
    /// reserved, and not decided without one.
    HasL4Proto,
    /// `icmp type`, of frames of IPv4: the link layer protocol goes without saying.
    Icmp4Type(u8),
    /// `icmpv6 type`.
    Icmp6Type(u8),
    /// It is ICMPv6 and shows that it is of another type.
    NotIcmp6Type(u8),
    /// `ip6 hoplimit`.
    HopLimit6(u8),
    /// It may be passed on by one more: `ip ttl > 1` or `ip6 hoplimit > 1`.
    MayGoOn(Family),
    /// `udp sport`.
    UdpSource(u16),
    /// `tcp sport`.
    TcpSource(u16),
    /// `udp dport`.
    UdpDestination(u16),
    /// `tcp dport`.
    TcpDestination(u16),
    /// It opens a TCP connection, or answers what does: `tcp flags syn`.
    OpensTcp,
    /// Have either end of the TCP connection send no larger segments than fit both ways from here: `tcp option maxseg size set rt
    /// mtu`. The kernel makes what is said smaller only (`nft_exthdr_tcp_set_eval()`), and looks at the way back as well
    /// (`get_tcpmss()`, net/netfilter/nft_rt.c).
    ClampMss,
    /// The packet's priority is this.
    Priority(u32),
    /// Make this the packet's priority.
    SetPriority(u32),
    /// Leave the packet out of connection tracking, and so of translation.
    NoTrack,
    /// The packet is the first of a connection.
    Begins,
    /// The connection is established or related to one.
    Established,
    /// The packet belongs to no connection that could be.
    InvalidState,
    /// The destination was translated.
    Translated,
    /// The destination is an address of the host.
    ToLocal,
    /// No route leads back to the source over the input interface.
    NoWayBack,
    /// The loaded values are (not) in the set.
    In(bool, Vec<Load>, Set),
    /// The verdict that the map has for the loaded values.
    Verdict(Vec<Load>, Set),
    /// Destination translation to what the map has for the loaded values.
    Dnat(Family, Vec<Load>, Set),
    /// Source translation to what the map has for the loaded values.
    Snat(Family, Vec<Load>, Set),
    /// Source translation to the output interface's address.
    Masquerade,
    /// Passed on, with one hop less and no more ado, by the interface that the map has for the loaded values.
    Pass(Family, Next, Vec<Load>, Set),
    /// Count packets and bytes.
    Count,
    /// A verdict.
    Do(Data),
}

/// The neighbour that a packet is passed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Its destination.
    Destination,
    /// What the map has for its destination.
    Of(Set),
}

/// A rule: parts in order, and why it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions and what they lead to.
    pub parts: Vec<Part>,
    /// Why, shown by `nft list` and by `portolan rules`; empty for none.
    pub comment: &'static str,
}

/// Of ICMP (RFC 792).
const REDIRECT4: u8 = 5;
const LISTENER_QUERY: u8 = 130;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT: u8 = 143;
const ECHO_REQUEST6: u8 = 128;
const DNS: u16 = 53;
/// Who listens there answers with what was sent (RFC 862), and if nobody does the kernel says so: either way something comes back.
pub const ECHO: u16 = 7;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const IGMP: u8 = 2;

/// Where `chain` hooks in; none for chains that are only called.
pub const fn hook(chain: Chain) -> Option<Hook> {
    const fn at(
        kind: &'static str,
        hook: &'static str,
        number: u32,
        priority: i32,
        priority_name: &'static str,
    ) -> Option<Hook> {
        Some(Hook { kind, hook, number, priority, priority_name })
    }
    match chain {
        Chain::Early => at("filter", "prerouting", 0, -300, "raw"),
        Chain::NatIn => at("nat", "prerouting", 0, -100, "dstnat"),
        Chain::NatOut => at("nat", "output", 3, -100, "-100"),
        Chain::NatSource => at("nat", "postrouting", 4, 100, "srcnat"),
        Chain::Forward => at("filter", "forward", 2, 0, "filter"),
        Chain::Input => at("filter", "input", 1, 0, "filter"),
        Chain::Unmark => at("filter", "forward", 2, 2, "filter + 2"),
        Chain::Answer => at("filter", "output", 3, -300, "raw"),
        Chain::Guard => at("filter", "prerouting", 0, -300, "dstnat"),
        Chain::Hush => at("filter", "postrouting", 4, 300, "srcnat"),
        Chain::FenceNatIn => at("nat", "prerouting", 0, -100, "dstnat"),
        Chain::FenceNatOut => at("nat", "output", 3, -100, "-100"),
        Chain::FenceNatSource => at("nat", "postrouting", 4, 100, "srcnat"),
        Chain::FenceForward => at("filter", "forward", 2, 1, "filter + 1"),
        Chain::FenceInput => at("filter", "input", 1, 1, "filter + 1"),
        Chain::PluginNatIn => at("nat", "prerouting", 0, -100, "dstnat"),
        Chain::PluginNatOut => at("nat", "output", 3, -100, "-100"),
        Chain::PluginNatSource => at("nat", "postrouting", 4, 100, "srcnat"),
        Chain::ShortcutOut => at("filter", "ingress", 0, 0, "filter"),
        // What comes out of a tunnel is not looked at by the other one first, which is at that device only because it is never
        // without one.
        Chain::ShortcutIn => at("filter", "ingress", 0, -1, "filter - 1"),
        Chain::Allow
        | Chain::Publish
        | Chain::Transit
        | Chain::Enter
        | Chain::EnterNat
        | Chain::EnterRouted
        | Chain::WithinClosed
        | Chain::Tunnel
        | Chain::ToHostInternal
        | Chain::Probe
        | Chain::PluginPublish => None,
    }
}

/// The table that `chain` is in.
pub const fn table(chain: Chain) -> Table {
    match chain {
        Chain::Guard | Chain::Hush => Table::Bridge,
        Chain::FenceNatIn | Chain::FenceNatOut | Chain::FenceNatSource | Chain::FenceForward | Chain::FenceInput => {
            Table::Fence
        }
        Chain::PluginNatIn | Chain::PluginNatOut | Chain::PluginPublish | Chain::PluginNatSource => Table::Plugins,
        Chain::ShortcutOut | Chain::ShortcutIn => Table::Shortcuts,
        _ => Table::Inet,
    }
}

/// The chains of `table`, in the order they are created and listed.
pub fn chains(table: Table) -> impl Iterator<Item = Chain> {
    let all = Chain::ALL.into_iter().chain(Chain::PLUGINS).chain(Chain::SHORTCUTS);
    all.filter(move |chain| self::table(*chain) == table)
}

/// The rules of `chain`, in order.
pub fn rules(chain: Chain) -> Vec<Rule> {
    use Family::{V4, V6};
    use Load::{
        ArpSenderAddress, ArpSenderMac, Destination, DestinationPort, EtherSource, IifName, NeighbourTarget, NfProto,
        OifName, Protocol, Source,
    };
    use Part::{
        Count, Dnat, Do, Ether, FromLoopback4, HasL4Proto, Icmp6Type, IifGroup, In, L4Proto, Masquerade, NoWayBack,
        OifGroup, Snat, ToLocal, ToLoopback4, ToMulticast, Translated, Verdict,
    };

    let rule = |comment: &'static str, parts: &[Part]| Rule { parts: parts.to_vec(), comment };
    let drop = |comment: &'static str, parts: &[Part]| Rule {
        parts: parts.iter().cloned().chain([Count, Do(Data::Drop)]).collect(),
        comment,
    };
    let within = || vec![IifName, OifName];
    let by_in = || vec![NfProto, IifName];
    // Questions about names would fill the table of connections, and a port 53 that somebody publishes catch them.
    let name = |family, port: &Part| {
        rule(
            "names are asked for without a connection",
            &[
                port.clone(),
                In(true, vec![IifName, Destination(family)], Set::Gateway(family)),
                In(false, vec![Destination(family)], Set::Redirected(family)),
                Part::NoTrack,
            ],
        )
    };
    let answer = |family, port: &Part| {
        rule(
            "and answered without",
            &[port.clone(), In(true, vec![Source(family)], Set::Gateways(family)), Part::NoTrack],
        )
    };
    // The source is what tells the network, so it has to be the container's own.
    let between = |family| {
        rule(
            "inside a network without a bridge",
            &[
                OifGroup(true, Group::Bridges),
                In(true, vec![IifName, Source(family)], Set::Behind(family)),
                Verdict(vec![Source(family), Destination(family)], Set::Between(family)),
            ],
        )
    };
    // The same by a LAN: whoever else is on it can take either host's place there.
    let to = |family| In(true, vec![OifName, Destination(family)], Set::Direct(family));
    let near = |family| In(true, vec![IifName, Source(family)], Set::Behind(family));
    let judge = |family| Verdict(vec![Source(family), Destination(family)], Set::Between(family));
    let to_lan =
        |family| rule("inside a network, to another host of the LAN", &[to(family), near(family), judge(family)]);
    let from_lan = |family| {
        let from = In(true, vec![IifName, Source(family)], Set::Direct(family));
        let here = In(true, vec![OifName, Destination(family)], Set::Behind(family));
        rule("inside a network, from another host of the LAN", &[from, here, judge(family)])
    };
    let kept = |family| {
        let parts = [to(family), near(family), Do(Data::Return)];
        rule("inside a network, to another host of the LAN: the source is kept", &parts)
    };
    let elsewhere = |family| {
        let parts = [OifGroup(false, Group::Bridges), to(family)];
        drop("a container sends to another network's at another host of the LAN", &parts)
    };
    let excess = |load: Load, family| {
        drop(
            "more connections than the container's share of those that the kernel remembers",
            &[Part::Begins, In(true, vec![load], Set::Excess(family))],
        )
    };
    let end = |family| {
        let parts = [In(true, vec![Source(family)], Set::Ends(family)), Do(Data::Accept)];
        rule("another host's tunnels end here", &parts)
    };
    // Each conversation inside is one of the outer packets' ports: as many would fill the table of connections.
    // Nothing of ours is asked of them in these chains any more.
    let untracked = |group: Part, port: Load| {
        let parts = [group, In(true, vec![port], Set::Untracked), Part::NoTrack, Do(Data::Accept)];
        rule("tunnels between hosts are no connections", &parts)
    };
    let to_tunnels = || In(true, vec![Load::UdpDestinationPort], Set::Tunnels);
    let not_from_a_network = || rule("not from a network", &[IifGroup(false, Group::Bridges), Do(Data::Accept)]);
    let past_the_guard =
        || drop("past the bridge and its guard: frames that no bridge forwards", &[IifGroup(true, Group::Ports)]);
    let allow = || Do(Data::Goto(Chain::Allow));
    match chain {
        Chain::Allow => vec![
            excess(Source(V4), V4),
            excess(Destination(V4), V4),
            excess(Source(V6), V6),
            excess(Destination(V6), V6),
            rule("a mark for the fence", &[Part::SetPriority(ALLOWED), Do(Data::Accept)]),
        ],
        Chain::Unmark => vec![rule("nobody else sees it", &[Part::Priority(ALLOWED), Part::SetPriority(0)])],
        Chain::Early => vec![
            past_the_guard(),
            untracked(IifGroup(false, Group::Bridges), Load::UdpDestinationPort),
            not_from_a_network(),
            drop("a container sent from a loopback address", &[FromLoopback4]),
            drop("a container sent to a loopback address", &[ToLoopback4]),
            drop(
                "a container sent from an address that is not of its network",
                &[In(true, by_in(), Set::Checked), NoWayBack],
            ),
            name(V4, &Part::UdpDestination(DNS)),
            name(V4, &Part::TcpDestination(DNS)),
            name(V6, &Part::UdpDestination(DNS)),
            name(V6, &Part::TcpDestination(DNS)),
        ],
        Chain::Answer => vec![
            untracked(OifGroup(false, Group::Bridges), Load::UdpDestinationPort),
            // Encrypted ones go from this host's port to whatever NAT makes of the other's.
            untracked(OifGroup(false, Group::Bridges), Load::UdpSourcePort),
            rule("not to a network", &[OifGroup(false, Group::Bridges), Do(Data::Accept)]),
            answer(V4, &Part::UdpSource(DNS)),
            answer(V4, &Part::TcpSource(DNS)),
            answer(V6, &Part::UdpSource(DNS)),
            answer(V6, &Part::TcpSource(DNS)),
        ],
        Chain::NatIn => vec![
            rule("127.0.0.1 is the host alone", &[ToLoopback4, Do(Data::Return)]),
            rule(
                "gateway addresses are for containers",
                &[
                    IifGroup(false, Group::Bridges),
                    In(true, vec![Destination(V4)], Set::Gateways(V4)),
                    Do(Data::Return),
                ],
            ),
            rule(
                "gateway addresses are for containers",
                &[
                    IifGroup(false, Group::Bridges),
                    In(true, vec![Destination(V6)], Set::Gateways(V6)),
                    Do(Data::Return),
                ],
            ),
            rule("to the host: published ports", &[ToLocal, Do(Data::Goto(Chain::Publish))]),
        ],
        Chain::NatOut => vec![
            rule("no route leads from ::1 to a container", &[Part::ToLoopback6, Do(Data::Return)]),
            rule("from the host to itself: published ports", &[ToLocal, Do(Data::Goto(Chain::Publish))]),
        ],
        Chain::Publish => vec![
            rule("on one address", &[Dnat(V4, vec![Protocol, Destination(V4), DestinationPort], Set::Port(V4))]),
            rule("on one address", &[Dnat(V6, vec![Protocol, Destination(V6), DestinationPort], Set::Port(V6))]),
            rule(
                "ranges on one address",
                &[Dnat(V4, vec![Protocol, Destination(V4), DestinationPort], Set::Range(V4))],
            ),
            rule(
                "ranges on one address",
                &[Dnat(V6, vec![Protocol, Destination(V6), DestinationPort], Set::Range(V6))],
            ),
            rule("on every address", &[Dnat(V4, vec![Protocol, DestinationPort], Set::AnyPort(V4))]),
            rule("on every address", &[Dnat(V6, vec![Protocol, DestinationPort], Set::AnyPort(V6))]),
            rule("ranges on every address", &[Dnat(V4, vec![Protocol, DestinationPort], Set::AnyRange(V4))]),
            rule("ranges on every address", &[Dnat(V6, vec![Protocol, DestinationPort], Set::AnyRange(V6))]),
        ],
        Chain::NatSource => vec![
            rule(
                "to a published port of its own network: answers must come back through the host",
                &[In(true, within(), Set::Hairpin), Translated, Masquerade],
            ),
            rule(
                "to its own published port",
                &[In(true, vec![Source(V4), Destination(V4)], Set::Own(V4)), Translated, Masquerade],
            ),
            rule(
                "to its own published port",
                &[In(true, vec![Source(V6), Destination(V6)], Set::Own(V6)), Translated, Masquerade],
            ),
            rule(
                "from the host's 127.0.0.1 to a container",
                &[OifGroup(true, Group::Bridges), FromLoopback4, Masquerade],
            ),
            rule("into a network: the client's address is kept", &[OifGroup(true, Group::Bridges), Do(Data::Return)]),
            kept(V4),
            kept(V6),
            rule("to the world from a chosen address", &[Snat(V4, vec![IifName], Set::Snat(V4))]),
            rule("to the world from a chosen address", &[Snat(V6, vec![IifName], Set::Snat(V6))]),
            rule("to the world from the host's address", &[In(true, by_in(), Set::Masquerade), Masquerade]),
        ],
        Chain::Forward => vec![
            rule(
                "neither from nor to a network",
                &[IifGroup(false, Group::Bridges), OifGroup(false, Group::Bridges), Do(Data::Goto(Chain::Transit))],
            ),
            // ICMP that says so need not arrive.
            rule("segments fit the smaller MTU of the ways there and back", &[Part::OpensTcp, Part::ClampMss]),
            rule("", &[Part::Established, Do(Data::Accept)]),
            drop("no connection it could belong to", &[Part::InvalidState]),
            rule("inside a network", &[Verdict(within(), Set::Within)]),
            between(V4),
            between(V6),
            to_lan(V4),
            to_lan(V6),
            from_lan(V4),
            from_lan(V6),
            rule("trusted host interfaces", &[In(true, within(), Set::Trusted), allow()]),
            rule("out of a network", &[IifGroup(true, Group::Bridges), Verdict(by_in(), Set::Leave)]),
            drop("out of a network unknown to the store", &[IifGroup(true, Group::Bridges)]),
            rule("", &[Do(Data::Goto(Chain::Enter))]),
        ],
        Chain::Transit => {
            vec![drop(
                "the host did not forward here before",
                &[In(true, by_in(), Set::Closed), In(true, vec![NfProto, OifName], Set::Closed)],
            )]
        }
        Chain::Enter => vec![
            drop(
                "a container sends to where another host's tunnels end",
                &[OifGroup(false, Group::Bridges), to_tunnels()],
            ),
            elsewhere(V4),
            elsewhere(V6),
            rule("to the world", &[OifGroup(false, Group::Bridges), allow()]),
            rule(
                "from a network that is not isolated to one that is not strict",
                &[In(true, vec![IifName], Set::IsolateFalse), In(true, vec![OifName], Set::NotStrict), allow()],
            ),
            rule(
                "from a network that is not strict to one that is not isolated",
                &[In(true, vec![IifName], Set::NotStrict), In(true, vec![OifName], Set::IsolateFalse), allow()],
            ),
            rule("into a network", &[Verdict(vec![NfProto, OifName], Set::Enter)]),
            drop("into a network unknown to the store", &[]),
        ],
        Chain::EnterNat => {
            vec![rule("through a published port", &[Translated, allow()]), drop("not published", &[])]
        }
        Chain::EnterRouted => vec![
            rule("through a published port", &[Translated, allow()]),
            rule("", &[L4Proto(ICMP), allow()]),
            rule("", &[L4Proto(ICMP6), allow()]),
            rule("open port", &[In(true, vec![Destination(V4), Protocol, DestinationPort], Set::Open(V4)), allow()]),
            rule("open port", &[In(true, vec![Destination(V6), Protocol, DestinationPort], Set::Open(V6)), allow()]),
            rule(
                "open ports",
                &[In(true, vec![Destination(V4), Protocol, DestinationPort], Set::OpenRange(V4)), allow()],
            ),
            rule(
                "open ports",
                &[In(true, vec![Destination(V6), Protocol, DestinationPort], Set::OpenRange(V6)), allow()],
            ),
            drop("not published", &[]),
        ],
        Chain::WithinClosed => vec![
            rule("through a published port", &[Translated, allow()]),
            drop("containers of this network do not reach each other", &[]),
        ],
        Chain::Input => vec![
            drop("a container sends to where this host's tunnels end", &[IifGroup(true, Group::Bridges), to_tunnels()]),
            rule("where this host's tunnels end", &[to_tunnels(), Do(Data::Goto(Chain::Tunnel))]),
            drop(
                "a gateway address answers its own network only",
                &[
                    Part::NotFromLoopback,
                    In(true, vec![Destination(V4)], Set::Gateways(V4)),
                    In(false, vec![IifName, Destination(V4)], Set::Gateway(V4)),
                ],
            ),
            drop(
                "a gateway address answers its own network only",
                &[
                    Part::NotFromLoopback,
                    In(true, vec![Destination(V6)], Set::Gateways(V6)),
                    In(false, vec![IifName, Destination(V6)], Set::Gateway(V6)),
                ],
            ),
            not_from_a_network(),
            rule("from an internal network", &[Verdict(by_in(), Set::ToHost)]),
            rule("from any other network", &[allow()]),
        ],
        Chain::Tunnel => {
            vec![end(V4), end(V6), drop("who is no host of the cluster sends to where this host's tunnels end", &[])]
        }
        Chain::ToHostInternal => vec![
            drop(
                "an internal network reaches no published port",
                &[In(true, vec![NfProto, Protocol, DestinationPort], Set::Proxied)],
            ),
            rule("its own gateway", &[In(true, vec![IifName, Destination(V4)], Set::Gateway(V4)), allow()]),
            rule("its own gateway", &[In(true, vec![IifName, Destination(V6)], Set::Gateway(V6)), allow()]),
            rule("neighbour discovery", &[Icmp6Type(NEIGHBOUR_SOLICITATION), allow()]),
            rule("neighbour discovery", &[Icmp6Type(NEIGHBOUR_ADVERTISEMENT), allow()]),
            drop("an internal network reaches the host at its gateway only", &[]),
        ],
        // From whom is known: outer packets are other hosts' of the cluster, and what their containers send has other sources. They
        // cost less than what the same hosts may send to containers here, so that nothing is counted.
        Chain::Probe => vec![
            rule("what this host asked for", &[Part::Established, allow()]),
            rule("another host measures the path", &[Part::FromLinkLocal6, Icmp6Type(ECHO_REQUEST6), allow()]),
            rule("another host measures the path", &[Part::FromLinkLocal6, Part::UdpDestination(ECHO), allow()]),
            drop("containers of other hosts do not reach the host", &[]),
        ],
        // Empty: a translation chain at a hook is what makes the kernel translate there at all.
        Chain::FenceNatIn | Chain::FenceNatOut | Chain::FenceNatSource => Vec::new(),
        // What our own `early` drops for good is dropped here again. A hook of its own for that would cost all packets of the host.
        Chain::FenceForward => vec![
            past_the_guard(),
            rule(
                "neither from nor to a network",
                &[IifGroup(false, Group::Bridges), OifGroup(false, Group::Bridges), Do(Data::Accept)],
            ),
            rule("", &[Part::Established, Do(Data::Accept)]),
            rule("our own table let it pass", &[Part::Priority(ALLOWED), Do(Data::Accept)]),
            drop("our own table is not there", &[]),
        ],
        Chain::FenceInput => vec![
            past_the_guard(),
            not_from_a_network(),
            // What a container answers to the host's 127.0.0.1 is for that here.
            rule("", &[Part::Established, Do(Data::Accept)]),
            drop("a container sent from a loopback address", &[FromLoopback4]),
            drop("a container sent to a loopback address", &[ToLoopback4]),
            rule("names", &[Part::UdpDestination(DNS), Do(Data::Accept)]),
            rule("names", &[Part::TcpDestination(DNS), Do(Data::Accept)]),
            rule("neighbour discovery", &[Icmp6Type(NEIGHBOUR_SOLICITATION), Do(Data::Accept)]),
            rule("neighbour discovery", &[Icmp6Type(NEIGHBOUR_ADVERTISEMENT), Do(Data::Accept)]),
            rule("our own table let it pass", &[Part::Priority(ALLOWED), Do(Data::Accept)]),
            drop("our own table is not there", &[]),
        ],
        Chain::PluginNatIn | Chain::PluginNatOut => {
            vec![rule("to the host: published ports", &[ToLocal, Do(Data::Goto(Chain::PluginPublish))])]
        }
        Chain::PluginPublish => vec![
            rule("on one address", &[Dnat(V4, vec![Protocol, Destination(V4), DestinationPort], Set::PluginPort(V4))]),
            rule("on one address", &[Dnat(V6, vec![Protocol, Destination(V6), DestinationPort], Set::PluginPort(V6))]),
            rule("on every address", &[Dnat(V4, vec![Protocol, DestinationPort], Set::PluginAnyPort(V4))]),
            rule("on every address", &[Dnat(V6, vec![Protocol, DestinationPort], Set::PluginAnyPort(V6))]),
        ],
        Chain::PluginNatSource => {
            let each = |comment, parts: &dyn Fn(Family) -> Vec<Part>| Family::ALL.map(|f| rule(comment, &parts(f)));
            [
                each("to a published port: answers must come back through the host", &|f| {
                    vec![In(true, vec![Source(f), Destination(f)], Set::PluginHairpin(f)), Translated, Masquerade]
                }),
                each("inside a network", &|f| {
                    vec![In(true, vec![Source(f), Destination(f)], Set::PluginLocal(f)), Do(Data::Return)]
                }),
                each("to a group", &|f| vec![ToMulticast(f), Do(Data::Return)]),
                each("to the world from the host's address", &|f| {
                    vec![In(true, vec![Source(f)], Set::PluginMasquerade(f)), Masquerade]
                }),
            ]
            .concat()
        }
        // The source is the container's own, for it is behind this host end.
        Chain::ShortcutOut => Family::ALL
            .map(|f| {
                let by = vec![IifName, Source(f)];
                let pass = Part::Pass(f, Next::Of(Set::Far(f)), by, Set::Near(f));
                rule("to another host's containers", &[Part::MayGoOn(f), pass])
            })
            .to_vec(),
        Chain::ShortcutIn => Family::ALL
            .map(|f| {
                let pass = Part::Pass(f, Next::Destination, vec![Destination(f)], Set::Here(f));
                let parts = [In(true, vec![Source(f)], Set::Beyond(f)), Part::MayGoOn(f), pass];
                rule("from another host's containers", &parts)
            })
            .to_vec(),
        Chain::Hush => {
            let quiet = || In(true, vec![OifName], Set::Quiet);
            let asks = |kind| {
                let parts = [Ether(EtherType::Ipv6), Icmp6Type(kind), quiet(), Do(Data::Drop)];
                rule("who has an address at another host is known", &parts)
            };
            let listens = "nobody asks who listens";
            let arp = [Ether(EtherType::Arp), quiet(), Do(Data::Drop)];
            let igmp = [Ether(EtherType::Ipv4), L4Proto(IGMP), quiet(), Do(Data::Drop)];
            let report = [Ether(EtherType::Ipv6), Icmp6Type(LISTENER_REPORT), quiet(), Do(Data::Drop)];
            vec![
                rule("who has an address at another host is known", &arp),
                asks(NEIGHBOUR_SOLICITATION),
                asks(NEIGHBOUR_ADVERTISEMENT),
                asks(ROUTER_SOLICITATION),
                rule(listens, &report),
                rule(listens, &igmp),
            ]
        }
        Chain::Guard => vec![
            rule("not from a container", &[IifGroup(false, Group::Ports), Do(Data::Accept)]),
            rule("guard off", &[In(true, vec![IifName], Set::Unguarded), Do(Data::Accept)]),
            rule(
                "nobody asks who listens: the bridge would flood the answer",
                &[Ether(EtherType::Ipv6), Icmp6Type(LISTENER_REPORT), Do(Data::Drop)],
            ),
            rule(
                "nobody asks who listens: the bridge would flood the answer",
                &[Ether(EtherType::Ipv4), L4Proto(IGMP), Do(Data::Drop)],
            ),
            drop("a container redirects others", &[Part::Icmp4Type(REDIRECT4)]),
            drop("a container answers as DHCP server", &[Ether(EtherType::Ipv4), Part::UdpSource(67)]),
            // Clients look at their own port, many at no other.
            drop("a container answers as DHCP server", &[Ether(EtherType::Ipv4), Part::UdpDestination(68)]),
            rule(
                "",
                &[
                    Ether(EtherType::Ipv4),
                    In(true, vec![IifName, EtherSource, Source(V4)], Set::Source(V4)),
                    Do(Data::Accept),
                ],
            ),
            rule(
                "",
                &[
                    Ether(EtherType::Arp),
                    In(true, vec![IifName, ArpSenderMac, ArpSenderAddress], Set::Source(V4)),
                    Do(Data::Accept),
                ],
            ),
            drop("a container advertises itself as router", &[Ether(EtherType::Ipv6), Icmp6Type(ROUTER_ADVERTISEMENT)]),
            drop("a container redirects others", &[Ether(EtherType::Ipv6), Icmp6Type(REDIRECT)]),
            drop("a container asks as router who listens", &[Ether(EtherType::Ipv6), Icmp6Type(LISTENER_QUERY)]),
            drop("a container answers as DHCPv6 server", &[Ether(EtherType::Ipv6), Part::UdpSource(547)]),
            drop("a container answers as DHCPv6 server", &[Ether(EtherType::Ipv6), Part::UdpDestination(546)]),
            rule(
                "",
                &[
                    Ether(EtherType::Ipv6),
                    Icmp6Type(NEIGHBOUR_ADVERTISEMENT),
                    In(true, vec![IifName, EtherSource, NeighbourTarget], Set::Source(V6)),
                    In(true, vec![IifName, EtherSource, Source(V6)], Set::Source(V6)),
                    Do(Data::Accept),
                ],
            ),
            drop(
                "a container answers for another's address",
                &[Ether(EtherType::Ipv6), Icmp6Type(NEIGHBOUR_ADVERTISEMENT)],
            ),
            // Any of the above could be in fragments of which the first ends before it says so. Neighbour discovery counts
            // with the highest hop limit alone (RFC 4861 §3.1), and in fragments not at all (RFC 6980).
            rule(
                "",
                &[
                    Ether(EtherType::Ipv6),
                    Part::NotIcmp6Type(ROUTER_ADVERTISEMENT),
                    In(true, vec![IifName, EtherSource, Source(V6)], Set::Source(V6)),
                    Do(Data::Accept),
                ],
            ),
            drop("neighbour discovery in fragments", &[Ether(EtherType::Ipv6), Part::HopLimit6(255), L4Proto(ICMP6)]),
            rule(
                "",
                &[
                    Ether(EtherType::Ipv6),
                    HasL4Proto,
                    In(true, vec![IifName, EtherSource, Source(V6)], Set::Source(V6)),
                    Do(Data::Accept),
                ],
            ),
            rule(
                "duplicate address detection",
                &[
                    Ether(EtherType::Ipv6),
                    Part::FromUnspecified6,
                    Icmp6Type(NEIGHBOUR_SOLICITATION),
                    In(true, vec![IifName, EtherSource, NeighbourTarget], Set::Source(V6)),
                    Do(Data::Accept),
                ],
            ),
            drop("not this container's MAC or address", &[]),
        ],
    }
}
