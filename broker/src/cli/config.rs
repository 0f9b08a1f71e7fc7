//! `kentongan config`: are these settings right, and what is in effect?

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::serve::ServeArgs;
use super::{EXIT_USAGE, print_bytes};
use crate::api::tokens::Tokens;
use crate::audit::AuditFile;
use crate::auth::Authority;
use crate::config::{Effective, FlagValue, Settings, Sources, TlsConfig};
use crate::http_client::{HttpClient, HttpClientOptions};
use crate::tls::{Endpoint, Files};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say what is wrong with a file, its drop-in directory, and the files that they name: certificates, users, rights, keys, tokens. The
    /// environment is left out of it, and what flags of `serve` say but for --node.
    Check {
        /// The configuration file.
        file: PathBuf,
        /// What the node is called, if it is started with --node: its certificate for the links between nodes must be for that name.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
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
        ConfigCommand::Check { file, node, .. } => {
            let flags = node.iter().map(|name| FlagValue::new("--node", "node", name.as_str())).collect();
            Ok(Sources { file: Some(file.clone()), flags, ..Sources::default() })
        }
        ConfigCommand::Show(arguments) => arguments.serve.sources(),
    };
    let loaded = sources.and_then(|sources| Effective::load(&sources).map_err(|error| error.to_string()));
    match (loaded, command) {
        (Ok(effective), ConfigCommand::Check { file, without_files, .. }) => {
            let wrong = if *without_files { Vec::new() } else { wrong_files(&effective.settings) };
            if !without_files && effective.settings.node.is_none() && effective.settings.cluster.tls().is_some() {
                eprintln!(
                    "{}: no `node` is said, so whether `cluster.certificate_file` is for the name of this node was not looked at; \
                     --node NAME says it",
                    file.display()
                );
            }
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
    // Where no `node` is said, it may be by a flag, or the name is that of the host, which need not be this one.
    let of_links = settings.cluster.tls().map(|tls| match &settings.node {
        Some(node) => (tls.check(node), format!("TLS of the links between nodes, with node = {node:?}")),
        None => (tls.check_for_any_name(), String::from("TLS of the links between nodes")),
    });
    if let Some((Err(error), what)) = of_links {
        wrong.push(anyhow::Error::new(error).context(what));
    }
    if let Some(file) = settings.data_dir.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir()) {
        wrong.push(anyhow::anyhow!("`data_dir`: {} is no directory", file.display()));
    }
    wrong
}
