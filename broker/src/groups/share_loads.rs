//! What other nodes are told of the loads of groups that are led here, for strategies that spare the members with most before them.
//!
//! A load changes with every message, so it is told from time to time and not each time: a node counts what it handed to the group
//! since. What is lost on its way is made up for by the next change.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::peers::wire::{ShareLoad, ShareLoads};

/// Shared subscriptions that one frame tells of.
const LOADS_A_FRAME_MAX: usize = 256;

/// What changed since it was told last.
#[derive(Debug, Default)]
pub(super) struct ChangedLoads(BTreeMap<u16, BTreeMap<Arc<str>, u32>>);

impl ChangedLoads {
    /// The least loaded of the group's members of a shared subscription has so many messages unacknowledged.
    pub(super) fn note(&mut self, group: u16, share: Arc<str>, least: u32) {
        self.0.entry(group).or_default().insert(share, least);
    }

    /// Another node leads the group: what it tells counts.
    pub(super) fn forget(&mut self, group: u16) {
        self.0.remove(&group);
    }

    /// What is to be told.
    pub(super) fn take(&mut self) -> Vec<ShareLoads> {
        let mut told = Vec::new();
        for (group, loads) in std::mem::take(&mut self.0) {
            let loads: Vec<_> =
                loads.into_iter().map(|(share, least)| ShareLoad { share: share.to_string(), least }).collect();
            let frames = loads.chunks(LOADS_A_FRAME_MAX);
            told.extend(frames.map(|loads| ShareLoads { group: u32::from(group), loads: loads.to_vec() }));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_told_once_as_it_was_last() {
        let mut changed = ChangedLoads::default();
        let share = |number: usize| Arc::from(format!("$share/g/{number:03}"));
        changed.note(3, share(0), 5);
        changed.note(3, share(0), 4);
        changed.note(4, share(0), 1);
        changed.forget(4);
        let load = ShareLoad { share: share(0).to_string(), least: 4 };
        assert_eq!(changed.take(), [ShareLoads { group: 3, loads: vec![load] }]);
        assert_eq!(changed.take(), []);
        (0..LOADS_A_FRAME_MAX + 1).for_each(|number| changed.note(3, share(number), 1));
        let frames: Vec<_> = changed.take().iter().map(|told| told.loads.len()).collect();
        assert_eq!(frames, [LOADS_A_FRAME_MAX, 1]);
    }
}
