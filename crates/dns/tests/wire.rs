//! The format of messages, by section of the RFCs; another implementation judges.

mod common;

use common::{answer, name, parse, question, record, words};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, MX, NULL, SOA};
use hickory_proto::rr::{RData, Record, RecordType};
use portolan_dns::wire::{
    self, MAX_TCP, Query, Rejected, Response, Security, Unusable, kind, label_starts, labels_of, rcode,
    reverse_address, text_of,
};

/// Header with flags and counts, then the rest.
fn message(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34];
    bytes.extend(flags.to_be_bytes());
    counts.iter().for_each(|count| bytes.extend(count.to_be_bytes()));
    bytes.extend_from_slice(rest);
    bytes
}

const WEB_A_IN: &[u8] = b"\x03web\0\0\x01\0\x01";

fn refusal(bytes: &[u8]) -> String {
    match Query::parse(bytes) {
        Ok(_) => "taken".into(),
        Err(rejected) => {
            let mut out = vec![1, 2, 3];
            wire::reject(bytes, rejected, &mut out);
            if out.is_empty() { "silent".into() } else { words(&out) }
        }
    }
}

#[test]
fn questions_that_are_none() {
    let long_name: Vec<u8> =
        [&b"\x3f"[..], &[b'a'; 63]].concat().repeat(4).into_iter().chain(*b"\0\0\x01\0\x01").collect();
    let opt = |version: u8| [&b"\0\0\x29\x04\xd0\0"[..], &[version, 0, 0, 0, 0]].concat();
    let web = |rest: &[u8]| [WEB_A_IN, rest].concat();
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("RFC 1035 §4.1.1: no header", vec![0; 11], "silent"),
        ("nothing at all", vec![], "silent"),
        ("RFC 1035 §4.1.1: an answer", message(0x8000, [1, 0, 0, 0], WEB_A_IN), "silent"),
        ("an answer with another operation", message(0xf800, [0; 4], b""), "silent"),
        ("RFC 1035 §4.1.1: inverse query", message(0x0800, [1, 0, 0, 0], WEB_A_IN), "NotImp"),
        ("RFC 1996: notify", message(0x2000, [1, 0, 0, 0], WEB_A_IN), "NotImp"),
        ("RFC 2136: update", message(0x2800, [1, 0, 0, 0], WEB_A_IN), "NotImp"),
        ("no question", message(0, [0; 4], b""), "FormErr"),
        ("RFC 9619 §4: two questions", message(0, [2, 0, 0, 0], &WEB_A_IN.repeat(2)), "FormErr"),
        ("65535 questions", message(0, [65535, 0, 0, 0], WEB_A_IN), "FormErr"),
        ("an answer in a question", message(0, [1, 1, 0, 0], WEB_A_IN), "FormErr"),
        ("authority in a question", message(0, [1, 0, 1, 0], WEB_A_IN), "FormErr"),
        ("no name", message(0, [1, 0, 0, 0], b""), "FormErr"),
        ("name without end", message(0, [1, 0, 0, 0], b"\x03web"), "FormErr"),
        ("label beyond the end", message(0, [1, 0, 0, 0], b"\x3fweb\0\0\x01\0\x01"), "FormErr"),
        ("no type", message(0, [1, 0, 0, 0], b"\x03web\0"), "FormErr"),
        ("half a class", message(0, [1, 0, 0, 0], b"\x03web\0\0\x01\0"), "FormErr"),
        ("RFC 1035 §4.1.4: pointer to itself", message(0, [1, 0, 0, 0], b"\xc0\x0c\0\x01\0\x01"), "FormErr"),
        ("pointer after a label", message(0, [1, 0, 0, 0], b"\x03web\xc0\x0c\0\x01\0\x01"), "FormErr"),
        ("RFC 6891 §5: extended label", message(0, [1, 0, 0, 0], b"\x41web\0\0\x01\0\x01"), "FormErr"),
        ("RFC 1035 §3.1: 257 bytes", message(0, [1, 0, 0, 0], &long_name), "FormErr"),
        ("surplus", message(0, [1, 0, 0, 0], &web(b"x")), "FormErr"),
        ("missing record", message(0, [1, 0, 0, 1], WEB_A_IN), "FormErr"),
        ("record longer than the rest", message(0, [1, 0, 0, 1], &web(b"\0\0\x10\0\x01\0\0\0\0\0\x09")), "FormErr"),
        ("RFC 6891 §6.1.1: two OPT", message(0, [1, 0, 0, 2], &web(&opt(0).repeat(2))), "FormErr"),
        ("OPT below the root", message(0, [1, 0, 0, 1], &web(b"\x01x\0\0\x29\x04\xd0\0\0\0\0\0\0")), "FormErr"),
        // The same number as BADVERS (RFC 6895 §2.3), which the judge calls by its other name.
        ("RFC 6891 §6.1.3: version 1", message(0, [1, 0, 0, 1], &web(&opt(1))), "BADSIG | OPT"),
        ("version 255", message(0, [1, 0, 0, 1], &web(&opt(255))), "BADSIG | OPT"),
        ("CHAOS", message(0, [1, 0, 0, 0], b"\x03web\0\0\x10\0\x03"), "Refused"),
        ("any class", message(0, [1, 0, 0, 0], b"\x03web\0\0\x01\0\xff"), "Refused"),
        ("RFC 5936: zone transfer", message(0, [1, 0, 0, 0], b"\x03web\0\0\xfc\0\x01"), "Refused"),
        ("OPT as a question", message(0, [1, 0, 0, 0], b"\x03web\0\0\x29\0\x01"), "Refused"),
        ("a plain question", message(0x0100, [1, 0, 0, 0], WEB_A_IN), "taken"),
        ("unknown flags", message(0x0770, [1, 0, 0, 0], WEB_A_IN), "taken"),
        ("RFC 6891 §6.1.1: OPT", message(0, [1, 0, 0, 1], &web(&opt(0))), "taken"),
        ("OPT with options", message(0, [1, 0, 0, 1], &web(b"\0\0\x29\x04\xd0\0\0\0\0\0\x04\0\x0a\0\0")), "taken"),
        ("another additional record", message(0, [1, 0, 0, 1], &web(b"\xc0\x0c\0\x10\0\x01\0\0\0\0\0\0")), "taken"),
    ];
    for (what, bytes, want) in cases {
        assert_eq!(refusal(bytes), *want, "{what}");
    }
}

#[test]
fn a_refusal_repeats_number_operation_and_question() {
    let bytes = message(0x2910, [1, 0, 0, 0], WEB_A_IN);
    let mut out = Vec::new();
    wire::reject(&bytes, Query::parse(&bytes).unwrap_err(), &mut out);
    // QR, opcode 5, RD and CD as asked, RA, NOTIMP.
    assert_eq!(out[..4], [0x12, 0x34, 0xa9, 0x94]);
    let chaos = message(0x0100, [1, 0, 0, 0], b"\x03WeB\0\0\x10\0\x03");
    wire::reject(&chaos, Query::parse(&chaos).unwrap_err(), &mut out);
    assert_eq!(out[12..], chaos[12..]);
    wire::reject(&[], Rejected::Reply { code: 1, question_end: 40, edns: false }, &mut out);
    assert!(out.is_empty());
}

#[test]
fn the_longest_names_are_taken() {
    // Three labels of 63 and one of 61: 255 bytes with the zero.
    let text = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    let bytes = question(&text, "A", None);
    let query = parse(&bytes);
    assert_eq!(query.name().len(), 255);
    assert_eq!(text_of(query.name()), format!("{text}."));
    assert_eq!(labels_of(&text).unwrap().len(), 254);
    assert_eq!(labels_of(&format!("{text}d")), None);
    let bytes = question(".", "NS", None);
    assert_eq!((parse(&bytes).name(), parse(&bytes).kind()), (&b"\0"[..], kind::NS));
}

#[test]
fn what_edns_says() {
    for (edns, limit) in [(None, 512), (Some(0), 512), (Some(511), 512), (Some(1000), 1000), (Some(65535), 1232)] {
        let bytes = question("web", "A", edns);
        assert_eq!(parse(&bytes).udp_limit(), limit, "{edns:?}");
    }
}

#[test]
fn what_we_ask_others_understand() {
    let name = b"\x03wEb\x07ExAmple\0";
    for (bits, edns) in [(0, false), (0, true), (7, true), (2, true)] {
        let security = Security { dnssec_ok: bits & 1 != 0, authentic: bits & 2 != 0, unchecked: bits & 4 != 0 };
        let mut out = Vec::new();
        wire::write_query(&mut out, 0xbeef, name, kind::AAAA, security, edns);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.metadata.id, 0xbeef);
        assert!(message.metadata.recursion_desired);
        assert_eq!(message.metadata.authentic_data, security.authentic);
        assert_eq!(message.metadata.checking_disabled, security.unchecked);
        assert_eq!(message.queries[0].query_type(), RecordType::AAAA);
        assert_eq!(message.edns.as_ref().map(|edns| edns.max_payload()), edns.then_some(1232));
        assert_eq!(message.edns.is_some_and(|edns| edns.flags().dnssec_ok), security.dnssec_ok);
        let query = parse(&out);
        assert_eq!((query.name(), query.security()), (&name[..], security));
    }
}

fn soa(ttl: u32, minimum: u32) -> Record {
    record("example.", ttl, RData::SOA(SOA::new(name("ns.example"), name("root.example"), 1, 2, 3, 4, minimum)))
}

fn a(owner: &str, ttl: u32) -> Record {
    record(owner, ttl, RData::A(A::new(192, 0, 2, 1)))
}

#[test]
fn how_long_an_answer_may_be_kept() {
    use ResponseCode::{NXDomain, NoError, Refused, ServFail};
    let cname = record("web.example.", 50, RData::CNAME(CNAME(name("x.example"))));
    let cases = [
        ("the least of all", NoError, vec![a("web.example.", 300), a("web.example.", 20)], vec![], Some(20)),
        ("authority counts", NoError, vec![a("web.example.", 300)], vec![soa(100, 5)], Some(5)),
        ("RFC 2308 §5: the SOA's last field", NXDomain, vec![], vec![soa(3600, 60)], Some(60)),
        ("RFC 2308 §5: or its time to live", NXDomain, vec![], vec![soa(30, 60)], Some(30)),
        ("RFC 2308 §2.2: no data", NoError, vec![], vec![soa(3600, 60)], Some(60)),
        ("RFC 2308 §5: without SOA", NXDomain, vec![], vec![], None),
        ("no data without SOA", NoError, vec![], vec![], None),
        ("an alias to nothing", NXDomain, vec![cname.clone()], vec![soa(3600, 60)], Some(50)),
        ("RFC 2181 §8: beyond 31 bits", NoError, vec![a("web.example.", 0x8000_0001)], vec![], Some(0)),
        ("a failure", ServFail, vec![], vec![soa(3600, 60)], None),
        ("a refusal", Refused, vec![], vec![], None),
    ];
    let query = question("web.example", "A", Some(1232));
    for (what, code, answers, authorities, want) in cases {
        let bytes = answer(&query, code, &answers, &authorities);
        let response = Response::parse(&bytes, 0x1234, parse(&query).name(), kind::A).unwrap();
        assert_eq!((response.ttl, response.code), (want, u16::from(code)), "{what}");
    }
}

#[test]
fn answers_to_others_questions_are_told_apart() {
    let query = question("wEb.example", "A", Some(1232));
    let good = answer(&query, ResponseCode::NoError, &[a("web.example.", 9)], &[]);
    let name = parse(&query).name();
    assert!(Response::parse(&good, 0x1234, name, kind::A).is_ok());
    assert_eq!(Response::parse(&good, 0x1235, name, kind::A), Err(Unusable::Foreign));
    assert_eq!(Response::parse(&good, 0x1234, name, kind::AAAA), Err(Unusable::Foreign));
    assert_eq!(Response::parse(&good, 0x1234, b"\x03wEb\0", kind::A), Err(Unusable::Foreign));
    assert_eq!(Response::parse(&good, 0x1234, b"\x03web\x07example\0", kind::A), Err(Unusable::Case));
    assert_eq!(Response::parse(&query, 0x1234, name, kind::A), Err(Unusable::Foreign), "a question");
    for len in 0..good.len() {
        assert!(Response::parse(&good[..len], 0x1234, name, kind::A).is_err(), "{len} bytes");
    }
    let mut bare = good[..12].to_vec();
    bare[3] = 0x81;
    bare[4..].fill(0);
    assert_eq!(Response::parse(&bare, 0x1234, name, kind::A).unwrap().code, rcode::FORMERR);
    bare[3] = 0x80;
    assert!(Response::parse(&bare, 0x1234, name, kind::A).is_err(), "success without a question");
    // RFC 1035 §4.1.4: "a prior occurrence" is what a pointer points to.
    for target in [0u8, 11, 0x1d, 0xff] {
        let mut looping = message(0x8180, [1, 1, 0, 0], &query[12..29]);
        looping.extend([0xc0, target, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
        let want = Err(Unusable::Malformed);
        assert_eq!(Response::parse(&looping, 0x1234, name, kind::A), want, "pointer to {target}");
        let last = looping.len() - 15;
        looping[last] = 12;
        assert!(Response::parse(&looping, 0x1234, name, kind::A).is_ok());
    }
}

#[test]
fn a_kept_answer_is_the_upstreams_but_for_what_is_the_clients() {
    let asked = question("web.example", "A", Some(1232));
    let unknown = RData::Unknown { code: RecordType::Unknown(65280), rdata: NULL::with(vec![1, 2, 0xc0, 0xff]) };
    let mx = record("web.example.", 100, RData::MX(MX::new(1, name("mail.web.example"))));
    let answers = [a("web.example.", 100), mx, record("web.example.", 200_000, unknown)];
    let theirs = answer(&asked, ResponseCode::NoError, &answers, &[soa(1000, 9)]);
    let response = Response::parse(&theirs, 0x1234, parse(&asked).name(), kind::A).unwrap();
    let kept = response.kept(&theirs);
    assert!(kept.len() + 11 == theirs.len(), "without OPT");
    let mut client = question("WEB.eXample", "A", None);
    client[0] = 0x77;
    let mut out = Vec::new();
    wire::write_kept(&parse(&client), &kept, 40, 86400, MAX_TCP, &mut out);
    assert_eq!(out[..2], [0x77, 0x34]);
    assert_eq!(out[12..25], client[12..25], "its spelling");
    let text = words(&out);
    for part in
        [" 60 IN A 192.0.2.1", " 60 IN MX 1 mail.WEB.eXample.", " 86360 IN Unknown AQLA/w==", " 960 IN SOA ns.eXample."]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    // All else is as it came.
    let mut same = out.clone();
    let mut original = Vec::new();
    wire::write_kept(&parse(&asked), &kept, 40, 86400, MAX_TCP, &mut original);
    assert_eq!(original.len(), out.len() + 11);
    same[0] = 0x12;
    same[12..25].copy_from_slice(&asked[12..25]);
    assert_eq!(same[12..], original[12..out.len()]);
    // Older than it may be.
    wire::write_kept(&parse(&client), &kept, 1_000_000, 86400, MAX_TCP, &mut out);
    assert!(words(&out).contains(" 0 IN A 192.0.2.1"));
    // Too long: nothing but the question, and to be asked again.
    wire::write_kept(&parse(&client), &kept, 0, 86400, kept.len() - 1, &mut out);
    assert_eq!((words(&out), out.len()), ("NoError tc".into(), 12 + 13 + 4));
    wire::write_kept(&parse(&asked), &kept, 0, 86400, kept.len() + 10, &mut out);
    assert_eq!(words(&out), "NoError tc | OPT");
    // A bare error becomes one with the question.
    wire::write_kept(&parse(&client), &[0, 0, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 0], 0, 86400, 512, &mut out);
    assert_eq!(words(&out), "ServFail");
}

#[test]
fn addresses_in_names() {
    let reverse = |text: &str| {
        let mut labels = labels_of(text).unwrap().into_vec();
        labels.push(0);
        reverse_address(&labels).map(|addr| addr.to_string())
    };
    assert_eq!(reverse("1.2.0.192.in-addr.arpa").as_deref(), Some("192.0.2.1"));
    assert_eq!(reverse("0.0.0.0.in-addr.arpa").as_deref(), Some("0.0.0.0"));
    let v6 = format!("{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(24));
    assert_eq!(reverse(&v6).as_deref(), Some("2001:db8::"));
    let zero = "0.".repeat(33);
    for bad in [
        "in-addr.arpa",
        "2.0.192.in-addr.arpa",
        "9.1.2.0.192.in-addr.arpa",
        "a.2.0.192.in-addr.arpa",
        "+1.2.0.192.in-addr.arpa",
        "01.2.0.192.in-addr.arpa",
        "999.2.0.192.in-addr.arpa",
        "ip6.arpa",
        &format!("{zero}ip6.arpa"),
        &v6.replacen('0', "g", 1),
        &v6.replacen('0', "00", 1),
        "arpa",
        "x",
    ] {
        assert_eq!(reverse(bad), None, "{bad}");
    }
    assert_eq!(reverse_address(b"\x0f1\x012\x010\x03192\x07in-addr\x04arpa\0"), None);
}

#[test]
fn names_as_text() {
    assert_eq!(labels_of("Web.Example.").as_deref(), Some(&b"\x03web\x07example"[..]));
    for bad in ["", ".", "a..b", ".a", &"x".repeat(64)] {
        assert_eq!(labels_of(bad), None, "{bad}");
    }
    assert_eq!(text_of(b"\0"), ".");
    assert_eq!(text_of(b"\x04a.\\\x07\x01b\0"), "a\\.\\\\\\007.b.");
    assert_eq!(label_starts(b"\x03web\x02ab\0").collect::<Vec<_>>(), [0, 4]);
}
