//! The driver `iptables`: what [`portolan_plan::iptables`] writes, given to iptables-restore(8) and ip6tables-restore(8).
//!
//! The one place where a verb starts a program: the kernel's interface to these tables is private to iptables(8), and
//! which of its two backends a host uses is its business. A verb starts one for each family it has rules of.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portolan_engine::{KernelError, Kind};
use portolan_model::Family;
use portolan_plan::iptables::{self, Found, Saved};
use portolan_plan::{Element, Firewall, Object, Objects, Ruleset, Step};

use super::apply::Mode;
use super::changes::Changes;

/// Seconds to wait for whoever else is at it (`-w`, iptables-restore(8)).
const PATIENCE: &str = "5";

/// Where programs of the administrator are, if `PATH` does not say so.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The families that the kernel speaks: without IPv6 it has no table for it either.
fn families() -> impl Iterator<Item = Family> {
    let has_ipv6 = Path::new("/proc/net/if_inet6").exists();
    Family::ALL.into_iter().filter(move |family| *family == Family::V4 || has_ipv6)
}

const fn program(family: Family, verb: Verb) -> &'static str {
    match (family, verb) {
        (Family::V4, Verb::Save) => "iptables-save",
        (Family::V6, Verb::Save) => "ip6tables-save",
        (Family::V4, Verb::Restore) => "iptables-restore",
        (Family::V6, Verb::Restore) => "ip6tables-restore",
    }
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Save,
    Restore,
}

/// Runs a program with `input`; what it prints.
fn run(family: Family, verb: Verb, input: &str) -> Result<String, KernelError> {
    let name = program(family, verb);
    let doing = || format!("run `{name}`");
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => KernelError {
            doing: doing(),
            reason: "there is no such program".to_owned(),
            errno: 0,
            kind: Kind::Unsupported,
            hint: Some(
                "install iptables, which `iptables-restore` and `iptables-save` are part of, or choose another \
                 --firewall-driver"
                    .to_owned(),
            ),
            about: None,
        },
        _ => super::failure(doing(), error.to_string(), error.raw_os_error().unwrap_or(0)),
    };
    let mut command = Command::new(locate(name));
    if matches!(verb, Verb::Restore) {
        command.args(["--noflush", "-w", PATIENCE]);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    // Who closes its end early says why by itself.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // RESOURCE_PROBLEM (include/xtables.h): among others, that somebody holds the lock.
    let kind = if output.status.code() == Some(4) { Kind::Transient } else { Kind::Bug };
    let first = said.lines().map(str::trim).find(|line| !line.is_empty() && !line.ends_with(':'));
    Err(KernelError {
        doing: doing(),
        reason: first.map_or_else(|| output.status.to_string(), str::to_owned),
        errno: 0,
        kind,
        hint: Some("`portolan verify` shows what is missing, `portolan reconcile` puts it back".to_owned()),
        about: None,
    })
}

/// Where a program is: of verbs that people run, `PATH` may lack the administrator's directories.
fn locate(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.exists()).unwrap_or_else(|| PathBuf::from(name))
}

/// What each family's tables hold.
fn saved() -> Result<BTreeMap<Family, Saved>, KernelError> {
    families().map(|family| Ok((family, Saved::parse(&run(family, Verb::Save, "")?)))).collect()
}

/// Reads our rules.
pub(super) fn observe(firewall: &Firewall) -> Result<Objects, KernelError> {
    let ruleset = |name: String| Object::Ruleset(Ruleset { firewall: Firewall { name, ..firewall.clone() } });
    Ok(match iptables::find(firewall, &saved()?) {
        Found::Nothing => Objects::new(),
        Found::Whole(elements) => {
            elements.into_iter().map(Object::Element).chain([ruleset(firewall.name.clone())]).collect()
        }
        // What somebody changed is made anew with all its elements, so it counts as another one.
        Found::Damaged => [ruleset(format!("{} (damaged)", firewall.name))].into_iter().collect(),
    })
}

/// Takes `steps`, all of them about rules, in one batch for each family.
pub(super) fn apply(firewall: &Firewall, steps: &[Step], mode: Mode) -> Result<(), KernelError> {
    let Changes { gone, new, makes, unmakes } = Changes::of(steps);
    if let Some(name) = new.iter().find_map(|element| iptables::unspeakable(element)) {
        return Err(KernelError {
            doing: format!("write rules for interface `{name}`"),
            reason: "iptables would take its name for a pattern".to_owned(),
            errno: 0,
            kind: Kind::Unsupported,
            hint: Some("rename the interface, or choose another --firewall-driver".to_owned()),
            about: None,
        });
    }
    if makes {
        each(|family| Ok(Some(iptables::create(firewall, family, &save(family)?, &new))))
    } else if unmakes {
        each(|family| Ok(iptables::delete(firewall, &save(family)?)))
    } else {
        change(firewall, &gone, &new, mode)
    }
}

fn save(family: Family) -> Result<Saved, KernelError> {
    Ok(Saved::parse(&run(family, Verb::Save, "")?))
}

/// Gives each family its batch, if it has one.
fn each(batch: impl Fn(Family) -> Result<Option<String>, KernelError>) -> Result<(), KernelError> {
    for family in families() {
        if let Some(text) = batch(family)? {
            run(family, Verb::Restore, &text)?;
        }
    }
    Ok(())
}

/// Removes and adds elements: at once where all is as expected, after a look where it need not be.
fn change(firewall: &Firewall, gone: &[&Element], new: &[&Element], mode: Mode) -> Result<(), KernelError> {
    let expected = || each(|family| Ok(iptables::change(firewall, family, gone, new)));
    let mend = || each(|family| Ok(iptables::mend(firewall, family, &save(family)?, gone, new)));
    match mode {
        // What is there already would be there twice.
        Mode::Lenient if !new.is_empty() => mend(),
        Mode::Lenient => expected().or_else(|_| mend()),
        Mode::Strict => expected().map_err(|error| match saved().map(|saved| iptables::find(firewall, &saved)) {
            // Somebody took our chains, or part of them: reconciling helps.
            Ok(Found::Nothing | Found::Damaged) => KernelError { errno: 0, kind: Kind::NotFound, ..error },
            Ok(Found::Whole(_)) | Err(_) => error,
        }),
    }
}
