//! Each of the system calls by which a verb changes anything, or hears what the kernel says to it, fails once: the verb says so
//! or does its work, what is left of it is put in order by whoever comes next, and then nothing is left.
//!
//! By default every fifth call fails, in one way, by turns; with `PORTOLAN_ERRNOS=all` each of them in each way.

use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use portolan_lab::trace::{self, CHANGES, Syscall, fail_at};

use crate::common::LONG;
use crate::place::*;

/// Which of the calls fail, and in how many ways.
fn thoroughness() -> (usize, usize) {
    if std::env::var("PORTOLAN_ERRNOS").is_ok_and(|value| value == "all") { (1, 3) } else { (5, 1) }
}

fn calls() -> Vec<Syscall> {
    [CHANGES, &[Syscall::Receive]].concat()
}

/// Has each call of `verb` fail, and looks at what comes of it.
fn fail_everywhere(verb: &Verb) {
    if !portolan_kernel::ptrace::CAN_FAIL {
        eprintln!("SKIP: calls cannot be made to fail on this machine");
        return;
    }
    let Some(mut lanes) = Lanes::or_skip(&format!("{} fails", verb.name), verb) else { return };
    let started = Instant::now();
    let (stride, ways) = thoroughness();
    // Not the same ones of each verb.
    let first = 1 + verb.name.len() % stride;
    let (failed, harmless) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let points = lanes.play((first..).step_by(stride), |trial, n| {
        (0..ways).all(|way| {
            let ended = fail_once(trial, verb, n, way);
            match ended {
                Some(true) => harmless.fetch_add(1, Ordering::Relaxed),
                Some(false) => failed.fetch_add(1, Ordering::Relaxed),
                None => return false,
            };
            true
        })
    });
    lanes.clear(verb.name);
    let (failed, harmless) = (failed.into_inner(), harmless.into_inner());
    assert!(first + points * stride > verb.at_least, "{}: is that all?", verb.name);
    assert!(failed > points / 4, "{}: {failed} of {points} calls: is that all?", verb.name);
    eprintln!("{}: {points} calls, {failed} failures, {harmless} did no harm, {:?}", verb.name, started.elapsed());
}

/// Has the `n`th call of `verb` fail in one of the ways in which it can; answers whether the verb did its work all the same,
/// or none where it makes no such call.
fn fail_once(trial: &mut Trial<'_>, verb: &Verb, n: usize, way: usize) -> Option<bool> {
    trial.ready();
    let mut command = trial.place.command(verb.killed);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let errno = |syscall: Syscall| *syscall.errnos().iter().cycle().nth(n % 6 + way).unwrap();
    let ended = fail_at(command, &calls(), n, errno).unwrap();
    let Some((syscall, errno)) = ended.failed else {
        assert!(ended.status.success(), "`{}` without a failure: {ended:?}", verb.killed);
        trial.clear(verb.name);
        return None;
    };
    let said = String::from_utf8_lossy(&[&ended.stdout[..], &ended.stderr[..]].concat()).into_owned();
    let error = std::io::Error::from_raw_os_error(errno);
    let what = format!(
        "`{}`, whose call {n}, {syscall:?}, fails: {error}; it ended with {} and said: {said}",
        verb.killed, ended.status
    );
    assert!(!said.contains("panicked"), "{what}");
    if ended.status.success() {
        if verb.killed == verb.again {
            assert_eq!(trial.place.rows(), trial.after, "{what}");
        }
    } else {
        // A thread that cannot go back to its own namespace must not go on: its process ends itself.
        let gave_up = said.contains("cannot return to the original network namespace");
        assert!((ended.status.code().is_some() || gave_up) && !said.trim().is_empty(), "{what}");
    }
    if n.is_multiple_of(2) {
        trial.after_gc(&what);
    } else {
        trial.after_itself(&what);
    }
    trial.done(&what);
    Some(ended.status.success())
}

macro_rules! verbs {
    ($($name:ident: $given:expr, $line:expr, $undo:expr, $beside:expr;)*) => {
        $(#[test]
        fn $name() {
            fail_everywhere(&Verb {
                name: stringify!($name),
                given: $given,
                killed: $line,
                again: $line,
                undo: $undo,
                beside: $beside,
                at_least: 10,
            });
        })*
    };
}

verbs! {
    network_create: &[], NETWORK_A, "network rm a", DEFAULT;
    network_rm: &[NETWORK_A], "network rm a", NETWORK_A, DEFAULT;
    attach: &[NETWORK_A, NETWORK_B], ON_BOTH, "detach c", ON_NETWORK_A;
    detach: &[NETWORK_A, NETWORK_B, ON_BOTH], "detach c", ON_BOTH, ON_NETWORK_A;
    connect: &[NETWORK_A, NETWORK_B, ON_A], CONNECT, "network disconnect b c", ON_NETWORK_A;
    disconnect: &[NETWORK_A, NETWORK_B, ON_A, CONNECT], "network disconnect b c", CONNECT, ON_NETWORK_A;
    publish: &[NETWORK_A, ON_A], PUBLISH, UNPUBLISH, ON_NETWORK_A;
    unpublish: &[NETWORK_A, ON_A, PUBLISH], UNPUBLISH, PUBLISH, ON_NETWORK_A;
    netavark_setup: &[], "netavark setup", "netavark teardown", DEFAULT;
    netavark_teardown: &["netavark setup"], "netavark teardown", "netavark setup", DEFAULT;
    cni_add: &[], "cni ADD", "cni DEL", DEFAULT;
    cni_del: &["cni ADD"], "cni DEL", "cni ADD", DEFAULT;
}

/// A command in a container of ours: its whole life, in the foreground.
#[test]
fn run() {
    const RUN_RM: Line = "run --rm --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -- true";
    let Some(place) = Place::or_skip("run fails", ON_NETWORK_A) else { return };
    if !portolan_kernel::ptrace::CAN_FAIL {
        eprintln!("SKIP: calls cannot be made to fail on this machine");
        return;
    }
    let calls = calls();
    place.line(NETWORK_A);
    let before = place.rows();
    let (mut failed, mut points) = (0, 0);
    for n in (1..).step_by(thoroughness().0) {
        let mut command = place.command(RUN_RM);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended =
            fail_at(command, &calls, n, |syscall: Syscall| *syscall.errnos().iter().cycle().nth(n % 6).unwrap())
                .unwrap();
        let Some((syscall, errno)) = ended.failed else { break };
        points += 1;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let what =
            format!("call {n}, {syscall:?}, fails with {errno}; it ended with {} and said: {said}", ended.status);
        assert!(!said.contains("panicked"), "{what}");
        if !ended.status.success() {
            failed += 1;
            assert!(!said.trim().is_empty(), "{what}");
        }
        place.line("gc");
        place.line("verify");
        assert_eq!(place.rows(), before, "{what}");
        place.nothing_left(&what);
    }
    assert!(points > 10 && failed > points / 4, "{failed} of {points} calls");
    eprintln!("run: {points} calls, {failed} failures");
    place.clear("run");
}

/// A verb that is held at any of its calls: whoever reads is not held up for ever, and whoever changes something waits for it.
#[test]
fn held() {
    let Some(place) = Place::or_skip("held", ON_NETWORK_A) else { return };
    place.line(NETWORK_A);
    let (mut held, mut busy) = (0, 0);
    for n in (1..).step_by(9) {
        place.line("network create --subnet 10.92.0.0/24 b");
        let mut waiting = None;
        let command = {
            let mut command = place.command(ON_A);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let (call, status) = trace::hold_at(command, CHANGES, n, || {
            // Who is held while it opens the state holds up readers as well, and they say who it is.
            let answer = place.try_line("ps");
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            let is_told = said.contains("state.db-shm`: process") && said.contains("(`portolan`, stopped)");
            assert!(answer.status.success() || is_told, "held at {n}: {answer:?}");
            // Nobody who does not want to wait does.
            let patience = if busy == 0 { "0" } else { "1" };
            let asked = Instant::now();
            let answer = place.try_line(&format!("reconcile --wait {patience}"));
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            // Who is held while it opens the state has no lock yet.
            if !answer.status.success() && !said.contains("state.db-shm") {
                let who = if patience == "0" { "has it" } else { "has held it for 1 s" };
                assert!(
                    said.contains("lock`: process") && said.contains(&format!("(`portolan`, stopped) {who}")),
                    "{said}"
                );
                assert!(said.contains("\nhint: `kill -CONT "), "{said}");
                assert!(asked.elapsed() < LONG, "{:?}", asked.elapsed());
                busy += 1;
            }
            // By a thread of its own: the one that traces waits for all of its children.
            let command = place.command("network rm b");
            waiting = Some(std::thread::spawn(move || {
                let mut command = command;
                command.output().unwrap()
            }));
        })
        .unwrap();
        assert!(status.success(), "held at {n}");
        if let Some(waiting) = waiting {
            let output = waiting.join().unwrap();
            assert!(output.status.success(), "held at {n}, {call:?}: {output:?}");
            held += 1;
        } else {
            place.line("network rm b");
        }
        place.line("verify");
        place.nothing_left("held");
        place.line("detach c");
        if call.is_none() {
            break;
        }
    }
    assert!(held >= 2 && busy >= 2, "held {held} times, {busy} times with the lock");
    eprintln!("held: at {held} calls, at {busy} of them with the lock");
    place.clear("held");
}
