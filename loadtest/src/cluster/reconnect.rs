//! A node with many clients is killed: how long until all of them are served by the others, and what those who were there
//! before notice.

use anyhow::{Result, ensure};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Engine, Expected, Findings, PublisherPlan},
    fleet::{self, Fleet},
    measure::{LatencySummary, SECOND, now_ns},
    nodes::Nodes,
    wire::Target,
};

/// New connections a second while everything is still well.
const OPENED_PER_SECOND: u64 = 2000;

/// How long opening all may take.
const OPEN_NS: u64 = 120 * SECOND;

/// How long after the kill a client that is still not served counts as lost.
const PATIENCE_NS: u64 = 180 * SECOND;

/// How long those who stay are looked at before the kill.
const BEFORE_NS: u64 = 5 * SECOND;

/// How long they are looked at after it, at least.
const AFTER_NS: u64 = 10 * SECOND;

/// Pairs of clients at the other nodes.
const ESTABLISHED: u32 = 50;

/// Messages a second between all of them.
const ESTABLISHED_RATE: f64 = 1000.0;

/// What the loss of one node with many clients cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Return {
    /// Clients of the node.
    pub clients: usize,
    /// Milliseconds from the kill until half of them had their CONNACK.
    pub half_ms: f64,
    /// Until all had it.
    pub all_ms: f64,
    /// CONNECT that were refused or broken off.
    pub refused: u64,
    /// From when a message between those who stayed was due until it arrived, before the kill.
    pub before: LatencySummary,
    /// The same from the kill on until all were back.
    pub meanwhile: LatencySummary,
}

/// Kills `victim` under `clients` clients, and starts it again once they are served elsewhere.
pub fn run(nodes: &mut Nodes, victim: usize, clients: usize, seed: u64, run: u32) -> Result<Return> {
    let others: Vec<_> = (0..nodes.count()).filter(|node| *node != victim).collect();
    let survivors: Vec<_> = others.iter().map(|node| nodes.address(*node)).collect();
    let mut plan = fleet::Plan::new(nodes.address(victim), clients, run);
    plan.then = survivors;
    plan.opened_per_second = OPENED_PER_SECOND;
    plan.seed = seed;
    let fleet = Fleet::start(plan)?;
    let mut engine = Engine::new(nodes.only(&others).places, ProtocolVersion::V5, run)?;
    add_established(&mut engine);
    engine.establish(OPEN_NS)?;
    engine.pace(0..ESTABLISHED as usize, ESTABLISHED_RATE);
    engine.start();
    let deadline = now_ns() + OPEN_NS;
    while fleet.served() < clients {
        fleet.check()?;
        ensure!(now_ns() < deadline, "only {} of {clients} clients were served before the kill", fleet.served());
        engine.run_until(now_ns() + SECOND / 10, &mut || ())?;
    }

    engine.reset_latencies();
    engine.run_until(now_ns() + BEFORE_NS, &mut || ())?;
    let before = engine.latency(0).summary();
    engine.reset_latencies();
    let killed_ns = now_ns();
    // Its end is not waited for yet: the kernel closes its connections for a while, in which those who stay are to be served.
    nodes.signal(victim, Signal::KILL)?;
    engine.run_until(killed_ns + AFTER_NS, &mut || ())?;
    while fleet.served() < clients && now_ns() < killed_ns + PATIENCE_NS {
        fleet.check()?;
        engine.run_until(now_ns() + SECOND / 10, &mut || ())?;
    }
    engine.stop();
    engine.run_while_moving(10 * SECOND, Engine::is_settled)?;
    let meanwhile = engine.latency(0).summary();
    let findings = engine.findings();
    engine.close(10 * SECOND)?;
    ensure!(findings == Findings::default(), "what clients that stayed sent one another went wrong: {findings:?}");
    let came = fleet.end()?;
    nodes.kill(victim)?;
    nodes.restart(victim)?;

    let lost = came.lost_sessions;
    ensure!(lost == 0, "{lost} clients came back to a session that was gone");
    let mut until: Vec<_> = came.served_ns.iter().flatten().map(|at| at.saturating_sub(killed_ns)).collect();
    ensure!(until.len() == clients, "{} of {clients} clients were not served again", clients - until.len());
    until.sort_unstable();
    let ms = |ns: Option<&u64>| ns.map_or(f64::NAN, |ns| *ns as f64 / 1e6);
    Ok(Return {
        clients,
        half_ms: ms(until.get(clients / 2)),
        all_ms: ms(until.last()),
        refused: came.refused,
        before,
        meanwhile,
    })
}

/// Publishers and subscribers, each pair on two of the nodes that stay.
fn add_established(engine: &mut Engine) {
    let root = engine.topic_root();
    for number in 0..ESTABLISHED {
        let topic = format!("{root}/{number}");
        engine.add_subscriber(topic.clone(), QoS::AtLeastOnce, &Expected::Each { first: number, count: 1 });
        engine.add_publisher(&PublisherPlan {
            target: Target::Topic(topic),
            qos: QoS::AtLeastOnce,
            retain: false,
            payload_bytes: 64,
            receivers: 1,
            window: 1000,
            messages_max: u64::MAX,
            paced: true,
            latency_class: 0,
        });
    }
}
