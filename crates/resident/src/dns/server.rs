use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use portolan_dns::wire::{self, Query};
use portolan_dns::{Action, Attempt, Decision, Event, Forwarder, Local, Names};
use portolan_kernel::diag::Transport;
use portolan_kernel::udp::{self, BATCH, Inbox, ListenError, Outbox};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, sendto};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::connection::{Connection, Fate, MAX_QUESTION};
use super::hand_over::{ConnectionData, HandOver, Pending, ends_of, listens_on};
use super::listener::{Deferred, Listener};
use super::upstream::Upstream;
use super::{Change, Command, Config, ListenerEvent, Place, Stats};

/// Clients' connections in all, and of one address.
const MAX_CONNECTIONS: usize = 1024;
const MAX_CONNECTIONS_EACH: usize = 32;
/// Connections accepted before others have their turn.
const MAX_ACCEPTED: usize = 16;
/// Questions of one connection answered before others have their turn.
const MAX_ANSWERED: usize = 16;
/// Descriptors looked at between two looks at the clock.
const MAX_EVENTS: usize = 256;

/// Batches read from one socket in a turn, as a rule and under a flood.
const BATCHES: usize = 4;
const FLOOD_BATCHES: usize = 32;
/// Questions of one address answered in a turn under a flood.
const MAX_SHARE: u32 = 2 * BATCH as u32;
/// Questions beyond their address's share that wait for a turn without anybody else's; more are shed.
const MAX_DEFERRED: usize = 1 << 15;

/// What a readiness event is about; the number beside it never comes twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Wake,
    Listener,
    Connection,
    Upstream,
}

fn token(kind: Kind, number: u64) -> EventData {
    EventData::new_u64(number << 2 | kind as u64)
}

fn token_of(data: EventData) -> (Kind, u64) {
    let kind = match data.u64() & 3 {
        0 => Kind::Wake,
        1 => Kind::Listener,
        2 => Kind::Connection,
        _ => Kind::Upstream,
    };
    (kind, data.u64() >> 2)
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy)]
enum Client {
    Udp { listener: u64, to: SocketAddr },
    Tcp { connection: u64 },
}

/// What a question needs that has come in.
struct Core {
    names: Names,
    forwarder: Forwarder<Client>,
    actions: Vec<Action<Client>>,
    questions: u64,
    tcp: u64,
    local: u64,
    forwarded: u64,
    refused: u64,
    malformed: u64,
    unsent: u64,
    shed: u64,
    evicted: u64,
}

pub(super) struct Server {
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    config: Config,
    core: Core,
    listeners: BTreeMap<u64, Listener>,
    places: BTreeMap<Place, u64>,
    failures: BTreeMap<Place, ListenError>,
    connections: BTreeMap<u64, Connection>,
    /// At least one entry for each connection, at its deadline or before.
    timers: BTreeSet<(Instant, u64)>,
    upstreams: BTreeMap<u64, Upstream>,
    pending: Vec<Pending>,
    serving: bool,
    next: u64,
    inbox: Inbox,
    /// Questions of each address in this turn.
    shares: BTreeMap<IpAddr, u32>,
    /// Listeners that hold somebody back.
    flooded: BTreeSet<u64>,
    deferred: VecDeque<Deferred>,
    outbox: Outbox,
    scratch: Vec<u8>,
    answer: Vec<u8>,
    /// Given up for a moment when there are no descriptors left, to accept a connection and close it.
    spare: Option<OwnedFd>,
}

impl Server {
    pub(super) fn new(
        inherited: HandOver,
        config: Config,
        wake: Arc<OwnedFd>,
        commands: Receiver<Command>,
    ) -> io::Result<Self> {
        raise_file_limit();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, token(Kind::Wake, 0), EventFlags::IN)?;
        let serving =
            inherited.listeners.is_empty() && inherited.connections.is_empty() && inherited.pending.is_empty();
        let core = Core {
            names: Names::new(),
            forwarder: Forwarder::new(config.limits, fill_random),
            actions: Vec::new(),
            questions: 0,
            tcp: 0,
            local: 0,
            forwarded: 0,
            refused: 0,
            malformed: 0,
            unsent: 0,
            shed: 0,
            evicted: 0,
        };
        let mut server = Self {
            epoll,
            wake,
            commands,
            core,
            listeners: BTreeMap::new(),
            places: BTreeMap::new(),
            failures: BTreeMap::new(),
            connections: BTreeMap::new(),
            timers: BTreeSet::new(),
            upstreams: BTreeMap::new(),
            pending: inherited.pending,
            serving,
            next: 0,
            inbox: Inbox::new(MAX_QUESTION / 2),
            shares: BTreeMap::new(),
            flooded: BTreeSet::new(),
            deferred: VecDeque::new(),
            outbox: Outbox::new(),
            scratch: vec![0; wire::MAX_TCP],
            answer: Vec::new(),
            spare: eventfd(0, EventfdFlags::CLOEXEC).ok(),
            config,
        };
        for fd in inherited.listeners {
            server.adopt(fd)?;
        }
        let now = Instant::now();
        for (fd, data) in inherited.connections {
            if let Some((local, peer)) = ends_of(&fd) {
                rustix::io::ioctl_fionbio(&fd, true)?;
                let number = server.number();
                server.connections.insert(number, Connection::new(fd, local.ip(), peer, data, now));
            }
        }
        Ok(server)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn adopt(&mut self, fd: OwnedFd) -> io::Result<()> {
        let Some((address, transport)) = listens_on(&fd) else { return Ok(()) };
        let place = (address, transport);
        if self.places.contains_key(&place) {
            return Ok(());
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        let number = self.number();
        self.places.insert(place, number);
        self.listeners.insert(number, Listener::inherited(fd, place));
        Ok(())
    }

    /// Serves until told to stop.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        loop {
            let wait = |at: Instant| at.saturating_duration_since(Instant::now());
            let timeout =
                if self.deferred.is_empty() { self.deadline().map(wait) } else { Some(Duration::ZERO) }.map(timespec);
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "wait for questions");
                    return;
                }
            }
            let now = Instant::now();
            for event in events.drain(..) {
                match token_of(event.data) {
                    (Kind::Wake, _) => {
                        if !self.command(now) {
                            return;
                        }
                    }
                    (Kind::Listener, number) => self.listener_ready(number, now),
                    (Kind::Connection, number) => self.connection_ready(number, event.flags, now),
                    (Kind::Upstream, number) => self.upstream_ready(number, now),
                }
                self.act(now);
            }
            self.serve_deferred(now);
            self.timeouts(now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let connection = self.timers.first().map(|&(at, _)| at);
        let flooded = self.flooded.iter().filter_map(|number| self.listeners.get(number)?.deadline()).min();
        [connection, flooded, self.core.forwarder.deadline()].into_iter().flatten().min()
    }

    /// Carries out what was asked for; `false` when it was to stop.
    fn command(&mut self, now: Instant) -> bool {
        let mut count = [0; 8];
        // It is non-blocking; an empty one was read before.
        let _ = rustix::io::read(&*self.wake, &mut count);
        loop {
            match self.commands.try_recv() {
                Ok(Command::Update(changes)) => self.update(changes),
                Ok(Command::Barrier(reply)) => {
                    self.begin(now);
                    let failures = self.failures.values().map(ListenError::again).collect();
                    let _ = reply.send(failures);
                }
                Ok(Command::Stats(reply)) => {
                    let _ = reply.send(self.stats(now));
                }
                Ok(Command::HandOver(reply)) => {
                    let _ = reply.send(self.hand_over());
                    return false;
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.close_listeners();
                    return false;
                }
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn update(&mut self, changes: Vec<Change>) {
        let mut places_changed = !self.failures.is_empty();
        for change in changes {
            let result = match change {
                Change::PutNetwork(network) => {
                    places_changed = true;
                    self.core.names.put_network(network);
                    Ok(())
                }
                Change::RemoveNetwork(id) => {
                    places_changed |= self.core.names.remove_network(&id);
                    Ok(())
                }
                Change::PutEndpoint(endpoint) => self.core.names.put_endpoint(endpoint),
                Change::RemoveEndpoint(id) => {
                    self.core.names.remove_endpoint(&id);
                    Ok(())
                }
                Change::HostResolver(resolver) => {
                    self.core.names.set_host(&resolver);
                    self.core.forwarder.forget();
                    Ok(())
                }
            };
            if let Err(error) = result {
                tracing::warn!(%error, "change of names");
            }
        }
        if places_changed {
            self.sync_listeners();
        }
    }

    /// Listens where gateways are, and nowhere else.
    fn sync_listeners(&mut self) {
        let wanted: BTreeSet<Place> = self
            .core
            .names
            .gateways()
            .map(|(address, port)| SocketAddr::new(address, port.unwrap_or(self.config.port)))
            .flat_map(|address| [(address, Transport::Udp), (address, Transport::Tcp)])
            .collect();
        // What was inherited may be claimed later, until the first barrier.
        if self.serving {
            let gone: Vec<Place> = self.places.keys().filter(|place| !wanted.contains(place)).copied().collect();
            for place in gone {
                self.close_listener(place);
            }
        }
        self.failures.clear();
        for place in wanted {
            if self.places.contains_key(&place) {
                continue;
            }
            let (address, transport) = place;
            let opened = match transport {
                Transport::Udp => udp::listen_udp(address),
                _ => udp::listen_tcp(address),
            };
            match opened {
                Ok(fd) => {
                    let number = self.number();
                    if let Some(hook) = &self.config.on_listener {
                        hook(ListenerEvent::Opened { fd: fd.as_fd(), address, transport });
                    }
                    self.places.insert(place, number);
                    self.listeners.insert(number, Listener::new(fd, place));
                }
                Err(error) => {
                    self.failures.insert(place, error);
                }
            }
        }
        if self.serving {
            self.poll_listeners();
        }
    }

    fn poll_listeners(&mut self) {
        for (&number, listener) in self.listeners.iter_mut().filter(|(_, listener)| !listener.polled) {
            match epoll::add(&self.epoll, &listener.fd, token(Kind::Listener, number), EventFlags::IN) {
                Ok(()) => listener.polled = true,
                Err(error) => tracing::error!(%error, address = %listener.place.0, "poll a listening socket"),
            }
        }
    }

    fn close_listener(&mut self, place: Place) {
        let Some(listener) = self.places.remove(&place).and_then(|number| self.listeners.remove(&number)) else {
            return;
        };
        if let Some(hook) = &self.config.on_listener {
            hook(ListenerEvent::Closed { address: place.0, transport: place.1 });
        }
        // Where somebody holds a duplicate, closing would not end the polling (epoll(7)).
        if listener.polled {
            let _ = epoll::delete(&self.epoll, &listener.fd);
        }
    }

    fn close_listeners(&mut self) {
        let places: Vec<Place> = self.places.keys().copied().collect();
        for place in places {
            self.close_listener(place);
        }
    }

    /// Answers from now on, if that had to wait for the names.
    fn begin(&mut self, now: Instant) {
        let begins = !self.serving;
        self.serving = true;
        if begins || !self.failures.is_empty() {
            self.sync_listeners();
        }
        if !begins {
            return;
        }
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        for number in numbers {
            if let Some(connection) = self.connections.get_mut(&number) {
                connection.deadline = now + super::connection::IDLE;
                self.timers.insert((connection.deadline, number));
            }
            self.serve_connection(number, now);
        }
        for Pending { local, client, bytes } in std::mem::take(&mut self.pending) {
            let Some(&listener) = self.places.get(&(local, Transport::Udp)) else { continue };
            let to = Client::Udp { listener, to: client };
            self.core.answer(local.ip(), client.ip(), &bytes, None, to, now, &mut self.answer);
            let answer = std::mem::take(&mut self.answer);
            if !answer.is_empty() {
                self.deliver(to, &answer, now);
            }
            self.answer = answer;
        }
        self.act(now);
    }

    fn stats(&self, now: Instant) -> Stats {
        let core = &self.core;
        let (by_network, by_endpoint) = core.names.tallies();
        Stats {
            questions: core.questions,
            tcp: core.tcp,
            local: core.local,
            forwarded: core.forwarded,
            refused: core.refused,
            malformed: core.malformed,
            unsent: core.unsent,
            shed: core.shed,
            connections: self.connections.len(),
            evicted: core.evicted,
            listeners: self.listeners.len(),
            forwarder: core.forwarder.stats(),
            in_flight: core.forwarder.load(),
            upstreams: core.forwarder.upstreams(now),
            by_network,
            by_endpoint,
        }
    }

    fn hand_over(&mut self) -> HandOver {
        let mut pending = std::mem::take(&mut self.pending);
        let mut unanswered: BTreeMap<u64, Vec<Box<[u8]>>> = BTreeMap::new();
        for (client, bytes) in self.core.forwarder.drain() {
            match client {
                Client::Udp { listener, to } => {
                    if let Some(listener) = self.listeners.get(&listener) {
                        let local = listener.place.0;
                        pending.push(Pending { local, client: to, bytes: bytes.into() });
                    }
                }
                Client::Tcp { connection } => unanswered.entry(connection).or_default().push(bytes),
            }
        }
        for Deferred { listener, from, bytes } in std::mem::take(&mut self.deferred) {
            if let Some(listener) = self.listeners.get(&listener) {
                let local = listener.place.0;
                pending.push(Pending { local, client: from, bytes: bytes.into() });
            }
        }
        let connections = std::mem::take(&mut self.connections)
            .into_iter()
            .map(|(number, connection)| {
                connection.into_data(unanswered.get(&number).map(Vec::as_slice).unwrap_or_default())
            })
            .collect();
        let listeners = std::mem::take(&mut self.listeners).into_values().map(|listener| listener.fd).collect();
        self.places.clear();
        HandOver { listeners, connections, pending }
    }

    fn listener_ready(&mut self, number: u64, now: Instant) {
        match self.listeners.get(&number).map(|listener| listener.place.1) {
            Some(Transport::Udp) => self.read_datagrams(number, now),
            Some(_) => self.accept(number, now),
            None => {}
        }
    }

    /// Reads and answers a few batches, so that every socket has its turn.
    ///
    /// If more waits than a crowd of honest clients asks for, somebody floods us. Reading is much cheaper than
    /// answering: then much is read, and of one address only so much answered at once, so that the questions of
    /// others do not find the socket's buffer full; the rest has a turn of its own. Who asks the most is held back by the kernel.
    fn read_datagrams(&mut self, number: u64, now: Instant) {
        let Some(listener) = self.listeners.get_mut(&number) else { return };
        let (is_flood, is_crowded) = listener.is_flooded();
        self.shares.clear();
        for _ in 0..if is_flood { FLOOD_BATCHES } else { BATCHES } {
            let Ok(count) = self.inbox.receive(listener.fd.as_fd()) else { break };
            for index in 0..count {
                let Some((bytes, from)) = self.inbox.message(index) else {
                    self.core.questions += 1;
                    self.core.malformed += 1;
                    continue;
                };
                if is_flood {
                    let share = self.shares.entry(from.ip()).or_default();
                    *share += 1;
                    if *share > MAX_SHARE {
                        if self.deferred.len() < MAX_DEFERRED {
                            self.deferred.push_back(Deferred { listener: number, from, bytes: bytes.into() });
                        } else {
                            self.core.shed += 1;
                        }
                        continue;
                    }
                }
                let client = Client::Udp { listener: number, to: from };
                let out = self.outbox.message(from);
                self.core.answer(listener.place.0.ip(), from.ip(), bytes, None, client, now, out);
            }
            self.core.unsent += self.outbox.send(listener.fd.as_fd()) as u64;
            if count < BATCH {
                break;
            }
        }
        if is_flood && is_crowded {
            listener.flooded(&self.shares, MAX_SHARE, now);
            self.flooded.insert(number);
        }
    }

    /// Answers some of what exceeded its share, now that everybody else has had a turn.
    fn serve_deferred(&mut self, now: Instant) {
        for _ in 0..MAX_SHARE as usize / BATCH {
            let Some(number) = self.deferred.front().map(|deferred| deferred.listener) else { break };
            let Some(listener) = self.listeners.get(&number) else {
                self.deferred.pop_front();
                continue;
            };
            for _ in 0..BATCH {
                let Some(Deferred { from, bytes, .. }) = self.deferred.pop_front_if(|next| next.listener == number)
                else {
                    break;
                };
                let client = Client::Udp { listener: number, to: from };
                let out = self.outbox.message(from);
                self.core.answer(listener.place.0.ip(), from.ip(), &bytes, None, client, now, out);
            }
            self.core.unsent += self.outbox.send(listener.fd.as_fd()) as u64;
        }
        self.act(now);
        if self.deferred.is_empty() {
            self.deferred.shrink_to(BATCH);
        }
    }

    fn accept(&mut self, number: u64, now: Instant) {
        for _ in 0..MAX_ACCEPTED {
            let Some(listener) = self.listeners.get(&number) else { return };
            let fd = match accept_with(&listener.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(fd) => fd,
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(Errno::MFILE | Errno::NFILE) => {
                    // Left in the queue it would be reported again and again.
                    self.spare = None;
                    drop(accept_with(&listener.fd, SocketFlags::CLOEXEC));
                    self.spare = eventfd(0, EventfdFlags::CLOEXEC).ok();
                    self.core.evicted += 1;
                    return;
                }
                Err(_) => return,
            };
            let gateway = listener.place.0.ip();
            let Some((_, peer)) = ends_of(&fd) else { continue };
            // The one that has been idle longest gives way: it may have ended without our having noticed yet.
            let same = |other: &Connection| other.peer.ip() == peer.ip();
            let is_crowd = self.connections.values().filter(|other| same(other)).count() >= MAX_CONNECTIONS_EACH;
            if is_crowd || self.connections.len() >= MAX_CONNECTIONS {
                let idlest =
                    self.connections.iter().filter(|it| !is_crowd || same(it.1)).min_by_key(|it| it.1.deadline);
                if let Some((&idlest, _)) = idlest {
                    self.core.evicted += 1;
                    self.connections.remove(&idlest);
                }
            }
            let number = self.number();
            let connection = Connection::new(fd, gateway, peer, ConnectionData::default(), now);
            self.timers.insert((connection.deadline, number));
            self.connections.insert(number, connection);
            self.serve_connection(number, now);
        }
    }

    fn connection_ready(&mut self, number: u64, flags: EventFlags, now: Instant) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) && !flags.contains(EventFlags::IN) {
            self.connections.remove(&number);
            return;
        }
        if flags.contains(EventFlags::IN) && connection.read(&mut self.scratch[..2 * MAX_QUESTION]) == Fate::Goes {
            self.connections.remove(&number);
            return;
        }
        self.serve_connection(number, now);
    }

    /// Answers what was read, writes what can be written, and says what to wait for.
    fn serve_connection(&mut self, number: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let client = Client::Tcp { connection: number };
        let mut fate = Fate::Stays;
        let mut answered = 0;
        while fate == Fate::Stays {
            let question = if answered < MAX_ANSWERED { connection.next_question(now) } else { Ok(None) };
            match question {
                Ok(Some(question)) => {
                    self.core.tcp += 1;
                    answered += 1;
                    let (gateway, peer) = (connection.gateway, connection.peer.ip());
                    let limit = Some(wire::MAX_TCP);
                    let answer = &mut self.answer;
                    if self.core.answer(gateway, peer, &question, limit, client, now, answer) == Outcome::Waits {
                        connection.pending += 1;
                    } else if answer.is_empty() {
                        fate = Fate::Goes;
                    } else {
                        connection.push(answer);
                    }
                }
                Ok(None) => {
                    fate = connection.flush(now);
                    // Writing may have made room for what was read before.
                    if answered >= MAX_ANSWERED || !connection.has_question() {
                        break;
                    }
                }
                Err(()) => fate = Fate::Goes,
            }
        }
        let wanted = connection.wanted();
        if fate == Fate::Stays && connection.interest != Some(wanted) {
            let data = token(Kind::Connection, number);
            let result = match connection.interest {
                Some(_) => epoll::modify(&self.epoll, &connection.fd, data, wanted),
                None => epoll::add(&self.epoll, &connection.fd, data, wanted),
            };
            connection.interest = Some(wanted);
            if result.is_err() {
                fate = Fate::Goes;
            }
        }
        if fate == Fate::Goes {
            self.connections.remove(&number);
        }
    }

    fn timeouts(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if let Some(connection) = self.connections.get(&number) {
                if connection.deadline > now {
                    self.timers.insert((connection.deadline, number));
                } else {
                    self.core.evicted += 1;
                    self.connections.remove(&number);
                }
            }
        }
        self.flooded.retain(|number| {
            let Some(listener) = self.listeners.get_mut(number) else { return false };
            listener.relax(now);
            listener.deadline().is_some()
        });
        if self.core.forwarder.deadline().is_some_and(|at| at <= now) {
            self.core.forwarder.step(Event::Timeout, now, &mut self.core.actions);
            self.act(now);
        }
    }

    /// Does what the forwarder wants done, until it wants nothing more.
    fn act(&mut self, now: Instant) {
        while !self.core.actions.is_empty() {
            for action in std::mem::take(&mut self.core.actions) {
                match action {
                    Action::Ask { attempt, to, stream, message } => {
                        match Upstream::ask(&self.epoll, token(Kind::Upstream, attempt.0), to, stream, &message) {
                            Ok(upstream) => drop(self.upstreams.insert(attempt.0, upstream)),
                            Err(_) => self.core.forwarder.step(Event::Failed { attempt }, now, &mut self.core.actions),
                        }
                    }
                    Action::Close { attempt } => {
                        self.upstreams.remove(&attempt.0);
                    }
                    Action::Answer { client, message } => {
                        if let Client::Tcp { connection } = client
                            && let Some(connection) = self.connections.get_mut(&connection)
                        {
                            connection.pending = connection.pending.saturating_sub(1);
                        }
                        self.deliver(client, &message, now);
                    }
                }
            }
        }
    }

    fn deliver(&mut self, client: Client, message: &[u8], now: Instant) {
        match client {
            Client::Udp { listener, to } => {
                let Some(listener) = self.listeners.get(&listener) else { return };
                if sendto(&listener.fd, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &to).is_err() {
                    self.core.unsent += 1;
                }
            }
            Client::Tcp { connection: number } => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.push(message);
                    // There may be room for its next question now.
                    self.serve_connection(number, now);
                } else {
                    self.core.unsent += 1;
                }
            }
        }
    }

    fn upstream_ready(&mut self, number: u64, now: Instant) {
        let attempt = Attempt(number);
        let Some(upstream) = self.upstreams.get_mut(&number) else { return };
        let Core { forwarder, actions, .. } = &mut self.core;
        let reply = |bytes: &[u8]| forwarder.step(Event::Reply { attempt, bytes }, now, actions);
        if upstream.ready(&self.epoll, token(Kind::Upstream, number), &mut self.scratch, reply).is_err() {
            forwarder.step(Event::Failed { attempt }, now, actions);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The answer is written, or there is none.
    Done,
    /// The forwarder will answer.
    Waits,
}

impl Core {
    /// Answers a message into `out`, or leaves that empty. `limit` is `None` for UDP, where the client says.
    #[expect(clippy::too_many_arguments, reason = "all that is known about one datagram")]
    fn answer(
        &mut self,
        gateway: IpAddr,
        source: IpAddr,
        bytes: &[u8],
        limit: Option<usize>,
        client: Client,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.questions += 1;
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(rejected) => {
                self.malformed += 1;
                wire::reject(bytes, rejected, out);
                return Outcome::Done;
            }
        };
        let limit = limit.unwrap_or_else(|| query.udp_limit());
        match self.names.answer(gateway, source, &query, limit, out) {
            Decision::Answered(Local::Refused) => self.refused += 1,
            Decision::Answered(_) => self.local += 1,
            Decision::Forward(route) => {
                self.forwarded += 1;
                if !self.forwarder.cached(&route, &query, limit, now, out) {
                    out.clear();
                    let event = Event::Question { client, route: &route, query, limit };
                    self.forwarder.step(event, now, &mut self.actions);
                    return Outcome::Waits;
                }
            }
        }
        Outcome::Done
    }
}

fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(len) => filled += len,
            Err(Errno::INTR) => {}
            Err(error) => panic!("getrandom, which cannot fail on this kernel: {error}"),
        }
    }
}

/// Listening sockets alone may be more than the usual 1024.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // Then it has to do with what there is.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}
