//! Published ports: which host ports a request gets, and changing them on a running container.

use std::net::IpAddr;

use portolan_model::{
    ExposedPort, Family, FirewallDriver, HostPorts, Phase, PortRange, Protocol, Publication, PublishSpec,
};
use portolan_plan::{ContainerView, diff, published_endpoint};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::grow::Addition;
use crate::kernel::{Kernel, PortClash};
use crate::store::{Durability, PublicationRow, Store, Tx};

/// How many ephemeral ports are tried before giving up; Docker tries ten.
const EPHEMERAL_TRIES: usize = 64;

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Decides the host ports of `specs` and, with `exposed`, a free one for each exposed port.
    pub(crate) fn plan_publications(
        &self,
        tx: &S::Tx<'_>,
        view: &ContainerView,
        specs: &[PublishSpec],
        exposed: Option<&[ExposedPort]>,
    ) -> Result<Vec<Publication>> {
        let all = exposed.unwrap_or_default().iter().map(|port| PublishSpec {
            protocol: port.protocol,
            host_ip: None,
            host: HostPorts::Ephemeral,
            container: port.ports,
        });
        let mut planned: Vec<Publication> = Vec::new();
        // What was asked for exactly is placed first, so that a free choice cannot take its port.
        let mut specs: Vec<PublishSpec> = specs.iter().cloned().chain(all).collect();
        specs.sort_by_key(|spec| match spec.host {
            HostPorts::Exact(_) => 0,
            HostPorts::FirstFree(_) => 1,
            HostPorts::Ephemeral => 2,
        });
        for mut spec in specs {
            if spec.host_ip.is_none() {
                let leads_to = published_endpoint(view, Family::V4);
                spec.host_ip = leads_to.and_then(|(_, network)| network.options.host_binding);
            }
            if let Some(ip @ IpAddr::V6(v6)) = spec.host_ip
                && v6.is_loopback()
                && spec.protocol == Protocol::Sctp
            {
                return Err(Error::Unsupported {
                    what: format!("publishing SCTP on `{ip}`"),
                    why: "is not possible: no kernel translates from ::1, and the proxy passes on TCP and UDP"
                        .to_owned(),
                    hint: "publish on 127.0.0.1, or on another IPv6 address of the host",
                });
            }
            match spec.host {
                HostPorts::Exact(host) => {
                    let publication =
                        Publication { protocol: spec.protocol, host_ip: spec.host_ip, host, container: spec.container };
                    self.check_free(tx, view, &planned, &publication)?;
                    planned.push(publication);
                }
                HostPorts::FirstFree(range) => {
                    planned.push(self.first_free(tx, view, &planned, &spec, range.ports(), || range.to_string())?);
                }
                HostPorts::Ephemeral => {
                    let (first, last, reserved) = self.kernel.ephemeral_ports();
                    let span = u32::from(last - first) + 1;
                    for container in spec.container.ports() {
                        let random = self.kernel.random();
                        let start = u32::from_le_bytes([random[0], random[1], random[2], random[3]]) % span;
                        let candidates = (0..span.min(EPHEMERAL_TRIES as u32))
                            .map(|step| first + ((start + step) % span) as u16)
                            .filter(|port| !reserved.contains(port));
                        let one = PublishSpec { container: PortRange::single(container)?, ..spec.clone() };
                        let range = || format!("{first}-{last}");
                        planned.push(self.first_free(tx, view, &planned, &one, candidates, range)?);
                    }
                }
            }
        }
        if !planned.is_empty() && self.table(tx)?.driver == FirewallDriver::None {
            tracing::warn!(
                container = %view.container.name,
                "firewall driver `none` has no rules: nothing leads from published ports to the container"
            );
        }
        Ok(planned)
    }

    /// The first of `candidates` that nobody has.
    fn first_free(
        &self,
        tx: &S::Tx<'_>,
        view: &ContainerView,
        planned: &[Publication],
        spec: &PublishSpec,
        candidates: impl Iterator<Item = u16>,
        range: impl Fn() -> String,
    ) -> Result<Publication> {
        for port in candidates {
            let publication = Publication {
                protocol: spec.protocol,
                host_ip: spec.host_ip,
                host: PortRange::single(port)?,
                container: spec.container,
            };
            match self.check_free(tx, view, planned, &publication) {
                Ok(()) => return Ok(publication),
                Err(Error::PortPublished { .. } | Error::PortListening { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::PortsExhausted { range: format!("{}/{}", range(), spec.protocol) })
    }

    /// Checks that no container publishes the ports and no process of the host listens on them.
    fn check_free(
        &self,
        tx: &S::Tx<'_>,
        view: &ContainerView,
        planned: &[Publication],
        publication: &Publication,
    ) -> Result<()> {
        let taken = |holder: String| Error::PortPublished { publication: *publication, holder };
        if planned.iter().any(|other| other.clashes(publication)) {
            return Err(taken(view.container.name.to_string()));
        }
        for row in tx.publications_overlapping(publication.protocol, publication.host)? {
            if row.publication.clashes(publication) {
                let holder = tx.container(row.container)?;
                return Err(taken(
                    holder.map_or_else(|| row.container.short(), |container| container.name.to_string()),
                ));
            }
        }
        let keeper = view.container.port_keeper.as_deref();
        self.kernel.host_ports_free(publication, keeper).map_err(|clash| match clash {
            PortClash::Listening { port, holder } => {
                Error::PortListening { port, protocol: publication.protocol.to_string(), holder }
            }
            PortClash::NotLocal(address) => Error::NotLocal { address },
        })
    }

    /// Publishes more ports of a running container; its connections go on.
    ///
    /// # Errors
    /// As for [`Engine::attach`].
    pub fn publish(&self, container: &str, specs: &[PublishSpec]) -> Result<Vec<Publication>> {
        let guard = self.begin()?;
        let container = self.find_container(&self.store.read()?, container)?;
        self.check_own_stack(&container)?;
        self.make_way(&guard, &[], specs)?;
        let tx = self.store.write(&guard)?;
        let view = self.view(&tx, container)?;
        let had = view.publications.len();
        let mut grown = self.grow(&guard, tx, view, &Addition { publish: specs, ..Addition::default() })?;
        Ok(grown.publications.split_off(had))
    }

    /// Takes published ports of a container back; its other connections go on.
    ///
    /// A spec without a host port means every publication of that container port.
    ///
    /// # Errors
    /// [`Error::NotFound`] names a spec that is not published; nothing has changed then.
    pub fn unpublish(&self, container: &str, specs: &[PublishSpec]) -> Result<Vec<Publication>> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let container = self.find_container(&tx, container)?;
        let mut view = self.view(&tx, container)?;
        let before = self.container_objects(&view);
        let mut gone: Vec<Publication> = Vec::new();
        for spec in specs {
            let matching: Vec<Publication> =
                view.publications.iter().copied().filter(|publication| is_meant(spec, publication)).collect();
            if matching.is_empty() {
                let host = match spec.host {
                    HostPorts::Exact(range) | HostPorts::FirstFree(range) => format!("{range}:"),
                    HostPorts::Ephemeral => String::new(),
                };
                return Err(Error::NotFound {
                    what: "published port",
                    name: format!("{host}{}/{}", spec.container, spec.protocol),
                });
            }
            gone.extend(matching);
        }
        view.publications.retain(|publication| !gone.contains(publication));
        let after = self.container_objects(&view);
        let phase = Phase::Leaving(self.kernel.this_process());
        for publication in &gone {
            tx.put_publication(&PublicationRow { container: view.container.id, publication: *publication, phase })?;
        }
        tx.commit(Durability::Process)?;

        let failures = self.repair(&diff(&after, &before))?;
        if let Some(source) = failures.into_iter().next() {
            return Err(Error::Kernel { doing: format!("unpublish ports of `{}`", view.container.name), source });
        }
        let tx = self.store.write(&guard)?;
        for publication in &gone {
            tx.delete_publication(view.container.id, publication)?;
        }
        tx.commit(Durability::Process)?;
        self.forget_flows(&gone);
        Ok(gone)
    }
}

/// Whether a publication is one that `spec` speaks of.
fn is_meant(spec: &PublishSpec, publication: &Publication) -> bool {
    spec.protocol == publication.protocol
        && spec.container == publication.container
        && spec.host_ip.is_none_or(|ip| publication.host_ip == Some(ip))
        && match spec.host {
            HostPorts::Ephemeral => true,
            HostPorts::Exact(range) => range == publication.host,
            HostPorts::FirstFree(range) => {
                range.first() <= publication.host.first() && publication.host.last() <= range.last()
            }
        }
}
