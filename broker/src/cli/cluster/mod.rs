//! `kentongan cluster`: what the nodes say of themselves and of each other.
//!
//! It speaks as a peer that is no member: it asks one node, learns from it who the others are, and asks each of those too.

mod ask;
mod backup;
mod certs;
mod recover;
mod restore;
mod show;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::local::parse_peer;
use super::{EXIT_FAILURE, EXIT_USAGE, print_bytes};
use crate::config::{self, DEFAULT_PEER_PORT, Effective, FlagValue, Settings, Sources};

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Print how the nodes are, their links and their groups. A node that cannot be reached is named with the reason.
    Status(StatusArgs),
    /// Remove a node for good: what it keeps is moved to others, and then it is no member any more and serves nobody.
    Remove(RemoveArgs),
    /// Write what all groups have to one file, while the cluster works.
    ///
    /// Whatever was acknowledged before this began is in it. The file holds everybody's messages: only its owner may read it.
    Backup(backup::BackupArgs),
    /// Make the first node of a new cluster from a backup.
    ///
    /// It makes a data directory for a node that is not running. The other nodes join it with empty ones.
    Restore(restore::RestoreArgs),
    /// Make certificates by which nodes on several machines know each other, and the authority that they come from.
    Certs(certs::CertsArgs),
    /// Make a new cluster of what is left of one that lost a majority for good. Its nodes must be stopped.
    ///
    /// The data directories of the survivors are read, and a new one is made: that of the only node of a new cluster, which the
    /// other survivors then join as empty nodes. It is asked twice whether the rest is to be given up.
    Recover(recover::RecoverArgs),
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    asked: AskedArgs,
    /// Print everything that the nodes say, as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Its name, or its id if several have that name.
    #[arg(value_name = "NODE")]
    member: String,
    #[command(flatten)]
    asked: AskedArgs,
    /// How long to wait until it is done. It goes on all the same afterwards.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    wait_seconds: u64,
}

/// Whom to ask, and as whom.
#[derive(Debug, Args)]
pub(super) struct AskedArgs {
    /// The node that is asked first, where other nodes connect to it; a port alone is one of 127.0.0.1. Without it, the
    /// node that the settings are for, else 127.0.0.1:7001.
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_peer)]
    peer: Option<String>,
    /// Configuration file of a node, for where it is and for the certificates.
    #[arg(long, short = 'c', value_name = "FILE", env = config::CONFIG_VARIABLE, hide_env_values = true)]
    config: Option<PathBuf>,
    /// As whom to speak: a DNS name in the certificate. Without it, the name of the host.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Certificates of the authorities of the cluster, if its nodes speak TLS with each other.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A certificate from one of them.
    #[arg(long, value_name = "FILE")]
    certificate_file: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl AskedArgs {
    fn settings(&self) -> Result<Settings, String> {
        let mut flags = Vec::new();
        if let Some(name) = &self.node {
            flags.push(FlagValue::new("--node", "node", name.as_str()));
        }
        for (flag, key, file) in [
            ("--ca-file", "cluster.ca_file", &self.ca_file),
            ("--certificate-file", "cluster.certificate_file", &self.certificate_file),
            ("--key-file", "cluster.key_file", &self.key_file),
        ] {
            let Some(file) = file else { continue };
            let file = file.to_str().ok_or_else(|| format!("flag {flag}: {} is not UTF-8", file.display()))?;
            flags.push(FlagValue::new(flag, key, file));
        }
        let sources = Sources { file: self.config.clone(), environment: std::env::vars_os().collect(), flags };
        Effective::load(&sources).map(|effective| effective.settings).map_err(|error| error.to_string())
    }
}

pub(super) fn run(command: &ClusterCommand) -> u8 {
    let asked = match command {
        ClusterCommand::Status(StatusArgs { asked, .. }) | ClusterCommand::Remove(RemoveArgs { asked, .. }) => asked,
        ClusterCommand::Backup(arguments) => &arguments.asked,
        ClusterCommand::Restore(arguments) => return print(restore::run(arguments)),
        ClusterCommand::Certs(arguments) => return print(certs::run(arguments)),
        ClusterCommand::Recover(arguments) => return print(recover::run(arguments)),
    };
    let settings = match asked.settings() {
        Ok(settings) => settings,
        Err(message) => {
            eprintln!("kentongan cluster: {message}");
            return EXIT_USAGE;
        }
    };
    let own = || settings.cluster.advertised().unwrap_or_else(|| format!("127.0.0.1:{DEFAULT_PEER_PORT}"));
    let peer = asked.peer.clone().unwrap_or_else(own);
    let outcome = match command {
        ClusterCommand::Status(arguments) => status(&settings, &peer, arguments.json),
        ClusterCommand::Remove(arguments) => {
            remove(&settings, &peer, &arguments.member, Duration::from_secs(arguments.wait_seconds))
        }
        ClusterCommand::Backup(arguments) => backup::run(&settings, &peer, arguments.file()),
        ClusterCommand::Certs(_) | ClusterCommand::Recover(_) | ClusterCommand::Restore(_) => {
            unreachable!("they ask nobody")
        }
    };
    print(outcome)
}

fn print(outcome: anyhow::Result<String>) -> u8 {
    match outcome {
        Ok(text) => print_bytes(text.as_bytes()),
        Err(error) => {
            eprintln!("kentongan cluster: {error:#}");
            EXIT_FAILURE
        }
    }
}

fn remove(settings: &Settings, peer: &str, member: &str, wait: Duration) -> anyhow::Result<String> {
    let transport = ask::client(settings)?;
    let removed = ask::remove(&transport, peer, member, wait);
    transport.stop(Duration::ZERO);
    removed.map(|()| format!("{member} is no member any more\n"))
}

fn status(settings: &Settings, peer: &str, json: bool) -> anyhow::Result<String> {
    let transport = ask::client(settings)?;
    let survey = ask::survey(&transport, peer);
    transport.stop(Duration::ZERO);
    let survey = survey?;
    Ok(if json { show::json(&survey) } else { show::table(&survey) })
}
