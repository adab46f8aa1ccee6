//! Our daemon with Docker's API, and a client that writes HTTP by hand.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;

use crate::common::*;

/// A world with a daemon that serves the API.
pub(crate) struct Served {
    pub(crate) world: World,
    pub(crate) socket: PathBuf,
}

/// What was answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    /// The body.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The words of a refusal.
    #[track_caller]
    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_else(|| panic!("no message: {self:?}")).to_owned()
    }
}

impl Served {
    pub(crate) fn or_skip(name: &str) -> Option<Self> {
        let mut world = World::or_skip(name)?;
        world.daemon = true;
        world.portolan_ok(&["daemon", "start", "--api"]);
        let socket = world.root.join("run/docker.sock");
        Some(Self { world, socket })
    }

    /// A connection that waits at most [`LONG`] for an answer.
    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Asks, with these bytes for a body.
    pub(crate) fn send(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut stream = self.connect();
        let content = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n{content}Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // It need not be read to the end to be refused.
        let _ = stream.write_all(body);
        read(&mut stream)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send("GET", path, b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, body.to_string().as_bytes())
    }

    /// A process in `portolan run` on these networks.
    pub(crate) fn run(&self, name: &str, args: &[&str]) {
        let run = [&["run", "-d", "--name", name], args, &["--", "sleep", "1000"]].concat();
        self.world.portolan_ok(&run);
    }
}

/// What comes until the other side closes.
pub(crate) fn read(stream: &mut UnixStream) -> Reply {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body =
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { unchunked(body) } else { body.into() };
    Reply { status, head: head.to_owned(), body }
}

/// The content of chunks (RFC 9112 §7.1).
fn unchunked(mut body: &str) -> String {
    let mut content = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Some(chunk) = usize::from_str_radix(size, 16).ok().and_then(|size| rest.get(..size)) else { break };
        content.push_str(chunk);
        body = rest[chunk.len()..].trim_start_matches("\r\n");
    }
    content
}
