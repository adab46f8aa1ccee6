//! The chains of ours, what never changes in them, and where they are called from.

use portolan_model::Family;

use crate::firewall::Firewall;
use crate::object::Groups;

/// A table of iptables(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Before connections are tracked.
    Raw,
    /// What passes.
    Filter,
    /// Translation.
    Nat,
}

impl Table {
    /// Those that we have chains in, in the order they are written: what lets nothing pass comes before what leads in.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Filter, Self::Nat];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

macro_rules! chains {
    ($($(#[$doc:meta])* $variant:ident = $table:ident $name:literal,)*) => {
        /// A chain of ours. What differs by network, container or port is in chains of its own, where order is no matter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Chain {
            $($(#[$doc])* $variant,)*
        }

        impl Chain {
            /// Every chain, in the order they are declared.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The table it is in.
            pub const fn table(self) -> Table {
                match self {
                    $(Self::$variant => Table::$table,)*
                }
            }

            /// Its name behind the root's prefix, at most ten characters.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

chains! {
    /// From PREROUTING: forged sources, loopback destinations, questions about names.
    Early = Raw "EARLY",
    /// Networks whose sources are checked by route.
    Checked = Raw "CHECKED",
    /// Questions that are answered on another port are translated there, so they are tracked.
    Redirected = Raw "REDIRECTED",
    /// Questions to other gateways are not tracked.
    Names = Raw "NAMES",
    /// From OUTPUT: answers about names.
    Answer = Raw "ANSWER",
    /// Answers of gateways are not tracked.
    Answers = Raw "ANSWERS",
    /// From FORWARD.
    Forward = Filter "FORWARD",
    /// Between two interfaces that are not ours, from a closed one.
    Transit = Filter "TRANSIT",
    /// To a closed one.
    Closed = Filter "CLOSED",
    /// Inside a network.
    Within = Filter "WITHIN",
    /// Inside a network with ICC off.
    WithinClosed = Filter "WITHIN-OFF",
    /// From trusted interfaces of the host.
    Trusted = Filter "TRUSTED",
    /// Out of a network.
    Leave = Filter "LEAVE",
    /// Towards a network or the world.
    Enter = Filter "ENTER",
    /// From networks that are not strict.
    Open = Filter "OPEN",
    /// To networks that are not strict.
    NotStrict = Filter "NOT-STRICT",
    /// To networks that are not isolated.
    IsolateFalse = Filter "ISO-FALSE",
    /// Into a network, by its mode.
    Into = Filter "INTO",
    /// Into a network of mode `nat`.
    IntoNat = Filter "INTO-NAT",
    /// Into a network of mode `routed`.
    IntoRouted = Filter "INTO-ROUTE",
    /// Open ports of networks of mode `routed`.
    Ports = Filter "PORTS",
    /// From INPUT.
    Input = Filter "INPUT",
    /// Gateway addresses answer their own network only.
    Gate = Filter "GATE",
    /// From internal networks to the host.
    ToHost = Filter "TO-HOST",
    /// The same, where the gateway answers.
    ToHostInternal = Filter "TO-HOST-IN",
    /// Ports that the proxy listens on.
    Proxied = Filter "PROXIED",
    /// From internal networks to their gateway.
    OwnGateway = Filter "OWN-GW",
    /// From any network to its gateway.
    AnyGateway = Filter "ANY-GW",
    /// What a gateway answers whatever other rules of the host say: names.
    Gateway = Filter "GW",
    /// From PREROUTING, what is addressed to the host.
    NatIn = Nat "NAT-IN",
    /// From outside: not to gateway addresses.
    Gateways = Nat "GATEWAYS",
    /// From OUTPUT, what the host sends to itself.
    NatOut = Nat "NAT-OUT",
    /// Published ports.
    Publish = Nat "PUBLISH",
    /// On one address.
    Port = Nat "PORT",
    /// Ranges on one address.
    Range = Nat "RANGE",
    /// On every address.
    AnyPort = Nat "ANY-PORT",
    /// Ranges on every address.
    AnyRange = Nat "ANY-RANGE",
    /// From POSTROUTING.
    NatSource = Nat "NAT-SRC",
    /// Through published ports of the own network.
    Hairpin = Nat "HAIRPIN",
    /// To the world from a chosen address.
    Snat = Nat "SNAT",
    /// To the world from the host's address.
    Masquerade = Nat "MASQ",
}

/// What names and numbers a root's rules are made of.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
    groups: Groups,
}

impl Names {
    /// Those of `firewall`: `PORTOLAN-FORWARD`, or `PORTOLAN-1A2B3C4D-FORWARD` of a root with a number. A chain's name has
    /// at most 28 characters (XT_EXTENSION_MAXNAMELEN, include/uapi/linux/netfilter/x_tables.h).
    pub(super) fn of(firewall: &Firewall) -> Self {
        Self { prefix: firewall.name.to_uppercase().replace('_', "-"), groups: Groups::of(&firewall.name) }
    }

    /// What the names of this root's chains begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The full name of `chain`.
    pub(super) fn chain(&self, chain: Chain) -> String {
        format!("{}-{}", self.prefix, chain.name())
    }

    /// `-j` to `chain`, which comes back.
    pub(super) fn jump(&self, chain: Chain) -> String {
        format!("-j {}", self.chain(chain))
    }

    /// `-g` to `chain`, which comes back to whoever called the chain that this is in.
    pub(super) fn goto(&self, chain: Chain) -> String {
        format!("-g {}", self.chain(chain))
    }

    /// Where our chains are called from: table, chain of the table, and the rule there.
    pub(super) fn calls(&self) -> [(Table, &'static str, String); 7] {
        let local = |chain| format!("-m addrtype --dst-type LOCAL {}", self.jump(chain));
        [
            (Table::Raw, "PREROUTING", self.jump(Chain::Early)),
            (Table::Raw, "OUTPUT", self.jump(Chain::Answer)),
            (Table::Filter, "FORWARD", self.jump(Chain::Forward)),
            (Table::Filter, "INPUT", self.jump(Chain::Input)),
            (Table::Nat, "PREROUTING", local(Chain::NatIn)),
            (Table::Nat, "OUTPUT", local(Chain::NatOut)),
            (Table::Nat, "POSTROUTING", self.jump(Chain::NatSource)),
        ]
    }

    /// The rules of `chain` that never change, in order; they come after all others.
    pub(super) fn constants(&self, chain: Chain, family: Family) -> Vec<String> {
        let bridges = self.groups.bridges;
        let from_ours = format!("-m devgroup --src-group {bridges:#x}");
        let to_ours = format!("-m devgroup --dst-group {bridges:#x}");
        let to_others = format!("-m devgroup ! --dst-group {bridges:#x}");
        let v4 = family == Family::V4;
        let names = |port: &str, group: &str, to: Chain| {
            ["udp", "tcp"].map(|p| format!("-p {p} -m {p} {port} 53 {group} {}", self.jump(to))).to_vec()
        };
        let translated = "-m conntrack --ctstate DNAT -j ACCEPT".to_owned();
        let drop = || "-j DROP".to_owned();
        match chain {
            Chain::Early => {
                let mut rules = Vec::new();
                if v4 {
                    rules.extend(["-s", "-d"].map(|side| format!("{side} 127.0.0.0/8 {from_ours} -j DROP")));
                }
                rules.push(self.jump(Chain::Checked));
                rules.extend(names("--dport", &from_ours, Chain::Redirected));
                rules
            }
            Chain::Redirected => vec![self.goto(Chain::Names)],
            Chain::Answer => names("--sport", &to_ours, Chain::Answers),
            Chain::Forward => vec![
                format!(
                    "-m devgroup ! --src-group {bridges:#x} ! --dst-group {bridges:#x} {}",
                    self.goto(Chain::Transit)
                ),
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
                "-m conntrack --ctstate INVALID -j DROP".to_owned(),
                self.jump(Chain::Within),
                self.jump(Chain::Trusted),
                format!("{from_ours} {}", self.jump(Chain::Leave)),
                format!("{from_ours} -j DROP"),
                self.goto(Chain::Enter),
            ],
            Chain::Enter => {
                vec![format!("{to_others} -j ACCEPT"), self.jump(Chain::Open), self.jump(Chain::Into), drop()]
            }
            Chain::WithinClosed | Chain::IntoNat => vec![translated, drop()],
            Chain::IntoRouted => {
                let ping = if v4 { "icmp" } else { "ipv6-icmp" };
                vec![translated, format!("-p {ping} -j ACCEPT"), self.jump(Chain::Ports), drop()]
            }
            Chain::Input => vec![
                format!("! -i lo {}", self.jump(Chain::Gate)),
                self.jump(Chain::ToHost),
                format!("{from_ours} {}", self.jump(Chain::AnyGateway)),
            ],
            Chain::ToHostInternal => {
                let mut rules = vec![self.jump(Chain::Proxied)];
                if !v4 {
                    // Neighbour solicitation and advertisement (RFC 4861 §4.3, §4.4).
                    rules
                        .extend([135, 136].map(|kind| format!("-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j ACCEPT")));
                }
                rules.push(self.goto(Chain::OwnGateway));
                rules
            }
            Chain::OwnGateway => vec![drop()],
            Chain::Gateway => {
                let asked = ["udp", "tcp"].map(|p| format!("-p {p} -m {p} --dport 53 -j ACCEPT"));
                // A question that was asked there and is answered on another port.
                let redirected = "-m conntrack --ctstate DNAT --ctorigdstport 53 -j ACCEPT".to_owned();
                asked.into_iter().chain([redirected]).collect()
            }
            Chain::NatIn => {
                let mut rules = Vec::new();
                if v4 {
                    rules.push("-d 127.0.0.0/8 -j RETURN".to_owned());
                }
                rules.push(format!("{from_ours} {}", self.goto(Chain::Publish)));
                rules.push(self.goto(Chain::Gateways));
                rules
            }
            Chain::Gateways => vec![self.goto(Chain::Publish)],
            Chain::NatOut => {
                let mut rules = Vec::new();
                if !v4 {
                    // No route leads from there to a container.
                    rules.push("-d ::1/128 -j RETURN".to_owned());
                }
                rules.push(self.goto(Chain::Publish));
                rules
            }
            // One address before every address, one port before ranges.
            Chain::Publish => {
                [Chain::Port, Chain::Range, Chain::AnyPort, Chain::AnyRange].map(|to| self.jump(to)).to_vec()
            }
            Chain::NatSource => {
                let mut rules = vec![format!("-m conntrack --ctstate DNAT {}", self.jump(Chain::Hairpin))];
                if v4 {
                    rules.push(format!("-s 127.0.0.0/8 {to_ours} -j MASQUERADE"));
                }
                // Into a network the client's address is kept.
                rules.push(format!("{to_ours} -j RETURN"));
                rules.push(self.jump(Chain::Snat));
                rules.push(self.jump(Chain::Masquerade));
                rules
            }
            _ => Vec::new(),
        }
    }
}
