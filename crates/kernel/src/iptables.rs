//! iptables-save(8) and iptables-restore(8), of both families.
//!
//! The one place where a verb starts a program: the kernel's interface to these tables is private to iptables(8), and
//! which of its two backends a host uses is its business.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portolan_engine::{KernelError, Kind};
use portolan_model::Family;

/// Seconds to wait for whoever else is at it (`-w`, iptables-restore(8)).
const PATIENCE: &str = "5";

/// Where programs of the administrator are, if `PATH` does not say so.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The families that the kernel speaks: without IPv6 it has no table for it either.
pub fn families() -> impl Iterator<Item = Family> {
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

/// What the tables of `family` hold, as iptables-save(8) prints it.
///
/// # Errors
/// What the program says, or that there is none.
pub fn save(family: Family) -> Result<String, KernelError> {
    run(family, Verb::Save, "")
}

/// Adds `text` to what the tables of `family` hold, all of it or nothing (iptables-restore(8), `--noflush`).
///
/// # Errors
/// What the program says, or that there is none.
pub fn restore(family: Family, text: &str) -> Result<(), KernelError> {
    run(family, Verb::Restore, text).map(drop)
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
        _ => crate::host::failure(doing(), error.to_string(), error.raw_os_error().unwrap_or(0)),
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
