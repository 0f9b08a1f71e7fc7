//! What reaches an arbiter from other threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, ReasonCode};

use super::arbiter::ArbiterState;
use super::batch::{Addressee, Batch};
use super::cluster::{Leader, Sent};
use super::looking_again::Changed;
use super::publish::Publication;
use super::share_settling::{Kept, ShareAnswer, ShareOrigin, ShareOutcome, Taken, TellingLane};
use super::visit::Visit;
use super::{ConnectionKey, lanes};
use crate::auth::{RenewedRights, Verified};
use crate::listener::Accepted;
use crate::message::Message;
use crate::metrics::DropReason;
use crate::replicated::effect::PageAnswer;
use crate::replicated::{
    DeliverPersistent, LaneAnswer, Opened, RetainedPage, SubscribedPersistent, UnsubscribedPersistent,
};
use crate::subscription::{CachedMatch, NodeNumber, PassedOver, ShareGroup};

/// Emptied batches with more memory than this are not kept for others. What a link brings at once fits, unless payloads are tiny.
const RECYCLED_BYTES_MAX: usize = 512 * 1024;

/// One thing for an arbiter to do.
#[derive(Debug)]
pub enum Event {
    /// Sockets for it.
    Accepted(Vec<Accepted>),
    /// Messages from another arbiter or node.
    Batch {
        /// The arbiter that filled it and gets it back; `None`: it brings what came from another node, and goes back to
        /// [`Shared::recycled_from_nodes`](super::Shared::recycled_from_nodes).
        from: Option<u16>,
        /// The messages.
        batch: Batch,
        /// What it was pushed with.
        weight: usize,
    },
    /// A group answered a lane.
    LaneAnswered(LaneAnswer),
    /// A thread looked at a password.
    Verified {
        /// Whose.
        connection: ConnectionKey,
        /// What it found.
        verified: Verified,
    },
    /// An authentication server said again what a client may, or did not.
    RightsRenewed {
        /// Whose.
        connection: ConnectionKey,
        /// What it said.
        rights: RenewedRights,
    },
    /// The files of users and rights were read again, or keys of tokens.
    PolicyChanged(Changed),
    /// A claim was granted.
    Opened(Box<Opened>),
    /// A claim was granted by another node, which cannot say what the session has: it is too much.
    OpenedInVain(Box<Opened>),
    /// A claim was refused.
    Refused {
        /// Whose.
        connection: ConnectionKey,
        /// For CONNACK.
        reason: ReasonCode,
    },
    /// Another connection wants the Client Identifier.
    TakeOver {
        /// Who has it.
        connection: ConnectionKey,
        /// Which.
        client_id: Arc<str>,
    },
    /// Messages for persistent sessions here.
    Deliver(Vec<DeliverPersistent>),
    /// PUBREC, PUBREL or PUBCOMP that a group committed.
    Acknowledge {
        /// For whom.
        connection: ConnectionKey,
        /// Of which claim.
        epoch: u64,
        /// Which packet.
        kind: AckKind,
        /// Packet Identifier.
        packet_id: PacketId,
        /// Reason Code.
        reason: ReasonCode,
    },
    /// Subscriptions of a persistent session stand.
    Subscribed(SubscribedPersistent),
    /// Subscriptions of a persistent session are gone.
    Unsubscribed(UnsubscribedPersistent),
    /// Retained messages that were asked for.
    RetainedPage(RetainedPage),
    /// A group took retained messages in for a session here, or wants them to be read again.
    RetainedTaken {
        /// Whose.
        connection: ConnectionKey,
        /// Of which claim.
        epoch: u64,
        /// What it says of them.
        answer: PageAnswer,
    },
    /// A message that a group routes from its outbox: this arbiter's own subscribers of it.
    Route {
        /// The message, its expiry on the process clock.
        message: Arc<Message>,
        /// What it was pushed with.
        weight: usize,
    },
    /// A message for a member of a shared subscription.
    RouteShare {
        /// The message, its expiry on the process clock.
        message: Arc<Message>,
        /// For whose members.
        share: Arc<ShareGroup>,
        /// Who was picked of those here.
        member: ConnectionKey,
        /// Who waits for what becomes of it.
        origin: ShareOrigin,
        /// What it was pushed with.
        weight: usize,
    },
    /// Another node, or an outbox, has a message for a member here, and there is none.
    NoMember {
        /// Whose answer waits; `None`: nobody's, it is of QoS 0.
        origin: Option<ShareOrigin>,
    },
    /// Another node says what became of messages that it was handed for its members.
    ShareAnswered {
        /// Its number.
        node: NodeNumber,
        /// One a message.
        answers: Vec<ShareAnswer>,
    },
    /// A claim elsewhere waits for a connection to end.
    Close {
        /// Which connection.
        connection: ConnectionKey,
        /// The group of its session.
        group: u16,
        /// What it holds.
        client_id: Arc<str>,
        /// Of its claim.
        epoch: u64,
    },
    /// A group has a new leader, or the link to its leader broke.
    Led {
        /// Which group.
        group: u16,
        /// Who leads it; `None`: nobody, as far as is known.
        leader: Option<Leader>,
    },
    /// Another node has handed on what its lane brought.
    NodeAnswered {
        /// Its number.
        node: NodeNumber,
        /// Up to this one.
        number: u64,
    },
    /// Another node refused a batch, for one before it was lost.
    NodeGap {
        /// Its number.
        node: NodeNumber,
        /// Of the batch.
        round: u32,
        /// The last that it has.
        last: u64,
    },
    /// The link to another node broke and is there again.
    NodeReset {
        /// Its number.
        node: NodeNumber,
    },
    /// Another node is dead: it is not lost before everybody has confirmed that.
    NodeDead {
        /// Its number.
        node: NodeNumber,
    },
    /// Another node is lost.
    NodeLost {
        /// Its number.
        node: NodeNumber,
    },
    /// Every node has heard of all that clients here had subscribed to.
    Barrier {
        /// Up to which SUBSCRIBE.
        ticket: u64,
    },
    /// This node's lease ran out.
    LeaseLapsed,
    /// This node has a lease again.
    LeaseBack,
    /// This node has had no lease for long.
    CutOff,
    /// This node was declared dead.
    Unregistered,
    /// This node was registered (anew).
    Registered {
        /// As this.
        incarnation: u64,
    },
    /// A message that this arbiter routes to everyone.
    Publish(Arc<Message>),
    /// Publishers that paused may look again.
    ResumePublishers,
    /// Clients are to use another server.
    Move {
        /// How many of those here.
        count: u64,
        /// Only those that can be told where it is.
        only_told: bool,
    },
    /// One more loop turns: see [`Pulse`](super::Pulse).
    Pulse(Arc<AtomicUsize>),
    /// An operator looks at something here, or has it done.
    Visit(Visit),
    /// The process stops.
    EndAll,
}

impl ArbiterState {
    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Accepted(sockets) => crate::connection::ConnectionActor::start_all(self, sockets),
            Event::Batch { from, batch, weight } => self.on_batch(from, batch, weight),
            Event::LaneAnswered(answer) => self.on_lane_answered(&answer),
            Event::Verified { connection, verified } => self.on_verified(connection, verified),
            Event::RightsRenewed { connection, rights } => self.on_rights_renewed(connection, rights),
            Event::PolicyChanged(changed) => self.look_again_at_all(changed),
            Event::Opened(opened) => self.on_opened(*opened),
            Event::OpenedInVain(opened) => self.on_opened_in_vain(&opened),
            Event::Refused { connection, reason } => self.on_refused(connection, reason),
            Event::TakeOver { connection, client_id } => self.on_take_over(connection, &client_id),
            Event::Deliver(deliveries) => {
                for delivery in &deliveries {
                    self.deliver_persistent(delivery);
                }
            }
            Event::Acknowledge { connection, epoch, kind, packet_id, reason } => {
                self.on_group_acknowledges(connection, epoch, kind, packet_id, reason);
            }
            Event::Subscribed(subscribed) => self.on_subscribed_persistent(subscribed),
            Event::Unsubscribed(unsubscribed) => self.on_unsubscribed_persistent(unsubscribed),
            Event::RetainedPage(page) => self.on_retained_page(page),
            Event::RetainedTaken { connection, epoch, answer } => {
                self.on_retained_taken(connection, epoch, answer);
            }
            Event::Route { message, weight } => {
                let mut publication = self.publication_of(&message);
                let cached = self.deliver_to_subscribers(&mut publication, None);
                cached.into_iter().for_each(|cached| self.cache.put_back(cached));
                self.shared.inboxes[usize::from(self.id)].release(weight);
            }
            Event::RouteShare { message, share, member, origin, weight } => {
                self.templates.begin();
                let mut publication = self.publication_of(&message);
                publication.origin = Some(origin);
                self.deliver_to_member(&mut publication, member, &share);
                self.shared.inboxes[usize::from(self.id)].release(weight);
            }
            Event::NoMember { origin } => self.on_nobody(origin),
            Event::ShareAnswered { node, answers } => self.on_share_answered(node, answers),
            Event::Close { connection, group, client_id, epoch } => self.on_close(connection, group, &client_id, epoch),
            Event::Led { group, leader } => self.on_led(group, leader),
            Event::NodeAnswered { node, number } => {
                let mut settled = Vec::new();
                self.lanes.on_node_answer(node, number, &mut settled);
                self.go_on_after_answer(node);
                self.on_settled(settled);
                let let_go = self.taking.on_answer(TellingLane::Node(node), number);
                self.hand_to_takers(let_go);
            }
            Event::NodeGap { node, round, last } => self.on_node_gap(node, round, last),
            Event::NodeReset { node } => self.on_node_reset(node),
            Event::NodeDead { node } => self.lanes.on_node_dead(node),
            Event::NodeLost { node } => {
                let mut settled = Vec::new();
                self.lanes.on_node_lost(node, &mut settled);
                self.on_settled(settled);
                self.on_share_node_lost(node);
            }
            Event::Barrier { ticket } => self.on_barrier(ticket),
            Event::LeaseLapsed => self.refuse_claims(),
            Event::LeaseBack => self.acknowledge_withheld(),
            Event::CutOff => self.on_cut_off(),
            Event::Unregistered => self.on_unregistered(),
            Event::Registered { incarnation } => self.on_registered(incarnation),
            Event::Publish(message) => self.route_message(&message),
            Event::ResumePublishers => self.resume_publishers(),
            Event::Move { count, only_told } => self.move_clients(count, only_told),
            Event::Pulse(unanswered) => drop(unanswered.fetch_sub(1, Ordering::Relaxed)),
            Event::Visit(visit) => visit.carry_out(self),
            Event::EndAll => self.end_all(),
        }
    }

    fn on_batch(&mut self, from: Option<u16>, mut batch: Batch, weight: usize) {
        let oldest = batch.take_oldest();
        // Who wants the topic of the message before.
        let mut run: Option<Box<CachedMatch>> = None;
        batch.drain(|publication, addressee, again| {
            if !again && let Some(other) = run.take() {
                self.cache.put_back(other);
            }
            match addressee {
                Addressee::Subscribers => run = self.deliver_to_subscribers(publication, run.take()),
                Addressee::Member(member, share, _) => {
                    self.templates.begin();
                    self.deliver_to_member(publication, *member, share);
                }
            }
        });
        run.into_iter().for_each(|last| self.cache.put_back(last));
        oldest.into_iter().for_each(|oldest| self.timing.heard_of(oldest));
        self.shared.inboxes[usize::from(self.id)].release(weight);
        // Full: more batches are under way than are worth keeping.
        match from {
            Some(from) => drop(self.shared.recycled[usize::from(from)].push(batch)),
            // What a lane sends after a pause may be megabytes; a turn never is.
            None if batch.capacity_bytes() > RECYCLED_BYTES_MAX => {}
            None => drop(self.shared.recycled_from_nodes.push(batch)),
        }
        self.shared.wake_paused_publishers();
    }

    /// The connections of this arbiter that subscribe get a message, and nobody else. `cached`: who wants its topic, if that is at hand.
    /// Returned for the next one.
    fn deliver_to_subscribers(
        &mut self,
        publication: &mut Publication<'_>,
        cached: Option<Box<CachedMatch>>,
    ) -> Option<Box<CachedMatch>> {
        self.templates.begin();
        if self.is_over(publication) {
            self.counters.messages_dropped.inc(DropReason::Expired);
            return cached;
        }
        let cached = match cached {
            Some(cached) => self.cache.keep_local(cached, &self.subscriptions),
            None => self.cache.take_local(publication.topic, publication.topic_hash, &self.subscriptions),
        };
        for target in &cached.local {
            self.deliver_matched(publication, target);
        }
        Some(cached)
    }

    fn on_share_answered(&mut self, node: NodeNumber, answers: Vec<ShareAnswer>) {
        for answer in answers {
            let Some(kept) = self.settling.on_answer(node, answer) else {
                continue;
            };
            kept.share.ended_at_node(node);
            self.counters.shared_elsewhere.dec();
            if answer.outcome == ShareOutcome::GivenBack {
                self.pick_again(&kept, PassedOver::given_back(node, kept.given_back.into()));
            }
        }
        self.resume_publishers();
    }

    /// What a lost node had for its members goes to others, and what it kept to those here for whom it was taken.
    fn on_share_node_lost(&mut self, node: NodeNumber) {
        let let_go = self.taking.on_node_lost(node);
        self.hand_to_takers(let_go);
        for kept in self.settling.on_node_lost(node) {
            self.counters.shared_elsewhere.dec();
            self.pick_again(&kept, PassedOver::Node(node));
        }
        self.resume_publishers();
    }

    /// This node was declared dead: those who have messages from here answer to nobody for them. The numbers of the lanes
    /// begin anew, so nothing may be left that an answer could be mistaken for.
    pub(super) fn forget_handed_over(&mut self) {
        for (node, kept) in self.settling.take_all() {
            kept.share.ended_at_node(node);
            self.counters.shared_elsewhere.dec();
        }
    }

    fn pick_again(&mut self, kept: &Kept, passed_over: PassedOver) {
        if kept.message.expires_at_ms.is_some_and(|at| at <= self.now_ms) {
            return self.counters.messages_dropped.inc(DropReason::Expired);
        }
        if !kept.may_go_on() {
            return self.counters.messages_dropped.inc(DropReason::NoSharedMember);
        }
        self.templates.begin();
        let mut publication = self.publication_of(&kept.message);
        self.route_to_share_again(&mut publication, &kept.share, passed_over, kept.given_back);
    }

    fn on_lane_answered(&mut self, answer: &LaneAnswer) {
        let mut settled = Vec::new();
        if self.lanes.on_answer(answer, &mut settled) {
            self.send_lane(answer.group);
        }
        self.on_settled(settled);
        let let_go = self.taking.on_answer(TellingLane::Group(answer.group), answer.number);
        self.hand_to_takers(let_go);
        if self.lanes.is_due(answer.group) {
            self.schedule_flush();
        }
    }

    /// Nobody else has these any more: they are this node's to deliver.
    fn hand_to_takers(&mut self, taken: Vec<Taken>) {
        for Taken { message, share, member } in taken {
            if message.expires_at_ms.is_some_and(|at| at <= self.now_ms) {
                self.counters.messages_dropped.inc(DropReason::Expired);
                continue;
            }
            self.templates.begin();
            self.deliver_to_member(&mut self.publication_of(&message), member, &share);
        }
    }

    /// Messages that every target has answered for.
    pub(super) fn on_settled(&mut self, settled: Vec<lanes::Settled>) {
        for lanes::Settled { came_by, ticket, reason } in settled {
            if reason.is_error() {
                self.counters.publishes_refused.inc(reason.into());
            }
            let Some(connection) = came_by else {
                continue;
            };
            self.on_departed_settled(connection);
            if let Some(ticket) = ticket {
                self.settle(connection, ticket, reason);
            }
        }
        self.resume_publishers();
    }

    fn on_group_acknowledges(
        &mut self,
        key: ConnectionKey,
        epoch: u64,
        kind: AckKind,
        packet_id: PacketId,
        reason: ReasonCode,
    ) {
        if !self.is_current(key, epoch) {
            return;
        }
        if let Some(served) = self.served(key) {
            match kind {
                AckKind::PubRel => drop(served.sent.insert(packet_id, Sent::Released)),
                AckKind::PubComp => drop(served.completing.remove(&packet_id)),
                _ => {}
            }
        }
        if kind == AckKind::PubRec {
            self.settle_received(key, packet_id, reason);
        } else {
            self.write_ack(key, kind, packet_id, reason);
        }
    }
}
