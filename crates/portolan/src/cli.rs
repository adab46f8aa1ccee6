//! The command line as a whole, and how its misuse is reported.

use std::error::Error as _;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use portolan_model::{FirewallDriver, Invalid};

use crate::cmd;
use crate::context::Context;
use crate::failure;

/// Where state is kept unless `--root` says otherwise.
pub(crate) const DEFAULT_ROOT: &str = "/var/lib/portolan";

/// Networks for containers: bridges, addresses, names and published ports
///
/// Portolan gives processes network stacks of their own, joins them to networks, and publishes their ports. The words
/// and flags are Docker's. Every command does its work and leaves; a daemon that answers names and repairs comes and goes by
/// itself.
#[derive(Debug, Parser)]
#[command(name = "portolan", version, max_term_width = 100, propagate_version = false, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
    /// The command's name.
    #[arg(skip)]
    name: String,
}

const EXAMPLES: &str = "\
Examples:
  portolan network create web
  portolan run -d --name site --network web -p 8080:80 -- python3 -m http.server 80
  portolan ps
  portolan rules site                what filters and translates its traffic, in sentences
  portolan rm -f site && portolan network rm web

State lives under /var/lib/portolan, run-time files under /run/portolan. With --root DIR both live
under DIR, and nothing of the one root is seen from the other.";

/// What every command takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Keep all state in DIR instead of /var/lib/portolan
    #[arg(long, global = true, value_name = "DIR", env = "PORTOLAN_ROOT", hide_env_values = true)]
    root: Option<PathBuf>,
    /// Who carries out the rules: nftables, iptables, firewalld or none; decided with the first network
    // A text, because `netavark` has the same option, and words of its own for what is unknown.
    #[arg(long, global = true, value_name = "DRIVER", env = "PORTOLAN_FIREWALL", hide_env_values = true, value_parser = known_driver)]
    firewall_driver: Option<String>,
    /// Give up when another command holds the state for SECONDS (60 unless said; 0: at once)
    #[arg(long, global = true, value_name = "SECONDS", env = "PORTOLAN_WAIT", hide_env_values = true)]
    wait: Option<u64>,
    /// Print JSON instead of tables and text
    #[arg(long, global = true)]
    json: bool,
    /// Log to standard error: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", hide_possible_values = true, value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: Option<String>,
    /// Log more: -v for info, -vv for debug, -vvv for trace
    #[arg(short = 'v', long = "verbose", global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn known_driver(text: &str) -> Result<String, Invalid> {
    text.parse::<FirewallDriver>().map(|driver| driver.name().to_owned())
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
enum Command {
    #[command(subcommand)]
    Network(cmd::network::Command),
    Run(Box<cmd::run::Args>),
    Ps(cmd::ps::Args),
    Inspect(cmd::inspect::Args),
    Exec(cmd::exec::Args),
    Logs(cmd::logs::Args),
    Port(cmd::port::Args),
    Rm(cmd::rm::Args),
    Attach(Box<cmd::attach::Args>),
    Detach(cmd::attach::DetachArgs),
    #[command(subcommand)]
    Publish(cmd::publish::Command),
    Update(cmd::update::Args),
    Rules(cmd::rules::Args),
    Verify(cmd::repair::VerifyArgs),
    Reconcile(cmd::repair::ReconcileArgs),
    Gc(cmd::repair::GcArgs),
    Doctor(cmd::doctor::Args),
    Stats(cmd::stats::Args),
    Events(cmd::stats::EventsArgs),
    Daemon(cmd::daemon::Args),
    #[command(subcommand)]
    Cluster(cmd::cluster::Command),
    #[command(subcommand)]
    Install(cmd::install::Command),
    Netavark(cmd::netavark::Args),
    Demo(cmd::demo::Args),
    #[command(hide = true)]
    DemoServe(cmd::demo::ServeArgs),
    Version(cmd::version::Args),
    Completion(cmd::completion::Args),
    #[command(hide = true)]
    Man(cmd::man::Args),
    #[command(hide = true)]
    WireguardWorker(cmd::wireguard::Args),
}

impl Cli {
    /// Does what was asked; the process's exit status.
    pub(crate) fn run(self) -> i32 {
        self.global.start_log();
        let driver = self.global.firewall_driver.and_then(|text| text.parse().ok());
        let context = Context::new(self.name, self.global.root, self.global.json, driver).waiting(self.global.wait);
        // What a failure of the verb itself exits with: `run` leaves the low numbers to its command.
        let fallback = if matches!(self.command, Command::Run(_)) { 125 } else { 1 };
        let result = match self.command {
            Command::Network(command) => command.run(&context),
            Command::Run(args) => args.run(&context),
            Command::Ps(args) => args.run(&context),
            Command::Inspect(args) => args.run(&context),
            Command::Exec(args) => args.run(&context),
            Command::Logs(args) => args.run(&context),
            Command::Port(args) => args.run(&context),
            Command::Rm(args) => args.run(&context),
            Command::Attach(args) => args.run(&context),
            Command::Detach(args) => args.run(&context),
            Command::Publish(command) => command.run(&context),
            Command::Update(args) => args.run(&context),
            Command::Rules(args) => args.run(&context),
            Command::Verify(args) => args.run(&context),
            Command::Reconcile(args) => args.run(&context),
            Command::Gc(args) => args.run(&context),
            Command::Doctor(args) => args.run(&context),
            Command::Stats(args) => args.run(&context),
            Command::Events(args) => args.run(&context),
            Command::Daemon(args) => args.run(&context),
            Command::Cluster(command) => command.run(&context),
            Command::Install(command) => command.run(&context),
            Command::Netavark(args) => Ok(args.run()),
            Command::Demo(args) => args.run(&context),
            Command::DemoServe(args) => args.run(),
            Command::Version(args) => args.run(&context),
            Command::Completion(args) => args.run(),
            Command::Man(args) => args.run(),
            Command::WireguardWorker(args) => args.run(),
        };
        result.unwrap_or_else(|error| failure::report(&error, fallback))
    }
}

impl Global {
    fn start_log(&self) {
        let level = match (self.log.as_deref(), self.verbose) {
            (Some("error"), _) => tracing::Level::ERROR,
            (Some("warn"), _) | (None, 0) => tracing::Level::WARN,
            (Some("info"), _) | (None, 1) => tracing::Level::INFO,
            (Some("debug"), _) | (None, 2) => tracing::Level::DEBUG,
            _ => tracing::Level::TRACE,
        };
        crate::log::start(level);
    }
}

/// Reads the command line; help and misuse are printed here, and answered with the exit status.
pub(crate) fn parse() -> Result<Cli, i32> {
    if let Some(cli) = parse_hot() {
        return Ok(cli);
    }
    named(Cli::command(), std::env::args_os()).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            0
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            2
        }
        _ => {
            let (message, hint) = misuse(&error);
            failure::print(&message, hint.as_deref());
            2
        }
    })
}

/// Reads the command lines that orchestrators call for every container, knowing only the one command.
///
/// To describe all commands to the parser costs several times what it takes to read one. What does not parse here, be
/// it a mistake or a call for help, is left to the whole parser.
fn parse_hot() -> Option<Cli> {
    let word = std::env::args_os().nth(1)?;
    let command = match word.to_str()? {
        "attach" => cmd::attach::Args::augment_args(clap::Command::new("attach")),
        "detach" => cmd::attach::DetachArgs::augment_args(clap::Command::new("detach")),
        "run" => cmd::run::Args::augment_args(clap::Command::new("run")),
        "daemon" => cmd::daemon::Args::augment_args(clap::Command::new("daemon")),
        "publish" => cmd::publish::Command::augment_subcommands(clap::Command::new("publish")),
        _ => return None,
    };
    let whole = Global::augment_args(clap::Command::new("portolan").subcommand_required(true)).subcommand(command);
    named(whole, std::env::args_os()).ok()
}

/// Reads a command line by a definition of it.
fn named(definition: clap::Command, words: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut matches = definition.try_get_matches_from(words)?;
    let name = matches.subcommand_name().unwrap_or_default().to_owned();
    Ok(Cli { name, ..Cli::from_arg_matches_mut(&mut matches)? })
}

/// One sentence about what is wrong with the command line, and what to do about it.
fn misuse(error: &clap::Error) -> (String, Option<String>) {
    if let Some(invalid) = error.source().and_then(|source| source.downcast_ref::<Invalid>()) {
        return (invalid.to_string(), invalid.hint.as_ref().map(ToString::to_string).or_else(|| Some(see_help())));
    }
    let text = |kind| context(error, kind).into_iter().next();
    let argument = bare(&text(ContextKind::InvalidArg).unwrap_or_default());
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let did_you_mean = |kind| {
        let found = context(error, kind);
        (!found.is_empty()).then(|| format!("did you mean {}? {}", quoted(&found, " or "), see_help()))
    };
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            (format!("unknown flag `{argument}`"), did_you_mean(ContextKind::SuggestedArg).or_else(|| Some(see_help())))
        }
        ErrorKind::UnknownArgument => (format!("unexpected argument `{argument}`"), Some(see_help())),
        ErrorKind::InvalidSubcommand => (
            format!("unknown command `{}`", text(ContextKind::InvalidSubcommand).unwrap_or_default()),
            did_you_mean(ContextKind::SuggestedSubcommand).or_else(|| Some(see_help())),
        ),
        ErrorKind::MissingRequiredArgument => {
            let missing: Vec<String> =
                context(error, ContextKind::InvalidArg).iter().map(|argument| alternatives(argument)).collect();
            (format!("missing {}", missing.join(" and ")), Some(see_help()))
        }
        ErrorKind::InvalidValue if value.is_empty() => (format!("`{argument}` needs a value"), Some(see_help())),
        ErrorKind::InvalidValue => (
            format!("`{argument}` does not take `{value}`"),
            Some(format!("choose {}", quoted(&context(error, ContextKind::ValidValue), " or "))),
        ),
        ErrorKind::ValueValidation => {
            let why = error.source().map_or_else(|| "is malformed".to_owned(), ToString::to_string);
            (format!("value `{value}` of `{argument}`: {why}"), Some(see_help()))
        }
        ErrorKind::ArgumentConflict => {
            let other: Vec<String> = context(error, ContextKind::PriorArg).iter().map(|other| bare(other)).collect();
            let message = if other.is_empty() || other.contains(&argument) {
                format!("`{argument}` is given more than once")
            } else {
                format!("`{argument}` cannot be combined with {}", quoted(&other, " and "))
            };
            (message, Some(see_help()))
        }
        _ => {
            let rendered = error.to_string();
            let line = rendered.lines().next().unwrap_or_default();
            (line.strip_prefix("error: ").unwrap_or(line).to_owned(), Some(see_help()))
        }
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        Some(ContextValue::StyledStr(text)) => vec![text.to_string()],
        _ => Vec::new(),
    }
}

/// An argument as it is typed, without the value that clap shows behind it: `--log` for `--log <LEVEL>`.
fn bare(argument: &str) -> String {
    if argument.starts_with('-') {
        let end = argument.find([' ', '=', '[', '<']).unwrap_or(argument.len());
        argument[..end].to_owned()
    } else {
        argument.trim_end_matches("...").trim_start_matches(['<', '[']).trim_end_matches(['>', ']']).to_owned()
    }
}

/// A missing argument, or the alternatives of a group, which clap writes `<--netns <PATH>|--pid <PID>>`.
fn alternatives(argument: &str) -> String {
    match argument.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')) {
        Some(group) if group.contains('|') => quoted(&group.split('|').map(bare).collect::<Vec<_>>(), " or "),
        _ => quoted(&[bare(argument)], ""),
    }
}

fn quoted(texts: &[String], by: &str) -> String {
    texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(by)
}

/// Where the help is for the command that was misused.
pub(crate) fn see_help() -> String {
    let mut command = Cli::command();
    let mut path = String::from("portolan");
    for word in std::env::args_os().skip(1) {
        if let Some(next) = word.to_str().and_then(|word| command.find_subcommand(word)) {
            path = format!("{path} {}", next.get_name());
            command = next.clone();
        }
    }
    format!("`{path} --help` shows what it takes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
