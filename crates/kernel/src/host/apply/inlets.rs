//! Where what other hosts send without a tunnel comes in.

use std::io;

use portolan_plan::{Inlet, Object, Step};

use super::super::shortcuts::{self, inlets, programs};
use super::{Context, Mode};
use crate::sys;

impl Context<'_> {
    pub(super) fn inlets(&mut self, steps: &[Step]) {
        for step in steps {
            let (before, after) = step.sides();
            let (inlet, outcome) = match (before, after) {
                (_, Some(Object::Inlet(inlet))) => (inlet, put(inlet)),
                (Some(Object::Inlet(inlet)), _) => (inlet, inlets::remove(inlet)),
                _ => continue,
            };
            if let Err(error) = outcome {
                // Whoever is not let have programs leaves it to who is: others send so to hosts alone that said they can.
                let is_forgiven = self.mode == Mode::Lenient && error.raw_os_error() == Some(libc::ENODEV)
                    || programs::is_refused(&error);
                if !is_forgiven {
                    let doing = format!("have what comes by `{}` translated come in", inlet.link);
                    self.failures.push(shortcuts::refused(&doing, &error));
                }
            }
        }
    }
}

fn put(inlet: &Inlet) -> io::Result<()> {
    let nowhere = || io::Error::from_raw_os_error(libc::ENODEV);
    inlets::add(inlet, sys::interface_index(inlet.device.as_str()).ok_or_else(nowhere)?)
}
