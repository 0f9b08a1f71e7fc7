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
use crate::http_client::{HttpClient, HttpClientOptions};
use crate::tls::{Endpoint, Files};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with a file, its drop-in directory, and the files that they name: certificates, users, rights, keys, tokens. The
    /// environment is left out of it, and what other flags say: where no `node` is said, the name is that of this host.
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
    let webhook = &settings.events.webhook;
    if webhook.url.is_some() {
        let options = HttpClientOptions { ca_file: webhook.ca_file.clone(), ..HttpClientOptions::default() };
        if let Err(error) = HttpClient::new(&options) {
            wrong.push(anyhow::Error::new(error).context("`events.webhook`"));
        }
    }
    if let Some((certificate, key)) = settings.api.certificate_file.clone().zip(settings.api.key_file.clone()) {
        let tls = TlsConfig { certificate_file: Some(certificate), key_file: Some(key), ..TlsConfig::default() };
        if let Err(error) = Endpoint::new(&tls, &Files::read(&tls), Arc::default(), None) {
            wrong.push(anyhow::Error::new(error).context("TLS of the API"));
        }
    }
    if let Some(Err(error)) = settings.cluster.tls().map(|tls| tls.check(&settings.node_name())) {
        wrong.push(anyhow::Error::new(error).context(match &settings.node {
            Some(node) => format!("TLS of the links between nodes, with node = {node:?}"),
            None => format!(
                "TLS of the links between nodes, with the name of this host, {:?}, since no `node` is said",
                settings.node_name()
            ),
        }));
    }
    if let Some(file) = settings.data_dir.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir()) {
        wrong.push(anyhow::anyhow!("`data_dir`: {} is no directory", file.display()));
    }
    wrong
}
