//! Asking another plugin (CNI spec, "Plugin delegation"): it gets our environment and our configuration.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use portolan_cni::{Call, Code, Error, Verb};
use serde::Deserialize;

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

/// Runs the plugin called `kind` for `verb`; what it prints.
///
/// # Errors
/// The plugin's own, [`Code::InvalidConfig`] when there is no such plugin, [`Code::Io`] when it does not start.
pub fn run(kind: &str, call: &Call, verb: Verb, config: &[u8]) -> Result<Vec<u8>, Error> {
    let program = find(kind, call)?;
    let failed = |doing: &str, error: std::io::Error| {
        Error::new(Code::Io, format!("{doing} plugin `{}`: {error}", program.display()))
    };
    let mut child = Command::new(&program)
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
            let code = if failure.code == Code::TryAgain as u32 { Code::TryAgain } else { Code::Internal };
            Err(Error::new(code, format!("plugin `{kind}`: {}", failure.msg)).details(failure.details))
        }
        _ => Err(Error::new(Code::Internal, format!("plugin `{kind}` failed without a word: {}", output.status))),
    }
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
