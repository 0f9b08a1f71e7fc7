//! What is to change in where groups are kept, as nodes come and go.
//!
//! - A data group has [`Directory::voters`] voters, the directory three, and five from five nodes up; fewer, and always an
//!   odd number, where there are fewer nodes.
//! - A seat is given to nodes that live and do not leave: in zones that the group is not in yet first, then to whoever has
//!   the fewest seats. Nobody loses a seat for being down: it may come back, and what it has would have to be copied.
//! - Who leaves loses its seats to others, or, where there are no others, the group shrinks.
//! - Every member follows the directory. A data group that has fewer voters than it should is followed by as many other nodes
//!   as it lacks, if there are any.
//! - Seats move to make zones differ, and to share the load, only while everything else is where it is to be.
//!
//! One step changes one group, and of its voters replaces one at most. The answer depends on nothing but the directory and
//! what is settled, so a leader that is elected in the midst of it goes on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::directory::command::{Command, Departing};
use crate::directory::{Directory, Member, Placement};
use crate::identity::{GroupId, NodeId};

/// Members from which on five of them vote in the directory.
const MANY_MEMBERS: usize = 5;

/// What to propose to the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A group is to be kept elsewhere.
    Place(GroupId, Placement),
    /// No group counts on a member that leaves.
    Removed(NodeId),
}

impl Step {
    /// The command that says so.
    #[must_use]
    pub fn command(&self) -> Command {
        match self {
            Self::Place(group, placement) => Command::Placement(placement.command(*group)),
            Self::Removed(node) => Command::Removed(Departing { node: node.get() }),
        }
    }

    /// For the log, with the names that the directory has.
    #[must_use]
    pub fn describe(&self, directory: &Directory) -> String {
        let name = |node: &NodeId| {
            directory.members().get(node).map_or_else(|| node.to_string(), |member| member.name.clone())
        };
        let names = |nodes: &BTreeSet<NodeId>| nodes.iter().map(name).collect::<Vec<_>>().join(", ");
        match self {
            Self::Place(group, placement) if placement.learners.is_empty() => {
                format!("group {group} is to be kept by {}", names(&placement.voters))
            }
            Self::Place(group, Placement { voters, learners }) => {
                format!("group {group} is to be kept by {}, and copied to {}", names(voters), names(learners))
            }
            Self::Removed(node) => format!("no group counts on {} any more, which leaves", name(node)),
        }
    }
}

/// The next step, or `None` if all is as it should be for now.
///
/// `is_settled` says of a group that it is kept where the directory says, by the entry that said so last.
pub fn next_step(directory: &Directory, is_settled: impl Fn(GroupId) -> bool) -> Option<Step> {
    let view = View::new(directory);
    let groups = || directory.placements().iter().map(|(&group, placement)| (group, placement));
    let changed =
        |group, placed: &Placement, wanted: Placement| (*placed != wanted).then_some(Step::Place(group, wanted));

    // What must be: the directory first, by which everybody learns of the rest.
    let needed = |(group, placed): (GroupId, &Placement)| changed(group, placed, view.complete(group, placed));
    let directory_first = groups().filter(|(group, _)| *group == GroupId::DIRECTORY);
    let rest = groups().filter(|(group, _)| *group != GroupId::DIRECTORY);
    if let Some(step) = directory_first.chain(rest).find_map(needed) {
        return Some(step);
    }
    if let Some(node) = view.leaving.iter().copied().find(|&node| {
        groups().all(|(group, placed)| match group {
            // It hears there that it is removed.
            GroupId::DIRECTORY => !placed.voters.contains(&node) && is_settled(group),
            group => !placed.keeps(node) && is_settled(group),
        })
    }) {
        return Some(Step::Removed(node));
    }
    // What would be better.
    if !groups().all(|(group, _)| is_settled(group)) {
        return None;
    }
    groups().find_map(|(group, placed)| {
        let voters = view.with_more_zones(placed).or_else(|| view.with_less_load(group, placed))?;
        changed(group, placed, Placement { learners: view.learners(group, placed, &voters), voters })
    })
}

/// Who is to lead each group: whom an operator chose; else of its voters whoever leads the fewest, so that all lead about as
/// many. Who is drained is passed over while there is another. Whether they live does not matter here: while one is away another
/// leads, and nothing else changes.
#[must_use]
pub fn leaders(directory: &Directory) -> BTreeMap<GroupId, NodeId> {
    let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut leaders = BTreeMap::new();
    let is_drained = |node: &NodeId| directory.members().get(node).is_none_or(Member::is_drained);
    for (&group, &node) in directory.chosen().iter().filter(|(_, node)| !is_drained(node)) {
        *led.entry(node).or_default() += 1;
        leaders.insert(group, node);
    }
    for (&group, placed) in directory.placements() {
        if leaders.contains_key(&group) {
            continue;
        }
        let least =
            placed.voters.iter().copied().min_by_key(|node| (is_drained(node), led.get(node).copied().unwrap_or(0)));
        if let Some(node) = least {
            *led.entry(node).or_default() += 1;
            leaders.insert(group, node);
        }
    }
    leaders
}

struct View<'a> {
    directory: &'a Directory,
    /// Members that leave.
    leaving: BTreeSet<NodeId>,
    /// Seats that each node has in data groups.
    load: BTreeMap<NodeId, usize>,
}

impl<'a> View<'a> {
    fn new(directory: &'a Directory) -> Self {
        let leaves = |(&node, member): (&NodeId, &Member)| member.leaves.then_some(node);
        let leaving = directory.members().iter().filter_map(leaves).collect();
        let mut load = BTreeMap::new();
        for (_, placed) in directory.placements().iter().filter(|(group, _)| **group != GroupId::DIRECTORY) {
            placed.voters.iter().for_each(|&node| *load.entry(node).or_default() += 1);
        }
        Self { directory, leaving, load }
    }

    fn load(&self, node: NodeId) -> usize {
        self.load.get(&node).copied().unwrap_or(0)
    }

    /// The zone of a node; one that has none is a zone of its own.
    fn zone(&self, node: NodeId) -> Zone<'_> {
        match self.directory.members().get(&node).map(|member| member.zone.as_str()) {
            None | Some("") => Zone::Of(node),
            Some(zone) => Zone::Named(zone),
        }
    }

    fn stays(&self, node: NodeId) -> bool {
        self.directory.members().contains_key(&node) && !self.leaving.contains(&node)
    }

    /// Members that may be given a seat.
    fn candidates(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.directory.living().map(|(node, _)| node).filter(|&node| self.stays(node))
    }

    fn is_there(&self, node: NodeId) -> bool {
        self.candidates().any(|other| other == node)
    }

    /// How many are to vote once all members that stay live.
    fn seats(&self, group: GroupId) -> usize {
        let members = self.directory.members().keys().filter(|&&node| self.stays(node)).count();
        let wanted = match group {
            GroupId::DIRECTORY if members >= MANY_MEMBERS => 5,
            GroupId::DIRECTORY => 3,
            _ => usize::from(self.directory.voters()),
        };
        odd(wanted.min(members))
    }

    /// A placement that lacks nothing: those that leave are replaced, one in a step, and seats are filled.
    fn complete(&self, group: GroupId, placed: &Placement) -> Placement {
        let seats = self.seats(group);
        let mut voters = placed.voters.clone();
        let leaver = voters.iter().copied().find(|&node| !self.stays(node));
        if let Some(leaver) = leaver
            && let Some(new) = self.best(&voters, Some(leaver))
        {
            voters.remove(&leaver);
            voters.insert(new);
        } else if leaver.is_some() && voters.iter().filter(|&&node| self.stays(node)).count() >= seats {
            voters.retain(|&node| self.stays(node));
        }
        while voters.len() > seats
            && let Some(worst) = self.worst(&voters)
        {
            voters.remove(&worst);
        }
        // Those that do not live yet will have their seats when they do.
        let free = self.candidates().filter(|node| !voters.contains(node)).count();
        let filled = odd(seats.min(voters.len() + free));
        while voters.len() < filled
            && let Some(new) = self.best(&voters, None)
        {
            voters.insert(new);
        }
        Placement { learners: self.learners(group, placed, &voters), voters }
    }

    /// Of the directory every other member, and those that leave until they hear that they are removed. Of a group as many as
    /// it lacks voters: those are the next to get a vote, and have a copy meanwhile.
    fn learners(&self, group: GroupId, placed: &Placement, voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let others = self.directory.members().keys().copied().filter(|node| !voters.contains(node));
        if group == GroupId::DIRECTORY {
            return others.collect();
        }
        let mut others: Vec<NodeId> = others.filter(|&node| self.stays(node)).collect();
        others.sort_by_key(|&node| (!placed.learners.contains(&node), !self.is_there(node), self.load(node), node));
        others.truncate(usize::from(self.directory.voters()).saturating_sub(voters.len()));
        others.into_iter().collect()
    }

    /// Who is to be given a seat beside `voters`, `instead` of one of them.
    fn best(&self, voters: &BTreeSet<NodeId>, instead: Option<NodeId>) -> Option<NodeId> {
        let zones: BTreeSet<_> =
            voters.iter().filter(|&&node| Some(node) != instead).map(|&node| self.zone(node)).collect();
        let free = self.candidates().filter(|node| !voters.contains(node));
        free.min_by_key(|&node| (zones.contains(&self.zone(node)), self.load(node), node))
    }

    /// Who is to lose a seat: who leaves, then who is down, then who shares a zone, then who has most.
    fn worst(&self, voters: &BTreeSet<NodeId>) -> Option<NodeId> {
        voters.iter().copied().max_by_key(|&node| {
            (!self.stays(node), !self.is_there(node), self.shares_zone(voters, node), self.load(node), node)
        })
    }

    fn shares_zone(&self, voters: &BTreeSet<NodeId>, node: NodeId) -> bool {
        voters.iter().any(|&other| other != node && self.zone(other) == self.zone(node))
    }

    /// One voter exchanged, so that the group is in one zone more.
    fn with_more_zones(&self, placed: &Placement) -> Option<BTreeSet<NodeId>> {
        let mut voters = placed.voters.clone();
        let shared = voters.iter().copied().filter(|&node| self.is_there(node) && self.shares_zone(&voters, node));
        let given_up = shared.max_by_key(|&node| (self.load(node), node))?;
        let new = self.best(&voters, Some(given_up)).filter(|&node| !self.shares_zone(&voters, node))?;
        voters.remove(&given_up);
        voters.insert(new);
        Some(voters)
    }

    /// One seat moved from who has most to who has least, if that brings them nearer and no zone is lost.
    fn with_less_load(&self, group: GroupId, placed: &Placement) -> Option<BTreeSet<NodeId>> {
        // Where there are no three voters, groups on two nodes would depend on both of them.
        let is_short = placed.voters.len() == 1 && self.directory.voters() > 1;
        if group == GroupId::DIRECTORY || is_short {
            return None;
        }
        let voters = &placed.voters;
        let mut giving: Vec<NodeId> = voters.iter().copied().filter(|&node| self.is_there(node)).collect();
        giving.sort_by_key(|&node| (Reverse(self.load(node)), node));
        giving.into_iter().find_map(|most| {
            let mut rest = voters.clone();
            rest.remove(&most);
            let keeps_zones = |node: NodeId| self.shares_zone(voters, most) || !self.shares_zone(&rest, node);
            let free = self.candidates().filter(|&node| !voters.contains(&node) && keeps_zones(node));
            let least = free.min_by_key(|&node| (self.load(node), node))?;
            rest.insert(least);
            (self.load(least) + 1 < self.load(most)).then_some(rest)
        })
    }
}

/// The greatest odd number that is not above.
fn odd(number: usize) -> usize {
    if number.is_multiple_of(2) { number.saturating_sub(1) } else { number }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Zone<'a> {
    Named(&'a str),
    Of(NodeId),
}

#[cfg(test)]
mod tests;
