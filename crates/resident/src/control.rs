//! The control socket: how commands talk to the resident. One JSON object a line, each way.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portolan_engine::Holder;
use portolan_model::Id;
use serde::{Deserialize, Serialize};

use crate::cluster::{Came, Sharing, Standing};
use crate::stats::EndpointStats;

/// How long an answer may take: the slowest is a verb that waits for thousands of listeners.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the resident is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask", deny_unknown_fields)]
pub enum Request {
    /// Take notice of all that is committed; answered when it is in force.
    Sync {
        /// Which command asks, and how long it has taken so far, in microseconds.
        #[serde(default)]
        command: Option<(String, u64)>,
    },
    /// Stay as long as this conversation lasts: something is coming that will need you. Done at once.
    Hold {},
    /// Wait until a container has all addresses that DHCP servers are to give it; answered when they are in force, or
    /// refused when the time is over.
    Acquire {
        /// The container.
        container: Id,
        /// How many seconds to wait at most.
        seconds: u32,
    },
    /// Give back what a container holds by DHCP, because its interfaces are about to go; answered when that is said.
    Release {
        /// The container.
        container: Id,
        /// On this network only.
        network: Option<Id>,
    },
    /// What has every endpoint done?
    Stats {},
    /// How are you?
    Status {},
    /// Take notice of whether this host is in a cluster; how does it stand there?
    Cluster {},
    /// Have the cluster do what all hosts have to agree on; answered when rows and kernel are so.
    Share {
        /// What.
        what: Box<Sharing>,
    },
    /// End. Names are not answered any more and nothing is repaired until somebody starts another one.
    Stop {},
    /// Go on as another binary, with all sockets and connections.
    Upgrade {
        /// The binary.
        binary: PathBuf,
    },
    /// From now on, a line for everything that happens.
    Events {},
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// Done.
    Done(Done),
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Stats`].
    Stats {
        /// By container and network.
        endpoints: Vec<EndpointStats>,
    },
    /// To [`Request::Cluster`]; none if it is in none.
    Cluster {
        /// How it stands.
        standing: Option<Box<Standing>>,
    },
    /// To [`Request::Share`].
    Shared {
        /// What came of it.
        came: Came,
    },
    /// It cannot be done.
    Refused {
        /// Why.
        reason: String,
        /// What to do about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// What is not as it should be, although what was asked for is done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {
    /// A sentence each.
    pub warnings: Vec<String>,
    /// The gateway addresses among that where names are not answered.
    #[serde(default)]
    pub unanswered: Vec<SocketAddr>,
}

/// The state of the resident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Seconds since it was started; an upgrade does not count as a start.
    pub uptime: u64,
    /// Who starts it again when it dies: `systemd`, `portolan`, or nobody.
    pub supervisor: String,
    /// Whether it leaves when no container is on any network.
    pub on_demand: bool,
    /// The last commit it has seen.
    pub revision: u64,
    /// Networks whose names it answers.
    pub networks: usize,
    /// Endpoints whose names it answers.
    pub endpoints: usize,
    /// What is not as it should be, a sentence each.
    pub warnings: Vec<String>,
}

/// Where the control socket of a resident is.
pub fn path(run: &Path) -> PathBuf {
    run.join("control.sock")
}

/// The resident is there, and does not answer.
#[derive(Debug, thiserror::Error)]
#[error("the daemon{} did not answer within {} s", .daemon.as_ref().map(|daemon| format!(", {daemon},")).unwrap_or_default(), PATIENCE.as_secs())]
pub struct Silent {
    /// Its process, if it can be known.
    pub daemon: Option<Holder>,
}

impl Silent {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let Holder { pid, stopped, .. } = self.daemon.as_ref()?;
        Some(if *stopped {
            format!("`kill -CONT {pid}` lets it go on")
        } else {
            format!("if it hangs, `kill {pid}`: another one goes on where it was")
        })
    }
}

/// A conversation with a resident.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the resident whose run-time directory is `run`; none if there is none.
    ///
    /// # Errors
    /// When the socket is there and cannot be used.
    pub fn connect(run: &Path) -> Result<Option<Self>> {
        let path = path(run);
        match UnixStream::connect(&path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Some(Self { stream: BufReader::new(stream) }))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("connect to `{}`", path.display())),
        }
    }

    /// Asks; none when the resident left before it answered.
    ///
    /// # Errors
    /// When it does not answer in time, or not in our language.
    pub fn ask(&mut self, request: &Request) -> Result<Option<Answer>> {
        if self.send(request)? { self.answer() } else { Ok(None) }
    }

    /// Says something without waiting for the answer; `false` when the resident has left. Who waits for nothing else may go.
    ///
    /// # Errors
    /// When it does not take it in time.
    pub fn send(&mut self, request: &Request) -> Result<bool> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        match self.stream.get_mut().write_all(line.as_bytes()) {
            Err(error) if is_gone(&error) => Ok(false),
            other => other.map(|()| true).context("ask the daemon"),
        }
    }

    /// The answer to what was sent first of that which is not answered; none when the resident left before.
    ///
    /// # Errors
    /// As for [`Self::ask`].
    pub fn answer(&mut self) -> Result<Option<Answer>> {
        let line = self.line().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.silent().into(),
            _ => anyhow::Error::from(error).context("wait for the daemon's answer"),
        });
        match line? {
            Some(line) => Ok(Some(serde_json::from_str(&line).context("read the daemon's answer")?)),
            None => Ok(None),
        }
    }

    fn silent(&self) -> Silent {
        let peer = rustix::net::sockopt::socket_peercred(self.stream.get_ref()).ok();
        let pid = peer.and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok());
        // Whoever made the socket may have died since, and another one have inherited it.
        Silent { daemon: pid.map(portolan_store::process).filter(|daemon| !daemon.name.is_empty()) }
    }

    /// The next line; none at the end.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for lines as long as it takes.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn wait_forever(&self) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(None)
    }

    /// As [`Self::ask`] for what is answered with [`Answer::Done`].
    ///
    /// # Errors
    /// Also the resident's refusal.
    pub fn tell(&mut self, request: &Request) -> Result<Option<Done>> {
        match self.ask(request)? {
            Some(Answer::Done(done)) => Ok(Some(done)),
            Some(Answer::Refused { reason, .. }) => bail!(reason),
            Some(other) => bail!("the daemon answered something else: {other:?}"),
            None => Ok(None),
        }
    }
}

/// Waits until the resident has got a container all addresses that DHCP servers are to give it, and they are in force.
/// `false` when no resident runs.
///
/// Asked again of the next one when a resident leaves, is killed or becomes another binary meanwhile.
///
/// # Errors
/// Why the container still has no address after `seconds`.
pub fn acquire(run: &Path, container: Id, seconds: u32) -> Result<bool> {
    let until = Instant::now() + Duration::from_secs(seconds.into());
    loop {
        let left = until.saturating_duration_since(Instant::now()).as_secs_f32().ceil() as u32;
        let Some(mut client) = Client::connect(run)? else { return Ok(false) };
        if client.tell(&Request::Acquire { container, seconds: left })?.is_some() {
            return Ok(true);
        }
        if left == 0 {
            bail!("the daemon leaves as soon as it was started");
        }
    }
}

/// Has the resident give back what a container holds by DHCP, on `network` or on all, while its interfaces are there. No
/// failure is one: what is not given back now is given back when the rows are gone, or ends by itself.
pub fn release(run: &Path, container: Id, network: Option<Id>) {
    let told = Client::connect(run).and_then(|client| match client {
        Some(mut client) => client.tell(&Request::Release { container, network }).map(drop),
        None => Ok(()),
    });
    if let Err(error) = told {
        tracing::warn!("give leases back: {error:#}");
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
