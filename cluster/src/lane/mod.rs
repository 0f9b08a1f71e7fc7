//! Lanes: what goes from a node to another, or to a group, once and in order.
//!
//! A lane leads from one arbiter of one incarnation of a node to one target. Its items are numbered; the target remembers
//! the last number it took and ignores what is not above it. A batch also names the number that *precedes* it: when an
//! earlier one was lost on its way, the target refuses what overtook it, and the origin sends again from the oldest that was
//! not answered.
//!
//! [`Outgoing`] is the origin's half, for any target; [`Incoming`] the half of a node. A group's half is part of its state.

mod incoming;
mod outgoing;

use bytes::Bytes;

pub use incoming::{Incoming, Verdict};
pub use outgoing::{LaneForgotten, Outgoing};

/// Names a lane among those of its node: the number of the arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u32);

/// What gathered in a lane. Kept as it is, and sent again as it is, until it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Number of the item before the first of this batch; 0 if there was none.
    pub previous: u64,
    /// Number of its last item.
    pub last: u64,
    /// How many items there are. Numbers may have gaps; then the items say them.
    pub items: u32,
    /// How often the origin had begun to send again. Comes back with a refusal, so that many batches which overtook the
    /// same one are answered by sending again once.
    pub round: u32,
    /// The items, as they were written.
    pub payload: Bytes,
}

#[cfg(test)]
mod tests;
