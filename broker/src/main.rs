//! The broker, from its command line.

use std::process::ExitCode;

use kentongan::auth::Authority;
use kentongan::cli::{self, Reloading};
use kentongan::config::Effective;
use kentongan::listener::serve;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(std::env::args_os(), run)
}

/// Runs the broker until it is told to stop.
fn run(effective: Effective, reloading: Reloading) -> anyhow::Result<()> {
    serve::serve(effective.settings, &reloading, Authority::default())
}
