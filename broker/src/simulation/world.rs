//! The world of a run: machines, what is between them, clients, and the one order of everything that happens.

mod clients;
mod exceptions;
mod inflict;
mod links;
mod members;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use crossbeam::channel::Receiver;
use kentongan_cluster::directory::command::MemberRecord;
use kentongan_cluster::disk::SyncSite;
use kentongan_cluster::membership;
use kentongan_cluster::transport::LinkEpoch;
use kentongan_cluster::{Configuration, GroupId, NodeId};
use kentongan_proto::peer::Kind;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::checks::Hash;
use super::faults::{self, MS, Planned, Plot, SECOND};
use super::host::{Cluster, Host, Process, Turn};
use super::network::{Fetch, LinkIndex, Network};
use super::registry::Registry;
use super::streams::{Carried, Ready};
use super::workload::{Fault as Mark, Workload, WorkloadPlan};
use crate::config::{QueueDropPolicy, Settings, SharedStrategy};
use crate::drops::{self, Bound};
use crate::ending::Ending;
use crate::later;
use crate::plants::Plant;

/// Events that a failure shows.
const TRACE_MAX: usize = 400;

/// Time that a cluster has to form.
const FORM_NS_MAX: u64 = 15 * SECOND;

/// From the first fault to the last, on three nodes. A node by itself has less to do in the same time.
const FAULTS_NS: u64 = 20 * SECOND;

/// How fast nodes' clocks run, in thousandths.
const CLOCK_RATE_PERMILLE_MIN: u64 = 960;
const CLOCK_RATE_PERMILLE_MAX: u64 = 1040;

/// A node that was cut off has closed its clients so long after it could hear of others again.
const CUT_OFF_NS: u64 = 5 * SECOND;

/// From the last heal until clients must be served.
const RECOVERY_NS: u64 = 10 * SECOND;

/// Time that sessions have to be sent what they are owed.
const DRAIN_NS_MAX: u64 = 120 * SECOND;

/// Something that happens at a time.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A thread of a process has its turn.
    Step { host: usize, start: u64 },
    /// A twentieth of a second passed there.
    Tick { host: usize, start: u64 },
    /// A slow disk is done with a sync.
    Synced { host: usize },
    /// A second passed there.
    Second { host: usize, start: u64 },
    /// Frames may be due.
    Frames(LinkIndex),
    /// A node tries to make a link.
    Dial(LinkIndex),
    /// The receiver hears that a link began.
    Heard { link: LinkIndex, epoch: u64 },
    /// The sender does.
    Opened { link: LinkIndex, epoch: u64 },
    /// The receiver hears that it ended.
    Unheard { link: LinkIndex, epoch: u64 },
    /// The sender does.
    Closed { link: LinkIndex, epoch: u64 },
    /// Nothing came over a link for too long, if it is still cut.
    Silent { link: LinkIndex, epoch: u64 },
    /// A checkpoint was fetched.
    Fetched(usize),
    /// A client's connection may have something to carry.
    Carry(usize),
    /// A client's connection breaks.
    Reset(usize),
    /// A client wants to do something.
    Clients,
    /// A planned fault begins.
    Begin(usize),
    /// A planned fault ends.
    End(usize),
    /// A process is started.
    Start(usize),
    /// A node that is no member asks to be one.
    Join(usize),
    /// A node loses its disk, once the others can do without.
    LoseDisk(usize),
    /// Another node is where one lost its disk.
    Replace(usize),
    /// The operator looks whether a node is drained that is to be, or is not any more.
    Administer(usize),
    /// A node is started again, with a later version or the earlier one.
    Change { host: usize, later: bool },
}

struct Queued {
    at_ns: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    /// The first is the greatest, as a heap has it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ns, other.number).cmp(&(self.at_ns, self.number))
    }
}

/// What waits for a process that stands still.
enum Deferred {
    Event(Event),
    Frames(LinkIndex, LinkEpoch, Vec<(Kind, Bytes)>),
}

/// What a run is like, beside its seed.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// The one node knows of no cluster.
    pub alone: bool,
    /// The first node forms a cluster of its own, and the others join it; later one of them loses its disk.
    pub grows: bool,
    /// The nodes get a later version of the program, one after the other, and one of them is taken back for a while.
    pub upgrades: bool,
    /// Everything that happens is printed.
    pub trace: bool,
    /// Of the faults that were drawn, only those whose names begin so; a plot of that name even if it was not drawn.
    pub only: Option<&'static str>,
    /// The mistake that is made.
    pub plant: Option<Plant>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The same for the same seed.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// How often each kind of thing was done.
    pub counts: BTreeMap<&'static str, u64>,
}

/// A node that an operator drains, or did.
#[derive(Debug)]
struct Drained {
    host: usize,
    node: NodeId,
    /// Faults because of which it is to be drained just now.
    wanted: u32,
    /// What the node says that the operator asked last.
    answer: Option<Receiver<Answer>>,
}

/// What the directory makes of what a node or an operator wants, and its members.
type Answer = (membership::Wish, Vec<MemberRecord>);

/// A run.
pub struct World {
    plan: Plan,
    random: SmallRng,
    now_ns: u64,
    /// When some node had a lease last, as was looked each second.
    served_ns: u64,
    number: u64,
    queue: BinaryHeap<Queued>,
    cluster: Cluster,
    network: Network,
    hosts: Vec<Host>,
    deferred: Vec<Vec<Deferred>>,
    /// Whether nothing passes from one to the other.
    cut: Vec<Vec<u32>>,
    dialling: Vec<bool>,
    fetches: Vec<Option<Fetch>>,
    streams: Vec<Carried>,
    stream_of: BTreeMap<usize, usize>,
    clients_cut: Vec<u32>,
    drained: Vec<Drained>,
    /// What nodes that ask to be members were answered.
    asked: Vec<Option<Receiver<Answer>>>,
    ready: Ready,
    workload: Workload,
    clients_at_ns: u64,
    clients_may: bool,
    faults: Vec<Planned>,
    healed: bool,
    /// Everything must work again.
    recovered: bool,
    events: u64,
    hash: Hash,
    counts: BTreeMap<&'static str, u64>,
    trace: VecDeque<(u64, Event)>,
    waiting: Vec<Turn>,
    fresh: Vec<(LinkIndex, u64)>,
    wakes: Vec<usize>,
}

fn settings(nodes: usize, random: &mut SmallRng) -> Settings {
    let mut settings = Settings::default();
    // With as many that each node lacks some.
    let more = nodes.saturating_sub(VOTERS) as u16;
    settings.storage.groups = NonZeroU16::MIN.saturating_add(random.random_range(0..3) + more);
    settings.storage.segment_bytes = random.random_range(8..64) * 1024;
    settings.storage.checkpoint_log_bytes = random.random_range(16..128) * 1024;
    settings.storage.free_bytes_reserve = Some(RESERVE_BYTES);
    settings.sys.interval_seconds = 0;
    settings.limits.memory_bytes_high_water = 0;
    match random.random_range(0..8) {
        0 | 1 => settings.session.queue_messages_max = random.random_range(2..20),
        2 => settings.session.queue_bytes_max = random.random_range(2..16) * 1024,
        _ => {}
    }
    if random.random() {
        settings.session.queue_drop_policy = QueueDropPolicy::DropOldest;
    }
    // Half of the nodes keep no queue in memory that their store has. No draw of its own: it changes nothing that can be seen.
    if settings.storage.checkpoint_log_bytes.is_multiple_of(2048) {
        settings.session.queue_memory_bytes_max = 0;
    }
    settings.shared.strategy = STRATEGIES.choose(random).map_or(SharedStrategy::RoundRobin, |(strategy, _)| *strategy);
    settings.moving.notice_seconds = random.random_range(0..3);
    settings.moving.clients_per_second = NonZeroU32::MIN.saturating_add(random.random_range(0..10));
    // Clients fight over their names, as a rule.
    settings.limits.flap_takeovers_max = 0;
    settings
}

/// How members of shared subscriptions are picked, and the names of runs in which they are picked so.
pub(super) const STRATEGIES: [(SharedStrategy, &str); 6] = [
    (SharedStrategy::RoundRobin, "shared round-robin"),
    (SharedStrategy::Random, "shared at random"),
    (SharedStrategy::Sticky, "shared stickily"),
    (SharedStrategy::HashClient, "shared by client"),
    (SharedStrategy::HashTopic, "shared by topic"),
    (SharedStrategy::LeastInflight, "shared by load"),
];

/// Nodes that keep a group.
const VOTERS: usize = 3;

const RESERVE_BYTES: u64 = 1024 * 1024;

impl World {
    /// A world from its seed.
    #[must_use]
    pub fn new(seed: u64, plan: Plan) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let network = Network::new(plan.nodes, random.random());
        let settings = settings(plan.nodes, &mut random);
        later::set_ahead(false);
        let founders = if plan.grows { 1 } else { plan.nodes };
        let cluster = Cluster::new(settings, plan.nodes, founders, plan.alone, network.clone());
        let host = |index| Host::new(index, 1000);
        let mut hosts: Vec<_> = (0..plan.nodes).map(host).collect();
        for host in &mut hosts {
            host.rate = random.random_range(CLOCK_RATE_PERMILLE_MIN..=CLOCK_RATE_PERMILLE_MAX);
            if host.index >= founders {
                host.await_membership();
            }
            host.ignored_sync = (plan.plant == Some(Plant::SkipSync)).then_some(SyncSite::LogRound);
        }
        let links = plan.nodes * plan.nodes * 3;
        Self {
            plan,
            now_ns: 0,
            served_ns: 0,
            number: 0,
            queue: BinaryHeap::new(),
            cluster,
            network,
            hosts,
            deferred: (0..plan.nodes).map(|_| Vec::new()).collect(),
            cut: vec![vec![0; plan.nodes]; plan.nodes],
            dialling: vec![false; links],
            fetches: Vec::new(),
            streams: Vec::new(),
            stream_of: BTreeMap::new(),
            clients_cut: vec![0; plan.nodes],
            drained: Vec::new(),
            asked: (0..plan.nodes).map(|_| None).collect(),
            ready: Ready::default(),
            workload: Workload::new(&WorkloadPlan::new(random.random()), plan.nodes),
            clients_at_ns: u64::MAX,
            clients_may: false,
            faults: Vec::new(),
            healed: false,
            recovered: false,
            events: 0,
            hash: Hash::default(),
            counts: BTreeMap::new(),
            trace: VecDeque::new(),
            waiting: Vec::new(),
            fresh: Vec::new(),
            wakes: Vec::new(),
            random,
        }
    }

    /// From the first start to the verdict.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn run(&mut self) -> Result<Outcome, String> {
        drops::listen(true);
        let strategy = self.cluster.settings.shared.strategy;
        STRATEGIES.iter().filter(|(one, _)| *one == strategy).for_each(|(_, name)| self.count(name));
        for host in 0..self.hosts.len() {
            let at_ns = self.random.random_range(0..200 * MS);
            self.at(at_ns, Event::Start(host));
        }
        while !self.all_serve() {
            if self.now_ns > FORM_NS_MAX {
                return Err("the nodes did not form a cluster".to_owned());
            }
            self.next()?;
        }
        self.clients_may = true;
        self.wake_clients();
        let from_ns = self.now_ns + SECOND;
        let faults_ns = if self.hosts.len() > 1 { FAULTS_NS } else { 3 * FAULTS_NS };
        self.faults = faults::plan(self.hosts.len(), from_ns, from_ns + faults_ns, &mut self.random);
        if let Some(only) = self.plan.only {
            self.faults.retain(|planned| planned.fault.name().starts_with(only));
            if self.faults.is_empty() && self.hosts.len() == 3 {
                self.faults.extend(Plot::planned(only, from_ns));
            }
        }
        for (number, planned) in self.faults.clone().into_iter().enumerate() {
            self.at(planned.at_ns, Event::Begin(number));
            self.at(planned.at_ns + planned.lasts_ns, Event::End(number));
        }
        if self.plan.grows {
            self.plan_growth(from_ns, from_ns + faults_ns);
        }
        if self.plan.upgrades {
            self.plan_upgrades(from_ns, from_ns + faults_ns);
        }
        let end_ns = self.faults.iter().map(|planned| planned.at_ns + planned.lasts_ns).max().unwrap_or(0);
        self.run_until(end_ns.max(from_ns + faults_ns) + 1)?;
        self.heal_all();
        self.run_until(self.now_ns + RECOVERY_NS)?;
        self.recovered = true;
        if !self.all_serve() || self.hosts.iter().any(|host| !host.is_member) {
            return Err(format!("some node does not serve 10 s after everything healed{}", self.describe_hosts()));
        }
        self.workload.begin_drain(self.now_ns);
        self.wake_clients();
        let until_ns = self.now_ns + DRAIN_NS_MAX;
        while !self.workload.is_drained() {
            if self.now_ns > until_ns {
                return Err("sessions are still owed something 120 s after everything was healed".to_owned());
            }
            self.next()?;
        }
        self.run_until(self.now_ns + SECOND)?;
        self.check_placement()?;
        self.compare_replicas()?;
        let registry = Registry::read(&self.hosts);
        let (owners, routes) = (registry.owners.iter(), registry.routes.iter());
        self.workload.on_registry(
            self.now_ns,
            owners.map(|name| &**name),
            routes.map(|filter| &**filter),
            registry.leaderless,
        );
        self.judge(registry.wrong)
    }

    /// What clients saw.
    #[cfg(test)]
    pub(super) fn history(&self) -> &kentongan_history::History {
        self.workload.history()
    }

    /// `wrong`: what is known to be.
    fn judge(&mut self, mut wrong: Vec<String>) -> Result<Outcome, String> {
        let mut counts = std::mem::take(&mut self.counts);
        for (name, count) in self.workload.counts() {
            *counts.entry(name).or_default() += count;
        }
        {
            let replicas = self.cluster.replicas.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *counts.entry("entries compared").or_default() += replicas.compared;
            *counts.entry("snapshots installed").or_default() += replicas.restored;
        }
        wrong.extend_from_slice(self.workload.complaints());
        let violations = kentongan_history::check(self.workload.history(), &self.judged_by());
        let found = violations.iter().filter(|violation| !self.is_of_a_node_cut_off(violation));
        wrong.extend(found.map(|violation| self.tell(violation)));
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        Ok(Outcome { hash: self.hash.0, events: self.events, counts })
    }

    fn compare_replicas(&mut self) -> Result<(), String> {
        for host in &mut self.hosts {
            if let Some(process) = &mut host.process {
                process.pipeline.machine_mut().complete_all();
            }
        }
        Ok(())
    }

    fn run_until(&mut self, until_ns: u64) -> Result<(), String> {
        while self.queue.peek().is_some_and(|next| next.at_ns <= until_ns) {
            self.next()?;
        }
        Ok(())
    }

    /// A cluster that grew is kept by all: three vote in every group, and nobody else is counted on.
    fn check_placement(&self) -> Result<(), String> {
        let settled = |host: &Host, group| {
            let status = host.process.as_ref().and_then(|process| process.pipeline.node().status(group));
            status.is_some_and(|status| {
                let mut voters: Vec<_> = (0..self.hosts.len()).map(|host| self.network.id(host)).collect();
                voters.sort_unstable();
                status.configuration == Configuration::of(voters)
            })
        };
        let groups = || (0..self.cluster.settings.storage.groups.get()).map(GroupId).chain([GroupId::DIRECTORY]);
        if self.plan.grows && !self.hosts.iter().all(|host| groups().all(|group| settled(host, group))) {
            return Err(format!("the groups are not kept by all three nodes in the end{}", self.describe_hosts()));
        }
        if self.plan.upgrades && !self.hosts.iter().all(|host| host.process.as_ref().is_some_and(Process::is_all_ahead))
        {
            return Err(format!("not all is of the later version in the end{}", self.describe_hosts()));
        }
        Ok(())
    }

    /// Those that there are.
    fn all_serve(&self) -> bool {
        let mut members = self.hosts.iter().filter(|host| host.is_member);
        members.all(|host| host.process.as_ref().is_some_and(|process| process.serves()))
    }

    fn at(&mut self, at_ns: u64, event: Event) {
        self.number += 1;
        self.queue.push(Queued { at_ns, number: self.number, event });
    }

    fn after(&mut self, from_ns: u64, to_ns: u64, event: Event) {
        let at_ns = self.now_ns + self.random.random_range(from_ns..to_ns);
        self.at(at_ns, event);
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Does what comes next.
    fn next(&mut self) -> Result<(), String> {
        let Some(Queued { at_ns, event, .. }) = self.queue.pop() else {
            return Err("nothing happens any more".to_owned());
        };
        self.now_ns = at_ns;
        self.network.set_now(at_ns);
        self.events += 1;
        self.hash.number(at_ns);
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back((at_ns, event));
        if self.plan.trace {
            eprintln!("{:>12.6} {event:?}", at_ns as f64 / 1e9);
        }
        self.happen(event)?;
        self.settle();
        if let Some((node, leader, group)) = self.network.take_forgetful() {
            // All logs here are synced before anything is acknowledged, and no disk is put back.
            return Err(format!("node {node} lacks entries of group {group} that it acknowledged to {leader}"));
        }
        Ok(())
    }

    /// The host that an event is for, if it is for the process there.
    fn host_of(&self, event: Event) -> Option<usize> {
        match event {
            Event::Step { host, .. }
            | Event::Tick { host, .. }
            | Event::Synced { host }
            | Event::Second { host, .. } => Some(host),
            Event::Frames(link) | Event::Heard { link, .. } | Event::Unheard { link, .. } => {
                Some(self.network.with(link, |link| link.to))
            }
            Event::Dial(link) | Event::Opened { link, .. } | Event::Closed { link, .. } => {
                Some(self.network.with(link, |link| link.from))
            }
            Event::Fetched(fetch) => self.fetches[fetch].as_ref().map(|fetch| fetch.to),
            _ => None,
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        let host = self.host_of(event);
        if let Some(host) = host {
            self.hash.number(host as u64);
            if self.hosts[host].paused {
                self.defer(host, event);
                return Ok(());
            }
            self.hosts[host].run_clock(self.now_ns);
        }
        match event {
            Event::Step { host, start } => self.step(host, start)?,
            Event::Tick { host, start } => self.tick(host, start)?,
            // What waited for it goes on.
            Event::Synced { .. } => {}
            Event::Second { host, start } => self.second(host, start),
            Event::Frames(link) => self.receive(link),
            Event::Dial(link) => self.dial(link),
            Event::Heard { link, epoch } => self.heard(link, epoch),
            Event::Opened { link, epoch } => self.opened(link, epoch),
            Event::Unheard { link, epoch } => self.unheard(link, epoch),
            Event::Closed { link, epoch } => self.closed(link, epoch),
            Event::Silent { link, epoch } => {
                let (from, to, now) = self.network.with(link, |link| (link.from, link.to, link.epoch));
                if now == epoch && self.is_cut(from, to) {
                    self.break_link(link, 0);
                }
            }
            Event::Fetched(fetch) => self.fetched(fetch),
            Event::Carry(stream) => self.carry(stream),
            Event::Reset(stream) => {
                self.streams[stream].reset();
                self.tell_client(stream);
            }
            Event::Clients => self.clients(),
            Event::Begin(fault) => self.begin(fault),
            Event::End(fault) => self.end(fault)?,
            Event::Start(host) => self.start(host)?,
            Event::Join(host) => self.join(host)?,
            Event::LoseDisk(host) => self.lose_disk(host),
            Event::Change { host, later } => self.change_version(host, later),
            Event::Administer(drained) => self.administer(drained),
            Event::Replace(host) => {
                self.network.replace(host);
                self.join(host)?;
            }
        }
        if let Some(host) = host {
            self.make_runnable(host);
        }
        Ok(())
    }

    // What follows from what happened.

    fn settle(&mut self) {
        let mut fresh = std::mem::take(&mut self.fresh);
        self.network.take_fresh(&mut fresh);
        for (link, at_ns) in fresh.drain(..) {
            self.at(at_ns.max(self.now_ns), Event::Frames(link));
        }
        self.fresh = fresh;
        let mut wakes = std::mem::take(&mut self.wakes);
        self.ready.take(&mut wakes);
        for stream in wakes.drain(..) {
            self.after(20_000, 300_000, Event::Carry(stream));
        }
        self.wakes = wakes;
        for link in self.network.take_refused() {
            self.count("control link full");
            self.break_link(link, 0);
        }
        for drops::Noted { client_id, bound, count } in drops::take() {
            self.count(match bound {
                Bound::QueueMessages => "dropped for too many messages",
                Bound::QueueBytes => "dropped for too many bytes",
                Bound::PacketSize => "dropped for its size",
                Bound::OutBuffer => "dropped for a slow member",
            });
            let dropped = Mark::Dropped { reason: bound.name(), count: count as u64, client: &client_id };
            self.workload.on_fault(self.now_ns, dropped);
        }
        for fetch in self.network.take_fetches() {
            self.fetches.push(Some(fetch));
            let number = self.fetches.len() - 1;
            self.after(MS, 40 * MS, Event::Fetched(number));
        }
    }

    fn make_runnable(&mut self, host: usize) {
        let (start, stalls) = (self.hosts[host].starts, self.hosts[host].waits_for_disk(self.now_ns));
        let Some(process) = self.hosts[host].process.as_mut().filter(|process| !process.scheduled) else {
            return;
        };
        if process.is_idle(stalls) {
            return;
        }
        process.scheduled = true;
        let (from, to) = if self.random.random_ratio(1, 100) { (100_000, 4 * MS) } else { (3_000, 40_000) };
        self.after(from, to, Event::Step { host, start });
    }

    fn step(&mut self, host: usize, start: u64) -> Result<(), String> {
        if self.hosts[host].starts != start {
            return Ok(());
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let stalls = self.hosts[host].waits_for_disk(self.now_ns);
        let operations = self.hosts[host].disk_operations();
        let Some(process) = &mut self.hosts[host].process else {
            return Ok(());
        };
        process.scheduled = false;
        let turn = process.step(stalls, &mut self.random, &mut waiting);
        self.waiting = waiting;
        if process.has_ended() {
            self.upgrade_late(host);
            return Ok(());
        }
        self.wait_for_slow_disk(host, operations);
        match turn {
            Ok(turn) => self.hash.number(match turn {
                Turn::Idle => 0,
                Turn::Raft => 1,
                Turn::Apply => 2,
                Turn::Checkpoint => 3,
                Turn::RaftThatStalls => 4,
                Turn::Arbiter(arbiter) => 5 + arbiter as u64,
            }),
            Err(error) => self.process_failed(host, &error.to_string())?,
        }
        Ok(())
    }

    fn tick(&mut self, host: usize, start: u64) -> Result<(), String> {
        if self.hosts[host].starts != start {
            return Ok(());
        }
        let stalls = self.hosts[host].waits_for_disk(self.now_ns);
        let operations = self.hosts[host].disk_operations();
        let Some(process) = &mut self.hosts[host].process else {
            return Ok(());
        };
        let ticked = process.tick(stalls);
        if process.has_ended() {
            self.upgrade_late(host);
            return Ok(());
        }
        self.wait_for_slow_disk(host, operations);
        match ticked {
            Ok(()) => self.after(48 * MS, 53 * MS, Event::Tick { host, start }),
            Err(error) => self.process_failed(host, &error.to_string())?,
        }
        Ok(())
    }

    /// If the disk of a node was told anything, and is slow: the thread that waits for it does nothing for that long.
    fn wait_for_slow_disk(&mut self, host: usize, operations: u64) {
        let Some(&slow_ms) = self.hosts[host].slow_ms.iter().max() else {
            return;
        };
        if self.hosts[host].disk_operations() == operations {
            return;
        }
        let until_ns = self.now_ns + self.random.random_range(slow_ms * MS / 2..=slow_ms * MS);
        self.hosts[host].syncs_until_ns = until_ns;
        self.at(until_ns, Event::Synced { host });
    }

    fn second(&mut self, host: usize, start: u64) {
        let is_same = self.hosts[host].starts == start;
        let me = self.network.id(host);
        if let Some(process) = self.hosts[host].process.as_mut().filter(|_| is_same) {
            process.on_second(me);
            if process.serves() {
                self.served_ns = self.now_ns;
            }
            self.after(990 * MS, 1_010 * MS, Event::Second { host, start });
        }
    }

    /// A process ended by itself.
    fn process_failed(&mut self, host: usize, why: &str) -> Result<(), String> {
        if !self.hosts[host].disk_fails {
            return Err(format!("the process of node {} ended: {why}", host + 1));
        }
        self.count("process ended by its disk");
        self.kill(host);
        self.after(50 * MS, 2 * SECOND, Event::Start(host));
        Ok(())
    }

    // Processes.

    fn start(&mut self, host: usize) -> Result<(), String> {
        if self.hosts[host].process.is_some() || !self.hosts[host].is_member {
            return Ok(());
        }
        let now_ns = self.now_ns;
        if let Err(error) = self.hosts[host].start(now_ns, &self.cluster, &mut self.random) {
            if self.hosts[host].is_disk_full {
                self.after(500 * MS, SECOND, Event::Start(host));
                return Ok(());
            }
            if error.downcast_ref::<Ending>().is_some() && !self.hosts[host].ahead {
                self.upgrade_late(host);
                return Ok(());
            }
            return Err(format!("node {} does not start: {error:#}", host + 1));
        }
        self.count("start");
        let start = self.hosts[host].starts;
        if start > 1 {
            self.workload.on_fault(now_ns, Mark::NodeRecovered { node: host });
        }
        self.after(0, 50 * MS, Event::Tick { host, start });
        self.after(0, SECOND, Event::Second { host, start });
        for link in self.network.between() {
            if self.network.with(link, |link| link.from) == host {
                self.dial_later(link, 0, 20 * MS);
            }
        }
        self.make_runnable(host);
        Ok(())
    }

    /// What clients saw, an event a line.
    #[must_use]
    pub fn history_text(&self) -> String {
        let history = self.workload.history();
        (0..history.events().len()).map(|index| format!("{index:>7} {}\n", history.describe(index))).collect()
    }

    fn describe_hosts(&self) -> String {
        self.hosts.iter().map(Host::describe).collect()
    }

    /// The last things that happened, one a line.
    #[must_use]
    pub fn last_events(&self) -> String {
        let line = |(at_ns, event): &(u64, Event)| format!("{:>12.6} {event:?}\n", *at_ns as f64 / 1e9);
        self.trace.iter().map(line).collect()
    }
}
