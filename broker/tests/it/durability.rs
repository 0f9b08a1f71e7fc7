//! What was acknowledged survives `kill -9`, under load, again and again.
//!
//! Publishers of every kind keep publishing while the broker is killed and started again; a subscriber with a
//! session is connected in some rounds and away in others. What all of them said and saw is one [`History`],
//! which [`check`] judges.
//!
//! `KENTONGAN_KILLS` says how often to kill (default 3), `KENTONGAN_SEED` repeats the moments of a run.
//!
//! The same is tried on three processes that are one broker, see `cluster/kills.rs`.

mod history;
mod load;
mod sites;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kentongan_proto::mqtt::{ProtocolVersion, QoS};
use kentongan_workload::Session;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::history::{History, Published, Read, check};
use self::load::{Publisher, Stage, Subscriber, read_retained};
use crate::powercut;
use crate::support::{Broker, wait_for};

/// Messages of each publisher in a round between two kills.
const MESSAGES_A_ROUND: u64 = 150;

/// Time for all that is acknowledged to reach the subscriber in the end.
const DRAIN: Duration = Duration::from_secs(30);

/// Every kind of publisher: QoS 1 and 2, with a session and without, retained and not.
fn publishers(stage: &Arc<Stage>) -> Vec<Publisher> {
    let kinds = [false, true].into_iter().flat_map(|retained| {
        [QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().flat_map(move |qos| {
            [
                (retained, qos, Session::Transient, ProtocolVersion::V3_1_1),
                (retained, qos, Session::Persistent, ProtocolVersion::V5),
            ]
        })
    });
    kinds
        .enumerate()
        .map(|(number, (retained, qos, session, version))| Publisher {
            number,
            qos,
            session,
            retained,
            version,
            stage: Arc::clone(stage),
        })
        .collect()
}

/// The processes that serve the clients of a run.
pub trait Brokers {
    /// Where clients can connect.
    fn addresses(&self) -> Vec<SocketAddr>;

    /// Where they may try while one or all of them are killed and started again.
    fn addresses_meanwhile(&self) -> Vec<SocketAddr>;
}

impl Brokers for Broker {
    fn addresses(&self) -> Vec<SocketAddr> {
        vec![self.address]
    }

    /// Its port is free then, for anybody.
    fn addresses_meanwhile(&self) -> Vec<SocketAddr> {
        Vec::new()
    }
}

/// A run: the clients, and what only the one who kills notes.
struct Run<B> {
    stage: Arc<Stage>,
    broker: B,
    publishers: Vec<JoinHandle<Vec<Published>>>,
    retained_publishers: Vec<usize>,
    reads: Vec<Read>,
    random: SmallRng,
}

impl<B: Brokers> Run<B> {
    fn start(broker: B, version: ProtocolVersion) -> (Self, JoinHandle<Vec<history::Received>>) {
        let seed = std::env::var("KENTONGAN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
        println!("KENTONGAN_SEED={seed}");
        let stage = Arc::new(Stage::default());
        *stage.addresses.lock().expect("no poison") = broker.addresses();
        let subscriber = Subscriber { version, stage: Arc::clone(&stage) };
        subscriber.subscribe();
        let publishers = publishers(&stage);
        let retained_publishers = publishers.iter().filter(|one| one.retained).map(|one| one.number).collect();
        let run = Self {
            publishers: publishers.into_iter().map(|one| thread::spawn(|| one.run())).collect(),
            retained_publishers,
            stage,
            broker,
            reads: Vec::new(),
            random: SmallRng::seed_from_u64(seed),
        };
        (run, thread::spawn(|| subscriber.run()))
    }

    /// Load up to a moment of chance, then `kill -9`, then a new process.
    fn round(&mut self, number: u64, restart: impl FnOnce(&mut B)) {
        // Away, there, and there again: so that both a queue and what is in flight are tried.
        self.stage.online.store(!number.is_multiple_of(3), SeqCst);
        let before = self.stage.acknowledged.load(SeqCst);
        self.stage.allowed.fetch_add(MESSAGES_A_ROUND, SeqCst);
        let all = MESSAGES_A_ROUND * self.publishers.len() as u64;
        let enough = before + self.random.random_range(all / 10..all * 9 / 10);
        wait_for("load goes on", || self.stage.acknowledged.load(SeqCst) >= enough);
        self.read_retained();
        *self.stage.addresses.lock().expect("no poison") = self.broker.addresses_meanwhile();
        let started = Instant::now();
        restart(&mut self.broker);
        println!("round {number}: serving {:?} after the kill", started.elapsed());
        *self.stage.addresses.lock().expect("no poison") = self.broker.addresses();
        self.read_retained();
    }

    fn read_retained(&mut self) {
        let deadline = Instant::now() + DRAIN;
        let (started_at, found) = loop {
            let addresses = self.broker.addresses();
            let address = addresses[self.random.random_range(0..addresses.len())];
            let started_at = self.stage.tick();
            match read_retained(address, self.retained_publishers.len(), Duration::from_secs(5)) {
                Ok(found) => break (started_at, found),
                // A node of several may have no majority for a moment.
                Err(error) => assert!(Instant::now() < deadline, "a broker that runs answers: {error}"),
            }
        };
        let ended_at = self.stage.tick();
        self.reads.extend(self.retained_publishers.iter().map(|&publisher| {
            let sequence = found.iter().find(|&&(who, _)| who == publisher).map(|&(_, sequence)| sequence);
            Read { publisher, started_at, ended_at, sequence }
        }));
    }

    /// Lets the publishers finish and the subscriber receive all it is owed, and a moment more.
    fn finish(mut self, subscriber: JoinHandle<Vec<history::Received>>) -> History {
        self.stage.online.store(true, SeqCst);
        self.stage.publishers_end.store(true, SeqCst);
        let deadline = Instant::now() + DRAIN;
        while !self.publishers.iter().all(JoinHandle::is_finished) {
            assert!(Instant::now() < deadline, "publishers without an answer to all they sent");
            thread::sleep(Duration::from_millis(10));
        }
        let published: Vec<_> =
            self.publishers.drain(..).flat_map(|one| one.join().expect("no publisher panics")).collect();
        self.read_retained();
        let owed = published.iter().filter(|one| !one.retained && one.acknowledged_at.is_some()).count() as u64;
        // Unacknowledged ones and duplicates count too, so enough is not all: go on until it is quiet.
        let (mut received, mut quiet_since) = (0, Instant::now());
        while Instant::now() < deadline + DRAIN {
            let now = self.stage.received.load(SeqCst);
            if now != received {
                (received, quiet_since) = (now, Instant::now());
            }
            let patience = Duration::from_millis(if received >= owed { 500 } else { 5000 });
            if quiet_since.elapsed() > patience {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.stage.subscriber_ends.store(true, SeqCst);
        let received = subscriber.join().expect("the subscriber does not panic");
        let sessions_lost = self.stage.sessions_lost.lock().expect("no poison").clone();
        History { published, received, reads: self.reads, sessions_lost }
    }
}

pub fn kills() -> u64 {
    std::env::var("KENTONGAN_KILLS").map_or(3, |text| text.parse().expect("KENTONGAN_KILLS is a number"))
}

/// Kills, restarts, and judges.
pub fn survive<B: Brokers>(broker: B, version: ProtocolVersion, kills: u64, mut restart: impl FnMut(&mut B)) {
    let (mut run, subscriber) = Run::start(broker, version);
    for number in 0..kills {
        run.round(number, &mut restart);
    }
    let history = run.finish(subscriber);
    let acknowledged = history.published.iter().filter(|one| one.acknowledged_at.is_some()).count();
    println!("{acknowledged} acknowledged, {} received", history.received.len());
    let violations = check(&history);
    let shown: Vec<_> = violations.iter().take(20).map(|one| format!("{one:?}")).collect();
    assert!(violations.is_empty(), "{} violations, such as\n{}", violations.len(), shown.join("\n"));
    assert!(acknowledged > 0 && !history.received.is_empty(), "a run without load shows nothing");
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged_to_mqtt_5() {
    survive(Broker::start(), ProtocolVersion::V5, kills(), Broker::restart);
}

/// P1, F3: the same with the power cut each time, so that only what was synced is left.
#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let (broker, power) = powercut::start(None);
    survive(broker, ProtocolVersion::V5, kills(), |broker| broker.restart_after(|| powercut::cut(&power)));
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged_to_mqtt_3_1_1() {
    survive(Broker::start(), ProtocolVersion::V3_1_1, kills(), Broker::restart);
}
