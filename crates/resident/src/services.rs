//! The resident's threads, and what each of them is told of a change.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::{Context as _, Result};
use portolan_dns::ResolvConf;
use portolan_engine::Change;
use portolan_kernel::diag::Transport;
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use crate::daemon::{Config, Engine};
use crate::dns::{self, DnsServer, HandOver, HandOverData, ListenerEvent};
use crate::feed::Feed;
use crate::notify::Manager;

/// Where systemd-resolved keeps the servers that hide behind its stub (systemd-resolved.service(8)).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
const STUB: [u8; 4] = [127, 0, 0, 53];

/// What the resident before us left: descriptors with the numbers they had, and values.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Sockets.
    pub fds: Vec<(i32, OwnedFd)>,
    /// What [`Services::hand_over`] said.
    pub memory: Memory,
}

/// What services remember over an execve(2).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The name server's.
    dns: Option<Part<HandOverData>>,
}

/// Descriptors, by number and in order, and the data that belongs to them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Part<T> {
    fds: Vec<i32>,
    data: T,
}

impl Inherited {
    /// Takes the descriptors of a part out, in its order.
    fn claim<T>(&mut self, part: &Part<T>) -> Vec<OwnedFd> {
        let take = |number: &i32| {
            let at = self.fds.iter().position(|(other, _)| other == number)?;
            Some(self.fds.swap_remove(at).1)
        };
        part.fds.iter().filter_map(take).collect()
    }

    /// Adds a part's descriptors; what is to be remembered of them.
    fn add<T>(&mut self, fds: Vec<OwnedFd>, data: T) -> Part<T> {
        let numbers = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        self.fds.extend(fds.into_iter().map(|fd| (fd.as_raw_fd(), fd)));
        Part { fds: numbers, data }
    }
}

/// The threads, and what they were last told.
pub struct Services {
    wake: OwnedFd,
    resolv_conf: PathBuf,
    manager: Manager,
    revision: Option<u64>,
    feed: Feed,
    dns: Option<DnsServer>,
    warnings: Vec<String>,
    tell: mpsc::Sender<String>,
}

impl Services {
    /// Starts the threads; `tell` gets a line of JSON for everything that happens.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(config: &Config, inherited: Inherited, manager: Manager, tell: mpsc::Sender<String>) -> Result<Self> {
        let mut services = Self {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            resolv_conf: config.resolv_conf.clone(),
            manager,
            revision: None,
            feed: Feed::default(),
            dns: None,
            warnings: Vec::new(),
            tell,
        };
        services.resume(inherited)?;
        Ok(services)
    }

    /// Starts the threads with what their predecessors left.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn resume(&mut self, mut inherited: Inherited) -> Result<()> {
        let handed = match inherited.memory.dns.take() {
            Some(part) => {
                let fds = inherited.claim(&part);
                HandOver::from_parts(fds, part.data).context("take over the name server's sockets")?
            }
            // Whoever was before us was killed, and somebody kept the listening sockets.
            None => HandOver::from_sockets(std::mem::take(&mut inherited.fds).into_iter().map(|(_, fd)| fd).collect()),
        };
        let manager = self.manager.sibling().context("reach the service manager")?;
        let on_listener = move |event: ListenerEvent<'_>| match event {
            ListenerEvent::Opened { fd, address, transport } => manager.keep(&kept_name(address, transport), fd),
            ListenerEvent::Closed { address, transport } => manager.let_go(&kept_name(address, transport)),
        };
        let config = dns::Config { on_listener: Some(Box::new(on_listener)), ..dns::Config::default() };
        let server = DnsServer::start(handed, config)?;
        // Whoever is started again in this process has to be told everything.
        self.revision = None;
        self.feed = Feed::default();
        server.update(vec![dns::Change::HostResolver(self.host_resolver())]);
        self.dns = Some(server);
        Ok(())
    }

    /// Readable when a thread has said something.
    pub fn wakes(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes note of it.
    pub fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Reads what was committed since, and tells those whom it concerns; whether any container is on any network.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn follow(&mut self, engine: &Engine) -> Result<bool> {
        let mut changes = Vec::new();
        let (mut networks, mut containers) = (BTreeSet::new(), BTreeSet::new());
        let feed = &mut self.feed;
        let followed = engine.follow(self.revision, |change| {
            match change {
                Change::Network(id, _) => networks.insert(id),
                Change::Container(id, _) => containers.insert(id),
            };
            feed.take(change, &mut changes);
        })?;
        if followed.is_everything {
            feed.keep_only(&networks, &containers, &mut changes);
        }
        self.revision = Some(followed.revision);
        if let Some(dns) = self.dns.as_ref().filter(|_| !changes.is_empty()) {
            dns.update(changes);
        }
        Ok(self.feed.endpoints() > 0)
    }

    /// Waits until all that was told is in force; what is not as it should be.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn settle(&mut self) -> Result<Vec<String>> {
        let failures = self.dns.as_ref().map(DnsServer::barrier).transpose()?.unwrap_or_default();
        self.warnings = failures.into_iter().map(|failure| format!("names are not answered: {failure}")).collect();
        Ok(self.warnings.clone())
    }

    /// The host's resolver file may have changed.
    pub fn resolver_changed(&mut self) {
        if let Some(dns) = &self.dns {
            dns.update(vec![dns::Change::HostResolver(self.host_resolver())]);
        }
    }

    fn host_resolver(&self) -> ResolvConf {
        let read = |path: &std::path::Path| {
            fs::read_to_string(path).map(|text| ResolvConf::parse(&text, interface_index)).map_err(|error| {
                tracing::warn!(%error, path = %path.display(), "the host's name servers cannot be read");
            })
        };
        let host = read(&self.resolv_conf).unwrap_or_default();
        let is_stub = |server: &SocketAddr| server.ip() == std::net::IpAddr::from(STUB);
        if !host.nameservers.is_empty() && host.nameservers.iter().all(is_stub) {
            return read(BEHIND_STUB.as_ref()).unwrap_or(host);
        }
        host
    }

    /// How many networks and endpoints there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.feed.networks().len(), self.feed.endpoints())
    }

    /// The last commit that was told.
    pub fn revision(&self) -> u64 {
        self.revision.unwrap_or(0)
    }

    /// What is not as it should be, a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Says to whoever follows events that something happened.
    pub fn happened(&self, event: &impl Serialize) {
        if let Ok(line) = serde_json::to_string(event) {
            let _ = self.tell.send(line);
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Ends the threads.
    pub fn stop(&mut self) {
        self.dns = None;
    }

    /// Ends the threads; what their successors go on with.
    ///
    /// # Errors
    /// When one has ended before its time.
    pub fn hand_over(&mut self) -> Result<Inherited> {
        let mut inherited = Inherited::default();
        if let Some(server) = self.dns.take() {
            let (fds, data) = server.hand_over()?.into_parts();
            let part = inherited.add(fds, data);
            inherited.memory.dns = Some(part);
        }
        Ok(inherited)
    }
}

/// The name under which a listening socket is kept: what systemd allows (sd_pid_notify_with_fds(3)).
fn kept_name(address: SocketAddr, transport: Transport) -> String {
    let transport = match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
        Transport::Sctp => "sctp",
    };
    format!("{transport}-{}", address.ip()).replace(':', "_")
}

/// The index of an interface of the host.
fn interface_index(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}
