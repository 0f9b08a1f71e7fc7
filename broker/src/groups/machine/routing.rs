//! Outboxes: whom their entries go to, and the batches that take them there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use crossbeam::channel::Sender;
use kentongan_cluster::lane::Batch;
use kentongan_proto::mqtt::QoS;
use prost::Message as _;

use super::{Machine, PICKED_ENTRIES_MAX, is_over, on_process_clock};
use crate::groups::backup::HOLD_MAX;
use crate::groups::incoming::{find_share, for_member, hand_on_first_time};
use crate::later::PIECES_LEVEL;
use crate::message::{Message, MessageIdentity};
use crate::metrics::{DropReason, PublishRefusal};
use crate::peers::wire::{self, Forwarded, Messages, NodeMessage, Propose};
use crate::peers::{PeerFull, in_pieces, write_item};
use crate::plants::{Plant, is_planted};
use crate::replicated::command::{self, Command, LaneBatch, LaneMessage, MessageRecord};
use crate::replicated::state::{OUTBOX_LANE, OutboxEntry, PickTarget};
use crate::replicated::submitter::OutboxTarget;
use crate::router::node_lanes::PeerProcess;
use crate::router::share_settling::ShareOrigin;
use crate::router::{Event, Shared};
use crate::subscription::{Matched, NodeNumber, PassedOver, PickStrategy, ShareGroup, ShareTarget, topic_hash};

impl Machine {
    /// Routes what may be routed. What was matched counts only under a lease that is looked at afterwards: without one the
    /// index may lack a subscription that was acknowledged elsewhere.
    fn route_outboxes(&mut self, shared: &Shared) {
        for origin in self.unrouted.keys().copied().collect::<Vec<_>>() {
            while let Some(position) = self.unrouted.get_mut(&origin).and_then(VecDeque::pop_front) {
                // What was picked for a node that is fenced by now stands elsewhere.
                let entry = self.groups.get(&origin).and_then(|state| state.outbox_entry(position)).cloned();
                let Some(entry) = entry else {
                    continue;
                };
                let entry = OutboxEntry { message: identified(&entry.message, origin, position), ..entry };
                let targets = self.targets(shared, origin, &entry);
                if let Some(cluster) = &shared.cluster
                    && !cluster.may_acknowledge()
                {
                    self.unrouted.entry(origin).or_default().push_front(position);
                    return;
                }
                // The files that say who may what are each node's own, so whoever leads asks its own, and no state says it.
                let is_refused = entry.will_of.as_ref().is_some_and(|identity| {
                    let client_id = &entry.message.publisher;
                    !shared.authority.may_will_be_published(identity, client_id, entry.is_granted, &entry.message)
                });
                if is_refused {
                    self.counters.publishes_refused.inc(PublishRefusal::NotAuthorized);
                    self.outboxes.begin(origin, position, 0, None);
                    continue;
                }
                // What was picked for a node goes there whatever the time is, for only that one settles it.
                let goes_nowhere = entry.pick.is_none() && !entry.message.retain;
                if goes_nowhere && self.groups.get(&origin).is_some_and(|state| is_over(&entry.message, state)) {
                    self.counters.messages_dropped.inc(DropReason::Expired);
                    self.outboxes.begin(origin, position, 0, None);
                    continue;
                }
                self.route(shared, origin, position, &entry.message, targets);
            }
            self.unrouted.remove(&origin);
        }
    }

    fn targets(&self, shared: &Shared, origin: u16, entry: &OutboxEntry) -> Targets {
        let message = &entry.message;
        let mut targets = Targets::default();
        match (&entry.share, entry.pick) {
            (Some(name), Some(pick)) => self.to_picked(shared, origin, name, pick, &mut targets),
            (Some(name), None) => match find_share(shared, name) {
                Some(group) => self.pick(shared, origin, entry, &group, &mut targets),
                None => targets.unserved += 1,
            },
            (None, _) => {
                let mut matched = Matched::default();
                shared.index.matches(&message.topic, topic_hash(&message.topic), &mut matched);
                targets.arbiters.extend(matched.arbiters.iter());
                targets.nodes.extend(matched.nodes_for(message.qos));
                if message.qos != QoS::AtMostOnce {
                    for &group in &matched.groups {
                        targets.groups.entry(group).or_default().match_subscriptions = true;
                    }
                }
                let undecided = |share: &&Arc<ShareGroup>| !entry.is_picked_of(share.subscription_name());
                for group in matched.shares.iter().filter(undecided) {
                    self.pick(shared, origin, entry, group, &mut targets);
                }
                targets.picks.sort_unstable_by(|first, second| first.share.cmp(&second.share));
                targets.picked_up_to = entry.picked_up_to.as_deref().map(str::to_owned);
                if message.retain {
                    let group = shared.submitter.slots().group_of(&message.topic);
                    targets.groups.entry(group).or_default().store_retained = true;
                }
            }
        }
        let local = on_process_clock(message, &self.groups[&origin], shared.now_ms());
        for lane_message in targets.groups.values_mut() {
            lane_message.message = Some(MessageRecord::from_message(&local, 0));
        }
        targets
    }

    /// Who is to get a message of a shared subscription, which is committed before it is sent.
    fn pick(&self, shared: &Shared, origin: u16, entry: &OutboxEntry, share: &ShareGroup, targets: &mut Targets) {
        let message = &entry.message;
        let strategy: PickStrategy = shared.settings.shared.strategy.into();
        let publisher = strategy.publisher_hash(&message.publisher);
        let topic = strategy.topic_hash(&message.topic, topic_hash(&message.topic));
        let online_only = message.qos == QoS::AtMostOnce;
        let nodes = shared.cluster.as_ref().map(|cluster| &cluster.nodes);
        let passed_over = match (entry.passed_over, nodes) {
            (Some((node, incarnation)), Some(nodes)) => {
                PassedOver::given_back(nodes.number(PeerProcess { node, incarnation }), entry.given_back)
            }
            _ => PassedOver::Nobody,
        };
        // The index knows the dead until they are lost.
        let state = &self.groups[&origin];
        let process = |number: NodeNumber| nodes.and_then(|nodes| nodes.get(number));
        let is_dead = |number: NodeNumber| process(number).is_some_and(|of| state.is_fenced(of.node, of.incarnation));
        let target = match share.pick_living(strategy, publisher, topic, passed_over, online_only, &is_dead) {
            Some(ShareTarget::Connection { .. }) => Some(own_process(shared)),
            Some(ShareTarget::Session { group }) => Some(PickTarget::Group(group)),
            Some(ShareTarget::Node { node }) => {
                process(node).map(|PeerProcess { node, incarnation }| PickTarget::Node { node, incarnation })
            }
            None => None,
        };
        match target {
            Some(target) => {
                let share = share.subscription_name().to_owned();
                targets.picks.push(command::Pick { share, target: Some(target.record()) });
            }
            None => targets.unserved += 1,
        }
    }

    /// To whom was picked.
    fn to_picked(&self, shared: &Shared, origin: u16, share: &Arc<str>, pick: PickTarget, targets: &mut Targets) {
        let (node, incarnation) = match pick {
            PickTarget::Group(group) => {
                targets.groups.entry(group).or_default().shares.push(share.to_string());
                return;
            }
            pick if pick == own_process(shared) => {
                targets.member_here = Some(Arc::clone(share));
                return;
            }
            PickTarget::Node { node, incarnation } => (node, incarnation),
        };
        let Some(cluster) = &shared.cluster else {
            return;
        };
        // Nobody would answer for one that is lost. What was picked for it is for others when the fence is applied here.
        if node != cluster.node
            && !self.groups[&origin].is_fenced(node, incarnation)
            && self.member.as_ref().is_some_and(|member| member.is_not_lost(node, incarnation))
        {
            targets.share = Some(Arc::clone(share));
            targets.nodes.insert(cluster.nodes.number(PeerProcess { node, incarnation }));
        }
    }

    fn route(&mut self, shared: &Shared, origin: u16, position: u64, message: &Arc<Message>, targets: Targets) {
        let local = on_process_clock(message, &self.groups[&origin], shared.now_ms());
        if targets.unserved > 0 {
            self.counters.messages_dropped.add(DropReason::NoSharedMember, targets.unserved);
        }
        if message.retain {
            shared.retained_possible.store(true, Ordering::Relaxed);
        }
        if !targets.arbiters.is_empty() || targets.member_here.is_some() {
            hand_on_first_time(shared, origin, position, || {
                let route = |arbiter| (arbiter, Event::Route { message: Arc::clone(&local), weight: 0 });
                let share = targets.member_here.as_ref().zip(ShareOrigin::outbox(origin, position));
                let member = share.map(|(share, origin)| for_member(shared, &local, share, origin, 0));
                targets.arbiters.into_iter().map(route).chain(member)
            });
        }
        if is_planted(Plant::LoseOutbox) {
            shared.submitter.propose(origin, Command::Routed(command::Routed { positions: vec![position] }));
        }
        let lanes = targets.groups.len() + targets.nodes.len();
        let (picks, after) = (targets.picks, targets.picked_up_to.unwrap_or_default());
        let (routed, more) = (lanes == 0, false);
        let picked = (!picks.is_empty()).then_some(command::PickedEntry { position, picks, routed, more, after });
        self.outboxes.begin(origin, position, lanes, picked);
        for (target, mut lane_message) in targets.groups {
            let is_taken = self.outboxes.push(origin, OutboxTarget::Group(target), position, |number, out| {
                lane_message.number = number;
                let place = || LaneMessage { number, ..LaneMessage::default() };
                let write = command::encode_lane_message;
                write_item(out, |out| write(&lane_message, out), |out| write(&place(), out))
            });
            if !is_taken {
                self.counters.messages_dropped.inc(DropReason::TooLong);
            }
        }
        let direct = targets.share.is_none();
        let shares: Vec<_> = targets.share.iter().map(|share| share.to_string()).collect();
        for node in targets.nodes {
            let message = Some(MessageRecord::from_message(&local, 0));
            let shares = shares.clone();
            let is_taken = self.outboxes.push(origin, OutboxTarget::Node(node), position, |number, out| {
                let item = NodeMessage { number, message, direct, shares, ..NodeMessage::default() };
                let place = || NodeMessage { number, ..NodeMessage::default() };
                let write = |item: &NodeMessage, out: &mut BytesMut| {
                    // Cannot fail: a `BytesMut` grows.
                    let _ = item.encode_length_delimited(out);
                };
                write_item(out, |out| write(&item, out), |out| write(&place(), out))
            });
            if !is_taken {
                self.counters.messages_dropped.inc(DropReason::TooLong);
            }
        }
    }

    pub(super) fn hold_outboxes(&mut self, token: Weak<()>, answer: &Sender<u64>) {
        if let Some(shared) = self.shared.get() {
            self.outboxes_held = Some((token, shared.now_ms() + HOLD_MAX.as_millis() as u64));
            // An asker that is gone holds nothing.
            let _ = answer.send(shared.incarnation());
        }
    }

    fn holds_outboxes(&mut self, now_ms: u64) -> bool {
        let holds = |(token, until_ms): &(Weak<()>, u64)| token.strong_count() > 0 && now_ms < *until_ms;
        if !self.outboxes_held.as_ref().is_some_and(holds) {
            self.outboxes_held = None;
        }
        self.outboxes_held.is_some()
    }

    /// Sends and proposes what routing led to.
    pub(super) fn submit(&mut self, shared: &Shared) {
        self.outboxes.cut_at(shared.piece_bytes());
        self.route_outboxes(shared);
        let holds = self.holds_outboxes(shared.now_ms());
        // What is picked may take the place of what it was picked for.
        let groups = &self.groups;
        let knows_pieces = |group: u16| groups.get(&group).is_some_and(|state| state.level() >= PIECES_LEVEL);
        let picked = if holds { BTreeMap::new() } else { self.outboxes.take_picked(knows_pieces) };
        for (group, picked) in picked {
            let parts = picked.chunks(PICKED_ENTRIES_MAX);
            for entries in parts.flat_map(|part| in_pieces(part.to_vec(), shared.piece_bytes())) {
                shared.submitter.propose(group, Command::Picked(command::Picked { entries }));
            }
        }
        for (origin, target) in self.outboxes.take_touched() {
            while let Some(batch) = self.outboxes.next_batch(origin, target) {
                if self.send_batch(shared, origin, target, batch).is_err() {
                    self.outboxes.hold(origin, target);
                    break;
                }
            }
        }
        if holds {
            return;
        }
        for (group, mut positions) in self.outboxes.take_routed() {
            // Some are settled already.
            let state = self.groups.get(&group);
            positions.retain(|&position| state.is_some_and(|state| state.outbox_entry(position).is_some()));
            if !positions.is_empty() {
                shared.submitter.propose(group, Command::Routed(command::Routed { positions }));
            }
        }
    }

    fn send_batch(&self, shared: &Shared, origin: u16, target: OutboxTarget, batch: Batch) -> Result<(), PeerFull> {
        match target {
            OutboxTarget::Group(group) => {
                // An outbox outlives every incarnation.
                let lane = OUTBOX_LANE | u64::from(origin);
                let incarnation = u64::MAX;
                let (previous, clock_ms) = (batch.previous, shared.now_ms());
                let head = LaneBatch { lane, incarnation, previous, clock_ms, ..LaneBatch::default() };
                let command = command::encode_lane(&head, &batch.payload);
                let leader = shared.cluster.as_ref().map(|cluster| (cluster, cluster.leaders.get(group)));
                match leader {
                    None => shared.submitter.propose_encoded(group, command),
                    Some((cluster, Some(leader))) if leader.node == cluster.node => {
                        shared.submitter.propose_encoded(group, command);
                    }
                    Some((cluster, Some(leader))) => {
                        let propose = Propose { group: u32::from(group), command };
                        return cluster.peers.forward(leader.node, Forwarded::Propose(propose));
                    }
                    Some((_, None)) => return Err(PeerFull),
                }
                Ok(())
            }
            OutboxTarget::Node(node) => {
                let cluster = shared.cluster.as_ref().ok_or(PeerFull)?;
                let process = cluster.nodes.get(node).ok_or(PeerFull)?;
                let messages = Messages {
                    lane: wire::OUTBOX_LANE | u32::from(origin),
                    incarnation: wire::OUTBOX_INCARNATION,
                    target_incarnation: process.incarnation,
                    previous: batch.previous,
                    last: batch.last,
                    items: batch.items,
                    round: batch.round,
                    payload: batch.payload,
                    patient: false,
                    clock_ms: shared.now_ms(),
                };
                cluster.peers.forward(process.node, Forwarded::Messages(messages))
            }
        }
    }
}

/// Whom an entry of an outbox goes to.
#[derive(Debug, Default)]
struct Targets {
    arbiters: Vec<u16>,
    /// `$share/NAME/FILTER`, for a member here.
    member_here: Option<Arc<str>>,
    nodes: BTreeSet<NodeNumber>,
    /// For a member at the node; else it is for all there who subscribe.
    share: Option<Arc<str>>,
    groups: BTreeMap<u16, LaneMessage>,
    /// Who is to get it of shared subscriptions.
    picks: Vec<command::Pick>,
    /// Of those up to this one it is decided already.
    picked_up_to: Option<String>,
    /// Shared subscriptions that nobody could take it for.
    unserved: u64,
}

/// A will has no identity by which it came: it gets that of its place in the outbox, which is the same whoever routes it.
pub(crate) fn identified(message: &Arc<Message>, origin: u16, position: u64) -> Arc<Message> {
    if message.identity != MessageIdentity::default() {
        return Arc::clone(message);
    }
    let identity = MessageIdentity { lane: OUTBOX_LANE | u64::from(origin), number: position };
    Arc::new(Message { identity, ..Message::clone(message) })
}

/// This start of this node, as one that can be picked.
fn own_process(shared: &Shared) -> PickTarget {
    let node = shared.cluster.as_ref().map_or(0, |cluster| cluster.node);
    PickTarget::Node { node, incarnation: shared.incarnation() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(identity: MessageIdentity) -> Arc<Message> {
        Arc::new(Message {
            identity,
            topic: Arc::from("t"),
            payload: Bytes::new(),
            qos: QoS::AtLeastOnce,
            retain: false,
            publisher: Arc::from("c"),
            properties: None,
            expires_at_ms: None,
        })
    }

    /// Two copies of it are known to be one, whoever routed them, and those of two wills to be two.
    #[test]
    fn a_will_is_identified_by_its_place() {
        let will = message(MessageIdentity::default());
        assert!(!will.is_copy_of(&will));
        let routed = identified(&will, 3, 7);
        assert!(routed.is_copy_of(&identified(&will, 3, 7)));
        assert!(!routed.is_copy_of(&identified(&will, 3, 8)) && !routed.is_copy_of(&identified(&will, 4, 7)));
    }

    #[test]
    fn what_has_an_identity_keeps_it() {
        let identity = MessageIdentity { lane: 1, number: 2 };
        assert_eq!(identified(&message(identity), 3, 7).identity, identity);
    }
}
