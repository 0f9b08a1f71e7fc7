//! What the leader of the directory has beside the others.

use std::collections::BTreeMap;

use super::apart::Apart;
use super::wire::{Fenced, Load, Renewal, Settled};
use crate::directory::Directory;
use crate::directory::command::{Command, Departing, Drain, FeatureLevel};
use crate::fence::{Fences, Witness};
use crate::group::Target;
use crate::identity::GroupId;
use crate::identity::{Incarnation, NodeId};
use crate::lease::{GRANTED_NS, Granter, GranterOutput, ReadToken};
use crate::placement;

/// How often a loss is proposed until it is committed.
const PROPOSE_INTERVAL_NS: u64 = 300_000_000;

/// How often changes of where groups are kept are proposed.
const PLAN_INTERVAL_NS: u64 = 300_000_000;

/// How often a higher feature level is proposed until it is committed.
const RAISE_INTERVAL_NS: u64 = 300_000_000;

/// Steps that are proposed at once, one after the other.
const STEPS_MAX: usize = 32;

/// What was proposed so long ago and is not committed counts as lost, as what is proposed while leadership is handed over is.
const UNDER_WAY_NS_MAX: u64 = 60_000_000_000;

/// One leadership of the directory.
#[derive(Debug)]
pub(super) struct Leading {
    pub(super) term: u64,
    granter: Granter,
    fences: Fences,
    /// The granter's rounds under way, by the number that each has.
    rounds: BTreeMap<u64, ReadToken>,
    propose_lost_at_ns: u64,
    /// When this leader first knew those dead who were removed.
    removed_at_ns: BTreeMap<Incarnation, u64>,
    plan_at_ns: u64,
    raise_at_ns: u64,
    /// The entries of the directory by which groups are kept where they are, as their leaders say.
    settled: BTreeMap<GroupId, u64>,
    /// Clients of each incarnation that takes some, by its last renewal.
    loads: BTreeMap<(NodeId, Incarnation), u64>,
    pub(super) apart: Apart,
    /// What was said last of where the directory itself is to be kept.
    pub(super) target: Option<Target>,
    /// Members that are to be drained, or to go, by what was proposed here and is not committed, each until when that counts; `None` before
    /// the next tick.
    departing: BTreeMap<NodeId, Option<u64>>,
    /// A round was completed, so that whatever leaders before this one proposed is applied here, or never will be.
    has_all: bool,
}

impl Leading {
    pub(super) fn new(now_ns: u64, term: u64, directory: &Directory) -> Self {
        let granter = Granter::new(now_ns, directory);
        Self {
            term,
            granter,
            fences: Fences::new(),
            rounds: BTreeMap::new(),
            propose_lost_at_ns: 0,
            removed_at_ns: BTreeMap::new(),
            plan_at_ns: 0,
            raise_at_ns: 0,
            settled: BTreeMap::new(),
            loads: BTreeMap::new(),
            apart: Apart::default(),
            target: None,
            departing: BTreeMap::new(),
            has_all: false,
        }
    }

    /// Whether the directory here has all that was decided before this leadership.
    pub(super) fn has_all(&self) -> bool {
        self.has_all
    }

    /// Whether another member could take what this one leads, and its clients: those that are drained at the same moment count on each
    /// other else.
    pub(super) fn is_there_another(&self, node: NodeId, directory: &Directory) -> bool {
        directory.members().iter().any(|(other, member)| {
            *other != node && member.living.is_some() && !member.is_drained() && !self.departing.contains_key(other)
        })
    }

    /// It was proposed that a member is drained, or goes.
    pub(super) fn on_departure_proposed(&mut self, node: NodeId) {
        self.departing.insert(node, None);
    }

    /// From here on the directory says it.
    pub(super) fn on_applied(&mut self, command: &Command) {
        if let Command::Drain(Drain { node, incarnation: 0, .. }) | Command::Remove(Departing { node }) = *command {
            self.departing.retain(|departing, _| departing.get() != node);
        }
    }

    pub(super) fn on_renewal(
        &mut self,
        now_ns: u64,
        node: NodeId,
        renewal: &Renewal,
        directory: &Directory,
        outputs: &mut Vec<GranterOutput>,
    ) {
        let incarnation = Incarnation(renewal.incarnation);
        let dropped: Vec<_> = renewal.dropped.iter().copied().map(Incarnation).collect();
        self.fences.on_fenced(directory, Witness::Node(incarnation), &dropped);
        for Fenced { group, incarnation } in &renewal.fenced {
            // A group that there is not is one nobody asks for.
            if let Ok(group) = u16::try_from(*group) {
                self.fences.on_fenced(directory, Witness::Group(GroupId(group)), &[Incarnation(*incarnation)]);
            }
        }
        for &Settled { group, placed_at } in &renewal.settled {
            if let Some(group) =
                u16::try_from(group).ok().map(GroupId).filter(|&group| directory.placement(group).is_some())
            {
                let known = self.settled.entry(group).or_default();
                *known = placed_at.max(*known);
            }
        }
        match renewal.connections.filter(|_| directory.is_living(node, incarnation)) {
            Some(connections) => drop(self.loads.insert((node, incarnation), connections)),
            None => drop(self.loads.remove(&(node, incarnation))),
        }
        self.apart.on_report(now_ns, node, incarnation, &renewal.unheard);
        if !self.apart.is_left_out(node) {
            self.granter.on_renewal(now_ns, node, incarnation, renewal.sequence, outputs);
        }
    }

    /// Clients of each living node that takes some.
    pub(super) fn loads(&mut self, directory: &Directory) -> Vec<Load> {
        self.loads.retain(|&(node, incarnation), _| directory.is_living(node, incarnation));
        self.loads.iter().map(|(&(node, _), &connections)| Load { node: node.get(), connections }).collect()
    }

    /// What is to change in where groups are kept, in this order. `is_settled` is said of the directory itself.
    pub(super) fn plan(&mut self, now_ns: u64, directory: &Directory, is_settled: bool) -> Vec<Command> {
        if now_ns < self.plan_at_ns {
            return Vec::new();
        }
        self.plan_at_ns = now_ns + PLAN_INTERVAL_NS;
        // As it will be when these are committed, unless something comes between: then the next look finds that.
        let mut ahead = directory.clone();
        let mut commands = Vec::new();
        while commands.len() < STEPS_MAX {
            let step = placement::next_step(&ahead, |group| match group {
                GroupId::DIRECTORY => is_settled && ahead.placed_at(group) == directory.placed_at(group),
                group => self.settled.get(&group) == Some(&ahead.placed_at(group)),
            });
            let Some(step) = step else { break };
            tracing::info!("the next step of where groups are kept: {}", step.describe(&ahead));
            commands.push(step.command());
            ahead.apply(ahead.applied() + 1, step.command());
        }
        commands
    }

    /// The feature level that is to be used, if it is not: what the programs of all members know.
    pub(super) fn raise(&mut self, now_ns: u64, directory: &Directory) -> Option<Command> {
        let level = directory.level_known_to_all();
        if level <= directory.feature_level() || directory.cluster_id().is_none() || now_ns < self.raise_at_ns {
            return None;
        }
        self.raise_at_ns = now_ns + RAISE_INTERVAL_NS;
        Some(Command::FeatureLevel(FeatureLevel { level }))
    }

    /// The round of the granter goes by this number, which no other round of the process has.
    pub(super) fn on_round_begun(&mut self, token: u64, round: ReadToken) {
        self.rounds.insert(token, round);
    }

    pub(super) fn on_read(&mut self, now_ns: u64, token: u64, directory: &Directory, outputs: &mut Vec<GranterOutput>) {
        if let Some(round) = self.rounds.remove(&token) {
            // Those before it say nothing more.
            self.rounds = self.rounds.split_off(&token);
            self.has_all = true;
            self.granter.on_read(now_ns, round, directory, outputs);
        }
    }

    /// Time passed. Returns those whose loss is to be proposed.
    pub(super) fn tick(
        &mut self,
        now_ns: u64,
        me: NodeId,
        directory: &Directory,
        outputs: &mut Vec<GranterOutput>,
    ) -> Vec<(NodeId, Incarnation)> {
        self.departing.retain(|_, until_ns| now_ns < *until_ns.get_or_insert(now_ns + UNDER_WAY_NS_MAX));
        self.leave_out(now_ns, me, directory);
        self.granter.tick(now_ns, directory, outputs);
        self.note_removed(now_ns, directory);
        if now_ns < self.propose_lost_at_ns {
            return Vec::new();
        }
        let mut lost = self.fences.lost(directory);
        lost.retain(|(_, incarnation)| {
            self.removed_at_ns.get(incarnation).is_none_or(|&at_ns| now_ns >= at_ns + GRANTED_NS)
        });
        if !lost.is_empty() {
            self.propose_lost_at_ns = now_ns + PROPOSE_INTERVAL_NS;
        }
        lost
    }

    fn leave_out(&mut self, now_ns: u64, me: NodeId, directory: &Directory) {
        let loads = &self.loads;
        let clients = |node| {
            let living = directory.members().get(&node).and_then(|member| member.living);
            living.and_then(|incarnation| loads.get(&(node, incarnation)).copied()).unwrap_or(0)
        };
        for (left_out, other) in self.apart.judge(now_ns, me, directory, clients) {
            let name = |node| directory.members().get(&node).map_or("", |member| &member.name);
            tracing::warn!(
                "node {:?} and node {:?} do not hear each other, and the others wait for both: {0:?} is left out until they do; see \
                 to the network between them",
                name(left_out),
                name(other)
            );
        }
    }

    /// Who falls silent is dead once its lease is over; who is removed dies with a lease that may be a moment old. It may not have
    /// heard of its end, and acknowledge what matches here: if that is not waited for, what was subscribed to elsewhere since would
    /// miss a message that was acknowledged.
    fn note_removed(&mut self, now_ns: u64, directory: &Directory) {
        let dead = directory.dead_not_lost();
        self.removed_at_ns.retain(|incarnation, _| dead.contains_key(incarnation));
        for (&incarnation, _) in dead.iter().filter(|(_, dead)| directory.removed().contains(&dead.node)) {
            self.removed_at_ns.entry(incarnation).or_insert(now_ns);
        }
    }
}
