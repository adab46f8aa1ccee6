//! `GET /events`: what happened, out of what changed in the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use portolan_engine::Change;
use portolan_model::{Container, ContainerKind, ContainerState, Id, Network};
use portolan_plan::ContainerView;
use serde::{Serialize, Serializer};

use super::failure::Failure;
use super::filters::Filters;
use super::{Request, times};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    kind: &'static str,
    action: &'static str,
    id: String,
    attributes: BTreeMap<String, String>,
    /// Since 1970.
    time: Duration,
}

impl Message {
    fn new(kind: &'static str, action: &'static str, id: String) -> Self {
        Self { kind, action, id, attributes: BTreeMap::new(), time: Duration::ZERO }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.attributes.insert(name.to_owned(), value.into());
        self
    }

    fn network(action: &'static str, id: Id, known: &KnownNetwork) -> Self {
        Self::new("network", action, id.to_string()).with("name", &known.name).with("type", &known.driver)
    }

    fn container(action: &'static str, id: Id, known: &KnownContainer) -> Self {
        let mut message = Self::new("container", action, id.to_string());
        message.attributes.clone_from(&known.labels);
        message.with("name", &known.name).with("image", "")
    }

    /// That networks nobody was on were removed.
    pub fn pruned() -> Self {
        Self::new("network", "prune", String::new()).with("reclaimed", "0")
    }

    /// When it happened, since 1970.
    #[must_use]
    pub const fn at(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            // The names of before 1.22.
            #[serde(skip_serializing_if = "Option::is_none")]
            status: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<&'a str>,
            #[serde(rename = "Type")]
            kind: &'a str,
            #[serde(rename = "Action")]
            action: &'a str,
            #[serde(rename = "Actor")]
            actor: Actor<'a>,
            scope: &'a str,
            time: u64,
            #[serde(rename = "timeNano")]
            nanos: u64,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Actor<'a> {
            #[serde(rename = "ID")]
            id: &'a str,
            attributes: &'a BTreeMap<String, String>,
        }
        let is_container = self.kind == "container";
        Shown {
            status: is_container.then_some(self.action),
            id: is_container.then_some(&self.id),
            kind: self.kind,
            action: self.action,
            actor: Actor { id: &self.id, attributes: &self.attributes },
            scope: "local",
            time: self.time.as_secs(),
            nanos: u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX),
        }
        .serialize(serializer)
    }
}

/// Which events a client follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    /// From when on, since 1970; none for those that are still to come.
    pub since: Option<Duration>,
    /// Until when, since 1970; none for as long as it listens.
    pub until: Option<Duration>,
    filters: Filters,
}

impl Follow {
    pub(super) fn read(request: &Request<'_>, now: u64) -> Result<Self, Failure> {
        let time = |name| match request.parameter(name).as_str() {
            "" => Ok(None),
            text => times::read(text, Duration::from_secs(now)).map(Some),
        };
        let (since, until) = (time("since")?, time("until")?);
        if let (Some(since), Some(until)) = (since, until)
            && since > until
        {
            return Err(Failure::invalid(format!(
                "`since` time ({}) cannot be after `until` time ({})",
                since.as_secs(),
                until.as_secs()
            )));
        }
        // dockerd does not look at keys that it does not know either.
        Ok(Self { since, until, filters: Filters::of_any_keys(&request.parameter("filters"))? })
    }

    /// Whether it is one of them.
    pub fn wants(&self, message: &Message) -> bool {
        let filters = &self.filters;
        let name = message.attributes.get("name").map_or("", String::as_str);
        // Of several kinds of things each filters, also what is of another kind (moby, `daemon/events/filter.go`).
        let is_about = |kind| filters.starts(kind, &message.id) || filters.starts(kind, name);
        self.since.is_none_or(|since| message.time >= since)
            && self.until.is_none_or(|until| message.time <= until)
            && filters.is("event", message.action)
            && filters.is("type", message.kind)
            && filters.is("scope", "local")
            && ["container", "network", "volume", "plugin", "node", "service", "secret", "config", "daemon"]
                .into_iter()
                .all(is_about)
            && !filters.has("image")
            && filters.labelled("label", &message.attributes)
    }
}

#[derive(Debug)]
struct KnownNetwork {
    name: String,
    driver: String,
}

impl From<&Network> for KnownNetwork {
    fn from(network: &Network) -> Self {
        Self { name: network.name.to_string(), driver: network.driver.to_string() }
    }
}

#[derive(Debug)]
struct KnownContainer {
    name: String,
    labels: BTreeMap<String, String>,
    /// Not one of Docker's endpoints.
    is_ours: bool,
    state: ContainerState,
    /// Its endpoints, with their networks.
    endpoints: BTreeMap<Id, Id>,
}

/// What was there last, so that a change tells what happened.
#[derive(Debug, Default)]
pub struct Chronicle {
    networks: BTreeMap<Id, KnownNetwork>,
    containers: BTreeMap<Id, KnownContainer>,
}

impl Chronicle {
    /// What `changes` mean, in an order in which it can have happened. A row that comes or goes is no change.
    pub fn take(&mut self, changes: &[Change]) -> Vec<Message> {
        let mut told = Vec::new();
        for change in changes {
            if let Change::Network(id, Some(network)) = change {
                let known = KnownNetwork::from(network);
                // A predefined one has been there all the time, also when its row is written only now.
                if !self.networks.contains_key(id) && !network.is_predefined() {
                    told.push(Message::network("create", *id, &known));
                }
                self.networks.insert(*id, known);
            }
        }
        for change in changes {
            match change {
                Change::Container(id, Some(view)) => self.changed(*id, view, &mut told),
                Change::Container(id, None) => self.gone(*id, &mut told),
                Change::Network(..) | Change::Remote(..) => {}
            }
        }
        for change in changes {
            if let Change::Network(id, None) = change
                && let Some(known) = self.networks.remove(id)
            {
                told.push(Message::network("destroy", *id, &known));
            }
        }
        told
    }

    /// Takes note that there is nothing but these, without a word.
    pub fn keep_only(&mut self, networks: &BTreeSet<Id>, containers: &BTreeSet<Id>) {
        self.networks.retain(|id, _| networks.contains(id));
        self.containers.retain(|id, _| containers.contains(id));
    }

    fn changed(&mut self, id: Id, view: &ContainerView, told: &mut Vec<Message>) {
        for (_, network) in &view.endpoints {
            // One that came with its first endpoint.
            self.networks.entry(network.id).or_insert_with(|| network.into());
        }
        let before = self.containers.remove(&id);
        let now = known(view);
        let was = before.as_ref().map_or(ContainerState::Created, |known| known.state);
        let of_container = |action, told: &mut Vec<Message>| {
            if now.is_ours {
                told.push(Message::container(action, id, &now));
            }
        };
        if before.is_none() {
            of_container("create", told);
        }
        let had = before.map(|known| known.endpoints).unwrap_or_default();
        if let ContainerState::Exited(status) = now.state
            && !matches!(was, ContainerState::Exited(_))
        {
            // It began and ended between two looks.
            if was == ContainerState::Created {
                of_container("start", told);
            }
            if now.is_ours {
                told.push(Message::container("die", id, &now).with("exitCode", status.to_string()));
            }
        }
        for (_, network) in had.iter().filter(|(endpoint, _)| !now.endpoints.contains_key(endpoint)) {
            self.on("disconnect", *network, id, told);
        }
        for (_, network) in now.endpoints.iter().filter(|(endpoint, _)| !had.contains_key(endpoint)) {
            self.on("connect", *network, id, told);
        }
        if now.state == ContainerState::Running && was != ContainerState::Running {
            of_container("start", told);
        }
        self.containers.insert(id, now);
    }

    fn gone(&mut self, id: Id, told: &mut Vec<Message>) {
        let Some(known) = self.containers.remove(&id) else { return };
        if known.state == ContainerState::Running && known.is_ours {
            told.push(Message::container("die", id, &known));
        }
        for network in known.endpoints.values() {
            self.on("disconnect", *network, id, told);
        }
        if known.is_ours {
            told.push(Message::container("destroy", id, &known));
        }
    }

    fn on(&self, action: &'static str, network: Id, container: Id, told: &mut Vec<Message>) {
        if let Some(known) = self.networks.get(&network) {
            told.push(Message::network(action, network, known).with("container", container.to_string()));
        }
    }
}

fn known(view: &ContainerView) -> KnownContainer {
    let Container { name, labels, kind, state, .. } = &view.container;
    KnownContainer {
        name: name.to_string(),
        labels: labels.clone(),
        is_ours: *kind != ContainerKind::Handed,
        state: *state,
        endpoints: view.endpoints.iter().map(|(endpoint, network)| (endpoint.id, network.id)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &'static str, action: &'static str, id: &str, name: &str) -> Message {
        Message::new(kind, action, id.to_owned()).with("name", name).with("of", "test").at(Duration::from_secs(100))
    }

    fn network(name: &str, id: u8) -> Network {
        let row = serde_json::json!({
            "id": Id::from_bytes([id; 32]), "name": name, "driver": "none", "internal": false, "subnets": [], "options": {},
            "raw_options": {}, "labels": {}, "bridge": "none", "mtu": "1500", "created": 0, "phase": "settled",
        });
        serde_json::from_value(row).unwrap()
    }

    /// Of the predefined networks, whose rows may be written while somebody follows, nothing is told.
    #[test]
    fn what_was_always_there_is_not_created() {
        let networks = [network("bridge", 1), network("none", 2), network("web", 3), network("host", 4)];
        let changes = networks.clone().map(|row| Change::Network(row.id, Some(row)));
        let mut chronicle = Chronicle::default();
        assert_eq!(
            chronicle.take(&changes),
            [Message::network("create", networks[2].id, &KnownNetwork::from(&networks[2]))]
        );
        assert_eq!(chronicle.take(&changes), []);
    }

    fn follow(query: &str) -> Result<Follow, Failure> {
        let request = Request { method: "GET", path: "/events", query, content: None, body: b"" };
        Follow::read(&request, 1000)
    }

    #[test]
    fn who_follows_what() {
        let connect = message("network", "connect", "0123456789ab", "web");
        let start = message("container", "start", "ba9876543210", "site");
        for (filters, of_network, of_container) in [
            ("{}", true, true),
            (r#"{"type":["network"]}"#, true, false),
            (r#"{"event":{"start":true}}"#, false, true),
            (r#"{"event":["start","connect"]}"#, true, true),
            (r#"{"network":["web"]}"#, true, false),
            (r#"{"network":["0123"]}"#, true, false),
            (r#"{"container":["si"]}"#, false, true),
            (r#"{"label":["of=test"]}"#, true, true),
            (r#"{"label":["of=other"]}"#, false, false),
            (r#"{"scope":["swarm"]}"#, false, false),
            (r#"{"image":["busybox"]}"#, false, false),
            (r#"{"no-such-key":["x"]}"#, true, true),
        ] {
            let query: String =
                form_urlencoded::Serializer::new(String::new()).append_pair("filters", filters).finish();
            let follow = follow(&query).unwrap();
            assert_eq!((follow.wants(&connect), follow.wants(&start)), (of_network, of_container), "{filters}");
        }
    }

    #[test]
    fn from_when_until_when() {
        let at = message("network", "create", "01", "web");
        for (query, wanted) in [
            ("since=100", true),
            ("since=100.000000001", false),
            ("until=100", true),
            ("until=99.9", false),
            ("since=15m", true),
            ("since=14m&until=0s", false),
            ("since=0", true),
        ] {
            assert_eq!(follow(query).unwrap().wants(&at), wanted, "{query}");
        }
        assert!(follow("since=2&until=1").unwrap_err().message.contains("cannot be after"));
        assert!(follow("filters=%5B").is_err());
    }

    /// As Docker 28 writes them.
    #[test]
    fn lines() {
        let at = Duration::new(100, 5);
        let line = serde_json::to_string(&Message::pruned().at(at)).unwrap();
        assert_eq!(
            line,
            r#"{"Type":"network","Action":"prune","Actor":{"ID":"","Attributes":{"reclaimed":"0"}},"scope":"local","time":100,"timeNano":100000000005}"#
        );
        let start = serde_json::to_value(message("container", "start", "ab", "site")).unwrap();
        assert_eq!((&start["status"], &start["id"]), (&"start".into(), &"ab".into()));
    }
}
