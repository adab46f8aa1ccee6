//! What the daemon may do is little more than what it does, and less in the threads that talk to strangers. That refused calls
//! are refused is tried in `portolan_kernel::confine`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use portolan_kernel::process::PidFd;
use portolan_kernel::signals;
use portolan_lab::eventually;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::common::*;
use crate::table::{Row, row};

/// Capabilities, by their numbers in linux/capability.h.
const NAMES: [(u32, &str); 8] = [
    (0, "CHOWN"),
    (2, "DAC_READ_SEARCH"),
    (10, "NET_BIND_SERVICE"),
    (12, "NET_ADMIN"),
    (13, "NET_RAW"),
    (16, "SYS_MODULE"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
];

/// What the kernel says of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rights {
    capabilities: u64,
    bounding: u64,
    no_new_privileges: bool,
    filtered: bool,
    filters: u32,
}

impl Rights {
    fn names(&self) -> String {
        let has = |number: u32| self.capabilities & 1 << number != 0;
        let named: Vec<_> = NAMES.iter().filter(|(number, _)| has(*number)).map(|(_, name)| *name).collect();
        assert_eq!(named.len() as u32, self.capabilities.count_ones(), "{self:?}");
        named.join(", ")
    }
}

/// The threads of a process by their names; of several with one name all are the same.
fn threads(pid: i32) -> BTreeMap<String, Rights> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // Those of tokio's pool come and go.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.unwrap_or_else(|| panic!("{name}: {status}")).to_owned()
        };
        let hex = |name: &str| u64::from_str_radix(&field(name), 16).unwrap();
        let rights = Rights {
            capabilities: hex("CapEff") | hex("CapPrm"),
            bounding: hex("CapBnd"),
            no_new_privileges: field("NoNewPrivs") == "1",
            filtered: field("Seccomp") == "2",
            filters: field("Seccomp_filters").parse().unwrap(),
        };
        threads.insert(field("Name"), rights);
    }
    threads
}

pub(crate) fn case() -> Option<Vec<Row>> {
    let mut world = World::or_skip("sec-rights")?;
    world.daemon = true;
    let plugin = world.lab.dir().join("docker.sock");
    world.portolan_ok(&["daemon", "start", "--api", "--docker", plugin.to_str().unwrap()]);
    world.network("web", &["--subnet", "10.91.1.0/24"]);
    let _site = world.container("site", &["--network", "web", "-p", "8080:80"]);
    let pid = || world.json(&["daemon", "status"])["pid"].as_i64().unwrap() as i32;
    let first = threads(pid());

    // A program that nobody confined, beside it.
    let mut free = Command::new("sleep");
    let mut free = free.arg("1000").arg0("sleep").spawn().unwrap();
    let unconfined = threads(free.id().cast_signed()).into_values().next().unwrap();
    free.kill().unwrap();
    free.wait().unwrap();
    assert!(unconfined.capabilities.count_ones() > 6 && !unconfined.no_new_privileges, "{unconfined:?}");
    let outside = unconfined.filters;

    let mut rows = Vec::new();
    let kept = [0, 2, 10, 12, 13, 19, 21].into_iter().fold(0u64, |mask, number| mask | 1 << number);
    for (name, rights) in &first {
        assert!(rights.no_new_privileges && rights.filtered, "{name}: {rights:?}");
        assert_eq!((rights.capabilities & !kept, rights.bounding & !kept), (0, 0), "{name}: {rights:?}");
        let talks_to_strangers = matches!(name.as_str(), "portolan-dns" | "portolan-proxy" | "portolan-metric");
        let filters = outside + if talks_to_strangers { 3 } else { 2 };
        assert_eq!(rights.filters, filters, "{name}: {rights:?}");
        if talks_to_strangers {
            assert_eq!(rights.names(), "NET_BIND_SERVICE, NET_ADMIN", "{name}");
        }
    }
    for (thread, name) in [
        ("main", "portolan"),
        ("names", "portolan-dns"),
        ("proxied ports", "portolan-proxy"),
        ("metrics", "portolan-metric"),
        ("repair", "portolan-repair"),
        ("Docker's plugin", "portolan-docker"),
        ("Docker's API", "portolan-api"),
    ] {
        let rights = first.get(name).unwrap_or_else(|| panic!("no thread {name}: {first:?}"));
        let calls = if rights.filters - outside == 3 {
            "sockets of IP alone: no file is opened, no program started, no namespace entered, no netlink"
        } else {
            "those of `confine::process`"
        };
        rows.push(row(
            format!("thread for {thread}"),
            "all capabilities, all system calls",
            format!("{}; {calls}", rights.names()),
        ));
    }

    // What it can no longer make it has made before, and keeps: a proc file system of its own, to write settings by.
    let own_procs = || {
        let open = fs::read_dir(format!("/proc/{}/fd", pid())).unwrap().flatten();
        open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == std::path::Path::new("/"))).count()
    };
    assert_eq!(own_procs(), 1);

    // Where nothing else is given up, they come back with the next program (capabilities(7), programs that root executes).
    let after_all = std::thread::spawn(move || {
        let mut own = capabilities(None).unwrap();
        own.effective = CapabilitySet::NET_ADMIN;
        own.permitted = CapabilitySet::NET_ADMIN;
        set_capabilities(None, own).unwrap();
        let mut program = Command::new("sleep").arg("1000").spawn().unwrap();
        // The kernel lets us go on when the program has its memory; its rights come a moment later (begin_new_exec(), fs/exec.c).
        let rights = || threads(program.id().cast_signed()).into_values().next().unwrap();
        let are_back = eventually(LONG, || rights() == unconfined);
        program.kill().unwrap();
        program.wait().unwrap();
        are_back
    });
    assert!(after_all.join().unwrap(), "they do not come back");

    // It stays so over upgrades and deaths, and nothing piles up.
    for _ in 0..3 {
        world.portolan_ok(&["daemon", "upgrade"]);
    }
    let settled = |now: BTreeMap<String, Rights>| first.iter().all(|(name, rights)| now.get(name) == Some(rights));
    assert_eq!(own_procs(), 1);
    assert!(settled(threads(pid())), "after upgrades: {:#?} was {first:#?}", threads(pid()));
    let process = PidFd::open(pid()).unwrap();
    process.signal(signals::KILL).unwrap();
    assert!(process.wait_readable(LONG).unwrap());
    assert!(settled(threads(pid())), "after its death: {:#?} was {first:#?}", threads(pid()));
    rows.push(row(
        "more rights by executing a program: an upgrade, or the one that comes after being killed",
        "rights that root gave up by capset(2) alone are back",
        "the same rights, and no filter twice",
    ));

    // Nobody's socket is to be given to a group where there is none of Docker's API.
    assert!(first["portolan"].names().contains("CHOWN"), "{first:?}");
    world.portolan_ok(&["daemon", "stop"]);
    world.portolan_ok(&["daemon", "start"]);
    let plain = threads(pid());
    assert!(!plain["portolan"].names().contains("CHOWN"), "{plain:?}");
    world.verify();
    Some(rows)
}

/// One crate has what the compiler cannot check, and each block of it says why it is sound: the workspace's lints see to that.
#[test]
fn unsafe_code_is_in_one_crate() {
    let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(crates).unwrap().flatten() {
        let manifest = fs::read_to_string(entry.path().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{}", entry.path().display());
        let roots = ["src/lib.rs", "src/main.rs"].map(|root| fs::read_to_string(entry.path().join(root)).ok());
        for root in roots.into_iter().flatten() {
            let forbids = root.contains("#![forbid(unsafe_code)]");
            assert_eq!(forbids, entry.file_name() != "kernel", "{}", entry.path().display());
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
    let lints = fs::read_to_string(crates.join("../Cargo.toml")).unwrap();
    assert!(
        lints.contains("undocumented_unsafe_blocks = \"deny\"") && lints.contains("unsafe_op_in_unsafe_fn = \"deny\"")
    );
}
