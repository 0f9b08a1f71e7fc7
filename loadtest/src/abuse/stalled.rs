//! Subscribers that read nothing, beside others that do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Plan,
    victim::{Metrics, Victim},
    witness::Talk,
};
use crate::{
    engine::{Engine, Expected, Findings, PublisherPlan},
    figure::{Figure, Unit},
    link::Layer,
    measure::{SECOND, now_ns},
    report::Progress,
    scenario::run_number,
    wire::{Target, handshake, packet_type},
};

/// Subscribers that read nothing.
const STALLED: u64 = 100;

/// Subscribers that do.
const HEALTHY: u32 = 5;

/// Messages a second to those that do not, together.
const DELIVERIES_PER_SECOND: f64 = 20_000.0;

const PAYLOAD_BYTES: usize = 2_000;

/// `session.out_buffer_bytes_max`: what a subscriber may cost that reads nothing.
const OUT_BUFFER_BYTES: u64 = 262_144;

/// How much more than that is no fault.
const MARGIN: f64 = 1.1;

/// How long the healthy are looked at without the others.
const BASELINE_SECONDS: f64 = 10.0;

/// A receive buffer as small as it gets, so that it is the broker that has to keep what is not read.
const RECEIVE_BUFFER_BYTES: usize = 4096;

const ESTABLISH_NS: u64 = 30 * SECOND;
const PATIENCE_NS: u64 = 5 * SECOND;

/// Counters are at most this old.
const METRICS_AGE: Duration = Duration::from_millis(1500);

const DROPPED: &str = "kentongan_messages_dropped_total";

pub fn run(plan: &Plan, progress: &Progress) -> Result<Vec<Figure>> {
    let settings = format!("[session]\nout_buffer_bytes_max = {OUT_BUFFER_BYTES}\n");
    let victim = Victim::start(&plan.program, &settings, &[])?;
    let metrics = victim.metrics();
    let alone = Load::prepare(&victim, plan)?.run(BASELINE_SECONDS, "healthy subscribers alone", progress)?;

    let load = Load::prepare(&victim, plan)?;
    let filter = load.topic.clone();
    let connect = |number| deaf(&victim, &filter, number);
    let mut deaf = (0..STALLED).map(connect).collect::<Result<Vec<_>>>().context("connecting those that stall")?;
    let (before_bytes, dropped_before) = (heap(metrics)?, metrics.sum(DROPPED)?);
    let sampler = Sampler::start(metrics);
    let beside = load.run(plan.seconds, "beside stalled subscribers", progress)?;
    let held_bytes = sampler.end()? - before_bytes;

    // They read at last: what they lack was counted.
    let read = deaf.iter_mut().map(messages_left).sum::<Result<u64>>()?;
    thread::sleep(METRICS_AGE);
    let dropped = metrics.sum(DROPPED)? - dropped_before;
    let lacking = (beside.sent * STALLED).saturating_sub(read);
    let bound = (STALLED * OUT_BUFFER_BYTES) as f64 * MARGIN;
    let p99_max = 2.0 * alone.p99_us + 5_000.0;
    Ok(vec![
        Figure::new("deliveries a second", beside.sent as f64 * STALLED as f64 / plan.seconds, Unit::Count)
            .at_least(0.98 * DELIVERIES_PER_SECOND),
        Figure::new("memory for those that stall", held_bytes, Unit::Bytes).at_most(bound),
        Figure::new("p99 of the healthy, alone", alone.p99_us, Unit::Microseconds),
        Figure::new("p99 of the healthy, beside them", beside.p99_us, Unit::Microseconds).at_most(p99_max),
        Figure::new("messages the healthy lack, or have wrong", beside.wrong as f64, Unit::Count).at_most(0.0),
        Figure::new("messages those that stall lack", lacking as f64, Unit::Count)
            .at_least(beside.sent as f64 * STALLED as f64 / 10.0),
        Figure::new("difference to what was counted", lacking.abs_diff(dropped) as f64, Unit::Count).at_most(0.0),
        Figure::new("resident memory of the broker, peak", victim.memory()?.peak_bytes as f64, Unit::Bytes),
    ])
}

/// The healthy, and their publisher.
struct Load {
    engine: Engine,
    topic: String,
}

/// How it went.
struct Went {
    sent: u64,
    p99_us: f64,
    wrong: u64,
}

impl Load {
    fn prepare(victim: &Victim, plan: &Plan) -> Result<Self> {
        let mut engine = Engine::new(victim.plain.into(), ProtocolVersion::V5, run_number(plan.seed))?;
        let topic = format!("{}/all", engine.topic_root());
        for _ in 0..HEALTHY {
            engine.add_subscriber(topic.clone(), QoS::AtMostOnce, &Expected::Each { first: 0, count: 1 });
        }
        engine.add_publisher(&PublisherPlan {
            target: Target::Topic(topic.clone()),
            qos: QoS::AtMostOnce,
            retain: false,
            payload_bytes: PAYLOAD_BYTES,
            receivers: HEALTHY,
            window: 10_000,
            messages_max: u64::MAX,
            paced: true,
            latency_class: 0,
        });
        engine.establish(ESTABLISH_NS)?;
        Ok(Self { engine, topic })
    }

    fn run(self, seconds: f64, what: &str, progress: &Progress) -> Result<Went> {
        let mut engine = self.engine;
        engine.pace(0..1, DELIVERIES_PER_SECOND / STALLED as f64);
        engine.start();
        let length = (seconds * SECOND as f64) as u64;
        let end = now_ns() + length;
        engine.run_until(end, &mut || progress.until(what, end, length))?;
        engine.stop();
        engine.run_while_moving(PATIENCE_NS, Engine::is_settled)?;
        let Findings { lost, duplicated, out_of_order, foreign, corrupt, .. } = engine.findings();
        let (sent, p99_us) = (engine.counts().published, engine.latency(0).summary().p99_us);
        engine.close(PATIENCE_NS)?;
        Ok(Went { sent, p99_us, wrong: lost + duplicated + out_of_order + foreign + corrupt })
    }
}

/// One that subscribed, and reads no more.
fn deaf(victim: &Victim, filter: &str, number: u64) -> Result<Talk> {
    let socket = Socket::new(Domain::for_address(victim.plain), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    let mut talk = Talk::begin(socket, victim.plain, &Layer::Plain, number as usize)?;
    talk.connect(&format!("lt-deaf-{number}"), None)?;
    talk.send(&handshake::subscribe(ProtocolVersion::V5, 1, filter, QoS::AtMostOnce))?;
    match talk.receive()? {
        (packet_type::SUBACK, _) => Ok(talk),
        (kind, _) => bail!("the broker answered SUBSCRIBE with a packet of type {kind}"),
    }
}

/// All that was kept for one that reads from now on.
fn messages_left(talk: &mut Talk) -> Result<u64> {
    let mut messages = 0;
    talk.ping(|kind, _| messages += u64::from(kind == packet_type::PUBLISH)).context("one that stalled")?;
    Ok(messages)
}

fn heap(metrics: Metrics) -> Result<f64> {
    metrics.value("process_heap_bytes")
}

/// Looks at the broker's memory until it is told to end.
struct Sampler {
    thread: thread::JoinHandle<Result<f64>>,
    is_over: Arc<AtomicBool>,
}

impl Sampler {
    fn start(metrics: Metrics) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            let mut most = heap(metrics)?;
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(250));
                most = most.max(heap(metrics)?);
            }
            Ok(most)
        });
        Self { thread, is_over }
    }

    /// The most that was seen.
    fn end(self) -> Result<f64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the one that looks at memory panicked"))?
    }
}
