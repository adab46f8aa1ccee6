//! A device of the library, changed in place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gotatun::device::configure::PeerStats;
use gotatun::device::{self, Device, DeviceBuilder};
use gotatun::x25519;
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use tokio::sync::Mutex;

use super::tun::{Tun, TunReader, TunWriter};
use super::{EINVAL, EIO, udp};
use crate::{Changes, Config, Peer, PublicKey, State, Status, uapi};

type Transports = (udp::Factory, TunWriter, TunReader);

/// How long somebody may take to answer a greeting; the library goes on trying for itself.
const GREETING: Duration = Duration::from_secs(5);

/// What the device was set to, beside the library's own: that one does not say who had a range before.
struct Known {
    config: Config,
    mark: u32,
}

/// A device and what it was set to.
pub(super) struct WgDevice {
    device: Arc<Device<Transports>>,
    known: Mutex<Known>,
    gone: Mutex<tokio::sync::watch::Receiver<bool>>,
}

fn point(key: &PublicKey) -> x25519::PublicKey {
    x25519::PublicKey::from(*key.as_bytes())
}

fn network(range: &IpNet) -> Option<IpNetwork> {
    IpNetwork::new(range.network(), range.prefix_len()).ok()
}

impl WgDevice {
    /// A device without a key, which carries nothing.
    pub(super) async fn new(tun: Tun) -> Result<Self, device::Error> {
        let gone = Mutex::new(tun.gone());
        let (writer, reader) = tun.into_halves();
        let device = DeviceBuilder::new().with_udp(udp::Factory::new()).with_ip_pair(writer, reader).build().await?;
        Ok(Self { device: Arc::new(device), known: Mutex::new(Known { config: Config::default(), mark: 0 }), gone })
    }

    /// Comes back when the interface is gone.
    pub(super) async fn wait(&self) {
        // The sender goes with the interface's reader.
        let _ = self.gone.lock().await.wait_for(|gone| *gone).await;
    }

    /// Its state as text.
    pub(super) async fn get(&self) -> String {
        let known = self.known.lock().await;
        let (port, peers) = self.device.read(async |device| (device.listen_port(), device.peers().await)).await;
        let mut state = State { config: known.config.clone(), status: BTreeMap::new() };
        state.config.listen_port = port;
        for PeerStats { peer, stats, .. } in peers {
            let status = Status {
                endpoint: peer.endpoint,
                last_handshake: stats.last_handshake.and_then(|ago| SystemTime::now().checked_sub(ago)),
                received: stats.rx_bytes as u64,
                sent: stats.tx_bytes as u64,
            };
            state.status.insert(PublicKey::from(peer.public_key.to_bytes()), status);
        }
        uapi::render(&state, known.mark)
    }

    /// Makes changes; 0 or the number of an error.
    pub(super) async fn set(&self, changes: &Changes) -> i32 {
        let mut known = self.known.lock().await;
        let mut wanted = known.config.clone();
        wanted.apply(changes);
        if !wanted.peers.is_empty() && wanted.private_key.is_none() {
            return EINVAL;
        }
        let old_port = self.device.read(async |device| device.listen_port()).await;
        // Before the socket that there is is closed.
        if let Some(port) = changes.listen_port.filter(|port| ![0, old_port].contains(port))
            && let Err(error) = udp::try_port(port)
        {
            tracing::warn!(%error, port, "cannot listen");
            return error.raw_os_error().unwrap_or(EIO);
        }
        match self.make(&known.config, &wanted, changes).await {
            Ok(()) => {
                for (key, peer) in wanted.peers.iter().filter(|(_, peer)| peer.endpoint.is_some()) {
                    let is_as_before = |old: &Peer| old.endpoint == peer.endpoint && old.preshared == peer.preshared;
                    if !known.config.peers.get(key).is_some_and(is_as_before) {
                        self.greet(point(key));
                    }
                }
                known.config = wanted;
                known.mark = changes.mark.unwrap_or(known.mark);
                0
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen");
                // The library has closed the socket it had.
                if let Err(error) = self.device.set_listen_port(old_port).await {
                    tracing::error!(%error, "cannot listen at the port from before either");
                }
                errno(&error)
            }
        }
    }

    /// Agrees on keys with a peer that is new, or is somewhere else, unless that is done. To it we may not be new: it would go on with
    /// the keys of a worker that died until it has heard nothing for 15 seconds (whitepaper §6.2).
    fn greet(&self, key: x25519::PublicKey) {
        let device = Arc::clone(&self.device);
        tokio::spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(GREETING, device.force_handshake(&key)).await {
                tracing::debug!(%error, "cannot greet a peer");
            }
        });
    }

    async fn make(&self, from: &Config, to: &Config, changes: &Changes) -> Result<(), device::Error> {
        self.device
            .write(async |device| {
                if let Some(key) = &changes.private_key {
                    device.set_private_key(x25519::StaticSecret::from(*key.as_bytes())).await;
                }
                if let Some(port) = changes.listen_port {
                    device.set_listen_port(port);
                }
                if let Some(mark) = changes.mark {
                    device.set_fwmark(mark)?;
                }
                if changes.replace_peers {
                    device.clear_peers();
                }
                for key in from.peers.keys().filter(|key| !to.peers.contains_key(key)) {
                    device.remove_peer(&point(key)).await;
                }
                // Whoever loses a range first: the library would take it from its next owner.
                let gains = |key: &PublicKey, peer: &Peer| {
                    from.peers.get(key).is_none_or(|old| !peer.allowed.is_subset(&old.allowed))
                };
                let (gaining, losing): (Vec<_>, Vec<_>) = to.peers.iter().partition(|(key, peer)| gains(key, peer));
                for (key, peer) in losing.into_iter().chain(gaining) {
                    let endpoint =
                        changes.peers.iter().find(|change| change.key == *key).and_then(|peer| peer.endpoint);
                    let preshared = peer.preshared.as_ref().map(|preshared| *preshared.as_bytes());
                    let ranges = peer.allowed.iter().filter_map(network);
                    let old = from.peers.get(key).filter(|_| !changes.replace_peers);
                    if let Some(old) = old {
                        let change = |known: &mut device::configure::PeerMut| {
                            if old.preshared != peer.preshared {
                                known.set_preshared_key(preshared);
                            }
                            if old.keepalive != peer.keepalive {
                                known.set_keepalive(peer.keepalive);
                            }
                            if let Some(endpoint) = endpoint {
                                known.set_endpoint(Some(endpoint));
                            }
                            known.clear_allowed_ips();
                            known.add_allowed_ips(ranges);
                        };
                        if old != peer || endpoint.is_some() {
                            device.modify_peer(&point(key), change).await;
                        }
                    } else {
                        let mut new = device::Peer::new(point(key)).with_allowed_ips(ranges);
                        new.endpoint = peer.endpoint;
                        new.preshared_key = preshared;
                        new.keepalive = peer.keepalive;
                        device.add_peer(new);
                    }
                }
                Ok(())
            })
            .await?
    }
}

fn errno(error: &device::Error) -> i32 {
    match error {
        device::Error::IoError(source) | device::Error::Bind(source, _) => source.raw_os_error().unwrap_or(EIO),
        _ => EIO,
    }
}
