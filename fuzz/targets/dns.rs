//! What hostile bytes must not do to the name server: one function for each fuzz target.
//!
//! `cargo +nightly fuzz run query` (or `response`, `cache`) searches; `crates/dns/tests/hostile.rs` runs the same
//! functions over the corpus and random changes of it, without any of that.

#![allow(dead_code, unreachable_pub, reason = "each target uses one")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portolan_dns::wire::{self, MAX_TCP, Query, Response};
use portolan_dns::{Action, Attempt, Cache, Decision, Endpoint, Event, Forwarder, Limits, Names, Network, Route};
use portolan_model::Id;

fn names() -> Names {
    let mut names = Names::new();
    let network = Network {
        id: Id::from_bytes([1; 32]),
        name: "front".into(),
        gateways: vec!["10.0.0.1".parse().expect("an address")],
        port: None,
        internal: false,
        upstreams: vec!["192.0.2.1:53".parse().expect("an address")],
        subnets: vec!["10.0.0.0/24".parse().expect("a subnet")],
    };
    names.put_network(network);
    let web = Endpoint {
        id: Id::from_bytes([2; 32]),
        network: Id::from_bytes([1; 32]),
        container: Id::from_bytes([3; 32]),
        name: "web".into(),
        names: vec!["a.b".into()],
        addresses: vec!["10.0.0.2".parse().expect("an address")],
        links: vec![("db".into(), "web".into())],
        services: Vec::new(),
        upstreams: Vec::new(),
        search: vec!["example.org".into()],
        is_well: false,
    };
    names.put_endpoint(web).expect("its network is there");
    names
}

/// A datagram from a container: any answer is well formed, no larger than the client takes, and repeats its number.
pub fn query(bytes: &[u8]) {
    let mut out = Vec::new();
    let query = match Query::parse(bytes) {
        Ok(query) => query,
        Err(rejected) => {
            wire::reject(bytes, rejected, &mut out);
            assert!(out.is_empty() || (out[..2] == bytes[..2] && out[2] & 0x80 != 0));
            return;
        }
    };
    let mut names = names();
    let (gateway, container) = ("10.0.0.1".parse().expect("an address"), "10.0.0.2".parse().expect("an address"));
    let limit = query.udp_limit();
    match names.answer(gateway, container, &query, limit, &mut out) {
        Decision::Answered(_) => {
            assert!(out.len() <= limit);
            assert!(Response::parse(&out, query.id(), query.name(), query.kind()).is_ok());
        }
        Decision::Forward(route) => {
            assert!(wire::label_starts(query.name()).count() != 1, "a bare name stays here");
            forwarded(&route, query);
        }
    }
    wire::text_of(query.name());
}

/// What is sent to an upstream is a question again, and the same.
fn forwarded(route: &Route, query: Query<'_>) {
    let mut forwarder = Forwarder::<()>::new(Limits::default(), |bytes| bytes.fill(0x5a));
    let mut actions = Vec::new();
    let limit = query.udp_limit();
    forwarder.step(Event::Question { client: (), route, query, limit }, Instant::now(), &mut actions);
    let Some(Action::Ask { message, .. }) = actions.first() else { panic!("it is asked: {actions:?}") };
    let sent = Query::parse(message).expect("what we send is well formed");
    assert!(sent.name().eq_ignore_ascii_case(query.name()) && sent.kind() == query.kind());
}

/// A datagram from an upstream: what is taken is well formed also when it is passed on, at any age and size.
pub fn response(bytes: &[u8]) {
    let route = Route {
        upstreams: [SocketAddr::from(([192, 0, 2, 1], 53))].into(),
        owner: Id::from_bytes([3; 32]),
        from_host: false,
    };
    let mut asked = Vec::new();
    wire::write_query(&mut asked, 7, b"\x03www\x07example\0", 1, wire::Security::default(), true);
    let query = Query::parse(&asked).expect("our own is well formed");
    let now = Instant::now();
    let mut forwarder = Forwarder::new(Limits::default(), |bytes| bytes.fill(0));
    let mut actions = Vec::new();
    forwarder.step(Event::Question { client: 1, route: &route, query, limit: 512 }, now, &mut actions);
    // The number is 0 and the spelling the lower case with this entropy, so that a search finds its way in.
    forwarder.step(Event::Reply { attempt: Attempt(2), bytes }, now, &mut actions);
    for action in &actions {
        if let Action::Answer { message, .. } = action {
            assert!(message.len() <= 512);
            assert!(Response::parse(message, 7, query.name(), 1).is_ok());
        }
    }
    // What is truncated may end anywhere, and is never kept.
    if let Ok(response) = Response::parse(bytes, 0, query.name(), 1)
        && !response.truncated
    {
        let kept = response.kept(bytes);
        for (age, limit) in [(0, MAX_TCP), (1000, 512), (u32::MAX, 1232)] {
            let mut out = Vec::new();
            wire::write_kept(&query, &kept, age, 86400, limit, &mut out);
            assert!(out.len() <= limit.max(kept.len() + 11));
            assert!(out.len() <= limit || limit == MAX_TCP);
            let parsed = Response::parse(&out, 7, query.name(), 1).expect("as well formed as it came");
            assert!(parsed.truncated || parsed.answers == response.answers);
        }
    }
}

/// Any order of putting, getting and waiting: the limit holds, and what is returned was put there and is in time.
pub fn cache(bytes: &[u8]) {
    let mut now = Instant::now();
    let mut cache = Cache::new(2000);
    let mut put = std::collections::BTreeMap::new();
    for step in bytes.chunks_exact(3) {
        let (key, value) = (&step[1..2], step[2]);
        match step[0] % 4 {
            0 | 1 => {
                let ttl = Duration::from_secs(u64::from(step[0] / 4));
                let message = vec![value; usize::from(value) * 8];
                // What is not taken leaves the older answer.
                if !ttl.is_zero() && message.len() + 1 + 160 <= 2000 {
                    put.insert(step[1], (value, now, now + ttl));
                }
                cache.put(key, message.into(), ttl, now);
            }
            2 => {
                if let Some((message, age)) = cache.get(key, now) {
                    let (value, since, until) = put[&step[1]];
                    assert!(message.len() == usize::from(value) * 8 && message.iter().all(|byte| *byte == value));
                    assert!(now < until && u64::from(age) == (now - since).as_secs());
                }
            }
            _ => now += Duration::from_millis(u64::from(value) * 10),
        }
        assert!(cache.bytes() <= 2000);
    }
}
