//! The Container Network Interface (CNI, spec 0.1.0 to 1.1.0): what a container runtime says to a plugin, translated to
//! the engine's verbs and back.
//!
//! Owns the formats (environment, configuration and result as JSON in every version, error codes), the checks that the
//! spec's reference implementation makes before it calls a plugin, and what a configuration means for the engine. Leaves
//! out files, other plugins, the engine and the resident: the binary has those.
//!
//! A configuration either names a network of the store or describes one. A network that is described belongs to who wrote
//! the configuration: it is transient to the engine ([`portolan_engine::EndpointRequest::transient`]), made with its
//! first endpoint and gone with its last.

#![forbid(unsafe_code)]

mod call;
mod config;
mod error;
mod plan;
mod result;
mod space;
mod sysctl;
mod version;

pub use call::{Call, Verb};
pub use config::{Attachment, Bandwidth, Config, PortMapping, Scalar, read};
pub use error::{Code, Error};
pub use plan::{Plan, Target, container_id, differs, is_of_cni, plan, result, tuning};
pub use result::{Dns, Interface, Ip, Route, Success};
pub use sysctl::check_duplicate_sysctls;
pub use version::{SUPPORTED, Version, versions};
