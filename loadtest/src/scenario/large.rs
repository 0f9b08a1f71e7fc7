//! Large messages at once, and what they do to small ones and to the broker's memory.

use anyhow::Result;
use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use super::{Broker, ESTABLISH_NS, Interval, Outcome, run_number};
use crate::{
    engine::{Engine, Expected, PublisherPlan},
    measure::{SECOND, now_ns},
    report::Progress,
    wire::Target,
};

/// Pairs of small messages.
const SMALL_PAIRS: u32 = 10;

/// Bytes of a small payload.
const SMALL_BYTES: usize = 64;

/// Large messages move slowly on a busy machine; silence must last this long to be the end.
const LARGE_PATIENCE_NS: u64 = 30 * SECOND;

/// A scenario of large messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// MQTT version.
    pub version: ProtocolVersion,
    /// QoS of all messages.
    pub qos: QoS,
    /// Bytes of a large payload.
    pub payload_bytes: usize,
    /// Pairs that exchange large messages.
    pub pairs: u32,
    /// Large messages of each pair, one at a time.
    pub messages: u64,
    /// Small messages a second in all.
    pub small_rate: f64,
    /// How long small messages alone are measured, before the large ones.
    pub seconds: f64,
    /// Of topics and client identifiers.
    pub seed: u64,
}

/// Runs `plan` against `broker`. The outcome's latency is that of the small messages while large
/// ones are under way.
pub fn run(plan: &Plan, broker: &Broker, progress: &Progress) -> Result<Outcome> {
    let mut outcome = Outcome {
        scenario: format!("large {}×{} of {} B QoS {}", plan.pairs, plan.messages, plan.payload_bytes, plan.qos as u8),
        memory_before: broker.memory()?,
        ..Outcome::default()
    };
    let peak_is_ours = broker.reset_peak();
    let mut engine = Engine::new(broker.places.clone(), plan.version, run_number(plan.seed))?;
    let root = engine.topic_root();
    for n in 0..SMALL_PAIRS + plan.pairs {
        engine.add_subscriber(format!("{root}/{n}"), plan.qos, &Expected::Each { first: n, count: 1 });
    }
    for n in 0..SMALL_PAIRS + plan.pairs {
        let is_small = n < SMALL_PAIRS;
        engine.add_publisher(&PublisherPlan {
            target: Target::Topic(format!("{root}/{n}")),
            qos: plan.qos,
            retain: false,
            payload_bytes: if is_small { SMALL_BYTES } else { plan.payload_bytes },
            receivers: 1,
            window: if is_small { 1000 } else { 1 },
            messages_max: if is_small { u64::MAX } else { 0 },
            paced: is_small,
            latency_class: usize::from(!is_small),
        });
    }
    engine.establish(ESTABLISH_NS)?;
    engine.pace(0..SMALL_PAIRS as usize, plan.small_rate);
    engine.start();
    engine.run_until(now_ns() + SECOND / 2, &mut || ())?;
    engine.reset_latencies();
    let length = (plan.seconds * SECOND as f64) as u64;
    let alone = now_ns() + length;
    engine.run_until(alone, &mut || progress.until("small messages alone", alone, length))?;
    let small_alone = engine.latency(0).summary();

    engine.reset_latencies();
    let interval = Interval::begin(broker, engine.counts())?;
    let large = SMALL_PAIRS as usize..(SMALL_PAIRS + plan.pairs) as usize;
    engine.release(large.clone(), plan.messages);
    let begun = now_ns();
    let mut last_done = (0, begun);
    loop {
        let done = large.clone().filter(|index| engine.publisher(*index).is_done()).count();
        progress.at(&outcome.scenario, done as u64, u64::from(plan.pairs));
        let received = engine.latency(1).summary().count;
        if received > last_done.0 {
            last_done = (received, now_ns());
        }
        if done == large.len() || now_ns() - last_done.1 > LARGE_PATIENCE_NS {
            break;
        }
        engine.run_until(now_ns() + SECOND / 100, &mut || ())?;
    }
    let took_ns = now_ns() - begun;
    interval.end(broker, engine.counts(), &mut outcome)?;
    outcome.own_stall_ms = engine.longest_turn_ns() as f64 / 1e6;
    engine.stop();
    engine.run_while_moving(LARGE_PATIENCE_NS, Engine::is_settled)?;
    // Only now have the slowest arrived.
    outcome.latency = engine.latency(0).summary();
    let large_latency = engine.latency(1).summary();
    outcome.published_in_all = engine.counts().published;
    outcome.judge(engine.findings(), true);
    outcome.memory_after = broker.memory()?;
    outcome.note("p50 of small messages alone, µs", small_alone.p50_us);
    outcome.note("p99 of small messages alone, µs", small_alone.p99_us);
    outcome.note("p99 of small messages beside large ones, µs", outcome.latency.p99_us);
    outcome.note("slowest large message, ms", large_latency.max_us / 1e3);
    let bytes = u64::from(plan.pairs) * plan.messages * plan.payload_bytes as u64;
    outcome.note("MiB a second, each way", bytes as f64 / f64::from(1 << 20) / (took_ns as f64 / 1e9));
    if let (Some(before), Some(after)) = (outcome.memory_before, outcome.memory_after) {
        let peak = after.peak_bytes.saturating_sub(before.resident_bytes);
        outcome.note("resident MiB at the peak, above the start", peak as f64 / f64::from(1 << 20));
        if !peak_is_ours {
            outcome.note("the peak is that of the broker's whole life", 1.0);
        }
    }
    engine.close(LARGE_PATIENCE_NS)?;
    Ok(outcome)
}
