//! Many connections that do next to nothing: what each costs in memory, and what all cost in CPU.

use anyhow::Result;
use kentongan_proto::mqtt::{ProtocolVersion, QoS};

use super::{Broker, Interval, Outcome, PATIENCE_NS, run_number};
use crate::{
    engine::{Engine, Expected, PublisherPlan},
    measure::{Memory, SECOND, now_ns},
    report::Progress,
    wire::Target,
};

/// Messages that each connection gets before it idles, so that its buffers have been in use.
const MESSAGES_EACH: u64 = 3;

/// A scenario of idling.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// MQTT version.
    pub version: ProtocolVersion,
    /// QoS of the messages and subscriptions.
    pub qos: QoS,
    /// Bytes of a payload.
    pub payload_bytes: usize,
    /// How many connections.
    pub clients: u32,
    /// How long they idle.
    pub seconds: f64,
    /// Of topics and client identifiers.
    pub seed: u64,
}

/// Runs `plan` against `broker`.
pub fn run(plan: &Plan, broker: &Broker, progress: &Progress) -> Result<Outcome> {
    let clients = u64::from(plan.clients);
    let mut outcome = Outcome {
        scenario: format!("idle {} connections QoS {} {} B", plan.clients, plan.qos as u8, plan.payload_bytes),
        memory_before: broker.memory()?,
        ..Outcome::default()
    };
    let mut engine = Engine::new(broker.places.clone(), plan.version, run_number(plan.seed))?;
    let before = format!("{}/idle/", engine.topic_root());
    let target = Target::Numbered { before, after: String::new(), count: clients };
    for number in 0..clients {
        let expected = Expected::Every { publisher: 0, number, stride: clients };
        engine.add_subscriber(target.topic(number), plan.qos, &expected);
    }
    engine.add_publisher(&PublisherPlan {
        target,
        qos: plan.qos,
        retain: false,
        payload_bytes: plan.payload_bytes,
        receivers: 1,
        window: 200,
        messages_max: clients * MESSAGES_EACH,
        paced: false,
        latency_class: 0,
    });
    let begun = now_ns();
    engine.establish(300 * SECOND)?;
    outcome.note("connections a second while opening", plan.clients as f64 * 1e9 / (now_ns() - begun) as f64);
    engine.start();
    engine.run_while_moving(PATIENCE_NS, Engine::is_settled)?;
    outcome.latency = engine.latency(0).summary();
    outcome.own_stall_ms = engine.longest_turn_ns() as f64 / 1e6;
    outcome.judge(engine.findings(), true);

    let served = broker.memory()?;
    let interval = Interval::begin(broker, engine.counts())?;
    let length = (plan.seconds * SECOND as f64) as u64;
    let end = now_ns() + length;
    engine.run_until(end, &mut || progress.until(&outcome.scenario, end, length))?;
    interval.end(broker, engine.counts(), &mut outcome)?;
    outcome.published_in_all = engine.counts().published;
    outcome.memory_after = broker.memory()?;
    if let (Some(before), Some(served), Some(after)) = (outcome.memory_before, served, outcome.memory_after) {
        let each = |memory: Memory| memory.resident_bytes.saturating_sub(before.resident_bytes) as f64 / clients as f64;
        outcome.note("resident bytes a connection when served", each(served));
        outcome.note("resident bytes a connection after idling", each(after));
    }
    outcome.note("pings while idle", engine.counts().pings as f64);
    if !engine.close(4 * PATIENCE_NS)? {
        outcome.failures.push("the broker did not close all connections after DISCONNECT".into());
    }
    Ok(outcome)
}
