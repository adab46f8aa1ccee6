//! What iptables-save(8) prints, taken apart.

use std::collections::BTreeMap;

use super::chains::Table;

/// A rule without the chain it is in: its options, in an order of their own, since versions of iptables(8) differ in theirs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spec(Vec<(String, String)>);

impl Spec {
    /// Takes `-d 10.0.0.1/32 ! -i br0 -m comment --comment "a b" -j DROP` apart. `-m` says nothing that its options do
    /// not say.
    pub(super) fn parse(text: &str) -> Self {
        let mut options: Vec<(String, String)> = Vec::new();
        let mut is_negated = false;
        for Word { text, is_quoted } in words(text) {
            if text == "!" && !is_quoted {
                is_negated = true;
            } else if text.starts_with('-') && !is_quoted {
                let flag = if is_negated { format!("! {text}") } else { text };
                options.push((flag, String::new()));
                is_negated = false;
            } else if let Some((_, value)) = options.last_mut() {
                if !value.is_empty() {
                    value.push(' ');
                }
                value.push_str(&text);
            }
        }
        options.retain(|(flag, _)| flag != "-m");
        options.sort();
        Self(options)
    }

    /// The value of an option: `-d`, `! -i`.
    pub(super) fn value(&self, flag: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == flag).map(|(_, value)| value.as_str())
    }
}

pub(super) struct Word {
    pub(super) text: String,
    is_quoted: bool,
}

/// Words between blanks; in quotation marks, in which a backslash precedes marks and backslashes, blanks are part of one
/// (`xtables_save_string()`, libxtables/xtables.c).
pub(super) fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(first) = chars.next() {
        let mut word = Word { text: String::new(), is_quoted: first == '"' };
        match first {
            ' ' => continue,
            '"' => {
                while let Some(next) = chars.next() {
                    match next {
                        '"' => break,
                        '\\' => word.text.extend(chars.next()),
                        other => word.text.push(other),
                    }
                }
            }
            other => {
                word.text.push(other);
                while let Some(next) = chars.next_if(|next| *next != ' ') {
                    word.text.push(next);
                }
            }
        }
        words.push(word);
    }
    words
}

/// The chains of one family, with their rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Saved {
    chains: BTreeMap<(Table, String), Vec<(String, Spec)>>,
    /// Of the chains that the kernel calls, in table `filter`.
    policies: BTreeMap<String, String>,
}

impl Saved {
    /// Reads what iptables-save(8) or ip6tables-save(8) printed. Tables that we have no chains in are passed over.
    pub fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.name() == name.trim());
            }
            let Some(table) = table else { continue };
            if let Some(rest) = line.strip_prefix(':') {
                let mut words = rest.split(' ');
                let name = words.next().unwrap_or_default();
                saved.chains.entry((table, name.to_owned())).or_default();
                if let Some(policy) = words.next().filter(|policy| table == Table::Filter && *policy != "-") {
                    saved.policies.insert(name.to_owned(), policy.to_owned());
                }
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
                let rules = saved.chains.entry((table, chain.to_owned())).or_default();
                rules.push((rule.to_owned(), Spec::parse(rule)));
            }
        }
        saved
    }

    /// The rules of a chain as they were printed, and taken apart; none if there is no such chain.
    pub(super) fn rules(&self, table: Table, chain: &str) -> Option<&[(String, Spec)]> {
        self.chains.get(&(table, chain.to_owned())).map(Vec::as_slice)
    }

    /// Whether there is a chain `FORWARD` in table `filter`.
    pub fn has_forward(&self) -> bool {
        self.chains.contains_key(&(Table::Filter, "FORWARD".to_owned()))
    }

    /// What becomes of a packet at the end of a chain of table `filter` that the kernel calls.
    pub(super) fn policy(&self, chain: &str) -> Option<&str> {
        self.policies.get(chain).map(String::as_str)
    }

    /// The chains of table `filter`, with their rules.
    pub(super) fn filter(&self) -> impl Iterator<Item = (&str, &[(String, Spec)])> {
        let of_filter = self.chains.iter().filter(|((table, _), _)| *table == Table::Filter);
        of_filter.map(|((_, chain), rules)| (chain.as_str(), rules.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_the_same_in_any_order_and_with_any_quotes() {
        let one = Spec::parse("-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment \"a b\" -j DROP");
        let other = Spec::parse("-p tcp -d 10.0.0.1/32 -m comment --comment \"a b\" -m tcp --dport 80 -j DROP");
        assert_eq!(one, other);
        assert_eq!(one.value("--comment"), Some("a b"));
        assert_eq!(Spec::parse("--comment \"host\""), Spec::parse("--comment host"));
        assert_ne!(Spec::parse("-i br0 -j DROP"), Spec::parse("! -i br0 -j DROP"));
        assert_eq!(Spec::parse(r#"--comment "-j \"x\" \\ !""#).value("--comment"), Some(r#"-j "x" \ !"#));
        assert_eq!(Spec::parse("--comment \"open"), Spec::parse("--comment open"), "no panic on what is cut off");
    }

    #[test]
    fn chains_of_other_tables_are_passed_over() {
        let saved = Saved::parse("# x\n*mangle\n:A - [0:0]\n-A A -j DROP\nCOMMIT\n*nat\n:A - [1:2]\n-A A -j RETURN\n");
        assert_eq!(saved.chains.len(), 1);
        assert_eq!(saved.rules(Table::Nat, "A").unwrap()[0].0, "-j RETURN");
        assert_eq!(saved.rules(Table::Filter, "A"), None);
    }
}
