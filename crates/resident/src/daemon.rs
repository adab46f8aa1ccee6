//! The resident's main thread: the control socket, following the rows, leaving, handing over.
//!
//! What takes time or must never wait runs in threads of its own ([`crate::services`]); this one waits for events.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use portolan_cluster::Refusal;
use portolan_engine::ContainerInfo;
use portolan_kernel::confine;
use portolan_kernel::door;
use portolan_kernel::host::HostKernel;
use portolan_kernel::inherit;
use portolan_kernel::privilege::{self, Capability};
use portolan_kernel::signals::{self, Event as Received, Signals};
use portolan_kernel::sysctl;
use portolan_model::{FirewallDriver, Id};
use portolan_store::{PATIENCE, SqliteStore};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::cluster::Came;
use crate::control::{self, Answer, Done, Request, Status};
use crate::docker_api;
use crate::notify::Manager;
use crate::services::{self, Inherited, Services};
use crate::watched::Watched;

/// The engine over this host.
pub type Engine = portolan_engine::Engine<SqliteStore, HostKernel>;

/// What the resident does with its rights: names on port 53 and ports of containers, rules and links, the namespaces of
/// containers, announcements.
const KEPT: &[Capability] = &[
    Capability::DacReadSearch,
    Capability::NetBindService,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::SysPtrace,
    Capability::SysAdmin,
];

/// How long a resident that was started on demand stays when nothing needs it: a script that removes one container and
/// starts another should find it.
const LINGER: Duration = Duration::from_secs(10);

/// A command that talks to us sends a line; more than this is not one of ours.
const LINE: usize = 64 << 10;

/// Writes those files of a container anew that say where it is; whoever makes containers knows how.
pub type Refresh = fn(run: &Path, engine: &Engine, container: &ContainerInfo) -> Result<()>;

/// How a resident is to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the state is.
    pub root: PathBuf,
    /// Where run-time files are.
    pub run: PathBuf,
    /// Leave when no container is on any network.
    pub on_demand: bool,
    /// Who is to carry out the rules, if the first network is made for Docker or its clients; none for the usual one.
    pub firewall: Option<FirewallDriver>,
    /// Where Docker's plugin is served, if it is.
    pub docker: Option<PathBuf>,
    /// Where Docker's API is served, if it is.
    pub api: Option<docker_api::Config>,
    /// Where metrics are told by TCP, beside the unix socket.
    pub metrics: Option<std::net::SocketAddr>,
    /// Where the host's upstream name servers are listed.
    pub resolv_conf: PathBuf,
    /// Arguments with which another binary of ours goes on as this resident.
    pub arguments: Vec<std::ffi::OsString>,
}

/// The engine over the state at `root`, as every process of ours makes it.
///
/// # Errors
/// When the state cannot be opened.
pub fn engine(root: &Path) -> Result<Engine> {
    engine_within(root, PATIENCE)
}

/// The same, for who gives up when one process holds the state for `patience`.
///
/// # Errors
/// When the state cannot be opened.
pub fn engine_within(root: &Path, patience: Duration) -> Result<Engine> {
    let store = SqliteStore::open_within(root, patience)?;
    // Now that it exists: two spellings of one root are one root.
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    Ok(Engine::new(mark_of(&root), store, HostKernel::new()))
}

/// The text by which the objects of a root are known: its path; of one that is not UTF-8, its escaped bytes, which no path
/// looks like.
fn mark_of(root: &Path) -> String {
    match root.to_str() {
        Some(root) => root.to_owned(),
        None => format!("bytes:{}", root.as_os_str().as_bytes().escape_ascii()),
    }
}

/// Makes the directory for run-time files; that of the state first where it is in there, which is root's alone.
///
/// # Errors
/// When they cannot be made.
pub fn directories(root: &Path, run: &Path) -> Result<()> {
    if run.starts_with(root) && !root.exists() {
        let made = root.parent().map_or(Ok(()), door::directory);
        let made = made.and_then(|()| fs::DirBuilder::new().recursive(true).mode(0o700).create(root));
        made.with_context(|| format!("create `{}`", root.display()))?;
    }
    door::directory(run).with_context(|| format!("create `{}`", run.display()))
}

/// The lock that at most one resident of a run-time directory has, and its supervisor with it. None when another one has
/// it and is not about to leave.
///
/// # Errors
/// When it cannot be opened.
pub fn lock(run: &Path) -> Result<Option<File>> {
    let path = run.join("daemon.lock");
    let doing = || format!("lock `{}`", path.display());
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).with_context(doing)?;
    match file.try_lock() {
        Ok(()) => return Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => {}
        Err(fs::TryLockError::Error(error)) => return Err(error).with_context(doing),
    }
    if let Some(mut client) = control::Client::connect(run)?
        && client.ask(&Request::Status {})?.is_some()
    {
        return Ok(None);
    }
    // It closed its door: it is leaving, or was killed and its supervisor has not yet noticed.
    file.lock().with_context(doing)?;
    Ok(Some(file))
}

/// What one binary tells the next one over an execve(2), beside descriptors.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    /// Seconds since 1970 of the resident's start.
    started: u64,
    /// Whoever asked for the upgrade.
    asker: Option<i32>,
    /// Those who follow events.
    followers: Vec<i32>,
    /// The services' own.
    services: services::Memory,
}

/// The name of the memory file (memfd_create(2)), by which it is found among the descriptors.
const MEMORY: &str = "portolan-memory";

/// Runs the resident until it is told to end or nothing needs it; its exit status.
///
/// # Errors
/// When it cannot start; once it runs, failures are logged.
pub fn run(config: Config) -> Result<i32> {
    let mut fds = inherit::take().context("take inherited descriptors")?;
    // Mounting is among what is given up.
    sysctl::adopt_own_proc(&mut fds);
    sysctl::own_proc();
    // Whom the socket of Docker's API belongs to is set each time it is made.
    let chown = config.api.as_ref().map(|_| Capability::Chown);
    let kept: Vec<Capability> = KEPT.iter().copied().chain(chown).collect();
    privilege::keep(&kept).context("give up capabilities")?;
    let confined = confine();
    raise_descriptor_limit();
    let signals = Signals::take(signals::SERVICE).context("take signals")?;
    let mut daemon = Daemon::start(config, fds, signals, confined)?;
    daemon.serve()
}

/// Leaves this process the system calls that a resident makes; what is to be passed on of that over an execve(2).
fn confine() -> Option<String> {
    match confine::process(std::env::var(confine::MARK).ok().as_deref()) {
        Ok(filters) => Some(filters),
        Err(error) => {
            tracing::warn!(%error, "this kernel filters no system calls: the daemon goes on with all of them");
            None
        }
    }
}

/// A listener for each gateway, family and protocol takes more than the usual 1024.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(1 << 20).min(1 << 20);
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}

/// A commit is dozens of writes to the log. The first one tells of it; what the others tell is read together, after a
/// millisecond, the shortest that epoll_wait(2) waits: woken by each we would slow down who writes.
const FILES: EventFlags = EventFlags::IN.union(EventFlags::ONESHOT);
const QUIET: Duration = Duration::from_micros(500);

/// What the main thread waits for.
mod token {
    pub(super) const SIGNALS: u64 = 0;
    pub(super) const CONTROL: u64 = 1;
    pub(super) const FILES: u64 = 2;
    pub(super) const SERVICES: u64 = 3;
    pub(super) const FIRST_CLIENT: u64 = 16;
}

/// Somebody who talks to us.
struct Client {
    token: u64,
    stream: UnixStream,
    input: Vec<u8>,
    follows: bool,
    /// Has asked us to stay.
    holds: bool,
}

/// Somebody who waits for a container's addresses.
struct Waiting {
    token: u64,
    container: Id,
    seconds: u32,
    until: Instant,
}

struct Daemon {
    config: Config,
    engine: Engine,
    manager: Manager,
    signals: Signals,
    epoll: OwnedFd,
    control: UnixListener,
    files: Watched,
    services: Services,
    happened: mpsc::Receiver<String>,
    clients: Vec<Client>,
    waiting: Vec<Waiting>,
    next_token: u64,
    started: u64,
    /// Since when nothing has needed us.
    idle_since: Option<Instant>,
    /// When to look at what happened to files.
    files_due: Option<Instant>,
    /// Which filters of system calls this process is under.
    confined: Option<String>,
    _lock: File,
}

/// What is to happen after an event.
enum Next {
    GoOn,
    Leave,
    Become(PathBuf, Option<usize>),
}

impl Daemon {
    fn start(config: Config, fds: Vec<OwnedFd>, signals: Signals, confined: Option<String>) -> Result<Self> {
        let manager = Manager::from_environment().context("find the service manager")?;
        directories(&config.root, &config.run)?;
        let mut found = Found::sort(fds, &config.run)?;
        let lock = match found.lock.take() {
            Some(lock) => lock,
            None => lock(&config.run)?.context("another daemon runs for this root")?,
        };
        let engine = engine(&config.root)?;
        // A service of the machine's may be the first of us that runs after it was started.
        if let Err(error) = engine.recover_if_rebooted() {
            tracing::error!("after the machine was started anew: {:#}", anyhow::Error::new(error));
        }
        let memory = found.memory.take().map(read_memory).transpose()?;
        let (control, is_new) = match found.control.take() {
            Some(control) => (control, false),
            None => (listen(&control::path(&config.run))?, true),
        };
        control.set_nonblocking(true)?;
        if is_new {
            manager.keep("control", control.as_fd());
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |fd: BorrowedFd<'_>, token| epoll::add(&epoll, fd, EventData::new_u64(token), EventFlags::IN);
        add(signals.as_fd(), token::SIGNALS)?;
        add(control.as_fd(), token::CONTROL)?;
        let files =
            Watched::new(&config.root, &config.resolv_conf).context("watch the state and the host's resolver file")?;
        epoll::add(&epoll, files.as_fd(), EventData::new_u64(token::FILES), FILES)?;

        let memory = memory.unwrap_or_else(|| Memory { started: now(), ..Memory::default() });
        let mut clients = Vec::new();
        let mut next_token = token::FIRST_CLIENT;
        for (number, fd) in found.streams.drain(..) {
            let follows = memory.followers.contains(&number);
            if !follows && memory.asker != Some(number) {
                found.others.push((number, fd));
                continue;
            }
            let stream = UnixStream::from(fd);
            stream.set_nonblocking(true)?;
            add(stream.as_fd(), next_token)?;
            clients.push(Client { token: next_token, stream, input: Vec::new(), follows, holds: false });
            next_token += 1;
        }
        let (tell, happened) = mpsc::channel();
        let inherited = Inherited { fds: found.others, memory: memory.services };
        let services = Services::start(&config, inherited, manager.sibling()?, tell)?;
        add(services.wakes(), token::SERVICES)?;
        let mut daemon = Self {
            config,
            engine,
            manager,
            signals,
            epoll,
            control,
            files,
            services,
            happened,
            clients,
            waiting: Vec::new(),
            next_token,
            started: memory.started,
            idle_since: None,
            files_due: None,
            confined,
            _lock: lock,
        };
        let done = daemon.follow_and_settle()?;
        for warning in &done.warnings {
            tracing::warn!("{warning}");
        }
        daemon.manager.tell("READY=1");
        let is_asker = |client: &Client| !client.follows;
        if let Some(asker) = daemon.clients.iter().position(is_asker) {
            daemon.answer(asker, &Answer::Done(done));
        }
        Ok(daemon)
    }

    /// Waits for events until it is time to go.
    fn serve(&mut self) -> Result<i32> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        loop {
            let timeout = self.time_left()?;
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            for event in &events {
                let next = match event.data.u64() {
                    token::SIGNALS => self.signalled(),
                    token::CONTROL => self.accept(),
                    token::FILES => {
                        self.files_due = Some(Instant::now() + QUIET);
                        Ok(Next::GoOn)
                    }
                    token::SERVICES => self.services_woke(),
                    token => self.client_spoke(token),
                };
                match next {
                    Ok(Next::GoOn) => {}
                    Ok(Next::Leave) => return self.leave(),
                    Ok(Next::Become(binary, asker)) => self.upgrade(&binary, asker)?,
                    Err(error) => tracing::error!("{error:#}"),
                }
            }
            if self.files_due.is_some_and(|due| due <= Instant::now()) {
                self.files_due = None;
                if let Err(error) = self.file_changed() {
                    tracing::error!("{error:#}");
                }
            }
            self.answer_waiting()?;
            if self.idle_since().is_some_and(|since| since.elapsed() >= LINGER) {
                return self.leave();
            }
        }
    }

    /// How long to wait at most: for good, unless nothing needs us or somebody waits.
    fn time_left(&self) -> Result<Option<rustix::event::Timespec>> {
        let idle = self.idle_since().map(|since| LINGER.saturating_sub(since.elapsed()));
        let waited = self.waiting.iter().map(|waiting| waiting.until.saturating_duration_since(Instant::now()));
        let files = self.files_due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = waited.chain(idle).chain(files).min();
        Ok(left.map(TryInto::try_into).transpose()?)
    }

    /// Since when nothing has needed us, nor is about to.
    fn idle_since(&self) -> Option<Instant> {
        self.idle_since.filter(|_| !self.clients.iter().any(|client| client.holds))
    }

    fn leave(&mut self) -> Result<i32> {
        self.manager.tell("STOPPING=1");
        self.services.stop();
        // Whoever comes now starts another one.
        let _ = fs::remove_file(control::path(&self.config.run));
        Ok(0)
    }

    fn signalled(&mut self) -> Result<Next> {
        match self.signals.read()? {
            Some(Received::Signal { number, .. }) if number != signals::HANGUP => Ok(Next::Leave),
            Some(_) => {
                self.services.resolver_changed();
                Ok(Next::GoOn)
            }
            None => Ok(Next::GoOn),
        }
    }

    fn file_changed(&mut self) -> Result<()> {
        let changed = self.files.read();
        epoll::modify(&self.epoll, self.files.as_fd(), EventData::new_u64(token::FILES), FILES)?;
        let changed = changed?;
        if changed.state {
            self.follow()?;
        }
        if changed.resolver {
            self.services.resolver_changed();
        }
        Ok(())
    }

    fn services_woke(&mut self) -> Result<Next> {
        self.services.clear_wake();
        let lines: Vec<String> = self.happened.try_iter().collect();
        for line in lines {
            self.tell_followers(&line);
        }
        for (token, outcome) in self.services.shared() {
            // Whoever asked finds what he asked for.
            self.follow()?;
            let Some(at) = self.clients.iter().position(|client| client.token == token) else { continue };
            let answer = match outcome {
                Ok(Came::Looked {}) => Answer::Cluster { standing: self.services.standing().map(Box::new) },
                Ok(came) => Answer::Shared { came },
                Err(Refusal { reason, hint }) => Answer::Refused { reason, hint: Some(hint) },
            };
            self.answer(at, &answer);
        }
        Ok(Next::GoOn)
    }

    /// Takes notice of what was committed.
    fn follow(&mut self) -> Result<()> {
        let is_needed = self.services.follow(&self.engine)?;
        self.idle_since = match (self.config.on_demand && !is_needed, self.idle_since) {
            (false, _) => None,
            (true, None) => Some(Instant::now()),
            (true, since) => since,
        };
        Ok(())
    }

    /// The same, and waits until it is in force; what is not as it should be.
    fn follow_and_settle(&mut self) -> Result<Done> {
        self.follow()?;
        self.services.settle()
    }

    /// Answers those who wait for addresses that are in force by now, or have waited long enough.
    fn answer_waiting(&mut self) -> Result<()> {
        for waiting in std::mem::take(&mut self.waiting) {
            let Some(at) = self.clients.iter().position(|client| client.token == waiting.token) else { continue };
            let missing = self.services.missing_leases(waiting.container);
            let answer = match missing.first() {
                // Names follow the rows.
                None => Answer::Done(self.follow_and_settle()?),
                Some(missing) if waiting.until <= Instant::now() => refused(missing.explain(waiting.seconds)),
                Some(_) => {
                    self.waiting.push(waiting);
                    continue;
                }
            };
            self.answer(at, &answer);
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<Next> {
        loop {
            let stream = match self.control.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::GoOn),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("accept a command"),
            };
            stream.set_nonblocking(true)?;
            let token = self.next_token;
            self.next_token += 1;
            epoll::add(&self.epoll, &stream, EventData::new_u64(token), EventFlags::IN)?;
            self.clients.push(Client { token, stream, input: Vec::new(), follows: false, holds: false });
        }
    }

    fn client_spoke(&mut self, token: u64) -> Result<Next> {
        let Some(at) = self.clients.iter().position(|client| client.token == token) else { return Ok(Next::GoOn) };
        let mut chunk = [0; 4096];
        let client = &mut self.clients[at];
        let is_gone = loop {
            if client.input.len() > LINE {
                self.answer(at, &refused("no command is that long"));
                self.clients.swap_remove(at);
                return Ok(Next::GoOn);
            }
            match client.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(read) => client.input.extend(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        while let Some(end) = self.clients[at].input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.clients[at].input.drain(..=end).collect();
            match self.obey(at, &line)? {
                Next::GoOn => {}
                next => return Ok(next),
            }
        }
        if is_gone {
            self.clients.swap_remove(at);
        }
        Ok(Next::GoOn)
    }

    fn obey(&mut self, at: usize, line: &[u8]) -> Result<Next> {
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(error) => {
                self.answer(at, &refused(format!("read the request: {error}")));
                return Ok(Next::GoOn);
            }
        };
        match request {
            Request::Sync { command } => {
                let started = Instant::now();
                let settled = self.follow_and_settle();
                if let Some((name, micros)) = command {
                    self.services.count_command(name, Duration::from_micros(micros) + started.elapsed());
                }
                let answer = match settled {
                    Ok(done) => Answer::Done(done),
                    Err(error) => refused(format!("{error:#}")),
                };
                self.answer(at, &answer);
            }
            Request::Hold {} => {
                self.clients[at].holds = true;
                self.answer(at, &Answer::Done(Done::default()));
            }
            Request::Acquire { container, seconds } => {
                self.follow()?;
                let until = Instant::now() + Duration::from_secs(seconds.into());
                let token = self.clients[at].token;
                self.waiting.push(Waiting { token, container, seconds, until });
            }
            Request::Release { container, network } => {
                self.follow()?;
                self.services.release_leases(container, network);
                self.answer(at, &Answer::Done(Done::default()));
            }
            Request::Status {} => {
                let status = self.status();
                self.answer(at, &Answer::Status(Box::new(status)));
            }
            Request::Cluster {} => {
                self.services.follow_membership(&self.engine);
                self.follow()?;
                if !self.services.look(self.clients[at].token) {
                    let standing = self.services.standing().map(Box::new);
                    self.answer(at, &Answer::Cluster { standing });
                }
            }
            Request::Share { what } => {
                let token = self.clients[at].token;
                if let Err(Refusal { reason, hint }) = self.services.share(token, *what) {
                    self.answer(at, &Answer::Refused { reason, hint: Some(hint) });
                }
            }
            Request::Stats {} => {
                let answer = match self.services.stats() {
                    Ok(endpoints) => Answer::Stats { endpoints },
                    Err(error) => refused(format!("{error:#}")),
                };
                self.answer(at, &answer);
            }
            Request::Events {} => {
                self.clients[at].follows = true;
                self.answer(at, &Answer::Done(Done::default()));
            }
            Request::Stop {} => {
                // Who has the answer finds nobody here any more.
                self.services.stop();
                let _ = fs::remove_file(control::path(&self.config.run));
                self.answer(at, &Answer::Done(Done::default()));
                return Ok(Next::Leave);
            }
            Request::Upgrade { binary } => return Ok(Next::Become(binary, Some(at))),
        }
        Ok(Next::GoOn)
    }

    /// Writes a line to a client; one that does not take it is its own loss, since all of ours wait for it.
    fn answer(&mut self, at: usize, answer: &Answer) {
        let mut line = serde_json::to_string(answer).expect("plain values serialise");
        line.push('\n');
        if let Err(error) = (&self.clients[at].stream).write_all(line.as_bytes()) {
            tracing::debug!(%error, "a command did not wait for its answer");
        }
    }

    fn tell_followers(&mut self, line: &str) {
        let line = format!("{line}\n");
        // Who does not keep up is let go rather than waited for.
        self.clients.retain(|client| !client.follows || (&client.stream).write_all(line.as_bytes()).is_ok());
    }

    fn status(&self) -> Status {
        let (networks, endpoints) = self.services.counts();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: now().saturating_sub(self.started),
            supervisor: self.manager.name().to_owned(),
            on_demand: self.config.on_demand,
            revision: self.services.revision(),
            networks,
            endpoints,
            warnings: self.services.last().warnings.clone(),
        }
    }

    /// Becomes another binary, with every socket and connection. Returns only if that cannot be.
    fn upgrade(&mut self, binary: &Path, asker: Option<usize>) -> Result<()> {
        let reason = match self.hand_over(binary, asker) {
            Ok(never) => match never {},
            Err(error) => format!("{error:#}"),
        };
        tracing::error!("upgrade: {reason}");
        if let Some(at) = asker {
            self.answer(at, &refused(reason));
        }
        Ok(())
    }

    fn hand_over(&mut self, binary: &Path, asker: Option<usize>) -> Result<std::convert::Infallible> {
        let binary = binary.canonicalize().with_context(|| format!("find `{}`", binary.display()))?;
        let found = fs::metadata(&binary)?;
        if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
            bail!("`{}` is no program", binary.display());
        }
        let handed = self.services.hand_over()?;
        let memory = Memory {
            started: self.started,
            asker: asker.map(|at| self.clients[at].stream.as_raw_fd()),
            followers: self.clients.iter().filter(|c| c.follows).map(|c| c.stream.as_raw_fd()).collect(),
            services: handed.memory.clone(),
        };
        let file = write_memory(&memory)?;
        let mut passed: Vec<BorrowedFd<'_>> = vec![file.as_fd(), self.control.as_fd(), self._lock.as_fd()];
        passed.extend(handed.fds.iter().map(|(_, fd)| fd.as_fd()));
        passed.extend(self.clients.iter().map(|client| client.stream.as_fd()));
        passed.extend(sysctl::own_proc());
        let mut numbers = Vec::new();
        for fd in &passed {
            fcntl_setfd(fd, FdFlags::empty())?;
            numbers.push(fd.as_raw_fd().to_string());
        }
        let error = Command::new(&binary)
            .envs(self.confined.as_ref().map(|filters| (confine::MARK, filters)))
            .arg0("portolan")
            .args(&self.config.arguments)
            .env(inherit::NUMBERS, numbers.join(","))
            .env_remove("LISTEN_FDS")
            .exec();
        for fd in &passed {
            fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
        drop(passed);
        self.services.resume(handed)?;
        self.follow_and_settle()?;
        Err(error).with_context(|| format!("execute `{}`", binary.display()))
    }
}

fn refused(reason: impl Into<String>) -> Answer {
    Answer::Refused { reason: reason.into(), hint: None }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn write_memory(memory: &Memory) -> Result<File> {
    let file = rustix::fs::memfd_create(MEMORY, rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    serde_json::to_writer(&mut file, memory)?;
    Ok(file)
}

fn read_memory(mut file: File) -> Result<Memory> {
    use std::io::Seek as _;
    file.rewind()?;
    serde_json::from_reader(file).context("read what the daemon before us left")
}

/// Listens at `path`, for root alone, in place of whatever a dead predecessor left there.
fn listen(path: &Path) -> Result<UnixListener> {
    let doing = || format!("listen at `{}`", path.display());
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(doing),
        _ => {}
    }
    let listener = door::listen_alone(&fresh).with_context(doing)?;
    fs::rename(&fresh, path).with_context(doing)?;
    Ok(listener)
}

/// Inherited descriptors, by what they are.
#[derive(Default)]
struct Found {
    lock: Option<File>,
    control: Option<UnixListener>,
    memory: Option<File>,
    streams: Vec<(i32, OwnedFd)>,
    others: Vec<(i32, OwnedFd)>,
}

impl Found {
    fn sort(fds: Vec<OwnedFd>, run: &Path) -> Result<Self> {
        let lock = fs::metadata(run.join("daemon.lock")).ok();
        let mut found = Self::default();
        for fd in fds {
            let number = fd.as_raw_fd();
            let name = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
            let is_memory = name.to_str().is_some_and(|name| name.starts_with(&format!("/memfd:{MEMORY}")));
            let file = File::from(fd);
            let what = file.metadata()?;
            if is_memory {
                found.memory = Some(file);
                continue;
            }
            if lock.as_ref().is_some_and(|lock| lock.dev() == what.dev() && lock.ino() == what.ino()) {
                found.lock = Some(file);
                continue;
            }
            let fd = OwnedFd::from(file);
            if !is_unix(&fd) {
                found.others.push((number, fd));
            } else if rustix::net::sockopt::socket_acceptconn(&fd).unwrap_or(false) {
                found.control = Some(UnixListener::from(fd));
            } else {
                found.streams.push((number, fd));
            }
        }
        Ok(found)
    }
}

fn is_unix(fd: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_domain(fd).is_ok_and(|family| family == rustix::net::AddressFamily::UNIX)
}
