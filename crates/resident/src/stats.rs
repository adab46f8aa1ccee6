//! What the resident counts: for people (`portolan stats`) and for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use portolan_cluster::Passage;
use portolan_dns::Tally;
use portolan_kernel::conntrack::{self, Filter};
use portolan_kernel::host::{Taken, took_shortcuts};
use portolan_kernel::netlink::{NETFILTER, NetlinkError, ROUTE, Socket};
use portolan_kernel::rtnl::link::{self, Counters};
use portolan_model::Id;
use serde::{Deserialize, Serialize};

use crate::cluster::{HostRow, LinkRow, PathRow, WayRow};
use crate::feed::Feed;
use crate::{dns, proxy, repair};

/// What one container did on one network, since it is there. Directions are the container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStats {
    /// The container.
    pub container: String,
    /// The network.
    pub network: String,
    /// Bytes it received.
    pub rx_bytes: u64,
    /// Bytes it sent.
    pub tx_bytes: u64,
    /// Packets it received.
    pub rx_packets: u64,
    /// Packets it sent.
    pub tx_packets: u64,
    /// Packets dropped at its port, of both directions.
    pub dropped: u64,
    /// Connections it has now, as the kernel tracks them.
    pub connections: u64,
    /// Questions about names it asked.
    pub questions: u64,
}

/// How long commands of one kind took, from their start until they were in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many there were.
    pub count: u64,
    /// Microseconds in all.
    pub micros: u64,
}

/// What is counted by endpoint.
///
/// # Errors
/// When the kernel's counters cannot be read.
pub fn endpoints(feed: &Feed, dns: &dns::Stats) -> Result<Vec<EndpointStats>, NetlinkError> {
    let counters = link::counters(&mut Socket::open(ROUTE)?)?;
    let mut connections: BTreeMap<IpAddr, u64> = BTreeMap::new();
    // A kernel without connection tracking has none to count.
    for entry in conntrack::dump(&mut Socket::open(NETFILTER)?, Filter::default()).unwrap_or_default() {
        for end in entry.ends() {
            *connections.entry(end).or_default() += 1;
        }
    }
    let questions: BTreeMap<Id, Tally> = dns.by_endpoint.iter().map(|seen| (seen.id, seen.tally)).collect();
    let mut taken: BTreeMap<Id, BTreeMap<IpAddr, Taken>> = BTreeMap::new();
    for (id, network) in feed.networks().iter().filter(|(_, network)| network.overlay.is_some()) {
        taken.insert(*id, took_shortcuts(&network.bridge)?.into_iter().collect());
    }
    let mut all = Vec::new();
    for container in feed.containers().values() {
        for endpoint in &container.endpoints {
            // What the host's end receives, the container has sent.
            let Counters { rx_packets, mut tx_packets, rx_bytes, mut tx_bytes, rx_dropped, tx_dropped } =
                counters.get(endpoint.host_end.as_str()).copied().unwrap_or_default();
            // What came by a shortcut, that end never saw.
            let by_shortcut = taken.get(&endpoint.network);
            for Taken { packets, bytes } in endpoint.addresses.iter().filter_map(|address| by_shortcut?.get(address)) {
                (tx_packets, tx_bytes) = (tx_packets + packets, tx_bytes + bytes);
            }
            all.push(EndpointStats {
                container: container.name.clone(),
                network: feed.networks().get(&endpoint.network).map_or_else(String::new, |n| n.name.to_string()),
                rx_bytes: tx_bytes,
                tx_bytes: rx_bytes,
                rx_packets: tx_packets,
                tx_packets: rx_packets,
                dropped: rx_dropped + tx_dropped,
                connections: endpoint.addresses.iter().filter_map(|address| connections.get(address)).sum(),
                questions: questions.get(&endpoint.id).map_or(0, |tally| tally.local + tally.forwarded + tally.refused),
            });
        }
    }
    Ok(all)
}

/// Everything that was counted.
#[derive(Debug)]
pub struct Everything<'a> {
    /// By endpoint.
    pub endpoints: &'a [EndpointStats],
    /// How many networks there are.
    pub networks: usize,
    /// The name server's.
    pub dns: &'a dns::Stats,
    /// The proxy's.
    pub proxy: &'a [proxy::Seen],
    /// The repairing thread's.
    pub repair: Option<&'a repair::Stats>,
    /// The hosts of the cluster, if this one is in one.
    pub hosts: &'a [HostRow],
    /// How often a container was kept from beginning more connections.
    pub held_back: u64,
    /// How long commands took, by their names.
    pub verbs: &'a BTreeMap<String, Latency>,
}

/// The text format of Prometheus, version 0.0.4.
pub fn prometheus(all: &Everything<'_>) -> String {
    let mut text = Text::default();
    text.one("portolan_info", "gauge", "The version that runs", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.one("portolan_networks", "gauge", "Networks", &[], all.networks as u64);
    text.one("portolan_endpoints", "gauge", "Places of containers on networks", &[], all.endpoints.len() as u64);
    type Value = fn(&EndpointStats) -> u64;
    let each: [(&str, &str, &str, Value); 7] = [
        ("receive_bytes_total", "counter", "Bytes received by the container", |e| e.rx_bytes),
        ("transmit_bytes_total", "counter", "Bytes sent by the container", |e| e.tx_bytes),
        ("receive_packets_total", "counter", "Packets received by the container", |e| e.rx_packets),
        ("transmit_packets_total", "counter", "Packets sent by the container", |e| e.tx_packets),
        ("dropped_packets_total", "counter", "Packets dropped at the container's port", |e| e.dropped),
        ("connections", "gauge", "Tracked connections of the container", |e| e.connections),
        ("dns_questions_total", "counter", "Questions about names by the container", |e| e.questions),
    ];
    for (name, kind, help, value) in each {
        let name = format!("portolan_endpoint_{name}");
        text.head(&name, kind, help);
        for endpoint in all.endpoints {
            let labels = [("container", endpoint.container.as_str()), ("network", &endpoint.network)];
            text.sample(&name, &labels, value(endpoint));
        }
    }
    let dns = all.dns;
    text.one("portolan_dns_questions_total", "counter", "Questions about names", &[], dns.questions);
    text.head("portolan_dns_answers_total", "counter", "Questions by how they were answered");
    for (how, count) in [
        ("local", dns.local),
        ("forwarded", dns.forwarded),
        ("refused", dns.refused),
        ("malformed", dns.malformed),
        ("unsent", dns.unsent),
    ] {
        text.sample("portolan_dns_answers_total", &[("how", how)], count);
    }
    text.head("portolan_dns_upstream_failures_total", "counter", "Questions that an upstream did not answer");
    for upstream in &dns.upstreams {
        let address = upstream.address.to_string();
        text.sample("portolan_dns_upstream_failures_total", &[("upstream", &address)], upstream.failed);
    }
    text.head("portolan_dns_upstream_seconds", "gauge", "How long an upstream takes to answer");
    for upstream in &dns.upstreams {
        let address = upstream.address.to_string();
        let seconds = format!("{:.6}", upstream.latency.as_secs_f64());
        text.sample("portolan_dns_upstream_seconds", &[("upstream", &address)], seconds);
    }
    hosts(&mut text, all.hosts);
    type Proxied = fn(&proxy::Seen) -> u64;
    let each: [(&str, &str, &str, Proxied); 4] = [
        ("connections_total", "counter", "Connections passed on by the proxy", |seen| seen.connections),
        ("connections", "gauge", "Connections that the proxy passes on now", |seen| seen.open),
        ("receive_bytes_total", "counter", "Bytes passed on to the container", |seen| seen.bytes_in),
        ("transmit_bytes_total", "counter", "Bytes passed on from the container", |seen| seen.bytes_out),
    ];
    for (name, kind, help, value) in each {
        let name = format!("portolan_proxy_{name}");
        text.head(&name, kind, help);
        for seen in all.proxy {
            let listen = seen.rule.place.listen.to_string();
            text.sample(&name, &[("owner", seen.rule.owner.as_str()), ("listen", &listen)], value(seen));
        }
    }
    if let Some(repair) = all.repair {
        use std::sync::atomic::Ordering::Relaxed;
        let (repairs, reaped) = (repair.repairs.load(Relaxed), repair.reaped.load(Relaxed));
        text.one("portolan_repairs_total", "counter", "Times that something was missing and put back", &[], repairs);
        text.one("portolan_reaped_total", "counter", "Containers whose namespace died", &[], reaped);
        let last = format!("{:.6}", repair.last_micros.load(Relaxed) as f64 / 1e6);
        text.one("portolan_repair_seconds", "gauge", "How long the last repair took", &[], last);
    }
    let help = "Times that a container was kept from more connections than its share";
    text.one("portolan_held_back_total", "counter", help, &[], all.held_back);
    text.head("portolan_command_seconds", "summary", "How long commands took, until they were in force");
    for (verb, latency) in all.verbs {
        let labels = [("command", verb.as_str())];
        let seconds = format!("{:.6}", latency.micros as f64 / 1e6);
        text.sample("portolan_command_seconds_sum", &labels, seconds);
        text.sample("portolan_command_seconds_count", &labels, latency.count);
    }
    text.0
}

/// Hosts of the cluster, and what the encrypted link knows of them.
fn hosts(text: &mut Text, hosts: &[HostRow]) {
    if hosts.is_empty() {
        return;
    }
    text.head("portolan_cluster_host_up", "gauge", "Whether a host of the cluster says that it runs");
    for host in hosts {
        text.sample("portolan_cluster_host_up", &[("host", host.name.as_str())], u8::from(host.state == "up"));
    }
    type Value = fn(&LinkRow) -> Option<u64>;
    let each: [(&str, &str, &str, Value); 3] = [
        ("receive_bytes_total", "counter", "Bytes received from a host by the encrypted link", |link| {
            Some(link.received)
        }),
        ("transmit_bytes_total", "counter", "Bytes sent to a host by the encrypted link", |link| Some(link.sent)),
        ("handshake_age_seconds", "gauge", "Time since keys were agreed on with a host", |link| link.handshake_age),
    ];
    for (name, kind, help, value) in each {
        let name = format!("portolan_link_{name}");
        text.head(&name, kind, help);
        for (host, link) in hosts.iter().filter_map(|host| Some((host, host.link.as_ref()?))) {
            if let Some(value) = value(link) {
                text.sample(&name, &[("host", host.name.as_str())], value);
            }
        }
    }
    let ways: Vec<(&HostRow, &WayRow)> = hosts.iter().filter_map(|host| Some((host, host.way.as_ref()?))).collect();
    if !ways.is_empty() {
        text.head("portolan_link_way", "gauge", "By which way a host is sent to by the encrypted link");
    }
    for (host, way) in ways {
        let (way, relay) = match way {
            WayRow::Direct => ("direct", ""),
            WayRow::Seen => ("seen", ""),
            WayRow::Meet => ("meet", ""),
            WayRow::Relay { relay, .. } => ("relay", relay.as_str()),
            WayRow::Nothing => ("nothing", ""),
        };
        text.sample("portolan_link_way", &[("host", host.name.as_str()), ("way", way), ("relay", relay)], 1);
    }
    paths(text, hosts);
}

/// What this host finds of the paths to others.
fn paths(text: &mut Text, hosts: &[HostRow]) {
    type Value = fn(&PathRow) -> Option<f64>;
    let each: [(&str, &str, Value); 4] = [
        ("reached", "Whether packets come back from a host by the tunnels between containers", |path| {
            match path.state {
                Passage::Unknown => None,
                Passage::Passes | Passage::Narrow | Passage::Corrupt => Some(1.0),
                Passage::Blocked | Passage::Silent => Some(0.0),
            }
        }),
        ("rtt_seconds", "Time that a small packet takes to a host and back, smoothed", |path| path.rtt),
        ("loss_ratio", "Part of the small packets of the last minute that did not come back from a host", |path| {
            path.loss
        }),
        ("full_size_ok", "Whether packets as large as the MTU says get to a host", |path| {
            path.full_size.map(|is_so| f64::from(u8::from(is_so)))
        }),
    ];
    for (name, help, value) in each {
        let name = format!("portolan_peer_{name}");
        let all = hosts.iter().flat_map(|host| host.paths.iter().map(move |path| (host, path)));
        let samples: Vec<_> = all.filter_map(|(host, path)| Some((host, path.encrypted, value(path)?))).collect();
        if samples.is_empty() {
            continue;
        }
        text.head(&name, "gauge", help);
        for (host, encrypted, value) in samples {
            let encrypted = if encrypted { "true" } else { "false" };
            text.sample(&name, &[("host", host.name.as_str()), ("encrypted", encrypted)], value);
        }
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        if !labels.is_empty() {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            let _ = write!(self.0, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.sample(name, labels, value);
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
