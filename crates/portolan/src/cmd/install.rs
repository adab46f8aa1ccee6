//! `portolan install`: have other programs use Portolan

mod cni;
mod docker;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cmd::overlay;
use crate::containers_conf::{self, Unknown};
use crate::context::Context;
use crate::failure::Refused;
use crate::output;

/// Have Podman, Docker or container runtimes with CNI use Portolan, and go back
#[derive(Debug, clap::Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Command {
    Podman(PodmanArgs),
    Docker(docker::Args),
    Cni(cni::Args),
}

impl Command {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        match self {
            Self::Podman(args) => args.run(context),
            Self::Docker(args) => args.run(context),
            Self::Cni(args) => args.run(context),
        }
    }
}

/// Make Portolan the network backend of Podman
///
/// Podman looks for its helper programs in a list of directories. This makes a directory in which `netavark` and
/// `aardvark-dns` are links to this program, and writes a file that puts it first: before the directories of
/// helper_binaries_dir in containers.conf(5), or the usual ones. Nothing else of Podman changes: its networks and its
/// commands stay, and `--uninstall` takes file, links and directory away again.
///
/// With `--plugins` Podman can also have networks that all hosts of the cluster have (docs/podman.md).
///
/// Containers that run keep the networks that they have. Stop them before, and start them after: the bridge that one
/// backend made is not the other's.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan install podman                      as root, for the Podman of root
  podman info --format '{{.Host.NetworkBackendInfo}}'
  portolan install podman --plugins            also for `podman network create -d overlay`
  portolan install podman --uninstall          back to what Podman came with
  portolan install podman --config ~/.config/containers/containers.conf.d --bin ~/.local/libexec/portolan")]
pub(crate) struct PodmanArgs {
    /// Take away what was installed
    #[arg(long)]
    uninstall: bool,
    /// Directory of drop-in files of containers.conf(5)
    #[arg(long, value_name = "DIR", default_value = "/etc/containers/containers.conf.d")]
    config: PathBuf,
    /// Directory for the links
    #[arg(long, value_name = "DIR", default_value = "/usr/local/libexec/portolan")]
    bin: PathBuf,
    /// Link the driver `overlay` as well, for networks of the cluster, in this directory of plugins; Podman since 4.4 asks for it, also with a netavark that is not this
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = PLUGINS)]
    plugins: Option<PathBuf>,
}

/// The first directory in which Podman and netavark look for drivers (containers.conf(5), netavark_plugin_dirs).
const PLUGINS: &str = "/usr/local/libexec/netavark";

/// The drop-in file; files are read in the order of their names.
const DROP_IN: &str = "50-portolan.conf";
/// The first line of the file, by which it is known to be ours.
const MARK: &str = "# Written by `portolan install podman`.";
/// What Podman starts, by name.
const PROGRAMS: [&str; 2] = ["netavark", "aardvark-dns"];
/// Where Podman looks unless it is told otherwise (containers.conf(5), helper_binaries_dir): other helpers stay there.
const USUAL: [&str; 4] =
    ["/usr/local/libexec/podman", "/usr/local/lib/podman", "/usr/libexec/podman", "/usr/lib/podman"];

/// What was done, for `--json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Done {
    installed: bool,
    file: PathBuf,
    links: Vec<PathBuf>,
}

impl PodmanArgs {
    fn run(self, context: &Context) -> Result<i32> {
        let bin = std::path::absolute(&self.bin).with_context(|| format!("find `{}`", self.bin.display()))?;
        let file = self.config.join(DROP_IN);
        let links: Vec<PathBuf> = PROGRAMS.iter().map(|program| bin.join(program)).collect();
        let drivers: Vec<PathBuf> = self.plugins.iter().map(|plugins| plugins.join(overlay::NAME)).collect();
        if self.uninstall {
            uninstall(&file, &bin, &links)?;
            remove_links(&drivers, &this_program()?)?;
        } else {
            refuse_strangers(&drivers, &this_program()?, "choose another directory with --plugins")?;
            install(&file, &bin, &links)?;
            if let Some(plugins) = &self.plugins {
                fs::create_dir_all(plugins).with_context(|| format!("create `{}`", plugins.display()))?;
            }
            make_links(&drivers, &this_program()?)?;
        }
        let links = [links, drivers].concat();
        if context.json {
            output::json(&Done { installed: !self.uninstall, file, links })?;
        } else if self.uninstall {
            output::print(&format!(
                "Podman uses the network backend that it came with: `{}` is gone.\nStart its containers again, so that they get networks of that.\n",
                file.display()
            ))?;
        } else {
            output::print(&format!(
                "Podman uses Portolan from the next container on: `{}` says so.\nStop containers that run and start them again. Back: portolan install podman --uninstall\n",
                file.display()
            ))?;
        }
        Ok(0)
    }
}

fn is_ours(file: &Path) -> Result<bool> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.starts_with(MARK)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("read `{}`", file.display())),
    }
}

fn install(file: &Path, bin: &Path, links: &[PathBuf]) -> Result<()> {
    if !is_ours(file)? {
        return Err(Refused::new(format!("`{}` is there and was not written by this command", file.display()))
            .hint("move it away, or add the directory with the links to its helper_binaries_dir")
            .into());
    }
    let program = this_program()?;
    refuse_strangers(links, &program, "choose another directory with --bin")?;
    let directories = directories(file, bin)?;
    for directory in [bin, file.parent().unwrap_or(Path::new("/"))] {
        fs::create_dir_all(directory).with_context(|| format!("create `{}`", directory.display()))?;
    }
    make_links(links, &program)?;
    let directories: Vec<String> = directories.iter().map(|directory| format!("{directory:?}")).collect();
    let text = format!(
        "{MARK}\n# Back to what Podman came with: portolan install podman --uninstall\n\n[network]\nnetwork_backend = \"netavark\"\n\n[engine]\nhelper_binaries_dir = [{}]\n",
        directories.join(", ")
    );
    write(file, &text)
}

/// The list for the drop-in `file`: `bin`, and where Podman looks without it. A list replaces those of earlier files.
fn directories(file: &Path, bin: &Path) -> Result<Vec<String>> {
    let bin = bin.display().to_string();
    let by_hand = |refused: Refused| {
        refused.hint(format!(
            "put `{bin}` first in that list, and link `netavark` and `aardvark-dns` in there to this program"
        ))
    };
    let found = match containers_conf::find(file) {
        Err(error @ Unknown::Form { .. }) => return Err(by_hand(Refused::new(error.to_string())).into()),
        found => found?,
    };
    if let Some(later) = &found.after {
        let why = format!("`{}` has a helper_binaries_dir, and is read later than what this writes", later.display());
        return Err(by_hand(Refused::new(why)).into());
    }
    let before = found.before.unwrap_or_else(|| USUAL.map(String::from).to_vec());
    Ok(std::iter::once(bin.clone()).chain(before.into_iter().filter(|directory| *directory != bin)).collect())
}

fn uninstall(file: &Path, bin: &Path, links: &[PathBuf]) -> Result<()> {
    if !is_ours(file)? {
        return Err(Refused::new(format!("`{}` was not written by `portolan install podman`", file.display()))
            .hint("look at it, and remove it by hand")
            .into());
    }
    // The file first: it must not name what is not there.
    remove(file).with_context(|| format!("remove `{}`", file.display()))?;
    remove_links(links, &this_program()?)?;
    match fs::remove_dir(bin) {
        // What else is in there is somebody else's.
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => Ok(()),
        removed => removed.with_context(|| format!("remove `{}`", bin.display())),
    }
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program")
}

/// Whether `link` is one that this command made: to this program, or to one of its name that was elsewhere then.
fn leads_to(link: &Path, program: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target == program || target.file_name() == program.file_name())
}

/// Refuses if one of `links` is there and not this command's to replace.
fn refuse_strangers(links: &[PathBuf], program: &Path, hint: &str) -> Result<()> {
    for link in links {
        let what = match fs::symlink_metadata(link) {
            Ok(_) if leads_to(link, program) => continue,
            Ok(there) if there.is_symlink() => "a link to another program",
            Ok(_) => "no link",
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("look at `{}`", link.display())),
        };
        return Err(Refused::new(format!("`{}` is there and is {what}", link.display())).hint(hint).into());
    }
    Ok(())
}

fn make_links(links: &[PathBuf], program: &Path) -> Result<()> {
    for link in links {
        // Made beside and moved there: it may be started at any moment.
        let beside = link.with_extension("new");
        let made = remove(&beside).and_then(|()| symlink(program, &beside)).and_then(|()| fs::rename(&beside, link));
        made.with_context(|| format!("link `{}` to `{}`", link.display(), program.display()))?;
    }
    Ok(())
}

/// Removes those of `links` that this command made.
fn remove_links(links: &[PathBuf], program: &Path) -> Result<()> {
    for link in links.iter().filter(|link| leads_to(link, program)) {
        remove(link).with_context(|| format!("remove `{}`", link.display()))?;
    }
    Ok(())
}

/// Replaces `file` as a whole: it may be read at any moment.
fn write(file: &Path, text: &str) -> Result<()> {
    let beside = file.with_extension("new");
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, file));
    written.with_context(|| format!("write `{}`", file.display()))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
