//! iptables-save(8) and iptables-restore(8), of both families.
//!
//! The one place where a verb starts a program: the kernel's interface to these tables is private to iptables(8), and
//! which of its two backends a host uses is its business.

use std::collections::BTreeSet;
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

/// The programs of one backend, by what their names begin with after `ip` or `ip6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant(&'static str);

impl Variant {
    /// The one that `iptables` is on this host.
    pub const USUAL: Self = Self("tables");
    const ALL: [Self; 3] = [Self::USUAL, Self("tables-nft"), Self("tables-legacy")];

    /// The name of the program without a suffix: `ip6tables-legacy`.
    pub fn program(self, family: Family) -> String {
        format!("{}{}", if family == Family::V4 { "ip" } else { "ip6" }, self.0)
    }

    /// Those that are installed for `family`, each backend once: a host may have rules in both.
    pub fn installed(family: Family) -> Vec<Self> {
        let mut files = BTreeSet::new();
        let is_new = |variant: &Self| {
            let file = std::fs::canonicalize(locate(&format!("{}-save", variant.program(family))));
            file.is_ok_and(|file| files.insert(file))
        };
        Self::ALL.into_iter().filter(is_new).collect()
    }

    /// [`save`], of this backend.
    ///
    /// # Errors
    /// What the program says, or that there is none.
    pub fn save(self, family: Family) -> Result<String, KernelError> {
        run(&format!("{}-save", self.program(family)), &[], "")
    }

    /// [`restore`], of this backend.
    ///
    /// # Errors
    /// What the program says, or that there is none.
    pub fn restore(self, family: Family, text: &str) -> Result<(), KernelError> {
        run(&format!("{}-restore", self.program(family)), &["--noflush", "-w", PATIENCE], text).map(drop)
    }
}

/// What the tables of `family` hold, as iptables-save(8) prints it.
///
/// # Errors
/// What the program says, or that there is none.
pub fn save(family: Family) -> Result<String, KernelError> {
    Variant::USUAL.save(family)
}

/// Adds `text` to what the tables of `family` hold, all of it or nothing (iptables-restore(8), `--noflush`).
///
/// # Errors
/// What the program says, or that there is none.
pub fn restore(family: Family, text: &str) -> Result<(), KernelError> {
    Variant::USUAL.restore(family, text)
}

/// Runs a program with `input`; what it prints.
fn run(name: &str, args: &[&str], input: &str) -> Result<String, KernelError> {
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
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
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
pub fn locate(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.exists()).unwrap_or_else(|| PathBuf::from(name))
}
