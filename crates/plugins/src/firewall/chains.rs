//! The original's chains in the table `filter` of iptables: what is in them, and what to change.
//!
//! ```text
//! -A FORWARD -j CNI-ISOLATION-STAGE-1                                  a bridge with an ingress policy
//! -A FORWARD -j CNI-FORWARD
//! -A CNI-FORWARD -j CNI-ADMIN                                          the administrator's own rules
//! -A CNI-FORWARD -d 10.4.0.2/32 --ctstate RELATED,ESTABLISHED -j ACCEPT
//! -A CNI-FORWARD -s 10.4.0.2/32 -j ACCEPT
//! -A CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 -j CNI-ISOLATION-STAGE-2
//! -A CNI-ISOLATION-STAGE-2 -o cni0 -j DROP
//! ```
//!
//! Rules stand here as iptables-save(8) writes them. Those about an address say whose they are by a comment, which the
//! original's do not: without it nobody could tell later. A chain is made by `-N`, which fails when somebody else was
//! faster, where the usual `:CHAIN` would empty it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::table::Owner;

const FORWARD: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

/// Who may begin a connection to a container on a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// Everybody.
    Open,
    /// Not those on other bridges that have a policy.
    SameBridge,
    /// Nor those on the same.
    Isolated,
}

/// The chains of the table `filter` with their rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter(BTreeMap<String, Vec<String>>);

impl Filter {
    /// Reads what iptables-save(8) prints.
    pub(super) fn parse(text: &str) -> Self {
        let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut is_filter = false;
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                is_filter = table.trim() == "filter";
            } else if !is_filter {
            } else if let Some(chain) = line.strip_prefix(':') {
                chains.entry(chain.split(' ').next().unwrap_or_default().to_owned()).or_default();
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
                chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
            }
        }
        Self(chains)
    }

    fn rules(&self, chain: &str) -> &[String] {
        self.0.get(chain).map_or(&[], Vec::as_slice)
    }

    fn has(&self, chain: &str, rule: &str) -> bool {
        self.rules(chain).iter().any(|found| found == rule)
    }

    /// The bridges that have a policy.
    pub(super) fn bridges(&self) -> Vec<String> {
        let out = |rule: &String| Some(rule.strip_prefix("-o ")?.split(' ').next()?.to_owned());
        self.rules(STAGE_2).iter().filter_map(out).collect()
    }

    /// The policy of `bridge`.
    pub(super) fn policy(&self, bridge: &str) -> Policy {
        match (self.has(STAGE_1, &stays(bridge)), self.has(STAGE_2, &enters(bridge))) {
            (true, _) => Policy::Isolated,
            (false, true) => Policy::SameBridge,
            (false, false) => Policy::Open,
        }
    }
}

/// What to give iptables-restore(8).
#[derive(Debug, Default)]
pub(super) struct Batch(Vec<String>);

impl Batch {
    fn chain(&mut self, is: &Filter, chain: &str) {
        let line = format!("-N {chain}");
        if !is.0.contains_key(chain) && !self.0.contains(&line) {
            self.0.push(line);
        }
    }

    fn put(&mut self, is: &Filter, how: &str, chain: &str, rule: &str) {
        if !is.has(chain, rule) {
            self.0.push(format!("{how} {chain} {rule}"));
        }
    }

    /// Deletes rules as often as they are there.
    fn delete_where(&mut self, is: &Filter, chain: &str, is_gone: impl Fn(&str) -> bool) {
        let gone = is.rules(chain).iter().filter(|rule| is_gone(rule));
        self.0.extend(gone.map(|rule| format!("-D {chain} {rule}")));
    }

    /// The text, if there is anything to do.
    pub(super) fn text(&self) -> Option<String> {
        let lines = self.0.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        });
        (!lines.is_empty()).then(|| format!("*filter\n{lines}COMMIT\n"))
    }

    /// Lets `addresses` pass, for `owner`; whoever had them before has them no more.
    pub(super) fn open(&mut self, is: &Filter, admin: &str, owner: &str, addresses: &[IpAddr]) {
        self.chain(is, FORWARD);
        self.chain(is, admin);
        self.put(is, "-I", "FORWARD", &jump_to_ours());
        self.put(is, "-I", FORWARD, &jump_to(admin));
        for address in addresses {
            let wanted = rules_of(*address, Some(owner));
            let stale = |rule: &str| is_about(rule, *address) && !wanted.iter().any(|wanted| wanted == rule);
            self.delete_where(is, FORWARD, stale);
            for rule in &wanted {
                self.put(is, "-A", FORWARD, rule);
            }
        }
    }

    /// Undoes [`Batch::open`] for all owners that `is_gone` says, and for what the original made for `addresses`.
    pub(super) fn close(&mut self, is: &Filter, addresses: &[IpAddr], is_gone: impl Fn(Owner<'_>) -> bool) {
        let original: Vec<String> = addresses.iter().flat_map(|address| rules_of(*address, None)).collect();
        self.delete_where(is, FORWARD, |rule| {
            original.iter().any(|other| other == rule) || comment(rule).and_then(Owner::parse).is_some_and(&is_gone)
        });
    }

    /// Puts the policy of `bridge` in force.
    pub(super) fn isolate(&mut self, is: &Filter, bridge: &str, policy: Policy) {
        if policy == Policy::Open {
            return;
        }
        self.chain(is, STAGE_1);
        self.chain(is, STAGE_2);
        self.put(is, "-I", "FORWARD", &format!("{COMMENT} -j {STAGE_1}"));
        self.put(is, "-I", STAGE_1, &leaves(bridge));
        if policy == Policy::Isolated {
            self.put(is, "-I", STAGE_1, &stays(bridge));
        }
        self.put(is, "-A", STAGE_1, &returns());
        self.put(is, "-I", STAGE_2, &enters(bridge));
        self.put(is, "-A", STAGE_2, &returns());
    }

    /// Takes the policy off `bridge`, and the chains with the last of them.
    pub(super) fn release(&mut self, is: &Filter, bridges: &[String]) {
        let mut is_empty = true;
        for chain in [STAGE_1, STAGE_2] {
            let of_them = |rule: &str| {
                bridges
                    .iter()
                    .any(|bridge| [leaves(bridge), stays(bridge), enters(bridge)].iter().any(|own| own == rule))
            };
            is_empty &= is.rules(chain).iter().all(|rule| of_them(rule) || *rule == returns());
            self.delete_where(is, chain, of_them);
        }
        if is_empty && is.0.contains_key(STAGE_1) && is.0.contains_key(STAGE_2) {
            let jump = format!("{COMMENT} -j {STAGE_1}");
            self.delete_where(is, "FORWARD", |rule| rule == jump);
            for chain in [STAGE_1, STAGE_2] {
                self.delete_where(is, chain, |rule| rule == returns());
            }
            self.0.extend([format!("-X {STAGE_1}"), format!("-X {STAGE_2}")]);
        }
    }
}

/// The first rule that should be there and is not.
pub(super) fn missing(
    is: &Filter,
    admin: &str,
    addresses: &[IpAddr],
    bridge: Option<(&str, Policy)>,
) -> Option<String> {
    let mut wanted = vec![("FORWARD", jump_to_ours()), (FORWARD, jump_to(admin))];
    if let Some((bridge, policy)) = bridge.filter(|(_, policy)| *policy != Policy::Open) {
        wanted.extend([
            ("FORWARD", format!("{COMMENT} -j {STAGE_1}")),
            (STAGE_1, leaves(bridge)),
            (STAGE_2, enters(bridge)),
        ]);
        wanted.extend((policy == Policy::Isolated).then(|| (STAGE_1, stays(bridge))));
    }
    let lacks = |(chain, rule): &(&str, String)| !is.has(chain, rule);
    let of_address = |address: &IpAddr| {
        let bare = rules_of(*address, None);
        let found: Vec<String> = is.rules(FORWARD).iter().map(|rule| without_owner(rule)).collect();
        bare.into_iter().find(|rule| !found.contains(rule)).map(|rule| format!("{FORWARD} {rule}"))
    };
    wanted
        .iter()
        .find(|wanted| lacks(wanted))
        .map(|(chain, rule)| format!("{chain} {rule}"))
        .or_else(|| addresses.iter().find_map(of_address))
}

const COMMENT: &str = r#"-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge)""#;

fn jump_to_ours() -> String {
    format!(r#"-m comment --comment "CNI firewall plugin rules" -j {FORWARD}"#)
}

fn jump_to(admin: &str) -> String {
    format!(r#"-m comment --comment "CNI firewall plugin admin overrides" -j {admin}"#)
}

fn leaves(bridge: &str) -> String {
    format!("-i {bridge} ! -o {bridge} {COMMENT} -j {STAGE_2}")
}

fn stays(bridge: &str) -> String {
    format!("-i {bridge} -o {bridge} {COMMENT} -j DROP")
}

fn enters(bridge: &str) -> String {
    format!("-o {bridge} {COMMENT} -j DROP")
}

fn returns() -> String {
    format!("{COMMENT} -j RETURN")
}

fn single(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// The two rules of an address, with a comment or as the original has them.
fn rules_of(address: IpAddr, owner: Option<&str>) -> [String; 2] {
    let comment = owner.map_or_else(String::new, |owner| format!(r#"-m comment --comment "{owner}" "#));
    let address = single(address);
    [
        format!("-d {address} {comment}-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        format!("-s {address} {comment}-j ACCEPT"),
    ]
}

/// Whether it is a rule of ours for another owner of the address; the original's own are left to it.
fn is_about(rule: &str, address: IpAddr) -> bool {
    let address = single(address);
    let begins = |flag: &str| rule.strip_prefix(flag).is_some_and(|rest| rest.starts_with(&format!("{address} ")));
    (begins("-d ") || begins("-s ")) && comment(rule).and_then(Owner::parse).is_some()
}

fn comment(rule: &str) -> Option<&str> {
    rule.split_once("--comment \"")?.1.split('"').next()
}

fn without_owner(rule: &str) -> String {
    match comment(rule).filter(|comment| Owner::parse(comment).is_some()) {
        Some(comment) => rule.replace(&format!(r#"-m comment --comment "{comment}" "#), ""),
        None => rule.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What iptables-save(8) would print after `batch`.
    fn after(is: &Filter, batch: &Batch) -> Filter {
        let mut chains = is.0.clone();
        for line in &batch.0 {
            let (how, rest) = line.split_once(' ').unwrap();
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            match how {
                "-N" => assert!(chains.insert(chain.to_owned(), Vec::new()).is_none(), "{line}"),
                "-X" => assert!(chains.remove(chain).unwrap().is_empty(), "{line}"),
                "-I" => chains.get_mut(chain).unwrap().insert(0, rule.to_owned()),
                "-A" => chains.get_mut(chain).unwrap().push(rule.to_owned()),
                _ => {
                    let rules = chains.get_mut(chain).unwrap();
                    let at = rules.iter().position(|found| found == rule).unwrap_or_else(|| panic!("{line}"));
                    rules.remove(at);
                }
            }
        }
        Filter(chains)
    }

    fn empty() -> Filter {
        Filter::parse(
            "*nat\n:FORWARD - [0:0]\n-A FORWARD -j DROP\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n",
        )
    }

    #[test]
    fn open_and_close() {
        let address: IpAddr = "10.4.0.2".parse().unwrap();
        let mut batch = Batch::default();
        batch.open(&empty(), "CNI-ADMIN", "cni web c1 eth0", &[address]);
        let opened = after(&empty(), &batch);
        assert_eq!(missing(&opened, "CNI-ADMIN", &[address], None), None);
        assert!(missing(&opened, "MINE", &[address], None).unwrap().ends_with("-j MINE"));
        let other = "10.4.0.3".parse().unwrap();
        assert_eq!(
            missing(&opened, "CNI-ADMIN", &[other], None).unwrap(),
            "CNI-FORWARD -d 10.4.0.3/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        );
        // Again: nothing to do.
        let mut again = Batch::default();
        again.open(&opened, "CNI-ADMIN", "cni web c1 eth0", &[address]);
        assert_eq!(again.text(), None);
        // Another container has the address now.
        let mut next = Batch::default();
        next.open(&opened, "CNI-ADMIN", "cni web c2 eth0", &[address]);
        let next = after(&opened, &next);
        assert_eq!(next.rules(FORWARD).len(), 3);
        let close = |is: &Filter, container: &str, addresses: &[IpAddr]| {
            let mut batch = Batch::default();
            batch.close(is, addresses, |owner| owner.container == container);
            after(is, &batch)
        };
        assert_eq!(close(&next, "c1", &[]).rules(FORWARD).len(), 3, "a late DEL takes nothing");
        assert_eq!(close(&next, "c2", &[]).rules(FORWARD).len(), 1);
        // What the original made goes by address.
        let mut theirs = opened;
        theirs.0.insert(FORWARD.to_owned(), rules_of(address, None).to_vec());
        assert_eq!(close(&theirs, "c1", &[address]).rules(FORWARD).len(), 0);
        assert_eq!(
            missing(&theirs, "CNI-ADMIN", &[address], None).unwrap(),
            format!("CNI-FORWARD {}", jump_to("CNI-ADMIN"))
        );
    }

    #[test]
    fn policies_come_and_go() {
        let mut batch = Batch::default();
        batch.isolate(&empty(), "cni0", Policy::Open);
        assert_eq!(batch.text(), None);
        batch.isolate(&empty(), "cni0", Policy::SameBridge);
        let one = after(&empty(), &batch);
        let mut batch = Batch::default();
        batch.isolate(&one, "cni1", Policy::Isolated);
        let two = after(&one, &batch);
        assert_eq!(two.bridges(), ["cni1", "cni0"]);
        assert_eq!(two.rules(STAGE_1).last().unwrap(), &returns());
        let mut batch = Batch::default();
        batch.release(&two, &["cni0".to_owned()]);
        let left = after(&two, &batch);
        assert_eq!((left.bridges(), left.rules("FORWARD").len()), (vec!["cni1".to_owned()], 1));
        let mut batch = Batch::default();
        batch.release(&left, &["cni1".to_owned()]);
        assert_eq!(after(&left, &batch), empty());
    }
}
