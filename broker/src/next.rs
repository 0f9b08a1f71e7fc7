//! The broker as the version after this one might be: one feature level ahead, see `kentongan::later`. For trials only.

use std::process::ExitCode;

use kentongan::auth::Authority;
use kentongan::cli::{self, Reloading};
use kentongan::config::Effective;
use kentongan::listener::serve;

#[global_allocator]
static ALLOCATOR: kentongan::memory::Allocator = kentongan::memory::Allocator;

fn main() -> ExitCode {
    kentongan::later::run_ahead();
    cli::run(std::env::args_os(), run)
}

/// Runs the broker until it is told to stop.
fn run(effective: Effective, reloading: Reloading) -> anyhow::Result<()> {
    serve::serve(effective.settings, &reloading, Authority::default())
}
