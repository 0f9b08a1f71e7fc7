//! The broker, from its command line.

use std::process::ExitCode;

use kentongan::cli;
use kentongan::config::Effective;

fn main() -> ExitCode {
    cli::run(std::env::args_os(), serve)
}

/// Runs the broker until it is told to stop.
fn serve(effective: Effective) -> anyhow::Result<()> {
    anyhow::bail!(
        "no listener can be served at {}",
        effective.settings.listener[0].address
    )
}
