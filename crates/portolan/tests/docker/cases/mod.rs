//! What Docker is asked to do, with either driver.
//!
//! A case starts on a machine without containers and with no network but the predefined ones.

mod drivers;
mod ipam;
mod life;
pub(crate) mod names;
mod networks;
mod ports;

use anyhow::Result;

use crate::scene::Scene;

/// What a user would call it, and the attempt. An error says in one sentence what is not as it should be.
pub(crate) type Case = (&'static str, fn(&Scene) -> Result<()>);

/// All of them, by subject.
pub(crate) const SUBJECTS: [(&str, &[Case]); 6] = [
    ("Networks", networks::CASES),
    ("Names", names::CASES),
    ("Addresses of an IPAM driver", ipam::CASES),
    ("Other drivers", drivers::CASES),
    ("Published ports", ports::CASES),
    ("The life of containers", life::CASES),
];
