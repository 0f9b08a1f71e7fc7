//! Many retained messages: storing them, reading them all by a wildcard, and what that does to
//! others meanwhile.

use anyhow::{Result, ensure};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use super::{Broker, ESTABLISH_NS, Interval, Outcome, PATIENCE_NS, run_number};
use crate::{
    engine::{Engine, Expected, Findings, PublisherPlan},
    measure::{SECOND, now_ns},
    report::Progress,
    wire::Target,
};

/// Pairs of live messages beside.
const LIVE_PAIRS: u32 = 4;

/// Bytes of a live payload.
const LIVE_BYTES: usize = 64;

/// A broker may think for long before the first of a million arrives.
const RETAINED_PATIENCE_NS: u64 = 60 * SECOND;

/// A scenario of retained messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// MQTT version.
    pub version: ProtocolVersion,
    /// QoS of the retained messages (at least 1) and of the live ones.
    pub qos: QoS,
    /// How many are retained, each under a topic of its own.
    pub messages: u64,
    /// Bytes of a payload.
    pub payload_bytes: usize,
    /// Unacknowledged messages while storing.
    pub window: u32,
    /// Live messages a second in all.
    pub live_rate: f64,
    /// How long live messages alone are measured.
    pub seconds: f64,
    /// Leave the retained messages on the broker.
    pub keep: bool,
    /// Of client identifiers.
    pub seed: u64,
}

/// Runs `plan` against `broker`. The outcome's latency is that of the live messages while the
/// retained ones are being delivered.
pub fn run(plan: &Plan, broker: &Broker, progress: &Progress) -> Result<Outcome> {
    ensure!(plan.qos != QoS::AtMostOnce, "storing needs acknowledgements: QoS 1 or 2");
    ensure!(plan.messages > 0 && plan.messages < 10_000_000, "between one and ten million messages can be numbered");
    let mut outcome = Outcome {
        scenario: format!("retained {} of {} B QoS {}", plan.messages, plan.payload_bytes, plan.qos as u8),
        memory_before: broker.memory()?,
        ..Outcome::default()
    };
    let mut engine = Engine::new(broker.places.clone(), plan.version, run_number(plan.seed))?;
    let root = engine.topic_root();
    // Two levels, so that `+/x` finds them all; the live ones have more.
    let before = format!("{}-", root.replace('/', "-"));
    let target = Target::Numbered { before, after: "/x".into(), count: plan.messages };
    let store = engine.add_publisher(&PublisherPlan {
        target: target.clone(),
        qos: plan.qos,
        retain: true,
        payload_bytes: plan.payload_bytes,
        receivers: 0,
        window: plan.window,
        messages_max: plan.messages,
        paced: false,
        latency_class: 0,
    });
    for n in 1..=LIVE_PAIRS {
        let topic = format!("{root}/live/{n}");
        engine.add_subscriber(topic.clone(), plan.qos, &Expected::Each { first: n, count: 1 });
        engine.add_publisher(&PublisherPlan {
            target: Target::Topic(topic),
            qos: plan.qos,
            retain: false,
            payload_bytes: LIVE_BYTES,
            receivers: 1,
            window: 1000,
            messages_max: u64::MAX,
            paced: true,
            latency_class: 1,
        });
    }
    engine.establish(ESTABLISH_NS)?;
    engine.start();

    let begun = now_ns();
    let stored = |engine: &Engine| engine.publisher(store).is_done();
    engine.run_while_moving(RETAINED_PATIENCE_NS, |engine| {
        progress.at("storing", engine.publisher(store).next, plan.messages);
        stored(engine)
    })?;
    let seconds = |from: u64| (now_ns() - from) as f64 / 1e9;
    outcome.note("stored a second", plan.messages as f64 / seconds(begun));
    if let (Some(before), Some(now)) = (outcome.memory_before, broker.memory()?) {
        let grown = now.resident_bytes.saturating_sub(before.resident_bytes);
        outcome.note("resident bytes a retained message", grown as f64 / plan.messages as f64);
    }

    engine.pace(1..1 + LIVE_PAIRS as usize, plan.live_rate);
    engine.run_until(now_ns() + SECOND / 2, &mut || ())?;
    engine.reset_latencies();
    let length = (plan.seconds * SECOND as f64) as u64;
    let alone = now_ns() + length;
    engine.run_until(alone, &mut || progress.until("live messages alone", alone, length))?;
    let live_alone = engine.latency(1).summary();

    engine.reset_latencies();
    let interval = Interval::begin(broker, engine.counts())?;
    for filter in ["#", "+/x"] {
        let begun = now_ns();
        let expected = Expected::Set { publisher: store as u32, count: plan.messages };
        let collector = engine.add_subscriber(filter.into(), plan.qos, &expected);
        engine.establish(RETAINED_PATIENCE_NS)?;
        outcome.note(&format!("seconds to SUBACK of {filter}"), seconds(begun));
        // Live messages keep the counts moving, so the patience is counted in what is collected.
        let mut moved = (0, now_ns());
        loop {
            let arrived = engine.subscriber(collector).set_arrived();
            progress.at(&format!("reading {filter}"), arrived, plan.messages);
            if arrived > moved.0 {
                moved = (arrived, now_ns());
            }
            if arrived == plan.messages || now_ns() - moved.1 > RETAINED_PATIENCE_NS {
                break;
            }
            engine.run_until(now_ns() + SECOND / 100, &mut || ())?;
        }
        outcome.note(&format!("seconds to all of {filter}"), seconds(begun));
        outcome.note(&format!("retained read by {filter}"), engine.subscriber(collector).set_arrived() as f64);
    }
    interval.end(broker, engine.counts(), &mut outcome)?;
    outcome.own_stall_ms = engine.longest_turn_ns() as f64 / 1e6;
    outcome.note("p99 of live messages alone, µs", live_alone.p99_us);
    engine.stop();
    engine.run_while_moving(PATIENCE_NS, Engine::is_settled)?;
    // Only now have the slowest arrived.
    outcome.latency = engine.latency(1).summary();
    outcome.note("p99 of live messages beside, µs", outcome.latency.p99_us);
    outcome.published_in_all = engine.counts().published;
    outcome.judge(engine.findings(), true);
    outcome.memory_after = broker.memory()?;
    if let Some(memory) = outcome.memory_after {
        outcome.note("resident MiB at the peak", memory.peak_bytes as f64 / f64::from(1 << 20));
    }
    engine.close(RETAINED_PATIENCE_NS)?;
    if !plan.keep {
        clear(plan, broker, target, &mut outcome)?;
    }
    Ok(outcome)
}

/// Deletes what was retained, by messages without payload [MQTT-3.3.1-6].
fn clear(plan: &Plan, broker: &Broker, target: Target, outcome: &mut Outcome) -> Result<()> {
    let mut engine = Engine::new(broker.places.clone(), plan.version, run_number(plan.seed))?;
    engine.add_publisher(&PublisherPlan {
        target,
        qos: plan.qos,
        retain: true,
        payload_bytes: 0,
        receivers: 0,
        window: plan.window,
        messages_max: plan.messages,
        paced: false,
        latency_class: 0,
    });
    engine.establish(ESTABLISH_NS)?;
    engine.start();
    engine.run_while_moving(RETAINED_PATIENCE_NS, Engine::is_settled)?;
    let findings = engine.findings();
    if findings != Findings::default() {
        outcome.failures.push(format!("deleting: {} messages not acknowledged", findings.unacknowledged));
    }
    engine.close(PATIENCE_NS)?;
    Ok(())
}
