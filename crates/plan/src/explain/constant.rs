//! The rules around the sets for people.

use super::{PATH, Sentence, rule_sentence};
use crate::object::Chain;
use crate::ruleset::{Part, Rule, rules};

/// The owner of what they do.
pub(super) const EVERY_NETWORK: &str = "every network";

/// What the rules around the sets do, whatever is in them, in the order a packet meets them.
pub fn constant_rules() -> Vec<Sentence> {
    path().map(sentence).collect()
}

/// Those among them that change what TCP says of its segments: no element speaks of them.
pub fn segments() -> Vec<Sentence> {
    path().filter(|(_, rule)| rule.parts.contains(&Part::ClampMss)).map(sentence).collect()
}

fn path() -> impl Iterator<Item = (Chain, Rule)> {
    PATH.into_iter().flat_map(|chain| rules(chain).into_iter().map(move |rule| (chain, rule)))
}

fn sentence((chain, rule): (Chain, Rule)) -> Sentence {
    Sentence { owner: EVERY_NETWORK.to_owned(), text: rule_sentence(chain, &rule) }
}
