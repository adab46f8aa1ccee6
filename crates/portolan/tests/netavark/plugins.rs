//! External drivers: shell scripts that note what they are told.

use std::fs;
use std::path::PathBuf;

use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::link::{self, LinkChange};
use portolan_lab::probe::ping;
use serde_json::{Value, json};

use crate::common::{FAMILIES, LONG, interface};
use crate::podman::{Pod, Podman, answer, bridge, id_of, ip, output_of};

/// A directory of plugins.
struct Plugins {
    directory: PathBuf,
}

impl Plugins {
    fn new(podman: &Podman) -> Self {
        let directory = podman.world.lab.dir().join("plugins");
        fs::create_dir(&directory).unwrap();
        Self { directory }
    }

    /// Adds one: `script` has the verb in `$1` and the namespace in `$2`.
    fn add(&self, name: &str, script: &str) {
        let path = self.directory.join(name);
        let log = self.directory.join("log");
        let script = format!("#!/bin/sh\necho \"{name} $1 $2\" >>{}\n{script}\n", log.display());
        portolan_lab::write_program(&path, script).unwrap();
    }

    /// The calls so far, without the namespaces.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        text.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["--plugin-directory", self.directory.to_str().unwrap()], args].concat()
    }

    #[track_caller]
    fn setup(&self, podman: &Podman, pod: &Pod) -> Result<Value, String> {
        podman.call(&self.args(&["setup", pod.path()]), pod.input().as_bytes())
    }

    #[track_caller]
    fn teardown(&self, podman: &Podman, pod: &Pod) -> Result<Value, String> {
        podman.call(&self.args(&["teardown", pod.path()]), pod.input().as_bytes())
    }
}

fn network(name: &str, driver: &str) -> Value {
    json!({
        "name": name, "id": id_of(name), "driver": driver, "network_interface": "", "internal": false,
        "options": {"key": "value"}, "novel": [1, 2],
    })
}

/// One that answers with an interface, and keeps what it was told.
const GOOD: &str = r#"cat >"$0.$1.json"
[ "$1" = setup ] && echo '{"interfaces":{"eth9":{"mac_address":"aa:bb:cc:dd:ee:09","subnets":[{"ipnet":"10.77.0.5/24"}]}}}'
exit 0"#;

#[test]
fn a_plugin_sets_up_and_takes_down() {
    let Some(podman) = Podman::or_skip("nv-plugin") else { return };
    let plugins = Plugins::new(&podman);
    plugins.add("good", GOOD);
    let pod = podman.pod("c").at(&bridge("web", 1), 5).at(&network("out", "good"), 0).ports(&[(8080, 80, "tcp", "")]);
    let status = plugins.setup(&podman, &pod).unwrap();
    assert_eq!(status["out"]["interfaces"]["eth9"]["subnets"][0]["ipnet"], "10.77.0.5/24");
    assert!(status["web"]["interfaces"]["eth0"].is_object());
    for verb in ["setup", "teardown"] {
        if verb == "teardown" {
            assert_eq!(plugins.teardown(&podman, &pod), Ok(Value::Null));
        }
        let told: Value =
            serde_json::from_slice(&fs::read(plugins.directory.join(format!("good.{verb}.json"))).unwrap()).unwrap();
        assert_eq!(told["container_id"], pod.id.as_str());
        assert_eq!(told["container_name"], "c");
        assert_eq!(told["port_mappings"][0]["host_port"], 8080);
        assert_eq!(told["network"]["options"]["key"], "value");
        assert_eq!(told["network"]["novel"], json!([1, 2]), "keys that we do not know are passed on");
        assert_eq!(told["network_options"]["interface_name"], "eth1");
    }
    assert_eq!(plugins.calls(), ["good setup", "good teardown"]);
    let log = fs::read_to_string(plugins.directory.join("log")).unwrap();
    assert!(log.lines().all(|line| line.ends_with(pod.path())), "{log}");
    assert_eq!(podman.world.portolan_ok(&["ps", "-aq"]), "");
    // Alone: nothing of ours is there at all, but loopback works as in any container.
    let alone = podman.pod("alone").at(&network("out", "good"), 0);
    let mut batch = Batch::new();
    link::set(&mut batch, "lo", &LinkChange { up: Some(false), ..LinkChange::default() });
    alone.host.route_socket().unwrap().transact(&batch).unwrap();
    let status = plugins.setup(&podman, &alone).unwrap();
    assert_eq!(status.as_object().unwrap().len(), 1);
    for ip in ["127.0.0.1", "::1"] {
        assert!(ping(&alone, ip.parse().unwrap(), LONG).is_open(), "{ip}");
    }
    assert_eq!(plugins.teardown(&podman, &alone), Ok(Value::Null));
}

#[test]
fn a_plugin_that_fails_takes_everything_back() {
    let Some(podman) = Podman::or_skip("nv-plugin-fails") else { return };
    let plugins = Plugins::new(&podman);
    plugins.add("good", GOOD);
    plugins.add("error-plugin", "cat >/dev/null; echo 'a note' >&2; echo '{\"error\":\"setup error\"}'; exit 1");
    plugins.add("garbage", "cat >/dev/null; echo garbage; exit 1");
    plugins.add("mute", "cat >/dev/null; exit 0");
    plugins.add("killed", "kill -9 $$");
    plugins.add("deaf", "exec <&-; echo '{\"interfaces\":{}}'");
    let fails = |name: &str, driver: &str| {
        let pod = podman.pod(name).at(&bridge("web", 1), 5);
        let pod = pod.at(&network("a-good", "good"), 0).at(&network("b-bad", driver), 0);
        let before = podman.world.state();
        let output = output_of(podman.command(&plugins.args(&["setup", pod.path()])), pod.input().as_bytes());
        let error = answer(&output).unwrap_err();
        before.assert_same(&podman.world.state(), driver);
        assert_eq!(interface(&pod, "eth0"), None, "{driver}");
        (error, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (error, log) = fails("c1", "error-plugin");
    assert_eq!(error, "plugin \"error-plugin\" failed: exit code 1, message: setup error");
    assert!(log.contains("a note"), "what it writes to standard error is passed on: {log}");
    assert_eq!(plugins.calls(), ["good setup", "error-plugin setup", "good teardown"]);
    let (error, _) = fails("c2", "garbage");
    assert!(error.starts_with("plugin \"garbage\" failed: exit code 1, parse error: "), "{error}");
    let (error, _) = fails("c3", "mute");
    assert!(error.starts_with("plugin \"mute\" failed: JSON Decoding error: "), "{error}");
    let (error, _) = fails("c4", "killed");
    assert!(error.contains("\"killed\"") && error.contains("killed by signal"), "{error}");
    let calls = plugins.calls().len();
    let (error, _) = fails("c5", "nowhere");
    assert_eq!(error, "unknown network driver \"nowhere\"");
    assert_eq!(plugins.calls().len(), calls, "that is known before anything is done");
    let (error, _) = fails("c6", "../good");
    assert_eq!(error, "unknown network driver \"../good\"");
    // One that does not read is no failure.
    let deaf = podman.pod("deaf").at(&network("d", "deaf"), 0);
    plugins.setup(&podman, &deaf).unwrap();
}

/// A namespace that is gone is no reason to forget a plugin, nor is a plugin that fails to forget the rest.
#[test]
fn teardown_goes_on() {
    let Some(podman) = Podman::or_skip("nv-plugin-down") else { return };
    let plugins = Plugins::new(&podman);
    plugins.add("good", GOOD);
    let fails =
        "cat >/dev/null; [ $1 = setup ] && echo '{\"interfaces\":{}}' && exit 0; echo '{\"error\":\"no\"}'; exit 3";
    plugins.add("stubborn", fails);
    let host = podman.world.untouched();
    let pod = podman.pod("c").at(&bridge("web", 1), 5).at(&network("a-bad", "stubborn"), 0);
    let pod = pod.at(&network("b-bad", "stubborn"), 0).at(&network("c-good", "good"), 0);
    plugins.setup(&podman, &pod).unwrap();
    assert!(FAMILIES.iter().all(|family| ping(&pod, ip(*family, 1, 1), LONG).is_open()));
    portolan_kernel::netns::unpin(pod.host.netns_path()).unwrap();
    let error = plugins.teardown(&podman, &pod).unwrap_err();
    let one = "plugin \"stubborn\" failed: exit code 3, message: no";
    assert_eq!(error, format!("netavark encountered multiple errors:\n\t- {one}\n\t- {one}"));
    assert_eq!(plugins.calls().last().map(String::as_str), Some("good teardown"));
    assert_eq!(podman.world.portolan_ok(&["ps", "-aq"]), "");
    podman.world.assert_untouched(&host, "all of it");
}

#[test]
fn a_plugin_completes_a_network() {
    let Some(podman) = Podman::or_skip("nv-plugin-create") else { return };
    let plugins = Plugins::new(&podman);
    plugins.add("good", "sed 's/\"internal\":false/\"internal\":true/'");
    plugins.add("renames", "sed 's/\"name\":\"mine\"/\"name\":\"yours\"/'");
    plugins.add("drives", "sed 's/\"driver\":\"drives\"/\"driver\":\"bridge\"/'");
    plugins.add("error-plugin", "cat >/dev/null; echo '{\"error\":\"cannot\"}'; exit 1");
    let create = |driver: &str| {
        let mut network = network("mine", driver);
        network.as_object_mut().unwrap().remove("network_interface");
        let input = json!({"network": network, "used": {}, "options": {}});
        podman.call(&plugins.args(&["create"]), input.to_string().as_bytes())
    };
    let made = create("good").unwrap();
    assert_eq!((&made["internal"], &made["name"], &made["novel"]), (&json!(true), &json!("mine"), &json!([1, 2])));
    assert!(made["created"].is_string());
    let refused = |driver| create(driver).unwrap_err();
    assert_eq!(refused("renames"), "renames plugin invalid result: changed network name");
    assert_eq!(refused("drives"), "drives plugin invalid result: changed network driver");
    assert_eq!(refused("nowhere"), "plugin for driver \"nowhere\" not found in plugin directories");
    assert!(refused("error-plugin").contains("cannot"));
}
