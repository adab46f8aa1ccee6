//! The elements that say what a network may do.

use ipnet::IpNet;
use portolan_model::{Family, GatewayMode, IfName, Isolate, Network, Protocol};

use super::{NAMES, element, member};
use crate::object::{Chain, Data, Field, Objects};
use crate::set::Set;

/// The gateway addresses that the host itself has, with the prefix length of their subnets.
pub(super) fn gateways(network: &Network) -> Vec<IpNet> {
    let answering = network.subnets.iter().filter(|subnet| network.host_answers(subnet));
    answering
        .filter_map(|subnet| {
            let gateway = subnet.gateway?;
            Some(IpNet::new(gateway, subnet.net.prefix_len()).expect("the prefix of a subnet fits its family"))
        })
        .collect()
}

/// What is to be done between containers of the network.
pub(super) const fn within(network: &Network) -> Data {
    if network.options.icc { Data::Goto(Chain::Allow) } else { Data::Goto(Chain::WithinClosed) }
}

/// Where containers are answered, whichever interface they ask by.
pub(super) fn of_gateways(network: &Network, owner: &str, objects: &mut Objects) {
    for address in gateways(network).iter().map(IpNet::addr) {
        let family = Family::of(address);
        objects.insert(member(Set::Gateways(family), vec![Field::Address(address)], owner));
        if let Some(port) = network.names_port.filter(|_| network.names) {
            objects.insert(member(Set::Redirected(family), vec![Field::Address(address)], owner));
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let key = vec![Field::Protocol(protocol), Field::Address(address), Field::Ports(NAMES, NAMES)];
                objects.insert(element(Set::Port(family), key, Data::AddressPort(address, port), owner));
            }
        }
    }
}

/// What may come in and go out by `device`: the network's bridge, or the host end of one of its containers.
pub(super) fn of_device(network: &Network, device: &IfName, owner: &str, objects: &mut Objects) {
    let device = || Field::IfName(device.clone());
    let gateways = gateways(network);
    if !network.internal && network.options.isolate != Isolate::Strict {
        objects.insert(member(Set::NotStrict, vec![device()], owner));
        if network.options.isolate == Isolate::False {
            objects.insert(member(Set::IsolateFalse, vec![device()], owner));
        }
    }
    for interface in network.options.trusted_host_interfaces.iter().filter(|_| !network.internal) {
        objects.insert(member(Set::Trusted, vec![Field::IfName(interface.clone()), device()], owner));
    }
    for address in gateways.iter().map(IpNet::addr) {
        objects.insert(member(Set::Gateway(Family::of(address)), vec![device(), Field::Address(address)], owner));
    }
    for family in Family::ALL {
        let key = || vec![Field::NfProto(family), device()];
        let mode = network.mode(family);
        if !network.has(family) {
            // A family the network does not speak is closed both ways.
            objects.insert(element(Set::Leave, key(), Data::Drop, owner));
            objects.insert(element(Set::Enter, key(), Data::Drop, owner));
            continue;
        }
        if gateways.iter().any(|net| Family::of(net.addr()) == family) {
            objects.insert(member(Set::Checked, key(), owner));
        }
        if network.internal {
            objects.insert(element(Set::Leave, key(), Data::Drop, owner));
            objects.insert(element(Set::Enter, key(), Data::Drop, owner));
            let to_host = if mode == GatewayMode::Isolated { Data::Drop } else { Data::Goto(Chain::ToHostInternal) };
            objects.insert(element(Set::ToHost, key(), to_host, owner));
            continue;
        }
        let leave = if mode == GatewayMode::Isolated { Data::Drop } else { Data::Goto(Chain::Enter) };
        objects.insert(element(Set::Leave, key(), leave, owner));
        let enter = match mode {
            GatewayMode::Nat => Data::Goto(Chain::EnterNat),
            GatewayMode::NatUnprotected => Data::Goto(Chain::Allow),
            GatewayMode::Routed => Data::Goto(Chain::EnterRouted),
            GatewayMode::Isolated => Data::Drop,
        };
        objects.insert(element(Set::Enter, key(), enter, owner));
        if matches!(mode, GatewayMode::Nat | GatewayMode::NatUnprotected) {
            if let Some(address) = *network.options.snat.of(family) {
                objects.insert(element(Set::Snat(family), vec![device()], Data::Address(address), owner));
            } else if network.options.masquerade {
                objects.insert(member(Set::Masquerade, key(), owner));
            }
        }
    }
}
