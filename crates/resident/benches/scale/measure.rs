//! Times, memory and sizes.

use std::fmt;
use std::fs;
use std::time::Duration;

use portolan_lab::etcd::Etcd;
use serde::{Deserialize, Serialize};

/// How long something took.
#[derive(Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
    pub(crate) most: Duration,
}

impl Spread {
    pub(crate) fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |part: f64| all[((all.len() - 1) as f64 * part).round() as usize];
        Self { median: at(0.5), p99: at(0.99), most: at(1.0) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "median {:.1?}, p99 {:.1?}, at most {:.1?}", self.median, self.p99, self.most)
    }
}

/// Bytes of this process that are in memory.
pub(crate) fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// How many processes want a processor, on average of a minute, this one's among them.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Processor time of a process so far.
pub(crate) struct Usage(Duration);

impl Usage {
    pub(crate) fn now(pid: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // After the name, which may have anything in it: user and system time are the 14th and 15th of all (proc(5)).
        let rest = stat.rsplit_once(')').unwrap().1;
        let ticks: u64 = rest.split_whitespace().skip(11).take(2).map(|part| part.parse::<u64>().unwrap()).sum();
        Self(Duration::from_millis(ticks * 10))
    }

    pub(crate) fn since(&self, pid: u32) -> Duration {
        Self::now(pid).0 - self.0
    }
}

/// Bytes on etcd's disk, and how many of them are in use.
pub(crate) fn database(etcd: &Etcd) -> (u64, u64) {
    let said = etcd.ctl(&["endpoint", "status", "-w", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&said).unwrap();
    let number = |name: &str| status[0]["Status"][name].as_u64().unwrap_or(0);
    (number("dbSize"), number("dbSizeInUse"))
}
