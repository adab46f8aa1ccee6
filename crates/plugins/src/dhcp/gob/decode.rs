//! Reading, from whoever: what is not understood is refused, and nothing takes more memory than what came is worth.

use std::collections::BTreeMap;

use super::{Malformed, Value, id};

/// No message is longer: the longest has a configuration in it.
const LONGEST: usize = 4 << 20;
/// No description of a type is longer.
const LONGEST_TYPE: usize = 16 << 10;
/// No stream describes more types.
const MOST_TYPES: usize = 128;
/// No message has more values, of which each takes more room here than there.
const MOST_VALUES: usize = 64 << 10;
/// No values are deeper inside each other.
const DEEPEST: usize = 24;

/// Types of descriptions themselves; streams cannot mean these numbers.
mod own {
    pub(super) const WIRE: i64 = 16;
    pub(super) const ARRAY: i64 = 17;
    pub(super) const COMMON: i64 = 18;
    pub(super) const SLICE: i64 = 19;
    pub(super) const STRUCT: i64 = 20;
    pub(super) const FIELD: i64 = 21;
    pub(super) const FIELDS: i64 = 22;
    pub(super) const MAP: i64 = 23;
    pub(super) const OPAQUE: i64 = 24;
}

#[derive(Debug, Clone)]
enum Type {
    List(i64),
    Map(i64, i64),
    Struct(Vec<(String, i64)>),
    /// Bytes that only its own methods understand (`GobEncoder` and the like).
    Opaque,
}

/// One direction of a stream: what came and was not taken yet, and which types were described.
#[derive(Debug)]
pub(crate) struct Decoder {
    pending: Vec<u8>,
    types: BTreeMap<i64, Type>,
}

impl Default for Decoder {
    fn default() -> Self {
        let fields = |list: &[(&str, i64)]| Type::Struct(list.iter().map(|(name, id)| ((*name).into(), *id)).collect());
        let common = ("CommonType", own::COMMON);
        // encoding/gob, type.go: `wireType` and what it consists of.
        let wire = [
            ("ArrayT", own::ARRAY),
            ("SliceT", own::SLICE),
            ("StructT", own::STRUCT),
            ("MapT", own::MAP),
            ("GobEncoderT", own::OPAQUE),
            ("BinaryMarshalerT", own::OPAQUE),
            ("TextMarshalerT", own::OPAQUE),
        ];
        let types = BTreeMap::from([
            (own::WIRE, fields(&wire)),
            (own::COMMON, fields(&[("Name", id::TEXT), ("Id", id::INT)])),
            (own::ARRAY, fields(&[common, ("Elem", id::INT), ("Len", id::INT)])),
            (own::SLICE, fields(&[common, ("Elem", id::INT)])),
            (own::STRUCT, fields(&[common, ("Field", own::FIELDS)])),
            (own::FIELD, fields(&[("Name", id::TEXT), ("Id", id::INT)])),
            (own::FIELDS, Type::List(own::FIELD)),
            (own::MAP, fields(&[common, ("Key", id::INT), ("Elem", id::INT)])),
            (own::OPAQUE, fields(&[common])),
        ]);
        Self { pending: Vec::new(), types }
    }
}

impl Decoder {
    /// Takes what came.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next value; none before more has come.
    pub(crate) fn next(&mut self) -> Result<Option<Value>, Malformed> {
        loop {
            let mut input = Input { bytes: &self.pending, left: MOST_VALUES };
            let Some(length) = input.length()? else { return Ok(None) };
            let start = self.pending.len() - input.bytes.len();
            if input.bytes.len() < length {
                return Ok(None);
            }
            let end = start + length;
            let message = Input { bytes: &self.pending[start..end], left: MOST_VALUES };
            let taken = self.message(message)?;
            self.pending.drain(..end);
            match taken {
                Taken::Value(value) => return Ok(Some(value)),
                Taken::Type(number, described) => {
                    if self.types.len() >= MOST_TYPES || self.types.insert(number, described).is_some() {
                        return Err(Malformed("a type is described twice, or there are too many"));
                    }
                }
            }
        }
    }

    fn message(&self, mut input: Input<'_>) -> Result<Taken, Malformed> {
        let number = input.int()?;
        let taken = if number < 0 {
            let number = number.checked_neg().filter(|number| *number >= id::FIRST);
            let number = number.ok_or(Malformed("a type has a number that is taken"))?;
            if input.bytes.len() > LONGEST_TYPE {
                return Err(Malformed("a type is described at length"));
            }
            Taken::Type(number, described(&self.value(own::WIRE, &mut input, 0)?)?)
        } else {
            // What is no structure has a zero before it.
            if !matches!(self.types.get(&number), Some(Type::Struct(_))) && input.byte()? != 0 {
                return Err(Malformed("a value has no zero before it"));
            }
            if number < id::FIRST && number > id::TEXT {
                return Err(Malformed("a value of a type that is none"));
            }
            Taken::Value(self.value(number, &mut input, 0)?)
        };
        if input.bytes.is_empty() { Ok(taken) } else { Err(Malformed("there is more in a message than its value")) }
    }

    fn value(&self, number: i64, input: &mut Input<'_>, depth: usize) -> Result<Value, Malformed> {
        if depth > DEEPEST {
            return Err(Malformed("values are too deep inside each other"));
        }
        input.left = input.left.checked_sub(1).ok_or(Malformed("a message has too many values"))?;
        Ok(match number {
            id::BOOL => Value::Bool(input.uint()? != 0),
            id::INT => Value::Int(input.int()?),
            id::UINT => Value::Uint(input.uint()?),
            id::FLOAT => {
                input.uint()?;
                Value::Other
            }
            id::BYTES => Value::Bytes(input.counted()?.to_vec()),
            id::TEXT => {
                let text = std::str::from_utf8(input.counted()?).map_err(|_| Malformed("a text is not UTF-8"))?;
                Value::Text(text.to_owned())
            }
            other => match self.types.get(&other).ok_or(Malformed("a type was not described"))? {
                Type::List(of) => Value::List(self.list(*of, input, depth)?),
                Type::Map(key, of) => {
                    for _ in 0..input.count()? {
                        self.value(*key, input, depth + 1)?;
                        self.value(*of, input, depth + 1)?;
                    }
                    Value::Other
                }
                Type::Opaque => {
                    input.counted()?;
                    Value::Other
                }
                Type::Struct(fields) => Value::Struct(self.fields(fields, input, depth)?),
            },
        })
    }

    fn list(&self, of: i64, input: &mut Input<'_>, depth: usize) -> Result<Vec<Value>, Malformed> {
        // Not as much room as is announced: as much as comes.
        let mut list = Vec::new();
        for _ in 0..input.count()? {
            list.push(self.value(of, input, depth + 1)?);
        }
        Ok(list)
    }

    fn fields(
        &self,
        fields: &[(String, i64)],
        input: &mut Input<'_>,
        depth: usize,
    ) -> Result<BTreeMap<String, Value>, Malformed> {
        let mut found = BTreeMap::new();
        let mut next = 0_usize;
        loop {
            let step = usize::try_from(input.uint()?).map_err(|_| Malformed("there is no such field"))?;
            if step == 0 {
                return Ok(found);
            }
            next = next.checked_add(step).ok_or(Malformed("there is no such field"))?;
            let (name, number) = fields.get(next - 1).ok_or(Malformed("there is no such field"))?;
            found.insert(name.clone(), self.value(*number, input, depth + 1)?);
        }
    }
}

enum Taken {
    Value(Value),
    Type(i64, Type),
}

/// What a description says.
fn described(wire: &Value) -> Result<Type, Malformed> {
    let number = |of: &Value, name| match of.field(name) {
        Some(Value::Int(number)) => Ok(*number),
        _ => Err(Malformed("a description names no type")),
    };
    let of = |name| wire.field(name);
    if let Some(list) = of("ArrayT").or_else(|| of("SliceT")) {
        return Ok(Type::List(number(list, "Elem")?));
    }
    if let Some(map) = of("MapT") {
        return Ok(Type::Map(number(map, "Key")?, number(map, "Elem")?));
    }
    if let Some(shape) = of("StructT") {
        let field = |field: &Value| Ok((field.text("Name")?, number(field, "Id")?));
        return Ok(Type::Struct(shape.list("Field")?.iter().map(field).collect::<Result<_, _>>()?));
    }
    let is_opaque = ["GobEncoderT", "BinaryMarshalerT", "TextMarshalerT"].into_iter().any(|name| of(name).is_some());
    if is_opaque { Ok(Type::Opaque) } else { Err(Malformed("a description of nothing")) }
}

/// What is left of a message, and how many more values it may have.
struct Input<'a> {
    bytes: &'a [u8],
    left: usize,
}

/// A message that ends too early.
const SHORT: Malformed = Malformed("it ends in the middle of a value");

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(SHORT)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// The length before a message; none if it has not come yet.
    fn length(&mut self) -> Result<Option<usize>, Malformed> {
        match self.uint() {
            Err(SHORT) => Ok(None),
            Err(error) => Err(error),
            Ok(length) => match usize::try_from(length) {
                Ok(length) if length <= LONGEST => Ok(Some(length)),
                _ => Err(Malformed("no message is that long")),
            },
        }
    }

    fn uint(&mut self) -> Result<u64, Malformed> {
        let first = self.byte()?;
        if first < 128 {
            return Ok(first.into());
        }
        // A count of bytes, negated.
        let count = usize::from(first.wrapping_neg());
        if count > 8 {
            return Err(Malformed("a number is too long"));
        }
        Ok(self.take(count)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn int(&mut self) -> Result<i64, Malformed> {
        let bits = self.uint()?;
        let magnitude = (bits >> 1).cast_signed();
        Ok(if bits & 1 == 0 { magnitude } else { !magnitude })
    }

    /// How many values follow; each takes a byte at least.
    fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(self.uint()?).map_err(|_| SHORT)?;
        if count > self.bytes.len() { Err(SHORT) } else { Ok(count) }
    }

    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.count()?;
        self.take(count)
    }
}
