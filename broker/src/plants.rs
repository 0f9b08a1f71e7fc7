//! Mistakes that simulations must find, one at a time. In the product there are none: every question whether one is made is
//! answered when it is compiled.

/// A mistake, named by what goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A round of the log is not synced.
    SkipSync,
    /// PUBACK and PUBREC leave before the groups have answered.
    AcknowledgeEarly,
    /// A leader pushes to arbiters that have not said what they have.
    PushUnsynced,
    /// What an arbiter says of its clients goes ahead of what found no room, and its leader believes it.
    ResyncAhead,
    /// A leader tells the arbiters of its node something though they have heard of a later one.
    DeposedTells,
    /// Groups say that they are fenced before they are.
    SkipFence,
    /// Groups forget how far the lanes to them got.
    ForgetLane,
    /// An entry of an outbox is let go before its targets have it.
    LoseOutbox,
    /// What an outbox sends to a target is numbered one by one, anew by each leader.
    RenumberOutbox,
    /// A connection that was replaced lets go of its successor's session.
    IgnoreEpoch,
    /// The directory's leader grants leases from what it knows, without asking a majority.
    GrantWithoutQuorum,
    /// The directory's leader acts on a death that it has only proposed.
    DeadUncommitted,
    /// What a node wants is forgotten when the link to it is made anew.
    DropInterest,
    /// What the client has is sent again when a leader hears of it.
    ResendLiving,
    /// The log is purged for a checkpoint that is written only when the next one is due.
    PurgeEarly,
    /// A Will Message goes into the outbox twice.
    WillTwice,
    /// Retained messages are read at the replica here, whoever leads.
    ReadStale,
    /// A subscription of a persistent session goes over from its group to its node, or back, without counting as both meanwhile.
    ChangeAtOnce,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::SkipSync,
        Self::AcknowledgeEarly,
        Self::PushUnsynced,
        Self::ResyncAhead,
        Self::DeposedTells,
        Self::SkipFence,
        Self::ForgetLane,
        Self::LoseOutbox,
        Self::RenumberOutbox,
        Self::IgnoreEpoch,
        Self::GrantWithoutQuorum,
        Self::DeadUncommitted,
        Self::DropInterest,
        Self::ResendLiving,
        Self::PurgeEarly,
        Self::WillTwice,
        Self::ReadStale,
        Self::ChangeAtOnce,
    ];
}

/// Whether this mistake is made here.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
pub(crate) const fn is_planted(_: Plant) -> bool {
    false
}

/// What another node, known here by a number, wants of a filter.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
pub(crate) fn note_interest(_: (u64, u32), _: &std::sync::Arc<str>, _: u32) {}

/// What was noted of it, to be forgotten.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
pub(crate) fn take_interest(_: (u64, u32)) -> impl Iterator<Item = (std::sync::Arc<str>, u32)> {
    std::iter::empty()
}

#[cfg(any(test, feature = "simulation"))]
pub(crate) use planting::{is_planted, note_interest, plant, take_interest};

#[cfg(any(test, feature = "simulation"))]
mod planting {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::Plant;

    /// By (node, number of another node there), and filter.
    type Interest = BTreeMap<(u64, u32), BTreeMap<Arc<str>, u32>>;

    thread_local! {
        /// A simulation runs on one thread.
        static PLANTED: Cell<Option<Plant>> = const { Cell::new(None) };
        /// For [`Plant::DropInterest`].
        static INTEREST: RefCell<Interest> = const { RefCell::new(BTreeMap::new()) };
    }

    pub(crate) fn note_interest(of: (u64, u32), filter: &Arc<str>, wanted: u32) {
        if is_planted(Plant::DropInterest) {
            INTEREST.with_borrow_mut(|interest| {
                interest.entry(of).or_default().insert(Arc::clone(filter), wanted);
            });
        }
    }

    pub(crate) fn take_interest(of: (u64, u32)) -> impl Iterator<Item = (Arc<str>, u32)> {
        INTEREST.with_borrow_mut(|interest| interest.remove(&of).unwrap_or_default()).into_iter()
    }

    pub(crate) fn is_planted(plant: Plant) -> bool {
        PLANTED.get() == Some(plant)
    }

    /// Makes this mistake, and no other, on this thread from here on.
    pub(crate) fn plant(plant: Option<Plant>) {
        PLANTED.set(plant);
        INTEREST.with_borrow_mut(BTreeMap::clear);
    }
}
