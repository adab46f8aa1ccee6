//! `portolan cluster …`

mod drain;
mod rotate;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use ipnet::{IpNet, Ipv6Net};
use portolan_cluster::{ClusterRecord, FORMAT, Reach, VXLAN_PORT};
use portolan_engine::Kernel as _;
use portolan_etcd::{Config, Tls};
use portolan_model::{Id, Name, PerFamily};
use portolan_resident::cluster::{self, Came, CannotJoin, HostRow, Joining, LinkRow, Sharing, Standing, WayRow};
use portolan_resident::control::{Answer, Client, Request};
use portolan_wireguard::Secret;

use crate::cmd::daemon;
use crate::cmd::stats::bytes;
use crate::context::Context;
use crate::failure::Refused;
use crate::{output, spec, table};

/// What networks will be cut out of: private space (RFC 1918) that other tools begin with last.
const POOL: &str = "10.128.0.0/9";
/// How long the prefixes of networks are.
const LENGTHS: PerFamily<u8> = PerFamily { v4: 18, v6: 64 };
/// How long etcd may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Make this host one of several that know each other by way of an etcd
///
/// Which hosts there are, how they are called, where they take packets and whether they run is in etcd, and nowhere else: no
/// server of ours is in between. Networks that all of them have are made by `portolan network create -d overlay`.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Command {
    Init(Box<InitArgs>),
    Join(Box<JoinArgs>),
    Leave(LeaveArgs),
    Status(StatusArgs),
    Nodes(NodesArgs),
    Verify(VerifyArgs),
    Rotate(rotate::RotateArgs),
    Drain(drain::DrainArgs),
    Undrain(drain::UndrainArgs),
    Rm(RmArgs),
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        match self {
            Self::Init(args) => args.run(context),
            Self::Join(args) => join(context, "cluster join", args.member, None),
            Self::Leave(args) => args.run(context),
            Self::Status(args) => args.run(context),
            Self::Nodes(args) => args.run(context),
            Self::Verify(args) => args.run(context),
            Self::Rotate(args) => args.run(context),
            Self::Drain(args) => args.run(context),
            Self::Undrain(args) => args.run(context),
            Self::Rm(args) => args.run(context),
        }
    }
}

/// Begin a cluster with this host
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan cluster init --etcd http://192.0.2.10:2379
  portolan cluster init --etcd https://etcd1:2379,https://etcd2:2379 --cacert ca.pem --cert host.pem --key host.key")]
pub(crate) struct InitArgs {
    #[command(flatten)]
    member: MemberArgs,
    /// UDP port of the tunnels between hosts, the same on all of them
    #[arg(long, value_name = "PORT", default_value_t = VXLAN_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: u16,
}

/// Make this host one of a cluster
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan cluster join --etcd http://192.0.2.10:2379
  portolan cluster join --etcd http://192.0.2.10:2379 --name web-3 --address 192.0.2.23
  portolan cluster join --etcd https://etcd.example.com:2379 --cacert ca.pem --name home --behind-nat")]
pub(crate) struct JoinArgs {
    #[command(flatten)]
    member: MemberArgs,
}

#[derive(Debug, clap::Args)]
struct MemberArgs {
    /// Where etcd is: http:// or https:// URLs with commas between them
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        required = true,
        env = "PORTOLAN_ETCD",
        hide_env_values = true
    )]
    etcd: Vec<String>,
    /// What all keys of the cluster begin with, so that several can share an etcd
    #[arg(long, value_name = "PREFIX", default_value = "/portolan")]
    prefix: String,
    /// What this host is called in the cluster (default: its host name)
    #[arg(long)]
    name: Option<Name>,
    /// Where this host takes packets of the others; one of either family (default: those of the default route's interface)
    #[arg(long, value_name = "IP", value_parser = spec::address)]
    address: Vec<IpAddr>,
    /// Others do not reach this host at its addresses, which they may have as well: it speaks first, every 25 seconds, and they answer to
    /// where they see it. Such a host is on encrypted networks alone
    #[arg(long, conflicts_with = "no_relay")]
    behind_nat: bool,
    /// Pass on nothing of what hosts send each other that do not reach each other; otherwise this one does, at UDP ports from the second
    /// one after --wireguard-port on, and cannot read it
    #[arg(long)]
    no_relay: bool,
    /// UDP port at which this host takes encrypted packets of the others; the one after it serves every second round of keys
    #[arg(long, value_name = "PORT", default_value_t = 51820, value_parser = clap::value_parser!(u16).range(1..65535))]
    wireguard_port: u16,
    /// File with a secret that all hosts of the cluster are to have, as `wg genpsk` writes it: who has none, such as somebody who
    /// writes into etcd, is on no encrypted network
    #[arg(long, value_name = "FILE")]
    preshared_key_file: Option<PathBuf>,
    /// Have all hosts draw new keys for the encrypted link when this one's is so old: 30d, 12h (default: only when told to)
    #[arg(long, value_name = "AGE", value_parser = spec::age)]
    rotate_keys: Option<Duration>,
    /// File with the certificates of those who may sign etcd's (PEM)
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// File with the certificate that this host shows to etcd (PEM)
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// File with its key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// User of etcd; the password comes from --password-file
    #[arg(long, value_name = "NAME", requires = "password_file")]
    user: Option<String>,
    /// File whose first line is the user's password
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
}

impl InitArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("cluster init")?;
        let random = engine.kernel().random();
        let ula = |random: &[u8]| {
            let mut address = [0; 16];
            address[0] = 0xfd;
            address[1..6].copy_from_slice(&random[..5]);
            IpNet::V6(Ipv6Net::new(address.into(), 48).expect("a valid prefix length"))
        };
        let pools = PerFamily { v4: POOL.parse().context("read the pool")?, v6: ula(&random) };
        let id = Id::from_bytes(engine.kernel().random());
        drop(engine);
        let cluster = ClusterRecord { id, format: FORMAT, port: self.vxlan_port, pools, lengths: LENGTHS };
        join(context, "cluster init", self.member, Some(cluster))
    }
}

fn join(context: &Context, verb: &str, member: MemberArgs, begin: Option<ClusterRecord>) -> Result<i32> {
    let engine = context.engine_for(verb)?;
    let (underlay, mtu) =
        cluster::underlay(&member.address, &cluster::own_addresses()?).map_err(|error| with_hint(error.into()))?;
    let name = match member.name {
        Some(name) => name,
        None => host_name()?,
    };
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()));
    let identity = match (&member.cert, &member.key) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        _ => None,
    };
    let is_tls = member.etcd.iter().any(|url| url.starts_with("https://"));
    let ca = member.cacert.as_deref().map(read).transpose()?;
    let tls = match ca {
        Some(ca) => Some(Tls { ca, identity, server_name: None }),
        None if is_tls => {
            return Err(Refused::new("etcd by https: nothing says who may sign its certificate")
                .hint("--cacert FILE names those who may")
                .into());
        }
        None => None,
    };
    let user = match (member.user, &member.password_file) {
        (Some(user), Some(path)) => {
            let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
            Some((user, text.lines().next().unwrap_or_default().to_owned()))
        }
        _ => None,
    };
    let joining = Joining {
        etcd: Config { endpoints: member.etcd, tls, user, timeout: PATIENCE },
        prefix: member.prefix,
        name,
        underlay,
        is_given: !member.address.is_empty(),
        reach: match (member.behind_nat, member.no_relay) {
            (true, _) => Reach::BehindNat,
            (false, true) => Reach::NoRelay,
            (false, false) => Reach::Open,
        },
        mtu,
        wireguard_port: member.wireguard_port,
        rotate_after: member.rotate_keys,
        secret: member.preshared_key_file.as_deref().map(secret).transpose()?,
        begin,
    };
    let id = cluster::join(&engine, &joining).map_err(with_hint).context("join the cluster")?;
    // The daemon is what makes it so from now on.
    daemon::settle(context, true);
    notice(context)?;
    if context.json {
        output::json(&serde_json::json!({ "cluster": id, "name": joining.name }))?;
    } else {
        output::print(&format!("{id}\n"))?;
    }
    Ok(0)
}

/// The secret in a file.
fn secret(path: &Path) -> Result<Secret> {
    let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    text.parse().map_err(|error| {
        let name = path.display();
        Refused::new(format!("`{name}` holds no secret: {error}"))
            .hint(format!("`wg genpsk > {name}` or `head -c 32 /dev/urandom | base64 > {name}` makes one"))
            .into()
    })
}

fn with_hint(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<CannotJoin>() {
        Ok(CannotJoin { reason, hint }) => Refused::new(reason).hint(hint).into(),
        Err(error) => error,
    }
}

fn host_name() -> Result<Name> {
    let path = "/proc/sys/kernel/hostname";
    let name = fs::read_to_string(path).with_context(|| format!("read `{path}`"))?.trim().to_owned();
    match name.parse() {
        Ok(name) => Ok(name),
        Err(_) => Err(Refused::new(format!("the host is called `{name}`, which no host of a cluster can be"))
            .hint("give it another name there: --name node-1")
            .into()),
    }
}

/// Take this host out of its cluster
///
/// Its name and its addresses there are free for others then. Networks over several hosts are gone from this one; as long as
/// containers are on them, it stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan cluster leave")]
pub(crate) struct LeaveArgs {
    /// Leave although etcd cannot be reached: there this host stays what it was
    #[arg(short, long)]
    force: bool,
}

impl LeaveArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("cluster leave")?;
        let Some(membership) = cluster::membership(&engine)? else { return Err(not_joined().into()) };
        if let Some(used) = engine.on_overlays()?.into_iter().next() {
            return Err(Refused::new(format!("this host cannot leave the cluster: {used}"))
                .hint("`portolan rm -f` or `portolan detach` takes containers down, `portolan network disconnect` off the network")
                .into());
        }
        // Else the daemon would make it known again.
        cluster::leaving(&engine, &membership, true)?;
        notice(context)?;
        match cluster::leave(&engine, &membership) {
            Ok(()) => {}
            Err(error) if self.force => {
                crate::failure::report(&error.context("etcd is not told"), 0);
                cluster::forget(&engine)?;
            }
            Err(error) => {
                cluster::leaving(&engine, &membership, false)?;
                notice(context)?;
                return Err(error.context("leave the cluster"));
            }
        }
        if context.json {
            output::json(&serde_json::json!({ "done": "left" }))?;
        }
        Ok(0)
    }
}

/// Show how this host stands in its cluster
///
/// Exits with 1 when something is not as it should be.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan cluster status --json | jq .warnings")]
pub(crate) struct StatusArgs {}

impl StatusArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let standing = standing(context)?;
        if context.json {
            output::json(&standing)?;
        } else {
            let up = standing.hosts.iter().filter(|host| host.state == "up").count();
            let mut text = format!(
                "cluster {} by {}\nhost `{}` ({}), {} revision {}\nhosts: {} of {} up\n",
                standing.cluster,
                standing.endpoints.join(", "),
                standing.name,
                standing.host.short(),
                if standing.connected { "follows etcd, now at" } else { "does not reach etcd; knows it up to" },
                standing.revision,
                up,
                standing.hosts.len(),
            );
            if let Some(keys) = &standing.keys {
                let waits: Vec<&str> = keys.waits_for.iter().map(|name| name.as_str()).collect();
                let waits = if waits.is_empty() { String::new() } else { format!("; waits for {}", waits.join(", ")) };
                let changing =
                    if keys.changing { format!(", takes the place of another one{waits}") } else { String::new() };
                text.push_str(&format!("key {} (round {}{changing})\n", keys.key, keys.round));
            }
            for passed in &standing.passed {
                let [one, other] = &passed.between;
                text.push_str(&format!(
                    "passes on what `{one}` and `{other}` send each other: {}\n",
                    bytes(passed.bytes)
                ));
            }
            if standing.hosts.iter().any(|host| host.id == standing.host && host.drained) {
                text.push_str("drained: takes no more containers on networks of the cluster (`portolan cluster undrain` ends that)\n");
            }
            for warning in &standing.warnings {
                text.push_str(&format!("warning: {warning}\n"));
            }
            output::print(&text)?;
        }
        Ok(i32::from(!standing.warnings.is_empty() || !standing.connected))
    }
}

/// List the hosts of the cluster
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan cluster nodes
  portolan cluster nodes --json | jq '.[] | select(.state != \"up\")'

A host is `down` when it has not said for 15 seconds that it runs. Its containers may well go on. One that is `drained` takes no
more containers on networks of the cluster.

PATH, RTT and LOSS say what this host finds of its path to each other one that it shares a network with, by the tunnels that
containers' packets take: `passes`; `narrow`, when packets as large as the MTU do not get through; `corrupt`, when those do not whose
checksum the interface fills in; `blocked`, when nothing does, but the host answers otherwise; `silent`, when nothing comes back at all.
RTT is how long a small packet takes there and back, LOSS how many of the last minute did not come back. In JSON, `paths` has them,
those in clear and the encrypted ones by themselves; here, the one that is worse.

Where networks are encrypted, RECEIVED and SENT say what went between it and this host by the encrypted link since the daemon was
started, and HANDSHAKE when keys were agreed on last: every two minutes while there is traffic. In JSON, `link` has them, and where
the host is seen. The kernel counts nothing by host where networks are not encrypted.

WAY says how it is sent to: `direct` to its address, to where it is `seen` when it is behind NAT, or `by` another host, which passes \
packets on and cannot read them; `none` where nothing leads to it. In JSON, `way` has it.")]
pub(crate) struct NodesArgs {}

impl NodesArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let standing = standing(context)?;
        if context.json {
            output::json(&standing.hosts)?;
            return Ok(0);
        }
        let has_link = standing.hosts.iter().any(|host| host.link.is_some());
        let has_paths = standing.hosts.iter().any(|host| !host.paths.is_empty());
        let row = |host: &HostRow| {
            let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
            let mut row = vec![
                host.id.short(),
                host.name.to_string(),
                if host.drained { format!("{}, drained", host.state) } else { host.state.clone() },
                addresses.join(", "),
                host.mtu.to_string(),
                host.version.clone(),
            ];
            if has_paths {
                row.extend(path(host));
            }
            if has_link {
                let count =
                    |value: fn(&LinkRow) -> u64| host.link.as_ref().map_or_else(String::new, |link| bytes(value(link)));
                let age = host.link.as_ref().and_then(|link| link.handshake_age);
                row.extend([count(|link| link.received), count(|link| link.sent)]);
                row.push(age.map_or_else(String::new, |seconds| format!("{seconds}s ago")));
                row.push(way(host));
            }
            row
        };
        let rows: Vec<Vec<String>> = standing.hosts.iter().map(row).collect();
        let mut header = vec!["HOST ID", "NAME", "STATE", "ADDRESSES", "MTU", "VERSION"];
        if has_paths {
            header.extend(["PATH", "RTT", "LOSS"]);
        }
        if has_link {
            header.extend(["RECEIVED", "SENT", "HANDSHAKE", "WAY"]);
        }
        output::print(&table::render(&header, &rows))?;
        Ok(0)
    }
}

/// By which way a host is sent to, in a word or two.
fn way(host: &HostRow) -> String {
    let at = host.link.as_ref().and_then(|link| link.endpoint);
    match (&host.way, at) {
        (None, _) => String::new(),
        (Some(WayRow::Direct), _) => "direct".to_owned(),
        (Some(WayRow::Seen | WayRow::Meet), Some(at)) => format!("seen at {at}"),
        (Some(WayRow::Seen | WayRow::Meet), None) => "not seen yet".to_owned(),
        (Some(WayRow::Relay { relay, .. }), _) => format!("by {relay}"),
        (Some(WayRow::Nothing), _) => "none".to_owned(),
    }
}

/// How the path to a host is: the worse one, if there are two.
fn path(host: &HostRow) -> [String; 3] {
    let Some(path) = host.paths.iter().max_by_key(|path| path.state) else { return <[String; 3]>::default() };
    let rtt = path.rtt.map_or_else(String::new, |rtt| format!("{:.2} ms", rtt * 1000.0));
    let loss = path.loss.map_or_else(String::new, |loss| format!("{:.0} %", loss * 100.0));
    [path.state.name().to_owned(), rtt, loss]
}

/// Compare rows and kernel of every host with etcd
///
/// Each host that runs looks at itself and says what differs, within five seconds. Exits with 1 when anything differs, or a host
/// says nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan cluster verify || portolan cluster verify --json | jq '.[] | select(.count > 0 or .answered == false)'")]
pub(crate) struct VerifyArgs {}

impl VerifyArgs {
    fn run(self, context: &Context) -> Result<i32> {
        standing(context)?;
        let Some(mut client) = Client::connect(&context.run)? else { anyhow::bail!("the daemon has left") };
        let hosts = match client.ask(&Request::Share { what: Box::new(Sharing::Verify {}) })? {
            Some(Answer::Shared { came: Came::Verified { hosts } }) => hosts,
            Some(Answer::Refused { reason, hint }) => {
                let refused = Refused::new(reason);
                return Err(hint.into_iter().fold(refused, Refused::hint).into());
            }
            other => anyhow::bail!("the daemon answered something else: {other:?}"),
        };
        let is_whole = hosts.iter().all(|host| host.answered && host.count == 0);
        if context.json {
            output::json(&hosts)?;
            return Ok(i32::from(!is_whole));
        }
        let mut text = String::new();
        for host in &hosts {
            match (host.answered, host.count) {
                (false, _) => text.push_str(&format!("{}: says nothing\n", host.name)),
                (true, 0) => text.push_str(&format!("{}: as it should be\n", host.name)),
                (true, count) => {
                    text.push_str(&format!("{}: {count} differences\n", host.name));
                    host.differences.iter().for_each(|said| text.push_str(&format!("  {said}\n")));
                }
            }
        }
        output::print(&text)?;
        Ok(i32::from(!is_whole))
    }
}

/// Take hosts out that will not come back
///
/// What they have is free for others at once: their names, their addresses, and all addresses that they gave out. Only a host that
/// is `down` can be removed. Packets of one that runs nevertheless, and is only cut off from etcd, are dropped by all others from
/// then on; when it reaches etcd again it says that it was removed, and `cluster leave` makes it an ordinary host.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan cluster rm node-7
  portolan cluster nodes --json | jq -r '.[] | select(.state == \"down\") | .name' | xargs portolan cluster rm")]
pub(crate) struct RmArgs {
    /// Names or ids of hosts
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
}

impl RmArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let Some(membership) = cluster::membership(&context.engine()?)? else { return Err(not_joined().into()) };
        let mut removed = Vec::new();
        for host in &self.hosts {
            let id = cluster::remove_host(&membership, host).map_err(with_hint);
            let id = id.with_context(|| format!("remove host `{host}` from the cluster"))?;
            removed.push(id);
            if !context.json {
                output::print(&format!("{host}\n"))?;
            }
        }
        if context.json {
            output::json(&serde_json::json!({ "removed": removed }))?;
        }
        Ok(0)
    }
}

fn standing(context: &Context) -> Result<Standing> {
    let Some(membership) = cluster::membership(&context.engine()?)? else { return Err(not_joined().into()) };
    if membership.leaving {
        return Err(Refused::new("this host was about to leave its cluster")
            .hint("`portolan cluster leave` goes on with it")
            .into());
    }
    notice(context)?.ok_or_else(|| {
        Refused::new("no daemon follows the cluster for this root").hint("`portolan daemon start` starts one").into()
    })
}

fn not_joined() -> Refused {
    Refused::new("this host is in no cluster")
        .hint("`portolan cluster join` makes it one of a cluster, `portolan cluster init` begins one")
}

/// Has the daemon, if one runs, take notice of whether this host is in a cluster; how it stands there.
fn notice(context: &Context) -> Result<Option<Standing>> {
    let Some(mut client) = Client::connect(&context.run)? else { return Ok(None) };
    match client.ask(&Request::Cluster {})? {
        Some(Answer::Cluster { standing }) => Ok(standing.map(|standing| *standing)),
        Some(other) => anyhow::bail!("the daemon answered something else: {other:?}"),
        None => Ok(None),
    }
}
