//! Questions and answers by another implementation, as the judge of ours.

#![allow(dead_code, reason = "each test file uses its part")]

use std::str::FromStr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use portolan_dns::wire::{MAX_TCP, Query};
use portolan_model::Id;

pub(crate) fn id(number: u64) -> Id {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

pub(crate) fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

/// A question as the other implementation writes it.
pub(crate) fn question(text: &str, kind: &str, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut asked = Asked::query(name(text), RecordType::from_str(kind).unwrap());
    asked.set_query_class(DNSClass::IN);
    message.add_query(asked);
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_version(0);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// An answer to the question in `query`, as the other implementation writes it.
pub(crate) fn answer(query: &[u8], code: ResponseCode, answers: &[Record], authorities: &[Record]) -> Vec<u8> {
    let asked = Message::from_vec(query).unwrap();
    let mut message = Message::response(asked.metadata.id, OpCode::Query);
    message.metadata.response_code = code;
    message.add_queries(asked.queries.clone());
    message.add_answers(answers.to_vec());
    message.add_authorities(authorities.to_vec());
    if asked.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

pub(crate) fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name(owner), ttl, data)
}

/// A query that is known to be well formed.
pub(crate) fn parse(bytes: &[u8]) -> Query<'_> {
    Query::parse(bytes).unwrap()
}

/// An answer in words, as the other implementation understands it: code, flags, then the records by section.
pub(crate) fn words(bytes: &[u8]) -> String {
    assert!(bytes.len() <= MAX_TCP);
    let message = Message::from_vec(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
    let meta = &message.metadata;
    let mut words = format!("{:?}", meta.response_code);
    for (flag, set) in [("aa", meta.authoritative), ("tc", meta.truncation), ("ad", meta.authentic_data)] {
        if set {
            words += &format!(" {flag}");
        }
    }
    for (section, records) in [("", &message.answers), (" auth", &message.authorities), (" more", &message.additionals)]
    {
        let mut lines: Vec<_> = records.iter().map(ToString::to_string).collect();
        lines.sort();
        for line in lines {
            words += &format!(" |{section} {line}");
        }
    }
    if message.edns.is_some() {
        words += " | OPT";
    }
    words
}
