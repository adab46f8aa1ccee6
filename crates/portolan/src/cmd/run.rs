//! `portolan run`

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context as _, Result};
use portolan_engine::{AttachRequest, ContainerInfo, EndpointRequest, Error, Kernel as _};
use portolan_kernel::host::HostKernel;
use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::process::{JoinTarget, SandboxChild, SpawnSpec};
use portolan_kernel::rtnl::link::{self, LinkChange};
use portolan_kernel::session::{self, Side};
use portolan_kernel::signals::{self, Event, FORWARDED, Signals};
use portolan_model::{ContainerKind, DnsConfig, Family, HostEntry, HostName, Id, Name, NetworkMode, ProcessId};
use portolan_plan::{leased_names, name_servers};

use crate::cmd::daemon;
use crate::cmd::endpoint::{EndpointArgs, PortArgs, Stack};
use crate::cmd::health::{Checks, HealthArgs};
use crate::context::{Context, Engine};
use crate::failure::{self, Refused};
use crate::output::{self, Named, view};
use crate::resolv::{self, Reach};
use crate::runtime::{self, RuntimeDir};
use crate::spec;

/// Where the program sees the files we make for it.
const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")];

/// Run a command with a network stack of its own
///
/// The command gets its own interfaces, addresses, /etc/hosts, /etc/resolv.conf and host name. The file system is the
/// host's: this is no image runtime. It ends with the command's exit status: 125 if portolan itself failed, 126 if the
/// command cannot be executed, 127 if it is not found, 128 and the signal's number if it was killed. If anything fails,
/// nothing is left behind.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Examples:
  portolan run --rm -- ip addr
  portolan run -d --name site -p 8080:80 -- python3 -m http.server 80
  portolan run --rm --network name=web,alias=db,ip=172.30.0.9 --network lan -- ./server
  portolan run --rm --network container:site -- curl http://127.0.0.1/

Published ports:
  -p 80                  port 80, on a free port of the host
  -p 8080:80             on port 8080 of all addresses, IPv4 and IPv6
  -p 127.0.0.1:8080:80   for this host only
  -p 8000-8009:80        on the first free port of these
  -p 5000-5009:5000-5009/udp"
)]
pub(crate) struct Args {
    /// Go on in the background; print the container's id once the command runs
    #[arg(short, long)]
    detach: bool,
    /// Remove the container when the command ends
    #[arg(long)]
    rm: bool,
    /// The container's name (default: the start of its id)
    #[arg(long)]
    name: Option<Name>,
    /// Set an environment variable; NAME alone passes ours on
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = spec::environment)]
    env: Vec<(String, Option<String>)>,
    /// Directory to run in (default: this one)
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Label, for people and filters
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = spec::label)]
    label: Vec<(String, String)>,
    /// Set a sysctl inside; only those that start with `net.`
    #[arg(long, value_name = "NAME=VALUE", value_parser = spec::sysctl)]
    sysctl: Vec<(String, String)>,
    /// What keeps the command, and what `exec` starts beside it, from more
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<SecurityOption>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    endpoints: EndpointArgs,
    #[command(flatten)]
    ports: PortArgs,
    #[command(flatten)]
    health: HealthArgs,
    /// The host name the command sees (default: the start of the id)
    #[arg(short = 'h', long, value_name = "NAME", help_heading = "Name options")]
    hostname: Option<HostName>,
    /// One more line of /etc/hosts; host-gateway stands for the network's gateway
    #[arg(long, value_name = "NAME:IP", value_parser = spec::host_entry, help_heading = "Name options")]
    add_host: Vec<HostEntry>,
    /// Name server to ask instead of the host's
    #[arg(long, value_name = "IP", value_parser = spec::address, help_heading = "Name options")]
    dns: Vec<IpAddr>,
    /// Domain to look in instead of the host's; `.` for none
    #[arg(long, value_name = "DOMAIN", value_parser = spec::resolver_word, help_heading = "Name options")]
    dns_search: Vec<String>,
    /// Resolver option instead of the host's
    #[arg(long, visible_alias = "dns-option", value_name = "OPTION", value_parser = spec::resolver_word, help_heading = "Name options")]
    dns_opt: Vec<String>,
}

/// A word of `--security-opt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SecurityOption {
    /// No way to the kernel's packet filter: no nft(8), no iptables(8), no conntrack(8), and no io_uring, which goes round filters
    NoNetfilter,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let stack = self.endpoints.stack()?;
        self.check(&stack)?;
        Context::require_privileges("run")?;
        let id = Id::from_bytes(HostKernel::new().random());
        if !self.detach {
            let signals = Signals::take(FORWARDED).context("take signals")?;
            return Ok(self.start(context, stack, id)?.wait(&signals));
        }
        match session::detach().context("go to the background")? {
            Side::Front(front) => match front.wait().context("wait for the supervisor")? {
                Some(0) => {
                    if context.json {
                        let name = self.name.map_or_else(|| id.short(), |name| name.to_string());
                        output::json(&Named { id: id.to_string(), name })?;
                    } else {
                        output::print(&format!("{id}\n"))?;
                    }
                    Ok(0)
                }
                // It has said why.
                Some(code) => Ok(code.into()),
                None => Err(Refused::new("the supervisor was killed").hint("`portolan gc` cleans up after it").into()),
            },
            Side::Back(back) => Ok(self.supervise(context, stack, id, back)),
        }
    }

    /// Refuses flags that do not go with the network stack, in Docker's words.
    fn check(&self, stack: &Stack) -> Result<()> {
        let refuse = |message: &str| Err(Refused::new(message).hint("leave out one of the two").into());
        self.ports.check(stack)?;
        self.health.check()?;
        let shared = matches!(stack, Stack::Container(_));
        if shared && self.hostname.is_some() {
            return refuse("conflicting options: hostname and the network mode");
        }
        if shared && !(self.dns.is_empty() && self.dns_search.is_empty() && self.dns_opt.is_empty()) {
            return refuse("conflicting options: dns and the network mode");
        }
        if shared && !self.add_host.is_empty() {
            return refuse("conflicting options: custom host-to-IP mapping and the network mode");
        }
        if let (Stack::Container(_) | Stack::Host, Some((name, _))) = (stack, self.sysctl.first()) {
            let mode = if shared { "container" } else { "host" };
            return refuse(&format!("sysctl `{name}` not allowed in {mode} network namespace"));
        }
        Ok(())
    }

    /// Everything up to the command: when this returns, it runs. Nothing is left behind on failure.
    fn start(self, context: &Context, stack: Stack, id: Id) -> Result<Running<'_>> {
        let engine = context.engine()?;
        let stack = Prepared::new(&engine, context, stack)?;
        let hostname = match (&stack.mode, self.hostname) {
            (_, Some(name)) => Some(name),
            (NetworkMode::Container(_), None) => stack.hostname.clone(),
            (NetworkMode::Host, None) => None,
            (NetworkMode::Own | NetworkMode::None, None) => {
                Some(id.short().parse().expect("hexadecimal digits are a host name"))
            }
        };
        let dir = RuntimeDir::create(&context.run, id)?;
        let log = if self.detach { Some(dir.log()?) } else { None };
        let mut env = environment(self.env);
        if let Some(name) = &hostname
            && !env.iter().any(|(key, _)| key == "HOSTNAME")
        {
            env.push(("HOSTNAME".into(), name.as_str().into()));
        }
        let stream =
            || log.as_ref().map(|log| log.try_clone().map(OwnedFd::from)).transpose().context("pass on the log");
        let null = log
            .is_some()
            .then(|| File::open("/dev/null").map(OwnedFd::from))
            .transpose()
            .context("open `/dev/null`")?;
        let no_netfilter = self.security_opt.contains(&SecurityOption::NoNetfilter);
        let health_check = self.health.check()?;
        let checks = health_check.clone().map(|check| {
            // Joining a mount namespace leads to its root directory.
            let workdir = self.workdir.clone().or_else(|| std::env::current_dir().ok());
            Checks::new(check, env.clone(), workdir, no_netfilter)
        });
        let mut child = SandboxChild::spawn(&SpawnSpec {
            argv: self.command.clone(),
            env,
            hostname: hostname.as_ref().map(ToString::to_string),
            binds: binds(&dir, &stack, hostname.is_some()),
            workdir: self.workdir,
            stdin: null,
            stdout: stream()?,
            stderr: stream()?,
            new_session: self.detach,
            die_with_parent: true,
            join: stack.join,
            sysctls: self.sysctl.clone(),
            no_netfilter,
        })?;
        let process =
            ProcessId { pid: child.pid(), started: child.start_time().context("read the child's start time")? };
        let own = matches!(stack.mode, NetworkMode::Own);
        let starting = if stack.endpoints.is_empty() { None } else { daemon::begin(context) };
        let mut info = engine.attach(&AttachRequest {
            name: self.name,
            id: Some(id),
            kind: ContainerKind::Run,
            netns: matches!(stack.mode, NetworkMode::Own | NetworkMode::None).then(|| child.netns_path()),
            mode: stack.mode,
            process: Some(process),
            endpoints: stack.endpoints,
            publish: if own { self.ports.publish } else { Vec::new() },
            publish_all: own && self.ports.publish_all,
            exposed: self.ports.expose,
            hostname,
            command: self.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            dns: DnsConfig { servers: self.dns, search: self.dns_search, options: self.dns_opt },
            hosts: self.add_host,
            sysctls: self.sysctl.into_iter().collect(),
            labels: self.label.into_iter().collect(),
            auto_remove: self.rm,
            port_keeper: None,
            no_netfilter,
            health_check,
        })?;
        let release = || -> Result<()> {
            daemon::settle_with(context, !info.endpoints.is_empty(), starting);
            if let Some(leased) = daemon::acquire(context, &engine, &info)? {
                info = leased;
            }
            prepare_files(&engine, &dir, &info)?;
            if info.container.mode == NetworkMode::None {
                loopback_up(&child.netns()?)?;
            }
            // Before the command can end: one whose end nobody waits for is taken down by whoever finds it.
            engine.started(id, process, Some(engine.kernel().this_process()))?;
            Ok(child.release()?)
        };
        let released = release();
        let running = Running { context, engine, child, dir, log, info, checks };
        match released {
            Ok(()) => Ok(running.kept()),
            Err(error) => {
                running.abort();
                Err(error)
            }
        }
    }

    /// The life of the process in the background; its exit status is nobody's but the log's.
    fn supervise(self, context: &Context, stack: Stack, id: Id, back: session::Back) -> i32 {
        let started = Signals::take(FORWARDED)
            .context("take signals")
            .and_then(|signals| Ok((signals, self.start(context, stack, id)?)));
        let (signals, running) = match started {
            Ok(started) => started,
            Err(error) => {
                let code = failure::report(&error, 125);
                let _ = back.report(u8::try_from(code).unwrap_or(125));
                return code;
            }
        };
        let left = match &running.log {
            Some(log) => session::leave_terminal(log.as_fd()),
            None => Ok(()),
        };
        // Do not keep a file system busy that somebody wants to unmount.
        let _ = std::env::set_current_dir("/");
        // Whoever waited for us gave up: so do we.
        if left.is_err() || back.is_abandoned().unwrap_or(true) || back.report(0).is_err() {
            running.abort();
            return 125;
        }
        running.wait(&signals)
    }
}

/// A container whose command runs.
struct Running<'a> {
    context: &'a Context,
    engine: Engine,
    child: SandboxChild,
    dir: RuntimeDir,
    log: Option<File>,
    info: ContainerInfo,
    checks: Option<Checks>,
}

impl Running<'_> {
    fn kept(mut self) -> Self {
        self.dir.keep();
        self
    }

    /// Stands for the command until it ends; its exit status.
    fn wait(mut self, signals: &Signals) -> i32 {
        let (context, id, checks) = (self.context, self.info.container.id, self.checks.take());
        let pid = self.child.pid();
        let stood = std::thread::scope(|scope| {
            if let Some(checks) = &checks {
                scope.spawn(move || checks.run(context, id, pid));
            }
            let stood = stand_for(&mut self.child, signals);
            checks.iter().for_each(Checks::stop);
            stood
        });
        let code = match stood {
            Ok(status) => status_code(status),
            Err(error) => {
                let code = failure::report(&error, 125);
                self.abort();
                return code;
            }
        };
        let container = &self.info.container;
        let ended = self.engine.exited(container.id, code);
        daemon::settle(self.context, false);
        let id = container.id.to_string();
        let is_gone = || matches!(self.engine.container(&id), Err(Error::NotFound { .. }));
        // Somebody may have removed it, and not waited for us to let go of its files.
        self.dir.let_go(|| container.auto_remove || is_gone());
        if let Err(error) = ended {
            failure::report(
                &anyhow::Error::new(error).context(format!("clean up after container `{}`", container.name)),
                1,
            );
        }
        code
    }

    /// Kills the command and forgets the container.
    fn abort(mut self) {
        let id = self.info.container.id.to_string();
        // Some addresses may have come, and their interfaces go with the command.
        if let Ok(now) = self.engine.container(&id) {
            daemon::release(self.context, &now, None);
        }
        let _ = self.child.pidfd().signal(signals::KILL);
        let _ = self.child.wait();
        self.dir.discard();
        match self.engine.detach(&id) {
            Ok(_) | Err(Error::NotFound { .. }) => {}
            Err(error) => {
                failure::report(&error.into(), 1);
            }
        }
        daemon::settle(self.context, false);
    }
}

/// A network stack, with what there is of it before the command.
struct Prepared {
    mode: NetworkMode,
    endpoints: Vec<EndpointRequest>,
    join: Option<JoinTarget>,
    /// The host name of the container whose stack it is.
    hostname: Option<HostName>,
    /// The run-time files of that container.
    files: Option<PathBuf>,
}

impl Prepared {
    fn new(engine: &Engine, context: &Context, stack: Stack) -> Result<Self> {
        let own = |mode, endpoints| Self { mode, endpoints, join: None, hostname: None, files: None };
        let host = || -> Result<_> { Ok(Some(JoinTarget::netns(NetnsFd::current()?))) };
        Ok(match stack {
            Stack::Own(endpoints) => own(NetworkMode::Own, endpoints),
            Stack::None => own(NetworkMode::None, Vec::new()),
            Stack::Host => Self { join: host()?, ..own(NetworkMode::Host, Vec::new()) },
            Stack::Container(name) => {
                let other = engine.container(&name)?;
                let id = other.container.id;
                if !other.alive {
                    return Err(anyhow::Error::new(Error::NotRunning { container: other.container.name.to_string() })
                        .context(format!("join the network of container `{name}`")));
                }
                // The stack may be one that it shares itself.
                let mut owner = other;
                while let NetworkMode::Container(next) = owner.container.mode {
                    owner = engine.container(&next.to_string())?;
                }
                let join = match &owner.container.sandbox {
                    Some(sandbox) => Some(JoinTarget::netns(NetnsFd::open(&sandbox.path)?)),
                    None if owner.container.mode == NetworkMode::Host => host()?,
                    None => return Err(Error::NotRunning { container: owner.container.name.to_string() }.into()),
                };
                Self {
                    mode: NetworkMode::Container(id),
                    endpoints: Vec::new(),
                    join,
                    hostname: owner.container.hostname.clone(),
                    files: Some(runtime::dir(&context.run, owner.container.id)),
                }
            }
        })
    }
}

/// Which files are bound over which. Those that the host lacks are left out: there is nothing to bind over.
fn binds(dir: &RuntimeDir, stack: &Prepared, named: bool) -> Vec<(PathBuf, PathBuf)> {
    let ours = |name: &str| match &stack.files {
        Some(theirs) => Some(theirs.join(name)).filter(|path| path.exists()),
        None => (named || name != "hostname").then(|| dir.file(name)),
    };
    FILES
        .iter()
        .filter(|(_, target)| Path::new(target).exists())
        .filter_map(|(name, target)| Some((ours(name)?, target.into())))
        .collect()
}

/// Writes what the command will see.
fn prepare_files(engine: &Engine, dir: &RuntimeDir, info: &ContainerInfo) -> Result<()> {
    let container = &info.container;
    if matches!(container.mode, NetworkMode::Container(_)) {
        return Ok(());
    }
    let hosts = if container.mode == NetworkMode::Host {
        hosts_of_the_host(&container.hosts)
    } else {
        engine.hosts_file(info)?
    };
    dir.write("hosts", &hosts)?;
    dir.write("resolv.conf", &resolver_file(info))?;
    if let Some(name) = &container.hostname {
        dir.write("hostname", &format!("{name}\n"))?;
    }
    Ok(())
}

/// The resolver file of a container: what was asked for, then what DHCP servers say, then the host's.
fn resolver_file(info: &ContainerInfo) -> String {
    let mut dns = info.container.dns.clone();
    let (servers, domains) = leased_names(&view(info));
    if dns.servers.is_empty() {
        dns.servers = servers;
    }
    if dns.search.is_empty() {
        dns.search = domains;
    }
    resolv::content(&dns, &reach(info))
}

/// Where the container's resolver finds its name servers.
fn reach(info: &ContainerInfo) -> Reach {
    if info.container.mode == NetworkMode::Host {
        return Reach::Host;
    }
    let ipv6 = info.endpoints.iter().any(|(endpoint, _)| endpoint.address(Family::V6).is_some());
    let gateways = name_servers(&view(info));
    if daemon::is_off() || gateways.is_empty() { Reach::Network { ipv6 } } else { Reach::Gateways(gateways) }
}

/// Writes those files of a container of ours anew that say where it is.
pub(crate) fn refresh_files(run: &Path, engine: &Engine, info: &ContainerInfo) -> Result<()> {
    let id = info.container.id;
    runtime::rewrite(run, id, "hosts", &engine.hosts_file(info)?)?;
    runtime::rewrite(run, id, "resolv.conf", &resolver_file(info))
}

/// The host's own hosts file with what `--add-host` adds.
fn hosts_of_the_host(added: &[HostEntry]) -> String {
    // A comment may be in any encoding.
    let mut text = String::from_utf8_lossy(&std::fs::read("/etc/hosts").unwrap_or_default()).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for entry in added {
        let address = entry.address.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        text.push_str(&format!("{address}\t{}\n", entry.name));
    }
    text
}

/// Brings up the loopback interface of a namespace that is to have no other of ours.
pub(crate) fn loopback_up(namespace: &NetnsFd) -> Result<()> {
    let up = || {
        let mut batch = Batch::new();
        link::set(&mut batch, "lo", &LinkChange { up: Some(true), ..LinkChange::default() });
        Socket::open(ROUTE)?.transact(&batch).map(drop)
    };
    with_netns(namespace, up)?.context("bring up loopback")
}

/// What `--env` asks for; a name alone is what our own environment has, if it has it.
pub(crate) fn environment(pairs: Vec<(String, Option<String>)>) -> Vec<(OsString, OsString)> {
    pairs
        .into_iter()
        .filter_map(|(name, value)| {
            Some((name.clone().into(), value.map(OsString::from).or_else(|| std::env::var_os(&name))?))
        })
        .collect()
}

/// Passes signals on to a child until it ends.
pub(crate) fn stand_for(child: &mut SandboxChild, signals: &Signals) -> Result<ExitStatus> {
    loop {
        match signals.wait(child.pidfd()).context("wait for the command")? {
            Event::Ended => return child.wait().context("wait for the command"),
            // What the terminal sends goes to the whole foreground process group: the command has it already.
            Event::Signal { from_kernel: true, .. } => {}
            Event::Signal { number, .. } => match child.pidfd().signal(number) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(number, %error, "signal not passed on")
                }
                _ => {}
            },
        }
    }
}

/// The status as shells have it.
pub(crate) fn status_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
