//! What nodes say to each other about groups and sessions, as protobuf. Fields may be added: who does not know one skips
//! it. Raft, leases and interest have messages of their own, in the cluster crate.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use kentongan_proto::mqtt::codec::AckKind;
use kentongan_proto::mqtt::{PacketId, QoS, ReasonCode, RetainHandling, SubscriptionOptions};
use prost::Message as _;
use smallvec::{SmallVec, smallvec};

use super::WHOLE_BYTES_MAX;
use crate::connection_key::ConnectionKey;
use crate::replicated::command::{self, MessageRecord};
use crate::replicated::effect::{PageAnswer, QueueAtGroup};
use crate::replicated::state::resync::Has;
use crate::replicated::{
    DeliverPersistent, LaneAnswer, Opened, RetainedCursor, RetainedPage, SubscribeOutcome, SubscribedPersistent,
    UnsubscribedPersistent,
};
use crate::router::Event;

/// One thing on the forward stream.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Forward {
    /// Which.
    #[prost(oneof = "Forwarded", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub forwarded: Option<Forwarded>,
}

/// See [`Forward`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Forwarded {
    /// For the leader of a group.
    #[prost(message, tag = "1")]
    Propose(Propose),
    /// From the leader of a group.
    #[prost(message, tag = "2")]
    Events(GroupEvents),
    /// For the leader of a group.
    #[prost(message, tag = "3")]
    Resync(Resync),
    /// For the leader of a group.
    #[prost(message, tag = "4")]
    Read(ReadRetained),
    /// From the leader of a group.
    #[prost(message, tag = "5")]
    AskResync(AskResync),
    /// For the clients of a node.
    #[prost(message, tag = "6")]
    Messages(Messages),
    /// From a node that was sent [`Messages`].
    #[prost(message, tag = "7")]
    MessagesAnswer(MessagesAnswer),
    /// For the leader of a group whose outbox it is.
    #[prost(message, tag = "8")]
    OutboxAnswered(OutboxAnswered),
    /// From the leader of a group.
    #[prost(message, tag = "9")]
    ShareLoads(ShareLoads),
    /// For the leader of a group.
    #[prost(message, tag = "10")]
    ResyncPart(ResyncPart),
}

/// What a group's members of shared subscriptions have before them, where that has changed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ShareLoads {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// Of each shared subscription.
    #[prost(message, repeated, tag = "2")]
    pub loads: Vec<ShareLoad>,
}

/// One of [`ShareLoads`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ShareLoad {
    /// `$share/NAME/FILTER`.
    #[prost(string, tag = "1")]
    pub share: String,
    /// Messages that the least loaded member has unacknowledged.
    #[prost(uint32, tag = "2")]
    pub least: u32,
}

/// Marks a lane of [`Messages`] that leads from the outbox of a group, whose number the rest is. It outlives every
/// incarnation of the nodes that lead the group.
pub const OUTBOX_LANE: u32 = 1 << 31;

/// As the incarnation of an outbox's lane.
pub const OUTBOX_INCARNATION: u64 = u64::MAX;

/// A group has taken what came to it from the outbox of another.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct OutboxAnswered {
    /// Whose outbox it is.
    #[prost(uint32, tag = "1")]
    pub origin: u32,
    /// Which group answers.
    #[prost(uint32, tag = "2")]
    pub group: u32,
    /// Everything up to this position.
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

/// What gathered in the lane from an arbiter to a node.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Messages {
    /// The arbiter.
    #[prost(uint32, tag = "1")]
    pub lane: u32,
    /// Of the node that sends this.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Of the node that it is for.
    #[prost(uint64, tag = "3")]
    pub target_incarnation: u64,
    /// The number before the first.
    #[prost(uint64, tag = "4")]
    pub previous: u64,
    /// The last number.
    #[prost(uint64, tag = "5")]
    pub last: u64,
    /// How many there are.
    #[prost(uint32, tag = "6")]
    pub items: u32,
    /// How often the lane has begun anew.
    #[prost(uint32, tag = "7")]
    pub round: u32,
    /// [`NodeMessage`]s, each with its length before it.
    #[prost(bytes = "bytes", tag = "8")]
    pub payload: Bytes,
    /// Nobody waits for the answer, which may come later.
    #[prost(bool, tag = "9")]
    pub patient: bool,
    /// What the clock says by which expiries are written, as that of a [`LaneBatch`](crate::replicated::command::LaneBatch).
    #[prost(uint64, tag = "10")]
    pub clock_ms: u64,
}

/// One of [`Messages`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NodeMessage {
    /// Increasing within the lane.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The message, if it is one.
    #[prost(message, optional, tag = "2")]
    pub message: Option<MessageRecord>,
    /// For all who subscribe directly.
    #[prost(bool, tag = "3")]
    pub direct: bool,
    /// `$share/NAME/FILTER`: for one member of each.
    #[prost(string, repeated, tag = "4")]
    pub shares: Vec<String>,
    /// What became of messages that members here had from the other node.
    #[prost(message, repeated, tag = "5")]
    pub settled: Vec<ShareSettled>,
}

/// What became of a message that was handed to this node for a member of a shared subscription.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ShareSettled {
    /// The arbiter whose lane it came by.
    #[prost(uint32, tag = "1")]
    pub lane: u32,
    /// Its number there.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Which of its `shares`.
    #[prost(uint32, tag = "3")]
    pub share: u32,
    /// There was nobody left to take it.
    #[prost(bool, tag = "4")]
    pub given_back: bool,
}

/// How far a lane to a node got.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct MessagesAnswer {
    /// The arbiter whose lane it is.
    #[prost(uint32, tag = "1")]
    pub lane: u32,
    /// Of the node whose lane it is.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Of the node that answers.
    #[prost(uint64, tag = "3")]
    pub target_incarnation: u64,
    /// Everything up to here was handed on.
    #[prost(uint64, tag = "4")]
    pub number: u64,
    /// A batch of this round was refused, for one before it was lost.
    #[prost(uint32, optional, tag = "5")]
    pub gap_in_round: Option<u32>,
}

/// A leader could not say all that it had to: the arbiters of the node are to say what they have.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct AskResync {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// The leader's term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// The answer says it again. Another one each time that something the leader said may be lost.
    #[prost(uint32, tag = "3")]
    pub round: u32,
}

/// A lane's batch for a group. Whoever does not lead the group drops it: its origin sends it again.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Propose {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// An encoded command.
    #[prost(bytes = "bytes", tag = "2")]
    pub command: Bytes,
}

/// A part of the retained messages is asked for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadRetained {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// Who asks, on the node that sends this.
    #[prost(uint64, tag = "2")]
    pub connection: u64,
    /// The read's number there.
    #[prost(uint64, tag = "3")]
    pub number: u64,
    /// Which topics.
    #[prost(string, tag = "4")]
    pub filter: String,
    /// Where to go on: topics up to this one were looked at.
    #[prost(string, optional, tag = "5")]
    pub after: Option<String>,
    /// Incarnation of the node that sends this.
    #[prost(uint64, tag = "6")]
    pub incarnation: u64,
}

/// What a node has of the sessions that it serves for a group: after a change of leader, or a broken link, the leader
/// sends what is missing and nothing else [MQTT-4.4.0-1].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Resync {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// Incarnation of the node that sends this.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// The term of the leader that it is for; another one throws it away.
    #[prost(uint64, tag = "5")]
    pub term: u64,
    /// The arbiter whose connections these are.
    #[prost(uint32, tag = "6")]
    pub arbiter: u32,
    /// How many arbiters the node has.
    #[prost(uint32, tag = "7")]
    pub arbiters: u32,
    /// Its sessions.
    #[prost(message, repeated, tag = "3")]
    pub sessions: Vec<ServedSession>,
    /// Claims that were not answered.
    #[prost(message, repeated, tag = "4")]
    pub claims: Vec<PendingClaim>,
    /// The last round that this leader asked in; 0 if it did not. What was said for an earlier one may be older than what the
    /// leader sent since.
    #[prost(uint32, tag = "8")]
    pub round: u32,
    /// The last number that the arbiter's lane to the group had when this was written: what clients did up to there is behind
    /// what is said here of them. 0 from who does not know of this.
    #[prost(uint64, tag = "9")]
    pub said: u64,
}

/// A part of a [`Resync`] that is longer than a frame. It stands by itself: of the connections in some places of the arbiter it says all
/// that a whole one would. A leader that knows nothing of parts skips it, and goes on asking.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ResyncPart {
    /// Of these connections.
    #[prost(message, optional, tag = "1")]
    pub resync: Option<Resync>,
    /// The first place. Those below it were said before.
    #[prost(uint32, tag = "2")]
    pub from: u32,
    /// The first place behind; `None`: this is the last part.
    #[prost(uint32, optional, tag = "3")]
    pub below: Option<u32>,
}

/// One session of a [`Resync`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ServedSession {
    /// Its name.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The connection.
    #[prost(uint64, tag = "3")]
    pub connection: u64,
    /// Packet Identifiers that the client was sent: PUBLISH, and PUBREL with [`Self::released`].
    #[prost(uint32, repeated, tag = "4")]
    pub sent: Vec<u32>,
    /// Those of them for which PUBREL was sent.
    #[prost(uint32, repeated, tag = "5")]
    pub released: Vec<u32>,
    /// QoS 2 messages of the client whose PUBREC it waits for.
    #[prost(uint32, repeated, tag = "6")]
    pub receiving: Vec<u32>,
    /// PUBRELs of the client whose PUBCOMP it waits for.
    #[prost(uint32, repeated, tag = "7")]
    pub completing: Vec<u32>,
}

/// One claim of a [`Resync`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PendingClaim {
    /// Of what.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// By whom.
    #[prost(uint64, tag = "2")]
    pub connection: u64,
}

/// What a group's leader has for a node.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GroupEvents {
    /// Which group.
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// The leader's term: what an earlier leader says later is not believed.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// The incarnation that it is for.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
    /// In their order.
    #[prost(message, repeated, tag = "4")]
    pub events: Vec<GroupEvent>,
}

/// One of [`GroupEvents`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GroupEvent {
    /// Which.
    #[prost(oneof = "EventKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub kind: Option<EventKind>,
}

/// See [`GroupEvent`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum EventKind {
    /// See [`LaneAnswered`].
    #[prost(message, tag = "1")]
    LaneAnswered(LaneAnswered),
    /// See [`ClaimGranted`].
    #[prost(message, tag = "2")]
    Granted(ClaimGranted),
    /// See [`ClaimRefused`].
    #[prost(message, tag = "3")]
    Refused(ClaimRefused),
    /// See [`Close`].
    #[prost(message, tag = "4")]
    Close(Close),
    /// See [`Subscribed`].
    #[prost(message, tag = "5")]
    Subscribed(Subscribed),
    /// See [`Unsubscribed`].
    #[prost(message, tag = "6")]
    Unsubscribed(Unsubscribed),
    /// See [`Deliver`].
    #[prost(message, tag = "7")]
    Deliver(Deliver),
    /// See [`Acknowledged`].
    #[prost(message, tag = "8")]
    Acknowledged(Acknowledged),
    /// See [`Page`].
    #[prost(message, tag = "9")]
    Page(Page),
    /// See [`PageTaken`].
    #[prost(message, tag = "10")]
    PageTaken(PageTaken),
    /// See [`GrantedInVain`].
    #[prost(message, tag = "11")]
    GrantedInVain(GrantedInVain),
}

/// A lane's messages up to a number are dealt with.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LaneAnswered {
    /// Which lane of the node.
    #[prost(uint64, tag = "1")]
    pub lane: u64,
    /// Up to this one.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Those that were not accepted.
    #[prost(message, repeated, tag = "3")]
    pub refused: Vec<RefusedMessage>,
}

/// One that was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct RefusedMessage {
    /// Its number in the lane.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Reason Code.
    #[prost(uint32, tag = "2")]
    pub reason: u32,
}

/// A claim was granted.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ClaimGranted {
    /// To whom.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// For what.
    #[prost(string, tag = "2")]
    pub client_id: String,
    /// Of the claim.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// The group keeps the session.
    #[prost(bool, tag = "4")]
    pub persistent: bool,
    /// A stored session is resumed.
    #[prost(bool, tag = "5")]
    pub session_present: bool,
    /// Subscriptions of a resumed session.
    #[prost(message, repeated, tag = "6")]
    pub subscriptions: Vec<FilterOutcome>,
    /// QoS 2 Packet Identifiers whose PUBREL is still to come.
    #[prost(uint32, repeated, tag = "7")]
    pub received: Vec<u32>,
}

/// A claim was granted, but what the session has subscribed to is more than a frame holds, so that its client must be refused.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GrantedInVain {
    /// To whom.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// For what.
    #[prost(string, tag = "2")]
    pub client_id: String,
    /// Of the claim.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// The group keeps the session.
    #[prost(bool, tag = "4")]
    pub persistent: bool,
}

/// A claim was refused.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ClaimRefused {
    /// Whose.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Reason Code.
    #[prost(uint32, tag = "2")]
    pub reason: u32,
}

/// Another claim waits for this connection to end.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Close {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// What it holds.
    #[prost(string, tag = "2")]
    pub client_id: String,
    /// Of its claim.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
}

/// What became of one filter.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FilterOutcome {
    /// As subscribed.
    #[prost(string, tag = "1")]
    pub filter: String,
    /// Reason Code.
    #[prost(uint32, tag = "2")]
    pub reason: u32,
    /// As granted.
    #[prost(uint32, tag = "3")]
    pub qos: u32,
    /// No Local.
    #[prost(bool, tag = "4")]
    pub no_local: bool,
    /// Retain As Published.
    #[prost(bool, tag = "5")]
    pub retain_as_published: bool,
    /// Retain Handling.
    #[prost(uint32, tag = "6")]
    pub retain_handling: u32,
    /// Subscription Identifier.
    #[prost(uint32, optional, tag = "7")]
    pub identifier: Option<u32>,
    /// Retained messages are to be read under this number.
    #[prost(uint64, optional, tag = "8")]
    pub read: Option<u64>,
}

/// SUBSCRIBE was committed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Subscribed {
    /// Whose.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Of which claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Packet Identifier.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// In the order of its filters.
    #[prost(message, repeated, tag = "4")]
    pub outcomes: Vec<FilterOutcome>,
    /// Of the command.
    #[prost(uint64, tag = "5")]
    pub ticket: u64,
}

/// UNSUBSCRIBE was committed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Unsubscribed {
    /// Whose.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Of which claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Packet Identifier.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// In the order of its filters; only filter and reason count.
    #[prost(message, repeated, tag = "4")]
    pub outcomes: Vec<FilterOutcome>,
    /// Of the command.
    #[prost(uint64, tag = "5")]
    pub ticket: u64,
}

/// A message in the window of a session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Deliver {
    /// To whom.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Of which claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Packet Identifier.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// 1 or 2.
    #[prost(uint32, tag = "4")]
    pub qos: u32,
    /// A re-delivery.
    #[prost(bool, tag = "5")]
    pub dup: bool,
    /// RETAIN as it goes to the client.
    #[prost(bool, tag = "6")]
    pub retain: bool,
    /// Subscription Identifiers.
    #[prost(uint32, repeated, tag = "7")]
    pub subscription_identifiers: Vec<u32>,
    /// The message; what is left of its expiry.
    #[prost(message, optional, tag = "8")]
    pub message: Option<MessageRecord>,
    /// It came by a shared subscription; absent: not said.
    #[prost(bool, optional, tag = "9")]
    pub shared: Option<bool>,
}

/// PUBREC, PUBREL or PUBCOMP may leave.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Acknowledged {
    /// To whom.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Of which claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The packet type: 5 PUBREC, 6 PUBREL, 7 PUBCOMP.
    #[prost(uint32, tag = "3")]
    pub kind: u32,
    /// Packet Identifier.
    #[prost(uint32, tag = "4")]
    pub packet_id: u32,
    /// Reason Code.
    #[prost(uint32, tag = "5")]
    pub reason: u32,
}

/// A part of the retained messages.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Page {
    /// Who asked.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Its number for the read.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// What is left of their expiry.
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<MessageRecord>,
    /// The question: topics up to this one had been looked at.
    #[prost(string, optional, tag = "6")]
    pub after: Option<String>,
    /// Where the read goes on: the group.
    #[prost(uint32, optional, tag = "4")]
    pub next_group: Option<u32>,
    /// Where the read goes on: topics up to this one were looked at.
    #[prost(string, optional, tag = "5")]
    pub next_after: Option<String>,
}

/// A group took a page of retained messages in.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PageTaken {
    /// Whose.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Of which claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Which read.
    #[prost(uint64, tag = "3")]
    pub read: u64,
    /// Messages that now wait for the session.
    #[prost(uint64, tag = "4")]
    pub queued: u64,
    /// Messages that there is room for. Versions before said nothing of it.
    #[prost(uint64, optional, tag = "5")]
    pub messages_free: Option<u64>,
    /// Bytes that there is room for.
    #[prost(uint64, optional, tag = "6")]
    pub bytes_free: Option<u64>,
    /// Messages that its window takes.
    #[prost(uint64, optional, tag = "7")]
    pub window_free: Option<u64>,
    /// Which page. Versions before said nothing of it.
    #[prost(uint64, tag = "8")]
    pub page: u64,
    /// How often live messages have gone on before their turn.
    #[prost(uint64, tag = "9")]
    pub overflows: u64,
}

impl ServedSession {
    /// What the owner has. Identifiers that are none are left out.
    #[must_use]
    pub fn has(&self) -> Has {
        let all = |numbers: &[u32]| numbers.iter().filter_map(|&number| packet_id(number)).collect::<Vec<_>>();
        Has {
            sent: all(&self.sent).into_iter().collect(),
            released: all(&self.released).into_iter().collect(),
            receiving: all(&self.receiving),
            completing: all(&self.completing),
        }
    }
}

fn reason(byte: u32) -> ReasonCode {
    u8::try_from(byte).ok().and_then(ReasonCode::from_byte).unwrap_or(ReasonCode::UnspecifiedError)
}

fn packet_id(number: u32) -> Option<PacketId> {
    PacketId::new(u16::try_from(number).ok()?)
}

fn record_outcome(outcome: &SubscribeOutcome) -> FilterOutcome {
    FilterOutcome {
        filter: outcome.filter.clone(),
        reason: outcome.reason as u32,
        qos: outcome.options.qos as u32,
        no_local: outcome.options.no_local,
        retain_as_published: outcome.options.retain_as_published,
        retain_handling: outcome.options.retain_handling as u32,
        identifier: outcome.identifier.map(NonZeroU32::get),
        read: outcome.read,
    }
}

fn outcome(record: FilterOutcome) -> SubscribeOutcome {
    SubscribeOutcome {
        filter: record.filter,
        reason: reason(record.reason),
        options: SubscriptionOptions {
            qos: command::qos(record.qos),
            no_local: record.no_local,
            retain_as_published: record.retain_as_published,
            retain_handling: match record.retain_handling {
                0 => RetainHandling::Always,
                1 => RetainHandling::IfNew,
                _ => RetainHandling::Never,
            },
        },
        identifier: record.identifier.and_then(NonZeroU32::new),
        read: record.read,
    }
}

impl EventKind {
    /// What a group has for an arbiter, as it goes to another node; empty if it is none of those that travel. `lane`: which,
    /// if it is a lane's answer. `now_ms` is of the process clock, on which expiry stands in an event.
    #[must_use]
    pub fn of(event: &Event, lane: u64, now_ms: u64) -> SmallVec<[Self; 1]> {
        let kind = match event {
            Event::LaneAnswered(answer) => Self::LaneAnswered(LaneAnswered {
                lane,
                number: answer.number,
                refused: answer
                    .refused
                    .iter()
                    .map(|&(number, reason)| RefusedMessage { number, reason: reason as u32 })
                    .collect(),
            }),
            Event::Opened(opened) => record_opened(opened),
            Event::Refused { connection, reason } => {
                Self::Refused(ClaimRefused { connection: connection.raw(), reason: *reason as u32 })
            }
            Event::Subscribed(subscribed) => Self::Subscribed(Subscribed {
                connection: subscribed.connection.raw(),
                epoch: subscribed.epoch,
                packet_id: u32::from(subscribed.packet_id.get()),
                outcomes: subscribed.outcomes.iter().map(record_outcome).collect(),
                ticket: subscribed.ticket,
            }),
            Event::Unsubscribed(unsubscribed) => Self::Unsubscribed(Unsubscribed {
                connection: unsubscribed.connection.raw(),
                epoch: unsubscribed.epoch,
                packet_id: u32::from(unsubscribed.packet_id.get()),
                outcomes: unsubscribed
                    .outcomes
                    .iter()
                    .map(|(filter, reason)| FilterOutcome {
                        filter: filter.clone(),
                        reason: *reason as u32,
                        ..FilterOutcome::default()
                    })
                    .collect(),
                ticket: unsubscribed.ticket,
            }),
            Event::Deliver(deliveries) => {
                return deliveries.iter().map(|delivery| Self::Deliver(record_delivery(delivery, now_ms))).collect();
            }
            &Event::Acknowledge { connection, epoch, kind, packet_id, reason } => Self::Acknowledged(Acknowledged {
                connection: connection.raw(),
                epoch,
                kind: kind as u32,
                packet_id: u32::from(packet_id.get()),
                reason: reason as u32,
            }),
            Event::RetainedPage(page) => Self::Page(Page {
                connection: page.connection.raw(),
                number: page.number,
                messages: page.messages.iter().map(|message| MessageRecord::from_message(message, now_ms)).collect(),
                after: page.asked.after.clone(),
                next_group: page.next.as_ref().map(|next| u32::from(next.group)),
                next_after: page.next.as_ref().and_then(|next| next.after.clone()),
            }),
            &Event::RetainedTaken { connection, epoch, answer } => Self::PageTaken(PageTaken {
                connection: connection.raw(),
                epoch,
                read: answer.read,
                queued: answer.queue.queued as u64,
                messages_free: Some(answer.queue.messages_free as u64),
                bytes_free: Some(answer.queue.bytes_free as u64),
                window_free: answer.queue.window_free.map(|free| free as u64),
                page: answer.page,
                overflows: answer.overflows,
            }),
            Event::Close { connection, client_id, epoch, .. } => {
                Self::Close(Close { connection: connection.raw(), client_id: client_id.to_string(), epoch: *epoch })
            }
            _ => return SmallVec::new(),
        };
        smallvec![kind]
    }

    /// The arbiter here that it is for, and what it is for that. `None`: something that this version cannot read, or that
    /// no sound node says.
    #[must_use]
    pub fn into_event(self, group: u16, now_ms: u64) -> Option<(u16, Event)> {
        let (connection, event) = match self {
            Self::LaneAnswered(answered) => {
                let refused = answered.refused.iter().map(|refused| (refused.number, reason(refused.reason))).collect();
                let answer = LaneAnswer { group, number: answered.number, refused };
                return Some(((answered.lane & 0xFFF) as u16, Event::LaneAnswered(answer)));
            }
            Self::Granted(granted) => {
                let connection = ConnectionKey::from_raw(granted.connection);
                let opened = Opened {
                    connection,
                    client_id: Arc::from(granted.client_id),
                    epoch: granted.epoch,
                    group: granted.persistent.then_some(group),
                    session_present: granted.session_present,
                    subscriptions: granted.subscriptions.into_iter().map(outcome).collect(),
                    received: granted.received.into_iter().filter_map(packet_id).collect(),
                };
                (connection, opened.into())
            }
            Self::GrantedInVain(granted) => {
                let connection = ConnectionKey::from_raw(granted.connection);
                let group = granted.persistent.then_some(group);
                let opened = Opened {
                    epoch: granted.epoch,
                    group,
                    ..Opened::transient(connection, Arc::from(granted.client_id))
                };
                (connection, Event::OpenedInVain(Box::new(opened)))
            }
            Self::Refused(refused) => {
                let connection = ConnectionKey::from_raw(refused.connection);
                (connection, Event::Refused { connection, reason: reason(refused.reason) })
            }
            Self::Close(close) => {
                let connection = ConnectionKey::from_raw(close.connection);
                let client_id = Arc::from(close.client_id);
                (connection, Event::Close { connection, group, client_id, epoch: close.epoch })
            }
            Self::Subscribed(subscribed) => {
                let connection = ConnectionKey::from_raw(subscribed.connection);
                let event = SubscribedPersistent {
                    connection,
                    epoch: subscribed.epoch,
                    packet_id: packet_id(subscribed.packet_id)?,
                    ticket: subscribed.ticket,
                    outcomes: subscribed.outcomes.into_iter().map(outcome).collect(),
                };
                (connection, Event::Subscribed(event))
            }
            Self::Unsubscribed(unsubscribed) => {
                let connection = ConnectionKey::from_raw(unsubscribed.connection);
                let outcomes = unsubscribed.outcomes.into_iter();
                let event = UnsubscribedPersistent {
                    connection,
                    epoch: unsubscribed.epoch,
                    packet_id: packet_id(unsubscribed.packet_id)?,
                    ticket: unsubscribed.ticket,
                    outcomes: outcomes.map(|outcome| (outcome.filter, reason(outcome.reason))).collect(),
                };
                (connection, Event::Unsubscribed(event))
            }
            Self::Deliver(deliver) => {
                let connection = ConnectionKey::from_raw(deliver.connection);
                (connection, Event::Deliver(vec![delivery(deliver, now_ms)?]))
            }
            Self::Acknowledged(acknowledged) => {
                let connection = ConnectionKey::from_raw(acknowledged.connection);
                let kind = match acknowledged.kind {
                    5 => AckKind::PubRec,
                    6 => AckKind::PubRel,
                    7 => AckKind::PubComp,
                    _ => return None,
                };
                let packet_id = packet_id(acknowledged.packet_id)?;
                let reason = reason(acknowledged.reason);
                (connection, Event::Acknowledge { connection, epoch: acknowledged.epoch, kind, packet_id, reason })
            }
            Self::Page(page) => {
                let connection = ConnectionKey::from_raw(page.connection);
                let next = match page.next_group {
                    Some(group) => Some(RetainedCursor { group: u16::try_from(group).ok()?, after: page.next_after }),
                    None => None,
                };
                let asked = RetainedCursor { group, after: page.after };
                let messages =
                    page.messages.into_iter().map(|message| Arc::new(message.into_message(now_ms))).collect();
                (
                    connection,
                    Event::RetainedPage(RetainedPage { connection, number: page.number, asked, messages, next }),
                )
            }
            Self::PageTaken(taken) => {
                let connection = ConnectionKey::from_raw(taken.connection);
                let count = |count| usize::try_from(count).unwrap_or(usize::MAX);
                let queue = QueueAtGroup {
                    queued: count(taken.queued),
                    messages_free: count(taken.messages_free.unwrap_or(u64::MAX)),
                    bytes_free: count(taken.bytes_free.unwrap_or(u64::MAX)),
                    window_free: taken.window_free.map(count),
                };
                let PageTaken { epoch, read, page, overflows, .. } = taken;
                let answer = PageAnswer { read, page, overflows, queue };
                (connection, Event::RetainedTaken { connection, epoch, answer })
            }
        };
        Some((connection.arbiter(), event))
    }
}

fn record_opened(opened: &Opened) -> EventKind {
    let granted = ClaimGranted {
        connection: opened.connection.raw(),
        client_id: opened.client_id.to_string(),
        epoch: opened.epoch,
        persistent: opened.group.is_some(),
        session_present: opened.session_present,
        subscriptions: opened.subscriptions.iter().map(record_outcome).collect(),
        received: opened.received.iter().map(|id| u32::from(id.get())).collect(),
    };
    if granted.encoded_len() <= WHOLE_BYTES_MAX {
        return EventKind::Granted(granted);
    }
    // The transport would drop it, whenever it is sent, and the client wait for ever.
    let ClaimGranted { connection, client_id, epoch, persistent, .. } = granted;
    tracing::warn!(
        client_id,
        "what a session has subscribed to is more than can be told to another node; its client is refused there"
    );
    EventKind::GrantedInVain(GrantedInVain { connection, client_id, epoch, persistent })
}

fn record_delivery(delivery: &DeliverPersistent, now_ms: u64) -> Deliver {
    let expiry_left_ms = delivery.expires_at_ms.map(|at| at.saturating_sub(now_ms));
    Deliver {
        connection: delivery.connection.raw(),
        epoch: delivery.epoch,
        packet_id: u32::from(delivery.packet_id.get()),
        qos: delivery.qos as u32,
        dup: delivery.dup,
        retain: delivery.retain,
        subscription_identifiers: delivery.subscription_identifiers.clone(),
        message: Some(MessageRecord { expiry_left_ms, ..MessageRecord::from_message(&delivery.message, 0) }),
        shared: delivery.shared,
    }
}

fn delivery(record: Deliver, now_ms: u64) -> Option<DeliverPersistent> {
    let message = record.message?;
    let expires_at_ms = message.expiry_left_ms.map(|left| now_ms.saturating_add(left));
    let qos = command::qos(record.qos);
    Some(DeliverPersistent {
        connection: ConnectionKey::from_raw(record.connection),
        epoch: record.epoch,
        packet_id: packet_id(record.packet_id)?,
        // What is delivered by a group has a Packet Identifier.
        qos: if qos == QoS::AtMostOnce { return None } else { qos },
        dup: record.dup,
        retain: record.retain,
        subscription_identifiers: record.subscription_identifiers,
        message: Arc::new(message.into_message(now_ms)),
        expires_at_ms,
        shared: record.shared,
    })
}
