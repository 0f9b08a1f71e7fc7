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
    /// Groups say that they are fenced before they are.
    SkipFence,
    /// Groups forget how far the lanes to them got.
    ForgetLane,
    /// An entry of an outbox is let go before its targets have it.
    LoseOutbox,
    /// A connection that was replaced lets go of its successor's session.
    IgnoreEpoch,
    /// Retained messages are read at the replica here, whoever leads.
    ReadStale,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::SkipSync,
        Self::AcknowledgeEarly,
        Self::PushUnsynced,
        Self::SkipFence,
        Self::ForgetLane,
        Self::LoseOutbox,
        Self::IgnoreEpoch,
        Self::ReadStale,
    ];
}

/// Whether this mistake is made here.
#[cfg(not(any(test, feature = "simulation")))]
#[inline(always)]
pub(crate) const fn is_planted(_: Plant) -> bool {
    false
}

#[cfg(any(test, feature = "simulation"))]
pub(crate) use planting::{is_planted, plant};

#[cfg(any(test, feature = "simulation"))]
mod planting {
    use std::cell::Cell;

    use super::Plant;

    thread_local! {
        /// A simulation runs on one thread.
        static PLANTED: Cell<Option<Plant>> = const { Cell::new(None) };
    }

    pub(crate) fn is_planted(plant: Plant) -> bool {
        PLANTED.get() == Some(plant)
    }

    /// Makes this mistake, and no other, on this thread from here on.
    pub(crate) fn plant(plant: Option<Plant>) {
        PLANTED.set(plant);
    }
}
