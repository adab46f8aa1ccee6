//! Schedules on hosts: what is done, what comes of it, and who puts it in order.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use portolan_engine::{AttachRequest, EndpointRequest, Error};
use portolan_plan::{Data, Object};

use crate::fake::broken::{self, Ack, Fault, How};
use crate::fake::{FakeKernel, network_request};
use crate::schedule::{Edit, Event, Next, Verb};
use crate::world::{World, namespace, spec, whole};

impl World {
    /// Runs `verb` with `fault`; none if its process died. Says also how often the fault came to pass.
    pub(crate) fn attempt(&self, verb: Verb, fault: Option<Fault>) -> (Option<Result<(), Error>>, usize) {
        broken::arm(fault);
        let result = catch_unwind(AssertUnwindSafe(|| self.run(verb)));
        let hits = broken::disarm();
        match result {
            Ok(result) => (Some(result), hits),
            Err(payload) if payload.is::<broken::Death>() => (None, hits),
            Err(payload) => resume_unwind(payload),
        }
    }

    pub(crate) fn put_in_order(&self, verb: Verb, next: Next) {
        match next {
            Next::Gc => whole(self.engine.gc().unwrap()).unwrap(),
            Next::Anybody => drop(self.engine.detach("nobody").unwrap_err()),
            Next::Again => drop(self.run(verb)),
            Next::Reboot => {
                self.kernel.reboot();
                drop(self.engine.detach("nobody").unwrap_err());
            }
        }
        if next == Next::Gc || next == Next::Reboot {
            self.edited.set(false);
        }
    }

    pub(crate) fn step(&self, event: Event, seen: &mut Seen) {
        match event {
            Event::Do(verb, fault, next) => self.verb(verb, fault, next, seen),
            Event::Die(who) => {
                self.kernel.remove_namespace(&namespace(who));
                self.check_rows();
            }
            Event::Reboot => {
                self.kernel.reboot();
                self.edited.set(false);
                drop(self.engine.detach("nobody").unwrap_err());
                self.check("after a reboot");
                seen.count("reboot", 1);
            }
            Event::Clock(years) => {
                let now = 1_800_000_000_i64 + i64::from(years) * 365 * 86_400;
                self.kernel.set_clock(now.unsigned_abs());
                seen.count("clock", 1);
            }
            Event::Edit(edit, which) => self.edit(edit, which, seen),
        }
    }

    pub(crate) fn verb(&self, verb: Verb, fault: Option<Fault>, next: Next, seen: &mut Seen) {
        // Whoever attaches has a namespace.
        if let Verb::Attach { who, .. } | Verb::Join { who, .. } = verb {
            self.kernel.make_namespace(&namespace(who));
        }
        let before = self.asked_for();
        let (result, hits) = self.attempt(verb, fault);
        let what = format!("{verb:?} with {fault:?}: {result:?}");
        if let (Some(fault), true) = (fault, hits > 0) {
            seen.fault(verb, fault);
        }
        self.check_rows();
        if !self.edited.get() && hits > 0 {
            // Who died may have left anything that a row knows of; nobody anything else.
            let strays = self.strays();
            assert!(strays.is_empty(), "{what}: no row knows of {strays:#?}");
        }
        match result {
            Some(Ok(())) => {
                if matches!(verb, Verb::Gc | Verb::Reconcile) {
                    self.edited.set(false);
                }
                self.check(&what);
            }
            Some(Err(error)) if hits == 0 => {
                // A refusal: nothing has changed.
                let is_quiet = matches!(error.kind(), portolan_engine::Kind::Bug | portolan_engine::Kind::Transient);
                assert!(self.edited.get() || !is_quiet, "{what}");
                assert_eq!(self.asked_for(), before, "{what}");
                if !self.edited.get() {
                    self.check(&what);
                }
                self.finish_edits();
            }
            _ => {
                let error = result.and_then(Result::err).map(|error| error.to_string());
                assert!(error.is_none_or(|text| !text.is_empty()));
                self.finish_edits();
                let reboots = next == Next::Reboot;
                self.put_in_order(verb, next);
                self.check(&format!("{what}, then {next:?}"));
                let after = self.asked_for();
                if after == before || reboots || next == Next::Again {
                    return;
                }
                // Done, then: as who asks again finds out. What asks for any is given another one.
                let asks_for_any = matches!(verb, Verb::RequestPool(_) | Verb::RequestAddress { .. });
                let takes_any = matches!(verb, Verb::ReleasePool(_) | Verb::ReleaseAddress { .. });
                // All or nothing is what one verb is; these are several.
                if !asks_for_any && !takes_any && !matches!(verb, Verb::Prune | Verb::Lease { .. } | Verb::CreateOn(_))
                {
                    drop(self.run(verb));
                    assert_eq!(
                        self.asked_for(),
                        after,
                        "{what}, then {next:?}: neither done nor undone, was {before:#?}"
                    );
                }
            }
        }
    }

    /// Puts in order what somebody else changed.
    pub(crate) fn finish_edits(&self) {
        if self.edited.get() {
            whole(self.engine.reconcile().unwrap()).unwrap();
            self.edited.set(false);
        }
    }

    pub(crate) fn edit(&self, edit: Edit, which: u8, seen: &mut Seen) {
        let objects: Vec<Object> = self.kernel.objects().into_iter().collect();
        if objects.is_empty() {
            return;
        }
        let object = &objects[usize::from(which) % objects.len()];
        let mut elements = objects.iter().filter_map(|object| match object {
            Object::Element(element) => Some(element.clone()),
            _ => None,
        });
        match edit {
            Edit::Remove => self.kernel.remove(object),
            Edit::Change | Edit::Add => {
                let mut all: Vec<_> = elements.by_ref().collect();
                if all.is_empty() {
                    return;
                }
                let mut element = all.swap_remove(usize::from(which) % all.len());
                if edit == Edit::Change {
                    "somebody else's".clone_into(&mut element.owner);
                } else {
                    // The same in another set of the same kind, or with nothing behind it.
                    element.key.reverse();
                    element.data = Data::Accept;
                }
                self.kernel.put(Object::Element(element));
            }
        }
        seen.count(
            match edit {
                Edit::Remove => "removed",
                Edit::Change => "changed",
                Edit::Add => "added",
            },
            1,
        );
        self.edited.set(true);
        if which.is_multiple_of(2) {
            self.finish_edits();
            self.check("after an edit");
        }
    }

    /// Everything is taken back by plain verbs; then nothing is left and all can be had.
    pub(crate) fn finish(&self) {
        self.finish_edits();
        for info in self.engine.containers().unwrap() {
            // Of the dead some may be found meanwhile.
            match self.engine.detach(&info.container.id.to_string()) {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        self.engine.forget_cluster().unwrap();
        for network in self.engine.networks().unwrap().into_iter().filter(|network| !network.is_predefined()) {
            self.engine.remove_network(&network.id.to_string()).unwrap();
        }
        for (pool, _) in self.engine.pools().unwrap() {
            self.engine.release_pool(pool.id).unwrap();
        }
        self.check("in the end");
        let left: Vec<String> = self.kernel.objects().iter().map(|(_, object)| object.to_string()).collect();
        assert!(left.is_empty(), "left in the kernel: {left:#?}");
        assert_eq!(self.kernel.sysctls(), FakeKernel::new(1).sysctls(), "sysctls are as they were");
        let asked = self.asked_for();
        assert!(asked.iter().all(|line| line.starts_with("network ")) && asked.len() == 3, "{asked:#?}");
        for name in ["alpha", "small"] {
            self.engine.create_network(&network_request(name)).unwrap();
        }
        let path = PathBuf::from("/ns/last");
        self.kernel.make_namespace(&path);
        let ip = Some("10.77.0.2".parse().unwrap());
        self.engine
            .attach(&AttachRequest {
                endpoints: vec![EndpointRequest { ip, ..EndpointRequest::new("small") }, EndpointRequest::new("alpha")],
                publish: (0..6).map(spec).collect::<Vec<_>>().into_iter().fold(Vec::new(), |mut all, spec| {
                    if !all.contains(&spec) {
                        all.push(spec)
                    }
                    all
                }),
                ..AttachRequest::namespace(path)
            })
            .unwrap();
        self.check("once more");
    }
}

/// What came to pass, and how often.
#[derive(Default)]
pub(crate) struct Seen(pub(crate) BTreeMap<String, u64>);

impl Seen {
    pub(crate) fn count(&mut self, what: impl Into<String>, times: u64) {
        *self.0.entry(what.into()).or_default() += times;
    }

    pub(crate) fn fault(&mut self, verb: Verb, fault: Fault) {
        let name = format!("{verb:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default().to_owned();
        let how = match fault.how {
            How::Death => "death".to_owned(),
            How::Errno(errno, ack) => {
                let errno = broken::name(errno).rsplit('(').next().unwrap_or_default().trim_end_matches(')').to_owned();
                format!("{errno}{}", if ack == Ack::Lost { ", answer lost" } else { "" })
            }
        };
        self.count(format!("{name}: {how}"), 1);
    }
}

pub(crate) fn run(schedule: &[Event], seen: &mut Seen) -> Result<(), String> {
    let world = World::new();
    let done = catch_unwind(AssertUnwindSafe(|| {
        schedule.iter().for_each(|event| world.step(*event, seen));
        world.finish();
    }));
    done.map_err(|panic| {
        broken::disarm();
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// The shortest schedule that still fails, found by leaving out events one by one and faults where they do not matter.
pub(crate) fn shorten(mut schedule: Vec<Event>) -> Vec<Event> {
    let fails = |schedule: &[Event]| run(schedule, &mut Seen::default()).is_err();
    loop {
        let length = schedule.len();
        for at in (0..schedule.len()).rev() {
            let mut less = schedule.clone();
            less.remove(at);
            if fails(&less) {
                schedule = less;
            }
        }
        for at in 0..schedule.len() {
            if let Event::Do(verb, Some(_), next) = schedule[at] {
                let mut less = schedule.clone();
                less[at] = Event::Do(verb, None, next);
                if fails(&less) {
                    schedule = less;
                }
            }
        }
        if schedule.len() == length {
            return schedule;
        }
    }
}
