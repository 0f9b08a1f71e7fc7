//! What the leaders here have for arbiters elsewhere, and which arbiters may be told anything at all.
//!
//! A leader pushes nothing to an arbiter before that has said what its clients have (its *resync*): what the leader before
//! sent may be under way still, and would be sent twice on a living connection. Who has not said so is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use kentongan_cluster::transport::LinkEpoch;

use crate::connection_key::{ALL_PLACES, ConnectionKey};
use crate::peers::wire::{AskResync, EventKind, Forwarded, GroupEvent, GroupEvents, Resync};
use crate::peers::{PeerFull, Peers, in_pieces};
use crate::plants::{Plant, is_planted};
use crate::router::Shared;

/// Calls of [`Pushes::ask`] between two questions to one node.
const ASK_TICKS: u32 = 5;

/// What one node said to one leader.
#[derive(Debug, Default)]
struct Synced {
    /// Of each arbiter: the places of its connections below this one.
    arbiters: BTreeMap<u16, u32>,
    /// How many it has; 0 before it said anything.
    of: u32,
    /// Until it is asked (again).
    ask_in: u32,
    /// What was said for an earlier one does not count: see [`Synced::forget`].
    round: u32,
    /// Over which life of the link it is told what it is told: nothing may come by the next one before it is known that the end of this
    /// one may be lost.
    over: Option<LinkEpoch>,
}

impl Synced {
    /// What the node was told may be lost. What it says next may have been written before the rest of that came, and if it
    /// were believed, that rest would be sent twice on living connections: only what it says in a new round tells.
    fn forget(&mut self) {
        *self = Self { round: self.round + 1, ask_in: 1, ..Self::default() };
    }

    fn is_complete(&self) -> bool {
        let complete = self.arbiters.values().filter(|&&below| below == ALL_PLACES.end).count();
        self.of != 0 && complete >= self.of as usize
    }
}

#[derive(Debug, Default)]
struct Led {
    term: u64,
    nodes: BTreeMap<u64, Synced>,
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

    /// In which term, if it does.
    pub(super) fn term(&self, group: u16) -> Option<u64> {
        self.led.get(&group).map(|led| led.term)
    }

    /// It does so no more.
    pub(super) fn follow(&mut self, group: u16) {
        self.led.remove(&group);
        self.gathered.retain(|&(.., gathered), _| gathered != group);
    }

    /// The link to a node broke: what was said may be lost.
    pub(super) fn on_link_broken(&mut self, node: u64) {
        for led in self.led.values_mut() {
            led.nodes.entry(node).and_modify(Synced::forget);
        }
        self.gathered.retain(|&(to, ..), _| to != node);
    }

    pub(super) fn is_synced(&self, group: u16, node: u64, connection: ConnectionKey) -> bool {
        if is_planted(Plant::PushUnsynced) {
            return true;
        }
        let nodes = self.led.get(&group).map(|led| &led.nodes);
        let synced = nodes.and_then(|nodes| nodes.get(&node)?.arbiters.get(&connection.arbiter()));
        synced.is_some_and(|&below| connection.is_in(&(0..below)))
    }

    /// An arbiter has said what it has in these places, all of them or one part after the other. Returns the group, and those that
    /// count. `None`: it was said to another leader than this; or a part before is missing; or it says so again, and may not have
    /// got yet what it was sent since the first time.
    pub(super) fn synced(&mut self, node: u64, resync: &Resync, places: Range<u32>) -> Option<(u16, Range<u32>)> {
        let (group, arbiter) = (u16::try_from(resync.group).ok()?, u16::try_from(resync.arbiter).ok()?);
        let led = self.led.get_mut(&group).filter(|led| led.term == resync.term)?;
        let synced = led.nodes.entry(node).or_default();
        let known = synced.arbiters.get(&arbiter).copied().unwrap_or(0);
        if synced.round != resync.round || places.start > known || places.end <= known {
            return None;
        }
        synced.arbiters.insert(arbiter, places.end);
        synced.of = resync.arbiters;
        if places != ALL_PLACES {
            // The rest is on its way: asked again, it would begin anew.
            synced.ask_in = ASK_TICKS;
        }
        Some((group, known..places.end))
    }

    /// For an arbiter of another node, when the turn ends.
    pub(super) fn push(
        &mut self,
        group: u16,
        node: u64,
        incarnation: u64,
        events: impl IntoIterator<Item = EventKind>,
    ) {
        if self.led.contains_key(&group) {
            let gathered = self.gathered.entry((node, incarnation, group)).or_default();
            gathered.extend(events.into_iter().map(|kind| GroupEvent { kind: Some(kind) }));
        }
    }

    /// Sends what gathered. Where there is no room it is let go, and the node asked to say what it has once there is.
    pub(super) fn flush(&mut self, shared: &Shared) {
        if let Some(cluster) = &shared.cluster {
            self.flush_to(&*cluster.peers);
        }
    }

    fn flush_to(&mut self, peers: &dyn Peers) {
        // The stale processes of a node come before the living one, whose part must not pass behind the refusal of theirs.
        let mut refused = BTreeSet::new();
        for ((node, incarnation, group), events) in std::mem::take(&mut self.gathered) {
            if refused.contains(&(node, group)) {
                continue;
            }
            let Some(led) = self.led.get_mut(&group) else {
                continue;
            };
            for events in in_pieces(events, peers.piece_bytes()) {
                let events = GroupEvents { group: u32::from(group), term: led.term, incarnation, events };
                let synced = led.nodes.entry(node).or_default();
                match peers.forward_over(node, synced.over, Forwarded::Events(events)) {
                    Ok(over) => synced.over = synced.over.or(over),
                    Err(PeerFull) => {
                        synced.forget();
                        refused.insert((node, group));
                        break;
                    }
                }
            }
        }
    }

    /// About every 100 ms: asks those of `nodes` that have not said what all of their arbiters have. `keeps`: whether a node
    /// has a replica of a group.
    pub(super) fn ask(&mut self, peers: &dyn Peers, nodes: &[u64], keeps: impl Fn(u16, u64) -> bool) {
        for (&group, led) in &mut self.led {
            led.ask(group, peers, nodes, &keeps);
        }
    }

    /// The groups whose leader, this node `me`, is to be told anew by arbiters of its own, with the term and the round: what one of them
    /// said may not have counted, since the group had not heard of all that went before it.
    pub(super) fn ask_own(&mut self, me: u64) -> Vec<(u16, u64, u32)> {
        let due = self.led.iter_mut().filter_map(|(&group, led)| {
            let synced = led.nodes.entry(me).or_insert_with(|| Synced { ask_in: ASK_TICKS, ..Synced::default() });
            if synced.is_complete() {
                return None;
            }
            synced.ask_in = synced.ask_in.saturating_sub(1);
            (synced.ask_in == 0).then(|| {
                synced.ask_in = ASK_TICKS;
                (group, led.term, synced.round)
            })
        });
        due.collect()
    }

    /// The same of a group that this node has just begun to lead.
    pub(super) fn announce(&mut self, group: u16, peers: &dyn Peers, nodes: &[u64], keeps: impl Fn(u16, u64) -> bool) {
        if let Some(led) = self.led.get_mut(&group) {
            led.ask(group, peers, nodes, &keeps);
        }
    }
}

impl Led {
    /// A node with a replica hears of its leader from that, as a rule, and does not wait to be asked. The others know of no
    /// leader before.
    fn ask(&mut self, group: u16, peers: &dyn Peers, nodes: &[u64], keeps: &impl Fn(u16, u64) -> bool) {
        for &node in nodes {
            let synced = self.nodes.entry(node).or_insert_with(|| {
                let ask_in = if keeps(group, node) { ASK_TICKS } else { 1 };
                Synced { ask_in, ..Synced::default() }
            });
            if synced.is_complete() {
                continue;
            }
            synced.ask_in = synced.ask_in.saturating_sub(1);
            let ask = AskResync { group: u32::from(group), term: self.term, round: synced.round };
            if synced.ask_in == 0 && peers.forward(node, Forwarded::AskResync(ask)).is_ok() {
                synced.ask_in = ASK_TICKS;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::peers::wire::Deliver;
    use crate::replicated::command::MessageRecord;

    fn resync(arbiter: u32, round: u32) -> Resync {
        Resync { group: 1, term: 5, arbiter, arbiters: 2, round, ..Resync::default() }
    }

    fn at(arbiter: u16, place: u32) -> ConnectionKey {
        ConnectionKey::new(arbiter, place, 3)
    }

    /// What an arbiter said may have come before what went ahead of it: it is asked again, also one of this node, which hears of its own
    /// leadership by no question.
    #[test]
    fn arbiters_of_the_leaders_own_node_are_asked_until_they_have_said_what_they_have() {
        let mut pushes = Pushes::default();
        pushes.lead(1, 5);
        let asked = |pushes: &mut Pushes| (0..2 * ASK_TICKS).flat_map(|_| pushes.ask_own(7)).collect::<Vec<_>>();
        assert_eq!(pushes.synced(7, &resync(0, 0), ALL_PLACES), Some((1, ALL_PLACES)));
        assert_eq!(asked(&mut pushes), [(1, 5, 0); 2], "the other one has not");
        assert_eq!(pushes.synced(7, &resync(1, 0), ALL_PLACES), Some((1, ALL_PLACES)));
        assert_eq!(asked(&mut pushes), []);
    }

    /// P2, P7: what is pushed to a connection of which nothing was said may come twice; and one whose part is lost would never be told
    /// what it waits for.
    #[test]
    fn an_arbiter_is_believed_part_by_part_each_behind_the_one_before() {
        let mut pushes = Pushes::default();
        pushes.lead(1, 5);
        let whole = resync(0, 0);
        assert_eq!(pushes.synced(7, &whole, 10..20), None, "a part before it is missing");
        assert_eq!(pushes.synced(7, &whole, 0..10), Some((1, 0..10)));
        assert!(pushes.is_synced(1, 7, at(0, 9)) && !pushes.is_synced(1, 7, at(0, 10)));
        assert_eq!(pushes.synced(7, &whole, 0..10), None, "it came already");
        assert_eq!(pushes.synced(7, &whole, 0..15), Some((1, 10..15)), "it began anew, with parts that are others");
        assert_eq!(pushes.synced(7, &whole, 16..20), None);
        assert_eq!(pushes.synced(7, &Resync { term: 4, ..whole.clone() }, 15..20), None);
        assert_eq!(pushes.synced(7, &resync(0, 1), 15..20), None);
        assert!(!pushes.is_synced(1, 7, at(0, 15)) && !pushes.led[&1].nodes[&7].is_complete());
        assert_eq!(pushes.synced(7, &whole, 15..ALL_PLACES.end), Some((1, 15..ALL_PLACES.end)));
        assert!(pushes.is_synced(1, 7, at(0, ConnectionKey::INDEX_MAX)) && !pushes.is_synced(1, 7, at(1, 0)));
        assert_eq!(pushes.synced(7, &resync(1, 0), ALL_PLACES), Some((1, ALL_PLACES)));
        assert!(pushes.led[&1].nodes[&7].is_complete());
        pushes.on_link_broken(7);
        assert_eq!(pushes.synced(7, &resync(0, 1), 10..20), None, "what came before does not count any more");
    }

    /// It would begin anew each time, and never come to the end.
    #[test]
    fn who_says_one_part_after_the_other_is_not_asked_again_meanwhile() {
        let (mut pushes, asked) = (Pushes::default(), Asked::default());
        pushes.lead(1, 5);
        for part in 0..3 * ASK_TICKS {
            assert!(pushes.synced(7, &resync(0, 0), part..part + 1).is_some());
            (1..ASK_TICKS).for_each(|_| pushes.ask(&asked, &[7], |_, _| true));
        }
        assert_eq!(asked.take(), []);
        pushes.ask(&asked, &[7], |_, _| true);
        assert_eq!(asked.take(), [(7, 1, 5)], "but when nothing more comes");
    }

    /// The second word was written before what the first one led to came: it would be sent again on living connections.
    #[test]
    fn an_arbiter_is_believed_once_until_what_it_was_told_may_be_lost() {
        let mut pushes = Pushes::default();
        pushes.lead(1, 5);
        assert_eq!(pushes.synced(7, &resync(0, 0), ALL_PLACES), Some((1, ALL_PLACES)));
        assert_eq!(pushes.synced(7, &resync(0, 0), ALL_PLACES), None);
        assert_eq!(pushes.synced(7, &resync(1, 0), ALL_PLACES), Some((1, ALL_PLACES)));
        pushes.on_link_broken(7);
        assert!(!pushes.is_synced(1, 7, at(0, 0)));
        assert_eq!(pushes.synced(7, &resync(0, 0), ALL_PLACES), None, "it was on its way when the link broke");
        assert_eq!(pushes.synced(7, &resync(0, 1), ALL_PLACES), Some((1, ALL_PLACES)));
        assert!(pushes.is_synced(1, 7, at(0, 0)) && !pushes.is_synced(1, 7, at(1, 0)));
    }

    /// Who was told to say what it has, and of which group and term, in the order in which they were told.
    #[derive(Debug, Default)]
    struct Asked(std::sync::Mutex<Vec<(u64, u32, u64)>>);

    impl Asked {
        fn take(&self) -> Vec<(u64, u32, u64)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Peers for Asked {
        fn forward(&self, node: u64, forwarded: Forwarded) -> Result<(), PeerFull> {
            let Forwarded::AskResync(ask) = forwarded else {
                panic!("{forwarded:?}");
            };
            self.0.lock().unwrap().push((node, ask.group, ask.term));
            Ok(())
        }

        fn control(&self, _: u64, _: bytes::Bytes) {}

        fn members(&self, _: Vec<kentongan_cluster::transport::PeerAddress>) {}
    }

    /// Nothing else would tell it; and what it has for the group waits until it knows.
    #[test]
    fn who_has_no_replica_is_told_at_once_who_leads_and_again_until_it_answers() {
        let (mut pushes, asked) = (Pushes::default(), Asked::default());
        let keeps = |_, node| node == 2;
        pushes.lead(1, 5);
        pushes.announce(1, &asked, &[2, 3], keeps);
        assert_eq!(asked.take(), [(3, 1, 5)], "the other one has a replica");
        (1..ASK_TICKS).for_each(|_| pushes.ask(&asked, &[2, 3], keeps));
        assert_eq!(asked.take(), [(2, 1, 5)], "which may be behind");
        pushes.ask(&asked, &[2, 3], keeps);
        assert_eq!(asked.take(), [(3, 1, 5)], "it may not have heard");
        pushes.synced(3, &resync(0, 0), ALL_PLACES);
        pushes.synced(3, &resync(1, 0), ALL_PLACES);
        (0..2 * ASK_TICKS).for_each(|_| pushes.ask(&asked, &[3], keeps));
        assert_eq!(asked.take(), [], "it has answered for all of its arbiters");
        pushes.ask(&asked, &[3, 4], keeps);
        assert_eq!(asked.take(), [(4, 1, 5)], "it has just joined");
        pushes.on_link_broken(3);
        pushes.ask(&asked, &[3], keeps);
        assert_eq!(asked.take(), [(3, 1, 5)], "the process may be another one, and know nothing");
    }

    /// A frame holds so much, and no queue takes more.
    #[derive(Debug, Default)]
    struct Frames {
        sent: std::sync::Mutex<Vec<GroupEvents>>,
        taken_max: usize,
    }

    impl Peers for Frames {
        fn forward(&self, node: u64, forwarded: Forwarded) -> Result<(), PeerFull> {
            let Forwarded::Events(events) = forwarded else {
                panic!("to {node}: {forwarded:?}");
            };
            let mut sent = self.sent.lock().unwrap();
            if events.encoded_len() > 64 * 1024 || sent.len() == self.taken_max {
                return Err(PeerFull);
            }
            sent.push(events);
            Ok(())
        }

        fn piece_bytes(&self) -> usize {
            60 * 1024
        }

        fn control(&self, _: u64, _: bytes::Bytes) {}

        fn members(&self, _: Vec<kentongan_cluster::transport::PeerAddress>) {}
    }

    fn deliver(packet_id: u32) -> EventKind {
        let payload = bytes::Bytes::from(vec![0; 4096]);
        let message = Some(MessageRecord { payload, ..MessageRecord::default() });
        EventKind::Deliver(Deliver { packet_id, message, ..Deliver::default() })
    }

    fn delivered(sent: &[GroupEvents]) -> Vec<u32> {
        let events = sent.iter().flat_map(|events| &events.events);
        let packet_id = |event: &GroupEvent| match &event.kind {
            Some(EventKind::Deliver(deliver)) => deliver.packet_id,
            other => panic!("{other:?}"),
        };
        events.map(packet_id).collect()
    }

    /// P1: a session's window is more than a frame, and each try to send it as one would fail like the one before.
    #[test]
    fn what_a_turn_has_for_a_node_goes_in_as_many_frames_as_it_takes() {
        let (mut pushes, frames) = (Pushes::default(), Frames { taken_max: usize::MAX, ..Frames::default() });
        pushes.lead(1, 5);
        pushes.synced(7, &resync(0, 0), ALL_PLACES);
        (0..100).for_each(|packet_id| pushes.push(1, 7, 3, vec![deliver(packet_id)]));
        pushes.flush_to(&frames);
        let sent = frames.sent.into_inner().unwrap();
        assert_eq!(delivered(&sent), (0..100).collect::<Vec<_>>());
        assert!((7..=8).contains(&sent.len()), "{} frames", sent.len());
        assert!(sent.iter().all(|events| (events.group, events.term, events.incarnation) == (1, 5, 3)));
        assert!(pushes.is_synced(1, 7, at(0, 0)));
    }

    /// Links that break, of which nobody is told at once.
    #[derive(Debug, Default)]
    struct Breaking {
        life: std::sync::Mutex<u64>,
        sent: std::sync::Mutex<Vec<(u64, GroupEvents)>>,
    }

    impl Breaking {
        fn break_off(&self) {
            *self.life.lock().unwrap() += 1;
        }

        /// What was delivered, and over which life.
        fn take(&self) -> Vec<(u64, Vec<u32>)> {
            let sent = std::mem::take(&mut *self.sent.lock().unwrap());
            sent.into_iter().map(|(life, events)| (life, delivered(&[events]))).collect()
        }
    }

    impl Peers for Breaking {
        fn forward(&self, node: u64, forwarded: Forwarded) -> Result<(), PeerFull> {
            self.forward_over(node, None, forwarded).map(drop)
        }

        fn forward_over(
            &self,
            _: u64,
            over: Option<LinkEpoch>,
            forwarded: Forwarded,
        ) -> Result<Option<LinkEpoch>, PeerFull> {
            let life = *self.life.lock().unwrap();
            match (over, forwarded) {
                (Some(over), _) if over != LinkEpoch(life) => return Err(PeerFull),
                (_, Forwarded::Events(events)) => self.sent.lock().unwrap().push((life, events)),
                _ => {}
            }
            Ok(Some(LinkEpoch(life)))
        }

        fn control(&self, _: u64, _: bytes::Bytes) {}

        fn members(&self, _: Vec<kentongan_cluster::transport::PeerAddress>) {}
    }

    /// P5: the end of what went over the link before may be lost. The clients would get what comes by the new one first, and that
    /// afterwards.
    #[test]
    fn nothing_passes_over_a_new_link_before_it_is_known_that_the_old_one_broke() {
        let (mut pushes, links) = (Pushes::default(), Breaking::default());
        pushes.lead(1, 5);
        pushes.synced(7, &resync(0, 0), ALL_PLACES);
        let push = |pushes: &mut Pushes, packet_id| {
            pushes.push(1, 7, 3, vec![deliver(packet_id)]);
            pushes.flush_to(&links);
        };
        push(&mut pushes, 1);
        push(&mut pushes, 2);
        assert_eq!(links.take(), [(0, vec![1]), (0, vec![2])]);
        links.break_off();
        push(&mut pushes, 3);
        assert_eq!(links.take(), []);
        assert!(!pushes.is_synced(1, 7, at(0, 0)), "it is asked what it has");
        // Now it is heard of.
        pushes.on_link_broken(7);
        let round = pushes.led[&1].nodes[&7].round;
        assert_eq!(pushes.synced(7, &resync(0, 0), ALL_PLACES), None, "of what may be lost it knew nothing");
        assert_eq!(pushes.synced(7, &resync(0, round), ALL_PLACES), Some((1, ALL_PLACES)));
        push(&mut pushes, 3);
        assert_eq!(links.take(), [(1, vec![3])]);
    }

    /// P5: what is left of a process that is gone is told apart, and by the same link. The refusal of that part says that the link is
    /// another one; what the living process is told in the same turn is behind it.
    #[test]
    fn behind_what_a_stale_process_is_told_nothing_passes_over_a_new_link() {
        let (mut pushes, links) = (Pushes::default(), Breaking::default());
        pushes.lead(1, 5);
        pushes.lead(2, 5);
        pushes.synced(7, &resync(0, 0), ALL_PLACES);
        pushes.push(1, 7, 3, vec![deliver(1)]);
        pushes.flush_to(&links);
        assert_eq!(links.take(), [(0, vec![1])]);
        links.break_off();
        pushes.push(1, 7, 2, vec![deliver(2)]);
        pushes.push(1, 7, 3, vec![deliver(3)]);
        // Another group's, which was told nothing over the link that broke, and another node's.
        pushes.push(2, 7, 3, vec![deliver(4)]);
        pushes.push(1, 8, 3, vec![deliver(5)]);
        pushes.flush_to(&links);
        assert_eq!(links.take(), [(1, vec![4]), (1, vec![5])]);
        assert!(!pushes.is_synced(1, 7, at(0, 0)), "it is asked what it has");
        let round = pushes.led[&1].nodes[&7].round;
        assert_eq!(pushes.synced(7, &resync(0, round), ALL_PLACES), Some((1, ALL_PLACES)));
        pushes.push(1, 7, 3, vec![deliver(3)]);
        pushes.flush_to(&links);
        assert_eq!(links.take(), [(1, vec![3])]);
    }

    /// Behind what was refused nothing goes, or it would come before that.
    #[test]
    fn what_is_behind_a_part_without_room_is_let_go_as_well() {
        let (mut pushes, frames) = (Pushes::default(), Frames { taken_max: 2, ..Frames::default() });
        pushes.lead(1, 5);
        pushes.synced(7, &resync(0, 0), ALL_PLACES);
        (0..100).for_each(|packet_id| pushes.push(1, 7, 3, vec![deliver(packet_id)]));
        pushes.flush_to(&frames);
        assert_eq!(delivered(&frames.sent.into_inner().unwrap()), (0..28).collect::<Vec<_>>());
        assert!(!pushes.is_synced(1, 7, at(0, 0)), "it is asked what it has");
    }
}
