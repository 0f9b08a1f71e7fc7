//! Everything that is not ours: machines, clocks, the network, chance, and what clients see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use kentongan_cluster::GroupId;
use kentongan_cluster::directory::Effect;
use kentongan_cluster::directory::command::{Command, Form};
use kentongan_cluster::identity::{Incarnation, NodeId};
use kentongan_cluster::lease::Standing;

use super::Plant;
use super::consensus::Consensus;
use super::process::{Action, GroupChange, Message, Process, group_filter, member, node};
use super::random::Random;

const MS: u64 = 1_000_000;
const GROUPS: u16 = 2;
const TOPICS: usize = 6;
const SUBSCRIPTIONS_MAX: usize = 24;
const FAULTS_UNTIL: u64 = 16_000 * MS;
const WORK_UNTIL: u64 = 24_000 * MS;
/// Many times what a seed needs.
const EVENTS_MAX: u64 = 500_000;
const END: u64 = 30_000 * MS;

/// Of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leadership {
    term: u64,
    machine: usize,
    /// Which of its processes.
    process: u64,
}

#[derive(Debug)]
enum Event {
    /// Of one process, so it is lost with it and waits while it is stopped.
    Of(usize, u64, Step),
    Deliver(usize, usize),
    Resume(usize),
    Start(usize),
    Replicated(u64, u64),
    DirectoryReadQuorum {
        machine: usize,
        process: u64,
        term: u64,
        token: u64,
        index: u64,
    },
    GroupReadQuorum {
        group: GroupId,
        leadership: Leadership,
        token: u64,
        index: u64,
    },
    GroupReplicated(GroupId, Leadership, GroupChange),

    LateProposal(Command),
    Elections,
    Fault,
    Work,
    Publish(u64),
}

#[derive(Debug)]
enum Step {
    Tick,
    Link(usize),
    DirectoryRead { token: u64, index: u64 },
    GroupRead(GroupId, u64, u64),
    LearnGroup(GroupId),
    GroupDeposed(GroupId, u64),
    Learn(u64),
    Arrive(u64),
    BeginTurn,
    Match,
    EndTurn,
}

struct Machine {
    process: Option<Process>,
    /// Counts processes.
    started: u64,
    paused: bool,
    /// What happens to a stopped process when it goes on.
    deferred: Vec<Event>,
    in_turn: bool,
    clock_offset: u64,
    clock_per_mille: u64,
    /// Its replica of the directory stands still until then.
    lags_until: u64,
}

impl Machine {
    fn clock(&self, now: u64) -> u64 {
        self.clock_offset + now / 1000 * self.clock_per_mille
    }
}

struct Subscription {
    machine: usize,
    process: u64,
    incarnation: Incarnation,
    topic: u64,
    acknowledged_at: Option<u64>,
}

/// Of a persistent session.
struct GroupSubscription {
    group: GroupId,
    topic: u64,
    acknowledged_at: Option<u64>,
}

struct Publish {
    topic: u64,
    sent_at: u64,
}

/// What came of a seed.
pub struct Outcome {
    pub hash: u64,
    pub events: u64,
    pub counts: BTreeMap<&'static str, u64>,
    pub violation: Option<String>,
    pub trace: Vec<(u64, &'static str, u64, u64)>,
}

pub struct World {
    random: Random,
    plant: Plant,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    machines: Vec<Machine>,
    voters: usize,
    consensus: Consensus,
    /// When the leader was last seen to lead.
    leader_seen: u64,
    /// When each group will have fenced what is below an incarnation, of which node.
    fenced_at: BTreeMap<(GroupId, Incarnation), (NodeId, u64)>,
    groups: Vec<Leadership>,
    /// What was committed, and in which terms.
    group_logs: Vec<Vec<(u64, GroupChange)>>,
    /// Number of the present connection between two machines.
    links: BTreeMap<(usize, usize), u64>,
    /// Whose process has not noticed that its connection to a peer broke.
    unnoticed: BTreeSet<(usize, usize)>,
    streams: BTreeMap<(usize, usize), VecDeque<(u64, Message)>>,
    cut_until: BTreeMap<(usize, usize), u64>,
    next_id: u64,
    subscriptions: BTreeMap<u64, Subscription>,
    group_subscriptions: BTreeMap<u64, GroupSubscription>,
    publishes: BTreeMap<u64, Publish>,
    delivered: BTreeSet<(u64, u64)>,
    /// Last number, by origin and target.
    applied: BTreeMap<(Incarnation, Incarnation), u64>,
    outcome: Outcome,
}

impl World {
    pub fn run(seed: u64, plant: Plant) -> Outcome {
        let mut world = Self::new(seed, plant);
        world.begin();
        while let Some(((at, _), event)) = world.queue.pop_first() {
            if at > END || world.outcome.violation.is_some() {
                break;
            }
            world.now = at;
            world.outcome.events += 1;
            if world.outcome.events > EVENTS_MAX {
                world.violated(format!("livelock: {EVENTS_MAX} events by {} ms", at / MS));
            }
            world.dispatch(event);
        }
        if world.outcome.violation.is_none() {
            world.check_that_all_is_well();
        }
        world.outcome
    }

    fn new(seed: u64, plant: Plant) -> Self {
        let mut random = Random::new(seed);
        let machines = 3 + random.below(3);
        let voters = if machines == 5 && random.percent(50) { 5 } else { 3 };
        let machine = |random: &mut Random| Machine {
            process: None,
            started: 0,
            paused: false,
            deferred: Vec::new(),
            in_turn: false,
            clock_offset: random.in_range(1..1 << 40),
            clock_per_mille: random.in_range(960..1040),
            lags_until: 0,
        };
        Self {
            machines: (0..machines).map(|_| machine(&mut random)).collect(),
            voters,
            random,
            plant,
            now: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            consensus: Consensus::new(),
            leader_seen: 0,
            fenced_at: BTreeMap::new(),
            group_logs: vec![Vec::new(); usize::from(GROUPS)],
            group_subscriptions: BTreeMap::new(),
            groups: vec![Leadership { term: 0, machine: 0, process: 0 }; usize::from(GROUPS)],
            links: BTreeMap::new(),
            unnoticed: BTreeSet::new(),
            streams: BTreeMap::new(),
            cut_until: BTreeMap::new(),
            next_id: 1,
            subscriptions: BTreeMap::new(),
            publishes: BTreeMap::new(),
            delivered: BTreeSet::new(),
            applied: BTreeMap::new(),
            outcome: Outcome {
                hash: 0xcbf2_9ce4_8422_2325,
                events: 0,
                counts: BTreeMap::new(),
                violation: None,
                trace: Vec::new(),
            },
        }
    }

    fn begin(&mut self) {
        let members = (0..self.voters).map(member).collect();
        let form = Form { cluster_id: vec![1].into(), groups: u32::from(GROUPS), members, ..Form::default() };
        self.consensus.commit(Command::Form(form));
        for machine in 0..self.machines.len() {
            if machine < self.voters {
                self.start(machine);
            } else {
                // A late joiner.
                self.schedule(1_000..12_000, Event::Start(machine));
            }
        }
        self.elect(0);
        self.schedule(100..101, Event::Elections);
        self.schedule(500..2_000, Event::Fault);
        self.schedule(1_000..1_001, Event::Work);
    }

    // Time

    /// In milliseconds from now.
    fn schedule(&mut self, after_ms: Range<u64>, event: Event) {
        let after = self.random.in_range(after_ms.start * 1000..after_ms.end * 1000) * 1000;
        self.next_event += 1;
        self.queue.insert((self.now + after, self.next_event), event);
    }

    /// Mostly soon, at times very late.
    fn schedule_late(&mut self, soon_ms: Range<u64>, late_percent: u64, late_ms: Range<u64>, event: Event) {
        let after = if self.random.percent(late_percent) { late_ms } else { soon_ms };
        self.schedule(after, event);
    }

    fn schedule_step(&mut self, machine: usize, after_ms: Range<u64>, step: Step) {
        let process = self.machines[machine].started;
        self.schedule(after_ms, Event::Of(machine, process, step));
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Of(machine, process, _) if self.machines[machine].started != process => {}
            Event::Of(machine, ..) | Event::Deliver(_, machine) if self.machines[machine].paused => {
                self.machines[machine].deferred.push(event);
            }
            Event::Of(machine, _, step) => self.step(machine, step),
            Event::Deliver(from, to) => self.deliver(from, to),
            Event::Resume(machine) => self.resume(machine),
            Event::Start(machine) => self.start(machine),
            Event::Replicated(term, proposal) => self.on_replicated(term, proposal),
            Event::DirectoryReadQuorum { machine, process, term, token, index } => {
                if self.confirms_directory_read(machine, term) {
                    let read = Step::DirectoryRead { token, index };
                    self.schedule_late(0..5, 3, 5..800, Event::Of(machine, process, read));
                }
            }
            Event::GroupReadQuorum { group, leadership, token, index } => {
                if self.groups[usize::from(group.0)] == leadership && self.leads_with_quorum(leadership) {
                    let Leadership { machine, process, .. } = leadership;
                    let read = Step::GroupRead(group, token, index);
                    self.schedule_late(0..5, 3, 5..800, Event::Of(machine, process, read));
                }
            }
            Event::GroupReplicated(group, leadership, change) => self.on_group_replicated(group, leadership, change),

            Event::LateProposal(command) => self.propose(command),
            Event::Elections => self.watch_leader(),
            Event::Fault => self.fault(),
            Event::Work => self.work(),
            Event::Publish(topic) => self.publish(topic),
        }
    }

    fn note(&mut self, what: &'static str, a: u64, b: u64) {
        let outcome = &mut self.outcome;
        for byte in what.bytes().chain([self.now, a, b].iter().flat_map(|value| value.to_le_bytes())) {
            outcome.hash = (outcome.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        *outcome.counts.entry(what).or_default() += 1;
        outcome.trace.push((self.now / 1000, what, a, b));
    }

    fn violated(&mut self, what: String) {
        self.outcome.violation.get_or_insert(what);
    }

    // Processes

    fn start(&mut self, machine: usize) {
        let attempt = self.random.next();
        let state = &mut self.machines[machine];
        if state.process.is_some() {
            return;
        }
        state.started += 1;
        state.in_turn = false;
        state.process = Some(Process::new(machine, self.plant, attempt));
        self.note("start", machine as u64, 0);
        self.restore_groups(machine);
        for peer in 0..self.machines.len() {
            self.unnoticed.remove(&(machine, peer));
            let link = self.link(machine, peer);
            self.with_process(machine, |process, clock| process.on_link(clock, peer, link));
        }
        self.schedule_step(machine, 0..50, Step::Tick);
    }

    fn crash(&mut self, machine: usize) {
        self.machines[machine].process = None;
        self.machines[machine].paused = false;
        self.machines[machine].deferred.clear();
        self.subscriptions.retain(|_, subscription| subscription.machine != machine);
        for peer in 0..self.machines.len() {
            self.break_link(machine, peer);
        }
    }

    fn resume(&mut self, machine: usize) {
        self.machines[machine].paused = false;
        let deferred = std::mem::take(&mut self.machines[machine].deferred);
        self.note("resume", machine as u64, deferred.len() as u64);
        // Sockets are read and timers fire in any order; each socket in its own.
        for event in deferred {
            self.schedule(0..5, event);
        }
    }

    fn with_process(&mut self, machine: usize, input: impl FnOnce(&mut Process, u64)) {
        let clock = self.machines[machine].clock(self.now);
        let Some(process) = &mut self.machines[machine].process else { return };
        input(process, clock);
        for action in std::mem::take(&mut process.actions) {
            self.carry_out(machine, action);
        }
    }

    fn step(&mut self, machine: usize, step: Step) {
        match step {
            Step::Tick => self.tick(machine),
            Step::Link(peer) => self.notice_link(machine, peer),
            Step::DirectoryRead { token, index } => {
                self.with_process(machine, |process, clock| process.on_directory_read(clock, token, index));
            }
            Step::GroupRead(group, token, index) => {
                self.learn_group(machine, group, index);
                self.with_process(machine, |process, clock| process.on_group_read(clock, token));
            }
            Step::LearnGroup(group) if self.now < self.machines[machine].lags_until => {
                self.schedule_step(machine, 50..100, Step::LearnGroup(group));
            }
            Step::LearnGroup(group) => {
                let committed = self.group_logs[usize::from(group.0)].len() as u64;
                self.learn_group(machine, group, committed);
            }
            Step::GroupDeposed(group, term) => {
                self.with_process(machine, |process, clock| process.on_group_deposed(clock, group, term));
            }
            Step::Learn(index) if self.now < self.machines[machine].lags_until => {
                self.schedule_step(machine, 50..100, Step::Learn(index));
            }
            Step::Learn(index) => self.learn(machine, index),
            Step::Arrive(publish) => self.arrive(machine, publish),
            Step::BeginTurn => {
                self.with_process(machine, |process, clock| process.begin_turn(clock));
                self.schedule_step(machine, 0..10, Step::Match);
            }
            Step::Match => {
                self.with_process(machine, |process, _| process.match_publishes());
                self.machines[machine].in_turn = false;
                self.schedule_step(machine, 0..3, Step::EndTurn);
            }
            Step::EndTurn => self.with_process(machine, |process, clock| process.end_turn(clock)),
        }
        self.check_that_no_lease_outlives(machine);
    }

    fn tick(&mut self, machine: usize) {
        let now = self.now;
        let is_replica = machine < self.voters;
        let due = self.fenced_at.iter().filter(|&(_, &(_, at))| at <= now && is_replica);
        let fenced: Vec<_> = due.map(|(&(group, below), &(node, _))| (group, node, below)).collect();
        let machines = self.machines.len();
        self.with_process(machine, |process, clock| {
            process.tick(clock, &fenced);
            process.heartbeat(machines);
        });
        self.schedule_step(machine, 50..51, Step::Tick);
    }

    fn learn(&mut self, machine: usize, index: u64) {
        if self.now < self.machines[machine].lags_until {
            return;
        }
        let Some(applied) = self.machines[machine].process.as_ref().map(Process::applied) else { return };
        if applied + 1 < index && self.random.percent(20) {
            self.note("restored", machine as u64, index);
            let directory = self.consensus.directory.clone();
            self.with_process(machine, |process, clock| process.restore(clock, directory));
            return;
        }
        for index in applied + 1..=index {
            let command = self.consensus.entry(index);
            self.with_process(machine, |process, clock| process.apply(clock, index, command));
        }
    }

    // Groups

    /// What a group wants after its first entries.
    fn group_interest(&self, group: GroupId, index: u64) -> BTreeSet<Arc<str>> {
        let mut filters = BTreeSet::new();
        for (_, change) in &self.group_logs[usize::from(group.0)][..index as usize] {
            let filter = group_filter(change.topic, change.subscription);
            if change.wanted {
                filters.insert(filter);
            } else {
                filters.remove(&filter);
            }
        }
        filters
    }

    /// A process begins with a checkpoint, which may be old.
    fn restore_groups(&mut self, machine: usize) {
        if machine >= self.voters {
            return;
        }
        for group in (0..GROUPS).map(GroupId) {
            let committed = self.group_logs[usize::from(group.0)].len() as u64;
            let index = self.random.in_range(committed / 2..committed + 1);
            let filters = self.group_interest(group, index).into_iter().collect();
            self.with_process(machine, |process, _| process.restore_group(group, index, filters));
            self.schedule_step(machine, 0..50, Step::LearnGroup(group));
        }
    }

    fn learn_group(&mut self, machine: usize, group: GroupId, index: u64) {
        let process = self.machines[machine].process.as_ref();
        let Some(applied) = process.map(|process| process.group_applied(group)) else { return };
        for index in applied..index {
            let (term, change) = self.group_logs[usize::from(group.0)][index as usize];
            self.with_process(machine, |process, clock| {
                process.on_group_term(clock, group, term);
                process.apply_group(clock, group, change);
            });
        }
    }

    fn change_group(&mut self, group: GroupId, change: GroupChange) {
        let replicated = Event::GroupReplicated(group, self.groups[usize::from(group.0)], change);
        self.schedule_late(1..20, 3, 20..1_000, replicated);
    }

    /// What is not committed by who proposed it is proposed again by whoever leads, as its session would.
    fn on_group_replicated(&mut self, group: GroupId, leadership: Leadership, change: GroupChange) {
        if self.groups[usize::from(group.0)] != leadership || !self.leads_with_quorum(leadership) {
            self.schedule(50..100, Event::GroupReplicated(group, self.groups[usize::from(group.0)], change));
            return;
        }
        self.group_logs[usize::from(group.0)].push((leadership.term, change));
        for machine in 0..self.voters {
            let process = self.machines[machine].started;
            self.schedule_late(0..20, 10, 20..1_000, Event::Of(machine, process, Step::LearnGroup(group)));
        }
    }

    fn subscribe_in_group(&mut self, topic: u64) {
        if self.group_subscriptions.len() >= SUBSCRIPTIONS_MAX {
            return;
        }
        let id = self.next_id();
        let group = GroupId(self.random.below(usize::from(GROUPS)) as u16);
        self.group_subscriptions.insert(id, GroupSubscription { group, topic, acknowledged_at: None });
        self.note("subscribe in group", id, group.0.into());
        self.change_group(group, GroupChange { topic, subscription: id, wanted: true });
    }

    fn unsubscribe_in_group(&mut self) {
        let choice = self.random.below(SUBSCRIPTIONS_MAX);
        let Some((&id, subscription)) = self.group_subscriptions.iter().nth(choice) else { return };
        let (group, topic) = (subscription.group, subscription.topic);
        // One that is not acknowledged has been given up by its leader, at the latest by now.
        if self.group_logs[usize::from(group.0)].iter().any(|(_, change)| change.subscription == id) {
            self.group_subscriptions.remove(&id);
            self.note("unsubscribe in group", id, group.0.into());
            self.change_group(group, GroupChange { topic, subscription: id, wanted: false });
        }
    }

    fn carry_out(&mut self, machine: usize, action: Action) {
        match action {
            Action::Send(to, message) => self.send(machine, to, message),
            Action::StartDirectoryRead { term, token } => {
                let index = self.consensus.committed();
                let process = self.machines[machine].started;
                let quorum = Event::DirectoryReadQuorum { machine, process, term, token, index };
                self.schedule_late(0..10, 3, 10..500, quorum);
            }
            Action::StartGroupRead { group, token } => {
                let leadership = self.groups[usize::from(group.0)];
                if (leadership.machine, leadership.process) == (machine, self.machines[machine].started) {
                    let index = self.group_logs[usize::from(group.0)].len() as u64;
                    let quorum = Event::GroupReadQuorum { group, leadership, token, index };
                    self.schedule_late(0..10, 3, 10..500, quorum);
                }
            }
            Action::ProposeFence { group, node, below } => {
                let leadership = self.groups[usize::from(group.0)];
                let leads = (leadership.machine, leadership.process) == (machine, self.machines[machine].started);
                if leads && self.leads_with_quorum(leadership) && !self.fenced_at.contains_key(&(group, below)) {
                    let at = self.now + self.random.in_range(10..500) * MS;
                    self.fenced_at.insert((group, below), (node, at));
                }
            }
            Action::Propose { term, command } => {
                let process = self.machines[machine].started;
                if self.consensus.term == term && self.consensus.leader == (machine, process) {
                    if matches!(command, Command::Join(_)) && self.random.percent(20) {
                        self.schedule(100..5_000, Event::LateProposal(command.clone()));
                    }
                    self.propose(command);
                }
            }
            Action::Registered(incarnation) => self.note("registered", machine as u64, incarnation.0),
            Action::Closed => {
                self.note("closed", machine as u64, 0);
                self.subscriptions.retain(|_, subscription| subscription.machine != machine);
            }
            Action::Subscribed(subscription) => self.on_subscribed(subscription),
            Action::Delivered { publish, subscription } => {
                self.note("delivered", publish, subscription);
                self.delivered.insert((publish, subscription));
            }
            Action::Acknowledged { publish, incarnation } => self.on_acknowledged(machine, publish, incarnation),
            Action::Applied { origin, target, number } => self.on_applied(machine, origin, target, number),
        }
    }

    // Network

    fn link(&mut self, a: usize, b: usize) -> u64 {
        *self.links.entry((a.min(b), a.max(b))).or_insert(1)
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut_until.get(&(from, to)).is_some_and(|&until| self.now < until)
    }

    fn break_link(&mut self, a: usize, b: usize) {
        *self.links.entry((a.min(b), a.max(b))).or_insert(1) += 1;
        self.streams.remove(&(a, b));
        self.streams.remove(&(b, a));
        for (machine, peer) in [(a, b), (b, a)] {
            if self.unnoticed.insert((machine, peer)) {
                self.schedule_step(machine, 1..300, Step::Link(peer));
            }
        }
    }

    fn notice_link(&mut self, machine: usize, peer: usize) {
        self.unnoticed.remove(&(machine, peer));
        let link = self.link(machine, peer);
        self.with_process(machine, |process, clock| {
            if process.link(peer) != link {
                process.on_link(clock, peer, link);
            }
        });
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let link = self.link(from, to);
        if self.machines[from].process.as_ref().is_none_or(|process| process.link(to) != link) {
            return; // Into a socket that is closed already.
        }
        if self.is_cut(from, to) || self.machines[to].process.is_none() {
            self.break_link(from, to);
            return;
        }
        self.streams.entry((from, to)).or_default().push_back((link, message));
        self.schedule_late(0..5, 3, 5..600, Event::Deliver(from, to));
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let Some((link, message)) = self.streams.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return };
        if link != self.link(from, to) {
            return;
        }
        if self.is_cut(from, to) {
            self.break_link(from, to);
            return;
        }
        self.notice_link(to, from);
        if let Message::Heartbeat { term, commit } = message {
            let mut follows = false;
            self.with_process(to, |process, clock| follows = process.on_heartbeat(clock, term, from));
            if follows {
                self.learn(to, commit);
            }
        } else {
            self.with_process(to, |process, clock| process.on_message(clock, from, message));
        }
    }

    // Consensus

    fn propose(&mut self, command: Command) {
        let proposal = self.consensus.propose(command);
        let replicated = Event::Replicated(self.consensus.term, proposal);
        self.schedule_late(1..20, 3, 20..3_000, replicated);
    }

    fn on_replicated(&mut self, term: u64, proposal: u64) {
        if self.consensus.term != term || !self.consensus.is_pending(proposal) {
            return;
        }
        if !self.leader_has_quorum() {
            self.schedule(20..100, Event::Replicated(term, proposal));
            return;
        }
        let effects = self.consensus.on_replicated(proposal);
        self.on_committed(effects);
        let commit = self.consensus.committed();
        let (leader, process) = self.consensus.leader;
        self.schedule(0..5, Event::Of(leader, process, Step::Learn(commit)));
    }

    fn on_committed(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Joined { node, incarnation, .. } => {
                    self.note("joined", node.get() - 1, incarnation.0);
                    // Someone hears of it late, more often than chance would have it.
                    if self.now < FAULTS_UNTIL && self.random.percent(30) {
                        self.lag();
                    }
                }
                Effect::Refused { node, .. } => self.note("join refused", node.get() - 1, 0),
                Effect::Lost { node, incarnation } => self.note("lost", node.get() - 1, incarnation.0),
                Effect::Died { node, incarnation } => {
                    self.note("died", node.get() - 1, incarnation.0);
                    self.check_that_no_lease_outlives(node.get() as usize - 1);
                }
                Effect::Formed
                | Effect::Admitted { .. }
                | Effect::Leaves { .. }
                | Effect::Removed { .. }
                | Effect::Placed { .. }
                | Effect::Drained { .. }
                | Effect::Preferred { .. }
                | Effect::Bans
                | Effect::FeatureLevel { .. } => {}
            }
        }
    }

    fn is_up(&self, machine: usize) -> bool {
        self.machines[machine].process.is_some() && !self.machines[machine].paused
    }

    fn reaches_quorum(&self, machine: usize) -> bool {
        let reached = (0..self.voters)
            .filter(|&peer| self.is_up(peer) && !self.is_cut(machine, peer) && !self.is_cut(peer, machine));
        self.is_up(machine) && reached.count() > self.voters / 2
    }

    fn leader_has_quorum(&self) -> bool {
        let (machine, process) = self.consensus.leader;
        self.machines[machine].started == process && self.reaches_quorum(machine)
    }

    /// Also of one who does not lead: its question goes to the leader and back.
    fn confirms_directory_read(&self, machine: usize, term: u64) -> bool {
        let (leader, process) = self.consensus.leader;
        let asks_leader = !self.is_cut(machine, leader) && !self.is_cut(leader, machine);
        let leads = self.machines[leader].started == process;
        self.consensus.term == term && leads && asks_leader && self.leader_has_quorum()
    }

    fn leads_with_quorum(&self, leadership: Leadership) -> bool {
        let Leadership { machine, process, .. } = leadership;
        self.machines[machine].started == process && self.reaches_quorum(machine)
    }

    /// Groups change hands at times without a reason.
    fn watch_groups(&mut self) {
        for group in 0..GROUPS {
            let leadership = self.groups[usize::from(group)];
            let wanders = self.now < FAULTS_UNTIL && self.random.percent(2);
            if (leadership.term > 0 && self.leads_with_quorum(leadership) && !wanders) || self.random.percent(70) {
                continue;
            }
            let machine = self.random.below(self.voters);
            if self.reaches_quorum(machine) {
                self.elect_in_group(GroupId(group), machine);
            }
        }
    }

    /// The leader before hears of it later.
    fn elect_in_group(&mut self, group: GroupId, machine: usize) {
        let before = self.groups[usize::from(group.0)];
        let leadership = Leadership { term: before.term + 1, machine, process: self.machines[machine].started };
        self.groups[usize::from(group.0)] = leadership;
        self.note("group elected", group.0.into(), machine as u64);
        self.with_process(machine, |process, clock| process.on_group_elected(clock, group, leadership.term));
        let deposed = Event::Of(before.machine, before.process, Step::GroupDeposed(group, before.term));
        self.schedule(0..1_500, deposed);
    }

    fn watch_leader(&mut self) {
        self.watch_groups();
        if self.leader_has_quorum() {
            self.leader_seen = self.now;
        } else if self.now - self.leader_seen > self.random.in_range(300..900) * MS {
            self.elect_anyone();
        }
        self.schedule(100..101, Event::Elections);
    }

    fn elect_anyone(&mut self) {
        let first = self.random.below(self.voters);
        let mut candidates = (0..self.voters).map(|offset| (first + offset) % self.voters);
        if let Some(machine) = candidates.find(|&machine| self.reaches_quorum(machine)) {
            self.elect(machine);
        }
    }

    /// The one before hears of it when it hears from this one.
    fn elect(&mut self, machine: usize) {
        let process = self.machines[machine].started;
        let effects = self.consensus.elect((machine, process), &mut self.random);
        let term = self.consensus.term;
        self.note("elected", machine as u64, term);
        self.leader_seen = self.now;
        self.on_committed(effects);
        self.with_process(machine, |process, clock| process.on_elected(clock, term));
        let commit = self.consensus.committed();
        self.schedule_step(machine, 1..50, Step::Learn(commit));
    }

    // Faults

    fn fault(&mut self) {
        if self.now > FAULTS_UNTIL {
            self.heal();
            return;
        }
        self.schedule(300..2_000, Event::Fault);
        let machine = self.random.below(self.machines.len());
        let peer = self.random.below(self.machines.len());
        match self.random.below(10) {
            0 | 1 => self.pause(machine),
            2 => self.crash_for_a_while(machine),
            3 if machine != peer => self.cut("cut one way", &[(machine, peer)]),
            4 if machine != peer => self.cut("cut", &[(machine, peer), (peer, machine)]),
            5 => self.halve(),
            6 if machine != peer => {
                self.note("link broken", machine as u64, peer as u64);
                self.break_link(machine, peer);
            }
            7 => {
                self.note("election forced", 0, 0);
                self.elect_anyone();
            }
            8 | 9 => self.lag(),
            _ => {}
        }
    }

    fn pause(&mut self, machine: usize) {
        if self.is_up(machine) {
            self.note("paused", machine as u64, 0);
            self.machines[machine].paused = true;
            self.schedule(200..5_000, Event::Resume(machine));
        }
    }

    fn crash_for_a_while(&mut self, machine: usize) {
        if self.machines[machine].process.is_some() {
            self.note("crashed", machine as u64, 0);
            self.crash(machine);
            self.schedule(10..4_000, Event::Start(machine));
        }
    }

    fn cut(&mut self, what: &'static str, ways: &[(usize, usize)]) {
        let until = self.now + self.random.in_range(200..6_000) * MS;
        for &(from, to) in ways {
            self.note(what, from as u64, to as u64);
            self.cut_until.insert((from, to), until);
        }
    }

    fn lag(&mut self) {
        let machine = self.random.below(self.machines.len());
        self.note("directory lags", machine as u64, 0);
        self.machines[machine].lags_until = self.now + self.random.in_range(200..3_000) * MS;
    }

    fn halve(&mut self) {
        let side: Vec<bool> = self.machines.iter().map(|_| self.random.percent(50)).collect();
        let pairs = (0..side.len()).flat_map(|a| (0..side.len()).map(move |b| (a, b)));
        let ways: Vec<_> = pairs.filter(|&(a, b)| side[a] != side[b]).collect();
        self.cut("halved", &ways);
    }

    fn heal(&mut self) {
        self.note("healed", 0, 0);
        self.cut_until.clear();
        for machine in 0..self.machines.len() {
            if self.machines[machine].paused {
                self.resume(machine);
            }
            self.start(machine);
        }
    }

    // Clients

    fn work(&mut self) {
        if self.now > WORK_UNTIL {
            return;
        }
        self.schedule(2..25, Event::Work);
        let topic = self.random.below(TOPICS) as u64;
        match self.random.in_range(0..100) {
            0..10 => self.subscribe(topic),
            10..18 => self.unsubscribe(),
            18..24 => self.subscribe_in_group(topic),
            24..30 => self.unsubscribe_in_group(),
            _ => self.publish(topic),
        }
    }

    fn a_machine_for_clients(&mut self) -> Option<usize> {
        let machine = self.random.below(self.machines.len());
        let process = self.machines[machine].process.as_ref();
        process.is_some_and(Process::takes_clients).then_some(machine)
    }

    fn subscribe(&mut self, topic: u64) {
        let Some(machine) = self.a_machine_for_clients() else { return };
        let state = &self.machines[machine];
        let Some(incarnation) = state.process.as_ref().and_then(Process::incarnation) else { return };
        if state.paused || self.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            return;
        }
        let process = state.started;
        let id = self.next_id();
        let subscription = Subscription { machine, process, incarnation, topic, acknowledged_at: None };
        self.subscriptions.insert(id, subscription);
        self.note("subscribe", id, machine as u64);
        self.with_process(machine, |process, clock| process.subscribe(clock, topic, id));
    }

    fn unsubscribe(&mut self) {
        let choice = self.random.below(SUBSCRIPTIONS_MAX);
        let Some((&id, subscription)) = self.subscriptions.iter().nth(choice) else { return };
        let (machine, topic) = (subscription.machine, subscription.topic);
        if self.is_up(machine) && subscription.acknowledged_at.is_some() {
            self.subscriptions.remove(&id);
            self.note("unsubscribe", id, machine as u64);
            self.with_process(machine, |process, clock| process.unsubscribe(clock, topic, id));
        }
    }

    fn publish(&mut self, topic: u64) {
        let Some(machine) = self.a_machine_for_clients() else { return };
        let id = self.next_id();
        self.publishes.insert(id, Publish { topic, sent_at: self.now });
        self.note("publish", id, machine as u64);
        self.schedule_step(machine, 0..3, Step::Arrive(id));
    }

    fn arrive(&mut self, machine: usize, publish: u64) {
        let topic = self.publishes[&publish].topic;
        let begins = !std::mem::replace(&mut self.machines[machine].in_turn, true);
        self.with_process(machine, |process, _| {
            if process.takes_clients() {
                process.on_publish(publish, topic);
            }
        });
        if begins {
            self.schedule_step(machine, 0..3, Step::BeginTurn);
        }
    }

    fn on_subscribed(&mut self, id: u64) {
        let now = self.now;
        let (what, topic) = if let Some(subscription) = self.subscriptions.get_mut(&id) {
            subscription.acknowledged_at = Some(now);
            ("subscribed", subscription.topic)
        } else if let Some(subscription) = self.group_subscriptions.get_mut(&id) {
            subscription.acknowledged_at.get_or_insert(now);
            ("subscribed in group", subscription.topic)
        } else {
            return;
        };
        self.note(what, id, topic);
        for _ in 0..4 {
            self.schedule(0..5, Event::Publish(topic));
        }
    }

    fn next_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    // Promises

    /// P1 of transient sessions, and what it stands on.
    fn on_acknowledged(&mut self, machine: usize, publish: u64, incarnation: Incarnation) {
        self.note("acknowledged", publish, machine as u64);
        let directory = &self.consensus.directory;
        if directory.fences().get(&node(machine)).is_some_and(|&fence| incarnation < fence) {
            let lost = !directory.dead_not_lost().contains_key(&incarnation);
            let state = if lost { "lost" } else { "dead" };
            self.violated(format!(
                "takeover: machine {machine} acknowledged {publish} as {incarnation}, which is {state}"
            ));
        }
        let Publish { topic, sent_at } = self.publishes[&publish];
        let missed = self.subscriptions.iter().find(|&(&id, subscription)| {
            let alive = self.machines[subscription.machine].started == subscription.process
                && self.consensus.directory.is_living(node(subscription.machine), subscription.incarnation);
            let owed = subscription.topic == topic && subscription.acknowledged_at.is_some_and(|at| at < sent_at);
            alive && owed && !self.delivered.contains(&(publish, id))
        });
        if let Some((&id, subscription)) = missed {
            let at = subscription.machine;
            self.violated(format!("P1: {publish}, acknowledged at machine {machine}, missed {id} at machine {at}"));
        }
        self.check_groups(machine, publish);
    }

    /// P1 of persistent sessions.
    fn check_groups(&mut self, machine: usize, publish: u64) {
        let Publish { topic, sent_at } = self.publishes[&publish];
        let missed = self.group_subscriptions.iter().find(|&(&id, subscription)| {
            let owed = subscription.topic == topic && subscription.acknowledged_at.is_some_and(|at| at < sent_at);
            owed && !self.delivered.contains(&(publish, id))
        });
        if let Some((&id, subscription)) = missed {
            let group = subscription.group;
            self.violated(format!("P1: {publish}, acknowledged at machine {machine}, missed {id} of {group:?}"));
        }
    }

    fn on_applied(&mut self, machine: usize, origin: Incarnation, target: Incarnation, number: u64) {
        self.note("applied", origin.0, number);
        let last = self.applied.insert((origin, target), number).unwrap_or(0);
        if number != last + 1 {
            self.violated(format!("lane: {number} applied after {last}, of {origin} at {target}"));
        }
        let directory = &self.consensus.directory;
        let origin_fenced = directory.fences().values().any(|&fence| fence.0 == origin.0 + 1)
            || directory.members().values().all(|member| member.living != Some(origin));
        let origin_lost = origin_fenced && !directory.dead_not_lost().contains_key(&origin);
        if origin_lost && directory.is_living(node(machine), target) {
            self.violated(format!("fence: {number} of {origin}, which is lost, applied at {target}, which lives"));
        }
    }

    /// Nor an incarnation that is ended by another of the same node, so never do two of a node serve.
    fn check_that_no_lease_outlives(&mut self, machine: usize) {
        let state = &self.machines[machine];
        let Some(process) = &state.process else { return };
        let Some(incarnation) = process.incarnation().filter(|_| process.holds_lease(state.clock(self.now))) else {
            return;
        };
        if !self.consensus.directory.is_living(node(machine), incarnation) {
            self.violated(format!("lease: {incarnation} of machine {machine} is dead and holds a lease"));
        }
    }

    fn check_that_interest_is_known(&mut self, machine: usize) {
        for group in (0..GROUPS).map(GroupId) {
            let wanted = self.group_interest(group, self.group_logs[usize::from(group.0)].len() as u64);
            let process = self.machines[machine].process.as_ref().expect("started");
            if !process.group_interest(group).into_iter().eq(wanted) {
                self.violated(format!("liveness: machine {machine} does not know what {group:?} wants"));
            }
        }
    }

    /// The faults are long over: everyone serves, and nothing waits.
    fn check_that_all_is_well(&mut self) {
        if let Some((incarnation, _)) = self.consensus.directory.dead_not_lost().first_key_value() {
            self.violated(format!("liveness: {incarnation} is dead and was never lost"));
        }
        for machine in 0..self.machines.len() {
            let process = self.machines[machine].process.as_ref().expect("started");
            let (standing, unfinished) = (process.standing(), process.unfinished());
            if standing != Some(Standing::Serving) || unfinished != 0 {
                self.violated(format!("liveness: machine {machine} is {standing:?}, {unfinished} wait"));
            }
            self.check_that_interest_is_known(machine);
        }
    }
}
