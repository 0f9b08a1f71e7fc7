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

use super::nodes::{Cluster, Node};

const CLIENTS: usize = 10;

/// Between two faults.
const CALM: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_secs(3);

/// A node is down or stopped for so long: shorter and longer than a lease.
const FAULT: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(4);

/// From the beginning of a change of members to the death of one of them.
const MEANWHILE: std::ops::Range<Duration> = Duration::from_millis(0)..Duration::from_secs(2);

const NODES_MAX: usize = 5;

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
        Self::with(Cluster::start(), seed)
    }

    /// Clients go to the nodes that run.
    fn with(cluster: Cluster, seed: u64) -> Self {
        let pid = |node: &Node| if node.is_running() { node.pid() } else { 0 };
        let seats = cluster.nodes.iter().map(|node| Seat::new(node.address, pid(node))).collect();
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

    /// One more node, and one of all is killed while it joins.
    fn grow(&mut self, joiner: usize) {
        println!("{:>10} node {joiner} comes", self.stage.recorder.now() / 1_000_000);
        self.cluster.nodes[joiner].spawn();
        self.wait(MEANWHILE);
        let victim = self.random.random_range(0..=joiner);
        self.kill_one_of(joiner + 1, victim);
        self.cluster.nodes[joiner].wait_until_ready();
        self.stage.seats[joiner].pid.store(self.cluster.nodes[joiner].pid(), SeqCst);
        self.cluster.wait_until_kept_among(joiner + 1);
    }

    /// One node less, and one of the others is killed while it goes.
    fn shrink(&mut self, leaver: usize) {
        println!("{:>10} node {leaver} goes", self.stage.recorder.now() / 1_000_000);
        let victim = self.random.random_range(0..leaver);
        // Of whom the operator asks, and who dies then, no answer can come.
        let asked = usize::from(victim == 0);
        let removal = self.cluster.begin_to_remove(asked, &format!("n{}", leaver + 1));
        self.wait(MEANWHILE);
        self.kill_one_of(leaver + 1, victim);
        let output = removal.wait_with_output().expect("our own child");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.stage.seats[leaver].pid.store(0, SeqCst);
        self.cluster.nodes[leaver].wait_until_ended();
        self.cluster.wait_until_kept_among(leaver);
    }

    /// Of fewer than three nodes none may be lost: then no promise of time runs.
    fn kill_one_of(&mut self, nodes: usize, victim: usize) {
        self.faults += 1;
        let fault = self.faults;
        if nodes <= 3 {
            let kind = self.stage.recorder.symbol("a node of few");
            self.note(What::FaultBegan { fault, kind });
        }
        self.kill(&[victim]);
        if nodes <= 3 {
            self.note(What::FaultHealed { fault });
        }
    }

    fn finish(mut self, seed: u64) {
        self.settle();
        let Self { stage, cluster, watch, .. } = self;
        stage.end_watch();
        println!("the machine stalled the nodes for {:?}", watch.join().expect("it does not panic"));
        let stage = Arc::into_inner(stage).expect("all clients have gone");
        judge(&stage.recorder.finish(), seed);
        drop(cluster);
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
        for node in self.cluster.nodes.iter().filter(|node| node.is_running()) {
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

fn seed() -> u64 {
    let seed = std::env::var("KENTONGAN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("KENTONGAN_SEED={seed}");
    seed
}

/// P1 to P12, whatever clients do and whichever nodes are killed or stopped.
#[test]
fn no_promise_is_broken_while_nodes_are_killed_and_stopped() {
    let seed = seed();
    let mut run = Run::start(seed);
    for _ in 0..faults() {
        run.wait(CALM);
        run.fault();
    }
    run.finish(seed);
}

/// The same while a cluster of one grows to five nodes and shrinks to one again:
/// `cargo nextest run -p kentongan --run-ignored only --no-capture -E 'test(while_nodes_come_and_go)'`.
#[test]
#[ignore = "a minute and a half in a debug build"]
fn no_promise_is_broken_while_nodes_come_and_go_and_are_killed_meanwhile() {
    let seed = seed();
    let mut run = Run::with(Cluster::start_first_of(NODES_MAX, false), seed);
    for joiner in 1..NODES_MAX {
        run.wait(CALM);
        run.grow(joiner);
    }
    for leaver in (1..NODES_MAX).rev() {
        run.wait(CALM);
        run.shrink(leaver);
    }
    run.finish(seed);
}

/// The same while all nodes are restarted in turn, in good order (F13).
#[test]
fn no_promise_is_broken_by_a_rolling_restart() {
    let seed = seed();
    let mut run = Run::start(seed);
    for node in 0..3 {
        run.wait(CALM);
        run.restart(node);
    }
    run.finish(seed);
}
