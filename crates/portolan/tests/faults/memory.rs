//! The kernel kills whoever has no memory left, in the middle of anything.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portolan_lab::eventually;

use crate::common::LONG;
use crate::place::*;

/// A control group with little memory; gone when it is dropped.
struct Group {
    dir: PathBuf,
    limit: &'static str,
}

impl Group {
    /// Makes one; says why not.
    fn new(name: &str) -> Result<Self, String> {
        let name = format!("portolan-faults-{}-{name}", std::process::id());
        // Version 1 has a tree for memory; in version 2 the parent has to pass it on.
        let (first, second) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let (dir, limit) = if first.is_dir() {
            (first.join(name), "memory.limit_in_bytes")
        } else {
            let _ = fs::write(second.join("cgroup.subtree_control"), "+memory");
            (second.join(name), "memory.max")
        };
        fs::create_dir(&dir).map_err(|error| format!("make `{}`: {error}", dir.display()))?;
        let group = Self { dir, limit };
        let is_there = group.dir.join(limit).exists();
        if is_there { Ok(group) } else { Err(format!("no `{}`", group.dir.join(limit).display())) }
    }

    fn set_limit(&self, bytes: usize) {
        fs::write(self.dir.join(self.limit), bytes.to_string()).unwrap();
        // Where memory can be written to a disk nobody would be killed.
        let _ = fs::write(self.dir.join("memory.swappiness"), "0");
        let _ = fs::write(self.dir.join("memory.swap.max"), "0");
    }

    /// The same command, by a process in the group.
    fn adopt(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", &format!("echo $$ >'{}' && exec \"$0\" \"$@\"", self.dir.join("cgroup.procs").display())]);
        inside.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(key, value),
                None => inside.env_remove(key),
            };
        }
        inside
    }

    fn processes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]).status();
        }
        let _ = eventually(LONG, || self.processes().is_empty());
        let _ = fs::remove_dir(&self.dir);
    }
}

/// From what no program starts with to what is enough for a verb, in steps of a fifth.
fn limits() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(640 << 10), |limit| Some((limit + limit / 5) & !0xfff))
        .take_while(|limit| *limit < 64 << 20)
}

#[test]
fn out_of_memory() {
    let Some(mut place) = Place::or_skip("out of memory", ON_NETWORK_A) else { return };
    let group = match Group::new("verbs") {
        Ok(group) => group,
        Err(why) => return eprintln!("SKIP: {why}"),
    };
    let verb = |name, given, killed, undo| Verb {
        name,
        given,
        killed,
        again: killed,
        undo,
        beside: ON_NETWORK_A,
        at_least: 0,
    };
    let verbs = [
        verb("network create", &[] as &[Line], NETWORK_A, "network rm a"),
        verb("attach", &[NETWORK_A, NETWORK_B], ON_BOTH, "detach c"),
        verb("publish rm", &[NETWORK_A, ON_A, PUBLISH], UNPUBLISH, PUBLISH),
        verb("detach", &[NETWORK_A, NETWORK_B, ON_BOTH], "detach c", ON_BOTH),
        verb("netavark setup", &[], "netavark setup", "netavark teardown"),
        verb("cni DEL", &["cni ADD"], "cni DEL", "cni ADD"),
    ];
    let mut killed_at_work = 0;
    for verb in &verbs {
        let mut trial = Trial::new(place, verb);
        let mut killed = 0;
        let mut is_done = false;
        for (n, limit) in limits().enumerate() {
            trial.ready();
            group.set_limit(limit);
            let mut command = trial.place.world.h.adopt(group.adopt(&trial.place.command(verb.killed))).unwrap();
            command.stdin(trial.place.input(verb.killed));
            let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
            let what = format!("`{}` with {} KiB: {output:?}", verb.name, limit >> 10);
            assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{what}");
            assert!(eventually(LONG, || group.processes().is_empty()), "{what}: {:?}", group.processes());
            killed += usize::from(output.status.signal() == Some(9));
            killed_at_work += usize::from(output.status.signal() == Some(9) && trial.place.is_half_way());
            if n % 2 == 0 {
                trial.after_gc(&what);
            } else {
                trial.after_itself(&what);
            }
            trial.done(&what);
            if output.status.success() {
                is_done = true;
                break;
            }
        }
        trial.clear(verb.name);
        place = trial.place;
        assert!(killed > 0 && is_done, "{}: killed {killed} times, done: {is_done}", verb.name);
        eprintln!("{}: killed with {killed} limits", verb.name);
    }
    eprintln!("out of memory: {killed_at_work} were killed half-way");
}

/// The daemon is killed for want of memory, with its supervisor or without: containers stay, and the next verb has another one.
#[test]
fn a_daemon_out_of_memory() {
    let Some(mut place) = Place::or_skip("daemon out of memory", ON_NETWORK_A) else { return };
    let group = match Group::new("daemon") {
        Ok(group) => group,
        Err(why) => return eprintln!("SKIP: {why}"),
    };
    place.line(NETWORK_A);
    place.line(ON_A);
    let before = place.rows();
    place.world.daemon = true;
    let (mut failed, mut started) = (0, 0);
    for limit in limits() {
        group.set_limit(limit);
        let command = place.command("daemon start");
        let output = place.world.h.adopt(group.adopt(&command)).unwrap().output().unwrap();
        let what = format!("a daemon with {} KiB: {output:?}", limit >> 10);
        failed += usize::from(!output.status.success());
        started += usize::from(output.status.success());
        assert!(output.status.success() || output.status.signal().is_some() || !output.stderr.is_empty(), "{what}");
        // Whether it lives or not: what is needed of it is had afterwards.
        let added = place.try_line("publish add c 9090:90");
        assert!(added.status.success(), "{what}: {added:?}");
        place.line("publish rm c 9090:90");
        let status: serde_json::Value = place.world.json(&["daemon", "status"]);
        assert_eq!(status["endpoints"], 1, "{what}: {status}");
        place.line("daemon stop");
        assert!(eventually(LONG, || group.processes().is_empty()), "{what}: {:?}", group.processes());
        place.line("verify");
        assert_eq!(place.rows(), before, "{what}");
        if started == 2 {
            break;
        }
    }
    assert!(failed > 2 && started == 2, "{failed} did not start, {started} did");
    place.world.daemon = false;
    place.clear("daemon out of memory");
}
