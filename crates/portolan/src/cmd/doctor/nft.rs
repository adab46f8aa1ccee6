//! Others' chains on nftables' forward hook, from what `nft -j -t list ruleset` prints.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A chain that drops what no rule of it accepts, and has no rule for our networks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClosedChain {
    /// Family, table and name, as nft(8) takes them.
    pub(super) chain: String,
    /// What drops there.
    pub(super) by: &'static str,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Item {
    chain: Option<Chain>,
    rule: Option<Rule>,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

#[derive(Deserialize)]
struct Rule {
    family: String,
    table: String,
    chain: String,
    #[serde(default)]
    expr: Vec<Map<String, Value>>,
}

impl Rule {
    fn is_in(&self, chain: &Chain) -> bool {
        self.family == chain.family && self.table == chain.table && self.chain == chain.name
    }

    /// Whether it accepts what comes in (`iifgroup`) or goes out (`oifgroup`) by an interface of the group.
    fn accepts(&self, key: &str, group: u32) -> bool {
        let is_ours = |one: &Map<String, Value>| {
            one.get("match").is_some_and(|found| {
                found["left"]["meta"]["key"] == key && found["op"] == "==" && found["right"] == group
            })
        };
        self.expr.iter().any(is_ours) && self.expr.iter().any(|one| one.contains_key("accept"))
    }

    /// Whether it drops whatever comes to it.
    fn drops_all(&self) -> bool {
        let ends = |one: &Map<String, Value>| ["drop", "reject"].iter().any(|verdict| one.contains_key(*verdict));
        let says_nothing = |one: &Map<String, Value>| ["counter", "log"].iter().any(|what| one.contains_key(*what));
        self.expr.iter().any(ends) && self.expr.iter().all(|one| ends(one) || says_nothing(one))
    }
}

/// The chains of others that are closed to the interfaces of `group`. Those that `is_told` knows by family and table are
/// left out: who looks at them in other ways. None where the text is no listing.
///
/// Tables of any root of ours are left out, and firewalld's, which is told of our networks.
pub(super) fn closed(text: &str, group: u32, is_told: impl Fn(&str, &str) -> bool) -> Option<Vec<ClosedChain>> {
    let listing: Listing = serde_json::from_str(text).ok()?;
    let rules: Vec<&Rule> = listing.nftables.iter().filter_map(|item| item.rule.as_ref()).collect();
    let chains = listing.nftables.iter().filter_map(|item| item.chain.as_ref());
    let others = chains.filter(|chain| {
        chain.hook.as_deref() == Some("forward")
            && ["ip", "ip6", "inet"].contains(&chain.family.as_str())
            && chain.table != "portolan"
            && !chain.table.starts_with("portolan_")
            && chain.table != "firewalld"
            && !is_told(&chain.family, &chain.table)
    });
    let closed = others.filter_map(|chain| {
        let of_chain: Vec<&&Rule> = rules.iter().filter(|rule| rule.is_in(chain)).collect();
        let opens = |key| of_chain.iter().any(|rule| rule.accepts(key, group));
        let by = if chain.policy.as_deref() == Some("drop") {
            "policy drop"
        } else if of_chain.iter().any(|rule| rule.drops_all()) {
            "a rule without conditions"
        } else {
            return None;
        };
        (!(opens("iifgroup") && opens("oifgroup")))
            .then(|| ClosedChain { chain: format!("{} {} {}", chain.family, chain.table, chain.name), by })
    });
    Some(closed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nft 1.0.6's, shortened to what matters: an administrator's table, dockerd's by way of iptables, firewalld's, ours.
    const LISTING: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "admin", "handle": 1}},
        {"chain": {"family": "inet", "table": "admin", "name": "fwd", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "admin", "name": "in", "handle": 2, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        {"rule": {"family": "inet", "table": "admin", "chain": "fwd", "handle": 3, "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth1"}}, {"accept": null}]}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 10, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "portolan", "name": "forward", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}},
        {"rule": {"family": "inet", "table": "portolan", "chain": "forward", "handle": 9, "expr": [{"drop": null}]}},
        {"chain": {"family": "ip6", "table": "end", "name": "fwd", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}},
        {"rule": {"family": "ip6", "table": "end", "chain": "fwd", "handle": 2, "expr": [{"counter": {"packets": 0, "bytes": 0}}, {"reject": {"type": "icmpv6", "expr": "admin-prohibited"}}]}}
    ]}"#;

    fn found(text: &str) -> Vec<String> {
        let closed = closed(text, 0x504f, |family, table| (family, table) == ("ip", "filter")).unwrap();
        closed.into_iter().map(|one| format!("{}: {}", one.chain, one.by)).collect()
    }

    #[test]
    fn chains_of_others_are_told_apart() {
        assert_eq!(found(LISTING), ["inet admin fwd: policy drop", "ip6 end fwd: a rule without conditions"]);
        let all = closed(LISTING, 0x504f, |_, _| false).unwrap();
        assert!(all.iter().any(|one| one.chain == "ip filter FORWARD"), "nobody else looks at it");
    }

    #[test]
    fn a_chain_with_rules_for_us_is_open() {
        let rule = |key: &str| {
            format!(
                r#"{{"rule": {{"family": "inet", "table": "admin", "chain": "fwd", "handle": 7, "expr": [{{"match": {{"op": "==", "left": {{"meta": {{"key": "{key}"}}}}, "right": 20559}}}}, {{"accept": null}}]}}}},"#
            )
        };
        let with = |rules: &str| LISTING.replacen("{\"chain\"", &format!("{rules}{{\"chain\""), 1);
        assert_eq!(found(&with(&rule("iifgroup"))).len(), 2, "one direction is not enough");
        let both = with(&format!("{}{}", rule("iifgroup"), rule("oifgroup")));
        assert_eq!(found(&both), ["ip6 end fwd: a rule without conditions"]);
        assert_eq!(found(&both.replace("20559", "20560")).len(), 2, "another root's group");
    }

    #[test]
    fn what_is_no_listing_is_none() {
        assert_eq!(closed("", 1, |_, _| false), None);
        assert_eq!(closed("{}", 1, |_, _| false), None);
    }
}
