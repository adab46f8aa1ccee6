//! `portolan netavark`, and the binary called as `netavark`: Podman's network backend

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use portolan_engine::{AttachRequest, ContainerInfo, Error, Kernel as _, Repaired};
use portolan_kernel::netns::NetnsFd;
use portolan_kernel::signals::{self, Signals};
use portolan_model::FirewallDriver;
use portolan_netavark::{
    Attachment, COMPATIBLE, Failure, Host, Network, Plan, PluginInput, Setup, StatusBlock, all, attach_failure,
    cluster_network, container_id, engine_failure, network_id,
};
use portolan_plan::Firewall;
use portolan_resident::firewall;
use serde::Serialize;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::clock;
use crate::cmd::{daemon, overlay, run};
use crate::context::{Context, Engine};
use crate::output;

/// Where Podman as root keeps its state. Those who have rules put back call us by hand or from a unit, without --config.
const PODMANS_ROOT: &str = "/run/containers/networks";

/// No setup is longer: Podman's are a few kilobytes.
const LONGEST: u64 = 16 << 20;

/// Speak netavark's protocol, for Podman
///
/// Podman starts its network backend for every container: as `netavark`, or as this. What it says comes as JSON on
/// standard input, what it is told goes as JSON to standard output, and errors too, as {"error": "…"} with exit status 1.
/// `portolan install podman` has Podman use it. Look at what Podman made with `portolan --root DIR`, where DIR is the
/// --config of here: /run/containers/networks for Podman as root.
#[derive(Debug, Parser)]
#[command(name = "netavark", version = COMPATIBLE, after_help = "\
Examples:
  podman info --format '{{.Host.NetworkBackendInfo}}'
  portolan --root /run/containers/networks ps
  portolan --root /run/containers/networks rules CONTAINER")]
pub(crate) struct Args {
    /// Read the configuration from FILE instead of standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What filters and translates packets: nftables, iptables, firewalld or none
    #[arg(long, value_name = "DRIVER", env = "NETAVARK_FW", hide_env_values = true)]
    firewall_driver: Option<String>,
    /// Where state and run-time files are; /run/containers/networks for the reload commands if not given
    #[arg(short, long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Whether containers are rootless; makes no difference here
    #[arg(short, long, value_name = "BOOL")]
    rootless: Option<bool>,
    /// Accepted and not needed: names are answered by the daemon of Portolan
    #[arg(short, long, value_name = "PATH")]
    aardvark_binary: Option<OsString>,
    /// Directory with plugins for other drivers; can be given several times
    #[arg(long, value_name = "DIR")]
    plugin_directory: Vec<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
enum Command {
    /// Put a namespace on networks
    Setup {
        /// File of the namespace
        netns: PathBuf,
    },
    /// Take a namespace off networks
    Teardown {
        /// File of the namespace; it may be gone
        netns: PathBuf,
    },
    /// Change where questions from a network are forwarded to
    Update {
        /// The network
        network: String,
        /// Name servers, between commas; none for those of the host
        #[arg(long, value_name = "IP,…", required = true, allow_hyphen_values = true)]
        network_dns_servers: String,
    },
    /// Complete a new network
    Create,
    /// Print the version of netavark that this is compatible with, and our own
    Version,
    /// Put back rules that somebody removed
    FirewallReload,
    /// Stay, and put rules back whenever firewalld has reloaded
    FirewalldReload,
    /// Get leases of DHCP servers for a netavark that is not this one; not needed with it
    DhcpProxy(DhcpProxyArgs),
}

#[derive(Debug, clap::Args)]
struct DhcpProxyArgs {
    /// Directory of the socket and of the list of leases
    #[arg(short, long, value_name = "DIR", default_value = "/run/podman")]
    dir: PathBuf,
    /// The socket, or the directory that it is in, if not there
    #[arg(short, long, value_name = "PATH")]
    uds: Option<PathBuf>,
    /// How long a server may take to grant a lease
    #[arg(short, long, value_name = "SECONDS", default_value_t = 8)]
    timeout: u64,
    /// Leave after so long without leases and questions; 0 for never
    #[arg(short, long, value_name = "SECONDS", default_value_t = 300)]
    activity_timeout: u64,
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Setup { .. } => "setup",
            Self::Teardown { .. } => "teardown",
            Self::Update { .. } => "update",
            Self::Create => "create",
            Self::Version => "version",
            Self::FirewallReload => "firewall-reload",
            Self::FirewalldReload => "firewalld-reload",
            Self::DhcpProxy(_) => "dhcp-proxy",
        }
    }
}

impl DhcpProxyArgs {
    fn serve(&self) -> Result<(), Failure> {
        let args = portolan_dhcp_proxy::Args {
            dir: self.dir.clone(),
            uds: self.uds.clone(),
            timeout: Duration::from_secs(self.timeout),
            activity_timeout: Duration::from_secs(self.activity_timeout),
        };
        portolan_dhcp_proxy::run(&args).map_err(|error| Failure::new(format!("{error:#}")))
    }
}

/// What Podman asks the program `aardvark-dns` that it looks for beside `netavark`: only its version, and that it is there.
const AARDVARK: &str = "aardvark-dns";

/// Does what the command line says if the binary was called as `netavark`; the exit status.
pub(crate) fn called() -> Option<i32> {
    let name = std::env::args_os().next()?;
    let name = Path::new(&name).file_name()?.to_owned();
    if name == AARDVARK {
        let asked = std::env::args_os().nth(1);
        if asked.is_some_and(|word| word == "version" || word == "--version" || word == "-V") {
            return Some(say(&format!("{AARDVARK} {COMPATIBLE}"), 0));
        }
        crate::failure::print("names are answered by the daemon of Portolan, which starts by itself", None);
        return Some(1);
    }
    if name != "netavark" {
        return None;
    }
    // The kernel tells who changed rules by this name (`NFTA_GEN_PROC_NAME`), and the daemon looks at all of them when it was
    // not us. Without /proc it does so in vain.
    let _ = std::fs::write("/proc/self/comm", portolan_resident::repair::OURS);
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return Some(error.exit_code());
        }
    };
    start_log();
    Some(args.run())
}

/// Prints a line, and answers with `status` also where nobody reads it any more.
fn say(line: &str, status: i32) -> i32 {
    match output::write(&format!("{line}\n")) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tracing::error!("write to standard output: {error}");
            1
        }
        _ => status,
    }
}

/// Logs go to standard error, as much as Podman asks for by `RUST_LOG=netavark=LEVEL`, and in the form that netavark's have.
fn start_log() {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let level = wanted.rsplit(['=', ',']).next().and_then(|level| level.parse().ok());
    let log = tracing_subscriber::fmt().with_max_level(level.unwrap_or(tracing::Level::ERROR));
    log.with_writer(io::stderr).event_format(Line).init();
}

/// `[WARN  portolan::cmd::netavark] what there is to say`.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, of: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &tracing::Event<'_>) -> fmt::Result {
        let about = event.metadata();
        write!(to, "[{:5} {}] ", about.level().as_str(), about.target())?;
        of.field_format().format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}

/// Says who filters packets, to whom that is news.
fn log_firewall(engine: &Engine) {
    if !tracing::enabled!(target: "netavark::firewall", tracing::Level::INFO) {
        return;
    }
    match engine.firewall() {
        Ok(Firewall { driver: FirewallDriver::None, .. }) => {
            tracing::info!(target: "netavark::firewall", "Not using firewall");
        }
        Ok(Firewall { driver, .. }) => tracing::info!(target: "netavark::firewall", "Using {driver} firewall driver"),
        Err(error) => tracing::warn!("{error}"),
    }
}

impl Args {
    pub(crate) fn run(self) -> i32 {
        match self.answer() {
            Ok(Some(answer)) => say(&answer, 0),
            Ok(None) => 0,
            Err(failure) => say(&failure.to_json(), 1),
        }
    }

    /// Does it; what is to be printed.
    fn answer(&self) -> Result<Option<String>, Failure> {
        match &self.command {
            Command::Setup { netns } => self.setup(netns).map(Some),
            Command::Teardown { netns } => self.teardown(netns).map(|()| None),
            Command::Update { network, network_dns_servers } => {
                self.update(network, network_dns_servers).map(|()| None)
            }
            Command::Create => self.create().map(Some),
            Command::Version => Ok(Some(version())),
            Command::FirewallReload => self.reload().map(|()| None),
            Command::FirewalldReload => self.follow_firewalld().map(|()| None),
            Command::DhcpProxy(args) => args.serve().map(|()| None),
        }
    }

    fn read(&self) -> Result<Vec<u8>, Failure> {
        let read = || -> io::Result<Vec<u8>> {
            let mut text = Vec::new();
            match &self.file {
                Some(file) => File::open(file)?.take(LONGEST + 1).read_to_end(&mut text)?,
                None => io::stdin().lock().take(LONGEST + 1).read_to_end(&mut text)?,
            };
            Ok(text)
        };
        let text = read().map_err(|error| Failure::io(&error).within("failed to load network options"))?;
        if text.len() as u64 > LONGEST {
            return Err(Failure::new(format!("input is longer than {} MiB", LONGEST >> 20))
                .within("failed to load network options"));
        }
        Ok(text)
    }

    /// What --config names, if it is given.
    fn config(&self) -> Option<PathBuf> {
        self.config.clone().filter(|config| !config.as_os_str().is_empty())
    }

    /// The root that --config names, which `verb` cannot do without.
    fn context(&self, verb: &str) -> Result<Context, Failure> {
        let missing = || Failure::new(format!("--config not specified but required for netavark {verb}"));
        let config = self.config().ok_or_else(missing)?;
        self.context_of(config)
    }

    /// The root that --config names, or Podman's.
    fn context_or_podmans(&self) -> Result<Context, Failure> {
        self.context_of(self.config().unwrap_or_else(|| PODMANS_ROOT.into()))
    }

    fn context_of(&self, config: PathBuf) -> Result<Context, Failure> {
        let parse = |text: &String| {
            let text = text.to_lowercase();
            text.parse::<FirewallDriver>()
                .map_err(|_| Failure::new(format!("Must provide a valid firewall backend, got {text}")))
        };
        let wanted = self.firewall_driver.as_ref().filter(|text| !text.is_empty());
        Ok(Context::new(self.command.name(), Some(config), false, wanted.map(parse).transpose()?))
    }

    fn engine(context: &Context) -> Result<Engine, Failure> {
        context.engine().map_err(|error| Failure::new(format!("{error:#}")))
    }

    fn setup(&self, netns: &Path) -> Result<String, Failure> {
        let there = File::open(netns);
        there.map_err(|error| Failure::io(&error).within("invalid namespace path"))?;
        let setup = portolan_netavark::parse_setup(&self.read()?)?;
        let context = self.context("setup")?;
        let host = portolan_kernel::host::HostKernel::new();
        let addresses_of = |bridge: &str| host.addresses(bridge).map_err(|error| Failure::new(error.to_string()));
        let plan = portolan_netavark::plan(&setup, netns, names_port()?, addresses_of)?;
        let programs = self.programs(&plan)?;
        for warning in &plan.warnings {
            tracing::warn!("{warning}");
        }
        let engine = Self::engine(&context)?;
        log_firewall(&engine);
        check_ipv6(&engine, &setup)?;
        let starting = plan.attach.as_ref().and_then(|_| daemon::begin(&context));
        let joined = match &plan.attach {
            Some(request) => {
                let joined = join_as_named(&engine, request);
                Some(joined.map_err(|error| attach_failure(&error, request))?)
            }
            None => {
                let namespace = NetnsFd::open(netns).map_err(|error| Failure::new(error.to_string()))?;
                run::loopback_up(&namespace).map_err(|error| Failure::new(format!("{error:#}")))?;
                None
            }
        };
        let finish = || {
            let mut all = match joined {
                Some(info) => {
                    settle(&context, &info, starting)?;
                    let leased = daemon::acquire(&context, &engine, &info);
                    let info = leased.map_err(|error| Failure::new(format!("{error:#}")))?.unwrap_or(info);
                    let mac_of = |name: &str| engine.kernel().find_interface(name).ok()??.mac;
                    portolan_netavark::status(&setup, &info, mac_of)
                }
                None => Default::default(),
            };
            for (name, block) in run_plugins(&setup, &plan, &programs, netns)? {
                all.insert(name, block);
            }
            Ok(serde_json::to_string(&all).expect("plain values serialise"))
        };
        finish().inspect_err(|_| {
            if let Err(failure) = leave(&context, &engine, &setup) {
                tracing::error!("the setup that failed was not taken back whole: {failure}");
            }
            daemon::settle(&context, false);
        })
    }

    /// The plugins that are needed.
    fn programs(&self, plan: &Plan<'_>) -> Result<Vec<Plugin>, Failure> {
        plan.plugins.iter().map(|(network, _)| self.plugin_of(network)).collect()
    }

    fn plugin_of(&self, network: &Network) -> Result<Plugin, Failure> {
        if cluster_network(network).is_some() {
            return Ok(Plugin::Ourselves);
        }
        let found = portolan_netavark::find_plugin(&self.plugin_directory, &network.driver);
        found.map(Plugin::Program).ok_or_else(|| Failure::new(format!("unknown network driver {:?}", network.driver)))
    }

    fn teardown(&self, netns: &Path) -> Result<(), Failure> {
        // Whoever is told to stop while a container goes finishes that first: nobody comes back for it.
        let _deaf = Signals::take(&[signals::INTERRUPT, signals::TERM]);
        let setup = portolan_netavark::parse_setup(&self.read()?)?;
        let context = self.context("teardown")?;
        let mut failures = Vec::new();
        let left = Self::engine(&context).and_then(|engine| leave(&context, &engine, &setup));
        failures.extend(left.err());
        daemon::settle(&context, false);
        for attachment in &setup.networks {
            let Some(network) = setup.network_info.get(&attachment.name) else { continue };
            if portolan_netavark::driver(network).is_some() && cluster_network(network).is_none() {
                continue;
            }
            let plugin = self.plugin_of(network);
            let gone = plugin.and_then(|plugin| plugin.teardown(netns, &input(&setup, network, attachment)));
            failures.extend(gone.err());
        }
        all(failures).map_or(Ok(()), Err)
    }

    fn update(&self, network: &str, servers: &str) -> Result<(), Failure> {
        let context = self.context("update")?;
        let parse = |text: &str| {
            let parsed = text.parse();
            parsed.map_err(|_| {
                Failure::new(format!("{text:?} is not an IP address")).within("unable to modify network dns servers")
            })
        };
        let servers: Vec<IpAddr> =
            servers.split(',').map(str::trim).filter(|text| !text.is_empty()).map(parse).collect::<Result<_, _>>()?;
        let changed = Self::engine(&context)?.forward_names(network, &servers);
        changed.map_err(|error| engine_failure(&error))?;
        daemon::settle(&context, false);
        Ok(())
    }

    fn create(&self) -> Result<String, Failure> {
        let config = portolan_netavark::parse_create(&self.read()?)?;
        let network = portolan_netavark::new_network(config, &Machine { plugins: &self.plugin_directory })?;
        Ok(serde_json::to_string(&network).expect("plain values serialise"))
    }

    fn reload(&self) -> Result<(), Failure> {
        let context = self.context_or_podmans()?;
        let repaired = firewall::reload(&Self::engine(&context)?);
        let repaired = repaired.map_err(|error| Failure::new(format!("{error:#}")))?;
        all(repaired.failures.into_iter().map(Failure::new).collect()).map_or(Ok(()), Err)
    }

    /// Puts rules back now and whenever firewalld has reloaded, as long as there is a system bus.
    fn follow_firewalld(&self) -> Result<(), Failure> {
        let context = self.context_or_podmans()?;
        let engine = Self::engine(&context)?;
        let told = |repaired: anyhow::Result<Repaired>| match repaired {
            Ok(repaired) => repaired.failures.iter().for_each(|failure| tracing::error!("{failure}")),
            Err(error) => tracing::error!("{error:#}"),
        };
        told(firewall::reload(&engine));
        let followed = firewall::follow(&engine, told);
        followed.map_err(|error| Failure::new(format!("{error:#}")).within("DBus error"))?;
        Err(Failure::new("no system bus on which firewalld could be heard"))
    }
}

/// Where names are answered unless somebody says otherwise (RFC 1035 §4.2).
const NAMES_PORT: u16 = 53;

/// The port that `NETAVARK_DNS_PORT` asks names to be answered on, if it is not 53.
fn names_port() -> Result<Option<u16>, Failure> {
    let Ok(text) = std::env::var("NETAVARK_DNS_PORT") else { return Ok(None) };
    let port: u16 = text.parse().map_err(|error| Failure::new(format!("Invalid NETAVARK_DNS_PORT {text}: {error}")))?;
    match port {
        0 => Err(Failure::new("Invalid NETAVARK_DNS_PORT 0: it is no port")),
        NAMES_PORT => Ok(None),
        port => Ok(Some(port)),
    }
}

/// Attaches; a name that another container of this root has gives way to one with the id in it.
pub(crate) fn join_as_named(engine: &Engine, request: &AttachRequest) -> Result<ContainerInfo, Error> {
    match engine.join(request) {
        Err(Error::NameTaken { what: "container", .. }) => {
            let name = request.name.as_ref().zip(request.id).map(|(name, id)| format!("{name}.{}", id.short()));
            let mut other = AttachRequest { name: name.and_then(|name| name.parse().ok()), ..request.clone() };
            for endpoint in &mut other.endpoints {
                endpoint.aliases.extend(request.name.clone());
            }
            engine.join(&other)
        }
        joined => joined,
    }
}

/// Takes a container off the networks of a setup, after what it has by DHCP is given back.
fn leave(context: &Context, engine: &Engine, setup: &Setup) -> Result<(), Failure> {
    let (container, networks) = (container_id(&setup.container_id).to_string(), ids(setup));
    if setup.network_info.values().any(|network| network.ipam() == "dhcp")
        && let Ok(info) = engine.container(&container)
    {
        for (_, network) in info.endpoints.iter().filter(|(_, network)| networks.contains(&network.id.to_string())) {
            daemon::release(context, &info, Some(network.id));
        }
    }
    engine.leave(&container, &networks).map_err(|error| engine_failure(&error))
}

/// Refuses IPv6 where the host's administrator has turned it off, in netavark's words. Bridges of somebody else's get no
/// address.
fn check_ipv6(engine: &Engine, setup: &Setup) -> Result<(), Failure> {
    let speaks_ipv6 = |network: &Network| {
        portolan_netavark::is_managed_bridge(network)
            && network.subnets.iter().flatten().any(|subnet| subnet.subnet.addr().is_ipv6())
    };
    let is_needed = setup.networks.iter().filter_map(|a| setup.network_info.get(&a.name)).any(speaks_ipv6);
    if is_needed && engine.kernel().setting("net/ipv6/conf/all/disable_ipv6").as_deref() != Some("0") {
        let denied = io::Error::from_raw_os_error(13);
        return Err(Failure::new(format!(
            "add ip addr to bridge: failed to add ipv6 address, is ipv6 enabled in the kernel?: Netlink error: {denied}"
        )));
    }
    Ok(())
}

/// Sees to it that names and proxied ports are served, and waits for names. Those that cannot be answered on a network of the
/// container fail it.
fn settle(context: &Context, info: &ContainerInfo, starting: Option<daemon::Starting>) -> Result<(), Failure> {
    let served = |failure: Failure| failure.within("error while applying dns entries");
    let places: Vec<SocketAddr> = info
        .endpoints
        .iter()
        .flat_map(|(_, network)| {
            let port = network.names_port.unwrap_or(NAMES_PORT);
            network.names_places().into_iter().map(move |address| SocketAddr::new(address, port))
        })
        .collect();
    // Podman starts the container when this is done.
    let told = if places.is_empty() { daemon::noticed } else { daemon::served };
    let done = match told(context, starting) {
        Ok(done) => done,
        Err(error) if !places.is_empty() => return Err(served(Failure::new(format!("{error:#}")))),
        Err(error) => {
            tracing::warn!("{error:#}");
            return Ok(());
        }
    };
    for warning in &done.warnings {
        tracing::warn!("{warning}");
    }
    match done.unanswered.iter().find(|address| places.contains(address)) {
        Some(address) => {
            let why = done.warnings.iter().find(|warning| warning.contains(&address.to_string()));
            let mut why = why.cloned().unwrap_or_else(|| format!("names are not answered on {address}"));
            // On a bridge of their own, people may well have a name server already.
            if info.endpoints.iter().any(|(_, network)| network.names_at.contains(&address.ip())) {
                why.push_str(" (free it, or disable DNS for this network: --disable-dns)");
            }
            Err(served(Failure::new(why)))
        }
        None => Ok(()),
    }
}

/// Who sees to a network that is none of this root.
enum Plugin {
    /// A program.
    Program(PathBuf),
    /// We do, in the host's own root.
    Ourselves,
}

impl Plugin {
    fn setup(&self, netns: &Path, input: &PluginInput<'_>) -> Result<Option<StatusBlock>, Failure> {
        match self {
            Self::Program(program) => portolan_netavark::run_plugin(program, "setup", netns, input),
            Self::Ourselves => overlay::setup(input, netns).map(Some),
        }
    }

    fn teardown(&self, netns: &Path, input: &PluginInput<'_>) -> Result<(), Failure> {
        match self {
            Self::Program(program) => portolan_netavark::run_plugin(program, "teardown", netns, input).map(drop),
            Self::Ourselves => overlay::teardown(input),
        }
    }
}

fn input<'a>(setup: &'a Setup, network: &'a Network, attachment: &'a Attachment) -> PluginInput<'a> {
    PluginInput {
        container_id: &setup.container_id,
        container_name: &setup.container_name,
        port_mappings: setup.port_mappings.as_deref(),
        network,
        network_options: attachment,
    }
}

/// Has plugins set up their networks; when one fails, those before it take theirs down.
fn run_plugins(
    setup: &Setup,
    plan: &Plan<'_>,
    programs: &[Plugin],
    netns: &Path,
) -> Result<Vec<(String, StatusBlock)>, Failure> {
    let mut done = Vec::new();
    for ((network, attachment), program) in plan.plugins.iter().zip(programs) {
        match program.setup(netns, &input(setup, network, attachment)) {
            Ok(block) => done.extend(block.map(|block| (attachment.name.clone(), block))),
            Err(failure) => {
                for ((network, attachment), program) in plan.plugins.iter().zip(programs).take(done.len()) {
                    let input = input(setup, network, attachment);
                    if let Err(failure) = program.teardown(netns, &input) {
                        tracing::error!("failed to cleanup network {} after setup failed: {failure}", network.name);
                    }
                }
                return Err(failure);
            }
        }
    }
    Ok(done)
}

/// The ids of the networks that a setup speaks of.
fn ids(setup: &Setup) -> Vec<String> {
    let id = |attachment: &Attachment| match setup.network_info.get(&attachment.name) {
        Some(network) => network_id(network).to_string(),
        None => attachment.name.clone(),
    };
    setup.networks.iter().map(id).collect()
}

/// What a new network depends on.
struct Machine<'a> {
    plugins: &'a [PathBuf],
}

impl Host for Machine<'_> {
    fn interfaces(&self) -> Option<Vec<String>> {
        let found = portolan_kernel::host::HostKernel::new().interfaces().ok()?;
        Some(found.into_iter().map(|(name, _)| name.to_string()).chain(["lo".to_owned()]).collect())
    }

    fn random(&self) -> [u8; 32] {
        portolan_kernel::host::HostKernel::new().random()
    }

    fn now(&self) -> String {
        clock::rfc3339(portolan_kernel::host::HostKernel::new().now())
    }

    fn plugin(&self, network: &Network) -> Result<Network, Failure> {
        if cluster_network(network).is_some() {
            return overlay::create(network.clone());
        }
        let missing =
            || Failure::new(format!("plugin for driver {:?} not found in plugin directories", network.driver));
        let program = portolan_netavark::find_plugin(self.plugins, &network.driver).ok_or_else(missing)?;
        portolan_netavark::run_create_plugin(&program, network)
    }
}

fn version() -> String {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
        commit: &'static str,
        build_time: &'static str,
        target: &'static str,
        default_fw_driver: &'static str,
        portolan: &'static str,
    }
    let version = Version {
        version: COMPATIBLE,
        commit: env!("PORTOLAN_COMMIT"),
        build_time: env!("PORTOLAN_COMMIT_TIME"),
        target: env!("PORTOLAN_TARGET"),
        default_fw_driver: "nftables",
        portolan: env!("CARGO_PKG_VERSION"),
    };
    serde_json::to_string_pretty(&version).expect("plain values serialise")
}
