//! A node's half of the lanes that lead to it.

use std::collections::BTreeMap;

use super::{Batch, LaneId};
use crate::identity::{Incarnation, NodeId};

/// Lanes that one origin may have here. A node has one an arbiter, the outboxes together one a group; there are no more of either.
const LANES_PER_ORIGIN_MAX: usize = 4096;

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Apply the items above this number, in their order, and answer the batch's last number.
    Apply {
        /// Items up to here were applied before.
        above: u64,
    },
    /// Apply nothing and answer this number: the answer was lost.
    Duplicate {
        /// The last that was applied.
        last: u64,
    },
    /// Apply nothing and say what is there: a batch before this one was lost.
    Gap {
        /// The last that was applied.
        last: u64,
    },
    /// Apply nothing and answer nothing: the incarnation is over.
    Fenced,
    /// Apply nothing and close the link: no node of ours sends this.
    Malformed,
}

#[derive(Debug, Clone, Copy)]
struct Lane {
    incarnation: Incarnation,
    last: u64,
}

/// The last number of every lane that leads to this incarnation of this node.
#[derive(Debug)]
pub struct Incoming {
    lanes: BTreeMap<(NodeId, LaneId), Lane>,
    /// The lowest incarnation of each node that is not refused. Outlives the lanes: a batch that was long on its way must not
    /// open a new one.
    fences: BTreeMap<NodeId, Incarnation>,
}

impl Incoming {
    /// `fences` are those of [`crate::directory::Directory::fences`] when this node's `Join` was applied here: a node that died
    /// before it is waited for by nobody here.
    #[must_use]
    pub fn new(fences: &BTreeMap<NodeId, Incarnation>) -> Self {
        Self { lanes: BTreeMap::new(), fences: fences.clone() }
    }

    /// A batch came over a lane.
    pub fn on_batch(&mut self, origin: NodeId, incarnation: Incarnation, lane: LaneId, batch: &Batch) -> Verdict {
        let Batch { previous, last, .. } = *batch;
        if last <= previous {
            return Verdict::Malformed;
        }
        if self.fences.get(&origin).is_some_and(|&fence| incarnation < fence) {
            return Verdict::Fenced;
        }
        let fresh = Lane { incarnation, last: 0 };
        let known = self.lanes.get(&(origin, lane)).copied();
        if known.is_none() && self.lanes_of(origin) >= LANES_PER_ORIGIN_MAX {
            return Verdict::Malformed;
        }
        let state = known.filter(|known| known.incarnation >= incarnation).unwrap_or(fresh);
        if state.incarnation > incarnation {
            return Verdict::Fenced; // A younger one of that node was here: this one is dead.
        }
        if last <= state.last {
            return Verdict::Duplicate { last: state.last };
        }
        if previous > state.last {
            return Verdict::Gap { last: state.last };
        }
        self.lanes.insert((origin, lane), Lane { incarnation, last });
        Verdict::Apply { above: state.last }
    }

    /// A `Dead` was applied: everything of that node below `fence` is refused from now on, and this node may say that it has
    /// fenced it.
    pub fn on_dead(&mut self, node: NodeId, fence: Incarnation) {
        let known = self.fences.entry(node).or_default();
        *known = fence.max(*known);
        self.lanes.retain(|&(origin, _), lane| origin != node || lane.incarnation >= fence);
    }

    fn lanes_of(&self, origin: NodeId) -> usize {
        self.lanes.range((origin, LaneId(0))..=(origin, LaneId(u32::MAX))).count()
    }
}
