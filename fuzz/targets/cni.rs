//! What container runtimes say: lines of `NAME=VALUE`, an empty one, and JSON.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt as _;

use portolan_cni::{Call, Config, Error, Plan, SUPPORTED, Success, Target, check_duplicate_sysctls, plan, tuning};
use portolan_model::{Family, RouteAction};
use portolan_plugins::foreign;

/// Takes the environment and what comes on standard input apart.
fn parts(bytes: &[u8]) -> (BTreeMap<String, OsString>, &[u8]) {
    let at = bytes.windows(2).position(|pair| pair == b"\n\n");
    let (head, text) = at.map_or((&b""[..], bytes), |at| (&bytes[..at], &bytes[at + 2..]));
    let pair = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        let name = String::from_utf8_lossy(&line[..at]).into_owned();
        Some((name, OsString::from_vec(line[at + 1..].to_vec())))
    };
    (head.split(|byte| *byte == b'\n').filter_map(pair).collect(), text)
}

fn refused(error: &Error, said: usize) {
    let object: serde_json::Value = serde_json::from_str(&error.to_json()).expect("it is JSON");
    assert!(object["code"].as_u64().is_some_and(|code| code > 0) && object["msg"].is_string(), "{object}");
    // What was said may be repeated, each byte of it as an escaped replacement character.
    assert!(error.msg.len() + error.details.len() <= 1000 + 12 * said, "{} bytes of {said}", error.msg.len());
}

/// A call of the plugin `portolan`.
pub fn call(bytes: &[u8]) {
    let (environment, text) = parts(bytes);
    let call = match Call::read(|name| environment.get(name).cloned()) {
        Ok(Some(call)) => call,
        Ok(None) => return result(text),
        Err(error) => return refused(&error, bytes.len()),
    };
    if let Err(error) = call.check() {
        return refused(&error, bytes.len());
    }
    if let Err(error) = check_duplicate_sysctls(text) {
        refused(&error, bytes.len());
    }
    let config = match (Config::parse(text), Config::parse_without_ipam(text)) {
        (Ok(config), Ok(without)) => {
            assert_eq!((&config.name, &config.kind), (&without.name, &without.kind));
            config
        }
        // It is more than the other looks at.
        (Err(error), _) => return refused(&error, bytes.len()),
        (Ok(_), Err(error)) => panic!("refused without what is looked at less: {error}"),
    };
    assert!(!config.name.is_empty() && !config.name.contains(['/', '\0', '\n']), "{:?}", config.name);
    Target::of(&config);
    let previous = match config.previous() {
        Ok(previous) => previous,
        Err(error) => {
            refused(&error, bytes.len());
            None
        }
    };
    for delegated in [None, previous.as_ref()] {
        match Plan::of(&config, delegated) {
            Ok(network) => {
                planned(&network);
                match plan(&call, &config, &network, delegated) {
                    Ok(request) => {
                        assert!(request.endpoints.len() == 1);
                        for publish in &request.publish {
                            assert!(publish.container.first() > 0);
                        }
                    }
                    Err(error) => refused(&error, bytes.len()),
                }
            }
            Err(error) => refused(&error, bytes.len()),
        }
    }
    if let Err(error) = tuning(&call, &config) {
        refused(&error, bytes.len());
    }
    if let Err(error) = config.ports() {
        refused(&error, bytes.len());
    }
}

fn planned(network: &Plan) {
    let Plan::Described(request) = network else { return };
    for subnet in &request.subnets {
        assert_eq!(*subnet, subnet.trunc(), "a subnet has no host bits");
    }
    for route in &request.routes {
        assert_eq!(route.destination, route.destination.trunc());
        if let RouteAction::Via(gateway) = route.action {
            // The engine tells which are of another family.
            let _ = Family::of(gateway);
        }
    }
}

/// The answer of another plugin.
fn result(text: &[u8]) {
    let success = match Success::parse(text) {
        Ok(success) => success,
        Err(error) => return refused(&error, text.len()),
    };
    for version in SUPPORTED {
        match success.to_json(version) {
            Ok(json) => {
                let again = Success::parse(json.as_bytes()).expect("what is written can be read");
                if version == SUPPORTED[SUPPORTED.len() - 1] {
                    assert_eq!(again, success, "{json}");
                }
                assert_eq!(again.to_json(version).as_ref(), Ok(&json), "{version}");
            }
            Err(error) => refused(&error, text.len()),
        }
    }
}

/// Configurations of plugins that give addresses; the first byte of the name of the container decides what was given last.
pub fn host_local(bytes: &[u8]) {
    let (mut environment, text) = parts(bytes);
    for (name, value) in [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/")]
    {
        environment.entry(name.to_owned()).or_insert_with(|| value.into());
    }
    environment.entry("CNI_NETNS".to_owned()).or_insert_with(|| "/run/netns/x".into());
    let Ok(Some(call)) = Call::read(|name| environment.get(name).cloned()) else { return };
    let last: Option<IpAddr> = environment.get("LAST").and_then(|last| last.to_str()?.parse().ok());
    let config = match Config::parse_without_ipam(text) {
        Ok(config) => config,
        Err(error) => return refused(&error, bytes.len()),
    };
    match foreign::host_local(&call, &config, text, last) {
        Ok(sets) => {
            assert!(!sets.is_empty());
            for (address, gateway) in sets.into_iter().flatten() {
                assert!(address.addr() != gateway && address.network() != address.addr(), "{address} {gateway}");
                assert!(address.addr().is_ipv6() || address.broadcast() != address.addr(), "{address}");
            }
        }
        Err(error) => refused(&error, bytes.len()),
    }
    match portolan_plugins::run("static", &call, &config, text) {
        Ok(Some((success, version))) => {
            if let Ok(json) = success.to_json(version) {
                Success::parse(json.as_bytes()).expect("what is written can be read");
            }
        }
        Ok(None) => {}
        Err(error) => refused(&error, bytes.len()),
    }
    if let Err(error) = foreign::dhcp_options(text) {
        refused(&error, bytes.len());
    }
}
