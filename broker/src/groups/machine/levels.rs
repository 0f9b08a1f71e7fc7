//! Which feature level the groups have, and the end of a node whose program does not know it.
//!
//! The directory says what the cluster uses. Each group hears of it by an entry of its own log, which its leader proposes: so every replica
//! changes its ways at the same entry, and a program that does not know the level stops there, whatever it has heard of the directory.

use std::time::Duration;

use bytes::Bytes;
use kentongan_cluster::GroupId;

use super::Machine;
use crate::ending::Ending;
use crate::later;
use crate::replicated::command::{Command, Level};
use crate::router::Shared;

/// How often a group that lags behind the directory is told of its level.
const RAISE_INTERVAL: Duration = Duration::from_secs(1);

impl Machine {
    /// What the groups are to use.
    fn level_used(&self) -> u32 {
        match &self.member {
            Some(member) => member.directory().feature_level(),
            // Nobody else has to know it.
            None => later::feature_levels().max,
        }
    }

    pub(super) fn raise_groups(&mut self, now: Duration, shared: &Shared) {
        if now.saturating_sub(self.leveled) < RAISE_INTERVAL {
            return;
        }
        self.leveled = now;
        let level = self.level_used();
        for &group in &self.led {
            let has = self.groups.get(&group).map_or(level, |state| state.level());
            // As others may who look at the directory only: before the group has the level, it passes over it.
            #[cfg(any(test, feature = "simulation"))]
            if later::is_ahead() && level == later::feature_levels().max {
                shared.submitter.propose_encoded(group, later::new_entry());
            }
            if has < level {
                shared.submitter.propose(group, Command::Level(Level { level }));
            }
        }
    }

    /// The cluster is where this program cannot follow.
    pub(in crate::groups) fn end_over_level(&mut self, used: u32) {
        if let Err(unknown) = later::feature_levels().check(used) {
            self.end(Ending::FeatureLevel(unknown));
        }
    }

    fn end(&mut self, ending: Ending) {
        if self.ended.replace(ending).is_none() {
            tracing::error!("{ending}");
            (self.on_end)(ending);
        }
    }

    /// Whether all groups here, and the directory, have a level.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn has_level(&self, level: u32) -> bool {
        self.level_used() == level && self.groups.values().all(|state| state.level() == level)
    }

    /// Why nothing is applied any more.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn ended(&self) -> Option<Ending> {
        self.ended
    }
}

/// Applies an entry of the kind that only the program of trials knows. `false`: it is none of those.
pub(super) fn apply_ahead(group: GroupId, entry: &Bytes, level: u32) -> bool {
    let is_one = later::is_entry(entry);
    if is_one {
        assert_eq!(level, later::feature_levels().max, "{group} has not the level that this needs");
        tracing::info!(%group, "an entry of a later version is applied");
    }
    is_one
}
