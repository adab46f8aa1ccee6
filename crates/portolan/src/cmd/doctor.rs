//! `portolan doctor`

mod nft;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use portolan_kernel::iptables::{Variant, families, locate};
use portolan_model::{Family, FirewallDriver};
use portolan_plan::iptables::{Closed, Door, Saved, State};
use portolan_plan::{Firewall, Groups, Guard};
use serde::Serialize;

use crate::cli::DEFAULT_ROOT;
use crate::context::{Context, Engine};
use crate::failure::Refused;
use crate::output;

/// Find what other firewalls of this host drop of our networks' packets, and open it on request
///
/// Every firewall on a host has a say about what is forwarded: a packet that Portolan's rules accept is still dropped if
/// another table drops it. Docker does so, and ufw: they set the policy of iptables' chain FORWARD to DROP. Then published
/// ports do not answer to other machines, and containers do not reach the world. This command looks for such policies and
/// rules, in iptables and nftables, for IPv4 and IPv6, and says what opens them.
///
/// Where the firewall driver has no guard against forged addresses, the networks that lack it are named.
///
/// Without flags nothing is changed. Exits with 0 if nothing is closed, with 1 otherwise.
///
/// --open adds a chain of rules for our networks, and calls it from DOCKER-USER if Docker's rules are there, since Docker
/// keeps what is in that chain, else from FORWARD. What comes from our networks or goes to them passes, for Portolan's
/// rules decide about it; between them and Docker's networks, Docker's rules go on deciding as well. Who reaches whom among
/// our networks stays as it is. The rules carry the comment `portolan: networks of ROOT` and do not survive a reboot;
/// --close removes exactly them. Chains of nftables are never changed: it is said which rules to add.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan doctor                    is anything closed to our networks, and by whom
  portolan doctor --open             let their packets pass iptables' FORWARD
  portolan doctor --close            take that back")]
pub(crate) struct Args {
    /// Add rules to iptables that let our networks' packets pass where they are dropped
    #[arg(long)]
    open: bool,
    /// Remove the rules that --open added
    #[arg(long, conflicts_with = "open")]
    close: bool,
}

/// What was found in one place.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Finding {
    /// The program whose rules they are.
    firewall: String,
    /// The families that it is about.
    families: Vec<&'static str>,
    /// Whether our packets are dropped there.
    closed: bool,
    /// Whether it lets pass what ours would drop, since the firewall driver has no counterpart of it.
    unguarded: bool,
    /// What drops them, or where they are let through.
    what: String,
    /// What that means for people.
    meaning: String,
    /// The commands that open it.
    open: Vec<String>,
}

/// Table `filter` of one family, as one backend of iptables has it.
struct Table {
    variant: Variant,
    family: Family,
    saved: Saved,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine_for("doctor")?;
        let firewall = engine.firewall()?;
        let door = Door::new(&firewall, &context.root.to_string_lossy());
        if self.close {
            change(|saved| door.close(saved))?;
        }
        // The group of our interfaces is decided with the first network.
        let idle = if engine.firewall_in_force()?.is_none() {
            Some(("there is no network on this host yet", "make one first, with `portolan network create`"))
        } else if firewall.driver == FirewallDriver::None {
            Some(("the rules are left to others by the firewall driver `none`", "add rules to the firewall in use"))
        } else {
            None
        };
        if let Some((why, hint)) = idle {
            if self.open {
                return Err(Refused::new(format!("nothing to open: {why}")).hint(hint).into());
            }
            let unguarded = if engine.firewall_in_force()?.is_some() { unguarded(&engine, &firewall)? } else { None };
            return show(context, unguarded.as_slice(), why);
        }
        if self.open {
            change(|saved| door.open(saved))?;
        }
        let mut findings = findings(context, &firewall, &door)?;
        findings.extend(unguarded(&engine, &firewall)?);
        let status = show(context, &findings, "nothing is closed to our networks")?;
        Ok(if self.close { 0 } else { status })
    }
}

/// What the backends of iptables that are installed have.
fn tables() -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for family in families() {
        for variant in Variant::installed(family) {
            match variant.save(family) {
                Ok(text) => tables.push(Table { variant, family, saved: Saved::parse(&text) }),
                // The one that is not in use may be one that the kernel does not have.
                Err(error) if variant != Variant::USUAL => tracing::debug!(%error, "passed over"),
                Err(error) => {
                    let program = variant.program(family);
                    return Err(Refused::new(error.to_string())
                        .hint(format!("`{program} -S FORWARD` must work; what nobody can read cannot be checked"))
                        .into());
                }
            }
        }
    }
    Ok(tables)
}

/// Gives each table its batch, if it has one.
fn change(batch: impl Fn(&Saved) -> Option<String>) -> Result<()> {
    for Table { variant, family, saved } in tables()? {
        let Some(text) = batch(&saved) else { continue };
        let program = variant.program(family);
        variant.restore(family, &text).map_err(|error| {
            Refused::new(format!("change table `filter`: {error}")).hint(format!(
                "nothing of `{program}` has changed; the rules need the kernel modules xt_devgroup and xt_comment"
            ))
        })?;
    }
    Ok(())
}

fn findings(context: &Context, firewall: &Firewall, door: &Door) -> Result<Vec<Finding>> {
    let tables = tables()?;
    let command = if context.root == Path::new(DEFAULT_ROOT) {
        "portolan doctor --open".to_owned()
    } else {
        format!("portolan --root {} doctor --open", context.root.display())
    };
    let mut findings: Vec<Finding> = tables.iter().filter_map(|table| in_iptables(table, door, &command)).collect();
    if let Some(text) = list_nftables() {
        let group = Groups::of(&firewall.name).bridges;
        // What iptables keeps in nftables is its own matter where it is installed and could read it.
        let is_told = |family: &str, name: &str| {
            let family = if family == "ip6" { Family::V6 } else { Family::V4 };
            name == "filter" && tables.iter().any(|table| table.family == family && table.saved.has_forward())
        };
        let closed = nft::closed(&text, group, is_told).unwrap_or_default();
        findings.extend(closed.into_iter().map(|chain| in_nftables(&chain, group)));
    }
    Ok(findings)
}

/// `command` is what opens it.
fn in_iptables(table: &Table, door: &Door, command: &str) -> Option<Finding> {
    let firewall = table.variant.program(table.family);
    let families = vec![name(table.family)];
    Some(match door.state(&table.saved) {
        State::Clear => return None,
        State::Opened { at } => Finding {
            what: format!("{at} lets the packets of our networks pass"),
            meaning: "it does so by rules of ours, which `doctor --close` removes".to_owned(),
            closed: false,
            unguarded: false,
            open: Vec::new(),
            firewall,
            families,
        },
        State::Closed(Closed { by, at }) => Finding {
            what: by.to_string(),
            meaning: format!("{}; rules of ours in {at} would let them pass", dropped(&families)),
            closed: true,
            unguarded: false,
            open: vec![command.to_owned()],
            firewall,
            families,
        },
    })
}

fn in_nftables(chain: &nft::ClosedChain, group: u32) -> Finding {
    let families = match chain.chain.split(' ').next() {
        Some("ip") => vec![name(Family::V4)],
        Some("ip6") => vec![name(Family::V6)],
        _ => Family::ALL.map(name).to_vec(),
    };
    let rule = |key: &str| format!("nft insert rule {} {key} {group:#x} accept", chain.chain);
    Finding {
        firewall: "nftables".to_owned(),
        what: format!("{} of chain `{}`", chain.by, chain.chain),
        meaning: dropped(&families),
        closed: true,
        unguarded: false,
        open: vec![rule("meta iifgroup"), rule("meta oifgroup")],
        families,
    }
}

/// The networks at whose ports the driver of the rules cannot look into frames.
fn unguarded(engine: &Engine, firewall: &Firewall) -> Result<Option<Finding>> {
    let networks = engine.networks()?;
    let names: Vec<_> = networks
        .iter()
        .filter(|network| firewall.guard(network) == Guard::Macs)
        .map(|network| format!("`{}`", network.name))
        .collect();
    Ok((!names.is_empty()).then(|| Finding {
        firewall: firewall.driver.to_string(),
        families: Family::ALL.map(name).to_vec(),
        closed: false,
        unguarded: true,
        what: format!("no guard at the ports of {}", names.join(", ")),
        meaning:
            "containers can send from each other's IP addresses, answer for them, and play router or DHCP server; \
                  networks that are made anew with the firewall driver `nftables` have one"
                .to_owned(),
        open: Vec::new(),
    }))
}

fn dropped(families: &[&str]) -> String {
    format!(
        "over {} published ports do not answer to other machines, and containers do not reach the world",
        families.join(" and ")
    )
}

const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The rules of nftables without elements; none where nft(8) is not there or fails.
fn list_nftables() -> Option<String> {
    let mut nft = Command::new(locate("nft"));
    let output = nft.args(["-j", "-t", "list", "ruleset"]).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Prints what was found, or `otherwise`; the exit status it asks for.
fn show(context: &Context, findings: &[Finding], otherwise: &str) -> Result<i32> {
    let is_closed = findings.iter().any(|finding| finding.closed);
    if context.json {
        output::json(&findings)?;
        return Ok(i32::from(is_closed));
    }
    let mut text = String::new();
    for finding in findings {
        let state = match finding {
            Finding { closed: true, .. } => "closed",
            Finding { unguarded: true, .. } => "unguarded",
            _ => "open",
        };
        text.push_str(&format!("{state}: {}: {}\n  {}\n", finding.firewall, finding.what, finding.meaning));
        text.extend(finding.open.iter().map(|command| format!("  to open it: {command}\n")));
    }
    if !is_closed {
        text.push_str(&format!("{otherwise}\n"));
    }
    output::print(&text)?;
    Ok(i32::from(is_closed))
}
