//! The forwarder against upstreams made of values, in a time that passes only when it is told to.

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{answer, id, parse, question, record, words};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::A;
use portolan_dns::wire::MAX_TCP;
use portolan_dns::{Action, Attempt, Event, Forwarder, Limits, Route};

/// What was sent to an upstream and is not closed.
#[derive(Debug, Clone)]
struct Sent {
    to: SocketAddr,
    stream: bool,
    message: Vec<u8>,
}

struct Play {
    forwarder: Forwarder<u32>,
    now: Instant,
    start: Instant,
    open: BTreeMap<Attempt, Sent>,
    answers: Vec<(u32, String)>,
}

const ONE: &str = "192.0.2.1:53";
const TWO: &str = "192.0.2.2:53";

fn route(upstreams: &[&str]) -> Route {
    let upstreams: Vec<SocketAddr> = upstreams.iter().map(|text| text.parse().unwrap()).collect();
    Route { upstreams: upstreams.into(), owner: id(1), from_host: false }
}

impl Play {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let entropy = move |bytes: &mut [u8]| {
            for byte in bytes {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
        };
        let now = Instant::now();
        let forwarder = Forwarder::new(limits, entropy);
        Self { forwarder, now, start: now, open: BTreeMap::new(), answers: Vec::new() }
    }

    fn step(&mut self, event: Event<'_, u32>) {
        let mut actions = Vec::new();
        self.forwarder.step(event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Ask { attempt, to, stream, message } => {
                    assert!(self.open.insert(attempt, Sent { to, stream, message }).is_none());
                }
                Action::Close { attempt } => assert!(self.open.remove(&attempt).is_some(), "closed once"),
                Action::Answer { client, message } => self.answers.push((client, words(&message))),
            }
        }
        if self.forwarder.load() == (0, 0) {
            assert!(self.open.is_empty() && self.forwarder.deadline().is_none(), "nothing is left behind");
        }
    }

    fn ask(&mut self, client: u32, route: &Route, name: &str) {
        let bytes = question(name, "A", Some(1232));
        let query = parse(&bytes);
        let mut out = Vec::new();
        if self.forwarder.cached(route, &query, MAX_TCP, self.now, &mut out) {
            self.answers.push((client, format!("cached {}", words(&out))));
        } else {
            self.step(Event::Question { client, route, query, limit: MAX_TCP });
        }
    }

    /// The one open attempt at an upstream.
    fn at(&self, upstream: &str) -> (Attempt, Sent) {
        let mut found = self.open.iter().filter(|(_, sent)| sent.to.to_string() == upstream);
        let (attempt, sent) = found.next().unwrap_or_else(|| panic!("{upstream} is asked: {:?}", self.open));
        assert!(found.next().is_none(), "once");
        (*attempt, sent.clone())
    }

    fn reply(&mut self, attempt: Attempt, bytes: &[u8]) {
        self.step(Event::Reply { attempt, bytes });
    }

    /// Lets an upstream answer with one address.
    fn succeed(&mut self, upstream: &str, ttl: u32) {
        let (attempt, sent) = self.at(upstream);
        let bytes = good(&sent.message, ttl);
        self.reply(attempt, &bytes);
    }

    /// Lets time pass until the next deadline.
    fn wait(&mut self) -> Duration {
        let then = self.forwarder.deadline().expect("something is waited for");
        let waited = then.saturating_duration_since(self.now);
        self.now = then;
        self.step(Event::Timeout);
        waited
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    fn take(&mut self) -> Vec<(u32, String)> {
        std::mem::take(&mut self.answers)
    }
}

fn good(query: &[u8], ttl: u32) -> Vec<u8> {
    let owner = Message::from_vec(query).unwrap().queries[0].name().to_string();
    answer(query, ResponseCode::NoError, &[record(&owner, ttl, RData::A(A::new(203, 0, 113, 7)))], &[])
}

fn is_good(text: &str) -> bool {
    text.starts_with("NoError |") && text.contains(" IN A 203.0.113.7 | OPT")
}

#[test]
fn a_question_is_asked_answered_and_kept_for_its_time() {
    let mut play = Play::new();
    let route = route(&[ONE, TWO]);
    play.ask(1, &route, "www.example.net");
    assert_eq!(play.open.len(), 1, "the first alone");
    play.succeed(ONE, 30);
    assert_eq!(play.take(), [(1, "NoError | www.example.net. 30 IN A 203.0.113.7 | OPT".into())]);
    play.now += Duration::from_millis(29_900);
    play.ask(2, &route, "WWW.example.NET");
    assert_eq!(play.take(), [(2, "cached NoError | WWW.example.NET. 1 IN A 203.0.113.7 | OPT".into())]);
    play.now += Duration::from_millis(100);
    play.ask(3, &route, "www.example.net");
    assert_eq!(play.take(), []);
    play.succeed(ONE, 0);
    play.ask(4, &route, "www.example.net");
    assert_eq!(play.open.len(), 1, "a time to live of 0 is not kept");
    assert_eq!(play.forwarder.stats().cached, 1);
}

#[test]
fn other_upstreams_have_other_answers() {
    let mut play = Play::new();
    play.ask(1, &route(&[ONE]), "www.example.net");
    play.succeed(ONE, 30);
    play.ask(2, &route(&[TWO]), "www.example.net");
    assert_eq!(play.at(TWO).1.to.to_string(), TWO);
}

#[test]
fn equal_questions_are_one() {
    let mut play = Play::new();
    let route = route(&[ONE]);
    for client in 0..100 {
        play.ask(client, &route, if client % 2 == 0 { "www.example.net" } else { "wWw.Example.net" });
    }
    assert_eq!((play.open.len(), play.forwarder.load()), (1, (1, 100)));
    play.succeed(ONE, 30);
    let answers = play.take();
    assert_eq!(answers.len(), 100);
    assert!(answers.iter().all(|(_, text)| is_good(text)));
    assert!(answers[1].1.contains("wWw.Example.net"), "each in its own spelling");
    // Other flags may have another answer.
    let mut checked = question("www.example.org", "A", None);
    play.step(Event::Question { client: 1, route: &route, query: parse(&checked), limit: 512 });
    checked[3] |= 0x10;
    play.step(Event::Question { client: 2, route: &route, query: parse(&checked), limit: 512 });
    assert_eq!(play.open.len(), 2);
}

#[test]
fn numbers_and_spellings_cannot_be_guessed() {
    let mut play = Play::new();
    let mut numbers = std::collections::BTreeSet::new();
    let mut spellings = std::collections::BTreeSet::new();
    for client in 0..200 {
        play.ask(client, &route(&[ONE]), "www.example.net");
        let (_, sent) = play.at(ONE);
        numbers.insert([sent.message[0], sent.message[1]]);
        spellings.insert(sent.message[12..29].to_vec());
        play.succeed(ONE, 0);
    }
    assert!(numbers.len() > 190, "{}", numbers.len());
    assert!(spellings.len() > 190, "{}", spellings.len());
}

#[test]
fn forgeries_are_not_believed() {
    let mut play = Play::new();
    play.ask(1, &route(&[ONE]), "www.example.net");
    let (attempt, sent) = play.at(ONE);
    let mut forged = good(&sent.message, 30);
    forged[0] ^= 1;
    for _ in 0..7 {
        play.reply(attempt, &forged);
        assert_eq!(play.take(), []);
    }
    // Nor other questions, nor anything else.
    play.reply(attempt, &good(&question("www.example.org", "A", None), 30));
    let (attempt, sent) = play.at(ONE);
    assert!(sent.stream, "somebody is guessing: over TCP");
    assert_eq!(play.take(), []);
    play.reply(attempt, &good(&sent.message, 30));
    assert!(is_good(&play.take()[0].1));
    assert_eq!(play.forwarder.stats().strange, 8);
}

#[test]
fn a_server_that_loses_case_is_believed_over_tcp_only() {
    let mut play = Play::new();
    play.ask(1, &route(&[ONE]), "www.example.net");
    for client in 2..4 {
        let (attempt, sent) = play.at(ONE);
        if client == 2 {
            assert!(!sent.stream);
            let mut lower = good(&sent.message, 0);
            lower[12..29].make_ascii_lowercase();
            play.reply(attempt, &lower);
            assert_eq!(play.take(), []);
        }
        let (attempt, sent) = play.at(ONE);
        assert!(sent.stream);
        let mut lower = good(&sent.message, 0);
        lower[12..29].make_ascii_lowercase();
        play.reply(attempt, &lower);
        assert!(is_good(&play.take()[0].1));
        // It is remembered.
        play.ask(client, &route(&[ONE]), "www.example.net");
    }
}

#[test]
fn a_truncated_answer_is_asked_for_again_over_tcp() {
    let mut play = Play::new();
    play.ask(1, &route(&[ONE]), "www.example.net");
    let (attempt, sent) = play.at(ONE);
    let mut cut = good(&sent.message, 30);
    cut[2] |= 2;
    // In the middle of a record, as some do.
    cut.truncate(cut.len() - 14);
    play.reply(attempt, &cut);
    let (attempt, sent) = play.at(ONE);
    assert!(sent.stream);
    play.reply(attempt, &good(&sent.message, 30));
    assert!(is_good(&play.take()[0].1));
}

#[test]
fn a_server_without_edns_is_asked_without() {
    let mut play = Play::new();
    play.ask(1, &route(&[ONE]), "www.example.net");
    let (attempt, sent) = play.at(ONE);
    // A bare header, as RFC 6891 §7 has it.
    let mut bare = sent.message[..12].to_vec();
    bare[2..4].copy_from_slice(&[0x80, 1]);
    bare[4..].fill(0);
    play.reply(attempt, &bare);
    let (attempt, sent) = play.at(ONE);
    assert!(Message::from_vec(&sent.message).unwrap().edns.is_none());
    play.reply(attempt, &good(&sent.message, 0));
    assert!(is_good(&play.take()[0].1));
    play.ask(2, &route(&[ONE]), "www.example.net");
    assert!(Message::from_vec(&play.at(ONE).1.message).unwrap().edns.is_none(), "it is remembered");
}

#[test]
fn a_dead_upstream_costs_time_once() {
    let mut play = Play::new();
    let route = route(&[ONE, TWO]);
    play.ask(1, &route, "a.example");
    assert_eq!(play.wait(), Duration::from_millis(400));
    assert_eq!(play.open.len(), 2, "the first may still answer");
    play.succeed(TWO, 30);
    assert!(is_good(&play.take()[0].1));
    play.ask(2, &route, "b.example");
    assert_eq!(play.open.len(), 1);
    play.succeed(TWO, 30);
    // After a while it is tried again, beside the other.
    play.now += Duration::from_secs(2);
    play.ask(3, &route, "c.example");
    assert_eq!(play.open.len(), 2);
    play.succeed(TWO, 30);
    play.ask(4, &route, "d.example");
    assert_eq!(play.open.len(), 1, "one probe at a time");
    play.succeed(TWO, 30);
    play.now += Duration::from_secs(200);
    play.ask(5, &route, "e.example");
    play.succeed(ONE, 30);
    play.ask(6, &route, "f.example");
    play.succeed(ONE, 30);
    let answers = play.take();
    assert_eq!(answers.len(), 5);
    assert!(answers.iter().all(|(_, text)| is_good(text)));
    assert_eq!(play.elapsed(), Duration::from_millis(202_400));
}

#[test]
fn a_slow_upstream_may_answer_late() {
    let mut play = Play::new();
    play.ask(1, &route(&[ONE]), "a.example");
    let (first, sent) = play.at(ONE);
    play.wait();
    play.wait();
    play.reply(first, &good(&sent.message, 30));
    assert!(is_good(&play.take()[0].1));
}

#[test]
fn when_nobody_answers_the_client_hears_so_before_it_asks_again() {
    for upstreams in [&[ONE][..], &[ONE, TWO], &["192.0.2.3:53", ONE, TWO, "[2001:db8::1]:53"]] {
        let mut play = Play::new();
        play.ask(1, &route(upstreams), "a.example");
        let mut most = 0;
        while play.answers.is_empty() {
            most = most.max(play.open.len());
            play.wait();
        }
        assert_eq!(play.take(), [(1, "ServFail | OPT".into())]);
        assert!(play.elapsed() < Duration::from_secs(5), "{:?}", play.elapsed());
        assert!((2..=8).contains(&most), "{most} sockets");
        // The failure is kept for a moment.
        play.ask(2, &route(upstreams), "a.example");
        assert_eq!(play.take(), [(2, "cached ServFail | OPT".into())]);
        play.now += Duration::from_secs(1);
        play.ask(3, &route(upstreams), "a.example");
        assert_eq!(play.take(), []);
    }
}

#[test]
fn errors_and_closed_ports_lead_on_at_once() {
    let mut play = Play::new();
    let three = route(&[ONE, TWO, "192.0.2.3:53"]);
    play.ask(1, &three, "a.example");
    let (attempt, _) = play.at(ONE);
    play.step(Event::Failed { attempt });
    let (attempt, sent) = play.at(TWO);
    let refused = answer(&sent.message, ResponseCode::Refused, &[], &[]);
    play.reply(attempt, &refused);
    play.succeed("192.0.2.3:53", 30);
    assert!(is_good(&play.take()[0].1));
    assert_eq!(play.elapsed(), Duration::ZERO);
    // If all fail, what one of them said.
    play.ask(2, &route(&[TWO, ONE]), "b.example");
    let (attempt, sent) = play.at(TWO);
    let refused = answer(&sent.message, ResponseCode::Refused, &[], &[]);
    play.reply(attempt, &refused);
    let (attempt, _) = play.at(ONE);
    play.step(Event::Failed { attempt });
    assert_eq!(play.take(), [(2, "Refused | OPT".into())]);
    assert_eq!(play.elapsed(), Duration::ZERO);
    play.ask(3, &route(&[]), "c.example");
    assert_eq!(play.take(), [(3, "ServFail | OPT".into())]);
}

#[test]
fn a_question_of_ours_that_comes_back_is_no_storm() {
    let mut play = Play::new();
    let loops = Route { from_host: true, owner: id(2), ..route(&[ONE]) };
    play.ask(1, &route(&[ONE]), "www.a-long-enough.example");
    let (_, sent) = play.at(ONE);
    // The upstream asks us what we asked it.
    play.step(Event::Question { client: 2, route: &loops, query: parse(&sent.message), limit: 512 });
    assert_eq!(play.take(), [(2, "ServFail | OPT".into())]);
    assert_eq!((play.open.len(), play.forwarder.stats().loops), (1, 1));
    // Or asks in its own spelling: then it waits for itself, and that ends.
    play.ask(3, &loops, "www.a-long-enough.example");
    assert_eq!(play.open.len(), 1);
    while play.answers.len() < 2 {
        play.wait();
    }
    assert!(play.forwarder.stats().sent <= 8);
}

#[test]
fn one_container_cannot_take_all_places() {
    let mut play = Play::new();
    let mine = route(&[ONE]);
    for client in 0..1000 {
        play.ask(client, &mine, &format!("n{client}.example"));
    }
    assert_eq!(play.forwarder.load(), (256, 256));
    assert_eq!(play.take().len(), 744);
    let other = Route { owner: id(2), ..route(&[ONE]) };
    play.ask(5000, &other, "www.example");
    assert_eq!(play.forwarder.load(), (257, 257));
    assert_eq!(play.take(), []);
    assert_eq!(play.forwarder.stats().turned_away, 744);
    // In all there is a limit, too.
    let mut play = Play::with(Limits { in_flight: 10, waiting: 15, ..Limits::default() });
    for client in 0..40 {
        play.ask(client, &Route { owner: id(client.into()), ..route(&[ONE]) }, &format!("n{}.example", client % 20));
    }
    let (flights, waiting) = play.forwarder.load();
    assert_eq!((flights, waiting), (10, 15));
    let pending = play.forwarder.drain();
    assert_eq!((pending.len(), play.forwarder.load()), (15, (0, 0)));
    assert_eq!(play.forwarder.deadline(), None);
    assert!(pending.iter().all(|(_, bytes)| portolan_dns::wire::Query::parse(bytes).is_ok()));
}

#[test]
fn a_malformed_answer_is_no_answer() {
    let mut play = Play::new();
    play.ask(1, &route(&[ONE, TWO]), "www.example.net");
    let (attempt, sent) = play.at(ONE);
    let mut broken = good(&sent.message, 30);
    broken[7] = 200;
    play.reply(attempt, &broken);
    play.succeed(TWO, 30);
    assert!(is_good(&play.take()[0].1));
}
