//! The flags about networks and ports that `run` and `attach` share.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use portolan_engine::{BandwidthChange, EndpointRequest};
use portolan_model::{Burst, ExposedPort, Limit, Link, Mac, Name, PublishSpec};

use crate::failure::{self, Refused};
use crate::spec::{self, NetworkSpec};

/// Networks, addresses and names of a container.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Network options")]
pub(crate) struct EndpointArgs {
    /// Network to be on: NAME, or name=NAME with alias=, ip=, ip6=, mac-address=, gw-priority=, ifname=, bandwidth-in=, bandwidth-out=, bandwidth-burst= after commas; repeat for several. `none` for loopback only; `run` also takes `host` and container:NAME
    #[arg(long = "network", visible_alias = "net", value_name = "NETWORK")]
    networks: Vec<NetworkSpec>,
    /// IPv4 address to have on the first network
    #[arg(long, value_name = "IP", value_parser = spec::ipv4)]
    ip: Option<Ipv4Addr>,
    /// IPv6 address to have on the first network
    #[arg(long, value_name = "IP", value_parser = spec::ipv6)]
    ip6: Option<Ipv6Addr>,
    /// MAC address to have on the first network
    #[arg(long, value_name = "MAC")]
    mac_address: Option<Mac>,
    /// One more name on the first network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<Name>,
    /// Another container of the first network, under a name that only this one knows
    #[arg(long, value_name = "NAME[:ALIAS]", value_parser = spec::link)]
    link: Vec<Link>,
    /// The network with the highest number gives the default route; this is the first one's
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    gw_priority: Option<i32>,
    #[command(flatten)]
    bandwidth: BandwidthArgs,
}

/// Limits of bandwidth, in tc(8)'s units.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct BandwidthArgs {
    /// Limit what goes into the container, on each network: 100mbit, 1gbit, 800kbit a second; 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = spec::rate)]
    pub(crate) bandwidth_in: Option<spec::Wanted>,
    /// Limit what comes out of the container, on each network
    #[arg(long, value_name = "RATE", value_parser = spec::rate)]
    pub(crate) bandwidth_out: Option<spec::Wanted>,
    /// How much may pass at once after a pause, with both limits: 64kb, 1mb (default: a hundredth of a second's)
    #[arg(long, value_name = "SIZE")]
    pub(crate) bandwidth_burst: Option<Burst>,
}

impl BandwidthArgs {
    /// What they say of each direction: nothing, no limit, or a limit.
    pub(crate) fn change(self) -> Result<BandwidthChange> {
        let limit = |wanted: spec::Wanted| wanted.0.map(|rate| Limit { rate, burst: self.bandwidth_burst });
        let change = BandwidthChange { into: self.bandwidth_in.map(limit), out: self.bandwidth_out.map(limit) };
        if self.bandwidth_burst.is_some() && change.into.flatten().or(change.out.flatten()).is_none() {
            return Err(Refused::new("--bandwidth-burst is given without a rate")
                .hint("add --bandwidth-in or --bandwidth-out")
                .into());
        }
        Ok(change)
    }
}

/// Published and exposed ports of a container.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Port options")]
pub(crate) struct PortArgs {
    /// Publish ports: [[HOSTIP:][HOST[-HOST]]:]PORT[-PORT][/tcp|udp|sctp]
    #[arg(short, long, value_name = "SPEC")]
    pub(crate) publish: Vec<PublishSpec>,
    /// Publish all exposed ports on free ports of the host
    #[arg(short = 'P', long)]
    pub(crate) publish_all: bool,
    /// Declare ports that something listens on: PORT[-PORT][/tcp|udp|sctp]
    #[arg(long, value_name = "PORT")]
    pub(crate) expose: Vec<ExposedPort>,
}

/// What a container's network stack is to be.
#[derive(Debug)]
pub(crate) enum Stack {
    /// One of its own, with these endpoints.
    Own(Vec<EndpointRequest>),
    /// One of its own, with loopback only.
    None,
    /// The host's.
    Host,
    /// Another container's.
    Container(String),
}

impl EndpointArgs {
    /// Puts the flags together, in Docker's words where they do not fit.
    pub(crate) fn stack(&self) -> Result<Stack> {
        let several = self.networks.len() > 1;
        for network in &self.networks {
            let stack = match network {
                NetworkSpec::Endpoint(_) => continue,
                NetworkSpec::Host | NetworkSpec::Container(_) if several => {
                    return refuse(
                        "container sharing network namespace with another container or host cannot be connected to any other network",
                    );
                }
                NetworkSpec::None if several => {
                    return refuse(
                        "container cannot be connected to multiple networks with one of the networks in private (none) mode",
                    );
                }
                NetworkSpec::Host => Stack::Host,
                NetworkSpec::None => Stack::None,
                NetworkSpec::Container(name) => Stack::Container(name.clone()),
            };
            self.check_no_endpoint_flags(&stack)?;
            return Ok(stack);
        }
        let mut endpoints: Vec<EndpointRequest> = self
            .networks
            .iter()
            .filter_map(|network| match network {
                NetworkSpec::Endpoint(request) => Some((**request).clone()),
                _ => None,
            })
            .collect();
        if endpoints.is_empty() {
            endpoints.push(EndpointRequest::new("bridge"));
        }
        let limits = self.bandwidth.change()?;
        for request in &mut endpoints {
            limit(&mut request.bandwidth.into, limits.into, "--bandwidth-in")?;
            limit(&mut request.bandwidth.out, limits.out, "--bandwidth-out")?;
        }
        let first = &mut endpoints[0];
        merge(&mut first.ip, self.ip, "--ip", "IPv4 address")?;
        merge(&mut first.ip6, self.ip6, "--ip6", "IPv6 address")?;
        merge(&mut first.mac, self.mac_address, "--mac-address", "MAC address")?;
        append(&mut first.aliases, &self.network_alias, "--network-alias", "alias")?;
        append(&mut first.links, &self.link, "--link", "links")?;
        match self.gw_priority {
            Some(_) if first.gateway_priority != 0 => return both("--gw-priority", "gateway priority"),
            Some(priority) => first.gateway_priority = priority,
            None => {}
        }
        Ok(Stack::Own(endpoints))
    }

    fn check_no_endpoint_flags(&self, stack: &Stack) -> Result<()> {
        let (kind, links) = match stack {
            Stack::Container(_) => (
                "container",
                "conflicting options: container type network can't be used with links. This would result in undefined behavior",
            ),
            Stack::Host => (
                "host",
                "conflicting options: host type networking can't be used with links. This would result in undefined behavior",
            ),
            _ => ("none", "conflicting options: links and the network mode"),
        };
        if !self.link.is_empty() {
            return refuse(links);
        }
        if self.mac_address.is_some() {
            return refuse("conflicting options: mac-address and the network mode");
        }
        let flag = [
            (self.ip.is_some(), "--ip"),
            (self.ip6.is_some(), "--ip6"),
            (!self.network_alias.is_empty(), "--network-alias"),
            (self.gw_priority.is_some(), "--gw-priority"),
            (self.bandwidth.bandwidth_in.is_some(), "--bandwidth-in"),
            (self.bandwidth.bandwidth_out.is_some(), "--bandwidth-out"),
            (self.bandwidth.bandwidth_burst.is_some(), "--bandwidth-burst"),
        ]
        .into_iter()
        .find_map(|(given, flag)| given.then_some(flag));
        match flag {
            Some(flag) => refuse(&format!("conflicting options: {flag} and the network mode `{kind}`")),
            None => Ok(()),
        }
    }
}

impl PortArgs {
    /// Refuses or, as Docker does, warns of ports that cannot be published on `stack`.
    pub(crate) fn check(&self, stack: &Stack) -> Result<()> {
        let publishes = self.publish_all || !self.publish.is_empty();
        match stack {
            Stack::Container(_) if publishes => {
                refuse("conflicting options: port publishing and the container type network mode")
            }
            Stack::Container(_) if !self.expose.is_empty() => {
                refuse("conflicting options: port exposing and the container type network mode")
            }
            Stack::Host | Stack::None if publishes => {
                let mode = if matches!(stack, Stack::Host) { "host" } else { "none" };
                failure::print(&format!("warning: published ports are discarded when using {mode} network mode"), None);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn refuse<T>(message: &str) -> Result<T> {
    Err(Refused::new(message).hint("leave out one of the two").into())
}

fn both<T>(flag: &str, what: &str) -> Result<T> {
    refuse(&format!("conflicting options: cannot specify both {flag} and per-network {what}"))
}

/// A flag is for all networks, so one that says something of its own contradicts it.
fn limit(own: &mut Option<Limit>, flag: Option<Option<Limit>>, name: &str) -> Result<()> {
    match (&own, flag) {
        (Some(_), Some(_)) => return both(name, "bandwidth"),
        (None, Some(wanted)) => *own = wanted,
        (_, None) => {}
    }
    Ok(())
}

fn merge<T: Copy>(own: &mut Option<T>, flag: Option<T>, name: &str, what: &str) -> Result<()> {
    match (&own, flag) {
        (Some(_), Some(_)) => return both(name, what),
        (None, Some(value)) => *own = Some(value),
        (_, None) => {}
    }
    Ok(())
}

fn append<T: Clone>(own: &mut Vec<T>, flags: &[T], name: &str, what: &str) -> Result<()> {
    if !own.is_empty() && !flags.is_empty() {
        return both(name, what);
    }
    own.extend_from_slice(flags);
    Ok(())
}
