//! The plugin that gives out addresses, as an interface plugin asks it.

use portolan_cni::{Call, Code, Config, Error, Success, Verb};

use crate::conf::invalid;
use crate::delegate;

/// The IPAM plugin of a configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ipam<'a> {
    kind: &'a str,
    call: &'a Call,
    text: &'a [u8],
}

impl<'a> Ipam<'a> {
    /// That of a configuration, if it names one.
    pub(crate) fn of(call: &'a Call, config: &'a Config, text: &'a [u8]) -> Option<Self> {
        let kind = config.ipam.as_ref().map(|ipam| ipam.kind.as_str()).filter(|kind| !kind.is_empty())?;
        Some(Self { kind, call, text })
    }

    /// That of a configuration that has to name one.
    pub(crate) fn needed(plugin: &str, call: &'a Call, config: &'a Config, text: &'a [u8]) -> Result<Self, Error> {
        Self::of(call, config, text)
            .ok_or_else(|| invalid(format!("{plugin} interface requires an IPAM configuration")))
    }

    /// Whether it is asked before the interface is made, so that a refusal costs nothing. Others than those that only keep
    /// books may need the interface: `dhcp` asks its server from there.
    pub(crate) fn is_first(&self) -> bool {
        matches!(self.kind, "host-local" | "static")
    }

    /// Asks for addresses.
    pub(crate) fn add(&self) -> Result<Success, Error> {
        let success = delegate::addresses(self.kind, self.call, self.text)?;
        if success.ips.is_empty() {
            self.give_back();
            return Err(Error::new(Code::Internal, "IPAM plugin returned missing IP config"));
        }
        Ok(success)
    }

    /// Gives them back.
    pub(crate) fn del(&self) -> Result<(), Error> {
        delegate::run(self.kind, self.call, Verb::Del, self.text).map(drop)
    }

    /// Gives them back after a failure, which is what is told.
    pub(crate) fn give_back(&self) {
        if let Err(error) = self.del() {
            tracing::warn!("addresses are not given back: {error}");
        }
    }

    /// Takes away what was made and gives the addresses back, in the order that is right for the plugin; goes on after a
    /// failure and tells the first.
    ///
    /// Books are closed last: an address is another's once it is free. What is given back from the interface goes before it.
    pub(crate) fn leave(ipam: Option<Self>, unmake: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let give_back = || ipam.map_or(Ok(()), |ipam| ipam.del());
        if ipam.is_none_or(|ipam| ipam.is_first()) {
            let unmade = unmake();
            unmade.and(give_back())
        } else {
            let given_back = give_back();
            unmake().and(given_back)
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        delegate::run(self.kind, self.call, Verb::Check, self.text).map(drop)
    }

    pub(crate) fn gc(&self) -> Result<(), Error> {
        self.newer(Verb::Gc)
    }

    pub(crate) fn status(&self) -> Result<(), Error> {
        self.newer(Verb::Status)
    }

    /// Plugins from before the verb was there say so; that is no failure of this one's.
    fn newer(&self, verb: Verb) -> Result<(), Error> {
        match delegate::run(self.kind, self.call, verb, self.text) {
            Ok(_) => Ok(()),
            Err(error)
                if error.msg.contains("unknown CNI_COMMAND") || error.msg.contains("incompatible CNI version") =>
            {
                tracing::info!("the IPAM plugin `{}` is too old for {verb:?}", self.kind);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
