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

mod leading;
mod supply;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::directory::bans::{BANS_LEVEL, BanRefusal};
use crate::directory::command::{self, Ban, Command, Departed, Join, MemberRecord};
use crate::directory::{Directory, Effect, JoinRefusal};
use crate::group::{Configuration, Target};
use crate::identity::GroupId;
use crate::identity::{Incarnation, NodeId};
use crate::interest::{Barrier, BarrierFull, Entry, LinkId, Source, SourceId, Table, TableOutput, Version};
use crate::lease::{GranterOutput, Holder, HolderOutput, LeaseCell, Standing};
use crate::placement::{self, transition};
use leading::Leading;
use supply::Supply;
use wire::{Body, Malformed};

/// How often a node asks to be registered.
const REGISTER_INTERVAL_NS: u64 = 200_000_000;

/// How long a ReadIndex round may take before another is begun.
const READ_TIMEOUT_NS: u64 = 300_000_000;

/// Rounds to the same end that may still be answered.
const ROUNDS_MAX: usize = 8;

/// How often a fence is proposed until it is complete.
const FENCE_INTERVAL_NS: u64 = 1_000_000_000;

/// Of the link of a node to itself.
const OWN_LINK: LinkId = LinkId(0);

/// What is kept and sent at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of one update of interest; a longer filter or entry of a group goes alone.
    pub update_bytes_max: usize,
    /// What one node is sent of one source between two ticks, about.
    pub feed_bytes_per_tick: usize,
    /// Recent changes that each source keeps.
    pub recent_bytes_max: usize,
    /// Who may wait at one barrier.
    pub waiters_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            update_bytes_max: 64 * 1024,
            feed_bytes_per_tick: 1024 * 1024,
            recent_bytes_max: 16 * 1024 * 1024,
            waiters_max: 100_000,
        }
    }
}

/// What the node must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message to another node. May be lost only together with the link.
    Send {
        /// To whom.
        to: NodeId,
        /// See [`wire`].
        message: Bytes,
    },
    /// Propose a command to the directory group, unless this node does not lead it in this term any more.
    Propose {
        /// In which it led.
        term: u64,
        /// See [`command`].
        command: Bytes,
    },
    /// Begin a ReadIndex round of the directory group, and call [`Membership::on_read`] once its index is applied here.
    StartDirectoryRead {
        /// Names the round.
        token: u64,
    },
    /// The same of a group that this node leads.
    StartGroupRead {
        /// Which group.
        group: GroupId,
        /// Names the round.
        token: u64,
    },
    /// Propose to a group that is led here: refuse the lanes of that node's incarnations below this, release their sessions.
    /// Repeats itself until [`Membership::on_group_fenced`].
    ProposeFence {
        /// To which group.
        group: GroupId,
        /// Which node.
        node: NodeId,
        /// The lowest incarnation that is not dead.
        below: Incarnation,
    },
    /// The subscription index changes. Carry it out before what follows: a confirmation may be among that.
    Interest {
        /// Whose filter.
        source: SourceId,
        /// The filter.
        filter: Arc<str>,
        /// Its value before; 0 if it was not wanted.
        old: u32,
        /// Its value now; 0 if it is not wanted any more.
        new: u32,
    },
    /// Every node holds the version that was waited for. Like every acknowledgement, SUBACK needs a lease as well.
    Released {
        /// At the barrier of this group, or of this node.
        group: Option<GroupId>,
        /// As it was given.
        waiter: u64,
    },
    /// Incarnations of a node are dead: refuse their lanes, drop what goes to them. Carry it out before what follows: this
    /// node says next that it is done.
    Died {
        /// Which node.
        node: NodeId,
        /// The lowest incarnation that is not dead.
        below: Incarnation,
    },
    /// Nobody waits for an incarnation any more: lanes to it are settled.
    Lost {
        /// Which node.
        node: NodeId,
        /// Which of its incarnations.
        incarnation: Incarnation,
    },
    /// This process is registered; its standing is [`Standing::Joining`]. Lanes to it begin with the fences of
    /// [`Membership::directory`].
    Joined {
        /// As what.
        incarnation: Incarnation,
    },
    /// The cluster does not take this node. It is asked again; an operator must do something.
    JoinRefused {
        /// Why.
        reason: JoinRefusal,
    },
    /// A group that is led here is to be kept like this; see [`crate::node::Node::place`].
    Place {
        /// Which group.
        group: GroupId,
        /// In which it is led.
        term: u64,
        /// Where it is to be kept.
        target: Target,
    },
    /// Links are to be kept with the members as [`Membership::directory`] has them, and with nobody else.
    Members,
    /// Others are banned than before; see [`Directory::bans`].
    Bans,
    /// The cluster uses another feature level than this node has heard of. What cannot be done by it must not go on: the node ends
    /// before it applies anything else, see [`crate::feature_level::FeatureLevels::check`].
    FeatureLevel {
        /// Which.
        used: u32,
    },
    /// This node is no member any more, and never will be again: it serves nobody and ends. [`Standing::Dead`] came before.
    Removed,
    /// What the node may do has changed. After [`Standing::Dead`] it registers again when
    /// [`Membership::on_clients_closed`] says that nobody is left who could count on the dead incarnation.
    Standing(Standing),
}

/// An entry of the directory's log that this program cannot apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCommand {
    /// Its checksum was right, so these are the bytes that were written: not a disk's fault.
    #[error("it is no command: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// One of a later version.
    #[error("it is a command of a later version of the program")]
    Newer,
}

/// Why one cannot wait at a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// Try again later.
    #[error(transparent)]
    Full(#[from] BarrierFull),
    /// This node is no member now: its clients are to be closed.
    #[error("this node is not registered")]
    NotRegistered,
    /// The SUBSCRIBE comes again to the group's leader, with the resync.
    #[error("this node does not lead the group")]
    NotLed,
}

/// What became of a wish that only the leader of the directory can fulfil. Unless it is fulfilled or refused, ask again soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// It is so, by the committed directory.
    Fulfilled,
    /// It was proposed.
    Proposed,
    /// Another node leads: ask it.
    Elsewhere {
        /// Where it is.
        address: String,
    },
    /// Nobody leads as far as this node knows.
    NoLeader,
    /// It cannot be.
    Refused(WishRefusal),
}

/// Why a wish cannot be fulfilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WishRefusal {
    /// To be a member.
    #[error(transparent)]
    Join(#[from] JoinRefusal),
    /// That somebody is banned.
    #[error(transparent)]
    Ban(#[from] BanRefusal),
}

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

/// One node's part in the cluster.
#[derive(Debug)]
pub struct Membership {
    me: NodeId,
    record: MemberRecord,
    /// Names a registration; another for each.
    attempt: u64,
    limits: Limits,
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
    register_at_ns: u64,
    fence_at_ns: u64,
    next_token: u64,
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
            register_at_ns: 0,
            fence_at_ns: 0,
            next_token: 1,
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
    /// placement that the leader before may have acted upon.
    fn place(&mut self) {
        let drained = self.directory.drained();
        let wanted = |directory: &Directory, preferred: &BTreeMap<GroupId, NodeId>, group| {
            let placement = directory.placement(group)?.clone();
            Some(Target { placement, leader: preferred.get(&group).copied(), drained: drained.clone() })
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

    /// A node wants to be a member.
    pub fn admit(&mut self, record: MemberRecord) -> Wish {
        let Some(node) = NodeId::new(record.node) else { return Wish::NoLeader };
        if self.directory.members().contains_key(&node) {
            return Wish::Fulfilled;
        }
        match self.directory.check_admit(node, &record) {
            Err(reason) => Wish::Refused(reason.into()),
            Ok(()) => self.wish(Command::Admit(command::Admit { member: Some(record) })),
        }
    }

    /// An operator wants a member gone.
    pub fn remove(&mut self, node: NodeId) -> Wish {
        match self.directory.members().get(&node) {
            None => Wish::Fulfilled,
            Some(member) if member.leaves => Wish::Proposed,
            Some(_) => self.wish(Command::Remove(command::Departing { node: node.get() })),
        }
    }

    /// An operator wants a member to lead nothing and to have no clients, or wants that to be over.
    pub fn drain(&mut self, node: NodeId, on: bool) -> Wish {
        match self.directory.members().get(&node) {
            Some(member) if member.drains == on => Wish::Fulfilled,
            None | Some(_) => self.wish(Command::Drain(command::Drain { node: node.get(), on, incarnation: 0 })),
        }
    }

    /// An operator wants a voter of a group to lead it, or (`None`) whoever the cluster chooses.
    pub fn prefer(&mut self, group: GroupId, node: Option<NodeId>) -> Wish {
        if self.directory.chosen().get(&group).copied() == node {
            return Wish::Fulfilled;
        }
        let node = node.map_or(0, NodeId::get);
        self.wish(Command::Prefer(command::Prefer { group: group.0.into(), node }))
    }

    /// An operator wants somebody kept out, or let in again.
    pub fn ban(&mut self, ban: Ban) -> Wish {
        let used = self.directory.feature_level();
        if used < BANS_LEVEL {
            return Wish::Refused(BanRefusal::FeatureLevel { used }.into());
        }
        match self.directory.bans().check(&ban) {
            Err(reason) => Wish::Refused(reason.into()),
            Ok(()) if self.directory.bans().says(&ban) => Wish::Fulfilled,
            Ok(()) => self.wish(Command::Ban(ban)),
        }
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

    fn wish(&mut self, command: Command) -> Wish {
        if self.leading.is_some() {
            self.propose(command);
            return Wish::Proposed;
        }
        match self.leader.and_then(|leader| self.directory.members().get(&leader)) {
            Some(member) => Wish::Elsewhere { address: member.peer_address.clone() },
            None => Wish::NoLeader,
        }
    }

    /// Whether this node leads the directory, as far as it knows.
    #[must_use]
    pub fn leads_directory(&self) -> bool {
        self.leading.is_some()
    }

    // Groups

    /// The term in which this node leads a group; `None` if it does not. Who waited at the group's barrier under an earlier
    /// leadership is not told any more: the SUBSCRIBE comes again with the resync.
    pub fn on_group_role(&mut self, now_ns: u64, group: GroupId, term: Option<u64>) {
        let mut barrier = Barrier::of_group(self.limits.waiters_max);
        for (_, incarnation) in self.directory.not_lost() {
            barrier.on_joined(incarnation);
        }
        let state = self.group(group);
        if state.led.as_ref().map(|led| led.term) == term {
            return;
        }
        let supply = Supply::new(barrier, 0);
        let (receivers, leadership) = (Rounds::default(), Rounds::default());
        state.led = term.map(|term| {
            let (receivers_known, target) = (false, None);
            Led { term, supply, receivers_known, receivers, leadership, target }
        });
        self.start_group_rounds(now_ns);
        self.offer(now_ns);
        self.propose_fences(now_ns);
        self.settle(now_ns);
    }

    /// A replica here was restored at index `version`, instead of the entries before.
    pub fn on_group_restored(&mut self, group: GroupId, version: Version, entries: impl IntoIterator<Item = Entry>) {
        let recent_bytes_max = self.limits.recent_bytes_max;
        let source = Source::restored(SourceId::Group(group), version, entries);
        self.group(group).source = source.with_recent_bytes_max(recent_bytes_max);
    }

    /// The entry at index `version` changed a filter of the group; at every replica. Returns a version that holds it. Sent by
    /// [`Membership::flush`].
    ///
    /// # Panics
    /// The entries are not applied in their order.
    pub fn set_group_interest(&mut self, group: GroupId, version: Version, filter: &Arc<str>, value: u32) -> Version {
        self.group(group).source.set_at(version, filter, value)
    }

    /// Of the last change of a group's interest.
    #[must_use]
    pub fn group_version(&self, group: GroupId) -> Version {
        self.groups.get(&group).map_or(Version(0), |group| group.source.version())
    }

    /// Waits until every node holds `version` of a group that is led here; returns whether they all do already. Otherwise
    /// `waiter` comes back in [`Output::Released`].
    ///
    /// # Errors
    /// See [`WaitError`].
    pub fn wait_group(&mut self, group: GroupId, version: Version, waiter: u64) -> Result<bool, WaitError> {
        let led = self.groups.get_mut(&group).and_then(|group| group.led.as_mut()).ok_or(WaitError::NotLed)?;
        Ok(led.supply.barrier.wait(version, waiter)?)
    }

    /// By committed state of the group its fence is complete: everything of the node's incarnations below is refused, and all
    /// their sessions are released. Say it again after a restart.
    pub fn on_group_fenced(&mut self, group: GroupId, node: NodeId, below: Incarnation) {
        let known = self.fenced.entry((group, node)).or_default();
        *known = below.max(*known);
    }

    fn propose_fences(&mut self, now_ns: u64) {
        self.fence_at_ns = now_ns + FENCE_INTERVAL_NS;
        for group in self.led() {
            let unfenced = (self.directory.dead_not_lost().iter())
                .filter(|&(&incarnation, dead)| !self.is_fenced(group, dead.node, incarnation))
                .map(|(_, dead)| dead.node);
            for node in unfenced.collect::<BTreeSet<_>>() {
                let below = self.directory.fences().get(&node).copied().unwrap_or_default();
                self.outputs.push(Output::ProposeFence { group, node, below });
            }
        }
    }

    fn is_fenced(&self, group: GroupId, node: NodeId, incarnation: Incarnation) -> bool {
        self.fenced.get(&(group, node)).is_some_and(|&below| incarnation < below)
    }

    /// Two questions that a new leader must ask before it may count on what it knows; see [`Barrier::of_group`] and
    /// [`Source::next`]. The second is asked again after each `Join`.
    fn start_group_rounds(&mut self, now_ns: u64) {
        let as_of = self.newest_join();
        for id in self.led() {
            let (directory_token, group_token) = (self.token(), self.token());
            let Some(led) = self.groups.get_mut(&id).and_then(|group| group.led.as_mut()) else { continue };
            if !led.receivers_known && !led.receivers.is_under_way(now_ns, 0) {
                led.receivers.begin(Round { token: directory_token, begun_ns: now_ns, as_of });
                self.outputs.push(Output::StartDirectoryRead { token: directory_token });
            }
            if led.supply.as_of < as_of && !led.leadership.is_under_way(now_ns, as_of) {
                led.leadership.begin(Round { token: group_token, begun_ns: now_ns, as_of });
                self.outputs.push(Output::StartGroupRead { group: id, token: group_token });
            }
        }
    }

    // This node

    /// A filter of this node's transient sessions changes. Returns a version that holds it; `None` if the node is not
    /// registered, so that nobody may subscribe. Sent by [`Membership::flush`].
    pub fn set_node_interest(&mut self, filter: &Arc<str>, value: u32) -> Option<Version> {
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
        self.settle(now_ns);
    }

    fn register(&mut self, now_ns: u64) {
        let Some(leader) = self.leader else { return };
        if self.life.is_some() || self.closing || self.removed || now_ns < self.register_at_ns {
            return;
        }
        self.register_at_ns = now_ns + REGISTER_INTERVAL_NS;
        let newest = self.directory.members().get(&self.me).map_or(0, |member| member.newest.0);
        let join = Join { member: Some(self.record.clone()), attempt: self.attempt, newest };
        self.send(leader, Body::Join(join));
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
                HolderOutput::Changed(standing) => self.outputs.push(Output::Standing(standing)),
            }
        }
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
        let renewal = wire::Renewal { incarnation, sequence, dropped, fenced, settled, stops, connections };
        self.send(leader, Body::Renewal(renewal));
    }

    /// Time passed. Call about every 100 ms.
    pub fn tick(&mut self, now_ns: u64) {
        self.tick_leader(now_ns);
        self.register(now_ns);
        self.with_holder(|holder, outputs| holder.tick(now_ns, outputs));
        if now_ns >= self.fence_at_ns {
            self.propose_fences(now_ns);
        }
        self.start_group_rounds(now_ns);
        self.offer(now_ns);
        if let Some(life) = &mut self.life {
            life.supply.refill(&self.limits);
        }
        for led in self.groups.values_mut().filter_map(|group| group.led.as_mut()) {
            led.supply.refill(&self.limits);
        }
        self.settle(now_ns);
    }

    fn tick_leader(&mut self, now_ns: u64) {
        let Some(leading) = &mut self.leading else { return };
        let mut outputs = Vec::new();
        let lost = leading.tick(now_ns, &self.directory, &mut outputs);
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

    // Messages

    /// The link to a node is up, or up anew, or down (`None`). What was sent over it before may be lost; what comes over the
    /// new one comes after this call. No two links have the same id, and none is 0.
    pub fn on_link(&mut self, now_ns: u64, peer: NodeId, link: Option<LinkId>) {
        let closed = match link {
            Some(link) => self.links.insert(peer, link),
            None => self.links.remove(&peer),
        };
        if let Some(closed) = closed {
            self.table.on_link_closed(closed);
        }
        if let Some(life) = &mut self.life {
            life.supply.forget(peer);
        }
        for led in self.groups.values_mut().filter_map(|group| group.led.as_mut()) {
            led.supply.forget(peer);
        }
        if link.is_some() {
            // The other side may not have noticed, and go on where nothing arrived. Who leads which group is its to know.
            let at_peer = |source: &SourceId| !matches!(*source, SourceId::Node(node, _) if node != peer);
            let sources: Vec<_> = self.table.sources().filter(at_peer).collect();
            for source in sources {
                self.request(peer, source, self.table.have(source));
            }
        }
        self.offer(now_ns);
        self.settle(now_ns);
    }

    /// A message came from a node.
    ///
    /// # Errors
    /// No node of ours sends this: close the link.
    pub fn on_message(&mut self, now_ns: u64, peer: NodeId, message: Bytes) -> Result<(), Malformed> {
        if let Some(body) = wire::decode(message)? {
            self.on_body(now_ns, peer, body)?;
            self.settle(now_ns);
        }
        Ok(())
    }

    fn on_body(&mut self, now_ns: u64, peer: NodeId, body: Body) -> Result<(), Malformed> {
        match body {
            Body::Join(join) => {
                if join.member.as_ref().is_none_or(|member| member.node != peer.get()) {
                    return Err(Malformed::Invalid("a registration of another node"));
                }
                self.propose(Command::Join(join));
            }
            Body::Renewal(renewal) => self.on_renewal(now_ns, peer, &renewal),
            Body::Granted(granted) => {
                if self.incarnation() == Some(Incarnation(granted.incarnation)) {
                    let load = |load: &wire::Load| Some((NodeId::new(load.node)?, load.connections));
                    self.loads = granted.loads.iter().filter_map(load).collect();
                    self.with_holder(|holder, outputs| holder.on_granted(now_ns, granted.sequence, outputs));
                }
            }
            Body::Refused(refused) => {
                if self.incarnation() == Some(Incarnation(refused.incarnation)) {
                    self.end();
                }
            }
            Body::Offer(offer) => {
                let source = self.source_at(peer, offer.source)?;
                if self.table.follows(source) {
                    self.request(peer, source, self.table.have(source));
                }
            }
            Body::Request(request) => self.on_request(peer, request)?,
            Body::Update(update) => {
                self.source_at(peer, update.source)?;
                let link = if peer == self.me { Some(OWN_LINK) } else { self.links.get(&peer).copied() };
                let mut outputs = Vec::new();
                if let Some(link) = link {
                    self.table.on_update(link, update.try_into()?, &mut outputs);
                }
                self.on_table(peer, outputs);
            }
            Body::Confirm(confirm) => self.on_confirm(confirm)?,
        }
        Ok(())
    }

    /// A node has no interest but its own; a group's may come from anyone who led it.
    fn source_at(&self, peer: NodeId, record: Option<wire::SourceRecord>) -> Result<SourceId, Malformed> {
        match wire::source(record)? {
            SourceId::Node(node, _) if node != peer => Err(Malformed::Invalid("the interest of another node")),
            source => Ok(source),
        }
    }

    fn on_renewal(&mut self, now_ns: u64, peer: NodeId, renewal: &wire::Renewal) {
        let Some(leading) = &mut self.leading else { return };
        let mut outputs = Vec::new();
        leading.on_renewal(now_ns, peer, renewal, &self.directory, &mut outputs);
        self.lead(outputs);
        let incarnation = Incarnation(renewal.incarnation);
        let member = self.directory.members().get(&peer).filter(|member| member.living == Some(incarnation));
        if renewal.stops && member.is_some_and(|member| member.stops.is_none()) {
            let drain = command::Drain { node: peer.get(), on: true, incarnation: incarnation.0 };
            self.propose(Command::Drain(drain));
        }
    }

    fn on_request(&mut self, peer: NodeId, request: wire::Request) -> Result<(), Malformed> {
        let source = wire::source(request.source)?;
        let (receiver, have) = (Incarnation(request.receiver), request.have.map(Version));
        // Nobody else's publishes wait for what a node says to itself.
        let budget = if peer == self.me { usize::MAX } else { self.limits.feed_bytes_per_tick };
        if let Some((source, supply)) = self.supply(source) {
            supply.on_request(source, peer, receiver, have, budget);
        }
        Ok(())
    }

    fn on_confirm(&mut self, confirm: wire::Confirm) -> Result<(), Malformed> {
        let source = wire::source(confirm.source)?;
        let Some((_, supply)) = self.supply(source) else { return Ok(()) };
        let mut released = Vec::new();
        supply.barrier.on_confirmed(Incarnation(confirm.receiver), Version(confirm.version), &mut released);
        let group = match source {
            SourceId::Node(..) => None,
            SourceId::Group(group) => Some(group),
        };
        self.release(group, released);
        Ok(())
    }

    /// What this node sends to others of a source, if it does.
    fn supply(&mut self, source: SourceId) -> Option<(&Source, &mut Supply)> {
        match source {
            SourceId::Group(group) => {
                let Group { source, led } = self.groups.get_mut(&group)?;
                Some((source, &mut led.as_mut()?.supply))
            }
            SourceId::Node(node, incarnation) => {
                let life = self.life.as_mut()?;
                (node == self.me && incarnation == life.incarnation).then_some((&life.source, &mut life.supply))
            }
        }
    }

    fn request(&mut self, peer: NodeId, source: SourceId, have: Option<Version>) {
        if let Some(receiver) = self.incarnation() {
            let have = have.map(|version| version.0);
            let source = Some(source.into());
            self.send(peer, Body::Request(wire::Request { source, have, receiver: receiver.0 }));
        }
    }

    fn on_table(&mut self, peer: NodeId, outputs: Vec<TableOutput>) {
        for output in outputs {
            match output {
                TableOutput::Change { source, filter, old, new } => {
                    self.outputs.push(Output::Interest { source, filter, old, new });
                }
                TableOutput::Ask { source, have } => self.request(peer, source, have),
                TableOutput::Confirm { source, version } => {
                    if let Some(receiver) = self.incarnation() {
                        let source = Some(source.into());
                        let confirm = wire::Confirm { source, version: version.0, receiver: receiver.0 };
                        self.send(peer, Body::Confirm(confirm));
                    }
                }
            }
        }
    }

    /// To who lives and does not ask.
    fn offer(&mut self, now_ns: u64) {
        let reached = |&(node, _): &(NodeId, Incarnation)| node == self.me || self.links.contains_key(&node);
        let there: Vec<_> = self.directory.living().filter(reached).collect();
        let others: Vec<_> = there.iter().copied().filter(|&(node, _)| node != self.me).collect();
        let mut offers = Vec::new();
        if let Some(life) = &mut self.life {
            let source = SourceId::Node(self.me, life.incarnation);
            offers.extend(life.supply.offers(now_ns, &others).into_iter().map(|peer| (peer, source)));
        }
        for (&id, group) in &mut self.groups {
            if let Some(led) = &mut group.led {
                let source = SourceId::Group(id);
                offers.extend(led.supply.offers(now_ns, &there).into_iter().map(|peer| (peer, source)));
            }
        }
        for (peer, source) in offers {
            self.send(peer, Body::Offer(wire::Offer { source: Some(source.into()) }));
        }
    }

    fn send(&mut self, to: NodeId, body: Body) {
        if to == self.me {
            self.loopback.push_back(body);
        } else if self.links.contains_key(&to) {
            self.outputs.push(Output::Send { to, message: wire::encode(body) });
        }
    }

    /// The end of every input: what this node said to itself is heard, what changed is sent.
    fn settle(&mut self, now_ns: u64) {
        loop {
            while let Some(body) = self.loopback.pop_front() {
                self.on_body(now_ns, self.me, body).expect("what this program says is not malformed");
            }
            self.pump();
            if self.loopback.is_empty() {
                break;
            }
        }
        self.complete_interest(now_ns);
    }

    fn pump(&mut self) {
        let mut updates = Vec::new();
        if let Some(life) = &mut self.life {
            updates.extend(life.supply.next(&life.source, &self.limits));
        }
        for group in self.groups.values_mut() {
            if let Some(led) = &mut group.led {
                updates.extend(led.supply.next(&group.source, &self.limits));
            }
        }
        for (peer, update) in updates {
            self.send(peer, Body::Update(update.into()));
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
