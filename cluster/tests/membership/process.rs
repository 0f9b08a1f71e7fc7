//! One process: the cores, wired as a broker would wire them. Sessions, sockets and Raft are the world's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _};
use kentongan_cluster::GroupId;
use kentongan_cluster::directory::command::{Command, Departed, Join, MemberRecord};
use kentongan_cluster::directory::{Directory, Effect};
use kentongan_cluster::fence::{Fences, Witness};
use kentongan_cluster::identity::{Incarnation, NodeId};
use kentongan_cluster::interest::{Barrier, Feed, LinkId, Source, SourceId, Table, TableOutput, Update, Version};
use kentongan_cluster::lane::{Batch, Incoming, LaneId, Outgoing, Verdict};
use kentongan_cluster::lease::{Granter, GranterOutput, Holder, HolderOutput, LeaseCell, ReadToken, Standing};

use crate::Plant;

/// Small, so that sources are cut into several pieces and deltas are sometimes no longer there.
const UPDATE_BYTES_MAX: usize = 60;
const RECENT_BYTES_MAX: usize = 400;

const LANE: LaneId = LaneId(0);

#[derive(Debug)]
pub enum Message {
    Heartbeat { term: u64, commit: u64 },
    Register(Join),
    Renew { incarnation: Incarnation, sequence: u64, fenced: Vec<Incarnation> },
    Granted { incarnation: Incarnation, sequence: u64 },
    Refused { incarnation: Incarnation },
    Ask { source: Incarnation, have: Option<Version>, receiver: Incarnation },
    Update(Update),
    Confirm { source: Incarnation, version: Version, receiver: Incarnation },
    Batch { origin: Incarnation, target: Incarnation, batch: Batch },
    Answer { origin: Incarnation, target: Incarnation, number: u64 },
    Gap { origin: Incarnation, target: Incarnation, round: u32, last: u64 },
}

/// What the world does for a process, or writes down.
#[derive(Debug)]
pub enum Action {
    Send(usize, Message),
    StartRead {
        term: u64,
        token: ReadToken,
    },
    Propose {
        term: u64,
        command: Command,
    },
    Registered(Incarnation),
    /// All clients are closed.
    Closed,
    Subscribed(u64),
    Delivered {
        publish: u64,
        subscription: u64,
    },
    Acknowledged {
        publish: u64,
        incarnation: Incarnation,
    },
    Applied {
        origin: Incarnation,
        target: Incarnation,
        number: u64,
    },
}

/// What a leader of the directory has beside the others.
struct Leading {
    term: u64,
    granter: Granter,
    fences: Fences,
    /// Rounds that were confirmed, and the index to apply first.
    reads: Vec<(ReadToken, u64)>,
}

#[derive(Default)]
struct Publish {
    /// Targets that have not answered.
    waits_for: BTreeSet<Incarnation>,
    /// Planted: the lease was looked at before the socket was read.
    checked: Option<bool>,
}

/// What ends with an incarnation.
struct Life {
    incarnation: Incarnation,
    holder: Holder,
    source: Source,
    barrier: Barrier,
    table: Table,
    feeds: BTreeMap<usize, (Incarnation, Feed)>,
    outgoing: BTreeMap<Incarnation, (NodeId, Outgoing)>,
    incoming: Incoming,
    /// By topic.
    subscriptions: BTreeMap<u64, BTreeSet<u64>>,
    /// Held by everyone; SUBACK waits for a lease only.
    passed: Vec<u64>,
    publishes: BTreeMap<u64, Publish>,
    /// By lane and number.
    items: BTreeMap<(Incarnation, u64), u64>,
    /// Settled; PUBACK waits for a lease only.
    withheld: BTreeSet<u64>,
}

pub struct Process {
    me: usize,
    plant: Plant,
    attempt: u64,
    directory: Directory,
    cell: Arc<LeaseCell>,
    /// Term and machine.
    leader: (u64, usize),
    leading: Option<Leading>,
    register_at_ns: u64,
    links: BTreeMap<usize, u64>,
    life: Option<Life>,
    /// Publishes in the socket, and their topics.
    socket: Vec<(u64, u64)>,
    checked: Option<bool>,
    pub actions: Vec<Action>,
}

pub fn node(machine: usize) -> NodeId {
    NodeId::new(machine as u64 + 1).expect("not zero")
}

fn machine(node: NodeId) -> usize {
    node.get() as usize - 1
}

fn link_id(peer: usize, link: u64) -> LinkId {
    LinkId(link * 8 + peer as u64)
}

fn filter(topic: u64) -> Arc<str> {
    Arc::from(format!("topic/{topic}"))
}

impl Process {
    pub fn new(me: usize, plant: Plant, attempt: u64) -> Self {
        Self {
            me,
            plant,
            attempt,
            directory: Directory::new(),
            cell: Arc::new(LeaseCell::new()),
            leader: (0, me),
            leading: None,
            register_at_ns: 0,
            links: BTreeMap::new(),
            life: None,
            socket: Vec::new(),
            checked: None,
            actions: Vec::new(),
        }
    }

    pub fn applied(&self) -> u64 {
        self.directory.applied()
    }

    pub fn standing(&self) -> Option<Standing> {
        self.life.as_ref().map(|life| life.holder.standing())
    }

    pub fn incarnation(&self) -> Option<Incarnation> {
        self.life.as_ref().map(|life| life.incarnation)
    }

    pub fn holds_lease(&self, now_ns: u64) -> bool {
        self.cell.is_valid(now_ns)
    }

    pub fn link(&self, peer: usize) -> u64 {
        self.links.get(&peer).copied().unwrap_or(0)
    }

    /// Publishes and subscriptions that are not acknowledged.
    pub fn unfinished(&self) -> usize {
        self.life.as_ref().map_or(0, |life| life.publishes.len() + life.barrier.waiting() + life.passed.len())
    }

    pub fn takes_clients(&self) -> bool {
        matches!(self.standing(), Some(Standing::Serving | Standing::Lapsed))
    }

    // The directory

    pub fn on_elected(&mut self, now_ns: u64, term: u64) {
        self.leader = (term, self.me);
        let granter = Granter::new(now_ns, &self.directory);
        self.leading = Some(Leading { term, granter, fences: Fences::new(), reads: Vec::new() });
    }

    pub fn apply(&mut self, now_ns: u64, index: u64, command: Command) {
        for effect in self.directory.apply(index, command) {
            self.on_effect(now_ns, effect);
        }
        self.finish_reads(now_ns);
        self.pump();
    }

    fn on_effect(&mut self, now_ns: u64, effect: Effect) {
        match effect {
            Effect::Joined { node: joined, incarnation, attempt } => {
                if joined == node(self.me) && attempt == self.attempt && self.life.is_none() {
                    self.begin(incarnation);
                } else if joined != node(self.me) {
                    self.on_joined(joined, incarnation);
                }
            }
            Effect::Died { node, incarnation } => {
                if self.incarnation() == Some(incarnation) {
                    self.end(incarnation);
                } else if let Some(life) = &mut self.life {
                    life.incoming.on_dead(node, Incarnation(incarnation.0 + 1));
                }
            }
            Effect::Lost { node, incarnation } => self.on_lost(now_ns, node, incarnation),
            _ => {}
        }
    }

    /// This process's `Join` was applied.
    fn begin(&mut self, incarnation: Incarnation) {
        let mut life = Life {
            incarnation,
            holder: Holder::new(incarnation, Arc::clone(&self.cell)),
            source: Source::new(SourceId::Node(node(self.me), incarnation)).with_recent_bytes_max(RECENT_BYTES_MAX),
            barrier: Barrier::of_node(10_000),
            table: Table::new(),
            feeds: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            incoming: Incoming::new(self.directory.fences()),
            subscriptions: BTreeMap::new(),
            passed: Vec::new(),
            publishes: BTreeMap::new(),
            items: BTreeMap::new(),
            withheld: BTreeSet::new(),
        };
        for (_, other) in self.directory.not_lost().filter(|&(_, other)| other != incarnation) {
            life.barrier.on_joined(other);
        }
        self.life = Some(life);
        self.actions.push(Action::Registered(incarnation));
        let living: Vec<_> = self.directory.living().filter(|&(_, other)| other != incarnation).collect();
        for (node, other) in living {
            self.follow(node, other);
        }
    }

    /// This incarnation is dead: close everything, then register again.
    fn end(&mut self, incarnation: Incarnation) {
        let Some(mut life) = self.life.take() else { return };
        life.holder.on_dead(incarnation, &mut Vec::new());
        self.attempt += 1;
        self.socket.clear();
        self.actions.push(Action::Closed);
    }

    fn on_joined(&mut self, node: NodeId, incarnation: Incarnation) {
        if let Some(life) = &mut self.life {
            life.barrier.on_joined(incarnation);
            self.follow(node, incarnation);
        }
    }

    fn on_lost(&mut self, now_ns: u64, node: NodeId, incarnation: Incarnation) {
        let Some(life) = &mut self.life else { return };
        let mut released = Vec::new();
        life.barrier.on_lost(incarnation, &mut released);
        life.passed.extend(released);
        life.table.drop_source(SourceId::Node(node, incarnation), &mut Vec::new());
        let settled = life.outgoing.remove(&incarnation).and_then(|(_, lane)| lane.on_lost());
        for number in settled.into_iter().flatten() {
            self.settle(incarnation, number);
        }
        self.acknowledge(now_ns);
    }

    fn finish_reads(&mut self, now_ns: u64) {
        let Some(leading) = &mut self.leading else { return };
        let mut outputs = Vec::new();
        for (token, _) in leading.reads.extract_if(.., |(_, index)| *index <= self.directory.applied()) {
            leading.granter.on_read(now_ns, token, &self.directory, &mut outputs);
        }
        self.carry_out(now_ns, outputs);
    }

    pub fn on_read(&mut self, now_ns: u64, term: u64, token: ReadToken, index: u64) {
        if let Some(leading) = self.leading.as_mut().filter(|leading| leading.term == term) {
            leading.reads.push((token, index));
            self.finish_reads(now_ns);
        }
    }

    fn carry_out(&mut self, now_ns: u64, outputs: Vec<GranterOutput>) {
        let Some(leading) = &mut self.leading else { return };
        let term = leading.term;
        let mut more = Vec::new();
        let mut acted_on = Vec::new();
        for output in outputs {
            match output {
                GranterOutput::StartRead(token) if self.plant == Plant::GrantWithoutRound => {
                    leading.granter.on_read(now_ns, token, &self.directory, &mut more);
                }
                GranterOutput::StartRead(token) => self.actions.push(Action::StartRead { term, token }),
                GranterOutput::Grant { node, incarnation, sequence } => {
                    self.actions.push(Action::Send(machine(node), Message::Granted { incarnation, sequence }));
                }
                GranterOutput::Refuse { node, incarnation } => {
                    self.actions.push(Action::Send(machine(node), Message::Refused { incarnation }));
                }
                GranterOutput::ProposeDead { node, incarnation } => {
                    let departed = Departed { node: node.get(), incarnation: incarnation.0 };
                    self.actions.push(Action::Propose { term, command: Command::Dead(departed) });
                    acted_on.push((node, incarnation));
                }
            }
        }
        if !more.is_empty() {
            self.carry_out(now_ns, more);
        }
        if self.plant == Plant::DeadUncommitted {
            for (node, incarnation) in acted_on {
                self.act_on_death(now_ns, node, incarnation);
            }
        }
    }

    /// Planted: as if the proposal were committed, and everyone had fenced it.
    fn act_on_death(&mut self, now_ns: u64, node: NodeId, incarnation: Incarnation) {
        if let Some(life) = &mut self.life {
            life.incoming.on_dead(node, Incarnation(incarnation.0 + 1));
            life.feeds.retain(|_, (receiver, _)| *receiver != incarnation);
            self.on_lost(now_ns, node, incarnation);
        }
    }

    // Time

    /// `groups_fenced`: what the leaders of the groups say.
    pub fn tick(&mut self, now_ns: u64, groups_fenced: &[(GroupId, Incarnation)]) {
        self.lead(now_ns, groups_fenced);
        self.register(now_ns);
        let Some(life) = &mut self.life else { return };
        let mut outputs = Vec::new();
        life.holder.tick(now_ns, &mut outputs);
        self.hold(outputs);
        self.ask_for_what_is_missing();
        self.complete_interest(now_ns);
        self.acknowledge(now_ns);
        self.pump();
    }

    fn lead(&mut self, now_ns: u64, groups_fenced: &[(GroupId, Incarnation)]) {
        let Some(leading) = &mut self.leading else { return };
        let term = leading.term;
        for &(group, dead) in groups_fenced {
            leading.fences.on_fenced(&self.directory, Witness::Group(group), &[dead]);
        }
        let lost = if self.plant == Plant::SkipFence {
            self.directory.dead_not_lost().iter().map(|(&incarnation, dead)| (dead.node, incarnation)).collect()
        } else {
            leading.fences.lost(&self.directory)
        };
        for (node, incarnation) in lost {
            let departed = Departed { node: node.get(), incarnation: incarnation.0 };
            self.actions.push(Action::Propose { term, command: Command::Lost(departed) });
        }
        let mut outputs = Vec::new();
        leading.granter.tick(now_ns, &self.directory, &mut outputs);
        self.carry_out(now_ns, outputs);
    }

    pub fn heartbeat(&mut self, machines: usize) {
        let Some(leading) = &self.leading else { return };
        let (term, commit) = (leading.term, self.directory.applied());
        for peer in (0..machines).filter(|&peer| peer != self.me) {
            self.actions.push(Action::Send(peer, Message::Heartbeat { term, commit }));
        }
    }

    fn register(&mut self, now_ns: u64) {
        if self.life.is_some() || self.leader.0 == 0 || now_ns < self.register_at_ns {
            return;
        }
        self.register_at_ns = now_ns + 200_000_000;
        let me = node(self.me);
        let member = MemberRecord { node: me.get(), name: me.to_string(), ..MemberRecord::default() };
        let known = self.directory.members().get(&me).map_or(0, |member| member.newest.0);
        let newest = if self.plant == Plant::StaleJoin { u64::MAX } else { known };
        let join = Join { member: Some(member), attempt: self.attempt, newest };
        self.actions.push(Action::Send(self.leader.1, Message::Register(join)));
    }

    fn hold(&mut self, outputs: Vec<HolderOutput>) {
        for output in outputs {
            match output {
                HolderOutput::Renew { incarnation, sequence } => {
                    let fenced = self.directory.dead_not_lost().keys().copied().collect();
                    self.actions.push(Action::Send(self.leader.1, Message::Renew { incarnation, sequence, fenced }));
                }
                HolderOutput::Changed(Standing::LapsedLong) => self.close_clients(),
                HolderOutput::Changed(_) => {}
            }
        }
    }

    fn close_clients(&mut self) {
        self.socket.clear();
        let Some(life) = &mut self.life else { return };
        for topic in std::mem::take(&mut life.subscriptions).into_keys() {
            life.source.set(&filter(topic), 0);
        }
        life.passed.clear();
        life.publishes.clear();
        life.withheld.clear();
        self.actions.push(Action::Closed);
    }

    // Messages

    /// Everything but heartbeats, whose entries the world has.
    pub fn on_message(&mut self, now_ns: u64, from: usize, message: Message) {
        match message {
            Message::Heartbeat { .. } => {}
            Message::Register(join) => {
                if let Some(leading) = &self.leading {
                    self.actions.push(Action::Propose { term: leading.term, command: Command::Join(join) });
                }
            }
            Message::Renew { incarnation, sequence, fenced } => {
                self.on_renewal(now_ns, from, incarnation, sequence, &fenced);
            }
            Message::Granted { incarnation, sequence } => self.with_holder(incarnation, |holder, outputs| {
                holder.on_granted(now_ns, sequence, outputs);
            }),
            Message::Refused { incarnation } => {
                if self.incarnation() == Some(incarnation) {
                    self.end(incarnation);
                }
            }
            Message::Ask { source, have, receiver } => self.on_ask(from, source, have, receiver),
            Message::Update(update) => self.on_update(now_ns, from, update),
            Message::Confirm { source, version, receiver } => self.on_confirmed(source, version, receiver),
            Message::Batch { origin, target, batch } => self.on_batch(from, origin, target, batch),
            Message::Answer { origin, target, number } => self.on_answer(origin, target, number),
            Message::Gap { origin, target, round, last } => self.on_gap(origin, target, round, last),
        }
        self.acknowledge(now_ns);
        self.pump();
    }

    /// Returns whether the term is not an old one.
    pub fn on_heartbeat(&mut self, term: u64, from: usize) -> bool {
        if term < self.leader.0 {
            return false;
        }
        self.leader = (term, from);
        self.leading = None;
        true
    }

    fn on_renewal(
        &mut self,
        now_ns: u64,
        from: usize,
        incarnation: Incarnation,
        sequence: u64,
        fenced: &[Incarnation],
    ) {
        let Some(leading) = &mut self.leading else { return };
        leading.fences.on_fenced(&self.directory, Witness::Node(incarnation), fenced);
        let mut outputs = Vec::new();
        leading.granter.on_renewal(now_ns, node(from), incarnation, sequence, &mut outputs);
        self.carry_out(now_ns, outputs);
    }

    fn with_holder(&mut self, incarnation: Incarnation, input: impl FnOnce(&mut Holder, &mut Vec<HolderOutput>)) {
        let Some(life) = self.life.as_mut().filter(|life| life.incarnation == incarnation) else { return };
        let mut outputs = Vec::new();
        input(&mut life.holder, &mut outputs);
        self.hold(outputs);
    }

    /// The link to a machine is another: what was on its way is gone.
    pub fn on_link(&mut self, peer: usize, link: u64) {
        let closed = link_id(peer, self.link(peer));
        self.links.insert(peer, link);
        let Some(life) = &mut self.life else { return };
        if self.plant == Plant::ForgetLane {
            life.incoming = Incoming::new(self.directory.fences());
        }
        for (_, lane) in life.outgoing.values_mut().filter(|(target, _)| machine(*target) == peer) {
            lane.on_reset();
        }
        life.feeds.remove(&peer);
        life.table.on_link_closed(closed);
        let is_there = |source: &SourceId| matches!(source, SourceId::Node(node, _) if machine(*node) == peer);
        let sources: Vec<_> = life.table.sources().filter(is_there).collect();
        for source in sources {
            self.reconnect(source);
        }
        self.pump();
    }

    fn reconnect(&mut self, source: SourceId) {
        if let Some(life) = self.life.as_mut().filter(|_| self.plant == Plant::DropInterest) {
            life.table.drop_source(source, &mut Vec::new());
            life.table.follow(source);
        }
        self.ask(source);
    }

    // Interest

    fn follow(&mut self, node: NodeId, incarnation: Incarnation) {
        let Some(life) = &mut self.life else { return };
        let source = SourceId::Node(node, incarnation);
        life.table.follow(source);
        self.ask(source);
    }

    fn ask(&mut self, source: SourceId) {
        let (Some(life), SourceId::Node(node, incarnation)) = (&self.life, source) else { return };
        let ask = Message::Ask { source: incarnation, have: life.table.have(source), receiver: life.incarnation };
        self.actions.push(Action::Send(machine(node), ask));
    }

    fn ask_for_what_is_missing(&mut self) {
        let Some(life) = &self.life else { return };
        let missing: Vec<_> = life.table.sources().filter(|&source| life.table.have(source).is_none()).collect();
        for source in missing {
            self.ask(source);
        }
    }

    fn complete_interest(&mut self, now_ns: u64) {
        let Some(life) = &mut self.life else { return };
        let join = if self.plant == Plant::LateJoiner { 0 } else { life.incarnation.0 };
        let me = life.incarnation;
        let others = self.directory.living().filter(|&(_, other)| other != me);
        let missing = life.table.missing(join, others.map(|(node, other)| SourceId::Node(node, other)));
        if life.holder.standing() == Standing::Joining && missing.is_empty() {
            self.with_holder(me, |holder, outputs| holder.on_interest_complete(now_ns, outputs));
        }
    }

    fn on_ask(&mut self, from: usize, source: Incarnation, have: Option<Version>, receiver: Incarnation) {
        if let Some(life) = self.life.as_mut().filter(|life| life.incarnation == source) {
            life.feeds.insert(from, (receiver, life.source.feed(have)));
        }
    }

    fn on_update(&mut self, now_ns: u64, from: usize, update: Update) {
        let link = link_id(from, self.link(from));
        let Some(life) = &mut self.life else { return };
        let mut outputs = Vec::new();
        life.table.on_update(link, update, &mut outputs);
        for output in outputs {
            match output {
                TableOutput::Change { .. } => {} // The table itself is what publishes are matched against.
                TableOutput::Ask { source, .. } => self.ask(source),
                TableOutput::Confirm { source: SourceId::Node(node, source), version } => {
                    if let Some(receiver) = self.incarnation() {
                        let confirm = Message::Confirm { source, version, receiver };
                        self.actions.push(Action::Send(machine(node), confirm));
                    }
                }
                TableOutput::Confirm { .. } => {}
            }
        }
        self.complete_interest(now_ns);
    }

    fn on_confirmed(&mut self, source: Incarnation, version: Version, receiver: Incarnation) {
        if let Some(life) = self.life.as_mut().filter(|life| life.incarnation == source) {
            life.barrier.on_confirmed(receiver, version, &mut life.passed);
        }
    }

    pub fn subscribe(&mut self, now_ns: u64, topic: u64, subscription: u64) {
        let Some(life) = &mut self.life else { return };
        let subscribers = life.subscriptions.entry(topic).or_default();
        subscribers.insert(subscription);
        let version = life.source.set(&filter(topic), subscribers.len() as u32);
        if life.barrier.wait(version, subscription).expect("room for all") {
            life.passed.push(subscription);
        }
        self.acknowledge(now_ns);
        self.pump();
    }

    pub fn unsubscribe(&mut self, topic: u64, subscription: u64) {
        let Some(life) = &mut self.life else { return };
        let Some(subscribers) = life.subscriptions.get_mut(&topic) else { return };
        subscribers.remove(&subscription);
        life.source.set(&filter(topic), subscribers.len() as u32);
        self.pump();
    }

    /// Sends what receivers and targets have not been sent.
    fn pump(&mut self) {
        let Some(life) = &mut self.life else { return };
        let as_of = self.directory.applied();
        for (&peer, (_, feed)) in &mut life.feeds {
            while let Some(update) = life.source.next(feed, as_of, UPDATE_BYTES_MAX) {
                self.actions.push(Action::Send(peer, Message::Update(update)));
            }
        }
        for (&target, (node, lane)) in &mut life.outgoing {
            while let Some(batch) = lane.next_batch() {
                let message = Message::Batch { origin: life.incarnation, target, batch };
                self.actions.push(Action::Send(machine(*node), message));
            }
        }
    }

    // Publishes: a turn of the loop in three steps, between which the process may be stopped

    pub fn on_publish(&mut self, publish: u64, topic: u64) {
        self.socket.push((publish, topic));
    }

    /// Planted: looks at the lease before it reads the socket.
    pub fn begin_turn(&mut self, now_ns: u64) {
        self.checked = (self.plant == Plant::LeaseBeforeMatch).then(|| self.cell.is_valid(now_ns));
    }

    pub fn match_publishes(&mut self) {
        for (publish, topic) in std::mem::take(&mut self.socket) {
            self.match_publish(publish, topic);
        }
    }

    pub fn end_turn(&mut self, now_ns: u64) {
        self.acknowledge(now_ns);
        self.pump();
    }

    fn match_publish(&mut self, publish: u64, topic: u64) {
        let Some(life) = &mut self.life else { return };
        let mut state = Publish { checked: self.checked, ..Publish::default() };
        for &subscription in life.subscriptions.get(&topic).into_iter().flatten() {
            self.actions.push(Action::Delivered { publish, subscription });
        }
        let name = filter(topic);
        for source in life.table.sources() {
            let SourceId::Node(node, target) = source else { continue };
            if life.table.value(source, &name) == 0 {
                continue;
            }
            let (_, lane) = life.outgoing.entry(target).or_insert_with(|| (node, Outgoing::new(1 << 20)));
            let number = lane.push(|buffer| {
                buffer.put_u64(publish);
                buffer.put_u64(topic);
            });
            life.items.insert((target, number), publish);
            state.waits_for.insert(target);
        }
        if state.waits_for.is_empty() {
            life.withheld.insert(publish);
        }
        life.publishes.insert(publish, state);
    }

    fn on_batch(&mut self, from: usize, origin: Incarnation, target: Incarnation, batch: Batch) {
        let Some(life) = self.life.as_mut().filter(|life| life.incarnation == target) else { return };
        let mut verdict = life.incoming.on_batch(node(from), origin, LANE, &batch);
        if self.plant == Plant::ForgetLane && matches!(verdict, Verdict::Gap { .. }) {
            verdict = Verdict::Apply { above: batch.previous };
        }
        let answer = match verdict {
            Verdict::Apply { above } => {
                let mut items = batch.payload;
                for number in batch.previous + 1..=batch.last {
                    let (publish, topic) = (items.get_u64(), items.get_u64());
                    if number <= above {
                        continue;
                    }
                    self.actions.push(Action::Applied { origin, target, number });
                    for &subscription in life.subscriptions.get(&topic).into_iter().flatten() {
                        self.actions.push(Action::Delivered { publish, subscription });
                    }
                }
                Message::Answer { origin, target, number: batch.last }
            }
            Verdict::Duplicate { last } => Message::Answer { origin, target, number: last },
            Verdict::Gap { last } => Message::Gap { origin, target, round: batch.round, last },
            Verdict::Fenced => return,
            Verdict::Malformed => panic!("{batch:?}"),
        };
        self.actions.push(Action::Send(from, answer));
    }

    fn on_answer(&mut self, origin: Incarnation, target: Incarnation, number: u64) {
        let Some(life) = self.life.as_mut().filter(|life| life.incarnation == origin) else { return };
        let settled = life.outgoing.get_mut(&target).and_then(|(_, lane)| lane.on_answer(number));
        for number in settled.into_iter().flatten() {
            self.settle(target, number);
        }
    }

    fn on_gap(&mut self, origin: Incarnation, target: Incarnation, round: u32, last: u64) {
        let Some(life) = self.life.as_mut().filter(|life| life.incarnation == origin) else { return };
        if let Some((_, lane)) = life.outgoing.get_mut(&target) {
            lane.on_gap(round, last).expect("an incarnation forgets nothing");
        }
    }

    fn settle(&mut self, target: Incarnation, number: u64) {
        let Some(life) = &mut self.life else { return };
        let Some(publish) = life.items.remove(&(target, number)) else { return };
        let Some(state) = life.publishes.get_mut(&publish) else { return };
        state.waits_for.remove(&target);
        if state.waits_for.is_empty() {
            life.withheld.insert(publish);
        }
    }

    /// Everything here is matched, so this is the time to look at the clock, and then at the lease.
    fn acknowledge(&mut self, now_ns: u64) {
        let Some(life) = &mut self.life else { return };
        let valid = self.cell.is_valid(now_ns);
        for publish in std::mem::take(&mut life.withheld) {
            let checked = life.publishes.get(&publish).and_then(|state| state.checked);
            if checked.unwrap_or(valid) || valid {
                life.publishes.remove(&publish);
                self.actions.push(Action::Acknowledged { publish, incarnation: life.incarnation });
            } else {
                life.withheld.insert(publish);
            }
        }
        if valid {
            for subscription in life.passed.drain(..) {
                self.actions.push(Action::Subscribed(subscription));
            }
        }
    }
}
