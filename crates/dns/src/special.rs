//! Names with a meaning of their own: the host, `localhost`, services, and the domains that are ours.

use crate::names::Transport;
use crate::wire;

/// A name that needs no endpoint.
pub(crate) enum Special {
    Localhost,
    Host,
}

/// Below these, every local name can be asked for: ours first, then Podman's.
pub(crate) const OWN_DOMAINS: [&[u8]; 2] = [b"\x08portolan\x08internal\0", b"\x03dns\x06podman\0"];

/// The host, seen from a container: our name first, then Docker's and Podman's.
pub(crate) const HOST_NAMES: [&[u8]; 4] = [
    b"\x04host\x08internal\0",
    b"\x04host\x06docker\x08internal\0",
    b"\x04host\x0acontainers\x08internal\0",
    b"\x07gateway\x06docker\x08internal\0",
];

pub(crate) fn special(name: &[u8]) -> Option<Special> {
    if HOST_NAMES.contains(&name) {
        return Some(Special::Host);
    }
    let last = wire::label_starts(name).last()?;
    (name[last..] == *b"\x09localhost\0").then_some(Special::Localhost)
}

/// The parts of `_PORT._PROTOCOL.NAME`: NAME with its last zero.
pub(crate) fn service_of(name: &[u8]) -> Option<(Transport, u16, &[u8])> {
    let (port, rest) = first_label(name)?;
    let (protocol, rest) = first_label(rest)?;
    let transport = [Transport::Tcp, Transport::Udp, Transport::Sctp].into_iter().find(|it| it.label() == protocol)?;
    let digits = port.strip_prefix(b"_")?;
    if !digits.iter().all(u8::is_ascii_digit) || digits.starts_with(b"0") || rest.len() < 2 {
        return None;
    }
    Some((transport, std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

fn first_label(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = name.split_first()?;
    rest.split_at_checked(usize::from(len)).filter(|_| len > 0)
}
