//! From what is to what should be, as ordered steps.

use std::collections::BTreeMap;
use std::fmt;

use portolan_model::{IfName, Sandbox};

use crate::desired::ContainerView;
use crate::object::{Key, Object, Objects, Port};
use crate::set::Set;

/// One change to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make it.
    Create(Object),
    /// Change it from the first to the second.
    Change(Object, Object),
    /// Remove it.
    Delete(Object),
}

impl Step {
    /// The step that undoes this one.
    pub fn inverse(self) -> Self {
        match self {
            Self::Create(object) => Self::Delete(object),
            Self::Change(from, to) => Self::Change(to, from),
            Self::Delete(object) => Self::Create(object),
        }
    }

    /// The object before and after the step.
    pub fn sides(&self) -> (Option<&Object>, Option<&Object>) {
        match self {
            Self::Create(to) => (None, Some(to)),
            Self::Change(from, to) => (Some(from), Some(to)),
            Self::Delete(from) => (Some(from), None),
        }
    }

    /// The object the step is about, as it should be afterwards (or was, for a deletion).
    pub fn object(&self) -> &Object {
        match self {
            Self::Create(object) | Self::Change(_, object) | Self::Delete(object) => object,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(object) => write!(f, "create {object}"),
            Self::Change(from, to) => write!(f, "change {from} into {to}"),
            Self::Delete(object) => write!(f, "delete {object}"),
        }
    }
}

/// The steps that lead from `observed` to `desired`: deletions first, then changes and creations in order.
///
/// Deletions go through elements first, so that no rule leads to a container that is going; then backwards
/// through the order of creation. What keeps the host from forwarding goes after the host has stopped forwarding.
pub fn diff(desired: &Objects, observed: &Objects) -> Vec<Step> {
    let passes = |object: &Object| matches!(object, Object::Element(element) if element.set.expires());
    let gone = |(key, object): (&Key, &Object)| {
        (desired.find(key).is_none() && !passes(object)).then(|| Step::Delete(object.clone()))
    };
    let is_element = |step: &Step| match step.object() {
        Object::Element(element) => element.set != Set::Closed,
        Object::Shortcut(_) | Object::Inlet(_) => true,
        _ => false,
    };
    let (mut steps, rest): (Vec<Step>, Vec<Step>) = observed.iter().rev().filter_map(gone).partition(is_element);
    steps.extend(rest);
    let anew = made_anew(desired, observed);
    let is_lost = |object: &Object| !anew.is_empty() && object.device().is_some_and(|device| anew.contains(&device));
    for (key, wanted) in desired.iter() {
        match observed.find(key) {
            None => steps.push(Step::Create(wanted.clone())),
            Some(found) if found != wanted || is_overwritten(wanted, &steps) || is_lost(wanted) => {
                steps.push(Step::Change(found.clone(), wanted.clone()));
            }
            Some(_) => {}
        }
    }
    steps
}

/// Has `steps` make the interfaces of a container in the order of its endpoints: a namespace numbers them as they come.
pub fn in_order_of(view: &ContainerView, steps: Vec<Step>) -> Vec<Step> {
    let place = |step: &Step| match step {
        Step::Create(Object::Port(port)) => {
            view.endpoints.iter().position(|(endpoint, _)| endpoint.host_end == port.host_end)
        }
        Step::Create(Object::Child(child)) => {
            let sandbox = view.container.sandbox.as_ref().map(|sandbox| (sandbox.device, sandbox.inode));
            let is_its = sandbox == Some((child.sandbox.device, child.sandbox.inode));
            view.endpoints.iter().position(|(endpoint, _)| is_its && endpoint.ifname == child.name)
        }
        _ => None,
    };
    // What they are on comes before all of them, and what is on them after.
    let Some(first) = steps.iter().position(|step| place(step).is_some()) else { return steps };
    let (mut made, mut ordered): (Vec<Step>, Vec<Step>) = steps.into_iter().partition(|step| place(step).is_some());
    made.sort_by_key(place);
    ordered.splice(first..first, made);
    ordered
}

/// Whether `object` is a setting of an interface that `steps` configure anew, with what we set on every interface.
fn is_overwritten(object: &Object, steps: &[Step]) -> bool {
    let Object::SandboxSetting(setting) = object else { return false };
    let place = |sandbox: &Sandbox| (sandbox.device, sandbox.inode);
    steps.iter().any(|step| match step {
        Step::Create(Object::Interface(interface)) | Step::Change(_, Object::Interface(interface)) => {
            place(&interface.sandbox) == place(&setting.sandbox) && setting.key.is_of(&interface.name)
        }
        _ => false,
    })
}

/// The ends of tunnels that are made anew, without what stands on them.
fn made_anew<'a>(desired: &'a Objects, observed: &Objects) -> Vec<&'a IfName> {
    let name = |(key, object): (&Key, &'a Object)| match (object, observed.find(key)) {
        (Object::Vxlan(to), Some(Object::Vxlan(from))) if !from.is_same_end(to) => Some(&to.name),
        _ => None,
    };
    desired.iter().filter_map(name).collect()
}

/// `steps` without those that nobody can take: what is made in a sandbox that is gone, or on a port into one.
pub fn possible(mut steps: Vec<Step>, is_alive: impl Fn(&Sandbox) -> bool) -> Vec<Step> {
    let mut alive: BTreeMap<Sandbox, bool> = BTreeMap::new();
    let mut lost: Vec<Port> = Vec::new();
    // A port comes before what stands on it.
    steps.retain(|step| {
        let Step::Create(object) = step else { return true };
        let stands = match object.sandbox() {
            Some(sandbox) => *alive.entry(sandbox.clone()).or_insert_with(|| is_alive(sandbox)),
            None => !lost.iter().any(|port| object.is_on(port)),
        };
        if let (Object::Port(port), false) = (object, stands) {
            lost.push(port.clone());
        }
        stands
    });
    steps
}

/// The steps that undo `steps`, last first.
pub fn inverse(steps: &[Step]) -> Vec<Step> {
    steps.iter().rev().cloned().map(Step::inverse).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use portolan_model::{Family, LinkAttributes, Mac, Mtu, Protocol};

    use super::*;
    use crate::firewall::Firewall;
    use crate::object::{
        Bridge, BridgePort, Data, DefaultRoute, Element, Field, HostEnd, Interface, Neighbour, Ruleset, SandboxSetting,
        Setting,
    };
    use crate::set::Set;

    /// Marsaglia's xorshift64: the same numbers in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }
    }

    /// An object of `kind` 0 to 7, one of few keys (`which`) and of few looks (`look`).
    fn object(kind: u64, which: u8, look: u8) -> Object {
        let name = |what: &str| format!("{what}{which}").parse().unwrap();
        let mac = Mac::from_bytes([2, 0, 0, 0, 0, look]);
        let mtu = Mtu::new(1400 + u32::from(look)).unwrap();
        let address = [10, 0, 0, which].into();
        let sandbox =
            Sandbox { device: 4, inode: which.into(), path: format!("/run/netns/{which}").into(), process: None };
        let addresses = BTreeSet::new();
        let (alias, bridge) = (String::new(), "br0".parse().unwrap());
        match kind {
            0 => Object::Setting(Setting {
                path: format!("net/{which}"),
                value: look.to_string(),
                before: String::new(),
            }),
            1 => Object::Ruleset(Ruleset { firewall: Firewall::nftables(&format!("table{which}")) }),
            2 => Object::Bridge(Bridge {
                name: name("br"),
                mac,
                mtu,
                addresses,
                alias,
                ipv6: false,
                route_localnet: false,
                strict: true,
                vlan: None,
                vrf: None,
            }),
            3 => {
                let key = vec![Field::Protocol(Protocol::Tcp), Field::Ports(which.into(), which.into())];
                let data = Data::AddressPort([10, 0, 0, look].into(), 80);
                Object::Element(Element { set: Set::AnyPort(Family::V4), key, data, owner: "container c".to_owned() })
            }
            4 => Object::Port(Port {
                host_end: name("pv"),
                place: HostEnd::Bridge(BridgePort {
                    bridge,
                    isolated: false,
                    locked: true,
                    asks: false,
                    ruled: true,
                    vlan: None,
                }),
                mac,
                mtu,
                alias,
                sandbox,
                sandbox_end: "eth0".parse().unwrap(),
            }),
            5 => Object::Neighbour(Neighbour { device: bridge, address, mac }),
            6 => Object::Interface(Interface {
                sandbox,
                name: "eth0".parse().unwrap(),
                mac: Some(mac),
                mtu,
                addresses,
                routed: BTreeMap::new(),
                ipv6: true,
                announce: 0,
                routers: None,
                attributes: LinkAttributes::default(),
            }),
            _ => Object::DefaultRoute(DefaultRoute {
                sandbox,
                gateway: [10, 0, 0, look].into(),
                interface: "eth0".parse().unwrap(),
                metric: None,
            }),
        }
    }

    const KINDS: u64 = 8;

    fn random_objects(random: &mut Random) -> Objects {
        let count = random.below(40);
        (0..count).map(|_| object(random.below(KINDS), random.below(5) as u8, random.below(3) as u8)).collect()
    }

    /// Does what `steps` say, and refuses a step whose object is not as the step believes.
    fn apply(mut objects: Objects, steps: &[Step]) -> Objects {
        for step in steps {
            match step {
                Step::Create(new) => {
                    assert_eq!(objects.find(&new.key()), None, "{step}");
                    objects.insert(new.clone());
                }
                Step::Change(from, to) => {
                    assert_eq!(from.key(), to.key(), "{step}");
                    assert_ne!(from, to, "{step}");
                    assert_eq!(objects.find(&from.key()), Some(from), "{step}");
                    objects.insert(to.clone());
                }
                Step::Delete(old) => {
                    assert_eq!(objects.find(&old.key()), Some(old), "{step}");
                    objects.retain(|object| object != old);
                }
            }
        }
        objects
    }

    fn all_kinds() -> Objects {
        (0..KINDS).map(|kind| object(kind, 1, 1)).collect()
    }

    fn kinds(steps: &[Step]) -> Vec<&'static str> {
        let kind = |step: &Step| match step.object() {
            Object::Setting(_) => "setting",
            Object::SandboxSetting(_) => "sysctl",
            Object::Ruleset(_) => "ruleset",
            Object::Bridge(_) => "bridge",
            Object::Element(_) => "element",
            Object::Port(_) => "port",
            Object::Shaper(_) => "shaper",
            Object::Vlan(_) => "vlan",
            Object::Child(_) => "child",
            Object::Route(_) => "route",
            Object::Vxlan(_) => "vxlan",
            Object::Forwarding(_) => "forwarding",
            Object::HostRoute(_) => "host route",
            Object::Shortcut(_) => "shortcut",
            Object::Inlet(_) => "inlet",
            Object::Neighbour(_) => "neighbour",
            Object::Interface(_) => "interface",
            Object::DefaultRoute(_) => "default route",
        };
        steps.iter().map(kind).collect()
    }

    #[test]
    fn what_configures_an_interface_overwrites_its_settings() {
        let (before, after) = (object(6, 1, 1), object(6, 1, 2));
        let Object::Interface(interface) = &before else { panic!("{before}") };
        let setting = |key: &str| {
            let (key, value) = (key.parse().unwrap(), "1".to_owned());
            Object::SandboxSetting(SandboxSetting { sandbox: interface.sandbox.clone(), key, value, before: None })
        };
        let settings = [setting("net.ipv4.conf.eth0.rp_filter"), setting("net.ipv4.ip_forward")];
        let with = |interface: &Object| -> Objects { settings.iter().chain([interface]).cloned().collect() };
        assert_eq!(diff(&with(&before), &with(&before)), []);
        let steps = diff(&with(&after), &with(&before));
        assert_eq!(kinds(&steps), ["interface", "sysctl"]);
        assert_eq!(steps[1].object(), &settings[0]);
    }

    #[test]
    fn nothing_is_made_for_a_sandbox_that_is_gone() {
        let on_port = |which: u8| {
            let device = format!("pv{which}").parse().unwrap();
            let mac = Mac::from_bytes([2, 0, 0, 0, 0, which]);
            Object::Neighbour(Neighbour { device, address: [10, 0, 0, which].into(), mac })
        };
        let desired: Objects =
            (1..=2).flat_map(|which| [object(4, which, 1), on_port(which), object(6, which, 1)]).collect();
        let steps = possible(diff(&desired, &Objects::new()), |sandbox| sandbox.inode == 2);
        assert_eq!(steps, [object(4, 2, 1), on_port(2), object(6, 2, 1)].map(Step::Create));
        let steps = possible(diff(&Objects::new(), &desired), |_| false);
        assert_eq!(steps.len(), 6, "what is there can be removed");
    }

    #[test]
    fn creations_come_in_order() {
        let steps = diff(&all_kinds(), &Objects::new());
        assert_eq!(
            kinds(&steps),
            ["ruleset", "bridge", "element", "setting", "port", "neighbour", "interface", "default route"]
        );
        assert!(steps.iter().all(|step| matches!(step, Step::Create(_))));
    }

    #[test]
    fn deletions_take_elements_first_then_go_backwards() {
        let mut observed = all_kinds();
        observed.insert(object(3, 2, 1));
        let steps = diff(&Objects::new(), &observed);
        assert_eq!(
            kinds(&steps),
            ["element", "element", "default route", "interface", "neighbour", "port", "setting", "bridge", "ruleset"]
        );
        assert_eq!(steps[0], Step::Delete(object(3, 2, 1)), "of elements, the last first");
        assert!(steps.iter().all(|step| matches!(step, Step::Delete(_))));
    }

    #[test]
    fn deletions_come_before_changes_and_creations() {
        let observed: Objects = [object(2, 1, 1), object(3, 1, 1), object(4, 1, 1)].into_iter().collect();
        let desired: Objects = [object(2, 2, 1), object(3, 1, 2), object(4, 2, 1)].into_iter().collect();
        assert_eq!(
            diff(&desired, &observed),
            [
                Step::Delete(object(4, 1, 1)),
                Step::Delete(object(2, 1, 1)),
                Step::Create(object(2, 2, 1)),
                Step::Change(object(3, 1, 1), object(3, 1, 2)),
                Step::Create(object(4, 2, 1)),
            ]
        );
    }

    #[test]
    fn a_port_that_moves_to_another_container_is_one_change() {
        let to = |look| [object(3, 80, look)].into_iter().collect::<Objects>();
        assert_eq!(diff(&to(2), &to(1)), [Step::Change(object(3, 80, 1), object(3, 80, 2))]);
    }

    #[test]
    fn steps_lead_from_any_state_to_any_other_and_back() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..2000 {
            let (observed, desired) = (random_objects(&mut random), random_objects(&mut random));
            let steps = diff(&desired, &observed);
            assert_eq!(apply(observed.clone(), &steps), desired, "round {round}");
            assert_eq!(apply(desired.clone(), &inverse(&steps)), observed, "round {round}");
            assert_eq!(diff(&desired, &desired), [], "round {round}");
            // Whatever step fails, undoing those before it leads back.
            let done = random.below(steps.len() as u64 + 1) as usize;
            let broken = apply(observed.clone(), &steps[..done]);
            assert_eq!(apply(broken.clone(), &inverse(&steps[..done])), observed, "round {round}");
            // Or whoever comes next goes on from there.
            assert_eq!(diff(&desired, &broken).len(), steps.len() - done, "round {round}");
        }
    }

    #[test]
    fn inverse_is_its_own_inverse() {
        let observed: Objects = [object(2, 1, 1), object(3, 1, 1)].into_iter().collect();
        let desired: Objects = [object(3, 1, 2), object(4, 2, 1)].into_iter().collect();
        let steps = diff(&desired, &observed);
        assert_eq!(inverse(&inverse(&steps)), steps);
        assert_eq!(steps[0].to_string(), "delete bridge `br1` mtu 1401 mac 02:00:00:00:00:01 addresses none");
    }
}
