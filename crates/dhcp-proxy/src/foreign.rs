//! A question without its connection: the way in for `fuzz/`, and for nothing else.

use portolan_dhcp::Place;
use prost::Message as _;

use crate::wire::NetworkConfig;
use crate::{grpc, service};

/// What a frame of HTTP/2's asks for, and where that would be; none of what is no frame.
pub fn question(frame: &[u8]) -> Option<Result<(NetworkConfig, Place), String>> {
    let message = grpc::message(frame)?;
    let config = match NetworkConfig::decode(message) {
        Ok(config) => config,
        Err(error) => return Some(Err(error.to_string())),
    };
    Some(match service::place(&config) {
        Ok(place) => Ok((config, place)),
        Err(status) => Err(grpc::percent(&status.message)),
    })
}
