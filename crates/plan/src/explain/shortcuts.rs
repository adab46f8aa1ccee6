//! Shortcuts for people.

use super::{Sentence, kind_of_owner};
use crate::object::{Inlet, Shortcut, ShortcutPart};

/// What `shortcuts` do, in sentences.
pub fn shortcuts<'a>(shortcuts: impl IntoIterator<Item = &'a Shortcut>) -> Vec<Sentence> {
    let sentence = |Shortcut { device, part, owner }: &Shortcut| {
        let text = match part {
            ShortcutPart::Table { .. } => return None,
            ShortcutPart::Near { host_end, addresses, .. } => {
                let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
                format!(
                    "packets between {addresses}, by {host_end}, and containers of other hosts, by {device}, go past routing, \
                     connection tracking and all rules"
                )
            }
            ShortcutPart::Far { block, via, by: None, .. } => {
                format!(
                    "packets for containers in {block} go to {via} by {device}, and theirs come from there, past all rules"
                )
            }
            ShortcutPart::Far { block, by: Some(by), .. } => format!(
                "packets for containers in {block} go to {} by {}, translated instead of in a tunnel, past all rules",
                by.to, by.link
            ),
        };
        Some(Sentence { owner: owner.clone(), text })
    };
    let mut sentences: Vec<Sentence> = shortcuts.into_iter().filter_map(sentence).collect();
    sentences.sort_by_cached_key(|sentence| (kind_of_owner(&sentence.owner), sentence.clone()));
    sentences
}

/// What `inlets` do, in sentences.
pub fn inlets<'a>(inlets: impl IntoIterator<Item = &'a Inlet>) -> Vec<Sentence> {
    let sentence = |Inlet { device, link, own, vni, owner, .. }: &Inlet| Sentence {
        owner: owner.clone(),
        text: format!(
            "what comes by {link} translated, for vni {vni} and this host ({own}), goes on as if it had come out of {device}"
        ),
    };
    inlets.into_iter().map(sentence).collect()
}
