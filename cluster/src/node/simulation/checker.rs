//! What must be true of every run (Raft, figure 3), checked with every event.

use std::collections::BTreeMap;

use crate::group::Committed;
use crate::identity::{GroupId, NodeId};
use crate::log::LogId;

/// A broken promise, in words.
pub(super) type Violation = String;

/// FNV-1a over whatever is fed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest(pub(super) u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Digest {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    pub(super) fn add_number(&mut self, number: u64) {
        self.add(&number.to_le_bytes());
    }

    pub(super) fn of(what: &Committed) -> Self {
        let mut digest = Self::default();
        match what {
            Committed::Empty => digest.add(b"empty"),
            Committed::Configuration(configuration) => digest.add(&configuration.to_bytes()),
            Committed::Commands(commands) => commands.iter().for_each(|command| digest.add(command)),
        }
        digest
    }
}

/// What was handed out anywhere, and who led.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// By group and index: what was handed out first.
    history: BTreeMap<GroupId, BTreeMap<u64, (u64, Digest)>>,
    leaders: BTreeMap<(GroupId, u64), NodeId>,
}

impl Checker {
    /// The last index that any node handed out.
    pub(super) fn last(&self, group: GroupId) -> u64 {
        self.history.get(&group).and_then(|history| history.last_key_value()).map_or(0, |(&index, _)| index)
    }

    /// State Machine Safety: no two nodes hand out different entries at one index.
    pub(super) fn committed(
        &mut self,
        node: NodeId,
        group: GroupId,
        id: LogId,
        what: &Committed,
    ) -> Result<(), Violation> {
        let found = (id.term, Digest::of(what));
        let history = self.history.entry(group).or_default();
        let first = *history.entry(id.index).or_insert(found);
        if first != found {
            return Err(format!(
                "node {node} hands out {found:?} at {} of group {group}, another one {first:?}",
                id.index
            ));
        }
        Ok(())
    }

    /// Election Safety: one leader a term. Leader Completeness: it has everything that was ever handed out.
    pub(super) fn leads(
        &mut self,
        node: NodeId,
        group: GroupId,
        term: u64,
        handed_out: Option<u64>,
    ) -> Result<(), Violation> {
        let leader = *self.leaders.entry((group, term)).or_insert(node);
        if leader != node {
            return Err(format!("nodes {leader} and {node} both lead group {group} in term {term}"));
        }
        let Some(handed_out) = handed_out else {
            return Ok(());
        };
        let earlier = self.history.get(&group).into_iter().flatten().rev().find(|(_, (other, _))| *other < term);
        match earlier {
            Some((&index, _)) if index > handed_out => {
                Err(format!("node {node} leads group {group} in term {term} without index {index}"))
            }
            _ => Ok(()),
        }
    }
}

/// Log Matching: two logs that agree on the term at an index agree on everything before.
pub(super) fn logs_match(one: &BTreeMap<u64, (u64, u64)>, other: &BTreeMap<u64, (u64, u64)>) -> Result<(), Violation> {
    let mut agreed = false;
    for (index, (term, payload)) in one.iter().rev() {
        let Some((other_term, other_payload)) = other.get(index) else {
            continue;
        };
        agreed |= term == other_term;
        if agreed && (term, payload) != (other_term, other_payload) {
            return Err(format!("two logs agree on a later entry, but not on {index}"));
        }
    }
    Ok(())
}
