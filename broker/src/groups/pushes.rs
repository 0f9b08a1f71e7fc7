//! What the leaders here have for arbiters elsewhere, and which arbiters may be told anything at all.
//!
//! A leader pushes nothing to an arbiter before that has said what its clients have (its *resync*): what the leader before
//! sent may be under way still, and would be sent twice on a living connection.

use std::collections::{BTreeMap, BTreeSet};

use crate::peers::wire::{AskResync, EventKind, Forwarded, GroupEvent, GroupEvents, Resync};
use crate::peers::{PeerFull, Peers};
use crate::router::Shared;

#[derive(Debug, Default)]
struct Led {
    term: u64,
    /// Arbiters, by node, that have said what they have.
    synced: BTreeSet<(u64, u16)>,
    /// Nodes that are to say so again: not all of what was for them found room.
    behind: BTreeSet<u64>,
}

/// Of all groups that this node leads.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    led: BTreeMap<u16, Led>,
    /// By (node, its incarnation, group).
    gathered: BTreeMap<(u64, u64, u16), Vec<GroupEvent>>,
}

impl Pushes {
    /// This node leads `group` from here on.
    pub(super) fn lead(&mut self, group: u16, term: u64) {
        self.led.insert(group, Led { term, ..Led::default() });
    }

    /// It does so no more.
    pub(super) fn follow(&mut self, group: u16) {
        self.led.remove(&group);
        self.gathered.retain(|&(.., gathered), _| gathered != group);
    }

    /// The link to a node broke: what was said may be lost.
    pub(super) fn on_link_broken(&mut self, node: u64) {
        for led in self.led.values_mut() {
            led.synced.retain(|&(synced, _)| synced != node);
        }
        self.gathered.retain(|&(to, ..), _| to != node);
    }

    pub(super) fn is_synced(&self, group: u16, node: u64, arbiter: u16) -> bool {
        self.led.get(&group).is_some_and(|led| led.synced.contains(&(node, arbiter)))
    }

    /// An arbiter has said what it has. `None`: to another leader than this.
    pub(super) fn synced(&mut self, node: u64, resync: &Resync) -> Option<u16> {
        let group = u16::try_from(resync.group).ok()?;
        let led = self.led.get_mut(&group).filter(|led| led.term == resync.term)?;
        led.synced.insert((node, u16::try_from(resync.arbiter).ok()?));
        Some(group)
    }

    /// For an arbiter of another node, when the turn ends.
    pub(super) fn push(&mut self, group: u16, node: u64, incarnation: u64, events: Vec<EventKind>) {
        if self.led.get(&group).is_some_and(|led| !led.behind.contains(&node)) {
            let gathered = self.gathered.entry((node, incarnation, group)).or_default();
            gathered.extend(events.into_iter().map(|kind| GroupEvent { kind: Some(kind) }));
        }
    }

    /// Sends what gathered. Where there is no room it is let go, and the node asked to say what it has once there is.
    pub(super) fn flush(&mut self, shared: &Shared) {
        let Some(cluster) = &shared.cluster else {
            return;
        };
        for ((node, incarnation, group), events) in std::mem::take(&mut self.gathered) {
            let Some(led) = self.led.get_mut(&group) else {
                continue;
            };
            let events = GroupEvents { group: u32::from(group), term: led.term, incarnation, events };
            if let Err(PeerFull) = cluster.peers.forward(node, Forwarded::Events(events)) {
                led.behind.insert(node);
                led.synced.retain(|&(synced, _)| synced != node);
            }
        }
    }

    /// Now and then: asks those that are behind.
    pub(super) fn ask_behind(&mut self, peers: &dyn Peers) {
        for (&group, led) in &mut self.led {
            let ask = AskResync { group: u32::from(group), term: led.term };
            led.behind.retain(|&node| peers.forward(node, Forwarded::AskResync(ask)).is_err());
        }
    }
}
