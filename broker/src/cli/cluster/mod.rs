//! `kentongan cluster`: what the nodes say of themselves and of each other, and what an operator has them do.
//!
//! It speaks as a peer that is no member: it asks one node, learns from it who the others are, and asks each of those too.

mod act;
mod ask;
mod backup;
mod ban;
mod certs;
mod list;
mod recover;
mod restore;
pub(super) mod show;
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
    /// Keep a client out of the whole cluster, by its Client Identifier, its user or where it comes from; who is connected is
    /// closed.
    Ban(ban::BanArgs),
    /// Let a client in again that was banned.
    Unban(ban::UnbanArgs),
    /// Print who is banned, until when and why.
    Bans(ban::BansArgs),
    /// Remove a node for good: its clients and then what it keeps are moved to others; then it is no member any more and
    /// serves nobody.
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
    /// Though another node is down, so that fewer nodes will have copies of what there is.
    #[arg(long)]
    fewer_copies: bool,
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

    /// What to do if there is no answer from a node that nobody named.
    fn why_nobody_listens(&self, settings: &Settings, peer: &str) -> Option<String> {
        let is_guessed = self.peer.is_none() && settings.cluster.address.is_none();
        is_guessed.then(|| {
            format!(
                "{peer} was asked, since neither --peer nor the settings say where the node takes commands; one that is alone \
                 takes them too, if it is started with `cluster.address = \"127.0.0.1:{DEFAULT_PEER_PORT}\"` (--cluster \
                 {DEFAULT_PEER_PORT})"
            )
        })
    }

    /// An error as people read it: what happened, and then what may help where nobody was reached.
    fn explain(&self, error: &anyhow::Error, settings: &Settings, peer: &str) -> String {
        let is_unreached = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<ask::Unanswered>().is_some_and(|unanswered| unanswered.is_unreached)
        };
        let is_unreached = error.chain().any(is_unreached);
        match self.why_nobody_listens(settings, peer).filter(|_| is_unreached) {
            Some(why) => format!("{error:#} ({why})"),
            None => format!("{error:#}"),
        }
    }
}

pub(super) fn run(command: &ClusterCommand) -> u8 {
    let asked = match command {
        ClusterCommand::Restore(arguments) => return print(restore::run(arguments)),
        ClusterCommand::Certs(arguments) => return print(certs::run(arguments)),
        ClusterCommand::Recover(arguments) => return print(recover::run(arguments)),
        ClusterCommand::Status(ShowArgs { asked, .. })
        | ClusterCommand::Members(ShowArgs { asked, .. })
        | ClusterCommand::Groups(ShowArgs { asked, .. })
        | ClusterCommand::Drain(DrainArgs { asked, .. })
        | ClusterCommand::Transfer(TransferArgs { asked, .. })
        | ClusterCommand::Ban(ban::BanArgs { asked, .. })
        | ClusterCommand::Unban(ban::UnbanArgs { asked, .. })
        | ClusterCommand::Bans(ban::BansArgs { asked, .. })
        | ClusterCommand::Remove(RemoveArgs { asked, .. }) => asked,
        ClusterCommand::Backup(arguments) => &arguments.asked,
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
    let outcome = carry_out(command, &settings, &peer);
    print(outcome.map_err(|error| anyhow::Error::msg(asked.explain(&error, &settings, &peer))))
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

fn carry_out(command: &ClusterCommand, settings: &Settings, peer: &str) -> anyhow::Result<String> {
    let transport = ask::client(settings)?;
    let outcome = match command {
        ClusterCommand::Status(arguments) => {
            // Everything that the nodes say has nobody called behind.
            let survey = if arguments.json { ask::survey } else { ask::survey_of_behind };
            survey(&transport, peer).map(|survey| arguments.show(&survey, show::json, show::table))
        }
        ClusterCommand::Members(arguments) => {
            ask::survey(&transport, peer).map(|survey| arguments.show(&survey, list::members_json, list::members_table))
        }
        ClusterCommand::Groups(arguments) => ask::survey_of_behind(&transport, peer)
            .map(|survey| arguments.show(&survey, list::groups_json, list::groups_table)),
        ClusterCommand::Drain(DrainArgs { member, undo, wait_seconds, json, .. }) => {
            let wait = Duration::from_secs(*wait_seconds);
            act::drain(&transport, peer, member, !undo, wait).and_then(|drained| {
                let text = drained.show(*json);
                // Who does not wait, does not ask whether it is over.
                if drained.is_over() || wait.is_zero() {
                    return Ok(text);
                }
                print_bytes(text.as_bytes());
                anyhow::bail!(
                    "it was not over within {wait_seconds} s, and goes on; --wait-seconds says how long to wait"
                )
            })
        }
        ClusterCommand::Transfer(TransferArgs { group, member, wait_seconds, json, .. }) => {
            let wait = Duration::from_secs(*wait_seconds);
            act::transfer(&transport, peer, *group, member.as_deref(), wait).map(|transferred| transferred.show(*json))
        }
        ClusterCommand::Remove(RemoveArgs { member, now, fewer_copies, wait_seconds, .. }) => {
            let wait = Duration::from_secs(*wait_seconds);
            act::remove(&transport, peer, member, act::Removal { now: *now, fewer_copies: *fewer_copies, wait })
        }
        ClusterCommand::Ban(arguments) => ban::ban(&transport, peer, arguments),
        ClusterCommand::Unban(arguments) => ban::unban(&transport, peer, arguments),
        ClusterCommand::Bans(arguments) => ban::list(&transport, peer, arguments.json),
        ClusterCommand::Backup(arguments) => backup::run(&transport, peer, arguments.file()),
        ClusterCommand::Certs(_) | ClusterCommand::Recover(_) | ClusterCommand::Restore(_) => {
            unreachable!("they ask nobody")
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
