//! Messages between publishers and subscribers, in a closed loop or paced.

use anyhow::{Result, ensure};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use serde::{Deserialize, Serialize};

use super::{Broker, ESTABLISH_NS, Interval, Outcome, PATIENCE_NS, run_number};
use crate::{
    engine::{Engine, Expected, PublisherPlan},
    measure::{SECOND, now_ns},
    report::Progress,
    wire::Target,
};

/// How publishers and subscribers are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Each publisher has a topic of its own, every subscriber gets all of them by a wildcard.
    FanIn,
    /// All publishers share one topic, every subscriber gets all messages.
    FanOut,
    /// Publisher n and subscriber n share a topic.
    #[value(alias = "p2p", alias = "point-to-point")]
    Pairs,
    /// The subscribers are one shared subscription, each message goes to one of them.
    Shared,
}

/// One scenario of messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Who sends to whom.
    pub shape: Shape,
    /// MQTT version of all clients.
    pub version: ProtocolVersion,
    /// QoS of messages and subscriptions.
    pub qos: QoS,
    /// Bytes of a payload.
    pub payload_bytes: usize,
    /// Messages that each publisher may have sent and its subscribers not yet received.
    pub window: u32,
    /// How many publishers.
    pub publishers: u32,
    /// How many subscribers.
    pub subscribers: u32,
    /// Messages a second in all; without it each publisher sends as soon as its window allows.
    pub rate: Option<f64>,
    /// Nanoseconds between two looks at what is due by the rate; 0: each message is sent when it is due.
    pub look_ns: u64,
    /// Subscribers have sessions that outlive their connections.
    pub keeps_sessions: bool,
    /// SUBSCRIBEs, and as many UNSUBSCRIBEs, a second by other clients.
    pub churn_per_second: f64,
    /// Length of the measured interval.
    pub seconds: f64,
    /// Load before the measured interval.
    pub warm_up_seconds: f64,
    /// How long nothing may arrive until what is missing is given up.
    pub patience_seconds: f64,
    /// Of topics and client identifiers.
    pub seed: u64,
}

/// Clients that share the churning.
const CHURNERS: usize = 10;

impl Plan {
    /// The scenario, in words.
    pub fn describe(&self) -> String {
        let shape = match self.shape {
            Shape::FanIn => "fan-in",
            Shape::FanOut => "fan-out",
            Shape::Pairs => "pairs",
            Shape::Shared => "shared",
        };
        let version = if self.version.is_v5() { "MQTT 5" } else { "MQTT 3.1.1" };
        let mut text = format!(
            "{shape} {}→{} QoS {} window {} {} B {version}",
            self.publishers, self.subscribers, self.qos as u8, self.window, self.payload_bytes
        );
        if self.keeps_sessions {
            text += " into persistent sessions";
        }
        if let Some(rate) = self.rate {
            text += &format!(" at {rate}/s");
        }
        if self.churn_per_second > 0.0 {
            text += &format!(" with {}/s subscribing", self.churn_per_second);
        }
        text
    }

    fn add_clients(&self, engine: &mut Engine) {
        let root = engine.topic_root();
        let topic = |n: u32| match self.shape {
            Shape::FanOut => format!("{root}/all"),
            _ => format!("{root}/{n}"),
        };
        let receivers = match self.shape {
            Shape::FanIn | Shape::FanOut => self.subscribers,
            Shape::Pairs | Shape::Shared => 1,
        };
        if self.keeps_sessions {
            engine.keep_sessions();
        }
        for n in 0..self.subscribers {
            let all = Expected::Each { first: 0, count: self.publishers };
            let (filter, expected) = match self.shape {
                Shape::FanIn => (format!("{root}/+"), all),
                Shape::FanOut => (topic(n), all),
                Shape::Pairs => (topic(n), Expected::Each { first: n, count: 1 }),
                Shape::Shared => {
                    (format!("$share/group/{root}/+"), Expected::Member { group: 0, publishers: self.publishers })
                }
            };
            engine.add_subscriber(filter, self.qos, &expected);
        }
        for n in 0..self.publishers {
            engine.add_publisher(&PublisherPlan {
                target: Target::Topic(topic(n)),
                qos: self.qos,
                retain: false,
                payload_bytes: self.payload_bytes,
                receivers,
                window: self.window,
                messages_max: u64::MAX,
                paced: self.rate.is_some(),
                latency_class: 0,
            });
        }
        if self.churn_per_second > 0.0 {
            engine.add_churn(CHURNERS, self.churn_per_second);
        }
    }
}

/// Runs `plan` against `broker`.
pub fn run(plan: &Plan, broker: &Broker, progress: &Progress) -> Result<Outcome> {
    ensure!(plan.publishers > 0 && plan.subscribers > 0, "a publisher and a subscriber are needed");
    ensure!(
        plan.shape != Shape::Pairs || plan.publishers == plan.subscribers,
        "pairs need as many publishers as subscribers"
    );
    let mut outcome = Outcome { scenario: plan.describe(), ..Outcome::default() };
    outcome.memory_before = broker.memory()?;

    let mut engine = Engine::new(broker.places.clone(), plan.version, run_number(plan.seed))?;
    plan.add_clients(&mut engine);
    engine.establish(ESTABLISH_NS)?;
    if let Some(rate) = plan.rate {
        engine.pace(0..plan.publishers as usize, rate);
        engine.look_every(plan.look_ns);
    }
    engine.start();
    let nanoseconds = |seconds: f64| (seconds * SECOND as f64) as u64;
    engine.run_until(now_ns() + nanoseconds(plan.warm_up_seconds), &mut || ())?;

    engine.reset_latencies();
    let begun = Interval::begin(broker, engine.counts())?;
    let end = now_ns() + nanoseconds(plan.seconds);
    engine.run_until(end, &mut || progress.until(&outcome.scenario, end, nanoseconds(plan.seconds)))?;
    begun.end(broker, engine.counts(), &mut outcome)?;
    outcome.own_stall_ms = engine.longest_turn_ns() as f64 / 1e6;

    engine.stop();
    engine.run_while_moving(nanoseconds(plan.patience_seconds), Engine::is_settled)?;
    // Only now have the slowest arrived.
    outcome.latency = engine.latency(0).summary();
    outcome.published_in_all = engine.counts().published;
    outcome.judge(engine.findings(), plan.shape != Shape::Shared);
    if plan.churn_per_second > 0.0 {
        let counts = engine.counts();
        outcome.note("subscribed", counts.subscribed as f64);
        outcome.note("unsubscribed", counts.unsubscribed as f64);
    }
    if outcome.delivered == 0 {
        outcome.failures.push("nothing was delivered in the measured interval".into());
    }
    outcome.memory_after = broker.memory()?;
    if !engine.close(PATIENCE_NS)? {
        outcome.failures.push("the broker did not close all connections after DISCONNECT".into());
    }
    Ok(outcome)
}
