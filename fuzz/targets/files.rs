//! Files that others write, or may have damaged.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use portolan_dns::ResolvConf;
use portolan_model::DnsConfig;
use portolan_plugins::foreign;

use super::scratch::Scratch;

#[path = "../../crates/portolan/src/containers_conf.rs"]
mod containers_conf;
#[path = "../../crates/portolan/src/resolv.rs"]
mod resolv;

/// resolv.conf(5) and containers.conf(5).
pub fn texts(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let conf = ResolvConf::parse(text, |name| (name == "eth0").then_some(7));
    assert!(conf.ndots <= 15 && (1..=5).contains(&conf.attempts));
    assert!(conf.timeout >= Duration::from_secs(1) && conf.timeout <= Duration::from_secs(30));
    assert!(conf.nameservers.len() <= text.lines().count());
    let dns = foreign::resolv_conf(text);
    let is_word = |word: &String| !word.is_empty() && !word.contains(char::is_whitespace);
    assert!(dns.nameservers.iter().chain(&dns.search).chain(&dns.options).all(is_word), "{dns:?}");
    for reach in [
        resolv::Reach::Host,
        resolv::Reach::Gateways(vec![IpAddr::from([10, 0, 0, 1])]),
        resolv::Reach::Network { ipv6: false },
        resolv::Reach::Network { ipv6: true },
    ] {
        let content = resolv::render(text, &DnsConfig::default(), &reach);
        let mut servers = 0;
        for line in content.lines() {
            match line.split_once(' ') {
                Some(("nameserver", server)) => {
                    servers += 1;
                    assert!(reach == resolv::Reach::Host || server.parse::<IpAddr>().is_ok(), "{line:?}");
                }
                Some(("search" | "options", rest)) => assert!(!rest.trim().is_empty(), "{line:?}"),
                _ => panic!("a line {line:?}"),
            }
        }
        assert!(servers > 0 || reach == resolv::Reach::Host, "{content}");
    }
    if let Ok(Some(directories)) = containers_conf::directories(text) {
        assert!(directories.iter().all(|directory| text.contains(directory.as_str())), "{directories:?}");
    }
}

/// A directory of leases: a file each, its name to the first line's end, and what is in it up to two of those.
pub fn leases(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let scratch = Scratch::new();
    let mut count = 0;
    for file in text.split("\n\n").take(8) {
        let (name, content) = file.split_once('\n').unwrap_or((file, ""));
        let is_plain = !name.is_empty() && name.len() < 100 && !name.contains(['/', '\0']) && !name.starts_with('.');
        if is_plain {
            fs::write(scratch.path().join(name), content).expect("it can be written");
            count += 1;
        }
    }
    fs::create_dir_all(scratch.path().join("10.0.0.77/x")).expect("it can be made");
    let leases = foreign::leases(scratch.path()).expect("it is there");
    assert!(leases.len() <= count + 1);
    for (address, text) in &leases {
        assert_eq!(address.to_canonical(), *address);
        assert!(text.len() <= 3 * 4096);
    }
    assert!(foreign::leases(Path::new("/nonexistent")).is_err());
}
