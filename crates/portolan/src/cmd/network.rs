//! `portolan network …`

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use ipnet::IpNet;
use portolan_engine::{EndpointRequest, Error, NetworkRequest};
use portolan_model::{AddressRange, Bandwidth, Driver, Ipam, Link, Mac, Name, Network, StaticRoute};

use crate::cmd::endpoint::BandwidthArgs;
use crate::cmd::pools::PoolsArgs;
use crate::cmd::{daemon, each, list, run};
use crate::context::Context;
use crate::failure::Refused;
use crate::output::{self, Attached, Named, NetworkDetails, NetworkRow};
use crate::{spec, table};

/// Create, list, inspect and remove networks; connect containers to them
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Command {
    Create(Box<CreateArgs>),
    Ls(LsArgs),
    Pools(PoolsArgs),
    Inspect(InspectArgs),
    Promote(PromoteArgs),
    Rm(RmArgs),
    Prune(PruneArgs),
    Connect(Box<ConnectArgs>),
    Disconnect(DisconnectArgs),
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        match self {
            Self::Create(args) => args.run(context),
            Self::Ls(args) => args.run(context),
            Self::Pools(args) => args.run(context),
            Self::Inspect(args) => args.run(context),
            Self::Promote(args) => args.run(context),
            Self::Rm(args) => args.run(context),
            Self::Prune(args) => args.run(context),
            Self::Connect(args) => args.run(context),
            Self::Disconnect(args) => args.run(context),
        }
    }
}

/// Create a network and print its id
///
/// A network is a bridge on this host. Without --subnet it is given a free IPv4 /24 out of private space, which
/// overlaps no route of the host, and a stable IPv6 ULA /64. Its containers reach each other and the world; from
/// outside only published ports of theirs can be reached.
///
/// With --driver ptp there is no bridge: each container has a link of its own to the host, which routes between them. Who
/// reaches whom is as on a bridge.
///
/// With --driver overlay, all hosts of the cluster (`portolan cluster`) have the network. Each gives out addresses of its own
/// part of the subnet, and routes to the others' by VXLAN.
///
/// With --driver macvlan or ipvlan, containers are on the network of an interface of the host, their parent, as machines
/// of their own. Give the --subnet and --gateway of that network, or with --ipam-driver dhcp let its DHCP server give them
/// their addresses: the daemon asks for them, keeps them, and gives them back. The host and its rules do not see the
/// packets of such containers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan network create web
  portolan network create --subnet 172.30.0.0/24 --gateway 172.30.0.254 --subnet fd00:30::/64 lan
  portolan network create --internal --opt icc=false vault
  portolan network create --opt gateway_mode_ipv6=routed --ipv4=false v6only
  portolan network create -d ptp --subnet 172.30.9.0/24 direct
  portolan network create -d overlay everywhere
  portolan network create -d macvlan -o parent=eth0 --subnet 192.0.2.0/24 --gateway 192.0.2.1 --ipv6=false lan2
  portolan network create -d macvlan -o parent=eth0 --ipam-driver dhcp office

Options of the bridge (-o), by their short or their com.docker.network.* names:
  bridge=NAME                  the bridge's device name
  icc=false                    containers do not reach each other
  masquerade=false             leave with the container's own address
  mtu=BYTES                    else that of the host's default route
  gateway_mode_ipv4=MODE       nat, nat-unprotected, routed or isolated; also gateway_mode_ipv6
  host_ipv4=ADDRESS            leave with this address of the host; also host_ipv6
  host_binding=ADDRESS         publish ports on this address unless told otherwise
  interface_prefix=NAME        interfaces are called NAME0, NAME1, … (default eth)
  trusted_host_interfaces=A:B  from these, containers are reached at their own addresses
  inhibit_ipv4=true            the bridge itself has no IPv4 address
  guard=false                  do not drop forged source addresses
  isolate=LEVEL                strict: other networks reach published ports only (default); true: and so do
                               networks with true; false: only strict networks are kept apart
  connections=NUMBER           containers have about so many at most that the kernel remembers,
                               else a fair share of them
  mode=unmanaged               join the bridge given with bridge=, which stays as it is
  vlan=NUMBER                  the ports and the host are in this VLAN of a filtering bridge
  vrf=NAME                     the bridge belongs to this VRF
  metric=NUMBER                priority of the default route; no_default_route=true leaves it out

Options of overlay: those of ptp, and
  encrypted                    what hosts send each other of it is encrypted (WireGuard)
  shortcut=false               packets between hosts meet the host's rules and connection tracking;
                               true: not even those of containers attached by CNI do
  mode=l2                      containers of all hosts are in one broadcast domain: bridges, with tunnels
                               between them, for what needs broadcast or multicast (else mode=routed)
  backend=direct               hosts on the same LAN send each other its packets as they are, with
                               the LAN's whole MTU; all others by VXLAN. Who else is on the LAN can
                               read and forge them, so not together with encrypted

Options of ptp: those of the bridge, but for bridge, inhibit_ipv4, guard, mode, vlan and vrf, and no mode isolated

Options of macvlan and ipvlan:
  parent=NAME                  the host's interface; NAME.50 is made for VLAN 50 if it is not there
  mode=MODE                    macvlan: bridge, private, vepa, passthru, source; ipvlan: l2, l3, l3s
  mtu, metric, no_default_route, interface_prefix as above; bclim=NUMBER of macvlan")]
pub(crate) struct CreateArgs {
    /// The network's name
    name: Name,
    /// What carries the network
    #[arg(short, long, default_value = "bridge")]
    driver: Driver,
    /// Who gives out addresses: default, a DHCP server of the network's (dhcp), or nobody (none)
    #[arg(long, value_name = "NAME", default_value = "default")]
    ipam_driver: Ipam,
    /// Subnet in CIDR notation; repeat for several, of either family
    #[arg(long, value_name = "CIDR", value_parser = spec::subnet)]
    subnet: Vec<IpNet>,
    /// Gateway inside one of the subnets (default: its first address)
    #[arg(long, value_name = "IP", value_parser = spec::address)]
    gateway: Vec<IpAddr>,
    /// Give out addresses of this part of a subnet only: CIDR notation, or the first and the last as IP-IP
    #[arg(long, value_name = "RANGE")]
    ip_range: Vec<AddressRange>,
    /// Address that is never given out, with a name for it
    #[arg(long, value_name = "NAME=IP", value_parser = spec::aux_address)]
    aux_address: Vec<(String, IpAddr)>,
    /// No way out of the network, and none in
    #[arg(long)]
    internal: bool,
    /// Whether the network speaks IPv4
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_parser = spec::boolean, action = clap::ArgAction::Set)]
    ipv4: bool,
    /// Whether the network speaks IPv6 (default: true, but false with --ipam-driver dhcp)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = spec::boolean, action = clap::ArgAction::Set)]
    ipv6: Option<bool>,
    /// Name server that questions of its containers are forwarded to, instead of the host's
    #[arg(long, value_name = "IP", value_parser = spec::address)]
    dns: Vec<IpAddr>,
    /// Route that every container gets: to GATEWAY, or blackhole, unreachable or prohibit
    #[arg(long, value_name = "CIDR,GATEWAY[,METRIC]", value_parser = spec::route)]
    route: Vec<StaticRoute>,
    /// Option of the driver; see below
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = spec::option)]
    opt: Vec<(String, String)>,
    /// Label, for people and filters
    #[arg(long, value_name = "NAME=VALUE", value_parser = spec::label)]
    label: Vec<(String, String)>,
}

impl CreateArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let mut aux = BTreeMap::new();
        for (name, address) in self.aux_address {
            if aux.insert(name.clone(), address).is_some() {
                return Err(Refused::new(format!("auxiliary address `{name}` is given twice"))
                    .hint("each needs a name of its own")
                    .into());
            }
        }
        let request = NetworkRequest {
            driver: self.driver,
            ipam: self.ipam_driver,
            subnets: self.subnet,
            gateways: self.gateway,
            ranges: self.ip_range,
            aux,
            internal: self.internal,
            ipv4: self.ipv4,
            // A LAN with a DHCPv6 server is the exception, and without an answer there is no container.
            ipv6: self.ipv6.unwrap_or(self.ipam_driver != Ipam::Dhcp),
            dns: self.dns,
            options: self.opt.into_iter().collect(),
            labels: self.label.into_iter().collect(),
            routes: self.route,
            ..NetworkRequest::new(self.name)
        };
        let network = context.engine_for("network create")?.create_network(&request)?;
        if context.json {
            output::json(&Named::from(&network))?;
        } else {
            output::print(&format!("{}\n", network.id))?;
        }
        Ok(0)
    }
}

/// List networks
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  portolan network ls
  portolan network ls -q --filter label=team=web
  portolan network ls --filter type=custom --json

Filters: name=PART, id=START, driver=NAME, label=NAME[=VALUE], type=builtin|custom. Several of one
kind are alternatives; different kinds must all hold."
)]
pub(crate) struct LsArgs {
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Only networks for which this holds
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = spec::filter)]
    filter: Vec<(String, String)>,
}

impl LsArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let filters = Filters::new(&self.filter, &["name", "id", "driver", "label", "type"])?;
        if let Some(other) = filters.of("type").find(|kind| !matches!(*kind, "builtin" | "custom")) {
            return Err(Refused::new(format!("filter `type={other}`: there is no such type"))
                .hint("choose type=builtin or type=custom")
                .into());
        }
        let networks: Vec<Network> =
            context.engine()?.networks()?.into_iter().filter(|network| is_wanted(network, &filters)).collect();
        if self.quiet {
            let ids: String = networks.iter().map(|network| format!("{}\n", id(network.id, self.no_trunc))).collect();
            output::print(&ids)?;
        } else if context.json {
            output::json(&networks.iter().map(NetworkRow::from).collect::<Vec<_>>())?;
        } else {
            let rows: Vec<Vec<String>> = networks
                .iter()
                .map(|network| {
                    let subnets: Vec<String> = network.nets().iter().map(ToString::to_string).collect();
                    vec![
                        id(network.id, self.no_trunc),
                        network.name.to_string(),
                        network.driver.to_string(),
                        output::scope(network).to_owned(),
                        subnets.join(", "),
                    ]
                })
                .collect();
            output::print(&table::render(&["NETWORK ID", "NAME", "DRIVER", "SCOPE", "SUBNETS"], &rows))?;
        }
        Ok(0)
    }
}

/// An id, whole or its start.
pub(crate) fn id(id: portolan_model::Id, whole: bool) -> String {
    if whole { id.to_string() } else { id.short() }
}

/// What `--filter` asks for.
#[derive(Debug)]
pub(crate) struct Filters<'a>(&'a [(String, String)]);

impl<'a> Filters<'a> {
    /// Refuses keys that are not among `known`.
    pub(crate) fn new(pairs: &'a [(String, String)], known: &[&str]) -> Result<Self> {
        match pairs.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => Err(Refused::new(format!("unknown filter `{key}`"))
                .hint(format!("known filters: {}", known.join(", ")))
                .into()),
            None => Ok(Self(pairs)),
        }
    }

    fn of<'b>(&'b self, key: &'b str) -> impl Iterator<Item = &'a str> + 'b {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Whether one of the values of `key` matches, or there is none.
    pub(crate) fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        let mut values = self.of(key).peekable();
        values.peek().is_none() || values.any(matches)
    }

    /// Whether every `label=NAME[=VALUE]` holds.
    pub(crate) fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.of("label").all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
    }
}

fn is_wanted(network: &Network, filters: &Filters<'_>) -> bool {
    filters.any("name", |name| network.name.as_str().contains(name))
        && filters.any("id", |start| network.id.to_string().starts_with(start))
        && filters.any("driver", |driver| network.driver.to_string() == driver)
        && filters.any("type", |kind| (kind == "builtin") == network.is_predefined())
        && filters.labels(&network.labels)
}

/// Print all that is known about networks, as JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan network inspect web | jq '.[0].IPAM.Config'")]
pub(crate) struct InspectArgs {
    /// Names, ids or unique starts of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

impl InspectArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine()?;
        let firewall = engine.firewall()?;
        let (found, code) = each(&self.networks, |name| Ok(NetworkDetails::new(&engine.network(name)?, &firewall)));
        list(&found, code)?;
        Ok(code)
    }
}

/// Make a bridge network of this host one of the cluster
///
/// All hosts have it then, as one of driver overlay with the same name, id and subnets. Who is on it stays: containers keep their
/// addresses, ports and connections. The blocks of addresses that theirs are of are this host's from then on.
///
/// Refused, and left as it is: a subnet that overlaps another network of the cluster; a gateway that is not the first address;
/// ranges, routes or name servers of its own; options that overlays do not have; containers of Docker's on it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan network promote web       then, on any other host: portolan run --network web …")]
pub(crate) struct PromoteArgs {
    /// Name, id or unique start of it
    network: String,
}

impl PromoteArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let network = context.engine_for("network promote")?.promote_network(&self.network)?;
        daemon::settle(context, false);
        if context.json {
            output::json(&Named::from(&network))?;
        } else {
            output::print(&format!("{}\n", network.id))?;
        }
        Ok(0)
    }
}

/// Remove networks that nobody is on
///
/// Containers whose namespace is gone do not keep a network. The predefined networks cannot be removed.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "remove",
    after_help = "\
Example:
  portolan network rm web lan"
)]
pub(crate) struct RmArgs {
    /// Names, ids or unique starts of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Say nothing of networks that do not exist
    #[arg(short, long)]
    force: bool,
}

impl RmArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("network rm")?;
        let (removed, code) = each(&self.networks, |name| match engine.remove_network(name) {
            Ok(network) => Ok(Some((name.to_owned(), network))),
            Err(Error::NotFound { .. }) if self.force => Ok(None),
            Err(error) => Err(error.into()),
        });
        daemon::settle(context, false);
        let removed: Vec<(String, Network)> = removed.into_iter().flatten().collect();
        if context.json {
            list(&removed.iter().map(|(_, network)| Named::from(network)).collect::<Vec<_>>(), code)?;
        } else {
            output::print(&removed.iter().map(|(name, _)| format!("{name}\n")).collect::<String>())?;
        }
        Ok(code)
    }
}

/// Remove all networks that nobody is on
#[derive(Debug, clap::Args)]
pub(crate) struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

impl PruneArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("network prune")?;
        if !self.force && !confirmed()? {
            return Ok(0);
        }
        let removed = engine.prune_networks()?;
        daemon::settle(context, false);
        if context.json {
            output::json(&removed.iter().map(Named::from).collect::<Vec<_>>())?;
        } else if !removed.is_empty() {
            let names: String = removed.iter().map(|network| format!("{}\n", network.name)).collect();
            output::print(&format!("Deleted networks:\n{names}"))?;
        }
        Ok(0)
    }
}

fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Refused::new("cannot ask whether to go on: standard input is no terminal")
            .hint("add --force to remove without asking")
            .into());
    }
    eprint!("This removes all networks without containers. Go on? [y/N] ");
    std::io::stderr().flush().context("ask on standard error")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Connect a running container to one more network
///
/// The container gets another interface. The default route moves to it if its gateway priority is the highest.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan network connect lan site
  portolan network connect --ip 172.30.0.9 --alias db --gw-priority 10 lan site")]
pub(crate) struct ConnectArgs {
    /// The network's name or id
    network: String,
    /// The container's name or id
    container: String,
    /// IPv4 address to have
    #[arg(long, value_name = "IP", value_parser = spec::ipv4)]
    ip: Option<Ipv4Addr>,
    /// IPv6 address to have
    #[arg(long, value_name = "IP", value_parser = spec::ipv6)]
    ip6: Option<Ipv6Addr>,
    /// MAC address to have
    #[arg(long, value_name = "MAC")]
    mac_address: Option<Mac>,
    /// One more name on this network
    #[arg(long, value_name = "NAME")]
    alias: Vec<Name>,
    /// Another container, under a name that only this one knows
    #[arg(long, value_name = "NAME[:ALIAS]", value_parser = spec::link)]
    link: Vec<Link>,
    /// The network with the highest number gives the default route
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_hyphen_values = true)]
    gw_priority: i32,
    /// Option of the endpoint: ifname=NAME names the interface
    #[arg(long, value_name = "KEY=VALUE")]
    driver_opt: Vec<String>,
    #[command(flatten)]
    bandwidth: BandwidthArgs,
}

impl ConnectArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let limits = self.bandwidth.change()?;
        let mut request = EndpointRequest {
            bandwidth: Bandwidth { into: limits.into.flatten(), out: limits.out.flatten() },
            ip: self.ip,
            ip6: self.ip6,
            mac: self.mac_address,
            aliases: self.alias,
            links: self.link,
            gateway_priority: self.gw_priority,
            ..EndpointRequest::new(self.network)
        };
        for option in &self.driver_opt {
            spec::driver_option(&mut request, option)?;
        }
        let engine = context.engine_for("network connect")?;
        let info = engine.connect(&self.container, &request)?;
        daemon::settle(context, true);
        let id = info.container.id.to_string();
        let undo = || Ok(engine.disconnect(&id, &request.network).map(drop)?);
        let new = info.endpoints.last().map(|(_, network)| network.id);
        let info = daemon::acquire_or(context, &engine, info, new, undo)?;
        run::refresh_files(&context.run, &engine, &info)?;
        if context.json {
            output::json(&Attached::from(&info))?;
        }
        Ok(0)
    }
}

/// Disconnect a container from a network
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan network disconnect lan site")]
pub(crate) struct DisconnectArgs {
    /// The network's name or id
    network: String,
    /// The container's name or id
    container: String,
    /// Say nothing if the container is not there or not on the network
    #[arg(short, long)]
    force: bool,
}

impl DisconnectArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("network disconnect")?;
        if let (Ok(info), Ok(on)) = (engine.container(&self.container), engine.network(&self.network)) {
            daemon::release(context, &info, Some(on.network.id));
        }
        match engine.disconnect(&self.container, &self.network) {
            Ok(info) => {
                run::refresh_files(&context.run, &engine, &info)?;
                daemon::settle(context, false);
                if context.json {
                    output::json(&Attached::from(&info))?;
                }
            }
            Err(Error::NotConnected { .. } | Error::NotFound { what: "container", .. }) if self.force => {}
            Err(error) => return Err(error.into()),
        }
        Ok(0)
    }
}
