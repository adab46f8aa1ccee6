//! Asking another plugin (CNI spec, "Plugin delegation"): it gets our environment and our configuration.
//!
//! A plugin that `CNI_PATH` leads to and that is this very program is not started: its work is done here, from the same
//! call and the same text.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portolan_cni::{Call, Code, Config, Error, Success, Verb};
use serde::Deserialize;

/// The plugins that others ask for addresses.
const IPAM: [&str; 3] = ["host-local", "static", "dhcp"];

/// What a plugin says when it fails.
#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// Asks the plugin called `kind` for addresses. Whoever fails after that gives them back with [`run`] and DEL; those of an
/// answer that is no result are given back here.
///
/// # Errors
/// As [`run`], and [`Code::Decoding`] for an answer that is no result.
pub fn addresses(kind: &str, call: &Call, config: &[u8]) -> Result<Success, Error> {
    let program = find(kind, call)?;
    match here(kind, &program, call, Verb::Add, config) {
        Some(answer) => Ok(answer?.map(|(success, _)| success).unwrap_or_default()),
        None => Success::parse(&start(kind, &program, Verb::Add, config)?).inspect_err(|_| {
            if let Err(error) = start(kind, &program, Verb::Del, config) {
                tracing::warn!("addresses are not given back: {error}");
            }
        }),
    }
}

/// Runs the plugin called `kind` for `verb`; what it prints.
///
/// # Errors
/// The plugin's own in its words, [`Code::InvalidConfig`] when there is no such plugin, [`Code::Io`] when it does not start.
pub fn run(kind: &str, call: &Call, verb: Verb, config: &[u8]) -> Result<Vec<u8>, Error> {
    let program = find(kind, call)?;
    match here(kind, &program, call, verb, config) {
        Some(answer) => match answer? {
            Some((success, version)) => success.to_json(version).map(String::into_bytes),
            None => Ok(Vec::new()),
        },
        None => start(kind, &program, verb, config),
    }
}

/// Does the plugin's work here if it is this program; none if it is another.
fn here(kind: &str, program: &Path, call: &Call, verb: Verb, config: &[u8]) -> Option<crate::Answer> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    if !IPAM.contains(&kind) || identity(program)? != identity(Path::new("/proc/self/exe"))? {
        return None;
    }
    let call = Call { verb, ..call.clone() };
    Some(Config::parse_without_ipam(config).and_then(|parsed| crate::run(kind, &call, &parsed, config)))
}

fn start(kind: &str, program: &Path, verb: Verb, config: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |doing: &str, error: std::io::Error| {
        Error::new(Code::Io, format!("{doing} plugin `{}`: {error}", program.display()))
    };
    let mut child = Command::new(program)
        .env("CNI_COMMAND", word(verb))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed("start", error))?;
    // Who closes its end early says why by itself.
    let _ = child.stdin.take().expect("it is piped").write_all(config);
    let output = child.wait_with_output().map_err(|error| failed("wait for", error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    match serde_json::from_slice::<Failure>(&output.stdout) {
        Ok(failure) if !failure.msg.is_empty() => {
            Err(Error::new(code(failure.code), failure.msg).details(failure.details))
        }
        _ => Err(Error::new(Code::Internal, format!("plugin `{kind}` failed without a word: {}", output.status))),
    }
}

/// The plugin's code, if it is the spec's; those from 100 on mean something else with each plugin.
fn code(number: u32) -> Code {
    const OF_THE_SPEC: [Code; 10] = [
        Code::Incompatible,
        Code::Unsupported,
        Code::UnknownContainer,
        Code::Environment,
        Code::Io,
        Code::Decoding,
        Code::InvalidConfig,
        Code::InvalidNetns,
        Code::TryAgain,
        Code::NotAvailable,
    ];
    OF_THE_SPEC.into_iter().find(|code| *code as u32 == number).unwrap_or(Code::Internal)
}

fn word(verb: Verb) -> &'static str {
    match verb {
        Verb::Add => "ADD",
        Verb::Del => "DEL",
        Verb::Check => "CHECK",
        Verb::Gc => "GC",
        Verb::Status => "STATUS",
        Verb::Version => "VERSION",
    }
}

/// Where a plugin is. Its name is no path: whoever writes a configuration does not choose programs elsewhere
/// (CVE-2021-20206).
fn find(kind: &str, call: &Call) -> Result<PathBuf, Error> {
    if kind.contains('/') || kind == "." || kind == ".." {
        return Err(Error::new(Code::InvalidConfig, format!("invalid plugin name {kind:?}")));
    }
    let found = call.path.iter().map(|dir| dir.join(kind)).find(|file| file.is_file());
    found.ok_or_else(|| {
        let dirs: Vec<String> = call.path.iter().map(|dir| dir.display().to_string()).collect();
        Error::new(Code::InvalidConfig, format!("failed to find plugin {kind:?} in path [{}]", dirs.join(" ")))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PAIRS: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/nowhere"),
    ];

    fn call(path: &Path) -> Call {
        let pair = |name: &str| PAIRS.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        Call { path: vec![path.to_owned()], ..Call::read(pair).unwrap().unwrap() }
    }

    /// This test's program is no plugin: what it answers as one, it answers in process.
    #[test]
    fn itself_is_not_started() {
        let dir = std::env::temp_dir().join(format!("portolan-delegate-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        symlink("/proc/self/exe", dir.join("static")).unwrap();
        symlink("/bin/false", dir.join("host-local")).unwrap();
        let call = call(&dir);
        let text = br#"{"cniVersion":"1.0.0","name":"net","type":"bridge",
            "ipam":{"type":"static","addresses":[{"address":"10.1.0.5/24"}]}}"#;
        let found = addresses("static", &call, text);
        let printed = run("static", &call, Verb::Add, text);
        let silent = run("static", &call, Verb::Del, text);
        let refused = run("static", &call, Verb::Add, br#"{"cniVersion":"1.0.0","name":"net"}"#);
        let foreign = run("host-local", &call, Verb::Add, text);
        fs::remove_dir_all(&dir).unwrap();
        let found = found.unwrap();
        assert_eq!(found.ips[0].address.to_string(), "10.1.0.5/24");
        assert_eq!(Success::parse(&printed.unwrap()).unwrap(), found);
        assert_eq!(silent.unwrap(), b"");
        assert_eq!(refused.unwrap_err().msg, "IPAM config missing 'ipam' key");
        assert!(foreign.unwrap_err().msg.starts_with("plugin `host-local` failed without a word"));
    }

    #[test]
    fn a_name_is_no_path() {
        for kind in ["../bridge", "..", "a/b"] {
            assert_eq!(run(kind, &call(Path::new("/bin")), Verb::Add, b"").unwrap_err().code, Code::InvalidConfig);
        }
    }
}
