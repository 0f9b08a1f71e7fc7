//! The clients against one node in one thread, which is killed and loses its power now and then; the histories are held
//! against the promises. `KENTONGAN_SEED` and `KENTONGAN_SEEDS` say which seeds are run.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use kentongan_cluster::disk::SimDisk;
use kentongan_cluster::pipeline::{Inline, NoPeers};
use kentongan_cluster::state::MemoryState;
use kentongan_cluster::{Configuration, GroupId, NodeId, PipelineConfig, StateStore};
use kentongan_history::{Promise, Violation, check};

use super::*;
use crate::auth::Authority;
use crate::clock::{Clock, ManualClock};
use crate::config::{ListenerConfig, Settings as NodeSettings, SharedStrategy};
use crate::groups::machine::{Machine, SharedCell};
use crate::groups::start::group_config;
use crate::listener::ListenerContext;
use crate::metrics::Metrics;
use crate::random::Random;
use crate::replicated::state::GroupState;
use crate::replicated::{Query, Slots, Submitter};
use crate::router::Shared;
use crate::router::stepped::SteppedArbiter;

const GROUPS: u16 = 3;
const ARBITERS: usize = 2;
const STREAM_BYTES_MAX: usize = 2048;

/// Simulated time for which clients act.
const RUN_NS: u64 = 60 * SECOND;

/// The groups need not be asked more often while nobody submits.
const IDLE_NS: u64 = 20 * MILLISECOND;

/// One direction of a connection.
#[derive(Debug, Default)]
struct Wire {
    under_way: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// The sender has said all it had.
    ended: bool,
}

/// Two streams, and what is between them.
#[derive(Debug)]
struct Cable {
    client: usize,
    to_client: MemoryStream,
    to_node: Option<MemoryStream>,
    up: Wire,
    down: Wire,
}

impl Wire {
    /// Takes up what was written.
    fn load(&mut self, from: &MemoryStream, now_ns: u64, random: &mut SmallRng) {
        while !self.ended && self.bytes < STREAM_BYTES_MAX {
            let mut buffer = [0; 512];
            let some = random.random_range(1..=buffer.len());
            match from.try_read(&mut buffer[..some]) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    let after = self.under_way.back().map_or(0, |(at, _)| *at);
                    let at_ns = after.max(now_ns + random.random_range(50_000..8 * MILLISECOND));
                    self.under_way.push_back((at_ns, buffer[..count].to_vec()));
                    self.bytes += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.ended = true,
            }
        }
    }

    /// Delivers what has arrived. `true`: something was.
    fn unload(&mut self, to: &MemoryStream, now_ns: u64) -> bool {
        let mut moved = false;
        while let Some((at_ns, bytes)) = self.under_way.front_mut() {
            if *at_ns > now_ns {
                break;
            }
            match to.try_write(bytes) {
                Ok(count) if count < bytes.len() => {
                    self.bytes -= count;
                    drop(bytes.drain(..count));
                    return true;
                }
                Ok(count) => {
                    self.bytes -= count;
                    moved = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Nobody will read it.
                Err(_) => self.bytes -= bytes.len(),
            }
            self.under_way.pop_front();
        }
        moved
    }

    fn is_over(&self) -> bool {
        self.ended && self.under_way.is_empty()
    }

    fn next_at_ns(&self) -> Option<u64> {
        self.under_way.front().map(|(at_ns, _)| *at_ns)
    }
}

struct Process {
    shared: Arc<Shared>,
    arbiters: Vec<SteppedArbiter>,
    pipeline: Inline<Machine, NoPeers>,
    clock: Clock,
    fenced: mpsc::Receiver<()>,
    serves: bool,
    turn_at_ns: u64,
    second_at_ns: u64,
}

struct World {
    random: SmallRng,
    now_ns: u64,
    settings: Arc<NodeSettings>,
    listener: Arc<ListenerContext>,
    machine_clock: Arc<ManualClock>,
    disk: SimDisk,
    state: MemoryState,
    incarnation: u64,
    process: Option<Process>,
    start_at_ns: u64,
    cables: Vec<Cable>,
    opening: Vec<(u64, usize)>,
    workload: Workload,
    metrics: Metrics,
    dropped: u64,
    crashes: u32,
    /// The disk will fail soon.
    power_fails: bool,
}

/// What a run is like.
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    /// Kills and power cuts.
    crashes: u32,
    /// A small bound on queues.
    queue_messages_max: Option<u32>,
}

impl World {
    fn new(seed: u64, trouble: Trouble) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x5eed);
        let mut settings = NodeSettings::default();
        let strategies = [SharedStrategy::RoundRobin, SharedStrategy::Random, SharedStrategy::LeastInflight];
        settings.shared.strategy = strategies[random.random_range(0..3)];
        settings.storage.groups = std::num::NonZeroU16::new(GROUPS).expect("not zero");
        settings.storage.free_bytes_reserve = 0;
        settings.session.inflight_messages_max = std::num::NonZeroU16::new(16).expect("not zero");
        settings.session.queue_messages_max = trouble.queue_messages_max.unwrap_or(100_000);
        settings.limits.flap_takeovers_max = 0;
        let settings = Arc::new(settings);
        let address = SocketAddr::from(([127, 0, 0, 1], 1883));
        let listener = Arc::new(ListenerContext::new(ListenerConfig::default(), &settings, address));
        let mut world = Self {
            random,
            now_ns: 0,
            settings,
            listener,
            machine_clock: Arc::new(ManualClock::new(1_700_000_000_000)),
            disk: SimDisk::new(),
            state: MemoryState::default(),
            incarnation: 0,
            process: None,
            start_at_ns: 0,
            cables: Vec::new(),
            opening: Vec::new(),
            workload: Workload::new(&WorkloadPlan::new(seed), 1),
            metrics: Metrics::isolated(),
            dropped: 0,
            crashes: 0,
            power_fails: false,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.incarnation += 1;
        let slots = Slots::new(GROUPS);
        let disk: Arc<dyn kentongan_cluster::disk::Disk> = Arc::new(self.disk.clone());
        let store = StateStore::in_memory(&self.state, Arc::clone(&disk)).expect("what was written is whole");
        let config = group_config(&self.settings);
        let groups = (0..GROUPS).map(|group| {
            GroupState::restore(config, store.load(GroupId(group)).expect("loaded")).expect("what was written is whole")
        });
        let groups = groups.collect();
        self.metrics = Metrics::isolated();
        self.dropped = 0;
        let (fenced, wait) = mpsc::channel();
        let cell = SharedCell::default();
        let machine = Machine::new(groups, config, Arc::clone(&cell), self.metrics.arbiter(), fenced, None);
        let node = NodeId(1);
        let pipeline_config = PipelineConfig {
            node,
            seed: self.random.random(),
            groups: (0..GROUPS).map(|group| (GroupId(group), Configuration::of([node]))).collect(),
            segment_bytes: 16 * 1024,
            checkpoint_log_bytes: 16 * 1024,
            checkpoint_interval: Duration::from_secs(5),
            sync: true,
            free_bytes_reserve: 0,
        };
        let clock = Clock::manual(Arc::clone(&self.machine_clock));
        let pipeline =
            Inline::start(pipeline_config, disk, store, machine, NoPeers, Duration::ZERO).expect("it starts");
        let submitter = Submitter::new(pipeline.handle().clone(), slots, clock.clone());
        let mut shared = Shared::new(
            Arc::clone(&self.settings),
            ARBITERS,
            submitter,
            Authority::default(),
            self.incarnation,
            None,
            clock.clone(),
        );
        shared.random = Random::seeded(self.random.random());
        let shared = Arc::new(shared);
        assert!(cell.set(Arc::clone(&shared)).is_ok());
        pipeline.handle().notify(Query::Begin);
        let arbiters = (0..ARBITERS as u16)
            .map(|id| SteppedArbiter::new(id, Arc::clone(&shared), self.metrics.arbiter()))
            .collect();
        self.process = Some(Process {
            shared,
            arbiters,
            pipeline,
            clock,
            fenced: wait,
            serves: false,
            turn_at_ns: self.now_ns,
            second_at_ns: self.now_ns + SECOND,
        });
    }

    /// The process ends, and what its disk keeps is drawn.
    fn crash(&mut self, power: bool) {
        let Some(process) = self.process.take() else {
            return;
        };
        if process.serves {
            self.workload.on_fault(self.now_ns, Fault::NodeCrashed { node: 0 });
        }
        drop(process);
        self.crashes += 1;
        if std::mem::take(&mut self.power_fails) || power {
            let seed = self.random.random();
            let torn = std::cell::RefCell::new(SmallRng::seed_from_u64(seed));
            self.disk.power_cycle(|_, unsynced| torn.borrow_mut().random_range(0..=unsynced));
            let random = &mut self.random;
            self.state.power_cut(|batches| random.random_range(0..=batches));
        }
        for cable in &mut self.cables {
            cable.to_node = None;
            cable.down.ended = true;
        }
        self.start_at_ns = self.now_ns + self.random.random_range(10..3_000) * MILLISECOND;
    }

    /// Until nobody has anything to do at this time.
    fn run_process(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        if process.second_at_ns <= self.now_ns {
            process.second_at_ns += SECOND;
            process.arbiters.iter_mut().for_each(SteppedArbiter::on_second);
        }
        let mut stepped = false;
        loop {
            let arbiter = self.random.random_range(0..ARBITERS);
            let arbiter = if process.arbiters[arbiter].waiting() > 0 { arbiter } else { ARBITERS - 1 - arbiter };
            let choice = self.random.random_range(0..4);
            if !process.arbiters[arbiter].step(choice) {
                break;
            }
            stepped = true;
        }
        if stepped {
            let soon_ns = self.now_ns + self.random.random_range(20_000..3 * MILLISECOND);
            process.turn_at_ns = process.turn_at_ns.min(soon_ns);
        }
        if process.turn_at_ns > self.now_ns {
            return;
        }
        let more = process.pipeline.turn(process.clock.elapsed());
        let wait_ns = match &more {
            Ok(true) => self.random.random_range(10_000..MILLISECOND),
            _ => IDLE_NS,
        };
        process.turn_at_ns = self.now_ns + wait_ns;
        if !process.serves && process.fenced.try_recv().is_ok() {
            process.serves = true;
            if self.incarnation > 1 && self.crashes > 0 {
                self.workload.on_fault(self.now_ns, Fault::NodeRecovered { node: 0 });
            }
        }
        if more.is_err() {
            self.crash(true);
        }
    }

    fn wish(&mut self, wish: Wish) {
        match wish {
            Wish::Open { client, .. } => {
                let at_ns = self.now_ns + self.random.random_range(0..5 * MILLISECOND);
                self.opening.push((at_ns, client));
            }
            Wish::Reset { client } => {
                for cable in self.cables.iter_mut().filter(|cable| cable.client == client) {
                    if let Some(stream) = cable.to_node.take() {
                        stream.reset();
                    }
                    (cable.up.ended, cable.down.ended) = (true, true);
                    cable.up.under_way.clear();
                    cable.down.under_way.clear();
                }
            }
        }
    }

    fn open(&mut self, client: usize) {
        let serving = self.process.as_mut().filter(|process| process.serves);
        let Some(process) = serving else {
            return self.workload.opened(self.now_ns, client, None);
        };
        let arbiter = process.shared.try_open_connection(&self.listener, usize::MAX).expect("there is no bound");
        let (to_node, node_end) = MemoryStream::pair(STREAM_BYTES_MAX);
        let (to_client, client_end) = MemoryStream::pair(STREAM_BYTES_MAX);
        process.arbiters[usize::from(arbiter)].add_connection(node_end, Arc::clone(&self.listener), None);
        let (up, down) = (Wire::default(), Wire::default());
        self.cables.push(Cable { client, to_client, to_node: Some(to_node), up, down });
        self.workload.opened(self.now_ns, client, Some(client_end));
    }

    fn carry(&mut self) {
        let mut cables = std::mem::take(&mut self.cables);
        for cable in &mut cables {
            cable.up.load(&cable.to_client, self.now_ns, &mut self.random);
            if let Some(to_node) = &cable.to_node {
                cable.up.unload(to_node, self.now_ns);
                if cable.up.is_over() {
                    to_node.shut_down_write();
                }
                cable.down.load(to_node, self.now_ns, &mut self.random);
            }
            let moved = cable.down.unload(&cable.to_client, self.now_ns);
            let over = cable.down.is_over();
            if over {
                cable.to_client.shut_down_write();
            }
            if (moved || over) && !cable.up.ended {
                self.workload.on_stream(self.now_ns, cable.client);
            }
        }
        cables.retain(|cable| !(cable.down.is_over() && cable.up.ended));
        self.cables = cables;
    }

    /// One moment. Everything that is due happens.
    fn step(&mut self) {
        for wish in self.workload.on_time(self.now_ns) {
            self.wish(wish);
        }
        if self.process.is_none() && self.start_at_ns <= self.now_ns {
            self.start();
        }
        let due: Vec<usize> =
            self.opening.extract_if(.., |(at_ns, _)| *at_ns <= self.now_ns).map(|(_, client)| client).collect();
        due.into_iter().for_each(|client| self.open(client));
        self.carry();
        self.run_process();
        self.carry();
        let wires = self.cables.iter().flat_map(|cable| [cable.up.next_at_ns(), cable.down.next_at_ns()]);
        let next = wires
            .flatten()
            .chain(self.workload.next_at_ns())
            .chain(self.opening.iter().map(|(at_ns, _)| *at_ns))
            .chain(match &self.process {
                Some(process) => [process.turn_at_ns, process.second_at_ns],
                None => [self.start_at_ns; 2],
            })
            .min();
        let next_ns = next.unwrap_or(0).max(self.now_ns + 20_000);
        self.machine_clock.advance(Duration::from_nanos(next_ns - self.now_ns));
        self.now_ns = next_ns;
    }

    fn count_dropped(&mut self) {
        let text = self.metrics.render();
        for reason in ["queue_messages", "queue_bytes"] {
            let name = format!("kentongan_messages_dropped_total{{reason=\"{reason}\"}} ");
            let count = text.lines().filter_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).sum::<u64>();
            if count > 0 {
                self.dropped += count;
                self.workload.on_fault(self.now_ns, Fault::Dropped { reason, count });
            }
        }
    }

    fn run(seed: u64, trouble: Trouble) -> Self {
        let mut world = Self::new(seed, trouble);
        let mut crashes: Vec<u64> = (0..trouble.crashes).map(|_| world.random.random_range(SECOND..RUN_NS)).collect();
        crashes.sort_unstable();
        let mut crashes = VecDeque::from(crashes);
        while world.now_ns < RUN_NS {
            if world.process.is_some() && crashes.front().is_some_and(|at_ns| *at_ns <= world.now_ns) {
                crashes.pop_front();
                match world.random.random_range(0..3) {
                    0 => world.crash(false),
                    1 => world.crash(true),
                    _ => {
                        world.disk.cut_power_after(world.random.random_range(0..40));
                        world.power_fails = true;
                    }
                }
            }
            world.step();
        }
        world.crash_if_power_fails();
        world.run_for(15 * SECOND);
        world.workload.begin_drain(world.now_ns);
        while !world.workload.is_drained() {
            world.step();
        }
        world.count_dropped();
        world
    }

    fn crash_if_power_fails(&mut self) {
        if self.power_fails {
            self.crash(true);
        }
    }

    fn run_for(&mut self, by_ns: u64) {
        let until_ns = self.now_ns + by_ns;
        while self.now_ns < until_ns {
            self.step();
        }
    }

    fn violations(&self) -> Vec<String> {
        let found = check(self.workload.history(), &Workload::settings());
        let found = found.iter().filter(|violation| !self.is_lost_with_the_only_node(violation));
        found.map(ToString::to_string).chain(self.workload.complaints().iter().cloned()).collect()
    }

    /// Of a transient session only one node knows, if there is no other: its will is lost with the process.
    fn is_lost_with_the_only_node(&self, violation: &Violation) -> bool {
        let is_transient = |index: usize| match &self.workload.history().events()[index].what {
            What::Client { action: Action::ConnectSent(connect), .. } => connect.session_expiry == 0,
            _ => false,
        };
        let is_missing = violation.summary.contains("is missing");
        self.crashes > 0
            && violation.promise == Promise::P9
            && is_missing
            && violation.events.iter().any(|(index, _)| is_transient(*index))
    }
}

fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("KENTONGAN_SEED").unwrap_or(1);
    first..first + number("KENTONGAN_SEEDS").unwrap_or(usual)
}

/// `false`, and what is wrong, if the history of a seed breaks a promise.
fn keeps_promises(seed: u64, world: &World) -> bool {
    if std::env::var_os("KENTONGAN_PRINT").is_some() {
        let history = world.workload.history();
        (0..history.events().len()).for_each(|index| println!("{index:>7} {}", history.describe(index)));
    }
    let violations = world.violations();
    for violation in &violations {
        println!("KENTONGAN_SEED={seed}: {violation}");
    }
    violations.is_empty()
}

/// Counts over all seeds.
fn run_seeds(seeds: std::ops::Range<u64>, trouble: Trouble) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    let mut broken = Vec::new();
    for seed in seeds {
        let world = World::run(seed, trouble);
        if !keeps_promises(seed, &world) {
            broken.push(seed);
        }
        let of_seed = world.workload.counts().into_iter();
        for (what, count) in of_seed.chain([("dropped", world.dropped), ("crash", world.crashes.into())]) {
            *counts.entry(what).or_insert(0) += count;
        }
    }
    assert!(broken.is_empty(), "promises are broken by seeds {broken:?}");
    counts
}

#[test]
fn one_node_keeps_its_promises() {
    let counts = run_seeds(seeds(20), Trouble::default());
    assert_eq!(counts["dropped"], 0, "nothing may be missing for a bound");
    println!("{counts:#?}");
}

#[test]
fn a_node_that_is_killed_and_loses_its_power_keeps_its_promises() {
    let counts = run_seeds(seeds(20), Trouble { crashes: 4, ..Trouble::default() });
    assert_eq!(counts["dropped"], 0, "nothing may be missing for a bound");
    println!("{counts:#?}");
}

#[test]
fn what_queues_have_no_room_for_is_counted() {
    let counts = run_seeds(seeds(10), Trouble { queue_messages_max: Some(5), ..Trouble::default() });
    assert!(counts["dropped"] > 0, "every queue had room");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let trouble = Trouble { crashes: 3, ..Trouble::default() };
    let history = |seed| {
        let mut lines = Vec::new();
        World::run(seed, trouble).workload.history().write_json_lines(&mut lines).expect("memory takes it");
        String::from_utf8(lines).expect("JSON is text")
    };
    for seed in seeds(3) {
        let (one, other) = (history(seed), history(seed));
        let differs = one.lines().zip(other.lines()).position(|(one, other)| one != other);
        assert!(one == other, "seed {seed}: line {differs:?} differs");
    }
    assert_ne!(history(1), history(2));
}
