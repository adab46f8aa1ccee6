use super::*;

/// Bytes of digits, with blanks between them.
fn hex(parts: &[&str]) -> Vec<u8> {
    let digits: Vec<u8> = parts.concat().bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

fn values(bytes: &[u8]) -> Result<Vec<Value>, Malformed> {
    let mut decoder = Decoder::default();
    decoder.feed(bytes);
    let mut values = Vec::new();
    while let Some(value) = decoder.next()? {
        values.push(value);
    }
    Ok(values)
}

/// What Debian's plugin (1.1.1) says for an ADD, but for a shorter configuration.
fn call_of_the_original() -> Vec<u8> {
    hex(&[
        // Length, -65; a structure `Request` (65) of two fields.
        "2f ff81 03 01 01 07 52657175657374 01 ff82 00 01 02",
        // `ServiceMethod`, a string (6).
        "01 0d 536572766963654d6574686f64 01 0c 00",
        // `Seq`, an unsigned number (3).
        "01 03 536571 01 06 00  00 00",
        // Length, 65: field 1, `DHCP.Allocate`; field 2 is zero.
        "12 ff82 01 0d 444843502e416c6c6f63617465 00",
        // Length, -66; a structure `CmdArgs` (66) of six fields.
        "5a ff83 03 01 01 07 436d6441726773 01 ff84 00 01 06",
        // `ContainerID`, `Netns`, `IfName`, `Args`, `Path`: strings.
        "01 0b 436f6e7461696e65724944 01 0c 00  01 05 4e65746e73 01 0c 00  01 06 49664e616d65 01 0c 00",
        "01 04 41726773 01 0c 00  01 04 50617468 01 0c 00",
        // `StdinData`, bytes (5).
        "01 09 537464696e44617461 01 0a 00  00 00",
        // Length, 66: `c1`, `/proc/1/ns/net`, `eth0`, `A=b`, `/bin`, and bytes `{}`.
        "2c ff84 01 02 6331 01 0e 2f70726f632f312f6e732f6e6574 01 04 65746830 01 03 413d62 01 04 2f62696e 01 02 7b7d 00",
    ])
}

/// What Debian's daemon answers.
fn answer_of_the_original() -> Vec<u8> {
    hex(&[
        // `Response` (65): `ServiceMethod`, `Seq`, `Error`.
        "3a ff81 03 01 01 08 526573706f6e7365 01 ff82 00 01 03",
        "01 0d 536572766963654d6574686f64 01 0c 00  01 03 536571 01 06 00  01 05 4572726f72 01 0c 00  00 00",
        "12 ff82 01 0d 444843502e416c6c6f63617465 00",
        // `Result` (66): `CNIVersion`, `Interfaces` (68), `IPs` (71), `Routes` (73), `DNS` (74).
        "51 ff83 03 01 01 06 526573756c74 01 ff84 00 01 05 01 0a 434e4956657273696f6e 01 0c 00",
        "01 0a 496e7465726661636573 01 ff88 00  01 03 495073 01 ff8e 00  01 06 526f75746573 01 ff92 00",
        "01 03 444e53 01 ff94 00  00 00",
        // `[]*types100.Interface` (68) of 67.
        "24 ff87 02 01 01 15 5b5d2a74797065733130302e496e74657266616365 01 ff88 00 01 ff86 00 00",
        // 67, without a name: `Name`, `Mac`, `Sandbox`.
        "29 ff85 03 01 02 ff86 00 01 03 01 04 4e616d65 01 0c 00  01 03 4d6163 01 0c 00  01 07 53616e64626f78 01 0c 00  00 00",
        // `[]*types100.IPConfig` (71) of 69.
        "23 ff8d 02 01 01 14 5b5d2a74797065733130302e4950436f6e666967 01 ff8e 00 01 ff8a 00 00",
        // 69: `Interface`, a number (2); `Address` (70); `Gateway`, bytes.
        "33 ff89 03 01 02 ff8a 00 01 03 01 09 496e74657266616365 01 04 00",
        "01 07 41646472657373 01 ff8c 00  01 07 47617465776179 01 0a 00  00 00",
        // `IPNet` (70): `IP`, `Mask`.
        "23 ff8b 03 01 01 05 49504e6574 01 ff8c 00 01 02 01 02 4950 01 0a 00  01 04 4d61736b 01 0a 00  00 00",
        // `[]*types.Route` (73) of 72: `Dst`, `GW`.
        "1d ff91 02 01 01 0e 5b5d2a74797065732e526f757465 01 ff92 00 01 ff90 00 00",
        "1c ff8f 03 01 02 ff90 00 01 02 01 03 447374 01 ff8c 00  01 02 4757 01 0a 00  00 00",
        // `DNS` (74): `Nameservers`, `Domain`, `Search`, `Options`; `[]string` (75).
        "46 ff93 03 01 01 03 444e53 01 ff94 00 01 04 01 0b 4e616d6573657276657273 01 ff96 00",
        "01 06 446f6d61696e 01 0c 00  01 06 536561726368 01 ff96 00  01 07 4f7074696f6e73 01 ff96 00  00 00",
        "16 ff95 02 01 01 08 5b5d737472696e67 01 ff96 00 01 0c 00 00",
        // 66. Field 3, one: field 2, an `IPNet` of 10.0.1.119 and 255.255.255.0; field 3, 10.0.1.2.
        "33 ff84 03 01 02 01 04 0a000177 01 04 ffffff00 00 01 04 0a000102 00",
        // Field 4, one: 10.9.0.0 and 255.255.0.0, by 10.0.1.7. Field 5, of which nothing is set.
        "01 01 01 01 04 0a090000 01 04 ffff0000 00 01 04 0a000107 00  01 00 00",
    ])
}

fn arguments() -> Arguments {
    Arguments {
        container: "c1".to_owned(),
        netns: "/proc/1/ns/net".to_owned(),
        ifname: "eth0".to_owned(),
        args: "A=b".to_owned(),
        path: "/bin".to_owned(),
        text: b"{}".to_vec(),
    }
}

fn lease() -> Success {
    let ip =
        Ip { interface: None, address: "10.0.1.119/24".parse().unwrap(), gateway: Some("10.0.1.2".parse().unwrap()) };
    let route = Route::new("10.9.0.0/16".parse().unwrap(), Some("10.0.1.7".parse().unwrap()));
    Success { ips: vec![ip], routes: vec![route], ..Success::default() }
}

#[test]
fn calls_are_the_originals_to_the_byte() {
    let original = call_of_the_original();
    let [head, body] = values(&original).unwrap().try_into().unwrap();
    let request = Request::read(&head).unwrap();
    assert_eq!(request, Request { method: ALLOCATE.to_owned(), number: 0 });
    assert_eq!(Arguments::read(&body).unwrap(), arguments());
    assert_eq!(request.encode(&arguments(), &mut Encoder::default()), original);
}

#[test]
fn an_answer_of_the_original_is_read() {
    let [head, body] = values(&answer_of_the_original()).unwrap().try_into().unwrap();
    assert_eq!(
        (head.text("ServiceMethod"), head.uint("Seq"), head.text("Error")),
        (Ok(ALLOCATE.to_owned()), Ok(0), Ok(String::new()))
    );
    assert_eq!(success(&body).unwrap(), lease());
}

#[test]
fn answers_are_read_again_and_described_once() {
    let request = Request { method: ALLOCATE.to_owned(), number: 7 };
    let on_link = Route { scope: Some(253), ..Route::new("10.8.0.0/16".parse().unwrap(), Some([0, 0, 0, 0].into())) };
    let mut whole = lease();
    whole.routes.push(on_link);
    let mut encoder = Encoder::default();
    let first = request.answer(Ok(Some(whole.clone())), &mut encoder);
    let second = request.answer(Ok(Some(whole.clone())), &mut encoder);
    assert!(second.len() < first.len() / 2);
    let refused = request.answer(Err("no more tries".to_owned()), &mut encoder);
    let nothing = request.answer(Ok(None), &mut encoder);
    let values = values(&[first, second, refused, nothing].concat()).unwrap();
    assert_eq!(values.len(), 8);
    for body in [&values[1], &values[3]] {
        assert_eq!(success(body).unwrap(), whole);
    }
    assert_eq!(values[4].text("Error").unwrap(), "no more tries");
    assert_eq!((values[6].text("Error").unwrap(), &values[7]), (String::new(), &Value::of([])));
}

#[test]
fn numbers_have_as_many_bytes_as_they_need() {
    let request = |number| Request { method: String::new(), number };
    for number in [0, 1, 127, 128, 255, 256, 1 << 32, u64::MAX] {
        let bytes = request(number).encode(&Arguments::default(), &mut Encoder::default());
        assert_eq!(Request::read(&values(&bytes).unwrap()[0]).unwrap().number, number);
    }
}

#[test]
fn what_came_in_pieces_is_one() {
    let original = call_of_the_original();
    let mut decoder = Decoder::default();
    let mut seen = 0;
    for byte in &original {
        decoder.feed(&[*byte]);
        seen += usize::from(decoder.next().unwrap().is_some());
    }
    assert_eq!(seen, 2);
}

#[test]
fn types_of_no_message_of_ours_are_skipped() {
    let values = values(&hex(&[
        // 70, a structure: `A` (71), `B` (73), `C`, a fraction (4), `D`, a number (2).
        "26ff8b030102ff8c00010401014101ff8e0001014201ff92000101430108000101440104000000",
        // 71, a map of strings to 72; 72, a list of numbers; 73, bytes of its own making.
        "0fff8d040102ff8e00010c01ff9000000cff8f020102ff9000010400000aff91050102ff92000000",
        // 70: `k` and 1, -2; two bytes; 1; -7.
        "14ff8c0101016b0202030102abcd01fef03f010d00",
    ]));
    let skipped = Value::of([("A", Value::Other), ("B", Value::Other), ("C", Value::Other), ("D", Value::Int(-7))]);
    assert_eq!(values.unwrap(), [skipped]);
}

#[test]
fn what_is_malformed_is_refused() {
    let named = |bytes: &[&str]| values(&hex(bytes)).unwrap_err().0;
    let request = "2f ff81 03 01 01 07 52657175657374 01 ff82 00 01 02 01 0d 536572766963654d6574686f64 01 0c 00 01 03 536571 01 06 00 00 00";
    for (bytes, text) in [
        (vec!["fc ffffffff"], "no message is that long"),
        (vec!["f0"], "a number is too long"),
        (vec!["03 ff82 01"], "a value has no zero before it"),
        (vec!["02 ff82"], "it ends in the middle of a value"),
        (vec!["03 20 00 00"], "a value of a type that is none"),
        (vec![request, "04 ff82 09 00"], "there is no such field"),
        (vec![request, "04 ff82 00 00"], "there is more in a message than its value"),
        (vec![request, "05 ff82 01 7f 41"], "it ends in the middle of a value"),
        (vec![request, "06 ff82 01 01 ff 00"], "a text is not UTF-8"),
        (vec![request, request], "a type is described twice, or there are too many"),
        (vec!["04 1f 03 00 00"], "a type has a number that is taken"),
        (vec!["03 ff81 00"], "a description of nothing"),
    ] {
        assert_eq!(named(&bytes), text, "{bytes:?}");
    }
}

/// A type that has itself inside would be as deep as the message is long.
#[test]
fn a_type_within_itself_has_an_end() {
    // 65: a list of 65.
    let list = "0d ff81 02 01 02 ff82 00 01 ff82 00 00";
    let deep: String = std::iter::repeat_n("01", 100).collect();
    assert_eq!(
        values(&hex(&[list, "68 ff82 00", &deep, "00"])).unwrap_err().0,
        "values are too deep inside each other"
    );
    // One message with more values than any of ours: a list of numbers.
    let numbers = hex(&["0c ff81 02 01 02 ff82 00 01 06 00 00"]);
    let count = 100_000_u32;
    let mut message = hex(&["ff82 00 fd"]);
    message.extend(&count.to_be_bytes()[1..]);
    message.resize(message.len() + count as usize, 0);
    let mut whole = numbers;
    whole.push(0xfd);
    whole.extend(&u32::try_from(message.len()).unwrap().to_be_bytes()[1..]);
    whole.extend(message);
    assert_eq!(values(&whole).unwrap_err().0, "a message has too many values");
}

/// Whatever is changed in what the originals say, it is read or refused.
#[test]
fn changed_bytes_are_read_or_refused() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut refused = 0;
    for original in [call_of_the_original(), answer_of_the_original()] {
        for _ in 0..20_000 {
            let mut bytes = original.clone();
            for _ in 0..=next() % 4 {
                let at = usize::try_from(next()).unwrap() % bytes.len();
                match next() % 3 {
                    0 => bytes[at] = next().to_le_bytes()[0],
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, next().to_le_bytes()[0]),
                }
            }
            match values(&bytes) {
                Ok(values) => {
                    drop(values.iter().map(|value| (Arguments::read(value), success(value))).collect::<Vec<_>>())
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}
