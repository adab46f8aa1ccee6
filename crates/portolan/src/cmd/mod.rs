//! The commands, one file for each noun.

pub(crate) mod attach;
pub(crate) mod cluster;
pub(crate) mod cni;
pub(crate) mod completion;
pub(crate) mod daemon;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod endpoint;
pub(crate) mod exec;
pub(crate) mod health;
pub(crate) mod inspect;
pub(crate) mod install;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod netavark;
pub(crate) mod network;
pub(crate) mod overlay;
pub(crate) mod pools;
pub(crate) mod port;
pub(crate) mod ps;
pub(crate) mod publish;
pub(crate) mod repair;
pub(crate) mod rm;
pub(crate) mod rules;
pub(crate) mod run;
pub(crate) mod stats;
pub(crate) mod update;
pub(crate) mod version;
pub(crate) mod wireguard;

use anyhow::Result;
use serde::Serialize;

use crate::{failure, output};

/// Does something for each of several names: a failure of one is reported and does not keep the others from it.
///
/// The exit status is 1 when one failed.
pub(crate) fn each<T>(names: &[String], mut act: impl FnMut(&str) -> Result<T>) -> (Vec<T>, i32) {
    let mut code = 0;
    let mut done = Vec::new();
    for name in names {
        match act(name) {
            Ok(value) => done.push(value),
            Err(error) => {
                failure::report(&error, 1);
                code = 1;
            }
        }
    }
    (done, code)
}

/// Prints what was done to several as a list; nothing if nothing was, because of failures that were reported.
pub(crate) fn list<T: Serialize>(done: &[T], code: i32) -> Result<()> {
    if done.is_empty() && code != 0 { Ok(()) } else { output::json(&done) }
}
