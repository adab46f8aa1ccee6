//! What the encrypted link knows of each host.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use portolan_model::Id;
use portolan_wireguard::Status;
use serde::{Deserialize, Serialize};

/// What went between this host and another by the encrypted link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRow {
    /// Where its last authentic packet came from, or where it says that it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since keys were agreed on last, which is done each two minutes while there is traffic.
    pub handshake_age: Option<u64>,
    /// Bytes received since the daemon, or the link, was started.
    pub received: u64,
    /// Bytes sent since then.
    pub sent: u64,
}

/// What was counted of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Figures {
    endpoint: Option<SocketAddr>,
    last_handshake: Option<SystemTime>,
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl From<Figures> for LinkRow {
    fn from(figures: Figures) -> Self {
        let Figures { endpoint, last_handshake, received, sent } = figures;
        // A clock that was set back says nothing.
        let age = |at| SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
        Self { endpoint, handshake_age: last_handshake.map(age), received, sent }
    }
}

/// Adds up what devices count for keys, which come and go.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// By host and lane: the key, and what was counted for it.
    last: BTreeMap<(Id, usize), (String, Status)>,
    pub(super) hosts: BTreeMap<Id, Figures>,
}

impl Meter {
    /// Takes note of what a lane's device says of a host's key.
    pub(super) fn take(&mut self, host: Id, lane: usize, key: &str, status: &Status) {
        let before = self.last.insert((host, lane), (key.to_owned(), *status));
        let before = before.filter(|(before, _)| before == key).map(|(_, status)| status).unwrap_or_default();
        // What counts less than before is another device.
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let figures = self.hosts.entry(host).or_default();
        figures.received += more(status.received, before.received);
        figures.sent += more(status.sent, before.sent);
        figures.endpoint =
            status.endpoint.filter(|_| status.received > before.received).or(figures.endpoint).or(status.endpoint);
        figures.last_handshake = figures.last_handshake.max(status.last_handshake);
    }

    /// Takes note that devices count anew for a host.
    pub(super) fn begin(&mut self, host: Id) {
        self.last.retain(|(of, _), _| *of != host);
    }

    /// Forgets all hosts but these.
    pub(super) fn keep(&mut self, is_there: impl Fn(Id) -> bool) {
        self.last.retain(|(host, _), _| is_there(*host));
        self.hosts.retain(|host, _| is_there(*host));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_where_keys_and_devices_change() {
        let host = Id::from_bytes([1; 32]);
        let status = |received, sent| Status { received, sent, ..Status::default() };
        let mut meter = Meter::default();
        let mut after = |lane, key: &str, received, sent| {
            meter.take(host, lane, key, &status(received, sent));
            let figures = meter.hosts[&host];
            (figures.received, figures.sent)
        };
        assert_eq!(after(0, "one", 10, 1), (10, 1));
        assert_eq!(after(0, "one", 15, 1), (15, 1));
        assert_eq!(after(1, "two", 4, 2), (19, 3), "another key is counted besides");
        assert_eq!(after(0, "one", 15, 2), (19, 4));
        assert_eq!(after(0, "three", 5, 0), (24, 4), "one that takes the place of another begins anew");
        assert_eq!(after(1, "two", 3, 0), (27, 4), "a device that was made anew as well");
        meter.begin(host);
        meter.take(host, 1, "two", &status(3, 0));
        assert_eq!(meter.hosts[&host].received, 30, "although it has counted as much before");
        meter.keep(|_| false);
        assert!(meter.hosts.is_empty());
    }
}
