//! The world of a run: machines, what is between them, clients, and the one order of everything that happens.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use crossbeam::channel::{Receiver, bounded};
use kentongan_cluster::directory::command::MemberRecord;
use kentongan_cluster::disk::SyncSite;
use kentongan_cluster::group::Role;
use kentongan_cluster::membership;
use kentongan_cluster::transport::{Direction, LinkEpoch};
use kentongan_cluster::{Configuration, GroupId, NodeId};
use kentongan_history::{Action, Promise, Violation, What};
use kentongan_proto::peer::Kind;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::checks::Hash;
use super::faults::{self, Fault, MS, Planned, Plot, SECOND};
use super::host::{self, Cluster, Host, Process, Turn};
use super::network::{Fetch, LinkIndex, Network};
use super::registry::Registry;
use super::streams::{Carried, Ready};
use super::workload::{Fault as Mark, Hurry, Wish, Workload, WorkloadPlan};
use crate::config::{QueueDropPolicy, Settings, SharedStrategy};
use crate::drops::{self, Bound};
use crate::ending::Ending;
use crate::later;
use crate::plants::Plant;
use crate::replicated::Query;

/// Events that a failure shows.
const TRACE_MAX: usize = 400;

/// Time that a cluster has to form.
const FORM_NS_MAX: u64 = 15 * SECOND;

/// From the first fault to the last, on three nodes. A node by itself has less to do in the same time.
const FAULTS_NS: u64 = 20 * SECOND;

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
    /// Of the faults that were drawn, only those whose names begin so.
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
#[derive(Debug, Clone, Copy)]
struct Drained {
    host: usize,
    node: NodeId,
    /// Faults because of which it is to be drained just now.
    wanted: u32,
}

/// What the directory makes of a node that asks to join, and its members.
type Answer = (membership::Wish, Vec<MemberRecord>);

/// A run.
pub struct World {
    plan: Plan,
    random: SmallRng,
    now_ns: u64,
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
    settings.storage.free_bytes_reserve = RESERVE_BYTES;
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
            host.rate = random.random_range(960..=1040);
            if host.index >= founders {
                host.await_membership();
            }
            host.ignored_sync = (plan.plant == Some(Plant::SkipSync)).then_some(SyncSite::LogRound);
        }
        let links = plan.nodes * plan.nodes * 3;
        Self {
            plan,
            now_ns: 0,
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
        Ok(())
    }

    /// The host that an event is for, if it is for the process there.
    fn host_of(&self, event: Event) -> Option<usize> {
        match event {
            Event::Step { host, .. } | Event::Tick { host, .. } | Event::Second { host, .. } => Some(host),
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
            Event::End(fault) => self.end(fault),
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
        let (start, stalls) = (self.hosts[host].starts, self.hosts[host].disk_stalls > 0);
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
        let stalls = self.hosts[host].disk_stalls > 0;
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
        match turn {
            Ok(turn) => self.hash.number(match turn {
                Turn::Idle => 0,
                Turn::Raft => 1,
                Turn::Apply => 2,
                Turn::Checkpoint => 3,
                Turn::Arbiter(arbiter) => 4 + arbiter as u64,
            }),
            Err(error) => self.process_failed(host, &error.to_string())?,
        }
        Ok(())
    }

    fn tick(&mut self, host: usize, start: u64) -> Result<(), String> {
        if self.hosts[host].starts != start {
            return Ok(());
        }
        let stalls = self.hosts[host].disk_stalls > 0;
        let Some(process) = &mut self.hosts[host].process else {
            return Ok(());
        };
        let ticked = process.tick(stalls);
        if process.has_ended() {
            self.upgrade_late(host);
            return Ok(());
        }
        match ticked {
            Ok(()) => self.after(48 * MS, 53 * MS, Event::Tick { host, start }),
            Err(error) => self.process_failed(host, &error.to_string())?,
        }
        Ok(())
    }

    fn second(&mut self, host: usize, start: u64) {
        let is_same = self.hosts[host].starts == start;
        if let Some(process) = self.hosts[host].process.as_mut().filter(|_| is_same) {
            process.on_second();
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

    // Members.

    /// The others join while faults go on, and later one of the three loses its disk.
    fn plan_growth(&mut self, from_ns: u64, until_ns: u64) {
        let third_ns = (until_ns - from_ns) / 3;
        for host in 1..self.hosts.len() {
            let at_ns = from_ns + self.random.random_range(0..third_ns);
            self.at(at_ns, Event::Join(host));
        }
        let (host, at_ns) = (self.random.random_range(0..self.hosts.len()), from_ns + 2 * third_ns);
        self.at(at_ns, Event::LoseDisk(host));
    }

    /// Each of them at some time; and one is taken back.
    fn plan_upgrades(&mut self, from_ns: u64, until_ns: u64) {
        for host in 0..self.hosts.len() {
            let at_ns = self.random.random_range(from_ns..until_ns);
            self.at(at_ns, Event::Change { host, later: true });
        }
        let (host, at_ns) =
            (self.random.random_range(0..self.hosts.len()), self.random.random_range(from_ns..until_ns));
        self.at(at_ns, Event::Change { host, later: false });
        self.at(until_ns, Event::Change { host, later: true });
    }

    fn change_version(&mut self, host: usize, later: bool) {
        if self.hosts[host].ahead == later {
            return;
        }
        self.count(if later { "upgraded" } else { "taken back" });
        self.kill(host);
        self.hosts[host].ahead = later;
        self.after(50 * MS, 2 * SECOND, Event::Start(host));
    }

    /// Its program does not know what the cluster uses by now.
    fn upgrade_late(&mut self, host: usize) {
        self.count("ended for its version");
        self.change_version(host, true);
    }

    /// Asks whoever is there, until it hears that it is a member; then its process starts.
    fn join(&mut self, host: usize) -> Result<(), String> {
        let answer = self.asked[host].take().and_then(|answer| answer.try_recv().ok());
        if let Some((membership::Wish::Fulfilled, _)) = answer {
            self.count("joined");
            self.hosts[host].is_member = true;
            return self.start(host);
        }
        let asked = self.random.random_range(0..self.hosts.len());
        if let Some(process) = &self.hosts[asked].process {
            let (answer, answered) = bounded(1);
            later::set_ahead(self.hosts[host].ahead);
            let record = host::member(host, self.network.id(host));
            process.pipeline.handle().notify(Query::Admit(record, answer));
            self.asked[host] = Some(answered);
            self.make_runnable(asked);
        }
        self.after(100 * MS, 400 * MS, Event::Join(host));
        Ok(())
    }

    /// Only where every group has three voters, and all of them know it: in the midst of the step from one to three the loss of
    /// that one is the loss of all, and who loses more than a minority may lose what was acknowledged.
    fn lose_disk(&mut self, host: usize) {
        let can_bear = |group| {
            self.hosts.iter().all(|host| {
                let status = host.process.as_ref().and_then(|process| process.pipeline.node().status(group));
                status.is_some_and(|status| {
                    status.configuration.voters.len() == 3 && status.configuration.voters_outgoing.is_empty()
                })
            })
        };
        let mut groups = (0..self.cluster.settings.storage.groups.get()).map(GroupId).chain([GroupId::DIRECTORY]);
        if self.healed {
            return;
        }
        if !groups.all(can_bear) || self.hosts[host].process.is_none() {
            return self.after(100 * MS, 500 * MS, Event::LoseDisk(host));
        }
        self.count("disk lost");
        self.crash(host, false);
        self.hosts[host].lose_disk();
        self.after(3 * SECOND, 4 * SECOND, Event::Replace(host));
    }

    /// The process ends without a word; `silently`, as when the power goes, so that others notice late.
    fn crash(&mut self, host: usize, silently: bool) {
        self.workload.on_fault(self.now_ns, Mark::NodeCrashed { node: host });
        self.deferred[host].clear();
        let notice_ns = if silently { 2_500 * MS } else { MS };
        for link in self.network.between() {
            let (from, to, epoch) = self.network.with(link, |link| (link.from, link.to, link.epoch));
            if from == host {
                // What it had put off is forgotten with it.
                self.dialling[link] = false;
                self.network.break_off(link);
                self.network.with(link, |link| link.open = false);
                self.after(notice_ns / 4, notice_ns, Event::Unheard { link, epoch });
            } else if to == host {
                self.network.break_off(link);
                self.network.with(link, |link| link.heard = None);
                self.after(notice_ns / 4, notice_ns, Event::Closed { link, epoch });
            }
        }
        for stream in 0..self.streams.len() {
            if self.streams[stream].host == host && !self.streams[stream].over {
                self.streams[stream].cut |= silently;
                self.after(notice_ns / 4, notice_ns * 2, Event::Reset(stream));
            }
        }
    }

    // Operators.

    /// One that a node is drained, or is not any more, is said until everybody knows it: whoever is asked may not be able to decide.
    /// And until the end of all faults, as what was proposed may be committed long after it was taken back.
    fn administer(&mut self, drained: usize) {
        let Drained { node, wanted, .. } = self.drained[drained];
        let is_wanted = wanted > 0;
        let knows = |process: &Process| process.drains(node).is_none_or(|drains| drains == is_wanted);
        let known = self.hosts.iter().all(|host| host.process.as_ref().is_some_and(knows));
        let asked = self.random.random_range(0..self.hosts.len());
        if !known && let Some(process) = &self.hosts[asked].process {
            let (answer, _) = bounded(1);
            later::set_ahead(self.hosts[asked].ahead);
            process.pipeline.handle().notify(Query::Drain(node, is_wanted, answer));
            self.make_runnable(asked);
        }
        if !self.recovered {
            self.after(200 * MS, 500 * MS, Event::Administer(drained));
        }
    }

    fn drain(&mut self, host: usize) {
        let node = self.network.id(host);
        match self.drained.iter_mut().find(|drained| drained.node == node) {
            Some(drained) => drained.wanted += 1,
            None => {
                self.drained.push(Drained { host, node, wanted: 1 });
                self.at(self.now_ns, Event::Administer(self.drained.len() - 1));
            }
        }
    }

    fn end_drain(&mut self, host: usize) {
        if let Some(drained) = self.drained.iter_mut().find(|drained| drained.host == host && drained.wanted > 0) {
            drained.wanted -= 1;
        }
    }

    // Links.

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from][to] > 0 || self.cut[to][from] > 0
    }

    fn dial_later(&mut self, link: LinkIndex, from_ns: u64, to_ns: u64) {
        if !std::mem::replace(&mut self.dialling[link], true) {
            self.after(from_ns, to_ns, Event::Dial(link));
        }
    }

    fn dial(&mut self, link: LinkIndex) {
        self.dialling[link] = false;
        let (from, to, open) = self.network.with(link, |link| (link.from, link.to, link.open));
        if open || self.hosts[from].process.is_none() {
            return;
        }
        let is_there = self.hosts[to].process.is_some() && !self.hosts[to].paused;
        if !is_there || self.is_cut(from, to) {
            return self.dial_later(link, 50 * MS, SECOND);
        }
        self.network.break_off(link);
        let epoch = self.network.begin(link);
        self.after(100_000, MS, Event::Heard { link, epoch });
        self.after(MS, 2 * MS, Event::Opened { link, epoch });
    }

    fn tell_of_link(&mut self, link: LinkIndex, direction: Direction, epoch: u64, up: bool) {
        let (from, to, class) = self.network.with(link, |link| (link.from, link.to, link.class));
        let (host, peer) = if direction == Direction::Incoming { (to, from) } else { (from, to) };
        if let Some(process) = &self.hosts[host].process {
            process.sink.on_link(self.network.id(peer), class, direction, LinkEpoch(epoch), up);
        }
    }

    fn heard(&mut self, link: LinkIndex, epoch: u64) {
        let (now, broken, before, to) = self.network.with(link, |link| (link.epoch, link.broken, link.heard, link.to));
        if now != epoch || broken || self.hosts[to].process.is_none() {
            return;
        }
        if let Some(before) = before {
            self.tell_of_link(link, Direction::Incoming, before, false);
        }
        self.network.with(link, |link| link.heard = Some(epoch));
        self.tell_of_link(link, Direction::Incoming, epoch, true);
        self.network.release(link);
    }

    fn opened(&mut self, link: LinkIndex, epoch: u64) {
        let (now, broken, heard, from) =
            self.network.with(link, |link| (link.epoch, link.broken, link.heard, link.from));
        if now != epoch || self.hosts[from].process.is_none() {
            return;
        }
        if broken || heard != Some(epoch) {
            return self.dial_later(link, 50 * MS, SECOND);
        }
        self.network.with(link, |link| link.open = true);
        self.tell_of_link(link, Direction::Outgoing, epoch, true);
    }

    fn unheard(&mut self, link: LinkIndex, epoch: u64) {
        if self.network.with(link, |link| link.heard == Some(epoch)) {
            self.network.with(link, |link| link.heard = None);
            self.tell_of_link(link, Direction::Incoming, epoch, false);
        }
    }

    fn closed(&mut self, link: LinkIndex, epoch: u64) {
        if self.network.with(link, |link| link.open && link.epoch == epoch) {
            self.network.with(link, |link| link.open = false);
            self.tell_of_link(link, Direction::Outgoing, epoch, false);
            self.dial_later(link, 50 * MS, 500 * MS);
        }
    }

    /// Both sides notice, `late_ns` or so later.
    fn break_link(&mut self, link: LinkIndex, late_ns: u64) {
        if self.network.break_off(link) {
            let epoch = self.network.with(link, |link| link.epoch);
            self.after(late_ns + 50_000, late_ns + 20 * MS, Event::Closed { link, epoch });
            self.after(late_ns + 50_000, late_ns + 20 * MS, Event::Unheard { link, epoch });
        }
    }

    fn receive(&mut self, link: LinkIndex) {
        let (from, to, epoch, heard) = self.network.with(link, |link| (link.from, link.to, link.epoch, link.heard));
        if self.cut[from][to] > 0 || heard != Some(epoch) {
            return self.network.hold(link);
        }
        let mut frames = Vec::new();
        let next = self.network.receive(link, &mut frames);
        self.hand_over(link, frames);
        if let Some(at_ns) = next {
            self.at(at_ns, Event::Frames(link));
        }
    }

    fn hand_over(&mut self, link: LinkIndex, frames: Vec<(Kind, Bytes)>) {
        let (from, to) = self.network.with(link, |link| (link.from, link.to));
        let Some(process) = &self.hosts[to].process else {
            return;
        };
        for (kind, body) in frames {
            self.hash.bytes(&body);
            process.sink.on_message(self.network.id(from), kind, body);
        }
    }

    fn fetched(&mut self, fetch: usize) {
        let Some(Fetch { from, to, group, fetched }) = self.fetches[fetch].take() else {
            return;
        };
        let fails =
            self.hosts[from].paused || self.is_cut(from, to) || (!self.healed && self.random.random_ratio(1, 8));
        let process = self.hosts[from].process.as_ref().filter(|_| !fails);
        fetched(process.and_then(|process| process.checkpoint(group)));
        self.count(if fails { "snapshot broken off" } else { "snapshot fetched" });
    }

    // Clients.

    fn wake_clients(&mut self) {
        if !self.clients_may {
            return;
        }
        if let Some(at_ns) = self.workload.next_at_ns() {
            let at_ns = at_ns.max(self.now_ns);
            if at_ns < self.clients_at_ns {
                self.clients_at_ns = at_ns;
                self.at(at_ns, Event::Clients);
            }
        }
    }

    fn clients(&mut self) {
        if self.clients_at_ns > self.now_ns {
            return;
        }
        self.clients_at_ns = u64::MAX;
        for wish in self.workload.on_time(self.now_ns) {
            match wish {
                Wish::Open { client, node } => self.open(client, node),
                Wish::Reset { client } => {
                    if let Some(&stream) = self.stream_of.get(&client) {
                        self.streams[stream].reset();
                        self.tell_client(stream);
                    }
                }
            }
        }
        self.wake_clients();
    }

    fn open(&mut self, client: usize, host: usize) {
        let stream = self.streams.len();
        let paused = self.hosts[host].paused;
        let reachable = self.clients_cut[host] == 0 && !paused;
        self.hosts[host].run_clock(self.now_ns);
        let process = self.hosts[host].process.as_mut().filter(|_| reachable);
        let process = process.and_then(|process| process.listens().then_some(process));
        let opened = process.and_then(|process| {
            let (carried, client_end, node_end) = Carried::new(stream, client, host, &self.ready);
            process.accept(node_end, &self.cluster).then_some((carried, client_end))
        });
        let stream = opened.map(|(carried, client_end)| {
            self.streams.push(carried);
            self.stream_of.insert(client, stream);
            client_end
        });
        self.workload.opened(self.now_ns, client, stream);
        self.make_runnable(host);
    }

    fn tell_client(&mut self, stream: usize) {
        let client = self.streams[stream].client;
        if self.stream_of.get(&client) == Some(&stream) {
            self.workload.on_stream(self.now_ns, client);
            self.wake_clients();
        }
    }

    fn carry(&mut self, stream: usize) {
        let host = self.streams[stream].host;
        let passed = self.streams[stream].carry();
        self.hash.number(passed.bytes_up as u64);
        self.hash.number(passed.bytes_down as u64);
        self.tell_client(stream);
        self.make_runnable(host);
    }

    // Faults.

    /// Who decides who is dead.
    fn directory_leader(&self) -> Option<usize> {
        let leads = |host: &Host| {
            let status = host.process.as_ref()?.pipeline.node().status(GroupId::DIRECTORY)?;
            matches!(status.role, Role::Leader { .. }).then_some(status.term)
        };
        let leaders = self.hosts.iter().filter_map(|host| Some((leads(host)?, host.index)));
        leaders.max().map(|(_, host)| host)
    }

    fn plot(&mut self, plot: Plot) {
        let Some(leader) = self.directory_leader() else {
            return;
        };
        let nodes = self.hosts.len();
        let mut others = [(leader + 1) % nodes, (leader + 2) % nodes];
        if self.random.random() {
            others.reverse();
        }
        for planned in plot.acts(self.now_ns, leader, others, &mut self.random) {
            let number = self.faults.len();
            self.faults.push(planned);
            self.at(planned.at_ns, Event::Begin(number));
            self.at(planned.at_ns + planned.lasts_ns, Event::End(number));
        }
    }

    fn begin(&mut self, number: usize) {
        if let Some(leader) = self.directory_leader().filter(|_| self.faults[number].of_leader) {
            self.faults[number].fault = self.faults[number].fault.of_leader(leader);
        }
        let fault = self.faults[number].fault;
        if self.plan.trace {
            eprintln!("{:>12.6} FAULT {fault:?}", self.now_ns as f64 / 1e9);
        }
        self.count(fault.name());
        if fault.is_marked() {
            self.workload.on_fault(self.now_ns, Mark::Began { fault: number as u32, kind: fault.name() });
        }
        match fault {
            Fault::Kill(host) => self.kill(host),
            Fault::PowerCut(host) => self.cut_power(host),
            Fault::KillAll => (0..self.hosts.len()).for_each(|host| self.kill(host)),
            Fault::PowerCutAll => (0..self.hosts.len()).for_each(|host| self.cut_power(host)),
            Fault::Pause(host) => {
                if self.hosts[host].process.is_some() && !self.hosts[host].paused {
                    self.hosts[host].paused = true;
                    for link in self.network.between() {
                        let (from, to, epoch) = self.network.with(link, |link| (link.from, link.to, link.epoch));
                        if from == host || to == host {
                            self.after(2 * SECOND, 3_500 * MS, Event::Silent { link, epoch });
                        }
                    }
                }
            }
            Fault::Break(one, other) => {
                for link in self.network.between() {
                    let (from, to) = self.network.with(link, |link| (link.from, link.to));
                    if (from, to) == (one, other) || (from, to) == (other, one) {
                        let late_ns = self.random.random_range(0..100 * MS);
                        self.break_link(link, late_ns);
                    }
                }
            }
            Fault::BreakOne(drawn) => {
                let links = self.network.between();
                self.break_link(links[drawn % links.len()], 0);
            }
            Fault::OneWay(from, to) => self.cut(from, to),
            Fault::Isolate(host) => {
                for other in (0..self.hosts.len()).filter(|&other| other != host) {
                    self.cut(host, other);
                    self.cut(other, host);
                }
            }
            Fault::Delay => self.network.set_delay(200 * MS),
            Fault::WallJump(host, on) => {
                let by_ms = if on { 3_600_000 } else { -3_600_000 };
                let now_ns = self.now_ns;
                self.hosts[host].jump_wall(now_ns, by_ms);
            }
            Fault::DiskFull(host, whole) => {
                self.hosts[host].set_free_bytes(Some(if whole { 4096 } else { RESERVE_BYTES / 2 }));
                self.hosts[host].disk_fails |= whole;
                self.hosts[host].is_disk_full = true;
            }
            Fault::DiskError(host) => {
                if self.hosts[host].process.is_some() {
                    let operations = self.random.random_range(0..6);
                    self.hosts[host].fail_disk_after(operations);
                    self.hosts[host].disk_fails = true;
                }
            }
            Fault::DiskStall(host) => self.hosts[host].disk_stalls += 1,
            Fault::Drain(host) => self.drain(host),
            Fault::Plot(plot) => self.plot(plot),
            Fault::Rush | Fault::Whisper => {
                let hurry = if fault == Fault::Rush { Hurry::Anything } else { Hurry::Whisper };
                self.workload.rush(self.now_ns, self.faults[number].lasts_ns, hurry);
                self.wake_clients();
            }
            Fault::Hush => self.workload.hush(self.now_ns + self.faults[number].lasts_ns),
            Fault::ResetClients(host) => {
                for stream in 0..self.streams.len() {
                    if self.streams[stream].host == host && !self.streams[stream].over {
                        self.after(0, 50 * MS, Event::Reset(stream));
                    }
                }
            }
            Fault::CutClients(host) => {
                self.clients_cut[host] += 1;
                self.streams.iter_mut().filter(|stream| stream.host == host).for_each(|stream| stream.cut = true);
            }
        }
    }

    fn end(&mut self, number: usize) {
        let fault = self.faults[number].fault;
        if self.plan.trace {
            eprintln!("{:>12.6} HEAL {fault:?}", self.now_ns as f64 / 1e9);
        }
        match fault {
            Fault::Kill(host) | Fault::PowerCut(host) => self.at(self.now_ns, Event::Start(host)),
            Fault::KillAll | Fault::PowerCutAll => {
                for host in 0..self.hosts.len() {
                    self.after(0, 300 * MS, Event::Start(host));
                }
            }
            Fault::Pause(host) => self.resume(host),
            Fault::OneWay(from, to) => self.mend(from, to),
            Fault::Isolate(host) => {
                for other in (0..self.hosts.len()).filter(|&other| other != host) {
                    self.mend(host, other);
                    self.mend(other, host);
                }
            }
            Fault::Delay => self.network.set_delay(0),
            Fault::DiskFull(host, _) => {
                self.hosts[host].set_free_bytes(None);
                self.hosts[host].is_disk_full = false;
            }
            Fault::CutClients(host) => {
                self.clients_cut[host] = self.clients_cut[host].saturating_sub(1);
                self.pass_clients(host);
            }
            Fault::DiskStall(host) => {
                self.hosts[host].disk_stalls = self.hosts[host].disk_stalls.saturating_sub(1);
                self.make_runnable(host);
            }
            Fault::Drain(host) => self.end_drain(host),
            Fault::DiskError(_)
            | Fault::Rush
            | Fault::Whisper
            | Fault::Hush
            | Fault::Plot(_)
            | Fault::Break(..)
            | Fault::BreakOne(_)
            | Fault::ResetClients(_)
            | Fault::WallJump(..) => {}
        }
        if fault.is_marked() {
            self.workload.on_fault(self.now_ns, Mark::Healed { fault: number as u32 });
        }
    }

    fn kill(&mut self, host: usize) {
        if self.hosts[host].process.is_some() {
            self.crash(host, false);
            self.hosts[host].kill();
        }
        if std::mem::take(&mut self.hosts[host].disk_fails) {
            self.hosts[host].mend_disk();
        }
    }

    fn cut_power(&mut self, host: usize) {
        if self.hosts[host].process.is_some() {
            self.crash(host, true);
        }
        self.hosts[host].cut_power(&mut self.random);
        self.hosts[host].disk_fails = false;
    }

    fn cut(&mut self, from: usize, to: usize) {
        self.cut[from][to] += 1;
        for link in self.network.between() {
            let (one, other, epoch) = self.network.with(link, |link| (link.from, link.to, link.epoch));
            if (one, other) == (from, to) || (one, other) == (to, from) {
                self.after(2 * SECOND, 3_500 * MS, Event::Silent { link, epoch });
            }
        }
    }

    fn mend(&mut self, from: usize, to: usize) {
        self.cut[from][to] = self.cut[from][to].saturating_sub(1);
        if self.cut[from][to] > 0 {
            return;
        }
        for link in self.network.between() {
            if self.network.with(link, |link| (link.from, link.to)) == (from, to) {
                self.network.release(link);
            }
        }
    }

    /// What came for a process that stands still waits in its sockets.
    fn defer(&mut self, host: usize, event: Event) {
        if let Event::Frames(link) = event {
            let (from, epoch, heard) = self.network.with(link, |link| (link.from, link.epoch, link.heard));
            if self.cut[from][host] > 0 || heard != Some(epoch) {
                return self.network.hold(link);
            }
            let mut frames = Vec::new();
            let next = self.network.receive(link, &mut frames);
            self.deferred[host].push(Deferred::Frames(link, LinkEpoch(epoch), frames));
            if let Some(at_ns) = next {
                self.at(at_ns, event);
            }
            return;
        }
        self.deferred[host].push(Deferred::Event(event));
    }

    fn resume(&mut self, host: usize) {
        if !std::mem::replace(&mut self.hosts[host].paused, false) {
            return;
        }
        let now_ns = self.now_ns;
        self.hosts[host].run_clock(now_ns);
        let mut later_ns = 0;
        for deferred in std::mem::take(&mut self.deferred[host]) {
            match deferred {
                // Threads go on when they like; what came by a socket keeps its order.
                Deferred::Event(event @ (Event::Step { .. } | Event::Tick { .. } | Event::Second { .. })) => {
                    self.after(0, 2 * MS, event);
                }
                Deferred::Event(event) => {
                    later_ns += 1_000;
                    self.at(now_ns + later_ns, event);
                }
                Deferred::Frames(link, epoch, frames) => {
                    if self.network.with(link, |link| link.heard == Some(epoch.0)) {
                        self.hand_over(link, frames);
                    }
                }
            }
        }
        self.make_runnable(host);
    }

    fn pass_clients(&mut self, host: usize) {
        if self.clients_cut[host] > 0 {
            return;
        }
        for stream in 0..self.streams.len() {
            if self.streams[stream].host == host && self.streams[stream].cut && !self.streams[stream].over {
                self.streams[stream].cut = false;
                self.after(0, 20 * MS, Event::Carry(stream));
            }
        }
    }

    /// Everything is well again.
    fn heal_all(&mut self) {
        self.healed = true;
        self.drained.iter_mut().for_each(|drained| drained.wanted = 0);
        self.network.set_delay(0);
        for from in 0..self.hosts.len() {
            for to in 0..self.hosts.len() {
                self.cut[from][to] = self.cut[from][to].min(1);
                self.mend(from, to);
            }
            self.hosts[from].set_free_bytes(None);
            self.hosts[from].is_disk_full = false;
            self.hosts[from].disk_stalls = 0;
            self.resume(from);
            self.make_runnable(from);
            self.clients_cut[from] = 0;
            self.pass_clients(from);
            if self.hosts[from].process.is_none() {
                self.at(self.now_ns, Event::Start(from));
            }
        }
    }

    /// Time may be told by clocks that run fast or slow, and after a stop of all replicas by one that was set.
    pub(super) fn judged_by(&self) -> kentongan_history::Settings {
        let is_set = |planned: &Planned| matches!(planned.fault, Fault::WallJump(..));
        let set_ns = if self.faults.iter().any(is_set) { 2 * 3600 * SECOND } else { 0 };
        kentongan_history::Settings {
            clock_skew_max: self.now_ns / 25 + set_ns,
            clocks_set_max: set_ns,
            transient_wills_die_with_node: self.plan.alone,
            ..Workload::settings()
        }
    }

    /// Others take a node that they do not hear of for dead, before it closes its clients: their wills are published while the
    /// connections live. And it serves QoS 0 to its own clients as long as they are there (F12).
    fn is_of_a_node_cut_off(&self, violation: &Violation) -> bool {
        let events = violation.events.iter().map(|(index, _)| &self.workload.history().events()[*index]);
        let client_of = |event: &kentongan_history::Event| match &event.what {
            What::Client { node, action, .. } => Some((event.at, usize::from(*node), action.clone())),
            _ => None,
        };
        let events: Vec<_> = events.filter_map(client_of).collect();
        let seen_at_ns = |(at, ..): &(u64, usize, Action)| *at;
        let until_ns = events.iter().map(seen_at_ns).max().unwrap_or(0);
        let is_qos0 = |action: &Action| matches!(action, Action::Delivered(delivery) if delivery.qos == 0);
        match violation.promise {
            Promise::P9 => {
                violation.summary.contains("was published")
                    && !violation.summary.contains("normal DISCONNECT")
                    && events.first().is_some_and(|&(_, node, _)| self.was_cut_off(node, until_ns))
            }
            Promise::P7 => {
                events.last().is_some_and(|(at, node, action)| is_qos0(action) && self.was_cut_off(*node, *at))
            }
            _ => false,
        }
    }

    /// Whether others may have been unable to hear of the node shortly before.
    fn was_cut_off(&self, node: usize, at_ns: u64) -> bool {
        let touches = |fault: Fault| match fault {
            Fault::Pause(host) | Fault::Isolate(host) | Fault::DiskFull(host, _) | Fault::DiskStall(host) => {
                host == node
            }
            Fault::OneWay(one, other) | Fault::Break(one, other) => one == node || other == node,
            Fault::Delay => true,
            _ => false,
        };
        let is_on = |planned: &Planned| {
            planned.at_ns <= at_ns && at_ns <= planned.at_ns + planned.lasts_ns + CUT_OFF_NS && touches(planned.fault)
        };
        self.faults.iter().any(is_on)
    }

    /// A violation, with what its client saw just before.
    fn tell(&self, violation: &Violation) -> String {
        violation.to_string()
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
