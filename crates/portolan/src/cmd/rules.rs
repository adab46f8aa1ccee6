//! `portolan rules`

use std::collections::BTreeMap;

use anyhow::Result;
use clap::ValueEnum;
use portolan_engine::{ContainerInfo, RulesOf};
use portolan_model::{Family, FirewallDriver, IfName};
use portolan_plan::{Shortcut, ShortcutPart, explain, iptables, ruleset};

use crate::context::Context;
use crate::output::{self, RuleSentence, RuleText};

/// Explain what filters and translates traffic
///
/// What is printed was read from the kernel just now, not from what we think should be there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  portolan rules                     everything, by owner
  portolan rules site                one container's
  portolan rules web --as nft        a network's, as `nft list` would print them
  portolan rules --as iptables       in the form of `iptables -t nat -L -n`; with the driver iptables,
                                     as `iptables-save` and `ip6tables-save` print them")]
pub(crate) struct Args {
    /// Only rules of this network or container
    #[arg(value_name = "NETWORK|CONTAINER")]
    name: Option<String>,
    /// In sentences, as nftables text, or in iptables' form
    #[arg(long = "as", value_name = "FORM", default_value = "words")]
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Words,
    Nft,
    Iptables,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let of = self.name.map_or(RulesOf::Everything, RulesOf::Named);
        let engine = context.engine_for("rules")?;
        let rules = engine.rules(&of)?;
        let text = match self.form {
            Form::Words => {
                let mut sentences = explain::words(&rules.elements);
                sentences.extend(explain::shortcuts(&rules.shortcuts));
                sentences.extend(explain::inlets(&rules.inlets));
                if rules.firewall.driver == FirewallDriver::Nftables && !sentences.is_empty() {
                    sentences.extend(explain::segments());
                }
                // Of one owner, those of the long way come first.
                sentences.sort_by_key(|sentence| explain::kind_of_owner(&sentence.owner));
                name_owners(&mut sentences, &engine.containers()?);
                if context.json {
                    let sentences = sentences
                        .into_iter()
                        .map(|sentence| RuleSentence { owner: sentence.owner, text: sentence.text });
                    output::json(&sentences.collect::<Vec<_>>())?;
                    return Ok(0);
                }
                grouped(&sentences)
            }
            Form::Nft => {
                let tables = by_device(&rules.shortcuts);
                let is_part = |shortcut: &&&Shortcut| !matches!(shortcut.part, ShortcutPart::Table { .. });
                let shortcuts = tables.iter().map(|(device, parts)| match rules.by_program.contains(*device) {
                    true => ruleset::render_program(parts.iter().filter(is_part)),
                    false => ruleset::render_shortcuts(device, parts.iter().copied()),
                });
                let mut text = ruleset::render(&rules.firewall.name, &rules.elements);
                text.extend(shortcuts);
                if !rules.inlets.is_empty() {
                    text += &ruleset::render_program(&rules.inlets);
                }
                text
            }
            Form::Iptables if rules.firewall.driver == FirewallDriver::Iptables => {
                Family::ALL.map(|family| iptables::render(&rules.firewall, family, &rules.elements)).concat()
            }
            Form::Iptables => explain::iptables(&rules.elements),
        };
        if context.json {
            output::json(&RuleText { table: rules.firewall.name, text })?;
        } else {
            output::print(&text)?;
        }
        Ok(0)
    }
}

/// Adds to the names of containers what their runtime calls them; elements have the name that never changes.
fn name_owners(sentences: &mut [explain::Sentence], containers: &[ContainerInfo]) {
    let called: BTreeMap<&str, &str> =
        containers.iter().map(|info| (info.container.name.as_str(), info.container.called())).collect();
    for sentence in sentences {
        let Some(rest) = sentence.owner.strip_prefix("container ") else { continue };
        let (name, rest) = rest.split_once(' ').map_or((rest, ""), |(name, rest)| (name, rest));
        if let Some(called) = called.get(name).filter(|called| **called != name) {
            sentence.owner = format!("container {called} ({name}) {rest}").trim_end().to_owned();
        }
    }
}

fn by_device(shortcuts: &[Shortcut]) -> BTreeMap<&IfName, Vec<&Shortcut>> {
    let mut tables: BTreeMap<&IfName, Vec<&Shortcut>> = BTreeMap::new();
    for shortcut in shortcuts {
        tables.entry(&shortcut.device).or_default().push(shortcut);
    }
    tables
}

/// Sentences under their owners.
fn grouped(sentences: &[explain::Sentence]) -> String {
    let mut text = String::new();
    let mut owner = None;
    for sentence in sentences {
        if owner != Some(&sentence.owner) {
            let gap = if owner.is_some() { "\n" } else { "" };
            text.push_str(&format!("{gap}{}\n", sentence.owner));
            owner = Some(&sentence.owner);
        }
        text.push_str(&format!("  {}\n", sentence.text));
    }
    text
}
