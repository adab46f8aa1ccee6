//! What schedules found, at each call in turn.

use portolan_plan::Object;

use crate::fake::broken::{Ack, Fault, How, Site};
use crate::fake::network_request;
use crate::play::{Seen, run};
use crate::schedule::{Event, Next, Verb};
use crate::world::{World, namespace};

#[test]
fn an_undo_that_fails_leaves_the_rows_for_the_next_verb() {
    let attach = Verb::Attach { who: 1, on: [2, 5], port: 200 };
    let join = Verb::Join { who: 2, on: [0, 2], port: 201 };
    for verb in [Verb::Create(0), attach, join, Verb::Hand { who: 3, on: 2 }] {
        let mut hits = 0;
        for at in (1..60).step_by(4) {
            let fault = Fault { at, site: Some(Site::Kernel), how: How::Errno(16, Ack::Refused), lasting: true };
            let given = Event::Do(Verb::Create(2), None, Next::Gc);
            let mut seen = Seen::default();
            let events = [given, Event::Do(verb, Some(fault), Next::Anybody)];
            run(&events, &mut seen).unwrap_or_else(|why| panic!("{events:?}: {why}"));
            hits += seen.0.values().sum::<u64>();
        }
        assert!(hits > 4, "{verb:?}: {hits}");
    }
}

#[test]
fn what_cannot_be_written_down_is_not_left_open() {
    let mut failures = 0;
    for at in 1..200 {
        let world = World::new();
        world.kernel.make_namespace(&namespace(1));
        let fault = Fault { at, site: Some(Site::Store), how: How::Errno(28, Ack::Refused), lasting: true };
        let (result, hits) = world.attempt(Verb::Attach { who: 1, on: [5, 5], port: 200 }, Some(fault));
        if hits == 0 {
            break;
        }
        let error = result.unwrap().unwrap_err();
        failures += 1;
        let open: Vec<String> = world.kernel.objects().iter().map(|(_, object)| object.to_string()).collect();
        assert!(open.is_empty(), "call {at}, {error}: {open:#?}");
    }
    assert!(failures > 20, "{failures}");
}

#[test]
fn whoever_dies_after_a_reboot_leaves_the_rest_to_the_next_verb() {
    let world = World::new();
    world.engine.create_network(&network_request("alpha")).unwrap();
    world.engine.create_network(&network_request("vault")).unwrap();
    for how in [How::Death, How::Errno(105, Ack::Refused)] {
        for at in 1.. {
            world.kernel.reboot();
            let fault = Fault { at, site: None, how, lasting: false };
            let (_, hits) = world.attempt(Verb::ForwardNames(0), Some(fault));
            drop(world.engine.detach("nobody").unwrap_err());
            world.check(&format!("{how:?} at {at}"));
            if hits == 0 {
                assert!(at > 20, "{at}");
                break;
            }
        }
    }
}

#[test]
fn what_docker_is_given_after_a_flush_is_there() {
    let world = World::new();
    world.engine.create_network(&network_request("alpha")).unwrap();
    let ruleset = world.kernel.objects().into_iter().find(|object| matches!(object, Object::Ruleset(_))).unwrap();
    world.kernel.remove(&ruleset);
    world.run(Verb::Hand { who: 1, on: 0 }).unwrap();
    world.check("after a flush");
    assert_eq!(world.engine.containers().unwrap().len(), 1);
}

#[test]
fn what_was_written_down_although_it_was_not_said_is_there() {
    let attach = Verb::Attach { who: 1, on: [0, 0], port: 200 };
    let verbs = [
        (Verb::Create(1), Next::Anybody),
        (Verb::Attach { who: 2, on: [0, 1], port: 201 }, Next::Anybody),
        (Verb::Connect { who: 1, to: 1 }, Next::Anybody),
        (Verb::Publish { who: 1, port: 210 }, Next::Anybody),
    ];
    for (verb, next) in verbs {
        let mut failures = 0;
        for at in 1..200 {
            let world = World::new();
            (1..=2).for_each(|who| world.kernel.make_namespace(&namespace(who)));
            world.run(Verb::Create(0)).unwrap();
            if verb != Verb::Create(1) {
                world.run(Verb::Create(1)).unwrap();
            }
            world.run(attach).unwrap();
            let fault = Fault { at, site: Some(Site::Store), how: How::Errno(5, Ack::Lost), lasting: true };
            let (result, hits) = world.attempt(verb, Some(fault));
            if hits == 0 {
                break;
            }
            failures += 1;
            world.put_in_order(verb, next);
            world.check(&format!("{verb:?}, call {at}: {result:?}"));
        }
        assert!(failures > 10, "{verb:?}: {failures}");
    }
}

#[test]
fn a_network_that_went_with_its_last_container_is_not_removed_once_more() {
    let mut failures = 0;
    for at in 1..200 {
        let world = World::new();
        world.kernel.make_namespace(&namespace(1));
        world.run(Verb::Join { who: 1, on: [0, 0], port: 200 }).unwrap();
        world.kernel.remove_namespace(&namespace(1));
        let fault = Fault { at, site: None, how: How::Errno(16, Ack::Refused), lasting: false };
        let (_, hits) = world.attempt(Verb::Prune, Some(fault));
        if hits == 0 {
            break;
        }
        failures += 1;
        world.check_rows();
    }
    assert!(failures > 10, "{failures}");
}

#[test]
fn nothing_is_made_for_the_dead() {
    let world = World::new();
    for who in 0..6 {
        world.kernel.make_namespace(&namespace(who));
    }
    for (who, on) in [(1, [1, 1]), (2, [0, 1])] {
        world.engine.create_network(&network_request(if who == 1 { "ptp" } else { "alpha" })).unwrap();
        world.run(Verb::Attach { who, on, port: 200 + who }).unwrap();
    }
    let objects = world.kernel.objects();
    let is_neighbour = |object: &&Object| matches!(object, Object::Neighbour(_));
    let neighbours: Vec<&Object> = objects.iter().map(|(_, object)| object).filter(is_neighbour).collect();
    assert!(neighbours.len() > 1, "{neighbours:?}");
    neighbours.into_iter().for_each(|neighbour| world.kernel.remove(neighbour));
    world.kernel.remove_namespace(&namespace(1));
    let repaired = world.engine.reconcile().unwrap();
    assert_eq!(repaired.failures, [""; 0]);
    let made: Vec<String> = repaired.steps.iter().map(ToString::to_string).collect();
    assert!(!made.is_empty() && made.iter().all(|step| step.starts_with("create neighbour")), "{made:#?}");
    world.check("after the repair");
    let again = world.engine.reconcile().unwrap();
    assert_eq!(again.steps, [], "what is said was done");
}
