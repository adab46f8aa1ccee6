//! The format of messages (RFC 1035 §4, EDNS: RFC 6891): reading questions, writing answers, and walking through
//! answers of others.
//!
//! Names are handled as they are on the wire: labels of 1 to 63 bytes, each after its length, and a zero; at most
//! 255 bytes in all (RFC 1035 §3.1). No byte of a message is trusted: every function here is total.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a header.
pub const HEADER: usize = 12;
/// The largest answer we send over UDP, and the size we announce: what passes every link without fragments
/// (IPv6's least MTU of 1280 less 48 bytes of headers).
pub const MAX_UDP: usize = 1232;
/// The largest answer to a client that says nothing about it (RFC 1035 §4.2.1).
pub const PLAIN_UDP: usize = 512;
/// The largest message over TCP (RFC 1035 §4.2.2).
pub const MAX_TCP: usize = 65535;
/// The longest name, its last zero included.
pub const MAX_NAME: usize = 255;

/// Record and question types (RFC 1035 §3.2.2 and others).
pub mod kind {
    #![allow(missing_docs)]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// Response codes (RFC 1035 §4.1.1; BADVERS: RFC 6891 §9).
pub mod rcode {
    #![allow(missing_docs)]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADVERS: u16 = 16;
}

/// The Internet, the one class we know.
pub const CLASS_IN: u16 = 1;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;
const DO: u32 = 0x8000;
/// A root name, type, class, time to live and the length of no data.
const OPT_LEN: usize = 11;
/// A pointer to the name of the question.
const TO_QUESTION: u16 = 0xc000 | HEADER as u16;

/// What a client says in its OPT record (RFC 6891 §6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The largest answer it takes over UDP, in bytes; under 512 means 512 (§6.2.3).
    pub udp_size: u16,
    /// The DO bit (RFC 3225).
    pub dnssec_ok: bool,
}

/// One question, inside the message it came in.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    bytes: &'a [u8],
    name_len: usize,
    kind: u16,
    edns: Option<Edns>,
}

/// Why a message is not answered as a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// It is no question at all, and an answer could start a loop: drop it.
    Silent,
    /// It is answered with a code; see [`reject`].
    Reply {
        /// The code, one of [`rcode`].
        code: u16,
        /// Where its question ends; [`HEADER`] if it is not repeated.
        question_end: usize,
        /// Whether the answer has an OPT record.
        edns: bool,
    },
}

impl<'a> Query<'a> {
    /// Reads a question.
    ///
    /// One question of class IN in an otherwise empty message, save for additional records, of which only OPT is
    /// looked at. A name in a question is never compressed: there is nothing before it to point to.
    ///
    /// # Errors
    /// [`Rejected::Silent`] for less than a header and for answers; NOTIMP for other operations than QUERY;
    /// FORMERR for anything malformed, surplus bytes included; BADVERS for EDNS beyond version 0 (RFC 6891 §6.1.3);
    /// REFUSED for other classes and for zone transfers.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Rejected> {
        let flags = read_u16(bytes, 2).filter(|_| bytes.len() >= HEADER).ok_or(Rejected::Silent)?;
        if flags & QR != 0 {
            return Err(Rejected::Silent);
        }
        let bare = |code| Rejected::Reply { code, question_end: HEADER, edns: false };
        if flags & OPCODE != 0 {
            return Err(bare(rcode::NOTIMP));
        }
        let malformed = bare(rcode::FORMERR);
        if bytes[4..10] != [0, 1, 0, 0, 0, 0] {
            return Err(malformed);
        }
        let name_end = plain_name_end(bytes, HEADER).ok_or(malformed)?;
        let kind = read_u16(bytes, name_end).ok_or(malformed)?;
        let class = read_u16(bytes, name_end + 2).ok_or(malformed)?;
        let mut at = name_end + 4;
        let question_end = at;
        let mut edns = None;
        let mut version = 0;
        for _ in 0..u16::from_be_bytes([bytes[10], bytes[11]]) {
            let record = Record::read(bytes, at).ok_or(malformed)?;
            if record.kind == kind::OPT {
                // One, and at the root (RFC 6891 §6.1.1).
                if edns.is_some() || bytes[at] != 0 {
                    return Err(malformed);
                }
                version = (record.ttl >> 16) as u8;
                edns = Some(Edns { udp_size: record.class, dnssec_ok: record.ttl & DO != 0 });
            }
            at = record.end;
        }
        if at != bytes.len() {
            return Err(malformed);
        }
        let reply = |code| Rejected::Reply { code, question_end, edns: edns.is_some() };
        if version != 0 {
            return Err(reply(rcode::BADVERS));
        }
        if class != CLASS_IN || matches!(kind, kind::AXFR | kind::IXFR | kind::OPT) {
            return Err(reply(rcode::REFUSED));
        }
        Ok(Self { bytes, name_len: name_end - HEADER, kind, edns })
    }

    /// Its number, which the answer repeats.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The name as it came, with its last zero; not compressed, in the client's spelling.
    pub fn name(&self) -> &'a [u8] {
        &self.bytes[HEADER..HEADER + self.name_len]
    }

    /// The type asked for.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// What the client says about itself, if it knows EDNS.
    pub fn edns(&self) -> Option<Edns> {
        self.edns
    }

    /// The message it came in.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How long an answer over UDP may be: 512 bytes, or what the client takes up to [`MAX_UDP`].
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| usize::from(edns.udp_size).clamp(PLAIN_UDP, MAX_UDP))
    }

    /// The bits that make another answer of the same question: DO, AD and CD (RFC 6840 §5.7, RFC 4035 §3.2.2).
    pub fn security(&self) -> Security {
        let flags = self.flags();
        Security {
            dnssec_ok: self.edns.is_some_and(|edns| edns.dnssec_ok),
            authentic: flags & AD != 0,
            unchecked: flags & CD != 0,
        }
    }

    fn flags(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    fn question_end(&self) -> usize {
        HEADER + self.name_len + 4
    }
}

/// The bits of a question about DNSSEC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Security {
    /// DO: signatures are wanted.
    pub dnssec_ok: bool,
    /// AD: whether they were checked is wanted.
    pub authentic: bool,
    /// CD: they are not to be checked.
    pub unchecked: bool,
}

impl Security {
    /// As three bits, for keys.
    pub fn bits(self) -> u8 {
        u8::from(self.dnssec_ok) | u8::from(self.authentic) << 1 | u8::from(self.unchecked) << 2
    }
}

/// Writes the answer to a message that [`Query::parse`] rejected with a code.
///
/// `out` is cleared; it stays empty for [`Rejected::Silent`].
pub fn reject(bytes: &[u8], rejected: Rejected, out: &mut Vec<u8>) {
    out.clear();
    let Rejected::Reply { code, question_end, edns } = rejected else { return };
    let (Some(&[high, low]), Some(flags)) = (bytes.first_chunk::<2>(), read_u16(bytes, 2)) else { return };
    out.extend_from_slice(&[high, low]);
    push_u16(out, QR | flags & (OPCODE | RD | CD) | RA | code & 15);
    let question = bytes.get(HEADER..question_end).unwrap_or_default();
    push_u16(out, u16::from(!question.is_empty()));
    out.extend_from_slice(&[0, 0, 0, 0, 0, u8::from(edns)]);
    out.extend_from_slice(question);
    if edns {
        push_opt(out, code, false);
    }
}

/// Writes a message that asks an upstream.
///
/// `name` is in wire form and is sent in the spelling given; recursion is asked for. With `edns` the OPT record
/// announces [`MAX_UDP`].
pub fn write_query(out: &mut Vec<u8>, id: u16, name: &[u8], kind: u16, security: Security, edns: bool) {
    out.clear();
    push_u16(out, id);
    let mut flags = RD;
    flags |= if security.authentic { AD } else { 0 };
    flags |= if security.unchecked { CD } else { 0 };
    push_u16(out, flags);
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
    out.extend_from_slice(name);
    push_u16(out, kind);
    push_u16(out, CLASS_IN);
    if edns {
        push_opt(out, 0, security.dnssec_ok);
    }
}

/// An answer in the making.
///
/// Records are added section by section, as RFC 1035 §4.1 has them. What does not fit any more is left out and the
/// answer marked as truncated, unless it is an additional record, which nobody misses (RFC 2181 §9).
#[derive(Debug)]
pub struct Answer<'o> {
    out: &'o mut Vec<u8>,
    limit: usize,
    edns: Option<Edns>,
    truncated: bool,
}

/// Where a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// What was asked for.
    Answer,
    /// Who says so.
    Authority,
    /// What will be asked for next.
    Additional,
}

/// The name that a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// The name of the question, less so many bytes at its front: a pointer to it.
    Question(usize),
    /// The labels of a name one after the other, without a last zero, each part less than a whole name.
    Labels(&'a [&'a [u8]]),
}

impl<'o> Answer<'o> {
    /// Begins an answer to `query` of at most `limit` bytes; `out` is cleared.
    pub fn new(query: &Query<'_>, limit: usize, out: &'o mut Vec<u8>) -> Self {
        out.clear();
        push_u16(out, query.id());
        push_u16(out, QR | AA | RA | query.flags() & (RD | CD));
        out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&query.bytes[HEADER..query.question_end()]);
        // The OPT record has to fit in the end.
        let reserved = if query.edns.is_some() { OPT_LEN } else { 0 };
        Self { out, limit: limit.saturating_sub(reserved), edns: query.edns, truncated: false }
    }

    /// Adds an A or AAAA record.
    pub fn address(&mut self, section: Section, owner: Owner<'_>, ttl: u32, addr: IpAddr) {
        match addr {
            IpAddr::V4(addr) => self.record(section, owner, kind::A, ttl, |out| out.extend_from_slice(&addr.octets())),
            IpAddr::V6(addr) => {
                self.record(section, owner, kind::AAAA, ttl, |out| out.extend_from_slice(&addr.octets()));
            }
        }
    }

    /// Adds a PTR record for the question that leads to the name made of `labels`.
    pub fn ptr(&mut self, ttl: u32, labels: &[&[u8]]) {
        self.record(Section::Answer, Owner::Question(0), kind::PTR, ttl, |out| push_labels(out, labels));
    }

    /// Adds a SRV record (RFC 2782) for the question: priority and weight 0, and the target not compressed.
    pub fn srv(&mut self, ttl: u32, port: u16, labels: &[&[u8]]) {
        self.record(Section::Answer, Owner::Question(0), kind::SRV, ttl, |out| {
            out.extend_from_slice(&[0, 0, 0, 0]);
            push_u16(out, port);
            push_labels(out, labels);
        });
    }

    /// Adds the SOA record of a negative answer (RFC 2308 §3). With a time to live of 0 nobody keeps the answer.
    pub fn soa(&mut self, owner: Owner<'_>, ttl: u32) {
        self.record(Section::Authority, owner, kind::SOA, ttl, |out| {
            push_labels(out, &[b"\x08portolan\x08internal"]);
            push_labels(out, &[b"\x06nobody\x07invalid"]);
            // Serial, refresh, retry, expire, and for how long a name is known not to be.
            for number in [1, 3600, 600, 86400, ttl] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        });
    }

    fn record(&mut self, section: Section, owner: Owner<'_>, kind: u16, ttl: u32, data: impl FnOnce(&mut Vec<u8>)) {
        if self.truncated {
            return;
        }
        let start = self.out.len();
        match owner {
            Owner::Question(skip) => push_u16(self.out, TO_QUESTION + skip as u16),
            Owner::Labels(labels) => push_labels(self.out, labels),
        }
        push_u16(self.out, kind);
        push_u16(self.out, CLASS_IN);
        self.out.extend_from_slice(&ttl.to_be_bytes());
        push_u16(self.out, 0);
        let data_start = self.out.len();
        data(self.out);
        if self.out.len() > self.limit {
            self.out.truncate(start);
            self.truncated = section != Section::Additional;
            return;
        }
        let len = (self.out.len() - data_start) as u16;
        self.out[data_start - 2..data_start].copy_from_slice(&len.to_be_bytes());
        let count = match section {
            Section::Answer => 6,
            Section::Authority => 8,
            Section::Additional => 10,
        };
        let number = u16::from_be_bytes([self.out[count], self.out[count + 1]]).saturating_add(1);
        self.out[count..count + 2].copy_from_slice(&number.to_be_bytes());
    }

    /// Ends it with a code.
    pub fn finish(self, code: u16) {
        let mut flags = u16::from_be_bytes([self.out[2], self.out[3]]) | code & 15;
        if self.truncated {
            flags |= TC;
        }
        if !matches!(code, rcode::NOERROR | rcode::NXDOMAIN) {
            flags &= !AA;
        }
        self.out[2..4].copy_from_slice(&flags.to_be_bytes());
        if let Some(edns) = self.edns {
            push_opt(self.out, code, edns.dnssec_ok);
            bump_additional(self.out);
        }
    }
}

/// Writes an answer to `query` that is nothing but a code.
pub fn write_code(query: &Query<'_>, code: u16, out: &mut Vec<u8>) {
    Answer::new(query, MAX_TCP, out).finish(code);
}

/// What a foreign answer is, once it was found to be well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Its code, with the upper bits of an OPT record.
    pub code: u16,
    /// Whether records are missing for want of room.
    pub truncated: bool,
    /// Records in the answer section.
    pub answers: u16,
    /// For how many seconds it may be kept: the least time to live of its records, or for a negative answer of the
    /// SOA record's and its last field's (RFC 2308 §5). `None` for what says nothing about it.
    pub ttl: Option<u32>,
    /// Where its records end, what follows them not counted.
    end: usize,
    /// Where its OPT record starts if that is the last record, so that it can be cut off.
    opt_at: Option<usize>,
}

/// Why a foreign answer is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// It does not belong to the question: too short, no answer, another number or another question.
    Foreign,
    /// It belongs to the question but for upper and lower case.
    Case,
    /// It belongs to the question, and is not well formed.
    Malformed,
}

impl Response {
    /// Reads an answer to the question `name`, `kind` that was sent as number `id`.
    ///
    /// An answer without a question is taken if it is a bare error, as servers send that do not understand the
    /// question.
    ///
    /// # Errors
    /// Of [`Unusable`].
    pub fn parse(bytes: &[u8], id: u16, name: &[u8], kind: u16) -> Result<Self, Unusable> {
        let flags = read_u16(bytes, 2).filter(|_| bytes.len() >= HEADER).ok_or(Unusable::Foreign)?;
        if flags & QR == 0 || read_u16(bytes, 0) != Some(id) {
            return Err(Unusable::Foreign);
        }
        let counts: [u16; 4] = std::array::from_fn(|i| u16::from_be_bytes([bytes[4 + 2 * i], bytes[5 + 2 * i]]));
        let mut code = flags & 15;
        if counts == [0; 4] && code != rcode::NOERROR && bytes.len() == HEADER {
            return Ok(Self { code, truncated: false, answers: 0, ttl: None, end: HEADER, opt_at: None });
        }
        let name_end = plain_name_end(bytes, HEADER).ok_or(Unusable::Foreign)?;
        let theirs = &bytes[HEADER..name_end];
        if counts[0] != 1
            || read_u16(bytes, name_end) != Some(kind)
            || read_u16(bytes, name_end + 2) != Some(CLASS_IN)
            || !theirs.eq_ignore_ascii_case(name)
        {
            return Err(Unusable::Foreign);
        }
        let same_case = theirs == name;
        if flags & OPCODE != 0 {
            return Err(Unusable::Malformed);
        }
        let mut at = name_end + 4;
        let mut least = None;
        let mut negative = None;
        let mut opt_at = None;
        let truncated = flags & TC != 0;
        'sections: for (section, &count) in counts.iter().enumerate().skip(1) {
            for _ in 0..count {
                let Some(record) = Record::read(bytes, at) else {
                    // A server may cut in the middle of a record; what is truncated is only asked again.
                    if truncated {
                        break 'sections;
                    }
                    return Err(if same_case { Unusable::Malformed } else { Unusable::Case });
                };
                if record.kind == kind::OPT && section == 3 {
                    code |= ((record.ttl >> 24) as u16) << 4;
                    opt_at = Some(at);
                } else {
                    opt_at = None;
                    let ttl = effective_ttl(record.ttl);
                    least = Some(least.map_or(ttl, |least: u32| least.min(ttl)));
                    if section == 2 && record.kind == kind::SOA {
                        let minimum = read_u32(bytes, record.end.wrapping_sub(4)).filter(|_| record.data_len() >= 22);
                        negative = minimum.map(|minimum| ttl.min(effective_ttl(minimum)));
                    }
                }
                at = record.end;
            }
        }
        if !same_case {
            return Err(Unusable::Case);
        }
        let is_negative = code == rcode::NXDOMAIN || (code == rcode::NOERROR && (counts[1] == 0 || negative.is_some()));
        let ttl = match code {
            _ if truncated => None,
            rcode::NOERROR | rcode::NXDOMAIN if is_negative => {
                negative.and_then(|negative| least.map(|least| least.min(negative)))
            }
            rcode::NOERROR => least,
            _ => None,
        };
        Ok(Self { code, truncated, answers: counts[1], ttl, end: at, opt_at })
    }

    /// The message as it is kept: without an OPT record at its end, which was between the upstream and us, and without
    /// bytes after its records. `bytes` are those it was read from.
    pub fn kept(&self, bytes: &[u8]) -> Box<[u8]> {
        let Some(at) = self.opt_at else { return bytes[..self.end].into() };
        let mut kept: Box<[u8]> = bytes[..at].into();
        let number = u16::from_be_bytes([kept[10], kept[11]]).saturating_sub(1);
        kept[10..12].copy_from_slice(&number.to_be_bytes());
        kept
    }
}

/// Writes what is kept of a foreign answer as the answer to `query`.
///
/// The number, the flags that are the client's and its spelling of the name are put in. Times to live are counted
/// down by `age` seconds and capped at `max_ttl`; all else stays as it came, records of unknown types included.
/// What does not fit into `limit` is left out as a whole, so that the client asks again over TCP.
pub fn write_kept(query: &Query<'_>, kept: &[u8], age: u32, max_ttl: u32, limit: usize, out: &mut Vec<u8>) {
    out.clear();
    let question_end = query.question_end();
    // A bare error has no question.
    if kept.len() < question_end {
        return write_code(query, read_u16(kept, 2).unwrap_or(rcode::SERVFAIL) & 15, out);
    }
    out.extend_from_slice(kept);
    out[..2].copy_from_slice(&query.bytes[..2]);
    let flags = u16::from_be_bytes([kept[2], kept[3]]) & !(AA | TC | RD | CD) | QR | RA | query.flags() & (RD | CD);
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    out[HEADER..question_end].copy_from_slice(&query.bytes[HEADER..question_end]);
    let reserved = if query.edns.is_some() { OPT_LEN } else { 0 };
    if out.len() + reserved > limit {
        out.truncate(question_end);
        out[2..4].copy_from_slice(&(flags | TC).to_be_bytes());
        out[6..12].fill(0);
    } else {
        let mut at = question_end;
        while let Some(record) = Record::read(out, at) {
            if record.kind != kind::OPT {
                let ttl = effective_ttl(record.ttl).min(max_ttl).saturating_sub(age);
                out[record.data - 6..record.data - 2].copy_from_slice(&ttl.to_be_bytes());
            }
            at = record.end;
        }
    }
    if let Some(edns) = query.edns {
        push_opt(out, 0, edns.dnssec_ok);
        bump_additional(out);
    }
}

/// Lower case of a name in wire form, in a buffer of the caller's. Lengths are no letters, so they stay.
pub fn lower<'b>(name: &[u8], buffer: &'b mut [u8; MAX_NAME]) -> &'b [u8] {
    let lowered = &mut buffer[..name.len().min(MAX_NAME)];
    lowered.copy_from_slice(&name[..lowered.len()]);
    lowered.make_ascii_lowercase();
    lowered
}

/// The labels of `text` (`web.example.org`, with or without a last dot) in wire form, in lower case and without the
/// last zero; `None` for what is no name on the wire: empty, with empty labels, or too long.
pub fn labels_of(text: &str) -> Option<Box<[u8]>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut labels = Vec::with_capacity(text.len() + 1);
    for label in text.split('.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        labels.push(label.len() as u8);
        labels.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    (labels.len() < MAX_NAME).then(|| labels.into())
}

/// Where each label of a name in wire form begins, the last zero not counted.
pub fn label_starts(name: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = usize::from(*name.get(at)?);
        let start = at;
        at += 1 + len;
        (len > 0).then_some(start)
    })
}

/// The address that a name below `in-addr.arpa` (RFC 1035 §3.5) or `ip6.arpa` (RFC 3596 §2.5) stands for.
///
/// `name` is in wire form and lower case; names of networks rather than addresses give `None`.
pub fn reverse_address(name: &[u8]) -> Option<IpAddr> {
    let label = |start: usize| name.get(start + 1..start + 1 + usize::from(name[start]));
    if let Some(front) = name.strip_suffix(b"\x07in-addr\x04arpa\0") {
        let mut octets = [0u8; 4];
        let mut count = 0;
        for start in label_starts(front) {
            let text = std::str::from_utf8(label(start)?).ok()?;
            if text.len() > 1 && text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            *octets.get_mut(3usize.checked_sub(count)?)? = text.parse().ok()?;
            count += 1;
        }
        return (count == 4).then(|| Ipv4Addr::from(octets).into());
    }
    let front = name.strip_suffix(b"\x03ip6\x04arpa\0")?;
    let mut number = 0u128;
    let mut count = 0;
    for start in label_starts(front) {
        let &[digit] = label(start)? else { return None };
        let digit = char::from(digit).to_digit(16)?;
        number |= u128::from(digit).checked_shl(4 * count)?;
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(number).into())
}

/// A name in wire form as text, for messages to people; bytes that are not printable as `\DDD` (RFC 1035 §5.1).
pub fn text_of(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for start in label_starts(name) {
        let end = (start + 1 + usize::from(name[start])).min(name.len());
        for &byte in &name[start + 1..end] {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(byte)]),
                b'!'..=b'~' => text.push(char::from(byte)),
                _ => text.push_str(&format!("\\{byte:03}")),
            }
        }
        text.push('.');
    }
    if text.is_empty() { ".".into() } else { text }
}

/// A resource record's place in a message.
#[derive(Debug, Clone, Copy)]
struct Record {
    kind: u16,
    class: u16,
    ttl: u32,
    data: usize,
    end: usize,
}

impl Record {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let fixed = name_end(bytes, at)?;
        let data = fixed + 10;
        let end = data + usize::from(read_u16(bytes, fixed + 8)?);
        (end <= bytes.len()).then_some(Self {
            kind: read_u16(bytes, fixed)?,
            class: read_u16(bytes, fixed + 2)?,
            ttl: read_u32(bytes, fixed + 4)?,
            data,
            end,
        })
    }

    fn data_len(&self) -> usize {
        self.end - self.data
    }
}

/// With the highest bit set it is taken for 0 (RFC 2181 §8).
fn effective_ttl(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

/// The end of a name that must not be compressed.
fn plain_name_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1 + len;
        // Larger lengths are pointers (RFC 1035 §4.1.4) and kinds of labels that no longer are (RFC 6891 §5).
        if len > 63 || at - start > MAX_NAME || at > bytes.len() {
            return None;
        }
        if len == 0 {
            return Some(at);
        }
    }
}

/// The end of a name that may be compressed: a pointer ends it, and is not followed, so there is no loop to run
/// into; but it has to point backwards.
fn name_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let len = usize::from(*bytes.get(at)?);
        if len & 0xc0 == 0xc0 {
            let target = usize::from(read_u16(bytes, at)? & 0x3fff);
            return (HEADER..at).contains(&target).then_some(at + 2);
        }
        at += 1 + len;
        if len > 63 || at - start > MAX_NAME || at > bytes.len() {
            return None;
        }
        if len == 0 {
            return Some(at);
        }
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?).and_then(|four| four.try_into().ok()).map(u32::from_be_bytes)
}

fn push_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn push_labels(out: &mut Vec<u8>, labels: &[&[u8]]) {
    for part in labels {
        out.extend_from_slice(part);
    }
    out.push(0);
}

fn push_opt(out: &mut Vec<u8>, code: u16, dnssec_ok: bool) {
    out.push(0);
    push_u16(out, kind::OPT);
    push_u16(out, MAX_UDP as u16);
    let ttl = u32::from(code >> 4) << 24 | if dnssec_ok { DO } else { 0 };
    out.extend_from_slice(&ttl.to_be_bytes());
    push_u16(out, 0);
}

fn bump_additional(out: &mut [u8]) {
    let number = u16::from_be_bytes([out[10], out[11]]).saturating_add(1);
    out[10..12].copy_from_slice(&number.to_be_bytes());
}
