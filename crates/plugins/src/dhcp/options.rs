//! What `ipam.provide` and `ipam.request` of a configuration say, in the original's words.

use portolan_cni::Error;
use portolan_dhcp::ClientId;
use serde::Deserialize;

use crate::ipam::or_default;

/// Subnet mask and router: what a server is asked for in any case.
const ALWAYS: [u8; 2] = [1, 3];
const HOST_NAME: u8 = 12;
const CLIENT_ID: u8 = 61;
/// No option has more bytes.
const LONGEST: usize = 255;

/// A configuration, as the daemon and the plugin look at it.
#[derive(Debug, Deserialize)]
pub(super) struct Wire {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(default)]
    pub(super) ipam: Option<WireIpam>,
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    kind: String,
    /// Where it is on the host's side: of `macvlan` and the like, and of `bridge`.
    #[serde(default, deserialize_with = "or_default")]
    master: String,
    #[serde(default, deserialize_with = "or_default")]
    bridge: String,
    /// What is there (GC).
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub(super) valid: Option<Vec<WireAttachment>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireIpam {
    #[serde(default, rename = "daemonsocketpath", deserialize_with = "or_default")]
    pub(super) socket: String,
    #[serde(default, deserialize_with = "or_default")]
    provide: Vec<Provide>,
    #[serde(default, deserialize_with = "or_default")]
    request: Vec<Request>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireAttachment {
    #[serde(default, rename = "containerid")]
    pub(super) container: String,
    #[serde(default)]
    pub(super) ifname: String,
}

#[derive(Debug, Deserialize)]
struct Provide {
    #[serde(default, deserialize_with = "or_default")]
    option: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
    #[serde(default, rename = "fromarg", deserialize_with = "or_default")]
    from_arg: String,
}

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default, rename = "skipdefault", deserialize_with = "or_default")]
    skips_default: bool,
    #[serde(default, deserialize_with = "or_default")]
    option: String,
}

/// What a server is told and asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// Instead of the one made of container, network and interface.
    pub(super) client_id: Option<ClientId>,
    pub(super) hostname: String,
    pub(super) requested: Vec<u8>,
}

impl Wire {
    /// The interface of the host that is on the same link, as far as the configuration says it.
    pub(super) fn parent(&self) -> Option<&str> {
        let named = match self.kind.as_str() {
            "bridge" if self.bridge.is_empty() => "cni0",
            "bridge" => &self.bridge,
            _ => &self.master,
        };
        Some(named).filter(|name| !name.is_empty())
    }
}

impl WireIpam {
    /// Reads both lists; `args` is `CNI_ARGS`.
    ///
    /// # Errors
    /// In words, the original's where it refuses the same.
    pub(super) fn options(&self, args: &str) -> Result<Options, String> {
        let mut options = Options { client_id: None, hostname: String::new(), requested: Vec::new() };
        for provide in &self.provide {
            let Provide { option, value, from_arg } = provide;
            let code = code(option)?;
            if value.len() > LONGEST {
                return Err(format!("value too long for option {option:?}: {value:?}"));
            }
            let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
            let arg = pairs.rfind(|(key, _)| key == from_arg).map(|(_, value)| value);
            if arg.is_some_and(|arg| arg.len() > LONGEST) {
                return Err(format!("value too long for option {option:?} from CNI_ARGS {from_arg:?}: {value:?}"));
            }
            match (code, arg.unwrap_or(value)) {
                (_, "") => {}
                (HOST_NAME, name) => name.clone_into(&mut options.hostname),
                (CLIENT_ID, id) => options.client_id = ClientId::raw(id.as_bytes()),
                _ => {
                    let known = "host-name (12) and dhcp-client-identifier (61)";
                    return Err(format!("option {option:?} cannot be provided here: {known} can"));
                }
            }
        }
        for request in &self.request {
            // A later original takes this for no more than what it says about the others.
            if !(request.option.is_empty() && request.skips_default) {
                options.requested.push(code(&request.option)?);
            }
        }
        if !self.request.iter().any(|request| request.skips_default) {
            options.requested.extend(ALWAYS);
        }
        options.requested.sort_unstable();
        options.requested.dedup();
        Ok(options)
    }
}

/// An option by its number, or by its name in dhcp-options(5).
fn code(option: &str) -> Result<u8, String> {
    Ok(match option {
        "dhcp-client-identifier" => CLIENT_ID,
        "subnet-mask" => ALWAYS[0],
        "routers" => ALWAYS[1],
        "host-name" => HOST_NAME,
        "user-class" => 77,
        "vendor-class-identifier" => 60,
        number => {
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            let why = if is_number { "value out of range" } else { "invalid syntax" };
            let refuse = |_| {
                let inner = format!("Can not parse option: strconv.ParseUint: parsing {number:?}: {why}");
                format!("Can not parse option {number:?}: {inner}")
            };
            // Rust takes a plus sign, Go does not.
            number.strip_prefix('+').map_or(number, |_| "").parse().map_err(refuse)?
        }
    })
}

/// Reads a configuration as far as it concerns leases.
pub(super) fn read(text: &[u8]) -> Result<Wire, Error> {
    portolan_cni::read(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn options(ipam: &Value, args: &str) -> Result<Options, String> {
        let text = json!({"name": "net", "ipam": ipam}).to_string();
        read(text.as_bytes()).unwrap().ipam.unwrap().options(args)
    }

    #[test]
    fn what_a_server_is_told_and_asked_for() {
        let plain = options(&json!({}), "A=b").unwrap();
        assert_eq!(plain, Options { client_id: None, hostname: String::new(), requested: vec![1, 3] });
        let told = json!({"provide": [
            {"option": "host-name", "value": "x", "fromArg": "K8S_POD_NAME"},
            {"option": "61", "value": "abc"}, {"option": "60", "fromArg": "NOT_THERE"}],
            "request": [{"option": "121"}, {"option": "routers"}]});
        let told = options(&told, "IgnoreUnknown=1;K8S_POD_NAME=web=1;rest").unwrap();
        assert_eq!(told.hostname, "web=1");
        assert_eq!(told.client_id, ClientId::raw(b"abc"));
        assert_eq!(told.requested, [1, 3, 121]);
        let bare = json!({"request": [{"skipDefault": true}, {"option": "3"}], "provide": null});
        assert_eq!(options(&bare, "").unwrap().requested, [3]);
    }

    #[test]
    fn refusals_are_the_originals() {
        let parse = "Can not parse option: strconv.ParseUint: parsing";
        let long = "x".repeat(256);
        for (ipam, args, text) in [
            (
                json!({"provide": [{"option": "nonsense"}]}),
                "",
                format!("Can not parse option \"nonsense\": {parse} \"nonsense\": invalid syntax"),
            ),
            (
                json!({"provide": [{"option": "+1"}]}),
                "",
                format!("Can not parse option \"+1\": {parse} \"+1\": invalid syntax"),
            ),
            (
                json!({"request": [{"option": ""}]}),
                "",
                format!("Can not parse option \"\": {parse} \"\": invalid syntax"),
            ),
            (
                json!({"request": [{"option": "256"}]}),
                "",
                format!("Can not parse option \"256\": {parse} \"256\": value out of range"),
            ),
            (
                json!({"provide": [{"option": "12", "value": long}]}),
                "",
                format!("value too long for option \"12\": {long:?}"),
            ),
            (
                json!({"provide": [{"option": "12", "value": "v", "fromArg": "A"}]}),
                &*format!("A={long}"),
                "value too long for option \"12\" from CNI_ARGS \"A\": \"v\"".to_owned(),
            ),
        ] {
            assert_eq!(options(&ipam, args).unwrap_err(), text);
        }
        let own = options(&json!({"provide": [{"option": "user-class", "value": "x"}]}), "").unwrap_err();
        assert!(own.starts_with("option \"user-class\" cannot be provided here"), "{own}");
    }
}
