use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use portolan_model::{
    Container, ContainerKind, ContainerState, Driver, Family, FirewallDriver, Id, IfName, Mtu, Network, NetworkMode,
    Phase, Publication, TAKEN_TO,
};
use portolan_plan::{
    ContainerView, Firewall, Objects, Setting, Step, base_objects, container_objects, end_objects, tunnel_objects,
};

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::kernel::{Kernel, KernelError, is_connectionless};
use crate::store::{Durability, Remotes as _, Store, Tx};

/// Keys of single values in the store.
pub(crate) mod meta {
    /// The boot under which the kernel was last written.
    pub(crate) const BOOT: &str = "boot";
    /// The name of our rules while the kernel holds them.
    pub(crate) const TABLE: &str = "table";
    /// Who carries them out. Unlike what is recorded beside it, it outlives a reboot.
    pub(crate) const FIREWALL: &str = "firewall";
    /// The sysctls we changed, with what they were.
    pub(crate) const SETTINGS: &str = "settings";
    /// Interfaces between which the host did not forward before us.
    pub(crate) const CLOSED: &str = "closed";
    /// What this host knows of its cluster.
    pub(crate) const CLUSTER: &str = "cluster";
    /// The hosts that its encrypted link was last told of.
    pub(crate) const CLUSTER_HOSTS: &str = "cluster_hosts";
    /// The revision of etcd that rows about other hosts are as of.
    pub(crate) const CLUSTER_SEEN: &str = "cluster_seen";
    /// Parts of blocks that this host gives nothing out of, for they are offered to others.
    pub(crate) const WITHHELD: &str = "withheld";
    /// The ports of the encrypted link, and whether its packets are tracked.
    pub(crate) const LINK: &str = "link";
    /// There if this host takes no more containers on networks over several hosts.
    pub(crate) const DRAINED: &str = "drained";
    /// Who claims pools, and which of its calls got no answer.
    pub(crate) const CLAIMS: &str = "claims";
    /// Our networks by the ids that others have for them.
    pub(crate) const REFERENCES: &str = "references";
    /// Ten hexadecimal digits: the global id of our unique local addresses (RFC 4193 §3.2.1).
    pub(crate) const ULA: &str = "ula";
}

/// No such file or directory (errno(3)).
const ENOENT: i32 = 2;

/// The table's name, unless another root has taken it in this namespace.
pub(crate) const TABLE_NAME: &str = "portolan";

/// The verbs, over a store and a kernel.
///
/// `root` names the state in the aliases of kernel objects, so that two roots on one host never touch each other's.
pub struct Engine<S, K> {
    pub(crate) root: String,
    pub(crate) store: S,
    pub(crate) kernel: K,
    pub(crate) firewall: Option<FirewallDriver>,
    pub(crate) cluster: Option<Box<dyn Cluster>>,
}

/// Why steps were not taken.
pub(crate) struct Unapplied {
    pub(crate) error: Error,
    /// Whether the kernel holds nothing of them.
    pub(crate) undone: bool,
}

impl<S: Store, K: Kernel> Engine<S, K> {
    /// The verbs for the state `store`, kept under `root`.
    pub fn new(root: String, store: S, kernel: K) -> Self {
        // An alias has at most 255 bytes (IFALIASZ); what does not fit is told apart by its end.
        let start = root.len().saturating_sub(100);
        let root = root.get(start..).unwrap_or(&root).to_owned();
        Self { root, store, kernel, firewall: None, cluster: None }
    }

    /// Asks for this driver of rules, or for the usual one. Who has networks already keeps the driver they were made with.
    #[must_use]
    pub fn with_firewall(mut self, driver: Option<FirewallDriver>) -> Self {
        self.firewall = driver;
        self
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Takes the lock and puts in order what died before us: then the predefined networks are there, and the kernel is
    /// what the rows say, as far as we did it.
    pub(crate) fn begin(&self) -> Result<S::Guard<'_>> {
        let guard = self.store.lock()?;
        self.recover(&guard)?;
        Ok(guard)
    }

    pub(crate) fn owner(&self) -> Phase {
        Phase::Pending(self.kernel.this_process())
    }

    /// The boot's identity.
    pub(crate) fn boot(&self) -> Result<String> {
        let doing = "find out whether the machine was started anew";
        self.kernel.boot().map_err(|source| Error::Kernel { doing: doing.to_owned(), source })
    }

    pub(crate) fn random_id(&self) -> Id {
        Id::from_bytes(self.kernel.random())
    }

    /// Takes `steps`; when one fails, takes back those that were taken. When the kernel lacks what should long be
    /// there (somebody flushed our table or removed a bridge), makes it hold all that the rows say instead, once.
    pub(crate) fn apply(
        &self,
        guard: &S::Guard<'_>,
        table: &Firewall,
        steps: &[Step],
        doing: impl Fn() -> String,
    ) -> Result<(), Unapplied> {
        let Err(source) = self.kernel.apply(table, steps) else { return Ok(()) };
        let mut undone = self.undo(table, steps);
        let lacks = source.kind == crate::Kind::NotFound;
        let error = Error::Kernel { doing: doing(), source };
        if lacks {
            tracing::info!(%error, "the kernel lacks what the store has: reconciling");
            match self.remake(guard, steps) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "could not reconcile"),
            }
            undone = self.undo(table, steps);
        }
        Err(Unapplied { error, undone })
    }

    /// Makes the kernel hold what the rows say, those of this verb among them, and answers whether it has what `steps` make.
    fn remake(&self, guard: &S::Guard<'_>, steps: &[Step]) -> Result<bool> {
        self.reconcile_kernel(guard)?;
        let left = self.differences(&self.store.read()?)?;
        let ours: BTreeSet<_> = steps.iter().map(|step| step.object().key()).collect();
        Ok(!left.iter().any(|step| ours.contains(&step.object().key())))
    }

    /// Takes `steps` back, as far as they were taken. Answers whether nothing of them is left: else the rows have to stay as
    /// they are, half-made, for the next verb to take them down.
    pub(crate) fn undo(&self, table: &Firewall, steps: &[Step]) -> bool {
        let mut failures = self.kernel.repair(table, &portolan_plan::inverse(steps));
        // What this host cannot do at all was not done either.
        failures.retain(|failure| failure.kind != crate::Kind::Unsupported);
        for failure in &failures {
            tracing::warn!(%failure, "could not be taken back: the next command tries again");
        }
        failures.is_empty()
    }

    /// Takes `steps` as far as they go.
    pub(crate) fn repair(&self, steps: &[Step]) -> Result<Vec<KernelError>> {
        let table = self.table(&self.store.read()?)?;
        Ok(self.kernel.repair(&table, steps))
    }

    fn own_table_name(&self) -> String {
        format!("{TABLE_NAME}_{}", short_hash(&self.root))
    }

    /// Who carries our rules out, and under which name. While there are none, one that only this root could have: the
    /// usual name may be another root's, whose table is not to be taken for a left-over of ours.
    pub(crate) fn table(&self, tx: &S::Tx<'_>) -> Result<Firewall> {
        let name = tx.meta(meta::TABLE)?.unwrap_or_else(|| self.own_table_name());
        let driver = self.recorded_driver(tx)?.or(self.firewall).unwrap_or_default();
        Ok(Firewall { driver, name })
    }

    /// Who carries the rules of the networks out that there are.
    fn recorded_driver(&self, tx: &S::Tx<'_>) -> Result<Option<FirewallDriver>> {
        match tx.meta(meta::FIREWALL)? {
            Some(text) => Ok(Some(text.parse()?)),
            // A store from before there was a choice.
            None => Ok(tx.meta(meta::TABLE)?.map(|_| FirewallDriver::Nftables)),
        }
    }

    /// Says so when another driver is asked for than the networks were made with.
    pub(crate) fn compare_firewall(&self, tx: &S::Tx<'_>) -> Result<()> {
        let Some(wanted) = self.firewall else { return Ok(()) };
        if let Some(recorded) = self.recorded_driver(tx)?.filter(|recorded| *recorded != wanted) {
            tracing::warn!(
                "firewall driver `{wanted}` is asked for, but `{recorded}` stays until the last network is gone"
            );
        }
        Ok(())
    }

    /// A network by name, id or the unique start of its id.
    pub(crate) fn find_network(&self, tx: &S::Tx<'_>, name: &str) -> Result<Network> {
        if let Some(network) = tx.network_named(name)? {
            return Ok(network);
        }
        one_of("network", name, is_hex(name).then(|| tx.networks_with_prefix(name)).transpose()?)
    }

    /// A container by name, id, what its runtime calls it, or the unique start of its id.
    pub(crate) fn find_container(&self, tx: &S::Tx<'_>, name: &str) -> Result<Container> {
        if let Some(container) = tx.container_named(name)? {
            return Ok(container);
        }
        if name.parse::<Id>().is_err() {
            let mut called = called(tx, name)?;
            match called.len() {
                0 => {}
                1 => return Ok(called.remove(0)),
                _ => {
                    let containers = called.into_iter().map(|container| container.name).collect();
                    return Err(Error::CalledAlike { name: name.to_owned(), containers });
                }
            }
        }
        one_of("container", name, is_hex(name).then(|| tx.containers_with_prefix(name)).transpose()?)
    }

    /// A container with its endpoints and ports.
    pub(crate) fn view(&self, tx: &S::Tx<'_>, container: Container) -> Result<ContainerView> {
        self.view_among(tx, container, &mut BTreeMap::new())
    }

    /// The same, for one of many: `networks` are those that were read already.
    pub(crate) fn view_among(
        &self,
        tx: &S::Tx<'_>,
        container: Container,
        networks: &mut BTreeMap<Id, Network>,
    ) -> Result<ContainerView> {
        let mut endpoints = Vec::new();
        for endpoint in tx.endpoints_of(container.id)? {
            let network = match networks.get(&endpoint.network) {
                Some(network) => network.clone(),
                None => tx
                    .network(endpoint.network)?
                    .ok_or_else(|| Error::NotFound { what: "network", name: endpoint.network.short() })?,
            };
            networks.entry(network.id).or_insert_with(|| network.clone());
            endpoints.push((endpoint, network));
        }
        let publications = tx.publications_of(container.id)?.into_iter().map(|row| row.publication).collect();
        Ok(ContainerView { container, endpoints, publications })
    }

    pub(crate) fn container_objects(&self, view: &ContainerView) -> Objects {
        container_objects(&self.root, view)
    }

    /// Whether the kernel should hold a network's objects: always for those a person made here; for the predefined bridge
    /// and for transient ones as long as somebody is on it.
    pub(crate) fn is_materialised(&self, tx: &S::Tx<'_>, network: &Network) -> Result<bool> {
        Ok(network.driver.holds_endpoints() && (!network.comes_and_goes() || tx.endpoint_count(network.id, 1)? > 0))
    }

    /// Whether the host should hold rules and settings of ours: while there is a bridge of ours.
    pub(crate) fn is_base_needed(&self, tx: &S::Tx<'_>) -> Result<bool> {
        if tx.has_user_bridges()? {
            return Ok(true);
        }
        match tx.network_named("bridge")? {
            Some(network) => Ok(tx.endpoint_count(network.id, 1)? > 0),
            None => Ok(false),
        }
    }

    /// What the host holds because of there being any bridge of ours. Decided and recorded when the first one comes.
    pub(crate) fn base(&self, tx: &S::Tx<'_>) -> Result<Objects> {
        if !self.is_base_needed(tx)? {
            return Ok(Objects::new());
        }
        if tx.meta(meta::TABLE)?.is_none() {
            self.record_base(tx)?;
        }
        let table = self.table(tx)?;
        let settings: Vec<(String, String, String)> = decode(tx.meta(meta::SETTINGS)?);
        let settings: Vec<Setting> =
            settings.into_iter().map(|(path, value, before)| Setting { path, value, before }).collect();
        let closed: Vec<(u8, IfName)> = decode(tx.meta(meta::CLOSED)?);
        let closed: Vec<(Family, IfName)> =
            closed.into_iter().map(|(v, name)| (if v == 4 { Family::V4 } else { Family::V6 }, name)).collect();
        let mut objects = base_objects(&table, &settings, &closed);
        if let Some(overlay) = tx.overlay_in_use()?.and_then(|network| network.overlay) {
            objects.extend(tunnel_objects(overlay.end.port, &self.untracked_ports(tx)?));
            tx.peers()?.iter().for_each(|peer| objects.extend(end_objects(peer)));
        }
        Ok(objects)
    }

    /// Decides the table's name and the sysctls, and remembers what they were.
    fn record_base(&self, tx: &S::Tx<'_>) -> Result<()> {
        let kernel = |source| Error::Kernel { doing: "read the host's state".to_owned(), source };
        let driver = self.recorded_driver(tx)?.or(self.firewall).unwrap_or_default();
        let interfaces = self.kernel.interfaces().map_err(kernel)?;
        let name = if self.is_name_taken(driver, &interfaces).map_err(kernel)? {
            self.own_table_name()
        } else {
            TABLE_NAME.to_owned()
        };
        let mut settings: Vec<(String, String, String)> = Vec::new();
        let mut closed: Vec<(u8, String)> = Vec::new();
        for (version, path) in [(4u8, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")] {
            let Some(before) = self.kernel.setting(path) else { continue };
            if before == "1" {
                continue;
            }
            if version == 6 {
                // A host that forwards ignores router advertisements unless it is told not to (ip-sysctl.rst, accept_ra):
                // without this it would lose its own default route.
                for (interface, _) in &interfaces {
                    let path = format!("net/ipv6/conf/{interface}/accept_ra");
                    if self.kernel.setting(&path).as_deref() == Some("1") {
                        settings.push((path, "2".to_owned(), "1".to_owned()));
                    }
                }
            }
            settings.push((path.to_owned(), "1".to_owned(), before));
            closed.extend(interfaces.iter().map(|(name, _)| (version, name.to_string())));
        }
        tx.put_meta(meta::TABLE, Some(&name))?;
        tx.put_meta(meta::FIREWALL, Some(driver.name()))?;
        tx.put_meta(meta::SETTINGS, Some(&encode(&settings)))?;
        tx.put_meta(meta::CLOSED, Some(&encode(&closed)))?;
        Ok(())
    }

    /// Whether another root on this host goes by the plain name, whatever driver it has.
    fn is_name_taken(
        &self,
        driver: FirewallDriver,
        interfaces: &[(IfName, Option<String>)],
    ) -> Result<bool, KernelError> {
        let own = format!("portolan:{}:", self.root);
        let is_another = |alias: &String| alias.starts_with("portolan:") && !alias.starts_with(&own);
        if interfaces.iter().filter_map(|(_, alias)| alias.as_ref()).any(is_another) {
            return Ok(true);
        }
        // The others may be there because the kernel has no nftables.
        Ok(driver == FirewallDriver::Nftables && self.kernel.tables()?.iter().any(|name| name == TABLE_NAME))
    }

    /// Forgets what [`Self::base`] recorded, once the kernel holds nothing of ours.
    pub(crate) fn forget_base(&self, tx: &S::Tx<'_>) -> Result<()> {
        tx.put_meta(meta::FIREWALL, None)?;
        self.forget_host(tx)
    }

    /// Forgets what [`Self::base`] recorded of this boot.
    pub(crate) fn forget_host(&self, tx: &S::Tx<'_>) -> Result<()> {
        for key in [meta::TABLE, meta::SETTINGS, meta::CLOSED] {
            tx.put_meta(key, None)?;
        }
        Ok(())
    }

    /// What a change to one container means for the kernel: the container's objects, and those of the networks and of
    /// the host that come or go with its endpoints. `with` is what the rows say now.
    pub(crate) fn surroundings(&self, tx: &S::Tx<'_>, networks: &[Network]) -> Result<Objects> {
        let mut objects = self.base(tx)?;
        for network in networks {
            if self.is_materialised(tx, network)? {
                objects.extend(self.network_objects(tx, network)?);
            }
        }
        Ok(objects)
    }

    /// Adds the predefined networks to a new store.
    pub(crate) fn ensure_predefined(&self, tx: &S::Tx<'_>) -> Result<bool> {
        let mut changed = false;
        if tx.meta(meta::ULA)?.is_none() {
            let random = self.kernel.random();
            let global: String = random[..5].iter().map(|b| format!("{b:02x}")).collect();
            tx.put_meta(meta::ULA, Some(&global))?;
            changed = true;
        }
        for (name, driver) in [("host", Driver::Host), ("none", Driver::None)] {
            if tx.network_named(name)?.is_none() {
                tx.put_network(&Network {
                    id: self.random_id(),
                    name: name.parse().expect("a valid name"),
                    driver,
                    internal: false,
                    subnets: Vec::new(),
                    options: Default::default(),
                    dns: Vec::new(),
                    raw_options: BTreeMap::new(),
                    ipam_options: None,
                    labels: BTreeMap::new(),
                    bridge: "none".parse().expect("a valid interface name"),
                    subinterface: None,
                    overlay: None,
                    routes: Vec::new(),
                    names: false,
                    names_at: Vec::new(),
                    names_port: None,
                    transient: false,
                    ipam: portolan_model::Ipam::Local,
                    speaks: Default::default(),
                    mtu: Mtu::ETHERNET,
                    created: self.kernel.now(),
                    phase: Phase::Settled,
                })?;
                changed = true;
            }
        }
        if tx.network_named("bridge")?.is_none() {
            let request = crate::NetworkRequest::new("bridge".parse().expect("a valid name"));
            let network = self.plan_network(tx, &request, Some("portolan0"))?;
            tx.put_network(&Network { phase: Phase::Settled, ..network })?;
            changed = true;
        }
        Ok(changed)
    }

    /// Whether the store still lacks the predefined networks: one transaction writes them and this value.
    pub(crate) fn is_new(&self, tx: &S::Tx<'_>) -> Result<bool> {
        Ok(tx.meta(meta::ULA)?.is_none())
    }

    /// Writes the predefined networks if they are not there.
    pub(crate) fn ensure_store(&self, guard: &S::Guard<'_>) -> Result<()> {
        let tx = self.store.write(guard)?;
        if !self.is_new(&tx)? {
            return Ok(());
        }
        self.ensure_predefined(&tx)?;
        Ok(tx.commit(Durability::Disk)?)
    }

    pub(crate) fn forget_flows(&self, publications: &[Publication]) {
        let stale: Vec<Publication> = publications.iter().copied().filter(|p| is_connectionless(p.protocol)).collect();
        if !stale.is_empty() {
            self.kernel.forget_flows(&stale);
        }
    }

    /// Whether interfaces that were handed over are where they can be found. What cannot be found out is no reason to take the
    /// container down.
    fn has_handed(&self, container: &Container) -> bool {
        let is_there = |name: &IfName| !matches!(self.kernel.find_interface(name.as_str()), Ok(None));
        let Ok(tx) = self.store.read() else { return true };
        let Ok(view) = self.view(&tx, container.clone()) else { return true };
        // One that is being made is not there yet.
        view.endpoints.iter().filter(|(endpoint, _)| endpoint.phase.is_settled()).all(|(endpoint, network)| {
            // Both ends of a pair go when the namespace does that either of them is in.
            if network.driver == Driver::Bridge || network.driver.is_routed() {
                return is_there(&endpoint.host_end);
            }
            let taken_to = container.labels.get(TAKEN_TO).map(|path| self.kernel.sandbox(Path::new(path)));
            let is_taken = taken_to.is_some_and(|found| !found.is_err_and(|error| error.errno == ENOENT));
            is_taken || is_there(&endpoint.ifname)
        })
    }

    /// Whether the container's namespace, or for a mode without one its process, is there.
    pub(crate) fn is_alive(&self, container: &Container) -> bool {
        // What cannot be found out is no reason to take the container down.
        if self.kernel.boot().is_ok_and(|boot| boot != container.boot) {
            return false;
        }
        if matches!(container.state, ContainerState::Exited(_)) {
            return false;
        }
        let process = || container.process.is_some_and(|process| self.kernel.process_alive(process));
        let sandbox = || container.sandbox.as_ref().is_some_and(|sandbox| self.kernel.sandbox_alive(sandbox));
        match (container.kind, &container.mode) {
            (ContainerKind::Attached, _) => sandbox(),
            (ContainerKind::Handed, _) => self.has_handed(container),
            // The supervisor reports the end of the process; without one there is nobody to wait for.
            (ContainerKind::Run, NetworkMode::Own | NetworkMode::None) => sandbox(),
            (ContainerKind::Run, NetworkMode::Host | NetworkMode::Container(_)) => process(),
        }
    }
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The containers that their runtime calls `name`: its places on networks, as a rule.
pub(crate) fn called<T: Tx>(tx: &T, name: &str) -> Result<Vec<Container>> {
    let mut containers = tx.containers()?;
    containers.retain(|container| container.name.as_str() != name && container.called() == name);
    Ok(containers)
}

fn one_of<T>(what: &'static str, name: &str, found: Option<Vec<T>>) -> Result<T> {
    let mut found = found.unwrap_or_default();
    match found.len() {
        0 => Err(Error::NotFound { what, name: name.chars().take(128).collect() }),
        1 => Ok(found.remove(0)),
        _ => Err(Error::Ambiguous { what, prefix: name.to_owned() }),
    }
}

pub(crate) fn encode<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain values serialise")
}

pub(crate) fn decode<T: serde::de::DeserializeOwned + Default>(text: Option<String>) -> T {
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Eight hexadecimal digits that tell roots apart.
fn short_hash(text: &str) -> String {
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}
