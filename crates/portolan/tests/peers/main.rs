//! The test suites of the programs that this one stands in for, as they are, with this one in their place.
//!
//! `./test peers [SUITE...]` fetches them, of the versions below, and runs this. Each suite has a machine to itself. What comes
//! of every test must be what `docs/peers.md` says; `PORTOLAN_BLESS=1` writes that page, with the reasons that
//! `reasons.txt` has for what does not pass. `PORTOLAN_FILES=WORD...` runs only the files whose name has one of the words. `PORTOLAN_PEERS=theirs` runs the originals in the same place instead, and only
//! prints.

#[path = "../common/mod.rs"]
#[allow(unused_imports, reason = "shared with other tests")]
mod common;
#[path = "../podman/machine.rs"]
#[allow(unused_imports, reason = "shared with the tests of Podman")]
mod machine;
mod page;
mod places;

use std::env;
use std::path::PathBuf;

use page::{Outcome, Section, Verdict};

/// A suite of one of the peers.
#[derive(Debug)]
struct Suite {
    /// By which it is asked for.
    name: &'static str,
    /// What it is, for the page.
    title: &'static str,
    /// Its directory below `target/peers`, where `./test peers` puts it.
    dir: &'static str,
    run: fn(&Suite) -> anyhow::Result<Vec<Outcome>>,
}

const SUITES: [Suite; 4] = [
    Suite { name: "netavark", title: "netavark 2.1.0", dir: "netavark-2.1.0", run: places::netavark },
    Suite { name: "aardvark", title: "aardvark-dns 2.1.0", dir: "aardvark-dns-2.1.0", run: places::aardvark },
    Suite { name: "podman", title: "Podman 4.3.1", dir: "podman-4.3.1", run: places::podman },
    Suite { name: "docker-sdk", title: "the Python SDK of Docker 7.0.0", dir: "docker-7.0.0", run: places::docker_sdk },
];

impl Suite {
    /// Where it is.
    fn dir(&self) -> PathBuf {
        fetched().join(self.dir)
    }
}

/// Where `./test peers` puts what it fetches and builds.
fn fetched() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/peers")
}

/// Whether the originals are to be looked at.
fn theirs() -> bool {
    env::var("PORTOLAN_PEERS").is_ok_and(|value| value == "theirs")
}

#[test]
#[ignore = "takes minutes, and what it runs has to be fetched: ./test peers"]
fn what_the_peers_own_suites_say_of_us() {
    let wanted = env::var("PORTOLAN_SUITES").unwrap_or_default();
    let is_wanted = |suite: &&Suite| wanted.is_empty() || wanted.split_whitespace().any(|word| word == suite.name);
    let mut wrong = Vec::new();
    for suite in SUITES.iter().filter(is_wanted) {
        let outcomes = (suite.run)(suite).unwrap_or_else(|error| panic!("{}: {error:#}", suite.name));
        for file in outcomes.chunk_by(|one, next| one.file == next.file) {
            let found = Section::of(suite.title, file);
            println!("{}", found.text());
            if theirs() {
                continue;
            }
            let say = |what: &str| format!("{}: {what}", suite.name);
            wrong.extend(
                found.unexplained().map(|test| say(&format!("{test}: fails, and `reasons.txt` does not say why"))),
            );
            if env::var_os("PORTOLAN_BLESS").is_some() {
                page::write(&found);
            } else {
                wrong.extend(page::differences(&found).iter().map(|line| say(line)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_failure_has_a_reason_or_is_told() {
    let failed = Outcome { file: "a.bats".into(), test: "b".into(), verdict: Verdict::Failed };
    assert_eq!(Section::of("none", &[failed]).unexplained().count(), 1);
}
