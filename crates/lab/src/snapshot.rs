//! What a network namespace holds, as text to compare.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_kernel::netlink::{NETFILTER, ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::probe::nft_tables;
use portolan_kernel::rtnl::{Family, addr, link, neigh, route, rule};

use crate::{InNetns, eventually};

/// Sysctls that change without anybody configuring anything.
const VOLATILE: [&str; 2] = ["/nf_conntrack_count", "/tcp_fastopen_key"];

/// Lines about links, addresses, routes, rules, static neighbours and forwarding entries, nftables
/// tables and settings, sorted within each kind. Counters, learnt entries and lifetimes are left
/// out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    lines: Vec<String>,
}

impl Snapshot {
    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Takes a snapshot of the namespace of `place`.
///
/// # Errors
/// When the kernel refuses to list something.
pub fn snapshot(place: &impl InNetns) -> Result<Snapshot> {
    with_netns(place.netns(), take)?
}

/// Takes a snapshot once IPv6 has settled: the link-local addresses of interfaces `eth*`, and the routes to all addresses
/// appear one by one, a little after links and addresses.
///
/// # Errors
/// When the kernel refuses to list something, or they have not settled after `deadline`.
pub fn settled(place: &impl InNetns, deadline: Duration) -> Result<Snapshot> {
    let mut last = snapshot(place)?;
    let mut has_settled = is_settled(&last);
    if !has_settled {
        has_settled = eventually(deadline, || {
            if let Ok(now) = snapshot(place) {
                last = now;
            }
            is_settled(&last)
        });
    }
    ensure!(has_settled, "IPv6 does not settle:\n{last}");
    Ok(last)
}

fn is_settled(snapshot: &Snapshot) -> bool {
    let lines = snapshot.lines();
    let of_kind = |kind: &'static str| {
        let words = lines.iter().map(|line| line.split(' ').collect::<Vec<&str>>());
        words.filter(move |words| words[0] == kind)
    };
    // `address ADDRESS/LENGTH dev NAME …`
    let addresses: Vec<Vec<&str>> = of_kind("address").filter(|address| address[1].contains(':')).collect();
    let is_routed = |address: &[&str]| {
        let bare = address[1].split('/').next().unwrap_or_default();
        lines.iter().any(|line| line.starts_with(&format!("route {bare}/128 table 255 Local dev {}", address[3])))
    };
    // `link NAME …`
    let mut lan = of_kind("link").filter(|link| link[1].starts_with("eth") && link.contains(&"up"));
    let has_link_local = |name| addresses.iter().any(|address| address[3] == name && address[1].starts_with("fe80:"));
    lan.all(|link| has_link_local(link[1])) && addresses.iter().all(|address| is_routed(address))
}

/// What changed: lines only `before` has, marked `-`, and lines only `after` has, marked `+`.
pub fn diff(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let mut balance: BTreeMap<&str, i32> = BTreeMap::new();
    for line in &before.lines {
        *balance.entry(line).or_default() -= 1;
    }
    for line in &after.lines {
        *balance.entry(line).or_default() += 1;
    }
    let mut changes = Vec::new();
    for (line, count) in balance {
        let mark = if count < 0 { '-' } else { '+' };
        changes.extend((0..count.unsigned_abs()).map(|_| format!("{mark} {line}")));
    }
    changes
}

fn take() -> Result<Snapshot> {
    let mut lines = Vec::new();
    let mut socket = Socket::open(ROUTE)?;

    let links = link::dump(&mut socket).context("list links")?;
    let names: BTreeMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();
    let name_of = |index: u32| names.get(&index).cloned().unwrap_or_else(|| format!("if{index}"));
    section(
        &mut lines,
        links.iter().map(|link| {
            let mut text = format!("link {} {} mtu {}", link.name, link.kind.as_deref().unwrap_or("device"), link.mtu);
            if let Some(mac) = link.mac {
                text += &format!(" mac {}", mac.map(|byte| format!("{byte:02x}")).join(":"));
            }
            text += if link.up { " up" } else { " down" };
            // Others are the kernel's choice.
            if link.qdisc.as_deref() == Some("tbf") {
                text += " tbf";
            }
            if let Some(master) = link.master {
                text += &format!(" master {}", name_of(master));
            }
            if link.group != 0 {
                text += &format!(" group {}", link.group);
            }
            if let Some(alias) = &link.alias {
                text += &format!(" alias {alias:?}");
            }
            if let Some(brport) = &link.brport {
                text += &format!(" {brport:?}");
            }
            text
        }),
    );

    let addresses = addr::dump(&mut socket, None).context("list addresses")?;
    section(
        &mut lines,
        addresses.iter().map(|address| {
            let flags = address.flags & !addr::TENTATIVE;
            format!("address {}/{} dev {} flags {flags:#x}", address.addr, address.prefix_len, name_of(address.ifindex))
        }),
    );

    let routes = route::dump(&mut socket).context("list routes")?;
    section(
        &mut lines,
        routes.iter().map(|route| {
            let mut text = format!("route {}/{} table {} {:?}", route.dst, route.prefix_len, route.table, route.kind);
            if let Some(gateway) = route.gateway {
                text += &format!(" via {gateway}");
            }
            if let Some(oif) = route.oif {
                text += &format!(" dev {}", name_of(oif));
            }
            if let Some(metric) = route.metric {
                text += &format!(" metric {metric}");
            }
            if let Some(prefsrc) = route.prefsrc {
                text += &format!(" src {prefsrc}");
            }
            if let Some(mtu) = route.mtu {
                text += &format!(" mtu {mtu}");
            }
            for nexthop in &route.nexthops {
                text += &format!(" nexthop {:?} dev {:?}", nexthop.gateway, nexthop.oif.map(name_of));
            }
            text += &format!(" proto {}", route.protocol);
            text
        }),
    );

    for family in [Family::V4, Family::V6] {
        let rules = rule::dump(&mut socket, family).context("list rules")?;
        section(&mut lines, rules.iter().map(|rule| format!("rule {rule:?}")));
    }

    let neighbours = neigh::dump(&mut socket, None).context("list neighbours")?;
    section(
        &mut lines,
        neighbours
            .iter()
            .filter(|neighbour| neighbour.state & neigh::NUD_PERMANENT != 0)
            .map(|n| format!("neighbour {} dev {} mac {:02x?}", n.addr, name_of(n.ifindex), n.mac.unwrap_or_default())),
    );
    for bridge in links.iter().filter(|link| link.bridge.is_some()) {
        let entries = neigh::fdb_dump(&mut socket, bridge.index).context("list forwarding entries")?;
        section(
            &mut lines,
            entries
                .iter()
                .filter(|entry| entry.is_static())
                .map(|entry| format!("fdb {} mac {:02x?} dev {}", bridge.name, entry.mac, name_of(entry.port))),
        );
    }

    let tables = nft_tables(&mut Socket::open(NETFILTER)?).context("list nftables tables")?;
    section(&mut lines, tables.iter().map(|(family, name)| format!("nftables family {family} table {name}")));

    let mut settings = Vec::new();
    collect_settings(Path::new("/proc/sys/net"), &mut settings);
    section(&mut lines, settings);
    Ok(Snapshot { lines })
}

fn section(lines: &mut Vec<String>, items: impl IntoIterator<Item = String>) {
    let from = lines.len();
    lines.extend(items);
    lines[from..].sort();
}

/// Reads all settings below `dir`. What cannot be read (write-only, secret, or gone with its
/// interface meanwhile) is left out.
fn collect_settings(dir: &Path, settings: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_settings(&path, settings);
        } else if !VOLATILE.iter().any(|end| path.ends_with(end.trim_start_matches('/')))
            && let Ok(value) = fs::read_to_string(&path)
        {
            let name = path.strip_prefix("/proc/sys").unwrap_or(&path);
            settings.push(format!("sysctl {} = {}", name.display(), value.trim_end()));
        }
    }
}
