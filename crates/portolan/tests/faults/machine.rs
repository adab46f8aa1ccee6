//! What goes wrong with the machine itself: a disk that is full, and no descriptors left.

use std::fs;

use crate::place::*;

/// With fewer and fewer descriptors each verb fails and says why, or does its work; nobody alive is taken for dead.
#[test]
fn descriptors() {
    let Some(place) = Place::or_skip("descriptors", ON_NETWORK_A) else { return };
    for line in [NETWORK_A, ON_A] {
        place.line(line);
    }
    let before = place.rows();
    let mut failures = 0;
    for line in ["gc", "verify", "publish add c 9090:90", NETWORK_B, "network connect --ip 10.92.0.9 b c"] {
        for limit in 3..24 {
            let args = place.args(line).join(" ");
            let mut command = std::process::Command::new("sh");
            command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" {args}"), env!("CARGO_BIN_EXE_portolan")]);
            command.env("PORTOLAN_ROOT", &place.world.root).env("PORTOLAN_DAEMON", "off");
            let output = place.world.h.adopt(command).unwrap().output().unwrap();
            let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
            let what = format!("`{line}` with {limit} descriptors: {} {said}", output.status);
            assert!(!said.contains("panicked"), "{what}");
            failures += usize::from(!output.status.success());
            assert!(output.status.success() || !said.trim().is_empty(), "{what}");
            // What is not known is not said to be missing.
            assert!(line != "verify" || output.stdout.is_empty(), "{what}");
            // The next one, with all it needs, puts in order what that left.
            place.line("gc");
            place.line("verify");
            assert!(before.is_subset(&place.rows()), "{what}: {:?}", place.rows());
            place.nothing_left(&what);
        }
    }
    assert!(failures > 20, "{failures} failures: is that all?");
    eprintln!("descriptors: {failures} failures");
    place.clear("descriptors");
}

/// Where the state is there is no room: what changes anything fails and says so, what is there stays, and with room again
/// everything goes on.
#[test]
fn full_disk() {
    let Some(place) = Place::or_skip("full disk", ON_NETWORK_A) else { return };
    let (root, container) = (place.world.root.clone(), place.container.netns_path().to_owned());
    fs::create_dir_all(&root).unwrap();
    let program = env!("CARGO_BIN_EXE_portolan");
    // A mount namespace of its own: the small disk goes with the script.
    let script = format!(
        r#"set -u
        mount -t tmpfs -o size=512k tmpfs "{root}" || {{ echo SKIP; exit 0; }}
        export PORTOLAN_ROOT="{root}" PORTOLAN_DAEMON=off
        p() {{ "{program}" "$@"; }}
        p network create --subnet 10.91.0.0/24 a && p attach --netns "{ns}" --name c --network a -p 8080:80 || exit 10
        dd if=/dev/zero of="{root}/ballast" bs=4k 2>/dev/null
        full=0; n=0
        while [ $n -lt 60 ]; do
            p network create --subnet 10.92.$n.0/24 b$n >/dev/null 2>"/tmp/portolan-full.$$" || {{
                full=$((full+1)); grep -q "disk is full\|No space\|no space" "/tmp/portolan-full.$$" || {{ cat "/tmp/portolan-full.$$"; exit 11; }}
                [ $full -ge 3 ] && break
            }}
            n=$((n+1))
        done
        rm -f "/tmp/portolan-full.$$"
        [ $full -ge 3 ] || exit 12
        p ps -q | grep -q . || exit 13
        rm "{root}/ballast"
        p gc >/dev/null && p verify || exit 14
        p detach c >/dev/null && p network prune -f >/dev/null || exit 15
        p network ls -q | wc -l
        p verify || exit 16
        "#,
        root = root.display(),
        ns = container.display(),
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    let output = place.world.h.adopt(command).unwrap().output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    if said.contains("SKIP") {
        eprintln!("SKIP: no tmpfs can be mounted");
        return;
    }
    assert_eq!(said.trim().lines().last(), Some("3"), "the predefined networks are left: {output:?}");
    place.world.assert_untouched(&place.untouched, "full disk");
}
