//! Several nodes that are one broker: what the cluster costs beside one node, and what it does when it loses one.
//!
//! The processes run on this machine, so their CPU time adds up to that of the whole cluster. A single node, or another
//! broker, is measured in the same rounds, so that what else the machine does falls on both alike.

mod failover;
mod reconnect;

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Result, ensure};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use serde::{Deserialize, Serialize};

use crate::{
    compare::broker::{Recipe, Running},
    figure::{Figure, Limit, Unit, medians},
    measure::{CpuSample, DiskProber, syncs_per_second},
    nodes::Nodes,
    report::{Progress, Table},
    scenario::{
        Broker, Outcome, PATIENCE_SECONDS, connect, run_number,
        traffic::{self, Shape},
    },
};

/// The metric that counts syncs of the log.
const SYNCS: &str = "kentongan_log_sync_seconds_count";

/// Metrics are at most this old.
const METRICS_AGE: Duration = Duration::from_millis(1100);

/// How long the disk is probed before a durable load.
const DISK_PROBE: Duration = Duration::from_secs(1);

/// How long the idle row looks on, at least.
const IDLE_SECONDS: f64 = 10.0;

/// CPU of the nodes together relative to a single node's, for messages that no log keeps.
const TRANSIENT_RATIO_MAX: f64 = 2.0;

/// Durable messages a second: as many as this for each sync that the disk does a second, ...
const DURABLE_PER_SYNC_MIN: f64 = 20.0;

/// ... but no more are asked for than this.
const DURABLE_PER_SECOND_MIN: f64 = 15_000.0;

/// CPU of the nodes together for one durable message.
const DURABLE_CPU_NS_MAX: f64 = 60_000.0;

/// p99 of durable messages at half the peak rate: this, and four times the disk's own p99.
const DURABLE_P99_US_MAX: f64 = 20_000.0;

/// At an even rate the generator looks that often what is due, on average half of this too late, which counts as latency.
const DURABLE_LOOK_NS: u64 = 250_000;

/// Time that one connection takes at full speed, relative to mosquitto.
const CONNECT_RATIO_MAX: f64 = 1.5;

/// Connections a second that no broker here can keep up with, so that each goes at its own full speed.
const CONNECT_RATE_UNREACHED: f64 = 20_000.0;

/// As long at that rate, so that a run stays within its bound of connections.
const CONNECT_SECONDS_MAX: f64 = 4.0;

/// Share of a core that an idle node may use.
const IDLE_SHARE_MAX: f64 = 0.01;

/// Until publishers at the nodes that are left are acknowledged again: an election, and what they try meanwhile.
const ACKNOWLEDGED_MS_MAX: f64 = 3000.0;

/// Until what waits for a lost node is answered, if that led the directory: its lease (1.5 s), two elections (1 s each), and 2 s.
const DIRECTORY_LOST_MS_MAX: f64 = 5500.0;

/// The same if it did not lead the directory: its lease, and 1 s.
const NODE_LOST_MS_MAX: f64 = 2500.0;

/// Until all clients of a killed node are served by others.
const RECONNECT_US_MAX: f64 = 60e6;

/// What clients of the others may notice of that.
const ESTABLISHED_P99_US_MAX: f64 = 100_000.0;

/// What is done with a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// 1 → 50, QoS 0, window 20: the publisher at one node, the subscribers at the others.
    FanOut,
    /// 50 pairs, QoS 0, window 20: each subscriber at the node after its publisher's.
    P2pQos0,
    /// 50 pairs, QoS 1 into persistent sessions, likewise, with every log synced; at full speed, then at half of it.
    Durable,
    /// CONNECT, CONNACK, DISCONNECT over all nodes: at full speed, then 1,000 a second.
    Connect,
    /// Nothing.
    Idle,
    /// Nodes are killed.
    Failover,
    /// A node with many clients is killed, and they come back to the others all at once.
    Reconnect,
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program of the nodes.
    pub kentongan: PathBuf,
    /// What connecting is measured against.
    pub mosquitto: Recipe,
    /// How many nodes.
    pub nodes: usize,
    /// Arbiters of each of them; `None`: one for each core of the machine.
    pub arbiters: Option<u16>,
    /// Cores that each broker's process may use; `None`: as many as it gets.
    pub cores: Option<f64>,
    /// What is done with them.
    pub rows: Vec<Row>,
    /// How often each row is done.
    pub rounds: usize,
    /// Length of each measured interval.
    pub seconds: f64,
    /// Unacknowledged durable messages of a publisher.
    pub durable_window: u32,
    /// Nodes to kill, one after the other.
    pub kills: usize,
    /// Clients of the node that is killed in the reconnect row.
    pub clients: usize,
    /// Of topics and client identifiers.
    pub seed: u64,
}

/// How one row came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowResult {
    /// Which one.
    pub row: Row,
    /// Medians over the rounds.
    pub figures: Vec<Figure>,
    /// The figures of every round.
    pub rounds: Vec<Vec<Figure>>,
    /// Everything that was seen in every round.
    pub outcomes: Vec<Outcome>,
    /// What each kill cost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kills: Vec<failover::Kill>,
    /// What is wrong with a broker.
    pub failures: Vec<String>,
}

/// All rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// How many nodes there were.
    pub nodes: usize,
    /// Arbiters of each of them; `None`: one for each core of the machine.
    #[serde(default)]
    pub arbiters: Option<u16>,
    /// Cores that each broker's process could use; `None`: as many as it got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<f64>,
    /// Rounds of each row.
    pub rounds: usize,
    /// The rows.
    pub rows: Vec<RowResult>,
}

/// Starts the nodes, and does all rows.
pub fn run(plan: &Plan, progress: &Progress) -> Result<Results> {
    ensure!(plan.nodes > 1, "a cluster has at least two nodes");
    let mut nodes = start_nodes(plan)?;
    let mut rows = Vec::new();
    for row in &plan.rows {
        let result = run_row(plan, *row, &mut nodes, progress)?;
        for figure in &result.figures {
            progress.say(&format!("{}: {figure}", row.name()));
        }
        if let Some(ended) = nodes.ended() {
            progress.say(&ended);
            nodes = start_nodes(plan)?;
        }
        rows.push(result);
    }
    Ok(Results { nodes: plan.nodes, arbiters: plan.arbiters, cores: plan.cores, rounds: plan.rounds, rows })
}

fn start_nodes(plan: &Plan) -> Result<Nodes> {
    let mut nodes = Nodes::prepare(&plan.kentongan, plan.nodes)?;
    for index in 0..nodes.count() {
        nodes.environment(index).extend(environment(plan.arbiters));
    }
    nodes.set_cores(plan.cores);
    nodes.spawn_all()?;
    Ok(nodes)
}

/// What a node is told beside its command line.
fn environment(arbiters: Option<u16>) -> Option<(String, String)> {
    arbiters.map(|arbiters| ("KENTONGAN_ARBITERS".into(), arbiters.to_string()))
}

fn run_row(plan: &Plan, row: Row, nodes: &mut Nodes, progress: &Progress) -> Result<RowResult> {
    let mut result = RowResult {
        row,
        figures: Vec::new(),
        rounds: Vec::new(),
        outcomes: Vec::new(),
        kills: Vec::new(),
        failures: Vec::new(),
    };
    let other = match row {
        Row::FanOut | Row::P2pQos0 => Some(Recipe::Kentongan(plan.kentongan.clone())),
        Row::Connect => Some(plan.mosquitto.clone()),
        Row::Durable | Row::Idle | Row::Failover | Row::Reconnect => None,
    };
    let mut other = other.map(|recipe| Running::start(&recipe)).transpose()?;
    if let (Some(other), Some(cores)) = (&mut other, plan.cores) {
        other.limit(cores)?;
    }
    let rounds = if row == Row::Failover { 1 } else { plan.rounds };
    for _ in 0..rounds {
        let mut round = Round { plan, nodes, outcomes: &mut result.outcomes, progress };
        let figures = match (row, &other) {
            (Row::FanOut, Some(single)) => round.transient(&transient(plan, Shape::FanOut, 1), &single.broker()),
            (Row::P2pQos0, Some(single)) => round.transient(&transient(plan, Shape::Pairs, 50), &single.broker()),
            (Row::Connect, Some(mosquitto)) => round.connect(&mosquitto.broker()),
            (Row::Durable, _) => round.durable(),
            (Row::Idle, _) => round.idle(),
            (Row::Reconnect, _) => round.reconnect(),
            _ => round.failover(&mut result.kills),
        };
        match figures {
            Ok(figures) => result.rounds.push(figures),
            Err(error) => result.failures.push(format!("{error:#}")),
        }
    }
    result.failures.extend(result.outcomes.iter().flat_map(|outcome| outcome.failures.clone()));
    result.failures.extend(nodes.ended());
    result.figures = medians(&result.rounds);
    Ok(result)
}

/// One round of one row.
struct Round<'a> {
    plan: &'a Plan,
    nodes: &'a mut Nodes,
    outcomes: &'a mut Vec<Outcome>,
    progress: &'a Progress,
}

impl Round<'_> {
    fn traffic(&mut self, plan: &traffic::Plan, broker: &Broker) -> Result<Outcome> {
        let outcome = traffic::run(plan, broker, self.progress)?;
        self.outcomes.push(outcome.clone());
        Ok(outcome)
    }

    fn transient(&mut self, plan: &traffic::Plan, single: &Broker) -> Result<Vec<Figure>> {
        let nodes = if plan.shape == Shape::FanOut { self.nodes.one_to_others() } else { self.nodes.rotated() };
        let alone = self.traffic(plan, single)?;
        let together = self.traffic(plan, &nodes)?;
        let [alone_ns, together_ns] = [&alone, &together].map(|outcome| outcome.cpu_ns_per_message.unwrap_or(f64::NAN));
        Ok(vec![
            Figure::new("CPU a message, relative to one node", together_ns / alone_ns, Unit::Ratio)
                .limited(Limit::AtMost(TRANSIENT_RATIO_MAX)),
            Figure::new("CPU a message, nodes together", together_ns, Unit::Nanoseconds),
            Figure::new("CPU a message, one node", alone_ns, Unit::Nanoseconds),
            Figure::new("messages a second", together.messages_per_second(), Unit::Count),
            Figure::new("messages a second, one node", alone.messages_per_second(), Unit::Count),
            Figure::new("latency p50", together.latency.p50_us, Unit::Microseconds),
            Figure::new("latency p99", together.latency.p99_us, Unit::Microseconds),
            Figure::new("generator, of a core", together.own_share, Unit::Share),
        ])
    }

    fn durable(&mut self) -> Result<Vec<Figure>> {
        let disk = syncs_per_second(self.nodes.dir(), DISK_PROBE)?;
        let plan = durable(self.plan);
        let broker = self.nodes.rotated();
        thread::sleep(METRICS_AGE);
        let before = self.nodes.metric(SYNCS)?;
        let peak = self.traffic(&plan, &broker)?;
        thread::sleep(METRICS_AGE);
        let syncs = self.nodes.metric(SYNCS)? - before;
        let a_second = peak.delivered as f64 / peak.seconds;
        let on_cpu_ns = peak.broker_cpu.map_or(f64::NAN, |used| used.on_cpu_ns as f64);

        let prober = DiskProber::start(self.nodes.dir())?;
        let even = traffic::Plan { rate: Some(a_second / 2.0), look_ns: DURABLE_LOOK_NS, ..plan };
        let half = self.traffic(&even, &broker);
        let disk_latency = prober.finish()?;
        let half = half?;
        let p99_us_max = DURABLE_P99_US_MAX + 4.0 * disk_latency.p99_us;
        let per_second_min = (DURABLE_PER_SYNC_MIN * disk).min(DURABLE_PER_SECOND_MIN);
        Ok(vec![
            Figure::new("messages a second", a_second, Unit::Count).limited(Limit::AtLeast(per_second_min)),
            Figure::new("syncs of the disk alone a second", disk, Unit::Count),
            Figure::new("syncs a message, nodes together", syncs / peak.published_in_all as f64, Unit::Ratio),
            Figure::new("CPU a message, nodes together", on_cpu_ns / peak.delivered as f64, Unit::Nanoseconds)
                .limited(Limit::AtMost(DURABLE_CPU_NS_MAX)),
            Figure::new("latency p50", peak.latency.p50_us, Unit::Microseconds),
            Figure::new("latency p99", peak.latency.p99_us, Unit::Microseconds),
            Figure::new("latency p50 at half the rate", half.latency.p50_us, Unit::Microseconds),
            Figure::new("latency p99 at half the rate", half.latency.p99_us, Unit::Microseconds)
                .limited(Limit::AtMost(p99_us_max)),
            Figure::new("the disk's own p99 meanwhile", disk_latency.p99_us, Unit::Microseconds),
            Figure::new("messages a second at half the rate", half.delivered as f64 / half.seconds, Unit::Count),
            Figure::new("generator, of a core", peak.own_share, Unit::Share),
            Figure::new("generator, of a core, at half the rate", half.own_share, Unit::Share),
        ])
    }

    fn connect(&mut self, mosquitto: &Broker) -> Result<Vec<Figure>> {
        let nodes = self.nodes.rotated();
        let fast = self.connect_plan(CONNECT_RATE_UNREACHED, self.plan.seconds.min(CONNECT_SECONDS_MAX));
        let [other_fast, nodes_fast] = [self.connecting(&fast, mosquitto)?, self.connecting(&fast, &nodes)?];
        let even = self.connect_plan(1000.0, self.plan.seconds);
        let [other, nodes] = [self.connecting(&even, mosquitto)?, self.connecting(&even, &nodes)?];
        let cpu_ns = |outcome: &Outcome| outcome.cpu_ns_per_message.unwrap_or(f64::NAN);
        let a_second = |outcome: &Outcome| outcome.delivered as f64 / outcome.seconds;
        Ok(vec![
            Figure::new(
                "time a connection, relative to mosquitto",
                a_second(&other_fast) / a_second(&nodes_fast),
                Unit::Ratio,
            )
            .limited(Limit::AtMost(CONNECT_RATIO_MAX)),
            Figure::new("connections a second", a_second(&nodes_fast), Unit::Count),
            Figure::new("connections a second, mosquitto", a_second(&other_fast), Unit::Count),
            Figure::new("CPU a connection, nodes together", cpu_ns(&nodes_fast), Unit::Nanoseconds),
            Figure::new("CPU a connection, mosquitto", cpu_ns(&other_fast), Unit::Nanoseconds),
            Figure::new("the same at 1,000 a second, nodes together", cpu_ns(&nodes), Unit::Nanoseconds),
            Figure::new("the same at 1,000 a second, mosquitto", cpu_ns(&other), Unit::Nanoseconds),
            Figure::new("until CONNACK, p50", nodes.latency.p50_us, Unit::Microseconds),
            Figure::new("until CONNACK, p99", nodes.latency.p99_us, Unit::Microseconds),
            Figure::new("until CONNACK, p50, mosquitto", other.latency.p50_us, Unit::Microseconds),
        ])
    }

    fn connect_plan(&self, rate: f64, seconds: f64) -> connect::Plan {
        let seed = self.plan.seed;
        connect::Plan { version: ProtocolVersion::V3_1_1, rate, seconds, warm_up_seconds: 0.5, seed }
    }

    fn connecting(&mut self, plan: &connect::Plan, broker: &Broker) -> Result<Outcome> {
        let outcome = connect::run(plan, broker, self.progress)?;
        self.outcomes.push(outcome.clone());
        Ok(outcome)
    }

    fn idle(&mut self) -> Result<Vec<Figure>> {
        // What the row before left to be done.
        thread::sleep(Duration::from_secs(3));
        let pids = self.nodes.rotated().pids;
        let before = pids.iter().map(|pid| CpuSample::of(*pid)).collect::<Result<Vec<_>>>()?;
        thread::sleep(Duration::from_secs_f64(self.plan.seconds.max(IDLE_SECONDS)));
        let mut shares = Vec::new();
        for (pid, before) in pids.iter().zip(&before) {
            shares.push(CpuSample::of(*pid)?.since(before).share());
        }
        let busiest = shares.iter().copied().fold(0.0, f64::max);
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        Ok(vec![
            Figure::new("CPU of the busiest node, of a core", busiest, Unit::Share)
                .limited(Limit::AtMost(IDLE_SHARE_MAX)),
            Figure::new("CPU of a node, of a core", mean, Unit::Share),
        ])
    }

    fn failover(&mut self, kills: &mut Vec<failover::Kill>) -> Result<Vec<Figure>> {
        let wanted = self.plan.kills;
        let progress = self.progress;
        let tell = |number| progress.at("failover", number as u64, wanted as u64);
        *kills = failover::run(self.nodes, wanted, run_number(self.plan.seed), tell)?;
        Ok(failover_figures(kills))
    }

    fn reconnect(&mut self) -> Result<Vec<Figure>> {
        self.progress.say("reconnect: a node with all its clients is killed");
        let victim = self.outcomes.len() % self.nodes.count();
        let clients = self.plan.clients;
        let came = reconnect::run(self.nodes, victim, clients, self.plan.seed, run_number(self.plan.seed))?;
        let us = |name: &str, us: f64| Figure::new(name, us, Unit::Microseconds);
        Ok(vec![
            us("all clients back, after", came.all_ms * 1e3).limited(Limit::AtMost(RECONNECT_US_MAX)),
            us("half of them, after", came.half_ms * 1e3),
            Figure::new("clients", came.clients as f64, Unit::Count),
            Figure::new("CONNECT refused or broken off", came.refused as f64, Unit::Count),
            us("latency p99 of those who stayed", came.meanwhile.p99_us).limited(Limit::AtMost(ESTABLISHED_P99_US_MAX)),
            us("latency p50 of those who stayed", came.meanwhile.p50_us),
            us("latency at most of those who stayed", came.meanwhile.max_us),
            us("latency p99 before the kill", came.before.p99_us),
        ])
    }
}

/// The median of each time, the longest, and the longest but one, which may miss its target once by its double.
fn failover_figures(kills: &[failover::Kill]) -> Vec<Figure> {
    type Time = fn(&failover::Kill) -> f64;
    let led = |kill: &&failover::Kill| kill.led_directory;
    let (leading, other): (Vec<_>, Vec<_>) = kills.iter().partition(led);
    let all: Vec<_> = kills.iter().collect();
    let times: [(&str, Time); 3] = [
        ("CONNECT", |kill| kill.connected_ms),
        ("SUBACK", |kill| kill.subscribed_ms),
        ("session resumed", |kill| kill.resumed_ms),
    ];
    let mut figures = spread("acknowledged again", &all, |kill| kill.acknowledged_ms, ACKNOWLEDGED_MS_MAX);
    for (name, time) in times {
        figures.extend(spread(&format!("{name}, directory's leader killed"), &leading, time, DIRECTORY_LOST_MS_MAX));
        figures.extend(spread(&format!("{name}, another killed"), &other, time, NODE_LOST_MS_MAX));
    }
    figures
}

fn spread(name: &str, kills: &[&failover::Kill], time: fn(&failover::Kill) -> f64, target_ms: f64) -> Vec<Figure> {
    let mut ms: Vec<_> = kills.iter().map(|kill| time(kill)).collect();
    ms.sort_by(f64::total_cmp);
    let (Some(longest), Some(middle)) = (ms.last(), ms.get(ms.len() / 2)) else {
        return Vec::new();
    };
    let us =
        |kind: &str, ms: f64| Figure::new(&format!("{name}, {kind} of {}", kills.len()), ms * 1e3, Unit::Microseconds);
    let mut figures = vec![us("median", *middle)];
    let but_one = ms.len().checked_sub(2).and_then(|at| ms.get(at));
    figures.extend(but_one.map(|ms| us("longest but one", *ms).limited(Limit::AtMost(target_ms * 1e3))));
    figures.push(us("longest", *longest).limited(Limit::AtMost(target_ms * 2e3)));
    figures
}

fn transient(plan: &Plan, shape: Shape, publishers: u32) -> traffic::Plan {
    traffic::Plan {
        shape,
        version: ProtocolVersion::V3_1_1,
        qos: QoS::AtMostOnce,
        payload_bytes: 64,
        window: 20,
        publishers,
        subscribers: 50,
        rate: None,
        keeps_sessions: false,
        look_ns: 0,
        churn_per_second: 0.0,
        seconds: plan.seconds,
        warm_up_seconds: 0.5,
        patience_seconds: PATIENCE_SECONDS,
        seed: plan.seed,
    }
}

fn durable(plan: &Plan) -> traffic::Plan {
    traffic::Plan {
        qos: QoS::AtLeastOnce,
        window: plan.durable_window,
        keeps_sessions: true,
        ..transient(plan, Shape::Pairs, 50)
    }
}

impl Row {
    /// As on the command line.
    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl RowResult {
    /// The figures may be believed, and are within their limits.
    fn is_ok(&self) -> bool {
        self.failures.is_empty() && !self.rounds.is_empty() && self.figures.iter().all(Figure::is_ok)
    }
}

impl Results {
    /// Every figure is within its target.
    pub fn is_ok(&self) -> bool {
        self.rows.iter().all(RowResult::is_ok)
    }

    /// A broker did something wrong.
    pub fn has_failed(&self) -> bool {
        self.rows.iter().any(|row| !row.failures.is_empty())
    }
}

impl std::fmt::Display for Results {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let arbiters = self.arbiters.map_or_else(String::new, |arbiters| format!("; arbiters each: {arbiters}"));
        let cores = self.cores.map_or_else(String::new, |cores| format!("; cores each: {cores}"));
        writeln!(f, "{} nodes{arbiters}{cores}; medians of {} rounds", self.nodes, self.rounds)?;
        let mut table = Table::new(&["row", "figure", "value", "target", "verdict"]);
        for row in &self.rows {
            for figure in &row.figures {
                table.row(vec![
                    row.row.name(),
                    figure.name.clone(),
                    figure.value_text(),
                    figure.limit_text(),
                    figure.verdict().into(),
                ]);
            }
        }
        write!(f, "{table}")?;
        for row in &self.rows {
            for failure in &row.failures {
                writeln!(f, "FAILED: {}: {failure}", row.row.name())?;
            }
            // Not those of the single node and of mosquitto, which would be as busy.
            for void in row.outcomes.iter().filter_map(|outcome| outcome.void.as_ref()) {
                writeln!(f, "VOID in one round: {}: {void}", row.row.name())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(figures: Vec<Figure>, failures: &[&str]) -> Results {
        let failures = failures.iter().map(|text| (*text).to_owned()).collect();
        let rounds = vec![figures.clone()];
        let row = RowResult { row: Row::Durable, figures, rounds, outcomes: Vec::new(), kills: Vec::new(), failures };
        Results { nodes: 3, arbiters: None, cores: None, rounds: 1, rows: vec![row] }
    }

    #[test]
    fn a_row_is_ok_only_within_its_limits_and_without_failures() {
        let within = Figure::new("x", 1.9, Unit::Ratio).limited(Limit::AtMost(2.0));
        let over = Figure::new("x", 2.1, Unit::Ratio).limited(Limit::AtMost(2.0));
        assert!(result(vec![within.clone()], &[]).is_ok());
        assert!(!result(vec![over], &[]).is_ok());
        let failed = result(vec![within], &["3 lost"]);
        assert!(!failed.is_ok() && failed.has_failed());
        assert!(failed.to_string().contains("FAILED: durable: 3 lost"));
    }

    /// Figures of nodes that were told how many arbiters to have are none of those that were not.
    #[test]
    fn what_nodes_were_told_stands_with_their_figures() {
        assert_eq!(environment(None), None);
        assert_eq!(environment(Some(1)), Some(("KENTONGAN_ARBITERS".into(), "1".into())));
        let told = Results { arbiters: Some(1), ..result(Vec::new(), &[]) };
        assert!(told.to_string().starts_with("3 nodes; arbiters each: 1; medians"), "{told}");
        let held = Results { cores: Some(0.4), ..result(Vec::new(), &[]) };
        assert!(held.to_string().starts_with("3 nodes; cores each: 0.4; medians"), "{held}");
        assert!(result(Vec::new(), &[]).to_string().starts_with("3 nodes; medians"));
    }

    #[test]
    fn a_row_that_measured_nothing_is_not_ok() {
        let mut nothing = result(Vec::new(), &[]);
        nothing.rows[0].rounds.clear();
        assert!(!nothing.is_ok());
    }
}
