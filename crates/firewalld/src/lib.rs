//! firewalld(1) over D-Bus.
//!
//! Owns the calls of `org.fedoraproject.FirewallD1` (firewalld.dbus(5)) that zones and policies of ours need, and hearing of
//! its reloads. Leaves out what is to be in them: that is [`portolan_plan::firewalld`].
//!
//! Apart, because of what it brings along: whoever has no need of firewalld never opens a connection, and without one no
//! code of the bus library runs.

#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod foreign;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use portolan_plan::Firewall;
use portolan_plan::firewalld::{Policy, State, Zone};
use zbus::blocking::connection::Builder;
use zbus::blocking::{Connection, MessageIterator, fdo::DBusProxy};
use zbus::zvariant::{DynamicDeserialize, DynamicType, OwnedObjectPath, OwnedValue, Value};

/// The name on the bus, and the prefix of its interfaces.
const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const CONFIG: &str = "/org/fedoraproject/FirewallD1/config";

/// Where the system bus listens unless `DBUS_SYSTEM_BUS_ADDRESS` says otherwise (D-Bus specification, well-known message
/// buses).
const SOCKETS: [&str; 2] = ["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"];

/// A reload of a large configuration takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus could not be spoken to.
    #[error("connect to the system bus")]
    Bus(#[source] Box<zbus::Error>),
    /// firewalld refused, or did not answer.
    #[error("ask firewalld for `{method}`")]
    Call {
        /// The method of its interface.
        method: &'static str,
        /// Its reason.
        #[source]
        source: Box<zbus::Error>,
    },
}

/// What a call answers, or why it failed.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A connection to a firewalld that runs.
#[derive(Debug)]
pub struct Firewalld {
    connection: Connection,
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        Self::Bus(Box::new(error))
    }
}

impl From<zbus::fdo::Error> for Error {
    fn from(error: zbus::fdo::Error) -> Self {
        zbus::Error::from(error).into()
    }
}

/// Whether a process is in the network namespace of this thread, as far as can be told.
fn is_here(process: u32) -> bool {
    let identity = |path: &str| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let (there, here) = (identity(&format!("/proc/{process}/ns/net")), identity("/proc/thread-self/ns/net"));
    there.is_none() || there == here
}

/// Connects to the system bus. None where there is no bus, which costs looking for a file.
fn bus() -> Result<Option<Connection>> {
    if std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS").is_none() && !SOCKETS.iter().any(|path| Path::new(path).exists()) {
        return Ok(None);
    }
    Ok(Some(Builder::system()?.method_timeout(PATIENCE).build()?))
}

impl Firewalld {
    /// Connects. None where no firewalld runs, or one of another network namespace: buses know nothing of these, and its
    /// rules are not those that packets here meet.
    ///
    /// # Errors
    /// [`Error::Bus`] when there is a bus that does not let us in.
    pub fn connect() -> Result<Option<Self>> {
        let Some(connection) = bus()? else { return Ok(None) };
        let names = DBusProxy::new(&connection)?;
        let name = NAME.try_into().expect("a well-formed name");
        if !names.name_has_owner(name)? {
            return Ok(None);
        }
        let process = names.get_connection_unix_process_id(NAME.try_into().expect("a well-formed name"))?;
        Ok(is_here(process).then_some(Self { connection }))
    }

    /// Calls `method` of the interface whose name ends in `interface`.
    fn call<R>(
        &self,
        path: &str,
        interface: &str,
        method: &'static str,
        body: &(impl serde::Serialize + DynamicType),
    ) -> Result<R>
    where
        R: for<'d> DynamicDeserialize<'d>,
    {
        let failed = |source| Error::Call { method, source: Box::new(source) };
        let interface = format!("{NAME}{interface}");
        let reply =
            self.connection.call_method(Some(NAME), path, Some(interface.as_str()), method, body).map_err(failed)?;
        reply.body().deserialize().map_err(failed)
    }

    /// Whether zones and policies of ours are in force.
    fn is_defined(&self, firewall: &Firewall) -> Result<bool> {
        let zones: Vec<String> = self.call(PATH, ".zone", "getZones", &())?;
        let policies: Vec<String> = self.call(PATH, ".policy", "getPolicies", &())?;
        Ok(Zone::ALL.iter().all(|zone| zones.contains(&zone.name(firewall)))
            && Policy::ALL.iter().all(|policy| policies.contains(&policy.name(firewall))))
    }

    /// Makes zones and policies of ours in the permanent configuration. Where they are not in force, firewalld is made to
    /// reload: there is no other way to have a new one (firewalld.dbus(5)).
    ///
    /// # Errors
    /// What firewalld says.
    pub fn define(&self, firewall: &Firewall) -> Result<()> {
        let known: Vec<String> = self.call(CONFIG, ".config", "getZoneNames", &())?;
        for zone in Zone::ALL {
            let name = zone.name(firewall);
            if !known.contains(&name) {
                let mut settings: BTreeMap<&str, Value<'_>> =
                    BTreeMap::from([("target", zone.target().into()), ("short", "Portolan".into())]);
                if zone == Zone::Internal {
                    settings.insert("services", vec!["dns"].into());
                }
                self.call::<OwnedObjectPath>(CONFIG, ".config", "addZone2", &(name, settings))?;
            }
        }
        let known: Vec<String> = self.call(CONFIG, ".config", "getPolicyNames", &())?;
        for policy in Policy::ALL {
            let name = policy.name(firewall);
            if !known.contains(&name) {
                let made = policy.definition(firewall);
                let settings: BTreeMap<&str, Value<'_>> = BTreeMap::from([
                    ("short", "Portolan".into()),
                    ("target", made.target.into()),
                    ("priority", made.priority.into()),
                    ("ingress_zones", made.ingress.into()),
                    ("egress_zones", made.egress.into()),
                    ("rich_rules", made.rules.into()),
                ]);
                self.call::<OwnedObjectPath>(CONFIG, ".config", "addPolicy", &(name, settings))?;
            }
        }
        if !self.is_defined(firewall)? {
            self.call::<()>(PATH, "", "reload", &())?;
        }
        Ok(())
    }

    /// Empties zones and policies of ours and takes them out of the permanent configuration. firewalld forgets the empty
    /// ones with its next reload: to ask for one would take from others what they have not made permanent.
    ///
    /// # Errors
    /// What firewalld says.
    pub fn undefine(&self, firewall: &Firewall) -> Result<()> {
        if self.is_defined(firewall)? {
            self.write(firewall, &State::default())?;
        }
        let known: Vec<String> = self.call(CONFIG, ".config", "getPolicyNames", &())?;
        for name in Policy::ALL.map(|policy| policy.name(firewall)).iter().filter(|name| known.contains(name)) {
            let path: OwnedObjectPath = self.call(CONFIG, ".config", "getPolicyByName", name)?;
            self.call::<()>(path.as_str(), ".config.policy", "remove", &())?;
        }
        let known: Vec<String> = self.call(CONFIG, ".config", "getZoneNames", &())?;
        for name in Zone::ALL.map(|zone| zone.name(firewall)).iter().filter(|name| known.contains(name)) {
            let path: OwnedObjectPath = self.call(CONFIG, ".config", "getZoneByName", name)?;
            self.call::<()>(path.as_str(), ".config.zone", "remove", &())?;
        }
        Ok(())
    }

    /// What is in zones and policies of ours. None where one is missing.
    ///
    /// # Errors
    /// What firewalld says.
    pub fn read(&self, firewall: &Firewall) -> Result<Option<State>> {
        if !self.is_defined(firewall)? {
            return Ok(None);
        }
        let mut state = State::default();
        for zone in Zone::ALL {
            state.interfaces.insert(zone, self.interfaces(&zone.name(firewall))?);
        }
        for policy in [Policy::Publish, Policy::Own] {
            state.rules.insert(policy, self.rules(&policy.name(firewall))?);
        }
        Ok(Some(state.trimmed()))
    }

    fn interfaces(&self, zone: &str) -> Result<BTreeSet<String>> {
        let found: Vec<String> = self.call(PATH, ".zone", "getInterfaces", &zone)?;
        Ok(found.into_iter().collect())
    }

    fn rules(&self, policy: &str) -> Result<BTreeSet<String>> {
        Ok(rules(self.call(PATH, ".policy", "getPolicySettings", &policy)?))
    }

    /// Makes zones and policies of ours hold exactly this.
    ///
    /// # Errors
    /// What firewalld says; some of it may be done.
    pub fn write(&self, firewall: &Firewall, state: &State) -> Result<()> {
        for zone in Zone::ALL {
            let name = zone.name(firewall);
            let wanted = state.interfaces.get(&zone).cloned().unwrap_or_default();
            let found = self.interfaces(&name)?;
            for interface in found.difference(&wanted) {
                self.call::<String>(PATH, ".zone", "removeInterface", &(&name, interface))?;
            }
            for interface in wanted.difference(&found) {
                self.call::<String>(PATH, ".zone", "changeZoneOfInterface", &(&name, interface))?;
            }
        }
        for policy in [Policy::Publish, Policy::Own] {
            let name = policy.name(firewall);
            let wanted = state.rules.get(&policy).cloned().unwrap_or_default();
            if self.rules(&name)? != wanted {
                let rules: Vec<String> = wanted.into_iter().collect();
                let settings: BTreeMap<&str, Value<'_>> = BTreeMap::from([("rich_rules", rules.into())]);
                self.call::<()>(PATH, ".policy", "setPolicySettings", &(&name, settings))?;
            }
        }
        Ok(())
    }

    /// Lets interfaces pass that the rules of another driver take care of: they become part of the zone `trusted`.
    ///
    /// # Errors
    /// What firewalld says.
    pub fn trust<'a>(&self, interfaces: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let found = self.interfaces("trusted")?;
        for interface in interfaces.into_iter().filter(|name| !found.contains(*name)) {
            self.call::<String>(PATH, ".zone", "changeZoneOfInterface", &("trusted", interface))?;
        }
        Ok(())
    }

    /// Takes interfaces out of the zone `trusted`.
    ///
    /// # Errors
    /// What firewalld says.
    pub fn distrust<'a>(&self, interfaces: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let found = self.interfaces("trusted")?;
        for interface in interfaces.into_iter().filter(|name| found.contains(*name)) {
            self.call::<String>(PATH, ".zone", "removeInterface", &("trusted", interface))?;
        }
        Ok(())
    }

    /// Makes `source` (`10.4.0.2/32`) part of `zone` while firewalld runs; one that is part of a zone already is left.
    ///
    /// # Errors
    /// What firewalld says.
    pub fn add_source(&self, zone: &str, source: &str) -> Result<()> {
        match self.call::<String>(PATH, ".zone", "addSource", &(zone, source)) {
            Ok(_) => Ok(()),
            Err(Error::Call { source, .. })
                if says(&source, "ZONE_ALREADY_SET") || says(&source, "ALREADY_ENABLED") =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes `source` out of `zone`; one that is not part of it is left.
    ///
    /// # Errors
    /// What firewalld says.
    pub fn remove_source(&self, zone: &str, source: &str) -> Result<()> {
        match self.call::<String>(PATH, ".zone", "removeSource", &(zone, source)) {
            Ok(_) => Ok(()),
            Err(Error::Call { source, .. })
                if says(&source, "NOT_ENABLED")
                    || says(&source, "UNKNOWN_SOURCE")
                    || says(&source, "ZONE_CONFLICT") =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether `source` is part of `zone`.
    ///
    /// # Errors
    /// What firewalld says.
    pub fn has_source(&self, zone: &str, source: &str) -> Result<bool> {
        self.call(PATH, ".zone", "querySource", &(zone, source))
    }

    /// Whether it is set up to pass only what its own zones publish (`StrictForwardPorts`, firewalld.conf(5)). Versions
    /// that do not know the setting do not.
    pub fn is_strict(&self) -> bool {
        let property = (format!("{NAME}.config"), "StrictForwardPorts");
        let reply =
            self.connection.call_method(Some(NAME), CONFIG, Some("org.freedesktop.DBus.Properties"), "Get", &property);
        reply.ok().and_then(|reply| reply.body().deserialize::<OwnedValue>().ok()).is_some_and(is_yes)
    }
}

/// The rules among the settings of a policy.
fn rules(mut settings: BTreeMap<String, OwnedValue>) -> BTreeSet<String> {
    let rules = settings.remove("rich_rules").and_then(|rules| Vec::<String>::try_from(rules).ok());
    rules.unwrap_or_default().into_iter().collect()
}

/// Whether a setting is on.
fn is_yes(value: OwnedValue) -> bool {
    String::try_from(value).is_ok_and(|value| value == "yes")
}

/// Whether firewalld's reason is this one: all of them have one name on the bus, and a word in front of the text.
fn says(error: &zbus::Error, reason: &str) -> bool {
    error.to_string().contains(reason)
}

/// Calls `reloaded` whenever firewalld has reloaded or has come up, for good; where there is no bus it returns at once.
///
/// # Errors
/// [`Error::Bus`] when the bus does not let us in, or goes.
pub fn follow(mut reloaded: impl FnMut()) -> Result<()> {
    let Some(connection) = bus()? else { return Ok(()) };
    let names = DBusProxy::new(&connection)?;
    for rule in [
        format!("type='signal',sender='{NAME}',interface='{NAME}',member='Reloaded'"),
        format!("type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{NAME}'"),
    ] {
        names.add_match_rule(rule.as_str().try_into()?)?;
    }
    for message in MessageIterator::from(connection) {
        let message = message?;
        let header = message.header();
        let is_up = match header.member().map(|member| member.as_str()) {
            Some("Reloaded") => true,
            // Name, who had it, and who has it now.
            Some("NameOwnerChanged") => message
                .body()
                .deserialize::<(String, String, String)>()
                .is_ok_and(|(name, _, now)| name == NAME && !now.is_empty()),
            _ => false,
        };
        if is_up {
            reloaded();
        }
    }
    Ok(())
}
