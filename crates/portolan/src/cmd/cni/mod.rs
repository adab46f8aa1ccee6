//! The binary called as a CNI plugin: by a runtime, with `CNI_COMMAND` in the environment.

use std::error::Error as _;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;

use portolan_cni::{Attachment, Call, Code, Config, Error, Plan, SUPPORTED, Success, Target, Verb};
use portolan_engine::{ContainerInfo, EndpointRequest, Kernel as _, NetworkRequest};
use portolan_kernel::netns::NetnsFd;
use portolan_model::{Endpoint, Id, Network};
use portolan_plugins::{Answer, delegate, dhcp};

use crate::cmd::daemon;
use crate::context::{Context, Engine};
use crate::{failure, output};

/// No configuration is longer: runtimes' are a few kilobytes.
const LONGEST: u64 = 16 << 20;

/// The version of the reference plugins that these are like, for callers who look (nerdctl).
const COMPATIBLE: &str = "1.9.0";

/// The plugins that this program is, by name.
pub(crate) fn types() -> impl Iterator<Item = &'static str> {
    ["portolan"].into_iter().chain(portolan_plugins::TYPES)
}

/// Does what the environment says if the binary was called as a plugin; the exit status.
pub(crate) fn called() -> Option<i32> {
    let mut words = std::env::args_os();
    let name = PathBuf::from(words.next()?).file_name()?.to_str()?.to_owned();
    let kind = types().find(|kind| *kind == name)?;
    let has_command = std::env::var_os("CNI_COMMAND").is_some_and(|command| !command.is_empty());
    // By its own name it is a command line for people, unless a runtime says otherwise.
    let word = words.next();
    if kind == "portolan" && (!has_command || word.is_some()) {
        return None;
    }
    if kind == "dhcp" && word.is_some_and(|word| word == "daemon") {
        return Some(dhcp_daemon(words));
    }
    // The kernel tells who changed rules by this name (`NFTA_GEN_PROC_NAME`).
    let _ = fs::write("/proc/self/comm", portolan_resident::repair::OURS);
    start_log(tracing::Level::WARN);
    Some(match answer(kind) {
        Ok(answer) => match output::print(&answer) {
            Ok(()) => 0,
            Err(_) => 1,
        },
        Err(error) => {
            let _ = output::print(&error.to_json());
            1
        }
    })
}

/// Logs go to standard error, which runtimes keep for failures.
fn start_log(usual: tracing::Level) {
    let wanted = std::env::var("PORTOLAN_LOG").unwrap_or_default();
    crate::log::start(wanted.parse().unwrap_or(usual));
}

/// `dhcp daemon`, with its flags; the exit status.
fn dhcp_daemon(words: impl Iterator<Item = OsString>) -> i32 {
    let flags = match dhcp::daemon::Flags::read(words.map(|word| word.to_string_lossy().into_owned())) {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            eprint!("{}", dhcp::daemon::USAGE);
            return 0;
        }
        Err(misuse) => {
            eprint!("{misuse}\n{}", dhcp::daemon::USAGE);
            return 2;
        }
    };
    start_log(tracing::Level::INFO);
    match dhcp::daemon::run(&flags) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    }
}

/// Does what the environment says; what is to be printed.
fn answer(kind: &str) -> Result<String, Error> {
    let Some(call) = Call::read(|name| std::env::var_os(name))? else {
        let supported = SUPPORTED.map(|version| version.to_string()).join(", ");
        eprintln!("CNI {kind} plugin v{COMPATIBLE}\nCNI protocol versions supported: {supported}");
        return Ok(String::new());
    };
    if call.verb == Verb::Version {
        return Ok(portolan_cni::versions());
    }
    let text = read()?;
    let config = if kind == "portolan" { Config::parse(&text)? } else { Config::parse_without_ipam(&text)? };
    call.check()?;
    if call.verb == Verb::Check && !config.version().has_check() {
        return Err(Error::new(Code::Incompatible, "config version does not allow CHECK"));
    }
    if matches!(call.verb, Verb::Gc | Verb::Status) && !config.version().has_gc() {
        let verb = if call.verb == Verb::Gc { "GC" } else { "STATUS" };
        return Err(Error::new(Code::Incompatible, format!("config version does not allow {verb}")));
    }
    if matches!(call.verb, Verb::Add | Verb::Check) {
        check_netns(&call)?;
    }
    let success = match kind {
        "portolan" => Plugin {
            context: Context::new("cni", std::env::var_os("PORTOLAN_ROOT").map(PathBuf::from), false, None),
            call,
            config,
            text,
        }
        .run()?,
        _ => portolan_plugins::run(kind, &call, &config, &text)?,
    };
    match success {
        Some((success, version)) => success.to_json(version),
        None => Ok(String::new()),
    }
}

fn read() -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    io::stdin()
        .lock()
        .take(LONGEST + 1)
        .read_to_end(&mut text)
        .map_err(|error| Error::new(Code::Io, format!("error reading from stdin: {error}")))?;
    if text.len() as u64 > LONGEST {
        return Err(Error::new(Code::Decoding, format!("configuration is longer than {} MiB", LONGEST >> 20)));
    }
    Ok(text)
}

/// Refuses a namespace that is not there, or is the one we are in.
fn check_netns(call: &Call) -> Result<(), Error> {
    let netns = NetnsFd::open(&call.netns).map_err(|error| {
        let mut msg = format!("failed to open netns {:?}: {error}", call.netns);
        if let Some(cause) = error.source() {
            msg = format!("{msg}: {cause}");
        }
        Error::new(Code::InvalidNetns, msg)
            .details("the runtime makes the namespace before it calls, and removes it after DEL")
    })?;
    if !call.may_be_own_netns && NetnsFd::current().is_ok_and(|own| own.identity() == netns.identity()) {
        let msg = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(Error::new(Code::InvalidNetns, msg));
    }
    Ok(())
}

/// The plugin `portolan`: a whole chain of plugins in one.
struct Plugin {
    context: Context,
    call: Call,
    config: Config,
    /// The configuration as it came, for others.
    text: Vec<u8>,
}

impl Plugin {
    fn run(&self) -> Answer {
        match self.call.verb {
            Verb::Add => self.add().map(|success| Some((success, self.config.version()))),
            Verb::Del => self.del().map(|()| None),
            Verb::Check => self.check().map(|()| None),
            Verb::Gc => self.gc().map(|()| None),
            Verb::Status => self.status().map(|()| None),
            Verb::Version => Ok(None),
        }
    }

    fn engine(&self, verb: &str) -> Result<Engine, Error> {
        self.context.engine_for(verb).map_err(|error| internal(&error))
    }

    /// Asks the IPAM plugin, if addresses are another's.
    fn delegated(&self, verb: Verb) -> Result<Option<Success>, Error> {
        let Some(kind) = self.config.ipam_plugin() else { return Ok(None) };
        let answer = delegate::run(kind, &self.call, verb, &self.text)?;
        if verb == Verb::Add { Success::parse(&answer).map(Some) } else { Ok(None) }
    }

    fn target(&self) -> Target {
        Target::of(&self.config)
    }

    fn container(&self) -> Id {
        portolan_cni::container_id(&self.call.container)
    }

    fn add(&self) -> Result<Success, Error> {
        let engine = self.engine("cni")?;
        let delegated = self.delegated(Verb::Add)?;
        self.add_with(&engine, delegated.as_ref()).inspect_err(|_| {
            if let Err(error) = self.delegated(Verb::Del) {
                tracing::warn!("addresses are not given back: {error}");
            }
        })
    }

    fn add_with(&self, engine: &Engine, delegated: Option<&Success>) -> Result<Success, Error> {
        portolan_cni::check_duplicate_sysctls(&self.text)?;
        let plan = Plan::of(&self.config, delegated)?;
        let request = portolan_cni::plan(&self.call, &self.config, &plan, delegated)?;
        let starting = daemon::begin(&self.context);
        let info = engine.join(&request)?;
        let network = &self.endpoint(&info)?.1;
        // The runtime starts the container when this is done.
        if network.answers_names() {
            daemon::settle_with(&self.context, true, starting);
        } else {
            daemon::notice_with(&self.context, starting);
        }
        let network = network.id;
        let undo = || Ok(engine.leave(&info.container.id.to_string(), &[network.to_string()])?);
        let info = daemon::acquire_or(&self.context, engine, info.clone(), Some(network), undo)
            .map_err(|error| internal(&error))?;
        let (endpoint, network) = self.endpoint(&info)?;
        let mac_of = |name: &str| engine.kernel().find_interface(name).ok()??.mac;
        Ok(portolan_cni::result(&self.call, &self.config, endpoint, network, mac_of))
    }

    fn endpoint<'a>(&self, info: &'a ContainerInfo) -> Result<&'a (Endpoint, Network), Error> {
        self.target().endpoint(&self.call, info).ok_or_else(|| {
            Error::new(
                Code::UnknownContainer,
                format!(
                    "container `{}` has no interface `{}` on network `{}`",
                    self.call.container, self.call.ifname, self.config.name
                ),
            )
        })
    }

    /// Takes the container off the network, if it is on it by this interface.
    fn leave(&self, engine: &Engine) -> Result<(), Error> {
        let id = self.container().to_string();
        let info = match engine.container(&id) {
            Ok(info) => info,
            Err(portolan_engine::Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Some((_, network)) = self.target().endpoint(&self.call, &info) else { return Ok(()) };
        daemon::release(&self.context, &info, Some(network.id));
        engine.leave(&id, &[network.id.to_string()])?;
        daemon::settle(&self.context, false);
        Ok(())
    }

    /// Whatever became of the configuration since: what was made is known by the names in it alone.
    fn del(&self) -> Result<(), Error> {
        let engine = self.engine("cni")?;
        let left = self.leave(&engine);
        let given_back = self.delegated(Verb::Del).map(drop);
        left.and(given_back)
    }

    fn check(&self) -> Result<(), Error> {
        let previous = self.config.previous()?;
        let previous = previous.ok_or_else(|| Error::new(Code::InvalidConfig, "Required prevResult missing"))?;
        self.delegated(Verb::Check)?;
        let engine = self.engine("cni")?;
        let id = self.container().to_string();
        let info = match engine.container(&id) {
            Ok(info) => info,
            Err(portolan_engine::Error::NotFound { .. }) => {
                let msg = format!("container `{}` is not attached", self.call.container);
                return Err(Error::new(Code::UnknownContainer, msg));
            }
            Err(error) => return Err(error.into()),
        };
        let (endpoint, _) = self.endpoint(&info)?;
        if !info.alive {
            return Err(Error::differs("the namespace that it was attached in is gone"));
        }
        if let Some(difference) = portolan_cni::differs(&self.call, &previous, endpoint) {
            return Err(Error::differs(difference));
        }
        let missing = engine.missing(&id)?;
        match missing.first() {
            None => Ok(()),
            Some(first) => Err(Error::differs(format!(
                "the kernel lacks what it should hold: {first}, and {} more",
                missing.len() - 1
            ))
            .details("`portolan verify` lists all, `portolan reconcile` puts it back")),
        }
    }

    /// Takes off the network all that came by CNI and are not listed.
    fn gc(&self) -> Result<(), Error> {
        let valid = self.config.valid_attachments().ok_or_else(|| {
            Error::new(Code::InvalidConfig, "cni.dev/valid-attachments is missing")
                .details("without it nobody knows which containers are there; an empty list means none")
        })?;
        let engine = self.engine("cni")?;
        let target = self.target();
        let is_valid = |container: &str, ifname: &str| {
            valid.iter().any(|Attachment { container: listed, ifname: at }| listed == container && at == ifname)
        };
        let mut failure = None;
        for info in engine.containers()? {
            let Some(name) = portolan_cni::is_of_cni(&info.container) else { continue };
            for (endpoint, network) in info.endpoints.iter().filter(|(_, network)| target.is(network)) {
                if is_valid(name, endpoint.ifname.as_str()) {
                    continue;
                }
                tracing::info!(container = name, network = %network.name, "is not listed: taking it off");
                if let Err(error) = engine.leave(&info.container.id.to_string(), &[network.id.to_string()]) {
                    failure = Some(error);
                }
            }
        }
        daemon::settle(&self.context, false);
        self.delegated(Verb::Gc)?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Whether an ADD would succeed.
    fn status(&self) -> Result<(), Error> {
        let not_available = |error: Error| Error { code: Code::NotAvailable, ..error };
        self.delegated(Verb::Status)?;
        portolan_cni::tuning(&self.call, &self.config).map_err(not_available)?;
        let engine = self.engine("cni").map_err(not_available)?;
        if self.config.ipam_plugin().is_some() {
            // Which addresses there would be, only an ADD finds out.
            Plan::of(&self.config, None).map_err(not_available)?;
            return Ok(());
        }
        let plan = Plan::of(&self.config, None).map_err(not_available)?;
        let wanted = match &plan {
            Plan::Named(name) => EndpointRequest::new(name),
            Plan::Described(request) => EndpointRequest {
                transient: Some(NetworkRequest::clone(request)),
                ..EndpointRequest::new(request.name.to_string())
            },
        };
        engine.could_join(&wanted).map_err(|error| not_available(error.into()))
    }
}

/// A failure outside of the engine, with its causes.
fn internal(error: &anyhow::Error) -> Error {
    Error::new(Code::Internal, failure::chain(error)).details(failure::hint(error).unwrap_or_default())
}
