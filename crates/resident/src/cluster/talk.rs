//! How commands talk to the thread that speaks with etcd: a socket of its own, one JSON object a line, each way.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use portolan_model::{Id, Mtu, Name};
use serde::{Deserialize, Serialize};

/// How long an answer may take: as long as etcd may take to elect a leader, and then some.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask", deny_unknown_fields)]
pub enum Ask {
    /// How do things stand?
    Status {},
    /// Give back all that this host has, and have it known no more.
    Leave {},
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Reply {
    /// To [`Ask::Status`].
    Status(Box<Standing>),
    /// It is done.
    Done {},
    /// It cannot be done.
    Refused {
        /// Why.
        reason: String,
    },
}

/// How this host stands in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The cluster.
    pub cluster: Id,
    /// This host.
    pub host: Id,
    /// What it is called.
    pub name: Name,
    /// Where etcd is.
    pub endpoints: Vec<String>,
    /// Whether changes come and go.
    pub connected: bool,
    /// Up to which revision of etcd it knows everything.
    pub revision: i64,
    /// What is not as it should be, a sentence each.
    pub warnings: Vec<String>,
    /// The hosts, by name.
    pub hosts: Vec<HostRow>,
}

/// A host, as all see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Its id.
    pub id: Id,
    /// What it is called.
    pub name: Name,
    /// Where it takes packets.
    pub addresses: Vec<IpAddr>,
    /// The MTU of its way to the others.
    pub mtu: Mtu,
    /// Its version.
    pub version: String,
    /// `up`; `down` if it has not said for a while that it runs; `gone` if it is not to come back.
    pub state: String,
}

/// Where the socket is.
pub fn path(run: &Path) -> PathBuf {
    run.join("cluster.sock")
}

/// Asks the thread of the daemon whose run-time directory is `run`; none if there is no such thread.
///
/// # Errors
/// When it does not answer in time, or with something else.
pub fn ask(run: &Path, ask: &Ask) -> Result<Option<Reply>> {
    let path = path(run);
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("connect to `{}`", path.display())),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(ask).expect("plain values serialise");
    line.push('\n');
    (&stream).write_all(line.as_bytes()).context("ask the daemon")?;
    let mut answer = String::new();
    match BufReader::new(&stream).read_line(&mut answer) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(serde_json::from_str(&answer).context("read what the daemon answered")?)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            anyhow::bail!("the daemon did not answer within {} s", PATIENCE.as_secs())
        }
        Err(error) => Err(error).context("read what the daemon answered"),
    }
}
