//! The flags of the daemon, as Go's `flag` reads them.

use std::path::PathBuf;
use std::time::Duration;

use super::super::SOCKET;

/// How the daemon is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    /// Where its process id is written (`-pidfile`).
    pub pidfile: Option<PathBuf>,
    /// What is before the host's paths (`-hostprefix`).
    pub host_prefix: String,
    /// Where it listens (`-socketpath`).
    pub socket: String,
    /// Servers are to answer by broadcast (`-broadcast`).
    pub broadcast: bool,
    /// How long a server may take for an answer (`-timeout`).
    pub timeout: Duration,
    /// The longest pause before a question is asked again (`-resendmax`).
    pub resend_max: Duration,
    /// After which time there are no more questions (`-resendtimeout`).
    pub resend_timeout: Duration,
}

/// What is said about the flags when they are wrong.
pub const USAGE: &str = "\
Usage of daemon:
  -broadcast
    \tbroadcast DHCP leases
  -hostprefix string
    \toptional prefix to host root
  -pidfile string
    \toptional path to write daemon PID to
  -resendmax duration
    \toptional dhcp client resend max duration (default 1m2s)
  -resendtimeout duration
    \toptional dhcp client resend timeout (default 3m28s)
  -socketpath string
    \toptional dhcp server socketpath (default /run/cni/dhcp.sock)
  -timeout duration
    \toptional dhcp client timeout duration (default 10s)
";

impl Default for Flags {
    fn default() -> Self {
        Self {
            pidfile: None,
            host_prefix: String::new(),
            socket: SOCKET.to_owned(),
            broadcast: false,
            timeout: Duration::from_secs(10),
            resend_max: Duration::from_secs(62),
            resend_timeout: Duration::from_secs(208),
        }
    }
}

impl Flags {
    /// Reads what comes after `daemon`; none if help is asked for.
    ///
    /// # Errors
    /// In Go's words.
    pub fn read(words: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let mut flags = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-').filter(|flag| !flag.is_empty() && *flag != "-") else { break };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            if flag.is_empty() || flag.starts_with(['-', '=']) {
                return Err(format!("bad flag syntax: {word}"));
            }
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if matches!(name, "h" | "help") {
                return Ok(None);
            }
            if name == "broadcast" {
                flags.broadcast = match value.as_deref().unwrap_or("true") {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                    other => return Err(format!("invalid boolean value {other:?} for -broadcast: parse error")),
                };
                continue;
            }
            let is_known =
                ["pidfile", "hostprefix", "socketpath", "timeout", "resendmax", "resendtimeout"].contains(&name);
            if !is_known {
                return Err(format!("flag provided but not defined: -{name}"));
            }
            let value = value.or_else(|| words.next()).ok_or_else(|| format!("flag needs an argument: -{name}"))?;
            let duration =
                || duration(&value).ok_or_else(|| format!("invalid value {value:?} for flag -{name}: parse error"));
            match name {
                "pidfile" => flags.pidfile = Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty()),
                "hostprefix" => flags.host_prefix = value,
                "socketpath" if value.is_empty() => SOCKET.clone_into(&mut flags.socket),
                "socketpath" => flags.socket = value,
                "timeout" => flags.timeout = duration()?,
                "resendmax" => flags.resend_max = duration()?,
                _ => flags.resend_timeout = duration()?,
            }
        }
        Ok(Some(flags))
    }

    /// Where it listens on the host.
    pub(super) fn socket(&self) -> PathBuf {
        PathBuf::from(format!("{}{}", self.host_prefix, self.socket))
    }

    /// How long an ADD waits for a lease: as long as the original goes on asking. It asks five times, with two seconds in
    /// between, and then with pauses that double from four seconds to the longest.
    pub(super) fn patience(&self) -> Duration {
        let (fast, mut pause) = (Duration::from_secs(2), Duration::from_secs(4));
        let mut all = (self.timeout + fast) * 4;
        loop {
            all += self.timeout + pause;
            if pause >= self.resend_max || all >= self.resend_timeout {
                return all.min(self.resend_timeout);
            }
            pause *= 2;
        }
    }
}

/// A duration as Go writes it: `1m2s`, `1.5s`, `300ms`, `0`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut all = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let length = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, after) = unit.split_at(length);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        all = all.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = after;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Option<Flags>, String> {
        Flags::read(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_as_go_reads_them() {
        assert_eq!(read(""), Ok(Some(Flags::default())));
        let flags = read(
            "-pidfile /run/p --hostprefix=/host -socketpath /s -broadcast -timeout 1.5s -resendmax=1m2s -resendtimeout 300ms",
        );
        let wanted = Flags {
            pidfile: Some("/run/p".into()),
            host_prefix: "/host".to_owned(),
            socket: "/s".to_owned(),
            broadcast: true,
            timeout: Duration::from_millis(1500),
            resend_max: Duration::from_secs(62),
            resend_timeout: Duration::from_millis(300),
        };
        assert_eq!(flags.as_ref(), Ok(&Some(wanted.clone())));
        assert_eq!(wanted.socket(), PathBuf::from("/host/s"));
        assert_eq!(read("-broadcast=false -socketpath="), Ok(Some(Flags::default())));
        assert_eq!(read("-h"), Ok(None));
        for (line, text) in [
            ("-x", "flag provided but not defined: -x"),
            ("-timeout", "flag needs an argument: -timeout"),
            ("-timeout 10", "invalid value \"10\" for flag -timeout: parse error"),
            ("-timeout -1s", "invalid value \"-1s\" for flag -timeout: parse error"),
            ("-broadcast=x", "invalid boolean value \"x\" for -broadcast: parse error"),
            ("---x", "bad flag syntax: ---x"),
        ] {
            assert_eq!(read(line), Err(text.to_owned()));
        }
    }

    #[test]
    fn patience_is_the_originals() {
        let seconds = |line| read(line).unwrap().unwrap().patience().as_secs();
        assert_eq!(seconds(""), 208);
        assert_eq!(seconds("-resendtimeout 1h"), 4 * 12 + 14 + 18 + 26 + 42 + 74);
        assert_eq!(seconds("-timeout 1s -resendmax 0"), 4 * 3 + 5);
        assert_eq!(seconds("-timeout 1s -resendmax 4s -resendtimeout 3s"), 3);
    }
}
