//! The daemon's calls at Docker's sockets fail: whoever asked is refused or hears nothing, and the next one is answered.

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use portolan_kernel::ptrace::CAN_FAIL;
use portolan_lab::eventually;
use portolan_lab::trace::{Call, Syscall, fail_when};
use rustix::io::Errno;
use serde_json::json;

use crate::common::LONG;
use crate::place::*;

/// Whether a call is made by a thread that serves Docker or its clients, at a socket: their runtime writes to itself as well
/// (eventfd(2)).
fn is_at_their_sockets(call: &Call) -> bool {
    let name = fs::read_to_string(format!("/proc/{}/comm", call.tid)).unwrap_or_default();
    let file = fs::read_link(format!("/proc/{}/fd/{}", call.tid, call.fd)).unwrap_or_default();
    ["portolan-docker", "portolan-api"].iter().any(|thread| name.starts_with(thread))
        && file.to_string_lossy().starts_with("socket:")
}

#[test]
fn docker_sockets() {
    let Some(mut place) = Place::or_skip("docker sockets", ON_NETWORK_A) else { return };
    if !CAN_FAIL {
        return eprintln!("SKIP: calls cannot be made to fail on this machine");
    }
    place.line(NETWORK_A);
    place.world.daemon = true;
    let (accept, answer, read) =
        (&[Syscall::Accept], &[Syscall::Write, Syscall::Sendto, Syscall::Sendmsg], &[Syscall::Receive]);
    let cases: &[(&[Syscall], Errno)] = &[
        (accept, Errno::MFILE),
        (accept, Errno::NFILE),
        (accept, Errno::CONNABORTED),
        (accept, Errno::NOBUFS),
        (answer, Errno::PIPE),
        (answer, Errno::NOSPC),
        (answer, Errno::NOBUFS),
        (read, Errno::CONNRESET),
        (read, Errno::IO),
    ];
    // Which case the next call meets; none for most of the time.
    let armed = AtomicUsize::new(usize::MAX);
    let hits = AtomicUsize::new(0);
    let plugin = place.socket(Face::Plugin);
    let mut command = place.command(&format!("daemon --docker {} --api", plugin.display()));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    thread::scope(|scope| {
        let daemon = scope.spawn(|| {
            fail_when(command, |call| {
                let (calls, errno) = cases.get(armed.load(Ordering::SeqCst))?;
                if !calls.contains(&call.syscall) || !is_at_their_sockets(call) {
                    return None;
                }
                armed.store(usize::MAX, Ordering::SeqCst);
                hits.fetch_add(1, Ordering::SeqCst);
                Some(errno.raw_os_error())
            })
        });
        let is_up = || place.try_line("daemon status").status.success() && plugin.exists();
        assert!(eventually(LONG * 3, is_up), "the daemon does not start");
        let mut answered = 0;
        for face in [Face::Plugin, Face::Api] {
            for (case, (_, errno)) in cases.iter().enumerate() {
                let what = format!("{face:?}, case {case}: {}", errno);
                let name = format!("n{case}");
                let create = json!({"Name": name, "IPAM": {"Config": [{"Subnet": format!("10.7{case}.0.0/24")}]}});
                armed.store(case, Ordering::SeqCst);
                let said = match face {
                    Face::Plugin => place.try_http(face, "POST", "/NetworkDriver.GetCapabilities", &json!({})),
                    Face::Api => place.try_http(face, "POST", "/networks/create", &create),
                };
                answered += usize::from(said.is_some());
                assert!(eventually(LONG, || armed.load(Ordering::SeqCst) == usize::MAX), "{what}: no such call");
                // Whoever comes next is answered, and what was asked for is done or not.
                match face {
                    Face::Plugin => {
                        let (status, body) = place.http(face, "POST", "/NetworkDriver.GetCapabilities", &json!({}));
                        assert!(status == 200 && body.contains("local"), "{what}: {status} {body}");
                    }
                    Face::Api => {
                        let (status, body) = place.http(face, "POST", "/networks/create", &create);
                        assert!(status == 201 || status == 409, "{what}: {status} {body}");
                        let (status, body) = place.http(face, "DELETE", &format!("/networks/{name}"), &json!(null));
                        assert_eq!(status, 204, "{what}: {body}");
                    }
                }
            }
        }
        place.line("verify");
        place.line("daemon stop");
        let traced = daemon.join().unwrap().unwrap();
        let said = String::from_utf8_lossy(&traced.stderr).into_owned();
        assert!(traced.status.success() && !said.contains("panicked"), "{:?}: {said}", traced.status);
        assert_eq!(hits.load(Ordering::SeqCst), 2 * cases.len());
        eprintln!("docker sockets: {} failures, {answered} of them answered all the same", 2 * cases.len());
    });
    place.world.daemon = false;
    place.nothing_left("docker sockets");
    place.clear("docker sockets");
}
