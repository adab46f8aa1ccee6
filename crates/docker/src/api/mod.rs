//! The Engine API, as far as it is about networks and the containers on them.
//!
//! [`answer`] is one call: what a client asks and what it gets, in Docker's words. What was done is in force when it returns.
//! [`ROUTES`] is all there is; `openapi.yaml` beside this crate describes it.

mod connect;
mod containers;
mod create;
mod endpoint;
pub mod events;
mod failure;
mod filters;
mod inspect;
mod networks;
mod system;
mod times;
mod version;

use std::borrow::Cow;

use portolan_engine::{ContainerInfo, Engine, Kernel, Store};
use portolan_model::{ContainerKind, Id, Network};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use events::{Follow, Message};
pub use failure::{Failure, Kind};
use filters::Filters;
pub use version::Version;

/// The longest body that is read: a network with ten thousand labels has one megabyte.
pub const BODY: usize = 4 << 20;

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// As sent, escaped, with or without a version before it.
    pub path: &'a str,
    /// What follows the question mark, escaped.
    pub query: &'a str,
    /// The media type of the body, if one is given.
    pub content: Option<&'a str>,
    /// The body, if there is one.
    pub body: &'a [u8],
}

/// What it gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// A body, at once.
    Reply(Reply),
    /// What happened and what will happen, a line of JSON each.
    Events(Follow),
}

/// A status and a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status of HTTP.
    pub status: u16,
    /// The media type of the body.
    pub content: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    fn json(status: u16, body: &impl Serialize) -> Self {
        let mut body = serde_json::to_vec(body).expect("plain values serialise");
        body.push(b'\n');
        Self { status, content: "application/json", body }
    }

    const fn empty(status: u16) -> Self {
        Self { status, content: "", body: Vec::new() }
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        Self::json(failure.status(), &serde_json::json!({ "message": failure.message }))
    }
}

type Done = Result<Answer, Failure>;

fn told(body: &impl Serialize) -> Done {
    Ok(Answer::Reply(Reply::json(200, body)))
}

/// The machine, as far as clients ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Its host name.
    pub name: String,
    /// What it runs (os-release(5)).
    pub system: String,
    /// The kernel's release (uname(2)).
    pub kernel: String,
    /// The kernel's word for the processor: `x86_64`.
    pub machine: String,
    /// How many processors there are.
    pub processors: usize,
    /// How many bytes of memory there are.
    pub memory: u64,
    /// Where the state is.
    pub root: String,
    /// Seconds since 1970.
    pub now: u64,
    /// Whether somebody listens to events, and how many.
    pub listeners: usize,
}

/// What a call needs of whoever serves it.
pub trait Host {
    /// The machine.
    fn facts(&self) -> Facts;

    /// Waits until what was committed is in force.
    fn settle(&self, call: &str);

    /// Waits for the addresses that DHCP servers are to give a container.
    ///
    /// # Errors
    /// Why it gets none.
    fn acquire(&self, container: Id) -> Result<(), String>;

    /// Gives back what a container holds by DHCP on a network, while its interface is there.
    fn release(&self, container: Id, network: Id);

    /// Writes those files of a container of `portolan run` anew that say where it is.
    fn refresh(&self, container: &ContainerInfo);

    /// Tells whoever follows events of something that no row tells of.
    fn tell(&self, message: Message);

    /// Does `prune`, unless that is under way.
    fn alone<T>(&self, prune: impl FnOnce() -> T) -> Option<T>;
}

/// One of the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Ping,
    Version,
    Info,
    Events,
    Networks,
    Network,
    CreateNetwork,
    PruneNetworks,
    Connect,
    Disconnect,
    RemoveNetwork,
    Containers,
    Container,
}

/// A method and a path; `{id}` is a name or an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path, without version.
    pub path: &'static str,
    call: Call,
}

const fn route(method: &'static str, path: &'static str, call: Call) -> Route {
    Route { method, path, call }
}

/// All that is served. Where two fit, the first is meant.
pub const ROUTES: &[Route] = &[
    route("GET", "/_ping", Call::Ping),
    route("HEAD", "/_ping", Call::Ping),
    route("GET", "/version", Call::Version),
    route("GET", "/info", Call::Info),
    route("GET", "/events", Call::Events),
    route("GET", "/networks", Call::Networks),
    route("POST", "/networks/create", Call::CreateNetwork),
    route("POST", "/networks/prune", Call::PruneNetworks),
    route("GET", "/networks/{id}", Call::Network),
    route("DELETE", "/networks/{id}", Call::RemoveNetwork),
    route("POST", "/networks/{id}/connect", Call::Connect),
    route("POST", "/networks/{id}/disconnect", Call::Disconnect),
    route("GET", "/containers/json", Call::Containers),
    route("GET", "/containers/{id}/json", Call::Container),
];

/// What dockerd serves besides, by the first part of the path.
const DOCKERS: [&str; 19] = [
    "auth",
    "build",
    "commit",
    "configs",
    "containers",
    "distribution",
    "exec",
    "grpc",
    "images",
    "networks",
    "nodes",
    "plugins",
    "secrets",
    "services",
    "session",
    "swarm",
    "system",
    "tasks",
    "volumes",
];

impl Route {
    /// What stands for `{id}`, unescaped, if the path is this one's.
    fn fit<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        // As dockerd has it, the last part may hold more of what divides them.
        if let Some(start) = self.path.strip_suffix("{id}") {
            let id = path.strip_prefix(start).filter(|id| !id.is_empty())?;
            return Some(percent_encoding::percent_decode_str(id).decode_utf8_lossy());
        }
        let mut id = Cow::Borrowed("");
        let (mut ours, mut asked) = (self.path.split('/'), path.split('/'));
        loop {
            match (ours.next(), asked.next()) {
                (None, None) => return Some(id),
                (Some("{id}"), Some(part)) if !part.is_empty() => {
                    id = percent_encoding::percent_decode_str(part).decode_utf8_lossy();
                }
                (Some(ours), Some(part)) if ours == part => {}
                _ => return None,
            }
        }
    }
}

/// A call that was found, with all it was given.
struct Asked<'a> {
    version: Version,
    id: Cow<'a, str>,
    request: Request<'a>,
}

/// Does what `request` says.
pub fn answer<S: Store, K: Kernel>(engine: &Engine<S, K>, host: &impl Host, request: Request<'_>) -> Answer {
    let done = match find(request) {
        Ok((call, asked)) => call.answer(engine, host, &asked),
        Err(failure) => Err(failure),
    };
    done.unwrap_or_else(|failure| {
        tracing::info!(request.method, request.path, status = failure.status(), "refused: {}", failure.message);
        Answer::Reply(failure.into())
    })
}

fn find(request: Request<'_>) -> Result<(Call, Asked<'_>), Failure> {
    let (version, path) = Version::split(request.path)?;
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    for route in ROUTES.iter().filter(|route| route.method == request.method) {
        if let Some(id) = route.fit(path) {
            return Ok((route.call, Asked { version, id, request }));
        }
    }
    // Clients leave before and after what they do, and go on when they are told that there is nothing to leave.
    if (request.method, path) == ("POST", "/swarm/leave") {
        return Err(Failure::new(Kind::Unavailable, "This node is not part of a swarm"));
    }
    let first = path.split('/').nth(1).unwrap_or_default();
    let is_ours = ROUTES.iter().any(|route| route.fit(path).is_some());
    if !is_ours && DOCKERS.contains(&first) {
        return Err(Failure::new(
            Kind::NotImplemented,
            format!(
                "{} {path} is not served here: this is Portolan, which manages networks; containers are made by \
                 `portolan run` and `portolan attach`, and images and volumes it has none",
                request.method
            ),
        ));
    }
    Err(Failure::new(Kind::NotFound, "page not found"))
}

impl Call {
    fn answer<S: Store, K: Kernel>(self, engine: &Engine<S, K>, host: &impl Host, asked: &Asked<'_>) -> Done {
        match self {
            Self::Ping => Ok(system::ping()),
            Self::Version => told(&system::version(&host.facts())),
            Self::Info => told(&system::info(engine, &host.facts())?),
            Self::Events => Ok(Answer::Events(Follow::read(&asked.request, host.facts().now)?)),
            Self::Networks => networks::list(engine, asked),
            Self::Network => networks::inspect(engine, asked),
            Self::CreateNetwork => create::create(engine, host, asked),
            Self::PruneNetworks => networks::prune(engine, host, asked),
            Self::RemoveNetwork => networks::remove(engine, host, asked),
            Self::Connect => connect::connect(engine, host, asked),
            Self::Disconnect => connect::disconnect(engine, host, asked),
            Self::Containers => containers::list(engine, host, asked),
            Self::Container => inspect::container(engine, asked),
        }
    }
}

impl Request<'_> {
    /// The value of a parameter, unescaped; empty where it is not given.
    fn parameter(&self, name: &str) -> String {
        let mut pairs = form_urlencoded::parse(self.query.as_bytes());
        pairs.find(|(key, _)| key == name).map_or_else(String::new, |(_, value)| value.into_owned())
    }

    /// Whether a parameter is given and says yes, as dockerd reads it.
    fn flag(&self, name: &str) -> bool {
        !matches!(self.parameter(name).trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    fn filters(&self, known: &[&str]) -> Result<Filters, Failure> {
        Filters::read(&self.parameter("filters"), known)
    }

    /// The body.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        if let Some(content) = self.content {
            let media = content.split(';').next().unwrap_or_default().trim();
            if !media.eq_ignore_ascii_case("application/json") {
                return Err(Failure::invalid(format!(
                    "unsupported Content-Type header ({content}): must be 'application/json'"
                )));
            }
        }
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Err(Failure::invalid("invalid JSON: got EOF while reading request body"));
        }
        // An array would be taken for the fields in their order.
        if self.body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Failure::invalid("invalid JSON: it is no object"));
        }
        serde_json::from_slice(self.body).map_err(|error| Failure::invalid(format!("invalid JSON: {error}")))
    }
}

/// Reads `null` as nothing given, as Go does.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A network by its id, its name or the start of its id, in this order.
fn find_network<S: Store, K: Kernel>(engine: &Engine<S, K>, term: &str) -> Result<Network, Failure> {
    let all = networks(engine)?;
    if let Some(network) = all.iter().find(|network| network.id.to_string() == term) {
        return Ok(network.clone());
    }
    if let Some(network) = all.iter().find(|network| network.name.as_str() == term) {
        return Ok(network.clone());
    }
    let mut found: Vec<Network> =
        all.into_iter().filter(|network| !term.is_empty() && network.id.to_string().starts_with(term)).collect();
    match found.len() {
        0 => Err(Failure::new(Kind::NotFound, format!("network {term} not found"))),
        1 => Ok(found.remove(0)),
        count => {
            Err(Failure::invalid(format!("network {term} is ambiguous ({count} matches found based on ID prefix)")))
        }
    }
}

/// The networks that neither come nor go.
fn networks<S: Store, K: Kernel>(engine: &Engine<S, K>) -> Result<Vec<Network>, Failure> {
    let mut all = engine.networks()?;
    all.retain(|network| network.phase.is_settled());
    Ok(all)
}

/// A container of ours by its name, its id or the start of that.
fn find_container<S: Store, K: Kernel>(engine: &Engine<S, K>, term: &str) -> Result<ContainerInfo, Failure> {
    use portolan_engine::Error;
    let missing = || Failure::new(Kind::NotFound, format!("No such container: {term}"));
    // Clients know names with the slash that links once needed.
    match engine.container(term.strip_prefix('/').unwrap_or(term)) {
        Ok(info) if is_ours(&info) => Ok(info),
        Ok(_) | Err(Error::NotFound { .. }) => Err(missing()),
        Err(Error::Ambiguous { .. }) => {
            Err(Failure::invalid(format!("multiple IDs found with provided prefix: {term}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether it is a container rather than an endpoint that stands for one of Docker's.
fn is_ours(info: &ContainerInfo) -> bool {
    info.container.kind != ContainerKind::Handed && info.container.phase.is_settled()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask<'a>(method: &'a str, path: &'a str) -> Request<'a> {
        Request { method, path, query: "", content: None, body: b"" }
    }

    #[test]
    fn calls_by_method_and_path() {
        for (method, path, call, id) in [
            ("GET", "/v1.41/networks/web", Call::Network, "web"),
            ("GET", "/networks/", Call::Networks, ""),
            ("GET", "/networks/json", Call::Network, "json"),
            ("DELETE", "/networks/a/b", Call::RemoveNetwork, "a/b"),
            ("POST", "/networks/create", Call::CreateNetwork, ""),
            ("POST", "/networks/create/connect", Call::Connect, "create"),
            ("POST", "/v1.24/networks/a%2Fb/disconnect", Call::Disconnect, "a/b"),
            ("GET", "/containers/json", Call::Containers, ""),
            ("GET", "/containers/json/json", Call::Container, "json"),
        ] {
            let (found, asked) = find(ask(method, path)).unwrap_or_else(|failure| panic!("{path}: {failure:?}"));
            assert_eq!((found, asked.id.as_ref()), (call, id), "{method} {path}");
        }
    }

    #[test]
    fn what_is_not_served() {
        for (method, path, status) in [
            ("POST", "/containers/create", 501),
            ("POST", "/v1.41/swarm/leave", 503),
            ("POST", "/swarm/init", 501),
            ("GET", "/v1.41/images/json", 501),
            ("POST", "/v1.41/containers/web/start", 501),
            ("GET", "/volumes", 501),
            ("PUT", "/networks/web", 404),
            ("POST", "/_ping", 404),
            ("GET", "/", 404),
            ("GET", "", 404),
            ("GET", "/nonsense", 404),
            ("GET", "/v1.0/networks", 400),
        ] {
            let failure = find(ask(method, path)).err().unwrap_or_else(|| panic!("{method} {path} is served"));
            assert_eq!(failure.status(), status, "{method} {path}: {failure:?}");
        }
    }

    #[test]
    fn parameters() {
        let request = Request { query: "all=1&filters=%7B%22a%22%3Atrue%7D&none=0&until=a+b", ..ask("GET", "/") };
        assert_eq!(request.parameter("filters"), r#"{"a":true}"#);
        assert_eq!(request.parameter("until"), "a b");
        assert!(request.flag("all") && !request.flag("none") && !request.flag("other"));
    }

    #[test]
    fn bodies() {
        let read = |content: Option<&str>, body: &str| {
            Request { content, body: body.as_bytes(), ..ask("POST", "/") }.json::<serde_json::Value>()
        };
        assert!(read(Some("application/json; charset=utf-8"), "{}").is_ok() && read(None, "{}").is_ok());
        let said = |content, body| read(content, body).unwrap_err().message;
        assert_eq!(said(None, " "), "invalid JSON: got EOF while reading request body");
        assert!(said(Some("text/plain"), "{}").contains("must be 'application/json'"));
        for body in ["{", "{} {}", "[]", "null", "7"] {
            assert!(said(None, body).starts_with("invalid JSON: "), "{body}");
        }
    }
}
