//! Podman's containers on networks of the cluster: by netavark's protocol of plugins, where the binary is called as `overlay`, and
//! by ourselves where we are Podman's backend.
//!
//! Such a network is in the host's own root, as for all others who are on it, and not in Podman's.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use portolan_engine::Error;
use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::rtnl::{Family, route};
use portolan_kernel::signals::{self, Signals};
use portolan_netavark::{
    COMPATIBLE, ClusterCall, Failure, Network, PluginInput, StatusBlock, cluster_failure, cluster_network,
    complete_cluster, container_id, join_request, status_block, wanted_network,
};
use serde_json::json;

use crate::cmd::{daemon, netavark};
use crate::context::{Context, Engine};
use crate::output;

/// What Podman calls the driver, and so the program.
pub(crate) const NAME: &str = "overlay";

/// The protocol of plugins that is spoken.
const API: &str = "1.0.0";

/// No call is longer: Podman's are a few kilobytes.
const LONGEST: u64 = 16 << 20;

/// Does what the command line says if the binary was called as a plugin of netavark; the exit status.
pub(crate) fn called() -> Option<i32> {
    let mut words = std::env::args_os();
    if Path::new(&words.next()?).file_name()? != NAME {
        return None;
    }
    // The kernel tells who changed rules by this name (`NFTA_GEN_PROC_NAME`).
    let _ = std::fs::write("/proc/self/comm", portolan_resident::repair::OURS);
    crate::log::start(tracing::Level::WARN);
    let (verb, netns) = (words.next().unwrap_or_default(), words.next().map(PathBuf::from));
    Some(match answer(&verb, netns.as_deref()) {
        Ok(text) => i32::from(output::print(&text).is_err()),
        Err(failure) => {
            let _ = output::print(&failure.to_json());
            1
        }
    })
}

fn answer(verb: &OsStr, netns: Option<&Path>) -> Result<String, Failure> {
    let netns = || netns.ok_or_else(|| Failure::new("the path of the namespace is missing"));
    let text = |value: serde_json::Result<String>| value.expect("plain values serialise");
    match verb.to_str() {
        Some("create") => {
            let network: Network = serde_json::from_slice(&read()?)
                .map_err(|error| Failure::new(format!("JSON Decoding error: {error}")))?;
            Ok(text(serde_json::to_string(&create(network)?)))
        }
        Some("setup") => {
            let call = ClusterCall::parse(&read()?)?;
            Ok(text(serde_json::to_string(&setup(&call.input(), netns()?)?)))
        }
        Some("teardown") => {
            // Whoever is told to stop while a container goes finishes that first: nobody comes back for it.
            let _deaf = Signals::take(&[signals::INTERRUPT, signals::TERM]);
            teardown(&ClusterCall::parse(&read()?)?.input()).map(|()| String::new())
        }
        Some("info") => Ok(json!({"version": COMPATIBLE, "api_version": API}).to_string()),
        _ => Err(Failure::new(format!("{NAME} is a plugin of netavark: it knows create, setup, teardown and info"))),
    }
}

fn read() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    io::stdin().lock().take(LONGEST).read_to_end(&mut text).map_err(|error| Failure::io(&error))?;
    Ok(text)
}

/// The host's own root, in which its cluster is.
fn context() -> Context {
    Context::new("overlay", std::env::var_os("PORTOLAN_ROOT").map(PathBuf::from), false, None)
}

fn engine(context: &Context) -> Result<Engine, Failure> {
    context.engine_for(NAME).map_err(|error| {
        let hint = crate::failure::hint(&error).map(|hint| format!(" ({hint})")).unwrap_or_default();
        Failure::new(format!("{}{hint}", crate::failure::chain(&error)))
    })
}

/// Completes a new network of Podman's; makes the one that it stands for if there is none.
pub(crate) fn create(network: Network) -> Result<Network, Failure> {
    let context = context();
    let engine = engine(&context)?;
    let wanted = wanted_network(&network)?;
    let there = match engine.network(wanted.name.as_str()) {
        Ok(found) => found.network,
        Err(Error::NotFound { .. }) => {
            let starting = daemon::begin(&context);
            daemon::notice_with(&context, starting);
            engine.create_network(&wanted).map_err(|error| cluster_failure(&error))?
        }
        Err(error) => return Err(cluster_failure(&error)),
    };
    if there.overlay.is_none() {
        return Err(Failure::new(format!(
            "network `{}` of this host is none of the cluster ({} network; to be on it nevertheless, give a network of driver \
             bridge the label portolan.network)",
            there.name, there.driver
        )));
    }
    complete_cluster(network, &there)
}

/// Puts a namespace on the network.
pub(crate) fn setup(input: &PluginInput<'_>, netns: &Path) -> Result<StatusBlock, Failure> {
    let context = context();
    let request = join_request(input, netns, has_way_out(netns)?)?;
    let engine = engine(&context)?;
    let starting = daemon::begin(&context);
    let info = netavark::join_as_named(&engine, &request).map_err(|error| cluster_failure(&error))?;
    daemon::settle_with(&context, true, starting);
    status_block(&info, input).ok_or_else(|| Failure::new("the container is not on the network that it was put on"))
}

/// Takes a container off the network.
pub(crate) fn teardown(input: &PluginInput<'_>) -> Result<(), Failure> {
    let Some(called) = cluster_network(input.network) else { return Ok(()) };
    let context = context();
    let engine = engine(&context)?;
    let id = container_id(input.container_id).to_string();
    let info = match engine.container(&id) {
        Ok(info) => info,
        Err(Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(cluster_failure(&error)),
    };
    let on = info.endpoints.iter().map(|(_, network)| network);
    let of_it = on.filter(|network| network.name.as_str() == called || network.id.to_string() == called);
    let ids: Vec<String> = of_it.map(|network| network.id.to_string()).collect();
    engine.leave(&id, &ids).map_err(|error| cluster_failure(&error))?;
    daemon::settle(&context, false);
    Ok(())
}

/// Whether somebody has given the namespace a default route before us.
fn has_way_out(netns: &Path) -> Result<bool, Failure> {
    let failed = |error: String| Failure::new(format!("read the routes of `{}`: {error}", netns.display()));
    let namespace = NetnsFd::open(netns).map_err(|error| failed(error.to_string()))?;
    let look = || {
        let mut socket = Socket::open(ROUTE)?;
        let mut has = false;
        for family in [Family::V4, Family::V6] {
            has |= route::default_route_path(&mut socket, family)?.is_some();
        }
        Ok::<bool, portolan_kernel::netlink::NetlinkError>(has)
    };
    let found = with_netns(&namespace, look).map_err(|error| failed(error.to_string()))?;
    found.map_err(|error| failed(error.to_string()))
}
