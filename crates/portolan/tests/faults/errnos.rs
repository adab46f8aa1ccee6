//! Each of the system calls by which a verb changes anything, or hears what the kernel says to it, fails once: the verb says so
//! or does its work, what is left of it is put in order by whoever comes next, and then nothing is left.
//!
//! By default every fifth call fails, in one way, by turns; with `PORTOLAN_ERRNOS=all` each of them in each way.

use std::process::Stdio;
use std::time::Instant;

use portolan_lab::trace::{self, CHANGES, Syscall, fail_at};

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
    let Some(place) = Place::or_skip(&format!("{} fails", verb.name), verb.beside) else { return };
    if !portolan_kernel::ptrace::CAN_FAIL {
        eprintln!("SKIP: calls cannot be made to fail on this machine");
        return;
    }
    let started = Instant::now();
    let calls = calls();
    let give = || verb.given.iter().for_each(|line| drop(place.line(line)));
    give();
    let before = place.rows();
    place.line(verb.again);
    let after = place.rows();
    place.clear(verb.name);

    let (stride, ways) = thoroughness();
    let (mut failed, mut harmless, mut points) = (0, 0, 0);
    // Not the same ones of each verb.
    'calls: for n in (1 + verb.name.len() % stride..).step_by(stride) {
        for way in 0..ways {
            give();
            let mut command = place.command(verb.killed);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let errno = |syscall: Syscall| *syscall.errnos().iter().cycle().nth(n % 6 + way).unwrap();
            let ended = fail_at(command, &calls, n, errno).unwrap();
            let Some((syscall, errno)) = ended.failed else {
                assert!(ended.status.success(), "`{}` without a failure: {ended:?}", verb.killed);
                place.clear(verb.name);
                assert!(n > verb.at_least, "{}: is that all?", verb.name);
                break 'calls;
            };
            points += usize::from(way == 0);
            let said = String::from_utf8_lossy(&[&ended.stdout[..], &ended.stderr[..]].concat()).into_owned();
            let error = std::io::Error::from_raw_os_error(errno);
            let what = format!(
                "`{}`, whose call {n}, {syscall:?}, fails: {error}; it ended with {} and said: {said}",
                verb.killed, ended.status
            );
            assert!(!said.contains("panicked"), "{what}");
            if ended.status.success() {
                harmless += 1;
                if verb.killed == verb.again {
                    assert_eq!(place.rows(), after, "{what}");
                }
            } else {
                failed += 1;
                // A thread that cannot go back to its own namespace must not go on: its process ends itself.
                let gave_up = said.contains("cannot return to the original network namespace");
                assert!((ended.status.code().is_some() || gave_up) && !said.trim().is_empty(), "{what}");
            }
            if n % 2 == 0 {
                after_gc(&place, verb, &what, &before, &after);
            } else {
                after_itself(&place, verb, &what, &after);
            }
            let verified = place.try_line("verify");
            assert!(verified.status.success(), "{what}: verify: {verified:?}");
            assert_eq!(place.rows(), after, "{what}");
            place.nothing_left(&what);
            place.clear(&what);
        }
    }
    assert!(failed > points / 4, "{}: {failed} of {points} calls: is that all?", verb.name);
    eprintln!("{}: {points} calls, {failed} failures, {harmless} did no harm, {:?}", verb.name, started.elapsed());
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
    let mut held = 0;
    for n in (1..).step_by(9) {
        place.line("network create --subnet 10.92.0.0/24 b");
        let mut waiting = None;
        let command = {
            let mut command = place.command(ON_A);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let (call, status) = trace::hold_at(command, CHANGES, n, || {
            // Who is held while it opens the state has SQLite refuse readers after its own patience.
            let answer = place.try_line("ps");
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            assert!(answer.status.success() || said.contains("locking protocol"), "held at {n}: {answer:?}");
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
    assert!(held >= 2, "held {held} times");
    eprintln!("held: at {held} calls");
    place.clear("held");
}
