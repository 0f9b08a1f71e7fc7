//! `kentongan config`: are these settings right, and what is in effect?

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::serve::ServeArgs;
use super::{EXIT_USAGE, print_bytes};
use crate::config::{Effective, Sources};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with a file and its drop-in directory. The environment is left out of it.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Print the settings that somebody made, each with where it was said. Secrets are redacted.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Print every setting, those left at their defaults included.
    #[arg(long)]
    effective: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

pub(super) fn run(command: &ConfigCommand) -> u8 {
    let sources = match command {
        ConfigCommand::Check { file } => Ok(Sources { file: Some(file.clone()), ..Sources::default() }),
        ConfigCommand::Show(arguments) => arguments.serve.sources(),
    };
    let loaded = sources.and_then(|sources| Effective::load(&sources).map_err(|error| error.to_string()));
    match (loaded, command) {
        (Ok(_), ConfigCommand::Check { file }) => print_bytes(format!("{}: in order\n", file.display()).as_bytes()),
        (Ok(effective), ConfigCommand::Show(arguments)) => print_bytes(effective.show(arguments.effective).as_bytes()),
        (Err(message), _) => {
            eprintln!("{message}");
            EXIT_USAGE
        }
    }
}
