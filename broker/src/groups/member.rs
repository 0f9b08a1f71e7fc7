//! This node's part in the cluster, as the thread that applies has it: what [`Membership`] hears and what it wants done.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use crossbeam::channel::Sender;
use kentongan_cluster::directory::bans::{BanRefusal, Banned};
use kentongan_cluster::directory::command::{self as directory_command, Ban, Form, MemberRecord};
use kentongan_cluster::directory::{Directory, Placement, STATE_KEY};
use kentongan_cluster::interest::{LinkId, SourceId, Version};
use kentongan_cluster::lane::Incoming;
use kentongan_cluster::lease::Standing;
use kentongan_cluster::membership::{Membership, Output, WaitError, Wish, wire};
use kentongan_cluster::state::Spool;
use kentongan_cluster::transport::{ClusterId, PeerAddress};
use kentongan_cluster::{Configuration, GroupId, Incarnation, NodeId, Write};

use super::machine::{FENCE_SESSIONS_MAX, Machine};
use super::search;
use crate::clock::Clock;
use crate::later;
use crate::moving::Place;
use crate::peers::administration::BANS_A_PAGE;
use crate::peers::status::{self, ChosenStatus, MemberStatus, NodeStatus, RouteStatus};
use crate::plants::{self, Plant, is_planted};
use crate::replicated::command::{self, Command, Owner};
use crate::replicated::effect::Effect;
use crate::replicated::state::GroupState;
use crate::replicated::submitter::OutboxTarget;
use crate::replicated::{InterestChanges, Query};
use crate::router::cluster::ClusterView;
use crate::router::node_lanes::PeerProcess;
use crate::router::{Event, Shared};
use crate::subscription::{IndexedNode, NodeInterest, ShareSessions};

/// Whose subscriptions every node is to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asker {
    /// Those of the clients of an arbiter here.
    Arbiter(u16),
    /// Those of the persistent sessions of a group that is led here.
    Group(u16),
}

/// Who waits until every node has heard of a subscription, and of all that its asker had before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiter {
    asker: Asker,
    /// A ticket of the arbiter, or a number among the [`Answers`] of the group.
    up_to: u64,
}

/// How often an asker may wait at once.
const WAITS_OF_AN_ASKER_MAX: usize = 16;

/// What an asker waits for.
#[derive(Debug, Default)]
struct Waits {
    /// How often it waits.
    open: usize,
    /// What it is to wait for once one of them has passed.
    next: Option<u64>,
}

/// SUBACK or UNSUBACK of a persistent session.
#[derive(Debug)]
struct Answer {
    owner: Owner,
    client_id: Arc<str>,
    event: Event,
}

/// How many of the answers that wait are looked at whenever one comes: more than one, so that those who are gone never are the
/// most of them.
const LOOKED_AT_MAX: usize = 2;

/// What the leader of a group has to say, once every node has heard.
#[derive(Debug, Default)]
struct Answers {
    /// By their numbers, which are in the order of the log.
    waiting: BTreeMap<u64, Answer>,
    last: u64,
    looked_at: u64,
}

impl Answers {
    /// Returns the number of the answer. Of those before, a few are let go whose owners are `gone`: nothing else ends them while
    /// some node hears nothing, and clients that are not answered come again and again.
    fn keep(&mut self, answer: Answer, gone: impl Fn(&Answer) -> bool) -> u64 {
        for _ in 0..LOOKED_AT_MAX {
            let next = self.waiting.range(self.looked_at + 1..).next();
            let Some((&number, answer)) = next.or_else(|| self.waiting.first_key_value()) else {
                break;
            };
            self.looked_at = number;
            if gone(answer) {
                self.waiting.remove(&number);
            }
        }
        self.last += 1;
        self.waiting.insert(self.last, answer);
        self.last
    }

    fn take(&mut self, up_to: u64) -> BTreeMap<u64, Answer> {
        let later = self.waiting.split_off(&(up_to + 1));
        std::mem::replace(&mut self.waiting, later)
    }
}

/// What a group's persistent sessions want of a filter.
#[derive(Debug, Clone, Copy, Default)]
struct GroupInterest {
    sessions: u32,
    online: u32,
}

impl GroupInterest {
    fn to_value(self, is_share: bool) -> u32 {
        if is_share { ShareSessions { members: self.sessions, online: self.online }.to_value() } else { self.sessions }
    }
}

/// What the applying thread has where there are several nodes.
#[derive(Debug)]
pub(crate) struct Member {
    membership: Membership,
    /// Proposed by whoever leads a directory that is empty.
    form: Form,
    /// Whether the directory changed since its last checkpoint.
    directory_is_dirty: bool,
    node_interest: HashMap<Arc<str>, NodeInterest>,
    /// Of the groups that are kept here.
    group_interest: BTreeMap<u16, HashMap<Arc<str>, GroupInterest>>,
    waiters: BTreeMap<u64, Waiter>,
    next_waiter: u64,
    waits: BTreeMap<Asker, Waits>,
    /// Of the groups that are led here.
    answers: BTreeMap<u16, Answers>,
    /// Arbiters that still have clients of a registration that ended.
    closing: usize,
    /// Links may begin.
    listens: bool,
    /// Whom others named while this node was without a lease, see [`super::search`].
    named: Vec<MemberRecord>,
    /// The last process of each member that said that it would end.
    stopping: BTreeMap<NodeId, Incarnation>,
    /// What the members were called when they changed last: who is removed has no name any more.
    names: BTreeMap<NodeId, String>,
    /// Those of whom it is known here that they were removed.
    removed: BTreeSet<NodeId>,
    /// This process was registered: what the directory hears from then on is news.
    watches: bool,
    clock: Clock,
    /// Since when this machine's wall clock is wrong.
    wall_clock_wrong_since_ns: Option<u64>,
    /// It was said.
    wall_clock_told_wrong: bool,
}

/// By how much a wall clock may differ from the cluster's, and for how long, before somebody should know.
const WALL_CLOCK_WRONG_MS_MIN: u64 = 2000;
const WALL_CLOCK_WRONG_NS_MIN: u64 = 2_000_000_000;

/// How a death is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// Another process of the node lives.
    BegunAnew,
    /// It had said that it would end.
    Stopped,
    /// It was removed, which [`Member::newly_removed`] tells.
    Removed,
    /// Nobody expected it.
    Fell,
}

impl Member {
    pub(super) fn new(mut membership: Membership, form: Form, clock: Clock) -> Self {
        membership.set_wall_clock(clock.boottime_ns(), clock.wall_ms());
        Self {
            membership,
            form,
            directory_is_dirty: false,
            node_interest: HashMap::new(),
            group_interest: BTreeMap::new(),
            waiters: BTreeMap::new(),
            next_waiter: 0,
            waits: BTreeMap::new(),
            answers: BTreeMap::new(),
            closing: 0,
            listens: false,
            named: Vec::new(),
            stopping: BTreeMap::new(),
            names: BTreeMap::new(),
            removed: BTreeSet::new(),
            watches: false,
            clock,
            wall_clock_wrong_since_ns: None,
            wall_clock_told_wrong: false,
        }
    }

    /// Tells others what this machine's wall clock says, and goes by what most say.
    fn compare_wall_clocks(&mut self, now_ns: u64) {
        self.membership.set_wall_clock(now_ns, self.clock.wall_ms());
        let agreed = self.membership.agreed_wall_clock();
        self.clock.set_cluster_wall(agreed.map(|agreed| agreed.ahead_ms));
        let ahead_ms = agreed.map_or(0, |agreed| agreed.own_ahead_ms);
        if ahead_ms.unsigned_abs() < WALL_CLOCK_WRONG_MS_MIN {
            self.wall_clock_wrong_since_ns = None;
            if std::mem::take(&mut self.wall_clock_told_wrong) {
                tracing::info!("the clock of this machine agrees with those of most nodes again");
            }
            return;
        }
        let since_ns = *self.wall_clock_wrong_since_ns.get_or_insert(now_ns);
        if now_ns - since_ns >= WALL_CLOCK_WRONG_NS_MIN && !self.wall_clock_told_wrong {
            self.wall_clock_told_wrong = true;
            tracing::warn!(
                ahead_seconds = ahead_ms / 1000,
                "the clock of this machine differs from those of most nodes, by which what expires goes: synchronise all (NTP)"
            );
        }
    }

    pub(super) fn directory(&self) -> &Directory {
        self.membership.directory()
    }

    /// All members, as they said of themselves.
    pub(super) fn records(&self) -> impl Iterator<Item = MemberRecord> + '_ {
        self.directory().members().iter().map(|(&node, member)| member.record(node))
    }

    /// What a node is called, or its number if nobody knows any more.
    fn name_of(&self, node: NodeId) -> String {
        let known = self.directory().members().get(&node).map(|member| member.name.clone());
        let formed =
            || self.form.members.iter().find(|record| record.node == node.get()).map(|record| record.name.clone());
        known.or_else(formed).unwrap_or_else(|| node.to_string())
    }

    /// Which processes say that they are about to end is known only as long as they live.
    fn note_stops(&mut self) {
        let members = self.membership.directory().members();
        self.stopping.retain(|node, _| members.contains_key(node));
        self.stopping.extend(members.iter().filter_map(|(&node, member)| Some((node, member.stops?))));
    }

    /// What it means that the incarnations of a node below that one are dead, now that they are.
    fn death_of(&self, node: NodeId, below: Incarnation) -> Death {
        let living = self.directory().members().get(&node).and_then(|member| member.living);
        let has_said_so = self.stopping.get(&node).is_some_and(|stopped| stopped.0 + 1 == below.0);
        match living {
            Some(living) if living >= below => Death::BegunAnew,
            _ if self.directory().removed().contains(&node) => Death::Removed,
            _ if has_said_so => Death::Stopped,
            _ => Death::Fell,
        }
    }

    /// The members have changed. Returns those that were removed while this process was registered, with their names: whoever
    /// joins or begins anew reads of all that were ever removed.
    fn newly_removed(&mut self) -> Vec<(NodeId, String)> {
        let directory = self.membership.directory();
        let newly: Vec<NodeId> = directory.removed().difference(&self.removed).copied().collect();
        self.removed.extend(&newly);
        let named = |node: NodeId| (node, self.names.remove(&node).unwrap_or_else(|| node.to_string()));
        let told = newly.into_iter().filter(|_| self.watches).map(named).collect();
        self.names = directory.members().iter().map(|(&node, member)| (node, member.name.clone())).collect();
        told
    }

    /// Whether somebody may still wait for that incarnation of a node, so that its loss is still to come.
    pub(super) fn is_not_lost(&self, node: u64, incarnation: u64) -> bool {
        self.directory().not_lost().any(|(other, of)| other.get() == node && of.0 == incarnation)
    }

    /// The directory as it was stored.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn restore_directory(&mut self, now_ns: u64, pairs: &[(Vec<u8>, Vec<u8>)]) -> anyhow::Result<()> {
        if let Some((_, bytes)) = pairs.iter().find(|(key, _)| key == STATE_KEY) {
            let directory = Directory::restore(bytes)?;
            self.membership.on_directory_restored(now_ns, directory);
        }
        Ok(())
    }

    /// A group is as it was stored after the entry at `index`.
    pub(super) fn restored(&mut self, group: u16, index: u64, state: &GroupState) {
        let mut interest: HashMap<Arc<str>, GroupInterest> = HashMap::new();
        state.for_each_interest(|filter, sessions, online| {
            interest.insert(Arc::clone(filter), GroupInterest { sessions, online });
        });
        let value = |(filter, wanted): (&Arc<str>, &GroupInterest)| {
            (Arc::clone(filter), wanted.to_value(filter.starts_with("$share/")))
        };
        let entries: Vec<_> = interest.iter().map(value).collect();
        self.membership.on_group_restored(GroupId(group), Version(index), entries);
        self.group_interest.insert(group, interest);
        for (node, below) in state.fences_complete() {
            if let Some(node) = NodeId::new(node) {
                self.membership.on_group_fenced(GroupId(group), node, kentongan_cluster::Incarnation(below));
            }
        }
    }

    /// What of a group's effects every replica must know. `false`: it is none of that.
    pub(super) fn note(&mut self, group: u16, index: u64, effect: &Effect) -> bool {
        match effect {
            Effect::Interest { filter, wanted } | Effect::ShareInterest { share: filter, joined: wanted } => {
                self.change(group, index, filter, |interest| {
                    interest.sessions =
                        if *wanted { interest.sessions + 1 } else { interest.sessions.saturating_sub(1) };
                });
            }
            Effect::ShareOnline { share, online } => {
                self.change(group, index, share, |interest| interest.online = *online);
            }
            Effect::Fenced { node, below, more: false } => {
                if let Some(node) = NodeId::new(*node) {
                    self.membership.on_group_fenced(GroupId(group), node, kentongan_cluster::Incarnation(*below));
                }
            }
            // For the table of a node that is alone.
            Effect::Session { .. } | Effect::Unrouted { .. } => {}
            _ => return false,
        }
        true
    }

    fn change(&mut self, group: u16, index: u64, filter: &Arc<str>, change: impl FnOnce(&mut GroupInterest)) {
        let interests = self.group_interest.entry(group).or_default();
        let interest = interests.entry(Arc::clone(filter)).or_default();
        change(interest);
        let value = interest.to_value(filter.starts_with("$share/"));
        if interest.sessions == 0 {
            interests.remove(filter);
        }
        self.membership.set_group_interest(GroupId(group), Version(index), filter, value);
    }

    pub(super) fn directory_writes(&mut self) -> Option<Vec<Write>> {
        if !std::mem::take(&mut self.directory_is_dirty) {
            return Some(Vec::new());
        }
        let bytes = self.membership.directory().snapshot();
        Some(vec![(STATE_KEY.to_vec(), Some(bytes))])
    }

    /// Who waits until every node has heard of something.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn open_barriers(&self) -> usize {
        let next = self.waits.values().filter(|waits| waits.next.is_some()).count();
        self.waiters.len() + next + self.answers.values().map(|answers| answers.waiting.len()).sum::<usize>()
    }

    /// An asker is to be told when every node has heard of all that it has now. However much it asks for while some node does
    /// not answer, it waits a few times: each of them waits for no less than those before it. Returns what need not wait.
    fn wait(&mut self, asker: Asker, up_to: u64) -> Option<Waiter> {
        let waits = self.waits.entry(asker).or_default();
        waits.next = Some(up_to);
        if waits.open >= WAITS_OF_AN_ASKER_MAX {
            return None;
        }
        self.next_waiter += 1;
        let (number, waiter) = (self.next_waiter, Waiter { asker, up_to });
        let passed = match asker {
            Asker::Arbiter(_) => match self.membership.node_version() {
                Some(version) => self.membership.wait_node(version, number),
                None => Err(WaitError::NotRegistered),
            },
            Asker::Group(group) => {
                let group = GroupId(group);
                self.membership.wait_group(group, self.membership.group_version(group), number)
            }
        };
        match passed {
            Ok(true) => {
                waits.next = None;
                Some(waiter)
            }
            Ok(false) => {
                waits.next = None;
                waits.open += 1;
                self.waiters.insert(number, waiter);
                None
            }
            // What is asked next, or the next tick, tries again.
            Err(WaitError::Full(_) | WaitError::NotRegistered) => None,
            // The SUBSCRIBEs come again to the new leader, with the resync.
            Err(WaitError::NotLed) => {
                self.forget(asker);
                None
            }
        }
    }

    /// One that was waited for has passed. Returns who it was, and whoever need not wait any more because of that.
    fn on_released(&mut self, waiter: u64) -> Vec<Waiter> {
        let Some(waiter) = self.waiters.remove(&waiter) else {
            return Vec::new();
        };
        let next = self.waits.get_mut(&waiter.asker).and_then(|waits| {
            waits.open = waits.open.saturating_sub(1);
            waits.next
        });
        let next = next.and_then(|next| self.wait(waiter.asker, next));
        [waiter].into_iter().chain(next).collect()
    }

    /// Those who found no room, or no registration, when they wanted to wait.
    fn try_again(&mut self) -> Vec<Waiter> {
        let idle = self.waits.iter().filter(|(_, waits)| waits.open == 0);
        let next: Vec<_> = idle.filter_map(|(&asker, waits)| Some((asker, waits.next?))).collect();
        next.into_iter().filter_map(|(asker, up_to)| self.wait(asker, up_to)).collect()
    }

    /// Nothing that the asker waits for will be told.
    fn forget(&mut self, asker: Asker) {
        self.waiters.retain(|_, waiter| waiter.asker != asker);
        self.waits.remove(&asker);
        if let Asker::Group(group) = asker {
            self.answers.remove(&group);
        }
    }

    fn forget_arbiters(&mut self) {
        self.waiters.retain(|_, waiter| matches!(waiter.asker, Asker::Group(_)));
        self.waits.retain(|asker, _| matches!(asker, Asker::Group(_)));
    }
}

fn takes_clients_of_others(member: &kentongan_cluster::directory::Member) -> bool {
    member.living.is_some() && !member.is_drained()
}

fn peer_address(record: &MemberRecord) -> PeerAddress {
    let (name, address) = (record.name.clone(), record.peer_address.clone());
    PeerAddress { node: NodeId(record.node), name, address }
}

impl Machine {
    fn now_ns(&self) -> u64 {
        self.member.as_ref().map_or(0, |member| member.clock.boottime_ns())
    }

    pub(super) fn apply_directory(&mut self, index: u64, entry: &Bytes) {
        let now_ns = self.now_ns();
        let has_ended = self.ended.is_some();
        let Some(member) = self.member.as_mut().filter(|_| !has_ended) else {
            return;
        };
        member.directory_is_dirty = true;
        if let Err(error) = member.membership.on_directory(now_ns, index, entry.clone()) {
            tracing::error!(%error, "the directory's log holds something that cannot be applied");
            kentongan_cluster::ending::abort();
        }
    }

    pub(super) fn restore_directory(&mut self, spool: &Spool) {
        let now_ns = self.now_ns();
        let Some(member) = &mut self.member else {
            return;
        };
        let stored = spool.get(STATE_KEY).map_err(anyhow::Error::from);
        let pairs = stored.map(|value| Vec::from_iter(value.map(|value| (STATE_KEY.to_vec(), value))));
        if let Err(error) = pairs.and_then(|pairs| member.restore_directory(now_ns, &pairs)) {
            tracing::error!(%error, "the directory that another node sent cannot be used");
            kentongan_cluster::ending::abort();
        }
    }

    pub(super) fn on_directory_role(&mut self, leader: Option<NodeId>, term: u64) {
        let now_ns = self.now_ns();
        let Some(member) = &mut self.member else {
            return;
        };
        member.membership.on_directory_role(now_ns, leader, term);
        let leads = self.shared.get().and_then(|shared| shared.cluster.as_ref()).map(|cluster| NodeId(cluster.node));
        if leader.is_some() && leader == leads {
            self.form_if_needed(term);
        }
    }

    /// The first leader of a directory says what cluster it is of; every member has the same record.
    fn form_if_needed(&self, term: u64) {
        if let (Some(member), Some(shared)) = (&self.member, self.shared.get())
            && member.directory().cluster_id().is_none()
        {
            let form = directory_command::encode(directory_command::Command::Form(member.form.clone()));
            shared.submitter.pipeline().propose_in(GroupId::DIRECTORY, term, form);
        }
    }

    pub(super) fn on_group_role(&mut self, group: u16, term: Option<u64>) {
        let now_ns = self.now_ns();
        if let Some(member) = &mut self.member {
            member.membership.on_group_role(now_ns, GroupId(group), term);
            member.forget(Asker::Group(group));
        }
    }

    pub(super) fn on_control_link(&mut self, node: NodeId, link: Option<LinkId>) {
        let now_ns = self.now_ns();
        if is_planted(Plant::DropInterest) {
            self.drop_interest_of(node);
        }
        if let Some(member) = &mut self.member {
            member.membership.on_link(now_ns, node, link);
        }
    }

    pub(super) fn on_control(&mut self, node: NodeId, message: Bytes) {
        let now_ns = self.now_ns();
        let Some(member) = &mut self.member else {
            return;
        };
        if let Err(error) = member.membership.on_message(now_ns, node, message) {
            tracing::warn!(%node, %error, "a control message of a node is dropped");
        }
        if !member.clock.knows_cluster_wall() {
            // It may be registered, and have clients, before it looks again.
            member.compare_wall_clocks(now_ns);
        }
    }

    pub(super) fn on_round_complete(&mut self, token: u64) {
        let now_ns = self.now_ns();
        if let Some(member) = &mut self.member {
            member.membership.on_read(now_ns, token);
        }
    }

    /// An arbiter has no client of the registration that ended.
    pub(super) fn on_clients_closed(&mut self) {
        let now_ns = self.now_ns();
        if let Some(member) = &mut self.member {
            member.closing = member.closing.saturating_sub(1);
            if member.closing == 0 {
                member.membership.on_clients_closed(now_ns);
            }
        }
    }

    /// The clients of an arbiter here want something else.
    pub(super) fn change_interest(&mut self, changes: InterestChanges) {
        let Some(member) = &mut self.member else {
            return;
        };
        for (filter, kind, wanted) in changes.filters {
            let filter: Arc<str> = Arc::from(filter);
            let interest = member.node_interest.entry(Arc::clone(&filter)).or_default();
            interest.change(kind, wanted);
            let value = interest.to_value();
            if value == 0 {
                member.node_interest.remove(&filter);
            }
            member.membership.set_node_interest(&filter, value);
        }
        let barrier = changes.barrier.map(|(arbiter, ticket)| (Asker::Arbiter(arbiter), ticket));
        if let Some(waiter) = barrier.and_then(|(asker, ticket)| member.wait(asker, ticket)) {
            self.release(waiter);
        }
    }

    /// SUBACK of a persistent session leaves when every node has heard of the subscription, and UNSUBACK in its turn.
    pub(super) fn await_subscribed(&mut self, group: u16, owner: Owner, client_id: Arc<str>, event: Event) {
        let (Some(member), Some(state)) = (&mut self.member, self.groups.get(&group)) else {
            return;
        };
        let gone = |answer: &Answer| !state.is_owned_by(&answer.client_id, answer.owner);
        let number = member.answers.entry(group).or_default().keep(Answer { owner, client_id, event }, gone);
        if let Some(waiter) = member.wait(Asker::Group(group), number) {
            self.release(waiter);
        }
    }

    fn release(&mut self, Waiter { asker, up_to }: Waiter) {
        match asker {
            Asker::Arbiter(arbiter) => self.push(arbiter, Event::Barrier { ticket: up_to }),
            Asker::Group(group) => {
                let answers = self.member.as_mut().and_then(|member| member.answers.get_mut(&group));
                let passed = answers.map(|answers| answers.take(up_to)).unwrap_or_default();
                let shared = self.shared();
                for Answer { owner, event, .. } in passed.into_values() {
                    self.push_to(&shared, group, owner, event);
                }
            }
        }
    }

    /// The process is about to end.
    pub(super) fn on_stops(&mut self) {
        if let Some(member) = &mut self.member {
            member.membership.set_stops();
        }
    }

    /// Arbiters learn where clients may go, and other nodes how many are here.
    fn steer(&mut self) {
        let (Some(member), Some(shared)) = (&mut self.member, self.shared.get()) else {
            return;
        };
        let Some(cluster) = &shared.cluster else {
            return;
        };
        let members = member.membership.directory().members();
        let is_drained = members.iter().any(|(node, member)| node.get() == cluster.node && member.is_drained());
        let takes_clients =
            |&(node, member): &(&NodeId, &_)| node.get() != cluster.node && takes_clients_of_others(member);
        let place = |(node, member): (&NodeId, &kentongan_cluster::directory::Member)| Place {
            node: node.get(),
            address: member.is_advertised.then(|| member.client_address.clone()),
        };
        cluster.elsewhere.set(is_drained, members.iter().filter(takes_clients).map(place).collect());
        let leases = member.membership.leases().clone();
        *cluster.leases.lock().unwrap_or_else(PoisonError::into_inner) = leases;
        let loads = member.membership.loads();
        cluster.elsewhere.set_loads(loads.iter().map(|(node, &connections)| (node.get(), connections)).collect());
        let is_open = !cluster.elsewhere.is_drained() && !shared.submitter.is_full() && shared.memory_level() == 0;
        let connections = shared.connections.load(std::sync::atomic::Ordering::Relaxed) as u64;
        member.membership.set_connections(is_open.then_some(connections));
    }

    pub(super) fn tick_member(&mut self) {
        let now_ns = self.now_ns();
        self.steer();
        let Some(member) = &mut self.member else {
            return;
        };
        member.note_stops();
        member.compare_wall_clocks(now_ns);
        member.membership.tick(now_ns);
        for waiter in member.try_again() {
            self.release(waiter);
        }
    }

    /// Carries out what membership wants done, in its order.
    pub(super) fn carry_out_membership(&mut self) {
        let Some(shared) = self.shared.get().cloned() else {
            return;
        };
        let now_ns = self.now_ns();
        if let Some(member) = &mut self.member {
            member.membership.flush(now_ns);
        }
        loop {
            let outputs = self.member.as_mut().map(|member| member.membership.take_outputs()).unwrap_or_default();
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                if let Some(cluster) = &shared.cluster {
                    self.carry_out_output(&shared, cluster, output);
                }
            }
        }
    }

    fn carry_out_output(&mut self, shared: &Shared, cluster: &ClusterView, output: Output) {
        let pipeline = shared.submitter.pipeline();
        match output {
            Output::Send { to, message } => cluster.peers.control(to.get(), later::sent(message)),
            Output::Propose { term, command } => {
                if is_planted(Plant::DeadUncommitted) {
                    self.act_on_death(shared, cluster, &command);
                }
                pipeline.propose_in(GroupId::DIRECTORY, term, command);
            }
            Output::StartDirectoryRead { token } if self.grants_without_quorum() => self.on_round_complete(token),
            Output::StartDirectoryRead { token } => {
                pipeline.read_index(GroupId::DIRECTORY, Query::RoundComplete(token));
            }
            Output::StartGroupRead { group, token } => pipeline.read_index(group, Query::RoundComplete(token)),
            Output::ProposeFence { group, node, below } if is_planted(Plant::SkipFence) => {
                if let Some(member) = &mut self.member {
                    member.membership.on_group_fenced(group, node, below);
                }
            }
            Output::ProposeFence { group, node, below } => {
                tracing::debug!(%group, %node, %below, "a fence is proposed");
                let fence = command::Fence { below: below.0, sessions_max: FENCE_SESSIONS_MAX, node: node.get() };
                shared.submitter.propose(group.0, Command::Fence(fence));
            }
            Output::Interest { source: SourceId::Node(node, incarnation), filter, old, new } => {
                let process = PeerProcess { node: node.get(), incarnation: incarnation.0 };
                let indexed = cluster.nodes.indexed(process);
                plants::note_interest((cluster.node, indexed.number), &filter, new);
                shared.index.set_node(&filter, indexed, old, new);
            }
            Output::Interest { source: SourceId::Group(group), filter, old, new } => {
                shared.index.set_group(&filter, group.0, old, new);
            }
            Output::Released { waiter, .. } => {
                let passed = self.member.as_mut().map(|member| member.on_released(waiter)).unwrap_or_default();
                passed.into_iter().for_each(|waiter| self.release(waiter));
            }
            Output::Died { node, below } => {
                self.log_death(cluster, node, below);
                cluster.incoming.lock().unwrap_or_else(PoisonError::into_inner).on_dead(node, below);
                for number in cluster.nodes.of(node.get()) {
                    if cluster.nodes.get(number).is_some_and(|process| process.incarnation < below.0) {
                        self.tell_all(shared, || Event::NodeDead { node: number });
                    }
                }
            }
            Output::Lost { node, incarnation } => {
                tracing::info!(%node, %incarnation, "nobody waits for a dead incarnation of a node any more");
                let process = PeerProcess { node: node.get(), incarnation: incarnation.0 };
                let number = cluster.nodes.number(process);
                self.outboxes.on_node_lost(number);
                self.tell_all(shared, || Event::NodeLost { node: number });
                self.release_lost();
            }
            Output::Place { group, term, target } => pipeline.place(group, term, target),
            Output::Members => {
                self.log_removed(cluster);
                self.link_members(cluster);
            }
            Output::Bans => self.learn_bans(shared),
            Output::FeatureLevel { used } => {
                tracing::info!(used, "the feature level that the cluster uses");
                self.end_over_level(used);
                self.link_members(cluster);
            }
            Output::Removed => cluster.removed.store(true, std::sync::atomic::Ordering::Release),
            Output::Joined { incarnation } => self.registered(shared, cluster, incarnation.0),
            Output::JoinRefused { reason } => {
                tracing::error!(%reason, "the cluster does not take this node; it is asked again");
            }
            Output::Standing(standing) => self.on_standing(shared, cluster, standing),
        }
    }

    /// By name: who reads it does not know the numbers.
    fn log_death(&self, cluster: &ClusterView, node: NodeId, below: Incarnation) {
        // What became of this one is said where it acts on it.
        let Some(member) = self.member.as_ref().filter(|_| node.get() != cluster.node) else {
            return;
        };
        let name = member.name_of(node);
        match member.death_of(node, below) {
            Death::BegunAnew => {
                tracing::info!(name, %node, %below, "a node has begun anew: its process before counts as dead")
            }
            Death::Removed => {}
            Death::Stopped => tracing::info!(name, %node, %below, "a node has stopped, as it said that it would"),
            Death::Fell => {
                tracing::warn!(name, %node, %below, "a node is dead: it was silent for longer than its lease, and others take its place");
            }
        }
    }

    fn log_removed(&mut self, cluster: &ClusterView) {
        let removed = self.member.as_mut().map(Member::newly_removed).unwrap_or_default();
        for (node, name) in removed.into_iter().filter(|(node, _)| node.get() != cluster.node) {
            tracing::info!(name, %node, "a node was removed from the cluster");
        }
    }

    pub(super) fn on_listening(&mut self) {
        if let Some(member) = &mut self.member {
            member.listens = true;
        }
        if let Some(cluster) = self.shared.get().and_then(|shared| shared.cluster.as_ref()) {
            self.link_members(cluster);
        }
    }

    /// Those that this node began with, until the directory says who there is.
    fn link_members(&self, cluster: &ClusterView) {
        let Some(member) = self.member.as_ref().filter(|member| member.listens) else {
            return;
        };
        cluster
            .peers
            .succeeded(member.directory().succeeded().iter().filter_map(|id| ClusterId::from_bytes(id)).collect());
        let is_known = member.directory().cluster_id().is_some();
        let records = if is_known { member.records().collect() } else { member.form.members.clone() };
        let directory = member.directory();
        cluster.peers.admission(directory.feature_level(), directory.removed().clone());
        let unknown = search::unknown(&member.named, &records, directory.removed());
        cluster.peers.members(records.iter().chain(unknown).map(peer_address).collect());
    }

    /// Groups that the directory has others keep.
    pub(super) fn placed_elsewhere(&self) -> BTreeSet<GroupId> {
        let me =
            self.shared.get().and_then(|shared| shared.cluster.as_ref()).and_then(|cluster| NodeId::new(cluster.node));
        let placements = self.member.iter().flat_map(|member| member.directory().placements());
        let is_elsewhere = |(_, placement): &(&GroupId, &Placement)| me.is_some_and(|me| !placement.keeps(me));
        placements.filter(is_elsewhere).map(|(&group, _)| group).collect()
    }

    /// The directory may be led by one of them. What it says, once it is heard, counts instead.
    pub(super) fn on_members_named(&mut self, named: Vec<MemberRecord>) {
        let Some(cluster) = self.shared.get().and_then(|shared| shared.cluster.as_ref()) else {
            return;
        };
        // One that stood still, or was cut off, has not heard that its registration is over; what it lacks is a lease.
        let is_in_need = !cluster.serving.load(std::sync::atomic::Ordering::Acquire);
        if let Some(member) = self.member.as_mut().filter(|_| is_in_need) {
            tracing::info!(members = named.len(), "another member says who the members are");
            member.named = named;
            self.link_members(cluster);
        }
    }

    /// A member refuses to speak with this node because it was removed, which this node had not heard of.
    pub(super) fn on_told_removed(&mut self, by: NodeId) {
        if let Some(cluster) = self.shared.get().and_then(|shared| shared.cluster.as_ref()) {
            // Each link hears of it, again and again.
            if !cluster.removed.swap(true, std::sync::atomic::Ordering::AcqRel) {
                tracing::warn!(%by, "a member says that this node was removed");
            }
        }
    }

    pub(super) fn on_configuration(&mut self, group: GroupId, configuration: &Configuration) {
        if let Some(member) = &mut self.member {
            member.membership.on_configuration(group, configuration.clone());
        }
    }

    /// What only the leader of the directory can do.
    pub(super) fn wish(
        &mut self,
        wish: impl FnOnce(&mut Membership) -> Wish,
        answer: &Sender<(Wish, Vec<MemberRecord>)>,
    ) {
        if let Some(member) = &mut self.member {
            let outcome = wish(&mut member.membership);
            // An asker that is gone needs no answer.
            let _ = answer.send((outcome, member.records().collect()));
        }
    }

    /// The clock of whoever leads the directory says which bans are over.
    pub(super) fn ban(&mut self, ban: Ban, answer: &Sender<(Wish, Vec<MemberRecord>)>) {
        let now_seconds = self.member.as_ref().map_or(0, |member| member.clock.cluster_wall_ms() / 1000);
        self.wish(|membership| wish_ban(membership, Ban { now_seconds, ..ban }), answer);
    }

    pub(super) fn bans_behind(&self, behind: &str) -> Vec<Ban> {
        let Some(member) = &self.member else {
            return Vec::new();
        };
        let now = member.clock.cluster_wall_ms() / 1000;
        let lasting = member.directory().bans().after(behind).filter(|(_, banned)| banned.lasts(now));
        let ban = |(subject, banned): (&str, &Banned)| Ban {
            subject: subject.to_owned(),
            until_seconds: banned.until_seconds,
            reason: banned.reason.clone(),
            ..Ban::default()
        };
        lasting.take(BANS_A_PAGE).map(ban).collect()
    }

    fn learn_bans(&self, shared: &Shared) {
        let Some(member) = &self.member else { return };
        shared.bans.set(member.directory().bans().iter().map(|(subject, banned)| (subject, banned.until_seconds)));
        tracing::info!(bans = shared.bans.len(), "who is banned has changed");
    }

    fn registered(&mut self, shared: &Shared, cluster: &ClusterView, incarnation: u64) {
        tracing::info!(incarnation, "registered with the cluster");
        // Both at once for whoever takes something in, see `super::incoming`.
        let mut incoming = cluster.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = &mut self.member {
            member.named.clear();
            member.watches = true;
            *incoming = Incoming::new(member.directory().fences());
        }
        shared.set_incarnation(incarnation);
        drop(incoming);
        self.tell_all(shared, || Event::Registered { incarnation });
    }

    fn on_standing(&mut self, shared: &Shared, cluster: &ClusterView, standing: Standing) {
        cluster.serving.store(standing == Standing::Serving, std::sync::atomic::Ordering::Release);
        match standing {
            Standing::Joining => {}
            Standing::Serving => {
                tracing::info!("this node holds a lease");
                self.tell_all(shared, || Event::LeaseBack);
            }
            Standing::Lapsed => {
                tracing::warn!("the lease ran out: nothing is acknowledged until it is back");
                self.counters.lease_lapses.inc();
                self.tell_all(shared, || Event::LeaseLapsed);
            }
            Standing::LapsedLong => {
                tracing::warn!("without a lease for long: clients are sent to find other nodes");
                self.tell_all(shared, || Event::CutOff);
            }
            Standing::Dead => {
                tracing::warn!("this node was declared dead: it closes its clients and registers again");
                self.counters.declared_dead.inc();
                if let Some(member) = &mut self.member {
                    member.closing = shared.inboxes.len();
                    member.forget_arbiters();
                }
                self.tell_all(shared, || Event::Unregistered);
            }
        }
    }

    fn tell_all(&mut self, shared: &Shared, event: impl Fn() -> Event) {
        for arbiter in 0..shared.inboxes.len() as u16 {
            self.push(arbiter, event());
        }
    }

    /// The other nodes that live.
    pub(super) fn other_nodes(&self, me: u64) -> Vec<u64> {
        let living = self.member.iter().flat_map(|member| member.directory().living());
        living.map(|(node, _)| node.get()).filter(|&node| node != me).collect()
    }

    /// How this node is, as far as this thread knows.
    pub(crate) fn status(&self) -> NodeStatus {
        let (Some(member), Some(shared)) = (&self.member, self.shared.get()) else {
            return NodeStatus::default();
        };
        let Some(cluster) = &shared.cluster else {
            return NodeStatus::default();
        };
        let directory = member.directory();
        let valid_until_ns = cluster.lease.valid_until_ns();
        let left_ns = valid_until_ns.saturating_sub(cluster.clock.boottime_ns());
        let has_end = valid_until_ns != 0 && valid_until_ns != u64::MAX;
        NodeStatus {
            node: cluster.node,
            name: shared.settings.node_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: directory.cluster_id().unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect(),
            incarnation: shared.incarnation(),
            standing: status::Standing::from(member.membership.standing()).into(),
            lease_ms_left: has_end.then_some(left_ns / 1_000_000),
            connections: shared.connections.load(std::sync::atomic::Ordering::Relaxed) as u64,
            members: MemberStatus::of(directory),
            feature_level: directory.feature_level(),
            feature_level_min: later::feature_levels().min,
            feature_level_max: later::feature_levels().max,
            routes: RouteStatus::of(shared.submitter.slots().groups(), &cluster.leaders.all(), &shared.backlog()),
            chosen: ChosenStatus::of(directory),
            cluster_wall_ms: Some(cluster.clock.cluster_wall_ms()),
            ..NodeStatus::default()
        }
    }

    /// The lanes that lead to a node begin anew.
    pub(super) fn reset_outboxes_to(&mut self, cluster: &ClusterView, node: NodeId) {
        for number in cluster.nodes.of(node.get()) {
            self.outboxes.reset(OutboxTarget::Node(number));
        }
    }
}

/// Mistakes that simulations must find.
impl Machine {
    fn grants_without_quorum(&self) -> bool {
        is_planted(Plant::GrantWithoutQuorum)
            && self.member.as_ref().is_some_and(|member| member.membership.leads_directory())
    }

    fn drop_interest_of(&self, node: NodeId) {
        if let Some(shared) = self.shared.get()
            && let Some(cluster) = &shared.cluster
        {
            for number in cluster.nodes.of(node.get()) {
                let indexed = IndexedNode { number, identity: node.get() };
                for (filter, wanted) in plants::take_interest((cluster.node, number)) {
                    shared.index.set_node(&filter, indexed, wanted, 0);
                }
            }
        }
    }

    /// As if the proposal were committed, and everybody had fenced the dead one.
    fn act_on_death(&mut self, shared: &Shared, cluster: &ClusterView, command: &Bytes) {
        let Ok(Some(directory_command::Command::Dead(departed))) = directory_command::decode(command.clone()) else {
            return;
        };
        let now_ns = self.now_ns();
        let (Some(node), Some(me)) = (NodeId::new(departed.node), NodeId::new(cluster.node)) else {
            return;
        };
        let incarnation = Incarnation(departed.incarnation);
        if let Some(member) = &mut self.member
            && let Some(own) = member.membership.incarnation()
        {
            let source = Some(SourceId::Node(me, own).into());
            let confirm = wire::Confirm { source, version: u64::MAX, receiver: departed.incarnation };
            let _ = member.membership.on_message(now_ns, node, wire::encode(wire::Body::Confirm(confirm)));
        }
        self.carry_out_output(shared, cluster, Output::Died { node, below: Incarnation(incarnation.0 + 1) });
        self.carry_out_output(shared, cluster, Output::Lost { node, incarnation });
    }
}

/// Has somebody banned, or that lifted. A ban that is over before anybody has heard of it would be as good as said, and whoever asked for
/// it with a clock that is behind would take somebody for banned.
fn wish_ban(membership: &mut Membership, ban: Ban) -> Wish {
    let known = || membership.directory().bans().get(&ban.subject);
    let is_known = || known().is_some_and(|known| known.until_seconds == ban.until_seconds);
    let is_over = !ban.lifted && ban.until_seconds != 0 && ban.until_seconds <= ban.now_seconds;
    // Others may not have heard of it yet.
    if is_over && membership.leads_directory() && !is_known() {
        let ago_seconds = ban.now_seconds - ban.until_seconds;
        return Wish::Refused(BanRefusal::Over { ago_seconds }.into());
    }
    membership.ban(ban)
}

#[cfg(test)]
mod tests {
    use kentongan_cluster::directory::command::{Command, Departed, Departing, Drain, Join, encode};
    use kentongan_cluster::lease::LeaseCell;
    use kentongan_cluster::membership::Limits;

    use super::*;

    const ME: u64 = 1;
    const ATTEMPT: u64 = 7;

    /// Registered, with another node that confirms nothing.
    fn beside_a_silent_node() -> Member {
        let record = |node| MemberRecord { node, name: format!("node {node}"), ..MemberRecord::default() };
        let members = vec![record(ME), record(2)];
        let form = Form { cluster_id: vec![1].into(), groups: 2, members, ..Form::default() };
        let me = NodeId::new(ME).expect("not zero");
        let mut membership =
            Membership::new(me, record(ME), ATTEMPT, Arc::new(LeaseCell::endless()), Limits::default());
        let join = |node, attempt| Join { member: Some(record(node)), attempt, newest: 0 };
        let log = [Command::Form(form.clone()), Command::Join(join(ME, ATTEMPT)), Command::Join(join(2, 9))];
        for (index, command) in (1..).zip(log) {
            membership.on_directory(0, index, encode(command)).expect("known");
        }
        Member::new(membership, form, Clock::real())
    }

    /// One that ended while it was asked for again was said, and is nothing to worry about.
    #[test]
    fn a_ban_that_is_over_before_it_is_known_is_refused() {
        let mut membership = beside_a_silent_node().membership;
        let ban = |subject: &str, until_seconds| Ban {
            subject: subject.to_owned(),
            until_seconds,
            now_seconds: 100,
            ..Ban::default()
        };
        assert_ne!(wish_ban(&mut membership, ban("late", 90)), over(10), "whoever leads decides");
        membership.on_directory_role(0, NodeId::new(ME), 1);
        let index = membership.directory().applied() + 1;
        let known = Ban { now_seconds: 80, ..ban("known", 90) };
        membership.on_directory(0, index, encode(Command::Ban(known))).expect("known");
        assert_eq!(wish_ban(&mut membership, ban("late", 90)), over(10));
        assert_eq!(wish_ban(&mut membership, ban("late", 100)), over(0));
        assert_eq!(wish_ban(&mut membership, ban("known", 91)), over(9));
        let lifted = Ban { lifted: true, ..ban("late", 90) };
        for passed_on in [ban("known", 90), ban("late", 101), ban("late", 0), lifted] {
            let as_asked = membership.ban(passed_on.clone());
            assert_eq!(wish_ban(&mut membership, passed_on), as_asked);
        }
    }

    fn over(ago_seconds: u64) -> Wish {
        Wish::Refused(BanRefusal::Over { ago_seconds }.into())
    }

    /// Who restarts a node reads of no death, and who loses one does.
    #[test]
    fn a_death_is_told_by_what_became_of_the_node() {
        let mut member = beside_a_silent_node();
        let two = NodeId::new(2).expect("not zero");
        assert_eq!(member.name_of(two), "node 2");
        let living = |member: &Member| member.directory().members()[&two].living.expect("it lives");
        let feed = |member: &mut Member, command: Command| {
            let index = member.directory().applied() + 1;
            member.membership.on_directory(0, index, encode(command)).expect("known");
        };
        let join = |attempt| Join {
            member: Some(MemberRecord { node: 2, name: "node 2".into(), ..MemberRecord::default() }),
            attempt,
            newest: u64::MAX,
        };

        let first = living(&member);
        feed(&mut member, Command::Join(join(10)));
        assert_eq!(member.death_of(two, Incarnation(first.0 + 1)), Death::BegunAnew);

        let second = living(&member);
        feed(&mut member, Command::Dead(Departed { node: 2, incarnation: second.0 }));
        assert_eq!(member.death_of(two, Incarnation(second.0 + 1)), Death::Fell);

        feed(&mut member, Command::Join(join(11)));
        let third = living(&member);
        feed(&mut member, Command::Drain(Drain { node: 2, incarnation: third.0, on: true }));
        member.note_stops();
        feed(&mut member, Command::Dead(Departed { node: 2, incarnation: third.0 }));
        assert_eq!(member.death_of(two, Incarnation(third.0 + 1)), Death::Stopped);
    }

    /// Nobody takes it for one that fell, and whoever joins later or begins anew reads nothing of it.
    #[test]
    fn who_was_removed_is_told_once_to_those_that_saw_it() {
        let two = NodeId::new(2).expect("not zero");
        let departing = Departing { node: 2 };
        for watches in [true, false] {
            let mut member = beside_a_silent_node();
            member.watches = watches;
            assert_eq!(member.newly_removed(), []);
            let living = member.directory().members()[&two].living.expect("it lives");
            for command in [Command::Remove(departing), Command::Removed(departing)] {
                let index = member.directory().applied() + 1;
                member.membership.on_directory(0, index, encode(command)).expect("known");
            }
            assert_eq!(member.death_of(two, Incarnation(living.0 + 1)), Death::Removed);
            let told = if watches { vec![(two, "node 2".to_owned())] } else { Vec::new() };
            assert_eq!(member.newly_removed(), told);
            assert_eq!(member.newly_removed(), [], "once");
        }
    }

    const FILTERS: u64 = 20_000;

    /// Clients that get no SUBACK come again, and what they waited for is nothing to them then.
    #[test]
    fn an_arbiter_waits_a_few_times_however_many_of_its_clients_subscribe_while_a_node_is_silent() {
        let mut member = beside_a_silent_node();
        for ticket in 1..=FILTERS {
            member.membership.set_node_interest(&Arc::from(format!("a/{ticket}")), 1);
            for arbiter in 0..2 {
                assert_eq!(member.wait(Asker::Arbiter(arbiter), ticket), None, "the other node has not heard of it");
            }
        }
        assert_eq!(member.open_barriers(), 2 * (WAITS_OF_AN_ASKER_MAX + 1));
        assert_eq!(member.try_again(), [], "they wait already");
        assert_eq!(member.open_barriers(), 2 * (WAITS_OF_AN_ASKER_MAX + 1));

        let passes = |waiter: &Waiter| waiter.asker == Asker::Arbiter(0) && waiter.up_to == FILTERS;
        assert!(!member.waiters.values().any(passes), "the last one waits for its turn");
        let oldest = member.waiters.iter().find(|(_, waiter)| waiter.asker == Asker::Arbiter(0));
        let oldest = *oldest.expect("it waits").0;
        assert_eq!(member.on_released(oldest), [Waiter { asker: Asker::Arbiter(0), up_to: 1 }]);
        assert!(member.waiters.values().any(passes), "it waits now");
        assert_eq!(member.waits[&Asker::Arbiter(0)].next, None);
    }

    /// Nobody is told of what the other node has not heard of, and everybody in the order in which they asked.
    #[test]
    fn a_waiter_passes_when_the_other_node_has_all_that_its_asker_had() {
        let mut member = beside_a_silent_node();
        let node = NodeId::new(2).expect("not zero");
        let incarnation = member.membership.incarnation().expect("registered");
        let receiver = member.directory().living().find(|&(living, _)| living == node).expect("lives").1;
        let confirms = |member: &mut Member, version: Version| {
            let source = Some(SourceId::Node(NodeId::new(ME).expect("not zero"), incarnation).into());
            let confirm = wire::Confirm { source, version: version.0, receiver: receiver.0 };
            let message = wire::encode(wire::Body::Confirm(confirm));
            member.membership.on_message(0, node, message).expect("understood");
            let outputs = member.membership.take_outputs().into_iter();
            let released = outputs.filter_map(|output| match output {
                Output::Released { waiter, .. } => Some(waiter),
                _ => None,
            });
            let released: Vec<_> = released.collect();
            released.into_iter().flat_map(|waiter| member.on_released(waiter)).map(|waiter| waiter.up_to).collect()
        };
        let mut versions = BTreeMap::new();
        for ticket in 1..=100 {
            let version = member.membership.set_node_interest(&Arc::from(format!("a/{ticket}")), 1);
            versions.insert(ticket, version.expect("registered"));
            assert_eq!(member.wait(Asker::Arbiter(0), ticket), None);
        }
        let none: [u64; 0] = [];
        let told: Vec<u64> = confirms(&mut member, Version(versions[&1].0 - 1));
        assert_eq!(told, none);
        let told: Vec<u64> = confirms(&mut member, versions[&3]);
        assert_eq!(told, [1, 2, 3]);
        let told: Vec<u64> = confirms(&mut member, versions[&99]);
        assert!(told.is_sorted() && told.last() == Some(&(WAITS_OF_AN_ASKER_MAX as u64)), "{told:?}");
        let told: Vec<u64> = confirms(&mut member, versions[&100]);
        assert_eq!(told, [100], "it waited for all that there was when its turn came");
        assert_eq!(member.open_barriers(), 0);
        assert_eq!(member.wait(Asker::Arbiter(0), 101).map(|waiter| waiter.up_to), Some(101), "nothing is new");
    }

    /// This is the thread that keeps the lease: what is kept for those who are gone must not become ever more, nor a tick ever longer.
    #[test]
    fn answers_for_connections_that_are_gone_are_let_go_while_a_node_is_silent() {
        const SESSIONS: u64 = 100;
        let mut member = beside_a_silent_node();
        member.membership.set_group_interest(GroupId(0), Version(5), &Arc::from("a"), 1);
        member.membership.on_group_role(0, GroupId(0), Some(1));
        for number in 0..FILTERS {
            // Each comes again by another connection when all others have.
            let owner = Owner { connection: number, ..Owner::default() };
            let answer = Answer { owner, client_id: Arc::from("c"), event: Event::LeaseBack };
            let is_gone = |answer: &Answer| answer.owner.connection + SESSIONS <= number;
            let up_to = member.answers.entry(0).or_default().keep(answer, is_gone);
            assert_eq!(member.wait(Asker::Group(0), up_to), None);
            let waiting = &member.answers[&0].waiting;
            assert!(waiting.len() as u64 <= 3 * SESSIONS, "{} of {SESSIONS}", waiting.len());
        }
        let waiting = &member.answers[&0].waiting;
        let present = waiting.values().filter(|answer| answer.owner.connection + SESSIONS >= FILTERS);
        assert_eq!(present.count() as u64, SESSIONS, "none of those that are there is forgotten");
        let before = member.next_waiter;
        assert_eq!(member.try_again(), []);
        assert_eq!(member.next_waiter, before);
        assert_eq!(member.waiters.len(), WAITS_OF_AN_ASKER_MAX);

        let answers = member.answers.get_mut(&0).expect("kept");
        let (taken, last) = (answers.take(FILTERS - 1), answers.last);
        assert!(taken.keys().is_sorted() && taken.len() as u64 >= SESSIONS - 1);
        assert_eq!(answers.waiting.keys().collect::<Vec<_>>(), [&last]);

        // Another leads: whoever is owed an answer asks again.
        member.forget(Asker::Group(0));
        assert_eq!(member.open_barriers(), 0);
    }
}
