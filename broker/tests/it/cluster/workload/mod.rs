//! Clients that do whatever clients do, while nodes are killed and stopped: what they saw is held against P1 to P12.
//!
//! `KENTONGAN_KILLS` says how many faults there are (default 4), `KENTONGAN_SEED` repeats the decisions of a run, though not
//! its moments. A history that shows a broken promise is kept, and its path printed.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kentongan_history::{History, Settings, What, check};
use kentongan_workload::{Act, Client, Habits, Seat, Stage, SubscribedTopics, quiet, watch};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::nodes::Cluster;

const CLIENTS: usize = 10;

/// Between two faults.
const CALM: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_secs(3);

/// A node is down or stopped for so long: shorter and longer than a lease.
const FAULT: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(4);

/// P12, and a while in which the clients see that it holds.
const RECOVERED: Duration = Duration::from_secs(12);

/// Time for all that is owed to arrive.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);

fn habits() -> Habits {
    Habits {
        clients: CLIENTS,
        messages_per_second: 350.0,
        subscribes_per_second: 20.0,
        unsubscribes_per_second: 10.0,
        departures_per_second: 5.0,
        topics: SubscribedTopics::crowded(),
    }
}

struct Run {
    stage: Arc<Stage>,
    cluster: Cluster,
    clients: Vec<JoinHandle<()>>,
    watch: JoinHandle<Duration>,
    random: SmallRng,
    faults: u32,
}

impl Run {
    fn start(seed: u64) -> Self {
        let cluster = Cluster::start();
        let seats = cluster.nodes.iter().map(|node| Seat::new(node.address, node.pid())).collect();
        let stage = Arc::new(Stage::new(seats, habits()));
        let watch = watch(Arc::clone(&stage));
        let client = |number| {
            let client = Client::new(Arc::clone(&stage), number, seed);
            thread::spawn(|| client.run())
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stage, cluster, clients, watch, random: SmallRng::seed_from_u64(seed), faults: 0 }
    }

    fn note(&self, what: What) {
        self.stage.recorder.note(what);
    }

    fn wait(&mut self, range: std::ops::Range<Duration>) {
        // The length of a fault, or of the calm before it, is part of the run: there is nothing to wait for.
        thread::sleep(self.random.random_range(range));
    }

    fn fault(&mut self) {
        let victim = self.random.random_range(0..3);
        match self.random.random_range(0..10) {
            0..6 => self.kill(&[victim]),
            6 => self.kill(&[victim, (victim + 1) % 3]),
            _ => self.pause(victim),
        }
    }

    fn kill(&mut self, victims: &[usize]) {
        for &victim in victims {
            println!("{:>10} node {victim} is killed", self.stage.recorder.now() / 1_000_000);
            self.note(What::NodeCrashed { node: victim as u16 });
            self.cluster.nodes[victim].kill();
        }
        self.wait(FAULT);
        for &victim in victims {
            self.cluster.nodes[victim].spawn();
            self.stage.seats[victim].pid.store(self.cluster.nodes[victim].pid(), SeqCst);
        }
        for &victim in victims {
            self.cluster.nodes[victim].wait_until_ready();
            self.note(What::NodeRecovered { node: victim as u16 });
            println!("{:>10} node {victim} is back", self.stage.recorder.now() / 1_000_000);
        }
    }

    /// SIGTERM, and a new process: leadership and clients are moved first.
    fn restart(&mut self, node: usize) {
        println!("{:>10} node {node} is told to stop", self.stage.recorder.now() / 1_000_000);
        self.note(What::NodeCrashed { node: node as u16 });
        self.cluster.nodes[node].terminate();
        self.cluster.nodes[node].spawn();
        self.stage.seats[node].pid.store(self.cluster.nodes[node].pid(), SeqCst);
        self.cluster.nodes[node].wait_until_ready();
        self.note(What::NodeRecovered { node: node as u16 });
        println!("{:>10} node {node} is back", self.stage.recorder.now() / 1_000_000);
    }

    fn pause(&mut self, victim: usize) {
        self.faults += 1;
        println!("{:>10} node {victim} is stopped", self.stage.recorder.now() / 1_000_000);
        let kind = self.stage.recorder.symbol("stopped");
        self.note(What::FaultBegan { fault: self.faults, kind });
        self.stage.seats[victim].stopped.store(true, SeqCst);
        self.cluster.nodes[victim].pause();
        self.wait(FAULT);
        self.cluster.nodes[victim].resume();
        self.cluster.nodes[victim].wait_until_ready();
        self.stage.seats[victim].stopped.store(false, SeqCst);
        self.note(What::FaultHealed { fault: self.faults });
        println!("{:>10} node {victim} goes on", self.stage.recorder.now() / 1_000_000);
    }

    /// Lets clients have all that they are owed, and says so to the checker.
    fn settle(&mut self) {
        self.wait(RECOVERED..RECOVERED + Duration::from_millis(1));
        self.stage.set_act(Act::Settle);
        let is_quiet = quiet(&self.stage, SETTLED_WITHIN);
        assert!(is_quiet, "packets still come, or something is not acknowledged");
        let leaderless = self.leaderless();
        self.note(What::Registry { owners: Vec::new(), routes: Vec::new(), leaderless });
        self.note_drops();
        self.note(What::Quiesced);
        self.stage.set_act(Act::End);
        self.clients.drain(..).for_each(|client| client.join().expect("no client panics"));
    }

    /// Groups that no node says it leads.
    fn leaderless(&self) -> Vec<u16> {
        let status = self.cluster.status_at(0);
        let groups = |node: &serde_json::Value| node["status"]["groups"].as_array().cloned().unwrap_or_default();
        let all: Vec<_> = status["nodes"].as_array().expect("nodes").iter().flat_map(groups).collect();
        let number = |group: &serde_json::Value| group["group"].as_u64().expect("a number") as u16;
        let led: Vec<_> = all.iter().filter(|group| group["leads"] == true).map(number).collect();
        let mut leaderless: Vec<_> = all.iter().map(number).filter(|group| !led.contains(group)).collect();
        leaderless.sort_unstable();
        leaderless.dedup();
        leaderless
    }

    /// Queues are longer than what a run publishes, so nothing is dropped; if something is, the metrics must say so.
    fn note_drops(&self) {
        for node in &self.cluster.nodes {
            for (reason, count) in node.counters("kentongan_messages_dropped_total") {
                if count > 0 && reason.starts_with("queue_") {
                    let reason = self.stage.recorder.symbol(&reason);
                    self.note(What::Dropped { reason, count, client: None });
                }
            }
        }
    }
}

fn faults() -> u32 {
    std::env::var("KENTONGAN_KILLS").map_or(4, |text| text.parse().expect("KENTONGAN_KILLS is a number"))
}

/// Says what is broken, and where the whole history is.
fn judge(history: &History, seed: u64) {
    let settings = Settings { in_flight_max: 128, ..Settings::default() };
    let violations = check(history, &settings);
    println!("{} events, {} violations", history.events().len(), violations.len());
    if violations.is_empty() {
        return;
    }
    let path = std::env::temp_dir().join(format!("kentongan-history-{seed}.jsonl"));
    let file = std::fs::File::create(&path).expect("a file");
    history.write_json_lines(std::io::BufWriter::new(file)).expect("written");
    let shown: Vec<_> = violations.iter().take(12).map(ToString::to_string).collect();
    panic!("{} violations, in {}, such as\n{}", violations.len(), path.display(), shown.join("\n"));
}

/// P1 to P12, whatever clients do and whichever nodes are killed or stopped.
#[test]
fn no_promise_is_broken_while_nodes_are_killed_and_stopped() {
    try_out(|run| {
        for _ in 0..faults() {
            run.wait(CALM);
            run.fault();
        }
    });
}

/// The same while all nodes are restarted in turn, in good order (F13).
#[test]
fn no_promise_is_broken_by_a_rolling_restart() {
    try_out(|run| {
        for node in 0..3 {
            run.wait(CALM);
            run.restart(node);
        }
    });
}

fn try_out(attack: impl FnOnce(&mut Run)) {
    let seed = std::env::var("KENTONGAN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("KENTONGAN_SEED={seed}");
    let mut run = Run::start(seed);
    attack(&mut run);
    run.settle();
    let Run { stage, cluster, watch, .. } = run;
    stage.end_watch();
    println!("the machine stalled the nodes for {:?}", watch.join().expect("it does not panic"));
    let stage = Arc::into_inner(stage).expect("all clients have gone");
    judge(&stage.recorder.finish(), seed);
    drop(cluster);
}
