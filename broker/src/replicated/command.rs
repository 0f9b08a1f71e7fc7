//! What is proposed to a group, committed, and applied. Protobuf, so that fields can be added: a node that does not know
//! one skips it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kentongan_proto::mqtt::{PublishProperties, QoS};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::later;
use crate::message::{Message, MessageIdentity};
use crate::replicated::publishers;

/// Who holds a Client Identifier: a connection of one start of one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Owner {
    /// Of the node.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Names the connection within it.
    #[prost(uint64, tag = "2")]
    pub connection: u64,
    /// The node. Incarnations of different nodes are not compared.
    #[prost(uint64, tag = "3")]
    pub node: u64,
}

/// A User Property.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UserProperty {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// An Application Message.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MessageRecord {
    /// See [`MessageIdentity`].
    #[prost(uint64, tag = "1")]
    pub lane: u64,
    /// See [`MessageIdentity`].
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Topic Name.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// The payload.
    #[prost(bytes = "bytes", tag = "4")]
    pub payload: Bytes,
    /// As published.
    #[prost(uint32, tag = "5")]
    pub qos: u32,
    /// As published.
    #[prost(bool, tag = "6")]
    pub retain: bool,
    /// Client Identifier of the publisher.
    #[prost(string, tag = "7")]
    pub publisher: String,
    /// Milliseconds that it may still wait; in a lane those that it might when the clock of its [`LaneBatch`] said 0.
    #[prost(uint64, optional, tag = "8")]
    pub expiry_left_ms: Option<u64>,
    /// Payload Format Indicator.
    #[prost(uint32, optional, tag = "9")]
    pub payload_format_indicator: Option<u32>,
    /// Content Type.
    #[prost(string, optional, tag = "10")]
    pub content_type: Option<String>,
    /// Response Topic.
    #[prost(string, optional, tag = "11")]
    pub response_topic: Option<String>,
    /// Correlation Data.
    #[prost(bytes = "bytes", optional, tag = "12")]
    pub correlation_data: Option<Bytes>,
    /// In their order.
    #[prost(message, repeated, tag = "13")]
    pub user_properties: Vec<UserProperty>,
}

impl MessageRecord {
    /// The record of `message`, whose expiry is on the clock that says `now_ms`.
    #[must_use]
    pub fn from_message(message: &Message, now_ms: u64) -> Self {
        let properties = message.properties.as_deref();
        Self {
            lane: message.identity.lane,
            number: message.identity.number,
            topic: message.topic.to_string(),
            payload: message.payload.clone(),
            qos: message.qos as u32,
            retain: message.retain,
            publisher: message.publisher.to_string(),
            expiry_left_ms: message.expires_at_ms.map(|at| at.saturating_sub(now_ms)),
            payload_format_indicator: properties
                .and_then(|properties| properties.payload_format_indicator)
                .map(u32::from),
            content_type: properties.and_then(|properties| properties.content_type.clone()),
            response_topic: properties.and_then(|properties| properties.response_topic.clone()),
            correlation_data: properties.and_then(|properties| properties.correlation_data.clone()),
            user_properties: properties.map_or_else(Vec::new, |properties| {
                let record =
                    |(name, value): &(String, String)| UserProperty { name: name.clone(), value: value.clone() };
                properties.user_properties.iter().map(record).collect()
            }),
        }
    }

    /// The message, its expiry on the clock that says `now_ms`.
    #[must_use]
    pub fn into_message(self, now_ms: u64) -> Message {
        let properties = PublishProperties {
            payload_format_indicator: self.payload_format_indicator.map(|value| value as u8),
            content_type: self.content_type,
            response_topic: self.response_topic,
            correlation_data: self.correlation_data,
            user_properties: self.user_properties.into_iter().map(|user| (user.name, user.value)).collect(),
            ..PublishProperties::default()
        };
        Message {
            identity: MessageIdentity { lane: self.lane, number: self.number },
            topic: Arc::from(self.topic),
            payload: self.payload,
            qos: qos(self.qos),
            retain: self.retain,
            publisher: publishers::shared(self.publisher),
            properties: (properties != PublishProperties::default()).then(|| Box::new(properties)),
            expires_at_ms: self.expiry_left_ms.map(|left| now_ms.saturating_add(left)),
        }
    }
}

/// QoS of a record; a value of a later version counts as the highest we know.
#[must_use]
pub fn qos(bits: u32) -> QoS {
    QoS::from_bits(bits.min(2) as u8).unwrap_or(QoS::ExactlyOnce)
}

/// A Will Message.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WillRecord {
    /// What is published.
    #[prost(message, optional, tag = "1")]
    pub message: Option<MessageRecord>,
    /// Will Delay Interval.
    #[prost(uint32, tag = "2")]
    pub delay_seconds: u32,
    /// It is routed this long after it was due: its topic was `$delayed/SECONDS/TOPIC`.
    #[prost(uint64, optional, tag = "3")]
    pub publish_delay_ms: Option<u64>,
    /// The rules that came with its login allowed it. Where that is not known, the files of the node that publishes it do, or not.
    #[prost(bool, tag = "4")]
    pub is_granted: bool,
}

/// A connection claims its session.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Connect {
    /// Who.
    #[prost(message, optional, tag = "1")]
    pub owner: Option<Owner>,
    /// Which session.
    #[prost(string, tag = "2")]
    pub client_id: String,
    /// Whom it belongs to.
    #[prost(string, tag = "3")]
    pub identity: String,
    /// Begin anew.
    #[prost(bool, tag = "4")]
    pub clean_start: bool,
    /// 0: nothing is to be kept after this command.
    #[prost(uint32, tag = "5")]
    pub session_expiry_seconds: u32,
    /// Published if the connection ends abnormally.
    #[prost(message, optional, tag = "6")]
    pub will: Option<WillRecord>,
    /// In-flight window towards the client.
    #[prost(uint32, tag = "7")]
    pub window_max: u32,
    /// The present owner may still be connected: the claim is granted when that one has let go ([`Released`]).
    /// Otherwise the proposer has seen to that.
    #[prost(bool, tag = "8")]
    pub wait_for_release: bool,
    /// The group keeps the claim and the will of a transient session too, so that they survive its node.
    #[prost(bool, tag = "9")]
    pub keep_transient: bool,
    /// Messages that may wait for the client, if its listener allows fewer than the group.
    #[prost(uint64, optional, tag = "10")]
    pub queue_messages_max: Option<u64>,
    /// Their bytes, likewise.
    #[prost(uint64, optional, tag = "11")]
    pub queue_bytes_max: Option<u64>,
}

/// The owner that had to let go has: it closed the connection, withdrew what it had not sent and got answers for the
/// rest.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Released {
    /// Which session.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the claim that ended.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// False if the client had said DISCONNECT with reason 0x00.
    #[prost(bool, tag = "3")]
    pub publish_will: bool,
    /// The claim was granted, and no client was told.
    #[prost(bool, tag = "4")]
    pub never_began: bool,
}

/// A connection ended.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Disconnect {
    /// Which session.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// It ended abnormally.
    #[prost(bool, tag = "3")]
    pub publish_will: bool,
    /// As DISCONNECT changed it.
    #[prost(uint32, optional, tag = "4")]
    pub session_expiry_seconds: Option<u32>,
    /// The claim was granted, and no client was told: CONNECT was refused, or the connection was gone.
    #[prost(bool, tag = "5")]
    pub never_began: bool,
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SubscribeFilter {
    /// With `$share/NAME/` if it is shared.
    #[prost(string, tag = "1")]
    pub filter: String,
    /// Maximum QoS.
    #[prost(uint32, tag = "2")]
    pub qos: u32,
    /// No Local.
    #[prost(bool, tag = "3")]
    pub no_local: bool,
    /// Retain As Published.
    #[prost(bool, tag = "4")]
    pub retain_as_published: bool,
    /// Retain Handling.
    #[prost(uint32, tag = "5")]
    pub retain_handling: u32,
    /// Subscription Identifier.
    #[prost(uint32, optional, tag = "6")]
    pub subscription_identifier: Option<u32>,
    /// Refused before it was proposed: only its place in SUBACK counts.
    #[prost(uint32, optional, tag = "7")]
    pub refused: Option<u32>,
}

/// SUBSCRIBE.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Subscribe {
    /// Which session.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Packet Identifier.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// In their order.
    #[prost(message, repeated, tag = "4")]
    pub filters: Vec<SubscribeFilter>,
    /// It was proposed before, and its answer may be lost: what it asked for may stand already.
    #[prost(bool, tag = "6")]
    pub again: bool,
    /// Names this SUBSCRIBE at its connection, for a Packet Identifier may soon stand for another. Comes back in the answer.
    #[prost(uint64, tag = "5")]
    pub ticket: u64,
}

/// UNSUBSCRIBE.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Unsubscribe {
    /// Which session.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Packet Identifier.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// In their order.
    #[prost(string, repeated, tag = "4")]
    pub filters: Vec<String>,
    /// As that of [`Subscribe`]: what was subscribed to since must stay.
    #[prost(bool, tag = "6")]
    pub again: bool,
    /// As that of [`Subscribe`].
    #[prost(uint64, tag = "5")]
    pub ticket: u64,
}

/// One message of a lane, and what the group is to do with it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LaneMessage {
    /// Increasing within the lane.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The message.
    #[prost(message, optional, tag = "2")]
    pub message: Option<MessageRecord>,
    /// It goes to the sessions here that subscribe to its topic.
    #[prost(bool, tag = "3")]
    pub match_subscriptions: bool,
    /// It goes to one member here of each of these shared subscriptions (`$share/NAME/FILTER`).
    #[prost(string, repeated, tag = "4")]
    pub shares: Vec<String>,
    /// It is retained here; empty, it removes what is.
    #[prost(bool, tag = "5")]
    pub store_retained: bool,
    /// It waits here, and is routed when this has passed, counted from when the clock of the batch said 0.
    #[prost(uint64, optional, tag = "6")]
    pub delay_ms: Option<u64>,
    /// Instead of a message: what a client did that its session's group must know, or what became of a message of the group's
    /// outbox.
    #[prost(oneof = "SessionCommand", tags = "16, 17, 18, 19, 20, 21, 22, 23, 24")]
    pub command: Option<SessionCommand>,
}

/// What a client did, as its group must know. It goes by the lane, because an acknowledgement that was applied twice
/// could free an identifier that is in use again, and one that overtook another could settle what it does not mean.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum SessionCommand {
    /// See [`Connect`].
    #[prost(message, tag = "16")]
    Connect(Connect),
    /// See [`Disconnect`].
    #[prost(message, tag = "17")]
    Disconnect(Disconnect),
    /// See [`Subscribe`].
    #[prost(message, tag = "18")]
    Subscribe(Subscribe),
    /// See [`Unsubscribe`].
    #[prost(message, tag = "19")]
    Unsubscribe(Unsubscribe),
    /// See [`Acknowledge`].
    #[prost(message, tag = "20")]
    Acknowledge(Acknowledge),
    /// See [`Receive`].
    #[prost(message, tag = "21")]
    Receive(Receive),
    /// See [`RetainedPage`].
    #[prost(message, tag = "22")]
    RetainedPage(RetainedPage),
    /// See [`Released`].
    #[prost(message, tag = "23")]
    Released(Released),
    /// See [`OutboxSettled`].
    #[prost(message, tag = "24")]
    OutboxSettled(OutboxSettled),
}

/// What gathered in a lane.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LaneBatch {
    /// Which lane.
    #[prost(uint64, tag = "1")]
    pub lane: u64,
    /// Of the node it comes from; an older one than was fenced is refused.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// In the order of their numbers.
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<LaneMessage>,
    /// The node; 0 for the lane of an outbox, or where there is only one.
    #[prost(uint64, tag = "4")]
    pub node: u64,
    /// The origin has the answers up to this number: what was refused of them can be forgotten.
    #[prost(uint64, tag = "5")]
    pub answered: u64,
    /// The number in this lane before the first one here. A group that has not applied it takes nothing of this batch:
    /// what came before was lost on its way and will come again.
    #[prost(uint64, tag = "6")]
    pub previous: u64,
    /// What the origin's clock says when this is sent. Expiries and delays are written as of when it said 0, so that what is left
    /// of them is right however long a batch had to wait, and however often it is sent.
    #[prost(uint64, tag = "7")]
    pub clock_ms: u64,
}

/// One acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct AcknowledgeItem {
    /// The packet type: 4 PUBACK, 5 PUBREC, 6 PUBREL (of a message we received), 7 PUBCOMP.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// Packet Identifier.
    #[prost(uint32, tag = "2")]
    pub packet_id: u32,
    /// Reason Code.
    #[prost(uint32, tag = "3")]
    pub reason: u32,
}

/// What a client acknowledged, in its order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Acknowledge {
    /// Which session.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// In their order.
    #[prost(message, repeated, tag = "3")]
    pub items: Vec<AcknowledgeItem>,
}

/// A QoS 2 message of a persistent session: into the outbox, its identifier into the received set, in one step.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Receive {
    /// Which session.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the claim.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Packet Identifier.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// The message.
    #[prost(message, optional, tag = "4")]
    pub message: Option<MessageRecord>,
    /// As that of [`LaneMessage`].
    #[prost(uint64, optional, tag = "5")]
    pub delay_ms: Option<u64>,
}

/// Outbox entries that every lane answered.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Routed {
    /// Their positions.
    #[prost(uint64, repeated, tag = "1")]
    pub positions: Vec<u64>,
}

/// Who gets outbox entries that are for shared subscriptions. What counts for each entry is the first that is committed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Picked {
    /// In the order of their positions.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<PickedEntry>,
}

/// One entry of [`Picked`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PickedEntry {
    /// Its position.
    #[prost(uint64, tag = "1")]
    pub position: u64,
    /// Of each shared subscription that it is for.
    #[prost(message, repeated, tag = "2")]
    pub picks: Vec<Pick>,
    /// It is for nobody else: the outbox needs it no more.
    #[prost(bool, tag = "3")]
    pub routed: bool,
    /// It is a piece, and not the last one: `picks` has all of them behind `after`, up to its own last one. Only from
    /// [`PIECES_LEVEL`](crate::later::PIECES_LEVEL) on, where they are in the order of their names.
    #[prost(bool, tag = "4")]
    pub more: bool,
    /// What the piece before it ended with; empty: there is none.
    #[prost(string, tag = "5")]
    pub after: String,
}

/// Who gets a message of one shared subscription.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Pick {
    /// `$share/NAME/FILTER`.
    #[prost(string, tag = "1")]
    pub share: String,
    /// Who.
    #[prost(message, optional, tag = "2")]
    pub target: Option<PickTargetRecord>,
}

/// A group, or one start of a node.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PickTargetRecord {
    /// The group; `None`: it is a node.
    #[prost(uint32, optional, tag = "1")]
    pub group: Option<u32>,
    /// The node; 0 where there is only one.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// Which of its starts.
    #[prost(uint64, tag = "3")]
    pub incarnation: u64,
}

/// What became of a message that an outbox had for a member of a shared subscription on the node that says so.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct OutboxSettled {
    /// Its position.
    #[prost(uint64, tag = "1")]
    pub position: u64,
    /// There was nobody left to take it.
    #[prost(bool, tag = "2")]
    pub given_back: bool,
}

/// Retained messages for a subscription that waits for them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RetainedPage {
    /// Which session.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Which of its subscriptions.
    #[prost(string, tag = "2")]
    pub filter: String,
    /// The read, so that one of an earlier subscription to the same filter is told apart.
    #[prost(uint64, tag = "3")]
    pub read: u64,
    /// In the order of their topics.
    #[prost(message, repeated, tag = "4")]
    pub messages: Vec<MessageRecord>,
    /// The last page.
    #[prost(bool, tag = "5")]
    pub last: bool,
    /// Grows from one to the next of a session's node. Versions before had none.
    #[prost(uint64, tag = "6")]
    pub number: u64,
    /// How often live messages had gone on before their turn, as far as the session's node knew when it asked for these.
    #[prost(uint64, tag = "7")]
    pub overflows: u64,
}

/// Time passed.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Tick {
    /// Milliseconds on the leader's monotonic clock since its last tick, or since it last applied one.
    #[prost(uint64, tag = "1")]
    pub elapsed_ms: u64,
    /// Milliseconds since 1970, by the leader's wall clock.
    #[prost(uint64, tag = "2")]
    pub wall_ms: u64,
    /// The first tick after a stop of all replicas: wall time bridges it.
    #[prost(bool, tag = "3")]
    pub bridge: bool,
    /// The group's clock when that last tick was applied: two ticks that count from the same moment must not add up. `None`:
    /// whenever this is applied.
    #[prost(uint64, optional, tag = "4")]
    pub from_ms: Option<u64>,
}

/// Incarnations of a node below this are over: their connections ended, their lanes are refused.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Fence {
    /// The first that is not.
    #[prost(uint64, tag = "1")]
    pub below: u64,
    /// Sessions to release at most; the leader proposes again until none is left.
    #[prost(uint32, tag = "2")]
    pub sessions_max: u32,
    /// The node whose incarnations they are.
    #[prost(uint64, tag = "3")]
    pub node: u64,
}

/// An incarnation that the group has fenced is lost: every group and node refuses what it had on its way, so whoever claims what its
/// connections left behind gets it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Lost {
    /// The node whose incarnation it was.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Which one.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Client Identifiers to set free at most; the leader proposes again until none is left.
    #[prost(uint32, tag = "3")]
    pub sessions_max: u32,
}

/// From here on the group's state machine may do what this feature level brings.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Level {
    /// Never lowered.
    #[prost(uint32, tag = "1")]
    pub level: u32,
}

/// The group goes on in a new cluster, which was made of what survivors or a backup had: nobody who was connected is.
///
/// It stands behind everything that the group had, and is proposed by nobody, so it needs no feature level: whoever joins
/// later begins with a snapshot of what came of it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct BeginAnew {
    /// Positions of the outbox that are passed over: other groups may have heard of more than this copy has given, and ignore what
    /// is not above the last one they had.
    #[prost(uint64, tag = "1")]
    pub positions: u64,
    /// All incarnations below this are over, whosever they were.
    #[prost(uint64, tag = "2")]
    pub below: u64,
}

impl BeginAnew {
    /// Beyond anything that a cluster has given, far from where numbers end.
    #[must_use]
    pub fn beyond_everything() -> Self {
        Self { positions: 1 << 40, below: 1 << 50 }
    }
}

/// The envelope.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Envelope {
    #[prost(oneof = "Command", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16")]
    command: Option<Command>,
    /// See [`Entry::needs_level`].
    #[prost(uint32, tag = "100")]
    needs_level: u32,
}

/// What stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The feature level that brought what it says. A group that has not got there passes over it, by the rules of whichever
    /// version: whoever proposed it was ahead of the group, and does it again.
    pub needs_level: u32,
    /// `None`: one of a later version. Whoever has no name for what the group has the level for must not go on without it.
    pub command: Option<Command>,
}

/// A command for one group.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Command {
    /// See [`Connect`].
    #[prost(message, tag = "1")]
    Connect(Connect),
    /// See [`Disconnect`].
    #[prost(message, tag = "2")]
    Disconnect(Disconnect),
    /// See [`Subscribe`].
    #[prost(message, tag = "3")]
    Subscribe(Subscribe),
    /// See [`Unsubscribe`].
    #[prost(message, tag = "4")]
    Unsubscribe(Unsubscribe),
    /// See [`LaneBatch`].
    #[prost(message, tag = "5")]
    Lane(LaneBatch),
    /// See [`Acknowledge`].
    #[prost(message, tag = "6")]
    Acknowledge(Acknowledge),
    /// See [`Receive`].
    #[prost(message, tag = "7")]
    Receive(Receive),
    /// See [`Routed`].
    #[prost(message, tag = "8")]
    Routed(Routed),
    /// See [`RetainedPage`].
    #[prost(message, tag = "9")]
    RetainedPage(RetainedPage),
    /// See [`Tick`].
    #[prost(message, tag = "10")]
    Tick(Tick),
    /// See [`Fence`].
    #[prost(message, tag = "11")]
    Fence(Fence),
    /// See [`Released`].
    #[prost(message, tag = "12")]
    Released(Released),
    /// See [`Picked`].
    #[prost(message, tag = "13")]
    Picked(Picked),
    /// See [`Level`].
    #[prost(message, tag = "14")]
    Level(Level),
    /// See [`BeginAnew`].
    #[prost(message, tag = "15")]
    BeginAnew(BeginAnew),
    /// See [`Lost`].
    #[prost(message, tag = "16")]
    Lost(Lost),
}

/// As it stands in the log.
#[must_use]
pub fn encode(command: Command) -> Bytes {
    later::sent(Envelope { command: Some(command), needs_level: 0 }.encode_to_vec().into())
}

/// The head of an entry that needs a level.
#[cfg(any(test, feature = "simulation"))]
pub(crate) fn needing(needs_level: u32) -> Bytes {
    Envelope { command: None, needs_level }.encode_to_vec().into()
}

/// A batch of a lane as it stands in the log, its messages written before by [`encode_lane_message`]: they are kept
/// like that until they are answered, whatever the head says by then.
#[must_use]
pub fn encode_lane(head: &LaneBatch, messages: &[u8]) -> Bytes {
    const LANE_TAG: u32 = 5;
    let length = head.encoded_len() + messages.len();
    let mut bytes = BytesMut::with_capacity(length + 16);
    encode_key(LANE_TAG, WireType::LengthDelimited, &mut bytes);
    encode_varint(length as u64, &mut bytes);
    // Cannot fail: a `BytesMut` grows.
    let _ = head.encode(&mut bytes);
    bytes.extend_from_slice(messages);
    later::sent(bytes.freeze())
}

/// One message of a lane, for [`encode_lane`].
pub fn encode_lane_message(message: &LaneMessage, out: &mut BytesMut) {
    const MESSAGES_TAG: u32 = 3;
    prost::encoding::message::encode(MESSAGES_TAG, message, out);
}

/// What a command is, for the log.
#[must_use]
pub fn kind_of(bytes: &[u8]) -> &'static str {
    let Ok(Envelope { command: Some(command), .. }) = Envelope::decode(bytes) else {
        return "unknown";
    };
    match command {
        Command::Connect(_) => "connect",
        Command::Disconnect(_) => "disconnect",
        Command::Subscribe(_) => "subscribe",
        Command::Unsubscribe(_) => "unsubscribe",
        Command::Lane(_) => "lane",
        Command::Acknowledge(_) => "acknowledge",
        Command::Receive(_) => "receive",
        Command::Routed(_) => "routed",
        Command::Picked(_) => "picked",
        Command::RetainedPage(_) => "retained page",
        Command::Tick(_) => "tick",
        Command::Fence(_) => "fence",
        Command::Released(_) => "released",
        Command::Level(_) => "level",
        Command::BeginAnew(_) => "begin anew",
        Command::Lost(_) => "lost",
    }
}

/// From the log; payloads stay slices of `bytes`.
///
/// # Errors
/// The bytes are no command: the log is not ours, or damaged beyond what its checksums saw.
pub fn decode(bytes: Bytes) -> Result<Entry, prost::DecodeError> {
    Envelope::decode(bytes).map(|Envelope { command, needs_level }| Entry { needs_level, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_record_with_what_is_left_of_its_expiry() {
        let message = Message {
            identity: MessageIdentity { lane: 3, number: 4 },
            topic: Arc::from("a/b"),
            payload: Bytes::from_static(b"x"),
            qos: QoS::ExactlyOnce,
            retain: true,
            publisher: Arc::from("p"),
            properties: Some(Box::new(PublishProperties {
                content_type: Some("t".to_owned()),
                user_properties: vec![("b".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())],
                ..PublishProperties::default()
            })),
            expires_at_ms: Some(1500),
        };
        let record = MessageRecord::from_message(&message, 1000);
        let lane = LaneBatch {
            lane: 3,
            incarnation: 1,
            messages: vec![LaneMessage { number: 1, message: Some(record), ..LaneMessage::default() }],
            ..LaneBatch::default()
        };
        let Ok(Entry { command: Some(Command::Lane(mut back)), .. }) = decode(encode(Command::Lane(lane))) else {
            panic!("a lane");
        };
        let record = back.messages.remove(0).message.expect("a message");
        assert_eq!(record.into_message(7000), Message { expires_at_ms: Some(7500), ..message });
    }

    #[test]
    fn a_lane_put_together_from_pieces_reads_like_one_written_whole() {
        let message = |number| {
            let record = MessageRecord { topic: "t".to_owned(), ..MessageRecord::default() };
            LaneMessage { number, message: Some(record), match_subscriptions: true, ..LaneMessage::default() }
        };
        let head =
            LaneBatch { lane: 3, incarnation: 2, node: 1, answered: 4, previous: 6, messages: vec![], clock_ms: 9 };
        let mut pieces = BytesMut::new();
        encode_lane_message(&message(7), &mut pieces);
        encode_lane_message(&message(8), &mut pieces);
        let whole = LaneBatch { messages: vec![message(7), message(8)], ..head.clone() };
        let read = decode(encode_lane(&head, &pieces)).expect("a command");
        assert_eq!(read, Entry { needs_level: 0, command: Some(Command::Lane(whole)) });
    }
}
