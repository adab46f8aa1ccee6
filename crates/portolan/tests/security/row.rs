//! What is known of an attack, and the page of them.

use std::fmt::Write as _;

/// An attack that was made, here and where the protection is off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    /// Of the heading in [`SUBJECTS`].
    pub(crate) number: u8,
    /// What was sent, by whom, to whom.
    pub(crate) attack: &'static str,
    /// Where the protection is off, and what came of it there.
    pub(crate) control: &'static str,
    /// What came of it here.
    pub(crate) outcome: String,
}

/// By number: what goes wrong elsewhere, and where that was told.
const SUBJECTS: [(u8, &str, &str); 12] = [
    (
        1,
        "A container plays router or DHCP server",
        "CVE-2020-10749, CVE-2020-13401, CVE-2020-11091; RFC 6980, RFC 7113",
    ),
    (2, "Loopback addresses from outside", "CVE-2020-8558, moby#41872"),
    (3, "Closed ports while the rules are away", "CVE-2025-54388, moby#45610"),
    (4, "Isolation while the rules are away", "CVE-2025-54410"),
    (5, "Traffic that passes through is stolen", "CVE-2025-67499"),
    (6, "One published port takes another's traffic", "CVE-2019-9946"),
    (12, "IPv6 on a network without it", "CVE-2024-32473"),
    (15, "Clients that look local", "CVE-2021-20199, podman#24045"),
    (17, "A container speaks as another", "moby#36355, kubernetes#43953, cilium#27955"),
    (18, "Gateway addresses and direct routes", "moby PR#52224"),
    (0, "Frames that no filter looks into", "bridge netfilter of the kernel"),
    (FAIR, "One container takes what is there for all", "`nf_conntrack_max`; aardvark-dns CVE-2024-8418"),
];

/// What has no number among the holes that were found elsewhere.
pub(crate) const FAIR: u8 = 100;

const HEAD: &str = "# Attacks, and what comes of them

Every attack below is made by `crates/portolan/tests/security`, with real packets between namespaces, and once more where the
protection is off: that control shows that the attack bites. `PORTOLAN_BLESS=1 cargo test -p portolan --test security` writes
this page, and the same test fails when it says something else. What concerns names, files, programs and the API is in
[security-services.md](security-services.md).
";

const FOOT: &str = "
## Elsewhere

One table of who reaches whom holds for every driver (CVE-2024-28248, CVE-2026-33726): `crates/portolan/tests/matrix.rs` fills
it over TCP and ICMP for `bridge`, `ptp` and mixtures of both, with and without `bridge-nf-call-iptables` on bridges, over UDP for
`bridge` and for `ptp`, over SCTP for `bridge`; `crates/portolan/tests/firewall.rs` for `nftables` and `iptables` with either
backend. That a network without a bridge passes no forged source is in `crates/portolan/tests/ptp.rs`. The guard, and so most of
what is said above of frames, is for `nftables` alone: [firewall.md](firewall.md#without-the-guard), and
`crates/portolan/tests/firewall.rs` for what passes with `iptables` and `none`.

Networks over several hosts: what is encrypted is not to be read on the LAN over starts, kills of daemons and of the process that
encrypts, removed interfaces, flushed rules and a host that leaves, and while keys change, with a network that is not encrypted as
the control (`crates/portolan/tests/cluster/sealed.rs`; CVE-2023-28840 to 28842, CVE-2024-25630 and their like). Each host has a key
of its own (CVE-2024-28860), which [changes](cluster.md#keys-change) when somebody wants it, and may have a
[secret](cluster.md#a-secret-in-common) without which writing into etcd lets nobody in (`secret.rs`). The ends of tunnels take
packets of hosts of the cluster alone, and containers send nothing there, neither at home nor at other hosts (`forged.rs`, with a
host's own packet as the control; GHSA-vwm3-crmr-xfxw). Without encryption, whoever is between hosts can still forge their addresses.
";

/// The rows as Markdown, each under its subject, in the order they were found.
pub(crate) fn page(rows: Vec<Row>) -> String {
    let mut text = HEAD.to_owned();
    for (number, title, source) in SUBJECTS {
        let of_it: Vec<&Row> = rows.iter().filter(|row| row.number == number).collect();
        assert!(!of_it.is_empty(), "no attack of `{title}`");
        let label = if number == 0 || number == FAIR { String::new() } else { format!("S{number}: ") };
        write!(text, "\n## {label}{title}\n\n{source}.\n\n| Attack | Control | Here |\n|---|---|---|\n").unwrap();
        for Row { attack, control, outcome, .. } in of_it {
            writeln!(text, "| {attack} | {control} | {outcome} |").unwrap();
        }
    }
    assert!(rows.iter().all(|row| SUBJECTS.iter().any(|(number, ..)| *number == row.number)));
    text + FOOT
}
