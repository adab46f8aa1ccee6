//! Go's `net/rpc` over HTTP, and the messages of the daemon: a call has a header and its arguments, an answer a header and
//! what it is.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use portolan_cni::{Ip, Route, Success};

use super::gob::{Decoder, Encoder, Kind, Malformed, Shape, Value};
use crate::ipam::reason;

/// What a caller says first (net/rpc, `DialHTTP`), and what it is answered.
pub(super) const HELLO: &str = "CONNECT /_goRPC_ HTTP/1.0\n\n";
pub(super) const CONNECTED: &str = "HTTP/1.0 200 Connected to Go RPC\n\n";
/// Neither head is longer.
pub(super) const LONGEST_HEAD: usize = 4 << 10;

/// Methods of the original's daemon.
pub(super) const ALLOCATE: &str = "DHCP.Allocate";
pub(super) const RELEASE: &str = "DHCP.Release";
/// Methods of ours alone: which lease is held, giving back those of whom nobody lists, and whether a configuration would do.
pub(super) const HELD: &str = "DHCP.Held";
pub(super) const COLLECT: &str = "DHCP.Collect";
pub(super) const STATUS: &str = "DHCP.Status";

/// How long an answer may take: a server may be silent for minutes before the daemon gives up.
const PATIENCE: Duration = Duration::from_secs(600);

static REQUEST: Shape = Shape { name: "Request", fields: &[("ServiceMethod", Kind::Text), ("Seq", Kind::Uint)] };
static RESPONSE: Shape =
    Shape { name: "Response", fields: &[("ServiceMethod", Kind::Text), ("Seq", Kind::Uint), ("Error", Kind::Text)] };
/// `skel.CmdArgs`.
static ARGUMENTS: Shape = Shape {
    name: "CmdArgs",
    fields: &[
        ("ContainerID", Kind::Text),
        ("Netns", Kind::Text),
        ("IfName", Kind::Text),
        ("Args", Kind::Text),
        ("Path", Kind::Text),
        ("StdinData", Kind::Bytes),
    ],
};
static NET: Shape = Shape { name: "IPNet", fields: &[("IP", Kind::Bytes), ("Mask", Kind::Bytes)] };
static IP: Shape = Shape { name: "IPConfig", fields: &[("Address", Kind::Struct(&NET)), ("Gateway", Kind::Bytes)] };
static ROUTE: Shape =
    Shape { name: "Route", fields: &[("Dst", Kind::Struct(&NET)), ("GW", Kind::Bytes), ("Scope", Kind::Int)] };
/// `types100.Result`, as far as a lease fills it.
static RESULT: Shape = Shape {
    name: "Result",
    fields: &[("IPs", Kind::List(&Kind::Struct(&IP))), ("Routes", Kind::List(&Kind::Struct(&ROUTE)))],
};
/// `struct{}`.
static NOTHING: Shape = Shape { name: "", fields: &[] };

/// What is asked for: a call of the plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) container: String,
    pub(super) netns: String,
    pub(super) ifname: String,
    /// `CNI_ARGS`.
    pub(super) args: String,
    /// `CNI_PATH`.
    pub(super) path: String,
    /// The configuration.
    pub(super) text: Vec<u8>,
}

impl Arguments {
    pub(super) fn read(value: &Value) -> Result<Self, Malformed> {
        Ok(Self {
            container: value.text("ContainerID")?,
            netns: value.text("Netns")?,
            ifname: value.text("IfName")?,
            args: value.text("Args")?,
            path: value.text("Path")?,
            text: value.bytes("StdinData")?.to_vec(),
        })
    }

    fn value(&self) -> Value {
        let text = |text: &String| Value::Text(text.clone());
        Value::of([
            ("ContainerID", text(&self.container)),
            ("Netns", text(&self.netns)),
            ("IfName", text(&self.ifname)),
            ("Args", text(&self.args)),
            ("Path", text(&self.path)),
            ("StdinData", Value::Bytes(self.text.clone())),
        ])
    }
}

/// The header of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) number: u64,
}

impl Request {
    pub(super) fn read(value: &Value) -> Result<Self, Malformed> {
        Ok(Self { method: value.text("ServiceMethod")?, number: value.uint("Seq")? })
    }

    fn encode(&self, arguments: &Arguments, encoder: &mut Encoder) -> Vec<u8> {
        let head = [("ServiceMethod", Value::Text(self.method.clone())), ("Seq", Value::Uint(self.number))];
        let mut bytes = encoder.encode(&REQUEST, &Value::of(head));
        bytes.extend(encoder.encode(&ARGUMENTS, &arguments.value()));
        bytes
    }

    /// The answer: a lease, nothing, or why not.
    pub(super) fn answer(&self, answer: Result<Option<Success>, String>, encoder: &mut Encoder) -> Vec<u8> {
        let error = answer.as_ref().err().cloned().unwrap_or_default();
        let head = [
            ("ServiceMethod", Value::Text(self.method.clone())),
            ("Seq", Value::Uint(self.number)),
            ("Error", Value::Text(error)),
        ];
        let mut bytes = encoder.encode(&RESPONSE, &Value::of(head));
        bytes.extend(match answer {
            Ok(Some(success)) => encoder.encode(&RESULT, &result(&success)),
            Ok(None) | Err(_) => encoder.encode(&NOTHING, &Value::of([])),
        });
        bytes
    }
}

fn result(success: &Success) -> Value {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => Value::Bytes(ip.octets().to_vec()),
        IpAddr::V6(ip) => Value::Bytes(ip.octets().to_vec()),
    };
    let optional = |ip: Option<IpAddr>| ip.map_or(Value::Bytes(Vec::new()), address);
    let net = |net: IpNet| Value::of([("IP", address(net.addr())), ("Mask", address(net.netmask()))]);
    let ip = |ip: &Ip| Value::of([("Address", net(ip.address)), ("Gateway", optional(ip.gateway))]);
    let route = |route: &Route| {
        let scope = route.scope.map_or(0, i64::from);
        Value::of([("Dst", net(route.dst)), ("GW", optional(route.gw)), ("Scope", Value::Int(scope))])
    };
    Value::of([
        ("IPs", Value::List(success.ips.iter().map(ip).collect())),
        ("Routes", Value::List(success.routes.iter().map(route).collect())),
    ])
}

pub(super) fn success(value: &Value) -> Result<Success, Malformed> {
    let empty = Value::of([]);
    let net = |of: &Value, name| {
        let net = of.field(name).unwrap_or(&empty);
        let (ip, mask) = (address(net.bytes("IP")?)?, address(net.bytes("Mask")?)?);
        let (Some(ip), Some(mask)) = (ip, mask) else { return Err(Malformed("a net without address or mask")) };
        IpNet::with_netmask(ip, mask).map_err(|_| Malformed("a mask with holes"))
    };
    let mut success = Success::default();
    for ip in value.list("IPs")? {
        let gateway = address(ip.bytes("Gateway")?)?;
        success.ips.push(Ip { interface: None, address: net(ip, "Address")?, gateway });
    }
    for route in value.list("Routes")? {
        let scope = match route.field("Scope") {
            Some(Value::Int(scope)) => u8::try_from(*scope).ok(),
            _ => None,
        };
        success.routes.push(Route { scope, ..Route::new(net(route, "Dst")?, address(route.bytes("GW")?)?) });
    }
    Ok(success)
}

/// `net.IP` or `net.IPMask`; one of IPv4 may come in IPv6's clothes.
fn address(bytes: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(Some(Ipv4Addr::from(four).into()));
    }
    let sixteen = <[u8; 16]>::try_from(bytes).map_err(|_| Malformed("an address of that length"))?;
    Ok(Some(IpAddr::V6(Ipv6Addr::from(sixteen)).to_canonical()))
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failed {
    /// The daemon does not know the method.
    Unknown,
    /// In the daemon's words, or about the connection to it.
    Said(String),
}

/// A connection to the daemon.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    encoder: Encoder,
    calls: u64,
}

impl Client {
    /// Connects, in Go's words if that fails.
    ///
    /// # Errors
    /// With whether there is no daemon at all.
    pub(super) fn dial(socket: &Path) -> Result<Self, (bool, String)> {
        let failed = |doing: &str, error: &io::Error| {
            let is_absent = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            let text = format!("dial unix {}: {doing}{}", socket.display(), reason(error));
            (is_absent, format!("error dialing DHCP daemon: {text}"))
        };
        let mut stream = UnixStream::connect(socket).map_err(|error| failed("connect: ", &error))?;
        let head = greet(&mut stream).map_err(|error| failed("", &error))?;
        if head != CONNECTED.as_bytes() {
            let head = String::from_utf8_lossy(&head);
            let head = head.lines().next().unwrap_or_default();
            return Err((false, format!("error dialing DHCP daemon: unexpected HTTP response: {head}")));
        }
        Ok(Self { stream, decoder: Decoder::default(), encoder: Encoder::default(), calls: 0 })
    }

    /// Calls a method, and waits for what it answers.
    pub(super) fn call(&mut self, method: &str, arguments: &Arguments) -> Result<Success, Failed> {
        let failed = |error: &dyn std::fmt::Display| Failed::Said(format!("error calling {method}: {error}"));
        let request = Request { method: method.to_owned(), number: self.calls };
        self.calls += 1;
        let bytes = request.encode(arguments, &mut self.encoder);
        self.stream.write_all(&bytes).map_err(|error| failed(&reason(&error)))?;
        loop {
            let head = self.next().map_err(|error| failed(&error))?;
            let body = self.next().map_err(|error| failed(&error))?;
            if head.uint("Seq").map_err(|error| failed(&error))? != request.number {
                continue;
            }
            return match head.text("Error").map_err(|error| failed(&error))? {
                error if error.starts_with("rpc: can't find method") => Err(Failed::Unknown),
                error if !error.is_empty() => Err(failed(&error)),
                _ => success(&body).map_err(|error| failed(&error)),
            };
        }
    }

    fn next(&mut self) -> Result<Value, String> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(value) = self.decoder.next().map_err(|error| error.to_string())? {
                return Ok(value);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err("unexpected EOF".to_owned()),
                Ok(count) => self.decoder.feed(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(reason(&error)),
            }
        }
    }
}

/// Says hello; what is answered, to the end of its head.
fn greet(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(HELLO.as_bytes())?;
    let mut head = Vec::new();
    // What comes after the head is not to be taken with it.
    while !is_head(&head) {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(head)
}

/// Whether no more of a head is read: it is whole, or too long for one.
pub(super) fn is_head(bytes: &[u8]) -> bool {
    bytes.len() >= LONGEST_HEAD || bytes.ends_with(b"\n\n") || bytes.ends_with(b"\r\n\r\n")
}

#[cfg(test)]
mod tests;
