//! `portolan inspect`

use anyhow::Result;
use portolan_engine::Error;
use serde::Serialize;

use crate::cmd::{each, list};
use crate::context::Context;
use crate::output::{ContainerDetails, NetworkDetails};

/// Print all that is known about containers or networks, as JSON
///
/// A name is looked for among the containers first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  portolan inspect site | jq -r '.[0].NetworkSettings.Networks[].IPAddress'")]
pub(crate) struct Args {
    /// Names, ids or unique starts of ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Container(Box<ContainerDetails>),
    Network(Box<NetworkDetails>),
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Result<i32> {
        let engine = context.engine()?;
        let firewall = engine.firewall()?;
        let (found, code) = each(&self.names, |name| match engine.container(name) {
            Ok(info) => Ok(Found::Container(Box::new((&info).into()))),
            Err(Error::NotFound { .. }) => match engine.network(name) {
                Ok(info) => Ok(Found::Network(Box::new(NetworkDetails::new(&info, &firewall)))),
                Err(Error::NotFound { name, .. }) => Err(Error::NotFound { what: "container or network", name }.into()),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        });
        list(&found, code)?;
        Ok(code)
    }
}
