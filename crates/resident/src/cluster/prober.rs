//! Sends along the paths to other hosts, and hears what comes back. When, and what is made of it, [`Paths`] decides.
//!
//! The other ends are kernels: echo requests are answered by them, and so are datagrams to a port that nobody listens on. All of it
//! goes by link-local addresses out of a network's end of the tunnels, so it takes the path that containers' packets take, and rules
//! know it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use portolan_cluster::{Figures, Passage, PathTo, Paths, Probe, Shot};
use portolan_kernel::diag::{self, Transport};
use portolan_kernel::icmp::{self, echo_request, echoed};
use portolan_kernel::netlink::{self, Socket};
use portolan_kernel::rtnl::Family;
use portolan_kernel::{random, socket};
use portolan_model::Id;
use portolan_plan::ruleset::ECHO;
use portolan_plan::vxlan_name;
use tokio::sync::mpsc as channel;

use super::Told;
use super::agent::{Shared, lock};
use super::plan::Here;

/// How often it is looked at which paths there are, if anything may have changed.
const LOOK: Duration = Duration::from_secs(1);
/// And in any case.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often what is known is told.
const TELL: Duration = Duration::from_millis(500);
/// How often it is asked whether hosts run from which nothing comes, and of how many at once.
const ASK: Duration = Duration::from_secs(5);
const ASKED: usize = 32;
/// Headers of IPv6 and UDP.
const HEADERS: usize = 40 + 8;
/// Enough for what is quoted of a packet, and for all that is looked at of it.
const ROOM: usize = 2048;
/// So many answers are taken in at a time from one socket.
const AT_ONCE: usize = 1000;

/// The thread; dropping it ends it.
pub(super) struct Prober {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Measures the paths from this host.
    pub(super) fn start(me: Id, shared: Shared, told: channel::UnboundedSender<Told>) -> Result<Self> {
        let (stop, stopped) = UnixStream::pair().context("make a pair of sockets")?;
        let probe = move || match Work::new(me, shared, told) {
            Ok(work) => work.run(&stopped),
            Err(error) => tracing::warn!(%error, "cluster: the paths to other hosts are not measured"),
        };
        let thread = std::thread::Builder::new().name("portolan-paths".to_owned()).spawn(probe)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    me: Id,
    shared: Shared,
    told: channel::UnboundedSender<Told>,
    paths: Paths,
    /// What tells our answers from those to others.
    cookie: [u8; 8],
    id: u16,
    inside: UdpSocket,
    outside4: UdpSocket,
    summed: UdpSocket,
    plain: UdpSocket,
    /// The port of the one that is told what ICMP says.
    port: u16,
    /// As whom this host's ends of tunnels answer.
    end: Ipv6Addr,
    /// The numbers of the networks' ends of the tunnels.
    scopes: BTreeMap<Id, u32>,
    /// As of which revision, and when, it was last looked at which paths there are.
    looked: Option<(i64, Instant)>,
    port_looked: Option<Instant>,
    /// The sockets at the port of the tunnels.
    at_port: BTreeSet<u32>,
    told_at: Option<Instant>,
    asked: Option<Instant>,
    passages: BTreeMap<PathTo, Passage>,
}

impl Work {
    fn new(me: Id, shared: Shared, told: channel::UnboundedSender<Told>) -> io::Result<Self> {
        let chance = random();
        let part = |at: usize| -> [u8; 8] { chance[at..at + 8].try_into().expect("eight of 32 bytes") };
        let summed = icmp::refusal_socket()?;
        let end = lock(&shared).record.mac.link_local();
        Ok(Self {
            me,
            shared,
            told,
            paths: Paths::new(0, Instant::now()),
            cookie: part(0),
            id: u16::from_le_bytes(part(8)[..2].try_into().expect("two of eight bytes")),
            inside: icmp::echo_socket(Family::V6)?,
            outside4: icmp::echo_socket(Family::V4)?,
            port: summed.local_addr()?.port(),
            summed,
            plain: icmp::packet_socket()?,
            end,
            scopes: BTreeMap::new(),
            looked: None,
            port_looked: None,
            at_port: BTreeSet::new(),
            told_at: None,
            asked: None,
            passages: BTreeMap::new(),
        })
    }

    fn run(mut self, stopped: &UnixStream) {
        loop {
            let now = Instant::now();
            self.look(now);
            for shot in self.paths.due(now) {
                // Nothing comes back of what is not sent.
                if let Err(error) = self.send(&shot) {
                    tracing::debug!(%error, host = %shot.to.host.short(), "a probe is not sent");
                }
            }
            self.tell(Instant::now());
            let next = self.paths.next().map_or(LOOK, |next| next.saturating_duration_since(Instant::now()));
            let fds = [stopped.as_fd(), self.inside.as_fd(), self.outside4.as_fd(), self.summed.as_fd()];
            match socket::wait_readable(fds, Some(next.min(LOOK))) {
                Ok([false, inside, outside, summed]) => {
                    let now = Instant::now();
                    if inside {
                        self.hear_echoes(Family::V6, now);
                    }
                    if outside {
                        self.hear_echoes(Family::V4, now);
                    }
                    if summed {
                        self.hear_refusals(now);
                    }
                }
                Ok([true, ..]) => return,
                Err(error) => return tracing::warn!(%error, "cluster: the paths to other hosts are measured no more"),
            }
        }
    }

    /// Sees which paths there are now.
    fn look(&mut self, now: Instant) {
        let known = lock(&self.shared);
        let revision = known.view.revision();
        let age = self.looked.map(|(_, at)| now.saturating_duration_since(at));
        let has_changed = self.looked.is_none_or(|(seen, _)| seen != revision);
        if age.is_some_and(|age| age < if has_changed { LOOK } else { LOOK_AGAIN }) {
            return;
        }
        self.looked = Some((revision, now));
        let record = known.record.clone();
        let port = known.view.cluster().map(|cluster| cluster.port);
        let mut wanted = Here { host: self.me, record: &record }.paths(&known.view);
        drop(known);
        self.look_at_port(port, now);
        let networks: BTreeSet<Id> = wanted.values().map(|tunnel| tunnel.network).collect();
        let scope = |network: Id| Some((network, socket::scope(vxlan_name(network).as_str())?));
        self.scopes = networks.into_iter().filter_map(scope).collect();
        wanted.retain(|_, tunnel| self.scopes.contains_key(&tunnel.network));
        self.paths.set(&wanted, now);
    }

    /// Sees whether another program has the port of the tunnels, which end in the kernel.
    fn look_at_port(&mut self, port: Option<u16>, now: Instant) {
        if self.port_looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK_AGAIN) {
            return;
        }
        self.port_looked = Some(now);
        let Some(port) = port else { return };
        let there: BTreeSet<u32> = Socket::open(netlink::SOCK_DIAG).map_or_else(
            |_| BTreeSet::new(),
            |mut socket| {
                let mut of = |family| diag::listeners_of(&mut socket, Transport::Udp, family).unwrap_or_default();
                let all = [of(Family::V4), of(Family::V6)].into_iter().flatten();
                all.filter(|socket| socket.port == port).map(|socket| socket.inode).collect()
            },
        );
        if there == self.at_port {
            return;
        }
        self.at_port = there;
        // The kernel's own are no process's.
        let holder = self.at_port.iter().find_map(|inode| diag::holder_of(*inode));
        let said = holder.map(|holder| {
            format!(
                "UDP {port}, the tunnels' port, is another program's on this host (`{}`, process {}): containers are refused on networks of the cluster, or reach no other host; stop it, or give it another port",
                holder.comm, holder.pid
            )
        });
        if let Some(said) = &said {
            tracing::warn!("cluster: {said}");
        }
        lock(&self.shared).port_taken = said;
    }

    fn send(&self, shot: &Shot) -> io::Result<()> {
        let mut payload = self.cookie.to_vec();
        payload.extend(shot.token.to_be_bytes());
        let scope = self.scopes.get(&shot.tunnel.network).copied().unwrap_or(0);
        let inside = |port: u16| SocketAddr::V6(SocketAddrV6::new(shot.tunnel.end, port, 0, scope));
        let refusal = |payload: &[u8]| {
            // What ICMP said of the last one may be told here.
            self.summed.send_to(payload, inside(ECHO)).or_else(|_| self.summed.send_to(payload, inside(ECHO)))
        };
        match (shot.probe, shot.tunnel.outside) {
            (Probe::Small, _) => self.inside.send_to(&echo_request(Family::V6, self.id, &payload), inside(0)),
            (Probe::Plain, _) => {
                // The answer is for the port.
                let packet = icmp::datagram((self.end, self.port), (shot.tunnel.end, ECHO), &payload);
                self.plain.send_to(&packet, inside(0))
            }
            (Probe::Summed, _) => refusal(&payload),
            (Probe::Full, _) => {
                payload.resize((shot.tunnel.size as usize).saturating_sub(HEADERS).max(payload.len()), 0);
                refusal(&payload)
            }
            (Probe::Outside, None) => Ok(0),
            (Probe::Outside, Some(to @ IpAddr::V4(_))) => {
                self.outside4.send_to(&echo_request(Family::V4, self.id, &payload), (to, 0))
            }
            (Probe::Outside, Some(to @ IpAddr::V6(_))) => {
                self.inside.send_to(&echo_request(Family::V6, self.id, &payload), (to, 0))
            }
        }
        .map(drop)
    }

    fn hear_echoes(&mut self, family: Family, now: Instant) {
        let mut room = [0; ROOM];
        for _ in 0..AT_ONCE {
            let from = if family == Family::V6 { &self.inside } else { &self.outside4 };
            let Ok(length) = from.recv(&mut room) else { return };
            if let Some((id, payload)) = echoed(family, &room[..length])
                && id == self.id
            {
                self.hear(payload, now);
            }
        }
    }

    fn hear_refusals(&mut self, now: Instant) {
        let mut room = [0; ROOM];
        for _ in 0..AT_ONCE {
            match icmp::refused(&self.summed, &mut room) {
                Ok(Some((_, payload))) => self.hear(payload, now),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
        // Somebody may listen there, and send back what he got.
        for _ in 0..AT_ONCE {
            match self.summed.recv(&mut room) {
                Ok(length) => self.hear(&room[..length], now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    fn hear(&mut self, payload: &[u8], now: Instant) {
        if let Some((cookie, rest)) = payload.split_first_chunk::<8>()
            && *cookie == self.cookie
            && let Some(token) = rest.first_chunk::<8>()
        {
            self.paths.heard(u64::from_be_bytes(*token), now);
        }
    }

    /// Has others know what is known.
    fn tell(&mut self, now: Instant) {
        if self.told_at.is_some_and(|at| now.saturating_duration_since(at) < TELL) {
            return;
        }
        self.told_at = Some(now);
        let figures = self.paths.figures(now);
        let is_lost = |figures: &Figures| matches!(figures.passage, Passage::Blocked | Passage::Silent);
        let lost: BTreeSet<Id> =
            figures.iter().filter(|(_, figures)| is_lost(figures)).map(|(to, _)| to.host).take(ASKED).collect();
        if !lost.is_empty() && self.asked.is_none_or(|at| now.saturating_duration_since(at) >= ASK) {
            self.asked = Some(now);
            // Who cannot hear is about to end.
            let _ = self.told.send(Told::Runs(lost));
        }
        for (to, figures) in &figures {
            let before = self.passages.insert(*to, figures.passage).unwrap_or_default();
            if before != figures.passage && (before, figures.passage) != (Passage::Unknown, Passage::Passes) {
                let host = to.host.short();
                tracing::info!(host, encrypted = to.sealed, now = ?figures.passage, "cluster: a path is another one");
            }
        }
        self.passages.retain(|to, _| figures.contains_key(to));
        lock(&self.shared).paths = figures;
    }
}
