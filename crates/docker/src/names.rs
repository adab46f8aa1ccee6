//! What Docker's API says of the names of containers, which it does not tell a network driver.
//!
//! Formats: moby, `api/swagger.yaml`. Fields that are not named here are passed over.

use std::collections::BTreeMap;

use portolan_model::{ALSO_CALLED, CALLED, Id};
use serde::{Deserialize, Deserializer};

use crate::refusal::Refusal;

/// The events that tell of names: a container's place on a network, and another name of it (`GET /events`).
pub const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%2C%22event%22%3A%5B%22connect%22%2C%22rename%22%5D%7D";

/// Labels by their keys.
pub type Labels = BTreeMap<String, String>;

/// Where a network is asked for that has this id of Docker's.
pub fn network_path(network: &str) -> String {
    format!("/networks/{network}")
}

/// Where a container is asked for.
pub fn container_path(container: Id) -> String {
    format!("/containers/{container}/json")
}

/// The containers on a network (the answer to [`network_path`]).
///
/// # Errors
/// What is no network.
pub fn members(body: &[u8]) -> Result<Vec<Id>, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Network {
        #[serde(default, deserialize_with = "or_default")]
        containers: BTreeMap<String, serde::de::IgnoredAny>,
    }
    let network: Network = read(body)?;
    // An endpoint that is in no container yet has a key that is no id.
    Ok(network.containers.keys().filter_map(|key| key.parse().ok()).collect())
}

/// The container that an event is about (a line of the answer to [`EVENTS`]).
///
/// # Errors
/// What is no event.
pub fn subject(line: &[u8]) -> Result<Option<Id>, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Event {
        #[serde(rename = "Type")]
        of: String,
        actor: Actor,
    }
    #[derive(Deserialize)]
    struct Actor {
        #[serde(rename = "ID")]
        id: String,
        #[serde(default, rename = "Attributes", deserialize_with = "or_default")]
        attributes: BTreeMap<String, String>,
    }
    let event: Event = read(line)?;
    let id = if event.of == "network" { event.actor.attributes.get("container") } else { Some(&event.actor.id) };
    Ok(id.and_then(|id| id.parse().ok()))
}

/// Labels for each of a container's endpoints (the answer to [`container_path`]): how Docker calls it, and how else on the
/// endpoint's network.
///
/// # Errors
/// What is no container.
pub fn labels(body: &[u8]) -> Result<BTreeMap<Id, Labels>, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Container {
        name: String,
        network_settings: Settings,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Settings {
        #[serde(default, deserialize_with = "or_default")]
        networks: BTreeMap<String, Place>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Place {
        #[serde(default, rename = "EndpointID")]
        endpoint: String,
        #[serde(default, deserialize_with = "or_default")]
        aliases: Vec<String>,
    }
    let container: Container = read(body)?;
    let name = container.name.trim_start_matches('/');
    if !is_name(name) {
        return Err(Refusal::new(format!("`{}` is no name of a container", name.escape_debug())));
    }
    let labels = |place: &Place| -> Option<(Id, Labels)> {
        let aliases: Vec<&str> = place.aliases.iter().map(String::as_str).filter(|alias| is_name(alias)).collect();
        let labels = [(CALLED, name.to_owned()), (ALSO_CALLED, aliases.join(","))];
        Some((place.endpoint.parse().ok()?, labels.map(|(key, value)| (key.to_owned(), value)).into()))
    };
    Ok(container.network_settings.networks.values().filter_map(labels).collect())
}

/// Whether a text can be a name: it goes into tables, and into questions of DNS.
fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::new(format!("read what Docker says: {error}")))
}

/// Go writes empty maps and slices as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const ENDPOINT: &str = "2222222222222222222222222222222222222222222222222222222222222222";

    #[test]
    fn who_is_on_a_network() {
        let body = format!(
            r#"{{"Name":"web","Containers":{{"{CONTAINER}":{{"Name":"site","EndpointID":"{ENDPOINT}"}},"ep-{ENDPOINT}":{{}}}}}}"#
        );
        assert_eq!(members(body.as_bytes()).unwrap(), [CONTAINER.parse().unwrap()]);
        assert_eq!(members(br#"{"Containers":null}"#).unwrap(), []);
        assert!(members(br#"{"message":"network x not found"}"#).unwrap().is_empty());
        assert!(members(b"<html>").is_err());
    }

    #[test]
    fn whom_an_event_is_about() {
        let connect = format!(
            r#"{{"Type":"network","Action":"connect","Actor":{{"ID":"{ENDPOINT}","Attributes":{{"container":"{CONTAINER}","name":"web","type":"portolan"}}}},"scope":"local"}}"#
        );
        let rename = format!(
            r#"{{"status":"rename","id":"{CONTAINER}","Type":"container","Action":"rename","Actor":{{"ID":"{CONTAINER}","Attributes":{{"name":"new","oldName":"/old"}}}}}}"#
        );
        for line in [connect, rename] {
            assert_eq!(subject(line.as_bytes()).unwrap(), Some(CONTAINER.parse().unwrap()));
        }
        assert!(subject(b"{}").is_err());
    }

    #[test]
    fn names_of_a_container() {
        let body = format!(
            r#"{{"Name":"/site","NetworkSettings":{{"Networks":{{
                "web":{{"EndpointID":"{ENDPOINT}","Aliases":["www","a,b","{}"]}},
                "stopped":{{"EndpointID":"","Aliases":null}}}}}}}}"#,
            &CONTAINER[..12]
        );
        let found = labels(body.as_bytes()).unwrap();
        let (endpoint, labels) = found.first_key_value().unwrap();
        assert_eq!(found.len(), 1, "what does not run is nowhere");
        assert_eq!(endpoint.to_string(), ENDPOINT);
        assert_eq!((labels[CALLED].as_str(), labels[ALSO_CALLED].as_str()), ("site", "www,111111111111"));
        assert!(super::labels(br#"{"Name":"/a b","NetworkSettings":{}}"#).is_err(), "no name of Docker's");
    }
}
