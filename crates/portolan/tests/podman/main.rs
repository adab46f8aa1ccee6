//! A real Podman with Debian's netavark, and the same Podman with this binary in its place.
//!
//! Ours must do everything in [`cases`], so it is never worse. `PORTOLAN_BLESS=1` has Debian's do the same, and writes the
//! outcomes of both, as a table, to `docs/podman-outcomes.md`. `PORTOLAN_PODMAN=WORD` runs only the cases whose name has it,
//! `PORTOLAN_PODMAN_BACKEND=netavark` with Debian's alone.

mod cases;
mod cluster;
mod machine;
mod outcome;
mod scene;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use cases::SUBJECTS;
use machine::{Backend, IMAGE};
use outcome::{Outcome, Why, play, say, wanted};
use portolan_lab::Lab;

/// How many machines share the cases.
const LANES: usize = 2;

#[test]
fn podman_does_with_us_all_that_it_does_with_netavark() {
    if Lab::or_skip("podman").is_none() {
        return;
    }
    if let Some(missing) = machine::missing(Backend::Netavark) {
        assert!(env::var_os("CI").is_none(), "CI must have Podman: {missing}");
        eprintln!("SKIP: `podman`: {missing}");
        return;
    }
    let one = env::var("PORTOLAN_PODMAN_BACKEND").unwrap_or_default();
    let bless = env::var_os("PORTOLAN_BLESS").is_some();
    let side = |name: &'static str, backend| {
        let is_wanted = if one.is_empty() { bless || backend == Backend::Portolan } else { one == name };
        std::thread::spawn(move || if is_wanted { play(name, backend, LANES, wanted()) } else { Ok(Vec::new()) })
    };
    // Each has a machine of its own, so neither waits for the other.
    let sides = [side("netavark", Backend::Netavark), side("portolan", Backend::Portolan)];
    let [theirs, ours] = sides.map(|side| side.join().expect("a case does not panic").expect("a machine can be had"));
    let table = table(&theirs, &ours);
    println!("{table}");
    if bless && !theirs.is_empty() && !ours.is_empty() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/podman-outcomes.md");
        fs::write(path, &table).unwrap();
    }
    let mut failed = Vec::new();
    for ((name, _), outcome) in wanted().zip(&ours) {
        match outcome {
            Ok(()) => {}
            Err(Why::Lacks(lack)) => eprintln!("SKIP: `podman`: {name}: {lack}"),
            Err(Why::Fails(reason)) => failed.push((name, reason)),
        }
    }
    assert!(failed.is_empty(), "with us Podman fails at: {failed:#?}");
}

/// The profile that docs/containers.md has one make.
#[test]
fn a_profile_keeps_podmans_containers_from_the_packet_filter() {
    let Some(lab) = Lab::or_skip("podman-profile") else { return };
    let lacks = machine::missing(Backend::Portolan).or_else(|| {
        machine::any::missing_of(&[("/usr/bin/jq", "jq"), ("/usr/sbin/nft", "nftables"), (DEFAULT, "podman")])
    });
    if let Some(missing) = lacks {
        assert!(env::var_os("CI").is_none(), "CI must have Podman: {missing}");
        eprintln!("SKIP: `podman`: {missing}");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/seccomp/no-netfilter.jq");
    let made = Command::new("/usr/bin/jq").arg("-f").arg(script).arg(DEFAULT).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let host = lab.host("p").unwrap();
    let machine = machine::start(&lab, &host, "p", Backend::Portolan).unwrap();
    fs::write(machine.outside("/run/no-netfilter.json"), &made.stdout).unwrap();
    let run = |profile: &str, command: &str| {
        let profile = format!("seccomp={profile}");
        let mut args = vec!["run", "--rm", "--network", "none", "--cap-add", "NET_ADMIN", "--security-opt", &profile];
        // The host's programs, and the libraries that they want.
        args.extend([
            "-v",
            "/usr:/usr:ro",
            "-v",
            "/usr/lib:/lib:ro",
            "-v",
            "/usr/lib64:/lib64:ro",
            IMAGE,
            "sh",
            "-c",
            command,
        ]);
        let output = machine.command("podman", &args).output().unwrap();
        let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat();
        (output.status.success(), said)
    };
    for command in ["/usr/sbin/nft add table ip t", "/usr/sbin/xtables-legacy-multi iptables -A INPUT -j ACCEPT"] {
        let (free, said) = run(DEFAULT, command);
        assert!(free, "{command}: with Podman's own profile: {said}");
        let (kept, said) = run("/run/no-netfilter.json", command);
        let is_refusal = ["not permitted", "implemented", "Permission denied"].iter().any(|it| said.contains(it));
        assert!(!kept && is_refusal, "{command}: {said}");
    }
    // Other sockets, netlink's among them, are as ever.
    let usual = "ip link add type veth && ip route add blackhole 192.0.2.0/24 && ping -c 1 127.0.0.1 && \
                 echo served >/www/index.html && httpd -p 80 -h /www && wget -q -O - http://127.0.0.1/ | grep served";
    let (done, said) = run("/run/no-netfilter.json", usual);
    assert!(done, "{said}");
}

/// Podman's own profile.
const DEFAULT: &str = "/usr/share/containers/seccomp.json";

/// Both outcomes of every case, as Markdown.
fn table(theirs: &[Outcome], ours: &[Outcome]) -> String {
    let mut text = String::from(
        "# What Podman does with either backend\n\nPodman 4.3.1 of Debian 12, run by `crates/portolan/tests/podman`, with \
         Debian's netavark 1.4.0 and aardvark-dns 1.4.0 and with Portolan in their place. \
         `PORTOLAN_BLESS=1 cargo test -p portolan --test podman` writes this page.\n",
    );
    let mut place = 0;
    let wanted: Vec<&str> = wanted().map(|(name, _)| name).collect();
    for (subject, cases) in SUBJECTS {
        writeln!(text, "\n## {subject}\n\n| | netavark | Portolan |\n|---|---|---|").unwrap();
        for (name, _) in cases.iter().filter(|(name, _)| wanted.contains(name)) {
            writeln!(text, "| {name} | {} | {} |", say(theirs.get(place)), say(ours.get(place))).unwrap();
            place += 1;
        }
    }
    text
}
