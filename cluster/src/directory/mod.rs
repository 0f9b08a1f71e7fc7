//! The directory: who the members are, which of them live, and where everything is kept.
//!
//! One Raft group, followed by every node. [`Directory::apply`] is deterministic; what it returns is carried out by whoever
//! it concerns and is safe to repeat.
//!
//! An incarnation of a node goes `(none) → living → dead → lost`, each step an entry of the log. *Dead* is final: the node
//! may come back, but as another incarnation. *Lost* says that nothing of the dead one can take effect any more; only then
//! do others go on without its confirmation. What outlives even that is one number a node, [`Directory::fences`]: the
//! lowest incarnation that is not dead.
//!
//! A member may be *drained*: it keeps what it keeps and votes, and leads nothing and has no clients as long as that lasts.
//!
//! A node is *admitted*, and a member from then on; it *leaves* once it is told to go, or another node takes the name that
//! it had when it died; it is *removed* when no group counts on it any more. That too is final: who removed a disk and
//! finds it again starts it empty, as another node.

pub mod bans;
pub mod command;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};

use crate::feature_level::{FeatureLevels, UnknownLevel};
use crate::identity::GroupId;
use crate::identity::{Incarnation, NodeId};
use bans::Bans;
use command::{Admit, Command, Departed, Drain, Form, Join, MemberRecord, Prefer};

pub use snapshot::SnapshotError;

/// Slots of a cluster: names hash to slots, slots belong to groups.
pub const SLOTS: usize = 4096;

/// Under which the directory stands in its checkpoint.
pub const STATE_KEY: &[u8] = b"directory";

/// Entries of its log that may be missing from a directory that is taken over, see [`Directory::begin_anew`].
const ENTRIES_MISSING_MAX: u64 = 1 << 20;

/// Nodes that vote in a group, where nothing else was decided.
pub const VOTERS: u16 = 3;

/// What a node is, and which incarnation of it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// A label.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where clients reach it.
    pub client_address: String,
    /// The feature levels that its program knew when it last registered.
    pub feature_levels: FeatureLevels,
    /// Whether that is for clients from anywhere, so that other nodes may send theirs there.
    pub is_advertised: bool,
    /// What it shares its fate with; empty if nobody said.
    pub zone: String,
    /// It is to go: groups are moved away from it.
    pub leaves: bool,
    /// An operator said that it is to lead nothing and to have no clients.
    pub drains: bool,
    /// The incarnation that lives and is about to end, by its own word.
    pub stops: Option<Incarnation>,
    /// The incarnation that lives.
    pub living: Option<Incarnation>,
    /// Its last incarnation, living or not; 0 before the first.
    pub newest: Incarnation,
    /// Of the `Join` that made `newest`.
    pub attempt: u64,
}

impl Member {
    fn new(record: MemberRecord) -> Self {
        Self {
            name: record.name,
            peer_address: record.peer_address,
            client_address: record.client_address,
            feature_levels: FeatureLevels { min: record.feature_level_min, max: record.feature_level },
            is_advertised: record.is_advertised,
            zone: record.zone,
            leaves: false,
            drains: false,
            stops: None,
            living: None,
            newest: Incarnation(0),
            attempt: 0,
        }
    }

    /// Whether it is to lead groups and to have clients, as far as it can.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.leaves || self.drains || self.stops.is_some()
    }

    /// As it said of itself when it registered last, or was admitted.
    #[must_use]
    pub fn record(&self, node: NodeId) -> MemberRecord {
        MemberRecord {
            node: node.get(),
            name: self.name.clone(),
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
            feature_level: self.feature_levels.max,
            is_advertised: self.is_advertised,
            zone: self.zone.clone(),
            feature_level_min: self.feature_levels.min,
        }
    }
}

/// A dead incarnation that is not lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    /// Whose it was.
    pub node: NodeId,
    /// Those that lived when it died and have not died since: each must say that it dropped its lanes.
    ///
    /// A witness that dies itself no longer counts, or two nodes that die together would wait for each other for ever. What
    /// it may still apply reaches only clients of a node that holds no lease.
    pub witnesses: BTreeSet<Incarnation>,
}

/// Where a group is to be kept.
///
/// It is committed before the group's leader moves towards it, so for a while the group's own configuration may differ.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Nodes that vote.
    pub voters: BTreeSet<NodeId>,
    /// Nodes that follow.
    pub learners: BTreeSet<NodeId>,
}

impl Placement {
    /// Whether a node is to have a replica.
    #[must_use]
    pub fn keeps(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }

    /// Every node that is to have a replica.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.voters.iter().chain(&self.learners).copied()
    }

    /// The command that says so.
    #[must_use]
    pub fn command(&self, group: GroupId) -> command::Placement {
        let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.get()).collect();
        command::Placement { group: group.0.into(), voters: ids(&self.voters), learners: ids(&self.learners) }
    }
}

/// Why a `Join` or an `Admit` changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// There is no cluster yet.
    #[error("no cluster has been formed here")]
    NotFormed,
    /// It did not know the newest incarnation of its node. Learn it and try again with a new attempt.
    #[error("the node has registered since, as incarnation {newest}")]
    Stale {
        /// The incarnation to name.
        newest: Incarnation,
    },
    /// Another node of that name lives: give this one another name, or stop that one.
    #[error("node {by} has this name and is alive: choose another name")]
    NameTaken {
        /// The one that has it.
        by: NodeId,
    },
    /// It was a member once. What it has on its disk nobody counts on: give it an empty one.
    #[error("this node was removed from the cluster: start it with an empty data directory, as a new node")]
    Removed,
    /// Its program is too old or too new for what the cluster uses.
    #[error(transparent)]
    FeatureLevel(#[from] UnknownLevel),
}

/// What follows from an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The cluster exists.
    Formed,
    /// A node lives.
    Joined {
        /// Which.
        node: NodeId,
        /// As what.
        incarnation: Incarnation,
        /// Of its `Join`.
        attempt: u64,
    },
    /// A `Join` changed nothing.
    Refused {
        /// Whose.
        node: NodeId,
        /// Of that `Join`.
        attempt: u64,
        /// Why.
        reason: JoinRefusal,
    },
    /// Groups fence it, nodes drop its lanes.
    Died {
        /// Which node.
        node: NodeId,
        /// Which of its incarnations.
        incarnation: Incarnation,
    },
    /// Nobody waits for it any more; its interest goes.
    Lost {
        /// Which node.
        node: NodeId,
        /// Which of its incarnations.
        incarnation: Incarnation,
    },
    /// A node is a member now.
    Admitted {
        /// Which.
        node: NodeId,
    },
    /// A member is to go.
    Leaves {
        /// Which.
        node: NodeId,
    },
    /// A node is no member any more.
    Removed {
        /// Which.
        node: NodeId,
    },
    /// A group is kept elsewhere.
    Placed {
        /// Which.
        group: GroupId,
    },
    /// A member is drained now, or not any more.
    Drained {
        /// Which.
        node: NodeId,
    },
    /// Another node is to lead a group.
    Preferred {
        /// Which group.
        group: GroupId,
    },
    /// Others are banned than before.
    Bans,
    /// The feature level was raised.
    FeatureLevel {
        /// To this.
        level: u32,
    },
}

/// The state of the directory after some entry of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The entry it is the state after.
    applied: u64,
    /// Empty before the cluster is formed.
    cluster_id: Vec<u8>,
    feature_level: u32,
    groups: u16,
    /// Of each data group, once there are as many nodes.
    voters: u16,
    members: BTreeMap<NodeId, Member>,
    dead: BTreeMap<Incarnation, Dead>,
    /// The lowest incarnation of each node that is not dead.
    fences: BTreeMap<NodeId, Incarnation>,
    placements: BTreeMap<GroupId, Placement>,
    /// The entries that said so.
    placed_at: BTreeMap<GroupId, u64>,
    /// Who is to lead a group, where an operator said so; one of its voters.
    chosen: BTreeMap<GroupId, NodeId>,
    removed: BTreeSet<NodeId>,
    /// The group of each slot; empty or [`SLOTS`] long.
    slots: Vec<GroupId>,
    /// The clusters whose place this one took, oldest first.
    succeeded: Vec<Vec<u8>>,
    bans: Bans,
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory {
    /// Before the first entry.
    #[must_use]
    pub fn new() -> Self {
        Self {
            applied: 0,
            cluster_id: Vec::new(),
            feature_level: 0,
            groups: 0,
            voters: VOTERS,
            members: BTreeMap::new(),
            dead: BTreeMap::new(),
            fences: BTreeMap::new(),
            placements: BTreeMap::new(),
            placed_at: BTreeMap::new(),
            chosen: BTreeMap::new(),
            removed: BTreeSet::new(),
            slots: Vec::new(),
            succeeded: Vec::new(),
            bans: Bans::default(),
        }
    }

    /// Applies the entry at `index`. Entries at or below the applied index change nothing.
    pub fn apply(&mut self, index: u64, command: Command) -> Vec<Effect> {
        if index <= self.applied {
            return Vec::new();
        }
        self.applied = index;
        let mut effects = Vec::new();
        match command {
            Command::Form(form) => self.form(form, &mut effects),
            Command::Join(join) => self.join(Incarnation(index), join, &mut effects),
            Command::Dead(departed) => self.on_dead(departed, &mut effects),
            Command::Lost(departed) => self.on_lost(departed, &mut effects),
            Command::Placement(placement) => self.place(placement, &mut effects),
            Command::FeatureLevel(raise) => self.raise_feature_level(raise.level, &mut effects),
            Command::Admit(admit) => self.admit(admit, &mut effects),
            Command::Remove(departing) => self.on_remove(departing.node, &mut effects),
            Command::Removed(departing) => self.on_removed(departing.node, &mut effects),
            Command::Drain(drain) => self.drain(drain, &mut effects),
            Command::Prefer(prefer) => self.prefer(prefer, &mut effects),
            Command::Ban(ban) => {
                if self.bans.apply(&ban) {
                    effects.push(Effect::Bans);
                }
            }
        }
        self.assert_invariants();
        effects
    }

    /// An entry that carries no command for the directory: Raft's own.
    pub fn skip(&mut self, index: u64) {
        self.applied = self.applied.max(index);
    }

    /// The entry it is the state after.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Sixteen bytes; `None` before the cluster is formed.
    #[must_use]
    pub fn cluster_id(&self) -> Option<&[u8]> {
        self.is_formed().then_some(&self.cluster_id)
    }

    /// What commands of all groups may use.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// The highest feature level that the programs of all members know. Those that are away count too: they come back with the
    /// program they went with.
    #[must_use]
    pub fn level_known_to_all(&self) -> u32 {
        self.members.values().map(|member| member.feature_levels.max).min().unwrap_or(0)
    }

    /// The data groups.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.groups).map(GroupId)
    }

    /// The group of a slot. `None` before the cluster is formed.
    #[must_use]
    pub fn group_of_slot(&self, slot: u16) -> Option<GroupId> {
        self.slots.get(usize::from(slot)).copied()
    }

    /// How many nodes vote in each data group once there are as many.
    #[must_use]
    pub fn voters(&self) -> u16 {
        self.voters
    }

    /// Where groups are to be kept, the directory among them.
    #[must_use]
    pub fn placements(&self) -> &BTreeMap<GroupId, Placement> {
        &self.placements
    }

    /// Where a group is to be kept. `None` before the cluster is formed.
    #[must_use]
    pub fn placement(&self, group: GroupId) -> Option<&Placement> {
        self.placements.get(&group)
    }

    /// The entry that said last where a group is to be kept; 0 before.
    #[must_use]
    pub fn placed_at(&self, group: GroupId) -> u64 {
        self.placed_at.get(&group).copied().unwrap_or(0)
    }

    /// Who is to lead which group, where an operator said so.
    #[must_use]
    pub fn chosen(&self) -> &BTreeMap<GroupId, NodeId> {
        &self.chosen
    }

    /// Who is kept out.
    #[must_use]
    pub fn bans(&self) -> &Bans {
        &self.bans
    }

    /// Members that are to lead nothing.
    #[must_use]
    pub fn drained(&self) -> BTreeSet<NodeId> {
        self.members.iter().filter(|(_, member)| member.is_drained()).map(|(&node, _)| node).collect()
    }

    /// Nodes that were members and will never be again.
    #[must_use]
    pub fn removed(&self) -> &BTreeSet<NodeId> {
        &self.removed
    }

    /// All nodes, living or not.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// The nodes that live, and as what.
    pub fn living(&self) -> impl Iterator<Item = (NodeId, Incarnation)> + '_ {
        self.members.iter().filter_map(|(&node, member)| member.living.map(|living| (node, living)))
    }

    /// Whether exactly this incarnation lives.
    #[must_use]
    pub fn is_living(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.members.get(&node).is_some_and(|member| member.living == Some(incarnation))
    }

    /// Incarnations that are dead and not lost, oldest first.
    #[must_use]
    pub fn dead_not_lost(&self) -> &BTreeMap<Incarnation, Dead> {
        &self.dead
    }

    /// Whether this incarnation of a node is over, and everybody has said so.
    #[must_use]
    pub fn is_lost(&self, node: NodeId, incarnation: Incarnation) -> bool {
        // One that this replica has not heard of yet lives.
        incarnation.0 <= self.applied && !self.is_living(node, incarnation) && !self.dead.contains_key(&incarnation)
    }

    /// Everyone that a barrier waits for: who lives, and who is dead but may still act.
    pub fn not_lost(&self) -> impl Iterator<Item = (NodeId, Incarnation)> + '_ {
        self.living().chain(self.dead.iter().map(|(&incarnation, dead)| (dead.node, incarnation)))
    }

    /// The lowest incarnation of each node that is not dead. Outlives everything else that is known of a node, so that a batch
    /// which was on its way for an hour is still refused.
    #[must_use]
    pub fn fences(&self) -> &BTreeMap<NodeId, Incarnation> {
        &self.fences
    }

    /// The clusters whose place this one took, by their ids: what their nodes have on their disks nobody counts on any more.
    #[must_use]
    pub fn succeeded(&self) -> &[Vec<u8>] {
        &self.succeeded
    }

    /// The directory of a new cluster of one node, which goes on from what an older one had: after its quorum was lost for good, or
    /// from a backup.
    ///
    /// No node of the old cluster is a member of the new one, or ever will be: what the groups have of their incarnations is fenced as
    /// if all had died just now. What the groups have may be newer than this directory, so incarnations of which it has
    /// not heard are fenced too, and the new node's will be above all of them.
    #[must_use]
    pub fn begin_anew(mut self, cluster_id: Vec<u8>, record: MemberRecord) -> Self {
        let Some(node) = NodeId::new(record.node) else { unreachable!("a node has an id") };
        let dead = self.dead.values().map(|dead| dead.node);
        let old: BTreeSet<NodeId> = self.members.keys().chain(self.fences.keys()).copied().chain(dead).collect();
        self.dead.clear();
        self.applied += ENTRIES_MISSING_MAX;
        for old in old {
            self.applied += 1;
            let last = Incarnation(self.applied);
            self.dead.insert(last, Dead { node: old, witnesses: BTreeSet::new() });
            self.fences.insert(old, Incarnation(last.0 + 1));
            self.removed.insert(old);
        }
        self.applied += 1;
        let ended = std::mem::replace(&mut self.cluster_id, cluster_id);
        self.succeeded.push(ended);
        self.members = BTreeMap::from([(node, Member::new(record))]);
        let alone = Placement { voters: BTreeSet::from([node]), learners: BTreeSet::new() };
        let groups: Vec<GroupId> = self.groups().chain([GroupId::DIRECTORY]).collect();
        self.placements = groups.iter().map(|&group| (group, alone.clone())).collect();
        self.placed_at = groups.iter().map(|&group| (group, self.applied)).collect();
        // Whom an operator chose to lead is none of the new cluster's nodes.
        self.chosen.clear();
        self.assert_invariants();
        self
    }

    fn is_formed(&self) -> bool {
        !self.cluster_id.is_empty()
    }

    fn form(&mut self, form: Form, effects: &mut Vec<Effect>) {
        let Ok(groups @ 1..) = u16::try_from(form.groups) else { return };
        if self.is_formed() || form.cluster_id.is_empty() {
            return;
        }
        self.cluster_id = form.cluster_id.to_vec();
        self.feature_level = form.feature_level;
        self.groups = groups;
        self.voters = u16::try_from(form.voters).ok().filter(|&voters| voters > 0).unwrap_or(VOTERS);
        self.slots = (0..SLOTS).map(|slot| GroupId((slot % usize::from(groups)) as u16)).collect();
        for record in form.members {
            if let Some(node) = NodeId::new(record.node) {
                self.members.insert(node, Member::new(record));
            }
        }
        effects.push(Effect::Formed);
        for placement in form.placements {
            self.place(placement, &mut Vec::new());
        }
    }

    fn join(&mut self, incarnation: Incarnation, join: Join, effects: &mut Vec<Effect>) {
        let Some((node, record)) = join.member.and_then(|record| Some((NodeId::new(record.node)?, record))) else {
            return;
        };
        if let Err(reason) = self.check_join(node, &record, Incarnation(join.newest)) {
            effects.push(Effect::Refused { node, attempt: join.attempt, reason });
            return;
        }
        // The lock on the disk proves that the process of the older incarnation is gone.
        if let Some(older) = self.members.get(&node).and_then(|member| member.living) {
            self.kill(node, older, effects);
        }
        let (leaves, drains) = self.members.get(&node).map_or((false, false), |member| (member.leaves, member.drains));
        let (living, newest, attempt) = (Some(incarnation), incarnation, join.attempt);
        let member = Member { living, newest, attempt, leaves, drains, ..Member::new(record) };
        self.members.insert(node, member);
        effects.push(Effect::Joined { node, incarnation, attempt: join.attempt });
    }

    fn check_join(&self, node: NodeId, record: &MemberRecord, known: Incarnation) -> Result<(), JoinRefusal> {
        self.check_admit(node, record)?;
        match self.members.get(&node).map(|member| member.newest).filter(|&newest| newest > known) {
            Some(newest) => Err(JoinRefusal::Stale { newest }),
            None => Ok(()),
        }
    }

    /// Whether the cluster would take a node as a member.
    ///
    /// # Errors
    /// Why not.
    pub fn check_admit(&self, node: NodeId, record: &MemberRecord) -> Result<(), JoinRefusal> {
        if !self.is_formed() {
            return Err(JoinRefusal::NotFormed);
        }
        if self.removed.contains(&node) {
            return Err(JoinRefusal::Removed);
        }
        FeatureLevels { min: record.feature_level_min, max: record.feature_level }.check(self.feature_level)?;
        let namesake = |(&other, member): (&NodeId, &Member)| {
            other != node && member.living.is_some() && member.name == record.name
        };
        match self.members.iter().find(|&entry| namesake(entry)) {
            Some((&by, _)) => Err(JoinRefusal::NameTaken { by }),
            None => Ok(()),
        }
    }

    /// A node that knows itself admitted may ask again: it is a member already.
    fn admit(&mut self, admit: Admit, effects: &mut Vec<Effect>) {
        let Some((node, record)) = admit.member.and_then(|record| Some((NodeId::new(record.node)?, record))) else {
            return;
        };
        if self.members.contains_key(&node) || self.check_admit(node, &record).is_err() {
            return;
        }
        // A disk was lost: nobody lives under that name, so this is its successor.
        for (&older, member) in &mut self.members {
            if member.name == record.name && !member.leaves {
                member.leaves = true;
                effects.push(Effect::Leaves { node: older });
            }
        }
        self.members.insert(node, Member::new(record));
        effects.push(Effect::Admitted { node });
    }

    /// Somebody must stay to keep what there is.
    fn on_remove(&mut self, node: u64, effects: &mut Vec<Effect>) {
        let Some(node) = NodeId::new(node) else { return };
        let others_stay = self.members.iter().any(|(&other, member)| other != node && !member.leaves);
        if let Some(member) = self.members.get_mut(&node).filter(|member| !member.leaves && others_stay) {
            member.leaves = true;
            effects.push(Effect::Leaves { node });
        }
    }

    fn on_removed(&mut self, node: u64, effects: &mut Vec<Effect>) {
        let Some(node) = NodeId::new(node) else { return };
        let Some(member) = self.members.get(&node).filter(|member| member.leaves) else { return };
        if let Some(living) = member.living {
            self.kill(node, living, effects);
        }
        self.members.remove(&node);
        self.chosen.retain(|_, chosen| *chosen != node);
        self.removed.insert(node);
        effects.push(Effect::Removed { node });
    }

    fn on_dead(&mut self, departed: Departed, effects: &mut Vec<Effect>) {
        let incarnation = Incarnation(departed.incarnation);
        if let Some(node) = NodeId::new(departed.node).filter(|&node| self.is_living(node, incarnation)) {
            self.kill(node, incarnation, effects);
        }
    }

    fn kill(&mut self, node: NodeId, incarnation: Incarnation, effects: &mut Vec<Effect>) {
        if let Some(member) = self.members.get_mut(&node) {
            member.living = None;
            member.stops = None;
        }
        for dead in self.dead.values_mut() {
            dead.witnesses.remove(&incarnation);
        }
        let witnesses = self.living().map(|(_, living)| living).collect();
        self.dead.insert(incarnation, Dead { node, witnesses });
        self.fences.insert(node, Incarnation(incarnation.0 + 1));
        effects.push(Effect::Died { node, incarnation });
    }

    fn on_lost(&mut self, departed: Departed, effects: &mut Vec<Effect>) {
        let incarnation = Incarnation(departed.incarnation);
        if let Some(dead) = self.dead.remove(&incarnation) {
            effects.push(Effect::Lost { node: dead.node, incarnation });
        }
    }

    fn place(&mut self, placement: command::Placement, effects: &mut Vec<Effect>) {
        let Ok(group) = u16::try_from(placement.group).map(GroupId) else { return };
        if !self.is_formed() {
            return;
        }
        let nodes = |ids: Vec<u64>| ids.into_iter().filter_map(NodeId::new).collect();
        let placed = Placement { voters: nodes(placement.voters), learners: nodes(placement.learners) };
        // Whoever has no vote cannot lead, and is not chosen any more when it has one again.
        if self.chosen.get(&group).is_some_and(|chosen| !placed.voters.contains(chosen)) {
            self.chosen.remove(&group);
        }
        self.placements.insert(group, placed);
        self.placed_at.insert(group, self.applied);
        effects.push(Effect::Placed { group });
    }

    fn drain(&mut self, drain: Drain, effects: &mut Vec<Effect>) {
        let Some((node, member)) = NodeId::new(drain.node).and_then(|node| Some((node, self.members.get_mut(&node)?)))
        else {
            return;
        };
        let before = member.is_drained();
        match Incarnation(drain.incarnation) {
            Incarnation(0) => member.drains = drain.on,
            incarnation if member.living == Some(incarnation) => member.stops = drain.on.then_some(incarnation),
            // It ended before this was committed.
            _ => {}
        }
        if member.is_drained() != before {
            effects.push(Effect::Drained { node });
        }
    }

    fn prefer(&mut self, prefer: Prefer, effects: &mut Vec<Effect>) {
        let Ok(group) = u16::try_from(prefer.group).map(GroupId) else { return };
        let before = self.chosen.get(&group).copied();
        match NodeId::new(prefer.node) {
            None => drop(self.chosen.remove(&group)),
            Some(node) if self.placement(group).is_some_and(|placed| placed.voters.contains(&node)) => {
                self.chosen.insert(group, node);
            }
            Some(_) => {}
        }
        if self.chosen.get(&group).copied() != before {
            effects.push(Effect::Preferred { group });
        }
    }

    fn raise_feature_level(&mut self, level: u32, effects: &mut Vec<Effect>) {
        if level > self.feature_level && level <= self.level_known_to_all() {
            self.feature_level = level;
            effects.push(Effect::FeatureLevel { level });
        }
    }

    fn assert_invariants(&self) {
        for (node, living) in self.living() {
            let fence = self.fences.get(&node).copied().unwrap_or_default();
            assert!(fence <= living, "an incarnation that lives is not fenced");
            assert!(!self.dead.contains_key(&living), "an incarnation that lives is not dead");
            assert!(!self.removed.contains(&node), "who was removed does not live");
        }
        for (group, chosen) in &self.chosen {
            let votes = self.placement(*group).is_some_and(|placed| placed.voters.contains(chosen));
            assert!(votes, "who is to lead a group has a vote in it");
        }
    }
}

#[cfg(test)]
mod tests;
