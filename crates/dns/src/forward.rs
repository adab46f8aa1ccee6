use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_model::Id;

use crate::Route;
use crate::cache::Cache;
use crate::table::Table;
use crate::wire::{self, MAX_NAME, Query, Response, Security, Unusable, rcode};

/// How long the first round waits for each upstream; every further round twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(400);
/// When a question is given up: before the 5 s after which resolvers ask again (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_millis(4500);
/// How long an upstream that did not answer is asked last; doubled by every further failure.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(60);
/// For how long what was learnt about an upstream's ways is believed.
const HABIT: Duration = Duration::from_secs(600);
/// How often one question is sent.
const MAX_TRIES: usize = 8;
/// After so many answers that are none of its own, a question is asked over TCP: somebody is guessing.
const MAX_STRANGE: u8 = 8;
/// How long a failure is kept (RFC 2308 §7.1 allows five minutes).
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// The longest that a negative answer is kept (RFC 2308 §5 finds one to three hours sensible).
const MAX_NEGATIVE_TTL: u32 = 3 * 3600;
/// The longest that an answer is kept, whatever it says.
const MAX_TTL: u32 = 86400;
/// More upstreams than anybody has; then what is known about them is forgotten.
const MAX_HEALTH: usize = 4096;

/// How much is taken on at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Different questions at the upstreams. Each takes one socket, and a few when upstreams do not answer.
    pub in_flight: usize,
    /// Clients that wait for an answer.
    pub waiting: usize,
    /// Of these, how many for one container, so that no one takes all places.
    pub waiting_per_owner: usize,
    /// Bytes of the cache.
    pub cache_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_flight: 2048, waiting: 8192, waiting_per_owner: 256, cache_bytes: 4 << 20 }
    }
}

/// One question at one upstream: the name of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Event<'a, C> {
    /// A client asks what is neither local nor cached.
    Question {
        /// Where the answer goes.
        client: C,
        /// Whom to ask.
        route: &'a Route,
        /// The question.
        query: Query<'a>,
        /// How long the answer may be, in bytes.
        limit: usize,
    },
    /// A message came on the socket of an attempt, from the upstream it is connected to.
    Reply {
        /// The attempt.
        attempt: Attempt,
        /// The message, over TCP without its length.
        bytes: &'a [u8],
    },
    /// The socket of an attempt could not be opened, or is of no more use.
    Failed {
        /// The attempt.
        attempt: Attempt,
    },
    /// [`Forwarder::deadline`] has come.
    Timeout,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<C> {
    /// Send `message` to `to` from a new socket, connected and with a port of its own drawn at random.
    Ask {
        /// The attempt, for events of this socket.
        attempt: Attempt,
        /// The upstream.
        to: SocketAddr,
        /// Whether over TCP; the length in front of the message is to be added.
        stream: bool,
        /// The message.
        message: Vec<u8>,
    },
    /// Close the socket of an attempt.
    Close {
        /// The attempt.
        attempt: Attempt,
    },
    /// Answer a client.
    Answer {
        /// The client.
        client: C,
        /// The answer.
        message: Vec<u8>,
    },
}

/// What is known about an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamStats {
    /// Its address.
    pub address: SocketAddr,
    /// Questions sent.
    pub asked: u64,
    /// Answers that counted.
    pub answered: u64,
    /// Times it did not answer in time, or at all.
    pub failed: u64,
    /// Whether it is asked last for the time being.
    pub suspect: bool,
    /// How long an answer takes, as a moving average.
    pub latency: Duration,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ForwarderStats {
    /// Questions answered from the cache.
    pub cached: u64,
    /// Questions that joined one in flight.
    pub merged: u64,
    /// Questions sent to upstreams, each try counted.
    pub sent: u64,
    /// Answered with SERVFAIL, for any reason.
    pub failed: u64,
    /// Of these, turned away because a limit was reached.
    pub turned_away: u64,
    /// Of these, questions of ours that came back to us.
    pub loops: u64,
    /// Messages of upstreams that did not belong to a question.
    pub strange: u64,
}

/// Questions for others: a state machine.
///
/// Every question has a number of its own at random and mixed upper and lower case, which the answer has to repeat,
/// and by contract of [`Action::Ask`] a port of its own (RFC 5452 §9). Equal questions to the same upstreams are one.
/// A server that does not keep case is believed over TCP only, where nobody else can answer.
///
/// Upstreams are asked in their order. One that does not answer is asked last for a while, and then probed beside a
/// good one, so that after its first failure it costs no client any time.
///
/// `C` names a client.
pub struct Forwarder<C> {
    limits: Limits,
    entropy: Entropy,
    flights: BTreeMap<u64, Flight<C>>,
    next: u64,
    by_key: Table<Box<[u8]>, u64>,
    by_attempt: Table<Attempt, u64>,
    /// Names in the very spelling they are being asked in: who asks for one of these got it from us.
    spellings: Table<Box<[u8]>, usize>,
    timers: BTreeSet<(Instant, u64)>,
    owners: Table<Id, usize>,
    waiting: usize,
    health: Table<SocketAddr, Health>,
    cache: Cache,
    key: Vec<u8>,
    stats: ForwarderStats,
}

impl<C> fmt::Debug for Forwarder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("flights", &self.flights.len()).field("stats", &self.stats).finish()
    }
}

#[derive(Debug)]
struct Flight<C> {
    key: Box<[u8]>,
    /// In lower case.
    name: Box<[u8]>,
    kind: u16,
    security: Security,
    upstreams: Arc<[SocketAddr]>,
    /// Those to be asked in this round, as places in `upstreams`.
    queue: VecDeque<usize>,
    /// Those that cannot help with this question.
    useless: Vec<usize>,
    round: u32,
    tries: Vec<Try>,
    sent: usize,
    /// An error that an upstream answered with, in case nobody knows better.
    error: Option<Box<[u8]>>,
    timer: Instant,
    give_up: Instant,
    waiters: Vec<Waiter<C>>,
}

#[derive(Debug)]
struct Try {
    attempt: Attempt,
    upstream: usize,
    id: u16,
    /// In the spelling sent.
    name: Box<[u8]>,
    stream: bool,
    edns: bool,
    since: Instant,
    strange: u8,
}

#[derive(Debug)]
struct Waiter<C> {
    client: C,
    owner: Id,
    /// The question as it came.
    bytes: Box<[u8]>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// Asked last until then.
    retry: Option<Instant>,
    folds_case: Option<Instant>,
    no_edns: Option<Instant>,
    asked: u64,
    answered: u64,
    failed: u64,
    latency: Duration,
}

impl Health {
    fn fail(&mut self, now: Instant) {
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(8)).min(LAST_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.failed += 1;
        self.retry = Some(now + backoff);
    }

    fn succeed(&mut self, took: Duration) {
        self.failures = 0;
        self.retry = None;
        self.answered += 1;
        self.latency = if self.answered == 1 { took } else { (self.latency * 7 + took) / 8 };
    }
}

type Source = Box<dyn FnMut(&mut [u8]) + Send>;

/// Random bytes in advance, so that a source that is a system call is asked seldom.
struct Entropy {
    source: Source,
    bytes: [u8; 512],
    used: usize,
}

impl Entropy {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.used + N > self.bytes.len() {
            (self.source)(&mut self.bytes);
            self.used = 0;
        }
        let taken = std::array::from_fn(|i| self.bytes[self.used + i]);
        // What was used is not kept.
        self.bytes[self.used..self.used + N].fill(0);
        self.used += N;
        taken
    }
}

impl<C: Copy> Forwarder<C> {
    /// A forwarder with nothing to do. `entropy` fills a buffer with bytes that nobody can guess.
    pub fn new(limits: Limits, entropy: impl FnMut(&mut [u8]) + Send + 'static) -> Self {
        Self {
            entropy: Entropy { source: Box::new(entropy), bytes: [0; 512], used: 512 },
            flights: BTreeMap::new(),
            next: 0,
            by_key: Table::default(),
            by_attempt: Table::default(),
            spellings: Table::default(),
            timers: BTreeSet::new(),
            owners: Table::default(),
            waiting: 0,
            health: Table::default(),
            cache: Cache::new(limits.cache_bytes),
            limits,
            key: Vec::new(),
            stats: ForwarderStats::default(),
        }
    }

    /// Answers `query` from the cache into `out`, if it can; else `out` stays as it is.
    pub fn cached(&mut self, route: &Route, query: &Query<'_>, limit: usize, now: Instant, out: &mut Vec<u8>) -> bool {
        let mut buffer = [0; MAX_NAME];
        let name = wire::lower(query.name(), &mut buffer);
        write_key(&mut self.key, name, query.kind(), query.security(), &route.upstreams);
        let Some((kept, age)) = self.cache.get(&self.key, now) else { return false };
        self.stats.cached += 1;
        wire::write_kept(query, kept, age, MAX_TTL, limit, out);
        true
    }

    /// Takes in what happened, and appends what is to be done.
    ///
    /// Of a [`Event::Question`] the cache is not asked again: that is [`Forwarder::cached`]. Questions beyond a limit
    /// are answered with SERVFAIL at once.
    pub fn step(&mut self, event: Event<'_, C>, now: Instant, actions: &mut Vec<Action<C>>) {
        match event {
            Event::Question { client, route, query, limit } => {
                self.question(client, route, &query, limit, now, actions);
            }
            Event::Reply { attempt, bytes } => self.reply(attempt, bytes, now, actions),
            Event::Failed { attempt } => {
                if let Some((number, index)) = self.locate(attempt) {
                    let upstream = self.flights[&number].tries[index].upstream;
                    let address = self.flights[&number].upstreams[upstream];
                    self.health.entry(address).or_default().fail(now);
                    self.give_up_try(number, index, now, actions);
                }
            }
            Event::Timeout => self.timeout(now, actions),
        }
    }

    /// When [`Event::Timeout`] is due next; `None` while nothing is in flight.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Ends all questions without answering them: their clients, and what they asked.
    pub fn drain(&mut self) -> Vec<(C, Box<[u8]>)> {
        let flights = std::mem::take(&mut self.flights);
        self.by_key.clear();
        self.by_attempt.clear();
        self.spellings.clear();
        self.timers.clear();
        self.owners.clear();
        self.waiting = 0;
        let waiters = flights.into_values().flat_map(|flight| flight.waiters);
        waiters.map(|waiter| (waiter.client, waiter.bytes)).collect()
    }

    /// Forgets what is cached, and which upstreams did not answer, as after a change of the host's network.
    pub fn forget(&mut self) {
        self.cache.clear();
        self.health.clear();
    }

    /// Counters.
    pub fn stats(&self) -> ForwarderStats {
        self.stats
    }

    /// What is known about each upstream, by address.
    pub fn upstreams(&self, now: Instant) -> Vec<UpstreamStats> {
        let mut all: Vec<_> = self
            .health
            .iter()
            .map(|(&address, health)| UpstreamStats {
                address,
                asked: health.asked,
                answered: health.answered,
                failed: health.failed,
                suspect: health.retry.is_some_and(|retry| now < retry),
                latency: health.latency,
            })
            .collect();
        all.sort_unstable_by_key(|stats| stats.address);
        all
    }

    /// Questions in flight, and clients that wait for them.
    pub fn load(&self) -> (usize, usize) {
        (self.flights.len(), self.waiting)
    }

    fn question(
        &mut self,
        client: C,
        route: &Route,
        query: &Query<'_>,
        limit: usize,
        now: Instant,
        actions: &mut Vec<Action<C>>,
    ) {
        let mut fail = |stats: &mut ForwarderStats| {
            stats.failed += 1;
            let mut message = Vec::new();
            wire::write_code(query, rcode::SERVFAIL, &mut message);
            actions.push(Action::Answer { client, message });
        };
        // By chance a spelling may be the plain one.
        if query.name().iter().any(u8::is_ascii_uppercase) && self.spellings.contains_key(query.name()) {
            self.stats.loops += 1;
            return fail(&mut self.stats);
        }
        if route.upstreams.is_empty() {
            return fail(&mut self.stats);
        }
        let mut buffer = [0; MAX_NAME];
        let name = wire::lower(query.name(), &mut buffer);
        write_key(&mut self.key, name, query.kind(), query.security(), &route.upstreams);
        let known = self.by_key.get(&*self.key).copied();
        let mine = self.owners.get(&route.owner).copied().unwrap_or_default();
        if mine >= self.limits.waiting_per_owner
            || self.waiting >= self.limits.waiting
            || (known.is_none() && self.flights.len() >= self.limits.in_flight)
        {
            self.stats.turned_away += 1;
            return fail(&mut self.stats);
        }
        *self.owners.entry(route.owner).or_default() += 1;
        self.waiting += 1;
        let waiter = Waiter { client, owner: route.owner, bytes: query.bytes().into(), limit };
        if let Some(number) = known
            && let Some(flight) = self.flights.get_mut(&number)
        {
            self.stats.merged += 1;
            flight.waiters.push(waiter);
            return;
        }
        let number = self.take_number();
        let key: Box<[u8]> = self.key.as_slice().into();
        self.by_key.insert(key.clone(), number);
        self.flights.insert(
            number,
            Flight {
                key,
                name: name.into(),
                kind: query.kind(),
                security: query.security(),
                upstreams: route.upstreams.clone(),
                queue: VecDeque::new(),
                useless: Vec::new(),
                round: 0,
                tries: Vec::new(),
                sent: 0,
                error: None,
                timer: now,
                give_up: now + PATIENCE,
                waiters: vec![waiter],
            },
        );
        self.fill_queue(number, now);
        let probes = self.probes(number, now);
        self.ask_next(number, now, actions);
        for upstream in probes {
            self.ask(number, upstream, None, now, actions);
        }
    }

    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Puts the upstreams that may help into the order of this round: those that answer, then those that did not,
    /// the longest ago first.
    fn fill_queue(&mut self, number: u64, now: Instant) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let mut order: Vec<usize> = (0..flight.upstreams.len()).filter(|i| !flight.useless.contains(i)).collect();
        order.sort_by_key(|&i| self.health.get(&flight.upstreams[i]).and_then(|health| health.retry).unwrap_or(now));
        // A time in the past would come before those that answer.
        order.sort_by_key(|&i| self.health.get(&flight.upstreams[i]).is_some_and(|health| health.retry.is_some()));
        flight.queue = order.into();
    }

    /// Those that did not answer and may be tried again, if there is one that does.
    fn probes(&mut self, number: u64, now: Instant) -> Vec<usize> {
        let Some(flight) = self.flights.get_mut(&number) else { return Vec::new() };
        let retry = |i: usize| self.health.get(&flight.upstreams[i]).and_then(|health| health.retry);
        if flight.queue.front().is_none_or(|&first| retry(first).is_some()) {
            return Vec::new();
        }
        let due: Vec<usize> =
            flight.queue.iter().copied().filter(|&i| retry(i).is_some_and(|at| at <= now)).take(1).collect();
        flight.queue.retain(|i| !due.contains(i));
        for &i in &due {
            // One probe at a time is enough.
            if let Some(health) = self.health.get_mut(&flight.upstreams[i]) {
                health.retry = Some(now + FIRST_BACKOFF.saturating_mul(1 << health.failures.min(8)).min(LAST_BACKOFF));
            }
        }
        due
    }

    /// Asks the next upstream, or begins another round, or waits for the end; and sets the timer.
    fn ask_next(&mut self, number: u64, now: Instant, actions: &mut Vec<Action<C>>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        if flight.queue.is_empty() {
            flight.round += 1;
            self.fill_queue(number, now);
        }
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let next = if flight.sent < MAX_TRIES { flight.queue.pop_front() } else { None };
        if next.is_none() && flight.tries.is_empty() {
            return self.finish_failed(number, now, actions);
        }
        let wait = if next.is_some() { FIRST_WAIT * (1 << flight.round.min(6)) } else { PATIENCE };
        let timer = (now + wait).min(flight.give_up);
        self.timers.remove(&(flight.timer, number));
        flight.timer = timer;
        self.timers.insert((timer, number));
        if let Some(upstream) = next {
            self.ask(number, upstream, None, now, actions);
        }
    }

    /// Asks one upstream; `instead` says how when not in the usual way: over TCP, with EDNS.
    fn ask(
        &mut self,
        number: u64,
        upstream: usize,
        instead: Option<(bool, bool)>,
        now: Instant,
        actions: &mut Vec<Action<C>>,
    ) {
        let attempt = Attempt(self.take_number());
        let id = u16::from_be_bytes(self.entropy.take());
        let mut bits: [u8; 32] = self.entropy.take();
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let to = flight.upstreams[upstream];
        if self.health.len() >= MAX_HEALTH {
            self.health.clear();
        }
        let health = self.health.entry(to).or_default();
        health.asked += 1;
        self.stats.sent += 1;
        let is_habit = |until: Option<Instant>| until.is_some_and(|until| now < until);
        let (stream, edns) = instead.unwrap_or((is_habit(health.folds_case), !is_habit(health.no_edns)));
        let mut name = flight.name.clone();
        for (place, byte) in name.iter_mut().enumerate().filter(|(_, byte)| byte.is_ascii_lowercase()) {
            let bit = &mut bits[place / 8 % 32];
            *byte ^= (*bit & 1) << 5;
            *bit = bit.rotate_right(1);
        }
        let mut message = Vec::new();
        wire::write_query(&mut message, id, &name, flight.kind, flight.security, edns);
        *self.spellings.entry(name.clone()).or_default() += 1;
        flight.sent += 1;
        flight.tries.push(Try { attempt, upstream, id, name, stream, edns, since: now, strange: 0 });
        self.by_attempt.insert(attempt, number);
        actions.push(Action::Ask { attempt, to, stream, message });
    }

    fn locate(&self, attempt: Attempt) -> Option<(u64, usize)> {
        let &number = self.by_attempt.get(&attempt)?;
        let index = self.flights.get(&number)?.tries.iter().position(|it| it.attempt == attempt)?;
        Some((number, index))
    }

    /// Takes a try out and closes its socket.
    fn close(&mut self, number: u64, index: usize, actions: &mut Vec<Action<C>>) -> Option<Try> {
        let closed = self.flights.get_mut(&number)?.tries.swap_remove(index);
        self.closed(&closed, actions);
        Some(closed)
    }

    fn closed(&mut self, closed: &Try, actions: &mut Vec<Action<C>>) {
        self.by_attempt.remove(&closed.attempt);
        if let Some(count) = self.spellings.get_mut(&closed.name) {
            *count -= 1;
            if *count == 0 {
                self.spellings.remove(&closed.name);
            }
        }
        actions.push(Action::Close { attempt: closed.attempt });
    }

    /// Asks the same upstream again in another way.
    fn ask_again(
        &mut self,
        number: u64,
        index: usize,
        stream: bool,
        edns: bool,
        now: Instant,
        actions: &mut Vec<Action<C>>,
    ) {
        if let Some(old) = self.close(number, index, actions) {
            self.ask(number, old.upstream, Some((stream, edns)), now, actions);
        }
    }

    /// This upstream cannot help with this question: asks the next at once.
    fn give_up_try(&mut self, number: u64, index: usize, now: Instant, actions: &mut Vec<Action<C>>) {
        let Some(old) = self.close(number, index, actions) else { return };
        let Some(flight) = self.flights.get_mut(&number) else { return };
        flight.useless.push(old.upstream);
        flight.queue.retain(|&upstream| upstream != old.upstream);
        let anyone_left = !flight.queue.is_empty();
        if anyone_left {
            self.ask_next(number, now, actions);
        } else if flight.tries.is_empty() {
            self.finish_failed(number, now, actions);
        }
    }

    fn reply(&mut self, attempt: Attempt, bytes: &[u8], now: Instant, actions: &mut Vec<Action<C>>) {
        let Some((number, index)) = self.locate(attempt) else { return };
        let flight = &self.flights[&number];
        let &Try { id, stream, edns, since, upstream, .. } = &flight.tries[index];
        let address = flight.upstreams[upstream];
        let name = &flight.tries[index].name;
        let mut parsed = Response::parse(bytes, id, name, flight.kind);
        if stream && parsed == Err(Unusable::Case) {
            // Nobody else can have sent it. The spelling it has is the one to compare with.
            let spelling = bytes.get(wire::HEADER..wire::HEADER + name.len()).unwrap_or_default();
            parsed = Response::parse(bytes, id, spelling, flight.kind);
            self.health.entry(address).or_default().folds_case = Some(now + HABIT);
        }
        let response = match parsed {
            Ok(response) => response,
            Err(Unusable::Case) => return self.ask_again(number, index, true, edns, now, actions),
            Err(Unusable::Foreign) if !stream => {
                self.stats.strange += 1;
                let Some(flight) = self.flights.get_mut(&number) else { return };
                let it = &mut flight.tries[index];
                it.strange += 1;
                if it.strange >= MAX_STRANGE {
                    self.ask_again(number, index, true, edns, now, actions);
                }
                return;
            }
            Err(Unusable::Foreign | Unusable::Malformed) => {
                self.stats.strange += 1;
                return self.give_up_try(number, index, now, actions);
            }
        };
        self.health.entry(address).or_default().succeed(now.saturating_duration_since(since));
        match response.code {
            _ if response.truncated && !stream => self.ask_again(number, index, true, edns, now, actions),
            _ if response.truncated => self.give_up_try(number, index, now, actions),
            rcode::NOERROR | rcode::NXDOMAIN => {
                let is_negative = response.code == rcode::NXDOMAIN || response.answers == 0;
                let longest = if is_negative { MAX_NEGATIVE_TTL } else { MAX_TTL };
                let ttl = Duration::from_secs(response.ttl.unwrap_or(0).min(longest).into());
                self.finish(number, response.kept(bytes), ttl, now, actions);
            }
            // What servers say that do not know EDNS (RFC 6891 §7).
            rcode::FORMERR | rcode::NOTIMP | rcode::BADVERS if edns => {
                self.health.entry(address).or_default().no_edns = Some(now + HABIT);
                self.ask_again(number, index, stream, false, now, actions);
            }
            code => {
                if code < 16
                    && let Some(flight) = self.flights.get_mut(&number)
                {
                    flight.error = Some(response.kept(bytes));
                }
                self.give_up_try(number, index, now, actions);
            }
        }
    }

    fn timeout(&mut self, now: Instant, actions: &mut Vec<Action<C>>) {
        while let Some(&(at, number)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            let Some(flight) = self.flights.get(&number) else { continue };
            // The youngest try has had its time; the others were counted before.
            if let Some(last) = flight.tries.last() {
                let health = self.health.entry(flight.upstreams[last.upstream]).or_default();
                // It may have answered something else since.
                if health.answered == 0 || health.latency < now.saturating_duration_since(last.since) {
                    health.fail(now);
                }
            }
            if now >= flight.give_up {
                self.finish_failed(number, now, actions);
            } else {
                self.ask_next(number, now, actions);
            }
        }
    }

    /// Ends a question with an upstream's error, or SERVFAIL.
    fn finish_failed(&mut self, number: u64, now: Instant, actions: &mut Vec<Action<C>>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let error = flight.error.take();
        // A header that says SERVFAIL.
        let message = error.unwrap_or_else(|| Box::new([0, 0, 0x80, rcode::SERVFAIL as u8, 0, 0, 0, 0, 0, 0, 0, 0]));
        self.stats.failed += flight.waiters.len() as u64;
        self.finish(number, message, FAILURE_TTL, now, actions);
    }

    fn finish(&mut self, number: u64, message: Box<[u8]>, ttl: Duration, now: Instant, actions: &mut Vec<Action<C>>) {
        let Some(flight) = self.flights.remove(&number) else { return };
        self.timers.remove(&(flight.timer, number));
        self.by_key.remove(&flight.key);
        for it in &flight.tries {
            self.closed(it, actions);
        }
        for waiter in flight.waiters {
            self.waiting -= 1;
            if let Some(count) = self.owners.get_mut(&waiter.owner) {
                *count -= 1;
                if *count == 0 {
                    self.owners.remove(&waiter.owner);
                }
            }
            let Ok(query) = Query::parse(&waiter.bytes) else { continue };
            let mut answer = Vec::new();
            wire::write_kept(&query, &message, 0, MAX_TTL, waiter.limit, &mut answer);
            actions.push(Action::Answer { client: waiter.client, message: answer });
        }
        self.cache.put(&flight.key, message, ttl, now);
    }
}

/// What makes questions equal: name, type, bits, and who would be asked.
fn write_key(key: &mut Vec<u8>, name: &[u8], kind: u16, security: Security, upstreams: &[SocketAddr]) {
    key.clear();
    key.extend_from_slice(&kind.to_be_bytes());
    key.push(security.bits());
    key.extend_from_slice(name);
    for upstream in upstreams {
        match upstream.ip() {
            IpAddr::V4(addr) => {
                key.push(4);
                key.extend_from_slice(&addr.octets());
            }
            IpAddr::V6(addr) => {
                key.push(6);
                key.extend_from_slice(&addr.octets());
            }
        }
        key.extend_from_slice(&upstream.port().to_be_bytes());
        if let SocketAddr::V6(addr) = upstream {
            key.extend_from_slice(&addr.scope_id().to_be_bytes());
        }
    }
}
