//! One node's part in the cluster: directory, lease, interest and barriers, wired together.
//!
//! [`Membership`] is owned by the thread that applies committed entries. Nothing here performs I/O or reads a clock: it is
//! told what happened and when, and says in [`Output`]s what is to be done, in that order. `now_ns` is
//! [`crate::clock::boottime_ns`], read just before the call.
//!
//! - What the directory's log says is the same at every node; each acts upon what concerns it.
//! - The node *registers*: it asks the directory's leader, again and again, to propose its `Join`. From the entry on it is a
//!   new incarnation, whose life ends with its `Dead`; then its clients are closed, and it registers anew.
//! - Interest is *offered* by who has it (a node its own, a leader that of its group), asked for, and sent as long as the link
//!   holds. So nobody needs to know who leads a group, and what either side forgot is begun again.
//! - What a node says to itself takes the same way as what it says to others, without a link. A cluster of one is the same
//!   code.

mod apart;
mod groups;
mod leading;
mod messages;
mod supply;
mod terms;
mod wall;
pub mod wire;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::directory::command::{self, Command, Departed, MemberRecord};
use crate::directory::{Directory, Effect, JoinRefusal};
use crate::group::{Configuration, Target};
use crate::identity::GroupId;
use crate::identity::{Incarnation, NodeId};
use crate::interest::{Barrier, LinkId, Source, SourceId, Table, Version};
use crate::lease::{GranterOutput, Holder, HolderOutput, LeaseCell, Standing};
use crate::placement::{self, transition};
use leading::Leading;
use supply::{Budgets, Supply};
use wall::WallClocks;
use wire::Body;

pub use terms::{AgreedWallClock, Limits, Output, UnknownCommand, WaitError, Wish, WishRefusal};

/// How often a node asks to be registered.
const REGISTER_INTERVAL_NS: u64 = 200_000_000;

/// How long a ReadIndex round may take before another is begun.
const READ_TIMEOUT_NS: u64 = 300_000_000;

/// Rounds to the same end that may still be answered.
const ROUNDS_MAX: usize = 8;

/// How often a node tells the others whether it holds a lease: one side of a link may not have noticed that it broke, and has not heard
/// what was told once.
const TELL_LEASE_INTERVAL_NS: u64 = 1_000_000_000;

/// How often a fence is proposed until it is complete.
const FENCE_INTERVAL_NS: u64 = 1_000_000_000;

/// Of the link of a node to itself.
const OWN_LINK: LinkId = LinkId(0);

/// What ends with an incarnation.
#[derive(Debug)]
struct Life {
    incarnation: Incarnation,
    holder: Holder,
    source: Source,
    supply: Supply,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    token: u64,
    begun_ns: u64,
    /// The directory's last `Join` as of its begin.
    as_of: u64,
}

/// ReadIndex rounds to the same end. One that is lost is followed by another; one that is only slow still counts.
#[derive(Debug, Default)]
struct Rounds(VecDeque<Round>);

impl Rounds {
    fn is_under_way(&self, now_ns: u64, as_of: u64) -> bool {
        let lately = |round: &Round| now_ns.saturating_sub(round.begun_ns) < READ_TIMEOUT_NS;
        self.0.back().is_some_and(|round| lately(round) && round.as_of >= as_of)
    }

    fn begin(&mut self, round: Round) {
        if self.0.len() == ROUNDS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(round);
    }

    /// What was begun before can only say less.
    fn complete(&mut self, token: u64) -> Option<Round> {
        let round = *self.0.iter().find(|round| round.token == token)?;
        self.0.retain(|other| other.token > token);
        Some(round)
    }
}

/// What ends with the leadership of a group.
#[derive(Debug)]
struct Led {
    term: u64,
    supply: Supply,
    receivers_known: bool,
    /// Of the directory: who has joined?
    receivers: Rounds,
    /// Of the group: does this node still lead it?
    leadership: Rounds,
    /// What was said last of where the group is to be kept.
    target: Option<Target>,
}

#[derive(Debug)]
struct Group {
    source: Source,
    led: Option<Led>,
}

impl Group {
    /// What is sent of it while it is led here.
    fn supply(&mut self) -> Option<(&Source, &mut Supply)> {
        Some((&self.source, &mut self.led.as_mut()?.supply))
    }
}

/// One node's part in the cluster.
#[derive(Debug)]
pub struct Membership {
    me: NodeId,
    record: MemberRecord,
    /// Names a registration; another for each.
    attempt: u64,
    limits: Limits,
    budgets: Budgets,
    cell: Arc<LeaseCell>,
    directory: Directory,
    leader: Option<NodeId>,
    leading: Option<Leading>,
    /// Those that are up.
    links: BTreeMap<NodeId, LinkId>,
    /// Outlives incarnations: what was held is still right, only not known to be complete.
    table: Table,
    /// Those that have a replica here.
    groups: BTreeMap<GroupId, Group>,
    /// The lowest incarnation of a node that a group has not fenced, by committed state.
    fenced: BTreeMap<(GroupId, NodeId), Incarnation>,
    life: Option<Life>,
    /// Clients of a dead incarnation are still here.
    closing: bool,
    /// It is no member any more.
    removed: bool,
    /// What was told last of it; 0 before.
    feature_level: u32,
    /// The members of each group that has a replica here, by what is applied of it.
    configurations: BTreeMap<GroupId, Configuration>,
    /// Who is to lead each group, by the directory.
    preferred: BTreeMap<GroupId, NodeId>,
    /// This process is about to end.
    stops: bool,
    /// Clients here, if it takes more of them.
    connections: Option<u64>,
    /// Those of every node that does, as the directory's leader said with the lease.
    loads: BTreeMap<NodeId, u64>,
    wall_clocks: WallClocks,
    /// Whether others hold a lease, as each said last over the link that is up. Older versions say nothing.
    leases: BTreeMap<NodeId, bool>,
    tell_lease_at_ns: u64,
    register_at_ns: u64,
    fence_at_ns: u64,
    next_token: u64,
    /// Something was said whose consequences were not seen to yet.
    has_changed: bool,
    /// What this node says to itself.
    loopback: VecDeque<Body>,
    outputs: Vec<Output>,
}

impl Membership {
    /// A process that just started. `member.node` is `me`. `nonce` is random: by it the process tells its own `Join` from
    /// those of processes before it. `cell` is what acknowledgements look at.
    #[must_use]
    pub fn new(me: NodeId, member: MemberRecord, nonce: u64, cell: Arc<LeaseCell>, limits: Limits) -> Self {
        Self {
            me,
            record: MemberRecord { node: me.get(), ..member },
            attempt: nonce,
            budgets: Budgets::new(me, &limits),
            limits,
            cell,
            directory: Directory::new(),
            leader: None,
            leading: None,
            links: BTreeMap::new(),
            table: Table::new(),
            groups: BTreeMap::new(),
            fenced: BTreeMap::new(),
            life: None,
            closing: false,
            removed: false,
            feature_level: 0,
            configurations: BTreeMap::new(),
            preferred: BTreeMap::new(),
            stops: false,
            connections: None,
            loads: BTreeMap::new(),
            wall_clocks: WallClocks::default(),
            leases: BTreeMap::new(),
            tell_lease_at_ns: 0,
            register_at_ns: 0,
            fence_at_ns: 0,
            next_token: 1,
            has_changed: false,
            loopback: VecDeque::new(),
            outputs: Vec::new(),
        }
    }

    /// What is to be done since this was last called.
    #[must_use]
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// The directory as far as it is applied here.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// As what this process is registered.
    #[must_use]
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.life.as_ref().map(|life| life.incarnation)
    }

    /// What the node may do; `None` while it is not registered.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        self.life.as_ref().map(|life| life.holder.standing())
    }

    // The directory

    /// An entry of the directory's log was committed; `command` is empty if it is Raft's own.
    ///
    /// # Errors
    /// The entry is none that this program knows: the node must stop. Whoever goes on without it has another directory than the
    /// others.
    pub fn on_directory(&mut self, now_ns: u64, index: u64, command: Bytes) -> Result<(), UnknownCommand> {
        if command.is_empty() {
            self.directory.skip(index);
            return Ok(());
        }
        let command = command::decode(command)?.ok_or(UnknownCommand::Newer)?;
        if let Some(leading) = &mut self.leading {
            leading.on_applied(&command);
        }
        let effects = self.directory.apply(index, command);
        self.on_effects(now_ns, effects);
        Ok(())
    }

    /// The directory was restored from a checkpoint or a snapshot, instead of the entries in between.
    pub fn on_directory_restored(&mut self, now_ns: u64, directory: Directory) {
        if directory.applied() <= self.directory.applied() {
            return;
        }
        let before = std::mem::replace(&mut self.directory, directory);
        let effects = self.effects_since(&before);
        self.on_effects(now_ns, effects);
    }

    /// What of the entries in between still matters.
    fn effects_since(&self, before: &Directory) -> Vec<Effect> {
        let now = &self.directory;
        let is_not_lost =
            |directory: &Directory, of: (NodeId, Incarnation)| directory.not_lost().any(|other| other == of);
        let mut effects = Vec::new();
        for (&node, &fence) in now.fences() {
            if before.fences().get(&node).is_none_or(|&known| known < fence) {
                effects.push(Effect::Died { node, incarnation: Incarnation(fence.0 - 1) });
            }
        }
        for (node, incarnation) in before.not_lost().filter(|&of| !is_not_lost(now, of)) {
            effects.push(Effect::Lost { node, incarnation });
        }
        for (node, incarnation) in now.not_lost().filter(|&of| !is_not_lost(before, of)) {
            let newest = now.members().get(&node).filter(|member| member.living == Some(incarnation));
            let attempt = newest.map_or(0, |member| member.attempt);
            effects.push(Effect::Joined { node, incarnation, attempt });
        }
        let admitted = now.members().keys().filter(|node| !before.members().contains_key(node));
        effects.extend(admitted.map(|&node| Effect::Admitted { node }));
        effects.extend(now.removed().difference(before.removed()).map(|&node| Effect::Removed { node }));
        effects.extend((now.bans() != before.bans()).then_some(Effect::Bans));
        effects
    }

    fn on_effects(&mut self, now_ns: u64, effects: Vec<Effect>) {
        let members_changed = |effect: &Effect| {
            matches!(effect, Effect::Formed | Effect::Admitted { .. } | Effect::Joined { .. } | Effect::Removed { .. })
        };
        if effects.iter().any(members_changed) {
            self.outputs.push(Output::Members);
        }
        self.preferred = placement::leaders(&self.directory);
        self.tell_feature_level();
        for effect in effects {
            match effect {
                Effect::Joined { node, incarnation, attempt } => self.on_joined(node, incarnation, attempt),
                Effect::Died { node, incarnation } => self.on_died(now_ns, node, incarnation),
                Effect::Lost { node, incarnation } => self.on_lost(node, incarnation),
                Effect::Refused { node, attempt, reason } if node == self.me && attempt == self.attempt => {
                    // Who is stale asks again with what it knows now.
                    if !matches!(reason, JoinRefusal::Stale { .. }) {
                        self.outputs.push(Output::JoinRefused { reason });
                    }
                }
                Effect::Removed { node } if node == self.me => {
                    self.removed = true;
                    self.outputs.push(Output::Removed);
                }
                Effect::Bans => self.outputs.push(Output::Bans),
                Effect::Formed
                | Effect::Refused { .. }
                | Effect::Admitted { .. }
                | Effect::Leaves { .. }
                | Effect::Removed { .. }
                | Effect::Placed { .. }
                | Effect::Drained { .. }
                | Effect::Preferred { .. }
                | Effect::FeatureLevel { .. } => {}
            }
        }
        for group in self.directory.groups() {
            self.table.follow(SourceId::Group(group));
        }
        let alone = self.is_alone();
        self.with_holder(|holder, outputs| holder.set_alone(now_ns, alone, outputs));
        self.place();
        self.offer(now_ns);
        self.start_group_rounds(now_ns);
        self.settle(now_ns);
    }

    /// Above all that is done by it.
    fn tell_feature_level(&mut self) {
        let used = self.directory.feature_level();
        if std::mem::replace(&mut self.feature_level, used) != used {
            self.outputs.push(Output::FeatureLevel { used });
        }
    }

    fn on_joined(&mut self, node: NodeId, incarnation: Incarnation, attempt: u64) {
        if node == self.me {
            if attempt == self.attempt && self.life.is_none() && self.directory.is_living(node, incarnation) {
                self.begin(incarnation);
            }
        } else {
            if self.directory.is_living(node, incarnation) {
                self.table.follow(SourceId::Node(node, incarnation));
            }
            if let Some(life) = &mut self.life {
                life.supply.barrier.on_joined(incarnation);
                life.supply.forget(node);
            }
        }
        let as_of = self.newest_join();
        if let Some(life) = &mut self.life {
            life.supply.as_of = as_of;
        }
        for led in self.groups.values_mut().filter_map(|group| group.led.as_mut()) {
            led.supply.barrier.on_joined(incarnation);
            led.supply.forget(node);
        }
    }

    /// This process's `Join` was applied.
    fn begin(&mut self, incarnation: Incarnation) {
        let mut barrier = Barrier::of_node(self.limits.waiters_max);
        for (_, other) in self.directory.not_lost().filter(|&(_, other)| other != incarnation) {
            barrier.on_joined(other);
        }
        self.life = Some(Life {
            incarnation,
            holder: Holder::new(incarnation, Arc::clone(&self.cell)),
            source: Source::new(SourceId::Node(self.me, incarnation))
                .with_recent_bytes_max(self.limits.recent_bytes_max),
            supply: Supply::new(barrier, self.newest_join()),
        });
        self.outputs.push(Output::Joined { incarnation });
    }

    /// This incarnation is dead.
    fn end(&mut self) {
        let Some(mut life) = self.life.take() else { return };
        let mut outputs = Vec::new();
        life.holder.on_dead(life.incarnation, &mut outputs);
        self.hold(outputs);
        self.attempt = self.attempt.wrapping_add(1);
        self.closing = true;
    }

    fn on_died(&mut self, now_ns: u64, node: NodeId, incarnation: Incarnation) {
        let below = Incarnation(incarnation.0 + 1);
        if node == self.me && self.incarnation().is_some_and(|mine| mine < below) {
            self.end();
        }
        self.outputs.push(Output::Died { node, below });
        self.propose_fences(now_ns);
    }

    fn on_lost(&mut self, node: NodeId, incarnation: Incarnation) {
        let mut outputs = Vec::new();
        self.table.drop_source(SourceId::Node(node, incarnation), &mut outputs);
        self.on_table(self.me, outputs);
        self.fenced.retain(|&(_, fenced), below| fenced != node || below.0 > incarnation.0 + 1);
        self.outputs.push(Output::Lost { node, incarnation });
        let mut released = Vec::new();
        if let Some(life) = &mut self.life {
            life.supply.barrier.on_lost(incarnation, &mut released);
        }
        self.release(None, released);
        for group in self.led() {
            self.with_barrier(group, |barrier, released| barrier.on_lost(incarnation, released));
        }
    }

    /// Who leads the directory, as Raft says here; in which term.
    pub fn on_directory_role(&mut self, now_ns: u64, leader: Option<NodeId>, term: u64) {
        self.leader = leader;
        if leader != Some(self.me) {
            self.leading = None;
        } else if self.leading.as_ref().is_none_or(|leading| leading.term != term) {
            self.leading = Some(Leading::new(now_ns, term, &self.directory));
            self.place();
        }
        self.register(now_ns);
        self.settle(now_ns);
    }

    /// A ReadIndex round is complete: confirmed by a majority, and its index applied here.
    pub fn on_read(&mut self, now_ns: u64, token: u64) {
        let mut outputs = Vec::new();
        if let Some(leading) = &mut self.leading {
            leading.on_read(now_ns, token, &self.directory, &mut outputs);
        }
        self.lead(outputs);
        for group in self.led() {
            self.on_group_read(group, token);
        }
        self.place();
        self.settle(now_ns);
    }

    fn on_group_read(&mut self, group: GroupId, token: u64) {
        let Some(led) = self.groups.get_mut(&group).and_then(|group| group.led.as_mut()) else { return };
        if let Some(round) = led.leadership.complete(token) {
            led.supply.as_of = led.supply.as_of.max(round.as_of);
        }
        if led.receivers.complete(token).is_some() {
            led.receivers_known = true;
            self.with_barrier(group, Barrier::on_receivers_known);
        }
    }

    fn lead(&mut self, outputs: Vec<GranterOutput>) {
        for output in outputs {
            match output {
                GranterOutput::StartRead(round) => {
                    let token = self.token();
                    if let Some(leading) = &mut self.leading {
                        leading.on_round_begun(token, round);
                        self.outputs.push(Output::StartDirectoryRead { token });
                    }
                }
                GranterOutput::Grant { node, incarnation, sequence } => {
                    let directory = &self.directory;
                    let loads = self.leading.as_mut().map(|leading| leading.loads(directory)).unwrap_or_default();
                    self.send(node, Body::Granted(wire::Granted { incarnation: incarnation.0, sequence, loads }));
                }
                GranterOutput::Refuse { node, incarnation } => {
                    self.send(node, Body::Refused(wire::Refused { incarnation: incarnation.0 }));
                }
                GranterOutput::ProposeDead { node, incarnation } => {
                    self.propose(Command::Dead(departed(node, incarnation)));
                }
            }
        }
    }

    fn propose(&mut self, command: Command) {
        if let Some(leading) = &self.leading {
            self.outputs.push(Output::Propose { term: leading.term, command: command::encode(command) });
        }
    }

    // Where groups are kept

    /// These are the members of a group that has a replica here, by what is applied of it.
    pub fn on_configuration(&mut self, group: GroupId, configuration: Configuration) {
        self.configurations.insert(group, configuration);
    }

    /// Says of each group that is led here where it is to be kept, if that is news. Not before this node has heard of every
    /// placement that the leader before may have acted upon. Who is not registered leads nothing: it may be heard by this node, and not
    /// by who leads the directory. Nor does another that says that it has no lease: it would give a group up again, or be without use to
    /// all others. Of this node's own lease nothing is said here, or nobody would lead where nobody has one; nor for the directory, whose
    /// leader others agree upon without.
    fn place(&mut self) {
        let drained = self.directory.drained();
        let living: BTreeSet<NodeId> = self.directory.living().map(|(node, _)| node).collect();
        let without_lease = self.leases.iter().filter(|&(_, &held)| !held).map(|(&node, _)| node);
        let passed_over: BTreeSet<NodeId> = drained.iter().copied().chain(without_lease).collect();
        let wanted = |directory: &Directory, preferred: &BTreeMap<GroupId, NodeId>, group| {
            let placement = directory.placement(group)?.clone();
            let drained = if group == GroupId::DIRECTORY { &drained } else { &passed_over };
            let may_lead = |node: &NodeId| living.contains(node) && !drained.contains(node);
            let leader = preferred.get(&group).copied().filter(may_lead);
            Some(Target { placement, leader, drained: drained.clone() })
        };
        if let Some(leading) = &mut self.leading {
            let target = wanted(&self.directory, &self.preferred, GroupId::DIRECTORY);
            if leading.target != target
                && let Some(target) = target
            {
                leading.target = Some(target.clone());
                self.outputs.push(Output::Place { group: GroupId::DIRECTORY, term: leading.term, target });
            }
        }
        for (&group, state) in &mut self.groups {
            let Some(led) = state.led.as_mut().filter(|led| led.receivers_known) else { continue };
            let target = wanted(&self.directory, &self.preferred, group);
            if led.target != target
                && let Some(target) = target
            {
                led.target = Some(target.clone());
                self.outputs.push(Output::Place { group, term: led.term, target });
            }
        }
    }

    fn is_settled(&self, group: GroupId) -> bool {
        let (now, wanted) = (self.configurations.get(&group), self.directory.placement(group));
        now.zip(wanted).is_some_and(|(now, wanted)| transition::is_settled(now, wanted))
    }

    /// This process is about to end: with its renewals it asks to be drained.
    pub fn set_stops(&mut self) {
        self.stops = true;
    }

    /// Clients connected here; `None`: this node takes no more of them.
    pub fn set_connections(&mut self, connections: Option<u64>) {
        self.connections = connections;
    }

    /// Clients of every living node that takes some, as of the last renewals.
    #[must_use]
    pub fn loads(&self) -> &BTreeMap<NodeId, u64> {
        &self.loads
    }

    /// Whether other nodes hold a lease, as each said last over the link that is up.
    #[must_use]
    pub fn leases(&self) -> &BTreeMap<NodeId, bool> {
        &self.leases
    }

    /// Whether this node leads the directory, as far as it knows.
    #[must_use]
    pub fn leads_directory(&self) -> bool {
        self.leading.is_some()
    }

    // This node

    /// A filter of this node's transient sessions changes. Returns a version that holds it; `None` if the node is not
    /// registered, so that nobody may subscribe. Sent by [`Membership::flush`].
    pub fn set_node_interest(&mut self, filter: &Arc<str>, value: u32) -> Option<Version> {
        self.has_changed = true;
        self.life.as_mut().map(|life| life.source.set(filter, value))
    }

    /// Of the last change of this node's interest. `None`: it is not registered.
    #[must_use]
    pub fn node_version(&self) -> Option<Version> {
        self.life.as_ref().map(|life| life.source.version())
    }

    /// Waits until every other node holds `version` of this node's interest; returns whether they all do already. Otherwise
    /// `waiter` comes back in [`Output::Released`].
    ///
    /// # Errors
    /// See [`WaitError`].
    pub fn wait_node(&mut self, version: Version, waiter: u64) -> Result<bool, WaitError> {
        let life = self.life.as_mut().ok_or(WaitError::NotRegistered)?;
        Ok(life.supply.barrier.wait(version, waiter)?)
    }

    /// No client of the dead incarnation is left.
    pub fn on_clients_closed(&mut self, now_ns: u64) {
        self.closing = false;
        self.register_at_ns = now_ns;
        self.register(now_ns);
        self.settle(now_ns);
    }

    /// Everything of a round was said: what it changed is sent. Changes are not sent one by one.
    pub fn flush(&mut self, now_ns: u64) {
        // Called for every round of this node, most of which change nothing here.
        if self.has_changed || !self.loopback.is_empty() {
            self.settle(now_ns);
        }
    }

    fn register(&mut self, now_ns: u64) {
        let Some(leader) = self.leader else { return };
        if self.life.is_some() || self.closing || self.removed || now_ns < self.register_at_ns {
            return;
        }
        // One that joins hears its leader before it has the directory. It would hear that it is registered only once it has it, be without
        // a lease until then, and be declared dead; and all that waits for every node would wait for it.
        if self.directory.cluster_id().is_none() {
            return;
        }
        self.register_at_ns = now_ns + REGISTER_INTERVAL_NS;
        let newest = self.directory.members().get(&self.me).map_or(0, |member| member.newest.0);
        let member = Some(self.record.clone());
        let registration = wire::Registration { member, attempt: self.attempt, newest, unheard: self.unheard() };
        self.send(leader, Body::Join(registration));
    }

    fn with_holder(&mut self, input: impl FnOnce(&mut Holder, &mut Vec<HolderOutput>)) {
        let Some(life) = &mut self.life else { return };
        let mut outputs = Vec::new();
        input(&mut life.holder, &mut outputs);
        self.hold(outputs);
    }

    fn hold(&mut self, outputs: Vec<HolderOutput>) {
        for output in outputs {
            match output {
                HolderOutput::Renew { incarnation, sequence } => self.renew(incarnation, sequence),
                HolderOutput::Changed(standing) => {
                    self.outputs.push(Output::Standing(standing));
                    self.tell_lease_to_all();
                }
            }
        }
    }

    fn tell_lease_to_all(&mut self) {
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.tell_lease(peer));
    }

    fn tell_lease(&mut self, peer: NodeId) {
        let held = self.standing() == Some(Standing::Serving);
        self.send(peer, Body::Lease(wire::Lease { held }));
    }

    fn renew(&mut self, Incarnation(incarnation): Incarnation, sequence: u64) {
        let Some(leader) = self.leader else { return };
        let mut dropped = Vec::new();
        let mut fenced = Vec::new();
        for (&dead, of) in self.directory.dead_not_lost() {
            dropped.push(dead.0);
            let groups = self.directory.groups().filter(|&group| self.is_fenced(group, of.node, dead));
            fenced.extend(groups.map(|group| wire::Fenced { group: group.0.into(), incarnation: dead.0 }));
        }
        let is_known = |group: &&GroupId| {
            let led = self.groups.get(group).and_then(|group| group.led.as_ref());
            led.is_some_and(|led| led.receivers_known) && self.is_settled(**group)
        };
        let settled = self
            .groups
            .keys()
            .filter(is_known)
            .map(|&group| wire::Settled { group: group.0.into(), placed_at: self.directory.placed_at(group) });
        let settled = settled.collect();
        let (stops, connections) = (self.stops, self.connections);
        let unheard = self.unheard();
        let renewal = wire::Renewal { incarnation, sequence, dropped, fenced, settled, stops, connections, unheard };
        self.send(leader, Body::Renewal(renewal));
    }

    /// Members, living or not, from which nothing comes.
    fn unheard(&self) -> Vec<u64> {
        let is_unheard = |node: &&NodeId| **node != self.me && !self.links.contains_key(node);
        self.directory.members().keys().filter(is_unheard).map(|node| node.get()).collect()
    }

    /// What this machine's wall clock says, in milliseconds since 1970. Call before anything else, and with every [`Self::tick`].
    pub fn set_wall_clock(&mut self, now_ns: u64, wall_ms: u64) {
        if self.wall_clocks.set_own(now_ns, wall_ms) {
            let peers: Vec<NodeId> = self.links.keys().copied().collect();
            peers.into_iter().for_each(|peer| self.tell_wall_clock(now_ns, peer));
        }
    }

    fn tell_wall_clock(&mut self, now_ns: u64, peer: NodeId) {
        if let Some(wall_ms) = self.wall_clocks.own_wall_ms(now_ns).filter(|_| peer != self.me) {
            self.send(peer, Body::WallClock(wire::WallClock { wall_ms }));
        }
    }

    /// What time it is by the wall clocks of the members, this one among them. `None`: nobody else said it.
    pub fn agreed_wall_clock(&mut self) -> Option<AgreedWallClock> {
        // Who has a link is of this cluster, and may be heard before the directory here says so: that of a node that joins is empty, and
        // one that is started again reads its own once it has heard what is committed. Both may lead groups soon after.
        let removed = self.directory.removed();
        let ahead_ms = self.wall_clocks.agreed_ms(|node| !removed.contains(&node))?;
        Some(AgreedWallClock { ahead_ms, own_ahead_ms: self.wall_clocks.own_ahead_of_ms(ahead_ms) })
    }

    /// Time passed. Call about every 100 ms.
    pub fn tick(&mut self, now_ns: u64) {
        self.tick_leader(now_ns);
        self.register(now_ns);
        self.with_holder(|holder, outputs| holder.tick(now_ns, outputs));
        if now_ns >= self.fence_at_ns {
            self.propose_fences(now_ns);
        }
        if now_ns >= self.tell_lease_at_ns {
            self.tell_lease_at_ns = now_ns + TELL_LEASE_INTERVAL_NS;
            self.tell_lease_to_all();
        }
        self.start_group_rounds(now_ns);
        self.offer(now_ns);
        self.budgets.refill();
        self.settle(now_ns);
    }

    fn tick_leader(&mut self, now_ns: u64) {
        let Some(leading) = &mut self.leading else { return };
        let mut outputs = Vec::new();
        let lost = leading.tick(now_ns, self.me, &self.directory, &mut outputs);
        for (node, incarnation) in lost {
            self.propose(Command::Lost(departed(node, incarnation)));
        }
        self.lead(outputs);
        if let Some(raise) = self.leading.as_mut().and_then(|leading| leading.raise(now_ns, &self.directory)) {
            self.propose(raise);
        }
        let is_settled = self.is_settled(GroupId::DIRECTORY);
        if let Some(leading) = &mut self.leading {
            let commands = leading.plan(now_ns, &self.directory, is_settled);
            commands.into_iter().for_each(|command| self.propose(command));
        }
    }

    /// See [`Standing::Joining`].
    fn complete_interest(&mut self, now_ns: u64) {
        let Some(life) = self.life.as_ref().filter(|life| life.holder.standing() == Standing::Joining) else { return };
        let others = self.directory.living().filter(|&(node, _)| node != self.me);
        let nodes = others.map(|(node, incarnation)| SourceId::Node(node, incarnation));
        let all = nodes.chain(self.directory.groups().map(SourceId::Group));
        if self.table.missing(life.incarnation.0, all).is_empty() {
            self.with_holder(|holder, outputs| holder.on_interest_complete(now_ns, outputs));
        }
    }

    fn with_barrier(&mut self, group: GroupId, input: impl FnOnce(&mut Barrier, &mut Vec<u64>)) {
        let Some(led) = self.groups.get_mut(&group).and_then(|group| group.led.as_mut()) else { return };
        let mut released = Vec::new();
        input(&mut led.supply.barrier, &mut released);
        self.release(Some(group), released);
    }

    fn release(&mut self, group: Option<GroupId>, waiters: Vec<u64>) {
        self.outputs.extend(waiters.into_iter().map(|waiter| Output::Released { group, waiter }));
    }

    fn group(&mut self, group: GroupId) -> &mut Group {
        let recent_bytes_max = self.limits.recent_bytes_max;
        let new = || Source::new(SourceId::Group(group)).with_recent_bytes_max(recent_bytes_max);
        self.groups.entry(group).or_insert_with(|| Group { source: new(), led: None })
    }

    fn led(&self) -> Vec<GroupId> {
        self.groups.iter().filter_map(|(&id, group)| group.led.as_ref().map(|_| id)).collect()
    }

    /// Updates that are complete as of this count everyone who joined.
    fn newest_join(&self) -> u64 {
        self.directory.members().values().map(|member| member.newest.0).max().unwrap_or(0)
    }

    /// Nobody else was ever a member, so nobody can declare this node dead behind its back: the directory's voters are members
    /// from its first entry on ([`command::Form::members`]), and one that joins holds no lease before this node has counted it.
    fn is_alone(&self) -> bool {
        self.directory.members().keys().all(|&node| node == self.me)
    }

    fn token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }
}

fn departed(node: NodeId, incarnation: Incarnation) -> Departed {
    Departed { node: node.get(), incarnation: incarnation.0 }
}

#[cfg(test)]
mod tests;
