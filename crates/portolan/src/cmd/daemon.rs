//! `portolan daemon`

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_engine::ContainerInfo;
use portolan_kernel::session::{self, Side};
use portolan_model::{Family, Id, Network};
use portolan_resident::control::{self, Answer, Client, Done, Request};
use portolan_resident::daemon::{self, Config};
use portolan_resident::docker_api;
use portolan_resident::supervise::{self, Service};
use portolan_store::Queue;

use crate::context::{Context, Engine};
use crate::failure::Refused;
use crate::{output, resolv};

/// Serve names, repair and proxied ports; for service managers
///
/// Commands start a daemon by themselves when a container joins a network, and it leaves when the last one has gone. Under
/// systemd or another service manager, run `portolan daemon` in the foreground: it says when it is ready and has its
/// sockets kept over a restart (sd_notify(3)).
///
/// With PORTOLAN_DAEMON=off in the environment commands start none; then names are not answered, `[::1]` is not served,
/// and what others change in the kernel stays until the next command.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  portolan daemon status
  portolan daemon start --docker     and have networks of driver `portolan` in Docker
  portolan daemon start --api        and have `docker -H unix:///run/portolan/docker.sock` manage networks
  portolan daemon upgrade            go on as the portolan that is installed now; nothing is lost
  portolan daemon                    in the foreground, until a signal ends it"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

/// Where Docker looks for a plugin of our name.
pub(crate) const DOCKER_SOCKET: &str = "/run/docker/plugins/portolan.sock";

/// How the daemon runs.
#[derive(Debug, Default, clap::Args)]
struct RunArgs {
    /// Leave when no container is on any network
    #[arg(long)]
    on_demand: bool,
    /// Serve Docker's network plugin at SOCKET, by default /run/docker/plugins/portolan.sock
    ///
    /// That is where Docker looks for it: `docker network create -d portolan` makes networks then. The daemon stays, also when
    /// no container is on any network.
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = DOCKER_SOCKET, conflicts_with = "on_demand")]
    docker: Option<PathBuf>,
    /// Serve Docker's Engine API at SOCKET, by default `docker.sock` among the run-time files
    ///
    /// There the `docker` client, and whatever else speaks to Docker, manages Portolan's own networks, and no Docker is needed:
    /// `docker -H unix:///run/portolan/docker.sock network ls`. It shows containers, but makes none. Not to be mixed up with
    /// --docker, by which a Docker that runs uses Portolan for its networks. The daemon stays, also when no container is on any
    /// network.
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, conflicts_with = "on_demand")]
    api: Option<Option<PathBuf>>,
    /// Let members of GROUP, a name or a number, use the API; by default `docker` where there is such a group
    ///
    /// Who may use it may change the networks of this host as root can.
    #[arg(long, value_name = "GROUP", requires = "api")]
    api_group: Option<String>,
    /// Tell metrics by TCP as well; always by HTTP on the unix socket `metrics.sock` among the run-time files
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start one in the background, unless one runs; return when it answers
    Start(RunArgs),
    /// Show whether one runs, and how it is
    ///
    /// Exits with 1 if none runs, or something is not as it should be.
    Status,
    /// End it: names are not answered and nothing is repaired until one is started again
    Stop,
    /// Go on as this very program, without losing a question, a connection or a packet
    Upgrade,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        match self.command {
            None => {
                Context::require_privileges("daemon")?;
                daemon::run(config(context, &self.run))
            }
            Some(Command::Start(run)) => {
                Context::require_privileges("daemon start")?;
                start(context, &run)
            }
            Some(Command::Status) => status(context),
            Some(Command::Stop) => tell(context, &Request::Stop {}, "stopped"),
            Some(Command::Upgrade) => {
                let binary = std::env::current_exe().context("find this program")?;
                tell(context, &Request::Upgrade { binary }, "upgraded")
            }
        }
    }
}

impl RunArgs {
    /// Where Docker's API is to be served, if it is.
    fn api_socket(&self, context: &Context) -> Option<PathBuf> {
        let asked = self.api.as_ref()?;
        Some(asked.clone().unwrap_or_else(|| context.run.join("docker.sock")))
    }
}

fn config(context: &Context, run: &RunArgs) -> Config {
    let api = run.api_socket(context).map(|socket| docker_api::Config {
        socket,
        group: run.api_group.clone(),
        refresh: super::run::refresh_files,
    });
    Config {
        root: context.root.clone(),
        run: context.run.clone(),
        on_demand: run.on_demand,
        firewall: context.firewall,
        docker: run.docker.clone(),
        api,
        metrics: run.metrics,
        resolv_conf: resolv::host_file(),
        arguments: arguments(context, run),
    }
}

/// The command line of the daemon in the foreground.
fn arguments(context: &Context, run: &RunArgs) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["daemon".into(), "--root".into(), context.root.clone().into()];
    if run.on_demand {
        arguments.push("--on-demand".into());
    }
    if let Some(socket) = &run.docker {
        arguments.push("--docker".into());
        arguments.push(socket.into());
    }
    if let Some(socket) = run.api_socket(context) {
        arguments.push("--api".into());
        arguments.push(socket.into());
    }
    if let Some(driver) = context.firewall {
        arguments.push("--firewall-driver".into());
        arguments.push(driver.name().into());
    }
    if let Some(group) = &run.api_group {
        arguments.push("--api-group".into());
        arguments.push(group.into());
    }
    if let Some(address) = run.metrics {
        arguments.push("--metrics".into());
        arguments.push(address.to_string().into());
    }
    arguments
}

/// How long a daemon has until it says that it is ready: as long as systemd gives a service (`DefaultTimeoutStartSec=`,
/// systemd-system.conf(5)).
const READY: Duration = Duration::from_secs(90);

fn start(context: &Context, run: &RunArgs) -> Result<i32> {
    daemon::directories(&context.root, &context.run)?;
    // Others who want one wait here until it answers.
    let path = context.run.join("daemon.start");
    let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let starting = Queue::default().lock(&path, context.wait, open)?;
    // One that leaves does not answer.
    if let Some(mut client) = Client::connect(&context.run)?
        && client.ask(&Request::Status {})?.is_some()
    {
        let wanted = [("plugin", run.docker.clone()), ("API", run.api_socket(context))];
        let mut wanted = wanted.into_iter().filter_map(|(what, socket)| Some((what, socket?)));
        return match wanted.find(|(_, socket)| UnixStream::connect(socket).is_err()) {
            None => Ok(0),
            Some((what, socket)) => Err(Refused::new(format!(
                "a daemon runs already, and does not serve Docker's {what} at `{}`",
                socket.display()
            ))
            .hint("end it first: portolan daemon stop; containers go on meanwhile")
            .into()),
        };
    }
    let log = context.run.join("daemon.log");
    match session::detach().context("go to the background")? {
        Side::Front(front) => match front.wait_for(READY) {
            Ok(Some(0)) => Ok(0),
            Ok(_) => Err(did_not_start(&log).into()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Refused::new(format!("the daemon is not ready after {} s", READY.as_secs()))
                    .hint(format!("its log is `{}`; `portolan daemon stop` ends it", log.display()))
                    .into())
            }
            Err(error) => Err(error).context("wait for the daemon"),
        },
        Side::Back(back) => {
            drop(starting);
            let mut back = Some(back);
            match supervise(context, run, &log, || {
                if let Some(back) = back.take() {
                    let _ = back.report(0);
                }
            }) {
                Ok(code) => Ok(code),
                Err(error) => {
                    tracing::error!("{error:#}");
                    Ok(1)
                }
            }
        }
    }
}

/// Stands behind the daemon as long as it lives.
fn supervise(context: &Context, run: &RunArgs, log: &Path, ready: impl FnMut()) -> Result<i32> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(log);
    session::leave_terminal(file.with_context(|| format!("create `{}`", log.display()))?.as_fd())?;
    std::env::set_current_dir("/")?;
    let Some(lock) = daemon::lock(&context.run)? else { return Ok(0) };
    let program = std::env::current_exe().context("find this program")?;
    let service = Service { command: (&program, &arguments(context, run)), run: &context.run, lock: &lock };
    supervise::supervise(&service, ready)
}

fn did_not_start(log: &Path) -> Refused {
    let why = fs::read_to_string(log).unwrap_or_default();
    let why = why.lines().rfind(|line| line.starts_with("portolan: ")).unwrap_or("portolan: it said nothing");
    Refused::new(format!("the daemon did not start: {}", why.trim_start_matches("portolan: ")))
        .hint(format!("its log is `{}`", log.display()))
}

/// A conversation with the daemon of this root.
pub(crate) fn client(context: &Context) -> Result<Client> {
    Client::connect(&context.run)?.ok_or_else(|| none_runs().into())
}

fn none_runs() -> Refused {
    Refused::new("no daemon runs for this root")
        .hint("`portolan daemon start` starts one; so does a container on a network")
}

fn tell(context: &Context, request: &Request, done: &str) -> Result<i32> {
    let Done { warnings, .. } = client(context)?.tell(request)?.unwrap_or_default();
    if context.json {
        output::json(&serde_json::json!({ "done": done, "warnings": warnings }))?;
    } else {
        for warning in &warnings {
            crate::failure::print(warning, None);
        }
    }
    Ok(0)
}

fn status(context: &Context) -> Result<i32> {
    let Some(Answer::Status(status)) = client(context)?.ask(&Request::Status {})? else {
        return Err(none_runs().into());
    };
    if context.json {
        output::json(&status)?;
    } else {
        let mut text = format!(
            "daemon {} runs as process {} since {} s\nsupervisor: {}\nleaves when not needed: {}\nnames: {} endpoints on {} networks, up to commit {}\n",
            status.version,
            status.pid,
            status.uptime,
            status.supervisor,
            if status.on_demand { "yes" } else { "no" },
            status.endpoints,
            status.networks,
            status.revision,
        );
        for warning in &status.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        output::print(&text)?;
    }
    Ok(i32::from(!status.warnings.is_empty()))
}

/// How often a command looks for a daemon and starts one: the first may just be leaving.
const ATTEMPTS: usize = 3;

/// Whether commands are to do without a daemon.
pub(crate) fn is_off() -> bool {
    std::env::var_os("PORTOLAN_DAEMON").is_some_and(|value| value == "off")
}

/// Waits until what was committed is in force with the daemon; starts one if `is_needed` and none runs.
///
/// The verb is done whatever comes of this: failures are warnings.
pub(crate) fn settle(context: &Context, is_needed: bool) {
    settle_with(context, is_needed, None);
}

/// The same with what [`begin`] began.
pub(crate) fn settle_with(context: &Context, is_needed: bool, starting: Option<Starting>) {
    warn_of(settle_by(context, is_needed, starting, Patience::Served));
}

/// The same, waiting as [`noticed`] does.
pub(crate) fn notice_with(context: &Context, starting: Option<Starting>) {
    warn_of(noticed(context, starting));
}

fn warn_of(done: Result<Done>) {
    match done {
        Ok(done) => done.warnings.iter().for_each(|warning| crate::failure::print(warning, None)),
        Err(error) => {
            crate::failure::report(&error.context("names and proxied ports are not served"), 0);
        }
    }
}

/// Has what was committed be in force with the daemon, for who decides what becomes of failures; starts one if none runs.
///
/// # Errors
/// When there is no daemon to be had.
pub(crate) fn served(context: &Context, starting: Option<Starting>) -> Result<Done> {
    settle_by(context, true, starting, Patience::Served)
}

/// The same for a container in which nothing runs before the verb is done, and which asks for no names: there is nothing to be
/// reached or to be closed yet, so that it is enough that the daemon has been told.
///
/// # Errors
/// When there is no daemon to be had.
pub(crate) fn noticed(context: &Context, starting: Option<Starting>) -> Result<Done> {
    settle_by(context, true, starting, Patience::Noticed)
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// What was committed is in force.
    Served,
    /// A daemon that stays has been told.
    Noticed,
}

/// Whether the daemon has let this process wait in vain.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

fn settle_by(context: &Context, is_needed: bool, starting: Option<Starting>, patience: Patience) -> Result<Done> {
    // Who takes back what could not be served does not wait as long once more.
    if IS_SILENT.load(Ordering::Relaxed) {
        return Ok(Done::default());
    }
    let asked = ask_to_settle(context, is_needed, starting, patience);
    if asked.as_ref().is_err_and(|error| error.is::<control::Silent>()) {
        IS_SILENT.store(true, Ordering::Relaxed);
    }
    asked
}

fn ask_to_settle(
    context: &Context,
    is_needed: bool,
    mut starting: Option<Starting>,
    patience: Patience,
) -> Result<Done> {
    let took = u64::try_from(context.started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let request = Request::Sync { command: Some((context.command.clone(), took)) };
    for _ in 0..ATTEMPTS {
        let (client, child) = match starting.take() {
            Some(Starting::Runs(mut client)) => match client.answer()? {
                Some(Answer::Done(_)) if patience == Patience::Noticed && client.send(&request)? => {
                    return Ok(Done::default());
                }
                // An older one does not know what it was asked.
                Some(_) => (Some(client), None),
                // It left before it heard us.
                None => (None, None),
            },
            Some(Starting::Comes(child)) => (None, Some(child)),
            None => (Client::connect(&context.run)?, None),
        };
        // One that leaves while we ask has nothing to serve, unless we have just made something.
        if let Some(mut client) = client
            && let Some(done) = client.tell(&request)?
        {
            return Ok(done);
        }
        if !is_needed || is_off() {
            return Ok(Done::default());
        }
        launched(context, child.map_or_else(|| spawn(context), Ok)?)?;
    }
    Err(Refused::new("the daemon leaves as soon as it was started").into())
}

/// How long a DHCP server has to give a container its address: as long as netavark waits.
const LEASE_SECONDS: u32 = 8;

/// Waits for the addresses that a container has by DHCP, if it has any; the container with them, if so. Starts the daemon
/// that gets them if none runs.
///
/// # Errors
/// Why it has none; the caller takes back what it did.
pub(crate) fn acquire(context: &Context, engine: &Engine, info: &ContainerInfo) -> Result<Option<ContainerInfo>> {
    let leases = |network: &Network| Family::ALL.into_iter().any(|family| network.leases(family));
    let Some((_, network)) = info.endpoints.iter().find(|(_, network)| leases(network)) else { return Ok(None) };
    if is_off() {
        return Err(Refused::new(format!(
            "attach `{}` to `{}`: its addresses come by DHCP, and the daemon that gets them is switched off",
            info.container.name, network.name
        ))
        .hint("unset PORTOLAN_DAEMON, or choose another network")
        .into());
    }
    let id = info.container.id;
    let acquired = (|| {
        for _ in 0..ATTEMPTS {
            if control::acquire(&context.run, id, LEASE_SECONDS)? {
                return Ok(());
            }
            launched(context, spawn(context)?)?;
        }
        Err(Refused::new("the daemon leaves as soon as it was started").into())
    })();
    match acquired {
        Ok(()) => Ok(Some(engine.container(&id.to_string())?)),
        Err(error) => {
            let error: anyhow::Error = error;
            let hint = format!("see that a DHCP server serves the network behind `{}` of the host", network.bridge);
            let error =
                if error.is::<Refused>() { error } else { Refused::new(format!("{error:#}")).hint(hint).into() };
            Err(error.context(format!("attach `{}` to `{}`", info.container.name, network.name)))
        }
    }
}

/// [`acquire`], or `undo`: what was attached, on `network` or on all, is taken off again by that, after what it got
/// meanwhile is given back.
///
/// # Errors
/// As [`acquire`]; that `undo` failed is reported.
pub(crate) fn acquire_or(
    context: &Context,
    engine: &Engine,
    info: ContainerInfo,
    network: Option<Id>,
    undo: impl FnOnce() -> Result<()>,
) -> Result<ContainerInfo> {
    match acquire(context, engine, &info) {
        Ok(leased) => Ok(leased.unwrap_or(info)),
        Err(error) => {
            // One of several addresses may have come.
            if let Ok(now) = engine.container(&info.container.id.to_string()) {
                release(context, &now, network);
            }
            if let Err(error) = undo() {
                crate::failure::report(&error.context("what was attached is not taken off again"), 1);
            }
            settle(context, false);
            Err(error)
        }
    }
}

/// Gives back what a container holds by DHCP, on `network` or on all, before its interfaces go.
pub(crate) fn release(context: &Context, info: &ContainerInfo, network: Option<Id>) {
    let mut held = info.endpoints.iter().filter(|(_, on)| network.is_none_or(|id| on.id == id));
    if held.any(|(endpoint, _)| endpoint.leases().next().is_some()) {
        control::release(&context.run, info.container.id, network);
    }
}

/// The daemon that a verb will need.
#[derive(Debug)]
pub(crate) enum Starting {
    /// It runs, and was asked to stay.
    Runs(Client),
    /// It is being started.
    Comes(Child),
}

/// Finds the daemon, or begins to start one, while the caller does what it will be needed for; [`served`] waits for it.
pub(crate) fn begin(context: &Context) -> Option<Starting> {
    if is_off() {
        return None;
    }
    match Client::connect(&context.run) {
        // One that leaves at this moment does not answer; then another is started.
        Ok(Some(mut client)) => matches!(client.send(&Request::Hold {}), Ok(true)).then_some(Starting::Runs(client)),
        Ok(None) => spawn(context).ok().map(Starting::Comes),
        // Who waits for it says why.
        Err(_) => None,
    }
}

/// Starts a daemon that leaves when it is not needed.
fn spawn(context: &Context) -> Result<Child> {
    let program: PathBuf = std::env::current_exe().context("find this program")?;
    std::process::Command::new(&program)
        // It may be installed under the name of a face.
        .arg0("portolan")
        // The command first: then the parser is told of this one alone.
        .args(["daemon", "start", "--on-demand", "--root"])
        .arg(&context.root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}`", program.display()))
}

/// Waits until a daemon answers that is being started.
fn launched(context: &Context, child: Child) -> Result<()> {
    let output = child.wait_with_output().context("wait for the daemon")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("it said nothing").trim_start_matches("portolan: ");
        return Err(Refused::new(said)
            .hint(format!("its log is `{}`", context.run.join("daemon.log").display()))
            .into());
    }
    Ok(())
}
