//! The fuzz targets over their corpus and random changes of it, a bounded number of times and the same each time.
//!
//! `docs/fuzzing.md` says what they are; `PORTOLAN_BLESS=1` writes it, out of the targets and of `fuzz/runs.txt`.
//! `PORTOLAN_HOSTILE=WORD` runs those whose name has it, `PORTOLAN_CHANGES=NUMBER` tries so many changes of each.

#[path = "../../../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use targets::{ALL, Target};

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }
}

fn directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name)
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let files =
        fs::read_dir(directory(target)).unwrap_or_else(|error| panic!("a corpus of `{}`: {error}", target.name));
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "a corpus of `{}`", target.name);
    files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

/// Says which input it was, if the check of it panics.
struct Under<'a>(&'a str, &'a [u8]);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target `{}`, input: {}", self.0, self.1.escape_ascii());
        }
    }
}

fn run(target: &Target) {
    let check = |bytes: &[u8]| {
        let _under = Under(target.name, bytes);
        (target.check)(bytes);
    };
    let corpus = corpus(target);
    for (file, bytes) in &corpus {
        let _under = Under(file.to_str().unwrap(), b"");
        check(bytes);
    }
    let changes = std::env::var("PORTOLAN_CHANGES").ok().map(|number| number.parse().unwrap());
    let mut random = Random(0x0dd_ba11);
    for _ in 0..changes.unwrap_or(target.changes) {
        check(&changed(&corpus, &mut random));
    }
}

/// A file of the corpus, with some of it changed.
fn changed(corpus: &[(PathBuf, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    const NUMBERS: [u8; 10] = [0, 1, 12, 63, 64, 0x7f, 0x80, 0xc0, 0xfe, 0xff];
    const WORDS: [&str; 20] = [
        "null",
        "[]",
        "{}",
        "\"\"",
        "-1",
        "0",
        "65536",
        "4294967296",
        "18446744073709551615",
        "9223372036854775807",
        "1e99",
        "\\u0000",
        "::",
        "0.0.0.0/0",
        "::/0",
        "255.255.255.255",
        "../",
        "\u{1b}[2J",
        "\n",
        "%",
    ];
    let mut bytes = corpus[random.below(corpus.len())].1.clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.below(256) as u8),
            2 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            // What means something: lengths, pointers, counts.
            3 if !bytes.is_empty() => bytes[at] = NUMBERS[random.below(NUMBERS.len())],
            4 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].bytes())),
            // A number, a text or another value of JSON's becomes another.
            5 => {
                let is_end = |byte: &u8| b",:]}\"\n ".contains(byte);
                let end = bytes[at.min(bytes.len())..].iter().position(is_end).map_or(bytes.len(), |end| at + end);
                drop(bytes.splice(at..end, WORDS[random.below(WORDS.len())].bytes()));
            }
            6 if bytes.len() > 1 => {
                let end = at + random.below((bytes.len() - at).min(32));
                bytes.drain(at..end);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())].1;
                bytes.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
    }
    bytes
}

/// Each is a thread of the test's, as many at a time as there are processors.
fn run_those(wanted: impl Fn(&str) -> bool) {
    let word = std::env::var("PORTOLAN_HOSTILE").unwrap_or_default();
    for target in ALL.iter().filter(|target| wanted(target.name) && target.name.contains(&word)) {
        let start = Instant::now();
        run(target);
        println!("{:16} {:6} ms", target.name, start.elapsed().as_millis());
    }
}

fn is_slow(name: &str) -> bool {
    matches!(name, "docker_plugin" | "docker_api" | "store_file" | "store_rows" | "leases")
}

#[test]
fn formats() {
    run_those(|name| !is_slow(name));
}

#[test]
fn over_an_engine() {
    run_those(is_slow);
}

/// The changes of rows do bite, and one that cannot be is refused by its file's name.
#[test]
fn a_row_that_cannot_be_names_the_file() {
    let refusal = |rows: &str| targets::store::refusal(rows.as_bytes());
    assert_eq!(refusal(""), None);
    let ports = |container: &str| {
        let publication = r#""protocol":"tcp","host_ip":null,"host":"8080-8081""#;
        format!(r#"publication body {{"publication":{{{publication},"container":"{container}"}},"phase":"settled"}}"#)
    };
    assert_eq!(refusal(&ports("80-81")), None);
    for rows in [ports("80-85").as_str(), "network body null", "endpoint body +{\"mac\":\"x\"}", "lease address 7"] {
        let is_about_types = rows.starts_with("lease");
        let said = refusal(rows);
        // The tables are strict: a number is no blob, and nothing changes.
        assert_eq!(said.is_none(), is_about_types, "{rows}: {said:?}");
        assert!(said.is_none_or(|said| said.contains("state.db")), "{rows}");
    }
}

/// What is honest is taken: the properties are not of nothing.
#[test]
fn what_servers_and_firewalld_say_is_understood() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
        fs::read(path).unwrap()
    };
    let granted = portolan_dhcp::foreign::granted4(serde_json::from_slice(&read("dhcp_lease/routes")).unwrap());
    let [lease, _] = granted.unwrap();
    assert_eq!((lease.routes.len(), lease.gateway), (1, Some([192, 0, 2, 8].into())));
    let (said, later) = serde_json::from_slice(&read("dhcp_lease/six")).unwrap();
    assert!(matches!(portolan_dhcp::foreign::granted6(said, later), Some((_, Some(_)))));
    assert_eq!(portolan_firewalld::foreign::rules(&read("firewalld/policy")).map(|rules| rules.len()), Some(2));
    let settings = ["firewalld/yes", "firewalld/no"].map(|name| portolan_firewalld::foreign::is_yes(&read(name)));
    assert_eq!(settings, [Some(true), Some(false)]);
    assert_eq!(portolan_plugins::foreign::greeting(&read("greeting/go")), (27, None));
}

/// A line for each target, of `fuzz/runs.txt`: name, executions, and what was found.
fn runs() -> Vec<(String, u64, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/runs.txt");
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (name, count) = (words.next().unwrap().to_owned(), words.next().unwrap().parse().unwrap());
        (name, count, words.next().unwrap_or_default().to_owned())
    };
    fs::read_to_string(path).unwrap().lines().map(line).collect()
}

fn page() -> String {
    let runs = runs();
    assert!(runs.iter().map(|(name, ..)| name.as_str()).eq(ALL.iter().map(|target| target.name)), "fuzz/runs.txt");
    let mut page = String::from(
        "# Fuzzing\n\nEverything that others write is taken apart by functions that a fuzzer can call. Each target has properties, not only \
         that nothing\npanics; the same functions run in CI, over their corpus and a bounded number of random changes of it\n\
         (`crates/resident/tests/hostile.rs`). `./test fuzz [SECONDS [TARGET...]]` searches with libFuzzer, without a sanitizer but with\n\
         overflow checks and debug assertions, and adds its executions to `fuzz/runs.txt`, of which `PORTOLAN_BLESS=1 cargo test -p \
         portolan-resident --test\nhostile` makes this page.\n\n\
         | Target | Takes apart | What must hold | Corpus | Executions | Found |\n|---|---|---|---|---|---|\n",
    );
    for (target, (_, count, found)) in ALL.iter().zip(&runs) {
        let corpus = corpus(target);
        let bytes: usize = corpus.iter().map(|(_, bytes)| bytes.len()).sum();
        let Target { name, what, properties, .. } = target;
        let found = if found.is_empty() { "–" } else { found };
        page += &format!(
            "| `{name}` | {what} | {properties} | {} files, {bytes} bytes | {count} | {found} |\n",
            corpus.len()
        );
    }
    let total: u64 = runs.iter().map(|(_, count, _)| count).sum();
    page + &format!("\nTogether: {total} executions.\n")
}

#[test]
fn the_page() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/fuzzing.md");
    let page = page();
    if std::env::var_os("PORTOLAN_BLESS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "docs/fuzzing.md is not what PORTOLAN_BLESS=1 writes:\n{page}");
}
