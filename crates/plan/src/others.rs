//! Whether others' rules on a host may ask for the connections of the host itself.
//!
//! A packet that is not tracked belongs to no connection. Where a firewall lets in what belongs to one, or translates, or will as
//! soon as its rules are complete, all packets of the host have to be tracked.

use crate::set::Table;

/// A chain at a hook, anybody's, of the families `inet`, `ip` or `ip6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Whether its family is `inet`.
    pub is_inet: bool,
    /// The name of its table.
    pub table: String,
    /// The hook's number (`enum nf_inet_hooks`).
    pub hook: u32,
    /// Whether it drops what no rule decides about.
    pub drops: bool,
    /// Whether it has any rule.
    pub has_rules: bool,
}

/// Prerouting, input, output, postrouting: what the host itself sends or is sent passes no other hooks at which packets are tracked.
const OF_THE_HOST: [u32; 4] = [0, 1, 3, 4];

impl BaseChain {
    fn is_firewall(&self) -> bool {
        let is_ours = self.is_inet && Table::is_ours(&self.table);
        OF_THE_HOST.contains(&self.hook) && !is_ours && (self.drops || self.has_rules)
    }
}

/// Whether there is a firewall among `chains`, or in the tables of iptables-legacy(8), which `legacy` names one a line.
///
/// Nothing is known of what such a table holds, so that each counts.
pub fn has_firewall(chains: &[BaseChain], legacy: &str) -> bool {
    !legacy.trim().is_empty() || chains.iter().any(BaseChain::is_firewall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, hook: u32) -> BaseChain {
        BaseChain { is_inet: true, table: table.to_owned(), hook, drops: false, has_rules: true }
    }

    #[test]
    fn a_chain_that_the_hosts_own_packets_pass_is_a_firewall() {
        assert!(!has_firewall(&[], ""));
        for hook in OF_THE_HOST {
            assert!(has_firewall(&[chain("own", hook)], ""), "{hook}");
            let policy = BaseChain { drops: true, has_rules: false, ..chain("own", hook) };
            assert!(has_firewall(&[policy], ""), "{hook}: it drops all");
            let empty = BaseChain { has_rules: false, ..chain("own", hook) };
            assert!(!has_firewall(&[empty], ""), "{hook}: it does nothing");
        }
        let forward = BaseChain { drops: true, ..chain("own", 2) };
        assert!(!has_firewall(&[forward], ""), "only what is passed on between others");
        assert!(!has_firewall(&[chain("own", 5)], ""), "ingress, where nothing is tracked yet");
    }

    #[test]
    fn our_own_tables_are_none() {
        let ours = ["portolan", "portolan_fence", "portolan_0123abcd", "portolan_0123abcd_fence", "portolan_cni"];
        assert!(!has_firewall(&ours.map(|table| chain(table, 1)), ""));
        for table in ["portolano", "portolan_own", "portolan_0123abcde", "my_portolan", "fence", ""] {
            assert!(has_firewall(&[chain("portolan", 1), chain(table, 1)], ""), "{table}");
        }
        let of_ipv4 = BaseChain { is_inet: false, ..chain("portolan", 1) };
        assert!(has_firewall(&[of_ipv4], ""), "ours are of the family inet");
    }

    #[test]
    fn any_table_of_the_old_kind_is_one() {
        assert!(has_firewall(&[], "filter\n"));
        assert!(!has_firewall(&[], "\n"));
    }
}
