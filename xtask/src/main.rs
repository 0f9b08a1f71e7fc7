//! Checks and generators that the project runs on itself.

mod abuse;
mod conformance;
mod docs;
mod licences;
mod man;
mod package;
mod peer;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Checks and generators that the project runs on itself.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the reference pages in docs/reference/ from the code.
    Docs {
        /// Write nothing; fail if a page is stale.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/reference/conformance.md from the annotations of the tests.
    Conformance {
        /// Write nothing; fail if the page is stale.
        #[arg(long)]
        check: bool,
    },
    /// Write docs/reference/abuse.md from the annotations of the tests.
    Abuse {
        /// Write nothing; fail if the page is stale.
        #[arg(long)]
        check: bool,
    },
    /// Count the instructions of the hot paths and hold them against instructions/counts.tsv (needs valgrind).
    Instructions {
        /// Write the file anew instead.
        #[arg(long)]
        update: bool,
    },
    /// Write the Rust of the peer link from its protobuf.
    Peer {
        /// Write nothing; fail if a file is stale.
        #[arg(long)]
        check: bool,
    },
    /// Write what a package has beside the program: man pages, completions, licences of others.
    Package {
        /// Where to.
        directory: PathBuf,
    },
    /// Check everything that needs no running broker, and change nothing.
    Verify,
    /// Mend what a machine can mend: the format and what is generated.
    Fix,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Docs { check } => docs::run(check),
        Command::Conformance { check } => conformance::run(check),
        Command::Abuse { check } => abuse::run(check),
        Command::Instructions { update } => instructions(update),
        Command::Peer { check } => peer::run(check),
        Command::Package { directory } => package::run(&directory),
        Command::Verify => verify(),
        Command::Fix => fix(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn verify() -> anyhow::Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    docs::run(true)?;
    conformance::run(true)?;
    abuse::run(true)?;
    peer::run(true)?;
    licences::check()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

/// The program that counts is of the profile `quick`, in which each crate that is counted is one unit. With what only simulations have,
/// which costs a few instructions: without, all of it would be compiled once more.
fn instructions(update: bool) -> anyhow::Result<()> {
    cargo(&["build", "--locked", "--profile", "quick", "--features", "kentongan/simulation", "--bin", "instructions"])?;
    let mut program = process::Command::new(quick_directory()?.join("instructions"));
    let status = program.arg("compare").args(update.then_some("--update")).status()?;
    anyhow::ensure!(status.success(), "the instructions were not counted, or are not those of instructions/counts.tsv");
    Ok(())
}

/// Where programs of that profile are: this one lies in such a directory beside it.
fn quick_directory() -> anyhow::Result<PathBuf> {
    let program = env::current_exe()?;
    let target = program.parent().and_then(Path::parent);
    Ok(target.with_context(|| format!("{} is no program that cargo built", program.display()))?.join("quick"))
}

fn fix() -> anyhow::Result<()> {
    docs::run(false)?;
    conformance::run(false)?;
    abuse::run(false)?;
    peer::run(false)?;
    cargo(&["fmt", "--all"])
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let status = process::Command::new("cargo").args(arguments).status()?;
    anyhow::ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}
