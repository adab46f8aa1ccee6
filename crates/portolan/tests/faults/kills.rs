//! Killed on entry to each of the system calls by which it changes anything: whoever comes next completes or undoes what it
//! was at, and leaves nothing else.
//!
//! By default at every second call, with `gc`, the same verb and another one coming next by turns; with `PORTOLAN_KILLS=all` at
//! each of them, and with `gc` coming next after each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::place::*;

/// Whether it is to be killed at every step.
fn is_everywhere() -> bool {
    std::env::var("PORTOLAN_KILLS").is_ok_and(|value| value == "all")
}

/// How far apart the steps are at which it is killed.
fn stride() -> usize {
    if is_everywhere() { 1 } else { 2 }
}

/// Kills `verb` at each of its steps, or at some, and looks at what comes of it.
fn kill_everywhere(verb: &Verb) {
    let Some(mut lanes) = Lanes::or_skip(verb.name, verb) else { return };
    let started = Instant::now();
    // Neither the same steps of each verb nor the same others.
    let (stride, first) = (stride(), 1 + verb.name.len() % stride());
    let others = || OTHERS.iter().cycle().skip(verb.name.len() % OTHERS.len());
    let by_turns = others().flat_map(|other| [Next::Gc, Next::Again, Next::Other(other)]);
    let one_by_one = by_turns.map(|next| if is_everywhere() { Next::Gc } else { next });
    let steps = (first..).step_by(stride).zip(one_by_one);
    let killed = lanes.play(steps, |trial, (n, next)| kill_at_step(trial, verb, n, next));
    let points = first + (killed * stride).saturating_sub(1);
    assert!(points >= verb.at_least, "{} has {points} steps: is that all?", verb.name);
    if is_everywhere() {
        // What is taken down is the same; who does it matters less: that is tried at every third step, and by turns.
        let apart = (points / OTHERS.len()).clamp(1, 3);
        let again = (1..=points + 3).step_by(3).map(|n| (n, Next::Again));
        let others = (1..=points).step_by(apart).zip(others()).map(|(n, other)| (n, Next::Other(other)));
        lanes.play(again.chain(others), |trial, (n, next)| {
            kill_at_step(trial, verb, n, next);
            true
        });
    }
    lanes.clear(verb.name);
    eprintln!("{}: killed at {killed} of {points} steps, {:?}", verb.name, started.elapsed());
}

/// Kills `verb` at its `n`th step; answers whether there is one.
fn kill_at_step(trial: &mut Trial<'_>, verb: &Verb, n: usize, next: Next) -> bool {
    trial.ready();
    if let Next::Other(other) = next {
        other.given.iter().for_each(|line| drop(trial.place.line(line)));
    }
    let (mut what, ended) = trial.place.kill(verb.killed, n);
    match next {
        Next::Gc => trial.after_gc(&what),
        Next::Again => trial.after_itself(&what),
        Next::Other(other) => {
            what = format!("{what}, then `{}`", other.line);
            if trial.place.another(other, &what) {
                trial.after_itself(&what);
            } else {
                trial.once_more(&what);
            }
        }
    }
    if !matches!(next, Next::Gc) {
        // Run-time directories are all that is left to it.
        let found: serde_json::Value = trial.place.world.json(&["gc"]);
        assert_eq!(trial.place.rows(), trial.after, "{what}: {found}");
    }
    trial.done(&what);
    if matches!(next, Next::Other(_)) {
        trial.clear(&what);
    }
    ended.is_none()
}

#[test]
fn network_create() {
    kill_everywhere(&Verb {
        name: "network create",
        given: &[],
        killed: NETWORK_A,
        again: NETWORK_A,
        undo: "network rm a",
        beside: DEFAULT,
        at_least: 20,
    });
}

#[test]
fn network_create_beside_another() {
    kill_everywhere(&Verb {
        name: "second network create",
        given: &[NETWORK_B],
        killed: NETWORK_A,
        again: NETWORK_A,
        undo: "network rm a",
        beside: ON_NETWORK_B,
        at_least: 15,
    });
}

#[test]
fn attach() {
    kill_everywhere(&Verb {
        name: "attach",
        given: &[NETWORK_A, NETWORK_B],
        killed: ON_BOTH,
        again: ON_BOTH,
        undo: "detach c",
        beside: ON_NETWORK_A,
        at_least: 20,
    });
}

#[test]
fn attach_without_a_bridge() {
    kill_everywhere(&Verb {
        name: "attach-ptp",
        given: &[PTP_A],
        killed: ON_A,
        again: ON_A,
        undo: "detach c",
        beside: ON_NETWORK_A,
        at_least: 15,
    });
}

#[test]
fn attach_to_the_default_network() {
    const VERB: Line = "attach --netns NS --name c --ip 172.17.0.9 -p 8080:80 -p 127.0.0.1:5353:53/udp";
    kill_everywhere(&Verb {
        name: "first attach",
        given: &[],
        killed: VERB,
        again: VERB,
        undo: "detach c",
        beside: DEFAULT,
        at_least: 20,
    });
}

#[test]
fn network_connect() {
    kill_everywhere(&Verb {
        name: "network connect",
        given: &[NETWORK_A, NETWORK_B, ON_A],
        killed: CONNECT,
        again: CONNECT,
        undo: "network disconnect b c",
        beside: ON_NETWORK_A,
        at_least: 15,
    });
}

#[test]
fn network_disconnect() {
    kill_everywhere(&Verb {
        name: "network disconnect",
        given: &[NETWORK_A, NETWORK_B, ON_A, CONNECT],
        killed: "network disconnect b c",
        again: "network disconnect b c",
        undo: CONNECT,
        beside: ON_NETWORK_A,
        at_least: 10,
    });
}

#[test]
fn publish_add() {
    kill_everywhere(&Verb {
        name: "publish add",
        given: &[NETWORK_A, ON_A],
        killed: PUBLISH,
        again: PUBLISH,
        undo: UNPUBLISH,
        beside: ON_NETWORK_A,
        at_least: 8,
    });
}

#[test]
fn publish_rm() {
    kill_everywhere(&Verb {
        name: "publish rm",
        given: &[NETWORK_A, ON_A, PUBLISH],
        killed: UNPUBLISH,
        again: UNPUBLISH,
        undo: PUBLISH,
        beside: ON_NETWORK_A,
        at_least: 8,
    });
}

#[test]
fn detach() {
    kill_everywhere(&Verb {
        name: "detach",
        given: &[NETWORK_A, NETWORK_B, ON_BOTH],
        killed: "detach c",
        again: "detach c",
        undo: ON_BOTH,
        beside: ON_NETWORK_A,
        at_least: 10,
    });
}

#[test]
fn network_rm() {
    kill_everywhere(&Verb {
        name: "network rm",
        given: &[NETWORK_A],
        killed: "network rm a",
        again: "network rm a",
        undo: NETWORK_A,
        beside: DEFAULT,
        at_least: 10,
    });
}

#[test]
fn run_in_the_background() {
    kill_everywhere(&Verb {
        name: "run -d",
        given: &[NETWORK_A],
        killed: "run -d --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- sleep 0.01",
        again: RUN,
        undo: "rm -f r",
        beside: ON_NETWORK_A,
        at_least: 40,
    });
}

#[test]
fn rm_force() {
    kill_everywhere(&Verb {
        name: "rm -f",
        given: &[NETWORK_A, RUN],
        killed: "rm -f r",
        again: "rm -f r",
        undo: RUN,
        beside: ON_NETWORK_A,
        at_least: 3,
    });
}

/// A command in the foreground that removes itself: nothing is left, wherever it is killed.
#[test]
fn run_in_the_foreground() {
    let places: Option<Vec<_>> = (0..LANES).map(|_| Place::or_skip("run --rm", ON_NETWORK_A)).collect();
    let Some(places) = places else { return };
    let next = AtomicUsize::new(0);
    let killed: usize = std::thread::scope(|scope| {
        let lanes: Vec<_> = places.iter().map(|place| scope.spawn(|| kill_in_the_foreground(place, &next))).collect();
        lanes.into_iter().map(joined).sum()
    });
    eprintln!("run --rm: killed at {killed} steps");
    assert!(killed * stride() > 40, "killed {killed} times");
}

/// Kills it where nobody else does, as long as there are such steps; answers at how many.
fn kill_in_the_foreground(place: &Place, next: &AtomicUsize) -> usize {
    const RUN_RM: Line =
        "run --rm --name r --network name=a,ip=10.91.0.6,ip6=fd91::6 -p 8080:80 -p 5353:53/udp -- true";
    place.line(NETWORK_A);
    let before = place.rows();
    for killed in 0.. {
        let round = next.fetch_add(1, Ordering::Relaxed);
        let other = round.is_multiple_of(4).then(|| &OTHERS[round / 4 % OTHERS.len()]);
        for line in other.into_iter().flat_map(|other| other.given) {
            place.line(line);
        }
        let (what, ended) = place.kill(RUN_RM, 1 + round * stride());
        if let Some(status) = ended {
            assert!(status.success(), "{what}");
            place.clear("run --rm");
            return killed;
        }
        if !round.is_multiple_of(2) {
            place.line("gc");
            place.line("verify");
            assert_eq!(place.rows(), before, "{what}");
            place.nothing_left(&what);
        }
        // At every other step without gc, and at every fourth after another verb.
        if let Some(other) = other {
            place.another(other, &format!("{what}, then `{}`", other.line));
        }
        place.line(RUN_RM);
        assert_eq!(place.rows(), before, "{what}");
        place.line("gc");
        place.nothing_left(&what);
        place.line("verify");
        if other.is_some() {
            place.clear(&what);
            place.line(NETWORK_A);
        }
    }
    unreachable!("there is always one more")
}
