//! The text of the cross-platform configuration protocol: lines `key=value`, ended by an empty one.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::{KeyError, Peer, PresharedKey, PrivateKey, PublicKey, State, Status};

/// Why a text of the protocol is not understood. Values, which may be secrets, are not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UapiError {
    /// A line without `=`.
    #[error("line {line} is not `key=value`")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A key of a configuration that is not known.
    #[error("key `{key}` is not known")]
    Key {
        /// The key.
        key: String,
    },
    /// A key of a peer without a peer before it.
    #[error("`{key}` belongs to a peer, and none is named before it")]
    NoPeer {
        /// The key.
        key: String,
    },
    /// A value that makes no sense.
    #[error("value of `{key}` makes no sense")]
    Value {
        /// The key.
        key: String,
    },
    /// A value that should be a WireGuard key.
    #[error("value of `{key}`")]
    WrongKey {
        /// The key.
        key: String,
        /// Why it is none.
        #[source]
        source: KeyError,
    },
    /// A peer that is named twice.
    #[error("peer `{key}` is named twice")]
    Twice {
        /// The peer.
        key: PublicKey,
    },
}

/// What is to change of a device: the body of a `set` of the configuration protocol, without the line `set=1`.
///
/// Its `Display` is that text, its `FromStr` takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The host's secret.
    pub private_key: Option<PrivateKey>,
    /// UDP port.
    pub listen_port: Option<u16>,
    /// Mark of the packets sent (`SO_MARK`), 0 for none.
    pub mark: Option<u32>,
    /// Forget all peers first.
    pub replace_peers: bool,
    /// What becomes of peers, in this order.
    pub peers: Vec<PeerChange>,
}

/// What is to change of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// Which.
    pub key: PublicKey,
    /// Forget it; all else is ignored.
    pub remove: bool,
    /// Only if it is known.
    pub update_only: bool,
    /// The secret shared with it; the inner `None` takes it away.
    pub preshared: Option<Option<PresharedKey>>,
    /// Where to send to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between empty packets, 0 for never.
    pub keepalive: Option<u16>,
    /// Take all ranges away first.
    pub replace_allowed: bool,
    /// Ranges to give it, and to take from whoever has them; host bits are zero.
    pub allow: BTreeSet<IpNet>,
    /// Ranges to take from it (`allowed_ip=-…`, Linux 6.16 and wireguard-go of 2025).
    pub disallow: BTreeSet<IpNet>,
}

impl PeerChange {
    /// Nothing, for a peer that is made if it is not known.
    pub fn new(key: PublicKey) -> Self {
        Self {
            key,
            remove: false,
            update_only: false,
            preshared: None,
            endpoint: None,
            keepalive: None,
            replace_allowed: false,
            allow: BTreeSet::new(),
            disallow: BTreeSet::new(),
        }
    }

    /// Whether a peer that is known stays as it is.
    pub fn is_empty(&self) -> bool {
        *self == Self { update_only: self.update_only, ..Self::new(self.key) }
    }
}

impl Changes {
    /// Whether all stays as it is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.private_key {
            writeln!(f, "private_key={}", key.to_hex())?;
        }
        if let Some(port) = self.listen_port {
            writeln!(f, "listen_port={port}")?;
        }
        if let Some(mark) = self.mark {
            writeln!(f, "fwmark={mark}")?;
        }
        if self.replace_peers {
            writeln!(f, "replace_peers=true")?;
        }
        for peer in &self.peers {
            writeln!(f, "public_key={}", peer.key.to_hex())?;
            if peer.remove {
                writeln!(f, "remove=true")?;
                continue;
            }
            if peer.update_only {
                writeln!(f, "update_only=true")?;
            }
            if let Some(preshared) = &peer.preshared {
                let key = preshared.clone().unwrap_or(PresharedKey::from([0; 32]));
                writeln!(f, "preshared_key={}", key.to_hex())?;
            }
            if let Some(endpoint) = peer.endpoint {
                writeln!(f, "endpoint={endpoint}")?;
            }
            if let Some(seconds) = peer.keepalive {
                writeln!(f, "persistent_keepalive_interval={seconds}")?;
            }
            if peer.replace_allowed {
                writeln!(f, "replace_allowed_ips=true")?;
            }
            for range in &peer.disallow {
                writeln!(f, "allowed_ip=-{range}")?;
            }
            for range in &peer.allow {
                writeln!(f, "allowed_ip={range}")?;
            }
        }
        Ok(())
    }
}

/// Splits a text into keys and values; the empty line at the end may be missing.
fn pairs(text: &str) -> impl Iterator<Item = Result<(&str, &str), UapiError>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(at, line)| line.split_once('=').ok_or(UapiError::Line { line: at + 1 }))
}

fn value<T: FromStr>(key: &str, text: &str) -> Result<T, UapiError> {
    text.parse().map_err(|_| UapiError::Value { key: key.into() })
}

/// A range without a length is one address.
fn range(key: &str, text: &str) -> Result<IpNet, UapiError> {
    let range = match text.contains('/') {
        true => value::<IpNet>(key, text)?,
        false => IpNet::from(value::<std::net::IpAddr>(key, text)?),
    };
    Ok(range.trunc())
}

fn is_true(key: &str, text: &str) -> Result<bool, UapiError> {
    if text == "true" { Ok(true) } else { Err(UapiError::Value { key: key.into() }) }
}

fn wrong_key(key: &str) -> impl FnOnce(KeyError) -> UapiError {
    let key = key.to_owned();
    |source| UapiError::WrongKey { key, source }
}

fn preshared(key: &str, text: &str) -> Result<Option<PresharedKey>, UapiError> {
    let preshared = PresharedKey::from_hex(text).map_err(wrong_key(key))?;
    Ok(Some(preshared).filter(|preshared| !preshared.is_none()))
}

impl FromStr for Changes {
    type Err = UapiError;

    fn from_str(text: &str) -> Result<Self, UapiError> {
        let mut changes = Self::default();
        for pair in pairs(text) {
            let (key, text) = pair?;
            let peer = changes.peers.last_mut();
            let named = || UapiError::NoPeer { key: key.into() };
            match key {
                "private_key" => changes.private_key = Some(PrivateKey::from_hex(text).map_err(wrong_key(key))?),
                "listen_port" => changes.listen_port = Some(value(key, text)?),
                "fwmark" => changes.mark = Some(value(key, text)?),
                "replace_peers" => changes.replace_peers = is_true(key, text)?,
                "public_key" => {
                    let named = PublicKey::from_hex(text).map_err(wrong_key(key))?;
                    if changes.peers.iter().any(|peer| peer.key == named) {
                        return Err(UapiError::Twice { key: named });
                    }
                    changes.peers.push(PeerChange::new(named));
                }
                "remove" => peer.ok_or_else(named)?.remove = is_true(key, text)?,
                "update_only" => peer.ok_or_else(named)?.update_only = is_true(key, text)?,
                "preshared_key" => peer.ok_or_else(named)?.preshared = Some(preshared(key, text)?),
                "endpoint" => peer.ok_or_else(named)?.endpoint = Some(value(key, text)?),
                "persistent_keepalive_interval" => peer.ok_or_else(named)?.keepalive = Some(value(key, text)?),
                "replace_allowed_ips" => peer.ok_or_else(named)?.replace_allowed = is_true(key, text)?,
                "allowed_ip" => {
                    let peer = peer.ok_or_else(named)?;
                    // What is said last counts.
                    if let Some(text) = text.strip_prefix('-') {
                        let range = range(key, text)?;
                        peer.allow.remove(&range);
                        peer.disallow.insert(range);
                    } else {
                        let range = range(key, text)?;
                        peer.disallow.remove(&range);
                        peer.allow.insert(range);
                    }
                }
                "protocol_version" if text == "1" => {}
                "protocol_version" => return Err(UapiError::Value { key: key.into() }),
                _ => return Err(UapiError::Key { key: key.into() }),
            }
        }
        Ok(changes)
    }
}

/// What a device answers to `get=1`, without the number of an error.
pub(crate) fn render(state: &State, mark: u32) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_state(&mut text, state, mark);
    text
}

fn write_state(f: &mut String, state: &State, mark: u32) -> fmt::Result {
    if let Some(key) = &state.config.private_key {
        writeln!(f, "private_key={}", key.to_hex())?;
    }
    writeln!(f, "listen_port={}", state.config.listen_port)?;
    if mark != 0 {
        writeln!(f, "fwmark={mark}")?;
    }
    for (key, peer) in &state.config.peers {
        let status = state.status.get(key).copied().unwrap_or_default();
        writeln!(f, "public_key={}", key.to_hex())?;
        if let Some(preshared) = &peer.preshared {
            writeln!(f, "preshared_key={}", preshared.to_hex())?;
        }
        if let Some(endpoint) = status.endpoint.or(peer.endpoint) {
            writeln!(f, "endpoint={endpoint}")?;
        }
        let since = status.last_handshake.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let since = since.unwrap_or_default();
        writeln!(f, "last_handshake_time_sec={}", since.as_secs())?;
        writeln!(f, "last_handshake_time_nsec={}", since.subsec_nanos())?;
        writeln!(f, "tx_bytes={}", status.sent)?;
        writeln!(f, "rx_bytes={}", status.received)?;
        writeln!(f, "persistent_keepalive_interval={}", peer.keepalive.unwrap_or(0))?;
        for range in &peer.allowed {
            writeln!(f, "allowed_ip={range}")?;
        }
        writeln!(f, "protocol_version=1")?;
    }
    Ok(())
}

/// An answer: the number of its error (positive, 0 for none) and what it says.
///
/// Keys that are not known are passed over: a `get` may say more than we ask for.
pub(crate) fn parse_answer(text: &str) -> Result<(i32, State), UapiError> {
    let mut state = State::default();
    let mut errno = None;
    let mut named = None;
    let mut handshake = Duration::ZERO;
    for pair in pairs(text) {
        let (key, text) = pair?;
        match key {
            "errno" => errno = Some(value::<i32>(key, text)?),
            "private_key" => state.config.private_key = Some(PrivateKey::from_hex(text).map_err(wrong_key(key))?),
            "listen_port" => state.config.listen_port = value(key, text)?,
            "public_key" => {
                let peer = PublicKey::from_hex(text).map_err(wrong_key(key))?;
                state.config.peers.insert(peer, Peer::default());
                state.status.insert(peer, Status::default());
                named = Some(peer);
                handshake = Duration::ZERO;
            }
            _ => {
                let Some((peer, status)) =
                    named.and_then(|key| Some((state.config.peers.get_mut(&key)?, state.status.get_mut(&key)?)))
                else {
                    continue;
                };
                match key {
                    "preshared_key" => peer.preshared = preshared(key, text)?,
                    "endpoint" => {
                        peer.endpoint = Some(value(key, text)?);
                        status.endpoint = peer.endpoint;
                    }
                    "persistent_keepalive_interval" => {
                        peer.keepalive = Some(value(key, text)?).filter(|seconds| *seconds != 0);
                    }
                    "allowed_ip" => {
                        peer.allowed.insert(range(key, text)?);
                    }
                    "rx_bytes" => status.received = value(key, text)?,
                    "tx_bytes" => status.sent = value(key, text)?,
                    "last_handshake_time_sec" => handshake += Duration::from_secs(value(key, text)?),
                    "last_handshake_time_nsec" => handshake += Duration::from_nanos(value::<u32>(key, text)?.into()),
                    _ => {}
                }
                status.last_handshake =
                    SystemTime::UNIX_EPOCH.checked_add(handshake).filter(|_| handshake != Duration::ZERO);
            }
        }
    }
    match errno {
        Some(errno) => Ok((errno.saturating_abs(), state)),
        None => Err(UapiError::Value { key: "errno".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of <https://www.wireguard.com/xplatform/>.
    const EXAMPLE: &str = "private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a
listen_port=12912
fwmark=0
replace_peers=true
public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
replace_allowed_ips=true
allowed_ip=192.168.4.4/32
endpoint=[abcd:23::33%2]:51820
public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376
replace_allowed_ips=true
allowed_ip=192.168.4.6/32
persistent_keepalive_interval=111
endpoint=182.122.22.19:3233
public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58
remove=true
";

    #[test]
    fn the_example_of_the_protocol_is_understood() {
        let changes: Changes = EXAMPLE.parse().unwrap();
        assert_eq!(changes.listen_port, Some(12912));
        assert!(changes.replace_peers);
        assert_eq!(changes.peers.len(), 3);
        assert_eq!(changes.peers[0].endpoint.unwrap().to_string(), "[abcd:23::33%2]:51820");
        assert_eq!(changes.peers[1].keepalive, Some(111));
        assert!(changes.peers[2].remove);
        assert_eq!(changes.to_string().parse(), Ok(changes));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |text: &str| text.parse::<Changes>().unwrap_err().to_string();
        assert_eq!(refused("listen_port"), "line 1 is not `key=value`");
        assert_eq!(refused("colour=red"), "key `colour` is not known");
        assert_eq!(refused("listen_port=65536"), "value of `listen_port` makes no sense");
        assert_eq!(refused("allowed_ip=10.0.0.0/8"), "`allowed_ip` belongs to a peer, and none is named before it");
        assert_eq!(refused("private_key=secret"), "value of `private_key`");
        let peer = format!("public_key={}\n", "01".repeat(32));
        assert_eq!(refused(&format!("{peer}remove=false")), "value of `remove` makes no sense");
        assert!(refused(&format!("{peer}{peer}")).ends_with("is named twice"));
    }

    #[test]
    fn what_a_device_says_is_understood() {
        let mut state = State::default();
        let mut config: crate::Config = crate::Config::default();
        config.apply(&EXAMPLE.parse().unwrap());
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        for (key, peer) in &config.peers {
            let status = Status { endpoint: peer.endpoint, last_handshake: Some(time), received: 7, sent: 1 << 40 };
            state.status.insert(*key, status);
        }
        state.config = config;
        let text = render(&state, 5);
        assert_eq!(parse_answer(&format!("{text}errno=0\n\n")), Ok((0, state)));
        assert!(parse_answer(&text).is_err(), "cut off");
        assert_eq!(parse_answer("errno=-22\n").unwrap().0, 22);
    }
}
