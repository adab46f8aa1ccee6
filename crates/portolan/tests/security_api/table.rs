//! All cases, and the page that says what came of them.

use std::any::Any;
use std::fmt::{Display, Write as _};
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Mutex;

use portolan_lab::Lab;

use crate::{inside, internal, local_names, name_server, rights, sockets, texts};

/// An attack, what came of it where nothing keeps it off, and with us.
#[derive(Debug)]
pub(crate) struct Row {
    attack: String,
    elsewhere: String,
    here: String,
}

/// A line of the table.
pub(crate) fn row(attack: impl Display, elsewhere: impl Display, here: impl Display) -> Row {
    Row { attack: attack.to_string(), elsewhere: elsewhere.to_string(), here: here.to_string() }
}

/// The rows of a case, none if it was skipped; or why it failed.
type Outcome = Result<Option<Vec<Row>>, String>;

struct Case {
    name: &'static str,
    title: &'static str,
    run: fn() -> Option<Vec<Row>>,
}

const CASES: [Case; 7] = [
    Case { name: "internal", title: "A container on an internal network wants out", run: internal::case },
    Case { name: "name-server", title: "Clients of the name server that keep it busy", run: name_server::case },
    Case { name: "local-names", title: "Names of containers that could be asked of others", run: local_names::case },
    Case { name: "texts", title: "Names that are paths, options or nonsense", run: texts::case },
    Case { name: "inside", title: "A container with CAP_NET_ADMIN and CAP_NET_RAW", run: inside::case },
    Case {
        name: "sockets",
        title: "Sockets and files of a daemon that was started with umask 000",
        run: sockets::case,
    },
    Case { name: "rights", title: "A daemon that was taken over", run: rights::case },
];

/// Cases that are under way at once: most of their time they wait.
const AT_ONCE: usize = 3;

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}

#[test]
fn attacks_fail() {
    if Lab::or_skip("security").is_none() {
        return;
    }
    let word = std::env::var("PORTOLAN_SECURITY").unwrap_or_default();
    let wanted: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(&word)).collect();
    let next = Mutex::new(wanted.iter());
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = { next.lock().unwrap().next() } {
                    let began = std::time::Instant::now();
                    let outcome = catch_unwind(case.run).map_err(|panic| words(&*panic));
                    eprintln!("{}: {:.1} s", case.name, began.elapsed().as_secs_f32());
                    outcomes.lock().unwrap().push((case.name, outcome));
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    let failed: Vec<_> = outcomes.iter().filter_map(|(name, outcome)| Some((name, outcome.as_ref().err()?))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let Some(table) = table(&outcomes) else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/security-services.md");
    if std::env::var_os("PORTOLAN_BLESS").is_some() {
        fs::write(&path, &table).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&written), lines(&table), "PORTOLAN_BLESS=1 writes the page");
}

/// The page; none unless every case was carried out.
fn table(outcomes: &[(&str, Outcome)]) -> Option<String> {
    let mut text = String::from(
        "# Attacks on Portolan's services, names and privileges\n\n\
         Carried out by `crates/portolan/tests/security_api` with every run of the tests, each where nothing keeps it off and \
         with Portolan. `PORTOLAN_BLESS=1 cargo test -p portolan --test security_api` writes this page. What is promised, and \
         to whom: [SECURITY.md](../SECURITY.md). Attacks by packets: [security.md](security.md).\n",
    );
    for Case { name, title, .. } in &CASES {
        let (_, outcome) = outcomes.iter().find(|(done, _)| done == name)?;
        let rows = outcome.as_ref().ok()?.as_ref()?;
        let _ = write!(
            text,
            "\n## {title}\n\nCase `{name}`.\n\n| attack | without the protection | with Portolan |\n|---|---|---|\n"
        );
        for Row { attack, elsewhere, here } in rows {
            let _ = writeln!(text, "| {attack} | {elsewhere} | {here} |");
        }
    }
    Some(text)
}
