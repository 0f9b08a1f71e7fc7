//! The way of messages out of the outboxes of the groups that are led here.
//!
//! A lane leads from a group's outbox to one target; a message's number in it is its position in the outbox. So a target
//! knows, whoever leads the group, what it has had. A new leader begins at the oldest entry; numbers have gaps, because it
//! may match differently than the one before.
//!
//! Who gets an entry of shared subscriptions is proposed and waited for as if it were one more lane; what is picked comes
//! back as entries of its own. What is too long for one entry of the log is said in pieces, one after the other, and what stands behind it in
//! the outbox waits meanwhile: of one shared subscription it would come first otherwise.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::BytesMut;
use kentongan_cluster::lane::{Batch, Outgoing};
use prost::Message as _;

use crate::peers::{ITEM_BYTES_MAX, PIECE_BYTES};
use crate::plants::{Plant, is_planted};
use crate::replicated::command::{Pick, PickedEntry};
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

/// Who gets an entry of shared subscriptions, as far as it is not committed.
#[derive(Debug)]
struct Picking {
    entry: PickedEntry,
    /// It is too long for a group that knows no pieces, which has been said.
    is_held: bool,
}

impl Picking {
    /// As much of it as `bytes_max` hold, or one.
    fn piece(&self, bytes_max: usize) -> PickedEntry {
        let PickedEntry { position, ref picks, routed, more: _, ref after } = self.entry;
        let mut bytes = after.len();
        let fits = |pick: &&Pick| {
            bytes += pick.encoded_len() + PICK_HEAD_BYTES_MAX;
            bytes <= bytes_max
        };
        let picks = &picks[..picks.iter().take_while(fits).count().max(1).min(picks.len())];
        let more = picks.len() < self.entry.picks.len();
        PickedEntry { position, picks: picks.to_vec(), routed, more, after: after.clone() }
    }
}

/// What stands before a pick in an entry of the log.
const PICK_HEAD_BYTES_MAX: usize = 5;

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
    picking: BTreeMap<(u16, u64), Picking>,
    /// Positions of what is to be proposed, by the groups.
    picked: BTreeMap<u16, BTreeSet<u64>>,
    /// The position in each group of which a piece was proposed, and not yet the last one.
    in_pieces: BTreeMap<u16, u64>,
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
            in_pieces: BTreeMap::new(),
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
            self.picking.insert((origin, position), Picking { entry: picked, is_held: false });
            self.picked.entry(origin).or_default().insert(position);
        }
    }

    /// What was picked for the entry at `position`, by whomever, is committed.
    pub(super) fn on_picked(&mut self, origin: u16, position: u64) {
        if self.in_pieces.get(&origin) == Some(&position) {
            self.in_pieces.remove(&origin);
        }
        if self.picking.remove(&(origin, position)).is_some() {
            settle(&mut self.routing, &mut self.routed, origin, position);
        }
    }

    /// The same of its shared subscriptions up to `share`: the next piece is to be proposed.
    pub(super) fn on_picked_up_to(&mut self, origin: u16, position: u64, share: &str) {
        let Some(Picking { entry, .. }) = self.picking.get_mut(&(origin, position)) else {
            return;
        };
        if entry.after.as_str() < share {
            entry.picks.retain(|pick| pick.share.as_str() > share);
            share.clone_into(&mut entry.after);
            self.picked.entry(origin).or_default().insert(position);
        }
    }

    /// What is to be proposed of who gets what. `knows_pieces` of a group: what is long goes in pieces there.
    pub(super) fn take_picked(&mut self, knows_pieces: impl Fn(u16) -> bool) -> BTreeMap<u16, Vec<PickedEntry>> {
        let mut proposed = BTreeMap::new();
        for (&group, positions) in &mut self.picked {
            let mut entries = Vec::new();
            while let Some(&position) = positions.first() {
                if self.in_pieces.get(&group).is_some_and(|&first| first < position) {
                    break;
                }
                positions.pop_first();
                let Some(picking) = self.picking.get_mut(&(group, position)) else {
                    continue;
                };
                if knows_pieces(group) {
                    let piece = picking.piece(self.batch_bytes_max);
                    if piece.more {
                        self.in_pieces.insert(group, position);
                    }
                    entries.push(piece);
                } else if picking.entry.encoded_len() <= ITEM_BYTES_MAX {
                    entries.push(picking.entry.clone());
                } else if !std::mem::replace(&mut picking.is_held, true) {
                    tracing::warn!(
                        group,
                        shares = picking.entry.picks.len(),
                        "a message for very many shared subscriptions waits until all nodes run this version"
                    );
                }
            }
            if !entries.is_empty() {
                proposed.insert(group, entries);
            }
        }
        self.picked.retain(|_, positions| !positions.is_empty());
        proposed
    }

    /// Puts it into one of them. `write` is told its number there, and returns how long it would have been if it wrote something else for
    /// that. Returns whether it did not.
    pub(super) fn push(
        &mut self,
        origin: u16,
        target: OutboxTarget,
        position: u64,
        write: impl FnOnce(u64, &mut BytesMut) -> Option<usize>,
    ) -> bool {
        let outgoing = || Outgoing::new(LANE_BYTES_MAX, self.batch_bytes_max);
        let new = || Lane { outgoing: outgoing(), unanswered: VecDeque::new(), progress: true };
        let lane = self.lanes.entry((origin, target)).or_insert_with(new);
        let number = if is_planted(Plant::RenumberOutbox) { lane.outgoing.next_number() } else { position };
        let mut too_long = None;
        lane.outgoing.push_at(number, |out| too_long = write(number, out));
        lane.unanswered.push_back((number, position));
        self.touched.insert((origin, target));
        if let Some(bytes) = too_long {
            tracing::error!(
                group = origin,
                ?target,
                bytes,
                "a message of an outbox is longer than a frame may be, and is dropped; this is a mistake of the broker, please report it"
            );
        }
        too_long.is_none()
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
        self.in_pieces.remove(&origin);
        self.routed.remove(&origin);
    }

    /// Lanes without progress since this was asked last try again. What was picked is proposed again: a proposal may be lost,
    /// and the first one that is committed counts.
    pub(super) fn retry(&mut self) {
        self.picked.clear();
        for &(origin, position) in self.picking.keys() {
            self.picked.entry(origin).or_default().insert(position);
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

    fn write(out: &mut BytesMut, byte: u8) -> Option<usize> {
        out.put_u8(byte);
        None
    }

    fn post(outboxes: &mut Outboxes, position: u64, targets: &[OutboxTarget]) {
        outboxes.begin(3, position, targets.len(), None);
        for &target in targets {
            outboxes.push(3, target, position, |_, out| write(out, position as u8));
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
        outboxes.push(3, GROUP, 4, |_, out| write(out, 4));
        assert!(outboxes.next_batch(3, GROUP).is_some(), "others do not wait for that");
        let proposed = BTreeMap::from([(3, vec![picked])]);
        assert_eq!(outboxes.take_picked(|_| true), proposed);
        assert!(outboxes.take_picked(|_| true).is_empty());
        outboxes.on_answer(3, GROUP, 4);
        assert!(outboxes.take_routed().is_empty());
        outboxes.retry();
        assert_eq!(outboxes.take_picked(|_| true), proposed, "the proposal may be lost");
        outboxes.on_picked(3, 4);
        outboxes.on_picked(3, 4);
        assert_eq!(outboxes.take_routed(), BTreeMap::from([(3, vec![4])]));
        outboxes.retry();
        assert!(outboxes.take_picked(|_| true).is_empty());
    }

    /// An entry at `position`, for nobody but so many shared subscriptions, whose names are that long.
    fn post_shares(outboxes: &mut Outboxes, position: u64, shares: usize, name_bytes: usize) -> Vec<Pick> {
        let pick = |number| Pick { share: format!("$share/{number:0name_bytes$}/t"), target: None };
        let picks: Vec<_> = (0..shares).map(pick).collect();
        let picked = PickedEntry { position, picks: picks.clone(), routed: true, ..PickedEntry::default() };
        outboxes.begin(3, position, 0, Some(picked));
        picks
    }

    /// What is proposed for group 3, and how long that is.
    fn proposed(outboxes: &mut Outboxes) -> Vec<PickedEntry> {
        outboxes.take_picked(|_| true).remove(&3).unwrap_or_default()
    }

    /// Nobody bounds how many shared subscriptions a message is for: an entry of the log with all their names would be one that no frame
    /// holds.
    #[test]
    fn who_gets_it_of_very_many_shared_subscriptions_is_proposed_in_pieces() {
        const NAME_BYTES: usize = 60_000;
        let mut outboxes = Outboxes::default();
        let picks = post_shares(&mut outboxes, 4, 306, NAME_BYTES);
        let behind = post_shares(&mut outboxes, 5, 1, 1);
        let (mut said, mut pieces) = (Vec::new(), 0);
        loop {
            let [piece] = &proposed(&mut outboxes)[..] else {
                panic!("one piece");
            };
            assert!(piece.encoded_len() <= PIECE_BYTES + NAME_BYTES, "{} bytes", piece.encoded_len());
            assert_eq!(piece.after, said.last().map_or("", |last: &Pick| last.share.as_str()));
            assert_eq!((piece.position, piece.routed), (4, true));
            assert_eq!(proposed(&mut outboxes), [], "it is waited for, by what stands behind it too");
            outboxes.retry();
            assert_eq!(proposed(&mut outboxes), std::slice::from_ref(piece), "the proposal may be lost");
            said.extend(piece.picks.iter().cloned());
            pieces += 1;
            if !piece.more {
                break;
            }
            let last = &said.last().expect("one at least").share;
            outboxes.on_picked_up_to(3, 4, last);
            outboxes.on_picked_up_to(3, 4, last);
        }
        assert_eq!((said, pieces), (picks, 20));
        outboxes.on_picked(3, 4);
        assert_eq!(outboxes.take_routed(), BTreeMap::from([(3, vec![4])]));
        let next = proposed(&mut outboxes);
        assert_eq!(next.iter().map(|entry| (entry.position, &entry.picks)).collect::<Vec<_>>(), [(5, &behind)]);
    }

    /// What another leader had committed by then is not said again, and of the rest what this one picks counts.
    #[test]
    fn pieces_go_on_behind_what_is_committed() {
        let mut outboxes = Outboxes::default();
        outboxes.cut_at(150);
        let picks = post_shares(&mut outboxes, 4, 9, 20);
        assert_eq!(proposed(&mut outboxes)[0].picks, picks[..4]);
        outboxes.on_picked_up_to(3, 4, &picks[6].share);
        let [rest] = &proposed(&mut outboxes)[..] else {
            panic!("the rest");
        };
        assert_eq!((&rest.after, rest.picks.as_slice(), rest.more), (&picks[6].share, &picks[7..], false));
        outboxes.on_picked_up_to(3, 4, &picks[8].share);
        let [nothing] = &proposed(&mut outboxes)[..] else {
            panic!("that it was all");
        };
        assert_eq!((&nothing.after, nothing.picks.len(), nothing.more), (&picks[8].share, 0, false));
        outboxes.forget(3);
        post_shares(&mut outboxes, 5, 1, 1);
        assert_eq!(proposed(&mut outboxes).len(), 1, "nothing of the leadership before is waited for");
    }

    /// An old version would take the first piece for all of it.
    #[test]
    fn a_group_that_knows_no_pieces_gets_what_a_frame_holds_and_the_rest_waits() {
        let mut outboxes = Outboxes::default();
        post_shares(&mut outboxes, 4, 306, 60_000);
        let picks = post_shares(&mut outboxes, 5, 40, 60_000);
        let proposed = outboxes.take_picked(|_| false).remove(&3).unwrap_or_default();
        assert_eq!(
            proposed.iter().map(|entry| (entry.position, &entry.picks, entry.more)).collect::<Vec<_>>(),
            [(5, &picks, false)]
        );
        outboxes.on_picked(3, 5);
        outboxes.retry();
        assert!(outboxes.take_picked(|_| true)[&3][0].more, "once it does");
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
        assert!(outboxes.take_routed().is_empty() && outboxes.take_picked(|_| true).is_empty());
    }
}
