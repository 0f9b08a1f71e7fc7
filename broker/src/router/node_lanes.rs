//! The lanes from an arbiter to other nodes: messages for the clients there, and what became of those that came from there
//! for members of shared subscriptions here.
//!
//! A message waits until the node has handed it to its arbiters, or is lost. QoS 0 goes the same way, so that a publisher's
//! messages stay in order, and nobody waits for it but the end of a connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::BytesMut;
use kentongan_cluster::lane::Outgoing;
use kentongan_proto::mqtt::{QoS, ReasonCode};
use prost::Message as _;
use smallvec::SmallVec;

use super::ConnectionKey;
use super::arbiter::ArbiterState;
use super::lanes::{BlockedLane, Lanes, SILENT_SECONDS, Settled, Waiter};
use super::publish::Publication;
use super::share_settling::{ShareKeeper, ShareOrigin, ShareOutcome};
use crate::metrics::DropReason;
use crate::peers::plain::PlainMessage;
use crate::peers::wire::{Forwarded, Messages, NodeMessage, ShareSettled};
use crate::peers::{PeerFull, write_item};
use crate::replicated::command::MessageRecord;
use crate::subscription::{IndexedNode, NodeNumber, ShareGroup};

/// Answers that go in one item.
const SETTLED_AN_ITEM_MAX: usize = 1024;

/// Bytes that may wait in the lane of one arbiter to one node before its publishers pause.
const NODE_LANE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One start of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerProcess {
    /// The node.
    pub node: u64,
    /// Which of its starts.
    pub incarnation: u64,
}

/// The small numbers by which the subscription index knows other nodes. One number for each start of a node, never given
/// twice: a process that hears of ten starts of others a second has enough for thirteen years.
#[derive(Debug, Default)]
pub struct Nodes(RwLock<Numbered>);

#[derive(Debug, Default)]
struct Numbered {
    numbers: BTreeMap<PeerProcess, NodeNumber>,
    processes: BTreeMap<NodeNumber, PeerProcess>,
    next: NodeNumber,
}

impl Nodes {
    /// The number of a process; given now if it has none.
    pub fn number(&self, process: PeerProcess) -> NodeNumber {
        if let Some(&number) = self.read().numbers.get(&process) {
            return number;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let next = known.next;
        let number = *known.numbers.entry(process).or_insert(next);
        if number == next {
            known.next = next.saturating_add(1);
            known.processes.insert(next, process);
        }
        number
    }

    /// A process as the subscription index knows it.
    pub fn indexed(&self, process: PeerProcess) -> IndexedNode {
        IndexedNode { number: self.number(process), identity: process.node }
    }

    /// The numbers of all starts of a node.
    #[must_use]
    pub fn of(&self, node: u64) -> Vec<NodeNumber> {
        let at = |incarnation| PeerProcess { node, incarnation };
        self.read().numbers.range(at(0)..=at(u64::MAX)).map(|(_, &number)| number).collect()
    }

    /// Whose number it is.
    #[must_use]
    pub fn get(&self, number: NodeNumber) -> Option<PeerProcess> {
        self.read().processes.get(&number).copied()
    }

    fn read(&self) -> RwLockReadGuard<'_, Numbered> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One lane.
#[derive(Debug)]
struct NodeLane {
    outgoing: Outgoing,
    unanswered: VecDeque<(u64, Waiter)>,
    /// Somebody waits for what was pushed since the last batch.
    awaited: bool,
    /// Sent before, this time or an earlier one.
    sent: u64,
    /// Up to where the node has answered, now and a second ago.
    answered: u64,
    answered_before: u64,
    /// How long it has not, though something is to be answered.
    silent_seconds: u32,
}

impl NodeLane {
    fn is_silent(&self) -> bool {
        self.silent_seconds >= SILENT_SECONDS
    }

    /// It is full, and its node answers nothing: who puts more into it waits, and nobody else.
    fn is_blocked(&self) -> bool {
        self.is_silent() && self.outgoing.is_paused()
    }
}

/// What became of something for a lane.
#[derive(Debug, Clone, Copy)]
struct Pushed {
    /// Its number there.
    number: u64,
    /// No frame can hold it: only its place goes.
    is_too_long: bool,
}

fn write_message(message: &NodeMessage, out: &mut BytesMut) {
    // Cannot fail: a `BytesMut` grows.
    let _ = message.encode_length_delimited(out);
}

/// The lanes of an arbiter to other nodes, by the nodes' numbers.
#[derive(Debug, Default)]
pub(super) struct NodeLanes {
    batch_bytes_max: usize,
    lanes: BTreeMap<NodeNumber, NodeLane>,
    touched: Vec<NodeNumber>,
    /// What the next item of each lane says of messages that came from there.
    settled: BTreeMap<NodeNumber, Vec<ShareSettled>>,
    /// Their numbers are never given again, so nothing may open a lane to them: nobody would answer.
    lost: BTreeSet<NodeNumber>,
    /// Dead, and not lost yet.
    dead: BTreeSet<NodeNumber>,
    /// Something went into this one.
    touched_blocked: Option<BlockedLane>,
    /// This node is not registered, so they are nobody's: what gathered in them would count as said by whatever it registers as next, whose
    /// own lanes begin with the same numbers.
    is_nobodys: bool,
}

impl NodeLanes {
    pub(super) fn new(batch_bytes_max: usize, is_nobodys: bool) -> Self {
        Self { batch_bytes_max, is_nobodys, ..Self::default() }
    }

    fn lane(&mut self, node: NodeNumber) -> &mut NodeLane {
        self.lanes.entry(node).or_insert_with(|| NodeLane {
            outgoing: Outgoing::new(NODE_LANE_BYTES_MAX, self.batch_bytes_max),
            unanswered: VecDeque::new(),
            awaited: false,
            sent: 0,
            answered: 0,
            answered_before: 0,
            silent_seconds: 0,
        })
    }

    /// Something for the lane. `None`: the node is lost.
    fn push(&mut self, node: NodeNumber, item: impl FnOnce(u64) -> NodeMessage) -> Option<Pushed> {
        let pushed = self.push_with(node, true, |number, out| write_message(&item(number), out))?;
        self.lane(node).awaited = true;
        Some(pushed)
    }

    /// The same for what `write` writes, given the number. Whether anybody waits for it is for the caller to say. `None` too for what
    /// waits for nothing (`waits` is false), as in [`Self::drops_qos_0`].
    #[inline]
    fn push_with(&mut self, node: NodeNumber, waits: bool, write: impl FnOnce(u64, &mut BytesMut)) -> Option<Pushed> {
        if self.is_nobodys || (!waits && self.dead.contains(&node)) {
            return None;
        }
        if !self.lanes.contains_key(&node) {
            // One that is lost has no lane.
            if self.is_lost(node) {
                return None;
            }
            self.lane(node);
        }
        let lane = self.lanes.get_mut(&node)?;
        let is_blocked = lane.is_blocked();
        if is_blocked && !waits {
            return None;
        }
        let number = lane.outgoing.next_number();
        let mut too_long = None;
        lane.outgoing.push_at(number, |out| {
            let place = || NodeMessage { number, ..NodeMessage::default() };
            too_long = write_item(out, |out| write(number, out), |out| write_message(&place(), out));
        });
        if is_blocked {
            self.touched_blocked = Some(BlockedLane::Node(node));
        }
        if self.touched.last() != Some(&node) {
            self.touched.push(node);
        }
        if let Some(bytes) = too_long {
            tracing::error!(
                node,
                bytes,
                "a message for another node is longer than a frame may be, and is dropped; this is a mistake of the broker, please report it"
            );
        }
        Some(Pushed { number, is_too_long: too_long.is_some() })
    }

    pub(super) fn is_lost(&self, node: NodeNumber) -> bool {
        self.lost.contains(&node)
    }

    /// Whether nobody is connected there any more, though it is not lost yet.
    pub(super) fn is_dead(&self, node: NodeNumber) -> bool {
        self.dead.contains(&node)
    }

    /// Whether what waits for nothing is not sent there: nobody is connected to a dead process, and where nobody answers it
    /// would fill memory.
    fn drops_qos_0(&self, node: NodeNumber) -> bool {
        self.is_nobodys || self.dead.contains(&node) || self.is_blocked(node)
    }

    fn settle(&mut self, node: NodeNumber, settled: ShareSettled) {
        self.settled.entry(node).or_default().push(settled);
    }

    /// Returns in which lanes all of it stands now, and up to which number.
    fn push_settled(&mut self) -> SmallVec<[(NodeNumber, u64); 4]> {
        let mut pushed = SmallVec::new();
        for (node, settled) in std::mem::take(&mut self.settled) {
            let numbers = settled.chunks(SETTLED_AN_ITEM_MAX).map(|settled| {
                self.push(node, |number| NodeMessage { number, settled: settled.to_vec(), ..NodeMessage::default() })
            });
            pushed.extend(numbers.last().flatten().map(|last| (node, last.number)));
        }
        pushed
    }

    /// How much each node has not answered for, by the nodes' numbers.
    pub(super) fn held(&self) -> impl Iterator<Item = (NodeNumber, u64)> + '_ {
        self.lanes.iter().map(|(&node, lane)| (node, (lane.outgoing.next_number() - 1).saturating_sub(lane.answered)))
    }

    /// Whether publishers should pause until nodes have answered. One that is dead or silent may do so never.
    pub(super) fn is_paused(&self) -> bool {
        let may_answer = |node: &NodeNumber, lane: &NodeLane| !lane.is_silent() && !self.dead.contains(node);
        self.lanes.iter().any(|(node, lane)| lane.outgoing.is_paused() && may_answer(node, lane))
    }

    pub(super) fn is_blocked(&self, node: NodeNumber) -> bool {
        self.lanes.get(&node).is_some_and(NodeLane::is_blocked)
    }

    pub(super) fn take_touched_blocked(&mut self) -> Option<BlockedLane> {
        self.touched_blocked.take()
    }

    /// What nobody waits for any more, once everything came to rest.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (&node, lane) in &self.lanes {
            if self.is_lost(node) {
                left.push(format!("a lane to node number {node}, which is lost"));
            }
            if !lane.unanswered.is_empty() || !lane.outgoing.is_settled() {
                left.push(format!("something in the lane to node number {node}"));
            }
        }
        left.extend(self.settled.keys().map(|node| format!("answers for node number {node}")));
        left
    }

    /// The lanes that made no progress since this was asked last; they try again.
    fn stuck(&mut self) -> Vec<NodeNumber> {
        let mut stuck = Vec::new();
        for (&node, lane) in &mut self.lanes {
            if !lane.outgoing.is_settled() && lane.answered == lane.answered_before {
                lane.outgoing.on_silence();
                lane.silent_seconds = lane.silent_seconds.saturating_add(1);
                stuck.push(node);
            } else {
                lane.silent_seconds = 0;
            }
            lane.answered_before = lane.answered;
        }
        stuck
    }
}

impl Lanes {
    /// Whether whoever keeps a message may still hear what became of it.
    pub(super) fn is_there(&self, keeper: ShareKeeper) -> bool {
        match keeper {
            ShareKeeper::Arbiter { node, .. } => !self.nodes.is_lost(node),
            ShareKeeper::Outbox { .. } => true,
        }
    }

    /// What became of a message that another node, or an outbox, keeps. Said when the turn ends.
    pub(super) fn answer_keeper(&mut self, origin: ShareOrigin, outcome: ShareOutcome) {
        let given_back = outcome == ShareOutcome::GivenBack;
        let number = origin.number.get();
        match origin.keeper {
            ShareKeeper::Arbiter { node, arbiter } => {
                let (lane, share) = (u32::from(arbiter), u32::from(origin.share));
                self.nodes.settle(node, ShareSettled { lane, number, share, given_back });
            }
            ShareKeeper::Outbox { group } => drop(self.settle_outbox(group, number, given_back)),
        }
    }

    /// The message goes to the clients of another node: those that subscribe, if it is `direct`, and one member of each of
    /// `shares`. Returns its number in the lane.
    ///
    /// # Errors
    /// Why it goes nowhere: the node is lost, or answers nothing and the message is of QoS 0; or no frame can hold it, of which who waits
    /// for it hears with the answer.
    pub(super) fn publish_to_node(
        &mut self,
        node: NodeNumber,
        publication: &mut Publication<'_>,
        direct: bool,
        shares: &[Arc<ShareGroup>],
    ) -> Result<u64, DropReason> {
        let waits = publication.qos != QoS::AtMostOnce;
        let pushed = if direct && shares.is_empty() && publication.properties.is_none() {
            let (topic, payload) = (publication.topic.as_bytes(), publication.payload.as_slice());
            let Publication { identity, qos, retain, expires_at_ms: expiry_left_ms, .. } = *publication;
            self.nodes.push_with(node, waits, |number, out| {
                PlainMessage { number, identity, topic, payload, qos, retain, expiry_left_ms }.write(out);
            })
        } else {
            if !waits && self.nodes.drops_qos_0(node) {
                return Err(DropReason::NodeLost);
            }
            let message = Some(MessageRecord::from_message(&publication.share_message(), 0));
            let shares = shares.iter().map(|share| share.subscription_name().to_owned()).collect();
            let item = |number| NodeMessage { number, message, direct, shares, ..NodeMessage::default() };
            self.nodes.push(node, item)
        };
        let Pushed { number, is_too_long } = pushed.ok_or(DropReason::NodeLost)?;
        if waits {
            let waiter = self.waiter();
            if is_too_long {
                self.refuse_to(waiter);
            }
            let lane = self.nodes.lane(node);
            lane.unanswered.push_back((number, waiter));
            lane.awaited = true;
            self.wait_for_one_more(waiter);
        }
        if is_too_long { Err(DropReason::TooLong) } else { Ok(number) }
    }

    /// A connection ends, and waits for what went to other nodes so far, whatever its QoS: what its client sends elsewhere
    /// must not come before it (P5).
    pub(super) fn await_nodes(&mut self, connection: ConnectionKey) {
        let unsettled = self.nodes.lanes.iter().filter(|(_, lane)| !lane.outgoing.is_settled());
        let unsettled: Vec<_> = unsettled.map(|(&node, lane)| (node, lane.outgoing.next_number() - 1)).collect();
        for (node, last) in unsettled {
            let waiter = self.waiter();
            let lane = self.nodes.lane(node);
            lane.unanswered.push_back((last, waiter));
            lane.awaited = true;
            self.wait_for_one_more(waiter);
        }
        if let Some(waiter) = self.take_waiter() {
            self.answer_to(waiter, connection, None);
        }
    }

    /// A node handed on everything up to `number`.
    pub(super) fn on_node_answer(&mut self, node: NodeNumber, number: u64, settled: &mut Vec<Settled>) {
        let Some(lane) = self.nodes.lanes.get_mut(&node) else {
            return;
        };
        lane.outgoing.on_answer(number);
        lane.answered = lane.answered.max(number);
        let mut answered = Vec::new();
        while let Some((_, waiter)) = lane.unanswered.pop_front_if(|(waiting, _)| *waiting <= number) {
            answered.push(waiter);
        }
        for waiter in answered {
            self.settle_one(waiter, ReasonCode::Success, settled);
        }
    }

    /// A node is dead: nobody is connected there, but groups and other nodes may not have heard of it.
    pub(super) fn on_node_dead(&mut self, node: NodeNumber) {
        if !self.nodes.is_lost(node) {
            self.nodes.dead.insert(node);
        }
        if let Some(lane) = self.nodes.lanes.get_mut(&node) {
            // Its silence tells something of its lease from here on.
            lane.silent_seconds = 0;
        }
    }

    /// The ends of connections wait no longer for what went to nodes that are dead, and have been silent for longer than any
    /// lease lasts: it takes no effect any more, whenever they are lost.
    fn settle_ends(&mut self, has_ended: impl Fn(ConnectionKey) -> bool, settled: &mut Vec<Settled>) {
        let mut waiters = Vec::new();
        for (node, lane) in &mut self.nodes.lanes {
            if lane.is_silent() && self.nodes.dead.contains(node) {
                let came_by = |waiter: &Waiter| self.waiting.get(waiter.0)?.connection.map(|(came_by, _)| came_by);
                lane.unanswered.retain(|(_, waiter)| {
                    let is_over = came_by(waiter).is_some_and(&has_ended);
                    waiters.extend(is_over.then_some(*waiter));
                    !is_over
                });
            }
        }
        for waiter in waiters {
            self.settle_one(waiter, ReasonCode::Success, settled);
        }
    }

    /// A node is lost: nobody there waits for anything.
    pub(super) fn on_node_lost(&mut self, node: NodeNumber, settled: &mut Vec<Settled>) {
        self.nodes.lost.insert(node);
        self.nodes.dead.remove(&node);
        self.nodes.settled.remove(&node);
        if let Some(lane) = self.nodes.lanes.remove(&node) {
            for (_, waiter) in lane.unanswered {
                self.settle_one(waiter, ReasonCode::Success, settled);
            }
        }
    }
}

impl ArbiterState {
    /// Sends what gathered for other nodes in this turn.
    pub(super) fn flush_node_lanes(&mut self) {
        for (node, number) in self.lanes.nodes.push_settled() {
            self.taking.on_told(node, number);
        }
        let mut touched = std::mem::take(&mut self.lanes.nodes.touched);
        touched.sort_unstable();
        touched.dedup();
        for node in touched {
            self.send_node_lane(node);
        }
    }

    /// A node has answered: if it was silent, it gets some of what waited for that.
    pub(super) fn go_on_after_answer(&mut self, node: NodeNumber) {
        if self.lanes.nodes.lanes.get(&node).is_some_and(|lane| lane.outgoing.is_trying()) {
            self.send_node_lane(node);
        }
    }

    fn send_node_lane(&mut self, node: NodeNumber) {
        let Some(cluster) = &self.shared.cluster else {
            return;
        };
        // Theirs, and not that of the process, which may have registered since.
        let incarnation = self.lanes.incarnation();
        let (Some(target), Some(lane)) = (cluster.nodes.get(node), self.lanes.nodes.lanes.get_mut(&node)) else {
            return;
        };
        let mut awaited = None;
        while let Some(batch) = lane.outgoing.next_batch() {
            // What is sent again may have been lost with an answer, so it is answered whatever it is.
            let is_new = batch.previous >= lane.sent;
            // What gathered may be several batches, any of which may have what is waited for.
            let patient = is_new && !*awaited.get_or_insert_with(|| std::mem::take(&mut lane.awaited));
            lane.sent = lane.sent.max(batch.last);
            let messages = Messages {
                lane: u32::from(self.id),
                incarnation,
                target_incarnation: target.incarnation,
                previous: batch.previous,
                last: batch.last,
                items: batch.items,
                round: batch.round,
                payload: batch.payload,
                patient,
                clock_ms: self.now_ms,
            };
            if let Err(PeerFull) = cluster.peers.forward(target.node, Forwarded::Messages(messages)) {
                lane.outgoing.on_reset();
                return;
            }
        }
    }

    /// A node refused a batch, because one before it was lost.
    pub(super) fn on_node_gap(&mut self, node: NodeNumber, round: u32, last: u64) {
        if let Some(lane) = self.lanes.nodes.lanes.get_mut(&node) {
            // One that has forgotten what it answered is another process: it will be found lost.
            if lane.outgoing.on_gap(round, last).is_ok() {
                self.send_node_lane(node);
            }
        }
    }

    /// The link to a node broke and is there again.
    pub(super) fn on_node_reset(&mut self, node: NodeNumber) {
        if let Some(lane) = self.lanes.nodes.lanes.get_mut(&node) {
            lane.outgoing.on_reset();
            self.send_node_lane(node);
        }
    }

    /// Once a second.
    pub(super) fn retry_node_lanes(&mut self) {
        for node in self.lanes.nodes.stuck() {
            self.send_node_lane(node);
        }
        let mut settled = Vec::new();
        self.lanes.settle_ends(|key| self.departing.contains_key(&key), &mut settled);
        self.on_settled(settled);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::message::MessageIdentity;
    use crate::peers::{ITEM_BYTES_MAX, NoPeers};
    use crate::router::publish::Payload;

    /// A node that fails to stay up is started again every few minutes, for as long as others run.
    #[test]
    fn every_start_of_a_node_has_a_number_of_its_own() {
        const STARTS: u64 = 70_000;
        let nodes = Nodes::default();
        let start = |incarnation| PeerProcess { node: 1 + incarnation % 2, incarnation };
        let given: BTreeSet<NodeNumber> = (0..STARTS).map(|incarnation| nodes.number(start(incarnation))).collect();
        assert_eq!(given.len() as u64, STARTS);
        for incarnation in [0, 65_535, 65_536, STARTS - 1] {
            let number = nodes.number(start(incarnation));
            assert_eq!(nodes.get(number), Some(start(incarnation)), "and it keeps it");
        }
        assert_eq!(nodes.of(2).len() as u64, STARTS / 2);
        assert_eq!(nodes.get(STARTS as NodeNumber), None);
    }

    pub(in crate::router) fn publication(qos: QoS) -> Publication<'static> {
        Publication {
            identity: MessageIdentity::default(),
            topic: "t",
            topic_hash: 0,
            payload: Payload::copied(b"x"),
            qos,
            retain: false,
            properties: None,
            expires_at_ms: None,
            publisher: None,
            publisher_id: None,
            origin: None,
            passed_on: 0,
            message: None,
        }
    }

    /// P5: the session's next connection may be elsewhere, and must not begin before.
    #[test]
    fn the_end_of_a_connection_waits_for_qos_0_as_well() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 1, 0, 16);
        let connection = ConnectionKey::new(0, 1, 1);
        lanes.await_nodes(connection);
        assert_eq!(lanes.under_way(connection), 0, "nothing is on its way");
        let last = [5, 5, 6].map(|node| lanes.publish_to_node(node, &mut publication(QoS::AtMostOnce), true, &[]));
        assert_eq!(last, [Ok(1), Ok(2), Ok(1)]);
        assert!(lanes.take_waiter().is_none());
        lanes.await_nodes(connection);
        assert_eq!(lanes.under_way(connection), 1);
        let mut settled = Vec::new();
        lanes.on_node_answer(5, 2, &mut settled);
        assert_eq!(settled.len(), 0, "one of two nodes");
        lanes.on_node_lost(6, &mut settled);
        let came_by: Vec<_> = settled.iter().map(|settled| (settled.came_by, settled.ticket)).collect();
        assert_eq!(came_by, [(Some(connection), None)]);
    }

    /// F12: a node that is cut off ends all of its clients in one turn, while nobody answers for what is on its way. If each
    /// looked through what waits for all the others, that turn would take minutes.
    #[test]
    fn the_end_of_many_connections_takes_no_time_for_each_pair_of_them() {
        const CONNECTIONS: u32 = 200_000;
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 1, 0, 16);
        assert_eq!(lanes.publish_to_node(5, &mut publication(QoS::AtMostOnce), true, &[]), Ok(1));
        let began = std::time::Instant::now();
        for index in 0..CONNECTIONS {
            let connection = ConnectionKey::new(0, index, 1);
            lanes.await_nodes(connection);
            assert_eq!(lanes.under_way(connection), 1);
            assert!(began.elapsed().as_secs() < 10, "{index} have ended in ten seconds");
        }
        let mut settled = Vec::new();
        lanes.on_node_lost(5, &mut settled);
        assert_eq!(settled.len(), CONNECTIONS as usize);
        assert_eq!(lanes.under_way(ConnectionKey::new(0, 0, 1)), 0);
        assert_eq!(lanes.leftovers(), Vec::<String>::new());
    }

    /// Groups without a majority never fence a dead node, and so it is never lost: clients are to come back all the same.
    #[test]
    fn the_end_of_a_connection_does_not_wait_for_ever_for_a_node_that_is_dead() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 1, 0, 16);
        let [gone, there] = [1, 2].map(|index| ConnectionKey::new(0, index, 1));
        for connection in [gone, there] {
            assert!(lanes.publish_to_node(5, &mut publication(QoS::AtLeastOnce), true, &[]).is_ok());
            let waiter = lanes.take_waiter().expect("of QoS 1");
            lanes.answer_to(waiter, connection, Some(7));
        }
        lanes.await_nodes(gone);
        assert_eq!(lanes.under_way(gone), 2);
        let settle = |lanes: &mut Lanes| {
            let mut settled = Vec::new();
            lanes.settle_ends(|connection| connection == gone, &mut settled);
            settled.len()
        };
        let second = |lanes: &mut Lanes| {
            lanes.nodes.stuck();
            settle(lanes)
        };
        assert!((0..SILENT_SECONDS).all(|_| second(&mut lanes) == 0), "it may live");
        lanes.on_node_dead(5);
        assert!((1..SILENT_SECONDS).all(|_| second(&mut lanes) == 0), "it may have a lease, and not know");
        assert_eq!(second(&mut lanes), 2);
        assert_eq!((lanes.under_way(gone), lanes.under_way(there)), (0, 1), "who is there waits until it is lost");
        let mut settled = Vec::new();
        lanes.on_node_lost(5, &mut settled);
        assert_eq!(settled.len(), 1);
    }

    /// It would be sent for ever, and nothing behind it would come.
    #[test]
    fn what_no_frame_holds_is_dropped_and_refused_and_the_lane_goes_on() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 1, 0, 16);
        let payload = vec![0; ITEM_BYTES_MAX];
        let large = |qos| Publication { payload: Payload::copied(&payload), ..publication(qos) };
        let connection = ConnectionKey::new(0, 1, 1);
        let mut publish = |publication: &mut Publication<'_>, ticket| {
            let sent = lanes.publish_to_node(5, publication, true, &[]);
            if let Some(waiter) = lanes.take_waiter() {
                lanes.answer_to(waiter, connection, Some(ticket));
            }
            sent
        };
        assert_eq!(publish(&mut large(QoS::AtMostOnce), 1), Err(DropReason::TooLong));
        assert_eq!(publish(&mut large(QoS::AtLeastOnce), 2), Err(DropReason::TooLong));
        assert_eq!(publish(&mut publication(QoS::AtLeastOnce), 3), Ok(3));
        let batch = lanes.nodes.lane(5).outgoing.next_batch().expect("all three");
        assert_eq!((batch.last, batch.items), (3, 3));
        let mut payload = batch.payload;
        let items: Vec<_> = std::iter::from_fn(|| {
            NodeMessage::decode_length_delimited(&mut payload).ok().filter(|item| item.number > 0)
        })
        .map(|item| (item.number, item.message.is_some()))
        .collect();
        assert_eq!(items, [(1, false), (2, false), (3, true)]);
        let mut settled = Vec::new();
        lanes.on_node_answer(5, 3, &mut settled);
        let settled: Vec<_> = settled.iter().map(|settled| (settled.ticket, settled.reason)).collect();
        assert_eq!(settled, [(Some(2), ReasonCode::QuotaExceeded), (Some(3), ReasonCode::Success)]);
    }

    /// QoS 0 waits for nothing: what is dead, or silent and full, gets none, which the caller counts.
    #[test]
    fn what_waits_for_nothing_does_not_fill_a_lane_that_nobody_answers() {
        let mut lanes = Lanes::new(Some((1, &NoPeers)), 1, 0, 16);
        let payload = vec![0; NODE_LANE_BYTES_MAX / 2];
        let mut large = Publication { payload: Payload::copied(&payload), ..publication(QoS::AtMostOnce) };
        let sent = [5, 5, 5, 6].map(|node| lanes.publish_to_node(node, &mut large, true, &[]).is_ok());
        assert_eq!(sent, [true; 4], "it may answer");
        assert!(lanes.is_paused() && !lanes.nodes.is_blocked(5));
        assert!((0..SILENT_SECONDS).all(|_| !lanes.nodes.stuck().is_empty()));
        assert!(!lanes.is_paused() && lanes.nodes.is_blocked(5));
        let mut small = publication(QoS::AtMostOnce);
        let sent = [5, 6].map(|node| lanes.publish_to_node(node, &mut small, true, &[]).is_ok());
        assert_eq!(sent, [false, true], "there is room in the other one");
        assert_eq!(lanes.take_touched_blocked(), None);
        assert!(lanes.publish_to_node(5, &mut publication(QoS::AtLeastOnce), true, &[]).is_ok());
        assert_eq!(lanes.take_touched_blocked(), Some(BlockedLane::Node(5)), "who published it waits");
        assert_eq!(lanes.take_touched_blocked(), None);
        lanes.on_node_dead(6);
        assert_eq!(lanes.publish_to_node(6, &mut small, true, &[]), Err(DropReason::NodeLost));
    }
}
