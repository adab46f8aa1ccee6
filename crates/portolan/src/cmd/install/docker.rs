//! `portolan install docker`

mod daemon_json;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{remove, this_program, write};
use crate::cli::DEFAULT_ROOT;
use crate::cmd::daemon::DOCKER_SOCKET;
use crate::context::Context;
use crate::failure::Refused;
use crate::output;
use daemon_json::DaemonJson;

/// Make Portolan a network driver of Docker
///
/// Writes a unit of systemd's, `portolan-docker.service`, that runs `portolan daemon --docker` and is started before Docker:
/// then `docker network create -d portolan` makes networks. Docker looks for its socket in /run/docker/plugins; where it is
/// to be elsewhere (--socket), `plugins/portolan.spec` among Docker's configuration says so.
///
/// With --default-network it also adds `"bridge": "none"` to Docker's `daemon.json`: Docker makes no network `bridge` any
/// more, and what is not put on a network has none. Everything else in that file stays as it is, to the letter.
///
/// Nothing is started or stopped: the command says what to run. Before you go back, remove Docker's networks of this driver.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan install docker
  systemctl enable --now portolan-docker.service
  portolan install docker --default-network      and no network of Docker's own
  portolan install docker --uninstall            back, daemon.json included
  portolan install docker --socket /run/portolan/docker-plugin.sock")]
pub(crate) struct Args {
    /// Take away what was installed
    #[arg(long)]
    uninstall: bool,
    /// Have Docker make no default network of its own
    #[arg(long, conflicts_with = "uninstall")]
    default_network: bool,
    /// Where Docker calls the daemon
    #[arg(long, value_name = "SOCKET", default_value = DOCKER_SOCKET)]
    socket: PathBuf,
    /// Directory of units
    #[arg(long, value_name = "DIR", default_value = UNITS)]
    units: PathBuf,
    /// Directory of Docker's configuration
    #[arg(long, value_name = "DIR", default_value = CONFIG)]
    config: PathBuf,
}

/// Where an administrator's units are (systemd.unit(5)).
const UNITS: &str = "/etc/systemd/system";
/// Where Docker has its configuration.
const CONFIG: &str = "/etc/docker";
/// The unit's name, and the text of it for a program in its usual place.
const UNIT: &str = "portolan-docker.service";
const TEXT: &str = include_str!("../../../../../packaging/systemd/portolan-docker.service");
/// In [`TEXT`], what differs by where things are.
const COMMAND: &str = "/usr/local/bin/portolan daemon --docker";
/// The first line of the unit, by which it is known to be ours.
const MARK: &str = "# Written by `portolan install docker`.";
/// Who has the unit started; `systemctl enable` links it there.
const WANTED_BY: [&str; 2] = ["multi-user.target.wants", "docker.service.wants"];

/// What was done, for `--json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Done {
    installed: bool,
    unit: PathBuf,
    socket: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon_json: Option<PathBuf>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let at = |path: &Path| std::path::absolute(path).with_context(|| format!("find `{}`", path.display()));
        let (unit, socket, config) = (at(&self.units)?.join(UNIT), at(&self.socket)?, at(&self.config)?);
        let spec = Spec::new(&config, &unit)?;
        let daemon_json = DaemonJson::new(&config);
        let is_elsewhere = socket != Path::new(DOCKER_SOCKET);
        let done = if self.uninstall {
            // All that can be refused comes first.
            let restored = daemon_json.without_ours()?;
            let spec = spec.is_ours.then_some(&spec.path);
            spec.map_or(Ok(()), |path| remove(path)).context("remove the file that leads Docker to the socket")?;
            uninstall_unit(&unit)?;
            let daemon_json = restored.map(|restored| restored.carry_out()).transpose()?;
            Done { installed: false, unit, socket, spec: spec.cloned(), daemon_json }
        } else {
            let text = unit_text(context, &socket)?;
            let wanted = self.default_network.then(|| daemon_json.with_ours()).transpose()?;
            spec.refuse_strangers(is_elsewhere)?;
            for directory in [unit.parent(), is_elsewhere.then(|| spec.path.parent()).flatten()].into_iter().flatten() {
                fs::create_dir_all(directory).with_context(|| format!("create `{}`", directory.display()))?;
            }
            write(&unit, &text)?;
            if is_elsewhere {
                write(&spec.path, &format!("unix://{}\n", socket.display()))?;
            } else if spec.is_ours {
                remove(&spec.path).with_context(|| format!("remove `{}`", spec.path.display()))?;
            }
            let daemon_json = wanted.flatten().map(|wanted| wanted.carry_out()).transpose()?;
            Done { installed: true, unit, socket, spec: is_elsewhere.then_some(spec.path), daemon_json }
        };
        if context.json {
            output::json(&done)?;
        } else {
            output::print(&self.said(&done))?;
        }
        Ok(0)
    }

    fn said(&self, done: &Done) -> String {
        let unit = done.unit.display();
        let mut text = if done.installed {
            format!(
                "Docker finds Portolan at `{}`, which `{unit}` serves.\nStart it: systemctl enable --now {UNIT}\nThen: docker network create -d portolan NAME\n",
                done.socket.display()
            )
        } else {
            format!(
                "Docker finds no Portolan any more: `{unit}` is gone.\nTo have systemd know: systemctl daemon-reload\n"
            )
        };
        if let Some(file) = done.daemon_json.as_ref().map(|file| file.display()) {
            let what = match done.installed {
                true => format!("Docker makes no network of its own from its next start on: `{file}` says so."),
                false => format!("Docker makes its own network again from its next start on: `{file}` is as it was."),
            };
            text.push_str(&format!("{what}\nStart it anew: systemctl restart docker.service\n"));
        }
        if done.installed {
            let place = |flag: &str, path: &Path, usual: &str| match path == Path::new(usual) {
                true => String::new(),
                false => format!(" --{flag} {}", path.display()),
            };
            text.push_str(&format!(
                "Back: systemctl disable --now {UNIT}; portolan install docker --uninstall{}{}\n",
                place("units", &self.units, UNITS),
                place("config", &self.config, CONFIG)
            ));
        }
        text
    }
}

/// The unit for this program and this root; refused if one of somebody else's is in its place.
fn unit_text(context: &Context, socket: &Path) -> Result<String> {
    let mut command = vec![this_program()?, "daemon".into()];
    if context.root != Path::new(DEFAULT_ROOT) {
        command.extend(["--root".into(), context.root.clone()]);
    }
    command.push("--docker".into());
    if socket != Path::new(DOCKER_SOCKET) {
        command.push(socket.to_owned());
    }
    let words: Vec<String> = command.iter().map(|word| unit_word(word)).collect::<Result<_>>()?;
    Ok(format!("{MARK}\n{}", TEXT.replace(COMMAND, &words.join(" "))))
}

/// A word of a command line as units have it (systemd.service(5), "Command lines").
fn unit_word(word: &Path) -> Result<String> {
    let text = word.to_str().filter(|text| !text.contains(|c: char| c.is_control()));
    let text = text.ok_or_else(|| {
        Refused::new(format!("`{}` cannot be named in a unit", word.display())).hint("choose a place with a plain name")
    })?;
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@:=".contains(c);
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(if text.chars().all(is_plain) { text.to_owned() } else { format!("\"{escaped}\"") })
}

fn uninstall_unit(unit: &Path) -> Result<()> {
    for directory in WANTED_BY {
        let link = unit.with_file_name(directory).join(UNIT);
        if fs::read_link(&link).is_ok_and(|target| target == unit) {
            remove(&link).with_context(|| format!("remove `{}`", link.display()))?;
        }
    }
    remove(unit).with_context(|| format!("remove `{}`", unit.display()))
}

/// The file that tells Docker of a socket elsewhere. It holds nothing but that, so it is ours if our unit serves there.
struct Spec {
    path: PathBuf,
    is_there: bool,
    is_ours: bool,
}

impl Spec {
    /// Refuses a `unit` that is not ours.
    fn new(config: &Path, unit: &Path) -> Result<Self> {
        let read = |path: &Path| match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some).with_context(|| format!("read `{}`", path.display())),
        };
        let unit_text = read(unit)?;
        if unit_text.as_ref().is_some_and(|text| !text.starts_with(MARK)) {
            return Err(Refused::new(format!("`{}` is there and was not written by this command", unit.display()))
                .hint("look at it, and move it away or remove it by hand")
                .into());
        }
        let path = config.join("plugins/portolan.spec");
        let spec = read(&path)?;
        let served = spec.as_deref().and_then(|spec| spec.trim().strip_prefix("unix://")).map(Path::new);
        let served = served.and_then(|socket| unit_word(socket).ok());
        let is_ours = served.is_some_and(|socket| {
            unit_text.is_some_and(|text| text.lines().any(|line| line.ends_with(&format!(" --docker {socket}"))))
        });
        Ok(Self { path, is_there: spec.is_some(), is_ours })
    }

    /// Refuses a file of somebody else's. Docker takes a socket in its own directory before any such file, so there it may stay
    /// unless one is to be written.
    fn refuse_strangers(&self, is_wanted: bool) -> Result<()> {
        if !is_wanted || !self.is_there || self.is_ours {
            return Ok(());
        }
        Err(Refused::new(format!("`{}` is there and was not written by this command", self.path.display()))
            .hint("look at it, and move it away or remove it by hand")
            .into())
    }
}
