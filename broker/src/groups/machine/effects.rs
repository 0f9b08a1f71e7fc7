//! What the groups' committed entries lead to: events for the arbiters that it concerns, here or elsewhere.

use std::sync::atomic::Ordering;

use kentongan_proto::mqtt::codec::AckKind;

use super::{FENCE_SESSIONS_MAX, Machine, Told, connection_of, propose_lost};
use crate::groups::incoming::{find_share, share_parts};
use crate::metrics::DropReason;
use crate::replicated::command::{self, Command, Owner};
use crate::replicated::effect::{Drop, Effect, FilterOutcome, OpenedSession};
use crate::replicated::{DeliverPersistent, Opened, SubscribeOutcome, SubscribedPersistent, UnsubscribedPersistent};
use crate::router::cluster::ClusterView;
use crate::router::{Event, Shared};
use crate::subscription::{ShareMember, ShareTarget, Target};

impl Machine {
    pub(super) fn carry_out(&mut self, group: u16, effects: impl IntoIterator<Item = Effect>) {
        let shared = self.shared();
        for effect in effects {
            self.carry_out_one(&shared, group, effect);
        }
    }

    fn carry_out_one(&mut self, shared: &Shared, group: u16, effect: Effect) {
        match effect {
            Effect::Opened(opened) => self.opened(shared, group, opened),
            Effect::Refused { owner, reason } => {
                let connection = connection_of(owner);
                self.push_to(shared, group, owner, Event::Refused { connection, reason });
            }
            Effect::Close { owner, client_id, epoch } => {
                let connection = connection_of(owner);
                self.push_to(shared, group, owner, Event::Close { connection, group, client_id, epoch });
            }
            Effect::Session { client_id, identity, exists } => {
                shared.registry.set_persistent(&client_id, &identity, exists);
            }
            Effect::Unrouted { client_id, exists } => shared.registry.set_unrouted(&client_id, exists),
            Effect::Subscribed { owner, client_id, epoch, packet_id, ticket, outcomes } => {
                let connection = connection_of(owner);
                let outcomes = outcomes.into_iter().map(outcome).collect();
                let subscribed = SubscribedPersistent { connection, epoch, packet_id, ticket, outcomes };
                let event = Event::Subscribed(subscribed);
                match &self.member {
                    None => self.push_to(shared, group, owner, event),
                    Some(_) => self.await_subscribed(group, owner, client_id, event),
                }
            }
            Effect::Unsubscribed { owner, client_id, epoch, packet_id, ticket, outcomes } => {
                let connection = connection_of(owner);
                let unsubscribed = UnsubscribedPersistent { connection, epoch, packet_id, ticket, outcomes };
                let event = Event::Unsubscribed(unsubscribed);
                match &self.member {
                    None => self.push_to(shared, group, owner, event),
                    // Behind the SUBACK that may wait: the owner would enter what it has just left, and a SUBSCRIBE that is
                    // proposed again because it has no answer would undo the UNSUBSCRIBE.
                    Some(_) => self.await_subscribed(group, owner, client_id, event),
                }
            }
            Effect::Interest { filter, wanted: true } => shared.index.subscribe(&filter, Target::Group(group)),
            Effect::Interest { filter, wanted: false } => {
                shared.index.unsubscribe(&filter, Target::Group(group));
            }
            Effect::ShareInterest { share, joined } => share_interest(shared, group, &share, joined),
            Effect::ShareOnline { share, online } => {
                if let Some(share) = find_share(shared, &share) {
                    share.set_sessions_online(group, online);
                }
            }
            Effect::ShareInFlight { share, least } => {
                let is_deposed =
                    |term| shared.cluster.as_ref().is_some_and(|of| of.leaders.hold().is_deposed(group, term));
                if self.pushes.term(group).is_some_and(is_deposed) {
                    return; // Its successor's word stands.
                }
                if let Some(share) = find_share(shared, &share) {
                    share.set_sessions_in_flight(group, least);
                }
                if self.member.is_some() {
                    self.loads.note(group, share, least);
                }
            }
            Effect::Deliver(delivery) => {
                let owner = delivery.owner;
                let connection = connection_of(owner);
                let now_ms = shared.now_ms();
                let delivery = DeliverPersistent {
                    connection,
                    epoch: delivery.epoch,
                    packet_id: delivery.packet_id,
                    qos: delivery.qos,
                    dup: delivery.dup,
                    retain: delivery.retain,
                    subscription_identifiers: delivery.identifiers,
                    message: delivery.message,
                    expires_at_ms: delivery.expiry_left_ms.map(|left| now_ms + left),
                    shared: Some(delivery.shared),
                };
                // Who has still to say what it has is sent all that is missing then.
                if self.is_synced(shared, group, owner)
                    && let Some(delivery) = self.under_way.offer(group, owner, delivery, under_way_bytes_max(shared))
                {
                    self.deliver(shared, group, owner, delivery);
                }
            }
            Effect::HasBeenSent { owner, packet_id, weight_bytes } => {
                self.under_way.has_been_sent(group, owner, packet_id, weight_bytes);
            }
            Effect::Settled { owner, packet_id } => {
                for delivery in self.under_way.settled(group, owner, packet_id, under_way_bytes_max(shared)) {
                    self.deliver(shared, group, owner, delivery);
                }
            }
            Effect::LetGo { owner } => self.under_way.restart(group, owner),
            Effect::Acknowledge { owner, epoch, kind, packet_id, reason } => {
                let connection = connection_of(owner);
                if kind == AckKind::PubRec && reason.is_error() {
                    self.counters.publishes_refused.inc(reason.into());
                }
                let event = Event::Acknowledge { connection, epoch, kind, packet_id, reason };
                self.push_to(shared, group, owner, event);
            }
            Effect::LaneAnswered { node, lane, number, refused } => {
                self.lane_answered(shared, group, node, lane, number, refused)
            }
            Effect::Route { position } => self.unrouted.entry(group).or_default().push_back(position),
            Effect::Picked { position } => self.outboxes.on_picked(group, position),
            Effect::PickedUpTo { position, share } => self.outboxes.on_picked_up_to(group, position, &share),
            Effect::RetainedTaken { owner, epoch, answer } => {
                let connection = connection_of(owner);
                self.push_to(shared, group, owner, Event::RetainedTaken { connection, epoch, answer });
            }
            Effect::Fenced { node, below, more } => self.was_fenced(shared, group, node, below, more),
            Effect::Lost { node, incarnation, more: true } => propose_lost(shared, group, node, incarnation),
            Effect::Lost { .. } => {}
            Effect::Dropped { reason, count } => {
                let reason = match reason {
                    Drop::QueueMessages => DropReason::QueueMessages,
                    Drop::QueueBytes => DropReason::QueueBytes,
                    Drop::Expired => DropReason::Expired,
                    Drop::SessionEnded => DropReason::SessionEnded,
                    Drop::NoMember => DropReason::NoSharedMember,
                    Drop::Delayed => DropReason::Delayed,
                };
                self.counters.messages_dropped.add(reason, count);
            }
            Effect::RetainedNotKept => self.counters.retained_not_kept.inc(),
            Effect::WillPublished => self.counters.wills_published.inc(),
            Effect::SessionExpired => self.counters.sessions_expired.inc(),
        }
    }

    /// Consecutive deliveries for an arbiter travel as one event.
    pub(super) fn deliver(&mut self, shared: &Shared, group: u16, owner: Owner, delivery: DeliverPersistent) {
        let arbiter = delivery.connection.arbiter();
        let is_of_this = |cluster: &ClusterView| {
            cluster.node == owner.node && self.pushes.is_synced(group, owner.node, delivery.connection)
        };
        let joins = owner.incarnation == shared.incarnation() && shared.cluster.as_ref().is_none_or(is_of_this);
        let by = shared.cluster.as_ref().and_then(|_| Some((group, self.pushes.term(group)?)));
        match self.events.get_mut(usize::from(arbiter)).and_then(|events| events.last_mut()) {
            Some(Told { event: Event::Deliver(deliveries), by: before }) if joins && *before == by => {
                deliveries.push(delivery);
            }
            _ => self.push_to(shared, group, owner, Event::Deliver(vec![delivery])),
        }
    }

    fn was_fenced(&mut self, shared: &Shared, group: u16, node: u64, below: u64, more: bool) {
        if more {
            let fence = command::Fence { below, sessions_max: FENCE_SESSIONS_MAX, node };
            shared.submitter.propose(group, Command::Fence(fence));
            return;
        }
        self.unfenced = self.unfenced.saturating_sub(1);
        if self.unfenced == 0
            && let Some(fenced) = self.fenced.take()
        {
            // Start-up may have given up waiting.
            let _ = fenced.send(());
        }
    }

    fn opened(&mut self, shared: &Shared, group: u16, opened: OpenedSession) {
        let owner = opened.owner;
        self.under_way.restart(group, owner);
        let connection = connection_of(owner);
        let subscriptions = opened.subscriptions.into_iter().map(outcome).collect();
        let opened = Opened {
            connection,
            client_id: opened.client_id,
            epoch: opened.epoch,
            group: opened.persistent.then_some(group),
            session_present: opened.session_present,
            subscriptions,
            received: opened.received,
        };
        self.push_to(shared, group, owner, opened.into());
    }
}

pub(super) fn under_way_bytes_max(shared: &Shared) -> usize {
    shared.under_way_bytes_max.load(Ordering::Relaxed)
}

fn outcome(outcome: FilterOutcome) -> SubscribeOutcome {
    let FilterOutcome { filter, reason, options, identifier, read } = outcome;
    SubscribeOutcome { filter, reason, options, identifier, read }
}

fn share_interest(shared: &Shared, group: u16, share: &str, joined: bool) {
    let Some((name, filter)) = share_parts(share) else {
        return;
    };
    let target = ShareTarget::Session { group };
    if joined {
        let member = ShareMember { target, client_id_hash: u64::from(group), node: 0, qos0_only: false };
        shared.index.join_share(name, filter, member);
    } else {
        shared.index.leave_share(name, filter, &target);
    }
}
