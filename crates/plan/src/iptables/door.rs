//! What other owners' `FORWARD` of table `filter` does to the packets of our networks, and the door in it.
//!
//! Every table on the kernel's forward hook has a say: what ours accepts, a chain of somebody else may still drop. dockerd
//! and ufw set the policy of `FORWARD` to DROP. The door is one chain of ours with few constant rules, called from
//! `DOCKER-USER`, whose content dockerd leaves alone, or from `FORWARD`. Its calls and rules carry a comment that names the
//! root they are of, by which they are found whatever else has changed.

use std::collections::BTreeMap;
use std::fmt;

use super::Batch;
use super::chains::{Chain, Names, Table};
use super::saved::{Saved, Spec, words};
use crate::firewall::Firewall;
use crate::object::Groups;

const FORWARD: &str = "FORWARD";
/// Called first of all by what dockerd writes, and the administrator's.
const DOCKER_USER: &str = "DOCKER-USER";
/// Interfaces of Docker's networks. Names of ours begin so as well, but those are let in before.
const OF_DOCKER: [&str; 2] = ["docker0", "br-+"];
/// Bytes of a root that a comment tells; it has at most 255 (XT_MAX_COMMENT_LEN, xt_comment.h).
const ROOT_LEN: usize = 200;
/// Calls that are followed; iptables(8) refuses loops, so chains of more are merely strange.
const DEPTH: usize = 16;

/// The door of one root in the `FORWARD` of one family.
#[derive(Debug)]
pub struct Door {
    chain: String,
    forward: String,
    comment: String,
    rules: Vec<String>,
}

/// What `FORWARD` does to packets of our networks that no condition of others speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It lets them pass by itself, or calls the rules of the driver `iptables` in time.
    Clear,
    /// They pass by our door.
    Opened {
        /// The chain that calls the door.
        at: String,
    },
    /// It drops them.
    Closed(Closed),
}

/// What drops them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The policy or the rule.
    pub by: Obstacle,
    /// The chain that is to call the door.
    pub at: &'static str,
}

/// What drops packets that no condition speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The policy of `FORWARD`.
    Policy(String),
    /// A rule.
    Rule {
        /// The chain it is in.
        chain: String,
        /// The rule, as iptables-save(8) prints it.
        rule: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(policy) => write!(f, "policy {policy} of {FORWARD}"),
            Self::Rule { chain, rule } => write!(f, "rule `-A {chain} {rule}`"),
        }
    }
}

/// How a chain ends for a packet that no condition speaks of.
enum End {
    /// The caller goes on.
    Back,
    Accepted,
    Opened(String),
    Dropped(Obstacle),
}

impl Door {
    /// The door of the root at `root`, whose rules are `firewall`.
    pub fn new(firewall: &Firewall, root: &str) -> Self {
        let bridges = Groups::of(&firewall.name).bridges;
        let names = Names::of(firewall);
        let comment = comment(root);
        let quoted = quoted(&comment);
        let (from_ours, to_ours) = (format!("--src-group {bridges:#x}"), format!("--dst-group {bridges:#x}"));
        let rule = |interface: &str, groups: &str, verdict: &str| {
            format!("{interface}-m devgroup {groups} {quoted} -j {verdict}")
        };
        // Between ours our own rules decide, and about the world; with Docker's networks, Docker's, which are next: it
        // may have internal ones.
        let mut rules = vec![rule("", &format!("{from_ours} {to_ours}"), "ACCEPT")];
        rules.extend(OF_DOCKER.map(|name| rule(&format!("-i {name} "), &to_ours, "RETURN")));
        rules.extend(OF_DOCKER.map(|name| rule(&format!("-o {name} "), &from_ours, "RETURN")));
        rules.extend([&to_ours, &from_ours].map(|groups| rule("", groups, "ACCEPT")));
        Self { chain: format!("{}-DOOR", names.prefix()), forward: names.chain(Chain::Forward), comment, rules }
    }

    /// What `FORWARD` does to packets of our networks.
    pub fn state(&self, saved: &Saved) -> State {
        match self.walk(saved, FORWARD, 0, &mut BTreeMap::new()) {
            End::Accepted => State::Clear,
            End::Opened(at) => State::Opened { at },
            End::Dropped(by) => State::Closed(Closed { by, at: self.place(saved) }),
            End::Back => match saved.policy(FORWARD) {
                Some(policy) if policy != "ACCEPT" => {
                    State::Closed(Closed { by: Obstacle::Policy(policy.to_owned()), at: self.place(saved) })
                }
                _ => State::Clear,
            },
        }
    }

    /// Follows a packet that no condition speaks of through `chain`. `back` has the chains that it came back from, each with
    /// the fewest calls before it: they do not change their minds, and each may be called from everywhere.
    fn walk(&self, saved: &Saved, chain: &str, depth: usize, back: &mut BTreeMap<String, usize>) -> End {
        match back.get_mut(chain) {
            Some(before) if *before <= depth => return End::Back,
            Some(before) => *before = depth,
            None => drop(back.insert(chain.to_owned(), depth)),
        }
        for (rule, _) in saved.rules(Table::Filter, chain).unwrap_or_default() {
            let Some((option, target)) = unconditional(rule) else { continue };
            if target == self.forward {
                return End::Accepted;
            }
            if target == self.chain {
                if self.is_whole(saved) {
                    return End::Opened(chain.to_owned());
                }
                continue;
            }
            let end = match target.as_str() {
                "ACCEPT" => End::Accepted,
                "RETURN" => return End::Back,
                "DROP" | "REJECT" => End::Dropped(Obstacle::Rule { chain: chain.to_owned(), rule: rule.clone() }),
                _ if depth < DEPTH => self.walk(saved, &target, depth + 1, back),
                _ => End::Back,
            };
            match end {
                // What is gone to does not come back here.
                End::Back if option == "-g" => return End::Back,
                End::Back => {}
                end => return end,
            }
        }
        End::Back
    }

    fn is_whole(&self, saved: &Saved) -> bool {
        let found = saved.rules(Table::Filter, &self.chain).unwrap_or_default();
        found.iter().map(|(_, spec)| spec.clone()).eq(self.rules.iter().map(|rule| Spec::parse(rule)))
    }

    /// `DOCKER-USER` if packets that no condition speaks of come there.
    fn place(&self, saved: &Saved) -> &'static str {
        for (rule, _) in saved.rules(Table::Filter, FORWARD).unwrap_or_default() {
            let Some((_, target)) = unconditional(rule) else { continue };
            if target == DOCKER_USER {
                return DOCKER_USER;
            }
            if !matches!(self.walk(saved, &target, 1, &mut BTreeMap::new()), End::Back)
                || matches!(target.as_str(), "DROP" | "REJECT")
            {
                break;
            }
        }
        FORWARD
    }

    /// Opens what `saved` shows to be closed; none if it is not.
    pub fn open(&self, saved: &Saved) -> Option<String> {
        let State::Closed(Closed { at, .. }) = self.state(saved) else { return None };
        let mut batch = Batch::default();
        self.remove(saved, &mut batch, Some(&self.chain));
        // A declared chain that is there is emptied.
        batch.line(Table::Filter, format_args!(":{} - [0:0]", self.chain));
        for rule in &self.rules {
            batch.line(Table::Filter, format_args!("-A {} {rule}", self.chain));
        }
        batch.line(Table::Filter, format_args!("-I {at} {}", self.call()));
        batch.finish()
    }

    /// Removes all that `saved` shows of the door; none if that is nothing.
    pub fn close(&self, saved: &Saved) -> Option<String> {
        let mut batch = Batch::default();
        self.remove(saved, &mut batch, None);
        batch.finish()
    }

    /// The rule that calls the door.
    fn call(&self) -> String {
        format!("{} -j {}", quoted(&self.comment), self.chain)
    }

    /// Removes calls, and doors but `keep`. A door of another name is of a time when our rules had that name.
    fn remove(&self, saved: &Saved, batch: &mut Batch, keep: Option<&str>) {
        // A chain that is called cannot be removed, whoever calls it.
        let is_ours = |spec: &Spec| {
            spec.value("--comment") == Some(&self.comment) || spec.value("-j") == Some(self.chain.as_str())
        };
        let is_door = |chain: &str| chain == self.chain || (chain.starts_with("PORTOLAN-") && chain.ends_with("-DOOR"));
        let mut doors: Vec<&str> = Vec::new();
        for (chain, rules) in saved.filter() {
            let mut ours = rules.iter().filter(|(_, spec)| is_ours(spec)).peekable();
            if is_door(chain) && (chain == self.chain || ours.peek().is_some()) {
                doors.push(chain);
            } else {
                for (rule, _) in ours {
                    batch.line(Table::Filter, format_args!("-D {chain} {rule}"));
                }
            }
        }
        for verb in ["-F", "-X"] {
            for door in doors.iter().filter(|door| Some(**door) != keep) {
                batch.line(Table::Filter, format_args!("{verb} {door}"));
            }
        }
    }
}

/// Whose rules they are.
fn comment(root: &str) -> String {
    let mut start = root.len().saturating_sub(ROOT_LEN);
    while !root.is_char_boundary(start) {
        start += 1;
    }
    // One line of iptables-restore(8) is one rule.
    format!("portolan: networks of {}", root[start..].replace(char::is_control, "?"))
}

/// The comment as part of a rule.
fn quoted(comment: &str) -> String {
    format!("-m comment --comment \"{}\"", comment.replace('\\', "\\\\").replace('"', "\\\""))
}

/// `-j` or `-g` and the target of a rule that has no condition.
fn unconditional(rule: &str) -> Option<(String, String)> {
    let mut words = words(rule).into_iter().map(|word| word.text);
    loop {
        match words.next()?.as_str() {
            option @ ("-j" | "-g") => return words.next().map(|target| (option.to_owned(), target)),
            "-m" if words.next()? == "comment" => {}
            "--comment" => drop(words.next()),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/var/lib/portolan";

    /// Chains that all call the next one twenty times, as deep as they are followed and deeper.
    #[test]
    fn many_ways_to_one_chain() {
        let mut text = String::from("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j C0\n");
        for at in 0..40 {
            text += &format!(":C{at} - [0:0]\n");
            (0..20).for_each(|_| text += &format!("-A C{at} -j C{}\n", at + 1));
        }
        let start = std::time::Instant::now();
        assert!(matches!(state(&text), State::Closed(Closed { by: Obstacle::Policy(_), .. })));
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
    }

    fn door() -> Door {
        Door::new(&Firewall::nftables("portolan"), ROOT)
    }

    fn state(text: &str) -> State {
        door().state(&Saved::parse(text))
    }

    #[track_caller]
    fn closed(text: &str) -> (String, &'static str) {
        match state(text) {
            State::Closed(Closed { by, at }) => (by.to_string(), at),
            other => panic!("{other:?}"),
        }
    }

    /// dockerd 27's, but for chains that do not matter.
    const DOCKER: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
";

    #[test]
    fn a_host_that_drops_nothing_is_clear() {
        assert_eq!(state(""), State::Clear);
        assert_eq!(state("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i eth0 -j DROP\nCOMMIT\n"), State::Clear);
        assert_eq!(state("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT\n"), State::Clear);
    }

    #[test]
    fn the_policy_and_the_place_are_told() {
        assert_eq!(closed("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"), ("policy DROP of FORWARD".into(), "FORWARD"));
        assert_eq!(closed(DOCKER), ("policy DROP of FORWARD".into(), "DOCKER-USER"));
        let unused = DOCKER.replace("-A FORWARD -j DOCKER-USER\n", "");
        assert_eq!(closed(&unused).1, "FORWARD", "nobody calls it");
    }

    #[test]
    fn a_rule_without_conditions_is_found_in_whatever_chain_it_is() {
        let text = "*filter\n:FORWARD ACCEPT [0:0]\n:ufw-reject-forward - [0:0]\n-A FORWARD -m comment --comment \"-p a\" \
                    -j ufw-reject-forward\n-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n";
        let rule = "rule `-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable`";
        assert_eq!(closed(text), (rule.to_owned(), "FORWARD"));
        assert_eq!(state(&text.replace("-j REJECT", "-m rpfilter -j REJECT")), State::Clear, "a match without options");
        let before = DOCKER.replace("-A FORWARD -j DOCKER-USER\n", "-A FORWARD -j DROP\n-A FORWARD -j DOCKER-USER\n");
        assert_eq!(closed(&before), ("rule `-A FORWARD -j DROP`".into(), "FORWARD"), "nothing comes to DOCKER-USER");
    }

    #[test]
    fn our_own_chains_are_no_obstacle() {
        let text = "*filter\n:FORWARD DROP [0:0]\n:PORTOLAN-FORWARD - [0:0]\n-A FORWARD -j PORTOLAN-FORWARD\n\
                    -A PORTOLAN-FORWARD -j DROP\nCOMMIT\n";
        assert_eq!(state(text), State::Clear);
    }

    /// What iptables-save(8) shows after [`Door::open`].
    fn opened(chain: &str) -> String {
        let comment = "-m comment --comment \"portolan: networks of /var/lib/portolan\"";
        let rules = format!(
            ":PORTOLAN-DOOR - [0:0]\n\
             -A PORTOLAN-DOOR -m devgroup --src-group 0x504f --dst-group 0x504f {comment} -j ACCEPT\n\
             -A PORTOLAN-DOOR -i docker0 -m devgroup --dst-group 0x504f {comment} -j RETURN\n\
             -A PORTOLAN-DOOR -i br-+ -m devgroup --dst-group 0x504f {comment} -j RETURN\n\
             -A PORTOLAN-DOOR -o docker0 -m devgroup --src-group 0x504f {comment} -j RETURN\n\
             -A PORTOLAN-DOOR -o br-+ -m devgroup --src-group 0x504f {comment} -j RETURN\n\
             -A PORTOLAN-DOOR -m devgroup --dst-group 0x504f {comment} -j ACCEPT\n\
             -A PORTOLAN-DOOR -m devgroup --src-group 0x504f {comment} -j ACCEPT\n"
        );
        let call = format!("-A {chain} {comment} -j PORTOLAN-DOOR\n");
        DOCKER.replace("-A FORWARD -j DOCKER-USER\n", &format!("{rules}{call}-A FORWARD -j DOCKER-USER\n"))
    }

    #[test]
    fn a_door_is_opened_once_and_closed_without_a_trace() {
        let text = door().open(&Saved::parse(DOCKER)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["*filter", ":PORTOLAN-DOOR - [0:0]"]);
        assert_eq!(
            lines[9],
            "-I DOCKER-USER -m comment --comment \"portolan: networks of /var/lib/portolan\" -j PORTOLAN-DOOR"
        );
        assert_eq!(lines[10..], ["COMMIT"]);

        let now = Saved::parse(&opened("DOCKER-USER"));
        assert_eq!(door().state(&now), State::Opened { at: "DOCKER-USER".into() });
        assert_eq!(door().open(&now), None);
        let close = door().close(&now).unwrap();
        assert_eq!(
            close,
            "*filter\n-D DOCKER-USER -m comment --comment \"portolan: networks of /var/lib/portolan\" -j PORTOLAN-DOOR\n\
             -F PORTOLAN-DOOR\n-X PORTOLAN-DOOR\nCOMMIT\n"
        );
        assert_eq!(door().close(&Saved::parse(DOCKER)), None);
    }

    #[test]
    fn a_door_that_somebody_changed_is_made_anew() {
        let text = opened("FORWARD").replace("-o br-+", "-o br+");
        let saved = Saved::parse(&text);
        assert!(matches!(door().state(&saved), State::Closed(_)));
        let open = door().open(&saved).unwrap();
        assert_eq!(open.matches("-D FORWARD ").count(), 1, "{open}");
        assert!(!open.contains("-X "), "{open}");
    }

    #[test]
    fn the_door_of_another_root_stays_and_one_of_an_earlier_name_goes() {
        let saved = Saved::parse(&opened("DOCKER-USER"));
        let other = Door::new(&Firewall::nftables("portolan_1a2b3c4d"), "/srv/other");
        assert_eq!(other.close(&saved), None);
        assert!(matches!(other.state(&saved), State::Closed(_)));
        let renamed = Door::new(&Firewall::nftables("portolan_1a2b3c4d"), ROOT);
        let open = renamed.open(&saved).unwrap();
        assert!(open.contains("-X PORTOLAN-DOOR\n") && open.contains(":PORTOLAN-1A2B3C4D-DOOR - "), "{open}");
    }

    #[test]
    fn a_comment_fits_and_is_one_line() {
        let long = comment(&"/ä".repeat(200));
        assert!(long.len() < 255, "{}", long.len());
        assert!(comment("/a\nb").ends_with("/a?b"));
        let door = Door::new(&Firewall::nftables("portolan"), "/a \"b\\");
        assert_eq!(Spec::parse(&door.call()).value("--comment"), Some(door.comment.as_str()));
    }
}
