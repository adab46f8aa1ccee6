//! The kernel's own devices (drivers/net/wireguard, Linux 5.6): made by rtnetlink, configured by the generic netlink family
//! `wireguard` (include/uapi/linux/wireguard.h).

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use netlink_bindings::nlctrl::OpGetfamilyDo;
use netlink_bindings::wireguard::{
    IterableWgdevice, IterableWgpeer, OpGetDeviceDump, OpSetDeviceDo, PushWgpeer, WgallowedipFlags, WgdeviceFlags,
    WgpeerFlags,
};
use portolan_kernel::netlink::{Batch, GENERIC, NetlinkError, ROUTE, Socket};
use portolan_kernel::netns::{NetnsError, NetnsFd, with_netns};
use portolan_kernel::rtnl::link::{self, LinkChange};

use crate::{Changes, Config, Device, Peer, PeerChange, PresharedKey, PrivateKey, PublicKey, State, Status};

const KIND: &str = "wireguard";
/// `GENL_ID_CTRL`, include/uapi/linux/genetlink.h.
const CONTROLLER: u16 = 0x10;
/// The list of peers is one attribute, which ends at 64 KiB.
const LARGEST: usize = 32 << 10;
/// A peer with more ranges is sent in pieces.
const RANGES: usize = 128;
/// Bytes of a peer without its ranges, and of a range, at most: attributes with their headers.
const PEER: usize = 160;
const RANGE: usize = 56;

/// What carries the packets of a host's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The kernel has WireGuard.
    Kernel,
    /// It has not: a [`worker`](crate::worker) is needed.
    User,
}

/// Why the kernel does not carry a device.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No scratch namespace to try it in.
    #[error("try a link of kind `wireguard`")]
    Scratch(#[source] NetnsError),
    /// Whether it can is not known.
    #[error("try a link of kind `wireguard`")]
    Probe(#[source] NetlinkError),
    /// The kernel has no WireGuard.
    #[error("kernel has no WireGuard (module `wireguard`)")]
    Unsupported,
    /// No interface.
    #[error("create wireguard `{name}`")]
    Create {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// Something else has the name.
    #[error("`{name}` is of kind {kind}, wireguard is wanted")]
    Kind {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// No interface of that name.
    #[error("no interface `{name}`")]
    Missing {
        /// Its name.
        name: String,
    },
    /// It was not asked, or does not answer.
    #[error("ask wireguard `{name}`")]
    Get {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// It refuses.
    #[error("configure wireguard `{name}`")]
    Set {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// It was not removed.
    #[error("remove wireguard `{name}`")]
    Remove {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: NetlinkError,
    },
}

/// Tries to make a device, in a network namespace that goes away afterwards. The kernel loads the module for it if it can.
///
/// # Errors
/// [`KernelError::Scratch`] where namespaces cannot be made, [`KernelError::Probe`] when the kernel refuses for another
/// reason than not knowing the kind.
pub fn probe() -> Result<Carrier, KernelError> {
    let scratch = NetnsFd::create().map_err(KernelError::Scratch)?;
    let tried = with_netns(&scratch, || {
        let mut batch = Batch::new();
        link::create_plain(&mut batch, "probe0", KIND, None);
        Socket::open(ROUTE)?.transact(&batch)
    });
    match tried.map_err(KernelError::Scratch)? {
        Ok(_) => Ok(Carrier::Kernel),
        Err(error) if portolan_kernel::probe::is_unsupported(&error) => Ok(Carrier::User),
        Err(error) => Err(KernelError::Probe(error)),
    }
}

/// A device of the kernel, in the network namespace that it was made or opened in.
#[derive(Debug)]
pub struct Link {
    name: String,
    route: Socket,
    generic: Socket,
    family: u16,
}

impl Link {
    /// Makes the interface, up, in the calling thread's namespace, or takes the one that is there.
    ///
    /// # Errors
    /// [`KernelError::Unsupported`], [`KernelError::Create`], [`KernelError::Kind`].
    pub fn create(name: &str, mtu: u32) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Create { name: name.into(), source };
        let mut route = Socket::open(ROUTE).map_err(failed)?;
        let mut batch = Batch::new();
        link::create_plain(&mut batch, name, KIND, Some(mtu));
        match route.transact(&batch) {
            Ok(_) => {}
            Err(error) if error.is_exists() => {}
            Err(error) if portolan_kernel::probe::is_unsupported(&error) => return Err(KernelError::Unsupported),
            Err(error) => return Err(failed(error)),
        }
        let mut device = Self::with_socket(name, route)?;
        let mut batch = Batch::new();
        link::set(&mut batch, name, &LinkChange { up: Some(true), mtu: Some(mtu), ..LinkChange::default() });
        device.route.transact(&batch).map_err(failed)?;
        Ok(device)
    }

    /// The interface of that name in the calling thread's namespace.
    ///
    /// # Errors
    /// [`KernelError::Missing`], [`KernelError::Kind`], [`KernelError::Get`].
    pub fn open(name: &str) -> Result<Self, KernelError> {
        let route = Socket::open(ROUTE).map_err(|source| KernelError::Get { name: name.into(), source })?;
        Self::with_socket(name, route)
    }

    fn with_socket(name: &str, mut route: Socket) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Get { name: name.into(), source };
        match link::lookup(&mut route, name).map_err(failed)? {
            None => return Err(KernelError::Missing { name: name.into() }),
            Some(link) if link.kind.as_deref() == Some(KIND) => {}
            Some(link) => {
                let kind = link.kind.unwrap_or_else(|| "hardware".into());
                return Err(KernelError::Kind { name: name.into(), kind });
            }
        }
        let mut generic = Socket::open(GENERIC).map_err(failed)?;
        let family = family(&mut generic).map_err(failed)?.ok_or(KernelError::Unsupported)?;
        Ok(Self { name: name.into(), route, generic, family })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes the interface.
    ///
    /// # Errors
    /// [`KernelError::Remove`].
    pub fn remove(mut self) -> Result<(), KernelError> {
        let mut batch = Batch::new();
        link::delete(&mut batch, self.name.as_str());
        match self.route.transact(&batch) {
            Ok(_) => Ok(()),
            Err(source) => Err(KernelError::Remove { name: self.name, source }),
        }
    }
}

/// The number of the family, if the kernel has it.
fn family(socket: &mut Socket) -> Result<Option<u16>, NetlinkError> {
    let reply = socket.query_one(CONTROLLER, 0, |buf| {
        OpGetfamilyDo::encode_request(buf).push_family_name_bytes(KIND.as_bytes());
    })?;
    Ok(reply.and_then(|reply| OpGetfamilyDo::decode_request(&reply.payload).get_family_id().ok()))
}

impl Device for Link {
    type Error = KernelError;

    fn get(&mut self) -> Result<State, KernelError> {
        let name = self.name.clone();
        let messages = self.generic.dump_all(
            self.family,
            0,
            |buf| {
                OpGetDeviceDump::encode_request(buf).push_ifname_bytes(name.as_bytes());
            },
            |_, payload| Some(payload.to_vec()),
        );
        let messages = messages.map_err(|source| KernelError::Get { name, source })?;
        let mut state = State::default();
        for message in &messages {
            read(&mut state, OpGetDeviceDump::decode_request(message));
        }
        Ok(state)
    }

    fn set(&mut self, changes: &Changes) -> Result<(), KernelError> {
        let mut changes = changes.clone();
        // Linux before 6.16 cannot take a range away, and passes over the flag that says so.
        if changes.peers.iter().any(|peer| !peer.disallow.is_empty()) {
            replace_ranges(&mut changes, &self.get()?.config);
        }
        let mut batch = Batch::new();
        for message in write(&self.name, &changes) {
            batch.message(self.family, 0, |buf| buf.extend_from_slice(&message));
        }
        match self.generic.transact(&batch) {
            Ok(_) => Ok(()),
            Err(source) => Err(KernelError::Set { name: self.name.clone(), source }),
        }
    }
}

/// Says the same without taking ranges away one by one.
fn replace_ranges(changes: &mut Changes, known: &Config) {
    let given: BTreeSet<IpNet> = changes.peers.iter().flat_map(|peer| &peer.allow).copied().collect();
    for change in changes.peers.iter_mut().filter(|change| !change.disallow.is_empty()) {
        let old = known.peers.get(&change.key).filter(|_| !change.replace_allowed);
        let stays = old.into_iter().flat_map(|peer| peer.allowed.difference(&change.disallow));
        change.allow.extend(stays.filter(|range| !given.contains(range)));
        change.replace_allowed = true;
        change.disallow.clear();
    }
}

/// A part of what becomes of a peer: only the first says more than ranges.
struct Piece<'a> {
    change: &'a PeerChange,
    is_first: bool,
    ranges: Vec<(IpNet, bool)>,
}

fn pieces(change: &PeerChange) -> Vec<Piece<'_>> {
    let removed = change.disallow.iter().map(|range| (*range, true));
    let ranges: Vec<(IpNet, bool)> = removed.chain(change.allow.iter().map(|range| (*range, false))).collect();
    if ranges.is_empty() || change.remove {
        return vec![Piece { change, is_first: true, ranges: Vec::new() }];
    }
    let parts = ranges.chunks(RANGES).enumerate();
    parts.map(|(at, ranges)| Piece { change, is_first: at == 0, ranges: ranges.to_vec() }).collect()
}

/// Messages that make the changes, each small enough. What is of the device comes with the first.
fn write(name: &str, changes: &Changes) -> Vec<Vec<u8>> {
    let pieces: Vec<Piece<'_>> = changes.peers.iter().flat_map(pieces).collect();
    let mut rest = &pieces[..];
    let mut messages = Vec::new();
    while messages.is_empty() || !rest.is_empty() {
        let mut size = 0;
        let fits = rest.iter().take_while(|piece| {
            size += PEER + RANGE * piece.ranges.len();
            size <= LARGEST
        });
        let (now, later) = rest.split_at(fits.count());
        rest = later;
        let mut message = Vec::new();
        let mut device = OpSetDeviceDo::encode_request(&mut message).push_ifname_bytes(name.as_bytes());
        if messages.is_empty() {
            if let Some(key) = &changes.private_key {
                device = device.push_private_key(key.as_bytes());
            }
            if changes.replace_peers {
                device = device.push_flags(WgdeviceFlags::ReplacePeers as u32);
            }
            if let Some(port) = changes.listen_port {
                device = device.push_listen_port(port);
            }
            if let Some(mark) = changes.mark {
                device = device.push_fwmark(mark);
            }
        }
        if now.is_empty() {
            drop(device);
        } else {
            let mut peers = device.array_peers();
            for piece in now {
                peers = write_peer(peers.entry_nested(), piece).end_nested();
            }
            drop(peers.end_array());
        }
        messages.push(message);
    }
    messages
}

fn write_peer<P: netlink_bindings::traits::Pusher>(mut peer: PushWgpeer<P>, piece: &Piece<'_>) -> PushWgpeer<P> {
    let change = piece.change;
    peer = peer.push_public_key(change.key.as_bytes());
    if piece.is_first {
        let mut flags = 0;
        for (is_set, flag) in [
            (change.remove, WgpeerFlags::RemoveMe),
            (change.replace_allowed, WgpeerFlags::ReplaceAllowedips),
            (change.update_only, WgpeerFlags::UpdateOnly),
        ] {
            if is_set {
                flags |= flag as u32;
            }
        }
        if flags != 0 {
            peer = peer.push_flags(flags);
        }
        if change.remove {
            return peer;
        }
        if let Some(preshared) = &change.preshared {
            let none = PresharedKey::from([0; 32]);
            peer = peer.push_preshared_key(preshared.as_ref().unwrap_or(&none).as_bytes());
        }
        if let Some(endpoint) = change.endpoint {
            peer = peer.push_endpoint(endpoint);
        }
        if let Some(seconds) = change.keepalive {
            peer = peer.push_persistent_keepalive_interval(seconds);
        }
    } else {
        peer = peer.push_flags(WgpeerFlags::UpdateOnly as u32);
    }
    if piece.ranges.is_empty() {
        return peer;
    }
    let mut ranges = peer.array_allowedips();
    for (range, is_removed) in &piece.ranges {
        let family = portolan_kernel::rtnl::Family::of(range.addr()).number();
        let mut entry = ranges
            .entry_nested()
            .push_family(family.into())
            .push_ipaddr(range.network())
            .push_cidr_mask(range.prefix_len());
        if *is_removed {
            entry = entry.push_flags(WgallowedipFlags::RemoveMe as u32);
        }
        ranges = entry.end_nested();
    }
    ranges.end_array()
}

/// Takes one message of a dump; a peer that did not fit goes on in the next.
fn read(state: &mut State, device: IterableWgdevice<'_>) {
    let key = |bytes: &[u8]| <[u8; 32]>::try_from(bytes).ok();
    if let Some(private) = device.get_private_key().ok().and_then(key).filter(|bytes| *bytes != [0; 32]) {
        state.config.private_key = Some(PrivateKey::from(private));
    }
    if let Ok(port) = device.get_listen_port() {
        state.config.listen_port = port;
    }
    let Ok(peers) = device.get_peers() else { return };
    for entry in peers {
        let Some(public) = entry.get_public_key().ok().and_then(key).map(PublicKey::from) else { continue };
        let is_new = !state.config.peers.contains_key(&public);
        let peer = state.config.peers.entry(public).or_default();
        if is_new {
            state.status.insert(public, read_peer(peer, &entry));
        }
        let Ok(ranges) = entry.get_allowedips() else { continue };
        for range in ranges {
            let (Ok(address), Ok(len)) = (range.get_ipaddr(), range.get_cidr_mask()) else { continue };
            peer.allowed.extend(IpNet::new(address, len));
        }
    }
}

fn read_peer(peer: &mut Peer, entry: &IterableWgpeer<'_>) -> Status {
    let preshared = entry.get_preshared_key().ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    peer.preshared = preshared.map(PresharedKey::from).filter(|preshared| !preshared.is_none());
    peer.endpoint = entry.get_endpoint().ok();
    peer.keepalive = entry.get_persistent_keepalive_interval().ok().filter(|seconds| *seconds != 0);
    let since = entry.get_last_handshake_time().ok().map(|time| (time.sec, time.nsec));
    let since = since.map(|(sec, nsec)| Duration::from_secs(sec).saturating_add(Duration::from_nanos(nsec)));
    Status {
        endpoint: peer.endpoint,
        last_handshake: since
            .filter(|since| !since.is_zero())
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
        received: entry.get_rx_bytes().unwrap_or_default(),
        sent: entry.get_tx_bytes().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from([byte; 32])
    }

    fn ranges(count: u8) -> BTreeSet<IpNet> {
        let v4 = (0..count).map(|n| format!("10.{n}.0.0/16").parse().unwrap());
        let v6 = (0..count).map(|n| format!("fd00:{n}::/32").parse().unwrap());
        v4.chain(v6).collect()
    }

    #[test]
    fn messages_are_as_the_header_file_says() {
        let mut changes = Changes { listen_port: Some(0x1234), ..Changes::default() };
        changes.peers.push(PeerChange {
            endpoint: Some("10.0.0.1:51820".parse().unwrap()),
            keepalive: Some(25),
            allow: ["10.1.0.0/16".parse().unwrap()].into(),
            ..PeerChange::new(key(7))
        });
        changes.peers.push(PeerChange { remove: true, ..PeerChange::new(key(8)) });
        let messages = write("wg0", &changes);
        let le = cfg!(target_endian = "little");
        assert!(le, "the bytes below are of little endian machines");
        let public = |byte: u8| [&[36, 0, 1, 0][..], &[byte; 32]].concat();
        let expected: Vec<u8> = [
            &[1, 1, 0, 0][..],                             // WG_CMD_SET_DEVICE, version 1
            &[8, 0, 2, 0, b'w', b'g', b'0', 0],            // WGDEVICE_A_IFNAME
            &[6, 0, 6, 0, 0x34, 0x12, 0, 0],               // WGDEVICE_A_LISTEN_PORT
            &[152, 0, 8, 0x80],                            // WGDEVICE_A_PEERS, nested
            &[100, 0, 0, 0x80],                            // the first
            &public(7),                                    // WGPEER_A_PUBLIC_KEY
            &[20, 0, 4, 0, 2, 0, 0xca, 0x6c, 10, 0, 0, 1], // WGPEER_A_ENDPOINT: sockaddr_in
            &[0; 8],                                       // its sin_zero
            &[6, 0, 5, 0, 25, 0, 0, 0],                    // WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL
            &[32, 0, 9, 0x80],                             // WGPEER_A_ALLOWEDIPS, nested
            &[28, 0, 0, 0x80],                             // the first
            &[6, 0, 1, 0, 2, 0, 0, 0],                     // WGALLOWEDIP_A_FAMILY: AF_INET
            &[8, 0, 2, 0, 10, 1, 0, 0],                    // WGALLOWEDIP_A_IPADDR
            &[5, 0, 3, 0, 16, 0, 0, 0],                    // WGALLOWEDIP_A_CIDR_MASK
            &[48, 0, 1, 0x80],                             // the second
            &public(8),                                    // WGPEER_A_PUBLIC_KEY
            &[8, 0, 3, 0, 1, 0, 0, 0],                     // WGPEER_A_FLAGS: WGPEER_F_REMOVE_ME
        ]
        .concat();
        assert_eq!(messages, [expected]);
    }

    #[test]
    fn what_is_written_is_read_again_in_pieces_too() {
        let mut config =
            Config { private_key: Some(PrivateKey::from([5; 32])), listen_port: 51820, ..Config::default() };
        for number in 1..=200 {
            let peer = Peer {
                preshared: (number % 2 == 0).then(|| PresharedKey::from([number; 32])),
                endpoint: Some(format!("[fd00::{number:x}]:51820").parse().unwrap()),
                allowed: if number == 7 { ranges(200) } else { BTreeSet::new() },
                keepalive: (number % 3 == 0).then_some(25),
            };
            config.peers.insert(key(number), peer);
        }
        let messages = write("wg0", &crate::changes(&Config::default(), &config));
        assert!(messages.len() > 1);
        let mut state = State::default();
        for message in &messages {
            assert!(message.len() < 1 << 16, "{}", message.len());
            read(&mut state, OpSetDeviceDo::decode_request(message));
        }
        assert_eq!(state.config, config);
    }

    #[test]
    fn ranges_are_replaced_where_they_cannot_be_taken_away() {
        let range = |text: &str| text.parse::<IpNet>().unwrap();
        let peer = |texts: &[&str]| Peer { allowed: texts.iter().map(|text| range(text)).collect(), ..Peer::default() };
        let from = Config {
            peers: [(key(1), peer(&["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"])), (key(2), peer(&[]))].into(),
            ..Config::default()
        };
        let to = Config {
            peers: [(key(1), peer(&["10.1.0.0/16"])), (key(2), peer(&["10.2.0.0/16"]))].into(),
            ..Config::default()
        };
        let mut changes = crate::changes(&from, &to);
        replace_ranges(&mut changes, &from);
        assert!(changes.peers.iter().all(|peer| peer.disallow.is_empty()));
        for order in [false, true] {
            if order {
                changes.peers.reverse();
            }
            let mut reached = from.clone();
            reached.apply(&changes);
            assert_eq!(reached, to, "{changes}");
        }
    }
}
