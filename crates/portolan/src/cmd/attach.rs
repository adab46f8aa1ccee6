//! `portolan attach` and `detach`: namespaces that somebody else made

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use portolan_engine::{AttachRequest, Error};
use portolan_kernel::process::pid_start_time;
use portolan_model::{HostName, Name, NetworkMode, ProcessId};

use crate::cmd::daemon;
use crate::cmd::endpoint::{EndpointArgs, PortArgs, Stack};
use crate::context::{Context, Engine};
use crate::failure::Refused;
use crate::output::{self, Attached, Named};
use crate::{runtime, spec};

/// Put a network namespace that somebody else made on networks, and print the container's id
///
/// When this returns, the addresses answer and the published ports are open. If anything fails, nothing has changed.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("namespace").required(true), after_help = "\
Examples:
  ip netns add blue
  portolan attach --netns /run/netns/blue --name blue -p 8080:80
  portolan attach --pid 4711 --network web --ip 172.30.0.9
  portolan detach blue")]
pub(crate) struct Args {
    /// File of the namespace, such as /run/netns/NAME
    #[arg(long, value_name = "PATH", group = "namespace")]
    netns: Option<PathBuf>,
    /// Process that is in the namespace
    #[arg(long, value_name = "PID", group = "namespace", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// The container's name (default: the start of its id)
    #[arg(long)]
    name: Option<Name>,
    /// The container's host name, for others to know it by
    #[arg(long)]
    hostname: Option<HostName>,
    /// Label, for people and filters
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = spec::label)]
    label: Vec<(String, String)>,
    /// Set a sysctl in the namespace until it is detached; only those that start with `net.`
    #[arg(long, value_name = "NAME=VALUE", value_parser = spec::sysctl)]
    sysctl: Vec<(String, String)>,
    #[command(flatten)]
    endpoints: EndpointArgs,
    #[command(flatten)]
    ports: PortArgs,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let stack = self.endpoints.stack()?;
        self.ports.check(&stack)?;
        let (mode, endpoints) = match stack {
            Stack::Own(endpoints) => (NetworkMode::Own, endpoints),
            Stack::None => (NetworkMode::None, Vec::new()),
            Stack::Host | Stack::Container(_) => {
                return Err(Refused::new("a namespace to attach is a network stack of its own")
                    .hint("name networks to put it on, or `none`")
                    .into());
            }
        };
        let engine = context.engine_for("attach")?;
        let (path, process) = match (self.netns, self.pid) {
            (Some(path), _) => {
                (std::path::absolute(&path).with_context(|| format!("attach `{}`", path.display()))?, None)
            }
            (None, pid) => {
                let pid = pid.context("neither --netns nor --pid is given")?;
                let process = ProcessId { pid, started: start_time(pid)? };
                (format!("/proc/{pid}/ns/net").into(), Some(process))
            }
        };
        let own = mode == NetworkMode::Own;
        let starting = if endpoints.is_empty() { None } else { daemon::begin(context) };
        let info = engine.attach(&AttachRequest {
            name: self.name,
            mode,
            process,
            endpoints,
            publish: if own { self.ports.publish } else { Vec::new() },
            publish_all: own && self.ports.publish_all,
            exposed: self.ports.expose,
            hostname: self.hostname,
            sysctls: self.sysctl.into_iter().collect(),
            labels: self.label.into_iter().collect(),
            ..AttachRequest::namespace(path)
        })?;
        daemon::settle_with(context, !info.endpoints.is_empty(), starting);
        let id = info.container.id.to_string();
        let info = daemon::acquire_or(context, &engine, info, None, || Ok(engine.detach(&id).map(drop)?))?;
        if context.json {
            output::json(&Attached::from(&info))?;
        } else {
            output::print(&format!("{}\n", info.container.id))?;
        }
        Ok(0)
    }
}

fn start_time(pid: i32) -> Result<u64> {
    pid_start_time(pid).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Refused::new(format!("no process {pid}")).hint("`ps` lists the processes").into()
        }
        _ => anyhow::Error::new(error).context(format!("read process {pid}")),
    })
}

/// Take a container off its networks and forget it
///
/// Its interfaces, addresses and published ports go; the namespace stays with whoever made it. Works as well when the
/// namespace is gone.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true), after_help = "\
Examples:
  portolan detach blue
  portolan detach --netns /run/netns/blue")]
pub(crate) struct DetachArgs {
    /// The container's name or id
    #[arg(group = "which")]
    container: Option<String>,
    /// File of the namespace it was attached by
    #[arg(long, value_name = "PATH", group = "which")]
    netns: Option<PathBuf>,
}

impl DetachArgs {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("detach")?;
        let name = match (self.container, self.netns) {
            (Some(name), _) => name,
            (None, path) => holder_of(&engine, &path.context("neither a container nor --netns is given")?)?,
        };
        // Whether it is there at all is the verb's to say.
        if let Ok(info) = engine.container(&name) {
            daemon::release(context, &info, None);
        }
        let container = engine.detach(&name)?;
        runtime::remove(&context.run, container.id);
        daemon::settle(context, false);
        if context.json {
            output::json(&Named::from(&container))?;
        }
        Ok(0)
    }
}

/// The container whose sandbox is at `path`: by the namespace, or by the path if the namespace is gone.
fn holder_of(engine: &Engine, path: &Path) -> Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("detach `{}`", path.display()))?;
    let namespace = std::fs::metadata(&path).ok().map(|found| (found.dev(), found.ino()));
    let all = engine.containers()?;
    let holder = all.iter().find(|info| {
        info.container.sandbox.as_ref().is_some_and(|sandbox| match namespace {
            Some(namespace) => namespace == (sandbox.device, sandbox.inode),
            None => sandbox.path == path,
        })
    });
    match holder {
        Some(info) => Ok(info.container.id.to_string()),
        None => Err(Error::NotFound { what: "container", name: path.display().to_string() }.into()),
    }
}
