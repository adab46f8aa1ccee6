//! Docker's Engine API: HTTP on a unix socket, for the `docker` client and whatever else speaks to dockerd.
//!
//! What a call means is [`portolan_docker::api`]'s. Calls are done by threads with engines of their own, several at once;
//! events come from the main thread, which follows what every process commits.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use portolan_docker::api::events::{Follow, Message};
use portolan_docker::api::{self, Answer, BODY, Facts, Failure, Kind, Reply, Version};
use portolan_engine::ContainerInfo;
use portolan_kernel::door::{self, Door};
use portolan_kernel::groups;
use portolan_model::{FirewallDriver, Id};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, sleep_until, timeout};

use crate::cluster::AtDaemon;
use crate::control;
use crate::daemon::{self, Engine, Refresh};
use crate::http::{self, Service};

/// So many calls are done at once; the others wait.
const CALLS: usize = 8;
/// How long a body may take to come.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// How many events are told to those who ask for what was: as many as dockerd keeps.
const RECENT: usize = 256;
/// How many events a client may be behind before it misses some.
const BEHIND: usize = 1024;
/// How long a DHCP server has to give a container its address.
const LEASE_SECONDS: u32 = 8;
/// The group whose members may use Docker.
const GROUP: &str = "docker";

/// Where and to whom it is served.
#[derive(Debug, Clone)]
pub struct Config {
    /// The socket.
    pub socket: PathBuf,
    /// The group that may use it, by its name or number; none for `docker` where that is, or else root's.
    pub group: Option<String>,
    /// How the files of a container are written anew that say where it is.
    pub refresh: Refresh,
}

/// The running thread; dropping it ends it and removes the socket.
#[derive(Debug)]
pub struct Api {
    hub: Arc<Hub>,
    // After those who follow were sent away.
    _service: Service,
}

impl Api {
    /// Starts the thread (`portolan-api`) for the state at `root`; `run` is where the resident's control socket is.
    ///
    /// # Errors
    /// When somebody else serves there, the group is not there, or the socket cannot be made.
    pub fn start(root: &Path, run: &Path, firewall: Option<FirewallDriver>, config: &Config) -> Result<Self> {
        let doing = || format!("serve Docker's API at `{}`", config.socket.display());
        if let Some(directory) = config.socket.parent() {
            door::directory(directory).with_context(doing)?;
        }
        let group = group(config.group.as_deref())?;
        let door = Door::for_group(&config.socket, group).context("serve Docker's API")?;
        let hub = Arc::new(Hub::default());
        let served = Arc::new(Served {
            root: root.to_owned(),
            run: run.to_owned(),
            // That the state can be opened is better known before anybody asks.
            engines: Mutex::new(vec![open(root, run, firewall)?]),
            firewall,
            hub: hub.clone(),
            pruning: Mutex::new(()),
            refresh: config.refresh,
        });
        let app = Router::new().fallback(call).with_state(served);
        Ok(Self { hub, _service: Service::start("portolan-api", door, CALLS, app)? })
    }

    /// Tells those who follow that this happened.
    pub fn tell(&self, message: Message) {
        self.hub.tell(message);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.hub.close();
    }
}

/// The number of the group that the socket belongs to; none to leave it as it is made.
fn group(wanted: Option<&str>) -> Result<Option<u32>> {
    let find = |name: &str| groups::id_of(name).context("read the groups of this machine");
    match wanted {
        None => find(GROUP),
        Some(wanted) => match wanted.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => find(wanted)?.with_context(|| format!("no group `{wanted}`")).map(Some),
        },
    }
}

/// Events: the last ones, and those to come.
#[derive(Debug)]
struct Hub(Mutex<Told>);

#[derive(Debug)]
struct Told {
    recent: VecDeque<Arc<Message>>,
    /// None once nobody is told anything any more.
    live: Option<broadcast::Sender<Arc<Message>>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self(Mutex::new(Told { recent: VecDeque::new(), live: Some(broadcast::channel(BEHIND).0) }))
    }
}

impl Hub {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, message: Message) {
        let message = Arc::new(message.at(now()));
        let mut told = self.told();
        if told.recent.len() == RECENT {
            told.recent.pop_front();
        }
        told.recent.push_back(message.clone());
        if let Some(live) = &told.live {
            // It fails where nobody listens.
            let _ = live.send(message);
        }
    }

    fn close(&self) {
        self.told().live = None;
    }

    fn listeners(&self) -> usize {
        self.told().live.as_ref().map_or(0, broadcast::Sender::receiver_count)
    }

    /// What happened, if that is asked for, and what will: none falls between.
    fn follow(&self, follow: Follow) -> Following {
        let told = self.told();
        let recent = if follow.since.is_some() { told.recent.clone() } else { VecDeque::new() };
        let left = follow.until.map(|until| until.saturating_sub(now()));
        let live = told.live.as_ref().map(broadcast::Sender::subscribe);
        // An end that no clock has is none.
        Following { follow, recent, live, end: left.and_then(|left| Instant::now().checked_add(left)) }
    }
}

/// A client that follows events.
struct Following {
    follow: Follow,
    recent: VecDeque<Arc<Message>>,
    live: Option<broadcast::Receiver<Arc<Message>>>,
    end: Option<Instant>,
}

impl Following {
    /// The next one that it wants; none at the end.
    async fn next(&mut self) -> Option<Arc<Message>> {
        loop {
            let message = match self.recent.pop_front() {
                Some(message) => message,
                None => self.wait().await?,
            };
            if self.follow.wants(&message) {
                return Some(message);
            }
        }
    }

    async fn wait(&mut self) -> Option<Arc<Message>> {
        let live = self.live.as_mut()?;
        let end = self.end;
        let over = async {
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        loop {
            let next = tokio::select! {
                next = live.recv() => next,
                () = &mut over => return None,
            };
            match next {
                Ok(message) => return Some(message),
                Err(RecvError::Lagged(missed)) => tracing::warn!("a client that follows events missed {missed}"),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn into_body(self) -> Body {
        let next = |mut following: Self| async move {
            let message = following.next().await?;
            let mut line = serde_json::to_vec(&*message).expect("plain values serialise");
            line.push(b'\n');
            Some((Ok::<_, Infallible>(Bytes::from(line)), following))
        };
        Body::from_stream(stream::unfold(self, next))
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

async fn call(State(served): State<Arc<Served>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let hub = served.hub.clone();
    let answer = match read(body).await {
        Err(failure) => Answer::Reply(failure.into()),
        Ok(body) => {
            let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
            let content = text(header::CONTENT_TYPE).map(str::to_owned);
            let work = move || {
                let request = api::Request {
                    method: head.method.as_str(),
                    path: head.uri.path(),
                    query: head.uri.query().unwrap_or_default(),
                    content: content.as_deref(),
                    body: &body,
                };
                served.answer(request)
            };
            let failed = |error| {
                tracing::error!("Docker's API: {error}");
                Answer::Reply(Failure::new(Kind::System, "the call failed: the daemon's log says more").into())
            };
            tokio::task::spawn_blocking(work).await.unwrap_or_else(failed)
        }
    };
    match answer {
        Answer::Reply(Reply { status, content, body }) => respond(status, content, body.into()),
        Answer::Events(follow) => respond(200, "application/json", hub.follow(follow).into_body()),
    }
}

async fn read(body: Body) -> Result<Bytes, Failure> {
    match timeout(BODY_PATIENCE, to_bytes(body, BODY + 1)).await {
        Ok(Ok(body)) if body.len() <= BODY => Ok(body),
        Ok(_) => Err(Failure::new(Kind::TooLarge, format!("the body is longer than {BODY} bytes, or ends too early"))),
        Err(_) => Err(Failure::new(
            Kind::Timeout,
            format!("the body did not come within {} seconds", BODY_PATIENCE.as_secs()),
        )),
    }
}

/// With the headers by which clients know what they speak to.
fn respond(status: u16, content: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a status of HTTP");
    let headers = response.headers_mut();
    let version = HeaderValue::from_str(&Version::NEWEST.to_string()).expect("digits and a dot");
    headers.insert("api-version", version);
    headers.insert("docker-experimental", HeaderValue::from_static("false"));
    headers.insert("ostype", HeaderValue::from_static("linux"));
    headers
        .insert(header::SERVER, HeaderValue::from_static(concat!("Portolan/", env!("CARGO_PKG_VERSION"), " (linux)")));
    headers.insert("swarm", HeaderValue::from_static("inactive"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    if !content.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    }
    response
}

/// What a call needs.
struct Served {
    root: PathBuf,
    run: PathBuf,
    /// Those that no call uses now.
    engines: Mutex<Vec<Engine>>,
    firewall: Option<FirewallDriver>,
    hub: Arc<Hub>,
    pruning: Mutex<()>,
    refresh: Refresh,
}

fn open(root: &Path, run: &Path, firewall: Option<FirewallDriver>) -> Result<Engine> {
    let engine = daemon::engine(root)?.with_firewall(firewall);
    Ok(engine.with_cluster(Box::new(AtDaemon::new(run.to_owned()))))
}

impl Served {
    fn answer(&self, request: api::Request<'_>) -> Answer {
        let idle = self.engines().pop();
        let open = || open(&self.root, &self.run, self.firewall);
        let engine = match idle.map_or_else(open, Ok) {
            Ok(engine) => engine,
            Err(error) => {
                let failure = Failure::new(Kind::System, format!("open the state: {error:#}"));
                return Answer::Reply(failure.into());
            }
        };
        let answer = api::answer(&engine, &Calling { served: self, engine: &engine }, request);
        self.engines().push(engine);
        answer
    }

    fn engines(&self) -> MutexGuard<'_, Vec<Engine>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call.
struct Calling<'a> {
    served: &'a Served,
    engine: &'a Engine,
}

impl api::Host for Calling<'_> {
    fn facts(&self) -> Facts {
        let name = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Facts {
            name: text(name.nodename()),
            system: system(),
            kernel: text(name.release()),
            machine: text(name.machine()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory(),
            root: self.served.root.display().to_string(),
            now: now().as_secs(),
            listeners: self.served.hub.listeners(),
        }
    }

    fn settle(&self, call: &str) {
        http::settle(&self.served.run, call);
    }

    fn acquire(&self, container: Id) -> Result<(), String> {
        match control::acquire(&self.served.run, container, LEASE_SECONDS) {
            Ok(true) => Ok(()),
            Ok(false) => Err("the control socket is gone".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    fn release(&self, container: Id, network: Id) {
        control::release(&self.served.run, container, Some(network));
    }

    fn refresh(&self, container: &ContainerInfo) {
        if let Err(error) = (self.served.refresh)(&self.served.run, self.engine, container) {
            tracing::warn!(container = %container.container.name, "its files are not written anew: {error:#}");
        }
    }

    fn tell(&self, message: Message) {
        self.served.hub.tell(message);
    }

    fn alone<T>(&self, prune: impl FnOnce() -> T) -> Option<T> {
        let _guard = match self.served.pruning.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        Some(prune())
    }
}

/// The name of this machine's system (os-release(5)).
fn system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The bytes of memory of this machine (proc_meminfo(5)).
fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    total.unwrap_or(0) * 1024
}
