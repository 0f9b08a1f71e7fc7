//! What must hold of replicas, whatever clients see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kentongan_cluster::pipeline::{Prepare, Prepared};
use kentongan_cluster::state::Spool;
use kentongan_cluster::{Configuration, GroupId, NodeId, StateMachine, Write};

use crate::drops;
use crate::ending::Ending;
use crate::groups::machine::Machine;
use crate::peers::status::NodeStatus;
use crate::replicated::Query;

/// Entries between two comparisons of whole states.
const DIGEST_EVERY: u64 = 64;

/// What all replicas applied, the first of them before the others.
pub(super) struct Replicas {
    /// Hash of the commands of each entry that had any.
    entries: BTreeMap<(GroupId, u64), (u64, usize)>,
    /// The state of a group after an entry.
    digests: BTreeMap<(GroupId, u64), (u64, usize)>,
    /// The latest entry of each group that anybody applied, and who did first.
    latest: BTreeMap<GroupId, (u64, usize)>,

    pub(super) compared: u64,
    pub(super) restored: u64,
}

/// FNV-1a, a word at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hash(pub(super) u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    pub(super) fn number(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.number(u64::from_le_bytes(*word));
        }
        for &byte in rest {
            self.number(u64::from(byte));
        }
    }
}

impl Replicas {
    pub(super) fn new() -> Self {
        Self { entries: BTreeMap::new(), digests: BTreeMap::new(), latest: BTreeMap::new(), compared: 0, restored: 0 }
    }

    fn entry(&mut self, node: usize, group: GroupId, index: u64, hash: u64) {
        let &mut (first, by) = self.entries.entry((group, index)).or_insert((hash, node));
        self.compared += u64::from(by != node);
        assert_eq!(first, hash, "entry {index} of group {group} is one thing on node {by} and another on node {node}");
    }

    /// Whether nobody else applied the entry before this node.
    fn is_first(&mut self, node: usize, group: GroupId, index: u64) -> bool {
        let latest = self.latest.entry(group).or_insert((index, node));
        if latest.0 < index {
            *latest = (index, node);
        }
        *latest == (index, node)
    }

    fn digest(&mut self, node: usize, group: GroupId, index: u64, digest: u64) {
        let &mut (first, by) = self.digests.entry((group, index)).or_insert((digest, node));
        assert_eq!(first, digest, "after entry {index} of group {group} node {by} and node {node} differ");
    }
}

/// A state machine that is looked at.
pub(super) struct Watched {
    node: usize,
    machine: Machine,
    replicas: Arc<Mutex<Replicas>>,
    /// The entry of each group whose commands are being applied, and their hash so far.
    applying: BTreeMap<GroupId, (u64, Hash)>,
}

impl Watched {
    pub(super) fn new(node: usize, machine: Machine, replicas: Arc<Mutex<Replicas>>) -> Self {
        Self { node, machine, replicas, applying: BTreeMap::new() }
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn status(&self) -> NodeStatus {
        self.machine.status()
    }

    pub(super) fn ended(&self) -> Option<Ending> {
        self.machine.ended()
    }

    pub(super) fn has_level(&self, level: u32) -> bool {
        self.machine.has_level(level)
    }

    pub(super) fn flush_counters(&self) {
        self.machine.flush_counters();
    }

    /// The entry before is complete.
    fn complete(&mut self, group: GroupId) {
        let Some((index, hash)) = self.applying.remove(&group).filter(|_| self.ended().is_none()) else {
            return;
        };
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.entry(self.node, group, index, hash.0);
        if index.is_multiple_of(DIGEST_EVERY)
            && let Some(state) = self.machine.groups.get(&group.0)
        {
            state.assert_invariants();
            replicas.digest(self.node, group, index, state.digest());
        }
    }

    /// Everything that was applied is compared.
    pub(super) fn complete_all(&mut self) {
        for group in self.applying.keys().copied().collect::<Vec<_>>() {
            self.complete(group);
        }
    }
}

impl StateMachine for Watched {
    type Query = Query;

    fn reread(&mut self, group: GroupId, last: u64) {
        self.machine.reread(group, last);
    }

    fn apply(&mut self, group: GroupId, index: u64, command: &Bytes, live: bool) {
        if self.ended().is_some() {
            return;
        }
        if self.applying.get(&group).is_none_or(|(applying, _)| *applying != index) {
            self.complete(group);
            self.applying.insert(group, (index, Hash::default()));
        }
        if let Some((_, hash)) = self.applying.get_mut(&group) {
            hash.bytes(command);
        }
        let noted = drops::noted();
        self.machine.apply(group, index, command, live);
        // What falls to a bound falls on every replica, and is told of once.
        if drops::noted() > noted
            && !self.replicas.lock().unwrap_or_else(PoisonError::into_inner).is_first(self.node, group, index)
        {
            drops::forget_after(noted);
        }
    }

    fn lead(&mut self, group: GroupId, term: u64) {
        self.machine.lead(group, term);
    }

    fn follow(&mut self, group: GroupId, term: u64, leader: Option<NodeId>) {
        self.machine.follow(group, term, leader);
    }

    fn query(&mut self, query: Query) {
        self.machine.query(query);
    }

    fn refuse(&mut self, query: Query) {
        self.machine.refuse(query);
    }

    fn flush(&mut self) {
        self.machine.flush();
    }

    fn tick(&mut self, now: Duration) {
        self.machine.tick(now);
    }

    fn members(&mut self, group: GroupId, configuration: &Configuration) {
        self.machine.members(group, configuration);
    }

    fn prepare(&self) -> Prepare {
        self.machine.prepare()
    }

    fn restore(&mut self, group: GroupId, index: u64, spool: &Arc<Spool>, prepared: Prepared) {
        self.complete(group);
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).restored += 1;
        self.machine.restore(group, index, spool, prepared);
    }

    fn checkpoint(&mut self, group: GroupId) -> Option<Vec<Write>> {
        self.complete(group);
        self.machine.checkpoint(group)
    }

    fn wants_checkpoint(&self) -> bool {
        self.machine.wants_checkpoint()
    }

    fn stored(&mut self) {
        self.machine.stored();
    }
}
