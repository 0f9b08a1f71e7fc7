//! When everyone knows.

use std::collections::BTreeMap;

use super::Version;
use crate::identity::Incarnation;

/// Too many wait already: refuse the subscription, it may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiters_max} subscriptions wait for other nodes already")]
pub struct BarrierFull {
    /// How many may.
    pub waiters_max: usize,
}

/// Tells when a version of one source is held by every node that joined.
///
/// A node counts from the moment its `Join` is applied here until it is *lost*: one that is merely dead, silent or cut off
/// may still hold a lease and acknowledge a publish that it matched against what it knew.
#[derive(Debug)]
pub struct Barrier {
    /// What each holds; 0 before its first confirmation.
    held: BTreeMap<Incarnation, Version>,
    waiters: BTreeMap<Version, Vec<u64>>,
    waiting: usize,
    waiters_max: usize,
    /// Whether it is known who has joined.
    receivers_known: bool,
}

impl Barrier {
    /// For the source of a node.
    #[must_use]
    pub fn of_node(waiters_max: usize) -> Self {
        Self { held: BTreeMap::new(), waiters: BTreeMap::new(), waiting: 0, waiters_max, receivers_known: true }
    }

    /// For the source of a group, at its new leader. Nothing passes before [`Barrier::on_receivers_known`].
    ///
    /// The leader before may have counted a joiner whose `Join` is not applied here yet: the joiner has the group's interest
    /// from that one, and holds a lease by it.
    #[must_use]
    pub fn of_group(waiters_max: usize) -> Self {
        Self { receivers_known: false, ..Self::of_node(waiters_max) }
    }

    /// The directory is applied here up to the index of a ReadIndex round that was begun after this node was elected.
    pub fn on_receivers_known(&mut self, released: &mut Vec<u64>) {
        self.receivers_known = true;
        self.release(released);
    }

    /// A `Join` was applied.
    pub fn on_joined(&mut self, incarnation: Incarnation) {
        self.held.entry(incarnation).or_default();
    }

    /// A `Lost` was applied.
    pub fn on_lost(&mut self, incarnation: Incarnation, released: &mut Vec<u64>) {
        self.held.remove(&incarnation);
        self.release(released);
    }

    /// A receiver holds a version. One whose `Join` is not applied here yet is ignored: it will be sent an update for that, and
    /// confirms again.
    pub fn on_confirmed(&mut self, incarnation: Incarnation, version: Version, released: &mut Vec<u64>) {
        let Some(held) = self.held.get_mut(&incarnation).filter(|held| **held < version) else { return };
        *held = version;
        self.release(released);
    }

    /// Waits until `version` is held by everyone; returns whether it is already. `waiter` comes back when it is.
    ///
    /// # Errors
    /// Too many wait.
    pub fn wait(&mut self, version: Version, waiter: u64) -> Result<bool, BarrierFull> {
        if self.passed() >= version {
            return Ok(true);
        }
        if self.waiting >= self.waiters_max {
            return Err(BarrierFull { waiters_max: self.waiters_max });
        }
        self.waiters.entry(version).or_default().push(waiter);
        self.waiting += 1;
        Ok(false)
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The version that everyone holds.
    fn passed(&self) -> Version {
        if !self.receivers_known {
            return Version(0);
        }
        self.held.values().copied().min().unwrap_or(Version(u64::MAX))
    }

    fn release(&mut self, released: &mut Vec<u64>) {
        let passed = self.passed();
        while let Some(first) = self.waiters.first_entry().filter(|first| *first.key() <= passed) {
            let waiters = first.remove();
            self.waiting -= waiters.len();
            released.extend(waiters);
        }
    }
}
