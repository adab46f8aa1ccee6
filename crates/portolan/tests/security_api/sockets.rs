//! Who may talk to the daemon is decided by its sockets' owners and modes: whatever the umask, from the first moment.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use portolan_kernel::diag;
use portolan_kernel::netns::with_netns;
use portolan_lab::{InNetns, eventually};

use crate::common::upstream::output;
use crate::common::*;
use crate::table::{Row, row};

/// `portolan` on the host, under a umask that takes nothing away.
fn unmasked(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_portolan")]).args(args);
    command.env("PORTOLAN_ROOT", &world.root).env("PORTOLAN_DAEMON", "auto");
    world.h.adopt(command).unwrap()
}

/// Whether somebody with these rights gets to the socket: curl(1) says with status 7 that it could not connect.
fn connects(world: &World, user: Option<&str>, socket: &Path) -> bool {
    let mut command = match user {
        None => Command::new("curl"),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args([
                &format!("--reuid={user}"),
                &format!("--regid={user}"),
                "--clear-groups",
                "--bounding-set=-all",
                "curl",
            ]);
            command
        }
    };
    command
        .args(["--silent", "--max-time", "1", "--http0.9", "--unix-socket"])
        .arg(socket)
        .arg("http://localhost/_ping");
    let output = world.h.adopt(command).unwrap().output().unwrap();
    output.status.code() != Some(7)
}

/// The files that `nobody` may read or write, and the directories that he may change.
fn open_to_nobody(world: &World, place: &Path) -> Vec<String> {
    let mut find = Command::new("setpriv");
    find.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "find"]).arg(place);
    find.args(["(", "-type", "f", "-readable", "-o", "!", "-type", "s", "!", "-type", "l", "-writable", ")", "-print"]);
    let found = world.h.adopt(find).unwrap().output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// All below a directory, with what it is.
fn all_below(directory: &Path, found: &mut Vec<(PathBuf, fs::Metadata)>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        // What is gone by now was there for a moment only.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            all_below(&entry.path(), found);
        }
        found.push((entry.path(), metadata));
    }
}

/// Asks for metrics; whether they came in time.
fn scrape(socket: &Path, patience: Duration) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200 ")
}

pub(crate) fn case() -> Option<Vec<Row>> {
    let mut world = World::or_skip("sec-sockets")?;
    world.daemon = true;
    for program in ["curl", "setpriv"] {
        output(&world.h, program, &["--version"])?;
    }
    let plugin = world.lab.dir().join("docker/plugins/portolan.sock");
    // Whoever looks all the time sees what is there for a moment only.
    let (run, looks) = (world.root.join("run"), AtomicBool::new(true));
    let mut rows = Vec::new();
    let open = std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut open = Vec::new();
            while looks.load(Ordering::Relaxed) {
                for directory in [run.as_path(), plugin.parent().unwrap()] {
                    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                        if let Ok(metadata) = fs::symlink_metadata(entry.path())
                            && metadata.file_type().is_socket()
                            && metadata.mode() & 0o007 != 0
                        {
                            open.push((entry.path(), metadata.mode()));
                        }
                    }
                }
            }
            open
        });
        for _ in 0..5 {
            let started =
                unmasked(&world, &["daemon", "start", "--api", "--docker", plugin.to_str().unwrap()]).output().unwrap();
            assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
            world.portolan_ok(&["daemon", "stop"]);
        }
        looks.store(false, Ordering::Relaxed);
        looker.join().unwrap()
    });
    assert!(open.is_empty(), "{open:?}");
    let umask_bites = world.lab.dir().join("open.sock");
    let mut bind = Command::new("sh");
    bind.args(["-c", "umask 000; exec timeout 10 ncat -lU \"$0\""]).arg(&umask_bites);
    bind.stdout(Stdio::null());
    let mut bind = world.h.adopt(bind).unwrap().spawn().unwrap();
    assert!(eventually(LONG, || umask_bites.exists()));
    assert!(connects(&world, Some("65534"), &umask_bites), "a socket of anybody's is open to everybody");
    let _ = bind.kill();
    let _ = bind.wait();
    rows.push(row(
        "connecting while a socket is being made",
        "a socket that is made with umask 000 is everybody's",
        "in five starts no socket was anybody else's for a moment",
    ));

    let started =
        unmasked(&world, &["daemon", "start", "--api", "--docker", plugin.to_str().unwrap()]).output().unwrap();
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let create =
        unmasked(&world, &["network", "create", "web", "--subnet", "10.91.1.0/24", "--ipv6=false"]).output().unwrap();
    assert!(create.status.success(), "{}", String::from_utf8_lossy(&create.stderr));
    let ran =
        unmasked(&world, &["run", "-d", "--name", "c", "--network", "web", "--", "sleep", "1000"]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let proxy = world.lab.dir().join("leases/nv.sock");
    let mut serve = unmasked(&world, &["netavark", "dhcp-proxy", "-a", "60", "-u", proxy.to_str().unwrap(), "-d"]);
    let mut serve = serve.arg(world.lab.dir().join("leases")).spawn().unwrap();
    let cni = world.lab.dir().join("cni/dhcp.sock");
    let dhcp = world.lab.dir().join("dhcp");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_portolan"), &dhcp).unwrap();
    let mut daemon = Command::new("sh");
    daemon.args(["-c", "umask 000; exec \"$0\" daemon -socketpath \"$1\""]).args([&dhcp, &cni]);
    let mut daemon = world.h.adopt(daemon).unwrap().spawn().unwrap();
    assert!(eventually(LONG, || proxy.exists() && cni.exists()));

    for directory in [&proxy, &cni].map(|socket| socket.parent().unwrap()) {
        assert_eq!(fs::metadata(directory).unwrap().mode() & 0o022, 0, "{}", directory.display());
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Nobody else may so much as look into the root; where somebody lets them, the sockets themselves keep them out.
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&world.root), 0o700);
    fs::set_permissions(&world.root, fs::Permissions::from_mode(0o755)).unwrap();
    let control = world.root.join("run/control.sock");
    let group = portolan_kernel::groups::id_of("docker").unwrap().unwrap_or(0);
    for (what, socket, wanted, owner) in [
        ("the daemon's commands", control.clone(), 0o600, 0),
        ("its service manager's messages", world.root.join("run/notify.sock"), 0o600, 0),
        ("metrics", world.root.join("run/metrics.sock"), 0o600, 0),
        ("Docker's plugin", plugin.clone(), 0o600, 0),
        ("Docker's API", world.root.join("run/docker.sock"), 0o660, group),
        ("netavark's DHCP proxy", proxy.clone(), 0o600, 0),
        ("the CNI plugins' DHCP daemon", cni.clone(), 0o600, 0),
    ] {
        let metadata = fs::symlink_metadata(&socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        assert_eq!((mode(&socket), metadata.uid(), metadata.gid()), (wanted, 0, owner), "{}", socket.display());
        // What takes datagrams is connected to by nobody in this way.
        let is_stream = what != "its service manager's messages";
        if is_stream {
            assert!(connects(&world, None, &socket), "{what}: root connects");
        }
        assert!(!connects(&world, Some("65534"), &socket), "{what}: nobody else connects");
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        if is_stream {
            assert!(connects(&world, Some("65534"), &socket), "{what}: open to all, it is open to nobody(65534)");
        }
        fs::set_permissions(&socket, fs::Permissions::from_mode(wanted)).unwrap();
        let whose = if wanted == 0o660 { "root and the group `docker`: 0660" } else { "root: 0600" };
        rows.push(row(
            format!("user `nobody` connects to the socket of {what}"),
            "with mode 0666 it gets in",
            format!("refused; {whose}"),
        ));
    }
    for child in [&mut serve, &mut daemon] {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    let mut found = Vec::new();
    all_below(&world.root, &mut found);
    for (path, metadata) in &found {
        // What a container sees of these it sees by its own view of them; others do not get to their directory.
        let is_seen = path.starts_with(world.root.join("run/containers")) && metadata.is_file();
        let others = metadata.mode() & if is_seen || metadata.is_dir() { 0o022 } else { 0o077 };
        let is_api = path.ends_with("docker.sock");
        assert!(others == 0 || (is_api && others == 0o060), "{}: {:o}", path.display(), metadata.mode());
    }
    for state in fs::read_dir(&world.root).unwrap().flatten().filter(|entry| entry.metadata().unwrap().is_file()) {
        assert_eq!(mode(&state.path()), 0o600, "{}", state.path().display());
    }
    let secret =
        found.iter().filter(|(path, it)| it.is_dir() && path.parent() == Some(&world.root.join("run/containers")));
    assert!(secret.map(|(_, it)| it.mode() & 0o777).eq([0o700]), "the container's directory");
    // Who looks for what is his to read or write finds what a careless program makes, and nothing of ours.
    let careless = world.lab.dir().join("careless");
    let made = Command::new("sh").args(["-c", "umask 000; : >\"$0\"", careless.to_str().unwrap()]).status().unwrap();
    assert!(made.success());
    assert_eq!(open_to_nobody(&world, &careless), [careless.to_str().unwrap()], "with umask 000 it is everybody's");
    assert_eq!(open_to_nobody(&world, &world.root), [""; 0]);
    rows.push(row(
        "another user reads or replaces the state and run-time files",
        "with umask 000 files are everybody's",
        "files 0600, directories writable for root alone",
    ));

    // Nothing listens for the world but what names and ports take.
    let listeners = with_netns(world.h.netns(), diag::listeners).unwrap().unwrap();
    let strange: Vec<_> = listeners.iter().filter(|it| it.port != 53 || it.addr.to_string() != "10.91.1.1").collect();
    assert!(strange.is_empty() && !listeners.is_empty(), "{strange:?}");
    rows.push(row(
        "connecting to the daemon by IP",
        "`--metrics IP:PORT` listens, if asked for",
        "nothing listens but the name server, at the gateways' addresses",
    ));

    rows.extend(slow_and_long(&world, &control));
    world.verify();
    Some(rows)
}

/// What a server is that nobody thought about: one client after the other, each for as long as it takes and whatever it says.
struct Naive {
    path: PathBuf,
    /// How much of one request it has kept at most.
    kept: &'static AtomicUsize,
}

impl Naive {
    /// `end` is the last of a request.
    fn start(path: PathBuf, end: &'static [u8]) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let kept: &AtomicUsize = Box::leak(Box::default());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
                while !said.ends_with(end) {
                    let Ok(length @ 1..) = stream.read(&mut chunk) else { break };
                    said.extend(&chunk[..length]);
                    kept.fetch_max(said.len(), Ordering::Relaxed);
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            }
        });
        Self { path, kept }
    }

    /// It is kept by one client, and keeps whatever that says.
    fn assert_naive(&self) {
        assert!(scrape(&self.path, LONG), "it answers at all");
        let mut slow = UnixStream::connect(&self.path).unwrap();
        slow.write_all(b"x").unwrap();
        assert!(!scrape(&self.path, SHORT), "it was to be kept by a slow client");
        slow.write_all(&vec![b'x'; MEGABYTE]).unwrap();
        assert!(eventually(LONG, || self.kept.load(Ordering::Relaxed) > MEGABYTE), "it was to keep all that");
        drop(slow);
        assert!(scrape(&self.path, LONG), "it goes on");
    }
}

const MEGABYTE: usize = 1 << 20;

/// Clients that take their time, and those that say too much.
fn slow_and_long(world: &World, control: &Path) -> Vec<Row> {
    Naive::start(world.lab.dir().join("naive.sock"), b"\r\n\r\n").assert_naive();
    let metrics = world.root.join("run/metrics.sock");
    let mut rows = Vec::new();
    // A byte now and then, each in good time. Who came first is served first.
    let go_on = AtomicBool::new(true);
    let mut slow = UnixStream::connect(&metrics).unwrap();
    slow.write_all(b"x").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while go_on.load(Ordering::Relaxed) && slow.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let served = scrape(&metrics, LONG);
        go_on.store(false, Ordering::Relaxed);
        assert!(served, "a slow client keeps the metrics from others");
    });
    rows.push(row(
        "a request for metrics, a byte at a time",
        "one keeps all others waiting",
        "let go after two seconds; the next one is served",
    ));
    let mut stream = UnixStream::connect(&metrics).unwrap();
    assert!(stream.write_all(&vec![b'x'; MEGABYTE]).is_err(), "it was not to be taken");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(scrape(&metrics, LONG));
    rows.push(row("a request for metrics of a megabyte", "all of it is kept", "refused after 8 KiB"));
    // Commands: lines without an end, and clients that say nothing, beside which others are answered.
    let silent: Vec<UnixStream> = (0..200).map(|_| UnixStream::connect(control).unwrap()).collect();
    let mut long = UnixStream::connect(control).unwrap();
    assert!(long.write_all(&vec![b'x'; MEGABYTE]).is_err(), "it was not to be taken");
    let mut answer = String::new();
    let _ = long.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.contains("no command is that long"), "{answer}");
    world.portolan_ok(&["daemon", "status"]);
    drop(silent);
    rows.push(row(
        "a command of a megabyte, beside 200 clients that say nothing",
        "one that says nothing keeps all others waiting, and all of a megabyte is kept",
        "refused after 64 KiB; others are answered",
    ));
    rows
}
