//! What is proposed to a group, and its bytes in the log.
//!
//! Fields are only ever added; a field that is absent means what it meant before it existed.

use std::sync::Arc;

use bytes::Bytes;
use kentongan_proto::mqtt::{PublishProperties, QoS, RetainHandling, SubscriptionOptions};
use prost::Message as _;

use crate::message::{Message, MessageIdentity};

/// A log entry that does not hold a command of ours. Our storage or another version is at fault, never a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not what [`encode`] writes.
    #[error("log entry is not a command: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A kind of command that this version does not know: a feature was switched on too early.
    #[error("log entry holds no command known to this version")]
    Unknown,
}

/// Which connection: of which arbiter of which incarnation of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Owner {
    /// The node, as the directory numbers it; never 0.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Of the node.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Of the incarnation.
    #[prost(uint32, tag = "3")]
    pub arbiter: u32,
    /// Unique for the arbiter, never used again.
    #[prost(uint64, tag = "4")]
    pub connection: u64,
}

/// A User Property.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct UserProperty {
    /// Its name; names repeat.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// An Application Message in a log, a store or on the way between nodes.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct MessageRecord {
    /// [`MessageIdentity::lane`].
    #[prost(uint64, tag = "1")]
    pub lane: u64,
    /// [`MessageIdentity::number`].
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// Topic Name.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// A slice of the entry it came in.
    #[prost(bytes = "bytes", tag = "4")]
    pub payload: Bytes,
    /// 0 to 2.
    #[prost(uint32, tag = "5")]
    pub qos: u32,
    /// RETAIN as published.
    #[prost(bool, tag = "6")]
    pub retain: bool,
    /// Client Identifier of the publisher.
    #[prost(string, tag = "7")]
    pub publisher: String,
    /// Milliseconds until it expires, from when the entry is applied: clocks differ from node to node.
    #[prost(uint64, optional, tag = "8")]
    pub expiry_left_ms: Option<u64>,
    /// The Message Expiry Interval as received, in seconds.
    #[prost(uint32, optional, tag = "9")]
    pub message_expiry_interval: Option<u32>,
    /// Payload Format Indicator.
    #[prost(uint32, optional, tag = "10")]
    pub payload_format_indicator: Option<u32>,
    /// Response Topic.
    #[prost(string, optional, tag = "11")]
    pub response_topic: Option<String>,
    /// Correlation Data.
    #[prost(bytes = "bytes", optional, tag = "12")]
    pub correlation_data: Option<Bytes>,
    /// Content Type.
    #[prost(string, optional, tag = "13")]
    pub content_type: Option<String>,
    /// In their order.
    #[prost(message, repeated, tag = "14")]
    pub user_properties: Vec<UserProperty>,
}

impl MessageRecord {
    /// For the wire; `now_ms` is on the clock that `expires_at_ms` is on.
    #[must_use]
    pub fn from_message(message: &Message, now_ms: u64) -> Self {
        let mut record = Self {
            lane: message.identity.lane,
            number: message.identity.number,
            topic: message.topic.to_string(),
            payload: message.payload.clone(),
            qos: message.qos as u32,
            retain: message.retain,
            publisher: message.publisher.to_string(),
            expiry_left_ms: message.expires_at_ms.map(|at| at.saturating_sub(now_ms)),
            ..Self::default()
        };
        if let Some(properties) = &message.properties {
            record.message_expiry_interval = properties.message_expiry_interval;
            record.payload_format_indicator = properties.payload_format_indicator.map(u32::from);
            record.response_topic.clone_from(&properties.response_topic);
            record
                .correlation_data
                .clone_from(&properties.correlation_data);
            record.content_type.clone_from(&properties.content_type);
            let users = properties.user_properties.iter();
            record.user_properties = users
                .map(|(name, value)| UserProperty {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect();
        }
        record
    }

    /// As the broker keeps it, on a clock that shows `now_ms`.
    #[must_use]
    pub fn into_message(self, now_ms: u64) -> Message {
        let properties = PublishProperties {
            payload_format_indicator: self.payload_format_indicator.map(|value| value as u8),
            message_expiry_interval: self.message_expiry_interval,
            response_topic: self.response_topic,
            correlation_data: self.correlation_data,
            content_type: self.content_type,
            user_properties: self
                .user_properties
                .into_iter()
                .map(|user| (user.name, user.value))
                .collect(),
            ..PublishProperties::default()
        };
        Message {
            identity: MessageIdentity {
                lane: self.lane,
                number: self.number,
            },
            topic: self.topic.into(),
            payload: self.payload,
            qos: qos(self.qos),
            retain: self.retain,
            publisher: self.publisher.into(),
            properties: (properties != PublishProperties::default()).then(|| Box::new(properties)),
            expires_at_ms: self.expiry_left_ms.map(|left| now_ms.saturating_add(left)),
        }
    }

    /// [`Self::into_message`], shared.
    #[must_use]
    pub fn into_shared(self, now_ms: u64) -> Arc<Message> {
        Arc::new(self.into_message(now_ms))
    }
}

/// A QoS out of a record; what no version writes counts as the highest.
#[must_use]
pub fn qos(bits: u32) -> QoS {
    u8::try_from(bits)
        .ok()
        .and_then(QoS::from_bits)
        .unwrap_or(QoS::ExactlyOnce)
}

/// A Will Message, waiting for an abnormal end.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WillRecord {
    /// Its identity is given when it fires, and its expiry counts from then.
    #[prost(message, required, tag = "1")]
    pub message: MessageRecord,
    /// Will Delay Interval.
    #[prost(uint32, tag = "2")]
    pub delay_seconds: u32,
}

/// The bounds of a session's outgoing messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SessionLimits {
    /// The lower of the client's Receive Maximum and our limit; 1 to 65,535.
    #[prost(uint32, tag = "1")]
    pub window_max: u32,
    /// The client's Maximum Packet Size in bytes.
    #[prost(uint32, optional, tag = "2")]
    pub maximum_packet_size: Option<u32>,
    /// Messages waiting.
    #[prost(uint64, tag = "3")]
    pub queue_messages_max: u64,
    /// Their weight.
    #[prost(uint64, tag = "4")]
    pub queue_bytes_max: u64,
    /// Whether a full queue drops its oldest message rather than the new one.
    #[prost(bool, tag = "5")]
    pub drop_oldest: bool,
    /// Whether QoS 0 messages are kept while the client is away.
    #[prost(bool, tag = "6")]
    pub queue_qos0_offline: bool,
    /// Subscriptions; 0 is no limit.
    #[prost(uint32, tag = "7")]
    pub subscriptions_max: u32,
}

/// A client connects. Also proposed for transient sessions: one connection per Client Identifier, and a will that
/// survives its node.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Connect {
    /// The owner's number for this request; comes back in the answer.
    #[prost(uint64, tag = "1")]
    pub request: u64,
    /// The new connection.
    #[prost(message, required, tag = "2")]
    pub owner: Owner,
    /// Client Identifier.
    #[prost(string, tag = "3")]
    pub client_id: String,
    /// As whom the client authenticated.
    #[prost(string, tag = "4")]
    pub identity: String,
    /// Clean Start.
    #[prost(bool, tag = "5")]
    pub clean_start: bool,
    /// Protocol level: 3, 4 or 5.
    #[prost(uint32, tag = "6")]
    pub version: u32,
    /// 0 ends the session with the connection, `u32::MAX` never ends it. A 3.x Clean Session 0 is `u32::MAX`.
    #[prost(uint32, tag = "7")]
    pub session_expiry_seconds: u32,
    /// Will Message.
    #[prost(message, optional, tag = "8")]
    pub will: Option<WillRecord>,
    /// Bounds for this connection.
    #[prost(message, required, tag = "9")]
    pub limits: SessionLimits,
}

/// The old owner of a session that is being taken over has closed its connection, withdrawn what it had not sent
/// and got answers for the rest.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Released {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the connection that is closed.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// False if the client had sent DISCONNECT with reason 0x00.
    #[prost(bool, tag = "3")]
    pub publish_will: bool,
}

/// A connection ended, in whatever way.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Disconnect {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the connection.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// To whom to say that it is committed.
    #[prost(message, required, tag = "3")]
    pub owner: Owner,
    /// False only for DISCONNECT with reason 0x00 [MQTT-3.14.4-3].
    #[prost(bool, tag = "4")]
    pub publish_will: bool,
    /// Session Expiry Interval in DISCONNECT.
    #[prost(uint32, optional, tag = "5")]
    pub session_expiry_seconds: Option<u32>,
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct FilterRecord {
    /// Topic Filter, with `$share/…/` if shared. Already checked to be one, and authorised.
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
    /// Of the SUBSCRIBE packet.
    #[prost(uint32, optional, tag = "6")]
    pub subscription_identifier: Option<u32>,
}

impl FilterRecord {
    /// For a log.
    #[must_use]
    pub fn new(
        filter: &str,
        options: SubscriptionOptions,
        subscription_identifier: Option<u32>,
    ) -> Self {
        Self {
            filter: filter.to_owned(),
            qos: options.qos as u32,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            retain_handling: options.retain_handling as u32,
            subscription_identifier,
        }
    }

    /// The Subscription Options.
    #[must_use]
    pub fn options(&self) -> SubscriptionOptions {
        SubscriptionOptions {
            qos: qos(self.qos),
            no_local: self.no_local,
            retain_as_published: self.retain_as_published,
            retain_handling: match self.retain_handling {
                0 => RetainHandling::Always,
                1 => RetainHandling::IfNew,
                _ => RetainHandling::Never,
            },
        }
    }
}

/// SUBSCRIBE.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Subscribe {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the connection.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Of the packet.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// Those the edge did not refuse.
    #[prost(message, repeated, tag = "4")]
    pub filters: Vec<FilterRecord>,
}

/// UNSUBSCRIBE.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Unsubscribe {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the connection.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Of the packet.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// Topic Filters.
    #[prost(string, repeated, tag = "4")]
    pub filters: Vec<String>,
}

/// One message in a lane.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct LaneMessage {
    /// Its number in the lane to this group: increasing. Not the message's identity, which is the same at all targets.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The message.
    #[prost(message, required, tag = "2")]
    pub message: MessageRecord,
    /// For the (not shared) persistent sessions here.
    #[prost(bool, tag = "3")]
    pub match_subscriptions: bool,
    /// Shared subscriptions, `$share/…` and all, for which this group was picked.
    #[prost(string, repeated, tag = "4")]
    pub shares: Vec<String>,
    /// This group keeps the retained message of the topic.
    #[prost(bool, tag = "5")]
    pub store_retained: bool,
    /// Nothing of the above yet: into the outbox after so many milliseconds (`$delayed`).
    #[prost(uint64, optional, tag = "6")]
    pub delay_ms: Option<u64>,
}

/// Everything that gathered in one lane.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Lane {
    /// Where the lane begins; 0 for a group's outbox, which has no incarnation and is never fenced.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Of the node. A fenced or older one is refused.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// The arbiter of the node, or the group whose outbox it is.
    #[prost(uint64, tag = "3")]
    pub lane: u64,
    /// In order. What is not above the last number applied is answered, not applied again.
    #[prost(message, repeated, tag = "4")]
    pub messages: Vec<LaneMessage>,
    /// The origin has the answers up to this number.
    #[prost(uint64, tag = "5")]
    pub answered: u64,
}

/// Which packet acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AcknowledgementKind {
    /// PUBACK.
    PubAck = 0,
    /// PUBREC.
    PubRec = 1,
    /// PUBCOMP.
    PubComp = 2,
}

/// One acknowledgement from a subscriber.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Acknowledgement {
    /// Of the delivery.
    #[prost(uint32, tag = "1")]
    pub packet_id: u32,
    /// By which packet.
    #[prost(enumeration = "AcknowledgementKind", tag = "2")]
    pub kind: i32,
    /// Reason Code.
    #[prost(uint32, tag = "3")]
    pub reason: u32,
}

/// Acknowledgements that gathered.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Acknowledge {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the connection.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// In the order they came.
    #[prost(message, repeated, tag = "3")]
    pub items: Vec<Acknowledgement>,
}

/// A QoS 2 PUBLISH of a persistent session.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Receive {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the connection.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Of the PUBLISH.
    #[prost(uint32, tag = "3")]
    pub packet_id: u32,
    /// Gets its identity from the outbox.
    #[prost(message, required, tag = "4")]
    pub message: MessageRecord,
}

/// PUBRELs of a persistent session.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Release {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Of the connection.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// In the order they came.
    #[prost(uint32, repeated, tag = "3")]
    pub packet_ids: Vec<u32>,
}

/// Outbox entries that every lane has answered.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Routed {
    /// Positions.
    #[prost(uint64, repeated, tag = "1")]
    pub positions: Vec<u64>,
}

/// Retained messages for one subscription, in the order of the reading.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RetainedPage {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Topic Filter.
    #[prost(string, tag = "2")]
    pub filter: String,
    /// Of the request.
    #[prost(uint64, tag = "3")]
    pub request: u64,
    /// The cursor of the request or of the page before: a page that begins elsewhere is a repetition.
    #[prost(string, tag = "4")]
    pub from: String,
    /// Where the next page begins; means something only to the reader.
    #[prost(string, tag = "5")]
    pub cursor: String,
    /// The messages.
    #[prost(message, repeated, tag = "6")]
    pub messages: Vec<MessageRecord>,
    /// There are no more.
    #[prost(bool, tag = "7")]
    pub last: bool,
}

/// Time, as the leader measured it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Tick {
    /// Milliseconds on the leader's monotonic clock since the last tick it applied.
    #[prost(uint64, tag = "1")]
    pub elapsed_ms: u64,
    /// Milliseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub wall_ms: u64,
    /// All replicas were stopped: wall time bridges the gap, never backwards.
    #[prost(bool, tag = "3")]
    pub bridge: bool,
}

/// An incarnation is dead: refuse its lanes, release its connections. Proposed until [`super::effect::Effect::FenceProgress`]
/// says that nothing is left.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Fence {
    /// The node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// This incarnation and all older ones.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
}

/// Settings of a group. They are committed, for replicas that disagree about them would diverge.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Configure {
    /// Retained messages; 0 is no limit, here and below.
    #[prost(uint64, tag = "1")]
    pub retained_messages_max: u64,
    /// Their weight in bytes.
    #[prost(uint64, tag = "2")]
    pub retained_bytes_max: u64,
    /// Payload of one, in bytes.
    #[prost(uint64, tag = "3")]
    pub retained_payload_bytes_max: u64,
    /// After which a retained message is forgotten.
    #[prost(uint64, tag = "4")]
    pub retained_age_seconds_max: u64,
    /// Live messages a subscription holds back while its retained ones are read.
    #[prost(uint64, tag = "5")]
    pub held_messages_max: u64,
}

/// An administrator ends a session. A live connection is closed; its release then ends the session.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct EndSession {
    /// Client Identifier.
    #[prost(string, tag = "1")]
    pub client_id: String,
}

/// What a log entry says.
#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
#[allow(missing_docs, reason = "each is named after its struct")]
pub enum Command {
    #[prost(message, tag = "1")]
    Connect(Connect),
    #[prost(message, tag = "2")]
    Released(Released),
    #[prost(message, tag = "3")]
    Disconnect(Disconnect),
    #[prost(message, tag = "4")]
    Subscribe(Subscribe),
    #[prost(message, tag = "5")]
    Unsubscribe(Unsubscribe),
    #[prost(message, tag = "6")]
    Lane(Lane),
    #[prost(message, tag = "7")]
    Acknowledge(Acknowledge),
    #[prost(message, tag = "8")]
    Receive(Receive),
    #[prost(message, tag = "9")]
    Release(Release),
    #[prost(message, tag = "10")]
    Routed(Routed),
    #[prost(message, tag = "11")]
    RetainedPage(RetainedPage),
    #[prost(message, tag = "12")]
    Tick(Tick),
    #[prost(message, tag = "13")]
    Fence(Fence),
    #[prost(message, tag = "14")]
    Configure(Configure),
    #[prost(message, tag = "15")]
    EndSession(EndSession),
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
struct Entry {
    #[prost(
        oneof = "Command",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15"
    )]
    command: Option<Command>,
}

/// The bytes of a log entry.
#[must_use]
pub fn encode(command: &Command) -> Bytes {
    // As the `Entry` around it would be written, without cloning the command into one.
    let mut buffer = Vec::with_capacity(command.encoded_len());
    command.encode(&mut buffer);
    buffer.into()
}

/// Reads a log entry. Payloads are slices of `bytes`.
pub fn decode(bytes: Bytes) -> Result<Command, CommandError> {
    Entry::decode(bytes)?.command.ok_or(CommandError::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            identity: MessageIdentity { lane: 3, number: 9 },
            topic: "a/b".into(),
            payload: Bytes::from_static(b"seven cups of coffee"),
            qos: QoS::AtLeastOnce,
            retain: true,
            publisher: "p".into(),
            properties: Some(Box::new(PublishProperties {
                content_type: Some("text/plain".into()),
                correlation_data: Some(Bytes::from_static(b"c")),
                message_expiry_interval: Some(10),
                payload_format_indicator: Some(1),
                response_topic: Some("r".into()),
                user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
                ..PublishProperties::default()
            })),
            expires_at_ms: Some(1_500),
        }
    }

    #[test]
    fn a_message_survives_the_log_and_changes_its_clock() {
        let there = MessageRecord::from_message(&message(), 1_000);
        let back = there.into_message(70_000);
        assert_eq!(
            back,
            Message {
                expires_at_ms: Some(70_500),
                ..message()
            }
        );
    }

    #[test]
    fn a_command_survives_the_log_without_copying_the_payload() {
        let lane = Lane {
            node: 1,
            incarnation: 2,
            lane: 3,
            messages: vec![LaneMessage {
                number: 4,
                message: MessageRecord::from_message(&message(), 0),
                shares: vec!["$share/g/a/#".into()],
                ..LaneMessage::default()
            }],
            answered: 0,
        };
        let bytes = encode(&Command::Lane(lane.clone()));
        let Ok(Command::Lane(back)) = decode(bytes.clone()) else {
            panic!("a lane")
        };
        assert_eq!(back, lane);
        let payload = back.messages[0].message.payload.as_ptr();
        assert!(
            bytes.as_ptr_range().contains(&payload),
            "a slice of the entry"
        );
    }

    #[test]
    fn what_is_no_command_is_an_error() {
        assert_eq!(decode(Bytes::new()), Err(CommandError::Unknown));
        assert_eq!(
            decode(Bytes::from_static(&[0xFA, 0x07, 0])),
            Err(CommandError::Unknown),
            "a later version's"
        );
        assert!(matches!(
            decode(Bytes::from_static(&[0x0A, 0x05, 1])),
            Err(CommandError::Malformed(_))
        ));
    }
}
