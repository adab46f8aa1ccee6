//! Namespaces, settings, sockets, conntrack, nftables batches and children on the running kernel.

mod common;

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use common::{in_netns, netfilter_socket, route_socket};
use portolan_kernel::announce::announce_all;
use portolan_kernel::conntrack::{self, Filter};
use portolan_kernel::diag::{self, Transport};
use portolan_kernel::netlink::{Batch, CREATE, EXCL, push_nfgenmsg};
use portolan_kernel::netns::{self, NetnsError, NetnsFd, with_netns};
use portolan_kernel::probe;
use portolan_kernel::process::{self, JoinTarget, SandboxChild, SpawnError, SpawnSpec, Stage, command_in};
use portolan_kernel::rtnl::link::{self, LinkChange, VethPeer, VethSpec};
use portolan_kernel::sysctl::{self, Written};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn loopback_up() {
    let mut batch = Batch::new();
    link::set(&mut batch, "lo", &LinkChange { up: Some(true), ..LinkChange::default() });
    route_socket().transact(&batch).unwrap();
}

fn push_text(buf: &mut Vec<u8>, attr: u16, text: &str) {
    netlink_bindings::utils::push_header(buf, attr, text.len() as u16 + 1);
    buf.extend_from_slice(text.as_bytes());
    buf.push(0);
}

#[test]
fn entering_a_namespace_is_undone_by_a_panic() {
    in_netns(|| {
        let home = NetnsFd::current().unwrap().identity();
        let other = NetnsFd::create().unwrap();
        let inside = with_netns(&other, || NetnsFd::current().unwrap().identity()).unwrap();
        assert_eq!(inside, other.identity());
        assert_ne!(inside, home);
        let panicked = std::panic::catch_unwind(|| with_netns(&other, || panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(NetnsFd::current().unwrap().identity(), home);
    });
}

#[test]
fn pins_can_be_opened_and_removed() {
    in_netns(|| {
        let dir = std::env::temp_dir().join(format!("portolan-pin-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("ns");
        let created = netns::create_pinned(&path).unwrap();
        assert_eq!(NetnsFd::open(&path).unwrap().identity(), created.identity());
        assert!(matches!(
            netns::create_pinned(&path),
            Err(NetnsError::Pin { source, .. }) if source.0 == libc::EEXIST
        ));
        netns::unpin(&path).unwrap();
        netns::unpin(&path).unwrap();
        assert!(NetnsFd::open(&path).unwrap_err().is_missing());
        fs::write(&path, "").unwrap();
        let error = NetnsFd::open(&path).unwrap_err();
        assert!(error.to_string().contains("regular file"), "{error}");
        let error = NetnsFd::open("/proc/self/ns/mnt").unwrap_err();
        assert!(error.to_string().contains("another kind"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    });
}

#[test]
fn settings_are_written_only_when_they_differ() {
    in_netns(|| {
        let name = ["net", "ipv4", "ip_forward"];
        assert_eq!(sysctl::write(&name, "1").unwrap(), Written::Changed("0".into()));
        assert_eq!(sysctl::write(&name, "1").unwrap(), Written::Unchanged);
        assert_eq!(sysctl::read(&name).unwrap(), "1");
        let error = sysctl::read(&["net", "ipv4", "conf", "absent.0", "rp_filter"]).unwrap_err();
        assert!(error.is_missing());
        assert!(error.to_string().contains("/proc/sys/net/ipv4/conf/absent.0/rp_filter"));
    });
}

#[test]
fn listeners_are_found_with_their_holder() {
    in_netns(|| {
        loopback_up();
        let tcp = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let udp = UdpSocket::bind("[::]:0").unwrap();
        let (tcp_port, udp_port) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        let listeners = diag::listeners().unwrap();
        let found = listeners.iter().find(|l| l.occupies(Transport::Tcp, LOCALHOST, tcp_port)).unwrap();
        let holder = diag::holder_of(found.inode).unwrap();
        assert_eq!(holder.pid as u32, std::process::id());
        let found = listeners.iter().find(|l| l.occupies(Transport::Udp, LOCALHOST, udp_port)).unwrap();
        assert!(found.addr.is_ipv6() && !found.v6only);

        let in_use = diag::probe_bind(Transport::Tcp, LOCALHOST, tcp_port).unwrap_err();
        assert_eq!(in_use.raw_os_error(), Some(libc::EADDRINUSE));
        let in_use = diag::probe_bind(Transport::Udp, LOCALHOST, udp_port).unwrap_err();
        assert_eq!(in_use.raw_os_error(), Some(libc::EADDRINUSE));
        diag::probe_bind(Transport::Udp, LOCALHOST, tcp_port).unwrap();
        diag::probe_bind(Transport::Sctp, LOCALHOST, 5).unwrap();
        let absent = diag::probe_bind(Transport::Tcp, "192.0.2.1".parse().unwrap(), 80);
        assert_eq!(absent.unwrap_err().raw_os_error(), Some(libc::EADDRNOTAVAIL));
        drop(tcp);
        diag::probe_bind(Transport::Tcp, LOCALHOST, tcp_port).unwrap();
    });
}

/// Appends a table with a rule that makes the kernel track connections: `ct state` on output.
fn tracking_table(batch: &mut Batch) {
    use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
    const NFPROTO_INET: u8 = 1;
    let push_u32 = |buf: &mut Vec<u8>, attr, value: u32| {
        push_header(buf, attr, 4);
        buf.extend_from_slice(&value.to_be_bytes());
    };
    batch.begin_nft(None);
    batch.message(10 << 8, CREATE | EXCL, |buf| {
        push_nfgenmsg(buf, NFPROTO_INET, 0);
        push_text(buf, 1, "t");
    });
    batch.message(10 << 8 | 3, CREATE, |buf| {
        push_nfgenmsg(buf, NFPROTO_INET, 0);
        push_text(buf, 1, "t");
        push_text(buf, 3, "c");
        let hook = push_nested_header(buf, 4);
        push_u32(buf, 1, 3);
        push_u32(buf, 2, 0);
        finalize_nested_header(buf, hook);
        push_text(buf, 7, "filter");
    });
    batch.message(10 << 8 | 6, CREATE, |buf| {
        push_nfgenmsg(buf, NFPROTO_INET, 0);
        push_text(buf, 1, "t");
        push_text(buf, 2, "c");
        let list = push_nested_header(buf, 4);
        let element = push_nested_header(buf, 1);
        push_text(buf, 1, "ct");
        let data = push_nested_header(buf, 2);
        push_u32(buf, 1, 1);
        push_u32(buf, 2, 0);
        finalize_nested_header(buf, data);
        finalize_nested_header(buf, element);
        finalize_nested_header(buf, list);
    });
    batch.end_nft();
}

#[test]
fn connections_are_listed_and_deleted() {
    in_netns(|| {
        loopback_up();
        let mut socket = netfilter_socket();
        let mut batch = Batch::new();
        tracking_table(&mut batch);
        socket.transact(&batch).unwrap();

        let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect((LOCALHOST, port)).unwrap();
        let server = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        let client = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        client.send_to(b"x", server.local_addr().unwrap()).unwrap();

        assert_eq!(conntrack::count(&mut socket).unwrap(), 2);
        let all = conntrack::dump(&mut socket, Filter::default()).unwrap();
        assert_eq!(all.len(), 2, "{all:#?}");
        let tcp = Filter { protocol: Some(6), ..Filter::default() };
        let entries = conntrack::dump(&mut socket, tcp).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].original.dst, entries[0].original.dst_port), (LOCALHOST, port));
        assert_eq!(entries[0].reply.src_port, port);
        assert!(entries[0].id.is_some());
        assert_ne!(entries[0].status & conntrack::ASSURED, 0);

        let deleted = conntrack::delete_matching(&mut socket, Filter::default(), |entry| entry.original.protocol == 17);
        assert_eq!(deleted.unwrap(), 1);
        let mut batch = Batch::new();
        conntrack::delete(&mut batch, &entries[0]);
        socket.transact(&batch).unwrap();
        assert!(socket.transact(&batch).unwrap_err().is_missing());
        assert_eq!(conntrack::count(&mut socket).unwrap(), 0);
    });
}

#[test]
fn large_nft_transactions_neither_block_nor_overflow() {
    in_netns(|| {
        const NFPROTO_INET: u8 = 1;
        let mut socket = netfilter_socket();
        let mut batch = Batch::new();
        batch.begin_nft(None);
        batch.message(10 << 8, CREATE | EXCL, |buf| {
            push_nfgenmsg(buf, NFPROTO_INET, 0);
            push_text(buf, 1, "t");
        });
        for n in 0..12_000 {
            batch.message(10 << 8 | 3, CREATE, |buf| {
                push_nfgenmsg(buf, NFPROTO_INET, 0);
                push_text(buf, 1, "t");
                push_text(buf, 3, &format!("chain-with-a-long-name-{n:060}"));
            });
        }
        batch.end_nft();
        assert!(batch.bytes() > 1 << 20);
        let outcome = socket.transact_each(&batch).unwrap();
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors.first());

        // The table exists: the first message fails, and the rest of the transaction with it.
        let error = socket.transact(&batch).unwrap_err();
        assert!(error.is_exists(), "{error}");
        assert_eq!(error.index(), Some(1));

        // Every message fails.
        let mut batch = Batch::new();
        batch.begin_nft(None);
        for _ in 0..12_000 {
            batch.message(10 << 8 | 3, CREATE, |buf| {
                push_nfgenmsg(buf, NFPROTO_INET, 0);
                push_text(buf, 1, "absent");
                push_text(buf, 3, "c");
            });
        }
        batch.end_nft();
        let outcome = socket.transact_each(&batch).unwrap();
        assert!(outcome.errors.len() > 1000);
        assert!(outcome.errors[0].is_missing());

        // A generation that is not the current one.
        let mut batch = Batch::new();
        batch.begin_nft(Some(u32::MAX));
        batch.message(10 << 8, CREATE, |buf| {
            push_nfgenmsg(buf, NFPROTO_INET, 0);
            push_text(buf, 1, "t2");
        });
        batch.end_nft();
        let error = socket.transact(&batch).unwrap_err();
        assert_eq!((error.errno(), error.index()), (libc::ERESTART, Some(0)), "{error}");
        // The socket is fit for further use.
        let mut batch = Batch::new();
        tracking_table(&mut batch);
        assert!(socket.transact(&batch).unwrap_err().is_exists());
    });
}

#[test]
fn announcements_leave_the_interface() {
    in_netns(|| {
        let mut batch = Batch::new();
        let peer = VethPeer { name: "b", ..VethPeer::default() };
        link::create_veth(&mut batch, &VethSpec { name: "a", up: true, peer, ..VethSpec::default() });
        link::set(&mut batch, "b", &LinkChange { up: Some(true), ..LinkChange::default() });
        let mut socket = route_socket();
        socket.transact(&batch).unwrap();
        let link = link::lookup(&mut socket, "a").unwrap().unwrap();
        let addrs = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        announce_all(link.index, link.mac.unwrap(), &addrs).unwrap();
        let error = announce_all(4711, [2; 6], &addrs).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)), "{error}");
    });
}

#[test]
fn features_of_this_kernel() {
    in_netns(|| {
        let features = probe::features().unwrap();
        assert_eq!((&features.bridge, &features.veth), (&Ok(()), &Ok(())));
        assert_eq!((&features.nftables, &features.conntrack), (&Ok(()), &Ok(())));
        assert!(probe::privileges().net_admin);
    });
}

/// A spec that sends the program's output to a pipe; the other end.
fn piped(argv: &[&str]) -> (SpawnSpec, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let spec =
        SpawnSpec { argv: argv.iter().map(Into::into).collect(), stdout: Some(writer.into()), ..SpawnSpec::default() };
    (spec, reader)
}

fn read(mut spec: SpawnSpec, mut reader: std::io::PipeReader) -> String {
    spec.stdout = None;
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_child_gets_namespaces_files_and_settings() {
    in_netns(|| {
        let dir = std::env::temp_dir().join(format!("portolan-child-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts"), "from us\n").unwrap();
        fs::write(dir.join("target"), "").unwrap();
        std::os::unix::fs::symlink("target", dir.join("link")).unwrap();
        let script = format!(
            "cat /etc/hosts {}/link; hostname; ls /sys/class/net; \
             cat /proc/sys/net/ipv4/ip_forward; pwd; echo $ADDED; ls /sys/fs/cgroup | wc -l",
            dir.display()
        );
        let (mut spec, reader) = piped(&["sh", "-c", &script]);
        spec.hostname = Some("sandbox".into());
        spec.env.push(("ADDED".into(), "yes".into()));
        spec.workdir = Some("/usr".into());
        spec.binds = vec![(dir.join("hosts"), "/etc/hosts".into()), (dir.join("hosts"), dir.join("link"))];
        spec.sysctls.push(("net.ipv4.ip_forward".into(), "1".into()));
        let mut child = SandboxChild::spawn(&spec).unwrap();
        assert_ne!(child.netns().unwrap().identity(), NetnsFd::current().unwrap().identity());
        assert!(child.start_time().unwrap() > 0);
        // Attached between the two steps.
        let ns = child.netns().unwrap();
        let mut batch = Batch::new();
        let peer = VethPeer { name: "eth0", netns: Some(ns.as_fd()), ..VethPeer::default() };
        link::create_veth(&mut batch, &VethSpec { name: "h", peer, ..VethSpec::default() });
        route_socket().transact(&batch).unwrap();
        child.release().unwrap();
        let text = read(spec, reader);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..8], ["from us", "from us", "sandbox", "eth0", "lo", "1", "/usr", "yes"], "{text}");
        assert_ne!(lines[8], "0", "control groups are still there");
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read_to_string(dir.join("target")).unwrap(), "");
        fs::remove_dir_all(&dir).unwrap();
    });
}

#[test]
fn what_keeps_a_child_from_running_is_named() {
    in_netns(|| {
        let run = |spec: SpawnSpec| SandboxChild::spawn(&spec).and_then(|mut c| c.release());
        let error = run(piped(&["no-such-program-xyz"]).0).unwrap_err();
        assert_eq!(error.exit_code(), 127);
        assert_eq!(error.to_string(), "execute `no-such-program-xyz`");
        assert_eq!(run(piped(&["/etc/passwd"]).0).unwrap_err().exit_code(), 126);

        let (mut spec, _) = piped(&["true"]);
        spec.binds.push(("/etc/hosts".into(), "/no/such/resolv.conf".into()));
        let error = run(spec).unwrap_err();
        assert!(matches!(error, SpawnError::Child { stage: Stage::Bind, .. }));
        assert_eq!(error.to_string(), "bind over `/no/such/resolv.conf`");
        let (mut spec, _) = piped(&["true"]);
        spec.sysctls.push(("net.ipv4.no_such".into(), "1".into()));
        assert_eq!(run(spec).unwrap_err().to_string(), "write sysctl `net.ipv4.no_such`");
        assert!(run(piped(&[]).0).is_err());

        let (spec, _) = piped(&["true"]);
        let mut child = SandboxChild::spawn(&spec).unwrap();
        child.pidfd().signal(libc::SIGKILL).unwrap();
        assert!(child.pidfd().wait_readable(Duration::from_secs(5)).unwrap());
        assert!(matches!(child.release(), Err(SpawnError::Gone { .. })));
    });
}

#[test]
fn an_unreleased_child_goes_with_its_handle() {
    in_netns(|| {
        let (spec, _) = piped(&["true"]);
        let child = SandboxChild::spawn(&spec).unwrap();
        let pid = child.pid();
        drop(child);
        assert!(process::pid_start_time(pid).is_err());
    });
}

#[test]
fn entering_the_namespaces_of_a_child() {
    in_netns(|| {
        let (mut spec, _) = piped(&["sleep", "60"]);
        spec.hostname = Some("inner".into());
        let mut child = SandboxChild::spawn(&spec).unwrap();
        child.release().unwrap();
        let (mut inside, reader) = piped(&["sh", "-c", "hostname; readlink /proc/self/ns/net"]);
        inside.join = Some(JoinTarget::of_pid(child.pid()).unwrap());
        let mut second = SandboxChild::spawn(&inside).unwrap();
        second.release().unwrap();
        let text = read(inside, reader);
        let ino = child.netns().unwrap().identity().ino;
        assert_eq!(text, format!("inner\nnet:[{ino}]\n"));
        second.wait().unwrap();
        child.pidfd().signal(libc::SIGTERM).unwrap();
        let status = child.wait_timeout(Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGTERM));
    });
}

#[test]
fn commands_run_inside_a_namespace() {
    in_netns(|| {
        let ns = NetnsFd::create().unwrap();
        for (own_sys, script) in [(false, "readlink /proc/self/ns/net"), (true, "ls /sys/class/net")] {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let output = command_in(&ns, command, own_sys).unwrap().output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let wanted = if own_sys { "lo\n".into() } else { format!("net:[{}]\n", ns.identity().ino) };
            assert_eq!(text, wanted);
        }
    });
}

#[test]
fn a_waiting_child_holds_no_descriptors_of_ours() {
    in_netns(|| {
        let (reader, writer) = std::io::pipe().unwrap();
        let (spec, output) = piped(&["sh", "-c", "ls /proc/self/fd | wc -l"]);
        let mut child = SandboxChild::spawn(&spec).unwrap();
        let links: Vec<_> = fs::read_dir(format!("/proc/{}/fd", child.pid())).unwrap().collect();
        // Standard streams, the socket and the pipe for its output.
        assert_eq!(links.len(), 5, "{links:?}");
        drop((reader, writer));
        child.release().unwrap();
        // Standard streams and the directory listed.
        assert_eq!(read(spec, output).trim(), "4");
        child.wait().unwrap();
    });
}

/// The kernel cuts a name off after 15 bytes, in the middle of a letter too.
#[test]
fn a_process_is_there_whatever_it_calls_itself() {
    use portolan_engine::Kernel as _;
    for name in [r"donn\303\251es-\303\251\303\251\303", r"\377) S 1 (", r"\033[2J\n"] {
        let script = format!("printf '{name}' > /proc/$$/comm; echo; read _");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = child.id().cast_signed();
        let started = process::pid_start_time(pid);
        let kernel = portolan_kernel::host::HostKernel::new();
        let found = started.is_ok_and(|started| kernel.process_alive(portolan_model::ProcessId { pid, started }));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(found, "{name}");
    }
}
