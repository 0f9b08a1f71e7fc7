//! The way of messages out of the outboxes of the groups that are led here.
//!
//! A lane leads from a group's outbox to one target; a message's number in it is its position in the outbox. So a target
//! knows, whoever leads the group, what it has had. A new leader begins at the oldest entry; numbers have gaps, because it
//! may match differently than the one before.
//!
//! Who gets an entry of shared subscriptions is proposed and waited for as if it were one more lane; what is picked comes
//! back as entries of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::BytesMut;
use kentongan_cluster::lane::{Batch, Outgoing};

use crate::peers::PIECE_BYTES;
use crate::plants::{Plant, is_planted};
use crate::replicated::command::PickedEntry;
use crate::replicated::submitter::OutboxTarget;
use crate::subscription::NodeNumber;

/// Bytes that may wait in one lane before nothing more should be put into it.
const LANE_BYTES_MAX: usize = 8 * 1024 * 1024;

#[derive(Debug)]
struct Lane {
    outgoing: Outgoing,
    /// Numbers, each with its position in the outbox, which is the same.
    unanswered: VecDeque<(u64, u64)>,
    /// Something was answered since this was last asked.
    progress: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Outboxes {
    batch_bytes_max: usize,
    /// By (origin, target).
    lanes: BTreeMap<(u16, OutboxTarget), Lane>,
    /// Entries under way: lanes that have not answered.
    routing: HashMap<(u16, u64), usize>,
    routed: BTreeMap<u16, Vec<u64>>,
    touched: BTreeSet<(u16, OutboxTarget)>,
    /// What was proposed for shared subscriptions and is not committed.
    picking: BTreeMap<(u16, u64), PickedEntry>,
    /// What is to be proposed, by the groups.
    picked: BTreeMap<u16, Vec<PickedEntry>>,
}

impl Default for Outboxes {
    fn default() -> Self {
        Self {
            batch_bytes_max: PIECE_BYTES,
            lanes: BTreeMap::new(),
            routing: HashMap::new(),
            routed: BTreeMap::new(),
            touched: BTreeSet::new(),
            picking: BTreeMap::new(),
            picked: BTreeMap::new(),
        }
    }
}

impl Outboxes {
    /// Nothing is added to a batch of so many bytes.
    pub(super) fn cut_at(&mut self, batch_bytes_max: usize) {
        self.batch_bytes_max = batch_bytes_max;
    }

    /// The entry at `position` goes into as many lanes; `picked` says who else is to get it.
    pub(super) fn begin(&mut self, origin: u16, position: u64, lanes: usize, picked: Option<PickedEntry>) {
        let answers = lanes + usize::from(picked.is_some());
        if answers == 0 {
            self.routed.entry(origin).or_default().push(position);
            return;
        }
        self.routing.insert((origin, position), answers);
        if let Some(picked) = picked {
            self.picking.insert((origin, position), picked.clone());
            self.picked.entry(origin).or_default().push(picked);
        }
    }

    /// What was picked for the entry at `position`, by whomever, is committed.
    pub(super) fn on_picked(&mut self, origin: u16, position: u64) {
        if self.picking.remove(&(origin, position)).is_some() {
            settle(&mut self.routing, &mut self.routed, origin, position);
        }
    }

    /// What is to be proposed of who gets what.
    pub(super) fn take_picked(&mut self) -> BTreeMap<u16, Vec<PickedEntry>> {
        std::mem::take(&mut self.picked)
    }

    /// Puts it into one of them. `write` is told its number there.
    pub(super) fn push(
        &mut self,
        origin: u16,
        target: OutboxTarget,
        position: u64,
        write: impl FnOnce(u64, &mut BytesMut),
    ) {
        let outgoing = || Outgoing::new(LANE_BYTES_MAX, self.batch_bytes_max);
        let new = || Lane { outgoing: outgoing(), unanswered: VecDeque::new(), progress: true };
        let lane = self.lanes.entry((origin, target)).or_insert_with(new);
        let number = if is_planted(Plant::RenumberOutbox) { lane.outgoing.next_number() } else { position };
        lane.outgoing.push_at(number, |out| write(number, out));
        lane.unanswered.push_back((number, position));
        self.touched.insert((origin, target));
    }

    /// A target has everything up to `number`.
    pub(super) fn on_answer(&mut self, origin: u16, target: OutboxTarget, number: u64) {
        let Some(lane) = self.lanes.get_mut(&(origin, target)) else {
            return;
        };
        lane.outgoing.on_answer(number);
        if lane.outgoing.is_trying() {
            self.touched.insert((origin, target));
        }
        while let Some((_, position)) = lane.unanswered.pop_front_if(|(answered, _)| *answered <= number) {
            lane.progress = true;
            settle(&mut self.routing, &mut self.routed, origin, position);
        }
    }

    /// A target refused a batch, for one before it was lost.
    pub(super) fn on_gap(&mut self, origin: u16, target: OutboxTarget, round: u32, last: u64) {
        // One that has forgotten what it answered is another process: it will be found lost.
        if let Some(lane) = self.lanes.get_mut(&(origin, target))
            && lane.outgoing.on_gap(round, last).is_ok()
        {
            self.touched.insert((origin, target));
        }
    }

    /// Nobody there waits for anything any more.
    pub(super) fn on_node_lost(&mut self, node: NodeNumber) {
        let lost = |(_, target): &(u16, OutboxTarget)| *target == OutboxTarget::Node(node);
        for ((origin, _), lane) in self.lanes.extract_if(.., |key, _| lost(key)) {
            for (_, position) in lane.unanswered {
                settle(&mut self.routing, &mut self.routed, origin, position);
            }
        }
        self.touched.retain(|key| !lost(key));
    }

    /// What was sent to a target may be lost.
    pub(super) fn reset(&mut self, target: OutboxTarget) {
        for (&key, lane) in self.lanes.iter_mut().filter(|((_, other), _)| *other == target) {
            lane.outgoing.on_reset();
            self.touched.insert(key);
        }
    }

    /// Another node leads the group: its outbox is that one's to route.
    pub(super) fn forget(&mut self, origin: u16) {
        self.lanes.retain(|&(other, _), _| other != origin);
        self.routing.retain(|&(other, _), _| other != origin);
        self.touched.retain(|&(other, _)| other != origin);
        self.picking.retain(|&(other, _), _| other != origin);
        self.picked.remove(&origin);
        self.routed.remove(&origin);
    }

    /// Lanes without progress since this was asked last try again. What was picked is proposed again: a proposal may be lost,
    /// and the first one that is committed counts.
    pub(super) fn retry(&mut self) {
        self.picked.clear();
        for (&(origin, _), picked) in &self.picking {
            self.picked.entry(origin).or_default().push(picked.clone());
        }
        for (&key, lane) in &mut self.lanes {
            if !lane.unanswered.is_empty() && !std::mem::take(&mut lane.progress) {
                lane.outgoing.on_silence();
                self.touched.insert(key);
            }
        }
    }

    /// There was no room for a batch: it is tried again by [`Self::retry`].
    pub(super) fn hold(&mut self, origin: u16, target: OutboxTarget) {
        if let Some(lane) = self.lanes.get_mut(&(origin, target)) {
            lane.outgoing.on_reset();
        }
    }

    /// The lanes that have something to send.
    pub(super) fn take_touched(&mut self) -> BTreeSet<(u16, OutboxTarget)> {
        std::mem::take(&mut self.touched)
    }

    /// The next batch of a lane.
    pub(super) fn next_batch(&mut self, origin: u16, target: OutboxTarget) -> Option<Batch> {
        self.lanes.get_mut(&(origin, target))?.outgoing.next_batch()
    }

    /// Entries that every lane has answered for, by their groups.
    pub(super) fn take_routed(&mut self) -> BTreeMap<u16, Vec<u64>> {
        std::mem::take(&mut self.routed)
    }
}

fn settle(routing: &mut HashMap<(u16, u64), usize>, routed: &mut BTreeMap<u16, Vec<u64>>, origin: u16, position: u64) {
    let Some(remaining) = routing.get_mut(&(origin, position)) else {
        return;
    };
    *remaining -= 1;
    if *remaining == 0 {
        routing.remove(&(origin, position));
        routed.entry(origin).or_default().push(position);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;

    use super::*;

    const GROUP: OutboxTarget = OutboxTarget::Group(5);
    const NODE: OutboxTarget = OutboxTarget::Node(1);

    fn post(outboxes: &mut Outboxes, position: u64, targets: &[OutboxTarget]) {
        outboxes.begin(3, position, targets.len(), None);
        for &target in targets {
            outboxes.push(3, target, position, |_, out| out.put_u8(position as u8));
        }
    }

    #[test]
    fn an_entry_is_routed_when_every_lane_answered() {
        let mut outboxes = Outboxes::default();
        post(&mut outboxes, 4, &[GROUP, NODE]);
        post(&mut outboxes, 9, &[GROUP]);
        post(&mut outboxes, 10, &[]);
        outboxes.on_answer(3, GROUP, 9);
        assert_eq!(outboxes.take_routed(), BTreeMap::from([(3, vec![10, 9])]));
        outboxes.on_answer(3, NODE, 4);
        assert_eq!(outboxes.take_routed(), BTreeMap::from([(3, vec![4])]));
    }

    #[test]
    fn what_a_lost_node_did_not_answer_is_settled() {
        let mut outboxes = Outboxes::default();
        post(&mut outboxes, 4, &[NODE]);
        outboxes.on_node_lost(1);
        assert_eq!(outboxes.take_routed(), BTreeMap::from([(3, vec![4])]));
        assert!(outboxes.next_batch(3, NODE).is_none());
    }

    #[test]
    fn a_lane_without_progress_sends_everything_again() {
        let mut outboxes = Outboxes::default();
        post(&mut outboxes, 4, &[GROUP]);
        let first = outboxes.next_batch(3, GROUP).expect("a batch");
        assert_eq!((first.previous, first.last), (0, 4));
        outboxes.take_touched();
        outboxes.retry();
        assert!(outboxes.take_touched().is_empty(), "it has just begun");
        outboxes.retry();
        assert_eq!(outboxes.take_touched(), BTreeSet::from([(3, GROUP)]));
        assert_eq!(outboxes.next_batch(3, GROUP).map(|batch| (batch.previous, batch.last)), Some((0, 4)));
        outboxes.on_answer(3, GROUP, 4);
        assert!(outboxes.next_batch(3, GROUP).is_none());
    }

    #[test]
    fn an_entry_of_shared_subscriptions_is_routed_when_its_picks_are_committed_too() {
        let mut outboxes = Outboxes::default();
        let picked = PickedEntry { position: 4, ..PickedEntry::default() };
        outboxes.begin(3, 4, 1, Some(picked.clone()));
        outboxes.push(3, GROUP, 4, |_, out| out.put_u8(4));
        assert!(outboxes.next_batch(3, GROUP).is_some(), "others do not wait for that");
        let proposed = BTreeMap::from([(3, vec![picked])]);
        assert_eq!(outboxes.take_picked(), proposed);
        assert!(outboxes.take_picked().is_empty());
        outboxes.on_answer(3, GROUP, 4);
        assert!(outboxes.take_routed().is_empty());
        outboxes.retry();
        assert_eq!(outboxes.take_picked(), proposed, "the proposal may be lost");
        outboxes.on_picked(3, 4);
        outboxes.on_picked(3, 4);
        assert_eq!(outboxes.take_routed(), BTreeMap::from([(3, vec![4])]));
        outboxes.retry();
        assert!(outboxes.take_picked().is_empty());
    }

    #[test]
    fn a_group_led_elsewhere_is_forgotten() {
        let mut outboxes = Outboxes::default();
        post(&mut outboxes, 4, &[GROUP]);
        outboxes.begin(3, 5, 0, Some(PickedEntry { position: 5, ..PickedEntry::default() }));
        outboxes.forget(3);
        outboxes.on_answer(3, GROUP, 4);
        outboxes.on_picked(3, 5);
        outboxes.retry();
        assert!(outboxes.take_routed().is_empty() && outboxes.take_picked().is_empty());
    }
}
