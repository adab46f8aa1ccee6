//! External drivers: programs in the plugin directories, called by the name of the driver (netavark's plugin API 1.0.0).

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::wire::{Network, PluginInput, StatusBlock};

/// No answer of a plugin is longer.
const LONGEST: u64 = 16 << 20;

/// The program for `driver`: the first executable file of that name.
pub fn find(directories: &[PathBuf], driver: &str) -> Option<PathBuf> {
    // A driver is a file's name, not a path.
    if driver.is_empty() || driver.contains('/') || driver == ".." || driver == "." {
        return None;
    }
    directories
        .iter()
        .map(|directory| directory.join(driver))
        .find(|path| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0))
}

/// Has a plugin set a network up (`verb` `setup`) or take it down (`teardown`); what it answers to the first.
///
/// # Errors
/// Its own words, or why it gave none.
pub fn run(program: &Path, verb: &str, netns: &Path, input: &PluginInput<'_>) -> Result<Option<StatusBlock>, Failure> {
    let outer = || format!("plugin {:?} failed", program.file_name().unwrap_or_default());
    let answer = execute(program, &[OsStr::new(verb), netns.as_os_str()], input).map_err(|f| f.within(outer()))?;
    if verb != "setup" {
        return Ok(None);
    }
    let status = serde_json::from_slice(&answer);
    status.map(Some).map_err(|error| Failure::new(format!("JSON Decoding error: {error}")).within(outer()))
}

/// Has a plugin complete a new network. It may not change what the network is called, nor whose it is.
///
/// # Errors
/// As for [`run`]; what it changed.
pub fn run_create(program: &Path, network: &Network) -> Result<Network, Failure> {
    let answer = execute(program, &[OsStr::new("create")], network)?;
    let changed: Network =
        serde_json::from_slice(&answer).map_err(|error| Failure::new(format!("JSON Decoding error: {error}")))?;
    let invalid = |what| Err(Failure::new(format!("{} plugin invalid result: changed network {what}", network.driver)));
    if changed.name != network.name {
        return invalid("name");
    }
    if changed.id != network.id {
        return invalid("ID");
    }
    if changed.driver != network.driver {
        return invalid("driver");
    }
    Ok(changed)
}

fn execute<T: Serialize>(program: &Path, arguments: &[&OsStr], input: &T) -> Result<Vec<u8>, Failure> {
    #[derive(Deserialize)]
    struct Object {
        error: String,
    }
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|error| Failure::io(&error))?;
    let text = serde_json::to_vec(input).expect("plain values serialise");
    let mut stdin = child.stdin.take().expect("it was asked for");
    // A plugin may answer before it has read everything, so that both sides would wait for room.
    let writer = std::thread::spawn(move || stdin.write_all(&text));
    let mut answer = Vec::new();
    let read = child.stdout.take().expect("it was asked for").take(LONGEST).read_to_end(&mut answer);
    let status = child.wait().map_err(|error| Failure::io(&error).within("wait for plugin to exit"))?;
    let written = writer.join().expect("writing does not panic");
    let Some(code) = status.code() else {
        return Err(Failure::new(format!("plugin {:?} killed by signal", program.file_name().unwrap_or_default())));
    };
    read.map_err(|error| Failure::io(&error).within("read into buffer"))?;
    if code != 0 {
        return Err(Failure::new(match serde_json::from_slice::<Object>(&answer) {
            Ok(object) => format!("exit code {code}, message: {}", object.error),
            Err(error) => format!("exit code {code}, parse error: {error}"),
        }));
    }
    match written {
        // It succeeded without reading all.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::io(&error)),
        _ => Ok(answer),
    }
}
