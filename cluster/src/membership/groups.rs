//! The groups that have a replica here: their interest, barriers and fences.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{FENCE_INTERVAL_NS, Led, Membership, Output, Round, Rounds, Supply, WaitError};
use crate::identity::{GroupId, Incarnation, NodeId};
use crate::interest::{Barrier, Entry, Source, SourceId, Version};

impl Membership {
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
        self.has_changed = true;
    }

    /// The entry at index `version` changed a filter of the group; at every replica. Returns a version that holds it. Sent by
    /// [`Membership::flush`].
    ///
    /// # Panics
    /// The entries are not applied in their order.
    pub fn set_group_interest(&mut self, group: GroupId, version: Version, filter: &Arc<str>, value: u32) -> Version {
        self.has_changed = true;
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

    pub(super) fn propose_fences(&mut self, now_ns: u64) {
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

    pub(super) fn is_fenced(&self, group: GroupId, node: NodeId, incarnation: Incarnation) -> bool {
        self.fenced.get(&(group, node)).is_some_and(|&below| incarnation < below)
    }

    /// Two questions that a new leader must ask before it may count on what it knows; see [`Barrier::of_group`] and
    /// [`Source::next`]. The second is asked again after each `Join`.
    pub(super) fn start_group_rounds(&mut self, now_ns: u64) {
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
}
