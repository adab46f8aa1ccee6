//! A program that does nothing but work for a device: `worker OPTIONS`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use portolan_wireguard::worker::{Options, run};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let options = std::env::args().nth(1).unwrap_or_default();
    match Options::from_argument(&options).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
