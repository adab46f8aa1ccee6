//! Writing.

use std::collections::{BTreeMap, BTreeSet};

use super::{Value, id};

/// A type of ours, by which the other side is to know what comes.
#[derive(Debug)]
pub(crate) enum Kind {
    Int,
    Uint,
    Bytes,
    Text,
    List(&'static Kind),
    Struct(&'static Shape),
}

/// A structure of ours.
#[derive(Debug)]
pub(crate) struct Shape {
    /// What Go calls it; no two have one name.
    pub(crate) name: &'static str,
    pub(crate) fields: &'static [(&'static str, Kind)],
}

/// One direction of a stream: what was described in it.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    ids: BTreeMap<String, i64>,
    described: BTreeSet<i64>,
}

impl Encoder {
    /// The messages for a value: descriptions of what was not described yet, and the value.
    ///
    /// # Panics
    /// If `value` is not of `shape`, which is ours as well.
    pub(crate) fn encode(&mut self, shape: &'static Shape, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        let kind = Kind::Struct(shape);
        self.describe(&kind, &mut out);
        let mut message = Vec::new();
        int(&mut message, self.id(&kind));
        put(&mut message, &kind, value);
        framed(&mut out, &message);
        out
    }

    /// The number of a type, which is to be described with it.
    fn id(&mut self, kind: &Kind) -> i64 {
        match kind {
            Kind::Int => id::INT,
            Kind::Uint => id::UINT,
            Kind::Bytes => id::BYTES,
            Kind::Text => id::TEXT,
            Kind::List(_) | Kind::Struct(_) => {
                // Go's count begins after the first.
                let next = id::FIRST + 1 + i64::try_from(self.ids.len()).expect("there are few types");
                *self.ids.entry(name(kind)).or_insert(next)
            }
        }
    }

    fn describe(&mut self, kind: &Kind, out: &mut Vec<u8>) {
        let own = self.id(kind);
        if own < id::FIRST || !self.described.insert(own) {
            return;
        }
        let parts: Vec<&Kind> = match kind {
            Kind::List(of) => vec![of],
            Kind::Struct(shape) => shape.fields.iter().map(|(_, kind)| kind).collect(),
            Kind::Int | Kind::Uint | Kind::Bytes | Kind::Text => Vec::new(),
        };
        let ids: Vec<i64> = parts.iter().map(|part| self.id(part)).collect();
        let mut message = Vec::new();
        int(&mut message, -own);
        // `wireType`: which kind of type it is, is the number of the field that describes it.
        match kind {
            Kind::Struct(shape) => {
                uint(&mut message, 3);
                common(&mut message, shape.name, own);
                if !ids.is_empty() {
                    uint(&mut message, 1);
                    uint(&mut message, ids.len() as u64);
                }
                for ((name, _), id) in shape.fields.iter().zip(&ids) {
                    named(&mut message, name, *id);
                }
            }
            _ => {
                uint(&mut message, 2);
                common(&mut message, &name(kind), own);
                uint(&mut message, 1);
                int(&mut message, ids[0]);
            }
        }
        message.extend([0, 0]);
        framed(out, &message);
        for part in parts {
            self.describe(part, out);
        }
    }
}

fn name(kind: &Kind) -> String {
    match kind {
        Kind::Int => "int".to_owned(),
        Kind::Uint => "uint".to_owned(),
        Kind::Bytes => "[]uint8".to_owned(),
        Kind::Text => "string".to_owned(),
        Kind::List(of) => format!("[]{}", name(of)),
        Kind::Struct(shape) => shape.name.to_owned(),
    }
}

/// `CommonType`, the first field of each description.
fn common(out: &mut Vec<u8>, name: &str, id: i64) {
    uint(out, 1);
    named(out, name, id);
}

/// A structure of a name, which may be empty, and a number.
fn named(out: &mut Vec<u8>, name: &str, id: i64) {
    if name.is_empty() {
        uint(out, 2);
    } else {
        uint(out, 1);
        bytes(out, name.as_bytes());
        uint(out, 1);
    }
    int(out, id);
    uint(out, 0);
}

fn put(out: &mut Vec<u8>, kind: &Kind, value: &Value) {
    match (kind, value) {
        (Kind::Int, Value::Int(number)) => int(out, *number),
        (Kind::Uint, Value::Uint(number)) => uint(out, *number),
        (Kind::Bytes, Value::Bytes(value)) => bytes(out, value),
        (Kind::Text, Value::Text(text)) => bytes(out, text.as_bytes()),
        (Kind::List(of), Value::List(list)) => {
            uint(out, list.len() as u64);
            list.iter().for_each(|value| put(out, of, value));
        }
        (Kind::Struct(shape), Value::Struct(fields)) => {
            let mut before = 0;
            for (number, (name, kind)) in (1..).zip(shape.fields) {
                if let Some(value) = fields.get(*name).filter(|value| !is_zero(value)) {
                    uint(out, number - before);
                    put(out, kind, value);
                    before = number;
                }
            }
            uint(out, 0);
        }
        (kind, value) => unreachable!("{value:?} is no {kind:?}"),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Int(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::Text(text) => text.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Struct(_) | Value::Other => false,
    }
}

fn framed(out: &mut Vec<u8>, message: &[u8]) {
    bytes(out, message);
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    uint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn int(out: &mut Vec<u8>, number: i64) {
    // The sign is the lowest bit.
    let bits = (number << 1) ^ (number >> 63);
    uint(out, bits.cast_unsigned());
}

fn uint(out: &mut Vec<u8>, number: u64) {
    if let Ok(small) = u8::try_from(number)
        && small < 128
    {
        return out.push(small);
    }
    let all = number.to_be_bytes();
    let needed = &all[number.leading_zeros() as usize / 8..];
    // The count of bytes, negated.
    out.push((needed.len() as u8).wrapping_neg());
    out.extend_from_slice(needed);
}
