//! What Docker, and Docker's clients, say.
//!
//! Calls follow each other, an empty line between them: the method (and for the API the path) on a line, then the body.

use std::cell::RefCell;
use std::path::Path;

use portolan_docker::api::{self, Answer, Facts, Host};
use portolan_docker::{names as wire, plugin as protocol};
use portolan_engine::{AttachRequest, ContainerInfo, EndpointRequest, Engine, NetworkRequest};
use portolan_model::Id;
use portolan_store::SqliteStore;

use super::scratch::Scratch;

#[path = "../../crates/engine/tests/fake/mod.rs"]
#[allow(clippy::unwrap_used, reason = "it is a test's")]
pub(super) mod fake;

use fake::FakeKernel;

const NETNS: &str = "/run/netns/aa";
/// As many calls of one input are made.
const CALLS: usize = 8;

/// An engine over a kernel that is a value. Nothing is left in it between two inputs.
struct World {
    kernel: FakeKernel,
    engine: Engine<SqliteStore, FakeKernel>,
    _scratch: Scratch,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    fn new() -> Self {
        let scratch = Scratch::new();
        let kernel = FakeKernel::new(7);
        let store = SqliteStore::open(&scratch.path().join("root")).expect("it can be made");
        let engine = Engine::new("/root".to_owned(), store, kernel.clone());
        engine.begin_answering().expect("nobody else is there");
        Self { kernel, engine, _scratch: scratch }
    }

    /// Removes all there is.
    fn clear(&self) {
        for info in self.engine.containers().expect("it can be read") {
            self.engine.detach(&info.container.id.to_string()).expect("what is there can be taken down");
        }
        self.kernel.remove_namespace(Path::new(NETNS));
        for network in self.engine.networks().expect("it can be read") {
            if !network.is_predefined() {
                self.engine.remove_network(&network.id.to_string()).expect("an empty network can be removed");
            }
        }
        for (pool, _) in self.engine.pools().expect("it can be read") {
            self.engine.release_pool(pool.id).expect("a pool of nobody can be released");
        }
        let left = self.kernel.objects();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Runs `calls` in the world of this thread, which is made anew if they panic.
fn within(calls: impl FnOnce(&World)) {
    WORLD.with(|slot| {
        let world = slot.borrow_mut().take().unwrap_or_else(World::new);
        calls(&world);
        world.clear();
        *slot.borrow_mut() = Some(world);
    });
}

/// The calls of an input: first line, and what follows.
fn calls(bytes: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    let mut rest = bytes;
    let next = move || {
        if rest.is_empty() {
            return None;
        }
        let at = rest.windows(2).position(|pair| pair == b"\n\n");
        let (call, left) = at.map_or((rest, &b""[..]), |at| (&rest[..at], &rest[at + 2..]));
        rest = left;
        let end = call.iter().position(|byte| *byte == b'\n').unwrap_or(call.len());
        Some((std::str::from_utf8(&call[..end]).unwrap_or(""), call.get(end + 1..).unwrap_or_default()))
    };
    std::iter::from_fn(next).take(CALLS)
}

/// Calls of the plugin protocol.
pub fn plugin(bytes: &[u8]) {
    within(|world| {
        for (method, body) in calls(bytes) {
            // Who calls is found out from the socket.
            let Some(answer) = protocol::answer(&world.engine, method, body, None) else { continue };
            assert!(answer.body.is_object(), "{}", answer.body);
            for key in ["Err", "Error"] {
                if let Some(why) =
                    answer.body.get(key).and_then(|why| why.as_str()).filter(|_| method != "Plugin.Activate")
                {
                    assert!(!why.is_empty() && why.len() <= 2000 + 12 * body.len(), "{} bytes", why.len());
                    assert!(!answer.changed && answer.number.is_none());
                }
            }
            if let Some(number) = answer.number {
                world.engine.answered(number).expect("it was just given");
            }
        }
    });
}

struct Served;

impl Host for Served {
    fn facts(&self) -> Facts {
        Facts { now: 1_800_000_000, ..Facts::default() }
    }

    fn settle(&self, _: &str) {}

    fn acquire(&self, _: Id) -> Result<(), String> {
        Err("no server answers".to_owned())
    }

    fn release(&self, _: Id, _: Id) {}

    fn refresh(&self, _: &ContainerInfo) {}

    fn tell(&self, _: api::events::Message) {}

    fn alone<T>(&self, prune: impl FnOnce() -> T) -> Option<T> {
        Some(prune())
    }
}

/// Calls of the Engine API, beside a network `web` with the container `aa`.
pub fn api(bytes: &[u8]) {
    within(|world| {
        let engine = &world.engine;
        engine.create_network(&NetworkRequest::new("web".parse().expect("a name"))).expect("there is none yet");
        world.kernel.make_namespace(Path::new(NETNS));
        let request = AttachRequest {
            name: Some("aa".parse().expect("a name")),
            endpoints: vec![EndpointRequest::new("web")],
            ..AttachRequest::namespace(NETNS)
        };
        engine.attach(&request).expect("there is room");
        for (line, body) in calls(bytes) {
            let (method, target) = line.split_once(' ').unwrap_or((line, "/"));
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let request = api::Request { method, path, query, content: Some("application/json"), body };
            match api::answer(engine, &Served, request) {
                Answer::Reply(reply) => {
                    assert!((200..600).contains(&reply.status));
                    if reply.content == "application/json" {
                        let value: serde_json::Value = serde_json::from_slice(&reply.body).expect("it is JSON");
                        assert!(reply.status < 400 || value["message"].as_str().is_some_and(|why| !why.is_empty()));
                    }
                    assert!(reply.body.len() <= 200_000 + 40 * bytes.len(), "{} bytes", reply.body.len());
                }
                Answer::Events(follow) => {
                    assert!(follow.since.is_none_or(|since| follow.until.is_none_or(|until| since <= until)));
                }
            }
        }
    });
}

/// What Docker's own API says.
pub fn names(bytes: &[u8]) {
    let is_name = |name: &str| {
        (1..=253).contains(&name.len()) && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
    };
    let short = |refusal: portolan_docker::Refusal| assert!(refusal.to_string().len() <= 1000 + 12 * bytes.len());
    wire::members(bytes).map_or_else(short, drop);
    wire::subject(bytes).map_or_else(short, |_| ());
    match wire::labels(bytes) {
        Ok(found) => {
            for labels in found.values() {
                assert!(is_name(&labels[portolan_model::CALLED]));
                let also = &labels[portolan_model::ALSO_CALLED];
                assert!(also.is_empty() || also.split(',').all(is_name), "{also:?}");
            }
        }
        Err(refusal) => short(refusal),
    }
}
