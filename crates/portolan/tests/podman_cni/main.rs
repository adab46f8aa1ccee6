//! A real Podman with its older network backend, CNI, on Debian's plugins, and on this binary in the place of each.
//!
//! Ours must do all the cases of `podman` that this backend has, so they are never worse. `PORTOLAN_PODMAN_BACKEND=both` has
//! the originals do the same beside it, and shows the outcomes of both; then ours may fail where they fail. `plugins` is the
//! originals alone. `PORTOLAN_PODMAN=WORD` runs only the cases whose name has it.

#[path = "../podman/cases/mod.rs"]
mod cases;
#[path = "../podman/machine.rs"]
mod machine;
#[path = "../podman/outcome.rs"]
mod outcome;
#[path = "../podman/scene.rs"]
mod scene;

use std::env;

use cases::SUBJECTS;
use machine::Backend;
use outcome::{Why, play, say, wanted};
use portolan_lab::Lab;

/// How many machines share the cases.
const LANES: usize = 2;

/// What the originals cannot do, and so is not asked: names, which Debian has no plugin for, and what they leave behind.
const NOT: [&str; 12] = [
    "`connect` and `disconnect` while it runs",
    "`connect --alias` while it runs",
    "`reload` keeps addresses, ports and names",
    "`rm` is refused while in use, then removes the bridge",
    "`rm -f` removes its containers too",
    "IPv6, from the host, by `[::1]`",
    "of a container without IPv6, from IPv6 clients",
    "a pod: one namespace, a published port",
    "`restart`",
    "its process killed, then `start`",
    "20 containers started at once",
    "the host is in the end what it was before",
];

/// Whether Podman with these plugins is asked for a case.
fn is_asked(name: &str) -> bool {
    let is_about_names =
        SUBJECTS.iter().any(|(subject, cases)| *subject == "Names" && cases.iter().any(|c| c.0 == name));
    !is_about_names && !NOT.contains(&name)
}

#[test]
fn podman_does_with_our_plugins_what_it_does_with_the_originals() {
    if Lab::or_skip("podman-cni").is_none() {
        return;
    }
    if let Some(missing) = machine::missing(Backend::Plugins) {
        assert!(env::var_os("CI").is_none(), "CI must have Podman: {missing}");
        eprintln!("SKIP: `podman_cni`: {missing}");
        return;
    }
    let cases = || wanted().filter(|(name, _)| is_asked(name));
    let which = env::var("PORTOLAN_PODMAN_BACKEND").unwrap_or_else(|_| "ours".to_owned());
    let side = |name: &'static str, backend| {
        let is_wanted = which == "both" || which == name;
        std::thread::spawn(move || if is_wanted { play(name, backend, LANES, cases()) } else { Ok(Vec::new()) })
    };
    let sides = [side("plugins", Backend::Plugins), side("ours", Backend::PortolanPlugins)];
    let [theirs, ours] = sides.map(|side| side.join().expect("a case does not panic").expect("a machine can be had"));
    let mut failed = Vec::new();
    for (number, (name, _)) in cases().enumerate() {
        let (theirs, ours) = (theirs.get(number), ours.get(number));
        println!("| {name} | {} | {} |", say(theirs), say(ours));
        if let (None | Some(Ok(())), Some(Err(Why::Fails(reason)))) = (theirs, ours) {
            failed.push((name, reason));
        }
    }
    assert!(failed.is_empty(), "with our plugins Podman fails at: {failed:#?}");
}
