//! `portolan install cni`

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use ipnet::IpNet;
use portolan_cni::{Config, Plan};
use serde::Serialize;
use serde_json::{Value, json};

use super::{make_links, refuse_strangers, remove, remove_links, this_program, write};
use crate::cmd::cni::types;
use crate::context::Context;
use crate::failure::Refused;
use crate::output;

/// Make Portolan a plugin of container runtimes with CNI
///
/// containerd, CRI-O, nerdctl and others start plugins of the Container Network Interface from a directory. This makes
/// links to this program there: `portolan`, which does what a chain of the usual plugins does, and `loopback`; with --all
/// also the names of all the usual plugins, for configurations that are written for those. Plugins of others are left
/// alone: where one has the name of a link, nothing is done and the command says so.
///
/// With --config it also writes a network, `10-portolan.conflist`, for runtimes that read that directory; they take the
/// first file of it, by name, for their default network. Without it, write your own, of type `portolan`.
///
/// Before you go back, remove the containers: a runtime that finds no plugin cannot take them off their networks.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan install cni
  portolan install cni --config /etc/cni/net.d --subnet 10.22.0.0/16 --subnet fd22::/64
  portolan install cni portolan                only that, beside a `loopback` of others
  portolan install cni --all --dir /usr/local/lib/cni
  portolan install cni --uninstall --config /etc/cni/net.d")]
pub(crate) struct Args {
    /// Plugins to link; `portolan` and `loopback` if none is named
    #[arg(value_name = "PLUGIN", value_parser = PossibleValuesParser::new(types()))]
    plugins: Vec<String>,
    /// Link the names of all plugins
    #[arg(long, conflicts_with = "plugins")]
    all: bool,
    /// Take away what was installed
    #[arg(long)]
    uninstall: bool,
    /// Directory of plugins
    #[arg(long, value_name = "DIR", default_value = DIR)]
    dir: PathBuf,
    /// Write a network to this directory of configurations as well
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Name of that network
    #[arg(long, value_name = "NAME", requires = "config", default_value = "portolan")]
    name: String,
    /// Subnet of that network; repeat it for both families: a container has an address of each
    #[arg(long = "subnet", value_name = "SUBNET", requires = "config")]
    subnets: Vec<IpNet>,
}

/// Where runtimes look for plugins.
const DIR: &str = "/opt/cni/bin";
/// What a runtime needs of us.
const USUAL: [&str; 2] = ["portolan", "loopback"];
/// The network; files are looked at in the order of their names.
const FILE: &str = "10-portolan.conflist";
/// What the file says in `writtenBy`, by which it is known to be ours. Runtimes do not look at keys that they do not know.
const MARK: &str = "portolan install cni";

/// What was done, for `--json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Done {
    installed: bool,
    links: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
}

/// A network as files have it: a list of plugins, which is one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    /// For runtimes that know no other than this: containerd 1.6.
    cni_version: &'a str,
    /// The others take the highest that they speak.
    cni_versions: [&'a str; 2],
    name: &'a str,
    written_by: &'a str,
    plugins: [Value; 1],
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let program = this_program()?;
        let dir = std::path::absolute(&self.dir).with_context(|| format!("find `{}`", self.dir.display()))?;
        // Whatever was linked goes with --uninstall: what is not ours stays anyway.
        let is_meant = |name: &&str| {
            let by_default = self.all || self.uninstall || USUAL.contains(name);
            if self.plugins.is_empty() { by_default } else { self.plugins.iter().any(|one| one == name) }
        };
        let names: Vec<&str> = types().filter(is_meant).collect();
        // It may have been put there itself.
        let links: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).filter(|link| *link != program).collect();
        let file = self.config.as_ref().map(|config| config.join(FILE));
        if let Some(file) = &file {
            refuse_anothers(file)?;
        }
        if self.uninstall {
            // The file first: it must not name what is not there.
            if let Some(file) = &file {
                remove(file).with_context(|| format!("remove `{}`", file.display()))?;
            }
            remove_links(&links, &program)?;
        } else {
            let text = file.is_some().then(|| self.list()).transpose()?;
            refuse_strangers(
                &links,
                &program,
                "move it away, or name the plugins to link: portolan install cni PLUGIN",
            )?;
            let parent = file.as_deref().and_then(Path::parent);
            for directory in std::iter::once(dir.as_path()).chain(parent) {
                fs::create_dir_all(directory).with_context(|| format!("create `{}`", directory.display()))?;
            }
            make_links(&links, &program)?;
            if let (Some(file), Some(text)) = (&file, text) {
                write(file, &text)?;
            }
        }
        if context.json {
            output::json(&Done { installed: !self.uninstall, links, file })?;
        } else {
            output::print(&self.said(&dir, &names, file.as_deref()))?;
        }
        Ok(0)
    }

    fn said(&self, dir: &Path, names: &[&str], file: Option<&Path>) -> String {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let elsewhere = if dir == Path::new(DIR) { String::new() } else { format!(" --dir {}", dir.display()) };
        let (dir, names) = (dir.display(), listed(&names));
        match file.map(Path::display) {
            None if self.uninstall => format!("No plugin in `{dir}` is a link to Portolan any more.\n"),
            Some(file) if self.uninstall => {
                format!("No plugin in `{dir}` is a link to Portolan any more, and `{file}` is gone.\n")
            }
            None => format!(
                "Runtimes find Portolan in `{dir}`, as {names}. Networks of type `portolan` use it.\nBack: portolan install cni --uninstall{elsewhere}\n"
            ),
            Some(file) => format!(
                "Runtimes find Portolan in `{dir}`, as {names}, and network `{}` in `{file}`.\nBack: portolan install cni --uninstall{elsewhere} --config DIR\n",
                self.name
            ),
        }
    }

    /// The network to write; refused if the plugin would refuse it.
    fn list(&self) -> Result<String> {
        if self.subnets.is_empty() {
            return Err(Refused::new("a network has to have a subnet")
                .hint("say which, one that the host's networks do not use: --subnet 10.22.0.0/16")
                .into());
        }
        let ranges: Vec<Value> = self.subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        let plugin = json!({
            "type": "portolan",
            "ipam": {"type": "host-local", "ranges": ranges},
            "capabilities": {
                "aliases": true, "bandwidth": true, "dns": true, "ipRanges": true, "ips": true, "mac": true, "portMappings": true,
            },
        });
        let mut asked = plugin.clone();
        asked["name"] = json!(self.name);
        let would_be = Config::parse(asked.to_string().as_bytes()).and_then(|config| Plan::of(&config, None));
        would_be.map_err(|error| {
            let hint =
                if error.details.is_empty() { "see `portolan install cni --help`".into() } else { error.details };
            Refused::new(error.msg).hint(hint)
        })?;
        let list = List {
            cni_version: "1.0.0",
            cni_versions: ["1.0.0", "1.1.0"],
            name: &self.name,
            written_by: MARK,
            plugins: [plugin],
        };
        Ok(serde_json::to_string_pretty(&list)? + "\n")
    }
}

/// Refuses a file that this command did not write.
fn refuse_anothers(file: &Path) -> Result<()> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read `{}`", file.display())),
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(list) if list["writtenBy"] == MARK => Ok(()),
        _ => Err(Refused::new(format!("`{}` is there and was not written by this command", file.display()))
            .hint("look at it, and move it away or remove it by hand")
            .into()),
    }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
