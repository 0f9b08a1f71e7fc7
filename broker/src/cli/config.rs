//! `kentongan config`: are these settings right, and what is in effect?

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::serve::ServeArgs;
use super::{EXIT_USAGE, print_bytes};
use crate::api::tokens::Tokens;
use crate::audit::AuditFile;
use crate::auth::Authority;
use crate::config::{Effective, Settings, Sources, TlsConfig};
use crate::tls::{Endpoint, Files};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with a file, its drop-in directory, and the files that they name: certificates, users, rights, keys, tokens. The
    /// environment is left out of it.
    Check {
        /// The configuration file.
        file: PathBuf,
        /// Do not look at the files that it names: they are on another machine.
        #[arg(long)]
        without_files: bool,
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
        ConfigCommand::Check { file, .. } => Ok(Sources { file: Some(file.clone()), ..Sources::default() }),
        ConfigCommand::Show(arguments) => arguments.serve.sources(),
    };
    let loaded = sources.and_then(|sources| Effective::load(&sources).map_err(|error| error.to_string()));
    match (loaded, command) {
        (Ok(effective), ConfigCommand::Check { file, without_files }) => {
            let wrong = if *without_files { Vec::new() } else { wrong_files(&effective.settings) };
            if wrong.is_empty() {
                return print_bytes(format!("{}: in order\n", file.display()).as_bytes());
            }
            for wrong in wrong {
                eprintln!("{}: {wrong:#}", file.display());
            }
            EXIT_USAGE
        }
        (Ok(effective), ConfigCommand::Show(arguments)) => print_bytes(effective.show(arguments.effective).as_bytes()),
        (Err(message), _) => {
            eprintln!("{message}");
            EXIT_USAGE
        }
    }
}

/// What is wrong with the files that settings name: whatever would keep a broker from its start, or from reading them again.
fn wrong_files(settings: &Settings) -> Vec<anyhow::Error> {
    let mut wrong: Vec<anyhow::Error> = Vec::new();
    for listener in &settings.listener {
        if let Some(tls) = &listener.tls
            && let Err(error) = Endpoint::new(tls, &Files::read(tls), Arc::default(), None)
        {
            wrong.push(anyhow::Error::new(error).context(format!("TLS of the listener at {}", listener.address)));
        }
    }
    if let Err(error) = Authority::default().read(&settings.auth) {
        wrong.push(anyhow::Error::new(error).context("users and rights"));
    }
    if let Some(error) = settings.api.tokens_file.as_deref().and_then(|file| Tokens::read(file).err()) {
        wrong.push(anyhow::Error::new(error).context("`api.tokens_file`"));
    }
    if let Some(error) = settings.log.audit_file.as_deref().and_then(|file| AuditFile::check(file).err()) {
        wrong.push(error.context("`log.audit_file`"));
    }
    let (api, cluster) = (&settings.api, settings.cluster.tls());
    let of_api = api
        .certificate_file
        .clone()
        .zip(api.key_file.clone())
        .map(|(certificate, key)| ("the API", certificate, key, None));
    let of_links = cluster.map(|tls| ("the links between nodes", tls.certificate, tls.key, Some(tls.ca)));
    for (what, certificate_file, key_file, client_ca_file) in of_api.into_iter().chain(of_links) {
        let tls = TlsConfig {
            certificate_file: Some(certificate_file),
            key_file: Some(key_file),
            client_ca_file,
            ..TlsConfig::default()
        };
        if let Err(error) = Endpoint::new(&tls, &Files::read(&tls), Arc::default(), None) {
            wrong.push(anyhow::Error::new(error).context(format!("TLS of {what}")));
        }
    }
    wrong
}
