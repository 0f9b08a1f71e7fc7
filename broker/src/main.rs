//! The broker, from its command line.

use std::process::ExitCode;

use kentongan::auth::Authority;
use kentongan::cli::{self, Reloading};
use kentongan::config::Effective;
use kentongan::listener::serve;

#[global_allocator]
static ALLOCATOR: kentongan::memory::Allocator = kentongan::memory::Allocator;

fn main() -> ExitCode {
    // The allocator asks for huge pages, which the kernel then fills 2 MiB at a time: a connection takes 3.1 KiB without
    // them and 4.6 KiB with them. Where the kernel refuses this, it only costs that memory.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    cli::run(std::env::args_os(), run)
}

/// Runs the broker until it is told to stop.
fn run(effective: Effective, reloading: Reloading) -> anyhow::Result<()> {
    serve::serve(effective.settings, &reloading, Authority::default())
}
