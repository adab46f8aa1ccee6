//! `crates/docker/openapi.yaml` says what is served, no more and no less.

use std::collections::BTreeSet;

use portolan_docker::api::ROUTES;
use serde_json::{Value, json};

use crate::served::{Reply, Served};

/// The description.
struct Described(Value);

/// A method, a path of the description, and a status.
type Case = (String, String, u16);

impl Described {
    fn read() -> Self {
        Self(serde_norway::from_str(include_str!("../../../docker/openapi.yaml")).expect("it is YAML"))
    }

    /// Every path × method.
    fn operations(&self) -> impl Iterator<Item = (String, &String, &Value)> {
        let paths = self.0["paths"].as_object().expect("it has paths");
        paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().expect("it has methods").iter().filter(|(key, _)| *key != "parameters");
            methods.map(move |(method, operation)| (method.to_uppercase(), path, operation))
        })
    }

    fn cases(&self) -> BTreeSet<Case> {
        let statuses = |(method, path, operation): (String, &String, &Value)| -> Vec<Case> {
            let responses = operation["responses"].as_object().expect("it is answered");
            let case = |status: &String| (method.clone(), path.clone(), status.parse().expect("a status"));
            responses.keys().map(case).collect()
        };
        self.operations().flat_map(statuses).collect()
    }

    /// What `$ref` leads to, if it is one.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(place) => self.0.pointer(place.trim_start_matches('#')).unwrap_or_else(|| panic!("no {place}")),
            None => value,
        }
    }

    /// Panics unless the answer is as described; the case that it is one of.
    #[track_caller]
    fn check(&self, method: &str, path: &str, reply: &Reply) -> Case {
        let operation = &self.0["paths"][path][method.to_lowercase()];
        let response = self.resolve(&operation["responses"][reply.status.to_string()]);
        assert!(response.is_object(), "{method} {path} is answered with what is not described: {reply:?}");
        match response["content"].as_object().and_then(|content| content.iter().next()) {
            None => assert_eq!(reply.body, "", "{method} {path}"),
            Some((media, content)) => {
                let found = reply.head.lines().find_map(|line| line.strip_prefix("content-type: "));
                assert_eq!(found, Some(media.as_str()), "{method} {path}: {reply:?}");
                let body = if media == "application/json" { reply.json() } else { reply.body.clone().into() };
                self.validate(&content["schema"], &body, &format!("{method} {path}"));
            }
        }
        (method.to_owned(), path.to_owned(), reply.status)
    }

    #[track_caller]
    fn validate(&self, schema: &Value, body: &Value, what: &str) {
        let mut whole = schema.clone();
        whole["components"] = self.0["components"].clone();
        let validator = jsonschema::draft202012::new(&whole).unwrap_or_else(|error| panic!("{what}: {error}"));
        let wrong: Vec<String> =
            validator.iter_errors(body).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(wrong.is_empty(), "{what}: {wrong:#?} in {body}");
    }
}

#[test]
fn every_route_is_described_and_no_other() {
    let described: BTreeSet<(String, String)> =
        Described::read().operations().map(|(method, path, _)| (method, path.clone())).collect();
    let served: BTreeSet<(String, String)> =
        ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
    assert_eq!(described, served);
}

#[test]
fn every_path_answers_as_it_is_described() {
    let Some(served) = Served::or_skip("docker-api-openapi") else { return };
    let described = Described::read();
    let world = &served.world;
    let container = world.container("aa", &["-p", "8080-8081:80-81", "--expose", "90/udp", "--label", "of=test"]);
    served.run("bb", &["--network", "none", "--hostname", "home", "--dns", "10.0.1.2", "--add-host", "h:10.0.1.2"]);
    let ended = world.portolan(&["run", "--name", "cc", "--network", "bridge", "--", "false"]);
    assert_eq!(ended.status.code(), Some(1));
    let whole = json!({"Name": "web", "CheckDuplicate": true, "Driver": "bridge", "EnableIPv6": true, "Attachable": true,
        "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.90.0.0/24", "IPRange": "10.90.0.128/25",
            "Gateway": "10.90.0.1", "AuxiliaryAddresses": {"a": "10.90.0.7"}}]},
        "Options": {"com.docker.network.driver.mtu": "1400"}, "Labels": {"of": "test"}});
    let connect = json!({"Container": "aa", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.90.0.130"},
        "Aliases": ["www"], "Links": ["bb:other"], "MacAddress": "02:00:00:00:00:09", "GwPriority": 2,
        "DriverOpts": {"com.docker.network.endpoint.ifname": "lan0"}}});
    let named = |name: &str| json!({"Name": name});
    let whom = |name: &str| json!({"Container": name});
    let mut seen = BTreeSet::new();
    let mut ask = |method: &str, path: &str, asked: &str, body: &Value, status: u16| {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let reply = served.send(method, asked, &bytes);
        assert_eq!(reply.status, status, "{method} {asked}: {reply:?}");
        seen.insert(described.check(method, path, &reply));
        // What we send is what we say we take.
        let schema =
            &described.0["paths"][path][method.to_lowercase()]["requestBody"]["content"]["application/json"]["schema"];
        if (200..300).contains(&status) && !schema.is_null() {
            described.validate(schema, body, asked);
        }
    };
    let none = Value::Null;
    for (method, path, asked, body, status) in [
        ("GET", "/_ping", "/_ping", &none, 200),
        ("HEAD", "/_ping", "/v1.41/_ping", &none, 200),
        ("GET", "/version", "/version", &none, 200),
        ("GET", "/info", "/v1.24/info", &none, 200),
        ("POST", "/networks/create", "/networks/create", &whole, 201),
        ("POST", "/networks/create", "/networks/create", &named(""), 400),
        ("POST", "/networks/create", "/networks/create", &named("bridge"), 403),
        ("POST", "/networks/create", "/networks/create", &json!({"Name": "x", "Driver": "pigeon"}), 404),
        ("POST", "/networks/create", "/networks/create", &named("web"), 409),
        ("POST", "/networks/create", "/networks/create", &json!({"Name": "x", "ConfigOnly": true}), 501),
        ("POST", "/networks/{id}/connect", "/networks/web/connect", &connect, 200),
        ("POST", "/networks/{id}/connect", "/networks/host/connect", &whom("aa"), 400),
        ("POST", "/networks/{id}/connect", "/networks/web/connect", &whom("aa"), 403),
        ("POST", "/networks/{id}/connect", "/networks/web/connect", &whom("nosuch"), 404),
        (
            "POST",
            "/networks/{id}/connect",
            "/networks/web/connect",
            &json!({"Container": "aa", "EndpointConfig": {"DriverOpts": {"a": "b"}}}),
            501,
        ),
        ("GET", "/networks", "/networks", &none, 200),
        ("GET", "/networks", "/v1.24/networks", &none, 200),
        ("GET", "/networks", "/networks?filters=x", &none, 400),
        ("GET", "/networks/{id}", "/networks/web", &none, 200),
        ("GET", "/networks/{id}", "/v1.24/networks/web?verbose=1", &none, 200),
        ("GET", "/networks/{id}", "/networks/host", &none, 200),
        ("GET", "/networks/{id}", "/v1.99/networks/web", &none, 400),
        ("GET", "/networks/{id}", "/networks/nosuch", &none, 404),
        ("GET", "/containers/json", "/containers/json?all=1", &none, 200),
        ("GET", "/containers/json", "/v1.24/containers/json", &none, 200),
        ("GET", "/containers/json", "/containers/json?limit=x", &none, 400),
        ("GET", "/containers/{id}/json", "/containers/aa/json", &none, 200),
        ("GET", "/containers/{id}/json", "/v1.24/containers/aa/json", &none, 200),
        ("GET", "/containers/{id}/json", "/containers/bb/json", &none, 200),
        ("GET", "/containers/{id}/json", "/containers/cc/json", &none, 200),
        ("GET", "/containers/{id}/json", "/containers/nosuch/json", &none, 404),
        ("DELETE", "/networks/{id}", "/networks/web", &none, 403),
        ("POST", "/networks/{id}/disconnect", "/networks/web/disconnect", &whom("aa"), 200),
        ("POST", "/networks/{id}/disconnect", "/networks/web/disconnect", &whom(""), 400),
        ("POST", "/networks/{id}/disconnect", "/networks/web/disconnect", &whom("nosuch"), 404),
        ("POST", "/networks/{id}/disconnect", "/networks/web/disconnect", &whom("aa"), 500),
        ("DELETE", "/networks/{id}", "/networks/web", &none, 204),
        ("DELETE", "/networks/{id}", "/networks/web", &none, 404),
        ("POST", "/networks/create", "/networks/create", &named("idle"), 201),
        ("POST", "/networks/prune", "/networks/prune", &none, 200),
        ("POST", "/networks/prune", "/networks/prune", &none, 200),
        ("POST", "/networks/prune", "/networks/prune?filters=x", &none, 400),
        ("GET", "/events", "/events?since=x", &none, 400),
    ] {
        ask(method, path, asked, body, status);
    }
    // Everything that happened above, of both kinds.
    drop(container);
    let schema = &described.0["components"]["schemas"]["Event"];
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 1;
    let events = served.get(&format!("/events?since=1&until={until}"));
    let lines: Vec<Value> = events.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.iter().for_each(|line| described.validate(schema, line, "an event"));
    let kinds: BTreeSet<&str> = lines.iter().filter_map(|line| line["Action"].as_str()).collect();
    let all = ["create", "connect", "disconnect", "destroy", "prune", "start", "die"];
    assert_eq!(kinds, BTreeSet::from(all), "{lines:#?}");
    seen.insert(("GET".to_owned(), "/events".to_owned(), events.status));
    assert_eq!(described.cases(), seen, "every status that is described was seen");
}
