//! `kentongan cluster`: what the nodes say of themselves and of each other, and what an operator has them do.
//!
//! It speaks as a peer that is no member: it asks one node, learns from it who the others are, and asks each of those too.

mod act;
mod ask;
mod list;
mod show;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use self::ask::Survey;
use super::local::parse_peer;
use super::{EXIT_FAILURE, EXIT_USAGE, print_bytes};
use crate::config::{self, DEFAULT_PEER_PORT, Effective, FlagValue, Settings, Sources};

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Print how the nodes are, their links and their groups. A node that cannot be reached is named with the reason.
    Status(ShowArgs),
    /// Print the members: what they do and serve, how much they lead and keep, and what waits in their lanes.
    Members(ShowArgs),
    /// Print the groups: who leads and keeps them, who is behind, and what waits for them in lanes.
    Groups(ShowArgs),
    /// Drain a node: others lead its groups, its clients are told to use other nodes, a few at a time, and it takes no more of
    /// them, until that is undone. It keeps what it keeps, and stays a member.
    Drain(DrainArgs),
    /// Let another node lead a group, from now on and whenever it can.
    Transfer(TransferArgs),
    /// Remove a node for good: its clients and then what it keeps are moved to others; then it is no member any more and
    /// serves nobody.
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Its name, or its id if several have that name.
    #[arg(value_name = "NODE")]
    member: String,
    /// It is over: the node takes clients and leads groups again.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    asked: AskedArgs,
    /// How long to wait until it leads nothing and has no clients. It goes on all the same afterwards.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    wait_seconds: u64,
    /// Print what is left as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// The number of a group, or `directory`.
    #[arg(value_name = "GROUP", value_parser = act::parse_group)]
    group: u16,
    /// The name or id of a node that votes in it.
    #[arg(value_name = "NODE", required_unless_present = "undo", conflicts_with = "undo")]
    member: Option<String>,
    /// The cluster chooses who leads it again.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    asked: AskedArgs,
    /// How long to wait until it leads.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait_seconds: u64,
    /// Print who leads it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
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
    /// Do not move its clients to others first: they are closed when what it keeps has moved.
    #[arg(long)]
    now: bool,
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
    let asked = command.asked();
    let settings = match asked.settings() {
        Ok(settings) => settings,
        Err(message) => {
            eprintln!("kentongan cluster: {message}");
            return EXIT_USAGE;
        }
    };
    let own = || settings.cluster.advertised().unwrap_or_else(|| format!("127.0.0.1:{DEFAULT_PEER_PORT}"));
    let peer = asked.peer.clone().unwrap_or_else(own);
    match carry_out(command, &settings, &peer) {
        Ok(text) => print_bytes(text.as_bytes()),
        Err(error) => {
            eprintln!("kentongan cluster: {error:#}");
            EXIT_FAILURE
        }
    }
}

impl ClusterCommand {
    fn asked(&self) -> &AskedArgs {
        match self {
            Self::Status(ShowArgs { asked, .. }) | Self::Members(ShowArgs { asked, .. }) => asked,
            Self::Groups(ShowArgs { asked, .. }) | Self::Drain(DrainArgs { asked, .. }) => asked,
            Self::Transfer(TransferArgs { asked, .. }) | Self::Remove(RemoveArgs { asked, .. }) => asked,
        }
    }
}

fn carry_out(command: &ClusterCommand, settings: &Settings, peer: &str) -> anyhow::Result<String> {
    let transport = ask::client(settings)?;
    let outcome = match command {
        ClusterCommand::Status(arguments) => {
            ask::survey(&transport, peer).map(|survey| arguments.show(&survey, show::json, show::table))
        }
        ClusterCommand::Members(arguments) => {
            ask::survey(&transport, peer).map(|survey| arguments.show(&survey, list::members_json, list::members_table))
        }
        ClusterCommand::Groups(arguments) => {
            ask::survey(&transport, peer).map(|survey| arguments.show(&survey, list::groups_json, list::groups_table))
        }
        ClusterCommand::Drain(DrainArgs { member, undo, wait_seconds, json, .. }) => {
            let wait = Duration::from_secs(*wait_seconds);
            act::drain(&transport, peer, member, !undo, wait).map(|drained| drained.show(*json))
        }
        ClusterCommand::Transfer(TransferArgs { group, member, wait_seconds, json, .. }) => {
            let wait = Duration::from_secs(*wait_seconds);
            act::transfer(&transport, peer, *group, member.as_deref(), wait).map(|transferred| transferred.show(*json))
        }
        ClusterCommand::Remove(RemoveArgs { member, now, wait_seconds, .. }) => {
            act::remove(&transport, peer, member, *now, Duration::from_secs(*wait_seconds))
        }
    };
    transport.stop(Duration::ZERO);
    outcome
}

impl ShowArgs {
    fn show(&self, survey: &Survey, json: fn(&Survey) -> String, table: fn(&Survey) -> String) -> String {
        if self.json { json(survey) } else { table(survey) }
    }
}
