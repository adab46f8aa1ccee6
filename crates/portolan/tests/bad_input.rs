//! Bad input: one sentence that names the thing, a hint, and nothing changed.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{World, check_refusal};
use portolan_lab::snapshot::snapshot;

/// Runs what must be refused; the message must contain `names`, and nothing may change.
#[track_caller]
fn refused(world: &World, args: &[&str], names: &[&str]) {
    let before = world.state();
    let message = world.refused(args);
    for name in names {
        assert!(message.contains(name), "portolan {}: `{message}` does not say `{name}`", args.join(" "));
    }
    before.assert_same(&world.state(), &format!("portolan {}", args.join(" ")));
}

#[test]
fn names_that_are_taken_or_unknown() {
    let Some(world) = World::or_skip("bad-names") else { return };
    world.network("web", &["--subnet", "10.44.0.0/24", "--subnet", "fd44::/64", "--aux-address", "router=10.44.0.9"]);
    world.network("other", &[]);
    let c = world.container("c", &["--network", "name=web,ip=10.44.0.5,ip6=fd44::5,mac-address=02:00:00:00:00:05"]);
    let free = world.lab.host("free").unwrap();
    let path = free.netns_path().to_str().unwrap();
    let attach = |rest: &[&'static str]| [&["attach", "--netns", path][..], rest].concat();
    let refused = |args: &[&str], names: &[&str]| refused(&world, args, names);

    refused(&["network", "create", "web"], &["network `web` exists already"]);
    refused(&["network", "create", "bridge"], &["`bridge`", "predefined"]);
    refused(&["network", "rm", "bridge"], &["`bridge`", "predefined"]);
    refused(&["network", "rm", "nobody"], &["no network `nobody`"]);
    refused(&["network", "rm", "web"], &["`web`", "in use", "c"]);
    refused(&["network", "connect", "nobody", "c"], &["no network `nobody`"]);
    refused(&["network", "connect", "other", "nobody"], &["no container `nobody`"]);
    refused(&["network", "connect", "web", "c"], &["`c`", "`web`", "already"]);
    refused(&["network", "disconnect", "other", "c"], &["`c`", "`other`"]);
    refused(&["detach", "nobody"], &["no container `nobody`"]);
    refused(&["publish", "add", "nobody", "80:80"], &["no container `nobody`"]);
    refused(&["publish", "rm", "c", "80:80"], &["80", "published port"]);
    refused(&["inspect", "nobody"], &["`nobody`"]);
    refused(&["rules", "nobody"], &["`nobody`"]);

    refused(&attach(&["--name", "c", "--network", "web"]), &["container `c` exists already"]);
    refused(&attach(&["--network", "nobody"]), &["no network `nobody`"]);
    refused(&attach(&["--network", "web", "--ip", "10.44.0.5"]), &["10.44.0.5", "`web`", "container `c`"]);
    refused(&attach(&["--network", "web", "--ip6", "fd44::5"]), &["fd44::5", "`web`", "container `c`"]);
    refused(&attach(&["--network", "web", "--ip", "10.44.0.1"]), &["10.44.0.1", "gateway"]);
    refused(&attach(&["--network", "web", "--ip6", "fd44::1"]), &["fd44::1", "gateway"]);
    refused(&attach(&["--network", "web", "--ip", "10.44.0.9"]), &["10.44.0.9", "`router`"]);
    refused(&attach(&["--network", "web", "--ip", "10.44.0.255"]), &["10.44.0.255"]);
    refused(&attach(&["--network", "web", "--ip", "10.99.0.5"]), &["10.99.0.5", "10.44.0.0/24"]);
    refused(&attach(&["--network", "web", "--ip6", "fd99::5"]), &["fd99::5", "fd44::/64"]);
    refused(&attach(&["--network", "web", "--mac-address", "02:00:00:00:00:05"]), &["02:00:00:00:00:05", "`c`"]);
    refused(&attach(&["--network", "web", "--network", "web"]), &["`web`"]);
    refused(&attach(&["--network", "other", "-p", "10.9.9.9:80:80"]), &["10.9.9.9"]);
    refused(&attach(&["--network", "other", "-p", "[fd99::1]:80:80"]), &["fd99::1"]);
    refused(&attach(&["--network", "other", "-p", "[::1]:80:80/sctp"]), &["SCTP", "::1"]);
    refused(&attach(&["--network", "other", "-p", "80:80", "-p", "80:81"]), &["80"]);
    refused(&["attach", "--netns", c.path(), "--network", "other"], &["`c`", c.path()]);
    world.verify();
}

#[test]
fn networks_that_cannot_be() {
    let Some(world) = World::or_skip("bad-networks") else { return };
    world.network("web", &["--subnet", "10.44.0.0/24", "--subnet", "fd44::/64"]);
    let create =
        |rest: &[&str], names: &[&str]| refused(&world, &[&["network", "create", "new"], rest].concat(), names);

    create(&["--subnet", "10.44.0.0/24"], &["10.44.0.0/24", "`web`"]);
    create(&["--subnet", "10.44.0.128/25"], &["10.44.0.128/25", "`web`", "10.44.0.0/24"]);
    create(&["--subnet", "10.0.0.0/8"], &["10.0.0.0/8"]);
    create(&["--subnet", "fd44::/48"], &["fd44::/48", "`web`", "fd44::/64"]);
    create(&["--subnet", "10.0.1.0/24"], &["10.0.1.0/24", "route", "eth0"]);
    create(&["--subnet", "10.0.1.128/25"], &["10.0.1.128/25", "10.0.1.0/24", "eth0"]);
    create(&["--subnet", "fd00:1::/64"], &["fd00:1::/64", "route", "eth0"]);
    create(&["--subnet", "10.45.0.0/24", "--subnet", "10.45.0.0/25"], &["10.45.0.0/25"]);
    create(&["--subnet", "10.45.0.0/24", "--gateway", "10.46.0.1"], &["10.46.0.1"]);
    create(&["--subnet", "fd45::/64", "--gateway", "fd46::1"], &["fd46::1"]);
    create(&["--subnet", "10.45.0.0/24", "--gateway", "10.45.0.255"], &["10.45.0.255"]);
    create(&["--subnet", "10.45.0.0/24", "--ip-range", "10.46.0.0/25"], &["10.46.0.0/25"]);
    create(&["--subnet", "10.45.0.0/24", "--aux-address", "r=10.46.0.1"], &["10.46.0.1"]);
    create(&["--subnet", "10.45.0.1/24"], &["10.45.0.1/24"]);
    create(&["-d", "ptp", "--subnet", "10.44.0.0/24"], &["10.44.0.0/24", "`web`"]);
    create(&["-d", "ptp", "--subnet", "10.0.1.0/24"], &["10.0.1.0/24", "route", "eth0"]);
    create(&["-d", "ptp", "-o", "bridge=br7"], &["`bridge`", "is for bridges"]);
    create(&["-d", "ptp", "-o", "com.docker.network.bridge.name=br7"], &["bridge.name`", "is for bridges"]);
    create(&["-d", "ptp", "-o", "parent=eth0"], &["`parent`", "unknown"]);
    create(&["-d", "ptp", "-o", "vlan=7"], &["`vlan`", "is for bridges"]);
    create(&["-d", "ptp", "--internal", "-o", "gateway_mode_ipv4=isolated"], &["isolated", "is for bridges"]);
    create(&["-d", "ptp", "--ipam-driver", "dhcp"], &["dhcp", "ptp"]);
    create(&["-d", "ptp", "--ipam-driver", "none"], &["none", "ptp"]);
    create(&["--subnet", "127.0.0.0/24"], &["127.0.0.0/24"]);
    create(&["--subnet", "224.0.0.0/24"], &["224.0.0.0/24"]);
    create(&["--subnet", "fe80::/64"], &["fe80::/64"]);
    create(&["--ipv4=false", "--subnet", "10.45.0.0/24"], &["10.45.0.0/24"]);
    create(&["--ipv4=false", "--ipv6=false"], &["neither"]);
    create(&["--opt", "bridge=eth0"], &["`eth0`"]);
    create(&["--opt", "mtu=67"], &["mtu=67"]);
    create(&["--opt", "mtu=1000"], &["1000"]);
    create(&["--opt", "gateway_mode_ipv4=isolated"], &["isolated"]);
    create(&["--opt", "nonsense=1"], &["nonsense"]);
    create(&["--opt", "icc=maybe"], &["icc=maybe"]);
    create(&["--driver", "host"], &["host"]);

    // With every private address routed somewhere.
    for dst in ["172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"] {
        world.h.add_route(dst, "10.0.1.2").unwrap();
    }
    create(&[], &["no free subnet", "192.168.0.0/16"]);
    world.verify();
}

#[test]
fn a_pool_that_is_used_up() {
    let Some(world) = World::or_skip("bad-pool") else { return };
    world.network("pair", &["--subnet", "10.70.0.0/30", "--ipv6=false"]);
    world.network("six", &["--subnet", "fd70::/126", "--ipv4=false"]);
    world.network("part", &["--subnet", "10.71.0.0/24", "--ip-range", "10.71.0.8/31", "--ipv6=false"]);
    world.container("elsewhere", &[]);
    for (network, range, room) in [("pair", "10.70.0.0/30", 1), ("six", "fd70::/126", 2), ("part", "10.71.0.8/31", 2)] {
        for number in 0..room {
            world.container(&format!("{network}{number}"), &["--network", network]);
        }
        let free = world.lab.host(&format!("{network}-free")).unwrap();
        let path = free.netns_path().to_str().unwrap();
        refused(&world, &["attach", "--netns", path, "--network", network], &[&format!("`{network}`"), range]);
        refused(&world, &["network", "connect", network, "elsewhere"], &[range]);
        // Room again, at once.
        world.portolan_ok(&["detach", &format!("{network}0")]);
        world.portolan_ok(&["attach", "--netns", path, "--network", network, "--name", &format!("{network}0")]);
    }
    world.verify();
}

#[test]
fn namespaces_that_are_none() {
    let Some(world) = World::or_skip("bad-netns") else { return };
    world.network("web", &[]);
    let file = world.lab.dir().join("file");
    fs::write(&file, "").unwrap();
    let (file, dir) = (file.to_str().unwrap(), world.root.to_str().unwrap());
    let gone = world.lab.dir().join("gone");
    let gone = gone.to_str().unwrap();
    let own = world.h.netns_path().to_str().unwrap();
    for (path, word) in [
        (file, "file"),
        (dir, "not a network namespace"),
        (gone, ""),
        (own, "host"),
        ("/proc/self/ns/mnt", "namespace"),
        ("/dev/null", "not a network namespace"),
    ] {
        refused(&world, &["attach", "--netns", path, "--network", "web", "-p", "8080:80"], &[path, word]);
    }
    refused(&world, &["attach", "--pid", "2147483647", "--network", "web"], &["2147483647"]);
    world.verify();
}

/// What lies below `dir`, with contents.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_file())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn state_that_cannot_be_read() {
    let Some(world) = World::or_skip("bad-state") else { return };
    world.network("web", &[]);
    world.container("c", &["--network", "web", "-p", "8080:80"]);
    let db = world.root.join("state.db");
    let all = files(&world.root);
    let good = fs::read(&db).unwrap();
    let newer = {
        // The file's format number (SQLite's user_version) is at offset 60, big-endian.
        let mut bytes = good.clone();
        bytes[60..64].copy_from_slice(&9999u32.to_be_bytes());
        bytes
    };
    let mut damaged = good.clone();
    damaged[100..1100].fill(0xa5);
    let path = db.to_str().unwrap();
    for (bytes, names) in [
        (&b"this is no state file at all, it is a letter to somebody".to_vec(), &[path][..]),
        (&damaged, &[path]),
        (&newer, &[path, "9999"]),
    ] {
        for left in ["state.db-wal", "state.db-shm"] {
            let _ = fs::remove_file(world.root.join(left));
        }
        fs::write(&db, bytes).unwrap();
        let before = (snapshot(&world.h).unwrap(), fs::read(&db).unwrap());
        for args in [
            &["network", "create", "new"][..],
            &["detach", "c"],
            &["publish", "add", "c", "8081:81"],
            &["network", "ls"],
            &["gc"],
        ] {
            let message = world.refused(args);
            for name in names {
                assert!(message.contains(name), "{args:?}: `{message}` does not say `{name}`");
            }
            assert!((snapshot(&world.h).unwrap(), fs::read(&db).unwrap()) == before, "{args:?} changed something");
        }
    }
    for left in ["state.db-wal", "state.db-shm"] {
        let _ = fs::remove_file(world.root.join(left));
    }
    for (name, bytes) in all.into_iter().filter(|(name, _)| name != "state.db-shm") {
        fs::write(world.root.join(name), bytes).unwrap();
    }
    world.verify();
}

/// Runs the binary on host `h` in a mount namespace of its own, after `script` there; `$ROOT` is the root.
fn after(world: &World, script: &str, args: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{script}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_portolan")]);
    command
        .args(args)
        .env("PORTOLAN_ROOT", &world.root)
        .env("PORTOLAN_DAEMON", "off")
        .env("ROOT", &world.root)
        .env("BIN", env!("CARGO_BIN_EXE_portolan"));
    world.h.adopt(command).unwrap().output().unwrap()
}

fn has_unshare() -> bool {
    let found = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    if !found {
        assert!(std::env::var_os("CI").is_none(), "CI must have unshare(1)");
        eprintln!("SKIP: no unshare(1), or it may not");
    }
    found
}

#[test]
fn places_that_cannot_be_written() {
    let Some(world) = World::or_skip("bad-places") else { return };
    if !has_unshare() {
        return;
    }
    let root = world.root.to_str().unwrap().to_owned();
    fs::create_dir_all(&root).unwrap();
    let read_only_root = "mount --bind \"$ROOT\" \"$ROOT\"\nmount -o remount,bind,ro \"$ROOT\"";
    let read_only_sysctls = "mount --bind /proc/sys /proc/sys\nmount -o remount,bind,ro /proc/sys";
    let host = world.untouched();
    let refused = |script: &str, args: &[&str], name: &str| {
        let (before, listed) = (snapshot(&world.h).unwrap(), files(&world.root).len());
        let message = check_refusal(args, &after(&world, script, args));
        assert!(message.contains(name), "{args:?}: `{message}` does not say `{name}`");
        world.assert_untouched(&before, &args.join(" "));
        (listed, message)
    };
    let create = ["network", "create", "web"];
    // Before there is any state, and with some.
    refused(read_only_root, &create, &root);
    assert_eq!(files(&world.root).len(), 0);
    refused(read_only_sysctls, &create, "/proc/sys");
    assert_eq!(world.json(&["network", "ls"]).as_array().unwrap().len(), 3, "the predefined ones");
    world.network("web", &[]);
    let c = world.container("c", &["--network", "web"]);
    let free = world.lab.host("free").unwrap();
    let attach = ["attach", "--netns", free.netns_path().to_str().unwrap(), "--network", "web", "-p", "8080:80"];
    let state = world.state();
    for args in [&["network", "create", "new"][..], &attach, &["detach", "c"], &["publish", "add", "c", "8081:81"]] {
        refused(read_only_root, args, &root);
    }
    refused(read_only_sysctls, &["network", "create", "new"], "/proc/sys");
    refused(read_only_sysctls, &attach, "/proc/sys");
    state.assert_same(&world.state(), "what could not be written");
    world.verify();
    drop(c);
    world.portolan_ok(&["detach", "c"]);
    world.portolan_ok(&["network", "rm", "web"]);
    world.assert_untouched(&host, "the test");
}

#[test]
fn a_full_disk() {
    let Some(world) = World::or_skip("bad-disk") else { return };
    if !has_unshare() {
        return;
    }
    world.network("web", &[]);
    world.container("c", &["--network", "web"]);
    let free = world.lab.host("free").unwrap();
    let attach = ["attach", "--netns", free.netns_path().to_str().unwrap(), "--network", "web", "-p", "8080:80"];
    let state = world.state();
    // A copy of the state on a small disk; then the rest of the disk is used up.
    let script = "
        mkdir -p \"$ROOT-copy\"; cp \"$ROOT\"/state.db* \"$ROOT\"/lock \"$ROOT-copy\" 2>/dev/null || true
        mount -t tmpfs -o size=1m portolan-test \"$ROOT\"; cp \"$ROOT-copy\"/* \"$ROOT\"
        dd if=/dev/zero of=\"$ROOT/fill\" bs=4k >/dev/null 2>&1 || true";
    for args in [&["network", "create", "new"][..], &attach, &["publish", "add", "c", "8081:81"]] {
        let message = check_refusal(args, &after(&world, script, args));
        assert!(message.contains(world.root.to_str().unwrap()), "{message}");
        state.assert_same(&world.state(), &format!("{args:?}"));
    }
    // On an empty full disk.
    let script = "mount -t tmpfs -o size=16k portolan-test \"$ROOT\"; dd if=/dev/zero of=\"$ROOT/fill\" bs=4k >/dev/null 2>&1 || true";
    let args = ["network", "create", "new"];
    let message = check_refusal(&args, &after(&world, script, &args));
    assert!(message.contains(world.root.to_str().unwrap()), "{message}");
    state.assert_same(&world.state(), "a full empty disk");
    world.verify();
}

#[test]
fn without_privileges() {
    let Some(world) = World::or_skip("bad-user") else { return };
    world.network("web", &[]);
    world.container("c", &["--network", "web"]);
    let mut drop_all = Command::new("setpriv");
    drop_all.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        env!("CARGO_BIN_EXE_portolan"),
    ]);
    if !drop_all.arg("version").output().is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI must have setpriv(1), and a binary that others may run");
        eprintln!("SKIP: no setpriv(1), or nobody else may run the binary");
        return;
    }
    let state = world.state();
    for args in [
        &["network", "create", "new"][..],
        &["network", "rm", "web"],
        &["attach", "--netns", "/proc/self/ns/net", "--network", "web"],
        &["detach", "c"],
        &["publish", "add", "c", "80:80"],
        &["run", "--", "true"],
        &["gc"],
    ] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
        command
            .arg(env!("CARGO_BIN_EXE_portolan"))
            .args(args)
            .env("PORTOLAN_ROOT", &world.root)
            .env("PORTOLAN_DAEMON", "off");
        let output = world.h.adopt(command).unwrap().output().unwrap();
        let message = check_refusal(args, &output);
        assert!(message.contains("CAP_NET_ADMIN"), "{args:?}: {message}");
        state.assert_same(&world.state(), &format!("{args:?}"));
    }
}
