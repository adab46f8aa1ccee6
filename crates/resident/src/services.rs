//! The resident's threads, and what each of them is told of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use portolan_cluster::Refusal;
use portolan_dns::ResolvConf;
use portolan_docker::api::events::Chronicle;
use portolan_engine::{Change, Error};
use portolan_kernel::diag::Transport;
use portolan_kernel::socket;
use portolan_model::{FirewallDriver, Id};
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use crate::cluster::{self, Came, Cluster, Standing};
use crate::control::Done;
use crate::daemon::{Config, Engine};
use crate::dns::{self, Barrier, DnsServer, HandOver, HandOverData, ListenerEvent};
use crate::docker::Plugin;
use crate::docker_api::{self, Api};
use crate::feed::{Event, Feed, Told};
use crate::leases::{Leases, Missing};
use crate::notify::Manager;
use crate::proxy::{self, Place, Proxy};
use crate::repair::{Answer, Repairer, Report};
use crate::scrape::{Ask, Scrape};
use crate::shares::Shares;
use crate::stats::{self, EndpointStats, Everything, Latency};

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
    /// The socket that owns the fence.
    fence: Option<Part<()>>,
    /// The proxy's.
    proxy: Option<Part<proxy::HandOverData>>,
}

/// Descriptors, by number and in order, and the data that belongs to them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Part<T> {
    fds: Vec<i32>,
    data: T,
}

impl Memory {
    /// For [`crate::foreign`]: what the name server and the proxy remember.
    pub(crate) fn into_data(self) -> (Option<HandOverData>, Option<proxy::HandOverData>) {
        (self.dns.map(|part| part.data), self.proxy.map(|part| part.data))
    }
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
    wake: Arc<OwnedFd>,
    resolv_conf: PathBuf,
    manager: Manager,
    revision: Option<u64>,
    feed: Feed,
    dns: Option<DnsServer>,
    proxy: Option<Proxy>,
    repairer: Option<Repairer>,
    shares: Option<Shares>,
    leases: Leases,
    say_leased: mpsc::Sender<Event>,
    say_shared: mpsc::Sender<(u64, Result<Came, Refusal>)>,
    shared: mpsc::Receiver<(u64, Result<Came, Refusal>)>,
    /// What happened to leases.
    leased: mpsc::Receiver<Event>,
    /// Containers that are being made.
    coming: BTreeSet<Id>,
    fence: Fence,
    /// Who was told something since it was last waited for, or had failed by then.
    unsettled: Unsettled,
    root: PathBuf,
    /// How things stood when last somebody waited for all to be in force.
    last: Done,
    tell: mpsc::Sender<String>,
    /// How long commands took, by their names.
    commands: BTreeMap<String, Latency>,
    scrape: Option<Scrape>,
    /// Who waits for metrics.
    scrapers: Option<mpsc::Receiver<Ask>>,
    run: PathBuf,
    metrics: Option<SocketAddr>,
    /// Who is to carry out the rules, if the first network is made for Docker or its clients.
    firewall: Option<FirewallDriver>,
    /// Where Docker's plugin is served, and who serves it.
    docker: (Option<PathBuf>, Option<Plugin>),
    /// How Docker's API is served, and who serves it.
    api: (Option<docker_api::Config>, Option<Api>),
    /// What those who follow Docker's events were told.
    chronicle: Chronicle,
    /// Who speaks with etcd, while this host is in a cluster.
    cluster: Option<Cluster>,
}

/// Whether the fence is to stand.
#[derive(Debug, Default)]
struct Fence {
    is_needed: bool,
    /// Who puts it up or takes it down says here how it went.
    answer: Option<Answer>,
    /// Why it does not stand if it should.
    failure: Option<String>,
}

/// Which threads have to be asked before all is in force.
#[derive(Debug)]
struct Unsettled {
    dns: bool,
    proxy: bool,
}

impl Default for Unsettled {
    fn default() -> Self {
        // What was inherited is settled by the first barrier.
        Self { dns: true, proxy: true }
    }
}

/// Commands of so many names are told apart.
const COMMANDS: usize = 64;

impl Services {
    /// Starts the threads; `tell` gets a line of JSON for everything that happens.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(config: &Config, inherited: Inherited, manager: Manager, tell: mpsc::Sender<String>) -> Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (say_leased, leased) = mpsc::channel();
        let (say_shared, shared) = mpsc::channel();
        let mut services = Self {
            leases: Leases::new(config.root.clone(), say_leased.clone(), wake.clone()),
            say_leased,
            leased,
            say_shared,
            shared,
            wake,
            resolv_conf: config.resolv_conf.clone(),
            manager,
            revision: None,
            feed: Feed::default(),
            dns: None,
            proxy: None,
            repairer: None,
            shares: None,
            coming: BTreeSet::new(),
            fence: Fence::default(),
            unsettled: Unsettled::default(),
            root: config.root.clone(),
            last: Done::default(),
            tell,
            commands: BTreeMap::new(),
            scrape: None,
            scrapers: None,
            run: config.run.clone(),
            metrics: config.metrics,
            firewall: config.firewall,
            docker: (config.docker.clone(), None),
            api: (config.api.clone(), None),
            chronicle: Chronicle::default(),
            cluster: None,
        };
        services.resume(inherited)?;
        Ok(services)
    }

    /// Starts the threads with what their predecessors left.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn resume(&mut self, mut inherited: Inherited) -> Result<()> {
        let fence = match inherited.memory.fence.take() {
            Some(part) => inherited.claim(&part).pop(),
            None => {
                let at = inherited.fds.iter().position(|(_, fd)| is_netlink(fd));
                at.map(|at| inherited.fds.swap_remove(at).1)
            }
        };
        let proxied = match inherited.memory.proxy.take() {
            Some(part) => {
                let fds = inherited.claim(&part);
                proxy::HandOver::from_parts(fds, part.data)
            }
            None => {
                let is_dns = |fd: &OwnedFd| is_on_port(fd, NAMES);
                let (dns, rest) = std::mem::take(&mut inherited.fds).into_iter().partition(|(_, fd)| is_dns(fd));
                inherited.fds = dns;
                let rest: Vec<(i32, OwnedFd)> = rest;
                proxy::HandOver::from_sockets(rest.into_iter().map(|(_, fd)| fd).collect())
            }
        };
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
        self.leases = Leases::new(self.root.clone(), self.say_leased.clone(), self.wake.clone());
        server.update(vec![dns::Change::HostResolver(self.host_resolver())]);
        self.dns = Some(server);
        let manager = self.manager.sibling().context("reach the service manager")?;
        let on_listener = move |event: proxy::ListenerEvent<'_>| match event {
            proxy::ListenerEvent::Opened(place, fd) => manager.keep(&proxy_name(place), fd),
            proxy::ListenerEvent::Closed(place) => manager.let_go(&proxy_name(place)),
        };
        self.proxy = Some(Proxy::start(proxied, Some(Box::new(on_listener)))?);
        let manager = self.manager.sibling().context("reach the service manager")?;
        let keep = move |socket: BorrowedFd<'_>| manager.keep("fence", socket);
        let (tell, wake) = (self.tell.clone(), self.wake.try_clone().context("duplicate a descriptor")?);
        let report = move |report: Report| say(&tell, &wake, &Event::Repaired(report));
        self.repairer = Some(Repairer::start(self.root.clone(), fence, Box::new(keep), Box::new(report))?);
        self.fence = Fence::default();
        let (tell, wake) = (self.tell.clone(), self.wake.try_clone().context("duplicate a descriptor")?);
        self.shares = Some(Shares::start(self.root.clone(), Box::new(move |event| say(&tell, &wake, &event)))?);
        let (asks, scrapers) = mpsc::channel();
        let wake = self.wake.try_clone().context("duplicate a descriptor")?;
        let ask = move |reply: Ask| {
            let _ = asks.send(reply);
            let _ = rustix::io::write(&wake, &1u64.to_ne_bytes());
        };
        self.scrape = Some(Scrape::start(&self.run.join("metrics.sock"), self.metrics, ask)?);
        self.scrapers = Some(scrapers);
        if let Some(socket) = &self.docker.0 {
            self.docker.1 = Some(Plugin::start(&self.root, &self.run, self.firewall, socket)?);
        }
        self.chronicle = Chronicle::default();
        if let Some(config) = &self.api.0 {
            self.api.1 = Some(Api::start(&self.root, &self.run, self.firewall, config)?);
        }
        Ok(())
    }

    /// Readable when a thread has said something.
    pub fn wakes(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes note of it, and answers whoever waits for metrics.
    pub fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        for event in self.leased.try_iter() {
            say(&self.tell, &self.wake, &event);
        }
        while let Some(reply) = self.scrapers.as_ref().and_then(|asks| asks.try_recv().ok()) {
            match self.metrics() {
                Ok(text) => drop(reply.send(text)),
                Err(error) => tracing::warn!("metrics: {error:#}"),
            }
        }
    }

    /// What every endpoint has done.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read, or a thread is gone.
    pub fn stats(&self) -> Result<Vec<EndpointStats>> {
        stats::endpoints(&self.feed, &self.dns_stats()?).context("read the kernel's counters")
    }

    fn dns_stats(&self) -> Result<dns::Stats> {
        Ok(self.dns.as_ref().map(DnsServer::stats).transpose()?.unwrap_or_default())
    }

    fn metrics(&self) -> Result<String> {
        let dns = self.dns_stats()?;
        Ok(stats::prometheus(&Everything {
            endpoints: &stats::endpoints(&self.feed, &dns).context("read the kernel's counters")?,
            networks: self.feed.networks().len(),
            dns: &dns,
            proxy: &self.proxy.as_ref().map(Proxy::stats).transpose()?.unwrap_or_default(),
            repair: self.repairer.as_ref().map(Repairer::stats),
            hosts: &self.standing().map(|standing| standing.hosts).unwrap_or_default(),
            held_back: self.shares.as_ref().map_or(0, Shares::held_back),
            verbs: &self.commands,
        }))
    }

    /// Takes note of how long a command took.
    pub fn count_command(&mut self, name: String, took: std::time::Duration) {
        if self.commands.len() < COMMANDS || self.commands.contains_key(&name) {
            let latency = self.commands.entry(name).or_default();
            latency.count += 1;
            // Whoever asks says how long it took.
            latency.micros = latency.micros.saturating_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// Reads what was committed since, and tells those whom it concerns; whether there is anything to stay for: a
    /// container on a network, or a cluster.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn follow(&mut self, engine: &Engine) -> Result<bool> {
        let was_empty = self.feed.endpoints() == 0;
        // Commits of networks and containers say nothing of it.
        if self.revision.is_none() {
            self.follow_membership(engine);
        }
        let mut changes = Told::default();
        let (mut networks, mut containers, mut remote) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (feed, leases, cluster) = (&mut self.feed, &mut self.leases, self.cluster.as_ref());
        let mut leased = Ok(());
        let (mut happened, is_told) = (Vec::new(), self.api.1.is_some());
        let followed = engine.follow(self.revision, |change| {
            if is_told {
                happened.push(change.clone());
            }
            match &change {
                Change::Network(id, _) => networks.insert(*id),
                Change::Container(id, view) => {
                    if let Err(error) = leases.take(*id, view.as_ref()) {
                        leased = Err(error);
                    }
                    if let Some(cluster) = cluster {
                        cluster.take(*id, view.as_ref());
                    }
                    containers.insert(*id)
                }
                Change::Remote(id, _) => remote.insert(*id),
            };
            feed.take(change, &mut changes);
        })?;
        leased?;
        self.coming.retain(|id| !containers.contains(id));
        self.coming.extend(followed.coming);
        // A row on its way is shown like one that is gone; it is shown again when it has arrived.
        happened.retain(|change| match change {
            Change::Network(id, None) => matches!(engine.network(&id.to_string()), Err(Error::NotFound { .. })),
            Change::Container(id, None) => matches!(engine.container(&id.to_string()), Err(Error::NotFound { .. })),
            Change::Network(..) | Change::Container(..) | Change::Remote(..) => true,
        });
        let mut messages = self.chronicle.take(&happened);
        if followed.is_everything {
            messages.clear();
            self.chronicle.keep_only(&networks, &containers);
            // Nothing of it is news.
            changes.events.clear();
            feed.keep_only(&networks, &containers, &remote, &mut changes);
            if let Some(cluster) = cluster {
                cluster.took_everything(&containers);
            }
            let gone: Vec<Id> = leases.containers().filter(|id| !containers.contains(id)).collect();
            gone.into_iter().try_for_each(|id| leases.take(id, None))?;
        }
        self.revision = Some(followed.revision);
        if let Some(dns) = self.dns.as_ref().filter(|_| !changes.dns.is_empty()) {
            dns.update(changes.dns);
            self.unsettled.dns = true;
        }
        if let Some(proxy) = self.proxy.as_ref().filter(|_| !changes.proxy.is_empty()) {
            proxy.update(changes.proxy);
            self.unsettled.proxy = true;
        }
        if let Some(shares) = self.shares.as_ref().filter(|_| !changes.shares.is_empty()) {
            shares.update(changes.shares);
        }
        for event in changes.events {
            say(&self.tell, &self.wake, &event);
        }
        if let Some(api) = &self.api.1 {
            messages.into_iter().for_each(|message| api.tell(message));
        }
        let has_endpoints = self.feed.endpoints() > 0;
        // It goes up while the first container is still being made, which then need not wait for it.
        let is_needed = has_endpoints || !self.coming.is_empty();
        // Each that comes first may bring another firewall driver, or another name of its rules.
        let is_first = was_empty && !self.coming.is_empty() && !containers.is_empty();
        if let Some(repairer) = self.repairer.as_ref().filter(|_| self.fence.is_needed != is_needed || is_first) {
            self.fence = Fence { is_needed, answer: Some(repairer.set_needed(is_needed)?), failure: None };
        }
        Ok(has_endpoints || self.cluster.is_some())
    }

    /// Has the thread that speaks with etcd be there while this host is in a cluster.
    pub fn follow_membership(&mut self, engine: &Engine) {
        let membership = match cluster::membership(engine) {
            Ok(membership) => membership.filter(|membership| !membership.leaving),
            Err(error) => return tracing::error!("cluster: {error:#}"),
        };
        match membership {
            None => self.cluster = None,
            Some(_) if self.cluster.is_some() => {}
            Some(membership) => match Cluster::start(&self.root, &self.run, engine, membership, self.shared_by()) {
                // It has to be told of all containers.
                Ok(cluster) => (self.cluster, self.revision) = (Some(cluster), None),
                Err(error) => tracing::error!("cluster: {error:#}"),
            },
        }
    }

    /// Who hears of what came of [`Services::share`].
    fn shared_by(&self) -> cluster::Tell {
        let (tell, wake) = (self.say_shared.clone(), self.wake.clone());
        Arc::new(move |token, outcome| {
            let _ = tell.send((token, outcome));
            let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
        })
    }

    /// Has the cluster do what all hosts have to agree on. What came of it is told under `token` ([`Services::shared`]).
    ///
    /// # Errors
    /// When this host is in no cluster.
    pub fn share(&self, token: u64, what: cluster::Sharing) -> Result<(), Refusal> {
        let Some(cluster) = &self.cluster else {
            return Err(Refusal::new(
                "this host is in no cluster",
                "`portolan cluster init` begins one, `portolan cluster join` makes this host one of it",
            ));
        };
        cluster.share(token, what);
        Ok(())
    }

    /// What came of what was asked for, by token.
    pub fn shared(&self) -> Vec<(u64, Result<Came, Refusal>)> {
        self.shared.try_iter().collect()
    }

    /// Has it be found out which hosts of the cluster run; [`Came::Looked`] is told under `token` ([`Services::shared`]). False
    /// where nothing can be found out.
    pub fn look(&self, token: u64) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.look(token))
    }

    /// How this host stands in its cluster, if it is in one.
    pub fn standing(&self) -> Option<Standing> {
        self.cluster.as_ref().map(Cluster::standing)
    }

    /// Waits until all that was told is in force; what is not as it should be.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn settle(&mut self) -> Result<Done> {
        let dns = self.dns.as_ref().filter(|_| self.unsettled.dns).map(DnsServer::raise_barrier).transpose()?;
        let proxy = self.proxy.as_ref().filter(|_| self.unsettled.proxy).map(Proxy::barrier).transpose()?;
        let (dns, proxy) = (dns.map(Barrier::wait).transpose()?.unwrap_or_default(), proxy.unwrap_or_default());
        self.unsettled = Unsettled { dns: !dns.is_empty(), proxy: !proxy.is_empty() };
        // Nobody needs it to be gone.
        if self.fence.is_needed
            && let Some(answer) = self.fence.answer.take()
        {
            self.fence.failure = answer.wait()?;
        }
        let mut done = Done { warnings: self.fence.failure.iter().cloned().collect(), unanswered: Vec::new() };
        for failure in dns {
            done.warnings.push(format!("names are not answered: {failure}"));
            done.unanswered.push(failure.address);
        }
        for failure in proxy {
            done.warnings.push(format!("a published port is not passed on: {failure}: {}", failure.source));
        }
        self.last = done.clone();
        Ok(done)
    }

    /// What a container still lacks of the addresses that DHCP servers are to give it.
    pub fn missing_leases(&self, container: Id) -> Vec<Missing> {
        self.leases.missing(container)
    }

    /// Gives back what a container holds by DHCP, on `network` or on all.
    pub fn release_leases(&mut self, container: Id, network: Option<Id>) {
        self.leases.release(container, network);
    }

    /// The host's resolver file may have changed.
    pub fn resolver_changed(&mut self) {
        if let Some(dns) = &self.dns {
            dns.update(vec![dns::Change::HostResolver(self.host_resolver())]);
            self.unsettled.dns = true;
        }
    }

    fn host_resolver(&self) -> ResolvConf {
        let read = |path: &std::path::Path| {
            // A comment may be in any encoding.
            let parse = |text: Vec<u8>| ResolvConf::parse(&String::from_utf8_lossy(&text), socket::scope);
            fs::read(path).map(parse).map_err(|error| {
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

    /// What is not as it should be.
    pub fn last(&self) -> &Done {
        &self.last
    }

    /// Ends the threads.
    pub fn stop(&mut self) {
        (self.docker.1, self.api.1, self.cluster) = (None, None, None);
        self.dns = None;
        self.proxy = None;
        self.repairer = None;
        self.shares = None;
        self.leases.stop();
        self.scrape = None;
        let _ = fs::remove_file(self.run.join("metrics.sock"));
    }

    /// Ends the threads; what their successors go on with.
    ///
    /// # Errors
    /// When one has ended before its time.
    pub fn hand_over(&mut self) -> Result<Inherited> {
        (self.docker.1, self.api.1, self.cluster) = (None, None, None);
        self.scrape = None;
        self.shares = None;
        // Leases are in the rows.
        self.leases.stop();
        let mut inherited = Inherited::default();
        if let Some(server) = self.dns.take() {
            let (fds, data) = server.hand_over()?.into_parts();
            let part = inherited.add(fds, data);
            inherited.memory.dns = Some(part);
        }
        if let Some(proxy) = self.proxy.take() {
            let (fds, data) = proxy.hand_over()?.into_parts();
            let part = inherited.add(fds, data);
            inherited.memory.proxy = Some(part);
        }
        if let Some(repairer) = self.repairer.take()
            && let Some(fence) = repairer.hand_over()?
        {
            let part = inherited.add(vec![fence], ());
            inherited.memory.fence = Some(part);
        }
        Ok(inherited)
    }
}

/// Tells an event, with the time, to whoever follows.
fn say(tell: &mpsc::Sender<String>, wake: &OwnedFd, event: &Event) {
    #[derive(Serialize)]
    struct Timed<'a> {
        /// Seconds since 1970.
        time: f64,
        #[serde(flatten)]
        event: &'a Event,
    }
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    if let Ok(line) = serde_json::to_string(&Timed { time, event }) {
        let _ = tell.send(line);
        let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
    }
}

/// The port of names.
const NAMES: u16 = 53;

fn is_on_port(fd: &OwnedFd, port: u16) -> bool {
    let address = rustix::net::getsockname(fd).ok().and_then(|address| SocketAddr::try_from(address).ok());
    address.is_some_and(|address| address.port() == port)
}

fn proxy_name(place: Place) -> String {
    format!("proxy-{}-{}", kept_name(place.listen, place.transport), place.listen.port())
}

fn is_netlink(fd: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_domain(fd).is_ok_and(|family| family == rustix::net::AddressFamily::NETLINK)
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
