//! The command line.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use crate::{
    abuse, cluster,
    compare::broker::{Recipe, Running},
    faults::{self, Fault, Schedule},
    link::Layer,
    scenario::{Broker, PATIENCE_SECONDS, connect, idle, large, retained, traffic},
};

/// Load, comparison and verification for MQTT brokers.
///
/// Every message carries its publisher, its number and when it was sent: what is lost, duplicated or
/// out of order is reported, and ends the program with 1.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a running broker with one scenario.
    Run(Run),
    /// Many idle connections: memory of each, CPU of all.
    Idle(Idle),
    /// Large messages at once: the broker's memory, and the latency of small ones meanwhile.
    Large(Large),
    /// Many retained messages: storing them, and reading them all by `#` and `+/x`.
    Retained(Retained),
    /// Start two brokers and compare their CPU time per message, row by row.
    Compare(Compare),
    /// Start several nodes of Kentongan that are one broker: what they cost beside one, and what happens when one is killed.
    Cluster(Cluster),
    /// Start nodes that are one broker, kill, stop, cut and starve them under load, and check what their clients saw.
    Faults(Faults),
    /// Start a broker, and be very many clients at once that mean harm, or do not know better: what becomes of the others.
    Abuse(Abuse),
}

/// The broker that is tried.
#[derive(Debug, Args)]
pub struct Where {
    /// Where the broker listens for MQTT over TCP.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1883", value_parser = parse_address)]
    broker: SocketAddr,
    /// The broker's process, to read its CPU time and memory.
    #[arg(long)]
    pid: Option<u32>,
    /// Start this broker, and end it afterwards: `kentongan`, `mosquitto`, or a command with
    /// `{port}` and `{dir}` in it.
    #[arg(long, conflicts_with_all = ["broker", "pid"], value_name = "BROKER")]
    start: Option<String>,
    /// Connect over TLS (1.3), whatever certificate the broker shows.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    programs: Programs,
    /// MQTT version of all clients.
    #[arg(long, default_value = "3.1.1", value_name = "3.1.1|5")]
    mqtt: Version,
    /// Of topics and client identifiers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write what was seen to this file, as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Where {
    /// Starts the broker, if it is for us to start.
    pub fn start(&self) -> anyhow::Result<Option<Running>> {
        let recipe = self.start.as_ref().map(|text| self.programs.recipe(text));
        recipe.map(|recipe| Running::start(&recipe)).transpose()
    }

    /// The broker, which runs elsewhere or was started by us.
    pub fn broker(&self, started: Option<&Running>) -> anyhow::Result<Broker> {
        let layer = if self.tls { Layer::tls(false, None)? } else { Layer::Plain };
        Ok(match started {
            Some(started) => started.broker_over(layer),
            None => {
                let mut broker = Broker::one(self.broker, self.pid);
                broker.places.layer = layer;
                broker
            }
        })
    }
}

/// Where the programs are that profiles start.
#[derive(Debug, Args)]
pub struct Programs {
    /// The program that `kentongan` means.
    #[arg(long, default_value = "target/release/kentongan", value_name = "PATH")]
    kentongan: PathBuf,
    /// The program that `mosquitto` means.
    #[arg(long, default_value = "/usr/sbin/mosquitto", value_name = "PATH")]
    mosquitto: PathBuf,
}

impl Programs {
    /// How to start what `text` names.
    pub fn recipe(&self, text: &str) -> Recipe {
        Recipe::parse(text, &self.kentongan, &self.mosquitto)
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Version {
    #[value(name = "3.1.1", alias = "3", alias = "4")]
    V3_1_1,
    #[value(name = "5", alias = "5.0")]
    V5,
}

impl From<Version> for ProtocolVersion {
    fn from(version: Version) -> Self {
        match version {
            Version::V3_1_1 => Self::V3_1_1,
            Version::V5 => Self::V5,
        }
    }
}

/// Which scenario `run` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Publishers with topics of their own, subscribers that get all of them.
    FanIn,
    /// One topic, subscribers that get all of it.
    FanOut,
    /// As many publishers as subscribers, each with its own.
    #[value(alias = "p2p", alias = "point-to-point")]
    Pairs,
    /// One shared subscription.
    Shared,
    /// Connecting and disconnecting.
    Connect,
}

#[derive(Debug, Args)]
pub struct Run {
    /// What is done.
    scenario: Scenario,
    #[command(flatten)]
    pub at: Where,
    /// QoS of messages and subscriptions.
    #[arg(long, default_value = "0", value_parser = parse_qos)]
    qos: QoS,
    /// Bytes of a payload (at least 24).
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    payload: usize,
    /// Messages that each publisher may have sent and its subscribers not yet received.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    window: u32,
    /// Pairs, or subscribers of a fan-out, or publishers of a fan-in, or each of both if shared.
    #[arg(long, default_value_t = 50)]
    clients: u32,
    /// Publishers, instead of what `--clients` says.
    #[arg(long)]
    publishers: Option<u32>,
    /// Subscribers, instead of what `--clients` says.
    #[arg(long)]
    subscribers: Option<u32>,
    /// Messages (for connecting: connections) a second in all, instead of as fast as the window
    /// allows. Latency then counts from when a message was due.
    #[arg(long)]
    rate: Option<f64>,
    /// Let the broker keep the sessions of subscribers.
    #[arg(long)]
    persistent: bool,
    /// SUBSCRIBEs, and as many UNSUBSCRIBEs, a second by other clients.
    #[arg(long, default_value_t = 0.0, value_name = "PER_SECOND")]
    churn: f64,
    /// Length of the measured interval.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Load before the measured interval, in seconds.
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS")]
    warm_up: f64,
}

/// A scenario of `run`.
pub enum RunPlan {
    /// Messages.
    Traffic(traffic::Plan),
    /// Connections.
    Connect(connect::Plan),
}

impl Run {
    /// The scenario asked for.
    pub fn plan(&self) -> RunPlan {
        let version = self.at.mqtt.into();
        let (publishers, subscribers, shape) = match self.scenario {
            Scenario::Connect => {
                return RunPlan::Connect(connect::Plan {
                    version,
                    rate: self.rate.unwrap_or(1000.0),
                    seconds: self.seconds,
                    warm_up_seconds: self.warm_up,
                    seed: self.at.seed,
                });
            }
            Scenario::FanIn => (self.clients, 1, traffic::Shape::FanIn),
            Scenario::FanOut => (1, self.clients, traffic::Shape::FanOut),
            Scenario::Pairs => (self.clients, self.clients, traffic::Shape::Pairs),
            Scenario::Shared => (self.clients, self.clients, traffic::Shape::Shared),
        };
        RunPlan::Traffic(traffic::Plan {
            shape,
            version,
            qos: self.qos,
            payload_bytes: self.payload.max(1),
            window: self.window,
            publishers: self.publishers.unwrap_or(publishers),
            subscribers: self.subscribers.unwrap_or(subscribers),
            rate: self.rate,
            keeps_sessions: self.persistent,
            look_ns: 0,
            churn_per_second: self.churn,
            seconds: self.seconds,
            warm_up_seconds: self.warm_up,
            patience_seconds: PATIENCE_SECONDS,
            seed: self.at.seed,
        })
    }
}

#[derive(Debug, Args)]
pub struct Idle {
    #[command(flatten)]
    pub at: Where,
    /// QoS of the messages and subscriptions.
    #[arg(long, default_value = "0", value_parser = parse_qos)]
    qos: QoS,
    /// Bytes of a payload (at least 24).
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    payload: usize,
    /// How many connections, each subscribed and served three messages.
    #[arg(long, default_value_t = 9_500)]
    clients: u32,
    /// How long they idle.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
}

impl Idle {
    /// The scenario asked for.
    pub fn plan(&self) -> idle::Plan {
        idle::Plan {
            version: self.at.mqtt.into(),
            qos: self.qos,
            payload_bytes: self.payload.max(1),
            clients: self.clients,
            seconds: self.seconds,
            seed: self.at.seed,
        }
    }
}

#[derive(Debug, Args)]
pub struct Large {
    #[command(flatten)]
    pub at: Where,
    /// QoS of all messages.
    #[arg(long, default_value = "1", value_parser = parse_qos)]
    qos: QoS,
    /// Bytes of a large payload.
    #[arg(long, default_value_t = 16 << 20, value_name = "BYTES")]
    payload: usize,
    /// Pairs that exchange large messages.
    #[arg(long, default_value_t = 20)]
    clients: u32,
    /// Large messages of each pair, one after the other.
    #[arg(long, default_value_t = 3)]
    messages: u64,
    /// Small messages a second in all.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// How long small messages alone are measured first.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

impl Large {
    /// The scenario asked for.
    pub fn plan(&self) -> large::Plan {
        large::Plan {
            version: self.at.mqtt.into(),
            qos: self.qos,
            payload_bytes: self.payload.max(1),
            pairs: self.clients,
            messages: self.messages,
            small_rate: self.rate,
            seconds: self.seconds,
            seed: self.at.seed,
        }
    }
}

#[derive(Debug, Args)]
pub struct Retained {
    #[command(flatten)]
    pub at: Where,
    /// QoS of all messages and subscriptions, 1 or 2.
    #[arg(long, default_value = "1", value_parser = parse_qos)]
    qos: QoS,
    /// How many messages are retained, each under a topic of its own.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Bytes of a payload (at least 24).
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    payload: usize,
    /// Unacknowledged messages while storing.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    window: u32,
    /// Live messages a second in all, beside.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// How long live messages alone are measured first.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Leave the retained messages on the broker.
    #[arg(long)]
    keep: bool,
}

impl Retained {
    /// The scenario asked for.
    pub fn plan(&self) -> retained::Plan {
        retained::Plan {
            version: self.at.mqtt.into(),
            qos: self.qos,
            messages: self.messages,
            payload_bytes: self.payload.max(1),
            window: self.window,
            live_rate: self.rate,
            seconds: self.seconds,
            keep: self.keep,
            seed: self.at.seed,
        }
    }
}

#[derive(Debug, Args)]
pub struct Compare {
    /// Broker A: `kentongan`, `mosquitto`, or a command with `{port}` and `{dir}` in it.
    #[arg(long, default_value = "kentongan")]
    pub a: String,
    /// Broker B, likewise.
    #[arg(long, default_value = "mosquitto")]
    pub b: String,
    /// Rows to do, separated by commas: `all`, or their names.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    pub rows: Vec<String>,
    /// How often each row is done with each broker, in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rounds: u16,
    /// Length of each measured interval.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    #[command(flatten)]
    pub programs: Programs,
    /// Of topics and client identifiers.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// End with 1 also when a row is void or over its target.
    #[arg(long)]
    pub enforce: bool,
    /// Write every round to this file, as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Cluster {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=9))]
    nodes: u16,
    /// Arbiters of each node, instead of one for each core: nodes that share a machine each take it for theirs. What they are
    /// measured against has as many as ever.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    arbiters: Option<u16>,
    /// Hold each broker's process, also what nodes are measured against, to so many cores, as if each had a machine of its own of
    /// that size. Needs the right to make control groups.
    #[arg(long)]
    cores: Option<f64>,
    /// Rows to do, separated by commas; all of them, if none is named.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<cluster::Row>,
    /// How often each row is done.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Length of each measured interval.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Messages that a publisher of the durable row may have sent and its subscriber not yet received.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    durable_window: u32,
    /// Nodes to kill, one after the other, in the failover row.
    #[arg(long, default_value_t = 10)]
    kills: usize,
    /// Clients of the node that is killed in the reconnect row. The node, and this program, need as many descriptors.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    #[command(flatten)]
    programs: Programs,
    /// Of topics and client identifiers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End with 1 also when a figure misses its target.
    #[arg(long)]
    pub enforce: bool,
    /// Write every round to this file, as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Cluster {
    /// What is asked for.
    pub fn plan(&self) -> cluster::Plan {
        cluster::Plan {
            kentongan: self.programs.kentongan.clone(),
            mosquitto: self.programs.recipe("mosquitto"),
            nodes: usize::from(self.nodes),
            arbiters: self.arbiters,
            cores: self.cores,
            rows: if self.rows.is_empty() { cluster::Row::value_variants().to_vec() } else { self.rows.clone() },
            rounds: usize::from(self.rounds),
            seconds: self.seconds,
            durable_window: self.durable_window,
            kills: self.kills,
            clients: self.clients as usize,
            seed: self.seed,
        }
    }
}

/// The broker that was built with this program.
fn beside() -> std::io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("kentongan"))
}

#[derive(Debug, Args)]
pub struct Abuse {
    /// Storms, separated by commas; all of them, if none is named.
    #[arg(value_delimiter = ',')]
    storms: Vec<abuse::Storm>,
    /// The broker; without it `kentongan` beside this program.
    #[arg(long, value_name = "PATH")]
    broker: Option<PathBuf>,
    /// Clients that reconnect at once. The broker, and this program, need as many descriptors.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// How long subscribers are stalled, in seconds.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Of topics, Client Identifiers and the times at which clients try again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the figures to this file, as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Abuse {
    /// What is asked for.
    pub fn plan(&self) -> anyhow::Result<abuse::Plan> {
        let all = abuse::Storm::value_variants();
        Ok(abuse::Plan {
            program: self.broker.clone().map_or_else(beside, Ok)?,
            storms: if self.storms.is_empty() { all.to_vec() } else { self.storms.clone() },
            clients: self.clients as usize,
            seconds: self.seconds,
            seed: self.seed,
        })
    }
}

#[derive(Debug, Args)]
pub struct Faults {
    /// The broker; without it `kentongan` beside this program.
    #[arg(long, value_name = "PATH")]
    broker: Option<PathBuf>,
    /// Another version of the broker, for F14: each node is upgraded from the one to the other.
    #[arg(long, value_name = "PATH")]
    other_binary: Option<PathBuf>,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=9))]
    nodes: u16,
    /// Faults to inject, separated by commas; all of them, if none is named.
    #[arg(long, value_delimiter = ',', ignore_case = true)]
    faults: Vec<Fault>,
    /// How often every case of each fault is injected.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// In each round, inject only so many cases of each fault, drawn anew.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=100))]
    cases: Option<u16>,
    /// Begin no further cluster after so long under load, whatever the rounds.
    #[arg(long)]
    minutes: Option<f64>,
    /// QoS 1 and 2 messages a second in all.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// How many clients, of every kind.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(8..=1000))]
    clients: u16,
    /// Of the schedule, and of what clients do; without it, drawn and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Do what this file says, which a run kept; it has a seed and a number of nodes of its own.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "rounds", "cases", "faults", "nodes"])]
    schedule: Option<PathBuf>,
    /// Where the schedule is kept, and histories and logs if something is wrong; without it, a directory for temporary files.
    #[arg(long, value_name = "DIRECTORY")]
    keep: Option<PathBuf>,
    /// Keep all histories and logs.
    #[arg(long)]
    keep_all: bool,
    /// A fault that cannot be injected here is no failure.
    #[arg(long)]
    allow_skips: bool,
    /// A run in which less was done than shows anything is no failure.
    #[arg(long)]
    allow_little: bool,
    /// Write what was seen to this file, as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Faults {
    /// What is asked for.
    pub fn plan(&self) -> anyhow::Result<faults::Plan> {
        let asked = if self.faults.is_empty() { Fault::ALL.to_vec() } else { self.faults.clone() };
        let (schedule, faults) = match &self.schedule {
            Some(path) => {
                let schedule = faults::read_schedule(path)?;
                let faults = schedule.faults();
                (schedule, faults)
            }
            None => {
                let seed = self.seed.unwrap_or_else(rand::random);
                let (nodes, rounds) = (usize::from(self.nodes), usize::from(self.rounds));
                (Schedule::draw(seed, nodes, &asked, rounds, self.cases.map(usize::from)), asked)
            }
        };
        Ok(faults::Plan {
            program: self.broker.clone().map_or_else(beside, Ok)?,
            other_program: self.other_binary.clone(),
            keep: self.keep.clone().unwrap_or_else(|| {
                let run = format!("kentongan-faults-{}-{}", schedule.seed, std::process::id());
                std::env::temp_dir().join(run)
            }),
            schedule,
            faults,
            clients: usize::from(self.clients),
            messages_per_second: self.rate,
            keep_all: self.keep_all,
            minutes: self.minutes,
            allow_skips: self.allow_skips,
            allow_little: self.allow_little,
        })
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| format!("{text} has no address"))
}

fn parse_qos(text: &str) -> Result<QoS, String> {
    text.parse().ok().and_then(QoS::from_bits).ok_or_else(|| "QoS is 0, 1 or 2".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn clients_mean_what_the_scenario_makes_of_them() {
        let plan = |arguments: &str| match Cli::parse_from(arguments.split(' ')).command {
            Command::Run(run) => match run.plan() {
                RunPlan::Traffic(plan) => (plan.publishers, plan.subscribers),
                RunPlan::Connect(_) => panic!("{arguments} does not connect"),
            },
            _ => panic!("{arguments} runs"),
        };
        assert_eq!(plan("lt run fan-out --clients 7"), (1, 7));
        assert_eq!(plan("lt run fan-in --clients 7"), (7, 1));
        assert_eq!(plan("lt run p2p --clients 7"), (7, 7));
        assert_eq!(plan("lt run shared --publishers 3 --subscribers 4"), (3, 4));
    }
}
