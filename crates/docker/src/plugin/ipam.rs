//! What Docker asks of its IPAM driver: pools for its networks, of whatever driver, and addresses of them.
//!
//! Docker keeps what it was given, and asks for it anew when it begins (`RequiresRequestReplay`): so what an earlier Docker
//! was given and did not write down before it was killed can be told from what is in use.

use std::net::IpAddr;

use portolan_engine::{AddressRequest, Call, Engine, Kernel, PoolNet, PoolRequest, Store};
use portolan_model::{Family, Id, Mac, Pool};
use serde_json::{Value, json};

use super::network::{self, address};
use super::wire::{
    ADDRESS_SPACE, GATEWAY, MAC_ADDRESS, PoolOnly, REQUEST_TYPE, ReleaseAddress, RequestAddress, RequestPool,
};
use super::{Answer, Done, read, told};
use crate::refusal::Refusal;

/// Options of Docker's own begin like this; ours would not.
const DOCKERS: &str = "com.docker.network.";

/// Does what an IPAM driver is asked; none if there is no such method.
pub(super) fn give<S: Store, K: Kernel>(engine: &Engine<S, K>, verb: &str, body: &[u8]) -> Option<Done> {
    Some(match verb {
        "GetCapabilities" => told(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": true })),
        "GetDefaultAddressSpaces" => told(json!({
            "LocalDefaultAddressSpace": ADDRESS_SPACE,
            "GlobalDefaultAddressSpace": format!("{ADDRESS_SPACE}-global"),
        })),
        "RequestPool" => request_pool(engine, verb, body),
        "ReleasePool" => read::<PoolOnly>(body).and_then(|asked| {
            engine.release_pool(pool_id(&asked.pool)?)?;
            told(json!({}))
        }),
        "RequestAddress" => request_address(engine, verb, body),
        "ReleaseAddress" => read::<ReleaseAddress>(body).and_then(|asked| {
            engine.release_address(pool_id(&asked.pool)?, address(&asked.address)?)?;
            told(json!({}))
        }),
        _ => return None,
    })
}

/// A call with its body. Docker sends one again that got no answer, but with what is left of the body, which is nothing; of
/// several that are under way nobody can tell which one it is.
fn call<'a>(method: &'a str, body: &'a [u8]) -> Result<Call<'a>, Refusal> {
    match std::str::from_utf8(body).map(str::trim) {
        Ok("") => Err(Refusal::new(
            "the call got no answer, and came again without saying what it asks for (hint: try again)",
        )),
        Ok(body) => Ok(Call { method, body }),
        Err(_) => Err(Refusal::new("read the request: it is not UTF-8")),
    }
}

fn request_pool<S: Store, K: Kernel>(engine: &Engine<S, K>, verb: &str, body: &[u8]) -> Done {
    let call = call(verb, body)?;
    let request = pool_request(&read(body)?)?;
    if matches!(request.net, PoolNet::Free(_, None)) {
        // What Docker has it asks for by name.
        settle_claims(engine);
    }
    let given = engine.request_pool(call, &request)?;
    let Pool { id, subnet, .. } = given.what;
    numbered(json!({ "PoolID": id.to_string(), "Pool": subnet.net.to_string(), "Data": {} }), given.number)
}

fn request_address<S: Store, K: Kernel>(engine: &Engine<S, K>, verb: &str, body: &[u8]) -> Done {
    let call = call(verb, body)?;
    let asked: RequestAddress = read(body)?;
    let (pool, request) = (pool_id(&asked.pool)?, address_request(&asked)?);
    if request.address.is_none() && !request.gateway {
        settle_claims(engine);
    }
    let given = engine.request_address(call, pool, &request)?;
    numbered(json!({ "Address": given.what.to_string(), "Data": {} }), given.number)
}

fn numbered(body: Value, number: u64) -> Done {
    told(body).map(|answer| Answer { number: Some(number), ..answer })
}

/// Docker asks for something new, so it has asked for all that it has.
pub(super) fn settle_claims<S: Store, K: Kernel>(engine: &Engine<S, K>) {
    if let Err(error) = engine.end_claims() {
        tracing::warn!("pools and addresses that nobody claims stay: {}", Refusal::from(error));
    }
}

fn pool_id(text: &str) -> Result<Id, Refusal> {
    network::id(text).map_err(|refusal| Refusal::new(format!("pool: {refusal}")))
}

fn pool_request(asked: &RequestPool) -> Result<PoolRequest, Refusal> {
    if ![ADDRESS_SPACE, ""].contains(&asked.address_space.as_str()) {
        let what =
            format!("address space `{}` is not served, but `{ADDRESS_SPACE}`, that of one host", asked.address_space);
        return Err(Refusal::new(format!("{what} (hint: leave out --scope swarm)")));
    }
    if let Some(option) = asked.options.keys().find(|option| !option.starts_with(DOCKERS)) {
        return Err(Refusal::new(format!("IPAM option `{option}` is unknown (hint: leave out --ipam-opt)")));
    }
    let family = if asked.v6 { Family::V6 } else { Family::V4 };
    let net = match asked.pool.as_str() {
        "" => PoolNet::Free(family, None),
        text => {
            let net = network::subnet(text)?;
            if Family::of(net.addr()) != family {
                return Err(Refusal::new(format!("pool {net} is asked for as one of {family}")));
            }
            // `0.0.0.0/24` is any /24.
            match net.addr().is_unspecified() && net.prefix_len() > 0 {
                true => PoolNet::Free(family, Some(net.prefix_len())),
                false => PoolNet::Exactly(net),
            }
        }
    };
    let range = match asked.sub_pool.as_str() {
        "" => None,
        text => Some(network::subnet(text)?.trunc().into()),
    };
    Ok(PoolRequest { net, range })
}

fn address_request(asked: &RequestAddress) -> Result<AddressRequest, Refusal> {
    let wanted: Option<IpAddr> = match asked.address.as_str() {
        "" => None,
        text => Some(address(text)?),
    };
    let mac = asked.options.get(MAC_ADDRESS).filter(|text| !text.is_empty());
    Ok(AddressRequest {
        address: wanted,
        gateway: asked.options.get(REQUEST_TYPE).is_some_and(|kind| kind == GATEWAY),
        mac: mac.map(|text| text.parse::<Mac>()).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> Result<PoolRequest, Refusal> {
        pool_request(&read(text.as_bytes())?)
    }

    #[test]
    fn pools() {
        let free = pool(r#"{"AddressSpace":"portolan","Pool":"","SubPool":"","Options":null,"V6":false}"#).unwrap();
        assert_eq!(free, PoolRequest { net: PoolNet::Free(Family::V4, None), range: None });
        let named = pool(r#"{"AddressSpace":"portolan","Pool":"10.60.0.0/16","SubPool":"10.60.7.0/24"}"#).unwrap();
        assert_eq!(named.net, PoolNet::Exactly("10.60.0.0/16".parse().unwrap()));
        assert_eq!(named.range.unwrap().to_string(), "10.60.7.0/24");
        assert_eq!(pool(r#"{"Pool":"0.0.0.0/20"}"#).unwrap().net, PoolNet::Free(Family::V4, Some(20)));
        assert_eq!(pool(r#"{"Pool":"::/80","V6":true}"#).unwrap().net, PoolNet::Free(Family::V6, Some(80)));
        assert_eq!(pool(r#"{"V6":true}"#).unwrap().net, PoolNet::Free(Family::V6, None));
    }

    #[test]
    fn what_is_no_pool_is_refused() {
        for (text, why) in [
            (r#"{"AddressSpace":"elsewhere"}"#, "elsewhere"),
            (r#"{"Pool":"10.0.0.0"}"#, "is no subnet"),
            (r#"{"Pool":"10.0.0.0/24","V6":true}"#, "IPv6"),
            (r#"{"Pool":"fd00::/64"}"#, "IPv4"),
            (r#"{"Pool":"10.0.0.0/24","SubPool":"many"}"#, "is no subnet"),
            (r#"{"Options":{"colour":"blue"}}"#, "colour"),
            (r#"{"Pool":7}"#, "read the request"),
            (r#"{"V6":"yes"}"#, "read the request"),
        ] {
            let refusal = pool(text).unwrap_err().to_string();
            assert!(refusal.contains(why), "{text}: {refusal}");
        }
    }

    #[test]
    fn addresses() {
        let read = |text: &str| address_request(&read::<RequestAddress>(text.as_bytes()).unwrap());
        assert_eq!(read(r#"{"PoolID":"x","Address":"","Options":null}"#).unwrap(), AddressRequest::default());
        let gateway =
            r#"{"PoolID":"x","Address":"10.0.0.9","Options":{"RequestAddressType":"com.docker.network.gateway"}}"#;
        let gateway = read(gateway).unwrap();
        assert!(gateway.gateway && gateway.address == Some("10.0.0.9".parse().unwrap()));
        let mac = read(r#"{"PoolID":"x","Options":{"com.docker.network.endpoint.macaddress":"02:42:00:00:00:09"}}"#);
        assert_eq!(mac.unwrap().mac, Some("02:42:00:00:00:09".parse().unwrap()));
        assert!(read(r#"{"PoolID":"x","Address":"ten"}"#).is_err());
        assert!(read(r#"{"PoolID":"x","Options":{"com.docker.network.endpoint.macaddress":"ten"}}"#).is_err());
    }

    #[test]
    fn a_call_without_its_body_says_nothing() {
        assert!(call("RequestPool", b" \n").unwrap_err().to_string().contains("try again"));
        assert_eq!(call("RequestPool", b"{}\n").unwrap().body, "{}");
        assert!(call("RequestPool", b"\xff").is_err());
    }
}
