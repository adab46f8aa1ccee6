//! A kernel in memory: a set of objects that depend on each other as the real ones do, steps that can be made to fail,
//! and a process that can be made to die at any call.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ipnet::IpNet;
use portolan_engine::{Engine, HostInterface, HostRoute, Kernel, KernelError, Kind, NetworkRequest, PortClash};
use portolan_model::{DhcpLease, DhcpServer, Driver, IfName, Ipam, Mtu, ProcessId, Publication, Sandbox};
use portolan_plan::{Direction, Firewall, Key, Object, Objects, Set, Setting, ShortcutKey, ShortcutPart, Step};
use portolan_store::SqliteStore;

/// A port of the host that a process of somebody else's listens on.
pub(crate) const FOREIGN_PORT: u16 = 8009;

/// The host's own interface.
const LAN: &str = "eth0";

/// The host's own namespace.
const HOST: u64 = u64::MAX >> 1;

pub(crate) mod broken;
pub(crate) mod overlay;

use broken::{Ack, Site};

#[derive(Debug, Default)]
struct State {
    objects: Objects,
    sysctls: BTreeMap<String, String>,
    namespaces: BTreeMap<PathBuf, u64>,
    processes: BTreeSet<i32>,
    inodes: u64,
    random: u64,
    boot: u32,
    clock: u64,
    has_firewall: bool,
    /// Calls and steps left until the process dies.
    dies_in: Option<usize>,
    /// Steps of `apply` left until one fails.
    fails_in: Option<usize>,
}

/// One host; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct FakeKernel(Rc<RefCell<State>>);

impl FakeKernel {
    pub(crate) fn new(seed: u64) -> Self {
        let sysctls = [
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv6/conf/eth0/accept_ra", "1"),
        ];
        let sysctls = sysctls.into_iter().map(|(path, value)| (path.to_owned(), value.to_owned())).collect();
        Self(Rc::new(RefCell::new(State { sysctls, random: seed | 1, ..State::default() })))
    }

    /// Makes a namespace, or none if there is one.
    pub(crate) fn make_namespace(&self, path: &Path) {
        let mut state = self.0.borrow_mut();
        state.inodes += 1;
        let inode = state.inodes;
        state.namespaces.entry(path.to_owned()).or_insert(inode);
    }

    /// Removes a namespace with everything in it.
    pub(crate) fn remove_namespace(&self, path: &Path) {
        let mut state = self.0.borrow_mut();
        if let Some(inode) = state.namespaces.remove(path) {
            let is_inside = |object: &&Object| object.sandbox().is_some_and(|sandbox| sandbox.inode == inode);
            let inside: Vec<Object> =
                state.objects.iter().map(|(_, object)| object).filter(is_inside).cloned().collect();
            inside.iter().for_each(|object| state.delete(object));
        }
    }

    pub(crate) fn start_process(&self, pid: i32) -> ProcessId {
        self.0.borrow_mut().processes.insert(pid);
        ProcessId { pid, started: 1 }
    }

    pub(crate) fn end_process(&self, pid: i32) {
        self.0.borrow_mut().processes.remove(&pid);
    }

    /// The machine starts anew.
    pub(crate) fn reboot(&self) {
        let mut state = self.0.borrow_mut();
        let fresh = Self::new(0).0.take();
        *state =
            State { boot: state.boot + 1, inodes: state.inodes, random: state.random, clock: state.clock, ..fresh };
    }

    /// Removes an object behind our back, with what depends on it.
    pub(crate) fn remove(&self, object: &Object) {
        self.0.borrow_mut().delete(object);
    }

    /// Puts an object there behind our back, or changes the one with its key.
    pub(crate) fn put(&self, object: Object) {
        self.0.borrow_mut().objects.insert(object);
    }

    /// Somebody else has rules on this host, or has none any more.
    pub(crate) fn set_firewall(&self, is_there: bool) {
        self.0.borrow_mut().has_firewall = is_there;
    }

    /// Sets the clock.
    pub(crate) fn set_clock(&self, seconds: u64) {
        self.0.borrow_mut().clock = seconds;
    }

    pub(crate) fn objects(&self) -> Objects {
        self.0.borrow().objects.clone()
    }

    pub(crate) fn sysctls(&self) -> BTreeMap<String, String> {
        self.0.borrow().sysctls.clone()
    }

    /// Runs `verb`; the process dies at the `n`-th call or step of it. None if it did.
    pub(crate) fn dying_at<T>(&self, n: usize, verb: impl FnOnce() -> T) -> Option<T> {
        self.0.borrow_mut().dies_in = Some(n);
        let result = catch_unwind(AssertUnwindSafe(verb));
        self.0.borrow_mut().dies_in = None;
        match result {
            Ok(value) => Some(value),
            Err(payload) if payload.is::<broken::Death>() => None,
            Err(payload) => resume_unwind(payload),
        }
    }

    /// Runs `verb`, of which the `n`-th step is refused. Says also whether one was.
    pub(crate) fn failing_at<T>(&self, n: usize, verb: impl FnOnce() -> T) -> (T, bool) {
        self.0.borrow_mut().fails_in = Some(n);
        let result = verb();
        let refused = self.0.borrow_mut().fails_in.take().is_none();
        (result, refused)
    }

    fn call(&self) {
        broken::pass(Site::Kernel);
        let mut state = self.0.borrow_mut();
        if let Some(left) = &mut state.dies_in {
            *left = left.saturating_sub(1);
            if *left == 0 {
                drop(state);
                // Not by a panic: nobody is to be told.
                resume_unwind(Box::new(broken::Death));
            }
        }
    }

    /// A call that can be refused.
    fn ask(&self, doing: &str) -> Result<(), KernelError> {
        self.call();
        match broken::hit(Site::Kernel) {
            Some((errno, _)) => Err(failed(doing, errno)),
            None => Ok(()),
        }
    }

    /// Takes steps that are one transaction.
    fn transaction(&self, steps: &[Step]) -> Result<(), KernelError> {
        let mut state = self.0.borrow_mut();
        let saved = (steps.len() > 1).then(|| state.objects.clone());
        let mut lost = None;
        let result = steps.iter().try_for_each(|step| {
            match broken::hit(Site::Kernel) {
                Some((errno, Ack::Refused)) => return Err(failed(&step.to_string(), errno)),
                Some((errno, Ack::Lost)) => lost = Some(failed(&step.to_string(), errno)),
                None => {}
            }
            state.take_step(step)
        });
        if let (Err(_), Some(saved)) = (&result, saved) {
            state.objects = saved;
        }
        result?;
        // All of it has happened, and the answer says otherwise.
        lost.map_or(Ok(()), Err)
    }
}

/// A kernel, an engine over it, and its state, which is gone when the test ends.
pub(crate) struct Host {
    pub(crate) kernel: FakeKernel,
    pub(crate) engine: Engine<SqliteStore, FakeKernel>,
    scratch: PathBuf,
}

impl Host {
    /// Nothing yet; `name` is the test's.
    pub(crate) fn empty(name: &str) -> Self {
        let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
        let scratch = base.join(format!("portolan-engine-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&scratch);
        let kernel = FakeKernel::new(7);
        let engine = Engine::new("/root".to_owned(), SqliteStore::open(&scratch).unwrap(), kernel.clone());
        Self { kernel, engine, scratch }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

fn failed(doing: &str, errno: i32) -> KernelError {
    let (doing, reason) = (doing.to_owned(), broken::name(errno).to_owned());
    KernelError { doing, reason, errno, kind: Kind::Transient, hint: None, about: None }
}

fn refuse(step: &Step, reason: &str, kind: Kind) -> KernelError {
    KernelError { doing: step.to_string(), reason: reason.to_owned(), errno: 0, kind, hint: None, about: None }
}

impl State {
    fn is_alive(&self, sandbox: &Sandbox) -> bool {
        // The host's own has no other name here.
        sandbox.inode == HOST || self.namespaces.get(&sandbox.path) == Some(&sandbox.inode)
    }

    /// Whether what `object` stands on is there.
    fn has_ground(&self, object: &Object) -> bool {
        let bridge = |name: &IfName| self.objects.find(&Key::Bridge(name.clone())).is_some();
        let there = |key: Key| self.objects.find(&key).is_some();
        let ours = |name: &IfName| bridge(name) || there(Key::Port(name.clone())) || there(Key::Vxlan(name.clone()));
        let device = |name: &IfName| name.as_str() == LAN || ours(name);
        object.sandbox().is_none_or(|sandbox| self.is_alive(sandbox))
            && match object {
                Object::Element(_) => self.objects.iter().any(|(_, object)| matches!(object, Object::Ruleset(_))),
                Object::Port(port) => port.bridge().is_none_or(bridge),
                Object::Shaper(shaper) => self.objects.find(&Key::Port(shaper.host_end.clone())).is_some(),
                Object::Neighbour(neighbour) => device(&neighbour.device),
                Object::Forwarding(forwarding) => device(&forwarding.device),
                Object::HostRoute(route) => route.way.device().is_none_or(device),
                Object::Shortcut(shortcut) => {
                    device(&shortcut.device)
                        && match &shortcut.part {
                            ShortcutPart::Table { .. } => true,
                            part => {
                                let table = Key::Shortcut(shortcut.device.clone(), ShortcutKey::Table);
                                let end = match part {
                                    ShortcutPart::Near { host_end, .. } => there(Key::Port(host_end.clone())),
                                    _ => true,
                                };
                                there(table) && end
                            }
                        }
                }
                Object::Inlet(inlet) => device(&inlet.device),
                Object::Interface(interface) => self.objects.iter().any(|(_, object)| match object {
                    Object::Port(port) => port.sandbox == interface.sandbox && port.sandbox_end == interface.name,
                    Object::Child(child) => child.sandbox == interface.sandbox && child.name == interface.name,
                    _ => false,
                }),
                Object::DefaultRoute(route) => self.objects.iter().any(|(_, object)| {
                    matches!(object, Object::Interface(i) if i.sandbox == route.sandbox && i.name == route.interface)
                }),
                _ => true,
            }
    }

    /// Removes an object with what stands on it.
    fn delete(&mut self, gone: &Object) {
        let key = gone.key();
        self.objects.retain(|object| {
            object.key() != key
                && match gone {
                    Object::Ruleset(_) => !matches!(object, Object::Element(_)),
                    Object::Bridge(bridge) => !matches!(object, Object::Neighbour(n) if n.device == bridge.name),
                    // Chains stay, at no interface.
                    Object::Vxlan(vxlan) => {
                        matches!(object, Object::Shortcut(_)) || object.device() != Some(&vxlan.name)
                    }
                    Object::Shortcut(shortcut) if matches!(shortcut.part, ShortcutPart::Table { .. }) => {
                        !matches!(object, Object::Shortcut(other) if other.device == shortcut.device)
                    }
                    Object::Port(port) => match object {
                        Object::Neighbour(n) => n.device != port.host_end,
                        Object::HostRoute(r) => r.way.device() != Some(&port.host_end),
                        Object::Shaper(s) => s.host_end != port.host_end || s.direction == Direction::Out,
                        Object::Interface(i) => i.sandbox != port.sandbox || i.name != port.sandbox_end,
                        Object::DefaultRoute(r) => r.sandbox != port.sandbox || r.interface != port.sandbox_end,
                        _ => true,
                    },
                    _ => true,
                }
        });
    }

    fn take_step(&mut self, step: &Step) -> Result<(), KernelError> {
        if let Some(left) = &mut self.fails_in {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.fails_in = None;
                return Err(refuse(step, "try again (EAGAIN)", Kind::Transient));
            }
        }
        match step {
            Step::Create(Object::Setting(setting)) | Step::Change(_, Object::Setting(setting)) => {
                self.sysctls.insert(setting.path.clone(), setting.value.clone());
            }
            Step::Delete(Object::Setting(setting)) => self.reset(setting),
            Step::Create(object) => {
                if !self.has_ground(object) {
                    return Err(refuse(step, "no such device (ENODEV)", Kind::NotFound));
                }
                if self.objects.find(&object.key()).is_some() {
                    return Err(refuse(step, "file exists (EEXIST)", Kind::Conflict));
                }
                self.objects.insert(object.clone());
            }
            Step::Change(from, to) => {
                if !self.has_ground(to) || self.objects.find(&from.key()).is_none() {
                    return Err(refuse(step, "no such file or directory (ENOENT)", Kind::NotFound));
                }
                self.objects.insert(to.clone());
                self.drop_routes(from, to);
            }
            Step::Delete(object) => {
                if self.objects.find(&object.key()).is_none() {
                    return Err(refuse(step, "no such file or directory (ENOENT)", Kind::NotFound));
                }
                self.delete(object);
            }
        }
        Ok(())
    }

    fn repair_step(&mut self, step: &Step) {
        match step {
            Step::Create(Object::Setting(setting)) | Step::Change(_, Object::Setting(setting)) => {
                self.sysctls.insert(setting.path.clone(), setting.value.clone());
            }
            Step::Delete(Object::Setting(setting)) => self.reset(setting),
            Step::Create(object) => {
                if self.has_ground(object) {
                    self.objects.insert(object.clone());
                }
            }
            Step::Change(from, to) => {
                if self.has_ground(to) {
                    self.objects.insert(to.clone());
                    self.drop_routes(from, to);
                }
            }
            Step::Delete(object) => self.delete(object),
        }
    }

    /// An address that an interface loses takes the routes along whose gateway no other that it had leads to.
    fn drop_routes(&mut self, from: &Object, to: &Object) {
        let (Object::Interface(from), Object::Interface(to)) = (from, to) else { return };
        let (kept, lost): (Vec<_>, Vec<_>) = from.addresses.iter().partition(|address| to.addresses.contains(address));
        self.objects.retain(|object| match object {
            Object::DefaultRoute(route) if route.sandbox == to.sandbox && route.interface == to.name => {
                let leads = |address: &&IpNet| address.contains(&route.gateway);
                !lost.iter().any(leads) || kept.iter().any(leads)
            }
            _ => true,
        });
    }

    fn reset(&mut self, setting: &Setting) {
        if self.sysctls.get(&setting.path) == Some(&setting.value) {
            self.sysctls.insert(setting.path.clone(), setting.before.clone());
        }
    }
}

/// How many of the first steps are one transaction.
fn together(steps: &[Step]) -> usize {
    let in_table = |step: &Step| matches!(step.object(), Object::Element(_) | Object::Ruleset(_));
    steps.iter().take_while(|step| in_table(step)).count().max(1)
}

impl Kernel for FakeKernel {
    fn apply(&self, _: &Firewall, steps: &[Step]) -> Result<(), KernelError> {
        let mut rest = steps;
        while !rest.is_empty() {
            self.call();
            let (now, later) = rest.split_at(together(rest));
            self.transaction(now)?;
            rest = later;
        }
        self.call();
        Ok(())
    }

    fn repair(&self, _: &Firewall, steps: &[Step]) -> Vec<KernelError> {
        let mut failures = Vec::new();
        let mut rest = steps;
        while !rest.is_empty() {
            self.call();
            let (now, later) = rest.split_at(together(rest));
            // One by one, as the kernel is asked where a transaction is refused.
            for step in now {
                let broken = broken::hit(Site::Kernel);
                if !matches!(broken, Some((_, Ack::Refused))) {
                    self.0.borrow_mut().repair_step(step);
                }
                failures.extend(broken.map(|(errno, _)| failed(&step.to_string(), errno)));
            }
            rest = later;
        }
        self.call();
        failures
    }

    fn observe_rules(&self, _: &Firewall, _: &Objects) -> Result<Objects, KernelError> {
        self.ask("list rules")?;
        let is_rule = |object: &Object| matches!(object, Object::Ruleset(_) | Object::Element(_));
        Ok(self.0.borrow().objects.clone().into_iter().filter(is_rule).collect())
    }

    fn observe(&self, _: &str, _: &Firewall, desired: &Objects) -> Result<Objects, KernelError> {
        self.ask("list what is there")?;
        let state = self.0.borrow();
        let mut found = Objects::new();
        for (_, object) in desired.iter() {
            if let Object::Setting(setting) = object
                && let Some(value) = state.sysctls.get(&setting.path)
            {
                found.insert(Object::Setting(Setting { value: value.clone(), ..setting.clone() }));
            }
        }
        let sandboxes: BTreeSet<&Sandbox> = desired.iter().filter_map(|(_, object)| object.sandbox()).collect();
        // What lies inside of a sandbox is not ours by name.
        let is_seen = |object: &&Object| match object {
            Object::Interface(_) | Object::DefaultRoute(_) | Object::SandboxSetting(_) => {
                object.sandbox().is_some_and(|s| sandboxes.contains(s))
            }
            _ => true,
        };
        found.extend(state.objects.iter().map(|(_, object)| object).filter(is_seen).cloned());
        Ok(found)
    }

    fn runs_programs(&self) -> Result<bool, KernelError> {
        Ok(false)
    }

    fn runs_program(&self, _: &IfName) -> Result<bool, KernelError> {
        Ok(false)
    }

    fn tables(&self) -> Result<Vec<String>, KernelError> {
        self.ask("list tables")?;
        let state = self.0.borrow();
        Ok(state
            .objects
            .iter()
            .filter_map(|(_, object)| match object {
                Object::Ruleset(ruleset) => Some(ruleset.firewall.name.clone()),
                _ => None,
            })
            .collect())
    }

    fn has_other_firewall(&self) -> bool {
        self.call();
        self.0.borrow().has_firewall
    }

    fn routes(&self) -> Result<Vec<HostRoute>, KernelError> {
        self.ask("list routes")?;
        let route = |net: &str| HostRoute { net: net.parse().unwrap(), device: Some(2), table: 254 };
        Ok(vec![route("10.0.1.0/24"), route("172.17.0.0/16")])
    }

    fn path_mtu(&self) -> Result<Mtu, KernelError> {
        self.ask("read the default route")?;
        Ok(Mtu::ETHERNET)
    }

    fn find_interface(&self, name: &str) -> Result<Option<HostInterface>, KernelError> {
        let is_there = self.interfaces()?.iter().any(|(interface, _)| interface.as_str() == name);
        Ok(is_there.then_some(HostInterface { mtu: Mtu::ETHERNET, mac: None }))
    }

    fn default_interface(&self) -> Result<Option<IfName>, KernelError> {
        Ok(Some("eth0".parse().unwrap()))
    }

    fn interface_name(&self, index: u32) -> Option<String> {
        (index == 2).then(|| "eth0".to_owned())
    }

    fn interfaces(&self) -> Result<Vec<(IfName, Option<String>)>, KernelError> {
        self.ask("list interfaces")?;
        let state = self.0.borrow();
        let ours = state.objects.iter().filter_map(|(_, object)| match object {
            Object::Bridge(bridge) => Some((bridge.name.clone(), Some(bridge.alias.clone()))),
            Object::Port(port) => Some((port.host_end.clone(), Some(port.alias.clone()))),
            Object::Vxlan(vxlan) => Some((vxlan.name.clone(), Some(vxlan.alias.clone()))),
            _ => None,
        });
        Ok(ours.chain([("eth0".parse().unwrap(), None)]).collect())
    }

    fn setting(&self, path: &str) -> Option<String> {
        self.call();
        self.0.borrow().sysctls.get(path).cloned()
    }

    fn setting_in(&self, _: &Sandbox, _: &str) -> Result<Option<String>, KernelError> {
        self.ask("enter a namespace")?;
        Ok(Some("as it was".to_owned()))
    }

    fn sandbox(&self, path: &Path) -> Result<Sandbox, KernelError> {
        self.ask("open a namespace")?;
        let gone = || KernelError {
            doing: format!("open `{}`", path.display()),
            reason: "it does not exist".to_owned(),
            errno: 0,
            kind: Kind::Invalid,
            hint: None,
            about: None,
        };
        let inode = *self.0.borrow().namespaces.get(path).ok_or_else(gone)?;
        Ok(Sandbox { device: 4, inode, path: path.to_owned(), process: None })
    }

    fn here(&self) -> Result<Sandbox, KernelError> {
        self.ask("open the namespace")?;
        Ok(Sandbox { device: 4, inode: HOST, path: "/proc/thread-self/ns/net".into(), process: None })
    }

    fn sandbox_alive(&self, sandbox: &Sandbox) -> bool {
        self.call();
        self.0.borrow().is_alive(sandbox)
    }

    fn process_alive(&self, process: ProcessId) -> bool {
        self.call();
        self.0.borrow().processes.contains(&process.pid)
    }

    fn this_process(&self) -> ProcessId {
        self.call();
        ProcessId { pid: 1000, started: 1 }
    }

    fn boot(&self) -> Result<String, KernelError> {
        self.ask("read the boot's identity")?;
        Ok(format!("boot {}", self.0.borrow().boot))
    }

    fn now(&self) -> u64 {
        let mut state = self.0.borrow_mut();
        state.clock = state.clock.wrapping_add(1);
        state.clock
    }

    fn random(&self) -> [u8; 32] {
        self.call();
        let mut state = self.0.borrow_mut();
        let mut bytes = [0; 32];
        for chunk in bytes.chunks_mut(8) {
            state.random ^= state.random << 13;
            state.random ^= state.random >> 7;
            state.random ^= state.random << 17;
            chunk.copy_from_slice(&state.random.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        bytes
    }

    fn ephemeral_ports(&self) -> (u16, u16, Vec<u16>) {
        self.call();
        (49152, 49171, vec![49160])
    }

    fn host_ports_free(&self, publication: &Publication, _keeper: Option<&str>) -> Result<(), PortClash> {
        self.call();
        let (first, last) = (publication.host.first(), publication.host.last());
        if (first..=last).contains(&FOREIGN_PORT) {
            return Err(PortClash::Listening { port: FOREIGN_PORT, holder: "process 7 (`nginx`)".to_owned() });
        }
        Ok(())
    }

    fn forget_flows(&self, _: &[Publication]) {
        self.call();
    }
}

/// What the elements of `set` translate to or let through: how many there are.
pub(crate) fn count_elements(objects: &Objects, set: Set) -> usize {
    objects.iter().filter(|(_, object)| matches!(object, Object::Element(element) if element.set == set)).count()
}

/// The gateways of the default routes in `sandbox`.
pub(crate) fn gateways(objects: &Objects, path: &Path) -> BTreeSet<IpAddr> {
    objects
        .iter()
        .filter_map(|(_, object)| match object {
            Object::DefaultRoute(route) if route.sandbox.path == path => Some(route.gateway),
            _ => None,
        })
        .collect()
}

/// A network as a person asks for it: what kind it is says its name.
pub(crate) fn network_request(name: &str) -> NetworkRequest {
    let mut request = NetworkRequest::new(name.parse().unwrap());
    match name {
        "ptp" => {
            request.ipv6 = false;
            request.driver = Driver::Ptp;
        }
        "small" => request.subnets.push("10.77.0.0/29".parse().unwrap()),
        "vault" => request.internal = true,
        "lan" => {
            request.driver = Driver::Macvlan;
            request.ipam = Ipam::Dhcp;
            request.ipv6 = false;
            request.options = BTreeMap::from([("parent".to_owned(), "eth0".to_owned())]);
        }
        _ => {}
    }
    request
}

/// What a DHCP server grants.
pub(crate) fn lease(address: &str) -> DhcpLease {
    DhcpLease {
        address: address.parse().unwrap(),
        gateway: Some([10, 0, 1, 2].into()),
        routes: Vec::new(),
        dns: Vec::new(),
        domains: Vec::new(),
        server: DhcpServer::V4([10, 0, 1, 2].into()),
        obtained: 0,
        renew_after: 60,
        rebind_after: 105,
        valid_for: 120,
    }
}

/// Marsaglia's xorshift64*: the same numbers in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end as u64) as usize
    }
}
