//! The thread: one epoll(7) instance for listeners, connections and UDP clients.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use portolan_kernel::diag::Transport;
use portolan_kernel::udp::{self as sockets, ListenError};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{
    RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, getsockname, recv, recvfrom, send, sendto,
};

use super::hand_over::{FlowData, HandOverData};
use super::tcp::{Connection, Outcome, Pipe};
use super::udp::{Flow, IDLE};
use super::{Change, Command, HandOver, ListenerEvent, ListenerHook, Place, Rule, Seen};

/// Connections at once. Each may take six descriptors.
const CONNECTIONS: usize = 16_384;
/// UDP clients at once of one rule, so that one port cannot take the room of all.
const FLOWS: usize = 4096;
/// Datagrams of one socket before others have their turn.
const BATCH: usize = 64;
/// Pipes kept for the next connection.
const POOL: usize = 64;
/// Room for the largest datagram.
const DATAGRAM: usize = 65_536;
/// How often silent UDP clients are looked for, while there are any.
const SWEEP: Duration = Duration::from_secs(10);

/// What an event is about: the kind in the highest byte, the number of the entry in the rest.
mod token {
    pub(super) const WAKE: u64 = 0;
    pub(super) const LISTENER: u64 = 1 << 56;
    pub(super) const CLIENT: u64 = 2 << 56;
    pub(super) const SERVER: u64 = 3 << 56;
    pub(super) const FLOW: u64 = 4 << 56;
    pub(super) const KIND: u64 = 0xff << 56;
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    connections: u64,
    open: u64,
    failed: u64,
    bytes_in: u64,
    bytes_out: u64,
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    place: Place,
}

pub(super) struct Server {
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    queue: mpsc::Receiver<Command>,
    on_listener: Option<ListenerHook>,
    rules: BTreeMap<Place, (Rule, Counts)>,
    listeners: BTreeMap<u64, Listener>,
    at: BTreeMap<Place, u64>,
    connections: BTreeMap<u64, Connection>,
    flows: BTreeMap<u64, Flow>,
    by_client: BTreeMap<(SocketAddr, SocketAddr), u64>,
    ready: VecDeque<u64>,
    pool: Vec<Pipe>,
    next: u64,
    /// Listeners are not waited for: there is no room for more connections.
    is_full: bool,
    /// Nothing inherited is closed before the first barrier.
    is_settled: bool,
    swept: Instant,
    datagram: Vec<u8>,
}

impl Server {
    pub(super) fn new(
        inherited: HandOver,
        on_listener: Option<ListenerHook>,
        wake: Arc<OwnedFd>,
        queue: mpsc::Receiver<Command>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, EventData::new_u64(token::WAKE), EventFlags::IN)?;
        let mut server = Self {
            epoll,
            wake,
            queue,
            on_listener,
            rules: BTreeMap::new(),
            listeners: BTreeMap::new(),
            at: BTreeMap::new(),
            connections: BTreeMap::new(),
            flows: BTreeMap::new(),
            by_client: BTreeMap::new(),
            ready: VecDeque::new(),
            pool: Vec::new(),
            next: 1,
            is_full: false,
            is_settled: false,
            swept: Instant::now(),
            datagram: vec![0; DATAGRAM],
        };
        server.inherit(inherited)?;
        Ok(server)
    }

    fn inherit(&mut self, inherited: HandOver) -> io::Result<()> {
        let (fds, data) = inherited.into_parts();
        let mut fds = fds.into_iter();
        for socket in fds.by_ref().take(data.listeners) {
            if let Some(place) = place_of(&socket) {
                self.listen_with(place, socket)?;
            }
        }
        for data in data.connections {
            let Some(connection) = Connection::from_parts(&mut fds, data) else { return Ok(()) };
            self.add_connection(connection)?;
        }
        for (data, socket) in data.flows.into_iter().zip(fds) {
            let FlowData { listen, client, target } = data;
            self.add_flow(Flow { listen, client, target, server: socket, used: Instant::now() })?;
        }
        Ok(())
    }

    pub(super) fn run(mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the proxy cannot wait");
                    return;
                }
            }
            for event in &events {
                let token = event.data.u64();
                let number = token & !token::KIND;
                match token & token::KIND {
                    token::LISTENER => self.come_in(number),
                    token::CLIENT | token::SERVER => self.serve(number),
                    token::FLOW => self.flow_back(number),
                    _ => {
                        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
                        if !self.obey() {
                            return;
                        }
                    }
                }
            }
            for _ in 0..self.ready.len() {
                if let Some(number) = self.ready.pop_front() {
                    self.serve(number);
                }
            }
            self.sweep();
        }
    }

    /// Not at all if somebody has more to do; until the next sweep if there are UDP clients; else for good.
    fn timeout(&self) -> Option<rustix::event::Timespec> {
        let wait = if !self.ready.is_empty() {
            Duration::ZERO
        } else if !self.flows.is_empty() {
            SWEEP
        } else {
            return None;
        };
        wait.try_into().ok()
    }

    /// Does what was asked; whether to go on.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.queue.try_recv() {
            match command {
                Command::Update(changes) => changes.into_iter().for_each(|change| self.change(change)),
                Command::Barrier(reply) => {
                    let _ = reply.send(self.settle());
                }
                Command::Stats(reply) => {
                    let _ = reply.send(self.seen());
                }
                Command::HandOver(reply) => {
                    let _ = reply.send(self.hand_over());
                    return false;
                }
                Command::Stop => {
                    for (place, _) in std::mem::take(&mut self.at) {
                        self.tell(ListenerEvent::Closed(place));
                    }
                    return false;
                }
            }
        }
        true
    }

    fn tell(&self, event: ListenerEvent<'_>) {
        if let Some(hook) = &self.on_listener {
            hook(event);
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Put(rule) => {
                let place = rule.place;
                let before = self.rules.remove(&place);
                let counts = before.as_ref().filter(|(before, _)| *before == rule).map_or(Counts::default(), |b| b.1);
                if before.is_some_and(|(before, _)| before.target != rule.target) {
                    self.end_all(place);
                }
                self.rules.insert(place, (rule, counts));
            }
            Change::Remove(place) => {
                self.rules.remove(&place);
                self.end_all(place);
                self.stop_listening(place);
            }
        }
    }

    /// Listens wherever a rule says so, and, from the first time on, nowhere else.
    fn settle(&mut self) -> Vec<ListenError> {
        let was_unsettled = !self.is_settled;
        if was_unsettled {
            self.is_settled = true;
            let stray: Vec<Place> = self.at.keys().filter(|place| !self.rules.contains_key(place)).copied().collect();
            stray.into_iter().for_each(|place| self.stop_listening(place));
            let is_stray = |place: Place, target| self.rules.get(&place).is_none_or(|(rule, _)| rule.target != target);
            let connections: Vec<u64> =
                self.connections.iter().filter(|(_, c)| is_stray(c.place, c.target)).map(|(n, _)| *n).collect();
            let udp = |listen| Place { transport: Transport::Udp, listen };
            let flows: Vec<u64> = self
                .flows
                .iter()
                .filter(|(_, flow)| is_stray(udp(flow.listen), flow.target))
                .map(|(n, _)| *n)
                .collect();
            connections.into_iter().for_each(|number| self.end(number, true));
            flows.into_iter().for_each(|number| self.end_flow(number));
        }
        if was_unsettled {
            self.each_listener(EventFlags::IN, |_| true);
        }
        let missing: Vec<Place> = self.rules.keys().filter(|place| !self.at.contains_key(place)).copied().collect();
        missing.into_iter().filter_map(|place| self.listen(place).err()).collect()
    }

    fn listen(&mut self, place: Place) -> Result<(), ListenError> {
        let socket = match place.transport {
            Transport::Udp => sockets::listen_udp(place.listen)?,
            _ => sockets::listen_tcp(place.listen)?,
        };
        self.tell(ListenerEvent::Opened(place, socket.as_fd()));
        self.listen_with(place, socket).map_err(|source| ListenError {
            address: place.listen,
            transport: place.transport,
            holder: None,
            source,
        })
    }

    fn listen_with(&mut self, place: Place, socket: OwnedFd) -> io::Result<()> {
        let number = self.number();
        // By level, so that what is left of a backlog is told again. What was inherited waits until it is known whose
        // it is.
        let flags = if self.is_settled { EventFlags::IN } else { EventFlags::empty() };
        self.wait_for(socket.as_fd(), token::LISTENER | number, flags)?;
        self.at.insert(place, number);
        self.listeners.insert(number, Listener { socket, place });
        Ok(())
    }

    fn stop_listening(&mut self, place: Place) {
        if let Some(number) = self.at.remove(&place) {
            self.tell(ListenerEvent::Closed(place));
            self.listeners.remove(&number);
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn wait_for(&self, fd: BorrowedFd<'_>, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?)
    }

    fn come_in(&mut self, number: u64) {
        let Some(Listener { place, .. }) = self.listeners.get(&number) else { return };
        let place = *place;
        for _ in 0..BATCH {
            let goes_on = match place.transport {
                Transport::Udp => self.take_datagram(number, place),
                _ => self.take_connection(number, place),
            };
            if !goes_on {
                break;
            }
        }
    }

    /// Accepts a connection; whether there may be another one.
    fn take_connection(&mut self, number: u64, place: Place) -> bool {
        if self.connections.len() >= CONNECTIONS {
            self.wait_for_room();
            return false;
        }
        let Some(listener) = self.listeners.get(&number) else { return false };
        let client = match accept_with(&listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => client,
            Err(Errno::INTR | Errno::CONNABORTED) => return true,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                self.wait_for_room();
                return false;
            }
            Err(_) => return false,
        };
        let Some((rule, counts)) = self.rules.get_mut(&place) else { return true };
        counts.connections += 1;
        let begun =
            Connection::begin(place, rule.target, client).and_then(|connection| self.add_connection(connection));
        if begun.is_err()
            && let Some((_, counts)) = self.rules.get_mut(&place)
        {
            counts.failed += 1;
        }
        true
    }

    fn add_connection(&mut self, connection: Connection) -> io::Result<()> {
        let number = self.number();
        let both = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        self.wait_for(connection.client.as_fd(), token::CLIENT | number, both)?;
        self.wait_for(connection.server.as_fd(), token::SERVER | number, both)?;
        if let Some((_, counts)) = self.rules.get_mut(&connection.place) {
            counts.open += 1;
        }
        self.connections.insert(number, connection);
        // What happened before somebody waited is not told.
        self.ready.push_back(number);
        Ok(())
    }

    fn serve(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let outcome = connection.serve(&mut self.pool);
        self.pool.truncate(POOL);
        match outcome {
            Outcome::Waits => {}
            Outcome::Goes => self.ready.push_back(number),
            Outcome::Done | Outcome::Broken => self.end(number, false),
            Outcome::Refused => {
                let place = connection.place;
                if let Some((_, counts)) = self.rules.get_mut(&place) {
                    counts.failed += 1;
                }
                self.end(number, false);
            }
        }
    }

    fn end(&mut self, number: u64, is_broken_off: bool) {
        let Some(connection) = self.connections.remove(&number) else { return };
        if is_broken_off {
            connection.break_off();
        }
        if let Some((_, counts)) = self.rules.get_mut(&connection.place) {
            counts.open = counts.open.saturating_sub(1);
            counts.bytes_in += connection.inward.passed;
            counts.bytes_out += connection.outward.passed;
        }
        drop(connection);
        if self.is_full {
            self.is_full = false;
            self.each_tcp_listener(EventFlags::IN);
        }
    }

    /// Leaves new connections in the backlog until one ends.
    fn wait_for_room(&mut self) {
        if !self.is_full {
            tracing::warn!(open = self.connections.len(), "no room for more proxied connections");
            self.is_full = true;
            self.each_tcp_listener(EventFlags::empty());
        }
    }

    fn each_tcp_listener(&self, flags: EventFlags) {
        self.each_listener(flags, |place| place.transport == Transport::Tcp);
    }

    fn each_listener(&self, flags: EventFlags, which: impl Fn(&Place) -> bool) {
        for (number, listener) in &self.listeners {
            if which(&listener.place) {
                let data = EventData::new_u64(token::LISTENER | number);
                let _ = epoll::modify(&self.epoll, &listener.socket, data, flags);
            }
        }
    }

    fn end_all(&mut self, place: Place) {
        let connections: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.place == place).map(|(number, _)| *number).collect();
        connections.into_iter().for_each(|number| self.end(number, true));
        if place.transport == Transport::Udp {
            let flows: Vec<u64> =
                self.flows.iter().filter(|(_, f)| f.listen == place.listen).map(|(number, _)| *number).collect();
            flows.into_iter().for_each(|number| self.end_flow(number));
        }
    }

    /// Passes a datagram on to the container; whether there may be another one.
    fn take_datagram(&mut self, number: u64, place: Place) -> bool {
        let Some(listener) = self.listeners.get(&number) else { return false };
        let (length, client) = match recvfrom(&listener.socket, &mut self.datagram[..], RecvFlags::empty()) {
            Ok((length, _, Some(client))) => (length, client),
            Err(Errno::INTR) => return true,
            _ => return false,
        };
        let Ok(client) = SocketAddr::try_from(client) else { return true };
        let Some((rule, counts)) = self.rules.get_mut(&place) else { return true };
        let now = Instant::now();
        let key = (place.listen, client);
        let flow = match self.by_client.get(&key) {
            Some(flow) => *flow,
            None if counts.open >= FLOWS as u64 => return true,
            None => {
                counts.connections += 1;
                let begun = Flow::begin(place.listen, client, rule.target, now).and_then(|flow| self.add_flow(flow));
                match begun {
                    Ok(number) => number,
                    Err(_) => return true,
                }
            }
        };
        let Some(flow) = self.flows.get_mut(&flow) else { return true };
        flow.used = now;
        // A refusal is of the datagram before, and the client's own resolver or protocol copes with loss.
        if send(&flow.server, &self.datagram[..length], SendFlags::empty()).is_ok()
            && let Some((_, counts)) = self.rules.get_mut(&place)
        {
            counts.bytes_in += length as u64;
        }
        true
    }

    fn add_flow(&mut self, flow: Flow) -> io::Result<u64> {
        let number = self.number();
        self.wait_for(flow.server.as_fd(), token::FLOW | number, EventFlags::IN)?;
        if self.flows.is_empty() {
            self.swept = Instant::now();
        }
        if let Some((_, counts)) = self.rules.get_mut(&Place { transport: Transport::Udp, listen: flow.listen }) {
            counts.open += 1;
        }
        self.by_client.insert((flow.listen, flow.client), number);
        self.flows.insert(number, flow);
        Ok(number)
    }

    /// Passes what the container says on to the client.
    fn flow_back(&mut self, number: u64) {
        for _ in 0..BATCH {
            let Some(flow) = self.flows.get_mut(&number) else { return };
            let place = Place { transport: Transport::Udp, listen: flow.listen };
            let length = match recv(&flow.server, &mut self.datagram[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                // Nobody listens in the container; the next datagram may find somebody.
                Err(Errno::CONNREFUSED | Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                Err(_) => return self.end_flow(number),
            };
            flow.used = Instant::now();
            let Some(listener) = self.at.get(&place).and_then(|number| self.listeners.get(number)) else { return };
            let sent = sendto(&listener.socket, &self.datagram[..length], SendFlags::empty(), &flow.client);
            if sent.is_ok()
                && let Some((_, counts)) = self.rules.get_mut(&place)
            {
                counts.bytes_out += length as u64;
            }
        }
    }

    fn end_flow(&mut self, number: u64) {
        let Some(flow) = self.flows.remove(&number) else { return };
        self.by_client.remove(&(flow.listen, flow.client));
        if let Some((_, counts)) = self.rules.get_mut(&Place { transport: Transport::Udp, listen: flow.listen }) {
            counts.open = counts.open.saturating_sub(1);
        }
    }

    fn sweep(&mut self) {
        if self.flows.is_empty() || self.swept.elapsed() < SWEEP {
            return;
        }
        self.swept = Instant::now();
        let silent: Vec<u64> =
            self.flows.iter().filter(|(_, flow)| flow.used.elapsed() >= IDLE).map(|(number, _)| *number).collect();
        silent.into_iter().for_each(|number| self.end_flow(number));
    }

    fn seen(&self) -> Vec<Seen> {
        let mut passing: BTreeMap<Place, (u64, u64)> = BTreeMap::new();
        for connection in self.connections.values() {
            let (inward, outward) = passing.entry(connection.place).or_default();
            *inward += connection.inward.passed;
            *outward += connection.outward.passed;
        }
        let seen = |(place, (rule, counts)): (&Place, &(Rule, Counts))| {
            let (inward, outward) = passing.get(place).copied().unwrap_or_default();
            Seen {
                rule: rule.clone(),
                connections: counts.connections,
                open: counts.open,
                failed: counts.failed,
                bytes_in: counts.bytes_in + inward,
                bytes_out: counts.bytes_out + outward,
            }
        };
        self.rules.iter().map(seen).collect()
    }

    fn hand_over(&mut self) -> HandOver {
        let mut fds: Vec<OwnedFd> =
            std::mem::take(&mut self.listeners).into_values().map(|listener| listener.socket).collect();
        let mut data = HandOverData { listeners: fds.len(), ..HandOverData::default() };
        for connection in std::mem::take(&mut self.connections).into_values() {
            let (more, of) = connection.into_parts();
            fds.extend(more);
            data.connections.push(of);
        }
        for flow in std::mem::take(&mut self.flows).into_values() {
            let Flow { listen, client, target, server, .. } = flow;
            fds.push(server);
            data.flows.push(FlowData { listen, client, target });
        }
        HandOver::from_parts(fds, data)
    }
}

/// Where a socket listens.
fn place_of(socket: &OwnedFd) -> Option<Place> {
    let transport = match socket_type(socket).ok()? {
        SocketType::DGRAM => Transport::Udp,
        SocketType::STREAM if socket_acceptconn(socket).ok()? => Transport::Tcp,
        _ => return None,
    };
    Some(Place { transport, listen: getsockname(socket).ok()?.try_into().ok()? })
}
