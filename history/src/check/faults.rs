//! When the cluster was under attack: no promise of time runs while it is.

use std::collections::BTreeMap;

use crate::event::{Nanoseconds, What};
use crate::history::History;

/// The end of what does not end.
pub(crate) const NEVER: Nanoseconds = Nanoseconds::MAX;

/// Faults and crashes as intervals; what never healed ends at [`NEVER`].
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Injected faults, and times at which more nodes were down than the cluster bears; by their beginning.
    pub(crate) windows: Vec<(Nanoseconds, Nanoseconds)>,
    /// Node, crash, recovery.
    pub(crate) crashes: Vec<(u16, Nanoseconds, Nanoseconds)>,
}

impl Faults {
    pub(crate) fn read(history: &History) -> Self {
        let mut faults = Self::default();
        let mut open = BTreeMap::new();
        let mut down = BTreeMap::new();
        let mut nodes = std::collections::BTreeSet::new();
        for event in history.events() {
            match event.what {
                What::FaultBegan { fault, .. } => {
                    open.insert(fault, event.at);
                }
                What::FaultHealed { fault } => {
                    if let Some(began) = open.remove(&fault) {
                        faults.windows.push((began, event.at));
                    }
                }
                What::NodeCrashed { node } => {
                    nodes.insert(node);
                    down.entry(node).or_insert(event.at);
                }
                What::NodeRecovered { node } => {
                    if let Some(crashed) = down.remove(&node) {
                        faults.crashes.push((node, crashed, event.at));
                    }
                }
                What::Client { node, .. } => {
                    nodes.insert(node);
                }
                _ => {}
            }
        }
        faults.windows.extend(open.into_values().map(|began| (began, NEVER)));
        faults.crashes.extend(down.into_iter().map(|(node, crashed)| (node, crashed, NEVER)));
        // From three nodes on, every group bears the loss of one.
        let borne = usize::from(nodes.len() >= 3);
        faults.add_lost_majorities(borne);
        faults.windows.sort_unstable();
        faults
    }

    fn add_lost_majorities(&mut self, borne: usize) {
        let mut changes: Vec<(Nanoseconds, i32)> =
            self.crashes.iter().flat_map(|&(_, from, to)| [(from, 1), (to, -1)]).collect();
        changes.sort_unstable();
        let mut down = 0;
        let mut began = None;
        for (at, change) in changes {
            down += change;
            if down as usize > borne {
                began.get_or_insert(at);
            } else if let Some(from) = began.take() {
                self.windows.push((from, at));
            }
        }
    }

    /// Whether a fault was on at some time of an interval.
    pub(crate) fn overlap(&self, from: Nanoseconds, to: Nanoseconds) -> bool {
        self.windows.iter().any(|&(began, healed)| began <= to && healed >= from)
    }

    /// Whether anything was on, or down, at some time of an interval.
    pub(crate) fn disturb(&self, from: Nanoseconds, to: Nanoseconds) -> bool {
        self.overlap(from, to) || self.crashes.iter().any(|&(_, crashed, up)| crashed <= to && up >= from)
    }

    /// When the first fault that was on at some time of an interval may have begun to count.
    pub(crate) fn first_within(&self, from: Nanoseconds, to: Nanoseconds) -> Option<Nanoseconds> {
        let within = self.windows.iter().filter(|&&(began, healed)| began <= to && healed >= from);
        within.map(|&(began, _)| began.max(from)).min()
    }

    /// Whether that node was down at some time of an interval.
    pub(crate) fn node_down(&self, node: u16, from: Nanoseconds, to: Nanoseconds) -> bool {
        self.crashes.iter().any(|&(down, crashed, up)| down == node && crashed <= to && up >= from)
    }

    /// How often that node had crashed by a time.
    pub(crate) fn crashes_of(&self, node: u16, by: Nanoseconds) -> usize {
        self.crashes.iter().filter(|&&(down, crashed, _)| down == node && crashed <= by).count()
    }

    /// A deadline counted from `from`; if a fault falls between, counted anew from its heal.
    pub(crate) fn extend(&self, from: Nanoseconds, allowance: Nanoseconds) -> Nanoseconds {
        let mut deadline = from.saturating_add(allowance);
        for &(began, healed) in &self.windows {
            if began <= deadline && healed >= from {
                deadline = deadline.max(healed.saturating_add(allowance));
            }
        }
        deadline
    }
}
