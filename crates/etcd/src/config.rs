use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where etcd is, and how to get in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Its members, as `http://ADDRESS:PORT` or `https://NAME:PORT`; tried in this order.
    pub endpoints: Vec<String>,
    /// For `https`: whom to believe, and who we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// A user's name and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<(String, String)>,
    /// How long a connection and an answer may take.
    pub timeout: Duration,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        f.debug_struct("Config")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("user", &user)
            .finish()
    }
}

/// TLS towards etcd.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// The certificates of those who may sign etcd's (PEM).
    pub ca: String,
    /// Our certificate and its key (PEM), where etcd wants one.
    pub identity: Option<(String, String)>,
    /// The name that etcd's certificate is to have; none for that in the endpoint.
    pub server_name: Option<String>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_identity = self.identity.is_some();
        f.debug_struct("Tls").field("has_identity", &has_identity).field("server_name", &self.server_name).finish()
    }
}
