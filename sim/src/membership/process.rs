//! One process: [`Membership`], and around it what the broker does with it. Sockets and Raft are the world's.
//!
//! Bugs are planted here, where it is driven: what it is told, and what is made of what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes};
use kentongan_cluster::GroupId;
use kentongan_cluster::directory::Directory;
use kentongan_cluster::directory::command::{self, Command, Departed, MemberRecord};
use kentongan_cluster::identity::{Incarnation, NodeId};
use kentongan_cluster::interest::{LinkId, SourceId, Version};
use kentongan_cluster::lane::{Batch, Incoming, LaneId, Outgoing, Verdict};
use kentongan_cluster::lease::{LeaseCell, Standing};
use kentongan_cluster::membership::wire::{self, Body};
use kentongan_cluster::membership::{Limits, Membership, Output};

use super::Plant;

/// Small, so that sources are cut into several pieces, which do not all leave at once, and deltas are sometimes no longer
/// there.
const LIMITS: Limits =
    Limits { update_bytes_max: 60, feed_bytes_per_tick: 600, recent_bytes_max: 400, waiters_max: 10_000 };

const LANE: LaneId = LaneId(0);

#[derive(Debug)]
pub enum Message {
    Heartbeat { term: u64, commit: u64 },
    Membership(Bytes),
    Batch { origin: Incarnation, target: Incarnation, batch: Batch },
    Answer { origin: Incarnation, target: Incarnation, number: u64 },
    Gap { origin: Incarnation, target: Incarnation, round: u32, last: u64 },
}

/// What the world does for a process, or writes down.
#[derive(Debug)]
pub enum Action {
    Send(usize, Message),
    StartDirectoryRead {
        term: u64,
        token: u64,
    },
    StartGroupRead {
        group: GroupId,
        token: u64,
    },
    Propose {
        term: u64,
        command: Command,
    },
    ProposeFence {
        group: GroupId,
        node: NodeId,
        below: Incarnation,
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

/// An entry of a group.
#[derive(Debug, Clone, Copy)]
pub struct GroupChange {
    pub topic: u64,
    pub subscription: u64,
    pub wanted: bool,
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
    outgoing: BTreeMap<Incarnation, (NodeId, Outgoing)>,
    incoming: Incoming,
    /// By topic.
    subscriptions: BTreeMap<u64, BTreeSet<u64>>,
    /// Waiting at the barrier.
    waiting: BTreeSet<u64>,
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
    membership: Membership,
    cell: Arc<LeaseCell>,
    /// Of the directory: term and machine.
    leader: (u64, usize),
    /// Rounds that were confirmed, and the index to apply first.
    reads: Vec<(u64, u64)>,
    /// Terms in which groups are led here.
    led: BTreeMap<GroupId, u64>,
    /// Entries of groups, by replicas here.
    group_applied: BTreeMap<GroupId, u64>,
    links: BTreeMap<usize, u64>,
    /// What the others want.
    index: BTreeMap<SourceId, BTreeSet<Arc<str>>>,
    life: Option<Life>,
    /// Publishes in the socket, and their topics.
    socket: Vec<(u64, u64)>,
    checked: Option<bool>,
    pub actions: Vec<Action>,
}

pub fn node(machine: usize) -> NodeId {
    NodeId::new(machine as u64 + 1).expect("not zero")
}

pub fn member(machine: usize) -> MemberRecord {
    let node = node(machine);
    MemberRecord { node: node.get(), name: node.to_string(), ..MemberRecord::default() }
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

/// Of a persistent session.
pub fn group_filter(topic: u64, subscription: u64) -> Arc<str> {
    Arc::from(format!("group/{topic}/{subscription}"))
}

impl Process {
    pub fn new(me: usize, plant: Plant, attempt: u64) -> Self {
        let cell = Arc::new(LeaseCell::new());
        Self {
            me,
            plant,
            membership: Membership::new(node(me), member(me), attempt, Arc::clone(&cell), LIMITS),
            cell,
            leader: (0, me),
            reads: Vec::new(),
            led: BTreeMap::new(),
            group_applied: BTreeMap::new(),
            links: BTreeMap::new(),
            index: BTreeMap::new(),
            life: None,
            socket: Vec::new(),
            checked: None,
            actions: Vec::new(),
        }
    }

    fn directory(&self) -> &Directory {
        self.membership.directory()
    }

    pub fn applied(&self) -> u64 {
        self.directory().applied()
    }

    pub fn standing(&self) -> Option<Standing> {
        self.membership.standing()
    }

    pub fn incarnation(&self) -> Option<Incarnation> {
        self.membership.incarnation()
    }

    pub fn holds_lease(&self, now_ns: u64) -> bool {
        self.cell.is_valid(now_ns)
    }

    pub fn link(&self, peer: usize) -> u64 {
        self.links.get(&peer).copied().unwrap_or(0)
    }

    /// Publishes and subscriptions that are not acknowledged.
    pub fn unfinished(&self) -> usize {
        self.life.as_ref().map_or(0, |life| life.publishes.len() + life.waiting.len() + life.passed.len())
    }

    pub fn takes_clients(&self) -> bool {
        matches!(self.standing(), Some(Standing::Serving | Standing::Lapsed))
    }

    fn leads(&self) -> bool {
        self.leader.1 == self.me && self.leader.0 > 0
    }

    // The directory

    pub fn on_elected(&mut self, now_ns: u64, term: u64) {
        self.leader = (term, self.me);
        self.membership.on_directory_role(now_ns, Some(node(self.me)), term);
        self.carry_out(now_ns);
    }

    pub fn apply(&mut self, now_ns: u64, index: u64, command: Command) {
        self.membership.on_directory(now_ns, index, command::encode(command)).expect("a command");
        self.finish_reads(now_ns);
        self.carry_out(now_ns);
    }

    /// A snapshot instead of the entries.
    pub fn restore(&mut self, now_ns: u64, directory: Directory) {
        self.membership.on_directory_restored(now_ns, directory);
        self.finish_reads(now_ns);
        self.carry_out(now_ns);
    }

    pub fn on_directory_read(&mut self, now_ns: u64, token: u64, index: u64) {
        self.reads.push((token, index));
        self.finish_reads(now_ns);
        self.carry_out(now_ns);
    }

    fn finish_reads(&mut self, now_ns: u64) {
        let applied = self.applied();
        for (token, _) in self.reads.extract_if(.., |(_, index)| *index <= applied) {
            self.membership.on_read(now_ns, token);
        }
    }

    /// Returns whether the term is not an old one.
    pub fn on_heartbeat(&mut self, now_ns: u64, term: u64, from: usize) -> bool {
        if term < self.leader.0 {
            return false;
        }
        if self.leader != (term, from) {
            self.leader = (term, from);
            self.membership.on_directory_role(now_ns, Some(node(from)), term);
            self.carry_out(now_ns);
        }
        true
    }

    pub fn heartbeat(&mut self, machines: usize) {
        if !self.leads() {
            return;
        }
        let (term, commit) = (self.leader.0, self.applied());
        for peer in (0..machines).filter(|&peer| peer != self.me) {
            self.actions.push(Action::Send(peer, Message::Heartbeat { term, commit }));
        }
    }

    // Groups

    pub fn on_group_elected(&mut self, now_ns: u64, group: GroupId, term: u64) {
        self.led.insert(group, term);
        self.membership.on_group_role(now_ns, group, Some(term));
        self.carry_out(now_ns);
    }

    pub fn on_group_deposed(&mut self, now_ns: u64, group: GroupId, term: u64) {
        if self.led.get(&group) == Some(&term) {
            self.led.remove(&group);
            self.membership.on_group_role(now_ns, group, None);
            self.carry_out(now_ns);
        }
    }

    /// An entry of that term is here: whoever led in an earlier one has heard by then that it does no more, for entries come with their
    /// leader's term.
    pub fn on_group_term(&mut self, now_ns: u64, group: GroupId, term: u64) {
        if let Some(&led) = self.led.get(&group).filter(|&&led| led < term) {
            self.on_group_deposed(now_ns, group, led);
        }
    }

    pub fn group_applied(&self, group: GroupId) -> u64 {
        self.group_applied.get(&group).copied().unwrap_or(0)
    }

    pub fn restore_group(&mut self, group: GroupId, index: u64, filters: Vec<Arc<str>>) {
        self.group_applied.insert(group, index);
        self.membership.on_group_restored(group, Version(index), filters.into_iter().map(|filter| (filter, 1)));
    }

    /// The entry after the last.
    pub fn apply_group(&mut self, now_ns: u64, group: GroupId, change: GroupChange) {
        let index = self.group_applied(group) + 1;
        self.group_applied.insert(group, index);
        let GroupChange { topic, subscription, wanted } = change;
        let filter = group_filter(topic, subscription);
        let version = self.membership.set_group_interest(group, Version(index), &filter, u32::from(wanted));
        if wanted {
            let waits = self.membership.wait_group(group, version, subscription);
            if waits == Ok(true) || (waits == Ok(false) && self.plant == Plant::SkipBarrier) {
                self.actions.push(Action::Subscribed(subscription));
            }
        }
        self.carry_out(now_ns);
    }

    /// What a group wants, as far as it is known here.
    pub fn group_interest(&self, group: GroupId) -> Vec<Arc<str>> {
        self.index.get(&SourceId::Group(group)).into_iter().flatten().cloned().collect()
    }

    pub fn on_group_read(&mut self, now_ns: u64, token: u64) {
        self.membership.on_read(now_ns, token);
        self.carry_out(now_ns);
    }

    // What follows

    fn carry_out(&mut self, now_ns: u64) {
        self.membership.flush(now_ns);
        loop {
            let outputs = self.membership.take_outputs();
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                self.on_output(now_ns, output);
            }
        }
        self.acknowledge(now_ns);
        self.send_batches();
    }

    fn on_output(&mut self, now_ns: u64, output: Output) {
        match output {
            Output::Send { to, message } => {
                self.actions.push(Action::Send(machine(to), Message::Membership(message)));
            }
            Output::Propose { term, command } => self.on_propose(now_ns, term, command),
            Output::StartDirectoryRead { token } if self.plant == Plant::GrantWithoutRound && self.leads() => {
                self.membership.on_read(now_ns, token);
            }
            Output::StartDirectoryRead { token } => {
                self.actions.push(Action::StartDirectoryRead { term: self.leader.0, token });
            }
            Output::StartGroupRead { group, token } => self.actions.push(Action::StartGroupRead { group, token }),
            Output::ProposeFence { group, node, below } => {
                self.actions.push(Action::ProposeFence { group, node, below });
            }
            Output::Interest { source, filter, new, .. } => {
                let filters = self.index.entry(source).or_default();
                if new == 0 {
                    filters.remove(&filter);
                } else {
                    filters.insert(filter);
                }
            }
            Output::Released { group: None, waiter } => self.on_released(waiter),
            Output::Released { group: Some(_), waiter } => self.actions.push(Action::Subscribed(waiter)),
            Output::Died { node, below } => self.on_died(node, below),
            Output::Lost { incarnation, .. } => self.on_lost(incarnation),
            // Nothing is placed in this world, and everybody is linked with everybody.
            Output::Place { .. } | Output::Members | Output::Bans => {}
            Output::Removed => panic!("nobody is removed here"),
            Output::Joined { incarnation } => self.begin(incarnation),
            Output::JoinRefused { reason } => panic!("{reason}"),
            Output::Standing(Standing::LapsedLong) => self.close_clients(),
            Output::Standing(Standing::Dead) => self.end(now_ns),
            Output::Standing(_) | Output::FeatureLevel { .. } => {}
        }
    }

    fn on_propose(&mut self, now_ns: u64, term: u64, command: Bytes) {
        let mut command = command::decode(command).expect("own bytes").expect("a command");
        match &mut command {
            Command::Join(join) if self.plant == Plant::StaleJoin => join.newest = u64::MAX,
            Command::Dead(departed) if self.plant == Plant::DeadUncommitted => {
                self.act_on_death(now_ns, *departed);
            }
            _ => {}
        }
        self.actions.push(Action::Propose { term, command });
    }

    /// Planted: nobody waits for it any more, as if the proposal were committed, and everyone had fenced it.
    fn act_on_death(&mut self, now_ns: u64, departed: Departed) {
        let (Some(me), Some(dead)) = (self.incarnation(), NodeId::new(departed.node)) else { return };
        let source = Some(SourceId::Node(node(self.me), me).into());
        let confirm = wire::Confirm { source, version: u64::MAX, receiver: departed.incarnation };
        self.membership.on_message(now_ns, dead, wire::encode(Body::Confirm(confirm))).expect("well-formed");
        self.on_died(dead, Incarnation(departed.incarnation + 1));
        self.on_lost(Incarnation(departed.incarnation));
    }

    fn begin(&mut self, incarnation: Incarnation) {
        self.life = Some(Life {
            incarnation,
            outgoing: BTreeMap::new(),
            incoming: Incoming::new(self.directory().fences()),
            subscriptions: BTreeMap::new(),
            waiting: BTreeSet::new(),
            passed: Vec::new(),
            publishes: BTreeMap::new(),
            items: BTreeMap::new(),
            withheld: BTreeSet::new(),
        });
        self.actions.push(Action::Registered(incarnation));
    }

    fn end(&mut self, now_ns: u64) {
        self.life = None;
        self.socket.clear();
        self.actions.push(Action::Closed);
        self.membership.on_clients_closed(now_ns);
    }

    fn on_died(&mut self, dead: NodeId, below: Incarnation) {
        if let Some(life) = self.life.as_mut().filter(|_| dead != node(self.me)) {
            life.incoming.on_dead(dead, below);
        }
    }

    fn on_lost(&mut self, incarnation: Incarnation) {
        let Some(life) = &mut self.life else { return };
        let settled = life.outgoing.remove(&incarnation).and_then(|(_, lane)| lane.on_lost());
        for number in settled.into_iter().flatten() {
            self.settle(incarnation, number);
        }
    }

    fn on_released(&mut self, subscription: u64) {
        let Some(life) = &mut self.life else { return };
        if life.waiting.remove(&subscription) {
            life.passed.push(subscription);
        }
    }

    fn close_clients(&mut self) {
        self.socket.clear();
        let Some(life) = &mut self.life else { return };
        for topic in std::mem::take(&mut life.subscriptions).into_keys() {
            self.membership.set_node_interest(&filter(topic), 0);
        }
        life.passed.clear();
        life.publishes.clear();
        life.withheld.clear();
        self.actions.push(Action::Closed);
    }

    // Time

    /// `fenced`: what groups with a replica here have fenced.
    pub fn tick(&mut self, now_ns: u64, fenced: &[(GroupId, NodeId, Incarnation)]) {
        for &(group, node, below) in fenced {
            self.membership.on_group_fenced(group, node, below);
        }
        if self.plant == Plant::SkipFence && self.leads() {
            let dead = self.directory().dead_not_lost().iter();
            let lost: Vec<_> = dead.map(|(dead, of)| Departed { node: of.node.get(), incarnation: dead.0 }).collect();
            for departed in lost {
                self.actions.push(Action::Propose { term: self.leader.0, command: Command::Lost(departed) });
            }
        }
        self.membership.tick(now_ns);
        self.carry_out(now_ns);
    }

    // Messages

    /// Everything but heartbeats, whose entries the world has.
    pub fn on_message(&mut self, now_ns: u64, from: usize, message: Message) {
        match message {
            Message::Heartbeat { .. } => {}
            Message::Membership(mut message) => {
                if self.plant == Plant::LateJoiner {
                    message = as_of_anything(message);
                }
                self.membership.on_message(now_ns, node(from), message).expect("well-formed");
            }
            Message::Batch { origin, target, batch } => self.on_batch(from, origin, target, batch),
            Message::Answer { origin, target, number } => self.on_answer(origin, target, number),
            Message::Gap { origin, target, round, last } => self.on_gap(origin, target, round, last),
        }
        self.carry_out(now_ns);
    }

    /// The link to a machine is another: what was on its way is gone.
    pub fn on_link(&mut self, now_ns: u64, peer: usize, link: u64) {
        self.links.insert(peer, link);
        if let Some(life) = &mut self.life {
            if self.plant == Plant::ForgetLane {
                life.incoming = Incoming::new(self.membership.directory().fences());
            }
            for (_, lane) in life.outgoing.values_mut().filter(|(target, _)| machine(*target) == peer) {
                lane.on_reset();
            }
        }
        if self.plant == Plant::DropInterest {
            self.index.retain(|source, _| !matches!(source, SourceId::Node(node, _) if machine(*node) == peer));
        }
        self.membership.on_link(now_ns, node(peer), Some(link_id(peer, link)));
        self.carry_out(now_ns);
    }

    pub fn subscribe(&mut self, now_ns: u64, topic: u64, subscription: u64) {
        let Some(life) = &mut self.life else { return };
        let subscribers = life.subscriptions.entry(topic).or_default();
        subscribers.insert(subscription);
        let version = self.membership.set_node_interest(&filter(topic), subscribers.len() as u32);
        let version = version.expect("registered");
        if self.membership.wait_node(version, subscription).expect("room for all") {
            life.passed.push(subscription);
        } else {
            life.waiting.insert(subscription);
        }
        self.carry_out(now_ns);
    }

    pub fn unsubscribe(&mut self, now_ns: u64, topic: u64, subscription: u64) {
        let Some(life) = &mut self.life else { return };
        let Some(subscribers) = life.subscriptions.get_mut(&topic) else { return };
        subscribers.remove(&subscription);
        self.membership.set_node_interest(&filter(topic), subscribers.len() as u32);
        self.carry_out(now_ns);
    }

    fn send_batches(&mut self) {
        let Some(life) = &mut self.life else { return };
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
        self.carry_out(now_ns);
    }

    fn match_publish(&mut self, publish: u64, topic: u64) {
        let Some(life) = &mut self.life else { return };
        let mut state = Publish { checked: self.checked, ..Publish::default() };
        for &subscription in life.subscriptions.get(&topic).into_iter().flatten() {
            self.actions.push(Action::Delivered { publish, subscription });
        }
        let name = filter(topic);
        let prefix = format!("group/{topic}/");
        for filter in (self.index.iter()).filter(|(source, _)| matches!(source, SourceId::Group(_))).flat_map(|of| of.1)
        {
            if let Some(subscription) = filter.strip_prefix(&prefix) {
                let subscription = subscription.parse().expect("a number");
                self.actions.push(Action::Delivered { publish, subscription });
            }
        }
        for (&source, filters) in &self.index {
            if !filters.contains(&name) {
                continue;
            }
            let SourceId::Node(node, target) = source else { continue };
            let (_, lane) = life.outgoing.entry(target).or_insert_with(|| (node, Outgoing::new(1 << 20, 1 << 16)));
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

/// Planted: every update as if it had been taken after every `Join`.
fn as_of_anything(message: Bytes) -> Bytes {
    match wire::decode(message.clone()) {
        Ok(Some(Body::Update(mut update))) => {
            update.as_of = u64::MAX;
            wire::encode(Body::Update(update))
        }
        _ => message,
    }
}
