//! What is tried: each scenario opens its clients, waits until all are ready, loads the broker, and
//! says what it saw.

pub mod connect;
pub mod idle;
pub mod large;
pub mod retained;
pub mod traffic;

#[cfg(test)]
mod saboteur;

use std::net::SocketAddr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Counts, Findings, Places},
    measure::{CpuSample, CpuUse, LatencySummary, Memory, OwnCpu, SECOND},
};

/// A generator that used more than this share of a core may have been the bottleneck.
pub const OWN_SHARE_MAX: f64 = 0.9;

/// How long a whole broker may be silent while answers are awaited.
pub const PATIENCE_SECONDS: f64 = 5.0;

const PATIENCE_NS: u64 = 5 * SECOND;

/// How long all connections of a scenario may take to open.
const ESTABLISH_NS: u64 = 60 * SECOND;

/// The broker that is tried: one process, or several that are one broker.
#[derive(Debug, Clone)]
pub struct Broker {
    /// Where it listens for MQTT over TCP.
    pub places: Places,
    /// Its processes, as far as they run on this machine: their CPU and memory are read from `/proc`, and added up.
    pub pids: Vec<u32>,
}

impl Broker {
    /// One process.
    pub fn one(address: SocketAddr, pid: Option<u32>) -> Self {
        Self { places: address.into(), pids: pid.into_iter().collect() }
    }

    fn memory(&self) -> Result<Option<Memory>> {
        let mut sum = None;
        for pid in &self.pids {
            *sum.get_or_insert_default() += Memory::of(*pid)?;
        }
        Ok(sum)
    }

    /// Whether all of it begins to count its peak anew.
    fn reset_peak(&self) -> bool {
        !self.pids.is_empty() && self.pids.iter().all(|pid| Memory::reset_peak(*pid))
    }

    fn cpu(&self) -> Result<Vec<CpuSample>> {
        self.pids.iter().map(|pid| CpuSample::of(*pid)).collect()
    }
}

/// What a scenario saw.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The scenario, in words.
    pub scenario: String,
    /// Length of the measured interval.
    pub seconds: f64,
    /// Messages (for connecting: connections) begun in the measured interval.
    pub published: u64,
    /// Messages (for connecting: connections) completed in the measured interval.
    pub delivered: u64,
    /// Messages sent in the whole run, which the check of completeness covers.
    pub published_in_all: u64,
    /// CPU of the broker in the measured interval.
    pub broker_cpu: Option<CpuUse>,
    /// Nanoseconds of the broker's CPU per message, published or delivered, or per connection.
    pub cpu_ns_per_message: Option<f64>,
    /// Share of a core that the generator's thread used.
    pub own_share: f64,
    /// Milliseconds that the generator was away at most: so much of a latency may be its own doing.
    pub own_stall_ms: f64,
    /// Memory of the broker before the first connection.
    pub memory_before: Option<Memory>,
    /// Memory of the broker at the end.
    pub memory_after: Option<Memory>,
    /// From send to arrival; for connecting: from opening the socket to CONNACK.
    pub latency: LatencySummary,
    /// What was lost, duplicated, out of order, …
    pub findings: Findings,
    /// Figures of this scenario alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<(String, f64)>,
    /// Why the figures are not to be used, although nothing is wrong with the broker.
    pub void: Option<String>,
    /// What is wrong with the broker.
    pub failures: Vec<String>,
}

impl Outcome {
    /// Messages a second that were published and delivered.
    pub fn messages_per_second(&self) -> f64 {
        (self.published + self.delivered) as f64 / self.seconds.max(1e-9)
    }

    /// The broker did all it had to do.
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty()
    }

    fn note(&mut self, name: &str, value: f64) {
        self.extra.push((name.to_owned(), value));
    }

    /// Takes the findings, each kind a failure. What members of a shared group get out of order is
    /// not: the standard promises order only without sharing [MQTT-4.6.0-6].
    fn judge(&mut self, findings: Findings, order_matters: bool) {
        self.findings = findings;
        let kinds = [
            (findings.lost, "lost"),
            (findings.duplicated, "duplicated"),
            (if order_matters { findings.out_of_order } else { 0 }, "out of order"),
            (findings.foreign, "not asked for"),
            (findings.corrupt, "corrupt"),
            (findings.wrong_flags, "with wrong DUP, QoS or RETAIN"),
            (findings.unacknowledged, "not acknowledged"),
            (findings.refused, "refused"),
        ];
        for (count, kind) in kinds.into_iter().filter(|(count, _)| *count > 0) {
            self.failures.push(format!("{count} {kind}"));
        }
    }
}

/// CPU and counts at the beginning of a measured interval.
struct Interval {
    broker: Vec<CpuSample>,
    own: OwnCpu,
    counts: Counts,
}

impl Interval {
    fn begin(broker: &Broker, counts: Counts) -> Result<Self> {
        Ok(Self { broker: broker.cpu()?, own: OwnCpu::now(), counts })
    }

    /// Fills in what the interval has measured.
    fn end(self, broker: &Broker, counts: Counts, outcome: &mut Outcome) -> Result<()> {
        outcome.own_share = self.own.share_since();
        outcome.seconds = self.own.elapsed_ns() as f64 / 1e9;
        outcome.published = counts.published - self.counts.published;
        outcome.delivered = counts.delivered - self.counts.delivered;
        let used = broker.cpu()?.into_iter().zip(&self.broker).map(|(now, before)| now.since(before));
        if let Some(used) = used.reduce(|sum, one| sum + one) {
            outcome.broker_cpu = Some(used);
            let messages = outcome.published + outcome.delivered;
            outcome.cpu_ns_per_message = (messages > 0).then(|| used.on_cpu_ns as f64 / messages as f64);
        }
        if outcome.own_share > OWN_SHARE_MAX {
            outcome.void = Some(format!("the generator used {:.0} % of a core", outcome.own_share * 100.0));
        }
        Ok(())
    }
}

/// A number that marks the messages and topics of one run: of the seed and the clock, so that two
/// runs on one broker do not meet.
pub fn run_number(seed: u64) -> u32 {
    use rand::{RngExt, SeedableRng};
    rand::rngs::SmallRng::seed_from_u64(seed ^ crate::measure::now_ns()).random()
}
