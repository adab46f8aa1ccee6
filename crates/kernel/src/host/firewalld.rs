//! The driver `firewalld`, and getting on with a firewalld that filters beside our own rules.

use portolan_engine::{KernelError, Kind};
use portolan_firewalld::{Error, Firewalld};
use portolan_model::FirewallDriver;
use portolan_plan::firewalld::State;
use portolan_plan::{Element, Firewall, Object, Objects, Ruleset, Step};

use super::changes::Changes;

/// The error for a call that failed, causes and all.
fn refusal(error: &Error) -> KernelError {
    let mut reason = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if !reason.is_empty() {
            reason.push_str(": ");
        }
        reason.push_str(&error.to_string());
        cause = error.source();
    }
    let hint = match error {
        Error::Bus(_) => "see to it that dbus and firewalld run, or choose another --firewall-driver",
        Error::Call { .. } => "the journal of firewalld says more: journalctl -u firewalld",
    };
    KernelError {
        doing: error.to_string(),
        reason,
        errno: 0,
        kind: match error {
            // Nobody is there who could do it.
            Error::Bus(_) => Kind::Unsupported,
            Error::Call { .. } => Kind::Bug,
        },
        hint: Some(hint.to_owned()),
        about: None,
    }
}

fn connect() -> Result<Firewalld, KernelError> {
    Firewalld::connect().map_err(|error| refusal(&error))?.ok_or_else(|| KernelError {
        doing: "ask firewalld".to_owned(),
        reason: "it does not run in this network namespace".to_owned(),
        errno: 0,
        kind: Kind::Unsupported,
        hint: Some("start firewalld, or choose another --firewall-driver".to_owned()),
        about: None,
    })
}

fn elements(objects: &Objects) -> impl Iterator<Item = &Element> {
    objects.iter().filter_map(|(_, object)| match object {
        Object::Element(element) => Some(element),
        _ => None,
    })
}

/// Reads our rules: zones and policies do not tell which elements they are made of, so all of `desired` are there if they
/// say just that.
pub(super) fn observe(firewall: &Firewall, desired: &Objects) -> Result<Objects, KernelError> {
    let found = connect()?.read(firewall).map_err(|error| refusal(&error))?.unwrap_or_default();
    let is_rule = |object: &Object| matches!(object, Object::Ruleset(_) | Object::Element(_));
    if found == State::of(elements(desired)).trimmed() {
        return Ok(desired
            .iter()
            .map(|(_, object)| object.clone())
            .filter(|object| is_rule(object) && firewall.holds(object))
            .collect());
    }
    if found.is_empty() {
        return Ok(Objects::new());
    }
    let name = format!("{} (changed)", firewall.name);
    Ok([Object::Ruleset(Ruleset { firewall: Firewall { name, ..firewall.clone() } })].into_iter().collect())
}

/// Takes `steps`, all of them about rules.
pub(super) fn apply(firewall: &Firewall, steps: &[Step]) -> Result<(), KernelError> {
    let Changes { gone, new, makes, unmakes } = Changes::of(steps);
    let (gone, new) = (State::of(gone), State::of(new));
    if !makes && !unmakes && gone.is_empty() && new.is_empty() {
        return Ok(());
    }
    let firewalld = match connect() {
        Ok(firewalld) => firewalld,
        // What it held went with it.
        Err(error) if error.kind == Kind::Unsupported && !makes && new.is_empty() => return Ok(()),
        Err(error) => return Err(error),
    };
    let result = if makes {
        firewalld.define(firewall).and_then(|()| firewalld.write(firewall, &new))
    } else if unmakes {
        firewalld.undefine(firewall)
    } else {
        firewalld.read(firewall).and_then(|found| match found {
            Some(found) => firewalld.write(firewall, &found.without(&gone).with(&new)),
            // Nothing of ours is in force: reconciling makes it all.
            None => Ok(()),
        })
    };
    result.map_err(|error| refusal(&error))
}

/// Lets bridges pass that the rules of another driver take care of, where a firewalld runs.
pub(super) fn trust(bridges: &[String]) -> Result<(), KernelError> {
    let Some(firewalld) = Firewalld::connect().map_err(|error| refusal(&error))? else { return Ok(()) };
    firewalld.trust(bridges.iter().map(String::as_str)).map_err(|error| refusal(&error))
}

/// What a running firewalld has to be told of steps whose rules another driver carries out: bridges, and host ends that are
/// on none, are to pass when they come, and to be forgotten when they go. Costs nothing where none runs.
///
/// # Errors
/// When ports are published of which firewalld is set up to let none pass.
pub(super) fn tell(firewall: &Firewall, steps: &[Step]) -> Result<(), KernelError> {
    if matches!(firewall.driver, FirewallDriver::Firewalld | FirewallDriver::None) {
        return Ok(());
    }
    let bridge = |object: &Object| match object {
        Object::Bridge(bridge) => Some(bridge.name.to_string()),
        Object::Port(port) if port.bridge().is_none() => Some(port.host_end.to_string()),
        Object::Vxlan(vxlan) => Some(vxlan.name.to_string()),
        _ => None,
    };
    let new: Vec<String> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Create(object) => bridge(object),
            _ => None,
        })
        .collect();
    let gone: Vec<String> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Delete(object) => bridge(object),
            _ => None,
        })
        .collect();
    let publishes = steps.iter().any(|step| matches!(step, Step::Create(Object::Element(e)) if e.set.is_translation()));
    if new.is_empty() && gone.is_empty() && !publishes {
        return Ok(());
    }
    let firewalld = match Firewalld::connect() {
        Ok(Some(firewalld)) => firewalld,
        Ok(None) => return Ok(()),
        // A bus that does not let us in is no reason to have no network.
        Err(error) => {
            tracing::debug!(%error, "whether firewalld runs is unknown");
            return Ok(());
        }
    };
    if publishes && firewalld.is_strict() {
        return Err(KernelError {
            doing: "publish ports".to_owned(),
            reason: "port forwarding not possible as firewalld StrictForwardPorts enabled".to_owned(),
            errno: 0,
            kind: Kind::Denied,
            hint: Some(
                "set StrictForwardPorts=no in /etc/firewalld/firewalld.conf, or forward the ports in firewalld"
                    .to_owned(),
            ),
            about: None,
        });
    }
    let told = firewalld.distrust(gone.iter().map(String::as_str));
    if let Err(error) = told.and_then(|()| firewalld.trust(new.iter().map(String::as_str))) {
        tracing::warn!(error = %refusal(&error), "firewalld may block networks");
    }
    Ok(())
}
