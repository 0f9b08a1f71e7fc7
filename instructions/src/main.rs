//! How many instructions the hot paths take, held against what they took when `counts.tsv` was last written.
//!
//! Wall time on a shared machine says little about a change; the number of instructions that callgrind counts for a fixed
//! input hardly moves without one. `cargo xtask instructions` builds this program and runs it. It runs itself once for
//! each row, under callgrind (`instructions run ROW`), so that rows share nothing, and compares.
//!
//! Each row prepares what it needs, then hands the part that counts to [`Counter::count`].

mod arbiter;
mod authorize;
mod between_nodes;
mod codec;
mod compare;
mod group;
mod index;
mod session;

use std::hint::black_box;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// That of the broker: what it allocates is part of what it takes.
#[global_allocator]
static ALLOCATOR: kentongan::memory::Allocator = kentongan::memory::Allocator;

#[derive(Debug, Parser)]
#[command(about = "Counts the instructions of the hot paths.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count all rows and hold them against counts.tsv.
    Compare {
        /// Write counts.tsv anew instead.
        #[arg(long)]
        update: bool,
    },
    /// Do the work of one row, and print how many operations were counted.
    Run {
        /// Its name.
        row: String,
    },
}

/// Something whose instructions are counted.
pub struct Row {
    /// Stands in counts.tsv.
    pub name: &'static str,
    /// Does the work.
    pub run: fn(&mut Counter),
}

const GROUPS_OF_ROWS: [&[Row]; 7] =
    [codec::ROWS, index::ROWS, session::ROWS, authorize::ROWS, arbiter::ROWS, between_nodes::ROWS, group::ROWS];

/// All of them, in the order of counts.tsv.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    GROUPS_OF_ROWS.into_iter().flatten()
}

/// What a row did while it was counted.
#[derive(Debug, Default)]
pub struct Counter {
    operations: u64,
}

impl Counter {
    /// Does `part`, which is so many operations of the row. What is around the calls of this is not counted.
    pub fn count(&mut self, operations: u64, mut part: impl FnMut()) {
        self.operations += operations;
        counted_part(&mut part);
    }
}

/// Callgrind collects from the entry of this function to its return: see [`compare::COLLECTED`]. That takes a real call,
/// in both directions.
#[inline(never)]
fn counted_part(part: &mut dyn FnMut()) {
    part();
    black_box(());
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Compare { update } => compare::run(update),
        Command::Run { row } => run(&row),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str) -> anyhow::Result<()> {
    let Some(row) = rows().find(|row| row.name == name) else {
        anyhow::bail!("there is no row {name:?}");
    };
    let mut counter = Counter::default();
    (row.run)(&mut counter);
    println!("{}", counter.operations);
    Ok(())
}
